// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program array: programs by index, for `bpf_tail_call`.
//!
//! A slot is there twice: the target, for an engine that calls by itself, and one word, the address at which compiled
//! code jumps into it (0: not compiled, or empty), in the map's value memory at `index * 8`.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::{
    any::Any,
    fmt,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
};

use super::{
    MapCreateError, MapDefinition, MapError, MapMemory,
    memory::{WORD_BYTES, Words, address},
    slots::{Retired, Slots},
};
use crate::program::ValidatedProgram;

/// A program that another one may turn into.
pub struct TailTarget {
    /// What an interpreter runs.
    pub program: Arc<ValidatedProgram>,
    /// Where compiled code enters it; 0 if it is not compiled. Set before the target is put into a map.
    pub entry: AtomicU64,
    /// What has to live as long as the code at `entry`.
    pub keep: Option<Arc<dyn Any + Send + Sync>>,
}

impl fmt::Debug for TailTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TailTarget")
            .field("program", &self.program.name())
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}

/// Targets, and the words by which compiled code finds them.
pub(super) struct ProgramArray {
    targets: Slots<TailTarget>,
    entries: Words,
    count: u32,
}

impl ProgramArray {
    /// Empty slots.
    pub(super) fn create(
        definition: &MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let count = definition.max_entries as usize;
        Ok(Self {
            entries: Words::allocate(count, definition, memory)?,
            targets: Slots::new(count).ok_or_else(|| MapCreateError::Memory {
                map: definition.name.clone(),
                bytes: count.saturating_mul(WORD_BYTES),
            })?,
            count: definition.max_entries,
        })
    }

    /// How many slots there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Where the word of slot 0 lies.
    pub(super) fn address(&self) -> u64 {
        address(self.entries.get())
    }

    /// The target in a slot.
    pub(super) fn target(&self, index: u32) -> Option<&TailTarget> {
        self.targets.get(index as usize)
    }

    /// Puts a target into a slot, or empties it; what was there.
    pub(super) fn set(
        &self,
        index: u32,
        target: Option<Arc<TailTarget>>,
    ) -> Result<Option<Retired<TailTarget>>, MapError> {
        let word = self
            .entries
            .get()
            .get(index as usize)
            .filter(|_| index < self.count);
        let word = word.ok_or(MapError::TooBig)?;
        let entry = target
            .as_ref()
            .map_or(0, |target| target.entry.load(Acquire));
        // The two are not changed at once. Either order is sound: both the old and the new target outlive this.
        let old = self.targets.replace(index as usize, target);
        word.store(entry, Release);
        old.ok_or(MapError::TooBig)
    }
}
