// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generates the body that the stubs of many functions lead to: it calls one program, or two, with the registers as their context.
//!
//! A *stub* is what differs from function to function. It keeps x30 and, as x9-x17 are free at an entry, needs no stack:
//!
//! ```text
//!   +0   adr  x12, +8
//!   +4   b    body
//!   +8   b    what is next in the function's chain     the link
//!   +12  brk, or a word that tells how far the next stub is     the distance (pair.rs)
//!   +16  the program's second argument points here: the function's address, then three words of the host's
//! ```
//!
//! At the *entry* of functions the body is, with the guard and the call as in [`crate::body`]:
//!
//! ```text
//!   stp  x29, x30, [sp, #-320]!      save      the frame: frame.rs
//!   mov  x29, sp
//!   stp  x12, x8, [x29, #32]
//!   stp  x0, x1, [x29, #48] ...
//!   ...                              guard, enter, program
//!   ldp  x0, x1, [x29, #48] ...      restore
//!   ldp  x12, x8, [x29, #32]
//!   ldp  x29, x30, [sp], #320
//!   br   x12                         return    by the link: no call, no return, so none is predicted wrongly for it
//! ```
//!
//! What else the program may read of the registers is stored in front of `mov x29, sp`; what it cannot read is not.
//!
//! For the *exit* of functions it begins with the entry's part, which pushes the return address (shadow.rs) and goes on by the link;
//! the function returns to the landing, which pops, and does the same for the results.

use crate::body::Body;
use crate::frame::Frame;
use crate::guard::{Data, Emitter, STUB_DATA, STUB_DISTANCE, When};
use crate::ingredient::Ingredient;
use crate::pool::Record;
use crate::program::{Callee, Kind};
use crate::registers::{self, PC, PSTATE, Words};
use crate::runtime::{Runtime, SHARED_LINK};
use crate::shadow;
use a64::inst::PairMode;
use a64::ops::{self, add_imm, br, ldp, mov, mov_sp, mrs, ret, stp, str as store};
use a64::reg::{X8, X9, X12, X29, X30};
use a64::{Assembler, Label, Reg, SP, Size, SysReg, XZR};

/// Words of a stub: 48 bytes.
pub(crate) const STUB_WORDS: usize = 12;
/// Index of a stub's link.
pub(crate) const LINK: usize = 2;
/// Index of the word that tells where the next stub is, where one body works for both: a B to that one's word of the same kind, for its
/// offset. Nobody executes it.
pub(crate) const DISTANCE: usize = LINK + STUB_DISTANCE as usize / 4;
/// Index of its data.
pub(crate) const DATA: usize = LINK + STUB_DATA as usize / 4;

/// What is shared.
pub(crate) struct Shared<'a> {
    /// Whether the program runs when the function returns, else at its entry.
    pub(crate) exit: bool,
    /// The program; or two that stubs in one another's succession have, both of the entry.
    pub(crate) programs: &'a [(Kind, Callee)],
    /// What they may read of their context.
    pub(crate) reads: Words,
    pub(crate) runtime: &'a Runtime,
}

impl Shared<'_> {
    /// Emits the body; errors stick to the assembler, which has labels for one program.
    pub(crate) fn emit(&self, asm: &mut Assembler<'_>) -> Body {
        let mut emitter = Emitter::new(asm, self.programs, self.runtime, Frame::SHARED);
        emitter.data = Data::Stub;
        let full = emitter.asm.new_label();
        if self.exit {
            self.divert(&mut emitter, full);
        }
        let bytes = emitter.frame.bytes;
        emitter.asm.emit(stp(PairMode::Pre, X29, X30, SP, -bytes));
        self.save_rest(&mut emitter);
        emitter.asm.emit(mov_sp(X29, SP));
        let before = emitter.asm.len();
        let asm = &mut *emitter.asm;
        asm.emit(stp(PairMode::Offset, X12, X8, X29, SHARED_LINK));
        emitter.each(&emitter.frame.shared(), Emitter::save);
        emitter.span(Ingredient::Save, None);
        let part = emitter.part(match self.exit {
            true => When::Exit,
            false => When::Entry,
        });
        emitter.hot(part);
        emitter.each(&emitter.frame.shared(), Emitter::restore);
        let asm = &mut *emitter.asm;
        asm.emit(ldp(PairMode::Offset, X12, X8, X29, SHARED_LINK));
        if self.exit {
            // An address left there would look like one that is still in use.
            asm.emit(mov(Size::X, X12, XZR));
        }
        let gone = emitter.leave_frame();
        emitter.span(Ingredient::Restore, None);
        let onward = emitter.asm.len();
        emitter.asm.emit(match self.exit {
            true => ret(),
            false => br(X12),
        });
        emitter.span(Ingredient::Return, None);
        let last = emitter.asm.len();
        let mut record = Record {
            before,
            gone: gone..last,
            again: 0..0,
        };
        match self.exit {
            true => record.gone.end += self.turn_away(&mut emitter, full),
            false => emitter.asm.bind(full),
        }
        let end = emitter.exit;
        emitter.asm.bind(end);
        emitter.emit_cold();
        Body {
            stack_bytes: emitter.deepest(),
            waiting_bytes: 0, // return addresses are on the shadow stack
            spans: emitter.spans,
            calls: emitter.calls,
            onward,
            record,
            may_block: self.exit, // the function may
        }
    }

    /// The entry's part of an exit: the function is to return to the landing, which is bound behind it.
    fn divert(&self, emitter: &mut Emitter<'_, '_, '_>, full: Label) {
        let landing = emitter.asm.new_label();
        shadow::push(emitter.asm, self.runtime, landing, X12, full);
        emitter.span(Ingredient::Push, None);
        emitter.asm.emit(br(X12));
        emitter.span(Ingredient::Return, None);
        emitter.asm.bind(landing);
        shadow::pop(emitter.asm, self.runtime, Some(X12));
        emitter.span(Ingredient::Pop, None);
    }

    /// The entry's part if no shadow stack entry is left; how many instructions pass until its frame record is there, the one that the
    /// function goes on by included.
    fn turn_away(&self, emitter: &mut Emitter<'_, '_, '_>, full: Label) -> usize {
        let (onward, count) = (emitter.asm.new_label(), emitter.asm.new_label());
        let first = emitter.asm.len();
        // x9 is kept while the miss is counted, x12 is not.
        emitter.asm.bind(onward);
        emitter.asm.emit(br(X9));
        emitter.span(Ingredient::Return, None);
        emitter.asm.bind(full);
        emitter.asm.emit(mov(Size::X, X9, X12));
        emitter.asm.emit(mov(Size::X, X12, XZR)); // as at the exit
        let before = emitter.asm.len() - first;
        emitter.count_misses(count, onward);
        before + 2
    }

    /// What the program may read but x0-x7, which are kept anyway. sp is the frame's; x29 and x30 are the caller's still.
    fn save_rest(&self, emitter: &mut Emitter<'_, '_, '_>) {
        let (context, bytes) = (emitter.frame.context, emitter.frame.bytes);
        let asm = &mut *emitter.asm;
        for number in (8..30).step_by(2) {
            if let (Some(even), Some(odd)) = (Reg::new(number), Reg::new(number + 1))
                && (self.reads.has(number.into()) || self.reads.has(usize::from(number) + 1))
            {
                let at = context + registers::x(number);
                asm.emit(stp(PairMode::Offset, even, odd, SP, at));
            }
        }
        let word = |at: i64| self.reads.has(at as usize / 8);
        if word(registers::x(30)) {
            asm.emit(store(X30, SP, context + registers::x(30)));
        }
        if word(registers::SP) {
            asm.emit(add_imm(Size::X, X9, SP, bytes));
            asm.emit(store(X9, SP, context + registers::SP));
        }
        if word(PC) {
            // The function's address; of an exit where it returns to, as for Linux's return probes.
            let pc = if self.exit { X30 } else { X9 };
            if !self.exit {
                asm.emit(ops::ldr(X9, X12, STUB_DATA));
            }
            asm.emit(store(pc, SP, context + PC));
        }
        if word(PSTATE) {
            asm.emit(mrs(X9, SysReg::NZCV));
            asm.emit(add_imm(Size::X, X9, X9, registers::EL1H));
            asm.emit(store(X9, SP, context + PSTATE));
        }
    }
}
