// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heap, by `linked_list_allocator` behind lists of free small blocks: never used on a hook's path.
//!
//! An attach makes and frees hundreds of small blocks while it compiles. A list a size gives one out, or takes it back, in a few
//! instructions, however many holes there are. What the lists keep counts as free, and goes back to the holes when those alone have
//! no room: [`AT_ONCE`] blocks while the lock is held, then the caller tries again, until there is room or the lists are empty.

use crate::arch::lock::SpinLock;
use crate::hook_path::{self, Entered};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;

/// Sizes of small blocks are rounded up to a multiple of so many bytes: a list each.
const STEP: usize = 16;
/// The largest small block, in bytes.
const SMALL: usize = 2048;
/// What small blocks are aligned to at most.
const ALIGN: usize = 8;

/// The most small blocks that go back to the holes while the lock is held and interrupts are masked: each is a walk of the holes.
pub(crate) const AT_ONCE: usize = 64;

/// What a free small block begins with: the next one of its size.
struct Free(Option<NonNull<Free>>);

const _: () = assert!(size_of::<Free>() <= STEP && align_of::<Free>() <= ALIGN);

struct Blocks {
    holes: Heap,
    free: [Option<NonNull<Free>>; SMALL / STEP],
    /// Bytes in the lists.
    kept: usize,
}

// SAFETY: the lists name blocks of the heap that no one else knows of, so they belong to whoever has this.
unsafe impl Send for Blocks {}

/// The list of a small block.
fn list(layout: Layout) -> Option<usize> {
    let small = layout.align() <= ALIGN && (1..=SMALL).contains(&layout.size());
    small.then(|| (layout.size() - 1) / STEP)
}

/// How a list's blocks are taken from the holes and given back to them.
const fn of_list(list: usize) -> Layout {
    match Layout::from_size_align((list + 1) * STEP, ALIGN) {
        Ok(layout) => layout,
        Err(_) => unreachable!(), // SMALL is far from what a layout can be
    }
}

impl Blocks {
    #[inline(never)] // hooked by tests
    fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let mut layout = layout;
        if let Some(list) = list(layout) {
            layout = of_list(list);
            if let Some(block) = self.take(list) {
                return Some(block.cast());
            }
        }
        self.holes.allocate_first_fit(layout).ok()
    }

    fn take(&mut self, list: usize) -> Option<NonNull<Free>> {
        let first = self.free.get_mut(list)?;
        let block = (*first)?;
        // SAFETY: what a list names is a free block, and `deallocate` wrote this to its beginning.
        *first = unsafe { block.read() }.0;
        self.kept -= (list + 1) * STEP;
        Some(block)
    }

    /// # Safety
    /// `allocate` returned this block with this layout.
    #[inline(never)] // hooked by tests
    unsafe fn deallocate(&mut self, block: NonNull<u8>, layout: Layout) {
        let small = list(layout).and_then(|list| Some((list, self.free.get_mut(list)?)));
        let Some((list, first)) = small else {
            // SAFETY: as the caller says; it is in no list, so the holes gave it out with this layout.
            return unsafe { self.holes.deallocate(block, layout) };
        };
        let block = block.cast::<Free>();
        // SAFETY: the caller gives the block up; it is aligned to ALIGN and at least STEP bytes long, as a list's blocks are.
        unsafe { block.write(Free(*first)) };
        *first = Some(block);
        self.kept += (list + 1) * STEP;
    }

    /// Gives up to [`AT_ONCE`] blocks of the lists back to the holes: what is free there may be what a larger block lacks. Returns whether
    /// there were any.
    #[cold]
    fn give_back(&mut self) -> bool {
        let mut left = AT_ONCE;
        for list in 0..self.free.len() {
            while left > 0
                && let Some(block) = self.take(list)
            {
                left -= 1;
                // SAFETY: the holes gave it out with this layout, and now it is in no list.
                unsafe { self.holes.deallocate(block.cast(), of_list(list)) }
            }
        }
        left < AT_ONCE
    }
}

struct KernelHeap(SpinLock<Blocks>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(SpinLock::new(Blocks {
    holes: Heap::empty(),
    free: [None; SMALL / STEP],
    kept: 0,
}));

// SAFETY: `Heap` hands out disjoint blocks of the region given to it, a list's block is out of it until it is given out or back, and
// the lock makes each call exclusive.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hook_path::enter(Entered::Heap);
        loop {
            // Dropped before the next try, so that other cores get their turn, and interrupts if the caller has them on.
            let mut blocks = self.0.lock();
            if let Some(block) = blocks.allocate(layout) {
                return block.as_ptr();
            }
            if !blocks.give_back() {
                return core::ptr::null_mut();
            }
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hook_path::enter(Entered::Heap);
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: the caller of `dealloc` promises that `alloc` returned this block with this layout.
            unsafe { self.0.lock().deallocate(pointer, layout) }
        }
    }
}

/// Gives the heap its memory, once.
pub(super) fn init(start: usize, bytes: usize) {
    // SAFETY: mm::init passes a range of the linear map that it has reserved for this and gives to no one else.
    unsafe { HEAP.0.lock().holes.init(start as *mut u8, bytes) }
}

/// `(bytes in all, bytes free)`.
pub(crate) fn usage() -> (usize, usize) {
    let heap = HEAP.0.lock();
    (heap.holes.size(), heap.holes.free() + heap.kept)
}
