// SPDX-License-Identifier: MIT OR Apache-2.0
//! Things to hook: small functions with known arguments, the loop that calls them, and a TCP transfer.
//!
//! The functions are global and `extern "C"`, so their arguments are where the procedure call standard puts them.

mod loopback;
mod tcp;

pub(crate) use tcp::{TCP_TARGET, TCP_TARGET_SHORT, TRANSFER_BYTES, Transfer, TransferError};

use core::hint::black_box;

/// What [`call_loop`] calls.
pub(crate) type Callable = extern "C" fn(u64, u64) -> u64;

/// The trivial function that calls are measured with: `3a + b`.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_call(a: u64, b: u64) -> u64 {
    a.wrapping_mul(3).wrapping_add(b)
}

/// Six arguments, each with its own weight in the result: `a + 2b + 3c + 4d + 5e + 6f`.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_six(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> u64 {
    [a, b, c, d, e, f]
        .iter()
        .zip(1..)
        .fold(0, |sum, (value, weight)| {
            value.wrapping_mul(weight).wrapping_add(sum)
        })
}

/// A function with a site that calls another: `workload_call(a, b) + workload_call(b, a)`.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_nested(a: u64, b: u64) -> u64 {
    workload_call(a, b).wrapping_add(workload_call(b, a))
}

/// Calls `f` through a pointer, `n` times, the count as first argument and the last result as second; returns the last
/// result. The loop's instructions are the same ones for every `f`.
#[inline(never)]
pub(crate) fn call_loop(f: Callable, n: u64) -> u64 {
    let f = black_box(f);
    (0..n).fold(0, |last, i| f(i, last))
}

/// Calls a function as often as it is told; returns the last result.
pub(crate) type Caller = fn(u64) -> u64;

/// Functions that can be called by name.
pub(crate) const TARGETS: [(&str, Caller); 3] = [
    ("workload_call", |n| call_loop(workload_call, n)),
    ("workload_nested", |n| call_loop(workload_nested, n)),
    ("workload_six", |n| {
        (0..n).fold(0, |last, i| workload_six(i, last, 1, 2, 3, 4))
    }),
];
