// SPDX-License-Identifier: MIT OR Apache-2.0
//! No run of a program allocates or frees, by any engine. One test, alone in its binary: the allocator counts.
mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{Arc, atomic::AtomicU64},
};

use bpf_vm::{
    interp::{FaultKind, Interpreter},
    map::{HeapMemory, TailTarget, UpdateFlags},
    suite,
};
use support::{BUDGET, Buffer};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: each method is the system allocator's; counting touches a thread's cell that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls of the allocator during something.
fn calls<T>(of: impl FnOnce() -> T) -> (T, u64) {
    let before = CALLS.get();
    let value = of();
    (value, CALLS.get() - before)
}

#[test]
fn runs_do_not_allocate() {
    let (_, counted) = calls(|| drop(Box::new(1)));
    assert_eq!(counted, 2, "the allocator counts");
    let maps = suite::maps(&HeapMemory::with_limit(1 << 20)).unwrap();
    let programs = &maps[suite::PROGRAMS];
    for (name, text) in suite::TESTS.iter().chain(suite::BENCHES) {
        for case in suite::cases(text).unwrap() {
            let program = Arc::new(case.program(&maps).unwrap());
            for map in &maps[..suite::PROGRAMS] {
                for key in 0..3_u32 {
                    let zero = vec![0; map.value_size()];
                    map.update(&key.to_le_bytes(), &zero, UpdateFlags::Any)
                        .unwrap();
                }
            }
            let target = TailTarget {
                program: program.clone(),
                entry: AtomicU64::new(0),
                keep: None,
            };
            drop(programs.set_program(0, Some(Arc::new(target))));
            let memory = Buffer::new(&case.memory);
            let fresh = Buffer::new(&case.memory);
            let (arguments, regions) = (memory.arguments(), [memory.region()]);
            let interpreter = Interpreter::new(program.clone());
            // To its end, then to a fault after each number of instructions up to some.
            for budget in [BUDGET].into_iter().chain(0..8) {
                memory.set(&fresh);
                let (outcome, counted) = calls(|| interpreter.run(&arguments, &regions, budget));
                assert_eq!(counted, 0, "{name}: {}: {outcome:?}", case.name);
                match outcome {
                    Ok(_) => {}
                    Err(fault) => {
                        assert_eq!(fault.kind, FaultKind::Budget(budget), "{}", case.name)
                    }
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                let pages = support::native::Pages::new(1 << 16);
                let code = support::compile(&program, pages.address(), support::VARIANTS[0]);
                pages.load(&code);
                let target = TailTarget {
                    program: program.clone(),
                    entry: AtomicU64::new(code.base + u64::from(code.tail_entry)),
                    keep: None,
                };
                drop(programs.set_program(0, Some(Arc::new(target))));
                memory.set(&fresh);
                // SAFETY: the interpreter has just run it with the same memory, and checked each access.
                let (_, counted) = calls(|| unsafe { pages.run(arguments) });
                assert_eq!(counted, 0, "{name}: {}, compiled", case.name);
            }
            drop(programs.set_program(0, None));
        }
    }
}
