// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every operation of RFC 9669 but packet access, on edge values, by every engine, against what the RFC's words say.
//!
//! The reference is written for reading, in 128-bit numbers where that spares a case; it shares nothing with the
//! interpreter.
mod support;

use std::{cell::Cell, sync::Arc};

use bpf_vm::isa::{AluOp, AtomicOp, Cond, Insn, Op, Operand, Reg, Size, Swap, Width};
use support::{run_all, unchecked};

/// Values at the edges of signs, widths and shifts.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    7,
    31,
    32,
    63,
    64,
    0x7f,
    0x80,
    0x8000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x0123_4567_89ab_cdef,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];
/// Immediates likewise.
const IMMEDIATES: [i32; 14] = [
    0,
    1,
    2,
    31,
    32,
    63,
    64,
    255,
    4095,
    4096,
    0x7fff_ffff,
    -1,
    -8,
    i32::MIN,
];

const BOTH: [Width; 2] = [Width::W32, Width::W64];

fn reg(number: u8) -> Reg {
    Reg::new(number).unwrap()
}

/// The low bits of a width, as unsigned and as signed numbers.
fn parts(width: Width, value: u64) -> (u128, i128) {
    match width {
        Width::W32 => (u128::from(value as u32), i128::from(value as i32)),
        Width::W64 => (u128::from(value), i128::from(value as i64)),
    }
}

fn bits(width: Width) -> u32 {
    match width {
        Width::W32 => 32,
        Width::W64 => 64,
    }
}

/// Section 4.1: `dst OP src`, in the width, zero extended.
fn alu(width: Width, op: AluOp, dst: u64, src: u64) -> u64 {
    let ((ud, sd), (us, ss)) = (parts(width, dst), parts(width, src));
    let shift = (us % u128::from(bits(width))) as u32;
    let value = match op {
        AluOp::Add => sd + ss,
        AluOp::Sub => sd - ss,
        AluOp::Mul => ud.wrapping_mul(us) as i128,
        AluOp::Div if us == 0 => 0,
        AluOp::Div => (ud / us) as i128,
        AluOp::Sdiv if ss == 0 => 0,
        AluOp::Sdiv => sd / ss,
        AluOp::Mod if us == 0 => ud as i128,
        AluOp::Mod => (ud % us) as i128,
        AluOp::Smod if ss == 0 => sd,
        AluOp::Smod => sd % ss,
        AluOp::Or => (ud | us) as i128,
        AluOp::And => (ud & us) as i128,
        AluOp::Xor => (ud ^ us) as i128,
        AluOp::Lsh => (ud << shift) as i128,
        AluOp::Rsh => (ud >> shift) as i128,
        AluOp::Arsh => sd >> shift,
        AluOp::Mov => us as i128,
        AluOp::Movsx8 => i128::from(us as i8),
        AluOp::Movsx16 => i128::from(us as i16),
        AluOp::Movsx32 => i128::from(us as i32),
    };
    match width {
        Width::W32 => u64::from(value as u32),
        Width::W64 => value as u64,
    }
}

/// Section 4.3: whether the jump is taken.
fn holds(width: Width, cond: Cond, dst: u64, src: u64) -> bool {
    let ((ud, sd), (us, ss)) = (parts(width, dst), parts(width, src));
    match cond {
        Cond::Eq => ud == us,
        Cond::Ne => ud != us,
        Cond::Gt => ud > us,
        Cond::Ge => ud >= us,
        Cond::Lt => ud < us,
        Cond::Le => ud <= us,
        Cond::Sgt => sd > ss,
        Cond::Sge => sd >= ss,
        Cond::Slt => sd < ss,
        Cond::Sle => sd <= ss,
        Cond::Set => ud & us != 0,
    }
}

/// Section 4.2, on a little-endian machine.
fn swap(kind: Swap, size: Size, value: u64) -> u64 {
    let bytes = size.bytes() as usize;
    let mut word = value.to_le_bytes();
    word[bytes..].fill(0);
    if kind != Swap::Le {
        word[..bytes].reverse();
    }
    u64::from_le_bytes(word)
}

/// A program that applies operations to every one of a list of words and writes what comes of each.
#[derive(Default)]
struct Table {
    insns: Vec<Insn>,
    want: Vec<u64>,
}

thread_local! {
    /// How many results were compared.
    static COMPARED: Cell<usize> = const { Cell::new(0) };
}

/// Register that holds the memory's address.
const MEMORY: u8 = 9;
/// The most results of one program, so that every offset fits.
const MOST: usize = 4000;

impl Table {
    fn push(&mut self, op: Op) {
        let (first, second) = op.encode();
        self.insns.push(first);
        self.insns.extend(second);
    }

    fn load(&mut self, dst: Reg, value: u64) {
        self.push(Op::LoadImm { dst, value });
    }

    /// Writes r0, which has to be `want` then.
    fn result(&mut self, want: u64) {
        self.result_in(Reg::R0, want);
    }

    fn result_in(&mut self, src: Reg, want: u64) {
        self.push(Op::Store {
            size: Size::Dw,
            base: reg(MEMORY),
            off: (8 * self.want.len()) as i16,
            src: Operand::Reg(src),
        });
        self.want.push(want);
        assert!(self.want.len() <= MOST);
    }

    /// Runs it by every engine.
    fn check(self, what: &str) {
        let mut program = Self::default();
        program.push(Op::Alu {
            width: Width::W64,
            op: AluOp::Mov,
            dst: reg(MEMORY),
            src: Operand::Reg(Reg::R1),
        });
        program.insns.extend(&self.insns);
        program.load(Reg::R0, 0);
        program.push(Op::Exit);
        let program = unchecked(program.insns, &[]).validate();
        let program = Arc::new(program.unwrap_or_else(|error| panic!("{what}: {error}")));
        let memory = vec![0x5a; 8 * self.want.len()];
        let (_, after) = run_all(&program, &memory, || (), Vec::new)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let (words, _) = after.as_chunks();
        for (number, (is, want)) in words.iter().zip(&self.want).enumerate() {
            let is = u64::from_le_bytes(*is);
            assert_eq!(
                is, *want,
                "{what}: result {number} is {is:#x}, not {want:#x}"
            );
        }
        assert_eq!(words.len(), self.want.len());
        COMPARED.set(COMPARED.get() + self.want.len());
    }
}

/// A register or an immediate with the value that the operation sees.
fn operands() -> Vec<(Option<u64>, Operand, u64)> {
    let registers = EDGES.map(|value| (Some(value), Operand::Reg(Reg::R1), value));
    let immediates = IMMEDIATES.map(|imm| (None, Operand::Imm(imm), i64::from(imm) as u64));
    registers.into_iter().chain(immediates).collect()
}

#[test]
fn arithmetic() {
    for op in AluOp::all() {
        for width in BOTH {
            if op == AluOp::Movsx32 && width == Width::W32 {
                continue; // not an instruction
            }
            let mut table = Table::default();
            for (register, src, value) in operands() {
                if op.is_sign_extension() && register.is_none() {
                    continue; // likewise
                }
                for dst in EDGES {
                    table.load(Reg::R0, dst);
                    if let Some(value) = register {
                        table.load(Reg::R1, value);
                    }
                    let dst_reg = Reg::R0;
                    table.push(Op::Alu {
                        width,
                        op,
                        dst: dst_reg,
                        src,
                    });
                    table.result(alu(width, op, dst, value));
                }
            }
            table.check(&format!("{op:?} {width:?}"));
        }
    }
    // 14 operations in two widths, two sign extensions in two widths, one in one.
    let with_register = EDGES.len() * EDGES.len();
    let with_immediate = IMMEDIATES.len() * EDGES.len();
    let want = 28 * (with_register + with_immediate) + 5 * with_register;
    assert_eq!(COMPARED.get(), want);
}

/// The operands may be one register.
#[test]
fn arithmetic_on_one_register() {
    for op in AluOp::all() {
        for width in BOTH {
            if op == AluOp::Movsx32 && width == Width::W32 {
                continue;
            }
            let mut table = Table::default();
            for value in EDGES {
                table.load(Reg::R0, value);
                table.push(Op::Alu {
                    width,
                    op,
                    dst: Reg::R0,
                    src: Operand::Reg(Reg::R0),
                });
                table.result(alu(width, op, value, value));
            }
            table.check(&format!("{op:?} {width:?} of one register"));
        }
    }
}

#[test]
fn negation_and_byte_order() {
    let mut table = Table::default();
    for value in EDGES {
        for width in BOTH {
            table.load(Reg::R0, value);
            table.push(Op::Neg {
                width,
                dst: Reg::R0,
            });
            table.result(alu(width, AluOp::Sub, 0, value));
        }
        for kind in [Swap::Le, Swap::Be, Swap::Bswap] {
            for size in [Size::H, Size::W, Size::Dw] {
                table.load(Reg::R0, value);
                table.push(Op::Swap {
                    kind,
                    size,
                    dst: Reg::R0,
                });
                table.result(swap(kind, size, value));
            }
        }
    }
    table.check("negation and byte order");
}

#[test]
fn jumps() {
    for cond in Cond::all() {
        for width in BOTH {
            let mut table = Table::default();
            for (register, src, value) in operands() {
                for dst in EDGES {
                    table.load(reg(2), dst);
                    if let Some(value) = register {
                        table.load(Reg::R1, value);
                    }
                    let (w64, mov) = (Width::W64, AluOp::Mov);
                    let set = |imm| Op::Alu {
                        width: w64,
                        op: mov,
                        dst: Reg::R0,
                        src: Operand::Imm(imm),
                    };
                    table.push(set(1));
                    table.push(Op::If {
                        width,
                        cond,
                        dst: reg(2),
                        src,
                        off: 1,
                    });
                    table.push(set(0));
                    table.result(holds(width, cond, dst, value).into());
                }
            }
            table.check(&format!("{cond:?} {width:?}"));
        }
    }
    let per_condition = (EDGES.len() + IMMEDIATES.len()) * EDGES.len();
    assert_eq!(COMPARED.get(), 22 * per_condition);
}

/// Section 5.1 and 5.2: sizes, zero and sign extension, immediates, the stack.
#[test]
fn loads_and_stores() {
    let mut table = Table::default();
    for value in EDGES {
        for size in Size::ALL {
            let unused = 64 - size.bits();
            let zero = value << unused >> unused;
            for base in [reg(MEMORY), Reg::FP] {
                // The result's own place, or one on the stack.
                let off = if base == Reg::FP {
                    -16
                } else {
                    (8 * table.want.len()) as i16
                };
                table.load(Reg::R1, value);
                table.push(Op::Store {
                    size,
                    base,
                    off,
                    src: Operand::Reg(Reg::R1),
                });
                for signed in [false, true] {
                    if signed && size == Size::Dw {
                        continue;
                    }
                    let dst = if signed { reg(3) } else { reg(2) };
                    table.push(Op::Load {
                        size,
                        signed,
                        dst,
                        base,
                        off,
                    });
                }
                table.result_in(reg(2), zero);
                if size != Size::Dw {
                    let signed = ((value << unused) as i64 >> unused) as u64;
                    table.result_in(reg(3), signed);
                }
            }
        }
    }
    for imm in IMMEDIATES {
        for size in Size::ALL {
            let off = -8;
            let (base, src) = (Reg::FP, Operand::Imm(imm));
            table.push(Op::Store {
                size: Size::Dw,
                base,
                off,
                src: Operand::Imm(0),
            });
            table.push(Op::Store {
                size,
                base,
                off,
                src,
            });
            table.push(Op::Load {
                size: Size::Dw,
                signed: false,
                dst: Reg::R0,
                base,
                off,
            });
            let unused = 64 - size.bits();
            table.result((i64::from(imm) as u64) << unused >> unused);
        }
    }
    table.check("loads and stores");
}

/// Section 5.3, and the ordered accesses that Linux adds: memory, source and r0 afterwards.
#[test]
fn atomics() {
    for op in AtomicOp::all() {
        for size in [Size::W, Size::Dw] {
            let width = if size == Size::W {
                Width::W32
            } else {
                Width::W64
            };
            let mut table = Table::default();
            for old in EDGES {
                for operand in [0, 1, 0x8000_0000, 0x0123_4567_89ab_cdef, u64::MAX] {
                    for compare in [old, !old, old ^ (1 << 63)] {
                        let (base, off) = (Reg::FP, -8);
                        table.load(Reg::R1, old);
                        table.push(Op::Store {
                            size: Size::Dw,
                            base,
                            off,
                            src: Operand::Reg(Reg::R1),
                        });
                        table.load(Reg::R0, compare);
                        table.load(reg(2), operand);
                        table.push(Op::Atomic {
                            size,
                            op,
                            base,
                            off,
                            src: reg(2),
                        });
                        table.push(Op::Load {
                            size: Size::Dw,
                            signed: false,
                            dst: reg(3),
                            base,
                            off,
                        });
                        let low = |value: u64| parts(width, value).0 as u64;
                        let equal = low(old) == low(compare);
                        let new = match op {
                            AtomicOp::Add | AtomicOp::FetchAdd => {
                                alu(width, AluOp::Add, old, operand)
                            }
                            AtomicOp::Or | AtomicOp::FetchOr => low(old | operand),
                            AtomicOp::And | AtomicOp::FetchAnd => low(old & operand),
                            AtomicOp::Xor | AtomicOp::FetchXor => low(old ^ operand),
                            AtomicOp::Xchg => low(operand),
                            AtomicOp::Cmpxchg if equal => low(operand),
                            AtomicOp::Cmpxchg => low(old),
                        };
                        // A 32-bit operation leaves the word's upper half.
                        let kept = if size == Size::W { old >> 32 << 32 } else { 0 };
                        table.result_in(reg(3), kept | new);
                        let (r0, source) = match op {
                            AtomicOp::Cmpxchg => (low(old), operand),
                            _ if op.fetches() => (compare, low(old)),
                            _ => (compare, operand),
                        };
                        table.result(r0);
                        table.result_in(reg(2), source);
                    }
                }
            }
            table.check(&format!("{op:?} {size:?}"));
        }
    }
    let mut table = Table::default();
    for value in EDGES {
        for size in Size::ALL {
            let (base, off) = (Reg::FP, -8);
            table.load(Reg::R1, value);
            table.push(Op::Store {
                size: Size::Dw,
                base,
                off,
                src: Operand::Imm(0),
            });
            table.push(Op::StoreRelease {
                size,
                base,
                off,
                src: Reg::R1,
            });
            table.push(Op::LoadAcquire {
                size,
                dst: Reg::R0,
                base,
                off,
            });
            let unused = 64 - size.bits();
            table.result(value << unused >> unused);
        }
    }
    table.check("acquire and release");
}

/// An exclusive store that fails is tried again with the same source, r10 too: what cores add and take away is gone.
#[test]
#[cfg(target_arch = "aarch64")]
fn atomics_with_r10_under_contention() {
    let text = "r3 = 20000
        again: lock *(u64 *)(r1 + 0) += r10
        r4 = r10
        r4 = -r4
        lock *(u64 *)(r1 + 0) += r4
        r3 += -1
        if r3 != 0 goto again
        r0 = 0
        exit";
    let program = support::program(text, &[]);
    for variant in support::VARIANTS {
        let memory = support::Buffer::new(&[0; 8]);
        let run = || {
            let pages = support::native::Pages::new(1 << 16);
            pages.load(&support::compile(&program, pages.address(), variant));
            // SAFETY: the program only touches its stack and the memory's one word.
            unsafe { pages.run(&bpf_vm::attachment::Attachment::NONE, memory.arguments()) }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(run);
            }
        });
        assert_eq!(memory.bytes(), [0; 8], "{variant:?}");
    }
}
