// SPDX-License-Identifier: MIT OR Apache-2.0
//! The second table: what attaching and detaching cost, in instructions of the whole system.
//!
//! The instruction counter of an emulator under `-icount` is one for all cores, and here nothing is stopped: what other cores do to be
//! synchronised counts, and so do the ticks and the tasks that wait for grace periods. Where a tick falls differs from one
//! repetition to the next, so a figure is the largest of them. A counter of one core's own says nothing about the whole system: there are
//! no rows then.
#![forbid(unsafe_code)]

use crate::arch::pmu::{self, Counter};
use crate::bench::{BenchError, Row};
use crate::bpf::{self, Engine};
use crate::hook::{self, HookId, Protection};
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

/// What is counted, in the order that it happens.
const STEPS: [&str; 5] = [
    "attach",        // the first program on the function, compiled too
    "attach-second", // another one
    "detach-second", // off again
    "detach",        // the last program off
    "detach-freed",  // the same, until all memory is back
];

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
    let hooks = |e: &dyn core::fmt::Display| BenchError::Hook(format!("{e}"));
    let function = hook::resolve(TARGET).map_err(|e| hooks(&e))?;
    let attach = || bpf::attach(program, &function, Engine::Jit).map_err(|e| hooks(&e));
    let detach = |id: HookId| hook::detach(id).map_err(|e| hooks(&e));
    // The object is loaded, and nothing is left over from before.
    bpf::section(program).map_err(|e| hooks(&e))?;
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

/// All rows; none if the counter is not the whole system's.
pub(crate) fn rows() -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    if pmu::counter() != Counter::Instructions {
        return Ok(rows);
    }
    for (kind, program) in KINDS {
        // The first one finds code and data where they will be.
        let mut largest = once(program)?;
        largest.fill(0);
        for _ in 0..REPETITIONS {
            let figures = once(program)?;
            for (largest, figure) in largest.iter_mut().zip(figures) {
                *largest = figure.max(*largest);
            }
        }
        for (step, figure) in STEPS.into_iter().zip(largest) {
            let guard = Protection::Program.name();
            rows.push(Row::of_operation(step, kind, TARGET, guard, figure));
        }
    }
    Ok(rows)
}
