// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each kind of map answers as Linux's does: one row an operation.
//!
//! The host has three cores and says which one runs, so per-CPU values can be looked at from all of them.
use std::{
    cell::{Cell, RefCell},
    fmt,
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bpf_vm::{
    helpers::{Function, by_number},
    host::Host,
    map::{
        DEFAULT_TASKS, HeapMemory, Map, MapCreateError, MapDefinition, MapError, MapKind,
        TailTarget, UpdateFlags,
    },
    program::UncheckedProgram,
};

thread_local! {
    static CPU: Cell<u32> = const { Cell::new(0) };
    static STACK: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static WOKEN: Cell<u32> = const { Cell::new(0) };
    static MASKED: Cell<u64> = const { Cell::new(0) };
}

struct ThreeCores;

impl Host for ThreeCores {
    fn ktime_ns(&self) -> u64 {
        0
    }
    fn cpu(&self) -> u32 {
        CPU.get()
    }
    fn cpus(&self) -> u32 {
        3
    }
    fn current_pid_tgid(&self) -> u64 {
        0
    }
    fn stack_trace(&self, _: u64, skip: usize, into: &mut [u64]) -> usize {
        STACK.with_borrow(|stack| {
            let frames = stack.get(skip..).unwrap_or_default();
            into.iter_mut()
                .zip(frames)
                .map(|(to, from)| *to = *from)
                .count()
        })
    }
    fn mask_interrupts(&self) -> u64 {
        MASKED.replace(MASKED.get() + 1)
    }
    fn restore_interrupts(&self, state: u64) {
        assert_eq!(MASKED.replace(state), state + 1, "restored out of order");
    }
    fn relax(&self) {
        panic!("one thread waits for itself");
    }
    fn wake_reader(&self, _: &Map) {
        WOKEN.set(WOKEN.get() + 1);
    }
    fn print(&self, _: fmt::Arguments<'_>) {}
}

fn definition(kind: MapKind, key: u32, value: u32, entries: u32, flags: u32) -> MapDefinition {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| bpf_vm::host::register(&ThreeCores).unwrap());
    MapDefinition {
        name: "m".into(),
        kind,
        key_size: key,
        value_size: value,
        max_entries: entries,
        flags,
    }
}

fn memory() -> HeapMemory {
    HeapMemory::with_limit(1 << 20)
}

fn map(kind: MapKind, key: u32, value: u32, entries: u32, flags: u32) -> Arc<Map> {
    Map::create(definition(kind, key, value, entries, flags), &memory()).unwrap()
}

/// Calls a helper by its number.
fn helper(number: u32, arguments: [u64; 5]) -> i64 {
    let Function::Plain(function) = by_number(number).unwrap().function else {
        panic!("helper {number} is not plain");
    };
    let [a, b, c, d, e] = arguments;
    // SAFETY: each caller hands over what the row says.
    unsafe { function(a, b, c, d, e) as i64 }
}

fn exposed<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).expose_provenance() as u64
}

/// An operation on a map with 4-byte keys and 8-byte values.
#[derive(Clone, Copy, Debug)]
enum Step {
    Update(u32, u64, u64),
    Lookup(u32),
    Delete(u32),
}
use Step::{Delete, Lookup, Update};

/// What it answers: a value, or the error's number.
fn answer(map: &Map, step: Step) -> Result<u64, i32> {
    let result = match step {
        Update(key, value, flags) => UpdateFlags::try_from(flags)
            .and_then(|flags| map.update(&key.to_ne_bytes(), &value.to_ne_bytes(), flags))
            .map(|()| 0),
        Lookup(key) => {
            let mut value = [0; 8];
            map.lookup(&key.to_ne_bytes(), &mut value)
                .map(|()| u64::from_ne_bytes(value))
        }
        Delete(key) => map.delete(&key.to_ne_bytes()).map(|()| 0),
    };
    result.map_err(MapError::errno)
}

#[track_caller]
fn answers(map: &Map, steps: &[(Step, Result<u64, i32>)]) {
    for (index, (step, want)) in steps.iter().enumerate() {
        assert_eq!(answer(map, *step), *want, "step {index}: {step:?}");
    }
}

fn keys(map: &Map) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut next = vec![0; map.key_size()];
    while map
        .next_key(keys.last().map(|key| &key[..]), &mut next)
        .is_ok()
    {
        keys.push(next.clone());
        assert!(keys.len() < 1000, "the walk does not end");
    }
    keys
}

#[test]
fn hash() {
    for flags in [0, MapDefinition::NO_PREALLOC] {
        let map = map(MapKind::HASH, 4, 8, 2, flags);
        answers(
            &map,
            &[
                (Lookup(1), Err(2)),
                (Delete(1), Err(2)),
                (Update(1, 10, 2), Err(2)),
                (Update(1, 10, 1), Ok(0)),
                (Update(1, 11, 1), Err(17)),
                (Lookup(1), Ok(10)),
                (Update(1, 12, 2), Ok(0)),
                (Lookup(1), Ok(12)),
                (Update(2, 20, 0), Ok(0)),
                (Update(3, 30, 0), Err(7)),
                (Update(3, 30, 1), Err(7)),
                (Update(3, 30, 2), Err(2)),
                // Full, yet what is there can be replaced.
                (Update(2, 21, 0), Ok(0)),
                (Lookup(2), Ok(21)),
                (Update(2, 22, 3), Err(22)),
                (Delete(1), Ok(0)),
                (Delete(1), Err(2)),
                (Lookup(1), Err(2)),
                (Update(3, 30, 0), Ok(0)),
                (Lookup(3), Ok(30)),
            ],
        );
        assert_eq!(map.usage(), Some((2, 6)));
    }
}

#[test]
fn hash_keys_are_walked_once_each_and_from_the_first_if_one_is_gone() {
    let map = map(MapKind::HASH, 4, 8, 100, 0);
    for key in 0..100 {
        answers(&map, &[(Update(key, key.into(), 1), Ok(0))]);
    }
    let walked = keys(&map);
    let mut sorted = walked.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!((walked.len(), sorted.len()), (100, 100));
    map.delete(&walked[50]).unwrap();
    let mut next = [0; 4];
    map.next_key(Some(&walked[50]), &mut next).unwrap();
    assert_eq!(next[..], walked[0][..]);
    map.next_key(Some(&walked[49]), &mut next).unwrap();
    assert_eq!(next[..], walked[51][..]);
    assert_eq!(
        map.next_key(Some(&walked[99]), &mut next),
        Err(MapError::NotFound)
    );
    assert_eq!(
        map.next_key(Some(&[0; 3]), &mut next),
        Err(MapError::Invalid)
    );
}

/// Callbacks may delete or update the element that they are called for.
#[test]
fn a_walk_goes_on_when_its_element_changes() {
    for delete in [false, true] {
        let map = map(MapKind::HASH, 4, 8, 64, 0);
        for key in 0..64 {
            answers(&map, &[(Update(key, 1, 1), Ok(0))]);
        }
        let mut seen = Vec::new();
        let count = map.walk(|key, value| {
            // SAFETY: the address of a key of 4 bytes, aligned to 8.
            let key = unsafe { *std::ptr::with_exposed_provenance::<u32>(key as usize) };
            // SAFETY: the address of a value of 8 bytes, aligned to 8.
            let value = unsafe { *std::ptr::with_exposed_provenance::<u64>(value as usize) };
            assert_eq!(value, 1);
            seen.push(key);
            let step = if delete {
                Delete(key)
            } else {
                Update(key, 2, 2)
            };
            assert_eq!(answer(&map, step), Ok(0));
            true
        });
        assert_eq!(count, Ok(64));
        seen.sort();
        assert_eq!(seen, (0..64).collect::<Vec<_>>(), "delete: {delete}");
        assert_eq!(map.usage(), Some((if delete { 0 } else { 64 }, 6)));
    }
    let array = map(MapKind::ARRAY, 4, 8, 5, 0);
    assert_eq!(array.walk(|_, _| true), Ok(5));
    assert_eq!(array.walk(|_, _| false), Ok(1));
    let queue = map(MapKind::QUEUE, 0, 8, 5, 0);
    assert_eq!(queue.walk(|_, _| true), Err(MapError::Invalid));
}

#[test]
fn lru_hash_evicts_what_was_not_used() {
    let map = map(MapKind::LRU_HASH, 4, 8, 8, 0);
    for key in 0..8 {
        answers(&map, &[(Update(key, key.into(), 1), Ok(0))]);
    }
    for round in 0..100u32 {
        // A program looks up key 0 before each new key; it stays.
        assert!(map.lookup_address(&0u32.to_ne_bytes()).is_some());
        answers(
            &map,
            &[
                (Update(100 + round, 7, 1), Ok(0)),
                (Lookup(100 + round), Ok(7)),
                (Lookup(0), Ok(0)),
                (Update(100 + round, 7, 1), Err(17)),
            ],
        );
        assert_eq!(keys(&map).len(), 8);
        assert_eq!(map.usage(), Some((8, 6)));
    }
}

#[test]
fn per_cpu_maps_have_a_value_a_core() {
    for (kind, evicts) in [
        (MapKind::PERCPU_ARRAY, false),
        (MapKind::PERCPU_HASH, false),
        (MapKind::LRU_PERCPU_HASH, true),
    ] {
        let map = map(kind, 4, 5, 2, 0);
        let key = 1u32.to_ne_bytes();
        assert_eq!(map.host_value_size(), 3 * 8);
        let mut all = [0xff; 24];
        if kind != MapKind::PERCPU_ARRAY {
            assert_eq!(map.lookup(&key, &mut all), Err(MapError::NotFound));
            assert_eq!(map.lookup_address(&key), None);
        }
        // A program's update: its core's value, the others' zero.
        CPU.set(2);
        let update = |value: &[u8; 5]| {
            map.update_with(&key, UpdateFlags::Any, |words| words.write_bytes(value))
        };
        assert_eq!(update(b"abcde"), Ok(()));
        CPU.set(1);
        assert_eq!(update(b"fghij"), Ok(()));
        assert_eq!(map.lookup(&key, &mut all), Ok(()));
        assert_eq!(&all, b"\0\0\0\0\0\0\0\0fghij\0\0\0abcde\0\0\0", "{kind}");
        // Each core's program sees its own; the strides say where.
        let addresses: Vec<u64> = (0..3)
            .map(|cpu| {
                CPU.set(cpu);
                let address = map.lookup_address(&key).unwrap();
                assert_eq!(map.lookup_address_on(&key, cpu), Some(address));
                assert!(map.value_range().unwrap().contains(&address));
                address
            })
            .collect();
        CPU.set(0);
        if let Some(stride) = map.cpu_stride() {
            let first = map.value_address(0).unwrap() + map.value_stride().unwrap() as u64;
            let want: Vec<u64> = (0..3).map(|cpu| first + cpu * stride as u64).collect();
            assert_eq!(addresses, want);
        }
        assert_eq!(map.lookup_address_on(&key, 3), None);
        assert_eq!(
            helper(195, [map.handle(), exposed(&key), 2, 0, 0]) as u64,
            addresses[2]
        );
        assert_eq!(helper(195, [map.handle(), exposed(&key), 3, 0, 0]), 0);
        // The host's update: all of them.
        let new: [u8; 24] = std::array::from_fn(|index| index as u8);
        assert_eq!(map.update(&key, &new, UpdateFlags::Any), Ok(()));
        assert_eq!(
            map.update(&key, &new[..5], UpdateFlags::Any),
            Err(MapError::Invalid)
        );
        assert_eq!(map.lookup(&key, &mut all), Ok(()));
        assert_eq!(all, new);
        // An element that is used again starts with zeros for other cores.
        if kind != MapKind::PERCPU_ARRAY {
            assert_eq!(map.delete(&key), Ok(()));
            for key in 10..14u32 {
                let full = key >= 12 && !evicts;
                let want = if full { Err(MapError::TooBig) } else { Ok(()) };
                let key = key.to_ne_bytes();
                let got = map.update_with(&key, UpdateFlags::NoExist, |words| {
                    words.write_bytes(b"xxxxx")
                });
                assert_eq!(got, want);
                if !full {
                    assert_eq!(map.lookup(&key, &mut all), Ok(()));
                    assert_eq!(&all, b"xxxxx\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
                }
            }
        }
    }
}

fn prefix(length: u32, data: [u8; 4]) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&length.to_ne_bytes());
    key[4..].copy_from_slice(&data);
    key
}

#[test]
fn lpm_trie() {
    let map = map(MapKind::LPM_TRIE, 8, 8, 4, MapDefinition::NO_PREALLOC);
    let update = |length, data, value: u64, flags| {
        map.update(&prefix(length, data), &value.to_ne_bytes(), flags)
    };
    let lookup = |length, data| {
        let mut value = [0; 8];
        map.lookup(&prefix(length, data), &mut value)
            .map(|()| u64::from_ne_bytes(value))
    };
    use UpdateFlags::{Any, Exist, NoExist};
    assert_eq!(lookup(32, [10, 0, 0, 1]), Err(MapError::NotFound));
    assert_eq!(update(8, [10, 1, 2, 3], 8, Exist), Err(MapError::NotFound));
    assert_eq!(update(8, [10, 1, 2, 3], 8, NoExist), Ok(()));
    assert_eq!(update(8, [10, 9, 9, 9], 8, NoExist), Err(MapError::Exists));
    assert_eq!(update(24, [10, 0, 1, 0], 24, Any), Ok(()));
    assert_eq!(update(23, [10, 0, 0, 0], 23, Any), Ok(()));
    assert_eq!(update(33, [10, 0, 0, 0], 0, Any), Err(MapError::Invalid));
    for (length, data, want) in [
        (32, [10, 0, 1, 77], Ok(24)),
        (32, [10, 0, 0, 77], Ok(23)),
        (32, [10, 0, 2, 77], Ok(8)),
        (23, [10, 0, 1, 0], Ok(23)),
        (16, [10, 0, 1, 0], Ok(8)),
        (7, [10, 0, 1, 0], Err(MapError::NotFound)),
        (32, [11, 0, 1, 0], Err(MapError::NotFound)),
        (33, [10, 0, 1, 0], Err(MapError::NotFound)),
    ] {
        assert_eq!(lookup(length, data), want, "{length} {data:?}");
    }
    assert_eq!(update(0, [0; 4], 1, Any), Ok(()));
    assert_eq!(update(9, [0; 4], 1, Any), Err(MapError::NoSpace));
    assert_eq!(lookup(32, [99; 4]), Ok(1));
    // What is more specific comes first, the rest by bits.
    let order: Vec<Vec<u8>> = [
        prefix(24, [10, 0, 1, 0]),
        prefix(23, [10, 0, 0, 0]),
        prefix(8, [10, 0, 0, 0]),
        prefix(0, [0; 4]),
    ]
    .map(Vec::from)
    .into();
    assert_eq!(keys(&map), order);
    assert_eq!(map.delete(&prefix(24, [10, 0, 1, 0])), Ok(()));
    assert_eq!(
        map.delete(&prefix(24, [10, 0, 1, 0])),
        Err(MapError::NotFound)
    );
    assert_eq!(lookup(32, [10, 0, 1, 77]), Ok(23));
}

#[test]
fn queue_and_stack() {
    for (kind, order) in [(MapKind::QUEUE, [2, 3, 4]), (MapKind::STACK, [4, 3, 2])] {
        let map = map(kind, 0, 8, 3, 0);
        let push = |value: u64, flags| helper(87, [map.handle(), exposed(&value), flags, 0, 0]);
        let out = AtomicU64::new(99);
        let take = |number| {
            (
                helper(number, [map.handle(), exposed(&out), 0, 0, 0]),
                out.load(Relaxed),
            )
        };
        // Nothing there: the value is zeroed.
        assert_eq!(take(88), (-2, 0));
        for value in 1..=3 {
            assert_eq!(push(value, 0), 0);
        }
        assert_eq!(push(4, 0), -7);
        assert_eq!(push(4, 1), -22);
        assert_eq!(push(4, 2), 0, "the oldest goes");
        for want in order {
            assert_eq!(take(89), (0, want), "{kind}");
            assert_eq!(take(88), (0, want), "{kind}");
        }
        assert_eq!(take(89), (-2, 0));
        // By the host, as bpf(2) has it: update pushes, lookup peeks.
        assert_eq!(map.update(&[], &[7; 8], UpdateFlags::Any), Ok(()));
        let mut value = [0; 8];
        assert_eq!(map.lookup(&[], &mut value), Ok(()));
        assert_eq!(value, [7; 8]);
        assert_eq!(map.delete(&[]), Err(MapError::Invalid));
        assert_eq!(map.next_key(None, &mut []), Err(MapError::Invalid));
    }
}

#[test]
fn ring_buffer() {
    let map = map(MapKind::RINGBUF, 0, 0, 4096, 0);
    let ring = map.ring_buffer().unwrap();
    let handle = map.handle();
    let reserve = |size, flags| helper(131, [handle, size, flags, 0, 0]) as u64;
    let drain = || {
        let mut records = Vec::new();
        ring.drain(|record| {
            let mut bytes = vec![0; record.len()];
            record.copy_to(&mut bytes);
            records.push(bytes);
        });
        records
    };
    let woken = || WOKEN.replace(0);
    assert_eq!(reserve(8, 1), 0, "flags have to be 0");
    assert_eq!(reserve(4096 - 7, 0), 0, "never fits");
    assert_eq!(reserve(4096 - 8, 0), 0, "one byte at least stays free");
    let (first, second, third) = (reserve(5, 0), reserve(16, 0), reserve(8, 0));
    assert_eq!((second - first, third - second), (16, 24));
    assert!(map.value_range().unwrap().contains(&first) && first.is_multiple_of(8));
    assert_eq!(
        (ring.reserved(first), ring.reserved(first + 8)),
        (Some(5), None)
    );
    // Not in order: the reader waits for the first.
    assert_eq!(helper(132, [second, 0, 0, 0, 0]), 0);
    assert_eq!((woken(), drain().len()), (0, 0));
    // SAFETY: the record's 5 bytes, reserved and not submitted.
    unsafe { std::ptr::with_exposed_provenance_mut::<[u8; 5]>(first as usize).write(*b"first") };
    assert_eq!(helper(132, [first, 0, 0, 0, 0]), 0);
    assert_eq!((woken(), ring.reserved(first)), (1, None));
    assert_eq!(map.commit(first, false, 0), Err(MapError::Invalid), "twice");
    assert_eq!(helper(133, [third, 0, 0, 0, 0]), 0);
    assert_eq!(drain(), [b"first".to_vec(), vec![0; 16]]);
    let query = |what| helper(134, [handle, what, 0, 0, 0]);
    assert_eq!([0, 1, 2, 3, 4].map(query), [0, 4096, 56, 56, 0]);
    // Copies of all sizes, many times round, past the end.
    let source: [u8; 1000] = std::array::from_fn(|index| index as u8);
    for size in (0..=1000).chain((0..1000).rev()) {
        for _ in 0..2 {
            assert_eq!(helper(130, [handle, exposed(&source), size, 0, 0]), 0);
        }
        assert_eq!(woken(), 1, "only the first of two is waited for");
        let want = source[..size as usize].to_vec();
        assert_eq!(drain(), [want.clone(), want]);
    }
    // Full.
    let data = exposed(&source);
    let mut count = 0;
    while helper(130, [handle, data, 120, 1, 0]) == 0 {
        count += 1;
    }
    assert_eq!((count, woken()), (31, 0), "no wake-up was asked for");
    assert_eq!(helper(130, [handle, data, 120, 0, 0]), -11);
    assert_eq!(helper(130, [handle, data, 120, 4, 0]), -22);
    assert_eq!(drain().len(), 31);
    assert_eq!(helper(130, [handle, data, 8, 2, 0]), 0);
    assert_eq!(woken(), 1);
}

#[test]
fn stack_traces() {
    let map = map(MapKind::STACK_TRACE, 4, 32, 2, 0);
    let stack_id = |flags| helper(27, [0, map.handle(), flags, 0, 0]);
    let set = |stack: &[u64]| STACK.set(stack.to_vec());
    let read = |id: i64| {
        let mut value = [0xff; 32];
        map.lookup(&(id as u32).to_ne_bytes(), &mut value)?;
        Ok::<_, MapError>(
            value
                .chunks(8)
                .map(|c| u64::from_ne_bytes(c.try_into().unwrap()))
                .collect::<Vec<_>>(),
        )
    };
    set(&[]);
    assert_eq!(stack_id(0), -14);
    assert_eq!(stack_id(256), -22, "no user stacks");
    set(&[1, 2, 3]);
    let id = stack_id(0);
    assert!((0..2).contains(&id));
    assert_eq!((stack_id(0), stack_id(512)), (id, id));
    assert_eq!(read(id), Ok(vec![1, 2, 3, 0]));
    assert_eq!(read(1 - id), Err(MapError::NotFound));
    // Another trace with the same id, found by trying.
    let other = (0..)
        .map(|last| [9, 9, 9, 9, last])
        .find(|stack| {
            set(&stack[1..]);
            stack_id(0) == -17
        })
        .unwrap();
    assert_eq!(read(id), Ok(vec![1, 2, 3, 0]));
    assert_eq!(stack_id(1024), id);
    assert_eq!(read(id), Ok(other[1..].to_vec()));
    // Deeper than a value: cut. Skipped: from further out.
    set(&other);
    assert_eq!(stack_id(1 | 1024), id);
    let mut buffer = [0xffu8; 64];
    let get = |buffer: &mut [u8; 64], size, flags| {
        helper(
            67,
            [
                0,
                buffer.as_mut_ptr().expose_provenance() as u64,
                size,
                flags,
                0,
            ],
        )
    };
    assert_eq!(get(&mut buffer, 64, 1), 32);
    assert_eq!(buffer[..8], other[1].to_ne_bytes());
    assert_eq!(buffer[32..], [0; 32]);
    assert_eq!(get(&mut buffer, 60, 0), -22);
    assert_eq!(get(&mut buffer, 64, 5), -14);
    let there = keys(&map);
    assert!(there.contains(&(id as u32).to_ne_bytes().to_vec()));
    assert_eq!(map.delete(&(id as u32).to_ne_bytes()), Ok(()));
    assert_eq!(
        map.delete(&(id as u32).to_ne_bytes()),
        Err(MapError::NotFound)
    );
}

#[test]
fn maps_of_maps() {
    let inner = |value, entries| definition(MapKind::ARRAY, 4, value, entries, 0);
    let memory = memory();
    let create = |kind, template| {
        Map::create_outer(definition(kind, 4, 4, 2, 0), template, &memory).unwrap()
    };
    let key = |key: u32| key.to_ne_bytes();
    use UpdateFlags::{Any, Exist, NoExist};
    for kind in [MapKind::ARRAY_OF_MAPS, MapKind::HASH_OF_MAPS] {
        let is_hash = kind == MapKind::HASH_OF_MAPS;
        let outer = create(kind, inner(8, 4));
        let first = Map::create(inner(8, 4), &memory).unwrap();
        let second = Map::create(inner(8, 4), &memory).unwrap();
        assert_eq!(outer.lookup_address(&key(0)), None);
        assert!(
            outer
                .put_map(&key(0), first.clone(), Any)
                .unwrap()
                .is_none()
        );
        assert_eq!(outer.lookup_address(&key(0)), Some(first.handle()));
        assert_eq!(outer.inner(first.handle()).map(Map::value_size), Some(8));
        assert!(outer.inner(second.handle()).is_none());
        for (wrong, why) in [(inner(16, 4), "value"), (inner(8, 5), "entries")] {
            let wrong = Map::create(wrong, &memory).unwrap();
            assert_eq!(
                outer.put_map(&key(1), wrong, Any).unwrap_err(),
                MapError::Invalid,
                "{why}"
            );
        }
        let refused = outer.put_map(&key(0), second.clone(), NoExist).unwrap_err();
        assert_eq!(refused, MapError::Exists);
        if is_hash {
            assert_eq!(
                outer.put_map(&key(7), second.clone(), Exist).unwrap_err(),
                MapError::NotFound
            );
        } else {
            assert_eq!(
                outer.put_map(&key(2), second.clone(), Any).unwrap_err(),
                MapError::TooBig
            );
        }
        let old = outer
            .put_map(&key(0), second.clone(), Any)
            .unwrap()
            .unwrap();
        // SAFETY: no program runs.
        assert!(Arc::ptr_eq(&unsafe { old.release() }, &first));
        assert_eq!(Arc::strong_count(&first), 1);
        assert_eq!(outer.lookup_address(&key(0)), Some(second.handle()));
        let old = outer.remove_map(&key(0)).unwrap().unwrap();
        // SAFETY: no program runs.
        drop(unsafe { old.release() });
        assert_eq!(outer.lookup_address(&key(0)), None);
        assert!(
            outer
                .put_map(&key(0), second.clone(), Any)
                .unwrap()
                .is_none()
        );
        // Programs only look up.
        assert_eq!(outer.update(&key(0), &[0; 4], Any), Err(MapError::Invalid));
        assert_eq!(outer.delete(&key(0)), Err(MapError::Invalid));
        drop(outer);
        assert_eq!(Arc::strong_count(&second), 1);
    }
    // Arrays of any length, if the template says so.
    let mut template = inner(8, 4);
    template.flags = MapDefinition::INNER_MAP;
    let outer = create(MapKind::ARRAY_OF_MAPS, template.clone());
    template.max_entries = 9;
    let longer = Map::create(template, &memory).unwrap();
    assert!(outer.put_map(&key(0), longer, Any).unwrap().is_none());
    let alone = Map::create(definition(MapKind::ARRAY_OF_MAPS, 4, 4, 2, 0), &memory);
    assert!(matches!(alone, Err(MapCreateError::Inner { .. })));
    let nested = definition(MapKind::ARRAY_OF_MAPS, 4, 4, 2, 0);
    let nested = Map::create_outer(nested.clone(), nested, &memory);
    assert!(matches!(nested, Err(MapCreateError::Inner { .. })));
}

#[test]
fn program_array() {
    let map = map(MapKind::PROG_ARRAY, 4, 4, 2, 0);
    let program = UncheckedProgram {
        name: "target".into(),
        insns: bpf_vm::asm::assemble("r0 = 1\nexit").unwrap(),
        ..Default::default()
    };
    let target = Arc::new(TailTarget {
        program: Arc::new(program.validate().unwrap()),
        entry: AtomicU64::new(0x1234),
        keep: None,
    });
    let word = |index: usize| {
        let word = map.tail_entries().unwrap() as usize + 8 * index;
        let word = std::ptr::with_exposed_provenance::<AtomicU64>(word);
        // SAFETY: a program array has a word a slot, and it has two slots.
        unsafe { &*word }.load(Relaxed)
    };
    assert!(map.tail_target(1).is_none());
    assert!(map.set_program(1, Some(target.clone())).unwrap().is_none());
    assert_eq!(map.set_program(2, None).unwrap_err(), MapError::TooBig);
    assert_eq!(map.tail_target(1).unwrap().program.name(), "target");
    assert_eq!((word(0), word(1)), (0, 0x1234));
    let old = map.set_program(1, None).unwrap().unwrap();
    assert!(map.tail_target(1).is_none());
    assert_eq!(word(1), 0);
    // SAFETY: no program runs.
    assert!(Arc::ptr_eq(&unsafe { old.release() }, &target));
    assert_eq!(map.value_range(), None, "programs cannot touch the words");
}

#[test]
fn task_storage() {
    let map = map(MapKind::TASK_STORAGE, 4, 8, 0, MapDefinition::NO_PREALLOC);
    let (task, other) = (0x1000u64, 0x2000u64);
    let get = |task, value: Option<&u64>, flags| {
        helper(
            156,
            [map.handle(), task, value.map_or(0, exposed), flags, 0],
        ) as u64
    };
    let delete = |task| helper(157, [map.handle(), task, 0, 0, 0]);
    assert_eq!(
        (get(task, None, 0), get(task, None, 2), get(0, None, 1)),
        (0, 0, 0)
    );
    let address = get(task, Some(&7), 1);
    assert!(map.value_range().unwrap().contains(&address));
    assert_eq!(
        (get(task, Some(&8), 1), get(task, None, 0)),
        (address, address)
    );
    let mut value = [0; 8];
    assert_eq!(map.read_task_value(task, 0, &mut value), Ok(()));
    assert_eq!(u64::from_ne_bytes(value), 7);
    assert_ne!(get(other, None, 1), address);
    assert_eq!(map.read_task_value(other, 0, &mut value), Ok(()));
    assert_eq!(value, [0; 8]);
    assert_eq!((delete(task), delete(task), delete(0)), (0, -2, -22));
    assert_eq!(get(task, None, 0), 0);
    assert_eq!(map.task_ended(other, 0), Ok(()));
    // Room for so many, and room again when they are gone.
    for round in 0..3 {
        for task in 1..=u64::from(DEFAULT_TASKS) {
            assert_ne!(get(task, None, 1), 0, "round {round}, task {task}");
        }
        assert_eq!(get(1 << 20, None, 1), 0);
        (1..=u64::from(DEFAULT_TASKS)).for_each(|task| assert_eq!(delete(task), 0));
    }
}

#[test]
fn definitions_that_linux_refuses() {
    for (kind, key, value, entries, flags, field) in [
        (MapKind::HASH, 0, 8, 1, 0, "key_size"),
        (MapKind::HASH, 513, 8, 1, 0, "key_size"),
        (MapKind::HASH, 4, 0, 1, 0, "value_size"),
        (MapKind::HASH, 4, 8, 0, 0, "max_entries"),
        (MapKind::HASH, 4, 8, 1, 2, "map_flags"),
        (MapKind::LRU_HASH, 4, 8, 1, 1, "map_flags"),
        (MapKind::PERCPU_ARRAY, 4, 32769, 1, 0, "value_size"),
        (MapKind::LPM_TRIE, 8, 8, 1, 0, "map_flags"),
        (MapKind::LPM_TRIE, 4, 8, 1, 1, "key_size"),
        (MapKind::QUEUE, 4, 8, 1, 0, "key_size"),
        (MapKind::RINGBUF, 0, 0, 4095, 0, "max_entries"),
        (MapKind::RINGBUF, 0, 0, 2048, 0, "max_entries"),
        (MapKind::RINGBUF, 0, 8, 4096, 0, "value_size"),
        (MapKind::PROG_ARRAY, 4, 8, 1, 0, "value_size"),
        (MapKind::STACK_TRACE, 4, 12, 1, 0, "value_size"),
        (MapKind::STACK_TRACE, 4, 1024, 1, 0, "value_size"),
        (MapKind::TASK_STORAGE, 4, 8, 0, 0, "map_flags"),
    ] {
        let refused = Map::create(definition(kind, key, value, entries, flags), &memory());
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(field), "{kind}: {message}");
    }
    // What would not fit into any memory.
    for kind in [
        MapKind::HASH,
        MapKind::STACK_TRACE,
        MapKind::QUEUE,
        MapKind::PROG_ARRAY,
    ] {
        let (key, value) = match kind {
            MapKind::QUEUE => (0, 8),
            MapKind::PROG_ARRAY => (4, 4),
            _ => (4, 8),
        };
        let refused = Map::create(definition(kind, key, value, u32::MAX, 0), &memory());
        assert!(refused.unwrap_err().to_string().contains("no memory left"));
    }
}

/// `BPF_F_RDONLY_PROG` keeps programs out, and not the host, until it freezes the map.
#[test]
fn what_programs_only_read_is_the_hosts_to_write() {
    let flags = MapDefinition::RDONLY_PROG;
    for kind in [
        MapKind::ARRAY,
        MapKind::HASH,
        MapKind::LRU_HASH,
        MapKind::PERCPU_HASH,
        MapKind::PERCPU_ARRAY,
    ] {
        let map = map(kind, 4, 8, 2, flags);
        let array = matches!(kind, MapKind::ARRAY | MapKind::PERCPU_ARRAY);
        let (key, mut value) = (1u32.to_ne_bytes(), vec![7; map.host_value_size()]);
        assert_eq!(map.update(&key, &value, UpdateFlags::Any), Ok(()), "{kind}");
        value.fill(0);
        assert_eq!(map.lookup(&key, &mut value), Ok(()));
        assert!(value.iter().all(|byte| *byte == 7), "{kind}");
        let refused = Err(MapError::NotPermitted);
        let by_program = map.update_with(&key, UpdateFlags::Any, |_| panic!("{kind}"));
        assert_eq!(
            (by_program, map.delete_by_program(&key)),
            (refused, refused)
        );
        if !array {
            assert_eq!(map.delete(&key), Ok(()), "{kind}");
            assert_eq!(map.update(&key, &value, UpdateFlags::Any), Ok(()));
        }
        map.freeze();
        assert_eq!(map.update(&key, &value, UpdateFlags::Any), refused);
        assert_eq!(map.delete(&key), refused, "{kind}");
        assert_eq!(map.lookup(&key, &mut value), Ok(()));
    }
}
