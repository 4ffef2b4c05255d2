// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random operations on maps, against models made of the standard library's collections. The seed is fixed.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bpf_vm::map::{HeapMemory, Map, MapDefinition, MapError, MapKind, UpdateFlags};

const STEPS: u32 = 100_000;

fn map(kind: MapKind, key_size: u32, max_entries: u32, flags: u32) -> Arc<Map> {
    let definition = MapDefinition {
        name: "m".into(),
        kind,
        key_size,
        value_size: 8,
        max_entries,
        flags,
    };
    Map::create(definition, &HeapMemory::with_limit(1 << 20)).unwrap()
}

struct Random(u64);

impl Random {
    /// Below `limit`, by xorshift64.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

const FLAGS: [UpdateFlags; 3] = [UpdateFlags::Any, UpdateFlags::NoExist, UpdateFlags::Exist];

fn lookup(map: &Map, key: &[u8]) -> Result<u64, MapError> {
    let mut value = [0; 8];
    map.lookup(key, &mut value)
        .map(|()| u64::from_ne_bytes(value))
}

fn keys(map: &Map) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut next = vec![0; map.key_size()];
    while map
        .next_key(keys.last().map(|key| &key[..]), &mut next)
        .is_ok()
    {
        keys.push(next.clone());
    }
    keys
}

/// Keys of each length up to some words, at most `limit` of them.
fn against_tree(
    kind: MapKind,
    limit: u32,
    key: impl Fn(&mut Random) -> Vec<u8>,
    full: MapError,
    flags: u32,
) {
    let mut random = Random(0x1234_5678_9abc_def1);
    let key_size = key(&mut random).len() as u32;
    let map = map(kind, key_size, limit, flags);
    let mut model: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for step in 0..STEPS {
        let key = key(&mut random);
        match random.below(8) {
            0..4 => {
                let flags = FLAGS[random.below(3) as usize];
                let value = random.below(u64::MAX);
                let want = match (model.contains_key(&key), flags) {
                    (true, UpdateFlags::NoExist) => Err(MapError::Exists),
                    (false, UpdateFlags::Exist) => Err(MapError::NotFound),
                    (false, _) if model.len() == limit as usize => Err(full),
                    _ => {
                        model.insert(key.clone(), value);
                        Ok(())
                    }
                };
                let got = map.update(&key, &value.to_ne_bytes(), flags);
                assert_eq!(got, want, "step {step}: update {key:?} {flags:?}");
            }
            4 => {
                let want = model.remove(&key).map(drop).ok_or(MapError::NotFound);
                assert_eq!(map.delete(&key), want, "step {step}: delete {key:?}");
            }
            _ if kind == MapKind::LPM_TRIE => {
                let want = (0..=key[0])
                    .rev()
                    .find_map(|bits| model.get(&cut(&key, bits)));
                let want = want.copied().ok_or(MapError::NotFound);
                assert_eq!(lookup(&map, &key), want, "step {step}: lookup {key:?}");
            }
            _ => {
                let want = model.get(&key).copied().ok_or(MapError::NotFound);
                assert_eq!(lookup(&map, &key), want, "step {step}: lookup {key:?}");
            }
        }
        if step % 1000 == 0 {
            let mut keys = keys(&map);
            if kind == MapKind::LPM_TRIE {
                for (index, early) in keys.iter().enumerate() {
                    let later = &keys[index + 1..];
                    let specific = later
                        .iter()
                        .find(|late| late[0] > early[0] && cut(late, early[0]) == *early);
                    assert_eq!(specific, None, "a prefix of {early:?} comes behind it");
                }
            }
            keys.sort();
            assert!(keys.iter().eq(model.keys()), "step {step}: keys");
        }
    }
}

/// The first bits of an LPM key of one byte's length and data.
fn cut(key: &[u8], bits: u8) -> Vec<u8> {
    let mut cut = key.to_vec();
    cut[0] = bits;
    for (index, byte) in cut[4..].iter_mut().enumerate() {
        let kept = u32::from(bits).saturating_sub(8 * index as u32).min(8);
        *byte &= !(0xff_u32 >> kept) as u8;
    }
    cut
}

#[test]
fn hashes_of_any_key_size() {
    for size in [1, 3, 4, 8, 9, 16, 30] {
        let key = |random: &mut Random| {
            let mut key = vec![0xaa; size];
            key[size - 1] = random.below(24) as u8;
            key
        };
        against_tree(MapKind::HASH, 16, key, MapError::TooBig, 0);
    }
}

#[test]
fn prefixes() {
    let key = |random: &mut Random| {
        let bits = random.below(17) as u8;
        let data = [random.below(4) as u8 * 64, random.below(4) as u8 * 64];
        cut(&[0, 0, 0, 0, data[0], data[1]], bits)
    };
    against_tree(
        MapKind::LPM_TRIE,
        20,
        key,
        MapError::NoSpace,
        MapDefinition::NO_PREALLOC,
    );
}

/// An LRU hash: at most as many keys as it may have, each with its last value; the newest is there.
#[test]
fn lru() {
    let map = map(MapKind::LRU_HASH, 4, 16, 0);
    let mut random = Random(99);
    let mut last = BTreeMap::new();
    for step in 0..STEPS {
        let key = (random.below(64) as u32).to_ne_bytes();
        if random.below(4) == 0 {
            let there = lookup(&map, &key).is_ok();
            let deleted = map.delete(&key);
            assert_eq!(deleted.is_ok(), there);
        } else {
            let value = random.below(u64::MAX);
            last.insert(key, value);
            map.update(&key, &value.to_ne_bytes(), UpdateFlags::Any)
                .unwrap();
            assert_eq!(lookup(&map, &key), Ok(value), "step {step}");
        }
        for (key, value) in &last {
            let found = lookup(&map, key);
            assert!(found == Ok(*value) || found == Err(MapError::NotFound));
        }
        let (keys, spare) = map.usage().unwrap();
        assert!(
            keys <= 16 && spare == 2,
            "{keys} keys, {spare} spare elements"
        );
    }
}

#[test]
fn queues_and_stacks() {
    for kind in [MapKind::QUEUE, MapKind::STACK] {
        let map = map(kind, 0, 7, 0);
        let mut random = Random(7);
        let mut model = VecDeque::new();
        for step in 0..STEPS {
            let value = random.below(u64::MAX);
            match random.below(4) {
                0 | 1 => {
                    let flags = FLAGS[random.below(3) as usize];
                    let want = match flags {
                        UpdateFlags::NoExist => Err(MapError::Invalid),
                        UpdateFlags::Any if model.len() == 7 => Err(MapError::TooBig),
                        _ => {
                            if model.len() == 7 {
                                model.pop_front();
                            }
                            model.push_back(value);
                            Ok(())
                        }
                    };
                    assert_eq!(
                        map.update(&[], &value.to_ne_bytes(), flags),
                        want,
                        "step {step}"
                    );
                }
                2 => {
                    let want = match kind {
                        MapKind::QUEUE => model.front(),
                        _ => model.back(),
                    };
                    assert_eq!(lookup(&map, &[]), want.copied().ok_or(MapError::NotFound));
                }
                _ => {
                    let want = match kind {
                        MapKind::QUEUE => model.pop_front(),
                        _ => model.pop_back(),
                    };
                    let mut got = None;
                    let popped = map.pop(|words| {
                        got = Some(words[0].load(Relaxed));
                    });
                    assert_eq!((got, popped.is_ok()), (want, want.is_some()), "step {step}");
                }
            }
        }
    }
}
