// SPDX-License-Identifier: MIT OR Apache-2.0
//! Queues and stacks: values without keys, in a ring under one lock.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{
    MapCreateError, MapDefinition, MapError, MapKind, MapMemory, UpdateFlags, lock::lock,
    values::Values,
};

/// Up to `max_entries` values in the order in which they came.
pub(super) struct Queue {
    values: Values,
    lock: AtomicU64,
    /// Under the lock: the index of the oldest value, and how many there are.
    oldest: AtomicU64,
    count: AtomicU64,
    newest_first: bool,
}

impl Queue {
    /// Takes memory for all values.
    pub(super) fn create(
        definition: &MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        Ok(Self {
            values: Values::create(definition, definition.max_entries, 1, memory)?,
            lock: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
            count: AtomicU64::new(0),
            newest_first: definition.kind == MapKind::STACK,
        })
    }

    /// The words of the value that came `age` values after the oldest.
    fn value(&self, age: u64) -> Option<&[AtomicU64]> {
        let entries = u64::from(self.values.entries());
        let index = (self.oldest.load(Relaxed) + age) % entries;
        self.values.at(u32::try_from(index).ok()?, 0)
    }

    /// Puts a value in, which `fill` writes. If the map is full: `TooBig`, or with `BPF_EXIST` the oldest goes.
    pub(super) fn push(
        &self,
        flags: UpdateFlags,
        fill: impl FnOnce(&[AtomicU64]),
    ) -> Result<(), MapError> {
        if flags == UpdateFlags::NoExist {
            return Err(MapError::Invalid);
        }
        let _held = lock(&self.lock)?;
        let entries = u64::from(self.values.entries());
        let count = self.count.load(Relaxed);
        if count == entries {
            if flags == UpdateFlags::Any {
                return Err(MapError::TooBig);
            }
            let oldest = (self.oldest.load(Relaxed) + 1) % entries;
            self.oldest.store(oldest, Relaxed);
            self.count.store(count - 1, Relaxed);
        }
        let count = self.count.load(Relaxed);
        fill(self.value(count).ok_or(MapError::Invalid)?);
        self.count.store(count + 1, Relaxed);
        Ok(())
    }

    /// Hands `take` the value whose turn it is, and removes it unless it is only to be looked at. `NotFound` if there
    /// is none.
    pub(super) fn take(
        &self,
        remove: bool,
        take: impl FnOnce(&[AtomicU64]),
    ) -> Result<(), MapError> {
        let _held = lock(&self.lock)?;
        let count = self.count.load(Relaxed);
        let left = count.checked_sub(1).ok_or(MapError::NotFound)?;
        let age = if self.newest_first { left } else { 0 };
        take(self.value(age).ok_or(MapError::Invalid)?);
        if remove {
            self.count.store(left, Relaxed);
            if !self.newest_first {
                let oldest = (self.oldest.load(Relaxed) + 1) % u64::from(self.values.entries());
                self.oldest.store(oldest, Relaxed);
            }
        }
        Ok(())
    }
}
