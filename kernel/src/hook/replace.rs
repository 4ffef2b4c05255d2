// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel function by another one: its site leads there, behind whatever is hooked on it.
//!
//! The replacement is called as the function was: its arguments, its caller, its stack. Hooks of the function see each call once, on its
//! way to the replacement; hooks of the replacement see it too, for it is called by its own entry. The original stands where it was:
//! [`ExternC::past_site`](crate::arch::callee::ExternC::past_site) calls it.
//!
//! Both are parts of the image, which is never freed, so nothing waits for a grace period. Who has begun in one of them
//! ends in it; where that matters, or several functions have to change together, it takes a live patch (`livepatch.rs`).

use super::platform::Kernel;
use super::{Change, Function, HookError, HookId, HookInfo, Mechanism, attach_other};
use crate::targets::{self, Target};
use crate::types;
use alloc::format;
use alloc::vec::Vec;
use trampoline::Engine;
use trampoline::program::CONTEXTS;

/// Replaces `function` by `by`, now and for all.
///
/// # Errors
/// It is not marked for that; they take or return something else; it is replaced already, or `by` is, in the end by it.
pub(crate) fn replace(function: &Function, by: &Function) -> Result<HookId, HookError> {
    let (function, by) = (*function, *by);
    attach_other(|engine, id| {
        check(engine, &function, &by)?;
        let [address, to] = [function.address, by.address].map(|a| a as u64);
        let replaced = engine.replace(address, Some(to));
        replaced.map_err(|e| HookError::refused(function.name, e.reason))?;
        Ok((Replaced { id, function, by }, [address].into()))
    })
}

/// Whether `function` may be replaced by `by`.
pub(super) fn check(
    engine: &Engine<Kernel>,
    function: &Function,
    by: &Function,
) -> Result<(), HookError> {
    let unfit = |why| HookError::Target {
        function: function.name.into(),
        why,
    };
    if !targets::is(function.name, Target::Overridable) {
        let why = targets::missing(Target::Overridable, "something else would run in its place");
        return Err(unfit(why));
    }
    // Who calls `by` may end up here again: behind its site stands what replaces it.
    let replaced_by = |address: &u64| engine.replacement(*address);
    let mut way = core::iter::successors(Some(by.address as u64), replaced_by);
    if way.any(|address| address == function.address as u64) {
        return Err(unfit(format!(
            "{} leads to it, so no call would ever end; name another function",
            by.name
        )));
    }
    if targets::calls_another(by.name) {
        return Err(unfit(format!(
            "{} calls another function that a trampoline may wait for, which would stand on those that wait for the callers of {}; name one \
             that calls none",
            by.name, function.name
        )));
    }
    let mut there = engine.attached_to(by.address as u64);
    let waits = there.any(|there| there.kind.calls_function());
    if waits || super::linux::trampoline::waits_for(by.address as u64) {
        return Err(unfit(format!(
            "a trampoline on {} waits for it to return, and would stand on the one that waits for {}: detach those of its hooks that are no \
             fentry first",
            by.name, function.name
        )));
    }
    let ([mine, other], same) = types::compare([function.name, by.name]);
    let (Some(mine), Some(other)) = (mine, other) else {
        return Err(unfit(format!(
            "what {} and {} take is not both known; types are known of extern \"C\" functions that are exported (no_mangle)",
            function.name, by.name
        )));
    };
    if !same {
        return Err(unfit(format!(
            "it is `{mine}`, and `{other}` takes or returns something else; name one with the same types"
        )));
    }
    Ok(())
}

struct Replaced {
    id: HookId,
    function: Function,
    by: Function,
}

impl Mechanism for Replaced {
    fn info(&self) -> HookInfo {
        HookInfo {
            id: self.id,
            function: self.function.name.into(),
            kind: "replace",
            program: self.by.name.into(),
            engine: "kernel",
            sleepable: false,
            misses: [0; CONTEXTS],
            bytes: 0,
            stack_bytes: 0,
        }
    }

    fn covers(&self, function: u64) -> bool {
        function == self.function.address as u64
    }

    fn replaces(&self, function: u64) -> bool {
        self.covers(function)
    }

    fn stands_in(&self, function: u64) -> bool {
        function == self.by.address as u64
    }

    fn changes(&self) -> Vec<Change> {
        Vec::new()
    }

    fn hits(&self) -> Option<u64> {
        None
    }

    fn detach(&mut self, engine: &mut Engine<Kernel>) -> Result<(), HookError> {
        let given_back = engine.replace(self.function.address as u64, None);
        given_back.map_err(|e| HookError::refused(self.function.name, e.reason))
    }
}
