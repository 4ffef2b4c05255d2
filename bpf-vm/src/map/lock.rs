// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lock that updates take: one word, waited for within bounds, never waited for on the core that holds it.
//!
//! Interrupts are masked while it is held, so on one core only an NMI can come in between. It finds the core's own
//! number in the word and answers `EBUSY` at once. Another core's lock is waited for; its holder cannot be preempted,
//! and what it does is bounded, but an NMI may keep it, so waiting is bounded as well.
#![forbid(unsafe_code)]

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::MapError;
use crate::host::host;

/// Rounds of [`Host::relax`](crate::host::Host::relax) before another core's lock is given up.
const ROUNDS: u32 = 1 << 14;

/// A held lock; dropping it releases the lock, then restores interrupts.
#[must_use]
pub(super) struct Held<'a> {
    word: &'a AtomicU64,
    interrupts: u64,
}

/// Takes the lock, waiting at most so many rounds.
fn acquire(word: &AtomicU64, rounds: u32) -> Result<Held<'_>, MapError> {
    let host = host();
    let interrupts = host.mask_interrupts();
    // Behind the masking: from here on this is the core. 0 is free.
    let me = u64::from(host.cpu()) + 1;
    for _ in 0..rounds {
        match word.compare_exchange(0, me, Acquire, Relaxed) {
            Ok(_) => return Ok(Held { word, interrupts }),
            Err(holder) if holder == me => break,
            Err(_) => host.relax(),
        }
    }
    host.restore_interrupts(interrupts);
    Err(MapError::Busy)
}

/// Takes the lock. `Busy`, if this core holds it, or another one for too long.
pub(super) fn lock(word: &AtomicU64) -> Result<Held<'_>, MapError> {
    acquire(word, ROUNDS)
}

/// Takes the lock if it is free.
pub(super) fn try_lock(word: &AtomicU64) -> Option<Held<'_>> {
    acquire(word, 1).ok()
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.word.store(0, Release);
        host().restore_interrupts(self.interrupts);
    }
}
