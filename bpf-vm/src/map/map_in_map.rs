// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arrays and hashes of maps: what a program looks up is an inner map's handle.
//!
//! Only the host puts inner maps in. Each has to be as the template says. One that was taken out is handed back as
//! [`Retired`], since a program may have looked it up a moment ago.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Relaxed, Release};

use super::{
    Map, MapCreateError, MapDefinition, MapError, MapKind, MapMemory, UpdateFlags, array,
    hash::Hash,
    slots::{Retired, Slots},
    table::{Table, Target},
};

/// Inner maps by key, and what each has to be like.
pub(super) struct MapInMap {
    template: MapDefinition,
    inners: Slots<Map>,
    /// By element, in a hash; an array has none and its slots are its indices.
    hash: Option<Hash>,
    entries: u32,
}

impl MapInMap {
    /// Empty; takes inner maps like `template`.
    pub(super) fn create(
        definition: &MapDefinition,
        template: MapDefinition,
        cpus: u32,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let entries = definition.max_entries;
        let (hash, slots) = if definition.kind == MapKind::HASH_OF_MAPS {
            let key_size = definition.key_size as usize;
            let hash = Hash::create(definition, key_size, entries, cpus, memory)?;
            (Some(hash), Table::elements_for(entries, cpus))
        } else {
            (None, entries)
        };
        Ok(Self {
            template,
            inners: Slots::new(slots as usize).ok_or_else(|| MapCreateError::Memory {
                map: definition.name.clone(),
                bytes: (slots as usize).saturating_mul(size_of::<usize>()),
            })?,
            hash,
            entries,
        })
    }

    /// What inner maps are like.
    pub(super) fn template(&self) -> &MapDefinition {
        &self.template
    }

    /// Slots, if keys are indices.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// The hash, if keys are not.
    pub(super) fn hash(&self) -> Option<&Hash> {
        self.hash.as_ref()
    }

    /// The inner map's handle.
    pub(super) fn handle(&self, key: &[u8]) -> Option<u64> {
        match &self.hash {
            Some(hash) => hash.handle(key),
            None => {
                let index = array::index(key, self.entries)?;
                self.inners.get(index as usize).map(Map::address)
            }
        }
    }

    /// All inner maps.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Map> {
        self.inners.iter()
    }

    /// Whether a map may be put in (`bpf_map_meta_equal` in Linux).
    fn takes(&self, inner: &Map) -> bool {
        let (is, wants) = (inner.definition(), &self.template);
        let is_array = wants.kind == MapKind::ARRAY;
        let any_size = !is_array || wants.flags & MapDefinition::INNER_MAP != 0;
        is.kind == wants.kind
            && is.key_size == wants.key_size
            && is.value_size == wants.value_size
            && is.flags == wants.flags
            && (any_size || is.max_entries == wants.max_entries)
    }

    /// Puts a map in. `Invalid`, if it is not like the template.
    pub(super) fn put(
        &self,
        key: &[u8],
        inner: Arc<Map>,
        flags: UpdateFlags,
    ) -> Result<Option<Retired<Map>>, MapError> {
        if !self.takes(&inner) {
            return Err(MapError::Invalid);
        }
        let Some(hash) = &self.hash else {
            let index = array::updated(key, self.entries, flags)?;
            let old = self.inners.replace(index as usize, Some(inner));
            return old.ok_or(MapError::TooBig);
        };
        let mut retired = None;
        let fill = |target: Target| {
            let (Target::New(element) | Target::Kept(element)) = target;
            let handle = inner.handle();
            // A new element's slot is empty: it was emptied when it was taken from its key.
            let _empty = self.inners.replace(element as usize - 1, Some(inner));
            if let Some(word) = hash.word(element) {
                word.store(handle, Release);
            }
        };
        let retire = |element| retired = self.empty(hash, element);
        hash.table.update(key, flags, false, fill, retire)?;
        Ok(retired)
    }

    /// Takes a map out. An array's slot may be empty already.
    pub(super) fn remove(&self, key: &[u8]) -> Result<Option<Retired<Map>>, MapError> {
        let Some(hash) = &self.hash else {
            let index = array::index(key, self.entries).ok_or(MapError::TooBig)?;
            let old = self.inners.replace(index as usize, None);
            return old.ok_or(MapError::TooBig);
        };
        let mut retired = None;
        hash.table
            .delete(key, |element| retired = self.empty(hash, element))?;
        Ok(retired)
    }

    /// Empties the slot of an element that is out of the table.
    fn empty(&self, hash: &Hash, element: u32) -> Option<Retired<Map>> {
        if let Some(word) = hash.word(element) {
            word.store(0, Relaxed);
        }
        self.inners.replace(element as usize - 1, None).flatten()
    }
}
