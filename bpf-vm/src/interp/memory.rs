// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory that a program may touch: regions, and the checked accesses to them.
//!
//! Others may access the same bytes meanwhile (map values, the kernel's data), so each access is an atomic one: whole
//! if it is aligned to its size, byte by byte otherwise.
use alloc::{sync::Arc, vec::Vec};
use core::{
    marker::PhantomData,
    ptr::with_exposed_provenance_mut,
    sync::atomic::{
        AtomicU8, AtomicU16, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
    },
};

use crate::{
    isa::{AtomicOp, Size},
    map::Map,
    program::ValidatedProgram,
};

/// Memory that a program may read, and maybe write, for as long as `'a`.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    start: u64,
    bytes: u64,
    writable: bool,
    memory: PhantomData<&'a [AtomicU64]>,
}

impl<'a> Region<'a> {
    /// Words that the program may read and write.
    pub fn words(words: &'a [AtomicU64]) -> Self {
        Self {
            start: words.as_ptr().expose_provenance() as u64,
            bytes: size_of_val(words) as u64,
            writable: true,
            memory: PhantomData,
        }
    }

    /// Words that nobody writes while the program runs, and that it may read: a hook's `u64 ctx[]`.
    pub fn constant(words: &'a [u64]) -> Self {
        Self {
            start: words.as_ptr().expose_provenance() as u64,
            bytes: size_of_val(words) as u64,
            writable: false,
            memory: PhantomData,
        }
    }

    /// The `bytes` bytes at `start`.
    ///
    /// # Safety
    /// They are readable, and writable if `writable`, for as long as `'a`; their provenance is exposed; whoever else
    /// writes them meanwhile does so atomically or is a program.
    pub const unsafe fn new(start: u64, bytes: u64, writable: bool) -> Self {
        Self {
            start,
            bytes,
            writable,
            memory: PhantomData,
        }
    }

    /// The first address.
    pub const fn start(&self) -> u64 {
        self.start
    }

    #[inline(always)]
    const fn allows(&self, address: u64, bytes: u64, write: bool) -> bool {
        let offset = address.wrapping_sub(self.start);
        offset < self.bytes && self.bytes - offset >= bytes && (self.writable || !write)
    }
}

/// A program with the regions of its maps' values, which are valid for as long as it holds the maps.
#[derive(Clone, Debug)]
pub(super) struct MapValues {
    program: Arc<ValidatedProgram>,
    regions: Vec<Region<'static>>,
}

impl MapValues {
    pub(super) fn new(program: Arc<ValidatedProgram>) -> Self {
        let region = |map: &Arc<Map>| {
            let values = map.value_range()?;
            let bytes = values.end - values.start;
            // SAFETY: value memory is readable and writable from a map's creation to its drop, shared as atomic words
            // whose provenance is exposed; the regions are lent out only while `program` holds the map.
            Some(unsafe { Region::new(values.start, bytes, map.program_may_write()) })
        };
        let regions = program.maps().iter().filter_map(region).collect();
        Self { program, regions }
    }

    pub(super) fn program(&self) -> &Arc<ValidatedProgram> {
        &self.program
    }

    pub(super) fn regions(&self) -> &[Region<'_>] {
        &self.regions
    }
}

/// All the memory of one run.
pub(super) struct Memory<'a> {
    /// The frames in use.
    pub(super) stack: Region<'a>,
    /// What the caller gave.
    pub(super) given: &'a [Region<'a>],
    /// The values of the program's maps.
    pub(super) maps: &'a [Region<'a>],
}

impl Memory<'_> {
    /// Whether `bytes` bytes at `address` lie in one region that allows the access.
    #[inline(always)]
    pub(super) fn allows(&self, address: u64, bytes: u64, write: bool) -> bool {
        self.stack.allows(address, bytes, write)
            || self.elsewhere(self.given, address, bytes, write)
            || self.elsewhere(self.maps, address, bytes, write)
    }

    fn elsewhere(&self, regions: &[Region<'_>], address: u64, bytes: u64, write: bool) -> bool {
        regions.iter().any(|r| r.allows(address, bytes, write))
    }

    /// Loads, zero extended; `None` if the program may not read there.
    #[inline(always)]
    pub(super) fn load(&self, address: u64, size: Size) -> Option<u64> {
        if !self.allows(address, size.bytes().into(), false) {
            return None;
        }
        // SAFETY: one region holds the whole access, so its maker promised that the bytes are readable.
        Some(unsafe { load(address, size) })
    }

    /// Stores the low bytes of `value`; `None` if the program may not write there.
    #[inline(always)]
    pub(super) fn store(&self, address: u64, size: Size, value: u64) -> Option<()> {
        if !self.allows(address, size.bytes().into(), true) {
            return None;
        }
        // SAFETY: one writable region holds the whole access, so its maker promised that the bytes are writable.
        unsafe { store(address, size, value) };
        Some(())
    }

    /// Loads with acquire order; `None` if not aligned, or if the program may not read there.
    pub(super) fn load_acquire(&self, address: u64, size: Size) -> Option<u64> {
        if !is_aligned(address, size) {
            return None;
        }
        let value = self.load(address, size)?;
        core::sync::atomic::fence(Acquire);
        Some(value)
    }

    /// Stores with release order; `None` if not aligned, or if the program may not write there.
    pub(super) fn store_release(&self, address: u64, size: Size, value: u64) -> Option<()> {
        if !is_aligned(address, size) {
            return None;
        }
        core::sync::atomic::fence(Release);
        self.store(address, size, value)
    }

    /// Does a read-modify-write and returns the old value, zero extended; `compare` is what `Cmpxchg` expects. `None`
    /// if not aligned, or if the program may not write there. `size` is W or Dw.
    pub(super) fn atomic(
        &self,
        op: AtomicOp,
        address: u64,
        size: Size,
        value: u64,
        compare: u64,
    ) -> Option<u64> {
        if !is_aligned(address, size) || !self.allows(address, size.bytes().into(), true) {
            return None;
        }
        Some(if size == Size::Dw {
            // SAFETY: aligned to 8 bytes, and one writable region holds all of them.
            let at = unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(address as usize)) };
            atomic64(op, at, value, compare)
        } else {
            // SAFETY: aligned to 4 bytes, and one writable region holds all of them.
            let at = unsafe { AtomicU32::from_ptr(with_exposed_provenance_mut(address as usize)) };
            atomic32(op, at, value as u32, compare as u32).into()
        })
    }
}

fn is_aligned(address: u64, size: Size) -> bool {
    address.is_multiple_of(size.bytes().into())
}

/// Read-modify-writes of one width. Those that fetch are sequentially consistent, the others relaxed, as in Linux.
macro_rules! atomic {
    ($name:ident, $atomic:ty, $word:ty) => {
        fn $name(op: AtomicOp, at: &$atomic, value: $word, compare: $word) -> $word {
            let order = if op.fetches() { SeqCst } else { Relaxed };
            match op {
                AtomicOp::Add | AtomicOp::FetchAdd => at.fetch_add(value, order),
                AtomicOp::Or | AtomicOp::FetchOr => at.fetch_or(value, order),
                AtomicOp::And | AtomicOp::FetchAnd => at.fetch_and(value, order),
                AtomicOp::Xor | AtomicOp::FetchXor => at.fetch_xor(value, order),
                AtomicOp::Xchg => at.swap(value, order),
                AtomicOp::Cmpxchg => {
                    let (Ok(old) | Err(old)) = at.compare_exchange(compare, value, order, order);
                    old
                }
            }
        }
    };
}
atomic!(atomic32, AtomicU32, u32);
atomic!(atomic64, AtomicU64, u64);

/// # Safety
/// The `size.bytes()` bytes at `address` are readable, by an address whose provenance is exposed, and whoever writes
/// them meanwhile does so atomically or is a program.
#[inline(always)]
unsafe fn load(address: u64, size: Size) -> u64 {
    let at = address as usize;
    if !is_aligned(address, size) {
        return (0..size.bytes()).fold(0, |value, index| {
            let byte = with_exposed_provenance_mut(at + index as usize);
            // SAFETY: `index` is below the size, so the caller promised that the byte is readable.
            let byte = unsafe { AtomicU8::from_ptr(byte) };
            value | u64::from(byte.load(Relaxed)) << (8 * index)
        });
    }
    match size {
        // SAFETY: the caller promised that the byte is readable.
        Size::B => unsafe { AtomicU8::from_ptr(with_exposed_provenance_mut(at)) }
            .load(Relaxed)
            .into(),
        // SAFETY: aligned, and the caller promised that both bytes are readable.
        Size::H => unsafe { AtomicU16::from_ptr(with_exposed_provenance_mut(at)) }
            .load(Relaxed)
            .into(),
        // SAFETY: aligned, and the caller promised that the four bytes are readable.
        Size::W => unsafe { AtomicU32::from_ptr(with_exposed_provenance_mut(at)) }
            .load(Relaxed)
            .into(),
        // SAFETY: aligned, and the caller promised that the eight bytes are readable.
        Size::Dw => unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at)) }.load(Relaxed),
    }
}

/// # Safety
/// The `size.bytes()` bytes at `address` are writable, by an address whose provenance is exposed, and whoever else
/// accesses them meanwhile does so atomically or is a program.
#[inline(always)]
unsafe fn store(address: u64, size: Size, value: u64) {
    let at = address as usize;
    if !is_aligned(address, size) {
        for index in 0..size.bytes() {
            let byte = with_exposed_provenance_mut(at + index as usize);
            // SAFETY: `index` is below the size, so the caller promised that the byte is writable.
            let byte = unsafe { AtomicU8::from_ptr(byte) };
            byte.store((value >> (8 * index)) as u8, Relaxed);
        }
        return;
    }
    match size {
        // SAFETY: the caller promised that the byte is writable.
        Size::B => unsafe { AtomicU8::from_ptr(with_exposed_provenance_mut(at)) }
            .store(value as u8, Relaxed),
        // SAFETY: aligned, and the caller promised that both bytes are writable.
        Size::H => unsafe { AtomicU16::from_ptr(with_exposed_provenance_mut(at)) }
            .store(value as u16, Relaxed),
        // SAFETY: aligned, and the caller promised that the four bytes are writable.
        Size::W => unsafe { AtomicU32::from_ptr(with_exposed_provenance_mut(at)) }
            .store(value as u32, Relaxed),
        Size::Dw => {
            // SAFETY: aligned, and the caller promised that the eight bytes are writable.
            let word = unsafe { AtomicU64::from_ptr(with_exposed_provenance_mut(at)) };
            word.store(value, Relaxed);
        }
    }
}
