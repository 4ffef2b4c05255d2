// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys from the console: waited for, or looked at while a command works.

use crate::{console, sched};
use alloc::collections::VecDeque;

/// Time between two looks at an idle console, nanoseconds.
const PAUSE: u64 = 1_000_000;
/// Most keys that are kept for later.
const KEPT: usize = 256;

/// The keys of the console.
pub(super) struct Keys {
    /// Typed while a command worked.
    early: VecDeque<u8>,
}

impl Keys {
    /// No key so far.
    pub(super) const fn new() -> Keys {
        Keys {
            early: VecDeque::new(),
        }
    }

    /// The next key; sleeps until there is one.
    pub(super) fn next(&mut self) -> u8 {
        loop {
            if let Some(key) = self.early.pop_front().or_else(console::try_read) {
                return key;
            }
            sched::sleep_ns(PAUSE);
        }
    }

    /// Whether ^C was typed, for a command that takes long; other keys are kept, those before a ^C are dropped.
    pub(super) fn interrupted(&mut self) -> bool {
        let mut interrupted = false;
        while let Some(key) = console::try_read() {
            match key {
                0x03 => {
                    self.early.clear();
                    interrupted = true;
                }
                _ if self.early.len() < KEPT => self.early.push_back(key),
                _ => {}
            }
        }
        interrupted
    }
}
