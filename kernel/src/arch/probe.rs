// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reading from an address at which there may be nothing: `bpf_probe_read_kernel`, from any context.
//!
//! The copy is done by assembly (probe.s) whose loads may fault; the exception handler finds their addresses in [`FIXUPS`] and goes on
//! where the copy ends. So no lock and no walk of the page tables is needed, and what another core unmaps meanwhile is a fault
//! like any other: guard pages, holes, the lower half, addresses that are none.
//!
//! Device registers are not read, for a read may have an effect: they are mapped in the linear map only (`mm::table::map_linear`), at
//! boot, so the tables are asked for addresses in it, and for no others.

use super::trap::Frame;
use crate::mm::layout::{LINEAR, LINEAR_SIZE, PAGE};
use crate::mm::table;

unsafe extern "C" {
    fn probe_copy(to: *mut u8, from: *const u8, bytes: usize) -> usize;
    static probe_load_word: u8;
    static probe_load_byte: u8;
    static probe_bytes: u8;
    static probe_end: u8;
}

/// A load that may fault, and where to go on if it does.
struct Fixup {
    load: *const u8,
    landing: *const u8,
}

// SAFETY: addresses of code, which are only compared and printed.
unsafe impl Sync for Fixup {}

static FIXUPS: [Fixup; 2] = [
    Fixup {
        load: &raw const probe_load_word,
        landing: &raw const probe_bytes,
    },
    Fixup {
        load: &raw const probe_load_byte,
        landing: &raw const probe_end,
    },
];

/// ESR_EL1.EC: a data abort without a change of exception level.
const DATA_ABORT: u64 = 0x25;

/// Where to go on after an exception, if it is one that a probe expects.
pub(super) fn landing(frame: &Frame) -> Option<u64> {
    if frame.esr >> 26 != DATA_ABORT {
        return None;
    }
    let found = FIXUPS
        .iter()
        .find(|fixup| fixup.load.addr() as u64 == frame.elr);
    found.map(|fixup| fixup.landing.addr() as u64)
}

/// How many of the `bytes` bytes at `from` may be tried: those before a device's registers.
fn allowed(from: usize, bytes: usize) -> usize {
    let linear = LINEAR..LINEAR + LINEAR_SIZE as usize;
    let mut done = 0;
    while done < bytes {
        let at = from.wrapping_add(done);
        if linear.contains(&at) && table::translate(at).is_none_or(|t| t.device) {
            break;
        }
        done += PAGE - at % PAGE;
    }
    done.min(bytes)
}

/// Copies from any address: how many bytes at the front of `into` were copied. Any context.
pub(crate) fn read(into: &mut [u8], from: u64) -> usize {
    let from = from as usize;
    let bytes = allowed(from, into.len());
    // SAFETY: `into` holds as many bytes, and `from` may be any address: it is no device's, and if nothing is there the fault
    // ends the copy.
    unsafe { probe_copy(into.as_mut_ptr(), from as *const u8, bytes) }
}
