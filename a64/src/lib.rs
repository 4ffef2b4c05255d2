// SPDX-License-Identifier: MIT OR Apache-2.0
//! A64 instructions as values: encode, decode, print, relocate, assemble.
//!
//! An instruction is an [`Inst`]. Every value of that type encodes ([`Inst::encode`] is total),
//! because registers and immediates are types that hold only what their field can hold; making one
//! from a number is where a range error appears ([`ImmError`]). [`Inst::decode`] is the inverse, and
//! `Display` prints what GNU and LLVM disassemblers print. [`relocate()`] re-emits an instruction at
//! another address with the effect it had; [`Assembler`] writes code for the address it will run at.
//!
//! Facts are from the Arm Architecture Reference Manual, DDI 0487, chapters C4 (encoding) and C6
//! (base instructions). Floating point, SIMD and SVE are not here.

#![no_std]
#![forbid(unsafe_code)]

pub mod assembler;
mod decode;
mod display;
mod encode;
pub mod imm;
pub mod inst;
pub mod ops;
pub mod reg;
pub mod relocate;

pub use assembler::{AsmError, Assembler, Fixup, Label, LabelSlot};
pub use display::{DisplayInst, display_word};
pub use imm::ImmError;
pub use inst::{Inst, SysReg};
pub use reg::{Gpr, Reg, RegOrSp, SP, Size, XZR};
pub use relocate::{RelocateError, branch_target, is_call, is_terminator, relocate};
