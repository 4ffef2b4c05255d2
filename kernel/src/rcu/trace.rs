// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tasks-trace RCU: readers that may block mark themselves by a word in their task.
//!
//! A trampoline counts in the word how many readers the task is in, and how often it left the outermost, with plain loads
//! and stores. Another core may see these late: it may still read 0 when the reader has long loaded a pointer. So no other
//! core reads the word of a task that runs: each is looked at as `look` says. Seen in no reader, or to have left the
//! outermost since it was first looked at, a task is in no reader that began before the grace period; and a reader that it
//! begins behind a look loads what was stored before the grace period began: under the queue's lock because the task has to take that
//! lock to run again, in the IPI because of its DMB.

use super::stall::Watchdog;
use super::{TRACE, look, passed};
use crate::sched::{self, Task};
use crate::task::layout;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// The number of the grace period that goes on.
static PERIOD: AtomicU64 = AtomicU64::new(0);

/// The task's life.
pub(super) fn run() {
    loop {
        let batch = TRACE.wait();
        wait_for_readers();
        passed(batch);
    }
}

/// Notes that a task holds up the grace period no longer.
fn note(task: &'static Task, stack: usize) {
    let period = PERIOD.load(Ordering::Relaxed);
    let word = task.trace_nesting.load(Ordering::Relaxed);
    let now = period << 32 | u64::from(word / layout::TRACE_LEFT);
    let outside = stack == 0 || word & layout::TRACE_NESTING_MASK == 0;
    let first = task.trace_first.load(Ordering::Relaxed);
    if outside || first != now && first >> 32 == now >> 32 {
        task.trace_quiescent.store(period, Ordering::Release);
    } else {
        task.trace_first.store(now, Ordering::Relaxed);
    }
}

/// Returns when each task has been seen outside of a reader.
fn wait_for_readers() {
    let period = PERIOD.fetch_add(1, Ordering::Release) + 1;
    let mut holdouts: Vec<&'static Task> = Vec::new();
    sched::for_each(|task| holdouts.push(task));
    let mut watchdog = Watchdog::new("tasks-trace RCU");
    loop {
        look::at_tasks(holdouts.iter().copied(), &(note as look::Look));
        holdouts.retain(|task| task.trace_quiescent.load(Ordering::Acquire) != period);
        if holdouts.is_empty() {
            return;
        }
        watchdog.check(holdouts.iter().copied());
        sched::sleep_ns(1_000_000);
    }
}
