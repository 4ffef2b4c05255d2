// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel threads: all cores, preemption, migration, blocking, grace periods.

use super::{Failure, Outcome, Test};
use crate::arch::{cpu, smp, switch, timer, unwind};
use crate::mm::{frames, layout};
use crate::sched::{self, Mutex};
use crate::task::{SHADOW_ENTRIES, Task};
use crate::{check, context};
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "tasks.run_on_every_core",
        seconds: 20,
        run: everywhere,
    },
    Test {
        name: "tasks.are_preempted",
        seconds: 20,
        run: preempted,
    },
    Test {
        name: "tasks.stay_while_migration_is_disabled",
        seconds: 20,
        run: stay,
    },
    Test {
        name: "tasks.stay_while_their_word_is_set",
        seconds: 60,
        run: word_binds,
    },
    Test {
        name: "tasks.word_moves_with_its_task",
        seconds: 60,
        run: word_moves,
    },
    Test {
        name: "tasks.shadow_stack_holds_through_interrupts",
        seconds: 60,
        run: shadow_stack,
    },
    Test {
        name: "tasks.traces_show_the_real_caller",
        seconds: 10,
        run: real_caller,
    },
    Test {
        name: "tasks.mutex_excludes",
        seconds: 60,
        run: mutex,
    },
    Test {
        name: "tasks.stacks_and_slots_are_used_again",
        seconds: 60,
        run: reuse,
    },
];

/// A task for a test, or the failure that there is none.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<sched::JoinHandle<T>, Failure> {
    sched::spawn(name, f).ok_or_else(|| Failure::Failed(format!("no memory for task {name}")))
}

fn everywhere() -> Outcome {
    for core in cpu::online() {
        let Some(task) = sched::spawn_on("test", 1 << core, cpu::index) else {
            check!(false, "no task");
            return Ok(());
        };
        let ran = task.join();
        check!(ran == core, "a task for core {core} ran on core {ran}");
    }
    Ok(())
}

fn preempted() -> Outcome {
    // Two tasks on one core that never yield: each must see the other's counter move.
    let core = cpu::online().last().unwrap_or(0);
    let counters = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let mut tasks = Vec::new();
    for me in 0..2 {
        let counters = counters.clone();
        let task = sched::spawn_on("spinner", 1 << core, move || {
            let other = &counters[1 - me];
            let mut changes = 0;
            let mut last = other.load(Ordering::Relaxed);
            while changes < 3 {
                counters[me].fetch_add(1, Ordering::Relaxed);
                let now = other.load(Ordering::Relaxed);
                if now != last && last != 0 {
                    changes += 1;
                }
                last = now;
                if now == u64::MAX {
                    break;
                }
            }
            counters[me].store(u64::MAX, Ordering::Relaxed);
        });
        check!(task.is_some(), "no task");
        tasks.extend(task);
    }
    for task in tasks {
        task.join();
    }
    Ok(())
}

fn stay() -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let noise: Vec<_> = (0..cpu::online().count() + 2)
        .filter_map(|_| {
            let stop = stop.clone();
            sched::spawn("noise", move || {
                while !stop.load(Ordering::Relaxed) {
                    sched::yield_now();
                }
            })
        })
        .collect();
    let mover = spawn("bound", || {
        sched::migrate_disable();
        let home = cpu::index();
        let mut moved = 0;
        for _ in 0..200 {
            sched::yield_now();
            moved += u32::from(cpu::index() != home);
        }
        sched::migrate_enable();
        let mut cores = 1u64 << home;
        // How soon another core takes it depends on what the emulator's host lets run.
        let deadline = timer::now_ns() + 10_000_000_000;
        while cores.count_ones() < 2 && timer::now_ns() < deadline && cpu::online().count() > 1 {
            sched::yield_now();
            cores |= 1 << cpu::index();
        }
        (moved, cores.count_ones())
    })?;
    let (moved, cores) = mover.join();
    stop.store(true, Ordering::Relaxed);
    for task in noise {
        task.join();
    }
    check!(
        moved == 0,
        "it ran elsewhere {moved} times although migration was disabled"
    );
    if cpu::online().count() > 1 {
        check!(cores > 1, "it never moved when it was allowed to");
    }
    Ok(())
}

/// Runs `f` while more tasks than cores want to run, half of them never yielding.
fn under_load<T>(f: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let noise: Vec<_> = (0..cpu::online().count() + 3)
        .filter_map(|i| {
            let stop = stop.clone();
            sched::spawn("noise", move || {
                while !stop.load(Ordering::Relaxed) {
                    match i % 2 {
                        0 => sched::yield_now(),
                        _ => core::hint::spin_loop(),
                    }
                }
            })
        })
        .collect();
    let result = f();
    stop.store(true, Ordering::Relaxed);
    for task in noise {
        task.join();
    }
    result
}

fn word_binds() -> Outcome {
    const MARK: u64 = 0x5eed_0000_cafe;
    let bound = || {
        let word = || &switch::current().word;
        word().store(MARK, Ordering::Relaxed);
        let home = cpu::index();
        let ticks = &cpu::per_cpu(home).ticks;
        let (mut moved, mut changed) = (0u64, 0u64);
        let mut look = || {
            moved += u64::from(cpu::index() != home);
            changed += u64::from(word().load(Ordering::Relaxed) != MARK);
        };
        // Preempted by the tick, again and again, then also leaving on its own.
        let from = ticks.load(Ordering::Relaxed);
        while ticks.load(Ordering::Relaxed) < from + 200 {
            look();
        }
        for round in 0..100 {
            match round % 4 {
                0 => sched::sleep_ns(1_000_000),
                _ => sched::yield_now(),
            }
            look();
        }
        word().store(0, Ordering::Relaxed);
        (moved, changed)
    };
    let results: Vec<_> = under_load(|| {
        let tasks: Result<Vec<_>, _> = (0..4).map(|_| spawn("in a hook", bound)).collect();
        Ok(tasks?.into_iter().map(sched::JoinHandle::join).collect())
    })?;
    for (moved, changed) in results {
        check!(
            moved == 0,
            "it was seen on another core {moved} times although its word was set"
        );
        check!(changed == 0, "its word was another's {changed} times");
    }
    Ok(())
}

fn word_moves() -> Outcome {
    if cpu::online().count() == 1 {
        return Err(Failure::Skipped("one core: two needed to move".into()));
    }
    // Each writes its own mark and reads it back: preempted anywhere in between, even between reading SP_EL0 and reading the
    // word, it must find its own. While the word is 0 it may move.
    let free = |mark: u64| {
        move || {
            let (mut moves, mut wrong, mut core) = (0u64, 0u64, cpu::index());
            let deadline = timer::now_ns() + 20_000_000_000;
            let mut round = 0u64;
            while (moves < 5 || round < 100_000) && timer::now_ns() < deadline {
                round += 1;
                let found = switch::current().word.swap(mark, Ordering::Relaxed);
                wrong += u64::from(found != 0);
                let here = cpu::index();
                let found = switch::current().word.load(Ordering::Relaxed);
                wrong += u64::from(found != mark);
                switch::current().word.store(0, Ordering::Relaxed);
                moves += u64::from(here != core);
                core = here;
            }
            (moves, wrong)
        }
    };
    let results: Vec<_> = under_load(|| {
        let tasks: Result<Vec<_>, _> = (1..=4).map(|i| spawn("mover", free(i))).collect();
        Ok(tasks?.into_iter().map(sched::JoinHandle::join).collect())
    })?;
    let moves: u64 = results.iter().map(|r| r.0).sum();
    for (_, wrong) in results {
        check!(wrong == 0, "a task's word was not its own {wrong} times");
    }
    check!(
        moves > 0,
        "none of four tasks moved, though nothing bound them"
    );
    Ok(())
}

/// Pushes and pops on the current task until the shadow stack has refused once; false if a popped entry was not the pushed one.
fn fill_shadow(mark: u64) -> bool {
    let task = switch::current();
    let mut depth = 0;
    while depth < SHADOW_ENTRIES as u64 && task.shadow_push([mark, depth, 0, !mark]) {
        depth += 1;
    }
    let mut right = true;
    while depth > 0 {
        depth -= 1;
        right &= task.shadow_pop() == Some([mark, depth, 0, !mark]);
    }
    right
}

static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
static SPOILT: AtomicU64 = AtomicU64::new(0);

fn shadow_stack() -> Outcome {
    fn on_top() {
        INTERRUPTED.fetch_add(1, Ordering::Relaxed);
        if !fill_shadow(0x1234) {
            SPOILT.fetch_add(1, Ordering::Relaxed);
        }
    }
    INTERRUPTED.store(0, Ordering::Relaxed);
    SPOILT.store(0, Ordering::Relaxed);
    context::TEST_HARDIRQ.set(Some(&(on_top as fn())));
    context::TEST_NMI.set(Some(&(on_top as fn())));
    let core = cpu::online().last().unwrap_or(0);
    let stop = Arc::new(AtomicBool::new(false));
    let victim = {
        let stop = stop.clone();
        sched::spawn_on("exit hooks", 1 << core, move || {
            let (mut rounds, mut wrong) = (0u64, 0u64);
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                wrong += u64::from(!fill_shadow(rounds));
            }
            let refused = {
                let task = switch::current();
                let pushed = (0..=SHADOW_ENTRIES).filter(|_| task.shadow_push([1; 4]));
                let pushed = pushed.count();
                (0..pushed).for_each(|_| _ = task.shadow_pop());
                pushed == SHADOW_ENTRIES && task.shadow_pop().is_none()
            };
            (rounds, wrong, refused)
        })
    };
    check!(victim.is_some(), "no task");
    let deadline = timer::now_ns() + 2_000_000_000;
    while INTERRUPTED.load(Ordering::Relaxed) < 400 && timer::now_ns() < deadline {
        smp::send(core, smp::Ipi::Test);
        smp::send_nmi(core);
        sched::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    let results: Vec<_> = victim.into_iter().map(sched::JoinHandle::join).collect();
    context::TEST_HARDIRQ.set(None);
    context::TEST_NMI.set(None);
    let interrupted = INTERRUPTED.load(Ordering::Relaxed);
    check!(
        interrupted >= 10,
        "only {interrupted} interrupts came in between"
    );
    let spoilt = SPOILT.load(Ordering::Relaxed);
    check!(
        spoilt == 0,
        "an interrupt's entries were spoilt {spoilt} times"
    );
    for (rounds, wrong, refused) in results {
        check!(
            wrong == 0,
            "in {wrong} of {rounds} rounds an entry was not as it was pushed"
        );
        check!(
            refused,
            "the shadow stack did not hold exactly {SHADOW_ENTRIES} entries"
        );
    }
    Ok(())
}

fn real_caller() -> Outcome {
    // A stack of three frame records whose middle function has two exit hooks: what it returns to was replaced twice.
    let landing = [layout::POOL + 0x40, layout::POOL + 0x80];
    let mut records = Box::new([0usize; 12]);
    let at = |i: usize, records: &[usize; 12]| core::ptr::from_ref(&records[i]).addr();
    let fps = [0, 4, 8].map(|i| at(i, &records));
    for (i, lr) in [(0, 0x1001), (4, landing[1]), (8, 0x3003)] {
        records[i] = if i < 8 { fps[i / 4 + 1] } else { 0 };
        records[i + 1] = lr;
    }
    core::hint::black_box(&mut records);
    let task = Box::new(Task::boot());
    let frame = fps[1] as u64 + 16;
    task.shadow_push([0x2002, frame, landing[0] as u64, 0]);
    task.shadow_push([landing[0] as u64, frame, landing[1] as u64, 0]);
    // The stale words of an entry that is claimed and not written, and one of a frame that is not on this trace.
    task.shadow_push([0xbad, 0, landing[1] as u64, 0]);
    let mut seen = Vec::new();
    unwind::walk(&task, fps[0], |lr| seen.push(lr));
    check!(
        seen == [0x1001, 0x2002, 0x3003],
        "the trace is {seen:x?}, with landings {landing:x?}"
    );
    Ok(())
}

static SHARED: Mutex<(u64, u64)> = Mutex::empty();

fn mutex() -> Outcome {
    SHARED.put(Box::new((0, 0)));
    let tasks: Result<Vec<_>, _> = (0..6)
        .map(|_| {
            spawn("locker", || {
                for _ in 0..200 {
                    let mut pair = SHARED.lock();
                    pair.0 += 1;
                    sched::yield_now();
                    pair.1 += 1;
                    if pair.0 != pair.1 {
                        return false;
                    }
                }
                true
            })
        })
        .collect();
    for task in tasks? {
        check!(task.join(), "two tasks were inside");
    }
    let total = SHARED.lock().0;
    check!(total == 1200, "{total} turns instead of 1200");
    Ok(())
}

/// A task is over for who waits for it before it has left its core, or was preempted on the way: until then its stack is its own.
/// Of so many tasks each core has one such at a time.
fn reuse() -> Outcome {
    const TASKS: usize = 400;
    const STACK_FRAMES: usize = layout::STACK_SIZE / layout::PAGE;
    spawn("first", || ())?.join();
    let (_, before) = frames::usage();
    for _ in 0..TASKS {
        spawn("short", || ())?.join();
    }
    let (_, after) = frames::usage();
    let taken = before.saturating_sub(after);
    // A page for tables on top.
    let most = cpu::online().count() * (STACK_FRAMES + 1);
    check!(
        taken <= most,
        "{before} frames were free, after {TASKS} tasks {after}; {most} may be in use"
    );
    Ok(())
}
