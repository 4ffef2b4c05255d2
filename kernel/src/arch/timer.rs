// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generic timer: time since power-on and the tick (Arm ARM D12). The virtual timer is there at EL1 on every board.

use super::{mrs, msr};
use core::sync::atomic::{AtomicU64, Ordering};

/// Ticks a second.
pub(crate) const HZ: u64 = 1000;

/// Nanoseconds per count, as a 32.32 fixed-point number.
static SCALE: AtomicU64 = AtomicU64::new(0);

/// Counts a second.
pub(crate) fn frequency() -> u64 {
    mrs!("cntfrq_el0")
}

/// Takes the frequency. An error names what is wrong with it.
pub(crate) fn init() -> Result<(), &'static str> {
    let frequency = frequency();
    if !(1_000_000..=4_000_000_000).contains(&frequency) {
        return Err("CNTFRQ_EL0 holds no plausible frequency: the firmware has to set it");
    }
    SCALE.store(
        ((1_000_000_000u128 << 32) / u128::from(frequency)) as u64,
        Ordering::Relaxed,
    );
    Ok(())
}

/// Counts since power-on. No ISB before it: it may be a few instructions early, never wrong.
#[inline(always)]
pub(crate) fn now() -> u64 {
    mrs!("cntvct_el0")
}

/// 2^32 times the nanoseconds of one count.
pub(crate) fn scale() -> u64 {
    SCALE.load(Ordering::Relaxed)
}

/// Nanoseconds since power-on.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    ((u128::from(now()) * u128::from(SCALE.load(Ordering::Relaxed))) >> 32) as u64
}

/// Starts this core's tick.
pub(crate) fn start_tick() {
    msr!("cntv_cval_el0", now() + frequency() / HZ);
    msr!("cntv_ctl_el0", 1); // enabled, not masked
}

/// Stops this core's tick.
pub(crate) fn stop_tick() {
    msr!("cntv_ctl_el0", 0);
}

/// The tick's interrupt came: sets the next one, which also takes the (level) interrupt back.
pub(crate) fn next_tick() {
    start_tick();
    super::barrier::isb();
}

/// Makes the counter wake this core's WFE about every 0.1 to 1 ms, so that a wait with a deadline sees the deadline
/// (CNTKCTL_EL1.EVNTEN; an event each time bit EVNTI of the counter rises).
pub(crate) fn enable_event_stream() {
    let bit = (frequency() / 10_000).max(2).ilog2().min(15);
    msr!("cntkctl_el1", u64::from(bit) << 4 | 1 << 2);
}
