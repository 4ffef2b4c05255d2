// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each instruction of a hook is for, and where its caller is while it executes.

use core::fmt;

/// The part of a hook that an instruction belongs to; costs are told apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ingredient {
    /// The function's own two words: NOPs, or the branch to the image.
    Site,
    /// Saves registers that are live at the function's entry.
    Save,
    /// Keeps a program from running inside itself.
    Guard,
    /// Prepares a program's run: its arguments, its protection.
    Enter,
    /// The program, or the call of it.
    Program,
    /// Ends a program's run.
    Exit,
    /// Restores what was saved.
    Restore,
    /// Calls the function, of an image that something comes after.
    Function,
    /// Replaces the function's return address by the image's own.
    Push,
    /// Takes the caller's return address back.
    Pop,
    /// The instruction in whose place a probe is.
    Displaced,
    /// Goes on in the function, or returns to its caller.
    Return,
    /// No instruction: a word that names a program to its guard.
    Literal,
}

impl Ingredient {
    /// Its name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Save => "save",
            Self::Guard => "guard",
            Self::Enter => "enter",
            Self::Program => "program",
            Self::Exit => "exit",
            Self::Restore => "restore",
            Self::Function => "function",
            Self::Push => "push",
            Self::Pop => "pop",
            Self::Displaced => "displaced",
            Self::Return => "return",
            Self::Literal => "literal",
        }
    }
}

impl fmt::Display for Ingredient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where the return address to the caller is, for an unwinder that finds a PC in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallerIn {
    /// In x30; x29 is the caller's own frame record.
    LinkRegister,
    /// In the frame record that x29 points to: the caller's x29, then the return address (AAPCS64 6.4.6).
    FrameRecord,
    /// Nowhere: the code is a probe's in the middle of a function, which is as an exception there would find it.
    Probed {
        /// Address of the probed instruction.
        at: u64,
    },
}

/// Instructions in a row of one ingredient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// How many.
    pub len: usize,
    /// What they are for.
    pub ingredient: Ingredient,
    /// The program they serve, by its place in attach order.
    pub program: Option<usize>,
}
