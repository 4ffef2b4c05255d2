// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stack traces by the hash of their addresses, which is the id that `bpf_get_stackid` returns.
//!
//! A trace is written into an element that nobody sees and put into its slot by one store; what was there is used
//! again at once, so a copy is checked against the slot and made again if it has changed.
#![forbid(unsafe_code)]

use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
    fence,
};

use super::{
    MapCreateError, MapDefinition, MapError, MapMemory, array, memory::Words, pool::Pool,
    values::Values,
};

/// The most addresses of a trace (`PERF_MAX_STACK_DEPTH` in Linux).
pub const MAX_DEPTH: usize = 127;
/// `BPF_F_SKIP_FIELD_MASK`: how many of the innermost frames to leave out.
pub const SKIP_MASK: u64 = 0xff;
/// `BPF_F_FAST_STACK_CMP`: traces of one hash count as one.
pub const FAST_STACK_CMP: u64 = 1 << 9;
/// `BPF_F_REUSE_STACKID`: a trace takes the place of another one with its id.
pub const REUSE_STACKID: u64 = 1 << 10;

/// Elements beyond the ids, per core: for a trace that is being written, and for an NMI's in the middle of it.
const SPARE_PER_CPU: u32 = 2;
/// How often a copy starts again.
const COPIES: u32 = 64;
/// The element in a slot.
const ELEMENT: u64 = 0xffff_ffff;

/// Slots by id, and elements with a trace each.
pub(super) struct StackTraces {
    /// Hash in the upper half, element in the lower; 0 if empty.
    slots: Words,
    ids: u32,
    values: Values,
    /// By element: how many addresses.
    lengths: Words,
    pool: Pool,
}

impl StackTraces {
    /// As many ids as `max_entries` rounded up to a power of two.
    pub(super) fn create(
        definition: &MapDefinition,
        cpus: u32,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let ids = definition.max_entries.checked_next_power_of_two();
        let ids = ids
            .filter(|ids| *ids <= 1 << 30)
            .ok_or_else(|| MapCreateError::Memory {
                map: definition.name.clone(),
                bytes: usize::MAX,
            })?;
        let elements = ids.saturating_add(cpus.saturating_mul(SPARE_PER_CPU));
        Ok(Self {
            slots: Words::allocate(ids as usize, definition, memory)?,
            ids,
            values: Values::create(definition, elements, 1, memory)?,
            lengths: Words::allocate(elements as usize, definition, memory)?,
            pool: Pool::full(elements, definition, memory)?,
        })
    }

    fn slot(&self, id: u32) -> Option<&AtomicU64> {
        self.slots.get().get(id as usize).filter(|_| id < self.ids)
    }

    fn trace(&self, slot: u64) -> Option<(&[AtomicU64], usize)> {
        let index = ((slot & ELEMENT) as u32).checked_sub(1)?;
        let length = self.lengths.get().get(index as usize)?.load(Relaxed);
        Some((self.values.at(index, 0)?, length as usize))
    }

    /// The id of a trace. `Exists` if another trace has it and `REUSE_STACKID` is not given; `NoMemory` if more cores
    /// than there were said to be are at it.
    pub(super) fn id_of(&self, trace: &[u64], flags: u64) -> Result<u32, MapError> {
        let hash = hash_of(trace);
        let id = hash & (self.ids - 1);
        let slot = self.slot(id).ok_or(MapError::Invalid)?;
        let old = slot.load(Acquire);
        if old & ELEMENT != 0 {
            if (old >> 32) as u32 == hash
                && (flags & FAST_STACK_CMP != 0 || self.is_equal(old, trace))
            {
                return Ok(id);
            }
            if flags & REUSE_STACKID == 0 {
                return Err(MapError::Exists);
            }
        }
        let element = self.pool.take().ok_or(MapError::NoMemory)?;
        let index = element - 1;
        if let (Some(words), Some(length)) = (
            self.values.at(index, 0),
            self.lengths.get().get(index as usize),
        ) {
            let padded = trace.iter().copied().chain(core::iter::repeat(0));
            for (word, address) in words.iter().zip(padded) {
                word.store(address, Relaxed);
            }
            length.store(trace.len() as u64, Relaxed);
        }
        let old = slot.swap(u64::from(hash) << 32 | u64::from(element), AcqRel);
        self.free(old);
        Ok(id)
    }

    fn free(&self, slot: u64) {
        if slot & ELEMENT != 0 {
            self.pool.give((slot & ELEMENT) as u32);
        }
    }

    fn is_equal(&self, slot: u64, trace: &[u64]) -> bool {
        self.trace(slot).is_some_and(|(words, length)| {
            length == trace.len()
                && words
                    .iter()
                    .zip(trace)
                    .all(|(word, address)| word.load(Relaxed) == *address)
        })
    }

    /// Copies the trace of an id, padded with zeros.
    pub(super) fn read(&self, key: &[u8], out: &mut [u8]) -> Result<(), MapError> {
        let id = array::index(key, self.ids).ok_or(MapError::NotFound)?;
        let slot = self.slot(id).ok_or(MapError::NotFound)?;
        for _ in 0..COPIES {
            let seen = slot.load(Acquire);
            let index = ((seen & ELEMENT) as u32).checked_sub(1);
            self.values.read(index.ok_or(MapError::NotFound)?, out);
            fence(Acquire);
            if slot.load(Relaxed) == seen {
                return Ok(());
            }
        }
        Err(MapError::Busy)
    }

    /// Ids that have a trace, and elements that are free beyond those that ids may still take, when nothing is going on.
    pub(super) fn usage(&self) -> (u32, usize) {
        let is_used = |id: &u32| {
            self.slot(*id)
                .is_some_and(|slot| slot.load(Relaxed) & ELEMENT != 0)
        };
        let used = (0..self.ids).filter(is_used).count() as u32;
        let left = (self.ids - used) as usize;
        (used, self.pool.free().saturating_sub(left))
    }

    /// Forgets the trace of an id.
    pub(super) fn delete(&self, key: &[u8]) -> Result<(), MapError> {
        let id = array::index(key, self.ids).ok_or(MapError::TooBig)?;
        let old = self.slot(id).ok_or(MapError::TooBig)?.swap(0, AcqRel);
        self.free(old);
        if old & ELEMENT == 0 {
            return Err(MapError::NotFound);
        }
        Ok(())
    }

    /// The id after `key` that has a trace; the first after no key or one past the end.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), MapError> {
        let first = key
            .and_then(|key| array::index(key, self.ids))
            .map_or(0, |id| id + 1);
        let next: &mut [u8; 4] = next.try_into().map_err(|_| MapError::Invalid)?;
        let id = (first..self.ids)
            .find(|&id| {
                self.slot(id)
                    .is_some_and(|slot| slot.load(Relaxed) & ELEMENT != 0)
            })
            .ok_or(MapError::NotFound)?;
        *next = id.to_ne_bytes();
        Ok(())
    }
}

/// FNV-1a over the addresses' words, folded.
fn hash_of(trace: &[u64]) -> u32 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = trace.iter().fold(0xcbf2_9ce4_8422_2325, |hash, address| {
        (hash ^ (address ^ address >> 32)).wrapping_mul(PRIME)
    });
    (hash ^ hash >> 32) as u32
}
