// SPDX-License-Identifier: MIT OR Apache-2.0
//! The second table: what attaching and detaching cost, in instructions of the whole system.
//!
//! The instruction counter of an emulator under `-icount` is one for all cores, and here nothing is stopped: what other cores do to be
//! synchronised counts, and so do the ticks and the tasks that wait for grace periods. Where a tick falls differs from one
//! repetition to the next, so a figure is the largest of them. A counter of one core's own says nothing about the whole system: there are
//! no rows then.
#![forbid(unsafe_code)]

use super::{BenchError, Row, failed};
use crate::arch::pmu::{self, Counter};
use crate::bpf::{self, Engine};
use crate::hook::{self, At, HookId, How, Protection, Settings, WayIn};
use crate::{rcu, sched};
use alloc::format;
use alloc::vec::Vec;

const TARGET: &str = "workload_call";
const REPETITIONS: usize = 5;

/// What is attached: the name in the row's id, and the program.
const KINDS: [(&str, &str); 3] = [
    ("fentry", "empty"),
    ("fexit", "hooks/fexit_empty"),
    ("fentry.s", "hooks/fentry_s_empty"),
];

/// As [`KINDS`]; only the first attach is shown.
const OTHERS: [(&str, &str); 7] = [
    ("fmod_ret", "hooks/fmod_ret_empty"),
    ("fsession", "hooks/fsession_empty"),
    ("fexit.s", "hooks/fexit_s_empty"),
    ("fmod_ret.s", "hooks/fmod_ret_s_empty"),
    ("fsession.s", "hooks/fsession_s_empty"),
    ("kprobe", "kprobe/kprobe_empty"),
    ("kretprobe", "kprobe/kretprobe_empty"),
];

/// What is counted, in the order that it happens.
const STEPS: [&str; 5] = [
    "attach",        // the first program on the function, compiled too
    "attach-second", // another one
    "detach-second", // off again
    "detach",        // the last program off
    "detach-freed",  // the same, until all memory is back
];

/// What is put on many functions at once.
const MULTI: [(&str, &str); 2] = [
    ("multi-entry", "multi/entry_empty"),
    ("multi-exit", "multi/exit_empty"),
];

/// With the guard on, though they need none.
const GUARDED: Settings = Settings {
    sleepable: false,
    protection: Some(Protection::Program),
    cookie: 0,
};

/// So many.
const MANY: usize = 1000;

/// What is counted of that.
const MULTI_STEPS: [&str; 2] = ["attach-1000", "detach-1000"];

/// Instructions of all cores while `work` runs, read from one core: each began to count at another time.
fn whole<T>(work: impl FnOnce() -> Result<T, BenchError>) -> Result<(u64, T), BenchError> {
    sched::migrate_disable();
    let start = pmu::read();
    let done = work();
    let counted = pmu::difference(start, pmu::read());
    sched::migrate_enable();
    Ok((counted, done?))
}

/// One repetition: the figures of [`STEPS`].
pub(crate) fn once(program: &str) -> Result<[u64; STEPS.len()], BenchError> {
    let function = hook::resolve(TARGET).map_err(|e| failed(&e))?;
    let attach = || {
        let on = |how: How, _: Option<&str>| how.on(function);
        let hooked = bpf::attach_at(program, Engine::Jit, WayIn::Springboard, GUARDED, on);
        hooked.map(|hooked| hooked.id).map_err(|e| failed(&e))
    };
    let detach = |id: HookId| hook::detach(id).map_err(|e| failed(&e));
    // The object is loaded, and nothing is left over from before.
    bpf::section(program).map_err(|e| failed(&e))?;
    rcu::barrier();
    let (first, id) = whole(attach)?;
    let (second, other) = whole(attach)?;
    let (second_off, ()) = whole(|| detach(other))?;
    rcu::barrier();
    let (freed, off) = whole(|| {
        let (off, ()) = whole(|| detach(id))?;
        rcu::barrier();
        Ok(off)
    })?;
    Ok([first, second, second_off, off, freed])
}

/// One repetition for a program on [`MANY`] functions at once: on, and off again.
fn once_many(program: &str) -> Result<[u64; 2], BenchError> {
    let at = |how: How, _: Option<&str>| {
        let mut selection = hook::select("*")?;
        selection.functions.truncate(MANY);
        match how {
            How::Many { exit } => Ok(At::Many(selection, exit)),
            other => other.at("*"),
        }
    };
    let (way, settings) = (WayIn::Springboard, GUARDED);
    bpf::section(program).map_err(|e| failed(&e))?;
    let (on, hooked) = whole(|| {
        let hooked = bpf::attach_at(program, Engine::Jit, way, settings, at);
        hooked.map_err(|e| failed(&e))
    })?;
    let (off, ()) = whole(|| hook::detach(hooked.id).map_err(|e| failed(&e)))?;
    rcu::barrier();
    if hooked.functions != MANY {
        let found = hooked.functions;
        return Err(BenchError::Hook(format!(
            "{found} functions were hooked, not {MANY}"
        )));
    }
    Ok([on, off])
}

/// The largest of [`REPETITIONS`]; one more comes first, which finds code and data where they will be.
fn largest<const N: usize>(
    once: impl Fn() -> Result<[u64; N], BenchError>,
) -> Result<[u64; N], BenchError> {
    once()?;
    let mut largest = [0; N];
    for _ in 0..REPETITIONS {
        for (largest, figure) in largest.iter_mut().zip(once()?) {
            *largest = figure.max(*largest);
        }
    }
    Ok(largest)
}

/// All rows; none if the counter is not the whole system's.
pub(crate) fn rows() -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    if pmu::counter() != Counter::Instructions {
        return Ok(rows);
    }
    let guard = Protection::Program.name();
    for (kind, program) in KINDS {
        for (step, figure) in STEPS.into_iter().zip(largest(|| once(program))?) {
            rows.push(Row::of_operation(step, kind, TARGET, guard, figure));
        }
    }
    for (kind, program) in OTHERS {
        let ([step, ..], [figure, ..]) = (STEPS, largest(|| once(program))?);
        rows.push(Row::of_operation(step, kind, TARGET, guard, figure));
    }
    for (kind, program) in MULTI {
        for (step, figure) in MULTI_STEPS.into_iter().zip(largest(|| once_many(program))?) {
            rows.push(Row::of_operation(step, kind, "*", guard, figure));
        }
    }
    Ok(rows)
}
