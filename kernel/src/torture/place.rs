// SPDX-License-Identifier: MIT OR Apache-2.0
//! A place for a hook on a function: the phase that says what may be expected of its hits, the hits, and the calls that missed it.
//!
//! A phase is stored after an attach has returned, and before a detach begins:
//!
//! ```text
//!   4n free -> 4n+1 attaching -> 4n+2 attached -> 4n+3 detaching -> 4n+4 free
//! ```
//!
//! A call that finds the same phase before and after it lay wholly inside an attachment, or wholly outside. Of any other one only the most
//! is known ([`Look::at_most`]).
//!
//! Some hooks may miss a call and have to say so: those that keep return addresses on the shadow stack, which may be full, and those of
//! the Linux way, whose guards turn away what another context of the same core is in. What such a hook counted is held against two counts of
//! the calls: `missed`, by calls wholly inside the attachment that did not hit it, and `perhaps`, by those of which it is not known that they
//! were inside. It must have counted the first, and no more than both with the calls that are under way: exactly once, if nothing overlapped.

use super::ledger::CALLERS;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// What is to be expected of a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Traits {
    /// It is hit twice by a whole call, not once.
    pub twice: bool,
    /// It skips the function.
    pub skips: bool,
    /// It may miss a call, which it then counts.
    pub may_miss: bool,
    /// It is left out, uncounted, of a call that is under way while something else changes on the function.
    pub by_image: bool,
}

impl Traits {
    fn bits(self) -> u64 {
        let all = [self.twice, self.skips, self.may_miss, self.by_image];
        let bits = all.into_iter().enumerate();
        bits.fold(0, |bits, (n, set)| bits | u64::from(set) << n)
    }

    fn of(bits: u64) -> Traits {
        let set = |n: u32| bits >> n & 1 != 0;
        Traits {
            twice: set(0),
            skips: set(1),
            may_miss: set(2),
            by_image: set(3),
        }
    }

    /// How often a call hits it at most; a whole call just so often.
    pub(super) const fn hits(self) -> u64 {
        if self.twice { Self::MOST } else { 1 }
    }

    /// The most that any is hit by one call.
    const MOST: u64 = 2;
    /// How many of [`bits`](Self::bits) there are.
    const BITS: u32 = 4;
}

/// The low bits of a place's missed hits are their count, those above it which attachment missed them, modulo what fits.
const MISSED_BITS: u32 = 40;

/// What a caller sees of a place.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) phase: u64,
    pub(super) hits: u64,
    /// Of the attachment that the phase belongs to; of the last one while the place is free.
    pub(super) traits: Traits,
}

impl Look {
    fn new(word: u64, hits: u64) -> Look {
        let (phase, traits) = split(word);
        Look {
            phase,
            hits,
            traits,
        }
    }

    /// Whether nothing changed between this and `after`, and nothing was being changed.
    pub(super) fn is_still(&self, after: &Look) -> bool {
        self.phase == after.phase && self.phase.is_multiple_of(2)
    }

    /// How often a call between this and `after` hit, at most, what is or was attached.
    ///
    /// The attachments that the call may have met are those from the one of this phase (the next one, if the place is free) to the one of the
    /// phase after it (the one that has ended, if it is free by then). Each of them is one hook, which a call meets once: the call runs
    /// through one image, or through one list of programs, or over the instruction behind the site. So one attachment gives no more than to
    /// a whole call, however the call overlaps its beginning and its end. Several, one after the other in the same place, can each be met
    /// by a call that is kept waiting meanwhile (at the entry the one, behind it the next; in a list that is being run through), so
    /// what they give adds up; no more of them than the phase has counted.
    ///
    /// The last one's traits are those seen after the call. Of the others only the first one's are known, if it was there before the call:
    /// any of these may be hit twice.
    pub(super) const fn at_most(&self, after: &Look) -> u64 {
        match self.met(after) {
            0 => 0,
            1 => after.traits.hits(),
            several => {
                let first = match self.is_free() {
                    true => Traits::MOST,
                    false => self.traits.hits(),
                };
                first + (several - 2) * Traits::MOST + after.traits.hits()
            }
        }
    }

    /// Whether something that skips the function may have been met by a call between this and `after`.
    pub(super) fn may_skip(&self, after: &Look) -> bool {
        match self.met(after) {
            0 => false,
            1 => after.traits.skips,
            2 if !self.is_free() => self.traits.skips || after.traits.skips,
            _ => true,
        }
    }

    /// How many attachments a call between this and `after` may have met.
    const fn met(&self, after: &Look) -> u64 {
        after.phase.div_ceil(4).saturating_sub(self.phase / 4)
    }

    const fn is_free(&self) -> bool {
        self.phase.is_multiple_of(4)
    }
}

const _: () = {
    const fn at_most(before: (u64, bool), after: (u64, bool)) -> u64 {
        const fn look((phase, twice): (u64, bool)) -> Look {
            let traits = Traits {
                twice,
                skips: false,
                may_miss: false,
                by_image: false,
            };
            Look {
                phase,
                hits: 0,
                traits,
            }
        }
        look(before).at_most(&look(after))
    }
    const TWICE: bool = true;
    // Free all the time, whatever was there last.
    assert!(at_most((0, false), (0, false)) == 0 && at_most((8, TWICE), (8, TWICE)) == 0);
    // One attachment: all the time, from its beginning, to its end, all of it; what was there before does not count.
    assert!(at_most((6, false), (6, false)) == 1 && at_most((6, TWICE), (6, TWICE)) == 2);
    assert!(at_most((4, TWICE), (5, false)) == 1 && at_most((4, false), (6, TWICE)) == 2);
    assert!(at_most((6, false), (7, false)) == 1 && at_most((7, TWICE), (8, TWICE)) == 2);
    assert!(at_most((5, false), (5, false)) == 1 && at_most((4, TWICE), (8, false)) == 1);
    // Two: of the first the traits are known if it was there before the call. And three.
    assert!(at_most((7, false), (9, false)) == 2 && at_most((7, TWICE), (12, false)) == 3);
    assert!(at_most((4, false), (9, false)) == 3 && at_most((7, false), (13, false)) == 4);
};

/// A place for a hook.
pub(crate) struct Place {
    /// The phase, above the [`Traits`] of what is attached, or was: in one word, so that whoever reads one has the other that belongs to it.
    /// Only who took the place writes it.
    phase: AtomicU64,
    /// Whoever attaches or detaches here.
    taken: AtomicBool,
    /// Hits that whole calls missed, below the number of the attachment that they missed ([`MISSED_BITS`]).
    missed: AtomicU64,
    /// Calls that did not hit what is attached, though they may have met it.
    perhaps: AtomicU64,
    /// The hook's number while one is attached.
    pub(crate) hook: AtomicU64,
    /// Not 0: a BPF program is attached whose function `mark` can be replaced; bits from 1 on: the hook of what replaces it.
    pub(crate) mark: AtomicU64,
    hits: [AtomicU64; CALLERS],
}

impl Place {
    pub(super) const fn new() -> Place {
        Place {
            phase: AtomicU64::new(0),
            taken: AtomicBool::new(false),
            missed: AtomicU64::new(0),
            perhaps: AtomicU64::new(0),
            hook: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            hits: [const { AtomicU64::new(0) }; CALLERS],
        }
    }

    /// One hit by a caller; calls that hooks make are not counted. Whether it was.
    #[inline(always)]
    pub(crate) fn hit(&self, who: u64) -> bool {
        let hits = self.hits.get(who as usize);
        if let Some(hits) = hits {
            // Only this caller's context writes it.
            hits.store(hits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        hits.is_some()
    }

    /// Where it is in its life, of a place that was taken: 0 free, 1 attaching, 2 attached, 3 detaching.
    pub(crate) fn stage(&self) -> u64 {
        self.now().0 % 4
    }

    /// What is to be expected of what is attached. Of a place that was taken.
    pub(crate) fn traits(&self) -> Traits {
        self.now().1
    }

    /// Phase and traits.
    fn now(&self) -> (u64, Traits) {
        split(self.phase.load(Ordering::Relaxed))
    }

    /// Calls that missed the hook since it was attached, and calls that perhaps did.
    pub(crate) fn missed(&self) -> (u64, u64) {
        let missed = self.missed.load(Ordering::Acquire) & ((1 << MISSED_BITS) - 1);
        (missed, self.perhaps.load(Ordering::Acquire))
    }

    /// A call that lay wholly inside the attachment of this phase missed it so often. Of one that is over by now nobody asks.
    pub(super) fn miss(&self, phase: u64, hits: u64) {
        let which = attachment(phase);
        let same = |missed: u64| (missed >> MISSED_BITS == which).then_some(missed + hits);
        let _ = self
            .missed
            .fetch_update(Ordering::Release, Ordering::Relaxed, same);
    }

    /// A call is over that did not hit what is attached, and of which nobody knows whether it met it. If that is over by now, and something
    /// else attached, one more is allowed to that; a call that met it is noted after the attach began, so none is lost.
    pub(super) fn perhaps(&self) {
        self.perhaps.fetch_add(1, Ordering::Release);
    }

    /// Takes the place for a change; false if someone else has it.
    pub(crate) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::Acquire)
    }

    /// Gives it back.
    pub(crate) fn give_back(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// Whether something is attached. Of a place that was taken.
    pub(crate) fn is_attached(&self) -> bool {
        self.stage() == 2
    }

    /// An attach of something of these traits begins.
    pub(crate) fn attaching(&self, traits: Traits) {
        let (phase, _) = self.now();
        let which = attachment(phase);
        self.missed.store(which << MISSED_BITS, Ordering::Relaxed);
        self.perhaps.store(0, Ordering::Relaxed);
        let attaching = (phase + 1) << Traits::BITS | traits.bits();
        self.phase.swap(attaching, Ordering::SeqCst);
    }

    /// The attach that began has returned: whether something is attached now.
    pub(crate) fn attach_returned(&self, attached: bool) {
        self.step(if attached { 1 } else { 3 });
    }

    /// A detach begins.
    pub(crate) fn detaching(&self) {
        self.step(1);
    }

    /// The detach that began has returned: whether it is off now.
    pub(crate) fn detach_returned(&self, detached: bool) {
        self.step(if detached { 1 } else { 3 });
    }

    fn step(&self, by: u64) {
        self.phase.fetch_add(by << Traits::BITS, Ordering::SeqCst);
    }

    /// What a caller sees before a call: the phase first, so that what belongs to it is not older.
    pub(super) fn before(&self, who: u64) -> Look {
        let word = self.phase.load(Ordering::Acquire);
        Look::new(word, self.hits_by(who))
    }

    /// What a caller sees after a call: the phase last, so that what belongs to it is not younger.
    pub(super) fn after(&self, who: u64) -> Look {
        let hits = self.hits_by(who);
        fence(Ordering::Acquire);
        Look::new(self.phase.load(Ordering::Relaxed), hits)
    }

    fn hits_by(&self, who: u64) -> u64 {
        let hits = self.hits.get(who as usize);
        hits.map_or(0, |hits| hits.load(Ordering::Relaxed))
    }
}

/// The phase and the traits in a place's word.
fn split(word: u64) -> (u64, Traits) {
    (word >> Traits::BITS, Traits::of(word))
}

/// The number of the attachment that a phase belongs to, as far as it fits beside a count.
fn attachment(phase: u64) -> u64 {
    (phase / 4) & ((1 << (u64::BITS - MISSED_BITS)) - 1)
}
