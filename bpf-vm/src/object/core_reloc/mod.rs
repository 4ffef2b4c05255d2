// SPDX-License-Identifier: MIT OR Apache-2.0
//! CO-RE relocations: what `.BTF.ext` asks of the kernel's types, and the answers.
//!
//! A record names an instruction, a type of the object and a way into it ("0:1:2": no step along an array, member 1,
//! member 2 of that), and what the instruction wants to know (`enum bpf_core_relo_kind` of `linux/bpf.h`): an offset,
//! a size, whether it exists. The type is looked for by name, without its flavour (`task___v1`), among the kernel's;
//! the way is walked there by the names of members. Types of one name that give different answers are an error.
#![forbid(unsafe_code)]

use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::{self, Write as _};

mod compat;
mod patch;
mod spec;

pub(super) use self::compat::Types;
pub(super) use self::patch::{apply, poison};
use self::{compat::Step, spec::Spec};
use super::{ObjectError, elf::Elf};
use crate::btf::{Btf, BtfError, essential, word};

/// Where the header says how long it is (`hdr_len`), and where in it the CO-RE part's offset and length lie
/// (`struct btf_ext_header` in libbpf's documentation of the BTF format).
const HEADER_LENGTH_AT: usize = 4;
const CORE_OFFSET_AT: usize = 24;
const CORE_LENGTH_AT: usize = 28;
/// Bytes of a section's part before its records: name, number of records.
const PART_BYTES: usize = 8;
/// Bytes of a `struct bpf_core_relo`: instruction, type, way, kind.
const RECORD_BYTES: usize = 16;

/// Why a relocation cannot be done, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem(pub(super) String);

impl From<BtfError> for Problem {
    fn from(error: BtfError) -> Self {
        Self(error.to_string())
    }
}

impl From<&str> for Problem {
    fn from(problem: &str) -> Self {
        Self(problem.into())
    }
}

/// What a relocation asks for: `enum bpf_core_relo_kind`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Question {
    FieldOffset,
    FieldSize,
    FieldExists,
    FieldSigned,
    FieldLeftShift,
    FieldRightShift,
    LocalTypeId,
    TargetTypeId,
    TypeExists,
    TypeSize,
    EnumeratorExists,
    EnumeratorValue,
    TypeMatches,
}

/// By number, with the name that `linux/bpf.h` has after `BPF_CORE_`.
const QUESTIONS: [(Question, &str); 13] = [
    (Question::FieldOffset, "FIELD_BYTE_OFFSET"),
    (Question::FieldSize, "FIELD_BYTE_SIZE"),
    (Question::FieldExists, "FIELD_EXISTS"),
    (Question::FieldSigned, "FIELD_SIGNED"),
    (Question::FieldLeftShift, "FIELD_LSHIFT_U64"),
    (Question::FieldRightShift, "FIELD_RSHIFT_U64"),
    (Question::LocalTypeId, "TYPE_ID_LOCAL"),
    (Question::TargetTypeId, "TYPE_ID_TARGET"),
    (Question::TypeExists, "TYPE_EXISTS"),
    (Question::TypeSize, "TYPE_SIZE"),
    (Question::EnumeratorExists, "ENUMVAL_EXISTS"),
    (Question::EnumeratorValue, "ENUMVAL_VALUE"),
    (Question::TypeMatches, "TYPE_MATCHES"),
];

impl Question {
    /// Whether "no" is an answer.
    fn may_be_no(self) -> bool {
        matches!(
            self,
            Self::FieldExists | Self::TypeExists | Self::EnumeratorExists | Self::TypeMatches
        )
    }

    fn is_of_type(self) -> bool {
        matches!(
            self,
            Self::LocalTypeId
                | Self::TargetTypeId
                | Self::TypeExists
                | Self::TypeSize
                | Self::TypeMatches
        )
    }

    fn is_of_enumerator(self) -> bool {
        matches!(self, Self::EnumeratorExists | Self::EnumeratorValue)
    }
}

/// One record of `.BTF.ext`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// The ELF section's index, and the instruction's offset in it in bytes.
    pub(super) section: u32,
    pub(super) offset: u32,
    type_id: u32,
    /// Where in the strings the way into the type is.
    way: u32,
    kind: u32,
}

/// All records, sorted by section and offset.
#[derive(Clone, Default, Debug)]
pub(super) struct Records(Vec<Record>);

impl Records {
    /// Reads section `.BTF.ext`.
    pub(super) fn read(data: &[u8], elf: &Elf<'_>, btf: &Btf<'_>) -> Result<Self, ObjectError> {
        let error = |problem: String| ObjectError::Malformed {
            place: "section `.BTF.ext`".into(),
            problem,
        };
        let cut = || error("the CO-RE relocations reach past its end".into());
        let mut records = Vec::new();
        let Some(header) = word(data, HEADER_LENGTH_AT) else {
            return Ok(Self(records));
        };
        // A shorter header is of a clang that writes no CO-RE relocations.
        if (header as usize) < CORE_LENGTH_AT + 4 {
            return Ok(Self(records));
        }
        let length = word(data, CORE_LENGTH_AT).ok_or_else(cut)? as usize;
        if length == 0 {
            return Ok(Self(records));
        }
        let start = header as usize + word(data, CORE_OFFSET_AT).ok_or_else(cut)? as usize;
        let part = data.get(start..start + length).ok_or_else(cut)?;
        let record_bytes = word(part, 0).ok_or_else(cut)? as usize;
        if record_bytes < RECORD_BYTES {
            return Err(error(format!(
                "CO-RE records of {record_bytes} bytes, where {RECORD_BYTES} are needed"
            )));
        }
        let sections: BTreeMap<&str, u32> = elf.sections.iter().map(|s| s.name).zip(0..).collect();
        let mut at = 4;
        while at < part.len() {
            let name = btf.string(word(part, at).ok_or_else(cut)?)?;
            let count = word(part, at + 4).ok_or_else(cut)? as usize;
            let section = *sections.get(name).ok_or_else(|| {
                error(format!(
                    "it has CO-RE relocations for section `{name}`, which does not exist"
                ))
            })?;
            at += PART_BYTES;
            let end = count
                .checked_mul(record_bytes)
                .and_then(|n| n.checked_add(at));
            let end = end.filter(|&end| end <= part.len()).ok_or_else(cut)?;
            while at < end {
                let field = |index: usize| word(part, at + 4 * index).ok_or_else(cut);
                records.push(Record {
                    section,
                    offset: field(0)?,
                    type_id: field(1)?,
                    way: field(2)?,
                    kind: field(3)?,
                });
                at += record_bytes;
            }
        }
        records.sort_by_key(|record| (record.section, record.offset));
        Ok(Self(records))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The record of an index.
    pub(super) fn get(&self, index: usize) -> Option<&Record> {
        self.0.get(index)
    }

    /// The indices of the records of a section's bytes from `start` to `end`.
    pub(super) fn within(&self, section: usize, start: u64, end: u64) -> core::ops::Range<usize> {
        let before = |limit: u64| {
            self.0.partition_point(|record| {
                (record.section as usize, u64::from(record.offset)) < (section, limit)
            })
        };
        before(start)..before(end)
    }
}

/// What the kernel's types answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    value: u64,
    /// Of an offset: how a load or store of the field has to change.
    access: Access,
}

/// How an access to a field has to change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    /// Not at all.
    Same,
    /// To as many bytes.
    Resized(u64),
    /// It cannot be the same one: bytes in the object, bytes in the kernel.
    Impossible(u64, u64),
}

/// Finds answers in a kernel's types.
pub(super) struct Resolver<'b> {
    local: &'b Btf<'b>,
    types: Option<Types<'b>>,
    /// The kernel's types by essential name, sorted.
    names: Vec<(&'b str, u32)>,
    /// Of a type of the object: the kernel's of the same name.
    candidates: BTreeMap<u32, Vec<u32>>,
}

impl<'b> Resolver<'b> {
    /// For relocations of an object with the types `local`.
    ///
    /// Errors: the kernel's BTF has a name that is not in its strings.
    pub(super) fn new(local: &'b Btf<'b>, kernel: Option<&'b Btf<'b>>) -> Result<Self, Problem> {
        let mut names = Vec::new();
        if let Some(kernel) = kernel {
            for id in kernel.ids() {
                let name = kernel.name(id)?;
                if !name.is_empty() {
                    names.push((essential(name), id));
                }
            }
            names.sort_unstable();
        }
        Ok(Self {
            local,
            types: kernel.map(|kernel| Types::new(local, kernel)),
            names,
            candidates: BTreeMap::new(),
        })
    }

    /// What the kernel answers; `None` if it has nothing of what was asked about.
    pub(super) fn answer(&mut self, record: &Record) -> Result<Option<Answer>, Problem> {
        let (question, _) = self.question(record)?;
        let way = self.local.string(record.way)?;
        let local = Spec::local(self.local, question, record.type_id, way)?;
        let answer = |value| Answer {
            value,
            access: Access::Same,
        };
        if question == Question::LocalTypeId {
            return Ok(Some(answer(record.type_id.into())));
        }
        let Some(types) = &self.types else {
            return Err("the kernel's types are not known; hand its BTF to the loader".into());
        };
        if !self.candidates.contains_key(&record.type_id) {
            let found = candidates(types, &self.names, record.type_id)?;
            self.candidates.insert(record.type_id, found);
        }
        let Some(candidates) = self.candidates.get_mut(&record.type_id) else {
            return Ok(None);
        };
        let mut found: Option<Answer> = None;
        let mut matching = Vec::new();
        for &candidate in &*candidates {
            types.step()?;
            let Some(target) = local.in_kernel(types, question, candidate)? else {
                continue;
            };
            let new = target.answer(types, question, &local)?;
            matching.push(candidate);
            match found {
                Some(first) if first != new => {
                    return Err(Problem(format!(
                        "the kernel's types {} and {candidate} both are called that and answer differently: {:#x} and \
                         {:#x}; use a flavour whose fields only one of them has",
                        matching.first().unwrap_or(&0),
                        first.value,
                        new.value
                    )));
                }
                _ => found = Some(new),
            }
        }
        // Later questions about the type are about what this one has shown it to be.
        if !matching.is_empty() {
            *candidates = matching;
        }
        Ok(found.or(question.may_be_no().then(|| answer(0))))
    }

    fn question(&self, record: &Record) -> Result<(Question, &'static str), Problem> {
        let question = QUESTIONS.get(record.kind as usize).copied();
        question.ok_or_else(|| {
            Problem(format!(
                "kind {} of relocation, which linux/bpf.h does not have",
                record.kind
            ))
        })
    }

    /// The record in words: `FIELD_EXISTS of struct task::mm.pgd (0:1:2)`.
    pub(super) fn describe(&self, record: &Record) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(record, &mut text);
        text
    }

    fn write(&self, record: &Record, text: &mut String) -> fmt::Result {
        let question = self.question(record).ok();
        let way = self.local.string(record.way).unwrap_or("?");
        match &question {
            Some((_, name)) => write!(text, "{name} of ")?,
            None => write!(text, "kind {} of ", record.kind)?,
        }
        let name = self.local.name(record.type_id).unwrap_or("?");
        let word = self
            .local
            .kind(record.type_id)
            .map_or("", |kind| kind.word());
        let name = if name.is_empty() { "(unnamed)" } else { name };
        write!(text, "{word}{name}")?;
        if let Some((question, _)) = question
            && let Ok(spec) = Spec::local(self.local, question, record.type_id, way)
        {
            let mut separator = "::";
            for Step { name, index, .. } in spec.steps() {
                match name {
                    Some(name) => write!(text, "{separator}{name}")?,
                    None => write!(text, "[{index}]")?,
                }
                separator = ".";
            }
        }
        write!(text, " ({way})")
    }
}

/// The kernel's types that have the essential name and the kind of one of the object's.
fn candidates(types: &Types<'_>, names: &[(&str, u32)], type_id: u32) -> Result<Vec<u32>, Problem> {
    let name = essential(types.local.name(type_id)?);
    if name.is_empty() {
        return Err("the type has no name to look for in the kernel".into());
    }
    let kind = types.local.get(type_id)?.kind();
    let first = names.partition_point(|(other, _)| *other < name);
    let same = names
        .iter()
        .skip(first)
        .take_while(|(other, _)| *other == name);
    let mut found = Vec::new();
    for &(_, id) in same {
        types.step()?;
        let other = types.kernel.get(id)?.kind();
        if other == kind || other.is_enum() && kind.is_enum() {
            found.push(id);
        }
    }
    Ok(found)
}
