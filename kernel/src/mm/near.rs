// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory for map values: within ADRP's reach (±4 GiB) of the executable pool, so that emitted code names it in two words.

use super::layout::{LINEAR, NEAR, NEAR_SIZE, PAGE};
use super::{Access, frames, table};
use crate::arch::lock::SpinLock;

/// First address not used so far. Addresses are not used twice: a dangling map pointer faults.
static NEXT: SpinLock<usize> = SpinLock::new(NEAR);

/// Owned, zeroed, page-aligned memory; dropping it unmaps it.
#[derive(Debug)]
pub(crate) struct NearMemory {
    start: usize,
    pages: usize,
}

impl NearMemory {
    /// `bytes` rounded up to pages, `None` when memory or the 256 MiB of addresses are used up.
    pub(crate) fn new(bytes: usize) -> Option<NearMemory> {
        let pages = bytes.div_ceil(PAGE).max(1);
        let start = {
            let mut next = NEXT.lock();
            let start = *next;
            // one page between two regions stays unmapped
            let end = start.checked_add(pages.checked_add(1)?.checked_mul(PAGE)?)?;
            if end > NEAR + NEAR_SIZE {
                return None;
            }
            *next = end;
            start
        };
        let mut memory = NearMemory { start, pages: 0 };
        for page in 0..pages {
            let frame = frames::allocate(1)?;
            super::fill(LINEAR + frame as usize, PAGE, 0);
            if table::map_page(start + page * PAGE, frame, Access::Write).is_err() {
                frames::free(frame, 1);
                return None;
            }
            memory.pages += 1;
        }
        Some(memory)
    }

    /// First address.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Bytes mapped.
    pub(crate) fn bytes(&self) -> usize {
        self.pages * PAGE
    }
}

impl Drop for NearMemory {
    fn drop(&mut self) {
        for page in 0..self.pages {
            if let Some(frame) = table::unmap_page(self.start + page * PAGE) {
                frames::free(frame, 1);
            }
        }
    }
}

// SAFETY: the pages stay mapped at one address from `new` to `drop`; values there are only ever atomic words, and programs
// access them by the same address (its provenance is exposed by the integer it was made from).
unsafe impl bpf_vm::map::MapRegion for NearMemory {
    fn words(&self) -> &[core::sync::atomic::AtomicU64] {
        // SAFETY: mapped RW-NX, page aligned, `bytes` long, zeroed, and no non-atomic reference to it exists.
        unsafe { core::slice::from_raw_parts(self.start as *const _, self.bytes() / 8) }
    }
}
