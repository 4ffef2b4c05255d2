// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heap, by `linked_list_allocator`: never used on a hook's path.

use crate::arch::lock::SpinLock;
use crate::hook_path::{self, Entered};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use linked_list_allocator::Heap;

struct KernelHeap(SpinLock<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(SpinLock::new(Heap::empty()));

// SAFETY: `Heap` hands out disjoint blocks of the region given to it, and the lock makes each call exclusive.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hook_path::enter(Entered::Heap);
        self.0
            .lock()
            .allocate_first_fit(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
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
    unsafe { HEAP.0.lock().init(start as *mut u8, bytes) }
}

/// `(bytes in all, bytes free)`.
pub(crate) fn usage() -> (usize, usize) {
    let heap = HEAP.0.lock();
    (heap.size(), heap.free())
}
