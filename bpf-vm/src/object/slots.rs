// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations in a list of instruction slots, read and replaced.
#![forbid(unsafe_code)]

use crate::isa::{Insn, Op};

/// The operation that starts at a slot, if one does.
pub(super) fn op_at(insns: &[Insn], slot: usize) -> Option<Op> {
    Op::decode(*insns.get(slot)?, insns.get(slot + 1).copied()).ok()
}

/// Puts an operation at a slot, over one that takes as many slots.
pub(super) fn put(insns: &mut [Insn], slot: usize, op: Op) {
    let (first, second) = op.encode();
    let words = [Some(first), second].into_iter().flatten();
    for (insn, word) in insns.iter_mut().skip(slot).zip(words) {
        *insn = word;
    }
}
