// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names to functions that can be hooked.

use super::Place;
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
                    "no function is called {asked:?}: it is misspelt, or no copy of it is left in the image, for the compiler put it into its \
                     callers; hook one of these, or mark it #[inline(never)]; the nearest names are {}",
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

/// The functions of that name, or whose path it is the end of; an error if there are none.
fn named(name: &str) -> Result<Vec<Symbol<'static>>, ResolveError> {
    let blob = symbols::blob().ok_or(ResolveError::NoSymbols)?;
    let all: Vec<Symbol<'static>> = blob.by_name(name).collect();
    let exact: Vec<_> = all.iter().copied().filter(|s| s.name == name).collect();
    match (all.is_empty(), exact.is_empty()) {
        (true, _) => Err(ResolveError::Unknown {
            asked: name.into(),
            nearest: blob
                .nearest::<3>(name)
                .iter()
                .flatten()
                .map(|s| s.name)
                .collect(),
        }),
        (_, true) => Ok(all),
        (_, false) => Ok(exact),
    }
}

/// The instruction that `FUNCTION` or `FUNCTION+OFFSET` names, of any function, with or without a site.
pub(crate) fn resolve_place(name: &str) -> Result<Place, ResolveError> {
    // Of several functions of that name the one that has a site, if it is one.
    if let Ok(function) = resolve(name)
        && let Some(place) = Place::of(function.address, 0)
    {
        return Ok(place);
    }
    // Names of types may hold a `+` that is followed by no number.
    let offset = name.rsplit_once('+').and_then(|(function, offset)| {
        let offset = offset.trim();
        let parsed = match offset.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => offset.parse(),
        };
        Some((function.trim_end(), parsed.ok()?))
    });
    let (asked, offset) = offset.unwrap_or((name, 0));
    let found = named(asked)?;
    // Several names of one address are one function.
    let mut addresses: Vec<_> = found.iter().map(|symbol| symbol.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    match (addresses.as_slice(), found.first()) {
        ([_], Some(function)) => Ok(Place {
            function: *function,
            offset,
        }),
        _ => Err(ResolveError::Ambiguous {
            asked: asked.into(),
            candidates: found.iter().take(8).map(|s| s.name).collect(),
        }),
    }
}

/// The function of that name; a part of a path will do if it is the end of one function's only.
pub(crate) fn resolve(name: &str) -> Result<Function, ResolveError> {
    let found = named(name)?;
    let hookable: Vec<_> = found
        .iter()
        .filter(|s| s.flags.contains(Flags::SITE))
        .collect();
    match (hookable.as_slice(), found.as_slice()) {
        ([one], _) => Ok(Function {
            address: one.address as usize,
            name: one.name,
        }),
        ([], [symbol, ..]) => Err(ResolveError::NoSite {
            name: symbol.name,
            why: if symbol.flags.contains(Flags::NOTRACE) {
                "it is on a hook's own path (notrace); `cargo xtask notrace` prints that set"
            } else {
                "it was compiled without a site (assembly, or from a prebuilt crate); a probe (kprobe, kretprobe) needs none, except of assembly"
            },
        }),
        (several, _) => Err(ResolveError::Ambiguous {
            asked: name.into(),
            candidates: several.iter().take(8).map(|s| s.name).collect(),
        }),
    }
}
