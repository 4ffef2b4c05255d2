// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks written in Rust that can be attached by name.

use super::linux::{self, Way};
use super::{Function, HookError, HookId, Point, Program, attach};
use crate::arch::callee::{Hit, NativeHook, Shape};
use alloc::sync::Arc;
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

/// The native hooks that can be attached by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Native {
    /// Does nothing.
    Empty,
    /// Counts hits.
    Count,
}

impl Native {
    /// The name of the program of the same effect.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Native::Empty => "empty",
            Native::Count => "count",
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

/// Hooks one of the native hooks onto functions the Linux way.
pub(crate) fn attach_native_linux(
    functions: &[Function],
    which: Native,
    way: Way,
    point: Point,
) -> Result<HookId, HookError> {
    let program = which.program(way.shape(point.kind));
    linux::attach(functions, way, point, program)
}
