// SPDX-License-Identifier: MIT OR Apache-2.0
//! The values of a map: one region, `base + cpu * cpu_stride + index * stride`, whole words each.
#![forbid(unsafe_code)]

use core::{ops::Range, sync::atomic::AtomicU64};

use super::{
    MapCreateError, MapDefinition, MapMemory,
    memory::{WORD_BYTES, Words, address, read_bytes, write_bytes},
};

/// Values by index, one a core in a per-CPU map, one in all otherwise (`cpus` is 1 then).
pub(super) struct Values {
    words: Words,
    stride_words: usize,
    entries: u32,
    cpus: u32,
    range: Range<u64>,
}

impl Values {
    /// Zeroed values of the definition's size, rounded up to whole words as Linux does.
    pub(super) fn create(
        definition: &MapDefinition,
        entries: u32,
        cpus: u32,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let stride_words = (definition.value_size as usize).div_ceil(WORD_BYTES);
        let count = stride_words
            .saturating_mul(entries as usize)
            .saturating_mul(cpus as usize);
        let words = Words::allocate(count, definition, memory)?;
        let start = address(words.get());
        Ok(Self {
            range: start..start + (count * WORD_BYTES) as u64,
            words,
            stride_words,
            entries,
            cpus,
        })
    }

    /// The addresses of all of them.
    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Bytes from one value to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride_words * WORD_BYTES
    }

    /// Bytes from one core's value to the next core's.
    pub(super) fn cpu_stride(&self) -> usize {
        self.stride() * self.entries as usize
    }

    /// How many there are for one core.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// The words of a core's value.
    pub(super) fn at(&self, index: u32, cpu: u32) -> Option<&[AtomicU64]> {
        let start = self.offset(index, cpu)? * self.stride_words;
        self.words.get().get(start..start + self.stride_words)
    }

    /// Where a core's value lies.
    pub(super) fn address(&self, index: u32, cpu: u32) -> Option<u64> {
        Some(self.range.start + (self.offset(index, cpu)? * self.stride()) as u64)
    }

    fn offset(&self, index: u32, cpu: u32) -> Option<usize> {
        // Where there is one value for all cores, each core's is that one.
        let cpu = if self.cpus == 1 { 0 } else { cpu };
        (index < self.entries && cpu < self.cpus)
            .then(|| cpu as usize * self.entries as usize + index as usize)
    }

    /// All cores' values of an index, one after the other, as the host sees them.
    pub(super) fn read(&self, index: u32, out: &mut [u8]) {
        let part = if self.cpus == 1 {
            out.len()
        } else {
            self.stride()
        };
        for (cpu, out) in (0..self.cpus).zip(out.chunks_mut(part.max(1))) {
            if let Some(words) = self.at(index, cpu) {
                read_bytes(words, out);
            }
        }
    }

    /// As [`read`](Self::read), the other way.
    pub(super) fn write(&self, index: u32, bytes: &[u8]) {
        let part = if self.cpus == 1 {
            bytes.len()
        } else {
            self.stride()
        };
        for (cpu, bytes) in (0..self.cpus).zip(bytes.chunks(part.max(1))) {
            if let Some(words) = self.at(index, cpu) {
                write_bytes(words, bytes);
            }
        }
    }

    /// Zeroes all cores' values of an index.
    pub(super) fn clear(&self, index: u32) {
        for cpu in 0..self.cpus {
            for word in self.at(index, cpu).unwrap_or_default() {
                word.store(0, core::sync::atomic::Ordering::Relaxed);
            }
        }
    }
}
