// SPDX-License-Identifier: MIT OR Apache-2.0
//! eBPF for `no_std` arm64 systems: object, program, validator, interpreter, JIT, maps, helpers.
//!
//! The stages are types: [`object::Object`] -> [`program::UncheckedProgram`] -> [`program::ValidatedProgram`] ->
//! [`interp`] or [`jit::compile`]. Nothing here knows a kernel; what a host provides is one small trait each
//! (`host`, `map`).
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod asm;
pub mod attachment;
pub mod btf;
mod context_use;
pub mod disasm;
pub mod helpers;
pub mod host;
pub mod interp;
pub mod isa;
pub mod jit;
pub mod map;
pub mod object;
pub mod program;
#[cfg(any(test, feature = "suite"))]
pub mod suite;
pub mod validate;
