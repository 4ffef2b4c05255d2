// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions as the interpreter runs them: sixteen bytes each, one dense code for each thing to do.
//!
//! An [`Op`] says what an instruction means by nested choices (operation, width, kind of operand); taking them apart at
//! each execution costs more than most instructions do. Here they are one number, so that one jump finds the code; and
//! pairs of instructions that compilers like are found by one jump for both.
use alloc::boxed::Box;

use crate::{
    helpers,
    isa::{AluOp, AtomicOp, Cond, Op, Operand, Reg, Size, Swap, Width},
    program::{Instruction, ValidatedProgram},
};

/// A register's place; sixteen values, so that no index into sixteen registers can be out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[rustfmt::skip]
#[expect(dead_code, reason = "the last five fill the type's range")]
pub(crate) enum Place { R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, R11, R12, R13, R14, R15 }

/// The places of the registers, by number.
#[rustfmt::skip]
const PLACES: [Place; Reg::COUNT] = {
    use Place::*;
    [R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10]
};

/// The places of a function's arguments.
pub(super) const ARGUMENTS: [Place; 5] = {
    use Place::*;
    [R1, R2, R3, R4, R5]
};

impl From<Reg> for Place {
    fn from(reg: Reg) -> Self {
        PLACES.get(reg.index()).copied().unwrap_or(Self::R0)
    }
}

/// One instruction.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(crate) struct Flat {
    pub(super) code: Code,
    /// What is written; of a store and a conditional jump the first operand.
    pub(super) dst: Place,
    /// The second operand.
    pub(super) src: Place,
    /// Offset of an access; index of the instruction that may be jumped to; index of a helper in its table, of a kernel function.
    pub(super) off: u32,
    /// The immediate, sign extended; of a jump or local call what [`jump_imm_of`] makes.
    pub(super) imm: u64,
}

/// The rows of arithmetic, jumps, accesses and pairs: name of the code and what it does. `$with` gets all of them and
/// what else it was given.
macro_rules! rows {
    ($with:ident ! { $($rest:tt)* }) => {
        $with! {
            alu_reg {
                Add64 W64 Add, Add32 W32 Add, Sub64 W64 Sub, Sub32 W32 Sub, Mul64 W64 Mul, Mul32 W32 Mul,
                Div64 W64 Div, Div32 W32 Div, Sdiv64 W64 Sdiv, Sdiv32 W32 Sdiv, Or64 W64 Or, Or32 W32 Or,
                And64 W64 And, And32 W32 And, Lsh64 W64 Lsh, Lsh32 W32 Lsh, Rsh64 W64 Rsh, Rsh32 W32 Rsh,
                Mod64 W64 Mod, Mod32 W32 Mod, Smod64 W64 Smod, Smod32 W32 Smod, Xor64 W64 Xor, Xor32 W32 Xor,
                Mov64 W64 Mov, Mov32 W32 Mov, Arsh64 W64 Arsh, Arsh32 W32 Arsh,
                Movsx8To64 W64 Movsx8, Movsx8To32 W32 Movsx8, Movsx16To64 W64 Movsx16, Movsx16To32 W32 Movsx16,
                Movsx32To64 W64 Movsx32,
            }
            alu_imm {
                Add64Imm W64 Add, Add32Imm W32 Add, Sub64Imm W64 Sub, Sub32Imm W32 Sub, Mul64Imm W64 Mul,
                Mul32Imm W32 Mul, Div64Imm W64 Div, Div32Imm W32 Div, Sdiv64Imm W64 Sdiv, Sdiv32Imm W32 Sdiv,
                Or64Imm W64 Or, Or32Imm W32 Or, And64Imm W64 And, And32Imm W32 And, Lsh64Imm W64 Lsh,
                Lsh32Imm W32 Lsh, Rsh64Imm W64 Rsh, Rsh32Imm W32 Rsh, Mod64Imm W64 Mod, Mod32Imm W32 Mod,
                Smod64Imm W64 Smod, Smod32Imm W32 Smod, Xor64Imm W64 Xor, Xor32Imm W32 Xor, Mov64Imm W64 Mov,
                Mov32Imm W32 Mov, Arsh64Imm W64 Arsh, Arsh32Imm W32 Arsh,
            }
            jump_reg {
                Eq64 W64 Eq, Eq32 W32 Eq, Gt64 W64 Gt, Gt32 W32 Gt, Ge64 W64 Ge, Ge32 W32 Ge, Set64 W64 Set,
                Set32 W32 Set, Ne64 W64 Ne, Ne32 W32 Ne, Sgt64 W64 Sgt, Sgt32 W32 Sgt, Sge64 W64 Sge,
                Sge32 W32 Sge, Lt64 W64 Lt, Lt32 W32 Lt, Le64 W64 Le, Le32 W32 Le, Slt64 W64 Slt, Slt32 W32 Slt,
                Sle64 W64 Sle, Sle32 W32 Sle,
            }
            jump_imm {
                Eq64Imm W64 Eq, Eq32Imm W32 Eq, Gt64Imm W64 Gt, Gt32Imm W32 Gt, Ge64Imm W64 Ge, Ge32Imm W32 Ge,
                Set64Imm W64 Set, Set32Imm W32 Set, Ne64Imm W64 Ne, Ne32Imm W32 Ne, Sgt64Imm W64 Sgt,
                Sgt32Imm W32 Sgt, Sge64Imm W64 Sge, Sge32Imm W32 Sge, Lt64Imm W64 Lt, Lt32Imm W32 Lt,
                Le64Imm W64 Le, Le32Imm W32 Le, Slt64Imm W64 Slt, Slt32Imm W32 Slt, Sle64Imm W64 Sle,
                Sle32Imm W32 Sle,
            }
            load {
                Load8 B false, Load16 H false, Load32 W false, Load64 Dw false,
                Load8Signed B true, Load16Signed H true, Load32Signed W true,
            }
            store_reg { Store8 B, Store16 H, Store32 W, Store64 Dw, }
            store_imm { Store8Imm B, Store16Imm H, Store32Imm W, Store64Imm Dw, }
            pairs {
                Mov64ThenAdd64 Mov64 Add64, Mov64ThenAdd64Imm Mov64 Add64Imm, Mov64ThenMov64 Mov64 Mov64,
                Mov64ThenSub64 Mov64 Sub64, Mov64ThenMul64 Mov64 Mul64, Mov64ThenDiv64 Mov64 Div64,
                Mov64ThenAnd64Imm Mov64 And64Imm, Mov64ThenLsh64Imm Mov64 Lsh64Imm, Mov64ThenRsh64Imm Mov64 Rsh64Imm,
                Mov64ThenEq64Imm Mov64 Eq64Imm, Mov64ThenNe64Imm Mov64 Ne64Imm, Mov64ThenLt64 Mov64 Lt64,
                Mov64ImmThenAdd64Imm Mov64Imm Add64Imm, Mov64ImmThenMov64 Mov64Imm Mov64,
                Add64ImmThenLt64 Add64Imm Lt64, Add64ImmThenNe64Imm Add64Imm Ne64Imm,
                Add64ImmThenAdd64Imm Add64Imm Add64Imm, Add64ImmThenMov64 Add64Imm Mov64, Add64ThenAdd64 Add64 Add64,
                Add64ThenAdd64Imm Add64 Add64Imm, Add64ThenLt64 Add64 Lt64, Add64ThenLoad8 Add64 Load8,
                Add64ThenLoad16 Add64 Load16, Add64ThenLoad32 Add64 Load32, Add64ThenLoad64 Add64 Load64,
                Sub64ThenMov64 Sub64 Mov64, Mul64ThenMov64 Mul64 Mov64, Load8ThenEq32Imm Load8 Eq32Imm,
                Load8ThenMov32 Load8 Mov32, Load16ThenAdd64 Load16 Add64, Load32ThenMov64 Load32 Mov64,
                Load64ThenAdd64 Load64 Add64, Store8ThenAdd64 Store8 Add64, Store8ThenAdd64Imm Store8 Add64Imm,
                Store32ThenMov64Imm Store32 Mov64Imm, Mov32ThenMov32 Mov32 Mov32, Mov32ThenAdd32Imm Mov32 Add32Imm,
                Mov32ThenRsh32Imm Mov32 Rsh32Imm, Mov32ThenLsh32Imm Mov32 Lsh32Imm,
                Add32ImmThenAnd32Imm Add32Imm And32Imm, And32ImmThenGt32Imm And32Imm Gt32Imm,
                And32ImmThenLt32Imm And32Imm Lt32Imm, Xor32ThenMov32 Xor32 Mov32, Or32ThenMul32Imm Or32 Mul32Imm,
                Mul32ImmThenMul32Imm Mul32Imm Mul32Imm, Rsh32ImmThenOr32 Rsh32Imm Or32,
            }
            $($rest)*
        }
    };
}
pub(super) use rows;

macro_rules! codes {
    (
        alu_reg { $($alu_reg:ident $alu_reg_width:ident $alu_reg_op:ident,)* }
        alu_imm { $($alu_imm:ident $alu_imm_width:ident $alu_imm_op:ident,)* }
        jump_reg { $($jump_reg:ident $jump_reg_width:ident $jump_reg_cond:ident,)* }
        jump_imm { $($jump_imm:ident $jump_imm_width:ident $jump_imm_cond:ident,)* }
        load { $($load:ident $load_size:ident $load_signed:literal,)* }
        store_reg { $($store_reg:ident $store_reg_size:ident,)* }
        store_imm { $($store_imm:ident $store_imm_size:ident,)* }
        pairs { $($pair:ident $first:ident $second:ident,)* }
    ) => {
        /// What an instruction does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Code {
            $($alu_reg,)* $($alu_imm,)* $($jump_reg,)* $($jump_imm,)* $($load,)* $($store_reg,)* $($store_imm,)*
            $($pair,)*
            Neg64, Neg32, Swap,
            /// A constant of 64 bits; a map's or variable's address, a function's name.
            Constant,
            Atomic32, Atomic64, LoadAcquire, StoreRelease,
            Goto, Call, CallKernel, CallLocal, CallReg, Exit,
            /// Ends the run.
            Invalid,
        }

        fn alu_reg(width: Width, op: AluOp) -> Option<Code> {
            [$((Width::$alu_reg_width, AluOp::$alu_reg_op, Code::$alu_reg)),*]
                .into_iter().find(|row| (row.0, row.1) == (width, op)).map(|row| row.2)
        }

        fn alu_imm(width: Width, op: AluOp) -> Option<Code> {
            [$((Width::$alu_imm_width, AluOp::$alu_imm_op, Code::$alu_imm)),*]
                .into_iter().find(|row| (row.0, row.1) == (width, op)).map(|row| row.2)
        }

        fn jump_reg(width: Width, cond: Cond) -> Option<Code> {
            [$((Width::$jump_reg_width, Cond::$jump_reg_cond, Code::$jump_reg)),*]
                .into_iter().find(|row| (row.0, row.1) == (width, cond)).map(|row| row.2)
        }

        fn jump_imm(width: Width, cond: Cond) -> Option<Code> {
            [$((Width::$jump_imm_width, Cond::$jump_imm_cond, Code::$jump_imm)),*]
                .into_iter().find(|row| (row.0, row.1) == (width, cond)).map(|row| row.2)
        }

        fn load(size: Size, signed: bool) -> Option<Code> {
            [$((Size::$load_size, $load_signed, Code::$load)),*]
                .into_iter().find(|row| (row.0, row.1) == (size, signed)).map(|row| row.2)
        }

        /// The code that does both, if there is one.
        fn pair(first: Code, second: Code) -> Option<Code> {
            match (first, second) {
                $((Code::$first, Code::$second) => Some(Code::$pair),)*
                _ => None,
            }
        }

        fn store(size: Size, imm: bool) -> Option<Code> {
            let codes = match imm {
                true => [$((Size::$store_imm_size, Code::$store_imm)),*],
                false => [$((Size::$store_reg_size, Code::$store_reg)),*],
            };
            codes.into_iter().find(|row| row.0 == size).map(|row| row.1)
        }
    };
}
rows!(codes! {});

/// What stands in a register for a function that the program named: no address that any region holds, since the upper
/// bits are neither all ones nor all zeros (Arm ARM D8.2, address translation).
pub(super) const FUNCTION: u64 = 0xb9f0_0000_0000_0000;

/// How `imm` holds a jump's second operand (0 if that is a register) and its distance, in instructions from the next one.
fn jump_imm_of(value: i32, distance: i64) -> u64 {
    (distance << 32).cast_unsigned() | u64::from(value.cast_unsigned())
}

/// The operand that [`jump_imm_of`] was given, sign extended.
#[inline(always)]
pub(super) fn jump_value(imm: u64) -> u64 {
    i64::from(imm as i32).cast_unsigned()
}

/// The distance that it was given.
#[inline(always)]
pub(super) fn jump_distance(imm: u64) -> i64 {
    imm.cast_signed() >> 32
}

/// How `imm` holds what [`Code::Swap`] does: log2 of the bytes, and whether they are swapped.
pub(super) fn swap_imm(kind: Swap, size: Size) -> u64 {
    u64::from(size.log2()) | if kind == Swap::Le { 0 } else { 1 << 8 }
}

/// What [`swap_imm`] made.
pub(super) fn swap_of(imm: u64) -> (Swap, Size) {
    let kind = if imm >> 8 == 0 { Swap::Le } else { Swap::Bswap };
    (kind, size_of(imm & 0xff))
}

/// The size whose logarithm that is.
pub(super) fn size_of(log2: u64) -> Size {
    let size = Size::ALL.get(log2 as usize);
    size.copied().unwrap_or(Size::Dw)
}

/// Atomic operations, by what `imm` holds.
#[rustfmt::skip]
const ATOMICS: [AtomicOp; 10] = {
    use AtomicOp::*;
    [Add, Or, And, Xor, FetchAdd, FetchOr, FetchAnd, FetchXor, Xchg, Cmpxchg]
};

/// The operation that `imm` holds.
#[inline(always)]
pub(super) fn atomic_of(imm: u64) -> AtomicOp {
    let op = ATOMICS.get(imm as usize);
    op.copied().unwrap_or(AtomicOp::Add)
}

impl Flat {
    /// The instruction at an index of a program; `None` if it has none of that kind, which a validated one does not.
    fn new(index: usize, i: &Instruction, program: &ValidatedProgram) -> Option<Self> {
        let (op, target) = (i.op, i.target);
        let none = Place::R0;
        let flat = |code, dst: Place, src: Place, off: u32, imm: u64| {
            Some(Self {
                code,
                dst,
                src,
                off,
                imm,
            })
        };
        let wide = |imm: i32| i64::from(imm) as u64;
        let at = |off: i16| i32::from(off) as u32;
        let jump = |value| jump_imm_of(value, i64::from(target) - (index as i64 + 1));
        match op {
            Op::Alu {
                width,
                op,
                dst,
                src: Operand::Reg(src),
            } => flat(alu_reg(width, op)?, dst.into(), src.into(), 0, 0),
            Op::Alu {
                width,
                op,
                dst,
                src: Operand::Imm(imm),
            } => flat(alu_imm(width, op)?, dst.into(), none, 0, wide(imm)),
            Op::Neg { width, dst } => {
                let code = match width {
                    Width::W64 => Code::Neg64,
                    Width::W32 => Code::Neg32,
                };
                flat(code, dst.into(), none, 0, 0)
            }
            Op::Swap { kind, size, dst } => {
                flat(Code::Swap, dst.into(), none, 0, swap_imm(kind, size))
            }
            Op::LoadImm { dst, value } => flat(Code::Constant, dst.into(), none, 0, value),
            Op::LoadFunction { dst, .. } => {
                let value = FUNCTION | u64::from(target);
                flat(Code::Constant, dst.into(), none, 0, value)
            }
            Op::LoadMap { dst, .. }
            | Op::LoadMapValue { dst, .. }
            | Op::LoadVariable { dst, .. } => {
                let address = program.constant_address(op)?;
                flat(Code::Constant, dst.into(), none, 0, address)
            }
            Op::Load {
                size,
                signed,
                dst,
                base,
                off,
            } => flat(load(size, signed)?, dst.into(), base.into(), at(off), 0),
            Op::Store {
                size,
                base,
                off,
                src: Operand::Reg(src),
            } => flat(store(size, false)?, base.into(), src.into(), at(off), 0),
            Op::Store {
                size,
                base,
                off,
                src: Operand::Imm(imm),
            } => flat(store(size, true)?, base.into(), none, at(off), wide(imm)),
            Op::Atomic {
                size,
                op,
                base,
                off,
                src,
            } => {
                let code = match size {
                    Size::W => Code::Atomic32,
                    _ => Code::Atomic64,
                };
                let imm = ATOMICS.iter().position(|known| *known == op)? as u64;
                flat(code, base.into(), src.into(), at(off), imm)
            }
            Op::LoadAcquire {
                size,
                dst,
                base,
                off,
            } => {
                let imm = size.log2().into();
                flat(Code::LoadAcquire, dst.into(), base.into(), at(off), imm)
            }
            Op::StoreRelease {
                size,
                base,
                off,
                src,
            } => {
                let imm = size.log2().into();
                flat(Code::StoreRelease, base.into(), src.into(), at(off), imm)
            }
            Op::Goto { .. } => flat(Code::Goto, none, none, target, jump(0)),
            Op::If {
                width,
                cond,
                dst,
                src: Operand::Reg(src),
                ..
            } => {
                let code = jump_reg(width, cond)?;
                flat(code, dst.into(), src.into(), target, jump(0))
            }
            Op::If {
                width,
                cond,
                dst,
                src: Operand::Imm(imm),
                ..
            } => flat(jump_imm(width, cond)?, dst.into(), none, target, jump(imm)),
            Op::Call { helper } => {
                let index = helpers::position(program.helpers(), helper)?;
                flat(Code::Call, none, none, index as u32, 0)
            }
            Op::CallKernel { function } => flat(Code::CallKernel, none, none, function, 0),
            Op::CallLocal { .. } => flat(Code::CallLocal, none, none, target, jump(0)),
            Op::CallReg { target } => flat(Code::CallReg, target.into(), none, 0, 0),
            Op::Exit => flat(Code::Exit, none, none, 0, 0),
        }
    }
}

/// A program's instructions.
pub(crate) fn flatten(program: &ValidatedProgram) -> Box<[Flat]> {
    /// Stands for what a validated program does not hold.
    const INVALID: Flat = Flat {
        code: Code::Invalid,
        dst: Place::R0,
        src: Place::R0,
        off: 0,
        imm: 0,
    };
    let instructions = program.instructions().iter().enumerate();
    let flat = |(index, i)| Flat::new(index, i, program).unwrap_or(INVALID);
    let mut code: Box<[_]> = instructions.map(flat).collect();
    // The second of a pair stays as it is: a jump may lead there.
    for index in 1..code.len() {
        if let Some([first, second]) = code.get_mut(index - 1..=index)
            && let Some(both) = pair(first.code, second.code)
        {
            first.code = both;
        }
    }
    code
}
