// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls from softirq, hardirq and NMI, one inside the other or one after the other.

use crate::arch::{cpu, smp};
use crate::context::{self, Context, Slot, Softirq};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where tests hang in, from softirq up.
const SLOTS: [&Slot; 3] = [
    &context::TEST_SOFTIRQ,
    &context::TEST_HARDIRQ,
    &context::TEST_NMI,
];

/// Runs `work` while the tests' own softirq, interrupt and NMI call `call`.
pub(super) fn calling<T>(call: &'static fn(), work: impl FnOnce() -> T) -> T {
    SLOTS.iter().for_each(|slot| slot.set(Some(call)));
    let result = work();
    SLOTS.iter().for_each(|slot| slot.set(None));
    result
}

/// Has the next higher context than this one come, on this core; which one that is.
fn rise() -> Option<Context> {
    match context::current() {
        Context::Task => {
            context::raise(Softirq::Test);
            Some(Context::Softirq)
        }
        Context::Softirq => {
            smp::send(cpu::index(), smp::Ipi::Test);
            Some(Context::Hardirq)
        }
        Context::Hardirq => {
            smp::send_nmi(cpu::index());
            Some(Context::Nmi)
        }
        Context::Nmi => None,
    }
}

/// Has all of them come, on this core, one after the other; `then` waits behind each.
pub(super) fn each(mut then: impl FnMut()) {
    context::raise(Softirq::Test);
    then();
    smp::send(cpu::index(), smp::Ipi::Test);
    then();
    smp::send_nmi(cpu::index());
    then();
}

/// Of a program that is hit: counts the hit by its context, has the hooked function called by `call` in the same context, where the
/// program is turned away, and then from the next higher one, in the middle of this hit.
pub(super) fn climb(hits: &[AtomicU64; 4], call: impl FnOnce()) {
    let hits_in = |context: Context| hits.get(context as usize);
    if let Some(hits) = hits_in(context::current()) {
        hits.fetch_add(1, Relaxed);
    }
    call();
    let before = hits.each_ref().map(|hits| hits.load(Relaxed));
    if let Some(above) = rise() {
        let before = before.get(above as usize).copied();
        wait(|| hits_in(above).map(|hits| hits.load(Relaxed)) != before);
    }
}

/// Waits for what another context does on this core; not for ever.
pub(super) fn wait(done: impl Fn() -> bool) {
    for _ in 0..1_000_000 {
        if done() {
            break;
        }
        core::hint::spin_loop();
    }
}
