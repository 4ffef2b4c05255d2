// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host for unit tests: memory that ends, a clock that moves when it is looked at, cores by name.
#![forbid(unsafe_code)]

extern crate std;

use core::{
    cell::Cell,
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use std::{
    string::{String, ToString},
    thread_local,
};

use super::{Host, Symbol};

/// Bytes that can be probed from [`guarded`] on; nothing is before and behind them.
pub(crate) const GUARDED: usize = 128;
/// Where memory begins that is brought in when it is read: [`SLOW_BYTES`] bytes.
const SLOW: u64 = 0x5000_0000;
/// How many there are.
const SLOW_BYTES: usize = 160;
/// What the clock moves by, nanoseconds.
const TICK_NS: u64 = 1_000_000;

/// What can be probed, and a hole between that cannot.
#[repr(C, align(64))]
struct Memory {
    area: [u8; GUARDED],
    hole: [u8; 64],
    string: [u8; 12],
}

static MEMORY: Memory = {
    let mut area = [0; GUARDED];
    let mut index = 0;
    while index < GUARDED {
        area[index] = byte(index);
        index += 1;
    }
    Memory {
        area,
        hole: [0; 64],
        string: *b"hello\0world\0",
    }
};
static CLOCK: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static CORE: Cell<u32> = const { Cell::new(0) };
    static MASKED: Cell<u64> = const { Cell::new(0) };
    static PRINTED: Cell<String> = const { Cell::new(String::new()) };
}

/// The byte at an index of the area: no two the same, none 0.
pub(crate) const fn byte(index: usize) -> u8 {
    index as u8 + 1
}

/// Where the memory begins that has to be brought in.
pub(crate) fn slow() -> u64 {
    SLOW
}

/// A byte of it.
pub(crate) fn slow_byte(index: usize) -> u8 {
    index as u8 ^ 0x55
}

fn address(bytes: &'static [u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

/// Where the area begins.
pub(crate) fn guarded() -> u64 {
    address(&MEMORY.area)
}

/// The address of `hello`, with its end.
pub(crate) fn string() -> u64 {
    address(&MEMORY.string)
}

/// Runs `f` as core `core`.
pub(crate) fn on_core(core: u32, f: impl FnOnce()) {
    CORE.set(core);
    f();
    CORE.set(0);
}

/// How often interrupts are masked on this thread.
pub(crate) fn masked() -> u64 {
    MASKED.get()
}

/// The time, without moving it.
pub(crate) fn now() -> u64 {
    CLOCK.load(Relaxed)
}

/// What this thread printed since it was last asked.
pub(crate) fn printed() -> String {
    PRINTED.take()
}

struct TestHost;

impl Host for TestHost {
    fn ktime_ns(&self) -> u64 {
        CLOCK.fetch_add(TICK_NS, Relaxed)
    }

    fn cpu(&self) -> u32 {
        CORE.get()
    }

    fn current_pid_tgid(&self) -> u64 {
        7 << 32 | 8
    }

    fn current_comm(&self) -> [u8; 16] {
        *b"fifteen letters\0"
    }

    fn probe_read(&self, into: &mut [u8], from: u64) -> usize {
        for area in [&MEMORY.area[..], &MEMORY.string] {
            let start = from.wrapping_sub(address(area));
            let rest = usize::try_from(start).ok().and_then(|s| area.get(s..));
            if let Some(rest) = rest.filter(|rest| !rest.is_empty()) {
                let count = rest.len().min(into.len());
                into[..count].copy_from_slice(&rest[..count]);
                return count;
            }
        }
        0
    }

    fn copy_from_slow(&self, into: &mut [u8], from: u64) -> usize {
        let start = from.wrapping_sub(SLOW) as usize;
        let mut count = 0;
        for (index, to) in (start..SLOW_BYTES).zip(into) {
            *to = slow_byte(index);
            count += 1;
        }
        count
    }

    fn per_cpu(&self, variable: u64, cpu: u32) -> Option<u64> {
        (cpu < 4).then(|| variable + u64::from(cpu) * 0x1000)
    }

    fn symbol(&self, address: u64) -> Option<Symbol<'_>> {
        let offset = address.checked_sub(0x1000)?;
        (offset < 0x80).then_some(Symbol {
            name: "some::function",
            offset,
            size: 0x80,
        })
    }

    fn mask_interrupts(&self) -> u64 {
        MASKED.replace(MASKED.get() + 1)
    }

    fn restore_interrupts(&self, state: u64) {
        MASKED.set(state);
    }

    fn print(&self, text: fmt::Arguments<'_>) {
        PRINTED.set(PRINTED.take() + &text.to_string());
    }
}

/// Makes it the host; once or again.
pub(crate) fn register() {
    let _ = super::register(&TestHost);
}
