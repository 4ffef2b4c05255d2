// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel's functions take, from the types in the image: for those that are exported, whose arguments are as declared.

use crate::arch::lock::Late;
use crate::symbols;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use bpf_vm::btf::{Btf, Kind, Signature};
use trampoline::ArgSpec;

/// Registers that carry arguments.
const REGISTERS: u64 = 8;
const WORD: u64 = 8;

/// What each exported function takes, by name.
static ARGUMENTS: Late<BTreeMap<&'static str, ArgSpec>> = Late::new();

/// Reads the types of the image's functions, once; without types nothing is known of any.
pub(crate) fn init() {
    let btf = symbols::btf().and_then(|bytes| Btf::parse(bytes).ok());
    let Some(btf) = btf else { return };
    let known = |id| {
        let (name, signature) = btf.signature(id)?;
        Some((name, arguments_of(&signature)?))
    };
    let table = btf.ids().filter_map(known).collect();
    ARGUMENTS.set(Box::leak(Box::new(table)));
}

/// What a function takes; [`ArgSpec::UNKNOWN`] if that is not known.
pub(crate) fn arguments(function: &str) -> ArgSpec {
    let known = ARGUMENTS.get().and_then(|table| table.get(function));
    known.copied().unwrap_or(ArgSpec::UNKNOWN)
}

/// What two exported functions take and return, as C writes it, and whether it is the same; of one whose types are not known, `None`.
pub(crate) fn compare(functions: [&str; 2]) -> ([Option<String>; 2], bool) {
    let btf = symbols::btf().and_then(|bytes| Btf::parse(bytes).ok());
    let Some(btf) = btf else {
        return ([None, None], false);
    };
    let prototype = |name: &str| btf.prototype(btf.find(Kind::FUNC, name)?);
    let prototypes = functions.map(prototype);
    let same = match &prototypes {
        [Some(a), Some(b)] => a.is_like(b),
        _ => false,
    };
    (prototypes.map(|p| p.map(|p| p.to_string())), same)
}

/// Where the procedure call standard puts arguments and result (AAPCS64 6.8.2, 6.9); `None` if they are more than a trampoline
/// hands on.
fn arguments_of(signature: &Signature) -> Option<ArgSpec> {
    let (mut registers, mut stack) = (0, 0);
    for &bytes in &signature.parameters {
        let words = match bytes {
            0 => return None,
            // What is larger is passed by its address.
            _ if bytes > 2 * WORD => 1,
            _ => bytes.div_ceil(WORD),
        };
        // What does not fit into the registers that are left is on the stack, and so is all that comes after it.
        match REGISTERS - registers {
            left if stack == 0 && words <= left => registers += words,
            0 => stack += words,
            _ => return None, // x7 stays empty, so words of ctx and arguments would not be in step
        }
    }
    let (results, indirect) = match signature.result {
        bytes if bytes > 2 * WORD => (0, true),
        bytes => (bytes.div_ceil(WORD), false),
    };
    ArgSpec::new(u8::try_from(registers).ok()?, indirect)?
        .with_stack(u8::try_from(stack).ok()?)?
        .with_results(u8::try_from(results).ok()?)
}
