// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stack frame of an image: what lies where, from x29 upwards.
//!
//! ```text
//!            caller's stack: arguments 9 and on
//!          +------------------+ <- sp at the function's entry
//!          | session words    | one a session, zero at the entry
//!          | x8               | if live
//!          | results          | x0 ..., of images that call the function
//!          | stack arguments  |
//!          | x(n-1) ...       |
//!   ctx -> | x0               |
//!          | session          | if there are sessions: address of the session's word, bit 0: this is the exit
//!          | -                |
//!          | program          | guard record (runtime.rs), if any program has a guard of its own
//!          | next             |
//!          | x30              | frame record (AAPCS64 6.4.6)
//!   x29 -> | x29              |
//!          +------------------+ 16-byte aligned
//! ```

use crate::args::ArgSpec;
use crate::registers;
use crate::runtime::{PROBE_CONTEXT, RECORD_NEXT, RECORD_PROGRAM, SHARED_LINK};
use a64::Reg;
use a64::reg::{X0, X1, X2, X3, X4, X5, X6, X7};
use alloc::vec::Vec;

/// Bytes of a word.
const WORD: i64 = 8;
/// What the stack pointer is a multiple of.
const ALIGN: i64 = 16;

/// Offsets from x29, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The context that programs get.
    pub(crate) context: i64,
    /// Arguments from the stack, in the context.
    pub(crate) stack_arguments: i64,
    /// The results, in the context.
    pub(crate) results: i64,
    /// x8.
    indirect: i64,
    /// The first session's word.
    sessions: i64,
    /// All of it.
    pub(crate) bytes: i64,
}

/// A register to be kept, with the one behind it if both lie side by side, and the offset of the first.
pub(crate) type Slot = (Reg, Option<Reg>, i64);

impl Frame {
    /// The frame of an image with these arguments.
    pub(crate) fn new(args: ArgSpec, guarded: bool, calls_function: bool, sessions: usize) -> Self {
        let mut at = RECORD_NEXT;
        if guarded {
            at = RECORD_PROGRAM + WORD;
        }
        if sessions > 0 {
            at += 2 * WORD;
        }
        let context = at;
        let stack_arguments = context + WORD * i64::from(args.registers());
        let results = context + WORD * i64::from(args.words());
        at = results;
        if calls_function {
            at += WORD * i64::from(args.results().max(1));
        }
        let indirect = at;
        at += if args.indirect_result() { WORD } else { 0 };
        let sessions_at = at;
        at += WORD * sessions as i64;
        Self {
            context,
            stack_arguments,
            results,
            indirect,
            sessions: sessions_at,
            bytes: (at + ALIGN - 1) & !(ALIGN - 1),
        }
    }

    /// The frame of a probe: behind the records lie all registers.
    pub(crate) fn of_registers() -> Self {
        let context = PROBE_CONTEXT;
        let end = context + registers::BYTES;
        Self {
            context,
            stack_arguments: end,
            results: end,
            indirect: end,
            sessions: end,
            bytes: (end + ALIGN - 1) & !(ALIGN - 1),
        }
    }

    /// The frame of a body that many functions share (shared.rs), whose context is the registers.
    ///
    /// ```text
    ///          +------------------+ <- sp at the function's entry
    ///          | pstate, pc, sp   |
    ///          | x30 ...          |
    ///   ctx -> | x0               |
    ///          | x8               |
    ///          | link             | address of the stub's link, by which the function is known
    ///          | program          | guard record (runtime.rs)
    ///          | next             |
    ///          | x30              |
    ///   x29 -> | x29              |
    ///          +------------------+
    /// ```
    pub(crate) const SHARED: Self = {
        let context = SHARED_LINK + 2 * WORD;
        let bytes = (context + registers::BYTES + ALIGN - 1) & !(ALIGN - 1);
        Self {
            context,
            stack_arguments: bytes,
            results: context,
            indirect: bytes,
            sessions: bytes,
            bytes,
        }
    };

    /// Where a shared body keeps the registers that carry arguments or results, but x8.
    pub(crate) fn shared(self) -> Vec<Slot> {
        let all = [X0, X1, X2, X3, X4, X5, X6, X7];
        pairs(all.into_iter(), self.context)
    }

    /// The word that says which session runs.
    pub(crate) fn session(self) -> i64 {
        self.context - WORD
    }

    /// The word of a session.
    pub(crate) fn session_word(self, number: usize) -> i64 {
        self.sessions + WORD * number as i64
    }

    /// Where the arguments in registers, and x8, are kept.
    pub(crate) fn arguments(self, args: ArgSpec) -> Vec<Slot> {
        let mut slots = pairs(args.live(), self.context);
        // x8 joins the last register if that has no other and lies before it.
        match (slots.last_mut(), args.indirect()) {
            (Some((_, second @ None, at)), Some(x8)) if *at + WORD == self.indirect => {
                *second = Some(x8);
            }
            (_, Some(x8)) => slots.push((x8, None, self.indirect)),
            (_, None) => {}
        }
        slots
    }

    /// Where the results are kept.
    pub(crate) fn results(self, args: ArgSpec) -> Vec<Slot> {
        pairs(args.result_registers(), self.results)
    }
}

/// Registers by pairs, in words from an offset on.
fn pairs(registers: impl Iterator<Item = Reg>, first: i64) -> Vec<Slot> {
    let mut slots: Vec<Slot> = Vec::new();
    for (reg, at) in registers.zip((first..).step_by(WORD as usize)) {
        match slots.last_mut() {
            Some((_, second @ None, _)) => *second = Some(reg),
            _ => slots.push((reg, None, at)),
        }
    }
    slots
}
