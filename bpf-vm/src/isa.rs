// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instruction set of RFC 9669: slots of 8 bytes, and the operations they decode to.
//!
//! [`Insn`] is what an object file holds; [`Op`] is what it means. Validator, disassembler, assembler, interpreter and
//! JIT all go through [`Op`], so each encoding rule stands once, in [`Op::decode`] and [`Op::encode`].
#![forbid(unsafe_code)]

use core::fmt;

/// One basic 64-bit instruction slot (RFC 9669, section 3); `lddw` takes two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Insn {
    /// Operation: class in bits 0..=2, the rest by class (section 3.1).
    pub opcode: u8,
    /// Destination register number, 0..=15 as encoded; 0..=10 are valid.
    pub dst: u8,
    /// Source register number, or a kind of immediate (`lddw`, `call`).
    pub src: u8,
    /// Signed offset: bytes for memory, instruction slots for jumps.
    pub off: i16,
    /// Signed immediate.
    pub imm: i32,
}

impl Insn {
    /// Bytes of one instruction slot.
    pub const BYTES: usize = 8;

    /// Decodes a slot from its little-endian bytes. Total: every value of the bytes is a slot.
    pub const fn from_bytes(b: [u8; Self::BYTES]) -> Self {
        Self {
            opcode: b[0],
            dst: b[1] & 15,
            src: b[1] >> 4,
            off: i16::from_le_bytes([b[2], b[3]]),
            imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// Encodes the slot as little-endian bytes. The register numbers' low four bits are used.
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        let ([o0, o1], [i0, i1, i2, i3]) = (self.off.to_le_bytes(), self.imm.to_le_bytes());
        let regs = self.dst & 15 | self.src << 4;
        [self.opcode, regs, o0, o1, i0, i1, i2, i3]
    }
}

/// A register that exists: r0 to r10 (RFC 9669, section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(u8);

impl Reg {
    /// How many registers there are.
    pub const COUNT: usize = 11;
    /// Return value of calls and of the program.
    pub const R0: Self = Self(0);
    /// First argument; at entry the context.
    pub const R1: Self = Self(1);
    /// Second argument.
    pub const R2: Self = Self(2);
    /// Frame pointer: one past the highest byte of the program's stack, read only.
    pub const FP: Self = Self(10);

    /// The register of that number, if there is one.
    pub const fn new(number: u8) -> Option<Self> {
        if number as usize <= 10 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// All registers, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=10).map(Self)
    }

    /// The registers that carry a call's arguments, r1 to r5.
    pub fn arguments() -> impl Iterator<Item = Self> {
        (1..=5).map(Self)
    }

    /// The number, 0..=10.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The number as an index into a table of [`Reg::COUNT`] entries or more.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Width of an arithmetic operation or comparison; 32-bit results are zero extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// Low 32 bits (classes ALU and JMP32).
    W32,
    /// All 64 bits (classes ALU64 and JMP).
    W64,
}

/// Size of a memory access (RFC 9669, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Size {
    /// One byte.
    B,
    /// Two bytes.
    H,
    /// Four bytes.
    W,
    /// Eight bytes.
    Dw,
}

impl Size {
    /// All sizes, smallest first.
    pub const ALL: [Self; 4] = [Self::B, Self::H, Self::W, Self::Dw];

    /// log2 of the bytes.
    pub const fn log2(self) -> u32 {
        self as u32
    }

    /// Bytes of the access.
    pub const fn bytes(self) -> u32 {
        1 << self.log2()
    }

    /// Bits of the access.
    pub const fn bits(self) -> u32 {
        8 << self.log2()
    }

    /// The size field of an opcode, bits 3..=4.
    const fn code(self) -> u8 {
        match self {
            Self::W => 0x00,
            Self::H => 0x08,
            Self::B => 0x10,
            Self::Dw => 0x18,
        }
    }

    const fn from_code(opcode: u8) -> Self {
        match opcode & 0x18 {
            0x00 => Self::W,
            0x08 => Self::H,
            0x10 => Self::B,
            _ => Self::Dw,
        }
    }
}

/// Second operand: a register or a sign-extended 32-bit immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// A register.
    Reg(Reg),
    /// An immediate, sign extended to the operation's width.
    Imm(i32),
}

/// Two-operand arithmetic, `dst = dst OP src`; moves ignore the old `dst` (RFC 9669, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AluOp {
    /// Addition, wrapping.
    Add,
    /// Subtraction, wrapping.
    Sub,
    /// Multiplication, wrapping.
    Mul,
    /// Unsigned division; by zero gives 0.
    Div,
    /// Signed division; by zero gives 0, the most negative value by -1 gives itself.
    Sdiv,
    /// Bitwise or.
    Or,
    /// Bitwise and.
    And,
    /// Shift left, the amount modulo the width.
    Lsh,
    /// Logical shift right, the amount modulo the width.
    Rsh,
    /// Unsigned remainder; by zero leaves `dst` (its low half, zero extended, in 32 bits).
    Mod,
    /// Signed remainder, sign of the dividend; by zero leaves `dst`.
    Smod,
    /// Bitwise exclusive or.
    Xor,
    /// Move.
    Mov,
    /// Move, sign extended from 8 bits.
    Movsx8,
    /// Move, sign extended from 16 bits.
    Movsx16,
    /// Move, sign extended from 32 bits (64-bit width only).
    Movsx32,
    /// Arithmetic shift right, the amount modulo the width.
    Arsh,
}

/// Operation, code (bits 4..=7), offset field that selects the variant.
const ALU_OPS: [(AluOp, u8, i16); 17] = [
    (AluOp::Add, 0x00, 0),
    (AluOp::Sub, 0x10, 0),
    (AluOp::Mul, 0x20, 0),
    (AluOp::Div, 0x30, 0),
    (AluOp::Sdiv, 0x30, 1),
    (AluOp::Or, 0x40, 0),
    (AluOp::And, 0x50, 0),
    (AluOp::Lsh, 0x60, 0),
    (AluOp::Rsh, 0x70, 0),
    (AluOp::Mod, 0x90, 0),
    (AluOp::Smod, 0x90, 1),
    (AluOp::Xor, 0xa0, 0),
    (AluOp::Mov, 0xb0, 0),
    (AluOp::Movsx8, 0xb0, 8),
    (AluOp::Movsx16, 0xb0, 16),
    (AluOp::Movsx32, 0xb0, 32),
    (AluOp::Arsh, 0xc0, 0),
];

impl AluOp {
    /// All operations.
    pub fn all() -> impl Iterator<Item = Self> {
        ALU_OPS.into_iter().map(|(op, ..)| op)
    }

    /// Whether the result does not depend on the old destination.
    pub const fn is_move(self) -> bool {
        matches!(self, Self::Mov) || self.is_sign_extension()
    }

    /// Whether this is one of the sign-extending moves, which take a register only.
    pub const fn is_sign_extension(self) -> bool {
        matches!(self, Self::Movsx8 | Self::Movsx16 | Self::Movsx32)
    }
}

/// Condition of a branch (RFC 9669, section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cond {
    /// Equal.
    Eq,
    /// Unsigned greater.
    Gt,
    /// Unsigned greater or equal.
    Ge,
    /// Some bit of `dst & src` is set.
    Set,
    /// Not equal.
    Ne,
    /// Signed greater.
    Sgt,
    /// Signed greater or equal.
    Sge,
    /// Unsigned less.
    Lt,
    /// Unsigned less or equal.
    Le,
    /// Signed less.
    Slt,
    /// Signed less or equal.
    Sle,
}

/// Condition, code (bits 4..=7).
const CONDS: [(Cond, u8); 11] = [
    (Cond::Eq, 0x10),
    (Cond::Gt, 0x20),
    (Cond::Ge, 0x30),
    (Cond::Set, 0x40),
    (Cond::Ne, 0x50),
    (Cond::Sgt, 0x60),
    (Cond::Sge, 0x70),
    (Cond::Lt, 0xa0),
    (Cond::Le, 0xb0),
    (Cond::Slt, 0xc0),
    (Cond::Sle, 0xd0),
];

impl Cond {
    /// All conditions.
    pub fn all() -> impl Iterator<Item = Self> {
        CONDS.into_iter().map(|(cond, _)| cond)
    }
}

/// Byte order conversion (RFC 9669, section 4.2). Programs are little endian here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swap {
    /// To little endian: truncates.
    Le,
    /// To big endian: swaps and truncates.
    Be,
    /// Unconditional swap.
    Bswap,
}

/// Read-modify-write operation (RFC 9669, section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtomicOp {
    /// `*p += src`.
    Add,
    /// `*p |= src`.
    Or,
    /// `*p &= src`.
    And,
    /// `*p ^= src`.
    Xor,
    /// `src = fetch and (*p += src)`.
    FetchAdd,
    /// `src = fetch and (*p |= src)`.
    FetchOr,
    /// `src = fetch and (*p &= src)`.
    FetchAnd,
    /// `src = fetch and (*p ^= src)`.
    FetchXor,
    /// Exchange `*p` and `src`.
    Xchg,
    /// If `*p == r0` then `*p = src`; r0 becomes what was read, zero extended.
    Cmpxchg,
}

/// Operation, immediate.
const ATOMIC_OPS: [(AtomicOp, i32); 10] = [
    (AtomicOp::Add, 0x00),
    (AtomicOp::Or, 0x40),
    (AtomicOp::And, 0x50),
    (AtomicOp::Xor, 0xa0),
    (AtomicOp::FetchAdd, 0x01),
    (AtomicOp::FetchOr, 0x41),
    (AtomicOp::FetchAnd, 0x51),
    (AtomicOp::FetchXor, 0xa1),
    (AtomicOp::Xchg, 0xe1),
    (AtomicOp::Cmpxchg, 0xf1),
];
/// Immediates of the ordered accesses, which Linux adds to the atomic encodings (`linux/bpf.h`).
const LOAD_ACQUIRE: i32 = 0x100;
const STORE_RELEASE: i32 = 0x110;

impl AtomicOp {
    /// All operations.
    pub fn all() -> impl Iterator<Item = Self> {
        ATOMIC_OPS.into_iter().map(|(op, _)| op)
    }

    /// Whether the old memory value is handed to `src` (or r0 for [`Cmpxchg`](Self::Cmpxchg)).
    pub const fn fetches(self) -> bool {
        !matches!(self, Self::Add | Self::Or | Self::And | Self::Xor)
    }
}

/// A decoded instruction. `off` of jumps and calls counts slots from the following slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the fields are the instruction's own: dst, src, base, off, size, width"
)]
pub enum Op {
    /// `dst = dst OP src`.
    Alu {
        width: Width,
        op: AluOp,
        dst: Reg,
        src: Operand,
    },
    /// `dst = -dst`.
    Neg { width: Width, dst: Reg },
    /// `dst` in another byte order; `size` is H, W or Dw.
    Swap { kind: Swap, size: Size, dst: Reg },
    /// `dst` = 64-bit immediate. Two slots.
    LoadImm { dst: Reg, value: u64 },
    /// `dst` = address of the map with that index. Two slots.
    LoadMap { dst: Reg, map: u32 },
    /// `dst` = address of byte `offset` of element 0 of the map with that index. Two slots.
    LoadMapValue { dst: Reg, map: u32, offset: u32 },
    /// `dst` = what a callback is called by: the function that starts at an offset. Two slots.
    LoadFunction { dst: Reg, off: i32 },
    /// `dst` = address of the kernel variable with that index. Two slots.
    LoadVariable { dst: Reg, variable: u32 },
    /// `dst = *(size *)(base + off)`, zero or sign extended.
    Load {
        size: Size,
        signed: bool,
        dst: Reg,
        base: Reg,
        off: i16,
    },
    /// `*(size *)(base + off) = src`.
    Store {
        size: Size,
        base: Reg,
        off: i16,
        src: Operand,
    },
    /// Atomic read-modify-write, `size` W or Dw.
    Atomic {
        size: Size,
        op: AtomicOp,
        base: Reg,
        off: i16,
        src: Reg,
    },
    /// Load with acquire order.
    LoadAcquire {
        size: Size,
        dst: Reg,
        base: Reg,
        off: i16,
    },
    /// Store with release order.
    StoreRelease {
        size: Size,
        base: Reg,
        off: i16,
        src: Reg,
    },
    /// Unconditional jump; `long` is the form with a 32-bit offset.
    Goto { off: i32, long: bool },
    /// Jump if `dst COND src`.
    If {
        width: Width,
        cond: Cond,
        dst: Reg,
        src: Operand,
        off: i16,
    },
    /// Call of the helper with that number.
    Call { helper: u32 },
    /// Call of a function of the same program.
    CallLocal { off: i32 },
    /// Call of the kernel function (kfunc) with that index.
    CallKernel { function: u32 },
    /// Call by register (`callx`): of the helper whose number it holds, or of a function that `LoadFunction` named.
    CallReg { target: Reg },
    /// Return from the function; r0 is the result.
    Exit,
}

/// Why a slot is no instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// RFC 9669 defines no such operation.
    UnknownOpcode(u8),
    /// A field that the operation does not use is not zero.
    Reserved {
        /// The opcode.
        opcode: u8,
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: i32,
    },
    /// A register that does not exist.
    NoSuchRegister {
        /// The field's name.
        field: &'static str,
        /// The number found.
        number: u8,
    },
    /// A value that the operation does not define in a field that it does use.
    Undefined {
        /// The opcode.
        opcode: u8,
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: i32,
    },
    /// `lddw` without its second slot, or with a malformed one.
    Lddw,
    /// The obsolete packet access instructions.
    Packet(u8),
    /// Linux's jump by register.
    Gotox,
    /// Linux's jump that ends loops.
    MayGoto,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownOpcode(opcode) => {
                write!(
                    f,
                    "opcode {opcode:#04x} is not defined by RFC 9669; recompile the program for -mcpu=v3 or v4"
                )
            }
            Self::Reserved {
                opcode,
                field,
                value,
            } => {
                write!(
                    f,
                    "field `{field}` of opcode {opcode:#04x} is reserved and must be 0, but is {value}"
                )
            }
            Self::NoSuchRegister { field, number } => {
                write!(
                    f,
                    "`{field}` names register r{number}; the registers are r0 to r10"
                )
            }
            Self::Undefined {
                opcode,
                field,
                value,
            } => {
                write!(
                    f,
                    "field `{field}` = {value:#x} has no meaning for opcode {opcode:#04x}"
                )
            }
            Self::Lddw => f.write_str(
                "lddw takes two slots, and the second (opcode 0, registers 0) does not follow it",
            ),
            Self::Packet(opcode) => write!(
                f,
                "opcode {opcode:#04x} is a legacy packet access (BPF_ABS, BPF_IND), which has no packet to read here; use ordinary loads"
            ),
            Self::Gotox => write!(
                f,
                "opcode {GOTOX:#04x} is gotox, a jump by register, which RFC 9669 does not define; the loader replaces an \
                 object's if no field but dst is set; compile with -fno-jump-tables"
            ),
            Self::MayGoto => write!(
                f,
                "opcode {MAY_GOTO:#04x} is may_goto (can_loop, cond_break), which RFC 9669 does not define; leave the loop \
                 by a condition on a counter, which nobody has to prove here, or use bpf_loop"
            ),
        }
    }
}

impl core::error::Error for DecodeError {}

// Instruction classes, bits 0..=2 of the opcode (RFC 9669, section 3.1).
const LD: u8 = 0;
const LDX: u8 = 1;
const ST: u8 = 2;
const STX: u8 = 3;
const ALU: u8 = 4;
const JMP: u8 = 5;
const JMP32: u8 = 6;
const ALU64: u8 = 7;
/// Source bit of arithmetic and jump opcodes: register instead of immediate.
const X: u8 = 0x08;
const NEG: u8 = 0x80;
const END: u8 = 0xd0;
// Memory modes, bits 5..=7 (section 5).
const MEM: u8 = 0x60;
const MEMSX: u8 = 0x80;
const ATOMIC: u8 = 0xc0;
const LDDW: u8 = 0x18;
const CALL: u8 = 0x85;
const CALLX: u8 = 0x8d;
const EXIT: u8 = 0x95;
// Linux's, not of RFC 9669 (`BPF_JMP | BPF_JA | BPF_X` and `BPF_JMP | BPF_JCOND` in `linux/bpf.h`).
const GOTOX: u8 = 0x0d;
const MAY_GOTO: u8 = 0xe5;
// Kinds of lddw and call, in the src field (sections 5.4 and 4.3.1).
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;
const PSEUDO_VARIABLE: u8 = 3;
const PSEUDO_FUNC: u8 = 4;
// As map and map value, but by index into a list of maps instead of by file descriptor; here both are indices.
const PSEUDO_MAP_IDX: u8 = 5;
const PSEUDO_MAP_IDX_VALUE: u8 = 6;
const PSEUDO_CALL: u8 = 1;
const PSEUDO_KFUNC_CALL: u8 = 2;

fn register(field: &'static str, number: u8) -> Result<Reg, DecodeError> {
    Reg::new(number).ok_or(DecodeError::NoSuchRegister { field, number })
}

impl Insn {
    /// The register of a well-formed `gotox`, which the object loader replaces.
    pub(crate) fn gotox(&self) -> Option<Reg> {
        let fields = (self.opcode, self.src, self.off, self.imm);
        (fields == (GOTOX, 0, 0, 0)).then_some(Reg::new(self.dst)?)
    }

    /// Checks that the named fields are zero.
    fn zero(&self, fields: &[&'static str]) -> Result<(), DecodeError> {
        for &field in fields {
            let value = match field {
                "dst" => self.dst.into(),
                "src" => self.src.into(),
                "off" => self.off.into(),
                _ => self.imm,
            };
            if value != 0 {
                return Err(DecodeError::Reserved {
                    opcode: self.opcode,
                    field,
                    value,
                });
            }
        }
        Ok(())
    }

    fn dst(&self) -> Result<Reg, DecodeError> {
        register("dst", self.dst)
    }

    fn src(&self) -> Result<Reg, DecodeError> {
        register("src", self.src)
    }

    fn undefined(&self, field: &'static str, value: impl Into<i32>) -> DecodeError {
        DecodeError::Undefined {
            opcode: self.opcode,
            field,
            value: value.into(),
        }
    }

    /// The register or immediate that the opcode's source bit selects; the other field must be zero.
    fn operand(&self) -> Result<Operand, DecodeError> {
        Ok(if self.opcode & X != 0 {
            self.zero(&["imm"])?;
            Operand::Reg(self.src()?)
        } else {
            self.zero(&["src"])?;
            Operand::Imm(self.imm)
        })
    }
}

impl Op {
    /// Decodes the instruction that starts at `insn`; `next` is the slot after it, if there is one.
    ///
    /// # Errors
    /// Unknown operations, reserved fields that are not zero, registers that do not exist.
    pub fn decode(insn: Insn, next: Option<Insn>) -> Result<Self, DecodeError> {
        let unknown = Err(DecodeError::UnknownOpcode(insn.opcode));
        match insn.opcode & 7 {
            LD => Self::decode_ld(insn, next),
            LDX => {
                let (size, off) = (Size::from_code(insn.opcode), insn.off);
                let signed = match insn.opcode & 0xe0 {
                    MEM => false,
                    MEMSX if size != Size::Dw => true,
                    _ => return unknown,
                };
                insn.zero(&["imm"])?;
                Ok(Self::Load {
                    size,
                    signed,
                    dst: insn.dst()?,
                    base: insn.src()?,
                    off,
                })
            }
            ST | STX => Self::decode_store(insn),
            class @ (ALU | ALU64) => {
                let width = if class == ALU { Width::W32 } else { Width::W64 };
                Self::decode_alu(insn, width)
            }
            class => {
                let width = if class == JMP { Width::W64 } else { Width::W32 };
                Self::decode_jump(insn, width)
            }
        }
    }

    fn decode_ld(insn: Insn, next: Option<Insn>) -> Result<Self, DecodeError> {
        match insn.opcode {
            LDDW => {}
            // BPF_ABS is mode 0x20, BPF_IND mode 0x40; sizes W, H, B.
            o if matches!(o & 0xe0, 0x20 | 0x40) && o & 0x18 != 0x18 => {
                return Err(DecodeError::Packet(o));
            }
            o => return Err(DecodeError::UnknownOpcode(o)),
        }
        let high = next
            .filter(|n| (n.opcode, n.dst, n.src, n.off) == (0, 0, 0, 0))
            .ok_or(DecodeError::Lddw)?;
        insn.zero(&["off"])?;
        let dst = insn.dst()?;
        let (low, high) = (insn.imm as u32, high.imm as u32);
        match insn.src {
            0 => Ok(Self::LoadImm {
                dst,
                value: u64::from(high) << 32 | u64::from(low),
            }),
            PSEUDO_MAP_VALUE | PSEUDO_MAP_IDX_VALUE => Ok(Self::LoadMapValue {
                dst,
                map: low,
                offset: high,
            }),
            PSEUDO_MAP_FD..=PSEUDO_MAP_IDX if high != 0 => Err(DecodeError::Lddw),
            PSEUDO_MAP_FD | PSEUDO_MAP_IDX => Ok(Self::LoadMap { dst, map: low }),
            PSEUDO_VARIABLE => Ok(Self::LoadVariable { dst, variable: low }),
            PSEUDO_FUNC => Ok(Self::LoadFunction { dst, off: insn.imm }),
            kind => Err(insn.undefined("src", kind)),
        }
    }

    fn decode_store(insn: Insn) -> Result<Self, DecodeError> {
        let (size, off) = (Size::from_code(insn.opcode), insn.off);
        match (insn.opcode & 7, insn.opcode & 0xe0) {
            (ST, MEM) => {
                insn.zero(&["src"])?;
                Ok(Self::Store {
                    size,
                    base: insn.dst()?,
                    off,
                    src: Operand::Imm(insn.imm),
                })
            }
            (STX, MEM) => {
                insn.zero(&["imm"])?;
                Ok(Self::Store {
                    size,
                    base: insn.dst()?,
                    off,
                    src: Operand::Reg(insn.src()?),
                })
            }
            (STX, ATOMIC) => {
                let (dst, src) = (insn.dst()?, insn.src()?);
                match (insn.imm, size) {
                    (LOAD_ACQUIRE, _) => {
                        return Ok(Self::LoadAcquire {
                            size,
                            dst,
                            base: src,
                            off,
                        });
                    }
                    (STORE_RELEASE, _) => {
                        return Ok(Self::StoreRelease {
                            size,
                            base: dst,
                            off,
                            src,
                        });
                    }
                    (_, Size::B | Size::H) => return Err(DecodeError::UnknownOpcode(insn.opcode)),
                    _ => {}
                }
                let op = ATOMIC_OPS.iter().find(|(_, imm)| *imm == insn.imm);
                let &(op, _) = op.ok_or(insn.undefined("imm", insn.imm))?;
                Ok(Self::Atomic {
                    size,
                    op,
                    base: dst,
                    off,
                    src,
                })
            }
            _ => Err(DecodeError::UnknownOpcode(insn.opcode)),
        }
    }

    fn decode_alu(insn: Insn, width: Width) -> Result<Self, DecodeError> {
        let code = insn.opcode & 0xf0;
        let dst = insn.dst()?;
        match code {
            NEG if insn.opcode & X == 0 => {
                insn.zero(&["src", "off", "imm"])?;
                return Ok(Self::Neg { width, dst });
            }
            END => {
                insn.zero(&["src", "off"])?;
                let kind = match (width, insn.opcode & X != 0) {
                    (Width::W32, false) => Swap::Le,
                    (Width::W32, true) => Swap::Be,
                    (Width::W64, false) => Swap::Bswap,
                    (Width::W64, true) => return Err(DecodeError::UnknownOpcode(insn.opcode)),
                };
                let size = match insn.imm {
                    16 => Size::H,
                    32 => Size::W,
                    64 => Size::Dw,
                    bits => return Err(insn.undefined("imm", bits)),
                };
                return Ok(Self::Swap { kind, size, dst });
            }
            _ => {}
        }
        if !ALU_OPS.iter().any(|&(_, c, _)| c == code) {
            return Err(DecodeError::UnknownOpcode(insn.opcode));
        }
        let src = insn.operand()?;
        let op = ALU_OPS
            .iter()
            .find(|&&(_, c, off)| c == code && off == insn.off)
            .map(|&(op, ..)| op);
        let op = op.ok_or(insn.undefined("off", insn.off))?;
        let extension = op.is_sign_extension() && matches!(src, Operand::Imm(_));
        if extension || op == AluOp::Movsx32 && width == Width::W32 {
            return Err(insn.undefined("off", insn.off));
        }
        Ok(Self::Alu {
            width,
            op,
            dst,
            src,
        })
    }

    fn decode_jump(insn: Insn, width: Width) -> Result<Self, DecodeError> {
        match insn.opcode {
            o if o == JMP => {
                insn.zero(&["dst", "src", "imm"])?;
                return Ok(Self::Goto {
                    off: insn.off.into(),
                    long: false,
                });
            }
            o if o == JMP32 => {
                insn.zero(&["dst", "src", "off"])?;
                return Ok(Self::Goto {
                    off: insn.imm,
                    long: true,
                });
            }
            CALL => {
                insn.zero(&["dst", "off"])?;
                return match insn.src {
                    0 => Ok(Self::Call {
                        helper: insn.imm as u32,
                    }),
                    PSEUDO_CALL => Ok(Self::CallLocal { off: insn.imm }),
                    PSEUDO_KFUNC_CALL => Ok(Self::CallKernel {
                        function: insn.imm as u32,
                    }),
                    kind => Err(insn.undefined("src", kind)),
                };
            }
            CALLX => {
                // LLVM puts the register into dst since version 19, into imm before.
                insn.zero(&["src", "off"])?;
                let target = match (insn.dst, insn.imm) {
                    (0, imm @ 1..=10) => register("imm", imm as u8)?,
                    _ => {
                        insn.zero(&["imm"])?;
                        insn.dst()?
                    }
                };
                return Ok(Self::CallReg { target });
            }
            EXIT => {
                insn.zero(&["dst", "src", "off", "imm"])?;
                return Ok(Self::Exit);
            }
            GOTOX => return Err(DecodeError::Gotox),
            MAY_GOTO => return Err(DecodeError::MayGoto),
            _ => {}
        }
        let cond = CONDS.iter().find(|&&(_, code)| code == insn.opcode & 0xf0);
        let &(cond, _) = cond.ok_or(DecodeError::UnknownOpcode(insn.opcode))?;
        Ok(Self::If {
            width,
            cond,
            dst: insn.dst()?,
            src: insn.operand()?,
            off: insn.off,
        })
    }

    /// Encodes the operation; the second slot belongs to `lddw`. Inverse of [`decode`](Self::decode).
    pub fn encode(self) -> (Insn, Option<Insn>) {
        let insn = |opcode, dst: Reg, src: Reg, off, imm| Insn {
            opcode,
            dst: dst.0,
            src: src.0,
            off,
            imm,
        };
        let none = Reg::R0;
        // Source bit, register and immediate of an operand.
        let operand = |src| match src {
            Operand::Reg(r) => (X, r, 0),
            Operand::Imm(imm) => (0, none, imm),
        };
        let lddw = |dst: Reg, kind, low: u32, high: u32| {
            let first = Insn {
                opcode: LDDW,
                dst: dst.0,
                src: kind,
                off: 0,
                imm: low as i32,
            };
            (
                first,
                Some(Insn {
                    imm: high as i32,
                    ..Insn::default()
                }),
            )
        };
        let one = match self {
            Self::Alu {
                width,
                op,
                dst,
                src,
            } => {
                let (x, src, imm) = operand(src);
                let code = ALU_OPS.iter().find(|&&(o, ..)| o == op);
                let (code, off) = code.map_or((0, 0), |&(_, code, off)| (code, off));
                insn(code | x | width.alu_class(), dst, src, off, imm)
            }
            Self::Neg { width, dst } => insn(NEG | width.alu_class(), dst, none, 0, 0),
            Self::Swap { kind, size, dst } => {
                let class = match kind {
                    Swap::Le => ALU,
                    Swap::Be => ALU | X,
                    Swap::Bswap => ALU64,
                };
                insn(END | class, dst, none, 0, size.bits() as i32)
            }
            Self::LoadImm { dst, value } => {
                return lddw(dst, 0, value as u32, (value >> 32) as u32);
            }
            Self::LoadMap { dst, map } => return lddw(dst, PSEUDO_MAP_FD, map, 0),
            Self::LoadMapValue { dst, map, offset } => {
                return lddw(dst, PSEUDO_MAP_VALUE, map, offset);
            }
            Self::LoadFunction { dst, off } => return lddw(dst, PSEUDO_FUNC, off as u32, 0),
            Self::LoadVariable { dst, variable } => {
                return lddw(dst, PSEUDO_VARIABLE, variable, 0);
            }
            Self::Load {
                size,
                signed,
                dst,
                base,
                off,
            } => insn(
                LDX | if signed { MEMSX } else { MEM } | size.code(),
                dst,
                base,
                off,
                0,
            ),
            Self::Store {
                size,
                base,
                off,
                src,
            } => {
                let (x, src, imm) = operand(src);
                insn(
                    if x == 0 { ST } else { STX } | MEM | size.code(),
                    base,
                    src,
                    off,
                    imm,
                )
            }
            Self::Atomic {
                size,
                op,
                base,
                off,
                src,
            } => {
                let imm = ATOMIC_OPS
                    .iter()
                    .find(|(o, _)| *o == op)
                    .map_or(0, |&(_, imm)| imm);
                insn(STX | ATOMIC | size.code(), base, src, off, imm)
            }
            Self::LoadAcquire {
                size,
                dst,
                base,
                off,
            } => insn(STX | ATOMIC | size.code(), dst, base, off, LOAD_ACQUIRE),
            Self::StoreRelease {
                size,
                base,
                off,
                src,
            } => insn(STX | ATOMIC | size.code(), base, src, off, STORE_RELEASE),
            Self::Goto { off, long: true } => insn(JMP32, none, none, 0, off),
            Self::Goto { off, long: false } => insn(JMP, none, none, off as i16, 0),
            Self::If {
                width,
                cond,
                dst,
                src,
                off,
            } => {
                let (x, src, imm) = operand(src);
                let code = CONDS
                    .iter()
                    .find(|(c, _)| *c == cond)
                    .map_or(0, |&(_, code)| code);
                insn(
                    code | x | if width == Width::W64 { JMP } else { JMP32 },
                    dst,
                    src,
                    off,
                    imm,
                )
            }
            Self::Call { helper } => insn(CALL, none, none, 0, helper as i32),
            Self::CallLocal { off } => Insn {
                src: PSEUDO_CALL,
                ..insn(CALL, none, none, 0, off)
            },
            Self::CallKernel { function } => Insn {
                src: PSEUDO_KFUNC_CALL,
                ..insn(CALL, none, none, 0, function as i32)
            },
            Self::CallReg { target } => insn(CALLX, target, none, 0, 0),
            Self::Exit => insn(EXIT, none, none, 0, 0),
        };
        (one, None)
    }

    /// Slots that the instruction takes: 2 for `lddw`, else 1.
    pub const fn slots(self) -> usize {
        match self {
            Self::LoadImm { .. }
            | Self::LoadMap { .. }
            | Self::LoadMapValue { .. }
            | Self::LoadFunction { .. }
            | Self::LoadVariable { .. } => 2,
            _ => 1,
        }
    }

    /// The offset to the slot that may be executed next instead of the following one.
    pub const fn jump(self) -> Option<i32> {
        match self {
            Self::Goto { off, .. } => Some(off),
            Self::If { off, .. } => Some(off as i32),
            _ => None,
        }
    }

    /// The offset to the first slot of a function that the instruction calls or takes the address of.
    pub const fn function(self) -> Option<i32> {
        match self {
            Self::CallLocal { off } => Some(off),
            // Counted from the slot after the instruction's first one.
            Self::LoadFunction { off, .. } => Some(off),
            _ => None,
        }
    }

    /// Whether it calls anything: r1 to r5 are undefined afterwards.
    pub const fn calls(self) -> bool {
        matches!(
            self,
            Self::Call { .. }
                | Self::CallLocal { .. }
                | Self::CallKernel { .. }
                | Self::CallReg { .. }
        )
    }

    /// Whether it is a call by register, so that what it calls is known only when it runs.
    pub const fn is_callx(self) -> bool {
        matches!(self, Self::CallReg { .. })
    }

    /// Whether execution can go on at the following instruction.
    pub const fn falls_through(self) -> bool {
        !matches!(self, Self::Goto { .. } | Self::Exit)
    }

    /// The register that the instruction writes. Calls also leave r1 to r5 undefined.
    pub const fn defines(self) -> Option<Reg> {
        match self {
            Self::Alu { dst, .. }
            | Self::Neg { dst, .. }
            | Self::Swap { dst, .. }
            | Self::LoadImm { dst, .. }
            | Self::LoadMap { dst, .. }
            | Self::LoadMapValue { dst, .. }
            | Self::LoadFunction { dst, .. }
            | Self::LoadVariable { dst, .. }
            | Self::Load { dst, .. }
            | Self::LoadAcquire { dst, .. } => Some(dst),
            Self::Atomic {
                op: AtomicOp::Cmpxchg,
                ..
            }
            | Self::Call { .. }
            | Self::CallLocal { .. }
            | Self::CallKernel { .. }
            | Self::CallReg { .. } => Some(Reg::R0),
            Self::Atomic { op, src, .. } if op.fetches() => Some(src),
            _ => None,
        }
    }
}

impl Width {
    const fn alu_class(self) -> u8 {
        match self {
            Self::W32 => ALU,
            Self::W64 => ALU64,
        }
    }
}
