// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys that are indices: what arrays, per-CPU arrays, program arrays and arrays of maps have in common.
//!
//! All values are there from the start and stay; nothing is locked, a value is written word by word, as in Linux.
#![forbid(unsafe_code)]

use super::{MapError, UpdateFlags};

/// Bytes of such a key, a `u32` in the machine's byte order.
const KEY_BYTES: usize = size_of::<u32>();

/// The index in a key, if it is below `entries`.
pub(super) fn index(key: &[u8], entries: u32) -> Option<u32> {
    let index = u32::from_ne_bytes(key.try_into().ok()?);
    (index < entries).then_some(index)
}

/// Linux's order of checks in an array's update: the index, then `BPF_NOEXIST` (flags are known to be some).
pub(super) fn updated(key: &[u8], entries: u32, flags: UpdateFlags) -> Result<u32, MapError> {
    let index = index(key, entries).ok_or(MapError::TooBig)?;
    match flags {
        UpdateFlags::NoExist => Err(MapError::Exists),
        UpdateFlags::Any | UpdateFlags::Exist => Ok(index),
    }
}

/// The key after `key`: 0 after no key or one past the end, `NotFound` after the last.
pub(super) fn next_key(key: Option<&[u8]>, entries: u32, next: &mut [u8]) -> Result<(), MapError> {
    let next: &mut [u8; KEY_BYTES] = next.try_into().map_err(|_| MapError::Invalid)?;
    let after = match key {
        Some(key) if key.len() != KEY_BYTES => return Err(MapError::Invalid),
        Some(key) => match index(key, entries) {
            None => 0,
            Some(last) if last == entries - 1 => return Err(MapError::NotFound),
            Some(index) => index + 1,
        },
        None => 0,
    };
    *next = after.to_ne_bytes();
    Ok(())
}
