// SPDX-License-Identifier: MIT OR Apache-2.0
//! The torture run: everything that hooks can do, at once, at random, with every result checked.
//!
//! Tasks on all cores, and handlers in softirq, hardirq and NMI, call hundreds of functions and check what comes back and which hooks
//! were hit ([`ledger`]), while others attach and detach ([`changes`]). Freed executable memory holds BRK at once, so a use
//! after free ends the run with a report. At the end all memory has to be back.

mod changes;
mod functions;
mod ledger;
mod place;
mod storm;
mod ways;

use crate::arch::timer;
use crate::command_line::Options;
use crate::context::Context;
use crate::mm::layout::STACK_SIZE;
use crate::mm::stack::{HIT_LIMIT, HOOK_RESERVE};
use crate::mm::{frames, heap};
use crate::{hook, hooked, integrity, println, rcu, sched};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use changes::Changes;
use core::sync::atomic::{AtomicBool, Ordering};
use fastrand::Rng;
pub(crate) use functions::nested;
pub(crate) use ledger::program_hit;
use ledger::{LEDGER, Ledger, TASKS};

/// Tasks that attach and detach.
const CHANGERS: usize = 4;
/// How long the first round takes, in seconds.
const WARM_UP: u64 = 3;
/// A run that takes so many seconds has done everything.
const WHOLE: u64 = 30;
/// How often the run says how far it is, in seconds.
const PROGRESS: u64 = 10;

/// How often the memory is looked at before it counts as lost.
const SETTLING: usize = 50;

/// What is free: bytes of the executable pool, bytes of the heap (with what marks of hooked functions keep for good), page frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Free {
    pool: usize,
    heap: usize,
    frames: usize,
}

impl Free {
    /// Once it does not change any more: a callback is over before the list that it stood in is freed.
    fn at_rest() -> Free {
        let mut last = Free::now();
        for _ in 0..SETTLING {
            sched::sleep_ns(20_000_000);
            let now = Free::now();
            if now == last {
                break;
            }
            last = now;
        }
        last
    }

    /// Now, once all that was deferred is done.
    fn now() -> Free {
        // What is freed by one callback may defer another.
        for _ in 0..3 {
            rcu::barrier();
        }
        Free {
            pool: hook::pool_free(),
            heap: heap::usage().1 + hooked::kept(),
            frames: frames::usage().1,
        }
    }
}

/// One round of so many seconds; returns what the interrupt handlers called, or why it could not begin.
fn round(
    ledger: &'static Ledger,
    changes: &Arc<Changes>,
    seconds: u64,
    random: &mut Rng,
) -> Result<u64, &'static str> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for who in 0..TASKS as u64 {
        let (stop, mut random) = (stop.clone(), random.fork());
        let calling = move || {
            ledger.is_caller(who as usize);
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..64 {
                    ledger.call(ledger.choose(&mut random), who, random.u64(..));
                }
                if random.u8(..8) == 0 {
                    sched::sleep_ns(random.u64(..1_000_000));
                }
            }
        };
        tasks.push(sched::spawn("caller", calling).ok_or("no memory for a task")?);
    }
    for _ in 0..CHANGERS {
        let (stop, mut random, changes) = (stop.clone(), random.fork(), changes.clone());
        let changing = move || {
            while !stop.load(Ordering::Relaxed) {
                changes.one(ledger, &mut random);
            }
        };
        tasks.push(sched::spawn("changer", changing).ok_or("no memory for a task")?);
    }
    let (storm_stop, of_storm) = (stop.clone(), random.fork());
    let storming = move || storm::run(&storm_stop, of_storm);
    let storm = sched::spawn("storm", storming).ok_or("no memory for a task")?;
    for second in 1..=seconds {
        sched::sleep_ns(1_000_000_000);
        if second.is_multiple_of(PROGRESS) && second < seconds {
            let (calls, _) = ledger.calls();
            println!(
                "torture: {second} of {seconds} s, {calls} calls, {}",
                changes.summary()
            );
        }
        if ledger.found() != 0 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    tasks.into_iter().for_each(|task| task.join());
    let calls = storm.join();
    changes.detach_all(ledger, random);
    Ok(calls)
}

/// Everything that was wrong at the end of a run.
fn faults(ledger: &Ledger, changes: &Changes, before: Free) -> Vec<String> {
    let mut faults: Vec<_> = ledger.findings().collect();
    let more = ledger.found().saturating_sub(faults.len() as u64);
    if more > 0 {
        faults.push(format!("and {more} findings more"));
    }
    faults.extend(changes.messages());
    // A callback is over before the list that it stood in is freed.
    let after = (0..SETTLING).map(|_| {
        sched::sleep_ns(20_000_000);
        Free::now()
    });
    let mut last = before;
    if !after
        .inspect(|after| last = *after)
        .any(|after| after == before)
    {
        let after = last;
        faults.push(format!(
            "memory is not back: free before {before:?}, after {after:?}"
        ));
    }
    match integrity::check() {
        Ok(report)
            if report.unaccounted == 0 && report.unfilled.is_empty() && report.foreign == 0 => {}
        Ok(report) => faults.push(format!(
            "integrity: {} words of code that no hook owns, {} words of free memory that are not BRK, {} words of hooks that are not \
             what was written",
            report.unaccounted,
            report.unfilled.len(),
            report.foreign
        )),
        Err(why) => faults.push(format!("integrity: {why}")),
    }
    // With what hooks used of their part, which is small here: one hit in a few hundred bytes, some kilobytes if it is interpreted.
    let limit = STACK_SIZE - HOOK_RESERVE + HIT_LIMIT;
    let (used, task) = sched::most_stack();
    println!("torture: task {task} used {used} bytes of its stack, more than any other");
    if used >= limit {
        faults.push(format!(
            "task {task} has used {used} bytes of its stack, hooks included; more than {limit} were not expected"
        ));
    }
    let left = hook::list().len();
    if left != 0 {
        faults.push(format!("{left} hooks are still on"));
    }
    faults
}

/// How often each thing that a run is about was done so far: hooks attached by each way, calls in each context that interrupts tasks.
fn done(ledger: &Ledger, changes: &Changes) -> Vec<(&'static str, u64)> {
    let contexts = [
        ("calls in softirq", Context::Softirq),
        ("calls in hardirq", Context::Hardirq),
        ("calls in NMI", Context::Nmi),
    ];
    let calls = contexts.map(|(name, context)| (name, ledger.calls_in(context)));
    let others = [
        ("hits by a replaced function", ledger.by_replaced()),
        ("hooks whose misses are known exactly", changes.exact()),
    ];
    let ways = changes.by_way().into_iter();
    ways.chain(calls).chain(others).collect()
}

/// What a run did not do once.
fn left_out(before: &[(&str, u64)], after: &[(&str, u64)]) -> Vec<String> {
    let same = before.iter().zip(after).filter(|(a, b)| a == b);
    same.map(|((name, _), _)| format!("{name}: none at all"))
        .collect()
}

/// A number of the command line; the text if it is none.
fn number(text: Option<&str>, default: u64) -> Result<u64, &str> {
    text.map_or(Ok(default), |text| text.parse().map_err(|_| text))
}

/// Runs the job: `seconds=N`, `seed=N`; 1 if anything was wrong.
pub(crate) fn run(options: &Options<'_>) -> u32 {
    let (seconds, seed) = match (
        number(options.seconds, 60),
        number(options.seed, timer::now()),
    ) {
        (Ok(seconds), Ok(seed)) => (seconds, seed),
        (Err(text), _) | (_, Err(text)) => {
            println!("springboard: torture: {text:?} is no number; seconds= and seed= take one");
            return 2;
        }
    };
    let ledger: &'static Ledger = match Ledger::new() {
        Ok(ledger) => Box::leak(ledger),
        Err(error) => {
            println!("springboard: torture: {error}");
            return 1;
        }
    };
    LEDGER.set(Some(ledger));
    let mut random = Rng::with_seed(seed);
    println!(
        "torture: {seconds} s, seed {seed}: {} functions, {TASKS} tasks and the handlers of every core call them, {CHANGERS} tasks \
         change what is hooked",
        ledger.len()
    );
    let changes = Arc::new(Changes::new());
    changes.each_once(ledger, &mut random);
    let outcome = round(ledger, &changes, WARM_UP, &mut random);
    let done = done(ledger, &changes);
    let before = Free::at_rest();
    let start = timer::now_ns();
    let outcome = outcome.and_then(|_| round(ledger, &changes, seconds, &mut random));
    let storm = match outcome {
        Ok(storm) => storm,
        Err(why) => {
            println!("springboard: torture: {why}");
            return 1;
        }
    };
    let took = (timer::now_ns() - start) / 1_000_000_000;
    let mut faults = faults(ledger, &changes, before);
    if took >= WHOLE {
        faults.extend(left_out(&done, &self::done(ledger, &changes)));
    }
    let (calls, certain) = ledger.calls();
    println!("torture: {took} s, {}", changes.summary());
    println!(
        "torture: {calls} calls checked, {storm} of them from interrupts; {certain} times the hits of a place were known exactly"
    );
    faults
        .iter()
        .for_each(|fault| println!("torture: WRONG: {fault}"));
    println!(
        "torture: {} wrong results or hits, {} faults in all",
        ledger.found(),
        faults.len()
    );
    u32::from(!faults.is_empty() || calls == 0 || certain == 0)
}
