// SPDX-License-Identifier: MIT OR Apache-2.0
//! The return trampoline of rethook: what a traced function returns to in place of its caller.
//!
//! ```text
//!   sub  sp, sp, #frame              save      x0-x28, x29, x30, sp as `struct user_pt_regs` has them
//!   stp  x0, x1, [sp] ...
//!   stp  x29, x30, [sp, #record]               a record: x30 is still what the return address was replaced by, so an unwinder that
//!   add  x29, sp, #record                      looks that up on the task's shadow stack finds the caller
//!   mov  x0, sp
//!   bl   handler                     program   extern "C" fn(registers) -> return address
//!   mov  x30, x0                     restore
//!   ldp  x0, x1, [sp] ...
//!   ret                              return
//! ```

use super::{Emitter, Listing};
use crate::ingredient::Ingredient;
use crate::pool::Record;
use crate::registers::{BYTES, PC, PSTATE, SP as STACK_POINTER, x};
use a64::inst::PairMode;
use a64::ops::{add_imm, ldr, mov, mov_sp, ret, stp, str as store, sub_imm};
use a64::reg::{X0, X9, X29, X30};
use a64::{AsmError, Assembler, SP, Size, XZR};

/// At most so many instructions.
pub const WORDS_AT_MOST: usize = 56;

/// The registers, then the record.
const FRAME: i64 = BYTES + 16;

/// The code, for the address `base`, and what it is for. `handler` says where to return to.
///
/// # Errors
/// What the assembler says.
pub fn return_trampoline(
    handler: u64,
    words: &mut [u32],
    base: u64,
) -> Result<(usize, Listing), AsmError> {
    let mut asm = Assembler::new(words, base);
    let mut code = Emitter::new(&mut asm);
    code.asm.emit(sub_imm(Size::X, SP, SP, FRAME));
    code.registers(0..=28, SP, true);
    code.asm.emit(stp(PairMode::Offset, X29, X30, SP, x(29)));
    code.asm.emit(add_imm(Size::X, X9, SP, FRAME));
    code.asm
        .emit(stp(PairMode::Offset, X9, X30, SP, STACK_POINTER));
    code.asm.emit(store(XZR, SP, PSTATE));
    code.asm.emit(stp(PairMode::Offset, X29, X30, SP, BYTES));
    code.asm.emit(add_imm(Size::X, X29, SP, BYTES));
    let before = code.asm.len();
    code.span(Ingredient::Save, None);
    code.asm.emit(mov_sp(X0, SP));
    code.span(Ingredient::Enter, None);
    code.asm.bl_abs(handler);
    code.span(Ingredient::Program, None);
    code.asm.emit(mov(Size::X, X30, X0));
    code.registers(0..=28, SP, false);
    code.asm.emit(ldr(X29, SP, x(29)));
    let gone = code.asm.len();
    code.asm.emit(add_imm(Size::X, SP, SP, FRAME));
    code.span(Ingredient::Restore, None);
    code.asm.emit(ret());
    code.span(Ingredient::Return, None);
    let listing = Listing {
        spans: code.spans,
        record: Record {
            before,
            gone: gone..gone + 2,
            again: 0..0,
        },
        frame_bytes: FRAME as u32,
    };
    const _: () = assert!(PC == STACK_POINTER + 8, "one STP writes both");
    Ok((asm.finish()?, listing))
}
