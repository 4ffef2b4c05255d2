// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers on the function that a program is attached to: its arguments, its result, its address, the cookie.
//!
//! Each has the safety contract of its type in [`Function`](super::Function): its arguments are what its row says.
use core::ptr::with_exposed_provenance;

use super::{
    errno::{EINVAL, EOPNOTSUPP, error},
    memory::{ProgramBytes, ProgramOut},
};
use crate::{attachment::Attachment, host::host, map::memory::WORD_BYTES};

/// # Safety
/// `address` comes from [`Attachment::address`] of one that lives during the call.
unsafe fn attachment(address: u64) -> Attachment {
    // SAFETY: the address of a living value, its provenance exposed, that nobody writes.
    unsafe { *with_exposed_provenance::<Attachment>(address as usize) }
}

/// Copies word `index` of a context to where a program wants it.
///
/// # Safety
/// `context` points to more than `index` readable words, `value` to a writable one.
unsafe fn copy_word(context: u64, index: u32, value: u64) {
    let index = index as usize * WORD_BYTES;
    // SAFETY: as this function asks for.
    let context = unsafe { ProgramBytes::new(context, index + WORD_BYTES) };
    // SAFETY: as this function asks for.
    let value = unsafe { ProgramOut::new(value, WORD_BYTES) };
    value.copy_from([context.word(index)]);
}

/// `long bpf_get_func_arg(void *ctx, u32 n, u64 *value)`: 0 and argument `n`, or `-EINVAL` if the function has fewer.
pub(super) unsafe extern "C" fn get_func_arg(
    context: u64,
    number: u64,
    value: u64,
    _: u64,
    _: u64,
    attached: u64,
) -> u64 {
    // SAFETY: by this helper's type.
    let attachment = unsafe { attachment(attached) };
    // The helper takes a `u32`.
    let number = number as u32;
    if number >= attachment.arguments {
        return error(EINVAL);
    }
    // SAFETY: a context begins with the arguments of its attachment; by this helper's row `value` is a writable word.
    unsafe { copy_word(context, number, value) };
    0
}

/// `long bpf_get_func_ret(void *ctx, u64 *value)`: 0 and the function's result, or `-EOPNOTSUPP` where there is none yet.
pub(super) unsafe extern "C" fn get_func_ret(
    context: u64,
    value: u64,
    _: u64,
    _: u64,
    _: u64,
    attached: u64,
) -> u64 {
    // SAFETY: by this helper's type.
    let attachment = unsafe { attachment(attached) };
    if attachment.has_result == 0 {
        return error(EOPNOTSUPP);
    }
    // SAFETY: the result follows the arguments in the context; by this helper's row `value` is a writable word.
    unsafe { copy_word(context, attachment.arguments, value) };
    0
}

/// `long bpf_get_func_arg_cnt(void *ctx)`: how many arguments the function has.
pub(super) unsafe extern "C" fn get_func_arg_cnt(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    attached: u64,
) -> u64 {
    // SAFETY: by this helper's type.
    unsafe { attachment(attached) }.arguments.into()
}

/// `u64 bpf_get_func_ip(void *ctx)`: the address of the function's entry.
pub(super) unsafe extern "C" fn get_func_ip(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    attached: u64,
) -> u64 {
    // SAFETY: by this helper's type.
    unsafe { attachment(attached) }.function
}

/// `u64 bpf_get_attach_cookie(void *ctx)`: what whoever attached the program gave it.
pub(super) unsafe extern "C" fn get_attach_cookie(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    attached: u64,
) -> u64 {
    // SAFETY: by this helper's type.
    unsafe { attachment(attached) }.cookie
}

/// `long bpf_override_return(struct pt_regs *regs, u64 rc)`: 0, or `-EOPNOTSUPP` where the host cannot make the function return.
pub(super) unsafe extern "C" fn override_return(
    context: u64,
    value: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    if host().override_return(context, value) {
        0
    } else {
        error(EOPNOTSUPP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_result_come_from_the_context_where_there_are_some() {
        let words = [11, 22, 33_u64];
        let context = words.as_ptr().expose_provenance() as u64;
        let entry = Attachment {
            function: 0xffff_8000,
            cookie: 77,
            arguments: 2,
            has_result: 0,
        };
        let exit = Attachment {
            has_result: 1,
            ..entry
        };
        let mut value = 99_u64;
        let to = core::ptr::from_mut(&mut value).expose_provenance() as u64;
        let read = || {
            // SAFETY: the live local above.
            unsafe { core::ptr::with_exposed_provenance::<u64>(to as usize).read_volatile() }
        };
        for attachment in [entry, exit] {
            let at = attachment.address();
            for (number, want, left) in [
                (0, 0, 11),
                (1, 0, 22),
                (2, -22, 22),
                (u64::from(u32::MAX), -22, 22),
            ] {
                // SAFETY: a context of two arguments and a result, a writable word, a living attachment.
                let r0 = unsafe { get_func_arg(context, number, to, 0, 0, at) };
                assert_eq!((r0 as i64, read()), (want, left), "argument {number}");
            }
            // SAFETY: a living attachment.
            let count = unsafe { get_func_arg_cnt(context, 0, 0, 0, 0, at) };
            // SAFETY: a living attachment.
            let function = unsafe { get_func_ip(context, 0, 0, 0, 0, at) };
            // SAFETY: a living attachment.
            let cookie = unsafe { get_attach_cookie(context, 0, 0, 0, 0, at) };
            assert_eq!((count, function, cookie), (2, 0xffff_8000, 77));
        }
        // SAFETY: as above.
        let r0 = unsafe { get_func_ret(context, to, 0, 0, 0, entry.address()) };
        assert_eq!((r0 as i64, read()), (-95, 22));
        // SAFETY: as above.
        let r0 = unsafe { get_func_ret(context, to, 0, 0, 0, exit.address()) };
        assert_eq!((r0, read()), (0, 33));
    }
}
