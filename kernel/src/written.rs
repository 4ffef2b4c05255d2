// SPDX-License-Identifier: MIT OR Apache-2.0
//! What was written into executable memory: a second copy of the pool, which nothing executes, for `integrity`.
//!
//! Whoever writes pool memory for the hook engine does it here, so a word of a trampoline or a program that differs from the copy
//! was changed by someone else. A write is counted when it begins and when it is in both places: who compares looks again
//! where a write was under way.
#![forbid(unsafe_code)]

use crate::arch::code::{self, CodeError};
use crate::arch::rendezvous::{self, Absent};
use crate::hook;
use crate::mm::{self, layout::POOL};
use crate::sched;
use crate::symbols::Name;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use trampoline::platform::Patch;

static BEGUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);

/// The word's place in the copy; none for an address outside of the pool.
fn copy(at: usize) -> Option<&'static AtomicU32> {
    mm::pool_copy().get(at.checked_sub(POOL)? / 4)
}

/// Does something that changes code, and then has `words` at `at` in the copy.
fn change(
    at: usize,
    words: &[u32],
    act: impl FnOnce() -> Result<(), CodeError>,
) -> Result<(), CodeError> {
    BEGUN.fetch_add(1, Ordering::SeqCst);
    let done = act();
    let start = at.checked_sub(POOL).filter(|_| done.is_ok());
    if let Some(copies) = start.and_then(|offset| mm::pool_copy().get(offset / 4..)) {
        for (copy, word) in copies.iter().zip(words) {
            copy.store(*word, Ordering::Relaxed);
        }
    }
    ENDED.fetch_add(1, Ordering::SeqCst);
    done
}

/// As [`code::write`].
pub(crate) fn write(at: usize, words: &[u32]) -> Result<(), CodeError> {
    change(at, words, || code::write(at, words))
}

/// As [`code::patch`].
pub(crate) fn patch(at: usize, old: u32, new: u32) -> Result<(), CodeError> {
    change(at, &[new], || code::patch(at, old, new))
}

/// As [`code::patch`], while every other core is held.
pub(crate) fn replace(at: usize, old: u32, new: u32) -> Result<Result<(), CodeError>, Absent> {
    rendezvous::stop_machine(|| patch(at, old, new))
}

/// As [`code::patch_all`].
pub(crate) fn patch_all(patches: &[Patch]) -> Result<(), (usize, CodeError, bool)> {
    BEGUN.fetch_add(1, Ordering::SeqCst);
    let done = code::patch_all(patches);
    let stuck = matches!(done, Err((.., false)));
    let stays = |patch: &&Patch| stuck && code::read(patch.at as usize) == Some(patch.new);
    for patch in patches.iter().filter(|p| done.is_ok() || stays(p)) {
        if let Some(copy) = copy(patch.at as usize) {
            copy.store(patch.new, Ordering::Relaxed);
        }
    }
    ENDED.fetch_add(1, Ordering::SeqCst);
    done
}

/// A word of executable memory that is not what was written there.
pub(crate) struct Foreign {
    /// Its address.
    pub(crate) address: u64,
    /// What was written.
    pub(crate) written: u32,
    /// What is there.
    pub(crate) found: u32,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#x}  {:08x} -> {:08x}  {}: UNACCOUNTED FOR, its owner did not change it",
            self.address,
            self.written,
            self.found,
            Name(self.address as usize)
        )
    }
}

/// The word at an address, if it is not what was written there, and no write is under way. Task context: it may wait for one to end.
fn foreign(at: usize) -> Option<Foreign> {
    loop {
        let ended = ENDED.load(Ordering::SeqCst);
        let written = copy(at)?.load(Ordering::Relaxed);
        let found = code::read(at).unwrap_or_default();
        if found == written {
            return None;
        }
        if BEGUN.load(Ordering::SeqCst) == ended {
            return Some(Foreign {
                address: at as u64,
                written,
                found,
            });
        }
        sched::sleep_ns(1_000_000);
    }
}

/// Compares all of the pool that is in use: how many words that are, how many of them differ, and the first `most` of those.
pub(crate) fn compare(most: usize) -> (usize, usize, Vec<Foreign>) {
    let (mut words, mut count, mut kept) = (0, 0, Vec::new());
    for at in hook::live().into_iter().flat_map(|run| run.step_by(4)) {
        words += 1;
        let Some(other) = foreign(at as usize) else {
            continue;
        };
        count += 1;
        if kept.len() < most {
            kept.push(other);
        }
    }
    (words, count, kept)
}
