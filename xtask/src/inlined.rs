// SPDX-License-Identifier: MIT OR Apache-2.0
//! Functions that the image has only inside others: inlined wherever they are called, so that nothing of their own is left to hook.
//!
//! DWARF says so (DWARF 5 standard, section 3.3.8): below a function's entry is one for each call that was inlined into it, however
//! deep, which names the function whose code that is. Left out are closures, which have no name to ask for, and what `core`, `alloc`
//! and `std` define (docs/decisions.md).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gimli::constants as dw;
use object::Endianness;
use object::read::elf::ElfFile64;

use crate::dwarf::{Dwarf, DwarfError, Place};
use crate::linked::{Linked, readable};

/// The crates whose functions are left out.
const LIBRARY: [&str; 4] = ["core", "alloc", "std", "compiler_builtins"];

/// By name, demangled as in [`Linked`] and without the arguments of generic functions: the indices of the functions whose code it is
/// part of.
pub(crate) type Inlined = BTreeMap<String, BTreeSet<usize>>;

/// What was inlined away: functions whose names none of the image's has.
///
/// # Errors
/// [`DwarfError`]: the file, or its DWARF, is broken or missing.
pub(crate) fn of_elf(file: &[u8], linked: &Linked) -> Result<Inlined, DwarfError> {
    let dwarf = Dwarf::open(&ElfFile64::<Endianness>::parse(file)?)?;
    let (mut parts, mut library) = (HashMap::new(), BTreeSet::new());
    for unit in 0..dwarf.units() {
        walk(&dwarf, unit, linked, &mut parts, &mut library)?;
    }
    let present = linked.functions.iter().map(|f| without_arguments(&f.name));
    let present: BTreeSet<String> = present.collect();
    let mut inlined = Inlined::new();
    for (place, hosts) in parts {
        let definition = dwarf.with_origins(place)?.pop();
        if definition.is_some_and(|place| library.contains(&place)) {
            continue;
        }
        let (name, _) = readable(&dwarf.linkage_name(place)?);
        let name = without_arguments(&name);
        if !name.is_empty() && !name.contains("::{") && !present.contains(&name) {
            inlined.entry(name).or_default().extend(hosts);
        }
    }
    Ok(inlined)
}

/// Goes through a unit: by function, the indices of those that it was inlined into; and which functions the library defines.
fn walk(
    dwarf: &Dwarf<'_>,
    unit: usize,
    linked: &Linked,
    parts: &mut HashMap<Place, BTreeSet<usize>>,
    library: &mut BTreeSet<Place>,
) -> Result<(), DwarfError> {
    /// What is known of where an entry is.
    #[derive(Clone, Copy, Default)]
    struct Around {
        /// The function of the image.
        host: Option<usize>,
        library: bool,
    }
    let mut around: Vec<Around> = Vec::new();
    let mut cursor = dwarf.unit(unit)?.entries();
    while let Some(entry) = dwarf.check(unit, cursor.next_dfs())? {
        around.truncate(usize::try_from(entry.depth()).unwrap_or(0));
        let mut here = around.last().copied().unwrap_or_default();
        match entry.tag() {
            // The crate, which the others are in.
            dw::DW_TAG_namespace if around.len() == 1 => {
                let name = dwarf.own_name(unit, entry)?;
                here.library = name.is_some_and(|name| LIBRARY.contains(&&*name));
            }
            dw::DW_TAG_subprogram => {
                // What the linker left out has an address that is no function's.
                let address = dwarf.address(unit, entry)?;
                here.host = address.and_then(|address| linked.starting(address));
                if here.library {
                    library.insert((unit, entry.offset()));
                }
            }
            dw::DW_TAG_inlined_subroutine => {
                let function = dwarf.reference(unit, entry, dw::DW_AT_abstract_origin)?;
                if let (Some(host), Some(function)) = (here.host, function) {
                    parts.entry(function).or_default().insert(host);
                }
            }
            _ => {}
        }
        around.push(here);
    }
    Ok(())
}

/// A name without what follows `::<`, up to the bracket's other half: one that has it stands for all of a generic function's.
fn without_arguments(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, arguments)) = rest.split_once("::<") {
        plain.push_str(before);
        let (mut depth, mut last) = (1, '<');
        let end = arguments.find(|this| {
            depth += match this {
                '<' => 1,
                // An arrow's head closes nothing.
                '>' if last != '-' => -1,
                _ => 0,
            };
            last = this;
            depth == 0
        });
        rest = end.and_then(|end| arguments.get(end + 1..)).unwrap_or("");
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generic_functions_are_one() {
        for (name, plain) in [
            ("a::b", "a::b"),
            ("a::b::<u8>", "a::b"),
            (
                "<a::C<u8>>::b::<d::E<fn() -> u8>, [u8; 4]>",
                "<a::C<u8>>::b",
            ),
            ("<a::C as b::D>::e::<u8>::f::<u16>", "<a::C as b::D>::e::f"),
            ("a::b::<u8", "a::b"),
            ("", ""),
        ] {
            assert_eq!(without_arguments(name), plain, "{name:?}");
        }
    }

    #[test]
    fn what_has_no_dwarf_is_an_error() {
        let linked = Linked::default();
        assert!(matches!(of_elf(b"", &linked), Err(DwarfError::Elf(_))));
    }
}
