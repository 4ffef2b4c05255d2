// SPDX-License-Identifier: MIT OR Apache-2.0
//! What creating a map and working on one can answer.
#![forbid(unsafe_code)]

use alloc::string::String;
use core::fmt;

use super::MapKind;

/// What an operation on a map answers when it does not succeed: Linux's error numbers, as programs see them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// `EPERM`: the map is read-only for whoever asked.
    NotPermitted,
    /// `ENOENT`: no such key, or no next one.
    NotFound,
    /// `EAGAIN`: a ring buffer has no room for the record now.
    Again,
    /// `ENOMEM`: an LRU map found no element that it could evict.
    NoMemory,
    /// `EBUSY`: this core is in the middle of an update of the same bucket, or another core kept it for too long.
    Busy,
    /// `E2BIG`: the index or the number of elements is past `max_entries`.
    TooBig,
    /// `EEXIST`: the key is there already and the flags asked for a new one.
    Exists,
    /// `EINVAL`: a key, value, flag or operation that this kind of map does not take.
    Invalid,
    /// `ENOSPC`: an LPM trie holds `max_entries` prefixes.
    NoSpace,
}

impl MapError {
    /// Linux's number for it, positive (`asm-generic/errno-base.h`).
    pub const fn errno(self) -> i32 {
        match self {
            Self::NotPermitted => 1,
            Self::NotFound => 2,
            Self::TooBig => 7,
            Self::Again => 11,
            Self::NoMemory => 12,
            Self::Busy => 16,
            Self::Exists => 17,
            Self::Invalid => 22,
            Self::NoSpace => 28,
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPermitted => "the map is read-only (EPERM)",
            Self::NotFound => "no such key (ENOENT)",
            Self::TooBig => "past the map's max_entries: the index, or one element more (E2BIG)",
            Self::Again => "the ring buffer has no room for the record now (EAGAIN)",
            Self::NoMemory => "no element could be evicted (ENOMEM)",
            Self::Busy => "the bucket is being updated; try again (EBUSY)",
            Self::NoSpace => "the trie holds max_entries prefixes already (ENOSPC)",
            Self::Exists => "the key exists already (EEXIST)",
            Self::Invalid => {
                "a key, value, flag or operation that this kind of map does not take (EINVAL)"
            }
        })
    }
}

impl core::error::Error for MapError {}

/// Why a map could not be created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapCreateError {
    /// A kind that is not implemented.
    Kind {
        /// The map's name.
        map: String,
        /// The kind it asks for.
        kind: MapKind,
    },
    /// A size or a flag that the kind does not allow.
    Size {
        /// The map's name.
        map: String,
        /// The field's name in the definition (`key_size`, `value_size`, ...).
        field: &'static str,
        /// The value found.
        found: u64,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// A map of maps without an inner definition, or one for another kind.
    Inner {
        /// The map's name.
        map: String,
    },
    /// The host has no memory of that size left for values, keys and links.
    Memory {
        /// The map's name.
        map: String,
        /// Bytes that were asked for at once.
        bytes: usize,
    },
}

impl fmt::Display for MapCreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind { map, kind } => write!(
                f,
                "map `{map}`: {kind} is not supported; use {}, {} or another kind that MapKind names",
                MapKind::ARRAY,
                MapKind::HASH
            ),
            Self::Inner { map } => write!(
                f,
                "map `{map}`: a map of maps needs the definition of its inner maps, and only a map of maps takes one; write __array(values, struct {{ ... }})"
            ),
            Self::Size {
                map,
                field,
                found,
                allowed,
            } => write!(
                f,
                "map `{map}`: {field} is {found}, but has to be {allowed}"
            ),
            Self::Memory { map, bytes } => write!(
                f,
                "map `{map}`: no memory left for its {bytes} bytes; lower max_entries or the size of its value"
            ),
        }
    }
}

impl core::error::Error for MapCreateError {}
