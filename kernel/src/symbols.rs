// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own names, sites and types: the blob that xtask appended to the image.

use crate::arch::lock::Late;
use crate::hooked;
use crate::ksyms::{Blob, BlobError};
use alloc::boxed::Box;

static BLOB: Late<Blob<'static>> = Late::new();

/// Reads the blob behind the image.
pub(crate) fn init() -> Result<(), BlobError> {
    let blob = Blob::parse(crate::mm::blob())?;
    BLOB.set(Box::leak(Box::new(blob)));
    Ok(())
}

/// Names and sites, if the image has them.
pub(crate) fn blob() -> Option<&'static Blob<'static>> {
    BLOB.get()
}

/// The types of what the kernel exports, as BTF (`linux/btf.h`, from its magic number on), if the image has them. The bytes
/// start at a multiple of 8.
pub(crate) fn btf() -> Option<&'static [u8]> {
    blob().map(Blob::btf).filter(|btf| !btf.is_empty())
}

/// The most bytes of stack that a call of the function at `address` takes, with all that it calls: of helpers, native hooks and
/// what else is on the hook path, as far as `cargo xtask audit` knows it.
pub(crate) fn stack_of(address: u64) -> Option<u32> {
    blob()?.stack_of(address)
}

/// An address, printed as `name+offset`, or as what else it is known to be, with what hooks the function, if anything does:
/// `workload_call+0x8 [hooked: fentry count]`. For reports: no lock, no allocation.
pub(crate) struct Name(pub usize);

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Some((symbol, offset)) = blob().and_then(|b| b.lookup(self.0 as u64)) else {
            return crate::hook::describe_address(self.0, f);
        };
        write!(f, "{}+{offset:#x}", symbol.name)?;
        match hooked::of(self.0 as u64) {
            Some(mark) => write!(f, " [hooked: {mark}]"),
            None => Ok(()),
        }
    }
}

/// The function that an address lies in, printed without the offset. No lock, no allocation.
pub(crate) struct FunctionName(pub usize);

impl core::fmt::Display for FunctionName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match blob().and_then(|b| b.lookup(self.0 as u64)) {
            Some((symbol, _)) => f.write_str(symbol.name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl Name {
    /// The function that the address lies in, without the offset.
    pub(crate) fn function(&self) -> alloc::string::String {
        alloc::format!("{}", FunctionName(self.0))
    }
}
