// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tasks RCU: what a task might still be executing is freed only when every task has since been elsewhere.
//!
//! A quiescent state is a voluntary switch, or idle's turn of its loop, or [`crate::sched::quiescent`]; an idle task that was
//! preempted as it woke up stays quiescent until it runs again. Being preempted is otherwise
//! none: the task may stand between a site's branch and the end of a trampoline. An interrupt handler is covered by the task
//! it interrupts, which can reach a quiescent state only after the handler has returned.
//!
//! Order: whoever defers has patched the site and every core has seen that (patching is followed by a
//! context synchronisation event everywhere before reuse, see `code.rs`); the snapshot of counters is taken after that,
//! with the queue's lock, and a counter is raised under the same lock or by a release. So a task whose counter rose since the
//! snapshot fetched the site anew after it was patched.

use super::stall::Watchdog;
use super::{TASKS, passed};
use crate::arch::switch::current;
use crate::sched::{self, State, Task};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

/// The task's life.
pub(super) fn run() {
    loop {
        let batch = TASKS.wait();
        wait_for_tasks();
        passed(batch);
    }
}

/// Returns when each task that could be inside a trampoline now has been seen elsewhere.
fn wait_for_tasks() {
    let me = current();
    let mut holdouts: Vec<(&'static Task, u64, u64)> = Vec::new();
    sched::for_each(|task| {
        if !core::ptr::eq(task, me) && task.state() == State::Runnable {
            holdouts.push((task, task.id(), task.voluntary.load(Ordering::Acquire)));
        }
    });
    let mut watchdog = Watchdog::new("tasks RCU");
    loop {
        holdouts.retain(|&(task, id, seen)| {
            task.state() == State::Runnable
                && task.id() == id
                && task.voluntary.load(Ordering::Acquire) == seen
        });
        if holdouts.is_empty() {
            return;
        }
        watchdog.check(holdouts.iter().map(|&(task, ..)| task));
        sched::sleep_ns(1_000_000);
    }
}
