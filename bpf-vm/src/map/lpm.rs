// SPDX-License-Identifier: MIT OR Apache-2.0
//! The LPM trie: values by the longest prefix that matches (`struct bpf_lpm_trie_key`: `u32 prefixlen; u8 data[]`).
//!
//! There is no trie here but a hash of prefixes, and a lookup that tries each length in use, the longest first: at
//! most as many probes as a key has bits, none of them under a lock. Bits behind a prefix's length do not count; they
//! are kept as zeros, where Linux gives back what it was given.
#![forbid(unsafe_code)]

use core::{
    cmp::Ordering,
    ops::Range,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
};

use super::{
    MapCreateError, MapDefinition, MapError, MapMemory, UpdateFlags,
    hash::Hash,
    memory::Words,
    table::{Position, Updated},
    values::ValueWords,
};

/// Bytes of `prefixlen`.
const LENGTH_BYTES: usize = size_of::<u32>();
/// The most bytes of `data` (`LPM_DATA_SIZE_MAX` in Linux).
const MAX_DATA_BYTES: usize = 256;

/// Prefixes and how many there are of each length.
pub(super) struct Lpm {
    hash: Hash,
    lengths: Words,
    data_bytes: usize,
}

/// A key as it is stored: bits behind the prefix are zero.
struct Prefix {
    bytes: [u8; LENGTH_BYTES + MAX_DATA_BYTES],
    len: usize,
}

impl Prefix {
    fn new(key: &[u8]) -> Option<Self> {
        let mut bytes = [0; LENGTH_BYTES + MAX_DATA_BYTES];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        let mut prefix = Self {
            bytes,
            len: key.len(),
        };
        let bits = prefix.bits();
        (bits as usize <= 8 * key.len().checked_sub(LENGTH_BYTES)?).then(|| {
            prefix.shorten(bits);
            prefix
        })
    }

    fn bits(&self) -> u32 {
        self.bytes
            .first_chunk()
            .map_or(0, |len| u32::from_ne_bytes(*len))
    }

    /// The key, as long as the map's keys are.
    fn key(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn data(&self) -> &[u8] {
        self.key().get(LENGTH_BYTES..).unwrap_or_default()
    }

    /// Cuts it to its first `bits` bits.
    fn shorten(&mut self, bits: u32) {
        let (length, data) = self.bytes.split_at_mut(LENGTH_BYTES);
        length.copy_from_slice(&bits.to_ne_bytes());
        let whole = (bits / 8) as usize;
        for (index, byte) in data.iter_mut().enumerate().skip(whole) {
            *byte &= if index == whole {
                !(0xff >> (bits % 8))
            } else {
                0
            };
        }
    }

    /// The order of a walk that sees what is more specific first: subtrees of bit 0 before bit 1, a node behind both.
    fn order(&self, other: &Self) -> Ordering {
        let common = self.bits().min(other.bits());
        let bits = |prefix: &Self| {
            let mut cut = Self {
                bytes: prefix.bytes,
                len: prefix.len,
            };
            cut.shorten(common);
            cut
        };
        bits(self)
            .data()
            .cmp(bits(other).data())
            .then(other.bits().cmp(&self.bits()))
    }
}

impl Lpm {
    /// Takes memory for all prefixes.
    pub(super) fn create(
        definition: &MapDefinition,
        cpus: u32,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let key_size = definition.key_size as usize;
        let data_bytes = key_size.saturating_sub(LENGTH_BYTES);
        Ok(Self {
            hash: Hash::create(definition, key_size, definition.max_entries, cpus, memory)?,
            lengths: Words::allocate(8 * data_bytes + 1, definition, memory)?,
            data_bytes,
        })
    }

    /// The addresses of all values.
    pub(super) fn values(&self) -> Range<u64> {
        self.hash.values()
    }

    fn length(&self, bits: u32) -> Option<&AtomicU64> {
        self.lengths.get().get(bits as usize)
    }

    /// The longest prefix of `key`, which is no longer than it says.
    fn longest(&self, key: &[u8]) -> Option<Prefix> {
        let mut prefix = Prefix::new(key)?;
        for bits in (0..=prefix.bits()).rev() {
            if self.length(bits)?.load(Acquire) != 0 {
                prefix.shorten(bits);
                if self.hash.table.find(prefix.key()).is_some() {
                    return Some(prefix);
                }
            }
        }
        None
    }

    /// Where the value of the longest prefix of `key` lies.
    pub(super) fn address(&self, key: &[u8]) -> Option<u64> {
        self.hash.address(self.longest(key)?.key(), 0)
    }

    /// Copies the value of the longest prefix of `key`.
    pub(super) fn read(&self, key: &[u8], out: &mut [u8]) -> Result<(), MapError> {
        let prefix = self.longest(key).ok_or(MapError::NotFound)?;
        self.hash.read(prefix.key(), out)
    }

    /// Sets the value of exactly this prefix. `NoSpace` if there are `max_entries` already.
    pub(super) fn update(
        &self,
        key: &[u8],
        flags: UpdateFlags,
        fill: impl FnOnce(ValueWords<'_>),
    ) -> Result<(), MapError> {
        let prefix = Prefix::new(key).ok_or(MapError::Invalid)?;
        let length = self.length(prefix.bits()).ok_or(MapError::Invalid)?;
        // Counted before it can be found, so that nobody passes its length by.
        length.fetch_add(1, Release);
        let updated = self.hash.update(prefix.key(), flags, fill);
        if updated != Ok(Updated::Inserted) {
            length.fetch_sub(1, Release);
        }
        updated.map(drop).map_err(|error| match error {
            MapError::TooBig => MapError::NoSpace,
            error => error,
        })
    }

    /// Removes exactly this prefix.
    pub(super) fn delete(&self, key: &[u8]) -> Result<(), MapError> {
        let prefix = Prefix::new(key).ok_or(MapError::Invalid)?;
        self.hash.table.delete(prefix.key(), |_| {})?;
        if let Some(length) = self.length(prefix.bits()) {
            length.fetch_sub(1, Release);
        }
        Ok(())
    }

    /// The prefix after `key`, more specific ones first; the first after no key or one that is not there. It looks at
    /// all prefixes: for the host, not for hooks.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), MapError> {
        let after = key
            .and_then(Prefix::new)
            .filter(|prefix| self.hash.table.find(prefix.key()).is_some());
        let mut best: Option<Prefix> = None;
        let mut bytes = [0; LENGTH_BYTES + MAX_DATA_BYTES];
        let bytes = bytes
            .get_mut(..LENGTH_BYTES + self.data_bytes)
            .ok_or(MapError::Invalid)?;
        self.hash.table.for_each(|element| {
            if !self.hash.table.key_of(element, bytes) {
                return;
            }
            if let Some(prefix) = Prefix::new(bytes)
                && after
                    .as_ref()
                    .is_none_or(|after| prefix.order(after).is_gt())
                && best.as_ref().is_none_or(|best| prefix.order(best).is_lt())
            {
                best = Some(prefix);
            }
        });
        let best = best.ok_or(MapError::NotFound)?;
        if next.len() != best.len {
            return Err(MapError::Invalid);
        }
        next.copy_from_slice(best.key());
        Ok(())
    }

    /// As [`Hash::step`].
    pub(super) fn step(&self, at: &mut Position) -> Option<(&[AtomicU64], u64)> {
        self.hash.step(at)
    }

    /// As [`Table::usage`](super::table::Table::usage).
    pub(super) fn usage(&self) -> (u32, usize) {
        self.hash.table.usage()
    }
}
