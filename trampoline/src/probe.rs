// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generates the code of a probe: all registers for its programs, at an instruction or when a function has returned.
//!
//! ```text
//!   stp  x29, x30, [sp, #-frame]!    save      the frame: a frame record, the guard record, the registers (registers.rs)
//!   stp  x0, x1, [sp, #ctx] ...
//!   ldr  x0, pc
//!   str  x0, [sp, #8]                          of the middle of a function: its record says that it was interrupted here,
//!   mov  x29, sp                               for x30 may be anything there
//!   ...
//!   ...                              guard, enter, program: guard.rs
//!   msr  NZCV, x0                    restore   what a function's caller does not keep; at an entry less is live
//!   ldp  x0, x1, [sp, #ctx] ...
//!   ldp  x29, x30, [sp, #ctx+232]
//!   add  sp, sp, #frame
//! ```
//!
//! Then the function goes on: by a link, which the chain of its site sets, or with the displaced instruction and `b pc+4`.
//!
//! SP moves before anything is stored, and what lies below it belongs to no one (AAPCS64 6.4.5.1: there is no red zone).
//! x19 to x28 are kept by the programs, as by every function; NZCV and x0 to x18 are not.
//!
//! A program of the function's return has its address replaced on the way in, and finds itself at the landing:
//!
//! ```text
//!   mrs  x9, SP_EL0                  push      claim an entry of the task's shadow stack, then write it (runtime.rs)
//!   ldr  w10, [x9, #top]
//!   cmp  w10, #end
//!   b.hs full                                  no entry left: the programs' misses are counted, the function is left alone
//!   add  w11, w10, #32
//!   str  w11, [x9, #top]
//!   add  x9, x9, x10
//!   mov  x10, sp
//!   stp  x30, x10, [x9]
//!   adr  x10, landing
//!   stp  x10, xzr, [x9, #16]
//!   mov  x30, x10
//!   ...                              the function goes on
//! landing:
//!   mrs  x9, SP_EL0                  pop       read the latest entry, then give it up
//!   ldr  w10, [x9, #top]
//!   sub  w10, w10, #32
//!   add  x11, x9, x10
//!   ldr  x30, [x11]
//!   str  w10, [x9, #top]
//!   ...                              as above; x0 to x8 are kept
//!   ret                              return
//! ```
//!
//! Entries come off in the opposite order that they went on: calls nest, whatever interrupts a task returns before it goes on,
//! and a tail call pushes above what it leaves. x30 holds the landing no sooner than an entry says where that leads, and the
//! entry stays until x30 holds the real address again, so whoever looks in between finds the caller.

use crate::body::{Body, Storage};
use crate::frame::Frame;
use crate::guard::{Emitter, When};
use crate::ingredient::Ingredient;
use crate::pool::{FILL_IMMEDIATE, Record};
use crate::program::{Callee, Guard, Kind};
use crate::registers::{self, EL1H, PC, PSTATE};
use crate::runtime::Runtime;
use crate::shadow;
use a64::imm::Imm19;
use a64::inst::{LiteralOp, PairMode, SysReg};
use a64::ops::{self, add_imm, ldp, ldr, mov_sp, mrs, stp, str as store};
use a64::reg::*;
use a64::{AsmError, Assembler, Inst, Label, RelocateError, SP, Size, XZR};

/// The flags in PSTATE and in the register NZCV.
const FLAGS: u64 = 0xf000_0000;
/// Bytes of the frame in which misses are counted: a frame record, x0 to x8.
const MISS_FRAME: i64 = 16 + 80;

/// Where a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A function's entry, by its site.
    Site,
    /// A function's entry, by displacing this word.
    Entry(u32),
    /// Any other instruction: this word.
    Middle(u32),
}

impl Place {
    /// The displaced word.
    pub(crate) const fn displaced(self) -> Option<u32> {
        match self {
            Self::Site => None,
            Self::Entry(word) | Self::Middle(word) => Some(word),
        }
    }
}

/// A probe's code to be built.
pub(crate) struct Description<'a> {
    /// Address of the probed instruction.
    pub(crate) at: u64,
    pub(crate) place: Place,
    /// What to call, in attach order: [`Kind::Fentry`] here, [`Kind::Fexit`] when the function has returned.
    pub(crate) programs: &'a [(Kind, Callee)],
    pub(crate) runtime: &'a Runtime,
}

impl Description<'_> {
    /// At most so many instructions, anywhere in a pool that starts at `pool`.
    pub(crate) fn words_at_most(&self, pool: u64) -> Result<usize, RelocateOr> {
        let mut storage = Storage::new(self.programs.len());
        let mut asm = storage.lend(Assembler::sizing(pool));
        self.emit(&mut asm)?;
        // An address near the probe takes one instruction, anywhere at most four; a far branch takes two.
        let constants = self.programs.iter().map(|(_, program)| {
            let twins = if program.guard == Guard::Word { 2 } else { 1 };
            twins * usize::from(program.data.is_some()) + 3
        });
        const DISPLACED: usize = 6;
        let len = asm.finish().map_err(RelocateOr::Code)?;
        Ok(len + 3 * constants.sum::<usize>() + DISPLACED + 2)
    }

    /// Emits the probe; errors of the assembler, which has labels from a [`Storage`], stick to it.
    pub(crate) fn emit(&self, asm: &mut Assembler<'_>) -> Result<Body, RelocateOr> {
        Emitter::new(asm, self.programs, self.runtime, Frame::of_registers()).probe(self)
    }
}

/// Why a probe was not generated.
pub(crate) enum RelocateOr {
    /// The displaced instruction.
    Relocate(RelocateError),
    /// Something else.
    Code(AsmError),
}

/// Where the PC of a context comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// The literal, which is also where the frame record says that the function was interrupted.
    Middle,
    /// The literal; the frame record is that of a call.
    Entry,
    /// x30.
    Return,
}

impl Emitter<'_, '_, '_> {
    fn probe(mut self, description: &Description<'_>) -> Result<Body, RelocateOr> {
        let (entry, exit) = (self.part(When::Entry), self.part(When::Exit));
        let middle = matches!(description.place, Place::Middle(_));
        let returns = !exit.runs.is_empty();
        let (pc, landing, full, onward) = (
            self.asm.new_label(),
            self.asm.new_label(),
            self.asm.new_label(),
            self.asm.new_label(),
        );

        let mut record = Record {
            before: 0,
            gone: 0..0,
            again: 0..0,
        };
        let here = !entry.runs.is_empty();
        if here {
            let from = if middle { From::Middle } else { From::Entry };
            record.before = self.save_registers(from, pc);
            self.span(Ingredient::Save, None);
            self.hot(entry);
            record.gone.start = self.restore_registers(middle);
            self.span(Ingredient::Restore, None);
        }
        if returns {
            self.push(landing, full);
        }
        self.asm.bind(onward);
        let link = self.go_on(description)?;
        record.gone.end = self.asm.len();
        if returns {
            self.asm.bind(landing);
            self.pop();
            let saved = self.save_registers(From::Return, pc);
            match here {
                true => record.gone.end = saved,
                false => record.before = saved,
            }
            self.span(Ingredient::Save, None);
            self.hot(exit);
            let last = self.restore_registers(false);
            self.span(Ingredient::Restore, None);
            self.asm.emit(ops::ret());
            self.span(Ingredient::Return, None);
            let back = last..self.asm.len() + 2; // and until the misses' frame is there
            match here {
                true => record.again = back,
                false => record.gone = back,
            }
            self.count_misses(full, onward);
        } else {
            self.asm.bind(landing);
            self.asm.bind(full);
        }
        self.asm.bind(self.exit);
        self.emit_cold();
        self.emit_address(pc, description.at);

        let stack_bytes = self.deepest();
        let sleepable = self.programs.iter().any(|(_, p)| p.sleepable);
        Ok(Body {
            spans: self.spans,
            calls: self.calls,
            onward: link,
            record,
            stack_bytes,
            waiting_bytes: 0, // it is left before the function goes on
            may_block: returns || sleepable,
        })
    }

    /// Makes the frame, and the context in it; the index of the first instruction at which x29 points to the frame record.
    fn save_registers(&mut self, from: From, pc: Label) -> usize {
        let (bytes, context) = (self.frame.bytes, self.frame.context);
        self.asm.emit(stp(PairMode::Pre, X29, X30, SP, -bytes));
        for (first, second, at) in PAIRS {
            let at = context + registers::x(at);
            self.asm.emit(stp(PairMode::Offset, first, second, SP, at));
        }
        let address = match from {
            From::Return => X30,
            _ => {
                self.asm.branch(literal(X0), pc);
                X0
            }
        };
        if from == From::Middle {
            self.asm.emit(store(address, SP, 8));
        }
        self.asm.emit(mov_sp(X29, SP));
        let recorded = self.asm.len();
        self.asm.emit(add_imm(Size::X, X1, SP, bytes));
        let at = context + registers::x(30);
        self.asm.emit(stp(PairMode::Offset, X30, X1, SP, at));
        self.asm.emit(mrs(X1, SysReg::NZCV));
        self.asm.emit(add_imm(Size::X, X1, X1, EL1H));
        self.asm
            .emit(stp(PairMode::Offset, address, X1, SP, context + PC));
        recorded
    }

    /// Restores what programs change and takes the frame down; the index of the first instruction at which x29 is the function's.
    ///
    /// `all`: in the middle of a function. At its entry, and when it returns, x9 to x18 and NZCV are free (AAPCS64 6.1.1).
    fn restore_registers(&mut self, all: bool) -> usize {
        let (bytes, context) = (self.frame.bytes, self.frame.context);
        if all {
            self.asm.emit(ldr(X0, X29, context + PSTATE));
            self.asm.emit(ops::and_imm(Size::X, X0, X0, FLAGS));
            self.asm.emit(ops::msr(SysReg::NZCV, X0));
        }
        // x0 to x9, or to x19.
        let kept = if all { 10 } else { 5 };
        for (first, second, at) in PAIRS.into_iter().take(kept) {
            let at = context + registers::x(at);
            self.asm.emit(ldp(PairMode::Offset, first, second, SP, at));
        }
        match all {
            true => {
                let at = context + registers::x(29);
                self.asm.emit(ldp(PairMode::Offset, X29, X30, SP, at));
                let gone = self.asm.len();
                self.asm.emit(add_imm(Size::X, SP, SP, bytes));
                gone
            }
            false => {
                self.asm.emit(ldp(PairMode::Post, X29, X30, SP, bytes));
                self.asm.len()
            }
        }
    }

    /// Replaces the return address.
    fn push(&mut self, landing: Label, full: Label) {
        shadow::push(self.asm, self.runtime, landing, XZR, full);
        self.span(Ingredient::Push, None);
    }

    /// Takes the real return address back into x30.
    fn pop(&mut self) {
        shadow::pop(self.asm, self.runtime, None);
        self.span(Ingredient::Pop, None);
    }

    /// What follows the programs; the index of the link.
    fn go_on(&mut self, description: &Description<'_>) -> Result<usize, RelocateOr> {
        if let Some(word) = description.place.displaced() {
            a64::relocate(word, description.at, self.asm).map_err(RelocateOr::Relocate)?;
            self.span(Ingredient::Displaced, None);
            let link = self.asm.len();
            self.asm.b_abs(description.at.wrapping_add(4));
            self.span(Ingredient::Return, None);
            return Ok(link);
        }
        let link = self.asm.len();
        // Until it is in a chain.
        self.asm.emit(ops::brk(FILL_IMMEDIATE));
        self.span(Ingredient::Return, None);
        Ok(link)
    }

    /// The cold part for a shadow stack that is full. Its frame record is gone one instruction before its last branch, of which the
    /// label does not know.
    pub(crate) fn count_misses(&mut self, full: Label, onward: Label) {
        self.asm.bind(full);
        self.asm.emit(stp(PairMode::Pre, X29, X30, SP, -MISS_FRAME));
        self.asm.emit(mov_sp(X29, SP));
        let arguments = || PAIRS.into_iter().take(5);
        for (first, second, at) in arguments() {
            let at = 16 + registers::x(at);
            self.asm.emit(stp(PairMode::Offset, first, second, SP, at));
        }
        for (kind, program) in self.programs {
            if *kind == Kind::Fexit {
                self.asm.mov_imm(X0, program.state);
                self.asm.bl_abs(self.runtime.miss);
            }
        }
        for (first, second, at) in arguments() {
            let at = 16 + registers::x(at);
            self.asm.emit(ldp(PairMode::Offset, first, second, SP, at));
        }
        self.asm.emit(ldp(PairMode::Post, X29, X30, SP, MISS_FRAME));
        self.asm.branch(ops::b(), onward);
        self.span(Ingredient::Guard, None);
    }

    /// The literal with the address of the probed instruction.
    fn emit_address(&mut self, pc: Label, at: u64) {
        if !self.asm.pc().is_multiple_of(8) {
            self.asm.emit(ops::brk(FILL_IMMEDIATE));
        }
        self.asm.bind(pc);
        self.asm.emit_word(at as u32);
        self.asm.emit_word((at >> 32) as u32);
        self.span(Ingredient::Literal, None);
    }
}

/// `ldr rd, literal`, to be led to a label.
fn literal(rd: Reg) -> Inst {
    Inst::LoadLiteral {
        op: LiteralOp::LdrX,
        rt: rd.into(),
        offset: Imm19::ZERO,
    }
}

/// x0 to x29 by pairs, with the number of the first.
const PAIRS: [(Reg, Reg, u8); 15] = [
    (X0, X1, 0),
    (X2, X3, 2),
    (X4, X5, 4),
    (X6, X7, 6),
    (X8, X9, 8),
    (X10, X11, 10),
    (X12, X13, 12),
    (X14, X15, 14),
    (X16, X17, 16),
    (X18, X19, 18),
    (X20, X21, 20),
    (X22, X23, 22),
    (X24, X25, 24),
    (X26, X27, 26),
    (X28, X29, 28),
];
