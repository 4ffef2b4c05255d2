// SPDX-License-Identifier: MIT OR Apache-2.0
//! One program on all functions that fit a pattern, at their entries or when they return.

use super::native::Native;
use super::platform::Kernel;
use super::{Change, HookError, HookId, HookInfo, Mechanism, Program, Protection, Running};
use crate::arch::callee::{NativeHook, Shape};
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
use trampoline::registers::Words;
use trampoline::{Engine, Reason};

/// How a program is put on many functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Many {
    /// Whether it runs when a function returns, else at its entry.
    pub exit: bool,
    /// What keeps it from running inside itself.
    pub protection: Protection,
    /// What it may read of its context, the registers.
    pub reads: Words,
}

impl Many {
    /// At the entry, or the exit; guarded, all registers stored.
    pub(crate) const fn at(exit: bool) -> Many {
        Many {
            exit,
            protection: Protection::Program,
            reads: Words::ALL,
        }
    }

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
    fn note(&mut self, why: &str) {
        match self.0.get_mut(why) {
            Some(count) => *count += 1,
            None => {
                self.0.insert(why.into(), 1);
            }
        }
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
}

/// The functions that fit `pattern`, in which `*` stands for anything.
///
/// # Errors
/// None fits, or none of those that fit has a site.
pub(crate) fn select(pattern: &str) -> Result<Selection, HookError> {
    let blob = symbols::blob();
    let mut functions = BTreeMap::new();
    let matching = blob.into_iter().flat_map(|blob| blob.symbols());
    for symbol in matching.filter(|symbol| crate::ksyms::glob(pattern, symbol.name)) {
        // Several names may stand at one address: a hook must not stand there if one of them says so.
        let why = if symbol.flags.contains(Flags::NOTRACE) {
            Some("on a hook's own path (notrace)")
        } else if symbol.flags.contains(Flags::SITE) {
            None
        } else {
            Some("without a site")
        };
        let known = functions.entry(symbol.address).or_insert(why);
        *known = known.or(why);
    }
    let mut skipped = Skipped::default();
    functions
        .values()
        .flatten()
        .for_each(|why| skipped.note(why));
    functions.retain(|_, why| why.is_none());
    if functions.is_empty() {
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
        functions: functions.into_keys().collect(),
        skipped,
    })
}

/// What was hooked.
pub(crate) struct AttachedMany {
    /// The hook.
    pub id: HookId,
    /// How many functions.
    pub functions: usize,
    /// Those that fit the pattern and could not be hooked.
    pub skipped: Skipped,
}

/// A program on many functions.
struct MultiHook {
    id: AttachId,
    many: Many,
    pattern: String,
    /// Ascending.
    functions: Vec<u64>,
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

/// Puts a program on all functions of a selection; `cookie` says what it is told on each.
///
/// A function that someone else has taken is left out. On any other error none is hooked.
pub(crate) fn attach_multi(
    selection: Selection,
    many: Many,
    cookie: impl Fn(u64) -> u64,
    program: Program,
) -> Result<AttachedMany, HookError> {
    let label = program.label.clone();
    let (callee, running) = program.at(Attachment::NONE, many.protection, false);
    let Selection {
        pattern,
        functions,
        mut skipped,
    } = selection;
    let mut hooked = 0;
    let id = super::attach_other(|engine, _| {
        // In the words of crate::arch::callee::StubData.
        let targets = functions.iter().map(|&function| Target {
            function,
            data: [cookie(function), 0, callee.data.unwrap_or(0)],
        });
        let targets: Vec<_> = targets.collect();
        let program = multi::Program {
            exit: many.exit,
            callee,
            reads: many.reads,
        };
        let id = engine.attach_multi(&targets, program, |reason| match reason {
            Reason::Claimed { by } => {
                skipped.note(&format!("taken by {by}"));
                true
            }
            Reason::WordAtSite { .. } => {
                skipped.note("with a site that someone else changed");
                true
            }
            _ => false,
        });
        let Some(id) = id.map_err(|error| refused(error.function, error.reason))? else {
            return Err(HookError::Nothing {
                pattern: pattern.clone(),
                nearest: Vec::new(),
                skipped: skipped.clone(),
            });
        };
        let attached = engine.multi(id);
        let hooked_functions = attached.map_or(Vec::new(), |multi| multi.functions().to_vec());
        let hook = MultiHook {
            id,
            many,
            pattern,
            label,
            running,
            functions: hooked_functions.clone(),
            bytes: attached.map_or(0, |multi| multi.bytes() as usize),
            stack_bytes: attached.map_or(0, |multi| multi.stack_bytes() as usize),
        };
        hooked = hook.functions.len();
        Ok((hook, hooked_functions))
    })?;
    Ok(AttachedMany {
        id,
        functions: hooked,
        skipped,
    })
}

/// As [`attach_multi`], of a hook written in Rust.
pub(crate) fn attach_multi_hook<T: NativeHook>(
    selection: Selection,
    many: Many,
    cookie: impl Fn(u64) -> u64,
    label: String,
    hook: Arc<T>,
) -> Result<AttachedMany, HookError> {
    let program = Program::native(label, hook, Shape::Many);
    attach_multi(selection, many, cookie, program)
}

/// Puts one of the native hooks on all functions of a selection.
pub(crate) fn attach_multi_native(
    selection: Selection,
    many: Many,
    which: Native,
) -> Result<AttachedMany, HookError> {
    attach_multi(selection, many, |_| 0, which.program(Shape::Many))
}
