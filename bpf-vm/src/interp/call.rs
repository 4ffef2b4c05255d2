// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of helpers: arguments checked by the helper's row, then the same function that compiled code calls.
use alloc::sync::Arc;

use super::{FaultKind, memory::Memory};
use crate::{
    helpers::{Argument, Function, Helper},
    map::Map,
};

/// Calls a helper with r1 to r5, for a program with these maps and this memory.
///
/// # Errors
/// The first argument that is not what the helper's row says.
pub(super) fn call(
    helper: &Helper,
    values: [u64; 5],
    maps: &[Arc<Map>],
    memory: &Memory<'_>,
) -> Result<u64, FaultKind> {
    let mut map: Option<&Arc<Map>> = None;
    for (number, (argument, value)) in (1..).zip(helper.arguments.iter().zip(values)) {
        let readable = |bytes: Option<u64>| bytes.is_some_and(|b| memory.allows(value, b, false));
        let fits = match argument {
            Argument::Scalar | Argument::Size => true,
            Argument::Map => {
                map = maps.iter().find(|map| map.handle() == value);
                map.is_some()
            }
            Argument::MapKey => readable(map.map(|map| map.key_size() as u64)),
            Argument::MapValue => readable(map.map(|map| map.value_size() as u64)),
            // The size is the argument after it, and at least 1.
            Argument::Memory => readable(values.get(number).copied().filter(|size| *size > 0)),
            _ => false,
        };
        if !fits {
            return Err(FaultKind::Argument {
                helper: helper.name,
                number,
                value,
            });
        }
    }
    let [a, b, c, d, e] = values;
    Ok(match helper.function {
        // SAFETY: each argument is what the row says: maps are the program's, which the caller holds, and memory is
        // in regions that outlive the call.
        Function::Plain(function) => unsafe { function(a, b, c, d, e) },
        _ => return Err(FaultKind::Structure),
    })
}
