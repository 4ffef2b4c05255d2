// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the rows of the table hook in.

use super::{BenchError, failed, resolve};
use crate::bpf;
use crate::hook::linux::Way;
use crate::hook::{self, HookId, How, Protection, Settings, WayIn, livepatch};
use crate::sched;
use crate::workload::PATCHES;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What runs a program.
#[derive(Clone, Copy)]
pub(super) enum By {
    /// It is one of the kernel's own.
    Native(hook::Native),
    /// It is a BPF program.
    Engine(bpf::Engine),
    /// It is a kernel function of the program's name, in place of the hooked one.
    Function,
    /// It is a live patch of the program's name, and on.
    Patch,
    /// It is a BPF program, compiled; those behind the first take the place of functions of it.
    Within,
}

/// What is hooked on for a row.
pub(super) struct Attach<'a> {
    /// The first part of the row's id.
    pub(super) hook: &'a str,
    /// The second part.
    pub(super) program: &'a str,
    by: By,
    /// `OBJECT/PROGRAM` of each program, in attach order; of a native hook one that is not looked at.
    programs: &'a [&'a str],
    protection: Protection,
    way: WayIn,
    /// How far behind the function's entry, in bytes.
    offset: u64,
    /// Where the programs behind the first are attached instead of on the function itself.
    elsewhere: Option<&'a str>,
    /// By which way the programs behind the first are attached instead.
    others: Option<WayIn>,
}

impl Attach<'_> {
    /// What keeps its programs from running inside themselves: the word for the table.
    pub(super) fn guard(&self) -> &'static str {
        self.way.guard(self.protection)
    }

    /// Hooks all of it in, on a function.
    pub(super) fn attach(&self, function: &hook::Function) -> Result<Vec<HookId>, BenchError> {
        let settings = Settings {
            protection: Some(self.protection),
            ..Settings::default()
        };
        let mut first = None;
        let attached = self.programs.iter().enumerate().map(|(index, program)| {
            let name = match self.elsewhere {
                Some(other) if index > 0 => other,
                _ => function.name,
            };
            let name = match self.offset {
                0 => String::from(name),
                offset => format!("{name}+{offset:#x}"),
            };
            let way = self.others.filter(|_| index > 0).unwrap_or(self.way);
            let at = |how: How, _: Option<&str>| how.at(&name);
            let hooked = match self.by {
                By::Function => {
                    return hook::replace(function, &resolve(program)?).map_err(|e| failed(&e));
                }
                By::Patch => return patch(program),
                By::Within => match first {
                    Some(first) => return bpf::freplace(program, first).map_err(|e| failed(&e)),
                    None => bpf::attach_at(program, bpf::Engine::Jit, way, settings, at)
                        .map_err(|e| failed(&e)),
                },
                By::Engine(engine) => {
                    bpf::attach_at(program, engine, way, settings, at).map_err(|e| failed(&e))
                }
                By::Native(which) => {
                    let how = way.entry();
                    let hooked = how.at(&name).and_then(|at| {
                        let program = which.program(at.shape());
                        hook::hook_in(at, settings, program)
                    });
                    hooked.map_err(|e| failed(&e))
                }
            };
            let id = hooked?.id;
            first = first.or(Some(id));
            Ok(id)
        });
        attached.collect()
    }
}

/// Puts a live patch on, and waits until it is.
fn patch(name: &str) -> Result<HookId, BenchError> {
    let patch = PATCHES.iter().find(|patch| patch.name == name);
    let patch = patch.ok_or_else(|| failed(&format!("there is no live patch {name}")))?;
    let id = livepatch::apply(patch).map_err(|e| failed(&e))?;
    let on = |p: &livepatch::Status| p.id == id && p.phase == livepatch::Phase::On;
    while !livepatch::list().iter().any(on) {
        sched::sleep_ns(1_000_000);
    }
    Ok(id)
}

/// A row of programs on the function itself, by Springboard's way.
pub(super) const fn row<'a>(
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
        way: WayIn::Springboard,
        offset: 0,
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
        way: WayIn::Linux(way),
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

/// As `row`, of a program for probes at the first instruction behind the site: as any in the middle of a function.
const fn displaced(row: Attach<'_>) -> Attach<'_> {
    Attach { offset: 8, ..row }
}

/// As `row`, of a program for probes, by a BRK.
const fn breakpoint(row: Attach<'_>) -> Attach<'_> {
    Attach {
        way: WayIn::LinuxKprobe,
        ..row
    }
}

pub(super) const JIT: By = By::Engine(bpf::Engine::Jit);
pub(super) const INTERPRETER: By = By::Engine(bpf::Engine::Interpreter);

/// What is measured on every target: the entry, by all that can run a program.
pub(super) const ENTRY: [Attach<'static>; 6] = {
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
pub(super) const KINDS: [Attach<'static>; 48] = {
    use Protection::{Context, None, Pinned, Program as Word};
    [
        row("fentry-none", "empty", JIT, &["empty"], None),
        row("fentry-pinned", "empty", JIT, &["empty"], Pinned),
        row("fentry-context", "empty", JIT, &["empty"], Context),
        row("fentry.s", "empty", JIT, &["hooks/fentry_s_empty"], Word),
        row("fentry.s", "count", JIT, &["hooks/fentry_s_count"], Word),
        row(
            "fentry.s*2",
            "empty",
            JIT,
            &["hooks/fentry_s_empty"; 2],
            Word,
        ),
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
            "fmod_ret*2",
            "empty",
            JIT,
            &["hooks/fmod_ret_empty"; 2],
            Word,
        ),
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
        row(
            "multi-entry*2",
            "empty",
            JIT,
            &["multi/entry_empty"; 2],
            Word,
        ),
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
        row("kprobe", "empty", JIT, &["kprobe/kprobe_empty"], Word),
        row("kprobe", "count", JIT, &["kprobe/kprobe_count"], Word),
        row("kprobe*2", "empty", JIT, &["kprobe/kprobe_empty"; 2], Word),
        displaced(row(
            "kprobe-detour",
            "empty",
            JIT,
            &["kprobe/kprobe_empty"],
            Word,
        )),
        displaced(row(
            "kprobe-detour",
            "count",
            JIT,
            &["kprobe/kprobe_count"],
            Word,
        )),
        breakpoint(row(
            "linux-kprobe",
            "empty",
            JIT,
            &["kprobe/kprobe_empty"],
            None,
        )),
        breakpoint(row(
            "linux-kprobe",
            "count",
            JIT,
            &["kprobe/kprobe_count"],
            None,
        )),
        breakpoint(row(
            "linux-kprobe*2",
            "empty",
            JIT,
            &["kprobe/kprobe_empty"; 2],
            None,
        )),
        breakpoint(row(
            "linux-kretprobe",
            "empty",
            JIT,
            &["kprobe/kretprobe_empty"],
            None,
        )),
        breakpoint(row(
            "linux-kretprobe",
            "count",
            JIT,
            &["kprobe/kretprobe_count"],
            None,
        )),
        row("kretprobe", "empty", JIT, &["kprobe/kretprobe_empty"], Word),
        row("kretprobe", "count", JIT, &["kprobe/kretprobe_count"], Word),
        row(
            "replace",
            "empty",
            By::Function,
            &["workload_call_other"],
            None,
        ),
        row(
            "replace",
            "count",
            By::Function,
            &["workload_call_count"],
            None,
        ),
        row("livepatch", "empty", By::Patch, &["call"], None),
        row("freplace", "empty", JIT, &["replace/empty"], Word),
        row("freplace", "count", JIT, &["replace/count"], Word),
        row("fentry", "ask", JIT, &["hooks/fentry_ask"], Word),
        row(
            "freplace-bpf",
            "empty",
            By::Within,
            &["hooks/fentry_ask", "replace/answer_empty"],
            Word,
        ),
        row(
            "freplace-bpf",
            "count",
            By::Within,
            &["hooks/fentry_ask", "replace/answer_count"],
            Word,
        ),
    ]
};

/// What is measured on the trivial function besides: the ways that Linux has.
pub(super) const LINUX: [Attach<'static>; 39] = {
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
            others: Some(WayIn::Linux(TRAMPOLINE)),
            ..SHARED
        },
        Attach {
            hook: "linux-list+fentry",
            way: WayIn::Linux(LIST),
            others: Some(WayIn::Linux(TRAMPOLINE)),
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
