// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where functions can be hooked: the table of entries that begin with two NOPs.

use alloc::vec::Vec;
use core::fmt;

/// A function's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// Address of the function: its first NOP.
    pub address: u64,
    /// The function is on a hook's own path and must not be hooked.
    pub notrace: bool,
}

impl Site {
    /// The site's instructions: two NOPs.
    pub const WORDS: u64 = 2;

    /// Where the function goes on behind its site, in bytes from its address.
    pub const BYTES: u64 = 4 * Self::WORDS;
}

/// What the first word of a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteState {
    /// Two NOPs: the function is not hooked.
    Nops,
    /// A branch to the image at this address.
    Branch(u64),
}

/// Why addresses do not make a site table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteError {
    /// An entry that is no multiple of four.
    Misaligned {
        /// That entry.
        address: u64,
    },
    /// An entry that occurs twice.
    Duplicate {
        /// That entry.
        address: u64,
    },
    /// There is no entry at all.
    Empty,
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { address } => write!(
                f,
                "site table: {address:#x} is not a multiple of 4, so no function's entry; write the table again"
            ),
            Self::Duplicate { address } => {
                write!(f, "site table: {address:#x} occurs twice; write the table again")
            }
            Self::Empty => f.write_str(
                "site table: it is empty; compile with -Zpatchable-function-entry=4,2 and keep the section",
            ),
        }
    }
}

impl core::error::Error for SiteError {}

/// All sites, sorted by address.
pub struct SiteTable {
    sites: Vec<Site>,
}

impl SiteTable {
    /// A table of these sites, in any order.
    pub fn new(sites: impl IntoIterator<Item = Site>) -> Result<Self, SiteError> {
        let mut sites: Vec<_> = sites.into_iter().collect();
        sites.sort_unstable();
        if sites.is_empty() {
            return Err(SiteError::Empty);
        }
        if let Some(Site { address, .. }) = sites.iter().find(|s| !s.address.is_multiple_of(4)) {
            return Err(SiteError::Misaligned { address: *address });
        }
        let twice = sites
            .iter()
            .zip(sites.iter().skip(1))
            .find(|(a, b)| a.address == b.address);
        match twice {
            Some((site, _)) => Err(SiteError::Duplicate {
                address: site.address,
            }),
            None => Ok(Self { sites }),
        }
    }

    /// The site of the function at exactly this address.
    pub fn get(&self, address: u64) -> Option<Site> {
        let index = self
            .sites
            .binary_search_by_key(&address, |s| s.address)
            .ok()?;
        self.sites.get(index).copied()
    }

    /// As [`Self::get`], and quickly if it is among those behind the one that `near` is the index of, which then becomes its own: for who
    /// goes through many that ascend.
    pub(crate) fn get_near(&self, near: &mut usize, address: u64) -> Option<Site> {
        const LOOK: usize = 8;
        let behind = self.sites.iter().skip(*near).take(LOOK);
        let distance = behind.take_while(|site| site.address < address).count();
        match self.sites.get(*near + distance) {
            Some(site) if site.address == address => {
                *near += distance;
                Some(*site)
            }
            _ => {
                let found = self.sites.binary_search_by_key(&address, |s| s.address);
                *near = found.ok()?;
                self.sites.get(*near).copied()
            }
        }
    }

    /// The last site at or below an address: the function that the address may be in.
    pub fn at_or_below(&self, address: u64) -> Option<Site> {
        let count = self.sites.partition_point(|s| s.address <= address);
        self.sites.get(count.checked_sub(1)?).copied()
    }

    /// All of them, by ascending address.
    pub fn iter(&self) -> impl Iterator<Item = Site> + '_ {
        self.sites.iter().copied()
    }
}
