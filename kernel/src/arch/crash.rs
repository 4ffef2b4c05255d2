// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults on purpose: `crash=KIND` on the command line, so that each report can be looked at and tested.

use core::arch::asm;
use core::hint::black_box;

/// A way to go wrong: its name, and the act, which does not return if the kernel is right.
pub(crate) struct Crash {
    /// The command line's word.
    pub(crate) name: &'static str,
    act: fn(),
}

/// All of them.
pub(crate) const CRASHES: &[Crash] = &[
    Crash {
        name: "null",
        act: || access(0x10, false),
    },
    Crash {
        name: "text",
        act: || access(crate::mm::layout::IMAGE, true),
    },
    Crash {
        name: "data",
        act: execute_data,
    },
    Crash {
        name: "undefined",
        act: undefined,
    },
    Crash {
        name: "vector",
        act: vector,
    },
    Crash {
        name: "pool",
        act: pool,
    },
    Crash {
        name: "stack",
        act: || {
            black_box(deeper(black_box(1)));
        },
    },
    Crash {
        name: "panic",
        act: || panic!("on purpose"),
    },
];

/// Does it. Returns when there is no such crash, or when the kernel let it pass. A function of its own, so that it can be
/// hooked and stands in the trace.
#[inline(never)]
pub(crate) fn crash(name: &str) -> Option<()> {
    (CRASHES.iter().find(|c| c.name == name)?.act)();
    Some(())
}

fn access(address: usize, write: bool) {
    let pointer = black_box(address as *mut u32);
    if write {
        // SAFETY: none: the point is that the page tables refuse it. It changes a NOP-sized word of the header at worst.
        unsafe { pointer.write_volatile(0) }
    } else {
        // SAFETY: none: the point is that nothing is mapped there.
        black_box(unsafe { pointer.read_volatile() });
    }
}

/// `ret`, as data.
static RET: u32 = 0xd65f_03c0;

fn execute_data() {
    let address = black_box(&raw const RET);
    // SAFETY: the word is a whole function, `ret`; the point is that the page tables do not let it run.
    let function = unsafe { core::mem::transmute::<*const u32, extern "C" fn()>(address) };
    function();
}

fn undefined() {
    // SAFETY: UDF raises an exception and does nothing else.
    unsafe { asm!("udf #1", options(nostack)) }
}

fn vector() {
    // SAFETY: no compiled code uses v0; the point is that CPACR_EL1 traps it.
    unsafe {
        asm!(
            ".arch_extension simd",
            "movi v0.16b, #0",
            ".arch_extension nosimd",
            options(nostack)
        )
    }
}

fn pool() {
    let address = black_box(crate::mm::layout::POOL + crate::mm::layout::POOL_SIZE - 64);
    // SAFETY: none of the pool's last bytes is in use: they hold BRK, which is the point.
    let function = unsafe { core::mem::transmute::<usize, extern "C" fn()>(address) };
    function();
}

#[inline(never)]
fn deeper(n: u64) -> u64 {
    let mut local = [n; 32];
    black_box(&mut local);
    if n == 0 {
        return 0;
    }
    deeper(black_box(n + 1)) + local[(n % 32) as usize]
}
