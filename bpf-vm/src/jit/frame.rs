// SPDX-License-Identifier: MIT OR Apache-2.0
//! A compiled function's stack frame: only what the function needs, and nothing for most leaves.
//!
//! ```text
//!            |                      | the caller's
//!   r10 ->   +----------------------+
//!            | BPF stack            | if r10 is used: down to the lowest byte accessed, 512 bytes if r10 is
//!            |                      | anything but the base of accesses and of keys of lookups in place
//!            +----------------------+
//!            | x19, x20, ...        | those that are used, in pairs
//!            +----------------------+
//!            | attachment, count    | if the program asks for them and the function calls
//!            +----------------------+
//!            | x29, x30             | frame record, if the function calls
//!   sp, x29  +----------------------+ 16-byte aligned (AAPCS64, 6.4.5)
//! ```
use a64::Reg as A64;
use alloc::vec::Vec;

use super::{
    flow::Flow,
    ir::{End, Name, Node},
};
use crate::program::STACK_BYTES;

/// The layout of a frame.
#[derive(Debug)]
pub(super) struct Frame {
    /// All of it, a multiple of 16.
    pub(super) bytes: u32,
    /// Whether it begins with a frame record.
    pub(super) record: bool,
    /// Whether the attachment's address and that of the count of tail calls follow: what is handed on at calls.
    pub(super) handed_on: bool,
    saved: Vec<A64>,
}

/// Bytes of the frame record, and the alignment of the stack.
const RECORD: u32 = 16;
/// Bytes of what is handed on, which lies behind the record.
const HANDED_ON: u32 = 16;
/// Where it lies, from sp: the attachment's address, then that of the count of tail calls.
pub(super) const HANDED_ON_AT: i64 = RECORD as i64;

impl Frame {
    /// The frame of a function, from the callee-saved registers that it uses.
    pub(super) fn new(flow: &Flow<'_>, saved: Vec<A64>, hands_on: bool) -> Self {
        let calls = flow.steps().any(|step| step.node.is_call());
        let handed_on = calls && hands_on;
        let record = if calls { RECORD } else { 0 } + if handed_on { HANDED_ON } else { 0 };
        let saves = (saved.len() as u32 * 8).next_multiple_of(RECORD);
        let ends = flow.reachable().map(|(_, block)| end_uses(block.end));
        let stack = flow
            .steps()
            .map(|step| stack_used(&step.node))
            .chain(ends)
            .max()
            .unwrap_or(0)
            .next_multiple_of(RECORD);
        Self {
            bytes: record + saves + stack,
            record: calls,
            handed_on,
            saved,
        }
    }

    /// The saved registers by pairs (the last may be alone), with their offset from sp.
    pub(super) fn saved_pairs(&self) -> impl Iterator<Item = (i64, &[A64])> {
        let record = if self.record { RECORD } else { 0 };
        let handed_on = if self.handed_on { HANDED_ON } else { 0 };
        let first = i64::from(record + handed_on);
        (first..).step_by(RECORD as usize).zip(self.saved.chunks(2))
    }
}

/// The most bytes below r10 that a function has.
const ALL: u32 = STACK_BYTES as u32;

/// Bytes below r10 down to an offset from it.
fn depth(off: i32) -> u32 {
    off.min(0).unsigned_abs().min(ALL)
}

/// Bytes below r10 that a step may access, or give others the address of.
fn stack_used(node: &Node) -> u32 {
    let (mut node, mut most) = (*node, 0);
    let mut base = |name: &mut Name, off: i32| {
        if *name == Name::FP {
            most = depth(off);
            // What is left counts as an address given away.
            *name = Name::R0;
        }
    };
    match &mut node {
        Node::Load { addr, .. }
        | Node::Store { addr, .. }
        | Node::LoadAcquire { addr, .. }
        | Node::StoreRelease { addr, .. }
        | Node::Atomic { addr, .. }
        | Node::Lookup { key: addr, .. }
            if addr.is_plain() =>
        {
            base(&mut addr.base, addr.off);
        }
        Node::LoadPair {
            base: name, off, ..
        }
        | Node::StorePair {
            base: name, off, ..
        } => {
            base(name, *off);
        }
        _ => {}
    }
    node.each_name(&mut |name| {
        if *name == Name::FP {
            most = ALL;
        }
    });
    most
}

/// The same of the end of a block.
fn end_uses(mut end: End) -> u32 {
    let mut most = 0;
    end.each_name(&mut |name| {
        if *name == Name::FP {
            most = ALL;
        }
    });
    most
}
