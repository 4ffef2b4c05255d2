// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps: memory that programs and their host share by key, with Linux's semantics and error numbers.
//!
//! A map is created once, in an [`Arc`], and never moves: what a program holds as "the map" is its address
//! ([`Map::handle`]). All values are allocated when the map is created; nothing here allocates or locks afterwards.
#![deny(unsafe_code)]

use alloc::{string::String, sync::Arc};
use core::{fmt, ops::Range, sync::atomic::AtomicU64};

mod array;
mod error;
mod kind;
#[expect(
    unsafe_code,
    reason = "a region's memory has to stay where programs know it"
)]
pub mod memory;

use self::{
    array::Array,
    memory::{overwrite, read_bytes, write_bytes},
};
pub use self::{
    error::{MapCreateError, MapError},
    kind::MapKind,
    memory::{HeapMemory, MapMemory, MapRegion},
};

/// What defines a map: the fields of a BTF-defined map in C, `bpf_attr` of `BPF_MAP_CREATE` in Linux.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapDefinition {
    /// The variable's name in C; a data section's name (`.rodata`) for global data.
    pub name: String,
    /// `type`.
    pub kind: MapKind,
    /// `key_size` or the size of `key`, bytes.
    pub key_size: u32,
    /// `value_size` or the size of `value`, bytes.
    pub value_size: u32,
    /// `max_entries`.
    pub max_entries: u32,
    /// `map_flags`: the `BPF_F_*` bits of `linux/bpf.h`.
    pub flags: u32,
}

impl MapDefinition {
    /// `BPF_F_RDONLY_PROG`: programs may not write the values.
    pub const RDONLY_PROG: u32 = 1 << 7;
    /// `BPF_F_MMAPABLE`: values may be mapped elsewhere; they always can here, so it is accepted and changes nothing.
    pub const MMAPABLE: u32 = 1 << 10;
    /// The flags that are understood.
    const KNOWN_FLAGS: u32 = Self::RDONLY_PROG | Self::MMAPABLE;
}

/// How an update treats a key that is there or is not (`BPF_ANY`, `BPF_NOEXIST`, `BPF_EXIST` of `linux/bpf.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpdateFlags {
    /// `BPF_ANY` (0): create or replace.
    Any,
    /// `BPF_NOEXIST` (1): create only.
    NoExist,
    /// `BPF_EXIST` (2): replace only.
    Exist,
}

impl TryFrom<u64> for UpdateFlags {
    type Error = MapError;

    /// From the number a program passes; any other bit is `EINVAL`.
    fn try_from(flags: u64) -> Result<Self, MapError> {
        match flags {
            0 => Ok(Self::Any),
            1 => Ok(Self::NoExist),
            2 => Ok(Self::Exist),
            _ => Err(MapError::Invalid),
        }
    }
}

/// A map. Shared in an [`Arc`], at one address for as long as anyone holds it.
pub struct Map {
    definition: MapDefinition,
    storage: Storage,
}

/// What holds the values, by kind.
enum Storage {
    Array(Array),
}

impl Map {
    /// Creates a map with zeroed values in memory from the host.
    ///
    /// Errors name the map and the field: a kind that is not implemented, a size or flag that Linux refuses too, no
    /// memory left.
    pub fn create(
        definition: MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Arc<Self>, MapCreateError> {
        let unknown = definition.flags & !MapDefinition::KNOWN_FLAGS;
        if unknown != 0 {
            return Err(MapCreateError::Size {
                map: definition.name,
                field: "map_flags",
                found: definition.flags.into(),
                allowed: "made of BPF_F_RDONLY_PROG (0x80) and BPF_F_MMAPABLE (0x400) only",
            });
        }
        let storage = match definition.kind {
            MapKind::ARRAY => Storage::Array(Array::create(&definition, memory)?),
            kind => {
                return Err(MapCreateError::Kind {
                    map: definition.name,
                    kind,
                });
            }
        };
        Ok(Arc::new(Self {
            definition,
            storage,
        }))
    }

    /// What the map was created from.
    pub fn definition(&self) -> &MapDefinition {
        &self.definition
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.definition.key_size as usize
    }

    /// Bytes of a value.
    pub fn value_size(&self) -> usize {
        self.definition.value_size as usize
    }

    /// Whether programs may write the values.
    pub fn program_may_write(&self) -> bool {
        self.definition.flags & MapDefinition::RDONLY_PROG == 0
    }

    /// The number that stands for this map in a program's registers: the map's address, provenance exposed, so that
    /// helpers can follow it.
    pub fn handle(self: &Arc<Self>) -> u64 {
        Arc::as_ptr(self).expose_provenance() as u64
    }

    /// Addresses of all values, if they lie in one range; an access in it is an access to this map's values.
    pub fn value_range(&self) -> Option<Range<u64>> {
        match &self.storage {
            Storage::Array(array) => Some(array.values()),
        }
    }

    /// Bytes from the value of one index to the next, in a map whose keys are indices.
    pub fn value_stride(&self) -> Option<usize> {
        match &self.storage {
            Storage::Array(array) => Some(array.stride()),
        }
    }

    /// The address of the value of an index, in a map whose keys are indices; `None` past the end.
    pub fn value_address(&self, index: u32) -> Option<u64> {
        match &self.storage {
            Storage::Array(array) => array.address_of(index),
        }
    }

    /// The address of the value of `key`, which is what `bpf_map_lookup_elem` returns; `None` if there is none.
    pub fn lookup_address(&self, key: &[u8]) -> Option<u64> {
        match &self.storage {
            Storage::Array(array) => array.address(key),
        }
    }

    /// Copies the value of `key` into `value`, whole per 8-byte word.
    ///
    /// Errors: `Invalid` if `key` or `value` has not the map's size; `NotFound`.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), MapError> {
        if key.len() != self.key_size() || value.len() != self.value_size() {
            return Err(MapError::Invalid);
        }
        let words = match &self.storage {
            Storage::Array(array) => array.value(key),
        };
        read_bytes(words.ok_or(MapError::NotFound)?, value);
        Ok(())
    }

    /// Sets the value of `key`, whole per 8-byte word.
    ///
    /// Errors: `Invalid` if `key` or `value` has not the map's size; `NotPermitted` for read-only data; what the kind
    /// and `flags` say (an array: `TooBig` past the end, `Exists` for `NoExist`).
    pub fn update(&self, key: &[u8], value: &[u8], flags: UpdateFlags) -> Result<(), MapError> {
        if value.len() != self.value_size() {
            return Err(MapError::Invalid);
        }
        self.update_with(key, flags, |words| write_bytes(words, value))
    }

    /// As [`update`](Self::update), with a value that `fill` writes into the value's words.
    pub fn update_with(
        &self,
        key: &[u8],
        flags: UpdateFlags,
        fill: impl FnOnce(&[AtomicU64]),
    ) -> Result<(), MapError> {
        if !self.program_may_write() {
            return Err(MapError::NotPermitted);
        }
        if key.len() != self.key_size() {
            return Err(MapError::Invalid);
        }
        match &self.storage {
            Storage::Array(array) => fill(array.update(key, flags)?),
        }
        Ok(())
    }

    /// Removes `key`. An array's keys cannot be removed: `Invalid`.
    pub fn delete(&self, key: &[u8]) -> Result<(), MapError> {
        if key.len() != self.key_size() {
            return Err(MapError::Invalid);
        }
        match &self.storage {
            Storage::Array(_) => Err(MapError::Invalid),
        }
    }

    /// Writes the key after `key` (the first, if `None`) into `next`; `NotFound` after the last.
    ///
    /// Errors: `Invalid` if a key has not the map's size.
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), MapError> {
        match &self.storage {
            Storage::Array(array) => array.next_key(key, next),
        }
    }

    /// Puts `content` at a byte offset of value 0 of a data section's map, before any program can see it.
    pub(crate) fn initialise(&self, offset: usize, content: &[u8]) {
        match &self.storage {
            Storage::Array(array) => {
                if let Some(words) = array.value(&0u32.to_ne_bytes()) {
                    overwrite(words, offset, content);
                }
            }
        }
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.definition.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(value_size: u32, max_entries: u32) -> Result<Arc<Map>, MapCreateError> {
        let definition = MapDefinition {
            name: "m".into(),
            kind: MapKind::ARRAY,
            key_size: 4,
            value_size,
            max_entries,
            flags: 0,
        };
        Map::create(definition, &HeapMemory::with_limit(1 << 16))
    }

    fn key(index: u32) -> [u8; 4] {
        index.to_ne_bytes()
    }

    /// Linux's answers for an array (`map_update_elem` and friends, bpf(2)), one row an operation.
    #[test]
    fn array_answers_as_linux() {
        let map = array(5, 3).unwrap();
        let value = *b"abcde";
        let update = |index, flags: u64| {
            UpdateFlags::try_from(flags).and_then(|flags| map.update(&key(index), &value, flags))
        };
        for (index, flags, want) in [
            (0, 0, Ok(())),
            (2, 2, Ok(())),
            (0, 1, Err(MapError::Exists)),
            (3, 0, Err(MapError::TooBig)),
            (3, 1, Err(MapError::TooBig)),
            (0, 3, Err(MapError::Invalid)),
            (9, 4, Err(MapError::Invalid)),
        ] {
            assert_eq!(update(index, flags), want, "index {index}, flags {flags}");
        }
        let mut out = [0; 5];
        assert_eq!(map.lookup(&key(2), &mut out), Ok(()));
        assert_eq!(out, value);
        assert_eq!(map.lookup(&key(1), &mut out), Ok(()));
        assert_eq!(out, [0; 5]);
        assert_eq!(map.lookup(&key(3), &mut out), Err(MapError::NotFound));
        assert_eq!(map.lookup(&[0; 3], &mut out), Err(MapError::Invalid));
        assert_eq!(map.delete(&key(0)), Err(MapError::Invalid));
        assert_eq!(
            map.update(&key(0), &[0; 4], UpdateFlags::Any),
            Err(MapError::Invalid)
        );
    }

    #[test]
    fn keys_are_walked_in_order() {
        let map = array(8, 3).unwrap();
        let next = |from: Option<u32>| {
            let mut out = [0; 4];
            map.next_key(from.map(key).as_ref().map(|key| &key[..]), &mut out)
                .map(|()| u32::from_ne_bytes(out))
        };
        for (from, want) in [
            (None, Ok(0)),
            (Some(0), Ok(1)),
            (Some(1), Ok(2)),
            (Some(2), Err(MapError::NotFound)),
            (Some(3), Ok(0)),
            (Some(u32::MAX), Ok(0)),
        ] {
            assert_eq!(next(from), want, "after {from:?}");
        }
    }

    #[test]
    fn values_lie_aligned_at_a_fixed_stride() {
        let map = array(12, 4).unwrap();
        let range = map.value_range().unwrap();
        assert_eq!(map.value_stride(), Some(16));
        assert_eq!(range.end - range.start, 64);
        for index in 0..4 {
            let address = map.value_address(index).unwrap();
            assert_eq!(address % 8, 0);
            assert_eq!(address, range.start + 16 * u64::from(index));
            assert_eq!(map.lookup_address(&key(index)), Some(address));
        }
        assert_eq!(map.value_address(4), None);
        assert_eq!(map.lookup_address(&key(4)), None);
    }

    #[test]
    fn sizes_past_the_limits_are_refused_by_name() {
        let message = |result: Result<Arc<Map>, MapCreateError>| {
            alloc::string::ToString::to_string(&result.unwrap_err())
        };
        assert!(message(array(0, 1)).contains("map `m`: value_size is 0"));
        assert!(message(array(1 << 31, 1)).contains("value_size is 2147483648"));
        assert!(message(array(8, 0)).contains("max_entries is 0"));
        assert!(message(array(i32::MAX as u32, u32::MAX)).contains("no memory left"));
        assert!(message(array(8, (1 << 13) + 1)).contains("65544 bytes"));
        assert!(array(8, 1 << 13).is_ok());
    }

    #[test]
    fn memory_is_paid_back() {
        let memory = HeapMemory::with_limit(64);
        for _ in 0..3 {
            let region = memory.allocate(60).unwrap();
            assert_eq!(region.words().len(), 8);
            assert!(memory.allocate(1).is_none());
        }
        assert!(memory.allocate(usize::MAX).is_none());
        assert!(memory.allocate(64).is_some());
    }
}
