// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generates the image of an entry hook from its description.
//!
//! At a compiled function's entry x0-x7 may hold arguments, x8 the address of the result, x29 and
//! x30 the caller's frame; x9-x17 and NZCV are free (AAPCS64 6.1.1); x18-x28 are kept by the
//! programs themselves, as by every function. Arguments on the stack stay where they are. So:
//!
//! ```text
//!            caller's stack                       image
//!          +----------------+ <- sp at entry        stp  x29, x30, [sp, #-frame]!   save
//!          | padding to 16  |                       mov  x29, sp
//!          | x8, if live    |                       stp  x0, x1, [sp, #16] ...
//!          | x(n-1)         |                       add  x0, sp, #16                enter  \ for each
//!          | ...            |                       mov  x1, data                          | program, in
//!    ctx ->| x0             |                       bl   program                    program/ attach order
//!          | x30            |                       ldp  x0, x1, [sp, #16] ...      restore
//!     sp ->| x29            | <- x29                ldp  x29, x30, [sp], #frame
//!          +----------------+                       b    function+8                 return
//! ```
//!
//! A program is called: `extern "C" fn(ctx: *const u64, data: u64) -> u64`; the result of one at a
//! function's entry is not used. A program that is compiled into the image takes the place of the
//! enter and program parts in [`emit_entry`]; with no call, there is also nothing to save for it.

use crate::ingredient::{Ingredient, Span};
use crate::pool::Record;
use crate::site::Site;
use a64::inst::PairMode;
use a64::ops::{add_imm, ldp, ldr, mov_sp, stp, str as store};
use a64::reg::{X0, X1, X8, X29, X30};
use a64::{AsmError, Assembler, Reg, SP, Size};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

/// Which registers hold something of the caller's at the function's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgSpec {
    registers: u8,
    indirect_result: bool,
}

impl ArgSpec {
    /// Nothing is known about the function: x0-x8 are kept.
    pub const UNKNOWN: Self = Self {
        registers: 8,
        indirect_result: true,
    };

    /// The first `registers` of x0-x7 hold arguments, and x8 the result's address if it has one.
    ///
    /// `None` for more than eight: further arguments are on the stack and need no register.
    pub const fn new(registers: u8, indirect_result: bool) -> Option<Self> {
        if registers > 8 {
            return None;
        }
        Some(Self {
            registers,
            indirect_result,
        })
    }

    /// How many words of `ctx` the image stores.
    pub const fn registers(self) -> u8 {
        self.registers
    }

    /// What covers both.
    pub fn union(self, other: Self) -> Self {
        Self {
            registers: self.registers.max(other.registers),
            indirect_result: self.indirect_result || other.indirect_result,
        }
    }

    /// The registers to keep, in the order of their slots.
    fn live(self) -> impl Iterator<Item = Reg> {
        let arguments = (0..self.registers).filter_map(Reg::new);
        arguments.chain(self.indirect_result.then_some(X8))
    }

    /// Bytes of the frame: the record and a slot a register, a multiple of 16.
    fn frame(self) -> i64 {
        (RECORD + 8 * self.live().count() as i64 + 15) & !15
    }
}

/// Bytes of a frame record: x29 and x30.
const RECORD: i64 = 16;

/// A program to be called by an image.
#[derive(Clone)]
pub struct Callee {
    /// Address of an `extern "C" fn(ctx: *const u64, data: u64) -> u64`, within reach of BL.
    pub address: u64,
    /// The second argument; `None`: the program does not look at it.
    pub data: Option<u64>,
    /// Its name, for people.
    pub name: String,
    /// The deepest stack of a run, in bytes.
    pub stack_bytes: u32,
    /// What has to live as long as an image that names the address or the data.
    pub keep: Option<Arc<dyn Any + Send + Sync>>,
}

/// An entry hook to be built.
pub struct Entry<'a> {
    /// Address of the function.
    pub function: u64,
    /// What is live there.
    pub args: ArgSpec,
    /// What to call, in order.
    pub programs: &'a [Callee],
}

/// What was built.
pub struct Body {
    /// What each instruction is for.
    pub spans: Vec<Span>,
    /// Of each program, the index of the instruction that calls it.
    pub calls: Vec<usize>,
    /// Where x29 points to the image's own record.
    pub record: Record,
    /// The deepest stack: the image's frame and the deepest program's, in bytes.
    pub stack_bytes: u32,
}

impl Entry<'_> {
    /// At most so many instructions, anywhere in a pool that starts at `pool`.
    ///
    /// The assembler's error if something is out of reach from there.
    pub fn words_at_most(&self, pool: u64) -> Result<usize, AsmError> {
        let mut asm = Assembler::sizing(pool);
        emit_entry(&mut asm, self);
        // An address near the image takes one instruction, anywhere at most four.
        Ok(asm.finish()? + 3 * self.programs.len())
    }
}

/// Counts the instructions that were emitted since the last call as one span.
struct Spans {
    spans: Vec<Span>,
    done: usize,
}

impl Spans {
    fn up_to(&mut self, asm: &Assembler<'_>, ingredient: Ingredient, program: Option<usize>) {
        let len = asm.len() - self.done;
        self.done = asm.len();
        if len > 0 {
            self.spans.push(Span {
                len,
                ingredient,
                program,
            });
        }
    }
}

/// Emits the image; errors stick to the assembler.
pub fn emit_entry(asm: &mut Assembler<'_>, entry: &Entry<'_>) -> Body {
    let (args, mut spans) = (
        entry.args,
        Spans {
            spans: Vec::new(),
            done: 0,
        },
    );
    let frame = args.frame();

    asm.emit(stp(PairMode::Pre, X29, X30, SP, -frame));
    asm.emit(mov_sp(X29, SP));
    let before = asm.len() as u8;
    each_slot(args, |first, second, offset| match second {
        Some(second) => asm.emit(stp(PairMode::Offset, first, second, SP, offset)),
        None => asm.emit(store(first, SP, offset)),
    });
    spans.up_to(asm, Ingredient::Save, None);

    let mut calls = Vec::new();
    for (number, program) in entry.programs.iter().enumerate() {
        asm.emit(add_imm(Size::X, X0, SP, RECORD));
        if let Some(data) = program.data {
            asm.mov_imm(X1, data);
        }
        spans.up_to(asm, Ingredient::Enter, Some(number));
        calls.push(asm.len());
        asm.bl_abs(program.address);
        spans.up_to(asm, Ingredient::Program, Some(number));
    }

    each_slot(args, |first, second, offset| match second {
        Some(second) => asm.emit(ldp(PairMode::Offset, first, second, SP, offset)),
        None => asm.emit(ldr(first, SP, offset)),
    });
    asm.emit(ldp(PairMode::Post, X29, X30, SP, frame));
    spans.up_to(asm, Ingredient::Restore, None);
    asm.b_abs(entry.function.wrapping_add(Site::BYTES));
    spans.up_to(asm, Ingredient::Return, None);

    let deepest = entry
        .programs
        .iter()
        .map(|p| p.stack_bytes)
        .max()
        .unwrap_or(0);
    let stack_bytes = deepest.saturating_add(frame as u32);
    Body {
        spans: spans.spans,
        calls,
        record: Record { before, after: 1 },
        stack_bytes,
    }
}

/// The live registers by pairs, with the offset of the first one's slot from sp.
fn each_slot(args: ArgSpec, mut visit: impl FnMut(Reg, Option<Reg>, i64)) {
    let mut live = args.live();
    let mut offset = RECORD;
    while let Some(first) = live.next() {
        visit(first, live.next(), offset);
        offset += 16;
    }
}
