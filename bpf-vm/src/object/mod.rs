// SPDX-License-Identifier: MIT OR Apache-2.0
//! ELF objects of `clang -target bpf -g -O2` against libbpf's headers: programs, maps, global data, licence.
//!
//! [`Object::parse`] checks everything that the file alone can tell: every relocation is done, every map's definition
//! read. [`Object::instantiate`] then creates the maps, each time anew. Whatever the file holds, parsing ends with an
//! object or an error, in memory proportional to the file's length.
#![forbid(unsafe_code)]

use alloc::{
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

mod attach;
mod btf;
mod core_reloc;
mod elf;
mod error;
mod link;
mod maps;

pub use self::{
    attach::{AttachKind, AttachPoint, UnknownSection},
    error::ObjectError,
    maps::Variable,
};
use self::{btf::Btf, elf::Elf, link::ProgramTemplate, maps::MapTable};
use crate::{
    map::{Map, MapDefinition, MapMemory},
    program::UncheckedProgram,
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
}

/// An object's maps, created, and its programs, which hold those that they use.
#[derive(Clone, Debug)]
pub struct LoadedObject {
    /// All maps, in the order of [`Object::maps`].
    pub maps: Vec<Arc<Map>>,
    /// All programs, in the order of [`Object::programs`].
    pub programs: Vec<UncheckedProgram>,
}

impl Object {
    /// Reads an object file.
    ///
    /// Errors name section, offset and symbol; see [`ObjectError`].
    pub fn parse(file: &[u8]) -> Result<Self, ObjectError> {
        let elf = Elf::parse(file)?;
        let btf = match elf.section(".BTF") {
            Some((_, section)) => Some(Btf::parse(section.data)?),
            None => None,
        };
        if let (Some(btf), Some((_, section))) = (&btf, elf.section(".BTF.ext")) {
            core_reloc::refuse(section.data, btf)?;
        }
        let maps = MapTable::read(&elf, btf.as_ref())?;
        let license = elf.section("license").map(|(_, section)| {
            let text = section.data.split(|&byte| byte == 0).next();
            String::from_utf8_lossy(text.unwrap_or_default()).to_string()
        });
        Ok(Self {
            license,
            programs: link::programs(&elf, &maps)?,
            variables: maps.variables(&elf),
            maps,
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

    /// Creates the maps in the host's memory and gives each program those that it uses.
    ///
    /// Errors: `CreateMap`, if a map's kind or size is not supported or memory is short; nothing is left behind then.
    pub fn instantiate(&self, memory: &dyn MapMemory) -> Result<LoadedObject, ObjectError> {
        let mut maps = Vec::with_capacity(self.maps.0.len());
        for template in &self.maps.0 {
            let map = Map::create(template.definition.clone(), memory)?;
            if let Some(content) = &template.content {
                map.initialise(0, &content.bytes);
                for (&offset, bytes) in &content.overrides {
                    map.initialise(offset as usize, bytes);
                }
            }
            maps.push(map);
        }
        let programs = self.programs.iter().map(|program| UncheckedProgram {
            name: program.name.clone(),
            section: program.section.clone(),
            insns: program.insns.clone(),
            maps: program
                .maps
                .iter()
                .filter_map(|&index| maps.get(index).cloned())
                .collect(),
            ..UncheckedProgram::default()
        });
        Ok(LoadedObject {
            programs: programs.collect(),
            maps,
        })
    }
}
