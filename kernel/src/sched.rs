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
use crate::arch::{admit, barrier, irq, linux, timer};
use crate::context::{self, Context};
use crate::hook_path::{self, Entered};
use crate::mm::layout;
use crate::mm::stack::Stack;
use crate::task::{End, Job};
pub(crate) use crate::task::{State, Task};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

struct Queue {
    runnable: VecDeque<&'static Task>,
    /// All tasks that ever were, idle ones too.
    all: Vec<&'static Task>,
    idle_cores: u64,
    next_id: u64,
    /// What tasks that begin have as [`Task::patch`].
    patch: u32,
}

static QUEUE: HandoffLock<Queue> = HandoffLock::new(Queue {
    runnable: VecDeque::new(),
    all: Vec::new(),
    idle_cores: 0,
    next_id: 1,
    patch: 0,
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
            let stack = Stack::new()?;
            task.stack_top.store(stack.top(), Ordering::Relaxed);
            *task.stack.lock() = Some(stack);
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
    task.set_name(short);
    *task.job.lock() = job;
    task.begin_life();
    task.affinity.store(
        idle_on.map_or(u64::MAX, |core| 1 << core),
        Ordering::Relaxed,
    );
    task.core.store(idle_on.unwrap_or(0), Ordering::Relaxed);
    task.idle.store(idle_on.is_some(), Ordering::Relaxed);
    if task.broken.swap(false, Ordering::Relaxed)
        && let Some(stack) = task.stack.lock().as_ref()
    {
        stack.paint();
    }
    let sp = task.stack.lock().as_ref().map(switch::prepare)?;
    task.sp.store(sp, Ordering::Relaxed);
    let id = QUEUE.with(|q| {
        q.next_id += 1;
        // Under the lock: who changes q.patch sees this task with the old value, or it gets the new one.
        task.patch.store(q.patch, Ordering::Relaxed);
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
    task.running.store(true, Ordering::Relaxed); // its core begins in it
    Some(task)
}

/// Waits for a spawned task and takes its result.
pub(crate) struct JoinHandle<T> {
    cell: Arc<Completion<T>>,
}

/// A task ended before its job was done: its stack was used up, and the report says where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Died;

struct Completion<T> {
    value: SpinLock<Option<T>>,
    died: AtomicBool,
    awaited: AtomicBool,
    waiter: WaitQueue,
}

impl<T: Send> End for Completion<T> {
    fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    fn died(&self) {
        self.died.store(true, Ordering::Release);
        self.waiter.wake_all();
    }
}

impl<T> JoinHandle<T> {
    /// Blocks until the task is over. A panic if it died; a task that may is waited for by [`JoinHandle::try_join`].
    pub(crate) fn join(self) -> T {
        match self.try_join() {
            Ok(value) => value,
            Err(Died) => panic!("a task died that another one waits for; its report is above"),
        }
    }

    /// Blocks until the task is over.
    ///
    /// # Errors
    /// It died.
    pub(crate) fn try_join(self) -> Result<T, Died> {
        let cell = &self.cell;
        loop {
            if let Some(value) = cell.value.lock().take() {
                return Ok(value);
            }
            if cell.died.load(Ordering::Acquire) {
                return Err(Died);
            }
            cell.waiter
                .wait_until(|| cell.died.load(Ordering::Acquire) || cell.value.lock().is_some());
        }
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        self.cell.awaited.store(false, Ordering::Relaxed);
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
        died: AtomicBool::new(false),
        awaited: AtomicBool::new(true),
        waiter: WaitQueue::new(),
    });
    let done = cell.clone();
    let job: Job = Box::new(move || {
        let value = f();
        *done.value.lock() = Some(value);
        done.waiter.wake_all();
    });
    let task = new_task(name, Some(job), None)?;
    let end: Arc<dyn End> = cell.clone();
    *task.end.lock() = Some(end);
    task.affinity.store(cores, Ordering::Relaxed);
    task.core.store(cpu::index(), Ordering::Relaxed);
    task.state.store(State::Blocked as u32, Ordering::Release);
    wake(task);
    Some(JoinHandle { cell })
}

/// What each task does at its end, unless it dies.
static AT_END: SpinLock<Option<fn()>> = SpinLock::new(None);

/// Has each task call this at its end, unless it dies.
pub(crate) fn at_end(call: fn()) {
    *AT_END.lock() = Some(call);
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
    let at_end = *AT_END.lock();
    if let Some(at_end) = at_end {
        at_end();
    }
    let end = current().end.lock().take();
    drop(end);
    irq::disable();
    leave_for_good()
}

/// The current task ends where it is, its job undone; from its core's overflow stack. Interrupts are masked, the NMI is not.
pub(crate) fn abandon() -> ! {
    let me = current();
    me.wake_at.store(0, Ordering::Relaxed);
    me.broken.store(true, Ordering::Relaxed);
    linux::abandon();
    let end = me.end.lock().take();
    if let Some(end) = end {
        end.died();
    }
    leave_for_good()
}

fn leave_for_good() -> ! {
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
            // This is the task's own context, so the word is the one in the task.
            let bound = admit::binds(me.word.load(Ordering::Relaxed));
            me.bound.store(bound, Ordering::Relaxed);
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
        me.running.store(false, Ordering::Relaxed);
        next.running.store(true, Ordering::Relaxed);
        next.core.store(core, Ordering::Relaxed);
        next.state.store(State::Runnable as u32, Ordering::Release); // an idle task was not
        Some(next)
    });
}

/// Lets another task run, if one wants to.
#[inline(never)] // hooked by tests
pub(crate) fn yield_now() {
    let state = irq::disable();
    schedule(Leave::Yield);
    irq::restore(state);
}

/// The tick took the core from a task that ran at `pc`. Interrupts are masked.
///
/// `word` is the interrupted context's recursion word, from the exception's frame: the task's present one is the interrupt's.
#[inline(never)] // hooked by tests
pub(crate) fn preempt(pc: usize, word: u64) {
    let inside = (layout::POOL..layout::POOL + layout::POOL_SIZE).contains(&pc);
    current()
        .bound
        .store(inside || admit::binds(word), Ordering::Relaxed);
    schedule(Leave::Preempted);
}

/// Every tick, in its interrupt.
#[inline(never)] // hooked by tests
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

/// Whether a sleepable program may block the current task here: in task context, with interrupts and preemption on, and under no program
/// that is not sleepable. Such a one, and the image that calls it, are freed after a tasks-RCU grace period, which a task that blocks
/// does not hold up.
///
/// A program without a guard is not in the list that this goes by: it may reach no sleepable one
/// ([`Protection::None`](crate::hook::Protection::None)).
pub(crate) fn may_block() -> bool {
    if irq::disabled() {
        return false;
    }
    let me = current();
    context::current() == Context::Task
        && me.preemptible()
        && !me.is_idle()
        && me.in_sleepable()
        && me.rcu_nesting.load(Ordering::Relaxed) == 0
        && admit::all_sleepable()
}

/// Tasks that wait for a condition: a list through the tasks, so that waiting needs no memory. A task is in one at most.
pub(crate) struct WaitQueue(SpinLock<Option<&'static Task>>);

impl WaitQueue {
    /// No one waits.
    pub(crate) const fn new() -> WaitQueue {
        WaitQueue(SpinLock::new(None))
    }

    /// Puts a task at the end.
    fn push(&self, task: &'static Task) {
        let mut first = self.0.lock();
        task.next_waiter.set(None);
        let tasks = core::iter::successors(*first, |task| task.next_waiter.get());
        match tasks.last() {
            Some(last) => last.next_waiter.set(Some(task)),
            None => *first = Some(task),
        }
    }

    /// Takes a task out, wherever it is.
    fn remove(&self, task: &'static Task) {
        let mut first = self.0.lock();
        let is_it = |other: Option<&'static Task>| other.is_some_and(|t| core::ptr::eq(t, task));
        if is_it(*first) {
            *first = task.next_waiter.get();
            return;
        }
        let mut tasks = core::iter::successors(*first, |task| task.next_waiter.get());
        if let Some(before) = tasks.find(|t| is_it(t.next_waiter.get())) {
            before.next_waiter.set(task.next_waiter.get());
        }
    }

    /// Blocks until `done` is true; it is asked again after each [`WaitQueue::wake_all`]. It waits in no queue itself.
    pub(crate) fn wait_until(&self, mut done: impl FnMut() -> bool) {
        hook_path::enter(Entered::Wait);
        let me = current();
        // Others reach it through the list: it may not end in the middle of this, as if it held a lock.
        me.locks.fetch_add(1, Ordering::Relaxed);
        loop {
            me.woken.store(false, Ordering::Relaxed);
            self.push(me);
            let ready = done();
            if !ready {
                block();
            }
            self.remove(me);
            if ready {
                break;
            }
        }
        me.locks.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes whoever waits.
    #[inline(never)] // hooked by tests
    pub(crate) fn wake_all(&self) {
        // Under the lock: a task that is off the list may be put into another one at once.
        let mut first = self.0.lock();
        while let Some(task) = *first {
            *first = task.next_waiter.get();
            wake(task);
        }
    }
}

/// Blocks the current task until [`wake`], unless that came since its `woken` was cleared.
#[inline(never)] // hooked by tests
fn block() {
    let state = irq::disable();
    schedule(Leave::Block);
    irq::restore(state);
}

/// Blocks for a time.
#[inline(never)] // hooked by tests
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
#[inline(never)] // hooked by tests
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

/// The most stack that any task used so far that did not mean to use it up, in bytes, those that are over included; and its name.
pub(crate) fn most_stack() -> (usize, heapless::String<32>) {
    let mut most = (0, heapless::String::new());
    for_each(|task| {
        let used = task.stack_used();
        if used > most.0 && !task.broken.load(Ordering::Relaxed) {
            most = (used, task.name());
        }
    });
    most
}

/// Sets which version of functions that are being replaced tasks run that begin from now on.
pub(crate) fn set_patch(value: u32) {
    QUEUE.with(|q| q.patch = value);
}

/// Calls `f` with a task's lowest stack address in use while it runs nowhere and can be started nowhere; with 0 when it is over
/// or not begun. If a core runs it, `f` is not called and the core is returned. `f` runs under the queue's lock.
pub(crate) fn while_off_core(task: &'static Task, f: impl FnOnce(usize)) -> Option<usize> {
    QUEUE.with(|_| {
        if task.running.load(Ordering::Relaxed) {
            return Some(task.core());
        }
        let sp = match task.state() {
            State::Dead | State::New => 0,
            State::Runnable | State::Blocked => task.sp.load(Ordering::Relaxed),
        };
        f(sp);
        None
    })
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
        hook_path::enter(Entered::Wait);
        let locks = &current().locks;
        loop {
            // Counted before it is taken: a task that dies in between must not seem to hold nothing.
            locks.fetch_add(1, Ordering::Relaxed);
            if let Some(value) = self.value.lock().take() {
                return MutexGuard {
                    mutex: self,
                    value: Some(value),
                };
            }
            locks.fetch_sub(1, Ordering::Relaxed);
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
            current().locks.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
