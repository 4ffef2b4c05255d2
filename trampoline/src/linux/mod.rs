// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way Linux goes into a hook, rebuilt so that it can be measured beside the other.
//!
//! A hooked function's site ([`site`]) becomes `mov x9, x30` and `bl`, so what it leads to can serve every function: x30 says which
//! one was called, x9 where it returns to. It leads to the *shared caller* ([`caller`]), which saves registers and calls an *op*
//! (ftrace's word for a tracer with a filter): the one that a global pointer names, or the one that the word before the function
//! names. Or it leads to a BPF trampoline ([`image`]), directly if nothing else traces the function, else by way of the
//! shared caller. A tracer of returns replaces the return address by that of the *return trampoline* ([`fprobe`]). Which functions
//! an op traces is a hash of addresses ([`filter`]).
//!
//! Written from what is known of the mechanism (its steps, their order, how many instructions they take); nothing of Linux's code
//! is here. What differs is in docs/decisions.md.

pub mod caller;
pub mod filter;
pub mod fprobe;
pub mod image;
pub mod kprobe;
pub mod site;

use crate::ingredient::{Ingredient, Span};
use crate::pool::Record;
use a64::inst::{BranchRegOp, PairMode};
use a64::ops::{self, stp};
use a64::{Assembler, Gpr, Inst, Reg, RegOrSp};
use alloc::vec::Vec;

/// Generated code that is not an image of the engine's.
#[derive(Clone, Debug)]
pub struct Listing {
    /// What each instruction is for.
    pub spans: Vec<Span>,
    /// Where x29 points to a record of its own.
    pub record: Record,
    /// Bytes of stack that it uses itself.
    pub frame_bytes: u32,
}

impl Listing {
    /// What the instruction at this index is for.
    pub fn span(&self, index: usize) -> Option<Span> {
        let mut end = 0;
        self.spans.iter().copied().find(|span| {
            end += span.len;
            index < end
        })
    }
}

/// An assembler that notes what its instructions are for.
struct Emitter<'e, 'b> {
    asm: &'e mut Assembler<'b>,
    spans: Vec<Span>,
    done: usize,
}

impl<'e, 'b> Emitter<'e, 'b> {
    fn new(asm: &'e mut Assembler<'b>) -> Self {
        let done = asm.len();
        Self {
            asm,
            spans: Vec::new(),
            done,
        }
    }

    /// Counts the instructions that were emitted since the last call as one span.
    fn span(&mut self, ingredient: Ingredient, program: Option<usize>) {
        let len = self.asm.len() - self.done;
        self.done = self.asm.len();
        if len > 0 {
            self.spans.push(Span {
                len,
                ingredient,
                program,
            });
        }
    }

    /// The registers from `first` to `last` by pairs, each at eight times its number from `base` on: `stp` or `ldp` for each two, `single`
    /// for one that is left.
    fn registers(
        &mut self,
        range: core::ops::RangeInclusive<u8>,
        base: impl Into<RegOrSp>,
        store: bool,
    ) {
        let base = base.into();
        let registers: Vec<Reg> = range.filter_map(Reg::new).collect();
        for pair in registers.chunks(2) {
            match *pair {
                [a, b] => {
                    let at = crate::registers::x(a.number());
                    let op = if store { stp } else { ops::ldp };
                    self.asm.emit(pair_of(op, a, b, base, at));
                }
                [a] => {
                    let at = crate::registers::x(a.number());
                    let op = if store { ops::str } else { ops::ldr };
                    self.asm.emit(op(a, base, at));
                }
                _ => {}
            }
        }
    }
}

/// What [`stp`] and `ldp` return.
type Emitted = Result<Inst, a64::ImmError>;

fn pair_of(
    op: fn(PairMode, Reg, Reg, RegOrSp, i64) -> Emitted,
    a: Reg,
    b: Reg,
    base: RegOrSp,
    at: i64,
) -> Emitted {
    op(PairMode::Offset, a, b, base, at)
}

/// `ret rn`: a return, for the branch prediction, to an address that is not in x30.
fn ret_to(rn: impl Into<Gpr>) -> Inst {
    Inst::BranchReg {
        op: BranchRegOp::Ret,
        rn: rn.into(),
    }
}
