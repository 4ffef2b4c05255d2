// SPDX-License-Identifier: MIT OR Apache-2.0
//! The DWARF of an ELF file: its units, its entries, and what they refer to (DWARF 5 standard, sections 2 and 7; versions 4 and 5).

use gimli::{AttributeValue, DwAt, DwTag, EndianSlice, LittleEndian, UnitOffset, constants as dw};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};

type Slice<'d> = EndianSlice<'d, LittleEndian>;
/// An entry.
pub(crate) type Entry<'d> = gimli::DebuggingInformationEntry<Slice<'d>>;
/// A unit.
pub(crate) type Unit<'d> = gimli::Unit<Slice<'d>>;
/// Where an entry is: the unit's index and the offset in it.
pub(crate) type Place = (usize, UnitOffset);

/// Why there is no DWARF.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DwarfError {
    /// A broken section.
    #[error("DWARF: the ELF file cannot be read: {0}")]
    Elf(#[from] object::Error),
    /// Compiled without debugging information.
    #[error(
        "the ELF file has no DWARF (.debug_info is empty): profile.dev in Cargo.toml says debug = 2; unset what overrides it \
         (CARGO_PROFILE_DEV_DEBUG, RUSTFLAGS) and build again"
    )]
    Missing,
    /// The reader's complaint.
    #[error("the DWARF unit at .debug_info+{unit:#x} is broken: {source}; build again")]
    Unit {
        /// The unit's offset in `.debug_info`.
        unit: usize,
        /// What is wrong with it.
        source: gimli::Error,
    },
    /// An entry without something that it needs.
    #[error("the DWARF entry at .debug_info+{at:#x} ({tag}) {problem}; build again")]
    Entry {
        /// The entry's offset in `.debug_info`.
        at: usize,
        /// Its tag.
        tag: DwTag,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// An ELF file's DWARF.
pub(crate) struct Dwarf<'d> {
    sections: gimli::Dwarf<Slice<'d>>,
    units: Vec<Unit<'d>>,
}

impl<'d> Dwarf<'d> {
    /// Reads the units' headers.
    pub(crate) fn open(elf: &ElfFile64<'d, Endianness>) -> Result<Self, DwarfError> {
        let sections = gimli::Dwarf::load(|id| -> Result<Slice<'d>, DwarfError> {
            let data = match elf.section_by_name(id.name()) {
                Some(section) => section.data()?,
                None => &[],
            };
            Ok(EndianSlice::new(data, LittleEndian))
        })?;
        let mut units = Vec::new();
        let mut headers = sections.units();
        let mut at = 0;
        while let Some(header) = headers
            .next()
            .map_err(|source| DwarfError::Unit { unit: at, source })?
        {
            let start = header.debug_info_offset().map_or(at, |offset| offset.0);
            at = start.saturating_add(header.length_including_self());
            let unit = sections.unit(header).map_err(|source| DwarfError::Unit {
                unit: start,
                source,
            })?;
            units.push(unit);
        }
        match units.is_empty() {
            true => Err(DwarfError::Missing),
            false => Ok(Self { sections, units }),
        }
    }

    /// How many units there are.
    pub(crate) fn units(&self) -> usize {
        self.units.len()
    }

    /// Unit number `index`.
    pub(crate) fn unit(&self, index: usize) -> Result<&Unit<'d>, DwarfError> {
        self.units.get(index).ok_or(DwarfError::Missing)
    }

    /// Turns the DWARF reader's complaint about a unit into this module's.
    pub(crate) fn check<T>(&self, index: usize, result: gimli::Result<T>) -> Result<T, DwarfError> {
        result.map_err(|source| {
            let start = self
                .units
                .get(index)
                .and_then(|unit| unit.header.debug_info_offset());
            DwarfError::Unit {
                unit: start.map_or(0, |offset| offset.0),
                source,
            }
        })
    }

    /// The error that an entry has `problem`.
    pub(crate) fn broken(
        &self,
        (index, offset): Place,
        tag: DwTag,
        problem: &'static str,
    ) -> DwarfError {
        let start = self
            .units
            .get(index)
            .and_then(|unit| unit.header.debug_info_offset());
        let at = start.map_or(0, |start| start.0).saturating_add(offset.0);
        DwarfError::Entry { at, tag, problem }
    }

    /// The address of a function with code or of a variable in memory.
    pub(crate) fn address(
        &self,
        index: usize,
        entry: &Entry<'d>,
    ) -> Result<Option<u64>, DwarfError> {
        let unit = self.unit(index)?;
        if let Some(low) = entry.attr_value(dw::DW_AT_low_pc) {
            return self.check(index, self.sections.attr_address(unit, low));
        }
        let Some(AttributeValue::Exprloc(location)) = entry.attr_value(dw::DW_AT_location) else {
            return Ok(None);
        };
        let mut operations = location.operations(unit.encoding());
        Ok(match self.check(index, operations.next())? {
            Some(gimli::Operation::Address { address }) => Some(address),
            Some(gimli::Operation::AddressIndex { index: at }) => {
                Some(self.check(index, self.sections.address(unit, at))?)
            }
            _ => None,
        })
    }

    /// The entry at a place.
    pub(crate) fn entry(&self, (index, offset): Place) -> Result<Entry<'d>, DwarfError> {
        self.check(index, self.unit(index)?.entry(offset))
    }

    /// The entries directly below one.
    pub(crate) fn children(&self, (index, offset): Place) -> Result<Vec<Entry<'d>>, DwarfError> {
        let unit = self.unit(index)?;
        let mut tree = self.check(index, unit.entries_tree(Some(offset)))?;
        let mut children = self.check(index, tree.root())?.children();
        let mut found = Vec::new();
        while let Some(child) = self.check(index, children.next())? {
            found.push(child.entry().clone());
        }
        Ok(found)
    }

    /// An attribute that names another entry.
    pub(crate) fn reference(
        &self,
        index: usize,
        entry: &Entry<'d>,
        name: DwAt,
    ) -> Result<Option<Place>, DwarfError> {
        match entry.attr_value(name) {
            None => Ok(None),
            Some(AttributeValue::UnitRef(offset)) => Ok(Some((index, offset))),
            Some(AttributeValue::DebugInfoRef(offset)) => {
                let within = |unit: &Unit<'d>| {
                    gimli::UnitSectionOffset(offset.0).to_unit_offset(&unit.header)
                };
                let found = self
                    .units
                    .iter()
                    .enumerate()
                    .find_map(|(i, unit)| Some((i, within(unit)?)));
                let problem = "refers to an entry that is in no unit";
                found
                    .map(Some)
                    .ok_or_else(|| self.broken((index, entry.offset()), entry.tag(), problem))
            }
            Some(_) => Err(self.broken(
                (index, entry.offset()),
                entry.tag(),
                "refers to an entry in a way not known",
            )),
        }
    }

    /// The name that an entry itself has (`DW_AT_name`).
    pub(crate) fn own_name(
        &self,
        index: usize,
        entry: &Entry<'d>,
    ) -> Result<Option<String>, DwarfError> {
        let name = entry.attr_value(dw::DW_AT_name);
        name.map(|value| self.text(index, value)).transpose()
    }

    fn text(&self, index: usize, value: AttributeValue<Slice<'d>>) -> Result<String, DwarfError> {
        let text = self.check(index, self.sections.attr_string(self.unit(index)?, value))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The entry that says what a function's or variable's instance leaves out.
    fn origin(&self, (index, offset): Place) -> Result<Option<Place>, DwarfError> {
        let entry = self.entry((index, offset))?;
        for name in [dw::DW_AT_abstract_origin, dw::DW_AT_specification] {
            if let Some(place) = self.reference(index, &entry, name)? {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// An entry and what it refers to for what it leaves out, at most three steps (instance, abstract, declaration).
    pub(crate) fn with_origins(&self, place: Place) -> Result<Vec<Place>, DwarfError> {
        let mut places = vec![place];
        let mut last = place;
        while let Some(origin) = self.origin(last)?
            && places.len() < 4
        {
            places.push(origin);
            last = origin;
        }
        Ok(places)
    }

    /// The name that the linker has for a function (`DW_AT_linkage_name`), or, if it has none of its own, as in [`Dwarf::name`].
    pub(crate) fn linkage_name(&self, place: Place) -> Result<String, DwarfError> {
        for at in self.with_origins(place)? {
            if let Some(value) = self.entry(at)?.attr_value(dw::DW_AT_linkage_name) {
                return self.text(at.0, value);
            }
        }
        self.name(place)
    }

    /// The name of an entry, or of what it refers to; empty if there is none.
    pub(crate) fn name(&self, place: Place) -> Result<String, DwarfError> {
        for place in self.with_origins(place)? {
            if let Some(name) = self.own_name(place.0, &self.entry(place)?)? {
                return Ok(name);
            }
        }
        Ok(String::new())
    }
}
