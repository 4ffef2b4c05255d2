// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slow memory: the initrd, mapped page by page when a program that may sleep reads it (`bpf_copy_from_user`).
//!
//! This kernel has no user memory, and this stands in for what is slow about it: a page that is not there has to be brought in, and
//! whoever reads it blocks until it is. A task of its own, the pager, does that, as a disk would: it takes [`DELAY_NS`] for what was
//! asked for until then. Pages can be taken away again at any time; who reads one just then asks for it again.
#![forbid(unsafe_code)]

use crate::arch::probe;
use crate::mm::layout::{PAGE, SLOW, SLOW_SIZE};
use crate::sched::{self, WaitQueue};
use crate::{initrd, mm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// What the pager takes for pages that are asked for.
const DELAY_NS: u64 = 2_000_000;
const PAGES: usize = SLOW_SIZE / PAGE;

/// Where a page is.
const AWAY: u32 = 0;
/// Someone waits for it.
const WANTED: u32 = 1;
const THERE: u32 = 2;
/// There was no memory for it; the next reader tries again.
const FAILED: u32 = 3;

static STATES: [AtomicU32; PAGES] = [const { AtomicU32::new(AWAY) }; PAGES];
/// The pager waits here, its clients there.
static ASKED: WaitQueue = WaitQueue::new();
static ARRIVED: WaitQueue = WaitQueue::new();
static HELD: AtomicBool = AtomicBool::new(false);
static BROUGHT: AtomicU64 = AtomicU64::new(0);

/// Bytes of slow memory, from [`SLOW`] on: the initrd's first.
pub(crate) fn bytes() -> usize {
    initrd::bytes().map_or(0, |all| all.len().min(SLOW_SIZE))
}

/// Starts the pager, once; false if there is no memory for it.
pub(crate) fn start() -> bool {
    sched::spawn("pager", page).is_some()
}

/// How many pages were brought in since boot.
pub(crate) fn brought() -> u64 {
    BROUGHT.load(Ordering::Relaxed)
}

/// For tests: while it is held the pager does nothing, and readers of pages that are away wait.
pub(crate) fn hold(held: bool) {
    HELD.store(held, Ordering::Release);
    ASKED.wake_all();
}

/// Takes all pages away that are there.
pub(crate) fn evict() {
    for (index, state) in STATES.iter().enumerate() {
        if exchange(state, THERE, AWAY) {
            mm::unmap_copy(SLOW + index * PAGE);
        }
    }
}

fn exchange(state: &AtomicU32, old: u32, new: u32) -> bool {
    state
        .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Copies from slow memory: how many bytes at the front of `into` were copied. Blocks until the pages are there, if the task may
/// block.
#[inline(always)]
pub(crate) fn read(into: &mut [u8], from: u64) -> usize {
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = (from as usize).wrapping_add(done);
        let offset = at.wrapping_sub(SLOW);
        if offset >= SLOW_SIZE {
            break;
        }
        let wanted = rest.len().min(PAGE - offset % PAGE);
        let got = rest
            .get_mut(..wanted)
            .map_or(0, |piece| probe::read(piece, at as u64));
        done += got;
        if got < wanted && !page_in(offset + got) {
            break;
        }
    }
    done
}

/// Has the page with this offset brought in, and blocks until it is. False if there is no such page, if it cannot be, or if the
/// task may not block.
///
/// A function that hooks' rules end at (linker/audit.rules): behind it the task blocks.
#[inline(never)]
fn page_in(offset: usize) -> bool {
    let Some(state) = STATES.get(offset / PAGE) else {
        return false;
    };
    if offset >= bytes() || !sched::may_block() {
        return false;
    }
    if exchange(state, AWAY, WANTED) || exchange(state, FAILED, WANTED) {
        ASKED.wake_all();
    }
    ARRIVED.wait_until(|| state.load(Ordering::Acquire) != WANTED);
    state.load(Ordering::Acquire) != FAILED
}

/// The pager's life.
fn page() {
    let wanted = |state: &AtomicU32| state.load(Ordering::Acquire) == WANTED;
    loop {
        ASKED.wait_until(|| !HELD.load(Ordering::Acquire) && STATES.iter().any(wanted));
        sched::sleep_ns(DELAY_NS);
        let all = initrd::bytes().unwrap_or_default();
        let pages = all.chunks(PAGE).zip(&STATES).enumerate();
        for (index, (bytes, state)) in pages.filter(|(_, (_, state))| wanted(state)) {
            let state_now = match mm::map_copy(SLOW + index * PAGE, bytes) {
                Ok(()) => THERE,
                Err(_) => FAILED,
            };
            BROUGHT.fetch_add(u64::from(state_now == THERE), Ordering::Relaxed);
            state.store(state_now, Ordering::Release);
        }
        ARRIVED.wake_all();
    }
}
