// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which A64 register holds which name where.
//!
//! A name's values are split into webs: definitions that reach a common use. Webs that are live together get
//! different A64 registers, webs that are live across a call get ones that it leaves alone. Copies are made one web with
//! their source where the two are never different; hints make most other moves vanish: an argument is computed where
//! the call wants it, a result where the caller wants it.
use alloc::{collections::BTreeSet, vec, vec::Vec};
use core::ops::BitOr;

use a64::{
    Reg as A64,
    reg::{
        X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15, X19, X20, X21, X22,
        X23, X24, X25, X26, X27, X28,
    },
};

use super::{
    JitError,
    flow::{Arguments, Flow, copied},
    ir::{Callee, End, Name, NameSet, Node, Step, Update},
};
use crate::isa::Reg;

/// Where the first five arguments of a call are, and in the first one its result (AAPCS64, 6.8.2).
pub(super) const ARGUMENTS: [A64; 5] = [X0, X1, X2, X3, X4];
/// Registers that a call may change, in the order in which they are given out: those that no call wants come first.
pub(super) const CALLER_SAVED: [A64; 16] = [
    X9, X10, X11, X12, X13, X8, X7, X6, X5, X15, X14, X4, X3, X2, X1, X0,
];
/// Registers that a call preserves.
const CALLEE_SAVED: [A64; 10] = [X19, X20, X21, X22, X23, X24, X25, X26, X27, X28];

/// A set of general registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterSet(u32);

impl RegisterSet {
    /// What a function may use by AAPCS64, without x18 (the platform's), x29, x30, and x16 and x17, which the
    /// compiler keeps for itself.
    pub const ALL: Self = Self(0x1ff8_ffff);

    /// None.
    pub const NONE: Self = Self(0);

    /// The registers of a list.
    pub(super) fn of(registers: impl IntoIterator<Item = A64>) -> Self {
        let bits = registers.into_iter().map(|reg| 1 << reg.number());
        Self(bits.fold(0, |all, bit| all | bit))
    }

    /// This set without a register.
    #[must_use]
    pub const fn without(self, reg: A64) -> Self {
        Self(self.0 & !(1 << reg.number()))
    }

    /// What is in both.
    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// This set without those of another.
    pub(super) const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether a register is in the set.
    pub const fn contains(self, reg: A64) -> bool {
        self.0 >> reg.number() & 1 != 0
    }

    /// How many registers it has.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether it has none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for RegisterSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The A64 registers of the names at one place. Those that are not live there have a meaningless one.
pub(super) type Homes = [A64; Name::COUNT];

/// One function's allocation.
#[derive(Debug)]
pub(super) struct Allocation {
    /// For each block, the homes at its start.
    block_homes: Vec<Homes>,
    /// For each step of each block, in order, the homes of what it defines.
    defined: Vec<[A64; 2]>,
    /// For each block, where its steps begin in that list.
    first_step: Vec<usize>,
    /// The callee-saved registers that are used, in order.
    pub(super) saved: Vec<A64>,
    /// All registers that are used.
    pub(super) used: RegisterSet,
}

impl Allocation {
    /// The homes at the start of a block.
    pub(super) fn homes_at(&self, block: usize) -> Homes {
        self.block_homes
            .get(block)
            .copied()
            .unwrap_or([X0; Name::COUNT])
    }

    /// The homes of what a step of a block defines: its `dst`, its `also`.
    pub(super) fn homes_of(&self, block: usize, step: usize) -> [A64; 2] {
        let first = self.first_step.get(block);
        let homes = first.and_then(|first| self.defined.get(first + step));
        homes.copied().unwrap_or([X0; 2])
    }
}

/// Web numbers with union by the smaller number.
struct Webs(Vec<u32>);

impl Webs {
    fn find(&mut self, mut web: usize) -> usize {
        while let Some(&up) = self.0.get(web)
            && up as usize != web
        {
            let grand = self.0.get(up as usize).copied().unwrap_or(up);
            if let Some(slot) = self.0.get_mut(web) {
                *slot = grand;
            }
            web = grand as usize;
        }
        web
    }

    fn union(&mut self, a: usize, b: usize) -> usize {
        let (a, b) = (self.find(a), self.find(b));
        if let Some(slot) = self.0.get_mut(a.max(b)) {
            *slot = a.min(b) as u32;
        }
        a.min(b)
    }
}

/// What the colouring knows of a web.
#[derive(Clone, Copy)]
struct Web {
    /// Registers that it may not have: what calls that it is live across change.
    avoid: RegisterSet,
    /// The register that a call or an exit wants it in.
    wanted: Option<A64>,
    /// Webs that would best have the same register.
    friends: [Option<u32>; 3],
    colour: Option<A64>,
}

impl Default for Web {
    fn default() -> Self {
        Self {
            avoid: RegisterSet::NONE,
            wanted: None,
            friends: [None; 3],
            colour: None,
        }
    }
}

/// What the allocation is told.
pub(super) struct Given<'a> {
    /// What each function reads of its arguments.
    pub(super) arguments: &'a Arguments,
    /// The registers that may be used.
    pub(super) pool: RegisterSet,
    /// What a call of each function of the program changes.
    pub(super) clobbers: &'a [RegisterSet],
}

impl Given<'_> {
    /// The registers that a call changes.
    fn changed_by(&self, callee: Callee) -> RegisterSet {
        match callee {
            Callee::Local(function) => self.clobbers.get(function as usize).copied(),
            _ => None,
        }
        .unwrap_or_else(|| RegisterSet::of(CALLER_SAVED))
    }
}

/// How webs are made and joined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A name's values may live in different registers, and copies are joined with their sources.
    Joined,
    /// A name's values may live in different registers.
    Split,
    /// Each name has one home, which takes less memory and at most ten registers for a program's own names.
    Whole,
}

/// A function's webs, and who is live together with whom.
struct Graph<'a, 'p> {
    flow: &'a Flow<'p>,
    mode: Mode,
    webs: Webs,
    info: Vec<Web>,
    edges: BTreeSet<(u32, u32)>,
    /// Webs of which the first is a copy of the second.
    copies: Vec<(u32, u32)>,
    /// For each block the number of its first live-in web, and of its first step.
    first_web: Vec<usize>,
    first_step: Vec<usize>,
    /// The number of the first web that a step defines.
    first_defined: usize,
}

impl<'a, 'p> Graph<'a, 'p> {
    /// Webs are numbered: the names live into each block, then what each step defines.
    fn new(flow: &'a Flow<'p>, mode: Mode) -> Self {
        let (mut first_web, mut first_step) = (Vec::new(), Vec::new());
        let (mut webs, mut steps) = (0, 0);
        for block in &flow.blocks {
            first_web.push(webs);
            first_step.push(steps);
            webs += block.live_in.len();
            steps += block.steps.len();
        }
        let count = match mode {
            Mode::Whole => Name::COUNT,
            _ => webs + 2 * steps,
        };
        Self {
            flow,
            mode,
            webs: Webs((0..count as u32).collect()),
            info: vec![Web::default(); count],
            edges: BTreeSet::new(),
            copies: Vec::new(),
            first_web,
            first_step,
            first_defined: webs,
        }
    }

    /// The webs of the names at the start of a block.
    fn current_at(&self, block: usize) -> [usize; Name::COUNT] {
        let mut current = [0; Name::COUNT];
        let live = self.flow.blocks.get(block).map(|b| b.live_in);
        let first = self.first_web.get(block).copied().unwrap_or(0);
        for (n, name) in live.unwrap_or_default().iter().enumerate() {
            if let Some(web) = current.get_mut(name.index()) {
                *web = match self.mode {
                    Mode::Whole => name.index(),
                    _ => first + n,
                };
            }
        }
        current
    }

    /// The webs of what a step of a block defines.
    fn defined(&self, block: usize, step: usize, of: &Step) -> [(Option<Name>, usize); 2] {
        let first = self.first_step.get(block).copied().unwrap_or(0);
        let at = self.first_defined + 2 * (first + step);
        let web = |name: Option<Name>, at| match (self.mode, name) {
            (Mode::Whole, Some(name)) => name.index(),
            (Mode::Whole, None) => 0,
            _ => at,
        };
        [(of.dst, web(of.dst, at)), (of.also, web(of.also, at + 1))]
    }

    /// Joins what reaches a common use: what leaves a block with what its successors take.
    fn join(&mut self) {
        for (number, block) in self.flow.reachable() {
            let mut current = self.current_at(number);
            for (n, step) in block.steps.iter().enumerate() {
                for (name, web) in self.defined(number, n, step) {
                    set(&mut current, name, web);
                }
            }
            for next in block.end.successors() {
                let Some(live) = self.flow.blocks.get(next).map(|b| b.live_in) else {
                    continue;
                };
                let there = self.current_at(next);
                for name in live.iter() {
                    if let Some((&a, &b)) = current.get(name.index()).zip(there.get(name.index())) {
                        self.webs.union(a, b);
                    }
                }
            }
        }
    }

    fn interfere(&mut self, a: usize, b: usize) {
        if a != b {
            self.edges.insert((a as u32, b as u32));
            self.edges.insert((b as u32, a as u32));
        }
    }

    fn want(&mut self, web: usize, register: Option<A64>) {
        if let Some(web) = self.info.get_mut(web) {
            web.wanted = web.wanted.or(register);
        }
    }

    fn befriend(&mut self, a: usize, b: usize) {
        for (web, friend) in [(a, b as u32), (b, a as u32)] {
            if a != b
                && let Some(web) = self.info.get_mut(web)
                && !web.friends.contains(&Some(friend))
                && let Some(free) = web.friends.iter_mut().find(|f| f.is_none())
            {
                *free = Some(friend);
            }
        }
    }

    /// Finds who is live together, who is live across which call, who is wanted where.
    fn interferences(&mut self, given: &Given<'_>) {
        let entry = self.current_at(0);
        let live = self.flow.blocks.first().map(|b| b.live_in);
        let live: Vec<_> = live.unwrap_or_default().iter().collect();
        for &name in &live {
            let web = self.current(&entry, name);
            for &other in &live {
                let other = self.current(&entry, other);
                self.interfere(web, other);
            }
            self.want(web, argument_home(name));
        }
        let mut live_outs = Vec::new();
        for (number, block) in self.flow.reachable() {
            let mut current = self.current_at(number);
            self.flow.live_outs(block, given.arguments, &mut live_outs);
            for ((n, step), &live_out) in block.steps.iter().enumerate().zip(&live_outs) {
                self.step(number, n, step, live_out, &mut current, given);
            }
            if let End::Exit(name) = block.end {
                let web = self.current(&current, name);
                self.want(web, Some(X0));
            }
        }
    }

    fn current(&mut self, current: &[usize; Name::COUNT], name: Name) -> usize {
        let web = current.get(name.index()).copied().unwrap_or(0);
        self.webs.find(web)
    }

    fn step(
        &mut self,
        block: usize,
        number: usize,
        step: &Step,
        live_out: NameSet,
        current: &mut [usize; Name::COUNT],
        given: &Given<'_>,
    ) {
        if step.is_dead(live_out) {
            return;
        }
        let changed = match step.node {
            Node::Call { callee, .. } => Some(given.changed_by(callee)),
            _ => None,
        };
        if changed.is_some() {
            for name in step.uses(given.arguments).iter() {
                let web = self.current(current, name);
                self.want(web, argument_home(name));
            }
        }
        let defined = self.defined(block, number, step);
        let own = NameSet::of(step.defines());
        for name in live_out.without(own).iter() {
            let other = self.current(current, name);
            for (dst, web) in defined {
                // A copy may share its source's register.
                if dst.is_some() && copied(step) != Some(name) {
                    let web = self.webs.find(web);
                    self.interfere(web, other);
                }
            }
            if let Some((changed, other)) = changed.zip(self.info.get_mut(other)) {
                other.avoid = other.avoid | changed;
            }
        }
        let [(dst, first), (also, second)] = defined;
        let (first, second) = (self.webs.find(first), self.webs.find(second));
        if dst.is_some() && also.is_some() {
            self.interfere(first, second);
        }
        if changed.is_some() && dst.is_some() {
            self.want(first, Some(X0));
        }
        // What the results would best share a register with.
        if dst.is_some() {
            if let Some(source) = copied(step) {
                let source = self.current(current, source);
                self.copies.push((first as u32, source as u32));
            }
            if let Some(source) = sibling(&step.node) {
                let source = self.current(current, source);
                self.befriend(first, source);
            }
        }
        if let Some((name, update)) = also.zip(updated(&step.node)) {
            let before = self.current(current, name);
            self.befriend(second, before);
            // The base is written while the access is done: the result must be another register, and what is stored too.
            if update && dst.is_some() {
                self.interfere(first, before);
            }
        }
        for (name, web) in [(dst, first), (also, second)] {
            set(current, name, web);
        }
    }

    /// Makes copies one web with their sources where that leaves a web few neighbours, so that it certainly gets a colour.
    fn coalesce(&mut self, pool: RegisterSet) {
        let copies = core::mem::take(&mut self.copies);
        for (a, b) in copies {
            let (a, b) = (self.webs.find(a as usize), self.webs.find(b as usize));
            if a == b || self.edges.contains(&(a as u32, b as u32)) {
                continue;
            }
            let neighbours = |web: usize| {
                let range = (web as u32, 0)..=(web as u32, u32::MAX);
                self.edges.range(range).map(|(_, other)| *other)
            };
            let (mine, theirs): (BTreeSet<_>, Vec<_>) =
                (neighbours(a).collect(), neighbours(b).collect());
            let all = mine.len() + theirs.iter().filter(|n| !mine.contains(n)).count();
            let (one, other) = match (self.info.get(a), self.info.get(b)) {
                (Some(one), Some(other)) => (*one, *other),
                _ => continue,
            };
            let avoid = one.avoid | other.avoid;
            let room = pool.minus(avoid).len();
            // Two wishes that differ are better kept apart: each saves a move of its own.
            let agree =
                one.wanted.is_none() || other.wanted.is_none() || one.wanted == other.wanted;
            if all >= room || !agree {
                continue;
            }
            let web = self.webs.union(a, b);
            let gone = a.max(b);
            let moved: Vec<_> = if gone == a {
                mine.into_iter().collect()
            } else {
                theirs
            };
            for other in moved {
                self.edges.remove(&(gone as u32, other));
                self.edges.remove(&(other, gone as u32));
                self.interfere(web, other as usize);
            }
            if let Some(info) = self.info.get_mut(web) {
                info.avoid = avoid;
                info.wanted = one.wanted.or(other.wanted);
                let mut friends = one.friends.into_iter().chain(other.friends).flatten();
                info.friends = core::array::from_fn(|_| friends.next());
            }
        }
    }

    /// Gives each web a register that no web it is live together with has.
    fn give_out(&mut self, pool: RegisterSet) -> Result<(), JitError> {
        // Those that are wanted somewhere choose first.
        let mut order: Vec<_> = (0..self.info.len()).collect();
        order.retain(|&web| self.webs.find(web) == web);
        order.sort_by_key(|&web| self.info.get(web).is_none_or(|web| web.wanted.is_none()));
        for web in order {
            let Some(&this) = self.info.get(web) else {
                continue;
            };
            let neighbours = self.edges.range((web as u32, 0)..=(web as u32, u32::MAX));
            let taken = neighbours
                .filter_map(|(_, other)| self.info.get(*other as usize)?.colour)
                .fold(this.avoid, |taken, reg| taken | RegisterSet::of([reg]));
            let mut hints = [this.wanted, None, None, None, None, None, None];
            for (n, friend) in this.friends.into_iter().flatten().enumerate() {
                let friend = self.webs.find(friend as usize);
                let friend = self.info.get(friend);
                let [colour, wanted] =
                    [friend.and_then(|f| f.colour), friend.and_then(|f| f.wanted)];
                for (at, hint) in [(1 + n, colour), (4 + n, wanted)] {
                    if let Some(slot) = hints.get_mut(at) {
                        *slot = hint;
                    }
                }
            }
            let choices = hints
                .into_iter()
                .flatten()
                .chain(CALLER_SAVED)
                .chain(CALLEE_SAVED);
            let free = |reg: &A64| pool.contains(*reg) && !taken.contains(*reg);
            let colour = choices.into_iter().find(free);
            let colour = colour.ok_or(JitError::OutOfRegisters { pool: pool.len() })?;
            if let Some(web) = self.info.get_mut(web) {
                web.colour = Some(colour);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Allocation {
        let mut home = |web: usize| {
            let web = self.webs.find(web);
            self.info.get(web).and_then(|web| web.colour).unwrap_or(X0)
        };
        let mut block_homes = Vec::with_capacity(self.flow.blocks.len());
        let mut defined = Vec::new();
        // Only what has a name counts as used.
        let mut used = RegisterSet::NONE;
        for (number, block) in self.flow.blocks.iter().enumerate() {
            let first = self.first_web.get(number).copied().unwrap_or(0);
            let mut homes = [X0; Name::COUNT];
            for (n, name) in block.live_in.iter().enumerate() {
                let web = match self.mode {
                    Mode::Whole => name.index(),
                    _ => first + n,
                };
                if let Some(slot) = homes.get_mut(name.index()) {
                    *slot = home(web);
                    used = used | RegisterSet::of([*slot]);
                }
            }
            block_homes.push(homes);
            let first = self.first_step.get(number).copied().unwrap_or(0);
            for (n, step) in block.steps.iter().enumerate() {
                let at = self.first_defined + 2 * (first + n);
                let mut of = |name: Option<Name>, at| {
                    let name = name?;
                    let reg = home(match self.mode {
                        Mode::Whole => name.index(),
                        _ => at,
                    });
                    used = used | RegisterSet::of([reg]);
                    Some(reg)
                };
                defined.push([
                    of(step.dst, at).unwrap_or(X0),
                    of(step.also, at + 1).unwrap_or(X0),
                ]);
            }
        }
        Allocation {
            block_homes,
            defined,
            first_step: self.first_step,
            saved: CALLEE_SAVED
                .into_iter()
                .filter(|reg| used.contains(*reg))
                .collect(),
            used,
        }
    }
}

fn set(current: &mut [usize; Name::COUNT], name: Option<Name>, web: usize) {
    if let Some(slot) = name.and_then(|name| current.get_mut(name.index())) {
        *slot = web;
    }
}

/// Allocates the registers of a function out of a pool: the best way that works out.
pub(super) fn allocate(flow: &Flow<'_>, given: &Given<'_>) -> Result<Allocation, JitError> {
    /// Above this many instructions values are not split, so that memory stays small.
    const MAX_SPLIT: usize = 1 << 16;
    let colour = |mode| {
        let mut graph = Graph::new(flow, mode);
        graph.join();
        graph.interferences(given);
        if mode == Mode::Joined {
            graph.coalesce(given.pool);
        }
        graph.give_out(given.pool)?;
        Ok(graph.finish())
    };
    if flow.body.len() > MAX_SPLIT {
        return colour(Mode::Whole);
    }
    colour(Mode::Joined)
        .or_else(|_| colour(Mode::Split))
        .or_else(|_| colour(Mode::Whole))
}

/// Where a call has the argument of a name.
pub(super) fn argument_home(name: Name) -> Option<A64> {
    Reg::arguments()
        .zip(ARGUMENTS)
        .find_map(|(argument, home)| (Name::from(argument) == name).then_some(home))
}

/// The operand that the result would best share a register with: A64 needs no such thing, but what follows may.
fn sibling(node: &Node) -> Option<Name> {
    let name = match *node {
        Node::Copy(name) | Node::Neg { src: name, .. } | Node::Swap { src: name, .. } => name,
        Node::Binary { a, .. } => a,
        Node::Field(field) => field.src,
        _ => return None,
    };
    (name != Name::FP).then_some(name)
}

/// For a node that updates its base, whether it reads memory meanwhile.
fn updated(node: &Node) -> Option<bool> {
    match node {
        Node::Load { addr, .. } if addr.update != Update::None => Some(true),
        Node::Store { addr, .. } if addr.update != Update::None => Some(false),
        _ => None,
    }
}
