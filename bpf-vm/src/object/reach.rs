// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which instructions a program can reach, given the constants in it.
//!
//! `if (bpf_core_field_exists(...))`, `if (kernel_function)` and `if (CONFIG_X)` become branches on constants when an
//! object is loaded, and what they lead past may be nothing that this kernel has. Constants are followed through
//! registers and read-only data, not through the stack. Each block is walked again only if less is known at its start
//! than before, so time is linear in the program's length.
#![forbid(unsafe_code)]

use alloc::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    vec,
    vec::Vec,
};

use super::slots::op_at;
use crate::{
    interp::alu,
    isa::{AluOp, Insn, Op, Operand, Reg, Width},
    map::Map,
};

/// What is known of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    Nothing,
    Number(u64),
    /// The address of a byte of a map's first value.
    Value {
        map: u32,
        offset: u32,
    },
}

type State = [Known; Reg::COUNT];

/// For each slot, whether an instruction there may be executed.
pub(super) fn reachable(insns: &[Insn], maps: &[Arc<Map>]) -> Vec<bool> {
    let op = |slot: usize| op_at(insns, slot);
    // What comes out of a jump: slots whose states have to be kept.
    let mut targets = BTreeSet::new();
    let mut slot = 0;
    while slot < insns.len() {
        let found = op(slot);
        if let Some(off) = found.and_then(|op| op.jump().or(op.function())) {
            targets.extend(target(slot, off));
        }
        slot += found.map_or(1, Op::slots);
    }
    let mut reached = vec![false; insns.len()];
    let mut states: BTreeMap<usize, State> = BTreeMap::new();
    let mut work = Vec::new();
    meet(&mut states, &mut work, 0, [Known::Nothing; Reg::COUNT]);
    while let Some(start) = work.pop() {
        let Some(mut state) = states.get(&start).copied() else {
            continue;
        };
        let mut slot = start;
        while let Some(found) = op(slot) {
            if let Some(reached) = reached.get_mut(slot) {
                *reached = true;
            }
            // A function starts with nothing known.
            if let Some(to) = found.function().and_then(|off| target(slot, off)) {
                meet(&mut states, &mut work, to, [Known::Nothing; Reg::COUNT]);
            }
            let taken = branch(&state, found);
            if let Some(to) = found.jump().and_then(|off| target(slot, off))
                && taken != Some(false)
            {
                meet(&mut states, &mut work, to, state);
            }
            if taken == Some(true) || !found.falls_through() {
                break;
            }
            execute(&mut state, found, maps);
            slot += found.slots();
            if targets.contains(&slot) {
                meet(&mut states, &mut work, slot, state);
                break;
            }
        }
        // What does not decode is reached all the same, and is for the validator to refuse.
        if op(slot).is_none()
            && let Some(reached) = reached.get_mut(slot)
        {
            *reached = true;
        }
    }
    reached
}

/// The slot that an offset from a slot leads to.
fn target(slot: usize, off: i32) -> Option<usize> {
    let to = i64::try_from(slot).ok()? + 1 + i64::from(off);
    usize::try_from(to).ok()
}

/// Keeps what is known both at a slot and when it is come to; if that is less than before, it is to be walked again.
fn meet(states: &mut BTreeMap<usize, State>, work: &mut Vec<usize>, slot: usize, new: State) {
    let Some(known) = states.get_mut(&slot) else {
        states.insert(slot, new);
        work.push(slot);
        return;
    };
    let mut less = false;
    for (known, new) in known.iter_mut().zip(new) {
        if *known != new && *known != Known::Nothing {
            *known = Known::Nothing;
            less = true;
        }
    }
    if less {
        work.push(slot);
    }
}

fn get(state: &State, reg: Reg) -> Known {
    state.get(reg.index()).copied().unwrap_or(Known::Nothing)
}

fn operand(state: &State, operand: Operand) -> Known {
    match operand {
        Operand::Reg(reg) => get(state, reg),
        Operand::Imm(imm) => Known::Number(i64::from(imm).cast_unsigned()),
    }
}

/// Whether a jump is taken, as far as that is known.
fn branch(state: &State, op: Op) -> Option<bool> {
    match op {
        Op::Goto { .. } => Some(true),
        Op::If {
            width,
            cond,
            dst,
            src,
            ..
        } => match (get(state, dst), operand(state, src)) {
            (Known::Number(a), Known::Number(b)) => Some(alu::holds(width, cond, a, b)),
            _ => None,
        },
        _ => None,
    }
}

/// What is known after an instruction.
fn execute(state: &mut State, op: Op, maps: &[Arc<Map>]) {
    let result = match op {
        Op::Alu {
            width,
            op,
            dst,
            src,
        } => match (get(state, dst), operand(state, src)) {
            (_, copy) if op == AluOp::Mov && width == Width::W64 => copy,
            (_, Known::Number(b)) if op.is_move() => Known::Number(alu::alu(width, op, 0, b)),
            (Known::Number(a), Known::Number(b)) => Known::Number(alu::alu(width, op, a, b)),
            (Known::Value { map, offset }, Known::Number(b))
                if op == AluOp::Add && width == Width::W64 =>
            {
                let moved = u32::try_from(u64::from(offset).wrapping_add(b));
                moved.map_or(Known::Nothing, |offset| Known::Value { map, offset })
            }
            _ => Known::Nothing,
        },
        Op::Neg { width, dst } => match get(state, dst) {
            Known::Number(a) => Known::Number(alu::neg(width, a)),
            _ => Known::Nothing,
        },
        Op::LoadImm { value, .. } => Known::Number(value),
        Op::LoadMapValue { map, offset, .. } => Known::Value { map, offset },
        Op::Load {
            size,
            signed,
            base,
            off,
            ..
        } => match get(state, base) {
            Known::Value { map, offset } => {
                let at = i64::from(offset) + i64::from(off);
                let map = maps.get(map as usize);
                let read = map.and_then(|map| map.constant(at, size.bytes() as usize));
                match read {
                    Some(value) if signed => Known::Number(alu::sign_extend(size, value)),
                    Some(value) => Known::Number(value),
                    None => Known::Nothing,
                }
            }
            _ => Known::Nothing,
        },
        _ => Known::Nothing,
    };
    if op.calls() {
        for reg in Reg::arguments() {
            if let Some(known) = state.get_mut(reg.index()) {
                *known = Known::Nothing;
            }
        }
    }
    if let Some(known) = op.defines().and_then(|reg| state.get_mut(reg.index())) {
        *known = result;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asm::assemble;

    /// The slots of a text program that are not reached.
    fn dead(text: &str) -> Vec<usize> {
        let insns = assemble(text).unwrap();
        let reached = reachable(&insns, &[]);
        (0..insns.len()).filter(|&slot| !reached[slot]).collect()
    }

    #[test]
    fn constants_decide() {
        for (text, want) in [
            ("r1 = 0\nif r1 == 0 goto +1\nr0 = 1\nexit", &[2][..]),
            ("r1 = 1\nif r1 == 0 goto +1\nr0 = 1\nexit", &[]),
            // Through moves and arithmetic.
            (
                "r6 = 1\nr1 = r6\nr1 <<= 32\nr1 >>= 32\nr1 &= 2\nif r1 != 0 goto +1\nexit\nr0 = 1\nexit",
                &[7, 8],
            ),
            // Two ways that agree, and two that do not.
            (
                "if r2 == 0 goto +2\nr1 = 1\ngoto +1\nr1 = 1\nif r1 == 1 goto +1\nr0 = 9\nexit",
                &[5],
            ),
            (
                "if r2 == 0 goto +2\nr1 = 1\ngoto +1\nr1 = 2\nif r1 == 1 goto +1\nr0 = 9\nexit",
                &[],
            ),
            // A loop that changes it.
            (
                "r1 = 3\nr1 += -1\nif r1 != 2 goto +1\ngoto -3\nr0 = 7\nexit",
                &[],
            ),
            // A call leaves r1 to r5 undefined, and nothing else.
            (
                "r1 = 0\nr6 = 0\ncall 8\nif r1 == 0 goto +0\nif r6 == 0 goto +1\nr0 = 1\nexit",
                &[5],
            ),
            // Functions are reached where they are called, knowing nothing.
            (
                "r1 = 0\nif r1 == 0 goto +1\ncall local f\nexit\nf: r0 = 0\nexit",
                &[2, 4, 5],
            ),
            (
                "r1 = 0\ncall local f\nexit\nf: if r1 == 0 goto +1\nr0 = 0\nexit",
                &[],
            ),
        ] {
            assert_eq!(dead(text), want, "{text}");
        }
    }
}
