// SPDX-License-Identifier: MIT OR Apache-2.0
//! Task storage: a value for each task, from the first use until the task ends.
//!
//! Linux allocates on first use and keeps no count. Here memory for `max_entries` tasks is there from the start, for
//! [`DEFAULT_TASKS`] if the definition has 0, as Linux asks for. A task is known by its address and the host's id for it
//! ([`Host::task_id`](crate::host::Host::task_id)), so that a new task at an old address starts afresh.
#![forbid(unsafe_code)]

use super::{
    MapCreateError, MapDefinition, MapError, MapMemory, UpdateFlags, hash::Hash, table::Position,
    values::ValueWords,
};
use core::{ops::Range, sync::atomic::AtomicU64};

/// Tasks that there is room for if `max_entries` is 0.
pub const DEFAULT_TASKS: u32 = 256;

/// Bytes of the key that a task makes.
const KEY_BYTES: usize = 16;

/// Values by task.
pub(super) struct TaskStorage(Hash);

/// A task as a key.
fn key(task: u64, id: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    for (to, from) in key
        .iter_mut()
        .zip(task.to_ne_bytes().into_iter().chain(id.to_ne_bytes()))
    {
        *to = from;
    }
    key
}

impl TaskStorage {
    /// Takes memory for all values.
    pub(super) fn create(
        definition: &MapDefinition,
        cpus: u32,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let tasks = match definition.max_entries {
            0 => DEFAULT_TASKS,
            tasks => tasks,
        };
        Hash::create(definition, KEY_BYTES, tasks, cpus, memory).map(Self)
    }

    /// With a lock at a byte offset of each value.
    pub(super) fn set_lock(&mut self, offset: usize) {
        self.0.set_lock(offset);
    }

    /// The addresses of all values.
    pub(super) fn values(&self) -> Range<u64> {
        self.0.values()
    }

    /// Where a task's value lies.
    pub(super) fn address(&self, task: u64, id: u64) -> Option<u64> {
        self.0.address(&key(task, id), 0)
    }

    /// As [`address`](Self::address); `fill` writes the value first if the task has none. `None` if there is no room.
    pub(super) fn create_value(
        &self,
        task: u64,
        id: u64,
        fill: impl FnOnce(ValueWords<'_>),
    ) -> Option<u64> {
        let key = key(task, id);
        self.0.address(&key, 0).or_else(|| {
            let mut made = 0;
            let fill = |value: ValueWords<'_>| {
                made = value.address();
                fill(value);
            };
            match self.0.update(&key, UpdateFlags::NoExist, fill) {
                // Whoever takes it out again meanwhile does so behind this.
                Ok(_) => Some(made),
                // `Exists`: somebody was faster, and that value is there now.
                Err(_) => self.0.address(&key, 0),
            }
        })
    }

    /// Copies a task's value.
    pub(super) fn read(&self, task: u64, id: u64, out: &mut [u8]) -> Result<(), MapError> {
        self.0.read(&key(task, id), out)
    }

    /// Removes a task's value. `NotFound`, if it has none.
    pub(super) fn delete(&self, task: u64, id: u64) -> Result<(), MapError> {
        self.0.table.delete(&key(task, id), |_| {})
    }

    /// As [`Hash::step`]; the key is the task's address and id.
    pub(super) fn step(&self, at: &mut Position) -> Option<(&[AtomicU64], u64)> {
        self.0.step(at)
    }

    /// As [`Table::usage`](super::table::Table::usage).
    pub(super) fn usage(&self) -> (u32, usize) {
        self.0.table.usage()
    }
}
