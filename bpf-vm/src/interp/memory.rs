// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory that a program may touch: regions, and the checked accesses to them.
//!
//! Others may access the same bytes meanwhile (map values, the kernel's data), so each access is an atomic one: whole
//! if it is aligned to its size, byte by byte otherwise.
use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::with_exposed_provenance_mut,
    sync::atomic::{
        AtomicU8, AtomicU16, AtomicU32, AtomicU64,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
        compiler_fence,
    },
};

use crate::{
    helpers::LONGEST_STRING,
    host::host,
    isa::{AtomicOp, Size},
    map::Map,
    program::{STACK_BYTES, ValidatedProgram},
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

    /// The first `bytes` bytes of the words, all of them if they are fewer: memory whose length is no multiple of 8.
    pub fn bytes(words: &'a [AtomicU64], bytes: u64) -> Self {
        let all = Self::words(words);
        Self {
            bytes: all.bytes.min(bytes),
            ..all
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

/// Bytes from one frame's stack to the next one's. What lies between belongs to nobody, so that an access past a
/// frame's end is seen even if there is another frame.
const STRIDE: usize = STACK_BYTES as usize + size_of::<Block>();
/// Words of a [`Block`].
const BLOCK_WORDS: usize = 8;
/// What stacks are made of.
pub(super) type Block = MaybeUninit<[AtomicU64; BLOCK_WORDS]>;

/// Blocks of the stacks of so many frames.
pub(super) const fn blocks(frames: usize) -> usize {
    (frames * STRIDE / size_of::<Block>()).saturating_sub(1)
}

/// Fills blocks with zeros. Without vector registers, as in the kernel, a `memset` executes far more: it takes any length and alignment.
#[inline(never)]
pub(super) fn clear(blocks: &mut [Block]) -> &[AtomicU64] {
    for block in &mut *blocks {
        block.write([const { AtomicU64::new(0) }; BLOCK_WORDS]);
        // Without it the compiler makes a `memset` of the loop.
        compiler_fence(SeqCst);
    }
    // SAFETY: each of them was written.
    let words = unsafe { blocks.assume_init_ref() };
    words.as_flattened()
}

/// The largest access, bytes; regions smaller than that are never the one that was used last.
const LARGEST: u64 = 8;

/// A map's key: address, bytes.
pub(super) type Key = (u64, u64);
/// No bytes are no key.
pub(super) const NO_KEY: Key = (0, 0);

/// Memory that lasts as long as what it belongs to.
#[inline(always)]
const fn range<'a>(start: u64, bytes: u64, writable: bool) -> Region<'a> {
    Region {
        start,
        bytes,
        writable,
        memory: PhantomData,
    }
}

/// The values of a map of the program, if programs may touch them.
fn values<'a>(map: &Map) -> Option<Region<'a>> {
    // Value memory is readable and writable from a map's creation to its drop, shared as atomic words whose provenance is exposed,
    // and the program holds its maps; a map of maps holds its inner ones until whoever takes one out knows that no program uses it.
    let values = map.value_range()?;
    let bytes = values.end - values.start;
    Some(range(values.start, bytes, map.program_may_write()))
}

/// All the memory of one run.
pub(super) struct Memory<'a, 'f> {
    /// Where the stack of the function that runs begins.
    frame: u64,
    /// The region that was used last: its start, its bytes less [`LARGEST`], whether it may be written. At first, and
    /// when it may have ceased to be, the frame's.
    hot: (u64, u64, bool),
    /// Whether it is the program's whichever of its frames runs.
    hot_lasts: bool,
    /// The stacks of all frames, [`STRIDE`] apart.
    stack: Region<'a>,
    /// Which of them runs.
    depth: usize,
    /// What the caller gave.
    given: &'a [Region<'a>],
    /// The program that runs, whose maps' values and variables it may access.
    pub(super) program: &'a ValidatedProgram,
    /// The keys that callbacks of a walk were given, by frame. None in frames that do not run.
    keys: &'f mut [Key],
}

impl<'a, 'f> Memory<'a, 'f> {
    /// The memory of a run that begins; `stack` and `keys` have room for as many frames as will be entered, `keys` none if there are no
    /// callbacks.
    pub(super) fn new(
        stack: Region<'a>,
        keys: &'f mut [Key],
        given: &'a [Region<'a>],
        program: &'a ValidatedProgram,
    ) -> Self {
        let mut memory = Self {
            frame: stack.start,
            hot: (0, 0, false),
            hot_lasts: false,
            stack,
            depth: 0,
            given,
            program,
            keys,
        };
        memory.forget();
        memory
    }

    /// The end of the running frame's stack: its r10.
    #[inline(always)]
    pub(super) fn r10(&self) -> u64 {
        self.frame.wrapping_add(STACK_BYTES)
    }

    /// Makes the next frame the one that runs; there is one.
    #[inline(always)]
    pub(super) fn push(&mut self) {
        self.depth = self.depth.wrapping_add(1);
        self.frame = self.frame.wrapping_add(STRIDE as u64);
        self.frame_changed();
    }

    /// Makes the frame before it the one that runs; there is one. The one that ends has given its key back.
    #[inline(always)]
    pub(super) fn pop(&mut self) {
        self.depth = self.depth.wrapping_sub(1);
        self.frame = self.frame.wrapping_sub(STRIDE as u64);
        self.frame_changed();
    }

    #[inline(always)]
    fn frame_changed(&mut self) {
        if !self.hot_lasts {
            self.forget();
        }
    }

    /// Forgets the region that was used last: it may have been a frame's that is left, or another program's.
    fn forget(&mut self) {
        self.hot = (self.frame, STACK_BYTES - LARGEST, true);
        self.hot_lasts = false;
    }

    /// Makes that program the one that runs.
    pub(super) fn turn_into(&mut self, program: &'a ValidatedProgram) {
        if !core::ptr::eq(self.program, program) {
            self.program = program;
            self.forget();
        }
    }

    /// Lets the frame that runs read a key, and none that it could read before.
    pub(super) fn lend_key(&mut self, key: Key) {
        if let Some(place) = self.keys.get_mut(self.depth) {
            *place = key;
        }
        self.frame_changed();
    }

    /// Whether an access of at most [`LARGEST`] bytes lies in one region that allows it.
    #[inline(always)]
    fn allows_access(&mut self, address: u64, size: Size, write: bool) -> bool {
        let bytes = u64::from(size.bytes());
        let (start, last, writable) = self.hot;
        address.wrapping_sub(start) <= last.wrapping_add(LARGEST - bytes) && (writable || !write)
            || address.wrapping_sub(self.frame) <= STACK_BYTES - bytes
            || self.find(address, bytes, write)
    }

    /// Whether `bytes` bytes at `address` lie in one region that allows the access.
    pub(super) fn allows(&mut self, address: u64, bytes: u64, write: bool) -> bool {
        range(self.frame, STACK_BYTES, true).allows(address, bytes, write)
            || self.find(address, bytes, write)
    }

    /// Searches all regions, and remembers the one that is found.
    #[cold]
    #[inline(never)]
    fn find(&mut self, address: u64, bytes: u64, write: bool) -> bool {
        let found = self.search(|region| region.allows(address, bytes, write));
        if let Some((region, lasts)) = found
            && region.bytes >= LARGEST
        {
            self.hot = (region.start, region.bytes - LARGEST, region.writable);
            self.hot_lasts = lasts;
        }
        found.is_some()
    }

    /// Whether `bytes` bytes at `address`, which is aligned to 8, lie on the stack of a frame of this run, where no other program
    /// can write.
    pub(super) fn is_on_stack(&self, address: u64, bytes: u64) -> bool {
        let mut frames = self.frames();
        address.is_multiple_of(8) && frames.any(|frame| frame.allows(address, bytes, true))
    }

    /// Whether `bytes` bytes at `address` lie in the values of one map, a ring buffer's records not counted, and the program may
    /// write them.
    pub(super) fn holds_values(&self, address: u64, bytes: u64) -> bool {
        let holds = |map: &Map| {
            let values = values(map).filter(|_| map.ring_buffer().is_none());
            values.is_some_and(|values| values.allows(address, bytes, true))
        };
        let mut maps = self.program.maps().iter();
        maps.any(|map| holds(map) || map.inner_maps().any(holds))
    }

    /// The stacks of the frames that run.
    fn frames(&self) -> impl Iterator<Item = Region<'a>> {
        let start = self.stack.start;
        (0..=self.depth).map(move |frame| {
            let start = start + (frame * STRIDE) as u64;
            range(start, STACK_BYTES, true)
        })
    }

    /// Whether there is a string at `address`, of at most [`LONGEST_STRING`] bytes with its end, where nobody else can write: on
    /// this run's stack or in memory that is read only.
    pub(super) fn holds_string(&mut self, address: u64) -> bool {
        let offset = |start: u64| address.wrapping_sub(start);
        let on_stack = offset(self.stack.start) < self.stack.bytes;
        let mut variables = self.program.variables().iter();
        if variables.any(|variable| offset(variable.address) < variable.bytes) {
            return false;
        }
        let found = self.search(|region| region.allows(address, 1, false));
        let Some((region, _)) = found.filter(|(region, _)| on_stack || !region.writable) else {
            return false;
        };
        let bytes = (region.bytes - offset(region.start)).min(LONGEST_STRING as u64);
        (0..bytes).any(|index| self.load(address + index, Size::B) == Some(0))
    }

    /// The first region that the program may access now and that `fits`, and whether it may do so from all its frames, always.
    fn search(&self, fits: impl Fn(&Region<'a>) -> bool) -> Option<(Region<'a>, bool)> {
        let given = self.given.iter().copied().find(&fits);
        let lasting = given.or_else(|| {
            let values = |map| values(map).filter(&fits);
            let mut maps = self.program.maps().iter();
            maps.find_map(|map| values(map).or_else(|| map.inner_maps().find_map(values)))
        });
        let lasting = lasting.or_else(|| {
            let mut variables = self.program.variables().iter();
            variables.find_map(|v| {
                // A per-CPU one has copies elsewhere, which are as good.
                let copies = (0..host().cpus()).filter_map(|cpu| host().per_cpu(v.address, cpu));
                let mut all = core::iter::once(v.address).chain(copies);
                all.find_map(|address| Some(range(address, v.bytes, false)).filter(&fits))
            })
        });
        if let Some(region) = lasting {
            return Some((region, true));
        }
        let passing = self.frames().find(&fits).or_else(|| {
            let mut keys = self.keys.iter().take(self.depth + 1);
            keys.find_map(|&(start, bytes)| Some(range(start, bytes, false)).filter(&fits))
        });
        passing.map(|region| (region, false))
    }

    /// Loads, zero extended; `None` if the program may not read there.
    #[inline(always)]
    pub(super) fn load(&mut self, address: u64, size: Size) -> Option<u64> {
        if !self.allows_access(address, size, false) {
            return None;
        }
        // SAFETY: one region holds the whole access, so its maker promised that the bytes are readable.
        Some(unsafe { load(address, size) })
    }

    /// Stores the low bytes of `value`; `None` if the program may not write there.
    #[inline(always)]
    pub(super) fn store(&mut self, address: u64, size: Size, value: u64) -> Option<()> {
        if !self.allows_access(address, size, true) {
            return None;
        }
        // SAFETY: one writable region holds the whole access, so its maker promised that the bytes are writable.
        unsafe { store(address, size, value) };
        Some(())
    }

    /// Loads with acquire order; `None` if not aligned, or if the program may not read there.
    pub(super) fn load_acquire(&mut self, address: u64, size: Size) -> Option<u64> {
        if !is_aligned(address, size) {
            return None;
        }
        let value = self.load(address, size)?;
        core::sync::atomic::fence(Acquire);
        Some(value)
    }

    /// Stores with release order; `None` if not aligned, or if the program may not write there.
    pub(super) fn store_release(&mut self, address: u64, size: Size, value: u64) -> Option<()> {
        if !is_aligned(address, size) {
            return None;
        }
        core::sync::atomic::fence(Release);
        self.store(address, size, value)
    }

    /// Does a read-modify-write and returns the old value, zero extended; `compare` is what `Cmpxchg` expects. `None`
    /// if not aligned, or if the program may not write there. `size` is W or Dw.
    pub(super) fn atomic(
        &mut self,
        op: AtomicOp,
        address: u64,
        size: Size,
        value: u64,
        compare: u64,
    ) -> Option<u64> {
        if !is_aligned(address, size) || !self.allows_access(address, size, true) {
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
