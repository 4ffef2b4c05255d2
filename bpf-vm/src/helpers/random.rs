// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random numbers: a generator a core, without lock, and right if it is interrupted or moved between any two instructions.
//!
//! SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014): the state is a counter that a
//! constant is added to, the number a hash of it. So a step is one atomic addition. Whoever is preempted or interrupted around
//! it has a counter value that nobody else got; whoever goes on on another core has one from a core that it left, which is as
//! good.
#![deny(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::host::host;

/// Generators; cores that have the same remainder share one, which costs time, not numbers.
const GENERATORS: usize = 64;
/// What is added: odd, so that the counter takes every value before one comes again.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A counter on a cache line of its own; 0 until it is seeded.
#[repr(align(64))]
struct Generator(AtomicU64);

static GENERATOR: [Generator; GENERATORS] = [const { Generator(AtomicU64::new(0)) }; GENERATORS];

fn hash(mut value: u64) -> u64 {
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The next number of a core.
fn next(core: u32) -> u64 {
    let index = core as usize % GENERATORS;
    let Some(Generator(counter)) = GENERATOR.get(index) else {
        return 0;
    };
    let mut count = counter.fetch_add(STEP, Relaxed);
    if count == 0 {
        // The first of all: from here on elsewhere, by the core and by the time.
        let seed = hash(host().ktime_ns() ^ (index as u64 + 1).wrapping_mul(STEP));
        count = counter
            .fetch_add(seed, Relaxed)
            .wrapping_add(seed)
            .wrapping_sub(STEP);
    }
    hash(count.wrapping_add(STEP))
}

/// `u32 bpf_get_prandom_u32(void)`: a number that is not for secrets.
#[expect(unsafe_code, reason = "the type of a helper's function")]
pub(super) unsafe extern "C" fn get_prandom_u32(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    next(host().cpu()) >> 32
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_do_not_come_again_and_every_bit_is_as_often_set_as_not() {
        const DRAWS: usize = 20_000;
        let mut seen = BTreeSet::new();
        let mut set = [0_usize; 64];
        for draw in 0..DRAWS {
            let number = next(draw as u32 % 3);
            assert!(seen.insert(number), "{number:#x} came twice");
            for (bit, count) in set.iter_mut().enumerate() {
                *count += (number >> bit & 1) as usize;
            }
        }
        // 7 standard deviations of a fair coin: sqrt(DRAWS) / 2 each.
        for (bit, count) in set.into_iter().enumerate() {
            assert!(
                count.abs_diff(DRAWS / 2) < 500,
                "bit {bit}: {count} of {DRAWS}"
            );
        }
    }

    #[test]
    fn cores_have_sequences_of_their_own() {
        let of = |core| [(); 8].map(|()| next(core));
        let (a, b) = (of(40), of(41));
        assert!(a.iter().all(|number| !b.contains(number)));
    }
}
