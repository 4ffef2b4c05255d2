// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which words of its context a program can read, so that a hook need not store the others.
//!
//! The address in r1 is followed through moves and additions of constants, over all paths of the program's first function. Where it
//! is stored, computed with, or handed to anything that may look at it, the answer is: all of them.
#![forbid(unsafe_code)]

use alloc::{vec, vec::Vec};

use crate::{
    helpers::{Argument, Function},
    isa::{AluOp, Op, Operand, Reg, Width},
    program::ValidatedProgram,
};

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// Nothing that comes from the context's address.
    Other,
    /// The context's address and so many bytes.
    Context(i64),
    /// Perhaps something that comes from it.
    Derived,
}

type Registers = [Value; Reg::COUNT];

/// The program may read any word.
struct Any;

impl ValidatedProgram {
    /// The words of 8 bytes of its context that it may read: bit n for word n, of 64. `None`: any.
    ///
    /// A helper that takes the context looks at what the [`Attachment`](crate::attachment::Attachment) says of it, no more, and that is
    /// not counted here.
    pub fn context_words(&self) -> Option<u64> {
        Walk {
            program: self,
            words: 0,
        }
        .run()
        .ok()
    }
}

struct Walk<'a> {
    program: &'a ValidatedProgram,
    words: u64,
}

impl Walk<'_> {
    fn run(mut self) -> Result<u64, Any> {
        let entry = self.program.functions().first().ok_or(Any)?.clone();
        let mut before: Vec<Option<Registers>> = vec![None; entry.len()];
        let mut registers = [Value::Other; Reg::COUNT];
        *slot(&mut registers, Reg::R1) = Value::Context(0);
        let mut todo = vec![(entry.start, registers)];
        while let Some((index, registers)) = todo.pop() {
            let place = index.checked_sub(entry.start).ok_or(Any)?;
            let known = before.get_mut(place as usize).ok_or(Any)?;
            let joined = match *known {
                Some(known) => join(known, registers),
                None => registers,
            };
            if *known == Some(joined) {
                continue;
            }
            *known = Some(joined);
            let at = self.program.instructions().get(index as usize);
            let at = at.ok_or(Any)?;
            let after = self.step(at.op, joined)?;
            match at.op {
                Op::Exit => {}
                Op::Goto { .. } => todo.push((at.target, after)),
                Op::If { .. } => todo.extend([(index + 1, after), (at.target, after)]),
                _ => todo.push((index + 1, after)),
            }
        }
        Ok(self.words)
    }

    /// What the registers hold behind an instruction.
    fn step(&mut self, op: Op, mut registers: Registers) -> Result<Registers, Any> {
        let value = |reg: Reg| {
            registers
                .get(reg.index())
                .copied()
                .unwrap_or(Value::Derived)
        };
        let operand = |operand| match operand {
            Operand::Reg(reg) => value(reg),
            Operand::Imm(_) => Value::Other,
        };
        let kept = |seen: Value| match seen {
            Value::Other => Ok(()),
            _ => Err(Any),
        };
        let result = match op {
            Op::Alu {
                width,
                op,
                dst,
                src,
            } => match (op, width, value(dst), src) {
                (AluOp::Mov, Width::W64, _, src) => operand(src),
                (AluOp::Add, Width::W64, Value::Context(at), Operand::Imm(by)) => {
                    Value::Context(at.wrapping_add(by.into()))
                }
                (op, _, old, src) => {
                    let old = if op.is_move() { Value::Other } else { old };
                    match (old, operand(src)) {
                        (Value::Other, Value::Other) => Value::Other,
                        _ => Value::Derived,
                    }
                }
            },
            Op::Neg { dst, .. } | Op::Swap { dst, .. } => match value(dst) {
                Value::Other => Value::Other,
                _ => Value::Derived,
            },
            Op::Load {
                size, base, off, ..
            }
            | Op::LoadAcquire {
                size, base, off, ..
            } => {
                match value(base) {
                    Value::Other => {}
                    Value::Context(at) => self.read(at.wrapping_add(off.into()), size.bytes())?,
                    Value::Derived => return Err(Any),
                }
                Value::Other
            }
            Op::Store { base, src, .. } => {
                kept(value(base))?;
                kept(operand(src))?;
                Value::Other
            }
            Op::StoreRelease { base, src, .. } | Op::Atomic { base, src, .. } => {
                kept(value(base))?;
                kept(value(src))?;
                Value::Other
            }
            Op::Call { .. } | Op::CallKernel { .. } => {
                let called = self.program.called(op).ok_or(Any)?;
                for (reg, argument) in Reg::arguments().zip(called.arguments) {
                    let engine = matches!(called.function, Function::Engine);
                    if *argument != Argument::Context || engine {
                        kept(value(reg))?;
                    }
                }
                Value::Other
            }
            Op::CallLocal { .. } | Op::CallReg { .. } => {
                Reg::arguments().try_for_each(|reg| kept(value(reg)))?;
                Value::Other
            }
            _ => Value::Other,
        };
        if matches!(
            op,
            Op::Call { .. } | Op::CallKernel { .. } | Op::CallLocal { .. } | Op::CallReg { .. }
        ) {
            let gone = Reg::arguments().chain([Reg::R0]);
            gone.for_each(|reg| *slot(&mut registers, reg) = Value::Other);
        } else if let Some(dst) = op.defines() {
            *slot(&mut registers, dst) = result;
        }
        Ok(registers)
    }

    fn read(&mut self, at: i64, bytes: u32) -> Result<(), Any> {
        let first = u64::try_from(at).map_err(|_| Any)?;
        let last = first.checked_add(u64::from(bytes) - 1).ok_or(Any)?;
        for word in [first / 8, last / 8] {
            let bit = u32::try_from(word).ok().and_then(|w| 1u64.checked_shl(w));
            self.words |= bit.ok_or(Any)?;
        }
        Ok(())
    }
}

/// The register's place; a register's number is below their count.
fn slot(registers: &mut Registers, reg: Reg) -> &mut Value {
    &mut registers[reg.index()]
}

fn join(a: Registers, b: Registers) -> Registers {
    let mut joined = a;
    for (a, b) in joined.iter_mut().zip(b) {
        if *a != b {
            *a = Value::Derived;
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use crate::{asm::assemble, program::UncheckedProgram};

    fn words(text: &str) -> Option<u64> {
        let program = UncheckedProgram {
            insns: assemble(text).unwrap(),
            ..UncheckedProgram::default()
        };
        program.validate().unwrap().context_words()
    }

    #[test]
    fn what_can_be_read_of_the_context() {
        for (text, want) in CASES {
            assert_eq!(words(text), *want, "{text}");
        }
    }

    const CASES: &[(&str, Option<u64>)] = &[
        ("r0 = 0\nexit", Some(0)),
        ("r0 = *(u64 *)(r1 + 16)\nexit", Some(1 << 2)),
        ("r0 = *(u32 *)(r1 + 12)\nexit", Some(1 << 1)),
        ("r0 = *(u32 *)(r1 + 6)\nexit", Some(0b11)),
        // Through a copy, an offset, a call.
        (
            "r6 = r1\nr6 += 8\ncall 5\nr0 = *(u64 *)(r6 + 8)\nexit",
            Some(1 << 2),
        ),
        // On either way of a branch, and in a loop.
        (
            "if r1 == 0 goto a\nr0 = *(u64 *)(r1 + 0)\nexit\na: r0 = *(u64 *)(r1 + 248)\nexit",
            Some(1 | 1 << 31),
        ),
        (
            "r2 = 3\na: r0 = *(u64 *)(r1 + 0)\nr2 += -1\nif r2 != 0 goto a\nexit",
            Some(1),
        ),
        // The context where a helper takes it, and what was in r1 is gone behind it.
        ("call 173\nexit", Some(0)),
        // Two offsets meet; it walks; it is stored; it is computed with; it goes to who may look at it.
        (
            "if r1 == 0 goto a\nr1 += 8\na: r0 = *(u64 *)(r1 + 0)\nexit",
            None,
        ),
        (
            "a: r0 = *(u64 *)(r1 + 0)\nr1 += 8\nif r0 != 0 goto a\nexit",
            None,
        ),
        ("*(u64 *)(r10 - 8) = r1\nr0 = 0\nexit", None),
        ("r1 *= 1\nr0 = *(u64 *)(r1 + 0)\nexit", None),
        ("w1 = w1\nr0 = *(u64 *)(r1 + 0)\nexit", None),
        ("call local f\nexit\nf: r0 = *(u64 *)(r1 + 0)\nexit", None),
        ("r0 = *(u64 *)(r1 - 8)\nexit", None),
        ("r0 = *(u64 *)(r1 + 512)\nexit", None),
        (
            "r3 = r1\nr1 = r10\nr1 += -8\nr2 = 8\ncall 113\nr0 = 0\nexit",
            None,
        ),
    ];
}
