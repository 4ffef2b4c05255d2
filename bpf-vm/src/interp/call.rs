// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of helpers: arguments checked by the helper's row, then the same function that compiled code calls.
use super::{FaultKind, flat::FUNCTION, memory::Memory};
use crate::{
    attachment::Attachment,
    helpers::{
        Argument, Function, Helper,
        dynptr::{DYNPTR_BYTES, Dynptr, Kind},
    },
    host::host,
    isa::Size,
    map::Map,
};

/// What the program's own map is behind a handle: one that it names, or one inside of those.
pub(super) fn map<'a>(memory: &Memory<'a, '_>, handle: u64) -> Option<&'a Map> {
    let maps = memory.program.maps();
    let own = maps.iter().find(|map| map.handle() == handle);
    own.map(|map| &**map)
        .or_else(|| maps.iter().find_map(|map| map.inner(handle)))
}

/// The index of the first instruction of the function that a register names.
pub(super) fn function(memory: &Memory<'_, '_>, value: u64) -> Option<u32> {
    let start = u32::try_from(value ^ FUNCTION).ok()?;
    let functions = memory.program.functions();
    let known = functions.binary_search_by_key(&start, |function| function.start);
    known.ok().map(|_| start)
}

/// The length of the record that was reserved at an address in one of the program's ring buffers and is not committed.
fn reserved(memory: &Memory<'_, '_>, record: u64) -> Option<u64> {
    let maps = memory.program.maps().iter();
    let mut rings = maps.filter_map(|map| map.ring_buffer());
    rings.find_map(|ring| ring.reserved(record))
}

/// Whether a dynptr lies at an address of the program's stack: null, or of a kind that `fits`, whose memory the program may
/// access now. The program may have written anything there.
fn is_dynptr(memory: &mut Memory<'_, '_>, address: u64, fits: impl Fn(Kind) -> bool) -> bool {
    if !memory.is_on_stack(address, DYNPTR_BYTES) {
        return false;
    }
    let mut word = |at| memory.load(address + at, Size::Dw);
    let (Some(data), Some(size)) = (word(0), word(8)) else {
        return false;
    };
    match Dynptr::from_words([data, size]) {
        Ok(None) => true,
        Ok(Some(Dynptr { data, size, kind })) => {
            let is_there = match kind {
                Kind::Record => reserved(memory, data) == Some(size),
                Kind::Value => size == 0 || memory.holds_values(data, size),
            };
            fits(kind) && is_there
        }
        Err(()) => false,
    }
}

/// Checks r1 to r5 by a helper's row; `context` is what the program got in r1, and begins with what the attachment says if the
/// helper asks for that.
///
/// # Errors
/// The first argument that is not what the row says.
pub(super) fn check(
    helper: &Helper,
    values: [u64; 5],
    context: u64,
    attachment: &Attachment,
    memory: &mut Memory<'_, '_>,
) -> Result<(), FaultKind> {
    let attached = matches!(helper.function, Function::Attached(_));
    let words = u64::from(attachment.arguments) + u64::from(attachment.has_result);
    let mut of: Option<&Map> = None;
    for (number, (argument, value)) in (1..).zip(helper.arguments.iter().zip(values)) {
        // The argument after it, which is the size of those that have one.
        let size = values.get(number).copied().unwrap_or(0);
        let key = of.map(|map| map.key_size() as u64);
        let content = of.map(|map| map.value_size() as u64);
        let mut touches = |bytes: Option<u64>, write| {
            bytes.is_some_and(|bytes| memory.allows(value, bytes, write))
        };
        let fits = match argument {
            Argument::Scalar | Argument::Any | Argument::SizeOrZero | Argument::ConstantSize => {
                true
            }
            Argument::Size => value > 0,
            Argument::Map => {
                of = map(memory, value);
                of.is_some()
            }
            Argument::MapKey => touches(key, false),
            Argument::MapValue => touches(content, false),
            Argument::MapValueOrNull => value == 0 || touches(content, false),
            Argument::MapValueOut => touches(content, true),
            Argument::Memory => size > 0 && touches(Some(size), false),
            Argument::MemoryOrNull => size == 0 || touches(Some(size), false),
            Argument::MemoryOut | Argument::MemoryOutOrNull => {
                size == 0 || touches(Some(size), true)
            }
            Argument::ConstantString => memory.holds_string(value),
            Argument::WordOut => value.is_multiple_of(8) && touches(Some(8), true),
            Argument::Context => {
                let asks = attached && words > 0;
                value == context && (!asks || touches(Some(words * 8), false))
            }
            Argument::Callback => function(memory, value).is_some(),
            Argument::Record => reserved(memory, value).is_some(),
            Argument::ValueMemory => size == 0 || memory.holds_values(value, size),
            Argument::Dynptr => is_dynptr(memory, value, |_| true),
            Argument::DynptrOut => memory.is_on_stack(value, DYNPTR_BYTES),
            Argument::DynptrRecord => is_dynptr(memory, value, |kind| kind == Kind::Record),
            Argument::SpinLock => value.is_multiple_of(4) && touches(Some(4), true),
            Argument::Task => value == host().current_task(),
            Argument::PerCpu => {
                let mut variables = memory.program.variables().iter();
                variables.any(|variable| variable.address == value)
            }
        };
        if !fits {
            return Err(FaultKind::Argument {
                helper: helper.name,
                number,
                value,
            });
        }
    }
    Ok(())
}

/// Calls a helper with arguments that [`check`] has found good.
///
/// # Errors
/// The helper has no function: an engine has to do it by itself, and this one does not.
pub(super) fn call(
    helper: &Helper,
    [a, b, c, d, e]: [u64; 5],
    attachment: &Attachment,
) -> Result<u64, FaultKind> {
    match helper.function {
        // SAFETY: each argument is what the row says: maps are the program's, which the caller holds, and memory is
        // in regions that outlive the call.
        Function::Plain(function) => Ok(unsafe { function(a, b, c, d, e) }),
        Function::Attached(function) => {
            let attachment = attachment.address();
            // SAFETY: as above; the attachment outlives the call.
            Ok(unsafe { function(a, b, c, d, e, attachment) })
        }
        Function::Callback(_) | Function::Engine => Err(FaultKind::Structure),
    }
}
