// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a word to its instruction: one row a class, mask and value (Arm ARM C4.1).

use crate::imm::*;
use crate::inst::*;
use crate::reg::{Gpr, RegOrSp, Size};

/// Words that match `value` under `mask` are of the class that `parse` reads.
struct Class {
    mask: u32,
    value: u32,
    parse: fn(u32) -> Option<Inst>,
}

const fn row(mask: u32, value: u32, parse: fn(u32) -> Option<Inst>) -> Class {
    Class { mask, value, parse }
}

const fn field(word: u32, shift: u32, bits: u32) -> u32 {
    word >> shift & ((1 << bits) - 1)
}

const fn bit(word: u32, shift: u32) -> bool {
    word >> shift & 1 == 1
}

fn rd(w: u32) -> Gpr {
    Gpr::at(w, 0)
}
fn rn(w: u32) -> Gpr {
    Gpr::at(w, 5)
}
fn ra(w: u32) -> Gpr {
    Gpr::at(w, 10)
}
fn rm(w: u32) -> Gpr {
    Gpr::at(w, 16)
}
fn rd_sp(w: u32) -> RegOrSp {
    RegOrSp::at(w, 0)
}
fn rn_sp(w: u32) -> RegOrSp {
    RegOrSp::at(w, 5)
}
fn add_sub(w: u32) -> AddSub {
    if bit(w, 30) { AddSub::Sub } else { AddSub::Add }
}
fn mem_size(w: u32) -> Option<MemSize> {
    MemSize::from_code(w >> 30)
}
fn access(w: u32) -> Option<Access> {
    Access::from_code(field(w, 30, 2) << 2 | field(w, 22, 2))
}

const CLASSES: &[Class] = &[
    row(0xffff_0000, 0, |w| Some(Inst::Udf { imm: w as u16 })),
    row(0x7c00_0000, 0x1400_0000, |w| {
        Some(Inst::Branch {
            link: bit(w, 31),
            offset: Imm26::at(w, 0),
        })
    }),
    row(0xff00_0010, 0x5400_0000, |w| {
        Some(Inst::BranchCond {
            cond: Cond::from_low_bits(w),
            offset: Imm19::at(w, 5),
        })
    }),
    row(0x7e00_0000, 0x3400_0000, |w| {
        let (nonzero, size) = (bit(w, 24), Size::of(w));
        Some(Inst::CompareBranch {
            nonzero,
            size,
            rt: rd(w),
            offset: Imm19::at(w, 5),
        })
    }),
    row(0x7e00_0000, 0x3600_0000, |w| {
        let bit_number = BitNumber::at(w >> 31 << 5 | field(w, 19, 5), 0);
        let offset = Imm14::at(w, 5);
        Some(Inst::TestBranch {
            nonzero: bit(w, 24),
            bit: bit_number,
            rt: rd(w),
            offset,
        })
    }),
    row(0xff9f_fc1f, 0xd61f_0000, |w| {
        Some(Inst::BranchReg {
            op: BranchRegOp::from_code(field(w, 21, 2))?,
            rn: rn(w),
        })
    }),
    row(u32::MAX, 0xd69f_03e0, |_| Some(Inst::Eret)),
    row(0xffff_f01f, 0xd503_201f, |w| {
        Some(Inst::Hint {
            number: UImm7::at(w, 5),
        })
    }),
    row(0xffff_f01f, 0xd503_301f, |w| {
        Some(Inst::Barrier {
            op: BarrierOp::from_code(field(w, 5, 3))?,
            option: UImm4::at(w, 8),
        })
    }),
    row(0xff00_0000, 0xd400_0000, |w| {
        let op = ExceptionOp::from_code(w & 0x00e0_001f)?;
        Some(Inst::Exception {
            op,
            imm: (w >> 5) as u16,
        })
    }),
    row(0xfff0_0000, 0xd530_0000, |w| {
        Some(Inst::Mrs {
            rt: rd(w),
            reg: SysReg::at(w),
        })
    }),
    row(0xfff0_0000, 0xd510_0000, |w| {
        Some(Inst::Msr {
            reg: SysReg::at(w),
            rt: rd(w),
        })
    }),
    row(0xfff8_f01f, 0xd500_401f, |w| {
        let field = PstateField::from_code(field(w, 16, 3) << 3 | field(w, 5, 3))?;
        Some(Inst::MsrImm {
            field,
            imm: UImm4::at(w, 8),
        })
    }),
    row(0xfff8_0000, 0xd508_0000, |w| {
        let (op1, crn, crm) = (UImm3::at(w, 16), UImm4::at(w, 12), UImm4::at(w, 8));
        Some(Inst::Sys {
            op1,
            crn,
            crm,
            op2: UImm3::at(w, 5),
            rt: rd(w),
        })
    }),
    row(0x1f80_0000, 0x1280_0000, |w| {
        let op = MoveWideOp::from_code(field(w, 29, 2))?;
        Some(Inst::MoveWide {
            op,
            rd: rd(w),
            imm: Imm16::at(w)?,
        })
    }),
    row(0x9f00_0000, 0x1000_0000, |w| {
        Some(Inst::Adr {
            rd: rd(w),
            offset: pc_relative(w),
        })
    }),
    row(0x9f00_0000, 0x9000_0000, |w| {
        Some(Inst::Adrp {
            rd: rd(w),
            pages: pc_relative(w),
        })
    }),
    row(0x3f80_0000, 0x1100_0000, add_sub_imm),
    row(0x3f80_0000, 0x3100_0000, add_sub_imm_flags),
    row(0x1f20_0000, 0x0b00_0000, |w| {
        let shift = Shift {
            kind: ShiftKind::at(w),
            amount: Amount::at(w, 10)?,
        };
        let (flags, shift) = (bit(w, 29), AddShift::new(shift).ok()?);
        Some(Inst::AddSubReg {
            op: add_sub(w),
            flags,
            rd: rd(w),
            rn: rn(w),
            rm: rm(w),
            shift,
        })
    }),
    row(0x3fe0_0000, 0x0b20_0000, |w| {
        let (extend, shift) = (Extend::from_low_bits(w >> 13), extend_shift(w)?);
        let (op, size, rd, rn) = (add_sub(w), Size::of(w), rd_sp(w), rn_sp(w));
        Some(Inst::AddSubExt {
            op,
            size,
            rd,
            rn,
            rm: rm(w),
            extend,
            shift,
        })
    }),
    row(0x3fe0_0000, 0x2b20_0000, |w| {
        let (extend, shift) = (Extend::from_low_bits(w >> 13), extend_shift(w)?);
        let (op, size, rd, rn) = (add_sub(w), Size::of(w), rd(w), rn_sp(w));
        Some(Inst::AddSubExtFlags {
            op,
            size,
            rd,
            rn,
            rm: rm(w),
            extend,
            shift,
        })
    }),
    row(0x1fe0_fc00, 0x1a00_0000, |w| {
        let op = CarryOp::from_code(field(w, 29, 2))?;
        Some(Inst::Carry {
            op,
            size: Size::of(w),
            rd: rd(w),
            rn: rn(w),
            rm: rm(w),
        })
    }),
    row(0x7f80_0000, 0x7200_0000, |w| {
        Some(Inst::AndsImm {
            rd: rd(w),
            rn: rn(w),
            imm: LogicalImm::at(w)?,
        })
    }),
    row(0x1f80_0000, 0x1200_0000, |w| {
        let op = LogicalImmOp::from_code(field(w, 29, 2))?;
        Some(Inst::LogicalImm {
            op,
            rd: rd_sp(w),
            rn: rn(w),
            imm: LogicalImm::at(w)?,
        })
    }),
    row(0x1f00_0000, 0x0a00_0000, |w| {
        let op = LogicalOp::from_code(field(w, 29, 2) << 1 | field(w, 21, 1))?;
        let shift = Shift {
            kind: ShiftKind::at(w),
            amount: Amount::at(w, 10)?,
        };
        Some(Inst::LogicalReg {
            op,
            rd: rd(w),
            rn: rn(w),
            rm: rm(w),
            shift,
        })
    }),
    row(0x1f80_0000, 0x1300_0000, |w| {
        let op = BitfieldOp::from_code(field(w, 29, 2))?;
        Some(Inst::Bitfield {
            op,
            rd: rd(w),
            rn: rn(w),
            range: BitRange::at(w)?,
        })
    }),
    row(0x7fa0_0000, 0x1380_0000, |w| {
        let lsb = Amount::at(w, 10).filter(|_| bit(w, 22) == bit(w, 31))?;
        Some(Inst::Extract {
            rd: rd(w),
            rn: rn(w),
            rm: rm(w),
            lsb,
        })
    }),
    row(0x7fe0_0000, 0x1b00_0000, |w| {
        let op = MulAddOp::from_code(field(w, 15, 1))?;
        Some(Inst::MulAdd {
            op,
            size: Size::of(w),
            rd: rd(w),
            rn: rn(w),
            rm: rm(w),
            ra: ra(w),
        })
    }),
    row(0xffe0_fc00, 0x9b40_7c00, mul_high),
    row(0xffe0_fc00, 0x9bc0_7c00, mul_high),
    row(0xff00_0000, 0x9b00_0000, |w| {
        let op = MulAddLongOp::from_code(field(w, 21, 3) << 1 | field(w, 15, 1))?;
        Some(Inst::MulAddLong {
            op,
            rd: rd(w),
            rn: rn(w),
            rm: rm(w),
            ra: ra(w),
        })
    }),
    row(0x7fe0_0000, 0x1ac0_0000, |w| {
        let op = TwoSourceOp::from_code(field(w, 10, 6))?;
        Some(Inst::TwoSource {
            op,
            size: Size::of(w),
            rd: rd(w),
            rn: rn(w),
            rm: rm(w),
        })
    }),
    row(0x7fff_0000, 0x5ac0_0000, |w| {
        let op = OneSourceOp::from_code(w & 0x8000_fc00)?;
        Some(Inst::OneSource {
            op,
            rd: rd(w),
            rn: rn(w),
        })
    }),
    row(0x3fe0_0800, 0x1a80_0000, |w| {
        let op = SelectOp::from_code(field(w, 30, 1) << 1 | field(w, 10, 1))?;
        let (size, cond) = (Size::of(w), Cond::from_low_bits(w >> 12));
        Some(Inst::Select {
            op,
            size,
            rd: rd(w),
            rn: rn(w),
            rm: rm(w),
            cond,
        })
    }),
    row(0x3fe0_0c10, 0x3a40_0000, |w| {
        let op = CompareOp::from_code(field(w, 30, 1))?;
        let (size, cond, nzcv) = (Size::of(w), Cond::from_low_bits(w >> 12), UImm4::at(w, 0));
        Some(Inst::CompareReg {
            op,
            size,
            rn: rn(w),
            rm: rm(w),
            nzcv,
            cond,
        })
    }),
    row(0x3fe0_0c10, 0x3a40_0800, |w| {
        let op = CompareOp::from_code(field(w, 30, 1))?;
        let (size, cond, nzcv) = (Size::of(w), Cond::from_low_bits(w >> 12), UImm4::at(w, 0));
        Some(Inst::CompareImm {
            op,
            size,
            rn: rn(w),
            imm: UImm5::at(w, 16),
            nzcv,
            cond,
        })
    }),
    row(0x3f00_0000, 0x3900_0000, |w| {
        let offset = UImm12::at(w, 10);
        Some(Inst::LoadStore {
            op: access(w)?,
            rt: rd(w),
            rn: rn_sp(w),
            offset,
        })
    }),
    row(0x3f20_0000, 0x3800_0000, |w| {
        let (op, mode) = (access(w)?, Mode9::from_code(field(w, 10, 2))?);
        Some(Inst::LoadStore9 {
            op,
            mode,
            rt: rd(w),
            rn: rn_sp(w),
            offset: SImm9::at(w, 12),
        })
    }),
    row(0x3f20_0c00, 0x3820_0800, |w| {
        let (op, extend) = (access(w)?, IndexExtend::from_code(field(w, 13, 3))?);
        let (rm, scaled) = (rm(w), bit(w, 12));
        Some(Inst::LoadStoreReg {
            op,
            rt: rd(w),
            rn: rn_sp(w),
            rm,
            extend,
            scaled,
        })
    }),
    row(0xff00_0000, 0xd800_0000, |w| {
        Some(Inst::PrefetchLiteral {
            op: UImm5::at(w, 0),
            offset: Imm19::at(w, 5),
        })
    }),
    row(0x3f00_0000, 0x1800_0000, |w| {
        let op = LiteralOp::from_code(w >> 30)?;
        Some(Inst::LoadLiteral {
            op,
            rt: rd(w),
            offset: Imm19::at(w, 5),
        })
    }),
    row(0x3e00_0000, 0x2800_0000, |w| {
        let op = PairOp::from_code(field(w, 30, 2) << 1 | field(w, 22, 1))?;
        let (mode, offset) = (PairMode::from_code(field(w, 23, 2))?, SImm7::at(w, 15));
        Some(Inst::Pair {
            op,
            mode,
            rt: rd(w),
            rt2: ra(w),
            rn: rn_sp(w),
            offset,
        })
    }),
    row(0x3f3f_7c00, 0x081f_7c00, |w| {
        let op = field(w, 23, 1) << 2 | field(w, 22, 1) << 1 | field(w, 15, 1);
        let op = OrderedOp::from_code(op)?;
        Some(Inst::Ordered {
            op,
            size: mem_size(w)?,
            rt: rd(w),
            rn: rn_sp(w),
        })
    }),
    row(0x3fe0_7c00, 0x0800_7c00, |w| {
        let (op, size) = (StoreExclusiveOp::from_code(field(w, 15, 1))?, mem_size(w)?);
        Some(Inst::StoreExclusive {
            op,
            size,
            rs: rm(w),
            rt: rd(w),
            rn: rn_sp(w),
        })
    }),
    row(0x3f20_0c00, 0x3820_0000, |w| {
        let (op, size) = (AtomicOp::from_code(field(w, 12, 4))?, mem_size(w)?);
        let (acquire, release, rs) = (bit(w, 23), bit(w, 22), rm(w));
        Some(Inst::Atomic {
            op,
            size,
            acquire,
            release,
            rs,
            rt: rd(w),
            rn: rn_sp(w),
        })
    }),
    row(0x3fa0_7c00, 0x08a0_7c00, |w| {
        let (acquire, release, rs) = (bit(w, 22), bit(w, 15), rm(w));
        Some(Inst::Cas {
            size: mem_size(w)?,
            acquire,
            release,
            rs,
            rt: rd(w),
            rn: rn_sp(w),
        })
    }),
];

fn add_sub_imm(w: u32) -> Option<Inst> {
    let (op, size, imm) = (add_sub(w), Size::of(w), Imm12::at(w));
    Some(Inst::AddSubImm {
        op,
        size,
        rd: rd_sp(w),
        rn: rn_sp(w),
        imm,
    })
}

fn add_sub_imm_flags(w: u32) -> Option<Inst> {
    let (op, size, imm) = (add_sub(w), Size::of(w), Imm12::at(w));
    Some(Inst::AddSubImmFlags {
        op,
        size,
        rd: rd(w),
        rn: rn_sp(w),
        imm,
    })
}

fn extend_shift(w: u32) -> Option<ExtendShift> {
    ExtendShift::new(field(w, 10, 3) as u64).ok()
}

fn mul_high(w: u32) -> Option<Inst> {
    let op = MulHighOp::from_code(field(w, 21, 3))?;
    Some(Inst::MulHigh {
        op,
        rd: rd(w),
        rn: rn(w),
        rm: rm(w),
    })
}

/// ADR and ADRP: the two low bits of the immediate lie apart.
fn pc_relative(w: u32) -> Imm21 {
    Imm21::at(field(w, 5, 19) << 2 | field(w, 29, 2), 0)
}

impl Inst {
    /// The instruction of a word; `None` if it is unallocated or not one of this crate's classes.
    ///
    /// `Inst::decode(i.encode()) == Some(i)` for every `i`, and a decoded word encodes to itself.
    pub fn decode(word: u32) -> Option<Self> {
        let mut classes = CLASSES.iter().filter(|c| word & c.mask == c.value);
        classes.find_map(|class| (class.parse)(word))
    }
}
