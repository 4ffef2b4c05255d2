// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which A64 register holds which BPF register where.
//!
//! A BPF register's values are split into webs: definitions that reach a common use. Webs that are live together get
//! different A64 registers, webs that are live across a call get callee-saved ones. Hints make most moves vanish: an
//! argument is computed where the call wants it, a result where the caller wants it, a copy where its source is.
use alloc::{collections::BTreeSet, vec, vec::Vec};

use a64::{
    Reg as A64,
    reg::{
        X0, X1, X2, X3, X4, X5, X6, X7, X8, X9, X10, X11, X12, X13, X14, X15, X19, X20, X21, X22,
        X23, X24, X25, X26, X27, X28,
    },
};

use super::{
    JitError,
    liveness::{Arguments, Flow, RegSet},
};
use crate::isa::{AluOp, Op, Operand, Reg, Width};

/// Where the first five arguments of a call are, and in the first one its result (AAPCS64, 6.8.2).
pub(super) const ARGUMENTS: [A64; 5] = [X0, X1, X2, X3, X4];
/// Registers that a call may change, in the order in which they are given out: those that no call wants come first.
const CALLER_SAVED: [A64; 16] = [
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

    /// This set without a register.
    #[must_use]
    pub const fn without(self, reg: A64) -> Self {
        Self(self.0 & !(1 << reg.number()))
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

/// The A64 registers of the BPF registers at one place. Those that are not live there have a meaningless one.
pub(super) type Homes = [A64; Reg::COUNT];

/// One function's allocation.
#[derive(Debug)]
pub(super) struct Allocation {
    /// For each block, the homes at its start.
    block_homes: Vec<Homes>,
    /// For each instruction, the home of what it defines.
    defined: Vec<A64>,
    /// The callee-saved registers that are used, in order.
    pub(super) saved: Vec<A64>,
}

impl Allocation {
    /// The homes at the start of a block.
    pub(super) fn homes_at(&self, block: usize) -> Homes {
        self.block_homes
            .get(block)
            .copied()
            .unwrap_or([X0; Reg::COUNT])
    }

    /// The home of what an instruction defines.
    pub(super) fn home_of(&self, index: usize) -> A64 {
        self.defined.get(index).copied().unwrap_or(X0)
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

    fn union(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        if let Some(slot) = self.0.get_mut(a.max(b)) {
            *slot = a.min(b) as u32;
        }
    }
}

/// What the colouring knows of a web.
#[derive(Clone, Copy, Default)]
struct Web {
    across_call: bool,
    /// The register that a call or an exit wants it in.
    wanted: Option<A64>,
    /// A web that it is a copy of, or that is a copy of it.
    friend: Option<usize>,
    colour: Option<A64>,
}

/// Allocates the registers of a function out of `pool`. With `split` a register's values may live in different
/// registers; without, each BPF register has one home, which takes less memory and at most ten registers.
fn colour(
    flow: &Flow<'_>,
    arguments: &Arguments,
    pool: RegisterSet,
    split: bool,
) -> Result<Allocation, JitError> {
    // Webs are numbered: the values live into each block, then what each instruction defines.
    let mut first_of_block = Vec::with_capacity(flow.blocks.len());
    let mut count = 0;
    for block in &flow.blocks {
        first_of_block.push(count);
        count += if split { block.live_in.len() } else { 0 };
    }
    let first_defined = count;
    count = if split {
        count + flow.body.len()
    } else {
        Reg::COUNT
    };
    let live_into = |block: usize| {
        let live = flow
            .blocks
            .get(block)
            .map_or_else(RegSet::default, |b| b.live_in);
        let first = first_of_block.get(block).copied().unwrap_or(0);
        live.iter()
            .enumerate()
            .map(move |(n, reg)| (reg, if split { first + n } else { reg.index() }))
    };
    let defined_by = |index: usize, reg: Reg| {
        if split {
            first_defined + index
        } else {
            reg.index()
        }
    };

    // Join what reaches a common use: what leaves a block with what its successors take.
    let mut webs = Webs((0..count as u32).collect());
    let current_at = |block: usize| {
        let mut current = [0; Reg::COUNT];
        live_into(block).for_each(|(reg, web)| current[reg.index()] = web);
        current
    };
    for (number, block) in flow.blocks.iter().enumerate().filter(|(_, b)| b.reachable) {
        let mut current = current_at(number);
        for (index, i) in block.range.clone().zip(flow.code(block)) {
            if let Some(reg) = i.op.defines() {
                current[reg.index()] = defined_by(index, reg);
            }
        }
        for next in flow.successors(number) {
            for (reg, web) in live_into(next) {
                webs.union(current[reg.index()], web);
            }
        }
    }

    // Who is live together, who is live across a call, who is wanted where.
    let mut info = vec![Web::default(); count];
    let mut edges = BTreeSet::new();
    let mut interfere = |a: usize, b: usize| {
        if a != b {
            edges.insert((a as u32, b as u32));
            edges.insert((b as u32, a as u32));
        }
    };
    let entry: Vec<_> = live_into(0)
        .map(|(reg, web)| (reg, webs.find(web)))
        .collect();
    for &(reg, web) in &entry {
        entry.iter().for_each(|&(_, other)| interfere(web, other));
        want(&mut info, web, argument_home(reg));
    }
    let mut live_outs = Vec::new();
    for (number, block) in flow.blocks.iter().enumerate().filter(|(_, b)| b.reachable) {
        let mut current = current_at(number).map(|web| webs.find(web));
        flow.live_outs(number, arguments, &mut live_outs);
        let code = block.range.clone().zip(flow.code(block));
        for ((index, i), &live_out) in code.zip(&live_outs) {
            let effects = flow.effects(index, i, arguments);
            if effects.is_dead(live_out) {
                continue;
            }
            if effects.calls {
                for reg in effects.uses.iter() {
                    want(&mut info, current[reg.index()], argument_home(reg));
                }
            }
            if i.op == Op::Exit {
                want(&mut info, current[Reg::R0.index()], Some(X0));
            }
            let Some(dst) = effects.defines else { continue };
            let web = webs.find(defined_by(index, dst));
            let source = source(i.op);
            for reg in live_out.iter().filter(|reg| *reg != dst) {
                let other = current[reg.index()];
                // A copy may share its source's register.
                if !(source == Some(reg) && is_copy(i.op)) {
                    interfere(web, other);
                }
                if effects.calls
                    && let Some(other) = info.get_mut(other)
                {
                    other.across_call = true;
                }
            }
            if effects.calls {
                want(&mut info, web, Some(X0));
            }
            if let Some(source) = source.map(|reg| current[reg.index()]) {
                befriend(&mut info, web, source);
                befriend(&mut info, source, web);
            }
            current[dst.index()] = web;
        }
    }

    give_out(&mut info, &edges, pool)?;
    let mut home = |web: usize| {
        let web = webs.find(web);
        info.get(web).and_then(|web| web.colour).unwrap_or(X0)
    };
    let block_homes = (0..flow.blocks.len())
        .map(|block| current_at(block).map(&mut home))
        .collect();
    let defined = flow
        .body
        .iter()
        .enumerate()
        .map(|(index, i)| {
            i.op.defines()
                .map_or(X0, |reg| home(defined_by(index, reg)))
        })
        .collect();
    let used = |reg: &A64| info.iter().any(|web| web.colour == Some(*reg));
    Ok(Allocation {
        block_homes,
        defined,
        saved: CALLEE_SAVED.into_iter().filter(used).collect(),
    })
}

/// Gives each web a register that no web it is live together with has.
fn give_out(
    info: &mut [Web],
    edges: &BTreeSet<(u32, u32)>,
    pool: RegisterSet,
) -> Result<(), JitError> {
    // Those that are wanted somewhere choose first.
    let mut order: Vec<_> = (0..info.len()).collect();
    order.sort_by_key(|&web| info.get(web).is_none_or(|web| web.wanted.is_none()));
    for web in order {
        let Some(&this) = info.get(web) else { continue };
        let neighbours = edges.range((web as u32, 0)..=(web as u32, u32::MAX));
        let taken = neighbours
            .filter_map(|(_, other)| info.get(*other as usize)?.colour)
            .fold(RegisterSet(0), |taken, reg| {
                RegisterSet(taken.0 | 1 << reg.number())
            });
        let friend = this.friend.and_then(|friend| info.get(friend));
        let hints = [this.wanted, friend.and_then(|f| f.colour.or(f.wanted))];
        let caller_saved = hints.into_iter().flatten().chain(CALLER_SAVED);
        let callee_saved = hints.into_iter().flatten().chain(CALLEE_SAVED);
        let free = |reg: &A64| pool.contains(*reg) && !taken.contains(*reg);
        let survives = |reg: &A64| !this.across_call || CALLEE_SAVED.contains(reg);
        let colour = caller_saved.chain(callee_saved).filter(free).find(survives);
        let colour = colour.ok_or(JitError::OutOfRegisters { pool: pool.len() })?;
        if let Some(web) = info.get_mut(web) {
            web.colour = Some(colour);
        }
    }
    Ok(())
}

/// Allocates the registers of a function out of `pool`, splitting where that works out.
pub(super) fn allocate(
    flow: &Flow<'_>,
    arguments: &Arguments,
    pool: RegisterSet,
) -> Result<Allocation, JitError> {
    /// Above this many instructions values are not split, so that memory stays small.
    const MAX_SPLIT: usize = 1 << 16;
    if flow.body.len() <= MAX_SPLIT
        && let Ok(allocation) = colour(flow, arguments, pool, true)
    {
        return Ok(allocation);
    }
    colour(flow, arguments, pool, false)
}

fn want(info: &mut [Web], web: usize, register: Option<A64>) {
    if let Some(web) = info.get_mut(web) {
        web.wanted = web.wanted.or(register);
    }
}

fn befriend(info: &mut [Web], web: usize, friend: usize) {
    if let Some(web) = info.get_mut(web).filter(|_| web != friend) {
        web.friend = web.friend.or(Some(friend));
    }
}

/// Where a call has the argument in `reg`.
pub(super) fn argument_home(reg: Reg) -> Option<A64> {
    Reg::arguments()
        .zip(ARGUMENTS)
        .find_map(|(argument, home)| (argument == reg).then_some(home))
}

/// The register whose home the result would best share: the old destination, or the source of a move.
fn source(op: Op) -> Option<Reg> {
    match op {
        Op::Alu { op, src, .. } if op.is_move() => match src {
            Operand::Reg(src) if src != Reg::FP => Some(src),
            _ => None,
        },
        Op::Alu { dst, .. } | Op::Neg { dst, .. } | Op::Swap { dst, .. } => Some(dst),
        _ => None,
    }
}

/// Whether the result is its source, bit for bit.
fn is_copy(op: Op) -> bool {
    let (width, mov) = (Width::W64, AluOp::Mov);
    matches!(op, Op::Alu { width: w, op: o, .. } if (w, o) == (width, mov))
}
