// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grace periods: what someone may still be using is freed by callback, when no one can be any more.
//!
//! | flavour | a reader is | it is over at | waits in |
//! |---|---|---|---|
//! | RCU | a normal program, for as long as it runs, preempted or not | a voluntary switch | `tasks` |
//! | tasks RCU | a task anywhere between a site's branch and the end of a trampoline | a voluntary switch | `tasks` |
//! | tasks-trace RCU | a sleepable program: it marks itself in its task, and may block | its mark is 0 | `trace` |
//! | unreferenced | a stack, a shadow stack or a saved frame with an address in an image | none holds one | `unreferenced` |
//!
//! RCU has no grace periods of its own: a normal program never switches of its own will, so one that runs now, or the task
//! that its interrupt stands on, is waited for by tasks RCU.
//!
//! What is deferred goes through one or several of these in turn. Each has a task, so that none holds up another.

pub(crate) mod look;
mod stall;
mod tasks;
mod trace;
mod unreferenced;

use crate::arch::lock::SpinLock;
use crate::mm::stack;
use crate::sched::{self, WaitQueue};
use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use stall::{STALL_NS, Watchdog, answer_nmi, last_stall, set_stall_limit};

/// Which readers a grace period waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flavour {
    /// Normal programs: for maps, programs and what else they use.
    Rcu,
    /// Whoever may be inside a trampoline without blocking there: for images.
    Tasks,
    /// Sleepable programs.
    TasksTrace,
}

type Callback = Box<dyn FnOnce() + Send>;

/// A stage that something deferred has to pass.
#[derive(Clone, Copy)]
enum Step {
    Tasks,
    Trace,
    Unreferenced(unreferenced::Image),
}

/// Something that waits for its grace periods.
struct Deferred {
    number: u64,
    /// What is still to be passed, in this order.
    steps: VecDeque<Step>,
    callback: Callback,
}

/// What waits for one stage's task.
struct Stage {
    waiting: SpinLock<Vec<Deferred>>,
    work: WaitQueue,
}

impl Stage {
    const fn new() -> Stage {
        Stage {
            waiting: SpinLock::new(Vec::new()),
            work: WaitQueue::new(),
        }
    }

    fn push(&self, deferred: Deferred) {
        self.waiting.lock().push(deferred);
        self.work.wake_all();
    }

    /// Takes what has come, without waiting.
    fn take(&self) -> Vec<Deferred> {
        core::mem::take(&mut *self.waiting.lock())
    }

    /// Blocks until something has come, and takes all of it.
    fn wait(&self) -> Vec<Deferred> {
        self.work.wait_until(|| !self.waiting.lock().is_empty());
        self.take()
    }
}

static TASKS: Stage = Stage::new();
static TRACE: Stage = Stage::new();
static UNREFERENCED: Stage = Stage::new();

static PERIODS: AtomicU64 = AtomicU64::new(0);
/// The number of the last thing deferred.
static LAST: AtomicU64 = AtomicU64::new(0);
/// The numbers of all that has not been called yet.
static OUTSTANDING: SpinLock<BTreeSet<u64>> = SpinLock::new(BTreeSet::new());

/// Calls back after a grace period; does not wait. The callback runs in a task and may block, but not wait for grace periods.
///
/// What it frees has been made unreachable before: a site has been patched and all cores synchronised, a pointer replaced.
pub(crate) fn defer(flavour: Flavour, callback: impl FnOnce() + Send + 'static) {
    let step = match flavour {
        Flavour::Rcu | Flavour::Tasks => Step::Tasks,
        Flavour::TasksTrace => Step::Trace,
    };
    queue(&[step], Box::new(callback));
}

/// Calls back after a tasks-trace and then a tasks-RCU grace period: for an image, map or program that normal and
/// sleepable programs use. Otherwise as [`defer`].
pub(crate) fn defer_all(callback: impl FnOnce() + Send + 'static) {
    queue(&[Step::Trace, Step::Tasks], Box::new(callback));
}

/// Calls back after a tasks-RCU grace period and when then no task's stack, shadow stack or saved exception frame holds an
/// address in `range`: for an image that functions return into. Otherwise as [`defer`].
///
/// Words that only look like one count too, so who was told the image's address may hold it up by a word left on its stack;
/// [`stack::scrub`] takes such words away.
pub(crate) fn defer_unreferenced(range: Range<u64>, callback: impl FnOnce() + Send + 'static) {
    let image = unreferenced::Image::new(range);
    queue(
        &[Step::Tasks, Step::Unreferenced(image)],
        Box::new(callback),
    );
}

fn queue(steps: &[Step], callback: Callback) {
    let number = LAST.fetch_add(1, Ordering::AcqRel) + 1;
    OUTSTANDING.lock().insert(number);
    forward(Deferred {
        number,
        steps: steps.iter().copied().collect(),
        callback,
    });
}

/// Hands it to its next stage, or calls it back.
fn forward(deferred: Deferred) {
    match deferred.steps.front() {
        Some(Step::Tasks) => TASKS.push(deferred),
        Some(Step::Trace) => TRACE.push(deferred),
        Some(Step::Unreferenced(_)) => UNREFERENCED.push(deferred),
        None => {
            (deferred.callback)();
            OUTSTANDING.lock().remove(&deferred.number);
        }
    }
}

/// A stage's end: each goes on to what is next.
fn passed(batch: Vec<Deferred>) {
    PERIODS.fetch_add(1, Ordering::Release);
    for mut deferred in batch {
        deferred.steps.pop_front();
        forward(deferred);
    }
    // Callbacks free images; their addresses must not stay behind on a stack that is itself looked through.
    stack::scrub();
}

/// `(grace periods that ended, callbacks that wait)`.
pub(crate) fn counts() -> (u64, u64) {
    let waiting = OUTSTANDING.lock().len() as u64;
    (PERIODS.load(Ordering::Acquire), waiting)
}

/// Blocks until everything that was deferred before has been called. Task context; not for a callback.
pub(crate) fn barrier() {
    stack::scrub();
    let target = LAST.load(Ordering::Acquire);
    while OUTSTANDING
        .lock()
        .first()
        .is_some_and(|&first| first <= target)
    {
        sched::sleep_ns(1_000_000);
    }
}

/// Blocks until a grace period has passed. Task context; not for a callback.
pub(crate) fn synchronize(flavour: Flavour) {
    let over = Arc::new(AtomicBool::new(false));
    let mine = over.clone();
    defer(flavour, move || mine.store(true, Ordering::Release));
    while !over.load(Ordering::Acquire) {
        sched::sleep_ns(1_000_000);
    }
}

/// Starts the tasks that wait for grace periods.
pub(crate) fn start() -> bool {
    look::init();
    stall::init();
    let stages: [(&str, fn()); 3] = [
        ("rcu_tasks", tasks::run),
        ("rcu_trace", trace::run),
        ("rcu_unreferenced", unreferenced::run),
    ];
    stages
        .into_iter()
        .all(|(name, run)| sched::spawn(name, run).is_some())
}
