// SPDX-License-Identifier: MIT OR Apache-2.0
//! Executable memory: a window of addresses, handed out in units of 16 bytes, first fit.
//!
//! Bookkeeping is two bitmaps of atomics, so that memory may be freed from a callback and looked up
//! from any context, with no lock. In front of each block's code lies a header of four words:
//!
//! ```text
//! +0  owner, low half     +4  owner, high half
//! +8  bits 0-23: words of code   bits 24-30: 0 a trampoline, 1 a program, 2 a probe, 3 of many functions, 4 a trampoline of the Linux way, 5 shared code of that   bit 31: a word lies behind the code
//! +12 bit 1: it makes a frame record
//!     bits 2-7: instructions before the record is there
//!     bits 8-15: instructions at which it is gone, bits 16-31: the first of them
//! +16 code, then perhaps a word: instructions at which the record is gone a second time
//!     bits 0-15: how many of them, bits 16-31: the first
//! ```
//!
//! so that an unwinder can ask what a PC belongs to for as long as anyone may execute there, also
//! after a detach. Freed memory is filled with [`FILL`].

use crate::ingredient::CallerIn;
use crate::platform::{Platform, PlatformError};
use crate::shared;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the allocation unit; code starts at a multiple of it.
pub const UNIT: u64 = 16;

/// The immediate of the BRK that freed memory is filled with.
pub const FILL_IMMEDIATE: u16 = 0xdead;

/// The word that freed memory is filled with: `brk #0xdead`.
pub const FILL: u32 = a64::ops::brk(FILL_IMMEDIATE).encode();

const HEADER_WORDS: usize = 4;
const UNIT_WORDS: usize = UNIT as usize / 4;

/// Why memory for code was not handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// No free piece is large enough.
    Full {
        /// Whom it was for.
        name: String,
        /// Bytes asked for, header included.
        asked: u64,
        /// Bytes of the largest free piece.
        largest: u64,
        /// Bytes that are free in all.
        free: u64,
    },
    /// The window is not made of whole units, or empty.
    Window {
        /// Its first address.
        start: u64,
        /// The address after its last.
        end: u64,
    },
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full {
                name,
                asked,
                largest,
                free,
            } => write!(
                f,
                "the executable pool is full: {name} asked for {asked} bytes, the largest free piece is {largest} bytes ({free} free in all); detach something, or wait for the grace period of what was detached"
            ),
            Self::Window { start, end } => write!(
                f,
                "the executable pool {start:#x}..{end:#x} is empty or not made of whole units of {UNIT} bytes; align both ends"
            ),
        }
    }
}

impl core::error::Error for PoolError {}

/// Whose code a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The image of the function at this address.
    Trampoline {
        /// Address of the hooked function.
        function: u64,
    },
    /// A probe in the middle of a function.
    Probe {
        /// Address of the probed instruction.
        at: u64,
    },
    /// A program's code, by the number that the host gave it.
    Program {
        /// That number.
        id: u64,
    },
    /// The function at this address's trampoline of the Linux way: it makes frame records for the function and its caller.
    Linux {
        /// Address of the hooked function.
        function: u64,
    },
    /// Code of the Linux way that all functions share, by the number that the host gave it.
    Shared {
        /// That number.
        id: u64,
    },
    /// A body that many functions share, and behind it a stub of each ([`crate::shared`]).
    Functions {
        /// Index of the first stub's first word.
        stubs: u32,
    },
}

/// Which instructions of a block run with a frame record of the block's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Instructions at the start that run before x29 points to it; at most 63.
    pub before: usize,
    /// Instructions at which x29 and x30 are the caller's again; at most 255, the first below 65536.
    pub gone: Range<usize>,
    /// The same again, of code that a function returns into; both ends below 65536, empty for others.
    pub again: Range<usize>,
}

/// In a header's third word: a word lies behind the code.
const AGAIN: u32 = 1 << 31;
/// In a header's third word: where the owner's kind lies; words of code are below.
const KIND: u32 = 24;

impl Record {
    /// Its bits in a header; `None` if it has none.
    fn encode(&self) -> Option<u32> {
        let before = u32::try_from(self.before).ok().filter(|b| *b < 1 << 6)?;
        let first = u16::try_from(self.gone.start).ok()?;
        let count = u8::try_from(self.gone.len()).ok()?;
        Some(2 | before << 2 | u32::from(count) << 8 | u32::from(first) << 16)
    }

    fn decode(word: u32) -> Option<Self> {
        let [low, count, ..] = word.to_le_bytes();
        let first = (word >> 16) as usize;
        (low & 2 != 0).then(|| Self {
            before: (low >> 2).into(),
            gone: first..first + usize::from(count),
            again: 0..0,
        })
    }

    /// The word behind the code.
    fn encode_again(&self) -> Option<u32> {
        let first = u16::try_from(self.again.start).ok()?;
        let count = u16::try_from(self.again.len()).ok()?;
        Some(u32::from(count) | u32::from(first) << 16)
    }

    /// Whether it is there at the instruction of that index.
    fn covers(&self, index: usize) -> bool {
        index >= self.before && !self.gone.contains(&index) && !self.again.contains(&index)
    }
}

/// What the pool knows about a block of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Whose it is.
    pub owner: Owner,
    /// Where it has a frame record; `None`: nowhere, x30 is the caller throughout.
    pub record: Option<Record>,
}

impl Label {
    fn encode(&self, words: u32) -> [u32; HEADER_WORDS] {
        let (id, kind) = match self.owner {
            Owner::Trampoline { function } => (function, 0),
            Owner::Program { id } => (id, 1),
            Owner::Probe { at } => (at, 2),
            Owner::Functions { stubs } => (stubs.into(), 3),
            Owner::Linux { function } => (function, 4),
            Owner::Shared { id } => (id, 5),
        };
        let record = self.record.as_ref().and_then(Record::encode).unwrap_or(0);
        let again = if self.again().is_some() { AGAIN } else { 0 };
        [
            id as u32,
            (id >> 32) as u32,
            words | kind << KIND | again,
            record,
        ]
    }

    /// The word behind the code, if there has to be one.
    fn again(&self) -> Option<u32> {
        let record = self.record.as_ref().filter(|r| !r.again.is_empty())?;
        record.encode_again()
    }

    fn decode([low, high, words, flags]: [u32; HEADER_WORDS]) -> (Self, u32) {
        let id = (high as u64) << 32 | low as u64;
        let owner = match (words & !AGAIN) >> KIND {
            0 => Owner::Trampoline { function: id },
            1 => Owner::Program { id },
            2 => Owner::Probe { at: id },
            3 => Owner::Functions { stubs: low },
            4 => Owner::Linux { function: id },
            _ => Owner::Shared { id },
        };
        let record = Record::decode(flags);
        (Self { owner, record }, words & ((1 << KIND) - 1))
    }
}

/// What an address in the pool belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The block's label.
    pub label: Label,
    /// Address of the block's first instruction.
    pub start: u64,
    /// Its instructions.
    pub words: u64,
    /// Where the caller is at the address that was asked for.
    pub caller: CallerIn,
}

/// The executable memory of a host.
pub struct Pool<P> {
    platform: P,
    window: Range<u64>,
    /// A bit a unit: handed out.
    used: Box<[AtomicU64]>,
    /// A bit a unit: a published block starts here.
    starts: Box<[AtomicU64]>,
}

impl<P: Platform> Pool<P> {
    /// The pool in the platform's window.
    pub fn new(platform: P) -> Result<Arc<Self>, PoolError> {
        let window = platform.pool();
        let Range { start, end } = window;
        let whole = start.is_multiple_of(UNIT) && end.is_multiple_of(UNIT);
        if !whole || start >= end {
            return Err(PoolError::Window { start, end });
        }
        let bitmap = || -> Box<[AtomicU64]> {
            let units = (end - start) / UNIT;
            (0..units.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()
        };
        let (used, starts) = (bitmap(), bitmap());
        Ok(Arc::new(Self {
            platform,
            window,
            used,
            starts,
        }))
    }

    /// The host.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// The addresses that code may have.
    pub fn window(&self) -> Range<u64> {
        self.window.clone()
    }

    fn units(&self) -> usize {
        ((self.window.end - self.window.start) / UNIT) as usize
    }

    fn address(&self, unit: usize) -> u64 {
        self.window.start + unit as u64 * UNIT
    }

    /// The free runs of units, by ascending address.
    fn free_runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let end = self.units();
        let mut unit = 0;
        core::iter::from_fn(move || {
            unit = next(&self.used, unit, end, false)?;
            let start = unit;
            unit = next(&self.used, unit, end, true).unwrap_or(end);
            Some(start..unit)
        })
    }

    /// The first `count` free units in a row; looks no further than it must.
    fn first_fit(&self, count: usize) -> Option<Range<usize>> {
        let end = self.units();
        let mut unit = 0;
        loop {
            let start = next(&self.used, unit, end, false)?;
            let fit = start..start.checked_add(count).filter(|fit| *fit <= end)?;
            match next(&self.used, start, fit.end, true) {
                Some(used) => unit = used,
                None => return Some(fit),
            }
        }
    }

    /// The addresses of free memory, ascending; all of it holds [`FILL`].
    pub fn free(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.free_runs()
            .map(|run| self.address(run.start)..self.address(run.end))
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.free_runs().map(|run| run.len() as u64 * UNIT).sum()
    }

    /// Bytes of the largest free piece.
    pub fn largest_free(&self) -> u64 {
        self.free_runs()
            .map(|run| run.len() as u64 * UNIT)
            .max()
            .unwrap_or(0)
    }

    /// Memory for `words` instructions of `name`, not yet written.
    pub fn reserve(self: &Arc<Self>, words: usize, name: &str) -> Result<Reserved<P>, PoolError> {
        let count = (HEADER_WORDS + words).div_ceil(UNIT_WORDS);
        loop {
            let Some(units) = self.first_fit(count) else {
                return Err(PoolError::Full {
                    name: name.into(),
                    asked: count as u64 * UNIT,
                    largest: self.largest_free(),
                    free: self.free_bytes(),
                });
            };
            if claim(&self.used, units.clone()) {
                return Ok(Reserved {
                    block: Block {
                        pool: self.clone(),
                        units,
                        written: false,
                    },
                });
            }
            // Another core was faster: look again.
        }
    }

    /// What code an address belongs to. Any context: no lock, no allocation.
    pub fn find(&self, pc: u64) -> Option<Found> {
        if !self.window.contains(&pc) {
            return None;
        }
        let unit = previous(&self.starts, ((pc - self.window.start) / UNIT) as usize)?;
        let header = self.address(unit);
        let mut words = [0; HEADER_WORDS];
        for (at, word) in (header..).step_by(4).zip(&mut words) {
            *word = self.platform.read(at)?;
        }
        let again = words[2] & AGAIN != 0;
        let (mut label, words) = Label::decode(words);
        let (start, words) = (header + HEADER_WORDS as u64 * 4, words as u64);
        let index = pc.checked_sub(start)? / 4;
        if index >= words {
            return None;
        }
        if again && let Some(record) = &mut label.record {
            let word = self.platform.read(start + 4 * words)?;
            let (count, first) = ((word & 0xffff) as usize, (word >> 16) as usize);
            record.again = first..first + count;
        }
        let record = label.record.as_ref();
        let in_stub =
            matches!(label.owner, Owner::Functions { stubs } if index >= u64::from(stubs));
        let recorded = !in_stub && record.is_some_and(|record| record.covers(index as usize));
        let caller = match (recorded, label.owner) {
            (true, _) => CallerIn::FrameRecord,
            (false, Owner::Probe { at }) => CallerIn::Probed { at },
            (false, _) => CallerIn::LinkRegister,
        };
        Some(Found {
            label,
            start,
            words,
            caller,
        })
    }
}

impl<P: Platform> Pool<P> {
    /// The function that the code at `pc` was made for: a trampoline's, or a stub's. Any context: no lock, no allocation.
    pub fn function_of(&self, pc: u64) -> Option<u64> {
        let found = self.find(pc)?;
        let stubs = match found.label.owner {
            Owner::Trampoline { function } | Owner::Linux { function } => return Some(function),
            Owner::Program { .. } | Owner::Probe { .. } | Owner::Shared { .. } => return None,
            Owner::Functions { stubs } => u64::from(stubs),
        };
        let words = shared::STUB_WORDS as u64;
        let number = ((pc - found.start) / 4).checked_sub(stubs)? / words;
        let data = found.start + 4 * (stubs + number * words + shared::DATA as u64);
        let half = |at| self.platform.read(at).map(u64::from);
        Some(half(data)? | half(data + 4)? << 32)
    }
}

/// The first unit from `from` on, below `end`, whose bit is `set`.
fn next(bitmap: &[AtomicU64], from: usize, end: usize, set: bool) -> Option<usize> {
    let mut first = u64::MAX << (from % 64);
    let words = bitmap.iter().enumerate().take(end.div_ceil(64));
    for (index, word) in words.skip(from / 64) {
        let bits = word.load(Ordering::Acquire);
        let wanted = (if set { bits } else { !bits }) & first;
        if wanted != 0 {
            return Some(index * 64 + wanted.trailing_zeros() as usize).filter(|unit| *unit < end);
        }
        first = u64::MAX;
    }
    None
}

/// The last unit up to `from` whose bit is set.
fn previous(bitmap: &[AtomicU64], from: usize) -> Option<usize> {
    let mut last = u64::MAX >> (63 - from % 64);
    for (index, word) in bitmap.iter().enumerate().take(from / 64 + 1).rev() {
        let bits = word.load(Ordering::Acquire) & last;
        if bits != 0 {
            return Some(index * 64 + 63 - bits.leading_zeros() as usize);
        }
        last = u64::MAX;
    }
    None
}

/// The words of the bitmap that cover `units`, each with its bits of it.
fn masks(
    bitmap: &[AtomicU64],
    units: Range<usize>,
) -> impl DoubleEndedIterator<Item = (&AtomicU64, u64)> {
    let words = units.start / 64..units.end.div_ceil(64);
    bitmap
        .iter()
        .enumerate()
        .take(words.end)
        .skip(words.start)
        .map(move |(index, word)| {
            let low = units.start.saturating_sub(index * 64);
            let high = (units.end - index * 64).min(64);
            (word, u64::MAX >> (64 - (high - low)) << low)
        })
}

/// Sets all bits of `units`, or none: false if one of them was set already.
fn claim(bitmap: &[AtomicU64], units: Range<usize>) -> bool {
    let mut done = units.start;
    for (word, mask) in masks(bitmap, units.clone()) {
        let before = word.fetch_or(mask, Ordering::AcqRel);
        if before & mask != 0 {
            word.fetch_and(!(mask & !before), Ordering::AcqRel);
            release(bitmap, units.start..done);
            return false;
        }
        done = (done / 64 + 1) * 64;
    }
    true
}

fn release(bitmap: &[AtomicU64], units: Range<usize>) {
    if !units.is_empty() {
        masks(bitmap, units).for_each(|(word, mask)| {
            word.fetch_and(!mask, Ordering::Release);
        });
    }
}

/// Units that are handed out; dropping gives them back.
struct Block<P: Platform> {
    pool: Arc<Pool<P>>,
    units: Range<usize>,
    written: bool,
}

impl<P: Platform> Block<P> {
    fn code(&self) -> u64 {
        self.pool.address(self.units.start) + HEADER_WORDS as u64 * 4
    }
}

impl<P: Platform> Drop for Block<P> {
    fn drop(&mut self) {
        let (pool, units) = (&self.pool, self.units.clone());
        release(&pool.starts, units.start..units.start + 1);
        if self.written {
            let fill = vec![FILL; units.len() * UNIT_WORDS];
            if pool
                .platform
                .write_code(pool.address(units.start), &fill)
                .is_err()
            {
                return; // it may still hold code: never handed out again
            }
        }
        release(&pool.used, units);
    }
}

/// Memory for code that nobody executes yet.
pub struct Reserved<P: Platform> {
    block: Block<P>,
}

impl<P: Platform> Reserved<P> {
    /// The address that its first instruction will run at.
    pub fn address(&self) -> u64 {
        self.block.code()
    }

    /// Instructions that it has room for.
    pub fn capacity(&self) -> usize {
        self.block.units.len() * UNIT_WORDS - HEADER_WORDS
    }

    /// Writes the code and makes it executable on every core; memory behind it is given back.
    ///
    /// `words` must not be more than [`Self::capacity`], less one if the record is gone twice. On an error the memory is given back.
    pub fn publish(self, label: Label, words: &[u32]) -> Result<Code<P>, PlatformError> {
        let mut block = self.block;
        let again = label.again();
        let behind = again.as_slice();
        let needed = (HEADER_WORDS + words.len() + behind.len()).div_ceil(UNIT_WORDS);
        let at = block.pool.address(block.units.start);
        if needed > block.units.len() {
            let why = alloc::format!(
                "{} words of code for a block of {}; reserve as many as are written",
                words.len(),
                block.units.len() * UNIT_WORDS - HEADER_WORDS
            );
            return Err(PlatformError::Host { at, why });
        }
        let end = block.units.start + needed;
        release(&block.pool.used, end..block.units.end);
        block.units.end = end;
        if label
            .record
            .as_ref()
            .is_some_and(|r| r.encode().is_none() || r.encode_again().is_none())
        {
            let why = "its frame record cannot be described: more than 65535 instructions before it is gone; \
                       attach fewer programs";
            return Err(PlatformError::Host {
                at,
                why: why.into(),
            });
        }
        block.written = true;
        let header = label.encode(words.len() as u32);
        block
            .pool
            .platform
            .write_code(at, &[&header, words, behind].concat())?;
        // Written here and fetchable from the point of unification; a core may still hold what it
        // fetched before, until its next context synchronisation event (Arm ARM B2.4.4).
        block.pool.platform.sync_cores();
        let first = block.units.start..block.units.start + 1;
        masks(&block.pool.starts, first).for_each(|(word, mask)| {
            word.fetch_or(mask, Ordering::Release);
        });
        Ok(Code {
            block,
            words: words.len(),
        })
    }
}

/// Code that any core may execute. Whoever drops it knows that none does.
pub struct Code<P: Platform> {
    block: Block<P>,
    words: usize,
}

impl<P: Platform> Code<P> {
    /// Address of its first instruction.
    pub fn address(&self) -> u64 {
        self.block.code()
    }

    /// The pool that it lies in.
    pub fn pool(&self) -> &Arc<Pool<P>> {
        &self.block.pool
    }

    /// Its instructions.
    pub fn words(&self) -> usize {
        self.words
    }

    /// Bytes of the pool that it takes, header included.
    pub fn bytes(&self) -> u64 {
        self.block.units.len() as u64 * UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units 60 to 69 of which 65 is taken, as by another core between looking and claiming.
    #[test]
    fn a_claim_that_fails_leaves_nothing_behind() {
        let bitmap = [0, 1 << 1].map(AtomicU64::new);
        assert!(!claim(&bitmap, 60..70));
        assert_eq!(
            bitmap.each_ref().map(|w| w.load(Ordering::Relaxed)),
            [0, 1 << 1]
        );
        release(&bitmap, 65..66);
        assert!(claim(&bitmap, 60..70));
        assert_eq!(
            bitmap.each_ref().map(|w| w.load(Ordering::Relaxed)),
            [0xf << 60, 0x3f]
        );
    }
}
