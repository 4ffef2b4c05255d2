// SPDX-License-Identifier: MIT OR Apache-2.0
//! An object's maps: those that C defines in `.maps` by BTF, with what they hold at first, and its data sections.
#![forbid(unsafe_code)]

use alloc::{collections::BTreeMap, format, string::String, vec::Vec};

use super::{
    ObjectError,
    elf::{Elf, Relocation, Section},
    jump_tables::JUMP_TABLES,
    link::R_BPF_64_ABS64,
};
use crate::{
    btf::{Btf, Kind, Type, Variable as BtfVariable},
    map::{MapDefinition, MapKind},
};

/// The section of BTF-defined maps.
pub(super) const MAPS: &str = ".maps";
/// Sections of what other kinds of loaders take, and what to do instead.
const FOREIGN: [(&str, &str); 4] = [
    (
        "maps",
        "legacy map definitions (struct bpf_map_def); define maps with SEC(\".maps\"), __uint and __type",
    ),
    (
        ".struct_ops",
        "struct_ops are not supported; attach programs to functions by their sections' names",
    ),
    (
        ".struct_ops.link",
        "struct_ops are not supported; attach programs to functions by their sections' names",
    ),
    (
        ".addr_space.1",
        "arenas are not supported; use an array map",
    ),
];
/// Bytes of a pointer in a map's variable.
const POINTER_BYTES: u64 = 8;
/// Bytes of the key and of the value of what holds maps or programs.
const REFERENCE_BYTES: u32 = 4;
/// `LIBBPF_PIN_NONE` and `LIBBPF_PIN_BY_NAME` of libbpf's `bpf_helpers.h`.
const PIN_NONE: u32 = 0;
const PIN_BY_NAME: u32 = 1;
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
    /// For a map of maps, what its maps are like.
    pub(super) inner: Option<MapDefinition>,
    /// Whether it is shared with other objects by its name.
    pub(super) pinned: bool,
    /// Where in its value a `struct bpf_spin_lock` is, in bytes.
    pub(super) lock: Option<u32>,
    /// Where in its variable `values` is, in bytes.
    values_at: Option<u64>,
    /// What is in `values`: by slot.
    pub(super) values: Vec<(u32, Initial)>,
}

/// What a map of maps or a program array holds at first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Initial {
    /// The object's map of an index.
    Map(usize),
    /// The object's program of an index.
    Program(usize),
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
        for (name, remedy) in FOREIGN {
            if elf
                .section(name)
                .is_some_and(|(_, section)| section.size > 0)
            {
                return Err(ObjectError::Unsupported {
                    section: name.into(),
                    remedy,
                });
            }
        }
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
            let mut locks = Locks::default();
            for variable in btf.variables(MAPS)? {
                let offset = offsets.get(variable.name).copied();
                maps.push(MapTemplate {
                    section,
                    offset: offset.ok_or_else(|| {
                        field_error(variable.name, "name", "the symbol table has no such map")
                    })?,
                    ..definition(btf, &mut locks, &variable)?
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

    /// Adds a read-only data section that is not in the file, all zeros, as the last map; its index.
    pub(super) fn add_data(&mut self, name: &str, bytes: u32) -> usize {
        // Sections' indices are smaller, so the order stays.
        self.0
            .push(data_template(usize::MAX, name, bytes, false, Vec::new()));
        self.0.len() - 1
    }

    /// Reads what maps in `.maps` hold at first from the relocations of that section; `program` finds the program at
    /// an offset of a section.
    pub(super) fn read_values(
        &mut self,
        elf: &Elf<'_>,
        relocations: &[Relocation],
        program: impl Fn(usize, i64) -> Option<usize>,
    ) -> Result<(), ObjectError> {
        let Some((section, header)) = elf.section(MAPS) else {
            return Ok(());
        };
        for relocation in relocations {
            let symbol = elf
                .symbols
                .get(relocation.symbol)
                .copied()
                .unwrap_or_default();
            let error = |problem: &str| ObjectError::Relocation {
                section: MAPS.into(),
                offset: relocation.offset,
                symbol: symbol.name.into(),
                problem: problem.into(),
            };
            if relocation.kind != R_BPF_64_ABS64 {
                return Err(error(
                    "a map's variable takes relocations of type R_BPF_64_ABS64 (2) only",
                ));
            }
            // The last map that starts no later.
            let after = self
                .0
                .partition_point(|map| (map.section, map.offset) <= (section, relocation.offset));
            let owner = after
                .checked_sub(1)
                .filter(|&index| self.0.get(index).is_some_and(|map| map.section == section));
            let template = owner.and_then(|index| self.0.get(index));
            let slot = template.and_then(|map| {
                let inside = relocation.offset - map.offset;
                let values = inside.checked_sub(map.values_at?)?;
                values
                    .is_multiple_of(POINTER_BYTES)
                    .then_some(values / POINTER_BYTES)
            });
            let (Some(owner), Some(template), Some(slot)) = (owner, template, slot) else {
                return Err(error(
                    "of a map's variable only `values` may hold addresses",
                ));
            };
            let entries = template.definition.max_entries;
            let slot = u32::try_from(slot).ok().filter(|&slot| slot < entries);
            let slot = slot.ok_or_else(|| {
                field_error(
                    &template.definition.name,
                    "values",
                    format!("it has more elements than max_entries, which is {entries}"),
                )
            })?;
            let home = symbol
                .section
                .ok_or_else(|| ObjectError::UnresolvedSymbol {
                    section: MAPS.into(),
                    offset: relocation.offset,
                    symbol: symbol.name.into(),
                })?;
            // What is in the place is added to the symbol's value.
            let addend = usize::try_from(relocation.offset)
                .ok()
                .and_then(|at| header.data.get(at..)?.first_chunk());
            let addend = addend.map_or(0, |bytes| i64::from_le_bytes(*bytes));
            let target = symbol.value.cast_signed().wrapping_add(addend);
            let initial = if template.definition.kind.holds_maps() {
                let map = self
                    .find(home, target)
                    .filter(|(_, offset)| offset.is_none());
                Initial::Map(
                    map.ok_or_else(|| error("a map of maps takes maps of `.maps` only"))?
                        .0,
                )
            } else {
                let index = program(home, target);
                Initial::Program(index.ok_or_else(|| {
                    error("a program array takes programs only: functions in sections that say what they attach to")
                })?)
            };
            if let Some(template) = self.0.get_mut(owner) {
                template.values.push((slot, initial));
            }
        }
        Ok(())
    }

    /// The global variables of the data sections.
    pub(super) fn variables(&self, elf: &Elf<'_>) -> Vec<Variable> {
        let jump_tables = elf.section(JUMP_TABLES).map(|(index, _)| index);
        elf.symbols
            .iter()
            .filter(|symbol| symbol.is_object() && !symbol.is_local())
            .filter(|symbol| symbol.section != jump_tables)
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
pub(super) fn data_section(section: &Section<'_>) -> Option<bool> {
    // clang does not mark it as part of the running program.
    if section.name == JUMP_TABLES {
        return (!section.is_code() && !section.is_zeroed() && section.size > 0).then_some(false);
    }
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
    let bytes = u32::try_from(header.size)
        .map_err(|_| field_error(header.name, "value_size", "the section has 4 GiB or more"))?;
    let content = if header.is_zeroed() {
        Vec::new()
    } else {
        header.data.into()
    };
    Ok(data_template(
        section,
        header.name,
        bytes,
        writable,
        content,
    ))
}

fn data_template(
    section: usize,
    name: &str,
    bytes: u32,
    writable: bool,
    content: Vec<u8>,
) -> MapTemplate {
    let read_only = if writable {
        0
    } else {
        MapDefinition::RDONLY_PROG
    };
    MapTemplate {
        section,
        offset: 0,
        definition: MapDefinition {
            name: name.into(),
            kind: MapKind::ARRAY,
            key_size: REFERENCE_BYTES,
            value_size: bytes,
            max_entries: 1,
            flags: read_only | MapDefinition::MMAPABLE,
        },
        content: Some(Content {
            bytes: content,
            overrides: BTreeMap::new(),
        }),
        inner: None,
        lock: None,
        pinned: false,
        values_at: None,
        values: Vec::new(),
    }
}

/// Reads the definition of a map from the type of its variable; its place is the caller's to fill in.
fn definition(
    btf: &Btf<'_>,
    locks: &mut Locks,
    variable: &BtfVariable<'_>,
) -> Result<MapTemplate, ObjectError> {
    let (_, found) = btf.resolve(variable.type_id)?;
    if found.kind() != Kind::STRUCT {
        return Err(field_error(
            variable.name,
            "type",
            "the variable is no struct; define the map with __uint and __type",
        ));
    }
    fields(btf, locks, variable.name, found, false)
}

/// Where types have a member `struct bpf_spin_lock`, in bytes; each type is looked at once, however many maps have it.
#[derive(Default)]
struct Locks(BTreeMap<u32, Option<u32>>);

impl Locks {
    fn of(&mut self, btf: &Btf<'_>, type_id: u32) -> Result<Option<u32>, ObjectError> {
        let (type_id, found) = btf.resolve(type_id)?;
        if let Some(known) = self.0.get(&type_id) {
            return Ok(*known);
        }
        let mut lock = None;
        if found.kind() == Kind::STRUCT {
            for member in btf.members(found) {
                let member = member?;
                let (of_id, of) = btf.resolve(member.type_id)?;
                if of.kind() == Kind::STRUCT && btf.name(of_id)? == "bpf_spin_lock" {
                    lock = Some(member.bit_offset / 8);
                }
            }
        }
        self.0.insert(type_id, lock);
        Ok(lock)
    }
}

/// Members of a map's struct: more than there are fields, and so few that maps of the same struct do not take time for
/// each member of it.
const MAX_FIELDS: u32 = 64;

/// Reads a map's fields: members that are pointers.
///
/// `__uint(name, N)` of bpf_helpers.h is a pointer to an array of N elements, `__type(name, T)` one to T,
/// `__array(name, T)` an array of pointers to T.
fn fields(
    btf: &Btf<'_>,
    locks: &mut Locks,
    name: &str,
    found: Type,
    inner: bool,
) -> Result<MapTemplate, ObjectError> {
    let error = |field: &str, problem| field_error(name, field, problem);
    if found.entries() > MAX_FIELDS {
        return Err(field_error(
            name,
            "type",
            format!(
                "the struct has {} members and the limit is {MAX_FIELDS}; give each field of a map once",
                found.entries()
            ),
        ));
    }
    let mut kind = None;
    let mut template = MapTemplate {
        section: 0,
        offset: 0,
        definition: MapDefinition {
            name: name.into(),
            kind: MapKind(0),
            key_size: 0,
            value_size: 0,
            max_entries: 0,
            flags: 0,
        },
        content: None,
        inner: None,
        lock: None,
        pinned: false,
        values_at: None,
        values: Vec::new(),
    };
    let definition = &mut template.definition;
    let mut values = None;
    for member in btf.members(found) {
        let member = member?;
        if member.name == "values" {
            let pointer = btf
                .array(member.type_id)?
                .map(|(element, _)| btf.pointee(element));
            let pointee = pointer.transpose()?.flatten();
            values = Some(pointee.ok_or_else(|| {
                error(
                    "values",
                    "it is no array of pointers; write it with __array",
                )
            })?);
            template.values_at = Some(u64::from(member.bit_offset / 8));
            definition.value_size = REFERENCE_BYTES;
            continue;
        }
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
            "value" => {
                definition.value_size = size()?;
                template.lock = locks.of(btf, pointee.clone()?)?;
            }
            "max_entries" => definition.max_entries = number()?,
            "map_flags" => definition.flags = number()?,
            // There is one memory for all nodes.
            "numa_node" => {}
            "pinning" => match number()? {
                PIN_NONE => {}
                PIN_BY_NAME if !inner => template.pinned = true,
                PIN_BY_NAME => {
                    return Err(error(
                        "pinning",
                        "a map inside of another is not pinned; leave it out",
                    ));
                }
                _ => {
                    return Err(error(
                        "pinning",
                        "neither LIBBPF_PIN_NONE (0) nor LIBBPF_PIN_BY_NAME (1)",
                    ));
                }
            },
            "map_extra" if number()? == 0 => {}
            "map_extra" => {
                return Err(error(
                    "map_extra",
                    "it is for bloom filters and arenas, which are not supported; leave it out",
                ));
            }
            other => {
                return Err(error(
                    other,
                    "not a field of a map: type, key, value, key_size, value_size, max_entries, map_flags, values, \
                     pinning, numa_node, map_extra",
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
    if let Some(type_id) = values {
        let (_, of) = btf.resolve(type_id)?;
        if definition.value_size != REFERENCE_BYTES {
            return Err(error("value_size", "with `values` it is 4; leave it out"));
        }
        match (definition.kind, of.kind()) {
            (kind, Kind::STRUCT) if kind.holds_maps() && !inner => {
                let inner = fields(btf, locks, &format!("{name}.inner"), of, true)?;
                template.inner = Some(inner.definition);
            }
            (MapKind::PROG_ARRAY, Kind::FUNC_PROTO) if !inner => {}
            _ => {
                return Err(error(
                    "values",
                    "a map of maps takes __array(values, struct { ... }), a program array __array(values, int (void *)), \
                     and no other map, or map inside of another, takes any",
                ));
            }
        }
    }
    Ok(template)
}

pub(super) fn field_error(map: &str, field: &str, problem: impl Into<String>) -> ObjectError {
    ObjectError::Map {
        map: map.into(),
        field: field.into(),
        problem: problem.into(),
    }
}
