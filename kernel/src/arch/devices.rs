// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the device tree's regions to drivers: the only place that names registers to them.

use super::{irq, smp};
use crate::mm;
use alloc::boxed::Box;
use boards::irq::{Controller, IrqError};
use boards::{Machine, Mmio, Region};

/// The mapped registers of a region that `Machine::mmio` names (or `mm::early_device` mapped).
pub(crate) fn mmio(region: Region) -> Mmio {
    // SAFETY: mm::init mapped every region of `Machine::mmio` as Device memory in the linear map, which is never unmapped,
    // and no reference points there. A driver's region comes from a node with that driver's `compatible`.
    unsafe { Mmio::new(mm::linear(region.start), region.size as usize) }
}

/// Finds the interrupt controller and sets it up for the boot core; normal interrupts are masked afterwards.
pub(crate) fn init_interrupts(machine: &Machine<'_>) -> Result<(), IrqError> {
    let controller = Controller::new(&machine.interrupts, machine.timer, &machine.cpus, mmio)?;
    let controller: &'static Controller = Box::leak(Box::new(controller));
    let driver = controller.driver();
    driver.init()?;
    driver.init_core(0)?;
    irq::init(driver.masking());
    smp::set_controller(Box::leak(Box::new(smp::Controller(driver))));
    Ok(())
}

/// Stores a core's entry address where it polls for it, caches off: cleaned to the point of coherency (Arm ARM D7.5.9).
pub(crate) fn release(at: u64, entry: u64) {
    let va = mm::linear(at);
    if mm::table::translate(va).is_none_or(|t| !t.write) || !at.is_multiple_of(8) {
        crate::println!(
            "springboard: the spin table's release address {at:#x} is not in memory; the core stays off"
        );
        return;
    }
    // SAFETY: aligned and just seen to be mapped for writing; mm::init keeps the spin table's page out of use.
    unsafe { (va as *mut u64).write_volatile(entry) }
    // SAFETY: cleaning a line of mapped memory changes no contents.
    unsafe { core::arch::asm!("dc cvac, {}", in(reg) va, options(nostack)) }
}
