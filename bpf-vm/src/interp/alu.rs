// SPDX-License-Identifier: MIT OR Apache-2.0
//! What arithmetic, byte order conversions and comparisons compute (RFC 9669, sections 4.1 to 4.3).
#![forbid(unsafe_code)]

use crate::isa::{AluOp, Cond, Size, Swap, Width};

/// The arithmetic of one width, and its comparisons.
macro_rules! width {
    ($alu:ident, $holds:ident, $unsigned:ty, $signed:ty) => {
        #[inline(always)]
        fn $alu(op: AluOp, a: $unsigned, b: $unsigned) -> $unsigned {
            let (sa, sb) = (a.cast_signed(), b.cast_signed());
            match op {
                AluOp::Add => a.wrapping_add(b),
                AluOp::Sub => a.wrapping_sub(b),
                AluOp::Mul => a.wrapping_mul(b),
                AluOp::Div => a.checked_div(b).unwrap_or(0),
                AluOp::Sdiv if b == 0 => 0,
                AluOp::Sdiv => sa.wrapping_div(sb).cast_unsigned(),
                AluOp::Or => a | b,
                AluOp::And => a & b,
                AluOp::Lsh => a.wrapping_shl(b as u32),
                AluOp::Rsh => a.wrapping_shr(b as u32),
                AluOp::Mod => a.checked_rem(b).unwrap_or(a),
                AluOp::Smod if b == 0 => a,
                AluOp::Smod => sa.wrapping_rem(sb).cast_unsigned(),
                AluOp::Xor => a ^ b,
                AluOp::Mov => b,
                AluOp::Movsx8 => <$signed>::from(b as i8).cast_unsigned(),
                AluOp::Movsx16 => <$signed>::from(b as i16).cast_unsigned(),
                AluOp::Movsx32 => <$signed>::from(b as i32).cast_unsigned(),
                AluOp::Arsh => sa.wrapping_shr(b as u32).cast_unsigned(),
            }
        }

        #[inline(always)]
        fn $holds(cond: Cond, a: $unsigned, b: $unsigned) -> bool {
            let (sa, sb) = (a.cast_signed(), b.cast_signed());
            match cond {
                Cond::Eq => a == b,
                Cond::Gt => a > b,
                Cond::Ge => a >= b,
                Cond::Set => a & b != 0,
                Cond::Ne => a != b,
                Cond::Sgt => sa > sb,
                Cond::Sge => sa >= sb,
                Cond::Lt => a < b,
                Cond::Le => a <= b,
                Cond::Slt => sa < sb,
                Cond::Sle => sa <= sb,
            }
        }
    };
}
width!(alu32, holds32, u32, i32);
width!(alu64, holds64, u64, i64);

/// `a OP b` in a width; 32-bit results are zero extended.
#[inline(always)]
pub(crate) fn alu(width: Width, op: AluOp, a: u64, b: u64) -> u64 {
    match width {
        Width::W32 => alu32(op, a as u32, b as u32).into(),
        Width::W64 => alu64(op, a, b),
    }
}

/// `-a` in a width.
#[inline(always)]
pub(crate) fn neg(width: Width, a: u64) -> u64 {
    alu(width, AluOp::Sub, 0, a)
}

/// Whether `a COND b` in a width.
#[inline(always)]
pub(crate) fn holds(width: Width, cond: Cond, a: u64, b: u64) -> bool {
    match width {
        Width::W32 => holds32(cond, a as u32, b as u32),
        Width::W64 => holds64(cond, a, b),
    }
}

/// The low `size` of `a` in another byte order, zero extended. Values are little endian here.
#[inline(always)]
pub(crate) fn swap(kind: Swap, size: Size, a: u64) -> u64 {
    let unused = 64 - size.bits();
    match kind {
        Swap::Le => a << unused >> unused,
        Swap::Be | Swap::Bswap => a.swap_bytes() >> unused,
    }
}

/// The low `size` of `a`, sign extended.
#[inline(always)]
pub(crate) fn sign_extend(size: Size, a: u64) -> u64 {
    let unused = 64 - size.bits();
    (a.cast_signed() << unused >> unused).cast_unsigned()
}
