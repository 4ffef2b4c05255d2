// SPDX-License-Identifier: MIT OR Apache-2.0
//! The initial RAM disk: a cpio archive ("newc") of BPF objects.
//!
//! Format: cpio(5), "New ASCII Format": a header of 110 characters, thirteen fields of eight hexadecimal digits behind the
//! magic 070701; name and data padded to four bytes; the member TRAILER!!! ends it.

use crate::{mm, system};
use alloc::vec::Vec;
use core::fmt;

/// A member of the archive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    /// Its path.
    pub name: &'static str,
    /// Its contents.
    pub bytes: &'static [u8],
}

/// Why there are no files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitrdError {
    /// The boot loader passed none.
    Missing,
    /// It does not lie in memory.
    NotInMemory,
    /// There is nothing in it.
    Empty,
    /// It breaks off or is no newc archive: what is wrong, and at which byte.
    Malformed(&'static str, usize),
}

impl fmt::Display for InitrdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InitrdError::Missing => write!(
                f,
                "there is no initrd: pass programs.cpio (QEMU: -initrd, a Pi: initramfs programs.cpio followkernel)"
            ),
            InitrdError::NotInMemory => {
                write!(
                    f,
                    "/chosen linux,initrd-start and -end do not name memory; the boot loader has to set them"
                )
            }
            InitrdError::Empty => write!(
                f,
                "the initrd is empty: it has to be a cpio archive (newc) of BPF objects"
            ),
            InitrdError::Malformed(what, at) => {
                write!(
                    f,
                    "the initrd is no cpio archive (newc) at byte {at}: {what}; make it with `cpio -o -H newc`"
                )
            }
        }
    }
}

const HEADER: usize = 110;

/// The initrd as it is.
pub(crate) fn bytes() -> Result<&'static [u8], InitrdError> {
    let region = system()
        .and_then(|s| s.machine.initrd)
        .ok_or(InitrdError::Missing)?;
    if region.size == 0 {
        return Err(InitrdError::Empty);
    }
    mm::boot_memory(&region).ok_or(InitrdError::NotInMemory)
}

/// The files of the initrd.
pub(crate) fn files() -> Result<Vec<File>, InitrdError> {
    parse(bytes()?)
}

/// The files of an archive. What follows the trailer is padding.
pub(crate) fn parse(archive: &'static [u8]) -> Result<Vec<File>, InitrdError> {
    let mut files = Vec::new();
    let mut at = 0;
    loop {
        let malformed = |what| InitrdError::Malformed(what, at);
        let header = archive
            .get(at..at + HEADER)
            .ok_or(malformed("it ends before the trailer"))?;
        if header.get(..6) != Some(b"070701") {
            return Err(malformed("the magic 070701 is not there"));
        }
        let field = |n: usize| {
            let digits = header.get(6 + 8 * n..14 + 8 * n)?;
            usize::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
        };
        let size = field(6).ok_or(malformed("the size is not hexadecimal"))?;
        let name_size = field(11).ok_or(malformed("the name's size is not hexadecimal"))?;
        let name_at = at + HEADER;
        let name = archive
            .get(name_at..name_at + name_size)
            .and_then(|n| n.strip_suffix(&[0]))
            .and_then(|n| core::str::from_utf8(n).ok())
            .ok_or(malformed(
                "the name is not a zero-terminated UTF-8 string inside the archive",
            ))?;
        if name == "TRAILER!!!" {
            return if files.is_empty() {
                Err(InitrdError::Empty)
            } else {
                Ok(files)
            };
        }
        let data_at = (name_at + name_size).next_multiple_of(4);
        let bytes = archive
            .get(data_at..data_at + size)
            .ok_or(malformed("a file goes beyond the archive's end"))?;
        if size != 0 {
            files.push(File { name, bytes });
        }
        at = (data_at + size).next_multiple_of(4);
    }
}
