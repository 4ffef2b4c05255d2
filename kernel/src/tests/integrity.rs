// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is hooked shows: marks in reports, and the text against what was linked.

use super::sleepers::are_asleep;
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook, Shape, callee};
use crate::arch::lock::SpinLock;
use crate::arch::{code, switch, timer, unwind};
use crate::bpf::{self, Engine};
use crate::hook::linux::Way;
use crate::hook::livepatch;
use crate::hook::{self, HookId, How, Native, Point, ProbeWay, Settings};
use crate::sched::{State, Task};
use crate::workload::{PATCHES, set_gate, workload_blocks, workload_call, workload_six};
use crate::{check, hooked, integrity, rcu, sched, symbols};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use core::sync::atomic::{AtomicBool, Ordering};
use trampoline::{Kind, ProbeKind};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "integrity.marks_name_what_is_hooked",
        seconds: 20,
        run: marks,
    },
    Test {
        name: "integrity.marks_name_every_way",
        seconds: 60,
        run: every_way,
    },
    Test {
        name: "integrity.marks_name_every_program",
        seconds: 60,
        run: every_program,
    },
    Test {
        name: "integrity.texts_are_shared_and_reused",
        seconds: 20,
        run: texts,
    },
    Test {
        name: "integrity.readers_see_whole_texts",
        seconds: 60,
        run: whole_texts,
    },
    Test {
        name: "integrity.every_change_has_its_hook",
        seconds: 60,
        run: every_change,
    },
    Test {
        name: "integrity.a_change_without_a_hook_is_found",
        seconds: 60,
        run: behind_the_back,
    },
    Test {
        name: "integrity.a_change_in_executable_memory_is_found",
        seconds: 60,
        run: in_the_pool,
    },
    Test {
        name: "integrity.what_the_engine_changes_is_its_own",
        seconds: 120,
        run: own_changes,
    },
    Test {
        name: "integrity.hooks_know_their_stack",
        seconds: 20,
        run: stacks,
    },
];

/// An address inside a function that no other test hooks meanwhile.
fn inside() -> u64 {
    workload_call as *const () as u64 + 8
}

fn mark_of(address: u64) -> Option<String> {
    hooked::of(address).map(|mark| mark.to_string())
}

fn marks() -> Outcome {
    let name = || format!("{}", symbols::Name(inside() as usize));
    check!(name() == "workload_call+0x8", "{} before", name());
    let function = hook::resolve("workload_call").map_err(|e| failed(&e))?;
    let first = hook::attach_native(&function, Native::Count, Point::of(Kind::Fentry))
        .map_err(|e| failed(&e))?;
    let second = hook::attach_native(&function, Native::Empty, Point::of(Kind::Fentry))
        .map_err(|e| failed(&e))?;
    let both = "workload_call+0x8 [hooked: fentry count, fentry empty]";
    check!(name() == both, "{} with two hooks", name());
    let listed: Vec<_> = hooked::all().map(|(name, _)| name).collect();
    check!(listed == ["workload_call"], "{listed:?} are hooked");
    hook::detach(first).map_err(|e| failed(&e))?;
    let one = "workload_call+0x8 [hooked: fentry empty]";
    check!(name() == one, "{} with one hook", name());
    hook::detach(second).map_err(|e| failed(&e))?;
    check!(name() == "workload_call+0x8", "{} after", name());
    Ok(())
}

/// Every way in, and how reports name it.
const WAYS: [(How, &str); 20] = [
    (How::Trampoline(Kind::Fentry), "fentry"),
    (How::Trampoline(Kind::Fexit), "fexit"),
    (How::Trampoline(Kind::FmodRet), "fmod_ret"),
    (How::Trampoline(Kind::Fsession), "fsession"),
    (How::Trampoline(Kind::Freplace), "freplace"),
    (How::Probe(ProbeKind::Here, ProbeWay::Detour), "kprobe"),
    (How::Probe(ProbeKind::Return, ProbeWay::Detour), "kretprobe"),
    (
        How::Probe(ProbeKind::Here, ProbeWay::Breakpoint),
        "linux-kprobe",
    ),
    (
        How::Probe(ProbeKind::Return, ProbeWay::Breakpoint),
        "linux-kretprobe",
    ),
    (How::Many { exit: false }, "kprobe.multi"),
    (How::Many { exit: true }, "kretprobe.multi"),
    (How::Linux(Way::Trampoline, Kind::Fentry), "linux-fentry"),
    (How::Linux(Way::Trampoline, Kind::Fexit), "linux-fexit"),
    (How::Linux(Way::Trampoline, Kind::FmodRet), "linux-fmod_ret"),
    (
        How::Linux(Way::List { all: false }, Kind::Fentry),
        "linux-list",
    ),
    (
        How::Linux(Way::List { all: true }, Kind::Fentry),
        "linux-list-regs",
    ),
    (
        How::Linux(Way::CallOps { all: false }, Kind::Fentry),
        "linux-callops",
    ),
    (
        How::Linux(Way::CallOps { all: true }, Kind::Fentry),
        "linux-callops-regs",
    ),
    (How::Linux(Way::Fprobe, Kind::Fentry), "linux-fprobe"),
    (
        How::Linux(Way::FprobeExit, Kind::Fexit),
        "linux-fprobe-exit",
    ),
];

/// The task of [`every_way`] that sleeps in the function.
static SLEEPER: SpinLock<Option<&'static Task>> = SpinLock::new(None);

/// Runs it while a task sleeps in `workload_blocks`.
fn with_sleeper(names: fn() -> Outcome) -> Outcome {
    set_gate(false);
    let sleeper = spawn("sleeper", || {
        *SLEEPER.lock() = Some(switch::current());
        workload_blocks(1, 5) == 11
    })?;
    let asleep = || {
        let task = *SLEEPER.lock();
        task.is_some_and(|task| task.state() == State::Blocked)
    };
    let end = timer::now_ns() + 5_000_000_000;
    while !asleep() && timer::now_ns() < end {
        sched::sleep_ns(1_000_000);
    }
    sched::sleep_ns(5_000_000); // it is off its core
    let outcome = names();
    set_gate(true);
    let right = sleeper.join();
    *SLEEPER.lock() = None;
    outcome?;
    check!(right, "a wrong result");
    Ok(())
}

/// What names an address of a trace or a register dump ends so while the function is hooked, and with nothing when it is not.
fn every_way() -> Outcome {
    with_sleeper(every_way_names)
}

/// The line of a trace of the task that sleeps in the hooked function which says that function.
fn traced() -> Result<String, Failure> {
    let task = *SLEEPER.lock();
    let trace = task.map(unwind::trace_of_sleeping);
    let lines = trace.iter().flat_map(|trace| trace.iter());
    let mut lines = lines.map(|address| symbols::Name(address - 4).to_string());
    let line = lines.find(|line| line.starts_with("workload_blocks+"));
    line.ok_or_else(|| Failure::Failed("workload_blocks is not on the trace".into()))
}

fn every_way_names() -> Outcome {
    let blocks = hook::resolve("workload_blocks").map_err(|e| failed(&e))?;
    let plain = traced()?;
    check!(!plain.contains('['), "{plain} before");
    let look = |id: HookId, kind: &str, program: &str| -> Outcome {
        let line = traced();
        hook::detach(id).map_err(|e| failed(&e))?;
        let (line, expected) = (line?, format!("{plain} [hooked: {kind} {program}]"));
        check!(line == expected, "{line}, not {expected}");
        let after = traced()?;
        check!(after == plain, "{after} after {kind}");
        Ok(())
    };
    for (how, kind) in WAYS {
        let program = hook::Program::native("its_name".into(), Arc::new(Nothing), how.shape());
        let at = how.on(blocks).map_err(|e| failed(&e))?;
        let settings = Settings::default();
        let hooked = hook::hook_in(at, settings, program).map_err(|e| failed(&e))?;
        look(hooked.id, kind, "its_name")?;
    }
    let by = hook::resolve("workload_call").map_err(|e| failed(&e))?;
    let id = hook::replace(&blocks, &by).map_err(|e| failed(&e))?;
    look(id, "replace", "workload_call")?;
    // A live patch is of functions of its own, and takes a while to go.
    let patch = PATCHES.iter().find(|patch| patch.name == "call");
    let patch = patch.ok_or_else(|| Failure::Failed("no patch call".into()))?;
    let id = livepatch::apply(patch).map_err(|e| failed(&e))?;
    let name = symbols::Name(inside() as usize).to_string();
    hook::detach(id).map_err(|e| failed(&e))?;
    let end = timer::now_ns() + 5_000_000_000;
    while hooked::of(inside()).is_some() && timer::now_ns() < end {
        sched::sleep_ns(1_000_000);
    }
    let after = symbols::Name(inside() as usize).to_string();
    check!(
        name == "workload_call+0x8 [hooked: livepatch call]" && after == "workload_call+0x8",
        "{name}, and {after} when the patch was off"
    );
    Ok(())
}

/// Hooks `workload_blocks` and looks at the names of a trace and of a register dump.
fn every_program() -> Outcome {
    with_sleeper(every_name)
}

fn every_name() -> Outcome {
    let blocks = hook::resolve("workload_blocks").map_err(|e| failed(&e))?;
    let plain = traced()?;
    // A register may hold any address of the function.
    let dumped = || symbols::Name(blocks.address).to_string();
    let look = |by: &str| -> Outcome {
        for (line, name) in [
            (traced()?, &plain),
            (dumped(), &"workload_blocks+0x0".into()),
        ] {
            let expected = match by {
                "" => name.clone(),
                by => format!("{name} [hooked: {by}]"),
            };
            check!(line == expected, "{line}, not {expected}");
        }
        Ok(())
    };
    // As objects and their programs are named: within a text, of a text's length and longer than one.
    let session = format!("sessions_of_the_tcp_stack/{}", "a_long_name_".repeat(9));
    let programs: [(How, &str); 5] = [
        (
            How::Trampoline(Kind::Fexit),
            "hooks/fexit_of_a_name_that_is_longer_than_31_bytes",
        ),
        (How::Trampoline(Kind::Fsession), &session),
        (
            How::Trampoline(Kind::Fsession),
            "sessions/another_one_that_ends_at_the_64th_byte_of_text",
        ),
        (
            How::Many { exit: false },
            "multi/entry_of_a_name_that_is_longer_than_31_bytes",
        ),
        (How::Many { exit: true }, &session),
    ];
    let (mut hooks, mut texts) = (Vec::new(), Vec::new());
    for (how, name) in programs {
        let program = hook::Program::native(name.into(), Arc::new(Nothing), how.shape());
        let at = how.on(blocks).map_err(|e| failed(&e))?;
        let hooked = hook::hook_in(at, Settings::default(), program).map_err(|e| failed(&e))?;
        hooks.push(hooked.id);
        let kind = WAYS.iter().find(|(of, _)| *of == how);
        texts.push(format!("{} {name}", kind.map_or("?", |(_, kind)| kind)));
        look(&texts.join(", "))?;
    }
    while let Some(id) = hooks.pop() {
        hook::detach(id).map_err(|e| failed(&e))?;
        texts.pop();
        look(&texts.join(", "))?;
    }
    // As many as fit, one more, and three; then a name that is two texts long does not fit.
    for count in [hooked::LONGEST, hooked::LONGEST + 1, hooked::LONGEST + 3] {
        let names: Vec<_> = (0..count).map(|n| format!("program_{n}")).collect();
        hooked::update(
            blocks.address as u64,
            names.iter().map(|n| ("fentry", n.as_str())),
        );
        let named = names.iter().take(hooked::LONGEST);
        let mut text = named
            .map(|n| format!("fentry {n}"))
            .collect::<Vec<_>>()
            .join(", ");
        if count > hooked::LONGEST {
            text += &format!(", and {} more", count - hooked::LONGEST);
        }
        look(&text)?;
    }
    let short = (1..hooked::LONGEST).map(|_| ("fexit", "short"));
    let too_long = [("fexit", session.as_str()), ("fexit", "short")];
    hooked::update(blocks.address as u64, short.chain(too_long));
    let text = ["fexit short"; hooked::LONGEST - 1].join(", ");
    look(&format!("{text}, and 2 more"))?;
    let endless = "endless".repeat(1000);
    hooked::update(
        blocks.address as u64,
        [("fexit", endless.as_str())].into_iter(),
    );
    look("1 program")?;
    hooked::clear(blocks.address as u64);
    look("")
}

fn texts() -> Outcome {
    check!(
        !hooked::set(0, "x") && hooked::of(0).is_none(),
        "address 0 is no function"
    );
    // What is longer than a text goes on in another, and is parted at a character.
    let long = format!("x{}", "é".repeat(100));
    hooked::set(inside(), &long);
    let found = mark_of(inside());
    check!(found == Some(long), "a long text became {found:?}");
    hooked::clear(inside());
    // More texts than a block has, each its own; twice, so that texts are used again.
    let blob = symbols::blob().ok_or_else(|| Failure::Failed("no symbols".into()))?;
    for round in 0..2 {
        let text = |index: usize| format!("text {round} {index}");
        for (index, site) in blob.sites().take(200).enumerate() {
            check!(hooked::set(site, &text(index)), "{site:#x} is no function");
        }
        for (index, site) in blob.sites().take(200).enumerate() {
            let found = mark_of(site);
            check!(
                found == Some(text(index)),
                "{found:?} for {:?}",
                text(index)
            );
        }
        blob.sites().take(200).for_each(|site| {
            hooked::clear(site);
        });
        check!(hooked::all().count() == 0, "something is hooked still");
    }
    Ok(())
}

fn whole_texts() -> Outcome {
    const WRITING_NS: u64 = 1_000_000_000;
    const NAMES: usize = 3;
    // Three: two would take turns in two places and never be written over one another. Each name is two texts.
    let letters = ["a", "b", "c"].map(|letter| letter.repeat(70));
    let write = |letter: &String| {
        let by = [("fexit", letter.as_str()); NAMES];
        hooked::update(inside(), by.into_iter())
    };
    let whole = letters
        .clone()
        .map(|letter| vec![format!("fexit {letter}"); NAMES].join(", "));
    let full = whole.clone();
    // The beginning of one, and how many more there are.
    let right = move |text: &str| {
        let cut = |whole: &String| {
            let (begin, more) = text.rsplit_once(", and ").unwrap_or((text, "0 more"));
            let begin = begin.strip_suffix("...").unwrap_or(begin);
            let named = begin.matches("fexit").count();
            whole.starts_with(begin) && more == format!("{} more", NAMES - named)
        };
        text == format!("{NAMES} programs") || full.iter().any(cut)
    };
    let mixed = whole[0].replacen('a', "b", 80); // a name and a piece
    check!(right(&whole[0]) && !right(&mixed), "{mixed} seems right");
    write(&letters[0]);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    // Does little but read, so that it is mostly interrupted while it does.
    let reader = spawn("reader", move || {
        let (mut reads, mut all, mut torn) = (0u64, 0u64, None);
        while !seen.load(Ordering::Relaxed) {
            let text = mark_of(inside()).unwrap_or_default();
            if !right(&text) {
                torn = Some(text);
            } else if whole.contains(&text) {
                all += 1;
            }
            reads += 1;
        }
        (reads, all, torn)
    })?;
    let end = timer::now_ns() + WRITING_NS;
    while timer::now_ns() < end {
        letters.iter().for_each(|letter| {
            write(letter);
        });
    }
    stop.store(true, Ordering::Relaxed);
    let (reads, all, torn) = reader.join();
    hooked::clear(inside());
    check!(torn.is_none(), "a mixed text: {torn:?}");
    check!(all > 0, "{all} of {reads} texts were whole");
    Ok(())
}

/// Changed words with a hook, changed words without.
#[inline(never)] // it looks at all code: no address of it must stay behind on the frame of a test that waits
fn differences() -> Result<(usize, usize), Failure> {
    let report = integrity::check().map_err(|e| failed(&e))?;
    check!(
        report.words > 10_000,
        "only {} words compared",
        report.words
    );
    check!(
        report.foreign == 0,
        "executable memory: {}",
        report.in_pool[0]
    );
    check!(
        report.unfilled.is_empty(),
        "free executable memory holds {:#x} at {:#x}",
        report.unfilled[0].word,
        report.unfilled[0].address
    );
    Ok((report.accounted, report.unaccounted))
}

fn every_change() -> Outcome {
    let none = differences()?;
    check!(none == (0, 0), "{none:?} before");
    let mut hooks = Vec::new();
    for name in ["workload_call", "workload_six", "workload_struct"] {
        let function = hook::resolve(name).map_err(|e| failed(&e))?;
        hooks.push(
            hook::attach_native(&function, Native::Count, Point::of(Kind::Fentry))
                .map_err(|e| failed(&e))?,
        );
        hooks.push(
            hook::attach_native(&function, Native::Empty, Point::of(Kind::Fentry))
                .map_err(|e| failed(&e))?,
        );
    }
    let three = differences()?;
    check!(three == (3, 0), "{three:?} with three functions hooked");
    for id in hooks {
        hook::detach(id).map_err(|e| failed(&e))?;
    }
    rcu::barrier();
    let none = differences()?;
    check!(none == (0, 0), "{none:?} after");
    Ok(())
}

fn behind_the_back() -> Outcome {
    const NOP: u32 = a64::Inst::NOP.encode();
    const BRANCH: u32 = 0x1400_0002; // b .+8: behind the site, so whoever calls it does not notice
    let at = workload_six as *const () as usize;
    code::patch(at, NOP, BRANCH).map_err(|e| failed(&e))?;
    let report = integrity::check();
    code::patch(at, BRANCH, NOP).map_err(|e| failed(&e))?;
    let report = report.map_err(|e| failed(&e))?;
    let found: Vec<_> = report.differences.iter().map(|d| d.to_string()).collect();
    check!(
        (report.accounted, report.unaccounted) == (0, 1)
            && report.differences[0].address == at as u64,
        "{found:?} found"
    );
    let text = "d503201f -> 14000002  workload_six+0x0: UNACCOUNTED FOR, no hook changed it";
    check!(found[0].ends_with(text), "{found:?}");
    // A hook's word that someone took away is none of the hook's.
    let function = hook::resolve("workload_six").map_err(|e| failed(&e))?;
    let id = hook::attach_native(&function, Native::Count, Point::of(Kind::Fentry))
        .map_err(|e| failed(&e))?;
    let branch = code::read(at).unwrap_or_default();
    code::patch(at, branch, NOP).map_err(|e| failed(&e))?;
    let lost = differences();
    code::patch(at, NOP, branch).map_err(|e| failed(&e))?;
    hook::detach(id).map_err(|e| failed(&e))?;
    rcu::barrier();
    let lost = lost?;
    check!(lost == (0, 1), "{lost:?} with a hook's branch taken away");
    let none = differences()?;
    check!(none == (0, 0), "{none:?} after");
    Ok(())
}

fn in_the_pool() -> Outcome {
    const NOP: u32 = a64::Inst::NOP.encode();
    let function = hook::resolve("workload_six").map_err(|e| failed(&e))?;
    let id = bpf::attach("count", &function, Engine::Jit).map_err(|e| failed(&e))?;
    let image = hook::describe(function.address);
    let first = image
        .iter()
        .find(|line| hook::hooked_at(line.address, 0).is_some());
    let trampoline = first.map_or(0, |line| line.address);
    // What it calls is the program.
    let program = image.iter().find_map(|line| {
        let target =
            a64::is_call(line.word).then(|| a64::branch_target(line.word, line.address as u64));
        target.flatten().map(|target| target as usize)
    });
    let clean = differences()?;
    let mut texts = Vec::new();
    for at in [Some(trampoline), program].into_iter().flatten() {
        let word = code::read(at).unwrap_or_default();
        code::patch(at, word, NOP).map_err(|e| failed(&e))?;
        let report = integrity::check();
        code::patch(at, NOP, word).map_err(|e| failed(&e))?;
        let report = report.map_err(|e| failed(&e))?;
        let found = report.in_pool.first().map(|found| found.to_string());
        check!(
            (report.live > 0, report.foreign, report.unaccounted) == (true, 1, 0),
            "{} words of the pool, {} of them changed: {found:?}",
            report.live,
            report.foreign
        );
        let begin = format!("{at:#x}  {word:08x} -> d503201f  ");
        let text = found.unwrap_or_default();
        check!(text.starts_with(&begin), "{text}: not {begin}");
        texts.push(text);
    }
    let again = differences()?;
    hook::detach(id).map_err(|e| failed(&e))?;
    rcu::barrier();
    let none = differences()?;
    check!(
        (clean, again, none) == ((1, 0), (1, 0), (0, 0)),
        "{clean:?} before, {again:?} after, {none:?} without the hook"
    );
    let end = ": UNACCOUNTED FOR, its owner did not change it";
    let [trampoline, program] = texts.as_slice() else {
        check!(false, "the trampoline calls no program");
        return Ok(());
    };
    check!(
        trampoline.ends_with(&format!("trampoline of workload_six+0x0{end}")),
        "{trampoline}"
    );
    check!(
        program.contains("code of BPF program ") && program.ends_with(end),
        "{program}"
    );
    Ok(())
}

fn own_changes() -> Outcome {
    // Each in a frame of its own: no address of an image must stay behind on the frame that waits for the images to be freed.
    let silenced = silenced_calls();
    let meanwhile = changed_meanwhile();
    rcu::barrier();
    silenced.and(meanwhile)
}

/// A detached exit's calls are branched over in the image that tasks will return into.
#[inline(never)]
fn silenced_calls() -> Outcome {
    let function = hook::resolve("workload_blocks").map_err(|e| failed(&e))?;
    let attach = || {
        hook::attach_native(&function, Native::Empty, Point::of(Kind::Fexit))
            .map_err(|e| failed(&e))
    };
    let ids = [attach()?, attach()?];
    set_gate(false);
    let tasks: Result<Vec<_>, _> = (0..3)
        .map(|n| spawn("sleeper", move || workload_blocks(n, 5) == n + 10))
        .collect();
    let tasks = tasks?;
    are_asleep("sleeper", tasks.len())?;
    let mut silenced = Vec::new();
    for id in ids {
        hook::detach(id).map_err(|e| failed(&e))?;
        silenced.push(differences());
    }
    set_gate(true);
    let right = tasks.into_iter().all(|task| task.join());
    for found in silenced {
        found?;
    }
    check!(right, "a wrong result");
    Ok(())
}

/// Others attach and detach while this compares.
#[inline(never)]
fn changed_meanwhile() -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let changers: Result<Vec<_>, _> = ["workload_call", "workload_six", "workload_struct"]
        .into_iter()
        .map(|name| {
            let stop = stop.clone();
            spawn("changer", move || {
                let mut rounds = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let done = hook::resolve(name).ok().and_then(|function| {
                        let point = Point::of(Kind::Fentry);
                        let id = hook::attach_native(&function, Native::Count, point).ok()?;
                        hook::detach(id).ok()
                    });
                    if done.is_none() {
                        return 0;
                    }
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let changers = changers?;
    let found: Vec<_> = (0..3).map(|_| differences()).collect();
    stop.store(true, Ordering::Relaxed);
    let rounds: Vec<_> = changers.into_iter().map(|task| task.join()).collect();
    for found in found {
        let (_, unaccounted) = found?;
        check!(unaccounted == 0, "{unaccounted} words of a hook's own");
    }
    check!(
        rounds.iter().all(|rounds| *rounds > 0),
        "attached and detached {rounds:?} times meanwhile"
    );
    Ok(())
}

/// Does nothing.
struct Nothing;

impl NativeHook for Nothing {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        0
    }
}

fn stacks() -> Outcome {
    let thunk = callee(Arc::new(Nothing), Attachment::NONE, Shape::Arguments).address;
    let found = symbols::stack_of(thunk);
    check!(
        found.is_some_and(|bytes| bytes <= 256),
        "a hook that does nothing takes {found:?} bytes"
    );
    let call = workload_call as *const () as u64;
    let none = symbols::stack_of(call);
    check!(
        none.is_none(),
        "workload_call is not on the hook path: {none:?}"
    );
    let handler = symbols::blob().and_then(|b| b.by_name("trap_sync").next());
    let handler = handler.and_then(|symbol| symbols::stack_of(symbol.address));
    let frame = size_of::<crate::arch::trap::Frame>() as u32;
    check!(
        handler.is_some_and(|bytes| bytes + frame <= crate::arch::breakpoint::STACK),
        "a hit of a BRK takes {handler:?} bytes besides its frame"
    );
    let mut known = 0;
    for helper in bpf_vm::helpers::HELPERS {
        if let Some(address) = helper.function.address() {
            let bytes = symbols::stack_of(address);
            check!(bytes.is_some(), "{} has no worst case", helper.name);
            known += 1;
        }
    }
    check!(known > 10, "only {known} helpers");
    Ok(())
}
