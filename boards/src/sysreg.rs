// SPDX-License-Identifier: MIT OR Apache-2.0
//! System registers, barriers and SEV, each one instruction; on a host, a register file for tests.
#![cfg_attr(
    target_arch = "aarch64",
    expect(unsafe_code, reason = "system registers are reached by assembly")
)]

/// Defines a function a register and direction. The encodings are those of IHI 0069, 12.2: an assembler without GICv3 does
/// not know the names. `$slot` is the register's place in a host's register file.
macro_rules! registers {
    ($($(#[$doc:meta])* $direction:ident $name:ident = $register:literal, $slot:literal;)*) => {
        $(registers!(@$direction $(#[$doc])* $name $register $slot);)*
    };
    (@read $(#[$doc:meta])* $name:ident $register:literal $slot:literal) => {
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name() -> u64 {
            #[cfg(target_arch = "aarch64")]
            {
                let value;
                // SAFETY: the driver that reads it was chosen for a machine that has it. Reading changes at most the
                // state of the interrupt controller, which that driver keeps, and no memory.
                unsafe {
                    core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack, preserves_flags));
                }
                value
            }
            #[cfg(not(target_arch = "aarch64"))]
            FILE[$slot].load(core::sync::atomic::Ordering::SeqCst)
        }
    };
    (@write $(#[$doc:meta])* $name:ident $register:literal $slot:literal) => {
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name(value: u64) {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the driver that writes it was chosen for a machine that has it. What it changes is which
            // interrupts come, not memory; one that comes is taken only where PSTATE.DAIF is open.
            unsafe {
                core::arch::asm!(concat!("msr ", $register, ", {}"), in(reg) value, options(nostack, preserves_flags));
            }
            #[cfg(not(target_arch = "aarch64"))]
            FILE[$slot].store(value, core::sync::atomic::Ordering::SeqCst);
        }
    };
}

registers! {
    /// MPIDR_EL1: affinity of this core.
    read read_mpidr = "mpidr_el1", 0;
    /// ICC_IAR1_EL1: acknowledges a group 1 interrupt.
    read read_iar1 = "s3_0_c12_c12_0", 1;
    /// ICC_EOIR1_EL1: ends a group 1 interrupt.
    write write_eoir1 = "s3_0_c12_c12_1", 2;
    /// ICC_BPR1_EL1: binary point of group 1.
    write write_bpr1 = "s3_0_c12_c12_3", 3;
    /// ICC_CTLR_EL1: control.
    read read_ctlr = "s3_0_c12_c12_4", 4;
    /// ICC_CTLR_EL1: control.
    write write_ctlr = "s3_0_c12_c12_4", 4;
    /// ICC_SRE_EL1: whether there are system registers.
    read read_sre = "s3_0_c12_c12_5", 5;
    /// ICC_SRE_EL1: whether there are system registers.
    write write_sre = "s3_0_c12_c12_5", 5;
    /// ICC_IGRPEN1_EL1: enables group 1.
    write write_igrpen1 = "s3_0_c12_c12_7", 6;
    /// ICC_PMR_EL1: priority mask.
    write write_pmr = "s3_0_c4_c6_0", 7;
    /// ICC_SGI1R_EL1: generates a software-generated interrupt of group 1.
    write write_sgi1r = "s3_0_c12_c11_5", 8;
}

/// The register file of a host.
#[cfg(not(target_arch = "aarch64"))]
static FILE: [core::sync::atomic::AtomicU64; 9] =
    [const { core::sync::atomic::AtomicU64::new(0) }; 9];

/// A register of the host's file, for a test, and the file's lock, which keeps the other tests out.
#[cfg(all(test, not(target_arch = "aarch64")))]
pub(crate) mod file {
    use core::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static LOCK: Mutex<()> = Mutex::new(());

    /// Clears the file and locks it for as long as the guard lives.
    pub(crate) fn lock() -> MutexGuard<'static, ()> {
        let guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let clear = |register: &AtomicU64| register.store(0, Ordering::SeqCst);
        super::FILE.iter().for_each(clear);
        guard
    }

    /// Sets a register by its slot.
    pub(crate) fn set(slot: usize, value: u64) {
        super::FILE[slot].store(value, Ordering::SeqCst);
    }

    /// Reads a register by its slot.
    pub(crate) fn get(slot: usize) -> u64 {
        super::FILE[slot].load(Ordering::SeqCst)
    }
}

/// Defines a function an instruction without operands; on a host, nothing.
macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => { $(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name() {
            #[cfg(target_arch = "aarch64")]
            // SAFETY: a barrier or hint; it changes no register and no memory. Not `nomem`, so that the compiler moves no
            // access across it.
            unsafe {
                core::arch::asm!($instruction, options(nostack, preserves_flags));
            }
        }
    )* };
}

instructions! {
    /// DSB SY: everything before it is complete.
    dsb_sy = "dsb sy";
    /// DSB ISHST: every store before it is visible to the other cores.
    dsb_ishst = "dsb ishst";
    /// ISB: what system register writes before it change holds for what follows.
    isb = "isb";
    /// SEV: wakes every core out of WFE.
    sev = "sev";
}
