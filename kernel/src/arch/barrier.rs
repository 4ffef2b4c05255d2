// SPDX-License-Identifier: MIT OR Apache-2.0
//! Barriers, hints and TLB maintenance, by their names in the Arm ARM (B2.3, D8.16).

use core::arch::asm;

macro_rules! instruction {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name() {
            // SAFETY: a barrier or hint: it orders or waits, and changes no register and no memory.
            unsafe { asm!($text, options(nostack)) }
        }
    };
}

instruction!(/// Accesses before it are observed before accesses behind it.
    dmb_ish, "dmb ish");
instruction!(/// Stores before it are visible to the inner shareable domain before stores behind it.
    dsb_ishst, "dsb ishst");
instruction!(/// All accesses and maintenance before it are complete for the inner shareable domain.
    dsb_ish, "dsb ish");
instruction!(/// All accesses before it are complete for the whole system, devices included.
    dsb_sy, "dsb sy");
instruction!(/// Context synchronisation event on this core (Arm ARM glossary).
    isb, "isb");
instruction!(/// Waits for an event: another core's SEV, or a lost exclusive reservation (B2.12).
    wfe, "wfe");
instruction!(/// Lets other threads of the core, or an emulator's other cores, go on.
    yield_hint, "yield");
instruction!(/// Sends an event to all cores.
    sev, "sev");
instruction!(/// Waits for an interrupt, masked or not.
    wfi, "wfi");

/// Invalidates all cores' translations of one page, any ASID, last level included. DSB ISH has to follow.
#[inline(always)]
pub(crate) fn tlbi_va(va: usize) {
    let operand = (va as u64 >> 12) & 0xfff_ffff_ffff;
    // SAFETY: dropping cached translations changes no mapping; the tables stay what they are.
    unsafe { asm!("tlbi vaae1is, {}", in(reg) operand, options(nostack)) }
}
