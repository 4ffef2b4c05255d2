// SPDX-License-Identifier: MIT OR Apache-2.0
//! ELF objects of `clang -target bpf -g -O2` against libbpf's headers: programs, maps, global data, licence.
//!
//! [`Object::parse`] checks everything that the file alone can tell: functions are put together, every map's definition
//! is read. [`Object::instantiate_in`] then asks an [`Environment`] for what the kernel defines (its types for CO-RE, its
//! functions and variables, its configuration, pinned maps) and creates the other maps, each time anew. Whatever the
//! file holds, both end with a result or an error, parsing in memory proportional to the file's length.
#![forbid(unsafe_code)]

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

mod attach;
mod core_reloc;
mod elf;
mod environment;
mod error;
mod externs;
mod freplace;
mod instantiate;
mod jump_tables;
mod kconfig;
mod link;
mod maps;
mod reach;
mod slots;

pub use self::{
    attach::{AttachKind, AttachPoint, UnknownSection},
    environment::{Environment, LINUX_VERSION},
    error::ObjectError,
    externs::{KernelSymbol, KernelSymbolKind},
    freplace::{FreplaceError, same_types, types},
    instantiate::{LoadedObject, ProgramSlot},
    maps::Variable,
};
use self::{
    core_reloc::Records, elf::Elf, externs::Externs, link::ProgramTemplate, maps::MapTable,
};
use crate::{
    btf::Btf,
    isa::Insn,
    map::{MapDefinition, MapMemory},
};

/// Instruction slots that an object's programs may have together, with what they call (Linux's limit for one program,
/// `BPF_COMPLEXITY_LIMIT_INSNS`).
pub const MAX_INSNS: usize = 1_000_000;

/// An object: its programs, linked, and what its maps look like.
#[derive(Clone, Debug)]
pub struct Object {
    license: Option<String>,
    programs: Vec<ProgramTemplate>,
    maps: MapTable,
    variables: Vec<Variable>,
    externs: Externs,
    core: Records,
    /// Section `.BTF`, if `externs` or `core` need it later, and the names of sections.
    types: Vec<u8>,
    sections: Arc<[String]>,
}

impl Object {
    /// Reads an object file.
    ///
    /// Errors name section, offset and symbol; see [`ObjectError`].
    pub fn parse(file: &[u8]) -> Result<Self, ObjectError> {
        let elf = Elf::parse(file)?;
        let section = elf.section(".BTF").map(|(_, section)| section.data);
        let btf = section.map(Btf::parse).transpose()?;
        let core = match (&btf, elf.section(".BTF.ext")) {
            (Some(btf), Some((_, section))) => Records::read(section.data, &elf, btf)?,
            _ => Records::default(),
        };
        let mut maps = MapTable::read(&elf, btf.as_ref())?;
        let mut externs = Externs::read(&elf, btf.as_ref(), &mut maps)?;
        let license = elf.section("license").map(|(_, section)| {
            let text = section.data.split(|&byte| byte == 0).next();
            String::from_utf8_lossy(text.unwrap_or_default()).to_string()
        });
        let relocations = elf.relocations()?;
        let programs = link::programs(&elf, &relocations, &maps, &mut externs, &core)?;
        if let Some((index, _)) = elf.section(maps::MAPS) {
            let places: BTreeMap<_, _> = programs.iter().map(|p| p.place).zip(0..).collect();
            let list = relocations.get(index).map_or(&[][..], Vec::as_slice);
            maps.read_values(&elf, list, |section, offset| {
                let slot = Insn::BYTES as u64;
                let offset = u64::try_from(offset)
                    .ok()
                    .filter(|o| o.is_multiple_of(slot))?;
                let start = usize::try_from(offset / slot).ok()?;
                places.get(&(section, start)).copied()
            })?;
        }
        let needs_types = !core.is_empty() || !externs.list.is_empty();
        Ok(Self {
            license,
            programs,
            variables: maps.variables(&elf),
            maps,
            types: section.filter(|_| needs_types).unwrap_or_default().into(),
            sections: match core.is_empty() {
                true => Arc::default(),
                false => elf.sections.iter().map(|s| s.name.into()).collect(),
            },
            externs,
            core,
        })
    }

    /// What section `license` says, if it is there.
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    /// Name and section of each program; the section says what it attaches to ([`AttachPoint::parse`]).
    pub fn programs(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.programs
            .iter()
            .map(|program| (&*program.name, &*program.section))
    }

    /// The maps' definitions, data sections among them.
    pub fn maps(&self) -> impl ExactSizeIterator<Item = &MapDefinition> {
        self.maps.0.iter().map(|map| &map.definition)
    }

    /// What it wants of a kernel by name ([`Environment`]).
    pub fn kernel_symbols(&self) -> impl Iterator<Item = KernelSymbol<'_>> {
        self.externs.list.iter().map(externs::Extern::symbol)
    }

    /// How many of its instructions depend on the kernel's types (CO-RE relocations).
    pub fn core_relocations(&self) -> usize {
        self.core.len()
    }

    /// The global variables in data sections (not the `static` ones).
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// Sets what a global variable, `const volatile` or not, holds when programs start: `bytes` in the machine's order.
    ///
    /// Errors: `Variable`, if there is none of that name and size.
    pub fn set_variable(&mut self, name: &str, bytes: &[u8]) -> Result<(), ObjectError> {
        let variable = self.variables.iter().find(|variable| variable.name == name);
        let error = || ObjectError::Variable {
            variable: name.into(),
            size: variable.map(|variable| variable.size),
            given: bytes.len(),
        };
        let content = variable
            .filter(|variable| variable.size == bytes.len() as u64)
            .and_then(|variable| {
                let map = self.maps.0.get_mut(variable.map)?;
                Some((variable.offset, map.content.as_mut()?))
            });
        let (offset, content) = content.ok_or_else(error)?;
        content.overrides.insert(offset, bytes.into());
        Ok(())
    }

    /// As [`instantiate_in`](Self::instantiate_in), for a host without anything that objects refer to by name.
    pub fn instantiate(&self, memory: &dyn MapMemory) -> Result<LoadedObject, ObjectError> {
        self.instantiate_in(&(), memory)
    }
}
