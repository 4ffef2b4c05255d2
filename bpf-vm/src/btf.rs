// SPDX-License-Identifier: MIT OR Apache-2.0
//! BTF, the types of an object or of a kernel, as `linux/btf.h` and the kernel's BTF document lay them out.
//!
//! Reading takes time and memory linear in the section's length, and checks where each type lies; that a type is what
//! another one that refers to it needs is checked when it is looked at.
#![forbid(unsafe_code)]

mod prototype;

pub use prototype::Prototype;

use alloc::vec::Vec;
use core::fmt;

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
/// The longest name, bytes; so that looking one up takes bounded time.
const MAX_NAME: usize = 4096;
/// Bytes of a pointer in BPF and on arm64.
const POINTER_BYTES: u64 = 8;
/// `BTF_VAR_GLOBAL_EXTERN` and `BTF_FUNC_EXTERN`.
const EXTERN: u32 = 2;

/// What is wrong with a BTF section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BtfError {
    /// What is wrong.
    pub problem: &'static str,
    /// The type's id, or 0 for the header.
    pub type_id: u32,
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BTF type {}: {}", self.type_id, self.problem)
    }
}

impl core::error::Error for BtfError {}

/// `BTF_KIND_*` of `linux/btf.h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind(u8);

#[expect(missing_docs, reason = "the names are those of linux/btf.h")]
impl Kind {
    /// Type 0.
    pub const VOID: Self = Self(0);
    pub const INT: Self = Self(1);
    pub const PTR: Self = Self(2);
    pub const ARRAY: Self = Self(3);
    pub const STRUCT: Self = Self(4);
    pub const UNION: Self = Self(5);
    pub const ENUM: Self = Self(6);
    pub const FWD: Self = Self(7);
    pub const TYPEDEF: Self = Self(8);
    pub const VOLATILE: Self = Self(9);
    pub const CONST: Self = Self(10);
    pub const RESTRICT: Self = Self(11);
    pub const FUNC: Self = Self(12);
    pub const FUNC_PROTO: Self = Self(13);
    pub const VAR: Self = Self(14);
    pub const DATASEC: Self = Self(15);
    pub const FLOAT: Self = Self(16);
    pub const DECL_TAG: Self = Self(17);
    pub const TYPE_TAG: Self = Self(18);
    pub const ENUM64: Self = Self(19);

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

    /// Whether it is a `struct` or a `union`.
    pub(crate) fn is_composite(self) -> bool {
        matches!(self, Self::STRUCT | Self::UNION)
    }

    /// Whether it is an `enum` of either width.
    pub(crate) fn is_enum(self) -> bool {
        matches!(self, Self::ENUM | Self::ENUM64)
    }

    /// The word that C has before a name of this kind, with a space, if it has one.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::STRUCT => "struct ",
            Self::UNION => "union ",
            Self::ENUM | Self::ENUM64 => "enum ",
            _ => "",
        }
    }
}

/// A type: the common part, and where the rest starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Type {
    name: u32,
    info: u32,
    /// Its size in bytes or the type it refers to, by kind.
    pub(crate) size_or_type: u32,
    extra: u32,
}

impl Type {
    pub(crate) fn kind(self) -> Kind {
        Kind((self.info >> 24 & 0x1f) as u8)
    }

    /// `kind_flag`: bit-fields in a struct, a signed enum, a forward declaration of a union.
    pub(crate) fn flag(self) -> bool {
        self.info >> 31 != 0
    }

    /// `vlen`: members, enumerators, parameters.
    pub(crate) fn entries(self) -> u32 {
        self.info & 0xffff
    }
}

/// A member of a struct or union.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member<'a> {
    /// Its name; empty for an anonymous struct or union.
    pub(crate) name: &'a str,
    pub(crate) type_id: u32,
    /// Where it starts.
    pub(crate) bit_offset: u32,
    /// The bits of a bit-field; 0 for all others.
    pub(crate) bits: u32,
}

/// A variable, or a function, that a data section lists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variable<'a> {
    pub(crate) name: &'a str,
    /// [`Kind::VAR`] or [`Kind::FUNC`].
    pub(crate) kind: Kind,
    /// The id of its type, of a function that of its prototype.
    pub(crate) type_id: u32,
    /// Whether it is declared here and defined elsewhere.
    pub(crate) is_extern: bool,
}

/// What a function takes and returns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signature {
    /// Bytes of each parameter, first to last.
    pub parameters: Vec<u64>,
    /// Bytes of the result, 0 if there is none.
    pub result: u64,
}

/// What an integer's bits mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Integer {
    pub(crate) bytes: u32,
    pub(crate) signed: bool,
    pub(crate) boolean: bool,
    /// Whether it starts inside of its storage unit, as bit-fields were written once.
    pub(crate) shifted: bool,
}

/// The types of an object, or of a kernel.
#[derive(Clone, Debug)]
pub struct Btf<'a> {
    types: Vec<Type>,
    bytes: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Reads a section `.BTF`, or what `cargo xtask btf --raw` writes, from its magic number on.
    ///
    /// Errors: a header, type or kind that is not as `linux/btf.h` says, or that reaches past the end.
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        let header = |problem| BtfError {
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
            let error = |problem| BtfError { problem, type_id };
            let cut = || error("it is cut off by the section's end");
            let extra = at + TYPE_BYTES;
            let new = Type {
                name: word(bytes, at).ok_or_else(cut)?,
                info: word(bytes, at + 4).ok_or_else(cut)?,
                size_or_type: word(bytes, at + 8).ok_or_else(cut)?,
                extra: u32::try_from(extra).map_err(|_| cut())?,
            };
            let (fixed, each) = new
                .kind()
                .extra_bytes()
                .ok_or_else(|| error("a kind that linux/btf.h does not have"))?;
            at = extra + fixed + each * new.entries() as usize;
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

    /// The id of the first type of that kind and name.
    pub fn find(&self, kind: Kind, name: &str) -> Option<u32> {
        self.ids().find(|&id| {
            self.get(id).is_ok_and(|t| t.kind() == kind) && self.name(id).is_ok_and(|n| n == name)
        })
    }

    /// The type's kind; `None` if there is no such type.
    pub fn kind(&self, type_id: u32) -> Option<Kind> {
        self.get(type_id).ok().map(Type::kind)
    }

    /// What a typedef, qualifier, pointer, variable or function refers to; `None` for other kinds.
    pub fn referent(&self, type_id: u32) -> Option<u32> {
        let found = self.get(type_id).ok()?;
        matches!(found.kind(), Kind(2 | 8..=12 | 14 | 18)).then_some(found.size_or_type)
    }

    /// How many parameters the function (or prototype) of an id has; `None` if it is neither.
    pub fn parameters(&self, type_id: u32) -> Option<u32> {
        let found = self.get(type_id).ok()?;
        let proto = match found.kind() {
            Kind::FUNC => self.get(found.size_or_type).ok()?,
            _ => found,
        };
        (proto.kind() == Kind::FUNC_PROTO).then(|| proto.entries())
    }

    /// All types' ids but that of `void`, which is 0.
    pub fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        1..u32::try_from(self.types.len()).unwrap_or(u32::MAX)
    }

    /// The type of an id.
    pub(crate) fn get(&self, type_id: u32) -> Result<Type, BtfError> {
        self.types.get(type_id as usize).copied().ok_or(BtfError {
            problem: "a type refers to it and it does not exist",
            type_id,
        })
    }

    /// The string at an offset into the strings.
    pub(crate) fn string(&self, offset: u32) -> Result<&'a str, BtfError> {
        let error = |problem| BtfError {
            problem,
            type_id: 0,
        };
        let bytes = self.strings.get(offset as usize..).unwrap_or_default();
        let bytes = bytes.get(..MAX_NAME).unwrap_or(bytes);
        let length = bytes
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(error("a name is not in the strings, or too long"))?;
        core::str::from_utf8(bytes.get(..length).unwrap_or_default())
            .map_err(|_| error("a name is not UTF-8"))
    }

    /// The name of a type; empty if it has none.
    ///
    /// Errors: no such type, or its name is not in the strings or not UTF-8.
    pub fn name(&self, type_id: u32) -> Result<&'a str, BtfError> {
        self.string(self.get(type_id)?.name)
    }

    /// The type behind typedefs and qualifiers, with its id.
    pub(crate) fn resolve(&self, mut type_id: u32) -> Result<(u32, Type), BtfError> {
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
    pub(crate) fn pointee(&self, type_id: u32) -> Result<Option<u32>, BtfError> {
        let (_, pointer) = self.resolve(type_id)?;
        Ok((pointer.kind() == Kind::PTR).then_some(pointer.size_or_type))
    }

    /// Element type and number of elements; `None` if `type_id` is no array.
    pub(crate) fn array(&self, type_id: u32) -> Result<Option<(u32, u32)>, BtfError> {
        let (_, array) = self.resolve(type_id)?;
        if array.kind() != Kind::ARRAY {
            return Ok(None);
        }
        let at = array.extra as usize;
        Ok(word(self.bytes, at).zip(word(self.bytes, at + 8)))
    }

    /// What an integer's bits mean; `None` if `type_id` is no integer.
    pub(crate) fn integer(&self, type_id: u32) -> Result<Option<Integer>, BtfError> {
        let (_, found) = self.resolve(type_id)?;
        if found.kind() != Kind::INT {
            return Ok(None);
        }
        // BTF_INT_ENCODING and BTF_INT_OFFSET of `linux/btf.h`.
        let encoding = word(self.bytes, found.extra as usize).unwrap_or(0);
        Ok(Some(Integer {
            bytes: found.size_or_type,
            signed: encoding >> 24 & 1 != 0,
            boolean: encoding >> 24 & 4 != 0,
            shifted: encoding >> 16 & 0xff != 0,
        }))
    }

    /// Bytes of a value of a type, behind typedefs and qualifiers.
    ///
    /// Errors: a type that does not exist, refers to itself, or has no size.
    pub fn size_of(&self, type_id: u32) -> Result<u64, BtfError> {
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
                    return Err(BtfError {
                        problem: "it has no size",
                        type_id: id,
                    });
                }
            };
            return Ok(count.saturating_mul(size));
        }
        Err(too_deep(type_id))
    }

    /// The members of a struct or union, in order.
    pub(crate) fn members(
        &self,
        found: Type,
    ) -> impl Iterator<Item = Result<Member<'a>, BtfError>> + '_ {
        (0..found.entries()).filter_map(move |index| self.member(found, index).transpose())
    }

    /// The member of an index; `None` past the last.
    pub(crate) fn member(&self, found: Type, index: u32) -> Result<Option<Member<'a>>, BtfError> {
        let Some([name, type_id, offset]) = self.entry(found, index) else {
            return Ok(None);
        };
        // With the flag a bit-field's size is in the offset's highest byte.
        let (bit_offset, bits) = if found.flag() {
            (offset & 0xff_ffff, offset >> 24)
        } else {
            (offset, 0)
        };
        Ok(Some(Member {
            name: self.string(name)?,
            type_id,
            bit_offset,
            bits,
        }))
    }

    /// The enumerator of an index: its name, and its value sign extended; `None` past the last.
    pub(crate) fn enumerator(
        &self,
        found: Type,
        index: u32,
    ) -> Result<Option<(&'a str, u64)>, BtfError> {
        if found.kind() == Kind::ENUM64 {
            let Some([name, low, high]) = self.entry(found, index) else {
                return Ok(None);
            };
            let value = u64::from(high) << 32 | u64::from(low);
            return Ok(Some((self.string(name)?, value)));
        }
        let Some([name, value]) = self.entry(found, index) else {
            return Ok(None);
        };
        let value = i64::from(value.cast_signed()).cast_unsigned();
        Ok(Some((self.string(name)?, value)))
    }

    /// The type of a prototype's parameter; `None` past the last.
    pub(crate) fn parameter(&self, found: Type, index: u32) -> Option<u32> {
        self.entry(found, index).map(|[_, type_id]| type_id)
    }

    /// The name of a function and the sizes of what it takes and returns; `None` if the id is not one of a function, or its types make
    /// no sense.
    pub fn signature(&self, type_id: u32) -> Option<(&'a str, Signature)> {
        let function = self.get(type_id).ok().filter(|f| f.kind() == Kind::FUNC)?;
        let prototype = self.get(function.size_or_type).ok()?;
        if prototype.kind() != Kind::FUNC_PROTO {
            return None;
        }
        let parameters = (0..prototype.entries())
            .map(|index| self.size_of(self.parameter(prototype, index)?).ok())
            .collect::<Option<Vec<_>>>()?;
        let result = match prototype.size_or_type {
            0 => 0,
            result => self.size_of(result).ok()?,
        };
        let name = self.string(function.name).ok()?;
        Some((name, Signature { parameters, result }))
    }

    /// What the data section of a name lists; empty if it is not there.
    pub(crate) fn variables(&self, section: &str) -> Result<Vec<Variable<'a>>, BtfError> {
        let mut variables = Vec::new();
        for found in self.types.iter().filter(|t| t.kind() == Kind::DATASEC) {
            if self.string(found.name)? != section {
                continue;
            }
            for index in 0..found.entries() {
                let Some([variable, _, _]) = self.entry(*found, index) else {
                    break;
                };
                let var = self.get(variable)?;
                // A function's linkage is in place of a number of entries.
                let linkage = match var.kind() {
                    Kind::VAR => word(self.bytes, var.extra as usize).unwrap_or(0),
                    Kind::FUNC => var.entries(),
                    _ => {
                        return Err(BtfError {
                            problem: "a data section lists it and it is no variable or function",
                            type_id: variable,
                        });
                    }
                };
                variables.push(Variable {
                    name: self.string(var.name)?,
                    kind: var.kind(),
                    type_id: var.size_or_type,
                    is_extern: linkage == EXTERN,
                });
            }
        }
        Ok(variables)
    }

    /// One of the entries of `N` words each that follow the common part; `None` past the last.
    fn entry<const N: usize>(&self, found: Type, index: u32) -> Option<[u32; N]> {
        if index >= found.entries() {
            return None;
        }
        let at = found.extra as usize + 4 * N * index as usize;
        let mut words = [0; N];
        for (slot, offset) in words.iter_mut().zip((at..).step_by(4)) {
            *slot = word(self.bytes, offset)?;
        }
        Some(words)
    }
}

/// A name without its flavour: of `NAME___FLAVOUR`, where no underscore borders on the three, the first part.
pub(crate) fn essential(name: &str) -> &str {
    let separates = |five: &[u8]| matches!(five, [before, b'_', b'_', b'_', after] if *before != b'_' && *after != b'_');
    let last = name.as_bytes().windows(5).rposition(separates);
    last.and_then(|at| name.get(..at + 1)).unwrap_or(name)
}

/// The little-endian word at `at`.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn too_deep(type_id: u32) -> BtfError {
    BtfError {
        problem: "it refers to itself, or through more than 32 others",
        type_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_are_not_essential() {
        for (name, want) in [
            ("task", "task"),
            ("task___v1", "task"),
            ("task__v1", "task__v1"),
            ("task___", "task___"),
            ("___v1", "___v1"),
            ("a___b___c", "a___b"),
            ("task____v1", "task____v1"),
            ("é___v1", "é"),
            ("", ""),
        ] {
            assert_eq!(essential(name), want, "{name}");
        }
    }
}
