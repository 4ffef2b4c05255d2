// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instructions: one variant a class of encodings (Arm ARM C4.1), typed operands.
//!
//! Where the range of an immediate depends on the width of the operation, the immediate knows the
//! width and there is no `size` beside it. Operand names are the manual's: `rd` destination, `rn` and
//! `rm` sources, `rt` the register transferred, `rs` status or compared register.

use crate::imm::*;
use crate::reg::{Gpr, RegOrSp, Size};

/// An enum whose values are bits of the instruction word, with the mnemonic's text.
macro_rules! coded {
    ($($(#[$doc:meta])* $name:ident { $($v:ident = $code:literal $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $(#[doc = concat!("`", $text, "`")] $v = $code,)* }

        impl $name {
            /// Every value, in the order of the encoding tables.
            pub const ALL: &[Self] = &[$(Self::$v,)*];

            /// As the assembler spells it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$v => $text,)* }
            }

            /// The value with this code.
            pub fn from_code(code: u32) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| *v as u32 == code)
            }
        }
    )*};
}

coded! {
    /// A condition on NZCV (Arm ARM C1.2.4).
    Cond {
        Eq = 0 "eq", Ne = 1 "ne", Hs = 2 "hs", Lo = 3 "lo", Mi = 4 "mi", Pl = 5 "pl", Vs = 6 "vs",
        Vc = 7 "vc", Hi = 8 "hi", Ls = 9 "ls", Ge = 10 "ge", Lt = 11 "lt", Gt = 12 "gt", Le = 13 "le",
        Al = 14 "al", Nv = 15 "nv",
    }
    /// Branch to a register's value; the code is `opc`.
    BranchRegOp { Br = 0 "br", Blr = 1 "blr", Ret = 2 "ret", }
    /// Barriers and CLREX; the code is `op2`.
    BarrierOp { Clrex = 2 "clrex", Dsb = 4 "dsb", Dmb = 5 "dmb", Isb = 6 "isb", }
    /// Exception generating instructions; the code is `opc` and `LL` in place.
    ExceptionOp {
        Svc = 0x1 "svc", Hvc = 0x2 "hvc", Smc = 0x3 "smc", Brk = 0x20_0000 "brk", Hlt = 0x40_0000 "hlt",
    }
    /// Move wide; the code is `opc`.
    MoveWideOp { Movn = 0 "movn", Movz = 2 "movz", Movk = 3 "movk", }
    /// Addition and subtraction; the code is the `op` bit.
    AddSub { Add = 0 "add", Sub = 1 "sub", }
    /// Logical with an immediate, flags untouched; the code is `opc`.
    LogicalImmOp { And = 0 "and", Orr = 1 "orr", Eor = 2 "eor", }
    /// Logical with a register; the code is `opc` and `N`.
    LogicalOp {
        And = 0 "and", Bic = 1 "bic", Orr = 2 "orr", Orn = 3 "orn", Eor = 4 "eor", Eon = 5 "eon",
        Ands = 6 "ands", Bics = 7 "bics",
    }
    /// Bitfield moves; the code is `opc`.
    BitfieldOp { Sbfm = 0 "sbfm", Bfm = 1 "bfm", Ubfm = 2 "ubfm", }
    /// Multiply and accumulate, all operands of one width; the code is `o0`.
    MulAddOp { Madd = 0 "madd", Msub = 1 "msub", }
    /// 32 by 32 to 64 bit multiply and accumulate; the code is `op31` and `o0`.
    MulAddLongOp { Smaddl = 2 "smaddl", Smsubl = 3 "smsubl", Umaddl = 10 "umaddl", Umsubl = 11 "umsubl", }
    /// Upper half of a 64 by 64 bit product; the code is `op31`.
    MulHighOp { Smulh = 2 "smulh", Umulh = 6 "umulh", }
    /// Two sources; the code is `opcode`.
    TwoSourceOp {
        Udiv = 2 "udiv", Sdiv = 3 "sdiv", Lslv = 8 "lsl", Lsrv = 9 "lsr", Asrv = 10 "asr", Rorv = 11 "ror",
    }
    /// One source; the code is `sf` and `opcode` in place, as not all exist in both widths.
    OneSourceOp {
        RbitW = 0x0 "rbit", Rev16W = 0x400 "rev16", RevW = 0x800 "rev", ClzW = 0x1000 "clz",
        ClsW = 0x1400 "cls", RbitX = 0x8000_0000 "rbit", Rev16X = 0x8000_0400 "rev16",
        Rev32X = 0x8000_0800 "rev32", RevX = 0x8000_0c00 "rev", ClzX = 0x8000_1000 "clz",
        ClsX = 0x8000_1400 "cls",
    }
    /// Addition and subtraction with the carry; the code is `op` and `S`.
    CarryOp { Adc = 0 "adc", Adcs = 1 "adcs", Sbc = 2 "sbc", Sbcs = 3 "sbcs", }
    /// Conditional select; the code is `op` and `o2`.
    SelectOp { Csel = 0 "csel", Csinc = 1 "csinc", Csinv = 2 "csinv", Csneg = 3 "csneg", }
    /// Conditional compare; the code is `op`.
    CompareOp { Ccmn = 0 "ccmn", Ccmp = 1 "ccmp", }
    /// How a register operand is extended; the code is `option` (Arm ARM C1.2.6).
    Extend {
        Uxtb = 0 "uxtb", Uxth = 1 "uxth", Uxtw = 2 "uxtw", Uxtx = 3 "uxtx", Sxtb = 4 "sxtb", Sxth = 5 "sxth",
        Sxtw = 6 "sxtw", Sxtx = 7 "sxtx",
    }
    /// How an index register of a load or store is extended; the code is `option`.
    IndexExtend { Uxtw = 2 "uxtw", Lsl = 3 "lsl", Sxtw = 6 "sxtw", Sxtx = 7 "sxtx", }
    /// A single load or store: access size and what is made of it; the code is `size` and `opc`.
    Access {
        Strb = 0 "strb", Ldrb = 1 "ldrb", LdrsbX = 2 "ldrsb", LdrsbW = 3 "ldrsb", Strh = 4 "strh",
        Ldrh = 5 "ldrh", LdrshX = 6 "ldrsh", LdrshW = 7 "ldrsh", StrW = 8 "str", LdrW = 9 "ldr",
        Ldrsw = 10 "ldrsw", StrX = 12 "str", LdrX = 13 "ldr",
    }
    /// Addressing by a nine-bit byte offset; the code is bits 11 and 10.
    Mode9 { Unscaled = 0 "unscaled", Post = 1 "post-indexed", Pre = 3 "pre-indexed", }
    /// A load from a PC-relative literal; the code is `opc`.
    LiteralOp { LdrW = 0 "ldr", LdrX = 1 "ldr", Ldrsw = 2 "ldrsw", }
    /// A pair; the code is `opc` and `L`.
    PairOp { StpW = 0 "stp", LdpW = 1 "ldp", Ldpsw = 3 "ldpsw", StpX = 4 "stp", LdpX = 5 "ldp", }
    /// Addressing of a pair; the code is bits 24 and 23.
    PairMode { Post = 1 "post-indexed", Offset = 2 "offset", Pre = 3 "pre-indexed", }
    /// Load-exclusive, load-acquire and store-release; the code is `o2`, `L` and `o0`.
    OrderedOp { Ldxr = 2 "ldxr", Ldaxr = 3 "ldaxr", Stlr = 5 "stlr", Ldar = 7 "ldar", }
    /// Store-exclusive; the code is `o0`.
    StoreExclusiveOp { Stxr = 0 "stxr", Stlxr = 1 "stlxr", }
    /// Atomic memory operations (FEAT_LSE); the code is `o3` and `opc`.
    AtomicOp {
        Ldadd = 0 "ldadd", Ldclr = 1 "ldclr", Ldeor = 2 "ldeor", Ldset = 3 "ldset", Ldsmax = 4 "ldsmax",
        Ldsmin = 5 "ldsmin", Ldumax = 6 "ldumax", Ldumin = 7 "ldumin", Swp = 8 "swp",
    }
    /// Size of an atomic or exclusive access; the code is `size`.
    MemSize { B = 0 "b", H = 1 "h", W = 2 "w", X = 3 "x", }
    /// A field of PSTATE that MSR sets to an immediate; the code is `op1` and `op2`.
    PstateField { Uao = 0x3 "UAO", Pan = 0x4 "PAN", SpSel = 0x5 "SPSel", DaifSet = 0x1e "DAIFSet", DaifClr = 0x1f "DAIFClr", }
}

// Indexing these tables by four and three bits cannot fail.
const _: () = assert!(Cond::ALL.len() == 16 && Extend::ALL.len() == 8);

impl Cond {
    /// The opposite condition; of `al` it is `nv`, which also always holds.
    pub const fn inverted(self) -> Self {
        Self::from_low_bits(self as u32 ^ 1)
    }

    pub(crate) const fn from_low_bits(bits: u32) -> Self {
        Self::ALL[(bits & 15) as usize]
    }
}

impl self::Extend {
    pub(crate) const fn from_low_bits(bits: u32) -> Self {
        Self::ALL[(bits & 7) as usize]
    }
}

impl Access {
    /// Bytes in memory: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u32 {
        1 << (self as u32 >> 2)
    }

    /// Width of the register that is read or written.
    pub const fn register(self) -> Size {
        match self {
            Self::StrX | Self::LdrX | Self::LdrsbX | Self::LdrshX | Self::Ldrsw => Size::X,
            _ => Size::W,
        }
    }

    /// Whether it is a load.
    pub const fn is_load(self) -> bool {
        self as u32 & 3 != 0
    }
}

impl PairOp {
    /// Bytes of one of the two elements in memory: 4 or 8.
    pub const fn bytes(self) -> u32 {
        if self as u32 >= 4 { 8 } else { 4 }
    }

    /// Width of the registers.
    pub const fn register(self) -> Size {
        match self {
            Self::StpW | Self::LdpW => Size::W,
            _ => Size::X,
        }
    }
}

impl MemSize {
    /// Width of the register.
    pub const fn register(self) -> Size {
        match self {
            Self::X => Size::X,
            _ => Size::W,
        }
    }
}

/// A register operand's shift: kind and distance, with the width of the operation.
///
/// `Ror` has no encoding in additions, so those take an [`AddShift`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shift {
    /// Direction.
    pub kind: ShiftKind,
    /// Distance and width.
    pub amount: Amount,
}

impl Shift {
    /// No shift, an operation of this width.
    pub const fn none(size: Size) -> Self {
        Self {
            kind: ShiftKind::Lsl,
            amount: Amount::zero(size),
        }
    }
}

/// A [`Shift`] that is not a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddShift(Shift);

impl AddShift {
    /// Any shift but `ror`.
    pub const fn new(shift: Shift) -> Result<Self, ImmError> {
        match shift.kind {
            ShiftKind::Ror => Err(ImmError {
                kind: "AddShift (ror)",
                value: shift.amount.value() as i128,
                holds: "lsl, lsr and asr",
            }),
            _ => Ok(Self(shift)),
        }
    }

    /// No shift, an operation of this width.
    pub const fn none(size: Size) -> Self {
        Self(Shift::none(size))
    }

    /// The shift.
    pub const fn get(self) -> Shift {
        self.0
    }
}

/// A system register: `o0:op1:CRn:CRm:op2`, fifteen bits (Arm ARM C6.2, MRS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SysReg(u16);

impl SysReg {
    /// The register of these fields; only their low bits count: op0 is 2 or 3.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self(
            (op0 as u16 & 1) << 14
                | (op1 as u16 & 7) << 11
                | (crn as u16 & 15) << 7
                | (crm as u16 & 15) << 3
                | (op2 as u16 & 7),
        )
    }

    /// The fifteen bits.
    pub const fn id(self) -> u16 {
        self.0
    }

    /// `(op0, op1, CRn, CRm, op2)`.
    pub const fn fields(self) -> (u16, u16, u16, u16, u16) {
        let i = self.0;
        (2 + (i >> 14), i >> 11 & 7, i >> 7 & 15, i >> 3 & 15, i & 7)
    }

    pub(crate) const fn at(word: u32) -> Self {
        Self((word >> 5 & 0x7fff) as u16)
    }

    /// Its name, where this crate knows it.
    pub fn name(self) -> Option<&'static str> {
        let found = Self::NAMES.iter().find(|(reg, _)| *reg == self);
        found.map(|(_, name)| *name)
    }
}

macro_rules! sys_regs {
    ($($name:ident $text:literal $op0:literal $op1:literal $crn:literal $crm:literal $op2:literal;)*) => {
        impl SysReg {
            /// The registers that are known by name.
            pub const NAMES: &[(SysReg, &str)] = &[$((SysReg::$name, $text),)*];
            $(
                #[doc = concat!("`", $text, "`")]
                pub const $name: SysReg = SysReg::new($op0, $op1, $crn, $crm, $op2);
            )*
        }
    };
}
// Arm ARM D19 (system register encoding).
sys_regs! {
    MDSCR_EL1 "MDSCR_EL1" 2 0 0 2 2;
    OSLAR_EL1 "OSLAR_EL1" 2 0 1 0 4;
    MIDR_EL1 "MIDR_EL1" 3 0 0 0 0;
    MPIDR_EL1 "MPIDR_EL1" 3 0 0 0 5;
    ID_AA64PFR0_EL1 "ID_AA64PFR0_EL1" 3 0 0 4 0;
    ID_AA64DFR0_EL1 "ID_AA64DFR0_EL1" 3 0 0 5 0;
    ID_AA64ISAR0_EL1 "ID_AA64ISAR0_EL1" 3 0 0 6 0;
    ID_AA64MMFR0_EL1 "ID_AA64MMFR0_EL1" 3 0 0 7 0;
    SCTLR_EL1 "SCTLR_EL1" 3 0 1 0 0;
    CPACR_EL1 "CPACR_EL1" 3 0 1 0 2;
    TTBR0_EL1 "TTBR0_EL1" 3 0 2 0 0;
    TTBR1_EL1 "TTBR1_EL1" 3 0 2 0 1;
    TCR_EL1 "TCR_EL1" 3 0 2 0 2;
    SPSR_EL1 "SPSR_EL1" 3 0 4 0 0;
    ELR_EL1 "ELR_EL1" 3 0 4 0 1;
    SP_EL0 "SP_EL0" 3 0 4 1 0;
    SPSEL "SPSel" 3 0 4 2 0;
    CURRENTEL "CurrentEL" 3 0 4 2 2;
    ICC_PMR_EL1 "ICC_PMR_EL1" 3 0 4 6 0;
    ESR_EL1 "ESR_EL1" 3 0 5 2 0;
    FAR_EL1 "FAR_EL1" 3 0 6 0 0;
    PAR_EL1 "PAR_EL1" 3 0 7 4 0;
    PMINTENSET_EL1 "PMINTENSET_EL1" 3 0 9 14 1;
    MAIR_EL1 "MAIR_EL1" 3 0 10 2 0;
    VBAR_EL1 "VBAR_EL1" 3 0 12 0 0;
    ICC_IAR0_EL1 "ICC_IAR0_EL1" 3 0 12 8 0;
    ICC_RPR_EL1 "ICC_RPR_EL1" 3 0 12 11 3;
    ICC_SGI1R_EL1 "ICC_SGI1R_EL1" 3 0 12 11 5;
    ICC_IAR1_EL1 "ICC_IAR1_EL1" 3 0 12 12 0;
    ICC_EOIR1_EL1 "ICC_EOIR1_EL1" 3 0 12 12 1;
    ICC_BPR1_EL1 "ICC_BPR1_EL1" 3 0 12 12 3;
    ICC_CTLR_EL1 "ICC_CTLR_EL1" 3 0 12 12 4;
    ICC_SRE_EL1 "ICC_SRE_EL1" 3 0 12 12 5;
    ICC_IGRPEN1_EL1 "ICC_IGRPEN1_EL1" 3 0 12 12 7;
    CONTEXTIDR_EL1 "CONTEXTIDR_EL1" 3 0 13 0 1;
    TPIDR_EL1 "TPIDR_EL1" 3 0 13 0 4;
    CNTKCTL_EL1 "CNTKCTL_EL1" 3 0 14 1 0;
    CTR_EL0 "CTR_EL0" 3 3 0 0 1;
    DCZID_EL0 "DCZID_EL0" 3 3 0 0 7;
    NZCV "NZCV" 3 3 4 2 0;
    DAIF "DAIF" 3 3 4 2 1;
    FPCR "FPCR" 3 3 4 4 0;
    FPSR "FPSR" 3 3 4 4 1;
    PMCR_EL0 "PMCR_EL0" 3 3 9 12 0;
    PMCNTENSET_EL0 "PMCNTENSET_EL0" 3 3 9 12 1;
    PMCNTENCLR_EL0 "PMCNTENCLR_EL0" 3 3 9 12 2;
    PMCCNTR_EL0 "PMCCNTR_EL0" 3 3 9 13 0;
    PMUSERENR_EL0 "PMUSERENR_EL0" 3 3 9 14 0;
    TPIDR_EL0 "TPIDR_EL0" 3 3 13 0 2;
    TPIDRRO_EL0 "TPIDRRO_EL0" 3 3 13 0 3;
    CNTFRQ_EL0 "CNTFRQ_EL0" 3 3 14 0 0;
    CNTPCT_EL0 "CNTPCT_EL0" 3 3 14 0 1;
    CNTVCT_EL0 "CNTVCT_EL0" 3 3 14 0 2;
    CNTP_TVAL_EL0 "CNTP_TVAL_EL0" 3 3 14 2 0;
    CNTP_CTL_EL0 "CNTP_CTL_EL0" 3 3 14 2 1;
    CNTP_CVAL_EL0 "CNTP_CVAL_EL0" 3 3 14 2 2;
    CNTV_TVAL_EL0 "CNTV_TVAL_EL0" 3 3 14 3 0;
    CNTV_CTL_EL0 "CNTV_CTL_EL0" 3 3 14 3 1;
    CNTV_CVAL_EL0 "CNTV_CVAL_EL0" 3 3 14 3 2;
    PMEVCNTR0_EL0 "PMEVCNTR0_EL0" 3 3 14 8 0;
    PMEVTYPER0_EL0 "PMEVTYPER0_EL0" 3 3 14 12 0;
    PMCCFILTR_EL0 "PMCCFILTR_EL0" 3 3 14 15 7;
    HCR_EL2 "HCR_EL2" 3 4 1 1 0;
    MDCR_EL2 "MDCR_EL2" 3 4 1 1 1;
    CPTR_EL2 "CPTR_EL2" 3 4 1 1 2;
    SPSR_EL2 "SPSR_EL2" 3 4 4 0 0;
    ELR_EL2 "ELR_EL2" 3 4 4 0 1;
    SP_EL1 "SP_EL1" 3 4 4 1 0;
    ICC_SRE_EL2 "ICC_SRE_EL2" 3 4 12 9 5;
    CNTVOFF_EL2 "CNTVOFF_EL2" 3 4 14 0 3;
    CNTHCTL_EL2 "CNTHCTL_EL2" 3 4 14 1 0;
}

/// An A64 base instruction. Every value encodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "operand names are the Arm ARM's; the module's text explains them"
)]
pub enum Inst {
    /// Permanently undefined; the zero word is `udf #0`.
    Udf { imm: u16 },
    /// B, or BL with `link`.
    Branch { link: bool, offset: Imm26 },
    /// B.cond.
    BranchCond { cond: Cond, offset: Imm19 },
    /// CBZ, or CBNZ with `nonzero`.
    CompareBranch {
        nonzero: bool,
        size: Size,
        rt: Gpr,
        offset: Imm19,
    },
    /// TBZ, or TBNZ with `nonzero`.
    TestBranch {
        nonzero: bool,
        bit: BitNumber,
        rt: Gpr,
        offset: Imm14,
    },
    /// BR, BLR, RET.
    BranchReg { op: BranchRegOp, rn: Gpr },
    /// Return from an exception.
    Eret,
    /// NOP, YIELD, WFE, WFI, SEV, BTI and the other hints, by number.
    Hint { number: UImm7 },
    /// DSB, DMB, ISB, CLREX; `option` is CRm.
    Barrier { op: BarrierOp, option: UImm4 },
    /// SVC, HVC, SMC, BRK, HLT.
    Exception { op: ExceptionOp, imm: u16 },
    /// Read a system register.
    Mrs { rt: Gpr, reg: SysReg },
    /// Write a system register.
    Msr { reg: SysReg, rt: Gpr },
    /// Write a field of PSTATE.
    MsrImm { field: PstateField, imm: UImm4 },
    /// Cache, TLB and address translation maintenance.
    Sys {
        op1: UImm3,
        crn: UImm4,
        crm: UImm4,
        op2: UImm3,
        rt: Gpr,
    },
    /// MOVZ, MOVN, MOVK.
    MoveWide { op: MoveWideOp, rd: Gpr, imm: Imm16 },
    /// Address of a byte near by; `offset` in bytes.
    Adr { rd: Gpr, offset: Imm21 },
    /// Address of a page near by; `pages` of 4 KiB from the instruction's own.
    Adrp { rd: Gpr, pages: Imm21 },
    /// ADD, SUB (immediate).
    AddSubImm {
        op: AddSub,
        size: Size,
        rd: RegOrSp,
        rn: RegOrSp,
        imm: Imm12,
    },
    /// ADDS, SUBS (immediate).
    AddSubImmFlags {
        op: AddSub,
        size: Size,
        rd: Gpr,
        rn: RegOrSp,
        imm: Imm12,
    },
    /// ADD, SUB, and with `flags` ADDS, SUBS (shifted register).
    AddSubReg {
        op: AddSub,
        flags: bool,
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
        shift: AddShift,
    },
    /// ADD, SUB (extended register).
    AddSubExt {
        op: AddSub,
        size: Size,
        rd: RegOrSp,
        rn: RegOrSp,
        rm: Gpr,
        extend: Extend,
        shift: ExtendShift,
    },
    /// ADDS, SUBS (extended register).
    AddSubExtFlags {
        op: AddSub,
        size: Size,
        rd: Gpr,
        rn: RegOrSp,
        rm: Gpr,
        extend: Extend,
        shift: ExtendShift,
    },
    /// ADC, SBC and their flag-setting forms.
    Carry {
        op: CarryOp,
        size: Size,
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
    },
    /// AND, ORR, EOR (immediate).
    LogicalImm {
        op: LogicalImmOp,
        rd: RegOrSp,
        rn: Gpr,
        imm: LogicalImm,
    },
    /// ANDS (immediate).
    AndsImm { rd: Gpr, rn: Gpr, imm: LogicalImm },
    /// AND, BIC, ORR, ORN, EOR, EON, ANDS, BICS (shifted register).
    LogicalReg {
        op: LogicalOp,
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
        shift: Shift,
    },
    /// UBFM, SBFM, BFM: shifts by a constant, extensions, bit fields.
    Bitfield {
        op: BitfieldOp,
        rd: Gpr,
        rn: Gpr,
        range: BitRange,
    },
    /// Extract from a pair of registers, from bit `lsb` on.
    Extract {
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
        lsb: Amount,
    },
    /// MADD, MSUB.
    MulAdd {
        op: MulAddOp,
        size: Size,
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
        ra: Gpr,
    },
    /// SMADDL, SMSUBL, UMADDL, UMSUBL.
    MulAddLong {
        op: MulAddLongOp,
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
        ra: Gpr,
    },
    /// SMULH, UMULH.
    MulHigh {
        op: MulHighOp,
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
    },
    /// UDIV, SDIV, LSLV, LSRV, ASRV, RORV.
    TwoSource {
        op: TwoSourceOp,
        size: Size,
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
    },
    /// RBIT, REV16, REV32, REV, CLZ, CLS.
    OneSource { op: OneSourceOp, rd: Gpr, rn: Gpr },
    /// CSEL, CSINC, CSINV, CSNEG.
    Select {
        op: SelectOp,
        size: Size,
        rd: Gpr,
        rn: Gpr,
        rm: Gpr,
        cond: Cond,
    },
    /// CCMP, CCMN (register); `nzcv` are the flags if `cond` does not hold.
    CompareReg {
        op: CompareOp,
        size: Size,
        rn: Gpr,
        rm: Gpr,
        nzcv: UImm4,
        cond: Cond,
    },
    /// CCMP, CCMN (immediate).
    CompareImm {
        op: CompareOp,
        size: Size,
        rn: Gpr,
        imm: UImm5,
        nzcv: UImm4,
        cond: Cond,
    },
    /// Load or store at a scaled unsigned offset.
    LoadStore {
        op: Access,
        rt: Gpr,
        rn: RegOrSp,
        offset: UImm12,
    },
    /// Load or store at an unscaled offset, or with write-back before or after.
    LoadStore9 {
        op: Access,
        mode: Mode9,
        rt: Gpr,
        rn: RegOrSp,
        offset: SImm9,
    },
    /// Load or store at a register's offset, shifted by the access size if `scaled`.
    LoadStoreReg {
        op: Access,
        rt: Gpr,
        rn: RegOrSp,
        rm: Gpr,
        extend: IndexExtend,
        scaled: bool,
    },
    /// Load from a literal.
    LoadLiteral {
        op: LiteralOp,
        rt: Gpr,
        offset: Imm19,
    },
    /// Prefetch from a literal.
    PrefetchLiteral { op: UImm5, offset: Imm19 },
    /// LDP, STP, LDPSW.
    Pair {
        op: PairOp,
        mode: PairMode,
        rt: Gpr,
        rt2: Gpr,
        rn: RegOrSp,
        offset: SImm7,
    },
    /// LDXR, LDAXR, LDAR, STLR.
    Ordered {
        op: OrderedOp,
        size: MemSize,
        rt: Gpr,
        rn: RegOrSp,
    },
    /// STXR, STLXR; `rs` gets 0 when it stored, 1 when not.
    StoreExclusive {
        op: StoreExclusiveOp,
        size: MemSize,
        rs: Gpr,
        rt: Gpr,
        rn: RegOrSp,
    },
    /// Read-modify-write: memory at `rn` by `rs`, the old value to `rt`.
    Atomic {
        op: AtomicOp,
        size: MemSize,
        acquire: bool,
        release: bool,
        rs: Gpr,
        rt: Gpr,
        rn: RegOrSp,
    },
    /// Compare and swap: if memory at `rn` equals `rs`, store `rt`; the old value to `rs`.
    Cas {
        size: MemSize,
        acquire: bool,
        release: bool,
        rs: Gpr,
        rt: Gpr,
        rn: RegOrSp,
    },
}

impl Inst {
    /// NOP.
    pub const NOP: Self = Self::Hint {
        number: UImm7::ZERO,
    };

    /// The PC-relative offset in bytes of B, BL, B.cond, CBZ, TBZ, ADR, LDR and PRFM literal.
    pub const fn offset(self) -> Option<i64> {
        Some(match self {
            Self::Branch { offset, .. } => offset.value(),
            Self::BranchCond { offset, .. }
            | Self::CompareBranch { offset, .. }
            | Self::LoadLiteral { offset, .. }
            | Self::PrefetchLiteral { offset, .. } => offset.value(),
            Self::TestBranch { offset, .. } => offset.value(),
            Self::Adr { offset, .. } => offset.value(),
            _ => return None,
        })
    }

    /// The same instruction with another PC-relative offset in bytes; others stay as they are.
    pub fn with_offset(mut self, bytes: i64) -> Result<Self, ImmError> {
        match &mut self {
            Self::Branch { offset, .. } => *offset = Imm26::new(bytes)?,
            Self::BranchCond { offset, .. }
            | Self::CompareBranch { offset, .. }
            | Self::LoadLiteral { offset, .. }
            | Self::PrefetchLiteral { offset, .. } => *offset = Imm19::new(bytes)?,
            Self::TestBranch { offset, .. } => *offset = Imm14::new(bytes)?,
            Self::Adr { offset, .. } => *offset = Imm21::new(bytes)?,
            _ => {}
        }
        Ok(self)
    }

    /// Whether executing it may go elsewhere than to the next instruction, other than by exception.
    pub const fn is_branch(self) -> bool {
        matches!(
            self,
            Self::Branch { .. }
                | Self::BranchCond { .. }
                | Self::CompareBranch { .. }
                | Self::TestBranch { .. }
                | Self::BranchReg { .. }
                | Self::Eret
        )
    }
}
