// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which A64 instructions stand for a BPF instruction.
//!
//! | BPF        | A64                                                                          |
//! |------------|------------------------------------------------------------------------------|
//! | r0         | any free register, x0 where a call leaves it or the caller takes it          |
//! | r1 to r5   | any free register, x0 to x4 where a call takes them; at entry x0 is r1       |
//! | r6 to r9   | x19 to x28 while a call is crossed, any free register otherwise              |
//! | r10        | sp + the frame's size: no register                                           |
//! | -          | x16, x17 (and x15, x14 for atomics without LSE) are the compiler's own       |
//! | -          | x18 is the platform's, x29 and x30 make the frame record                     |
//!
//! 32-bit operations are the W forms, which zero extend as BPF wants. No flags live from one BPF instruction to the
//! next.
use alloc::vec::Vec;

use a64::{
    Assembler, Gpr, Inst, Reg as A64, RegOrSp, SP, Size as Sf, XZR,
    imm::{Amount, Imm16, Imm21, ImmError, ShiftKind, UImm4},
    inst::{
        Access, AddShift, AtomicOp as Lse, BarrierOp, Cond as Flags, MemSize, MoveWideOp,
        MulAddLongOp, OrderedOp, PairMode, Shift, StoreExclusiveOp, TwoSourceOp,
    },
    ops,
    reg::{X0, X2, X5, X6, X14, X15, X16, X17, X29, X30},
};

use super::{
    Layout,
    alloc::{ARGUMENTS, Homes, argument_home},
    frame::{self, Frame},
    liveness::RegSet,
    moves,
};
use crate::{
    interp::MAX_TAIL_CALLS,
    isa::{AluOp, AtomicOp, Cond, Op, Operand, Reg, Size, Swap, Width},
    map::Map,
};

/// What stands for a conditional branch's condition.
#[derive(Clone, Copy)]
enum Test {
    Zero { nonzero: bool, sf: Sf, reg: A64 },
    Bit { set: bool, reg: A64, bit: u64 },
    Flags(Flags),
}

impl Test {
    fn inverted(self) -> Self {
        match self {
            Self::Zero { nonzero, sf, reg } => Self::Zero {
                nonzero: !nonzero,
                sf,
                reg,
            },
            Self::Bit { set, reg, bit } => Self::Bit {
                set: !set,
                reg,
                bit,
            },
            Self::Flags(flags) => Self::Flags(flags.inverted()),
        }
    }

    /// The branch with offset 0.
    fn branch(self) -> Result<Inst, ImmError> {
        match self {
            Self::Zero {
                nonzero: false,
                sf,
                reg,
            } => Ok(ops::cbz(sf, reg)),
            Self::Zero { sf, reg, .. } => Ok(ops::cbnz(sf, reg)),
            Self::Bit {
                set: false,
                reg,
                bit,
            } => ops::tbz(reg, bit),
            Self::Bit { reg, bit, .. } => ops::tbnz(reg, bit),
            Self::Flags(flags) => Ok(ops::b_cond(flags)),
        }
    }

    /// How far it reaches, in words in either direction.
    fn reach(self) -> i64 {
        match self {
            Self::Bit { .. } => 1 << 13,
            _ => 1 << 18,
        }
    }
}

/// A conditional branch that was emitted in its short form, for the check that it reaches.
#[derive(Clone, Copy)]
pub(super) struct ShortBranch {
    /// Index of the BPF instruction in the program.
    pub(super) from: usize,
    /// Index of the one that it leads to.
    pub(super) to: usize,
    /// Index of its word.
    pub(super) word: usize,
    /// How far it reaches, in words.
    pub(super) reach: i64,
}

/// Where branches lead: nothing is known yet while sizing.
#[derive(Clone, Copy)]
pub(super) enum Places<'a> {
    /// Sizing: any address will do.
    Unknown,
    /// What sizing found.
    Known(&'a Layout),
}

/// How an instruction's operands and surroundings are placed.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    /// Index of the instruction in the program.
    pub(super) index: usize,
    /// Index of the one that it may jump to; of a local call the number of the function.
    pub(super) target: usize,
    /// The home of what it defines.
    pub(super) dst: A64,
    /// What is read after it.
    pub(super) live_out: RegSet,
    /// Argument registers that a call hands over.
    pub(super) arguments: RegSet,
    /// The array map of a lookup that is emitted in place, and its key's offset from r10 if r2 does not have it.
    pub(super) inlined: Option<(&'a Map, Option<i16>)>,
    /// The address that a helper call leads to, or a map constant is.
    pub(super) address: u64,
    /// Of a tail call how many slots the program array has, and where the first lies.
    pub(super) tail_call: Option<(u32, u64)>,
    /// Whether the helper that is called wants the attachment.
    pub(super) attached: bool,
    /// Whether its conditional branch has to be in the long form.
    pub(super) far: bool,
}

/// Emits the code of one function.
pub(super) struct Selector<'a, 'b> {
    pub(super) asm: &'a mut Assembler<'b>,
    pub(super) frame: &'a Frame,
    pub(super) lse: bool,
    pub(super) homes: Homes,
    pub(super) places: Places<'a>,
    /// What calls helpers by number.
    pub(super) dispatch: u64,
    /// The register that the attachment's address comes in.
    pub(super) attachment: A64,
    /// Whether the code may become longer than ADR reaches.
    pub(super) long: bool,
    pub(super) short: &'a mut Vec<ShortBranch>,
}

const fn sf(width: Width) -> Sf {
    match width {
        Width::W32 => Sf::W,
        Width::W64 => Sf::X,
    }
}

const fn mem_size(size: Size) -> MemSize {
    match size {
        Size::B => MemSize::B,
        Size::H => MemSize::H,
        Size::W => MemSize::W,
        Size::Dw => MemSize::X,
    }
}

/// The width a register has in an operation on memory of that size.
const fn size_sf(size: Size) -> Sf {
    match size {
        Size::Dw => Sf::X,
        _ => Sf::W,
    }
}

const fn access(size: Size, signed: bool) -> Access {
    match (size, signed) {
        (Size::B, false) => Access::Ldrb,
        (Size::H, false) => Access::Ldrh,
        (Size::W, false) => Access::LdrW,
        (Size::B, true) => Access::LdrsbX,
        (Size::H, true) => Access::LdrshX,
        (Size::W, true) => Access::Ldrsw,
        (Size::Dw, _) => Access::LdrX,
    }
}

const fn store_access(size: Size) -> Access {
    match size {
        Size::B => Access::Strb,
        Size::H => Access::Strh,
        Size::W => Access::StrW,
        Size::Dw => Access::StrX,
    }
}

/// An immediate as the operation sees it: sign extended to the width, upper half zero in 32 bits.
const fn value(width: Width, imm: i32) -> u64 {
    match width {
        Width::W32 => imm as u32 as u64,
        Width::W64 => imm as i64 as u64,
    }
}

/// A register shifted left by a constant, as the last operand of an addition; `bits` below 64.
fn shifted(sf: Sf, bits: u32) -> Result<AddShift, ImmError> {
    AddShift::new(Shift {
        kind: ShiftKind::Lsl,
        amount: Amount::new(sf, bits.into())?,
    })
}

fn add_shifted(sf: Sf, rd: A64, rn: A64, rm: A64, bits: u32) -> Result<Inst, ImmError> {
    Ok(Inst::AddSubReg {
        op: a64::inst::AddSub::Add,
        flags: false,
        rd: rd.into(),
        rn: rn.into(),
        rm: rm.into(),
        shift: shifted(sf, bits)?,
    })
}

impl Selector<'_, '_> {
    /// Emits one instruction. Its operands are where `homes` says, its result goes to `site.dst`.
    pub(super) fn op(&mut self, op: Op, site: Site<'_>) {
        let dst = site.dst;
        match op {
            Op::Alu {
                width,
                op,
                dst: old,
                src,
            } => match src {
                Operand::Reg(src) => self.alu_reg(width, op, dst, old, src),
                Operand::Imm(imm) => self.alu_imm(width, op, dst, self.home(old), imm),
            },
            Op::Neg { width, dst: old } => {
                let inst = ops::neg(sf(width), dst, self.home(old));
                self.asm.emit(inst);
            }
            Op::Swap {
                kind,
                size,
                dst: old,
            } => self.swap(kind, size, dst, self.home(old)),
            Op::LoadImm { value, .. } => self.asm.mov_imm(dst, value),
            Op::LoadMap { .. } | Op::LoadMapValue { .. } | Op::LoadVariable { .. } => {
                self.asm.mov_imm(dst, site.address)
            }
            Op::LoadFunction { .. } => self.function_address(dst, site.target),
            Op::Load {
                size,
                signed,
                base,
                off,
                ..
            } => self.memory(access(size, signed), dst.into(), base, off),
            Op::Store {
                size,
                base,
                off,
                src,
            } => {
                let value = match src {
                    Operand::Reg(src) => self.read(src, X17).into(),
                    Operand::Imm(0) => XZR,
                    Operand::Imm(imm) => {
                        self.asm.mov_imm(X17, value(Width::W64, imm));
                        X17.into()
                    }
                };
                self.memory(store_access(size), value, base, off);
            }
            Op::Atomic {
                size,
                op,
                base,
                off,
                src,
            } => {
                let src = self.read(src, X17);
                let at = self.address(base, off);
                if self.lse {
                    self.atomic_lse(op, size, at, src, dst);
                } else {
                    self.atomic_exclusive(op, size, at, src, dst);
                }
            }
            Op::LoadAcquire {
                size, base, off, ..
            } => {
                let rn = self.address(base, off);
                let (size, rt) = (mem_size(size), dst.into());
                let op = OrderedOp::Ldar;
                self.asm.emit(Inst::Ordered { op, size, rt, rn });
            }
            Op::StoreRelease {
                size,
                base,
                off,
                src,
            } => {
                let rt = self.read(src, X17).into();
                let rn = self.address(base, off);
                let (op, size) = (OrderedOp::Stlr, mem_size(size));
                self.asm.emit(Inst::Ordered { op, size, rt, rn });
            }
            Op::Goto { .. } => {
                if site.target != site.index + 1 {
                    self.asm.b_abs(self.place(site.target));
                }
            }
            Op::If {
                width,
                cond,
                dst,
                src,
                ..
            } => {
                let test = self.test(width, cond, dst, src);
                self.branch(test, site);
            }
            Op::Call { .. } | Op::CallLocal { .. } | Op::CallKernel { .. } | Op::CallReg { .. } => {
                match site.inlined {
                    Some((map, key)) => self.array_lookup(map, key, dst),
                    None => self.call(op, site),
                }
            }
            Op::Exit => {
                let result = self.home(Reg::R0);
                self.copy(Sf::X, X0, result);
                self.epilogue();
            }
        }
    }

    /// The register that holds a BPF register other than r10.
    fn home(&self, reg: Reg) -> A64 {
        self.homes.get(reg.index()).copied().unwrap_or(X17)
    }

    /// The register that holds a BPF register; r10 is computed into `scratch`.
    fn read(&mut self, reg: Reg, scratch: A64) -> A64 {
        if reg != Reg::FP {
            return self.home(reg);
        }
        let top = self.frame.bytes.into();
        self.asm.emit(ops::add_imm(Sf::X, scratch, SP, top));
        scratch
    }

    /// Base register and offset of an access; r10 is an offset from sp.
    fn base(&self, base: Reg, off: i16) -> (RegOrSp, i64) {
        match base {
            Reg::FP => (SP, i64::from(self.frame.bytes) + i64::from(off)),
            base => (self.home(base).into(), off.into()),
        }
    }

    /// A load or store, its offset folded where it fits.
    fn memory(&mut self, op: Access, rt: Gpr, base: Reg, off: i16) {
        let (rn, off) = self.base(base, off);
        match ops::mem(op, rt, rn, off) {
            Ok(inst) => self.asm.emit(inst),
            Err(_) => {
                self.asm.mov_imm_anywhere(X16, off.cast_unsigned());
                self.asm.emit(ops::mem_reg(op, rt, rn, X16));
            }
        }
    }

    /// A register that holds `base + off`: `base` itself, or x16.
    fn address(&mut self, base: Reg, off: i16) -> RegOrSp {
        let (rn, off) = self.base(base, off);
        if off == 0 {
            return rn;
        }
        match ops::add_imm(Sf::X, X16, rn, off) {
            Ok(inst) => self.asm.emit(inst),
            Err(_) => {
                self.asm.mov_imm_anywhere(X16, off.cast_unsigned());
                // The base is no sp here: a frame's offsets always fit.
                let base = rn.reg().unwrap_or(X17);
                self.asm.emit(ops::add(Sf::X, X16, X16, base));
            }
        }
        X16.into()
    }

    /// `rd = rm`, nothing if that changes nothing.
    fn copy(&mut self, sf: Sf, rd: A64, rm: A64) {
        if rd != rm || sf == Sf::W {
            self.asm.emit(ops::mov(sf, rd, rm));
        }
    }

    fn alu_reg(&mut self, width: Width, op: AluOp, rd: A64, old: Reg, src: Reg) {
        let sf = sf(width);
        if src == Reg::FP && op == AluOp::Mov && width == Width::W64 {
            self.read(src, rd);
            return;
        }
        let (rn, rm) = (self.home(old), self.read(src, X17));
        let two = |op| Inst::TwoSource {
            op,
            size: sf,
            rd: rd.into(),
            rn: rn.into(),
            rm: rm.into(),
        };
        let inst = match op {
            AluOp::Add => ops::add(sf, rd, rn, rm),
            AluOp::Sub => ops::sub(sf, rd, rn, rm),
            AluOp::Mul => ops::mul(sf, rd, rn, rm),
            AluOp::Or => ops::orr(sf, rd, rn, rm),
            AluOp::And => ops::and(sf, rd, rn, rm),
            AluOp::Xor => ops::eor(sf, rd, rn, rm),
            // Shift amounts are taken modulo the width (Arm ARM C6.2, LSLV), division by zero gives 0 (UDIV).
            AluOp::Lsh => two(TwoSourceOp::Lslv),
            AluOp::Rsh => two(TwoSourceOp::Lsrv),
            AluOp::Arsh => two(TwoSourceOp::Asrv),
            AluOp::Div => two(TwoSourceOp::Udiv),
            AluOp::Sdiv => two(TwoSourceOp::Sdiv),
            AluOp::Mod | AluOp::Smod => return self.remainder(sf, op, rd, rn, rm),
            AluOp::Mov => return self.copy(sf, rd, rm),
            AluOp::Movsx8 => return self.asm.emit(ops::sign_extend(sf, rd, rm, 8)),
            AluOp::Movsx16 => return self.asm.emit(ops::sign_extend(sf, rd, rm, 16)),
            AluOp::Movsx32 => return self.asm.emit(ops::sign_extend(sf, rd, rm, 32)),
        };
        self.asm.emit(inst);
    }

    /// `rd = rn % rm`: as division by zero gives 0, the remainder of it is `rn`, as RFC 9669 wants.
    fn remainder(&mut self, sf: Sf, op: AluOp, rd: A64, rn: A64, rm: A64) {
        self.asm.emit(match op {
            AluOp::Smod => ops::sdiv(sf, X16, rn, rm),
            _ => ops::udiv(sf, X16, rn, rm),
        });
        self.asm.emit(ops::msub(sf, rd, X16, rm, rn));
    }

    fn alu_imm(&mut self, width: Width, op: AluOp, rd: A64, rn: A64, imm: i32) {
        let (sf, value, signed) = (sf(width), value(width, imm), i64::from(imm));
        let ones = value == self::value(width, -1);
        let power = value.is_power_of_two().then(|| value.trailing_zeros());
        let bits = value & u64::from(sf.bits() - 1);
        let short = match (op, value) {
            (AluOp::Mov, _) => return self.asm.mov_imm(rd, value),
            // Operations that leave the value, or that give a constant.
            (AluOp::Add | AluOp::Sub | AluOp::Or | AluOp::Xor, 0)
            | (AluOp::Mod | AluOp::Smod, 0)
            | (AluOp::Mul | AluOp::Div | AluOp::Sdiv, 1) => return self.copy(sf, rd, rn),
            (AluOp::Lsh | AluOp::Rsh | AluOp::Arsh, _) if bits == 0 => {
                return self.copy(sf, rd, rn);
            }
            (AluOp::And, _) if ones => return self.copy(sf, rd, rn),
            (AluOp::Or, _) if ones => return self.asm.mov_imm(rd, value),
            (AluOp::And | AluOp::Mul | AluOp::Div | AluOp::Sdiv, 0)
            | (AluOp::Mod | AluOp::Smod, 1) => return self.asm.mov_imm(rd, 0),
            (AluOp::Add, _) => ops::add_imm(sf, rd, rn, signed),
            (AluOp::Sub, _) => ops::sub_imm(sf, rd, rn, signed),
            (AluOp::Xor, _) if ones => Ok(ops::mvn(sf, rd, rn)),
            (AluOp::And, _) => ops::and_imm(sf, rd, rn, value),
            (AluOp::Or, _) => ops::orr_imm(sf, rd, rn, value),
            (AluOp::Xor, _) => ops::eor_imm(sf, rd, rn, value),
            (AluOp::Lsh, _) => ops::lsl_imm(sf, rd, rn, bits),
            (AluOp::Rsh, _) => ops::lsr_imm(sf, rd, rn, bits),
            (AluOp::Arsh, _) => ops::asr_imm(sf, rd, rn, bits),
            (AluOp::Mul | AluOp::Sdiv, _) if ones => Ok(ops::neg(sf, rd, rn)),
            (AluOp::Smod, _) if ones => return self.asm.mov_imm(rd, 0),
            (AluOp::Mul | AluOp::Div | AluOp::Mod, _) => match power {
                Some(power) if op == AluOp::Mul => ops::lsl_imm(sf, rd, rn, power.into()),
                Some(power) if op == AluOp::Div => ops::lsr_imm(sf, rd, rn, power.into()),
                Some(_) => ops::and_imm(sf, rd, rn, value - 1),
                None => return self.alu_constant(width, op, rd, rn, value),
            },
            _ => return self.alu_constant(width, op, rd, rn, value),
        };
        match short {
            Ok(inst) => self.asm.emit(inst),
            Err(_) => self.alu_constant(width, op, rd, rn, value),
        }
    }

    /// `rd = rn OP value` by way of x17.
    fn alu_constant(&mut self, width: Width, op: AluOp, rd: A64, rn: A64, value: u64) {
        let sf = sf(width);
        self.asm.mov_imm(X17, value);
        let inst = match op {
            AluOp::Add => ops::add(sf, rd, rn, X17),
            AluOp::Sub => ops::sub(sf, rd, rn, X17),
            AluOp::Mul => ops::mul(sf, rd, rn, X17),
            AluOp::Or => ops::orr(sf, rd, rn, X17),
            AluOp::And => ops::and(sf, rd, rn, X17),
            AluOp::Xor => ops::eor(sf, rd, rn, X17),
            AluOp::Div => ops::udiv(sf, rd, rn, X17),
            AluOp::Sdiv => ops::sdiv(sf, rd, rn, X17),
            AluOp::Mod | AluOp::Smod => return self.remainder(sf, op, rd, rn, X17),
            // Shifts and moves always have a short form.
            _ => ops::mov(sf, rd, X17),
        };
        self.asm.emit(inst);
    }

    fn swap(&mut self, kind: Swap, size: Size, rd: A64, rn: A64) {
        match (kind, size) {
            (Swap::Le, Size::Dw) => self.copy(Sf::X, rd, rn),
            (Swap::Le, Size::W) => self.copy(Sf::W, rd, rn),
            (Swap::Le, _) => self.asm.emit(ops::zero_extend(Sf::W, rd, rn, 16)),
            (_, Size::Dw) => self.asm.emit(ops::rev(Sf::X, rd, rn)),
            (_, Size::W) => self.asm.emit(ops::rev(Sf::W, rd, rn)),
            (_, _) => {
                self.asm.emit(ops::rev16(Sf::W, rd, rn));
                self.asm.emit(ops::zero_extend(Sf::W, rd, rd, 16));
            }
        }
    }

    /// Emits what a branch needs before it, and says how it branches.
    fn test(&mut self, width: Width, cond: Cond, dst: Reg, src: Operand) -> Test {
        let sf = sf(width);
        let reg = self.read(dst, X17);
        let flags = match cond {
            Cond::Eq => Flags::Eq,
            Cond::Ne | Cond::Set => Flags::Ne,
            Cond::Gt => Flags::Hi,
            Cond::Ge => Flags::Hs,
            Cond::Lt => Flags::Lo,
            Cond::Le => Flags::Ls,
            Cond::Sgt => Flags::Gt,
            Cond::Sge => Flags::Ge,
            Cond::Slt => Flags::Lt,
            Cond::Sle => Flags::Le,
        };
        let sign = u64::from(sf.bits() - 1);
        let compare = match src {
            Operand::Reg(src) => {
                let rm = self.read(src, X16);
                match cond {
                    Cond::Set => Ok(ops::tst(sf, reg, rm)),
                    _ => Ok(ops::cmp(sf, reg, rm)),
                }
            }
            Operand::Imm(imm) => {
                let value = value(width, imm);
                match (cond, imm) {
                    (Cond::Eq | Cond::Le, 0) => {
                        return Test::Zero {
                            nonzero: false,
                            sf,
                            reg,
                        };
                    }
                    (Cond::Ne | Cond::Gt, 0) => {
                        return Test::Zero {
                            nonzero: true,
                            sf,
                            reg,
                        };
                    }
                    (Cond::Slt | Cond::Sge, 0) => {
                        return Test::Bit {
                            set: cond == Cond::Slt,
                            reg,
                            bit: sign,
                        };
                    }
                    (Cond::Set, _) if value.is_power_of_two() => {
                        return Test::Bit {
                            set: true,
                            reg,
                            bit: value.trailing_zeros().into(),
                        };
                    }
                    (Cond::Set, _) => ops::tst_imm(sf, reg, value),
                    (_, ..0) => ops::cmn_imm(sf, reg, imm.unsigned_abs().into()),
                    _ => ops::cmp_imm(sf, reg, value),
                }
                .or_else(|_| {
                    self.asm.mov_imm(X16, value);
                    match cond {
                        Cond::Set => Ok(ops::tst(sf, reg, X16)),
                        _ => Ok(ops::cmp(sf, reg, X16)),
                    }
                })
            }
        };
        self.asm.emit(compare);
        Test::Flags(flags)
    }

    fn branch(&mut self, test: Test, site: Site<'_>) {
        let to = self.place(site.target);
        if site.far {
            let over = test
                .inverted()
                .branch()
                .and_then(|inst| inst.with_offset(8));
            self.asm.emit(over);
            self.asm.b_abs(to);
            return;
        }
        self.short.push(ShortBranch {
            from: site.index,
            to: site.target,
            word: self.asm.len(),
            reach: test.reach(),
        });
        match test.branch() {
            Ok(inst) => self.asm.branch_to(inst, to),
            error => self.asm.emit(error),
        }
    }

    /// The address of an instruction of the program.
    fn place(&self, index: usize) -> u64 {
        self.address_of(index, |layout| &layout.starts)
    }

    /// The address of the element of a list of places.
    fn address_of(&self, index: usize, list: impl Fn(&Layout) -> &[u32]) -> u64 {
        match self.places {
            Places::Unknown => self.asm.pc(),
            Places::Known(layout) => {
                let word = list(layout).get(index).copied().unwrap_or(0);
                self.asm.base() + 4 * u64::from(word)
            }
        }
    }

    /// Read-modify-write in one instruction (FEAT_LSE). Those that fetch are ordered both ways, as Linux has them.
    fn atomic_lse(&mut self, op: AtomicOp, size: Size, rn: RegOrSp, src: A64, dst: A64) {
        let (order, sf, size) = (op.fetches(), size_sf(size), mem_size(size));
        let lse = match op {
            AtomicOp::Add | AtomicOp::FetchAdd => Lse::Ldadd,
            AtomicOp::Or | AtomicOp::FetchOr => Lse::Ldset,
            AtomicOp::And | AtomicOp::FetchAnd => Lse::Ldclr,
            AtomicOp::Xor | AtomicOp::FetchXor => Lse::Ldeor,
            AtomicOp::Xchg => Lse::Swp,
            AtomicOp::Cmpxchg => {
                // CAS has the comparand and the old value in one register.
                let (r0, in_place) = (self.home(Reg::R0), dst != src && rn != dst);
                let compared = if in_place { dst } else { X17 };
                self.copy(Sf::X, compared, r0);
                self.asm.emit(Inst::Cas {
                    size,
                    acquire: true,
                    release: true,
                    rs: compared.into(),
                    rt: src.into(),
                    rn,
                });
                return self.copy(Sf::X, dst, compared);
            }
        };
        let rs = if lse == Lse::Ldclr {
            self.asm.emit(ops::mvn(sf, X17, src));
            X17
        } else {
            src
        };
        self.asm.emit(Inst::Atomic {
            op: lse,
            size,
            acquire: order,
            release: order,
            rs: rs.into(),
            rt: if op.fetches() { dst.into() } else { XZR },
            rn,
        });
    }

    /// Read-modify-write by load-exclusive and store-exclusive: x17 the old value, x14 the new, x15 the status.
    ///
    /// What fetches is ordered both ways by STLXR and the DMB after it.
    fn atomic_exclusive(&mut self, op: AtomicOp, size: Size, rn: RegOrSp, src: A64, dst: A64) {
        let (sf, size) = (size_sf(size), mem_size(size));
        let r0 = self.home(Reg::R0);
        // r10 as the source would be in x17.
        let src = if src == X17 {
            self.copy(Sf::X, X14, X17);
            X14
        } else {
            src
        };
        let (new, compute) = match op {
            AtomicOp::Add | AtomicOp::FetchAdd => (X14, Some(ops::add(sf, X14, X17, src))),
            AtomicOp::Or | AtomicOp::FetchOr => (X14, Some(ops::orr(sf, X14, X17, src))),
            AtomicOp::And | AtomicOp::FetchAnd => (X14, Some(ops::and(sf, X14, X17, src))),
            AtomicOp::Xor | AtomicOp::FetchXor => (X14, Some(ops::eor(sf, X14, X17, src))),
            AtomicOp::Xchg | AtomicOp::Cmpxchg => (src, None),
        };
        let again = self.asm.pc();
        self.asm.emit(Inst::Ordered {
            op: OrderedOp::Ldxr,
            size,
            rt: X17.into(),
            rn,
        });
        if op == AtomicOp::Cmpxchg {
            self.asm.emit(ops::cmp(sf, X17, r0));
            // Over the store and the retry.
            self.asm.emit(ops::b_cond(Flags::Ne).with_offset(12));
        }
        if let Some(compute) = compute {
            self.asm.emit(compute);
        }
        self.asm.emit(Inst::StoreExclusive {
            op: match op.fetches() {
                true => StoreExclusiveOp::Stlxr,
                false => StoreExclusiveOp::Stxr,
            },
            size,
            rs: X15.into(),
            rt: new.into(),
            rn,
        });
        self.asm.branch_to(ops::cbnz(Sf::W, X15), again);
        if op.fetches() {
            // DMB ISH: option 0b1011 (Arm ARM C6.2, DMB).
            self.asm
                .emit(UImm4::new(0b1011).map(|option| Inst::Barrier {
                    op: BarrierOp::Dmb,
                    option,
                }));
            self.copy(Sf::X, dst, X17);
        }
    }

    /// A call of a helper or a local function: arguments to x0 to x4, result from x0.
    fn call(&mut self, op: Op, site: Site<'_>) {
        let moves = site
            .arguments
            .iter()
            .filter_map(|reg| Some((argument_home(reg)?, self.home(reg))))
            .collect();
        if let Op::CallReg { target } = op {
            self.copy(Sf::X, X17, self.home(target));
        }
        self.shuffle(moves);
        if let Some((slots, entries)) = site.tail_call {
            return self.tail_call(slots, entries, site);
        }
        match op {
            Op::CallLocal { .. } => {
                if self.frame.handed_on {
                    let both = ops::ldp(
                        PairMode::Offset,
                        ATTACHMENT,
                        TAIL_CALLS,
                        SP,
                        frame::HANDED_ON_AT,
                    );
                    self.asm.emit(both);
                }
                let entry = self.address_of(site.target, |layout| &layout.entries);
                self.asm.bl_abs(entry);
            }
            Op::CallReg { .. } => {
                // By the dispatcher if it is a number. Functions whose address is taken need no count of tail calls.
                self.asm.emit(ops::ldr(ATTACHMENT, SP, frame::HANDED_ON_AT));
                self.copy(Sf::X, NUMBER, X17);
                self.asm.mov_imm(X16, self.dispatch);
                self.asm.emit(ops::cmp_imm(Sf::X, X17, NUMBERS));
                self.asm.emit(ops::csel(Sf::X, X16, X16, X17, Flags::Lo));
                self.asm.emit(ops::blr(X16));
            }
            _ => {
                if site.attached {
                    self.asm.emit(ops::ldr(ATTACHMENT, SP, frame::HANDED_ON_AT));
                }
                self.call_address(site.address);
            }
        }
        if site.live_out.contains(Reg::R0) {
            self.copy(Sf::X, site.dst, X0);
        }
    }

    /// Calls an address, by BL where it reaches.
    fn call_address(&mut self, address: u64) {
        /// BL reaches 128 MiB either way (Arm ARM C6.2, BL).
        const REACH: u64 = 1 << 27;
        let distance = address.wrapping_sub(self.asm.pc());
        if distance.wrapping_add(REACH) < 2 * REACH {
            self.asm.bl_abs(address);
        } else {
            self.asm.mov_imm(X16, address);
            self.asm.emit(ops::blr(X16));
        }
    }

    /// The address of a function of the program, in as many words whatever it is.
    fn function_address(&mut self, dst: A64, function: usize) {
        let address = self.address_of(function, |layout| &layout.entries);
        if !self.long {
            let offset = Imm21::new(0).map(|offset| Inst::Adr {
                rd: dst.into(),
                offset,
            });
            return match offset {
                Ok(adr) => self.asm.branch_to(adr, address),
                error => self.asm.emit(error),
            };
        }
        for part in 0..4 {
            let op = if part == 0 {
                MoveWideOp::Movz
            } else {
                MoveWideOp::Movk
            };
            let bits = (address >> (16 * part)) as u16;
            let imm = Imm16::new(Sf::X, bits, 16 * part);
            self.asm.emit(imm.map(|imm| Inst::MoveWide {
                op,
                rd: dst.into(),
                imm,
            }));
        }
    }

    /// `bpf_tail_call` through a known array: the index and the count checked, the frame taken down, and off. What
    /// cannot be done goes on at the next instruction, r0 being `-ENOENT`.
    fn tail_call(&mut self, slots: u32, entries: u64, site: Site<'_>) {
        let read = site.live_out.contains(Reg::R0);
        let words = if read { 1 } else { 0 };
        let failed = self.place(site.index + 1).wrapping_sub(4 * words);
        let index = X2;
        match ops::cmp_imm(Sf::W, index, slots.into()) {
            Ok(inst) => self.asm.emit(inst),
            Err(_) => {
                self.asm.mov_imm(X17, slots.into());
                self.asm.emit(ops::cmp(Sf::W, index, X17));
            }
        }
        self.asm.branch_to(ops::b_cond(Flags::Hs), failed);
        self.asm.emit(ops::ldp(
            PairMode::Offset,
            ATTACHMENT,
            TAIL_CALLS,
            SP,
            frame::HANDED_ON_AT,
        ));
        self.asm.emit(ops::ldr(X16, TAIL_CALLS, 0));
        self.asm
            .emit(ops::cmp_imm(Sf::X, X16, MAX_TAIL_CALLS.into()));
        self.asm.branch_to(ops::b_cond(Flags::Hs), failed);
        self.asm.mov_imm(X17, entries);
        self.copy(Sf::W, index, index);
        self.asm.emit(add_shifted(Sf::X, X17, X17, index, 3));
        // Acquires what whoever put the target there wrote before it (Arm ARM B2.3, LDAR).
        let (op, size, rt) = (OrderedOp::Ldar, MemSize::X, X17.into());
        let rn = X17.into();
        self.asm.emit(Inst::Ordered { op, size, rt, rn });
        self.asm.branch_to(ops::cbz(Sf::X, X17), failed);
        self.asm.emit(ops::add_imm(Sf::X, X16, X16, 1));
        self.asm.emit(ops::str(X16, TAIL_CALLS, 0));
        self.take_down();
        self.asm.emit(ops::br(X17));
        if read {
            self.asm.mov_imm(site.dst, ENOENT);
        }
    }

    /// All moves (to, from) as if done at once.
    fn shuffle(&mut self, moves: Vec<(A64, A64)>) {
        for (to, from) in moves::in_order(moves, X16) {
            self.copy(Sf::X, to, from);
        }
    }

    /// `bpf_map_lookup_elem` of an array map that is known: the index checked, the address computed.
    fn array_lookup(&mut self, map: &Map, key: Option<i16>, dst: A64) {
        let (Some(base), Some(stride)) = (map.value_address(0), map.value_stride()) else {
            return; // only maps that have both are emitted in place
        };
        let entries = map.definition().max_entries;
        let (key, off) = key.map_or((Reg::R2, 0), |off| (Reg::FP, off));
        self.memory(Access::LdrW, X16.into(), key, off);
        // From here on the key's register is free, so `dst` may be it.
        match ops::cmp_imm(Sf::W, X16, entries.into()) {
            Ok(inst) => self.asm.emit(inst),
            Err(_) => {
                self.asm.mov_imm(X17, entries.into());
                self.asm.emit(ops::cmp(Sf::W, X16, X17));
            }
        }
        self.asm.mov_imm(X17, base);
        if stride.is_power_of_two() {
            let bits = stride.trailing_zeros();
            self.asm.emit(add_shifted(Sf::X, X17, X17, X16, bits));
        } else {
            self.asm.mov_imm(dst, stride as u64);
            self.asm.emit(Inst::MulAddLong {
                op: MulAddLongOp::Umaddl,
                rd: X17.into(),
                rn: X16.into(),
                rm: dst.into(),
                ra: X17.into(),
            });
        }
        self.asm.emit(ops::csel(Sf::X, dst, X17, XZR, Flags::Lo));
    }

    /// Builds the frame and brings the arguments home. Registers that are read without having been written hold 0.
    pub(super) fn prologue(&mut self, live_in: RegSet, arguments: usize) {
        let (frame, bytes) = (self.frame, i64::from(self.frame.bytes));
        if frame.record {
            // One instruction where the offset fits: a multiple of 8 down to -512.
            match ops::stp(PairMode::Pre, X29, X30, SP, -bytes) {
                Ok(inst) => self.asm.emit(inst),
                Err(_) => {
                    self.asm.emit(ops::sub_imm(Sf::X, SP, SP, bytes));
                    self.asm.emit(ops::stp(PairMode::Offset, X29, X30, SP, 0));
                }
            }
            self.asm.emit(ops::mov_sp(X29, SP));
        } else if bytes != 0 {
            self.asm.emit(ops::sub_imm(Sf::X, SP, SP, bytes));
        }
        if frame.handed_on {
            let at = frame::HANDED_ON_AT;
            self.asm.emit(ops::stp(
                PairMode::Offset,
                self.attachment,
                TAIL_CALLS,
                SP,
                at,
            ));
        }
        for (off, pair) in frame.saved_pairs() {
            match *pair {
                [a, b] => self.asm.emit(ops::stp(PairMode::Offset, a, b, SP, off)),
                [a] => self.asm.emit(ops::str(a, SP, off)),
                _ => {}
            }
        }
        let given: Vec<_> = Reg::arguments().zip(ARGUMENTS).take(arguments).collect();
        let moves = given
            .iter()
            .filter(|(reg, _)| live_in.contains(*reg))
            .map(|(reg, from)| (self.home(*reg), *from))
            .collect();
        self.shuffle(moves);
        for reg in live_in.iter() {
            if !given.iter().any(|(given, _)| *given == reg) {
                self.asm.mov_imm(self.home(reg), 0);
            }
        }
    }

    /// Takes the frame down and returns.
    fn epilogue(&mut self) {
        self.take_down();
        self.asm.emit(ops::ret());
    }

    /// Takes the frame down.
    fn take_down(&mut self) {
        let (frame, bytes) = (self.frame, i64::from(self.frame.bytes));
        for (off, pair) in frame.saved_pairs() {
            match *pair {
                [a, b] => self.asm.emit(ops::ldp(PairMode::Offset, a, b, SP, off)),
                [a] => self.asm.emit(ops::ldr(a, SP, off)),
                _ => {}
            }
        }
        if frame.record {
            match ops::ldp(PairMode::Post, X29, X30, SP, bytes) {
                Ok(inst) => self.asm.emit(inst),
                Err(_) => {
                    self.asm.emit(ops::ldp(PairMode::Offset, X29, X30, SP, 0));
                    self.asm.emit(ops::add_imm(Sf::X, SP, SP, bytes));
                }
            }
        } else if bytes != 0 {
            self.asm.emit(ops::add_imm(Sf::X, SP, SP, bytes));
        }
    }
}

/// Where functions of a program take the attachment's address.
pub(super) const ATTACHMENT: A64 = X5;
/// Where they take the address of the count of tail calls.
const TAIL_CALLS: A64 = X6;
/// Where the dispatcher takes a helper's number.
const NUMBER: A64 = X6;
/// Helpers' numbers are smaller, and addresses of code larger.
const NUMBERS: u64 = 4096;
/// Linux's `-ENOENT`.
const ENOENT: u64 = -2_i64 as u64;
/// Stack that a [`stub`] takes: a record, the count, and 8 bytes to the next multiple of 16.
pub(super) const STUB_BYTES: u32 = 32;

/// The entry of a program that makes tail calls: keeps their count while the program, and what it turns into, runs.
pub(super) fn stub(asm: &mut Assembler<'_>, attachment: A64) {
    const COUNT: i64 = 16;
    let bytes = i64::from(STUB_BYTES);
    asm.emit(ops::stp(PairMode::Pre, X29, X30, SP, -bytes));
    asm.emit(ops::mov_sp(X29, SP));
    asm.emit(ops::str(XZR, SP, COUNT));
    asm.emit(ops::mov(Sf::X, ATTACHMENT, attachment));
    asm.emit(ops::add_imm(Sf::X, TAIL_CALLS, SP, COUNT));
    // Over the two words that follow it.
    let body = asm.pc() + 12;
    asm.bl_abs(body);
    asm.emit(ops::ldp(PairMode::Post, X29, X30, SP, bytes));
    asm.emit(ops::ret());
}
