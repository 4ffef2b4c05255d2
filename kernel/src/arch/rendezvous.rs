// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rendezvous: all other cores are held while one changes what none may be executing.
//!
//! For instructions that the architecture does not allow to be replaced while a core may execute them (see `code.rs`). Each
//! other core takes an IPI and waits in [`hold`] with all of PSTATE.DAIF masked, so that not even an NMI runs what is
//! being changed, and executes an ISB before it goes on: a context synchronisation event, so no core needs `sync_cores`
//! afterwards.
//!
//! Where the others may be when they are asked. In an NMI handler or with interrupts masked: they come when that is over. Idle or
//! parked: the IPI ends their WFI. Waiting for another core (`sync_cores`, the beginning of a park, a rendezvous of their
//! own): they wait with interrupts on, so they come. Holding a spin lock: not when they come, for it masks
//! interrupts; so what runs in the rendezvous may take one.
//!
//! How long: until the last has come, which is as long as interrupts are ever masked, and then as long as the function takes. After
//! [`LIMIT_NS`] without one of them all are let go and the function is not called.

use super::smp::{self, Ipi};
use super::{barrier, cpu, irq, timer};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How long the cores have to come, in nanoseconds.
pub(crate) const LIMIT_NS: u64 = 10_000_000_000;

/// Someone holds the others, or is about to.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Cores that come are to wait.
static HOLD: AtomicBool = AtomicBool::new(false);
/// Cores that wait, a bit each.
static HELD: AtomicU64 = AtomicU64::new(0);

/// A core did not come to the rendezvous; nothing was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Absent {
    /// Its index.
    pub core: usize,
}

impl core::fmt::Display for Absent {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "core {} did not come to the rendezvous within {} ms: it has masked its interrupts for too long; nothing was changed, try again",
            self.core,
            LIMIT_NS / 1_000_000
        )
    }
}

/// Runs `f` while every other core is held, with everything masked on this one. Interrupts must be on; several may call this at
/// a time, one after the other gets its turn. `f` must not wait for another core.
///
/// # Errors
/// A core did not come in time; `f` was not called.
pub(crate) fn stop_machine<R>(f: impl FnOnce() -> R) -> Result<R, Absent> {
    debug_assert!(!irq::disabled());
    // Masked from the moment it is this core's turn: preempted then, or parked, it would keep all others waiting.
    let state = loop {
        let state = irq::disable();
        if !TAKEN.swap(true, Ordering::Acquire) {
            break state;
        }
        irq::restore(state); // the other one's IPI comes here
        barrier::wfe();
    };
    let own = cpu::index();
    HOLD.store(true, Ordering::Release);
    let mut others = 0u64;
    for core in cpu::online().filter(|&c| c != own) {
        others |= 1 << core;
        smp::send(core, Ipi::Stop);
    }
    let deadline = timer::now_ns() + LIMIT_NS;
    let absent = || others & !HELD.load(Ordering::Acquire);
    while absent() != 0 && timer::now_ns() < deadline {
        barrier::wfe();
    }
    let result = match absent() {
        0 => {
            let daif = irq::daif();
            irq::mask_all();
            let result = f();
            barrier::isb();
            irq::set_daif(daif);
            Ok(result)
        }
        absent => Err(Absent {
            core: absent.trailing_zeros() as usize,
        }),
    };
    HOLD.store(false, Ordering::Release);
    barrier::dsb_ishst();
    barrier::sev();
    // Nothing keeps them: when the next one begins, none must still be counted as held.
    while HELD.load(Ordering::Acquire) != 0 {
        barrier::wfe();
    }
    TAKEN.store(false, Ordering::Release);
    barrier::dsb_ishst();
    barrier::sev();
    irq::restore(state);
    result
}

/// [`Ipi::Stop`] on a core that was asked: waits. One that comes too late finds nothing to wait for.
///
/// Notrace (linker/notrace.roots), and it calls nothing: what is changed meanwhile is not what this core executes.
#[inline(never)]
pub(super) fn hold() {
    if !HOLD.load(Ordering::Acquire) {
        return;
    }
    let daif = irq::daif();
    irq::mask_all();
    let me = 1 << cpu::index();
    HELD.fetch_or(me, Ordering::AcqRel);
    barrier::dsb_ishst();
    barrier::sev();
    while HOLD.load(Ordering::Acquire) {
        barrier::wfe();
    }
    barrier::isb();
    HELD.fetch_and(!me, Ordering::AcqRel);
    barrier::dsb_ishst();
    barrier::sev();
    irq::set_daif(daif);
}
