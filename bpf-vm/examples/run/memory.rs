// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory that a program is given in r1 and r2, and hex digits as bytes.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bpf_vm::interp::Region;

/// Bytes of a word.
const WORD: usize = 8;

/// Bytes that a program may read and write, aligned to 8.
#[derive(Debug)]
pub(crate) struct Memory {
    words: Vec<AtomicU64>,
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let memory = Self {
            words: (0..bytes.len().div_ceil(WORD))
                .map(|_| AtomicU64::new(0))
                .collect(),
            bytes: bytes.len(),
        };
        memory.set(bytes);
        memory
    }

    /// Makes it hold `bytes`, whatever a program left there.
    pub(crate) fn set(&self, bytes: &[u8]) {
        for (word, bytes) in self.words.iter().zip(bytes.chunks(WORD)) {
            let mut value = [0; WORD];
            value
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
            word.store(u64::from_le_bytes(value), Relaxed);
        }
    }

    /// What it holds.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let words = self.words.iter();
        let bytes = words.flat_map(|word| word.load(Relaxed).to_le_bytes());
        bytes.take(self.bytes).collect()
    }

    /// r1 and r2: address and length in bytes; both 0 if there is none.
    pub(crate) fn arguments(&self) -> [u64; 2] {
        match self.bytes {
            0 => [0, 0],
            bytes => [self.words.as_ptr().expose_provenance() as u64, bytes as u64],
        }
    }

    /// All of it, to its last byte.
    pub(crate) fn region(&self) -> Region<'_> {
        Region::bytes(&self.words, self.bytes as u64)
    }
}

/// The bytes that hex digits stand for, two each; whitespace does not count.
///
/// # Errors
/// What `what` holds instead, and where.
pub(crate) fn hex(what: &str, text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len() / 2);
    let mut high = None;
    for (at, found) in text.char_indices().filter(|(_, c)| !c.is_whitespace()) {
        let digit = found
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok());
        let digit = digit.ok_or_else(|| {
            format!(
                "the {what} holds {found:?} at character {at}; hex digits are 0-9, a-f, without 0x"
            )
        })?;
        match high.take() {
            None => high = Some(digit),
            Some(high) => bytes.push(high << 4 | digit),
        }
    }
    match high {
        None => Ok(bytes),
        Some(_) => Err(format!(
            "the {what} has an odd number of hex digits ({}); each byte is two",
            bytes.len() * 2 + 1
        )),
    }
}
