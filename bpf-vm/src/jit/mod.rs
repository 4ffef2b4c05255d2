// SPDX-License-Identifier: MIT OR Apache-2.0
//! The arm64 JIT: a validated program to A64 words for the address they will run at.
//!
//! Compiling is pure: [`compile`] returns words, and whoever runs them writes them to memory, makes them executable
//! and keeps the program's maps alive. The code is called as `extern "C" fn(ctx: *const u64, attachment) -> u64`; r1 is its
//! first argument and r0 its result, and a program that [needs](ValidatedProgram::needs_attachment) no attachment does
//! not look at the second. Nothing checks memory accesses in it: run what is known to be safe.
#![forbid(unsafe_code)]

use ::alloc::{collections::BTreeSet, string::String, vec, vec::Vec};
use core::fmt::{self, Write as _};

use a64::{
    AsmError, Assembler, ops,
    reg::{X14, X15},
};

mod alloc;
mod frame;
mod liveness;
mod moves;
mod select;

pub use self::alloc::RegisterSet;
use self::{
    alloc::Allocation,
    frame::Frame,
    liveness::{Arguments, Flow},
    select::{ATTACHMENT, Places, STUB_BYTES, Selector, ShortBranch, Site},
};
use crate::{
    helpers::{self, Helper},
    interp::MAX_FRAMES,
    isa::Op,
    program::{Instruction, ValidatedProgram},
};

/// Extensions of the A64 base instruction set that the code may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// FEAT_LSE: atomics in one instruction (`ID_AA64ISAR0_EL1.Atomic` is at least 2).
    pub lse: bool,
}

/// What to compile for.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The address that the first word will run at, a multiple of 4.
    pub base: u64,
    /// What the core can do.
    pub features: Features,
    /// The registers that may be used; callee-saved ones are saved, caller-saved ones not. Never used: x16 to x18, x29, x30
    /// other than as the compiler's own.
    pub registers: RegisterSet,
    /// How many arguments the entry takes, in x0 and on, for r1 and on; 1 for a hook (its context), 5 at most. The
    /// attachment's address comes in the register after them.
    pub arguments: usize,
    /// The address of the helper of a number.
    pub helper: &'a dyn Fn(u32) -> Option<u64>,
    /// The address of what calls a helper by number for `callx`: as [`helpers::dispatch`].
    pub dispatch: u64,
}

impl Target<'_> {
    /// Code for `base` with one argument, all registers, no extensions, and this crate's helpers where they are linked.
    pub fn new(base: u64) -> Self {
        Self {
            base,
            features: Features { lse: false },
            registers: RegisterSet::ALL,
            arguments: 1,
            helper: &helper_address,
            dispatch: helpers::dispatch as *const () as usize as u64,
        }
    }
}

/// The address of this crate's function for a helper number.
pub fn helper_address(number: u32) -> Option<u64> {
    helpers::by_number(number)?.function.address()
}

/// Compiled code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The instruction words; the entry is the first.
    pub words: Vec<u32>,
    /// The address that they were compiled for.
    pub base: u64,
    /// For each word the slot of the BPF instruction that it belongs to; `None` for a function's prologue.
    pub map: Vec<Option<u32>>,
    /// The most stack in bytes that the code uses, helpers and programs that it turns into not counted.
    pub stack_bytes: u32,
    /// Where a tail call enters it, in bytes from the start: x0 holds the context, x5 the attachment's address, x6 that
    /// of the count of tail calls, x30 and the stack are as the program that makes the call was given them.
    pub tail_entry: u32,
}

/// Why a program cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JitError {
    /// The target has no address for a helper.
    Helper(u32),
    /// The kernel function of that index has no address.
    Kfunc(u32),
    /// The tail call at a slot is through a map that is not known there, or is no program array.
    TailCall {
        /// Its slot.
        slot: u32,
    },
    /// The tail call at a slot may be made while a helper waits for a callback.
    TailCallInCallback {
        /// Its slot.
        slot: u32,
    },
    /// The function that starts at a slot calls itself, directly or through others.
    Recursion {
        /// Its first slot.
        slot: u32,
    },
    /// Local calls are nested deeper than [`MAX_FRAMES`].
    CallDepth(usize),
    /// The program holds more values at once than it was given registers.
    OutOfRegisters {
        /// How many it was given.
        pool: usize,
    },
    /// The code cannot be encoded: an address out of reach, or a base that is not aligned.
    Assembler(AsmError),
}

impl fmt::Display for JitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Helper(number) => {
                write!(
                    f,
                    "the target has no address for helper {number}; give it one or interpret the program"
                )
            }
            Self::Kfunc(index) => write!(
                f,
                "kernel function {index} cannot be called by compiled code"
            ),
            Self::TailCall { slot } => write!(
                f,
                "the tail call at slot {slot} is not through one known program array; name the map in the call"
            ),
            Self::TailCallInCallback { slot } => write!(
                f,
                "the tail call at slot {slot} may be made by a function whose address is taken, whose caller would be \
                 skipped; make it elsewhere"
            ),
            Self::Recursion { slot } => write!(
                f,
                "the function at slot {slot} calls itself, so its use of stack has no bound; make it a loop"
            ),
            Self::CallDepth(depth) => {
                write!(
                    f,
                    "local calls are {depth} deep and the limit is {MAX_FRAMES}; inline some"
                )
            }
            Self::OutOfRegisters { pool } => write!(
                f,
                "the program needs more than the {pool} registers that it was given; give it more"
            ),
            Self::Assembler(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for JitError {}

/// A function on its way to code.
struct Function<'p> {
    flow: Flow<'p>,
    allocation: Allocation,
    frame: Frame,
}

impl<'p> Function<'p> {
    fn new(
        flow: Flow<'p>,
        arguments: &Arguments,
        target: &Target<'_>,
        hands_on: bool,
    ) -> Result<Self, JitError> {
        let mut pool = target.registers;
        let exclusive = flow.body.iter().any(|i| matches!(i.op, Op::Atomic { .. }));
        if exclusive && !target.features.lse {
            pool = pool.without(X14).without(X15);
        }
        let allocation = alloc::allocate(&flow, arguments, pool)?;
        let frame = Frame::new(&flow, arguments, allocation.saved.clone(), hands_on);
        Ok(Self {
            flow,
            allocation,
            frame,
        })
    }
}

/// Compiles a program.
///
/// # Errors
/// What [`JitError`] lists; a validated program with the default [`Target`] fails only by recursion or call depth.
pub fn compile(program: &ValidatedProgram, target: &Target<'_>) -> Result<Code, JitError> {
    let (flows, arguments) = liveness::analyse(program);
    let tail_calls = flows.iter().any(|flow| !flow.tail_calls.is_empty());
    let hands_on = tail_calls || program.needs_attachment();
    let functions = flows
        .into_iter()
        .map(|flow| Function::new(flow, &arguments, target, hands_on))
        .collect::<Result<Vec<_>, _>>()?;
    let stack_bytes = stack_bytes(&functions)? + if tail_calls { STUB_BYTES } else { 0 };
    let emitter = Emitter {
        program,
        target,
        functions: &functions,
        arguments: &arguments,
        tail_calls,
    };
    let mut far = vec![false; program.instructions().len()];
    // Size with short branches, lengthen those that do not reach, until all do; then emit.
    loop {
        let mut asm = Assembler::sizing(target.base);
        let mut short = Vec::new();
        let layout = emitter.emit(&mut asm, Places::Unknown, &far, &mut short)?;
        let mut words = vec![0; asm.finish()?];
        let place = |index: usize| layout.starts.get(index).map_or(0, |word| i64::from(*word));
        short.retain(|branch| (place(branch.to) - branch.word as i64).abs() >= branch.reach);
        if short.is_empty() {
            let mut asm = Assembler::new(&mut words, target.base);
            emitter.emit(&mut asm, Places::Known(&layout), &far, &mut short)?;
            asm.finish()?;
            return Ok(Code {
                words,
                base: target.base,
                tail_entry: layout.tail_entry * 4,
                map: layout.map,
                stack_bytes,
            });
        }
        for branch in short {
            if let Some(far) = far.get_mut(branch.from) {
                *far = true;
            }
        }
    }
}

impl From<AsmError> for JitError {
    fn from(error: AsmError) -> Self {
        Self::Assembler(error)
    }
}

/// The most stack that the functions use together, callees first.
///
/// A function whose address is taken counts as called where it is taken, and wherever there is a call by register.
fn stack_bytes(functions: &[Function<'_>]) -> Result<u32, JitError> {
    let named = |i: &Instruction| matches!(i.op, Op::LoadFunction { .. });
    let mut taken = BTreeSet::new();
    for function in functions {
        let names = function.flow.body.iter().filter(|i| named(i));
        taken.extend(names.map(|i| function.flow.callee(i)));
    }
    let callees = |function: &Function<'_>, i: &Instruction| -> Vec<usize> {
        match i.op {
            Op::CallLocal { .. } | Op::LoadFunction { .. } => vec![function.flow.callee(i)],
            Op::CallReg { .. } => taken.iter().copied().collect(),
            _ => Vec::new(),
        }
    };
    // Per function: callees not done yet, who calls it, and of those done the deepest and its depth.
    let mut waiting = vec![0_u32; functions.len()];
    let mut callers = vec![Vec::new(); functions.len()];
    for (caller, function) in functions.iter().enumerate() {
        for callee in function.flow.body.iter().flat_map(|i| callees(function, i)) {
            if let Some(list) = callers.get_mut(callee) {
                list.push(caller);
                if let Some(waiting) = waiting.get_mut(caller) {
                    *waiting += 1;
                }
            }
        }
    }
    skips_no_caller(functions, &taken, &callees)?;
    let mut below = vec![(0, 0); functions.len()];
    let mut ready: Vec<_> = (0..functions.len())
        .filter(|f| waiting.get(*f) == Some(&0))
        .collect();
    let mut done = 0;
    while let Some(index) = ready.pop() {
        let Some((function, (bytes, depth))) = functions.get(index).zip(below.get(index).copied())
        else {
            continue;
        };
        let (bytes, depth) = (bytes + function.frame.bytes, depth + 1);
        if depth > MAX_FRAMES {
            return Err(JitError::CallDepth(depth));
        }
        done += 1;
        if let Some(own) = below.get_mut(index) {
            *own = (bytes, depth);
        }
        for &caller in callers.get(index).into_iter().flatten() {
            if let Some(most) = below.get_mut(caller) {
                *most = (most.0.max(bytes), most.1.max(depth));
            }
            if let Some(left) = waiting.get_mut(caller) {
                *left -= 1;
                if *left == 0 {
                    ready.push(caller);
                }
            }
        }
    }
    if done < functions.len() {
        let stuck = waiting.iter().zip(functions).find(|(left, _)| **left != 0);
        let slot = stuck.and_then(|(_, function)| function.flow.body.first());
        return Err(JitError::Recursion {
            slot: slot.map_or(0, |i| i.slot),
        });
    }
    Ok(below.first().map_or(0, |(bytes, _)| *bytes))
}

/// Checks that no function whose address is taken makes a tail call, itself or through others: a helper that called it
/// back would not hand on the count of tail calls.
fn skips_no_caller(
    functions: &[Function<'_>],
    taken: &BTreeSet<usize>,
    callees: &dyn Fn(&Function<'_>, &Instruction) -> Vec<usize>,
) -> Result<(), JitError> {
    if functions.iter().all(|f| f.flow.tail_calls.is_empty()) {
        return Ok(());
    }
    let (mut seen, mut work) = (taken.clone(), Vec::from_iter(taken.iter().copied()));
    while let Some(function) = work.pop().and_then(|index| functions.get(index)) {
        if let Some(i) = function.flow.tail_calls.keys().next() {
            let i = function.flow.body.get(*i);
            return Err(JitError::TailCallInCallback {
                slot: i.map_or(0, |i| i.slot),
            });
        }
        let callees = function.flow.body.iter().flat_map(|i| callees(function, i));
        work.extend(callees.filter(|callee| seen.insert(*callee)));
    }
    Ok(())
}

/// Where things came to lie, in words from the start.
#[derive(Debug, Default)]
struct Layout {
    /// Each instruction of the program.
    starts: Vec<u32>,
    /// Each function's prologue.
    entries: Vec<u32>,
    /// For each word the slot of the instruction that it belongs to.
    map: Vec<Option<u32>>,
    /// Where a tail call enters.
    tail_entry: u32,
}

/// What both passes read.
struct Emitter<'a, 'p> {
    program: &'p ValidatedProgram,
    target: &'a Target<'a>,
    functions: &'a [Function<'p>],
    arguments: &'a Arguments,
    /// Whether the program makes tail calls.
    tail_calls: bool,
}

impl Emitter<'_, '_> {
    /// Emits all functions, in the order of the program.
    fn emit(
        &self,
        asm: &mut Assembler<'_>,
        places: Places<'_>,
        far: &[bool],
        short: &mut Vec<ShortBranch>,
    ) -> Result<Layout, JitError> {
        let mut layout = Layout::default();
        for (number, function) in self.functions.iter().enumerate() {
            let Function {
                flow,
                allocation,
                frame,
            } = function;
            let entry = number == 0;
            let attachment = match (entry, self.tail_calls) {
                // Where the stub or a caller has it.
                (false, _) | (_, true) => ATTACHMENT,
                (true, false) => argument_register(self.target.arguments),
            };
            if entry && self.tail_calls {
                select::stub(asm, argument_register(self.target.arguments));
                layout.tail_entry = asm.len() as u32;
            }
            let mut selector = Selector {
                dispatch: self.target.dispatch,
                long: self.program.instructions().len() > SHORT,
                attachment,
                asm: &mut *asm,
                frame,
                lse: self.target.features.lse,
                homes: allocation.homes_at(0),
                places,
                short: &mut *short,
            };
            layout.entries.push(selector.asm.len() as u32);
            let live_in = flow.blocks.first().map(|block| block.live_in);
            let given = if number == 0 {
                self.target.arguments
            } else {
                5
            };
            selector.prologue(live_in.unwrap_or_default(), given);
            layout.map.resize(selector.asm.len(), None);

            let mut live_outs = Vec::new();
            for (number, block) in flow.blocks.iter().enumerate() {
                flow.live_outs(number, self.arguments, &mut live_outs);
                selector.homes = allocation.homes_at(number);
                let code = block.range.clone().zip(flow.code(block));
                for ((index, i), &live_out) in code.zip(&live_outs) {
                    layout.starts.push(selector.asm.len() as u32);
                    let effects = flow.effects(index, i, self.arguments);
                    if !block.reachable || effects.is_dead(live_out) {
                        continue;
                    }
                    let inlined = flow.inlined.get(&index);
                    let site = Site {
                        index: flow.start + index,
                        target: match i.op {
                            Op::CallLocal { .. } | Op::LoadFunction { .. } => flow.callee(i),
                            _ => i.target as usize,
                        },
                        tail_call: match flow.tail_calls.get(&index) {
                            Some(map) => {
                                let array = map.and_then(|map| self.program.map(map));
                                let array = array.and_then(|map| {
                                    Some((map.definition().max_entries, map.tail_entries()?))
                                });
                                Some(array.ok_or(JitError::TailCall { slot: i.slot })?)
                            }
                            None => None,
                        },
                        attached: self
                            .program
                            .called(i.op)
                            .is_some_and(Helper::needs_attachment),
                        dst: allocation.home_of(index),
                        live_out,
                        arguments: effects.uses,
                        inlined: inlined.and_then(|lookup| {
                            Some((&**self.program.map(lookup.map)?, lookup.key))
                        }),
                        address: match i.op {
                            Op::Call { .. } if flow.tail_calls.contains_key(&index) => 0,
                            Op::Call { helper } if inlined.is_none() => {
                                (self.target.helper)(helper).ok_or(JitError::Helper(helper))?
                            }
                            Op::CallKernel { function } => {
                                let called = self.program.called(i.op);
                                let address = called.and_then(|called| called.function.address());
                                address.ok_or(JitError::Kfunc(function))?
                            }
                            op => self.program.constant_address(op).unwrap_or(0),
                        },
                        far: far.get(flow.start + index).copied().unwrap_or(false),
                    };
                    selector.op(i.op, site);
                    layout.map.resize(selector.asm.len(), Some(i.slot));
                    if let Some(dst) = effects
                        .defines
                        .and_then(|r| selector.homes.get_mut(r.index()))
                    {
                        *dst = site.dst;
                    }
                }
            }
        }
        if !self.tail_calls && self.program.needs_attachment() {
            // The entry wants the attachment where a hook puts it.
            layout.tail_entry = asm.len() as u32;
            let attachment = argument_register(self.target.arguments);
            asm.emit(ops::mov(a64::Size::X, attachment, ATTACHMENT));
            asm.b_abs(asm.base());
            layout.map.resize(asm.len(), None);
        }
        Ok(layout)
    }
}

/// Programs of at most so many instructions are compiled to less than ADR reaches, 1 MiB: none takes as many as 64
/// words.
const SHORT: usize = 1 << 12;

/// The register that the attachment's address comes in, after so many arguments.
fn argument_register(arguments: usize) -> a64::Reg {
    let after = alloc::ARGUMENTS.get(arguments).copied();
    after.unwrap_or(ATTACHMENT)
}

/// The code as text: each BPF instruction as a comment before the words that stand for it.
pub fn listing(program: &ValidatedProgram, code: &Code) -> String {
    let mut text = String::new();
    let mut last = None;
    for ((word, slot), pc) in code
        .words
        .iter()
        .zip(&code.map)
        .zip((code.base..).step_by(4))
    {
        if last != Some(slot) {
            last = Some(slot);
            let instructions = program.instructions();
            let at = slot.and_then(|slot| {
                let index = instructions.partition_point(|i| i.slot < slot);
                instructions.get(index)
            });
            // Writing to a string cannot fail.
            let _ = match at {
                Some(i) => writeln!(text, "; {}: {}", i.slot, i.op),
                None => writeln!(text, "; prologue"),
            };
        }
        let _ = writeln!(text, "{pc:8x}: {}", a64::display_word(*word, pc));
    }
    text
}
