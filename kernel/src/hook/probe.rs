// SPDX-License-Identifier: MIT OR Apache-2.0
//! Probes: programs at any instruction, or at a function's return, as hooks of this kernel.

use super::breakpoint;
use super::{
    Change, HookError, HookId, HookInfo, Kernel, Mechanism, Point, Program, Running, attach_other,
};
use crate::ksyms::{Flags, Symbol};
use crate::symbols;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use trampoline::attach::DetachError;
use trampoline::{AttachId, Engine, ProbeKind, Spot};

/// An instruction of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// The function.
    pub function: Symbol<'static>,
    /// How far behind its entry the instruction lies, in bytes.
    pub offset: u64,
}

impl Place {
    /// The place at an offset of the function that begins at an address.
    pub(crate) fn of(function: usize, offset: u64) -> Option<Place> {
        let (function, _) = symbols::blob()?.lookup(function as u64)?;
        Some(Place { function, offset })
    }

    /// Address of the instruction.
    pub(crate) fn address(&self) -> u64 {
        self.function.address.wrapping_add(self.offset)
    }

    /// The function's code.
    pub(crate) fn code(&self) -> core::ops::Range<u64> {
        let start = self.function.address;
        start..start.wrapping_add(self.function.size.into())
    }

    pub(super) fn spot(&self) -> Spot {
        Spot {
            at: self.address(),
            function: self.code(),
        }
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> String {
        match self.offset {
            0 => self.function.name.into(),
            offset => format!("{}+{offset:#x}", self.function.name),
        }
    }

    /// Code that is no compiled function's, or that changes code itself, is not displaced.
    fn check(&self) -> Result<(), HookError> {
        /// Beginnings of names, and what is the matter with these functions.
        const NAMES: [(&str, &str); 5] = [
            (
                "springboard::arch::code::",
                "it changes code: it would be executing what it changes; probe what calls it",
            ),
            (
                "<springboard::hook::platform::Kernel as trampoline::platform::Platform>::",
                "it changes code, and what does that may be compiled into it; probe what calls it",
            ),
            (
                "springboard::mm::table::",
                "the page tables change around each word of code that is written; probe what calls it",
            ),
            (
                "springboard::arch::rendezvous::",
                "all cores wait in it while code is changed; probe what calls it",
            ),
            (
                "__aarch64_",
                "it is written in assembly (an outlined atomic), and keeps registers by rules of its own; probe its callers",
            ),
        ];
        // Names of one address share the first one's flags.
        let first = symbols::blob().and_then(|blob| blob.lookup(self.function.address));
        let flags = first.map_or(self.function.flags, |(symbol, _)| symbol.flags);
        let why = if flags.contains(Flags::LABEL) {
            Some(
                "it is written in assembly, where registers and stack keep no rules that a probe knows; probe its callers",
            )
        } else if flags.contains(Flags::SYNTHETIC) {
            Some(
                "the linker or the compiler's outliner made it, a piece of several functions; probe these",
            )
        } else {
            let name = self.function.name;
            let found = NAMES.iter().find(|(start, _)| name.starts_with(start));
            found.map(|(_, why)| *why)
        };
        match why {
            None => Ok(()),
            Some(why) => Err(HookError::Target {
                function: self.name(),
                why: why.into(),
            }),
        }
    }
}

/// How a probe is put on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Way {
    /// By the site, or by displacing the instruction.
    #[default]
    Detour,
    /// By a BRK in its place, or at the function's entry, as Linux does it.
    Breakpoint,
}

/// A program at a probe.
struct Probe {
    place: Place,
    kind: ProbeKind,
    id: AttachId,
    label: String,
    running: Arc<Running>,
    /// When it was put on; programs at one place share a probe, which may have grown since.
    bytes: usize,
    stack_bytes: usize,
}

impl Mechanism for Probe {
    fn info(&self) -> HookInfo {
        HookInfo {
            id: HookId(0),
            function: self.place.name(),
            kind: self.kind.name(),
            program: self.label.clone(),
            engine: self.running.engine,
            sleepable: self.running.sleepable,
            misses: self.running.state.misses(),
            bytes: self.bytes,
            stack_bytes: self.stack_bytes,
        }
    }

    fn covers(&self, function: u64) -> bool {
        self.place.function.address == function
    }

    fn without_site(&self) -> Option<u64> {
        Some(self.place.function.address)
    }

    // The engine accounts for displaced instructions.
    fn changes(&self) -> Vec<Change> {
        Vec::new()
    }

    fn hits(&self) -> Option<u64> {
        self.running.hits()
    }

    fn detach(&mut self, engine: &mut Engine<Kernel>) -> Result<(), HookError> {
        engine.unprobe(self.id).map_err(|error| match error {
            DetachError::Unknown { id } => HookError::NoSuchHook(HookId(id.number())),
            DetachError::Stuck { reason, .. } => HookError::refused(&self.place.name(), reason),
        })
    }
}

/// Hooks a program, whose context is the registers, onto an instruction or onto the return of the function whose entry that is.
pub(crate) fn attach_probe(
    place: &Place,
    kind: ProbeKind,
    way: Way,
    point: Point,
    program: Program,
) -> Result<HookId, HookError> {
    place.check()?;
    let place = *place;
    let attachment = Attachment {
        // As for Linux's: within a function there is no address of a function.
        function: if place.offset == 0 {
            place.address()
        } else {
            0
        },
        cookie: point.cookie,
        arguments: 0,
        has_result: 0,
    };
    if way == Way::Breakpoint {
        let functions = [place.function.address].into();
        return attach_other(move |engine, id| {
            let probe = breakpoint::Probe::attach(engine, id, place, kind, attachment, program)?;
            Ok((probe, functions))
        });
    }
    let label = program.label.clone();
    let (callee, running) = program.at(attachment, point.protection, false);
    attach_other(move |engine, _| {
        let id = engine.probe(&place.spot(), kind, callee);
        let id = id.map_err(|e| HookError::refused(&place.name(), e.reason))?;
        let there = engine.probes().find(|probe| probe.id == id);
        let (bytes, stack_bytes) = there.map_or((0, 0), |p| (p.image_bytes, p.stack_bytes));
        let probe = Probe {
            place,
            kind,
            id,
            label,
            running,
            bytes: bytes as usize,
            stack_bytes: stack_bytes as usize,
        };
        Ok((probe, [place.function.address].into()))
    })
}
