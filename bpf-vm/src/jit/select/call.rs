// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of all kinds, what is asked of the host in place of one, and the frame that calls need.
use super::*;

impl Selector<'_, '_> {
    /// A call: arguments to x0 to x4, the result from x0 to `result` if anybody reads it.
    pub(super) fn call(&mut self, callee: Callee, arguments: NameSet, result: Option<A64>) {
        let moves = Reg::arguments()
            .map(Name::from)
            .filter(|name| arguments.contains(*name))
            .filter_map(|name| Some((argument_home(name)?, self.home(name))))
            .collect();
        if let Callee::Register(target) = callee {
            self.copy(Sf::X, X17, self.home(target));
        }
        self.shuffle(moves);
        match callee {
            Callee::Tail { slots, entries } => return self.tail_call(slots, entries, result),
            Callee::Local(function) => {
                if self.frame.handed_on {
                    let both = ops::ldp(
                        PairMode::Offset,
                        ATTACHMENT,
                        TAIL_CALLS,
                        SP,
                        frame::HANDED_ON_AT,
                    );
                    self.asm.emit(both);
                }
                let entry = self.address_of(function as usize, |layout| &layout.entries);
                self.asm.bl_abs(entry);
            }
            Callee::Register(_) => {
                // By the dispatcher if it is a number. Functions whose address is taken need no count of tail calls.
                self.asm.emit(ops::ldr(ATTACHMENT, SP, frame::HANDED_ON_AT));
                self.copy(Sf::X, NUMBER, X17);
                self.asm.mov_imm(X16, self.dispatch);
                self.asm.emit(ops::cmp_imm(Sf::X, X17, NUMBERS));
                self.asm.emit(ops::csel(Sf::X, X16, X16, X17, Flags::Lo));
                self.asm.emit(ops::blr(X16));
            }
            Callee::Address { address, attached } => {
                if attached {
                    self.asm.emit(ops::ldr(ATTACHMENT, SP, frame::HANDED_ON_AT));
                }
                self.call_address(address);
            }
        }
        if let Some(dst) = result {
            self.copy(Sf::X, dst, X0);
        }
    }

    /// Calls an address, by BL where it reaches.
    pub(super) fn call_address(&mut self, address: u64) {
        /// BL reaches 128 MiB either way (Arm ARM C6.2, BL).
        const REACH: u64 = 1 << 27;
        let distance = address.wrapping_sub(self.asm.pc());
        if distance.wrapping_add(REACH) < 2 * REACH {
            self.asm.bl_abs(address);
        } else {
            self.asm.mov_imm(X16, address);
            self.asm.emit(ops::blr(X16));
        }
    }

    /// The address of a function of the program, in as many words whatever it is.
    pub(super) fn function_address(&mut self, dst: A64, function: usize) {
        let address = self.address_of(function, |layout| &layout.entries);
        if !self.long {
            let offset = Imm21::new(0).map(|offset| Inst::Adr {
                rd: dst.into(),
                offset,
            });
            return match offset {
                Ok(adr) => self.asm.branch_to(adr, address),
                error => self.asm.emit(error),
            };
        }
        for part in 0..4 {
            let op = if part == 0 {
                MoveWideOp::Movz
            } else {
                MoveWideOp::Movk
            };
            let bits = (address >> (16 * part)) as u16;
            let imm = Imm16::new(Sf::X, bits, 16 * part);
            self.asm.emit(imm.map(|imm| Inst::MoveWide {
                op,
                rd: dst.into(),
                imm,
            }));
        }
    }

    /// `bpf_tail_call` through a known array: the index and the count checked, the frame taken down, and off. What
    /// cannot be done goes on at the next instruction, r0 being `-ENOENT`.
    pub(super) fn tail_call(&mut self, slots: u32, entries: u64, result: Option<A64>) {
        let failed = self.address_of(self.failed.len(), |layout| &layout.failed);
        let index = X2;
        match ops::cmp_imm(Sf::W, index, slots.into()) {
            Ok(inst) => self.asm.emit(inst),
            Err(_) => {
                self.asm.mov_imm(X17, slots.into());
                self.asm.emit(ops::cmp(Sf::W, index, X17));
            }
        }
        self.asm.branch_to(ops::b_cond(Flags::Hs), failed);
        self.asm.emit(ops::ldp(
            PairMode::Offset,
            ATTACHMENT,
            TAIL_CALLS,
            SP,
            frame::HANDED_ON_AT,
        ));
        self.asm.emit(ops::ldr(X16, TAIL_CALLS, 0));
        self.asm
            .emit(ops::cmp_imm(Sf::X, X16, MAX_TAIL_CALLS.into()));
        self.asm.branch_to(ops::b_cond(Flags::Hs), failed);
        self.asm.mov_imm(X17, entries);
        self.copy(Sf::W, index, index);
        self.asm.emit(add_shifted(Sf::X, X17, X17, index, 3));
        // Acquires what whoever put the target there wrote before it (Arm ARM B2.3, LDAR).
        let (op, size, rt) = (OrderedOp::Ldar, MemSize::X, X17.into());
        let rn = X17.into();
        self.asm.emit(Inst::Ordered { op, size, rt, rn });
        self.asm.branch_to(ops::cbz(Sf::X, X17), failed);
        self.asm.emit(ops::add_imm(Sf::X, X16, X16, 1));
        self.asm.emit(ops::str(X16, TAIL_CALLS, 0));
        self.take_down();
        self.asm.emit(ops::br(X17));
        self.failed.push(self.asm.len() as u32);
        if let Some(dst) = result {
            self.asm.mov_imm(dst, ENOENT);
        }
    }

    /// All moves (to, from) as if done at once.
    pub(super) fn shuffle(&mut self, moves: Vec<(A64, A64)>) {
        for (to, from) in moves::in_order(moves, X16) {
            self.copy(Sf::X, to, from);
        }
    }

    /// `bpf_map_lookup_elem` of an array map that is known: the index checked, the address computed.
    pub(super) fn array_lookup(&mut self, map: &Map, key: Addr, dst: A64) {
        let (Some(base), Some(stride)) = (map.value_address(0), map.value_stride()) else {
            return; // only maps that have both are emitted in place
        };
        let entries = map.definition().max_entries;
        self.memory(Access::LdrW, X16.into(), key, X16);
        // From here on the key's register is free, so `dst` may be it.
        match ops::cmp_imm(Sf::W, X16, entries.into()) {
            Ok(inst) => self.asm.emit(inst),
            Err(_) => {
                self.asm.mov_imm(X17, entries.into());
                self.asm.emit(ops::cmp(Sf::W, X16, X17));
            }
        }
        self.asm.mov_imm(X17, base);
        self.add_product(stride as u64, dst);
        if let Some((stride, cpu)) = map.cpu_stride().zip(self.cpu) {
            self.number(X16, cpu);
            self.add_product(stride as u64, dst);
        }
        self.asm.emit(ops::csel(Sf::X, dst, X17, XZR, Flags::Lo));
    }

    /// What the machine is asked in place of a call.
    pub(super) fn ask(&mut self, question: Question, dst: A64) {
        match question {
            Question::Task(register) => self.asm.emit(ops::mrs(dst, register)),
            Question::Cpu(number) => self.number(dst, number),
            Question::TaskNumber(number) => {
                self.number(X16, number);
                let both = shifted(Sf::X, 32).map(|shift| Inst::LogicalReg {
                    op: LogicalOp::Orr,
                    rd: dst.into(),
                    rn: X16.into(),
                    rm: X16.into(),
                    shift: shift.get(),
                });
                self.asm.emit(both);
            }
            Question::Time(clock) => {
                self.asm.emit(ops::mrs(X16, clock.counter));
                self.asm.mov_imm(X17, clock.scale);
                self.asm.emit(Inst::MulHigh {
                    op: MulHighOp::Umulh,
                    rd: dst.into(),
                    rn: X16.into(),
                    rm: X17.into(),
                });
                self.asm.emit(ops::mul(Sf::X, X16, X16, X17));
                let (rd, rn, rm) = (dst.into(), dst.into(), X16.into());
                let lsb = Amount::new(Sf::X, 32);
                self.asm
                    .emit(lsb.map(|lsb| Inst::Extract { rd, rn, rm, lsb }));
            }
        }
    }

    /// Loads a number of the machine.
    pub(super) fn number(&mut self, dst: A64, number: Number) {
        self.asm.emit(ops::mrs(dst, number.register));
        let off = i64::from(number.offset);
        self.asm.emit(ops::mem(Access::LdrW, dst, dst, off));
    }

    /// `x17 += x16 * factor`, by way of `scratch`; x16 is 32 bits, and UMADDL takes as many of the factor: a map of a longer
    /// stride is not looked up in place.
    pub(super) fn add_product(&mut self, factor: u64, scratch: A64) {
        if factor.is_power_of_two() {
            let bits = factor.trailing_zeros();
            self.asm.emit(add_shifted(Sf::X, X17, X17, X16, bits));
            return;
        }
        self.asm.mov_imm(scratch, factor);
        self.asm.emit(Inst::MulAddLong {
            op: MulAddLongOp::Umaddl,
            rd: X17.into(),
            rn: X16.into(),
            rm: scratch.into(),
            ra: X17.into(),
        });
    }

    /// Builds the frame and brings the arguments home. Registers that are read without having been written hold 0.
    pub(in crate::jit) fn prologue(&mut self, live_in: NameSet, arguments: usize) {
        let (frame, bytes) = (self.frame, i64::from(self.frame.bytes));
        if frame.record {
            // One instruction where the offset fits: a multiple of 8 down to -512.
            match ops::stp(PairMode::Pre, X29, X30, SP, -bytes) {
                Ok(inst) => self.asm.emit(inst),
                Err(_) => {
                    self.asm.emit(ops::sub_imm(Sf::X, SP, SP, bytes));
                    self.asm.emit(ops::stp(PairMode::Offset, X29, X30, SP, 0));
                }
            }
            self.asm.emit(ops::mov_sp(X29, SP));
        } else if bytes != 0 {
            self.asm.emit(ops::sub_imm(Sf::X, SP, SP, bytes));
        }
        if frame.handed_on {
            let at = frame::HANDED_ON_AT;
            self.asm.emit(ops::stp(
                PairMode::Offset,
                self.attachment,
                TAIL_CALLS,
                SP,
                at,
            ));
        }
        for (off, pair) in frame.saved_pairs() {
            match *pair {
                [a, b] => self.asm.emit(ops::stp(PairMode::Offset, a, b, SP, off)),
                [a] => self.asm.emit(ops::str(a, SP, off)),
                _ => {}
            }
        }
        let given = Reg::arguments().map(Name::from).zip(ARGUMENTS);
        let given: Vec<_> = given.take(arguments).collect();
        let moves = given
            .iter()
            .filter(|(name, _)| live_in.contains(*name))
            .map(|(name, from)| (self.home(*name), *from))
            .collect();
        self.shuffle(moves);
        for name in live_in.iter() {
            if !given.iter().any(|(given, _)| *given == name) {
                self.asm.mov_imm(self.home(name), 0);
            }
        }
    }

    /// Takes the frame down and returns.
    pub(super) fn epilogue(&mut self) {
        self.take_down();
        self.asm.emit(ops::ret());
    }

    /// Takes the frame down.
    pub(super) fn take_down(&mut self) {
        let (frame, bytes) = (self.frame, i64::from(self.frame.bytes));
        for (off, pair) in frame.saved_pairs() {
            match *pair {
                [a, b] => self.asm.emit(ops::ldp(PairMode::Offset, a, b, SP, off)),
                [a] => self.asm.emit(ops::ldr(a, SP, off)),
                _ => {}
            }
        }
        if frame.record {
            match ops::ldp(PairMode::Post, X29, X30, SP, bytes) {
                Ok(inst) => self.asm.emit(inst),
                Err(_) => {
                    self.asm.emit(ops::ldp(PairMode::Offset, X29, X30, SP, 0));
                    self.asm.emit(ops::add_imm(Sf::X, SP, SP, bytes));
                }
            }
        } else if bytes != 0 {
            self.asm.emit(ops::add_imm(Sf::X, SP, SP, bytes));
        }
    }
}

/// Where functions of a program take the attachment's address.
pub(in crate::jit) const ATTACHMENT: A64 = X5;
/// Where they take the address of the count of tail calls.
const TAIL_CALLS: A64 = X6;
/// Where the dispatcher takes a helper's number.
const NUMBER: A64 = X6;
/// Linux's `-ENOENT`.
const ENOENT: u64 = -2_i64 as u64;
/// Stack that a [`stub`] takes: a record, the count, and 8 bytes to the next multiple of 16.
pub(in crate::jit) const STUB_BYTES: u32 = 32;

/// The entry of a program that makes tail calls: keeps their count while the program, and what it turns into, runs.
pub(in crate::jit) fn stub(asm: &mut Assembler<'_>, attachment: A64) {
    const COUNT: i64 = 16;
    let bytes = i64::from(STUB_BYTES);
    asm.emit(ops::stp(PairMode::Pre, X29, X30, SP, -bytes));
    asm.emit(ops::mov_sp(X29, SP));
    asm.emit(ops::str(XZR, SP, COUNT));
    asm.emit(ops::mov(Sf::X, ATTACHMENT, attachment));
    asm.emit(ops::add_imm(Sf::X, TAIL_CALLS, SP, COUNT));
    // Over the two words that follow it.
    let body = asm.pc() + 12;
    asm.bl_abs(body);
    asm.emit(ops::ldp(PairMode::Post, X29, X30, SP, bytes));
    asm.emit(ops::ret());
}
