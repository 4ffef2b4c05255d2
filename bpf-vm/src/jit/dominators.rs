// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which blocks control passes on every way to another.
//!
//! By semidominators (Lengauer, Tarjan: A Fast Algorithm for Finding Dominators in a Flowgraph, 1979), in n log n steps
//! whatever the graph: iteration to a fixpoint takes as many rounds as a loop with two ways in has blocks.
use alloc::{vec, vec::Vec};

use super::flow::Flow;

/// No block, or no ancestor.
const NONE: usize = usize::MAX;

/// The dominator tree of a function.
pub(super) struct Dominators {
    /// For each block its place in a walk of the tree, and how many places it and those below it take; 0 if control does
    /// not come to it.
    places: Vec<(usize, usize)>,
}

/// Blocks are known by their place in a depth-first walk from the entry.
struct Forest {
    /// The place of the best candidate for a block's dominator.
    semi: Vec<usize>,
    /// Towards the root, of what was linked so far.
    ancestor: Vec<usize>,
    /// The block with the least `semi` on the way that was left out by compression.
    label: Vec<usize>,
    /// The ways that are being compressed.
    way: Vec<usize>,
}

fn at(list: &[usize], index: usize) -> usize {
    list.get(index).copied().unwrap_or(NONE)
}

fn set(list: &mut [usize], index: usize, value: usize) {
    if let Some(slot) = list.get_mut(index) {
        *slot = value;
    }
}

impl Forest {
    fn semi_of_label(&self, block: usize) -> usize {
        at(&self.semi, at(&self.label, block))
    }

    /// The block with the least `semi` between a block and the root of its tree, which does not count.
    fn least(&mut self, block: usize) -> usize {
        let mut here = block;
        while at(&self.ancestor, here) != NONE {
            self.way.push(here);
            here = at(&self.ancestor, here);
        }
        // What is below the root leads there already.
        self.way.pop();
        while let Some(here) = self.way.pop() {
            let up = at(&self.ancestor, here);
            if self.semi_of_label(up) < self.semi_of_label(here) {
                let label = at(&self.label, up);
                set(&mut self.label, here, label);
            }
            let root = at(&self.ancestor, up);
            set(&mut self.ancestor, here, root);
        }
        at(&self.label, block)
    }
}

impl Dominators {
    /// Of the blocks that control can come to.
    pub(super) fn of(flow: &Flow<'_>, predecessors: &[Vec<usize>]) -> Self {
        let successors = |block: usize, add: &mut dyn FnMut(usize)| {
            if let Some(block) = flow.blocks.get(block) {
                block.end.successors().for_each(add);
            }
        };
        Self::new(successors, predecessors)
    }

    /// Of a graph; 0 is its entry.
    fn new(successors: impl Fn(usize, &mut dyn FnMut(usize)), predecessors: &[Vec<usize>]) -> Self {
        // Depth first, without recursion: the blocks in order, the place of each, and the place it was found from.
        let mut order = Vec::new();
        let mut place = vec![NONE; predecessors.len()];
        let mut parent = Vec::new();
        let mut work = vec![(0, NONE)];
        while let Some((block, from)) = work.pop() {
            if place.get(block) != Some(&NONE) {
                continue;
            }
            let here = order.len();
            set(&mut place, block, here);
            order.push(block);
            parent.push(from);
            successors(block, &mut |next| work.push((next, here)));
        }

        let count = order.len();
        let mut forest = Forest {
            semi: (0..count).collect(),
            ancestor: vec![NONE; count],
            label: (0..count).collect(),
            way: Vec::new(),
        };
        let mut dominator = vec![0; count];
        // The blocks whose dominator is known once the way down to them from their `semi` is linked.
        let mut waiting = vec![Vec::new(); count];
        for (here, block) in order.iter().enumerate().skip(1).rev() {
            for &before in predecessors.get(*block).into_iter().flatten() {
                let before = at(&place, before);
                if before != NONE {
                    let least = forest.least(before);
                    let semi = at(&forest.semi, least).min(at(&forest.semi, here));
                    set(&mut forest.semi, here, semi);
                }
            }
            if let Some(waiting) = waiting.get_mut(at(&forest.semi, here)) {
                waiting.push(here);
            }
            let up = at(&parent, here);
            set(&mut forest.ancestor, here, up);
            for block in waiting.get_mut(up).map(core::mem::take).unwrap_or_default() {
                let least = forest.least(block);
                let earlier = at(&forest.semi, least) < at(&forest.semi, block);
                set(&mut dominator, block, if earlier { least } else { up });
            }
        }
        for here in 1..count {
            let found = at(&dominator, here);
            if found != at(&forest.semi, here) {
                let up = at(&dominator, found);
                set(&mut dominator, here, up);
            }
        }

        // A block's dominator has an earlier place than it: sizes from the last on, places from the first on.
        let mut size = vec![1; count];
        for here in (1..count).rev() {
            let up = at(&dominator, here);
            let sum = at(&size, up) + at(&size, here);
            set(&mut size, up, sum);
        }
        let mut places = vec![(0, 0); predecessors.len()];
        // The next free place below each.
        let mut free = vec![1; count];
        for (here, block) in order.iter().enumerate() {
            let start = match here {
                0 => 0,
                _ => {
                    let up = at(&dominator, here);
                    let start = at(&free, up);
                    set(&mut free, up, start + at(&size, here));
                    start
                }
            };
            set(&mut free, here, start + 1);
            if let Some(slot) = places.get_mut(*block) {
                *slot = (start, at(&size, here));
            }
        }
        Self { places }
    }

    /// Whether control passes block `a` on every way to block `b`, which may be the same.
    pub(super) fn dominates(&self, a: usize, b: usize) -> bool {
        let place = |block: usize| self.places.get(block).copied().unwrap_or_default();
        let ((start, size), (b, reached)) = (place(a), place(b));
        reached != 0 && (start..start + size).contains(&b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What control comes to from 0 without passing `without`.
    fn reached(edges: &[Vec<usize>], without: Option<usize>) -> Vec<bool> {
        let mut seen = vec![false; edges.len()];
        let mut work = vec![0];
        while let Some(block) = work.pop() {
            if Some(block) != without && !core::mem::replace(&mut seen[block], true) {
                work.extend(&edges[block]);
            }
        }
        seen
    }

    #[test]
    fn dominators_are_what_no_way_avoids() {
        let mut state = 1_u64;
        let mut below = |limit: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as usize % limit
        };
        for round in 0..3000 {
            let count = 1 + below(14);
            let edges: Vec<Vec<usize>> = (0..count)
                .map(|_| (0..below(4)).map(|_| below(count)).collect())
                .collect();
            let mut predecessors = vec![Vec::new(); count];
            for (from, to) in edges.iter().enumerate() {
                to.iter().for_each(|to| predecessors[*to].push(from));
            }
            let successors = |block: usize, add: &mut dyn FnMut(usize)| {
                edges[block].iter().copied().for_each(add);
            };
            let found = Dominators::new(successors, &predecessors);
            let all = reached(&edges, None);
            for a in 0..count {
                let past = reached(&edges, Some(a));
                for b in 0..count {
                    let want = all[a] && all[b] && !past[b];
                    assert_eq!(found.dominates(a, b), want, "{round}: {a} {b} {edges:?}");
                }
            }
        }
    }
}
