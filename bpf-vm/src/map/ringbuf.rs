// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ring buffer: records of any size from programs on all cores, in one order, to one reader.
//!
//! Positions count bytes and never go back. A record is an 8-byte header (`struct bpf_ringbuf_hdr`: length with the
//! BUSY and DISCARD bits, page offset) and its bytes, rounded up to 8. Linux maps the data twice in a row, so that a
//! record may run past the end; here the data's memory is twice its size, and a record that starts near the end runs on into
//! the second half, which holds no starts.
//!
//! Reserving takes a lock for a few stores; an NMI in the middle of them gets no record, as in Linux. Committing is
//! one store. The reader stops at a record that is still being written.
#![forbid(unsafe_code)]

use core::{
    ops::Range,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
        fence,
    },
};

use super::{
    MapCreateError, MapDefinition, MapError, MapMemory,
    lock::lock,
    memory::{WORD_BYTES, Words, address, read_bytes},
};

/// `BPF_RINGBUF_HDR_SZ`.
pub(crate) const HEADER_BYTES: u64 = 8;
/// `BPF_RINGBUF_BUSY_BIT`: the record is being written.
const BUSY: u64 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`: the record is not for the reader.
const DISCARD: u64 = 1 << 30;
/// The bits of a header that are the length.
const LENGTH: u64 = DISCARD - 1;
/// Bytes of a page, of which a ring buffer's size is a multiple.
pub(crate) const PAGE: u64 = 4096;

/// `BPF_RB_NO_WAKEUP`: do not wake the reader.
pub const NO_WAKEUP: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`: wake the reader in any case.
pub const FORCE_WAKEUP: u64 = 2;

/// A ring buffer.
pub struct RingBuffer {
    /// A page whose first word is the map's handle, then the data twice; from the first page's start on.
    words: Words,
    /// The first word of the first page in `words`.
    page: usize,
    /// Bytes of data, a power of two.
    bytes: u64,
    lock: AtomicU64,
    producer: AtomicU64,
    consumer: AtomicU64,
    reading: AtomicBool,
}

/// A record, while its reader looks at it.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    words: &'a [AtomicU64],
    bytes: usize,
}

impl Record<'_> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Copies its first bytes, as many as both have.
    pub fn copy_to(&self, out: &mut [u8]) {
        let bytes = self.bytes.min(out.len());
        if let Some(out) = out.get_mut(..bytes) {
            read_bytes(self.words, out);
        }
    }
}

impl RingBuffer {
    /// Takes memory for a page and twice the size.
    pub(super) fn create(
        definition: &MapDefinition,
        memory: &dyn MapMemory,
    ) -> Result<Self, MapCreateError> {
        let bytes = u64::from(definition.max_entries);
        // One page more, so that one of them starts at a multiple of its size.
        let count = (2 * bytes + 2 * PAGE) / WORD_BYTES as u64;
        let words = Words::allocate(
            usize::try_from(count).unwrap_or(usize::MAX),
            definition,
            memory,
        )?;
        let page = address(words.get()).next_multiple_of(PAGE) - address(words.get());
        Ok(Self {
            page: page as usize / WORD_BYTES,
            words,
            bytes,
            lock: AtomicU64::new(0),
            producer: AtomicU64::new(0),
            consumer: AtomicU64::new(0),
            reading: AtomicBool::new(false),
        })
    }

    /// Bytes of data: `max_entries`.
    pub fn size(&self) -> u64 {
        self.bytes
    }

    /// The addresses that records can have.
    pub(super) fn data(&self) -> Range<u64> {
        let start = address(self.words.get()) + (self.page * WORD_BYTES) as u64 + PAGE;
        start..start + 2 * self.bytes
    }

    fn data_words(&self, offset: u64, bytes: u64) -> Option<&[AtomicU64]> {
        let start = self.page + ((PAGE + offset) / WORD_BYTES as u64) as usize;
        let end = start + bytes.div_ceil(WORD_BYTES as u64) as usize;
        self.words.get().get(start..end)
    }

    fn header_at(&self, offset: u64) -> Option<&AtomicU64> {
        self.data_words(offset, HEADER_BYTES)?.first()
    }

    /// The page offset that a header at `offset` has: from the page with the handle, in pages.
    fn page_offset(offset: u64) -> u64 {
        ((PAGE + offset) / PAGE) << 32
    }

    /// Reserves a record of `size` bytes for the map with this handle; its address, or `None` if there is no room.
    pub(super) fn reserve(&self, size: u64, handle: u64) -> Option<u64> {
        if size > LENGTH {
            return None;
        }
        let len = (size + HEADER_BYTES).next_multiple_of(HEADER_BYTES);
        if len > self.bytes {
            return None;
        }
        let _held = lock(&self.lock).ok()?;
        let start = self.producer.load(Relaxed);
        let end = start + len;
        // As in Linux, one byte at least stays free. The acquire is for the reader's loads of what is overwritten.
        if end - self.consumer.load(Acquire) > self.bytes - 1 {
            return None;
        }
        self.words.get().get(self.page)?.store(handle, Relaxed);
        let offset = start & (self.bytes - 1);
        let header = self.header_at(offset)?;
        header.store(Self::page_offset(offset) | BUSY | size, Relaxed);
        self.producer.store(end, Release);
        Some(self.data().start + offset + HEADER_BYTES)
    }

    /// Where the header of a record lies in the data.
    fn header_of(&self, record: u64) -> Option<u64> {
        let data = self.data();
        let header = record.checked_sub(HEADER_BYTES)?;
        let offset = header.checked_sub(data.start)?;
        (offset < self.bytes && offset.is_multiple_of(HEADER_BYTES)).then_some(offset)
    }

    /// Whether a record was reserved at this address and is not committed, and its length in bytes.
    pub fn reserved(&self, record: u64) -> Option<u64> {
        let offset = self.header_of(record)?;
        let header = self.header_at(offset)?.load(Relaxed);
        let is_one = header & BUSY != 0 && header >> 32 << 32 == Self::page_offset(offset);
        is_one.then_some(header & LENGTH)
    }

    /// Ends a record: the reader gets it, unless it is discarded. Whether the reader is to be woken. `Invalid` if no
    /// record was reserved there.
    pub(super) fn commit(&self, record: u64, discard: bool, flags: u64) -> Result<bool, MapError> {
        let size = self.reserved(record).ok_or(MapError::Invalid)?;
        let offset = self.header_of(record).ok_or(MapError::Invalid)?;
        let header = self.header_at(offset).ok_or(MapError::Invalid)?;
        let discard = if discard { DISCARD } else { 0 };
        header.store(Self::page_offset(offset) | discard | size, Release);
        // Either the reader sees this record, or its position is seen here: it has the same fence.
        fence(SeqCst);
        // Whoever waits for the oldest record waits for this one if the reader has come up to it.
        let next = self.consumer.load(Acquire) & (self.bytes - 1);
        Ok(flags & FORCE_WAKEUP != 0 || (next == offset && flags & NO_WAKEUP == 0))
    }

    /// Hands each record that is complete to `reader`, in order, and frees its room; how many there were. There is
    /// one reader at a time: 0 if someone else is at it.
    pub fn drain(&self, mut reader: impl FnMut(Record<'_>)) -> usize {
        if self
            .reading
            .compare_exchange(false, true, AcqRel, Relaxed)
            .is_err()
        {
            return 0;
        }
        let mut records = 0;
        let mut position = self.consumer.load(Relaxed);
        while position < self.producer.load(Acquire) {
            let offset = position & (self.bytes - 1);
            let Some(header) = self.header_at(offset).map(|header| header.load(Acquire)) else {
                break;
            };
            let size = header & LENGTH;
            let len = (size + HEADER_BYTES).next_multiple_of(HEADER_BYTES);
            let words = self.data_words(offset + HEADER_BYTES, size);
            // A program that is not verified may have written anything there; no more than the ring is read.
            let (Some(words), false, true) = (words, header & BUSY != 0, len <= self.bytes) else {
                break;
            };
            if header & DISCARD == 0 {
                let bytes = size as usize;
                reader(Record { words, bytes });
                records += 1;
            }
            position += len;
            self.consumer.store(position, Release);
            fence(SeqCst);
        }
        self.reading.store(false, Release);
        records
    }

    /// What `bpf_ringbuf_query` answers: 0 the bytes not read yet, 1 the size, 2 the reader's position, 3 the writers'.
    pub fn query(&self, what: u64) -> u64 {
        let consumer = self.consumer.load(Acquire);
        let producer = self.producer.load(Acquire);
        match what {
            0 => producer.saturating_sub(consumer),
            1 => self.bytes,
            2 => consumer,
            3 => producer,
            _ => 0,
        }
    }
}
