// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program's stages: unchecked as a loader made it, validated as an engine takes it.
#![forbid(unsafe_code)]

use alloc::{boxed::Box, collections::BTreeMap, string::String, sync::Arc, vec::Vec};
use core::ops::Range;

use crate::{
    helpers::{self, Function, Helper},
    interp::{MAX_FRAMES, flat::Flat},
    isa::{Insn, Op},
    map::Map,
};

/// The most instruction slots of a program; Linux's limit too (`BPF_COMPLEXITY_LIMIT_INSNS`).
pub const MAX_SLOTS: usize = 1_000_000;

/// Bytes of stack that each function has below r10 (`MAX_BPF_STACK` of `linux/filter.h`).
pub const STACK_BYTES: u64 = 512;

/// A program as a loader made it: relocated, its maps named by index, nothing checked yet.
///
/// In `lddw` with `src` = 1 (`BPF_PSEUDO_MAP_FD`) `imm` is an index into [`maps`](Self::maps); with `src` = 2
/// (`BPF_PSEUDO_MAP_VALUE`) `imm` is an index too and the second slot's `imm` the offset in bytes into the value. In `lddw` with `src` = 3
/// (`BPF_PSEUDO_BTF_ID`) it is an index into [`variables`](Self::variables), in `call` with `src` = 2
/// (`BPF_PSEUDO_KFUNC_CALL`) one into [`kfuncs`](Self::kfuncs).
#[derive(Clone, Debug, Default)]
pub struct UncheckedProgram {
    /// The function's name in the object.
    pub name: String,
    /// The section it came from, which says what it attaches to (`fentry/NAME`).
    pub section: String,
    /// The instruction slots.
    pub insns: Vec<Insn>,
    /// The maps that the instructions refer to by index.
    pub maps: Vec<Arc<Map>>,
    /// The kernel functions that the instructions call by index.
    pub kfuncs: Vec<&'static Helper>,
    /// The kernel variables that the instructions refer to by index.
    pub variables: Vec<KernelVariable>,
    /// Its functions, if a loader knows them: the first is the program itself.
    pub functions: Vec<ProgramFunction>,
    /// Slots of instructions that need what the kernel does not have, with what that is; validation refuses them.
    pub missing: BTreeMap<usize, String>,
}

/// A function of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramFunction {
    /// Its name in the object.
    pub name: String,
    /// The slot of its first instruction.
    pub start: usize,
    /// Whether its symbol is global or weak: it takes what its source says.
    pub global: bool,
}

/// A variable of the kernel that programs may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelVariable {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The id of its type in the kernel's BTF; 0 if that is not known (an untyped `extern const void`).
    pub type_id: u32,
}

/// A decoded instruction of a validated program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub op: Op,
    /// Its slot in the unchecked program, which is what jump offsets and error messages count.
    pub slot: u32,
    /// Index of the instruction that it may jump to, or that starts the function it calls or names; 0 for all others.
    pub target: u32,
}

/// A program whose structure is sound: each instruction is defined, each jump lands on an instruction of the same
/// function, execution cannot run off a function's end, registers, helpers and maps exist, no function calls itself and calls are not
/// too deep, as far as instructions name what they call.
///
/// What it does to memory is not proven: the interpreter checks each access, compiled code does not.
#[derive(Clone, Debug)]
pub struct ValidatedProgram {
    pub(crate) name: String,
    pub(crate) section: String,
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) functions: Vec<Range<u32>>,
    pub(crate) maps: Vec<Arc<Map>>,
    pub(crate) kfuncs: Vec<&'static Helper>,
    pub(crate) variables: Vec<KernelVariable>,
    pub(crate) helpers: &'static [Helper],
    pub(crate) flat: Box<[Flat]>,
    pub(crate) frames: usize,
}

impl ValidatedProgram {
    /// The instructions as the interpreter runs them, one for each of [`instructions`](Self::instructions).
    pub(crate) fn flat(&self) -> &[Flat] {
        &self.flat
    }

    /// How many frames a run may have: those of the deepest calls.
    pub(crate) fn frames(&self) -> usize {
        self.frames
    }

    /// What [`frames`](Self::frames) says from then on, where `depth` are the frames of the calls that instructions name: as many as
    /// there may be if what is called is known at run time only.
    pub(crate) fn find_frames(&self, depth: usize) -> usize {
        let at_run_time = |i: &Instruction| {
            let called = self.called(i.op).map(|called| called.function);
            let engine = matches!(called, Some(Function::Engine | Function::Callback(_)));
            i.op.is_callx() || engine
        };
        match self.instructions.iter().any(at_run_time) {
            true => MAX_FRAMES,
            false => depth,
        }
    }

    /// The function's name in the object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The section it came from (`fentry/NAME`).
    pub fn section(&self) -> &str {
        &self.section
    }

    /// The instructions; `lddw` is one.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The functions, by index of their instructions, in order and without gaps; the first is the program's entry.
    pub fn functions(&self) -> &[Range<u32>] {
        &self.functions
    }

    /// The maps that it refers to by index, kept alive with it.
    pub fn maps(&self) -> &[Arc<Map>] {
        &self.maps
    }

    /// The kernel functions that it calls by index.
    pub fn kfuncs(&self) -> &[&'static Helper] {
        &self.kfuncs
    }

    /// The kernel variables that it refers to by index.
    pub fn variables(&self) -> &[KernelVariable] {
        &self.variables
    }

    /// The helpers that it was validated against.
    pub fn helpers(&self) -> &'static [Helper] {
        self.helpers
    }

    /// The helper or kernel function that an instruction calls by number or index; `None` for all others.
    pub fn called(&self, op: Op) -> Option<&'static Helper> {
        match op {
            Op::Call { helper } => helpers::find(self.helpers, helper),
            Op::CallKernel { function } => {
                self.kfuncs.get(usize::try_from(function).ok()?).copied()
            }
            _ => None,
        }
    }

    /// What it may call: the helpers and kernel functions that its instructions name, and all helpers that can be [called by
    /// register](Helper::is_called_by_register) if one of them does that.
    pub fn callable(&self) -> impl Iterator<Item = &'static Helper> {
        let by_register = self.instructions.iter().any(|i| i.op.is_callx());
        let named = self.instructions.iter().filter_map(|i| self.called(i.op));
        let any = self.helpers.iter();
        named.chain(any.filter(move |helper| by_register && helper.is_called_by_register()))
    }

    /// Whether anything that it calls asks for the [`Attachment`](crate::attachment::Attachment) that it runs for, or may do so:
    /// what a register names, and the program that a tail call leads to.
    pub fn needs_attachment(&self) -> bool {
        let asks = |i: &Instruction| {
            let called = self.called(i.op);
            let tail = called.is_some_and(|called| matches!(called.function, Function::Engine));
            i.op.is_callx() || tail || called.is_some_and(Helper::needs_attachment)
        };
        self.instructions.iter().any(asks)
    }

    /// The address that `lddw` of a map, of a map's value or of a kernel variable puts into its register; `None` for
    /// other operations.
    pub fn constant_address(&self, op: Op) -> Option<u64> {
        match op {
            Op::LoadMap { map, .. } => Some(self.map(map)?.handle()),
            Op::LoadMapValue { map, offset, .. } => {
                Some(self.map(map)?.value_address(0)?.wrapping_add(offset.into()))
            }
            Op::LoadVariable { variable, .. } => {
                let variable = self.variables.get(usize::try_from(variable).ok()?);
                variable.map(|variable| variable.address)
            }
            _ => None,
        }
    }

    /// The map of that index.
    pub(crate) fn map(&self, index: u32) -> Option<&Arc<Map>> {
        self.maps.get(usize::try_from(index).ok()?)
    }
}
