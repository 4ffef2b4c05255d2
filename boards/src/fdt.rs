// SPDX-License-Identifier: MIT OR Apache-2.0
//! A reader of flattened device trees that gets out of a damaged one what can be had.
//!
//! The format is Devicetree Specification v0.4, chapter 5. This reader is our own for two needs of a kernel that others do
//! not meet: it does not panic, whatever the bytes are, and it does not refuse a whole tree for what is wrong with a part. A
//! name longer than the specification allows is common, and the message about damage needs the UART that stands before it.
#![forbid(unsafe_code)]

use crate::{BoardError, MAX_REGIONS, Name, Region};

/// First word of every tree (5.2).
const MAGIC: u32 = 0xd00d_feed;
/// The arm64 boot protocol's limit for the size of a tree: 2 MiB.
const MAX_SIZE: u32 = 2 << 20;
/// Nodes within nodes, beyond which a tree counts as damaged.
const MAX_DEPTH: usize = 16;
/// Tokens of the structure block (5.4.1).
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;

/// The size in bytes of the device tree that starts with `first`, or `None` if it is none.
///
/// A tree is known by its magic only: x0 may as well point at ATAGS. A size beyond the arm64 boot protocol's 2 MiB is cut
/// to that, so that a damaged header does not make anyone map what is not there.
pub fn magic_ok(first: &[u8; 8]) -> Option<usize> {
    (word(first, 0)? == MAGIC).then_some(word(first, 4)?.min(MAX_SIZE) as usize)
}

/// The big-endian word at byte `at`.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// The big-endian number of `cells` words at byte `at`; none is zero, more than two do not fit.
fn number(bytes: &[u8], at: usize, cells: usize) -> Option<u64> {
    match cells {
        0 => Some(0),
        1 => word(bytes, at).map(u64::from),
        2 => Some(u64::from(word(bytes, at)?) << 32 | u64::from(word(bytes, at.checked_add(4)?)?)),
        _ => None,
    }
}

/// The bytes up to the first NUL, if they are text.
fn text(bytes: &[u8]) -> Option<&str> {
    core::ffi::CStr::from_bytes_until_nul(bytes)
        .ok()?
        .to_str()
        .ok()
}

/// A device tree whose header makes sense; its structure may still be damaged.
#[derive(Clone, Copy)]
pub(crate) struct Tree<'a> {
    blob: &'a [u8],
    structure: usize,
    strings: usize,
    reservations: usize,
    /// Bytes, as the header says; the blob may be shorter.
    pub(crate) size: usize,
}

/// A piece of the structure block.
enum Token<'a> {
    Begin,
    End,
    Prop { name: usize, value: &'a [u8] },
}

impl<'a> Tree<'a> {
    /// Reads the header (5.2). A tree that is cut off is accepted: [`Self::verify`] is for that.
    pub(crate) fn new(blob: &'a [u8]) -> Result<Self, BoardError> {
        let field = |index: usize| word(blob, index * 4);
        if field(0) != Some(MAGIC) {
            return Err(BoardError::NotATree { found: field(0) });
        }
        let [
            Some(size),
            Some(structure),
            Some(strings),
            Some(reservations),
            Some(_),
            Some(compatible),
        ] = core::array::from_fn(|index| field(index + 1))
        else {
            return Err(BoardError::Truncated {
                have: blob.len(),
                want: field(1).map_or(40, |size| size as usize),
            });
        };
        if !(16..=17).contains(&compatible) {
            return Err(BoardError::Version { found: compatible });
        }
        let size = size as usize;
        Ok(Self {
            blob: blob.get(..size).unwrap_or(blob),
            structure: structure as usize,
            strings: strings as usize,
            reservations: reservations as usize,
            size,
        })
    }

    /// Says whether the tree can be read to its end.
    pub(crate) fn verify(&self) -> Result<(), BoardError> {
        if self.blob.len() < self.size {
            return Err(BoardError::Truncated {
                have: self.blob.len(),
                want: self.size,
            });
        }
        let mut nodes = self.nodes();
        nodes.by_ref().for_each(drop);
        match nodes.damage {
            None => Ok(()),
            Some(offset) => Err(BoardError::Structure { offset }),
        }
    }

    /// The memory reservation block (5.3).
    pub(crate) fn reservations(self) -> impl Iterator<Item = Region> + 'a {
        let starts = (self.reservations..self.blob.len()).step_by(16);
        starts
            .map_while(move |at| {
                Some(Region {
                    start: number(self.blob, at, 2)?,
                    size: number(self.blob, at + 8, 2)?,
                })
            })
            .take_while(|region| (region.start, region.size) != (0, 0))
    }

    /// Every node, parents first, up to the first damage.
    pub(crate) fn nodes(self) -> Nodes<'a> {
        Nodes {
            tree: self,
            at: self.structure,
            open: heapless::Vec::new(),
            damage: None,
        }
    }

    /// The node at an absolute path; a component without unit address matches any (2.2.3).
    pub(crate) fn node(self, path: &str) -> Option<Node<'a>> {
        self.nodes().find(|node| node.is_at(path))
    }

    /// The token at byte `at`, where the one behind it starts, NOPs skipped.
    fn token(&self, mut at: usize) -> Option<(Token<'a>, usize)> {
        loop {
            let body = at.checked_add(4)?;
            let (token, end) = match word(self.blob, at)? {
                NOP => {
                    at = body;
                    continue;
                }
                END_NODE => (Token::End, body),
                BEGIN_NODE => {
                    let name = text(self.blob.get(body..)?)?;
                    (Token::Begin, body.checked_add(name.len() + 1)?)
                }
                PROP => {
                    let length = word(self.blob, body)? as usize;
                    let name = word(self.blob, body.checked_add(4)?)? as usize;
                    let start = body.checked_add(8)?;
                    let end = start.checked_add(length)?;
                    let value = self.blob.get(start..end)?;
                    (Token::Prop { name, value }, end)
                }
                _ => return None,
            };
            return Some((token, end.checked_next_multiple_of(4)?));
        }
    }
}

/// Iterator over a tree's nodes.
pub(crate) struct Nodes<'a> {
    tree: Tree<'a>,
    at: usize,
    open: heapless::Vec<usize, MAX_DEPTH>,
    damage: Option<usize>,
}

impl<'a> Iterator for Nodes<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        while self.damage.is_none() && self.at != usize::MAX {
            let here = self.at;
            let Some((token, next)) = self.tree.token(here) else {
                self.damage = Some(here);
                break;
            };
            self.at = next;
            match token {
                Token::Prop { .. } if !self.open.is_empty() => {}
                Token::Begin => {
                    let ancestors = self.open.clone();
                    if self.open.push(here).is_err() {
                        self.damage = Some(here);
                        break;
                    }
                    return Some(Node {
                        tree: self.tree,
                        at: here,
                        ancestors,
                    });
                }
                Token::End if self.open.len() > 1 => _ = self.open.pop(),
                Token::End if self.open.len() == 1 => self.at = usize::MAX,
                Token::End | Token::Prop { .. } => self.damage = Some(here),
            }
        }
        None
    }
}

/// A node, and the way to it.
#[derive(Clone)]
pub(crate) struct Node<'a> {
    tree: Tree<'a>,
    /// Byte offset of its BEGIN_NODE token.
    at: usize,
    /// Those of the nodes around it, the root first.
    ancestors: heapless::Vec<usize, MAX_DEPTH>,
}

impl<'a> Node<'a> {
    /// Its name with unit address; the root's is empty.
    pub(crate) fn name(&self) -> &'a str {
        let bytes = self.tree.blob.get(self.at..).unwrap_or_default();
        // `token` skipped any NOPs before BEGIN_NODE; they are four bytes long each.
        let mut words = bytes.chunks_exact(4);
        let nops = words.position(|word| word == BEGIN_NODE.to_be_bytes());
        nops.and_then(|nops| text(bytes.get((nops + 1) * 4..)?))
            .unwrap_or_default()
    }

    /// Its name without unit address.
    pub(crate) fn base_name(&self) -> &'a str {
        let name = self.name();
        name.split_once('@').map_or(name, |(base, _)| base)
    }

    /// How many nodes it lies in: 0 for the root.
    pub(crate) fn depth(&self) -> usize {
        self.ancestors.len()
    }

    /// The node around it.
    pub(crate) fn parent(&self) -> Option<Self> {
        let mut ancestors = self.ancestors.clone();
        let at = ancestors.pop()?;
        Some(Self {
            tree: self.tree,
            at,
            ancestors,
        })
    }

    /// Whether an absolute path leads to it.
    fn is_at(&self, path: &str) -> bool {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).rev();
        let mut node = self.clone();
        while let Some(parent) = node.parent() {
            let matches = |part| part == node.name() || part == node.base_name();
            if !parts.next().is_some_and(matches) {
                return false;
            }
            node = parent;
        }
        parts.next().is_none()
    }

    /// A property's value.
    pub(crate) fn property(&self, wanted: &str) -> Option<&'a [u8]> {
        let (Token::Begin, mut at) = self.tree.token(self.at)? else {
            return None;
        };
        while let (Token::Prop { name, value }, next) = self.tree.token(at)? {
            let name = self.tree.strings.checked_add(name)?;
            if text(self.tree.blob.get(name..)?) == Some(wanted) {
                return Some(value);
            }
            at = next;
        }
        None
    }

    /// A property that is one string (2.2.4), or the first of several.
    pub(crate) fn string(&self, property: &str) -> Option<&'a str> {
        text(self.property(property)?)
    }

    /// The strings of a property that is a list of them; none if it is missing.
    pub(crate) fn strings(&self, property: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let list = self.property(property).unwrap_or_default();
        let list = list.strip_suffix(&[0]).unwrap_or(list);
        list.split(|byte| *byte == 0)
            .map(|item| core::str::from_utf8(item).unwrap_or_default())
    }

    /// A property that is one number of one cell or two.
    pub(crate) fn number(&self, property: &str) -> Option<u64> {
        let value = self.property(property)?;
        number(value, 0, value.len().div_ceil(4))
    }

    /// The words of a property; none if it is missing.
    pub(crate) fn cells(&self, property: &str) -> impl Iterator<Item = u32> + use<'a> {
        let value = self.property(property).unwrap_or_default();
        (0..value.len() / 4).map_while(move |index| word(value, index * 4))
    }

    /// Whether `compatible` (2.3.1) holds one of `wanted`.
    pub(crate) fn is_compatible(&self, wanted: &[&str]) -> bool {
        self.strings("compatible")
            .any(|item| wanted.contains(&item))
    }

    /// Whether `status` (2.3.4) lets it be used.
    pub(crate) fn is_enabled(&self) -> bool {
        matches!(self.string("status"), None | Some("okay" | "ok"))
    }

    /// `#address-cells` and `#size-cells` for its children (2.3.5).
    fn child_cells(&self) -> (usize, usize) {
        let cells = |name, default| {
            let cells = self.number(name).unwrap_or(default);
            usize::try_from(cells).unwrap_or(usize::MAX)
        };
        (cells("#address-cells", 2), cells("#size-cells", 1))
    }

    /// `reg` (2.3.6) as its bus counts addresses: CPU numbers, or addresses yet to be translated.
    pub(crate) fn reg(&self) -> Result<heapless::Vec<Region, MAX_REGIONS>, BoardError> {
        let mut regions = heapless::Vec::new();
        let value = self.property("reg").unwrap_or_default();
        let (address, size) = self.parent().map_or((2, 1), |bus| bus.child_cells());
        let bad = || {
            self.bad(
                "reg",
                "pairs of an address and a size of one or two cells each",
            )
        };
        if address > 2 || size > 2 || address + size == 0 {
            return if value.is_empty() {
                Ok(regions)
            } else {
                Err(bad())
            };
        }
        let entries = value.chunks((address + size) * 4);
        for entry in entries {
            let region = Region {
                start: number(entry, 0, address).ok_or_else(bad)?,
                size: number(entry, address * 4, size).ok_or_else(bad)?,
            };
            region.start.checked_add(region.size).ok_or_else(bad)?;
            regions.push(region).map_err(|_| BoardError::TooMany {
                what: "entries in one reg",
                limit: MAX_REGIONS,
            })?;
        }
        Ok(regions)
    }

    /// `reg` as the CPU sees it: translated through the `ranges` (2.3.8) of every bus above.
    pub(crate) fn regions(&self) -> Result<heapless::Vec<Region, MAX_REGIONS>, BoardError> {
        let mut regions = self.reg()?;
        for region in &mut regions {
            *region = self
                .translate(*region)
                .ok_or_else(|| self.bad("reg", "within the ranges of the buses above it"))?;
        }
        Ok(regions)
    }

    fn translate(&self, mut region: Region) -> Option<Region> {
        let mut bus = self.parent()?;
        while let Some(above) = bus.parent() {
            let ranges = bus.property("ranges")?;
            if !ranges.is_empty() {
                let (address, size) = bus.child_cells();
                let (parent, _) = above.child_cells();
                if address > 2 || size > 2 || parent > 2 || address + parent + size == 0 {
                    return None;
                }
                let range = |entry: &[u8]| {
                    let child = number(entry, 0, address)?;
                    let base = number(entry, address * 4, parent)?;
                    let length = number(entry, (address + parent) * 4, size)?;
                    let offset = region.start.checked_sub(child)?;
                    (offset.checked_add(region.size)? <= length).then_some(())?;
                    base.checked_add(offset)
                };
                region.start = ranges
                    .chunks((address + parent + size) * 4)
                    .find_map(range)?;
                region.start.checked_add(region.size)?;
            }
            bus = above;
        }
        Some(region)
    }

    /// The error for a property of this node.
    pub(crate) fn bad(&self, property: &'static str, expected: &'static str) -> BoardError {
        let mut node = Name::new();
        for letter in self.name().chars() {
            if node.push(letter).is_err() {
                break;
            }
        }
        BoardError::Property {
            node,
            property,
            expected,
        }
    }
}
