// SPDX-License-Identifier: MIT OR Apache-2.0
//! BPF programs as hooks: the samples by both engines, and objects that are no good.

use super::hooks::{call, function};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::{callee, cpu, pmu, smp, switch, timer};
use crate::bench::attach as attach_bench;
use crate::bpf::{self, Engine};
use crate::hook::linux::Way;
use crate::hook::{How, ProbeWay, Protection, Settings, WayIn};
use crate::workload::{Wide, workload_six, workload_twelve, workload_wide};
use crate::{check, hook, initrd, mm, rcu, sched, trace};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::jit;
use bpf_vm::map::{HeapMemory, Map, MapDefinition, MapKind, UpdateFlags};
use bpf_vm::suite::Case;
use core::hint::black_box;
use trampoline::{Kind, ProbeKind};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "bpf.samples_load",
        seconds: 20,
        run: samples,
    },
    Test {
        name: "bpf.count_by_both_engines",
        seconds: 20,
        run: count,
    },
    Test {
        name: "bpf.filter_looks_at_the_argument",
        seconds: 20,
        run: filter,
    },
    Test {
        name: "bpf.latency_fills_its_histogram",
        seconds: 20,
        run: latency,
    },
    Test {
        name: "bpf.global_data_counts",
        seconds: 20,
        run: global,
    },
    Test {
        name: "bpf.printk_reaches_the_trace",
        seconds: 20,
        run: printk,
    },
    Test {
        name: "bpf.empty_costs_at_most_40_instructions_by_jit",
        seconds: 20,
        run: budget,
    },
    Test {
        name: "bpf.a_first_attach_costs_at_most_200_000_instructions",
        seconds: 30,
        run: attach_budget,
    },
    Test {
        name: "bpf.kernel_functions_and_types_are_found",
        seconds: 20,
        run: offered,
    },
    Test {
        name: "bpf.sessions_keep_a_word",
        seconds: 20,
        run: session,
    },
    Test {
        name: "bpf.program_arrays_hold_programs_from_the_start",
        seconds: 20,
        run: jump,
    },
    Test {
        name: "bpf.helpers_in_place_answer_as_calls_do",
        seconds: 20,
        run: in_place,
    },
    Test {
        name: "bpf.a_context_is_no_shorter_than_what_is_read",
        seconds: 20,
        run: no_more_than_there_is,
    },
    Test {
        name: "bpf.twelve_arguments_and_the_result_arrive",
        seconds: 20,
        run: twelve,
    },
    Test {
        name: "bpf.a_struct_is_returned_in_memory",
        seconds: 20,
        run: wide,
    },
    Test {
        name: "bpf.what_a_task_kept_is_gone_with_it",
        seconds: 60,
        run: task_storage,
    },
    Test {
        name: "bpf.records_come_out_of_a_ring_buffer",
        seconds: 20,
        run: ring,
    },
    Test {
        name: "bpf.records_have_the_length_that_a_call_asks_for",
        seconds: 20,
        run: dynptr,
    },
    Test {
        name: "bpf.what_calls_nothing_has_no_guard",
        seconds: 20,
        run: no_needless_guard,
    },
    Test {
        name: "bpf.bad_objects_are_refused_with_a_reason",
        seconds: 60,
        run: bad_objects,
    },
    Test {
        name: "bpf.bad_initrds_are_refused_with_a_reason",
        seconds: 20,
        run: bad_initrds,
    },
    Test {
        name: "bpf.unknown_names_say_what_there_is",
        seconds: 20,
        run: unknown_names,
    },
];

pub(super) const ENGINES: [Engine; 2] = [Engine::Interpreter, Engine::Jit];

/// Runs `calls` with a program hooked onto `workload_call`.
pub(super) fn hooked(program: &str, engine: Engine, calls: impl FnOnce() -> Outcome) -> Outcome {
    hooked_with(program, engine, 0, calls)
}

/// As [`hooked`], with a cookie.
pub(super) fn hooked_with(
    program: &str,
    engine: Engine,
    cookie: u64,
    calls: impl FnOnce() -> Outcome,
) -> Outcome {
    let target = function("workload_call")?;
    let settings = Settings {
        cookie,
        ..Settings::default()
    };
    let on = |how: How, _: Option<&str>| how.on(target);
    let hooked = bpf::attach_at(program, engine, WayIn::Springboard, settings, on);
    let hooked = hooked.map_err(|e| failed(&e))?;
    let outcome = calls();
    hook::detach(hooked.id).map_err(|e| failed(&e))?;
    outcome
}

/// The sum of all 64-bit values of a map.
pub(super) fn sum(map: &str) -> Result<u64, Failure> {
    let map =
        bpf::map(map).ok_or_else(|| Failure::Failed(format!("there is no map called {map}")))?;
    let mut total = 0;
    for index in 0..map.definition().max_entries {
        let mut value = alloc::vec![0u8; map.value_size()];
        map.lookup(&index.to_le_bytes(), &mut value)
            .map_err(|e| failed(&e))?;
        for word in value.as_chunks::<8>().0 {
            total += u64::from_le_bytes(*word);
        }
    }
    Ok(total)
}

fn samples() -> Outcome {
    let programs = bpf::programs();
    for program in &programs {
        if let Err(e) = program {
            return Err(failed(e));
        }
    }
    let names: Vec<_> = programs.iter().flatten().map(|p| p.name.as_str()).collect();
    for wanted in ["empty", "count", "filter", "latency"] {
        check!(names.contains(&wanted), "{wanted} is not among {names:?}");
    }
    Ok(())
}

fn count() -> Outcome {
    for engine in ENGINES {
        let before = sum("count.calls")?;
        hooked("count", engine, || {
            for i in 0..500 {
                check!(
                    call(i, 1) == 3 * i + 1,
                    "a hooked call returned the wrong result"
                );
            }
            Ok(())
        })?;
        call(1, 1);
        let counted = sum("count.calls")? - before;
        check!(counted == 500, "{engine:?}: 500 calls, {counted} counted");
    }
    Ok(())
}

fn filter() -> Outcome {
    for engine in ENGINES {
        let before = sum("filter..bss")?;
        hooked("filter", engine, || {
            for i in 0..100 {
                call(i, 42); // 42 once as the first argument, always as the second
            }
            Ok(())
        })?;
        let matched = sum("filter..bss")? - before;
        check!(matched == 1, "{engine:?}: {matched} of 100 calls matched");
    }
    Ok(())
}

fn latency() -> Outcome {
    for engine in ENGINES {
        let before = sum("latency.between")?;
        hooked("latency", engine, || {
            for i in 0..50 {
                call(i, i);
            }
            Ok(())
        })?;
        let added = sum("latency.between")? - before;
        // The very first call of all has no predecessor.
        check!(
            (49..=50).contains(&added),
            "{engine:?}: 50 calls, {added} in the histogram"
        );
    }
    Ok(())
}

fn global() -> Outcome {
    for engine in ENGINES {
        let before = sum("count_global..bss")?;
        hooked("count_global", engine, || {
            for i in 0..77 {
                call(i, i);
            }
            Ok(())
        })?;
        let counted = sum("count_global..bss")? - before;
        check!(counted == 77, "{engine:?}: 77 calls, {counted} counted");
    }
    Ok(())
}

fn printk() -> Outcome {
    for engine in ENGINES {
        let mut reader = trace::Reader::new();
        hooked("printk", engine, || {
            call(0xabc, 2);
            Ok(())
        })?;
        let line = reader.next_line();
        check!(
            line.as_ref().is_some_and(|l| !l.is_empty()),
            "{engine:?}: nothing was printed"
        );
        check!(
            reader.next_line().is_none() && reader.lost == 0,
            "{engine:?}: more than one line"
        );
    }
    Ok(())
}

fn counts_instructions() -> Outcome {
    match pmu::counter() {
        pmu::Counter::Instructions => Ok(()),
        _ => Err(Failure::Skipped(
            "instructions are exact only under -icount".into(),
        )),
    }
}

fn attach_budget() -> Outcome {
    counts_instructions()?;
    for round in 0..3 {
        let figures = attach_bench::once("empty").map_err(|e| failed(&e))?;
        let [first, second, ..] = figures;
        check!(
            first <= 200_000 && second <= 250_000 && figures.iter().all(|figure| *figure > 1000),
            "attaching, a second time, taking that off, the first off, until memory is back: {figures:?} instructions in round {round}"
        );
    }
    Ok(())
}

fn budget() -> Outcome {
    counts_instructions()?;
    let measure = || {
        let parked = smp::park_others();
        let start = pmu::read();
        let result = call(1, 2);
        let end = pmu::read();
        drop(parked);
        (result, pmu::difference(start, end))
    };
    measure();
    let (_, unhooked) = measure();
    let mut with = 0;
    hooked("empty", Engine::Jit, || {
        measure();
        with = measure().1;
        Ok(())
    })?;
    let cost = with - unhooked;
    check!(
        cost <= 40,
        "BPF empty by JIT costs {cost} instructions; 40 are allowed"
    );
    check!(
        cost > 0,
        "BPF empty by JIT costs nothing, which nothing can"
    );
    Ok(())
}

/// Where a global variable of an object is: its map, and how far in it.
fn place_of(object: &str, name: &str) -> Result<(Arc<Map>, usize), Failure> {
    let missing = || Failure::Failed(format!("{object} has no variable {name}"));
    let parsed = bpf_vm::object::Object::parse(&self::object(&format!("{object}.bpf.o"))?);
    let parsed = parsed.map_err(|e| failed(&e))?;
    let found = parsed.variables().iter().find(|v| v.name == name);
    let found = found.ok_or_else(missing)?;
    let section = parsed.maps().nth(found.map).ok_or_else(missing)?;
    let map = bpf::map(&format!("{object}.{}", section.name)).ok_or_else(missing)?;
    Ok((map, found.offset as usize))
}

/// A 64-bit global variable of a loaded object.
pub(super) fn variable(object: &str, name: &str) -> Result<u64, Failure> {
    let (map, offset) = place_of(object, name)?;
    let mut value = alloc::vec![0u8; map.value_size()];
    map.lookup(&0u32.to_le_bytes(), &mut value)
        .map_err(|e| failed(&e))?;
    let bytes = value.get(offset..).and_then(|rest| rest.first_chunk());
    let bytes = bytes.ok_or_else(|| Failure::Failed(format!("{name} has no 8 bytes")))?;
    Ok(u64::from_le_bytes(*bytes))
}

/// Changes a 64-bit global variable of a loaded object. Those beside it are written too, as they were: nobody changes them meanwhile.
pub(super) fn set_variable(object: &str, name: &str, to: u64) -> Outcome {
    let (map, offset) = place_of(object, name)?;
    let key = 0u32.to_le_bytes();
    let mut value = alloc::vec![0u8; map.value_size()];
    map.lookup(&key, &mut value).map_err(|e| failed(&e))?;
    if let Some(bytes) = value.get_mut(offset..offset + 8) {
        bytes.copy_from_slice(&to.to_le_bytes());
    }
    let updated = map.update(&key, &value, UpdateFlags::Any);
    updated.map_err(|e| failed(&e))
}

fn offered() -> Outcome {
    use crate::offered::{springboard_info, springboard_task_id};
    const E2BIG: u64 = (-7_i64).cast_unsigned();
    let info = &springboard_info;
    for engine in ENGINES {
        let before = sum("offered.shared_calls")?;
        hooked("offered", engine, || {
            call(1, 2);
            Ok(())
        })?;
        let is = |name: &str| variable("offered", name);
        for (name, want) in [
            ("task", springboard_task_id()),
            ("cores", info.cores.into()),
            ("hertz", info.hertz),
            ("configured", info.hertz),
            // The example of RFC 1071, section 3.
            ("sum", 0xddf2),
            ("sum_of_parts", 0xddf2),
            ("sum_of_too_many", E2BIG),
            ("missing", 0),
        ] {
            let got = is(name)?;
            check!(got == want, "{engine:?}: {name} is {got}, not {want}");
        }
        let calls = sum("offered.shared_calls")? - before;
        check!(calls == 1, "{engine:?}: {calls} calls counted");
    }
    // Another instance shares the pinned map, and is told apart where a definition differs.
    let bytes = object("offered.bpf.o")?;
    check!(
        bpf::try_load("again", &bytes).is_ok(),
        "the object does not load a second time"
    );
    Ok(())
}

/// A program, compiled.
fn compiled(text: String, maps: &[Arc<Map>]) -> Result<hook::ProgramCode, Failure> {
    let case = Case {
        name: "answer",
        text,
        ..Case::default()
    };
    let program = case.program(maps).map_err(|e| failed(&e))?;
    let words = |base| {
        let compiled = jit::compile(&program, &bpf::target(base, 1));
        compiled.map(|c| c.words).map_err(|e| e.to_string())
    };
    hook::place("answer", 64, words).map_err(|e| failed(&e))
}

/// A program of one helper call, compiled.
fn asks(helper: u32) -> Result<hook::ProgramCode, Failure> {
    compiled(format!("call {helper}\nexit\n"), &[])
}

/// What it returns.
fn answer(helper: u32) -> Result<u64, Failure> {
    Ok(callee::entry(&asks(helper)?)(0, 0))
}

fn in_place() -> Outcome {
    let pid = answer(14)?;
    let id = switch::current().id();
    check!(
        pid == (id << 32 | id & 0xffff_ffff),
        "the current task is {id}, and its number {pid:#x}"
    );
    let task = core::ptr::from_ref(switch::current()).addr() as u64;
    for helper in [35, 158] {
        let answered = answer(helper)?;
        check!(
            answered == task,
            "the current task is at {task:#x}, and by helper {helper} at {answered:#x}"
        );
    }
    let before = timer::now_ns();
    let time = answer(5)?;
    let after = timer::now_ns();
    check!(
        (before..=after).contains(&time),
        "{time} ns is not from {before} to {after}"
    );
    let core = Arc::new(asks(8)?);
    let lookups: Vec<_> = [8, 24]
        .into_iter()
        .map(PerCpuLookup::of_size)
        .collect::<Result<_, _>>()?;
    let lookups = Arc::new(lookups);
    for home in cpu::online() {
        let (core, lookups) = (core.clone(), lookups.clone());
        let on_core = move || {
            let answered = callee::entry(&core)(0, 0);
            check!(
                answered == home as u64,
                "this is core {home}, and its number {answered}"
            );
            lookups.iter().try_for_each(|lookup| lookup.check(home))
        };
        match sched::spawn_on("answers", 1 << home, on_core) {
            Some(task) => task.join()?,
            None => check!(false, "no task"),
        }
    }
    ENGINES.into_iter().try_for_each(per_core)
}

/// What a program stores of each core in a value of 24 bytes, found in place by compiled code.
fn per_core(engine: Engine) -> Outcome {
    const CALLS: u64 = 50;
    const WORDS: usize = 3;
    let missing = || Failure::Failed("the program percore has no map by_core".into());
    bpf::section("percore").map_err(|e| failed(&e))?;
    let map = bpf::map("percore.by_core").ok_or_else(missing)?;
    let values = || -> Result<Vec<[u64; WORDS]>, Failure> {
        let mut bytes = alloc::vec![0; map.host_value_size()];
        map.lookup(&1_u32.to_le_bytes(), &mut bytes)
            .map_err(|e| failed(&e))?;
        let (words, _) = bytes.as_chunks::<8>();
        let words: Vec<_> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        Ok(words.as_chunks::<WORDS>().0.to_vec())
    };
    let before = values()?;
    hooked("percore", engine, || {
        for home in cpu::online() {
            let calls = || (0..CALLS).map(|n| call(n, 0)).sum::<u64>();
            match sched::spawn_on("calls", 1 << home, calls) {
                Some(task) => drop(task.join()),
                None => check!(false, "no task"),
            }
        }
        Ok(())
    })?;
    let after = values()?;
    for (core, (before, after)) in before.iter().zip(&after).enumerate() {
        let mut want = *before;
        if cpu::online().any(|online| online == core) {
            want = [
                before[0] + CALLS,
                before[1] + CALLS * (CALLS - 1) / 2,
                core as u64,
            ];
        }
        check!(
            *after == want,
            "{engine:?}: core {core}: {after:?} after {before:?}, and not {want:?}"
        );
    }
    Ok(())
}

/// A per-CPU array, and a program that returns where the value of an index is.
struct PerCpuLookup {
    map: Arc<Map>,
    code: hook::ProgramCode,
}

impl PerCpuLookup {
    const ENTRIES: u32 = 5;

    fn of_size(value_size: u32) -> Result<Self, Failure> {
        let definition = MapDefinition {
            name: "answer".into(),
            kind: MapKind::PERCPU_ARRAY,
            key_size: 4,
            value_size,
            max_entries: Self::ENTRIES,
            flags: 0,
        };
        let memory = HeapMemory::with_limit(64 << 10);
        let map = Map::create(definition, &memory).map_err(|e| failed(&e))?;
        let text = "*(u32 *)(r10 - 4) = r1\nr1 = map[0]\nr2 = r10\nr2 += -4\ncall 1\nexit\n";
        let code = compiled(text.into(), core::slice::from_ref(&map))?;
        Ok(Self { map, code })
    }

    /// On core `home`, which runs this and nothing moves it to another: the core's own values, and none past the end.
    fn check(&self, home: usize) -> Outcome {
        let size = self.map.value_size();
        for key in (0..Self::ENTRIES + 2).chain([1 << 31, u32::MAX]) {
            let found = callee::entry(&self.code)(key.into(), 0);
            let value = self.map.lookup_address_on(&key.to_le_bytes(), home as u32);
            check!(
                found == value.unwrap_or(0) && value.is_some() == (key < Self::ENTRIES),
                "on core {home}, value {key} of {size} bytes was found at {found:#x}, and is at {value:#x?}"
            );
        }
        Ok(())
    }
}

fn session() -> Outcome {
    let counts = || -> Result<[u64; 3], Failure> {
        Ok([
            variable("session", "entries")?,
            variable("session", "exits")?,
            variable("session", "matched")?,
        ])
    };
    for engine in ENGINES {
        let before = counts()?;
        hooked("session", engine, || {
            for n in 0..40 {
                check!(call(n, 9) == 3 * n + 9, "a wrong result");
            }
            Ok(())
        })?;
        let after = counts()?;
        let added: Vec<_> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        check!(
            added == [40; 3],
            "{engine:?}: entries, exits and exits that found their word: {added:?} of 40"
        );
    }
    // The same program elsewhere would look below a context that has nothing there.
    let target = function("workload_call")?;
    let others = [
        How::Trampoline(Kind::Fentry),
        How::Trampoline(Kind::Fexit),
        How::Probe(ProbeKind::Here, ProbeWay::Detour),
        How::Probe(ProbeKind::Here, ProbeWay::Breakpoint),
        How::Many { exit: false },
        How::Linux(Way::Trampoline, Kind::Fexit),
        How::Linux(Way::Fprobe, Kind::Fentry),
    ];
    for how in others {
        let settings = Settings::default();
        let on = |_: How, _: Option<&str>| how.on(target);
        match bpf::attach_at("session", Engine::Jit, WayIn::Springboard, settings, on) {
            Ok(_) => check!(false, "a session's program was attached by {how:?}"),
            Err(e) => check!(e.to_string().contains("fsession"), "{how:?}: {e}"),
        }
    }
    Ok(())
}

fn jump() -> Outcome {
    for engine in ENGINES {
        let before = (variable("jump", "jumped")?, variable("jump", "arrived")?);
        hooked_with("jump/jump", engine, 77, || {
            call(1, 2);
            call(1, 2);
            Ok(())
        })?;
        let after = (variable("jump", "jumped")?, variable("jump", "arrived")?);
        check!(
            (after.0 - before.0, after.1 - before.1) == (2, 2),
            "{engine:?}: {after:?} after {before:?}, which is not two of each"
        );
        let cookie = variable("jump", "cookie")?;
        check!(
            cookie == 77,
            "{engine:?}: the program that was jumped to found {cookie} for its cookie"
        );
    }
    // The one that is jumped to as one of another kind, which would read registers where there are arguments.
    let mut other = object("jump.bpf.o")?;
    let section = b"fentry/workload_six";
    let found = other.windows(section.len()).enumerate();
    let found = found.filter(|(_, w)| w == section).map(|(at, _)| at);
    let found: Vec<_> = found.collect();
    check!(
        !found.is_empty(),
        "jump.bpf.o has no section of the name that the test knows"
    );
    for at in found {
        other[at..at + 6].copy_from_slice(b"kprobe");
    }
    refused("jump", &other, "by a tail call")
}

/// More tasks than the map has room for, one after the other, each with a word of its own.
fn task_storage() -> Outcome {
    const TASKS: u64 = 400;
    let counts = || -> Result<[u64; 3], Failure> {
        Ok([
            variable("storage", "calls")?,
            variable("storage", "again")?,
            variable("storage", "no_room")?,
        ])
    };
    for engine in ENGINES {
        let before = counts()?;
        hooked("storage", engine, || {
            for n in 0..TASKS {
                let twice = move || call(n, 1) + call(n, 2);
                let result = spawn("storage", twice)?.join();
                check!(result == 6 * n + 3, "a wrong result");
            }
            Ok(())
        })?;
        let after = counts()?;
        let added: Vec<_> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        check!(
            added == [2 * TASKS, TASKS, 0],
            "{engine:?}: calls, those that found a word, those without one: {added:?} of {TASKS} tasks"
        );
    }
    Ok(())
}

/// As many records as fit, in order; then none until they are read.
fn ring() -> Outcome {
    /// A record is its header and three words, and the last byte is never used, as in Linux.
    const FIT: u64 = 4096 / 32 - 1;
    let me = switch::current().id();
    for engine in ENGINES {
        let lost = variable("ring", "lost")?;
        hooked("ring", engine, || {
            for n in 0..FIT + 5 {
                call(n, 2 * n);
            }
            Ok(())
        })?;
        check!(
            variable("ring", "lost")? - lost == 5,
            "{engine:?}: not 5 calls found no room"
        );
        let Some(map) = bpf::map("ring.events") else {
            check!(false, "there is no map ring.events");
            return Ok(());
        };
        let mut records = Vec::new();
        let read = map.ring_buffer().map_or(0, |ring| {
            ring.drain(|record| {
                let mut words = [0_u8; 24];
                record.copy_to(&mut words);
                let words = words.as_chunks::<8>().0;
                records.push((
                    record.len(),
                    words.iter().map(|w| u64::from_le_bytes(*w)).collect(),
                ));
            })
        });
        let expected: Vec<(usize, Vec<u64>)> =
            (0..FIT).map(|n| (24, Vec::from([me, n, 2 * n]))).collect();
        check!(
            read as u64 == FIT && records == expected,
            "{engine:?}: {read} records, the first of them {:?}",
            records.first()
        );
    }
    Ok(())
}

/// Records of a length that the program learns when it runs; what is not submitted is not read, and what does not fit is refused.
fn dynptr() -> Outcome {
    const EINVAL: i64 = -22;
    const E2BIG: i64 = -7;
    for engine in ENGINES {
        let Some(map) = bpf::map("dynptr.lines") else {
            check!(false, "there is no map dynptr.lines");
            return Ok(());
        };
        let is = |name: &str| variable("dynptr", name).map(u64::cast_signed);
        let before = (is("submitted")?, is("given_up")?);
        hooked("dynptr", engine, || {
            for (size, last, reserved, written) in [
                (8, 1, 0, 0),
                (100, 2, 0, 0),
                (1001, 3, 0, 0),
                // Given up: by the program, since it is too short for a word, since it does not fit.
                (16, 0, 0, 0),
                (7, 4, 0, E2BIG),
                (4096, 5, EINVAL, EINVAL),
                (1 << 24, 6, E2BIG, EINVAL),
                (24, 7, 0, 0),
            ] {
                call(size, last);
                let answers = (is("reserved")?, is("written")?, is("back")?);
                let back = if written == 0 { last } else { 0 };
                check!(
                    answers == (reserved, written, back.cast_signed()),
                    "{engine:?}: {size} bytes: {answers:?}"
                );
            }
            Ok(())
        })?;
        let mut records = Vec::new();
        let read = |record: bpf_vm::map::ringbuf::Record<'_>| {
            let mut bytes = alloc::vec![0; record.len()];
            record.copy_to(&mut bytes);
            let word = |at: usize| {
                let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
                word.map_or(0, |word| u64::from_le_bytes(*word))
            };
            records.push((bytes.len(), word(0), word(bytes.len().saturating_sub(8))));
        };
        let read = map.ring_buffer().map_or(0, |ring| ring.drain(read));
        let expected = [(8, 1, 1), (100, 100, 2), (1001, 1001, 3), (24, 24, 7)];
        check!(
            read == expected.len() && records == expected,
            "{engine:?}: {read}: {records:?}"
        );
        let after = (is("submitted")? - before.0, is("given_up")? - before.1);
        check!(
            after == (4, 4),
            "{engine:?}: {after:?} submitted and given up"
        );
    }
    Ok(())
}

/// A program is guarded if it calls anything, also by what it may become, or if its guard is asked for.
fn no_needless_guard() -> Outcome {
    let target = function("workload_call")?;
    for (program, asked, guarded) in [
        ("empty", None, false),
        ("empty", Some(Protection::Program), true),
        ("count", None, true),
        ("count", Some(Protection::None), false),
        ("jump/jump", None, true),
        ("hooks/fexit_empty", None, false),
        ("multi/entry_empty", None, false),
        ("kprobe/kprobe_empty", None, false),
    ] {
        for engine in ENGINES {
            let settings = Settings {
                protection: asked,
                ..Settings::default()
            };
            let on = |how: How, _: Option<&str>| how.on(target);
            let hooked = bpf::attach_at(program, engine, WayIn::Springboard, settings, on);
            let hooked = hooked.map_err(|e| failed(&e))?;
            let lines = hook::describe(target.address);
            let found = lines.iter().any(|line| line.ingredient == "guard");
            let programs = lines.iter().filter(|line| line.ingredient == "program");
            let programs = programs.count();
            let result = call(5, 6);
            hook::detach(hooked.id).map_err(|e| failed(&e))?;
            check!(
                result == 21 && programs > 0 && found == guarded,
                "{program} with {asked:?} by {engine:?}: {programs} calls of it, guarded: {found}"
            );
        }
    }
    Ok(())
}

/// What a program reads of its context must be there.
fn no_more_than_there_is() -> Outcome {
    let six = function("workload_six")?;
    for engine in ENGINES {
        let id = bpf::attach("six", &six, engine).map_err(|e| failed(&e))?;
        let result = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64)(
            1, 2, 3, 4, 5, 6,
        );
        hook::detach(id).map_err(|e| failed(&e))?;
        let seen = [
            variable("six", "first")?,
            variable("six", "last")?,
            variable("six", "result")?,
        ];
        check!(seen == [1, 6, result], "{engine:?}: it saw {seen:?}");
        // Two arguments and a result are three words; the program reads the seventh.
        let two = function("workload_call")?;
        for way in [WayIn::Springboard, WayIn::Linux(Way::Trampoline)] {
            let on = |how: How, _: Option<&str>| how.on(two);
            match bpf::attach_at("six", engine, way, Settings::default(), on) {
                Ok(_) => check!(
                    false,
                    "{engine:?} {way:?}: it was attached to workload_call"
                ),
                Err(e) => {
                    let text = e.to_string();
                    for part in ["workload_call", "word 6", "there are 3"] {
                        check!(text.contains(part), "{way:?}: no {part:?} in: {text}");
                    }
                }
            }
        }
    }
    // Nor does a program get another context than its section says, whatever is asked for.
    let target = function("workload_call")?;
    for how in [
        How::Probe(ProbeKind::Here, ProbeWay::Detour),
        How::Many { exit: false },
    ] {
        let on = |_: How, _: Option<&str>| how.on(target);
        let hooked = bpf::attach_at(
            "empty",
            Engine::Jit,
            WayIn::Springboard,
            Settings::default(),
            on,
        );
        check!(
            hooked.is_err(),
            "a program of fentry was hooked in by {how:?}"
        );
    }
    Ok(())
}

fn twelve() -> Outcome {
    let target = function("workload_twelve")?;
    let f = black_box(
        workload_twelve
            as extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u64,
    );
    for (engine, n) in ENGINES.into_iter().zip([100, 200]) {
        let run = || {
            f(
                n + 1,
                n + 2,
                n + 3,
                n + 4,
                n + 5,
                n + 6,
                n + 7,
                n + 8,
                n + 9,
                n + 10,
                n + 11,
                n + 12,
            )
        };
        let expected: u64 = (1..=12).map(|weight| weight * (n + weight)).sum();
        let id = bpf::attach("twelve", &target, engine).map_err(|e| failed(&e))?;
        let result = run();
        hook::detach(id).map_err(|e| failed(&e))?;
        check!(
            result == expected,
            "{engine:?}: {result} instead of {expected}"
        );
        let map = bpf::map("twelve..bss");
        let map = map.ok_or_else(|| Failure::Failed("there is no map twelve..bss".into()))?;
        let mut value = alloc::vec![0; map.value_size()];
        map.lookup(&0u32.to_le_bytes(), &mut value)
            .map_err(|e| failed(&e))?;
        let words = value.as_chunks::<8>().0.iter();
        let seen: Vec<_> = words.map(|word| u64::from_le_bytes(*word)).collect();
        let wanted: Vec<_> = (1..=12).map(|word| n + word).chain([result]).collect();
        check!(
            seen == wanted,
            "{engine:?}: it saw {seen:?}, not {wanted:?}"
        );
    }
    Ok(())
}

fn wide() -> Outcome {
    let target = function("workload_wide")?;
    let f = black_box(workload_wide as extern "C" fn(u64, u64) -> Wide);
    let mut n = 0;
    for (program, runs) in [
        ("wide/wide_entry", 1),
        ("wide/wide_exit", 1),
        ("wide/wide_session", 2),
    ] {
        for engine in ENGINES {
            n += 16;
            let before = variable("wide", "runs")?;
            let id = bpf::attach(program, &target, engine).map_err(|e| failed(&e))?;
            let results = [f(n, n + 1), f(n + 2, n + 3)];
            hook::detach(id).map_err(|e| failed(&e))?;
            let expected = [(n, n + 1), (n + 2, n + 3)].map(|(first, second)| Wide {
                first,
                second,
                sum: first + second,
            });
            check!(
                results == expected,
                "{program} by {engine:?}: {results:?} instead of {expected:?}"
            );
            let seen = [
                variable("wide", "runs")? - before,
                variable("wide", "first")?,
                variable("wide", "second")?,
            ];
            check!(
                seen == [2 * runs, n + 2, n + 3],
                "{program} by {engine:?}: runs and arguments {seen:?}"
            );
        }
    }
    Ok(())
}

/// The bytes of a sample.
pub(super) fn object(name: &str) -> Result<Vec<u8>, Failure> {
    let files = initrd::files().map_err(|e| failed(&e))?;
    let file = files.iter().find(|f| f.name.contains(name));
    file.map(|f| f.bytes.to_vec())
        .ok_or_else(|| Failure::Failed(format!("the initrd has no {name}")))
}

/// Loading must fail, with a message that says `part`.
pub(super) fn refused(what: &str, bytes: &[u8], part: &str) -> Outcome {
    match bpf::try_load(what, bytes) {
        Ok(programs) => check!(
            false,
            "{what} was loaded, with {programs} programs, although it is {part}"
        ),
        Err(e) => check!(
            e.to_string().contains(part),
            "{what}: the message does not say {part:?}: {e}"
        ),
    }
    Ok(())
}

fn bad_objects() -> Outcome {
    let good = object("count.bpf.o")?;
    check!(
        bpf::try_load("count", &good).is_ok(),
        "the good object does not load"
    );
    for end in (0..good.len()).step_by(97) {
        check!(
            bpf::try_load("cut", &good[..end]).is_err(),
            "an object cut to {end} of {} bytes was loaded",
            good.len()
        );
    }
    refused("text", b"#!/bin/sh\necho no object at all, but long enough to be one if only its first bytes were right\n", "ELF")?;
    let mut foreign = good.clone();
    foreign[18] = 0xb7; // e_machine: EM_AARCH64
    refused("foreign", &foreign, "machine")?;
    // `call 1` becomes `call 9999`: an instruction of eight bytes, opcode 0x85, imm = the helper's number.
    let mut helper = good.clone();
    let at = good
        .windows(8)
        .position(|w| w == [0x85, 0, 0, 0, 1, 0, 0, 0]);
    let Some(at) = at else {
        check!(
            false,
            "count.bpf.o calls no helper 1: the test needs another sample"
        );
        return Ok(());
    };
    helper[at + 4..at + 8].copy_from_slice(&9999u32.to_le_bytes());
    refused("helper", &helper, "9999")?;
    // A licence that is not compatible with the GPL's, of a program that prints.
    let mut licence = object("printk.bpf.o")?;
    let text = b"Dual MIT/GPL";
    let Some(at) = licence.windows(text.len()).position(|w| w == text) else {
        check!(
            false,
            "printk.bpf.o has another licence than the test knows"
        );
        return Ok(());
    };
    licence[at..at + text.len()].copy_from_slice(b"Proprietary\0");
    refused("licence", &licence, "licence is \"Proprietary\"")?;
    // The object is still good, and so is the kernel.
    rcu::barrier();
    count()
}

fn bad_initrds() -> Outcome {
    let parse = |bytes: &'static [u8]| {
        initrd::parse(bytes).map_or_else(|e| e.to_string(), |f| format!("{} files", f.len()))
    };
    let trailer: &[u8] = b"07070100000000000000000000000000000000000000010000000000000000000000000000000000000000000000000000000B00000000TRAILER!!!\0\0\0\0";
    for (bytes, part) in [
        (&b""[..], "byte 0"),
        (b"no archive at all: just some text that is longer than a header would be, and then some more of it, so that it is not too short to have one", "magic"),
        (trailer, "empty"),
    ] {
        let message = parse(bytes);
        check!(message.contains(part), "{part}: {message}");
    }
    let region = crate::system().and_then(|s| s.machine.initrd);
    let Some(whole) = region.and_then(|r| mm::boot_memory(&r)) else {
        return Err(Failure::Skipped("there is no initrd to damage".into()));
    };
    let all = initrd::files().map_err(|e| failed(&e))?.len();
    for end in (0..whole.len()).step_by(1013) {
        if let Ok(files) = initrd::parse(&whole[..end]) {
            check!(
                files.len() == all,
                "an archive cut to {end} bytes gave {} of {all} files",
                files.len()
            );
        }
    }
    Ok(())
}

fn unknown_names() -> Outcome {
    let target = function("workload_call")?;
    for (name, part) in [
        ("nothing", "count"),
        ("count/none", "count/NAME"),
        ("", "no object"),
    ] {
        match bpf::attach(name, &target, Engine::Jit) {
            Ok(_) => check!(false, "{name:?} was attached"),
            Err(e) => check!(e.to_string().contains(part), "{name:?}: {e}"),
        }
    }
    Ok(())
}
