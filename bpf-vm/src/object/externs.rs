// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an object declares and the kernel defines: `__ksym` functions and variables, `__kconfig` values.
#![forbid(unsafe_code)]

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};

use super::{
    Environment, ObjectError,
    core_reloc::Types,
    elf::Elf,
    kconfig::{self, Setting},
    maps::{MapTable, field_error},
};
use crate::{
    btf::{Btf, Kind},
    helpers::Helper,
    isa::Reg,
    program::KernelVariable,
};

/// The section of functions and variables.
const KSYMS: &str = ".ksyms";

/// A symbol that the kernel defines.
#[derive(Clone, Debug)]
pub(super) struct Extern {
    pub(super) name: String,
    /// It may be missing.
    weak: bool,
    pub(super) kind: ExternKind,
    /// The first instruction that refers to it: section and offset, for messages.
    pub(super) used: Option<(String, u64)>,
}

/// What it is.
#[derive(Clone, Debug)]
pub(super) enum ExternKind {
    /// A function, with the id of its prototype.
    Function(u32),
    /// A variable, with the id of its type; `void` for one that is only an address.
    Variable(u32),
    /// A value of the configuration.
    Setting(Setting),
}

/// What an object declares and a kernel has to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelSymbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it is.
    pub kind: KernelSymbolKind,
    /// Whether the object copes without it.
    pub weak: bool,
}

/// What an object wants by a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelSymbolKind {
    /// A kernel function (`extern ... __ksym`).
    Function,
    /// A kernel variable, or its address alone (`extern ... __ksym`).
    Variable,
    /// A value of the configuration (`extern ... __kconfig`).
    Setting,
}

impl Extern {
    /// It, for whoever asks what an object wants.
    pub(super) fn symbol(&self) -> KernelSymbol<'_> {
        KernelSymbol {
            name: &self.name,
            kind: match self.kind {
                ExternKind::Function(_) => KernelSymbolKind::Function,
                ExternKind::Variable(_) => KernelSymbolKind::Variable,
                ExternKind::Setting(_) => KernelSymbolKind::Setting,
            },
            weak: self.weak,
        }
    }
}

/// All externs of an object.
#[derive(Clone, Default, Debug)]
pub(super) struct Externs {
    pub(super) list: Vec<Extern>,
    /// By the symbol's index.
    by_symbol: BTreeMap<usize, usize>,
    /// The map of the settings, if there are any.
    pub(super) map: Option<usize>,
}

/// What an extern is in a kernel.
#[derive(Clone, Debug)]
pub(super) enum Found {
    Function(&'static Helper),
    Variable(KernelVariable),
    /// It is weak and not there.
    Nothing,
}

impl Externs {
    /// Reads the declarations, and adds the map of `.kconfig` to the others, as the last one.
    pub(super) fn read(
        elf: &Elf<'_>,
        btf: Option<&Btf<'_>>,
        maps: &mut MapTable,
    ) -> Result<Self, ObjectError> {
        let mut externs = Self::default();
        let Some(btf) = btf else {
            return Ok(externs);
        };
        let mut declared = BTreeMap::new();
        for section in [KSYMS, kconfig::SECTION] {
            for variable in btf.variables(section)? {
                if variable.is_extern {
                    declared.insert(variable.name, (section, variable));
                }
            }
        }
        for (index, symbol) in elf.symbols.iter().enumerate() {
            if symbol.section.is_some() || symbol.is_local() {
                continue;
            }
            // What is declared in neither section has to be defined in the object.
            let Some((section, variable)) = declared.get(symbol.name) else {
                continue;
            };
            let kind = match (*section, variable.kind) {
                (KSYMS, Kind::FUNC) => ExternKind::Function(variable.type_id),
                (KSYMS, _) => ExternKind::Variable(variable.type_id),
                _ => {
                    let setting = Setting::of_type(btf, variable.type_id).map_err(|error| match error {
                        Some(error) => error.into(),
                        None => ObjectError::Kconfig {
                            variable: symbol.name.into(),
                            problem: "its type is none of bool, char, an integer, enum libbpf_tristate or an array of char"
                                .into(),
                        },
                    })?;
                    ExternKind::Setting(setting)
                }
            };
            externs.by_symbol.insert(index, externs.list.len());
            externs.list.push(Extern {
                name: symbol.name.into(),
                weak: symbol.is_weak(),
                kind,
                used: None,
            });
        }
        let mut settings: Vec<(&str, &mut Setting)> = Vec::new();
        for found in &mut externs.list {
            if let ExternKind::Setting(setting) = &mut found.kind {
                settings.push((&found.name, setting));
            }
        }
        if !settings.is_empty() {
            let bytes = kconfig::lay_out(&mut settings)
                .map_err(|problem| field_error(kconfig::SECTION, "value_size", problem))?;
            externs.map = Some(maps.add_data(kconfig::SECTION, bytes));
        }
        Ok(externs)
    }

    /// The extern that a symbol's index stands for.
    pub(super) fn of_symbol(&self, symbol: usize) -> Option<usize> {
        self.by_symbol.get(&symbol).copied()
    }

    /// What `.kconfig` holds in a kernel: bytes by offset, over zeros.
    pub(super) fn settings(
        &self,
        environment: &dyn Environment,
    ) -> Result<Vec<(u32, Vec<u8>)>, ObjectError> {
        let mut values = Vec::new();
        for found in &self.list {
            let ExternKind::Setting(setting) = &found.kind else {
                continue;
            };
            let error = |problem| ObjectError::Kconfig {
                variable: found.name.clone(),
                problem,
            };
            let value = match environment.kconfig(&found.name) {
                Some(text) => setting.value(&text).map_err(error)?,
                // The map is all zeros.
                None if found.weak => continue,
                None => {
                    return Err(error(
                        "the kernel has no such setting; declare it __weak to get 0 then".into(),
                    ));
                }
            };
            values.push((setting.offset, value));
        }
        Ok(values)
    }

    /// Looks all functions and variables up in a kernel; an entry for each of `list`.
    pub(super) fn find(
        &self,
        local: Option<&Btf<'_>>,
        environment: &dyn Environment,
    ) -> Result<Vec<Found>, ObjectError> {
        let kernel = environment.btf();
        let types = local
            .zip(kernel)
            .map(|(local, kernel)| Types::new(local, kernel));
        let mut all = Vec::with_capacity(self.list.len());
        for found in &self.list {
            let (result, what) = match found.kind {
                ExternKind::Setting(_) => (Ok(Some(Found::Nothing)), ""),
                ExternKind::Function(prototype) => (
                    find_function(local, types.as_ref(), found, prototype, environment),
                    "function",
                ),
                ExternKind::Variable(type_id) => (
                    find_variable(local, types.as_ref(), found, type_id, environment),
                    "variable",
                ),
            };
            let result = match result {
                Ok(None) if found.weak => Ok(Found::Nothing),
                Ok(None) => Err(format!(
                    "the kernel has no {what} of that name for programs; declare it __weak and test it, if the program can do without"
                )),
                Ok(Some(found)) => Ok(found),
                Err(problem) => Err(problem),
            };
            all.push(result.map_err(|problem| found.error(problem))?);
        }
        Ok(all)
    }
}

impl Extern {
    fn error(&self, problem: String) -> ObjectError {
        let (section, offset) = self.used.clone().unwrap_or((KSYMS.into(), 0));
        ObjectError::Relocation {
            section,
            offset,
            symbol: self.name.clone(),
            problem,
        }
    }
}

/// The kernel's function, if its prototype is as declared; `None` if it has none.
fn find_function(
    local: Option<&Btf<'_>>,
    types: Option<&Types<'_>>,
    declared: &Extern,
    prototype: u32,
    environment: &dyn Environment,
) -> Result<Option<Found>, String> {
    let Some(helper) = environment.kfunc(&declared.name) else {
        return Ok(None);
    };
    if let Some(local) = local {
        let found = local.get(prototype).map_err(|error| error.to_string())?;
        let (takes, wants) = (found.entries() as usize, helper.arguments.len());
        if takes != wants {
            return Err(format!(
                "it is declared with {takes} parameters, the kernel's function has {wants}"
            ));
        }
        // Each in a register, from r1 on.
        if takes > Reg::arguments().count() {
            return Err(format!(
                "it has {takes} parameters, and a program can pass 5"
            ));
        }
    }
    let kernel = environment.btf();
    let known = kernel.and_then(|kernel| kernel.referent(kernel.find(Kind::FUNC, &declared.name)?));
    if let (Some(types), Some(known)) = (types, known)
        && !types.fit(prototype, known).map_err(|problem| problem.0)?
    {
        return Err(
            "its prototype is not the one that the kernel's BTF has; declare it as springboard.h (cargo xtask btf --header) does"
                .into(),
        );
    }
    Ok(Some(Found::Function(helper)))
}

/// The kernel's variable, if its type is as declared; `None` if it has none.
fn find_variable(
    local: Option<&Btf<'_>>,
    types: Option<&Types<'_>>,
    declared: &Extern,
    type_id: u32,
    environment: &dyn Environment,
) -> Result<Option<Found>, String> {
    let Some(mut variable) = environment.variable(&declared.name) else {
        return Ok(None);
    };
    let untyped = match local {
        Some(local) => {
            let (_, found) = local.resolve(type_id).map_err(|error| error.to_string())?;
            found.kind() == Kind::VOID
        }
        None => true,
    };
    if untyped {
        // Only an address: nothing is known of what is there.
        (variable.bytes, variable.type_id) = (0, 0);
    } else if let Some(types) = types
        && variable.type_id != 0
        && !types
            .fit(type_id, variable.type_id)
            .map_err(|problem| problem.0)?
    {
        return Err("its type is not the one that the kernel's BTF has".into());
    }
    Ok(Some(Found::Variable(variable)))
}
