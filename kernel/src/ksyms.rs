// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names, sites, stacks and code of the linked image: the reader of the blob behind it.
//!
//! `cargo xtask` appends the blob to the Image at `_image_end`, after linking. All numbers are little endian:
//!
//! | bytes | header field |
//! |---|---|
//! | 0..8 | [`MAGIC`] |
//! | 8..12 | length of the whole blob in bytes |
//! | 12..20 | function symbols: count, offset in the blob |
//! | 20..28 | names (UTF-8, not terminated): length in bytes, offset in the blob |
//! | 28..36 | sites: count, offset in the blob |
//! | 36..44 | version: length in bytes, offset in the blob |
//! | 44..48 | zero |
//! | 48..56 | link address of the image's first byte |
//! | 56..64 | BTF (`linux/btf.h`, from its magic number on): length in bytes, offset in the blob, a multiple of 8 |
//! | 64..72 | worst cases of stack: count, offset in the blob |
//! | 72..80 | the code as linked, from the image's first byte on: length in bytes, offset in the blob |
//! | 80..88 | functions that were inlined away: count, offset in the blob |
//!
//! A symbol is four words: offset in the image, size in bytes, offset of the name, flags (low half) and length of the name
//! (high half). A site is one word: the offset in the image of a function's *entry*, the first of its two NOPs. Symbols are
//! sorted by address, the best name of an address first; sites are sorted. A worst case is two words: the offset in the image of a
//! function of the hook path, and the most bytes of stack that a call of it takes, with all that it calls; sorted. A function that was
//! inlined away is five words: offset of the name, length of the name (low half) and how many functions its code is part of (high
//! half), and three of those by their number among the symbols, those with a site first, [`NO_HOST`] where there are fewer. Names are
//! demangled, without the crate hash; of those that were inlined away without the arguments of generic functions too.
//!
//! Nothing of the kernel: `xtask` includes this file to test what it writes.

use crate::glob::Glob;
use core::fmt;

/// The blob's first bytes.
pub(crate) const MAGIC: [u8; 8] = *b"SPRBLOB3";
/// Length of the header, bytes.
pub(crate) const HEADER: usize = 88;
/// Length of a symbol record, bytes.
pub(crate) const SYMBOL: usize = 16;
/// Length of a site record, bytes.
pub(crate) const SITE: usize = 4;
/// Length of a worst case's record, bytes.
pub(crate) const STACK: usize = 8;
/// Length of the record of a function that was inlined away, bytes.
pub(crate) const INLINED: usize = 8 + 4 * HOSTS;
/// How many of the functions that such a function's code is part of are named.
pub(crate) const HOSTS: usize = 3;
/// Stands for no symbol.
pub(crate) const NO_HOST: u32 = u32::MAX;

/// Why bytes are not a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlobError {
    /// Fewer bytes than the header or the length that it states: needed, found.
    Truncated(usize, usize),
    /// The first eight bytes are something else.
    Magic([u8; 8]),
    /// A section does not lie within the blob, or is no whole number of records: its name.
    Section(&'static str),
    /// Names are not UTF-8: the offset of the first bad byte.
    Names(usize),
    /// Records are out of order or name bytes outside the names: the section and the record's index.
    Record(&'static str, usize),
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const REMEDY: &str = "boot the Image that `cargo xtask` writes, not the ELF file";
        match self {
            Self::Truncated(needed, found) => {
                write!(
                    f,
                    "symbol blob: {needed} bytes needed, {found} found; {REMEDY}"
                )
            }
            Self::Magic(found) => {
                write!(
                    f,
                    "symbol blob: starts with {found:02x?}, not with SPRBLOB3; {REMEDY}"
                )
            }
            Self::Section(name) => {
                write!(
                    f,
                    "symbol blob: the {name} do not lie within the blob; {REMEDY}"
                )
            }
            Self::Names(at) => write!(f, "symbol blob: names are not UTF-8 at byte {at}; {REMEDY}"),
            Self::Record(section, index) => {
                write!(
                    f,
                    "symbol blob: {section} {index} is out of order or out of range; {REMEDY}"
                )
            }
        }
    }
}

impl core::error::Error for BlobError {}

/// What is known about a function, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags(pub u16);

impl Flags {
    /// The function has a site that a hook may use.
    pub(crate) const SITE: Self = Self(1);
    /// The hook path reaches the function: never hooked, even where the compiler left NOPs.
    pub(crate) const NOTRACE: Self = Self(1 << 1);
    /// Exported without mangling (`#[unsafe(no_mangle)] extern "C"`): arguments and return value are as declared.
    pub(crate) const GLOBAL: Self = Self(1 << 2);
    /// Made by the linker or by the compiler's outliner (`__CortexA53843419_*`, `OUTLINED_FUNCTION_*`).
    pub(crate) const SYNTHETIC: Self = Self(1 << 3);
    /// Assembly: a label without a size of its own; it reaches to the next symbol.
    pub(crate) const LABEL: Self = Self(1 << 4);
    /// Another name for the function listed before it, at the same address: the compiler or the linker found the same body twice.
    /// Only the first name has the flags `SITE` and `NOTRACE`.
    pub(crate) const ALIAS: Self = Self(1 << 5);

    /// Whether all bits of `other` are set.
    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A function of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Symbol<'a> {
    /// Address of the entry (of the first NOP where there is a site).
    pub address: u64,
    /// Size in bytes.
    pub size: u32,
    /// Demangled name.
    pub name: &'a str,
    /// What is known about it.
    pub flags: Flags,
}

/// A function that the image has only inside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inlined<'a> {
    /// Demangled name.
    pub name: &'a str,
    /// How many functions its code is part of.
    pub count: usize,
    /// The first few of them, those with a site first; `None` fills up where there are fewer.
    pub hosts: [Option<Symbol<'a>>; HOSTS],
}

/// A checked blob.
#[derive(Clone, Copy)]
pub(crate) struct Blob<'a> {
    base: u64,
    version: &'a str,
    symbols: &'a [[u8; SYMBOL]],
    names: &'a str,
    sites: &'a [[u8; SITE]],
    btf: &'a [u8],
    stacks: &'a [[u8; STACK]],
    text: &'a [u8],
    inlined: &'a [[u8; INLINED]],
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u32::from_le_bytes(*word))
}

fn section<'a>(
    bytes: &'a [u8],
    field: usize,
    unit: usize,
    name: &'static str,
) -> Result<&'a [u8], BlobError> {
    let (count, start) = (word(bytes, field) as usize, word(bytes, field + 4) as usize);
    let end = count
        .checked_mul(unit)
        .and_then(|length| length.checked_add(start));
    end.and_then(|end| bytes.get(start..end))
        .ok_or(BlobError::Section(name))
}

/// Where a symbol's name is among the names.
fn name_range(record: &[u8; SYMBOL]) -> core::ops::Range<usize> {
    let start = word(record, 8) as usize;
    start..start + (word(record, 12) >> 16) as usize
}

/// Where the name of a function that was inlined away is among the names.
fn inlined_name_range(record: &[u8; INLINED]) -> core::ops::Range<usize> {
    let start = word(record, 0) as usize;
    start..start + (word(record, 4) & 0xffff) as usize
}

/// The numbers of the functions that such a function's code is part of.
fn hosts(record: &[u8; INLINED]) -> impl Iterator<Item = u32> {
    (0..HOSTS).map(|i| word(record, 8 + 4 * i))
}

impl<'a> Blob<'a> {
    /// The length in bytes that a blob states in its first 12 bytes, so that a caller knows how much of it to map.
    ///
    /// # Errors
    /// [`BlobError::Truncated`], [`BlobError::Magic`].
    pub(crate) fn length(start: &[u8]) -> Result<usize, BlobError> {
        let magic = start
            .first_chunk()
            .ok_or(BlobError::Truncated(HEADER, start.len()))?;
        match *magic == MAGIC {
            true => Ok(word(start, MAGIC.len()) as usize),
            false => Err(BlobError::Magic(*magic)),
        }
    }

    /// Checks `bytes`, which start with the blob and may be longer (the Image is padded to whole pages).
    ///
    /// # Errors
    /// [`BlobError`]: every offset, every name and the order of the records are checked here, once.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, BlobError> {
        let length = Self::length(bytes)?.max(HEADER);
        let bytes = bytes
            .get(..length)
            .ok_or(BlobError::Truncated(length, bytes.len()))?;
        let utf8 = |bytes| {
            core::str::from_utf8(bytes).map_err(|error| BlobError::Names(error.valid_up_to()))
        };
        let blob = Self {
            base: u64::from(word(bytes, 48)) | u64::from(word(bytes, 52)) << 32,
            symbols: section(bytes, 12, SYMBOL, "symbols")?.as_chunks().0,
            names: utf8(section(bytes, 20, 1, "names")?)?,
            sites: section(bytes, 28, SITE, "sites")?.as_chunks().0,
            version: utf8(section(bytes, 36, 1, "version")?)?,
            btf: section(bytes, 56, 1, "types")?,
            stacks: section(bytes, 64, STACK, "stacks")?.as_chunks().0,
            text: section(bytes, 72, 1, "code")?,
            inlined: section(bytes, 80, INLINED, "inlined functions")?
                .as_chunks()
                .0,
        };
        for (index, record) in blob.symbols.iter().enumerate() {
            let next = blob.symbols.get(index + 1);
            if next.is_some_and(|next| word(next, 0) < word(record, 0))
                || blob.name(record).is_none()
            {
                return Err(BlobError::Record("symbol", index));
            }
        }
        for (index, record) in blob.inlined.iter().enumerate() {
            let known = |host: u32| host == NO_HOST || (host as usize) < blob.symbols.len();
            if blob.names.get(inlined_name_range(record)).is_none() || !hosts(record).all(known) {
                return Err(BlobError::Record("inlined function", index));
            }
        }
        if !blob.stacks.is_sorted_by_key(|record| word(record, 0)) {
            return Err(BlobError::Record("stack", 0));
        }
        match blob
            .sites
            .is_sorted_by_key(|site| u32::from_le_bytes(*site))
        {
            true => Ok(blob),
            false => Err(BlobError::Record("site", 0)),
        }
    }

    fn name(&self, record: &[u8; SYMBOL]) -> Option<&'a str> {
        self.names.get(name_range(record))
    }

    fn symbol(&self, record: &[u8; SYMBOL]) -> Symbol<'a> {
        Symbol {
            address: self.base.wrapping_add(u64::from(word(record, 0))),
            size: word(record, 4),
            name: self.name(record).unwrap_or_default(),
            flags: Flags(word(record, 12) as u16),
        }
    }

    /// Link address of the image's first byte.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// What the image was built from: package version and build identifier.
    pub(crate) fn version(&self) -> &'a str {
        self.version
    }

    /// The types of what the kernel exports, as BTF; empty if the image has none.
    pub(crate) fn btf(&self) -> &'a [u8] {
        self.btf
    }

    /// The most bytes of stack that a call of the function at exactly this address takes, with all that it calls: of
    /// functions of the hook path for which `cargo xtask audit` knows it.
    pub(crate) fn stack_of(&self, address: u64) -> Option<u32> {
        let offset = u32::try_from(address.checked_sub(self.base)?).ok()?;
        let found = self
            .stacks
            .binary_search_by_key(&offset, |record| word(record, 0));
        Some(word(self.stacks.get(found.ok()?)?, 4))
    }

    /// The code as it was linked, from the image's first byte on.
    pub(crate) fn text(&self) -> &'a [u8] {
        self.text
    }

    /// All functions, by address.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = Symbol<'a>> + Clone + use<'a> {
        let blob = *self;
        self.symbols.iter().map(move |record| blob.symbol(record))
    }

    /// All functions that were inlined away, by name.
    pub(crate) fn inlined(&self) -> impl Iterator<Item = Inlined<'a>> + Clone + use<'a> {
        let blob = *self;
        self.inlined.iter().map(move |record| {
            let mut numbers = hosts(record);
            Inlined {
                name: blob
                    .names
                    .get(inlined_name_range(record))
                    .unwrap_or_default(),
                count: (word(record, 4) >> 16) as usize,
                hosts: core::array::from_fn(|_| {
                    let host = numbers.next()? as usize;
                    Some(blob.symbol(blob.symbols.get(host)?))
                }),
            }
        })
    }

    /// Entry addresses of all functions that may be hooked, ascending.
    pub(crate) fn sites(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        let base = self.base;
        self.sites
            .iter()
            .map(move |site| base.wrapping_add(u64::from(u32::from_le_bytes(*site))))
    }

    /// Whether the function that starts at `address` has a site.
    pub(crate) fn has_site(&self, address: u64) -> bool {
        u32::try_from(address.wrapping_sub(self.base)).is_ok_and(|offset| {
            self.sites
                .binary_search_by_key(&offset, |site| u32::from_le_bytes(*site))
                .is_ok()
        })
    }

    /// The number, in the order of [`Blob::symbols`], of the function that `address` lies in.
    pub(crate) fn index(&self, address: u64) -> Option<usize> {
        let offset = u32::try_from(address.checked_sub(self.base)?).ok()?;
        let after = self
            .symbols
            .partition_point(|record| word(record, 0) <= offset);
        let mut first = after.checked_sub(1)?;
        let start = word(self.symbols.get(first)?, 0);
        // Several names may share an address: the writer puts the best one first.
        while let Some(before) = first.checked_sub(1)
            && self.symbols.get(before).map(|record| word(record, 0)) == Some(start)
        {
            first = before;
        }
        let size = word(self.symbols.get(first)?, 4);
        (offset - start < size).then_some(first)
    }

    /// As [`Blob::index`], quickly if the function is one of those behind that of number `near`: for who goes through many that
    /// ascend.
    pub(crate) fn index_near(&self, near: usize, address: u64) -> Option<usize> {
        const LOOK: usize = 16;
        let offset = u32::try_from(address.checked_sub(self.base)?).ok()?;
        let behind = self.symbols.iter().skip(near).take(LOOK);
        let at_entry = |record: &[u8; SYMBOL]| word(record, 0) == offset && word(record, 4) != 0;
        match behind.enumerate().find(|(_, record)| at_entry(record)) {
            // The first of its address, for what lies before `near` has a lower one, or is it.
            Some((distance, _)) if distance > 0 => Some(near + distance),
            _ => self.index(address),
        }
    }

    /// The function that `address` lies in, and the distance in bytes from its entry.
    pub(crate) fn lookup(&self, address: u64) -> Option<(Symbol<'a>, u64)> {
        let symbol = self.symbol(self.symbols.get(self.index(address)?)?);
        Some((symbol, address - symbol.address))
    }

    /// Functions called `name`: those of exactly this name, or, if there are none, those whose path ends in it.
    ///
    /// `<` and `>` do not count, so that `tcp::Socket::process` finds `<smoltcp::socket::tcp::Socket>::process`. More than one
    /// result means that the name is ambiguous.
    pub(crate) fn by_name<'n>(
        &self,
        name: &'n str,
    ) -> impl Iterator<Item = Symbol<'a>> + use<'a, 'n> {
        named(self.symbols(), |symbol| symbol.name, name)
    }

    /// Functions called `name`, as in [`Blob::by_name`], that the image has only inside others.
    pub(crate) fn inlined_by_name<'n>(
        &self,
        name: &'n str,
    ) -> impl Iterator<Item = Inlined<'a>> + use<'a, 'n> {
        named(self.inlined(), |inlined| inlined.name, name)
    }

    /// Functions whose name fits `pattern`, in which `*` stands for any characters, `::` included.
    pub(crate) fn matching<'p>(
        &self,
        pattern: &'p str,
    ) -> impl Iterator<Item = Symbol<'a>> + use<'a, 'p> {
        let pattern = Glob::new(pattern);
        let blob = *self;
        let names = self.names.as_bytes();
        let fits = move |record: &&_| {
            names
                .get(name_range(record))
                .is_some_and(|n| pattern.fits(n))
        };
        let matching = self.symbols.iter().filter(fits);
        matching.map(move |record| blob.symbol(record))
    }

    /// The functions with a site whose names are nearest to `name`, nearest first; `None` fills up where there are fewer.
    ///
    /// Compared are as many of the last path components as `name` has, by edit distance, capitals as small letters.
    pub(crate) fn nearest<const N: usize>(&self, name: &str) -> [Option<Symbol<'a>>; N] {
        let mut best: [Option<(usize, Symbol<'a>)>; N] = [None; N];
        let components = name.split("::").count();
        for symbol in self
            .symbols()
            .filter(|symbol| symbol.flags.contains(Flags::SITE))
        {
            let key = edit_distance(last_components(symbol.name, components), name);
            if best.iter().flatten().any(|(_, s)| s.name == symbol.name) {
                continue;
            }
            let at = best
                .iter()
                .take_while(|entry| entry.is_some_and(|(k, _)| k <= key))
                .count();
            if let Some(tail) = best.get_mut(at..)
                && !tail.is_empty()
            {
                tail.rotate_right(1);
                if let Some(entry) = tail.first_mut() {
                    *entry = Some((key, symbol));
                }
            }
        }
        best.map(|entry| entry.map(|(_, symbol)| symbol))
    }
}

/// Of `all` those that are called exactly `name`, or, if there are none, those whose path ends in it.
fn named<'a, 'n, T>(
    all: impl Iterator<Item = T> + Clone,
    name_of: fn(&T) -> &'a str,
    name: &'n str,
) -> impl Iterator<Item = T> {
    let exact = all.clone().any(|item| name_of(&item) == name);
    all.filter(move |item| match exact {
        true => name_of(item) == name,
        false => is_path_suffix(name_of(item), name),
    })
}

/// Whether `name` ends in `suffix` at a path boundary, angle brackets aside.
fn is_path_suffix(name: &str, suffix: &str) -> bool {
    fn plain(text: &str) -> impl Iterator<Item = u8> + '_ {
        text.bytes()
            .rev()
            .filter(|byte| !matches!(byte, b'<' | b'>'))
    }
    let mut rest = plain(name);
    !suffix.is_empty()
        && plain(suffix).all(|byte| rest.next() == Some(byte))
        && matches!(rest.next(), None | Some(b':' | b' '))
}

/// The last `count` components of a path, or all of it.
fn last_components(path: &str, count: usize) -> &str {
    path.rmatch_indices("::")
        .nth(count.saturating_sub(1))
        .and_then(|(at, _)| path.get(at + 2..))
        .unwrap_or(path)
}

/// Insertions, deletions, replacements from one text to the other; of long texts the last 64 bytes count.
fn edit_distance(a: &str, b: &str) -> usize {
    const LONGEST: usize = 64;
    fn tail(text: &str) -> &[u8] {
        let bytes = text.as_bytes();
        bytes.last_chunk::<LONGEST>().map_or(bytes, |tail| tail)
    }
    let (a, b) = (tail(a), tail(b));
    // row[j]: distance from the part of `a` seen so far to the first j bytes of `b`.
    let mut row: [usize; LONGEST + 1] = core::array::from_fn(|j| j);
    for (i, x) in a.iter().enumerate() {
        let (mut diagonal, mut left) = (i, i + 1);
        for (cell, y) in row.iter_mut().skip(1).zip(b) {
            let replace = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = *cell;
            left = replace.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.get(b.len()).copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_suffixes() {
        let name = "<smoltcp::socket::tcp::Socket>::process";
        for (suffix, fits) in [
            ("process", true),
            ("Socket::process", true),
            ("tcp::Socket::process", true),
            ("rocess", false),
            ("udp::Socket::process", false),
            ("", false),
        ] {
            assert_eq!(is_path_suffix(name, suffix), fits, "{suffix:?}");
        }
    }

    #[test]
    fn distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("ABC", "abc"), 0);
        assert_eq!(edit_distance(&"x".repeat(300), &"x".repeat(200)), 0);
        assert_eq!(last_components("a::b::c", 2), "b::c");
        assert_eq!(last_components("a::b::c", 5), "a::b::c");
    }

    #[test]
    fn anything_is_a_blob_or_an_error() {
        assert_eq!(
            Blob::parse(&[]).err(),
            Some(BlobError::Truncated(HEADER, 0))
        );
        assert_eq!(Blob::parse(&[0; 100]).err(), Some(BlobError::Magic([0; 8])));
        let mut bytes = [0_u8; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = HEADER as u8;
        assert_eq!(Blob::parse(&bytes).map(|b| b.symbols().count()), Ok(0));
        bytes[12] = 1;
        bytes[16] = 76;
        assert_eq!(
            Blob::parse(&bytes).err(),
            Some(BlobError::Section("symbols"))
        );
    }
}
