// SPDX-License-Identifier: MIT OR Apache-2.0
//! From sections to programs: finds functions, follows relocations, appends the functions that a program calls.
#![forbid(unsafe_code)]

use alloc::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    format,
    string::String,
    vec::Vec,
};

use super::{
    MAX_INSNS, ObjectError,
    core_reloc::Records,
    elf::{Elf, Relocation, Symbol},
    externs::{ExternKind, Externs},
    jump_tables::{self, JumpTables, Uses},
    maps::MapTable,
    slots::{op_at, put},
};
use crate::isa::{Insn, Op, Reg};
use crate::program::ProgramFunction;

/// The section of functions that are no programs but called by them.
const SUBPROGRAMS: &str = ".text";
/// A map, variable or function in an `lddw` (the numbers are the kernel's "llvm_reloc" document's).
const R_BPF_64_64: u32 = 1;
/// An address in data.
pub(super) const R_BPF_64_ABS64: u32 = 2;
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
    /// Instructions that refer to what the kernel defines.
    pub(super) externs: Vec<ExternUse>,
    /// Instructions with a CO-RE relocation: the slot, the record.
    pub(super) core: Vec<(usize, usize)>,
    /// Where its function starts: the section, the slot.
    pub(super) place: (usize, usize),
    /// Its functions, by their starts.
    pub(super) functions: Vec<ProgramFunction>,
}

/// An instruction that refers to what the kernel defines.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExternUse {
    pub(super) slot: usize,
    /// The extern's index.
    pub(super) index: usize,
    /// What is added to its address.
    pub(super) addend: i32,
}

/// A function of the object. Places and lengths in instruction slots.
#[derive(Debug)]
pub(super) struct Function<'a> {
    pub(super) section: usize,
    pub(super) start: usize,
    pub(super) slots: usize,
    pub(super) symbol: Symbol<'a>,
}

/// What linking reads, and how much it may still make.
struct Linker<'a, 'd> {
    elf: &'a Elf<'d>,
    maps: &'a MapTable,
    externs: &'a mut Externs,
    core: &'a Records,
    /// Sorted by section and start.
    functions: Vec<Function<'d>>,
    jump_tables: JumpTables<'d>,
    /// By section, sorted by offset.
    relocations: &'a [Vec<Relocation>],
    /// Places of functions that some program has.
    used: BTreeSet<(usize, usize)>,
    /// Instructions made so far, over all programs.
    made: usize,
}

/// Links every program of an object, as far as the file alone tells what it refers to.
pub(super) fn programs(
    elf: &Elf<'_>,
    relocations: &[Vec<Relocation>],
    maps: &MapTable,
    externs: &mut Externs,
    core: &Records,
) -> Result<Vec<ProgramTemplate>, ObjectError> {
    let functions = functions(elf)?;
    let jump_tables = JumpTables::read(elf, relocations, &functions)?;
    let mut linker = Linker {
        elf,
        maps,
        externs,
        core,
        functions,
        jump_tables,
        relocations,
        used: BTreeSet::new(),
        made: 0,
    };
    let mut programs = Vec::new();
    for index in 0..linker.functions.len() {
        if let Some((section, function)) = linker.function(index)
            && section != SUBPROGRAMS
            && !function.symbol.is_local()
        {
            programs.push(linker.link(index)?);
        }
    }
    // A static function beside programs is one that they call, or else somebody forgot something.
    for function in &linker.functions {
        let section = elf.sections.get(function.section).map_or("", |s| s.name);
        if section != SUBPROGRAMS && !linker.used.contains(&(function.section, function.start)) {
            return Err(ObjectError::Function {
                section: section.into(),
                function: function.symbol.name.into(),
                problem: "a program has to be global; remove `static`",
            });
        }
    }
    if programs.is_empty() {
        return Err(ObjectError::NoPrograms);
    }
    Ok(programs)
}

/// The functions in sections of code, sorted; each whole and inside its section, none overlapping but for aliases.
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
            && (before.start, before.slots) != (function.start, function.slots)
        {
            return Err(ObjectError::Function {
                section: elf
                    .sections
                    .get(function.section)
                    .map_or("", |s| s.name)
                    .into(),
                function: function.symbol.name.into(),
                problem: "it overlaps the function before it and is no alias of it",
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
    /// Calls and addresses to be filled in: the slot, the function, the register of an address.
    calls: Vec<(usize, usize, Option<Reg>)>,
    externs: Vec<ExternUse>,
    core: Vec<(usize, usize)>,
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

    /// Notes that the instruction at a slot calls a function, or puts its address into a register.
    fn refer(&mut self, slot: usize, function: usize, address: Option<Reg>) {
        self.need(function);
        self.calls.push((slot, function, address));
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
        for (slot, function, address) in core::mem::take(&mut image.calls) {
            let start = image.starts.get(&function).copied().unwrap_or(slot);
            // An object has at most MAX_INSNS slots, so the distance fits.
            let off = (start as i64 - slot as i64 - 1) as i32;
            put(
                &mut image.insns,
                slot,
                match address {
                    Some(dst) => Op::LoadFunction { dst, off },
                    None => Op::CallLocal { off },
                },
            );
        }
        self.made += image.insns.len();
        let mut functions = Vec::new();
        for (&index, &start) in &image.starts {
            if let Some(function) = self.functions.get(index) {
                functions.push(ProgramFunction {
                    name: function.symbol.name.into(),
                    start,
                    global: !function.symbol.is_local(),
                });
            }
        }
        functions.sort_by_key(|function| function.start);
        for function in image.queue {
            if let Some(function) = self.functions.get(function) {
                self.used.insert((function.section, function.start));
            }
        }
        let (section, function) = self.function(root).ok_or(ObjectError::NoPrograms)?;
        Ok(ProgramTemplate {
            name: function.symbol.name.into(),
            section: section.into(),
            insns: image.insns,
            maps: image.maps,
            externs: image.externs,
            core: image.core,
            place: (function.section, function.start),
            functions,
        })
    }

    /// Appends one function to the program that starts with `root`, its relocations done but for calls.
    fn append(&mut self, image: &mut Image, root: usize, index: usize) -> Result<(), ObjectError> {
        let Some((section, function)) = self.function(index) else {
            return Ok(());
        };
        let (home, start) = (function.section, function.start);
        self.check_length(root, self.made + image.insns.len() + function.slots)?;
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
        let relocations = list.get(first..last).unwrap_or_default();
        let mut relocations = relocations.iter().copied().peekable();
        let records = self
            .core
            .within(function.section, bytes(function.start), end);
        let core = self.core;
        let record_offset = |record: &usize| {
            core.get(*record)
                .map_or(0, |record| u64::from(record.offset))
        };
        let mut records = records.peekable();

        let base = image.insns.len();
        image.starts.insert(index, base);
        image
            .insns
            .extend(slots.iter().map(|&slot| Insn::from_bytes(slot)));
        let mut slot = 0;
        let mut jumps = Uses::default();
        while slot < slots.len() {
            let offset = bytes(start + slot);
            let at = base + slot;
            // What does not decode is for the validator to refuse; here it only cannot have a relocation.
            let op = op_at(&image.insns, at);
            let relocation = relocations.next_if(|r| r.offset == offset);
            let place = Place {
                section,
                offset,
                slot: at,
            };
            jumps.falls_off = op.is_none_or(Op::falls_through);
            match (relocation, op) {
                (Some(relocation), op) => {
                    self.relocate(image, &place, &relocation, op)?;
                    let symbol = self.symbol(&relocation);
                    let noted = self.jump_tables.refer(&mut jumps, symbol, op);
                    noted.map_err(|problem| place.error(symbol.name, problem))?;
                }
                (None, Some(Op::CallLocal { off })) => {
                    let target = call_target(offset, off);
                    let function = self.target(&place, home, target)?;
                    image.refer(at, function, None);
                }
                (None, None) => jumps.gotox(at, image.insns.get(at)),
                (None, Some(_)) => {}
            }
            if let Some(record) = records.next_if(|record| record_offset(record) == offset) {
                image.core.push((at, record));
            }
            slot += op.map_or(1, Op::slots);
            if records
                .next_if(|record| record_offset(record) < bytes(start + slot))
                .is_some()
            {
                let problem = "the CO-RE relocation is not at the start of an instruction, or the second there";
                return Err(place.error("", problem.into()));
            }
            // One that is left behind lies between instructions, or is the second for one.
            if let Some(relocation) = relocations.next_if(|r| r.offset < bytes(start + slot)) {
                let problem =
                    "the relocation is not at the start of an instruction, or the second there";
                return Err(place.error(self.symbol(&relocation).name, problem.into()));
            }
        }
        self.replace_gotox(image, root, index, jumps)
    }

    /// Replaces each `gotox` of the function that was just appended, and puts what they become behind it.
    fn replace_gotox(
        &mut self,
        image: &mut Image,
        root: usize,
        index: usize,
        jumps: Uses,
    ) -> Result<(), ObjectError> {
        let base = image.starts.get(&index).copied().unwrap_or_default();
        let Some(function) = self
            .functions
            .get(index)
            .filter(|_| !jumps.gotox.is_empty())
        else {
            return Ok(());
        };
        let cases = self.jump_tables.cases(self.elf, function, base, &jumps)?;
        for (register, slots) in &jumps.gotox {
            // At least so many instructions; the rest is checked when they are there.
            self.check_length(root, self.made + image.insns.len() + cases.len())?;
            jump_tables::search(&mut image.insns, *register, slots, &cases);
            self.check_length(root, self.made + image.insns.len())?;
        }
        Ok(())
    }

    /// That the object has no more instructions than it may, with a program.
    fn check_length(&self, program: usize, found: usize) -> Result<(), ObjectError> {
        if found <= MAX_INSNS {
            return Ok(());
        }
        let (_, function) = self.function(program).ok_or(ObjectError::NoPrograms)?;
        Err(ObjectError::TooLong {
            program: function.symbol.name.into(),
            found,
        })
    }

    /// Does one relocation, of the instruction at `place`.
    fn relocate(
        &mut self,
        image: &mut Image,
        place: &Place<'_>,
        relocation: &Relocation,
        op: Option<Op>,
    ) -> Result<(), ObjectError> {
        let symbol = self.symbol(relocation);
        let Some(home) = symbol.section else {
            return self.refer_to_extern(image, place, relocation, op);
        };
        match (relocation.kind, op) {
            (R_BPF_64_32, Some(Op::CallLocal { off })) => {
                let target = call_target(symbol.value, off);
                let function = self.target(place, home, target)?;
                image.refer(place.slot, function, None);
                Ok(())
            }
            (R_BPF_64_64, Some(Op::LoadImm { dst, value })) => {
                // The addend is the low slot's signed immediate.
                let target = (symbol.value as i64).saturating_add(i64::from(value as i32));
                let section = self.elf.sections.get(home);
                if section.is_some_and(|section| section.is_code()) {
                    let function = self.target(place, home, target)?;
                    image.refer(place.slot, function, Some(dst));
                    return Ok(());
                }
                let Some((map, offset)) = self.maps.find(home, target) else {
                    let problem = format!(
                        "it refers to offset {target:#x} of section `{}`, where no map and no variable is",
                        section.map_or("", |home| home.name)
                    );
                    return Err(place.error(symbol.name, problem));
                };
                let map = image.map(map);
                put(
                    &mut image.insns,
                    place.slot,
                    match offset {
                        None => Op::LoadMap { dst, map },
                        Some(offset) => Op::LoadMapValue { dst, map, offset },
                    },
                );
                Ok(())
            }
            (kind, _) => Err(place.misplaced(symbol.name, kind)),
        }
    }

    /// Does a relocation against a symbol that is not defined in the object.
    fn refer_to_extern(
        &mut self,
        image: &mut Image,
        place: &Place<'_>,
        relocation: &Relocation,
        op: Option<Op>,
    ) -> Result<(), ObjectError> {
        let symbol = self.symbol(relocation);
        let map = self.externs.map;
        let index = self.externs.of_symbol(relocation.symbol);
        let Some((index, found)) =
            index.and_then(|index| Some((index, self.externs.list.get_mut(index)?)))
        else {
            return Err(ObjectError::UnresolvedSymbol {
                section: place.section.into(),
                offset: place.offset,
                symbol: symbol.name.into(),
            });
        };
        found
            .used
            .get_or_insert_with(|| (place.section.into(), place.offset));
        let addend = match (relocation.kind, op, &found.kind) {
            (
                R_BPF_64_32,
                Some(Op::CallLocal { .. } | Op::CallKernel { .. }),
                ExternKind::Function(_),
            ) => 0,
            (R_BPF_64_64, Some(Op::LoadImm { dst, value }), ExternKind::Setting(setting)) => {
                // A number below the variable's size.
                let addend = u32::try_from(value).ok().filter(|&a| a < setting.bytes);
                let (Some(addend), Some(map)) = (addend, map) else {
                    let problem = format!(
                        "it refers to offset {value:#x} of a variable of {} bytes",
                        setting.bytes
                    );
                    return Err(place.error(symbol.name, problem));
                };
                let offset = setting.offset + addend;
                let map = image.map(map);
                put(
                    &mut image.insns,
                    place.slot,
                    Op::LoadMapValue { dst, map, offset },
                );
                return Ok(());
            }
            (R_BPF_64_64, Some(Op::LoadImm { value, .. }), _) => value as i32,
            (kind, ..) => return Err(place.misplaced(symbol.name, kind)),
        };
        image.externs.push(ExternUse {
            slot: place.slot,
            index,
            addend,
        });
        Ok(())
    }

    /// The function that starts at an offset of a section, which the instruction at `place` refers to.
    fn target(&self, place: &Place<'_>, section: usize, target: i64) -> Result<usize, ObjectError> {
        let slot = Insn::BYTES as i64;
        usize::try_from(target / slot)
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
            })
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

    fn misplaced(&self, symbol: &str, kind: u32) -> ObjectError {
        self.error(
            symbol,
            format!(
                "a relocation of type {kind} at an instruction that does not take it (lddw takes {R_BPF_64_64}, call \
                 {R_BPF_64_32})"
            ),
        )
    }
}

/// The offset that a call goes to, if its distance counts from the instruction at `origin`.
fn call_target(origin: u64, off: i32) -> i64 {
    let distance = (i64::from(off) + 1) * Insn::BYTES as i64;
    (origin as i64).saturating_add(distance)
}
