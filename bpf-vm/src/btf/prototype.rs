// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function's prototype: as C writes it, and whether two functions take and return the same.

use super::{Btf, Kind, MAX_DEPTH, Type};
use core::fmt;

/// How far pointers to functions that take pointers to functions are followed; behind that only their parameters are counted.
const MAX_PROTOTYPES: usize = 2;
/// The most parameters that are printed or compared: more than any function has.
const MAX_PARAMETERS: u32 = 64;

/// What a function takes and returns; printed as `u64 NAME(u64, struct request *)`.
#[derive(Clone, Copy)]
pub struct Prototype<'b, 'a> {
    btf: &'b Btf<'a>,
    name: &'a str,
    /// The `FUNC_PROTO`.
    found: Type,
}

impl<'a> Btf<'a> {
    /// The prototype of a function; `None` if the id is not one of a function.
    pub fn prototype(&self, type_id: u32) -> Option<Prototype<'_, 'a>> {
        let function = self.get(type_id).ok().filter(|f| f.kind() == Kind::FUNC)?;
        let found = self.get(function.size_or_type).ok()?;
        let name = self.string(function.name).ok()?;
        (found.kind() == Kind::FUNC_PROTO).then_some(Prototype {
            btf: self,
            name,
            found,
        })
    }
}

impl Prototype<'_, '_> {
    /// Whether both take and return the same, typedefs and qualifiers aside: integers of the same size and sign, structs of the same
    /// name and size, pointers to the same. The other may be of another BTF.
    pub fn is_like(&self, other: &Prototype<'_, '_>) -> bool {
        self.same_prototype(self.found, other, other.found, 0)
    }

    fn same_prototype(
        &self,
        mine: Type,
        other: &Prototype<'_, '_>,
        theirs: Type,
        depth: usize,
    ) -> bool {
        let parameters = |index| {
            let mine = self.btf.parameter(mine, index);
            let types = mine.zip(other.btf.parameter(theirs, index));
            types.is_some_and(|(a, b)| self.same(a, other, b, depth))
        };
        let count = mine.entries();
        count == theirs.entries()
            && count <= MAX_PARAMETERS
            && (depth >= MAX_PROTOTYPES
                || self.same(mine.size_or_type, other, theirs.size_or_type, depth)
                    && (0..count).all(parameters))
    }

    fn same(
        &self,
        mut mine: u32,
        other: &Prototype<'_, '_>,
        mut theirs: u32,
        depth: usize,
    ) -> bool {
        for _ in 0..MAX_DEPTH {
            let found = self.btf.resolve(mine).ok();
            let Some(((id, a), (other_id, b))) = found.zip(other.btf.resolve(theirs).ok()) else {
                return false;
            };
            if a.kind() != b.kind() {
                return false;
            }
            match a.kind() {
                Kind::VOID => return true,
                Kind::INT => {
                    let bits = |btf: &Btf<'_>, id| {
                        let integer = btf.integer(id).ok().flatten()?;
                        Some((integer.bytes, integer.signed, integer.boolean))
                    };
                    let bits = bits(self.btf, id).zip(bits(other.btf, other_id));
                    return bits.is_some_and(|(a, b)| a == b);
                }
                Kind::PTR => (mine, theirs) = (a.size_or_type, b.size_or_type),
                Kind::ARRAY => {
                    let array = |btf: &Btf<'_>, id| btf.array(id).ok().flatten();
                    let arrays = array(self.btf, id).zip(array(other.btf, other_id));
                    let Some((a, b)) = arrays.filter(|(a, b)| a.1 == b.1) else {
                        return false;
                    };
                    (mine, theirs) = (a.0, b.0);
                }
                Kind::FUNC_PROTO => return self.same_prototype(a, other, b, depth + 1),
                kind => {
                    let names = self.btf.name(id).ok().zip(other.btf.name(other_id).ok());
                    // A declaration has no size.
                    return names.is_some_and(|(a, b)| a == b)
                        && (kind == Kind::FWD || a.size_or_type == b.size_or_type);
                }
            }
        }
        false
    }

    fn write_type(
        &self,
        mut type_id: u32,
        depth: usize,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        let mut stars = 0;
        for _ in 0..MAX_DEPTH {
            let Ok(found) = self.btf.get(type_id) else {
                break;
            };
            let to = found.size_or_type;
            match found.kind() {
                Kind::CONST | Kind::VOLATILE | Kind::RESTRICT | Kind::TYPE_TAG => type_id = to,
                Kind::PTR => (type_id, stars) = (to, stars + 1),
                Kind::FUNC_PROTO if depth < MAX_PROTOTYPES => {
                    return self.write(found, format_args!("({:*<stars$})", ""), depth + 1, f);
                }
                kind => {
                    let name = match kind {
                        Kind::VOID => "void",
                        _ => self.btf.name(type_id).unwrap_or_default(),
                    };
                    let name = if name.is_empty() { "?" } else { name };
                    let space = if stars > 0 { " " } else { "" };
                    return write!(f, "{}{name}{space}{:*<stars$}", kind.word(), "");
                }
            }
        }
        f.write_str("?")
    }

    fn write(
        &self,
        prototype: Type,
        name: fmt::Arguments<'_>,
        depth: usize,
        f: &mut fmt::Formatter<'_>,
    ) -> fmt::Result {
        self.write_type(prototype.size_or_type, depth, f)?;
        write!(f, " {name}(")?;
        for index in 0..prototype.entries().min(MAX_PARAMETERS) {
            if index > 0 {
                f.write_str(", ")?;
            }
            match self.btf.parameter(prototype, index) {
                Some(parameter) => self.write_type(parameter, depth, f)?,
                None => f.write_str("?")?,
            }
        }
        f.write_str(match prototype.entries() {
            0 => "void)",
            1..=MAX_PARAMETERS => ")",
            _ => ", ...)",
        })
    }
}

impl fmt::Display for Prototype<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(self.found, format_args!("{}", self.name), 0, f)
    }
}
