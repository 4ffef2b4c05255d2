// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names to functions that can be hooked.

use super::Place;
use crate::ksyms::{Blob, Flags, Symbol};
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
    /// The image has its code only inside other functions.
    Inlined {
        /// The function.
        name: &'static str,
        /// The first few functions that its code is part of: if it is part of any that can be hooked, such ones.
        hosts: Vec<Symbol<'static>>,
        /// How many others it is part of.
        others: usize,
    },
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
            ResolveError::Inlined {
                name,
                hosts,
                others,
            } => {
                write!(f, "{name} was inlined away: its code is part of ")?;
                for (index, host) in hosts.iter().enumerate() {
                    let last = index + 1 == hosts.len() && *others == 0;
                    let between = match index {
                        0 => "",
                        _ if last => " and ",
                        _ => ", ",
                    };
                    write!(f, "{between}{}", host.name)?;
                }
                match others {
                    0 => Ok(()),
                    1 => f.write_str(" and 1 other"),
                    more => write!(f, " and {more} others"),
                }?;
                let hookable = hosts.iter().any(|h| h.flags.contains(Flags::SITE));
                f.write_str(match (hookable, hosts.len()) {
                    (false, _) => ", of which none can be hooked; mark it #[inline(never)]",
                    (true, 1) if *others == 0 => "; hook that, or mark it #[inline(never)]",
                    (true, _) => "; hook one of these, or mark it #[inline(never)]",
                })
            }
            ResolveError::Unknown { asked, nearest } => {
                write!(
                    f,
                    "no function is called {asked:?}: it is misspelt, or nothing in the image uses it, or core, alloc or std defines it and \
                     every use was inlined; the nearest names are {}",
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
    if !all.is_empty() {
        return Ok(all);
    }
    Err(inlined(blob, name).unwrap_or_else(|| {
        let nearest = blob.nearest::<3>(name);
        ResolveError::Unknown {
            asked: name.into(),
            nearest: nearest.iter().flatten().map(|s| s.name).collect(),
        }
    }))
}

/// Where functions of that name went, if the image has them only inside others.
pub(super) fn inlined(blob: &Blob<'static>, name: &str) -> Option<ResolveError> {
    let found: Vec<_> = blob.inlined_by_name(name).collect();
    let [one] = found.as_slice() else {
        return found
            .first()
            .map(|_| ambiguous(name, found.iter().map(|i| i.name)));
    };
    let mut hosts: Vec<_> = one.hosts.iter().flatten().copied().collect();
    if hosts.iter().any(|host| host.flags.contains(Flags::SITE)) {
        hosts.retain(|host| host.flags.contains(Flags::SITE));
    }
    Some(ResolveError::Inlined {
        name: one.name,
        others: one.count.saturating_sub(hosts.len()),
        hosts,
    })
}

/// The error that `asked` could be any of these.
fn ambiguous(asked: &str, names: impl Iterator<Item = &'static str>) -> ResolveError {
    ResolveError::Ambiguous {
        asked: asked.into(),
        candidates: names.take(8).collect(),
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
        _ => Err(ambiguous(asked, found.iter().map(|s| s.name))),
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
        (several, _) => Err(ambiguous(name, several.iter().map(|s| s.name))),
    }
}
