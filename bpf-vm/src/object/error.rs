// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why an object does not load: what was found where, what is needed, what to do.
#![forbid(unsafe_code)]

use alloc::string::String;
use core::fmt;

use super::MAX_INSNS;
use crate::{btf::BtfError, map::MapCreateError};

/// How to compile an object that loads.
const COMPILE: &str = "compile it with `clang -target bpf -g -O2`";

/// Why an object does not load. Offsets and lengths are in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ObjectError {
    /// The file ends before something that its headers promise.
    Truncated {
        /// What lies past the end.
        what: String,
        /// Where it would end in the file.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// Not an ELF file, or one for something else than BPF.
    Foreign {
        /// What the file is, in words.
        found: String,
    },
    /// An ELF file whose headers or tables make no sense.
    Malformed {
        /// The section or table.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A section that is needed is not there.
    MissingSection {
        /// Its name.
        section: &'static str,
        /// What needs it, and the way out.
        needed_for: &'static str,
    },
    /// No section holds a program.
    NoPrograms,
    /// The BTF is malformed.
    Btf {
        /// What is wrong.
        problem: &'static str,
        /// The type's id, or 0 for the header.
        type_id: u32,
    },
    /// A map in `.maps` is not one that can be loaded.
    Map {
        /// The variable's name.
        map: String,
        /// The field that is wrong.
        field: String,
        /// What is wrong with it, and the way out.
        problem: String,
    },
    /// A section of something that is not supported.
    Unsupported {
        /// The section.
        section: String,
        /// What it holds, and the way out.
        remedy: &'static str,
    },
    /// A map could not be created.
    CreateMap(MapCreateError),
    /// A map is pinned under the name of one that is to be shared, and is another one.
    Pinned {
        /// The name.
        map: String,
        /// The field that differs.
        field: &'static str,
        /// What the object says.
        wanted: u32,
        /// What the pinned map has.
        found: u32,
    },
    /// A CO-RE relocation that cannot be done.
    CoreRelocation {
        /// The section of the instruction.
        section: String,
        /// The instruction's offset in it.
        offset: u64,
        /// What it asks for: `FIELD_EXISTS of struct task::name (0:3)`.
        relocation: String,
        /// What is wrong.
        problem: String,
    },
    /// A variable in `.kconfig` that cannot get its value.
    Kconfig {
        /// The variable.
        variable: String,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// A symbol that the object uses and nobody defines.
    UnresolvedSymbol {
        /// The section of the instruction.
        section: String,
        /// The instruction's offset in it.
        offset: u64,
        /// The symbol.
        symbol: String,
    },
    /// A relocation that cannot be done.
    Relocation {
        /// The section that it changes.
        section: String,
        /// The offset in it.
        offset: u64,
        /// The symbol it refers to.
        symbol: String,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// A function whose place in its section makes no sense.
    Function {
        /// The section.
        section: String,
        /// The function.
        function: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A call or an address that is not the start of a function.
    Call {
        /// The section of the call.
        section: String,
        /// The call's offset in it.
        offset: u64,
        /// The section it goes to.
        target: String,
        /// The offset in that one.
        target_offset: i64,
    },
    /// More instructions than an object may have.
    TooLong {
        /// The program that went past the limit.
        program: String,
        /// Instructions of the object up to then.
        found: usize,
    },
    /// No global variable of that name, or one of another size.
    Variable {
        /// The name asked for.
        variable: String,
        /// Its size in bytes, if it exists.
        size: Option<u64>,
        /// Bytes given for it.
        given: usize,
    },
}

impl From<MapCreateError> for ObjectError {
    fn from(error: MapCreateError) -> Self {
        Self::CreateMap(error)
    }
}

impl From<BtfError> for ObjectError {
    fn from(BtfError { problem, type_id }: BtfError) -> Self {
        Self::Btf { problem, type_id }
    }
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { what, end, length } => write!(
                f,
                "the object is truncated: {what} ends at byte {end}, the file has {length}; copy it again, whole"
            ),
            Self::Foreign { found } => write!(f, "not a BPF object but {found}; {COMPILE}"),
            Self::Malformed { place, problem } => {
                write!(f, "the object is damaged: {place}: {problem}; {COMPILE}")
            }
            Self::MissingSection {
                section,
                needed_for,
            } => write!(f, "section `{section}` is missing: {needed_for}"),
            Self::NoPrograms => f.write_str(
                "the object has no program: put SEC(\"fentry/FUNCTION\") before a global function",
            ),
            Self::Btf { problem, type_id } => {
                write!(f, "section `.BTF`, type {type_id}: {problem}; {COMPILE}")
            }
            Self::Map {
                map,
                field,
                problem,
            } => write!(
                f,
                "section `.maps`, map `{map}`, field `{field}`: {problem}"
            ),
            Self::CreateMap(error) => error.fmt(f),
            Self::Unsupported { section, remedy } => write!(f, "section `{section}`: {remedy}"),
            Self::Pinned {
                map,
                field,
                wanted,
                found,
            } => write!(
                f,
                "map `{map}` is pinned already and its {field} is {found}, here {wanted}; give it another name, or the same \
                 definition"
            ),
            Self::CoreRelocation {
                section,
                offset,
                relocation,
                problem,
            } => write!(
                f,
                "section `{section}`, offset {offset:#x}: CO-RE relocation {relocation}: {problem}"
            ),
            Self::Kconfig { variable, problem } => {
                write!(f, "section `.kconfig`, variable `{variable}`: {problem}")
            }
            Self::UnresolvedSymbol {
                section,
                offset,
                symbol,
            } => write!(
                f,
                "section `{section}`, offset {offset:#x}: symbol `{symbol}` is not defined; define it in the object, \
                 declare it __ksym (with `clang -g`), or call a helper by bpf_helpers.h"
            ),
            Self::Relocation {
                section,
                offset,
                symbol,
                problem,
            } => write!(
                f,
                "section `{section}`, offset {offset:#x}, symbol `{symbol}`: {problem}"
            ),
            Self::Function {
                section,
                function,
                problem,
            } => write!(f, "section `{section}`, function `{function}`: {problem}"),
            Self::Call {
                section,
                offset,
                target,
                target_offset,
            } => write!(
                f,
                "section `{section}`, offset {offset:#x}: it calls, or takes the address of, offset {target_offset:#x} of `{target}`, where \
                 no function starts; {COMPILE}"
            ),
            Self::TooLong { program, found } => write!(
                f,
                "program `{program}`: the object has {found} instructions with it and what it calls; the limit is \
                 {MAX_INSNS}, split the object"
            ),
            Self::Variable {
                variable,
                size: None,
                ..
            } => write!(
                f,
                "the object has no global variable `{variable}` in .data, .bss or .rodata"
            ),
            Self::Variable {
                variable,
                size: Some(size),
                given,
            } => write!(
                f,
                "the variable `{variable}` has {size} bytes, {given} were given"
            ),
        }
    }
}

impl core::error::Error for ObjectError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::CreateMap(error) => Some(error),
            _ => None,
        }
    }
}
