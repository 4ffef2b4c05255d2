// SPDX-License-Identifier: MIT OR Apache-2.0
//! A BPF program whose helper calls the function that it hooks: on every way it is turned away from itself, and that is counted.

use super::above;
use super::bpf::{ENGINES, sum};
use super::hooks::{call, detach, function};
use super::{Failure, Outcome, Test, failed};
use crate::bpf::{self, BpfError, Engine};
use crate::context;
use crate::hook::linux::Way;
use crate::hook::{self, HookedIn, How, Protection, Settings, WayIn};
use crate::ksyms::Flags;
use crate::offered::{ENOMEM, springboard_workload_call};
use crate::{check, integrity, offered, rcu, symbols};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::map::Map;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trampoline::program::CONTEXTS;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "own_helper.it_is_turned_away_and_counted_in_each_context",
        seconds: 120,
        run: turned_away,
    },
    Test {
        name: "own_helper.each_of_several_is_turned_away_from_itself_alone",
        seconds: 20,
        run: several,
    },
    Test {
        name: "own_helper.without_a_guard_it_is_refused",
        seconds: 20,
        run: refused,
    },
    Test {
        name: "own_helper.a_replaced_part_of_a_program_counts_as_the_program",
        seconds: 20,
        run: replaced,
    },
    Test {
        name: "own_helper.where_the_stack_is_used_it_calls_nothing",
        seconds: 20,
        run: no_room,
    },
    Test {
        name: "own_helper.every_kernel_function_is_on_the_path_of_hooks",
        seconds: 20,
        run: known,
    },
];

const LIST: Way = Way::List { all: false };
const LIST_REGS: Way = Way::List { all: true };
const CALLOPS: Way = Way::CallOps { all: false };
const CALLOPS_REGS: Way = Way::CallOps { all: true };

/// A program of recursion.bpf.c, the way, and of a call from outside: how often it runs, and is turned away.
const WAYS: [(&str, WayIn, [u64; 2]); 24] = [
    ("probe", WayIn::LinuxKprobe, [1, 1]),
    ("probe_return", WayIn::LinuxKprobe, [1, 1]),
    ("probe", WayIn::Springboard, [1, 1]),
    ("probe_return", WayIn::Springboard, [1, 1]),
    ("at_entry", WayIn::Springboard, [1, 1]),
    ("at_entry_sleepable", WayIn::Springboard, [1, 1]),
    ("at_exit", WayIn::Springboard, [1, 1]),
    ("at_exit_sleepable", WayIn::Springboard, [1, 1]),
    ("modify", WayIn::Springboard, [1, 1]),
    // At both ends, and each call from inside comes to both.
    ("session", WayIn::Springboard, [2, 4]),
    ("replace", WayIn::Springboard, [1, 1]),
    ("many", WayIn::Springboard, [1, 1]),
    ("many_return", WayIn::Springboard, [1, 1]),
    ("at_entry", WayIn::Linux(Way::Trampoline), [1, 1]),
    ("at_entry_sleepable", WayIn::Linux(Way::Trampoline), [1, 1]),
    ("at_exit", WayIn::Linux(Way::Trampoline), [1, 1]),
    ("at_exit_sleepable", WayIn::Linux(Way::Trampoline), [1, 1]),
    ("modify", WayIn::Linux(Way::Trampoline), [1, 1]),
    // The transition bit lets a recursion in once more.
    ("at_entry", WayIn::Linux(LIST), [2, 1]),
    ("probe", WayIn::Linux(LIST_REGS), [2, 1]),
    ("at_entry", WayIn::Linux(CALLOPS), [2, 1]),
    ("probe", WayIn::Linux(CALLOPS_REGS), [2, 1]),
    ("many", WayIn::Linux(Way::Fprobe), [1, 1]),
    ("many_return", WayIn::Linux(Way::FprobeExit), [1, 1]),
];

fn attach(
    program: &str,
    engine: Engine,
    way: WayIn,
    protection: Option<Protection>,
    on: &str,
) -> Result<HookedIn, BpfError> {
    let spec = alloc::format!("recursion/{program}");
    let settings = Settings {
        protection,
        ..Settings::default()
    };
    bpf::attach_at(&spec, engine, way, settings, |how: How, _| how.at(on))
}

/// What the programs counted: runs, calls from inside with the right result, calls that were not made.
type Counts = [u64; 3];

fn counts_map() -> Result<Arc<Map>, Failure> {
    let missing = || Failure::Failed("the programs of recursion have no map counts".into());
    bpf::map("recursion.counts").ok_or_else(missing)
}

/// Allocates nothing.
fn counts(map: &Map) -> Counts {
    let count = |key: u32| {
        let mut value = [0; 8];
        let found = map.lookup(&key.to_le_bytes(), &mut value);
        found.map_or(0, |()| u64::from_le_bytes(value))
    };
    [0, 1, 2].map(count)
}

fn since(before: Counts, now: Counts) -> Counts {
    core::array::from_fn(|i| now[i] - before[i])
}

/// Calls from outside, in each context.
const CALLS: u64 = 5;

/// How many of them returned, by context, and how many with the right result.
static RETURNED: [AtomicU64; CONTEXTS] = [const { AtomicU64::new(0) }; CONTEXTS];
static RIGHT: [AtomicU64; CONTEXTS] = [const { AtomicU64::new(0) }; CONTEXTS];

fn call_from_outside() {
    let context = context::current() as usize;
    let count = |counts: &[AtomicU64; CONTEXTS], by: bool| {
        if let Some(count) = counts.get(context) {
            count.fetch_add(by.into(), Relaxed);
        }
    };
    for i in 0..CALLS {
        let result = call(i, 7);
        count(&RIGHT, result == 3 * i + 7);
        count(&RETURNED, true);
    }
}

/// Calls from outside in task, softirq, hardirq and NMI, one after the other; what the programs counted in each.
fn in_each_context(map: &Map) -> Result<[Counts; CONTEXTS], Failure> {
    for counts in RETURNED.iter().chain(&RIGHT) {
        counts.store(0, Relaxed);
    }
    let mut found = [[0; 3]; CONTEXTS];
    let mut before = counts(map);
    let mut context = 0;
    let mut note = || {
        let done = || {
            let returned = RETURNED.get(context);
            returned.is_none_or(|count| count.load(Relaxed) == CALLS)
        };
        above::wait(done);
        let now = counts(map);
        if let Some(found) = found.get_mut(context) {
            *found = since(before, now);
        }
        (before, context) = (now, context + 1);
    };
    above::calling(&(call_from_outside as fn()), || {
        call_from_outside();
        note();
        above::each(note);
    });
    let results = [&RETURNED, &RIGHT].map(|all| all.each_ref().map(|n| n.load(Relaxed)));
    check!(
        results == [[CALLS; CONTEXTS]; 2],
        "{CALLS} calls in each context: returned and right are {results:?}"
    );
    Ok(found)
}

fn turned_away() -> Outcome {
    let map = counts_map()?;
    let middle = ("probe", WayIn::LinuxKprobe, [1, 1]);
    let entries = WAYS.map(|way| (way, "workload_call"));
    for ((program, way, [runs, misses]), on) in
        entries.into_iter().chain([(middle, "workload_call+8")])
    {
        for engine in ENGINES {
            let hooked = attach(program, engine, way, None, on).map_err(|e| failed(&e))?;
            let counted = in_each_context(&map);
            let missed = hook::misses(hooked.id);
            let listed = hook::list().into_iter().find(|hook| hook.id == hooked.id);
            detach(hooked.id)?;
            let what = alloc::format!("{program} by {engine:?} on {on} {}", way.name());
            let counted = counted.map_err(|e| match e {
                Failure::Failed(why) => Failure::Failed(alloc::format!("{what}: {why}")),
                skipped => skipped,
            })?;
            let ran = [CALLS * runs, CALLS * runs, 0];
            check!(
                counted == [ran; CONTEXTS],
                "{what}: runs, right results inside and refusals in task, softirq, hardirq and NMI are {counted:?}, not {ran:?}"
            );
            check!(
                missed == [CALLS * misses; CONTEXTS],
                "{what}: {CALLS} calls in each context, misses {missed:?}, not {} each",
                CALLS * misses
            );
            check!(
                listed.is_some_and(|hook| hook.misses == missed),
                "{what}: `hooks` shows other misses than {missed:?}"
            );
        }
    }
    rcu::barrier();
    let report = integrity::check().map_err(Failure::Failed)?;
    check!(
        (report.accounted, report.unaccounted) == (0, 0),
        "{} words are changed after the detach",
        report.accounted + report.unaccounted
    );
    Ok(())
}

/// Three on one function: a call from inside one runs the others, and so on until all are active.
fn several() -> Outcome {
    let map = counts_map()?;
    for engine in ENGINES {
        let ids: Result<Vec<_>, _> = ["at_entry", "modify", "at_exit"]
            .map(|program| attach(program, engine, WayIn::default(), None, "workload_call"))
            .into_iter()
            .map(|hooked| hooked.map(|hooked| hooked.id))
            .collect();
        let ids = ids.map_err(|e| failed(&e))?;
        let before = counts(&map);
        let result = call(4, 5);
        let counted = since(before, counts(&map));
        let missed: Vec<_> = ids.iter().map(|id| hook::misses(*id)).collect();
        ids.into_iter().try_for_each(detach)?;
        check!(result == 17, "{engine:?}: returned {result}");
        // Inside none, one and two of them: 3, 3 * 2 and 6 * 1 runs. Away from one, two and three: 3 * 1, 6 * 2 and 6 * 3 misses.
        check!(
            counted == [15, 15, 0] && missed == [[11, 0, 0, 0]; 3],
            "{engine:?}: runs, right results, refusals {counted:?}, misses {missed:?}"
        );
    }
    Ok(())
}

fn refused() -> Outcome {
    let trampoline = WayIn::Linux(Way::Trampoline);
    for (program, way) in [
        ("at_entry", WayIn::Springboard),
        ("at_entry_sleepable", WayIn::Springboard),
        ("at_exit", WayIn::Springboard),
        ("modify", WayIn::Springboard),
        ("session", WayIn::Springboard),
        ("replace", WayIn::Springboard),
        ("probe", WayIn::Springboard),
        ("probe_return", WayIn::Springboard),
        ("many", WayIn::Springboard),
        ("many_return", WayIn::Springboard),
        ("at_entry", trampoline),
        ("at_exit_sleepable", trampoline),
    ] {
        for protection in [Protection::Pinned, Protection::None] {
            // On another function, too: whoever comes back to it by the one that is called is not turned away either.
            for on in ["workload_call", "workload_six"] {
                let what = alloc::format!("{program} {} on {on}, {protection:?}", way.name());
                match attach(program, Engine::Jit, way, Some(protection), on) {
                    Ok(hooked) => {
                        detach(hooked.id)?;
                        check!(false, "{what}: it was attached");
                    }
                    Err(e) => {
                        let text = e.to_string();
                        let guard = alloc::format!("the guard {} ", protection.name());
                        let says = ["springboard_workload_call", &guard, "word or context"];
                        check!(
                            says.iter().all(|part| text.contains(part)),
                            "{what}: {text}"
                        );
                    }
                }
            }
        }
    }
    // Linux's guards cannot be left out of these.
    let map = counts_map()?;
    for (program, way, [runs, misses]) in [
        ("probe", WayIn::LinuxKprobe, [1, 1]),
        ("probe_return", WayIn::LinuxKprobe, [1, 1]),
        ("at_entry", WayIn::Linux(LIST), [2, 1]),
        ("at_entry", WayIn::Linux(CALLOPS), [2, 1]),
        ("many", WayIn::Linux(Way::Fprobe), [1, 1]),
        ("many_return", WayIn::Linux(Way::FprobeExit), [1, 1]),
    ] {
        let none = Some(Protection::None);
        let hooked = attach(program, Engine::Jit, way, none, "workload_call");
        let hooked = hooked.map_err(|e| failed(&e))?;
        let before = counts(&map);
        let result = call(1, 2);
        let counted = since(before, counts(&map));
        let missed = hook::misses(hooked.id);
        detach(hooked.id)?;
        check!(
            (result, counted, missed) == (5, [runs, runs, 0], [misses, 0, 0, 0]),
            "{program} {}: returned {result}; runs, right results, refusals {counted:?}, misses {missed:?}",
            way.name()
        );
    }
    Ok(())
}

/// A program that calls nothing of the kind becomes one that does when a function of it is replaced.
fn replaced() -> Outcome {
    let map = counts_map()?;
    let target = function("workload_call")?;
    for (protection, fits) in [
        (None, true),
        (Some(Protection::Context), true),
        (Some(Protection::Pinned), false),
        (Some(Protection::None), false),
    ] {
        let settings = Settings {
            protection,
            ..Settings::default()
        };
        let on = |how: How, _: Option<&str>| how.on(target);
        let rules = bpf::attach_at("rules", Engine::Jit, WayIn::default(), settings, on);
        let rules = rules.map_err(|e| failed(&e))?.id;
        let before = (counts(&map), sum("rules..bss")?);
        let put_in = bpf::freplace("recursion/rule", rules);
        let result = call(1, 2);
        let counted = since(before.0, counts(&map));
        let ran = sum("rules..bss")? != before.1;
        let missed = hook::misses(rules);
        detach(rules)?;
        let expected = match fits {
            true => ([1, 1, 0], [1, 0, 0, 0]),
            false => ([0; 3], [0; 4]),
        };
        check!(
            (result, ran) == (5, true) && (counted, missed) == expected,
            "{protection:?}: returned {result}; runs, right results, refusals {counted:?}, misses {missed:?}"
        );
        match put_in {
            Ok(_) => check!(fits, "{protection:?}: it was put in"),
            Err(e) => {
                let text = e.to_string();
                let says = text.contains("springboard_workload_call") && !fits;
                check!(says, "{protection:?}: {text}");
            }
        }
    }
    Ok(())
}

/// More than the kernel's half of what hooks leave it, and less than all of that.
const USED: usize = 20 << 10;

/// Runs `work` with so much of the stack in use.
#[inline(never)]
fn deep<T>(work: impl FnOnce() -> T) -> T {
    let used = black_box([0_u8; USED]);
    let result = work();
    black_box(&used);
    result
}

fn no_room() -> Outcome {
    let map = counts_map()?;
    let direct = deep(|| springboard_workload_call(1, 2));
    let shallow = springboard_workload_call(1, 2);
    check!(
        (direct, shallow) == (ENOMEM, 5),
        "with {USED} bytes used it returned {direct}, before that {shallow}"
    );
    for engine in ENGINES {
        let hooked = attach("at_entry", engine, WayIn::default(), None, "workload_call");
        let id = hooked.map_err(|e| failed(&e))?.id;
        let before = counts(&map);
        let result = deep(|| call(1, 2));
        let counted = since(before, counts(&map));
        let missed = hook::misses(id);
        detach(id)?;
        check!(
            (result, counted, missed) == (5, [1, 0, 1], [0; 4]),
            "{engine:?}: returned {result}; runs, right results, refusals {counted:?}, misses {missed:?}"
        );
    }
    Ok(())
}

/// What programs call has no site, and the audit knows what it takes of the stack.
fn known() -> Outcome {
    let blob = symbols::blob().ok_or_else(|| Failure::Failed("no symbols".into()))?;
    for function in offered::functions() {
        let address = function.function.address();
        let symbol = address.and_then(|address| blob.lookup(address));
        let notrace = symbol
            .is_some_and(|(symbol, offset)| offset == 0 && symbol.flags.contains(Flags::NOTRACE));
        let stack = address.and_then(symbols::stack_of);
        check!(
            notrace && stack.is_some(),
            "{}: notrace: {notrace}, stack {stack:?}; name it in linker/notrace.roots",
            function.name
        );
    }
    Ok(())
}
