// SPDX-License-Identifier: MIT OR Apache-2.0
//! Jump tables: a `gotox`, which RFC 9669 does not have, becomes a search among the places that it may lead to.
//!
//! With `-mcpu=v4` clang 22 makes an array of words in `.jumptables` of a `switch`, and of each `&&label` a word there or in
//! an array of the program: the offset in bytes, in the function's section, of the instruction to go to. The words stay
//! what they are: numbers, unique in a function, in read-only data. A `gotox` becomes a jump behind its function, to
//! comparisons of its register with every number in the tables that the function refers to. What is none of them ends the
//! function with r0 = 0.
#![forbid(unsafe_code)]

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::String,
    vec,
    vec::Vec,
};

use super::{
    ObjectError,
    elf::{Elf, Relocation, Symbol},
    link::{Function, R_BPF_64_ABS64},
    maps::{MAPS, data_section},
    slots::{op_at, put},
};
use crate::isa::{AluOp, Cond, Insn, Op, Operand, Reg, Width};

/// The section of tables.
pub(super) const JUMP_TABLES: &str = ".jumptables";
/// Bytes of a word of a table.
const WORD_BYTES: usize = 8;
/// Numbers that are compared one after the other; more are halved first.
const FEW: usize = 4;

/// Where tables are, and where they lead.
#[derive(Debug, Default)]
pub(super) struct JumpTables<'d> {
    section: Option<usize>,
    /// Sorted by start; none overlap, so each word is read for one function.
    tables: Vec<Table<'d>>,
    /// Sorted by where they lead.
    labels: Vec<Label<'d>>,
    /// What [`cases`](Self::cases) found, by the function's section and start: slots of the function.
    known: BTreeMap<(usize, usize), Vec<usize>>,
}

/// A table in `.jumptables`, in bytes of the section.
#[derive(Debug)]
struct Table<'d> {
    start: u64,
    end: u64,
    symbol: &'d str,
    /// The section and the start of the function that jumps by it.
    owner: Option<(usize, usize)>,
}

/// A word of a data section that leads into a function.
#[derive(Debug)]
struct Label<'d> {
    /// The function's section, the offset there.
    target: (usize, u64),
    /// The word's section, the offset there.
    place: (usize, u64),
    symbol: &'d str,
}

/// What a function has to do with tables.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Indices of tables that it refers to.
    tables: BTreeSet<usize>,
    /// Slots of `gotox` in the program, by the register.
    pub(super) gotox: BTreeMap<Reg, Vec<usize>>,
    /// Whether execution goes past the last instruction seen.
    pub(super) falls_off: bool,
}

impl Uses {
    /// Notes the instruction at a slot of the program, if it is a `gotox`.
    pub(super) fn gotox(&mut self, slot: usize, insn: Option<&Insn>) {
        if let Some(register) = insn.and_then(Insn::gotox) {
            self.gotox.entry(register).or_default().push(slot);
            self.falls_off = false;
        }
    }

    /// The first slot of a `gotox`.
    fn first(&self) -> usize {
        let slots = self.gotox.values().filter_map(|slots| slots.first());
        slots.copied().min().unwrap_or_default()
    }
}

impl<'d> JumpTables<'d> {
    /// Finds the tables by their symbols, and the words of data sections that lead into functions; other addresses in
    /// global data are refused.
    pub(super) fn read(
        elf: &Elf<'d>,
        relocations: &[Vec<Relocation>],
        functions: &[Function<'d>],
    ) -> Result<Self, ObjectError> {
        let mut found = Self {
            labels: labels(elf, relocations, functions)?,
            ..Self::default()
        };
        let Some((section, header)) = elf.section(JUMP_TABLES) else {
            return Ok(found);
        };
        found.section = Some(section);
        let symbols = elf.symbols.iter();
        for symbol in symbols.filter(|s| s.section == Some(section) && s.is_object()) {
            let (start, end) = (symbol.value, symbol.value.saturating_add(symbol.size));
            let words = WORD_BYTES as u64;
            let whole = start.is_multiple_of(words) && symbol.size.is_multiple_of(words);
            if !whole || symbol.size == 0 || end > header.data.len() as u64 {
                let problem = format!(
                    "a jump table of {} bytes in a section of {}; it has to be whole words of {words} bytes inside of it",
                    symbol.size,
                    header.data.len()
                );
                return Err(error(JUMP_TABLES, start, symbol.name, problem));
            }
            found.tables.push(Table {
                start,
                end,
                symbol: symbol.name,
                owner: None,
            });
        }
        found.tables.sort_by_key(|table| table.start);
        for pair in found.tables.windows(2) {
            if let [before, table] = pair
                && before.end > table.start
            {
                let problem = format!("the jump table overlaps `{}`", before.symbol);
                return Err(error(JUMP_TABLES, table.start, table.symbol, problem));
            }
        }
        Ok(found)
    }

    /// Notes a function's `lddw` of a symbol, if that is in `.jumptables`.
    ///
    /// Errors, in words: no table is there.
    pub(super) fn refer(
        &self,
        uses: &mut Uses,
        symbol: Symbol<'_>,
        op: Option<Op>,
    ) -> Result<(), String> {
        let Some(Op::LoadImm { value, .. }) = op else {
            return Ok(());
        };
        if symbol.section.is_none() || symbol.section != self.section {
            return Ok(());
        }
        // As the loader reads it for maps: the low slot's signed immediate.
        let addend = i64::from(value as i32);
        let at = symbol.value.saturating_add_signed(addend);
        let after = self.tables.partition_point(|table| table.start <= at);
        let index = after.checked_sub(1);
        let index = index.filter(|&index| self.tables.get(index).is_some_and(|t| at < t.end));
        uses.tables.insert(index.ok_or_else(|| {
            format!("it refers to offset {at:#x} of section `{JUMP_TABLES}`, where no symbol says that a table is")
        })?);
        Ok(())
    }

    /// All places that a function's tables lead to: numbers, ascending, and slots of the program in which the function
    /// starts at slot `base`.
    pub(super) fn cases(
        &mut self,
        elf: &Elf<'_>,
        function: &Function<'_>,
        base: usize,
        uses: &Uses,
    ) -> Result<Vec<(i32, usize)>, ObjectError> {
        let place = (function.section, function.start);
        let section = elf.sections.get(function.section);
        let section = section.map_or("", |section| section.name);
        let at = |slot: usize| ((function.start + slot) * Insn::BYTES) as u64;
        let refuse = |slot, problem: &str| {
            let name = function.symbol.name;
            Err(error(section, at(slot), name, problem.into()))
        };
        if !self.known.contains_key(&place) {
            let found = self.find(elf, function, uses)?;
            self.known.insert(place, found);
        }
        let found = self.known.get(&place).map_or(&[][..], Vec::as_slice);
        if found.is_empty() {
            return refuse(
                uses.first().saturating_sub(base),
                "gotox, a jump by register, in a function that refers to no jump table; RFC 9669 has no such jump, compile \
                 with -fno-jump-tables",
            );
        }
        if uses.falls_off {
            return refuse(
                function.slots - 1,
                "execution runs past the end of the function here; end it with `exit` or a jump",
            );
        }
        let mut cases = Vec::with_capacity(found.len());
        for &slot in found {
            let Ok(number) = i32::try_from(at(slot)) else {
                return refuse(
                    slot,
                    "a jump table leads here, 2 GiB into the section or more",
                );
            };
            cases.push((number, base + slot));
        }
        Ok(cases)
    }

    /// The slots of a function, counted from its start, that the tables lead to, ascending.
    fn find(
        &mut self,
        elf: &Elf<'_>,
        function: &Function<'_>,
        uses: &Uses,
    ) -> Result<Vec<usize>, ObjectError> {
        let name_of = |index: usize| elf.sections.get(index).map_or("", |section| section.name);
        let data = |index: usize| elf.sections.get(index).map_or(&[][..], |s| s.data);
        let (slots, _) = data(function.section).as_chunks::<{ Insn::BYTES }>();
        let slots = slots.get(function.start..function.start + function.slots);
        let slots = slots.unwrap_or_default();
        let insns: Vec<_> = slots.iter().map(|&slot| Insn::from_bytes(slot)).collect();
        let mut begins = vec![false; insns.len()];
        let mut slot = 0;
        while let Some(begin) = begins.get_mut(slot) {
            *begin = true;
            slot += op_at(&insns, slot).map_or(1, Op::slots);
        }
        let mut wanted = vec![false; insns.len()];
        let start = (function.start * Insn::BYTES) as u64;
        let mut want = |to: u64| {
            let distance = to.wrapping_sub(start);
            let problem = if !distance.is_multiple_of(Insn::BYTES as u64) {
                "which is no multiple of 8"
            } else {
                let slot = usize::try_from(distance / Insn::BYTES as u64).ok();
                let begin = slot.and_then(|slot| Some((begins.get(slot)?, wanted.get_mut(slot)?)));
                match begin {
                    Some((true, wanted)) => {
                        *wanted = true;
                        return Ok(());
                    }
                    Some((false, _)) => "the second half of an lddw",
                    None => "which is outside of the function that jumps by it",
                }
            };
            Err(format!(
                "the word leads to offset {to:#x} of section `{}`, {problem} (`{}`)",
                name_of(function.section),
                function.symbol.name
            ))
        };
        let (words, _) = data(self.section.unwrap_or_default()).as_chunks::<WORD_BYTES>();
        let place = (function.section, function.start);
        for &index in &uses.tables {
            let Some(table) = self.tables.get_mut(index) else {
                continue;
            };
            if *table.owner.get_or_insert(place) != place {
                let problem = format!(
                    "function `{}` and another jump by the same table",
                    function.symbol.name
                );
                return Err(error(JUMP_TABLES, table.start, table.symbol, problem));
            }
            let (first, last) = (table.start as usize, table.end as usize);
            let range = first / WORD_BYTES..last / WORD_BYTES;
            for (at, word) in (first..)
                .step_by(WORD_BYTES)
                .zip(words.get(range).unwrap_or_default())
            {
                want(u64::from_le_bytes(*word))
                    .map_err(|problem| error(JUMP_TABLES, at as u64, table.symbol, problem))?;
            }
        }
        let end = start + (insns.len() * Insn::BYTES) as u64;
        let first = |to| {
            let target = (function.section, to);
            self.labels.partition_point(|label| label.target < target)
        };
        let labels = self.labels.get(first(start)..first(end));
        for label in labels.unwrap_or_default() {
            want(label.target.1).map_err(|problem| {
                let (section, offset) = label.place;
                error(name_of(section), offset, label.symbol, problem)
            })?;
        }
        let found = wanted.iter().enumerate().filter(|(_, wanted)| **wanted);
        Ok(found.map(|(slot, _)| slot).collect())
    }
}

/// The words of data sections that lead into functions, sorted; any other address there is an error.
fn labels<'d>(
    elf: &Elf<'d>,
    relocations: &[Vec<Relocation>],
    functions: &[Function<'d>],
) -> Result<Vec<Label<'d>>, ObjectError> {
    let mut labels = Vec::new();
    for (index, (section, list)) in elf.sections.iter().zip(relocations).enumerate() {
        if section.name == MAPS || data_section(section).is_none() {
            continue;
        }
        for relocation in list {
            let symbol = elf.symbols.get(relocation.symbol);
            let symbol = symbol.copied().unwrap_or_default();
            // What is in the place is added to the symbol's value, which has to be 0: the word is used as it is.
            let word = usize::try_from(relocation.offset)
                .ok()
                .and_then(|at| section.data.get(at..)?.first_chunk());
            let label = symbol.section.zip(word).filter(|(home, word)| {
                let to = u64::from_le_bytes(**word);
                relocation.kind == R_BPF_64_ABS64
                    && symbol.value == 0
                    && leads_inside(functions, *home, to)
            });
            let Some((home, word)) = label else {
                return Err(error(
                    section.name,
                    relocation.offset,
                    symbol.name,
                    "a pointer as a global variable's initial value, which no loader of BPF fills in; set it in a \
                     program, or use an index"
                        .into(),
                ));
            };
            labels.push(Label {
                target: (home, u64::from_le_bytes(*word)),
                place: (index, relocation.offset),
                symbol: symbol.name,
            });
        }
    }
    labels.sort_by_key(|label| label.target);
    Ok(labels)
}

/// Whether an offset of a section is in a function and not its start, which would be the function's address.
fn leads_inside(functions: &[Function<'_>], section: usize, offset: u64) -> bool {
    let slots = offset / Insn::BYTES as u64;
    let after = functions
        .partition_point(|f| (f.section, f.start as u64 * Insn::BYTES as u64) < (section, offset));
    let before = after.checked_sub(1).and_then(|index| functions.get(index));
    before.is_some_and(|f| f.section == section && slots < (f.start + f.slots) as u64)
        && functions
            .get(after)
            .is_none_or(|f| (f.section, (f.start * Insn::BYTES) as u64) != (section, offset))
}

/// Appends what a `gotox` by `register` becomes, and makes those at `slots` jump there. `cases` are numbers, ascending,
/// and slots.
pub(super) fn search(
    insns: &mut Vec<Insn>,
    register: Reg,
    slots: &[usize],
    cases: &[(i32, usize)],
) {
    let none = insns.len();
    insns.push(RETURN_0.encode().0);
    insns.push(Op::Exit.encode().0);
    let entry = halve(insns, register, cases, none);
    for &slot in slots {
        put(insns, slot, goto(slot, entry));
    }
}

/// What a number in no table leads to, with an `exit`.
const RETURN_0: Op = Op::Alu {
    width: Width::W64,
    op: AluOp::Mov,
    dst: Reg::R0,
    src: Operand::Imm(0),
};

/// Appends a search among cases; where it starts. It leads to lower slots only, so that distances are known.
fn halve(insns: &mut Vec<Insn>, register: Reg, cases: &[(i32, usize)], none: usize) -> usize {
    let mut upper = Vec::new();
    let mut rest = cases;
    while rest.len() > FEW {
        let (low, high) = rest.split_at(rest.len() / 2);
        let entry = halve(insns, register, high, none);
        upper.extend(high.first().map(|&(number, _)| (number, entry)));
        rest = low;
    }
    let entry = insns.len();
    for (number, to) in upper {
        jump_if(insns, register, (Cond::Ge, Cond::Lt), number, to);
    }
    for &(number, to) in rest {
        jump_if(insns, register, (Cond::Eq, Cond::Ne), number, to);
    }
    insns.push(goto(insns.len(), none).encode().0);
    entry
}

/// Appends a jump on a condition, which is given with its opposite: if 16 bits do not reach, around a long jump.
fn jump_if(
    insns: &mut Vec<Insn>,
    register: Reg,
    (cond, opposite): (Cond, Cond),
    number: i32,
    to: usize,
) {
    let branch = |cond, off| Op::If {
        width: Width::W64,
        cond,
        dst: register,
        src: Operand::Imm(number),
        off,
    };
    match i16::try_from(distance(insns.len(), to)) {
        Ok(off) => insns.push(branch(cond, off).encode().0),
        Err(_) => {
            insns.push(branch(opposite, 1).encode().0);
            insns.push(goto(insns.len(), to).encode().0);
        }
    }
}

/// A jump at a slot to another one.
fn goto(slot: usize, to: usize) -> Op {
    let off = distance(slot, to);
    Op::Goto {
        off,
        long: i16::try_from(off).is_err(),
    }
}

/// What a jump at a slot says to get to another one. An object has so few slots that it fits.
fn distance(slot: usize, to: usize) -> i32 {
    (to as i64 - slot as i64 - 1) as i32
}

fn error(section: &str, offset: u64, symbol: &str, problem: String) -> ObjectError {
    ObjectError::Relocation {
        section: section.into(),
        offset,
        symbol: symbol.into(),
        problem,
    }
}
