// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the Linux way calls on a hit: ops and the list of them, fprobe, and what a BPF trampoline calls around each program.
//!
//! **Per-task bits** (ftrace): a word in the task has a bit for each context, twice: for ops, and for the walk of the list. The context is
//! found out by asking. A hit whose bit is set takes the *transition bit* instead, for the asking may have been too early: an
//! exception has begun and its count has not been raised yet; so a recursion is let in once more. Preemption is off while a bit is held.
//!
//! **Active counters** (BPF): a program has four bytes a core, one a context. It runs if, once its own context's byte is raised, this is
//! the only one and is 1: so also a hit in another context than the one that is active there is turned away, and counted.
//!
//! **One program a core** (kprobe_multi): a count a core of all programs that are active on it that way; any second one is turned away.
//!
//! Linux's functions of this kind are compiled without NOPs at their entries; these have them, and generated code enters behind them.

use super::cpu::{MAX_CPUS, this_cpu};
use super::switch;
use crate::context;
use crate::hook::Running;
use crate::sched;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence};
use trampoline::linux::caller::{DIRECT, OP_FUNCTION};
use trampoline::linux::filter::Filter;
use trampoline::linux::image::{RUN_COOKIE, RUN_OUTER};
use trampoline::registers;

/// An op's function: the traced function, where it returns to, the op, and the registers that the shared caller saved.
pub(crate) type OpFunction = extern "C" fn(u64, u64, *const Op, *mut u64);
/// A program: its context, and its data.
type Entry = extern "C" fn(*const u64, u64) -> u64;

/// A tracer, with the functions that it traces. Does not change but for its place in the list and where it leads.
#[repr(C)]
pub(crate) struct Op {
    /// Address of its [`OpFunction`], behind the site; the shared caller reads it.
    function: u64,
    /// The next one in the list.
    next: AtomicPtr<Op>,
    /// What it traces.
    pub(crate) filter: Filter,
    /// Of a BPF trampoline's op: the trampoline's address.
    pub(crate) direct: AtomicU64,
    /// What it calls.
    program: Option<Called>,
    /// Of a tracer of returns: how many more may be under way.
    nodes: AtomicU32,
    most_nodes: u32,
}

const _: () = assert!(
    core::mem::offset_of!(Op, function) as i64 == OP_FUNCTION,
    "the shared caller reads it there"
);

/// A program that an op calls.
pub(crate) struct Called {
    /// Its address: an [`Entry`].
    pub address: u64,
    /// Its data.
    pub data: u64,
    /// What is known of it.
    pub running: Arc<Running>,
}

impl Op {
    /// An op that is in no list. `nodes`: how many returns may be under way.
    pub(crate) fn new(function: u64, filter: Filter, program: Option<Called>, nodes: u32) -> Op {
        Op {
            function,
            next: AtomicPtr::new(core::ptr::null_mut()),
            filter,
            direct: AtomicU64::new(0),
            program,
            nodes: AtomicU32::new(nodes),
            most_nodes: nodes,
        }
    }

    /// Whether it traces returns.
    pub(crate) fn returns(&self) -> bool {
        self.most_nodes != 0
    }

    /// Whether no return is under way.
    pub(crate) fn at_rest(&self) -> bool {
        self.nodes.load(Acquire) == self.most_nodes
    }

    /// Its function's address, for its descriptor.
    pub(crate) fn function(&self) -> u64 {
        self.function
    }

    fn call(&self, context: *const u64) {
        if let Some(program) = &self.program {
            // SAFETY: `hook::linux` takes address and data from the Callee of a program, which `running` keeps alive.
            let entry = unsafe { core::mem::transmute::<usize, Entry>(program.address as usize) };
            entry(context, program.data);
        }
    }

    fn miss(&self) {
        if let Some(program) = &self.program {
            program.running.state.miss(context::current() as usize);
        }
    }
}

/// The first op; the last registered is the first.
static LIST: AtomicPtr<Op> = AtomicPtr::new(core::ptr::null_mut());
/// What the shared caller without per-callsite ops calls: the only op, or the one that walks the list.
static CURRENT: AtomicPtr<Op> = AtomicPtr::new(core::ptr::null_mut());
/// Hits that the walk of the list turned away, whatever ops would have had them.
static LIST_MISSES: AtomicU64 = AtomicU64::new(0);

/// The address of the pointer to the current op.
pub(crate) fn current_address() -> u64 {
    core::ptr::from_ref(&CURRENT).addr() as u64
}

/// Makes `ops` the list, the first first, and `current` what is called. Each lives until a tasks-RCU grace period after it was left out.
pub(crate) fn set_list<'a>(ops: impl DoubleEndedIterator<Item = &'a Arc<Op>>, current: &Arc<Op>) {
    let mut next = core::ptr::null_mut();
    for op in ops.rev() {
        // Whoever stands on an op that is left out still finds the rest behind it: only the link of its predecessor changes.
        op.next.store(next, Ordering::Release);
        next = Arc::as_ptr(op).cast_mut();
    }
    LIST.store(next, Ordering::Release);
    CURRENT.store(Arc::as_ptr(current).cast_mut(), Ordering::Release);
}

/// Hits that the walk of the list turned away.
pub(crate) fn list_misses() -> u64 {
    LIST_MISSES.load(Relaxed)
}

/// The first of the bits of ops.
const OPS: u32 = 0;
/// The first of the bits of the walk.
const WALK: u32 = 5;
/// Behind those of the contexts.
const TRANSITION: u32 = 4;

/// Takes the context's bit of those from `first` on, or the transition bit; preemption is off if it got one.
#[inline(always)]
fn take_bit(first: u32) -> Option<u32> {
    // Before the asking: what says the context lies in the core, and the task could be moved in the middle of it.
    sched::preempt_disable();
    let word = &switch::current().trace_recursion;
    let held = word.load(Relaxed);
    let mut bit = first + context::current() as u32;
    if held & 1 << bit != 0 {
        bit = first + TRANSITION;
        if held & 1 << bit != 0 {
            sched::preempt_enable();
            return None;
        }
    }
    word.store(held | 1 << bit, Relaxed);
    compiler_fence(Ordering::SeqCst);
    Some(bit)
}

#[inline(always)]
fn give_bit(bit: u32) {
    compiler_fence(Ordering::SeqCst);
    let word = &switch::current().trace_recursion;
    word.store(word.load(Relaxed) & !(1 << bit), Relaxed);
    sched::preempt_enable();
}

/// Does nothing: where a callsite leads whose op is being taken off.
pub(crate) extern "C" fn nothing(_: u64, _: u64, _: *const Op, _: *mut u64) {}

/// Walks the list, and calls each op that traces this function.
pub(crate) extern "C" fn walk(function: u64, returns: u64, _: *const Op, registers: *mut u64) {
    let Some(bit) = take_bit(WALK) else {
        LIST_MISSES.fetch_add(1, Relaxed);
        return;
    };
    let mut at = LIST.load(Acquire);
    // SAFETY: an op that is left out of the list lives until a tasks-RCU grace period later, and this task is in none meanwhile.
    while let Some(op) = unsafe { at.as_ref() } {
        if op.filter.contains(function) {
            // SAFETY: `Op::new` gets the address of an OpFunction behind its two NOPs.
            let call = unsafe { core::mem::transmute::<usize, OpFunction>(op.function as usize) };
            call(function, returns, op, registers);
        }
        at = op.next.load(Acquire);
    }
    give_bit(bit);
}

/// The op that the shared caller, or the walk, calls.
///
/// # Safety
/// `op` is what one of these two handed on.
unsafe fn op<'a>(op: *const Op) -> &'a Op {
    // SAFETY: as `walk` says of ops in the list; a descriptor names one that lives until a grace period after the word before the
    // function has ceased to lead there.
    unsafe { &*op }
}

/// Calls a program, with the registers as its context.
pub(crate) extern "C" fn program(_: u64, _: u64, this: *const Op, registers: *mut u64) {
    // SAFETY: only the shared caller and the walk call it.
    let op = unsafe { op(this) };
    match take_bit(OPS) {
        Some(bit) => {
            op.call(registers);
            give_bit(bit);
        }
        None => op.miss(),
    }
}

/// Has the shared caller go on in a BPF trampoline.
pub(crate) extern "C" fn direct(_: u64, _: u64, this: *const Op, registers: *mut u64) {
    // SAFETY: only the shared caller and the walk call it.
    let op = unsafe { op(this) };
    let to = op.direct.load(Acquire);
    // SAFETY: the shared caller's frame has this word behind the registers.
    unsafe { registers.byte_add(DIRECT as usize).write(to) };
}

/// What kprobe_multi has in each core.
#[repr(align(64))]
struct Multi {
    active: AtomicU32,
    registers: [AtomicU64; registers::WORDS],
}

static MULTI: [Multi; MAX_CPUS] = [const {
    Multi {
        active: AtomicU32::new(0),
        registers: [const { AtomicU64::new(0) }; registers::WORDS],
    }
}; MAX_CPUS];

/// This core's. Preemption is off.
fn multi() -> Option<&'static Multi> {
    MULTI.get(this_cpu().index.load(Relaxed))
}

/// Runs a program as kprobe_multi does, one a core. `partial`: the registers are those that the shared caller saves, and are copied to
/// where the rest is not someone else's stack.
#[inline(always)]
fn run_multi(op: &Op, function: u64, registers: *const u64, partial: bool) {
    let Some(core) = multi() else { return };
    let active = core.active.load(Relaxed);
    core.active.store(active + 1, Relaxed);
    compiler_fence(Ordering::SeqCst);
    if active == 0 {
        rcu_read_lock();
        let mut run = [0; 2];
        set_run_context(&raw mut run);
        if partial {
            const SAVED: [usize; 4] = [29, 30, 31, 32];
            for at in (0..=8).chain(SAVED) {
                // SAFETY: the shared caller saved these.
                let value = unsafe { registers.add(at).read() };
                if let Some(to) = core.registers.get(at) {
                    to.store(value, Relaxed);
                }
            }
            if let Some(pc) = core.registers.get((registers::PC / 8) as usize) {
                pc.store(function, Relaxed);
            }
            op.call(core.registers.as_ptr().cast());
        } else {
            op.call(registers);
        }
        reset_run_context(&raw const run);
        rcu_read_unlock();
    } else {
        op.miss();
    }
    compiler_fence(Ordering::SeqCst);
    core.active.store(active, Relaxed);
}

/// An fprobe with a program at the entry.
pub(crate) extern "C" fn fprobe_entry(function: u64, _: u64, this: *const Op, registers: *mut u64) {
    // SAFETY: only the shared caller and the walk call it.
    let op = unsafe { op(this) };
    match take_bit(OPS) {
        Some(bit) => {
            run_multi(op, function, registers, true);
            give_bit(bit);
        }
        None => op.miss(),
    }
}

/// Where the return trampoline is.
static LANDING: AtomicU64 = AtomicU64::new(0);

/// Says where the return trampoline is.
pub(crate) fn set_landing(address: u64) {
    LANDING.store(address, Ordering::Release);
}

/// Offset of x30 in the registers, in words.
const LINK: usize = 30;
/// Offset of sp in the registers, in words.
const STACK: usize = 31;

/// An fprobe with a program at the exit: has the function return to the return trampoline, if there is a node left.
pub(crate) extern "C" fn fprobe_exit(_: u64, _: u64, this: *const Op, registers: *mut u64) {
    // SAFETY: only the shared caller and the walk call it.
    let op = unsafe { op(this) };
    let Some(bit) = take_bit(OPS) else {
        op.miss();
        return;
    };
    if !hook_return(op, registers) {
        op.miss();
    }
    give_bit(bit);
}

/// Takes a node and pushes it; false if there is none left, in the op or in the task.
#[inline(always)]
fn hook_return(op: &Op, registers: *mut u64) -> bool {
    let take = |nodes: u32| nodes.checked_sub(1);
    if op.nodes.fetch_update(Acquire, Relaxed, take).is_err() {
        return false;
    }
    // SAFETY: the shared caller's frame.
    let link = unsafe { registers.add(LINK) };
    // SAFETY: as above.
    let returns = unsafe { link.read() };
    // SAFETY: as above.
    let frame = unsafe { registers.add(STACK).read() };
    let landing = LANDING.load(Relaxed);
    let cookie = core::ptr::from_ref(op).expose_provenance() as u64;
    let pushed = switch::current().shadow_push([returns, frame, landing, cookie]);
    if pushed {
        // SAFETY: as above.
        unsafe { link.write(landing) };
    } else {
        op.nodes.fetch_add(1, Ordering::Release);
    }
    pushed
}

/// What the return trampoline calls: runs the programs of all fprobes that replaced this return address, the last one first, and says
/// where the function would have returned to.
pub(crate) extern "C" fn returned(registers: *mut u64) -> u64 {
    let task = switch::current();
    let landing = LANDING.load(Relaxed);
    loop {
        let Some(entry) = task.shadow().next() else {
            // The entry is there: its push put the landing where the function returned to.
            lost(landing);
        };
        let [returns, _, _, cookie] = entry.words();
        // SAFETY: `hook_return` pushed it; an op lives as long as it has nodes under way.
        let op = unsafe { &*core::ptr::with_exposed_provenance::<Op>(cookie as usize) };
        // SAFETY: the return trampoline's frame: where a return leads is all that is known of the PC.
        unsafe { registers.add((registers::PC / 8) as usize).write(returns) };
        match take_bit(OPS) {
            Some(bit) => {
                run_multi(op, 0, registers, false);
                give_bit(bit);
            }
            None => op.miss(),
        }
        task.shadow_pop();
        op.nodes.fetch_add(1, Ordering::Release);
        if returns != landing {
            return returns;
        }
    }
}

/// A function returned to the return trampoline, and nobody knows where to.
#[cold]
fn lost(landing: u64) -> ! {
    panic!(
        "a function returned to {landing:#x} and the task's shadow stack is empty: its return address is lost"
    )
}

/// A program of a BPF trampoline: its active counters, a word a core with a byte a context.
#[repr(C)]
pub(crate) struct Prog {
    active: [AtomicU32; MAX_CPUS],
    /// What is known of it.
    pub(crate) running: Arc<Running>,
}

impl Prog {
    /// A program that is active nowhere.
    pub(crate) fn new(running: Arc<Running>) -> Prog {
        Prog {
            active: [const { AtomicU32::new(0) }; MAX_CPUS],
            running,
        }
    }

    /// Raises the context's byte by `by` (or lowers it); whether the word then says that nothing else is active on this core.
    #[inline(always)]
    fn raise(&self, by: u32) -> bool {
        sched::preempt_disable();
        let bit = 8 * context::current() as u32;
        let index = this_cpu().index.load(Relaxed);
        let alone = self.active.get(index).is_some_and(|active| {
            let word = active.load(Relaxed).wrapping_add(by << bit);
            active.store(word, Relaxed);
            word == 1 << bit
        });
        sched::preempt_enable();
        alone
    }
}

#[inline(always)]
fn rcu_read_lock() {
    let nesting = &switch::current().rcu_nesting;
    nesting.store(nesting.load(Relaxed) + 1, Relaxed);
    compiler_fence(Ordering::SeqCst);
}

#[inline(always)]
fn rcu_read_unlock() {
    compiler_fence(Ordering::SeqCst);
    let nesting = &switch::current().rcu_nesting;
    nesting.store(nesting.load(Relaxed) - 1, Relaxed);
}

/// Makes `run` the task's run context, and keeps the outer one in it.
#[inline(always)]
fn set_run_context(run: *mut [u64; 2]) {
    let current = &switch::current().run_context;
    // SAFETY: a run context in the frame of the trampoline, or function, that calls.
    unsafe {
        run.cast::<u64>()
            .byte_add(RUN_OUTER as usize)
            .write(current.load(Relaxed))
    };
    current.store(run.expose_provenance() as u64, Relaxed);
}

/// Makes the outer run context the task's again.
#[inline(always)]
fn reset_run_context(run: *const [u64; 2]) {
    // SAFETY: as `set_run_context`.
    let outer = unsafe { run.cast::<u64>().byte_add(RUN_OUTER as usize).read() };
    switch::current().run_context.store(outer, Relaxed);
}

const _: () = assert!(
    RUN_OUTER == 0 && RUN_COOKIE == 8,
    "a run context is two words"
);

/// Runs, and no time is taken.
const RUN: u64 = 1;

/// What a trampoline hands to the functions around a program.
type Run = *mut [u64; 2];

/// A program of a trampoline.
///
/// # Safety
/// `of` is the state that a trampoline has for one of its programs.
unsafe fn prog<'a>(of: *const Prog) -> &'a Prog {
    // SAFETY: `hook::linux` makes a Prog for each program of a trampoline, and the trampoline keeps it alive.
    unsafe { &*of }
}

#[inline(always)]
fn admitted(prog: &Prog) -> u64 {
    if prog.raise(1) {
        return RUN;
    }
    prog.running.state.miss(context::current() as usize);
    0
}

/// Before a program, with recursion protection.
pub(crate) extern "C" fn enter_recur(of: *const Prog, run: Run) -> u64 {
    rcu_read_lock();
    sched::migrate_disable();
    set_run_context(run);
    // SAFETY: only trampolines call it.
    admitted(unsafe { prog(of) })
}

/// Behind a program, whether it ran or not, with recursion protection.
pub(crate) extern "C" fn exit_recur(of: *const Prog, _: u64, run: Run) {
    reset_run_context(run);
    // SAFETY: only trampolines call it.
    unsafe { prog(of) }.raise(u32::MAX);
    sched::migrate_enable();
    rcu_read_unlock();
}

/// Before a program, without recursion protection.
pub(crate) extern "C" fn enter(_: *const Prog, run: Run) -> u64 {
    rcu_read_lock();
    sched::migrate_disable();
    set_run_context(run);
    RUN
}

/// Behind a program, without recursion protection.
pub(crate) extern "C" fn exit(_: *const Prog, _: u64, run: Run) {
    reset_run_context(run);
    sched::migrate_enable();
    rcu_read_unlock();
}

/// Before a sleepable program, with recursion protection.
pub(crate) extern "C" fn enter_sleepable_recur(of: *const Prog, run: Run) -> u64 {
    switch::current().trace_enter();
    sched::migrate_disable();
    set_run_context(run);
    // SAFETY: only trampolines call it.
    admitted(unsafe { prog(of) })
}

/// Behind a sleepable program, with recursion protection.
pub(crate) extern "C" fn exit_sleepable_recur(of: *const Prog, _: u64, run: Run) {
    reset_run_context(run);
    // SAFETY: only trampolines call it.
    unsafe { prog(of) }.raise(u32::MAX);
    sched::migrate_enable();
    switch::current().trace_leave();
}

/// Before a sleepable program, without recursion protection.
pub(crate) extern "C" fn enter_sleepable(_: *const Prog, run: Run) -> u64 {
    switch::current().trace_enter();
    sched::migrate_disable();
    set_run_context(run);
    RUN
}

/// Behind a sleepable program, without recursion protection.
pub(crate) extern "C" fn exit_sleepable(_: *const Prog, _: u64, run: Run) {
    reset_run_context(run);
    sched::migrate_enable();
    switch::current().trace_leave();
}

/// How many tasks are inside a trampoline that calls its function: those that came less those that left, by the core they did it on.
pub(crate) struct Users([AtomicU64; MAX_CPUS]);

impl Users {
    /// Nobody is inside.
    pub(crate) const fn new() -> Users {
        Users([const { AtomicU64::new(0) }; MAX_CPUS])
    }

    /// Whether anybody is inside, of those that came before a tasks-RCU grace period.
    pub(crate) fn any(&self) -> bool {
        let sum = self.0.iter().map(|count| count.load(Acquire));
        sum.fold(0, u64::wrapping_add) != 0
    }

    #[inline(always)]
    fn add(&self, by: u64) {
        rcu_read_lock();
        // On whatever core: the sum is what counts, and the addition is atomic.
        if let Some(count) = self.0.get(this_cpu().index.load(Relaxed)) {
            count.fetch_add(by, Ordering::AcqRel);
        }
        rcu_read_unlock();
    }
}

/// A task comes into a trampoline that calls its function.
pub(crate) extern "C" fn came(of: *const Users) {
    // SAFETY: the trampoline, which is alive, keeps it.
    unsafe { &*of }.add(1);
}

/// A task leaves a trampoline that calls its function.
pub(crate) extern "C" fn left(of: *const Users) {
    // SAFETY: the trampoline, which is alive, keeps it.
    unsafe { &*of }.add(u64::MAX);
}
