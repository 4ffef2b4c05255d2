// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks the Linux way: what programs get, who is turned away, sites that change there and back, and what is freed when.

use super::hooks::{call, failed, function, stress_with};
use super::overflow::dies;
use super::tasks::spawn;
use super::{Failure, Outcome, Test};
use crate::arch::callee::{Hit, NativeHook, Shape};
use crate::arch::{code, cpu, crash, smp, unwind};
use crate::context::{self, Context, Softirq};
use crate::hook::linux::{WAYS, Way};
use crate::hook::{
    self, At, HookError, HookId, How, Place, Point, ProbeWay, Program, Protection, Settings, WayIn,
};
use crate::workload::{set_gate, workload_blocks, workload_call, workload_six, workload_twelve};
use crate::{bpf, check, integrity, rcu, sched, symbols};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use trampoline::{Kind, ProbeKind, registers};

const fn test(name: &'static str, seconds: u64, run: fn() -> Outcome) -> Test {
    Test { name, seconds, run }
}

pub(super) const TESTS: &[Test] = &[
    test("linux.programs_get_arguments_and_results", 30, arguments),
    test("linux.compiled_programs_get_registers", 30, compiled),
    test("linux.trampolines_do_what_their_kinds_say", 30, kinds),
    test("linux.tracer_and_trampoline_share_a_function", 30, shared),
    test("linux.each_guard_turns_away_as_linux_does", 60, guards),
    test("linux.the_walk_counts_whom_it_turns_away", 30, walked),
    test("linux.every_changed_word_is_accounted_for", 30, accounted),
    test("linux.a_trace_goes_through_to_the_caller", 30, trace),
    test("linux.sites_change_there_and_back_under_load", 300, changes),
    test("linux.between_the_two_words_nothing_happens", 30, between),
    test("linux.no_op_runs_with_another_s_data", 120, stress),
    test("linux.returns_without_a_node_are_misses", 60, nodes),
    test("linux.kretprobes_by_brk_run_once_a_return", 60, kretprobes),
    test(
        "linux.kretprobes_by_brk_come_and_go_under_load",
        120,
        kretprobe_load,
    ),
    test("linux.detached_under_ten_sleepers", 60, sleepers),
    test("linux.what_does_not_fit_is_refused", 30, refused),
    test(
        "linux.an_image_that_failed_is_led_to_by_nothing",
        30,
        failed_image,
    ),
    test(
        "linux.a_return_outlives_an_attach_that_failed",
        60,
        failed_return,
    ),
    test("linux.what_cannot_be_undone_is_a_hook", 30, failed_twice),
    test("linux.a_task_that_dies_gives_its_nodes_back", 60, dead),
];

/// What a program does beside noting what it saw.
#[derive(Default)]
struct Probe {
    words: [[AtomicU64; registers::WORDS / 2]; 2],
    /// Hits by context.
    hits: [AtomicU64; 4],
    /// Calls the hooked function from inside, so often.
    recursing: AtomicU64,
    /// Has it called from the contexts above.
    climbs: AtomicBool,
    trace: [AtomicU64; 2],
    result: AtomicU64,
    cookie: AtomicU64,
    /// Hits with another one's cookie, or another function's arguments.
    wrong: AtomicU64,
}

impl NativeHook for Probe {
    #[inline(never)] // linker/audit.rules names it
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        self.hits[context::current() as usize].fetch_add(1, Relaxed);
        for (to, from) in self.words.as_flattened().iter().zip(hit.words()) {
            to.store(*from, Relaxed);
        }
        if hit.attachment().cookie != self.cookie.load(Relaxed) {
            self.wrong.fetch_add(1, Relaxed);
        }
        let mut trace = [0; 2];
        unwind::hook_trace(0, &mut trace);
        for (to, from) in self.trace.iter().zip(trace) {
            to.store(from, Relaxed);
        }
        if self.recursing.load(Relaxed) != 0 {
            self.recursing.fetch_sub(1, Relaxed);
            black_box(call as fn(u64, u64) -> u64)(1, 1);
        }
        // By a pointer that nothing sees through: what a hook may not do is not on the path of hooks (linker/audit.rules).
        if self.climbs.swap(false, Relaxed) {
            black_box(climb as fn())();
        }
        self.result.load(Relaxed)
    }
}

impl Probe {
    fn word(&self, index: usize) -> u64 {
        self.words
            .as_flattened()
            .get(index)
            .map_or(0, |w| w.load(Relaxed))
    }

    fn take_hits(&self) -> [u64; 4] {
        self.hits.each_ref().map(|hits| hits.swap(0, Relaxed))
    }
}

/// Calls of the hooked function from above.
static ABOVE: AtomicU64 = AtomicU64::new(0);

fn call_from_above() {
    call(1, 1);
    ABOVE.fetch_add(1, Relaxed);
}

/// Has the hooked function called from softirq, hardirq and NMI, one after the other.
fn climb() {
    let rungs: [fn(); 3] = [
        || context::raise(Softirq::Test),
        || smp::send(cpu::index(), smp::Ipi::Test),
        || smp::send_nmi(cpu::index()),
    ];
    for rung in rungs {
        let before = ABOVE.load(Relaxed);
        rung();
        for _ in 0..1_000_000 {
            if ABOVE.load(Relaxed) != before {
                break;
            }
            core::hint::spin_loop();
        }
    }
}

/// Where tests hang in, from softirq up.
const SLOTS: [&context::Slot; 3] = [
    &context::TEST_SOFTIRQ,
    &context::TEST_HARDIRQ,
    &context::TEST_NMI,
];

fn set_slots(function: Option<&'static fn()>) {
    SLOTS.iter().for_each(|slot| slot.set(function));
}

fn attach_to(
    names: &[&str],
    way: Way,
    point: Point,
    probe: &Arc<Probe>,
) -> Result<HookId, HookError> {
    let functions: Vec<_> = names.iter().flat_map(|n| hook::resolve(n).ok()).collect();
    probe.cookie.store(point.cookie, Relaxed);
    let program = Program::native("test".into(), probe.clone(), way.shape(point.kind));
    hook::linux::attach(&functions, way, point, program)
}

fn attach(name: &str, way: Way, kind: Kind, probe: &Arc<Probe>) -> Result<HookId, Failure> {
    attach_to(&[name], way, Point::of(kind), probe).map_err(|e| failed(&e))
}

fn detach(id: HookId) -> Outcome {
    hook::detach(id).map_err(|e| failed(&e))
}

/// How much of the pool is free once nothing is on its way back to it.
fn free_at_rest() -> usize {
    let look = || {
        rcu::barrier();
        hook::pool_free()
    };
    let mut last = look();
    for _ in 0..100 {
        let now = look();
        if now == last {
            break;
        }
        last = now;
    }
    last
}

/// What waits looks again and again, each time a grace period later: waits until all of the pool is back, of which so much was free.
fn settle(free: usize) -> Outcome {
    for _ in 0..100 {
        rcu::barrier();
        if hook::pool_free() == free {
            return Ok(());
        }
    }
    let now = hook::pool_free();
    check!(false, "{free} bytes of the pool were free, now {now}");
    Ok(())
}

fn arguments() -> Outcome {
    let address = function("workload_six")?.address as u64;
    let f = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
    let expected = f(1, 2, 3, 4, 5, u64::MAX);
    for way in WAYS {
        let probe = Arc::new(Probe::default());
        let id = attach("workload_six", way, Kind::Fentry, &probe)?;
        let name = way.name();
        for _ in 0..10 {
            let result = f(1, 2, 3, 4, 5, u64::MAX);
            check!(result == expected, "{name}: returned {result:#x}");
        }
        detach(id)?;
        f(9, 9, 9, 9, 9, 9);
        let hits = probe.take_hits();
        check!(hits == [10, 0, 0, 0], "{name}: 10 calls, hits {hits:?}");
        let seen: [u64; 6] = core::array::from_fn(|i| probe.word(i));
        let pc = probe.word((registers::PC / 8) as usize);
        match way {
            Way::FprobeExit => check!(seen[0] == expected, "{name}: result {:#x}", seen[0]),
            _ => check!(seen == [1, 2, 3, 4, 5, u64::MAX], "{name}: got {seen:x?}"),
        }
        match way {
            Way::Fprobe => check!(pc == address, "{name}: pc is {pc:#x}"),
            Way::List { all: true } | Way::CallOps { all: true } => {
                check!(pc == address + 8, "{name}: pc is {pc:#x}");
                let sp = probe.word((registers::SP / 8) as usize);
                let here = core::ptr::from_ref(&pc).addr() as u64;
                check!(here.abs_diff(sp) < 4096, "{name}: sp is {sp:#x}");
            }
            _ => {}
        }
    }
    Ok(())
}

fn compiled() -> Outcome {
    let target = [function("workload_call")?];
    let value = |key: u32| -> Result<u64, Failure> {
        let map = bpf::map("linux.seen");
        let map = map.ok_or_else(|| Failure::Failed("no map linux.seen".into()))?;
        let mut bytes = [0; 8];
        map.lookup(&key.to_le_bytes(), &mut bytes)
            .map_err(|e| failed(&e))?;
        Ok(u64::from_le_bytes(bytes))
    };
    for engine in [bpf::Engine::Jit, bpf::Engine::Interpreter] {
        for way in [
            Way::Fprobe,
            Way::CallOps { all: true },
            Way::List { all: true },
        ] {
            let on = |spec, way| {
                let at = |how: How, _: Option<&str>| match how {
                    How::Linux(way, kind) => Ok(At::Linux(target.to_vec(), way, kind)),
                    other => other.at("*"),
                };
                let attached =
                    bpf::attach_at(spec, engine, WayIn::Linux(way), Settings::default(), at);
                attached.map(|hooked| hooked.id).map_err(|e| failed(&e))
            };
            let entry = on("linux/entry_note", way)?;
            // fprobe finds its op at the callsite.
            let exit = match way {
                Way::List { .. } => None,
                _ => Some(on("linux/exit_note", Way::FprobeExit)?),
            };
            let result = call(7, 5);
            let seen = [value(0)?, value(1)?, value(2)?];
            detach(entry)?;
            exit.map_or(Ok(()), detach)?;
            check!(result == 26, "{}: returned {result}", way.name());
            check!(
                seen == [7, 5, 26],
                "{}, {}: {seen:?}",
                way.name(),
                engine.name()
            );
        }
    }
    Ok(())
}

/// [`workload_twelve`]
type Twelve = extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u64;

fn kinds() -> Outcome {
    let probes: [Arc<Probe>; 3] = Default::default();
    let mut ids = Vec::new();
    for (kind, probe) in [Kind::Fexit, Kind::Fentry, Kind::FmodRet]
        .into_iter()
        .zip(&probes)
    {
        ids.push(attach("workload_twelve", Way::Trampoline, kind, probe)?);
    }
    let f = black_box(workload_twelve as Twelve);
    let hooked = f(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    let words: [u64; 13] = core::array::from_fn(|i| probes[0].word(i));
    probes[2].result.store(77, Relaxed);
    let skipped = f(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    let result = probes[0].word(12);
    for id in ids {
        detach(id)?;
    }
    let plain = f(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    check!(
        plain == 650 && hooked == plain,
        "returned {hooked}, not {plain}"
    );
    let expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 650];
    check!(words == expected, "the exit got {words:?}");
    check!(
        (skipped, result) == (77, 77),
        "skipped, it returned {skipped}, and the exit got {result}"
    );
    let hits = probes.each_ref().map(|p| p.take_hits()[0]);
    check!(hits == [2; 3], "2 calls, hits {hits:?}");
    Ok(())
}

fn shared() -> Outcome {
    for way in [
        Way::List { all: false },
        Way::CallOps { all: false },
        Way::FprobeExit,
    ] {
        for kind in [Kind::Fentry, Kind::Fexit, Kind::FmodRet] {
            let probes: [Arc<Probe>; 3] = Default::default();
            let name = way.name();
            let trampoline = attach("workload_call", Way::Trampoline, kind, &probes[0])?;
            let tracer = attach("workload_call", way, Kind::Fentry, &probes[1])?;
            let second = attach("workload_call", Way::Trampoline, Kind::Fexit, &probes[2])?;
            let both = call(4, 5);
            let hits = probes.each_ref().map(|p| p.take_hits()[0]);
            detach(trampoline)?;
            let without = call(4, 6);
            detach(second)?;
            let alone = call(4, 7);
            let later = probes.each_ref().map(|p| p.take_hits()[0]);
            detach(tracer)?;
            check!(
                (both, without, alone, call(4, 8)) == (17, 18, 19, 20),
                "{name} and {kind}: {both}, {without}, {alone}"
            );
            check!(hits == [1; 3], "{name} and {kind}: hits {hits:?}");
            check!(
                later == [0, 2, 1],
                "{name} and {kind}: later hits {later:?}"
            );
        }
    }
    Ok(())
}

/// One call with a recursion in it, then one in whose program all contexts above call as well: hits and misses by context.
fn guard(way: Way, point: Point) -> Result<[[u64; 4]; 4], Failure> {
    let probe = Arc::new(Probe::default());
    let on = || attach_to(&["workload_call"], way, point, &probe).map_err(|e| failed(&e));
    let id = on()?;
    probe.recursing.store(3, Relaxed);
    call(1, 2);
    let (recursed, turned) = (probe.take_hits(), hook::misses(id));
    detach(id)?;
    let id = on()?;
    probe.recursing.store(0, Relaxed);
    probe.climbs.store(true, Relaxed);
    set_slots(Some(&(call_from_above as fn())));
    call(1, 2);
    set_slots(None);
    let (above, away) = (probe.take_hits(), hook::misses(id));
    detach(id)?;
    Ok([recursed, turned, above, away])
}

fn guards() -> Outcome {
    let (entry, exit) = (Point::of(Kind::Fentry), Point::of(Kind::Fexit));
    let unprotected = Point {
        protection: Protection::Pinned,
        ..entry
    };
    // The bits let a recursion in once more, by the transition bit, and every other context. The counters of a core turn both away.
    let bits = [[2, 0, 0, 0], [1, 0, 0, 0], [1; 4], [0; 4]];
    let counter = [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1]];
    let none = [[4, 0, 0, 0], [0; 4], [1; 4], [0; 4]];
    let sleepable = |point| Point {
        sleepable: true,
        ..point
    };
    for (way, point, expected) in [
        (Way::List { all: false }, entry, bits),
        (Way::CallOps { all: false }, entry, bits),
        (Way::Fprobe, entry, counter),
        (Way::Trampoline, entry, counter),
        (Way::Trampoline, exit, counter),
        (Way::Trampoline, sleepable(entry), counter),
        (Way::Trampoline, unprotected, none),
        (Way::Trampoline, sleepable(unprotected), none),
    ] {
        let found = guard(way, point)?;
        check!(
            found == expected,
            "{} {} (sleepable: {}, {:?}): recursing hits, misses, climbing hits, misses are {found:?}, not {expected:?}",
            way.name(),
            point.kind,
            point.sleepable,
            point.protection
        );
    }
    Ok(())
}

fn walked() -> Outcome {
    for kind in [Kind::Fentry, Kind::Fexit] {
        let probes: [Arc<Probe>; 4] = Default::default();
        let list = Way::List { all: false };
        let ids = [
            attach("workload_call", list, Kind::Fentry, &probes[0])?,
            attach("workload_call", list, Kind::Fentry, &probes[1])?,
            attach("workload_call", Way::Trampoline, kind, &probes[2])?,
            attach("workload_six", list, Kind::Fentry, &probes[3])?,
        ];
        // The program calls the function, and its second run does so again: that the walk turns away.
        probes[1].recursing.store(2, Relaxed);
        let result = call(1, 2);
        let misses = ids.map(hook::misses);
        ids.into_iter().try_for_each(detach)?;
        let hits = probes.each_ref().map(|p| p.take_hits());
        check!(result == 5, "returned {result}");
        check!(
            hits == [[2, 0, 0, 0], [2, 0, 0, 0], [2, 0, 0, 0], [0; 4]],
            "3 calls: hits {hits:?}"
        );
        check!(
            misses == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0; 4]],
            "3 calls: misses {misses:?}"
        );
    }
    Ok(())
}

fn accounted() -> Outcome {
    let free = free_at_rest();
    let look = || integrity::check().map_err(Failure::Failed);
    let before = look()?.accounted;
    // Words that each has changed.
    let hooked = [
        ("workload_call", Way::Trampoline, 2),
        ("workload_six", Way::List { all: true }, 2),
        ("workload_twelve", Way::CallOps { all: false }, 3),
        ("workload_nested", Way::FprobeExit, 3),
    ];
    let (mut ids, mut words) = (Vec::new(), 0);
    for (name, way, changed) in hooked {
        ids.push(attach(name, way, Kind::Fentry, &Arc::default())?);
        words += changed;
        let lines = hook::describe(function(name)?.address);
        let calls = lines.iter().filter(|l| l.ingredient == "program").count();
        check!(calls != 0, "{}: no call of a program is shown", way.name());
    }
    let report = look()?;
    ids.into_iter().try_for_each(detach)?;
    check!(
        (report.accounted, report.unaccounted) == (before + words, 0),
        "{} words changed, {} of them accounted for, not {words}",
        report.accounted + report.unaccounted - before,
        report.accounted - before
    );
    let report = look()?;
    check!(
        (report.accounted, report.unaccounted) == (before, 0),
        "a word is left"
    );
    settle(free)
}

fn trace() -> Outcome {
    let hooked = function("workload_call")?.address as u64;
    for way in WAYS {
        let probe = Arc::new(Probe::default());
        let id = attach("workload_call", way, Kind::Fentry, &probe)?;
        call(1, 2);
        detach(id)?;
        let [first, second] = probe.trace.each_ref().map(|t| t.load(Relaxed));
        // At the exit the function is no more on the stack.
        let (function, next) = match way {
            Way::FprobeExit => (hooked, first),
            _ => (first, second),
        };
        let caller = symbols::Name(next as usize).function();
        check!(
            (hooked..hooked + 12).contains(&function) && caller.contains("::tests::"),
            "{}: {first:#x}, {second:#x}: not {hooked:#x} and then this test, but {caller}",
            way.name()
        );
    }
    Ok(())
}

fn changes() -> Outcome {
    let function = function("workload_call")?;
    let functions = core::slice::from_ref(&function);
    // A task that is preempted in a program keeps others of its core out where a counter of the core is the guard.
    let point = Point {
        protection: Protection::Pinned,
        ..Point::of(Kind::Fentry)
    };
    let exit = Point {
        kind: Kind::Fexit,
        ..point
    };
    let ways = [
        None,
        Some((Way::Trampoline, point)),
        Some((Way::List { all: false }, point)),
        Some((Way::CallOps { all: false }, point)),
        None,
        Some((Way::Trampoline, exit)),
        Some((Way::Fprobe, point)),
        Some((Way::CallOps { all: true }, point)),
    ];
    stress_with(8, 32, &|round, stamps| {
        let way = ways.get(round as usize % ways.len()).copied().flatten();
        let Some((way, point)) = way else {
            return hook::attach_hook(&function, point, "stress".into(), stamps.clone());
        };
        let shape = way.shape(point.kind);
        let program = Program::native("stress".into(), stamps.clone(), shape);
        hook::linux::attach(functions, way, point, program)
    })
}

/// The code behind a function's first word: what a task executes that was preempted between the two.
fn behind_first_word() -> extern "C" fn(u64, u64) -> u64 {
    crate::arch::callee::behind_first_word(workload_call)
}

fn between() -> Outcome {
    let f = black_box(behind_first_word());
    check!(f(3, 4) == 13, "not hooked, behind word 0: wrong");
    let probe = Arc::new(Probe::default());
    let address = function("workload_call")?.address;
    // While it is attached a task keeps calling there, as if it had been preempted before each call, up to the moment when
    // the second word is changed, which may not come before that task has been seen elsewhere.
    let (stop, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let caller = {
        let (stop, calls) = (stop.clone(), calls.clone());
        spawn("between", move || {
            let mut right = true;
            // It gives up its core only when it has seen the first word changed and has called behind it some more.
            let mut more = 1000;
            while more != 0 && !stop.load(Relaxed) {
                right &= f(3, 4) == 13;
                calls.fetch_add(1, Relaxed);
                if code::read(address) == Some(trampoline::linux::site::first_word()) {
                    more -= 1;
                }
            }
            (right, more)
        })?
    };
    while calls.load(Relaxed) == 0 {
        sched::yield_now();
    }
    let id = attach(
        "workload_call",
        Way::CallOps { all: false },
        Kind::Fentry,
        &probe,
    )?;
    stop.store(true, Relaxed);
    let (right, more) = caller.join();
    let hits = probe.take_hits();
    detach(id)?;
    check!(
        right,
        "a call behind the first word returned a wrong result"
    );
    check!(
        more == 0,
        "the second word changed while a task was still between the two: {more} calls were to come"
    );
    check!(
        hits == [0; 4],
        "a call without the first word was hit: {hits:?}"
    );
    Ok(())
}

fn stress() -> Outcome {
    let free = free_at_rest();
    const TASKS: u64 = 25;
    const CALLS: u64 = 200;
    let probes: [Arc<Probe>; 6] = Default::default();
    let names: [&[&str]; 6] = [
        &["workload_call"],
        &["workload_call", "workload_six"],
        &["workload_six"],
        &["workload_call"],
        &["workload_call"],
        &["workload_six", "workload_call"],
    ];
    let ways = [
        Way::CallOps { all: false },
        Way::Fprobe,
        Way::CallOps { all: false },
        Way::FprobeExit,
        Way::Trampoline,
        Way::CallOps { all: true },
    ];
    let on = |index: usize| {
        let point = Point {
            cookie: 100 + index as u64,
            // Of a counter of the core a preempted task keeps others of its core out: see `changes`.
            protection: Protection::Pinned,
            ..Point::of(Kind::Fentry)
        };
        attach_to(names[index], ways[index], point, &probes[index]).map_err(|e| failed(&e))
    };
    let ids: Result<Vec<_>, _> = (0..5).map(on).collect();
    let ids = ids?;
    let tasks: Result<Vec<_>, _> = (0..TASKS)
        .map(|n| {
            spawn("stress", move || {
                let six =
                    black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
                (0..CALLS).all(|i| {
                    let right = call(n, i) == 3 * n + i && six(n, 0, 0, 0, 0, i) == n + 6 * i;
                    if i % 16 == 0 {
                        sched::yield_now();
                    }
                    right
                })
            })
        })
        .collect();
    let tasks = tasks?;
    for _ in 0..5 {
        detach(on(5)?)?;
    }
    let right = tasks.into_iter().all(|t| t.join());
    let misses: Vec<_> = ids.iter().map(|id| hook::misses(*id)[0]).collect();
    ids.into_iter().try_for_each(detach)?;
    check!(right, "a call returned a wrong result");
    let hits = probes.each_ref().map(|p| p.take_hits()[0]);
    let wrong = probes.each_ref().map(|p| p.wrong.load(Relaxed));
    check!(wrong == [0; 6], "hits with another one's data: {wrong:?}");
    let calls = TASKS * CALLS;
    let expected = [calls, 2 * calls, calls, calls, calls];
    let seen: Vec<_> = hits.iter().zip(&misses).map(|(h, m)| h + m).collect();
    check!(
        seen == expected,
        "hits and misses together are {seen:?}, not {expected:?} (misses: {misses:?})"
    );
    settle(free)
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
    sched::sleep_ns(10_000_000);
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
    sched::sleep_ns(5_000_000);
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

fn call_blocks(a: u64, b: u64) -> u64 {
    black_box(workload_blocks as extern "C" fn(u64, u64) -> u64)(a, b)
}

/// What a hooked function's second word leads to, inverted: an address on this stack would look as if someone returned there.
#[inline(never)]
fn hidden_target(function: &hook::Function) -> usize {
    let at = function.address + 4;
    let target = code::read(at).and_then(|word| a64::branch_target(word, at as u64));
    target.map_or(0, |target| !(target as usize))
}

/// The first word there.
#[inline(never)]
fn first_word(hidden: usize) -> Option<u32> {
    code::read(!black_box(hidden))
}

fn sleepers() -> Outcome {
    for way in [Way::Trampoline, Way::FprobeExit] {
        rcu::barrier();
        let name = way.name();
        let free = free_at_rest();
        let probe = Arc::new(Probe::default());
        let function = function("workload_blocks")?;
        let id = attach("workload_blocks", way, Kind::Fexit, &probe)?;
        let hidden = hidden_target(&function);
        check!(hidden != 0, "{name}: no branch at the hooked entry");
        set_gate(false);
        let tasks: Result<Vec<_>, _> = (0..10)
            .map(|n| spawn("sleeper", move || call_blocks(n, 5) == n + 10))
            .collect();
        let tasks = tasks?;
        sched::sleep_ns(5_000_000);
        detach(id)?;
        // Longer than any grace period takes: ten tasks will return into what was taken off.
        sched::sleep_ns(50_000_000);
        let weak = Arc::strong_count(&probe);
        let kept = first_word(hidden).is_some_and(|word| word != trampoline::pool::FILL);
        set_gate(true);
        let right = tasks.into_iter().all(|t| t.join());
        check!(
            kept && weak > 1,
            "{name}: freed under ten tasks that sleep in the function"
        );
        check!(right, "{name}: a call returned a wrong result");
        let hits = probe.take_hits();
        check!(hits == [0; 4], "{name}: hits after the detach: {hits:?}");
        settle(free)?;
        check!(
            Arc::strong_count(&probe) == 1,
            "{name}: the program is not freed"
        );
        if way == Way::Trampoline {
            let word = first_word(hidden);
            check!(
                word == Some(trampoline::pool::FILL),
                "the freed image holds {word:x?}, not BRK"
            );
        }
    }
    Ok(())
}

fn refused() -> Outcome {
    let says = |what: Result<HookId, HookError>, parts: &[&str]| {
        match what {
            Ok(_) => check!(false, "it was hooked; expected {parts:?}"),
            Err(e) => {
                let text = e.to_string();
                let all = parts.iter().all(|part| text.contains(part));
                check!(all, "{text:?} does not say {parts:?}");
            }
        }
        Ok(())
    };
    let probe = Arc::new(Probe::default());
    let other = Arc::new(Probe::default());
    let function = function("workload_call")?;
    let native = |point| hook::attach_hook(&function, point, "test".into(), other.clone());
    let entry = Point::of(Kind::Fentry);
    let taken = "take these off first";
    let id = attach(
        "workload_call",
        Way::CallOps { all: false },
        Kind::Fentry,
        &probe,
    )?;
    says(native(entry), &["workload_call", "the Linux way", taken])?;
    let list = Way::List { all: false };
    says(
        attach_to(&["workload_call"], list, entry, &other),
        &["per-callsite ops", taken],
    )?;
    detach(id)?;
    let id = native(entry).map_err(|e| failed(&e))?;
    let six_then_call = ["workload_six", "workload_call"];
    for way in WAYS {
        says(
            attach_to(&["workload_call"], way, entry, &probe),
            &["workload_call", "hooks by trampoline", taken],
        )?;
    }
    says(
        attach_to(&six_then_call, Way::Fprobe, entry, &probe),
        &["workload_call", taken],
    )?;
    detach(id)?;
    let sleepable = Point {
        sleepable: true,
        ..entry
    };
    says(
        attach_to(&["workload_call"], list, sleepable, &probe),
        &["must not block", "linux"],
    )?;
    let session = Point::of(Kind::Fsession);
    says(
        attach_to(&["workload_call"], Way::Trampoline, session, &probe),
        &["workload_call", "sessions"],
    )?;
    says(attach_to(&[], list, entry, &probe), &["no function"])?;
    let notrace = Point::of(Kind::FmodRet);
    says(
        attach_to(&["springboard_main"], Way::Trampoline, notrace, &probe),
        &["not marked overridable"],
    )?;
    let wrong = bpf::attach_at(
        "linux/entry_empty",
        bpf::Engine::Jit,
        WayIn::Linux(Way::Trampoline),
        Settings::default(),
        |how, _| how.on(function),
    );
    match wrong {
        Ok(_) => check!(false, "a kprobe.multi program went on a trampoline"),
        Err(e) => {
            let text = e.to_string();
            check!(text.contains("does not go with linux"), "{text}");
        }
    }
    // All is as it was: nothing refused has left a site behind.
    let report = integrity::check().map_err(Failure::Failed)?;
    check!(
        report.unaccounted == 0 && report.accounted == 0,
        "{} words are changed",
        report.accounted
    );
    check!(call(2, 2) == 8, "a wrong result");
    Ok(())
}

/// Which changes of sites fail, from now on: a bit each, the lowest first.
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Set at the first change that fails, which then waits for those who act on it.
static FAULT: AtomicBool = AtomicBool::new(false);

fn fails(_: u64) -> bool {
    let faults = FAULTS.load(Relaxed);
    FAULTS.store(faults >> 1, Relaxed);
    let fails = faults & 1 != 0;
    if fails && !FAULT.swap(true, Relaxed) {
        sched::sleep_ns(10_000_000);
    }
    fails
}

/// Runs `work` while changes of sites fail as `faults` says.
fn with_faults<T>(faults: u64, work: impl FnOnce() -> T) -> T {
    FAULTS.store(faults, Relaxed);
    FAULT.store(false, Relaxed);
    hook::linux::FAULT.set(Some(&(fails as fn(u64) -> bool)));
    let result = work();
    hook::linux::FAULT.set(None);
    result
}

/// All is as it was before something was attached that is not: the text, what is free of the pool, and who holds the program.
fn nothing_left(probe: &Arc<Probe>, free: usize) -> Outcome {
    let report = integrity::check().map_err(Failure::Failed)?;
    check!(
        (report.accounted, report.unaccounted) == (0, 0),
        "{} words are changed",
        report.accounted + report.unaccounted
    );
    settle(free)?;
    let freed = (0..100).any(|_| {
        rcu::barrier();
        Arc::strong_count(probe) == 1
    });
    check!(freed, "the program is not freed");
    Ok(())
}

fn failed_image() -> Outcome {
    let free = free_at_rest();
    // The change fails once, or is not to be had.
    for faults in [1, u64::MAX] {
        for kind in [Kind::Fentry, Kind::Fexit] {
            let probe = Arc::new(Probe::default());
            let on = || attach_to(&["workload_call"], Way::Trampoline, Point::of(kind), &probe);
            let attached = with_faults(faults, on);
            rcu::barrier();
            let result = call(1, 2);
            check!(
                matches!(attached, Err(HookError::Refused(..))) && result == 5,
                "faults {faults:#x}: {attached:?}, a call returned {result}"
            );
            check!(probe.take_hits() == [0; 4], "it is hit");
            nothing_left(&probe, free)?;
        }
    }
    Ok(())
}

fn failed_return() -> Outcome {
    let free = free_at_rest();
    let probe = Arc::new(Probe::default());
    set_gate(false);
    FAULT.store(false, Relaxed);
    let sleeper = spawn("sleeper", || {
        while !FAULT.load(Relaxed) {
            sched::sleep_ns(100_000);
        }
        call_blocks(3, 5) == 13
    })?;
    // The first site is led, a task comes in, the second one fails.
    let names = ["workload_blocks", "workload_call"];
    let on = || attach_to(&names, Way::FprobeExit, Point::of(Kind::Fexit), &probe);
    let attached = with_faults(0b10, on);
    sched::sleep_ns(50_000_000);
    rcu::barrier();
    let kept = Arc::strong_count(&probe);
    set_gate(true);
    let right = sleeper.join();
    let hits = probe.take_hits();
    check!(
        matches!(attached, Err(HookError::Refused(..))),
        "{attached:?}"
    );
    check!(kept > 1, "freed under a task that will return into it");
    check!(
        right && hits == [0; 4],
        "right: {right}, and hits {hits:?} of what is not attached"
    );
    nothing_left(&probe, free)
}

fn failed_twice() -> Outcome {
    let free = free_at_rest();
    let six = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
    for way in [Way::CallOps { all: false }, Way::FprobeExit] {
        let probe = Arc::new(Probe::default());
        // The second site fails, then the first one's way back, then the second one once more.
        let on = || {
            let names = ["workload_six", "workload_call"];
            attach_to(&names, way, Point::of(Kind::Fentry), &probe)
        };
        let id = match with_faults(0b1110, on) {
            Err(HookError::Stuck { id, .. }) => id,
            other => return Err(Failure::Failed(alloc::format!("{other:?}"))),
        };
        let listed = hook::list().iter().any(|h| h.id == id);
        let right = six(1, 0, 0, 0, 0, 1) == 7 && call(1, 2) == 5;
        let hits = probe.take_hits();
        check!(
            listed && right && hits == [1, 0, 0, 0],
            "listed: {listed}, right: {right}, hits {hits:?}"
        );
        detach(id)?;
        nothing_left(&probe, free)?;
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

/// The contexts in the order of the counters.
const _: () = assert!(Context::Task as usize == 0 && Context::Nmi as usize == 3);
