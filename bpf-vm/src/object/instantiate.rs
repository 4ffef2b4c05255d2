// SPDX-License-Identifier: MIT OR Apache-2.0
//! From an object to programs that can be validated: maps are created, what the kernel defines is filled in.
#![forbid(unsafe_code)]

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};

use super::{
    Environment, Object, ObjectError,
    core_reloc::{self, Answer, Problem, Record, Resolver},
    externs::Found,
    link::ProgramTemplate,
    maps::{Initial, MapTemplate, field_error},
    reach,
    slots::{op_at, put},
};
use crate::{
    btf::Btf,
    isa::{AluOp, Op, Operand, Reg, Width},
    map::{Map, MapDefinition, MapMemory, UpdateFlags},
    program::{KernelVariable, UncheckedProgram},
};

/// An object's maps, created, and its programs, which hold those that they use.
#[derive(Clone, Debug)]
pub struct LoadedObject {
    /// All maps, in the order of [`Object::maps`].
    pub maps: Vec<Arc<Map>>,
    /// All programs, in the order of [`Object::programs`].
    pub programs: Vec<UncheckedProgram>,
    /// What program arrays hold at first: for the host to put in ([`Map::set_program`]) when the programs are
    /// validated, and compiled if others are.
    pub program_slots: Vec<ProgramSlot>,
}

/// A slot of a program array that a program is to be in from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProgramSlot {
    /// The array's index among the object's maps.
    pub map: usize,
    /// The slot.
    pub slot: u32,
    /// The program's index among the object's programs.
    pub program: usize,
}

impl Object {
    /// Creates the maps in the host's memory, fills in what `environment` has, and gives each program the maps that it
    /// uses.
    ///
    /// An instruction that needs what the environment does not have (a field by CO-RE, a weak function) is dropped if
    /// the program cannot reach it, given the answers to what it asked; else validating the program names it.
    ///
    /// Errors: `CreateMap`, if a map's kind or size is not supported or memory is short; `Pinned`, `Map` for initial
    /// values that do not fit; `Relocation`, `CoreRelocation`, `Kconfig` for what the kernel does not have or has
    /// otherwise. Nothing is left behind then.
    pub fn instantiate_in(
        &self,
        environment: &dyn Environment,
        memory: &dyn MapMemory,
    ) -> Result<LoadedObject, ObjectError> {
        let local = match self.types.is_empty() {
            true => None,
            false => Some(Btf::parse(&self.types)?),
        };
        let externs = self.externs.find(local.as_ref(), environment)?;
        let answers = match &local {
            Some(local) if !self.core.is_empty() => self.answers(local, environment)?,
            _ => BTreeMap::new(),
        };
        let settings = self.externs.settings(environment)?;
        let mut maps = Vec::with_capacity(self.maps.0.len());
        let mut new = Vec::new();
        for template in &self.maps.0 {
            let definition = &template.definition;
            if template.pinned
                && let Some(pinned) = environment.pinned(&definition.name)
            {
                same_definition(template, &pinned)?;
                maps.push(pinned);
                continue;
            }
            let map = match &template.inner {
                Some(inner) => Map::create_outer(definition.clone(), inner.clone(), memory)?,
                None => match template.lock {
                    Some(lock) => Map::create_locked(definition.clone(), lock, memory)?,
                    None => Map::create(definition.clone(), memory)?,
                },
            };
            if let Some(content) = &template.content {
                map.initialise(0, &content.bytes);
                for (&offset, bytes) in &content.overrides {
                    map.initialise(offset as usize, bytes);
                }
            }
            new.push(maps.len());
            maps.push(map);
        }
        if let Some(map) = self.externs.map.and_then(|index| maps.get(index)) {
            for (offset, bytes) in &settings {
                map.initialise(*offset as usize, bytes);
            }
        }
        for (template, map) in self.maps.0.iter().zip(&maps) {
            // Constants, as libbpf freezes them.
            if template.content.is_some() && !map.program_may_write() {
                map.freeze();
            }
        }
        let mut program_slots = Vec::new();
        for &index in &new {
            self.fill(index, &maps, &mut program_slots)?;
        }
        let mut programs = Vec::with_capacity(self.programs.len());
        for template in &self.programs {
            programs.push(self.program(template, &maps, &externs, &answers)?);
        }
        for index in new {
            if let (Some(template), Some(map)) = (self.maps.0.get(index), maps.get(index))
                && template.pinned
            {
                environment.pin(map);
            }
        }
        Ok(LoadedObject {
            maps,
            programs,
            program_slots,
        })
    }

    /// Puts inner maps into a new map of maps, and lists the programs of a program array.
    fn fill(
        &self,
        index: usize,
        maps: &[Arc<Map>],
        program_slots: &mut Vec<ProgramSlot>,
    ) -> Result<(), ObjectError> {
        let (Some(template), Some(map)) = (self.maps.0.get(index), maps.get(index)) else {
            return Ok(());
        };
        for &(slot, initial) in &template.values {
            let inner = match initial {
                Initial::Program(program) => {
                    program_slots.push(ProgramSlot {
                        map: index,
                        slot,
                        program,
                    });
                    continue;
                }
                Initial::Map(inner) => inner,
            };
            let Some(inner) = maps.get(inner) else {
                continue;
            };
            let put = map.put_map(&slot.to_ne_bytes(), inner.clone(), UpdateFlags::Any);
            put.map_err(|error| {
                field_error(
                    &template.definition.name,
                    "values",
                    format!(
                        "element {slot}, map `{}`, cannot be put in: {error}; it has to have the inner map's type, \
                         key_size, value_size and map_flags, in an array its max_entries, and the outer map keys of 4 bytes",
                        inner.definition().name
                    ),
                )
            })?;
        }
        Ok(())
    }

    /// The answers to the CO-RE relocations that programs have, by record; `None` where the kernel has nothing of it.
    fn answers(
        &self,
        local: &Btf<'_>,
        environment: &dyn Environment,
    ) -> Result<BTreeMap<usize, (Option<Answer>, String)>, ObjectError> {
        let kernel = environment.btf();
        let mut answers = BTreeMap::new();
        let mut resolver =
            Resolver::new(local, kernel).map_err(|problem| ObjectError::Malformed {
                place: "the kernel's BTF".into(),
                problem: problem.0,
            })?;
        for (_, index) in self.programs.iter().flat_map(|program| &program.core) {
            if answers.contains_key(index) {
                continue;
            }
            let Some(record) = self.core.get(*index) else {
                continue;
            };
            let answer = resolver.answer(record);
            let text = resolver.describe(record);
            let answer = answer.map_err(|problem| self.core_error(record, &text, problem))?;
            answers.insert(*index, (answer, text));
        }
        Ok(answers)
    }

    fn core_error(&self, record: &Record, text: &str, problem: Problem) -> ObjectError {
        ObjectError::CoreRelocation {
            section: self
                .sections
                .get(record.section as usize)
                .cloned()
                .unwrap_or_default(),
            offset: record.offset.into(),
            relocation: text.into(),
            problem: problem.0,
        }
    }

    /// One program, with what the kernel defines.
    fn program(
        &self,
        template: &ProgramTemplate,
        maps: &[Arc<Map>],
        externs: &[Found],
        answers: &BTreeMap<usize, (Option<Answer>, String)>,
    ) -> Result<UncheckedProgram, ObjectError> {
        let mut program = UncheckedProgram {
            name: template.name.clone(),
            section: template.section.clone(),
            insns: template.insns.clone(),
            functions: template.functions.clone(),
            maps: template
                .maps
                .iter()
                .filter_map(|&index| maps.get(index).cloned())
                .collect(),
            ..UncheckedProgram::default()
        };
        // Instructions that were replaced, and the slots that each took.
        let mut poisoned = BTreeMap::new();
        for &(slot, index) in &template.core {
            let (Some((answer, text)), Some(record)) = (answers.get(&index), self.core.get(index))
            else {
                continue;
            };
            let why = match answer {
                None => "the kernel has none; test it with bpf_core_field_exists, bpf_core_type_exists or \
                         bpf_core_enum_value_exists first"
                    .to_string(),
                Some(answer) => match core_reloc::apply(&mut program.insns, slot, answer) {
                    Ok(Ok(())) => continue,
                    Ok(Err(problem)) => problem.0,
                    Err(problem) => return Err(self.core_error(record, text, problem)),
                },
            };
            poisoned.insert(slot, core_reloc::poison(&mut program.insns, slot));
            let place = self.core_error(record, text, Problem(why)).to_string();
            program.missing.insert(slot, place);
        }
        let mut known = Known::default();
        for used in &template.externs {
            let Some(found) = externs.get(used.index) else {
                continue;
            };
            let Some(op) = op_at(&program.insns, used.slot) else {
                continue;
            };
            let op = match (op, found) {
                (Op::LoadImm { dst, .. }, found) => {
                    known.load(&mut program, dst, found, used.addend)
                }
                (_, Found::Function(helper)) => Op::CallKernel {
                    function: known.function(&mut program, used.index, helper),
                },
                _ => {
                    let slots = core_reloc::poison(&mut program.insns, used.slot);
                    poisoned.insert(used.slot, slots);
                    let name = self.externs.list.get(used.index).map_or("", |e| &e.name);
                    let text = format!(
                        "call of the weak kernel function `{name}`, which the kernel does not have; test its address first"
                    );
                    program.missing.insert(used.slot, text);
                    continue;
                }
            };
            put(&mut program.insns, used.slot, op);
        }
        if !program.missing.is_empty() {
            let reached = reach::reachable(&program.insns, &program.maps);
            let UncheckedProgram { insns, missing, .. } = &mut program;
            missing.retain(|slot, _| {
                let is_reached = reached.get(*slot).copied().unwrap_or(true);
                if !is_reached {
                    for at in *slot..slot + poisoned.get(slot).copied().unwrap_or(1) {
                        put(insns, at, UNREACHED);
                    }
                }
                is_reached
            });
        }
        Ok(program)
    }
}

/// Indices of what a program already refers to.
#[derive(Default)]
struct Known {
    /// By the extern's index.
    functions: BTreeMap<usize, u32>,
    /// By address and size.
    variables: BTreeMap<(u64, u64), u32>,
}

impl Known {
    fn function(
        &mut self,
        program: &mut UncheckedProgram,
        index: usize,
        helper: &'static crate::helpers::Helper,
    ) -> u32 {
        *self.functions.entry(index).or_insert_with(|| {
            program.kfuncs.push(helper);
            program.kfuncs.len() as u32 - 1
        })
    }

    /// What puts the address of an extern into a register.
    fn load(&mut self, program: &mut UncheckedProgram, dst: Reg, found: &Found, addend: i32) -> Op {
        let moved = i64::from(addend).cast_unsigned();
        match found {
            Found::Nothing => Op::LoadImm { dst, value: 0 },
            // Tested, not called: that it is there.
            Found::Function(helper) => Op::LoadImm {
                dst,
                value: helper.function.address().unwrap_or(1),
            },
            Found::Variable(variable) => {
                let variable = KernelVariable {
                    address: variable.address.wrapping_add(moved),
                    bytes: variable.bytes.saturating_sub(moved),
                    ..variable.clone()
                };
                let key = (variable.address, variable.bytes);
                let index = *self.variables.entry(key).or_insert_with(|| {
                    program.variables.push(variable);
                    program.variables.len() as u32 - 1
                });
                Op::LoadVariable {
                    dst,
                    variable: index,
                }
            }
        }
    }
}

/// What an instruction that is never executed is replaced with: nothing that matters.
const UNREACHED: Op = Op::Alu {
    width: Width::W64,
    op: AluOp::Mov,
    dst: Reg::R0,
    src: Operand::Imm(0),
};

/// That a pinned map is what the object asks for.
fn same_definition(template: &MapTemplate, pinned: &Map) -> Result<(), ObjectError> {
    let same = |wanted: &MapDefinition, found: &MapDefinition| {
        for (field, wanted, found) in [
            ("type", wanted.kind.0, found.kind.0),
            ("key_size", wanted.key_size, found.key_size),
            ("value_size", wanted.value_size, found.value_size),
            ("max_entries", wanted.max_entries, found.max_entries),
            ("map_flags", wanted.flags, found.flags),
        ] {
            if wanted != found {
                return Err(ObjectError::Pinned {
                    map: template.definition.name.clone(),
                    field,
                    wanted,
                    found,
                });
            }
        }
        Ok(())
    };
    same(&template.definition, pinned.definition())?;
    match (&template.inner, pinned.inner_definition()) {
        (Some(wanted), Some(found)) => same(wanted, found),
        _ => Ok(()),
    }
}
