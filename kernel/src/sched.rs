// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel threads: preemptible, migrating, one queue for all cores.
//!
//! Tasks are never freed, only used again: a `&'static Task` is always a task, though maybe not the one it was. The queue's
//! lock is held across a switch ([`HandoffLock`]), so a task is on the queue only when its registers are saved.
//!
//! `preempt_disable` and `migrate_disable` are counters of the task, reached by SP_EL0: no lock, right on every core.

use crate::arch::cpu::{self, MAX_CPUS, per_cpu, this_cpu};
use crate::arch::lock::SpinLock;
use crate::arch::smp::{self, Ipi};
use crate::arch::switch::{self, HandoffLock, current};
use crate::arch::{barrier, irq, timer};
use crate::mm::layout;
use crate::mm::stack::Stack;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Where a task is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum State {
    /// On the queue or on a core.
    Runnable = 0,
    /// Waiting to be woken; of an idle task: off its core, and quiescent there.
    Blocked = 1,
    /// Over; its stack may be used again.
    Dead = 2,
    /// Being made: no wake-up, meant for the task that it was, may start it.
    New = 3,
}

/// A kernel thread.
#[repr(C)]
pub(crate) struct Task {
    /// Heads the list of programs active in the present context (DESIGN 6); vectors.s reads it at offset 0.
    pub word: AtomicU64,
    /// Saved stack pointer while it does not run.
    pub sp: AtomicUsize,
    preempt: AtomicU32,
    migrate: AtomicU32,
    state: AtomicU32,
    /// A wake-up came while it was still deciding to block.
    woken: AtomicBool,
    idle: AtomicBool,
    /// An idle task takes the interrupt that ended its sleep: in code without a site, so in no trampoline.
    resting: AtomicBool,
    /// Times it gave up its core of its own will: quiescent states for tasks RCU.
    pub voluntary: AtomicU64,
    /// Core it runs or last ran on.
    core: AtomicUsize,
    /// Cores it may run on, a bit each.
    affinity: AtomicU64,
    /// It was preempted inside the executable pool and has to go on where it is.
    in_pool: AtomicBool,
    /// Wake-up time in counter ticks, 0 for none.
    wake_at: AtomicU64,
    id: AtomicU64,
    stack: SpinLock<Option<Stack>>,
    job: SpinLock<Option<Job>>,
    name: SpinLock<heapless::String<32>>,
}

type Job = Box<dyn FnOnce() + Send>;

const _: () = assert!(core::mem::offset_of!(Task, word) == 0);

impl Task {
    /// Where its number lies, for compiled programs: bytes from its address.
    pub(crate) const ID_OFFSET: u32 = core::mem::offset_of!(Task, id) as u32;

    /// The task that boot code runs in.
    pub(crate) const fn boot() -> Task {
        Task {
            word: AtomicU64::new(0),
            sp: AtomicUsize::new(0),
            preempt: AtomicU32::new(1),
            migrate: AtomicU32::new(0),
            state: AtomicU32::new(State::Runnable as u32),
            woken: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            voluntary: AtomicU64::new(0),
            core: AtomicUsize::new(0),
            affinity: AtomicU64::new(u64::MAX),
            in_pool: AtomicBool::new(false),
            wake_at: AtomicU64::new(0),
            id: AtomicU64::new(0),
            stack: SpinLock::new(None),
            job: SpinLock::new(None),
            name: SpinLock::new(heapless::String::new()),
        }
    }

    /// What it was spawned as; "boot" before there are tasks.
    pub(crate) fn name(&self) -> heapless::String<32> {
        match self.name.try_lock() {
            Some(name) if !name.is_empty() => name.clone(),
            _ => heapless::String::try_from("boot").unwrap_or_default(),
        }
    }

    /// Number of this life.
    pub(crate) fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Runnable,
            1 => State::Blocked,
            2 => State::Dead,
            _ => State::New,
        }
    }

    /// The core it runs or last ran on.
    pub(crate) fn core(&self) -> usize {
        self.core.load(Ordering::Relaxed)
    }

    /// Whether it is a core's idle task.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// Whether another task may take its core now.
    pub(crate) fn preemptible(&self) -> bool {
        self.preempt.load(Ordering::Relaxed) == 0
    }

    /// One past its stack.
    pub(crate) fn stack_top(&self) -> Option<usize> {
        self.stack.lock().as_ref().map(Stack::top)
    }

    /// Most bytes of stack it ever used.
    pub(crate) fn stack_used(&self) -> usize {
        self.stack.lock().as_ref().map_or(0, Stack::high_water)
    }

    fn may_run_on(&self, core: usize) -> bool {
        let here = self.core.load(Ordering::Relaxed) == core;
        let bound =
            self.migrate.load(Ordering::Relaxed) != 0 || self.in_pool.load(Ordering::Relaxed);
        self.affinity.load(Ordering::Relaxed) >> core & 1 != 0 && (here || !bound)
    }
}

struct Queue {
    runnable: VecDeque<&'static Task>,
    /// All tasks that ever were, idle ones too.
    all: Vec<&'static Task>,
    idle_cores: u64,
    next_id: u64,
}

static QUEUE: HandoffLock<Queue> = HandoffLock::new(Queue {
    runnable: VecDeque::new(),
    all: Vec::new(),
    idle_cores: 0,
    next_id: 1,
});

/// A task, its stack and its place in the lists; `None` when memory is used up.
fn new_task(name: &str, job: Option<Job>, idle_on: Option<usize>) -> Option<&'static Task> {
    let free = QUEUE.with(|q| {
        let dead = |t: &&&'static Task| t.state() == State::Dead && !core::ptr::eq(**t, current());
        let task = q.all.iter().find(dead).copied();
        if let Some(task) = task {
            task.state.store(State::New as u32, Ordering::Relaxed); // taken
        }
        task
    });
    let task = match free {
        Some(task) => task,
        None => {
            let task: &'static Task = Box::leak(Box::new(Task::boot()));
            *task.stack.lock() = Some(Stack::new()?);
            task.state.store(State::New as u32, Ordering::Relaxed);
            QUEUE.with(|q| {
                q.all.push(task);
                let count = q.all.len();
                q.runnable.reserve(count); // so that a wake-up never allocates
            });
            task
        }
    };
    let mut short = heapless::String::new();
    for c in name.chars() {
        if short.push(c).is_err() {
            break;
        }
    }
    *task.name.lock() = short;
    *task.job.lock() = job;
    task.word.store(0, Ordering::Relaxed);
    task.preempt.store(0, Ordering::Relaxed);
    task.migrate.store(0, Ordering::Relaxed);
    task.woken.store(false, Ordering::Relaxed);
    task.in_pool.store(false, Ordering::Relaxed);
    task.wake_at.store(0, Ordering::Relaxed);
    task.affinity.store(
        idle_on.map_or(u64::MAX, |core| 1 << core),
        Ordering::Relaxed,
    );
    task.core.store(idle_on.unwrap_or(0), Ordering::Relaxed);
    task.idle.store(idle_on.is_some(), Ordering::Relaxed);
    let sp = task.stack.lock().as_ref().map(switch::prepare)?;
    task.sp.store(sp, Ordering::Relaxed);
    let id = QUEUE.with(|q| {
        q.next_id += 1;
        q.next_id
    });
    task.id.store(id, Ordering::Relaxed);
    Some(task)
}

/// The idle task of a core; it begins in [`run_idle`], not in a job.
pub(crate) fn new_idle(core: usize) -> Option<&'static Task> {
    let mut name = heapless::String::<32>::new();
    let _ = core::fmt::write(&mut name, format_args!("idle/{core}"));
    let task = new_task(&name, None, Some(core))?;
    task.state.store(State::Runnable as u32, Ordering::Relaxed);
    Some(task)
}

/// Waits for a spawned task and takes its result.
pub(crate) struct JoinHandle<T> {
    cell: Arc<Completion<T>>,
}

struct Completion<T> {
    value: SpinLock<Option<T>>,
    waiter: WaitQueue,
}

impl<T> JoinHandle<T> {
    /// Blocks until the task is over.
    pub(crate) fn join(self) -> T {
        loop {
            if let Some(value) = self.cell.value.lock().take() {
                return value;
            }
            self.cell
                .waiter
                .wait_until(|| self.cell.value.lock().is_some());
        }
    }
}

/// Starts a task on any core.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> Option<JoinHandle<T>> {
    spawn_on(name, u64::MAX, f)
}

/// Starts a task on the cores of a mask.
pub(crate) fn spawn_on<T: Send + 'static>(
    name: &str,
    cores: u64,
    f: impl FnOnce() -> T + Send + 'static,
) -> Option<JoinHandle<T>> {
    let cell = Arc::new(Completion {
        value: SpinLock::new(None),
        waiter: WaitQueue::new(),
    });
    let done = cell.clone();
    let job: Job = Box::new(move || {
        let value = f();
        *done.value.lock() = Some(value);
        done.waiter.wake_all();
    });
    let task = new_task(name, Some(job), None)?;
    task.affinity.store(cores, Ordering::Relaxed);
    task.core.store(cpu::index(), Ordering::Relaxed);
    task.state.store(State::Blocked as u32, Ordering::Release);
    wake(task);
    Some(JoinHandle { cell })
}

/// Where a new task begins (vectors.s, task_start).
#[expect(unsafe_code, reason = "the name is how vectors.s finds it")]
#[unsafe(no_mangle)]
extern "C" fn task_main() -> ! {
    QUEUE.finish_first_switch();
    irq::enable();
    let job = current().job.lock().take();
    if let Some(job) = job {
        job();
    }
    irq::disable();
    schedule(Leave::Exit);
    loop {
        barrier::wfi();
    }
}

/// Makes a blocked task runnable; one that is about to block stays runnable.
pub(crate) fn wake(task: &'static Task) {
    let kick = QUEUE.with(|q| {
        if task.state() != State::Blocked {
            task.woken.store(true, Ordering::Relaxed);
            return None;
        }
        task.state.store(State::Runnable as u32, Ordering::Relaxed);
        q.runnable.push_back(task);
        (0..MAX_CPUS)
            .find(|&c| q.idle_cores >> c & 1 != 0 && task.may_run_on(c))
            .inspect(|&c| q.idle_cores &= !(1 << c))
    });
    if let Some(core) = kick {
        per_cpu(core).need_resched.store(true, Ordering::Relaxed);
        if core != cpu::index() {
            smp::send(core, Ipi::Reschedule);
        }
    }
}

/// Why a task leaves its core.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// It lets others go first.
    Yield,
    /// The tick took the core.
    Preempted,
    /// It waits for a wake-up.
    Block,
    /// It is over.
    Exit,
}

/// Picks the next task and switches to it; interrupts masked. Whatever this says of the present task, it says under the
/// queue's lock, which is given back only when the task's registers are saved: no core can run it twice.
fn schedule(why: Leave) {
    let me = current();
    QUEUE.switch(|q| {
        let block = this_cpu();
        let core = block.index.load(Ordering::Relaxed);
        block.need_resched.store(false, Ordering::Relaxed);
        if why != Leave::Preempted {
            me.voluntary.fetch_add(1, Ordering::Release);
            me.in_pool.store(false, Ordering::Relaxed);
        }
        let stays = match why {
            Leave::Block => me.woken.swap(false, Ordering::Relaxed),
            Leave::Exit => false,
            Leave::Yield | Leave::Preempted => true,
        };
        if why == Leave::Block && stays {
            return None;
        }
        let next = q
            .runnable
            .iter()
            .position(|t| t.may_run_on(core))
            .and_then(|at| q.runnable.remove(at));
        let next = match next {
            Some(next) => next,
            None if stays => return None,
            None => block.idle.get()?,
        };
        q.idle_cores &= !(1 << core);
        match why {
            Leave::Block => me.state.store(State::Blocked as u32, Ordering::Release),
            Leave::Exit => me.state.store(State::Dead as u32, Ordering::Release),
            Leave::Yield | Leave::Preempted if me.is_idle() => {
                // It comes back when no one else wants this core, which may be never: until then no grace period has to
                // wait for it, unless it was preempted where it may be in a trampoline.
                if why == Leave::Yield || me.resting.load(Ordering::Relaxed) {
                    me.state.store(State::Blocked as u32, Ordering::Release);
                }
            }
            Leave::Yield | Leave::Preempted => q.runnable.push_back(me),
        }
        next.core.store(core, Ordering::Relaxed);
        next.state.store(State::Runnable as u32, Ordering::Release); // an idle task was not
        Some(next)
    });
}

/// Lets another task run, if one wants to.
pub(crate) fn yield_now() {
    let state = irq::disable();
    schedule(Leave::Yield);
    irq::restore(state);
}

/// The tick took the core from a task that ran at `pc`. Interrupts are masked.
pub(crate) fn preempt(pc: usize) {
    let inside = (layout::POOL..layout::POOL + layout::POOL_SIZE).contains(&pc);
    current().in_pool.store(inside, Ordering::Relaxed);
    schedule(Leave::Preempted);
}

/// Every tick, in its interrupt.
pub(crate) fn tick() {
    this_cpu().need_resched.store(true, Ordering::Relaxed);
    crate::tests::watch();
}

/// A quiescent state for tasks RCU without giving up the core: for loops that never block.
pub(crate) fn quiescent() {
    current().voluntary.fetch_add(1, Ordering::Release);
}

/// No other task takes this core until the matching [`preempt_enable`].
#[inline(always)]
pub(crate) fn preempt_disable() {
    let count = &current().preempt;
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// Ends [`preempt_disable`]; a switch that was due happens at the next tick or interrupt.
#[inline(always)]
pub(crate) fn preempt_enable() {
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    let count = &current().preempt;
    count.store(count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
}

/// The task stays on its core until the matching [`migrate_enable`]; it may be preempted.
#[inline(always)]
pub(crate) fn migrate_disable() {
    let count = &current().migrate;
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// Ends [`migrate_disable`].
#[inline(always)]
pub(crate) fn migrate_enable() {
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
    let count = &current().migrate;
    count.store(count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
}

/// Tasks that wait for a condition.
pub(crate) struct WaitQueue(SpinLock<Vec<&'static Task>>);

impl WaitQueue {
    /// No one waits.
    pub(crate) const fn new() -> WaitQueue {
        WaitQueue(SpinLock::new(Vec::new()))
    }

    /// Blocks until `done` is true; it is asked again after each [`WaitQueue::wake_all`].
    pub(crate) fn wait_until(&self, mut done: impl FnMut() -> bool) {
        let me = current();
        loop {
            me.woken.store(false, Ordering::Relaxed);
            self.0.lock().push(me);
            let ready = done();
            if ready {
                self.0.lock().retain(|t| !core::ptr::eq(*t, me));
                return;
            }
            block();
            self.0.lock().retain(|t| !core::ptr::eq(*t, me));
        }
    }

    /// Wakes whoever waits.
    pub(crate) fn wake_all(&self) {
        let waiting = core::mem::take(&mut *self.0.lock());
        for task in waiting {
            wake(task);
        }
    }
}

/// Blocks the current task until [`wake`], unless that came since its `woken` was cleared.
fn block() {
    let state = irq::disable();
    schedule(Leave::Block);
    irq::restore(state);
}

/// Blocks for a time.
pub(crate) fn sleep_ns(ns: u64) {
    let counts = (u128::from(ns) * u128::from(timer::frequency())).div_ceil(1_000_000_000) as u64;
    let until = timer::now() + counts;
    let me = current();
    while timer::now() < until {
        me.woken.store(false, Ordering::Relaxed);
        me.wake_at.store(until, Ordering::Release);
        block();
    }
    me.wake_at.store(0, Ordering::Relaxed);
}

/// Wakes the sleepers whose time has come: the timer softirq.
pub(crate) fn wake_sleepers() {
    let now = timer::now();
    let mut due: heapless::Vec<&'static Task, 32> = heapless::Vec::new();
    QUEUE.with(|q| {
        for &task in &q.all {
            let at = task.wake_at.load(Ordering::Acquire);
            if at != 0 && at <= now && !due.is_full() {
                task.wake_at.store(0, Ordering::Relaxed);
                let _ = due.push(task);
            }
        }
    });
    for task in due {
        wake(task);
    }
}

/// Every task there is or was.
pub(crate) fn for_each(mut visit: impl FnMut(&'static Task)) {
    let all = QUEUE.with(|q| q.all.clone());
    for task in all {
        visit(task);
    }
}

/// The idle task's life: runs whatever wants to run, else sleeps. Interrupts are masked on entry.
pub(crate) fn run_idle() -> ! {
    smp::now_online();
    current().preempt.store(0, Ordering::Relaxed);
    timer::start_tick();
    loop {
        irq::disable();
        schedule(Leave::Yield);
        let core = cpu::index();
        QUEUE.with(|q| {
            if q.runnable.iter().any(|t| t.may_run_on(core)) {
                return;
            }
            q.idle_cores |= 1 << core;
        });
        // A priority mask would keep the wake-up out of WFI: mask by PSTATE, open the priority, and look again.
        irq::mask_all();
        irq::open_priority();
        if !this_cpu().need_resched.load(Ordering::Relaxed) {
            barrier::wfi();
        }
        // All of this is inlined: no site, no trampoline.
        let resting = &current().resting;
        resting.store(true, Ordering::Relaxed);
        irq::enable();
        irq::open_exceptions();
        irq::enable();
        resting.store(false, Ordering::Relaxed);
    }
}

/// A lock that blocks: for work that takes long or waits for other cores. Task context only.
///
/// The value is taken out while it is held, so that no unsafe is needed: a spin lock and a box.
pub(crate) struct Mutex<T> {
    value: SpinLock<Option<Box<T>>>,
    waiters: WaitQueue,
}

impl<T> Mutex<T> {
    /// Without a value so far: `lock` blocks until [`Mutex::put`].
    pub(crate) const fn empty() -> Mutex<T> {
        Mutex {
            value: SpinLock::new(None),
            waiters: WaitQueue::new(),
        }
    }

    /// Gives it its value, or gives it back.
    pub(crate) fn put(&self, value: Box<T>) {
        *self.value.lock() = Some(value);
        self.waiters.wake_all();
    }

    /// Blocks until no one else holds it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        loop {
            if let Some(value) = self.value.lock().take() {
                return MutexGuard {
                    mutex: self,
                    value: Some(value),
                };
            }
            self.waiters.wait_until(|| self.value.lock().is_some());
        }
    }
}

/// A held [`Mutex`].
pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    value: Option<Box<T>>,
}

impl<T> core::ops::Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        match &self.value {
            Some(value) => value,
            None => unreachable!("taken only by drop"),
        }
    }
}

impl<T> core::ops::DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.value {
            Some(value) => value,
            None => unreachable!("taken only by drop"),
        }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.mutex.put(value);
        }
    }
}
