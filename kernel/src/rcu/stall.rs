// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grace periods that take long: which task they wait for, and where it is.
//!
//! A task that runs nowhere has left a frame record at its sp. One that runs is interrupted by an NMI, so that it is seen
//! also where interrupts are masked, and its core writes down the trace.

use crate::arch::lock::SpinLock;
use crate::arch::trap::Frame;
use crate::arch::unwind::{self, Trace};
use crate::arch::{barrier, smp, switch, timer};
use crate::println;
use crate::sched::{self, Task};
use crate::symbols::Name;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How long a grace period may take before it is reported, in nanoseconds.
pub(crate) const STALL_NS: u64 = 20_000_000_000;
/// How long a core may take to answer the NMI, in nanoseconds.
const ANSWER_NS: u64 = 100_000_000;

static LIMIT: AtomicU64 = AtomicU64::new(STALL_NS);
/// The last report: the task's number and trace.
static LAST: SpinLock<Option<(u64, Trace)>> = SpinLock::new(None);

/// Sets how long a grace period may take, for tests; [`STALL_NS`] without it.
pub(crate) fn set_stall_limit(ns: u64) {
    LIMIT.store(ns, Ordering::Relaxed);
    *LAST.lock() = None;
}

/// The last task that was reported since the limit was set: its number, and its stack trace.
pub(crate) fn last_stall() -> Option<(u64, Trace)> {
    LAST.lock().clone()
}

/// Watches over one grace period, or over something else that waits for tasks.
pub(crate) struct Watchdog {
    what: &'static str,
    begin: u64,
    /// How long it may take if that is less than what is set, in nanoseconds.
    limit: u64,
    reported: bool,
}

impl Watchdog {
    /// It begins now.
    pub(crate) fn new(what: &'static str) -> Watchdog {
        Watchdog::with_limit(what, u64::MAX)
    }

    /// As [`Watchdog::new`], with a limit of its own, in nanoseconds.
    pub(crate) fn with_limit(what: &'static str, limit: u64) -> Watchdog {
        Watchdog {
            what,
            begin: timer::now_ns(),
            limit,
            reported: false,
        }
    }

    /// Reports those it waits for, once, if it has taken too long; whether it did so now. Blocks for as long as cores take to answer.
    pub(crate) fn check(&mut self, holdouts: impl Iterator<Item = &'static Task>) -> bool {
        let waited = timer::now_ns() - self.begin;
        if self.reported || waited < LIMIT.load(Ordering::Relaxed).min(self.limit) {
            return false;
        }
        self.reported = true;
        for task in holdouts {
            report(self.what, waited, task);
        }
        true
    }
}

fn report(what: &str, waited: u64, task: &'static Task) {
    println!(
        "{what} has waited {} ms for task {} (core {}, {:?}):",
        waited / 1_000_000,
        task.name(),
        task.core(),
        task.state()
    );
    let Some(trace) = trace_of(task) else {
        println!("      its core does not answer the NMI");
        return;
    };
    for (i, &address) in trace.iter().enumerate() {
        // Return addresses are behind their call; the first may be where the task was interrupted.
        let back = if i == 0 { 0 } else { 4 };
        println!(
            "      {address:#018x}  {}",
            Name(address.wrapping_sub(back))
        );
    }
    *LAST.lock() = Some((task.id(), trace));
}

/// Where a task is now. `None` if its core does not answer.
fn trace_of(task: &'static Task) -> Option<Trace> {
    let deadline = timer::now_ns() + ANSWER_NS;
    let mut asleep = None;
    while timer::now_ns() < deadline {
        let core = sched::while_off_core(task, |_| {
            asleep = Some(unwind::trace_of_sleeping(task));
        });
        let Some(core) = core else {
            return asleep;
        };
        if let Some(trace) = ask(task, core) {
            return Some(trace);
        }
    }
    None
}

/// The task whose trace is asked for, by its address; 0 for none.
static ASKED: AtomicUsize = AtomicUsize::new(0);
static ANSWER: [AtomicUsize; unwind::MOST] = [const { AtomicUsize::new(0) }; unwind::MOST];
/// How many of them were written, plus one; 0: none so far.
static LENGTH: AtomicUsize = AtomicUsize::new(0);
/// One asks at a time.
static ASKING: sched::Mutex<()> = sched::Mutex::empty();

/// Lets the first one ask.
pub(super) fn init() {
    ASKING.put(alloc::boxed::Box::new(()));
}

/// Has the core that runs a task write down its trace. `None` if it runs there no more.
fn ask(task: &'static Task, core: usize) -> Option<Trace> {
    let _one = ASKING.lock();
    LENGTH.store(0, Ordering::Relaxed);
    ASKED.store(core::ptr::from_ref(task).addr(), Ordering::Release);
    smp::send_nmi(core);
    let deadline = timer::now_ns() + ANSWER_NS / 4;
    let mut length = 0;
    while length == 0 && timer::now_ns() < deadline {
        barrier::wfe();
        length = LENGTH.load(Ordering::Acquire);
    }
    ASKED.store(0, Ordering::Release);
    let length = length.checked_sub(1)?;
    let words = ANSWER.iter().take(length);
    Some(words.map(|word| word.load(Ordering::Relaxed)).collect())
}

/// In an NMI's handler: answers if this core runs the task in question.
pub(crate) fn answer_nmi(frame: &Frame) {
    let task = switch::current();
    if ASKED.load(Ordering::Acquire) != core::ptr::from_ref(task).addr() {
        return;
    }
    let trace = unwind::trace(task, frame.elr as usize, frame.x[29] as usize);
    for (word, &address) in ANSWER.iter().zip(&trace) {
        word.store(address, Ordering::Relaxed);
    }
    LENGTH.store(trace.len() + 1, Ordering::Release);
    barrier::dsb_ishst();
    barrier::sev();
}
