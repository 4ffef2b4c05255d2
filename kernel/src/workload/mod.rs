// SPDX-License-Identifier: MIT OR Apache-2.0
//! Things to hook: small functions with known arguments, the loop that calls them, and a TCP transfer.
//!
//! The functions are global and `extern "C"`, so their arguments are where the procedure call standard puts them.

mod exchange;
mod loopback;
mod tcp;

pub(crate) use exchange::{NamedPatch, PATCHES, Pause, workload_encode, workload_exchange};
pub(crate) use tcp::{TCP_TARGET, TCP_TARGET_SHORT, TRANSFER_BYTES, Transfer, TransferError};

use crate::arch::callee::past_site;
use crate::sched::WaitQueue;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

/// Another trivial function of as many instructions: `5a + b`.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_call_other(a: u64, b: u64) -> u64 {
    a.wrapping_mul(5).wrapping_add(b)
}

/// The same, and counts its calls.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_call_count(a: u64, b: u64) -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    CALLS.fetch_add(1, Ordering::Relaxed);
    a.wrapping_mul(5).wrapping_add(b)
}

/// One that can take [`workload_call`]'s place and calls what it replaces: `workload_call(a, b) + 1`.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_call_more(a: u64, b: u64) -> u64 {
    past_site(workload_call as Callable)(a, b).wrapping_add(1)
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

/// Twelve arguments, four of them on the stack, each with its own weight in the result.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_twelve(
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    e: u64,
    f: u64,
    g: u64,
    h: u64,
    i: u64,
    j: u64,
    k: u64,
    l: u64,
) -> u64 {
    [a, b, c, d, e, f, g, h, i, j, k, l]
        .iter()
        .zip(1..)
        .fold(0, |sum, (value, weight)| {
            value.wrapping_mul(weight).wrapping_add(sum)
        })
}

/// A result of three words: more than registers carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(crate) struct Wide {
    /// The first argument.
    pub first: u64,
    /// The second.
    pub second: u64,
    /// Their sum.
    pub sum: u64,
}

/// A function that returns a struct in memory whose address the caller passes in x8 (AAPCS64 6.9): `a`, `b` and `a + b`.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_wide(a: u64, b: u64) -> Wide {
    Wide {
        first: a,
        second: b,
        sum: a.wrapping_add(b),
    }
}

/// What [`workload_blocks`] waits for.
static GATE: (AtomicBool, WaitQueue) = (AtomicBool::new(true), WaitQueue::new());

/// Opens or closes the gate that [`workload_blocks`] waits for.
pub(crate) fn set_gate(open: bool) {
    GATE.0.store(open, Ordering::Release);
    if open {
        GATE.1.wake_all();
    }
}

/// A function that blocks until the gate is open: `a + 2b`. Task context.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_blocks(a: u64, b: u64) -> u64 {
    GATE.1.wait_until(|| GATE.0.load(Ordering::Acquire));
    b.wrapping_mul(2).wrapping_add(a)
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

/// What a [`Request`] asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum RequestKind {
    /// To be given bytes.
    Read = 1,
    /// To take bytes.
    Write = 2,
    /// To do both.
    Exchange = 16,
}

/// A place in two ways.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) union Place {
    /// As a number.
    pub number: u64,
    /// As bytes, the lowest first.
    pub bytes: [u8; 8],
}

/// A range of bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Extent {
    /// Where it starts.
    pub place: Place,
    /// How many bytes it has.
    pub length: u32,
}

/// An argument with members of every kind, for programs that read structs.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Request {
    /// Its number.
    pub id: u64,
    /// What it asks for.
    pub kind: RequestKind,
    /// How urgent it is; less is more.
    pub priority: i16,
    /// Whether someone waits for it.
    pub waited_for: bool,
    /// Its name, zeros behind it.
    pub name: [u8; 13],
    /// Of which bytes.
    pub extent: Extent,
    /// The context that it was made in.
    pub context: crate::context::Context,
    /// The task that made it.
    pub task: Option<&'static crate::sched::Task>,
    /// The one that comes after it.
    pub next: Option<&'static Request>,
    /// What to call when it is done.
    pub done: Option<extern "C" fn(&Request, u64) -> bool>,
}

/// A function whose argument is a pointer to a struct: the requests' `id + priority + extent.length`, summed up along `next`.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_struct(request: &Request, scale: u32) -> u64 {
    let next = core::iter::successors(Some(request), |request| request.next);
    next.fold(0, |sum: u64, request| {
        let priority = i64::from(request.priority) as u64;
        let length = u64::from(request.extent.length) * u64::from(scale);
        sum.wrapping_add(request.id)
            .wrapping_add(priority)
            .wrapping_add(length)
    })
}

/// The second of two requests.
static LAST_REQUEST: Request = Request {
    id: 7,
    kind: RequestKind::Read,
    priority: -3,
    waited_for: false,
    name: *b"last\0\0\0\0\0\0\0\0\0",
    extent: Extent {
        place: Place {
            number: 0x1122_3344_5566_7788,
        },
        length: 512,
    },
    context: crate::context::Context::Softirq,
    task: None,
    next: None,
    done: None,
};

/// Calls [`workload_struct`] with a request numbered `n`, behind which another one follows.
pub(crate) fn call_struct(n: u64) -> u64 {
    let request = Request {
        id: n,
        kind: match n % 2 {
            0 => RequestKind::Write,
            _ => RequestKind::Exchange,
        },
        waited_for: true,
        name: *b"first\0\0\0\0\0\0\0\0",
        task: Some(crate::arch::switch::current()),
        next: Some(&LAST_REQUEST),
        ..LAST_REQUEST
    };
    workload_struct(black_box(&request), 2)
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
pub(crate) const TARGETS: [(&str, Caller); 5] = [
    ("workload_call", |n| call_loop(workload_call, n)),
    ("workload_nested", |n| call_loop(workload_nested, n)),
    ("workload_struct", |n| (0..n).fold(0, |_, i| call_struct(i))),
    ("workload_six", |n| {
        (0..n).fold(0, |last, i| workload_six(i, last, 1, 2, 3, 4))
    }),
    ("workload_exchange", |n| {
        (0..n).fold(0, |_, i| workload_exchange(i, Pause::Yield as u64))
    }),
];
