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

use graph::Graph;

/// Why there is no BTF.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BtfError {
    /// Not an ELF file, or a broken one.
    #[error("BTF: the ELF file cannot be read: {0}")]
    Elf(#[from] object::Error),
    /// Compiled without debugging information.
    #[error(
        "BTF: the ELF file has no DWARF (.debug_info is empty): profile.dev in Cargo.toml says debug = 2; unset what overrides it \
         (CARGO_PROFILE_DEV_DEBUG, RUSTFLAGS) and build again"
    )]
    NoDwarf,
    /// The DWARF reader's complaint.
    #[error("BTF: the DWARF unit at .debug_info+{unit:#x} is broken: {source}; build again")]
    Dwarf {
        /// The unit's offset in `.debug_info`.
        unit: usize,
        /// What is wrong with it.
        source: gimli::Error,
    },
    /// An entry without something that it needs.
    #[error("BTF: the DWARF entry at .debug_info+{at:#x} ({tag}) {problem}; build again")]
    Entry {
        /// The entry's offset in `.debug_info`.
        at: usize,
        /// Its tag.
        tag: gimli::DwTag,
        /// What is wrong with it.
        problem: &'static str,
    },
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
