// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rendezvous: no other core does anything, whoever else wants all cores at the same time.

use super::tasks::spawn;
use super::{Failure, Outcome, Test};
use crate::arch::{barrier, code, cpu, rendezvous, smp, timer};
use crate::workload::workload_call;
use crate::{check, hook, sched};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "rendezvous.no_other_core_runs",
        seconds: 30,
        run: alone,
    },
    Test {
        name: "rendezvous.callers_take_turns",
        seconds: 60,
        run: turns,
    },
    Test {
        name: "rendezvous.any_instruction_can_be_replaced",
        seconds: 60,
        run: replaced,
    },
    Test {
        name: "rendezvous.ends_among_syncs_parks_and_nmis",
        seconds: 120,
        run: among_others,
    },
];

fn stop<R>(f: impl FnOnce() -> R) -> Result<R, Failure> {
    rendezvous::stop_machine(f).map_err(|absent| Failure::Failed(format!("{absent}")))
}

fn wait_ns(ns: u64) {
    let begin = timer::now_ns();
    while timer::now_ns() < begin + ns {
        core::hint::spin_loop();
    }
}

fn alone() -> Outcome {
    let cores: Vec<_> = cpu::online().collect();
    let counters: Arc<Vec<AtomicU64>> = Arc::new(cores.iter().map(|_| AtomicU64::new(0)).collect());
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for (i, &core) in cores.iter().enumerate() {
        let (counters, over) = (counters.clone(), over.clone());
        let task = sched::spawn_on("busy", 1 << core, move || {
            while !over.load(Ordering::Relaxed) {
                counters[i].fetch_add(1, Ordering::Relaxed);
            }
        });
        check!(task.is_some(), "no memory for a task");
        tasks.extend(task);
    }
    let mut outcome = Ok(());
    let nmis = || -> u64 {
        let of = |&c: &usize| cpu::per_cpu(c).nmis.load(Ordering::Relaxed);
        cores.iter().map(of).sum()
    };
    for _ in 0..20 {
        let moved = stop(|| {
            let count = || -> u64 { counters.iter().map(|c| c.load(Ordering::Relaxed)).sum() };
            let before = (count(), nmis());
            for &core in &cores {
                smp::send_nmi(core);
            }
            wait_ns(300_000);
            (count() - before.0, nmis() - before.1)
        });
        outcome = moved.and_then(|(counted, nmis)| {
            check!(
                counted == 0,
                "tasks on other cores counted {counted} times meanwhile"
            );
            check!(nmis == 0, "{nmis} NMIs were taken meanwhile");
            Ok(())
        });
        if outcome.is_err() {
            break;
        }
        sched::sleep_ns(1_000_000);
    }
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.join();
    }
    outcome?;
    check!(nmis() > 0, "the NMIs did not come afterwards either");
    Ok(())
}

static TOTAL: AtomicU64 = AtomicU64::new(0);

fn turns() -> Outcome {
    const EACH: u64 = 50;
    TOTAL.store(0, Ordering::Relaxed);
    let tasks: Result<Vec<_>, _> = (0..4)
        .map(|_| {
            spawn("stopper", || {
                for _ in 0..EACH {
                    stop(|| {
                        // Not atomic: two at a time would lose one.
                        let total = TOTAL.load(Ordering::Relaxed);
                        wait_ns(2_000);
                        TOTAL.store(total + 1, Ordering::Relaxed);
                    })?;
                }
                Ok(())
            })
        })
        .collect();
    let results: Vec<Outcome> = tasks?.into_iter().map(sched::JoinHandle::join).collect();
    results.into_iter().collect::<Outcome>()?;
    let total = TOTAL.load(Ordering::Relaxed);
    check!(
        total == 4 * EACH,
        "{total} of {} turns were counted",
        4 * EACH
    );
    Ok(())
}

/// `mov x9, x30`: what the Linux way has in a site's first word. Not one of those that may replace a NOP while cores run it.
const MOV_X9_X30: u32 = 0xaa1e_03e9;
const NOP: u32 = 0xd503_201f;

fn replaced() -> Outcome {
    let failed = |e: &dyn core::fmt::Display| Failure::Failed(format!("{e}"));
    let site = hook::resolve("workload_call")
        .map_err(|e| failed(&e))?
        .address;
    let over = Arc::new(AtomicBool::new(false));
    let callers: Result<Vec<_>, _> = (0..cpu::online().count() as u64)
        .map(|i| {
            let over = over.clone();
            spawn("caller", move || {
                let (mut calls, mut wrong) = (0u64, 0u64);
                let call = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
                while !over.load(Ordering::Relaxed) {
                    calls += 1;
                    wrong += u64::from(call(calls, i) != calls * 3 + i);
                }
                (calls, wrong)
            })
        })
        .collect();
    let callers = callers?;
    let mut outcome = Ok(());
    for round in 0..50 {
        let (old, new) = match round % 2 {
            0 => (NOP, MOV_X9_X30),
            _ => (MOV_X9_X30, NOP),
        };
        // Preempted between the two words a task finds either there: nothing of it uses x9.
        let patched = stop(|| code::patch(site, old, new));
        outcome = patched.and_then(|patched| patched.map_err(|e| failed(&e)));
        if outcome.is_err() {
            break;
        }
        sched::yield_now();
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        let (calls, wrong) = caller.join();
        check!(wrong == 0, "{wrong} of {calls} calls went wrong");
    }
    outcome?;
    check!(
        code::read(site) == Some(NOP),
        "the site is not as it was afterwards"
    );
    Ok(())
}

fn among_others() -> Outcome {
    let over = Arc::new(AtomicBool::new(false));
    let until = |name, f: fn()| {
        let over = over.clone();
        spawn(name, move || {
            let mut rounds = 0u64;
            while !over.load(Ordering::Relaxed) {
                f();
                rounds += 1;
            }
            rounds
        })
    };
    let tasks = [
        until("syncs", smp::sync_cores)?,
        until("parks", || {
            let parked = smp::park_others();
            wait_ns(50_000);
            drop(parked);
            sched::sleep_ns(2_000_000);
        })?,
        until("nmis", || {
            cpu::online().for_each(smp::send_nmi);
            for _ in 0..4 {
                barrier::wfe();
            }
        })?,
        until("sleeps", || sched::sleep_ns(1_000_000))?,
    ];
    let mut outcome = Ok(());
    for _ in 0..100 {
        outcome = stop(|| wait_ns(20_000));
        if outcome.is_err() {
            break;
        }
        sched::yield_now();
    }
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        let rounds = task.join();
        check!(rounds > 0, "one of those in between never came to its turn");
    }
    outcome
}
