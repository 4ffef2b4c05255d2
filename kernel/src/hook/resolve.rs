// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names to functions that can be hooked.

use crate::ksyms::{Flags, Symbol};
use crate::symbols;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A function that can be named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    /// Address of its entry: the two NOPs.
    pub address: usize,
    /// Its full name.
    pub name: &'static str,
}

/// Why a name is no function that can be hooked.
#[derive(Debug)]
pub(crate) enum ResolveError {
    /// No function has that name.
    Unknown {
        /// What was asked for.
        asked: String,
        /// The nearest names.
        nearest: Vec<&'static str>,
    },
    /// Several have.
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// The candidates.
        candidates: Vec<&'static str>,
    },
    /// It has no site.
    NoSite {
        /// The function.
        name: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The image has no symbols.
    NoSymbols,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResolveError::Unknown { asked, nearest } => {
                write!(
                    f,
                    "no function is called {asked:?}; the nearest names are {}",
                    nearest.join(", ")
                )
            }
            ResolveError::Ambiguous { asked, candidates } => {
                write!(
                    f,
                    "{asked:?} could be any of {}; give more of its path",
                    candidates.join(", ")
                )
            }
            ResolveError::NoSite { name, why } => write!(f, "{name} cannot be hooked: {why}"),
            ResolveError::NoSymbols => write!(
                f,
                "the image carries no symbols: boot the Image that cargo xtask writes"
            ),
        }
    }
}

/// The function of that name; a part of a path will do if it is the end of one function's only.
pub(crate) fn resolve(name: &str) -> Result<Function, ResolveError> {
    let blob = symbols::blob().ok_or(ResolveError::NoSymbols)?;
    let exact: Vec<Symbol<'static>> = blob.by_name(name).filter(|s| s.name == name).collect();
    let found = if exact.is_empty() {
        blob.by_name(name).collect()
    } else {
        exact
    };
    let hookable: Vec<_> = found
        .iter()
        .filter(|s| s.flags.contains(Flags::SITE))
        .collect();
    match (hookable.as_slice(), found.as_slice()) {
        ([one], _) => Ok(Function {
            address: one.address as usize,
            name: one.name,
        }),
        ([], []) => Err(ResolveError::Unknown {
            asked: name.into(),
            nearest: blob
                .nearest::<3>(name)
                .iter()
                .flatten()
                .map(|s| s.name)
                .collect(),
        }),
        ([], [symbol, ..]) => Err(ResolveError::NoSite {
            name: symbol.name,
            why: if symbol.flags.contains(Flags::NOTRACE) {
                "it is on a hook's own path (notrace); `cargo xtask notrace` prints that set"
            } else {
                "it was compiled without a site (assembly, or from a prebuilt crate); detours are not there so far"
            },
        }),
        (several, _) => Err(ResolveError::Ambiguous {
            asked: name.into(),
            candidates: several.iter().take(8).map(|s| s.name).collect(),
        }),
    }
}
