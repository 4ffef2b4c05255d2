// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each kind of map takes as its key, value, size and flags: Linux's checks, a row a kind.
#![forbid(unsafe_code)]

use super::{MapCreateError, MapDefinition, MapKind, ringbuf::PAGE, stack_trace::MAX_DEPTH};

/// What a field may be: a test, and what it asks for in words.
type Field = (fn(u32) -> bool, &'static str);

/// One kind's row.
pub(super) struct Rule {
    kind: MapKind,
    key: Field,
    value: Field,
    entries: Field,
    /// Flags that may be set.
    flags: u32,
    /// Flags that have to be.
    required: u32,
    flags_text: &'static str,
}

/// Bytes of a program's stack, which keys come from (`MAX_BPF_STACK` in Linux).
const MAX_KEY: u32 = 512;
/// The largest per-CPU value (`PCPU_MIN_UNIT_SIZE` in Linux).
const MAX_PER_CPU: u32 = 32 << 10;

const INDEX: Field = (|bytes| bytes == 4, "4 (the index, a __u32)");
const KEY: Field = (|bytes| (1..=MAX_KEY).contains(&bytes), "1 to 512 bytes");
const PREFIX: Field = (
    |bytes| (5..=4 + 256).contains(&bytes),
    "5 to 260 bytes (struct bpf_lpm_trie_key: the length in bits, then the data)",
);
const NONE: Field = (|bytes| bytes == 0, "0");
const TASK: Field = (|bytes| bytes == 4, "4 (an int that stands for the task)");
const VALUE: Field = (
    |bytes| 1 <= bytes && bytes <= i32::MAX as u32,
    "1 to 2147483647 bytes",
);
const PER_CPU: Field = (
    |bytes| (1..=MAX_PER_CPU).contains(&bytes),
    "1 to 32768 bytes in a per-CPU map",
);
const REFERENCE: Field = (|bytes| bytes == 4, "4 (a __u32)");
const TRACE: Field = (
    |bytes| bytes % 8 == 0 && 1 <= bytes && bytes <= 8 * MAX_DEPTH as u32,
    "a multiple of 8 up to 1016 (127 addresses)",
);
const SOME: Field = (|entries| entries != 0, "at least 1");
const ANY: Field = (|_| true, "any");
const PAGES: Field = (
    |bytes| bytes.is_power_of_two() && (bytes as u64).is_multiple_of(PAGE),
    "a power of two of at least 4096 (bytes)",
);

const DATA: u32 = MapDefinition::RDONLY_PROG | MapDefinition::NUMA_NODE;
const HASH: u32 = DATA | MapDefinition::NO_PREALLOC | MapDefinition::ZERO_SEED;

impl Rule {
    const fn new(
        kind: MapKind,
        key: Field,
        value: Field,
        entries: Field,
        (flags, flags_text): (u32, &'static str),
    ) -> Self {
        Self {
            kind,
            key,
            value,
            entries,
            flags,
            required: 0,
            flags_text,
        }
    }

    const fn requires(self, required: u32) -> Self {
        Self { required, ..self }
    }
}

const PLAIN: (u32, &str) = (MapDefinition::NUMA_NODE, "0 or BPF_F_NUMA_NODE (0x4)");
const ARRAY_FLAGS: (u32, &str) = (
    DATA | MapDefinition::MMAPABLE | MapDefinition::INNER_MAP,
    "made of BPF_F_RDONLY_PROG (0x80), BPF_F_MMAPABLE (0x400), BPF_F_INNER_MAP (0x1000) and BPF_F_NUMA_NODE (0x4) only",
);
const DATA_FLAGS: (u32, &str) = (
    DATA,
    "made of BPF_F_RDONLY_PROG (0x80) and BPF_F_NUMA_NODE (0x4) only",
);
const HASH_FLAGS: (u32, &str) = (
    HASH,
    "made of BPF_F_NO_PREALLOC (0x1), BPF_F_NUMA_NODE (0x4), BPF_F_ZERO_SEED (0x40) and BPF_F_RDONLY_PROG (0x80) only",
);
const LRU_FLAGS: (u32, &str) = (
    DATA | MapDefinition::NO_COMMON_LRU | MapDefinition::ZERO_SEED,
    "made of BPF_F_NO_COMMON_LRU (0x2), BPF_F_NUMA_NODE (0x4), BPF_F_ZERO_SEED (0x40) and BPF_F_RDONLY_PROG (0x80) only",
);
const PREFIX_FLAGS: (u32, &str) = (
    DATA | MapDefinition::NO_PREALLOC,
    "BPF_F_NO_PREALLOC (0x1), maybe with BPF_F_NUMA_NODE (0x4) and BPF_F_RDONLY_PROG (0x80)",
);
const TASK_FLAGS: (u32, &str) = (MapDefinition::NO_PREALLOC, "BPF_F_NO_PREALLOC (0x1)");
const OUTER_FLAGS: (u32, &str) = (
    MapDefinition::NO_PREALLOC | MapDefinition::NUMA_NODE,
    "made of BPF_F_NO_PREALLOC (0x1) and BPF_F_NUMA_NODE (0x4) only",
);

/// All kinds, by number.
static RULES: &[Rule] = &[
    Rule::new(MapKind::HASH, KEY, VALUE, SOME, HASH_FLAGS),
    Rule::new(MapKind::ARRAY, INDEX, VALUE, SOME, ARRAY_FLAGS),
    Rule::new(MapKind::PROG_ARRAY, INDEX, REFERENCE, SOME, PLAIN),
    Rule::new(MapKind::PERCPU_HASH, KEY, PER_CPU, SOME, HASH_FLAGS),
    Rule::new(MapKind::PERCPU_ARRAY, INDEX, PER_CPU, SOME, DATA_FLAGS),
    Rule::new(MapKind::STACK_TRACE, INDEX, TRACE, SOME, PLAIN),
    Rule::new(MapKind::LRU_HASH, KEY, VALUE, SOME, LRU_FLAGS),
    Rule::new(MapKind::LRU_PERCPU_HASH, KEY, PER_CPU, SOME, LRU_FLAGS),
    Rule::new(MapKind::LPM_TRIE, PREFIX, VALUE, SOME, PREFIX_FLAGS)
        .requires(MapDefinition::NO_PREALLOC),
    Rule::new(MapKind::ARRAY_OF_MAPS, INDEX, REFERENCE, SOME, PLAIN),
    Rule::new(MapKind::HASH_OF_MAPS, KEY, REFERENCE, SOME, OUTER_FLAGS),
    Rule::new(MapKind::QUEUE, NONE, VALUE, SOME, DATA_FLAGS),
    Rule::new(MapKind::STACK, NONE, VALUE, SOME, DATA_FLAGS),
    Rule::new(MapKind::RINGBUF, NONE, NONE, PAGES, PLAIN),
    Rule::new(MapKind::TASK_STORAGE, TASK, VALUE, ANY, TASK_FLAGS)
        .requires(MapDefinition::NO_PREALLOC),
];

/// Checks a definition by its kind's row.
pub(super) fn check(definition: &MapDefinition) -> Result<(), MapCreateError> {
    let rule = RULES.iter().find(|rule| rule.kind == definition.kind);
    let rule = rule.ok_or_else(|| MapCreateError::Kind {
        map: definition.name.clone(),
        kind: definition.kind,
    })?;
    let flags = definition.flags;
    let flags_fit = flags & !rule.flags == 0 && flags & rule.required == rule.required;
    let is = |field: Field, found| (field.0(found), field.1);
    for (name, found, (fits, allowed)) in [
        ("map_flags", flags, (flags_fit, rule.flags_text)),
        (
            "key_size",
            definition.key_size,
            is(rule.key, definition.key_size),
        ),
        (
            "value_size",
            definition.value_size,
            is(rule.value, definition.value_size),
        ),
        (
            "max_entries",
            definition.max_entries,
            is(rule.entries, definition.max_entries),
        ),
    ] {
        if !fits {
            return Err(MapCreateError::Size {
                map: definition.name.clone(),
                field: name,
                found: found.into(),
                allowed,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_require_what_they_allow() {
        assert!(RULES.is_sorted_by(|a, b| a.kind < b.kind));
        for rule in RULES {
            assert_eq!(rule.required & !rule.flags, 0, "{}", rule.kind);
            assert!(rule.kind.name().is_some());
        }
    }
}
