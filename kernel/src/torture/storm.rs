// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of functions from softirq, hardirq and NMI, on every core, in the middle of whatever runs there.

use super::ledger::{LEDGER, caller_in};
use crate::arch::{cpu, smp};
use crate::context::{self, Context, Softirq};
use crate::sched;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use fastrand::Rng;

/// How many calls were made by them; also where the next one's numbers come from.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// A handler of any of the three contexts: calls a function that the core and the count choose.
fn handler() {
    let Some(ledger) = LEDGER.get() else { return };
    let context = context::current();
    // Before the calls: an NMI may come between any two instructions.
    let number = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut random = Rng::with_seed(number);
    let function = ledger.choose(&mut random);
    let sleepy = ledger
        .entry(function)
        .is_none_or(|e| e.function.is_sleepy());
    if context != Context::Task && !sleepy {
        ledger.call(function, caller_in(cpu::index(), context), random.u64(..));
    }
}

/// Hangs the handlers in, and sends interrupts until `stop`; takes them out again. Returns how many calls they made.
pub(super) fn run(stop: &AtomicBool, mut random: Rng) -> u64 {
    let slots = [
        &context::TEST_SOFTIRQ,
        &context::TEST_HARDIRQ,
        &context::TEST_NMI,
    ];
    CALLS.store(0, Ordering::Relaxed);
    slots
        .iter()
        .for_each(|slot| slot.set(Some(&(handler as fn()))));
    let cores: heapless::Vec<usize, { cpu::MAX_CPUS }> = cpu::online().collect();
    while !stop.load(Ordering::Relaxed) {
        if let Some(&core) = random.choice(&cores) {
            match random.u8(..3) {
                0 => smp::send_nmi(core),
                1 => smp::send(core, smp::Ipi::Test),
                _ => context::raise(Softirq::Test),
            }
        }
        sched::sleep_ns(random.u64(..200_000));
    }
    slots.iter().for_each(|slot| slot.set(None));
    CALLS.load(Ordering::Relaxed)
}
