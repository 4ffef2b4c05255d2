// SPDX-License-Identifier: MIT OR Apache-2.0
//! Immediates: types that hold exactly what an instruction's field can hold.

use crate::reg::Size;
use core::fmt;

/// A number that no encoding of the instruction's immediate can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImmError {
    /// The kind of immediate, named as the type is.
    pub kind: &'static str,
    /// The number that was asked for.
    pub value: i128,
    /// What the field can hold, in words.
    pub holds: &'static str,
}

impl fmt::Display for ImmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} ({:#x}) does not fit, the field holds {}; put the value into a register first",
            self.kind, self.value, self.value, self.holds
        )
    }
}

impl core::error::Error for ImmError {}

const fn sign_extend(value: u32, bits: u32) -> i32 {
    ((value << (32 - bits)) as i32) >> (32 - bits)
}

macro_rules! signed {
    ($($(#[$doc:meta])* $name:ident, $bits:literal bits, times $scale:literal, $holds:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(i32);

        impl $name {
            /// Zero.
            pub const ZERO: Self = Self(0);

            #[doc = concat!("Holds ", $holds, "; an error for any other value.")]
            pub const fn new(value: i64) -> Result<Self, ImmError> {
                let units = value / $scale;
                if units * $scale != value || units < -(1 << ($bits - 1)) || units >= 1 << ($bits - 1) {
                    return Err(ImmError { kind: stringify!($name), value: value as i128, holds: $holds });
                }
                Ok(Self(units as i32))
            }

            /// The value, in the unit of `new`.
            pub const fn value(self) -> i64 {
                self.0 as i64 * $scale
            }

            pub(crate) const fn at(word: u32, shift: u32) -> Self {
                Self(sign_extend(word >> shift & ((1 << $bits) - 1), $bits))
            }

            pub(crate) const fn bits(self, shift: u32) -> u32 {
                (self.0 as u32 & ((1 << $bits) - 1)) << shift
            }
        }
    )*};
}
signed! {
    /// Reach of B and BL, in bytes from the instruction.
    Imm26, 26 bits, times 4, "multiples of 4 in -134217728..=134217724";
    /// Reach of B.cond, CBZ, CBNZ and LDR literal, in bytes from the instruction.
    Imm19, 19 bits, times 4, "multiples of 4 in -1048576..=1048572";
    /// Reach of TBZ and TBNZ, in bytes from the instruction.
    Imm14, 14 bits, times 4, "multiples of 4 in -32768..=32764";
    /// Reach of ADR in bytes, or of ADRP in 4 KiB pages.
    Imm21, 21 bits, times 1, "-1048576..=1048575";
    /// Unscaled, pre-indexed or post-indexed offset of a load or store, in bytes.
    SImm9, 9 bits, times 1, "-256..=255";
    /// Offset of LDP and STP, in units of one of the two registers' size in memory.
    SImm7, 7 bits, times 1, "-64..=63 units";
}

impl SImm7 {
    /// The offset `bytes` of a pair whose elements are `unit` bytes each (4 or 8).
    pub const fn scaled(bytes: i64, unit: u32) -> Result<Self, ImmError> {
        const HOLDS: &str = "-64..=63 times the size of one register";
        let refused = ImmError {
            kind: "SImm7Scaled",
            value: bytes as i128,
            holds: HOLDS,
        };
        if unit == 0 || bytes % unit as i64 != 0 {
            return Err(refused);
        }
        match Self::new(bytes / unit as i64) {
            Ok(imm) => Ok(imm),
            Err(_) => Err(refused),
        }
    }
}

macro_rules! unsigned {
    ($($(#[$doc:meta])* $name:ident, below $limit:literal, $holds:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(u16);

        impl $name {
            /// Zero.
            pub const ZERO: Self = Self(0);

            #[doc = concat!("Holds ", $holds, "; an error for any other value.")]
            pub const fn new(value: u64) -> Result<Self, ImmError> {
                if value >= $limit {
                    return Err(ImmError { kind: stringify!($name), value: value as i128, holds: $holds });
                }
                Ok(Self(value as u16))
            }

            /// The value.
            pub const fn value(self) -> u64 {
                self.0 as u64
            }

            pub(crate) const fn at(word: u32, shift: u32) -> Self {
                Self((word >> shift & ($limit - 1)) as u16)
            }

            pub(crate) const fn bits(self, shift: u32) -> u32 {
                (self.0 as u32) << shift
            }
        }
    )*};
}
unsigned! {
    /// A three-bit field of a system instruction.
    UImm3, below 8, "0..=7";
    /// A four-bit field: the flags of CCMP (NZCV), a barrier's option, CRn and CRm.
    UImm4, below 16, "0..=15";
    /// The five-bit comparand of CCMP and CCMN, or PRFM's operation.
    UImm5, below 32, "0..=31";
    /// The bit that TBZ and TBNZ test.
    BitNumber, below 64, "0..=63";
    /// The number of a hint.
    UImm7, below 128, "0..=127";
    /// Offset of a load or store, in units of the accessed size.
    UImm12, below 4096, "0..=4095 units";
}

impl UImm12 {
    /// The offset `bytes` of an access of `unit` bytes (1, 2, 4 or 8).
    pub const fn scaled(bytes: i64, unit: u32) -> Result<Self, ImmError> {
        let refused = ImmError {
            kind: "UImm12Scaled",
            value: bytes as i128,
            holds: "0..=4095 times the size of the access",
        };
        if bytes < 0 || unit == 0 || bytes % unit as i64 != 0 {
            return Err(refused);
        }
        match Self::new(bytes as u64 / unit as u64) {
            Ok(imm) => Ok(imm),
            Err(_) => Err(refused),
        }
    }
}

/// Immediate of ADD and SUB: twelve bits, optionally shifted left by twelve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Imm12 {
    bits: u16,
    shifted: bool,
}

impl Imm12 {
    /// Zero, unshifted.
    pub const ZERO: Self = Self {
        bits: 0,
        shifted: false,
    };

    /// Holds 0 to 4095, and multiples of 4096 up to 4095 * 4096.
    pub const fn new(value: u64) -> Result<Self, ImmError> {
        if value < 4096 {
            Ok(Self {
                bits: value as u16,
                shifted: false,
            })
        } else if value & 4095 == 0 && value >> 12 < 4096 {
            Ok(Self {
                bits: (value >> 12) as u16,
                shifted: true,
            })
        } else {
            Err(ImmError {
                kind: "Imm12",
                value: value as i128,
                holds: "0..=4095, or such a number times 4096",
            })
        }
    }

    /// The value that is added.
    pub const fn value(self) -> u64 {
        (self.bits as u64) << if self.shifted { 12 } else { 0 }
    }

    /// The twelve bits, and whether they are shifted left by twelve.
    pub const fn parts(self) -> (u16, bool) {
        (self.bits, self.shifted)
    }

    pub(crate) const fn at(word: u32) -> Self {
        Self {
            bits: (word >> 10 & 4095) as u16,
            shifted: word >> 22 & 1 == 1,
        }
    }

    pub(crate) const fn field(self) -> u32 {
        (self.shifted as u32) << 22 | (self.bits as u32) << 10
    }
}

/// Immediate of MOVZ, MOVN and MOVK: sixteen bits at a multiple of sixteen, with the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Imm16 {
    size: Size,
    bits: u16,
    hw: u8,
}

impl Imm16 {
    /// `bits` shifted left by `shift`: 0 or 16, and for [`Size::X`] also 32 or 48.
    pub const fn new(size: Size, bits: u16, shift: u32) -> Result<Self, ImmError> {
        if shift >= size.bits() || !shift.is_multiple_of(16) {
            return Err(ImmError {
                kind: "shift of Imm16",
                value: shift as i128,
                holds: "0 and 16, with 64 bits also 32 and 48",
            });
        }
        Ok(Self {
            size,
            bits,
            hw: (shift / 16) as u8,
        })
    }

    /// Sixteen bits, not shifted.
    pub const fn low(size: Size, bits: u16) -> Self {
        Self { size, bits, hw: 0 }
    }

    /// Width of the register that is written.
    pub const fn size(self) -> Size {
        self.size
    }

    /// The sixteen bits, unshifted.
    pub const fn unshifted(self) -> u16 {
        self.bits
    }

    /// How far they are shifted left.
    pub const fn shift(self) -> u32 {
        self.hw as u32 * 16
    }

    pub(crate) const fn at(word: u32) -> Option<Self> {
        match Self::new(Size::of(word), (word >> 5) as u16, (word >> 21 & 3) * 16) {
            Ok(imm) => Some(imm),
            Err(_) => None,
        }
    }

    pub(crate) const fn field(self) -> u32 {
        self.size.sf() | (self.hw as u32) << 21 | (self.bits as u32) << 5
    }
}

/// Bitmask immediate of AND, ORR, EOR and ANDS: a rotated run of ones, repeated, with the width.
///
/// Arm ARM J1.1, `DecodeBitMasks()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogicalImm {
    size: Size,
    fields: u16, // N:immr:imms
}

impl LogicalImm {
    /// The encoding of `value`, if there is one; all zeroes and all ones have none.
    pub const fn new(size: Size, value: u64) -> Result<Self, ImmError> {
        let refused = ImmError {
            kind: "LogicalImm",
            value: value as i128,
            holds: "a rotated run of ones repeated every 2, 4, 8, 16, 32 or 64 bits",
        };
        let wide = match size {
            Size::X => value,
            Size::W if value >> 32 == 0 => value | value << 32,
            Size::W => return Err(refused),
        };
        if wide == 0 || wide == u64::MAX {
            return Err(refused);
        }
        // The element: the shortest period.
        let mut width = 64;
        while width > 2 {
            let half = width / 2;
            if (wide ^ wide.rotate_right(half)) != 0 {
                break;
            }
            width = half;
        }
        let mask = u64::MAX >> (64 - width);
        let element = wide & mask;
        // Rotate the run of ones down to bit 0: left of its lowest one whose lower neighbour is zero.
        let start = if element & 1 == 0 {
            element.trailing_zeros()
        } else {
            let top_ones = (!(element | !mask) << (64 - width)).leading_zeros();
            (width - top_ones) % width
        };
        let run = if start == 0 {
            element
        } else {
            (element >> start | element << (width - start)) & mask
        };
        if run & (run + 1) != 0 {
            return Err(refused);
        }
        let ones = run.count_ones();
        let immr = (width - start) % width;
        // imms carries the width above the count: 0xxxxx 32, 10xxxx 16, 110xxx 8 and so on.
        let imms = (!(width * 2 - 1) | (ones - 1)) & 63;
        let n = (width == 64) as u32;
        Ok(Self {
            size,
            fields: (n << 12 | immr << 6 | imms) as u16,
        })
    }

    /// Width of the operation.
    pub const fn size(self) -> Size {
        self.size
    }

    /// The immediate; for [`Size::W`] its upper half is zero.
    pub const fn value(self) -> u64 {
        let (n, immr, imms) = self.split();
        // Fields of a constructed value always name a width of at least two.
        let width = 1 << (31 - (n << 6 | (!imms & 63)).leading_zeros());
        let (ones, rotate) = ((imms & (width - 1)) + 1, immr & (width - 1));
        let mask = u64::MAX >> (64 - width);
        let run = u64::MAX >> (64 - ones);
        let element = if rotate == 0 {
            run
        } else {
            (run >> rotate | run << (width - rotate)) & mask
        };
        let mut value = element;
        let mut filled = width;
        while filled < 64 {
            value |= value << filled;
            filled *= 2;
        }
        match self.size {
            Size::X => value,
            Size::W => value as u32 as u64,
        }
    }

    const fn split(self) -> (u32, u32, u32) {
        let f = self.fields as u32;
        (f >> 12, f >> 6 & 63, f & 63)
    }

    pub(crate) const fn at(word: u32) -> Option<Self> {
        let imm = Self {
            size: Size::of(word),
            fields: (word >> 10 & 0x1fff) as u16,
        };
        let (n, _, imms) = imm.split();
        let key = n << 6 | (!imms & 63);
        // Reserved: no width, width 1, a run that fills the element, N set in a 32-bit operation.
        if key < 2 || (n == 1 && matches!(imm.size, Size::W)) {
            return None;
        }
        let width = 1 << (31 - key.leading_zeros());
        if imms & (width - 1) == width - 1 {
            return None;
        }
        Some(imm)
    }

    pub(crate) const fn field(self) -> u32 {
        self.size.sf() | (self.fields as u32) << 10
    }
}

/// How a register operand is shifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ShiftKind {
    /// Logical left.
    Lsl = 0,
    /// Logical right.
    Lsr = 1,
    /// Arithmetic right.
    Asr = 2,
    /// Rotate right; for logical instructions only.
    Ror = 3,
}

impl ShiftKind {
    pub(crate) const fn at(word: u32) -> Self {
        match word >> 22 & 3 {
            0 => Self::Lsl,
            1 => Self::Lsr,
            2 => Self::Asr,
            _ => Self::Ror,
        }
    }
}

/// A bit position within a register, with the register's width: 0..=31 or 0..=63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Amount {
    size: Size,
    bits: u8,
}

impl Amount {
    /// Below the width of `size`.
    pub const fn new(size: Size, bits: u64) -> Result<Self, ImmError> {
        if bits >= size.bits() as u64 {
            return Err(ImmError {
                kind: "Amount",
                value: bits as i128,
                holds: "0..=31, with 64 bits 0..=63",
            });
        }
        Ok(Self {
            size,
            bits: bits as u8,
        })
    }

    /// No shift at all.
    pub const fn zero(size: Size) -> Self {
        Self { size, bits: 0 }
    }

    /// Width of the register.
    pub const fn size(self) -> Size {
        self.size
    }

    /// The position or distance, in bits.
    pub const fn value(self) -> u32 {
        self.bits as u32
    }

    pub(crate) const fn at(word: u32, shift: u32) -> Option<Self> {
        match Self::new(Size::of(word), (word >> shift & 63) as u64) {
            Ok(amount) => Some(amount),
            Err(_) => None,
        }
    }

    /// The `sf` bit and the six bits at 10.
    pub(crate) const fn field(self) -> u32 {
        self.size.sf() | (self.bits as u32) << 10
    }
}

/// The two positions of UBFM, SBFM and BFM, with the width (Arm ARM C3.4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BitRange {
    size: Size,
    immr: u8,
    imms: u8,
}

impl BitRange {
    /// `immr` (rotation) and `imms` (leftmost bit), both below the width of `size`.
    pub const fn new(size: Size, immr: u64, imms: u64) -> Result<Self, ImmError> {
        match (Amount::new(size, immr), Amount::new(size, imms)) {
            (Ok(r), Ok(s)) => Ok(Self {
                size,
                immr: r.bits,
                imms: s.bits,
            }),
            (Err(e), _) | (_, Err(e)) => Err(e),
        }
    }

    /// Width of the registers.
    pub const fn size(self) -> Size {
        self.size
    }

    /// The rotation, in bits.
    pub const fn immr(self) -> u32 {
        self.immr as u32
    }

    /// The leftmost bit's number.
    pub const fn imms(self) -> u32 {
        self.imms as u32
    }

    pub(crate) const fn at(word: u32) -> Option<Self> {
        let size = Size::of(word);
        if word >> 22 & 1 != word >> 31 {
            return None;
        }
        match Self::new(size, (word >> 16 & 63) as u64, (word >> 10 & 63) as u64) {
            Ok(range) => Some(range),
            Err(_) => None,
        }
    }

    pub(crate) const fn field(self) -> u32 {
        let n = (self.size as u32) << 22;
        self.size.sf() | n | (self.immr as u32) << 16 | (self.imms as u32) << 10
    }
}

/// Left shift of an extended register operand: 0..=4 (Arm ARM C6.2, ADD (extended register)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtendShift(u8);

impl ExtendShift {
    /// Holds 0 to 4.
    pub const fn new(bits: u64) -> Result<Self, ImmError> {
        if bits > 4 {
            return Err(ImmError {
                kind: "ExtendShift",
                value: bits as i128,
                holds: "0..=4",
            });
        }
        Ok(Self(bits as u8))
    }

    /// The distance, in bits.
    pub const fn value(self) -> u32 {
        self.0 as u32
    }
}
