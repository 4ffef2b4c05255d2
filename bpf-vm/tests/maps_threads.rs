// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maps under threads, each of which is a core to the host: nothing lost, nothing torn, nothing leaked.
//!
//! The short locks are taken by threads that may be preempted, so an update may be told `EBUSY` at any time; it is
//! tried again.
use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use bpf_vm::{
    host::Host,
    map::{HeapMemory, Map, MapDefinition, MapError, MapKind, UpdateFlags},
};

/// Threads of each test, and so cores.
const THREADS: u32 = 4;
/// Operations of each thread.
const STEPS: u64 = 200_000;
/// Bytes of a hash's keys and values: long, so that others come in between.
const KEY_BYTES: usize = 128;
const VALUE_BYTES: usize = 512;

thread_local! {
    static CPU: Cell<u32> = const { Cell::new(0) };
}

struct Threads;

impl Host for Threads {
    fn ktime_ns(&self) -> u64 {
        0
    }
    fn cpu(&self) -> u32 {
        CPU.get()
    }
    fn cpus(&self) -> u32 {
        THREADS
    }
    fn current_pid_tgid(&self) -> u64 {
        0
    }
    fn relax(&self) {
        thread::yield_now();
    }
    fn print(&self, _: fmt::Arguments<'_>) {}
}

fn map(kind: MapKind, key_size: u32, value_size: u32, max_entries: u32) -> Arc<Map> {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| bpf_vm::host::register(&Threads).unwrap());
    let definition = MapDefinition {
        name: "m".into(),
        kind,
        key_size,
        value_size,
        max_entries,
        flags: 0,
    };
    Map::create(definition, &HeapMemory::with_limit(1 << 20)).unwrap()
}

/// Runs `f` as each core, with a source of random numbers.
fn on_all_cores(f: impl Fn(u32, &mut dyn FnMut() -> u64) + Sync) {
    thread::scope(|scope| {
        for cpu in 0..THREADS {
            let f = &f;
            scope.spawn(move || {
                CPU.set(cpu);
                // xorshift64.
                let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(cpu + 1) << 17;
                f(cpu, &mut || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state >> 8
                });
            });
        }
    });
}

/// A value: the key, then a number over and over.
fn value_of(key: u64, number: u64) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    for (index, chunk) in value.chunks_mut(8).enumerate() {
        let word = if index == 0 { key } else { number };
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    value
}

/// A key that says in each word which one it is, so that a torn one shows.
fn key_of(key: u64) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&key.to_ne_bytes());
    }
    bytes
}

fn check(key: u64, value: &[u8; VALUE_BYTES]) {
    let mut words = value
        .chunks(8)
        .map(|chunk| u64::from_ne_bytes(chunk.try_into().unwrap()));
    assert_eq!(words.next(), Some(key), "another key's value");
    let first = words.next();
    assert!(words.all(|word| Some(word) == first), "torn: {value:x?}");
}

fn patiently(mut f: impl FnMut() -> Result<(), MapError>) -> Result<(), MapError> {
    loop {
        match f() {
            Err(MapError::Busy) => thread::yield_now(),
            result => return result,
        }
    }
}

/// Few buckets, many keys: updates, deletes, lookups and walks at once. Key 0 is only ever replaced.
fn hammer(kind: MapKind, max_entries: u32, keys: u64) {
    let map = map(kind, KEY_BYTES as u32, VALUE_BYTES as u32, max_entries);
    map.update(&key_of(0), &value_of(0, 0), UpdateFlags::Any)
        .unwrap();
    let found = AtomicU32::new(0);
    let evicts = kind == MapKind::LRU_HASH;
    on_all_cores(|_, random| {
        for step in 0..STEPS {
            let key = random() % keys;
            let mut value = [0; VALUE_BYTES];
            match random() % 8 {
                0..3 => {
                    let update =
                        || map.update(&key_of(key), &value_of(key, step), UpdateFlags::Any);
                    let full = if evicts {
                        MapError::NoMemory
                    } else {
                        MapError::TooBig
                    };
                    let result = patiently(update);
                    assert!(result.is_ok() || result == Err(full), "{result:?}");
                }
                3 if key != 0 => {
                    let result = patiently(|| map.delete(&key_of(key)));
                    assert!(matches!(result, Ok(()) | Err(MapError::NotFound)));
                }
                4 => {
                    let mut next = [0; KEY_BYTES];
                    if patiently(|| map.next_key(Some(&key_of(key)), &mut next)).is_ok() {
                        let first = u64::from_ne_bytes(next[..8].try_into().unwrap());
                        assert_eq!(next, key_of(first), "a torn key");
                        assert!(first < keys);
                    }
                }
                5 => {
                    let value = map.lookup_address(&key_of(0));
                    assert!(evicts || value.is_some(), "key 0 was missed");
                }
                _ => match map.lookup(&key_of(key), &mut value) {
                    Ok(()) => {
                        check(key, &value);
                        found.fetch_add(1, Relaxed);
                    }
                    Err(MapError::NotFound) if key == 0 && !evicts => panic!("key 0 was missed"),
                    Err(error) => assert!(matches!(error, MapError::NotFound | MapError::Busy)),
                },
            }
        }
    });
    assert!(found.load(Relaxed) > 1000, "lookups that found something");
    // Nothing leaked: each key in the map is walked once, and all other elements are free.
    let mut walked = 0;
    map.walk(|_, _| {
        walked += 1;
        true
    })
    .unwrap();
    assert_eq!(map.usage(), Some((walked, 2 * THREADS as usize)));
    for key in 0..keys {
        let _ = map.delete(&key_of(key));
    }
    assert_eq!(map.usage(), Some((0, 2 * THREADS as usize)));
    for key in 0..u64::from(max_entries) {
        map.update(&key_of(key), &value_of(key, 1), UpdateFlags::NoExist)
            .unwrap();
    }
}

#[test]
fn one_bucket() {
    hammer(MapKind::HASH, 1, 2);
}

/// One bucket with a long chain of long keys that come and go: readers, who do nothing else, never miss key 0, which is
/// replaced all the time.
#[test]
fn readers_never_miss_a_key_that_stays() {
    const KEYS: u64 = 6;
    let map = map(MapKind::HASH, KEY_BYTES as u32, 8, 4);
    let update = |key, flags| map.update(&key_of(key), &[1; 8], flags);
    update(0, UpdateFlags::Any).unwrap();
    on_all_cores(|cpu, random| {
        for _ in 0..STEPS {
            if cpu % 2 == 0 {
                assert!(map.lookup_address(&key_of(0)).is_some(), "key 0 was missed");
                continue;
            }
            let key = random() % KEYS;
            let result = match random() % 3 {
                0 if key != 0 => patiently(|| map.delete(&key_of(key))),
                _ => patiently(|| update(key, UpdateFlags::Any)),
            };
            assert!(!matches!(result, Err(MapError::Invalid)));
        }
    });
}

#[test]
fn a_few_buckets_full_most_of_the_time() {
    hammer(MapKind::HASH, 8, 16);
}

#[test]
fn evictions() {
    hammer(MapKind::LRU_HASH, 8, 24);
}

/// What is pushed is popped, once.
#[test]
fn queues_and_stacks() {
    for kind in [MapKind::QUEUE, MapKind::STACK] {
        let map = map(kind, 0, 16, 5);
        let (pushed, popped, sums) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let pop = || {
            let mut words = [0; 2];
            let result = patiently(|| {
                map.pop(|value| {
                    words
                        .iter_mut()
                        .zip(value)
                        .for_each(|(to, from)| *to = from.load(Relaxed));
                })
            });
            if result.is_ok() {
                assert_eq!(words[0], !words[1], "torn");
                popped.fetch_add(1, Relaxed);
                sums.fetch_sub(words[0], Relaxed);
            }
            result
        };
        on_all_cores(|_, random| {
            for _ in 0..STEPS {
                if random() % 2 == 0 {
                    let _ = pop();
                    continue;
                }
                let word = random();
                let mut value = [0; 16];
                value[..8].copy_from_slice(&word.to_ne_bytes());
                value[8..].copy_from_slice(&(!word).to_ne_bytes());
                if patiently(|| map.push(UpdateFlags::Any, |words| words.write_bytes(&value)))
                    .is_ok()
                {
                    pushed.fetch_add(1, Relaxed);
                    sums.fetch_add(word, Relaxed);
                }
            }
        });
        while pop().is_ok() {}
        assert_eq!(pushed.load(Relaxed), popped.load(Relaxed));
        assert_eq!(sums.load(Relaxed), 0);
    }
}

/// Records from all cores arrive whole, in each core's order, none twice.
#[test]
fn ring_buffer() {
    let map = map(MapKind::RINGBUF, 0, 0, 4096);
    let ring = map.ring_buffer().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = [0u64; THREADS as usize];
            let mut records = 0u64;
            loop {
                let finished = done.load(Relaxed);
                records += ring.drain(|record| {
                    let mut bytes = vec![0; record.len()];
                    record.copy_to(&mut bytes);
                    let word =
                        |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
                    let (cpu, number) = (word(0) as usize, word(8));
                    assert!(
                        number > last[cpu],
                        "core {cpu}: {number} after {}",
                        last[cpu]
                    );
                    last[cpu] = number;
                    for at in (16..bytes.len()).step_by(8) {
                        assert_eq!(word(at), number, "torn");
                    }
                }) as u64;
                if finished {
                    return records;
                }
                thread::yield_now();
            }
        });
        let (sent, discarded) = (AtomicU64::new(0), AtomicU64::new(0));
        on_all_cores(|cpu, random| {
            for number in 1..=STEPS / 4 {
                let words = 2 + random() % 20;
                let Some(record) = map.reserve(8 * words) else {
                    thread::yield_now();
                    continue;
                };
                for index in 0..words {
                    let at = std::ptr::with_exposed_provenance::<AtomicU64>(
                        (record + 8 * index) as usize,
                    );
                    let word = if index == 0 { cpu.into() } else { number };
                    // SAFETY: a word of the record, which is this thread's until it is committed.
                    unsafe { &*at }.store(word, Relaxed);
                }
                let discard = random() % 8 == 0;
                let count = if discard { &discarded } else { &sent };
                count.fetch_add(1, Relaxed);
                map.commit(record, discard, 0).unwrap();
            }
        });
        done.store(true, Relaxed);
        assert_eq!(reader.join().unwrap(), sent.load(Relaxed));
        assert!(discarded.load(Relaxed) > 0);
    });
    assert_eq!(ring.query(0), 0);
}

/// Traces that share few ids, replaced all the time.
#[test]
fn stack_traces() {
    let map = map(MapKind::STACK_TRACE, 4, 32, 4);
    on_all_cores(|_, random| {
        for _ in 0..STEPS {
            let address = 1 + random() % 100;
            let id = map.stack_id(&[address; 4], 1 << 10).unwrap();
            let mut value = [0; 32];
            if map.lookup(&id.to_ne_bytes(), &mut value).is_ok() {
                assert_eq!(value[..8], value[24..], "torn");
                assert_ne!(value[..8], [0; 8]);
            }
            if random() % 16 == 0 {
                let _ = map.delete(&id.to_ne_bytes());
            }
        }
    });
}
