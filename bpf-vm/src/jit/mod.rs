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
    AsmError, Assembler,
    inst::SysReg,
    ops,
    reg::{X6, X14, X15},
};

mod accesses;
mod alloc;
mod dominators;
mod facts;
mod flow;
mod frame;
mod fuse;
mod ir;
mod loops;
mod lower;
mod moves;
mod select;
mod shape;
mod simplify;

pub use self::alloc::RegisterSet;
use self::{
    alloc::{Allocation, Given},
    flow::{Arguments, Flow},
    frame::Frame,
    ir::{Callee, Node},
    select::{ATTACHMENT, Places, STUB_BYTES, Selector, ShortBranch},
};
use crate::{helpers, interp::MAX_FRAMES, program::ValidatedProgram};

/// Extensions of the A64 base instruction set that the code may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// FEAT_LSE: atomics in one instruction (`ID_AA64ISAR0_EL1.Atomic` is at least 2).
    pub lse: bool,
}

/// A 32-bit number so many bytes from the address that a system register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The register.
    pub register: SysReg,
    /// Bytes from that address: a multiple of 4, at most 16380.
    pub offset: u32,
}

/// Nanoseconds as a counter: `counter * scale >> 32`, the product being 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The counter.
    pub counter: SysReg,
    /// 2^32 times the nanoseconds of one count.
    pub scale: u64,
}

/// How helpers are done in place, by Linux's numbers; what is not known here is called.
///
/// The task may be moved to another core between any two instructions unless whoever runs the program keeps it where it
/// is. What is read by way of the current task is right all the same. The core's number is right for the moment it is
/// read in, as after a call; that a value of a per-CPU array stays this core's is up to who runs the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InPlace {
    /// What holds the current task's address: 35 `bpf_get_current_task` and 158 `bpf_get_current_task_btf`.
    pub task: Option<SysReg>,
    /// The current task's number, which is thread and thread group: 14 `bpf_get_current_pid_tgid`.
    pub task_number: Option<Number>,
    /// The core's number: 8 `bpf_get_smp_processor_id`, and 1 `bpf_map_lookup_elem` of per-CPU arrays.
    pub cpu: Option<Number>,
    /// 5 `bpf_ktime_get_ns`.
    pub clock: Option<Clock>,
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
    /// Which helpers need no call.
    pub in_place: InPlace,
    /// Whether the code may run on a Cortex-A53 with erratum 835769: no 64-bit multiply-accumulate right after an access
    /// to memory. (843419, ADRP at a page's end, is avoided on every core.)
    pub erratum_835769: bool,
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
            in_place: InPlace::default(),
            erratum_835769: false,
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
    /// The function that starts at a slot calls itself, directly or through others: validation leaves that to a call by register.
    Recursion {
        /// Its first slot.
        slot: u32,
    },
    /// Local calls are nested deeper than [`MAX_FRAMES`]: validation leaves that to a call by register.
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
                "the function at slot {slot} calls itself (a call by register counts as one of each function whose address is taken), so its \
                 use of stack has no bound; make it a loop"
            ),
            Self::CallDepth(depth) => {
                write!(
                    f,
                    "local calls are {depth} deep and the limit is {MAX_FRAMES} (a call by register counts as one of each \
                     function whose address is taken); inline some"
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

/// What all functions of a program are compiled with.
struct Common<'a> {
    target: &'a Target<'a>,
    arguments: &'a Arguments,
    /// Whether functions hand on the attachment and the count of tail calls.
    hands_on: bool,
}

impl Common<'_> {
    fn function<'p>(
        &self,
        flow: Flow<'p>,
        clobbers: &[RegisterSet],
    ) -> Result<Function<'p>, JitError> {
        let mut pool = self.target.registers;
        let exclusive = flow.steps().any(|s| matches!(s.node, Node::Atomic { .. }));
        if exclusive && !self.target.features.lse {
            pool = pool.without(X14).without(X15);
        }
        let given = Given {
            arguments: self.arguments,
            pool,
            clobbers,
        };
        let allocation = alloc::allocate(&flow, &given)?;
        let frame = Frame::new(&flow, allocation.saved.clone(), self.hands_on);
        Ok(Function {
            flow,
            allocation,
            frame,
        })
    }

    /// The registers that a call of a function changes, from what it uses and what its own calls change.
    fn clobbers(&self, function: &Function<'_>, clobbers: &[RegisterSet]) -> RegisterSet {
        let calls = function.flow.steps().filter_map(|step| match step.node {
            Node::Call { callee, .. } => Some(match callee {
                Callee::Local(callee) => clobbers.get(callee as usize).copied(),
                _ => None,
            }),
            _ => None,
        });
        let all = caller_saved();
        let convention = RegisterSet::of(alloc::ARGUMENTS) | RegisterSet::of([ATTACHMENT, X6]);
        let exclusive = RegisterSet::of([X14, X15]);
        let below = calls.fold(RegisterSet::NONE, |set, call| set | call.unwrap_or(all));
        let own = function.allocation.used | convention | exclusive;
        (own | below).and(all)
    }
}

/// Functions of more instructions are compiled block by block, so that time and memory grow with their length only.
const MAX_SHAPED: usize = 1 << 14;

fn caller_saved() -> RegisterSet {
    RegisterSet::of(alloc::CALLER_SAVED)
}

/// Compiles a program.
///
/// # Errors
/// What [`JitError`] lists.
pub fn compile(program: &ValidatedProgram, target: &Target<'_>) -> Result<Code, JitError> {
    let lowered = program.functions().iter();
    let mut flows = lowered
        .map(|function| lower::lower(program, function, target))
        .collect::<Result<Vec<_>, _>>()?;
    for flow in flows
        .iter_mut()
        .filter(|flow| flow.body.len() <= MAX_SHAPED)
    {
        shape::shape(flow);
    }
    let arguments = flow::analyse(&mut flows);
    for flow in &mut flows {
        flow.remove_dead(&arguments);
        fuse::fuse(flow, &arguments);
        if flow.body.len() <= MAX_SHAPED {
            loops::sink(flow, &arguments);
            loops::hoist(flow, &arguments, target.registers.and(caller_saved()).len());
        }
    }
    let tail_calls = flows.iter().any(makes_tail_calls);
    skips_no_caller(&flows)?;
    let order = callees_first(&flows)?;
    let common = Common {
        target,
        arguments: &arguments,
        hands_on: tail_calls || program.needs_attachment(),
    };
    let all = caller_saved();
    let mut clobbers = vec![all; flows.len()];
    let mut functions: Vec<_> = flows.iter().map(|_| None).collect();
    let mut flows: Vec<_> = flows.into_iter().map(Some).collect();
    for &index in &order {
        let Some(flow) = flows.get_mut(index).and_then(Option::take) else {
            continue;
        };
        let function = common.function(flow, &clobbers)?;
        let changed = common.clobbers(&function, &clobbers);
        if let Some((slot, place)) = clobbers.get_mut(index).zip(functions.get_mut(index)) {
            (*slot, *place) = (changed, Some(function));
        }
    }
    let functions: Vec<_> = functions.into_iter().flatten().collect();
    let stack_bytes = stack_bytes(&functions, &order)? + if tail_calls { STUB_BYTES } else { 0 };
    let emitter = Emitter {
        program,
        target,
        functions: &functions,
        arguments: &arguments,
        tail_calls,
    };
    let blocks = functions.iter().map(|f| f.flow.blocks.len());
    let mut far = vec![false; blocks.sum()];
    // Size with short branches, lengthen those that do not reach, until all do; then emit.
    loop {
        let mut asm = Assembler::sizing(target.base);
        let mut short = Vec::new();
        let layout = emitter.emit(&mut asm, Places::Unknown, &far, &mut short)?;
        let mut words = vec![0; asm.finish()?];
        let place = |index: usize| layout.blocks.get(index).map_or(0, |word| i64::from(*word));
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

fn makes_tail_calls(flow: &Flow<'_>) -> bool {
    tail_call(flow).is_some()
}

/// The slot of a function's first tail call.
fn tail_call(flow: &Flow<'_>) -> Option<u32> {
    let tail = |node: &Node| {
        matches!(
            node,
            Node::Call {
                callee: Callee::Tail { .. },
                ..
            }
        )
    };
    let step = flow.steps().find(|step| tail(&step.node))?;
    Some(flow.slot(step.at))
}

/// The functions whose address is taken somewhere.
fn taken(flows: &[Flow<'_>]) -> BTreeSet<usize> {
    let steps = flows.iter().flat_map(Flow::steps);
    steps
        .filter_map(|step| match step.node {
            Node::Function(function) => Some(function as usize),
            _ => None,
        })
        .collect()
}

/// The functions that one calls or may call: one whose address is taken counts as called where it is taken, and wherever
/// there is a call by register.
fn callees(flow: &Flow<'_>, taken: &BTreeSet<usize>) -> BTreeSet<usize> {
    let by_register = |node: &Node| {
        matches!(
            node,
            Node::Call {
                callee: Callee::Register(_),
                ..
            }
        )
    };
    let mut callees: BTreeSet<_> = flow.callees(true).collect();
    if flow.steps().any(|step| by_register(&step.node)) {
        callees.extend(taken);
    }
    callees
}

/// The functions in an order in which callees come before their callers.
fn callees_first(flows: &[Flow<'_>]) -> Result<Vec<usize>, JitError> {
    let taken = taken(flows);
    // Per function: callees that are not done yet, and who calls it.
    let mut waiting = vec![0_u32; flows.len()];
    let mut callers = vec![Vec::new(); flows.len()];
    for (caller, flow) in flows.iter().enumerate() {
        for callee in callees(flow, &taken) {
            if let Some((list, waiting)) = callers.get_mut(callee).zip(waiting.get_mut(caller)) {
                list.push(caller);
                *waiting += 1;
            }
        }
    }
    let idle = |f: &usize| waiting.get(*f) == Some(&0);
    let mut ready: Vec<_> = (0..flows.len()).filter(idle).collect();
    let mut order = Vec::with_capacity(flows.len());
    while let Some(index) = ready.pop() {
        order.push(index);
        for &caller in callers.get(index).into_iter().flatten() {
            if let Some(left) = waiting.get_mut(caller) {
                *left -= 1;
                if *left == 0 {
                    ready.push(caller);
                }
            }
        }
    }
    let is_waiting = |f: &usize| waiting.get(*f).is_some_and(|left| *left != 0);
    let Some(mut waits) = (0..flows.len()).find(is_waiting) else {
        return Ok(order);
    };
    // Each that waits waits for one that does: at some time for one that was there before, which then waits for itself.
    let mut seen = BTreeSet::new();
    while seen.insert(waits) {
        let callees = flows.get(waits).map(|flow| callees(flow, &taken));
        let next = callees.into_iter().flatten().find(is_waiting);
        waits = next.unwrap_or(waits);
    }
    let slot = flows.get(waits).map_or(0, |flow| flow.slot(0));
    Err(JitError::Recursion { slot })
}

/// The most stack that the functions use together, which is what the deepest of them uses.
fn stack_bytes(functions: &[Function<'_>], order: &[usize]) -> Result<u32, JitError> {
    let flows = functions.iter().map(|function| &function.flow);
    let taken: BTreeSet<_> = flows
        .clone()
        .flat_map(|f| taken(core::slice::from_ref(f)))
        .collect();
    // Of each function that is done: what it and what is below it uses, and how deep that goes.
    let mut used = vec![(0, 0); functions.len()];
    let mut most = 0;
    for &index in order {
        let Some(function) = functions.get(index) else {
            continue;
        };
        let below = callees(&function.flow, &taken).into_iter();
        let below = below.filter_map(|callee| used.get(callee).copied());
        let (bytes, depth) = below.fold((0, 0), |most: (u32, usize), one| {
            (most.0.max(one.0), most.1.max(one.1))
        });
        let (bytes, depth) = (bytes + function.frame.bytes, depth + 1);
        if depth > MAX_FRAMES {
            return Err(JitError::CallDepth(depth));
        }
        if let Some(own) = used.get_mut(index) {
            *own = (bytes, depth);
        }
        if index == 0 {
            most = bytes;
        }
    }
    Ok(most)
}

/// Checks that no function whose address is taken makes a tail call, itself or through others: a helper that called it
/// back would not hand on the count of tail calls.
fn skips_no_caller(flows: &[Flow<'_>]) -> Result<(), JitError> {
    if !flows.iter().any(makes_tail_calls) {
        return Ok(());
    }
    let taken = taken(flows);
    let (mut seen, mut work) = (taken.clone(), Vec::from_iter(taken.iter().copied()));
    while let Some(flow) = work.pop().and_then(|index| flows.get(index)) {
        if let Some(slot) = tail_call(flow) {
            return Err(JitError::TailCallInCallback { slot });
        }
        let callees = callees(flow, &taken).into_iter();
        work.extend(callees.filter(|callee| seen.insert(*callee)));
    }
    Ok(())
}

/// Where things came to lie, in words from the start.
#[derive(Debug, Default)]
struct Layout {
    /// Each block of each function, in order.
    blocks: Vec<u32>,
    /// Each function's prologue.
    entries: Vec<u32>,
    /// Where tail calls that cannot be made go on, in the order in which they are emitted.
    failed: Vec<u32>,
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
        let (mut first_block, mut live_outs) = (0, Vec::new());
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
                program: self.program,
                dispatch: self.target.dispatch,
                long: self.program.instructions().len() > SHORT,
                attachment,
                asm: &mut *asm,
                frame,
                lse: self.target.features.lse,
                cpu: self.target.in_place.cpu,
                apart: self.target.erratum_835769,
                accessed_at: None,
                homes: allocation.homes_at(0),
                first_block,
                places,
                short: &mut *short,
                failed: &mut layout.failed,
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
            selector.accessed_at = Some(selector.asm.len());

            layout.blocks.resize(first_block + flow.blocks.len(), 0);
            let through: Vec<_> = (0..flow.blocks.len())
                .map(|number| passed(flow, allocation, number))
                .collect();
            let order = shape::order(flow);
            let nexts = order.iter().skip(1).copied().map(Some).chain([None]);
            for (&number, next) in order.iter().zip(nexts) {
                let Some(block) = flow.blocks.get(number) else {
                    continue;
                };
                if let Some(start) = layout.blocks.get_mut(first_block + number) {
                    *start = selector.asm.len() as u32;
                }
                flow.live_outs(block, self.arguments, &mut live_outs);
                selector.homes = allocation.homes_at(number);
                for ((n, step), &live_out) in block.steps.iter().enumerate().zip(&live_outs) {
                    if step.is_dead(live_out) {
                        continue;
                    }
                    let homes = allocation.homes_of(number, n);
                    selector.step(step, homes, live_out, step.uses(self.arguments));
                    let len = selector.asm.len();
                    layout.map.resize(len, Some(flow.slot(step.at)));
                }
                let from = first_block + number;
                let through = |to: usize| through.get(to).copied().unwrap_or(to);
                let mut end = block.end;
                end.redirect(through);
                let far = far.get(from).copied().unwrap_or(false);
                selector.end(end, from, next, far);
                let len = selector.asm.len();
                layout.map.resize(len, Some(flow.slot(block.end_at)));
            }
            first_block += flow.blocks.len();
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

/// Where control goes on that comes to a block: there, or behind it if it only makes copies that have their source's
/// register.
fn passed(flow: &Flow<'_>, allocation: &Allocation, number: usize) -> usize {
    let Some(block) = flow.blocks.get(number) else {
        return number;
    };
    let ir::End::Goto { to, .. } = block.end else {
        return number;
    };
    let mut homes = allocation.homes_at(number);
    for (n, step) in block.steps.iter().enumerate() {
        let source = flow::copied(step).and_then(|source| homes.get(source.index()).copied());
        let [home, _] = allocation.homes_of(number, n);
        let Some(slot) = step.dst.and_then(|dst| homes.get_mut(dst.index())) else {
            return number;
        };
        if source != Some(home) {
            return number;
        }
        *slot = home;
    }
    to
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
