// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stack traces by frame records (AAPCS64 6.4.6): x29 points to { caller's x29, return address }.
//!
//! An exception writes such a record too, so a trace goes on through it.

use crate::mm::{stack, table};
use crate::println;
use crate::symbols::Name;

const MOST: usize = 48;

/// The return addresses from the frame record at `fp` on.
fn walk(mut fp: usize, mut visit: impl FnMut(usize)) {
    for _ in 0..MOST {
        if fp == 0
            || !fp.is_multiple_of(8)
            || table::translate(fp).is_none()
            || table::translate(fp + 15).is_none()
        {
            return;
        }
        // SAFETY: the record was just seen to be mapped; reading kernel memory has no side effect.
        let next = unsafe { (fp as *const usize).read_volatile() };
        // SAFETY: as above, the record's second word.
        let lr = unsafe { ((fp + 8) as *const usize).read_volatile() };
        if lr == 0 {
            return;
        }
        visit(lr);
        // Records lie at ever higher addresses of one stack; a change of stack ends the walk unless it is to a stack.
        if next <= fp && stack::bounds(next).is_none() {
            return;
        }
        fp = next;
    }
}

/// Prints a trace that begins at `pc`; `lr` is shown if the frame record does not hold it yet.
pub(crate) fn print(pc: usize, lr: usize, fp: usize) {
    println!("      {pc:#018x}  {}", Name(pc));
    let mut first = true;
    walk(fp, |address| {
        if first && address != lr && lr != 0 && table::translate(lr).is_some_and(|t| t.execute) {
            println!("      {lr:#018x}  {} (x30)", Name(lr.wrapping_sub(4)));
        }
        first = false;
        println!("      {address:#018x}  {}", Name(address.wrapping_sub(4)));
    });
}

/// Prints the caller's own trace.
#[inline(never)]
pub(crate) fn print_here() {
    let fp: usize;
    // SAFETY: reads x29, which is the frame pointer throughout (-Cforce-frame-pointers).
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    walk(fp, |address| {
        println!("      {address:#018x}  {}", Name(address.wrapping_sub(4)))
    });
}
