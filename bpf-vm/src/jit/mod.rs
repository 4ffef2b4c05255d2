// SPDX-License-Identifier: MIT OR Apache-2.0
//! The arm64 JIT: a validated program to A64 words for the address they will run at.
//!
//! Compiling is pure: [`compile`] returns words, and whoever runs them writes them to memory, makes them executable
//! and keeps the program's maps alive. The code is called as `extern "C" fn(ctx: *const u64) -> u64`; r1 is its
//! argument and r0 its result. Nothing checks memory accesses in it: run what is known to be safe.
#![forbid(unsafe_code)]

use ::alloc::{string::String, vec, vec::Vec};
use core::fmt::{self, Write as _};

use a64::{
    AsmError, Assembler,
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
    select::{Places, Selector, ShortBranch, Site},
};
use crate::{
    helpers,
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
    /// How many arguments the entry takes, in x0 and on, for r1 and on; 1 for a hook (its context), 5 at most.
    pub arguments: usize,
    /// The address of the helper of a number.
    pub helper: &'a dyn Fn(u32) -> Option<u64>,
}

impl Target<'_> {
    /// Code for `base` with one argument, all registers, no extensions, and this crate's helpers where they are linked.
    pub const fn new(base: u64) -> Self {
        Self {
            base,
            features: Features { lse: false },
            registers: RegisterSet::ALL,
            arguments: 1,
            helper: &helper_address,
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
    /// The most stack in bytes that the code uses, helpers not counted.
    pub stack_bytes: u32,
}

/// Why a program cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JitError {
    /// The target has no address for a helper.
    Helper(u32),
    /// The kernel function of that index has no address.
    Kfunc(u32),
    /// The instruction at a slot takes the address of a function, or calls by register.
    Indirect {
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
            Self::Indirect { slot } => write!(
                f,
                "the instruction at slot {slot} needs the address of a function, which is not compiled so far"
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
    fn new(flow: Flow<'p>, arguments: &Arguments, target: &Target<'_>) -> Result<Self, JitError> {
        let mut pool = target.registers;
        let exclusive = flow.body.iter().any(|i| matches!(i.op, Op::Atomic { .. }));
        if exclusive && !target.features.lse {
            pool = pool.without(X14).without(X15);
        }
        let allocation = alloc::allocate(&flow, arguments, pool)?;
        let frame = Frame::new(&flow, arguments, allocation.saved.clone());
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
    let functions = flows
        .into_iter()
        .map(|flow| Function::new(flow, &arguments, target))
        .collect::<Result<Vec<_>, _>>()?;
    let stack_bytes = stack_bytes(&functions)?;
    let emitter = Emitter {
        program,
        target,
        functions: &functions,
        arguments: &arguments,
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
fn stack_bytes(functions: &[Function<'_>]) -> Result<u32, JitError> {
    // Per function: callees not done yet, who calls it, and of those done the deepest and its depth.
    let mut waiting = vec![0_u32; functions.len()];
    let mut callers = vec![Vec::new(); functions.len()];
    for (caller, function) in functions.iter().enumerate() {
        let calls = |i: &&Instruction| matches!(i.op, Op::CallLocal { .. });
        for i in function.flow.body.iter().filter(calls) {
            if let Some(list) = callers.get_mut(function.flow.callee(i)) {
                list.push(caller);
                if let Some(waiting) = waiting.get_mut(caller) {
                    *waiting += 1;
                }
            }
        }
    }
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

/// Where things came to lie, in words from the start.
#[derive(Debug, Default)]
struct Layout {
    /// Each instruction of the program.
    starts: Vec<u32>,
    /// Each function's prologue.
    entries: Vec<u32>,
    /// For each word the slot of the instruction that it belongs to.
    map: Vec<Option<u32>>,
}

/// What both passes read.
struct Emitter<'a, 'p> {
    program: &'p ValidatedProgram,
    target: &'a Target<'a>,
    functions: &'a [Function<'p>],
    arguments: &'a Arguments,
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
            let mut selector = Selector {
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
                            Op::CallLocal { .. } => flow.callee(i),
                            _ => i.target as usize,
                        },
                        dst: allocation.home_of(index),
                        live_out,
                        arguments: effects.uses,
                        inlined: inlined.and_then(|lookup| {
                            Some((&**self.program.map(lookup.map)?, lookup.key))
                        }),
                        address: match i.op {
                            Op::Call { helper } if inlined.is_none() => {
                                (self.target.helper)(helper).ok_or(JitError::Helper(helper))?
                            }
                            Op::CallKernel { function } => {
                                let called = self.program.called(i.op);
                                let address = called.and_then(|called| called.function.address());
                                address.ok_or(JitError::Kfunc(function))?
                            }
                            Op::LoadFunction { .. } | Op::CallReg { .. } => {
                                return Err(JitError::Indirect { slot: i.slot });
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
        Ok(layout)
    }
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
