// SPDX-License-Identifier: MIT OR Apache-2.0
//! The context of programs that look at registers: `struct user_pt_regs` of Linux's `asm/ptrace.h` (arm64).
//!
//! ```text
//!   +0    regs[31]   x0 to x30
//!   +248  sp         at the hooked instruction
//!   +256  pc         its address
//!   +264  pstate     NZCV in bits 31 to 28; the rest as of EL1h
//! ```

/// How many words of 64 bits.
pub const WORDS: usize = 34;
/// Bytes.
pub const BYTES: i64 = 8 * WORDS as i64;
/// Offset of SP.
pub const SP: i64 = 8 * 31;
/// Offset of the PC.
pub const PC: i64 = 8 * 32;
/// Offset of PSTATE.
pub const PSTATE: i64 = 8 * 33;

/// Offset of a general-purpose register by its number, 0 to 30.
pub const fn x(number: u8) -> i64 {
    8 * number as i64
}
