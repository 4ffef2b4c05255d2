// SPDX-License-Identifier: MIT OR Apache-2.0
//! How much stack a function has taken at each of its instructions, followed through its code.
//!
//! .eh_frame does not say: once x29 is the frame, its rules are relative to it, and what SP does afterwards is left out. So the
//! code is followed from the entry with SP's distance from its value there, through both ways of every branch.

use std::collections::{BTreeMap, BTreeSet};

use a64::Inst;
use a64::inst::{AddSub, BranchRegOp, ExceptionOp, LogicalImmOp, Mode9, PairMode};

use crate::callgraph::written;
use crate::linked::{Function, Linked};

/// The registers that a call keeps: x19 to x29 (AAPCS64 6.1.1).
const CALLEE_SAVED: std::ops::Range<usize> = 19..30;
/// How often one instruction may be reached with ever more stack before that counts as a loop without end.
const PASSES: usize = 8;

/// The stack of a function.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Frames {
    /// The most bytes below SP's value at the entry.
    pub(crate) most: u64,
    /// By the address of each branch: bytes at it.
    pub(crate) at: BTreeMap<u64, u64>,
}

/// The code changes SP in a way that is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its stack is not known: at +{0:#x} SP changes in a way that is not followed")]
pub(crate) struct FrameError(pub(crate) u64);

/// What is known at an instruction: values relative to SP at the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    /// At most this: SP is there or, after an alignment, above.
    sp: i64,
    registers: [Option<i64>; 31],
}

impl State {
    /// What holds whichever of the two is the case; `None` if `other` says nothing new.
    fn join(&self, other: &Self) -> Option<Self> {
        let mut joined = self.clone();
        joined.sp = self.sp.min(other.sp);
        for (mine, others) in joined.registers.iter_mut().zip(other.registers) {
            *mine = mine.filter(|value| others == Some(*value));
        }
        (joined != *self).then_some(joined)
    }

    fn get(&self, number: u8) -> Option<i64> {
        match number {
            31 => Some(self.sp),
            number => *self.registers.get(usize::from(number))?,
        }
    }

    /// Sets a register, 31 for SP; `None` if SP is not known afterwards.
    fn set(&mut self, number: u8, value: Option<i64>) -> Option<()> {
        match self.registers.get_mut(usize::from(number)) {
            Some(register) => *register = value,
            None => self.sp = value?,
        }
        Some(())
    }

    /// Carries out what an instruction does to SP and to copies of it; `None` if SP is not known afterwards.
    fn step(&mut self, inst: Inst) -> Option<()> {
        match inst {
            Inst::AddSubImm {
                op, rd, rn, imm, ..
            } => {
                let distance = i64::try_from(imm.value()).ok()?;
                let distance = if op == AddSub::Add {
                    distance
                } else {
                    -distance
                };
                let value = self.get(rn.number()).map(|value| value + distance);
                self.set(rd.number(), value)
            }
            // An alignment downwards takes up to one byte less than what it aligns to.
            Inst::LogicalImm {
                op: LogicalImmOp::And,
                rd,
                rn,
                imm,
            } => {
                let mask = imm.value();
                let lost = i64::try_from(!mask)
                    .ok()
                    .filter(|_| mask.leading_ones() > 32);
                let value = self.registers.get(usize::from(rn.number())).copied();
                let value = value.flatten().zip(lost).map(|(value, lost)| value - lost);
                self.set(rd.number(), value)
            }
            Inst::AddSubExt { rd, .. } | Inst::LogicalImm { rd, .. } => self.set(rd.number(), None),
            Inst::LoadStore9 {
                mode,
                rn,
                offset,
                op,
                rt,
            } => {
                if op.is_load() && rt.reg().is_some() {
                    self.set(rt.number(), None)?;
                }
                match mode {
                    Mode9::Unscaled => Some(()),
                    _ => self.move_by(rn.number(), offset.value()),
                }
            }
            Inst::Pair {
                op,
                mode,
                rn,
                offset,
                rt,
                rt2,
            } => {
                let loads = !matches!(op, a64::inst::PairOp::StpW | a64::inst::PairOp::StpX);
                for register in [rt, rt2].into_iter().filter(|r| loads && r.reg().is_some()) {
                    self.set(register.number(), None)?;
                }
                match mode {
                    PairMode::Offset => Some(()),
                    _ => self.move_by(rn.number(), offset.value() * i64::from(op.bytes())),
                }
            }
            Inst::Branch { link: true, .. }
            | Inst::BranchReg {
                op: BranchRegOp::Blr,
                ..
            } => {
                for (number, register) in self.registers.iter_mut().enumerate() {
                    *register = register.filter(|_| CALLEE_SAVED.contains(&number));
                }
                Some(())
            }
            // All else writes general registers only; a copy of SP that it overwrites is forgotten.
            other => {
                let all = written(other).is_none();
                let numbers = written(other).unwrap_or_default();
                for (number, register) in (0..).zip(&mut self.registers) {
                    *register = register.filter(|_| !all && !numbers.contains(&Some(number)));
                }
                Some(())
            }
        }
    }

    fn move_by(&mut self, number: u8, bytes: i64) -> Option<()> {
        let value = self.get(number).map(|value| value + bytes);
        self.set(number, value)
    }
}

impl Frames {
    /// Follows a function's code.
    pub(crate) fn of(linked: &Linked, function: &Function) -> Result<Self, FrameError> {
        let own = function.range();
        let code: BTreeMap<u64, Option<Inst>> = linked
            .instructions(function)
            .map(|(pc, word)| (pc, Inst::decode(word)))
            .collect();
        let entry = State {
            sp: 0,
            registers: [None; 31],
        };
        let mut states: BTreeMap<u64, (State, usize)> = BTreeMap::new();
        let mut work = vec![(function.address, entry)];
        let mut frames = Self::default();
        // States at a switch; its targets are whatever nothing else leads to.
        let mut switches: Vec<State> = Vec::new();
        loop {
            while let Some((pc, state)) = work.pop() {
                let Some(inst) = code.get(&pc) else {
                    continue;
                };
                let state = match states.get_mut(&pc) {
                    None => {
                        states.insert(pc, (state.clone(), 1));
                        state
                    }
                    Some((known, passes)) => match known.join(&state) {
                        None => continue,
                        Some(joined) => {
                            *passes += usize::from(joined.sp != known.sp);
                            if *passes > PASSES {
                                return Err(FrameError(pc - function.address));
                            }
                            *known = joined.clone();
                            joined
                        }
                    },
                };
                let mut after = state.clone();
                let mut next = Some(pc + 4);
                if let Some(inst) = *inst {
                    after.step(inst).ok_or(FrameError(pc - function.address))?;
                    let depth = state.sp.unsigned_abs();
                    if inst.is_branch() {
                        let at = frames.at.entry(pc).or_default();
                        *at = depth.max(*at);
                    }
                    match inst {
                        Inst::Branch { link, offset } => {
                            let target = pc.wrapping_add_signed(offset.value());
                            if !link {
                                next = Some(target).filter(|target| own.contains(target));
                            }
                        }
                        Inst::BranchReg { op, .. } => match op {
                            BranchRegOp::Blr => {}
                            BranchRegOp::Br => {
                                switches.push(state.clone());
                                next = None;
                            }
                            BranchRegOp::Ret => next = None,
                        },
                        Inst::Exception {
                            op: ExceptionOp::Brk,
                            ..
                        }
                        | Inst::Eret
                        | Inst::Udf { .. } => next = None,
                        other if other.is_branch() => {
                            let target = other.offset().map(|o| pc.wrapping_add_signed(o));
                            let target = target.filter(|target| own.contains(target));
                            work.extend(target.map(|target| (target, after.clone())));
                        }
                        _ => {}
                    }
                }
                frames.most = frames.most.max(after.sp.min(0).unsigned_abs());
                work.extend(next.map(|next| (next, after)));
            }
            let unseen: BTreeSet<u64> = code
                .keys()
                .filter(|pc| !states.contains_key(pc))
                .copied()
                .collect();
            let Some(first) = unseen.first() else {
                return Ok(frames);
            };
            let Some(deepest) = switches.iter().min_by_key(|state| state.sp) else {
                return Ok(frames); // padding, or what only the unwinder would reach
            };
            let mut state = deepest.clone();
            // Which switch leads there is not known: only what all agree on holds.
            for other in &switches {
                state = state.join(other).unwrap_or(state);
            }
            work.push((*first, state));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callgraph::tests::{BR_X9, RET, bl};
    use crate::linked::tests::made_up;

    const STP_96: u32 = 0xa9ba_7bfd; // stp x29, x30, [sp, #-96]!
    const LDP_96: u32 = 0xa8c6_7bfd; // ldp x29, x30, [sp], #96
    const MOV_X29_SP: u32 = 0x9100_03fd;
    const MOV_SP_X29: u32 = 0x9100_03bf;
    const SUB_SP_512: u32 = 0xd108_03ff;
    const ADD_SP_512: u32 = 0x9108_03ff;
    const SUB_SP_4096: u32 = 0xd140_07ff;
    const SUB_X9_SP_64: u32 = 0xd101_03e9;
    const AND_SP_X9_64: u32 = 0x927a_e53f; // and sp, x9, #0xffffffffffffffc0
    const SUB_SP_X8: u32 = 0xcb28_63ff; // sub sp, sp, x8
    const CBZ_X0_PLUS_3: u32 = 0xb400_0060;
    const B_NE_MINUS_1: u32 = 0x54ff_ffe1;
    const STR_PRE_16: u32 = 0xf81f_0fe0; // str x0, [sp, #-16]!

    fn frames(words: &[u32]) -> Result<Frames, FrameError> {
        let linked = made_up(&[("f", words)]);
        Frames::of(&linked, &linked.functions[0])
    }

    fn depths(words: &[u32]) -> (u64, Vec<u64>) {
        let frames = frames(words).expect("frames");
        (frames.most, frames.at.into_values().collect())
    }

    #[test]
    fn prologues_are_added_up() {
        assert_eq!(depths(&[RET]), (0, vec![0]));
        assert_eq!(
            depths(&[
                STP_96,
                MOV_X29_SP,
                SUB_SP_512,
                bl(100),
                ADD_SP_512,
                LDP_96,
                RET
            ]),
            (608, vec![608, 0])
        );
        assert_eq!(
            depths(&[
                STP_96,
                MOV_X29_SP,
                SUB_SP_4096,
                bl(100),
                MOV_SP_X29,
                LDP_96,
                RET
            ]),
            (4192, vec![4192, 0])
        );
        assert_eq!(depths(&[STR_PRE_16, STR_PRE_16, bl(9)]), (32, vec![32]));
        assert_eq!(
            depths(&[
                STP_96,
                MOV_X29_SP,
                SUB_X9_SP_64,
                AND_SP_X9_64,
                bl(9),
                MOV_SP_X29,
                LDP_96,
                RET
            ]),
            (96 + 64 + 63, vec![96 + 64 + 63, 0])
        );
    }

    #[test]
    fn each_way_counts_for_itself() {
        // Without the frame: a tail call at depth 0; with it: a call.
        assert_eq!(
            depths(&[
                CBZ_X0_PLUS_3,
                STP_96,
                bl(50),
                crate::callgraph::tests::b(50)
            ]),
            (96, vec![0, 96, 96])
        );
        // What a switch leads to runs on the switch's frame.
        assert_eq!(
            depths(&[STP_96, BR_X9, bl(50), LDP_96, RET]),
            (96, vec![96, 96, 0])
        );
    }

    #[test]
    fn what_is_not_followed_is_an_error() {
        assert_eq!(frames(&[STP_96, SUB_SP_X8, RET]), Err(FrameError(4)));
        assert_eq!(frames(&[MOV_SP_X29, RET]), Err(FrameError(0)));
        // A loop that takes ever more.
        assert!(matches!(
            frames(&[SUB_SP_4096, B_NE_MINUS_1, RET]),
            Err(FrameError(_))
        ));
        // x29 does not survive being loaded.
        assert_eq!(
            frames(&[STP_96, MOV_X29_SP, LDP_96, MOV_SP_X29]),
            Err(FrameError(12))
        );
    }
}
