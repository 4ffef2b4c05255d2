// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a function takes and returns, as far as its trampoline has to know (AAPCS64 6.8.2 and 6.9).

use a64::Reg;
use a64::reg::X8;

/// Registers that carry arguments.
const ARGUMENT_REGISTERS: u8 = 8;
/// Arguments on the stack that a trampoline hands on, in words.
const MAX_STACK: u8 = 8;

/// Which registers and stack words hold something of the caller's at a function's entry, and what it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgSpec {
    registers: u8,
    /// `None`: not known.
    stack: Option<u8>,
    results: u8,
    indirect_result: bool,
}

impl ArgSpec {
    /// Nothing is known about the function: x0-x8 are kept, and x0-x7 of its result.
    pub const UNKNOWN: Self = Self {
        registers: ARGUMENT_REGISTERS,
        stack: None,
        results: ARGUMENT_REGISTERS,
        indirect_result: true,
    };

    /// The first `registers` of x0-x7 hold arguments, none is on the stack, x0 has the result, and x8 the result's address if
    /// it has one.
    ///
    /// `None` for more than eight registers.
    pub const fn new(registers: u8, indirect_result: bool) -> Option<Self> {
        if registers > ARGUMENT_REGISTERS {
            return None;
        }
        Some(Self {
            registers,
            stack: Some(0),
            results: 1,
            indirect_result,
        })
    }

    /// This many words of arguments are on the stack, behind eight in registers; `None` for more than eight, or if not all
    /// registers are in use.
    pub const fn with_stack(self, words: u8) -> Option<Self> {
        if words > MAX_STACK || words > 0 && self.registers < ARGUMENT_REGISTERS {
            return None;
        }
        Some(Self {
            stack: Some(words),
            ..self
        })
    }

    /// The result is in the first `words` of x0 and x1; `None` for more than two.
    pub const fn with_results(self, words: u8) -> Option<Self> {
        if words > 2 {
            return None;
        }
        Some(Self {
            results: words,
            ..self
        })
    }

    /// How many words of `ctx` are arguments in registers.
    pub const fn registers(self) -> u8 {
        self.registers
    }

    /// How many words of `ctx` are arguments from the stack; `None`: not known how many there are, and none is in `ctx`.
    pub const fn stack(self) -> Option<u8> {
        self.stack
    }

    /// How many words of `ctx` are arguments; the result of an exit hook comes behind them.
    pub const fn words(self) -> u8 {
        match self.stack {
            Some(stack) => self.registers + stack,
            None => self.registers,
        }
    }

    /// How many words the result has, from x0 on.
    pub const fn results(self) -> u8 {
        self.results
    }

    /// Whether x8 is live at the entry.
    pub const fn indirect_result(self) -> bool {
        self.indirect_result
    }

    /// What covers both. If either does not know the stack, neither does.
    pub fn union(self, other: Self) -> Self {
        let stack = self.stack.zip(other.stack);
        Self {
            registers: self.registers.max(other.registers),
            stack: stack.map(|(a, b)| a.max(b)),
            results: self.results.max(other.results),
            indirect_result: self.indirect_result || other.indirect_result,
        }
    }

    /// The argument registers to keep.
    pub(crate) fn live(self) -> impl Iterator<Item = Reg> + Clone {
        (0..self.registers).filter_map(Reg::new)
    }

    /// The result registers to keep.
    pub(crate) fn result_registers(self) -> impl Iterator<Item = Reg> + Clone {
        (0..self.results).filter_map(Reg::new)
    }

    /// x8, if it is live.
    pub(crate) fn indirect(self) -> Option<Reg> {
        self.indirect_result.then_some(X8)
    }
}
