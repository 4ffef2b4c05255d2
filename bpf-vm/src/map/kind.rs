// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kinds of map, by Linux's numbers and names (`enum bpf_map_type` in `linux/bpf.h`).
#![forbid(unsafe_code)]

/// A kind of map, named by its number in `enum bpf_map_type`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct MapKind(pub u32);

impl MapKind {
    /// `BPF_MAP_TYPE_HASH`: values by key.
    pub const HASH: Self = Self(1);
    /// `BPF_MAP_TYPE_ARRAY`: values by index, all present from the start.
    pub const ARRAY: Self = Self(2);
    /// `BPF_MAP_TYPE_PROG_ARRAY`: programs by index, for tail calls.
    pub const PROG_ARRAY: Self = Self(3);
    /// `BPF_MAP_TYPE_PERCPU_HASH`: a value a core by key.
    pub const PERCPU_HASH: Self = Self(5);
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`: a value a core by index.
    pub const PERCPU_ARRAY: Self = Self(6);
    /// `BPF_MAP_TYPE_STACK_TRACE`: stack traces by their hash.
    pub const STACK_TRACE: Self = Self(7);
    /// `BPF_MAP_TYPE_LRU_HASH`: a hash that evicts what was not used lately.
    pub const LRU_HASH: Self = Self(9);
    /// `BPF_MAP_TYPE_LRU_PERCPU_HASH`: both.
    pub const LRU_PERCPU_HASH: Self = Self(10);
    /// `BPF_MAP_TYPE_LPM_TRIE`: values by the longest prefix that matches.
    pub const LPM_TRIE: Self = Self(11);
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`: maps by index.
    pub const ARRAY_OF_MAPS: Self = Self(12);
    /// `BPF_MAP_TYPE_HASH_OF_MAPS`: maps by key.
    pub const HASH_OF_MAPS: Self = Self(13);
    /// `BPF_MAP_TYPE_QUEUE`: first in, first out.
    pub const QUEUE: Self = Self(22);
    /// `BPF_MAP_TYPE_STACK`: last in, first out.
    pub const STACK: Self = Self(23);
    /// `BPF_MAP_TYPE_RINGBUF`: records for a reader on the host's side.
    pub const RINGBUF: Self = Self(27);
    /// `BPF_MAP_TYPE_TASK_STORAGE`: a value a task, gone with it.
    pub const TASK_STORAGE: Self = Self(29);

    /// Whether each core has a value of its own.
    pub const fn is_per_cpu(self) -> bool {
        matches!(
            self,
            Self::PERCPU_HASH | Self::PERCPU_ARRAY | Self::LRU_PERCPU_HASH
        )
    }

    /// Whether the values are maps.
    pub const fn holds_maps(self) -> bool {
        matches!(self, Self::ARRAY_OF_MAPS | Self::HASH_OF_MAPS)
    }

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
