// SPDX-License-Identifier: MIT OR Apache-2.0
//! From an instruction to its word (Arm ARM C4.1).

use crate::inst::Inst;

const fn flag(bit: bool, shift: u32) -> u32 {
    (bit as u32) << shift
}

impl Inst {
    /// The instruction word. Total: every `Inst` has exactly one.
    pub const fn encode(self) -> u32 {
        match self {
            Self::Udf { imm } => imm as u32,
            Self::Branch { link, offset } => 0x1400_0000 | flag(link, 31) | offset.bits(0),
            Self::BranchCond { cond, offset } => 0x5400_0000 | offset.bits(5) | cond as u32,
            Self::CompareBranch {
                nonzero,
                size,
                rt,
                offset,
            } => size.sf() | 0x3400_0000 | flag(nonzero, 24) | offset.bits(5) | rt.bits(0),
            Self::TestBranch {
                nonzero,
                bit,
                rt,
                offset,
            } => {
                let bit = (bit.bits(0) >> 5) << 31 | (bit.bits(0) & 31) << 19;
                bit | 0x3600_0000 | flag(nonzero, 24) | offset.bits(5) | rt.bits(0)
            }
            Self::BranchReg { op, rn } => 0xd61f_0000 | (op as u32) << 21 | rn.bits(5),
            Self::Eret => 0xd69f_03e0,
            Self::Hint { number } => 0xd503_201f | number.bits(5),
            Self::Barrier { op, option } => 0xd503_301f | option.bits(8) | (op as u32) << 5,
            Self::Exception { op, imm } => 0xd400_0000 | op as u32 | (imm as u32) << 5,
            Self::Mrs { rt, reg } => 0xd530_0000 | (reg.id() as u32) << 5 | rt.bits(0),
            Self::Msr { reg, rt } => 0xd510_0000 | (reg.id() as u32) << 5 | rt.bits(0),
            Self::MsrImm { field, imm } => {
                let (op1, op2) = (field as u32 >> 3, field as u32 & 7);
                0xd500_401f | op1 << 16 | imm.bits(8) | op2 << 5
            }
            Self::Sys {
                op1,
                crn,
                crm,
                op2,
                rt,
            } => 0xd508_0000 | op1.bits(16) | crn.bits(12) | crm.bits(8) | op2.bits(5) | rt.bits(0),
            Self::MoveWide { op, rd, imm } => {
                0x1280_0000 | (op as u32) << 29 | imm.field() | rd.bits(0)
            }
            Self::Adr { rd, offset } => pc_relative(0, offset.bits(0)) | rd.bits(0),
            Self::Adrp { rd, pages } => pc_relative(1, pages.bits(0)) | rd.bits(0),
            Self::AddSubImm {
                op,
                size,
                rd,
                rn,
                imm,
            } => {
                size.sf() | 0x1100_0000 | (op as u32) << 30 | imm.field() | rn.bits(5) | rd.bits(0)
            }
            Self::AddSubImmFlags {
                op,
                size,
                rd,
                rn,
                imm,
            } => {
                size.sf() | 0x3100_0000 | (op as u32) << 30 | imm.field() | rn.bits(5) | rd.bits(0)
            }
            Self::AddSubReg {
                op,
                flags,
                rd,
                rn,
                rm,
                shift,
            } => {
                let shift = (shift.get().kind as u32) << 22 | shift.get().amount.field();
                let op = (op as u32) << 30 | flag(flags, 29);
                0x0b00_0000 | op | shift | rm.bits(16) | rn.bits(5) | rd.bits(0)
            }
            Self::AddSubExt {
                op,
                size,
                rd,
                rn,
                rm,
                extend,
                shift,
            } => {
                let extend = (extend as u32) << 13 | shift.value() << 10;
                let op = size.sf() | (op as u32) << 30;
                0x0b20_0000 | op | rm.bits(16) | extend | rn.bits(5) | rd.bits(0)
            }
            Self::AddSubExtFlags {
                op,
                size,
                rd,
                rn,
                rm,
                extend,
                shift,
            } => {
                let extend = (extend as u32) << 13 | shift.value() << 10;
                let op = size.sf() | (op as u32) << 30;
                0x2b20_0000 | op | rm.bits(16) | extend | rn.bits(5) | rd.bits(0)
            }
            Self::Carry {
                op,
                size,
                rd,
                rn,
                rm,
            } => {
                let op = size.sf() | (op as u32) << 29;
                0x1a00_0000 | op | rm.bits(16) | rn.bits(5) | rd.bits(0)
            }
            Self::LogicalImm { op, rd, rn, imm } => {
                0x1200_0000 | (op as u32) << 29 | imm.field() | rn.bits(5) | rd.bits(0)
            }
            Self::AndsImm { rd, rn, imm } => 0x7200_0000 | imm.field() | rn.bits(5) | rd.bits(0),
            Self::LogicalReg {
                op,
                rd,
                rn,
                rm,
                shift,
            } => {
                let op = (op as u32 >> 1) << 29 | (op as u32 & 1) << 21;
                let shift = (shift.kind as u32) << 22 | shift.amount.field();
                0x0a00_0000 | op | shift | rm.bits(16) | rn.bits(5) | rd.bits(0)
            }
            Self::Bitfield { op, rd, rn, range } => {
                0x1300_0000 | (op as u32) << 29 | range.field() | rn.bits(5) | rd.bits(0)
            }
            Self::Extract { rd, rn, rm, lsb } => {
                let n = (lsb.size() as u32) << 22;
                0x1380_0000 | n | lsb.field() | rm.bits(16) | rn.bits(5) | rd.bits(0)
            }
            Self::MulAdd {
                op,
                size,
                rd,
                rn,
                rm,
                ra,
            } => {
                let op = size.sf() | (op as u32) << 15;
                0x1b00_0000 | op | rm.bits(16) | ra.bits(10) | rn.bits(5) | rd.bits(0)
            }
            Self::MulAddLong { op, rd, rn, rm, ra } => {
                let op = (op as u32 >> 1) << 21 | (op as u32 & 1) << 15;
                0x9b00_0000 | op | rm.bits(16) | ra.bits(10) | rn.bits(5) | rd.bits(0)
            }
            Self::MulHigh { op, rd, rn, rm } => {
                0x9b00_7c00 | (op as u32) << 21 | rm.bits(16) | rn.bits(5) | rd.bits(0)
            }
            Self::TwoSource {
                op,
                size,
                rd,
                rn,
                rm,
            } => {
                let op = size.sf() | (op as u32) << 10;
                0x1ac0_0000 | op | rm.bits(16) | rn.bits(5) | rd.bits(0)
            }
            Self::OneSource { op, rd, rn } => 0x5ac0_0000 | op as u32 | rn.bits(5) | rd.bits(0),
            Self::Select {
                op,
                size,
                rd,
                rn,
                rm,
                cond,
            } => {
                let op = size.sf() | (op as u32 >> 1) << 30 | (op as u32 & 1) << 10;
                0x1a80_0000 | op | rm.bits(16) | (cond as u32) << 12 | rn.bits(5) | rd.bits(0)
            }
            Self::CompareReg {
                op,
                size,
                rn,
                rm,
                nzcv,
                cond,
            } => {
                let op = size.sf() | (op as u32) << 30 | (cond as u32) << 12;
                0x3a40_0000 | op | rm.bits(16) | rn.bits(5) | nzcv.bits(0)
            }
            Self::CompareImm {
                op,
                size,
                rn,
                imm,
                nzcv,
                cond,
            } => {
                let op = size.sf() | (op as u32) << 30 | (cond as u32) << 12;
                0x3a40_0800 | op | imm.bits(16) | rn.bits(5) | nzcv.bits(0)
            }
            Self::LoadStore { op, rt, rn, offset } => {
                0x3900_0000 | access(op as u32) | offset.bits(10) | rn.bits(5) | rt.bits(0)
            }
            Self::LoadStore9 {
                op,
                mode,
                rt,
                rn,
                offset,
            } => {
                let mode = offset.bits(12) | (mode as u32) << 10;
                0x3800_0000 | access(op as u32) | mode | rn.bits(5) | rt.bits(0)
            }
            Self::LoadStoreReg {
                op,
                rt,
                rn,
                rm,
                extend,
                scaled,
            } => {
                let index = rm.bits(16) | (extend as u32) << 13 | flag(scaled, 12);
                0x3820_0800 | access(op as u32) | index | rn.bits(5) | rt.bits(0)
            }
            Self::LoadLiteral { op, rt, offset } => {
                0x1800_0000 | (op as u32) << 30 | offset.bits(5) | rt.bits(0)
            }
            Self::PrefetchLiteral { op, offset } => 0xd800_0000 | offset.bits(5) | op.bits(0),
            Self::Pair {
                op,
                mode,
                rt,
                rt2,
                rn,
                offset,
            } => {
                let op = (op as u32 >> 1) << 30 | (op as u32 & 1) << 22 | (mode as u32) << 23;
                0x2800_0000 | op | offset.bits(15) | rt2.bits(10) | rn.bits(5) | rt.bits(0)
            }
            Self::Ordered { op, size, rt, rn } => {
                let op = op as u32;
                let op = (op >> 2) << 23 | (op >> 1 & 1) << 22 | (op & 1) << 15;
                0x081f_7c00 | (size as u32) << 30 | op | rn.bits(5) | rt.bits(0)
            }
            Self::StoreExclusive {
                op,
                size,
                rs,
                rt,
                rn,
            } => {
                let op = (size as u32) << 30 | (op as u32) << 15;
                0x0800_7c00 | op | rs.bits(16) | rn.bits(5) | rt.bits(0)
            }
            Self::Atomic {
                op,
                size,
                acquire,
                release,
                rs,
                rt,
                rn,
            } => {
                let order = flag(acquire, 23) | flag(release, 22);
                let op = (size as u32) << 30 | (op as u32) << 12 | order;
                0x3820_0000 | op | rs.bits(16) | rn.bits(5) | rt.bits(0)
            }
            Self::Cas {
                size,
                acquire,
                release,
                rs,
                rt,
                rn,
            } => {
                let order = flag(acquire, 22) | flag(release, 15);
                let op = (size as u32) << 30 | order;
                0x08a0_7c00 | op | rs.bits(16) | rn.bits(5) | rt.bits(0)
            }
        }
    }
}

/// ADR and ADRP: the two low bits of the immediate lie apart.
const fn pc_relative(op: u32, imm: u32) -> u32 {
    op << 31 | (imm & 3) << 29 | 0x1000_0000 | (imm >> 2) << 5
}

/// `size` and `opc` of a single load or store.
const fn access(code: u32) -> u32 {
    (code >> 2) << 30 | (code & 3) << 22
}
