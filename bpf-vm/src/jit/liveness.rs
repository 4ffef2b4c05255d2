// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a function's instructions use and define, its basic blocks, and which registers are live where.
//!
//! Liveness is computed together with what is dead: an instruction that only computes a value nobody reads uses
//! nothing, so that whole chains of them vanish.
use alloc::{collections::BTreeMap, vec, vec::Vec};
use core::ops::Range;

use crate::{
    helpers::Function,
    isa::{AluOp, AtomicOp, Op, Operand, Reg, Width},
    map::MapKind,
    program::{Instruction, ValidatedProgram},
};

/// A set of BPF registers without r10, which is an address computed from the stack pointer and never allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RegSet(u16);

impl RegSet {
    pub(super) fn insert(&mut self, reg: Reg) {
        if reg != Reg::FP {
            self.0 |= 1 << reg.number();
        }
    }

    pub(super) fn with(mut self, reg: Reg) -> Self {
        self.insert(reg);
        self
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn contains(self, reg: Reg) -> bool {
        self.0 >> reg.number() & 1 != 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Reg> {
        Reg::all().filter(move |reg| self.contains(*reg))
    }

    pub(super) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    fn of(regs: impl IntoIterator<Item = Reg>) -> Self {
        regs.into_iter().fold(Self::default(), Self::with)
    }
}

/// What one instruction does to registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effects {
    pub(super) uses: RegSet,
    pub(super) defines: Option<Reg>,
    /// It calls: caller-saved registers do not survive it.
    pub(super) calls: bool,
    /// Nothing but `defines` comes of it.
    pure: bool,
}

impl Effects {
    /// The registers whose old values do not survive.
    fn kills(&self) -> RegSet {
        let clobbered = if self.calls {
            RegSet::of(Reg::arguments())
        } else {
            RegSet::default()
        };
        RegSet::of(self.defines).union(clobbered)
    }

    /// Whether the instruction need not be emitted, with these registers live after it.
    pub(super) fn is_dead(&self, live_out: RegSet) -> bool {
        self.pure && self.defines.is_some_and(|reg| !live_out.contains(reg))
    }

    /// What is live before it, from what is live after it.
    fn live_in(&self, live_out: RegSet) -> RegSet {
        if self.is_dead(live_out) {
            return live_out;
        }
        live_out.without(self.kills()).union(self.uses)
    }
}

/// A straight run of instructions, by index within the function.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) range: Range<usize>,
    pub(super) live_in: RegSet,
    pub(super) reachable: bool,
}

/// A function's control flow and liveness.
#[derive(Debug)]
pub(super) struct Flow<'p> {
    program: &'p ValidatedProgram,
    /// The function's instructions.
    pub(super) body: &'p [Instruction],
    /// Index of the first of them in the program.
    pub(super) start: usize,
    /// In order of the code; the first is the entry.
    pub(super) blocks: Vec<Block>,
    /// Calls of `bpf_tail_call`, with the program array's index if it is known.
    pub(super) tail_calls: BTreeMap<usize, Option<u32>>,
    /// Calls of `bpf_map_lookup_elem` with a constant array map, which are emitted in place.
    pub(super) inlined: BTreeMap<usize, Lookup>,
}

/// A lookup in an array that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup {
    /// The map's index.
    pub(super) map: u32,
    /// The key's offset from r10, if r2 is known to point there; r2 is not read then.
    pub(super) key: Option<i16>,
}

/// What is known of a register's value within a block.
#[derive(Clone, Copy)]
enum Known {
    Map(u32),
    /// r10 and this offset.
    Frame(i32),
}

/// For each function of a program the argument registers that it reads.
pub(super) type Arguments = [RegSet];

/// The flows of all functions of a program, and what each reads of its arguments.
pub(super) fn analyse(program: &ValidatedProgram) -> (Vec<Flow<'_>>, Vec<RegSet>) {
    /// Rounds after which every call is taken to read all five arguments, so that long chains of calls stay linear.
    const ROUNDS: usize = 8;
    let mut flows: Vec<_> = program
        .functions()
        .iter()
        .map(|function| Flow::new(program, function))
        .collect();
    let mut arguments = vec![RegSet::default(); flows.len()];
    for round in 0.. {
        if round == ROUNDS {
            arguments.fill(RegSet::of(Reg::arguments()));
        }
        let mut changed = false;
        for (index, flow) in flows.iter_mut().enumerate().rev() {
            let live = flow.solve(&arguments);
            if let Some(known) = arguments.get_mut(index) {
                changed |= live.without(*known) != RegSet::default();
                *known = known.union(live);
            }
        }
        if !changed || round >= ROUNDS {
            break;
        }
    }
    (flows, arguments)
}

impl<'p> Flow<'p> {
    fn new(program: &'p ValidatedProgram, function: &Range<u32>) -> Self {
        let range = function.start as usize..function.end as usize;
        let body = program
            .instructions()
            .get(range.clone())
            .unwrap_or_default();
        let mut leaders: Vec<_> = body
            .iter()
            .enumerate()
            .filter(|(_, i)| i.op.jump().is_some() || i.op == Op::Exit)
            .flat_map(|(index, i)| {
                let target = i.op.jump().map(|_| i.target as usize - range.start);
                [Some(index + 1), target]
            })
            .flatten()
            .chain([0])
            .filter(|leader| *leader < body.len())
            .collect();
        leaders.sort_unstable();
        leaders.dedup();
        let ends = leaders.iter().skip(1).copied().chain([body.len()]);
        let blocks = leaders
            .iter()
            .zip(ends)
            .map(|(&start, end)| Block {
                range: start..end,
                live_in: RegSet::default(),
                reachable: false,
            })
            .collect();
        let mut flow = Self {
            program,
            body,
            start: range.start,
            blocks,
            tail_calls: BTreeMap::new(),
            inlined: BTreeMap::new(),
        };
        flow.find_reachable();
        flow.find_inlined();
        flow
    }

    /// The instructions of a block.
    pub(super) fn code(&self, block: &Block) -> &'p [Instruction] {
        self.body.get(block.range.clone()).unwrap_or_default()
    }

    /// The index of the block that starts at (or holds) an instruction of the function.
    fn block_at(&self, index: usize) -> usize {
        let after = self.blocks.partition_point(|b| b.range.start <= index);
        after.saturating_sub(1)
    }

    /// The indices of the blocks that may follow one.
    pub(super) fn successors(&self, block: usize) -> impl Iterator<Item = usize> {
        let last = self.blocks.get(block).and_then(|b| self.code(b).last());
        let jump = last
            .filter(|i| i.op.jump().is_some())
            .map(|i| self.block_at((i.target as usize).saturating_sub(self.start)));
        let next = last.filter(|i| i.op.falls_through()).map(|_| block + 1);
        [next, jump].into_iter().flatten()
    }

    fn find_reachable(&mut self) {
        let mut work = vec![0];
        while let Some(block) = work.pop() {
            if let Some(b) = self.blocks.get_mut(block).filter(|b| !b.reachable) {
                b.reachable = true;
                work.extend(self.successors(block));
            }
        }
    }

    /// Follows maps and places in the frame through each block to the lookups that use them.
    fn find_inlined(&mut self) {
        for block in &self.blocks {
            let mut known = [None; Reg::COUNT];
            known[Reg::FP.index()] = Some(Known::Frame(0));
            let (width, mov, add) = (Width::W64, AluOp::Mov, AluOp::Add);
            for (index, i) in block.range.clone().zip(self.code(block)) {
                let called = self.program.called(i.op).map(|called| called.function);
                if matches!(called, Some(Function::Engine)) {
                    let array = match known[Reg::R2.index()] {
                        Some(Known::Map(map)) => Some(map),
                        _ => None,
                    };
                    self.tail_calls.insert(index, array);
                }
                let value = match i.op {
                    Op::LoadMap { map, .. } => Some(Known::Map(map)),
                    Op::Alu {
                        width: w,
                        op,
                        src: Operand::Reg(src),
                        ..
                    } if (w, op) == (width, mov) => known[src.index()],
                    Op::Alu {
                        width: w,
                        op,
                        dst,
                        src: Operand::Imm(imm),
                    } if (w, op) == (width, add) => match known[dst.index()] {
                        Some(Known::Frame(off)) => off.checked_add(imm).map(Known::Frame),
                        _ => None,
                    },
                    Op::Call { helper: 1 } => {
                        if let Some(Known::Map(map)) = known[Reg::R1.index()]
                            && self.is_plain_array(map)
                        {
                            let key = match known[Reg::R2.index()] {
                                Some(Known::Frame(off)) => i16::try_from(off).ok(),
                                _ => None,
                            };
                            self.inlined.insert(index, Lookup { map, key });
                        }
                        None
                    }
                    _ => None,
                };
                if i.op.calls() {
                    Reg::arguments().for_each(|reg| known[reg.index()] = None);
                }
                if let Some(dst) = i.op.defines() {
                    known[dst.index()] = value;
                }
            }
        }
    }

    fn is_plain_array(&self, map: u32) -> bool {
        self.program.map(map).is_some_and(|map| {
            map.definition().kind == MapKind::ARRAY && map.value_address(0).is_some()
        })
    }

    /// What the instruction at `index` does to registers.
    pub(super) fn effects(&self, index: usize, i: &Instruction, arguments: &Arguments) -> Effects {
        let operand = |src| match src {
            Operand::Reg(reg) => RegSet::default().with(reg),
            Operand::Imm(_) => RegSet::default(),
        };
        let mut calls = false;
        let uses = match i.op {
            Op::Alu { op, dst, src, .. } if !op.is_move() => operand(src).with(dst),
            Op::Alu { src, .. } => operand(src),
            Op::Neg { dst, .. } | Op::Swap { dst, .. } => RegSet::default().with(dst),
            Op::Load { base, .. } | Op::LoadAcquire { base, .. } => RegSet::default().with(base),
            Op::Store { base, src, .. } => operand(src).with(base),
            Op::StoreRelease { base, src, .. } => RegSet::of([base, src]),
            Op::Atomic {
                op: AtomicOp::Cmpxchg,
                base,
                src,
                ..
            } => RegSet::of([base, src, Reg::R0]),
            Op::Atomic { base, src, .. } => RegSet::of([base, src]),
            Op::If { dst, src, .. } => operand(src).with(dst),
            Op::Call { .. } | Op::CallKernel { .. } => {
                if let Some(lookup) = self.inlined.get(&index) {
                    return Effects {
                        uses: RegSet::of(lookup.key.is_none().then_some(Reg::R2)),
                        defines: Some(Reg::R0),
                        calls: false,
                        pure: true,
                    };
                }
                calls = true;
                let called = self.program.called(i.op);
                let count = called.map_or(5, |helper| helper.arguments.len());
                RegSet::of(Reg::arguments().take(count))
            }
            Op::CallLocal { .. } => {
                calls = true;
                let callee = self.callee(i);
                arguments.get(callee).copied().unwrap_or_default()
            }
            Op::CallReg { target } => {
                calls = true;
                RegSet::of(Reg::arguments()).with(target)
            }
            Op::Exit => RegSet::of([Reg::R0]),
            Op::LoadFunction { .. }
            | Op::LoadVariable { .. }
            | Op::LoadImm { .. }
            | Op::LoadMap { .. }
            | Op::LoadMapValue { .. }
            | Op::Goto { .. } => RegSet::default(),
        };
        let pure = matches!(
            i.op,
            Op::Alu { .. }
                | Op::Neg { .. }
                | Op::Swap { .. }
                | Op::LoadImm { .. }
                | Op::LoadMap { .. }
                | Op::LoadMapValue { .. }
                | Op::LoadFunction { .. }
                | Op::LoadVariable { .. }
        );
        Effects {
            uses,
            defines: i.op.defines(),
            calls,
            pure,
        }
    }

    /// The index of the function that an instruction calls or names.
    pub(super) fn callee(&self, i: &Instruction) -> usize {
        let functions = self.program.functions();
        functions.partition_point(|f| f.start < i.target)
    }

    /// What is live after each instruction of a block, first to last, into `out`; and what is live before the first.
    pub(super) fn live_outs(
        &self,
        block: usize,
        arguments: &Arguments,
        out: &mut Vec<RegSet>,
    ) -> RegSet {
        let mut live = self
            .successors(block)
            .filter_map(|next| self.blocks.get(next))
            .fold(RegSet::default(), |live, next| live.union(next.live_in));
        out.clear();
        let Some(b) = self.blocks.get(block) else {
            return live;
        };
        for (index, i) in b.range.clone().zip(self.code(b)).rev() {
            out.push(live);
            live = self.effects(index, i, arguments).live_in(live);
        }
        out.reverse();
        live
    }

    /// The instructions that are emitted, with their index.
    pub(super) fn emitted(&self, arguments: &Arguments) -> Vec<(usize, &'p Instruction)> {
        let mut emitted = Vec::new();
        let mut live_outs = Vec::new();
        for (number, block) in self.blocks.iter().enumerate().filter(|(_, b)| b.reachable) {
            self.live_outs(number, arguments, &mut live_outs);
            let code = block.range.clone().zip(self.code(block)).zip(&live_outs);
            let alive = |&((index, i), live_out): &((usize, &'p Instruction), &RegSet)| {
                !self.effects(index, i, arguments).is_dead(*live_out)
            };
            emitted.extend(code.filter(alive).map(|(instruction, _)| instruction));
        }
        emitted
    }

    /// Computes what is live into each block; returns it for the entry.
    fn solve(&mut self, arguments: &Arguments) -> RegSet {
        let mut predecessors = vec![Vec::new(); self.blocks.len()];
        for block in 0..self.blocks.len() {
            for next in self.successors(block) {
                if let Some(list) = predecessors.get_mut(next) {
                    list.push(block);
                }
            }
        }
        let mut work: Vec<_> = (0..self.blocks.len()).collect();
        let mut queued = vec![true; self.blocks.len()];
        let mut scratch = Vec::new();
        while let Some(block) = work.pop() {
            if let Some(queued) = queued.get_mut(block) {
                *queued = false;
            }
            let live = self.live_outs(block, arguments, &mut scratch);
            let Some(b) = self.blocks.get_mut(block).filter(|b| b.live_in != live) else {
                continue;
            };
            b.live_in = live;
            for &before in predecessors.get(block).into_iter().flatten() {
                if let Some(queued) = queued.get_mut(before).filter(|queued| !**queued) {
                    *queued = true;
                    work.push(before);
                }
            }
        }
        self.blocks
            .first()
            .map_or_else(RegSet::default, |b| b.live_in)
    }
}
