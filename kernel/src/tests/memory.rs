// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory: permissions, guards, allocators.

use super::{Outcome, Test, failed};
use crate::check;
use crate::hook::{self, HookId, Native, Point};
use crate::mm::layout::{IMAGE, LINEAR, NEAR, PAGE, POOL, POOL_SIZE};
use crate::mm::near::NearMemory;
use crate::mm::stack::Stack;
use crate::mm::{self, frames, heap, table};
use alloc::vec::Vec;
use trampoline::Kind;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "memory.nothing_is_writable_and_executable",
        seconds: 30,
        run: wx,
    },
    Test {
        name: "memory.image_and_pool_are_read_only_in_the_linear_map",
        seconds: 30,
        run: aliases,
    },
    Test {
        name: "memory.pool_is_within_branch_reach",
        seconds: 10,
        run: reach,
    },
    Test {
        name: "memory.stacks_have_guards",
        seconds: 10,
        run: guards,
    },
    Test {
        name: "memory.near_memory_is_unmapped_when_dropped",
        seconds: 10,
        run: near,
    },
    Test {
        name: "memory.frames_come_back",
        seconds: 30,
        run: frames_return,
    },
    Test {
        name: "memory.image_holds_types",
        seconds: 10,
        run: types,
    },
    Test {
        name: "memory.heap_comes_back",
        seconds: 30,
        run: heap_returns,
    },
    Test {
        name: "memory.small_blocks_that_are_free_become_a_large_one",
        seconds: 30,
        run: heap_joins,
    },
];

/// The BTF behind the image: header (`linux/btf.h`: magic, version, lengths) and where it lies.
fn types() -> Outcome {
    let Some(btf) = crate::symbols::btf() else {
        return Err(super::Failure::Failed("the image has no types".into()));
    };
    let word = |at: usize| {
        let bytes = btf.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |word| u32::from_le_bytes(*word) as usize)
    };
    check!(word(0) == 0x1_eb9f, "they start with {:#x}", word(0));
    check!(
        word(4) + word(16) + word(20) == btf.len() && word(12) != 0,
        "{} bytes, types at {} for {}, names at {} for {}",
        btf.len(),
        word(8),
        word(12),
        word(16),
        word(20)
    );
    let address = btf.as_ptr() as usize;
    check!(address.is_multiple_of(8), "they lie at {address:#x}");
    Ok(())
}

fn wx() -> Outcome {
    let mut bad = 0;
    let mut executable = 0;
    table::for_each_leaf(|_, bytes, write, execute| {
        bad += usize::from(write && execute);
        executable += if execute { bytes } else { 0 };
    });
    check!(bad == 0, "{bad} mappings are writable and executable");
    let (text_end, _, _) = mm::image_parts();
    let expected = text_end - IMAGE + POOL_SIZE;
    check!(
        executable == expected,
        "{executable:#x} bytes are executable; text and pool are {expected:#x}"
    );
    Ok(())
}

fn aliases() -> Outcome {
    let (_, rodata_end, _) = mm::image_parts();
    for va in (IMAGE..rodata_end)
        .chain(POOL..POOL + POOL_SIZE)
        .step_by(PAGE)
    {
        let pa = table::translate(va).map(|t| t.pa);
        check!(pa.is_some(), "{va:#x} is not mapped");
        let Some(alias) = pa.and_then(|pa| table::translate(LINEAR + pa as usize)) else {
            continue; // not mapped at all is as good
        };
        check!(!alias.write, "{va:#x} is writable through the linear map");
        check!(
            !alias.execute,
            "{va:#x} is executable through the linear map"
        );
    }
    Ok(())
}

fn reach() -> Outcome {
    let (text_end, _, _) = mm::image_parts();
    let farthest = (POOL + POOL_SIZE - IMAGE).max(text_end - IMAGE);
    check!(
        farthest < 128 << 20,
        "image and pool span {farthest:#x} bytes"
    );
    check!(NEAR - POOL < 4 << 30, "map values are out of ADRP's reach");
    Ok(())
}

fn guards() -> Outcome {
    let stack = Stack::new();
    check!(stack.is_some(), "no stack");
    let Some(stack) = stack else { return Ok(()) };
    let bottom = stack.bottom();
    check!(
        table::translate(bottom).is_some_and(|t| t.write && !t.execute),
        "the stack is not RW-NX"
    );
    check!(
        table::translate(stack.top() - 8).is_some(),
        "the top is not mapped"
    );
    for below in [8, PAGE, 4 * PAGE, 8 * PAGE] {
        check!(
            table::translate(bottom - below).is_none(),
            "the guard {below:#x} below the stack is mapped"
        );
    }
    check!(stack.high_water() == 0, "a new stack is not painted");
    drop(stack);
    check!(
        table::translate(bottom).is_none(),
        "a dropped stack is still mapped"
    );
    Ok(())
}

fn near() -> Outcome {
    let memory = NearMemory::new(3 * PAGE + 1);
    let Some(memory) = memory else {
        check!(false, "no near memory");
        return Ok(());
    };
    let start = memory.start();
    check!(
        memory.bytes() == 4 * PAGE,
        "{} bytes for 3 pages and 1",
        memory.bytes()
    );
    check!(
        start.abs_diff(POOL) < 4 << 30,
        "{start:#x} is not near the pool"
    );
    check!(
        table::translate(start + 4 * PAGE).is_none(),
        "no gap behind it"
    );
    drop(memory);
    check!(table::translate(start).is_none(), "still mapped");
    check!(NearMemory::new(1 << 40).is_none(), "a terabyte was granted");
    Ok(())
}

fn frames_return() -> Outcome {
    let (_, before) = frames::usage();
    let taken: Vec<_> = (0..64)
        .filter_map(|i| frames::allocate(1 << (i % 4)).map(|pa| (pa, 1 << (i % 4))))
        .collect();
    check!(taken.len() == 64, "only {} of 64 allocations", taken.len());
    let mut sorted = taken.clone();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if let [(a, n), (b, _)] = pair {
            check!(
                a + (n * PAGE) as u64 <= *b,
                "frames at {a:#x} and {b:#x} overlap"
            );
        }
    }
    for (pa, count) in taken {
        frames::free(pa, count);
    }
    let (_, after) = frames::usage();
    check!(before == after, "{before} frames were free, now {after}");
    Ok(())
}

fn heap_returns() -> Outcome {
    let (_, before) = heap::usage();
    let mut blocks = Vec::new();
    for i in 1..200usize {
        blocks.push(alloc::vec![i as u8; i * 7]);
    }
    for (i, block) in (1..).zip(&blocks) {
        check!(
            block.iter().all(|&b| b == i as u8),
            "block {i} was overwritten"
        );
    }
    drop(blocks);
    let (_, after) = heap::usage();
    check!(before == after, "{before} bytes were free, now {after}");
    Ok(())
}

/// A block of so many bytes, if the heap has one.
fn block(bytes: usize) -> Option<Vec<u8>> {
    let mut block = Vec::new();
    block.try_reserve_exact(bytes).ok()?;
    Some(block)
}

/// Bytes of the largest block that the heap has, less a page at most.
fn largest() -> usize {
    let (mut there, mut not_there) = (0, heap::usage().0);
    while not_there - there > PAGE {
        let middle = there.midpoint(not_there);
        match block(middle) {
            Some(_) => there = middle,
            None => not_there = middle,
        }
    }
    there
}

fn heap_joins() -> Outcome {
    let name = "<springboard::mm::heap::Blocks>::allocate";
    let function = hook::resolve(name).map_err(|e| failed(&e))?;
    let tries = hook::attach_native(&function, Native::Count, Point::of(Kind::Fentry))
        .map_err(|e| failed(&e))?;
    let outcome = joins(tries);
    hook::detach(tries).map_err(|e| failed(&e))?;
    outcome
}

/// `tries` counts how often a block is looked for, each time under the lock.
fn joins(tries: HookId) -> Outcome {
    const ROOM: usize = 1 << 20;
    const SMALL: usize = 64;
    /// What gives back half of a large block; the other half is for holes beside it.
    const TRIES: u64 = (ROOM / SMALL / heap::AT_ONCE / 2) as u64;
    let (_, whole) = heap::usage();
    let mut small = Vec::with_capacity(8 * ROOM / SMALL);
    let there = largest();
    let held = there.checked_sub(3 * ROOM).and_then(block);
    check!(held.is_some(), "the largest block has {there} bytes");
    // Small ones come from it as well, until there is no room for a large one beside the held one.
    while let Some(room) = block(ROOM) {
        drop(room);
        for _ in 0..256 {
            small.push(block(SMALL));
        }
        check!(small.len() < small.capacity(), "small blocks take no room");
    }
    // What is left of it is held, too: a large one is made of nothing but small ones.
    let rest = block(largest());
    small.clear();
    let before = hook::hits(tries);
    let large = block(ROOM).is_some();
    let after = hook::hits(tries);
    check!(large, "free small blocks are in the way of a large one");
    let took = after.zip(before).map(|(after, before)| after - before);
    check!(
        took.is_some_and(|took| took >= TRIES),
        "all were given back in {took:?} tries, more than {} at a time",
        heap::AT_ONCE
    );
    drop((small, held, rest));
    let (_, after) = heap::usage();
    check!(whole == after, "{whole} bytes were free, now {after}");
    Ok(())
}
