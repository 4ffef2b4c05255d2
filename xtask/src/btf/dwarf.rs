// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the types of what an ELF file exports out of its DWARF (DWARF 5 standard, sections 4 and 5; versions 4 and 5).

use std::collections::{BTreeMap, HashMap};

use gimli::{AttributeValue, DwTag, constants as dw};
use object::elf;
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol};

use super::BtfError;
use super::graph::{Encoding, Graph, Id, Member, Qualifier, Record, Type, VOID};
use crate::dwarf::{Dwarf, Entry, Place};

/// How many types may lie in each other; none that a person writes comes near.
const MOST_NESTED: usize = 200;

/// Rust's base types: the names that C has for them, with the sizes that arm64 gives them.
const RUST_NAMES: &[(&str, &str)] = &[
    ("u8", "unsigned char"),
    ("i8", "signed char"),
    ("u16", "unsigned short"),
    ("i16", "short"),
    ("u32", "unsigned int"),
    ("i32", "int"),
    ("char", "unsigned int"),
    ("u64", "unsigned long long"),
    ("i64", "long long"),
    ("usize", "unsigned long"),
    ("isize", "long"),
    ("u128", "unsigned __int128"),
    ("i128", "__int128"),
    ("bool", "_Bool"),
    ("f32", "float"),
    ("f64", "double"),
];

/// A global symbol whose name is the one in the source.
struct Export {
    address: u64,
    name: String,
    function: bool,
}

/// A section that exported variables lie in.
struct Section {
    name: String,
    address: u64,
    size: u64,
}

/// Types and the ids of the functions, variables and sections among them, by name.
pub(super) fn read(file: &[u8]) -> Result<(Graph, Vec<Id>), BtfError> {
    let elf = ElfFile64::<Endianness>::parse(file)?;
    let (exports, sections) = exports(&elf)?;
    let dwarf = Dwarf::open(&elf)?;
    let mut reader = Reader::new(&dwarf);
    let mut functions: BTreeMap<String, Id> = BTreeMap::new();
    let mut variables: BTreeMap<String, (Id, u64)> = BTreeMap::new();
    for (place, address) in reader.definitions()? {
        let name = dwarf.name(place)?;
        let found = exports
            .binary_search_by(|export| (export.address, &*export.name).cmp(&(address, &name)));
        let Some(export) = found.ok().and_then(|index| exports.get(index)) else {
            continue;
        };
        match export.function {
            true if !functions.contains_key(&name) => {
                let prototype = reader.prototype(place, 0)?;
                let new = Type::Function {
                    name: name.clone(),
                    prototype,
                };
                functions.insert(name, reader.graph.add(new));
            }
            false if !variables.contains_key(&name) => {
                let of = reader.type_of(place, 0)?;
                let new = Type::Variable {
                    name: name.clone(),
                    of,
                };
                variables.insert(name, (reader.graph.add(new), address));
            }
            _ => {}
        }
    }
    let mut graph = reader.graph;
    let mut roots: Vec<Id> = functions.into_values().collect();
    for section in sections {
        let mut inside: Vec<(Id, u32, u32)> = Vec::new();
        for (id, address) in variables.values() {
            let offset = address.wrapping_sub(section.address);
            if offset < section.size {
                let size = graph.size(*id_of_variable(&graph, id)).unwrap_or(0);
                inside.push((
                    *id,
                    number("a variable's offset", offset)?,
                    number("a variable's size", size)?,
                ));
            }
        }
        if inside.is_empty() {
            continue;
        }
        inside.sort_by_key(|(_, offset, _)| *offset);
        let size = number("a section's size", section.size)?;
        roots.push(graph.add(Type::Section {
            name: section.name,
            size,
            variables: inside,
        }));
    }
    Ok((graph, roots))
}

/// The type of a variable.
fn id_of_variable<'g>(graph: &'g Graph, id: &'g Id) -> &'g Id {
    match graph.get(*id) {
        Type::Variable { of, .. } => of,
        _ => &VOID,
    }
}

fn number(what: &'static str, value: u64) -> Result<u32, BtfError> {
    u32::try_from(value).map_err(|_| BtfError::TooLarge(what, value, u32::MAX.into()))
}

/// Global symbols by address and name, without mangled ones, and the sections of those that are data, by address.
fn exports(elf: &ElfFile64<'_, Endianness>) -> Result<(Vec<Export>, Vec<Section>), BtfError> {
    let mut exports = Vec::new();
    let mut sections: BTreeMap<u64, Section> = BTreeMap::new();
    for symbol in elf.symbols() {
        let function = match symbol.elf_symbol().st_type() {
            elf::STT_FUNC => true,
            elf::STT_OBJECT => false,
            _ => continue,
        };
        let name = symbol.name()?;
        if !symbol.is_global()
            || symbol.is_undefined()
            || rustc_demangle::try_demangle(name).is_ok()
        {
            continue;
        }
        if !function && let Some(index) = symbol.section_index() {
            let section = elf.section_by_index(index)?;
            sections.entry(section.address()).or_insert(Section {
                name: section.name()?.to_owned(),
                address: section.address(),
                size: section.size(),
            });
        }
        exports.push(Export {
            address: symbol.address(),
            name: name.to_owned(),
            function,
        });
    }
    exports.sort_by(|a, b| (a.address, &a.name).cmp(&(b.address, &b.name)));
    Ok((exports, sections.into_values().collect()))
}

/// Reads types, each once.
struct Reader<'d> {
    dwarf: &'d Dwarf<'d>,
    /// Whether each unit is Rust's.
    rust: Vec<bool>,
    /// Paths of Rust's types.
    paths: HashMap<Place, String>,
    graph: Graph,
    known: HashMap<Place, Id>,
}

impl<'d> Reader<'d> {
    fn new(dwarf: &'d Dwarf<'d>) -> Self {
        Self {
            dwarf,
            rust: Vec::new(),
            paths: HashMap::new(),
            graph: Graph::default(),
            known: HashMap::new(),
        }
    }

    fn broken(&self, place: Place, tag: DwTag, problem: &'static str) -> BtfError {
        self.dwarf.broken(place, tag, problem).into()
    }

    /// Walks everything once: the addresses of functions and variables that are visible outside their unit, and paths.
    fn definitions(&mut self) -> Result<Vec<(Place, u64)>, BtfError> {
        let mut definitions = Vec::new();
        for index in 0..self.dwarf.units() {
            let (mut rust, mut paths) = (false, Vec::new());
            let unit = self.dwarf.unit(index)?;
            // The names of the entries around the current one.
            let mut around: Vec<String> = Vec::new();
            let mut cursor = unit.entries();
            while let Some(entry) = self.dwarf.check(index, cursor.next_dfs())? {
                let place = (index, entry.offset());
                let depth = usize::try_from(entry.depth()).unwrap_or(0);
                around.resize(depth, String::new());
                match entry.tag() {
                    dw::DW_TAG_compile_unit => {
                        let language = entry.attr_value(dw::DW_AT_language);
                        rust = language == Some(AttributeValue::Language(dw::DW_LANG_Rust));
                    }
                    dw::DW_TAG_subprogram | dw::DW_TAG_variable => {
                        if let Some(address) = self.dwarf.address(index, entry)? {
                            definitions.push((place, address));
                        }
                    }
                    dw::DW_TAG_structure_type
                    | dw::DW_TAG_union_type
                    | dw::DW_TAG_enumeration_type
                    | dw::DW_TAG_namespace => {}
                    _ => continue,
                }
                if !rust {
                    continue;
                }
                let name = self.dwarf.own_name(index, entry)?.unwrap_or_default();
                let path = around.iter().filter(|part| !part.is_empty());
                let path: Vec<&str> = path.map(String::as_str).chain([&*name]).collect();
                if entry.tag() != dw::DW_TAG_namespace {
                    paths.push((place, path.join("::")));
                }
                if entry.tag() != dw::DW_TAG_compile_unit {
                    around.push(name);
                }
            }
            self.rust.push(rust);
            self.paths.extend(paths);
        }
        Ok(definitions)
    }

    /// What attribute `DW_AT_type` names; nothing if there is none.
    fn type_of(&mut self, place: Place, depth: usize) -> Result<Id, BtfError> {
        for place in self.dwarf.with_origins(place)? {
            let entry = self.dwarf.entry(place)?;
            if let Some(of) = self.dwarf.reference(place.0, &entry, dw::DW_AT_type)? {
                return self.read(of, depth);
            }
        }
        Ok(VOID)
    }

    fn prototype(&mut self, place: Place, depth: usize) -> Result<Id, BtfError> {
        let result = self.type_of(place, depth)?;
        let function = self.dwarf.entry(place)?.tag() == dw::DW_TAG_subprogram;
        let (mut parameters, mut variadic) = (Vec::new(), false);
        for child in self.dwarf.children(place)? {
            let parameter = (place.0, child.offset());
            match child.tag() {
                dw::DW_TAG_formal_parameter => {
                    let name = match self.dwarf.name(parameter)? {
                        none if none.is_empty() && function => {
                            format!("argument{}", parameters.len())
                        }
                        name => name,
                    };
                    parameters.push((name, self.type_of(parameter, depth)?));
                }
                dw::DW_TAG_unspecified_parameters => variadic = true,
                _ => {}
            }
        }
        Ok(self.graph.add(Type::Prototype {
            result,
            parameters,
            variadic,
        }))
    }

    /// Reads a type, unless it is known.
    fn read(&mut self, place: Place, depth: usize) -> Result<Id, BtfError> {
        if let Some(id) = self.known.get(&place) {
            return Ok(*id);
        }
        let entry = self.dwarf.entry(place)?;
        if depth > MOST_NESTED {
            return Err(self.broken(place, entry.tag(), "has more than 200 types around it"));
        }
        let depth = depth + 1;
        let qualifier = match entry.tag() {
            dw::DW_TAG_const_type => Some(Qualifier::Const),
            dw::DW_TAG_volatile_type => Some(Qualifier::Volatile),
            dw::DW_TAG_restrict_type => Some(Qualifier::Restrict),
            _ => None,
        };
        if self.is_rust(place)
            && let Some(id) = self.transparent(place, &entry, depth)?
        {
            self.known.insert(place, id);
            return Ok(id);
        }
        // Known before it is read: its members may point back to it.
        let id = self.graph.add(match entry.tag() {
            dw::DW_TAG_pointer_type => Type::Pointer(VOID),
            _ => Type::Void,
        });
        self.known.insert(place, id);
        let found = match entry.tag() {
            dw::DW_TAG_base_type => self.base(place, &entry)?,
            dw::DW_TAG_pointer_type | dw::DW_TAG_reference_type => {
                Type::Pointer(self.type_of(place, depth)?)
            }
            dw::DW_TAG_structure_type | dw::DW_TAG_class_type => {
                self.record(place, &entry, Record::Struct, depth)?
            }
            dw::DW_TAG_union_type => self.record(place, &entry, Record::Union, depth)?,
            dw::DW_TAG_enumeration_type => self.enumeration(place, &entry, depth)?,
            dw::DW_TAG_array_type => self.array(place, depth)?,
            dw::DW_TAG_typedef => Type::Typedef {
                name: self.dwarf.own_name(place.0, &entry)?.unwrap_or_default(),
                of: self.type_of(place, depth)?,
            },
            dw::DW_TAG_subroutine_type => {
                let prototype = self.prototype(place, depth)?;
                self.graph.get(prototype).clone()
            }
            dw::DW_TAG_unspecified_type => Type::Void,
            // `_Atomic` has no kind of its own in BTF.
            dw::DW_TAG_atomic_type => {
                let of = self.type_of(place, depth)?;
                self.known.insert(place, of);
                return Ok(of);
            }
            tag => match qualifier {
                Some(qualifier) => Type::Qualified {
                    qualifier,
                    of: self.type_of(place, depth)?,
                },
                None => return Err(self.broken(place, tag, "is no type that BTF has")),
            },
        };
        self.graph.set(id, found);
        Ok(id)
    }

    fn is_rust(&self, place: Place) -> bool {
        self.rust.get(place.0) == Some(&true)
    }

    /// What a struct of Rust's library is but a coat for: the one member of `AtomicU64`, `UnsafeCell`, `NonNull`, and the pointer
    /// in an `Option` of one, whose `None` is the null pointer.
    fn transparent(
        &mut self,
        place: Place,
        entry: &Entry<'d>,
        depth: usize,
    ) -> Result<Option<Id>, BtfError> {
        let of_library = self
            .paths
            .get(&place)
            .is_some_and(|path| path.starts_with("core::"));
        if entry.tag() != dw::DW_TAG_structure_type || !of_library {
            return Ok(None);
        }
        let size = self.bytes(place, entry)?;
        let children = self.dwarf.children(place)?;
        let option = self
            .paths
            .get(&place)
            .is_some_and(|path| path.starts_with("core::option::Option<"));
        let members = match option {
            true => {
                let mut some = None;
                for child in &children {
                    if self.dwarf.own_name(place.0, child)?.as_deref() == Some("Some") {
                        some = Some((place.0, child.offset()));
                    }
                }
                some.map_or(Ok(Vec::new()), |some| self.dwarf.children(some))?
            }
            false => children,
        };
        let mut inner = None;
        for member in members
            .iter()
            .filter(|child| child.tag() == dw::DW_TAG_member)
        {
            let Some(of) = self.dwarf.reference(place.0, member, dw::DW_AT_type)? else {
                continue;
            };
            let entry = self.dwarf.entry(of)?;
            // A pointer's size is not always said.
            if self.bytes(of, &entry)? == size || entry.tag() == dw::DW_TAG_pointer_type {
                inner = Some(of);
            }
        }
        let Some(inner) = inner.filter(|_| size.is_some_and(|size| size > 0)) else {
            return Ok(None);
        };
        let id = self.read(inner, depth)?;
        let fits = self.graph.size(id) == size
            && (!option || matches!(self.graph.get(id), Type::Pointer(_)));
        Ok(fits.then_some(id))
    }

    /// Attribute `DW_AT_byte_size`.
    fn bytes(&self, place: Place, entry: &Entry<'d>) -> Result<Option<u64>, BtfError> {
        match entry.attr(dw::DW_AT_byte_size) {
            None => Ok(None),
            Some(size) => {
                let problem = "has a size that is no number";
                size.udata_value()
                    .map(Some)
                    .ok_or_else(|| self.broken(place, entry.tag(), problem))
            }
        }
    }

    fn size(&self, place: Place, entry: &Entry<'d>) -> Result<u32, BtfError> {
        let size = self
            .bytes(place, entry)?
            .ok_or_else(|| self.broken(place, entry.tag(), "has no size"))?;
        // Bits have to be counted in 32 bits.
        match size <= u64::from(u32::MAX / 8) {
            true => Ok(size as u32),
            false => Err(BtfError::TooLarge(
                "a type's size",
                size,
                u64::from(u32::MAX / 8),
            )),
        }
    }

    fn base(&self, place: Place, entry: &Entry<'d>) -> Result<Type, BtfError> {
        let own = self.dwarf.own_name(place.0, entry)?.unwrap_or_default();
        let name = match self.is_rust(place) {
            true => RUST_NAMES
                .iter()
                .find(|(rust, _)| *rust == own)
                .map(|(_, c)| (*c).to_owned()),
            false => None,
        };
        let name = name.unwrap_or(own);
        let size = self.size(place, entry)?;
        let encoding = match entry.attr_value(dw::DW_AT_encoding) {
            Some(AttributeValue::Encoding(encoding)) => encoding,
            _ => return Err(self.broken(place, entry.tag(), "has no encoding")),
        };
        // `()` and `!`.
        if size == 0 {
            return Ok(Type::Void);
        }
        let encoding = match encoding {
            dw::DW_ATE_float | dw::DW_ATE_complex_float => return Ok(Type::Float { name, size }),
            dw::DW_ATE_boolean => Encoding::Bool,
            dw::DW_ATE_signed | dw::DW_ATE_signed_char => Encoding::Signed,
            _ => Encoding::Unsigned,
        };
        match size <= 16 && size.is_power_of_two() {
            true => Ok(Type::Int {
                name,
                size,
                encoding,
            }),
            false => Err(self.broken(
                place,
                entry.tag(),
                "is an integer whose size is not 1, 2, 4, 8 or 16",
            )),
        }
    }

    /// The name of a struct, union or enum: its path in Rust.
    fn tag_name(&self, place: Place, entry: &Entry<'d>) -> Result<String, BtfError> {
        match self.paths.get(&place) {
            Some(path) => Ok(path.clone()),
            None => Ok(self.dwarf.own_name(place.0, entry)?.unwrap_or_default()),
        }
    }

    fn record(
        &mut self,
        place: Place,
        entry: &Entry<'d>,
        kind: Record,
        depth: usize,
    ) -> Result<Type, BtfError> {
        let name = self.tag_name(place, entry)?;
        if entry.attr_value(dw::DW_AT_declaration) == Some(AttributeValue::Flag(true)) {
            return Ok(Type::Forward { kind, name });
        }
        let size = self.size(place, entry)?;
        let children = self.dwarf.children(place)?;
        let rust = self.is_rust(place);
        let enumeration = children
            .iter()
            .any(|child| child.tag() == dw::DW_TAG_variant_part);
        let own = self.dwarf.own_name(place.0, entry)?.unwrap_or_default();
        // What has parameters, or variants, is opaque: which of its members are there is Rust's business.
        if rust && (enumeration || own.contains('<')) {
            return Ok(Type::Record {
                kind,
                name,
                size,
                members: Vec::new(),
            });
        }
        let mut members = Vec::new();
        for child in children
            .iter()
            .filter(|child| child.tag() == dw::DW_TAG_member)
        {
            let member = self.member(place, child, kind, size, depth)?;
            // Markers and `()` have no bytes that a program could read.
            let marker = rust && self.graph.size(member.of).is_none_or(|size| size == 0);
            if !marker {
                members.push(member);
            }
        }
        members.sort_by_key(|member| member.offset);
        Ok(Type::Record {
            kind,
            name,
            size,
            members,
        })
    }

    /// A member of a struct or union of `size` bytes, which it has to lie in.
    fn member(
        &mut self,
        record: Place,
        entry: &Entry<'d>,
        kind: Record,
        size: u32,
        depth: usize,
    ) -> Result<Member, BtfError> {
        let place = (record.0, entry.offset());
        let name = self.dwarf.own_name(place.0, entry)?.unwrap_or_default();
        let of = self.type_of(place, depth)?;
        let value = |name| {
            entry
                .attr(name)
                .and_then(|attribute| attribute.udata_value())
        };
        let start = match entry
            .attr(dw::DW_AT_data_member_location)
            .map(|a| a.udata_value())
        {
            Some(None) => {
                return Err(self.broken(place, entry.tag(), "lies at a place that is no number"));
            }
            start => start.flatten().unwrap_or(0),
        };
        let width = value(dw::DW_AT_bit_size).unwrap_or(0);
        let bytes = self.graph.size(of);
        let mut offset = start.saturating_mul(8);
        if let Some(bits) = value(dw::DW_AT_data_bit_offset) {
            offset = bits;
        } else if let Some(bits) = value(dw::DW_AT_bit_offset) {
            // DWARF 3, section 5.5.6: counted from the most significant bit of the storage.
            let storage = value(dw::DW_AT_byte_size)
                .or(bytes)
                .unwrap_or(0)
                .saturating_mul(8);
            offset = (offset.saturating_add(storage)).saturating_sub(bits.saturating_add(width));
        }
        let bits = match width {
            0 => bytes.unwrap_or(0).saturating_mul(8),
            width => width,
        };
        let fits = offset.saturating_add(bits) <= u64::from(size) * 8
            && width <= 128
            && (kind == Record::Struct || offset == 0 || width != 0);
        match fits {
            true => Ok(Member {
                name,
                of,
                offset: offset as u32,
                width: width as u8,
            }),
            false => Err(self.broken(
                place,
                entry.tag(),
                "is a member that does not lie in its struct",
            )),
        }
    }

    fn enumeration(
        &mut self,
        place: Place,
        entry: &Entry<'d>,
        depth: usize,
    ) -> Result<Type, BtfError> {
        let name = self.tag_name(place, entry)?;
        let size = self.size(place, entry)?;
        let of = self.type_of(place, depth)?;
        let mut values = Vec::new();
        let mut signed = matches!(
            self.graph.get(of),
            Type::Int {
                encoding: Encoding::Signed,
                ..
            }
        );
        for child in self.dwarf.children(place)? {
            if child.tag() != dw::DW_TAG_enumerator {
                continue;
            }
            let value = child.attr(dw::DW_AT_const_value);
            let value = value.and_then(|value| match value.value() {
                AttributeValue::Sdata(number) => Some(i128::from(number)),
                _ if signed => value.sdata_value().map(i128::from),
                _ => value.udata_value().map(i128::from),
            });
            let value = value
                .ok_or_else(|| self.broken(place, entry.tag(), "has a value that is no number"))?;
            values.push((
                self.dwarf.own_name(place.0, &child)?.unwrap_or_default(),
                value,
            ));
        }
        signed |= values.iter().any(|(_, value)| *value < 0);
        match [1, 2, 4, 8].contains(&size) {
            true => Ok(Type::Enum {
                name,
                size,
                signed,
                values,
            }),
            false => Err(self.broken(
                place,
                entry.tag(),
                "is an enum whose size is not 1, 2, 4 or 8",
            )),
        }
    }

    fn array(&mut self, place: Place, depth: usize) -> Result<Type, BtfError> {
        let mut element = self.type_of(place, depth)?;
        let mut counts = Vec::new();
        for child in self.dwarf.children(place)? {
            if child.tag() != dw::DW_TAG_subrange_type {
                continue;
            }
            let value = |name| {
                child
                    .attr(name)
                    .and_then(|attribute| attribute.udata_value())
            };
            // Neither is said of a flexible array member.
            let bound = || value(dw::DW_AT_upper_bound).map(|last| last.wrapping_add(1));
            let count = value(dw::DW_AT_count).or_else(bound).unwrap_or(0);
            counts.push(number("an array's length", count)?);
        }
        let problem = "is an array without a length";
        let first = (!counts.is_empty()).then(|| counts.remove(0));
        let first = first.ok_or_else(|| self.broken(place, dw::DW_TAG_array_type, problem))?;
        for count in counts.into_iter().rev() {
            element = self.graph.add(Type::Array { element, count });
        }
        Ok(Type::Array {
            element,
            count: first,
        })
    }
}
