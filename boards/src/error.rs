// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a device tree cannot be used: what is missing or wrong, and what to do.
#![forbid(unsafe_code)]

use core::fmt;

/// A node's name, as far as it fits: long enough for every name that the specification allows (v0.4, 2.2.1).
pub type Name = heapless::String<48>;

/// Why a device tree cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoardError {
    /// No device tree: its first word is another one.
    NotATree {
        /// The word, big-endian, or `None` if there are fewer than four bytes.
        found: Option<u32>,
    },
    /// The header's size is not that of the data.
    Truncated {
        /// Bytes given.
        have: usize,
        /// Bytes that the header speaks of.
        want: usize,
    },
    /// A version that this reader does not know (Devicetree Specification v0.4, 5.2).
    Version {
        /// `last_comp_version` of the header.
        found: u32,
    },
    /// The structure block is damaged.
    Structure {
        /// Byte offset into the tree of the first token that cannot be read.
        offset: usize,
    },
    /// A node or property that the kernel cannot do without is not there.
    Missing {
        /// The node or property.
        what: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A property is there, but is no use.
    Property {
        /// The node's name.
        node: Name,
        /// The property.
        property: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// More of something than the kernel has room for.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there is room for.
        limit: usize,
    },
}

impl fmt::Display for BoardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotATree { found: Some(word) } => write!(
                f,
                "no device tree: its first word is {word:#010x}, not 0xd00dfeed; pass one (QEMU: -dtb FILE)"
            ),
            Self::NotATree { found: None } => {
                write!(f, "no device tree; pass one (QEMU: -dtb FILE)")
            }
            Self::Truncated { have, want } => write!(
                f,
                "device tree: {have} bytes are there, its header speaks of {want}; copy or load it again, whole"
            ),
            Self::Version { found } => write!(
                f,
                "device tree: format version {found}, and this kernel reads 16 and 17; compile it with a newer dtc"
            ),
            Self::Structure { offset } => write!(
                f,
                "device tree: damaged at byte {offset:#x}; see what `dtc -I dtb` says of it"
            ),
            Self::Missing { what, remedy } => write!(f, "device tree: no {what}; {remedy}"),
            Self::Property {
                node,
                property,
                expected,
            } => write!(
                f,
                "device tree: {property} of node \"{node}\" has to be {expected}; correct the tree"
            ),
            Self::TooMany { what, limit } => write!(
                f,
                "device tree: more than {limit} {what}, which is all there is room for; leave some out"
            ),
        }
    }
}

impl core::error::Error for BoardError {}
