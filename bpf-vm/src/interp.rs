// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interpreter: every memory access checked, a budget of instructions, no allocation while it runs.
//!
//! [`Interpreter::new`] prepares a program once; [`Interpreter::run`] runs it any number of times, from any core.
//! It is what unverified programs run by, and the oracle that compiled code is compared with.
use alloc::sync::Arc;
use core::{fmt, sync::atomic::AtomicU64};

use crate::{
    isa::{AtomicOp, Op, Operand, Reg},
    program::{STACK_BYTES, ValidatedProgram},
};

pub(crate) mod alu;
#[expect(
    unsafe_code,
    reason = "calls of helpers, after their arguments were checked"
)]
mod call;
#[expect(
    unsafe_code,
    reason = "accesses to a program's memory, after the check that it is the program's"
)]
mod memory;

pub use self::memory::Region;
use self::memory::{MapValues, Memory};

/// Local calls that may be active at once, the entry included (`MAX_CALL_FRAMES` of Linux).
pub const MAX_FRAMES: usize = 8;
/// Words of a frame's stack.
const FRAME_WORDS: usize = STACK_BYTES as usize / size_of::<u64>();

/// What a run left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's result.
    pub r0: u64,
    /// How many instructions were executed; `lddw` counts once.
    pub instructions: u64,
}

/// Why a run was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Slot of the instruction that did it.
    pub slot: u32,
    /// The instruction.
    pub op: Op,
    /// What it did.
    pub kind: FaultKind,
}

/// What an instruction did that ends the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An access outside of the regions, a write to a read-only one, or an atomic access that is not aligned.
    Memory {
        /// First address.
        address: u64,
        /// Bytes.
        bytes: u64,
    },
    /// A helper's argument is not what its row in the table says; counted from 1.
    Argument {
        /// The helper's name.
        helper: &'static str,
        /// Which argument: 1 is r1.
        number: usize,
        /// What it holds.
        value: u64,
    },
    /// The budget of instructions is used up.
    Budget(u64),
    /// More than [`MAX_FRAMES`] local calls deep.
    CallDepth,
    /// Control went where there is no instruction, or to a helper that does not exist: a fault of the validator.
    Structure,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instruction {}, `{}`: ", self.slot, self.op)?;
        match self.kind {
            FaultKind::Memory { address, bytes } => write!(
                f,
                "{bytes} bytes at {address:#x} are not in (or not writable, or not aligned in) the program's stack, \
                 context or maps"
            ),
            FaultKind::Argument {
                helper,
                number,
                value,
            } => write!(
                f,
                "argument {number} of {helper} is {value:#x}, which it does not take"
            ),
            FaultKind::Budget(budget) => {
                write!(f, "the program did not end within {budget} instructions")
            }
            FaultKind::CallDepth => write!(f, "local calls are more than {MAX_FRAMES} deep"),
            FaultKind::Structure => f.write_str("there is no such instruction or helper"),
        }
    }
}

impl core::error::Error for Fault {}

/// A program, ready to be interpreted.
#[derive(Clone, Debug)]
pub struct Interpreter {
    maps: MapValues,
}

/// What a local call keeps for its return.
#[derive(Clone, Copy, Default)]
struct Frame {
    return_to: u32,
    saved: [u64; 4],
}

/// The registers; sixteen, so that no index can be out of range.
struct Registers([u64; 16]);

impl Registers {
    #[inline(always)]
    fn get(&self, reg: Reg) -> u64 {
        self.0[usize::from(reg.number() & 15)]
    }

    #[inline(always)]
    fn set(&mut self, reg: Reg, value: u64) {
        self.0[usize::from(reg.number() & 15)] = value;
    }

    #[inline(always)]
    fn operand(&self, operand: Operand) -> u64 {
        match operand {
            Operand::Reg(reg) => self.get(reg),
            Operand::Imm(imm) => i64::from(imm).cast_unsigned(),
        }
    }
}

/// `base + off`.
#[inline(always)]
fn at(base: u64, off: i16) -> u64 {
    base.wrapping_add_signed(off.into())
}

impl Interpreter {
    /// Prepares a program. Allocates; [`run`](Self::run) does not.
    pub fn new(program: Arc<ValidatedProgram>) -> Self {
        Self {
            maps: MapValues::new(program),
        }
    }

    /// The program.
    pub fn program(&self) -> &Arc<ValidatedProgram> {
        self.maps.program()
    }

    /// Runs the program with `arguments` in r1 and on, all other registers 0, and `budget` instructions at most.
    /// Besides its stack and its maps' values it may access `regions`.
    ///
    /// # Errors
    /// The first access outside of its memory, bad helper argument, or the end of the budget; what the program wrote
    /// until then stays.
    pub fn run(
        &self,
        arguments: &[u64],
        regions: &[Region<'_>],
        budget: u64,
    ) -> Result<Outcome, Fault> {
        // The stack of a program with one function is one frame.
        if self.program().functions().len() == 1 {
            self.run_on::<FRAME_WORDS>(arguments, regions, budget)
        } else {
            self.run_on::<{ FRAME_WORDS * MAX_FRAMES }>(arguments, regions, budget)
        }
    }

    #[inline(never)]
    fn run_on<const WORDS: usize>(
        &self,
        arguments: &[u64],
        regions: &[Region<'_>],
        mut budget: u64,
    ) -> Result<Outcome, Fault> {
        let (code, given_budget) = (self.program().instructions(), budget);
        let stack = [const { AtomicU64::new(0) }; WORDS];
        let mut memory = Memory {
            stack: Region::words(stack.get(..FRAME_WORDS).unwrap_or(&stack)),
            given: regions,
            maps: self.maps.regions(),
        };
        let mut frames = [Frame::default(); MAX_FRAMES];
        let mut depth = 0;
        let mut regs = Registers([0; 16]);
        for (reg, argument) in Reg::arguments().zip(arguments) {
            regs.set(reg, *argument);
        }
        regs.set(Reg::FP, memory.stack.start() + STACK_BYTES);

        let mut next = 0;
        loop {
            let Some(&i) = code.get(next) else {
                return Err(Fault {
                    slot: next as u32,
                    op: Op::Exit,
                    kind: FaultKind::Structure,
                });
            };
            let fault = |kind| {
                Err(Fault {
                    slot: i.slot,
                    op: i.op,
                    kind,
                })
            };
            if budget == 0 {
                return fault(FaultKind::Budget(given_budget));
            }
            budget -= 1;
            next += 1;
            /// The value of an access, or the end of the run.
            macro_rules! checked {
                ($access:expr, $address:expr, $size:expr) => {
                    match $access {
                        Some(value) => value,
                        None => {
                            return fault(FaultKind::Memory {
                                address: $address,
                                bytes: $size.bytes().into(),
                            });
                        }
                    }
                };
            }
            match i.op {
                Op::Alu {
                    width,
                    op,
                    dst,
                    src,
                } => {
                    let value = alu::alu(width, op, regs.get(dst), regs.operand(src));
                    regs.set(dst, value);
                }
                Op::Neg { width, dst } => regs.set(dst, alu::neg(width, regs.get(dst))),
                Op::Swap { kind, size, dst } => regs.set(dst, alu::swap(kind, size, regs.get(dst))),
                Op::LoadImm { dst, value } => regs.set(dst, value),
                Op::LoadMap { dst, .. }
                | Op::LoadMapValue { dst, .. }
                | Op::LoadVariable { dst, .. } => {
                    let Some(address) = self.program().constant_address(i.op) else {
                        return fault(FaultKind::Structure);
                    };
                    regs.set(dst, address);
                }
                Op::Load {
                    size,
                    signed,
                    dst,
                    base,
                    off,
                } => {
                    let address = at(regs.get(base), off);
                    let value = checked!(memory.load(address, size), address, size);
                    regs.set(
                        dst,
                        if signed {
                            alu::sign_extend(size, value)
                        } else {
                            value
                        },
                    );
                }
                Op::Store {
                    size,
                    base,
                    off,
                    src,
                } => {
                    let (address, value) = (at(regs.get(base), off), regs.operand(src));
                    checked!(memory.store(address, size, value), address, size);
                }
                Op::Atomic {
                    size,
                    op,
                    base,
                    off,
                    src,
                } => {
                    let (address, value) = (at(regs.get(base), off), regs.get(src));
                    let compare = regs.get(Reg::R0);
                    let done = memory.atomic(op, address, size, value, compare);
                    let old = checked!(done, address, size);
                    match op {
                        AtomicOp::Cmpxchg => regs.set(Reg::R0, old),
                        _ if op.fetches() => regs.set(src, old),
                        _ => {}
                    }
                }
                Op::LoadAcquire {
                    size,
                    dst,
                    base,
                    off,
                } => {
                    let address = at(regs.get(base), off);
                    let value = checked!(memory.load_acquire(address, size), address, size);
                    regs.set(dst, value);
                }
                Op::StoreRelease {
                    size,
                    base,
                    off,
                    src,
                } => {
                    let (address, value) = (at(regs.get(base), off), regs.get(src));
                    checked!(memory.store_release(address, size, value), address, size);
                }
                Op::Goto { .. } => next = i.target as usize,
                Op::If {
                    width,
                    cond,
                    dst,
                    src,
                    ..
                } => {
                    if alu::holds(width, cond, regs.get(dst), regs.operand(src)) {
                        next = i.target as usize;
                    }
                }
                // Callbacks and calls by register are ended here.
                Op::LoadFunction { .. } | Op::CallReg { .. } => return fault(FaultKind::Structure),
                Op::Call { .. } | Op::CallKernel { .. } => {
                    let Some(helper) = self.program().called(i.op) else {
                        return fault(FaultKind::Structure);
                    };
                    let [_, a, b, c, d, e, ..] = regs.0;
                    let maps = self.program().maps();
                    match call::call(helper, [a, b, c, d, e], maps, &memory) {
                        Ok(value) => regs.set(Reg::R0, value),
                        Err(kind) => return fault(kind),
                    }
                }
                Op::CallLocal { .. } => {
                    let words = stack.get(..FRAME_WORDS * (depth + 2));
                    let (Some(frame), Some(words)) = (frames.get_mut(depth), words) else {
                        return fault(FaultKind::CallDepth);
                    };
                    let [.., a, b, c, d, _, _, _, _, _, _] = regs.0;
                    *frame = Frame {
                        return_to: next as u32,
                        saved: [a, b, c, d],
                    };
                    depth += 1;
                    memory.stack = Region::words(words);
                    regs.set(Reg::FP, regs.get(Reg::FP) + STACK_BYTES);
                    next = i.target as usize;
                }
                Op::Exit => {
                    let Some(frame) = depth.checked_sub(1).and_then(|depth| frames.get(depth))
                    else {
                        return Ok(Outcome {
                            r0: regs.get(Reg::R0),
                            instructions: given_budget - budget,
                        });
                    };
                    depth -= 1;
                    let words = stack.get(..FRAME_WORDS * (depth + 1));
                    memory.stack = Region::words(words.unwrap_or(&stack));
                    regs.set(Reg::FP, regs.get(Reg::FP) - STACK_BYTES);
                    let [_, _, _, _, _, _, a, b, c, d, ..] = &mut regs.0;
                    [*a, *b, *c, *d] = frame.saved;
                    next = frame.return_to as usize;
                }
            }
        }
    }
}
