// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ending a run: the last line on the console, the emulator's exit status, power off.

use super::{barrier, irq, lock::Late};
use boards::Conduit;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

static SEMIHOSTING: AtomicBool = AtomicBool::new(false);
static PSCI: Late<Conduit> = Late::new();

/// Says that someone listens to semihosting calls; without a listener they would be an exception.
pub(crate) fn use_semihosting() {
    SEMIHOSTING.store(true, Ordering::Relaxed);
}

/// Says how to call PSCI, if the machine has it.
pub(crate) fn use_psci(conduit: &'static Conduit) {
    PSCI.set(conduit);
}

/// Ends the run: `springboard: exit N` is the last line on every board; then the emulator's exit, then PSCI SYSTEM_OFF,
/// else the core sleeps for good.
pub(crate) fn exit(code: u32) -> ! {
    crate::println!("springboard: exit {code}");
    crate::console::flush();
    if SEMIHOSTING.load(Ordering::Relaxed) {
        // Semihosting SYS_EXIT_EXTENDED (0x20) with ADP_Stopped_ApplicationExit (0x20026) and the status.
        let block: [u64; 2] = [0x2_0026, u64::from(code)];
        // SAFETY: the emulator was said to listen; it reads the block and ends the machine.
        unsafe {
            asm!("hlt #0xf000", inout("x0") 0x20u64 => _, in("x1") block.as_ptr(), options(nostack))
        }
    }
    if let Some(conduit) = PSCI.get() {
        boards::smp::system_off(Some(*conduit));
    }
    irq::mask_all();
    loop {
        barrier::wfi();
    }
}
