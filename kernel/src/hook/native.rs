// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks written in Rust that can be attached by name.

use super::{Function, HookError, HookId, Point, Program, Protection, attach, attach_hook};
use crate::arch::callee::{Hit, NativeHook, Shape};
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
pub(super) struct Empty;

impl NativeHook for Empty {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        0
    }
}

/// Calls `workload_call`: on that function, or on one that it is called by, it would never end if nothing turned it away.
struct Again;

impl NativeHook for Again {
    #[inline(never)] // linker/audit.rules names it
    fn hit(&self, _: &Hit<'_>) -> u64 {
        // By a pointer that nothing sees through, as a program reaches a function that its author did not think of.
        black_box(workload_call as extern "C" fn(u64, u64) -> u64)(1, 1);
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

/// Hooks one of the native hooks onto a function.
pub(crate) fn attach_native(
    function: &Function,
    which: Native,
    point: Point,
) -> Result<HookId, HookError> {
    match which {
        Native::Empty => attach_hook(function, point, which.name().into(), Arc::new(Empty)),
        Native::Again if point.protection != Protection::Program && point.protection != Protection::Context => {
            Err(HookError::Target {
                function: function.name.into(),
                why: "the hook calls workload_call, so it has to be turned away from itself; take the guard word or context".into(),
            })
        }
        Native::Again => attach_hook(function, point, which.name().into(), Arc::new(Again)),
        Native::Count => {
            let count = Arc::new(Count(AtomicU64::new(0)));
            let shape = Shape::of(point.kind);
            let program = Program::native(which.name().into(), count.clone(), shape);
            attach(function, point, program.counting(count))
        }
    }
}
