// SPDX-License-Identifier: MIT OR Apache-2.0
//! No operation on a map allocates or frees once the map is there. One test, alone in its binary: the allocator counts.
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use bpf_vm::map::{
    Cursor, HeapMemory, Map, MapDefinition, MapKind, UpdateFlags, memory::write_bytes,
};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: each method is the system allocator's; counting touches a thread's cell that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn operations_do_not_allocate() {
    let before = CALLS.get();
    drop(Box::new(before));
    assert_eq!(CALLS.get(), before + 2, "the allocator counts");
    for (kind, key, value, entries, flags) in [
        (MapKind::ARRAY, 4, 8, 4, 0),
        (MapKind::PERCPU_ARRAY, 4, 8, 4, 0),
        (MapKind::HASH, 8, 8, 4, 0),
        (MapKind::PERCPU_HASH, 300, 8, 4, 0),
        (MapKind::LRU_HASH, 8, 8, 4, 0),
        (MapKind::LRU_PERCPU_HASH, 8, 8, 4, 0),
        (MapKind::LPM_TRIE, 8, 8, 4, MapDefinition::NO_PREALLOC),
        (MapKind::QUEUE, 0, 8, 4, 0),
        (MapKind::STACK, 0, 8, 4, 0),
        (MapKind::RINGBUF, 0, 0, 4096, 0),
        (MapKind::STACK_TRACE, 4, 64, 4, 0),
        (MapKind::TASK_STORAGE, 4, 8, 4, MapDefinition::NO_PREALLOC),
    ] {
        let definition = MapDefinition {
            name: "m".into(),
            kind,
            key_size: key,
            value_size: value,
            max_entries: entries,
            flags,
        };
        let map = Map::create(definition, &HeapMemory::with_limit(1 << 20)).unwrap();
        let (mut key, mut next, mut out) = ([0; 300], [0; 300], [0; 64]);
        let (size, bytes) = (map.key_size(), map.host_value_size());
        let before = CALLS.get();
        let mut done = 0;
        for round in 0..100u8 {
            if let Some(first) = key[..size].first_mut() {
                *first = round % 8;
            }
            let (key, next) = (&key[..size], &mut next[..size]);
            let write = |words: &[_]| write_bytes(words, &[round; 8]);
            done += u32::from(map.update_with(key, UpdateFlags::Any, write).is_ok());
            done += u32::from(map.update(key, &out[..bytes], UpdateFlags::Exist).is_ok());
            done += u32::from(map.lookup_address(key).is_some());
            done += u32::from(map.lookup(key, &mut out[..bytes]).is_ok());
            done += u32::from(map.next_key(None, next).is_ok());
            done += u32::from(map.next_key(Some(key), next).is_ok());
            let mut cursor = Cursor::default();
            while map.step(&mut cursor).is_some() {
                done += 1;
            }
            done += map.pop(|_| {}).is_ok() as u32;
            if round % 3 == 0 {
                done += u32::from(map.delete(key).is_ok());
            }
            if let Some(record) = map.reserve(round.into()) {
                map.commit(record, round % 2 == 0, 0).unwrap();
                done += map
                    .ring_buffer()
                    .unwrap()
                    .drain(|record| record.copy_to(&mut out)) as u32;
            }
            done += u32::from(map.stack_id(&[round.into(); 4], 1 << 10).is_ok());
            let value = map.task_value((round % 8).into(), 0, Some(write));
            done += u32::from(value.is_some());
            done += u32::from(map.task_ended((round % 5).into(), 0).is_ok());
        }
        assert_eq!(CALLS.get(), before, "{kind}");
        assert!(done >= 50, "{kind}: {done} operations succeeded");
    }
}
