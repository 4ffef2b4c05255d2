// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an object holds: programs, maps, variables, licence; as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use bpf_vm::helpers::Helper;
use bpf_vm::object::{AttachPoint, KernelSymbolKind, Object};
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
    /// What is known once it is loaded, or why it does not load: it may ask for what only a kernel has.
    loaded: Result<Loaded, String>,
}

/// A program that is loaded.
struct Loaded {
    slots: usize,
    instructions: usize,
    functions: usize,
    /// Words and bytes of stack of the compiled code, or why there is none.
    code: Result<(usize, u32), String>,
    maps: Vec<String>,
    called: Vec<Called>,
}

impl Program {
    fn of(file: &File, kernel: &session::Kernel<'_>, index: usize) -> Self {
        let (name, section) = file.object.programs().nth(index).unwrap_or_default();
        let attach = AttachPoint::parse(section);
        let loaded = session::load(&file.object, kernel, index);
        Self {
            name: name.into(),
            section: section.into(),
            attach: attach
                .map(|point| describe(&point))
                .map_err(|error| error.to_string()),
            loaded: loaded.map(|(_maps, program)| Loaded::of(&program)),
        }
    }
}

impl Loaded {
    fn of(program: &ValidatedProgram) -> Self {
        let called: BTreeMap<_, &Helper> = program
            .instructions()
            .iter()
            .filter_map(|i| program.called(i.op))
            .map(|helper| ((helper.number, helper.name), helper))
            .collect();
        let code = text::compile(program, false, BASE);
        let last = program.instructions().last();
        Self {
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

/// What a kernel symbol is, in words.
fn word(kind: KernelSymbolKind) -> &'static str {
    match kind {
        KernelSymbolKind::Function => "function",
        KernelSymbolKind::Variable => "variable",
        KernelSymbolKind::Setting => "setting",
    }
}

/// All of it.
pub(super) struct Info {
    licence: Option<String>,
    core_relocations: usize,
    /// What it wants of a kernel: name, kind, whether it copes without.
    kernel: Vec<(String, KernelSymbolKind, bool)>,
    programs: Vec<Program>,
    maps: Vec<Map>,
    variables: Vec<Variable>,
}

impl Info {
    /// Reads it off an object; of one program only if `wanted` says so.
    pub(super) fn of(file: &File, wanted: Option<&str>) -> Result<Self, BpfError> {
        let object: &Object = &file.object;
        let kernel = file.kernel()?;
        let programs = file.programs(wanted)?.into_iter();
        let section = |map: usize| {
            let map = object.maps().nth(map);
            map.map(|map| map.name.clone()).unwrap_or_default()
        };
        Ok(Self {
            licence: object.license().map(str::to_owned),
            core_relocations: object.core_relocations(),
            kernel: object
                .kernel_symbols()
                .map(|symbol| (symbol.name.into(), symbol.kind, symbol.weak))
                .collect(),
            programs: programs
                .map(|index| Program::of(file, &kernel, index))
                .collect(),
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
            let loaded = program.loaded.as_ref().ok();
            let code = loaded.and_then(|loaded| loaded.code.as_ref().ok());
            let calls = loaded.map(|loaded| loaded.called.iter().map(called).collect::<Vec<_>>());
            json!({
                "name": program.name,
                "section": program.section,
                "attach": program.attach.as_ref().ok(),
                "error": program.loaded.as_ref().err(),
                "slots": loaded.map(|loaded| loaded.slots),
                "instructions": loaded.map(|loaded| loaded.instructions),
                "functions": loaded.map(|loaded| loaded.functions),
                "arm64_words": code.map(|(words, _)| words),
                "arm64_stack_bytes": code.map(|(_, stack)| stack),
                "maps": loaded.map(|loaded| &loaded.maps),
                "calls": calls,
            })
        };
        let symbol = |(name, kind, weak): &(String, KernelSymbolKind, bool)| json!({ "name": name, "kind": word(*kind), "weak": weak });
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
            "core_relocations": self.core_relocations,
            "kernel": self.kernel.iter().map(symbol).collect::<Vec<_>>(),
            "programs": self.programs.iter().map(program).collect::<Vec<_>>(),
            "maps": self.maps.iter().map(map).collect::<Vec<_>>(),
            "variables": self.variables.iter().map(variable).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.functions == 1 { "" } else { "s" };
        writeln!(
            f,
            "          {} instructions in {} slots, {} function{plural}",
            self.instructions, self.slots, self.functions
        )?;
        match &self.code {
            Ok((words, stack)) => writeln!(
                f,
                "          compiled: {words} words of A64, {stack} bytes of stack"
            )?,
            Err(error) => writeln!(f, "          does not compile: {error}")?,
        }
        if !self.maps.is_empty() {
            writeln!(f, "          maps: {}", self.maps.join(", "))?;
        }
        for called in &self.called {
            writeln!(f, "          calls: {called}")?;
        }
        Ok(())
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
            match &program.loaded {
                Ok(loaded) => loaded.fmt(f)?,
                Err(error) => writeln!(f, "          does not load here: {error}")?,
            }
        }
        for (name, kind, weak) in &self.kernel {
            let weak = if *weak { ", if it has it" } else { "" };
            writeln!(f, "kernel    {name}: a {}{weak}", word(*kind))?;
        }
        if self.core_relocations > 0 {
            writeln!(
                f,
                "kernel    {} instructions depend on its types (CO-RE)",
                self.core_relocations
            )?;
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
