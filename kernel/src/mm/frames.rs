// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page frames, by `buddy_system_allocator`.

use super::layout::PAGE;
use crate::arch::lock::SpinLock;
use buddy_system_allocator::FrameAllocator;

struct Frames {
    buddy: FrameAllocator<32>,
    total: usize,
    free: usize,
}

static FRAMES: SpinLock<Option<Frames>> = SpinLock::new(None);

/// Gives the allocator a range of free physical memory.
pub(super) fn add(start: u64, end: u64) {
    let first = (start as usize).div_ceil(PAGE);
    let last = end as usize / PAGE;
    if first >= last {
        return;
    }
    let mut frames = FRAMES.lock();
    let frames = frames.get_or_insert_with(|| Frames {
        buddy: FrameAllocator::new(),
        total: 0,
        free: 0,
    });
    frames.buddy.add_frame(first, last);
    frames.total += last - first;
    frames.free += last - first;
}

/// `count` contiguous page frames (rounded up to a power of two by the buddy system): their physical address.
pub(crate) fn allocate(count: usize) -> Option<u64> {
    let mut frames = FRAMES.lock();
    let frames = frames.as_mut()?;
    let first = frames.buddy.alloc(count)?;
    frames.free -= count.next_power_of_two();
    Some((first * PAGE) as u64)
}

/// Gives back what `allocate(count)` returned.
pub(crate) fn free(pa: u64, count: usize) {
    let mut frames = FRAMES.lock();
    if let Some(frames) = frames.as_mut() {
        frames.buddy.dealloc(pa as usize / PAGE, count);
        frames.free += count.next_power_of_two();
    }
}

/// `(total, free)` page frames.
pub(crate) fn usage() -> (usize, usize) {
    FRAMES.lock().as_ref().map_or((0, 0), |f| (f.total, f.free))
}
