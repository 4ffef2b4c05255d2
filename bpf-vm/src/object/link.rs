// SPDX-License-Identifier: MIT OR Apache-2.0
//! From sections to programs: finds functions, follows relocations, appends the functions that a program calls.
#![forbid(unsafe_code)]

use alloc::{
    collections::{BTreeMap, btree_map::Entry},
    format,
    string::String,
    vec::Vec,
};

use super::{
    MAX_INSNS, ObjectError,
    elf::{Elf, Relocation, Symbol},
    maps::MapTable,
};
use crate::isa::{Insn, Op};

/// The section of functions that are no programs but called by them.
const SUBPROGRAMS: &str = ".text";
/// A map or variable in an `lddw` (the numbers are the kernel's "llvm_reloc" document's).
const R_BPF_64_64: u32 = 1;
/// A function in a `call`.
const R_BPF_64_32: u32 = 10;

/// A program whose maps are still named by their index in the object.
#[derive(Clone, Debug)]
pub(super) struct ProgramTemplate {
    pub(super) name: String,
    pub(super) section: String,
    pub(super) insns: Vec<Insn>,
    /// The maps it uses: its instructions' index -> the object's index.
    pub(super) maps: Vec<usize>,
}

/// A function of the object. Places and lengths in instruction slots.
#[derive(Debug)]
struct Function<'a> {
    section: usize,
    start: usize,
    slots: usize,
    symbol: Symbol<'a>,
}

/// What linking reads, and how much it may still make.
struct Linker<'a, 'd> {
    elf: &'a Elf<'d>,
    maps: &'a MapTable,
    /// Sorted by section and start.
    functions: Vec<Function<'d>>,
    /// By section, sorted by offset.
    relocations: Vec<Vec<Relocation>>,
    /// Instructions made so far, over all programs.
    made: usize,
}

/// Links every program of an object.
pub(super) fn programs(
    elf: &Elf<'_>,
    maps: &MapTable,
) -> Result<Vec<ProgramTemplate>, ObjectError> {
    let relocations = elf.relocations()?;
    for (section, list) in elf.sections.iter().zip(&relocations) {
        if let (false, Some(relocation)) = (section.is_code(), list.first()) {
            return Err(ObjectError::Relocation {
                section: section.name.into(),
                offset: relocation.offset,
                symbol: elf.symbols.get(relocation.symbol).map_or("", |s| s.name).into(),
                problem: "data that holds addresses (pointers, inner maps, program arrays) is not supported yet; set it \
                          at run time"
                    .into(),
            });
        }
    }
    let mut linker = Linker {
        elf,
        maps,
        functions: functions(elf)?,
        relocations,
        made: 0,
    };
    let mut programs = Vec::new();
    for index in 0..linker.functions.len() {
        let Some((section, function)) = linker.function(index) else {
            continue;
        };
        if section == SUBPROGRAMS {
            continue;
        }
        if function.symbol.is_local() {
            return Err(ObjectError::Function {
                section: section.into(),
                function: function.symbol.name.into(),
                problem: "a program has to be global; remove `static`",
            });
        }
        programs.push(linker.link(index)?);
    }
    if programs.is_empty() {
        return Err(ObjectError::NoPrograms);
    }
    Ok(programs)
}

/// The functions in sections of code, sorted; each whole and inside its section, none overlapping.
fn functions<'d>(elf: &Elf<'d>) -> Result<Vec<Function<'d>>, ObjectError> {
    let mut functions = Vec::new();
    for symbol in elf.symbols.iter().filter(|symbol| symbol.is_function()) {
        let Some((index, section)) = symbol
            .section
            .and_then(|index| Some((index, elf.sections.get(index)?)))
        else {
            continue;
        };
        if !section.is_code() {
            continue;
        }
        let slot = Insn::BYTES as u64;
        let problem = if !symbol.value.is_multiple_of(slot) || !symbol.size.is_multiple_of(slot) {
            Some("it is no whole number of instructions")
        } else if symbol.size == 0 {
            Some("it has no instructions")
        } else if symbol.value.saturating_add(symbol.size) > section.data.len() as u64 {
            Some("it reaches past the section's end")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(ObjectError::Function {
                section: section.name.into(),
                function: symbol.name.into(),
                problem,
            });
        }
        functions.push(Function {
            section: index,
            start: (symbol.value / slot) as usize,
            slots: (symbol.size / slot) as usize,
            symbol: *symbol,
        });
    }
    functions.sort_by_key(|function| (function.section, function.start));
    for pair in functions.windows(2) {
        if let [before, function] = pair
            && before.section == function.section
            && before.start + before.slots > function.start
        {
            return Err(ObjectError::Function {
                section: elf
                    .sections
                    .get(function.section)
                    .map_or("", |s| s.name)
                    .into(),
                function: function.symbol.name.into(),
                problem: "it overlaps the function before it; an alias has to be a function of its own",
            });
        }
    }
    Ok(functions)
}

/// A program being put together.
#[derive(Default)]
struct Image {
    insns: Vec<Insn>,
    maps: Vec<usize>,
    /// Functions in it or to be appended, in order, and where each starts once it is in.
    queue: Vec<usize>,
    starts: BTreeMap<usize, usize>,
    /// Calls to be filled in: the slot of the call, the function.
    calls: Vec<(usize, usize)>,
}

impl Image {
    /// The program's own index of one of the object's maps.
    fn map(&mut self, map: usize) -> u32 {
        let index = self.maps.iter().position(|&known| known == map);
        index.unwrap_or_else(|| {
            self.maps.push(map);
            self.maps.len() - 1
        }) as u32
    }

    /// Sees to it that a function is in the program.
    fn need(&mut self, function: usize) {
        if let Entry::Vacant(start) = self.starts.entry(function) {
            start.insert(usize::MAX);
            self.queue.push(function);
        }
    }
}

impl<'d> Linker<'_, 'd> {
    /// A function with its section's name.
    fn function(&self, index: usize) -> Option<(&'d str, &Function<'d>)> {
        let function = self.functions.get(index)?;
        let section = self.elf.sections.get(function.section)?;
        Some((section.name, function))
    }

    /// Links the program that starts with function `root`.
    fn link(&mut self, root: usize) -> Result<ProgramTemplate, ObjectError> {
        let mut image = Image::default();
        image.need(root);
        let mut next = 0;
        while let Some(&function) = image.queue.get(next) {
            self.append(&mut image, root, function)?;
            next += 1;
        }
        for (slot, function) in core::mem::take(&mut image.calls) {
            let start = image.starts.get(&function).copied().unwrap_or(slot);
            // An object has at most MAX_INSNS slots, so the distance fits.
            let off = (start as i64 - slot as i64 - 1) as i32;
            if let Some(insn) = image.insns.get_mut(slot) {
                (*insn, _) = Op::CallLocal { off }.encode();
            }
        }
        self.made += image.insns.len();
        let (section, function) = self.function(root).ok_or(ObjectError::NoPrograms)?;
        Ok(ProgramTemplate {
            name: function.symbol.name.into(),
            section: section.into(),
            insns: image.insns,
            maps: image.maps,
        })
    }

    /// Appends one function to the program that starts with `root`, its relocations done but for calls.
    fn append(&self, image: &mut Image, root: usize, index: usize) -> Result<(), ObjectError> {
        let Some((section, function)) = self.function(index) else {
            return Ok(());
        };
        let found = self.made + image.insns.len() + function.slots;
        if found > MAX_INSNS {
            return Err(ObjectError::TooLong {
                program: self
                    .function(root)
                    .map_or("", |(_, root)| root.symbol.name)
                    .into(),
                found,
            });
        }
        let data = self
            .elf
            .sections
            .get(function.section)
            .map_or(&[][..], |s| s.data);
        let (slots, _) = data.as_chunks::<{ Insn::BYTES }>();
        let slots = slots
            .get(function.start..function.start + function.slots)
            .unwrap_or_default();
        let bytes = |slot: usize| (slot * Insn::BYTES) as u64;
        let end = bytes(function.start + function.slots);
        let list = self
            .relocations
            .get(function.section)
            .map_or(&[][..], Vec::as_slice);
        let first = list.partition_point(|r| r.offset < bytes(function.start));
        let last = list.partition_point(|r| r.offset < end);
        let mut relocations = list.get(first..last).unwrap_or_default().iter().peekable();

        let base = image.insns.len();
        image.starts.insert(index, base);
        image
            .insns
            .extend(slots.iter().map(|&slot| Insn::from_bytes(slot)));
        let mut slot = 0;
        while slot < slots.len() {
            let offset = bytes(function.start + slot);
            let at = base + slot;
            let Some(&insn) = image.insns.get(at) else {
                break;
            };
            // What does not decode is for the validator to refuse; here it only cannot have a relocation.
            let op = Op::decode(insn, image.insns.get(at + 1).copied()).ok();
            let relocation = relocations.next_if(|r| r.offset == offset);
            let place = Place {
                section,
                offset,
                slot: at,
            };
            match (relocation, op) {
                (Some(relocation), op) => self.relocate(image, &place, relocation, op)?,
                (None, Some(Op::CallLocal { off })) => {
                    let target = call_target(offset, off);
                    self.call(image, &place, function.section, target)?;
                }
                (None, _) => {}
            }
            slot += op.map_or(1, Op::slots);
            // One that is left behind lies between instructions, or is the second for one.
            if let Some(relocation) =
                relocations.next_if(|r| r.offset < bytes(function.start + slot))
            {
                let problem =
                    "the relocation is not at the start of an instruction, or the second there";
                return Err(place.error(self.symbol(relocation).name, problem.into()));
            }
        }
        Ok(())
    }
    /// Does one relocation, of the instruction at `place`.
    fn relocate(
        &self,
        image: &mut Image,
        place: &Place<'_>,
        relocation: &Relocation,
        op: Option<Op>,
    ) -> Result<(), ObjectError> {
        let symbol = self.symbol(relocation);
        let Some(home) = symbol.section else {
            return Err(ObjectError::UnresolvedSymbol {
                section: place.section.into(),
                offset: place.offset,
                symbol: symbol.name.into(),
            });
        };
        match (relocation.kind, op) {
            (R_BPF_64_32, Some(Op::CallLocal { off })) => {
                self.call(image, place, home, call_target(symbol.value, off))
            }
            (R_BPF_64_64, Some(Op::LoadImm { dst, value })) => {
                // The addend is the low slot's signed immediate.
                let target = (symbol.value as i64).saturating_add(i64::from(value as i32));
                let Some((map, offset)) = self.maps.find(home, target) else {
                    let home = self.elf.sections.get(home);
                    let problem = match home {
                        Some(home) if home.is_code() => {
                            "the address of a function: callbacks are not supported yet".into()
                        }
                        _ => format!(
                            "it refers to offset {target:#x} of section `{}`, where no map and no variable is",
                            home.map_or("", |home| home.name)
                        ),
                    };
                    return Err(place.error(symbol.name, problem));
                };
                let map = image.map(map);
                let op = match offset {
                    None => Op::LoadMap { dst, map },
                    Some(offset) => Op::LoadMapValue { dst, map, offset },
                };
                let (low, high) = op.encode();
                let slots = image.insns.iter_mut().skip(place.slot);
                for (slot, insn) in slots.zip([Some(low), high].into_iter().flatten()) {
                    *slot = insn;
                }
                Ok(())
            }
            (kind, _) => Err(place.error(
                symbol.name,
                format!(
                    "a relocation of type {kind} at an instruction that does not take it (lddw takes \
                     {R_BPF_64_64}, call {R_BPF_64_32})"
                ),
            )),
        }
    }

    /// Notes the call at `place`, which goes to an offset of a section.
    fn call(
        &self,
        image: &mut Image,
        place: &Place<'_>,
        section: usize,
        target: i64,
    ) -> Result<(), ObjectError> {
        let slot = Insn::BYTES as i64;
        let function = usize::try_from(target / slot)
            .ok()
            .filter(|_| target % slot == 0)
            .and_then(|start| {
                self.functions
                    .binary_search_by_key(&(section, start), |function| {
                        (function.section, function.start)
                    })
                    .ok()
            })
            .ok_or_else(|| ObjectError::Call {
                section: place.section.into(),
                offset: place.offset,
                target: self.elf.sections.get(section).map_or("", |s| s.name).into(),
                target_offset: target,
            })?;
        image.need(function);
        image.calls.push((place.slot, function));
        Ok(())
    }

    /// The symbol of a relocation; its index was checked when it was read.
    fn symbol(&self, relocation: &Relocation) -> Symbol<'d> {
        let symbol = self.elf.symbols.get(relocation.symbol);
        symbol.copied().unwrap_or_default()
    }
}

/// An instruction's place: in the object, for messages, and in the program.
struct Place<'a> {
    section: &'a str,
    /// Its offset in the section.
    offset: u64,
    /// Its slot in the program.
    slot: usize,
}

impl Place<'_> {
    fn error(&self, symbol: &str, problem: String) -> ObjectError {
        ObjectError::Relocation {
            section: self.section.into(),
            offset: self.offset,
            symbol: symbol.into(),
            problem,
        }
    }
}

/// The offset that a call goes to, if its distance counts from the instruction at `origin`.
fn call_target(origin: u64, off: i32) -> i64 {
    let distance = (i64::from(off) + 1) * Insn::BYTES as i64;
    (origin as i64).saturating_add(distance)
}
