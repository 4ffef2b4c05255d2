// SPDX-License-Identifier: MIT OR Apache-2.0
//! Returns that the Linux way takes: how many can be under way, and what is taken off, or dies, while some are.

use super::hooks::{call, detach, function};
use super::linux::{Probe, attach, free_at_rest, is_freed, nothing_left, settle, test};
use super::overflow::dies;
use super::sleepers::{Image, are_asleep, under_ten_sleepers};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::Shape;
use crate::arch::{cpu, crash};
use crate::hook::linux::Way;
use crate::hook::{self, HookId, Place, Point, ProbeWay, Program};
use crate::workload::{set_gate, workload_blocks};
use crate::{check, rcu, sched};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use trampoline::{Kind, ProbeKind};

pub(super) const TESTS: &[Test] = &[
    test("linux.returns_without_a_node_are_misses", 60, nodes),
    test("linux.kretprobes_by_brk_run_once_a_return", 60, kretprobes),
    test(
        "linux.kretprobes_by_brk_come_and_go_under_load",
        120,
        kretprobe_load,
    ),
    test("linux.detached_under_ten_sleepers", 60, sleepers),
    test("linux.a_task_that_dies_gives_its_nodes_back", 60, dead),
];

pub(super) fn call_blocks(a: u64, b: u64) -> u64 {
    black_box(workload_blocks as extern "C" fn(u64, u64) -> u64)(a, b)
}

fn nodes() -> Outcome {
    let fprobe = |probe: &_| attach("workload_blocks", Way::FprobeExit, Kind::Fentry, probe);
    nodes_of(&fprobe)?;
    nodes_of(&|probe| kretprobe("workload_blocks", probe))
}

fn nodes_of(on: &dyn Fn(&Arc<Probe>) -> Result<HookId, Failure>) -> Outcome {
    let free = free_at_rest();
    let nodes = 2 * cpu::online().count() as u64;
    let probe = Arc::new(Probe::default());
    let id = on(&probe)?;
    set_gate(false);
    let tasks: Result<Vec<_>, _> = (0..nodes + 3)
        .map(|n| spawn("sleeper", move || workload_blocks(n, 5) == n + 10))
        .collect();
    let tasks = tasks?;
    are_asleep("sleeper", tasks.len())?;
    let missed = hook::misses(id);
    set_gate(true);
    let right = tasks.into_iter().all(|t| t.join());
    let hits = probe.take_hits()[0];
    let after = call_blocks(1, 2) == 5 && probe.take_hits()[0] == 1;
    detach(id)?;
    check!(right, "a call returned a wrong result");
    check!(
        (missed, hits) == ([3, 0, 0, 0], nodes),
        "{nodes} nodes and 3 calls more: misses {missed:?}, hits {hits}"
    );
    check!(after, "no node came back");
    settle(free)
}

/// Puts a program on a function's return, by BRK.
fn kretprobe(name: &str, probe: &Arc<Probe>) -> Result<HookId, Failure> {
    let place = Place::of(function(name)?.address, 0);
    let place = place.ok_or_else(|| Failure::Failed("no symbols".into()))?;
    let program = Program::native("test".into(), probe.clone(), Shape::Registers);
    let (kind, point) = (ProbeKind::Return, Point::of(Kind::Fentry));
    let way = ProbeWay::Breakpoint;
    hook::attach_probe(&place, kind, way, point, program).map_err(|e| failed(&e))
}

fn kretprobes() -> Outcome {
    let free = free_at_rest();
    let probes: [Arc<Probe>; 2] = Default::default();
    let first = kretprobe("workload_call", &probes[0])?;
    let second = kretprobe("workload_call", &probes[1])?;
    let results: Vec<_> = (0..10).map(|i| call(i, 7)).collect();
    let seen = probes.each_ref().map(|p| p.word(0));
    let hits = probes.each_ref().map(|p| p.take_hits());
    detach(second)?;
    // The call from inside is turned away at its entry, and counted.
    probes[0].recursing.store(1, Relaxed);
    let recursed = call(1, 2);
    let (inside, misses) = (probes[0].take_hits(), hook::misses(first));
    let kind = hook::list().iter().find(|h| h.id == first).map(|h| h.kind);
    detach(first)?;
    let after = call(1, 2);
    let right = (0..10).map(|i| 3 * i + 7).eq(results.iter().copied());
    check!(
        right && seen == [34; 2] && hits == [[10, 0, 0, 0]; 2],
        "10 calls returned {results:?}; the last result seen is {seen:?}, hits {hits:?}"
    );
    check!(
        (recursed, after, inside, misses) == (5, 5, [1, 0, 0, 0], [1, 0, 0, 0]),
        "returned {recursed} and {after}; hits {inside:?}, misses {misses:?}"
    );
    check!(kind == Some("linux-kretprobe"), "listed as {kind:?}");
    check!(probes[0].take_hits() == [0; 4], "hit when it was off");
    for probe in &probes {
        nothing_left(probe, free)?;
    }
    // Taken off while a task is inside.
    let probe = Arc::new(Probe::default());
    let id = kretprobe("workload_blocks", &probe)?;
    set_gate(false);
    let sleeper = spawn("sleeper", || call_blocks(3, 5) == 13)?;
    are_asleep("sleeper", 1)?;
    detach(id)?;
    sched::sleep_ns(50_000_000);
    let kept = Arc::strong_count(&probe);
    set_gate(true);
    let right = sleeper.join();
    check!(kept > 1, "freed under a task that will return into it");
    let hits = probe.take_hits();
    check!(right && hits == [0; 4], "right: {right}, hits {hits:?}");
    nothing_left(&probe, free)
}

fn kretprobe_load() -> Outcome {
    const ROUNDS: u64 = 40;
    let free = free_at_rest();
    let probes: [Arc<Probe>; 2] = Default::default();
    let stays = kretprobe("workload_call", &probes[0])?;
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Result<Vec<_>, _> = (0..4u64)
        .map(|n| {
            let stop = stop.clone();
            spawn("caller", move || {
                let (mut calls, mut wrong) = (0, 0);
                while !stop.load(Relaxed) {
                    wrong += u64::from(call(n, calls) != 3 * n + calls);
                    calls += 1;
                    sched::yield_now();
                }
                (calls, wrong)
            })
        })
        .collect();
    let tasks = tasks?;
    for _ in 0..ROUNDS {
        let id = kretprobe("workload_call", &probes[1])?;
        sched::sleep_ns(500_000);
        detach(id)?;
    }
    stop.store(true, Relaxed);
    let done = tasks.into_iter().map(|t| t.join());
    let (calls, wrong) = done.fold((0, 0), |(c, w), (calls, wrong)| (c + calls, w + wrong));
    let misses = hook::misses(stays);
    detach(stays)?;
    let [hits, others] = probes.each_ref().map(|p| p.take_hits()[0]);
    check!(
        wrong == 0,
        "{wrong} of {calls} calls returned a wrong result"
    );
    check!(
        hits + misses[0] == calls && others != 0,
        "{calls} calls: {hits} hits, misses {misses:?}; {others} hits of what comes and goes"
    );
    for probe in &probes {
        nothing_left(probe, free)?;
    }
    Ok(())
}

fn sleepers() -> Outcome {
    for way in [Way::Trampoline, Way::FprobeExit] {
        rcu::barrier();
        let name = way.name();
        let free = free_at_rest();
        let probe = Arc::new(Probe::default());
        let function = function("workload_blocks")?;
        let id = attach("workload_blocks", way, Kind::Fexit, &probe)?;
        let image = Image::behind(function.address + 4)?;
        let look = || (image.is_there(), Arc::strong_count(&probe));
        let ((kept, weak), right) = under_ten_sleepers(|| detach(id), look)?;
        check!(
            kept && weak > 1,
            "{name}: freed under ten tasks that sleep in the function"
        );
        check!(right, "{name}: a call returned a wrong result");
        let hits = probe.take_hits();
        check!(hits == [0; 4], "{name}: hits after the detach: {hits:?}");
        settle(free)?;
        check!(is_freed(&probe), "{name}: the program is not freed");
        if way == Way::Trampoline {
            image.check_freed()?;
        }
    }
    Ok(())
}

fn dead() -> Outcome {
    let free = free_at_rest();
    let probe = Arc::new(Probe::default());
    let id = attach("arch::crash::crash", Way::FprobeExit, Kind::Fexit, &probe)?;
    // More often than there are nodes.
    for _ in 0..=2 * cpu::online().count() {
        dies(0, || _ = black_box(crash::crash("stack")))?;
    }
    let misses = hook::misses(id);
    detach(id)?;
    let hits = probe.take_hits();
    check!(
        (hits, misses) == ([0; 4], [0; 4]),
        "no call returned and none lacked a node: hits {hits:?}, misses {misses:?}"
    );
    nothing_left(&probe, free)
}
