// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ways that the torture run hooks something in by, and the program of programs/torture.bpf.c for each.

use super::ledger::Entry;
use crate::arch::callee::Shape;

use crate::hook::linux::Way as LinuxWay;
use crate::hook::{How, ProbeWay, WayIn};
use trampoline::{Kind, ProbeKind};

/// How something is hooked in, for the summary.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    In(How),
    /// Whichever of Linux's.
    Linux,
    Replace,
    /// A function of a BPF program that is hooked in.
    Freplace,
    LivePatch,
}

/// At a function, in its trampoline or by a probe; the first may skip it.
const SINGLES: [How; 6] = [
    How::Trampoline(Kind::FmodRet),
    How::Trampoline(Kind::Fentry),
    How::Trampoline(Kind::Fexit),
    How::Trampoline(Kind::Fsession),
    How::Probe(ProbeKind::Here, ProbeWay::Detour),
    How::Probe(ProbeKind::Return, ProbeWay::Detour),
];

/// The Linux way. A function's tracers must all find their ops the same way, so each function has one of these rows.
///
/// When another program joins, Linux's image leaves out the exits of calls that are under way, and counts nothing: of fexit only those calls are
/// checked during which nothing changed on the function.
const LINUX: [&[How]; 5] = [
    &[
        How::Linux(LinuxWay::Trampoline, Kind::FmodRet),
        How::Linux(LinuxWay::Trampoline, Kind::Fentry),
        How::Linux(LinuxWay::Trampoline, Kind::Fexit),
    ],
    &[
        How::Linux(LinuxWay::Trampoline, Kind::Fentry),
        How::Linux(LinuxWay::List { all: false }, Kind::Fentry),
    ],
    &[
        How::Linux(LinuxWay::List { all: false }, Kind::Fentry),
        How::Linux(LinuxWay::List { all: true }, Kind::Fentry),
    ],
    &[
        How::Linux(LinuxWay::CallOps { all: false }, Kind::Fentry),
        How::Linux(LinuxWay::CallOps { all: true }, Kind::Fentry),
        How::Linux(LinuxWay::Fprobe, Kind::Fentry),
        How::Linux(LinuxWay::FprobeExit, Kind::Fexit),
    ],
    &[
        How::Probe(ProbeKind::Here, ProbeWay::Breakpoint),
        How::Probe(ProbeKind::Return, ProbeWay::Breakpoint),
    ],
];

/// All ways, with the words of the summary.
pub(super) const WAYS: [(Way, &str); 12] = [
    (Way::In(SINGLES[0]), "fmod_ret"),
    (Way::In(SINGLES[1]), "fentry"),
    (Way::In(SINGLES[2]), "fexit"),
    (Way::In(SINGLES[3]), "fsession"),
    (Way::In(SINGLES[4]), "kprobe"),
    (Way::In(SINGLES[5]), "kretprobe"),
    (Way::In(How::Many { exit: false }), "multi-entry"),
    (Way::In(How::Many { exit: true }), "multi-exit"),
    (Way::Linux, "the Linux way"),
    (Way::Replace, "replace"),
    (Way::Freplace, "freplace"),
    (Way::LivePatch, "live patch"),
];

impl Way {
    pub(super) fn of(how: How) -> Way {
        match how {
            How::Linux(..) | How::Probe(_, ProbeWay::Breakpoint) => Way::Linux,
            how => Way::In(how),
        }
    }
}

/// Whether a hook may miss calls, which it counts.
pub(super) fn may_miss(how: How) -> bool {
    let returns = How::Probe(ProbeKind::Return, ProbeWay::Detour);
    Way::of(how) == Way::Linux || [returns, How::Many { exit: true }].contains(&how)
}

/// Whether a hook is left out of calls that are under way while something else changes on its function ([`LINUX`]).
pub(super) fn by_image(how: How) -> bool {
    how == How::Linux(LinuxWay::Trampoline, Kind::Fexit)
}

/// Whether the program runs when the function has returned, with registers as its context.
pub(super) fn returned(how: How) -> bool {
    match how {
        How::Many { exit } => exit,
        How::Probe(kind, _) => kind == ProbeKind::Return,
        How::Linux(way, _) => way == LinuxWay::FprobeExit,
        How::Trampoline(_) => false,
    }
}

/// The program of programs/torture.bpf.c that goes that way.
pub(super) fn program(how: How, sleepable: bool) -> Option<&'static str> {
    Some(match (how, sleepable) {
        (How::Trampoline(Kind::Fentry), false) => "torture/at_entry",
        (How::Trampoline(Kind::Fentry), true) => "torture/at_entry_sleepable",
        (How::Trampoline(Kind::Fexit), false) => "torture/at_exit",
        (How::Trampoline(Kind::Fexit), true) => "torture/at_exit_sleepable",
        (How::Trampoline(Kind::Fsession), false) => "torture/at_session",
        (How::Trampoline(Kind::FmodRet), false) => "torture/at_modify",
        (How::Probe(ProbeKind::Here, _), _) => "torture/at_probe",
        (How::Probe(ProbeKind::Return, _), _) => "torture/at_probe_return",
        (How::Many { exit: false }, _) => "torture/at_many",
        (How::Many { exit: true }, _) => "torture/at_many_return",
        (How::Linux(LinuxWay::Trampoline, Kind::Fexit), _) => "torture/at_exit",
        (How::Linux(LinuxWay::Trampoline, Kind::FmodRet), _) => "torture/at_modify",
        (How::Linux(LinuxWay::FprobeExit, _), _) => "torture/at_probe_return",
        (How::Linux(way, kind), _) => match way.shape(kind) {
            Shape::Registers => "torture/at_probe",
            _ => "torture/at_entry",
        },
        _ => return None,
    })
}

/// The way of such a program's section that leads there.
pub(super) fn way_in(how: How) -> WayIn {
    match how {
        How::Linux(way, _) => WayIn::Linux(way),
        How::Probe(_, ProbeWay::Breakpoint) => WayIn::LinuxKprobe,
        _ => WayIn::Springboard,
    }
}

/// What takes the place of the function `mark` of those programs that go by a trampoline.
pub(super) const OTHER_MARK: &str = "torture_replace/other_mark";

/// The ways that a function may be hooked in at a place of its own. One program a function may skip it, or the ones behind it would
/// not be asked; tracers of the Linux way go by the function's row.
pub(super) fn hows(entry: &Entry, (function, number): (usize, usize)) -> &'static [How] {
    let row = match entry.function.is_linux() {
        true => LINUX.get(function % LINUX.len()).copied(),
        false => Some(&SINGLES[..]),
    };
    let row = row.unwrap_or_default();
    match row {
        [
            How::Trampoline(Kind::FmodRet) | How::Linux(_, Kind::FmodRet),
            rest @ ..,
        ] if number != 0 => rest,
        row => row,
    }
}
