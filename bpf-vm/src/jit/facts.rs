// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of values: constants, and how many low bits may be set.
use alloc::{vec, vec::Vec};

use super::{
    flow::Flow,
    ir::{Binary, Name, NameSet, Node, Rhs, Step, bits},
};

/// What is known of a name's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// No value came here yet.
    Unseen,
    Constant(u64),
    /// Bits from this one on are 0.
    Bits(u8),
}

impl Fact {
    pub(super) const ANY: Self = Self::Bits(64);

    /// Bits from this one on are 0.
    pub(super) const fn bits(self) -> u8 {
        match self {
            Self::Unseen => 0,
            Self::Constant(value) => (u64::BITS - value.leading_zeros()) as u8,
            Self::Bits(bits) => bits,
        }
    }

    pub(super) const fn constant(self) -> Option<u64> {
        match self {
            Self::Constant(value) => Some(value),
            _ => None,
        }
    }

    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unseen, one) | (one, Self::Unseen) => one,
            (one, other) if one == other => one,
            _ => Self::Bits(self.bits().max(other.bits())),
        }
    }
}

/// What is known of all names at one place. Names that the compiler adds are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts([Fact; FOLLOWED]);

/// r0 to r10.
const FOLLOWED: usize = Name::FP.index() + 1;

impl Facts {
    pub(super) const NONE: Self = Self([Fact::ANY; FOLLOWED]);
    const UNSEEN: Self = Self([Fact::Unseen; FOLLOWED]);

    pub(super) fn of(&self, name: Name) -> Fact {
        self.0.get(name.index()).copied().unwrap_or(Fact::ANY)
    }

    fn set(&mut self, name: Name, fact: Fact) {
        if let Some(slot) = self.0.get_mut(name.index()) {
            *slot = fact;
        }
    }

    fn operand(&self, rhs: Rhs) -> Fact {
        match rhs {
            Rhs::Name(name) => self.of(name),
            Rhs::Imm(value) => Fact::Constant(value),
            Rhs::Shifted(..) | Rhs::Extended(..) => Fact::ANY,
        }
    }

    /// What is known of a step's result.
    pub(super) fn result(&self, node: &Node) -> Fact {
        match *node {
            Node::Const(value) => Fact::Constant(value),
            Node::Copy(name) => self.of(name),
            Node::Field(field) if field.signed => Fact::Bits(bits(field.width)),
            Node::Field(field) => {
                let above = self.of(field.src).bits().saturating_sub(field.lsb);
                match above.min(field.len) {
                    0 => Fact::Constant(0),
                    bits => Fact::Bits(field.at + bits),
                }
            }
            Node::Load { size, signed, .. } if !signed => Fact::Bits(size.bits() as u8),
            Node::LoadAcquire { size, .. }
            | Node::Swap { size, .. }
            | Node::Atomic { size, .. } => Fact::Bits(size.bits() as u8),
            Node::Select { yes, no, .. } => self.operand(yes).or(self.operand(no)),
            Node::Binary { op, width, a, b } => {
                let (a, b) = (self.of(a).bits(), self.operand(b).bits());
                let bits = match op {
                    Binary::And => a.min(b),
                    Binary::Or | Binary::Xor => a.max(b),
                    Binary::Div | Binary::Mod | Binary::Rsh => a,
                    _ => 64,
                };
                Fact::Bits(bits.min(super::ir::bits(width)))
            }
            Node::MulAdd { width, .. } | Node::Neg { width, .. } | Node::Extract { width, .. } => {
                Fact::Bits(bits(width))
            }
            _ => Fact::ANY,
        }
    }

    /// Goes over a step.
    pub(super) fn step(&mut self, step: &Step) {
        let result = self.result(&step.node);
        if step.node.is_call() {
            let arguments = NameSet::arguments();
            arguments.iter().for_each(|name| self.set(name, Fact::ANY));
        }
        if let Some(name) = step.dst {
            self.set(name, result);
        }
        if let Some(name) = step.also {
            self.set(name, Fact::ANY);
        }
    }

    /// What is known where control may come from here as well; whether that is less.
    fn meet(&mut self, other: &Self) -> bool {
        let before = *self;
        for (fact, other) in self.0.iter_mut().zip(&other.0) {
            *fact = fact.or(*other);
        }
        *self != before
    }
}

/// What is known at the start of each block; an empty list knows nothing.
pub(super) fn facts(flow: &Flow<'_>) -> Vec<Facts> {
    let mut all = vec![Facts::UNSEEN; flow.blocks.len()];
    if let Some(entry) = all.first_mut() {
        *entry = Facts::NONE;
    }
    let mut work = vec![0];
    let mut queued = vec![false; flow.blocks.len()];
    while let Some(number) = work.pop() {
        if let Some(queued) = queued.get_mut(number) {
            *queued = false;
        }
        let Some((block, mut facts)) = flow.blocks.get(number).zip(all.get(number).copied()) else {
            continue;
        };
        block.steps.iter().for_each(|step| facts.step(step));
        for next in block.end.successors() {
            let Some((known, queued)) = all.get_mut(next).zip(queued.get_mut(next)) else {
                continue;
            };
            if known.meet(&facts) && !core::mem::replace(queued, true) {
                work.push(next);
            }
        }
    }
    all
}
