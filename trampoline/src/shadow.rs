// SPDX-License-Identifier: MIT OR Apache-2.0
//! Emits the push and the pop of a replaced return address, as [`crate::runtime`] has the protocol.
//!
//! Both use x9-x11 alone, which are free at a function's entry and when it returns (AAPCS64 6.1.1); arguments, results, x29 and the
//! stack stay as they are. At each instruction x30 is the caller, or a landing by which an unwinder finds him in the entry.

use crate::runtime::{Runtime, SHADOW_COOKIE, SHADOW_ENTRY, SHADOW_LANDING, SHADOW_RETURN};
use a64::imm::Imm21;
use a64::inst::{Access, Cond, PairMode};
use a64::ops::{add, add_imm, b_cond, cmp_imm, ldr, mem, mov, mov_sp, mrs, stp};
use a64::reg::{X9, X10, X11, X30};
use a64::{Assembler, Gpr, Inst, Label, Reg, SP, Size};

/// The function whose entry this is returns to `landing`, with `cookie` (not x9-x11) in its entry; if there is none left, goes to `full`
/// with everything as it was.
pub(crate) fn push(
    asm: &mut Assembler<'_>,
    runtime: &Runtime,
    landing: Label,
    cookie: impl Into<Gpr>,
    full: Label,
) {
    let (w10, top) = (Gpr::from(X10), i64::from(runtime.shadow.top));
    asm.emit(mrs(X9, runtime.task));
    asm.emit(mem(Access::LdrW, w10, X9, top));
    asm.emit(cmp_imm(Size::W, X10, runtime.shadow.end.into()));
    asm.branch(b_cond(Cond::Hs), full);
    asm.emit(add_imm(Size::W, X11, X10, SHADOW_ENTRY));
    asm.emit(mem(Access::StrW, Gpr::from(X11), X9, top)); // claimed before it is written
    asm.emit(add(Size::X, X9, X9, X10));
    asm.emit(mov_sp(X10, SP));
    asm.emit(stp(PairMode::Offset, X30, X10, X9, SHADOW_RETURN));
    match Imm21::new(0) {
        Ok(offset) => asm.branch(
            Inst::Adr {
                rd: X10.into(),
                offset,
            },
            landing,
        ),
        Err(error) => asm.emit(Err(error)),
    }
    asm.emit(stp(PairMode::Offset, X10, cookie, X9, SHADOW_LANDING));
    asm.emit(mov(Size::X, X30, X10));
}

/// At a landing: x30 becomes where the function would have returned to, `cookie` (not x9-x11), if given, what was pushed with it.
pub(crate) fn pop(asm: &mut Assembler<'_>, runtime: &Runtime, cookie: Option<Reg>) {
    let (w10, top) = (Gpr::from(X10), i64::from(runtime.shadow.top));
    asm.emit(mrs(X9, runtime.task));
    asm.emit(mem(Access::LdrW, w10, X9, top));
    asm.emit(add_imm(Size::W, X10, X10, -SHADOW_ENTRY));
    asm.emit(add(Size::X, X11, X9, X10));
    if let Some(cookie) = cookie {
        asm.emit(ldr(cookie, X11, SHADOW_COOKIE));
    }
    asm.emit(ldr(X30, X11, SHADOW_RETURN));
    asm.emit(mem(Access::StrW, w10, X9, top)); // read before it is given up
}
