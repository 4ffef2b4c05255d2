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

/// The mode bits of PSTATE: EL1 with its own stack pointer (Arm ARM C5.2.19, SPSR_EL1.M).
pub const EL1H: i64 = 0b0101;

/// Words of a context, by their place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words(u64);

impl Words {
    /// None.
    pub const NONE: Self = Self(0);
    /// All that a context of registers has.
    pub const ALL: Self = Self((1 << WORDS) - 1);

    /// Those whose bits are set; bits behind the context's last word say nothing.
    pub const fn of(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// These and those.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the word of that place is among them.
    pub const fn has(self, place: usize) -> bool {
        place < WORDS && self.0 >> place & 1 != 0
    }
}
