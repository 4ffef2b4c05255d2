// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults on purpose: `crash=KIND` on the command line, so that each report can be looked at and tested.

use super::callee::{Hit, NativeHook};
use crate::context::{self, Softirq};
use crate::hook::linux::Way;
use crate::hook::{self, Point, Program};
use crate::sched::{self, Mutex};
use crate::workload::{call_loop, workload_call};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use core::hint::black_box;
use trampoline::Kind;

/// A way to go wrong: its name, and the act, which does not return if the kernel is right.
struct Crash {
    /// The command line's word.
    name: &'static str,
    act: fn(),
}

/// All of them.
const CRASHES: &[Crash] = &[
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
        act: run_away,
    },
    Crash {
        name: "stack-locked",
        act: || in_a_task(run_away_locked),
    },
    Crash {
        name: "stack-preempt",
        act: || {
            in_a_task(|| {
                sched::preempt_disable();
                run_away();
            });
        },
    },
    Crash {
        name: "stack-masked",
        act: || {
            in_a_task(|| {
                _ = super::irq::disable();
                run_away();
            });
        },
    },
    Crash {
        name: "stack-softirq",
        act: || {
            in_a_task(|| {
                context::TEST_SOFTIRQ.set(Some(&(run_away as fn())));
                context::raise(Softirq::Test);
            });
        },
    },
    Crash {
        name: "stack-hooked",
        act: run_away_hooked,
    },
    Crash {
        name: "stack-linux",
        act: run_away_counted,
    },
    Crash {
        name: "recursion",
        act: || in_a_task(run_away),
    },
    Crash {
        name: "site",
        act: patch_a_site,
    },
    Crash {
        name: "hook-allocates",
        act: || in_a_hook(|| drop(black_box(Box::new as fn(u64) -> Box<u64>)(1))),
    },
    Crash {
        name: "hook-locks",
        act: || in_a_hook(|| _ = black_box(crate::mm::frames::usage())),
    },
    Crash {
        name: "hook-blocks",
        act: || in_a_hook(|| _ = black_box(crate::hook::list().len())),
    },
    Crash {
        name: "trampoline",
        act: patch_a_trampoline,
    },
    Crash {
        name: "panic",
        act: || panic!("on purpose"),
    },
];

/// Their names, for people.
pub(crate) fn names() -> String {
    let names: Vec<_> = CRASHES.iter().map(|crash| crash.name).collect();
    names.join(", ")
}

/// Does it. Returns when there is no such crash, or when the run goes on. A function of its own, so that it can be hooked and
/// stands in the trace.
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

/// Changes a site behind the hook engine's back, so that `integrity` finds it. The function still works: `b` to its next
/// instruction but one leaves out its second NOP.
fn patch_a_site() {
    let at = crate::workload::workload_six as *const () as usize;
    let skip = a64::imm::Imm26::new(8).map(|offset| a64::Inst::Branch {
        link: false,
        offset,
    });
    if let Ok(skip) = skip {
        // A site that is hooked holds no NOP and is left alone.
        let _ = super::code::patch(at, a64::Inst::NOP.encode(), skip.encode());
    }
}

/// Changes the first instruction of the first trampoline in executable memory.
fn patch_a_trampoline() {
    let words = hook::live().into_iter().flat_map(|run| run.step_by(4));
    let trampoline =
        |at: &usize| matches!(hook::hooked_at(*at, 0), Some(hook::Hooked::Function(_)));
    let first = words.map(|at| at as usize).find(trampoline);
    if let Some((at, word)) = first.and_then(|at| Some((at, super::code::read(at)?))) {
        let _ = super::code::patch(at, word, a64::Inst::NOP.encode());
    }
}

/// A hook that does what none may.
struct Forbidden(fn());

impl NativeHook for Forbidden {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        black_box(self.0)();
        0
    }
}

/// Hooks a function with that and calls it. A build with debug assertions ends there (hook_path.rs).
fn in_a_hook(act: fn()) {
    let Ok(function) = hook::resolve("workload_call") else {
        return;
    };
    let point = Point::of(Kind::Fentry);
    let attached = hook::attach_hook(
        &function,
        point,
        "forbidden".into(),
        Arc::new(Forbidden(act)),
    );
    if attached.is_ok() {
        call_loop(workload_call, 1);
    }
}

/// Does something that uses up the stack, in a task of its own and waits for it: that is all that ends, if nothing else speaks against it.
fn in_a_task(act: fn()) {
    let Some(task) = sched::spawn("runaway", act) else {
        return;
    };
    if let Err(sched::Died) = task.try_join() {
        crate::println!("springboard: task runaway died, the run goes on");
        super::exit::exit(0);
    }
}

/// With a lock, which no one would give back.
fn run_away_locked() {
    static LOCK: Mutex<()> = Mutex::empty();
    LOCK.put(Box::new(()));
    let held = LOCK.lock();
    run_away();
    drop(held);
}

/// A hook that takes stack of its own each time.
struct Deep;

impl NativeHook for Deep {
    const STACK: u32 = 2048;

    fn hit(&self, _: &Hit<'_>) -> u64 {
        black_box([1u64; 128])[5]
    }
}

/// In a function that is hooked.
fn run_away_hooked() {
    let Ok(function) = hook::resolve("arch::crash::deeper") else {
        return;
    };
    let point = Point::of(Kind::Fentry);
    if hook::attach_hook(&function, point, "deep".into(), Arc::new(Deep)).is_ok() {
        in_a_task(run_away);
    }
}

/// In a trampoline of the Linux way, which counts who is inside.
fn run_away_counted() {
    let Ok(function) = hook::resolve("workload_call") else {
        return;
    };
    let (way, point) = (Way::Trampoline, Point::of(Kind::Fexit));
    let hook = Arc::new(Forbidden(run_away));
    let program = Program::native("forbidden".into(), hook, way.shape(point.kind));
    if hook::linux::attach(&[function], way, point, program).is_ok() {
        in_a_task(|| _ = call_loop(workload_call, 1));
    }
}

/// Recurses until the stack is used up.
pub(crate) fn run_away() {
    black_box(deeper(black_box(1)));
}

/// Never returns unless called with 0.
#[inline(never)]
pub(crate) fn deeper(n: u64) -> u64 {
    let mut local = [n; 32];
    black_box(&mut local);
    if n == 0 {
        return 0;
    }
    deeper(black_box(n + 1)) + local[(n % 32) as usize]
}
