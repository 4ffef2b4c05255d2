// SPDX-License-Identifier: MIT OR Apache-2.0
//! A stack that is used up ends its task and nothing else.

use super::tasks::spawn;
use super::{Failure, Outcome, Test};
use crate::arch::callee::{Hit, NativeHook};
use crate::arch::{cpu, crash, overflow, switch};
use crate::hook::Point;
use crate::sched::{self, Died};
use crate::{check, hook, mm, rcu};
use alloc::format;
use alloc::sync::Arc;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};
use trampoline::Kind;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "overflow.ends_only_its_task_on_every_core",
        seconds: 60,
        run: alone,
    },
    Test {
        name: "overflow.names_the_hook_and_frees_it",
        seconds: 60,
        run: hooked,
    },
];

/// Runs `f`, which uses up its stack, in a task on `core`; returns the task's number.
pub(super) fn dies(core: usize, f: fn()) -> Result<u64, Failure> {
    let id = Arc::new(AtomicU64::new(0));
    let mine = id.clone();
    let task = sched::spawn_on("runaway", 1 << core, move || {
        mine.store(switch::current().id(), Ordering::Release);
        f();
    });
    let Some(task) = task else {
        return Err(Failure::Failed("no memory for a task".into()));
    };
    check!(
        task.try_join() == Err(Died),
        "a task without a stack came to its end on core {core}"
    );
    let id = id.load(Ordering::Acquire);
    let (reported, _) = overflow::last();
    check!(
        reported == id,
        "task {reported} was reported, not task {id}"
    );
    Ok(id)
}

fn alone() -> Outcome {
    dies(0, crash::run_away)?;
    let (_, before) = mm::frames::usage();
    for core in cpu::online() {
        for _ in 0..3 {
            dies(core, crash::run_away)?;
        }
        let task = sched::spawn_on("after", 1 << core, cpu::index);
        let ran = task.map(sched::JoinHandle::join);
        check!(
            ran == Some(core),
            "core {core} does not run tasks afterwards"
        );
    }
    // What the dead task was about does not hold up what others wait for.
    rcu::barrier();
    let (_, after) = mm::frames::usage();
    check!(
        before <= after + 40,
        "{before} page frames were free, now {after}"
    );
    Ok(())
}

/// Uses more of the stack than what it is attached to.
struct Deep;

impl NativeHook for Deep {
    const STACK: u32 = 2048;

    fn hit(&self, _: &Hit<'_>) -> u64 {
        let mut local = [1u64; 128];
        black_box(&mut local);
        local[5]
    }
}

fn hooked() -> Outcome {
    fn run() {
        black_box(crash::deeper(black_box(1)));
    }
    let name = "arch::crash::deeper";
    let function = hook::resolve(name).map_err(|e| Failure::Failed(format!("{e}")))?;
    let failed = |e: hook::HookError| Failure::Failed(format!("{e}"));
    let id = hook::attach_hook(
        &function,
        Point::of(Kind::Fentry),
        "deep".into(),
        Arc::new(Deep),
    )
    .map_err(failed)?;
    let outcome = dies(0, run);
    let (_, named) = overflow::last();
    hook::detach(id).map_err(failed)?;
    outcome?;
    check!(
        named > 0,
        "the report does not name the hook, which was active"
    );
    rcu::barrier();
    let join = spawn("after", || 7)?.join();
    check!(join == 7, "tasks do not run afterwards");
    Ok(())
}
