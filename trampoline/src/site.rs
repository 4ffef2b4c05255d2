// SPDX-License-Identifier: MIT OR Apache-2.0
//! A site: the two NOPs at a function's entry, and the words that may stand there.
//!
//! ```text
//!   function-8   word for data          (-Zpatchable-function-entry=4,2)
//!   function-4   word for data
//!   function+0   NOP    <->   b trampoline
//!   function+4   NOP          skipped while hooked: the trampoline ends in `b function+8`
//!   function+8   the function as the compiler wrote it
//! ```
//! x30 still holds the caller's return address in the trampoline, so the return stack of the branch predictor stays right.

use a64::{Assembler, ops};

/// NOP (Arm ARM C6.2, NOP).
pub const NOP: u32 = 0xd503_201f;
/// From the entry to where the function goes on behind its site.
pub const BEHIND: u64 = 8;

/// Whether a word may be replaced, and may replace another, while a core executes it.
///
/// B2.2.5 of the Arm ARM, "Concurrent modification and execution of instructions": B, BL, BRK, HVC, ISB, NOP, SMC, SVC.
/// Each core then executes either the old or the new instruction, and after a context synchronisation event the new one.
pub fn may_change_while_executed(word: u32) -> bool {
    const BRANCH: u32 = 0xfc00_0000;
    const EXCEPTION: u32 = 0xffe0_001f;
    word == NOP
        || word & 0xffff_f0ff == 0xd503_30df // ISB, any option
        || word & BRANCH == 0x1400_0000 // B
        || word & BRANCH == 0x9400_0000 // BL
        || [0xd420_0000, 0xd400_0001, 0xd400_0002, 0xd400_0003].contains(&(word & EXCEPTION)) // BRK SVC HVC SMC
}

/// The word that branches from `function` to `trampoline`, `None` when it is out of B's reach (±128 MiB).
pub fn branch(function: u64, trampoline: u64) -> Option<u32> {
    let mut word = [0];
    let mut assembler = Assembler::new(&mut word, function);
    assembler.branch_to(ops::b(), trampoline);
    assembler.finish().ok()?;
    Some(word[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_eight_instructions_may_change() {
        let may = [NOP, 0x1400_0001, 0x97ff_ffff, 0xd420_1a20, 0xd400_0001, 0xd400_0002, 0xd400_0003, 0xd503_3fdf];
        let may_not = [0xd503_203f, 0x5400_0000, 0xaa1e_03e9, 0xd65f_03c0, 0xd440_0000, 0xd503_3f9f, 0xb400_0000, 0];
        for word in may {
            assert!(may_change_while_executed(word), "{word:#010x}");
        }
        for word in may_not {
            assert!(!may_change_while_executed(word), "{word:#010x}");
        }
    }

    #[test]
    fn branches_reach_128_mib() {
        assert_eq!(branch(0x1000, 0x1004), Some(0x1400_0001));
        assert!(branch(0, (128 << 20) - 4).is_some());
        assert_eq!(branch(0, 128 << 20), None);
    }
}
