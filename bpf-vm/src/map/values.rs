// SPDX-License-Identifier: MIT OR Apache-2.0
//! The values of a map: one region, `base + cpu * cpu_stride + index * stride`, whole words each.
#![forbid(unsafe_code)]

use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    MapCreateError, MapDefinition, MapMemory,
    memory::{WORD_BYTES, Words, address, read_bytes, whole_words},
};

/// Values by index, one a core in a per-CPU map, one in all otherwise (`cpus` is 1 then).
pub(super) struct Values {
    words: Words,
    stride_words: usize,
    entries: u32,
    cpus: u32,
    range: Range<u64>,
    /// Where in each value a lock is.
    lock: Option<Lock>,
}

/// Bytes of a `struct bpf_spin_lock`.
const LOCK_BYTES: usize = 4;

/// Where a lock is in a value.
#[derive(Clone, Copy)]
struct Lock {
    offset: usize,
    /// Its bits in its word.
    mask: u64,
}

impl Lock {
    fn at(offset: usize) -> Self {
        let mut bytes = [0; WORD_BYTES];
        let lock = bytes.iter_mut().skip(offset % WORD_BYTES);
        lock.take(LOCK_BYTES).for_each(|byte| *byte = 0xff);
        Self {
            offset,
            mask: u64::from_ne_bytes(bytes),
        }
    }
}

/// A value, for an update to write: its words, but not the lock that may be in one of them. Whoever holds that gives it
/// back himself (Linux: `copy_map_value`).
#[derive(Clone, Copy)]
pub struct ValueWords<'a> {
    words: &'a [AtomicU64],
    lock: Option<Lock>,
}

impl<'a> From<&'a [AtomicU64]> for ValueWords<'a> {
    /// A value without a lock.
    fn from(words: &'a [AtomicU64]) -> Self {
        Self { words, lock: None }
    }
}

impl ValueWords<'_> {
    /// Where it lies.
    pub(super) fn address(&self) -> u64 {
        address(self.words)
    }

    /// Sets the words, as many as there are, from the first on. Each is whole for whoever reads it meanwhile.
    pub fn write(&self, values: impl IntoIterator<Item = u64>) {
        let lock = self.lock.map(|lock| (lock.offset / WORD_BYTES, lock.mask));
        for ((index, word), value) in self.words.iter().enumerate().zip(values) {
            match lock {
                Some((at, mask)) if at == index => {
                    let beside = |old| Some(old & mask | value & !mask);
                    // Taken or given back in between: once more.
                    let _ = word.fetch_update(Relaxed, Relaxed, beside);
                }
                _ => word.store(value, Relaxed),
            }
        }
    }

    /// Sets the words from bytes; the last word's bytes past the end of `bytes` become zero.
    pub fn write_bytes(&self, bytes: &[u8]) {
        self.write(whole_words(bytes));
    }
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
            lock: None,
        })
    }

    /// With a lock at a byte offset, a multiple of 4, of each.
    pub(super) fn set_lock(&mut self, offset: usize) {
        self.lock = Some(Lock::at(offset));
    }

    /// A core's value, for an update.
    pub(super) fn value(&self, index: u32, cpu: u32) -> Option<ValueWords<'_>> {
        let words = self.at(index, cpu)?;
        Some(ValueWords {
            words,
            lock: self.lock,
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

    /// All cores' values of an index, one after the other, as the host sees them: a lock is 0.
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
            if let Some(lock) = self.lock {
                let lock = out.iter_mut().skip(lock.offset).take(LOCK_BYTES);
                lock.for_each(|byte| *byte = 0);
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
            if let Some(value) = self.value(index, cpu) {
                value.write_bytes(bytes);
            }
        }
    }

    /// Zeroes all cores' values of an index.
    pub(super) fn clear(&self, index: u32) {
        for cpu in 0..self.cpus {
            if let Some(value) = self.value(index, cpu) {
                value.write(core::iter::repeat(0));
            }
        }
    }
}
