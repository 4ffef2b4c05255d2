// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may run although something is active in this context: the slow side of a trampoline's guard, and who may sleep.
//!
//! The task's recursion word heads the list of frames of trampolines whose programs are active in the present context, each with a
//! guard record (trampoline/src/runtime.rs). A trampoline comes here only if the word is not zero. All of it is of this context on
//! this task: whatever interrupts it starts with a word of its own and puts this one back, so plain loads and stores do.

use super::switch;
use crate::context;
use crate::mm::stack;
use core::sync::atomic::Ordering::Relaxed;
use trampoline::State;
use trampoline::runtime::{RECORD_NEXT, RECORD_PROGRAM};

/// Stack that [`admit`] and what it calls take, in bytes; a test holds it against what `cargo xtask audit` computes.
pub(crate) const STACK: u32 = 256;

/// Where a guard record ends, from its frame record.
const RECORD_END: usize = RECORD_PROGRAM as usize + 8;

/// The address of a word of a frame.
fn word(frame: u64, offset: i64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut(frame.wrapping_add_signed(offset) as usize)
}

/// The programs that are active in this context, the latest first: the addresses of their States, 0 for a trampoline that is between two.
#[inline(always)]
fn active() -> impl Iterator<Item = u64> {
    active_from(switch::current().word.load(Relaxed))
}

/// The same of the current task's word `at`, where an exception keeps that of what it interrupted.
#[inline(always)]
fn active_from(mut at: u64) -> impl Iterator<Item = u64> {
    core::iter::from_fn(move || {
        if at == 0 {
            return None;
        }
        // SAFETY: the list holds frames of trampolines that are active in this context.
        let active = unsafe { word(at, RECORD_PROGRAM).read() };
        // SAFETY: as above.
        at = unsafe { word(at, RECORD_NEXT).read() };
        // SAFETY: the address of the active program's literal.
        Some(unsafe { core::ptr::with_exposed_provenance::<u64>(active as usize).read() })
    })
}

/// Whether all programs that are active in this context may sleep.
pub(crate) fn all_sleepable() -> bool {
    active().filter(|state| *state != 0).all(|state| {
        // SAFETY: a trampoline that is being executed names the State, and keeps it alive.
        unsafe { &*core::ptr::with_exposed_provenance::<State>(state as usize) }.is_sleepable()
    })
}

/// Whether what is active keeps its task on its core: anything but programs that may be moved. Of the current task, and a word of it.
///
/// A record is written before the word leads to it, and taken away after that (trampoline/src/guard.rs), by this core: so an exception
/// in between finds whole records. What is no address in a stack of its own is no list, and binds: the scheduler does not follow it.
pub(crate) fn binds(word: u64) -> bool {
    if word == 0 {
        return false;
    }
    let here = core::ptr::from_ref(&word).addr();
    let of_this_stack = stack::bounds(here).is_some_and(|(bottom, top)| {
        let record = bottom..=top - RECORD_END;
        record.contains(&(word as usize)) && word.is_multiple_of(16)
    });
    !of_this_stack
        || active_from(word).any(|state| {
            // SAFETY: a trampoline that is being executed names the State, and keeps it alive.
            let program = (state != 0)
                .then(|| unsafe { &*core::ptr::with_exposed_provenance::<State>(state as usize) });
            program.is_none_or(|program| !program.is_movable())
        })
}

/// As [`trampoline::Runtime::admit`] says: 1 and the frame heads the list, or 0 and the program's miss is counted.
pub(crate) extern "C" fn admit(literal: *const u64, frame: u64) -> u64 {
    // SAFETY: the literal of a trampoline that is being executed: the address of a State that it keeps alive, exposed.
    let state = unsafe { literal.read() };
    // SAFETY: as above.
    let program = unsafe { &*core::ptr::with_exposed_provenance::<State>(state as usize) };
    let head = &switch::current().word;
    if active().any(|active| active == state || program.is_whole_context()) {
        program.miss(context::current() as usize);
        return 0;
    }
    // SAFETY: the calling trampoline's own guard record.
    unsafe { word(frame, RECORD_NEXT).write(head.load(Relaxed)) };
    // SAFETY: as above.
    unsafe { word(frame, RECORD_PROGRAM).write(literal.expose_provenance() as u64) };
    head.store(frame, Relaxed);
    1
}

/// As [`trampoline::Runtime::miss`] says: counts a hit that found no room for its function's return address.
pub(crate) extern "C" fn miss(state: *const State) {
    // SAFETY: a trampoline that is being executed names the State, and keeps it alive.
    unsafe { &*state }.miss(context::current() as usize);
}
