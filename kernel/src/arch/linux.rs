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
//! **One probe a core** (kretprobe): the variable of the core that a kprobe by BRK sets while its programs run (arch/breakpoint.rs) is
//! set as well while a program at a return runs; while it is set every other one is turned away.
//!
//! **One program a core** (kprobe_multi): a count a core of all programs that are active on it that way; any second one is turned away.
//!
//! Linux's functions of this kind are compiled without NOPs at their entries; these have them, and generated code enters behind them.
//! Linux is not built with checks of alignment and overflow; here counts wrap, and what a register or generated code names is made a
//! reference by [`at`].

use super::callee::StubData;
use super::cpu::{MAX_CPUS, PerCpu};
use super::mrs;
use super::trap::Frame;
use crate::context::{self, Context};
use crate::hook::Running;
use crate::task::Task;
use alloc::boxed::Box;
use alloc::sync::Arc;
use bpf_vm::attachment::Attachment;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence};
use trampoline::linux::caller::{DIRECT, OP_FUNCTION};
use trampoline::linux::filter::Filter;
use trampoline::linux::image::{RUN_COOKIE, RUN_OUTER};
use trampoline::registers;

/// An op's function: the traced function, where it returns to, the op, and the registers that the shared caller saved.
pub(crate) type OpFunction = extern "C" fn(u64, u64, *const Op, *const Saved);
/// A program: its context, and its data.
type Entry = extern "C" fn(*const u64, u64) -> u64;

/// What a pointer leads to.
///
/// # Safety
/// There is a `T` that lives for `'a`.
#[inline(always)]
#[expect(
    clippy::transmute_ptr_to_ref,
    reason = "`&*` is checked for alignment and null where debug assertions are on, on every hit"
)]
unsafe fn at<'a, T>(pointer: *const T) -> &'a T {
    // SAFETY: as this function asks for.
    unsafe { core::mem::transmute::<*const T, &'a T>(pointer) }
}

/// The current task.
#[inline(always)]
fn task() -> &'static Task {
    let task = core::ptr::with_exposed_provenance(mrs!("sp_el0") as usize);
    // SAFETY: SP_EL0 names the current task from boot on, and tasks are never freed.
    unsafe { at(task) }
}

/// This core's block.
#[inline(always)]
fn block() -> &'static PerCpu {
    let block = core::ptr::with_exposed_provenance(mrs!("tpidr_el1") as usize);
    // SAFETY: TPIDR_EL1 names this core's element of a static from boot on.
    unsafe { at(block) }
}

/// Of one a core, this core's.
#[inline(always)]
fn own<T>(all: &[T; MAX_CPUS]) -> &T {
    // Numbers of cores are below MAX_CPUS, which the compiler does not know.
    &all[block().index.load(Relaxed) % MAX_CPUS]
}

/// The context, by asking. Not for who may be moved to another core in the middle of it.
#[inline(always)]
fn level() -> u32 {
    let block = block();
    let context = if block.nmi.load(Relaxed) != 0 {
        Context::Nmi
    } else if block.hardirq.load(Relaxed) != 0 {
        Context::Hardirq
    } else if block.softirq_active.load(Relaxed) {
        Context::Softirq
    } else {
        Context::Task
    };
    context as u32
}

/// Adds to a count of the task's or the core's own. What interrupts it in between has put it back.
#[inline(always)]
fn add(count: &AtomicU32, by: u32) {
    count.store(count.load(Relaxed).wrapping_add(by), Relaxed);
}

/// One less.
const LESS: u32 = u32::MAX;

#[inline(always)]
fn preempt_disable() {
    add(&task().preempt, 1);
    compiler_fence(Ordering::SeqCst);
}

#[inline(always)]
fn preempt_enable() {
    compiler_fence(Ordering::SeqCst);
    add(&task().preempt, LESS);
}

#[inline(always)]
fn migrate_disable() {
    add(&task().migrate, 1);
    compiler_fence(Ordering::SeqCst);
}

#[inline(always)]
fn migrate_enable() {
    compiler_fence(Ordering::SeqCst);
    add(&task().migrate, LESS);
}

#[inline(always)]
fn rcu_read_lock() {
    add(&task().rcu_nesting, 1);
    compiler_fence(Ordering::SeqCst);
}

#[inline(always)]
fn rcu_read_unlock() {
    compiler_fence(Ordering::SeqCst);
    add(&task().rcu_nesting, LESS);
}

/// What the shared caller and the return trampoline save: `struct user_pt_regs`, and what comes behind it.
#[repr(C)]
pub(crate) struct Saved {
    x: [AtomicU64; 31],
    sp: AtomicU64,
    pc: AtomicU64,
    pstate: AtomicU64,
    /// Of the shared caller: where to go on instead of in the function.
    direct: AtomicU64,
}

const _: () = {
    assert!(core::mem::offset_of!(Saved, pc) as i64 == registers::PC);
    assert!(core::mem::offset_of!(Saved, direct) as i64 == DIRECT);
};

impl Saved {
    fn context(&self) -> *const u64 {
        core::ptr::from_ref(self).cast()
    }
}

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
    direct: AtomicU64,
    /// Of a BPF trampoline's op: what is turned away if the trampoline is.
    behind: AtomicPtr<Progs>,
    /// What it calls.
    program: Option<Called>,
    /// Of a tracer of returns: how many more may be under way.
    nodes: AtomicU32,
    most_nodes: u32,
    /// Of a kretprobe: the probed function, which is what the core's probe is while the program runs. Else 0.
    probed: u64,
    /// Taken off: returns that are under way run nothing any more.
    stopped: AtomicBool,
    /// Of an fprobe on a pattern: of each function, ascending, one that is in no list and calls the program for it.
    each: Box<[Op]>,
    /// What these tell the program.
    places: Box<[StubData]>,
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
            behind: AtomicPtr::new(core::ptr::null_mut()),
            program,
            nodes: AtomicU32::new(nodes),
            most_nodes: nodes,
            probed: 0,
            stopped: AtomicBool::new(false),
            each: Box::default(),
            places: Box::default(),
        }
    }

    /// As [`Op::new`], of an fprobe on a pattern, whose program is told which function it is: its data are [`StubData`].
    /// `functions` ascending; `cookies` and `nodes`: of each.
    pub(crate) fn on_each(
        function: u64,
        functions: &[u64],
        cookies: &[u64],
        program: Called,
        nodes: u32,
    ) -> Op {
        let place = |(function, cookie): (&u64, &u64)| StubData {
            attachment: Attachment {
                function: *function,
                cookie: *cookie,
                ..Attachment::NONE
            },
            data: program.data,
        };
        let places: Box<[_]> = functions.iter().zip(cookies).map(place).collect();
        let op = |place: &StubData| {
            let called = Called {
                address: program.address,
                data: core::ptr::from_ref(place).expose_provenance() as u64,
                running: program.running.clone(),
            };
            Op::new(0, Filter::new(&[]), Some(called), nodes)
        };
        Op {
            each: places.iter().map(op).collect(),
            places,
            ..Op::new(function, Filter::new(functions), Some(program), 0)
        }
    }

    /// Of an fprobe on a pattern: the function's own.
    fn of(&self, function: u64) -> Option<&Op> {
        let places = &self.places;
        let at = places.binary_search_by_key(&function, |place| place.attachment.function);
        self.each.get(at.ok()?)
    }

    /// A kretprobe of the function at this address, which a breakpoint leads to ([`kretprobe`]).
    pub(crate) fn kretprobe(probed: u64, program: Called, nodes: u32) -> Op {
        Op {
            probed,
            ..Op::new(0, Filter::new(&[]), Some(program), nodes)
        }
    }

    /// Whether it traces returns.
    pub(crate) fn returns(&self) -> bool {
        self.most_nodes != 0 || self.each.first().is_some_and(Op::returns)
    }

    /// Returns that are under way run nothing from now on.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.each.iter().for_each(Op::stop);
    }

    /// Whether no return is under way.
    pub(crate) fn at_rest(&self) -> bool {
        self.nodes.load(Acquire) == self.most_nodes && self.each.iter().all(Op::at_rest)
    }

    /// Its function's address, for its descriptor.
    pub(crate) fn function(&self) -> u64 {
        self.function
    }

    /// Of a BPF trampoline's op: says where the trampoline is, and its programs, which live until a tasks-RCU grace period after
    /// others were said.
    pub(crate) fn lead_to(&self, trampoline: u64, programs: &Progs) {
        let programs = core::ptr::from_ref(programs).cast_mut();
        self.behind.store(programs, Ordering::Release);
        self.direct.store(trampoline, Ordering::Release);
    }

    fn call(&self, context: *const u64) {
        if let Some(program) = &self.program {
            // SAFETY: `hook::linux` takes address and data from the Callee of a program, which `running` keeps alive.
            let entry = unsafe { core::mem::transmute::<usize, Entry>(program.address as usize) };
            entry(context, program.data);
        }
    }

    fn miss(&self) {
        let context = context::current() as usize;
        if let Some(program) = &self.program {
            program.running.state.miss(context);
        }
        // SAFETY: null, or as `lead_to` says; who is called by a site passes no quiescent state meanwhile.
        if let Some(Progs(progs)) = unsafe { self.behind.load(Acquire).as_ref() } {
            for prog in progs {
                prog.running.state.miss(context);
            }
        }
    }
}

/// The first op; the last registered is the first.
static LIST: AtomicPtr<Op> = AtomicPtr::new(core::ptr::null_mut());
/// What the shared caller without per-callsite ops calls: the only op, or the one that walks the list.
static CURRENT: AtomicPtr<Op> = AtomicPtr::new(core::ptr::null_mut());

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
    preempt_disable();
    let word = &task().trace_recursion;
    let held = word.load(Relaxed);
    let mut bit = 1 << first << level();
    if held & bit != 0 {
        bit = 1 << (first + TRANSITION);
        if held & bit != 0 {
            preempt_enable();
            return None;
        }
    }
    word.store(held | bit, Relaxed);
    compiler_fence(Ordering::SeqCst);
    Some(bit)
}

#[inline(always)]
fn give_bit(bit: u32) {
    compiler_fence(Ordering::SeqCst);
    let word = &task().trace_recursion;
    word.store(word.load(Relaxed) & !bit, Relaxed);
    preempt_enable();
}

/// Does nothing: where a callsite leads whose op is being taken off.
pub(crate) extern "C" fn nothing(_: u64, _: u64, _: *const Op, _: *const Saved) {}

/// Walks the list, and calls each op that traces this function.
pub(crate) extern "C" fn walk(function: u64, returns: u64, _: *const Op, saved: *const Saved) {
    let Some(bit) = take_bit(WALK) else {
        for_each_op(function, Op::miss);
        return;
    };
    for_each_op(function, |op| {
        // SAFETY: `Op::new` gets the address of an OpFunction behind its two NOPs.
        let call = unsafe { core::mem::transmute::<usize, OpFunction>(op.function as usize) };
        call(function, returns, op, saved);
    });
    give_bit(bit);
}

/// Goes over the ops that trace this function.
#[inline(always)]
fn for_each_op(function: u64, each: impl Fn(&Op)) {
    let mut next = LIST.load(Acquire);
    while !next.is_null() {
        // SAFETY: an op that is left out of the list lives until a tasks-RCU grace period later, and this task is in none meanwhile.
        let op = unsafe { at(next) };
        if op.filter.contains(function) {
            each(op);
        }
        next = op.next.load(Acquire);
    }
}

/// Op and registers, as the shared caller, or the walk, hands them on.
///
/// # Safety
/// They come from one of these two.
#[inline(always)]
unsafe fn handed<'a>(op: *const Op, saved: *const Saved) -> (&'a Op, &'a Saved) {
    // SAFETY: as `walk` says of ops in the list; a descriptor names one that lives until a grace period after the word before the
    // function has ceased to lead there.
    let op = unsafe { at(op) };
    // SAFETY: the shared caller's frame.
    (op, unsafe { at(saved) })
}

/// Calls a program, with the registers as its context.
pub(crate) extern "C" fn program(_: u64, _: u64, op: *const Op, saved: *const Saved) {
    // SAFETY: only the shared caller and the walk call it.
    let (op, saved) = unsafe { handed(op, saved) };
    match take_bit(OPS) {
        Some(bit) => {
            op.call(saved.context());
            give_bit(bit);
        }
        None => op.miss(),
    }
}

/// Has the shared caller go on in a BPF trampoline.
pub(crate) extern "C" fn direct(_: u64, _: u64, op: *const Op, saved: *const Saved) {
    // SAFETY: only the shared caller and the walk call it.
    let (op, saved) = unsafe { handed(op, saved) };
    saved.direct.store(op.direct.load(Acquire), Relaxed);
}

/// What kprobe_multi has in each core.
#[repr(align(64))]
struct Multi {
    active: AtomicU32,
    saved: Saved,
}

static MULTI: [Multi; MAX_CPUS] = [const {
    Multi {
        active: AtomicU32::new(0),
        saved: Saved {
            x: [const { AtomicU64::new(0) }; 31],
            sp: AtomicU64::new(0),
            pc: AtomicU64::new(0),
            pstate: AtomicU64::new(0),
            direct: AtomicU64::new(0),
        },
    }
}; MAX_CPUS];

/// Runs a program as kprobe_multi does, one a core. With a function, `saved` is what the shared caller saves, and copied to where the rest
/// is not someone else's stack. Preemption is off.
#[inline(always)]
fn run_multi(op: &Op, function: Option<u64>, saved: &Saved) {
    let core = own(&MULTI);
    let active = core.active.load(Relaxed);
    core.active.store(active.wrapping_add(1), Relaxed);
    compiler_fence(Ordering::SeqCst);
    if active == 0 {
        rcu_read_lock();
        let run = [const { AtomicU64::new(0) }; 2];
        set_run_context(&run);
        match function {
            Some(function) => {
                let copy = |to: &AtomicU64, from: &AtomicU64| to.store(from.load(Relaxed), Relaxed);
                for (to, from) in core.saved.x.iter().zip(&saved.x).take(9) {
                    copy(to, from);
                }
                copy(&core.saved.x[29], &saved.x[29]);
                copy(&core.saved.x[LINK], &saved.x[LINK]);
                copy(&core.saved.sp, &saved.sp);
                core.saved.pc.store(function, Relaxed);
                op.call(core.saved.context());
            }
            None => op.call(saved.context()),
        }
        reset_run_context(&run);
        rcu_read_unlock();
    } else {
        op.miss();
    }
    compiler_fence(Ordering::SeqCst);
    add(&core.active, LESS);
}

/// An fprobe with a program at the entry.
pub(crate) extern "C" fn fprobe_entry(function: u64, _: u64, op: *const Op, saved: *const Saved) {
    // SAFETY: only the shared caller and the walk call it.
    let (op, saved) = unsafe { handed(op, saved) };
    match take_bit(OPS) {
        Some(bit) => {
            run_multi(op, Some(function), saved);
            give_bit(bit);
        }
        None => op.miss(),
    }
}

/// As [`fprobe_entry`], on a pattern.
pub(crate) extern "C" fn fprobe_entry_each(
    function: u64,
    returns: u64,
    op: *const Op,
    saved: *const Saved,
) {
    // SAFETY: only the shared caller and the walk call it.
    let (all, _) = unsafe { handed(op, saved) };
    if let Some(op) = all.of(function) {
        fprobe_entry(function, returns, op, saved);
    }
}

/// Where the return trampoline is.
static LANDING: AtomicU64 = AtomicU64::new(0);

/// Says where the return trampoline is.
pub(crate) fn set_landing(address: u64) {
    LANDING.store(address, Ordering::Release);
}

/// x30's place in the registers.
const LINK: usize = 30;

/// An fprobe with a program at the exit: has the function return to the return trampoline, if there is a node left.
pub(crate) extern "C" fn fprobe_exit(_: u64, _: u64, op: *const Op, saved: *const Saved) {
    // SAFETY: only the shared caller and the walk call it.
    let (op, saved) = unsafe { handed(op, saved) };
    let Some(bit) = take_bit(OPS) else {
        op.miss();
        return;
    };
    let (returns, frame) = (saved.x[LINK].load(Relaxed), saved.sp.load(Relaxed));
    match hook_return(op, returns, frame) {
        Some(landing) => saved.x[LINK].store(landing, Relaxed),
        None => op.miss(),
    }
    give_bit(bit);
}

/// As [`fprobe_exit`], on a pattern.
pub(crate) extern "C" fn fprobe_exit_each(
    function: u64,
    returns: u64,
    op: *const Op,
    saved: *const Saved,
) {
    // SAFETY: only the shared caller and the walk call it.
    let (all, _) = unsafe { handed(op, saved) };
    if let Some(op) = all.of(function) {
        fprobe_exit(function, returns, op, saved);
    }
}

/// A kretprobe at its function's entry: has the function return to the return trampoline, if there is a node left.
#[inline(always)]
pub(super) fn kretprobe(op: &Op, frame: &mut Frame) {
    match hook_return(op, frame.x[LINK], frame.sp) {
        Some(landing) => frame.x[LINK] = landing,
        None => op.miss(),
    }
}

/// Takes a node and pushes it; where the function is to return to, if there is one left in the op and in the task.
#[inline(always)]
fn hook_return(op: &Op, returns: u64, frame: u64) -> Option<u64> {
    if op.stopped.load(Acquire) {
        return None;
    }
    let take = |nodes: u32| nodes.checked_sub(1);
    op.nodes.fetch_update(Acquire, Relaxed, take).ok()?;
    let landing = LANDING.load(Relaxed);
    let cookie = core::ptr::from_ref(op).expose_provenance() as u64;
    let pushed = task().shadow_push([returns, frame, landing, cookie]);
    if !pushed {
        op.nodes.fetch_add(1, Ordering::Release);
    }
    pushed.then_some(landing)
}

/// Runs a kretprobe's program as kprobes' are run, one a core. Preemption is off.
#[inline(always)]
fn run_kretprobe(op: &Op, saved: &Saved) {
    let active = &block().breakpoint;
    if active.load(Relaxed) == 0 {
        active.store(op.probed, Relaxed);
        compiler_fence(Ordering::SeqCst);
        op.call(saved.context());
        compiler_fence(Ordering::SeqCst);
        active.store(0, Relaxed);
    } else {
        op.miss();
    }
}

/// What the return trampoline calls: runs the programs of all fprobes that replaced this return address, the last one first, and says
/// where the function would have returned to.
pub(crate) extern "C" fn returned(saved: *const Saved) -> u64 {
    // SAFETY: the return trampoline's frame; its registers, that is, which is all that is looked at.
    let saved = unsafe { at(saved) };
    let task = task();
    let landing = LANDING.load(Relaxed);
    loop {
        let Some(entry) = task.shadow().next() else {
            lost(landing);
        };
        let [returns, _, _, cookie] = entry.words();
        // SAFETY: `hook_return` pushed it; an op lives as long as it has nodes under way.
        let op: &Op = unsafe { at(core::ptr::with_exposed_provenance(cookie as usize)) };
        saved.pc.store(returns, Relaxed);
        // With preemption off, so that no task dies between the two ([`abandon`]).
        let give_node = || {
            task.shadow_pop();
            op.nodes.fetch_add(1, Ordering::Release);
        };
        let stopped = op.stopped.load(Acquire);
        if stopped || op.probed != 0 {
            preempt_disable();
            if !stopped {
                run_kretprobe(op, saved);
            }
            give_node();
            preempt_enable();
        } else if let Some(bit) = take_bit(OPS) {
            run_multi(op, None, saved);
            give_node();
            give_bit(bit);
        } else {
            op.miss();
            give_node(); // who holds the bits has preemption off
        }
        if returns != landing {
            return returns;
        }
    }
}

/// The current task ends where it is, and no function of it returns any more: gives back the nodes that it has.
pub(crate) fn abandon() {
    let landing = LANDING.load(Relaxed);
    for entry in task().shadow() {
        let [_, _, there, cookie] = entry.words();
        if there == landing {
            // SAFETY: as `returned` says.
            let op: &Op = unsafe { at(core::ptr::with_exposed_provenance(cookie as usize)) };
            op.nodes.fetch_add(1, Ordering::Release);
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

    /// Raises the context's byte by `by`; whether the word then says that nothing else is active on this core.
    #[inline(always)]
    fn raise(&self, by: u32) -> bool {
        preempt_disable();
        let bit = 8 * level();
        let active = own(&self.active);
        add(active, by << bit);
        let alone = active.load(Relaxed) == 1 << bit;
        preempt_enable();
        alone
    }
}

/// The programs of a BPF trampoline.
pub(crate) struct Progs(pub(crate) Box<[Arc<Prog>]>);

/// A run context: what the outer one is, and the cookie.
pub(crate) type Run = [AtomicU64; 2];

const OUTER: usize = (RUN_OUTER / 8) as usize;

/// Makes `run` the task's run context, and keeps the outer one in it.
#[inline(always)]
fn set_run_context(run: &Run) {
    let current = &task().run_context;
    run[OUTER].store(current.load(Relaxed), Relaxed);
    current.store(core::ptr::from_ref(run).expose_provenance() as u64, Relaxed);
}

/// Makes the outer run context the task's again.
#[inline(always)]
fn reset_run_context(run: &Run) {
    task().run_context.store(run[OUTER].load(Relaxed), Relaxed);
}

const _: () = assert!(
    RUN_OUTER == 0 && RUN_COOKIE == 8,
    "a run context is two words"
);

/// Runs, and no time is taken.
const RUN: u64 = 1;

/// What a trampoline hands on: one of its programs, and a run context in its frame.
///
/// # Safety
/// They come from a trampoline.
#[inline(always)]
unsafe fn around<'a>(prog: *const Prog, run: *const Run) -> (&'a Prog, &'a Run) {
    // SAFETY: `hook::linux` makes a Prog for each program of a trampoline, and the trampoline keeps it alive.
    let prog = unsafe { at(prog) };
    // SAFETY: it lies in the trampoline's frame.
    (prog, unsafe { at(run) })
}

#[inline(always)]
fn admitted(prog: &Prog) -> u64 {
    if prog.raise(1) {
        return RUN;
    }
    prog.running.state.miss(context::current() as usize);
    0
}

/// The two functions around a program: before it, and behind it whether it ran or not.
macro_rules! flavour {
    ($enter:ident, $exit:ident, $what:literal, $lock:expr, $unlock:expr, $admit:expr, $release:expr) => {
        #[doc = concat!("Before ", $what, ".")]
        pub(crate) extern "C" fn $enter(prog: *const Prog, run: *const Run) -> u64 {
            // SAFETY: only trampolines call it.
            let (prog, run) = unsafe { around(prog, run) };
            $lock();
            migrate_disable();
            set_run_context(run);
            $admit(prog)
        }

        #[doc = concat!("Behind ", $what, ", whether it ran or not.")]
        pub(crate) extern "C" fn $exit(prog: *const Prog, _: u64, run: *const Run) {
            // SAFETY: only trampolines call it.
            let (prog, run) = unsafe { around(prog, run) };
            reset_run_context(run);
            $release(prog);
            migrate_enable();
            $unlock();
        }
    };
}

#[inline(always)]
fn trace_lock() {
    task().trace_enter();
}

#[inline(always)]
fn trace_unlock() {
    task().trace_leave();
}

#[inline(always)]
fn released(prog: &Prog) {
    prog.raise(LESS);
}

flavour! { enter_recur, exit_recur, "a program, with recursion protection",
rcu_read_lock, rcu_read_unlock, admitted, released }
flavour! { enter, exit, "a program, without recursion protection",
rcu_read_lock, rcu_read_unlock, |_| RUN, |_| () }
flavour! { enter_sleepable_recur, exit_sleepable_recur, "a sleepable program, with recursion protection",
trace_lock, trace_unlock, admitted, released }
flavour! { enter_sleepable, exit_sleepable, "a sleepable program, without recursion protection",
trace_lock, trace_unlock, |_| RUN, |_| () }

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
        own(&self.0).fetch_add(by, Ordering::AcqRel);
        rcu_read_unlock();
    }
}

/// A task comes into a trampoline that calls its function.
pub(crate) extern "C" fn came(of: *const Users) {
    // SAFETY: the trampoline, which is alive, keeps it.
    unsafe { at(of) }.add(1);
}

/// A task leaves a trampoline that calls its function.
pub(crate) extern "C" fn left(of: *const Users) {
    // SAFETY: the trampoline, which is alive, keeps it.
    unsafe { at(of) }.add(u64::MAX);
}
