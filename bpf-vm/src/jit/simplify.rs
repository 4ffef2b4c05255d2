// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies read where they come from, and constants where an instruction can hold them.
use super::{
    facts::Facts,
    ir::{Binary, Block, End, Name, Node, Rhs, Test},
    lower::{truncated, with_constant},
    select::{compares, encodes},
};
use crate::isa::Width;

/// Reads copies where they come from and constants where they fit.
pub(super) fn simplify(block: &mut Block, mut facts: Facts) {
    let mut copies = [None::<Name>; Name::COUNT];
    for step in &mut block.steps {
        rename(&mut step.node, &copies);
        if let Some(node) = constants(&step.node, &facts) {
            step.node = node;
        }
        facts.step(step);
        for name in step.kills().iter() {
            if let Some(copy) = copies.get_mut(name.index()) {
                *copy = None;
            }
            copies
                .iter_mut()
                .filter(|copy| **copy == Some(name))
                .for_each(|copy| *copy = None);
        }
        if let (Some(dst), Node::Copy(src)) = (step.dst, step.node)
            && dst != src
            && let Some(copy) = copies.get_mut(dst.index())
        {
            *copy = Some(src);
        }
    }
    let source = |name: &mut Name| {
        if let Some(copy) = copies.get(name.index()).copied().flatten()
            && copy != Name::FP
        {
            *name = copy;
        }
    };
    block.end.each_name(&mut { source });
    if let End::Branch { test, .. } = &mut block.end {
        *test = constant_test(*test, &facts);
    }
}

/// Reads copies where they come from. r10 only where it costs nothing.
fn rename(node: &mut Node, copies: &[Option<Name>; Name::COUNT]) {
    let of = |name: Name| copies.get(name.index()).copied().flatten();
    let free = match node {
        Node::Load { addr, .. }
        | Node::Store { addr, .. }
        | Node::Atomic { addr, .. }
        | Node::LoadAcquire { addr, .. }
        | Node::StoreRelease { addr, .. }
        | Node::Lookup { key: addr, .. } => Some(&mut addr.base),
        Node::Copy(src) => Some(src),
        Node::Binary {
            op: Binary::Add,
            width: Width::W64,
            a,
            b: Rhs::Imm(_),
        } => Some(a),
        _ => None,
    };
    if let Some(name) = free
        && of(*name) == Some(Name::FP)
    {
        *name = Name::FP;
    }
    node.each_name(&mut |name| {
        if let Some(copy) = of(*name).filter(|copy| *copy != Name::FP) {
            *name = copy;
        }
    });
}

/// The node with what is known of its operands, if that makes it another.
fn constants(node: &Node, facts: &Facts) -> Option<Node> {
    let constant = |rhs: Rhs| match rhs {
        Rhs::Name(name) => facts.of(name).constant(),
        _ => None,
    };
    match *node {
        Node::Copy(name) => {
            // Not dearer than a move.
            let small = |value: &u64| (*value).min(!*value) <= 0xffff;
            facts.of(name).constant().filter(small).map(Node::Const)
        }
        Node::Field(field) => {
            if let Some(value) = facts.of(field.src).constant()
                && !field.signed
            {
                let low = value >> field.lsb & ones(field.len);
                return Some(Node::Const(low << field.at));
            }
            let whole = !field.signed && field.keeps_low(facts.of(field.src).bits().into());
            whole.then_some(Node::Copy(field.src))
        }
        Node::Binary { op, width, a, b } => {
            if let Some(value) = constant(b) {
                let value = truncated(width, value);
                let simple = with_constant(op, width, a, value);
                return match simple {
                    None => Some(Node::Copy(a)),
                    Some(Node::Binary {
                        op,
                        b: Rhs::Imm(value),
                        ..
                    }) if !encodes(op, width, value) => None,
                    simple => simple,
                };
            }
            // A constant on the left moves to the right.
            let (value, Rhs::Name(other)) = (facts.of(a).constant()?, b) else {
                return None;
            };
            let fits = op.commutes() && encodes(op, width, truncated(width, value));
            (fits && other != Name::FP)
                .then(|| with_constant(op, width, other, truncated(width, value)))
                .flatten()
        }
        Node::Store { size, addr, src } if constant(src) == Some(0) => Some(Node::Store {
            size,
            addr,
            src: Rhs::Imm(0),
        }),
        Node::Select { test, yes, no } => {
            let arm = |rhs| match constant(rhs) {
                Some(value @ (0 | 1 | u64::MAX)) => Rhs::Imm(value),
                _ => rhs,
            };
            let (test, yes, no) = (constant_test(test, facts), arm(yes), arm(no));
            Some(Node::Select { test, yes, no })
        }
        _ => None,
    }
}

/// The test with a constant in it, if it fits.
fn constant_test(test: Test, facts: &Facts) -> Test {
    let Rhs::Name(name) = test.b else { return test };
    match facts.of(name).constant() {
        Some(value) if compares(&test, truncated(test.width, value)) => Test {
            b: Rhs::Imm(truncated(test.width, value)),
            ..test
        },
        _ => test,
    }
}

/// So many low bits set.
pub(super) const fn ones(len: u8) -> u64 {
    if len >= 64 { u64::MAX } else { (1 << len) - 1 }
}
