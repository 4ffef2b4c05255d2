// SPDX-License-Identifier: MIT OR Apache-2.0
//! Masking interrupts so that a pseudo-NMI still comes.
//!
//! On a GIC normal interrupts are kept out by the priority mask and the NMI has a higher priority; on the Pi 3 they
//! are kept out by PSTATE.I and the NMI is the FIQ. Until a controller is up, PSTATE.I serves.

use super::{barrier, mrs, msr};
use boards::irq::Masking;
use core::sync::atomic::{AtomicUsize, Ordering};

/// What [`disable`] found, for [`restore`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct State(u64);

impl State {
    /// As a plain word, for those who know nothing of this kernel.
    pub(crate) fn into_word(self) -> u64 {
        self.0
    }

    /// From what [`into_word`](Self::into_word) gave.
    pub(crate) fn from_word(word: u64) -> State {
        State(word)
    }
}

const BY_DAIF: usize = 0;
const BY_ICC_PMR: usize = 1;

/// 0: PSTATE.I; 1: ICC_PMR_EL1; else the mapped address of GICC_PMR.
static MASKING: AtomicUsize = AtomicUsize::new(BY_DAIF);

const OPEN: u64 = boards::irq::PMR_OPEN as u64;
const CLOSED: u64 = boards::irq::PMR_MASKED as u64;
const DAIF_I: u64 = 1 << 7;

/// Masks normal interrupts on this core and returns what was before.
#[inline(always)]
pub(crate) fn disable() -> State {
    match MASKING.load(Ordering::Relaxed) {
        BY_DAIF => {
            let old = mrs!("daif");
            // SAFETY: masking an interrupt is always allowed; whoever calls this restores it.
            unsafe { core::arch::asm!("msr daifset, #2", options(nostack)) };
            State(old & DAIF_I)
        }
        BY_ICC_PMR => {
            let old = mrs!("S3_0_C4_C6_0");
            msr!("S3_0_C4_C6_0", CLOSED);
            // The new mask holds for what follows only after this (IHI0069 3.1 on PMR and self-synchronisation; DSB SY
            // for interrupts already on their way).
            barrier::dsb_sy();
            State(old)
        }
        address => {
            let old = gicc_pmr(address);
            set_gicc_pmr(address, CLOSED as u32);
            barrier::dsb_sy();
            State(u64::from(old))
        }
    }
}

/// Puts back what [`disable`] found.
#[inline(always)]
pub(crate) fn restore(state: State) {
    match MASKING.load(Ordering::Relaxed) {
        BY_DAIF => {
            if state.0 & DAIF_I == 0 {
                // SAFETY: interrupts were on before the `disable` that this ends.
                unsafe { core::arch::asm!("msr daifclr, #2", options(nostack)) };
            }
        }
        BY_ICC_PMR => {
            msr!("S3_0_C4_C6_0", state.0);
            barrier::dsb_sy();
        }
        address => {
            set_gicc_pmr(address, state.0 as u32);
            barrier::dsb_sy();
        }
    }
}

/// Lets normal interrupts in.
#[inline(always)]
pub(crate) fn enable() {
    restore(match MASKING.load(Ordering::Relaxed) {
        BY_DAIF => State(0),
        _ => State(OPEN),
    });
}

/// Whether normal interrupts are masked on this core.
pub(crate) fn disabled() -> bool {
    mrs!("daif") & DAIF_I != 0 || priority_masked()
}

/// Whether the priority mask keeps normal interrupts out on this core, whatever PSTATE says.
pub(crate) fn priority_masked() -> bool {
    match MASKING.load(Ordering::Relaxed) {
        BY_DAIF => false,
        // Not `!= OPEN`: with fewer priority bits than OPEN has, the register reads back lower than it was written.
        BY_ICC_PMR => mrs!("S3_0_C4_C6_0") <= CLOSED,
        address => u64::from(gicc_pmr(address)) <= CLOSED,
    }
}

/// Masks everything, the NMI included.
#[inline(always)]
pub(crate) fn mask_all() {
    // SAFETY: masking is always allowed.
    unsafe { core::arch::asm!("msr daifset, #0xf", options(nostack)) }
}

/// Opens everything in PSTATE: what the priority mask lets through comes.
#[inline(always)]
pub(crate) fn unmask_all() {
    // SAFETY: vectors are set, and the only caller is on its way out of an exception, whose frame is saved.
    unsafe { core::arch::asm!("msr daifclr, #0xf", options(nostack)) }
}

/// Lets in whatever [`disable`] does not keep out: NMI, and on a GIC also PSTATE.I.
#[inline(always)]
pub(crate) fn open_exceptions() {
    if MASKING.load(Ordering::Relaxed) == BY_DAIF {
        // SAFETY: vectors are set and a frame is saved wherever this is called; PSTATE.I stays as it is.
        unsafe { core::arch::asm!("msr daifclr, #0xd", options(nostack)) }
    } else {
        // SAFETY: as above; normal interrupts are kept out by the priority mask.
        unsafe { core::arch::asm!("msr daifclr, #0xf", options(nostack)) }
    }
}

/// Opens the priority mask without touching PSTATE: on the way out of an exception that normal code took.
pub(crate) fn open_priority() {
    if MASKING.load(Ordering::Relaxed) != BY_DAIF {
        restore(State(OPEN));
    }
}

/// All of D, A, I and F, as they are.
pub(crate) fn daif() -> u64 {
    mrs!("daif")
}

/// Sets D, A, I and F.
pub(crate) fn set_daif(value: u64) {
    // Only ever what `daif` returned.
    msr!("daif", value);
}

/// Says how this machine masks; with all exceptions masked. Afterwards normal interrupts are off on the boot core.
pub(crate) fn init(masking: Masking) {
    let mode = match masking {
        Masking::Daif => BY_DAIF,
        Masking::IccPmr => BY_ICC_PMR,
        Masking::GiccPmr(address) => address,
    };
    MASKING.store(mode, Ordering::Relaxed);
    disable();
}

/// One LDR: under a hypervisor only single-register accesses to devices can be emulated.
#[inline(always)]
fn gicc_pmr(address: usize) -> u32 {
    let value: u32;
    // SAFETY: `init` got this address from the GICv2 driver, which has it from a mapped region.
    unsafe {
        core::arch::asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack))
    };
    value
}

#[inline(always)]
fn set_gicc_pmr(address: usize, value: u32) {
    // SAFETY: as above; the register holds this core's priority mask and nothing else.
    unsafe { core::arch::asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}
