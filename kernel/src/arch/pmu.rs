// SPDX-License-Identifier: MIT OR Apache-2.0
//! The counter that costs are measured with (Arm ARM D13, PMUv3).

use super::{barrier, mrs, msr};
use core::sync::atomic::{AtomicU8, Ordering};

/// What a count means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Counter {
    /// INST_RETIRED (event 0x08) under `-icount`: exact.
    Instructions,
    /// PMCCNTR_EL0: processor cycles.
    Cycles,
    /// No counter that means anything here (emulation without `-icount`).
    None,
}

impl Counter {
    /// The word of the JSON schema.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Counter::Instructions => "instructions",
            Counter::Cycles => "cycles",
            Counter::None => "none",
        }
    }
}

const INST_RETIRED: u64 = 0x08;
static CHOSEN: AtomicU8 = AtomicU8::new(2);

/// The counter in use.
pub(crate) fn counter() -> Counter {
    match CHOSEN.load(Ordering::Relaxed) {
        0 => Counter::Instructions,
        1 => Counter::Cycles,
        _ => Counter::None,
    }
}

/// Whether this core has a PMU at all (ID_AA64DFR0_EL1.PMUVer).
fn present() -> bool {
    !matches!((mrs!("id_aa64dfr0_el1") >> 8) & 0xf, 0 | 0xf)
}

/// Chooses what to count, by the command line's `counter=` word; `None` means cycles, as on hardware.
///
/// Instructions need event 0x08, which QEMU has only under `-icount`: without it the answer is an error.
pub(crate) fn choose(word: Option<&str>) -> Result<Counter, &'static str> {
    let counter = match word {
        Some("instructions") => Counter::Instructions,
        Some("none") => Counter::None,
        Some("cycles") | None => Counter::Cycles,
        Some(_) => return Err("counter= takes instructions, cycles or none"),
    };
    if counter != Counter::None && !present() {
        return Err(
            "this core has no PMU: there is nothing to count with (counter=none runs without figures)",
        );
    }
    if counter == Counter::Instructions && mrs!("pmceid0_el0") >> INST_RETIRED & 1 == 0 {
        return Err(
            "event 0x08 (INST_RETIRED) is not there: QEMU counts instructions only with -icount shift=N",
        );
    }
    CHOSEN.store(counter as u8, Ordering::Relaxed);
    Ok(counter)
}

/// Starts the chosen counter on this core.
pub(crate) fn start() {
    if counter() == Counter::None {
        return;
    }
    msr!("pmcr_el0", mrs!("pmcr_el0") | 1 | 1 << 6); // E: counters on; LC: 64-bit cycle counter
    msr!("pmevtyper0_el0", INST_RETIRED); // counts at EL1 and EL0: no filter bit set
    msr!("pmccfiltr_el0", 0);
    msr!("pmcntenset_el0", 1 | 1 << 31);
    barrier::isb();
}

/// The counter's value: counts up, 32 bits wide for instructions, 64 for cycles.
#[inline(always)]
pub(crate) fn read() -> u64 {
    match counter() {
        Counter::Instructions => {
            barrier::isb();
            mrs!("pmevcntr0_el0") & 0xffff_ffff
        }
        Counter::Cycles => {
            barrier::isb();
            mrs!("pmccntr_el0")
        }
        Counter::None => 0,
    }
}

/// `end - start` of two [`read`]s.
pub(crate) fn difference(start: u64, end: u64) -> u64 {
    match counter() {
        Counter::Instructions => end.wrapping_sub(start) & 0xffff_ffff,
        _ => end.wrapping_sub(start),
    }
}
