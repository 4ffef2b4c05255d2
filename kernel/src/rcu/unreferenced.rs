// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images that functions return into: freed when no stack, shadow stack or saved frame holds an address in them.
//!
//! A task that sleeps inside a function with an exit hook has passed any number of quiescent states and will still return
//! into the image. So every aligned word of its stack in use is held against the images that wait, all contexts that stand on
//! it and their saved registers included, and so is its shadow stack (`look` says how it is caught). One look without
//! a find is enough for a task and an image: the site was patched and all cores synchronised before the image was deferred,
//! and the tasks-RCU grace period is over, so no one enters anew, and who holds no address has none to return to. Tasks that
//! began since cannot hold one either.
//!
//! How long a look takes, with normal interrupts masked: at most the words of two stacks (a core's overflow stack may be in
//! use) and of the shadow stack, each compared with the lowest and the highest address that waits, and a binary search for those
//! in between.
//!
//! This task's own stack is looked through too, so it never holds an address that is looked for: images are kept as
//! the complement of their addresses everywhere but in [`Pass::find`], which is called by the look alone, below what it looks at.

use super::stall::Watchdog;
use super::{Deferred, Step, UNREFERENCED, look, passed};
use crate::arch::lock::SpinLock;
use crate::mm::stack;
use crate::sched::{self, Task};
use alloc::sync::Arc;

use alloc::vec::Vec;
use core::cmp::Reverse;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// An image's addresses, complemented.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Image {
    not_start: u64,
    not_end: u64,
}

impl Image {
    /// The image at `range`.
    pub(super) fn new(range: Range<u64>) -> Image {
        Image {
            not_start: !range.start,
            not_end: !range.end,
        }
    }
}

/// A set of small numbers.
#[derive(Default)]
struct Bits(Vec<AtomicU64>);

impl Bits {
    fn new(count: usize, value: bool) -> Bits {
        let word = if value { u64::MAX } else { 0 };
        let words = count.div_ceil(64);
        Bits((0..words).map(|_| AtomicU64::new(word)).collect())
    }

    fn change(&self, index: usize, value: bool) {
        let bit = 1 << (index % 64);
        match self.0.get(index / 64) {
            Some(word) if value => word.fetch_or(bit, Ordering::Relaxed),
            Some(word) => word.fetch_and(!bit, Ordering::Relaxed),
            None => 0,
        };
    }

    fn has(&self, index: usize) -> bool {
        let word = self.0.get(index / 64).map(|w| w.load(Ordering::Relaxed));
        word.unwrap_or(0) >> (index % 64) & 1 != 0
    }
}

/// An image that waits, and the tasks (by their place in the list of all) that have not been seen without it.
struct Watch {
    image: Image,
    unseen: Bits,
    watchdog: Watchdog,
    deferred: Deferred,
}

/// What one round of looks goes by, and finds.
#[derive(Default)]
struct Pass {
    /// Ascending by start; they do not overlap.
    images: Vec<Image>,
    tasks: Vec<&'static Task>,
    /// A task's number: it was looked at.
    seen: Vec<AtomicBool>,
    /// By task: the images whose addresses it holds.
    held: Vec<Bits>,
}

static PASS: SpinLock<Option<Arc<Pass>>> = SpinLock::new(None);

/// The task's life.
pub(super) fn run() {
    let mut watched: Vec<Watch> = Vec::new();
    loop {
        let new = match watched.is_empty() {
            true => UNREFERENCED.wait(),
            false => UNREFERENCED.take(),
        };
        let tasks = all_tasks();
        watched.extend(new.into_iter().filter_map(|deferred| {
            let Some(&Step::Unreferenced(image)) = deferred.steps.front() else {
                return None;
            };
            let unseen = Bits::new(tasks.len(), true);
            Some(Watch {
                image,
                unseen,
                watchdog: Watchdog::new("an image that is returned into"),
                deferred,
            })
        }));
        // Ascending by start. Not by the start itself: it would stay behind in a register.
        watched.sort_unstable_by_key(|watch| Reverse(watch.image.not_start));
        look_for(&watched, tasks.clone());
        let held = |watch: &Watch| (0..tasks.len()).any(|task| watch.unseen.has(task));
        let (keep, done): (Vec<_>, Vec<_>) = watched.into_iter().partition(held);
        watched = keep;
        if !done.is_empty() {
            passed(done.into_iter().map(|watch| watch.deferred).collect());
        }
        for watch in &mut watched {
            let unseen = tasks.iter().enumerate();
            let unseen = unseen.filter(|&(i, _)| watch.unseen.has(i));
            watch.watchdog.check(unseen.map(|(_, &task)| task));
        }
        if !watched.is_empty() {
            sched::sleep_ns(2_000_000);
        }
    }
}

fn all_tasks() -> Vec<&'static Task> {
    let mut tasks = Vec::new();
    sched::for_each(|task| tasks.push(task));
    tasks
}

/// Looks once at each task that an image still waits for.
fn look_for(watched: &[Watch], tasks: Vec<&'static Task>) {
    let wanted: Vec<_> = (0..tasks.len())
        .map(|i| watched.iter().any(|watch| watch.unseen.has(i)))
        .collect();
    let pass = Arc::new(Pass {
        images: watched.iter().map(|watch| watch.image).collect(),
        seen: tasks.iter().map(|_| AtomicBool::new(false)).collect(),
        held: tasks
            .iter()
            .map(|_| Bits::new(watched.len(), false))
            .collect(),
        tasks,
    });
    *PASS.lock() = Some(pass.clone());
    let wanted = pass.tasks.iter().zip(wanted).filter(|(_, wanted)| *wanted);
    look::at_tasks(wanted.map(|(task, _)| *task), &(look_through as look::Look));
    *PASS.lock() = None;
    for (task, seen) in pass.seen.iter().enumerate() {
        if !seen.load(Ordering::Acquire) {
            continue;
        }
        for (image, watch) in watched.iter().enumerate() {
            if !pass.held.get(task).is_some_and(|held| held.has(image)) {
                watch.unseen.change(task, false);
            }
        }
    }
}

/// The look: every word in use of a task's stack and shadow stack. `from` as [`look::Look`] says.
fn look_through(task: &'static Task, from: usize) {
    let pass = PASS.lock().clone();
    let Some(pass) = pass else {
        return;
    };
    let number = pass.tasks.iter().position(|t| core::ptr::eq(*t, task));
    let Some(number) = number else {
        return;
    };
    if let Some(held) = pass.held.get(number)
        && from != 0
    {
        pass.find(task, from, held);
    }
    if let Some(seen) = pass.seen.get(number) {
        seen.store(true, Ordering::Release);
    }
}

impl Pass {
    /// Notes the images whose addresses lie on the stack from `from` on. Not inlined: only its own frame, which lies below
    /// `from`, may hold the addresses themselves.
    #[inline(never)]
    fn find(&self, task: &Task, from: usize, held: &Bits) {
        let (Some(first), Some(last)) = (self.images.first(), self.images.last()) else {
            return;
        };
        let (low, high) = (!first.not_start, !last.not_end);
        let mut note = |word: u64| {
            if word < low || word >= high {
                return;
            }
            let behind = self.images.partition_point(|i| !i.not_start <= word);
            if let Some(at) = behind.checked_sub(1)
                && self.images.get(at).is_some_and(|i| word < !i.not_end)
            {
                held.change(at, true);
            }
        };
        stack::words(from).for_each(&mut note);
        // The handler may run on the core's overflow stack: then the task's own is looked through as a whole.
        let own = task.stack_range();
        if !own.contains(&from) {
            stack::words(own.start).for_each(&mut note);
        }
        for entry in task.shadow() {
            entry.words().into_iter().for_each(&mut note);
        }
    }
}
