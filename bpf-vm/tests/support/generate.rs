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
            match self.random.below(20) {
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
