// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function of a program by a program of another object (`freplace/FUNCTION`): the two become one program.
//!
//! The other program is appended, and what called the function, or took its address, is led there. The function itself stays where it
//! was, with nobody who calls it. So compiled code pays nothing for it, the interpreter runs it as well, and stack and call depth are those of
//! what really runs. The host puts the new program where the old one was.
#![forbid(unsafe_code)]

use super::elf::Elf;
use super::slots::{op_at, put};
use crate::btf::{Btf, Kind, Prototype};
use crate::isa::Op;
use crate::program::{ProgramFunction, UncheckedProgram};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// Why a program cannot take a function's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FreplaceError {
    /// The program has no function of that name that can be replaced.
    NoFunction {
        /// The program.
        program: String,
        /// What was asked for.
        function: String,
        /// Why not, if it has one.
        problem: &'static str,
        /// Those that it has.
        there: Vec<String>,
    },
    /// One of them takes or returns something else, or that is not known.
    Types {
        /// The function, as C writes it.
        function: Option<String>,
        /// The other program.
        by: Option<String>,
    },
}

impl fmt::Display for FreplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFunction {
                program,
                function,
                problem,
                there,
            } => {
                write!(f, "program `{program}`, function `{function}`: {problem}; ")?;
                match there.is_empty() {
                    true => f.write_str("it calls none that can be replaced"),
                    false => write!(f, "it calls {}", there.join(", ")),
                }
            }
            Self::Types {
                function: Some(function),
                by: Some(by),
            } => write!(
                f,
                "the function is `{function}`, and `{by}` takes or returns something else; give it the same types"
            ),
            Self::Types { .. } => f.write_str(
                "what the function and the program take is not both known; compile both objects with -g",
            ),
        }
    }
}

impl core::error::Error for FreplaceError {}

/// The types of an object file, section `.BTF`; `None` if it is no object or has none.
pub fn types(file: &[u8]) -> Option<&[u8]> {
    let elf = Elf::parse(file).ok()?;
    elf.section(".BTF").map(|(_, section)| section.data)
}

/// Checks that a program may take the place of a function of that name, by the types of both objects.
///
/// # Errors
/// [`FreplaceError::Types`].
pub fn same_types(function: (&Btf<'_>, &str), by: (&Btf<'_>, &str)) -> Result<(), FreplaceError> {
    fn prototype<'b, 'a>((btf, name): (&'b Btf<'a>, &str)) -> Option<Prototype<'b, 'a>> {
        btf.prototype(btf.find(Kind::FUNC, name)?)
    }
    let (function, by) = (prototype(function), prototype(by));
    match (&function, &by) {
        (Some(a), Some(b)) if a.is_like(b) => Ok(()),
        _ => Err(FreplaceError::Types {
            function: function.map(|p| p.to_string()),
            by: by.map(|p| p.to_string()),
        }),
    }
}

impl UncheckedProgram {
    /// This program with `by` in place of its function of that name. Types are not looked at: [`same_types`].
    ///
    /// # Errors
    /// It calls no such function, or one that is static: of these the compiler may have changed what they take.
    pub fn with_replaced(&self, function: &str, by: &Self) -> Result<Self, FreplaceError> {
        let replaceable = |f: &&ProgramFunction| f.global && f.start != 0;
        let refuse = |problem| {
            let there = self.functions.iter().filter(replaceable);
            FreplaceError::NoFunction {
                program: self.name.clone(),
                function: function.into(),
                problem,
                there: there.map(|f| f.name.clone()).collect(),
            }
        };
        let found = self.functions.iter().find(|f| f.name == function);
        let found = found.ok_or_else(|| refuse("there is none, or the compiler inlined it"))?;
        if found.start == 0 {
            return Err(refuse(
                "it is the program itself; attach the other one instead",
            ));
        }
        if !found.global {
            return Err(refuse(
                "it is static, so what it takes may not be what its source says",
            ));
        }
        let mut program = self.clone();
        let base = program.insns.len();
        let place = |slot: usize| (base as i64 - slot as i64 - 1) as i32;
        each_op(base, |slot| {
            let op = op_at(&program.insns, slot)?;
            let leads = |off: i32| slot as i64 + 1 + i64::from(off) == found.start as i64;
            let led = match op {
                Op::CallLocal { off } if leads(off) => Op::CallLocal { off: place(slot) },
                Op::LoadFunction { dst, off } if leads(off) => Op::LoadFunction {
                    dst,
                    off: place(slot),
                },
                op => return Some(op.slots()),
            };
            put(&mut program.insns, slot, led);
            Some(led.slots())
        });
        // What the other refers to by index comes behind what this one does.
        let [maps, kfuncs, variables] = [
            self.maps.len() as u32,
            self.kfuncs.len() as u32,
            self.variables.len() as u32,
        ];
        let mut insns = by.insns.clone();
        each_op(insns.len(), |slot| {
            let op = op_at(&insns, slot)?;
            let moved = match op {
                Op::LoadMap { dst, map } => Op::LoadMap {
                    dst,
                    map: map.saturating_add(maps),
                },
                Op::LoadMapValue { dst, map, offset } => Op::LoadMapValue {
                    dst,
                    map: map.saturating_add(maps),
                    offset,
                },
                Op::CallKernel { function } => Op::CallKernel {
                    function: function.saturating_add(kfuncs),
                },
                Op::LoadVariable { dst, variable } => Op::LoadVariable {
                    dst,
                    variable: variable.saturating_add(variables),
                },
                op => return Some(op.slots()),
            };
            put(&mut insns, slot, moved);
            Some(moved.slots())
        });
        program.insns.append(&mut insns);
        program.maps.extend(by.maps.iter().cloned());
        program.kfuncs.extend(&by.kfuncs);
        program.variables.extend(by.variables.iter().cloned());
        let missing = by.missing.iter();
        let missing = missing.map(|(slot, text)| (slot + base, text.clone()));
        program.missing.extend(missing);
        Ok(program)
    }
}

/// Visits the slots where operations start: `visit` returns how many slots there are to the next; `None`: one.
fn each_op(slots: usize, mut visit: impl FnMut(usize) -> Option<usize>) {
    let mut slot = 0;
    while slot < slots {
        slot += visit(slot).unwrap_or(1).max(1);
    }
}
