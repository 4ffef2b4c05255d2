// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random programs that are valid, end, and access only what they may, by a seed or by a fuzzer's bytes.
//!
//! r1 points to [`MEMORY`] bytes and map 0 is an array of three 8-byte values. At the end the registers are written to
//! the memory's upper half.
use bpf_vm::isa::{AluOp, AtomicOp, Cond, Insn, Op, Operand, Reg, Size, Swap, Width};

/// Bytes that r9 points to; the upper half takes the registers at the end.
pub(crate) const MEMORY: usize = 256;
/// `bpf_loop`.
const LOOP: u32 = 181;
/// Bytes of stack that the programs use, all written first.
const STACK: i16 = 32;

/// Choices: those given, two bytes each, then xorshift64* (Vigna, 2014).
struct Random<'a> {
    state: u64,
    choices: &'a [u8],
}

impl Random<'_> {
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        if let Some((choice, rest)) = self.choices.split_first_chunk() {
            self.choices = rest;
            return usize::from(u16::from_le_bytes(*choice)) % limit;
        }
        (self.next() >> 32) as usize % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A value that is likely to be an edge of something.
    fn value(&mut self) -> u64 {
        let bit = 1_u64 << self.below(64);
        match self.below(6) {
            0 => self.next(),
            1 => bit,
            2 => bit - 1,
            3 => bit.wrapping_neg(),
            4 => self.next() & 0xffff,
            _ => self.pick(&[0, 1, u64::MAX, 1 << 31, 0x7fff_ffff, 0xffff_ffff, 1 << 63]),
        }
    }

    fn imm(&mut self) -> i32 {
        let value = self.value();
        if self.below(2) == 0 {
            value as i32
        } else {
            (value as i32) >> 20
        }
    }
}

/// An instruction, and the item that it jumps to or the function that it calls.
type Item = (Op, Option<usize>);

struct Generator<'a> {
    random: Random<'a>,
    items: Vec<Item>,
    /// Whether r9 points to the memory, as it does in the entry function.
    memory: bool,
    /// Whether this is a callback, whose r8 points into its caller's stack.
    callback: bool,
    /// No register of this set is written.
    kept: Vec<Reg>,
    /// Local functions that may be called; callbacks come after them.
    functions: usize,
    /// Callbacks that may be handed to `bpf_loop`.
    callbacks: usize,
    /// The rest of a pattern that has begun: jumps may lead to each of its instructions.
    pending: std::collections::VecDeque<Op>,
}

fn reg(number: usize) -> Reg {
    Reg::new(number as u8).unwrap()
}

impl Generator<'_> {
    fn push(&mut self, op: Op) {
        self.items.push((op, None));
    }

    fn source(&mut self) -> Reg {
        // r9, and r8 in a callback, hold addresses, which the engines do not have in common.
        let numbers = if self.callback { 8 } else { 9 };
        reg(self.random.below(numbers))
    }

    fn destination(&mut self) -> Reg {
        loop {
            let reg = self.source();
            if !self.kept.contains(&reg) {
                return reg;
            }
        }
    }

    fn constant(&mut self, dst: Reg) {
        let value = self.random.value();
        self.push(Op::LoadImm { dst, value });
    }

    fn width(&mut self) -> Width {
        self.random.pick(&[Width::W32, Width::W64])
    }

    fn operand(&mut self) -> Operand {
        if self.random.below(2) == 0 {
            Operand::Reg(self.source())
        } else {
            Operand::Imm(self.random.imm())
        }
    }

    /// A base and an offset that is good for an access of that size.
    fn place(&mut self, size: Size, aligned: bool) -> (Reg, i16) {
        let bytes = size.bytes() as i16;
        let step = if aligned { bytes } else { 1 };
        let (base, low, high) = if self.memory && self.random.below(2) == 0 {
            (reg(9), 0, MEMORY as i16 / 2)
        } else {
            (Reg::FP, -STACK, 0)
        };
        let room = (high - low - bytes) / step + 1;
        (base, low + step * self.random.below(room as usize) as i16)
    }

    fn simple(&mut self) {
        let (dst, width) = (self.destination(), self.width());
        let size = self.random.pick(&Size::ALL);
        let op = match self.random.below(12) {
            0..5 => {
                let ops: Vec<_> = AluOp::all().collect();
                let op = self.random.pick(&ops);
                let src = match self.operand() {
                    Operand::Imm(_) if op.is_sign_extension() => Operand::Reg(self.source()),
                    src => src,
                };
                let width = if op == AluOp::Movsx32 {
                    Width::W64
                } else {
                    width
                };
                Op::Alu {
                    width,
                    op,
                    dst,
                    src,
                }
            }
            5 => Op::Neg { width, dst },
            6 => {
                let kind = self.random.pick(&[Swap::Le, Swap::Be, Swap::Bswap]);
                let size = self.random.pick(&[Size::H, Size::W, Size::Dw]);
                Op::Swap { kind, size, dst }
            }
            7 | 8 => {
                let (base, off) = self.place(size, false);
                let signed = size != Size::Dw && self.random.below(2) == 0;
                Op::Load {
                    size,
                    signed,
                    dst,
                    base,
                    off,
                }
            }
            9 => {
                let (base, off) = self.place(size, false);
                Op::Store {
                    size,
                    base,
                    off,
                    src: self.operand(),
                }
            }
            10 => {
                let size = self.random.pick(&[Size::W, Size::Dw]);
                let (base, off) = self.place(size, true);
                let ops: Vec<_> = AtomicOp::all().collect();
                let op = match self.random.pick(&ops) {
                    AtomicOp::Cmpxchg if self.kept.contains(&Reg::R0) => AtomicOp::Add,
                    op => op,
                };
                Op::Atomic {
                    size,
                    op,
                    base,
                    off,
                    src: dst,
                }
            }
            _ => {
                let (base, off) = self.place(size, true);
                if self.random.below(2) == 0 {
                    Op::LoadAcquire {
                        size,
                        dst,
                        base,
                        off,
                    }
                } else {
                    Op::StoreRelease {
                        size,
                        base,
                        off,
                        src: dst,
                    }
                }
            }
        };
        self.push(op);
    }

    fn alu(&self, width: Width, op: AluOp, dst: Reg, src: Operand) -> Op {
        Op::Alu {
            width,
            op,
            dst,
            src,
        }
    }

    /// What compilers make and A64 has an instruction for: it is emitted one by one, so that jumps lead into it.
    fn pattern(&mut self) {
        let (a, b) = (self.destination(), self.destination());
        let (c, other) = (self.source(), self.source());
        let (width, inner) = (self.width(), self.width());
        let bits = if width == Width::W64 { 64 } else { 32 };
        let by = 1 + self.random.below(bits - 1) as i32;
        let value = self.random.imm();
        let small = self.random.below(70) as i32;
        let (reg, imm) = (Operand::Reg, Operand::Imm);
        let mask = self.random.pick(&[255, 65535, 1, 15, 256, -256, 0x0ff0]);
        let arithmetic = [
            AluOp::Add,
            AluOp::Sub,
            AluOp::Or,
            AluOp::And,
            AluOp::Xor,
            AluOp::Mul,
        ];
        let (op, then) = (self.random.pick(&arithmetic), self.random.pick(&arithmetic));
        let shift = self.random.pick(&[AluOp::Lsh, AluOp::Rsh, AluOp::Arsh]);
        let back = self.random.pick(&[AluOp::Lsh, AluOp::Rsh, AluOp::Arsh]);
        let extend = self.random.pick(&[AluOp::Movsx8, AluOp::Movsx16]);
        let place = self.place(Size::B, false);
        let alu = |width, op, dst, src| self.alu(width, op, dst, src);
        let copy = alu(Width::W64, AluOp::Mov, a, reg(c));
        let steps: Vec<Op> = match self.random.state as usize >> 20 & 15 {
            0 => vec![copy, alu(width, op, a, reg(other))],
            1 => vec![
                copy,
                alu(inner, shift, a, imm(by % 32)),
                alu(width, op, b, reg(a)),
            ],
            // A rotation.
            2 => vec![
                copy,
                alu(width, AluOp::Rsh, a, imm(by)),
                alu(Width::W64, AluOp::Mov, b, reg(c)),
                alu(width, AluOp::Lsh, b, imm(bits as i32 - by)),
                alu(width, self.random_or(), a, reg(b)),
            ],
            3 => vec![alu(inner, AluOp::Mul, a, reg(c)), alu(width, op, b, reg(a))],
            4 => vec![
                alu(inner, AluOp::Mul, a, imm(value)),
                alu(width, AluOp::Add, a, imm(mask)),
            ],
            5 => vec![
                alu(inner, shift, a, imm(small)),
                alu(width, back, a, imm(by)),
                alu(width, AluOp::And, a, imm(mask)),
            ],
            6 => vec![
                alu(Width::W32, AluOp::Mov, a, reg(c)),
                alu(width, op, b, reg(a)),
                alu(inner, AluOp::Mov, b, reg(b)),
            ],
            7 => vec![
                alu(inner, AluOp::Xor, a, imm(-1)),
                alu(width, op, b, reg(a)),
            ],
            8 => vec![
                copy,
                alu(width, op, b, reg(a)),
                alu(Width::W64, AluOp::Mov, a, reg(b)),
                alu(inner, then, b, reg(a)),
            ],
            9 => vec![
                alu(width, extend, a, reg(c)),
                alu(inner, shift, a, imm(small % 5)),
                alu(Width::W64, op, b, reg(a)),
            ],
            // A quotient and what is left.
            10 => vec![
                copy,
                alu(width, AluOp::Div, a, reg(other)),
                alu(width, AluOp::Mul, a, reg(other)),
                alu(width, AluOp::Sub, b, reg(a)),
            ],
            11 => vec![
                alu(inner, AluOp::Add, a, imm(value)),
                alu(width, AluOp::Add, a, imm(mask)),
                alu(width, AluOp::Sub, a, imm(small)),
            ],
            12 => vec![
                alu(Width::W64, AluOp::Mov, a, imm(value)),
                alu(width, op, b, reg(a)),
                alu(inner, then, a, reg(c)),
            ],
            // A byte's range.
            13 => vec![
                Op::Load {
                    size: Size::B,
                    signed: false,
                    dst: a,
                    base: place.0,
                    off: place.1,
                },
                alu(inner, AluOp::Add, a, imm(-small)),
                alu(width, AluOp::And, a, imm(255)),
            ],
            14 => vec![
                Op::Load {
                    size: Size::B,
                    signed: false,
                    dst: a,
                    base: place.0,
                    off: place.1,
                },
                alu(width, extend, a, reg(a)),
            ],
            _ => vec![
                alu(width, shift, a, imm(small)),
                alu(inner, AluOp::And, a, imm(mask)),
            ],
        };
        self.pending.extend(steps);
        // Then somebody looks at it.
        let conds: Vec<_> = Cond::all().collect();
        let (cond, look) = (self.random.pick(&conds), self.random.below(4));
        let src = match look {
            0 => Operand::Reg(b),
            1 => Operand::Imm(small),
            2 => Operand::Imm(0),
            _ => return,
        };
        let around = self.random.below(2) == 0;
        let (width, dst) = (width, a);
        let rest: Vec<_> = self.pending.drain(..).collect();
        rest.into_iter().for_each(|op| self.push(op));
        let to = self.items.len() + 2;
        let test = Op::If {
            width,
            cond,
            dst,
            src,
            off: 0,
        };
        self.items.push((test, Some(to)));
        // Around a move, or anything else.
        let value = self.random.pick(&[0, 1, -1, 7]);
        let moved = if around {
            Operand::Reg(c)
        } else {
            Operand::Imm(value)
        };
        self.push(self.alu(Width::W64, AluOp::Mov, b, moved));
    }

    fn random_or(&self) -> AluOp {
        [AluOp::Or, AluOp::Add, AluOp::Xor][self.random.state as usize >> 9 & 1]
    }

    /// r10 as the source of an operation. Its value differs from engine to engine, so it is taken out again before
    /// anybody looks: no jump leads here, and no copy stays.
    fn frame_pointer(&mut self) {
        let (a, b) = (self.destination(), self.destination());
        if a == b {
            return self.pairs();
        }
        let (reg, imm, fp) = (Operand::Reg, Operand::Imm, Operand::Reg(Reg::FP));
        let (w64, value, choice) = (Width::W64, self.random.imm(), self.random.below(12));
        let (base, off) = self.place(Size::Dw, true);
        let alu = |op, dst, src| self.alu(w64, op, dst, src);
        let store = |src| Op::Store {
            size: Size::Dw,
            base,
            off,
            src,
        };
        let load = |dst| Op::Load {
            size: Size::Dw,
            signed: false,
            dst,
            base,
            off,
        };
        let atomic = |op, base, off| Op::Atomic {
            size: Size::Dw,
            op,
            base,
            off,
            src: Reg::FP,
        };
        let exchanged = |op| atomic(op, base, off);
        let release = Op::StoreRelease {
            size: Size::Dw,
            base,
            off,
            src: Reg::FP,
        };
        // Where r10 is in the end: `b`, from which r10 is taken.
        let steps = match choice {
            0 => vec![store(fp), load(b)],
            1 => vec![release, load(b)],
            2 => vec![store(imm(value)), exchanged(AtomicOp::Add), load(b)],
            3 => vec![
                store(imm(value)),
                exchanged(AtomicOp::Xor),
                load(b),
                alu(AluOp::Xor, b, imm(value)),
            ],
            4 => vec![store(imm(0)), exchanged(AtomicOp::Or), load(b)],
            5 => vec![store(imm(-1)), exchanged(AtomicOp::And), load(b)],
            6 => vec![
                alu(AluOp::Mov, b, imm(value)),
                alu(AluOp::Add, b, fp),
                alu(AluOp::Add, b, reg(a)),
            ],
            7 => vec![
                alu(AluOp::Mov, b, fp),
                Op::Neg { width: w64, dst: b },
                alu(AluOp::Add, b, fp),
                alu(AluOp::Add, b, fp),
            ],
            8 => vec![
                alu(AluOp::Mov, b, fp),
                alu(AluOp::Mul, b, imm(value)),
                alu(AluOp::Mov, a, fp),
                alu(AluOp::Mul, a, imm(value)),
                alu(AluOp::Sub, b, reg(a)),
                alu(AluOp::Mov, a, imm(value)),
                alu(AluOp::Add, b, fp),
            ],
            // The old value is the one compared with, or the address.
            9 if !self.kept.contains(&Reg::R0) && b != Reg::R0 => vec![
                alu(AluOp::Mov, Reg::R0, imm(value)),
                store(reg(Reg::R0)),
                exchanged(AtomicOp::Cmpxchg),
                load(b),
            ],
            10 if !self.kept.contains(&Reg::R0) && b != Reg::R0 => vec![
                alu(AluOp::Mov, Reg::R0, reg(base)),
                alu(AluOp::Add, Reg::R0, imm(off.into())),
                store(reg(Reg::R0)),
                atomic(AtomicOp::Cmpxchg, Reg::R0, 0),
                alu(AluOp::Sub, Reg::R0, reg(base)),
                load(b),
            ],
            _ => vec![
                alu(AluOp::Mov, b, fp),
                Op::Swap {
                    kind: Swap::Bswap,
                    size: Size::Dw,
                    dst: b,
                },
                store(reg(b)),
                load(b),
                Op::Swap {
                    kind: Swap::Be,
                    size: Size::Dw,
                    dst: b,
                },
            ],
        };
        let end = [alu(AluOp::Sub, b, fp), store(imm(value))];
        steps.into_iter().chain(end).for_each(|op| self.push(op));
    }

    /// An element of the memory by its number. Addresses stay in no register, so no jump leads here.
    fn addresses(&mut self) {
        let (index, base) = (self.destination(), self.destination());
        if index == base {
            return self.pairs();
        }
        let (size, source) = (self.random.pick(&Size::ALL), self.source());
        let (reg, imm) = (Operand::Reg, Operand::Imm);
        let (w64, mov) = (Width::W64, AluOp::Mov);
        let narrow = self.width();
        let memory = self::reg(9);
        let log2 = size.log2() as i32;
        let scale = [0, log2, 1][self.random.below(3)];
        let scale = if scale > 3 { 0 } else { scale };
        let swapped = self.random.below(2) == 0;
        let (sum, part) = if swapped {
            (index, base)
        } else {
            (base, index)
        };
        for op in [
            self.alu(w64, mov, index, reg(source)),
            self.alu(narrow, AluOp::And, index, imm(15)),
            self.alu(narrow, mov, index, reg(index)),
            self.alu(w64, AluOp::Lsh, index, imm(scale)),
            self.alu(w64, mov, base, reg(memory)),
            self.alu(w64, AluOp::Add, sum, reg(part)),
        ] {
            self.push(op);
        }
        let off = [0, 0, 8][self.random.below(3)];
        let value = self.source();
        let store = self.random.below(2) == 0 && ![base, index].contains(&value);
        if store {
            let src = reg(value);
            self.push(Op::Store {
                size,
                base: sum,
                off,
                src,
            });
        }
        let signed = size != Size::Dw && self.random.below(2) == 0;
        self.push(Op::Load {
            size,
            signed,
            dst: sum,
            base: sum,
            off,
        });
        self.constant(part);
    }

    /// Accesses one after the other by an address that grows.
    fn grows(&mut self) {
        let (base, value) = (self.destination(), self.destination());
        if base == value {
            return self.pairs();
        }
        let (width, size) = (Width::W64, self.random.pick(&Size::ALL));
        let memory = Operand::Reg(reg(9));
        self.push(self.alu(width, AluOp::Mov, base, memory));
        for _ in 0..1 + self.random.below(4) {
            let by = Operand::Imm(size.bytes() as i32);
            let grow = self.alu(width, AluOp::Add, base, by);
            let before = self.random.below(3) == 0;
            if before {
                self.push(grow);
            }
            let off = [0, 0, size.bytes() as i16][self.random.below(3)];
            let (dst, signed) = (value, false);
            let access = if self.random.below(2) == 0 {
                Op::Load {
                    size,
                    signed,
                    dst,
                    base,
                    off,
                }
            } else {
                let src = Operand::Reg(value);
                Op::Store {
                    size,
                    base,
                    off,
                    src,
                }
            };
            self.push(access);
            if self.random.below(3) == 0 {
                let op = self.alu(
                    width,
                    AluOp::Xor,
                    value,
                    Operand::Imm(self.random.state as i32),
                );
                self.push(op);
            }
            if !before {
                self.push(grow);
            }
        }
        self.constant(base);
    }

    /// Two accesses side by side.
    fn pairs(&mut self) {
        let size = self.random.pick(&[Size::W, Size::Dw]);
        let bytes = size.bytes() as i16;
        let (base, off) = self.place(Size::Dw, true);
        let off = if off == -8 { -16 } else { off };
        let store = self.random.below(2) == 0;
        let mut offs = [off, off + bytes];
        if self.random.below(2) == 0 {
            offs.reverse();
        }
        for off in offs {
            let op = if store {
                let src = self.operand();
                Op::Store {
                    size,
                    base,
                    off,
                    src,
                }
            } else {
                let dst = self.destination();
                Op::Load {
                    size,
                    signed: false,
                    dst,
                    base,
                    off,
                }
            };
            self.push(op);
        }
    }

    /// Gives r1 to r5 values after a call, which leaves them undefined.
    fn refill(&mut self) {
        Reg::arguments().for_each(|reg| self.constant(reg));
    }

    fn lookup(&mut self) {
        let (w64, mov) = (Width::W64, AluOp::Mov);
        let index = self.random.below(4) as i32;
        let (base, off) = (Reg::FP, -4);
        self.push(Op::Store {
            size: Size::W,
            base,
            off,
            src: Operand::Imm(index),
        });
        self.push(Op::Alu {
            width: w64,
            op: mov,
            dst: Reg::R2,
            src: Operand::Reg(Reg::FP),
        });
        self.push(Op::Alu {
            width: w64,
            op: AluOp::Add,
            dst: Reg::R2,
            src: Operand::Imm(-4),
        });
        self.push(Op::LoadMap {
            dst: Reg::R1,
            map: 0,
        });
        self.push(Op::Call { helper: 1 });
        let after = self.items.len() + 2;
        let null = Op::If {
            width: w64,
            cond: Cond::Eq,
            dst: Reg::R0,
            src: Operand::Imm(0),
            off: 0,
        };
        self.items.push((null, Some(after)));
        let src = Operand::Reg(reg(6));
        self.push(Op::Store {
            size: Size::Dw,
            base: Reg::R0,
            off: 0,
            src,
        });
        self.refill();
    }

    fn repeat(&mut self) {
        let (width, counter) = (Width::W64, reg(8));
        let times = 1 + self.random.below(5) as i32;
        let (mov, add) = (AluOp::Mov, AluOp::Add);
        self.push(Op::Alu {
            width,
            op: mov,
            dst: counter,
            src: Operand::Imm(times),
        });
        let start = self.items.len();
        self.kept.push(counter);
        for _ in 0..1 + self.random.below(6) {
            self.simple();
        }
        self.kept.pop();
        self.push(Op::Alu {
            width,
            op: add,
            dst: counter,
            src: Operand::Imm(-1),
        });
        let again = Op::If {
            width,
            cond: Cond::Ne,
            dst: counter,
            src: Operand::Imm(0),
            off: 0,
        };
        self.items.push((again, Some(start)));
    }

    /// Calls a local function, directly or by register.
    fn call_function(&mut self) {
        let function = Some(self.random.below(self.functions));
        if self.random.below(3) == 0 && !self.kept.contains(&Reg::R0) {
            let target = Reg::R0;
            let dst = target;
            self.items
                .push((Op::LoadFunction { dst, off: 0 }, function));
            self.push(Op::CallReg { target });
        } else {
            self.items.push((Op::CallLocal { off: 0 }, function));
        }
        self.refill();
    }

    /// `bpf_loop` with a callback that is given a place on this function's stack.
    fn call_back(&mut self) {
        let callback = Some(self.functions + self.random.below(self.callbacks));
        let (width, op) = (Width::W64, AluOp::Mov);
        let mut set = |dst, src| {
            self.items.push((
                Op::Alu {
                    width,
                    op,
                    dst,
                    src,
                },
                None,
            ));
        };
        set(reg(3), Operand::Reg(Reg::FP));
        set(reg(4), Operand::Imm(0));
        set(Reg::R1, Operand::Imm(0));
        let times = self.random.below(6) as i32;
        let add = AluOp::Add;
        for (dst, imm) in [(reg(3), -i32::from(STACK)), (Reg::R1, times)] {
            let src = Operand::Imm(imm);
            self.push(Op::Alu {
                width,
                op: add,
                dst,
                src,
            });
        }
        let dst = Reg::R2;
        self.items
            .push((Op::LoadFunction { dst, off: 0 }, callback));
        self.push(Op::Call { helper: LOOP });
        self.refill();
    }

    /// The body of a callback: r1 the round, r2 a place on the caller's stack.
    fn callback(&mut self) {
        let (place, width) = (reg(8), Width::W64);
        self.push(Op::Alu {
            width,
            op: AluOp::Mov,
            dst: place,
            src: Operand::Reg(Reg::R2),
        });
        self.constant(Reg::R2);
        self.begin(&[Reg::R1, Reg::R2, place]);
        for _ in 0..1 + self.random.below(8) {
            self.simple();
        }
        let src = Operand::Reg(self.source());
        self.push(Op::Atomic {
            size: Size::Dw,
            op: AtomicOp::Add,
            base: place,
            off: 0,
            src: reg(3),
        });
        // Goes on after 0, stops after 1.
        for (op, src) in [(AluOp::Mov, src), (AluOp::And, Operand::Imm(1))] {
            self.push(Op::Alu {
                width,
                op,
                dst: Reg::R0,
                src,
            });
        }
        self.push(Op::Exit);
    }

    fn body(&mut self, length: usize) {
        let mut jumps = Vec::new();
        for _ in 0..length {
            // Jumps lead to the start of one of the next pieces.
            let here = self.items.len();
            jumps.retain(|&(from, left): &(usize, usize)| {
                if left == 0 {
                    self.items[from].1 = Some(here);
                }
                left != 0
            });
            jumps.iter_mut().for_each(|(_, left)| *left -= 1);
            if let Some(op) = self.pending.pop_front() {
                self.push(op);
                continue;
            }
            match self.random.below(29) {
                28 => self.frame_pointer(),
                20..26 => self.pattern(),
                26 if self.memory => self.addresses(),
                27 if self.memory => self.grows(),
                26 | 27 => self.pairs(),
                0..12 => self.simple(),
                12..16 => {
                    let conds: Vec<_> = Cond::all().collect();
                    let cond = self.random.pick(&conds);
                    let (width, dst, src) = (self.width(), self.source(), self.operand());
                    jumps.push((here, self.random.below(6)));
                    self.push(Op::If {
                        width,
                        cond,
                        dst,
                        src,
                        off: 0,
                    });
                }
                16 => {
                    jumps.push((here, self.random.below(3)));
                    let long = self.random.below(2) == 0;
                    self.push(Op::Goto { off: 0, long });
                }
                17 => self.repeat(),
                18 if self.memory => self.lookup(),
                18 | 19 if self.functions > 0 => self.call_function(),
                19 if self.callbacks > 0 => self.call_back(),
                _ => {
                    self.push(Op::Call { helper: 8 });
                    self.refill();
                }
            }
        }
        let rest = std::mem::take(&mut self.pending);
        rest.into_iter().for_each(|op| self.push(op));
        let end = self.items.len();
        jumps
            .into_iter()
            .for_each(|(from, _)| self.items[from].1 = Some(end));
    }

    /// Writes the registers and the stack that the function did not get from its caller.
    fn begin(&mut self, given: &[Reg]) {
        for number in 0..9 {
            if !given.contains(&reg(number)) {
                self.constant(reg(number));
            }
        }
        for off in (-STACK..0).step_by(8) {
            let src = self.operand();
            self.push(Op::Store {
                size: Size::Dw,
                base: Reg::FP,
                off,
                src,
            });
        }
    }
}

/// Functions to slots: jumps within each, calls between them.
fn link(functions: &[Vec<Item>]) -> Vec<Insn> {
    let mut starts = Vec::new();
    let mut slot = 0;
    for items in functions {
        let mut places: Vec<i32> = Vec::new();
        for (op, _) in items {
            places.push(slot);
            slot += op.slots() as i32;
        }
        starts.push(places);
    }
    let mut insns = Vec::new();
    for (items, places) in functions.iter().zip(&starts) {
        for ((op, to), slot) in items.iter().zip(places) {
            let jump = |to: i32| to - slot - 1;
            let op = match (*op, to) {
                (
                    Op::If {
                        width,
                        cond,
                        dst,
                        src,
                        ..
                    },
                    Some(to),
                ) => {
                    let off = jump(places[*to]) as i16;
                    Op::If {
                        width,
                        cond,
                        dst,
                        src,
                        off,
                    }
                }
                (Op::Goto { long, .. }, Some(to)) => Op::Goto {
                    off: jump(places[*to]),
                    long,
                },
                (Op::CallLocal { .. }, Some(function)) => {
                    // Function 0 is the entry, and is called by none.
                    let off = jump(starts[function + 1][0]);
                    Op::CallLocal { off }
                }
                (Op::LoadFunction { dst, .. }, Some(function)) => {
                    let off = jump(starts[function + 1][0]);
                    Op::LoadFunction { dst, off }
                }
                (op, _) => op,
            };
            let (first, second) = op.encode();
            insns.push(first);
            insns.extend(second);
        }
    }
    insns
}

/// A program whose choices are taken from `choices`, and from the seed where they end.
pub(crate) fn generate(seed: u64, choices: &[u8]) -> Vec<Insn> {
    let random = Random {
        state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        choices,
    };
    let mut generator = Generator {
        random,
        items: Vec::new(),
        memory: true,
        callback: false,
        kept: Vec::new(),
        functions: 0,
        callbacks: 0,
        pending: std::collections::VecDeque::new(),
    };
    let (callees, callbacks) = (generator.random.below(3), generator.random.below(3));
    (generator.functions, generator.callbacks) = (callees, callbacks);
    let memory = Op::Alu {
        width: Width::W64,
        op: AluOp::Mov,
        dst: reg(9),
        src: Operand::Reg(Reg::R1),
    };
    generator.push(memory);
    generator.begin(&[]);
    let length = 5 + generator.random.below(40);
    generator.body(length);
    for number in 0..9 {
        let off = (MEMORY / 2 + 8 * number) as i16;
        let src = Operand::Reg(reg(number));
        generator.push(Op::Store {
            size: Size::Dw,
            base: reg(9),
            off,
            src,
        });
    }
    generator.push(Op::Exit);
    let mut functions = vec![std::mem::take(&mut generator.items)];
    generator.memory = false;
    (generator.functions, generator.callbacks) = (0, 0);
    let arguments: Vec<_> = Reg::arguments().collect();
    for _ in 0..callees {
        generator.begin(&arguments);
        let length = 1 + generator.random.below(10);
        generator.body(length);
        generator.push(Op::Exit);
        functions.push(std::mem::take(&mut generator.items));
    }
    generator.callback = true;
    for _ in 0..callbacks {
        generator.callback();
        functions.push(std::mem::take(&mut generator.items));
    }
    link(&functions)
}
