// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generates a trampoline: the body that a site branches to.
//!
//! What is live at a compiled function's entry (AAPCS64 6.1): x0-x7 arguments, x8 the indirect result, x29, x30, and what a call
//! preserves. x9-x17 are free. A callee is an `extern "C"` function, so it may change x0-x17 and nothing else that matters:
//! x0-x8, x29 and x30 are kept here, in a frame that is the programs' context at the same time:
//!
//! ```text
//!   sp+80   x8, and eight bytes of padding
//!   sp+16   x0 .. x7        = u64 ctx[8]
//!   sp+0    x29, x30        frame record: x29 points here while programs run
//! ```
//!
//! A program is called as `extern "C" fn(ctx: *mut u64, data: u64) -> u64`; its result is not used at an entry.

use crate::ingredient::{CallerIn, Ingredient};
use crate::site;
use a64::inst::PairMode;
use a64::{AsmError, Assembler, ops, reg};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

/// Words of context: x0 to x7.
pub const CONTEXT_WORDS: usize = 8;
/// Bytes of stack that a trampoline uses itself.
pub const FRAME_BYTES: i64 = 96;
const CONTEXT: i64 = 16;
const X8: i64 = 80;

/// Something that a trampoline calls.
#[derive(Clone)]
pub struct Callee {
    /// Address of an `extern "C" fn(ctx: *mut u64, data: u64) -> u64`.
    pub address: u64,
    /// Its second argument; without one x1 is whatever it is.
    pub data: Option<u64>,
    /// What the user calls it.
    pub label: String,
    /// Lives as long as a trampoline that names this callee may be executed.
    pub keep: Arc<dyn Any + Send + Sync>,
}

/// Generated code.
pub struct Body {
    /// The instructions.
    pub words: Vec<u32>,
    /// What each is for.
    pub map: Vec<Ingredient>,
}

/// The assembler, and what the instructions are for.
struct Writer<'a> {
    assembler: Assembler<'a>,
    map: Vec<Ingredient>,
    now: Ingredient,
}

impl Writer<'_> {
    fn section(&mut self, next: Ingredient) {
        self.map.resize(self.assembler.len(), self.now);
        self.now = next;
    }
}

/// Pairs of registers and their place in the frame.
const PAIRS: [(reg::Reg, reg::Reg, i64); 4] = [
    (reg::X0, reg::X1, CONTEXT),
    (reg::X2, reg::X3, CONTEXT + 16),
    (reg::X4, reg::X5, CONTEXT + 32),
    (reg::X6, reg::X7, CONTEXT + 48),
];

/// Most words that an entry trampoline for `programs` programs takes: 4 for a 64-bit constant, and two around it.
pub fn most_words(programs: usize) -> usize {
    16 + programs * 6
}

/// The trampoline of a function's entry, to be run at `base`: calls each program in order and goes on in the function.
///
/// # Errors
/// A program or the function is out of reach of a branch from `base`.
pub fn entry(function: u64, programs: &[Callee], base: u64) -> Result<Body, AsmError> {
    let mut words = alloc::vec![0; most_words(programs.len())];
    let mut w = Writer { assembler: Assembler::new(&mut words, base), map: Vec::new(), now: Ingredient::Save };
    let a = &mut w.assembler;
    a.emit(ops::stp(PairMode::Pre, reg::X29, reg::X30, a64::SP, -FRAME_BYTES));
    a.emit(ops::mov_sp(reg::X29, a64::SP));
    for (first, second, at) in PAIRS {
        a.emit(ops::stp(PairMode::Offset, first, second, a64::SP, at));
    }
    a.emit(ops::str(reg::X8, a64::SP, X8));
    for program in programs {
        w.section(Ingredient::Enter);
        w.assembler.emit(ops::add_imm(a64::Size::X, reg::X0, a64::SP, CONTEXT));
        if let Some(data) = program.data {
            w.assembler.mov_imm_anywhere(reg::X1, data);
        }
        w.section(Ingredient::Program);
        w.assembler.bl_abs(program.address);
    }
    w.section(Ingredient::Restore);
    let a = &mut w.assembler;
    a.emit(ops::ldr(reg::X8, a64::SP, X8));
    for (first, second, at) in PAIRS {
        a.emit(ops::ldp(PairMode::Offset, first, second, a64::SP, at));
    }
    a.emit(ops::ldp(PairMode::Post, reg::X29, reg::X30, a64::SP, FRAME_BYTES));
    w.section(Ingredient::Return);
    w.assembler.b_abs(function.wrapping_add(site::BEHIND));
    w.section(Ingredient::Return);
    let Writer { assembler, map, .. } = w;
    let length = assembler.finish()?;
    words.truncate(length);
    Ok(Body { words, map })
}

/// Where the caller's return address is when instruction `index` of an entry trampoline is about to be executed.
pub fn caller_at(map: &[Ingredient], index: usize) -> CallerIn {
    match map.get(index) {
        // the STP has stored the record, but x29 points to it only behind the MOV
        Some(Ingredient::Save) if index < 2 => CallerIn::LinkRegister,
        Some(Ingredient::Return) | None => CallerIn::LinkRegister,
        Some(_) => CallerIn::FrameRecord,
    }
}
