// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function's BPF trampoline, the way Linux has it: what is attached is called one by one, between two functions of the host.
//!
//! It comes from a site's BL, or from the shared caller as if from there. Its frame, `ctx` being what programs get:
//!
//! ```text
//!            caller's stack: arguments 9 and on
//!          +------------------+ <- sp at the function's entry
//!          | x9               | record of the function's caller
//!          | x29              |
//!          | x30              | record of the function
//!   x29 -> | -> the other     |
//!          | x20              | kept: x19 holds the program, x20 what `enter` said
//!          | x19              |
//!          | x8               | if live
//!          | result           | if the function is called, or a program's result counts
//!          | x(n-1) ...       |
//!   ctx -> | x0               |
//!          | n                |
//!          | cookie           | run context, for `enter` and `exit`
//!          | outer            |
//!    sp -> | stack arguments  | for the call of the function, if it has any
//!          +------------------+
//! ```
//!
//! Each program: `enter(program, run context) -> start`, unless that is 0 the program, `exit(program, start, run context)`. With
//! `fexit` or `fmod_ret` the trampoline calls the function, says so to the host before and after (so that it is not freed meanwhile),
//! and returns to the function's caller in its stead.

use super::{Emitter, Listing, ret_to};
use crate::args::ArgSpec;
use crate::ingredient::Ingredient;
use crate::pool::Record;
use crate::program::{Callee, Guard, Kind};
use a64::imm::Imm21;
use a64::inst::PairMode;
use a64::ops::{add_imm, cbnz, cbz, ldp, ldr, mov, mov_sp, nop, ret, stp, str as store, sub_imm};
use a64::reg::{X0, X1, X2, X9, X10, X19, X20, X29, X30};
use a64::{AsmError, Assembler, Fixup, Inst, Label, LabelSlot, SP, Size, XZR};
use alloc::vec;

/// Offset in a run context: what the host keeps there.
pub const RUN_OUTER: u64 = 0;
/// Offset in a run context: the attachment's cookie.
pub const RUN_COOKIE: u64 = 8;

/// Bytes of the two records.
const RECORDS: i64 = 32;

/// A program, with its cookie.
pub type Attached = (Kind, Callee, u64);

/// Whom a trampoline that calls its function tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Users {
    /// Address of an `extern "C" fn(of)` that is called before the function is.
    pub enter: u64,
    /// Address of an `extern "C" fn(of)` that is called last.
    pub exit: u64,
    /// What they are told.
    pub of: u64,
}

/// A trampoline to be built.
pub struct Description<'a> {
    /// What the function takes and returns.
    pub args: ArgSpec,
    /// What to call, in attach order; each with a guard of the host's own functions.
    pub programs: &'a [Attached],
    /// Whom to tell, if the function is called.
    pub users: Users,
}

/// What was built.
pub struct Built {
    /// How many instructions.
    pub words: usize,
    /// What they are for.
    pub listing: Listing,
    /// Of one that calls its function: index of the NOP behind the call, and of the end, to which it can be made a branch: who is in the
    /// function then runs nothing of the exit.
    pub bypass: Option<(usize, usize)>,
    /// The deepest stack: its own frame, and the deepest of what it calls.
    pub stack_bytes: u32,
    /// What is on the stack while the function runs, in bytes; 0: nothing is.
    pub waiting_bytes: u32,
}

/// Where things lie, from sp.
struct Frame {
    run: i64,
    context: i64,
    results: i64,
    indirect: i64,
    kept: i64,
    bytes: i64,
}

impl Frame {
    fn new(args: ArgSpec, outgoing: i64, calls: bool) -> Self {
        let run = outgoing;
        let context = run + 8 * 3;
        let results = context + 8 * i64::from(args.words());
        let indirect = results
            + if calls {
                8 * i64::from(args.results().max(1))
            } else {
                0
            };
        let end = indirect + if args.indirect_result() { 8 } else { 0 };
        let kept = (end + 15) & !15;
        Self {
            run,
            context,
            results,
            indirect,
            kept,
            bytes: kept + 16,
        }
    }
}

impl Description<'_> {
    fn calls_function(&self) -> bool {
        self.programs.iter().any(|(kind, ..)| kind.calls_function())
    }

    /// At most so many instructions.
    pub fn words_at_most(&self) -> usize {
        let stack = usize::from(self.args.stack().unwrap_or(0));
        100 + 4 * stack + 24 * self.programs.len()
    }

    /// The code, for the address `base`.
    ///
    /// # Errors
    /// What the assembler says.
    pub fn generate(&self, words: &mut [u32], base: u64) -> Result<Built, AsmError> {
        let mut labels = vec![LabelSlot::default(); 8 + 2 * self.programs.len()];
        let mut fixups = vec![Fixup::default(); 8 + 4 * self.programs.len()];
        let asm = Assembler::new(words, base);
        let mut asm = asm.with_labels(&mut labels, &mut fixups);
        let mut built = self.emit(&mut asm);
        built.words = asm.finish()?;
        Ok(built)
    }

    fn emit(&self, asm: &mut Assembler<'_>) -> Built {
        let args = self.args;
        let calls = self.calls_function();
        let stack = i64::from(args.stack().unwrap_or(0));
        let outgoing = if calls { (8 * stack + 15) & !15 } else { 0 };
        let frame = Frame::new(args, outgoing, calls);
        let mut code = Emitter::new(asm);

        // The record of the function's caller, then that of the function.
        code.asm.emit(stp(PairMode::Pre, X29, X9, SP, -16));
        code.asm.emit(mov_sp(X29, SP));
        code.asm.emit(stp(PairMode::Pre, X29, X30, SP, -16));
        code.asm.emit(mov_sp(X29, SP));
        let before = code.asm.len();
        code.asm.emit(sub_imm(Size::X, SP, SP, frame.bytes));
        code.asm.mov_imm(X10, u64::from(args.words()));
        code.asm.emit(store(X10, SP, frame.context - 8));
        for (reg, at) in args.live().zip((frame.context..).step_by(8)) {
            code.asm.emit(store(reg, SP, at));
        }
        let on_stack = frame.context + 8 * i64::from(args.registers());
        for word in 0..stack {
            code.asm.emit(ldr(X10, X29, RECORDS + 8 * word));
            code.asm.emit(store(X10, SP, on_stack + 8 * word));
        }
        if let Some(x8) = args.indirect() {
            code.asm.emit(store(x8, SP, frame.indirect));
        }
        code.asm.emit(store(X19, SP, frame.kept));
        code.asm.emit(store(X20, SP, frame.kept + 8));
        code.span(Ingredient::Save, None);

        if calls {
            self.tell(&mut code, self.users.enter);
        }
        self.each(&mut code, &frame, Kind::Fentry, None);
        let exit = code.asm.new_label();
        if self.of(Kind::FmodRet).next().is_some() {
            code.asm.emit(store(XZR, SP, frame.results));
            code.span(Ingredient::Enter, None);
        }
        self.each(&mut code, &frame, Kind::FmodRet, Some(exit));

        let mut bypass = None;
        if calls {
            self.restore_arguments(&mut code, &frame);
            for word in 0..stack {
                code.asm.emit(ldr(X10, SP, on_stack + 8 * word));
                code.asm.emit(store(X10, SP, 8 * word));
            }
            code.span(Ingredient::Restore, None);
            // To function+8, which is in the function's record, and back behind the RET.
            code.asm.emit(ldr(X10, X29, 8));
            let behind = Imm21::new(8).map(|offset| Inst::Adr {
                rd: X30.into(),
                offset,
            });
            code.asm.emit(behind);
            code.asm.emit(ret_to(X10));
            code.span(Ingredient::Function, None);
            for (reg, at) in args.result_registers().zip((frame.results..).step_by(8)) {
                code.asm.emit(store(reg, SP, at));
            }
            if args.results() == 0 {
                code.asm.emit(store(XZR, SP, frame.results));
            }
            code.span(Ingredient::Save, None);
            let at = code.asm.len();
            code.asm.emit(nop());
            code.span(Ingredient::Function, None);
            code.asm.bind(exit);
            self.each(&mut code, &frame, Kind::Fexit, None);
            bypass = Some((at, code.asm.len()));
            self.tell(&mut code, self.users.exit);
            for (reg, at) in args.result_registers().zip((frame.results..).step_by(8)) {
                code.asm.emit(ldr(reg, SP, at));
            }
        } else {
            code.asm.bind(exit);
            self.restore_arguments(&mut code, &frame);
        }
        code.asm.emit(ldr(X19, SP, frame.kept));
        code.asm.emit(ldr(X20, SP, frame.kept + 8));
        code.asm.emit(mov_sp(SP, X29));
        code.asm.emit(ldp(PairMode::Post, X29, X30, SP, 16));
        code.asm.emit(ldp(PairMode::Post, X29, X9, SP, 16));
        // The caller is in x9 until it is in x30, and x29 is his from here on.
        let gone = code.asm.len();
        code.span(Ingredient::Restore, None);
        if calls {
            code.asm.emit(mov(Size::X, X30, X9));
            code.asm.emit(ret());
        } else {
            code.asm.emit(mov(Size::X, X10, X30));
            code.asm.emit(mov(Size::X, X30, X9));
            code.asm.emit(ret_to(X10));
        }
        let end = code.asm.len();
        code.span(Ingredient::Return, None);

        let deepest = self.programs.iter().map(|(_, p, _)| p.stack_bytes).max();
        let own = (frame.bytes + RECORDS) as u32;
        Built {
            words: end,
            listing: Listing {
                spans: code.spans,
                record: Record {
                    before,
                    gone: gone..end,
                    again: 0..0,
                },
                frame_bytes: own,
            },
            bypass,
            stack_bytes: own.saturating_add(deepest.unwrap_or(0)),
            waiting_bytes: if calls { own } else { 0 },
        }
    }

    fn of(&self, wanted: Kind) -> impl Iterator<Item = (usize, &Attached)> {
        let programs = self.programs.iter().enumerate();
        programs.filter(move |(_, (kind, ..))| *kind == wanted)
    }

    fn restore_arguments(&self, code: &mut Emitter<'_, '_>, frame: &Frame) {
        for (reg, at) in self.args.live().zip((frame.context..).step_by(8)) {
            code.asm.emit(ldr(reg, SP, at));
        }
        if let Some(x8) = self.args.indirect() {
            code.asm.emit(ldr(x8, SP, frame.indirect));
        }
    }

    /// Tells the host that a task is inside, or not any more.
    fn tell(&self, code: &mut Emitter<'_, '_>, whom: u64) {
        code.asm.mov_imm(X0, self.users.of);
        code.asm.bl_abs(whom);
        code.span(Ingredient::Guard, None);
    }

    /// Runs the programs of a kind.
    fn each(&self, code: &mut Emitter<'_, '_>, frame: &Frame, kind: Kind, skip: Option<Label>) {
        for (index, (_, program, cookie)) in self.of(kind) {
            self.run(code, frame, index, program, *cookie);
            if let Some(skip) = skip {
                code.asm.emit(ldr(X10, SP, frame.results));
                code.asm.branch(cbnz(Size::X, X10), skip);
                code.span(Ingredient::Exit, Some(index));
            }
        }
    }

    fn run(
        &self,
        code: &mut Emitter<'_, '_>,
        frame: &Frame,
        index: usize,
        program: &Callee,
        cookie: u64,
    ) {
        let (enter, exit) = match program.guard {
            Guard::Call { enter, exit } => (Some(enter), Some(exit)),
            _ => (None, None),
        };
        let cookie_at = frame.run + RUN_COOKIE as i64;
        if cookie == 0 {
            code.asm.emit(store(XZR, SP, cookie_at));
        } else {
            code.asm.mov_imm(X10, cookie);
            code.asm.emit(store(X10, SP, cookie_at));
        }
        code.asm.mov_imm(X19, program.state);
        let after = code.asm.new_label();
        if let Some(enter) = enter {
            code.asm.emit(mov(Size::X, X0, X19));
            code.asm.emit(add_imm(Size::X, X1, SP, frame.run));
            code.asm.bl_abs(enter);
            code.asm.emit(mov(Size::X, X20, X0));
            code.asm.branch(cbz(Size::X, X0), after);
        }
        code.span(Ingredient::Enter, Some(index));
        code.asm.emit(add_imm(Size::X, X0, SP, frame.context));
        if let Some(data) = program.data {
            code.asm.mov_imm(X1, data);
        }
        code.asm.bl_abs(program.address);
        if self
            .programs
            .get(index)
            .is_some_and(|(k, ..)| *k == Kind::FmodRet)
        {
            code.asm.emit(store(X0, SP, frame.results));
        }
        code.span(Ingredient::Program, Some(index));
        code.asm.bind(after);
        if let Some(exit) = exit {
            code.asm.emit(mov(Size::X, X0, X19));
            code.asm.emit(mov(Size::X, X1, X20));
            code.asm.emit(add_imm(Size::X, X2, SP, frame.run));
            code.asm.bl_abs(exit);
        }
        code.span(Ingredient::Exit, Some(index));
    }
}
