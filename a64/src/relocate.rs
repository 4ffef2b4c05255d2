// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves a displaced instruction: other words, other address, the same effect.
//!
//! What depends on the PC is re-emitted: branches, ADR, ADRP, loads and prefetches of literals, and
//! the calls, whose return address stays the one after the *original* place, so that no address of
//! the new place remains on anyone's stack. No register is used that the instruction does not write
//! itself, and NZCV is left alone. Everything else is copied. Words of the branch and system group
//! (Arm ARM C4.1) that this crate cannot name are refused: they may depend on the PC.

use crate::assembler::{AsmError, Assembler};
use crate::imm::{Imm19, ImmError, UImm12};
use crate::inst::{Access, BranchRegOp, Cond, Inst, LiteralOp};
use crate::ops;
use crate::reg::{Reg, X30};
use core::fmt;

/// Why an instruction cannot be displaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelocateError {
    /// It depends on the PC, or may, in a way that is not known here.
    Unknown {
        /// The word.
        word: u32,
        /// Where it is from.
        pc: u64,
    },
    /// It needs a register besides those it writes, and none is free.
    NoRegister {
        /// The instruction.
        inst: Inst,
        /// Where it is from.
        pc: u64,
    },
    /// The new place does not reach its target, or has no room for it.
    Assemble {
        /// The word.
        word: u32,
        /// Where it is from.
        pc: u64,
        /// What the assembler found.
        error: AsmError,
    },
}

impl fmt::Display for RelocateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WAY_OUT: &str = "hook another instruction, or the function's entry";
        match self {
            Self::Unknown { word, pc } => write!(
                f,
                "cannot displace {word:#010x} from {pc:#x}: not an instruction known to be independent of its address; {WAY_OUT}"
            ),
            Self::NoRegister { inst, pc } => write!(
                f,
                "cannot displace `{}` from {pc:#x}: far from its target it needs a spare register; {WAY_OUT}",
                inst.display(*pc)
            ),
            Self::Assemble { word, pc, error } => write!(
                f,
                "cannot displace `{}` from {pc:#x}: {error}",
                crate::display::display_word(*word, *pc)
            ),
        }
    }
}

impl core::error::Error for RelocateError {}

/// Emits at `asm.pc()` what has the effect that `word` has at `from_pc`.
///
/// On an error nothing usable was emitted; an error of the assembler also sticks to it.
pub fn relocate(word: u32, from_pc: u64, asm: &mut Assembler<'_>) -> Result<(), RelocateError> {
    let unknown = RelocateError::Unknown { word, pc: from_pc };
    match Inst::decode(word) {
        Some(inst) => relocate_inst(inst, from_pc, asm)?,
        None if is_simd_literal(word) => {
            // The field is LDR (literal)'s; only the offset is rewritten.
            let target = from_pc.wrapping_add_signed(Imm19::at(word, 5).value());
            match Imm19::new(target.wrapping_sub(asm.pc()) as i64) {
                Ok(offset) => asm.emit_word(word & !(0x7ffff << 5) | offset.bits(5)),
                Err(error) => asm.fail(AsmError::OutOfReach {
                    pc: asm.pc(),
                    target,
                    error,
                }),
            }
        }
        // Branches, exceptions, system: op0 of C4.1 is x101x. PC-relative addressing: 100xx with 10000.
        None if word >> 26 & 7 == 5 || word >> 24 & 0x1f == 0x10 || is_literal(word) => {
            return Err(unknown);
        }
        // FEAT_PAuth_LR: AUTIASPPC and AUTIBSPPC with an offset.
        None if word & 0xffc0_0000 == 0xf380_0000 => return Err(unknown),
        None => asm.emit_word(word),
    }
    match asm.error() {
        Some(error) => Err(RelocateError::Assemble {
            word,
            pc: from_pc,
            error,
        }),
        None => Ok(()),
    }
}

fn is_literal(word: u32) -> bool {
    word & 0x3b00_0000 == 0x1800_0000
}

/// LDR (literal, SIMD and floating point); opc 3 is unallocated.
fn is_simd_literal(word: u32) -> bool {
    is_literal(word) && word >> 26 & 1 == 1 && word >> 30 != 3
}

fn relocate_inst(inst: Inst, from_pc: u64, asm: &mut Assembler<'_>) -> Result<(), RelocateError> {
    let target = inst
        .offset()
        .map(|bytes| from_pc.wrapping_add_signed(bytes));
    let reaches = |inst: Inst, target: u64, pc: u64| -> Result<Inst, ImmError> {
        inst.with_offset(target.wrapping_sub(pc) as i64)
    };
    match (inst, target) {
        (Inst::Branch { link: true, .. }, Some(target)) => {
            asm.mov_imm(X30, from_pc.wrapping_add(4));
            asm.b_abs(target);
        }
        (Inst::Branch { link: false, .. }, Some(target)) => asm.b_abs(target),
        (
            Inst::BranchReg {
                op: BranchRegOp::Blr,
                rn,
            },
            _,
        ) => {
            if rn == X30 {
                return Err(RelocateError::NoRegister { inst, pc: from_pc });
            }
            asm.mov_imm(X30, from_pc.wrapping_add(4));
            asm.emit(Inst::BranchReg {
                op: BranchRegOp::Br,
                rn,
            });
        }
        (
            Inst::BranchCond {
                cond: Cond::Al | Cond::Nv,
                ..
            },
            Some(target),
        ) => asm.b_abs(target),
        (
            Inst::BranchCond { .. } | Inst::CompareBranch { .. } | Inst::TestBranch { .. },
            Some(target),
        ) => match (reaches(inst, target, asm.pc()), inverted(inst)) {
            (Ok(near), _) => asm.emit(near),
            (Err(_), inverse) => {
                asm.emit(inverse.with_offset(8));
                asm.b_abs(target);
            }
        },
        (Inst::Adr { rd, .. }, Some(value)) => load_address(rd.reg(), value, asm),
        (Inst::Adrp { rd, pages }, _) => {
            let page = (from_pc & !0xfff).wrapping_add_signed(pages.value() * 4096);
            load_address(rd.reg(), page, asm);
        }
        (Inst::LoadLiteral { op, rt, .. }, Some(target)) => {
            match (reaches(inst, target, asm.pc()), rt.reg()) {
                (Ok(near), _) => asm.emit(near),
                (Err(_), None) => return Err(RelocateError::NoRegister { inst, pc: from_pc }),
                (Err(_), Some(base)) => {
                    let op = match op {
                        LiteralOp::LdrW => Access::LdrW,
                        LiteralOp::LdrX => Access::LdrX,
                        LiteralOp::Ldrsw => Access::Ldrsw,
                    };
                    asm.mov_imm(base, target);
                    asm.emit(Inst::LoadStore {
                        op,
                        rt,
                        rn: base.into(),
                        offset: UImm12::ZERO,
                    });
                }
            }
        }
        // A prefetch is a hint: out of reach it may be left out.
        (Inst::PrefetchLiteral { .. }, Some(target)) => {
            asm.emit(reaches(inst, target, asm.pc()).unwrap_or(Inst::NOP));
        }
        _ => asm.emit(inst),
    }
    Ok(())
}

/// ADR and ADRP to the zero register have no effect.
fn load_address(rd: Option<Reg>, value: u64, asm: &mut Assembler<'_>) {
    match rd {
        Some(rd) => asm.mov_imm(rd, value),
        None => asm.emit(Inst::NOP),
    }
}

/// The conditional branch that is taken when this one is not.
fn inverted(inst: Inst) -> Inst {
    match inst {
        Inst::BranchCond { cond, offset } => Inst::BranchCond {
            cond: cond.inverted(),
            offset,
        },
        Inst::CompareBranch {
            nonzero,
            size,
            rt,
            offset,
        } => Inst::CompareBranch {
            nonzero: !nonzero,
            size,
            rt,
            offset,
        },
        Inst::TestBranch {
            nonzero,
            bit,
            rt,
            offset,
        } => Inst::TestBranch {
            nonzero: !nonzero,
            bit,
            rt,
            offset,
        },
        _ => ops::nop(),
    }
}

/// Where a direct branch or call of this word at `pc` leads; `None` for every other word.
pub fn branch_target(word: u32, pc: u64) -> Option<u64> {
    let inst = Inst::decode(word).filter(|inst| inst.is_branch())?;
    Some(pc.wrapping_add_signed(inst.offset()?))
}

/// Whether the word is BL or BLR: it leaves a return address in x30.
pub fn is_call(word: u32) -> bool {
    matches!(
        Inst::decode(word),
        Some(
            Inst::Branch { link: true, .. }
                | Inst::BranchReg {
                    op: BranchRegOp::Blr,
                    ..
                }
        )
    )
}

/// Whether control never goes on with the next word: B, BR, RET, ERET, UDF.
pub fn is_terminator(word: u32) -> bool {
    matches!(
        Inst::decode(word),
        Some(
            Inst::Branch { link: false, .. }
                | Inst::BranchReg {
                    op: BranchRegOp::Br | BranchRegOp::Ret,
                    ..
                }
                | Inst::Eret
                | Inst::Udf { .. }
        )
    )
}
