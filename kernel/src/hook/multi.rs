// SPDX-License-Identifier: MIT OR Apache-2.0
//! One program on all functions that fit a pattern, at their entries or when they return.

use super::platform::Kernel;
use super::resolve::inlined;
use super::{
    Change, Function, HookError, HookId, HookInfo, HookedIn, Mechanism, Program, Protection,
    Running,
};
use crate::ksyms::Flags;
use crate::symbols;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use core::fmt;
use trampoline::attach::{AttachId, DetachError};
use trampoline::multi::{self, Target};
use trampoline::{Engine, Reason};

/// How a program is put on many functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Many {
    /// Whether it runs when a function returns, else at its entry.
    pub exit: bool,
    /// What keeps it from running inside itself.
    pub protection: Protection,
}

impl Many {
    fn kind(self) -> &'static str {
        match self.exit {
            true => "kretprobe.multi",
            false => "kprobe.multi",
        }
    }
}

/// Functions that were left out, how many for which reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Skipped(BTreeMap<String, usize>);

impl Skipped {
    fn note(&mut self, why: &str, more: usize) {
        match self.0.get_mut(why) {
            Some(count) => *count += more,
            None if more > 0 => {
                self.0.insert(why.into(), more);
            }
            None => {}
        }
    }

    /// A function is left out if someone else has taken it, or changed its site; returns whether it is.
    pub(super) fn taken(&mut self, reason: &Reason) -> bool {
        match reason {
            Reason::Claimed { by } => self.note(&format!("taken by {by}"), 1),
            Reason::WordAtSite { .. } => self.note("with a site that someone else changed", 1),
            _ => return false,
        }
        true
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.values().sum()
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (why, count)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {why}")?;
        }
        Ok(())
    }
}

/// The functions that a pattern names.
pub(crate) struct Selection {
    /// The pattern.
    pub pattern: String,
    /// Addresses of those that have a site, ascending.
    pub functions: Vec<u64>,
    /// The others.
    pub skipped: Skipped,
    /// What the program is told on each when it asks for its cookie; empty: the same on all.
    pub cookies: Vec<u64>,
}

impl Selection {
    /// One function only.
    pub(crate) fn of(function: &Function) -> Selection {
        Selection {
            pattern: function.name.into(),
            functions: [function.address as u64].into(),
            skipped: Skipped::default(),
            cookies: Vec::new(),
        }
    }

    /// With a cookie for each function, by its address.
    pub(crate) fn with_cookies(self, cookie: impl Fn(u64) -> u64) -> Selection {
        let cookies = self.functions.iter().map(|function| cookie(*function));
        let cookies = cookies.collect();
        Selection { cookies, ..self }
    }
}

/// Whether a function can be hooked so; what speaks against it is greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Site,
    NoSite,
    Notrace,
}

/// The functions that fit `pattern`, in which `*` stands for anything.
///
/// # Errors
/// None fits, or none of those that fit has a site.
pub(crate) fn select(pattern: &str) -> Result<Selection, HookError> {
    let blob = symbols::blob();
    let mut functions: Vec<(u64, Fit)> = Vec::new();
    let matching = blob.into_iter().flat_map(|blob| blob.matching(pattern));
    for symbol in matching {
        let fit = if symbol.flags.contains(Flags::NOTRACE) {
            Fit::Notrace
        } else if symbol.flags.contains(Flags::SITE) {
            Fit::Site
        } else {
            Fit::NoSite
        };
        // Several names may stand at one address, and do one behind the other: a hook must not stand there if one of them says so.
        match functions.last_mut() {
            Some((address, known)) if *address == symbol.address => *known = fit.max(*known),
            _ => functions.push((symbol.address, fit)),
        }
    }
    let mut skipped = Skipped::default();
    let count = |fit| functions.iter().filter(|(_, f)| *f == fit).count();
    skipped.note("on a hook's own path (notrace)", count(Fit::Notrace));
    skipped.note("without a site", count(Fit::NoSite));
    functions.retain(|(_, fit)| *fit == Fit::Site);
    if functions.is_empty() {
        if skipped.count() == 0
            && let Some(error) = blob.and_then(|blob| inlined(blob, pattern))
        {
            return Err(HookError::Name(error));
        }
        let name = pattern.replace('*', "");
        let nearest = blob.map(|blob| blob.nearest::<3>(&name));
        let nearest = nearest.iter().flatten().flatten().map(|s| s.name).collect();
        return Err(HookError::Nothing {
            pattern: pattern.into(),
            nearest,
            skipped,
        });
    }
    Ok(Selection {
        pattern: pattern.into(),
        functions: functions.into_iter().map(|(address, _)| address).collect(),
        skipped,
        cookies: Vec::new(),
    })
}

/// A program on many functions.
struct MultiHook {
    id: AttachId,
    many: Many,
    pattern: String,
    /// Ascending; the engine's own list.
    functions: Arc<[u64]>,
    label: String,
    running: Arc<Running>,
    bytes: usize,
    stack_bytes: usize,
}

impl Mechanism for MultiHook {
    fn info(&self) -> HookInfo {
        HookInfo {
            id: HookId(self.id.number()),
            function: format!("{} ({} functions)", self.pattern, self.functions.len()),
            kind: self.many.kind(),
            program: self.label.clone(),
            engine: self.running.engine,
            sleepable: false,
            misses: self.running.state.misses(),
            bytes: self.bytes,
            stack_bytes: self.stack_bytes,
        }
    }

    fn covers(&self, function: u64) -> bool {
        self.functions.binary_search(&function).is_ok()
    }

    fn changes(&self) -> Vec<Change> {
        Vec::new() // sites only
    }

    fn hits(&self) -> Option<u64> {
        self.running.hits()
    }

    fn detach(&mut self, engine: &mut Engine<Kernel>) -> Result<(), HookError> {
        engine.detach_multi(self.id).map_err(|error| match error {
            DetachError::Unknown { id } => HookError::NoSuchHook(HookId(id.number())),
            DetachError::Stuck { function, reason } => refused(function, reason),
        })
    }
}

fn refused(function: u64, reason: Reason) -> HookError {
    HookError::refused(&symbols::Name(function as usize).function(), reason)
}

/// Puts a program on all functions of a selection; `cookie` is what it is told where the selection says nothing.
///
/// A function that someone else has taken is left out. On any other error none is hooked.
pub(crate) fn attach_multi(
    selection: Selection,
    many: Many,
    cookie: u64,
    program: Program,
) -> Result<HookedIn, HookError> {
    let (label, reads) = (program.label.clone(), program.reads);
    let (callee, running) = program.at(Attachment::NONE, many.protection, false);
    let Selection {
        pattern,
        functions,
        mut skipped,
        cookies,
    } = selection;
    let mut hooked = 0;
    let id = super::attach_other(|engine, _| {
        // In the words of crate::arch::callee::StubData.
        let cookies = cookies.iter().copied().chain(core::iter::repeat(cookie));
        let targets = functions.iter().zip(cookies);
        let targets = targets.map(|(&function, cookie)| Target {
            function,
            data: [cookie, 0, callee.data.unwrap_or(0)],
        });
        let targets: Vec<_> = targets.collect();
        let program = multi::Program {
            exit: many.exit,
            callee,
            reads,
        };
        let id = engine.attach_multi(&targets, program, |reason| skipped.taken(reason));
        let Some(id) = id.map_err(|error| refused(error.function, error.reason))? else {
            return Err(HookError::Nothing {
                pattern: pattern.clone(),
                nearest: Vec::new(),
                skipped: skipped.clone(),
            });
        };
        let attached = engine.multi(id);
        let functions = attached.map_or(Arc::default(), |multi| multi.functions().clone());
        let hooked_functions = functions.to_vec();
        let hook = MultiHook {
            id,
            many,
            pattern,
            label,
            running,
            functions,
            bytes: attached.map_or(0, |multi| multi.bytes() as usize),
            stack_bytes: attached.map_or(0, |multi| multi.stack_bytes() as usize),
        };
        hooked = hook.functions.len();
        Ok((hook, hooked_functions))
    })?;
    Ok(HookedIn {
        id,
        on: format!("{hooked} functions"),
        functions: hooked,
        skipped,
    })
}
