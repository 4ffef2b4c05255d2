// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processor: boot, exceptions, interrupt masking, locks, context switch, cores, counters.
//!
//! One of the rooms where `unsafe` may live. What leaves it is safe to call from anywhere, from any context, unless its
//! first line says otherwise.

pub(crate) mod admit;
pub(crate) mod barrier;
pub(crate) mod breakpoint;
pub(crate) mod callee;
pub(crate) mod code;
pub(crate) mod cpu;
pub(crate) mod crash;
pub(crate) mod devices;
pub(crate) mod exit;
pub(crate) mod irq;
pub(crate) mod linux;
pub(crate) mod lock;
pub(crate) mod overflow;
pub(crate) mod pmu;
pub(crate) mod probe;
pub(crate) mod rendezvous;
pub(crate) mod smp;
pub(crate) mod stack_use;
pub(crate) mod switch;
pub(crate) mod timer;
pub(crate) mod trap;
pub(crate) mod unwind;

core::arch::global_asm!(include_str!("boot.s"), options(raw));
core::arch::global_asm!(include_str!("probe.s"), options(raw));
core::arch::global_asm!(include_str!("vectors.s"), options(raw));

/// Reads a system register by the assembler's name.
macro_rules! mrs {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading this register has no side effect, and it exists at EL1 wherever this is reached.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

/// Writes a system register by the assembler's name.
macro_rules! msr {
    ($register:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the caller's line says why the register may hold this value; memory is not accessed by it.
        unsafe { core::arch::asm!(concat!("msr ", $register, ", {}"), in(reg) value, options(nostack)) };
    }};
}

pub(crate) use {mrs, msr};

/// Main ID register: which core this is.
pub(crate) fn midr() -> u64 {
    mrs!("midr_el1")
}

/// Affinity fields of this core, as a device tree writes them.
pub(crate) fn mpidr() -> u64 {
    mrs!("mpidr_el1") & 0xff_00ff_ffff
}

/// Physical address of the upper half's first table.
pub(crate) fn ttbr1() -> u64 {
    mrs!("ttbr1_el1")
}

/// The exception level this runs at, 1 to 3.
pub(crate) fn exception_level() -> u64 {
    (mrs!("CurrentEL") >> 2) & 3
}
