// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where map values live: memory from the host, shared with running programs word by word.
//!
//! Programs read and write values by address while the host and other programs do the same, so from Rust a value is
//! only ever a slice of atomic words. A copy of a value is whole per 8-byte word and no more, as in Linux.
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    ptr::NonNull,
    sync::atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{AcqRel, Relaxed},
    },
};

use super::{MapCreateError, MapDefinition};

/// Bytes in the words that value memory is made of; each value starts at a multiple of it.
pub const WORD_BYTES: usize = size_of::<AtomicU64>();

/// A host's memory for map values.
///
/// A host that compiles programs gives memory within ADRP's reach of the code (Arm ARM C6.2, "ADRP": +-4 GiB).
pub trait MapMemory {
    /// Zeroed memory of at least `bytes` bytes, or none if there is none left. Never panics on a large `bytes`.
    fn allocate(&self, bytes: usize) -> Option<Box<dyn MapRegion>>;
}

/// One map's value memory; dropping it gives the memory back.
///
/// # Safety
/// `words` returns the same slice (address and length) each time, and the slice stays valid, wherever the region
/// itself is moved to, until the region is dropped: programs hold its address.
pub unsafe trait MapRegion: Send + Sync {
    /// The memory.
    fn words(&self) -> &[AtomicU64];
}

/// Value memory from the global allocator, up to a limit in bytes.
#[derive(Clone, Debug)]
pub struct HeapMemory {
    left: Arc<AtomicUsize>,
}

impl HeapMemory {
    /// Memory for values of at most `limit` bytes at any one time, over all maps created from it and its clones.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(limit)),
        }
    }
}

impl MapMemory for HeapMemory {
    fn allocate(&self, bytes: usize) -> Option<Box<dyn MapRegion>> {
        let words = bytes.div_ceil(WORD_BYTES);
        let bytes = words.checked_mul(WORD_BYTES)?;
        self.left
            .fetch_update(AcqRel, Relaxed, |left| left.checked_sub(bytes))
            .ok()?;
        let mut region = HeapRegion {
            words: Box::default(),
            bytes,
            left: self.left.clone(),
        };
        let mut zeroed = Vec::new();
        zeroed.try_reserve_exact(words).ok()?;
        zeroed.resize_with(words, AtomicU64::default);
        region.words = zeroed.into_boxed_slice();
        Some(Box::new(region))
    }
}

/// A boxed slice and the account it is paid back to.
struct HeapRegion {
    words: Box<[AtomicU64]>,
    bytes: usize,
    left: Arc<AtomicUsize>,
}

impl Drop for HeapRegion {
    fn drop(&mut self) {
        self.left.fetch_add(self.bytes, AcqRel);
    }
}

// SAFETY: `words` is set before the region is handed out and never again; a boxed slice's memory does not move with
// its box and is freed when the region is dropped.
unsafe impl MapRegion for HeapRegion {
    fn words(&self) -> &[AtomicU64] {
        &self.words
    }
}

/// A region and where its words are, so that reaching one takes no call.
pub(super) struct Words {
    start: NonNull<AtomicU64>,
    len: usize,
    /// Keeps the words; never touched again.
    _region: Box<dyn MapRegion>,
}

// SAFETY: a region may be sent to another thread, and `start` points into it.
unsafe impl Send for Words {}
// SAFETY: all that is shared is a slice of atomic words.
unsafe impl Sync for Words {}

impl Words {
    /// At least `count` zeroed words from the host; `Memory` names the map if there are none left.
    pub(super) fn allocate(
        count: usize,
        definition: &MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let bytes = count.saturating_mul(WORD_BYTES);
        let region = memory
            .allocate(bytes)
            .filter(|region| region.words().len() >= count)
            .ok_or_else(|| MapCreateError::Memory {
                map: definition.name.clone(),
                bytes,
            })?;
        Ok(Self {
            start: NonNull::from(region.words()).cast(),
            len: region.words().len(),
            _region: region,
        })
    }

    /// The words.
    #[inline(always)]
    pub(super) fn get(&self) -> &[AtomicU64] {
        // SAFETY: `MapRegion` promises that its slice stays where it is until the region, held here, is dropped.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// The address of value memory as programs use it, with its provenance exposed for them.
pub(super) fn address(words: &[AtomicU64]) -> u64 {
    words.as_ptr().expose_provenance() as u64
}

/// Copies the first `out.len()` bytes of a value out, word by word. Bytes past the value's end stay as they are.
pub fn read_bytes(words: &[AtomicU64], out: &mut [u8]) {
    for (word, out) in words.iter().zip(out.chunks_mut(WORD_BYTES)) {
        let bytes = word.load(Relaxed).to_ne_bytes();
        for (to, from) in out.iter_mut().zip(bytes) {
            *to = from;
        }
    }
}

/// Copies `bytes` into a value, word by word; the last word's bytes past the end of `bytes` become zero.
///
/// Bytes past the value's end are dropped.
pub fn write_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, value) in words.iter().zip(whole_words(bytes)) {
        word.store(value, Relaxed);
    }
}

/// Bytes as words, the last one padded with zeros.
pub(super) fn whole_words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks(WORD_BYTES).map(|bytes| {
        let mut whole = [0; WORD_BYTES];
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        u64::from_ne_bytes(whole)
    })
}

/// Puts `bytes` at a byte offset of a value and leaves the rest; not whole for someone who writes the value meanwhile.
pub(super) fn overwrite(words: &[AtomicU64], offset: usize, bytes: &[u8]) {
    let start = offset % WORD_BYTES;
    let words = words.get(offset / WORD_BYTES..).unwrap_or_default();
    let mut bytes = bytes.iter();
    for (index, word) in words.iter().enumerate() {
        if bytes.len() == 0 {
            return;
        }
        let mut whole = word.load(Relaxed).to_ne_bytes();
        let skip = if index == 0 { start } else { 0 };
        // The place comes first: `zip` takes from it before it takes a byte.
        for (to, from) in whole.iter_mut().skip(skip).zip(bytes.by_ref()) {
            *to = *from;
        }
        word.store(u64::from_ne_bytes(whole), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every offset and length, inside and past the end: what is named changes, the rest stays.
    #[test]
    fn overwrite_changes_only_what_is_named() {
        const BYTES: usize = 24;
        let new: [u8; BYTES] = core::array::from_fn(|index| index as u8 + 1);
        for offset in 0..BYTES + 2 {
            for len in 0..=BYTES {
                let words: [AtomicU64; BYTES / WORD_BYTES] = Default::default();
                write_bytes(&words, &[0xff; BYTES]);
                overwrite(&words, offset, &new[..len]);
                let mut want = [0xff; BYTES];
                for (to, from) in want.iter_mut().skip(offset).zip(&new[..len]) {
                    *to = *from;
                }
                let mut got = [0; BYTES];
                read_bytes(&words, &mut got);
                assert_eq!(got, want, "{len} bytes at {offset}");
            }
        }
    }
}
