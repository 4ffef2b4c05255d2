// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way into a type that a CO-RE relocation names, in the object's types and in the kernel's.
#![forbid(unsafe_code)]

use alloc::{format, vec::Vec};

use super::{Access, Answer, Problem, Question, Step, Types};
use crate::btf::{Btf, Kind, Member, Type};

/// The most steps of a way (libbpf's limit).
const MAX_STEPS: usize = 64;
/// How many anonymous structs and unions may lie within each other.
const MAX_DEPTH: u32 = 32;
/// The most bytes that a load or store takes.
const WORD_BYTES: u64 = 8;

/// A way into a type, and where it leads.
#[derive(Debug)]
pub(super) struct Spec<'b> {
    root: u32,
    /// The number before the first step: elements of an array of roots. Of an enumerator its index.
    first: u32,
    steps: Vec<Step<'b>>,
    /// Bits from the root's start.
    bit_offset: u64,
    /// The type of what is there.
    type_id: u32,
    /// Bits of the bit-field there; 0 for what is none.
    bits: u32,
}

/// The storage that a field is accessed in.
struct Place {
    byte_offset: u64,
    bytes: u64,
    /// Where in it the field starts, and its bits.
    bit_offset: u64,
    bits: u64,
}

impl<'b> Spec<'b> {
    fn at(root: u32, first: u32) -> Self {
        Self {
            root,
            first,
            steps: Vec::new(),
            bit_offset: 0,
            type_id: root,
            bits: 0,
        }
    }

    /// The named and numbered steps.
    pub(super) fn steps(&self) -> impl Iterator<Item = &Step<'b>> {
        self.steps.iter()
    }

    /// Reads a way into a type of the object: `0:1:2`.
    pub(super) fn local(
        btf: &'b Btf<'b>,
        question: Question,
        root: u32,
        way: &str,
    ) -> Result<Self, Problem> {
        let wrong = || Problem(format!("`{way}` is no way into the type"));
        let mut numbers = way
            .split(':')
            .map(|number| number.parse().map_err(|_| wrong()));
        let first: u32 = numbers.next().ok_or_else(wrong)??;
        let mut spec = Self::at(root, first);
        if question.is_of_type() {
            return if way == "0" { Ok(spec) } else { Err(wrong()) };
        }
        if question.is_of_enumerator() {
            let (_, found) = btf.resolve(root)?;
            let Some((name, _)) = btf.enumerator_of(found, first)? else {
                return Err(wrong());
            };
            spec.steps.push(Step {
                name: Some(name),
                index: first,
                type_id: root,
            });
            return if numbers.next().is_none() {
                Ok(spec)
            } else {
                Err(wrong())
            };
        }
        spec.skip(btf, root, first)?;
        let mut anonymous = false;
        for (count, index) in numbers.enumerate() {
            if count >= MAX_STEPS {
                return Err(Problem(format!("the way has more than {MAX_STEPS} steps")));
            }
            let index = index?;
            let (_, found) = btf.resolve(spec.type_id)?;
            anonymous = false;
            if found.kind().is_composite() {
                let member = btf.member(found, index)?.ok_or_else(wrong)?;
                spec.enter(&member);
                anonymous = member.name.is_empty();
                if !anonymous {
                    spec.steps.push(Step {
                        name: Some(member.name),
                        index,
                        type_id: member.type_id,
                    });
                }
            } else {
                let (element, _) = btf.array(spec.type_id)?.ok_or_else(wrong)?;
                spec.element(btf, element, index)?;
            }
        }
        if anonymous {
            return Err("it asks about an anonymous member, which cannot be found by name".into());
        }
        Ok(spec)
    }

    /// Adds `count` values of a type to the offset.
    fn skip(&mut self, btf: &Btf<'_>, type_id: u32, count: u32) -> Result<(), Problem> {
        // A root need not have a size where none is skipped.
        if count != 0 {
            let bits = btf.size_of(type_id)?.saturating_mul(8);
            let bits = bits.saturating_mul(count.into());
            self.bit_offset = self.bit_offset.saturating_add(bits);
        }
        Ok(())
    }

    fn enter(&mut self, member: &Member<'_>) {
        self.bit_offset = self.bit_offset.saturating_add(member.bit_offset.into());
        (self.type_id, self.bits) = (member.type_id, member.bits);
    }

    fn element(&mut self, btf: &Btf<'_>, element: u32, index: u32) -> Result<(), Problem> {
        self.skip(btf, element, index)?;
        (self.type_id, self.bits) = (element, 0);
        self.steps.push(Step {
            name: None,
            index,
            type_id: element,
        });
        Ok(())
    }

    /// The same way into a type of the kernel; `None` if it does not lead anywhere there.
    pub(super) fn in_kernel(
        &self,
        types: &Types<'b>,
        question: Question,
        candidate: u32,
    ) -> Result<Option<Self>, Problem> {
        let mut spec = Self::at(candidate, self.first);
        if question.is_of_type() {
            let same = if question == Question::TypeMatches {
                types.matches(self.root, candidate)?
            } else {
                types.fit(self.root, candidate)?
            };
            return Ok(same.then_some(spec));
        }
        let btf = types.kernel;
        if question.is_of_enumerator() {
            let (_, found) = btf.resolve(candidate)?;
            let name = self
                .steps
                .first()
                .and_then(|step| step.name)
                .unwrap_or_default();
            let Some(index) = types.enumerator(found, name)? else {
                return Ok(None);
            };
            spec.first = index;
            return Ok(Some(spec));
        }
        spec.skip(btf, candidate, self.first)?;
        for step in &self.steps {
            let (_, found) = btf.resolve(spec.type_id)?;
            match step.name {
                Some(name) => {
                    let inside = (name, step.type_id);
                    if !found.kind().is_composite()
                        || !spec.find_member(types, found, inside, MAX_DEPTH)?
                    {
                        return Ok(None);
                    }
                }
                None => {
                    let Some((element, count)) = btf.array(spec.type_id)? else {
                        return Ok(None);
                    };
                    // An array without a size is one of any size.
                    if count != 0 && step.index >= count {
                        return Ok(None);
                    }
                    spec.element(btf, element, step.index)?;
                }
            }
        }
        Ok(Some(spec))
    }

    /// Enters the member of a name and a type that fits, also one of an anonymous member; whether there is one.
    fn find_member(
        &mut self,
        types: &Types<'b>,
        found: Type,
        (name, type_id): (&'b str, u32),
        depth: u32,
    ) -> Result<bool, Problem> {
        let Some(depth) = depth.checked_sub(1) else {
            return Ok(false);
        };
        for (member, index) in types.kernel.members(found).zip(0..) {
            types.step()?;
            let member = member?;
            if member.name == name && types.fields_fit(type_id, member.type_id)? {
                self.enter(&member);
                self.steps.push(Step {
                    name: Some(name),
                    index,
                    type_id: member.type_id,
                });
                return Ok(true);
            }
            if member.name.is_empty() {
                let (_, inner) = types.kernel.resolve(member.type_id)?;
                if inner.kind().is_composite() {
                    let before = self.bit_offset;
                    self.bit_offset = before.saturating_add(member.bit_offset.into());
                    if self.find_member(types, inner, (name, type_id), depth)? {
                        return Ok(true);
                    }
                    self.bit_offset = before;
                }
            }
        }
        Ok(false)
    }

    /// What is answered if this is the way in the kernel's types, and `local` the one in the object's.
    pub(super) fn answer(
        &self,
        types: &Types<'_>,
        question: Question,
        local: &Spec<'_>,
    ) -> Result<Answer, Problem> {
        let btf = types.kernel;
        let mut access = Access::Same;
        let value = match question {
            Question::FieldExists
            | Question::TypeExists
            | Question::TypeMatches
            | Question::EnumeratorExists => 1,
            Question::LocalTypeId => local.root.into(),
            Question::TargetTypeId => self.root.into(),
            Question::TypeSize => btf.size_of(self.root)?,
            Question::EnumeratorValue => {
                let (_, found) = btf.resolve(self.root)?;
                btf.enumerator_of(found, self.first)?
                    .map_or(0, |(_, value)| value)
            }
            Question::FieldOffset => {
                if self.bits == 0 && local.bits == 0 {
                    access = self.access(types, local)?;
                }
                self.place(btf)?.byte_offset
            }
            Question::FieldSize => self.place(btf)?.bytes,
            Question::FieldSigned => self.is_signed(btf)?.into(),
            // From the top of a word, which the storage was loaded into the bottom of.
            Question::FieldLeftShift => {
                let place = self.place(btf)?;
                u64::from(u64::BITS).saturating_sub(place.bit_offset + place.bits)
            }
            Question::FieldRightShift => u64::from(u64::BITS).saturating_sub(self.place(btf)?.bits),
        };
        Ok(Answer { value, access })
    }

    /// How a load or store of the object's field has to change.
    fn access(&self, types: &Types<'_>, local: &Spec<'_>) -> Result<Access, Problem> {
        // A load from the start of an array loads its first element.
        let (local_id, kernel_id) = (
            types.local.innermost(local.type_id)?,
            types.kernel.innermost(self.type_id)?,
        );
        let sizes = (
            types.local.size_of(local_id),
            types.kernel.size_of(kernel_id),
        );
        // What has no size is not loaded or stored.
        let (Ok(from), Ok(to)) = sizes else {
            return Ok(Access::Same);
        };
        if from == to {
            return Ok(Access::Same);
        }
        // Zero extension is right for pointers and unsigned integers only.
        let is_unsigned =
            |btf: &Btf<'_>, id| Ok::<_, Problem>(btf.integer(id)?.is_some_and(|i| !i.signed));
        let is_pointer = |btf: &Btf<'_>, id| Ok::<_, Problem>(btf.pointee(id)?.is_some());
        let both = is_unsigned(types.local, local_id)? && is_unsigned(types.kernel, kernel_id)?
            || is_pointer(types.local, local_id)? && is_pointer(types.kernel, kernel_id)?;
        Ok(if both {
            Access::Resized(to)
        } else {
            Access::Impossible(from, to)
        })
    }

    /// Whether what is there is signed.
    fn is_signed(&self, btf: &Btf<'_>) -> Result<bool, Problem> {
        let (_, found) = btf.resolve(self.type_id)?;
        if found.kind().is_enum() {
            return Ok(found.flag());
        }
        Ok(btf.integer(self.type_id)?.is_some_and(|i| i.signed))
    }

    /// Where to load it: of a bit-field the smallest aligned storage of its type's size or more that holds it whole.
    fn place(&self, btf: &Btf<'_>) -> Result<Place, Problem> {
        let mut bytes = btf.size_of(self.type_id)?;
        if self.bits == 0 {
            return Ok(Place {
                byte_offset: self.bit_offset / 8,
                bytes,
                bit_offset: 0,
                bits: bytes.saturating_mul(8),
            });
        }
        let bits = u64::from(self.bits);
        loop {
            if bytes == 0 || bytes > WORD_BYTES {
                return Err(Problem(format!(
                    "a bit-field of {bits} bits at bit {}, which no load of up to {WORD_BYTES} bytes holds",
                    self.bit_offset
                )));
            }
            let byte_offset = self.bit_offset / 8 / bytes * bytes;
            let bit_offset = self.bit_offset - byte_offset * 8;
            if bit_offset + bits <= bytes * 8 {
                return Ok(Place {
                    byte_offset,
                    bytes,
                    bit_offset,
                    bits,
                });
            }
            bytes *= 2;
        }
    }
}

impl<'a> Btf<'a> {
    /// As [`enumerator`](Self::enumerator); `None` also for what is no enum.
    fn enumerator_of(&self, found: Type, index: u32) -> Result<Option<(&'a str, u64)>, Problem> {
        if !matches!(found.kind(), Kind::ENUM | Kind::ENUM64) {
            return Ok(None);
        }
        Ok(self.enumerator(found, index)?)
    }

    /// The element type of an array, and of its elements if they are arrays; any other type itself.
    fn innermost(&self, mut type_id: u32) -> Result<u32, Problem> {
        for _ in 0..MAX_DEPTH {
            match self.array(type_id)? {
                Some((element, _)) => type_id = element,
                None => return Ok(type_id),
            }
        }
        Err("arrays of arrays of more than 32 dimensions".into())
    }
}
