// SPDX-License-Identifier: MIT OR Apache-2.0
//! Probes: every instruction of a function, functions without a site, returns, load, contexts, what is refused.

use super::above;
use super::bpf::variable;
use super::hooks::{call, detach};
use super::sleepers::{Image, pool_is_back, under_ten_sleepers};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook, Shape};
use crate::arch::{code, timer};
use crate::bpf::{self, Engine};
use crate::context::{self};
use crate::hook::{
    self, At, HookId, How, Native, Place, Point, ProbeWay as Way, Program, Settings, WayIn,
};
use crate::workload::workload_call;
use crate::{check, integrity, rcu, sched};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use trampoline::{Kind, ProbeKind, registers};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "probes.every_instruction_of_a_function",
        seconds: 120,
        run: every_instruction,
    },
    Test {
        name: "probes.every_instruction_of_a_function_by_brk",
        seconds: 120,
        run: every_instruction_broken,
    },
    Test {
        name: "probes.a_brk_inside_a_brk_is_turned_away",
        seconds: 20,
        run: broken_inside,
    },
    Test {
        name: "probes.brk_in_every_context",
        seconds: 20,
        run: broken_contexts,
    },
    Test {
        name: "probes.the_ways_exclude_each_other",
        seconds: 20,
        run: ways,
    },
    Test {
        name: "probes.a_function_without_a_site",
        seconds: 20,
        run: without_site,
    },
    Test {
        name: "probes.registers_and_results",
        seconds: 20,
        run: samples,
    },
    Test {
        name: "probes.flags_and_registers_stay",
        seconds: 20,
        run: kept,
    },
    Test {
        name: "probes.every_context_runs_in_every_other",
        seconds: 20,
        run: contexts,
    },
    Test {
        name: "probes.come_and_go_under_load",
        seconds: 120,
        run: load,
    },
    Test {
        name: "probes.detached_under_ten_sleepers",
        seconds: 60,
        run: sleepers,
    },
    Test {
        name: "probes.a_function_returns_at_once",
        seconds: 20,
        run: overridden,
    },
    Test {
        name: "probes.what_cannot_be_probed_is_refused",
        seconds: 20,
        run: refused,
    },
];

fn place(name: &str) -> Result<Place, Failure> {
    hook::resolve_place(name).map_err(|e| failed(&e))
}

fn count(place: &Place, kind: ProbeKind) -> Result<HookId, hook::HookError> {
    count_by(Way::Detour, place, kind)
}

fn count_by(way: Way, place: &Place, kind: ProbeKind) -> Result<HookId, hook::HookError> {
    let count = Native::Count.program(Shape::Registers);
    hook::attach_probe(place, kind, way, Point::of(Kind::Fentry), count)
}

fn hits(id: HookId) -> u64 {
    hook::hits(id).unwrap_or(u64::MAX)
}

/// No word of the code differs from what was linked but by hooks.
fn intact(changed: usize) -> Outcome {
    let report = integrity::check().map_err(|e| failed(&e))?;
    let found = (report.accounted, report.unaccounted);
    check!(
        found == (changed, 0),
        "words changed by hooks and by no one: {found:?}"
    );
    Ok(())
}

static TABLE: [AtomicU64; 4] = [const { AtomicU64::new(1) }; 4];

#[inline(never)]
fn leaf(n: u64) -> u64 {
    black_box(n) ^ 0x55
}

/// A loop, conditional branches, ADRP, calls, a load-exclusive with its store, a division that is guarded by a comparison.
#[inline(never)]
fn probed(n: u64) -> u64 {
    let mut sum = 0u64;
    for i in 0..n {
        sum = match i % 3 {
            0 => sum.wrapping_add(leaf(i)),
            1 => sum ^ leaf(i).rotate_left(7),
            _ => sum.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        if sum & 4 != 0 {
            sum += TABLE
                .get((i & 3) as usize)
                .map_or(0, |t| t.fetch_add(0, Relaxed));
        }
        sum = sum.wrapping_add((i << 32) / (sum | 1));
    }
    sum
}

fn every_instruction() -> Outcome {
    every_instruction_by(Way::Detour)
}

fn every_instruction_broken() -> Outcome {
    every_instruction_by(Way::Breakpoint)
}

fn every_instruction_by(way: Way) -> Outcome {
    let run = black_box(probed as fn(u64) -> u64);
    const ROUNDS: u64 = 9;
    let expected = run(ROUNDS);
    let entry = Place::of(run as usize, 0).ok_or_else(|| failed(&"no such function"))?;
    intact(0)?;
    let (mut total, mut refused) = (0, Vec::new());
    let mut all = Vec::new();
    for offset in (0..u64::from(entry.function.size)).step_by(4) {
        let place = Place { offset, ..entry };
        let id = match count_by(way, &place, ProbeKind::Here) {
            Ok(id) => id,
            Err(e) => {
                refused.push(e.to_string());
                continue;
            }
        };
        let changed = hook::with_changes(|changes| changes.len());
        let results = [run(ROUNDS), run(ROUNDS)];
        let hits = hits(id);
        detach(id)?;
        let after = run(ROUNDS);
        check!(
            results == [expected; 2] && after == expected,
            "{}: {results:x?}, then {after:x} instead of {expected:x}",
            place.name()
        );
        // The second call hits as often as the first.
        check!(
            hits.is_multiple_of(2),
            "{}: {hits} hits of two calls",
            place.name()
        );
        check!(offset != 0 || hits == 2, "{hits} hits of the entry");
        check!(changed == 1, "{}: {changed} words changed", place.name());
        total += hits / 2;
        all.push((place, hits / 2));
    }
    // All at once: each is hit as often as it was alone.
    let ids: Result<Vec<_>, _> = all
        .iter()
        .map(|(place, _)| count_by(way, place, ProbeKind::Here))
        .collect();
    let ids = ids.map_err(|e| failed(&e))?;
    let result = run(ROUNDS);
    let together: u64 = ids.iter().map(|id| hits(*id)).sum();
    intact(ids.len())?;
    for id in ids {
        detach(id)?;
    }
    check!(
        result == expected,
        "all at once: {result:x} instead of {expected:x}"
    );
    check!(
        together == total,
        "{together} hits together, {total} one after the other"
    );
    let reasons = [
        "second word of its site",
        "load-exclusive",
        "raises an exception",
    ];
    let other = refused
        .iter()
        .find(|e| !reasons.iter().any(|reason| e.contains(reason)));
    check!(other.is_none(), "refused: {other:?}");
    check!(
        refused.iter().any(|e| e.contains(reasons[0])) && all.len() > 20,
        "{} instructions probed, {} refused",
        all.len(),
        refused.len()
    );
    rcu::barrier();
    intact(0)
}

/// A function of the prebuilt `core`, whose result is a struct: the caller says where, in x8.
const CORE: &str = "<core::str::pattern::StrSearcher>::new";

/// Calls it once.
fn find(text: &str) -> Option<usize> {
    text.find("needle")
}

/// A function of the prebuilt `core`, by its entry and by its return.
fn without_site() -> Outcome {
    let blob = crate::symbols::blob().ok_or_else(|| failed(&"no symbols"))?;
    let place = place(CORE)?;
    check!(!blob.has_site(place.address()), "{CORE} has a site");
    let resolved = hook::resolve(CORE)
        .map(|f| f.name)
        .map_err(|e| e.to_string());
    check!(resolved.is_err(), "{CORE} can be hooked by its site");
    let run = || black_box(find as fn(&str) -> Option<usize>)("in a haystack a needle lies");
    let expected = run();
    let ids = [ProbeKind::Here, ProbeKind::Return].map(|kind| count(&place, kind));
    let [entry, exit] = ids;
    let (entry, exit) = (
        entry.map_err(|e| failed(&e))?,
        exit.map_err(|e| failed(&e))?,
    );
    let marked = crate::hooked::of(place.address()).map(|mark| mark.to_string());
    let results: Vec<_> = (0..10).map(|_| run()).collect();
    let hits = [hits(entry), hits(exit)];
    intact(1)?;
    detach(entry)?;
    detach(exit)?;
    check!(
        results.iter().all(|r| *r == expected),
        "wrong results: {results:?}"
    );
    check!(hits == [10, 10], "hits of ten calls: {hits:?}");
    check!(
        marked.as_deref() == Some("kprobe count, kretprobe count"),
        "marked as hooked by {marked:?}"
    );
    check!(
        crate::hooked::of(place.address()).is_none(),
        "marked as hooked afterwards"
    );
    rcu::barrier();
    intact(0)
}

/// The programs of programs/kprobe.bpf.c, as their sections say, by both engines.
fn samples() -> Outcome {
    let place = place("workload_call")?;
    for (engine, way) in [
        (Engine::Jit, Way::Detour),
        (Engine::Interpreter, Way::Detour),
        (Engine::Jit, Way::Breakpoint),
        (Engine::Interpreter, Way::Breakpoint),
    ] {
        // By BRK at the first instruction behind the site, for the returns are at the entry.
        let here = Place {
            offset: if way == Way::Breakpoint { 8 } else { 0 },
            ..place
        };
        let attach = |program: &str| {
            let returns = program.contains("look_back") || program.contains("kret");
            let (place, way) = match returns {
                true => (&place, Way::Detour),
                false => (&here, way),
            };
            let at = |how: How, _: Option<&str>| {
                Ok(match how {
                    How::Probe(kind, _) => At::Probe(*place, kind, way),
                    other => other.at("workload_call")?,
                })
            };
            let (own, settings) = (WayIn::Springboard, Settings::default());
            let hooked = bpf::attach_at(program, engine, own, settings, at);
            hooked.map(|hooked| hooked.id).map_err(|e| failed(&e))
        };
        let ids = [
            attach("kprobe/look")?,
            attach("kprobe/look_back")?,
            attach("kprobe/kprobe_count")?,
            attach("kprobe/kretprobe_count")?,
            attach("kprobe/kprobe_empty")?,
            attach("kprobe/kretprobe_empty")?,
        ];
        let calls = || count_in_map("kprobe.calls");
        let before = calls()?;
        let call = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
        let results: Vec<_> = (0..20).map(|n| call(n, 5)).collect();
        let counted = calls()? - before;
        for id in ids {
            let missed: u64 = hook::misses(id).iter().sum();
            detach(id)?;
            check!(missed == 0, "{missed} misses");
        }
        let right = (0..20).zip(&results).all(|(n, r)| *r == 3 * n + 5);
        check!(right, "wrong results: {results:?}");
        check!(counted == 40, "{counted} hits of 20 entries and 20 returns");
        let [first, second, _, sp, pc, function] = seen("kprobe.seen", 0)?;
        check!((first, second) == (19, 5), "arguments {first} and {second}");
        let expected = match here.offset {
            0 => (place.address(), place.address()),
            _ => (here.address(), 0),
        };
        check!(
            (pc, function) == expected,
            "pc {pc:#x} and function {function:#x}"
        );
        let [_, _, result, sp_back, pc, function] = seen("kprobe.seen", 1)?;
        check!(result == 62, "the result is {result}");
        check!(
            sp == sp_back,
            "sp {sp:#x} at the entry, {sp_back:#x} at the return"
        );
        check!(function == place.address(), "function {function:#x}");
        let caller = crate::symbols::Name(pc as usize).function();
        check!(caller.contains("tests::probes"), "it returns to {caller}");
    }
    Ok(())
}

fn value(name: &str, key: u32) -> Result<Vec<u64>, Failure> {
    let map = bpf::map(name).ok_or_else(|| failed(&format!("no map {name}")))?;
    let mut bytes = vec![0; map.value_size()];
    map.lookup(&key.to_le_bytes(), &mut bytes)
        .map_err(|e| failed(&e))?;
    let words = bytes.as_chunks::<8>().0;
    Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

fn count_in_map(name: &str) -> Result<u64, Failure> {
    Ok(value(name, 0)?.first().copied().unwrap_or(0))
}

fn seen(name: &str, key: u32) -> Result<[u64; 6], Failure> {
    value(name, key)?
        .try_into()
        .map_err(|_| failed(&"not six words"))
}

/// What programs in these tests do.
struct Watch {
    hits: AtomicU64,
    words: [AtomicU64; registers::WORDS],
    /// Hits by context; climbs to the next in each.
    contexts: [AtomicU64; 4],
    climb: AtomicBool,
    /// Calls the probed function from inside.
    recursing: AtomicBool,
}

impl Default for Watch {
    fn default() -> Watch {
        Watch {
            hits: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; registers::WORDS],
            contexts: Default::default(),
            climb: AtomicBool::new(false),
            recursing: AtomicBool::new(false),
        }
    }
}

impl NativeHook for Watch {
    #[inline(never)] // audit.rules names it
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        self.hits.fetch_add(1, Relaxed);
        for (to, from) in self.words.iter().zip(hit.words()) {
            to.store(*from, Relaxed);
        }
        if let Some(hits) = self.contexts.get(context::current() as usize)
            && !self.climb.load(Relaxed)
        {
            hits.fetch_add(1, Relaxed);
        }
        if self.recursing.load(Relaxed) {
            black_box(call_once as fn())();
        }
        if self.climb.load(Relaxed) {
            black_box(Watch::climb as fn(&Watch))(self);
        }
        0
    }
}

impl Watch {
    fn x(&self, number: usize) -> u64 {
        self.words.get(number).map_or(0, |w| w.load(Relaxed))
    }

    /// Calls the probed function from the next higher context, in the middle of this hit.
    fn climb(&self) {
        above::climb(&self.contexts, call_once);
    }
}

fn watch(place: &Place, kind: ProbeKind, watch: &Arc<Watch>) -> Result<HookId, Failure> {
    watch_by(Way::Detour, place, kind, watch).map_err(|e| failed(&e))
}

fn watch_by(
    way: Way,
    place: &Place,
    kind: ProbeKind,
    watch: &Arc<Watch>,
) -> Result<HookId, hook::HookError> {
    let program = Program::native("watch".into(), watch.clone(), Shape::Registers);
    hook::attach_probe(place, kind, way, Point::of(Kind::Fentry), program)
}

/// NZCV, and registers that no call preserves, across a probe.
#[inline(never)]
#[expect(unsafe_code, reason = "no other code leaves flags and registers alive")]
fn flags(value: u64) -> u64 {
    let (wrong, flags): (u64, u64);
    // SAFETY: changes registers that are declared.
    unsafe {
        core::arch::asm!(
            "msr nzcv, {value}",
            "mov x9, #9", "mov x10, #10", "mov x15, #15", "mov x16, #16", "mov x17, #17",
            "hint #0x7f", // the probed one, a hint that means nothing
            "mrs {flags}, nzcv",
            "sub x9, x9, #9", "sub x10, x10, #10", "sub x15, x15, #15", "sub x16, x16, #16",
            "sub x17, x17, #17",
            "orr x9, x9, x10", "orr x9, x9, x15", "orr x9, x9, x16", "orr {wrong}, x9, x17",
            value = in(reg) value, wrong = lateout(reg) wrong, flags = out(reg) flags,
            out("x9") _, out("x10") _, out("x15") _, out("x16") _, out("x17") _,
            options(nomem, nostack)
        )
    }
    flags | wrong
}

fn kept() -> Outcome {
    let run = black_box(flags as fn(u64) -> u64);
    let entry = Place::of(run as usize, 0).ok_or_else(|| failed(&"no such function"))?;
    let hint = |offset: &u64| code::read(run as usize + *offset as usize) == Some(0xd503_2fff);
    let offset = (0..u64::from(entry.function.size)).step_by(4).find(hint);
    let offset = offset.ok_or_else(|| failed(&"no hint in the function"))?;
    let seen = Arc::new(Watch::default());
    let id = watch(&Place { offset, ..entry }, ProbeKind::Here, &seen)?;
    let results: Vec<_> = (0..16).map(|n| (run(n << 28), seen.x(33))).collect();
    detach(id)?;
    for (n, (after, pstate)) in (0..16u64).zip(results) {
        check!(after == n << 28, "NZCV {n:04b} became {after:#x}");
        check!(
            pstate == n << 28 | 5,
            "NZCV {n:04b} is shown as {pstate:#x}"
        );
    }
    let (x9, x17, hits) = (seen.x(9), seen.x(17), seen.hits.load(Relaxed));
    check!(
        (x9, x17, hits) == (9, 17, 16),
        "x9 {x9}, x17 {x17}, {hits} hits"
    );
    Ok(())
}

fn call_once() {
    call(1, 1);
}

fn contexts() -> Outcome {
    let middle = Place {
        offset: 8,
        ..place("workload_call")?
    };
    for (place, kind) in [
        (middle, ProbeKind::Here),
        (place("workload_call")?, ProbeKind::Return),
    ] {
        let program = Arc::new(Watch::default());
        program.climb.store(true, Relaxed);
        let id = watch(&place, kind, &program)?;
        let result = above::calling(&(call_once as fn()), || call(1, 2));
        let misses = hook::misses(id);
        detach(id)?;
        check!(result == 5, "a wrong result: {result}");
        let hits = program.contexts.each_ref().map(|c| c.load(Relaxed));
        check!(
            (hits, misses) == ([1; 4], [1; 4]),
            "hits and misses in task, softirq, hardirq and NMI, nested: {hits:?}, {misses:?}"
        );
    }
    Ok(())
}

/// A program calls the function that it is on: turned away and counted; the function runs, its displaced instruction too.
fn broken_inside() -> Outcome {
    for offset in [0, 8] {
        let place = Place {
            offset,
            ..place("workload_call")?
        };
        let (first, second) = (Arc::new(Watch::default()), Arc::new(Watch::default()));
        first.recursing.store(true, Relaxed);
        let attach =
            |w| watch_by(Way::Breakpoint, &place, ProbeKind::Here, w).map_err(|e| failed(&e));
        let ids = [attach(&first)?, attach(&second)?];
        let result = call(4, 5);
        let misses = ids.map(|id| hook::misses(id)[0]);
        let [id, other] = ids;
        detach(id)?;
        let alone = call(4, 5);
        let hits = [&first, &second].map(|w| w.hits.load(Relaxed));
        detach(other)?;
        check!(
            (result, alone) == (17, 17),
            "wrong results: {result}, {alone}"
        );
        check!(
            (hits, misses) == ([1, 2], [1, 1]),
            "hits {hits:?}, misses {misses:?}"
        );
    }
    rcu::barrier();
    intact(0)
}

/// A function with a BRK in it, called in each context by itself.
fn broken_contexts() -> Outcome {
    let middle = Place {
        offset: 8,
        ..place("workload_call")?
    };
    let program = Arc::new(Watch::default());
    let id = watch_by(Way::Breakpoint, &middle, ProbeKind::Here, &program);
    let id = id.map_err(|e| failed(&e))?;
    let hits = || program.contexts.each_ref().map(|c| c.load(Relaxed));
    above::calling(&(call_once as fn()), || {
        call_once();
        above::each(|| ());
        for _ in 0..100 {
            if hits() == [1; 4] {
                break;
            }
            sched::sleep_ns(1_000_000);
        }
    });
    let misses = hook::misses(id);
    detach(id)?;
    let hits = hits();
    check!(
        (hits, misses) == ([1; 4], [0; 4]),
        "hits and misses in task, softirq, hardirq and NMI: {hits:?}, {misses:?}"
    );
    Ok(())
}

/// One place is a detour's or a BRK's; a function with a BRK at its entry is no trampoline's.
fn ways() -> Outcome {
    let entry = place("workload_call")?;
    let middle = Place { offset: 8, ..entry };
    let function = super::hooks::function("workload_call")?;
    let fentry = || hook::attach_native(&function, Native::Count, Point::of(Kind::Fentry));
    let refused = |attached: Result<HookId, hook::HookError>, part: &str| match attached {
        Ok(id) => detach(id).and(Err(failed(&format!("{part}: it was put on")))),
        Err(e) => {
            let text = e.to_string();
            check!(text.contains(part), "{text}");
            Ok(())
        }
    };
    let here = ProbeKind::Here;
    for place in [entry, middle] {
        let id = count_by(Way::Breakpoint, &place, here).map_err(|e| failed(&e))?;
        refused(count(&place, here), "kprobes by BRK")?;
        if place.offset == 0 {
            refused(fentry(), "kprobes by BRK")?;
        }
        detach(id)?;
        let id = count(&place, here).map_err(|e| failed(&e))?;
        refused(
            count_by(Way::Breakpoint, &place, here),
            "probes by a branch",
        )?;
        detach(id)?;
    }
    refused(
        count_by(Way::Breakpoint, &middle, ProbeKind::Return),
        "at the entry of a function with a site",
    )?;
    intact(0)
}

/// Four tasks call while probes at the entry, in the middle and of the return come and go: every result is right, and a probe that
/// is there throughout loses no hit and counts none twice.
fn load() -> Outcome {
    const ROUNDS: usize = 40;
    // Each change waits for all cores, which takes long where an emulator's cores are many and the machine's few.
    const NS: u64 = 5_000_000_000;
    let deadline = timer::now_ns() + NS;
    rcu::barrier();
    let free = hook::pool_free();
    let run = black_box(probed as fn(u64) -> u64);
    let expected = run(9);
    let entry = Place::of(run as usize, 0).ok_or_else(|| failed(&"no such function"))?;
    let offsets: Vec<_> = (8..u64::from(entry.function.size)).step_by(4).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let (entered, returned) = (Arc::new(Watch::default()), Arc::new(Watch::default()));
    let here = watch(&entry, ProbeKind::Here, &entered)?;
    let back = watch(&entry, ProbeKind::Return, &returned)?;
    let tasks: Result<Vec<_>, _> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            spawn("caller", move || {
                let (mut calls, mut wrong) = (0u64, 0u64);
                while !stop.load(Relaxed) {
                    wrong += u64::from(run(9) != expected);
                    calls += 1;
                    sched::yield_now();
                }
                (calls, wrong)
            })
        })
        .collect();
    let tasks = tasks?;
    let mut changes = 0;
    for round in 0..ROUNDS {
        if timer::now_ns() > deadline {
            break;
        }
        sched::yield_now(); // what was taken off is freed meanwhile
        let mut ids = Vec::new();
        for step in 0..3 {
            let offset = offsets.get((round * 7 + step * 3) % offsets.len().max(1));
            let place = Place {
                offset: offset.copied().unwrap_or(0),
                ..entry
            };
            let way = [Way::Detour, Way::Breakpoint][step % 2];
            // Some cannot be displaced.
            ids.extend(count_by(way, &place, ProbeKind::Here).ok());
        }
        for kind in [ProbeKind::Return, ProbeKind::Here] {
            ids.push(count(&entry, kind).map_err(|e| failed(&e))?);
        }
        changes += 2 * ids.len();
        ids.into_iter().try_for_each(detach)?;
    }
    stop.store(true, Relaxed);
    let (mut calls, mut wrong) = (0, 0);
    for task in tasks {
        let (more, bad) = task.join();
        calls += more;
        wrong += bad;
    }
    let counted = [&entered, &returned].map(|w| w.hits.load(Relaxed));
    let missed: u64 = [here, back].iter().flat_map(|id| hook::misses(*id)).sum();
    detach(here)?;
    detach(back)?;
    check!(
        wrong == 0,
        "{wrong} wrong results of {calls} calls over {changes} changes"
    );
    check!(missed == 0, "{missed} misses");
    check!(counted == [calls; 2], "{calls} calls, {counted:?} hits");
    pool_is_back(free)?;
    intact(0)
}

fn sleepers() -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    let place = place("workload_blocks")?;
    let (gone, stays) = (Arc::new(Watch::default()), Arc::new(Watch::default()));
    let ids = [
        watch(&place, ProbeKind::Return, &gone)?,
        watch(&place, ProbeKind::Return, &stays)?,
    ];
    let image = Image::behind(place.address() as usize)?;
    let [first, second] = ids;
    let (kept, right) = under_ten_sleepers(|| detach(first), || image.is_there())?;
    let hits = [&gone, &stays].map(|w| w.hits.load(Relaxed));
    detach(second)?;
    check!(
        kept,
        "the probe was freed under ten tasks that sleep in the function"
    );
    check!(
        right,
        "a call over which the probe was taken off returned a wrong result"
    );
    check!(
        hits == [0, 10],
        "hits of the one that was taken off meanwhile and of the other: {hits:?}"
    );
    image.check_freed()?;
    pool_is_back(free)
}

fn refused() -> Outcome {
    use ProbeKind::{Here, Return};
    let cases = [
        ("exception_exit", Here, "written in assembly"),
        ("springboard::arch::code::patch+8", Here, "it changes code"),
        (
            "springboard::arch::rendezvous::hold",
            Here,
            "while code is changed",
        ),
        ("springboard::mm::table::unmap_page+8", Here, "page tables"),
        ("OUTLINED_FUNCTION_0", Here, "outliner made it"),
        ("springboard::arch::admit::admit", Here, "notrace"),
        ("workload_call+0x4", Here, "second word of its site"),
        ("workload_call+0x6", Here, "no instruction of it"),
        ("workload_call+0x4000", Here, "no instruction of it"),
        ("workload_call+8", Return, "not its entry"),
        ("workload_cal", Here, "no function is called"),
        // It is inlined wherever it is called.
        ("torture::functions::mix", Here, "mark it #[inline(never)]"),
    ];
    for (name, kind, part) in cases {
        let text = match hook::resolve_place(name) {
            Err(e) => e.to_string(),
            // The outliner's functions have one name.
            Ok(place) => match count(&place, kind) {
                Err(e) => e.to_string(),
                Ok(id) => {
                    detach(id)?;
                    String::from("it was probed")
                }
            },
        };
        let ambiguous = name.starts_with("OUTLINED") && text.contains("any of");
        check!(ambiguous || text.contains(part), "{name}: {text}");
    }
    intact(0)
}

/// bpf_override_return: the function returns what the program says, to its caller, and only in the call that it says it of.
fn overridden() -> Outcome {
    let attach = |engine, way, name: &str| {
        let at = |how: How, _: Option<&str>| how.at(name);
        bpf::attach_at("override", engine, way, Settings::default(), at)
    };
    for engine in [Engine::Interpreter, Engine::Jit] {
        let on = attach(engine, WayIn::LinuxKprobe, "workload_call").map_err(|e| failed(&e))?;
        let before = variable("override", "calls")?;
        let results = [call(12, 1), call(13, 1), call(14, 1)];
        detach(on.id)?;
        let calls = variable("override", "calls")? - before;
        let said = variable("override", "said")?;
        check!(
            (results, calls, said) == ([37, 77, 43], 3, 0),
            "{engine:?}: {results:?} of 12, 13 and 14, {calls} calls, the helper said {said}"
        );
        check!(call(13, 1) == 40, "it is off, and 13 gave another result");
        for (way, name, part) in [
            (WayIn::Springboard, "workload_call", "by linux-kprobe"),
            (WayIn::LinuxKprobe, "workload_call+8", "by linux-kprobe"),
            (WayIn::LinuxKprobe, "springboard_main", "overridable"),
        ] {
            match attach(engine, way, name) {
                Ok(hooked) => {
                    detach(hooked.id)?;
                    check!(false, "{engine:?}: {name} by {way:?} was taken");
                }
                Err(e) => {
                    let text = e.to_string();
                    check!(text.contains(part), "{name} by {way:?}: {text}");
                }
            }
        }
    }
    intact(0)
}
