// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hash table behind every map with keys: preallocated elements in chains, read without a lock.
//!
//! An element's header holds its generation in the upper half and the next element of its chain in the lower. The
//! generation is even while the element is in a chain and odd while it is free or being filled, so it counts as a
//! sequence lock over the key. Writers hold the bucket's [`lock`](super::lock). What a reader relies on:
//!
//! - It steps from A to B by A's header, loads B's header, and finds A's header unchanged: so B, in that generation,
//!   followed A in this chain. It believes a key (equal or not) only if B's header is unchanged behind it. Otherwise
//!   it was overtaken and starts again, [`ROUNDS`] times at most; then the key counts as absent.
//! - A replacement takes the place of the old element in one store, a new key goes to the head, so a key that is in
//!   the map all the time is never missed.
//! - An NMI, or an interrupt between an update's parts on another bucket, walks chains that are whole: elements are
//!   linked when they are filled, and unlinked before their generation turns odd. It does not wait.
//! - The value behind an address that a program has looked up is used again as soon as its key was deleted or
//!   replaced, as in Linux's preallocated maps: a program may then see another key's value, but never anything that is
//!   no value of this map.
#![forbid(unsafe_code)]

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use super::{
    MapCreateError, MapDefinition, MapError, MapMemory, UpdateFlags,
    lock::{Held, lock, try_lock},
    memory::{WORD_BYTES, Words, read_bytes},
    pool::Pool,
};
use crate::host::host;

/// How often a reader starts again before it gives up: each time, a writer has finished something in its chain.
const ROUNDS: u32 = 256;
/// Elements that are free beyond `max_entries`, per core: one for an update, one for an NMI's in the middle of it.
const SPARE_PER_CPU: u32 = 2;
/// Elements that an eviction passes by because they were used since it last came by.
const SECOND_CHANCES: u32 = 128;
/// Words of a bucket: head, lock.
const BUCKET_WORDS: usize = 2;
/// Words of an element before its key: header; hash in the lower half and [`USED`].
const FIXED_WORDS: usize = 2;
/// In an element's second word: looked up since an eviction last came by.
const USED: u64 = 1 << 32;
/// The next element in a header, or the first in a head.
const NEXT: u64 = u32::MAX as u64;
/// One generation in a header.
const GENERATION: u64 = 1 << 32;

/// Keys to elements 1 to `elements`; what an element's value is, is for its owner to say.
pub(super) struct Table {
    words: Words,
    buckets: u32,
    elements: u32,
    max_entries: u32,
    key_size: usize,
    pool: Pool,
    /// Keys in the map, those that an update is about to put in included.
    keys: AtomicU32,
    /// Where evictions go on.
    hand: AtomicU32,
    evicts: bool,
}

/// One element's words.
struct Element<'a> {
    header: &'a AtomicU64,
    hash: &'a AtomicU64,
    key: &'a [AtomicU64],
}

/// An element that a reader found, in the generation in which it found it.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) element: u32,
    header: u64,
}

/// A writer has changed what a reader stands on.
struct Overtaken;

/// The element whose value an update is to write.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// The key's element from now on; nobody else sees it yet. Its value is whatever was there.
    New(u32),
    /// The key's element all along.
    Kept(u32),
}

/// What an update did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Updated {
    Inserted,
    Replaced,
}

/// Where a walk over all elements stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    bucket: u32,
    /// How many of the bucket's elements were seen.
    seen: u32,
    /// The last one, with its generation, and the one after it at that time.
    last: (u32, u32),
    upcoming: (u32, u32),
}

fn is_linked(header: u64) -> bool {
    header & GENERATION == 0
}

fn generation(header: u64) -> u32 {
    (header >> 32) as u32
}

/// The key's words, the last one padded with zeros.
fn key_words(key: &[u8]) -> impl Iterator<Item = u64> + '_ {
    key.chunks(WORD_BYTES).map(|bytes| {
        u64::from_ne_bytes(<[u8; WORD_BYTES]>::try_from(bytes).unwrap_or_else(|_| {
            let mut whole = [0; WORD_BYTES];
            for (to, from) in whole.iter_mut().zip(bytes) {
                *to = *from;
            }
            whole
        }))
    })
}

/// A multiplicative hash, a word a step; not keyed, so whoever chooses all keys can make chains long.
fn hash_of(key: &[u8]) -> u32 {
    /// 2^64 over the golden ratio, odd.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = key_words(key).fold(key.len() as u64, |hash, word| {
        let mixed = (hash ^ word).wrapping_mul(STEP);
        mixed ^ mixed >> 32
    });
    (mixed.wrapping_mul(STEP) >> 32) as u32
}

impl Table {
    /// Room for `max_entries` keys of `key_size` bytes, updated by `cpus` cores at most.
    pub(super) fn create(
        definition: &MapDefinition,
        key_size: usize,
        max_entries: u32,
        cpus: u32,
        evicts: bool,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let elements = Self::elements_for(max_entries, cpus);
        let too_large = || MapCreateError::Memory {
            map: definition.name.clone(),
            bytes: usize::MAX,
        };
        // Past 2^31 elements memory ends anyway; tags and links count in 32 bits.
        let buckets = max_entries
            .checked_next_power_of_two()
            .filter(|_| elements < u32::MAX)
            .ok_or_else(too_large)?;
        let element_words = FIXED_WORDS + key_size.div_ceil(WORD_BYTES);
        let count = element_words
            .saturating_mul(elements as usize)
            .saturating_add(BUCKET_WORDS * buckets as usize);
        let table = Self {
            words: Words::allocate(count, definition, memory)?,
            buckets,
            elements,
            max_entries,
            key_size,
            pool: Pool::full(elements, definition, memory)?,
            keys: AtomicU32::new(0),
            hand: AtomicU32::new(0),
            evicts,
        };
        for element in (1..=elements).filter_map(|index| table.element(index)) {
            element.header.store(GENERATION, Relaxed);
        }
        Ok(table)
    }

    /// How many elements that takes: values are needed for as many.
    pub(super) fn elements_for(max_entries: u32, cpus: u32) -> u32 {
        max_entries.saturating_add(cpus.saturating_mul(SPARE_PER_CPU))
    }

    fn bucket_word(&self, bucket: u32, word: usize) -> Option<&AtomicU64> {
        self.words
            .get()
            .get(bucket as usize * BUCKET_WORDS + word)
            .filter(|_| bucket < self.buckets)
    }

    fn head(&self, bucket: u32) -> Option<&AtomicU64> {
        self.bucket_word(bucket, 0)
    }

    fn bucket_of(&self, hash: u32) -> u32 {
        hash & (self.buckets - 1)
    }

    fn lock_bucket(&self, bucket: u32) -> Result<Held<'_>, MapError> {
        lock(self.bucket_word(bucket, 1).ok_or(MapError::Invalid)?)
    }

    fn element(&self, element: u32) -> Option<Element<'_>> {
        let words = FIXED_WORDS + self.key_size.div_ceil(WORD_BYTES);
        let start =
            BUCKET_WORDS * self.buckets as usize + (element as usize).checked_sub(1)? * words;
        match self.words.get().get(start..start + words)? {
            [header, hash, key @ ..] => Some(Element { header, hash, key }),
            _ => None,
        }
    }

    /// The key's words of an element, padded with zeros.
    pub(super) fn key(&self, element: u32) -> &[AtomicU64] {
        self.element(element).map_or(&[], |element| element.key)
    }

    /// Whether this element holds this key now.
    fn holds(element: &Element<'_>, hash: u32, key: &[u8]) -> bool {
        element.hash.load(Acquire) as u32 == hash
            && element
                .key
                .iter()
                .zip(key_words(key))
                .all(|(word, want)| word.load(Relaxed) == want)
    }

    /// The key's element, without a lock.
    pub(super) fn find(&self, key: &[u8]) -> Option<Found> {
        let hash = hash_of(key);
        (0..ROUNDS)
            .find_map(|_| self.try_find(hash, key).ok())
            .flatten()
    }

    fn try_find(&self, hash: u32, key: &[u8]) -> Result<Option<Found>, Overtaken> {
        let mut link = self.head(self.bucket_of(hash)).ok_or(Overtaken)?;
        let mut seen = link.load(Acquire);
        for _ in 0..=self.elements {
            let index = (seen & NEXT) as u32;
            if index == 0 {
                return Ok(None);
            }
            let element = self.element(index).ok_or(Overtaken)?;
            // The acquire keeps what follows, the loads of `link` among them, behind it.
            let header = element.header.load(Acquire);
            if link.load(Relaxed) != seen || !is_linked(header) {
                return Err(Overtaken);
            }
            let holds = Self::holds(&element, hash, key);
            // As in a sequence lock: the key's loads come before this one.
            fence(Acquire);
            let after = element.header.load(Relaxed);
            if generation(after) != generation(header) {
                return Err(Overtaken);
            }
            if holds {
                return Ok(Some(Found {
                    element: index,
                    header,
                }));
            }
            (link, seen) = (element.header, after);
        }
        Err(Overtaken)
    }

    /// Whether the element is still the one that was found: what was read from its value since is the key's.
    pub(super) fn is_current(&self, found: Found) -> bool {
        fence(Acquire);
        self.element(found.element).is_some_and(|element| {
            generation(element.header.load(Relaxed)) == generation(found.header)
        })
    }

    /// Notes that the element was used, which evictions look at.
    pub(super) fn mark_used(&self, element: u32) {
        if let Some(element) = self.element(element)
            && element.hash.load(Relaxed) & USED == 0
        {
            element.hash.fetch_or(USED, Relaxed);
        }
    }

    /// Under the bucket's lock: the first element that `is` one, with the word that links to it.
    fn find_locked(
        &self,
        bucket: u32,
        is: impl Fn(u32, &Element<'_>) -> bool,
    ) -> Option<(&AtomicU64, u32)> {
        let mut link = self.head(bucket)?;
        for _ in 0..=self.elements {
            let index = (link.load(Relaxed) & NEXT) as u32;
            let element = self.element(index)?;
            if is(index, &element) {
                return Some((link, index));
            }
            link = element.header;
        }
        None
    }

    /// Makes `link` name another element; its generation, if it is a header, stays.
    fn relink(link: &AtomicU64, to: u64) {
        let other = link.load(Relaxed) & !NEXT;
        link.store(other | to & NEXT, Release);
    }

    /// Under the bucket's lock: takes an element out of its chain, which goes on at `to`.
    fn unlink(&self, link: &AtomicU64, element: u32, to: u64) {
        Self::relink(link, to);
        if let Some(element) = self.element(element) {
            let header = element.header.load(Relaxed) & !NEXT;
            element
                .header
                .store(header.wrapping_add(GENERATION), Release);
        }
    }

    fn next_of(&self, element: u32) -> u64 {
        self.element(element)
            .map_or(0, |element| element.header.load(Relaxed) & NEXT)
    }

    /// Under the bucket's lock: writes an element's key and puts it where `link` points, before `next`.
    fn link(&self, link: &AtomicU64, new: u32, hash: u32, key: &[u8], next: u64) {
        let Some(element) = self.element(new) else {
            return;
        };
        let header = element.header.load(Relaxed) & !NEXT;
        // Whoever sees the new key sees the odd generation: sequence lock, writer's side.
        fence(Release);
        element.hash.store(hash.into(), Relaxed);
        for (word, value) in element.key.iter().zip(key_words(key)) {
            word.store(value, Relaxed);
        }
        let header = header.wrapping_add(GENERATION) | next & NEXT;
        element.header.store(header, Release);
        Self::relink(link, new.into());
    }

    /// Counts one key more, if there may be one.
    fn admit(&self) -> bool {
        self.keys
            .fetch_update(Relaxed, Relaxed, |keys| {
                (keys < self.max_entries).then_some(keys + 1)
            })
            .is_ok()
    }

    /// Gives up an element that counts as a key.
    fn dismiss(&self, element: u32) {
        self.pool.give(element);
        self.keys.fetch_sub(1, Relaxed);
    }

    /// Sets the value of `key`: `fill` writes it. An element that is there is replaced by a new one, or kept if
    /// `keep`; one that was replaced is handed to `retire` while it is nobody's.
    ///
    /// `Exists`, `NotFound` as `flags` say; `TooBig` if the map is full (`NoMemory`, if it evicts and finds nothing);
    /// `Busy`.
    pub(super) fn update(
        &self,
        key: &[u8],
        flags: UpdateFlags,
        keep: bool,
        fill: impl FnOnce(Target),
        retire: impl FnOnce(u32),
    ) -> Result<Updated, MapError> {
        let hash = hash_of(key);
        let bucket = self.bucket_of(hash);
        // An element that was evicted for this key and counts as one.
        let mut evicted = None;
        let give_up = |evicted: Option<u32>| {
            if let Some(element) = evicted {
                self.dismiss(element);
            }
        };
        loop {
            let held = match self.lock_bucket(bucket) {
                Ok(held) => held,
                Err(error) => {
                    give_up(evicted);
                    return Err(error);
                }
            };
            let found = self.find_locked(bucket, |_, element| Self::holds(element, hash, key));
            match (found, flags) {
                (Some(_), UpdateFlags::NoExist) => {
                    give_up(evicted);
                    return Err(MapError::Exists);
                }
                (None, UpdateFlags::Exist) => {
                    give_up(evicted);
                    return Err(MapError::NotFound);
                }
                (Some((_, old)), _) if keep => {
                    give_up(evicted);
                    fill(Target::Kept(old));
                    return Ok(Updated::Replaced);
                }
                (Some((link, old)), _) => {
                    give_up(evicted);
                    let new = self.pool.take().ok_or(MapError::Busy)?;
                    fill(Target::New(new));
                    self.link(link, new, hash, key, self.next_of(old));
                    // `link` leads around the old one already.
                    self.unlink(link, old, new.into());
                    retire(old);
                    self.pool.give(old);
                    return Ok(Updated::Replaced);
                }
                (None, _) => {
                    let new = match evicted {
                        Some(element) => element,
                        None if self.admit() => match self.pool.take() {
                            Some(element) => element,
                            // More cores than there were said to be are at it.
                            None => {
                                self.keys.fetch_sub(1, Relaxed);
                                return Err(MapError::Busy);
                            }
                        },
                        None if self.evicts => {
                            // Not under a lock: what is evicted may lie in any bucket.
                            drop(held);
                            evicted = Some(self.evict().ok_or(MapError::NoMemory)?);
                            continue;
                        }
                        None => return Err(MapError::TooBig),
                    };
                    fill(Target::New(new));
                    let head = self.head(bucket).ok_or(MapError::Invalid)?;
                    self.link(head, new, hash, key, head.load(Relaxed));
                    return Ok(Updated::Inserted);
                }
            }
        }
    }

    /// Takes the element of a key that was not used lately out of the map, by a hand that goes round: an element that
    /// was used since the hand last came by is passed over, up to [`SECOND_CHANCES`] of them. Waits for no lock.
    ///
    /// Linux keeps an active and an inactive list, per core in part, which come to the same: what is used stays.
    fn evict(&self) -> Option<u32> {
        let mut chances = SECOND_CHANCES;
        for _ in 0..self
            .elements
            .saturating_mul(2)
            .saturating_add(SECOND_CHANCES)
        {
            let index = self.hand.fetch_add(1, Relaxed) % self.elements + 1;
            let Some(element) = self.element(index) else {
                continue;
            };
            if !is_linked(element.header.load(Relaxed)) {
                continue;
            }
            let hash = element.hash.load(Relaxed);
            if hash & USED != 0 && chances > 0 {
                chances -= 1;
                element.hash.fetch_and(!USED, Relaxed);
                continue;
            }
            let bucket = self.bucket_of(hash as u32);
            let Some(_held) = self.bucket_word(bucket, 1).and_then(try_lock) else {
                continue;
            };
            // It may have gone elsewhere before the lock was taken.
            if let Some((link, _)) = self.find_locked(bucket, |at, _| at == index) {
                self.unlink(link, index, self.next_of(index));
                return Some(index);
            }
        }
        None
    }

    /// Removes a key; its element is handed to `retire` while it is nobody's. `NotFound`, `Busy`.
    pub(super) fn delete(&self, key: &[u8], retire: impl FnOnce(u32)) -> Result<(), MapError> {
        let hash = hash_of(key);
        let bucket = self.bucket_of(hash);
        let _held = self.lock_bucket(bucket)?;
        let (link, element) = self
            .find_locked(bucket, |_, element| Self::holds(element, hash, key))
            .ok_or(MapError::NotFound)?;
        self.unlink(link, element, self.next_of(element));
        retire(element);
        self.dismiss(element);
        Ok(())
    }

    /// Writes the key after `key` into `next`; the first one after no key or one that is not there. `NotFound` after
    /// the last; `Busy` if writers were faster every time.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> Result<(), MapError> {
        for _ in 0..ROUNDS {
            let (bucket, first) = match key.and_then(|key| Some((hash_of(key), self.find(key)?))) {
                Some((hash, found)) => {
                    let next = self.next_of(found.element) as u32;
                    if !self.is_current(found) {
                        continue;
                    }
                    (self.bucket_of(hash), next)
                }
                None => (0, self.first(0)),
            };
            let found = core::iter::once((bucket, first))
                .chain((bucket + 1..self.buckets).map(|bucket| (bucket, self.first(bucket))))
                .find(|(_, first)| *first != 0);
            let Some((bucket, element)) = found else {
                return Err(MapError::NotFound);
            };
            if self.read_key(bucket, element, next) {
                return Ok(());
            }
            host().relax();
        }
        Err(MapError::Busy)
    }

    /// Copies an element's key if it is in that bucket, whole.
    fn read_key(&self, bucket: u32, element: u32, key: &mut [u8]) -> bool {
        let Some(element) = self.element(element) else {
            return false;
        };
        let header = element.header.load(Acquire);
        let hash = element.hash.load(Acquire) as u32;
        read_bytes(element.key, key);
        fence(Acquire);
        is_linked(header)
            && self.bucket_of(hash) == bucket
            && generation(element.header.load(Relaxed)) == generation(header)
    }

    fn first(&self, bucket: u32) -> u32 {
        self.head(bucket)
            .map_or(0, |head| (head.load(Acquire) & NEXT) as u32)
    }

    /// An element with its generation; `None` if it is in no chain.
    fn linked(&self, element: u32) -> Option<(u32, u32, u32)> {
        let header = self.element(element)?.header.load(Acquire);
        is_linked(header).then_some((element, generation(header), (header & NEXT) as u32))
    }

    fn is_same(&self, (element, was): (u32, u32)) -> bool {
        self.linked(element).is_some_and(|(_, now, _)| now == was)
    }

    /// The next element of a walk over all, without a lock. Whoever walks may change the map meanwhile: a key that is
    /// there all the time and is not replaced is seen once, others at most as often as they were put in.
    pub(super) fn step(&self, at: &mut Position) -> Option<u32> {
        while at.bucket < self.buckets {
            let next = match at {
                Position { seen: 0, .. } => self.first(at.bucket),
                _ if self.is_same(at.last) => self.next_of(at.last.0) as u32,
                // It was replaced or deleted: on with the one after it, if it was not the chain's last.
                Position {
                    upcoming: (0, _), ..
                } => 0,
                _ if self.is_same(at.upcoming) => at.upcoming.0,
                _ => self.nth(at.bucket, at.seen - 1),
            };
            match self.linked(next) {
                Some((element, generation, next)) if at.seen <= self.elements => {
                    let upcoming = self.linked(next).map_or((0, 0), |(e, g, _)| (e, g));
                    *at = Position {
                        bucket: at.bucket,
                        seen: at.seen + 1,
                        last: (element, generation),
                        upcoming,
                    };
                    return Some(element);
                }
                _ => {
                    *at = Position {
                        bucket: at.bucket + 1,
                        ..Position::default()
                    }
                }
            }
        }
        None
    }

    /// The element behind `passed` others of a bucket, 0 if there are not so many.
    fn nth(&self, bucket: u32, passed: u32) -> u32 {
        (0..passed).fold(self.first(bucket), |element, _| {
            self.next_of(element) as u32
        })
    }

    /// Every element that is in a chain, in no order; for owners that look at all of them.
    pub(super) fn for_each(&self, mut f: impl FnMut(u32)) {
        let mut at = Position::default();
        while let Some(element) = self.step(&mut at) {
            f(element);
        }
    }

    /// The element's key, whole, if it is in a chain.
    pub(super) fn key_of(&self, element: u32, key: &mut [u8]) -> bool {
        let Some(words) = self.element(element) else {
            return false;
        };
        self.read_key(
            self.bucket_of(words.hash.load(Acquire) as u32),
            element,
            key,
        )
    }

    /// Keys in the map, and elements that are free beyond those that keys may still take, when nothing is going on.
    pub(super) fn usage(&self) -> (u32, usize) {
        let keys = self.keys.load(Relaxed);
        let left = self.max_entries.saturating_sub(keys) as usize;
        (keys, self.pool.free().saturating_sub(left))
    }
}
