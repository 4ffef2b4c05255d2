// SPDX-License-Identifier: MIT OR Apache-2.0
//! The patcher: the only code that writes code.
//!
//! Text and pool are mapped read-execute. To write, a core maps the one page it needs at its own patch address, writes,
//! makes the instructions visible, and unmaps before anything else happens.
//!
//! **Visibility** (Arm ARM B2.4.4 of DDI 0487, "Synchronization and coherency issues between data and instruction
//! accesses"): store; DC CVAU to the point of unification; DSB ISH; IC IVAU; DSB ISH; ISB here; and on every other core a
//! context synchronisation event before it may execute the new instructions, which is [`super::smp::sync_cores`].
//! Maintenance is by the address the code *runs* at: the A53's instruction cache is VIPT, so an alias's index may differ.
//! CTR_EL0.IDC and .DIC say which of the two is not needed on this core.
//!
//! **Concurrent execution** (B2.2.5, "Concurrent modification and execution of instructions"): while another core may
//! be executing a word, it and its replacement must both be of B, BL, BRK, HVC, ISB, NOP, SMC, SVC; then each core
//! executes either the old or the new one. [`patch`] is one aligned 32-bit store, single-copy atomic (B2.2.1).

use super::{barrier, cpu, irq, mrs};
use crate::mm::{self, Access, layout, table};
use alloc::vec::Vec;
use core::arch::asm;
use trampoline::Patch;

/// Why code was not written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeError {
    /// Not an aligned address of executable memory.
    NotCode(usize),
    /// The word there is not the one to be replaced.
    Unexpected {
        /// Address of the word.
        at: usize,
        /// What should have been there.
        expected: u32,
        /// What is there.
        found: u32,
    },
    /// The patch mapping could not be made.
    Map(table::MapError),
}

impl core::fmt::Display for CodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            CodeError::NotCode(at) => write!(
                f,
                "{at:#x} is not an aligned address in text or in the executable pool"
            ),
            CodeError::Unexpected {
                at,
                expected,
                found,
            } => write!(
                f,
                "{at:#x} holds {found:#010x}, not {expected:#010x}: someone else changed it; nothing was written"
            ),
            CodeError::Map(e) => write!(f, "the patch mapping: {e}"),
        }
    }
}

/// Reads a word of code.
pub(crate) fn read(at: usize) -> Option<u32> {
    // The text is asked for most, and always there.
    let in_text = || (layout::IMAGE..mm::image_parts().0).contains(&at);
    if !at.is_multiple_of(4) || !(in_text() || table::translate(at)?.execute) {
        return None;
    }
    // SAFETY: aligned, and in the image's text or just seen to be mapped executable, hence readable; text and pool are never unmapped.
    Some(unsafe { (at as *const u32).read_volatile() })
}

/// Writes words that no core executes yet: pool memory before it is published. The caller then syncs all cores.
pub(crate) fn write(at: usize, words: &[u32]) -> Result<(), CodeError> {
    let mut at = at;
    let mut words = words;
    while !words.is_empty() {
        let room = (layout::PAGE - at % layout::PAGE) / 4;
        let (now, later) = words.split_at(room.min(words.len()));
        with_alias(at, now.len() * 4, |alias| {
            for (i, &word) in now.iter().enumerate() {
                store(alias + 4 * i, word);
            }
            Ok(())
        })?;
        at += now.len() * 4;
        words = later;
    }
    Ok(())
}

/// Replaces one word by one aligned 32-bit store, if it is `old`.
pub(crate) fn patch(at: usize, old: u32, new: u32) -> Result<(), CodeError> {
    with_alias(at, 4, |alias| {
        // SAFETY: `alias` is the patch mapping of an aligned word.
        let found = unsafe { (alias as *const u32).read_volatile() };
        if found != old {
            return Err(CodeError::Unexpected {
                at,
                expected: old,
                found,
            });
        }
        store(alias, new);
        // The same word again, for QEMU's parallel emulation: it drops its translations of a word *before* it stores it, and
        // a core that translates the old word in between keeps that translation for good, for IC IVAU does nothing there.
        // The second store drops it. On a processor it changes nothing: the word holds this value already.
        store(alias, new);
        Ok(())
    })
}

/// Stores a word once more that was patched before every core was synchronised; nothing if it is another one by now.
///
/// For QEMU's parallel emulation as well: a core whose translation of the old word was not finished when `patch` stored it a second time
/// has finished it when it takes the interrupt that synchronises it.
pub(crate) fn confirm(at: usize, word: u32) {
    let stored = with_alias(at, 4, |alias| {
        // SAFETY: `alias` is the patch mapping of an aligned word.
        if unsafe { (alias as *const u32).read_volatile() } == word {
            store(alias, word);
        }
        Ok(())
    });
    // The word was mapped as code a moment ago, or it could not have been patched.
    debug_assert!(stored.is_ok());
}

/// As [`patch`] of each, page by page: one mapping and one maintenance for all words of a page that come one behind the other.
///
/// # Errors
/// The index of the patch that failed, why, and whether every word is what it was.
pub(crate) fn patch_all(patches: &[Patch]) -> Result<(), (usize, CodeError, bool)> {
    let page = |patch: &Patch| patch.at as usize / layout::PAGE;
    let mut done = 0;
    for group in patches.chunk_by(|a, b| page(a) == page(b)) {
        if let Err((index, error)) = patch_page(group) {
            let back = patches.iter().take(done).map(|patch| patch.reversed());
            let mut back = back.collect::<Vec<_>>();
            back.reverse();
            // Also behind a page that cannot be undone.
            let stuck = back
                .chunk_by(|a, b| page(a) == page(b))
                .filter(|group| patch_page(group).is_err())
                .count();
            return Err((done + index, error, stuck == 0));
        }
        done += group.len();
    }
    Ok(())
}

/// All of these words, which lie in one page, or none.
fn patch_page(patches: &[Patch]) -> Result<(), (usize, CodeError)> {
    let all = || patches.iter().map(|patch| patch.at as usize);
    let (Some(first), Some(last)) = (all().min(), all().max()) else {
        return Ok(());
    };
    if let Some(index) = all().position(|at| !at.is_multiple_of(4)) {
        let at = all().nth(index).unwrap_or(first);
        return Err((index, CodeError::NotCode(at)));
    }
    let mut failed = 0;
    let written = with_alias(first, last + 4 - first, |alias| {
        for (index, patch) in patches.iter().enumerate() {
            let at = patch.at as usize;
            // SAFETY: an aligned word of the page that the patch mapping maps.
            let found = unsafe { ((alias + (at - first)) as *const u32).read_volatile() };
            if found != patch.old {
                failed = index;
                let expected = patch.old;
                return Err(CodeError::Unexpected {
                    at,
                    expected,
                    found,
                });
            }
        }
        for patch in patches {
            // Twice, as `patch` does and for its reason.
            store(alias + (patch.at as usize - first), patch.new);
            store(alias + (patch.at as usize - first), patch.new);
        }
        Ok(())
    });
    written.map_err(|error| (failed, error))
}

fn store(alias: usize, word: u32) {
    // SAFETY: `alias` lies in this core's patch mapping, aligned; volatile so that it is one store, never two halves.
    unsafe { (alias as *mut u32).write_volatile(word) }
}

/// Runs `f` with a writable address for the page of `at`, mapped on this core for just that long, and then makes visible the
/// `bytes` from `at` on that it wrote.
fn with_alias(
    at: usize,
    bytes: usize,
    f: impl FnOnce(usize) -> Result<(), CodeError>,
) -> Result<(), CodeError> {
    let target = table::translate(at)
        .filter(|t| t.execute && at.is_multiple_of(4))
        .ok_or(CodeError::NotCode(at))?;
    // Not preemptible from here: the mapping belongs to this core, and a DSB waits only for the maintenance that the same
    // core began (B2.3.9), so a task that moved between DC CVAU and DSB would have waited for nothing.
    let state = irq::disable();
    let page = layout::PATCH + cpu::index() * layout::PAGE;
    let offset = at % layout::PAGE;
    let result = match table::map_page(page, target.pa & !(layout::PAGE as u64 - 1), Access::Write)
    {
        Ok(()) => {
            let result = f(page + offset);
            table::unmap_page(page); // TLBI, inner shareable
            result
        }
        Err(e) => Err(CodeError::Map(e)),
    };
    if result.is_ok() {
        make_visible(at, bytes);
    }
    irq::restore(state);
    result
}

/// The sequence of B2.4.4 on this core, for `bytes` from the run address `start`.
fn make_visible(start: usize, bytes: usize) {
    let ctr = mrs!("ctr_el0");
    let data_line = 4usize << ((ctr >> 16) & 0xf);
    let instruction_line = 4usize << (ctr & 0xf);
    let (idc, dic) = (ctr >> 28 & 1 != 0, ctr >> 29 & 1 != 0);
    let end = start + bytes;
    if !idc {
        for line in (start & !(data_line - 1)..end).step_by(data_line) {
            // SAFETY: cleaning a line of mapped, readable memory changes no contents. By the run address: data caches
            // behave as physically indexed (D7.5.4), so the line written through the alias is the one cleaned.
            unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack)) }
        }
    }
    barrier::dsb_ish();
    if !dic {
        for line in (start & !(instruction_line - 1)..end).step_by(instruction_line) {
            // SAFETY: dropping a cached instruction line changes no contents; it is fetched again.
            unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack)) }
        }
        barrier::dsb_ish();
    }
    barrier::isb();
}
