// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hook may not do, trapped in a build with debug assertions: allocate, take a lock, block.
//!
//! `cargo xtask audit` proves it of the code that it can follow. What it is told to leave out (a branch through a register that
//! a rule of linker/audit.rules ends) is caught here, when it happens: the run ends with a report that names the hooked
//! function and its hooks. A hook is known by its context's recursion word, so one without a guard is not.
#![forbid(unsafe_code)]

use crate::arch::{probe, switch, trap};
use crate::hook::{self, Hooked};
use crate::symbols::Name;
use core::fmt;
use core::sync::atomic::Ordering;
use trampoline::runtime::RECORD_PROGRAM;

/// What is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entered {
    /// The heap.
    Heap,
    /// A spin lock; a sleepable program that blocks takes some.
    SpinLock,
    /// What blocks the task; a sleepable program may.
    Wait,
}

impl fmt::Display for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Entered::Heap => "allocates or frees memory",
            Entered::SpinLock => "takes a spin lock",
            Entered::Wait => "blocks its task",
        })
    }
}

/// Called where a hook may not come. Nothing in a build without debug assertions.
#[inline(always)]
pub(crate) fn enter(what: Entered) {
    if cfg!(debug_assertions) {
        let task = switch::current();
        let word = task.word.load(Ordering::Relaxed);
        if word != 0 && (what == Entered::Heap || !task.in_sleepable()) {
            caught(what, word);
        }
    }
}

/// The 64 bits at an address, if something is there.
fn word_at(address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (probe::read(&mut bytes, address) == bytes.len()).then(|| u64::from_le_bytes(bytes))
}

/// The function whose program is the innermost of the list that `word` heads: by the literal that its frame names, which lies
/// in the trampoline.
fn active(word: u64) -> Option<u64> {
    let literal = word_at(word.wrapping_add_signed(RECORD_PROGRAM))?;
    match hook::hooked_at(literal as usize, word as usize)? {
        Hooked::Function(function) => Some(function),
        Hooked::Probe { at, .. } => Some(at),
    }
}

#[cold]
#[inline(never)]
fn caught(what: Entered, word: u64) {
    if trap::is_reporting() {
        return; // the report prints, whatever its context was about
    }
    const WHY: &str = "a hook may stand where memory is handed out or the lock is held";
    match active(word) {
        Some(function) => panic!(
            "a hook of {} {what}, which none may: {WHY}",
            Name(function as usize)
        ),
        None => panic!("the hook at recursion word {word:#x} {what}, which none may: {WHY}"),
    }
}
