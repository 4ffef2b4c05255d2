// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stacks: the upper half of a 512 KiB slot, its lower half a guard that is never mapped.

use super::layout::{LINEAR, PAGE, STACK_COUNT, STACK_SIZE, STACK_SLOT, STACKS};
use super::{Access, frames, table};
use crate::arch::breakpoint;
use crate::arch::lock::SpinLock;
use crate::targets::CHAIN;
use alloc::vec::Vec;
use core::arch::asm;
use trampoline::program::CONTEXTS;

/// What is the kernel's own of a stack, in bytes. That it uses no more is measured, by paint, behind all tests, with what hooks used in them
/// included (`deepest.the_kernel_stays_above_the_reserve`); it is not proven.
const OWN: usize = 32 << 10;

/// The last bytes of every stack: only hooks use them. An attach is refused when the worst case of what it adds is more.
pub(crate) const HOOK_RESERVE: usize = STACK_SIZE - OWN;

/// The most that an image may keep of it while its function runs, in bytes: its frame, and of a program that calls the function which it
/// stands in for that program's. Only functions whose arguments are known can have such an image. `cargo xtask audit` proves that no more
/// than [`CHAIN`] of these stand on one another, and none on what a program blocks by; the first functions of a stack or of a context,
/// below everything, are refused such images (targets.rs).
pub(crate) const WAITING_LIMIT: usize = 15 << 10;

/// The most that a hit may take of it while its programs run, in bytes: image, the deepest program, and what that calls. One in each of the
/// four contexts, on what waits there; and in a task one more, for while a program blocks, what it blocks by may be hit. (Then one less waits:
/// a program blocks at a function's entry or exit, not in it.) Not two more: what hooks that does not block, since only programs on functions
/// that are marked sleepable do, of which the audit proves that none is reached from where a helper blocks. What a program calls in whose
/// place it stands is what [`WAITING_LIMIT`] is about. A load of a helper may raise an exception (probe.s) where the stack is deepest: its
/// frame and its handler are no function's that the audit adds up.
pub(crate) const HIT_LIMIT: usize =
    (HOOK_RESERVE - CONTEXTS * CHAIN * WAITING_LIMIT) / (CONTEXTS + 1) / 16 * 16
        - breakpoint::STACK as usize;

/// What must be left of a stack for a hook to call a function that can be hooked itself: the reserve as a whole, and half of what is the
/// kernel's. What stands below is then bounded as if no hook were above, however many hooks call on in turn.
const WHOLE: usize = HOOK_RESERVE + (STACK_SIZE - HOOK_RESERVE) / 2;

/// Whether a hook may call a function that can be hooked itself, by what is left of the stack that it runs on.
#[inline(always)]
pub(crate) fn is_whole() -> bool {
    let here = 0_u8;
    let here = core::ptr::from_ref(&here).addr();
    bounds(here).is_some_and(|(bottom, _)| here - bottom >= WHOLE)
}

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
        stack.paint();
        for page in 0..STACK_SIZE / PAGE {
            let offset = page * PAGE;
            table::map_page(stack.bottom() + offset, pa + offset as u64, Access::Write).ok()?;
        }
        Some(stack)
    }

    /// Makes it as one that was never used; no task may be on it.
    pub(crate) fn paint(&self) {
        super::fill(LINEAR + self.frames as usize, STACK_SIZE, PAINT);
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

/// Every aligned word from `from` to the top of the stack that it lies in; none if it lies in no stack.
pub(crate) fn words(from: usize) -> impl Iterator<Item = u64> {
    let range = bounds(from).map_or(0..0, |(bottom, top)| {
        let first = from.max(bottom).next_multiple_of(8);
        match super::table::translate(first.min(top - 8)) {
            Some(_) => first..top,
            None => 0..0, // a slot that no stack is in
        }
    });
    // SAFETY: a stack is mapped as a whole, and its top is below `top`; reading kernel memory has no side effect.
    let read = |at: usize| unsafe { (at as *const u64).read_volatile() };
    range.step_by(8).map(read)
}

/// More than any function's frame is long that is not written as a whole, so that the stretch which one leaves untouched is shorter: below so
/// many bytes of paint [`scrub`] looks for nothing.
const GAP: usize = 16 << 10;

/// The lowest address in use of the stack at `bottom`, as far as no [`GAP`] lies between it and `sp`. An attach asks this: it does not
/// look through all of the stack.
fn lowest_used(bottom: usize, sp: usize) -> usize {
    let mut used = sp & !63;
    while used > bottom {
        let below = used.saturating_sub(GAP).max(bottom);
        if super::count_leading(below, used - below, PAINT) == used - below {
            break;
        }
        used = below;
    }
    used + super::count_leading(used, sp - used, PAINT)
}

/// Overwrites what calls that have returned left behind: the words below the caller's frame, and the registers that a call
/// does not preserve. Otherwise an address of theirs could stay for long in a word that later frames do not write. What
/// was never used stays painted.
#[inline(never)]
pub(crate) fn scrub() {
    let sp: usize;
    // SAFETY: reads sp.
    unsafe { asm!("mov {}, sp", out(reg) sp, options(nomem, nostack)) };
    let Some((bottom, _)) = bounds(sp) else {
        return;
    };
    let first = lowest_used(bottom, sp);
    // SAFETY: below sp nothing is in use: there is no red zone here (an interrupt would overwrite it), and what an interrupt
    // puts there it has taken away when this goes on. From the first used byte to sp is mapped.
    unsafe {
        asm!(
            // Words up to a multiple of 64, then 64 bytes at a time, then what is left.
            "2: cmp {at}, {end}",
            "b.hs 5f",
            "tst {at}, #63",
            "b.eq 3f",
            "str xzr, [{at}], #8",
            "b 2b",
            "3: cmp {at}, {blocks}",
            "b.hs 4f",
            "stp xzr, xzr, [{at}]",
            "stp xzr, xzr, [{at}, #16]",
            "stp xzr, xzr, [{at}, #32]",
            "stp xzr, xzr, [{at}, #48]",
            "add {at}, {at}, #64",
            "b 3b",
            "4: cmp {at}, {end}",
            "b.hs 5f",
            "str xzr, [{at}], #8",
            "b 4b",
            "5:",
            at = inout(reg) first.next_multiple_of(8) => _,
            blocks = in(reg) sp & !63,
            end = in(reg) sp,
            options(nostack)
        )
    }
    // SAFETY: the compiler is told that these registers, which a call does not preserve, are overwritten.
    unsafe {
        asm!(
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18",
            "mov x\\n, xzr",
            ".endr",
            out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _,
            out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
            out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
            out("x15") _, out("x16") _, out("x17") _, out("x18") _,
            options(nomem, nostack)
        )
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
