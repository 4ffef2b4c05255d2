// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures how much stack a call of compiled code uses, by painting what lies below the stack pointer.

use super::irq;
use crate::mm::stack;

/// What is painted: no pointer, no small number.
const PAINT: u64 = 0xa5c3_96e1_0f5a_3c78;
/// What is left for this function's own frame when there is to be room below it.
const OWN: usize = 512;

/// Calls `entry`, which must be callable now and may take a third argument; its result, and how many bytes of stack it used (the lowest word that it
/// wrote counts), if that is below `room`. Normal interrupts are masked meanwhile, since they would use the same stack.
///
/// `None`, and no call, if this task's stack has no `room` bytes left.
pub(crate) fn call(
    entry: extern "C" fn(u64, u64) -> u64,
    [a, b, c]: [u64; 3],
    room: usize,
) -> Option<(u64, usize)> {
    let room = room.next_multiple_of(16);
    let here = core::ptr::from_ref(&room).addr();
    let (bottom, _) = stack::bounds(here)?;
    if here.checked_sub(bottom)? < room + OWN {
        return None;
    }
    let interrupts = irq::disable();
    let (r0, used): (u64, usize);
    // SAFETY: below sp lies the rest of this task's stack, `room` bytes of it at least, which nobody uses: there is no red
    // zone (AAPCS64, 6.2.2), and interrupts are masked. x20 to x22 keep their values across the call, and `clobber_abi`
    // names what does not; sp is 16-byte aligned at the call as always.
    unsafe {
        core::arch::asm!(
            "sub x20, sp, x20",
            "mov x9, sp",
            "2: stp x21, x21, [x9, #-16]!",
            "cmp x9, x20",
            "b.hi 2b",
            "blr x22",
            "mov x9, sp",
            "3: cmp x20, x9",
            "b.hs 4f",
            "ldr x10, [x20]",
            "cmp x10, x21",
            "b.ne 4f",
            "add x20, x20, #8",
            "b 3b",
            "4: sub x20, x9, x20",
            inout("x20") room => used,
            in("x21") PAINT,
            in("x22") entry,
            inout("x0") a => r0,
            in("x1") b,
            in("x2") c,
            clobber_abi("C"),
        )
    };
    irq::restore(interrupts);
    Some((r0, used))
}
