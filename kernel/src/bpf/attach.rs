// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks BPF programs in: the section says by which mechanism, and one place checks what a program may call there.

use super::freplace::{self, Placed};
use super::tail::Whole;
use super::{BpfError, Engine, program, runnable};
use crate::arch::callee::Shape;
use crate::hook::linux::Way;
use crate::hook::{
    self, At, Function, HookError, HookId, HookedIn, How, Point, ProbeWay, Protection, Settings,
    WayIn,
};
use crate::offered;
use crate::targets::{self, Target};
use crate::types;
use alloc::format;
use alloc::string::String;
use bpf_vm::object::{AttachKind, AttachPoint};
use bpf_vm::program::ValidatedProgram;
use trampoline::{Kind, ProbeKind};

/// By which mechanism a program of such a section is hooked in, on its way; `None`: it does not go that way.
fn how(section: AttachKind, way: WayIn) -> Option<How> {
    use AttachKind::{
        Fentry, Fexit, FmodRet, Freplace, Fsession, Kprobe, KprobeMulti, Kretprobe, KretprobeMulti,
    };
    let registers = matches!(section, Kprobe | KprobeMulti);
    let returns = matches!(section, Kretprobe | KretprobeMulti);
    Some(match (way, section) {
        (WayIn::Springboard, Fentry) => How::Trampoline(Kind::Fentry),
        (WayIn::Springboard, Fexit) => How::Trampoline(Kind::Fexit),
        (WayIn::Springboard, FmodRet) => How::Trampoline(Kind::FmodRet),
        (WayIn::Springboard, Fsession) => How::Trampoline(Kind::Fsession),
        (WayIn::Springboard, Freplace) => How::Trampoline(Kind::Freplace),
        (WayIn::Springboard, Kprobe) => How::Probe(ProbeKind::Here, ProbeWay::Detour),
        (WayIn::Springboard, Kretprobe) => How::Probe(ProbeKind::Return, ProbeWay::Detour),
        (WayIn::Springboard, KprobeMulti) => How::Many { exit: false },
        (WayIn::Springboard, KretprobeMulti) => How::Many { exit: true },
        (WayIn::LinuxKprobe, Kprobe) => How::Probe(ProbeKind::Here, ProbeWay::Breakpoint),
        (WayIn::LinuxKprobe, Kretprobe) => How::Probe(ProbeKind::Return, ProbeWay::Breakpoint),
        (WayIn::LinuxKprobe, _) => return None,
        (WayIn::Linux(way), _) => {
            let kind = match (way, section) {
                (Way::Trampoline, Fexit) => Kind::Fexit,
                (Way::Trampoline, FmodRet) => Kind::FmodRet,
                (
                    Way::Trampoline | Way::List { all: false } | Way::CallOps { all: false },
                    Fentry,
                ) => Kind::Fentry,
                (Way::List { all: true } | Way::CallOps { all: true } | Way::Fprobe, _)
                    if registers =>
                {
                    Kind::Fentry
                }
                (Way::FprobeExit, _) if returns => Kind::Fexit,
                _ => return None,
            };
            How::Linux(way, kind)
        }
    })
}

/// Hooks a program onto a function as its section says.
pub(crate) fn attach(spec: &str, function: &Function, engine: Engine) -> Result<HookId, BpfError> {
    let on = |how: How, _: Option<&str>| how.on(*function);
    let hooked = attach_at(spec, engine, WayIn::Springboard, Settings::default(), on)?;
    Ok(hooked.id)
}

/// Hooks a program in. Its section says how, and perhaps where; `at` has the last word. Whether it may block is the section's matter.
pub(crate) fn attach_at(
    spec: &str,
    engine: Engine,
    way: WayIn,
    settings: Settings,
    at: impl FnOnce(How, Option<&str>) -> Result<At, HookError>,
) -> Result<HookedIn, BpfError> {
    let (object, program) = program(spec)?;
    let wrong = || BpfError::WrongWay {
        section: program.section().into(),
        way,
    };
    let point = AttachPoint::parse(program.section()).map_err(|_| wrong())?;
    let section = how(point.kind, way).ok_or_else(wrong)?;
    let at = at(section, point.target).map_err(BpfError::Hook)?;
    let settings = Settings {
        sleepable: point.sleepable,
        ..settings
    };
    let how = at.how();
    let placed = match &at {
        At::Trampoline(function, kind) => Some((*function, *kind)),
        _ => None,
    };
    let whole = Whole::of(&program);
    allowed(
        spec,
        &whole,
        how,
        placed.as_ref().map(|(f, _)| f),
        settings.sleepable,
    )?;
    // What has the last word must not make another context of it.
    if at.how().shape() != section.shape() {
        return Err(wrong());
    }
    fits(spec, &whole, &at)?;
    may_override(spec, &whole, &at)?;
    let protection = match way {
        WayIn::Springboard => needed(settings.protection, &whole),
        // Linux's guards are part of its ways.
        WayIn::LinuxKprobe | WayIn::Linux(_) => settings.protection.unwrap_or_default(),
    };
    guarded(spec, &whole, how, protection)?;
    let asked = settings.protection;
    let settings = Settings {
        protection: Some(protection),
        ..settings
    };
    let name = program.name().into();
    let program = runnable(spec, program, engine, at.shape())?;
    let hooked = hook::hook_in(at, settings, program).map_err(BpfError::Hook)?;
    if let Some((function, kind)) = placed {
        freplace::note(Placed {
            id: hooked.id,
            spec: spec.into(),
            object,
            name,
            engine,
            point: Point {
                kind,
                sleepable: settings.sleepable,
                protection,
                cookie: settings.cookie,
            },
            asked,
            function,
            replaced: alloc::vec::Vec::new(),
        });
    }
    Ok(hooked)
}

/// Linux's number of `bpf_override_return`.
const OVERRIDE_RETURN: u32 = 58;

/// Whether a program, or what it may become, has its function return at once only where that can be had: the exception handler of a BRK at
/// a function's entry can, and the function must allow it.
fn may_override(spec: &str, whole: &Whole<'_>, at: &At) -> Result<(), BpfError> {
    let overrides = |program: &ValidatedProgram| {
        let mut calls = program
            .instructions()
            .iter()
            .filter_map(|i| program.called(i.op));
        calls.any(|helper| helper.number == OVERRIDE_RETURN)
    };
    if !whole.programs().any(overrides) {
        return Ok(());
    }
    let refused =
        |function: String, why: String| Err(BpfError::Hook(HookError::Target { function, why }));
    match at {
        At::Probe(place, ProbeKind::Here, ProbeWay::Breakpoint) if place.offset == 0 => {
            let name = place.function.name;
            match targets::is(name, Target::Overridable) {
                true => Ok(()),
                false => {
                    let why = targets::missing(Target::Overridable, "bpf_override_return changes what it returns");
                    refused(name.into(), why)
                }
            }
        }
        _ => refused(
            spec.into(),
            "it calls bpf_override_return, which takes a kprobe at a function's entry by linux-kprobe; a program in fmod_ret/... skips a \
             function too"
                .into(),
        ),
    }
}

/// What keeps a program from running inside itself, if nothing else is asked for. One that calls nothing reaches no site, so it needs
/// nothing: neither can it recurse, nor is it moved in the middle of anything that belongs to a core.
pub(super) fn needed(asked: Option<Protection>, whole: &Whole<'_>) -> Protection {
    let calls = |program: &ValidatedProgram| program.callable().next().is_some();
    asked.unwrap_or_else(|| match whole.programs().any(calls) {
        true => Protection::default(),
        false => Protection::None,
    })
}

/// Whether a program has a guard, hooked in so, if it or what it may become calls what may bring it back to itself.
pub(super) fn guarded(
    spec: &str,
    whole: &Whole<'_>,
    how: How,
    protection: Protection,
) -> Result<(), BpfError> {
    if how.is_guarded(protection) || !whole.programs().any(offered::reaches_a_site) {
        return Ok(());
    }
    let why = format!(
        "the program calls springboard_workload_call, which calls a function that can be hooked, and with the guard {} nothing would \
         turn it away when that is its own: attach it with the guard word or context, or with none named",
        protection.name()
    );
    let object = spec.into();
    Err(BpfError::Refused { object, why })
}

/// Whether a program, and what it may become, reads no more of its context than there is at this place.
fn fits(spec: &str, whole: &Whole<'_>, at: &At) -> Result<(), BpfError> {
    let (function, kind) = match at {
        At::Trampoline(function, kind) => (function, *kind),
        At::Linux(functions, way, kind) if way.shape(*kind) != Shape::Registers => {
            match functions.first() {
                Some(function) => (function, *kind),
                None => return Ok(()),
            }
        }
        // All registers are there, for whoever reads on to find nothing of the function's.
        _ => return Ok(()),
    };
    let arguments = types::arguments(function.name);
    let there = match at {
        At::Linux(_, Way::List { .. } | Way::CallOps { .. }, _) => arguments.registers(),
        _ => arguments.words(),
    };
    let results = match kind {
        Kind::Fexit | Kind::FmodRet | Kind::Fsession => arguments.results().max(1),
        Kind::Fentry | Kind::Freplace => 0,
    };
    let words = u32::from(there) + u32::from(results);
    for program in whole.programs() {
        // Of one that reads by an index nothing is known here: it reads what it likes, as it always did.
        let reads = program
            .context_words()
            .map_or(0, |read| 64 - read.leading_zeros());
        if reads > words {
            let why = format!(
                "program {spec} reads word {} of its context, and there are {words} (0 to {}): {there} of arguments and {results} of \
                 the result; read what the function has, or attach it to a function that has more",
                reads - 1,
                i64::from(words) - 1,
            );
            let function = function.name.into();
            return Err(BpfError::Hook(HookError::Target { function, why }));
        }
    }
    Ok(())
}

/// Whether a program, and what it may become, may call what it calls, hooked in so.
pub(super) fn allowed(
    spec: &str,
    whole: &Whole<'_>,
    how: How,
    function: Option<&Function>,
    sleepable: bool,
) -> Result<(), BpfError> {
    let mut all = whole.programs();
    all.try_for_each(|program| may_call(spec, program, how, function, sleepable))
}

/// As [`allowed`], of one program: what a session or a replacement calls looks at a context that only those have.
fn may_call(
    spec: &str,
    program: &ValidatedProgram,
    how: How,
    function: Option<&Function>,
    sleepable: bool,
) -> Result<(), BpfError> {
    let refused = |why| {
        let object = spec.into();
        Err(BpfError::Refused { object, why })
    };
    if how != How::Trampoline(Kind::Fsession) && offered::asks_for_session(program) {
        return refused(
            "the program calls bpf_session_*, which only programs in fsession/... may".into(),
        );
    }
    if !offered::asks_for_original(program) {
        return Ok(());
    }
    let Some(function) = function.filter(|_| how == How::Trampoline(Kind::Freplace)) else {
        return refused(
            "the program calls springboard_call_original, which only programs in freplace/... may"
                .into(),
        );
    };
    if !sleepable && targets::is(function.name, Target::Sleepable) {
        return refused(format!(
            "the program calls the original, {} may block, and a program may block only in freplace.s/...",
            function.name
        ));
    }
    Ok(())
}
