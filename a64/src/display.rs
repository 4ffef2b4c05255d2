// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions as text: the preferred disassembly, as GNU and LLVM tools print it.
//!
//! The aliases are the manual's "preferred when" conditions (Arm ARM C6.2, each instruction's page).

use crate::imm::*;
use crate::inst::*;
use crate::reg::{Gpr, RegOrSp, SP, Size, XZR};
use core::fmt::{self, Display, Formatter, Result};

/// An instruction to be printed as it stands at an address; made by [`Inst::display`].
#[derive(Clone, Copy, Debug)]
pub struct DisplayInst {
    inst: Inst,
    pc: Option<u64>,
}

impl Inst {
    /// Prints with branch targets as addresses, for an instruction at `pc`.
    pub const fn display(self, pc: u64) -> DisplayInst {
        DisplayInst {
            inst: self,
            pc: Some(pc),
        }
    }
}

/// Prints any word found at `pc`; one that does not decode is `.word 0x...`.
pub fn display_word(word: u32, pc: u64) -> impl Display {
    fmt::from_fn(move |f| match Inst::decode(word) {
        Some(inst) => inst.display(pc).fmt(f),
        None => write!(f, ".word {word:#010x}"),
    })
}

/// With branch targets as offsets: `b #16`.
impl Display for Inst {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        DisplayInst {
            inst: *self,
            pc: None,
        }
        .fmt(f)
    }
}

/// A register as this width names it.
struct R(Size, Gpr);

impl Display for R {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let letter = match self.0 {
            Size::W => 'w',
            Size::X => 'x',
        };
        match self.1.reg() {
            Some(r) => write!(f, "{letter}{}", r.number()),
            None => write!(f, "{letter}zr"),
        }
    }
}

/// A register or the stack pointer as this width names it.
struct S(Size, RegOrSp);

impl Display for S {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match (self.1.reg(), self.0) {
            (Some(r), size) => R(size, r.into()).fmt(f),
            (None, Size::X) => f.write_str("sp"),
            (None, Size::W) => f.write_str("wsp"),
        }
    }
}

impl Display for Shift {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let name = match (self.kind, self.amount.value()) {
            (ShiftKind::Lsl, 0) => return Ok(()),
            (ShiftKind::Lsl, _) => "lsl",
            (ShiftKind::Lsr, _) => "lsr",
            (ShiftKind::Asr, _) => "asr",
            (ShiftKind::Ror, _) => "ror",
        };
        write!(f, ", {name} #{}", self.amount.value())
    }
}

impl Display for Imm12 {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let (bits, shifted) = self.parts();
        write!(f, "#{bits}{}", if shifted { ", lsl #12" } else { "" })
    }
}

impl Display for SysReg {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => {
                let (op0, op1, crn, crm, op2) = self.fields();
                write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")
            }
        }
    }
}

impl MemSize {
    /// What an atomic's mnemonic ends in.
    const fn suffix(self) -> &'static str {
        match self {
            Self::B => "b",
            Self::H => "h",
            Self::W | Self::X => "",
        }
    }
}

const fn order(acquire: bool, release: bool) -> &'static str {
    match (acquire, release) {
        (false, false) => "",
        (true, false) => "a",
        (false, true) => "l",
        (true, true) => "al",
    }
}

const HINTS: &[(u64, &str)] = &[
    (0, "nop"),
    (1, "yield"),
    (2, "wfe"),
    (3, "wfi"),
    (4, "sev"),
    (5, "sevl"),
    (20, "csdb"),
    (32, "bti"),
    (34, "bti c"),
    (36, "bti j"),
    (38, "bti jc"),
];

const BARRIER_OPTIONS: [&str; 16] = [
    "", "oshld", "oshst", "osh", "", "nshld", "nshst", "nsh", "", "ishld", "ishst", "ish", "",
    "ld", "st", "sy",
];

/// SYS operations by name: op1, CRn, CRm, op2, and whether they take a register (C5.3 to C5.5).
const SYS: &[(u64, u64, u64, u64, &str, bool)] = &[
    (0, 7, 1, 0, "ic ialluis", false),
    (0, 7, 5, 0, "ic iallu", false),
    (3, 7, 5, 1, "ic ivau", true),
    (0, 7, 6, 1, "dc ivac", true),
    (0, 7, 6, 2, "dc isw", true),
    (3, 7, 4, 1, "dc zva", true),
    (3, 7, 10, 1, "dc cvac", true),
    (3, 7, 11, 1, "dc cvau", true),
    (3, 7, 14, 1, "dc civac", true),
    (0, 7, 14, 2, "dc cisw", true),
    (0, 7, 8, 0, "at s1e1r", true),
    (0, 7, 8, 1, "at s1e1w", true),
    (0, 8, 3, 0, "tlbi vmalle1is", false),
    (0, 8, 3, 1, "tlbi vae1is", true),
    (0, 8, 3, 3, "tlbi vaae1is", true),
    (0, 8, 3, 5, "tlbi vale1is", true),
    (0, 8, 3, 7, "tlbi vaale1is", true),
    (0, 8, 7, 0, "tlbi vmalle1", false),
    (0, 8, 7, 1, "tlbi vae1", true),
    (0, 8, 7, 3, "tlbi vaae1", true),
];

impl Display for DisplayInst {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        use crate::reg::Size::{W, X};
        // A PC-relative byte offset as text.
        let to = |bytes: i64| {
            fmt::from_fn(move |f| match self.pc {
                Some(pc) => write!(f, "{:#x}", pc.wrapping_add_signed(bytes)),
                None => write!(f, "#{bytes}"),
            })
        };
        match self.inst {
            Inst::Udf { imm } => write!(f, "udf #{imm}"),
            Inst::Branch { link, offset } => {
                write!(
                    f,
                    "{} {}",
                    if link { "bl" } else { "b" },
                    to(offset.value())
                )
            }
            Inst::BranchCond { cond, offset } => {
                write!(f, "b.{} {}", cond.name(), to(offset.value()))
            }
            Inst::CompareBranch {
                nonzero,
                size,
                rt,
                offset,
            } => {
                let name = if nonzero { "cbnz" } else { "cbz" };
                write!(f, "{name} {}, {}", R(size, rt), to(offset.value()))
            }
            Inst::TestBranch {
                nonzero,
                bit,
                rt,
                offset,
            } => {
                let name = if nonzero { "tbnz" } else { "tbz" };
                let size = if bit.value() < 32 { W } else { X };
                write!(
                    f,
                    "{name} {}, #{}, {}",
                    R(size, rt),
                    bit.value(),
                    to(offset.value())
                )
            }
            Inst::BranchReg {
                op: BranchRegOp::Ret,
                rn,
            } if rn == crate::reg::X30 => f.write_str("ret"),
            Inst::BranchReg { op, rn } => write!(f, "{} {}", op.name(), R(X, rn)),
            Inst::Eret => f.write_str("eret"),
            Inst::Hint { number } => match HINTS.iter().find(|(n, _)| *n == number.value()) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "hint #{}", number.value()),
            },
            Inst::Barrier { op, option } => barrier(f, op, option.value() as usize),
            Inst::Exception { op, imm: 0 } => write!(f, "{} #0", op.name()),
            Inst::Exception { op, imm } => write!(f, "{} #{imm:#x}", op.name()),
            Inst::Mrs { rt, reg } => write!(f, "mrs {}, {reg}", R(X, rt)),
            Inst::Msr { reg, rt } => write!(f, "msr {reg}, {}", R(X, rt)),
            Inst::MsrImm { field, imm } => write!(f, "msr {}, #{}", field.name(), imm.value()),
            Inst::Sys {
                op1,
                crn,
                crm,
                op2,
                rt,
            } => {
                let key = (op1.value(), crn.value(), crm.value(), op2.value());
                let named = SYS.iter().find(|s| (s.0, s.1, s.2, s.3) == key);
                match named {
                    Some((.., name, true)) => write!(f, "{name}, {}", R(X, rt)),
                    Some((.., name, false)) if rt == XZR => f.write_str(name),
                    _ => {
                        write!(f, "sys #{}, c{}, c{}, #{}", key.0, key.1, key.2, key.3)?;
                        if rt == XZR {
                            Ok(())
                        } else {
                            write!(f, ", {}", R(X, rt))
                        }
                    }
                }
            }
            Inst::MoveWide { op, rd, imm } => move_wide(f, op, rd, imm),
            Inst::Adr { rd, offset } => write!(f, "adr {}, {}", R(X, rd), to(offset.value())),
            Inst::Adrp { rd, pages } => {
                let bytes = pages.value() * 4096 - self.pc.map_or(0, |pc| (pc & 4095) as i64);
                write!(f, "adrp {}, {}", R(X, rd), to(bytes))
            }
            Inst::AddSubImm {
                op: AddSub::Add,
                size,
                rd,
                rn,
                imm,
            } if imm == Imm12::ZERO && (rd == SP || rn == SP) => {
                write!(f, "mov {}, {}", S(size, rd), S(size, rn))
            }
            Inst::AddSubImm {
                op,
                size,
                rd,
                rn,
                imm,
            } => {
                write!(f, "{} {}, {}, {imm}", op.name(), S(size, rd), S(size, rn))
            }
            Inst::AddSubImmFlags {
                op,
                size,
                rd,
                rn,
                imm,
            } if rd == XZR => {
                write!(f, "{} {}, {imm}", compare(op), S(size, rn))
            }
            Inst::AddSubImmFlags {
                op,
                size,
                rd,
                rn,
                imm,
            } => {
                write!(f, "{}s {}, {}, {imm}", op.name(), R(size, rd), S(size, rn))
            }
            Inst::AddSubReg {
                op,
                flags,
                rd,
                rn,
                rm,
                shift,
            } => {
                let shift = shift.get();
                let (size, s) = (shift.amount.size(), if flags { "s" } else { "" });
                let (rd, rn, rm) = (R(size, rd), R(size, rn), R(size, rm));
                match (op, flags) {
                    (_, true) if rd.1 == XZR => write!(f, "{} {rn}, {rm}{shift}", compare(op)),
                    (AddSub::Sub, _) if rn.1 == XZR => write!(f, "neg{s} {rd}, {rm}{shift}"),
                    _ => write!(f, "{}{s} {rd}, {rn}, {rm}{shift}", op.name()),
                }
            }
            Inst::AddSubExt {
                op,
                size,
                rd,
                rn,
                rm,
                extend,
                shift,
            } => {
                write!(f, "{} {}, {}, ", op.name(), S(size, rd), S(size, rn))?;
                extended(f, size, rd == SP || rn == SP, rm, extend, shift)
            }
            Inst::AddSubExtFlags {
                op,
                size,
                rd,
                rn,
                rm,
                extend,
                shift,
            } => {
                if rd == XZR {
                    write!(f, "{} {}, ", compare(op), S(size, rn))?;
                } else {
                    write!(f, "{}s {}, {}, ", op.name(), R(size, rd), S(size, rn))?;
                }
                extended(f, size, rn == SP, rm, extend, shift)
            }
            Inst::Carry {
                op,
                size,
                rd,
                rn,
                rm,
            } => match op {
                CarryOp::Sbc if rn == XZR => write!(f, "ngc {}, {}", R(size, rd), R(size, rm)),
                CarryOp::Sbcs if rn == XZR => write!(f, "ngcs {}, {}", R(size, rd), R(size, rm)),
                _ => three(f, op.name(), size, rd, rn, rm),
            },
            Inst::LogicalImm { op, rd, rn, imm } => {
                let size = imm.size();
                if matches!(op, LogicalImmOp::Orr) && rn == XZR && !move_wide_holds(imm) {
                    write!(f, "mov {}, #{}", S(size, rd), signed(size, imm.value()))
                } else {
                    let (rd, rn) = (S(size, rd), R(size, rn));
                    write!(f, "{} {rd}, {rn}, #{:#x}", op.name(), imm.value())
                }
            }
            Inst::AndsImm { rd, rn, imm } if rd == XZR => {
                write!(f, "tst {}, #{:#x}", R(imm.size(), rn), imm.value())
            }
            Inst::AndsImm { rd, rn, imm } => {
                let (rd, rn) = (R(imm.size(), rd), R(imm.size(), rn));
                write!(f, "ands {rd}, {rn}, #{:#x}", imm.value())
            }
            Inst::LogicalReg {
                op,
                rd,
                rn,
                rm,
                shift,
            } => {
                let size = shift.amount.size();
                let (rd, rn, rm) = (R(size, rd), R(size, rn), R(size, rm));
                match op {
                    LogicalOp::Orr if rn.1 == XZR && shift == Shift::none(size) => {
                        write!(f, "mov {rd}, {rm}")
                    }
                    LogicalOp::Orn if rn.1 == XZR => write!(f, "mvn {rd}, {rm}{shift}"),
                    LogicalOp::Ands if rd.1 == XZR => write!(f, "tst {rn}, {rm}{shift}"),
                    _ => write!(f, "{} {rd}, {rn}, {rm}{shift}", op.name()),
                }
            }
            Inst::Bitfield { op, rd, rn, range } => bitfield(f, op, rd, rn, range),
            Inst::Extract { rd, rn, rm, lsb } => {
                let (rd, size, lsb) = (R(lsb.size(), rd), lsb.size(), lsb.value());
                if rn == rm {
                    write!(f, "ror {rd}, {}, #{lsb}", R(size, rn))
                } else {
                    write!(f, "extr {rd}, {}, {}, #{lsb}", R(size, rn), R(size, rm))
                }
            }
            Inst::MulAdd {
                op,
                size,
                rd,
                rn,
                rm,
                ra,
            } => {
                let name = match (op, ra == XZR) {
                    (MulAddOp::Madd, true) => "mul",
                    (MulAddOp::Msub, true) => "mneg",
                    _ => op.name(),
                };
                three(f, name, size, rd, rn, rm)?;
                if ra == XZR {
                    Ok(())
                } else {
                    write!(f, ", {}", R(size, ra))
                }
            }
            Inst::MulAddLong { op, rd, rn, rm, ra } => {
                let name = match op {
                    _ if ra != XZR => op.name(),
                    MulAddLongOp::Smaddl => "smull",
                    MulAddLongOp::Smsubl => "smnegl",
                    MulAddLongOp::Umaddl => "umull",
                    MulAddLongOp::Umsubl => "umnegl",
                };
                write!(f, "{name} {}, {}, {}", R(X, rd), R(W, rn), R(W, rm))?;
                if ra == XZR {
                    Ok(())
                } else {
                    write!(f, ", {}", R(X, ra))
                }
            }
            Inst::MulHigh { op, rd, rn, rm } => three(f, op.name(), X, rd, rn, rm),
            Inst::TwoSource {
                op,
                size,
                rd,
                rn,
                rm,
            } => three(f, op.name(), size, rd, rn, rm),
            Inst::OneSource { op, rd, rn } => {
                let size = Size::of(op as u32);
                write!(f, "{} {}, {}", op.name(), R(size, rd), R(size, rn))
            }
            Inst::Select {
                op,
                size,
                rd,
                rn,
                rm,
                cond,
            } => select(f, op, size, rd, rn, rm, cond),
            Inst::CompareReg {
                op,
                size,
                rn,
                rm,
                nzcv,
                cond,
            } => {
                let (name, rn, rm) = (op.name(), R(size, rn), R(size, rm));
                write!(f, "{name} {rn}, {rm}, #{}, {}", nzcv.value(), cond.name())
            }
            Inst::CompareImm {
                op,
                size,
                rn,
                imm,
                nzcv,
                cond,
            } => {
                let (name, rn, imm) = (op.name(), R(size, rn), imm.value());
                write!(f, "{name} {rn}, #{imm}, #{}, {}", nzcv.value(), cond.name())
            }
            Inst::LoadStore { op, rt, rn, offset } => {
                write!(f, "{} {}, ", op.name(), R(op.register(), rt))?;
                address(f, rn, (offset.value() * op.bytes() as u64) as i64, "]")
            }
            Inst::LoadStore9 {
                op,
                mode,
                rt,
                rn,
                offset,
            } => {
                let (name, rt, offset) = (op.name(), R(op.register(), rt), offset.value());
                match mode {
                    Mode9::Unscaled => {
                        let (direction, rest) = name.split_at(2);
                        write!(f, "{direction}u{rest} {rt}, ")?;
                        address(f, rn, offset, "]")
                    }
                    Mode9::Post => write!(f, "{name} {rt}, [{}], #{offset}", S(X, rn)),
                    Mode9::Pre => write!(f, "{name} {rt}, [{}, #{offset}]!", S(X, rn)),
                }
            }
            Inst::LoadStoreReg {
                op,
                rt,
                rn,
                rm,
                extend,
                scaled,
            } => {
                let size = match extend {
                    IndexExtend::Uxtw | IndexExtend::Sxtw => W,
                    IndexExtend::Lsl | IndexExtend::Sxtx => X,
                };
                let (rt, rn, rm) = (R(op.register(), rt), S(X, rn), R(size, rm));
                write!(f, "{} {rt}, [{rn}, {rm}", op.name())?;
                match (extend, scaled) {
                    (IndexExtend::Lsl, false) => f.write_str("]"),
                    (_, false) => write!(f, ", {}]", extend.name()),
                    (_, true) => write!(f, ", {} #{}]", extend.name(), op.bytes().trailing_zeros()),
                }
            }
            Inst::LoadLiteral { op, rt, offset } => {
                let size = if matches!(op, LiteralOp::LdrW) { W } else { X };
                write!(f, "{} {}, {}", op.name(), R(size, rt), to(offset.value()))
            }
            Inst::PrefetchLiteral { op, offset } => {
                f.write_str("prfm ")?;
                let bits = op.value();
                let kind = ["pld", "pli", "pst"].get((bits >> 3) as usize);
                match (kind, bits >> 1 & 3, bits & 1) {
                    (Some(kind), level @ 0..=2, policy) => {
                        let policy = if policy == 0 { "keep" } else { "strm" };
                        write!(f, "{kind}l{}{policy}", level + 1)?;
                    }
                    _ => write!(f, "#{bits}")?,
                }
                write!(f, ", {}", to(offset.value()))
            }
            Inst::Pair {
                op,
                mode,
                rt,
                rt2,
                rn,
                offset,
            } => {
                let (size, offset) = (op.register(), offset.value() * op.bytes() as i64);
                write!(f, "{} {}, {}, ", op.name(), R(size, rt), R(size, rt2))?;
                match mode {
                    PairMode::Offset => address(f, rn, offset, "]"),
                    PairMode::Pre => write!(f, "[{}, #{offset}]!", S(X, rn)),
                    PairMode::Post => write!(f, "[{}], #{offset}", S(X, rn)),
                }
            }
            Inst::Ordered { op, size, rt, rn } => {
                let rt = R(size.register(), rt);
                write!(f, "{}{} {rt}, [{}]", op.name(), size.suffix(), S(X, rn))
            }
            Inst::StoreExclusive {
                op,
                size,
                rs,
                rt,
                rn,
            } => {
                let (rs, rt) = (R(W, rs), R(size.register(), rt));
                write!(
                    f,
                    "{}{} {rs}, {rt}, [{}]",
                    op.name(),
                    size.suffix(),
                    S(X, rn)
                )
            }
            Inst::Atomic {
                op,
                size,
                acquire,
                release,
                rs,
                rt,
                rn,
            } => {
                let (r, suffix, order) = (size.register(), size.suffix(), order(acquire, release));
                let (name, rs, rn) = (op.name(), R(r, rs), S(X, rn));
                match name.strip_prefix("ld") {
                    Some(rest) if rt == XZR && !acquire => {
                        write!(f, "st{rest}{order}{suffix} {rs}, [{rn}]")
                    }
                    _ => write!(f, "{name}{order}{suffix} {rs}, {}, [{rn}]", R(r, rt)),
                }
            }
            Inst::Cas {
                size,
                acquire,
                release,
                rs,
                rt,
                rn,
            } => {
                let (r, order) = (size.register(), order(acquire, release));
                let (rs, rt) = (R(r, rs), R(r, rt));
                write!(f, "cas{order}{} {rs}, {rt}, [{}]", size.suffix(), S(X, rn))
            }
        }
    }
}

const fn compare(op: AddSub) -> &'static str {
    match op {
        AddSub::Add => "cmn",
        AddSub::Sub => "cmp",
    }
}

/// The value as a signed number of this width.
const fn signed(size: Size, value: u64) -> i64 {
    match size {
        Size::W => value as u32 as i32 as i64,
        Size::X => value as i64,
    }
}

fn three(f: &mut Formatter<'_>, name: &str, size: Size, rd: Gpr, rn: Gpr, rm: Gpr) -> Result {
    write!(
        f,
        "{name} {}, {}, {}",
        R(size, rd),
        R(size, rn),
        R(size, rm)
    )
}

fn address(f: &mut Formatter<'_>, rn: RegOrSp, offset: i64, close: &str) -> Result {
    match offset {
        0 => write!(f, "[{}{close}", S(Size::X, rn)),
        _ => write!(f, "[{}, #{offset}{close}", S(Size::X, rn)),
    }
}

fn barrier(f: &mut Formatter<'_>, op: BarrierOp, option: usize) -> Result {
    let name = BARRIER_OPTIONS.get(option).copied().unwrap_or("");
    match (op, option, name) {
        (BarrierOp::Isb | BarrierOp::Clrex, 15, _) => f.write_str(op.name()),
        (BarrierOp::Dsb, 0, _) => f.write_str("ssbb"),
        (BarrierOp::Dsb, 4, _) => f.write_str("pssbb"),
        (BarrierOp::Isb | BarrierOp::Clrex, _, _) | (_, _, "") => {
            write!(f, "{} #{option}", op.name())
        }
        _ => write!(f, "{} {name}", op.name()),
    }
}

/// The register operand `rm` as extended; with a stack pointer beside it, its own width's is `lsl`.
fn extended(
    f: &mut Formatter<'_>,
    size: Size,
    beside_sp: bool,
    rm: Gpr,
    extend: Extend,
    shift: ExtendShift,
) -> Result {
    let width = match extend {
        Extend::Uxtx | Extend::Sxtx => size,
        _ => Size::W,
    };
    R(width, rm).fmt(f)?;
    let own = match size {
        Size::W => Extend::Uxtw,
        Size::X => Extend::Uxtx,
    };
    let plain = beside_sp && extend == own;
    match (plain, shift.value()) {
        (true, 0) => Ok(()),
        (true, n) => write!(f, ", lsl #{n}"),
        (false, 0) => write!(f, ", {}", extend.name()),
        (false, n) => write!(f, ", {} #{n}", extend.name()),
    }
}

/// Whether MOVZ writes `value` at some shift.
fn movz_holds(size: Size, value: u64) -> bool {
    (0..size.bits())
        .step_by(16)
        .any(|shift| value & !(0xffff << shift) == 0)
}

/// Whether MOVZ or MOVN writes the value, so that `mov` means those.
fn move_wide_holds(imm: LogicalImm) -> bool {
    let (size, value) = (imm.size(), imm.value());
    let inverse = match size {
        Size::W => !(value as u32) as u64,
        Size::X => !value,
    };
    movz_holds(size, value) || movz_holds(size, inverse)
}

fn move_wide(f: &mut Formatter<'_>, op: MoveWideOp, rd: Gpr, imm: Imm16) -> Result {
    let (size, bits, shift) = (imm.size(), imm.unshifted(), imm.shift());
    let value = (bits as u64) << shift;
    let inverse = match size {
        Size::W => !(value as u32) as u64,
        Size::X => !value,
    };
    let unambiguous = bits != 0 || shift == 0;
    let written = match op {
        MoveWideOp::Movz if unambiguous => Some(value),
        MoveWideOp::Movn if unambiguous && !movz_holds(size, inverse) => Some(inverse),
        _ => None,
    };
    match written {
        Some(value) => write!(f, "mov {}, #{}", R(size, rd), signed(size, value)),
        None if shift == 0 => write!(f, "{} {}, #{bits}", op.name(), R(size, rd)),
        None => write!(f, "{} {}, #{bits}, lsl #{shift}", op.name(), R(size, rd)),
    }
}

fn bitfield(f: &mut Formatter<'_>, op: BitfieldOp, rd: Gpr, rn: Gpr, range: BitRange) -> Result {
    let (size, r, s) = (range.size(), range.immr(), range.imms());
    let last = size.bits() - 1;
    let is_signed = matches!(op, BitfieldOp::Sbfm);
    let extension = match (op, r, s, size) {
        (BitfieldOp::Sbfm, 0, 7, _) => Some("sxtb"),
        (BitfieldOp::Sbfm, 0, 15, _) => Some("sxth"),
        (BitfieldOp::Sbfm, 0, 31, Size::X) => Some("sxtw"),
        (BitfieldOp::Ubfm, 0, 7, Size::W) => Some("uxtb"),
        (BitfieldOp::Ubfm, 0, 15, Size::W) => Some("uxth"),
        _ => None,
    };
    let (rd, from) = (R(size, rd), R(size, rn));
    if let Some(name) = extension {
        return write!(f, "{name} {rd}, {}", R(Size::W, rn));
    }
    // Name, first number, second number of the alias.
    let (name, first, second) = match op {
        BitfieldOp::Bfm if s < r => ("bfi", size.bits() - r, Some(s + 1)),
        BitfieldOp::Bfm => ("bfxil", r, Some(s - r + 1)),
        _ if s == last => (if is_signed { "asr" } else { "lsr" }, r, None),
        BitfieldOp::Ubfm if s + 1 == r => ("lsl", last - s, None),
        _ if s < r => (
            if is_signed { "sbfiz" } else { "ubfiz" },
            size.bits() - r,
            Some(s + 1),
        ),
        _ => (if is_signed { "sbfx" } else { "ubfx" }, r, Some(s - r + 1)),
    };
    write!(f, "{name} {rd}, {from}, #{first}")?;
    second.map_or(Ok(()), |n| write!(f, ", #{n}"))
}

fn select(
    f: &mut Formatter<'_>,
    op: SelectOp,
    size: Size,
    rd: Gpr,
    rn: Gpr,
    rm: Gpr,
    cond: Cond,
) -> Result {
    let always = matches!(cond, Cond::Al | Cond::Nv);
    let (alias, sources) = match op {
        _ if always || rn != rm => ("", 2),
        SelectOp::Csinc if rn == XZR => ("cset", 0),
        SelectOp::Csinv if rn == XZR => ("csetm", 0),
        SelectOp::Csinc => ("cinc", 1),
        SelectOp::Csinv => ("cinv", 1),
        SelectOp::Csneg => ("cneg", 1),
        SelectOp::Csel => ("", 2),
    };
    match sources {
        0 => write!(f, "{alias} {}, {}", R(size, rd), cond.inverted().name()),
        1 => write!(
            f,
            "{alias} {}, {}, {}",
            R(size, rd),
            R(size, rn),
            cond.inverted().name()
        ),
        _ => {
            three(f, op.name(), size, rd, rn, rm)?;
            write!(f, ", {}", cond.name())
        }
    }
}
