// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kinds of hooks and what protects them: fexit, fmod_ret, sessions, many on one function, recursion in each context, blocking.

use super::above;
use super::hooks::{call, detach, function};
use super::sleepers::{Image, pool_is_back, under_ten_sleepers};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook};
use crate::arch::code;
use crate::hook::{self, HookId, How, Point, ProbeWay, Protection, Settings};
use crate::mm::stack::HIT_LIMIT;
use crate::workload::{Wide, workload_twelve, workload_wide};
use crate::{check, rcu, sched};
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trampoline::{Kind, ProbeKind};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "kinds.fexit_gets_arguments_and_result",
        seconds: 20,
        run: fexit,
    },
    Test {
        name: "kinds.fmod_ret_skips_the_function",
        seconds: 20,
        run: fmod_ret,
    },
    Test {
        name: "kinds.fsession_shares_a_word",
        seconds: 20,
        run: fsession,
    },
    Test {
        name: "kinds.twelve_arguments_arrive",
        seconds: 20,
        run: twelve,
    },
    Test {
        name: "kinds.a_struct_is_returned_in_memory",
        seconds: 20,
        run: wide,
    },
    Test {
        name: "kinds.sixty_programs_on_one_function",
        seconds: 60,
        run: sixty,
    },
    Test {
        name: "kinds.cookies_are_each_attachments_own",
        seconds: 20,
        run: cookies,
    },
    Test {
        name: "kinds.a_program_is_turned_away_from_itself",
        seconds: 20,
        run: recursion,
    },
    Test {
        name: "kinds.every_context_runs_in_every_other",
        seconds: 20,
        run: contexts,
    },
    Test {
        name: "kinds.sleepable_programs_block",
        seconds: 30,
        run: sleepable,
    },
    Test {
        name: "kinds.detached_under_ten_sleepers",
        seconds: 60,
        run: sleepers,
    },
    Test {
        name: "kinds.a_hit_that_takes_too_much_stack_is_refused",
        seconds: 20,
        run: too_much_stack,
    },
    Test {
        name: "kinds.each_word_of_an_image_says_what_it_is_for",
        seconds: 20,
        run: listed,
    },
    Test {
        name: "kinds.what_a_function_does_not_allow_is_refused",
        seconds: 20,
        run: refused,
    },
];

/// What a program does beside noting what it saw.
#[derive(Default)]
struct Program {
    hits: AtomicU64,
    words: [AtomicU64; 16],
    /// The session: how often the word was 0 at an entry, and the entry's own at the exit.
    matched: [AtomicU64; 2],
    cookie: AtomicU64,
    result: AtomicU64,
    /// Calls the hooked function from inside.
    recursing: AtomicU64,
    /// Blocks for so long, in nanoseconds.
    sleeps: AtomicU64,
    /// Hits by context.
    contexts: [AtomicU64; 4],
    climb: AtomicU64,
}

impl NativeHook for Program {
    #[inline(never)] // linker/audit.rules names it
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        let hits = self.hits.fetch_add(1, Relaxed);
        for (to, from) in self.words.iter().zip(hit.words()) {
            to.store(*from, Relaxed);
        }
        self.cookie.store(hit.attachment().cookie, Relaxed);
        if let Some((exit, word)) = hit.session() {
            let expected = if exit { hits + 6 } else { 0 };
            if word.swap(hits + 7, Relaxed) == expected {
                self.matched[usize::from(exit)].fetch_add(1, Relaxed);
            }
        }
        // By pointers that nothing sees through: what a hook may not do is not on the path of hooks (linker/audit.rules).
        if self.recursing.load(Relaxed) != 0 {
            black_box(call_once as fn())();
        }
        match self.sleeps.load(Relaxed) {
            0 => {}
            time => black_box(sched::sleep_ns as fn(u64))(time),
        }
        if self.climb.load(Relaxed) != 0 {
            black_box(Program::climb as fn(&Program))(self);
        }
        self.result.load(Relaxed)
    }
}

impl Program {
    /// Calls the hooked function from the next higher context, in the middle of this hit.
    fn climb(&self) {
        above::climb(&self.contexts, call_once);
    }

    fn take_hits(&self) -> u64 {
        self.hits.swap(0, Relaxed)
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).map_or(0, |w| w.load(Relaxed))
    }
}

fn attach(name: &str, point: Point, program: &Arc<Program>) -> Result<HookId, Failure> {
    hook::attach_hook(&function(name)?, point, "test".into(), program.clone())
        .map_err(|e| failed(&e))
}

/// All ways to protect a program that nothing here makes recurse.
const PROTECTIONS: [Protection; 4] = [
    Protection::Program,
    Protection::Context,
    Protection::Pinned,
    Protection::None,
];

fn fexit() -> Outcome {
    for protection in PROTECTIONS {
        let program = Arc::new(Program::default());
        let point = Point {
            protection,
            ..Point::of(Kind::Fexit)
        };
        let id = attach("workload_call", point, &program)?;
        for n in 0..100 {
            check!(call(n, 7) == 3 * n + 7, "{protection:?}: a wrong result");
            let seen = [program.word(0), program.word(1), program.word(2)];
            check!(
                seen == [n, 7, 3 * n + 7],
                "{protection:?}: the program saw {seen:?}"
            );
        }
        detach(id)?;
        call(1, 1);
        let hits = program.take_hits();
        check!(hits == 100, "{protection:?}: 100 calls, {hits} hits");
    }
    Ok(())
}

fn fmod_ret() -> Outcome {
    for protection in PROTECTIONS {
        let point = |kind| Point {
            protection,
            ..Point::of(kind)
        };
        let programs: [Arc<Program>; 3] = Default::default();
        let [entry, modify, exit] = &programs;
        let ids = [
            attach("workload_call", point(Kind::Fexit), exit)?,
            attach("workload_call", point(Kind::FmodRet), modify)?,
            attach("workload_call", point(Kind::Fentry), entry)?,
        ];
        check!(call(5, 6) == 21, "the function did not run");
        check!(exit.word(2) == 21, "fexit saw {}", exit.word(2));
        modify.result.store(99, Relaxed);
        check!(call(5, 6) == 99, "the function ran");
        check!(exit.word(2) == 99, "fexit saw {}", exit.word(2));
        for id in ids {
            detach(id)?;
        }
        check!(call(5, 6) == 21, "still changed");
        let hits = programs.each_ref().map(|p| p.take_hits());
        check!(hits == [2, 2, 2], "{protection:?}: 2 calls, {hits:?} hits");
    }
    Ok(())
}

fn fsession() -> Outcome {
    let programs: [Arc<Program>; 3] = Default::default();
    let mut ids = Vec::new();
    for program in &programs {
        ids.push(attach("workload_call", Point::of(Kind::Fsession), program)?);
    }
    for n in 0..50 {
        check!(call(n, 1) == 3 * n + 1, "a wrong result");
    }
    for id in ids {
        detach(id)?;
    }
    for program in &programs {
        let matched = program.matched.each_ref().map(|m| m.load(Relaxed));
        check!(
            matched == [50, 50] && program.take_hits() == 100,
            "entries and exits that found their word: {matched:?} of 50"
        );
    }
    Ok(())
}

fn twelve() -> Outcome {
    let f = black_box(
        workload_twelve
            as extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u64,
    );
    let run = || f(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    let expected = run();
    for kind in [Kind::Fentry, Kind::FmodRet, Kind::Fexit, Kind::Fsession] {
        let program = Arc::new(Program::default());
        let id = attach("workload_twelve", Point::of(kind), &program)?;
        let result = run();
        detach(id)?;
        check!(result == expected, "{kind}: {result} instead of {expected}");
        for index in 0..12 {
            let word = program.word(index);
            check!(
                word == index as u64 + 1,
                "{kind}: argument {index} is {word}"
            );
        }
    }
    Ok(())
}

/// The result of a function that returns it in memory, by x8, is as without the hook, and the program gets the arguments.
fn wide() -> Outcome {
    let target = function("workload_wide")?;
    let f = black_box(workload_wide as extern "C" fn(u64, u64) -> Wide);
    let ways = [
        How::Trampoline(Kind::Fentry),
        How::Trampoline(Kind::Fexit),
        How::Trampoline(Kind::Fsession),
        How::Many { exit: false },
        How::Many { exit: true },
        How::Probe(ProbeKind::Here, ProbeWay::Detour),
        How::Probe(ProbeKind::Return, ProbeWay::Detour),
        How::Probe(ProbeKind::Here, ProbeWay::Breakpoint),
        How::Probe(ProbeKind::Return, ProbeWay::Breakpoint),
    ];
    for how in ways {
        for protection in PROTECTIONS {
            let program = Arc::new(Program::default());
            let at = how.on(target).map_err(|e| failed(&e))?;
            let settings = Settings {
                protection: Some(protection),
                ..Settings::default()
            };
            let label = "test".into();
            let hooked = hook::Program::native(label, program.clone(), how.shape());
            let id = hook::hook_in(at, settings, hooked).map_err(|e| failed(&e))?;
            // Both results are there at the same time: neither lies in the other's place.
            let results = [f(0x11, 0x22), f(0x33, 0x44)];
            detach(id.id)?;
            let expected = [(0x11, 0x22), (0x33, 0x44)].map(|(first, second)| Wide {
                first,
                second,
                sum: first + second,
            });
            check!(
                results == expected,
                "{how:?}, {protection:?}: {results:x?} instead of {expected:x?}"
            );
            let hits = program.take_hits();
            let runs = match how {
                How::Trampoline(Kind::Fsession) => 4,
                _ => 2,
            };
            check!(hits == runs, "{how:?}, {protection:?}: {hits} hits");
            if let How::Trampoline(_) = how {
                let seen = [program.word(0), program.word(1)];
                check!(
                    seen == [0x33, 0x44],
                    "{how:?}, {protection:?}: the program saw {seen:x?}"
                );
            }
        }
    }
    Ok(())
}

fn sixty() -> Outcome {
    rcu::barrier();
    let before = hook::pool_free();
    let kinds = [Kind::Fentry, Kind::Fexit, Kind::FmodRet, Kind::Fsession];
    let mut all = Vec::new();
    for kind in kinds.iter().cycle().take(60) {
        let program = Arc::new(Program::default());
        all.push((
            attach("workload_call", Point::of(*kind), &program)?,
            *kind,
            program,
        ));
    }
    check!(call(2, 3) == 9, "a wrong result");
    for (_, kind, program) in &all {
        let expected = if *kind == Kind::Fsession { 2 } else { 1 };
        let hits = program.take_hits();
        check!(hits == expected, "{kind}: {hits} hits of one call");
    }
    for (index, (id, ..)) in all.iter().enumerate() {
        detach(*id)?;
        check!(call(2, 3) == 9, "a wrong result after {index} detached");
    }
    pool_is_back(before)
}

fn cookies() -> Outcome {
    let programs: [Arc<Program>; 2] = Default::default();
    let mut ids = Vec::new();
    for (cookie, program) in [0x1234, u64::MAX].into_iter().zip(&programs) {
        let point = Point {
            cookie,
            ..Point::of(Kind::Fentry)
        };
        ids.push(attach("workload_call", point, program)?);
    }
    call(1, 1);
    for id in ids {
        detach(id)?;
    }
    let seen = programs.each_ref().map(|p| p.cookie.load(Relaxed));
    check!(seen == [0x1234, u64::MAX], "cookies are {seen:x?}");
    Ok(())
}

fn recursion() -> Outcome {
    for kind in [Kind::Fentry, Kind::Fexit, Kind::FmodRet, Kind::Fsession] {
        for protection in [Protection::Program, Protection::Context] {
            let programs: [Arc<Program>; 2] = Default::default();
            let point = Point {
                protection,
                ..Point::of(kind)
            };
            let caller = attach("workload_call", point, &programs[0])?;
            let other = attach("workload_call", point, &programs[1])?;
            programs[0].recursing.store(1, Relaxed);
            check!(call(4, 5) == 17, "{kind}: a wrong result");
            let misses = [hook::misses(caller)[0], hook::misses(other)[0]];
            let hits = programs.each_ref().map(|p| p.take_hits());
            detach(caller)?;
            detach(other)?;
            let runs = if kind == Kind::Fsession { 2 } else { 1 };
            // Each run of the first makes one call, from which it is turned away as often as that would run it; the other is
            // turned away only where any active program does that.
            let nested = runs * runs;
            let expected = match protection {
                Protection::Context => ([runs, runs], [nested, nested]),
                _ => ([runs, runs + nested], [nested, 0]),
            };
            check!(
                (hits, misses) == expected,
                "{kind}, {protection:?}: hits {hits:?} and misses {misses:?} instead of {expected:?}"
            );
        }
    }
    Ok(())
}

fn contexts() -> Outcome {
    let ways = [
        How::Trampoline(Kind::Fentry),
        How::Trampoline(Kind::Fexit),
        How::Trampoline(Kind::FmodRet),
        How::Trampoline(Kind::Fsession),
        How::Many { exit: false },
        How::Many { exit: true },
    ];
    for how in ways {
        for protection in [Protection::Program, Protection::Context] {
            contexts_by(how, protection)?;
        }
    }
    Ok(())
}

fn contexts_by(how: How, protection: Protection) -> Outcome {
    let [climbing, other]: [Arc<Program>; 2] = Default::default();
    climbing.climb.store(1, Relaxed);
    let put = |program: &Arc<Program>| {
        let at = how.on(function("workload_call")?).map_err(|e| failed(&e))?;
        let settings = Settings {
            protection: Some(protection),
            ..Settings::default()
        };
        let program = hook::Program::native("test".into(), program.clone(), how.shape());
        hook::hook_in(at, settings, program).map_err(|e| failed(&e))
    };
    let ids = [put(&climbing)?.id, put(&other)?.id];
    let result = above::calling(&(call_once as fn()), || call(1, 2));
    let misses = ids.map(hook::misses);
    for id in ids {
        detach(id)?;
    }
    check!(
        result == 5,
        "{how:?}, {protection:?}: a wrong result: {result}"
    );
    // Each hit makes a call in its own context, from which it is turned away, and one in the next higher, which is that one's only:
    // so a session, which is hit twice a call, is called twice as often in each.
    let runs = if how == How::Trampoline(Kind::Fsession) {
        2
    } else {
        1
    };
    let hits_in: [u64; 4] = core::array::from_fn(|context| u64::pow(runs, context as u32 + 1));
    let nested = hits_in.map(|hits| hits * runs);
    let whole = protection == Protection::Context;
    // The other one is turned away from the nested calls only by a guard that looks at the whole context.
    let others: u64 = hits_in.iter().chain(nested.iter().filter(|_| !whole)).sum();
    let others_misses = if whole { nested } else { [0; 4] };
    let hits = climbing.contexts.each_ref().map(|c| c.load(Relaxed));
    check!(
        hits == hits_in && other.take_hits() == others,
        "{how:?}, {protection:?}: hits in task, softirq, hardirq and NMI, nested: {hits:?}, not {hits_in:?}, or the other one's are not {others}"
    );
    check!(
        misses == [nested, others_misses],
        "{how:?}, {protection:?}: turned away in task, softirq, hardirq and NMI: {misses:?}, not {nested:?} and {others_misses:?}"
    );
    Ok(())
}

fn call_once() {
    call(1, 1);
}

fn sleepable() -> Outcome {
    let program = Arc::new(Program::default());
    program.sleeps.store(2_000_000, Relaxed);
    let point = Point {
        sleepable: true,
        ..Point::of(Kind::Fentry)
    };
    let id = attach("workload_call", point, &program)?;
    let tasks: Result<Vec<_>, _> = (0..6)
        .map(|n| spawn("sleeper", move || call(n, 1) == 3 * n + 1))
        .collect();
    let right = tasks?.into_iter().all(|t| t.join());
    detach(id)?;
    check!(
        right,
        "a call whose program blocked returned a wrong result"
    );
    let hits = program.take_hits();
    check!(hits == 6, "6 calls, {hits} hits");
    rcu::barrier();
    Ok(())
}

fn sleepers() -> Outcome {
    for kind in [Kind::Fexit, Kind::FmodRet, Kind::Fsession] {
        sleepers_in(kind)?;
    }
    Ok(())
}

/// In a frame of its own: no address of the image must stay behind on the frame that waits for it to be freed.
#[inline(never)]
fn sleepers_in(kind: Kind) -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    let program = Arc::new(Program::default());
    let function = function("workload_blocks")?;
    let id = attach("workload_blocks", Point::of(kind), &program)?;
    let image = Image::behind(function.address)?;
    let entries = || program.hits.load(Relaxed);
    let mut entered = 0;
    let (kept, right) = under_ten_sleepers(
        || {
            entered = entries();
            detach(id)
        },
        || image.is_there(),
    )?;
    check!(
        kept,
        "{kind}: the image was freed under ten tasks that sleep in the function"
    );
    check!(
        right,
        "{kind}: a call over which the hook was taken off returned a wrong result"
    );
    let expected = if kind == Kind::Fexit { 0 } else { 10 };
    let hits = program.take_hits();
    check!(
        (entered, hits) == (expected, expected),
        "{kind}: {entered} hits before the detach and {hits} in all, not {expected}"
    );
    image.check_freed()?;
    pool_is_back(free)
}

/// The words of a hooked function's site and image as they are in memory, without a gap, and their ingredients: all of `some` and
/// none of `none` among them.
fn check_listing(function: &hook::Function, some: &[&str], none: &[&str]) -> Outcome {
    let lines = hook::describe(function.address);
    let (site, image) = lines.split_at_checked(2).unwrap_or_default();
    check!(
        site.len() == 2 && site.iter().all(|line| line.ingredient == "site"),
        "no site is listed"
    );
    for line in &lines {
        let there = code::read(line.address);
        check!(
            there == Some(line.word) && !line.ingredient.is_empty(),
            "{:#x} is listed as {:08x}, for {:?}; there is {there:08x?}",
            line.address,
            line.word,
            line.ingredient
        );
    }
    let gap = image.windows(2).find_map(|pair| match pair {
        [one, next] if next.address != one.address + 4 => Some(one.address),
        _ => None,
    });
    check!(gap.is_none(), "what is behind {gap:x?} is not listed");
    let is_there = |name: &&&str| image.iter().any(|line| line.ingredient == **name);
    let missing = some.iter().find(|name| !is_there(name));
    let wrong = none.iter().find(is_there);
    check!(
        missing.is_none() && wrong.is_none(),
        "no word is for {missing:?}, or one is for {wrong:?}"
    );
    Ok(())
}

fn listed() -> Outcome {
    const ALWAYS: [&str; 4] = ["save", "program", "restore", "return"];
    let function = function("workload_call")?;
    let program = Arc::new(Program::default());
    for kind in [Kind::Fentry, Kind::Fexit, Kind::FmodRet, Kind::Fsession] {
        for protection in PROTECTIONS {
            let id = attach(
                "workload_call",
                Point {
                    protection,
                    ..Point::of(kind)
                },
                &program,
            )?;
            let guard = matches!(protection, Protection::Program | Protection::Context);
            let (mut some, mut none) = (ALWAYS.to_vec(), Vec::new());
            if guard { &mut some } else { &mut none }.extend(["guard", "literal"]);
            if kind.calls_function() {
                &mut some
            } else {
                &mut none
            }
            .push("function");
            let found = check_listing(&function, &some, &none);
            detach(id)?;
            if let Err(Failure::Failed(why)) = found {
                check!(false, "{kind:?}, {protection:?}: {why}");
            }
        }
    }
    let lines = hook::describe(function.address);
    check!(
        lines.len() == 2,
        "{} words are listed of a function that nothing hooks",
        lines.len()
    );
    Ok(())
}

fn refused() -> Outcome {
    let program = Arc::new(Program::default());
    let sleepable = Point {
        sleepable: true,
        ..Point::of(Kind::Fentry)
    };
    for (name, point, part) in [
        (
            "springboard_main",
            Point::of(Kind::FmodRet),
            "not marked overridable",
        ),
        ("springboard_main", sleepable, "not marked sleepable"),
        (
            "springboard::workload::call_loop",
            Point::of(Kind::Fexit),
            "leave on the stack is not known",
        ),
    ] {
        let function = function(name)?;
        let attached = hook::attach_hook(&function, point, "test".into(), program.clone());
        match attached {
            Ok(_) => check!(false, "{name} was hooked"),
            Err(e) => {
                let text = e.to_string();
                check!(text.contains(part) && text.contains(name), "{name}: {text}");
            }
        }
    }
    Ok(())
}

/// It does nothing, on more stack than a hit may take.
struct Deep;

impl NativeHook for Deep {
    const STACK: u32 = 30_000;

    fn hit(&self, _: &Hit<'_>) -> u64 {
        0
    }
}

/// Wherever it would be hooked in, the numbers are said, and nothing is changed.
fn too_much_stack() -> Outcome {
    let function = function("workload_call")?;
    let before = (hook::pool_free(), hook::list().len());
    let ways = [
        How::Trampoline(Kind::Fentry),
        How::Trampoline(Kind::Fexit),
        How::Trampoline(Kind::FmodRet),
        How::Trampoline(Kind::Fsession),
        How::Probe(ProbeKind::Here, ProbeWay::Detour),
        How::Probe(ProbeKind::Return, ProbeWay::Detour),
        How::Probe(ProbeKind::Here, ProbeWay::Breakpoint),
        How::Many { exit: false },
        How::Many { exit: true },
    ];
    let linux = hook::linux::WAYS.map(|way| match way {
        hook::linux::Way::FprobeExit => How::Linux(way, Kind::Fexit),
        way => How::Linux(way, Kind::Fentry),
    });
    for how in ways.into_iter().chain(linux) {
        let program = hook::Program::native("deep".into(), Arc::new(Deep), how.shape());
        let hooked = how
            .on(function)
            .and_then(|at| hook::hook_in(at, Settings::default(), program));
        match hooked {
            Ok(hooked) => {
                hook::detach(hooked.id).map_err(|e| failed(&e))?;
                check!(false, "{how:?}: 30000 bytes of stack were let in");
            }
            Err(e) => {
                let text = e.to_string();
                let numbers = text.split(|c: char| !c.is_ascii_digit());
                let most = numbers.filter_map(|n| n.parse::<u32>().ok()).max();
                check!(
                    text.contains("workload_call")
                        && text.contains(&format!("{HIT_LIMIT} are set aside"))
                        && most.is_some_and(|needed| needed >= Deep::STACK),
                    "{how:?}: {text}"
                );
            }
        }
    }
    crate::rcu::barrier();
    crate::rcu::barrier();
    check!(
        (hook::pool_free(), hook::list().len()) == before,
        "the pool and the hooks are not as before"
    );
    let report = crate::integrity::check().map_err(Failure::Failed)?;
    check!(
        report.unaccounted == 0,
        "code was changed and no hook owns it"
    );
    Ok(())
}
