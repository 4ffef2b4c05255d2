// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console: lines out, keys in, over the machine's UART.

use crate::arch::irq;
use crate::arch::lock::{Late, RawLock, SpinLock};
use boards::Pl011;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

static UART: Late<Pl011> = Late::new();
static EARLY: SpinLock<Option<Pl011>> = SpinLock::new(None);
static LOCK: RawLock = RawLock::new();
/// A report is being printed: the lock's holder may be the one that broke.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Says where the console is.
pub(crate) fn init(uart: &'static Pl011) {
    UART.set(uart);
}

/// The same for a port found in a hurry, before there is a heap.
pub(crate) fn init_early(uart: Pl011) {
    *EARLY.lock() = Some(uart);
}

struct Port(Pl011);

impl Write for Port {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if byte == b'\n' {
                self.0.write(b'\r');
            }
            self.0.write(byte);
        }
        Ok(())
    }
}

/// Prints; lines of different cores do not mix. Always a call, so that it can be hooked.
#[inline(never)]
pub(crate) fn print(arguments: fmt::Arguments<'_>) {
    let early = *EARLY.lock();
    let Some(uart) = UART.get().copied().or(early) else {
        return;
    };
    let state = irq::disable();
    let broken = BROKEN.load(Ordering::Relaxed);
    if !broken {
        LOCK.lock();
    }
    let _ = Port(uart).write_fmt(arguments);
    if !broken {
        LOCK.unlock();
    }
    irq::restore(state);
}

/// From now on no one waits for the console's lock.
pub(crate) fn break_lock() {
    BROKEN.store(true, Ordering::Relaxed);
}

/// A key, if one was pressed.
pub(crate) fn try_read() -> Option<u8> {
    UART.get()?.try_read()
}

/// Waits until everything printed has left.
pub(crate) fn flush() {
    if let Some(uart) = UART.get() {
        uart.flush();
    }
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(format_args!("\n")) };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}
