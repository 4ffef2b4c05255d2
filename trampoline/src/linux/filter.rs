// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which functions an op traces: a hash of their addresses, asked on every hit that walks the list of ops.
//!
//! Buckets are chains, as ftrace's are; the hash is multiplicative (Knuth, TAOCP 6.4: 2^64 over the golden ratio). It never changes
//! once it is made, so a lookup needs no lock.

use alloc::boxed::Box;
use alloc::vec;
use core::ops::RangeInclusive;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// The end of a chain.
const END: u32 = u32::MAX;
/// Bits of a bucket's number, at least and at most.
const BITS: RangeInclusive<u32> = 1..=10;

struct Entry {
    function: u64,
    next: u32,
}

/// A set of functions.
pub struct Filter {
    shift: u32,
    heads: Box<[u32]>,
    entries: Box<[Entry]>,
}

impl Filter {
    /// The set of these addresses.
    pub fn new(functions: &[u64]) -> Self {
        let bits = (functions.len() / 2).max(1).ilog2() + 1;
        let bits = bits.clamp(*BITS.start(), *BITS.end());
        let shift = u64::BITS - bits;
        let mut heads = vec![END; 1 << bits].into_boxed_slice();
        let mut entries = vec::Vec::with_capacity(functions.len());
        for function in functions {
            if let Some(head) = heads.get_mut(bucket(*function, shift)) {
                let next = core::mem::replace(head, entries.len() as u32);
                entries.push(Entry {
                    function: *function,
                    next,
                });
            }
        }
        Self {
            shift,
            heads,
            entries: entries.into(),
        }
    }

    /// Whether the function at this address is in it. Any context: no lock.
    #[inline]
    pub fn contains(&self, function: u64) -> bool {
        let head = self.heads.get(bucket(function, self.shift));
        let mut at = head.copied().unwrap_or(END);
        while let Some(entry) = self.entries.get(at as usize) {
            if entry.function == function {
                return true;
            }
            at = entry.next;
        }
        false
    }

    /// All of them.
    pub fn functions(&self) -> impl Iterator<Item = u64> + '_ {
        self.entries.iter().map(|entry| entry.function)
    }
}

#[inline]
fn bucket(function: u64, shift: u32) -> usize {
    (function.wrapping_mul(GOLDEN) >> shift) as usize
}
