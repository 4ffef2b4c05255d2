// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rule for changing one word of code while other cores may be executing it.
//!
//! Arm ARM B2.2.5, "Concurrent modification and execution of instructions": if both the old and the
//! new word are among B, BL, BRK, HVC, ISB, NOP, SMC and SVC, a core that executes the word meanwhile
//! executes the one or the other. For every other pair the outcome is CONSTRAINED UNPREDICTABLE.

use crate::platform::{Patch, PatchError, Platform, PlatformError};
use a64::Inst;

/// The words that may be replaced, and may replace, while cores execute them: mask and value (Arm ARM C4.1.65 to C4.1.89).
const PATCHABLE: [(u32, u32); 7] = [
    (0x7c00_0000, 0x1400_0000), // B, BL
    (0xffff_ffff, Inst::NOP.encode()),
    (0xffff_f0ff, 0xd503_30df), // ISB
    (0xffe0_001f, 0xd400_0001), // SVC
    (0xffe0_001f, 0xd400_0002), // HVC
    (0xffe0_001f, 0xd400_0003), // SMC
    (0xffe0_001f, 0xd420_0000), // BRK
];

/// Whether a word is one of those that may be replaced, and may replace, while cores execute them.
pub fn is_patchable(word: u32) -> bool {
    PATCHABLE.iter().any(|(mask, value)| word & mask == *value)
}

/// Replaces `old` by `new` at `at`, and returns when every core executes the new word.
///
/// The second half matters twice: whoever attached may count on the next call being seen, and a grace
/// period that starts after a detach must not meet a core that still holds the old branch.
pub(crate) fn patch(
    platform: &impl Platform,
    at: u64,
    old: u32,
    new: u32,
) -> Result<(), PlatformError> {
    if !is_patchable(old) || !is_patchable(new) {
        return Err(PlatformError::NotPatchable { at, old, new });
    }
    platform.patch(at, old, new)?;
    platform.sync_cores();
    platform.confirm(at, new);
    Ok(())
}

/// As [`patch`] of many words, all or none, with one synchronisation of the cores behind the last of them.
///
/// In between a core may execute the old word at one address and the new one at another: no word of a batch may count on another.
pub(crate) fn patch_all(platform: &impl Platform, patches: &[Patch]) -> Result<(), PatchError> {
    let rule = |patch: &Patch| is_patchable(patch.old) && is_patchable(patch.new);
    let mut numbered = patches.iter().enumerate();
    if let Some((index, &Patch { at, old, new })) = numbered.find(|(_, patch)| !rule(patch)) {
        return Err(PatchError {
            index,
            error: PlatformError::NotPatchable { at, old, new },
            undone: true,
        });
    }
    let done = platform.patch_all(patches);
    // Also after an error: what was undone again may have been executed.
    platform.sync_cores();
    for patch in patches {
        let word = if done.is_ok() { patch.new } else { patch.old };
        platform.confirm(patch.at, word);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use a64::inst::{BarrierOp, ExceptionOp};

    /// What the decoder makes of the word.
    fn by_name(word: u32) -> bool {
        match Inst::decode(word) {
            Some(
                Inst::Branch { .. }
                | Inst::Barrier {
                    op: BarrierOp::Isb, ..
                }
                | Inst::NOP,
            ) => true,
            Some(Inst::Exception { op, .. }) => op != ExceptionOp::Hlt,
            _ => false,
        }
    }

    /// Every word that differs from one of the table's in one bit or two, and words from all over.
    #[test]
    fn the_masks_are_what_the_decoder_says() {
        let near = PATCHABLE.iter().flat_map(|(_, value)| {
            (0..32).flat_map(move |a| (0..32).map(move |b| value ^ 1 << a ^ 1 << b))
        });
        let all_over = (0..=u16::MAX).map(|n| u32::from(n).wrapping_mul(0x9e37_79b1));
        let mut found = 0;
        for word in near.chain(all_over) {
            assert_eq!(is_patchable(word), by_name(word), "{word:#010x}");
            found += u32::from(is_patchable(word));
        }
        assert!(found > 1000, "only {found} words may be patched");
    }
}
