// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interpreter: every memory access checked, a budget of instructions, no allocation while it runs.
//!
//! [`Interpreter::new`] prepares a program once; [`Interpreter::run`] runs it any number of times, from any core.
//! It is what unverified programs run by, and the oracle that compiled code is compared with.
use alloc::sync::Arc;
use core::fmt;

use crate::{
    attachment::Attachment,
    helpers::{self, Function, Helper, NUMBERS},
    isa::{AluOp, AtomicOp, Cond, Op, Size, Width},
    map::{Cursor, Map},
    program::ValidatedProgram,
};

pub(crate) mod alu;
#[expect(
    unsafe_code,
    reason = "calls of helpers, after their arguments were checked"
)]
mod call;
pub(crate) mod flat;
#[expect(
    unsafe_code,
    reason = "accesses to a program's memory, after the check that it is the program's"
)]
mod memory;

pub use self::memory::Region;
use self::{
    flat::{ARGUMENTS, Code, Place, rows},
    memory::{Block, Memory, NO_KEY, blocks},
};

/// Local calls that may be active at once, the entry included (`MAX_CALL_FRAMES` of Linux).
pub const MAX_FRAMES: usize = 8;
/// Tail calls that one run may make (`MAX_TAIL_CALL_CNT` of Linux).
pub const MAX_TAIL_CALLS: u32 = 33;
/// Rounds that `bpf_loop` makes at most (`BPF_MAX_LOOPS` of Linux).
pub const MAX_LOOPS: u64 = 1 << 23;
/// The largest budget of a run, so that it can be counted in signed numbers: more than a machine gets through.
const MOST: u64 = 1 << 62;
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
    /// The program ends without giving the lock at this address back, takes a second one, or gives back one that it does not
    /// hold.
    Lock(u64),
    /// `callx` by a register that names no function, and holds more than a helper's number can be.
    NoFunction(u64),
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
            FaultKind::Lock(address) => write!(
                f,
                "a program holds one lock at a time and gives it back before it ends; it does not do so with the one at \
                 {address:#x}"
            ),
            FaultKind::NoFunction(value) => write!(
                f,
                "the register holds {value:#x}, which is no function of the program and too large for a helper's number"
            ),
            FaultKind::Structure => f.write_str("there is no such instruction or helper"),
        }
    }
}

impl core::error::Error for Fault {}

/// A program, ready to be interpreted.
#[derive(Clone, Debug)]
pub struct Interpreter {
    program: Arc<ValidatedProgram>,
}

/// What happens when a function returns.
enum Then<'p> {
    /// Its caller goes on.
    Return,
    /// It was a callback, which is called again, or its caller goes on.
    Again(Rounds<'p>),
}

/// What a callback is called for, again and again.
struct Rounds<'p> {
    /// Where it starts.
    callback: usize,
    /// What it gets each time.
    context: u64,
    /// Rounds done.
    done: u64,
    of: Over<'p>,
}

/// What rounds go over.
enum Over<'p> {
    /// So many numbers (`bpf_loop`).
    Numbers(u64),
    /// A map's elements (`bpf_for_each_map_elem`).
    Elements(&'p Map, Cursor),
}

/// What a call keeps for its return.
struct Frame<'p> {
    program: &'p ValidatedProgram,
    return_to: usize,
    saved: [u64; 4],
    then: Then<'p>,
}

/// The registers.
struct Registers([u64; 16]);

impl Registers {
    #[inline(always)]
    fn get(&self, place: Place) -> u64 {
        self.0[place as usize]
    }

    #[inline(always)]
    fn set(&mut self, place: Place, value: u64) {
        self.0[place as usize] = value;
    }
}

/// `base + off`, of an offset as it is in a [`Flat`].
#[inline(always)]
fn at(base: u64, off: u32) -> u64 {
    base.wrapping_add_signed(i64::from(off.cast_signed()))
}

/// Linux's numbers of the helpers that an engine has its own part in.
const LOOP: u32 = 181;
const FOR_EACH: u32 = 164;
const TAIL_CALL: u32 = 12;
const SPIN_LOCK: u32 = 93;
const SPIN_UNLOCK: u32 = 94;
/// Linux's `ENOENT`, `E2BIG` and `EINVAL`, as a program sees them.
const ENOENT: u64 = -2_i64 as u64;
const E2BIG: u64 = -7_i64 as u64;
const EINVAL: u64 = -22_i64 as u64;

impl Interpreter {
    /// Prepares a program.
    pub fn new(program: Arc<ValidatedProgram>) -> Self {
        Self { program }
    }

    /// The program.
    pub fn program(&self) -> &Arc<ValidatedProgram> {
        &self.program
    }

    /// Runs the program with `arguments` in r1 and on, all other registers 0, and `budget` instructions at most.
    /// Besides its stack, its maps' values and its kernel variables it may access `regions`. Allocates nothing.
    ///
    /// The budget is counted at jumps, calls and the end: straight code between two of them is not cut.
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
        self.run_for(&Attachment::NONE, arguments, regions, budget)
    }

    /// As [`run`](Self::run), for an attachment that helpers may ask for.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_for(
        &self,
        attachment: &Attachment,
        arguments: &[u64],
        regions: &[Region<'_>],
        budget: u64,
    ) -> Result<Outcome, Fault> {
        if self.program.frames() == 1 {
            self.run_on::<{ blocks(1) }, 0, 0>(attachment, arguments, regions, budget)
        } else {
            self.run_on::<{ blocks(MAX_FRAMES) }, MAX_FRAMES, { MAX_FRAMES - 1 }>(
                attachment, arguments, regions, budget,
            )
        }
    }

    /// Runs with room for a stack of so many blocks, for the keys of so many callbacks and for so many frames below the one that runs;
    /// what the program does not need of it is left alone.
    #[inline(never)]
    fn run_on<const BLOCKS: usize, const KEYS: usize, const CALLERS: usize>(
        &self,
        attachment: &Attachment,
        arguments: &[u64],
        regions: &[Region<'_>],
        budget: u64,
    ) -> Result<Outcome, Fault> {
        let needed = self.program.frames();
        let mut stack = [const { Block::uninit() }; BLOCKS];
        let mut keys = [NO_KEY; KEYS];
        let mut frames = [const { None }; CALLERS];
        let (Some(stack), Some(frames)) = (
            stack.get_mut(..blocks(needed)),
            frames.get_mut(..needed.saturating_sub(1)),
        ) else {
            return Err(Fault {
                slot: 0,
                op: Op::Exit,
                kind: FaultKind::Structure,
            });
        };
        let stack = memory::clear(stack);
        let mut machine = Machine {
            context: arguments.first().copied().unwrap_or(0),
            regs: Registers([0; 16]),
            memory: Memory::new(Region::words(stack), &mut keys, regions, &self.program),
            frames,
            depth: 0,
            tail_calls: 0,
            attachment,
            lock: None,
        };
        for (place, argument) in ARGUMENTS.into_iter().zip(arguments) {
            machine.regs.set(place, *argument);
        }
        machine.regs.set(Place::R10, machine.memory.r10());
        let outcome = machine.execute(budget);
        if let Some(lock) = machine.lock {
            machine.give_back(lock);
        }
        outcome
    }
}

/// A run: everything that an instruction may change but the place of the next one.
struct Machine<'p, 'f> {
    regs: Registers,
    memory: Memory<'p, 'f>,
    frames: &'f mut [Option<Frame<'p>>],
    /// How many of them are in use by callers.
    depth: usize,
    tail_calls: u32,
    /// What the program got in r1.
    context: u64,
    attachment: &'p Attachment,
    /// The address of the `struct bpf_spin_lock` that it holds.
    lock: Option<u64>,
}

/// Where a run goes on after a call or return.
enum Next {
    /// At the following instruction.
    Here,
    /// At that index, in the program that runs now.
    At(usize),
    /// The program has ended.
    End,
}

impl<'p> Machine<'p, '_> {
    /// Runs the program to its end.
    #[inline(never)]
    fn execute(&mut self, budget: u64) -> Result<Outcome, Fault> {
        let mut code = self.memory.program.flat();
        // The instructions from the next one on, and the index at which the budget would be used up if no other jump came:
        // a jump moves it by its distance. Programs have few instructions beside these numbers, so nothing here wraps.
        let mut next = code.iter();
        let budget = budget.min(MOST);
        let mut limit = budget.cast_signed();
        loop {
            let Some(i) = next.next() else {
                return Err(self.fault(code.len(), FaultKind::Structure));
            };
            /// Ends the run with a fault of this instruction.
            macro_rules! fail {
                ($kind:expr) => {
                    return Err(self.fault(code.len() - next.len() - 1, $kind))
                };
            }
            /// The value of an access, or the end of the run.
            macro_rules! checked {
                ($access:expr, $address:expr, $size:expr) => {
                    match $access {
                        Some(value) => value,
                        None => fail!(FaultKind::Memory {
                            address: $address,
                            bytes: $size.bytes().into(),
                        }),
                    }
                };
            }
            /// Takes a jump, if the budget is not used up.
            macro_rules! jump {
                ($i:ident) => {{
                    limit = limit.wrapping_add(flat::jump_distance($i.imm));
                    if limit <= i64::from($i.off) {
                        fail!(FaultKind::Budget(budget));
                    }
                    match code.get($i.off as usize..) {
                        Some(target) => next = target.iter(),
                        None => fail!(FaultKind::Structure),
                    }
                }};
            }
            /// Does what a call or return led to.
            macro_rules! follow {
                ($next:expr) => {{
                    let here = code.len() - next.len();
                    match $next {
                        Ok(Next::Here) => {}
                        Ok(Next::At(target)) => {
                            let left = limit.wrapping_sub(here as i64);
                            if left <= 0 {
                                fail!(FaultKind::Budget(budget));
                            }
                            limit = left.wrapping_add(target as i64);
                            code = self.memory.program.flat();
                            next = code.get(target..).unwrap_or_default().iter();
                        }
                        Ok(Next::End) => {
                            let left = limit.wrapping_sub(here as i64);
                            if left < 0 {
                                fail!(FaultKind::Budget(budget));
                            }
                            return Ok(Outcome {
                                r0: self.regs.get(Place::R0),
                                instructions: budget.wrapping_sub(left.cast_unsigned()),
                            });
                        }
                        Err(kind) => fail!(kind),
                    }
                }};
            }
            /// A read-modify-write of one size.
            macro_rules! atomic {
                ($size:expr) => {{
                    let op = flat::atomic_of(i.imm);
                    let (address, value) = (at(self.regs.get(i.dst), i.off), self.regs.get(i.src));
                    let compare = self.regs.get(Place::R0);
                    let done = self.memory.atomic(op, address, $size, value, compare);
                    let old = checked!(done, address, $size);
                    match op {
                        AtomicOp::Cmpxchg => self.regs.set(Place::R0, old),
                        _ if op.fetches() => self.regs.set(i.src, old),
                        _ => {}
                    }
                }};
            }
            // What the codes of the tables do, by category.
            macro_rules! alu_reg {
                ($i:ident, $width:ident, $op:ident) => {{
                    let (old, src) = (self.regs.get($i.dst), self.regs.get($i.src));
                    let value = alu::alu(Width::$width, AluOp::$op, old, src);
                    self.regs.set($i.dst, value);
                }};
            }
            macro_rules! alu_imm {
                ($i:ident, $width:ident, $op:ident) => {{
                    let value = alu::alu(Width::$width, AluOp::$op, self.regs.get($i.dst), $i.imm);
                    self.regs.set($i.dst, value);
                }};
            }
            macro_rules! jump_reg {
                ($i:ident, $width:ident, $cond:ident) => {{
                    let (a, b) = (self.regs.get($i.dst), self.regs.get($i.src));
                    if alu::holds(Width::$width, Cond::$cond, a, b) {
                        jump!($i);
                    }
                }};
            }
            macro_rules! jump_imm {
                ($i:ident, $width:ident, $cond:ident) => {{
                    let (a, b) = (self.regs.get($i.dst), flat::jump_value($i.imm));
                    if alu::holds(Width::$width, Cond::$cond, a, b) {
                        jump!($i);
                    }
                }};
            }
            macro_rules! load {
                ($i:ident, $size:ident, $signed:literal) => {{
                    let (address, size) = (at(self.regs.get($i.src), $i.off), Size::$size);
                    let value = checked!(self.memory.load(address, size), address, size);
                    let value = if $signed {
                        alu::sign_extend(size, value)
                    } else {
                        value
                    };
                    self.regs.set($i.dst, value);
                }};
            }
            macro_rules! store_reg {
                ($i:ident, $size:ident) => {{
                    let (address, size) = (at(self.regs.get($i.dst), $i.off), Size::$size);
                    checked!(
                        self.memory.store(address, size, self.regs.get($i.src)),
                        address,
                        size
                    );
                }};
            }
            /// One of those that pairs are made of.
            #[rustfmt::skip]
            macro_rules! one {
                (Add32Imm $i:ident) => { alu_imm!($i, W32, Add) };
                (Add64 $i:ident) => { alu_reg!($i, W64, Add) };
                (Add64Imm $i:ident) => { alu_imm!($i, W64, Add) };
                (And32Imm $i:ident) => { alu_imm!($i, W32, And) };
                (And64Imm $i:ident) => { alu_imm!($i, W64, And) };
                (Div64 $i:ident) => { alu_reg!($i, W64, Div) };
                (Eq32Imm $i:ident) => { jump_imm!($i, W32, Eq) };
                (Eq64Imm $i:ident) => { jump_imm!($i, W64, Eq) };
                (Gt32Imm $i:ident) => { jump_imm!($i, W32, Gt) };
                (Load16 $i:ident) => { load!($i, H, false) };
                (Load32 $i:ident) => { load!($i, W, false) };
                (Load64 $i:ident) => { load!($i, Dw, false) };
                (Load8 $i:ident) => { load!($i, B, false) };
                (Lsh32Imm $i:ident) => { alu_imm!($i, W32, Lsh) };
                (Lsh64Imm $i:ident) => { alu_imm!($i, W64, Lsh) };
                (Lt32Imm $i:ident) => { jump_imm!($i, W32, Lt) };
                (Lt64 $i:ident) => { jump_reg!($i, W64, Lt) };
                (Mov32 $i:ident) => { alu_reg!($i, W32, Mov) };
                (Mov64 $i:ident) => { alu_reg!($i, W64, Mov) };
                (Mov64Imm $i:ident) => { alu_imm!($i, W64, Mov) };
                (Mul32Imm $i:ident) => { alu_imm!($i, W32, Mul) };
                (Mul64 $i:ident) => { alu_reg!($i, W64, Mul) };
                (Ne64Imm $i:ident) => { jump_imm!($i, W64, Ne) };
                (Or32 $i:ident) => { alu_reg!($i, W32, Or) };
                (Rsh32Imm $i:ident) => { alu_imm!($i, W32, Rsh) };
                (Rsh64Imm $i:ident) => { alu_imm!($i, W64, Rsh) };
                (Store32 $i:ident) => { store_reg!($i, W) };
                (Store8 $i:ident) => { store_reg!($i, B) };
                (Sub64 $i:ident) => { alu_reg!($i, W64, Sub) };
                (Xor32 $i:ident) => { alu_reg!($i, W32, Xor) };
            }
            /// The match over all codes: those of the tables, then the rest.
            macro_rules! execute {
                (
                    alu_reg { $($alu_reg:ident $alu_reg_width:ident $alu_reg_op:ident,)* }
                    alu_imm { $($alu_imm:ident $alu_imm_width:ident $alu_imm_op:ident,)* }
                    jump_reg { $($jump_reg:ident $jump_reg_width:ident $jump_reg_cond:ident,)* }
                    jump_imm { $($jump_imm:ident $jump_imm_width:ident $jump_imm_cond:ident,)* }
                    load { $($load:ident $load_size:ident $load_signed:literal,)* }
                    store_reg { $($store_reg:ident $store_reg_size:ident,)* }
                    store_imm { $($store_imm:ident $store_imm_size:ident,)* }
                    pairs { $($pair:ident $first:ident $second:ident,)* }
                    $($rest:tt)*
                ) => {
                    match i.code {
                        $(Code::$alu_reg => alu_reg!(i, $alu_reg_width, $alu_reg_op),)*
                        $(Code::$alu_imm => alu_imm!(i, $alu_imm_width, $alu_imm_op),)*
                        $(Code::$jump_reg => jump_reg!(i, $jump_reg_width, $jump_reg_cond),)*
                        $(Code::$jump_imm => jump_imm!(i, $jump_imm_width, $jump_imm_cond),)*
                        $(Code::$load => load!(i, $load_size, $load_signed),)*
                        $(Code::$store_reg => store_reg!(i, $store_reg_size),)*
                        $(Code::$store_imm => {
                            let (address, size) = (at(self.regs.get(i.dst), i.off), Size::$store_imm_size);
                            checked!(self.memory.store(address, size, i.imm), address, size);
                        })*
                        $(Code::$pair => {
                            one!($first i);
                            let Some(second) = next.next() else {
                                fail!(FaultKind::Structure);
                            };
                            one!($second second);
                        })*
                        $($rest)*
                    }
                };
            }
            rows!(execute! {
                Code::Neg64 => self.regs.set(i.dst, alu::neg(Width::W64, self.regs.get(i.dst))),
                Code::Neg32 => self.regs.set(i.dst, alu::neg(Width::W32, self.regs.get(i.dst))),
                Code::Swap => {
                    let (kind, size) = flat::swap_of(i.imm);
                    self.regs.set(i.dst, alu::swap(kind, size, self.regs.get(i.dst)));
                }
                Code::Constant => self.regs.set(i.dst, i.imm),
                Code::Atomic32 => atomic!(Size::W),
                Code::Atomic64 => atomic!(Size::Dw),
                Code::LoadAcquire => {
                    let (address, size) = (at(self.regs.get(i.src), i.off), flat::size_of(i.imm));
                    let value = checked!(self.memory.load_acquire(address, size), address, size);
                    self.regs.set(i.dst, value);
                }
                Code::StoreRelease => {
                    let (address, size) = (at(self.regs.get(i.dst), i.off), flat::size_of(i.imm));
                    let done = self.memory.store_release(address, size, self.regs.get(i.src));
                    checked!(done, address, size);
                }
                Code::Goto => jump!(i),
                Code::Call => follow!(self.call_helper(i.off, code.len() - next.len())),
                Code::CallKernel => follow!(self.call_kernel(i.off, code.len() - next.len())),
                Code::CallLocal => {
                    if !self.push(code.len() - next.len()) {
                        fail!(FaultKind::CallDepth);
                    }
                    jump!(i);
                }
                Code::CallReg => follow!(self.call_reg(self.regs.get(i.dst), code.len() - next.len())),
                Code::Exit => match self.pop() {
                    Some(return_to) => {
                        let left = limit.wrapping_sub((code.len() - next.len()) as i64);
                        if left <= 0 {
                            fail!(FaultKind::Budget(budget));
                        }
                        limit = left.wrapping_add(return_to as i64);
                        next = code.get(return_to..).unwrap_or_default().iter();
                    }
                    None => follow!(self.leave()),
                },
                Code::Invalid => fail!(FaultKind::Structure),
            });
        }
    }

    /// Gives back the lock that a run ended with.
    #[cold]
    #[inline(never)]
    fn give_back(&mut self, lock: u64) {
        if let Some(unlock) = helpers::find(self.memory.program.helpers(), SPIN_UNLOCK) {
            // The address was checked when it was taken, and nobody is left to be told of an error.
            let _ = call::call(unlock, [lock, 0, 0, 0, 0], self.attachment);
        }
    }

    /// The fault of the instruction at an index.
    #[cold]
    #[inline(never)]
    fn fault(&self, index: usize, kind: FaultKind) -> Fault {
        let i = self.memory.program.instructions().get(index);
        Fault {
            slot: i.map_or(index as u32, |i| i.slot),
            op: i.map_or(Op::Exit, |i| i.op),
            kind,
        }
    }

    /// Fills the frame that a call from here needs, and makes the next one run; false if there is none.
    #[inline(always)]
    fn push(&mut self, return_to: usize) -> bool {
        let Some(frame) = self.frames.get_mut(self.depth) else {
            return false;
        };
        let [_, _, _, _, _, _, a, b, c, d, ..] = self.regs.0;
        *frame = Some(Frame {
            program: self.memory.program,
            return_to,
            saved: [a, b, c, d],
            then: Then::Return,
        });
        self.depth = self.depth.wrapping_add(1);
        self.memory.push();
        self.regs.set(Place::R10, self.memory.r10());
        true
    }

    /// The innermost frame that waits for a return, if there is one.
    #[inline(always)]
    fn innermost(&mut self) -> Option<&mut Frame<'p>> {
        let frame = self.frames.get_mut(self.depth.checked_sub(1)?);
        frame.and_then(Option::as_mut)
    }

    /// Takes the innermost frame down, if a function of the running program called one of the same: where that goes on.
    #[inline(always)]
    fn pop(&mut self) -> Option<usize> {
        let caller = self.depth.checked_sub(1)?;
        let frame = self.frames.get(caller)?.as_ref()?;
        let plain = matches!(frame.then, Then::Return);
        if !plain || !core::ptr::eq(frame.program, self.memory.program) {
            return None;
        }
        let [_, _, _, _, _, _, a, b, c, d, ..] = &mut self.regs.0;
        [*a, *b, *c, *d] = frame.saved;
        self.depth = caller;
        self.memory.pop();
        self.regs.set(Place::R10, self.memory.r10());
        Some(frame.return_to)
    }

    /// Calls a function of the program.
    #[inline(never)]
    fn enter(&mut self, target: usize, return_to: usize) -> Result<Next, FaultKind> {
        match self.push(return_to) {
            true => Ok(Next::At(target)),
            false => Err(FaultKind::CallDepth),
        }
    }

    /// Returns from a function, to its caller, to the next round of a callback, or to whoever started the run.
    #[inline(never)]
    fn leave(&mut self) -> Result<Next, FaultKind> {
        let Some(frame) = self.innermost() else {
            return self
                .lock
                .map_or(Ok(Next::End), |lock| Err(FaultKind::Lock(lock)));
        };
        let program = frame.program;
        let done = match &mut frame.then {
            Then::Return => None,
            Then::Again(rounds) => {
                rounds.done += 1;
                Some(rounds.done)
            }
        };
        // The program may have turned into another one since it was called.
        self.memory.turn_into(program);
        let r0 = self.regs.get(Place::R0);
        if done.is_some()
            && r0 == 0
            && let Some(callback) = self.next_round()
        {
            return Ok(Next::At(callback));
        }
        self.return_with(done.unwrap_or(r0))
    }

    /// Takes the innermost frame down; its caller goes on with that in r0.
    fn return_with(&mut self, r0: u64) -> Result<Next, FaultKind> {
        self.innermost().ok_or(FaultKind::Structure)?.then = Then::Return;
        self.memory.lend_key(NO_KEY);
        let return_to = self.pop().ok_or(FaultKind::Structure)?;
        self.regs.set(Place::R0, r0);
        Ok(Next::At(return_to))
    }

    /// Prepares the callback of the innermost frame for another round; where it starts. `None` after the last round.
    fn next_round(&mut self) -> Option<usize> {
        let Then::Again(rounds) = &mut self.innermost()?.then else {
            return None;
        };
        let (callback, context, done) = (rounds.callback, rounds.context, rounds.done);
        match &mut rounds.of {
            Over::Numbers(all) => {
                if done >= *all {
                    return None;
                }
                self.regs.set(Place::R1, done);
                self.regs.set(Place::R2, context);
            }
            Over::Elements(map, cursor) => {
                let map = *map;
                let element = map.step(cursor)?;
                let (key, value) = (element.key_address(), element.value);
                self.regs.set(Place::R1, map.address());
                self.regs.set(Place::R2, key);
                self.regs.set(Place::R3, value);
                self.regs.set(Place::R4, context);
                self.memory.lend_key((key, map.key_size() as u64));
            }
        }
        Some(callback)
    }

    #[inline(never)]
    fn call_helper(&mut self, index: u32, pc: usize) -> Result<Next, FaultKind> {
        let helper = self.memory.program.helpers().get(index as usize);
        self.call(helper.ok_or(FaultKind::Structure)?, pc)
    }

    #[inline(never)]
    fn call_kernel(&mut self, function: u32, pc: usize) -> Result<Next, FaultKind> {
        let kfunc = self.memory.program.kfuncs().get(function as usize);
        self.call(kfunc.ok_or(FaultKind::Structure)?, pc)
    }

    /// Calls what a register names: a helper by its number, or a function of the program.
    #[inline(never)]
    fn call_reg(&mut self, value: u64, pc: usize) -> Result<Next, FaultKind> {
        if value >= NUMBERS {
            let target = call::function(&self.memory, value);
            let target = target.ok_or(FaultKind::NoFunction(value))?;
            return self.enter(target as usize, pc);
        }
        match helpers::find(self.memory.program.helpers(), value as u32) {
            Some(helper) if helper.is_called_by_register() => self.call(helper, pc),
            _ => {
                self.regs.set(Place::R0, EINVAL);
                Ok(Next::Here)
            }
        }
    }

    /// Calls a helper or kernel function.
    fn call(&mut self, helper: &Helper, pc: usize) -> Result<Next, FaultKind> {
        let [_, a, b, c, d, e, ..] = self.regs.0;
        let values = [a, b, c, d, e];
        call::check(
            helper,
            values,
            self.context,
            self.attachment,
            &mut self.memory,
        )?;
        let r0 = match (helper.function, helper.number) {
            (Function::Plain(_), SPIN_LOCK | SPIN_UNLOCK) => {
                let takes = helper.number == SPIN_LOCK;
                if self.lock != (!takes).then_some(a) {
                    return Err(FaultKind::Lock(a));
                }
                self.lock = takes.then_some(a);
                call::call(helper, values, self.attachment)?
            }
            (Function::Plain(_) | Function::Attached(_), _) => {
                call::call(helper, values, self.attachment)?
            }
            (Function::Engine, TAIL_CALL) => {
                // 32 bits count, as in Linux.
                let index = c as u32;
                let map = call::map(&self.memory, b).filter(|_| self.tail_calls < MAX_TAIL_CALLS);
                match map.and_then(|map| map.tail_target(index)) {
                    Some(target) => {
                        self.tail_calls += 1;
                        self.memory.turn_into(&target.program);
                        return Ok(Next::At(0));
                    }
                    None => ENOENT,
                }
            }
            (Function::Callback(_), LOOP) => {
                let rounds = a & u64::from(u32::MAX);
                match () {
                    () if d != 0 => EINVAL,
                    () if rounds > MAX_LOOPS => E2BIG,
                    () => {
                        return self.begin_rounds(Over::Numbers(rounds), [b, c], pc);
                    }
                }
            }
            (Function::Callback(_), FOR_EACH) => {
                match call::map(&self.memory, a).filter(|map| d == 0 && map.is_walked()) {
                    Some(map) => {
                        let of = Over::Elements(map, Cursor::default());
                        return self.begin_rounds(of, [b, c], pc);
                    }
                    None => EINVAL,
                }
            }
            (Function::Engine | Function::Callback(_), _) => return Err(FaultKind::Structure),
        };
        self.regs.set(Place::R0, r0);
        Ok(Next::Here)
    }

    /// Calls a callback for the first time, if there is a first time.
    fn begin_rounds(
        &mut self,
        of: Over<'p>,
        [callback, context]: [u64; 2],
        return_to: usize,
    ) -> Result<Next, FaultKind> {
        let callback = call::function(&self.memory, callback).ok_or(FaultKind::Structure)?;
        let callback = callback as usize;
        self.enter(callback, return_to)?;
        self.innermost().ok_or(FaultKind::Structure)?.then = Then::Again(Rounds {
            callback,
            context,
            done: 0,
            of,
        });
        match self.next_round() {
            Some(callback) => Ok(Next::At(callback)),
            None => self.return_with(0),
        }
    }
}
