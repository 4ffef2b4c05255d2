// SPDX-License-Identifier: MIT OR Apache-2.0
//! The executable pool's bookkeeping: which addresses are free. First fit, neighbours joined.

use alloc::collections::BTreeMap;
use core::fmt;
use core::ops::Range;

/// Bytes that every allocation is a multiple of: four instructions.
pub const UNIT: u64 = 16;

/// There is no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolFull {
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes in the largest free piece.
    pub largest: u64,
    /// Bytes in the pool.
    pub total: u64,
}

impl fmt::Display for PoolFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the executable pool of {} bytes is full: {} are needed in one piece, the largest free one has {}; detach \
             something, or make the pool larger",
            self.total, self.asked, self.largest
        )
    }
}

/// Free and used addresses.
pub struct Pool {
    total: u64,
    /// Start and length of each free piece; no two touch.
    free: BTreeMap<u64, u64>,
}

/// An owned range of the pool. Not giving it back to [`Pool::free`] loses it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a range that is dropped stays allocated"]
pub struct Span {
    start: u64,
    bytes: u64,
}

impl Span {
    /// First address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes, a multiple of [`UNIT`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.bytes
    }
}

impl Pool {
    /// All of `range` is free.
    pub fn new(range: Range<u64>) -> Pool {
        let start = range.start.next_multiple_of(UNIT);
        let total = range.end.saturating_sub(start) / UNIT * UNIT;
        let free = if total == 0 { BTreeMap::new() } else { BTreeMap::from([(start, total)]) };
        Pool { total, free }
    }

    /// Bytes that are free, in however many pieces.
    pub fn available(&self) -> u64 {
        self.free.values().sum()
    }

    /// A range of at least `bytes` bytes.
    ///
    /// # Errors
    /// No free piece is as large.
    pub fn allocate(&mut self, bytes: u64) -> Result<Span, PoolFull> {
        let largest = self.free.values().copied().max().unwrap_or(0);
        let full = PoolFull { asked: bytes, largest, total: self.total };
        let bytes = bytes.max(1).checked_next_multiple_of(UNIT).ok_or(full)?;
        let (&start, &length) = self.free.iter().find(|&(_, &length)| length >= bytes).ok_or(full)?;
        self.free.remove(&start);
        if length > bytes {
            self.free.insert(start + bytes, length - bytes);
        }
        Ok(Span { start, bytes })
    }

    /// Takes a range back.
    pub fn free(&mut self, span: Span) {
        let Span { mut start, mut bytes } = span;
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.free.remove(&before);
            (start, bytes) = (before, bytes + length);
        }
        if let Some(length) = self.free.remove(&(start + bytes)) {
            bytes += length;
        }
        self.free.insert(start, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_back_in_one_piece() {
        let mut pool = Pool::new(0x1000..0x2000);
        let mut spans: alloc::vec::Vec<_> = (1..20).map(|i| pool.allocate(i * 8)).collect::<Result<_, _>>().unwrap();
        spans.sort_by_key(|s| s.start().wrapping_mul(0x9e37_79b9) & 0xffff);
        for span in spans {
            assert_eq!(span.start() % UNIT, 0);
            pool.free(span);
        }
        assert_eq!(pool.available(), 0x1000);
        assert_eq!(pool.allocate(0x1000).map(|s| s.start()), Ok(0x1000));
    }

    #[test]
    fn a_full_pool_names_the_numbers() {
        let mut pool = Pool::new(0..64);
        let first = pool.allocate(48).unwrap();
        assert_eq!(pool.allocate(17), Err(PoolFull { asked: 17, largest: 16, total: 64 }));
        assert!(pool.allocate(u64::MAX).is_err());
        pool.free(first);
        assert!(pool.allocate(64).is_ok());
    }
}
