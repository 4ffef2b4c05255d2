// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helper that sleeps: programs that read slow memory block until it is there, and only where a task may block.

use super::above;
use super::bpf::{ENGINES, hooked, object, refused, variable};
use super::hooks::{call, function};
use super::sleepers::{Image, pool_is_back};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::{irq, timer};
use crate::bpf::{self, Engine};
use crate::hook::linux::Way;
use crate::hook::{Native, Point};
use crate::mm::layout::PAGE;
use crate::sched::{self, State};
use crate::workload::workload_six;
use crate::{check, hook, initrd, rcu, slow, symbols};
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trampoline::Kind;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "slow.a_program_sleeps_until_its_page_is_there",
        seconds: 30,
        run: sleeps,
    },
    Test {
        name: "slow.detached_under_ten_readers",
        seconds: 60,
        run: detached,
    },
    Test {
        name: "slow.where_it_may_not_block_it_does_not",
        seconds: 30,
        run: atomic,
    },
    Test {
        name: "slow.under_a_program_that_is_not_sleepable_it_does_not_block",
        seconds: 60,
        run: nested,
    },
    Test {
        name: "slow.pages_may_go_at_any_time",
        seconds: 60,
        run: evicted,
    },
    Test {
        name: "slow.its_stack_is_what_the_audit_was_told",
        seconds: 30,
        run: stack,
    },
    Test {
        name: "slow.only_sleepable_programs_may_call_it",
        seconds: 20,
        run: closed,
    },
];

const PROGRAM: &str = "page_in";

/// What the program counts: read, failed, right.
fn counts() -> Result<[u64; 3], Failure> {
    let of = |name| variable(PROGRAM, name);
    Ok([of("read")?, of("failed")?, of("right")?])
}

/// By how much each count went up while `calls` ran with the program hooked.
fn counted(engine: Engine, calls: impl FnOnce() -> Outcome) -> Result<[u64; 3], Failure> {
    // Loads the object, if nobody did.
    bpf::section(PROGRAM).map_err(|e| failed(&e))?;
    let before = counts()?;
    hooked(PROGRAM, engine, calls)?;
    let after = counts()?;
    Ok(core::array::from_fn(|i| after[i] - before[i]))
}

/// The word of slow memory that far in.
fn word(offset: u64) -> u64 {
    let bytes = initrd::bytes().unwrap_or_default();
    let bytes = bytes
        .get(offset as usize..)
        .and_then(|rest| rest.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Calls the hooked function with what the program then compares; whether the result is right.
fn read(offset: u64) -> bool {
    let expected = word(offset);
    call(offset, expected) == offset.wrapping_mul(3).wrapping_add(expected)
}

fn sleeps() -> Outcome {
    let bytes = slow::bytes();
    check!(
        bytes > 4 * PAGE,
        "only {bytes} bytes of slow memory: the initrd is small"
    );
    for engine in ENGINES {
        slow::evict();
        let before = slow::brought();
        // A word, the word behind it, one that lies in two pages; then what is not there.
        let changed = counted(engine, || {
            for offset in [16, 24, PAGE as u64 - 4, 2 * PAGE as u64 - 1] {
                check!(read(offset), "a wrong result");
            }
            for offset in [bytes as u64, 1 << 40, u64::MAX] {
                check!(read(offset), "a wrong result");
            }
            Ok(())
        })?;
        let brought = slow::brought() - before;
        check!(
            changed == [4, 3, 4] && brought == 3,
            "{engine:?}: read, failed, right: {changed:?}; {brought} pages brought in"
        );
    }
    Ok(())
}

/// Waits until that many tasks sleep in programs, for 20 s at most; how many do.
pub(super) fn wait_for_sleepers(wanted: u64) -> u64 {
    let deadline = timer::now_ns() + 20_000_000_000;
    loop {
        let mut asleep = 0;
        sched::for_each(|task| {
            asleep += u64::from(task.in_sleepable() && task.state() == State::Blocked);
        });
        if asleep >= wanted || timer::now_ns() > deadline {
            return asleep;
        }
        sched::sleep_ns(1_000_000);
    }
}

fn detached() -> Outcome {
    const TASKS: u64 = 10;
    for engine in ENGINES {
        bpf::section(PROGRAM).map_err(|e| failed(&e))?;
        slow::evict();
        rcu::barrier();
        let free = hook::pool_free();
        let before = counts()?;
        let function = function("workload_call")?;
        let id = bpf::attach(PROGRAM, &function, engine).map_err(|e| failed(&e))?;
        let image = Image::behind(function.address)?;
        slow::hold(true);
        let tasks: Result<Vec<_>, _> = (0..TASKS)
            .map(|n| spawn("reader", move || read(n * 8)))
            .collect();
        let tasks = tasks?;
        let asleep = wait_for_sleepers(TASKS);
        let detached = hook::detach(id);
        // Longer than any grace period takes: the image has to stay, for ten tasks are inside.
        sched::sleep_ns(50_000_000);
        let kept = image.is_there();
        slow::hold(false);
        let right = tasks.into_iter().all(|task| task.join());
        detached.map_err(|e| failed(&e))?;
        check!(
            asleep == TASKS,
            "{engine:?}: {asleep} of {TASKS} tasks sleep in the helper"
        );
        check!(kept, "{engine:?}: the image was freed under ten sleepers");
        check!(right, "{engine:?}: a call returned a wrong result");
        let after = counts()?;
        let changed: [u64; 3] = core::array::from_fn(|i| after[i] - before[i]);
        check!(
            changed == [TASKS, 0, TASKS],
            "{engine:?}: read, failed, right: {changed:?} of {TASKS}"
        );
        image.check_freed()?;
        pool_is_back(free)?;
    }
    Ok(())
}

/// Calls from above that returned the right result.
static FROM_ABOVE: AtomicU64 = AtomicU64::new(0);

fn read_from_above() {
    FROM_ABOVE.fetch_add(u64::from(read(32)), Relaxed);
}

fn atomic() -> Outcome {
    let calls = || {
        let state = irq::disable();
        let masked = read(32);
        irq::restore(state);
        sched::preempt_disable();
        let kept = read(32);
        sched::preempt_enable();
        check!(masked && kept, "a wrong result where no task may block");
        FROM_ABOVE.store(0, Relaxed);
        above::calling(&(read_from_above as fn()), || {
            sched::migrate_disable();
            above::each(|| ());
            sched::migrate_enable();
            for _ in 0..1000 {
                if FROM_ABOVE.load(Relaxed) == 3 {
                    break;
                }
                sched::sleep_ns(1_000_000);
            }
        });
        let right = FROM_ABOVE.load(Relaxed);
        check!(right == 3, "{right} of 3 calls from above were right");
        Ok(())
    };
    for engine in ENGINES {
        slow::evict();
        let before = slow::brought();
        let away = counted(engine, calls)?;
        let brought = slow::brought() - before;
        check!(
            away == [0, 5, 0] && brought == 0,
            "{engine:?}: where no task may block: read, failed, right: {away:?}; {brought} pages brought in"
        );
        // What is there may be read from anywhere.
        counted(engine, || {
            check!(read(32), "a wrong result");
            Ok(())
        })?;
        let there = counted(engine, calls)?;
        check!(
            there == [5, 0, 5],
            "{engine:?}: what is there: read, failed, right: {there:?}"
        );
    }
    Ok(())
}

/// A program that is not sleepable calls a function whose program is. Its image does not wait for who sleeps.
fn nested() -> Outcome {
    let six = function("workload_six")?;
    let point = Point::of(Kind::Fentry);
    let linux = || {
        let way = Way::Trampoline;
        let program = Native::Again.program(way.shape(point.kind));
        hook::linux::attach(&[six], way, point, program)
    };
    let own = || hook::attach_native(&six, Native::Again, point);
    for (engine, attach) in ENGINES
        .into_iter()
        .flat_map(|engine| [(engine, &own as &dyn Fn() -> _), (engine, &linux)])
    {
        bpf::section(PROGRAM).map_err(|e| failed(&e))?;
        slow::evict();
        let before = counts()?;
        let sleepable = bpf::attach(PROGRAM, &function("workload_call")?, engine);
        let sleepable = sleepable.map_err(|e| failed(&e))?;
        let again = attach().map_err(|e| failed(&e))?;
        slow::hold(true);
        let task = spawn("reader", || workload_six(1, 2, 3, 4, 5, 6))?;
        sched::sleep_ns(10_000_000);
        let detached = hook::detach(again);
        // Longer than any grace period takes.
        sched::sleep_ns(50_000_000);
        slow::hold(false);
        let result = task.join();
        let misses = hook::misses(sleepable);
        hook::detach(sleepable).map_err(|e| failed(&e))?;
        detached.map_err(|e| failed(&e))?;
        let after = counts()?;
        let changed: [u64; 3] = core::array::from_fn(|i| after[i] - before[i]);
        check!(
            changed == [0, 1, 0] && misses == [0; 4],
            "{engine:?}: read, failed, right: {changed:?}; misses {misses:?}"
        );
        let right = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
        let right = right(1, 2, 3, 4, 5, 6);
        check!(result == right, "{engine:?}: {result}, not {right}");
        rcu::barrier();
    }
    Ok(())
}

fn evicted() -> Outcome {
    const READERS: u64 = 4;
    const READS: u64 = 30;
    for engine in ENGINES {
        let changed = counted(engine, || {
            let tasks: Result<Vec<_>, _> = (0..READERS)
                .map(|n| {
                    spawn("reader", move || {
                        (0..READS).all(|i| read((n * READS + i) * 97 % (4 * PAGE as u64)))
                    })
                })
                .collect();
            let tasks = tasks?;
            for _ in 0..40 {
                slow::evict();
                sched::sleep_ns(1_000_000);
            }
            let right = tasks.into_iter().all(|task| task.join());
            check!(right, "{engine:?}: a call returned a wrong result");
            Ok(())
        })?;
        let all = READERS * READS;
        check!(
            changed == [all, 0, all],
            "{engine:?}: read, failed, right: {changed:?} of {all}"
        );
    }
    Ok(())
}

fn stack() -> Outcome {
    let helper = bpf_vm::helpers::by_number(148).and_then(|helper| helper.function.address());
    let told = helper.and_then(symbols::stack_of);
    let told = told.ok_or_else(|| Failure::Failed("the audit does not know the helper".into()))?;
    bpf::section(PROGRAM).map_err(|e| failed(&e))?;
    let function = function("workload_call")?;
    let id = bpf::attach(PROGRAM, &function, Engine::Jit).map_err(|e| failed(&e))?;
    let hook = hook::list().into_iter().find(|hook| hook.id == id);
    let limit = hook.map_or(0, |hook| hook.stack_bytes);
    slow::evict();
    slow::hold(true);
    static TOP: AtomicU64 = AtomicU64::new(0);
    let task = spawn("reader", || {
        let here = 0u64;
        TOP.store(core::ptr::from_ref(&here).addr() as u64, Relaxed);
        read(0)
    })?;
    wait_for_sleepers(1);
    let mut lowest = 0;
    sched::for_each(|task| {
        if task.in_sleepable() && task.state() == State::Blocked {
            lowest = task.sp.load(Relaxed) as u64;
        }
    });
    let used = TOP.load(Relaxed).wrapping_sub(lowest);
    slow::hold(false);
    let right = task.join();
    hook::detach(id).map_err(|e| failed(&e))?;
    check!(right, "a wrong result");
    check!(
        used > 200 && used <= limit as u64 && u64::from(told) < limit as u64,
        "a hit that sleeps takes {used} bytes of stack; its limit is {limit}, the helper's {told}"
    );
    Ok(())
}

fn closed() -> Outcome {
    let mut normal = object("page_in.bpf.o")?;
    let (from, to) = (b"fentry.s/workload_call\0", b"fentry/workload_call\0\0\0");
    while let Some(at) = normal.windows(from.len()).position(|w| w == from) {
        normal[at..at + to.len()].copy_from_slice(to);
    }
    refused(
        "normal",
        &normal,
        "may call bpf_copy_from_user, which may sleep",
    )
}
