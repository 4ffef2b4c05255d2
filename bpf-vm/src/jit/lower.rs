// SPDX-License-Identifier: MIT OR Apache-2.0
//! From BPF instructions to steps, one for one; what an immediate makes trivial is gone at once.
use alloc::{vec, vec::Vec};
use core::ops::Range;

use super::{
    JitError, Target,
    flow::Flow,
    ir::{
        Addr, Binary, Block, Callee, End, Field, Name, NameSet, Node, Question, Rhs, Step, Test,
        bits,
    },
};
use crate::{
    helpers::{Function, Helper},
    isa::{AluOp, AtomicOp, Op, Operand, Reg, Size, Swap, Width},
    map::MapKind,
    program::{Instruction, ValidatedProgram},
};

/// An immediate as the operation sees it: sign extended to the width, upper half zero in 32 bits.
pub(super) const fn value(width: Width, imm: i32) -> u64 {
    match width {
        Width::W32 => imm as u32 as u64,
        Width::W64 => imm as i64 as u64,
    }
}

/// A value cut to a width.
pub(super) const fn truncated(width: Width, value: u64) -> u64 {
    match width {
        Width::W32 => value as u32 as u64,
        Width::W64 => value,
    }
}

/// The blocks of a function, by index of their instructions, and which of them can be reached.
fn blocks(body: &[Instruction], start: usize) -> (Vec<Range<usize>>, Vec<bool>) {
    let target = |i: &Instruction| {
        i.op.jump()
            .map(|_| (i.target as usize).saturating_sub(start))
    };
    let mut leaders: Vec<_> = body
        .iter()
        .enumerate()
        .filter(|(_, i)| i.op.jump().is_some() || i.op == Op::Exit)
        .flat_map(|(index, i)| [Some(index + 1), target(i)])
        .flatten()
        .chain([0])
        .filter(|leader| *leader < body.len())
        .collect();
    leaders.sort_unstable();
    leaders.dedup();
    let ends = leaders.iter().skip(1).copied().chain([body.len()]);
    let ranges: Vec<_> = leaders.iter().zip(ends).map(|(s, e)| *s..e).collect();
    let mut reachable = vec![false; ranges.len()];
    let mut work = vec![0];
    while let Some(block) = work.pop() {
        let Some((seen, range)) = reachable.get_mut(block).zip(ranges.get(block)) else {
            continue;
        };
        if core::mem::replace(seen, true) {
            continue;
        }
        let last = body.get(range.end.saturating_sub(1));
        work.extend(last.and_then(target).map(|to| block_at(&ranges, to)));
        work.extend(last.filter(|i| i.op.falls_through()).map(|_| block + 1));
    }
    (ranges, reachable)
}

/// The number of the block that starts at (or holds) an instruction of the function.
fn block_at(ranges: &[Range<usize>], index: usize) -> usize {
    let after = ranges.partition_point(|range| range.start <= index);
    after.saturating_sub(1)
}

/// Makes one function's blocks of steps.
pub(super) fn lower<'p>(
    program: &'p ValidatedProgram,
    function: &Range<u32>,
    target: &Target<'_>,
) -> Result<Flow<'p>, JitError> {
    let start = function.start as usize;
    let body = program.instructions().get(start..function.end as usize);
    let body = body.unwrap_or_default();
    let (ranges, reachable) = blocks(body, start);
    let mut list = Vec::with_capacity(ranges.len() + 1);
    // An entry that nothing leads to; instructions' blocks are numbered from 1.
    list.push(Block {
        steps: Vec::new(),
        end: End::Goto {
            to: 1,
            explicit: false,
        },
        end_at: 0,
        live_in: NameSet::default(),
        reachable: true,
    });
    for (number, (range, reachable)) in ranges.iter().zip(reachable).enumerate() {
        let last = range.end.saturating_sub(1);
        let mut block = Block {
            steps: Vec::new(),
            end: End::Exit(Name::R0),
            end_at: last as u32,
            live_in: NameSet::default(),
            reachable,
        };
        if reachable {
            let mut lowering = Lowering {
                program,
                target,
                maps: [None; Reg::COUNT],
                steps: Vec::with_capacity(range.len()),
            };
            for (index, i) in range
                .clone()
                .zip(body.get(range.clone()).unwrap_or_default())
            {
                lowering.instruction(i, index as u32)?;
            }
            block.steps = lowering.steps;
            let to =
                |i: &Instruction| 1 + block_at(&ranges, (i.target as usize).saturating_sub(start));
            let next = number + 2;
            block.end = match body.get(last) {
                Some(i) if i.op == Op::Exit => End::Exit(Name::R0),
                Some(i) => match i.op {
                    Op::Goto { .. } => End::Goto {
                        to: to(i),
                        explicit: true,
                    },
                    Op::If {
                        width,
                        cond,
                        dst,
                        src,
                        ..
                    } if to(i) != next => End::Branch {
                        test: Test {
                            width,
                            cond,
                            a: dst.into(),
                            b: operand(width, src),
                        },
                        taken: to(i),
                        next,
                    },
                    _ => End::Goto {
                        to: next,
                        explicit: false,
                    },
                },
                None => End::Exit(Name::R0),
            };
        }
        list.push(block);
    }
    Ok(Flow { body, blocks: list })
}

fn operand(width: Width, src: Operand) -> Rhs {
    match src {
        Operand::Reg(reg) => Rhs::Name(reg.into()),
        Operand::Imm(imm) => Rhs::Imm(value(width, imm)),
    }
}

/// A block on its way to steps.
struct Lowering<'a, 'p> {
    program: &'p ValidatedProgram,
    target: &'a Target<'a>,
    /// Which registers hold which map.
    maps: [Option<u32>; Reg::COUNT],
    steps: Vec<Step>,
}

impl Lowering<'_, '_> {
    fn instruction(&mut self, i: &Instruction, at: u32) -> Result<(), JitError> {
        let map = match i.op {
            Op::LoadMap { map, .. } => Some(map),
            Op::Alu {
                width: Width::W64,
                op: AluOp::Mov,
                src: Operand::Reg(src),
                ..
            } => self.maps.get(src.index()).copied().flatten(),
            _ => None,
        };
        let (dst, node) = match self.node(i)? {
            Some(node) => (i.op.defines().map(Name::from), node),
            None => return Ok(()),
        };
        self.steps.push(Step {
            node,
            dst,
            also: None,
            at,
        });
        if i.op.calls() {
            let arguments = self.maps.iter_mut().skip(1).take(Reg::arguments().count());
            arguments.for_each(|map| *map = None);
        }
        if let Some(known) = i.op.defines().and_then(|r| self.maps.get_mut(r.index())) {
            *known = map;
        }
        Ok(())
    }

    /// What an instruction does; nothing if it changes nothing, or only ends its block.
    fn node(&self, i: &Instruction) -> Result<Option<Node>, JitError> {
        let functions = self.program.functions();
        let function = || functions.partition_point(|f| f.start < i.target) as u32;
        Ok(Some(match i.op {
            Op::Alu {
                width,
                op,
                dst,
                src,
            } => return Ok(alu(width, op, dst.into(), src)),
            Op::Neg { width, dst } => Node::Neg {
                width,
                src: dst.into(),
            },
            Op::Swap {
                kind: Swap::Le,
                size,
                dst,
            } => {
                return Ok((size != Size::Dw)
                    .then(|| Node::Field(Field::low(dst.into(), size.bits() as u8))));
            }
            Op::Swap { kind, size, dst } => Node::Swap {
                kind,
                size,
                src: dst.into(),
            },
            Op::LoadImm { value, .. } => Node::Const(value),
            Op::LoadMap { .. } | Op::LoadMapValue { .. } | Op::LoadVariable { .. } => {
                Node::Const(self.program.constant_address(i.op).unwrap_or(0))
            }
            Op::LoadFunction { .. } => Node::Function(function()),
            Op::Load {
                size,
                signed,
                base,
                off,
                ..
            } => Node::Load {
                size,
                signed,
                addr: Addr::at(base.into(), off.into()),
            },
            Op::Store {
                size,
                base,
                off,
                src,
            } => Node::Store {
                size,
                addr: Addr::at(base.into(), off.into()),
                src: operand(Width::W64, src),
            },
            Op::Atomic {
                size,
                op,
                base,
                off,
                src,
            } => Node::Atomic {
                size,
                op,
                addr: Addr::at(base.into(), off.into()),
                src: src.into(),
                compared: (op == AtomicOp::Cmpxchg).then_some(Name::R0),
            },
            Op::LoadAcquire {
                size, base, off, ..
            } => Node::LoadAcquire {
                size,
                addr: Addr::at(base.into(), off.into()),
            },
            Op::StoreRelease {
                size,
                base,
                off,
                src,
            } => Node::StoreRelease {
                size,
                addr: Addr::at(base.into(), off.into()),
                src: src.into(),
            },
            Op::Goto { .. } | Op::If { .. } | Op::Exit => return Ok(None),
            Op::CallLocal { .. } => Node::Call {
                callee: Callee::Local(function()),
                arguments: NameSet::arguments(),
            },
            Op::CallReg { target } => Node::Call {
                callee: Callee::Register(target.into()),
                arguments: NameSet::arguments(),
            },
            Op::Call { .. } | Op::CallKernel { .. } => self.call(i)?,
        }))
    }

    /// A call of a helper or a kernel function.
    fn call(&self, i: &Instruction) -> Result<Node, JitError> {
        let called = self.program.called(i.op);
        let known = |reg: Reg| self.maps.get(reg.index()).copied().flatten();
        let count = called.map_or(5, |helper| helper.arguments.len());
        let arguments = NameSet::of(Reg::arguments().take(count).map(Name::from));
        let attached = called.is_some_and(Helper::needs_attachment);
        if matches!(called.map(|c| c.function), Some(Function::Engine)) {
            let array = known(Reg::R2).and_then(|map| self.program.map(map));
            let array =
                array.and_then(|map| Some((map.definition().max_entries, map.tail_entries()?)));
            let (slots, entries) = array.ok_or(JitError::TailCall { slot: i.slot })?;
            let callee = Callee::Tail { slots, entries };
            return Ok(Node::Call { callee, arguments });
        }
        if i.op == (Op::Call { helper: 1 })
            && let Some(map) = known(Reg::R1)
            && self.is_array(map)
        {
            let key = Addr::at(Reg::R2.into(), 0);
            return Ok(Node::Lookup { map, key });
        }
        if let Op::Call { helper } = i.op
            && let Some(question) = self.question(helper)
        {
            return Ok(Node::Ask(question));
        }
        let address = match i.op {
            Op::Call { helper } => (self.target.helper)(helper).ok_or(JitError::Helper(helper))?,
            Op::CallKernel { function } => called
                .and_then(|called| called.function.address())
                .ok_or(JitError::Kfunc(function))?,
            _ => 0,
        };
        let callee = Callee::Address { address, attached };
        Ok(Node::Call { callee, arguments })
    }

    /// What a helper of that number is asked for, if that is known in place.
    fn question(&self, helper: u32) -> Option<Question> {
        let known = &self.target.in_place;
        match helper {
            5 => known.clock.map(Question::Time),
            8 => known.cpu.map(Question::Cpu),
            14 => known.task_number.map(Question::TaskNumber),
            35 | 158 => known.task.map(Question::Task),
            _ => None,
        }
    }

    /// Whether lookups in a map are done in place.
    fn is_array(&self, map: u32) -> bool {
        self.program.map(map).is_some_and(|map| {
            let here = match map.definition().kind {
                MapKind::ARRAY => true,
                MapKind::PERCPU_ARRAY => self.target.in_place.cpu.is_some(),
                _ => false,
            };
            // The factors of the products that a value is found by.
            let strides = [map.value_stride(), map.cpu_stride()];
            here && map.value_address(0).is_some()
                && map.value_stride().is_some()
                && strides.iter().flatten().all(|s| u32::try_from(*s).is_ok())
        })
    }
}

/// What leaves a value as it is: nothing in 64 bits, a zero extension in 32.
fn same(width: Width, dst: Name) -> Option<Node> {
    match width {
        Width::W32 => Some(Node::Field(Field::low(dst, 32))),
        Width::W64 => None,
    }
}

fn alu(width: Width, op: AluOp, dst: Name, src: Operand) -> Option<Node> {
    let extend = |src: Reg, len| Field {
        signed: true,
        width,
        ..Field::low(src.into(), len)
    };
    let binary = match (op, src) {
        (AluOp::Mov, Operand::Reg(src)) => {
            return Some(match width {
                Width::W32 => Node::Field(Field::low(src.into(), 32)),
                Width::W64 => Node::Copy(src.into()),
            });
        }
        (AluOp::Movsx8, Operand::Reg(src)) => return Some(Node::Field(extend(src, 8))),
        (AluOp::Movsx16, Operand::Reg(src)) => return Some(Node::Field(extend(src, 16))),
        (AluOp::Movsx32, Operand::Reg(src)) => return Some(Node::Field(extend(src, 32))),
        (AluOp::Mov | AluOp::Movsx8 | AluOp::Movsx16 | AluOp::Movsx32, Operand::Imm(imm)) => {
            return Some(Node::Const(value(width, imm)));
        }
        (AluOp::Add, _) => Binary::Add,
        (AluOp::Sub, _) => Binary::Sub,
        (AluOp::Mul, _) => Binary::Mul,
        (AluOp::Div, _) => Binary::Div,
        (AluOp::Sdiv, _) => Binary::Sdiv,
        (AluOp::Or, _) => Binary::Or,
        (AluOp::And, _) => Binary::And,
        (AluOp::Xor, _) => Binary::Xor,
        (AluOp::Lsh, _) => Binary::Lsh,
        (AluOp::Rsh, _) => Binary::Rsh,
        (AluOp::Arsh, _) => Binary::Arsh,
        (AluOp::Mod, _) => Binary::Mod,
        (AluOp::Smod, _) => Binary::Smod,
    };
    match src {
        Operand::Reg(src) => Some(Node::Binary {
            op: binary,
            width,
            a: dst,
            b: Rhs::Name(src.into()),
        }),
        Operand::Imm(imm) => with_constant(binary, width, dst, value(width, imm)),
    }
}

/// `a OP value` in the simplest form; nothing if that is `a`.
pub(super) fn with_constant(op: Binary, width: Width, a: Name, value: u64) -> Option<Node> {
    let size = bits(width);
    let ones = value == truncated(width, u64::MAX);
    let power = value
        .is_power_of_two()
        .then(|| value.trailing_zeros() as u8);
    let amount = (value & u64::from(size - 1)) as u8;
    let shift = |signed, lsb, at, len| {
        Some(Node::Field(Field {
            signed,
            width,
            src: a,
            lsb,
            len,
            at,
        }))
    };
    let left = |bits: u8| match bits {
        0 => same(width, a),
        _ => shift(false, 0, bits, size - bits),
    };
    let right = |signed, bits: u8| match bits {
        0 => same(width, a),
        _ => shift(signed, bits, 0, size - bits),
    };
    let constant = |value| Some(Node::Const(value));
    let with = |op, value| {
        Some(Node::Binary {
            op,
            width,
            a,
            b: Rhs::Imm(value),
        })
    };
    match (op, value) {
        (Binary::Add | Binary::Sub | Binary::Or | Binary::Xor, 0)
        | (Binary::Mod | Binary::Smod, 0)
        | (Binary::Mul | Binary::Div | Binary::Sdiv, 1) => same(width, a),
        (Binary::And | Binary::Mul | Binary::Div | Binary::Sdiv, 0)
        | (Binary::Mod | Binary::Smod, 1) => constant(0),
        (Binary::And, _) if ones => same(width, a),
        (Binary::Or, _) if ones => constant(value),
        (Binary::Smod, _) if ones => constant(0),
        (Binary::Mul | Binary::Sdiv, _) if ones => Some(Node::Neg { width, src: a }),
        (Binary::Sub, _) => with(Binary::Add, truncated(width, value.wrapping_neg())),
        (Binary::And, _) if value.wrapping_add(1).is_power_of_two() => {
            Some(Node::Field(Field::low(a, value.count_ones() as u8)))
        }
        (Binary::Lsh, _) => left(amount),
        (Binary::Rsh, _) => right(false, amount),
        (Binary::Arsh, _) => right(true, amount),
        (Binary::Mul, _) if let Some(power) = power => left(power),
        (Binary::Div, _) if let Some(power) = power => right(false, power),
        (Binary::Mod, _) if power.is_some() => with_constant(Binary::And, width, a, value - 1),
        _ => with(op, value),
    }
}
