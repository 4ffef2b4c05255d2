// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory behind a pointer that a program hands to a helper.
use core::{
    ptr::with_exposed_provenance_mut,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

use crate::map::{ValueWords, memory::WORD_BYTES};

/// The longest string that a helper is given, bytes with its end.
pub(crate) const LONGEST_STRING: usize = 4096;

/// Memory of a program, to read: bytes that others may write at the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProgramBytes {
    address: usize,
    len: usize,
}

impl ProgramBytes {
    /// The `len` bytes at `address`.
    ///
    /// # Safety
    /// They are readable for as long as the value is used, by an address whose provenance is exposed, and whoever
    /// writes them meanwhile is a program or writes atomically.
    pub(super) unsafe fn new(address: u64, len: usize) -> Self {
        Self {
            address: address as usize,
            len,
        }
    }

    /// The bytes of the string at `address`, its end included, or its first [`LONGEST_STRING`].
    ///
    /// # Safety
    /// As [`new`](Self::new), for the bytes up to the string's end, which nobody moves.
    pub(super) unsafe fn string(address: u64) -> Self {
        // SAFETY: only bytes before an end that was not seen yet are read, so all of them are the string's.
        let all = unsafe { Self::new(address, LONGEST_STRING) };
        let end = (0..LONGEST_STRING).find(|index| all.get(*index) == Some(0));
        Self {
            len: end.map_or(LONGEST_STRING, |end| end + 1),
            ..all
        }
    }

    /// Bytes that never change, for tests.
    #[cfg(test)]
    pub(super) fn of_static(bytes: &'static [u8]) -> Self {
        // SAFETY: they are readable for ever and nobody writes them.
        unsafe { Self::new(bytes.as_ptr().expose_provenance() as u64, bytes.len()) }
    }

    /// The number of bytes.
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// The byte at `index`, if it is one of these.
    pub(super) fn get(self, index: usize) -> Option<u8> {
        if index >= self.len {
            return None;
        }
        let byte = with_exposed_provenance_mut(self.address + index);
        // SAFETY: `index` is below `len`, so `new`'s caller promised that the byte is readable; it is only loaded.
        let byte = unsafe { AtomicU8::from_ptr(byte) };
        Some(byte.load(Relaxed))
    }

    /// Copies the first bytes into `out`, as many as both have.
    pub(super) fn copy_to(self, out: &mut [u8]) {
        for (index, out) in out.iter_mut().enumerate() {
            if let Some(byte) = self.get(index) {
                *out = byte;
            }
        }
    }

    /// The word at byte `index`, padded with zero past the end; in one load where it is aligned and whole.
    pub(super) fn word(self, index: usize) -> u64 {
        let at = self.address.wrapping_add(index);
        if at.is_multiple_of(WORD_BYTES) && self.len.saturating_sub(index) >= WORD_BYTES {
            // SAFETY: the pointer is aligned, and the 8 bytes from `index` are below `len`, so `new`'s caller
            // promised that they are readable; they are only loaded.
            let word = unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at)) };
            return word.load(Relaxed);
        }
        let mut bytes = [0; WORD_BYTES];
        for (offset, byte) in bytes.iter_mut().enumerate() {
            *byte = self.get(index + offset).unwrap_or(0);
        }
        u64::from_ne_bytes(bytes)
    }

    /// Copies the bytes into a value's words.
    pub(super) fn copy_to_value(self, value: ValueWords<'_>) {
        let indices = (0..self.len).step_by(WORD_BYTES);
        value.write(indices.map(|index| self.word(index)));
    }
}

/// Memory of a program, to write.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProgramOut {
    address: usize,
    len: usize,
}

impl ProgramOut {
    /// The `len` bytes at `address`.
    ///
    /// # Safety
    /// They are writable for as long as the value is used, by an address whose provenance is exposed, and whoever
    /// accesses them meanwhile is a program or does so atomically.
    pub(super) unsafe fn new(address: u64, len: usize) -> Self {
        Self {
            address: address as usize,
            len,
        }
    }

    /// Bytes of a test that nobody else uses while this does.
    #[cfg(test)]
    pub(super) fn of_mut(address: u64, len: usize) -> Self {
        // SAFETY: tests hand over their own buffers.
        unsafe { Self::new(address, len) }
    }

    /// The number of bytes.
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// Sets the byte at `index`, if it is one of these.
    pub(super) fn set(self, index: usize, byte: u8) {
        if index < self.len {
            let at = with_exposed_provenance_mut(self.address + index);
            // SAFETY: `index` is below `len`, so `new`'s caller promised that the byte is writable.
            let at = unsafe { AtomicU8::from_ptr(at) };
            at.store(byte, Relaxed);
        }
    }

    /// Writes bytes from byte `index` on, as many as fit.
    pub(super) fn write(self, index: usize, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<WORD_BYTES>();
        let mut at = index;
        for word in words {
            self.set_word(at, u64::from_ne_bytes(*word));
            at += WORD_BYTES;
        }
        for byte in rest {
            self.set(at, *byte);
            at += 1;
        }
    }

    /// Sets the 8 bytes at `index`, as many of them as are of these; in one store where it is aligned and whole.
    fn set_word(self, index: usize, word: u64) {
        let at = self.address.wrapping_add(index);
        if at.is_multiple_of(WORD_BYTES) && self.len.saturating_sub(index) >= WORD_BYTES {
            // SAFETY: the pointer is aligned, and the 8 bytes from `index` are below `len`, so `new`'s caller
            // promised that they are writable.
            let at = unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at)) };
            return at.store(word, Relaxed);
        }
        for (offset, byte) in word.to_ne_bytes().into_iter().enumerate() {
            self.set(index + offset, byte);
        }
    }

    /// Writes words from the start on, as many as fit.
    pub(super) fn copy_from(self, words: impl IntoIterator<Item = u64>) {
        for (index, word) in (0..self.len).step_by(WORD_BYTES).zip(words) {
            self.set_word(index, word);
        }
    }

    /// Copies bytes, as many as both have; they may overlap.
    pub(super) fn move_from(self, from: ProgramBytes) {
        let len = self.len.min(from.len);
        let (to, from) = (Self { len, ..self }, ProgramBytes { len, ..from });
        let copy = |at| to.set_word(at, from.word(at));
        // What was written is not read any more: downwards from the start on, upwards from the end.
        let words = (0..len).step_by(WORD_BYTES);
        if to.address <= from.address {
            words.for_each(copy);
        } else {
            words.rev().for_each(copy);
        }
    }

    /// Zeroes all of it.
    pub(super) fn clear(self) {
        self.copy_from(core::iter::repeat(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the next, the other way; bytes around are left alone.
    #[test]
    fn words_are_written_to_any_alignment() {
        let words = [
            0x0807_0605_0403_0201u64,
            0x100f_0e0d_0c0b_0a09,
            0x1817_1615_1413_1211,
        ];
        for start in 0..8 {
            for len in 0..=24 {
                let target: [AtomicU64; 5] = Default::default();
                let base = target.as_ptr().expose_provenance() as u64;
                // SAFETY: `start + len` is at most 31, the target has 40 bytes, atomic ones, and outlives the copy.
                let out = unsafe { ProgramOut::new(base + start as u64, len) };
                out.copy_from(words);
                let got: alloc::vec::Vec<u8> = target
                    .iter()
                    .flat_map(|word| word.load(Relaxed).to_ne_bytes())
                    .collect();
                let mut want = [0; 40];
                for index in 0..len {
                    want[start + index] = index as u8 + 1;
                }
                assert_eq!(got, want, "{len} bytes to {start}");
                out.clear();
                assert!(target.iter().all(|word| word.load(Relaxed) == 0));
            }
        }
    }

    /// Values of every length, from every alignment, arrive whole and padded with zeros.
    #[test]
    fn a_value_is_copied_from_any_alignment() {
        let source: [u8; 40] = core::array::from_fn(|index| index as u8 + 1);
        let base = source.as_ptr().expose_provenance() as u64;
        for start in 0..8 {
            for len in 0..=24 {
                // SAFETY: `start + len` is at most 31 and `source` has 40 bytes and outlives the copy.
                let bytes = unsafe { ProgramBytes::new(base + start as u64, len) };
                let words: [AtomicU64; 3] = Default::default();
                bytes.copy_to_value(words[..].into());
                let got: alloc::vec::Vec<u8> = words
                    .iter()
                    .flat_map(|word| word.load(Relaxed).to_ne_bytes())
                    .collect();
                let mut want = [0; 24];
                want[..len].copy_from_slice(&source[start..start + len]);
                assert_eq!(got, want, "{len} bytes from {start}");
            }
        }
    }
}
