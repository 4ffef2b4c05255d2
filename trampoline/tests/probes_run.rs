// SPDX-License-Identifier: MIT OR Apache-2.0
//! Probes that run: on arm64 Linux, natively or under qemu-aarch64.
//!
//! `cargo test -p trampoline --target aarch64-unknown-linux-musl`

#![cfg(all(target_arch = "aarch64", target_os = "linux"))]

mod machine;

use a64::imm::{Imm19, Imm21};
use a64::inst::{Cond, LiteralOp, PairMode};
use a64::ops::{
    self, add, add_imm, b_cond, cbnz, cbz, cmp_imm, cset, ldp, ldr, mov, mov_sp, mrs, nop, ret,
    stp, str as store, tbz,
};
use a64::reg::*;
use a64::{Fixup, Inst, LabelSlot, SP, Size, SysReg};
use core::arch::asm;
use machine::{ADMIT, ENTRIES, MISS, Memory, admit, branch_far, miss, pushed, spoil, task, write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trampoline::{
    AttachId, Callee, Engine, Guard, Platform, ProbeKind, Site, SiteTable, Spot, State, registers,
};

const FUNCTION: u64 = 0x1000;
const OTHER: u64 = 0x1800;
const PROGRAM: u64 = 0x2000;

/// What a program saw: how often it ran, and the last context.
struct Hits {
    count: AtomicU64,
    context: [AtomicU64; registers::WORDS],
    state: State,
}

impl Hits {
    fn x(&self, number: usize) -> u64 {
        self.context[number].load(Relaxed)
    }

    fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

extern "C" fn program(ctx: *const u64, data: u64) -> u64 {
    // SAFETY: `data` is the leaked Hits that the callee was made with.
    let hits = unsafe { &*(data as *const Hits) };
    hits.count.fetch_add(1, Relaxed);
    for (i, slot) in hits.context.iter().enumerate() {
        // SAFETY: the probe stored so many words at ctx.
        slot.store(unsafe { ctx.wrapping_add(i).read() }, Relaxed);
    }
    spoil();
    u64::MAX
}

struct Bench {
    engine: Engine<Memory>,
    text: u64,
}

fn bench(site: bool) -> Bench {
    let memory = Memory::new();
    let text = memory.0;
    for (at, to) in [
        (PROGRAM, program as *const ()),
        (ADMIT, admit as *const ()),
        (MISS, miss as *const ()),
    ] {
        branch_far(&memory, text + at, to);
    }
    let sites = [FUNCTION, 0x3f00].map(|address| Site {
        address: text + address,
        notrace: false,
    });
    let sites = sites.into_iter().skip(usize::from(!site));
    let engine = Engine::new(memory, SiteTable::new(sites).unwrap()).unwrap();
    Bench { engine, text }
}

impl Bench {
    fn callee(&self) -> (&'static Hits, Callee) {
        let hits: &'static Hits = Box::leak(Box::new(Hits {
            count: AtomicU64::new(0),
            context: [const { AtomicU64::new(0) }; registers::WORDS],
            state: State::default(),
        }));
        let callee = Callee {
            address: self.text + PROGRAM,
            data: Some(std::ptr::from_ref(hits) as u64),
            name: "program".into(),
            stack_bytes: 256,
            original_stack: 0,
            guard: Guard::Word,
            state: hits.state.address(),
            sleepable: false,
            keep: None,
        };
        (hits, callee)
    }

    fn spot(&self, index: u64, words: u64) -> Spot {
        let start = self.text + FUNCTION;
        Spot {
            at: start + 4 * index,
            function: start..start + 4 * words,
        }
    }

    fn probe(&mut self, spot: &Spot, kind: ProbeKind) -> (&'static Hits, AttachId) {
        let (hits, callee) = self.callee();
        let id = self.engine.probe(spot, kind, callee);
        (hits, id.unwrap_or_else(|e| panic!("{spot:x?}: {e}")))
    }

    fn call(&self, x0: u64) -> u64 {
        let function = self.text + FUNCTION;
        let result: u64;
        // SAFETY: code of this test that keeps to the C ABI.
        unsafe {
            asm!("blr x16", in("x16") function, inlateout("x0") x0 => result, clobber_abi("C"))
        }
        result
    }
}

/// Every kind of instruction that depends on its address, a loop, flags that live across instructions. How often each instruction
/// runs when it is called with 3, and its words.
fn workload(bench: &Bench) -> (Vec<u64>, u64) {
    let memory = bench.engine.platform();
    write(memory, bench.text + OTHER, |asm| {
        asm.emit(add_imm(Size::X, X0, X30, 0));
        asm.emit(ret());
    });
    let start = bench.text + FUNCTION;
    let counts = [
        1, 1, 1, 1, 3, 3, 3, 3, 3, 2, 2, 2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    ];
    let mut words = [0; 64];
    let (mut labels, mut fixups) = ([LabelSlot::default(); 4], [Fixup::default(); 8]);
    let mut asm = a64::Assembler::new(&mut words, start).with_labels(&mut labels, &mut fixups);
    let (again, odd, even, data) = (
        asm.new_label(),
        asm.new_label(),
        asm.new_label(),
        asm.new_label(),
    );
    asm.emit(stp(PairMode::Pre, X29, X30, SP, -32));
    asm.emit(mov_sp(X29, SP));
    asm.emit(mov(Size::X, X9, X0));
    asm.mov_imm(X10, 0);
    asm.bind(again);
    asm.emit(cmp_imm(Size::X, X9, 2));
    asm.emit(cset(Size::X, X12, Cond::Hs)); // the flags of the instruction before
    asm.emit(add(Size::X, X10, X10, X12));
    asm.emit(ops::adds(Size::X, X10, X10, X9)); // and flags that live over two
    asm.branch(tbz(X9, 0).unwrap(), even);
    asm.branch(b_cond(Cond::Hi), odd); // the carry of the addition: not taken
    asm.emit(add_imm(Size::X, X10, X10, 100));
    asm.bind(odd);
    asm.emit(add_imm(Size::X, X10, X10, 1));
    asm.bind(even);
    asm.emit(ops::sub_imm(Size::X, X9, X9, 1));
    asm.branch(cbnz(Size::X, X9), again);
    let (rd, offset) = (X13.into(), Imm21::ZERO);
    asm.branch(Inst::Adr { rd, offset }, data);
    let (op, rt, offset) = (LiteralOp::LdrX, X14.into(), Imm19::ZERO);
    asm.branch(Inst::LoadLiteral { op, rt, offset }, data);
    asm.emit(ops::eor(Size::X, X10, X10, X13));
    asm.emit(ops::eor(Size::X, X10, X10, X14));
    asm.emit(store(X10, SP, 16));
    asm.bl_abs(bench.text + OTHER);
    asm.emit(ldr(X10, SP, 16));
    asm.emit(ops::eor(Size::X, X0, X0, X10));
    asm.emit(ldp(PairMode::Post, X29, X30, SP, 32));
    asm.emit(ret());
    let code = asm.len() as u64;
    if !asm.pc().is_multiple_of(8) {
        asm.emit(nop());
    }
    asm.bind(data);
    asm.emit_word(0x1234);
    asm.emit_word(0x5678);
    let len = asm.finish().unwrap();
    memory.write_code(start, &words[..len]).unwrap();
    assert_eq!(code, counts.len() as u64);
    (counts.to_vec(), code)
}

#[test]
fn every_instruction_in_turn() {
    let mut bench = bench(false);
    let (counts, code) = workload(&bench);
    let expected = bench.call(3);
    let before: Vec<_> = (0..code)
        .map(|i| bench.engine.platform().read(bench.spot(i, code).at))
        .collect();
    for (index, count) in (0..).zip(&counts) {
        let spot = bench.spot(index, code);
        let (hits, id) = bench.probe(&spot, ProbeKind::Here);
        assert_eq!(bench.call(3), expected, "instruction {index}");
        assert_eq!(hits.count(), *count, "instruction {index}");
        assert_eq!(hits.x(32), spot.at, "pc");
        assert_eq!((task(0), hits.state.misses()), (0, [0; 4]));
        bench.engine.unprobe(id).unwrap();
        assert_eq!(bench.call(3), expected, "instruction {index}, unhooked");
        assert_eq!(hits.count(), *count, "instruction {index}, unhooked");
    }
    let after: Vec<_> = (0..code)
        .map(|i| bench.engine.platform().read(bench.spot(i, code).at))
        .collect();
    assert_eq!(before, after);
    // And all of them at once.
    let all: Vec<_> = (0..code)
        .map(|index| bench.probe(&bench.spot(index, code), ProbeKind::Here))
        .collect();
    assert_eq!(bench.call(3), expected);
    for ((hits, id), count) in all.into_iter().zip(counts) {
        assert_eq!(hits.count(), count);
        bench.engine.unprobe(id).unwrap();
    }
    let pool = bench.engine.pool();
    assert_eq!(pool.free_bytes(), pool.window().end - pool.window().start);
}

/// In the middle of a function: all registers and NZCV are in the context, and as they were behind the probe.
#[test]
fn nothing_changes_in_the_middle_of_a_function() {
    for flags in (0..16u64).map(|flags| flags << 28) {
        let mut bench = bench(false);
        let memory = bench.engine.platform();
        let start = bench.text + FUNCTION;
        let out: &'static [AtomicU64; 33] = Box::leak(Box::new([const { AtomicU64::new(0) }; 33]));
        let all = || (0..30).filter_map(Reg::new);
        let end = write(memory, start, |asm| {
            // x19 to x28 are the caller's: kept on the stack.
            asm.emit(stp(PairMode::Pre, X29, X30, SP, -112));
            for (pair, at) in [(X19, X20), (X21, X22), (X23, X24), (X25, X26), (X27, X28)]
                .into_iter()
                .zip((16..).step_by(16))
            {
                asm.emit(stp(PairMode::Offset, pair.0, pair.1, SP, at));
            }
            asm.mov_imm(X0, flags);
            asm.emit(ops::msr(SysReg::NZCV, X0));
            for (reg, value) in all().zip(0x700..) {
                asm.mov_imm(reg, value);
            }
            asm.mov_imm(X30, out.as_ptr() as u64);
            asm.emit(nop()); // the probed one
            for (reg, at) in all().zip((0..).step_by(8)) {
                asm.emit(store(reg, X30, at));
            }
            asm.emit(mrs(X0, SysReg::NZCV));
            asm.emit(store(X0, X30, 240));
            asm.emit(mov_sp(X0, SP));
            asm.emit(store(X0, X30, 248));
            for (pair, at) in [(X19, X20), (X21, X22), (X23, X24), (X25, X26), (X27, X28)]
                .into_iter()
                .zip((16..).step_by(16))
            {
                asm.emit(ldp(PairMode::Offset, pair.0, pair.1, SP, at));
            }
            asm.emit(ldp(PairMode::Post, X29, X30, SP, 112));
            asm.emit(ret());
        });
        let words = (end - start) / 4;
        let probed = (0..words).find(|i| memory.read(start + 4 * i) == Some(nop().encode()));
        let spot = bench.spot(probed.unwrap(), words);
        let (hits, _) = bench.probe(&spot, ProbeKind::Here);
        bench.call(0);
        assert_eq!(hits.count(), 1);
        for (number, value) in (0..30).zip(0x700..) {
            assert_eq!(hits.x(number), value, "x{number} in the context");
            assert_eq!(
                out[number].load(Relaxed),
                value,
                "x{number} behind the probe"
            );
        }
        assert_eq!(hits.x(30), out.as_ptr() as u64);
        assert_eq!(out[30].load(Relaxed), flags, "NZCV behind the probe");
        assert_eq!(hits.x(31), out[31].load(Relaxed), "sp");
        assert_eq!(hits.x(33), flags | 5, "pstate");
    }
}

/// A function that calls itself `x0` times, and returns how often.
fn recursive(bench: &Bench) -> u64 {
    let memory = bench.engine.platform();
    let start = bench.text + FUNCTION;
    let mut words = [0; 32];
    let (mut labels, mut fixups) = ([LabelSlot::default(); 4], [Fixup::default(); 8]);
    let mut asm = a64::Assembler::new(&mut words, start).with_labels(&mut labels, &mut fixups);
    let last = asm.new_label();
    asm.emit(nop());
    asm.emit(nop());
    asm.branch(cbz(Size::X, X0), last);
    asm.emit(stp(PairMode::Pre, X29, X30, SP, -16));
    asm.emit(mov_sp(X29, SP));
    asm.emit(ops::sub_imm(Size::X, X0, X0, 1));
    asm.bl_abs(start);
    asm.emit(add_imm(Size::X, X0, X0, 1));
    asm.emit(ldp(PairMode::Post, X29, X30, SP, 16));
    asm.bind(last);
    asm.emit(ret());
    let len = asm.finish().unwrap();
    memory.write_code(start, &words[..len]).unwrap();
    len as u64
}

/// By the site and by displacing the entry: results, the context of the last return, the shadow stack empty again, misses counted.
#[test]
fn returns_of_a_function_that_calls_itself() {
    for site in [true, false] {
        let mut bench = bench(site);
        let words = recursive(&bench);
        let free = bench.engine.pool().free_bytes();
        let spot = bench.spot(0, words);
        let (here, first) = bench.probe(&spot, ProbeKind::Here);
        let (returned, second) = bench.probe(&spot, ProbeKind::Return);
        let (again, third) = bench.probe(&spot, ProbeKind::Return);
        assert_eq!(bench.call(2), 2);
        assert_eq!([here, returned, again].map(Hits::count), [3, 3, 3]);
        assert_eq!((returned.x(0), here.x(0)), (2, 0));
        assert_eq!(
            returned.x(31),
            here.x(31) + 32,
            "sp of the outermost return, and of the innermost entry"
        );
        assert_eq!(returned.x(32), returned.x(30), "it returns to its caller");
        assert_eq!(here.x(32), spot.at);
        assert_eq!(pushed(), 0);

        // One deeper than the shadow stack.
        assert_eq!(bench.call(ENTRIES as u64), ENTRIES as u64);
        let hits = 3 + ENTRIES as u64;
        assert_eq!(
            [here, returned, again].map(Hits::count),
            [hits + 1, hits, hits]
        );
        assert_eq!(
            [here, returned, again].map(|h| h.state.misses()[0]),
            [0, 1, 1]
        );
        assert_eq!(pushed(), 0);

        for id in [second, first, third] {
            bench.engine.unprobe(id).unwrap();
            assert_eq!(bench.call(2), 2);
        }
        assert_eq!(here.count(), hits + 4);
        assert_eq!(returned.count(), hits);
        assert_eq!(again.count(), hits + 6);
        assert_eq!(bench.engine.platform().read(spot.at), Some(nop().encode()));
        assert_eq!(bench.engine.pool().free_bytes(), free);
    }
}
