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
//! Behind the last instruction lie the cold parts, then the literals that name programs to the guard.
//!
//! A program of kind `freplace` is the last of the first part: the image then goes on at the second part with its result, as if an
//! `fmod_ret` program had wanted the function skipped. Turned away, or taken out of an image that is still in use, it leaves the
//! function to itself.
//!
//! A program is called: `extern "C" fn(ctx: *const u64, data: u64) -> u64`. A program that is compiled into the image takes
//! the place of the enter and program parts in [`Emitter::run`]; with no call, there is also nothing to save for it.

use crate::args::ArgSpec;
use crate::frame::{Frame, Slot};
use crate::ingredient::{Ingredient, Span};
use crate::pool::Record;
use crate::program::{Callee, Guard, Kind};
use crate::runtime::{RECORD_NEXT, RECORD_PROGRAM, Runtime, TRACE_LEFT, TRACE_NESTING_MASK};
use a64::imm::Imm21;
use a64::inst::PairMode;
use a64::ops::{self, add_imm, brk, cbnz, cbz, ldp, ldr, mov_sp, mrs, stp, str as store};
use a64::reg::{X0, X1, X9, X10, X11, X29, X30};
use a64::{AsmError, Assembler, Fixup, Gpr, Inst, Label, LabelSlot, SP, Size, XZR};
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
        Emitter::new(asm, self).emit()
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

/// One of an image's two parts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Entry,
    Exit,
}

/// One run of a program.
#[derive(Clone, Copy)]
struct Run {
    program: usize,
    kind: Kind,
    when: When,
}

/// What the programs of a part need together.
#[derive(Clone)]
struct Part {
    runs: Vec<Run>,
    /// The recursion word.
    guarded: bool,
    /// The count of reasons to stay on the core: someone wants it, and nobody sets the word.
    pinned: bool,
    /// The count of sleepable programs.
    sleepable: bool,
}

/// What is emitted behind the last instruction that is usually executed.
enum Cold {
    /// The twin of a part, for a word that is not zero; it goes on at `done`.
    Part {
        label: Label,
        part: Part,
        done: Label,
    },
    /// A program of a part wants the function skipped: the part's protection ends.
    Skip { label: Label, part: Part },
}

struct Emitter<'e, 'a, 'b> {
    asm: &'e mut Assembler<'b>,
    description: &'a Description<'a>,
    frame: Frame,
    spans: Vec<Span>,
    done: usize,
    calls: Vec<Call>,
    cold: Vec<Cold>,
    /// Where the literal of each program will lie, and behind those one that names none.
    literals: Vec<Label>,
    /// Where the exit part begins.
    exit: Label,
}

impl<'e, 'a, 'b> Emitter<'e, 'a, 'b> {
    fn new(asm: &'e mut Assembler<'b>, description: &'a Description<'a>) -> Self {
        let programs = description.programs;
        let guarded = programs.iter().any(|(_, p)| p.guard == Guard::Word);
        let sessions = programs.iter().filter(|(k, _)| *k == Kind::Fsession);
        let calls = description.calls_function();
        let frame = Frame::new(description.args, guarded, calls, sessions.count());
        let literals = (0..programs.len()).map(|_| asm.new_label()).collect();
        let exit = asm.new_label();
        Self {
            asm,
            description,
            frame,
            spans: Vec::new(),
            done: 0,
            calls: Vec::new(),
            cold: Vec::new(),
            literals,
            exit,
        }
    }

    fn emit(mut self) -> Body {
        let (body, args) = (self.description.body, self.description.args);
        let (entry, exit) = (self.part(When::Entry), self.part(When::Exit));
        let calls_function = self.description.calls_function();

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
        if calls_function {
            self.span(Ingredient::Restore, None);
            let outgoing = (8 * stack + 15) & !15;
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

        for cold in core::mem::take(&mut self.cold) {
            match cold {
                Cold::Part { label, part, done } => self.slow(label, &part, done),
                Cold::Skip { label, part } => {
                    self.asm.bind(label);
                    self.unprotect(&part);
                    self.asm.branch(ops::b(), self.exit);
                    self.span(Ingredient::Guard, None);
                }
            }
        }
        self.emit_literals();

        let programs = self.description.programs;
        let deepest = programs.iter().map(|(_, p)| p.stack_bytes).max();
        let mut deepest = deepest.unwrap_or(0);
        if programs.iter().any(|(_, p)| p.guard == Guard::Word) {
            deepest = deepest.max(self.description.runtime.admit_stack);
        }
        let sleepable = programs.iter().any(|(_, p)| p.sleepable);
        Body {
            spans: self.spans,
            calls: self.calls,
            onward,
            record: Record { before, gone },
            stack_bytes: deepest.saturating_add(self.frame.bytes as u32),
            may_block: calls_function || sleepable,
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
    fn leave_frame(&mut self) -> usize {
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

    fn each(&mut self, slots: &[Slot], emit: fn(&mut Self, Slot)) {
        slots.iter().for_each(|slot| emit(self, *slot));
    }

    fn save(&mut self, (first, second, at): Slot) {
        match second {
            Some(second) => self.asm.emit(stp(PairMode::Offset, first, second, X29, at)),
            None => self.asm.emit(store(first, X29, at)),
        }
    }

    fn restore(&mut self, (first, second, at): Slot) {
        match second {
            Some(second) => self.asm.emit(ldp(PairMode::Offset, first, second, X29, at)),
            None => self.asm.emit(ldr(first, X29, at)),
        }
    }

    fn program(&self, index: usize) -> Option<&'a Callee> {
        self.description.programs.get(index).map(|(_, p)| p)
    }

    fn sessions(&self) -> usize {
        let programs = self.description.programs.iter();
        programs.filter(|(k, _)| *k == Kind::Fsession).count()
    }

    /// The part's runs: sessions and fentry in attach order, then fmod_ret, then freplace; at the exit fexit and sessions in attach order.
    fn part(&self, when: When) -> Part {
        let of = |kinds: [Kind; 2]| {
            let programs = self.description.programs.iter().enumerate();
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
    fn hot(&mut self, part: Part) {
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
        let runtime = self.description.runtime;
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
        let runtime = self.description.runtime;
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
        let runtime = self.description.runtime;
        if part.pinned {
            self.add_to(runtime.migrate, up, false);
        }
        if part.sleepable {
            self.add_to(runtime.trace, up, true);
        }
    }

    /// Adds one to a count of the task in x9, or takes one off; of `sleepable` programs also what leaving the outermost adds.
    fn add_to(&mut self, offset: u16, up: bool, sleepable: bool) {
        use a64::inst::{Access, Cond};
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
        let runtime = self.description.runtime;
        self.asm.bind(label);
        for &run in &part.runs {
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
        let runtime = self.description.runtime;
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
            let programs = self.description.programs.iter().take(run.program);
            let number = programs.filter(|(k, _)| *k == Kind::Fsession).count();
            let word = self.frame.session_word(number);
            let at = word + i64::from(run.when == When::Exit);
            self.asm.emit(add_imm(Size::X, X9, X29, at));
            self.asm.emit(store(X9, X29, self.frame.session()));
        }
        self.asm.emit(add_imm(Size::X, X0, X29, self.frame.context));
        if let Some(data) = program.data {
            self.asm.mov_imm(X1, data);
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
        match Imm21::new(0) {
            Ok(offset) => {
                let rd = rd.into();
                self.asm.branch(Inst::Adr { rd, offset }, literal);
            }
            Err(error) => self.asm.emit(Err(error)),
        }
    }

    /// The literals: of each program with a guard of its own the address of its state, 0 of the others.
    fn emit_literals(&mut self) {
        let programs = self.description.programs;
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
}
