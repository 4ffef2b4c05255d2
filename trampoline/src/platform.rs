// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host kernel provides: memory for code, patching, synchronisation, freeing later.

use crate::runtime::Runtime;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use core::ops::Range;

/// Why the host could not read, write or patch code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformError {
    /// The word to be replaced is not the one that should be there; nothing was written.
    Mismatch {
        /// Address of the word.
        at: u64,
        /// What should be there.
        expected: u32,
        /// What is there.
        found: u32,
    },
    /// Not an aligned address of executable memory.
    NotCode {
        /// The address.
        at: u64,
    },
    /// The two words may not replace each other while a core executes them.
    NotPatchable {
        /// Address of the word.
        at: u64,
        /// The word to be replaced.
        old: u32,
        /// Its replacement.
        new: u32,
    },
    /// Something of the host's own, in its words.
    Host {
        /// Address that was to be written.
        at: u64,
        /// What happened and what can be done.
        why: String,
    },
}

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatch {
                at,
                expected,
                found,
            } => write!(
                f,
                "{at:#x} holds {found:#010x} (`{}`), not {expected:#010x} (`{}`): someone else changed it; nothing was written, undo that change first",
                a64::display_word(*found, *at),
                a64::display_word(*expected, *at)
            ),
            Self::NotCode { at } => {
                write!(
                    f,
                    "{at:#x} is no aligned address of code; give the address of an instruction"
                )
            }
            Self::NotPatchable { at, old, new } => write!(
                f,
                "at {at:#x}, `{}` may not become `{}` while cores run: only B, BL, BRK, HVC, ISB, NOP, SMC and SVC may; stop the other cores first",
                a64::display_word(*old, *at),
                a64::display_word(*new, *at)
            ),
            Self::Host { at, why } => write!(f, "writing code at {at:#x}: {why}"),
        }
    }
}

impl core::error::Error for PlatformError {}

/// One word of code that is to become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Address of the word.
    pub at: u64,
    /// What is there.
    pub old: u32,
    /// What is to be there.
    pub new: u32,
}

impl Patch {
    /// The way back.
    pub const fn reversed(self) -> Self {
        Self {
            old: self.new,
            new: self.old,
            ..self
        }
    }
}

/// Why many words were not patched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchError {
    /// Index of the patch that failed.
    pub index: usize,
    /// What happened.
    pub error: PlatformError,
    /// Whether every word is what it was. If not, the host could not patch back what it had patched.
    pub undone: bool,
}

/// Something that is no longer reachable, but may still be in use: to be dropped after a grace period.
pub struct Retired {
    what: Box<dyn Send>,
}

impl Retired {
    pub(crate) fn new(what: impl Send + 'static) -> Self {
        Self {
            what: Box::new(what),
        }
    }

    /// Frees it: fills the code with BRK and gives the memory back to the pool. Same as dropping it.
    pub fn free(self) {
        drop(self.what);
    }
}

impl fmt::Debug for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Retired")
    }
}

/// What has to be over before something retired may be dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grace {
    /// A tasks-RCU grace period: every task that may have been executing in the pool, or was preempted or interrupted there,
    /// has since been seen elsewhere, or given up its core of its own will.
    Tasks,
    /// A tasks-RCU grace period, and then no task's stack, saved registers or shadow stack hold an address in the range: a
    /// task may block in a sleepable program, or in a function that it called from there.
    Unreferenced(Range<u64>),
}

/// What a host kernel provides to the engine.
pub trait Platform: Send + Sync + 'static {
    /// The window of executable memory for images, by the addresses that the code runs at.
    ///
    /// It lies within 128 MiB of everything that is hooked or called: B and BL reach no further.
    /// Whatever it holds at first must trap when executed; zeroes do (UDF).
    fn pool(&self) -> Range<u64>;

    /// Writes words that no core executes, and makes them fetchable *by the address they run at*.
    ///
    /// That is, on this core: store, clean the data cache to the point of unification, invalidate
    /// the instruction cache, with the barriers between (Arm ARM B2.4.4).
    fn write_code(&self, at: u64, words: &[u32]) -> Result<(), PlatformError>;

    /// Returns after every other core has had a context synchronisation event (Arm ARM B2.4.4).
    fn sync_cores(&self);

    /// Replaces the word `old` by one aligned 32-bit store, then does the maintenance of `write_code`.
    ///
    /// Other cores may be executing the word. If it is not `old`, [`PlatformError::Mismatch`] and
    /// no store.
    fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError>;

    /// Replaces the word `old` by any other, while no core executes it: all others are held outside of it, and have a context
    /// synchronisation event before they go on (Arm ARM B2.2.5: most words may not replace each other otherwise).
    ///
    /// If it is not `old`, [`PlatformError::Mismatch`] and no store.
    fn replace_word(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError>;

    /// [`Self::patch`] of each, in any order; on an error those that were done are undone. Does not synchronise the cores.
    ///
    /// A host for which a patch is dear does those that lie side by side together.
    fn patch_all(&self, patches: &[Patch]) -> Result<(), PatchError> {
        let one = |patch: &Patch| self.patch(patch.at, patch.old, patch.new);
        for (index, patch) in patches.iter().enumerate() {
            if let Err(error) = one(patch) {
                let done = patches.iter().take(index);
                // Also behind one that cannot be undone.
                let stuck = done.filter(|done| one(&done.reversed()).is_err()).count();
                let undone = stuck == 0;
                return Err(PatchError {
                    index,
                    error,
                    undone,
                });
            }
        }
        Ok(())
    }

    /// Told when every core has been synchronised after `at` was patched to `word`. Nothing to do on a processor.
    ///
    /// An emulator may have translated the old word while it was replaced, and keep that translation: storing the word once more takes
    /// that away.
    fn confirm(&self, at: u64, word: u32) {
        let _ = (at, word);
    }

    /// The word of code at an address; `None` if there is no code.
    fn read(&self, at: u64) -> Option<u32>;

    /// What generated code knows of this host.
    fn runtime(&self) -> Runtime;

    /// The deepest stack that the image of one function may take with its programs, in bytes.
    fn stack_limit(&self) -> u32 {
        u32::MAX
    }

    /// The most of it that may stay on the stack while the function runs, in bytes: images of functions that call one another stand
    /// on one another.
    fn waiting_limit(&self) -> u32 {
        u32::MAX
    }

    /// Drops `retired` when `grace` is over; does not wait for it.
    fn defer(&self, retired: Retired, grace: Grace);
}
