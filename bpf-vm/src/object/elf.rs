// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ELF file as the loader needs it: sections, symbols and relocations, checked once.
#![forbid(unsafe_code)]

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use object::{
    LittleEndian, SectionIndex, SymbolIndex, elf,
    read::elf::{FileHeader, SectionHeader, Sym as _, SymbolTable},
};

use super::ObjectError;

type Header = elf::FileHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// Bytes of `e_ident`, which says what kind of ELF file the rest is.
const IDENT_BYTES: usize = 16;

/// A section.
#[derive(Debug)]
pub(super) struct Section<'a> {
    pub(super) name: &'a str,
    kind: elf::SectionType,
    flags: elf::SectionFlags,
    /// Bytes of it in memory.
    pub(super) size: u64,
    /// Bytes of it in the file: none for `.bss`.
    pub(super) data: &'a [u8],
    /// For relocations: the section that they change.
    target: usize,
}

impl Section<'_> {
    /// Whether it holds instructions.
    pub(super) fn is_code(&self) -> bool {
        self.kind == elf::SHT_PROGBITS && self.flags.contains(elf::SHF_EXECINSTR)
    }

    /// Whether it holds data of a running program.
    pub(super) fn is_data(&self) -> bool {
        self.flags.contains(elf::SHF_ALLOC) && !self.flags.contains(elf::SHF_EXECINSTR)
    }

    /// Whether the file holds nothing of it: all its bytes are zero at first.
    pub(super) fn is_zeroed(&self) -> bool {
        self.kind == elf::SHT_NOBITS
    }
}

/// A symbol.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Symbol<'a> {
    /// Its name; for a section's own symbol the section's.
    pub(super) name: &'a str,
    /// The section that defines it; none for one defined elsewhere.
    pub(super) section: Option<usize>,
    /// Its offset in the section.
    pub(super) value: u64,
    /// Its size in bytes.
    pub(super) size: u64,
    kind: elf::SymbolType,
    bind: elf::SymbolBind,
}

impl Symbol<'_> {
    pub(super) fn is_function(&self) -> bool {
        self.kind == elf::STT_FUNC
    }

    pub(super) fn is_object(&self) -> bool {
        self.kind == elf::STT_OBJECT
    }

    pub(super) fn is_local(&self) -> bool {
        self.bind == elf::STB_LOCAL
    }

    pub(super) fn is_weak(&self) -> bool {
        self.bind == elf::STB_WEAK
    }
}

/// A relocation: the place `offset` of a section refers to a symbol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relocation {
    /// Offset in the section that it changes.
    pub(super) offset: u64,
    /// Its type's number (`R_BPF_*`).
    pub(super) kind: u32,
    /// The symbol's index.
    pub(super) symbol: usize,
}

/// A relocatable BPF ELF file.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    pub(super) sections: Vec<Section<'a>>,
    pub(super) symbols: Vec<Symbol<'a>>,
}

impl<'a> Elf<'a> {
    /// Reads the headers; every section's data lies inside of the file and no two share bytes of it.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, ObjectError> {
        let header = header(data)?;
        let table = header
            .sections(LE, data)
            .map_err(|error| section_table_error(header, data, error))?;
        let mut sections = Vec::with_capacity(table.len());
        let mut bytes_in_file = 0u64;
        for (index, section) in table.iter().enumerate() {
            let name = if index == 0 {
                ""
            } else {
                let place = || format!("section {index}");
                text(
                    table
                        .section_name(LE, section)
                        .map_err(|error| malformed(place(), error))?,
                    place,
                )?
            };
            // Section 0 is no section; its fields extend the header's.
            let kind = if index == 0 {
                elf::SHT_NULL
            } else {
                section.sh_type(LE)
            };
            let content = match (kind, section.file_range(LE)) {
                (elf::SHT_NULL, _) | (_, None) => &[][..],
                (_, Some((start, size))) => {
                    slice(data, start, size, || format!("section `{name}`"))?
                }
            };
            bytes_in_file = bytes_in_file.saturating_add(content.len() as u64);
            sections.push(Section {
                name,
                kind,
                flags: section.sh_flags(LE),
                size: section.sh_size(LE),
                data: content,
                target: section.info_link(LE).0,
            });
        }
        // So that what is made of all sections is bounded by the file's length.
        if bytes_in_file > data.len() as u64 {
            return Err(ObjectError::Malformed {
                place: "the section table".into(),
                problem: format!(
                    "sections hold {bytes_in_file} bytes in a file of {}, so some overlap",
                    data.len()
                ),
            });
        }
        let table = table
            .symbols(LE, data, elf::SHT_SYMTAB)
            .map_err(|error| malformed("the symbol table".into(), error))?;
        let symbols = symbols(&table, &sections)?;
        Ok(Self { sections, symbols })
    }

    /// The first section of a name, with its index.
    pub(super) fn section(&self, name: &str) -> Option<(usize, &Section<'a>)> {
        self.sections
            .iter()
            .enumerate()
            .find(|(_, section)| section.name == name)
    }

    /// The relocations of each section, sorted by offset: an entry per section.
    pub(super) fn relocations(&self) -> Result<Vec<Vec<Relocation>>, ObjectError> {
        let mut by_section = Vec::new();
        by_section.resize_with(self.sections.len(), Vec::new);
        for section in &self.sections {
            let Some(target) = self.sections.get(section.target) else {
                continue;
            };
            match section.kind {
                elf::SHT_REL if target.is_code() || target.is_data() => {}
                elf::SHT_RELA if target.is_code() || target.is_data() => {
                    return Err(ObjectError::Malformed {
                        place: format!("section `{}`", section.name),
                        problem:
                            "relocations with addends (SHT_RELA), which BPF objects do not have"
                                .into(),
                    });
                }
                _ => continue,
            }
            let place = || format!("section `{}`", section.name);
            let (relocations, _) = object::pod::slice_from_bytes::<elf::Rel64<LittleEndian>>(
                section.data,
                section.data.len() / size_of::<elf::Rel64<LittleEndian>>(),
            )
            .map_err(|()| ObjectError::Malformed {
                place: place(),
                problem: "not a whole number of relocations".into(),
            })?;
            let Some(list) = by_section.get_mut(section.target) else {
                continue;
            };
            for relocation in relocations {
                let offset = relocation.r_offset.get(LE);
                let symbol = relocation.r_sym(LE) as usize;
                if offset >= target.size || symbol >= self.symbols.len() {
                    return Err(ObjectError::Malformed {
                        place: place(),
                        problem: format!(
                            "a relocation at offset {offset:#x} for symbol {symbol}; `{}` has {:#x} bytes, the file {} \
                             symbols",
                            target.name,
                            target.size,
                            self.symbols.len()
                        ),
                    });
                }
                list.push(Relocation {
                    offset,
                    kind: relocation.r_type(LE).0,
                    symbol,
                });
            }
        }
        for list in &mut by_section {
            list.sort_unstable_by_key(|relocation| relocation.offset);
        }
        Ok(by_section)
    }
}

/// The file header of a relocatable BPF file, or what the file is instead.
fn header(data: &[u8]) -> Result<&Header, ObjectError> {
    let foreign = |found: String| Err(ObjectError::Foreign { found });
    let Some((ident, rest)) = data.split_first_chunk::<IDENT_BYTES>() else {
        return Err(truncated(
            "the ELF header",
            size_of::<Header>() as u64,
            data,
        ));
    };
    let [m0, m1, m2, m3, class, order, ..] = *ident;
    if [m0, m1, m2, m3] != elf::ELFMAG {
        return foreign(format!(
            "a file that starts with the bytes {m0:02x} {m1:02x} {m2:02x} {m3:02x} (ELF: 7f 45 4c 46)"
        ));
    }
    // e_type and e_machine follow e_ident in every class; read them in the file's own byte order.
    let Some((&[t0, t1, e0, e1], _)) = rest.split_first_chunk::<4>() else {
        return Err(truncated(
            "the ELF header",
            size_of::<Header>() as u64,
            data,
        ));
    };
    let big = order == elf::ELFDATA2MSB.0;
    let read = |bytes| {
        if big {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    };
    let machine = elf::Machine(read([e0, e1]));
    if machine != elf::EM_BPF {
        let name = machine.name().unwrap_or("an unknown machine");
        return foreign(format!("an ELF file for {name} (machine {})", machine.0));
    }
    if class != elf::ELFCLASS64.0 || order != elf::ELFDATA2LSB.0 {
        return foreign(format!(
            "a BPF file of class {class} and byte order {order}, where 64-bit (2), little-endian (1) is needed"
        ));
    }
    let kind = elf::FileType(read([t0, t1]));
    if kind != elf::ET_REL {
        return foreign(format!(
            "a BPF file of ELF type {}, where a relocatable object (1) is needed",
            kind.0
        ));
    }
    if data.len() < size_of::<Header>() {
        return Err(truncated(
            "the ELF header",
            size_of::<Header>() as u64,
            data,
        ));
    }
    Header::parse(data).map_err(|error| malformed("the ELF header".into(), error))
}

/// Says of a section table that cannot be read whether it lies past the end of the file.
fn section_table_error(header: &Header, data: &[u8], error: object::Error) -> ObjectError {
    let size = u64::from(header.e_shentsize(LE)) * u64::from(header.e_shnum(LE));
    let end = header.e_shoff(LE).saturating_add(size);
    if end > data.len() as u64 {
        truncated("the section table", end, data)
    } else {
        malformed("the section table".into(), error)
    }
}

/// All symbols, in the table's order.
fn symbols<'a>(
    table: &SymbolTable<'a, Header>,
    sections: &[Section<'a>],
) -> Result<Vec<Symbol<'a>>, ObjectError> {
    let mut symbols = Vec::with_capacity(table.len());
    for (index, symbol) in table.symbols().iter().enumerate() {
        let place = || format!("symbol {index}");
        let section = table
            .symbol_section(LE, symbol, SymbolIndex(index))
            .map_err(|error| malformed(place(), error))?;
        let home = match section {
            Some(SectionIndex(index)) => {
                Some(sections.get(index).ok_or_else(|| ObjectError::Malformed {
                    place: place(),
                    problem: format!("it is in section {index}, the file has {}", sections.len()),
                })?)
            }
            None => None,
        };
        let name = text(
            table
                .symbol_name(LE, symbol)
                .map_err(|error| malformed(place(), error))?,
            place,
        )?;
        symbols.push(Symbol {
            name: match home {
                Some(home) if name.is_empty() => home.name,
                _ => name,
            },
            section: section.map(|index| index.0),
            value: symbol.st_value(LE),
            size: symbol.st_size(LE),
            kind: symbol.st_type(),
            bind: symbol.st_bind(),
        });
    }
    Ok(symbols)
}

/// The `size` bytes at `start` of the file.
fn slice(
    data: &[u8],
    start: u64,
    size: u64,
    what: impl Fn() -> String,
) -> Result<&[u8], ObjectError> {
    let end = start.saturating_add(size);
    let range = usize::try_from(start)
        .ok()
        .zip(usize::try_from(end).ok())
        .and_then(|(start, end)| data.get(start..end));
    range.ok_or_else(|| truncated(&what(), end, data))
}

/// A name from a string table.
fn text(bytes: &[u8], place: impl Fn() -> String) -> Result<&str, ObjectError> {
    core::str::from_utf8(bytes).map_err(|error| malformed(place(), error))
}

fn truncated(what: &str, end: u64, data: &[u8]) -> ObjectError {
    ObjectError::Truncated {
        what: what.into(),
        end,
        length: data.len() as u64,
    }
}

fn malformed(place: String, error: impl ToString) -> ObjectError {
    ObjectError::Malformed {
        place,
        problem: error.to_string(),
    }
}
