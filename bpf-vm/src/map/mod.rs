// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps: memory that programs and their host share by key, with Linux's semantics and error numbers.
//!
//! A map is created once, in an [`Arc`], and never moves: what a program holds as "the map" is its address
//! ([`Map::handle`]). All memory is allocated when the map is created; nothing here allocates, frees or blocks
//! afterwards. Lookups take no lock; updates take one of a bucket or of the map, see [`lock`]. By context:
//!
//! - A task or an interrupt on the same core cannot come into the middle of an update: interrupts are masked.
//! - An NMI can. Its lookups see whole chains and do not wait; its update of the same bucket (queue, ring buffer) is
//!   answered `EBUSY`, of another one it succeeds: free elements are taken without a lock, and there are spare ones.
//! - Another core's update of the same bucket is waited for within bounds, then `EBUSY`; its lookups start again when
//!   they are overtaken, within bounds.
//!
//! The host's side ([`lookup`](Map::lookup), [`update`](Map::update)) sees the values of all cores in a per-CPU map,
//! each rounded up to 8 bytes, one after the other; a program ([`lookup_address`](Map::lookup_address),
//! [`update_with`](Map::update_with)) sees its core's.
#![deny(unsafe_code)]

use alloc::{string::String, sync::Arc};
use core::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

mod array;
mod error;
mod hash;
mod kind;
mod lock;
mod lpm;
mod map_in_map;
#[expect(
    unsafe_code,
    reason = "a region's memory has to stay where programs know it"
)]
pub mod memory;
mod pool;
mod program_array;
mod queue;
pub mod ringbuf;
mod rules;
#[expect(unsafe_code, reason = "slots own what lock-free readers borrow")]
mod slots;
pub mod stack_trace;
mod table;
mod task_storage;
mod values;

pub use self::values::ValueWords;
pub use self::{
    error::{MapCreateError, MapError},
    kind::MapKind,
    memory::{HeapMemory, MapMemory, MapRegion},
    program_array::TailTarget,
    ringbuf::RingBuffer,
    slots::Retired,
    task_storage::DEFAULT_TASKS,
};
use self::{
    hash::Hash,
    lpm::Lpm,
    map_in_map::MapInMap,
    memory::{overwrite, read_bytes, write_bytes},
    program_array::ProgramArray,
    queue::Queue,
    stack_trace::StackTraces,
    table::Position,
    task_storage::TaskStorage,
    values::Values,
};
use crate::host::host;

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
    /// `BPF_F_NO_PREALLOC`: taken where Linux takes it and asked for where Linux asks for it; memory is allocated at
    /// creation all the same.
    pub const NO_PREALLOC: u32 = 1 << 0;
    /// `BPF_F_NO_COMMON_LRU`: an LRU list a core; there is one for all, so it changes nothing.
    pub const NO_COMMON_LRU: u32 = 1 << 1;
    /// `BPF_F_NUMA_NODE`: there is one memory for all nodes, so it changes nothing.
    pub const NUMA_NODE: u32 = 1 << 2;
    /// `BPF_F_ZERO_SEED`: the hash is not seeded, so it changes nothing.
    pub const ZERO_SEED: u32 = 1 << 6;
    /// `BPF_F_RDONLY_PROG`: programs may not write the values.
    pub const RDONLY_PROG: u32 = 1 << 7;
    /// `BPF_F_MMAPABLE`: values may be mapped elsewhere; they always can here, so it is accepted and changes nothing.
    pub const MMAPABLE: u32 = 1 << 10;
    /// `BPF_F_INNER_MAP`: as an inner map's template, takes arrays of any `max_entries`.
    pub const INNER_MAP: u32 = 1 << 12;
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

    /// From the number a program passes; any other bit is `EINVAL`, `BPF_F_LOCK` too: a program takes the lock and writes
    /// the value itself.
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
    /// Cores that values are kept for: as many as the host had when the map was created.
    cpus: u32,
    /// Whether the host changes no value any more either.
    frozen: AtomicBool,
    storage: Storage,
}

/// What holds the values, by kind.
enum Storage {
    /// Plain and per-CPU.
    Array(Values),
    /// Plain, per-CPU, and the two that evict.
    Hash(Hash),
    Lpm(Lpm),
    /// Queues and stacks.
    Queue(Queue),
    Ring(RingBuffer),
    Programs(ProgramArray),
    Maps(MapInMap),
    Traces(StackTraces),
    Tasks(TaskStorage),
}

/// Where a walk over a map's elements stands; the start, by default.
#[derive(Debug, Default)]
pub struct Cursor {
    index: u32,
    position: Position,
    /// An index as a key, for those who walk an array.
    key: [AtomicU64; 1],
}

/// One element of a walk.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    /// The key, padded with zeros to whole words.
    pub key: &'a [AtomicU64],
    /// The address of the value, the running core's in a per-CPU map.
    pub value: u64,
}

impl Element<'_> {
    /// The address of the key, to be read only.
    pub fn key_address(&self) -> u64 {
        memory::address(self.key)
    }
}

impl Map {
    /// Creates a map with zeroed values, or without keys, in memory from the host.
    ///
    /// Errors name the map and the field: a kind that is not implemented, a size or flag that Linux refuses too, a map
    /// of maps ([`create_outer`](Self::create_outer) makes those), no memory left.
    pub fn create(
        definition: MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Arc<Self>, MapCreateError> {
        Self::create_any(definition, None, None, memory)
    }

    /// As [`create`](Self::create), with a `struct bpf_spin_lock` at byte offset `lock`, a multiple of 4, of each value:
    /// updates leave it as it is, and the host reads it as 0.
    pub fn create_locked(
        definition: MapDefinition,
        lock: u32,
        memory: &dyn MapMemory,
    ) -> Result<Arc<Self>, MapCreateError> {
        Self::create_any(definition, None, Some(lock), memory)
    }

    /// Creates a map of maps, empty, that takes inner maps like `inner`: the same kind, sizes and flags, and the same
    /// `max_entries` in an array without `BPF_F_INNER_MAP`.
    ///
    /// Errors: as [`create`](Self::create), for either definition; `Inner`, if the outer one is no map of maps, or
    /// the inner one is.
    pub fn create_outer(
        definition: MapDefinition,
        inner: MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Arc<Self>, MapCreateError> {
        Self::create_any(definition, Some(inner), None, memory)
    }

    fn create_any(
        definition: MapDefinition,
        inner: Option<MapDefinition>,
        lock: Option<u32>,
        memory: &dyn MapMemory,
    ) -> Result<Arc<Self>, MapCreateError> {
        rules::check(&definition)?;
        let cpus = host().cpus().max(1);
        let mut storage = match (definition.kind, inner) {
            (MapKind::ARRAY_OF_MAPS | MapKind::HASH_OF_MAPS, Some(inner))
                if !inner.kind.holds_maps() =>
            {
                rules::check(&inner)?;
                Storage::Maps(MapInMap::create(&definition, inner, cpus, memory)?)
            }
            (kind, inner) if kind.holds_maps() || inner.is_some() => {
                return Err(MapCreateError::Inner {
                    map: definition.name,
                });
            }
            (MapKind::PERCPU_ARRAY, _) => {
                let entries = definition.max_entries;
                Storage::Array(Values::create(&definition, entries, cpus, memory)?)
            }
            (
                MapKind::HASH | MapKind::PERCPU_HASH | MapKind::LRU_HASH | MapKind::LRU_PERCPU_HASH,
                _,
            ) => {
                let (key, entries) = (definition.key_size as usize, definition.max_entries);
                Storage::Hash(Hash::create(&definition, key, entries, cpus, memory)?)
            }
            (MapKind::LPM_TRIE, _) => Storage::Lpm(Lpm::create(&definition, cpus, memory)?),
            (MapKind::QUEUE | MapKind::STACK, _) => {
                Storage::Queue(Queue::create(&definition, memory)?)
            }
            (MapKind::RINGBUF, _) => Storage::Ring(RingBuffer::create(&definition, memory)?),
            (MapKind::PROG_ARRAY, _) => {
                Storage::Programs(ProgramArray::create(&definition, memory)?)
            }
            (MapKind::STACK_TRACE, _) => {
                Storage::Traces(StackTraces::create(&definition, cpus, memory)?)
            }
            (MapKind::TASK_STORAGE, _) => {
                Storage::Tasks(TaskStorage::create(&definition, cpus, memory)?)
            }
            // What is left of the kinds that have a rule: the array.
            _ => {
                let entries = definition.max_entries;
                Storage::Array(Values::create(&definition, entries, 1, memory)?)
            }
        };
        match (&mut storage, lock) {
            (Storage::Array(values), Some(lock)) => values.set_lock(lock as usize),
            (Storage::Hash(hash), Some(lock)) => hash.set_lock(lock as usize),
            (Storage::Tasks(tasks), Some(lock)) => tasks.set_lock(lock as usize),
            _ => {}
        }
        Ok(Arc::new(Self {
            definition,
            cpus,
            frozen: AtomicBool::new(false),
            storage,
        }))
    }

    /// What the map was created from.
    pub fn definition(&self) -> &MapDefinition {
        &self.definition
    }

    /// What a map of maps takes as inner maps.
    pub fn inner_definition(&self) -> Option<&MapDefinition> {
        match &self.storage {
            Storage::Maps(maps) => Some(maps.template()),
            _ => None,
        }
    }

    /// Bytes of a key.
    pub fn key_size(&self) -> usize {
        self.definition.key_size as usize
    }

    /// Bytes of a value, as a program sees it.
    pub fn value_size(&self) -> usize {
        self.definition.value_size as usize
    }

    /// Bytes of a value, as [`lookup`](Self::lookup) and [`update`](Self::update) take it: in a per-CPU map the values
    /// of all cores, each rounded up to 8 bytes.
    pub fn host_value_size(&self) -> usize {
        if self.definition.kind.is_per_cpu() {
            self.value_size().next_multiple_of(memory::WORD_BYTES) * self.cpus as usize
        } else {
            self.value_size()
        }
    }

    /// Cores that a per-CPU map has values for.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Whether programs may write the values.
    pub fn program_may_write(&self) -> bool {
        self.definition.flags & MapDefinition::RDONLY_PROG == 0
    }

    /// From now on the host changes no value either (`BPF_MAP_FREEZE`).
    pub fn freeze(&self) {
        self.frozen.store(true, Relaxed);
    }

    /// Whether nobody changes the values: programs may not, and the host has frozen them.
    pub(crate) fn is_constant(&self) -> bool {
        !self.program_may_write() && self.frozen.load(Relaxed)
    }

    /// The number that stands for this map in a program's registers: the map's address, provenance exposed, so that
    /// helpers can follow it.
    pub fn handle(self: &Arc<Self>) -> u64 {
        Arc::as_ptr(self).expose_provenance() as u64
    }

    /// As [`handle`](Self::handle): a map is only ever in an `Arc`.
    pub(crate) fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    /// Addresses of all values that programs may touch, if there are any; an access in it is an access to this map's
    /// values (of a ring buffer: its records and their headers).
    pub fn value_range(&self) -> Option<Range<u64>> {
        match &self.storage {
            Storage::Array(values) => Some(values.range()),
            Storage::Hash(hash) => Some(hash.values()),
            Storage::Lpm(lpm) => Some(lpm.values()),
            Storage::Ring(ring) => Some(ring.data()),
            Storage::Tasks(tasks) => Some(tasks.values()),
            Storage::Queue(_) | Storage::Programs(_) | Storage::Maps(_) | Storage::Traces(_) => {
                None
            }
        }
    }

    /// Bytes from the value of one index to the next, in an array.
    pub fn value_stride(&self) -> Option<usize> {
        match &self.storage {
            Storage::Array(values) => Some(values.stride()),
            _ => None,
        }
    }

    /// Bytes from one core's values to the next core's, in a per-CPU array: a core's value of an index lies at
    /// `value_address(0) + cpu * cpu_stride + index * value_stride`.
    pub fn cpu_stride(&self) -> Option<usize> {
        match &self.storage {
            Storage::Array(values) if self.definition.kind.is_per_cpu() => {
                Some(values.cpu_stride())
            }
            _ => None,
        }
    }

    /// The address of the value of an index, in an array (per-CPU: core 0's); `None` past the end.
    pub fn value_address(&self, index: u32) -> Option<u64> {
        match &self.storage {
            Storage::Array(values) => values.address(index, 0),
            _ => None,
        }
    }

    /// The address of the value of `key`, which is what `bpf_map_lookup_elem` returns: the running core's in a per-CPU
    /// map, the inner map's handle in a map of maps. `None` if there is none.
    pub fn lookup_address(&self, key: &[u8]) -> Option<u64> {
        self.lookup_address_of(key, || host().cpu())
    }

    /// As [`lookup_address`](Self::lookup_address), of core `cpu`'s value; `None` past the last core, or if the map is
    /// not per-CPU.
    pub fn lookup_address_on(&self, key: &[u8], cpu: u32) -> Option<u64> {
        (self.definition.kind.is_per_cpu() && cpu < self.cpus)
            .then(|| self.lookup_address_of(key, || cpu))
            .flatten()
    }

    fn lookup_address_of(&self, key: &[u8], cpu: impl FnOnce() -> u32) -> Option<u64> {
        match &self.storage {
            Storage::Array(values) => {
                let index = array::index(key, values.entries())?;
                values.address(index, cpu())
            }
            Storage::Hash(hash) => hash.address(key, cpu()),
            Storage::Lpm(lpm) => lpm.address(key),
            Storage::Maps(maps) => maps.handle(key),
            _ => None,
        }
    }

    /// Copies the value of `key` into `value`, whole per 8-byte word; of a hash, an LPM trie or a stack trace whole,
    /// but for what programs write in place. Of a queue or stack (the key is empty): the value that would be taken
    /// next.
    ///
    /// Errors: `Invalid` if `key` has not the map's size, `value` not [`host_value_size`](Self::host_value_size), or
    /// the kind has no values to copy; `NotFound`; `Busy`.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> Result<(), MapError> {
        if key.len() != self.key_size() || value.len() != self.host_value_size() {
            return Err(MapError::Invalid);
        }
        match &self.storage {
            Storage::Array(values) => {
                let index = array::index(key, values.entries()).ok_or(MapError::NotFound)?;
                values.read(index, value);
                Ok(())
            }
            Storage::Hash(hash) => hash.read(key, value),
            Storage::Lpm(lpm) => lpm.read(key, value),
            Storage::Queue(_) => self.peek(|words| read_bytes(words, value)),
            Storage::Traces(traces) => traces.read(key, value),
            Storage::Ring(_) | Storage::Programs(_) | Storage::Maps(_) | Storage::Tasks(_) => {
                Err(MapError::Invalid)
            }
        }
    }

    /// Sets the value of `key`, whole per 8-byte word. Of a queue or stack (the key is empty): pushes it.
    ///
    /// Errors: `Invalid` if `key` has not the map's size, `value` not [`host_value_size`](Self::host_value_size), or
    /// the kind is not updated so; `NotPermitted` once it is [frozen](Self::freeze); what the kind and `flags` say (past the end or
    /// full: `TooBig`, an LPM trie `NoSpace`; `Exists` for `NoExist`, `NotFound` for `Exist`); `Busy`.
    pub fn update(&self, key: &[u8], value: &[u8], flags: UpdateFlags) -> Result<(), MapError> {
        if value.len() != self.host_value_size() {
            return Err(MapError::Invalid);
        }
        if !self.definition.kind.is_per_cpu() {
            return self.set(key, flags, |words| words.write_bytes(value));
        }
        self.check_key(key)?;
        match &self.storage {
            Storage::Array(values) => {
                values.write(array::updated(key, values.entries(), flags)?, value);
                Ok(())
            }
            Storage::Hash(hash) => hash.write(key, value, flags),
            _ => Err(MapError::Invalid),
        }
    }

    fn check_key(&self, key: &[u8]) -> Result<(), MapError> {
        if self.frozen.load(Relaxed) {
            return Err(MapError::NotPermitted);
        }
        if key.len() != self.key_size() {
            return Err(MapError::Invalid);
        }
        Ok(())
    }

    /// As [`update`](Self::update) by a program: `fill` writes the value, in a per-CPU map the running core's.
    /// `NotPermitted` with `BPF_F_RDONLY_PROG`.
    /// Where keys are locked, `fill` runs under the lock, so it must be short, and an update by it would be `Busy`.
    pub fn update_with(
        &self,
        key: &[u8],
        flags: UpdateFlags,
        fill: impl FnOnce(ValueWords<'_>),
    ) -> Result<(), MapError> {
        self.check_program()?;
        self.set(key, flags, fill)
    }

    /// Whether a program may change the map.
    pub(crate) fn check_program(&self) -> Result<(), MapError> {
        match self.program_may_write() {
            true => Ok(()),
            false => Err(MapError::NotPermitted),
        }
    }

    fn set(
        &self,
        key: &[u8],
        flags: UpdateFlags,
        fill: impl FnOnce(ValueWords<'_>),
    ) -> Result<(), MapError> {
        self.check_key(key)?;
        match &self.storage {
            Storage::Array(values) => {
                let index = array::updated(key, values.entries(), flags)?;
                // A core that was not there when the map was created has no values.
                fill(values.value(index, host().cpu()).ok_or(MapError::Invalid)?);
                Ok(())
            }
            Storage::Hash(hash) => hash.update(key, flags, fill).map(drop),
            Storage::Lpm(lpm) => lpm.update(key, flags, fill),
            Storage::Queue(queue) => queue.push(flags, |words| fill(words.into())),
            _ => Err(MapError::Invalid),
        }
    }

    /// Removes `key`. An array's keys cannot be removed, a map of maps is changed by [`remove_map`](Self::remove_map):
    /// `Invalid`. `NotFound`, `Busy`; `NotPermitted` once it is [frozen](Self::freeze).
    pub fn delete(&self, key: &[u8]) -> Result<(), MapError> {
        self.check_key(key)?;
        match &self.storage {
            Storage::Hash(hash) => hash.table.delete(key, |_| {}),
            Storage::Lpm(lpm) => lpm.delete(key),
            Storage::Traces(traces) => traces.delete(key),
            _ => Err(MapError::Invalid),
        }
    }

    /// As [`delete`](Self::delete) by a program: `NotPermitted` with `BPF_F_RDONLY_PROG`.
    pub fn delete_by_program(&self, key: &[u8]) -> Result<(), MapError> {
        self.check_program()?;
        self.delete(key)
    }

    /// Writes the key after `key` (the first, if `None`) into `next`; `NotFound` after the last. After a key that is
    /// not there, the first again, as in Linux.
    ///
    /// Errors: `Invalid` if a key has not the map's size, or the kind has none; `Busy` if other cores changed the map
    /// faster than it could be read.
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), MapError> {
        let size = self.key_size();
        if next.len() != size || key.is_some_and(|key| key.len() != size) {
            return Err(MapError::Invalid);
        }
        match &self.storage {
            Storage::Array(values) => array::next_key(key, values.entries(), next),
            Storage::Programs(programs) => array::next_key(key, programs.count(), next),
            Storage::Maps(maps) => match maps.hash() {
                Some(hash) => hash.table.next_key(key, next),
                None => array::next_key(key, maps.entries(), next),
            },
            Storage::Hash(hash) => hash.table.next_key(key, next),
            Storage::Lpm(lpm) => lpm.next_key(key, next),
            Storage::Traces(traces) => traces.next_key(key, next),
            Storage::Queue(_) | Storage::Ring(_) | Storage::Tasks(_) => Err(MapError::Invalid),
        }
    }

    /// The next element of a walk, without a lock; `None` at the end, or for a kind that cannot be walked. What is
    /// put in or deleted meanwhile may be seen or not; a key that is there all the time and not replaced is seen once.
    pub fn step<'a>(&'a self, cursor: &'a mut Cursor) -> Option<Element<'a>> {
        let (key, value) = match &self.storage {
            Storage::Array(values) => {
                let value = values.address(cursor.index, host().cpu())?;
                // The index as a `u32` at the word's address, in either byte order.
                write_bytes(&cursor.key, &cursor.index.to_ne_bytes());
                cursor.index += 1;
                (&cursor.key[..], value)
            }
            Storage::Hash(hash) => hash.step(&mut cursor.position)?,
            Storage::Lpm(lpm) => lpm.step(&mut cursor.position)?,
            Storage::Tasks(tasks) => tasks.step(&mut cursor.position)?,
            _ => return None,
        };
        Some(Element { key, value })
    }

    /// Whether `bpf_for_each_map_elem` walks over it: arrays and hashes, as in Linux.
    pub(crate) fn is_walked(&self) -> bool {
        matches!(self.storage, Storage::Array(_) | Storage::Hash(_))
    }

    /// Walks over all elements as `bpf_for_each_map_elem` does: `f` gets the addresses of key and value and says
    /// whether to go on. How many it was given; `Invalid` for a kind that is not walked (Linux: arrays and hashes).
    pub fn walk(&self, mut f: impl FnMut(u64, u64) -> bool) -> Result<u32, MapError> {
        if !self.is_walked() {
            return Err(MapError::Invalid);
        }
        let mut cursor = Cursor::default();
        let mut count = 0;
        while let Some(element) = self.step(&mut cursor) {
            count += 1;
            if !f(element.key_address(), element.value) {
                break;
            }
        }
        Ok(count)
    }

    /// Pushes a value, which `fill` writes, onto a queue or stack (`bpf_map_push_elem`). With `Exist` a full one loses
    /// its oldest; `TooBig` with `Any`. `Invalid` for other kinds and `NoExist`; `Busy`.
    pub fn push(
        &self,
        flags: UpdateFlags,
        fill: impl FnOnce(ValueWords<'_>),
    ) -> Result<(), MapError> {
        match &self.storage {
            Storage::Queue(queue) => queue.push(flags, |words| fill(words.into())),
            _ => Err(MapError::Invalid),
        }
    }

    /// Takes the next value of a queue or stack out (`bpf_map_pop_elem`): `take` reads it. `NotFound` if there is none.
    pub fn pop(&self, take: impl FnOnce(&[AtomicU64])) -> Result<(), MapError> {
        match &self.storage {
            Storage::Queue(queue) => queue.take(true, take),
            _ => Err(MapError::Invalid),
        }
    }

    /// As [`pop`](Self::pop), and leaves it there (`bpf_map_peek_elem`).
    pub fn peek(&self, take: impl FnOnce(&[AtomicU64])) -> Result<(), MapError> {
        match &self.storage {
            Storage::Queue(queue) => queue.take(false, take),
            _ => Err(MapError::Invalid),
        }
    }

    /// The ring buffer, if it is one.
    pub fn ring_buffer(&self) -> Option<&RingBuffer> {
        match &self.storage {
            Storage::Ring(ring) => Some(ring),
            _ => None,
        }
    }

    /// Reserves a record of `size` bytes in a ring buffer; its address, or `None` if there is no room.
    pub fn reserve(&self, size: u64) -> Option<u64> {
        self.ring_buffer()?.reserve(size, self.address())
    }

    /// Commits or discards a record, and wakes the reader as `flags` (`BPF_RB_*`) say. `Invalid` if there is none at
    /// that address.
    pub fn commit(&self, record: u64, discard: bool, flags: u64) -> Result<(), MapError> {
        let ring = self.ring_buffer().ok_or(MapError::Invalid)?;
        if ring.commit(record, discard, flags)? {
            host().wake_reader(self);
        }
        Ok(())
    }

    /// The id of a stack trace, innermost address first, at most [`trace_depth`](Self::trace_depth) of them; flags are
    /// `BPF_F_FAST_STACK_CMP` and `BPF_F_REUSE_STACKID`.
    ///
    /// Errors: `Exists`, if another trace has that id and may not be replaced; `Invalid` for other kinds.
    pub fn stack_id(&self, trace: &[u64], flags: u64) -> Result<u32, MapError> {
        match &self.storage {
            Storage::Traces(traces) if trace.len() <= self.trace_depth() => {
                traces.id_of(trace, flags)
            }
            _ => Err(MapError::Invalid),
        }
    }

    /// The most addresses that a stack trace's value holds; 0 for other kinds.
    pub fn trace_depth(&self) -> usize {
        match &self.storage {
            Storage::Traces(_) => self.value_size() / memory::WORD_BYTES,
            _ => 0,
        }
    }

    /// Where a task's value lies; if it has none, `None` or, if `create` is given, a new one that it writes. `id` is
    /// the host's for that task.
    pub fn task_value(
        &self,
        task: u64,
        id: u64,
        create: Option<impl FnOnce(ValueWords<'_>)>,
    ) -> Option<u64> {
        match (&self.storage, create) {
            (Storage::Tasks(tasks), None) => tasks.address(task, id),
            (Storage::Tasks(tasks), Some(fill)) => tasks.create_value(task, id, fill),
            _ => None,
        }
    }

    /// Copies a task's value. `Invalid` if `value` has not the map's size, or for other kinds; `NotFound`.
    pub fn read_task_value(&self, task: u64, id: u64, value: &mut [u8]) -> Result<(), MapError> {
        match &self.storage {
            Storage::Tasks(tasks) if value.len() == self.value_size() => {
                tasks.read(task, id, value)
            }
            _ => Err(MapError::Invalid),
        }
    }

    /// Removes a task's value; also for the host to call on each task storage map when a task ends. `NotFound`, if it
    /// has none; `Invalid` for other kinds; `Busy`, then try again.
    pub fn task_ended(&self, task: u64, id: u64) -> Result<(), MapError> {
        match &self.storage {
            Storage::Tasks(tasks) => tasks.delete(task, id),
            _ => Err(MapError::Invalid),
        }
    }

    /// Puts an inner map into a map of maps. What was there is handed back for the caller to release when no program
    /// can hold it any more.
    ///
    /// Errors: `Invalid`, if this is no map of maps, or `inner` is not as its template; else as
    /// [`update`](Self::update).
    pub fn put_map(
        &self,
        key: &[u8],
        inner: Arc<Map>,
        flags: UpdateFlags,
    ) -> Result<Option<Retired<Map>>, MapError> {
        self.check_key(key)?;
        match &self.storage {
            Storage::Maps(maps) => maps.put(key, inner, flags),
            _ => Err(MapError::Invalid),
        }
    }

    /// Takes an inner map out of a map of maps, and hands it back as [`put_map`](Self::put_map) does.
    pub fn remove_map(&self, key: &[u8]) -> Result<Option<Retired<Map>>, MapError> {
        match &self.storage {
            Storage::Maps(maps) if key.len() == self.key_size() => maps.remove(key),
            _ => Err(MapError::Invalid),
        }
    }

    /// The maps in a map of maps.
    pub fn inner_maps(&self) -> impl Iterator<Item = &Map> {
        let maps = match &self.storage {
            Storage::Maps(maps) => Some(maps),
            _ => None,
        };
        maps.into_iter().flat_map(MapInMap::iter)
    }

    /// The inner map with that handle, if it is in this map of maps now.
    pub fn inner(&self, handle: u64) -> Option<&Map> {
        self.inner_maps().find(|map| map.address() == handle)
    }

    /// The target in a slot of a program array; `None` if it is empty or past the end, or for other kinds.
    pub fn tail_target(&self, index: u32) -> Option<&TailTarget> {
        match &self.storage {
            Storage::Programs(programs) => programs.target(index),
            _ => None,
        }
    }

    /// Where a program array keeps the words, one a slot, 8 bytes each, that compiled code jumps by: the entry's
    /// address or 0.
    pub fn tail_entries(&self) -> Option<u64> {
        match &self.storage {
            Storage::Programs(programs) => Some(programs.address()),
            _ => None,
        }
    }

    /// Puts a program into a slot of a program array, or empties it. What was there is handed back for the caller to
    /// release when no program can be in it, or be about to enter it, any more.
    ///
    /// Errors: `TooBig` past the end, `Invalid` for other kinds.
    pub fn set_program(
        &self,
        index: u32,
        target: Option<Arc<TailTarget>>,
    ) -> Result<Option<Retired<TailTarget>>, MapError> {
        match &self.storage {
            Storage::Programs(programs) => programs.set(index, target),
            _ => Err(MapError::Invalid),
        }
    }

    /// Keys in a map that has elements for them (hashes, LPM tries, task storage, hashes of maps, stack traces), and its
    /// spare elements: two a core when nothing is going on. `None` for other kinds.
    pub fn usage(&self) -> Option<(u32, usize)> {
        match &self.storage {
            Storage::Hash(hash) => Some(hash.table.usage()),
            Storage::Lpm(lpm) => Some(lpm.usage()),
            Storage::Tasks(tasks) => Some(tasks.usage()),
            Storage::Maps(maps) => maps.hash().map(|hash| hash.table.usage()),
            Storage::Traces(traces) => Some(traces.usage()),
            Storage::Array(_) | Storage::Queue(_) | Storage::Ring(_) | Storage::Programs(_) => None,
        }
    }

    /// The number, little endian and zero extended, of 1 to 8 bytes at an offset of value 0 of an array, if nobody may
    /// write it.
    pub(crate) fn constant(&self, offset: i64, bytes: usize) -> Option<u64> {
        let Storage::Array(values) = &self.storage else {
            return None;
        };
        if !self.is_constant() || self.definition.kind.is_per_cpu() {
            return None;
        }
        let (start, size) = (usize::try_from(offset).ok()?, self.value_size());
        let end = start.checked_add(bytes).filter(|&end| end <= size)?;
        let words = values.at(0, 0)?;
        let mut number = [0; memory::WORD_BYTES];
        for (to, at) in number.iter_mut().zip(start..end) {
            let word = words.get(at / memory::WORD_BYTES)?.load(Relaxed);
            *to = *word.to_ne_bytes().get(at % memory::WORD_BYTES)?;
        }
        Some(u64::from_le_bytes(number))
    }

    /// Puts `content` at a byte offset of value 0 of a data section's map, before any program can see it.
    pub(crate) fn initialise(&self, offset: usize, content: &[u8]) {
        if let Storage::Array(values) = &self.storage
            && let Some(words) = values.at(0, 0)
        {
            overwrite(words, offset, content);
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
