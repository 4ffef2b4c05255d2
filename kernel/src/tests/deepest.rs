// SPDX-License-Identifier: MIT OR Apache-2.0
//! The deepest that hooks may stand on one stack, all at once, and what is refused because it would be deeper.
//!
//! ```text
//!   task      what waits for workload_nested | a program of workload_call that blocks | one of what it blocks by
//!   softirq   what waits for torture_nested_00 | what waits for torture_pair_00 | a probe behind that one's site
//!   hardirq   the same
//!   NMI       the same
//! ```

use super::above;
use super::hooks::{detach, function};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook, past_site};
use crate::arch::switch;
use crate::context::{self, Context};
use crate::hook::{self, At, HookId, How, Point, Program, Protection, Settings};
use crate::mm::layout::STACK_SIZE;
use crate::mm::stack::{HIT_LIMIT, HOOK_RESERVE, WAITING_LIMIT};
use crate::workload::{workload_call, workload_nested};
use crate::{check, println, rcu, sched, torture};
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trampoline::{Kind, ProbeKind};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "deepest.all_that_may_nest_fits_on_a_stack",
        seconds: 60,
        run: fits,
    },
    Test {
        name: "deepest.what_waits_too_deep_is_refused",
        seconds: 30,
        run: refused,
    },
    Test {
        name: "deepest.the_kernel_stays_above_the_reserve",
        seconds: 10,
        run: above_the_reserve,
    },
];

type Two = extern "C" fn(u64, u64) -> u64;

/// What frames, records and registers take beside a program's bytes.
const BESIDE: usize = 1536;
/// Bytes that a hit keeps while the function runs that it stands in for, and while it runs itself.
const WAITING: usize = WAITING_LIMIT - BESIDE;
const RUNNING: usize = HIT_LIMIT - BESIDE;

/// The task that all of this is about: others pass by.
static TASK: AtomicU64 = AtomicU64::new(0);
/// Hits of the probe and of what the program blocks by, by context.
static HITS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn is_ours() -> bool {
    switch::current().id() == TASK.load(Relaxed)
}

/// Does it with so many bytes on the stack, all of them written.
#[inline(never)]
fn with<const BYTES: usize>(work: impl FnOnce() -> u64) -> u64 {
    let mut bytes = [0x5a_u8; BYTES];
    black_box(&mut bytes);
    let result = work();
    black_box(&mut bytes);
    result
}

/// Stands in for a function, and calls it.
struct Waits(Two);

impl NativeHook for Waits {
    #[inline(never)] // linker/audit.rules names it
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        let [a, b] = [0, 1].map(|n| hit.words().get(n).copied().unwrap_or(0));
        with::<WAITING>(|| past_site(self.0)(a, b))
    }
}

/// Blocks, once for each call by the task.
struct Blocks;

impl NativeHook for Blocks {
    #[inline(never)] // linker/audit.rules names it
    fn hit(&self, _: &Hit<'_>) -> u64 {
        match is_ours() {
            true => with::<RUNNING>(|| {
                black_box(sched::sleep_ns as fn(u64))(1_000_000);
                0
            }),
            false => 0,
        }
    }
}

/// Has the next higher context come, which does all of it again.
struct Climbs;

impl NativeHook for Climbs {
    #[inline(never)] // linker/audit.rules names it
    fn hit(&self, _: &Hit<'_>) -> u64 {
        match is_ours() {
            true => with::<RUNNING>(|| {
                black_box(climb as fn())();
                0
            }),
            false => 0,
        }
    }
}

fn climb() {
    above::climb(&HITS, || ());
}

/// From above.
fn call_torture() {
    if context::current() != Context::Task && is_ours() {
        black_box(torture::nested().0)(1, 2);
    }
}

fn waits(name: &str, original: Two) -> Result<HookId, Failure> {
    let hook = Arc::new(Waits(original));
    let point = Point::of(Kind::Freplace);
    hook::attach_hook(&function(name)?, point, "waits".into(), hook).map_err(|e| failed(&e))
}

fn fits() -> Outcome {
    let (nested, pair) = torture::nested();
    let at = |what| How::Probe(ProbeKind::Here, hook::ProbeWay::Detour).at(what);
    let behind = at("torture_pair_00+8").map_err(|e| failed(&e))?;
    let climbs = Program::native("climbs".into(), Arc::new(Climbs), behind.shape());
    let probe = hook::hook_in(behind, Settings::default(), climbs).map_err(|e| failed(&e))?;
    let sleepable = Point {
        sleepable: true,
        ..Point::of(Kind::Fentry)
    };
    let blocks = Arc::new(Blocks);
    let on = |name: &str, point, label: &str| {
        let function = function(name)?;
        let hook = Arc::new(Climbs);
        hook::attach_hook(&function, point, label.into(), hook).map_err(|e| failed(&e))
    };
    let hooks = [
        waits("workload_nested", workload_nested)?,
        waits("torture_nested_00", nested)?,
        waits("torture_pair_00", pair)?,
        hook::attach_hook(
            &function("workload_call")?,
            sleepable,
            "blocks".into(),
            blocks,
        )
        .map_err(|e| failed(&e))?,
        on("sched::sleep_ns", Point::of(Kind::Fentry), "climbs")?,
        probe.id,
    ];
    HITS.iter().for_each(|hits| hits.store(0, Relaxed));
    let ran = above::calling(&(call_torture as fn()), || {
        let task = spawn("deepest", || {
            let me = switch::current();
            TASK.store(me.id(), Relaxed);
            let result = black_box(workload_nested as Two)(3, 4);
            TASK.store(0, Relaxed);
            me.stack_was_used_up();
            (result, me.stack_used())
        })?;
        Ok::<_, Failure>(task.join())
    });
    for id in hooks {
        detach(id)?;
    }
    let (result, used) = ran?;
    check!(
        result == workload_call(3, 4) + workload_call(4, 3),
        "a wrong result: {result}"
    );
    let hits = HITS.each_ref().map(|hits| hits.load(Relaxed));
    // Whoever else sends an NMI to the core is one more.
    let [below @ .., nmi] = hits;
    check!(
        below == [2; 3] && nmi >= 2,
        "hits by context: {hits:?}, not two in each"
    );
    // All of it was on the stack at once, and the kernel's own fits beside it.
    let least = 7 * WAITING + 5 * RUNNING;
    let most = STACK_SIZE - HOOK_RESERVE + 7 * WAITING_LIMIT + 5 * HIT_LIMIT;
    check!(
        (least..most).contains(&used),
        "{used} bytes of stack were used, not {least} to {most}"
    );
    rcu::barrier();
    Ok(())
}

fn refused() -> Outcome {
    /// More than may wait, less than a hit may take.
    struct Much;
    impl NativeHook for Much {
        const STACK: u32 = WAITING_LIMIT as u32;
        fn hit(&self, _: &Hit<'_>) -> u64 {
            0
        }
    }
    const _: () = assert!(WAITING_LIMIT + BESIDE < HIT_LIMIT);
    let before = (hook::pool_free(), hook::list().len());
    let target = function("workload_call")?;
    let much = hook::attach_hook(
        &target,
        Point::of(Kind::Freplace),
        "much".into(),
        Arc::new(Much),
    );
    let text = much.err().map_or_else(Default::default, |e| e.to_string());
    let limit = format!("while the function runs, and {WAITING_LIMIT} are set aside");
    check!(
        text.contains("workload_call") && text.contains(&limit),
        "said: {text:?}"
    );
    // It calls nothing: it may take as much as a hit may.
    let point = Point {
        protection: Protection::None,
        ..Point::of(Kind::Fentry)
    };
    let id =
        hook::attach_hook(&target, point, "much".into(), Arc::new(Much)).map_err(|e| failed(&e))?;
    detach(id)?;

    let count = |name: &str, how: How| {
        let program = hook::Native::Count.program(how.shape());
        let at = function(name).map(|function| how.on(function))?;
        Ok::<_, Failure>(at.and_then(|at: At| hook::hook_in(at, Settings::default(), program)))
    };
    let linux = How::Linux(hook::linux::Way::Trampoline, Kind::Fexit);
    let kinds = [Kind::Fexit, Kind::Fsession].map(How::Trampoline);
    let below = |why: &str, name: &str| {
        for how in kinds.into_iter().chain([linux]) {
            let text = count(name, how)?
                .err()
                .map_or_else(Default::default, |e| e.to_string());
            check!(
                text.contains(name) && text.contains(why),
                "{how:?} on {name}: said {text:?}"
            );
        }
        // What waits on no stack is let in.
        for how in [How::Trampoline(Kind::Fentry), How::Many { exit: true }] {
            let hooked = count(name, how)?.map_err(|e| failed(&e))?;
            detach(hooked.id)?;
        }
        Ok(())
    };
    for name in ["task_main", "trap_irq", "springboard_secondary"] {
        below("first function of a stack or of a context", name)?;
    }
    let other = function("workload_call_other")?;
    let stands = hook::replace(&target, &other).map_err(|e| failed(&e))?;
    let outcome = below(
        "stands in the place of workload_call",
        "workload_call_other",
    );
    detach(stands)?;
    outcome?;
    for by in ["torture_nested_00", "workload_nested", "workload_exchange"] {
        let replaced = hook::replace(&target, &function(by)?);
        let text = replaced
            .err()
            .map_or_else(Default::default, |e| e.to_string());
        check!(
            text.contains(by)
                && text.contains("calls another function that a trampoline may wait for"),
            "by {by}: said {text:?}"
        );
    }
    for how in kinds.into_iter().chain([linux]) {
        let waits = count("workload_call_other", how)?.map_err(|e| failed(&e))?;
        let replaced = hook::replace(&target, &other);
        detach(waits.id)?;
        let text = replaced
            .err()
            .map_or_else(Default::default, |e| e.to_string());
        check!(
            text.contains("waits for it to return") && text.contains("workload_call_other"),
            "{how:?}: said {text:?}"
        );
    }
    rcu::barrier();
    rcu::barrier();
    check!(
        (hook::pool_free(), hook::list().len()) == before,
        "the pool and the hooks are not as before"
    );
    Ok(())
}

/// Of all tasks, and all tests before this one, which is the last; hooks that these had included.
fn above_the_reserve() -> Outcome {
    let limit = STACK_SIZE - HOOK_RESERVE;
    let (used, task) = sched::most_stack();
    println!("task {task} used {used} bytes of its stack, more than any other");
    check!(
        used < limit,
        "task {task} has used {used} bytes of its stack; {limit} are the kernel's"
    );
    Ok(())
}
