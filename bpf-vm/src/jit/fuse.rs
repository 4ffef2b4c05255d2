// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several steps of a block made one, where A64 has an instruction for them.
//!
//! A step takes in the one that made an operand if nobody else reads that value: not in this block, not after it. As
//! blocks begin where jumps lead, no jump leads between the two. What the inner step reads must still be there.
use alloc::{vec, vec::Vec};

use a64::{
    imm::ShiftKind,
    inst::{Extend, IndexExtend},
};

use super::{
    accesses::{pair, update_bases},
    facts::{Fact, Facts, facts},
    flow::{Arguments, Flow},
    ir::{
        Addr, Binary, Block, End, Field, Index, Name, NameSet, Node, Rhs, Step, Test, Update, bits,
    },
    lower::{truncated, with_constant},
    select::{compares, encodes},
    simplify::{ones, simplify},
};
use crate::isa::{Cond, Size, Width};

/// Above this many instructions what is known of values is not followed from block to block.
const MAX_FOLLOWED: usize = 1 << 16;

/// Fuses what can be in all blocks of a function, whose liveness is known.
pub(super) fn fuse(flow: &mut Flow<'_>, arguments: &Arguments) {
    let known = match flow.body.len() <= MAX_FOLLOWED {
        true => facts(flow),
        false => Vec::new(),
    };
    let at_start = |number: usize| known.get(number).copied().unwrap_or(Facts::NONE);
    for (number, block) in flow.blocks.iter_mut().enumerate() {
        if block.reachable {
            simplify(block, at_start(number));
        }
    }
    flow.remove_dead(arguments);
    for number in 0..flow.blocks.len() {
        let Some(block) = flow.blocks.get(number).filter(|b| b.reachable) else {
            continue;
        };
        let live = flow.live_behind(block);
        if let Some(block) = flow.blocks.get_mut(number) {
            Fusion::new(block, live, at_start(number)).run();
            block.steps.iter_mut().for_each(add_products);
            delay(block);
            update_bases(block);
            pair(block);
        }
    }
    flow.remove_dead(arguments);
}

/// The definition of a name that is not in the block.
const OUTSIDE: u32 = 0;

/// What is known of a step while the block is gone over.
#[derive(Clone, Copy)]
struct Seen {
    /// How often its result is read in the block.
    uses: u32,
    /// Whether it is read after it.
    escapes: bool,
    /// Whether another step has taken it in.
    gone: bool,
    /// The definitions of what it reads, in the order of [`Node::each_name`]: numbers of steps from 1.
    sources: [u32; 4],
    /// The definition of its result's name before it.
    before: u32,
    /// How many low bits of its result may be set.
    fact: Fact,
}

/// One block, gone over from its start.
struct Fusion<'a> {
    block: &'a mut Block,
    seen: Vec<Seen>,
    /// The definition of each name so far.
    last: [u32; Name::COUNT],
    /// The last step that writes memory, from 1.
    written: u32,
    entry: Facts,
    facts: Facts,
}

impl<'a> Fusion<'a> {
    fn new(block: &'a mut Block, live: NameSet, entry: Facts) -> Self {
        let seen = Seen {
            uses: 0,
            escapes: false,
            gone: false,
            sources: [OUTSIDE; 4],
            before: OUTSIDE,
            fact: Fact::ANY,
        };
        let mut seen = vec![seen; block.steps.len()];
        let mut last = [OUTSIDE; Name::COUNT];
        let mut read = |last: &[u32; Name::COUNT], name: Name, times| {
            let step = last.get(name.index()).and_then(|n| n.checked_sub(1));
            if let Some(seen) = step.and_then(|n| seen.get_mut(n as usize)) {
                seen.uses += times;
            }
        };
        for (number, step) in block.steps.iter_mut().enumerate() {
            let mut node = step.node;
            node.each_name(&mut |name| read(&last, *name, 1));
            if node.is_call() {
                // Arguments have to be where the call takes them: no one may take those steps in.
                NameSet::arguments()
                    .iter()
                    .for_each(|name| read(&last, name, 2));
            }
            for name in step.kills().iter() {
                if let Some(last) = last.get_mut(name.index()) {
                    *last = number as u32 + 1;
                }
            }
        }
        let mut end = block.end;
        end.each_name(&mut |name| read(&last, *name, 1));
        for name in live.iter() {
            let step = last.get(name.index()).and_then(|n| n.checked_sub(1));
            if let Some(seen) = step.and_then(|n| seen.get_mut(n as usize)) {
                seen.escapes = true;
            }
        }
        Self {
            block,
            seen,
            last: [OUTSIDE; Name::COUNT],
            written: OUTSIDE,
            entry,
            facts: entry,
        }
    }

    fn run(mut self) {
        for number in 0..self.block.steps.len() {
            let Some(&step) = self.block.steps.get(number) else {
                break;
            };
            let mut node = step.node;
            while let Some(better) = self.better(&node) {
                node = better;
            }
            self.define(number, Step { node, ..step });
        }
        while let End::Branch { test, taken, next } = self.block.end
            && let Some((test, inverted)) = self.better_test(&test)
        {
            let (taken, next) = if inverted {
                (next, taken)
            } else {
                (taken, next)
            };
            self.block.end = End::Branch { test, taken, next };
        }
        let mut gone = self.seen.iter().map(|seen| seen.gone);
        self.block.steps.retain(|_| !gone.next().unwrap_or(false));
    }

    fn last(&self, name: Name) -> u32 {
        self.last.get(name.index()).copied().unwrap_or(OUTSIDE)
    }

    /// Goes over a step that stays.
    fn define(&mut self, number: usize, step: Step) {
        let id = number as u32 + 1;
        let (mut sources, mut count) = ([OUTSIDE; 4], 0);
        let mut node = step.node;
        node.each_name(&mut |name| {
            if let Some(slot) = sources.get_mut(count) {
                *slot = self.last.get(name.index()).copied().unwrap_or(OUTSIDE);
            }
            count += 1;
        });
        let before = step.dst.map_or(OUTSIDE, |dst| self.last(dst));
        let fact = self.facts.result(&step.node);
        self.facts.step(&step);
        if let Some(seen) = self.seen.get_mut(number) {
            (seen.sources, seen.before, seen.fact) = (sources, before, fact);
        }
        for name in step.kills().iter() {
            if let Some(last) = self.last.get_mut(name.index()) {
                *last = id;
            }
        }
        if step.node.writes() {
            self.written = id;
        }
        if let Some(slot) = self.block.steps.get_mut(number) {
            *slot = step;
        }
    }

    /// The step that defined a name and may be taken in here, where `other` was taken in already; its number from 1.
    fn maker(&self, name: Name, other: Option<u32>) -> Option<(u32, Node)> {
        let id = self.last(name);
        let number = id.checked_sub(1)? as usize;
        let (step, seen) = (self.block.steps.get(number)?, self.seen.get(number)?);
        let alone = seen.uses == 1 && !seen.escapes && !seen.gone;
        let is_value =
            step.node.is_value() || matches!(step.node, Node::Load { .. }) && self.written < id;
        if !alone || !is_value || step.dst != Some(name) || step.also.is_some() {
            return None;
        }
        // What it reads must be what it was, were the two gone.
        let now = |name: Name| {
            let mut last = self.last(name);
            while last == id || Some(last) == other {
                let step = self.seen.get(last.checked_sub(1)? as usize)?;
                last = step.before;
            }
            Some(last)
        };
        let (mut node, mut same, mut count) = (step.node, true, 0);
        node.each_name(&mut |name| {
            same &= *name == Name::FP || seen.sources.get(count).copied() == now(*name);
            count += 1;
        });
        (same && count <= seen.sources.len()).then_some((id, step.node))
    }

    /// Takes a step out: another has taken it in.
    fn take(&mut self, id: u32) {
        let Some(number) = id.checked_sub(1).map(|n| n as usize) else {
            return;
        };
        if let Some((seen, step)) = self.seen.get_mut(number).zip(self.block.steps.get(number)) {
            seen.gone = true;
            if let Some(last) = step.dst.and_then(|dst| self.last.get_mut(dst.index()))
                && *last == id
            {
                *last = seen.before;
            }
        }
    }

    /// The field that a name is.
    fn field(&self, name: Name, other: Option<u32>) -> Option<(u32, Field)> {
        match self.maker(name, other)? {
            (id, Node::Field(field)) if field.src != Name::FP => Some((id, field)),
            _ => None,
        }
    }

    /// How many low bits of what a step reads first may be set.
    fn source_bits(&self, id: u32, name: Name) -> u8 {
        let seen = |id: u32| self.seen.get(id.checked_sub(1)? as usize);
        match seen(id).map(|seen| seen.sources[0]) {
            Some(OUTSIDE) => self.entry.of(name).bits(),
            Some(source) => seen(source).map_or(64, |seen| seen.fact.bits()),
            None => 64,
        }
    }

    /// The same by one step less, which is taken out.
    fn better(&mut self, node: &Node) -> Option<Node> {
        match *node {
            Node::Field(field) => self.better_field(field),
            Node::Binary { op, width, a, b } => self.better_binary(op, width, a, b),
            Node::Load { size, signed, addr } => {
                let addr = self.better_address(addr, size, true)?;
                Some(Node::Load { size, signed, addr })
            }
            Node::Store { size, addr, src } => {
                if let Rhs::Name(name) = src
                    && let Some((id, field)) = self.field(name, None)
                    && field.keeps_low(size.bits())
                {
                    self.take(id);
                    let src = Rhs::Name(field.src);
                    return Some(Node::Store { size, addr, src });
                }
                let addr = self.better_address(addr, size, true)?;
                Some(Node::Store { size, addr, src })
            }
            Node::Lookup { map, key } => {
                let key = self.better_address(key, Size::W, true)?;
                Some(Node::Lookup { map, key })
            }
            Node::Atomic {
                size,
                op,
                addr,
                src,
                compared,
            } => Some(Node::Atomic {
                size,
                op,
                addr: self.better_address(addr, size, false)?,
                src,
                compared,
            }),
            Node::LoadAcquire { size, addr } => {
                let addr = self.better_address(addr, size, false)?;
                Some(Node::LoadAcquire { size, addr })
            }
            Node::StoreRelease { size, addr, src } => {
                let addr = self.better_address(addr, size, false)?;
                Some(Node::StoreRelease { size, addr, src })
            }
            Node::Select { test, yes, no } => {
                let (test, inverted) = self.better_test(&test)?;
                let (yes, no) = if inverted { (no, yes) } else { (yes, no) };
                Some(Node::Select { test, yes, no })
            }
            _ => None,
        }
    }

    fn better_field(&mut self, field: Field) -> Option<Node> {
        let (id, inner) = self.maker(field.src, None)?;
        let whole = field.lsb == 0 && field.at == 0;
        let node = match inner {
            Node::Field(inner) => Node::Field(field.of(inner)?),
            // A sign extending load.
            Node::Load {
                size,
                signed: false,
                addr,
            } if field.signed
                && field.width == Width::W64
                && whole
                && u32::from(field.len) == size.bits() =>
            {
                let signed = true;
                Node::Load { size, signed, addr }
            }
            // The low half of a 64-bit result is the 32-bit operation's.
            Node::Binary {
                op:
                    op @ (Binary::Add
                    | Binary::Sub
                    | Binary::Mul
                    | Binary::And
                    | Binary::Or
                    | Binary::Xor),
                width: Width::W64,
                a,
                b,
            } if a != Name::FP && field == Field::low(field.src, 32) => {
                let b = match b {
                    Rhs::Name(_) => b,
                    Rhs::Imm(value) => Rhs::Imm(truncated(Width::W32, value)),
                    _ => return None,
                };
                let width = Width::W32;
                Node::Binary { op, width, a, b }
            }
            _ => return None,
        };
        self.take(id);
        Some(node)
    }

    fn better_binary(&mut self, op: Binary, width: Width, a: Name, b: Rhs) -> Option<Node> {
        let with = |a, b| Some(Node::Binary { op, width, a, b });
        let name = match b {
            Rhs::Name(name) if name != Name::FP => name,
            Rhs::Imm(value) => return self.better_with_constant(op, width, a, value),
            _ => return self.low_half(a, width).and_then(|a| with(a, b)),
        };
        if let Some(a) = self.low_half(a, width) {
            return with(a, b);
        }
        if let Some(name) = self.low_half(name, width) {
            return with(a, Rhs::Name(name));
        }
        if matches!(op, Binary::Or | Binary::Xor | Binary::Add)
            && let Some(node) = self.extract(width, a, name)
        {
            return Some(node);
        }
        if matches!(op, Binary::Add | Binary::Sub) {
            let subtract = op == Binary::Sub;
            if let Some(node) = self.multiply(width, name, Rhs::Name(a), subtract) {
                return Some(node);
            }
            if !subtract && let Some(node) = self.multiply(width, a, b, false) {
                return Some(node);
            }
        }
        if op.is_logical() && matches!(op, Binary::And | Binary::Or | Binary::Xor) {
            let sides = [(a, name), (name, a)];
            for (a, name) in sides {
                if let Some((id, src)) = self.inverted(name, width) {
                    self.take(id);
                    let op = match op {
                        Binary::And => Binary::AndNot,
                        Binary::Or => Binary::OrNot,
                        _ => Binary::XorNot,
                    };
                    let b = Rhs::Name(src);
                    return Some(Node::Binary { op, width, a, b });
                }
            }
        }
        let takes_shift = op.is_logical() || matches!(op, Binary::Add | Binary::Sub);
        if takes_shift {
            let adds = !op.is_logical();
            if let Some(b) = self.shifted(name, width, adds) {
                return with(a, b);
            }
            if op.commutes()
                && let Some(b) = self.shifted(a, width, adds)
            {
                return with(name, b);
            }
        }
        None
    }

    /// What a name is the complement of.
    fn inverted(&self, name: Name, width: Width) -> Option<(u32, Name)> {
        let (id, node) = self.maker(name, None)?;
        match node {
            Node::Binary {
                op: Binary::Xor,
                width: inner,
                a,
                b: Rhs::Imm(value),
            } if value == truncated(inner, u64::MAX) && (inner == width || width == Width::W32) => {
                Some((id, a))
            }
            _ => None,
        }
    }

    /// Adds to what was added, shifts what was shifted.
    fn better_with_constant(
        &mut self,
        op: Binary,
        width: Width,
        a: Name,
        value: u64,
    ) -> Option<Node> {
        if let Some(a) = self.low_half(a, width) {
            let b = Rhs::Imm(value);
            return Some(Node::Binary { op, width, a, b });
        }
        let (id, inner) = self.maker(a, None)?;
        let node = match (op, inner) {
            (
                Binary::Add,
                Node::Binary {
                    op: Binary::Add,
                    width: inner,
                    a,
                    b: Rhs::Imm(first),
                },
            ) if a != Name::FP && (inner == width || width == Width::W32) => {
                let sum = truncated(width, first.wrapping_add(value));
                with_constant(Binary::Add, width, a, sum).unwrap_or(Node::Copy(a))
            }
            // A product and a constant, which comes into a register once if it is in a loop.
            (
                Binary::Add,
                Node::Binary {
                    op: Binary::Mul,
                    width: inner,
                    a,
                    b,
                },
            ) if (inner == width || width == Width::W32) && !encodes(op, width, value) => {
                Node::MulAdd {
                    subtract: false,
                    width,
                    a,
                    b,
                    c: Rhs::Imm(value),
                }
            }
            _ => return None,
        };
        self.take(id);
        Some(node)
    }

    /// The name that a 32-bit operation may read instead: one with the same low half.
    fn low_half(&mut self, name: Name, width: Width) -> Option<Name> {
        if width != Width::W32 {
            return None;
        }
        let (id, field) = self.field(name, None)?;
        if !field.keeps_low(32) {
            return None;
        }
        self.take(id);
        Some(field.src)
    }

    /// Two shifts whose results are put together: a rotation, or bits out of two registers.
    fn extract(&mut self, width: Width, a: Name, b: Name) -> Option<Node> {
        let size = bits(width);
        for (high, low) in [(a, b), (b, a)] {
            let Some((first, upper)) = self.field(high, None) else {
                continue;
            };
            let Some((second, lower)) = self.field(low, Some(first)) else {
                continue;
            };
            let up = upper.at;
            let fits = upper.lsb == 0
                && (1..size).contains(&up)
                && upper.len >= size - up
                && !lower.signed
                && lower.at == 0
                && lower.lsb == size - up
                && lower.len == up
                && (width == Width::W64 || upper.at + upper.len <= 64);
            // A wider left part would show above the width.
            if fits && first != second {
                self.take(first);
                self.take(second);
                return Some(Node::Extract {
                    width,
                    high: upper.src,
                    low: lower.src,
                    lsb: size - up,
                });
            }
        }
        None
    }

    /// `c + name` or `c - name` where `name` is a product.
    fn multiply(&mut self, width: Width, name: Name, c: Rhs, subtract: bool) -> Option<Node> {
        match self.maker(name, None)? {
            (
                id,
                Node::Binary {
                    op: Binary::Mul,
                    width: inner,
                    a,
                    b: b @ (Rhs::Name(_) | Rhs::Imm(_)),
                },
            ) if inner == width || width == Width::W32 => {
                self.take(id);
                Some(Node::MulAdd {
                    subtract,
                    width,
                    a,
                    b,
                    c,
                })
            }
            _ => None,
        }
    }

    /// A name as a shifted or (in additions and comparisons) extended register.
    fn shifted(&mut self, name: Name, width: Width, adds: bool) -> Option<Rhs> {
        let (id, field) = self.field(name, None)?;
        let rhs = match shift(field, width) {
            Some((kind, by)) => Rhs::Shifted(field.src, kind, by),
            None if adds => {
                let (extend, by) = extension(field, width)?;
                Rhs::Extended(field.src, extend, by)
            }
            None => return None,
        };
        self.take(id);
        Some(rhs)
    }

    /// An address with what its base or index was made of.
    fn better_address(&mut self, addr: Addr, size: Size, indexed: bool) -> Option<Addr> {
        if addr.update != Update::None {
            return None;
        }
        let log2 = size.log2() as u8;
        if let Some(index) = addr.index {
            let plain = index.extend == IndexExtend::Lsl && !index.scaled;
            let (id, field) = self.field(index.name, None).filter(|_| plain)?;
            let (extend, by) = match (shift(field, Width::W64), extension(field, Width::W64)) {
                (Some((ShiftKind::Lsl, by)), _) => (IndexExtend::Lsl, by),
                (_, Some((Extend::Uxtw, by))) => (IndexExtend::Uxtw, by),
                (_, Some((Extend::Sxtw, by))) => (IndexExtend::Sxtw, by),
                _ => return None,
            };
            if by != 0 && by != log2 {
                return None;
            }
            self.take(id);
            let index = Index {
                name: field.src,
                extend,
                scaled: by != 0,
            };
            return Some(Addr {
                index: Some(index),
                ..addr
            });
        }
        let (id, node) = self.maker(addr.base, None)?;
        let Node::Binary {
            op: Binary::Add,
            width: Width::W64,
            a,
            b,
        } = node
        else {
            return None;
        };
        let (name, extend, by) = match b {
            Rhs::Imm(value) => {
                let off = i64::from(addr.off).checked_add(value as i64)?;
                let off = i32::try_from(off).ok()?;
                let reaches = match a {
                    Name::FP => (-512..=0).contains(&off),
                    _ => indexed && reaches(off, size),
                };
                if !reaches {
                    return None;
                }
                self.take(id);
                return Some(Addr {
                    base: a,
                    off,
                    ..addr
                });
            }
            Rhs::Name(name) => (name, IndexExtend::Lsl, 0),
            Rhs::Shifted(name, ShiftKind::Lsl, by) => (name, IndexExtend::Lsl, by),
            Rhs::Extended(name, Extend::Uxtw, by) => (name, IndexExtend::Uxtw, by),
            Rhs::Extended(name, Extend::Sxtw, by) => (name, IndexExtend::Sxtw, by),
            _ => return None,
        };
        let fits = indexed && addr.off == 0 && (by == 0 || by == log2);
        if !fits || a == Name::FP || name == Name::FP {
            return None;
        }
        self.take(id);
        Some(Addr {
            base: a,
            index: Some(Index {
                name,
                extend,
                scaled: by != 0,
            }),
            ..addr
        })
    }

    /// A test with what its operands were made of, and whether it now holds if it did not before.
    fn better_test(&mut self, test: &Test) -> Option<(Test, bool)> {
        let Test { width, cond, a, b } = *test;
        if a == Name::FP || b == Rhs::Name(Name::FP) {
            return None;
        }
        if let Some(a) = self.low_half(a, width) {
            return Some((Test { a, ..*test }, false));
        }
        if let Rhs::Name(name) = b {
            if let Some(name) = self.low_half(name, width) {
                let b = Rhs::Name(name);
                return Some((Test { b, ..*test }, false));
            }
            let adds = cond != Cond::Set;
            if let Some(b) = self.shifted(name, width, adds) {
                return Some((Test { b, ..*test }, false));
            }
            if let Some(b) = self.shifted(a, width, adds) {
                let cond = mirrored(cond);
                let test = Test {
                    width,
                    cond,
                    a: name,
                    b,
                };
                return Some((test, false));
            }
            return None;
        }
        let Rhs::Imm(value) = b else { return None };
        let (id, node) = self.maker(a, None)?;
        let set = |width, a, b| Test {
            width,
            cond: Cond::Set,
            a,
            b,
        };
        let better = match (cond, node) {
            // Whether some bits are 0.
            (
                Cond::Eq | Cond::Ne,
                Node::Binary {
                    op: Binary::And,
                    width: inner,
                    a,
                    b,
                },
            ) if value == 0 && (inner == Width::W32 || width == Width::W64) => {
                (set(inner, a, b), cond == Cond::Eq)
            }
            (Cond::Eq | Cond::Ne, Node::Field(field))
                if value == 0
                    && !field.signed
                    && (width == Width::W64 || field.at + field.len <= 32) =>
            {
                let mask = ones(field.len) << field.lsb;
                let bits = Rhs::Imm(mask);
                if mask == u64::MAX {
                    return None;
                }
                (set(Width::W64, field.src, bits), cond == Cond::Eq)
            }
            (Cond::Set, Node::Field(field)) if !field.signed => {
                let mask = (value >> field.at & ones(field.len)) << field.lsb;
                let test = set(Width::W64, field.src, Rhs::Imm(mask));
                if mask == 0 || !compares(&test, mask) {
                    return None;
                }
                (test, false)
            }
            // `(x - c) & 255 > k` where x is a byte: without the mask a negative difference is greater too.
            (Cond::Gt | Cond::Ge | Cond::Lt | Cond::Le, Node::Field(field))
                if !field.signed && field.lsb == 0 && field.at == 0 && field.len <= 16 =>
            {
                // Not what the name is now, which is this field.
                let difference = self.seen.get(id.checked_sub(1)? as usize)?.sources[0];
                let number = difference.checked_sub(1)? as usize;
                let (Some(step), range) = (self.block.steps.get(number), 1_u64 << field.len) else {
                    return None;
                };
                let Node::Binary {
                    op: Binary::Add,
                    a: x,
                    b: Rhs::Imm(added),
                    ..
                } = step.node
                else {
                    return None;
                };
                let taken_off = u64::from((added as u32).wrapping_neg());
                let limit = range.checked_sub(taken_off)?;
                let is_low = self.source_bits(difference, x) <= field.len;
                if step.dst != Some(field.src) || taken_off == 0 || !is_low || value >= limit {
                    return None;
                }
                let width = Width::W32;
                let (a, b) = (field.src, Rhs::Imm(value));
                (Test { width, cond, a, b }, false)
            }
            _ => return None,
        };
        self.take(id);
        Some(better)
    }
}

/// Makes a value only right before it is copied, where what the copy replaces is still read: then both can have one
/// register.
fn delay(block: &mut Block) {
    /// How far apart the two may be.
    const WINDOW: usize = 32;
    for number in 0..block.steps.len() {
        let Some((Node::Copy(made), Some(copy))) =
            block.steps.get(number).map(|step| (step.node, step.dst))
        else {
            continue;
        };
        let (mut read, mut defined) = (NameSet::default(), NameSet::default());
        let mut maker = None;
        for n in (number.saturating_sub(WINDOW)..number).rev() {
            let Some(step) = block.steps.get(n) else {
                break;
            };
            let uses = step.uses(&[]);
            if step.dst == Some(made) {
                let unchanged = uses.without(defined) == uses;
                let value = step.node.is_value() && step.also.is_none();
                // The copy's old value is read meanwhile, this one is not.
                let useful = read.contains(copy) && !read.contains(made);
                maker = (unchanged && value && useful).then_some(n);
                break;
            }
            // Which arguments a call of a local function reads is not known here.
            if step.node.is_call() || step.kills().contains(made) {
                break;
            }
            read = read.union(uses);
            defined = defined.union(step.kills());
        }
        if let Some(steps) = maker.and_then(|n| block.steps.get_mut(n..number)) {
            steps.rotate_left(1);
        }
    }
}

/// A product with a power of two and one more is a sum, which needs no constant.
fn add_products(step: &mut Step) {
    if let Node::Binary {
        op: op @ Binary::Mul,
        b,
        a,
        ..
    } = &mut step.node
        && let Rhs::Imm(value) = *b
        && let Some(power) = value.checked_sub(1).filter(|power| power.is_power_of_two())
        && power > 1
    {
        *op = Binary::Add;
        *b = Rhs::Shifted(*a, ShiftKind::Lsl, power.trailing_zeros() as u8);
    }
}

/// The condition with its operands exchanged.
const fn mirrored(cond: Cond) -> Cond {
    match cond {
        Cond::Gt => Cond::Lt,
        Cond::Ge => Cond::Le,
        Cond::Lt => Cond::Gt,
        Cond::Le => Cond::Ge,
        Cond::Sgt => Cond::Slt,
        Cond::Sge => Cond::Sle,
        Cond::Slt => Cond::Sgt,
        Cond::Sle => Cond::Sge,
        Cond::Eq | Cond::Ne | Cond::Set => cond,
    }
}

/// Whether an access of that size has such an offset in one instruction.
const fn reaches(off: i32, size: Size) -> bool {
    let bytes = size.bytes() as i32;
    (off >= -256 && off <= 255) || (off >= 0 && off <= 4095 * bytes && off % bytes == 0)
}

/// A field as a shift of the whole register, as an operation of that width sees it.
fn shift(field: Field, width: Width) -> Option<(ShiftKind, u8)> {
    let Field {
        signed,
        lsb,
        len,
        at,
        ..
    } = field;
    let size = bits(width);
    let left = lsb == 0 && at > 0 && at < size;
    // What is shifted out does not matter, and neither does what a 32-bit operation does not read.
    if left && (len == size - at && !signed || width == Width::W32 && len > size - at) {
        return Some((ShiftKind::Lsl, at));
    }
    if left && width == Width::W32 && len == size - at {
        return Some((ShiftKind::Lsl, at));
    }
    let right = at == 0 && lsb > 0 && lsb + len == size;
    match signed {
        false if right => Some((ShiftKind::Lsr, lsb)),
        true if right && field.width == width => Some((ShiftKind::Asr, lsb)),
        _ => None,
    }
}

/// A field as an extension of a part of the register, then a shift.
fn extension(field: Field, width: Width) -> Option<(Extend, u8)> {
    let Field {
        signed,
        lsb,
        len,
        at,
        ..
    } = field;
    let as_wide = !signed || field.width == Width::W64 || width == Width::W32;
    if lsb != 0 || at > 4 || !as_wide {
        return None;
    }
    let extend = match (len, signed) {
        (8, false) => Extend::Uxtb,
        (16, false) => Extend::Uxth,
        (32, false) if width == Width::W64 => Extend::Uxtw,
        (8, true) => Extend::Sxtb,
        (16, true) => Extend::Sxth,
        (32, true) if width == Width::W64 => Extend::Sxtw,
        _ => return None,
    };
    Some((extend, at))
}
