// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's BTF: the types of what it exports, made from its DWARF.
//!
//! Exported is what `#[unsafe(no_mangle)]` made a global symbol under the name that the source has: `extern "C"` functions and
//! statics. Their arguments and return values are where the procedure call standard says; of every other function LLVM
//! may drop, promote or fold arguments, and DWARF does not always say so. [`dwarf`] reads what they name into a [`graph`], [`names`]
//! makes names that C can say, [`write`] writes the section, [`header`] the declarations for programs in C.

pub(crate) mod dump;
mod dwarf;
pub(crate) mod graph;
pub(crate) mod header;
mod names;
pub(crate) mod write;

use crate::dwarf::DwarfError;
use graph::Graph;

/// Why there is no BTF.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BtfError {
    /// Not an ELF file, or a broken one.
    #[error("BTF: the ELF file cannot be read: {0}")]
    Elf(#[from] object::Error),
    /// Its DWARF is broken or missing.
    #[error("BTF: {0}")]
    Dwarf(#[from] DwarfError),
    /// More than a field holds: what, the value, the limit.
    #[error("BTF: {0} is {1}, more than BTF's field holds ({2}); export something smaller")]
    TooLarge(&'static str, u64, u64),
}

/// What a linked ELF file exports: types numbered as BTF numbers them, names as C can say them.
///
/// # Errors
/// [`BtfError`]: the file, or its DWARF, is broken or missing.
pub(crate) fn of_elf(file: &[u8]) -> Result<Graph, BtfError> {
    let (graph, roots) = dwarf::read(file)?;
    let (mut graph, _) = graph.condensed(&roots);
    names::make_sayable(&mut graph);
    graph.index_type();
    Ok(graph)
}
