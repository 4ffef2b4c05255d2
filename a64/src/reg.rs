// SPDX-License-Identifier: MIT OR Apache-2.0
//! General registers, and what register number 31 means where it is used.
//!
//! Number 31 is the zero register in most places and the stack pointer in some (Arm ARM C1.2.5), so
//! an instruction's field is a [`Gpr`] or a [`RegOrSp`], and a plain [`Reg`] converts to both.

/// Width of the operation: the `sf` bit of most data processing instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Size {
    /// 32 bits: `w` registers; writing one clears the upper half.
    W,
    /// 64 bits: `x` registers.
    X,
}

impl Size {
    /// Width in bits: 32 or 64.
    pub const fn bits(self) -> u32 {
        match self {
            Self::W => 32,
            Self::X => 64,
        }
    }

    pub(crate) const fn sf(self) -> u32 {
        (self as u32) << 31
    }

    pub(crate) const fn of(word: u32) -> Self {
        if word >> 31 == 0 { Self::W } else { Self::X }
    }
}

/// One of the 31 general registers, `x0` to `x30`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reg(u8);

impl Reg {
    /// The register of this number, 0 to 30; `None` above.
    pub const fn new(number: u8) -> Option<Self> {
        if number < 31 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its number, 0 to 30.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// A general register or the zero register: five bits, 31 is `xzr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gpr(u8);

/// A general register or the stack pointer: five bits, 31 is `sp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegOrSp(u8);

/// The zero register: reads as zero, writes are lost.
pub const XZR: Gpr = Gpr(31);

/// The current stack pointer.
pub const SP: RegOrSp = RegOrSp(31);

macro_rules! field {
    ($name:ident) => {
        impl $name {
            pub(crate) const fn at(word: u32, shift: u32) -> Self {
                Self((word >> shift & 31) as u8)
            }

            pub(crate) const fn bits(self, shift: u32) -> u32 {
                (self.0 as u32) << shift
            }

            /// The number in the instruction's field, 0 to 31.
            pub const fn number(self) -> u8 {
                self.0
            }

            /// The general register; `None` for number 31.
            pub const fn reg(self) -> Option<Reg> {
                Reg::new(self.0)
            }
        }

        impl From<Reg> for $name {
            fn from(r: Reg) -> Self {
                Self(r.0)
            }
        }

        impl PartialEq<Reg> for $name {
            fn eq(&self, r: &Reg) -> bool {
                self.0 == r.0
            }
        }
    };
}
field!(Gpr);
field!(RegOrSp);

macro_rules! names {
    ($($name:ident $n:literal)*) => {$(
        #[doc = concat!("General register `x", $n, "`.")]
        pub const $name: Reg = Reg($n);
    )*};
}
names! {
    X0 0 X1 1 X2 2 X3 3 X4 4 X5 5 X6 6 X7 7 X8 8 X9 9 X10 10 X11 11 X12 12 X13 13 X14 14 X15 15
    X16 16 X17 17 X18 18 X19 19 X20 20 X21 21 X22 22 X23 23 X24 24 X25 25 X26 26 X27 27 X28 28
    X29 29 X30 30
}
