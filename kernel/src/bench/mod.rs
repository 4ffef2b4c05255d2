// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table: what a hook costs.
//!
//! A figure is a difference: the same loop around the same function, hooked and not hooked, in the same run. While the
//! counter runs, every other core sleeps with its interrupts masked, and this one's are masked too. A loop is measured with n
//! and with 2n calls, and the difference divided by n: what the loop costs to begin and end cancels out. Three repetitions have
//! to agree to the instruction, or there is no figure. Cycles vary: there the smallest of the three stands.

pub(crate) mod attach;
pub(crate) mod jit;
mod table;

use crate::arch::{self, pmu, smp};
use crate::command_line::Options;
use crate::hook::{Point, Protection};
use crate::workload::{TCP_TARGET, TCP_TARGET_SHORT, TRANSFER_BYTES, Transfer};
use crate::{bpf, hook, println, sched, workload};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use pmu::Counter;
use table::{Attach, ENTRY, INTERPRETER, JIT, KINDS, LINUX, row};
use trampoline::Kind;

/// Calls in the short loop; the long one has twice as many.
const CALLS: u64 = 1000;
const REPETITIONS: usize = 3;

/// One line of the table; numbers are per call.
pub(crate) struct Row {
    hook: String,
    program: String,
    target: String,
    guard: &'static str,
    calls: u64,
    baseline: Fixed,
    total: Fixed,
    /// Of a whole transfer, in millionths, where the target is part of one.
    share: Option<u64>,
}

/// A number with three decimals: thousandths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fixed(i64);

impl Fixed {
    pub(crate) fn ratio(value: u64, by: u64) -> Fixed {
        let by = i128::from(by.max(1));
        Fixed(((i128::from(value) * 1000 + by / 2) / by) as i64)
    }
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, part) = (self.0.unsigned_abs() / 1000, self.0.unsigned_abs() % 1000);
        let text = if part == 0 {
            format!("{sign}{whole}")
        } else {
            format!("{sign}{whole}.{part:03}")
        };
        f.pad_integral(true, "", &text)
    }
}

impl Row {
    /// Of something that is done once, without a counterpart to compare it with.
    pub(crate) fn of_operation(
        hook: &str,
        program: &str,
        target: &str,
        guard: &'static str,
        total: u64,
    ) -> Row {
        Row {
            hook: hook.into(),
            program: program.into(),
            target: target.into(),
            guard,
            calls: 1,
            baseline: Fixed(0),
            total: Fixed::ratio(total, 1),
            share: None,
        }
    }

    fn overhead(&self) -> Fixed {
        Fixed(self.total.0 - self.baseline.0)
    }

    fn id(&self) -> String {
        format!("{}/{}/{}", self.hook, self.program, self.target)
    }

    fn json(&self) -> String {
        let share = self
            .share
            .map_or(String::new(), |s| format!(",\"share_ppm\":{s}"));
        format!(
            "{{\"id\":{:?},\"hook\":{:?},\"program\":{:?},\"target\":{:?},\"guard\":{:?},\"calls\":{},\
             \"baseline\":{},\"total\":{},\"overhead\":{}{share}}}",
            self.id(),
            self.hook,
            self.program,
            self.target,
            self.guard,
            self.calls,
            self.baseline,
            self.total,
            self.overhead()
        )
    }
}

/// Why there is no figure.
#[derive(Debug)]
pub(crate) enum BenchError {
    /// Three repetitions of an exact count differ.
    Unsteady(String, [u64; REPETITIONS]),
    /// Something could not be hooked.
    Hook(String),
    /// The workload went wrong.
    Workload(String),
    /// The hook was hit another number of times than the function was called.
    Hits {
        /// The row.
        row: String,
        /// Calls made.
        calls: u64,
        /// Hits counted.
        hits: u64,
    },
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BenchError::Unsteady(row, counts) => {
                write!(
                    f,
                    "{row}: three repetitions gave {counts:?}; an exact count has to repeat, so this is no figure"
                )
            }
            BenchError::Hook(why) | BenchError::Workload(why) => f.write_str(why),
            BenchError::Hits { row, calls, hits } => {
                write!(
                    f,
                    "{row}: {calls} calls but {hits} hits: the hook does not work, so its cost means nothing"
                )
            }
        }
    }
}

/// The counter's reading for one run of `work`.
#[inline(never)]
fn count(work: &mut dyn FnMut()) -> u64 {
    let parked = smp::park_others();
    let start = pmu::read();
    work();
    let end = pmu::read();
    drop(parked);
    pmu::difference(start, end)
}

/// Three readings of the same work, as one figure. `prepare` comes before each, and is not counted.
pub(crate) fn steady(
    row: &str,
    prepare: &mut dyn FnMut(),
    work: &mut dyn FnMut(),
) -> Result<u64, BenchError> {
    prepare();
    work(); // code and data are where they will be
    let mut counts = [0; REPETITIONS];
    for c in &mut counts {
        prepare();
        *c = count(work);
    }
    let smallest = counts.iter().copied().min().unwrap_or(0);
    if pmu::counter() == Counter::Instructions && counts.iter().any(|&c| c != smallest) {
        return Err(BenchError::Unsteady(row.into(), counts));
    }
    Ok(smallest)
}

/// Cost of one call, loop and all, through the pointer `target`.
fn per_call(row: &str, target: extern "C" fn(u64, u64) -> u64) -> Result<Fixed, BenchError> {
    let short = steady(row, &mut || (), &mut || {
        workload::call_loop(target, CALLS);
    })?;
    let long = steady(row, &mut || (), &mut || {
        workload::call_loop(target, 2 * CALLS);
    })?;
    Ok(Fixed::ratio(long.saturating_sub(short), CALLS))
}

/// Takes hooks off, the last one first, and waits until they are: a live patch goes off task by task.
fn detach(ids: &[hook::HookId]) -> Result<(), BenchError> {
    for &id in ids.iter().rev() {
        hook::detach(id).map_err(|e| failed(&e))?;
        while hook::livepatch::list().iter().any(|patch| patch.id == id) {
            sched::sleep_ns(1_000_000);
        }
    }
    Ok(())
}

fn failed(e: &dyn fmt::Display) -> BenchError {
    BenchError::Hook(format!("{e}"))
}

fn resolve(name: &str) -> Result<hook::Function, BenchError> {
    hook::resolve(name).map_err(|e| BenchError::Hook(format!("{e}")))
}

/// The rows of a trivial function.
fn trivial<'a>(
    rows: &mut Vec<Row>,
    configurations: impl Iterator<Item = &'a Attach<'a>>,
) -> Result<(), BenchError> {
    const TARGET: &str = "workload_call";
    let function = resolve(TARGET)?;
    let row = |hook: &str, program: &str, guard, baseline, total| Row {
        hook: hook.into(),
        program: program.into(),
        target: TARGET.into(),
        guard,
        calls: CALLS,
        baseline,
        total,
        share: None,
    };
    let bare = per_call(
        "no-site",
        arch::callee::past_site(workload::workload_call as workload::Callable),
    )?;
    let unhooked = per_call("site", workload::workload_call)?;
    rows.push(row("no-site", "none", "none", bare, bare));
    rows.push(row("site", "none", "none", bare, unhooked));
    for configuration in configurations {
        let (hook, program) = (configuration.hook, configuration.program);
        let ids = configuration.attach(&function)?;
        let hits = |ids: &[hook::HookId]| ids.first().and_then(|id| hook::hits(*id));
        let before = hits(&ids);
        let total = per_call(hook, workload::workload_call);
        let counted = hits(&ids).zip(before).map(|(after, before)| after - before);
        let missed: u64 = ids.iter().flat_map(|id| hook::misses(*id)).sum();
        detach(&ids)?;
        // n and 2n calls, once to warm up and three times to measure
        let calls = (1 + REPETITIONS as u64) * 3 * CALLS;
        if counted.is_some_and(|hits| hits != calls) || missed != 0 {
            return Err(BenchError::Hits {
                row: format!("{hook}/{program}/{TARGET}"),
                calls,
                hits: counted.unwrap_or(calls - missed),
            });
        }
        let guard = configuration.guard();
        rows.push(row(hook, program, guard, unhooked, total?));
    }
    let again = per_call("site", workload::workload_call)?;
    if pmu::counter() == Counter::Instructions && again != unhooked {
        return Err(BenchError::Hook(format!(
            "a call cost {unhooked} before the hooks and {again} after them"
        )));
    }
    Ok(())
}

/// Counts the work of a TCP transfer over the loopback.
fn transfer(tcp: &mut Transfer) -> Result<u64, BenchError> {
    let mut result = Ok(());
    let counted = steady("tcp", &mut || (), &mut || {
        if let Err(e) = tcp.run(TRANSFER_BYTES) {
            result = Err(BenchError::Workload(format!("the TCP transfer: {e}")));
        }
    })?;
    result.map(|()| counted)
}

/// How often a transfer calls a function: counted by a hook, in a transfer of its own.
fn hits_in_transfer(tcp: &mut Transfer, function: &hook::Function) -> Result<u64, BenchError> {
    let counter = hook::attach_native(function, hook::Native::Count, Point::of(Kind::Fentry))
        .map_err(|e| BenchError::Hook(format!("{e}")))?;
    let before = hook::hits(counter).unwrap_or(0);
    let moved = tcp.run(TRANSFER_BYTES);
    let hits = hook::hits(counter).unwrap_or(0) - before;
    hook::detach(counter).map_err(|e| BenchError::Hook(format!("{e}")))?;
    moved.map_err(|e| BenchError::Workload(format!("the TCP transfer: {e}")))?;
    if hits == 0 {
        return Err(BenchError::Workload(format!(
            "{} is hooked, but the workloads (calls of workload_call, a TCP transfer) never call it: nothing to measure",
            function.name
        )));
    }
    Ok(hits)
}

/// The rows of a function that the TCP transfer calls; `short` is its name in the table.
fn in_transfer(
    rows: &mut Vec<Row>,
    function: &hook::Function,
    short: &str,
    configurations: &[Attach<'_>],
) -> Result<(), BenchError> {
    let mut tcp = Transfer::new();
    let hits = hits_in_transfer(&mut tcp, function)?;
    let unhooked = transfer(&mut tcp)?;
    for configuration in configurations {
        let ids = configuration.attach(function)?;
        let total = transfer(&mut tcp);
        detach(&ids)?;
        let total = total?;
        let added = total.saturating_sub(unhooked);
        rows.push(Row {
            hook: configuration.hook.into(),
            program: configuration.program.into(),
            target: short.into(),
            guard: configuration.guard(),
            calls: hits,
            baseline: Fixed::ratio(unhooked, hits),
            total: Fixed::ratio(total, hits),
            share: Some((u128::from(added) * 1_000_000 / u128::from(unhooked.max(1))) as u64),
        });
    }
    Ok(())
}

/// The rows of someone else's object: `object=NAME attach=KIND:FUNCTION`.
fn foreign(rows: &mut Vec<Row>, object: &str, attach: Option<&str>) -> Result<(), BenchError> {
    let Some((kind, name)) = attach.and_then(|a| a.split_once(':')) else {
        return Err(BenchError::Hook(
            "--attach takes KIND:FUNCTION, for example fentry:workload_call".into(),
        ));
    };
    let section = bpf::section(object).map_err(|e| BenchError::Hook(format!("{e}")))?;
    let named = section.strip_prefix('?').unwrap_or(&section);
    let there = named.split('/').next().unwrap_or_default();
    if kind != there {
        return Err(BenchError::Hook(format!(
            "--attach {kind}:...: the object's program is in section {section:?}, so it attaches as {there}:FUNCTION"
        )));
    }
    let function = resolve(name)?;
    let interpreted = format!("{kind}-interpreter");
    let programs = [object];
    let configurations = [
        row(
            &interpreted,
            object,
            INTERPRETER,
            &programs,
            Protection::Program,
        ),
        row(kind, object, JIT, &programs, Protection::Program),
    ];
    if function.name == "workload_call" {
        return trivial(rows, configurations.iter());
    }
    in_transfer(rows, &function, function.name, &configurations)
}

/// Runs the job: prints the table and, for programs, its rows.
pub(crate) fn run(options: &Options<'_>) -> u32 {
    let counter = pmu::counter();
    let mut rows = Vec::new();
    let result = match options.object {
        Some(object) => foreign(&mut rows, object, options.attach),
        None => trivial(&mut rows, ENTRY.iter().chain(&KINDS).chain(&LINUX))
            .and_then(|()| resolve(TCP_TARGET))
            .and_then(|f| in_transfer(&mut rows, &f, TCP_TARGET_SHORT, &ENTRY)),
    };
    let operations = result.and_then(|()| match options.object {
        Some(_) => Ok(Vec::new()),
        None => attach::rows(),
    });
    let operations = match operations {
        Ok(operations) => operations,
        Err(e) => {
            println!("springboard: bench: {e}");
            return 1;
        }
    };
    if counter == Counter::None {
        println!(
            "springboard: no figures: emulation without -icount has no counter that means anything"
        );
        return 0;
    }
    let board = options.board.unwrap_or("unknown board");
    let exact = counter == Counter::Instructions;
    let unit = if exact {
        "instructions (exact)"
    } else {
        "cycles"
    };
    println!();
    println!("What a hook costs, in {unit} per call");
    let under = options
        .qemu
        .map_or(String::new(), |version| format!(", QEMU {version}"));
    let counted = if exact {
        "INST_RETIRED under -icount"
    } else {
        "PMCCNTR_EL0"
    };
    println!("board {board}{under}, counter {counted}");
    println!();
    println!(
        "{:<22} {:<8} {:<24} {:<8} {:>10} {:>10} {:>9} {:>8}",
        "hook", "program", "function", "guard", "without", "with", "cost", "share"
    );
    for row in &rows {
        let share = row.share.map_or(String::new(), |s| {
            format!("{}.{:02} %", s / 10_000, s / 100 % 100)
        });
        println!(
            "{:<22} {:<8} {:<24} {:<8} {:>10} {:>10} {:>9} {:>8}",
            row.hook,
            row.program,
            row.target,
            row.guard,
            row.baseline,
            row.total,
            row.overhead(),
            share
        );
    }
    println!();
    if !operations.is_empty() {
        println!("What attaching costs, in instructions of the whole system");
        println!();
        println!(
            "{:<22} {:<8} {:<24} {:<8} {:>10}",
            "step", "hook", "function", "guard", "at most"
        );
        for row in &operations {
            println!(
                "{:<22} {:<8} {:<24} {:<8} {:>10}",
                row.hook, row.program, row.target, row.guard, row.total
            );
        }
        println!();
    }
    if options.rows {
        println!(
            "@bench {{\"board\":{board:?},\"counter\":{:?},\"exact\":{exact}}}",
            counter.name()
        );
        for row in rows.iter().chain(&operations) {
            println!("@row {}", row.json());
        }
    }
    0
}
