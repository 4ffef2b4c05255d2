// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel threads: all cores, preemption, migration, blocking, grace periods.

use super::{Failure, Outcome, Test};
use crate::arch::{cpu, timer};
use crate::sched::{self, Mutex};
use crate::{check, rcu};
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
        name: "tasks.mutex_excludes",
        seconds: 60,
        run: mutex,
    },
    Test {
        name: "tasks.stacks_and_slots_are_used_again",
        seconds: 60,
        run: reuse,
    },
    Test {
        name: "tasks.grace_period_waits_for_a_preempted_task",
        seconds: 30,
        run: grace,
    },
    Test {
        name: "tasks.stacks_stay_above_the_reserve",
        seconds: 10,
        run: stacks,
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

fn reuse() -> Outcome {
    spawn("first", || ())?.join();
    let (_, before) = crate::mm::frames::usage();
    for _ in 0..100 {
        spawn("short", || ())?.join();
    }
    let (_, after) = crate::mm::frames::usage();
    check!(
        before <= after + 40,
        "{before} frames were free, after 100 tasks {after}"
    );
    Ok(())
}

fn grace() -> Outcome {
    let called = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let spinner = {
        let stop = stop.clone();
        spawn("spinner", move || {
            while !stop.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        })?
    };
    sched::sleep_ns(5_000_000); // it runs, and is preempted now and then
    {
        let called = called.clone();
        rcu::defer(move || called.store(true, Ordering::Release));
    }
    sched::sleep_ns(30_000_000);
    let early = called.load(Ordering::Acquire);
    stop.store(true, Ordering::Relaxed);
    spinner.join();
    let begin = timer::now_ns();
    rcu::barrier();
    check!(
        !early,
        "the grace period ended although a task had no quiescent state"
    );
    check!(called.load(Ordering::Acquire), "the callback did not come");
    check!(
        timer::now_ns() - begin < 5_000_000_000,
        "the grace period took long"
    );
    Ok(())
}

fn stacks() -> Outcome {
    // Hooks have the last quarter of a stack to themselves (docs/architecture.md, "Stacks").
    let limit = crate::mm::layout::STACK_SIZE * 3 / 4;
    let mut worst = (0, heapless::String::new());
    sched::for_each(|task| {
        let used = task.stack_used();
        if used > worst.0 {
            worst = (used, task.name());
        }
    });
    check!(
        worst.0 < limit,
        "task {} has used {} bytes of its stack; {limit} is the limit",
        worst.1,
        worst.0
    );
    Ok(())
}
