// SPDX-License-Identifier: MIT OR Apache-2.0
//! The linked kernel, read from its ELF file: bytes, functions, patchable entries.

use std::collections::BTreeMap;
use std::ops::Range;

use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SectionKind};

/// The instruction NOP (Arm ARM C6.2).
pub(crate) const NOP: u32 = 0xd503_201f;
/// Distance in bytes from a patchable entry, as the compiler lists it, to the function's entry: the two words before it.
const BEFORE_ENTRY: u64 = 8;

/// What is wrong with a kernel's ELF file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkedError {
    /// Not an ELF file, or a broken one.
    #[error("the kernel's ELF file cannot be read: {0}")]
    Elf(#[from] object::Error),
    /// For another machine.
    #[error(
        "the kernel's ELF file is for machine {0}, not for AArch64 (183): build it by `cargo xtask run`"
    )]
    Machine(u16),
    /// A symbol of the linker script is missing.
    #[error(
        "the kernel's ELF file has no symbol {0}: linker/kernel.ld defines it, so it was not linked by that script"
    )]
    Symbol(&'static str),
    /// A segment does not lie in the image.
    #[error(
        "segment {start:#x}..{end:#x} lies outside the image {image:#x?}: see linker/kernel.ld"
    )]
    Segment {
        start: u64,
        end: u64,
        image: Range<u64>,
    },
    /// The compiler was not told to leave room for hooks.
    #[error(
        "{sites} of {functions} functions have a site, less than half: an RUSTFLAGS in the environment replaces the flags of \
         .cargo/config.toml; unset it and build again"
    )]
    TooFewSites { sites: usize, functions: usize },
    /// An entry is not made of NOPs.
    #[error(
        "the patchable entry of {name} at {address:#x} holds {words:08x?}, not four NOPs ({NOP:08x})"
    )]
    NotNops {
        name: String,
        address: u64,
        words: Vec<u32>,
    },
    /// An entry belongs to no function.
    #[error("the patchable entry at {0:#x} is not the start of a function")]
    NoFunction(u64),
}

/// A function, or a label in assembly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    /// Address of the entry.
    pub(crate) address: u64,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Demangled name, without the crate hash.
    pub(crate) name: String,
    /// Exported without mangling.
    pub(crate) global: bool,
    /// Assembly without a size of its own.
    pub(crate) label: bool,
    /// Made by the linker or the compiler's outliner.
    pub(crate) synthetic: bool,
}

impl Function {
    /// The addresses of its instructions.
    pub(crate) fn range(&self) -> Range<u64> {
        self.address..self.address + self.size
    }
}

/// A linked kernel.
#[derive(Debug, Default)]
pub(crate) struct Linked {
    /// Link address of the first byte (`_image_start`).
    pub(crate) base: u64,
    /// Everything from `_image_start` to `_image_end`, .bss included.
    pub(crate) bytes: Vec<u8>,
    /// The address behind the code (`_text_end`).
    pub(crate) text_end: u64,
    /// Functions and labels by address, the best name of an address first.
    pub(crate) functions: Vec<Function>,
    /// Entries with two NOPs, sorted.
    pub(crate) entries: Vec<u64>,
    /// Ranges of data in code ($d mapping symbols, AAELF64 5.5), sorted.
    pub(crate) data: Vec<Range<u64>>,
}

/// The prefixes of names that no source has.
const SYNTHETIC: [&str; 3] = ["OUTLINED_FUNCTION_", "__CortexA53843419_", "__AArch64"];

/// The name as people write it, and whether it was mangled.
pub(crate) fn readable(symbol: &str) -> (String, bool) {
    match rustc_demangle::try_demangle(symbol) {
        Ok(name) => (format!("{name:#}"), true),
        Err(_) => (symbol.to_owned(), false),
    }
}

impl Linked {
    /// Reads and checks a kernel's ELF file.
    pub(crate) fn read(file: &[u8]) -> Result<Self, LinkedError> {
        let elf = ElfFile64::<Endianness>::parse(file)?;
        let machine = elf.elf_header().e_machine(elf.endian());
        if machine != elf::EM_AARCH64 {
            return Err(LinkedError::Machine(machine.0));
        }
        let address = |name: &'static str| {
            elf.symbols()
                .find(|symbol| symbol.name() == Ok(name))
                .map(|symbol| symbol.address())
                .ok_or(LinkedError::Symbol(name))
        };
        let image = address("_image_start")?..address("_image_end")?;
        let mut linked = Self {
            base: image.start,
            bytes: flat(&elf, file, &image)?,
            text_end: address("_text_end")?,
            ..Self::default()
        };
        linked.read_symbols(&elf)?;
        linked.read_entries(&elf)?;
        Ok(linked)
    }

    fn read_symbols(&mut self, elf: &ElfFile64<'_, Endianness>) -> Result<(), LinkedError> {
        let mut labels = Vec::new();
        let mut code = Vec::new();
        for section in elf.sections() {
            if section.kind() == SectionKind::Text {
                code.push(section.address()..section.address() + section.size());
            }
        }
        let mut mapping = BTreeMap::new();
        for symbol in elf.symbols() {
            let (name, address) = (symbol.name()?, symbol.address());
            let in_code = code.iter().any(|range| range.contains(&address));
            if !in_code || name.is_empty() {
                continue;
            }
            if let Some(kind) = ["$d", "$x"].iter().find(|kind| name.starts_with(**kind)) {
                mapping.insert(address, *kind == "$d");
                continue;
            }
            let label = match symbol.elf_symbol().st_type() {
                elf::STT_FUNC => symbol.size() == 0,
                elf::STT_NOTYPE => true,
                _ => continue,
            };
            let (readable, mangled) = readable(name);
            let function = Function {
                address,
                size: symbol.size(),
                name: readable,
                global: !label && !mangled && symbol.is_global(),
                label,
                synthetic: SYNTHETIC.iter().any(|prefix| name.starts_with(prefix)),
            };
            match label {
                true => labels.push(function),
                false => self.functions.push(function),
            }
        }
        self.functions.sort_by_key(|f| f.address);
        // Labels inside a function are its own business; the others reach to whatever comes next.
        labels.retain(|label| {
            let before = self
                .functions
                .partition_point(|f| f.address <= label.address);
            let last = before.checked_sub(1).and_then(|i| self.functions.get(i));
            !last.is_some_and(|f| f.range().contains(&label.address))
        });
        self.functions.extend(labels);
        self.functions.sort_by(|a, b| {
            let key = |f: &Function| (f.address, f.label, !f.global, f.name.len());
            key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
        });
        let starts: Vec<u64> = self.functions.iter().map(|f| f.address).collect();
        for function in self.functions.iter_mut().filter(|f| f.size == 0) {
            let next = starts.get(starts.partition_point(|start| *start <= function.address));
            let end = code
                .iter()
                .find(|range| range.contains(&function.address))
                .map_or(function.address, |range| range.end);
            function.size = next.map_or(end, |next| (*next).min(end)) - function.address;
        }
        let ends = mapping.keys().skip(1).copied().chain([u64::MAX]);
        self.data = mapping
            .iter()
            .zip(ends)
            .filter(|((_, data), _)| **data)
            .map(|((start, _), end)| *start..end)
            .collect();
        Ok(())
    }

    fn read_entries(&mut self, elf: &ElfFile64<'_, Endianness>) -> Result<(), LinkedError> {
        for section in elf.sections() {
            if section.name() != Ok("__patchable_function_entries") {
                continue;
            }
            let words = section.data()?.as_chunks().0;
            // An address of 0 stands for a function that the linker left out.
            let listed = words.iter().map(|word| u64::from_le_bytes(*word));
            self.entries
                .extend(listed.filter(|at| *at != 0).map(|at| at + BEFORE_ENTRY));
        }
        self.entries.sort_unstable();
        self.entries.dedup();
        let functions = self
            .functions
            .iter()
            .filter(|f| !f.label && !f.synthetic)
            .count();
        if self.entries.is_empty() || self.entries.len() * 2 < functions {
            return Err(LinkedError::TooFewSites {
                sites: self.entries.len(),
                functions,
            });
        }
        for &entry in &self.entries {
            let function = self.at(entry).ok_or(LinkedError::NoFunction(entry))?;
            let words: Vec<u32> = (0..4)
                .filter_map(|i| self.word(entry - BEFORE_ENTRY + 4 * i))
                .collect();
            if words != [NOP; 4] {
                return Err(LinkedError::NotNops {
                    name: function.name.clone(),
                    address: entry,
                    words,
                });
            }
        }
        Ok(())
    }

    /// The function or label that starts at `address`.
    pub(crate) fn at(&self, address: u64) -> Option<&Function> {
        let first = self.functions.partition_point(|f| f.address < address);
        self.functions
            .get(first)
            .filter(|f| f.address == address && !f.label)
    }

    /// The index of the function or label that `address` lies in.
    pub(crate) fn containing(&self, address: u64) -> Option<usize> {
        let after = self.functions.partition_point(|f| f.address <= address);
        let start = self.functions.get(after.checked_sub(1)?)?.address;
        let first = self.functions.partition_point(|f| f.address < start);
        let function = self.functions.get(first)?;
        function.range().contains(&address).then_some(first)
    }

    /// The index of the first function or label that starts at `address`.
    pub(crate) fn starting(&self, address: u64) -> Option<usize> {
        let first = self.functions.partition_point(|f| f.address < address);
        let starts = self.functions.get(first)?.address == address;
        starts.then_some(first)
    }

    /// The indices of all functions that share the address of function `index`.
    pub(crate) fn same(&self, index: usize) -> Range<usize> {
        let Some(address) = self.functions.get(index).map(|f| f.address) else {
            return index..index;
        };
        let first = self.functions.partition_point(|f| f.address < address);
        first..self.functions.partition_point(|f| f.address <= address)
    }

    /// The names of function `index`: several if the compiler or the linker found the same body twice.
    pub(crate) fn names(&self, index: usize) -> impl Iterator<Item = &str> {
        let all = self.functions.get(self.same(index)).unwrap_or_default();
        all.iter().map(|f| f.name.as_str())
    }

    /// The best name of function `index`.
    pub(crate) fn name(&self, index: usize) -> &str {
        self.names(index).next().unwrap_or("?")
    }

    /// The bytes of the code, from the image's first on.
    pub(crate) fn text(&self) -> &[u8] {
        let length = usize::try_from(self.text_end.saturating_sub(self.base)).ok();
        length
            .and_then(|length| self.bytes.get(..length))
            .unwrap_or_default()
    }

    /// The word at `address`.
    pub(crate) fn word(&self, address: u64) -> Option<u32> {
        let at = usize::try_from(address.checked_sub(self.base)?).ok()?;
        let word = self.bytes.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*word))
    }

    /// The instructions of a function with their addresses, data in the code left out.
    pub(crate) fn instructions(&self, function: &Function) -> impl Iterator<Item = (u64, u32)> {
        function
            .range()
            .step_by(4)
            .filter(|address| {
                let after = self.data.partition_point(|range| range.start <= *address);
                let last = after.checked_sub(1).and_then(|i| self.data.get(i));
                !last.is_some_and(|range| range.contains(address))
            })
            .filter_map(|address| Some((address, self.word(address)?)))
    }
}

/// The image's bytes: the loaded segments, zeros where no file bytes are.
fn flat(
    elf: &ElfFile64<'_, Endianness>,
    file: &[u8],
    image: &Range<u64>,
) -> Result<Vec<u8>, LinkedError> {
    let length = usize::try_from(image.end.saturating_sub(image.start)).unwrap_or(0);
    let mut bytes = vec![0; length];
    let endian = elf.endian();
    for segment in elf.elf_program_headers() {
        if segment.p_type(endian) != elf::PT_LOAD || segment.p_memsz(endian) == 0 {
            continue;
        }
        let (start, size) = (segment.p_vaddr(endian), segment.p_memsz(endian));
        let outside = || LinkedError::Segment {
            start,
            end: start.saturating_add(size),
            image: image.clone(),
        };
        let data = segment.data(endian, file).map_err(|()| outside())?;
        let within = start
            .checked_add(size)
            .is_some_and(|end| start >= image.start && end <= image.end);
        let at = usize::try_from(start.wrapping_sub(image.start)).map_err(|_| outside())?;
        match bytes.get_mut(at..at + data.len()) {
            Some(place) if within => place.copy_from_slice(data),
            _ => return Err(outside()),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A kernel made up of functions: (name, words); the entries of those whose first two words are NOPs are sites.
    pub(crate) fn made_up(functions: &[(&str, &[u32])]) -> Linked {
        let base = 0xffff_ffff_8000_0000;
        let mut linked = Linked {
            base,
            ..Linked::default()
        };
        for (name, words) in functions {
            let address = base + linked.bytes.len() as u64;
            for word in *words {
                linked.bytes.extend(word.to_le_bytes());
            }
            if words.starts_with(&[NOP, NOP]) {
                linked.entries.push(address);
            }
            linked.functions.push(Function {
                address,
                size: 4 * words.len() as u64,
                name: (*name).to_owned(),
                global: !name.contains(':'),
                label: false,
                synthetic: SYNTHETIC.iter().any(|prefix| name.starts_with(prefix)),
            });
        }
        linked.text_end = base + linked.bytes.len() as u64;
        linked
    }

    #[test]
    fn names_are_readable() {
        let legacy = "_ZN7smoltcp6socket3tcp6Socket7process17h0123456789abcdefE";
        assert_eq!(
            readable(legacy),
            ("smoltcp::socket::tcp::Socket::process".into(), true)
        );
        assert_eq!(readable("workload_call"), ("workload_call".into(), false));
    }

    #[test]
    fn anything_is_a_kernel_or_an_error() {
        assert!(matches!(Linked::read(b""), Err(LinkedError::Elf(_))));
        let this = std::env::current_exe()
            .ok()
            .and_then(|path| std::fs::read(path).ok());
        let this = this.expect("this test's own executable");
        let error = Linked::read(&this).expect_err("a host executable is no kernel");
        assert!(matches!(
            error,
            LinkedError::Machine(_) | LinkedError::Symbol("_image_start")
        ));
        for length in (0..this.len().min(4096)).step_by(7) {
            assert!(Linked::read(&this[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn addresses_find_functions() {
        let linked = made_up(&[("a", &[NOP, NOP, 1]), ("b", &[2])]);
        assert_eq!(linked.containing(linked.base + 8), Some(0));
        assert_eq!(linked.containing(linked.base + 12), Some(1));
        assert_eq!(linked.containing(linked.base + 16), None);
        assert_eq!(linked.at(linked.base + 12).map(|f| &*f.name), Some("b"));
        assert_eq!(linked.at(linked.base + 8), None);
    }
}
