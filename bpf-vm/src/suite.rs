// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs as text with what they have to compute: tests and benchmarks for any engine on any machine.
//!
//! `== name` begins a case; `-- memory` (hex bytes, any number of lines), `-- r0`, `-- after` (the memory at the end),
//! `-- instructions` and `-- stack` say what goes in and what comes out; the rest is a program for [`crate::asm`]. `#`
//! begins a comment. Memory is given in r1 and r2 as address and length; three maps can be named, see [`maps`].
//!
//! `| instruction | r0 | r1 | result` is a case too: the instruction, run with those values in r0 and r1, leaves that in r0.
//! If it begins with `if` and ends with `goto +1`, the result is 1 if it jumps and 0 if not.
#![forbid(unsafe_code)]

use alloc::{format, string::String, sync::Arc, vec::Vec};
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
    /// The most bytes of stack that compiled code may use, if it may use all registers.
    pub stack: Option<u32>,
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
                 `-- instructions NUMBER`, `-- stack NUMBER`, `| INSTRUCTION | NUMBER | NUMBER | NUMBER`, and no program's \
                 line after `== name`"
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
    ("base32", include_str!("../suite/base32.txt")),
    ("base64", include_str!("../suite/base64.txt")),
    ("divmul32", include_str!("../suite/divmul32.txt")),
    ("divmul64", include_str!("../suite/divmul64.txt")),
    ("atomic32", include_str!("../suite/atomic32.txt")),
    ("atomic64", include_str!("../suite/atomic64.txt")),
    ("memory", include_str!("../suite/memory.txt")),
    ("jumps", include_str!("../suite/jumps.txt")),
    ("calls", include_str!("../suite/calls.txt")),
    ("tail_calls", include_str!("../suite/tail_calls.txt")),
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

/// The case that a line `| instruction | r0 | r1 | result` is; `row` is all behind the first bar.
fn row(row: &str) -> Option<Case<'_>> {
    let mut fields = row.rsplitn(4, " | ");
    let mut value = || number(fields.next()?.trim());
    let (result, r1, r0) = (value()?, value()?, value()?);
    let instruction = fields.next()?;
    let (body, instructions) = match instruction.starts_with("if ") {
        true => (
            format!("r2 = 1\n{instruction}\nr2 = 0\nr0 = r2"),
            7_u64.checked_sub(result)?,
        ),
        false => (instruction.into(), 4),
    };
    Some(Case {
        name: row,
        text: format!("r0 = {r0:#x} ll\nr1 = {r1:#x} ll\n{body}\nexit\n"),
        r0: Some(result),
        instructions: Some(instructions),
        stack: Some(0),
        ..Case::default()
    })
}

/// The cases of a text.
///
/// # Errors
/// The first line that is not understood.
pub fn cases(text: &str) -> Result<Vec<Case<'_>>, SuiteError> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    // Whether the last one goes on.
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case {
                name,
                ..Case::default()
            });
            open = true;
            continue;
        }
        let understood = match (
            cases.last_mut().filter(|_| open),
            line.strip_prefix("-- ").map(|l| l.split_once(' ')),
        ) {
            _ if line.starts_with("| ") => {
                open = false;
                line.strip_prefix("| ")
                    .and_then(row)
                    .map(|case| cases.push(case))
            }
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
            (Some(case), Some(Some(("stack", value)))) => number(value)
                .and_then(|n| u32::try_from(n).ok())
                .map(|n| case.stack = Some(n)),
            _ => None,
        };
        understood.ok_or_else(|| SuiteError::Line {
            number: index + 1,
            text: line.into(),
        })?;
    }
    Ok(cases)
}

/// The index of the program array among the [`maps`].
pub const PROGRAMS: usize = 2;

/// The maps that a case may name: an array of 3 values of 8 bytes, one of 5000 values of 12, and a program array of 2
/// slots. Whoever runs the cases puts the program itself into its first slot, and takes it out again.
///
/// # Errors
/// There is no memory left.
pub fn maps(memory: &dyn MapMemory) -> Result<Vec<Arc<Map>>, SuiteError> {
    let array = |kind, value_size, max_entries| {
        let definition = MapDefinition {
            name: "array".into(),
            kind,
            key_size: 4,
            value_size,
            max_entries,
            flags: 0,
        };
        Map::create(definition, memory).map_err(SuiteError::Map)
    };
    Ok(alloc::vec![
        array(MapKind::ARRAY, 8, 3)?,
        array(MapKind::ARRAY, 12, 5000)?,
        array(MapKind::PROG_ARRAY, 4, 2)?,
    ])
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
            ("== a\n-- stack -1", 2),
            ("| r0 += r1 | 1 | 2", 1),
            ("| if r0 == r1 goto +1 | 1 | 2 | 8", 1),
            ("| r0 += r1 | 1 | 2 | 3\nexit", 2),
        ] {
            match cases(text) {
                Err(SuiteError::Line { number, .. }) => assert_eq!(number, line, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }
}
