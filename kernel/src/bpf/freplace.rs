// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function of an attached BPF program by a program of another object (`freplace/FUNCTION`).
//!
//! The two become one program (`bpf_vm::object`, `with_replaced`), which is compiled like any other and takes the place of the first:
//! a new image by one store at the site. What was there goes when nobody can be in it or return into it, as every image does, and its
//! code with it. Both engines run it; a call costs what it cost before.
//!
//! The replacement cannot call what it replaces: it is linked and checked as part of its own object, where that has no name, and Linux's cannot
//! either.
//!
//! Locks: the hooks' one, then [`PLACED`].

use super::attach::{allowed, guarded, needed};
use super::tail::Whole;
use super::{BpfError, Engine, Loaded, runnable};
use crate::hook::{
    self, Change, Function, HookError, HookId, HookInfo, How, Kernel, Mechanism, Point, Protection,
};
use crate::sched::Mutex;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::btf::Btf;
use bpf_vm::object::{self, AttachKind, AttachPoint};
use bpf_vm::program::UncheckedProgram;
use trampoline::program::CONTEXTS;

/// An attached BPF program.
pub(super) struct Placed {
    /// Its hook.
    pub id: HookId,
    /// `OBJECT/PROGRAM`.
    pub spec: String,
    /// The object that it is from.
    pub object: Arc<Loaded>,
    /// Its name there.
    pub name: String,
    /// What runs it.
    pub engine: Engine,
    /// How it is attached.
    pub point: Point,
    /// The protection that was asked for, if one was.
    pub asked: Option<Protection>,
    /// What it is attached to.
    pub function: Function,
    /// What takes the place of functions of it.
    pub replaced: Vec<Replacement>,
}

/// A program in the place of a function.
#[derive(Clone)]
pub(super) struct Replacement {
    id: HookId,
    function: String,
    by: UncheckedProgram,
    spec: String,
}

/// By the numbers of their hooks.
static PLACED: Mutex<BTreeMap<u64, Placed>> = Mutex::empty();

/// Once, before anything is attached.
pub(super) fn init() {
    PLACED.put(Box::new(BTreeMap::new()));
}

/// A program was attached; whoever has seen its hook in a list may have taken it off again already.
pub(super) fn note(placed: Placed) {
    hook::if_attached(placed.id, || PLACED.lock().insert(placed.id.0, placed));
}

/// A hook is off; returns the hooks of what replaced functions of it, which are off with it.
pub(crate) fn forget(id: HookId) -> Vec<HookId> {
    let gone = PLACED.lock().remove(&id.0);
    let replaced = gone.into_iter().flat_map(|gone| gone.replaced);
    replaced.map(|replacement| replacement.id).collect()
}

impl Placed {
    /// The program with these replacements, in the place of what is attached now.
    fn exchange(
        &self,
        engine: &mut trampoline::Engine<Kernel>,
        replaced: &[Replacement],
    ) -> Result<(), HookError> {
        let unfit = |why: String| HookError::Target {
            function: format!("hook {} ({})", self.id, self.spec),
            why,
        };
        let program = self.object.unchecked(&self.name);
        let program = program.ok_or_else(|| unfit("its object has lost it".into()))?;
        let mut program = program.clone();
        for replacement in replaced {
            let with = program.with_replaced(&replacement.function, &replacement.by);
            program = with.map_err(|e| unfit(e.to_string()))?;
        }
        let program = program.validate().map_err(|e| unfit(e.to_string()))?;
        let how = How::Trampoline(self.point.kind);
        let sleepable = self.point.sleepable;
        let whole = Whole::of(&program);
        let allowed = allowed(&self.spec, &whole, how, Some(&self.function), sleepable);
        let point = Point {
            protection: needed(self.asked, &whole),
            ..self.point
        };
        let made = allowed
            .and_then(|()| guarded(&self.spec, &whole, how, point.protection))
            .and_then(|()| runnable(&self.spec, Arc::new(program), self.engine, how.shape()));
        let made = made.map_err(|e| unfit(e.to_string()))?;
        hook::exchange(engine, self.id, &self.function, point, made)
    }
}

/// Puts a program (`OBJECT/PROGRAM`) in the place of a function of the BPF program that is attached as hook `target`; its section says
/// which function.
///
/// # Errors
/// There is no such hook or function; they take or return something else; the function is replaced already; the two together are
/// refused as one program would be. What is attached stays as it was.
pub(crate) fn freplace(spec: &str, target: HookId) -> Result<HookId, BpfError> {
    let (by_object, by) = super::program(spec)?;
    let wrong = || BpfError::Refused {
        object: spec.into(),
        why: format!(
            "its section is {:?}, and only a program in freplace/FUNCTION takes the place of a function of another program",
            by.section()
        ),
    };
    let point = AttachPoint::parse(by.section()).map_err(|_| wrong())?;
    let (AttachKind::Freplace, Some(function)) = (point.kind, point.target) else {
        return Err(wrong());
    };
    let label = format!("{function} of hook {target}");
    let unfit = |why: String| HookError::Target {
        function: label.clone(),
        why,
    };
    let replaced = hook::attach_other(|engine, id| {
        let mut placed = PLACED.lock();
        let placed = placed.get_mut(&target.0);
        let placed = placed.ok_or_else(|| {
            unfit(
                "no BPF program is attached as that hook: it was taken off and its code is being freed, or it never was; \
                 `hooks` lists what is on"
                    .into(),
            )
        })?;
        if let Some(first) = placed.replaced.iter().find(|r| r.function == function) {
            return Err(HookError::Replaced {
                function: label.clone(),
                by: format!("freplace {}", first.spec),
                id: first.id,
            });
        }
        if point.sleepable && !placed.point.sleepable {
            let why = format!("{spec} may block, and {} may not", placed.spec);
            return Err(unfit(why));
        }
        let lost = || unfit(format!("{spec}: its object has lost it"));
        let by = by_object.unchecked(by.name()).ok_or_else(lost)?.clone();
        let mut all = placed.replaced.clone();
        all.push(Replacement {
            id,
            function: function.into(),
            by,
            spec: spec.into(),
        });
        // What is not there has no types.
        let program = placed.object.unchecked(&placed.name).ok_or_else(lost)?;
        if let Some(last) = all.last() {
            let there = program.with_replaced(function, &last.by);
            there.map_err(|e| unfit(e.to_string()))?;
            let types = (types(&placed.object), types(&by_object));
            let (Some(own), Some(others)) = types else {
                return Err(unfit("an object has no types; compile both with -g".into()));
            };
            let same = object::same_types((&own, function), (&others, &last.by.name));
            same.map_err(|e| unfit(e.to_string()))?;
        }
        placed.exchange(engine, &all)?;
        placed.replaced = all;
        let address = placed.function.address as u64;
        let freplaced = Freplaced {
            id,
            target,
            address,
            label: label.clone(),
            spec: spec.into(),
            engine: placed.engine,
        };
        Ok((freplaced, [address].into()))
    });
    replaced.map_err(BpfError::Hook)
}

fn types(object: &Loaded) -> Option<Btf<'_>> {
    Btf::parse(object.types.as_deref()?).ok()
}

/// Among the hooks.
struct Freplaced {
    id: HookId,
    target: HookId,
    /// The function that the program is attached to.
    address: u64,
    label: String,
    spec: String,
    engine: Engine,
}

impl Mechanism for Freplaced {
    fn info(&self) -> HookInfo {
        HookInfo {
            id: self.id,
            function: self.label.clone(),
            kind: "freplace",
            program: self.spec.clone(),
            engine: self.engine.name(),
            sleepable: false,
            misses: [0; CONTEXTS],
            bytes: 0,
            stack_bytes: 0,
        }
    }

    fn covers(&self, function: u64) -> bool {
        function == self.address
    }

    fn changes(&self) -> Vec<Change> {
        Vec::new()
    }

    fn hits(&self) -> Option<u64> {
        None
    }

    fn detach(&mut self, engine: &mut trampoline::Engine<Kernel>) -> Result<(), HookError> {
        let mut placed = PLACED.lock();
        let Some(placed) = placed.get_mut(&self.target.0) else {
            return Ok(());
        };
        let mut rest = placed.replaced.clone();
        rest.retain(|r| r.id != self.id);
        placed.exchange(engine, &rest)?;
        placed.replaced = rest;
        Ok(())
    }
}
