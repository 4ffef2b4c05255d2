// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shared caller: what every traced function's site leads to, generated once for each way to find the op.
//!
//! It comes from a site's BL: x9 is the return address into the function's caller, x30 is function+8; x10-x17 are free. Its frame:
//!
//! ```text
//!            caller's stack
//!          +------------------+ <- sp at the function's entry
//!          | x9               | record of the function's caller
//!          | x29              |
//!          | x30              | record of the function
//!   x29 -> | -> the other     |
//!          | -                |
//!          | direct           | where to go on instead of in the function, 0 unless an op sets it
//!          | registers        | as `struct user_pt_regs` has them (registers.rs): x30 and sp as the function's caller left them,
//!    sp -> |                  | pc = function+8
//!          +------------------+
//! ```
//!
//! Then it calls the op: `extern "C" fn(function, return address, op, registers)`, restores what may carry arguments, and goes on in the
//! function, whose x30 is the saved one: an op may have replaced it.

use super::{Emitter, Listing, ret_to};
use crate::ingredient::Ingredient;
use crate::pool::Record;
use crate::registers::{self, PC, PSTATE, SP as STACK_POINTER, x};
use a64::inst::{Access, PairMode};
use a64::ops::{add_imm, blr, br, cbnz, ldp, ldr, mem, mov, mov_sp, stp, str as store, sub_imm};
use a64::reg::{X0, X1, X2, X3, X4, X9, X10, X11, X17, X29, X30};
use a64::{AsmError, Assembler, Fixup, LabelSlot, SP, Size, XZR};

/// Offset of the word that an op sets to go on elsewhere: a BPF trampoline's address.
pub const DIRECT: i64 = registers::BYTES;
/// The registers and that word, 16-byte aligned.
const SAVED: i64 = DIRECT + 16;
/// All of it.
const FRAME: i64 = SAVED + 32;

/// Offset in an op, and in the descriptor of one: its function.
pub const OP_FUNCTION: i64 = 0;

/// How the shared caller finds the op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// The address of the one op, or of the one that walks the list, lies at this address.
    Global(u64),
    /// The word before the function leads to a descriptor: the op's function, then the op's address.
    Callsite,
}

/// A shared caller to be built.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// How it finds the op.
    pub find: Find,
    /// Whether it saves all registers; if not, those that may carry arguments.
    pub all: bool,
}

/// At most so many instructions.
pub const WORDS_AT_MOST: usize = 80;

impl Caller {
    /// The code, for the address `base`, and what it is for.
    ///
    /// # Errors
    /// What the assembler says.
    pub fn generate(self, words: &mut [u32], base: u64) -> Result<(usize, Listing), AsmError> {
        let mut labels = [LabelSlot::default(); 2];
        let mut fixups = [Fixup::default(); 2];
        let mut asm = Assembler::new(words, base).with_labels(&mut labels, &mut fixups);
        let listing = self.emit(&mut asm);
        Ok((asm.finish()?, listing))
    }

    fn emit(self, asm: &mut Assembler<'_>) -> Listing {
        let mut code = Emitter::new(asm);
        code.asm.emit(mov_sp(X10, SP));
        code.asm.emit(sub_imm(Size::X, SP, SP, FRAME));
        code.registers(if self.all { 0..=28 } else { 0..=8 }, SP, true);
        code.asm.emit(store(XZR, SP, DIRECT));
        code.asm.emit(stp(PairMode::Offset, X29, X9, SP, x(29)));
        code.asm
            .emit(stp(PairMode::Offset, X10, X30, SP, STACK_POINTER));
        if self.all {
            code.asm.emit(store(XZR, SP, PSTATE));
        }
        code.span(Ingredient::Save, None);

        // The record of the function's caller, then that of the function.
        code.asm
            .emit(stp(PairMode::Offset, X29, X9, SP, SAVED + 16));
        code.asm.emit(add_imm(Size::X, X29, SP, SAVED + 16));
        code.asm.emit(stp(PairMode::Offset, X29, X30, SP, SAVED));
        code.asm.emit(add_imm(Size::X, X29, SP, SAVED));
        let before = code.asm.len();
        code.span(Ingredient::Save, None);

        code.asm
            .emit(sub_imm(Size::X, X0, X30, crate::Site::BYTES as i64));
        code.asm.emit(mov(Size::X, X1, X9));
        match self.find {
            Find::Global(pointer) => {
                code.asm.mov_imm(X11, pointer);
                code.asm.emit(ldr(X2, X11, 0));
                code.asm.emit(ldr(X4, X2, OP_FUNCTION));
            }
            Find::Callsite => {
                // function-4, from function+8
                code.asm.emit(mem(Access::Ldrsw, X11, X30, -12));
                code.asm.emit(a64::ops::add(Size::X, X11, X11, X30));
                code.asm
                    .emit(ldp(PairMode::Offset, X4, X2, X11, OP_FUNCTION));
            }
        }
        code.asm.emit(mov_sp(X3, SP));
        code.span(Ingredient::Enter, None);
        code.asm.emit(blr(X4));
        code.span(Ingredient::Program, None);

        code.registers(0..=8, SP, false);
        code.asm.emit(ldr(X9, SP, PC));
        code.asm.emit(ldp(PairMode::Offset, X29, X30, SP, x(29)));
        let gone = code.asm.len();
        code.asm.emit(ldr(X17, SP, DIRECT));
        code.asm.emit(add_imm(Size::X, SP, SP, FRAME));
        code.span(Ingredient::Restore, None);
        let direct = code.asm.new_label();
        code.asm.branch(cbnz(Size::X, X17), direct);
        code.asm.emit(ret_to(X9));
        code.span(Ingredient::Return, None);

        // The trampoline finds what the site's BL would have left.
        code.asm.bind(direct);
        code.asm.emit(mov(Size::X, X10, X30));
        code.asm.emit(mov(Size::X, X30, X9));
        code.asm.emit(mov(Size::X, X9, X10));
        code.asm.emit(br(X17));
        let end = code.asm.len();
        code.span(Ingredient::Return, None);
        Listing {
            spans: code.spans,
            record: Record {
                before,
                gone: gone..end,
                again: 0..0,
            },
            frame_bytes: FRAME as u32,
        }
    }
}
