// SPDX-License-Identifier: MIT OR Apache-2.0
//! An object's maps: those that C defines in `.maps` by BTF, and its data sections.
#![forbid(unsafe_code)]

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use super::{
    ObjectError,
    btf::{Btf, Kind, Named},
    elf::{Elf, Section},
};
use crate::map::{MapDefinition, MapKind};

/// The section of BTF-defined maps.
const MAPS: &str = ".maps";
/// Sections of global variables, also with a suffix (`.data.NAME`), and whether programs may write them.
const DATA_SECTIONS: [(&str, bool); 3] = [(".data", true), (".bss", true), (".rodata", false)];

/// A map to be created, and where instructions refer to it.
#[derive(Clone, Debug)]
pub(super) struct MapTemplate {
    section: usize,
    /// Offset in `.maps`; 0 for a data section.
    offset: u64,
    pub(super) definition: MapDefinition,
    /// For a data section, what it holds at first.
    pub(super) content: Option<Content>,
}

/// What a data section holds at first.
#[derive(Clone, Debug)]
pub(super) struct Content {
    /// The section's bytes in the file; empty means zeros.
    pub(super) bytes: Vec<u8>,
    /// Bytes that the host put over them, by offset.
    pub(super) overrides: BTreeMap<u64, Vec<u8>>,
}

/// A global variable in one of an object's data sections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Variable {
    /// Its name in C.
    pub name: String,
    /// The index of its section's map among the object's maps.
    pub map: usize,
    /// Its offset in bytes in the one value of that map.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// All maps of an object, in the order of their places, so that an index names one.
#[derive(Clone, Debug)]
pub(super) struct MapTable(pub(super) Vec<MapTemplate>);

impl MapTable {
    /// Reads the definitions; `btf` may be missing if there is no `.maps`.
    pub(super) fn read(elf: &Elf<'_>, btf: Option<&Btf<'_>>) -> Result<Self, ObjectError> {
        let mut maps = Vec::new();
        for (section, header) in elf.sections.iter().enumerate() {
            if let Some(writable) = data_section(header) {
                maps.push(data_map(section, header, writable)?);
            }
        }
        if let Some((section, _)) = elf.section(MAPS) {
            let btf = btf.ok_or(ObjectError::MissingSection {
                section: ".BTF",
                needed_for: "it describes the maps in `.maps`; compile with `clang -target bpf -g`",
            })?;
            let offsets: BTreeMap<&str, u64> = elf
                .symbols
                .iter()
                .filter(|symbol| symbol.section == Some(section) && symbol.is_object())
                .map(|symbol| (symbol.name, symbol.value))
                .collect();
            for variable in btf.variables(MAPS)? {
                let offset = offsets.get(variable.name).copied();
                maps.push(MapTemplate {
                    section,
                    offset: offset.ok_or_else(|| {
                        field_error(variable.name, "name", "the symbol table has no such map")
                    })?,
                    definition: definition(btf, variable)?,
                    content: None,
                });
            }
        }
        maps.sort_by_key(|map| (map.section, map.offset));
        Ok(Self(maps))
    }

    /// The map at a place of a section that an instruction refers to: its index, and for a data section the offset
    /// into its value; `None` if no map is there.
    pub(super) fn find(&self, section: usize, offset: i64) -> Option<(usize, Option<u32>)> {
        let offset = u64::try_from(offset).ok()?;
        let first = self.0.partition_point(|map| map.section < section);
        if let Some(map) = self.0.get(first)
            && map.section == section
            && map.content.is_some()
        {
            let inside = offset < map.definition.value_size.into();
            return inside.then_some((first, Some(offset as u32)));
        }
        let index = self
            .0
            .binary_search_by_key(&(section, offset), |map| (map.section, map.offset));
        index.ok().map(|index| (index, None))
    }

    /// The global variables of the data sections.
    pub(super) fn variables(&self, elf: &Elf<'_>) -> Vec<Variable> {
        elf.symbols
            .iter()
            .filter(|symbol| symbol.is_object() && !symbol.is_local())
            .filter_map(|symbol| {
                let (map, offset) =
                    self.find(symbol.section?, i64::try_from(symbol.value).ok()?)?;
                Some(Variable {
                    name: symbol.name.into(),
                    map,
                    offset: offset?.into(),
                    size: symbol.size,
                })
            })
            .collect()
    }
}

/// Whether a section holds global variables, and then whether programs may write them.
fn data_section(section: &Section<'_>) -> Option<bool> {
    let (_, writable) = DATA_SECTIONS.iter().find(|(name, _)| {
        let suffix = section.name.strip_prefix(name);
        suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('.'))
    })?;
    (section.is_data() && section.size > 0).then_some(*writable)
}

/// The one-element array that stands for a data section.
fn data_map(
    section: usize,
    header: &Section<'_>,
    writable: bool,
) -> Result<MapTemplate, ObjectError> {
    let read_only = if writable {
        0
    } else {
        MapDefinition::RDONLY_PROG
    };
    Ok(MapTemplate {
        section,
        offset: 0,
        definition: MapDefinition {
            name: header.name.into(),
            kind: MapKind::ARRAY,
            key_size: size_of::<u32>() as u32,
            value_size: u32::try_from(header.size).map_err(|_| {
                field_error(header.name, "value_size", "the section has 4 GiB or more")
            })?,
            max_entries: 1,
            flags: read_only | MapDefinition::MMAPABLE,
        },
        content: Some(Content {
            bytes: if header.is_zeroed() {
                Vec::new()
            } else {
                header.data.into()
            },
            overrides: BTreeMap::new(),
        }),
    })
}

/// Reads the definition of a map from the type of its variable: a struct whose members are pointers.
///
/// `__uint(name, N)` of bpf_helpers.h is a pointer to an array of N elements, `__type(name, T)` one to T.
fn definition(btf: &Btf<'_>, variable: Named<'_>) -> Result<MapDefinition, ObjectError> {
    let error = |field: &str, problem| field_error(variable.name, field, problem);
    let (_, found) = btf.resolve(variable.type_id)?;
    if found.kind() != Kind::STRUCT {
        return Err(error(
            "type",
            "the variable is no struct; define the map with __uint and __type",
        ));
    }
    let mut kind = None;
    let mut definition = MapDefinition {
        name: variable.name.into(),
        kind: MapKind(0),
        key_size: 0,
        value_size: 0,
        max_entries: 0,
        flags: 0,
    };
    for member in btf.members(found) {
        let member = member?;
        let pointee = btf.pointee(member.type_id)?.ok_or_else(|| {
            error(
                member.name,
                "it is no pointer; write it with __uint or __type",
            )
        });
        let number = || {
            let (_, count) = btf
                .array(pointee.clone()?)?
                .ok_or_else(|| error(member.name, "it is no number; write it with __uint"))?;
            Ok::<u32, ObjectError>(count)
        };
        let size = || {
            u32::try_from(btf.size_of(pointee.clone()?)?)
                .map_err(|_| error(member.name, "the type has 4 GiB or more"))
        };
        match member.name {
            "type" => kind = Some(MapKind(number()?)),
            "key_size" => definition.key_size = number()?,
            "value_size" => definition.value_size = number()?,
            "key" => definition.key_size = size()?,
            "value" => definition.value_size = size()?,
            "max_entries" => definition.max_entries = number()?,
            "map_flags" => definition.flags = number()?,
            // There is one memory for all nodes.
            "numa_node" => {}
            "pinning" | "map_extra" if number()? == 0 => {}
            "pinning" => {
                return Err(error(
                    "pinning",
                    "pinned maps are not supported; leave it out",
                ));
            }
            "values" => {
                return Err(error(
                    "values",
                    "maps of maps and program arrays are not supported yet",
                ));
            }
            other => {
                return Err(error(
                    other,
                    "not a field of a map: type, key, value, key_size, value_size, max_entries, map_flags",
                ));
            }
        }
    }
    definition.kind = kind.ok_or_else(|| {
        error(
            "type",
            "it is missing; write __uint(type, BPF_MAP_TYPE_ARRAY)",
        )
    })?;
    Ok(definition)
}

fn field_error(map: &str, field: &str, problem: &'static str) -> ObjectError {
    ObjectError::Map {
        map: map.into(),
        field: field.into(),
        problem,
    }
}
