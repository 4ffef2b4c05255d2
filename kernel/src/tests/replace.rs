// SPDX-License-Identifier: MIT OR Apache-2.0
//! Replacing functions: by each other, and several together without a task that runs half old, half new.

use super::bpf::{set_variable, sum, variable};
use super::hooks::{call, detach, function};
use super::sleepers::{Image, are_asleep, pool_is_back};
use super::slow::wait_for_sleepers;
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook, Shape};
use crate::arch::trap::Frame;
use crate::arch::{cpu, switch, timer, unwind};
use crate::hook::linux::Way;
use crate::hook::livepatch::{self, Phase};
use crate::hook::{
    self, HookError, HookId, Hooked, Many, Native, Place, Point, ProbeWay, Program, Protection,
};
use crate::mm::stack;
use crate::sched::{self, JoinHandle};
use crate::workload::{
    Callable, PATCHES, Pause, set_gate, workload_blocks, workload_call, workload_call_more,
    workload_exchange, workload_nested, workload_twelve,
};
use crate::{bpf, check, integrity, rcu, slow};
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use trampoline::{Kind, ProbeKind};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "replace.a_function_by_another",
        seconds: 20,
        run: by_function,
    },
    Test {
        name: "replace.what_does_not_fit_is_refused",
        seconds: 20,
        run: refused,
    },
    Test {
        name: "replace.a_function_by_a_program",
        seconds: 30,
        run: by_program,
    },
    Test {
        name: "replace.a_program_calls_the_original",
        seconds: 30,
        run: original,
    },
    Test {
        name: "replace.a_programs_function_by_a_program",
        seconds: 30,
        run: freplace,
    },
    Test {
        name: "replace.a_programs_function_under_tasks_in_the_program",
        seconds: 120,
        run: freplace_under_tasks,
    },
    Test {
        name: "replace.two_functions_apart_run_half_old_half_new",
        seconds: 20,
        run: apart,
    },
    Test {
        name: "replace.a_patch_waits_for_who_is_in_it",
        seconds: 60,
        run: waits,
    },
    Test {
        name: "replace.what_a_patch_laid_is_freed_when_nobody_is_in_it",
        seconds: 60,
        run: switches_freed,
    },
    Test {
        name: "replace.a_patch_is_turned_round_half_way",
        seconds: 60,
        run: turned,
    },
    Test {
        name: "replace.a_patch_under_load_mixes_nothing",
        seconds: 120,
        run: load,
    },
    Test {
        name: "replace.a_patch_sees_behind_a_probe",
        seconds: 60,
        run: behind_a_probe,
    },
    Test {
        name: "replace.a_patch_sees_a_hook_of_the_new_function",
        seconds: 60,
        run: before_the_new,
    },
    Test {
        name: "replace.a_patch_sees_a_caller_that_has_no_record",
        seconds: 20,
        run: no_record,
    },
    Test {
        name: "replace.a_patch_ends_over_sleepers_of_other_functions",
        seconds: 60,
        run: sleepers_elsewhere,
    },
    Test {
        name: "replace.a_patch_that_cannot_end_is_reported",
        seconds: 60,
        run: stalled,
    },
];

fn replace(name: &str, by: &str) -> Result<HookId, Failure> {
    hook::replace(&function(name)?, &function(by)?).map_err(|e| failed(&e))
}

fn exchange(value: u64, pause: Pause) -> u64 {
    black_box(workload_exchange as extern "C" fn(u64, u64) -> u64)(value, pause as u64)
}

fn by_function() -> Outcome {
    check!(call(10, 1) == 31, "not replaced yet");
    let before = integrity::check().map_err(|e| failed(&e))?.accounted;
    let id = replace("workload_call", "workload_call_other")?;
    check!(call(10, 1) == 51, "not replaced: {}", call(10, 1));
    let report = integrity::check().map_err(|e| failed(&e))?;
    let words = (report.accounted - before, report.unaccounted);
    check!(words == (1, 0), "words accounted for, and not: {words:?}");
    // Hooks of the function and of what replaces it see each call once; what is on the way stays there.
    let hooks = [
        ("workload_call", Kind::Fentry),
        ("workload_call", Kind::Fexit),
        ("workload_call_other", Kind::Fentry),
    ];
    let mut counters = Vec::new();
    for (name, kind) in hooks {
        let counter = hook::attach_native(&function(name)?, Native::Count, Point::of(kind));
        counters.push(counter.map_err(|e| failed(&e))?);
    }
    for n in 0..100 {
        check!(call(n, 1) == 5 * n + 1, "a wrong result with hooks");
    }
    let mark = crate::hooked::of(workload_call as *const () as u64);
    let mark = mark.map_or_else(Default::default, |mark| mark.to_string());
    check!(
        mark.contains("replace workload_call_other"),
        "reports say {mark:?}"
    );
    detach(id)?;
    for n in 0..100 {
        check!(call(n, 1) == 3 * n + 1, "not given back");
    }
    let hits = [0, 1, 2].map(|i| counters.get(i).and_then(|id| hook::hits(*id)));
    check!(
        hits == [Some(200), Some(200), Some(100)],
        "200 calls, 100 of them replaced: hits {hits:?}"
    );
    counters.into_iter().try_for_each(detach)?;
    // One that calls what it replaces; and one that is replaced itself.
    let more = replace("workload_call", "workload_call_more")?;
    let six = call(10, 1);
    let direct = workload_call_more(10, 1);
    detach(more)?;
    check!(six == 32 && direct == 32, "{six} and {direct}, not 32");
    check!(call(10, 1) == 31, "not given back");
    Ok(())
}

fn refused() -> Outcome {
    let refuse = |name: &str, by: &str, parts: &[&str]| -> Outcome {
        match hook::replace(&function(name)?, &function(by)?) {
            Ok(_) => check!(false, "{name} was replaced by {by}"),
            Err(e) => {
                let text = e.to_string();
                let all = parts.iter().all(|part| text.contains(part));
                check!(all && text.contains(name), "{name} by {by}: {text}");
            }
        }
        Ok(())
    };
    let unmarked = ["not marked overridable"];
    refuse("springboard_main", "workload_call", &unmarked)?;
    let types = [
        "unsigned long long workload_call(unsigned long long, unsigned long long)",
        "unsigned long long workload_six(unsigned long long, ",
    ];
    refuse("workload_call", "workload_six", &types)?;
    refuse(
        "workload_call",
        "springboard::workload::call_loop",
        &["not both known"],
    )?;
    refuse(
        "workload_call",
        "workload_call",
        &["no call would ever end"],
    )?;
    let id = replace("workload_encode", "workload_decode")?;
    let circle = refuse(
        "workload_decode",
        "workload_encode",
        &["no call would ever end"],
    );
    detach(id)?;
    circle?;
    // So many hooks that what reports say of the function is cut before the one that counts.
    let hooks: Vec<_> = (0..3)
        .map(|_| attach("hooks/fexit_count", "workload_call", bpf::Engine::Jit))
        .collect::<Result<_, _>>()?;
    let patch = |by: &str, id: HookId| match livepatch::apply(named("call")?) {
        Err(HookError::Replaced {
            by: found, id: off, ..
        }) => {
            check!(
                found == by && off == id,
                "{found} (hook {off}), not {by} (hook {id})"
            );
            Ok(())
        }
        Err(e) => Err(failed(&e)),
        Ok(_) => Err(Failure::Failed("a live patch on top was taken".into())),
    };
    let id = replace("workload_call", "workload_call_other")?;
    let by = format!("is replaced already by replace workload_call_other (hook {id})");
    let off = format!("`detach {id}` takes that off");
    let again = refuse("workload_call", "workload_call_more", &[&by, &off]);
    let on_top = patch("replace workload_call_other", id);
    let result = call(10, 1);
    detach(id)?;
    again?;
    on_top?;
    let id = attach("replace/product", "workload_call", bpf::Engine::Jit)?;
    let by = format!("by freplace replace/product (hook {id})");
    let again = refuse("workload_call", "workload_call_more", &[&by]);
    detach(id)?;
    again?;
    let id = livepatch::apply(named("call")?).map_err(|e| failed(&e))?;
    arrives(id, Phase::On, 5000)?;
    let twice = patch("livepatch call", id);
    let by = format!("by livepatch call (hook {id})");
    let again = refuse("workload_call", "workload_call_more", &[&by, "`patch`"]);
    detach(id)?;
    arrives(id, Phase::Off, 5000)?;
    hooks.into_iter().try_for_each(detach)?;
    twice?;
    again?;
    check!(result == 51, "a refusal changed the function: {result}");
    check!(call(10, 1) == 31, "the site is not as it was");
    Ok(())
}

const ENGINES: [bpf::Engine; 2] = [bpf::Engine::Jit, bpf::Engine::Interpreter];

fn attach(program: &str, name: &str, engine: bpf::Engine) -> Result<HookId, Failure> {
    bpf::attach(program, &function(name)?, engine).map_err(|e| failed(&e))
}

/// How often programs of replace.bpf.c say that they ran.
fn runs() -> Result<u64, Failure> {
    sum("replace..bss")
}

fn by_program() -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    for engine in ENGINES {
        let id = attach("replace/product", "workload_call", engine)?;
        let before = runs()?;
        let exit = hook::attach_native(
            &function("workload_call")?,
            Native::Count,
            Point::of(Kind::Fexit),
        );
        let exit = exit.map_err(|e| failed(&e))?;
        for n in 0..100 {
            let result = call(n, 7);
            check!(result == 7 * n, "{engine:?}: {result} is not {n} * 7");
        }
        let (ran, hits) = (runs()? - before, hook::hits(exit));
        let second = replace("workload_call", "workload_call_other");
        let third = attach("replace/count", "workload_call", engine);
        detach(id)?;
        detach(exit)?;
        check!(
            (ran, hits) == (100, Some(100)),
            "{engine:?}: 100 calls, {ran} runs, {hits:?} hits at the exit"
        );
        check!(
            second.is_err() && third.is_err(),
            "{engine:?}: a second replacement was taken"
        );
        check!(call(10, 1) == 31, "{engine:?}: not given back");
    }
    pool_is_back(free)
}

fn original() -> Outcome {
    for engine in ENGINES {
        let id = attach("replace/twice", "workload_call", engine)?;
        let before = runs()?;
        // Calls made by another function reach it, and what the original is called with is what the caller said.
        let six = (call(10, 1), workload_nested(2, 3));
        let ran = runs()? - before;
        let misses = hook::misses(id);
        detach(id)?;
        check!(
            six == (62, 40),
            "{engine:?}: {six:?}, not twice the original"
        );
        check!(
            ran == 3 && misses == [0; 4],
            "{engine:?}: 3 calls, {ran} runs, {misses:?} misses"
        );
        let id = attach("replace/twelve", "workload_twelve", engine)?;
        let f = black_box(workload_twelve as Twelve);
        let more = f(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
        detach(id)?;
        let less = f(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
        check!(
            more == less + 1,
            "{engine:?}: twelve arguments: {more} and {less}"
        );
        let id = attach("replace/encode", "workload_encode", engine)?;
        let coded = black_box(crate::workload::workload_encode as Callable)(5, 2);
        detach(id)?;
        check!(coded == (5 + 2 + 13) ^ 2, "{engine:?}: {coded}");
        for (program, name, part) in [
            ("replace/blocks", "workload_blocks", "may block"),
            (
                "replace/beside",
                "workload_call",
                "only programs in freplace",
            ),
            (
                "replace/product",
                "springboard_main",
                "not marked overridable",
            ),
        ] {
            match attach(program, name, engine) {
                Ok(_) => check!(false, "{program} was attached to {name}"),
                Err(Failure::Failed(text)) => check!(text.contains(part), "{program}: {text}"),
                Err(other) => return Err(other),
            }
        }
    }
    Ok(())
}

/// What programs of rules.bpf.c found: how often they ran, the last result; and how often replace_rule.bpf.c was asked.
fn ruled() -> Result<[u64; 3], Failure> {
    let word = |map: &str, index: usize| {
        let found = bpf::map(map).ok_or_else(|| Failure::Failed(format!("no map {map}")))?;
        let mut value = alloc::vec![0; found.value_size()];
        found.lookup(&[0; 4], &mut value).map_err(|e| failed(&e))?;
        let word = value.as_chunks::<8>().0.get(index).copied();
        Ok(u64::from_le_bytes(word.unwrap_or_default()))
    };
    let rules = "rules..bss";
    Ok([
        word(rules, 0)?,
        word(rules, 1)?,
        word("replace_rule..bss", 0)?,
    ])
}

fn freplace() -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    for engine in ENGINES {
        let ruled_by = |expected: u64, asked: u64, what: &str| -> Outcome {
            let before = ruled()?;
            for n in 1..=20 {
                call(n, 3);
            }
            let [calls, last, all] = ruled()?;
            check!(
                (calls - before[0], last, all - before[2]) == (20, expected + 6, asked),
                "{engine:?}, {what}: {calls} calls, last {last}, asked {all}; before {before:?}"
            );
            Ok(())
        };
        let id = attach("rules", "workload_call", engine)?;
        let other = attach("rules", "workload_call", engine)?;
        detach(other)?;
        ruled_by(21, 0, "as it is")?;
        let by = bpf::freplace("replace_rule/tenfold", id).map_err(|e| failed(&e))?;
        ruled_by(200, 20, "replaced")?;
        for (program, target, parts) in [
            ("replace_rule/tenfold", id, ["replaced already", "detach"]),
            ("replace_rule/fixed_by", id, ["static", "rule"]),
            ("replace_rule/law", id, ["there is none", "rule"]),
            ("replace_rule/tenfold", other, ["being freed", "hooks"]),
            ("replace/product", id, ["workload_call", "there is none"]),
            ("rules", id, ["section", "freplace"]),
        ] {
            match bpf::freplace(program, target) {
                Ok(_) => check!(false, "{program} replaced a function of hook {target}"),
                Err(e) => {
                    let text = e.to_string();
                    let all = parts.iter().all(|part| text.contains(part));
                    check!(all, "{program}: {text}");
                }
            }
        }
        ruled_by(200, 20, "after refusals")?;
        detach(by)?;
        ruled_by(21, 0, "given back")?;
        let narrow = bpf::freplace("replace_rule/narrow", id);
        let text = narrow
            .err()
            .map_or_else(Default::default, |e| e.to_string());
        check!(
            text.contains("`__u64 rule(__u64)`") && text.contains("`int narrow(__u32)`"),
            "other types: {text}"
        );
        // Taken off with what it is in.
        bpf::freplace("replace_rule/tenfold", id).map_err(|e| failed(&e))?;
        ruled_by(200, 20, "replaced again")?;
        detach(id)?;
        let left = hook::list().len();
        check!(left == 0, "{left} hooks are left");
    }
    pool_is_back(free)
}

/// Longer than any grace period takes that nothing holds up, in nanoseconds.
const SHORT: u64 = 60_000_000;

fn freplace_under_tasks() -> Outcome {
    for (program, engine) in [
        ("sleeps", bpf::Engine::Jit),
        ("sleeps", bpf::Engine::Interpreter),
        ("runs", bpf::Engine::Jit),
    ] {
        let what = format!("{program}, {engine:?}");
        under_tasks(program, engine, &what)?;
    }
    Ok(())
}

/// What programs of linger.bpf.c count: who came in, whom their own function answered, and whom another one.
fn lingered() -> Result<[u64; 3], Failure> {
    let of = |name| variable("linger", name);
    Ok([of("came")?, of("own")?, of("others")?])
}

/// The image of the hooked function, and if the program is compiled, its code.
#[inline(never)]
fn laid(engine: bpf::Engine) -> Result<Vec<Image>, Failure> {
    let target = function("workload_call")?;
    let mut laid = alloc::vec![Image::behind(target.address)?];
    if engine == bpf::Engine::Jit {
        laid.push(Image::of_program(&target)?);
    }
    Ok(laid)
}

/// Tasks are in the program as it was, as it is with a function of it replaced, and as it is when that is given back.
#[inline(never)]
fn under_tasks(program: &str, engine: bpf::Engine, what: &str) -> Outcome {
    const GROUPS: [u64; 3] = [10, 5, 5];
    let blocks = program == "sleeps";
    for spec in ["linger/sleeps", "replace_rule/tenfold"] {
        bpf::section(spec).map_err(|e| failed(&e))?;
    }
    rcu::barrier();
    let free = hook::pool_free();
    let before = lingered()?;
    let counted = || -> Result<[u64; 3], Failure> {
        let now = lingered()?;
        Ok(core::array::from_fn(|i| now[i] - before[i]))
    };
    slow::evict();
    slow::hold(true);
    set_variable("linger", "go", 0)?;
    let id = attach(&format!("linger/{program}"), "workload_call", engine)?;
    let mut tasks = Vec::new();
    let mut inside = 0;
    // So many come in, and stay.
    let mut come = |more: u64| -> Outcome {
        for n in inside..inside + more {
            tasks.push(spawn("lingers", move || call(n, 7) == 3 * n + 7)?);
        }
        inside += more;
        let end = timer::now_ns() + 20_000_000_000;
        while counted()?[0] < inside && timer::now_ns() < end {
            sched::sleep_ns(1_000_000);
        }
        let asleep = if blocks {
            wait_for_sleepers(inside)
        } else {
            inside
        };
        let came = counted()?[0];
        check!(
            (came, asleep) == (inside, inside),
            "{what}: of {inside} tasks {came} came in, {asleep} stay"
        );
        Ok(())
    };
    let mut steps = || -> Result<Vec<Vec<Image>>, Failure> {
        let old = laid(engine)?;
        come(GROUPS[0])?;
        let by = bpf::freplace("replace_rule/tenfold", id).map_err(|e| failed(&e))?;
        let new = laid(engine)?;
        come(GROUPS[1])?;
        detach(by)?;
        let again = laid(engine)?;
        come(GROUPS[2])?;
        Ok(alloc::vec![old, new, again])
    };
    let stages = steps();
    sched::sleep_ns(SHORT);
    let stages = stages.map(|stages| {
        let there = |stage: &Vec<Image>| stage.iter().all(Image::is_there);
        (stages.iter().map(there).collect::<Vec<_>>(), stages)
    });
    let let_go = set_variable("linger", "go", 1);
    slow::hold(false);
    let right = tasks.into_iter().all(JoinHandle::join);
    let counts = counted()?;
    let (kept, stages) = stages?;
    let_go?;
    check!(
        kept == [true; 3],
        "{what}: whether the program as it was, replaced and given back was there under tasks in it: {kept:?}"
    );
    let [old, new, again] = GROUPS;
    check!(
        right && counts == [old + new + again, old + again, new],
        "{what}: right: {right}; came, answered by its own, and by the other: {counts:?}"
    );
    let (last, gone) = stages
        .split_last()
        .ok_or(Failure::Failed("no stage".into()))?;
    // Words that calls from here left behind must not lie in the frames that wait.
    stack::scrub();
    for image in gone.iter().flatten() {
        image.check_freed()?;
    }
    check!(
        last.iter().all(Image::is_there),
        "{what}: what is attached is freed"
    );
    call(1, 1);
    let counts = counted()?;
    check!(
        counts[1] == old + again + 1,
        "{what}: not given back: {counts:?}"
    );
    detach(id)?;
    stack::scrub();
    for image in last {
        image.check_freed()?;
    }
    pool_is_back(free)
}

type Twelve = extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u64;

/// A task that is in the middle of an exchange until the gate opens; its result is right or not.
fn in_the_middle(value: u64) -> Result<JoinHandle<bool>, Failure> {
    set_gate(false);
    let task = spawn("in between", move || exchange(value, Pause::Gate) == value)?;
    are_asleep("in between", 1)?;
    Ok(task)
}

/// Without a transition: who sleeps between two functions that have to agree comes out wrong. That is what patches are for.
fn apart() -> Outcome {
    let task = in_the_middle(7)?;
    let first = replace("workload_encode", "workload_encode_rotated")?;
    let second = replace("workload_decode", "workload_decode_rotated")?;
    set_gate(true);
    let right = task.join();
    let later = exchange(7, Pause::None);
    detach(first)?;
    detach(second)?;
    check!(!right, "encoded by the old one and decoded by the new one");
    check!(later == 7, "both new: {later}");
    check!(exchange(7, Pause::None) == 7, "both old");
    Ok(())
}

fn named(name: &str) -> Result<&'static crate::workload::NamedPatch, Failure> {
    let patch = PATCHES.iter().find(|patch| patch.name == name);
    patch.ok_or_else(|| Failure::Failed(format!("no patch {name}")))
}

fn apply() -> Result<HookId, Failure> {
    livepatch::apply(named("rotate")?).map_err(|e| failed(&e))
}

fn phase(id: HookId) -> Phase {
    let list = livepatch::list();
    let patch = list.iter().find(|patch| patch.id == id);
    patch.map_or(Phase::Off, |patch| patch.phase)
}

/// Waits until a patch is where it should be, for at most so many milliseconds.
fn arrives(id: HookId, at: Phase, milliseconds: u64) -> Outcome {
    let end = timer::now_ns() + milliseconds * 1_000_000;
    while phase(id) != at && timer::now_ns() < end {
        sched::sleep_ns(1_000_000);
    }
    let left: Vec<_> = livepatch::list().iter().map(|p| p.left).collect();
    let phase = phase(id);
    check!(
        phase == at,
        "after {milliseconds} ms {phase:?}, not {at:?}; tasks left: {left:?}"
    );
    Ok(())
}

/// Waits until nothing holds a change up but one task that sleeps in the middle.
fn all_but_one(id: HookId, on_way: Phase) -> Outcome {
    arrives(id, on_way, 5000)?;
    let left = || {
        livepatch::list()
            .iter()
            .map(|patch| patch.left)
            .sum::<usize>()
    };
    let end = timer::now_ns() + 5_000_000_000;
    while left() != 1 && timer::now_ns() < end {
        sched::sleep_ns(1_000_000);
    }
    // Long enough for many looks: the sleeper is never changed over.
    sched::sleep_ns(20_000_000);
    let (phase, left) = (phase(id), left());
    check!(
        phase == on_way && left == 1,
        "{phase:?}, {left} tasks left, where one sleeps in the middle"
    );
    Ok(())
}

/// Which version a call of the first function runs: only one adds 13.
fn is_new() -> bool {
    let encode = black_box(crate::workload::workload_encode as extern "C" fn(u64, u64) -> u64);
    encode(1, 0) != 14
}

fn waits() -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    let task = in_the_middle(7)?;
    let id = apply()?;
    let held = all_but_one(id, Phase::GoingOver);
    let (new, right) = (is_new(), exchange(9, Pause::Yield) == 9);
    let second = livepatch::apply(named("call")?);
    set_gate(true);
    let mine = task.join();
    held?;
    check!(new, "this task has not changed over");
    check!(right && mine, "wrong results: {right} {mine}");
    check!(
        matches!(second, Err(HookError::Busy { .. })),
        "a second change was taken while one is on its way"
    );
    arrives(id, Phase::On, 5000)?;
    check!(is_new() && exchange(7, Pause::Gate) == 7, "not on");
    let site = hook::describe(crate::workload::workload_encode as *const () as usize);
    let site = site.first().map_or(0, |line| line.word);
    let to = a64::branch_target(site, crate::workload::workload_encode as *const () as u64);
    let new = function("workload_encode_rotated")?.address as u64;
    check!(
        to == Some(new),
        "the site leads to {to:x?}, not to {new:#x}"
    );
    // The same on the way back.
    let task = in_the_middle(7)?;
    detach(id)?;
    let held = all_but_one(id, Phase::GoingBack);
    let new = is_new();
    set_gate(true);
    check!(task.join(), "a wrong result on the way back");
    held?;
    check!(!new, "this task has not changed back");
    arrives(id, Phase::Off, 5000)?;
    check!(!is_new() && exchange(7, Pause::None) == 7, "not off");
    let report = integrity::check().map_err(|e| failed(&e))?;
    check!(report.unaccounted == 0, "words that no one owns");
    pool_is_back(free)
}

/// What the sites of the functions of the patch `rotate` lead to.
fn led_to() -> Result<[Image; 2], Failure> {
    let of = |name| Image::behind(function(name)?.address);
    Ok([of("workload_encode")?, of("workload_decode")?])
}

/// A task that goes through a function that is being replaced, again and again, and never gives up its core: no tasks-RCU grace period
/// ends before it stops, for it may be preempted anywhere, also in a switch.
struct Passing {
    task: JoinHandle<u64>,
    stop: Arc<AtomicBool>,
}

impl Passing {
    fn new() -> Result<Passing, Failure> {
        let [stop, begun] = <[Arc<AtomicBool>; 2]>::default();
        let task = {
            let (stop, begun) = (stop.clone(), begun.clone());
            spawn("passes", move || {
                let encode = black_box(crate::workload::workload_encode as Callable);
                let mut calls = 0;
                while !stop.load(Relaxed) {
                    black_box(encode(calls, 1));
                    calls += 1;
                    // Interrupts find it elsewhere too.
                    (0..calls % 16).for_each(|n| {
                        black_box(n);
                    });
                    begun.store(true, Relaxed);
                }
                calls
            })?
        };
        while !begun.load(Relaxed) {
            sched::sleep_ns(1_000_000);
        }
        Ok(Passing { task, stop })
    }

    fn stop(self) {
        self.stop.store(true, Relaxed);
        self.task.join();
    }
}

fn switches_freed() -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    let id = a_change_lays(Phase::GoingOver, Phase::On, apply)?;
    // What is on needs no memory.
    pool_is_back(free)?;
    a_change_lays(Phase::GoingBack, Phase::Off, || detach(id).map(|()| id))?;
    pool_is_back(free)
}

/// A change's switches are there as long as a task is in the old function, and then as long as one may be in a switch.
#[inline(never)]
fn a_change_lays(
    on_way: Phase,
    done: Phase,
    begin: impl FnOnce() -> Result<HookId, Failure>,
) -> Result<HookId, Failure> {
    let task = in_the_middle(7)?;
    let id = begin()?;
    let held = all_but_one(id, on_way);
    let switches = led_to()?;
    sched::sleep_ns(SHORT);
    let there = || switches.iter().all(Image::is_there);
    let under = there();
    let passing = Passing::new()?;
    set_gate(true);
    let right = task.join();
    let arrived = arrives(id, done, 5000);
    sched::sleep_ns(SHORT);
    let behind = there();
    passing.stop();
    held?;
    arrived?;
    check!(right, "{on_way:?}: a wrong result");
    check!(
        (under, behind) == (true, true),
        "{on_way:?}: switches are there under a task in an old function: {under}; under one that may be in a switch: {behind}"
    );
    switches.iter().try_for_each(Image::check_freed)?;
    Ok(id)
}

fn turned() -> Outcome {
    let task = in_the_middle(7)?;
    let id = apply()?;
    all_but_one(id, Phase::GoingOver)?;
    check!(is_new(), "this task has not changed over");
    detach(id)?;
    // The sleeper was never changed over, so nothing is left to wait for.
    arrives(id, Phase::Off, 5000)?;
    let old = !is_new() && exchange(3, Pause::None) == 3;
    set_gate(true);
    check!(old && task.join(), "wrong after turning back");
    // On, half-way off, and on again.
    let id = apply()?;
    arrives(id, Phase::On, 5000)?;
    let task = in_the_middle(7)?;
    detach(id)?;
    all_but_one(id, Phase::GoingBack)?;
    let again = apply()?;
    check!(again == id, "hook {again}, not {id}");
    arrives(id, Phase::On, 5000)?;
    set_gate(true);
    check!(task.join() && is_new(), "wrong after turning round");
    detach(id)?;
    arrives(id, Phase::Off, 5000)
}

/// Looks at nothing.
struct Nothing;

impl NativeHook for Nothing {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        0
    }
}

/// Holds one task up where it is, without holding up tasks RCU.
#[derive(Default)]
struct Hold {
    /// The task's number.
    task: AtomicU64,
    /// It is here.
    inside: AtomicBool,
    /// It may go on.
    go: AtomicBool,
}

impl NativeHook for Hold {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        if switch::current().id() == self.task.load(Relaxed) {
            self.inside.store(true, Relaxed);
            while !self.go.load(Relaxed) {
                sched::quiescent();
            }
        }
        0
    }
}

/// The first instruction of this function behind its site: it has no frame record yet.
fn before_its_record() -> Result<Place, Failure> {
    hook::resolve_place("sched::yield_now+0x8").map_err(|e| failed(&e))
}

fn probe(place: &Place, way: ProbeWay, hold: &Arc<Hold>) -> Result<HookId, Failure> {
    let program = Program::native("hold".into(), hold.clone(), Shape::Registers);
    let point = Point::of(Kind::Fentry);
    let id = hook::attach_probe(place, ProbeKind::Here, way, point, program);
    id.map_err(|e| failed(&e))
}

/// A task that runs `f` and is held up in it; whether it came there.
fn held(hold: &Arc<Hold>, f: fn() -> u64) -> Result<(JoinHandle<u64>, bool), Failure> {
    let task = {
        let hold = hold.clone();
        spawn("held up", move || {
            hold.task.store(switch::current().id(), Relaxed);
            f()
        })?
    };
    let end = timer::now_ns() + 5_000_000_000;
    while !hold.inside.load(Relaxed) && timer::now_ns() < end {
        sched::sleep_ns(1_000_000);
    }
    Ok((task, hold.inside.load(Relaxed)))
}

fn behind_a_probe() -> Outcome {
    let hold = Arc::new(Hold::default());
    let probe = probe(&before_its_record()?, ProbeWay::Detour, &hold)?;
    let (task, inside) = held(&hold, || exchange(7, Pause::Yield))?;
    let id = apply()?;
    let outcome = all_but_one(id, Phase::GoingOver);
    hold.go.store(true, Relaxed);
    let right = task.join() == 7;
    let on = arrives(id, Phase::On, 5000);
    detach(probe)?;
    detach(id)?;
    arrives(id, Phase::Off, 5000)?;
    check!(inside, "the task never came to the probe");
    outcome?;
    check!(right, "encoded by the old one and decoded by the new one");
    on
}

/// Who is in the new function's trampoline will run that function.
fn before_the_new() -> Outcome {
    let hold = Arc::new(Hold::default());
    let new = function("workload_call_other")?;
    let hook = hook::attach_hook(&new, Point::of(Kind::Fentry), "hold".into(), hold.clone());
    let hook = hook.map_err(|e| failed(&e))?;
    let id = livepatch::apply(named("call")?).map_err(|e| failed(&e))?;
    arrives(id, Phase::On, 5000)?;
    let (task, inside) = held(&hold, || call(10, 1))?;
    detach(id)?;
    let outcome = all_but_one(id, Phase::GoingBack);
    hold.go.store(true, Relaxed);
    let result = task.join();
    let off = arrives(id, Phase::Off, 5000);
    detach(hook)?;
    check!(inside, "the task never came to the hook");
    outcome?;
    check!(result == 51, "not by the new one: {result}");
    off
}

/// The addresses that this task would go on at if it had been interrupted at `pc` with these in x9 and x30, called by no one.
fn ways_back(pc: u64, x9: u64, x30: u64) -> Vec<u64> {
    const WORDS: usize = size_of::<Frame>() / 8;
    const X: usize = core::mem::offset_of!(Frame, x) / 8;
    const RECORD: usize = core::mem::offset_of!(Frame, record) / 8;
    let mut frame = [0u64; WORDS];
    frame[X + 9] = x9;
    frame[X + 30] = x30;
    frame[RECORD + 1] = pc;
    let mut seen = Vec::new();
    let from = black_box(&frame).as_ptr().addr();
    unwind::each_way_back(switch::current(), from, |address, _| seen.push(address));
    seen
}

fn no_record() -> Outcome {
    let place = before_its_record()?;
    let inside = workload_exchange as *const () as u64 + 0x10;
    // In a shared caller of Linux's way.
    let seen = ways_back(place.function.address, inside, place.address());
    check!(seen.contains(&inside), "not where x9 leads: {seen:x?}");
    // In a probe, which has not made its record yet, and in the slot of a breakpoint, where none is made.
    for way in [ProbeWay::Detour, ProbeWay::Breakpoint] {
        rcu::barrier();
        let probe = probe(&place, way, &Arc::new(Hold::default()))?;
        let mut words = hook::live().into_iter().flat_map(|run| run.step_by(4));
        let code = words.find(|word| {
            let hooked = hook::hooked_at(*word as usize, 0);
            matches!(hooked, Some(Hooked::Probe { at, .. }) if at == place.address())
        });
        let seen = code.map(|code| ways_back(code, 0, inside));
        detach(probe)?;
        let seen = seen.unwrap_or_default();
        check!(
            seen.contains(&place.address()) && seen.contains(&inside),
            "{way:?}: not in what is probed, or not where x30 leads: {seen:x?}"
        );
    }
    Ok(())
}

fn sleepers_elsewhere() -> Outcome {
    const TASKS: u64 = 10;
    let many = Many {
        exit: true,
        protection: Protection::Program,
    };
    let selection = hook::select("workload_blocks").map_err(|e| failed(&e))?;
    let program = Native::Count.program(Shape::Many);
    let exits = hook::attach_multi(selection, many, 0, program).map_err(|e| failed(&e))?;
    set_gate(false);
    let tasks = (0..TASKS).map(|n| spawn("sleeper", move || workload_blocks(n, 5) == n + 10));
    let tasks = tasks.collect::<Result<Vec<_>, _>>()?;
    are_asleep("sleeper", TASKS as usize)?;
    let id = livepatch::apply(named("call")?).map_err(|e| failed(&e))?;
    let on = arrives(id, Phase::On, 5000);
    detach(id)?;
    let off = arrives(id, Phase::Off, 5000);
    set_gate(true);
    let right = tasks.into_iter().all(JoinHandle::join);
    let hits = hook::hits(exits.id);
    detach(exits.id)?;
    arrives(id, Phase::Off, 5000)?;
    on?;
    off?;
    check!(right, "a call returned a wrong result");
    // Tasks that return at once may count as one: the counter is no atomic one.
    check!(hits > Some(0), "{TASKS} returns, no hit");
    Ok(())
}

fn load() -> Outcome {
    // A task that yields is in the shared caller of Linux's way now and then.
    let yields = function("sched::yield_now")?;
    let list = Way::List { all: false };
    let point = Point::of(Kind::Fentry);
    let program = Program::native("nothing".into(), Arc::new(Nothing), list.shape(point.kind));
    let listed = hook::linux::attach(&[yields], list, point, program).map_err(|e| failed(&e))?;
    let outcome = under_load();
    detach(listed)?;
    outcome
}

fn under_load() -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let (calls, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for n in 0..4 * cpu::online().count() as u64 {
        let (stop, calls, wrong) = (stop.clone(), calls.clone(), wrong.clone());
        tasks.push(spawn("exchanges", move || {
            let mut value = n;
            while !stop.load(Relaxed) {
                value = value
                    .wrapping_mul(0x5851_f42d_4c95_7f2d)
                    .wrapping_add(n | 1);
                let call = calls.fetch_add(1, Relaxed);
                // Cores are given up in the middle, and between two exchanges more often.
                let pause = match call % 16 == n % 16 {
                    true => Pause::Yield,
                    false => Pause::None,
                };
                if exchange(value, pause) != value {
                    wrong.fetch_add(1, Relaxed);
                }
                if call % 4 == n % 4 {
                    sched::yield_now();
                }
            }
        })?);
    }
    let mut outcome = Ok(());
    let (mut rounds, end) = (0, timer::now_ns() + 1_500_000_000);
    while outcome.is_ok() && timer::now_ns() < end {
        outcome = load_round(rounds);
        rounds += 1;
    }
    stop.store(true, Relaxed);
    tasks.into_iter().for_each(|task| task.join());
    outcome?;
    let (calls, wrong) = (calls.load(Relaxed), wrong.load(Relaxed));
    check!(
        wrong == 0,
        "{wrong} of {calls} exchanges were mixed, in {rounds} rounds"
    );
    check!(calls > 100 && rounds > 0, "{calls} calls, {rounds} rounds");
    Ok(())
}

/// On and off; in some rounds turned round half-way, in some with hooks coming and going.
fn load_round(round: u64) -> Outcome {
    let function = function("workload_decode")?;
    let kind = if round.is_multiple_of(2) {
        Kind::Fentry
    } else {
        Kind::Fexit
    };
    let hook = |label: &str| {
        let hook = hook::attach_hook(&function, Point::of(kind), label.into(), Arc::new(Nothing));
        hook.map_err(|e| failed(&e))
    };
    let before = hook("before")?;
    let id = apply()?;
    let during = hook("during")?;
    detach(before)?;
    if round % 3 == 2 {
        sched::sleep_ns(1_000_000);
        detach(id)?;
        arrives(id, Phase::Off, 20_000)?;
        return detach(during);
    }
    arrives(id, Phase::On, 20_000)?;
    check!(exchange(round, Pause::None) == round, "not the same");
    detach(id)?;
    detach(during)?;
    arrives(id, Phase::Off, 20_000)
}

fn stalled() -> Outcome {
    let task = in_the_middle(7)?;
    rcu::set_stall_limit(200_000_000);
    let id = apply()?;
    let end = timer::now_ns() + 5_000_000_000;
    while rcu::last_stall().is_none() && timer::now_ns() < end {
        sched::sleep_ns(10_000_000);
    }
    let stall = rcu::last_stall();
    rcu::set_stall_limit(rcu::STALL_NS);
    detach(id)?;
    arrives(id, Phase::Off, 5000)?;
    set_gate(true);
    let right = task.join();
    let Some((_, trace)) = stall else {
        check!(false, "no report of a change that cannot end");
        return Ok(());
    };
    let names: Vec<_> = trace
        .iter()
        .map(|at| crate::symbols::Name(at.wrapping_sub(4)).function())
        .collect();
    check!(
        names.iter().any(|name| name == "workload_exchange"),
        "the report does not show where the task is: {names:?}"
    );
    check!(right, "a wrong result after turning back");
    Ok(())
}
