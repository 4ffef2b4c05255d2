// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is better done outside of a loop: constants that it needs in registers, values that only its end wants.
use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec,
    vec::Vec,
};

use super::{
    dominators::Dominators,
    flow::{Arguments, Flow},
    ir::{Block, End, Name, NameSet, Node, Rhs, Step},
    select::{compares, encodes},
};

/// A loop: the blocks that can come back to its header without leaving it.
pub(super) struct Loop {
    pub(super) header: usize,
    inside: Vec<usize>,
}

impl Loop {
    /// Whether a block is in it.
    pub(super) fn contains(&self, block: usize) -> bool {
        self.inside.binary_search(&block).is_ok()
    }
}

/// The loops of a function, larger ones first.
pub(super) fn loops(flow: &Flow<'_>, predecessors: &[Vec<usize>]) -> Vec<Loop> {
    /// How many blocks all loops together may have for each block of the function.
    const NESTING: usize = 16;
    let dominators = Dominators::of(flow, predecessors);
    let mut ends: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, block) in flow.reachable() {
        for next in block.end.successors().filter(|next| *next != 0) {
            if dominators.dominates(next, number) {
                ends.entry(next).or_default().push(number);
            }
        }
    }
    let mut room = NESTING * flow.blocks.len();
    let mut loops = Vec::new();
    for (header, mut work) in ends {
        let mut seen = BTreeSet::from([header]);
        while let Some(block) = work.pop() {
            if !seen.insert(block) {
                continue;
            }
            work.extend(predecessors.get(block).into_iter().flatten());
            room = room.saturating_sub(1);
            if room == 0 {
                return loops;
            }
        }
        loops.push(Loop {
            header,
            inside: seen.into_iter().collect(),
        });
    }
    loops.sort_by_key(|one| core::cmp::Reverse(one.inside.len()));
    loops
}

/// Visits the immediates of a step that take a register, with room for what takes their place.
fn each_constant(node: &mut Node, visit: &mut dyn FnMut(&mut Rhs, u64)) {
    let mut rhs = |rhs: &mut Rhs, fits: &dyn Fn(u64) -> bool| {
        if let Rhs::Imm(value) = *rhs
            && !fits(value)
        {
            visit(rhs, value);
        }
    };
    match node {
        Node::Binary { op, width, b, .. } => {
            let (op, width) = (*op, *width);
            rhs(b, &|value| encodes(op, width, value));
        }
        Node::MulAdd { b, c, .. } => {
            rhs(b, &|_| false);
            rhs(c, &|_| false);
        }
        Node::Store { src, .. } => rhs(src, &|value| value == 0),
        Node::StorePair { low, high, .. } => {
            rhs(low, &|value| value == 0);
            rhs(high, &|value| value == 0);
        }
        Node::Select { test, .. } => {
            let this = *test;
            rhs(&mut test.b, &|value| compares(&this, value));
        }
        _ => {}
    }
}

/// The same of a block's end.
fn end_constant(end: &mut End, visit: &mut dyn FnMut(&mut Rhs, u64)) {
    if let End::Branch { test, .. } = end
        && let Rhs::Imm(value) = test.b
        && !compares(test, value)
    {
        visit(&mut test.b, value);
    }
}

/// The steps of a block that only make a constant for other steps of it.
fn local_constants(block: &Block, behind: NameSet) -> Vec<(usize, Name, u64)> {
    let mut found = Vec::new();
    for (number, step) in block.steps.iter().enumerate() {
        let (Node::Const(value), Some(name)) = (step.node, step.dst) else {
            continue;
        };
        let mut later = block.steps.iter().skip(number + 1);
        let ends = later.find_map(|step| {
            if step.node.is_call() {
                return Some(false);
            }
            step.kills().contains(name).then_some(true)
        });
        if ends.unwrap_or(!behind.contains(name)) {
            found.push((number, name, value));
        }
    }
    found
}

/// Steps that are looked at for constants of a block.
const MAX_STEPS: usize = 256;

/// Brings constants that a loop needs in registers into registers before it, as long as there are free ones among `free`
/// that calls need not preserve.
pub(super) fn hoist(flow: &mut Flow<'_>, arguments: &Arguments, free: usize) {
    let predecessors = flow.predecessors();
    let mut names = Name::ADDED;
    for one in loops(flow, &predecessors) {
        let mut live_outs = Vec::new();
        let (mut most, mut calls, mut long) = (0, false, false);
        let mut wanted: BTreeMap<u64, usize> = BTreeMap::new();
        for &number in &one.inside {
            let Some(block) = flow.blocks.get(number) else {
                continue;
            };
            long |= block.steps.len() > MAX_STEPS;
            let into = flow.live_outs(block, arguments, &mut live_outs);
            let live = live_outs.iter().map(|live| live.len());
            most = live.chain([most, into.len()]).max().unwrap_or(most);
            calls |= block.steps.iter().any(|step| step.node.is_call());
            let mut count = |_: &mut Rhs, value| *wanted.entry(value).or_default() += 1;
            for step in &block.steps {
                let mut node = step.node;
                each_constant(&mut node, &mut count);
            }
            let mut end = block.end;
            end_constant(&mut end, &mut count);
            if !long {
                for (.., value) in local_constants(block, flow.live_behind(block)) {
                    *wanted.entry(value).or_default() += 1;
                }
            }
        }
        // One register is for what a step defines.
        let room = free.saturating_sub(most + 1).min(names.len());
        if names.is_empty() {
            break;
        }
        if calls || long || room == 0 || wanted.is_empty() {
            continue;
        }
        let mut wanted: Vec<_> = wanted.into_iter().collect();
        wanted.sort_by_key(|(_, times)| core::cmp::Reverse(*times));
        let chosen: BTreeMap<_, _> = wanted
            .into_iter()
            .take(room)
            .zip(&mut names)
            .map(|((value, _), name)| (value, Name::added(name)))
            .collect();
        for &number in &one.inside {
            let Some(block) = flow.blocks.get(number) else {
                continue;
            };
            let local = local_constants(block, flow.live_behind(block));
            if let Some(block) = flow.blocks.get_mut(number) {
                replace(block, &local, &chosen);
            }
        }
        before(flow, &one, &chosen);
        flow.solve(arguments);
    }
}

/// Reads constants of a block from the names that hold them.
fn replace(block: &mut Block, local: &[(usize, Name, u64)], chosen: &BTreeMap<u64, Name>) {
    let mut take = |rhs: &mut Rhs, value| {
        if let Some(name) = chosen.get(&value) {
            *rhs = Rhs::Name(*name);
        }
    };
    for step in &mut block.steps {
        each_constant(&mut step.node, &mut take);
    }
    end_constant(&mut block.end, &mut take);
    for (number, name, value) in local {
        let Some(constant) = chosen.get(value) else {
            continue;
        };
        let mut rename = |read: &mut Name| {
            if read == name {
                *read = *constant;
            }
        };
        let mut ended = false;
        for step in block.steps.iter_mut().skip(number + 1) {
            step.node.each_name(&mut rename);
            // A base that is updated is read and defined by one name.
            ended = step.kills().contains(*name);
            if ended {
                break;
            }
        }
        if !ended {
            block.end.each_name(&mut rename);
        }
    }
}

/// Makes the constants in a block before a loop.
fn before(flow: &mut Flow<'_>, one: &Loop, chosen: &BTreeMap<u64, Name>) {
    let place = flow.blocks.len();
    let Some(header) = flow.blocks.get(one.header) else {
        return;
    };
    let at = header.steps.first().map_or(header.end_at, |step| step.at);
    let steps = chosen.iter().map(|(value, name)| Step {
        node: Node::Const(*value),
        dst: Some(*name),
        also: None,
        at,
    });
    let block = Block {
        steps: steps.collect(),
        end: End::Goto {
            to: one.header,
            explicit: false,
        },
        end_at: at,
        live_in: NameSet::default(),
        reachable: true,
    };
    for (number, block) in flow.blocks.iter_mut().enumerate() {
        if !one.contains(number) {
            let to = |to| if to == one.header { place } else { to };
            block.end.redirect(to);
        }
    }
    flow.blocks.push(block);
}

/// The most ways out of loops that steps are moved to: after each, liveness is found out again.
const MAX_EDGES: usize = 64;

/// Does what only the way out of a loop needs on the way out.
pub(super) fn sink(flow: &mut Flow<'_>, arguments: &Arguments) {
    let predecessors = flow.predecessors();
    let loops = loops(flow, &predecessors);
    // The smallest loop that a block is in: later ones are smaller.
    let mut within = vec![None; flow.blocks.len()];
    for (number, one) in loops.iter().enumerate() {
        for block in &one.inside {
            if let Some(slot) = within.get_mut(*block) {
                *slot = Some(number);
            }
        }
    }
    let mut edges = 0;
    for number in 0..within.len() {
        let Some(one) = within.get(number).copied().flatten() else {
            continue;
        };
        let Some(block) = flow.blocks.get(number).filter(|b| b.reachable) else {
            continue;
        };
        let End::Branch { taken, next, .. } = block.end else {
            continue;
        };
        let leaves = |to: usize| {
            let one = loops.get(one);
            one.is_some_and(|one| !one.contains(to))
        };
        let (out, stays) = match (leaves(taken), leaves(next)) {
            (true, false) => (taken, next),
            (false, true) => (next, taken),
            _ => continue,
        };
        let live = |to: usize| {
            flow.blocks
                .get(to)
                .map_or(NameSet::default(), |b| b.live_in)
        };
        let only_out = live(out).without(live(stays)).without(block.end.uses());
        let moved = last_ones(block, only_out, arguments);
        if moved.is_empty() {
            continue;
        }
        let steps = moved.iter().filter_map(|n| block.steps.get(*n)).copied();
        let place = flow.blocks.len();
        let edge = Block {
            steps: steps.collect(),
            end: End::Goto {
                to: out,
                explicit: false,
            },
            end_at: block.end_at,
            live_in: NameSet::default(),
            reachable: true,
        };
        if let Some(block) = flow.blocks.get_mut(number) {
            let mut index = 0..;
            let stays = |_: &Step| index.next().is_some_and(|n| !moved.contains(&n));
            block.steps.retain(stays);
            block.end.redirect(|to| if to == out { place } else { to });
        }
        flow.blocks.push(edge);
        flow.solve(arguments);
        edges += 1;
        if edges == MAX_EDGES {
            break;
        }
    }
}

/// The steps of a block that make values which only `only_out` holds, and could be done behind its end; in order.
fn last_ones(block: &Block, only_out: NameSet, arguments: &Arguments) -> Vec<usize> {
    let mut moved = Vec::new();
    // What the steps that stay behind a step read or define, and what its end reads.
    let (mut read, mut defined) = (block.end.uses(), NameSet::default());
    for (number, step) in block.steps.iter().enumerate().rev().take(MAX_STEPS) {
        let uses = step.uses(arguments);
        let alone = step.dst.is_some_and(|dst| {
            only_out.contains(dst) && !read.contains(dst) && !defined.contains(dst)
        });
        let unchanged = uses.without(defined) == uses;
        if alone && unchanged && step.node.is_value() && step.also.is_none() {
            // What moves is read behind the end, so it must stay as it is before that.
            moved.push(number);
            read = read.union(uses);
        } else {
            read = read.union(uses);
            defined = defined.union(step.kills());
        }
    }
    moved.reverse();
    moved
}
