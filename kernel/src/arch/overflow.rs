// SPDX-License-Identifier: MIT OR Apache-2.0
//! A stack is used up: the report, and whether it ends the run or only the task.
//!
//! vectors.s comes here on the core's overflow stack; the broken one is not touched any more. What the task was about is lost:
//! its frames are never returned through, and what they own is never dropped. So it may end alone only if no one else can be
//! waiting for what it has: that is [`obstacle`]. Its stack is whole, for only the guard below it was hit, and is used again.

use super::trap::{self, Frame};
use super::{irq, switch, unwind};
use crate::context::{self, Context};
use crate::mm::layout::{POOL, POOL_SIZE};
use crate::mm::stack;
use crate::sched::{self, Task};
use crate::symbols::Name;
use crate::{hook, println};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// PSTATE.A, I and F.
const MASKED: u64 = 0b111 << 6;
/// The vector of SError, as vectors.s numbers them.
const SERROR: u64 = 3;

/// What [`last`] returns.
static LAST_TASK: AtomicU64 = AtomicU64::new(0);
static LAST_HOOKS: AtomicU64 = AtomicU64::new(0);

/// The number of the last task that ended alone, and how many words on its stack were addresses of hooks.
pub(crate) fn last() -> (u64, u64) {
    (
        LAST_TASK.load(Ordering::Acquire),
        LAST_HOOKS.load(Ordering::Acquire),
    )
}

/// Why a task cannot end alone.
enum Obstacle {
    Context(Context),
    Masked,
    NotPreemptible,
    Locks(u32),
    NoOneWaits,
    SError,
    Counted,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Context(context) => write!(f, "{context:?} context stands on its stack"),
            Obstacle::Masked => write!(f, "it had masked interrupts, so it may hold a spin lock"),
            Obstacle::NotPreemptible => write!(f, "it had disabled preemption"),
            Obstacle::Locks(n) => write!(f, "it holds {n} lock{}", if *n == 1 { "" } else { "s" }),
            Obstacle::NoOneWaits => write!(f, "no one would notice, for no one waits for its end"),
            Obstacle::Counted => write!(
                f,
                "it is, or may be, inside a trampoline of the Linux way, which counts who is inside"
            ),
            Obstacle::SError => write!(f, "it was an SError that found the stack used up"),
        }
    }
}

/// What keeps the current task from ending alone.
fn obstacle(frame: &Frame, vector: u64, task: &Task) -> Option<Obstacle> {
    let locks = task.locks.load(Ordering::Relaxed);
    match context::current() {
        Context::Task if vector == SERROR => Some(Obstacle::SError),
        // Spin locks are held with interrupts masked, so none is held where they are not.
        Context::Task if frame.spsr & MASKED != 0 || irq::priority_masked() => {
            Some(Obstacle::Masked)
        }
        Context::Task if !task.preemptible() => Some(Obstacle::NotPreemptible),
        Context::Task if locks != 0 => Some(Obstacle::Locks(locks)),
        Context::Task if !task.is_awaited() => Some(Obstacle::NoOneWaits),
        Context::Task if is_counted(frame, task) => Some(Obstacle::Counted),
        Context::Task => None,
        other => Some(Obstacle::Context(other)),
    }
}

/// Whether the current task would return into a trampoline of the Linux way: what that has counted for it is given back there alone.
fn is_counted(frame: &Frame, task: &Task) -> bool {
    let mut inside = false;
    let from = core::ptr::from_ref(frame).addr();
    let all = unwind::each_way_back(task, from, |address, _| {
        inside |= hook::is_linux_trampoline(address as usize);
    });
    inside || !all
}

/// A stack is used up; this runs on the core's overflow stack and the frame holds the broken sp. `vector`: 0 for a synchronous
/// exception, 1 and 2 for an interrupt, which is still pending, 3 for an SError.
#[unsafe(no_mangle)]
extern "C" fn trap_overflow(frame: &mut Frame, vector: u64) {
    const WHAT: &str = "the stack is used up: its guard page was reached";
    let task = switch::current();
    // Its frames are never returned through, so no hook is active in it any more.
    let word = task.word.swap(0, Ordering::Relaxed);
    if let Some(obstacle) = obstacle(frame, vector, task) {
        trap::begin_report();
        trap::print_exception(&WHAT, frame);
        print_hooks(frame, word);
        println!("    the run ends with it: {obstacle}");
        super::exit::exit(101);
    }
    // Other reports may go on meanwhile, and the NMI; interrupts stay masked, so no other task can take this core.
    irq::disable();
    irq::open_exceptions();
    trap::print_exception(&WHAT, frame);
    let hooks = print_hooks(frame, word);
    println!("    only task {} ends", task.name());
    LAST_HOOKS.store(hooks, Ordering::Release);
    LAST_TASK.store(task.id(), Ordering::Release);
    sched::abandon()
}

/// The most hooks that are named.
const NAMED: usize = 6;

/// Says which hooks the broken stack names, and whether one is active; returns how many of its words are a hook's addresses.
fn print_hooks(frame: &Frame, word: u64) -> u64 {
    if word != 0 {
        println!("    a hook was active here: the recursion word is {word:#x}");
    }
    let mut found: heapless::Vec<(u64, u64), NAMED> = heapless::Vec::new();
    let mut total = 0;
    let inside = |word: &u64| (POOL..POOL + POOL_SIZE).contains(&(*word as usize));
    let registers = [frame.elr, frame.x[30]].into_iter();
    for word in registers
        .chain(stack::words(frame.sp as usize))
        .filter(inside)
    {
        total += 1;
        match found.iter_mut().find(|(address, _)| *address == word) {
            Some((_, count)) => *count += 1,
            None => _ = found.push((word, 1)),
        }
    }
    if total != 0 {
        println!("    {total} words of it and of pc and x30 are addresses of hooks:");
    }
    for (address, count) in found {
        println!(
            "      {address:#018x}  {}  {count} times",
            Name(address as usize)
        );
    }
    total
}
