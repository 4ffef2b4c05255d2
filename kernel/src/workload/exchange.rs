// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two functions that have to agree, the one that calls both, and a change of what they agree on: for patches of several functions.

use crate::sched;
use crate::workload::{
    Callable, GATE, workload_call_count, workload_call_more, workload_call_other,
};
use core::hint::black_box;
use core::sync::atomic::Ordering;

/// What the first version adds, and how far the second one rotates.
const SHIFT: u32 = 13;

/// A live patch that is there by name: what it replaces by what, and inside of which functions no task changes over.
pub(crate) struct NamedPatch {
    /// Its name.
    pub name: &'static str,
    /// Functions, and what takes their place.
    pub pairs: &'static [(&'static str, &'static str)],
    /// Functions that see only one version from their beginning to their end, beside those that are replaced.
    pub whole: &'static [&'static str],
}

/// The live patches that there are.
pub(crate) const PATCHES: &[NamedPatch] = &[
    NamedPatch {
        name: "rotate",
        pairs: &[
            ("workload_encode", "workload_encode_rotated"),
            ("workload_decode", "workload_decode_rotated"),
        ],
        whole: &["workload_exchange"],
    },
    NamedPatch {
        name: "call",
        pairs: &[("workload_call", "workload_call_other")],
        whole: &[],
    },
];

/// Nobody calls these by name; they are part of the image all the same.
#[used]
static BY_NAME: [Callable; 5] = [
    workload_encode_rotated,
    workload_decode_rotated,
    workload_call_other,
    workload_call_more,
    workload_call_count,
];

/// How long [`workload_exchange`] is between its two halves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Pause {
    /// Not at all.
    None = 0,
    /// It gives up its core.
    Yield = 1,
    /// It blocks until the gate is open ([`crate::workload::set_gate`]).
    Gate = 2,
}

/// Hands a value from one function to the other: `value`, if they agree. Task context.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_exchange(value: u64, pause: u64) -> u64 {
    let coded = black_box(workload_encode(value, pause));
    if pause == Pause::Yield as u64 {
        sched::yield_now();
    }
    if pause == Pause::Gate as u64 {
        GATE.1.wait_until(|| GATE.0.load(Ordering::Acquire));
    }
    // More than a tail call: this function is on the stack until both are over.
    black_box(workload_decode(coded, pause))
}

/// What [`workload_decode`] undoes: `value + key + SHIFT`.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_encode(value: u64, key: u64) -> u64 {
    value.wrapping_add(key).wrapping_add(u64::from(SHIFT))
}

/// Undoes [`workload_encode`].
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_decode(coded: u64, key: u64) -> u64 {
    coded.wrapping_sub(key).wrapping_sub(u64::from(SHIFT))
}

/// The other way to encode: rotated as well.
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_encode_rotated(value: u64, key: u64) -> u64 {
    value.wrapping_add(key).rotate_left(SHIFT)
}

/// Undoes [`workload_encode_rotated`].
#[expect(
    unsafe_code,
    reason = "hooks name it, and its arguments have to be as declared"
)]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn workload_decode_rotated(coded: u64, key: u64) -> u64 {
    coded.rotate_right(SHIFT).wrapping_sub(key)
}
