// SPDX-License-Identifier: MIT OR Apache-2.0
//! Neighbouring accesses: those whose base grows by them update it, and two side by side are one.
use alloc::vec;

use super::ir::{Addr, Binary, Block, Name, Node, Rhs, Step, Update};
use crate::isa::{Size, Width};

/// Lets accesses update their base where it grows right after or before them.
pub(super) fn update_bases(block: &mut Block) {
    let mut gone = vec![false; block.steps.len()];
    for number in 0..block.steps.len() {
        let Some((other, update)) = growth(block, &gone, number) else {
            continue;
        };
        let Some((step, gone)) = block.steps.get_mut(number).zip(gone.get_mut(other)) else {
            continue;
        };
        if let Node::Load { addr, .. } | Node::Store { addr, .. } = &mut step.node {
            (addr.off, addr.update) = (0, update);
            step.also = Some(addr.base);
            *gone = true;
        }
    }
    let mut gone = gone.into_iter();
    block.steps.retain(|_| !gone.next().unwrap_or(false));
}

/// The step near an access by which its base grows, and how that and the access are one.
fn growth(block: &Block, gone: &[bool], number: usize) -> Option<(usize, Update)> {
    /// How far apart the two may be.
    const WINDOW: usize = 8;
    let access = block.steps.get(number)?;
    let (addr, stored) = match access.node {
        Node::Load { addr, .. } => (addr, None),
        Node::Store { addr, src, .. } => (addr, Some(src)),
        _ => return None,
    };
    let base = addr.base;
    let clash = access.dst == Some(base) || stored == Some(Rhs::Name(base));
    if !addr.is_plain() || base == Name::FP || clash {
        return None;
    }
    let grows = |step: &Step| match step.node {
        Node::Binary {
            op: Binary::Add,
            width: Width::W64,
            a,
            b: Rhs::Imm(value),
        } if a == base && step.dst == Some(base) => {
            let by = i16::try_from(value as i64).ok()?;
            (-256..256).contains(&by).then_some(by)
        }
        _ => None,
    };
    let near = |n: usize| {
        let step = block.steps.get(n)?;
        (gone.get(n) == Some(&false)).then_some((n, step))
    };
    // Which arguments a call of a local function reads is not known here.
    let touches =
        |step: &Step| step.node.is_call() || step.uses(&[]).union(step.kills()).contains(base);
    for (n, step) in (number + 1..number + 1 + WINDOW).filter_map(near) {
        if let Some(by) = grows(step) {
            return match addr.off {
                0 => Some((n, Update::Post(by))),
                off if off == i32::from(by) => Some((n, Update::Pre(by))),
                _ => None,
            };
        }
        if touches(step) {
            break;
        }
    }
    for (n, step) in (number.saturating_sub(WINDOW)..number)
        .rev()
        .filter_map(near)
    {
        if let Some(by) = grows(step) {
            return (addr.off == 0).then_some((n, Update::Pre(by)));
        }
        if touches(step) {
            break;
        }
    }
    None
}

/// Makes two loads or two stores side by side one.
pub(super) fn pair(block: &mut Block) {
    let mut last: Option<usize> = None;
    let mut gone = vec![false; block.steps.len()];
    for number in 0..block.steps.len() {
        let before = last.and_then(|n| block.steps.get(n)).copied();
        let both = before.zip(block.steps.get(number).copied());
        let step = both.and_then(|(first, second)| paired(&first, &second));
        if let Some(step) = step
            && let Some((slot, gone)) = block
                .steps
                .get_mut(number)
                .zip(last.and_then(|n| gone.get_mut(n)))
        {
            (*slot, *gone) = (step, true);
        }
        last = Some(number);
    }
    let mut gone = gone.into_iter();
    block.steps.retain(|_| !gone.next().unwrap_or(false));
}

/// Two accesses as one.
fn paired(first: &Step, second: &Step) -> Option<Step> {
    let joins = |size: Size, a: Addr, other: Size, b: Addr| {
        let bytes = size.bytes() as i32;
        let lower = a.off.min(b.off);
        let fits = size == other
            && size >= Size::W
            && a.is_plain()
            && b.is_plain()
            && a.base == b.base
            && (a.off - b.off).abs() == bytes
            && lower % bytes == 0
            && (-64 * bytes..64 * bytes).contains(&lower);
        fits.then_some(lower)
    };
    match (first.node, second.node) {
        (
            Node::Load { size, signed, addr },
            Node::Load {
                size: other,
                signed: too,
                addr: next,
            },
        ) if !(signed || too) => {
            let off = joins(size, addr, other, next)?;
            if first.dst == Some(addr.base) || first.dst == second.dst {
                return None;
            }
            let (low, high) = if addr.off == off {
                (first.dst, second.dst)
            } else {
                (second.dst, first.dst)
            };
            Some(Step {
                node: Node::LoadPair {
                    size,
                    base: addr.base,
                    off,
                },
                dst: low,
                also: high,
                at: second.at,
            })
        }
        (
            Node::Store { size, addr, src },
            Node::Store {
                size: other,
                addr: next,
                src: then,
            },
        ) => {
            let off = joins(size, addr, other, next)?;
            let (low, high) = if addr.off == off {
                (src, then)
            } else {
                (then, src)
            };
            Some(Step {
                node: Node::StorePair {
                    size,
                    base: addr.base,
                    off,
                    low,
                    high,
                },
                dst: None,
                also: None,
                at: second.at,
            })
        }
        _ => None,
    }
}
