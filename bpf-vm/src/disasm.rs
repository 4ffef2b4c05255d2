// SPDX-License-Identifier: MIT OR Apache-2.0
//! The text of an instruction, in the form that LLVM's disassembler prints; [`crate::asm`] reads it back.
#![forbid(unsafe_code)]

use core::fmt::{self, Display, Formatter};

use crate::isa::{AluOp, AtomicOp, Cond, Op, Operand, Reg, Size, Swap, Width};

impl AluOp {
    /// The assignment operator: `+=`, `s/=`, `=`. Sign extensions are `=` too, with a cast before the source.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Add => "+=",
            Self::Sub => "-=",
            Self::Mul => "*=",
            Self::Div => "/=",
            Self::Sdiv => "s/=",
            Self::Or => "|=",
            Self::And => "&=",
            Self::Lsh => "<<=",
            Self::Rsh => ">>=",
            Self::Mod => "%=",
            Self::Smod => "s%=",
            Self::Xor => "^=",
            Self::Mov | Self::Movsx8 | Self::Movsx16 | Self::Movsx32 => "=",
            Self::Arsh => "s>>=",
        }
    }

    /// The type a sign-extending move casts to.
    pub(crate) const fn cast(self) -> Option<&'static str> {
        match self {
            Self::Movsx8 => Some("s8"),
            Self::Movsx16 => Some("s16"),
            Self::Movsx32 => Some("s32"),
            _ => None,
        }
    }
}

impl Cond {
    /// The comparison operator: `==`, `s>`, `&`.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Eq => "==",
            Self::Gt => ">",
            Self::Ge => ">=",
            Self::Set => "&",
            Self::Ne => "!=",
            Self::Sgt => "s>",
            Self::Sge => "s>=",
            Self::Lt => "<",
            Self::Le => "<=",
            Self::Slt => "s<",
            Self::Sle => "s<=",
        }
    }
}

impl AtomicOp {
    /// The assignment operator, or the function's name without the size.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Add => "+=",
            Self::Or => "|=",
            Self::And => "&=",
            Self::Xor => "^=",
            Self::FetchAdd => "atomic_fetch_add",
            Self::FetchOr => "atomic_fetch_or",
            Self::FetchAnd => "atomic_fetch_and",
            Self::FetchXor => "atomic_fetch_xor",
            Self::Xchg => "xchg",
            Self::Cmpxchg => "cmpxchg",
        }
    }

    /// What LLVM appends to the names of the exchanges.
    pub(crate) const fn suffix(size: Size) -> &'static str {
        match size {
            Size::W => "32_32",
            _ => "_64",
        }
    }
}

impl Size {
    /// The unsigned C type: `u8` to `u64`.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::B => "u8",
            Self::H => "u16",
            Self::W => "u32",
            Self::Dw => "u64",
        }
    }
}

impl Swap {
    /// The name before the number of bits.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Le => "le",
            Self::Be => "be",
            Self::Bswap => "bswap",
        }
    }
}

impl Display for Reg {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.number())
    }
}

/// A register by the name that its width gives it: `r1` or `w1`.
struct Sized(Width, Reg);

impl Display for Sized {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let letter = if self.0 == Width::W64 { 'r' } else { 'w' };
        write!(f, "{letter}{}", self.1.number())
    }
}

/// A second operand in a width.
struct Source(Width, Operand);

impl Display for Source {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.1 {
            Operand::Reg(reg) => Sized(self.0, reg).fmt(f),
            Operand::Imm(imm) => imm.fmt(f),
        }
    }
}

/// `(r1 + 8)` without the parentheses.
struct Address(Reg, i16);

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let sign = if self.1 < 0 { '-' } else { '+' };
        write!(f, "{} {sign} {}", self.0, self.1.unsigned_abs())
    }
}

const fn width(size: Size) -> Width {
    match size {
        Size::Dw => Width::W64,
        _ => Width::W32,
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Alu {
                width,
                op,
                dst,
                src,
            } => {
                write!(f, "{} {} ", Sized(width, dst), op.text())?;
                if let Some(cast) = op.cast() {
                    write!(f, "({cast})")?;
                }
                Source(width, src).fmt(f)
            }
            Self::Neg { width, dst } => write!(f, "{0} = -{0}", Sized(width, dst)),
            Self::Swap { kind, size, dst } => {
                write!(f, "{dst} = {}{} {dst}", kind.text(), size.bits())
            }
            Self::LoadImm { dst, value } => write!(f, "{dst} = {} ll", value.cast_signed()),
            Self::LoadMap { dst, map } => write!(f, "{dst} = map[{map}]"),
            Self::LoadMapValue { dst, map, offset } => write!(f, "{dst} = map[{map}][0]+{offset}"),
            Self::LoadFunction { dst, off } => write!(f, "{dst} = func {off:+}"),
            Self::LoadVariable { dst, variable } => write!(f, "{dst} = var[{variable}]"),
            Self::Load {
                size,
                signed,
                dst,
                base,
                off,
            } => {
                let letter = if signed { 's' } else { 'u' };
                write!(
                    f,
                    "{dst} = *({letter}{} *)({})",
                    size.bits(),
                    Address(base, off)
                )
            }
            Self::Store {
                size,
                base,
                off,
                src,
            } => {
                let src = Source(Width::W64, src);
                write!(f, "*({} *)({}) = {src}", size.text(), Address(base, off))
            }
            Self::Atomic {
                size,
                op,
                base,
                off,
                src,
            } => {
                let (name, kind, address) = (op.text(), size.text(), Address(base, off));
                let suffix = AtomicOp::suffix(size);
                let sized = Sized(width(size), src);
                match op {
                    AtomicOp::Xchg => write!(f, "{sized} = {name}{suffix}({address}, {sized})"),
                    AtomicOp::Cmpxchg => {
                        let r0 = Sized(width(size), Reg::R0);
                        write!(f, "{r0} = {name}{suffix}({address}, {r0}, {sized})")
                    }
                    _ if op.fetches() => {
                        write!(f, "{sized} = {name}(({kind} *)({address}), {sized})")
                    }
                    _ => write!(f, "lock *({kind} *)({address}) {name} {sized}"),
                }
            }
            Self::LoadAcquire {
                size,
                dst,
                base,
                off,
            } => {
                let dst = Sized(width(size), dst);
                let address = Address(base, off);
                write!(f, "{dst} = load_acquire(({} *)({address}))", size.text())
            }
            Self::StoreRelease {
                size,
                base,
                off,
                src,
            } => {
                let src = Sized(width(size), src);
                let address = Address(base, off);
                write!(f, "store_release(({} *)({address}), {src})", size.text())
            }
            Self::Goto { off, long } => {
                write!(f, "{} {off:+}", if long { "gotol" } else { "goto" })
            }
            Self::If {
                width,
                cond,
                dst,
                src,
                off,
            } => {
                let (dst, src) = (Sized(width, dst), Source(width, src));
                write!(f, "if {dst} {} {src} goto {off:+}", cond.text())
            }
            Self::Call { helper } => write!(f, "call {helper}"),
            Self::CallLocal { off } => write!(f, "call local {off:+}"),
            Self::CallKernel { function } => write!(f, "call kfunc[{function}]"),
            Self::CallReg { target } => write!(f, "callx {target}"),
            Self::Exit => f.write_str("exit"),
        }
    }
}
