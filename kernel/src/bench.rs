// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table: what a hook costs.
//!
//! A figure is a difference: the same loop around the same function, hooked and not hooked, in the same run. While the
//! counter runs, every other core sleeps with its interrupts masked, and this one's are masked too. A loop is measured with n
//! and with 2n calls, and the difference divided by n: what the loop costs to begin and end cancels out. Three repetitions have
//! to agree to the instruction, or there is no figure. Cycles vary: there the smallest of the three stands.

use crate::arch::{self, pmu, smp};
use crate::command_line::Options;
use crate::hook::linux::Way;
use crate::hook::{Point, Protection};
use crate::workload::{TCP_TARGET, TCP_TARGET_SHORT, TRANSFER_BYTES, Transfer};
use crate::{attach_bench, bpf, hook, println, workload};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use pmu::Counter;
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

/// What runs a program.
#[derive(Clone, Copy)]
enum By {
    Native(hook::Native),
    Engine(bpf::Engine),
    /// Compiled, as a probe so many bytes behind the function's entry.
    Probe(hook::ProbeWay, u64),
    /// A kernel function of the program's name, in place of the hooked one.
    Function,
}

/// What is hooked on for a row.
struct Attach<'a> {
    /// The first part of the row's id.
    hook: &'a str,
    /// The second part.
    program: &'a str,
    by: By,
    /// `OBJECT/PROGRAM` of each program, in attach order; of a native hook one that is not looked at.
    programs: &'a [&'a str],
    protection: Protection,
    /// By which of Linux's ways; `None`: by Springboard's.
    way: Option<Way>,
    /// Where the programs behind the first are attached instead of on the function itself.
    elsewhere: Option<&'a str>,
    /// By which way the programs behind the first are attached instead.
    others: Option<Way>,
}

impl Attach<'_> {
    fn guard(&self) -> &'static str {
        match (self.way, self.by) {
            (Some(way), _) => way.guard(self.protection),
            (None, By::Probe(hook::ProbeWay::Breakpoint, _)) => "core",
            (None, _) => self.protection.name(),
        }
    }

    fn attach(&self, function: &hook::Function) -> Result<Vec<hook::HookId>, BenchError> {
        let protection = self.protection;
        let elsewhere = self.elsewhere.map(resolve).transpose()?;
        let attached = self.programs.iter().enumerate().map(|(index, program)| {
            let function = match &elsewhere {
                Some(other) if index > 0 => other,
                _ => function,
            };
            let change = |point| Point {
                protection,
                ..point
            };
            let functions = core::slice::from_ref(function);
            let way = self.others.filter(|_| index > 0).or(self.way);
            let hooked = match (self.by, way) {
                (By::Engine(engine), Some(way)) => {
                    bpf::attach_linux(program, functions, engine, way, change)
                        .map_err(|e| format!("{e}"))
                }
                (By::Native(which), Some(way)) => {
                    let point = change(Point::of(Kind::Fentry));
                    hook::attach_native_linux(functions, which, way, point)
                        .map_err(|e| format!("{e}"))
                }
                (By::Engine(engine), None) if bpf::is_multi(program).unwrap_or(false) => {
                    let pattern = Some(function.name);
                    bpf::attach_multi(program, pattern, engine, protection, |_| 0)
                        .map(|hooked| hooked.id)
                        .map_err(|e| format!("{e}"))
                }
                (By::Native(which), None) => {
                    let point = change(Point::of(Kind::Fentry));
                    hook::attach_native(function, which, point).map_err(|e| format!("{e}"))
                }
                (By::Function, _) => {
                    let by = resolve(program)?;
                    hook::replace(function, &by).map_err(|e| format!("{e}"))
                }
                (By::Probe(way, offset), _) => {
                    let place = hook::Place::of(function.address, offset);
                    let place = place.ok_or_else(|| BenchError::Hook("no such function".into()))?;
                    bpf::attach_probe(program, &place, bpf::Engine::Jit, way, change)
                        .map_err(|e| format!("{e}"))
                }
                (By::Engine(engine), None) => {
                    bpf::attach_at(program, function, engine, change).map_err(|e| format!("{e}"))
                }
            };
            hooked.map_err(BenchError::Hook)
        });
        attached.collect()
    }
}

fn detach(ids: &[hook::HookId]) -> Result<(), BenchError> {
    let off = |id: &hook::HookId| hook::detach(*id);
    let all = ids.iter().try_for_each(off);
    all.map_err(|e| BenchError::Hook(format!("{e}")))
}

const fn row<'a>(
    hook: &'a str,
    program: &'a str,
    by: By,
    programs: &'a [&'a str],
    protection: Protection,
) -> Attach<'a> {
    Attach {
        hook,
        program,
        by,
        programs,
        protection,
        way: None,
        elsewhere: None,
        others: None,
    }
}

/// As [`row`], of a compiled program by one of Linux's ways.
const fn linux<'a>(
    hook: &'a str,
    program: &'a str,
    programs: &'a [&'a str],
    way: Way,
    protection: Protection,
) -> Attach<'a> {
    Attach {
        way: Some(way),
        ..row(hook, program, JIT, programs, protection)
    }
}

/// As [`linux`], with all programs but the first on another function.
const fn elsewhere<'a>(row: Attach<'a>, function: &'a str) -> Attach<'a> {
    Attach {
        elsewhere: Some(function),
        ..row
    }
}

const JIT: By = By::Engine(bpf::Engine::Jit);
const ENTERED: By = By::Probe(hook::ProbeWay::Detour, 0);
/// The first instruction behind the site, as any in the middle of a function.
const DISPLACED: By = By::Probe(hook::ProbeWay::Detour, 8);
const BROKEN: By = By::Probe(hook::ProbeWay::Breakpoint, 0);
const INTERPRETER: By = By::Engine(bpf::Engine::Interpreter);

/// What is measured on every target: the entry, by all that can run a program.
const ENTRY: [Attach<'static>; 6] = {
    use Protection::Program as Word;
    [
        row(
            "fentry-native",
            "empty",
            By::Native(hook::Native::Empty),
            &["native"],
            Word,
        ),
        row(
            "fentry-native",
            "count",
            By::Native(hook::Native::Count),
            &["native"],
            Word,
        ),
        row("fentry-interpreter", "empty", INTERPRETER, &["empty"], Word),
        row("fentry-interpreter", "count", INTERPRETER, &["count"], Word),
        row("fentry", "empty", JIT, &["empty"], Word),
        row("fentry", "count", JIT, &["count"], Word),
    ]
};

/// What is measured on the trivial function besides: each protection, each kind, several programs.
const KINDS: [Attach<'static>; 38] = {
    use Protection::{Context, None, Pinned, Program as Word};
    [
        row("fentry-none", "empty", JIT, &["empty"], None),
        row("fentry-pinned", "empty", JIT, &["empty"], Pinned),
        row("fentry-context", "empty", JIT, &["empty"], Context),
        row("fentry.s", "empty", JIT, &["hooks/fentry_s_empty"], Word),
        row("fentry.s", "count", JIT, &["hooks/fentry_s_count"], Word),
        row(
            "fentry.s-pinned",
            "empty",
            JIT,
            &["hooks/fentry_s_empty"],
            Pinned,
        ),
        row("fentry*2", "empty", JIT, &["empty"; 2], Word),
        row("fentry*4", "empty", JIT, &["empty"; 4], Word),
        row("fexit", "empty", JIT, &["hooks/fexit_empty"], Word),
        row("fexit", "count", JIT, &["hooks/fexit_count"], Word),
        row("fexit*2", "empty", JIT, &["hooks/fexit_empty"; 2], Word),
        row("fexit*4", "empty", JIT, &["hooks/fexit_empty"; 4], Word),
        row("fexit.s", "empty", JIT, &["hooks/fexit_s_empty"], Word),
        row("fmod_ret", "empty", JIT, &["hooks/fmod_ret_empty"], Word),
        row("fmod_ret", "count", JIT, &["hooks/fmod_ret_count"], Word),
        row(
            "fmod_ret.s",
            "empty",
            JIT,
            &["hooks/fmod_ret_s_empty"],
            Word,
        ),
        row("fsession", "empty", JIT, &["hooks/fsession_empty"], Word),
        row("fsession", "count", JIT, &["hooks/fsession_count"], Word),
        row(
            "fsession.s",
            "empty",
            JIT,
            &["hooks/fsession_s_empty"],
            Word,
        ),
        row("multi-entry", "empty", JIT, &["multi/entry_empty"], Word),
        row("multi-entry", "count", JIT, &["multi/entry_count"], Word),
        row("multi-exit", "empty", JIT, &["multi/exit_empty"], Word),
        row("multi-exit", "count", JIT, &["multi/exit_count"], Word),
        row(
            "fentry+fexit",
            "empty",
            JIT,
            &["empty", "hooks/fexit_empty"],
            Word,
        ),
        row(
            "fentry+fmod_ret+fexit",
            "empty",
            JIT,
            &["empty", "hooks/fmod_ret_empty", "hooks/fexit_empty"],
            Word,
        ),
        row("kprobe", "empty", ENTERED, &["kprobe/kprobe_empty"], Word),
        row("kprobe", "count", ENTERED, &["kprobe/kprobe_count"], Word),
        row(
            "kprobe*2",
            "empty",
            ENTERED,
            &["kprobe/kprobe_empty"; 2],
            Word,
        ),
        row(
            "kprobe-detour",
            "empty",
            DISPLACED,
            &["kprobe/kprobe_empty"],
            Word,
        ),
        row(
            "kprobe-detour",
            "count",
            DISPLACED,
            &["kprobe/kprobe_count"],
            Word,
        ),
        row(
            "linux-kprobe",
            "empty",
            BROKEN,
            &["kprobe/kprobe_empty"],
            None,
        ),
        row(
            "linux-kprobe",
            "count",
            BROKEN,
            &["kprobe/kprobe_count"],
            None,
        ),
        row(
            "linux-kprobe*2",
            "empty",
            BROKEN,
            &["kprobe/kprobe_empty"; 2],
            None,
        ),
        row(
            "kretprobe",
            "empty",
            ENTERED,
            &["kprobe/kretprobe_empty"],
            Word,
        ),
        row(
            "kretprobe",
            "count",
            ENTERED,
            &["kprobe/kretprobe_count"],
            Word,
        ),
        row(
            "replace",
            "empty",
            By::Function,
            &["workload_call_other"],
            None,
        ),
        row("freplace", "empty", JIT, &["replace/empty"], Word),
        row("freplace", "count", JIT, &["replace/count"], Word),
    ]
};

/// What is measured on the trivial function besides: the ways that Linux has.
const LINUX: [Attach<'static>; 39] = {
    use Protection::{Pinned, Program as Word};
    const TRAMPOLINE: Way = Way::Trampoline;
    const LIST: Way = Way::List { all: false };
    const CALLOPS: Way = Way::CallOps { all: false };
    const ENTRY: &str = "linux/entry_empty";
    const EXIT: &str = "linux/exit_empty";
    const FEXIT: &str = "hooks/fexit_empty";
    const FMOD: &str = "hooks/fmod_ret_empty";
    const SHARED: Attach<'static> = linux(
        "linux-callops+fentry",
        "empty",
        &["empty"; 2],
        CALLOPS,
        Word,
    );
    [
        Attach {
            others: Some(TRAMPOLINE),
            ..SHARED
        },
        Attach {
            hook: "linux-list+fentry",
            way: Some(LIST),
            others: Some(TRAMPOLINE),
            ..SHARED
        },
        linux("linux-fentry", "empty", &["empty"], TRAMPOLINE, Word),
        linux("linux-fentry", "count", &["count"], TRAMPOLINE, Word),
        linux(
            "linux-fentry-migrate",
            "empty",
            &["empty"],
            TRAMPOLINE,
            Pinned,
        ),
        linux("linux-fentry*2", "empty", &["empty"; 2], TRAMPOLINE, Word),
        linux("linux-fentry*4", "empty", &["empty"; 4], TRAMPOLINE, Word),
        linux(
            "linux-fentry.s",
            "empty",
            &["hooks/fentry_s_empty"],
            TRAMPOLINE,
            Word,
        ),
        linux(
            "linux-fentry.s-migrate",
            "empty",
            &["hooks/fentry_s_empty"],
            TRAMPOLINE,
            Pinned,
        ),
        linux("linux-fexit", "empty", &[FEXIT], TRAMPOLINE, Word),
        linux(
            "linux-fexit",
            "count",
            &["hooks/fexit_count"],
            TRAMPOLINE,
            Word,
        ),
        linux("linux-fexit*2", "empty", &[FEXIT; 2], TRAMPOLINE, Word),
        linux("linux-fexit*4", "empty", &[FEXIT; 4], TRAMPOLINE, Word),
        linux(
            "linux-fexit.s",
            "empty",
            &["hooks/fexit_s_empty"],
            TRAMPOLINE,
            Word,
        ),
        linux("linux-fmod_ret", "empty", &[FMOD], TRAMPOLINE, Word),
        linux(
            "linux-fmod_ret",
            "count",
            &["hooks/fmod_ret_count"],
            TRAMPOLINE,
            Word,
        ),
        linux(
            "linux-fentry+fexit",
            "empty",
            &["empty", FEXIT],
            TRAMPOLINE,
            Word,
        ),
        linux(
            "linux-fentry+fmod_ret+fexit",
            "empty",
            &["empty", FMOD, FEXIT],
            TRAMPOLINE,
            Word,
        ),
        linux("linux-list", "empty", &["empty"], LIST, Word),
        linux("linux-list", "count", &["count"], LIST, Word),
        linux("linux-list*2", "empty", &["empty"; 2], LIST, Word),
        linux("linux-list*4", "empty", &["empty"; 4], LIST, Word),
        elsewhere(
            linux("linux-list+other", "empty", &["empty"; 2], LIST, Word),
            "workload_six",
        ),
        elsewhere(
            linux("linux-list+others*3", "empty", &["empty"; 4], LIST, Word),
            "workload_six",
        ),
        linux(
            "linux-list-regs",
            "empty",
            &[ENTRY],
            Way::List { all: true },
            Word,
        ),
        linux("linux-callops", "empty", &["empty"], CALLOPS, Word),
        linux("linux-callops", "count", &["count"], CALLOPS, Word),
        linux("linux-callops*2", "empty", &["empty"; 2], CALLOPS, Word),
        linux("linux-callops*4", "empty", &["empty"; 4], CALLOPS, Word),
        elsewhere(
            linux("linux-callops+other", "empty", &["empty"; 2], CALLOPS, Word),
            "workload_six",
        ),
        elsewhere(
            linux(
                "linux-callops+others*3",
                "empty",
                &["empty"; 4],
                CALLOPS,
                Word,
            ),
            "workload_six",
        ),
        linux(
            "linux-callops-regs",
            "empty",
            &[ENTRY],
            Way::CallOps { all: true },
            Word,
        ),
        linux("linux-fprobe", "empty", &[ENTRY], Way::Fprobe, Word),
        linux(
            "linux-fprobe",
            "count",
            &["linux/entry_count"],
            Way::Fprobe,
            Word,
        ),
        linux("linux-fprobe*2", "empty", &[ENTRY; 2], Way::Fprobe, Word),
        linux("linux-fprobe-exit", "empty", &[EXIT], Way::FprobeExit, Word),
        linux(
            "linux-fprobe-exit",
            "count",
            &["linux/exit_count"],
            Way::FprobeExit,
            Word,
        ),
        linux(
            "linux-fprobe-exit*2",
            "empty",
            &[EXIT; 2],
            Way::FprobeExit,
            Word,
        ),
        linux(
            "linux-fprobe-exit*4",
            "empty",
            &[EXIT; 4],
            Way::FprobeExit,
            Word,
        ),
    ]
};

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

/// Functions that one program is put on at once.
const MANY: usize = 1000;

/// What it takes to put a program on many functions, and to take it off: in the whole system, with the other cores running. The largest
/// of the repetitions.
fn many_functions(rows: &mut Vec<Row>) -> Result<(), BenchError> {
    let failed = |e: &dyn fmt::Display| BenchError::Hook(format!("{e}"));
    for (name, program) in [
        ("multi-entry", "multi/entry_empty"),
        ("multi-exit", "multi/exit_empty"),
    ] {
        let (mut on, mut off) = (0, 0);
        for _ in 0..REPETITIONS {
            let mut selection = hook::select("*").map_err(|e| failed(&e))?;
            selection.functions.truncate(MANY);
            if selection.functions.len() < MANY {
                return Err(BenchError::Hook(format!(
                    "{} functions have a site, not {MANY}",
                    selection.functions.len()
                )));
            }
            let start = pmu::read();
            let hooked = {
                let (jit, word) = (bpf::Engine::Jit, Protection::Program);
                bpf::attach_selection(program, selection, jit, word, |_| 0)
            };
            on = on.max(pmu::difference(start, pmu::read()));
            let hooked = hooked.map_err(|e| failed(&e))?;
            let start = pmu::read();
            let detached = hook::detach(hooked.id);
            off = off.max(pmu::difference(start, pmu::read()));
            detached.map_err(|e| failed(&e))?;
            crate::rcu::barrier();
        }
        for (hook, total) in [("attach-1000", on), ("detach-1000", off)] {
            rows.push(Row {
                hook: hook.into(),
                program: name.into(),
                target: "*".into(),
                guard: Protection::Program.name(),
                calls: 1,
                baseline: Fixed::ratio(0, 1),
                total: Fixed::ratio(total, 1),
                share: None,
            });
        }
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
    let there = section.split('/').next().unwrap_or_default();
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
            .and_then(|()| many_functions(&mut rows))
            .and_then(|()| resolve(TCP_TARGET))
            .and_then(|f| in_transfer(&mut rows, &f, TCP_TARGET_SHORT, &ENTRY)),
    };
    let operations = result.and_then(|()| match options.object {
        Some(_) => Ok(Vec::new()),
        None => attach_bench::rows(),
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
