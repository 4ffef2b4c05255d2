// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks BPF programs in: the section says by which mechanism, and one place checks what a program may call there.

use super::freplace::{self, Placed};
use super::{BpfError, Engine, program, runnable};
use crate::hook::linux::Way;
use crate::hook::{
    self, At, Function, HookError, HookId, HookedIn, How, Point, ProbeWay, Settings, WayIn,
};
use crate::offered;
use crate::targets::{self, Target};
use alloc::format;
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
    let how = how(point.kind, way).ok_or_else(wrong)?;
    let at = at(how, point.target).map_err(BpfError::Hook)?;
    let settings = Settings {
        sleepable: point.sleepable,
        ..settings
    };
    let how = at.how();
    let placed = match &at {
        At::Trampoline(function, kind) => Some((*function, *kind)),
        _ => None,
    };
    allowed(
        spec,
        &program,
        how,
        placed.as_ref().map(|(f, _)| f),
        settings.sleepable,
    )?;
    let name = program.name().into();
    let program = runnable(spec, program, engine, how.shape())?;
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
                protection: settings.protection,
                cookie: settings.cookie,
            },
            function,
            replaced: alloc::vec::Vec::new(),
        });
    }
    Ok(hooked)
}

/// Whether a program may call what it calls, hooked in so: what a session or a replacement calls looks at a context that only those have.
pub(super) fn allowed(
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
