// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an object holds: programs, maps, variables, licence; as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use bpf_vm::helpers::Helper;
use bpf_vm::object::{AttachPoint, Object};
use bpf_vm::program::ValidatedProgram;
use serde_json::{Value, json};

use super::session;
use super::text;
use super::{BpfError, File};

/// The address that code is sized for.
const BASE: u64 = 0x10_0000;

/// What a program calls, once each.
struct Called {
    name: &'static str,
    /// 0 for a kernel function.
    number: u32,
    gpl_only: bool,
    may_sleep: bool,
}

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => write!(f, "{} (kernel function", self.name)?,
            number => write!(f, "{} ({number}", self.name)?,
        }
        for (flag, text) in [(self.gpl_only, "GPL only"), (self.may_sleep, "may sleep")] {
            if flag {
                write!(f, ", {text}")?;
            }
        }
        f.write_str(")")
    }
}

/// One program.
struct Program {
    name: String,
    section: String,
    /// What the section's name asks for, or why it says nothing.
    attach: Result<String, String>,
    slots: usize,
    instructions: usize,
    functions: usize,
    /// Words and bytes of stack of the compiled code, or why there is none.
    code: Result<(usize, u32), String>,
    maps: Vec<String>,
    called: Vec<Called>,
}

impl Program {
    fn of(program: &ValidatedProgram) -> Self {
        let called: BTreeMap<_, &Helper> = program
            .instructions()
            .iter()
            .filter_map(|i| program.called(i.op))
            .map(|helper| ((helper.number, helper.name), helper))
            .collect();
        let attach = AttachPoint::parse(program.section());
        let code = text::compile(program, false, BASE);
        let last = program.instructions().last();
        Self {
            name: program.name().into(),
            section: program.section().into(),
            attach: attach
                .map(|point| describe(&point))
                .map_err(|e| e.to_string()),
            slots: last.map_or(0, |i| i.slot as usize + i.op.slots()),
            instructions: program.instructions().len(),
            functions: program.functions().len(),
            code: code
                .map(|code| (code.words.len(), code.stack_bytes))
                .map_err(|error| error.to_string()),
            maps: program
                .maps()
                .iter()
                .map(|map| map.definition().name.clone())
                .collect(),
            called: called
                .values()
                .map(|helper| Called {
                    name: helper.name,
                    number: helper.number,
                    gpl_only: helper.gpl_only,
                    may_sleep: helper.may_sleep,
                })
                .collect(),
        }
    }
}

/// An attachment in words.
fn describe(point: &AttachPoint<'_>) -> String {
    let kind = format!("{:?}", point.kind).to_lowercase();
    let sleepable = if point.sleepable { ", sleepable" } else { "" };
    match point.target {
        Some(target) => format!("{kind} of {target}{sleepable}"),
        None => format!("{kind}, of what the loader says{sleepable}"),
    }
}

/// One map.
struct Map {
    name: String,
    kind: String,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

/// One global variable.
struct Variable {
    name: String,
    section: String,
    offset: u64,
    size: u64,
}

/// All of it.
pub(super) struct Info {
    licence: Option<String>,
    programs: Vec<Program>,
    maps: Vec<Map>,
    variables: Vec<Variable>,
}

impl Info {
    /// Reads it off an object; of one program only if `wanted` says so.
    pub(super) fn of(file: &File, wanted: Option<&str>) -> Result<Self, BpfError> {
        let object: &Object = &file.object;
        let programs = file.programs(wanted)?.into_iter().map(|index| {
            let loaded = session::load(object, index);
            let (_maps, program) = loaded.map_err(|error| file.error(error))?;
            Ok(Program::of(&program))
        });
        let section = |map: usize| {
            let map = object.maps().nth(map);
            map.map(|map| map.name.clone()).unwrap_or_default()
        };
        Ok(Self {
            licence: object.license().map(str::to_owned),
            programs: programs.collect::<Result<_, BpfError>>()?,
            maps: object
                .maps()
                .map(|map| Map {
                    name: map.name.clone(),
                    kind: map.kind.to_string(),
                    key: map.key_size,
                    value: map.value_size,
                    entries: map.max_entries,
                    flags: map.flags,
                })
                .collect(),
            variables: object
                .variables()
                .iter()
                .map(|variable| Variable {
                    name: variable.name.clone(),
                    section: section(variable.map),
                    offset: variable.offset,
                    size: variable.size,
                })
                .collect(),
        })
    }

    /// As JSON.
    pub(super) fn json(&self) -> Value {
        let called = |called: &Called| {
            json!({
                "name": called.name,
                "number": (called.number != 0).then_some(called.number),
                "gpl_only": called.gpl_only,
                "may_sleep": called.may_sleep,
            })
        };
        let program = |program: &Program| {
            let code = program.code.as_ref().ok();
            json!({
                "name": program.name,
                "section": program.section,
                "attach": program.attach.as_ref().ok(),
                "slots": program.slots,
                "instructions": program.instructions,
                "functions": program.functions,
                "arm64_words": code.map(|(words, _)| words),
                "arm64_stack_bytes": code.map(|(_, stack)| stack),
                "maps": program.maps,
                "calls": program.called.iter().map(called).collect::<Vec<_>>(),
            })
        };
        let map = |map: &Map| {
            json!({
                "name": map.name,
                "type": map.kind,
                "key_bytes": map.key,
                "value_bytes": map.value,
                "max_entries": map.entries,
                "flags": map.flags,
            })
        };
        let variable = |variable: &Variable| {
            json!({
                "name": variable.name,
                "section": variable.section,
                "offset": variable.offset,
                "bytes": variable.size,
            })
        };
        json!({
            "licence": self.licence,
            "programs": self.programs.iter().map(program).collect::<Vec<_>>(),
            "maps": self.maps.iter().map(map).collect::<Vec<_>>(),
            "variables": self.variables.iter().map(variable).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.licence {
            Some(licence) => writeln!(f, "licence   {licence}")?,
            None => writeln!(f, "licence   none: section `license` is missing")?,
        }
        for program in &self.programs {
            writeln!(f, "program   {} ({})", program.name, program.section)?;
            let attach = program.attach.as_ref().unwrap_or_else(|error| error);
            writeln!(f, "          attaches: {attach}")?;
            writeln!(
                f,
                "          {} instructions in {} slots, {} function{}",
                program.instructions,
                program.slots,
                program.functions,
                if program.functions == 1 { "" } else { "s" }
            )?;
            match &program.code {
                Ok((words, stack)) => writeln!(
                    f,
                    "          compiled: {words} words of A64, {stack} bytes of stack"
                )?,
                Err(error) => writeln!(f, "          does not compile: {error}")?,
            }
            if !program.maps.is_empty() {
                writeln!(f, "          maps: {}", program.maps.join(", "))?;
            }
            for called in &program.called {
                writeln!(f, "          calls: {called}")?;
            }
        }
        for map in &self.maps {
            writeln!(f, "map       {}: {}", map.name, map.kind)?;
            writeln!(
                f,
                "          key {} bytes, value {} bytes, {} entries, flags {:#x}",
                map.key, map.value, map.entries, map.flags
            )?;
        }
        for variable in &self.variables {
            writeln!(
                f,
                "variable  {}: {} bytes at {}+{:#x}",
                variable.name, variable.size, variable.section, variable.offset
            )?;
        }
        Ok(())
    }
}
