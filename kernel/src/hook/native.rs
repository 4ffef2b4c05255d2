// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks written in Rust that can be attached by name.

use super::{Function, HookError, HookId, Point, Program, attach};
use crate::arch::callee::{Hit, NativeHook, Shape};
use crate::mm::stack;
use crate::workload::workload_call;
use alloc::sync::Arc;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

/// Counts hits.
pub(super) struct Count(pub(super) AtomicU64);

impl NativeHook for Count {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        // As the BPF program counts: a load and a store, no atomic addition.
        self.0
            .store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        0
    }
}

/// Does nothing.
struct Empty;

impl NativeHook for Empty {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        0
    }
}

/// Calls `workload_call`. On that function it reaches itself, and without a guard it would go on doing so: it stops at [`DEEPEST`]; and where
/// the stack is not as whole as a first hit finds it ([`stack::is_whole`]) it calls nothing.
#[derive(Default)]
struct Again {
    /// Hits that have not ended.
    depth: AtomicU64,
}

/// How often [`Again`] may be inside itself.
const DEEPEST: u64 = 16;

impl NativeHook for Again {
    #[inline(never)] // linker/audit.rules names it
    fn hit(&self, _: &Hit<'_>) -> u64 {
        // Nothing of what follows is part of the sum that its attach was measured by.
        if self.depth.fetch_add(1, Ordering::Relaxed) < DEEPEST && stack::is_whole() {
            // By a pointer that nothing sees through, as a program reaches a function that its author did not think of.
            black_box(workload_call as extern "C" fn(u64, u64) -> u64)(1, 1);
        }
        self.depth.fetch_sub(1, Ordering::Relaxed);
        0
    }
}

/// The native hooks that can be attached by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Native {
    /// Does nothing.
    Empty,
    /// Counts hits.
    Count,
    /// Calls `workload_call`.
    Again,
}

impl Native {
    /// The name of the program of the same effect.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Native::Empty => "empty",
            Native::Count => "count",
            Native::Again => "again",
        }
    }
}

impl Native {
    /// The program, for a place where it gets a context of this shape.
    pub(crate) fn program(self, shape: Shape) -> Program {
        let name = self.name().into();
        match self {
            Native::Empty => Program::native(name, Arc::new(Empty), shape),
            Native::Count => {
                let count = Arc::new(Count(AtomicU64::new(0)));
                Program::native(name, count.clone(), shape).counting(count)
            }
            Native::Again => Program::native(name, Arc::new(Again::default()), shape),
        }
    }
}

/// Hooks one of the native hooks onto a function.
pub(crate) fn attach_native(
    function: &Function,
    which: Native,
    point: Point,
) -> Result<HookId, HookError> {
    attach(function, point, which.program(Shape::of(point.kind)))
}
