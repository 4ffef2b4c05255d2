// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kinds of map, by Linux's numbers and names (`enum bpf_map_type` in `linux/bpf.h`).
#![forbid(unsafe_code)]

/// A kind of map, named by its number in `enum bpf_map_type`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct MapKind(pub u32);

impl MapKind {
    /// `BPF_MAP_TYPE_ARRAY`: values by index, all present from the start.
    pub const ARRAY: Self = Self(2);

    /// The name that `enum bpf_map_type` gives it, without its `BPF_MAP_TYPE_` prefix; none past what Linux 6.12 has.
    pub fn name(self) -> Option<&'static str> {
        usize::try_from(self.0)
            .ok()
            .and_then(|number| NAMES.get(number))
            .copied()
    }
}

impl core::fmt::Display for MapKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => write!(f, "BPF_MAP_TYPE_{name} ({})", self.0),
            None => write!(f, "map type {}", self.0),
        }
    }
}

/// Names by number, `enum bpf_map_type`.
static NAMES: &[&str] = &[
    "UNSPEC",
    "HASH",
    "ARRAY",
    "PROG_ARRAY",
    "PERF_EVENT_ARRAY",
    "PERCPU_HASH",
    "PERCPU_ARRAY",
    "STACK_TRACE",
    "CGROUP_ARRAY",
    "LRU_HASH",
    "LRU_PERCPU_HASH",
    "LPM_TRIE",
    "ARRAY_OF_MAPS",
    "HASH_OF_MAPS",
    "DEVMAP",
    "SOCKMAP",
    "CPUMAP",
    "XSKMAP",
    "SOCKHASH",
    "CGROUP_STORAGE",
    "REUSEPORT_SOCKARRAY",
    "PERCPU_CGROUP_STORAGE",
    "QUEUE",
    "STACK",
    "SK_STORAGE",
    "DEVMAP_HASH",
    "STRUCT_OPS",
    "RINGBUF",
    "INODE_STORAGE",
    "TASK_STORAGE",
    "BLOOM_FILTER",
    "USER_RINGBUF",
    "CGRP_STORAGE",
    "ARENA",
];
