// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parts of generated code that call programs, each under its protection.
//!
//! ```text
//!   mrs  x9, SP_EL0                  guard     \
//!   ldr  x10, [x9, #word]                       | if any program has a guard of its own; with a word that is not
//!   cbnz x10, slow                              | zero the part's cold twin asks `admit` for each program
//!   adr  x11, literal                           |
//!   stp  xzr, x11, [x29, #16]                   |
//!   str  x29, [x9, #word]                      /
//!   add  x0, x29, #ctx               enter     \  for each program
//!   mov  x1, data                               |
//!   bl   program                     program   /
//!   mrs  x9, SP_EL0                  guard
//!   str  xzr, [x9, #word]
//! ```
//!
//! Behind the last instruction that is usually executed lie the cold parts, then the literals that name programs to the guard.
//!
//! A program is called: `extern "C" fn(ctx: *const u64, data: u64) -> u64`. A program that is compiled into the image takes
//! the place of the enter and program parts in [`Emitter::run`]; with no call, there is also nothing to save for it.

use crate::frame::Frame;
use crate::ingredient::{Ingredient, Span};
use crate::program::{Callee, Guard, Kind};
use crate::runtime::{
    RECORD_NEXT, RECORD_PROGRAM, Runtime, SHARED_LINK, TRACE_LEFT, TRACE_NESTING_MASK,
};
use a64::imm::Imm21;
use a64::inst::{Access, PairMode};
use a64::ops::{self, add_imm, brk, cbnz, cbz, ldr, mrs, stp, str as store};
use a64::reg::{X0, X1, X9, X10, X11, X12, X29};
use a64::{Assembler, Gpr, Inst, Label, Size, XZR};
use alloc::vec::Vec;

/// A call of a program, so that it can be taken out of an image that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The program, by its place in attach order.
    pub program: usize,
    /// Index of the BL.
    pub at: usize,
    /// Index of the instruction to go on at without it.
    pub resume: usize,
}

/// One of an image's two parts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Entry,
    Exit,
}

/// One run of a program.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) program: usize,
    pub(crate) kind: Kind,
    pub(crate) when: When,
}

/// What the programs of a part need together.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) runs: Vec<Run>,
    /// The recursion word.
    pub(crate) guarded: bool,
    /// The count of reasons to stay on the core: someone wants it, and nobody sets the word.
    pub(crate) pinned: bool,
    /// The count of sleepable programs.
    pub(crate) sleepable: bool,
}

/// What is emitted behind the last instruction that is usually executed.
pub(crate) enum Cold {
    /// The twin of a part, for a word that is not zero; it goes on at `done`.
    Part {
        label: Label,
        part: Part,
        done: Label,
    },
    /// A program of a part wants the function skipped: the part's protection ends.
    Skip { label: Label, part: Part },
}

/// Where a program's second argument comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// It is the program's own constant.
    Constant,
    /// It lies in the stub that the hit came through: behind the link, whose address x12 has until something is called, and the frame.
    Stub,
}

/// Where a stub's data lie, in bytes from its link.
pub(crate) const STUB_DATA: i64 = 8;
/// Where the distance to the next stub lies, in bytes from its link (shared.rs).
pub(crate) const STUB_DISTANCE: i64 = 4;

pub(crate) struct Emitter<'e, 'a, 'b> {
    pub(crate) asm: &'e mut Assembler<'b>,
    pub(crate) programs: &'a [(Kind, Callee)],
    pub(crate) runtime: &'a Runtime,
    pub(crate) frame: Frame,
    pub(crate) data: Data,
    pub(crate) spans: Vec<Span>,
    done: usize,
    pub(crate) calls: Vec<Call>,
    cold: Vec<Cold>,
    /// Where the literal of each program will lie, and behind those one that names none.
    literals: Vec<Label>,
    /// Where the exit part begins.
    pub(crate) exit: Label,
}

impl<'e, 'a, 'b> Emitter<'e, 'a, 'b> {
    /// For code with this frame that calls these programs; the assembler has labels from a [`Storage`](crate::body::Storage).
    pub(crate) fn new(
        asm: &'e mut Assembler<'b>,
        programs: &'a [(Kind, Callee)],
        runtime: &'a Runtime,
        frame: Frame,
    ) -> Self {
        let literals = (0..programs.len()).map(|_| asm.new_label()).collect();
        let exit = asm.new_label();
        Self {
            asm,
            programs,
            runtime,
            frame,
            data: Data::Constant,
            spans: Vec::new(),
            done: 0,
            calls: Vec::new(),
            cold: Vec::new(),
            literals,
            exit,
        }
    }

    /// Counts the instructions that were emitted since the last call as one span.
    pub(crate) fn span(&mut self, ingredient: Ingredient, program: Option<usize>) {
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

    pub(crate) fn program(&self, index: usize) -> Option<&'a Callee> {
        self.programs.get(index).map(|(_, p)| p)
    }

    /// The part's runs: sessions and fentry in attach order, then fmod_ret, then freplace; at the exit fexit and sessions in attach order.
    pub(crate) fn part(&self, when: When) -> Part {
        let of = |kinds: [Kind; 2]| {
            let programs = self.programs.iter().enumerate();
            programs.filter_map(move |(program, (kind, _))| {
                kinds.contains(kind).then_some(Run {
                    program,
                    kind: *kind,
                    when,
                })
            })
        };
        let runs: Vec<_> = match when {
            When::Entry => of([Kind::Fentry, Kind::Fsession])
                .chain(of([Kind::FmodRet; 2]))
                .chain(of([Kind::Freplace; 2]))
                .collect(),
            When::Exit => of([Kind::Fexit, Kind::Fsession]).collect(),
        };
        let any = |wanted: &dyn Fn(&Callee) -> bool| {
            let mut programs = runs.iter().filter_map(|run| self.program(run.program));
            programs.any(wanted)
        };
        let guarded = any(&|p| p.guard == Guard::Word);
        Part {
            guarded,
            pinned: !guarded && any(&|p| p.guard == Guard::Pinned),
            sleepable: any(&|p| p.sleepable),
            runs,
        }
    }

    /// A part as it is usually executed.
    pub(crate) fn hot(&mut self, part: Part) {
        if part.runs.is_empty() {
            return;
        }
        let (slow, done, skip) = (
            self.asm.new_label(),
            self.asm.new_label(),
            self.asm.new_label(),
        );
        self.protect(&part, slow);
        for (number, &run) in part.runs.iter().enumerate() {
            self.next_stub(number, run.program);
            if part.guarded && number > 0 {
                self.adr(X11, run.program);
                self.asm.emit(store(X11, X29, RECORD_PROGRAM));
                self.span(Ingredient::Guard, Some(run.program));
            }
            self.run(run, Some(skip));
        }
        self.unprotect(&part);
        self.asm.bind(done);
        let skips = |run: &Run| matches!(run.kind, Kind::FmodRet | Kind::Freplace);
        let skips = part.runs.iter().any(skips);
        if part.guarded {
            let part = part.clone();
            let label = slow;
            self.cold.push(Cold::Part { label, part, done });
        }
        if skips {
            self.cold.push(Cold::Skip { label: skip, part });
        }
    }

    /// What comes before the first program of a part.
    fn protect(&mut self, part: &Part, slow: Label) {
        let runtime = self.runtime;
        if part.guarded {
            self.asm.emit(mrs(X9, runtime.task));
            self.asm.emit(ldr(X10, X9, runtime.word.into()));
            self.asm.branch(cbnz(Size::X, X10), slow);
            if let Some(run) = part.runs.first() {
                self.adr(X11, run.program);
            }
            self.asm
                .emit(stp(PairMode::Offset, XZR, X11, X29, RECORD_NEXT));
            self.asm.emit(store(X29, X9, runtime.word.into()));
            self.span(Ingredient::Guard, None);
        } else if part.pinned || part.sleepable {
            self.asm.emit(mrs(X9, runtime.task));
        }
        self.count(part, true);
        self.span(Ingredient::Enter, None);
    }

    /// What comes behind the last program of a part; x0 is kept.
    fn unprotect(&mut self, part: &Part) {
        let runtime = self.runtime;
        if part.guarded || part.pinned || part.sleepable {
            self.asm.emit(mrs(X9, runtime.task));
        }
        self.count(part, false);
        if part.pinned || part.sleepable {
            self.span(Ingredient::Exit, None);
        }
        if part.guarded {
            self.asm.emit(store(XZR, X9, runtime.word.into()));
            self.span(Ingredient::Guard, None);
        }
    }

    /// Raises or lowers the counts that a part needs; x9 has the task.
    fn count(&mut self, part: &Part, up: bool) {
        let runtime = self.runtime;
        if part.pinned {
            self.add_to(runtime.migrate, up, false);
        }
        if part.sleepable {
            self.add_to(runtime.trace, up, true);
        }
    }

    /// Adds one to a count of the task in x9, or takes one off; of `sleepable` programs also what leaving the outermost adds.
    fn add_to(&mut self, offset: u16, up: bool, sleepable: bool) {
        use a64::inst::Cond;
        let w10 = Gpr::from(X10);
        let offset = i64::from(offset);
        self.asm.emit(ops::mem(Access::LdrW, w10, X9, offset));
        let one = if up { 1 } else { -1 };
        self.asm.emit(add_imm(Size::W, X10, X10, one));
        if sleepable && !up {
            let (mask, left) = (TRACE_NESTING_MASK.into(), TRACE_LEFT.into());
            self.asm.emit(ops::tst_imm(Size::W, X10, mask));
            self.asm.emit(add_imm(Size::W, X11, X10, left));
            self.asm.emit(ops::csel(Size::W, X10, X11, X10, Cond::Eq));
        }
        self.asm.emit(ops::mem(Access::StrW, w10, X9, offset));
    }

    /// A part for a word that is not zero: each program is asked for.
    fn slow(&mut self, label: Label, part: &Part, done: Label) {
        let runtime = self.runtime;
        self.asm.bind(label);
        for (number, &run) in part.runs.iter().enumerate() {
            self.next_stub(number, run.program);
            let Some(program) = self.program(run.program) else {
                continue;
            };
            let next = self.asm.new_label();
            if program.guard == Guard::Word {
                self.adr(X0, run.program);
                self.asm.emit(ops::mov(Size::X, X1, X29));
                self.asm.bl_abs(runtime.admit);
                self.asm.branch(cbz(Size::X, X0), next);
                self.span(Ingredient::Guard, Some(run.program));
            }
            if program.sleepable {
                self.asm.emit(mrs(X9, runtime.task));
                self.add_to(runtime.trace, true, true);
                self.span(Ingredient::Enter, Some(run.program));
            }
            self.run(run, None);
            self.slow_exit(run.program, program);
            match run.kind {
                Kind::FmodRet => {
                    self.asm.emit(ldr(X0, X29, self.frame.results));
                    self.asm.branch(cbnz(Size::X, X0), self.exit);
                    self.span(Ingredient::Exit, Some(run.program));
                }
                Kind::Freplace => {
                    self.asm.branch(ops::b(), self.exit);
                    self.span(Ingredient::Exit, Some(run.program));
                    self.resume_here();
                    if let Guard::Call { exit, .. } = program.guard {
                        self.ask(program, exit);
                    }
                    self.slow_exit(run.program, program);
                }
                Kind::Fentry | Kind::Fexit | Kind::Fsession => {}
            }
            self.asm.bind(next);
        }
        self.asm.branch(ops::b(), done);
        self.span(Ingredient::Guard, None);
    }

    /// What comes behind a program in a part for a word that is not zero.
    fn slow_exit(&mut self, number: usize, program: &Callee) {
        let runtime = self.runtime;
        if program.sleepable {
            self.asm.emit(mrs(X9, runtime.task));
            self.add_to(runtime.trace, false, true);
            self.span(Ingredient::Exit, Some(number));
        }
        if program.guard == Guard::Word {
            self.asm.emit(mrs(X9, runtime.task));
            self.asm.emit(ldr(X10, X29, RECORD_NEXT));
            self.asm.emit(store(X10, X9, runtime.word.into()));
            self.span(Ingredient::Guard, Some(number));
        }
    }

    /// In front of a program that is not the first: what comes now belongs to the next stub, which the frame names from here on.
    fn next_stub(&mut self, number: usize, program: usize) {
        if self.data != Data::Stub || number == 0 {
            return;
        }
        let (asm, w10) = (&mut *self.asm, Gpr::from(X10));
        asm.emit(ldr(X12, X29, SHARED_LINK));
        asm.emit(ops::mem(Access::LdrW, w10, X12, STUB_DISTANCE));
        // The offset of a B, in words.
        asm.emit(ops::sign_extend(Size::X, X10, X10, 26));
        asm.emit(ops::lsl_imm(Size::X, X10, X10, 2));
        asm.emit(ops::add(Size::X, X12, X12, X10));
        asm.emit(store(X12, X29, SHARED_LINK));
        self.span(Ingredient::Enter, Some(program));
    }

    /// The program that was called last, taken out, leads here.
    fn resume_here(&mut self) {
        let here = self.asm.len();
        if let Some(call) = self.calls.last_mut() {
            call.resume = here;
        }
    }

    /// One run of a program; one of kind fmod_ret that wants the function skipped goes to `skip`, its result stored, and one of
    /// kind freplace always. Without a `skip` the caller looks at that result.
    fn run(&mut self, run: Run, skip: Option<Label>) {
        let Some(program) = self.program(run.program) else {
            return;
        };
        let after = self.asm.new_label();
        if let Guard::Call { enter, .. } = program.guard {
            self.ask(program, enter);
            self.asm.branch(cbz(Size::X, X0), after);
            self.span(Ingredient::Guard, Some(run.program));
        }
        if run.kind == Kind::Fsession {
            let programs = self.programs.iter().take(run.program);
            let number = programs.filter(|(k, _)| *k == Kind::Fsession).count();
            let word = self.frame.session_word(number);
            let at = word + i64::from(run.when == When::Exit);
            self.asm.emit(add_imm(Size::X, X9, X29, at));
            self.asm.emit(store(X9, X29, self.frame.session()));
        }
        self.asm.emit(add_imm(Size::X, X0, X29, self.frame.context));
        match (self.data, program.data) {
            (_, None) => {}
            (Data::Constant, Some(data)) => self.asm.mov_imm(X1, data),
            (Data::Stub, Some(_)) => {
                let called = skip.is_none() || matches!(program.guard, Guard::Call { .. });
                if called {
                    self.asm.emit(ldr(X12, X29, SHARED_LINK));
                }
                self.asm.emit(add_imm(Size::X, X1, X12, STUB_DATA));
            }
        }
        self.span(Ingredient::Enter, Some(run.program));
        let at = self.asm.len();
        self.asm.bl_abs(program.address);
        self.span(Ingredient::Program, Some(run.program));
        let called = matches!(program.guard, Guard::Call { .. });
        if run.kind == Kind::FmodRet {
            self.asm.emit(store(X0, X29, self.frame.results));
            if let Some(skip) = skip.filter(|_| !called) {
                self.asm.branch(cbnz(Size::X, X0), skip);
            }
            self.span(Ingredient::Exit, Some(run.program));
        }
        if run.kind == Kind::Freplace {
            self.asm.emit(store(X0, X29, self.frame.results));
            if let Some(skip) = skip.filter(|_| !called) {
                self.asm.branch(ops::b(), skip);
            }
            self.span(Ingredient::Exit, Some(run.program));
        }
        self.calls.push(Call {
            program: run.program,
            at,
            resume: self.asm.len(),
        });
        if let Guard::Call { exit, .. } = program.guard {
            self.ask(program, exit);
            match (run.kind, skip) {
                (Kind::FmodRet, Some(skip)) => {
                    self.asm.emit(ldr(X0, X29, self.frame.results));
                    self.asm.branch(cbnz(Size::X, X0), skip);
                }
                (Kind::Freplace, Some(skip)) => {
                    self.asm.branch(ops::b(), skip);
                    self.resume_here();
                    self.ask(program, exit);
                }
                _ => {}
            }
            self.span(Ingredient::Guard, Some(run.program));
        }
        self.asm.bind(after);
    }

    /// Calls a function of the host's guard.
    fn ask(&mut self, program: &Callee, function: u64) {
        self.asm.mov_imm(X0, program.state);
        self.asm.emit(ops::mov(Size::X, X1, X29));
        self.asm.bl_abs(function);
    }

    /// The address of a program's literal.
    fn adr(&mut self, rd: a64::Reg, program: usize) {
        let Some(&literal) = self.literals.get(program) else {
            return;
        };
        self.adr_of(rd, literal);
    }

    /// `adr rd, label`
    pub(crate) fn adr_of(&mut self, rd: a64::Reg, label: Label) {
        match Imm21::new(0) {
            Ok(offset) => {
                let rd = rd.into();
                self.asm.branch(Inst::Adr { rd, offset }, label);
            }
            Err(error) => self.asm.emit(Err(error)),
        }
    }

    /// The literals: of each program with a guard of its own the address of its state, 0 of the others.
    fn emit_literals(&mut self) {
        let programs = self.programs;
        if !programs.iter().any(|(_, p)| p.guard == Guard::Word) {
            // Nobody leads there.
            self.literals.iter().for_each(|label| self.asm.bind(*label));
            return;
        }
        if !self.asm.pc().is_multiple_of(8) {
            self.asm.emit(brk(crate::pool::FILL_IMMEDIATE));
        }
        for (index, (_, program)) in programs.iter().enumerate() {
            if let Some(label) = self.literals.get(index) {
                self.asm.bind(*label);
            }
            let value = match program.guard {
                Guard::Word => program.state,
                _ => 0,
            };
            self.asm.emit_word(value as u32);
            self.asm.emit_word((value >> 32) as u32);
            self.span(Ingredient::Literal, Some(index));
        }
    }

    /// What lies behind the last instruction that is usually executed.
    pub(crate) fn emit_cold(&mut self) {
        for cold in core::mem::take(&mut self.cold) {
            match cold {
                Cold::Part { label, part, done } => self.slow(label, &part, done),
                Cold::Skip { label, part } => {
                    self.asm.bind(label);
                    self.unprotect(&part);
                    self.asm.branch(ops::b(), self.exit);
                    self.span(Ingredient::Exit, None);
                }
            }
        }
        self.emit_literals();
    }

    /// The deepest stack: the frame, and the deepest program or what the guard calls, in bytes.
    pub(crate) fn deepest(&self) -> u32 {
        let deepest = self.programs.iter().map(|(_, p)| p.stack_bytes).max();
        let mut deepest = deepest.unwrap_or(0);
        if self.programs.iter().any(|(_, p)| p.guard == Guard::Word) {
            deepest = deepest.max(self.runtime.admit_stack);
        }
        deepest.saturating_add(self.frame.bytes as u32)
    }

    /// What is on the stack while the function runs, if the image, or a program, calls it, with so much for its arguments; in bytes.
    pub(crate) fn waiting(&self, calls_function: bool, arguments: i64) -> u32 {
        let programs = self.programs.iter();
        let replacements = programs.filter(|(kind, _)| *kind == Kind::Freplace);
        let by_programs = replacements.map(|(_, p)| p.original_stack).max();
        let by_programs = by_programs.unwrap_or(0);
        if !calls_function && by_programs == 0 {
            return 0;
        }
        by_programs
            .max(arguments as u32)
            .saturating_add(self.frame.bytes as u32)
    }
}
