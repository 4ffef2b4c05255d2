// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bootable Image: the kernel's bytes, the symbol blob behind them, the size in the header.
//!
//! The header is that of the arm64 boot protocol (Linux, Documentation/arch/arm64/booting.rst): `image_size` at byte 16,
//! the magic number `ARM\x64` at byte 56.

use std::fs;
use std::path::Path;

use crate::Outcome;
use crate::audit;
use crate::btf;
use crate::files;
use crate::inlined;
use crate::linked::Linked;
use crate::notrace::{self, Notrace};
use crate::rules::{self, Rules};
use crate::symbols;
use crate::workspace::{KERNEL, Workspace};

const IMAGE_SIZE: usize = 16;
const MAGIC_AT: usize = 56;
const MAGIC: [u8; 4] = *b"ARM\x64";
/// The Image ends on a whole page of this size in bytes.
const PAGE: usize = 4096;
/// What the boot page tables map: the sixteen level 3 tables of kernel/src/arch/boot.s.
const MOST: usize = 16 * 512 * PAGE;

/// Why there is no Image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The kernel does not start with the boot protocol's header.
    #[error(
        "the kernel does not start with an arm64 Image header: {MAGIC:02x?} expected at byte 56, {0:02x?} found; \
         linker/kernel.ld puts section .head first"
    )]
    Magic(Vec<u8>),
    /// The blob would not start where the kernel looks for it.
    #[error(
        "_image_end is not a multiple of {PAGE}: the image is {0:#x} bytes long; see linker/kernel.ld"
    )]
    Unaligned(usize),
    /// The boot page tables end before it.
    #[error(
        "kernel and symbols are {0:#x} bytes, the boot page tables map {MOST:#x}; make the kernel smaller, or boot_l3 in \
         kernel/src/arch/boot.s larger"
    )]
    TooLarge(usize),
}

/// The Image file's bytes.
pub(crate) fn assemble(mut bytes: Vec<u8>, blob: &[u8]) -> Result<Vec<u8>, ImageError> {
    let found = bytes.get(MAGIC_AT..MAGIC_AT + MAGIC.len());
    if found != Some(&MAGIC) {
        return Err(ImageError::Magic(found.unwrap_or_default().to_vec()));
    }
    if !bytes.len().is_multiple_of(PAGE) {
        return Err(ImageError::Unaligned(bytes.len()));
    }
    bytes.extend(blob);
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    if bytes.len() > MOST {
        return Err(ImageError::TooLarge(bytes.len()));
    }
    let size = (bytes.len() as u64).to_le_bytes();
    for (place, byte) in bytes.iter_mut().skip(IMAGE_SIZE).zip(size) {
        *place = byte;
    }
    Ok(bytes)
}

/// The linked kernel of an ELF file, its notrace set, and the rules that hold in it.
pub(crate) fn examine(workspace: &Workspace, elf: &Path) -> Outcome<(Linked, Notrace, Rules)> {
    examine_under(workspace, elf, &str::to_owned)
}

/// The same under other rules, made of the file's.
pub(crate) fn examine_under(
    workspace: &Workspace,
    elf: &Path,
    edit: &dyn Fn(&str) -> String,
) -> Outcome<(Linked, Notrace, Rules)> {
    let linked = Linked::read(&files::read(elf)?)?;
    let roots = files::read_text(&workspace.root.join(notrace::ROOTS))?;
    let rules = edit(&files::read_text(&workspace.root.join(rules::RULES))?);
    let rules = Rules::parse(&rules)?;
    rules.check(&linked)?;
    let set = Notrace::compute(&linked, &notrace::parse_roots(&roots)?, &rules)?;
    Ok((linked, set, rules))
}

/// Makes the Image of an ELF file, and springboard.h, which has its types for programs in C. Where both are newer than the
/// ELF file, the roots and this program, they are left alone.
pub(crate) fn make(workspace: &Workspace, elf: &Path, image: &Path) -> Outcome<()> {
    let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let sources = [
        changed(elf),
        changed(&workspace.root.join(notrace::ROOTS)),
        changed(&workspace.root.join(rules::RULES)),
        std::env::current_exe().ok().and_then(|path| changed(&path)),
    ];
    let header = workspace.include().join(btf::header::NAME);
    let made = changed(image).min(changed(&header));
    if made.is_some() && sources.iter().all(|s| s.is_some() && *s < made) {
        return Ok(());
    }
    let (linked, set, rules) = examine(workspace, elf)?;
    let version = format!("{KERNEL} {}", env!("CARGO_PKG_VERSION"));
    let file = files::read(elf)?;
    let graph = btf::of_elf(&file)?;
    files::write(&header, btf::header::header(&graph).as_bytes())?;
    let btf = btf::write::write(&graph)?;
    let stacks = audit::stack_table(&linked, &set, &rules);
    let notrace = |index| set.contains(index);
    let inlined = inlined::of_elf(&file, &linked)?;
    let blob = symbols::blob(&linked, notrace, &stacks, &version, &btf, &inlined)?;
    Ok(files::write(image, &assemble(linked.bytes, &blob)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_states_the_size_of_the_whole_file() {
        let mut bytes = vec![0x11; 2 * PAGE];
        bytes[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(&MAGIC);
        let image = assemble(bytes, &[0x22; 100]).expect("image");
        assert_eq!(image.len(), 3 * PAGE);
        let blob = vec![0; MOST];
        let refused = assemble(image.clone(), &blob);
        assert!(matches!(refused, Err(ImageError::TooLarge(n)) if n == MOST + 3 * PAGE));
        assert_eq!(image[IMAGE_SIZE..IMAGE_SIZE + 8], 12288_u64.to_le_bytes());
        assert_eq!((image[15], image[24]), (0x11, 0x11));
        assert_eq!((image[2 * PAGE], image[2 * PAGE + 100]), (0x22, 0));
    }

    #[test]
    fn what_cannot_boot_is_refused() {
        assert!(matches!(
            assemble(vec![0; PAGE], &[]),
            Err(ImageError::Magic(_))
        ));
        assert!(matches!(assemble(vec![], &[]), Err(ImageError::Magic(_))));
        let mut bytes = vec![0; 100];
        bytes[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(&MAGIC);
        assert!(matches!(
            assemble(bytes, &[]),
            Err(ImageError::Unaligned(100))
        ));
    }
}
