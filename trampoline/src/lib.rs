// SPDX-License-Identifier: MIT OR Apache-2.0
//! Function hooks for arm64 kernels: sites, text patching, direct-call trampolines.
//!
//! For a kernel, hypervisor or firmware built with `-Zpatchable-function-entry=4,2`: every function begins with two NOPs and
//! has two words before it. An [`Engine`] hooks a function by writing a trampoline of its own into executable memory and
//! making the first NOP a branch to it; what it needs from its host is the trait [`Platform`].
//!
//! - [`site`]: what a site is, and which words may replace each other while they are executed.
//! - [`body`]: generates a trampoline, and says of each of its instructions what it is for ([`ingredient`]).
//! - [`pool`]: accounts for executable memory.
//! - [`attach`]: the engine.
//!
//! The crate knows no BPF and no kernel, allocates only when something is attached or detached, and has no unsafe code.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod attach;
pub mod body;
#[cfg(any(test, feature = "fakes"))]
pub mod fakes;
pub mod ingredient;
pub mod platform;
pub mod pool;
pub mod site;

pub use attach::{AttachError, AttachId, Code, Engine, Retired};
pub use body::Callee;
pub use ingredient::{CallerIn, Ingredient};
pub use platform::{Platform, SiteKind};
