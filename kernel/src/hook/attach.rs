// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one way in: hooks a program in wherever and however a section, a command or a row of the table says.

use super::linux::{self, Way};
use super::{
    Function, HookError, HookId, Many, Place, Point, ProbeWay, Program, Protection, ResolveError,
    Selection, Skipped, attach, attach_multi, attach_probe, resolve, resolve_place, select,
};
use crate::arch::callee::Shape;
use alloc::string::String;
use alloc::vec::Vec;
use trampoline::{Kind, ProbeKind};

/// Which way a hook goes that may go several.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum WayIn {
    /// Springboard's.
    #[default]
    Springboard,
    /// A BRK at the instruction, as Linux's kprobes.
    LinuxKprobe,
    /// Another one of Linux's.
    Linux(Way),
}

impl WayIn {
    /// The word for the shell; none for Springboard's.
    pub(crate) fn name(self) -> &'static str {
        match self {
            WayIn::Springboard => "",
            WayIn::LinuxKprobe => "linux-kprobe",
            WayIn::Linux(way) => way.name(),
        }
    }

    /// What keeps a program from running inside itself: the word for tables.
    pub(crate) fn guard(self, protection: Protection) -> &'static str {
        match self {
            WayIn::Springboard => protection.name(),
            WayIn::LinuxKprobe => "core",
            WayIn::Linux(way) => way.guard(protection),
        }
    }

    /// Where this way leads for a program of no section, at a function's entry.
    pub(crate) fn entry(self) -> How {
        match self {
            WayIn::Springboard => How::Trampoline(Kind::Fentry),
            WayIn::LinuxKprobe => How::Probe(ProbeKind::Here, ProbeWay::Breakpoint),
            WayIn::Linux(Way::FprobeExit) => How::Linux(Way::FprobeExit, Kind::Fexit),
            WayIn::Linux(way) => How::Linux(way, Kind::Fentry),
        }
    }
}

/// By which mechanism, wherever that will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    /// The function's trampoline.
    Trampoline(Kind),
    /// A probe of an instruction, or of a function's return.
    Probe(ProbeKind, ProbeWay),
    /// Stubs of many functions, at their entries or exits.
    Many {
        /// At the exits.
        exit: bool,
    },
    /// One of Linux's ways.
    Linux(Way, Kind),
}

impl How {
    /// What a program's context is.
    pub(crate) fn shape(self) -> Shape {
        match self {
            How::Trampoline(kind) => Shape::of(kind),
            How::Probe(..) => Shape::Registers,
            How::Many { .. } => Shape::Many,
            How::Linux(way, kind) => way.shape(kind),
        }
    }

    /// Whether a program that is hooked in so is turned away while it is active itself, whatever it calls.
    pub(crate) fn is_guarded(self, protection: Protection) -> bool {
        match self {
            // Linux's guards are part of these ways, whatever is asked for.
            How::Probe(_, ProbeWay::Breakpoint) => true,
            How::Linux(
                Way::List { .. } | Way::CallOps { .. } | Way::Fprobe | Way::FprobeExit,
                _,
            ) => true,
            How::Trampoline(_)
            | How::Probe(_, ProbeWay::Detour)
            | How::Many { .. }
            | How::Linux(Way::Trampoline, _) => {
                matches!(protection, Protection::Program | Protection::Context)
            }
        }
    }

    /// At what a name stands for: a function, an instruction (`FUNCTION+OFFSET`), or all functions that a pattern fits (of Linux's
    /// ways by fprobe).
    pub(crate) fn at(self, name: &str) -> Result<At, HookError> {
        match self {
            How::Probe(kind, way) => {
                let place = resolve_place(name).map_err(HookError::Name)?;
                Ok(At::Probe(place, kind, way))
            }
            How::Many { exit } => Ok(At::Many(select(name)?, exit)),
            How::Linux(way @ (Way::Fprobe | Way::FprobeExit), kind) if name.contains('*') => {
                Ok(At::LinuxMany(select(name)?, way, kind))
            }
            How::Trampoline(_) | How::Linux(..) => self.on(resolve(name).map_err(HookError::Name)?),
        }
    }

    /// At a function.
    pub(crate) fn on(self, function: Function) -> Result<At, HookError> {
        Ok(match self {
            How::Trampoline(kind) => At::Trampoline(function, kind),
            How::Probe(kind, way) => {
                let place = Place::of(function.address, 0);
                let place = place.ok_or(HookError::Name(ResolveError::NoSymbols))?;
                At::Probe(place, kind, way)
            }
            How::Many { exit } => At::Many(Selection::of(&function), exit),
            How::Linux(way, kind) => At::Linux([function].into(), way, kind),
        })
    }
}

/// By which mechanism, and where.
pub(crate) enum At {
    /// At a function.
    Trampoline(Function, Kind),
    /// At an instruction.
    Probe(Place, ProbeKind, ProbeWay),
    /// At all of these functions; at their exits, or else entries.
    Many(Selection, bool),
    /// At all of these functions.
    Linux(Vec<Function>, Way, Kind),
    /// At all functions that a pattern fits, by fprobe.
    LinuxMany(Selection, Way, Kind),
}

impl At {
    /// By which mechanism.
    pub(crate) fn how(&self) -> How {
        match self {
            At::Trampoline(_, kind) => How::Trampoline(*kind),
            At::Probe(_, kind, way) => How::Probe(*kind, *way),
            At::Many(_, exit) => How::Many { exit: *exit },
            At::Linux(_, way, kind) | At::LinuxMany(_, way, kind) => How::Linux(*way, *kind),
        }
    }

    /// What a program's context is there.
    pub(crate) fn shape(&self) -> Shape {
        match self {
            At::LinuxMany(..) => Shape::Many,
            _ => self.how().shape(),
        }
    }
}

/// What is the caller's choice, wherever it is hooked in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    /// Whether the program may block.
    pub sleepable: bool,
    /// What keeps it from running inside itself; `None`: what it needs.
    pub protection: Option<Protection>,
    /// What it is told when it asks for its cookie.
    pub cookie: u64,
}

/// What was hooked in.
pub(crate) struct HookedIn {
    /// Its number.
    pub id: HookId,
    /// Where, for people.
    pub on: String,
    /// How many functions it hooks.
    pub functions: usize,
    /// Those that a pattern fits and that could not be hooked.
    pub skipped: Skipped,
}

/// Hooks a program in. Its context has the shape that [`At::shape`] says.
pub(crate) fn hook_in(
    spot: At,
    settings: Settings,
    program: Program,
) -> Result<HookedIn, HookError> {
    let Settings {
        sleepable,
        protection,
        cookie,
    } = settings;
    let protection = protection.unwrap_or_default();
    let point = |kind| Point {
        kind,
        sleepable,
        protection,
        cookie,
    };
    let one = |id, on: String| HookedIn {
        id,
        on,
        functions: 1,
        skipped: Skipped::default(),
    };
    match spot {
        At::Trampoline(function, kind) => {
            let id = attach(&function, point(kind), program)?;
            Ok(one(id, function.name.into()))
        }
        At::Probe(place, kind, way) => {
            let id = attach_probe(&place, kind, way, point(Kind::Fentry), program)?;
            Ok(one(id, place.name()))
        }
        At::Many(selection, exit) => {
            attach_multi(selection, Many { exit, protection }, cookie, program)
        }
        At::Linux(functions, way, kind) => {
            let id = linux::attach(&functions, way, point(kind), program)?;
            let names: Vec<_> = functions.iter().map(|function| function.name).collect();
            Ok(HookedIn {
                functions: names.len(),
                ..one(id, names.join(", "))
            })
        }
        At::LinuxMany(selection, way, kind) => {
            linux::attach_multi(selection, way, point(kind), program)
        }
    }
}
