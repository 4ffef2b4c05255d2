// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program's stages: unchecked as a loader made it, validated as an engine takes it.
use alloc::{string::String, sync::Arc, vec::Vec};

use crate::{isa::Insn, map::Map};

/// A program as a loader made it: relocated, its maps named by index, nothing checked yet.
///
/// In `lddw` with `src` = 1 (`BPF_PSEUDO_MAP_FD`) `imm` is an index into [`maps`](Self::maps); with `src` = 2
/// (`BPF_PSEUDO_MAP_VALUE`) `imm` is an index too and the second slot's `imm` the offset in bytes into the value.
#[derive(Clone, Debug)]
pub struct UncheckedProgram {
    /// The function's name in the object.
    pub name: String,
    /// The section it came from, which says what it attaches to (`fentry/NAME`).
    pub section: String,
    /// The instruction slots.
    pub insns: Vec<Insn>,
    /// The maps that the instructions refer to by index.
    pub maps: Vec<Arc<Map>>,
}
