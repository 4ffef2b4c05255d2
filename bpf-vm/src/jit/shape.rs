// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shape of a function: which blocks there are, and in which order they are emitted.
//!
//! Jumps to jumps lead where those lead, a choice between two values becomes a select, a block that only one other
//! leads to is joined with it, and where a short block would be jumped to it is copied. So a loop with its test at the top
//! gets one at its bottom too, and ends in one branch.
use alloc::{collections::BTreeMap, vec, vec::Vec};

use super::{
    flow::Flow,
    ir::{End, Name, Node, Rhs, Step},
    loops::{Loop, loops},
    select::needs_no_flags,
};

/// The most steps of a block that is copied.
const MAX_COPIED: usize = 8;
/// How often in a row.
const ROUNDS: usize = 4;

/// Brings a function into shape; its liveness is not known yet.
pub(super) fn shape(flow: &mut Flow<'_>) {
    thread(flow);
    flow.find_reachable();
    select(flow);
    merge(flow);
    copy(flow);
    thread(flow);
    flow.find_reachable();
    merge(flow);
}

/// Leads jumps to blocks that only jump on to where those jump.
fn thread(flow: &mut Flow<'_>) {
    let mut to: Vec<_> = (0..flow.blocks.len()).collect();
    for (number, block) in flow.blocks.iter().enumerate() {
        if let End::Goto { to: next, .. } = block.end
            && block.steps.is_empty()
            && let Some(slot) = to.get_mut(number)
        {
            *slot = next;
        }
    }
    // Each jump is followed a few steps only: a circle of jumps has no end.
    for _ in 0..ROUNDS {
        let before = to.clone();
        for slot in &mut to {
            *slot = before.get(*slot).copied().unwrap_or(*slot);
        }
    }
    for block in &mut flow.blocks {
        block
            .end
            .redirect(|block| to.get(block).copied().unwrap_or(block));
        if let End::Branch { taken, next, .. } = block.end
            && taken == next
        {
            block.end = End::Goto {
                to: next,
                explicit: false,
            };
        }
    }
}

/// How many ends lead to each block.
fn predecessors(flow: &Flow<'_>) -> Vec<u32> {
    let mut count = vec![0; flow.blocks.len()];
    for next in flow.reachable().flat_map(|(_, b)| b.end.successors()) {
        if let Some(count) = count.get_mut(next) {
            *count += 1;
        }
    }
    count
}

/// A branch around one move becomes a select: a comparison and it, whichever way it goes.
fn select(flow: &mut Flow<'_>) {
    let predecessors = predecessors(flow);
    for number in 0..flow.blocks.len() {
        let Some(block) = flow.blocks.get(number).filter(|b| b.reachable) else {
            continue;
        };
        let End::Branch { test, taken, next } = block.end else {
            continue;
        };
        let found = skipped_move(flow, &predecessors, next, taken).map(|f| (f, false));
        let found = found.or_else(|| {
            let found = skipped_move(flow, &predecessors, taken, next);
            found.map(|f| (f, true))
        });
        let Some(((step, value), if_it_holds)) = found.filter(|_| !needs_no_flags(&test)) else {
            continue;
        };
        let Some(old) = step.dst.map(Rhs::Name) else {
            continue;
        };
        let (yes, no) = if if_it_holds {
            (value, old)
        } else {
            (old, value)
        };
        let (middle, to) = if if_it_holds {
            (taken, next)
        } else {
            (next, taken)
        };
        let node = Node::Select { test, yes, no };
        if let Some(block) = flow.blocks.get_mut(number) {
            block.steps.push(Step { node, ..step });
            // Where both ways lead may be copied here.
            block.end = End::Goto { to, explicit: true };
        }
        if let Some(middle) = flow.blocks.get_mut(middle) {
            middle.reachable = false;
        }
    }
}

/// The one step of block `middle`, and what it moves, if it goes on to `end` and only one block leads to it.
fn skipped_move(
    flow: &Flow<'_>,
    predecessors: &[u32],
    middle: usize,
    end: usize,
) -> Option<(Step, Rhs)> {
    let block = flow.blocks.get(middle).filter(|b| b.reachable)?;
    let goes_on = matches!(block.end, End::Goto { to, .. } if to == end);
    if predecessors.get(middle) != Some(&1) || !goes_on {
        return None;
    }
    let [step] = block.steps[..] else { return None };
    let value = match step.node {
        Node::Copy(name) if name != Name::FP => Rhs::Name(name),
        Node::Const(value @ (0 | 1 | u64::MAX)) => Rhs::Imm(value),
        _ => return None,
    };
    Some((step, value))
}

/// Joins blocks that only one other leads to with that one.
fn merge(flow: &mut Flow<'_>) {
    let predecessors = predecessors(flow);
    for number in 0..flow.blocks.len() {
        while let Some(block) = flow.blocks.get(number).filter(|b| b.reachable)
            && let End::Goto { to, .. } = block.end
            && to != number
            && predecessors.get(to) == Some(&1)
        {
            let Some(next) = flow.blocks.get_mut(to).filter(|b| b.reachable) else {
                break;
            };
            next.reachable = false;
            let (steps, end, at) = (core::mem::take(&mut next.steps), next.end, next.end_at);
            if let Some(block) = flow.blocks.get_mut(number) {
                block.steps.extend(steps);
                (block.end, block.end_at) = (end, at);
            }
        }
    }
}

/// Copies short blocks to where they are jumped to.
fn copy(flow: &mut Flow<'_>) {
    // At most twice the program.
    let mut room = flow.body.len() + 8 * MAX_COPIED;
    let loops = loops(flow, &flow.predecessors());
    let by_header: BTreeMap<_, _> = loops.iter().map(|one| (one.header, one)).collect();
    for _ in 0..ROUNDS {
        let mut changed = false;
        for number in 0..flow.blocks.len() {
            let Some(block) = flow.blocks.get(number).filter(|b| b.reachable) else {
                continue;
            };
            let End::Goto { to, explicit: true } = block.end else {
                continue;
            };
            let Some(next) = flow.blocks.get(to).filter(|_| to != number) else {
                continue;
            };
            let len = next.steps.len();
            // A loop's header is copied only to where control comes back to it, and only if it is also the way out: then
            // the copy is the loop's test at its bottom. Another copy would be a second way into the loop.
            let stays = |one: &&Loop| {
                let mut ways = next.end.successors();
                !one.contains(number) || ways.all(|way| one.contains(way))
            };
            if len > MAX_COPIED || len >= room || by_header.get(&to).is_some_and(stays) {
                continue;
            }
            room -= len + 1;
            changed = true;
            let (steps, mut end, at) = (next.steps.clone(), next.end, next.end_at);
            if let End::Goto { explicit, .. } = &mut end {
                *explicit = true;
            }
            if let Some(block) = flow.blocks.get_mut(number) {
                block.steps.extend(steps);
                (block.end, block.end_at) = (end, at);
            }
        }
        if !changed {
            break;
        }
    }
}

/// The order in which blocks are emitted: each if possible before one that it leads to.
pub(super) fn order(flow: &Flow<'_>) -> Vec<usize> {
    let mut placed: Vec<_> = flow.blocks.iter().map(|block| !block.reachable).collect();
    let mut order = Vec::new();
    for start in 0..flow.blocks.len() {
        let mut next = Some(start);
        while let Some(number) = next {
            if placed.get(number) != Some(&false) {
                break;
            }
            if let Some(placed) = placed.get_mut(number) {
                *placed = true;
            }
            order.push(number);
            let end = flow.blocks.get(number).map(|block| block.end);
            let mut successors = end.into_iter().flat_map(End::successors);
            next = successors.find(|next| placed.get(*next) == Some(&false));
        }
    }
    order
}
