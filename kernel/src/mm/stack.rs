// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stacks: the upper half of a 64 KiB slot, its lower half a guard that is never mapped.

use super::layout::{LINEAR, PAGE, STACK_COUNT, STACK_SIZE, STACK_SLOT, STACKS};
use super::{Access, frames, table};
use crate::arch::lock::SpinLock;
use alloc::vec::Vec;

/// The last bytes of every stack, a quarter: only hooks use them. That the kernel stays above is measured by paint; an attach
/// is refused when the worst case of what it adds is more.
pub(crate) const HOOK_RESERVE: usize = STACK_SIZE / 4;

/// What an untouched stack byte holds; painted at allocation, read by [`Stack::high_water`].
const PAINT: u8 = 0xa5;

struct Slots {
    next: usize,
    free: Vec<usize>,
}

static SLOTS: SpinLock<Slots> = SpinLock::new(Slots {
    next: 0,
    free: Vec::new(),
});

/// An owned stack; dropping it unmaps it.
#[derive(Debug)]
pub(crate) struct Stack {
    slot: usize,
    frames: u64,
}

impl Stack {
    /// A new stack of [`STACK_SIZE`] bytes, `None` when memory or slots are used up.
    pub(crate) fn new() -> Option<Stack> {
        let slot = {
            let mut slots = SLOTS.lock();
            match slots.free.pop() {
                Some(slot) => slot,
                None if slots.next < STACK_COUNT => {
                    slots.next += 1;
                    slots.next - 1
                }
                None => return None,
            }
        };
        let Some(pa) = frames::allocate(STACK_SIZE / PAGE) else {
            SLOTS.lock().free.push(slot);
            return None;
        };
        let stack = Stack { slot, frames: pa };
        super::fill(LINEAR + pa as usize, STACK_SIZE, PAINT);
        for page in 0..STACK_SIZE / PAGE {
            let offset = page * PAGE;
            table::map_page(stack.bottom() + offset, pa + offset as u64, Access::Write).ok()?;
        }
        Some(stack)
    }

    /// First mapped address.
    pub(crate) fn bottom(&self) -> usize {
        STACKS + self.slot * STACK_SLOT + STACK_SLOT - STACK_SIZE
    }

    /// One past the last mapped address: the empty stack's sp.
    pub(crate) fn top(&self) -> usize {
        self.bottom() + STACK_SIZE
    }

    /// The most bytes that were ever in use, by the paint that is left.
    pub(crate) fn high_water(&self) -> usize {
        STACK_SIZE - super::count_leading(self.bottom(), STACK_SIZE, PAINT)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for page in 0..STACK_SIZE / PAGE {
            table::unmap_page(self.bottom() + page * PAGE);
        }
        frames::free(self.frames, STACK_SIZE / PAGE);
        SLOTS.lock().free.push(self.slot);
    }
}

/// The stack that `address` lies in or whose guard it lies in: `(bottom, top)`.
pub(crate) fn bounds(address: usize) -> Option<(usize, usize)> {
    let offset = address.checked_sub(STACKS)?;
    (offset < STACK_COUNT * STACK_SLOT).then(|| {
        let top = STACKS + (offset / STACK_SLOT + 1) * STACK_SLOT;
        (top - STACK_SIZE, top)
    })
}
