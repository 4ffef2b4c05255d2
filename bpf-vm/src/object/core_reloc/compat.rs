// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a type of an object and a type of the kernel can stand for each other, by libbpf's rules.
#![forbid(unsafe_code)]

use core::cell::Cell;

use super::Problem;
use crate::btf::{Btf, Kind, Type, essential};

/// Comparisons of types that all relocations of an object may take together, so that no object keeps a host busy.
const MAX_STEPS: u32 = 10_000_000;
/// How many types may lie within each other.
const MAX_DEPTH: u32 = 32;

/// One step into a type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'b> {
    /// The member's name; `None` for an element.
    pub(super) name: Option<&'b str>,
    /// The index among members, enumerators or elements.
    pub(super) index: u32,
    /// The type that the step leads to.
    pub(super) type_id: u32,
}

/// An object's types and a kernel's, to be compared.
pub(in super::super) struct Types<'b> {
    pub(super) local: &'b Btf<'b>,
    pub(super) kernel: &'b Btf<'b>,
    left: Cell<u32>,
}

impl<'b> Types<'b> {
    pub(in super::super) fn new(local: &'b Btf<'b>, kernel: &'b Btf<'b>) -> Self {
        Self {
            local,
            kernel,
            left: Cell::new(MAX_STEPS),
        }
    }

    /// Counts one comparison.
    pub(super) fn step(&self) -> Result<(), Problem> {
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(Problem(alloc::format!(
                "comparing the object's types with the kernel's takes more than {MAX_STEPS} steps"
            ))),
        }
    }

    /// Whether the names are the same but for a flavour.
    fn same_name(&self, local: u32, kernel: u32) -> Result<bool, Problem> {
        Ok(essential(self.local.name(local)?) == essential(self.kernel.name(kernel)?))
    }

    /// Whether a field of one type can be accessed as if it had the other: aggregates and pointers always; integers of
    /// any size and signedness; enums of one name, or without; arrays by their elements.
    pub(super) fn fields_fit(&self, mut local: u32, mut kernel: u32) -> Result<bool, Problem> {
        for _ in 0..MAX_DEPTH {
            self.step()?;
            let (local_id, l) = self.local.resolve(local)?;
            let (kernel_id, k) = self.kernel.resolve(kernel)?;
            if l.kind().is_composite() && k.kind().is_composite() {
                return Ok(true);
            }
            if l.kind().is_enum() && k.kind().is_enum()
                || l.kind() == Kind::FWD && k.kind() == l.kind()
            {
                let unnamed = self.local.name(local_id)?.is_empty()
                    || self.kernel.name(kernel_id)?.is_empty();
                return Ok(unnamed || self.same_name(local_id, kernel_id)?);
            }
            if l.kind() != k.kind() {
                return Ok(false);
            }
            match l.kind() {
                Kind::PTR | Kind::FLOAT => return Ok(true),
                Kind::INT => return self.are_whole(local_id, kernel_id),
                Kind::ARRAY => {
                    let (Some((l, _)), Some((k, _))) =
                        (self.local.array(local_id)?, self.kernel.array(kernel_id)?)
                    else {
                        return Ok(false);
                    };
                    (local, kernel) = (l, k);
                }
                _ => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Whether both integers start at their storage's first bit.
    fn are_whole(&self, local: u32, kernel: u32) -> Result<bool, Problem> {
        let (l, k) = (self.local.integer(local)?, self.kernel.integer(kernel)?);
        Ok([l, k].iter().all(|i| i.is_some_and(|i| !i.shifted)))
    }

    /// Whether one type can be taken for the other, names aside: the same kinds, through pointers, arrays and prototypes.
    pub(in super::super) fn fit(&self, local: u32, kernel: u32) -> Result<bool, Problem> {
        self.fit_within(local, kernel, MAX_DEPTH)
    }

    fn fit_within(&self, local: u32, kernel: u32, depth: u32) -> Result<bool, Problem> {
        self.step()?;
        let depth = deeper(depth)?;
        let (local_id, l) = self.local.resolve(local)?;
        let (kernel_id, k) = self.kernel.resolve(kernel)?;
        if l.kind().is_enum() && k.kind().is_enum() {
            return Ok(true);
        }
        if l.kind() != k.kind() {
            return Ok(false);
        }
        match l.kind() {
            Kind::VOID | Kind::STRUCT | Kind::UNION | Kind::FWD | Kind::FLOAT => Ok(true),
            Kind::INT => self.are_whole(local_id, kernel_id),
            Kind::PTR => self.fit_within(l.size_or_type, k.size_or_type, depth),
            Kind::ARRAY => match (self.local.array(local_id)?, self.kernel.array(kernel_id)?) {
                (Some((l, _)), Some((k, _))) => self.fit_within(l, k, depth),
                _ => Ok(false),
            },
            Kind::FUNC_PROTO => self.prototypes(l, k, |l, k| self.fit_within(l, k, depth)),
            _ => Ok(false),
        }
    }

    /// Whether two prototypes have as many parameters, and these and what they return are `same`.
    fn prototypes(
        &self,
        l: Type,
        k: Type,
        same: impl Fn(u32, u32) -> Result<bool, Problem>,
    ) -> Result<bool, Problem> {
        if l.entries() != k.entries() {
            return Ok(false);
        }
        for index in 0..l.entries() {
            match (
                self.local.parameter(l, index),
                self.kernel.parameter(k, index),
            ) {
                (Some(l), Some(k)) if same(l, k)? => {}
                _ => return Ok(false),
            }
        }
        same(l.size_or_type, k.size_or_type)
    }

    /// Whether the kernel's type has all that the object's has: members and enumerators by name, integers of the same
    /// size and signedness, arrays as long. Behind a pointer an aggregate only has to be of the same name and kind.
    pub(super) fn matches(&self, local: u32, kernel: u32) -> Result<bool, Problem> {
        self.matches_within(local, kernel, false, MAX_DEPTH)
    }

    fn matches_within(
        &self,
        local: u32,
        kernel: u32,
        behind_pointer: bool,
        depth: u32,
    ) -> Result<bool, Problem> {
        self.step()?;
        let depth = deeper(depth)?;
        let (local_id, l) = self.local.resolve(local)?;
        let (kernel_id, k) = self.kernel.resolve(kernel)?;
        if !self.same_name(local_id, kernel_id)? {
            return Ok(false);
        }
        let union = |t: Type| t.kind() == Kind::UNION || t.kind() == Kind::FWD && t.flag();
        let (lk, kk) = (l.kind(), k.kind());
        match lk {
            Kind::VOID => Ok(kk == Kind::VOID),
            Kind::FWD => Ok((kk == Kind::FWD || kk.is_composite()) && union(l) == union(k)),
            Kind::STRUCT | Kind::UNION if behind_pointer => {
                Ok(lk == kk || kk == Kind::FWD && union(l) == union(k))
            }
            Kind::STRUCT | Kind::UNION => Ok(lk == kk && self.has_members(l, k, depth)?),
            Kind::ENUM | Kind::ENUM64 => Ok(kk.is_enum() && self.has_enumerators(l, k)?),
            _ if lk != kk => Ok(false),
            Kind::INT => {
                let (l, k) = (
                    self.local.integer(local_id)?,
                    self.kernel.integer(kernel_id)?,
                );
                let (Some(l), Some(k)) = (l, k) else {
                    return Ok(false);
                };
                Ok((l.bytes, l.signed) == (k.bytes, k.signed))
            }
            Kind::PTR => self.matches_within(l.size_or_type, k.size_or_type, true, depth),
            Kind::ARRAY => match (self.local.array(local_id)?, self.kernel.array(kernel_id)?) {
                (Some((l, many)), Some((k, as_many))) if many == as_many => {
                    self.matches_within(l, k, behind_pointer, depth)
                }
                _ => Ok(false),
            },
            Kind::FUNC_PROTO => self.prototypes(l, k, |l, k| {
                self.matches_within(l, k, behind_pointer, depth)
            }),
            _ => Ok(false),
        }
    }

    /// Whether each member of the object's type is among the kernel's.
    fn has_members(&self, l: Type, k: Type, depth: u32) -> Result<bool, Problem> {
        if l.entries() > k.entries() {
            return Ok(false);
        }
        'members: for member in self.local.members(l) {
            let member = member?;
            for other in self.kernel.members(k) {
                self.step()?;
                let other = other?;
                if essential(member.name) == essential(other.name)
                    && self.matches_within(member.type_id, other.type_id, false, depth)?
                {
                    continue 'members;
                }
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether each enumerator of the object's type is among the kernel's, which has the same size.
    fn has_enumerators(&self, l: Type, k: Type) -> Result<bool, Problem> {
        if l.size_or_type != k.size_or_type || l.entries() > k.entries() {
            return Ok(false);
        }
        for index in 0..l.entries() {
            let Some((name, _)) = self.local.enumerator(l, index)? else {
                break;
            };
            if self.enumerator(k, name)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The index of the kernel's enumerator of a name.
    pub(super) fn enumerator(&self, k: Type, name: &str) -> Result<Option<u32>, Problem> {
        for index in 0..k.entries() {
            self.step()?;
            if let Some((other, _)) = self.kernel.enumerator(k, index)?
                && essential(other) == essential(name)
            {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }
}

fn deeper(depth: u32) -> Result<u32, Problem> {
    depth.checked_sub(1).ok_or(Problem::from(
        "types refer to each other through more than 32 others",
    ))
}
