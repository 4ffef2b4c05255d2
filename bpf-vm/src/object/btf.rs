// SPDX-License-Identifier: MIT OR Apache-2.0
//! BTF, the types of an object's maps and variables, as `linux/btf.h` and the kernel's BTF document lay them out.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use super::ObjectError;

/// `BTF_MAGIC`, in the byte order of the file.
const MAGIC: u16 = 0xeb9f;
/// `BTF_VERSION`.
const VERSION: u8 = 1;
/// Bytes of the header that are read: magic to `str_len`.
const HEADER_BYTES: usize = 24;
/// Bytes of a `struct btf_type`.
const TYPE_BYTES: usize = 12;
/// How many types may lie between a name and its size; no C that a person writes comes near.
const MAX_DEPTH: usize = 32;
/// Bytes of a pointer in BPF.
const POINTER_BYTES: u64 = 8;

/// `BTF_KIND_*` of `linux/btf.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kind(u8);

impl Kind {
    pub(super) const INT: Self = Self(1);
    pub(super) const PTR: Self = Self(2);
    pub(super) const ARRAY: Self = Self(3);
    pub(super) const STRUCT: Self = Self(4);
    pub(super) const UNION: Self = Self(5);
    pub(super) const ENUM: Self = Self(6);
    pub(super) const TYPEDEF: Self = Self(8);
    pub(super) const VOLATILE: Self = Self(9);
    pub(super) const CONST: Self = Self(10);
    pub(super) const RESTRICT: Self = Self(11);
    pub(super) const FUNC_PROTO: Self = Self(13);
    pub(super) const VAR: Self = Self(14);
    pub(super) const DATASEC: Self = Self(15);
    pub(super) const FLOAT: Self = Self(16);
    pub(super) const DECL_TAG: Self = Self(17);
    pub(super) const TYPE_TAG: Self = Self(18);
    pub(super) const ENUM64: Self = Self(19);

    /// Bytes that follow the common part: `(fixed, for each of vlen)`; `None` for a kind that is not known.
    fn extra_bytes(self) -> Option<(usize, usize)> {
        Some(match self {
            Self::INT | Self::VAR | Self::DECL_TAG => (4, 0),
            Self::ARRAY => (12, 0),
            Self::STRUCT | Self::UNION | Self::DATASEC | Self::ENUM64 => (0, 12),
            Self::ENUM | Self::FUNC_PROTO => (0, 8),
            Self(2 | 7..=12 | 16 | 18) => (0, 0),
            _ => return None,
        })
    }
}

/// A type: the common part, and where the rest starts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type {
    name: u32,
    info: u32,
    /// Its size in bytes or the type it refers to, by kind.
    size_or_type: u32,
    extra: usize,
}

impl Type {
    pub(super) fn kind(self) -> Kind {
        Kind((self.info >> 24 & 0x1f) as u8)
    }

    fn entries(self) -> usize {
        (self.info & 0xffff) as usize
    }
}

/// A member of a struct, or a variable of a data section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    /// The type's id.
    pub(super) type_id: u32,
}

/// The types of an object.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    types: Vec<Type>,
    bytes: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Reads section `.BTF`.
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, ObjectError> {
        let header = |problem| ObjectError::Btf {
            problem,
            type_id: 0,
        };
        if data.len() < HEADER_BYTES {
            return Err(header("the section is shorter than its header"));
        }
        let magic = [data.first(), data.get(1)].map(|byte| byte.copied().unwrap_or(0));
        if u16::from_le_bytes(magic) != MAGIC {
            return Err(header("the magic number is not 0xeb9f, little-endian"));
        }
        if data.get(2) != Some(&VERSION) {
            return Err(header("the version is not 1"));
        }
        let field = |at| word(data, at).ok_or(header("the section is shorter than its header"));
        let part = |offset, length, problem| {
            let start = field(4)? as usize + field(offset)? as usize;
            let end = start + field(length)? as usize;
            data.get(start..end).ok_or(header(problem))
        };
        let bytes = part(8, 12, "the types reach past the section's end")?;
        let strings = part(16, 20, "the strings reach past the section's end")?;
        // Type 0 is void and not in the file.
        let mut types = Vec::new();
        types.push(Type {
            name: 0,
            info: 0,
            size_or_type: 0,
            extra: 0,
        });
        let mut at = 0;
        while at < bytes.len() {
            let type_id = u32::try_from(types.len()).unwrap_or(u32::MAX);
            let error = |problem| ObjectError::Btf { problem, type_id };
            let cut = || error("it is cut off by the section's end");
            let extra = at + TYPE_BYTES;
            let new = Type {
                name: word(bytes, at).ok_or_else(cut)?,
                info: word(bytes, at + 4).ok_or_else(cut)?,
                size_or_type: word(bytes, at + 8).ok_or_else(cut)?,
                extra,
            };
            let (fixed, each) = new
                .kind()
                .extra_bytes()
                .ok_or_else(|| error("a kind that linux/btf.h does not have"))?;
            at = extra + fixed + each * new.entries();
            if at > bytes.len() {
                return Err(cut());
            }
            types.push(new);
        }
        Ok(Self {
            types,
            bytes,
            strings,
        })
    }

    /// The type of an id.
    pub(super) fn get(&self, type_id: u32) -> Result<Type, ObjectError> {
        self.types
            .get(type_id as usize)
            .copied()
            .ok_or(ObjectError::Btf {
                problem: "a type refers to it and it does not exist",
                type_id,
            })
    }

    /// The string at an offset into the strings.
    pub(super) fn string(&self, offset: u32) -> Result<&'a str, ObjectError> {
        self.strings
            .get(offset as usize..)
            .and_then(|bytes| bytes.split(|&byte| byte == 0).next())
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .ok_or(ObjectError::Btf {
                problem: "a name is not in the strings, or not UTF-8",
                type_id: 0,
            })
    }

    /// The name of a type; empty if it has none.
    pub(super) fn name(&self, type_id: u32) -> Result<&'a str, ObjectError> {
        self.string(self.get(type_id)?.name)
    }

    /// The type behind typedefs and qualifiers, with its id.
    pub(super) fn resolve(&self, mut type_id: u32) -> Result<(u32, Type), ObjectError> {
        for _ in 0..MAX_DEPTH {
            let found = self.get(type_id)?;
            match found.kind() {
                Kind::TYPEDEF | Kind::VOLATILE | Kind::CONST | Kind::RESTRICT | Kind::TYPE_TAG => {
                    type_id = found.size_or_type;
                }
                _ => return Ok((type_id, found)),
            }
        }
        Err(too_deep(type_id))
    }

    /// The type that a pointer points to; `None` if `type_id` is no pointer.
    pub(super) fn pointee(&self, type_id: u32) -> Result<Option<u32>, ObjectError> {
        let (_, pointer) = self.resolve(type_id)?;
        Ok((pointer.kind() == Kind::PTR).then_some(pointer.size_or_type))
    }

    /// Element type and number of elements; `None` if `type_id` is no array.
    pub(super) fn array(&self, type_id: u32) -> Result<Option<(u32, u32)>, ObjectError> {
        let (_, array) = self.resolve(type_id)?;
        if array.kind() != Kind::ARRAY {
            return Ok(None);
        }
        Ok(word(self.bytes, array.extra).zip(word(self.bytes, array.extra + 8)))
    }

    /// Bytes of a value of a type.
    pub(super) fn size_of(&self, type_id: u32) -> Result<u64, ObjectError> {
        let mut type_id = type_id;
        let mut count = 1u64;
        for _ in 0..MAX_DEPTH {
            let (id, found) = self.resolve(type_id)?;
            let size = match found.kind() {
                Kind::INT
                | Kind::STRUCT
                | Kind::UNION
                | Kind::ENUM
                | Kind::ENUM64
                | Kind::FLOAT
                | Kind::DATASEC => u64::from(found.size_or_type),
                Kind::PTR => POINTER_BYTES,
                Kind::ARRAY => {
                    let (element, elements) = self.array(id)?.ok_or(too_deep(id))?;
                    count = count.saturating_mul(elements.into());
                    type_id = element;
                    continue;
                }
                _ => {
                    return Err(ObjectError::Btf {
                        problem: "it has no size",
                        type_id: id,
                    });
                }
            };
            return Ok(count.saturating_mul(size));
        }
        Err(too_deep(type_id))
    }

    /// The members of a struct, in order.
    pub(super) fn members(
        &self,
        found: Type,
    ) -> impl Iterator<Item = Result<Named<'a>, ObjectError>> + '_ {
        self.entries(found).map(|[name, type_id, _]| {
            Ok(Named {
                name: self.string(name)?,
                type_id,
            })
        })
    }

    /// The variables of the data section of a name, with the ids of their types; empty if it is not there.
    pub(super) fn variables(&self, section: &str) -> Result<Vec<Named<'a>>, ObjectError> {
        let mut variables = Vec::new();
        for found in self.types.iter().filter(|t| t.kind() == Kind::DATASEC) {
            if self.string(found.name)? != section {
                continue;
            }
            for [variable, ..] in self.entries(*found) {
                let var = self.get(variable)?;
                if var.kind() != Kind::VAR {
                    return Err(ObjectError::Btf {
                        problem: "a data section lists it and it is no variable",
                        type_id: variable,
                    });
                }
                variables.push(Named {
                    name: self.string(var.name)?,
                    type_id: var.size_or_type,
                });
            }
        }
        Ok(variables)
    }

    /// The entries of three words each that follow a struct or a data section.
    fn entries(&self, found: Type) -> impl Iterator<Item = [u32; 3]> + '_ {
        (0..found.entries()).map_while(move |index| {
            let at = found.extra + 12 * index;
            Some([
                word(self.bytes, at)?,
                word(self.bytes, at + 4)?,
                word(self.bytes, at + 8)?,
            ])
        })
    }
}

/// The little-endian word at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn too_deep(type_id: u32) -> ObjectError {
    ObjectError::Btf {
        problem: "it refers to itself, or through more than 32 others",
        type_id,
    }
}
