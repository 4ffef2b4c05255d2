// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hash maps: plain, per-CPU, and the two that evict (LRU).
//!
//! An update of a plain hash gives the key a new element with a new value, so that whoever reads the old value sees it
//! whole; an update of a per-CPU hash writes the value where it is, which other cores do not do.
#![forbid(unsafe_code)]

use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    MapCreateError, MapDefinition, MapError, MapKind, MapMemory, UpdateFlags,
    table::{Position, Table, Target, Updated},
    values::{ValueWords, Values},
};
use crate::host::host;

/// How often a copy of a value starts again because the key was updated meanwhile.
const COPIES: u32 = 256;

/// A table with a value, or one a core, for each element.
pub(super) struct Hash {
    pub(super) table: Table,
    values: Values,
    per_cpu: bool,
    evicts: bool,
}

impl Hash {
    /// Keys of `key_size` bytes; values of the definition's size.
    pub(super) fn create(
        definition: &MapDefinition,
        key_size: usize,
        max_entries: u32,
        cpus: u32,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let kind = definition.kind;
        let evicts = matches!(kind, MapKind::LRU_HASH | MapKind::LRU_PERCPU_HASH);
        let per_cpu = matches!(kind, MapKind::PERCPU_HASH | MapKind::LRU_PERCPU_HASH);
        let elements = Table::elements_for(max_entries, cpus);
        Ok(Self {
            table: Table::create(definition, key_size, max_entries, cpus, evicts, memory)?,
            values: Values::create(definition, elements, if per_cpu { cpus } else { 1 }, memory)?,
            per_cpu,
            evicts,
        })
    }

    /// With a lock at a byte offset of each value. It stays as it is while an element changes hands: zero at first, and
    /// given back by whoever took it.
    pub(super) fn set_lock(&mut self, offset: usize) {
        self.values.set_lock(offset);
    }

    /// The addresses of all values.
    pub(super) fn values(&self) -> Range<u64> {
        self.values.range()
    }

    /// Where the running core's value of an element lies.
    pub(super) fn element_address(&self, element: u32) -> Option<u64> {
        self.values.address(element - 1, host().cpu())
    }

    /// Where core `cpu`'s value of `key` lies. A lookup by a program: the element counts as used.
    pub(super) fn address(&self, key: &[u8], cpu: u32) -> Option<u64> {
        let found = self.table.find(key)?;
        if self.evicts {
            self.table.mark_used(found.element);
        }
        self.values.address(found.element - 1, cpu)
    }

    /// Copies the value, or all cores' values, of `key`: of a plain hash, one that some update has put there as a
    /// whole, as long as no program writes it in place.
    pub(super) fn read(&self, key: &[u8], out: &mut [u8]) -> Result<(), MapError> {
        for _ in 0..COPIES {
            let found = self.table.find(key).ok_or(MapError::NotFound)?;
            self.values.read(found.element - 1, out);
            if self.table.is_current(found) {
                return Ok(());
            }
        }
        Err(MapError::Busy)
    }

    /// A program's update: `fill` writes the running core's value; other cores' are zero if the key is new.
    pub(super) fn update(
        &self,
        key: &[u8],
        flags: UpdateFlags,
        fill: impl FnOnce(ValueWords<'_>),
    ) -> Result<Updated, MapError> {
        let cpu = host().cpu();
        if self.values.at(0, cpu).is_none() {
            // A core that was not there when the map was created has no values.
            return Err(MapError::Invalid);
        }
        let fill = |target: Target| {
            let element = match target {
                Target::New(element) => {
                    if self.per_cpu {
                        self.values.clear(element - 1);
                    }
                    element
                }
                Target::Kept(element) => element,
            };
            if let Some(value) = self.values.value(element - 1, cpu) {
                fill(value);
            }
        };
        self.table.update(key, flags, self.per_cpu, fill, |_| {})
    }

    /// The host's update: the value, or all cores' values.
    pub(super) fn write(
        &self,
        key: &[u8],
        value: &[u8],
        flags: UpdateFlags,
    ) -> Result<(), MapError> {
        let fill = |target: Target| {
            let (Target::New(element) | Target::Kept(element)) = target;
            self.values.write(element - 1, value);
        };
        let updated = self.table.update(key, flags, self.per_cpu, fill, |_| {});
        updated.map(drop)
    }

    /// As [`Table::step`], with the key's words and the address of the running core's value.
    pub(super) fn step(&self, at: &mut Position) -> Option<(&[AtomicU64], u64)> {
        let element = self.table.step(at)?;
        Some((self.table.key(element), self.element_address(element)?))
    }

    /// The value of an element in which a map of maps keeps a handle.
    pub(super) fn word(&self, element: u32) -> Option<&AtomicU64> {
        self.values.at(element - 1, 0)?.first()
    }

    /// The handle of `key` in a map of maps: again, if it was given another one meanwhile, since the old one's element is
    /// emptied then.
    pub(super) fn handle(&self, key: &[u8]) -> Option<u64> {
        for _ in 0..COPIES {
            let found = self.table.find(key)?;
            let handle = self.word(found.element)?.load(Relaxed);
            if self.table.is_current(found) {
                return (handle != 0).then_some(handle);
            }
        }
        None
    }
}
