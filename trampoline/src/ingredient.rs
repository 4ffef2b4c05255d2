// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each instruction of a trampoline is for, and where an unwinder finds the caller at it.

/// What an instruction is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Ingredient {
    /// The site's own words.
    Site,
    /// Keeps what the function and its caller need.
    Save,
    /// Turns away a hit on itself.
    Guard,
    /// Prepares a program's arguments and context.
    Enter,
    /// Runs the program.
    Program,
    /// Leaves the program's context.
    Exit,
    /// Puts back what was kept.
    Restore,
    /// Goes on in the function, or returns to its caller.
    Return,
}

impl Ingredient {
    /// The word for tables.
    pub fn name(self) -> &'static str {
        match self {
            Ingredient::Site => "site",
            Ingredient::Save => "save",
            Ingredient::Guard => "guard",
            Ingredient::Enter => "enter",
            Ingredient::Program => "program",
            Ingredient::Exit => "exit",
            Ingredient::Restore => "restore",
            Ingredient::Return => "return",
        }
    }
}

/// Where the return address into the hooked function's caller is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallerIn {
    /// In x30.
    LinkRegister,
    /// In the frame record that x29 points to.
    FrameRecord,
}
