// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs as text with what they have to compute: tests and benchmarks for any engine on any machine.
//!
//! `== name` begins a case; `-- memory` (hex bytes, any number of lines), `-- r0`, `-- after` (the memory at the end)
//! and `-- instructions` say what goes in and what comes out; the rest is a program for [`crate::asm`]. `#` begins a
//! comment. Memory is given in r1 and r2 as address and length; two maps can be named, see [`maps`].
#![forbid(unsafe_code)]

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use crate::{
    asm::{AsmError, assemble},
    map::{Map, MapCreateError, MapDefinition, MapKind, MapMemory},
    program::{UncheckedProgram, ValidatedProgram},
    validate::ValidateError,
};

/// One program with what it starts from and what has to come out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Case<'a> {
    /// Its name.
    pub name: &'a str,
    /// The program.
    pub text: String,
    /// The memory that r1 points to; r2 is its length in bytes.
    pub memory: Vec<u8>,
    /// The result.
    pub r0: Option<u64>,
    /// The memory at the end.
    pub after: Option<Vec<u8>>,
    /// How many instructions are executed.
    pub instructions: Option<u64>,
}

/// Why a text is no list of cases, or a case no program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SuiteError {
    /// A line that says what goes in or comes out is not understood; counted from 1.
    Line {
        /// Its number.
        number: usize,
        /// Its text.
        text: String,
    },
    /// The text does not assemble.
    Asm(AsmError),
    /// The program is not valid.
    Validate(ValidateError),
    /// A map cannot be created.
    Map(MapCreateError),
}

impl fmt::Display for SuiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { number, text } => write!(
                f,
                "line {number}, `{text}`, is none of `-- memory HEX...`, `-- after HEX...`, `-- r0 NUMBER`, \
                 `-- instructions NUMBER`, and no program's line after `== name`"
            ),
            Self::Asm(error) => error.fmt(f),
            Self::Validate(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SuiteError {}

/// The texts that every engine has to pass: name of the file, what it holds.
pub const TESTS: &[(&str, &str)] = &[
    ("instructions", include_str!("../suite/instructions.txt")),
    ("memory", include_str!("../suite/memory.txt")),
    ("jumps", include_str!("../suite/jumps.txt")),
    ("calls", include_str!("../suite/calls.txt")),
    ("helpers", include_str!("../suite/helpers.txt")),
];

/// The texts that engines are measured by, one case each.
pub const BENCHES: &[(&str, &str)] = &[
    ("sieve", include_str!("../suite/bench/sieve.txt")),
    ("checksum", include_str!("../suite/bench/checksum.txt")),
    ("hash", include_str!("../suite/bench/hash.txt")),
    ("sort", include_str!("../suite/bench/sort.txt")),
    ("parser", include_str!("../suite/bench/parser.txt")),
    ("calls", include_str!("../suite/bench/calls.txt")),
    ("atomics", include_str!("../suite/bench/atomics.txt")),
];

fn hex(text: &str) -> Option<Vec<u8>> {
    let byte = |byte: &str| u8::from_str_radix(byte, 16).ok();
    text.split_whitespace().map(byte).collect()
}

fn number(text: &str) -> Option<u64> {
    match (text.strip_prefix("0x"), text.strip_prefix('-')) {
        (Some(hex), _) => u64::from_str_radix(hex, 16).ok(),
        (_, Some(negative)) => negative.parse::<u64>().ok().map(u64::wrapping_neg),
        _ => text.parse().ok(),
    }
}

/// The cases of a text.
///
/// # Errors
/// The first line that is not understood.
pub fn cases(text: &str) -> Result<Vec<Case<'_>>, SuiteError> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case {
                name,
                ..Case::default()
            });
            continue;
        }
        let understood = match (
            cases.last_mut(),
            line.strip_prefix("-- ").map(|l| l.split_once(' ')),
        ) {
            (None, _) => (line.is_empty() || line.starts_with('#')).then_some(()),
            (Some(case), None) => {
                case.text.push_str(line);
                case.text.push('\n');
                Some(())
            }
            (Some(case), Some(Some(("memory", bytes)))) => {
                hex(bytes).map(|bytes| case.memory.extend(bytes))
            }
            (Some(case), Some(Some(("after", bytes)))) => {
                hex(bytes).map(|bytes| case.after.get_or_insert_default().extend(bytes))
            }
            (Some(case), Some(Some(("r0", value)))) => number(value).map(|n| case.r0 = Some(n)),
            (Some(case), Some(Some(("instructions", value)))) => {
                number(value).map(|n| case.instructions = Some(n))
            }
            _ => None,
        };
        understood.ok_or_else(|| SuiteError::Line {
            number: index + 1,
            text: line.into(),
        })?;
    }
    Ok(cases)
}

/// The maps that a case may name: an array of 3 values of 8 bytes, and one of 5000 values of 12.
///
/// # Errors
/// There is no memory left.
pub fn maps(memory: &dyn MapMemory) -> Result<Vec<Arc<Map>>, SuiteError> {
    let array = |value_size, max_entries| {
        let definition = MapDefinition {
            name: "array".into(),
            kind: MapKind::ARRAY,
            key_size: 4,
            value_size,
            max_entries,
            flags: 0,
        };
        Map::create(definition, memory).map_err(SuiteError::Map)
    };
    Ok(alloc::vec![array(8, 3)?, array(12, 5000)?])
}

impl Case<'_> {
    /// The program, with those maps.
    ///
    /// # Errors
    /// It does not assemble, or is not valid.
    pub fn program(&self, maps: &[Arc<Map>]) -> Result<ValidatedProgram, SuiteError> {
        let program = UncheckedProgram {
            name: self.name.into(),
            section: "suite".into(),
            insns: assemble(&self.text).map_err(SuiteError::Asm)?,
            maps: maps.to_vec(),
            ..UncheckedProgram::default()
        };
        program.validate().map_err(SuiteError::Validate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_understood() {
        for (name, text) in TESTS.iter().chain(BENCHES) {
            assert!(!cases(text).unwrap().is_empty(), "{name}");
        }
        for (_, text) in BENCHES {
            let [case] = &cases(text).unwrap()[..] else {
                panic!("one case a file");
            };
            assert!(case.r0.is_some() && case.instructions.is_some());
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, line) in [
            ("exit", 1),
            ("== a\n-- r0 x", 2),
            ("== a\n-- memory 0g", 2),
            ("== a\n\n-- what 1", 3),
            ("== a\n-- r0", 2),
        ] {
            match cases(text) {
                Err(SuiteError::Line { number, .. }) => assert_eq!(number, line, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }
}
