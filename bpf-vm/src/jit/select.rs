// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which A64 instructions stand for a step.
//!
//! | BPF        | A64                                                                          |
//! |------------|------------------------------------------------------------------------------|
//! | r0         | any free register, x0 where a call leaves it or the caller takes it          |
//! | r1 to r5   | any free register, x0 to x4 where a call takes them; at entry x0 is r1       |
//! | r6 to r9   | one that the call leaves alone while it is crossed, any free one otherwise   |
//! | r10        | sp + the frame's size: no register                                           |
//! | -          | x16, x17 (and x15, x14 for atomics without LSE) are the compiler's own       |
//! | -          | x18 is the platform's, x29 and x30 make the frame record                     |
//!
//! 32-bit operations are the W forms, which zero extend as BPF wants. No flags live from one step to the next. A step
//! of several instructions writes its result with the last of them, or after it has read its operands.
use alloc::vec::Vec;

use a64::{
    Assembler, Gpr, Inst, Reg as A64, RegOrSp, SP, Size as Sf, XZR,
    imm::{Amount, BitRange, ExtendShift, Imm16, Imm21, ImmError, ShiftKind, UImm4},
    inst::{
        Access, AddShift, AddSub, AtomicOp as Lse, BarrierOp, BitfieldOp, Cond as Flags, LogicalOp,
        MemSize, Mode9, MoveWideOp, MulAddLongOp, MulHighOp, OrderedOp, PairMode, PairOp, SelectOp,
        Shift, StoreExclusiveOp, TwoSourceOp,
    },
    ops,
    reg::{X0, X2, X5, X6, X14, X15, X16, X17, X29, X30},
};

use super::{
    Layout, Number,
    alloc::{ARGUMENTS, Homes, argument_home},
    frame::{self, Frame},
    ir::{
        Addr, Binary, Callee, End, Field, Name, NameSet, Node, Question, Rhs, Step, Test, Update,
    },
    lower::truncated,
    moves,
};
use crate::{
    helpers::NUMBERS,
    interp::MAX_TAIL_CALLS,
    isa::{AtomicOp, Cond, Reg, Size, Swap, Width},
    map::Map,
    program::ValidatedProgram,
};

mod atomic;
mod call;

pub(super) use self::call::{ATTACHMENT, STUB_BYTES, stub};

/// What stands for a conditional branch's condition.
#[derive(Clone, Copy)]
enum Jump {
    Zero { nonzero: bool, sf: Sf, reg: A64 },
    Bit { set: bool, reg: A64, bit: u64 },
    Flags(Flags),
}

impl Jump {
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
    /// Number of its block in the program.
    pub(super) from: usize,
    /// Number of the block that it leads to.
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

/// Emits the code of one function.
pub(super) struct Selector<'a, 'b> {
    pub(super) asm: &'a mut Assembler<'b>,
    pub(super) program: &'a ValidatedProgram,
    pub(super) frame: &'a Frame,
    pub(super) lse: bool,
    /// Where the core's number is.
    pub(super) cpu: Option<Number>,
    /// Whether accesses and multiply-accumulates are kept apart.
    pub(super) apart: bool,
    /// Behind which word, counted from the start, the last access to memory was.
    pub(super) accessed_at: Option<usize>,
    pub(super) homes: Homes,
    /// The number of the function's first block in the program.
    pub(super) first_block: usize,
    pub(super) places: Places<'a>,
    /// What calls helpers by number.
    pub(super) dispatch: u64,
    /// The register that the attachment's address comes in.
    pub(super) attachment: A64,
    /// Whether the code may become longer than ADR reaches.
    pub(super) long: bool,
    pub(super) short: &'a mut Vec<ShortBranch>,
    /// Where tail calls that cannot be made go on, in words from the start.
    pub(super) failed: &'a mut Vec<u32>,
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

/// The condition that the flags have after a comparison.
const fn flags(cond: Cond) -> Flags {
    match cond {
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
    }
}

/// A value of that width as a signed number.
const fn signed(width: Width, value: u64) -> i64 {
    match width {
        Width::W32 => value as u32 as i32 as i64,
        Width::W64 => value as i64,
    }
}

const fn logical(op: Binary) -> LogicalOp {
    match op {
        Binary::And => LogicalOp::And,
        Binary::Or => LogicalOp::Orr,
        Binary::Xor => LogicalOp::Eor,
        Binary::AndNot => LogicalOp::Bic,
        Binary::OrNot => LogicalOp::Orn,
        _ => LogicalOp::Eon,
    }
}

/// Whether a test is one that a branch makes itself, without flags.
pub(super) fn needs_no_flags(test: &Test) -> bool {
    match (test.cond, test.b) {
        (Cond::Eq | Cond::Ne | Cond::Gt | Cond::Le | Cond::Slt | Cond::Sge, Rhs::Imm(0)) => true,
        (Cond::Set, Rhs::Imm(mask)) => mask.is_power_of_two(),
        _ => false,
    }
}

/// Whether an immediate fits into the instruction that an operation is.
pub(super) fn encodes(op: Binary, width: Width, value: u64) -> bool {
    let (sf, reg) = (sf(width), X0);
    match op {
        Binary::Add | Binary::Sub => ops::add_imm(sf, reg, reg, signed(width, value)).is_ok(),
        Binary::And | Binary::Or => ops::and_imm(sf, reg, reg, value).is_ok(),
        Binary::Xor => {
            value == truncated(width, u64::MAX) || ops::eor_imm(sf, reg, reg, value).is_ok()
        }
        _ => false,
    }
}

/// Whether a comparison with an immediate is one instruction.
pub(super) fn compares(test: &Test, value: u64) -> bool {
    let with = Test {
        b: Rhs::Imm(value),
        ..*test
    };
    needs_no_flags(&with) || compare_imm(test.width, test.cond, X0, value).is_ok()
}

fn compare_imm(width: Width, cond: Cond, reg: A64, value: u64) -> Result<Inst, ImmError> {
    let (sf, number) = (sf(width), signed(width, value));
    match (cond, number) {
        (Cond::Set, _) => ops::tst_imm(sf, reg, value),
        (_, ..0) => ops::cmn_imm(sf, reg, number.unsigned_abs()),
        _ => ops::cmp_imm(sf, reg, value),
    }
}

impl Selector<'_, '_> {
    /// Emits one step. Its operands are where `homes` of the selector says, its results go to `to`.
    pub(super) fn step(&mut self, step: &Step, to: [A64; 2], live_out: NameSet, uses: NameSet) {
        let [dst, also] = to;
        match step.node {
            Node::Const(value) => self.asm.mov_imm(dst, value),
            Node::Function(function) => self.function_address(dst, function as usize),
            Node::Copy(Name::FP) => {
                self.read(Name::FP, dst);
            }
            Node::Copy(src) => {
                let src = self.home(src);
                self.copy(Sf::X, dst, src);
            }
            Node::Binary { op, width, a, b } => self.binary(op, width, dst, a, b),
            Node::MulAdd {
                subtract,
                width,
                a,
                b,
                c,
            } => {
                let (a, b, c) = (self.home(a), self.rhs(b, X17), self.rhs(c, X16));
                // Cortex-A53 erratum 835769.
                if self.apart && width == Width::W64 && self.accessed_at == Some(self.asm.len()) {
                    self.asm.emit(ops::nop());
                }
                self.asm.emit(match subtract {
                    true => ops::msub(sf(width), dst, a, b, c),
                    false => ops::madd(sf(width), dst, a, b, c),
                });
            }
            Node::Neg { width, src } => {
                let inst = ops::neg(sf(width), dst, self.home(src));
                self.asm.emit(inst);
            }
            Node::Field(field) => {
                let inst = self.field(field, dst);
                self.asm.emit(inst);
            }
            Node::Extract {
                width,
                high,
                low,
                lsb,
            } => {
                let (rn, rm) = (self.read(high, X16), self.read(low, X17));
                let (rd, rn, rm) = (dst.into(), rn.into(), rm.into());
                let lsb = Amount::new(sf(width), lsb.into());
                self.asm
                    .emit(lsb.map(|lsb| Inst::Extract { rd, rn, rm, lsb }));
            }
            Node::Swap { kind, size, src } => self.swap(kind, size, dst, self.home(src)),
            Node::Select { test, yes, no } => self.select(test, dst, yes, no),
            Node::Load { size, signed, addr } => {
                self.memory(access(size, signed), dst.into(), addr, also);
            }
            Node::Store { size, addr, src } => {
                let value = self.stored(src);
                self.memory(store_access(size), value, addr, also);
            }
            Node::LoadPair { size, base, off } => self.load_pair(size, base, off, to),
            Node::StorePair {
                size,
                base,
                off,
                low,
                high,
            } => self.store_pair(size, base, off, [low, high]),
            Node::Atomic {
                size,
                op,
                addr,
                src,
                compared,
            } => {
                let at = self.address(addr);
                let compared = compared.map(|name| self.home(name));
                if self.lse {
                    let src = self.read(src, X17);
                    self.atomic_lse(op, size, at, src, compared, dst);
                } else {
                    self.atomic_exclusive(op, size, at, src, compared, dst);
                }
            }
            Node::LoadAcquire { size, addr } => {
                let rn = self.address(addr);
                let (size, rt) = (mem_size(size), dst.into());
                let op = OrderedOp::Ldar;
                self.asm.emit(Inst::Ordered { op, size, rt, rn });
            }
            Node::StoreRelease { size, addr, src } => {
                let rt = self.read(src, X17).into();
                let rn = self.address(addr);
                let (op, size) = (OrderedOp::Stlr, mem_size(size));
                self.asm.emit(Inst::Ordered { op, size, rt, rn });
            }
            Node::Lookup { map, key } => {
                if let Some(map) = self.program.map(map) {
                    self.array_lookup(map, key, dst);
                }
            }
            Node::Ask(question) => self.ask(question, dst),
            Node::Call { callee, .. } => {
                let result = live_out.contains(Name::R0).then_some(dst);
                self.call(callee, uses, result);
            }
        }
        if step.node.accesses() {
            self.accessed_at = Some(self.asm.len());
        }
        for (name, home) in [(step.dst, dst), (step.also, also)] {
            if let Some(slot) = name.and_then(|name| self.homes.get_mut(name.index())) {
                *slot = home;
            }
        }
    }

    /// Emits the end of block `from`; `next` is the function's block that is emitted next.
    pub(super) fn end(&mut self, end: End, from: usize, next: Option<usize>, far: bool) {
        match end {
            End::Goto { to, .. } => {
                if next != Some(to) {
                    self.asm.b_abs(self.place(self.first_block + to));
                }
            }
            End::Branch {
                test,
                taken,
                next: other,
            } => {
                let jump = self.jump(test);
                if next == Some(taken) {
                    self.branch(jump.inverted(), from, self.first_block + other, far);
                    return;
                }
                self.branch(jump, from, self.first_block + taken, far);
                if next != Some(other) {
                    self.asm.b_abs(self.place(self.first_block + other));
                }
            }
            End::Exit(result) => {
                let result = self.read(result, X0);
                self.copy(Sf::X, X0, result);
                self.epilogue();
            }
        }
    }

    /// The register that holds a name other than r10.
    fn home(&self, name: Name) -> A64 {
        self.homes.get(name.index()).copied().unwrap_or(X17)
    }

    /// The register that holds a name; r10 is computed into `scratch`.
    fn read(&mut self, name: Name, scratch: A64) -> A64 {
        if name != Name::FP {
            return self.home(name);
        }
        let top = self.frame.bytes.into();
        self.asm.emit(ops::add_imm(Sf::X, scratch, SP, top));
        scratch
    }

    /// The register that holds a plain operand, `scratch` if that has to be made.
    fn rhs(&mut self, rhs: Rhs, scratch: A64) -> A64 {
        match rhs {
            Rhs::Name(name) | Rhs::Shifted(name, ..) | Rhs::Extended(name, ..) => {
                self.read(name, scratch)
            }
            Rhs::Imm(value) => {
                self.asm.mov_imm(scratch, value);
                scratch
            }
        }
    }

    /// What a store writes.
    fn stored(&mut self, src: Rhs) -> Gpr {
        match src {
            Rhs::Imm(0) => XZR,
            src => self.rhs(src, X17).into(),
        }
    }

    /// Base register and offset of an access; r10 is an offset from sp.
    fn base(&self, base: Name, off: i32) -> (RegOrSp, i64) {
        match base {
            Name::FP => (SP, i64::from(self.frame.bytes) + i64::from(off)),
            base => (self.home(base).into(), off.into()),
        }
    }

    /// A load or store, its offset folded where it fits. `also` is where an updated base goes.
    fn memory(&mut self, op: Access, rt: Gpr, addr: Addr, also: A64) {
        let (rn, off) = self.base(addr.base, addr.off);
        match (addr.update, addr.index) {
            (Update::None, None) => match ops::mem(op, rt, rn, off) {
                Ok(inst) => self.asm.emit(inst),
                Err(_) => {
                    self.asm.mov_imm_anywhere(X16, off.cast_unsigned());
                    self.asm.emit(ops::mem_reg(op, rt, rn, X16));
                }
            },
            (Update::None, Some(index)) => {
                let rm = self.home(index.name).into();
                self.asm.emit(Inst::LoadStoreReg {
                    op,
                    rt,
                    rn,
                    rm,
                    extend: index.extend,
                    scaled: index.scaled && op.bytes() > 1,
                });
            }
            (Update::Post(by) | Update::Pre(by), _) => {
                let pre = matches!(addr.update, Update::Pre(_));
                let by = i64::from(by);
                let base = self.home(addr.base);
                if base == also && rt != base {
                    let mode = if pre { Mode9::Pre } else { Mode9::Post };
                    self.asm.emit(ops::mem_writeback(op, mode, rt, rn, by));
                    return;
                }
                // Not in one instruction: a load may overwrite the old base, a store read the new one's register.
                let add = ops::add_imm(Sf::X, also, base, by);
                if op.is_load() {
                    self.asm.emit(add);
                    self.asm
                        .emit(ops::mem(op, rt, also, if pre { 0 } else { -by }));
                } else {
                    self.asm
                        .emit(ops::mem(op, rt, rn, if pre { by } else { 0 }));
                    self.asm.emit(add);
                }
            }
        }
    }

    fn load_pair(&mut self, size: Size, base: Name, off: i32, to: [A64; 2]) {
        let (rn, at) = self.base(base, off);
        let op = match size {
            Size::Dw => PairOp::LdpX,
            _ => PairOp::LdpW,
        };
        let [low, high] = to;
        if let Ok(inst) = ops::pair(op, PairMode::Offset, low, high, rn, at) {
            return self.asm.emit(inst);
        }
        // What overwrites the base comes last.
        let step = i64::from(size.bytes());
        let mut both = [(low, at), (high, at + step)];
        if rn == low {
            both.reverse();
        }
        for (rt, at) in both {
            self.asm.emit(ops::mem(access(size, false), rt, rn, at));
        }
    }

    fn store_pair(&mut self, size: Size, base: Name, off: i32, src: [Rhs; 2]) {
        let (rn, at) = self.base(base, off);
        let op = match size {
            Size::Dw => PairOp::StpX,
            _ => PairOp::StpW,
        };
        let value = |this: &mut Self, src, scratch| match src {
            Rhs::Imm(0) => XZR,
            src => Gpr::from(this.rhs(src, scratch)),
        };
        let [low, high] = src;
        let (low, high) = (value(self, low, X16), value(self, high, X17));
        if let Ok(inst) = ops::pair(op, PairMode::Offset, low, high, rn, at) {
            return self.asm.emit(inst);
        }
        for (rt, at) in [(low, at), (high, at + i64::from(size.bytes()))] {
            self.asm.emit(ops::mem(store_access(size), rt, rn, at));
        }
    }

    /// A register that holds an address: its base, or x16.
    fn address(&mut self, addr: Addr) -> RegOrSp {
        let (rn, off) = self.base(addr.base, addr.off);
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

    fn binary(&mut self, op: Binary, width: Width, rd: A64, a: Name, b: Rhs) {
        let sf = sf(width);
        if let (Binary::Add, Width::W64, Name::FP, Rhs::Imm(value)) = (op, width, a, b) {
            let off = (value as i64).wrapping_add(self.frame.bytes.into());
            if let Ok(inst) = ops::add_imm(Sf::X, rd, SP, off) {
                return self.asm.emit(inst);
            }
        }
        let rn = self.read(a, X16);
        if let Rhs::Imm(value) = b {
            let number = signed(width, value);
            let short = match op {
                Binary::Add => ops::add_imm(sf, rd, rn, number),
                Binary::Sub => ops::sub_imm(sf, rd, rn, number),
                Binary::Xor if number == -1 => Ok(ops::mvn(sf, rd, rn)),
                Binary::And => ops::and_imm(sf, rd, rn, value),
                Binary::Or => ops::orr_imm(sf, rd, rn, value),
                _ => ops::eor_imm(sf, rd, rn, value),
            };
            if encodes(op, width, value) {
                return self.asm.emit(short);
            }
        }
        let rm = self.rhs(b, X17);
        let (gd, gn, gm) = (Gpr::from(rd), Gpr::from(rn), Gpr::from(rm));
        let two = |op| Inst::TwoSource {
            op,
            size: sf,
            rd: gd,
            rn: gn,
            rm: gm,
        };
        let shift = match b {
            Rhs::Shifted(_, kind, by) => {
                Amount::new(sf, by.into()).map(|amount| Shift { kind, amount })
            }
            _ => Ok(Shift::none(sf)),
        };
        let inst = match op {
            Binary::Add | Binary::Sub => {
                let op = if op == Binary::Add {
                    AddSub::Add
                } else {
                    AddSub::Sub
                };
                match b {
                    Rhs::Extended(_, extend, by) => {
                        ExtendShift::new(by.into()).map(|shift| Inst::AddSubExt {
                            op,
                            size: sf,
                            rd: rd.into(),
                            rn: rn.into(),
                            rm: gm,
                            extend,
                            shift,
                        })
                    }
                    _ => shift.and_then(AddShift::new).map(|shift| Inst::AddSubReg {
                        op,
                        flags: false,
                        rd: gd,
                        rn: gn,
                        rm: gm,
                        shift,
                    }),
                }
            }
            Binary::Mul => Ok(ops::mul(sf, rd, rn, rm)),
            // Shift amounts are taken modulo the width (Arm ARM C6.2, LSLV), division by zero gives 0 (UDIV).
            Binary::Lsh => Ok(two(TwoSourceOp::Lslv)),
            Binary::Rsh => Ok(two(TwoSourceOp::Lsrv)),
            Binary::Arsh => Ok(two(TwoSourceOp::Asrv)),
            Binary::Div => Ok(two(TwoSourceOp::Udiv)),
            Binary::Sdiv => Ok(two(TwoSourceOp::Sdiv)),
            Binary::Mod | Binary::Smod => return self.remainder(sf, op, rd, rn, rm),
            op => shift.map(|shift| Inst::LogicalReg {
                op: logical(op),
                rd: gd,
                rn: gn,
                rm: gm,
                shift,
            }),
        };
        self.asm.emit(inst);
    }

    /// `rd = rn % rm`: as division by zero gives 0, the remainder of it is `rn`, as RFC 9669 wants.
    fn remainder(&mut self, sf: Sf, op: Binary, rd: A64, rn: A64, rm: A64) {
        self.asm.emit(match op {
            Binary::Smod => ops::sdiv(sf, X16, rn, rm),
            _ => ops::udiv(sf, X16, rn, rm),
        });
        self.asm.emit(ops::msub(sf, rd, X16, rm, rn));
    }

    fn field(&mut self, field: Field, rd: A64) -> Result<Inst, ImmError> {
        let Field {
            signed,
            width,
            src,
            lsb,
            len,
            at,
        } = field;
        let rn = self.read(src, X17);
        let sf = match signed {
            true => sf(width),
            // What is zero extended is the same in both widths.
            false if lsb + len <= 32 && at + len <= 32 => Sf::W,
            false => Sf::X,
        };
        if !signed && field == Field::low(src, 32) {
            return Ok(ops::mov(Sf::W, rd, rn));
        }
        let size = sf.bits() as u64;
        let (immr, imms) = match at {
            0 => (lsb, lsb + len - 1),
            _ => (((size - u64::from(at)) % size) as u8, len - 1),
        };
        Ok(Inst::Bitfield {
            op: match signed {
                true => BitfieldOp::Sbfm,
                false => BitfieldOp::Ubfm,
            },
            rd: rd.into(),
            rn: rn.into(),
            range: BitRange::new(sf, immr.into(), imms.into())?,
        })
    }

    fn select(&mut self, test: Test, rd: A64, yes: Rhs, no: Rhs) {
        let cond = self.compare(test);
        // What the second operand may be made of the zero register: 0, 1 (CSINC), -1 (CSINV).
        let made = |rhs| match rhs {
            Rhs::Imm(0) => Some(SelectOp::Csel),
            Rhs::Imm(1) => Some(SelectOp::Csinc),
            Rhs::Imm(_) => Some(SelectOp::Csinv),
            _ => None,
        };
        let (first, second, cond) = match (made(yes), made(no)) {
            (Some(op), None) if op != SelectOp::Csel => (no, yes, cond.inverted()),
            (Some(op), Some(SelectOp::Csel)) if op != SelectOp::Csel => (no, yes, cond.inverted()),
            _ => (yes, no, cond),
        };
        let mut register = |rhs| match rhs {
            Rhs::Imm(0) => XZR,
            rhs => Gpr::from(self.rhs(rhs, X17)),
        };
        let (op, rn, rm) = match made(second) {
            Some(op) => (op, register(first), XZR),
            None => (SelectOp::Csel, register(first), register(second)),
        };
        self.asm.emit(Inst::Select {
            op,
            size: Sf::X,
            rd: rd.into(),
            rn,
            rm,
            cond,
        });
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

    /// Emits a comparison; the condition that holds after it if the test does.
    fn compare(&mut self, test: Test) -> Flags {
        let Test { width, cond, a, b } = test;
        let sf = sf(width);
        let reg = self.read(a, X17);
        if let Rhs::Imm(value) = b
            && let Ok(inst) = compare_imm(width, cond, reg, value)
        {
            self.asm.emit(inst);
            return flags(cond);
        }
        let rm = self.rhs(b, X16);
        let (rn, rm) = (Gpr::from(reg), Gpr::from(rm));
        let shift = match b {
            Rhs::Shifted(_, kind, by) => {
                Amount::new(sf, by.into()).map(|amount| Shift { kind, amount })
            }
            _ => Ok(Shift::none(sf)),
        };
        let inst = match (cond, b) {
            (Cond::Set, _) => shift.map(|shift| Inst::LogicalReg {
                op: LogicalOp::Ands,
                rd: XZR,
                rn,
                rm,
                shift,
            }),
            (_, Rhs::Extended(_, extend, by)) => {
                ExtendShift::new(by.into()).map(|shift| Inst::AddSubExtFlags {
                    op: AddSub::Sub,
                    size: sf,
                    rd: XZR,
                    rn: reg.into(),
                    rm,
                    extend,
                    shift,
                })
            }
            _ => shift.and_then(AddShift::new).map(|shift| Inst::AddSubReg {
                op: AddSub::Sub,
                flags: true,
                rd: XZR,
                rn,
                rm,
                shift,
            }),
        };
        self.asm.emit(inst);
        flags(cond)
    }

    /// Emits what a branch needs before it, and says how it branches.
    fn jump(&mut self, test: Test) -> Jump {
        let Test { width, cond, a, b } = test;
        let sf = sf(width);
        if !needs_no_flags(&test) {
            return Jump::Flags(self.compare(test));
        }
        let reg = self.read(a, X17);
        match (cond, b) {
            (Cond::Slt | Cond::Sge, _) => Jump::Bit {
                set: cond == Cond::Slt,
                reg,
                bit: u64::from(sf.bits() - 1),
            },
            (Cond::Set, Rhs::Imm(mask)) => Jump::Bit {
                set: true,
                reg,
                bit: mask.trailing_zeros().into(),
            },
            _ => Jump::Zero {
                nonzero: matches!(cond, Cond::Ne | Cond::Gt),
                sf,
                reg,
            },
        }
    }

    fn branch(&mut self, jump: Jump, from: usize, to: usize, far: bool) {
        let place = self.place(to);
        if far {
            let over = jump
                .inverted()
                .branch()
                .and_then(|inst| inst.with_offset(8));
            self.asm.emit(over);
            self.asm.b_abs(place);
            return;
        }
        self.short.push(ShortBranch {
            from,
            to,
            word: self.asm.len(),
            reach: jump.reach(),
        });
        match jump.branch() {
            Ok(inst) => self.asm.branch_to(inst, place),
            error => self.asm.emit(error),
        }
    }

    /// The address of a block of the program.
    fn place(&self, block: usize) -> u64 {
        self.address_of(block, |layout| &layout.blocks)
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
}
