// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generates the image of a function from the programs that are attached to it.
//!
//! At a compiled function's entry x0-x7 may hold arguments, x8 the address of the result, x29 and
//! x30 the caller's frame; x9-x17 and NZCV are free (AAPCS64 6.1.1); x18-x28 are kept by the
//! programs themselves, as by every function. Arguments on the stack stay where they are. So:
//!
//! ```text
//!   stp  x29, x30, [sp, #-frame]!    save      the frame: frame.rs
//!   mov  x29, sp
//!   stp  x0, x1, [x29, #ctx] ...
//!   mrs  x9, SP_EL0                  guard     \
//!   ldr  x10, [x9, #word]                       | if any program has a guard of its own; with a word that is not
//!   cbnz x10, slow                              | zero the part's cold twin asks `admit` for each program
//!   adr  x11, literal                           |
//!   stp  xzr, x11, [x29, #16]                   |
//!   str  x29, [x9, #word]                      /
//!   add  x0, x29, #ctx               enter     \  for each fentry, then each fmod_ret, in attach order
//!   mov  x1, data                               |
//!   bl   program                     program   /
//!   mrs  x9, SP_EL0                  guard
//!   str  xzr, [x9, #word]
//!   ldp  x0, x1, [x29, #ctx] ...     restore
//! ```
//!
//! With nothing but `fentry` it ends so, and the function never knows:
//!
//! ```text
//!   ldp  x29, x30, [sp], #frame      restore
//!   b    function+8                  return
//! ```
//!
//! Otherwise the image calls the function, with what it has on the stack copied to where it looks for it, and runs a second
//! part as the first for each `fexit`:
//!
//! ```text
//!   bl   function+8                  function
//!   stp  x0, x1, [x29, #results]     save
//!   ...                              the second part
//!   ldp  x0, x1, [x29, #results]     restore
//!   ldp  x29, x30, [sp], #frame
//!   ret                              return
//! ```
//!
//! What lies between saving and restoring, and behind the last instruction, is `guard.rs`'s.
//!
//! A program of kind `freplace` is the last of the first part: the image then goes on at the second part with its result, as if an
//! `fmod_ret` program had wanted the function skipped. Turned away, or taken out of an image that is still in use, it leaves the
//! function to itself.

use crate::args::ArgSpec;
use crate::frame::{Frame, Slot};
use crate::guard::{Call, Emitter, Run, When};
use crate::ingredient::{Ingredient, Span};
use crate::pool::Record;
use crate::program::{Callee, Guard, Kind};
use crate::runtime::Runtime;
use a64::inst::PairMode;
use a64::ops::{self, add_imm, ldp, ldr, mov_sp, stp, str as store};
use a64::reg::{X9, X29, X30};
use a64::{AsmError, Assembler, Fixup, LabelSlot, SP, Size, XZR};
use alloc::vec;
use alloc::vec::Vec;

/// An image to be built.
pub struct Description<'a> {
    /// Where the function goes on behind its site, or what replaces it.
    pub body: u64,
    /// What is live there.
    pub args: ArgSpec,
    /// What to call, in attach order.
    pub programs: &'a [(Kind, Callee)],
    /// What the code knows of its host.
    pub runtime: &'a Runtime,
}

/// What was built.
pub struct Body {
    /// What each instruction is for.
    pub spans: Vec<Span>,
    /// Where programs are called.
    pub calls: Vec<Call>,
    /// Index of the branch, or call, to the function's body.
    pub onward: usize,
    /// Where x29 points to the image's own record.
    pub record: Record,
    /// The deepest stack: the image's frame and the deepest program's, in bytes.
    pub stack_bytes: u32,
    /// What is on the stack while the function runs, in bytes; 0: nothing is.
    pub waiting_bytes: u32,
    /// Whether a task may block while it is inside, or while it will return there.
    pub may_block: bool,
}

impl Description<'_> {
    /// At most so many instructions, anywhere in a pool that starts at `pool`.
    ///
    /// The assembler's error if something is out of reach from there.
    pub fn words_at_most(&self, pool: u64) -> Result<usize, AsmError> {
        let mut storage = Storage::new(self.programs.len());
        let mut asm = storage.lend(Assembler::sizing(pool));
        self.emit(&mut asm);
        // An address near the image takes one instruction, anywhere at most four; and the literals are aligned.
        let constants = self.programs.iter().map(|(kind, program)| {
            let (runs, twins, asked) = (
                if *kind == Kind::Fsession { 2 } else { 1 },
                if program.guard == Guard::Word { 2 } else { 1 },
                matches!(program.guard, Guard::Call { .. }),
            );
            runs * twins * (usize::from(program.data.is_some()) + if asked { 2 } else { 0 })
        });
        Ok(asm.finish()? + 3 * constants.sum::<usize>() + 1)
    }

    /// Emits the image; errors stick to the assembler, which has labels from a [`Storage`].
    pub fn emit(&self, asm: &mut Assembler<'_>) -> Body {
        let programs = self.programs;
        let guarded = programs.iter().any(|(_, p)| p.guard == Guard::Word);
        let sessions = programs.iter().filter(|(k, _)| *k == Kind::Fsession);
        let frame = Frame::new(self.args, guarded, self.calls_function(), sessions.count());
        Emitter::new(asm, programs, self.runtime, frame).emit(self)
    }

    fn calls_function(&self) -> bool {
        self.programs.iter().any(|(kind, _)| kind.calls_function())
    }
}

/// What an assembler borrows for labels, enough for an image of so many programs.
pub struct Storage {
    labels: Vec<LabelSlot>,
    fixups: Vec<Fixup>,
}

impl Storage {
    /// For an image of that many programs.
    pub fn new(programs: usize) -> Self {
        Self {
            labels: vec![LabelSlot::default(); 16 + 8 * programs],
            fixups: vec![Fixup::default(); 32 + 16 * programs],
        }
    }

    /// Gives it to an assembler.
    pub fn lend<'a>(&'a mut self, asm: Assembler<'a>) -> Assembler<'a> {
        asm.with_labels(&mut self.labels, &mut self.fixups)
    }
}

impl Emitter<'_, '_, '_> {
    fn emit(mut self, description: &Description<'_>) -> Body {
        let (body, args) = (description.body, description.args);
        let (entry, exit) = (self.part(When::Entry), self.part(When::Exit));
        let calls_function = description.calls_function();

        self.enter_frame();
        let before = self.asm.len();
        self.each(&self.frame.arguments(args), Self::save);
        let stack = i64::from(args.stack().unwrap_or(0));
        for (word, from) in (0..stack).zip((self.frame.bytes..).step_by(8)) {
            self.asm.emit(ldr(X9, X29, from));
            let to = self.frame.stack_arguments + 8 * word;
            self.asm.emit(store(X9, X29, to));
        }
        let sessions = self.sessions();
        for number in 0..sessions {
            let at = self.frame.session_word(number);
            self.asm.emit(store(XZR, X29, at));
        }
        let shows_result = |run: &Run| matches!(run.kind, Kind::FmodRet | Kind::Fsession);
        if entry.runs.iter().any(shows_result) {
            self.asm.emit(store(XZR, X29, self.frame.results));
        }
        self.span(Ingredient::Save, None);

        let saved = self.asm.len();
        self.hot(entry);
        if self.asm.len() > saved || !calls_function {
            self.each(&self.frame.arguments(args), Self::restore);
        }
        let (gone, onward);
        let outgoing = (8 * stack + 15) & !15;
        if calls_function {
            self.span(Ingredient::Restore, None);
            if outgoing > 0 {
                self.asm.emit(ops::sub_imm(Size::X, SP, SP, outgoing));
                for word in 0..stack {
                    let from = self.frame.stack_arguments + 8 * word;
                    self.asm.emit(ldr(X9, X29, from));
                    self.asm.emit(store(X9, SP, 8 * word));
                }
            }
            onward = self.asm.len();
            self.asm.bl_abs(body);
            if outgoing > 0 {
                self.asm.emit(mov_sp(SP, X29));
            }
            self.span(Ingredient::Function, None);
            self.each(&self.frame.results(args), Self::save);
            if args.results() == 0 {
                self.asm.emit(store(XZR, X29, self.frame.results));
            }
            self.span(Ingredient::Save, None);
            self.asm.bind(self.exit);
            self.hot(exit);
            self.each(&self.frame.results(args), Self::restore);
            gone = self.leave_frame();
            self.span(Ingredient::Restore, None);
            self.asm.emit(ops::ret());
        } else {
            self.asm.bind(self.exit);
            gone = self.leave_frame();
            self.span(Ingredient::Restore, None);
            onward = self.asm.len();
            self.asm.b_abs(body);
        }
        let gone = gone..self.asm.len();
        self.span(Ingredient::Return, None);

        self.emit_cold();
        let (stack_bytes, waiting_bytes) = (self.deepest(), self.waiting(calls_function, outgoing));
        let sleepable = self.programs.iter().any(|(_, p)| p.sleepable);
        Body {
            spans: self.spans,
            calls: self.calls,
            onward,
            record: Record {
                before,
                gone,
                again: 0..0,
            },
            stack_bytes,
            waiting_bytes,
            may_block: calls_function || sleepable,
        }
    }

    fn enter_frame(&mut self) {
        let bytes = self.frame.bytes;
        match stp(PairMode::Pre, X29, X30, SP, -bytes) {
            Ok(inst) => {
                self.asm.emit(inst);
                self.asm.emit(mov_sp(X29, SP));
            }
            // The caller's record stays the innermost one until x29 changes.
            Err(_) => {
                self.asm.emit(ops::sub_imm(Size::X, SP, SP, bytes));
                self.asm.emit(stp(PairMode::Offset, X29, X30, SP, 0));
                self.asm.emit(mov_sp(X29, SP));
            }
        }
    }

    /// Takes the frame down; the index of the first instruction at which x29 is the caller's again.
    pub(crate) fn leave_frame(&mut self) -> usize {
        let bytes = self.frame.bytes;
        if let Ok(inst) = ldp(PairMode::Post, X29, X30, SP, bytes) {
            self.asm.emit(inst);
            return self.asm.len();
        }
        self.asm.emit(ldp(PairMode::Offset, X29, X30, SP, 0));
        let gone = self.asm.len();
        self.asm.emit(add_imm(Size::X, SP, SP, bytes));
        gone
    }

    pub(crate) fn each(&mut self, slots: &[Slot], emit: fn(&mut Self, Slot)) {
        slots.iter().for_each(|slot| emit(self, *slot));
    }

    pub(crate) fn save(&mut self, (first, second, at): Slot) {
        match second {
            Some(second) => self.asm.emit(stp(PairMode::Offset, first, second, X29, at)),
            None => self.asm.emit(store(first, X29, at)),
        }
    }

    pub(crate) fn restore(&mut self, (first, second, at): Slot) {
        match second {
            Some(second) => self.asm.emit(ldp(PairMode::Offset, first, second, X29, at)),
            None => self.asm.emit(ldr(first, X29, at)),
        }
    }

    fn sessions(&self) -> usize {
        let programs = self.programs.iter();
        programs.filter(|(k, _)| *k == Kind::Fsession).count()
    }
}
