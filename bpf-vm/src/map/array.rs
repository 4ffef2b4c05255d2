// SPDX-License-Identifier: MIT OR Apache-2.0
//! The array map: values by 32-bit index, all present from the start, never deleted.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use core::{ops::Range, sync::atomic::AtomicU64};

use super::{
    MapCreateError, MapDefinition, MapError, MapMemory, MapRegion, UpdateFlags,
    memory::{WORD_BYTES, address},
};

/// Bytes of an array's key, a `u32` in the machine's byte order.
const KEY_BYTES: usize = size_of::<u32>();

/// The values of an array map, one after the other at a stride of whole words (`round_up(value_size, 8)`, as Linux).
pub(super) struct Array {
    region: Box<dyn MapRegion>,
    stride_words: usize,
    entries: u32,
    values: Range<u64>,
}

impl Array {
    /// Checks the sizes that Linux's array map checks and takes memory for all values.
    pub(super) fn create(
        definition: &MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let size = |field, found: u32, allowed| MapCreateError::Size {
            map: definition.name.clone(),
            field,
            found: found.into(),
            allowed,
        };
        if definition.key_size as usize != KEY_BYTES {
            return Err(size(
                "key_size",
                definition.key_size,
                "4 (the index, a __u32)",
            ));
        }
        if definition.value_size == 0 || i32::try_from(definition.value_size).is_err() {
            return Err(size(
                "value_size",
                definition.value_size,
                "1 to 2147483647 bytes",
            ));
        }
        if definition.max_entries == 0 {
            return Err(size(
                "max_entries",
                definition.max_entries,
                "at least 1 in an array",
            ));
        }
        let stride_words = (definition.value_size as usize).div_ceil(WORD_BYTES);
        let words = stride_words.saturating_mul(definition.max_entries as usize);
        let bytes = words.saturating_mul(WORD_BYTES);
        let region = memory
            .allocate(bytes)
            .filter(|region| region.words().len() >= words)
            .ok_or_else(|| MapCreateError::Memory {
                map: definition.name.clone(),
                bytes,
            })?;
        let start = address(region.words());
        Ok(Self {
            region,
            stride_words,
            entries: definition.max_entries,
            values: start..start + bytes as u64,
        })
    }

    /// The addresses of all values.
    pub(super) fn values(&self) -> Range<u64> {
        self.values.clone()
    }

    /// Bytes from one value to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride_words * WORD_BYTES
    }

    /// The index in a key.
    fn index(key: &[u8]) -> Option<u32> {
        key.try_into().ok().map(u32::from_ne_bytes)
    }

    /// Where the value of `index` lies, if there is one.
    pub(super) fn address_of(&self, index: u32) -> Option<u64> {
        (index < self.entries).then(|| self.values.start + u64::from(index) * self.stride() as u64)
    }

    /// Where the value of `key` lies, if there is one.
    pub(super) fn address(&self, key: &[u8]) -> Option<u64> {
        self.address_of(Self::index(key)?)
    }

    /// The words of the value of `key`, or `None` past the end.
    pub(super) fn value(&self, key: &[u8]) -> Option<&[AtomicU64]> {
        let index = Self::index(key).filter(|&index| index < self.entries)?;
        let start = index as usize * self.stride_words;
        self.region.words().get(start..start + self.stride_words)
    }

    /// Linux's order of checks in an array's update: flags, then the index, then `BPF_NOEXIST`.
    pub(super) fn update(&self, key: &[u8], flags: UpdateFlags) -> Result<&[AtomicU64], MapError> {
        let value = self.value(key).ok_or(MapError::TooBig)?;
        match flags {
            UpdateFlags::NoExist => Err(MapError::Exists),
            UpdateFlags::Any | UpdateFlags::Exist => Ok(value),
        }
    }

    /// The key after `key`: 0 after no key or one past the end, `NotFound` after the last.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), MapError> {
        let next: &mut [u8; KEY_BYTES] = next.try_into().map_err(|_| MapError::Invalid)?;
        let index = match key.map(|key| Self::index(key).ok_or(MapError::Invalid)) {
            Some(index) => match index? {
                past if past >= self.entries => 0,
                last if last == self.entries - 1 => return Err(MapError::NotFound),
                index => index + 1,
            },
            None => 0,
        };
        *next = index.to_ne_bytes();
        Ok(())
    }
}
