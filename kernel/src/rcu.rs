// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tasks RCU: what a task might still be executing is freed only when every task has since been elsewhere.
//!
//! A quiescent state is a voluntary switch, or idle's turn of its loop, or [`crate::sched::quiescent`]; an idle task that was
//! preempted as it woke up stays quiescent until it runs again. Being preempted is otherwise
//! none: the task may stand between a site's branch and the end of a trampoline. An interrupt handler is covered by the task
//! it interrupts, which can reach a quiescent state only after the handler has returned.
//!
//! Order: whoever calls [`defer`] has patched the site and every core has seen that (patching is followed by a
//! context synchronisation event everywhere before reuse, see `code.rs`); the snapshot of counters is taken after that,
//! with the queue's lock, and a counter is raised under the same lock or by a release. So a task whose counter rose since the
//! snapshot fetched the site anew after it was patched.

use crate::arch::lock::SpinLock;
use crate::sched::{self, State, Task, WaitQueue};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

type Callback = Box<dyn FnOnce() + Send>;

static PENDING: SpinLock<Vec<Callback>> = SpinLock::new(Vec::new());
static WORK: WaitQueue = WaitQueue::new();
static PERIODS: AtomicU64 = AtomicU64::new(0);
static QUEUED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// How long a grace period may take before it is reported, in nanoseconds.
const STALL_NS: u64 = 20_000_000_000;

/// Calls back after a tasks-RCU grace period; does not wait.
pub(crate) fn defer(callback: impl FnOnce() + Send + 'static) {
    QUEUED.fetch_add(1, Ordering::Relaxed);
    PENDING.lock().push(Box::new(callback));
    WORK.wake_all();
}

/// `(grace periods that ended, callbacks that wait)`.
pub(crate) fn counts() -> (u64, u64) {
    let done = DONE.load(Ordering::Acquire);
    (
        PERIODS.load(Ordering::Acquire),
        QUEUED.load(Ordering::Acquire).saturating_sub(done),
    )
}

/// Blocks until everything that was deferred before has been called. Task context.
pub(crate) fn barrier() {
    let target = QUEUED.load(Ordering::Acquire);
    while DONE.load(Ordering::Acquire) < target {
        sched::sleep_ns(1_000_000);
    }
}

/// Starts the task that waits for grace periods.
pub(crate) fn start() -> bool {
    sched::spawn("rcu_tasks", run).is_some()
}

fn run() {
    loop {
        WORK.wait_until(|| !PENDING.lock().is_empty());
        let batch = core::mem::take(&mut *PENDING.lock());
        wait_for_tasks();
        PERIODS.fetch_add(1, Ordering::Release);
        for callback in batch {
            callback();
            DONE.fetch_add(1, Ordering::Release);
        }
    }
}

/// Returns when each task that could be inside a trampoline now has been seen elsewhere.
fn wait_for_tasks() {
    let me = crate::arch::switch::current();
    let mut holdouts: Vec<(&'static Task, u64, u64)> = Vec::new();
    sched::for_each(|task| {
        if !core::ptr::eq(task, me) && task.state() == State::Runnable {
            holdouts.push((task, task.id(), task.voluntary.load(Ordering::Acquire)));
        }
    });
    let begin = crate::arch::timer::now_ns();
    let mut reported = false;
    loop {
        holdouts.retain(|&(task, id, seen)| {
            task.state() == State::Runnable
                && task.id() == id
                && task.voluntary.load(Ordering::Acquire) == seen
        });
        if holdouts.is_empty() {
            return;
        }
        if !reported && crate::arch::timer::now_ns() - begin > STALL_NS {
            reported = true;
            for (task, ..) in &holdouts {
                crate::println!(
                    "tasks RCU waits for task {} on core {}",
                    task.name(),
                    task.core()
                );
            }
        }
        sched::sleep_ns(1_000_000);
    }
}
