// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function's blocks, and which names are live where.
//!
//! Liveness is computed together with what is dead: a step that only computes a value nobody reads uses nothing, so
//! that whole chains of them vanish.
use alloc::{vec, vec::Vec};

use super::ir::{Block, Callee, Name, NameSet, Node, Step};
use crate::program::Instruction;

/// For each function of a program the names that it reads of what its caller gave it.
pub(super) type Arguments = [NameSet];

/// A function's control flow and liveness.
#[derive(Debug)]
pub(super) struct Flow<'p> {
    /// The function's instructions.
    pub(super) body: &'p [Instruction],
    /// The first is the entry, and none leads there.
    pub(super) blocks: Vec<Block>,
}

/// Computes what is live where in all functions; what each reads of its arguments.
pub(super) fn analyse(flows: &mut [Flow<'_>]) -> Vec<NameSet> {
    /// Rounds after which every call is taken to read all five arguments, so that long chains of calls stay linear.
    const ROUNDS: usize = 8;
    let mut arguments = vec![NameSet::default(); flows.len()];
    for round in 0.. {
        if round == ROUNDS {
            arguments.fill(NameSet::arguments());
        }
        let mut changed = false;
        for (index, flow) in flows.iter_mut().enumerate().rev() {
            let live = flow.solve(&arguments);
            if let Some(known) = arguments.get_mut(index) {
                changed |= live.without(*known) != NameSet::default();
                *known = known.union(live);
            }
        }
        if !changed || round >= ROUNDS {
            break;
        }
    }
    arguments
}

impl Flow<'_> {
    /// The blocks that control can come to, with their numbers.
    pub(super) fn reachable(&self) -> impl Iterator<Item = (usize, &Block)> {
        self.blocks.iter().enumerate().filter(|(_, b)| b.reachable)
    }

    /// All steps.
    pub(super) fn steps(&self) -> impl Iterator<Item = &Step> {
        self.reachable().flat_map(|(_, block)| &block.steps)
    }

    /// The functions that it calls, and those that it names if `named`.
    pub(super) fn callees(&self, named: bool) -> impl Iterator<Item = usize> {
        self.steps().filter_map(move |step| match step.node {
            Node::Call {
                callee: Callee::Local(function),
                ..
            } => Some(function as usize),
            Node::Function(function) if named => Some(function as usize),
            _ => None,
        })
    }

    /// The slot of the instruction of that index.
    pub(super) fn slot(&self, at: u32) -> u32 {
        self.body.get(at as usize).map_or(0, |i| i.slot)
    }

    /// The numbers of the blocks that may lead to each.
    pub(super) fn predecessors(&self) -> Vec<Vec<usize>> {
        let mut predecessors = vec![Vec::new(); self.blocks.len()];
        for (number, block) in self.reachable() {
            for next in block.end.successors() {
                if let Some(list) = predecessors.get_mut(next) {
                    list.push(number);
                }
            }
        }
        predecessors
    }

    /// Finds out again what can be reached.
    pub(super) fn find_reachable(&mut self) {
        self.blocks.iter_mut().for_each(|b| b.reachable = false);
        let mut work = vec![0];
        while let Some(block) = work.pop() {
            if let Some(b) = self.blocks.get_mut(block).filter(|b| !b.reachable) {
                b.reachable = true;
                work.extend(b.end.successors());
            }
        }
    }

    /// What is live behind a block.
    pub(super) fn live_behind(&self, block: &Block) -> NameSet {
        let next = block.end.successors();
        next.filter_map(|next| self.blocks.get(next))
            .fold(NameSet::default(), |live, next| live.union(next.live_in))
    }

    /// What is live after each step of a block, first to last, into `out`; and what is live before the first.
    pub(super) fn live_outs(
        &self,
        block: &Block,
        arguments: &Arguments,
        out: &mut Vec<NameSet>,
    ) -> NameSet {
        let mut live = self.live_behind(block).union(block.end.uses());
        out.clear();
        for step in block.steps.iter().rev() {
            out.push(live);
            live = step.live_in(live, arguments);
        }
        out.reverse();
        live
    }

    /// Takes out the steps whose results nobody reads.
    pub(super) fn remove_dead(&mut self, arguments: &Arguments) {
        let mut live_outs = Vec::new();
        for number in 0..self.blocks.len() {
            let Some(block) = self.blocks.get(number).filter(|b| b.reachable) else {
                continue;
            };
            self.live_outs(block, arguments, &mut live_outs);
            let mut live = live_outs.iter();
            if let Some(block) = self.blocks.get_mut(number) {
                let alive = |step: &Step| live.next().is_none_or(|live| !step.is_dead(*live));
                block.steps.retain(alive);
            }
        }
    }

    /// Computes what is live into each block; returns it for the entry.
    pub(super) fn solve(&mut self, arguments: &Arguments) -> NameSet {
        let predecessors = self.predecessors();
        let mut work: Vec<_> = (0..self.blocks.len()).collect();
        let mut queued = vec![true; self.blocks.len()];
        let mut scratch = Vec::new();
        while let Some(number) = work.pop() {
            if let Some(queued) = queued.get_mut(number) {
                *queued = false;
            }
            let Some(block) = self.blocks.get(number).filter(|b| b.reachable) else {
                continue;
            };
            let live = self.live_outs(block, arguments, &mut scratch);
            let Some(b) = self.blocks.get_mut(number).filter(|b| b.live_in != live) else {
                continue;
            };
            b.live_in = live;
            for &before in predecessors.get(number).into_iter().flatten() {
                if let Some(queued) = queued.get_mut(before).filter(|queued| !**queued) {
                    *queued = true;
                    work.push(before);
                }
            }
        }
        self.blocks
            .first()
            .map_or_else(NameSet::default, |b| b.live_in)
    }
}

/// The name that a step copies whole, if it does nothing else.
pub(super) fn copied(step: &Step) -> Option<Name> {
    match step.node {
        Node::Copy(name) if name != Name::FP => Some(name),
        _ => None,
    }
}
