// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls a helper by a number that is known only when the program runs.
use super::{
    Function, by_number,
    errno::{EINVAL, error},
};

/// Calls this crate's helper of that number, for `callx` in compiled code; `-EINVAL` if there is none that
/// [may be called so](super::Helper::is_called_by_register).
///
/// # Safety
/// What the helper's type in [`Function`] asks for.
pub unsafe extern "C" fn dispatch(
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    e: u64,
    attachment: u64,
    number: u64,
) -> u64 {
    let helper = u32::try_from(number).ok().and_then(by_number);
    let helper = helper.filter(|helper| helper.is_called_by_register());
    match helper.map(|helper| helper.function) {
        // SAFETY: the caller keeps the helper's contract.
        Some(Function::Plain(function)) => unsafe { function(a, b, c, d, e) },
        // SAFETY: the caller keeps the helper's contract.
        Some(Function::Attached(function) | Function::Callback(function)) => unsafe {
            function(a, b, c, d, e, attachment)
        },
        Some(Function::Engine) | None => error(EINVAL),
    }
}
