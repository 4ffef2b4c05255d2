// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bpf_spin_lock`: a word in a map's value, held with interrupts masked.
//!
//! ```text
//! struct bpf_spin_lock { u32 val; }   0: free; else
//!   31 .. 20  the core that holds it, plus 1
//!   19 .. 16  how many programs above the holder, on its core, go on without it
//!   15 ..  0  what `Host::mask_interrupts` returned, for the end
//! ```
//!
//! Linux gives it to no kprobe or tracepoint program, for one in an NMI could wait for ever for the program that it interrupted.
//! Here nobody waits for ever, but the call returns nothing, so it cannot fail either: a program that finds its own core's number
//! there (it runs in an NMI, in the middle of the holder), or that has waited for another core for [`PATIENCE_NS`] (two NMIs that
//! wait for what the other has interrupted), goes on without the lock, is counted ([`missed_spin_locks`]), and its unlock gives
//! back nothing. Between two programs that are not in an NMI a lock is a lock.
#![deny(unsafe_code)]

use core::{
    ptr::with_exposed_provenance_mut,
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use crate::host::host;

const CORE_SHIFT: u32 = 20;
const ABOVE: u32 = 1 << 16;
const ABOVE_MASK: u32 = 0xf * ABOVE;
const STATE_MASK: u32 = ABOVE - 1;
/// How long a program waits for another core, in nanoseconds: what Linux's own locks that give up take.
const PATIENCE_NS: u64 = 250_000_000;

/// Programs that went on without a lock.
static MISSED: AtomicU64 = AtomicU64::new(0);

/// How many calls of `bpf_spin_lock` did not get the lock, since boot.
pub fn missed_spin_locks() -> u64 {
    MISSED.load(Relaxed)
}

/// Whether that word says that this core holds the lock.
fn is_own(held: u32) -> bool {
    held >> CORE_SHIFT == host().cpu() + 1
}

/// Takes the lock, or sees that it must not be waited for; interrupts stay masked if it was taken.
fn lock(word: &AtomicU32) {
    let host = host();
    let state = host.mask_interrupts();
    // Masked, so the core stays the same.
    let taken = (host.cpu() + 1) << CORE_SHIFT | state as u32 & STATE_MASK;
    let mut began = None;
    loop {
        let held = match word.compare_exchange_weak(0, taken, Acquire, Relaxed) {
            Ok(_) => return,
            Err(held) => held,
        };
        if is_own(held) {
            // The holder waits below on this core; other cores change the word only from 0.
            if held & ABOVE_MASK != ABOVE_MASK {
                word.fetch_add(ABOVE, Relaxed);
            }
            break;
        }
        let now = host.ktime_ns();
        if now.saturating_sub(*began.get_or_insert(now)) > PATIENCE_NS {
            break;
        }
        host.relax();
    }
    MISSED.fetch_add(1, Relaxed);
    host.restore_interrupts(state);
}

/// Gives back what [`lock`] took, if it took it.
fn unlock(word: &AtomicU32) {
    let held = word.load(Relaxed);
    // If this run holds it, interrupts are masked, so the core is the one that took it. If it does not, the word names another
    // core, or this run stands above the holder: the holder cannot be elsewhere on this core.
    if !is_own(held) {
        return;
    }
    if held & ABOVE_MASK != 0 {
        word.fetch_sub(ABOVE, Relaxed);
        return;
    }
    word.store(0, Release);
    host().restore_interrupts((held & STATE_MASK).into());
}

/// # Safety
/// `address` is the address of an aligned word of a map's value, which outlives `'a`.
#[expect(unsafe_code, reason = "the word that a program names")]
unsafe fn word<'a>(address: u64) -> &'a AtomicU32 {
    // SAFETY: the caller promises an aligned word that lives; values are only ever accessed atomically or by programs.
    unsafe { AtomicU32::from_ptr(with_exposed_provenance_mut(address as usize)) }
}

/// `void bpf_spin_lock(struct bpf_spin_lock *lock)`: waits until the lock is this program's.
#[expect(unsafe_code, reason = "the word that a program names")]
pub(super) unsafe extern "C" fn spin_lock(address: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: by this helper's row `address` is that of a lock in a value of a map of the program.
    lock(unsafe { word(address) });
    0
}

/// `void bpf_spin_unlock(struct bpf_spin_lock *lock)`: gives it back.
#[expect(unsafe_code, reason = "the word that a program names")]
pub(super) unsafe extern "C" fn spin_unlock(address: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: by this helper's row `address` is that of a lock in a value of a map of the program.
    unlock(unsafe { word(address) });
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing;

    #[test]
    fn a_lock_masks_interrupts_and_who_stands_above_the_holder_goes_on() {
        testing::register();
        let word = AtomicU32::new(0);
        testing::on_core(2, || {
            assert_eq!(testing::masked(), 0);
            lock(&word);
            assert_eq!(testing::masked(), 1);
            assert_eq!(word.load(Relaxed) >> CORE_SHIFT, 3);
            // An NMI in the middle: it does not wait, and its end is not the holder's.
            let before = missed_spin_locks();
            lock(&word);
            assert!(missed_spin_locks() > before);
            assert_eq!(testing::masked(), 1);
            unlock(&word);
            assert_eq!(
                (word.load(Relaxed) >> CORE_SHIFT, testing::masked()),
                (3, 1)
            );
            unlock(&word);
            assert_eq!((word.load(Relaxed), testing::masked()), (0, 0));
            // One end too many gives back nothing.
            unlock(&word);
            assert_eq!((word.load(Relaxed), testing::masked()), (0, 0));
        });
    }

    #[test]
    fn who_waits_too_long_for_another_core_goes_on_without() {
        testing::register();
        let word = AtomicU32::new(7 << CORE_SHIFT);
        testing::on_core(1, || {
            let before = testing::now();
            lock(&word);
            assert!(testing::now() - before > PATIENCE_NS);
            assert_eq!(testing::masked(), 0);
            unlock(&word);
            assert_eq!(word.load(Relaxed), 7 << CORE_SHIFT);
        });
    }
}
