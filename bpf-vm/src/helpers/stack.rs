// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers on stack traces: into a map, and into a program's memory.
//!
//! Each has the safety contract of its type in [`Function`](super::Function): its arguments are what its row says.
use super::{
    errno::{EFAULT, EINVAL, error, status},
    map::map,
    memory::ProgramOut,
};
use crate::{
    host::host,
    map::{
        memory::WORD_BYTES,
        stack_trace::{FAST_STACK_CMP, MAX_DEPTH, REUSE_STACKID, SKIP_MASK},
    },
};

/// `long bpf_get_stackid(ctx, map, flags)`: the id of the stack that the context stands on, or a negative error number.
///
/// There are no user stacks here: `BPF_F_USER_STACK` is `EINVAL`. It takes 1 KiB of stack.
pub(super) unsafe extern "C" fn get_stackid(
    context: u64,
    handle: u64,
    flags: u64,
    _: u64,
    _: u64,
) -> u64 {
    if flags & !(SKIP_MASK | FAST_STACK_CMP | REUSE_STACKID) != 0 {
        return error(EINVAL);
    }
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    let mut trace = [0; MAX_DEPTH];
    let Some(space) = trace
        .get_mut(..map.trace_depth())
        .filter(|space| !space.is_empty())
    else {
        return error(EINVAL);
    };
    let depth = host().stack_trace(context, (flags & SKIP_MASK) as usize, space);
    match space.get(..depth).filter(|trace| !trace.is_empty()) {
        Some(trace) => map
            .stack_id(trace, flags)
            .map_or_else(|error| status(Err(error)), u64::from),
        None => error(EFAULT),
    }
}

/// `long bpf_get_stack(ctx, buf, size, flags)`: the stack that the context stands on, innermost address first; bytes
/// written or a negative error number, the rest zeroed.
///
/// There are no user stacks here: `BPF_F_USER_STACK` is `EINVAL`. At most 127 addresses; it takes 1 KiB of stack.
pub(super) unsafe extern "C" fn get_stack(
    context: u64,
    buffer: u64,
    size: u64,
    flags: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `buffer` points to `size` writable bytes.
    let out = unsafe { ProgramOut::new(buffer, size as usize) };
    out.clear();
    if flags & !SKIP_MASK != 0 || !size.is_multiple_of(WORD_BYTES as u64) {
        return error(EINVAL);
    }
    let mut trace = [0; MAX_DEPTH];
    let count = MAX_DEPTH.min(size as usize / WORD_BYTES);
    let space = trace.get_mut(..count).unwrap_or_default();
    let depth = host()
        .stack_trace(context, flags as usize, space)
        .min(count);
    if depth == 0 {
        return error(EFAULT);
    }
    out.copy_from(trace.into_iter().take(depth));
    (depth * WORD_BYTES) as u64
}
