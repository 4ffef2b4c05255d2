// SPDX-License-Identifier: MIT OR Apache-2.0
//! Assembler of the text that [`crate::disasm`] prints, with labels, one instruction a line.
//!
//! A line is an instruction, a label (`name:`), or both; `;`, `//` and `#` start a comment. Jumps and local calls take
//! `+3`, `-3` (slots from the next instruction) or a label. Numbers are decimal or `0x` hexadecimal. Maps are named by
//! index: `r1 = map[0]`, `r1 = map[0][0]+8`; so are kernel variables (`r1 = var[0]`) and functions (`call kfunc[0]`).
//! A callback is `r2 = func label`; `callx r3` calls by register.
#![forbid(unsafe_code)]

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::fmt;

use crate::isa::{AluOp, AtomicOp, Cond, Insn, Op, Operand, Reg, Size, Swap, Width};

/// Why a text is no program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsmError {
    /// The line, counted from 1.
    pub line: usize,
    /// The line's text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for AsmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: `{}`", self.line, self.reason, self.text)
    }
}

impl core::error::Error for AsmError {}

type Parse<T> = Result<T, &'static str>;

/// Translates a text to instruction slots. The slots are not validated.
///
/// # Errors
/// The first line that is no instruction, names an unknown label or a number out of range.
pub fn assemble(text: &str) -> Result<Vec<Insn>, AsmError> {
    let error = |number: usize, reason| AsmError {
        line: number + 1,
        text: text.lines().nth(number).unwrap_or_default().trim().into(),
        reason,
    };
    let mut labels = BTreeMap::new();
    let mut lines = Vec::new();
    let mut slot = 0;
    for (number, line) in text.lines().enumerate() {
        let mut tokens = tokens(line);
        if let [name, ":", ..] = tokens[..] {
            if labels.insert(name, slot).is_some() {
                return Err(error(number, "label defined twice"));
            }
            tokens.drain(..2);
        }
        if !tokens.is_empty() {
            // Labels may lie ahead: the first round wants the size only.
            let op = parse(&tokens, |_| Some(0)).map_err(|reason| error(number, reason))?;
            lines.push((number, slot, tokens));
            slot += op.slots();
        }
    }
    let mut insns = Vec::with_capacity(slot);
    for (number, slot, tokens) in lines {
        let target = |label: &str| {
            let to = i64::try_from(*labels.get(label)?).ok()?;
            i32::try_from(to - i64::try_from(slot).ok()? - 1).ok()
        };
        let op = parse(&tokens, target).map_err(|reason| error(number, reason))?;
        let (first, second) = op.encode();
        insns.push(first);
        insns.extend(second);
    }
    Ok(insns)
}

/// Words, numbers, operators and brackets of a line, comments left out.
fn tokens(line: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let operator = |c: char| "+-*/%&|^<>=!".contains(c);
    let end = [";", "//", "#"].iter().filter_map(|c| line.find(c)).min();
    let mut rest = line.get(..end.unwrap_or(line.len())).unwrap_or(line);
    let mut tokens = Vec::new();
    loop {
        rest = rest.trim_start();
        let Some(first) = rest.chars().next() else {
            return tokens;
        };
        // Signed operators begin with an `s`: `s>>=`, `s<`.
        let signed = rest
            .strip_prefix('s')
            .is_some_and(|r| r.starts_with(operator));
        let length = if signed || operator(first) {
            let skip = usize::from(signed);
            rest.chars().skip(skip).take_while(|&c| operator(c)).count() + skip
        } else if word(first) {
            rest.chars().take_while(|&c| word(c)).count()
        } else {
            first.len_utf8()
        };
        let (token, tail) = rest.split_at(length);
        tokens.push(token);
        rest = tail;
    }
}

/// One instruction. `label` gives the offset to a label from the next slot.
fn parse(tokens: &[&str], label: impl Fn(&str) -> Option<i32>) -> Parse<Op> {
    let target = |tokens: &[&str]| match tokens {
        [name] => label(name).ok_or("unknown label"),
        ["+" | "-", _] => imm(tokens),
        _ => Err("expected a label, +N or -N"),
    };
    match tokens {
        ["exit"] => Ok(Op::Exit),
        ["goto", to @ ..] => {
            let off = short(target(to)?)?.into();
            Ok(Op::Goto { off, long: false })
        }
        ["gotol", to @ ..] => Ok(Op::Goto {
            off: target(to)?,
            long: true,
        }),
        ["call", "local", to @ ..] => Ok(Op::CallLocal { off: target(to)? }),
        ["call", "kfunc", "[", function, "]"] => Ok(Op::CallKernel {
            function: imm(&[function])?.cast_unsigned(),
        }),
        ["callx", target] => Ok(Op::CallReg {
            target: address(target)?,
        }),
        [dst, "=", "func", to @ ..] => Ok(Op::LoadFunction {
            dst: address(dst)?,
            off: target(to)?,
        }),
        ["call", helper @ ..] => Ok(Op::Call {
            helper: imm(helper)?.cast_unsigned(),
        }),
        ["if", dst, cond, rest @ ..] => {
            let at = rest
                .iter()
                .position(|t| *t == "goto")
                .ok_or("expected `goto`")?;
            let (src, to) = rest.split_at(at);
            let (width, dst) = register(dst)?;
            Ok(Op::If {
                width,
                cond: Cond::all()
                    .find(|c| c.text() == *cond)
                    .ok_or("unknown comparison")?,
                dst,
                src: operand(src, width)?,
                off: short(target(to.get(1..).unwrap_or_default())?)?,
            })
        }
        [
            "lock",
            "*",
            "(",
            kind,
            "*",
            ")",
            "(",
            base,
            sign,
            off,
            ")",
            op,
            src,
        ] => {
            let op = AtomicOp::all().find(|a| a.text() == *op);
            atomic(
                op.ok_or("unknown atomic operation")?,
                size(kind)?.0,
                [base, sign, off, src],
            )
        }
        [
            "*",
            "(",
            kind,
            "*",
            ")",
            "(",
            base,
            sign,
            off,
            ")",
            "=",
            src @ ..,
        ] => Ok(Op::Store {
            size: size(kind)?.0,
            base: address(base)?,
            off: offset(sign, off)?,
            src: match src {
                [reg] if register(reg).is_ok() => Operand::Reg(register(reg)?.1),
                imm => operand(imm, Width::W64)?,
            },
        }),
        [
            "store_release",
            "(",
            "(",
            kind,
            "*",
            ")",
            "(",
            base,
            sign,
            off,
            ")",
            ",",
            src,
            ")",
        ] => Ok(Op::StoreRelease {
            size: size(kind)?.0,
            base: address(base)?,
            off: offset(sign, off)?,
            src: register(src)?.1,
        }),
        [dst, op, src @ ..] => assignment(register(dst)?, op, src),
        _ => Err("not an instruction"),
    }
}

/// `dst OP ...`.
fn assignment((width, dst): (Width, Reg), op: &str, src: &[&str]) -> Parse<Op> {
    let same = |name: &str| match register(name)? {
        (w, r) if (w, r) == (width, dst) => Ok(()),
        _ => Err("both registers must be the same"),
    };
    if op != "=" {
        let op = AluOp::all()
            .find(|a| a.text() == op)
            .ok_or("unknown operator")?;
        let src = operand(src, width)?;
        return Ok(Op::Alu {
            width,
            op,
            dst,
            src,
        });
    }
    match src {
        ["-", reg] if register(reg).is_ok() => same(reg).map(|()| Op::Neg { width, dst }),
        ["*", "(", kind, "*", ")", "(", base, sign, off, ")"] => {
            let (size, signed) = size(kind)?;
            let (base, off) = (address(base)?, offset(sign, off)?);
            Ok(Op::Load {
                size,
                signed,
                dst,
                base,
                off,
            })
        }
        [
            "load_acquire",
            "(",
            "(",
            kind,
            "*",
            ")",
            "(",
            base,
            sign,
            off,
            ")",
            ")",
        ] => {
            let (size, base, off) = (size(kind)?.0, address(base)?, offset(sign, off)?);
            Ok(Op::LoadAcquire {
                size,
                dst,
                base,
                off,
            })
        }
        [
            name,
            "(",
            "(",
            kind,
            "*",
            ")",
            "(",
            base,
            sign,
            off,
            ")",
            ",",
            src,
            ")",
        ] => {
            same(src)?;
            let op = AtomicOp::all().find(|a| a.text() == *name);
            atomic(
                op.ok_or("unknown function")?,
                size(kind)?.0,
                [base, sign, off, src],
            )
        }
        [name, "(", base, sign, off, ",", rest @ .., ")"] => {
            let names = |(op, size): &(AtomicOp, Size)| {
                name.strip_prefix(op.text()) == Some(AtomicOp::suffix(*size))
            };
            let all = [AtomicOp::Xchg, AtomicOp::Cmpxchg]
                .into_iter()
                .flat_map(|op| [(op, Size::W), (op, Size::Dw)]);
            let (op, size) = all.into_iter().find(names).ok_or("unknown function")?;
            match (op, rest) {
                (AtomicOp::Xchg, [src]) => same(src)?,
                (AtomicOp::Cmpxchg, [r0, ",", _]) if dst == Reg::R0 => same(r0)?,
                _ => return Err("wrong arguments of the exchange"),
            }
            let src = rest.last().ok_or("expected a register")?;
            atomic(op, size, [base, sign, off, src])
        }
        ["var", "[", variable, "]"] => Ok(Op::LoadVariable {
            dst,
            variable: imm(&[variable])?.cast_unsigned(),
        }),
        ["map", "[", map, "]"] => {
            let map = imm(&[map])?.cast_unsigned();
            Ok(Op::LoadMap { dst, map })
        }
        ["map", "[", map, "]", "[", "0", "]", "+", offset] => {
            let (map, offset) = (
                imm(&[map])?.cast_unsigned(),
                imm(&[offset])?.cast_unsigned(),
            );
            Ok(Op::LoadMapValue { dst, map, offset })
        }
        ["(", cast, ")", reg] => {
            let op = AluOp::all()
                .find(|a| a.cast() == Some(cast))
                .ok_or("unknown cast")?;
            let src = Operand::Reg(register(reg)?.1);
            Ok(Op::Alu {
                width,
                op,
                dst,
                src,
            })
        }
        [value @ .., "ll"] => Ok(Op::LoadImm {
            dst,
            value: number(value)?.cast_unsigned(),
        }),
        [name, reg] if register(reg).is_ok() => {
            same(reg)?;
            for kind in [Swap::Le, Swap::Be, Swap::Bswap] {
                let bits = name
                    .strip_prefix(kind.text())
                    .and_then(|bits| bits.parse().ok());
                let size = Size::ALL
                    .into_iter()
                    .skip(1)
                    .find(|s| Some(s.bits()) == bits);
                if let Some(size) = size {
                    return Ok(Op::Swap { kind, size, dst });
                }
            }
            Err("unknown byte order conversion")
        }
        src => {
            let src = operand(src, width)?;
            Ok(Op::Alu {
                width,
                op: AluOp::Mov,
                dst,
                src,
            })
        }
    }
}

fn atomic(op: AtomicOp, size: Size, [base, sign, off, src]: [&str; 4]) -> Parse<Op> {
    let (base, off, src) = (address(base)?, offset(sign, off)?, register(src)?.1);
    Ok(Op::Atomic {
        size,
        op,
        base,
        off,
        src,
    })
}

fn register(text: &str) -> Parse<(Width, Reg)> {
    let (width, number) = match (text.strip_prefix('r'), text.strip_prefix('w')) {
        (Some(number), _) => (Width::W64, number),
        (_, Some(number)) => (Width::W32, number),
        _ => return Err("expected a register, r0 to r10 or w0 to w10"),
    };
    let reg = number.parse().ok().and_then(Reg::new);
    Ok((width, reg.ok_or("no such register")?))
}

/// A register that holds an address: always by its 64-bit name.
fn address(text: &str) -> Parse<Reg> {
    match register(text)? {
        (Width::W64, reg) => Ok(reg),
        _ => Err("an address is in a 64-bit register"),
    }
}

fn operand(tokens: &[&str], width: Width) -> Parse<Operand> {
    match tokens {
        [text] if text.starts_with(['r', 'w']) => match register(text)? {
            (w, reg) if w == width => Ok(Operand::Reg(reg)),
            _ => Err("registers of different widths"),
        },
        _ => Ok(Operand::Imm(imm(tokens)?)),
    }
}

/// The access size and whether it is signed, from a C type.
fn size(text: &str) -> Parse<(Size, bool)> {
    let signed = text.starts_with('s');
    let same = |s: &Size| s.text().get(1..) == text.get(1..) && text.starts_with(['u', 's']);
    let size = Size::ALL.into_iter().find(same);
    Ok((size.ok_or("unknown type")?, signed))
}

fn offset(sign: &str, digits: &str) -> Parse<i16> {
    short(imm(&[sign, digits])?)
}

fn short(value: i32) -> Parse<i16> {
    i16::try_from(value).map_err(|_| "the offset does not fit into 16 bits")
}

/// A 32-bit immediate, signed or (hexadecimal constants) unsigned.
fn imm(tokens: &[&str]) -> Parse<i32> {
    let value = number(tokens)?;
    let unsigned = u32::try_from(value).map(u32::cast_signed);
    i32::try_from(value)
        .or(unsigned)
        .map_err(|_| "the number does not fit into 32 bits")
}

fn number(tokens: &[&str]) -> Parse<i64> {
    let (negative, digits) = match tokens {
        [digits] | ["+", digits] => (false, *digits),
        ["-", digits] => (true, *digits),
        _ => return Err("expected a number"),
    };
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    let value = value.map_err(|_| "expected a number")?.cast_signed();
    Ok(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}
