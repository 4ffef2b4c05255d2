// SPDX-License-Identifier: MIT OR Apache-2.0
//! BTF's bytes (`linux/btf.h`): header, types, strings, little endian.

use std::collections::BTreeMap;

use super::BtfError;
use super::graph::{Graph, Id, Qualifier, Record, Type};

/// `BTF_MAGIC`.
const MAGIC: u16 = 0xeb9f;
/// `BTF_VERSION`.
const VERSION: u8 = 1;
/// Bytes of the header.
const HEADER: u32 = 24;
/// `BTF_MAX_VLEN`: how many members, values or parameters a type may have.
const MOST_ENTRIES: usize = 0xffff;
/// `BTF_MAX_NAME_OFFSET`: how long the strings may be.
const MOST_STRINGS: usize = 0xff_ffff;
/// Bits of a member's offset where the upper byte is a bit-field's width (`BTF_MEMBER_BIT_OFFSET`).
const MOST_OFFSET: u32 = 0xff_ffff;
/// `BTF_FUNC_GLOBAL` and `BTF_VAR_GLOBAL_ALLOCATED`.
const GLOBAL: u32 = 1;
/// Bit `kind_flag` of a type's information.
const KIND_FLAG: u32 = 1 << 31;

/// The strings, each once.
#[derive(Default)]
struct Strings {
    bytes: Vec<u8>,
    offsets: BTreeMap<String, u32>,
}

impl Strings {
    fn offset(&mut self, name: &str) -> Result<u32, BtfError> {
        if let Some(offset) = self.offsets.get(name) {
            return Ok(*offset);
        }
        let offset = self.bytes.len();
        self.bytes.extend(name.bytes().filter(|byte| *byte != 0));
        self.bytes.push(0);
        if self.bytes.len() > MOST_STRINGS {
            return Err(BtfError::TooLarge(
                "the names",
                self.bytes.len() as u64,
                MOST_STRINGS as u64,
            ));
        }
        let offset = offset as u32;
        self.offsets.insert(name.to_owned(), offset);
        Ok(offset)
    }
}

/// What follows a type's three words.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn words(&mut self, words: impl IntoIterator<Item = u32>) {
        self.0.extend(words.into_iter().flat_map(u32::to_le_bytes));
    }
}

fn id(of: Id) -> u32 {
    // A graph of 4 G types does not fit into this machine's memory.
    of as u32
}

/// The bytes of a graph whose types are numbered as BTF numbers them.
pub(crate) fn write(graph: &Graph) -> Result<Vec<u8>, BtfError> {
    let mut graph = graph.clone();
    let index = graph.index_type().map_or(0, id);
    let mut strings = Strings::default();
    strings.offset("")?;
    let mut types = Vec::new();
    for (_, found) in graph.types() {
        let name = strings.offset(found.name().unwrap_or_default())?;
        let mut tail = Tail::default();
        // The kind (`BTF_KIND_*`), the flag, the number of entries, and a size or a type.
        let (kind, flag, entries, size_or_type) = match found {
            // `const void`: a graph that was condensed has `void` only as type 0, which is not written.
            Type::Void => (10, 0, 0, 0),
            Type::Int { size, encoding, .. } => {
                tail.words([((*encoding as u32) << 24) | (size * 8)]);
                (1, 0, 0, *size)
            }
            Type::Float { size, .. } => (16, 0, 0, *size),
            Type::Pointer(of) => (2, 0, 0, id(*of)),
            Type::Array { element, count } => {
                tail.words([id(*element), index, *count]);
                (3, 0, 0, 0)
            }
            Type::Record {
                kind,
                size,
                members,
                ..
            } => {
                let flag = members.iter().any(|member| member.width != 0);
                for member in members {
                    if flag && member.offset > MOST_OFFSET {
                        return Err(BtfError::TooLarge(
                            "a bit-field's offset",
                            member.offset.into(),
                            MOST_OFFSET.into(),
                        ));
                    }
                    tail.words([
                        strings.offset(&member.name)?,
                        id(member.of),
                        u32::from(member.width) << 24 | member.offset,
                    ]);
                }
                let kind = match kind {
                    Record::Struct => 4,
                    Record::Union => 5,
                };
                (kind, if flag { KIND_FLAG } else { 0 }, members.len(), *size)
            }
            Type::Forward { kind, .. } => match kind {
                Record::Struct => (7, 0, 0, 0),
                Record::Union => (7, KIND_FLAG, 0, 0),
            },
            Type::Enum {
                size,
                signed,
                values,
                ..
            } => {
                let wide = *size > 4;
                for (name, value) in values {
                    let name = strings.offset(name)?;
                    tail.words([name, *value as u32]);
                    tail.words(wide.then_some((*value >> 32) as u32));
                }
                let flag = if *signed { KIND_FLAG } else { 0 };
                (if wide { 19 } else { 6 }, flag, values.len(), *size)
            }
            Type::Typedef { of, .. } => (8, 0, 0, id(*of)),
            Type::Qualified { qualifier, of } => {
                let kind = match qualifier {
                    Qualifier::Volatile => 9,
                    Qualifier::Const => 10,
                    Qualifier::Restrict => 11,
                };
                (kind, 0, 0, id(*of))
            }
            Type::Function { prototype, .. } => (12, 0, GLOBAL as usize, id(*prototype)),
            Type::Prototype {
                result,
                parameters,
                variadic,
            } => {
                for (name, of) in parameters {
                    tail.words([strings.offset(name)?, id(*of)]);
                }
                tail.words([0, 0].into_iter().filter(|_| *variadic));
                (
                    13,
                    0,
                    parameters.len() + usize::from(*variadic),
                    id(*result),
                )
            }
            Type::Variable { of, .. } => {
                tail.words([GLOBAL]);
                (14, 0, 0, id(*of))
            }
            Type::Section {
                size, variables, ..
            } => {
                for (variable, offset, size) in variables {
                    tail.words([id(*variable), *offset, *size]);
                }
                (15, 0, variables.len(), *size)
            }
        };
        if entries > MOST_ENTRIES {
            return Err(BtfError::TooLarge(
                "the number of a type's members",
                entries as u64,
                MOST_ENTRIES as u64,
            ));
        }
        let information: u32 = kind << 24 | flag | entries as u32;
        types.extend(
            [name, information, size_or_type]
                .into_iter()
                .flat_map(u32::to_le_bytes),
        );
        types.extend(tail.0);
    }
    let length = |what, bytes: &[u8]| {
        u32::try_from(bytes.len())
            .map_err(|_| BtfError::TooLarge(what, bytes.len() as u64, u32::MAX.into()))
    };
    let (types_length, strings_length) = (
        length("the types", &types)?,
        length("the names", &strings.bytes)?,
    );
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    bytes.extend([VERSION, 0]);
    for field in [HEADER, 0, types_length, types_length, strings_length] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(types);
    bytes.extend(strings.bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::graph::Encoding;

    #[test]
    fn a_function_is_laid_out_as_the_header_file_says() {
        let mut graph = Graph::default();
        let int = graph.add(Type::Int {
            name: "int".into(),
            size: 4,
            encoding: Encoding::Signed,
        });
        let prototype = graph.add(Type::Prototype {
            result: int,
            parameters: vec![("a".into(), int)],
            variadic: false,
        });
        graph.add(Type::Function {
            name: "f".into(),
            prototype,
        });
        let bytes = write(&graph).expect("bytes");
        let words: Vec<u32> = bytes[..bytes.len() / 4 * 4]
            .as_chunks()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        assert_eq!(words[..6], [0x1_eb9f, 24, 0, 48, 48, 9]);
        assert_eq!(words[6..10], [1, 1 << 24, 4, (1 << 24) | 32]);
        assert_eq!(words[10..15], [0, 13 << 24 | 1, 1, 5, 1]);
        assert_eq!(words[15..18], [7, 12 << 24 | 1, 2]);
        assert_eq!(&bytes[72..], b"\0int\0a\0f\0");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut graph = Graph::default();
        graph.add(Type::Enum {
            name: "e".into(),
            size: 4,
            signed: false,
            values: vec![(String::new(), 0); MOST_ENTRIES + 1],
        });
        assert!(matches!(
            write(&graph),
            Err(BtfError::TooLarge(_, 65536, 65535))
        ));
    }
}
