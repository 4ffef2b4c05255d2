// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs on many functions that run: on arm64 Linux, natively or under qemu-aarch64.
//!
//! `cargo test -p trampoline --target aarch64-unknown-linux-musl`

#![cfg(all(target_arch = "aarch64", target_os = "linux"))]

mod machine;

use a64::inst::PairMode;
use a64::ops::{add, add_imm, cbz, ldp, lsl_imm, mov_sp, nop, ret, stp, sub_imm};
use a64::reg::*;
use a64::{Fixup, LabelSlot, SP, Size};
use core::arch::asm;
use machine::{ADMIT, ENTRIES, MISS, Memory, admit, branch_far, miss, pushed, spoil, task};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trampoline::multi::{Program, Target};
use trampoline::registers::{self, Words};
use trampoline::{AttachId, Callee, Engine, Guard, Platform, Site, SiteTable, State};

const FIRST: u64 = 0x1000;
const EACH: u64 = 0x100;
const COUNT: u64 = 4;
const PROGRAM: u64 = 0x2000;

/// What a program saw: how often it ran, the last context, and what its second argument pointed to.
struct Hits {
    count: AtomicU64,
    context: [AtomicU64; registers::WORDS],
    told: [AtomicU64; 3],
    /// A function that it calls.
    calls: AtomicU64,
    state: State,
}

impl Hits {
    fn word(&self, number: usize) -> u64 {
        self.context[number].load(Relaxed)
    }

    fn told(&self) -> [u64; 3] {
        self.told.each_ref().map(|word| word.load(Relaxed))
    }
}

extern "C" fn program(ctx: *const u64, data: *const u64) -> u64 {
    // SAFETY: the fourth word of a stub is the leaked Hits that the target was made with.
    let hits = unsafe { &*(data.wrapping_add(3).read() as *const Hits) };
    hits.count.fetch_add(1, Relaxed);
    for (i, slot) in hits.context.iter().enumerate() {
        // SAFETY: a context has so many words.
        slot.store(unsafe { ctx.wrapping_add(i).read() }, Relaxed);
    }
    for (i, slot) in hits.told.iter().enumerate() {
        // SAFETY: a stub has four words of data.
        slot.store(unsafe { data.wrapping_add(i).read() }, Relaxed);
    }
    match hits.calls.load(Relaxed) {
        0 => {}
        function => drop(call(function, 0)),
    }
    spoil();
    u64::MAX
}

/// Calls with x0, and x1 = 1 to x8 = 8; the result. x19, x29 and sp are as before, and x1 to x7 as the function leaves them.
fn call(function: u64, x0: u64) -> u64 {
    let (result, same): (u64, u64);
    // SAFETY: a function of the C ABI is called with all that it may change declared as changed.
    unsafe {
        asm!(
            "mov x20, x29", "mov x21, sp", "mov x22, #77", "blr x16",
            "cmp x20, x29", "mov x9, sp", "ccmp x21, x9, #0, eq", "ccmp x22, #31, #0, eq", "cset x22, hs",
            in("x16") function,
            inout("x0") x0 => result,
            in("x1") 1, in("x2") 2, in("x3") 3, in("x4") 4, in("x5") 5, in("x6") 6, in("x7") 7, in("x8") 8,
            out("x20") _, out("x21") _, out("x22") same,
            clobber_abi("C"),
        )
    }
    assert_eq!(same, 1, "x29, sp or x22 were changed");
    result
}

/// What function `number` of the bench returns: it weighs x0 to x8, and calls itself x0 times.
fn expected(number: u64, x0: u64) -> u64 {
    let mut sum = 0;
    for x0 in 0..=x0 {
        sum =
            sum * 2 + x0 + (1..=8).fold(number, |sum: u64, x| sum.wrapping_mul(2).wrapping_add(x));
    }
    sum
}

struct Bench {
    engine: Engine<Memory>,
    text: u64,
}

impl Bench {
    fn new() -> Self {
        let memory = Memory::new();
        let text = memory.0;
        for (at, to) in [
            (PROGRAM, program as *const ()),
            (ADMIT, admit as *const ()),
            (MISS, miss as *const ()),
        ] {
            branch_far(&memory, text + at, to);
        }
        for number in 0..COUNT {
            function(&memory, text + FIRST + EACH * number, number);
        }
        let sites = (0..COUNT).map(|number| Site {
            address: text + FIRST + EACH * number,
            notrace: false,
        });
        let engine = Engine::new(memory, SiteTable::new(sites).unwrap()).unwrap();
        Self { engine, text }
    }

    fn function(&self, number: u64) -> u64 {
        self.text + FIRST + EACH * number
    }

    /// A program on all functions; each is told its number plus 100.
    fn attach(&mut self, exit: bool, guard: Guard, reads: Words) -> (&'static Hits, AttachId) {
        let hits: &'static Hits = Box::leak(Box::new(Hits {
            count: AtomicU64::new(0),
            context: [const { AtomicU64::new(0) }; registers::WORDS],
            told: [const { AtomicU64::new(0) }; 3],
            calls: AtomicU64::new(0),
            state: State::default(),
        }));
        let callee = Callee {
            address: self.text + PROGRAM,
            data: Some(0),
            name: "program".into(),
            stack_bytes: 256,
            original_stack: 0,
            guard,
            state: hits.state.address(),
            sleepable: false,
            keep: None,
        };
        let targets = (0..COUNT).map(|number| Target {
            function: self.function(number),
            data: [number + 100, 5, std::ptr::from_ref(hits) as u64],
        });
        let program = Program {
            exit,
            callee,
            reads,
        };
        let targets: Vec<_> = targets.collect();
        let id = self.engine.attach_multi(&targets, program, |_| false);
        (hits, id.unwrap().unwrap())
    }
}

/// A function with a site, as [`expected`] says.
fn function(memory: &Memory, at: u64, number: u64) {
    let mut words = [0; 64];
    let mut labels = [LabelSlot::default(); 2];
    let mut fixups = [Fixup::default(); 2];
    let mut asm = a64::Assembler::new(&mut words, at).with_labels(&mut labels, &mut fixups);
    let last = asm.new_label();
    asm.emit(nop());
    asm.emit(nop());
    asm.emit(stp(PairMode::Pre, X29, X30, SP, -32));
    asm.emit(mov_sp(X29, SP));
    asm.mov_imm(X9, number);
    for x in [X1, X2, X3, X4, X5, X6, X7, X8] {
        asm.emit(lsl_imm(Size::X, X9, X9, 1));
        asm.emit(add(Size::X, X9, X9, x));
    }
    asm.emit(add(Size::X, X9, X9, X0));
    asm.emit(stp(PairMode::Offset, X9, X9, SP, 16));
    asm.branch(cbz(Size::X, X0), last);
    asm.emit(sub_imm(Size::X, X0, X0, 1));
    asm.bl_abs(at);
    asm.emit(ldp(PairMode::Offset, X9, X10, SP, 16));
    asm.emit(lsl_imm(Size::X, X0, X0, 1));
    asm.emit(add(Size::X, X9, X9, X0));
    asm.bind(last);
    asm.emit(a64::ops::mov(Size::X, X0, X9));
    asm.emit(add_imm(Size::X, X11, X9, 0));
    asm.emit(ldp(PairMode::Post, X29, X30, SP, 32));
    asm.emit(ret());
    let len = asm.finish().unwrap();
    memory.write_code(at, &words[..len]).unwrap();
}

const GUARDS: [Guard; 3] = [Guard::Word, Guard::Pinned, Guard::None];

#[test]
fn each_function_has_its_arguments_and_data_at_its_entry() {
    for guard in GUARDS {
        for reads in [Words::ALL, Words::NONE] {
            let mut bench = Bench::new();
            let free = bench.engine.pool().free_bytes();
            let (hits, id) = bench.attach(false, guard, reads);
            for number in 0..COUNT {
                let function = bench.function(number);
                assert_eq!(call(function, 0), expected(number, 0));
                assert_eq!(hits.told(), [function, number + 100, 5]);
                let arguments: Vec<_> = (0..8).map(|x| hits.word(x)).collect();
                assert_eq!(arguments, [0, 1, 2, 3, 4, 5, 6, 7]);
                if reads == Words::ALL {
                    assert_eq!(
                        (hits.word(8), hits.word(16), hits.word(22)),
                        (8, function, 77)
                    );
                    assert_eq!((hits.word(32), hits.word(33) & 15), (function, 5));
                }
                assert_eq!([task(0), task(1)], [0; 2]);
            }
            bench.engine.detach_multi(id).unwrap();
            assert_eq!(call(bench.function(1), 0), expected(1, 0));
            assert_eq!(hits.count.load(Relaxed), COUNT);
            assert_eq!(bench.engine.pool().free_bytes(), free);
        }
    }
}

#[test]
fn each_function_has_its_result_and_data_at_its_exit() {
    for guard in GUARDS {
        let mut bench = Bench::new();
        let free = bench.engine.pool().free_bytes();
        let (entries, first) = bench.attach(false, guard, Words::ALL);
        let (exits, second) = bench.attach(true, guard, Words::ALL);
        for number in 0..COUNT {
            let function = bench.function(number);
            assert_eq!(call(function, 2), expected(number, 2));
            assert_eq!(exits.told(), [function, number + 100, 5]);
            assert_eq!(exits.word(0), expected(number, 2));
            // The outermost return, and the innermost entry: two frames of 32 bytes below.
            assert_eq!(exits.word(31), entries.word(31) + 64);
            assert_eq!(exits.word(32), exits.word(30), "it returns to its caller");
            assert_eq!((task(0), pushed()), (0, 0));
        }
        assert_eq!(entries.count.load(Relaxed), 3 * COUNT);
        assert_eq!(exits.count.load(Relaxed), 3 * COUNT);

        // Deeper than there are entries for return addresses: the rest are counted, and the results are right.
        let deep = ENTRIES as u64 + 2;
        assert_eq!(call(bench.function(3), deep), expected(3, deep));
        assert_eq!(exits.count.load(Relaxed), 3 * COUNT + ENTRIES as u64);
        assert_eq!(exits.state.misses(), [3, 0, 0, 0]);
        assert_eq!(entries.state.misses(), [0; 4]);
        assert_eq!((task(0), pushed()), (0, 0));
        bench.engine.detach_multi(first).unwrap();
        bench.engine.detach_multi(second).unwrap();
        assert_eq!(call(bench.function(2), 2), expected(2, 2));
        assert_eq!(exits.count.load(Relaxed), 3 * COUNT + ENTRIES as u64);
        assert_eq!(bench.engine.pool().free_bytes(), free);
    }
}

#[test]
fn a_program_is_turned_away_from_itself_and_runs_in_anothers() {
    for exit in [false, true] {
        let mut bench = Bench::new();
        let (outer, _) = bench.attach(exit, Guard::Word, Words::NONE);
        let (inner, _) = bench.attach(exit, Guard::Word, Words::NONE);
        let (first, other) = (bench.function(0), bench.function(1));
        outer.calls.store(other, Relaxed);
        assert_eq!(call(first, 0), expected(0, 0));
        // The call in the hit of `outer` is a miss of it, and a hit of `inner` by the cold part, with that function's data.
        assert_eq!(outer.count.load(Relaxed), 1);
        assert_eq!(outer.state.misses(), [1, 0, 0, 0]);
        assert_eq!(inner.count.load(Relaxed), 2);
        assert_eq!(inner.state.misses(), [0; 4]);
        let last = if exit { other } else { first };
        assert_eq!(inner.told()[0], last, "exit {exit}");
        assert_eq!((task(0), pushed()), (0, 0));
    }
}

#[test]
fn two_and_three_at_the_same_entries_are_each_told_their_own() {
    let all = |words: &'static [Words]| {
        let guards = GUARDS.into_iter().flat_map(|a| GUARDS.map(|b| (a, b)));
        guards.flat_map(move |guards| words.iter().map(move |words| (guards, *words)))
    };
    for ((one, two), reads) in all(&[Words::ALL, Words::NONE]) {
        let mut bench = Bench::new();
        let free = bench.engine.pool().free_bytes();
        let programs = [
            bench.attach(false, one, Words::NONE),
            bench.attach(false, two, reads),
            bench.attach(false, one, reads),
        ];
        let mut on = vec![0, 1, 2];
        let mut counts = [0; 3];
        for off in [1, 0, 2] {
            for number in 0..COUNT {
                let function = bench.function(number);
                assert_eq!(call(function, 1), expected(number, 1));
                for which in &on {
                    counts[*which] += 2;
                    let (hits, _) = programs[*which];
                    assert_eq!(hits.told(), [function, number + 100, 5]);
                    if *which == 0 || reads == Words::ALL {
                        let (x0, x8) = (hits.word(0), hits.word(8));
                        assert!(x0 == 0 && (*which == 0 || x8 == 8), "x0 {x0}, x8 {x8}");
                    }
                }
                let now = programs.map(|(hits, _)| hits.count.load(Relaxed));
                assert_eq!(now, counts, "{on:?} are on");
                assert_eq!([task(0), task(1)], [0; 2]);
            }
            on.retain(|which| *which != off);
            bench.engine.detach_multi(programs[off].1).unwrap();
        }
        assert_eq!(call(bench.function(1), 0), expected(1, 0));
        assert_eq!(bench.engine.pool().free_bytes(), free);
    }
}
