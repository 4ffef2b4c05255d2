// SPDX-License-Identifier: MIT OR Apache-2.0
//! Structural validation: what can be checked of each instruction alone and of the places that jumps lead to.
#![forbid(unsafe_code)]

mod calls;

use alloc::{
    boxed::Box,
    collections::BTreeSet,
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, ops::Range};

use crate::{
    helpers::{self, HELPERS, Helper},
    interp::{MAX_FRAMES, flat},
    isa::{DecodeError, Insn, Op, Reg},
    object::AttachPoint,
    program::{Instruction, MAX_SLOTS, UncheckedProgram, ValidatedProgram},
};

/// Why a program is refused: which one, where, and what is wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidateError {
    /// The program's name.
    pub program: String,
    /// The slot of the instruction, counted from 0, and its text or its bytes.
    pub at: Option<(usize, String)>,
    /// What is wrong.
    pub reason: Reason,
}

/// What is wrong with a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has no instructions.
    Empty,
    /// It has more than [`MAX_SLOTS`] slots.
    TooLong(usize),
    /// The slot is no instruction.
    Decode(DecodeError),
    /// r10 is written.
    FramePointerWritten,
    /// The jump or call leads to a slot that does not exist.
    OutOfRange(i64),
    /// The jump or call leads to the second slot of an `lddw`.
    IntoLddw(i64),
    /// The jump leads into another function.
    OutOfFunction(i64),
    /// Execution runs past the end of the program or function.
    FallsOff,
    /// The call leads back into a function that led to it.
    Recursion {
        /// The first slots of the functions, each of which calls the next one, and the last one the first.
        functions: Vec<usize>,
    },
    /// Calls are nested deeper than [`MAX_FRAMES`].
    CallDepth {
        /// Frames of the deepest, the entry's included.
        frames: usize,
        /// The first slots of the first [`MAX_FRAMES`] + 1 of them.
        functions: Vec<usize>,
    },
    /// No helper has that number.
    UnknownHelper {
        /// The number found.
        number: u32,
        /// Those that exist, by name and number.
        existing: Vec<(&'static str, u32)>,
    },
    /// A call with the immediate -1, which a loader should have replaced.
    Unresolved,
    /// The instruction needs what the kernel does not have, and the program can reach it.
    Missing,
    /// No map has that index.
    NoSuchMap {
        /// The index found.
        index: u32,
        /// How many maps the program has.
        maps: usize,
    },
    /// No kernel function has that index.
    NoSuchKfunc {
        /// The index found.
        index: u32,
        /// How many the program has.
        kfuncs: usize,
    },
    /// No kernel variable has that index.
    NoSuchVariable {
        /// The index found.
        index: u32,
        /// How many the program has.
        variables: usize,
    },
    /// The offset lies outside of the map's values.
    MapOffset {
        /// The offset found, bytes.
        offset: u32,
        /// The size of the values, bytes.
        size: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => f.write_str("it has no instructions; `exit` is the least"),
            Self::TooLong(slots) => write!(
                f,
                "it has {slots} instruction slots and the limit is {MAX_SLOTS}; split it"
            ),
            Self::Decode(error) => error.fmt(f),
            Self::FramePointerWritten => {
                f.write_str("r10 is the frame pointer and read only; copy it first")
            }
            Self::OutOfRange(to) => write!(f, "it leads to slot {to}, outside of the program"),
            Self::IntoLddw(to) => write!(f, "it leads to slot {to}, the second half of an lddw"),
            Self::OutOfFunction(to) => {
                write!(f, "it leads to slot {to}, which is in another function")
            }
            Self::FallsOff => f.write_str(
                "execution runs past the end of the function here; end it with `exit` or a jump",
            ),
            Self::Recursion { ref functions } => {
                f.write_str(
                    "the function calls itself (where a function's address is taken, it counts as called), through those at slots ",
                )?;
                write_slots(f, functions, functions.len())?;
                if let Some(first) = functions.first() {
                    write!(f, " -> {first}")?;
                }
                f.write_str("; make it a loop")
            }
            Self::CallDepth {
                frames,
                ref functions,
            } => {
                write!(
                    f,
                    "calls are {frames} frames deep, the entry's and callbacks' included, and the limit is {MAX_FRAMES}; inline \
                     some of the functions at slots "
                )?;
                write_slots(f, functions, frames)
            }
            Self::UnknownHelper {
                number,
                ref existing,
            } => {
                write!(f, "there is no helper {number}; these exist:")?;
                for (name, number) in existing {
                    write!(f, " {name} ({number})")?;
                }
                Ok(())
            }
            Self::Unresolved => f.write_str(
                "the call was not relocated: its function is in no section that was loaded",
            ),
            Self::Missing => f.write_str("the program can get here"),
            Self::NoSuchMap { index, maps } => {
                write!(f, "there is no map {index}; the program has {maps}")
            }
            Self::NoSuchKfunc { index, kfuncs } => {
                write!(
                    f,
                    "there is no kernel function {index}; the program has {kfuncs}"
                )
            }
            Self::NoSuchVariable { index, variables } => {
                write!(
                    f,
                    "there is no kernel variable {index}; the program has {variables}"
                )
            }
            Self::MapOffset { offset, size } => {
                write!(
                    f,
                    "offset {offset} is outside of the map's {size} bytes of values"
                )
            }
        }
    }
}

/// The most functions that an error names.
const LISTED: usize = MAX_FRAMES + 1;

/// The slots of functions that call one another, the first of `all`.
fn write_slots(f: &mut fmt::Formatter<'_>, slots: &[usize], all: usize) -> fmt::Result {
    for (index, slot) in slots.iter().take(LISTED).enumerate() {
        let arrow = if index == 0 { "" } else { " -> " };
        write!(f, "{arrow}{slot}")?;
    }
    match all.saturating_sub(slots.len().min(LISTED)) {
        0 => Ok(()),
        more => write!(f, " -> ({more} more)"),
    }
}

impl fmt::Display for ValidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program `{}`: ", self.program)?;
        if let Some((slot, text)) = &self.at {
            write!(f, "instruction {slot}, `{text}`: ")?;
        }
        self.reason.fmt(f)
    }
}

impl core::error::Error for ValidateError {}

/// The licences that Linux takes as compatible with the GPL (`license_is_gpl_compatible` in its `linux/license.h`).
pub const GPL_COMPATIBLE: [&str; 6] = [
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
];

/// A call that a program's licence or its section does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForbiddenCall {
    /// The program's name.
    pub program: String,
    /// The name of what it calls, or may call by register.
    pub called: &'static str,
    /// What is in the way.
    pub why: Forbidden,
}

/// Why a call is forbidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// What is called may sleep, and the program may not.
    Sleeps,
    /// What is called is for programs under a licence compatible with the GPL.
    Licence {
        /// What section `license` says; `None`: there is none.
        found: Option<String>,
    },
}

impl fmt::Display for ForbiddenCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "program `{}` may call {}, which ",
            self.program, self.called
        )?;
        match &self.why {
            Forbidden::Sleeps => f.write_str(
                "may sleep, and is not sleepable; put it in a section that is (fentry.s/...)",
            ),
            Forbidden::Licence { found: Some(found) } => write!(
                f,
                "is for programs under a licence compatible with the GPL, and its licence is {found:?}; name one of {} in section \
                 `license`, or do without",
                GPL_COMPATIBLE.join(", ")
            ),
            Forbidden::Licence { found: None } => write!(
                f,
                "is for programs under a licence compatible with the GPL, and its object has no section `license`; add one with one \
                 of {}, or do without",
                GPL_COMPATIBLE.join(", ")
            ),
        }
    }
}

impl core::error::Error for ForbiddenCall {}

impl ValidatedProgram {
    /// Checks that it may call what it calls: by its object's licence
    /// ([`license`](crate::object::Object::license)), and by whether its section lets it sleep.
    ///
    /// # Errors
    /// The first call that is forbidden.
    pub fn check_calls(&self, licence: Option<&str>) -> Result<(), ForbiddenCall> {
        let gpl_compatible = licence.is_some_and(|licence| GPL_COMPATIBLE.contains(&licence));
        let sleepable = AttachPoint::parse(&self.section).is_ok_and(|point| point.sleepable);
        let forbidden = self.callable().find_map(|called| {
            let sleeps = called.may_sleep && !sleepable;
            let closed = called.gpl_only && !gpl_compatible;
            (sleeps || closed).then_some((called.name, sleeps))
        });
        match forbidden {
            None => Ok(()),
            Some((called, sleeps)) => Err(ForbiddenCall {
                program: self.name.clone(),
                called,
                why: match sleeps {
                    true => Forbidden::Sleeps,
                    false => Forbidden::Licence {
                        found: licence.map(Into::into),
                    },
                },
            }),
        }
    }
}

/// What is found of a program whose structure is sound.
struct Checked {
    instructions: Vec<Instruction>,
    functions: Vec<Range<u32>>,
    /// How many frames deep they call each other.
    depth: usize,
}

/// A reason and the slot it is about.
type Refusal = (Option<usize>, Reason);

impl UncheckedProgram {
    /// Checks the structure and decodes the instructions. Time and memory are linear in the number of slots.
    ///
    /// # Errors
    /// The first thing that is wrong, with the instruction's slot and text.
    pub fn validate(self) -> Result<ValidatedProgram, ValidateError> {
        self.validate_with(HELPERS)
    }

    /// As [`validate`](Self::validate), for a host with other helpers than this crate's; `helpers` is sorted by number.
    pub fn validate_with(
        self,
        helpers: &'static [Helper],
    ) -> Result<ValidatedProgram, ValidateError> {
        match self.check(helpers) {
            Ok(Checked {
                instructions,
                functions,
                depth,
            }) => {
                let mut program = ValidatedProgram {
                    name: self.name,
                    section: self.section,
                    instructions,
                    functions,
                    maps: self.maps,
                    kfuncs: self.kfuncs,
                    variables: self.variables,
                    helpers,
                    flat: Box::default(),
                    frames: MAX_FRAMES,
                };
                program.frames = program.find_frames(depth);
                program.flat = flat::flatten(&program);
                Ok(program)
            }
            Err((slot, reason)) => Err(ValidateError {
                at: slot.map(|slot| {
                    let missing = self.missing.get(&slot).cloned();
                    (slot, missing.unwrap_or_else(|| text_at(&self.insns, slot)))
                }),
                program: self.name,
                reason,
            }),
        }
    }

    fn check(&self, helpers: &[Helper]) -> Result<Checked, Refusal> {
        let slots = self.insns.len();
        match slots {
            0 => return Err((None, Reason::Empty)),
            MAX_SLOTS.. if slots > MAX_SLOTS => return Err((None, Reason::TooLong(slots))),
            _ => {}
        }
        let (mut instructions, index_of) = self.decode(helpers)?;

        // Functions start at the entry and where local calls and callbacks lead; jumps then have to stay between two starts.
        let mut starts = BTreeSet::from([0]);
        for i in &mut instructions {
            let (slot, function) = (i.slot as usize, i.op.function());
            let Some(off) = function.or(i.op.jump()) else {
                continue;
            };
            let to = slot as i64 + 1 + i64::from(off);
            let index = usize::try_from(to).ok().and_then(|to| index_of.get(to));
            let &index = index.ok_or((Some(slot), Reason::OutOfRange(to)))?;
            if index == SECOND_SLOT {
                return Err((Some(slot), Reason::IntoLddw(to)));
            }
            i.target = index;
            if function.is_some() {
                starts.insert(index);
            }
        }
        let ends = starts
            .iter()
            .copied()
            .skip(1)
            .chain([instructions.len() as u32]);
        let functions: Vec<_> = starts
            .iter()
            .zip(ends)
            .map(|(&start, end)| start..end)
            .collect();
        for function in &functions {
            let body = instructions.get(function.start as usize..function.end as usize);
            for (index, i) in (function.start..).zip(body.unwrap_or_default()) {
                let refuse = |reason| Err((Some(i.slot as usize), reason));
                if i.op.jump().is_some() && !function.contains(&i.target) {
                    let to = instructions.get(i.target as usize);
                    return refuse(Reason::OutOfFunction(to.map_or(0, |to| to.slot.into())));
                }
                if index + 1 == function.end && i.op.falls_through() {
                    return refuse(Reason::FallsOff);
                }
            }
        }
        let depth = calls::frames(&instructions, &functions)?;
        Ok(Checked {
            instructions,
            functions,
            depth,
        })
    }

    /// The instructions, and for each slot the index of the instruction that starts there.
    fn decode(&self, helpers: &[Helper]) -> Result<(Vec<Instruction>, Vec<u32>), Refusal> {
        let mut instructions = Vec::with_capacity(self.insns.len());
        let mut index_of = Vec::with_capacity(self.insns.len());
        while let Some(&insn) = self.insns.get(index_of.len()) {
            let slot = index_of.len();
            if self.missing.contains_key(&slot) {
                return Err((Some(slot), Reason::Missing));
            }
            let op = Op::decode(insn, self.insns.get(slot + 1).copied())
                .map_err(|error| (Some(slot), Reason::Decode(error)))?;
            self.check_op(op, helpers)
                .map_err(|reason| (Some(slot), reason))?;
            index_of.push(instructions.len() as u32);
            index_of.resize(slot + op.slots(), SECOND_SLOT);
            instructions.push(Instruction {
                op,
                slot: slot as u32,
                target: 0,
            });
        }
        Ok((instructions, index_of))
    }

    /// What an instruction says of registers, helpers and maps.
    fn check_op(&self, op: Op, helpers: &[Helper]) -> Result<(), Reason> {
        if op.defines() == Some(Reg::FP) {
            return Err(Reason::FramePointerWritten);
        }
        match op {
            Op::Call { helper: u32::MAX } | Op::CallLocal { off: -1 } => Err(Reason::Unresolved),
            Op::Call { helper } if helpers::find(helpers, helper).is_none() => {
                Err(Reason::UnknownHelper {
                    number: helper,
                    existing: helpers.iter().map(|h| (h.name, h.number)).collect(),
                })
            }
            Op::CallKernel { function } if self.kfuncs.len() <= function as usize => {
                Err(Reason::NoSuchKfunc {
                    index: function,
                    kfuncs: self.kfuncs.len(),
                })
            }
            Op::LoadVariable { variable, .. } if self.variables.len() <= variable as usize => {
                Err(Reason::NoSuchVariable {
                    index: variable,
                    variables: self.variables.len(),
                })
            }
            Op::LoadMap { map, .. } | Op::LoadMapValue { map, .. } => {
                let maps = self.maps.len();
                let found = self.maps.get(map as usize);
                let found = found.ok_or(Reason::NoSuchMap { index: map, maps })?;
                if let Op::LoadMapValue { offset, .. } = op {
                    let values = found.value_range().unwrap_or_default();
                    let size = values.end - values.start;
                    if u64::from(offset) >= size {
                        return Err(Reason::MapOffset { offset, size });
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Stands for "no instruction starts here" among the indices, which stay below [`MAX_SLOTS`].
const SECOND_SLOT: u32 = u32::MAX;

/// The instruction at a slot as text, or its bytes if it is none.
fn text_at(insns: &[Insn], slot: usize) -> String {
    let Some(&insn) = insns.get(slot) else {
        return String::new();
    };
    match Op::decode(insn, insns.get(slot + 1).copied()) {
        Ok(op) => op.to_string(),
        Err(_) => alloc::format!("{:02x?}", insn.to_bytes()),
    }
}
