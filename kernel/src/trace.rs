// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines from hooks: written from any context without a lock, read by a task.
//!
//! A ring of slots. A writer takes a ticket, marks its slot odd, writes, and marks it even with a release; a reader takes
//! what it copied only if the mark was the same even one before and after. A writer never waits: when the reader is too
//! slow the oldest lines are overwritten, and counted. Two writers a whole ring apart in the same slot (the first
//! interrupted or preempted for 256 lines) leave a mixed line: the first finds a mark that is not its own and spoils it, and
//! the reader counts the line as lost.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering, fence};

const SLOTS: usize = 256;
const WORDS: usize = 16;
/// In a mark: the line is mixed. Higher than any mark, so that no reader waits for the slot.
const SPOILED: u64 = 1 << 63;

struct Slot {
    mark: AtomicU64,
    text: [AtomicU64; WORDS],
}

static RING: [Slot; SLOTS] = [const {
    Slot {
        mark: AtomicU64::new(0),
        text: [const { AtomicU64::new(0) }; WORDS],
    }
}; SLOTS];
static HEAD: AtomicU64 = AtomicU64::new(0);

/// A line under construction: what does not fit is cut.
struct Line {
    bytes: [u8; WORDS * 8],
    used: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for (to, &from) in self.bytes.iter_mut().skip(self.used).zip(s.as_bytes()) {
            *to = from;
            self.used += 1;
        }
        Ok(())
    }
}

/// Writes a line of at most 128 bytes. Any context; no lock, no allocation.
pub(crate) fn write(arguments: fmt::Arguments<'_>) {
    let mut line = Line {
        bytes: [0; WORDS * 8],
        used: 0,
    };
    let _ = fmt::write(&mut line, arguments);
    let ticket = HEAD.fetch_add(1, Ordering::Relaxed);
    let slot = &RING[ticket as usize % SLOTS];
    slot.mark.store(2 * ticket + 1, Ordering::Relaxed);
    // The odd mark is visible before any byte of the new text (pairs with the reader's acquire fence).
    fence(Ordering::Release);
    for (word, bytes) in slot.text.iter().zip(line.bytes.as_chunks::<8>().0) {
        word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
    }
    let (mine, done) = (2 * ticket + 1, 2 * ticket + 2);
    if slot
        .mark
        .compare_exchange(mine, done, Ordering::Release, Ordering::Relaxed)
        .is_err()
    {
        slot.mark.fetch_or(SPOILED, Ordering::Release);
    }
}

/// Reads what was written since, oldest first.
pub(crate) struct Reader {
    next: u64,
    /// Lines that were overwritten before they were read.
    pub lost: u64,
}

impl Reader {
    /// Reads from now on.
    pub(crate) fn new() -> Reader {
        Reader {
            next: HEAD.load(Ordering::Acquire),
            lost: 0,
        }
    }

    /// The next line, if there is one.
    pub(crate) fn next_line(&mut self) -> Option<heapless::String<{ WORDS * 8 }>> {
        loop {
            let head = HEAD.load(Ordering::Acquire);
            if self.next == head {
                return None;
            }
            if head - self.next > SLOTS as u64 {
                self.lost += head - self.next - SLOTS as u64;
                self.next = head - SLOTS as u64;
            }
            let slot = &RING[self.next as usize % SLOTS];
            let expected = 2 * self.next + 2;
            let before = slot.mark.load(Ordering::Acquire);
            if before < expected {
                return None; // still being written
            }
            let mut bytes = [0u8; WORDS * 8];
            for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&slot.text) {
                *to = word.load(Ordering::Relaxed).to_le_bytes();
            }
            fence(Ordering::Acquire);
            self.next += 1;
            if slot.mark.load(Ordering::Relaxed) != expected || before != expected {
                self.lost += 1;
                continue;
            }
            let text = bytes.split(|&b| b == 0).next().unwrap_or(&[]);
            let mut line = heapless::String::new();
            for c in text.utf8_chunks().flat_map(|c| c.valid().chars()) {
                let _ = line.push(c);
            }
            return Some(line);
        }
    }
}
