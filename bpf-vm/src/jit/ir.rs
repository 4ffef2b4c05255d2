// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function between BPF and A64: steps of three operands on names, in blocks with explicit ends.
//!
//! A step is what one A64 instruction can do, or a few that belong together. [`super::lower`] makes one of each BPF
//! instruction; [`super::fuse`] makes one of several.
use a64::{
    imm::ShiftKind,
    inst::{Extend, IndexExtend, SysReg},
};
use alloc::vec::Vec;

use super::{Clock, Number};
use crate::isa::{AtomicOp, Cond, Reg, Size, Swap, Width};

/// What holds a value: r0 to r10, then what the compiler adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name(u8);

impl Name {
    /// How many there are at most.
    pub(super) const COUNT: usize = 32;
    pub(super) const R0: Self = Self(0);
    /// r10: an address computed from the stack pointer, in no register.
    pub(super) const FP: Self = Self(10);
    /// The numbers of the compiler's own.
    pub(super) const ADDED: core::ops::Range<u8> = 11..Self::COUNT as u8;

    pub(super) const fn added(number: u8) -> Self {
        Self(if number < Self::COUNT as u8 {
            number
        } else {
            0
        })
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<Reg> for Name {
    fn from(reg: Reg) -> Self {
        Self(reg.number())
    }
}

/// A set of names without r10, which is never allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NameSet(u32);

impl NameSet {
    pub(super) fn insert(&mut self, name: Name) {
        if name != Name::FP {
            self.0 |= 1 << name.0;
        }
    }

    pub(super) fn with(mut self, name: Name) -> Self {
        self.insert(name);
        self
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn contains(self, name: Name) -> bool {
        self.0 >> name.0 & 1 != 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Name> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let number = rest.trailing_zeros();
            rest &= rest.wrapping_sub(1);
            (number < u32::BITS).then_some(Name(number as u8))
        })
    }

    pub(super) const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(super) fn of(names: impl IntoIterator<Item = Name>) -> Self {
        names.into_iter().fold(Self::default(), Self::with)
    }

    /// r1 to r5: what a call takes, and leaves undefined.
    pub(super) fn arguments() -> Self {
        Self::of(Reg::arguments().map(Name::from))
    }
}

/// An operation of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Sdiv,
    Mod,
    Smod,
    And,
    Or,
    Xor,
    /// `a & !b`
    AndNot,
    /// `a | !b`
    OrNot,
    /// `a ^ !b`
    XorNot,
    Lsh,
    Rsh,
    Arsh,
}

impl Binary {
    pub(super) const fn commutes(self) -> bool {
        matches!(
            self,
            Self::Add | Self::Mul | Self::And | Self::Or | Self::Xor
        )
    }

    /// Whether the last operand may be a shifted register.
    pub(super) const fn is_logical(self) -> bool {
        matches!(
            self,
            Self::And | Self::Or | Self::Xor | Self::AndNot | Self::OrNot | Self::XorNot
        )
    }
}

/// The last operand of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rhs {
    Name(Name),
    /// Shifted by a constant, below the operation's width.
    Shifted(Name, ShiftKind, u8),
    /// Extended, then shifted left by up to 4.
    Extended(Name, Extend, u8),
    /// As the operation sees it: zero above its width.
    Imm(u64),
}

/// `len` bits of `src` from `lsb` on, zero or sign extended, moved up to `at`.
///
/// One of `lsb` and `at` is 0. Only if it is signed does the width matter: zero extended it is the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) signed: bool,
    pub(super) width: Width,
    pub(super) src: Name,
    pub(super) lsb: u8,
    pub(super) len: u8,
    pub(super) at: u8,
}

impl Field {
    /// The low `len` bits, zero extended.
    pub(super) const fn low(src: Name, len: u8) -> Self {
        Self {
            signed: false,
            width: Width::W64,
            src,
            lsb: 0,
            len,
            at: 0,
        }
    }

    /// This field of another field's value, if it is one field again.
    pub(super) fn of(self, inner: Self) -> Option<Self> {
        let (inner_top, outer_top) = (inner.at + inner.len, self.lsb + self.len);
        if inner.signed {
            // Only bits that the inner one has as they are.
            let within = outer_top <= inner_top && (!self.signed || inner.width == Width::W64);
            if !within || self.lsb < inner.at {
                return None;
            }
        }
        let (start, end) = (self.lsb.max(inner.at), outer_top.min(inner_top));
        if start >= end {
            return None;
        }
        let field = Self {
            signed: self.signed && end == outer_top,
            width: self.width,
            src: inner.src,
            lsb: inner.lsb + (start - inner.at),
            len: end - start,
            at: self.at + (start - self.lsb),
        };
        let bits = if field.signed { bits(field.width) } else { 64 };
        let encodes = (field.lsb == 0 || field.at == 0)
            && field.lsb + field.len <= bits
            && field.at + field.len <= bits;
        encodes.then_some(field)
    }

    /// Whether it is the low `len` bits as they are, or more.
    pub(super) const fn keeps_low(self, len: u32) -> bool {
        self.lsb == 0 && self.at == 0 && self.len as u32 >= len
    }
}

pub(super) const fn bits(width: Width) -> u8 {
    match width {
        Width::W32 => 32,
        Width::W64 => 64,
    }
}

/// What an access does to its base register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Update {
    None,
    /// The access is at the base, which then grows by so many bytes.
    Post(i16),
    /// The base grows by so many bytes, and there the access is.
    Pre(i16),
}

/// The index of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) name: Name,
    pub(super) extend: IndexExtend,
    /// Whether it counts elements of the access's size.
    pub(super) scaled: bool,
}

/// Where an access goes: `base + off`, or `base + index` with `off` 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addr {
    pub(super) base: Name,
    pub(super) off: i32,
    pub(super) index: Option<Index>,
    pub(super) update: Update,
}

impl Addr {
    pub(super) const fn at(base: Name, off: i32) -> Self {
        Self {
            base,
            off,
            index: None,
            update: Update::None,
        }
    }

    /// Whether it is `base + off` and no more.
    pub(super) const fn is_plain(self) -> bool {
        self.index.is_none() && matches!(self.update, Update::None)
    }
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Callee {
    /// What lies at an address; whether it wants the attachment.
    Address { address: u64, attached: bool },
    /// A function of the program.
    Local(u32),
    /// What a register names: a function's address or a helper's number.
    Register(Name),
    /// `bpf_tail_call`: how many slots the program array has, and where the first lies.
    Tail { slots: u32, entries: u64 },
}

/// What is asked of the machine in place of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// The current task's address.
    Task(SysReg),
    /// The current task's number, in both halves.
    TaskNumber(Number),
    /// The core's number.
    Cpu(Number),
    /// The time in nanoseconds.
    Time(Clock),
}

/// A condition: `a COND b`, or for [`Cond::Set`] `a & b` not being 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) width: Width,
    pub(super) cond: Cond,
    pub(super) a: Name,
    pub(super) b: Rhs,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Const(u64),
    /// The address of a function of the program.
    Function(u32),
    Copy(Name),
    Binary {
        op: Binary,
        width: Width,
        a: Name,
        b: Rhs,
    },
    /// `c + a * b`, or `c - a * b`.
    MulAdd {
        subtract: bool,
        width: Width,
        a: Name,
        b: Rhs,
        c: Rhs,
    },
    Neg {
        width: Width,
        src: Name,
    },
    Field(Field),
    /// `width` bits from bit `lsb` on of `high` and `low` in a row.
    Extract {
        width: Width,
        high: Name,
        low: Name,
        lsb: u8,
    },
    Swap {
        kind: Swap,
        size: Size,
        src: Name,
    },
    /// `yes` if the test holds, else `no`; immediates are 0, 1 and -1.
    Select {
        test: Test,
        yes: Rhs,
        no: Rhs,
    },
    Load {
        size: Size,
        signed: bool,
        addr: Addr,
    },
    /// Immediates are 64 bits.
    Store {
        size: Size,
        addr: Addr,
        src: Rhs,
    },
    /// Two loads of W or Dw, the second `size` above the first.
    LoadPair {
        size: Size,
        base: Name,
        off: i32,
    },
    StorePair {
        size: Size,
        base: Name,
        off: i32,
        low: Rhs,
        high: Rhs,
    },
    Atomic {
        size: Size,
        op: AtomicOp,
        addr: Addr,
        src: Name,
        /// What memory is compared with.
        compared: Option<Name>,
    },
    LoadAcquire {
        size: Size,
        addr: Addr,
    },
    StoreRelease {
        size: Size,
        addr: Addr,
        src: Name,
    },
    /// `bpf_map_lookup_elem` in the (per-CPU) array of that index, whose key is at an address.
    Lookup {
        map: u32,
        key: Addr,
    },
    /// What a helper would answer.
    Ask(Question),
    /// Arguments are where the convention has them: in r1 to r5.
    Call {
        callee: Callee,
        arguments: NameSet,
    },
}

/// A node with the names that it defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) node: Node,
    pub(super) dst: Option<Name>,
    /// The second of a pair, or the base that an access updates.
    pub(super) also: Option<Name>,
    /// Index of the BPF instruction in the function; of several that became one, the last.
    pub(super) at: u32,
}

/// How a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// On to another block; whether by an instruction of the program.
    Goto { to: usize, explicit: bool },
    /// On to one of two blocks.
    Branch {
        test: Test,
        taken: usize,
        next: usize,
    },
    /// The function returns what a name holds.
    Exit(Name),
}

impl End {
    /// The blocks that may follow.
    pub(super) fn successors(self) -> impl Iterator<Item = usize> {
        let (first, second) = match self {
            Self::Goto { to, .. } => (Some(to), None),
            Self::Branch { taken, next, .. } => (Some(next), Some(taken)),
            Self::Exit(_) => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// Leads elsewhere.
    pub(super) fn redirect(&mut self, to: impl Fn(usize) -> usize) {
        match self {
            Self::Goto { to: block, .. } => *block = to(*block),
            Self::Branch { taken, next, .. } => (*taken, *next) = (to(*taken), to(*next)),
            Self::Exit(_) => {}
        }
    }

    pub(super) fn uses(mut self) -> NameSet {
        let mut uses = NameSet::default();
        self.each_name(&mut |name| uses.insert(*name));
        uses
    }

    /// Visits the names that are read.
    pub(super) fn each_name(&mut self, visit: &mut dyn FnMut(&mut Name)) {
        match self {
            Self::Goto { .. } => {}
            Self::Branch { test, .. } => test.each_name(visit),
            Self::Exit(name) => visit(name),
        }
    }
}

/// A straight run of steps.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) steps: Vec<Step>,
    pub(super) end: End,
    /// Index of the BPF instruction that ends it.
    pub(super) end_at: u32,
    pub(super) live_in: NameSet,
    /// Whether control can come here. Blocks where it cannot are not emitted.
    pub(super) reachable: bool,
}

impl Rhs {
    pub(super) fn each_name(&mut self, visit: &mut dyn FnMut(&mut Name)) {
        match self {
            Self::Name(name) | Self::Shifted(name, ..) | Self::Extended(name, ..) => visit(name),
            Self::Imm(_) => {}
        }
    }
}

impl Test {
    pub(super) fn each_name(&mut self, visit: &mut dyn FnMut(&mut Name)) {
        visit(&mut self.a);
        self.b.each_name(visit);
    }
}

impl Addr {
    pub(super) fn each_name(&mut self, visit: &mut dyn FnMut(&mut Name)) {
        visit(&mut self.base);
        if let Some(index) = &mut self.index {
            visit(&mut index.name);
        }
    }
}

impl Node {
    /// Visits the names that are read and may be others; not a call's arguments.
    pub(super) fn each_name(&mut self, visit: &mut dyn FnMut(&mut Name)) {
        match self {
            Self::Const(_) | Self::Function(_) | Self::Ask(_) => {}
            Self::Copy(name) | Self::Neg { src: name, .. } | Self::Swap { src: name, .. } => {
                visit(name)
            }
            Self::Field(field) => visit(&mut field.src),
            Self::Binary { a, b, .. } => {
                visit(a);
                b.each_name(visit);
            }
            Self::MulAdd { a, b, c, .. } => {
                visit(a);
                b.each_name(visit);
                c.each_name(visit);
            }
            Self::Extract { high, low, .. } => {
                visit(high);
                visit(low);
            }
            Self::Select { test, yes, no } => {
                test.each_name(visit);
                yes.each_name(visit);
                no.each_name(visit);
            }
            Self::Load { addr, .. } | Self::LoadAcquire { addr, .. } => addr.each_name(visit),
            Self::Lookup { key, .. } => key.each_name(visit),
            Self::Store { addr, src, .. } => {
                addr.each_name(visit);
                src.each_name(visit);
            }
            Self::StoreRelease { addr, src, .. } => {
                addr.each_name(visit);
                visit(src);
            }
            Self::LoadPair { base, .. } => visit(base),
            Self::StorePair {
                base, low, high, ..
            } => {
                visit(base);
                low.each_name(visit);
                high.each_name(visit);
            }
            Self::Atomic {
                addr,
                src,
                compared,
                ..
            } => {
                addr.each_name(visit);
                visit(src);
                if let Some(compared) = compared {
                    visit(compared);
                }
            }
            Self::Call { callee, .. } => {
                if let Callee::Register(name) = callee {
                    visit(name);
                }
            }
        }
    }

    /// Whether nothing but its result comes of it.
    pub(super) const fn is_pure(&self) -> bool {
        matches!(
            self,
            Self::Const(_)
                | Self::Function(_)
                | Self::Copy(_)
                | Self::Binary { .. }
                | Self::MulAdd { .. }
                | Self::Neg { .. }
                | Self::Field(_)
                | Self::Extract { .. }
                | Self::Swap { .. }
                | Self::Select { .. }
                | Self::Lookup { .. }
                | Self::Ask(_)
        )
    }

    /// Whether it is so and gives the same wherever it is done.
    pub(super) const fn is_value(&self) -> bool {
        self.is_pure() && !matches!(self, Self::Lookup { .. } | Self::Ask(_))
    }

    pub(super) const fn is_call(&self) -> bool {
        matches!(self, Self::Call { .. })
    }

    /// Whether it ends with an access to memory.
    pub(super) const fn accesses(&self) -> bool {
        matches!(
            self,
            Self::Load { .. }
                | Self::LoadPair { .. }
                | Self::LoadAcquire { .. }
                | Self::Store { .. }
                | Self::StorePair { .. }
                | Self::StoreRelease { .. }
                | Self::Atomic { .. }
                | Self::Ask(_)
        )
    }

    /// Whether memory may be another after it.
    pub(super) const fn writes(&self) -> bool {
        matches!(
            self,
            Self::Store { .. }
                | Self::StorePair { .. }
                | Self::StoreRelease { .. }
                | Self::LoadAcquire { .. }
                | Self::Atomic { .. }
                | Self::Call { .. }
        )
    }
}

impl Step {
    /// What it reads. `arguments` says which functions read which of theirs.
    pub(super) fn uses(&self, arguments: &[NameSet]) -> NameSet {
        let mut uses = NameSet::default();
        let mut node = self.node;
        node.each_name(&mut |name| uses.insert(*name));
        if let Node::Call {
            callee,
            arguments: given,
        } = self.node
        {
            let read = match callee {
                Callee::Local(function) => arguments.get(function as usize).copied(),
                _ => Some(given),
            };
            uses = uses.union(read.unwrap_or_default());
        }
        uses
    }

    /// The names that it defines.
    pub(super) fn defines(&self) -> impl Iterator<Item = Name> {
        self.dst.into_iter().chain(self.also)
    }

    /// The names whose old values do not survive it.
    pub(super) fn kills(&self) -> NameSet {
        let clobbered = if self.node.is_call() {
            NameSet::arguments()
        } else {
            NameSet::default()
        };
        NameSet::of(self.defines()).union(clobbered)
    }

    /// Whether it need not be there, with these names live after it.
    pub(super) fn is_dead(&self, live_out: NameSet) -> bool {
        self.node.is_pure() && self.dst.is_some_and(|name| !live_out.contains(name))
    }

    /// What is live before it, from what is live after it.
    pub(super) fn live_in(&self, live_out: NameSet, arguments: &[NameSet]) -> NameSet {
        if self.is_dead(live_out) {
            return live_out;
        }
        live_out.without(self.kills()).union(self.uses(arguments))
    }
}
