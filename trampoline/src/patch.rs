// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rule for changing one word of code while other cores may be executing it.
//!
//! Arm ARM B2.2.5, "Concurrent modification and execution of instructions": if both the old and the
//! new word are among B, BL, BRK, HVC, ISB, NOP, SMC and SVC, a core that executes the word meanwhile
//! executes the one or the other. For every other pair the outcome is CONSTRAINED UNPREDICTABLE.

use crate::platform::{Patch, PatchError, Platform, PlatformError};
use a64::Inst;
use a64::inst::{BarrierOp, ExceptionOp};

/// Whether a word is one of those that may be replaced, and may replace, while cores execute it.
pub fn is_patchable(word: u32) -> bool {
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
    done
}
