// SPDX-License-Identifier: MIT OR Apache-2.0
//! Short constructors for the instructions that people write, named after their mnemonics.
//!
//! Those with an immediate return a `Result`; [`Assembler::emit`](crate::Assembler::emit) takes
//! either. Offsets are bytes. The branches have offset 0, to be given by `branch`, `branch_to` or
//! [`Inst::with_offset`].

use crate::imm::*;
use crate::inst::*;
use crate::reg::{Gpr, RegOrSp, Size, X30, XZR};

/// What the short constructors with an immediate return.
pub type Op = Result<Inst, ImmError>;

impl From<Inst> for Op {
    fn from(inst: Inst) -> Self {
        Ok(inst)
    }
}

/// `b`
pub const fn b() -> Inst {
    Inst::Branch {
        link: false,
        offset: Imm26::ZERO,
    }
}

/// `bl`
pub const fn bl() -> Inst {
    Inst::Branch {
        link: true,
        offset: Imm26::ZERO,
    }
}

/// `b.cond`
pub const fn b_cond(cond: Cond) -> Inst {
    Inst::BranchCond {
        cond,
        offset: Imm19::ZERO,
    }
}

/// `cbz`
pub fn cbz(size: Size, rt: impl Into<Gpr>) -> Inst {
    Inst::CompareBranch {
        nonzero: false,
        size,
        rt: rt.into(),
        offset: Imm19::ZERO,
    }
}

/// `cbnz`
pub fn cbnz(size: Size, rt: impl Into<Gpr>) -> Inst {
    Inst::CompareBranch {
        nonzero: true,
        size,
        rt: rt.into(),
        offset: Imm19::ZERO,
    }
}

/// `tbz rt, #bit`
pub fn tbz(rt: impl Into<Gpr>, bit: u64) -> Op {
    let (bit, rt) = (BitNumber::new(bit)?, rt.into());
    Ok(Inst::TestBranch {
        nonzero: false,
        bit,
        rt,
        offset: Imm14::ZERO,
    })
}

/// `tbnz rt, #bit`
pub fn tbnz(rt: impl Into<Gpr>, bit: u64) -> Op {
    let (bit, rt) = (BitNumber::new(bit)?, rt.into());
    Ok(Inst::TestBranch {
        nonzero: true,
        bit,
        rt,
        offset: Imm14::ZERO,
    })
}

/// `br rn`
pub fn br(rn: impl Into<Gpr>) -> Inst {
    Inst::BranchReg {
        op: BranchRegOp::Br,
        rn: rn.into(),
    }
}

/// `blr rn`
pub fn blr(rn: impl Into<Gpr>) -> Inst {
    Inst::BranchReg {
        op: BranchRegOp::Blr,
        rn: rn.into(),
    }
}

/// `ret` (to x30)
pub fn ret() -> Inst {
    Inst::BranchReg {
        op: BranchRegOp::Ret,
        rn: X30.into(),
    }
}

/// `nop`
pub const fn nop() -> Inst {
    Inst::NOP
}

/// `brk #imm`
pub const fn brk(imm: u16) -> Inst {
    Inst::Exception {
        op: ExceptionOp::Brk,
        imm,
    }
}

/// `mrs rt, reg`
pub fn mrs(rt: impl Into<Gpr>, reg: SysReg) -> Inst {
    Inst::Mrs { rt: rt.into(), reg }
}

/// `msr reg, rt`
pub fn msr(reg: SysReg, rt: impl Into<Gpr>) -> Inst {
    Inst::Msr { reg, rt: rt.into() }
}

macro_rules! register_ops {
    ($($name:ident $text:literal => |$size:ident, $rd:ident, $rn:ident, $rm:ident| $body:expr;)*) => {$(
        #[doc = concat!("`", $text, " rd, rn, rm`")]
        pub fn $name($size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>, rm: impl Into<Gpr>) -> Inst {
            let ($rd, $rn, $rm) = (rd.into(), rn.into(), rm.into());
            $body
        }
    )*};
}

const fn add_sub(op: AddSub, flags: bool, size: Size, rd: Gpr, rn: Gpr, rm: Gpr) -> Inst {
    Inst::AddSubReg {
        op,
        flags,
        rd,
        rn,
        rm,
        shift: AddShift::none(size),
    }
}

const fn logical(op: LogicalOp, size: Size, rd: Gpr, rn: Gpr, rm: Gpr) -> Inst {
    Inst::LogicalReg {
        op,
        rd,
        rn,
        rm,
        shift: Shift::none(size),
    }
}

register_ops! {
    add "add" => |size, rd, rn, rm| add_sub(AddSub::Add, false, size, rd, rn, rm);
    adds "adds" => |size, rd, rn, rm| add_sub(AddSub::Add, true, size, rd, rn, rm);
    sub "sub" => |size, rd, rn, rm| add_sub(AddSub::Sub, false, size, rd, rn, rm);
    subs "subs" => |size, rd, rn, rm| add_sub(AddSub::Sub, true, size, rd, rn, rm);
    and "and" => |size, rd, rn, rm| logical(LogicalOp::And, size, rd, rn, rm);
    ands "ands" => |size, rd, rn, rm| logical(LogicalOp::Ands, size, rd, rn, rm);
    bic "bic" => |size, rd, rn, rm| logical(LogicalOp::Bic, size, rd, rn, rm);
    orr "orr" => |size, rd, rn, rm| logical(LogicalOp::Orr, size, rd, rn, rm);
    orn "orn" => |size, rd, rn, rm| logical(LogicalOp::Orn, size, rd, rn, rm);
    eor "eor" => |size, rd, rn, rm| logical(LogicalOp::Eor, size, rd, rn, rm);
    mul "mul" => |size, rd, rn, rm| Inst::MulAdd { op: MulAddOp::Madd, size, rd, rn, rm, ra: XZR };
    udiv "udiv" => |size, rd, rn, rm| Inst::TwoSource { op: TwoSourceOp::Udiv, size, rd, rn, rm };
    sdiv "sdiv" => |size, rd, rn, rm| Inst::TwoSource { op: TwoSourceOp::Sdiv, size, rd, rn, rm };
    lslv "lslv" => |size, rd, rn, rm| Inst::TwoSource { op: TwoSourceOp::Lslv, size, rd, rn, rm };
    lsrv "lsrv" => |size, rd, rn, rm| Inst::TwoSource { op: TwoSourceOp::Lsrv, size, rd, rn, rm };
    asrv "asrv" => |size, rd, rn, rm| Inst::TwoSource { op: TwoSourceOp::Asrv, size, rd, rn, rm };
}

/// `madd rd, rn, rm, ra`
pub fn madd(
    size: Size,
    rd: impl Into<Gpr>,
    rn: impl Into<Gpr>,
    rm: impl Into<Gpr>,
    ra: impl Into<Gpr>,
) -> Inst {
    let (rd, rn, rm, ra) = (rd.into(), rn.into(), rm.into(), ra.into());
    Inst::MulAdd {
        op: MulAddOp::Madd,
        size,
        rd,
        rn,
        rm,
        ra,
    }
}

/// `msub rd, rn, rm, ra`: `ra - rn * rm`
pub fn msub(
    size: Size,
    rd: impl Into<Gpr>,
    rn: impl Into<Gpr>,
    rm: impl Into<Gpr>,
    ra: impl Into<Gpr>,
) -> Inst {
    let (rd, rn, rm, ra) = (rd.into(), rn.into(), rm.into(), ra.into());
    Inst::MulAdd {
        op: MulAddOp::Msub,
        size,
        rd,
        rn,
        rm,
        ra,
    }
}

/// `mov rd, rm`; not for the stack pointer, see [`mov_sp`].
pub fn mov(size: Size, rd: impl Into<Gpr>, rm: impl Into<Gpr>) -> Inst {
    orr(size, rd, XZR, rm)
}

/// `mov rd, rn` where either may be the stack pointer.
pub fn mov_sp(rd: impl Into<RegOrSp>, rn: impl Into<RegOrSp>) -> Inst {
    let (op, size, imm) = (AddSub::Add, Size::X, Imm12::ZERO);
    Inst::AddSubImm {
        op,
        size,
        rd: rd.into(),
        rn: rn.into(),
        imm,
    }
}

/// `mvn rd, rm`
pub fn mvn(size: Size, rd: impl Into<Gpr>, rm: impl Into<Gpr>) -> Inst {
    orn(size, rd, XZR, rm)
}

/// `neg rd, rm`
pub fn neg(size: Size, rd: impl Into<Gpr>, rm: impl Into<Gpr>) -> Inst {
    sub(size, rd, XZR, rm)
}

/// `cmp rn, rm`
pub fn cmp(size: Size, rn: impl Into<Gpr>, rm: impl Into<Gpr>) -> Inst {
    subs(size, XZR, rn, rm)
}

/// `tst rn, rm`
pub fn tst(size: Size, rn: impl Into<Gpr>, rm: impl Into<Gpr>) -> Inst {
    ands(size, XZR, rn, rm)
}

/// `add rd, rn, #value`; a value that only the opposite operation holds becomes `sub`.
pub fn add_imm(size: Size, rd: impl Into<RegOrSp>, rn: impl Into<RegOrSp>, value: i64) -> Op {
    let op = if value < 0 { AddSub::Sub } else { AddSub::Add };
    let imm = Imm12::new(value.unsigned_abs())?;
    Ok(Inst::AddSubImm {
        op,
        size,
        rd: rd.into(),
        rn: rn.into(),
        imm,
    })
}

/// `sub rd, rn, #value`; negative values become `add`.
pub fn sub_imm(size: Size, rd: impl Into<RegOrSp>, rn: impl Into<RegOrSp>, value: i64) -> Op {
    let op = if value < 0 { AddSub::Add } else { AddSub::Sub };
    let imm = Imm12::new(value.unsigned_abs())?;
    Ok(Inst::AddSubImm {
        op,
        size,
        rd: rd.into(),
        rn: rn.into(),
        imm,
    })
}

/// `subs rd, rn, #value`
pub fn subs_imm(size: Size, rd: impl Into<Gpr>, rn: impl Into<RegOrSp>, value: u64) -> Op {
    let (op, imm) = (AddSub::Sub, Imm12::new(value)?);
    Ok(Inst::AddSubImmFlags {
        op,
        size,
        rd: rd.into(),
        rn: rn.into(),
        imm,
    })
}

/// `cmp rn, #value`
pub fn cmp_imm(size: Size, rn: impl Into<RegOrSp>, value: u64) -> Op {
    subs_imm(size, XZR, rn, value)
}

/// `cmn rn, #value`: compares with `-value`.
pub fn cmn_imm(size: Size, rn: impl Into<RegOrSp>, value: u64) -> Op {
    let (op, imm) = (AddSub::Add, Imm12::new(value)?);
    Ok(Inst::AddSubImmFlags {
        op,
        size,
        rd: XZR,
        rn: rn.into(),
        imm,
    })
}

fn logical_imm(
    op: LogicalImmOp,
    size: Size,
    rd: impl Into<RegOrSp>,
    rn: impl Into<Gpr>,
    value: u64,
) -> Op {
    let imm = LogicalImm::new(size, value)?;
    Ok(Inst::LogicalImm {
        op,
        rd: rd.into(),
        rn: rn.into(),
        imm,
    })
}

/// `and rd, rn, #value`
pub fn and_imm(size: Size, rd: impl Into<RegOrSp>, rn: impl Into<Gpr>, value: u64) -> Op {
    logical_imm(LogicalImmOp::And, size, rd, rn, value)
}

/// `orr rd, rn, #value`
pub fn orr_imm(size: Size, rd: impl Into<RegOrSp>, rn: impl Into<Gpr>, value: u64) -> Op {
    logical_imm(LogicalImmOp::Orr, size, rd, rn, value)
}

/// `eor rd, rn, #value`
pub fn eor_imm(size: Size, rd: impl Into<RegOrSp>, rn: impl Into<Gpr>, value: u64) -> Op {
    logical_imm(LogicalImmOp::Eor, size, rd, rn, value)
}

/// `ands rd, rn, #value`
pub fn ands_imm(size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>, value: u64) -> Op {
    Ok(Inst::AndsImm {
        rd: rd.into(),
        rn: rn.into(),
        imm: LogicalImm::new(size, value)?,
    })
}

/// `tst rn, #value`
pub fn tst_imm(size: Size, rn: impl Into<Gpr>, value: u64) -> Op {
    ands_imm(size, XZR, rn, value)
}

fn bitfield(
    op: BitfieldOp,
    size: Size,
    rd: impl Into<Gpr>,
    rn: impl Into<Gpr>,
    immr: u64,
    imms: u64,
) -> Op {
    Ok(Inst::Bitfield {
        op,
        rd: rd.into(),
        rn: rn.into(),
        range: BitRange::new(size, immr, imms)?,
    })
}

/// `lsl rd, rn, #bits`
pub fn lsl_imm(size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>, bits: u64) -> Op {
    let (width, bits) = (size.bits() as u64, Amount::new(size, bits)?.value() as u64);
    bitfield(
        BitfieldOp::Ubfm,
        size,
        rd,
        rn,
        (width - bits) % width,
        width - 1 - bits,
    )
}

/// `lsr rd, rn, #bits`
pub fn lsr_imm(size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>, bits: u64) -> Op {
    bitfield(BitfieldOp::Ubfm, size, rd, rn, bits, size.bits() as u64 - 1)
}

/// `asr rd, rn, #bits`
pub fn asr_imm(size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>, bits: u64) -> Op {
    bitfield(BitfieldOp::Sbfm, size, rd, rn, bits, size.bits() as u64 - 1)
}

/// The low `bits` bits, zero-extended: `uxtb` 8, `uxth` 16, `ubfx rd, rn, #0, #bits`.
pub fn zero_extend(size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>, bits: u64) -> Op {
    bitfield(BitfieldOp::Ubfm, size, rd, rn, 0, bits.wrapping_sub(1))
}

/// The low `bits` bits, sign-extended: `sxtb` 8, `sxth` 16, `sxtw` 32.
pub fn sign_extend(size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>, bits: u64) -> Op {
    bitfield(BitfieldOp::Sbfm, size, rd, rn, 0, bits.wrapping_sub(1))
}

/// `rev rd, rn`: all bytes of the register reversed.
pub fn rev(size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>) -> Inst {
    let op = match size {
        Size::W => OneSourceOp::RevW,
        Size::X => OneSourceOp::RevX,
    };
    Inst::OneSource {
        op,
        rd: rd.into(),
        rn: rn.into(),
    }
}

/// `rev16 rd, rn`: the bytes of each halfword reversed.
pub fn rev16(size: Size, rd: impl Into<Gpr>, rn: impl Into<Gpr>) -> Inst {
    let op = match size {
        Size::W => OneSourceOp::Rev16W,
        Size::X => OneSourceOp::Rev16X,
    };
    Inst::OneSource {
        op,
        rd: rd.into(),
        rn: rn.into(),
    }
}

/// `csel rd, rn, rm, cond`
pub fn csel(
    size: Size,
    rd: impl Into<Gpr>,
    rn: impl Into<Gpr>,
    rm: impl Into<Gpr>,
    cond: Cond,
) -> Inst {
    let (rd, rn, rm) = (rd.into(), rn.into(), rm.into());
    Inst::Select {
        op: SelectOp::Csel,
        size,
        rd,
        rn,
        rm,
        cond,
    }
}

/// `cset rd, cond`
pub fn cset(size: Size, rd: impl Into<Gpr>, cond: Cond) -> Inst {
    let (op, cond) = (SelectOp::Csinc, cond.inverted());
    Inst::Select {
        op,
        size,
        rd: rd.into(),
        rn: XZR,
        rm: XZR,
        cond,
    }
}

/// A load or store at `[rn, #offset]`: scaled if it fits, otherwise unscaled.
pub fn mem(op: Access, rt: impl Into<Gpr>, rn: impl Into<RegOrSp>, offset: i64) -> Op {
    let (rt, rn) = (rt.into(), rn.into());
    match (UImm12::scaled(offset, op.bytes()), SImm9::new(offset)) {
        (Ok(offset), _) => Ok(Inst::LoadStore { op, rt, rn, offset }),
        (_, Ok(offset)) => Ok(Inst::LoadStore9 {
            op,
            mode: Mode9::Unscaled,
            rt,
            rn,
            offset,
        }),
        (Err(error), _) => Err(error),
    }
}

/// A load or store at `[rn, rm]`, unscaled.
pub fn mem_reg(op: Access, rt: impl Into<Gpr>, rn: impl Into<RegOrSp>, rm: impl Into<Gpr>) -> Inst {
    let (rt, rn, rm) = (rt.into(), rn.into(), rm.into());
    Inst::LoadStoreReg {
        op,
        rt,
        rn,
        rm,
        extend: IndexExtend::Lsl,
        scaled: false,
    }
}

/// `ldr rt, [rn, #offset]`, 64 bits.
pub fn ldr(rt: impl Into<Gpr>, rn: impl Into<RegOrSp>, offset: i64) -> Op {
    mem(Access::LdrX, rt, rn, offset)
}

/// `str rt, [rn, #offset]`, 64 bits.
pub fn str(rt: impl Into<Gpr>, rn: impl Into<RegOrSp>, offset: i64) -> Op {
    mem(Access::StrX, rt, rn, offset)
}

/// A load or store with write-back before it (`Mode9::Pre`) or after it (`Mode9::Post`).
pub fn mem_writeback(
    op: Access,
    mode: Mode9,
    rt: impl Into<Gpr>,
    rn: impl Into<RegOrSp>,
    offset: i64,
) -> Op {
    let (rt, rn, offset) = (rt.into(), rn.into(), SImm9::new(offset)?);
    Ok(Inst::LoadStore9 {
        op,
        mode,
        rt,
        rn,
        offset,
    })
}

/// A pair of loads or stores in the given mode.
pub fn pair(
    op: PairOp,
    mode: PairMode,
    rt: impl Into<Gpr>,
    rt2: impl Into<Gpr>,
    rn: impl Into<RegOrSp>,
    offset: i64,
) -> Op {
    let offset = SImm7::scaled(offset, op.bytes())?;
    Ok(Inst::Pair {
        op,
        mode,
        rt: rt.into(),
        rt2: rt2.into(),
        rn: rn.into(),
        offset,
    })
}

/// `ldp rt, rt2, [rn, #offset]` in the given mode, 64 bits.
pub fn ldp(
    mode: PairMode,
    rt: impl Into<Gpr>,
    rt2: impl Into<Gpr>,
    rn: impl Into<RegOrSp>,
    offset: i64,
) -> Op {
    pair(PairOp::LdpX, mode, rt, rt2, rn, offset)
}

/// `stp rt, rt2, [rn, #offset]` in the given mode, 64 bits.
pub fn stp(
    mode: PairMode,
    rt: impl Into<Gpr>,
    rt2: impl Into<Gpr>,
    rn: impl Into<RegOrSp>,
    offset: i64,
) -> Op {
    pair(PairOp::StpX, mode, rt, rt2, rn, offset)
}
