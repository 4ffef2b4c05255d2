// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks the Linux way: what programs get, who is turned away, and sites that change there and back.

use super::above;
use super::hooks::{call, detach, function, stress_with};
use super::multi;
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook};
use crate::arch::{code, unwind};
use crate::context::{self, Context};
use crate::hook::linux::{WAYS, Way};
use crate::hook::{
    self, At, HookError, HookId, How, Native, Point, Program, Protection, Settings, WayIn,
};
use crate::workload::{workload_call, workload_six, workload_twelve};
use crate::{bpf, check, integrity, rcu, sched, symbols};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use trampoline::{Kind, registers};

pub(super) const fn test(name: &'static str, seconds: u64, run: fn() -> Outcome) -> Test {
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
    test("linux.fprobe_on_a_pattern", 60, pattern),
];

/// What a program does beside noting what it saw.
#[derive(Default)]
pub(super) struct Probe {
    words: [[AtomicU64; registers::WORDS / 2]; 2],
    /// Hits by context.
    hits: [AtomicU64; 4],
    /// Calls the hooked function from inside, so often.
    pub(super) recursing: AtomicU64,
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
    pub(super) fn word(&self, index: usize) -> u64 {
        self.words
            .as_flattened()
            .get(index)
            .map_or(0, |w| w.load(Relaxed))
    }

    pub(super) fn take_hits(&self) -> [u64; 4] {
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
    let calls = || ABOVE.load(Relaxed);
    let mut before = calls();
    above::each(|| {
        above::wait(|| calls() != before);
        before = calls();
    });
}

pub(super) fn attach_to(
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

pub(super) fn attach(
    name: &str,
    way: Way,
    kind: Kind,
    probe: &Arc<Probe>,
) -> Result<HookId, Failure> {
    attach_to(&[name], way, Point::of(kind), probe).map_err(|e| failed(&e))
}

/// How much of the pool is free once nothing is on its way back to it.
pub(super) fn free_at_rest() -> usize {
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
pub(super) fn settle(free: usize) -> Outcome {
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

/// Whether nobody holds a program any more, when all that waits has looked again: its code may be back in the pool a moment before.
pub(super) fn is_freed(probe: &Arc<Probe>) -> bool {
    (0..100).any(|_| {
        rcu::barrier();
        Arc::strong_count(probe) == 1
    })
}

/// All is as it was before something was attached that is not: the text, what is free of the pool, and who holds the program.
pub(super) fn nothing_left(probe: &Arc<Probe>, free: usize) -> Outcome {
    let report = integrity::check().map_err(Failure::Failed)?;
    check!(
        (report.accounted, report.unaccounted) == (0, 0),
        "{} words are changed",
        report.accounted + report.unaccounted
    );
    settle(free)?;
    check!(is_freed(probe), "the program is not freed");
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
    above::calling(&(call_from_above as fn()), || call(1, 2));
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

fn pattern() -> Outcome {
    let free = free_at_rest();
    let ways = [Way::Fprobe, Way::FprobeExit];
    let (all, nothing) = multi::each_by(ways.map(WayIn::Linux))?;
    check!(nothing.is_empty(), "left out: {nothing}");
    // What someone else has hooked is left out.
    let point = Point::of(Kind::Fentry);
    let taken = hook::attach_native(&function("workload_struct")?, Native::Count, point);
    let taken = taken.map_err(|e| failed(&e))?;
    let listed = attach(
        "workload_blocks",
        Way::List { all: false },
        Kind::Fentry,
        &Arc::default(),
    )?;
    let fewer = multi::each_by(ways.map(WayIn::Linux));
    let alone = How::Linux(Way::Fprobe, Kind::Fentry).at("workload_struc*");
    let alone = alone.and_then(|at| {
        let program = Native::Count.program(at.shape());
        hook::hook_in(at, Settings::default(), program)
    });
    detach(listed)?;
    detach(taken)?;
    let expected =
        "1 taken by hooks by trampoline, 1 taken by tracers of the list without per-callsite ops";
    let (functions, skipped) = fewer?;
    check!(
        (functions, skipped.as_str()) == (all - 2, expected),
        "on {functions} of {all} functions; left out: {skipped}"
    );
    match alone {
        Ok(_) => check!(false, "a function that was taken was hooked"),
        Err(e) => check!(
            e.to_string().contains("1 taken by hooks by trampoline"),
            "{e}"
        ),
    }
    let report = integrity::check().map_err(Failure::Failed)?;
    check!(
        (report.accounted, report.unaccounted) == (0, 0),
        "words are changed after the detach: {}, {}",
        report.accounted,
        report.unaccounted
    );
    settle(free)
}

/// The contexts in the order of the counters.
const _: () = assert!(Context::Task as usize == 0 && Context::Nmi as usize == 3);
