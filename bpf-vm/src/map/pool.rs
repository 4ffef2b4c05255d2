// SPDX-License-Identifier: MIT OR Apache-2.0
//! The free elements of a map: a stack without a lock, so that any context may take and give.
//!
//! The top is an index and a tag that each change counts up, in one word. Whoever was overtaken between reading the
//! top and changing it, by another core or by an NMI on its own, finds another tag and starts again; someone else has
//! made progress then. 2^32 changes while one core stands still between two instructions are not expected.
#![forbid(unsafe_code)]

use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use super::{MapCreateError, MapDefinition, MapMemory, memory::Words};

/// Elements 1 to `count` that are free, last in, first out. 0 is no element.
pub(super) struct Pool {
    /// Tag in the upper half, index of the first free element in the lower.
    top: AtomicU64,
    /// By element: the next free one.
    next: Words,
}

impl Pool {
    /// All of `count` elements, free.
    pub(super) fn full(
        count: u32,
        definition: &MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let next = Words::allocate((count as usize).saturating_add(1), definition, memory)?;
        // Each links to the one after it; the last keeps the 0 of zeroed memory.
        for (word, index) in next.get().iter().zip(1..=u64::from(count)) {
            word.store(index, Relaxed);
        }
        let first = u64::from(count.min(1));
        Ok(Self {
            top: AtomicU64::new(first),
            next,
        })
    }

    fn link(&self, element: u32) -> Option<&AtomicU64> {
        self.next.get().get(element as usize)
    }

    /// Takes an element, if one is free.
    pub(super) fn take(&self) -> Option<u32> {
        let mut top = self.top.load(Acquire);
        loop {
            let element = top as u32;
            if element == 0 {
                return None;
            }
            // May be somebody else's by now; then the tag has changed.
            let next = self.link(element)?.load(Relaxed);
            match self.change(top, next as u32) {
                Ok(()) => return Some(element),
                Err(now) => top = now,
            }
        }
    }

    /// Gives an element back, which the caller owns.
    pub(super) fn give(&self, element: u32) {
        let Some(link) = self.link(element) else {
            return;
        };
        let mut top = self.top.load(Relaxed);
        loop {
            link.store(u64::from(top as u32), Relaxed);
            match self.change(top, element) {
                Ok(()) => return,
                Err(now) => top = now,
            }
        }
    }

    fn change(&self, top: u64, first: u32) -> Result<(), u64> {
        let tag = (top >> 32).wrapping_add(1) << 32;
        self.top
            .compare_exchange_weak(top, tag | u64::from(first), AcqRel, Acquire)
            .map(drop)
    }

    /// How many are free, when nobody takes or gives.
    pub(super) fn free(&self) -> usize {
        let first = self.top.load(Acquire) as u32;
        core::iter::successors(Some(first), |&element| {
            Some(self.link(element)?.load(Relaxed) as u32)
        })
        .take_while(|&element| element != 0)
        // Whoever takes and gives meanwhile cannot make it go on for ever.
        .take(self.next.get().len())
        .count()
    }
}
