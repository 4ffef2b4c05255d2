// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trampolines that run: on arm64 Linux, natively or under qemu-aarch64.
//!
//! `cargo test -p trampoline --target aarch64-unknown-linux-musl`

#![cfg(all(target_arch = "aarch64", target_os = "linux"))]

mod machine;

use a64::inst::PairMode;
use a64::ops::{add_imm, mov_sp, nop, ret, stp, str as store};
use a64::reg::*;
use a64::{SP, Size, XZR};
use core::arch::asm;
use machine::{ADMIT, BYTES, Memory, admit, branch_far, spoil, task, times_left, write};
use std::sync::atomic::{AtomicU64, Ordering};
use trampoline::{ArgSpec, Callee, Engine, Guard, Kind, Site, SiteTable, State};

/// What a place of execution saw: x0-x8, then x29, x30 and sp.
type Seen = [AtomicU64; 12];

fn seen() -> &'static Seen {
    Box::leak(Box::default())
}

fn values(seen: &Seen) -> Vec<u64> {
    seen.iter().map(|v| v.load(Ordering::Relaxed)).collect()
}

/// A function with a site that writes down what it sees, and returns 42.
fn target(memory: &Memory, at: u64, seen: &'static Seen) -> u64 {
    write(memory, at, |asm| {
        asm.emit(nop());
        asm.emit(nop());
        asm.mov_imm(X9, seen.as_ptr() as u64);
        for (pair, offset) in [(X0, X1), (X2, X3), (X4, X5), (X6, X7)]
            .iter()
            .zip((0..).step_by(16))
        {
            asm.emit(stp(PairMode::Offset, pair.0, pair.1, X9, offset));
        }
        asm.emit(store(X8, X9, 64));
        asm.emit(stp(PairMode::Offset, X29, X30, X9, 72));
        asm.emit(mov_sp(X10, SP));
        asm.emit(store(X10, X9, 88));
        asm.mov_imm(X0, 42);
        asm.emit(ret());
    })
}

/// What a program saw: how often it ran, its ctx, and the frame record below that.
#[derive(Default)]
struct Hits {
    count: AtomicU64,
    ctx: [AtomicU64; 8],
    record: [AtomicU64; 2],
    words: usize,
}

extern "C" fn program(ctx: *const u64, data: u64) -> u64 {
    // SAFETY: `data` is the leaked Hits that the callee was made with.
    let hits = unsafe { &*(data as *const Hits) };
    hits.count.fetch_add(1, Ordering::Relaxed);
    for (i, slot) in hits.ctx.iter().enumerate().take(hits.words) {
        // SAFETY: the image stored `words` words at ctx.
        slot.store(unsafe { ctx.wrapping_add(i).read() }, Ordering::Relaxed);
    }
    for (i, slot) in hits.record.iter().enumerate() {
        // SAFETY: below ctx lies the image's frame record of two words.
        slot.store(
            unsafe { ctx.wrapping_sub(2).wrapping_add(i).read() },
            Ordering::Relaxed,
        );
    }
    spoil();
    u64::MAX
}

/// Where the caller was: x29, x30 as the function should see it, sp.
type Caller = [u64; 3];

/// Calls with x0 = 0x100, x1 = 0x101 and so on; the result, and what the callee should see.
fn call(function: u64) -> (u64, Caller) {
    let (result, fp, lr, sp): (u64, u64, u64, u64);
    // SAFETY: a function of the C ABI is called with all that it may change declared as changed.
    unsafe {
        asm!(
            "mov x20, x29", "mov x21, sp", "adr x22, 2f", "blr x16", "2:",
            in("x16") function,
            inlateout("x0") 0x100u64 => result,
            in("x1") 0x101u64, in("x2") 0x102u64, in("x3") 0x103u64, in("x4") 0x104u64,
            in("x5") 0x105u64, in("x6") 0x106u64, in("x7") 0x107u64, in("x8") 0x108u64,
            out("x20") fp, out("x21") sp, out("x22") lr,
            clobber_abi("C"),
        )
    }
    (result, [fp, lr, sp])
}

struct Bench {
    engine: Engine<Memory>,
    function: u64,
    seen: &'static Seen,
    stub: u64,
}

fn bench() -> Bench {
    let memory = Memory::new();
    let (function, seen) = (memory.0 + 0x1000, seen());
    target(&memory, function, seen);
    let stub = memory.0 + 0x2000;
    for (at, to) in [
        (stub, program as *const ()),
        (stub + 0x40, acting as *const ()),
        (memory.0 + ADMIT, admit as *const ()),
    ] {
        branch_far(&memory, at, to);
    }
    let sites = SiteTable::new([Site {
        address: function,
        notrace: false,
    }])
    .unwrap();
    Bench {
        engine: Engine::new(memory, sites).unwrap(),
        function,
        seen,
        stub,
    }
}

impl Bench {
    fn callee(&self, words: usize) -> (&'static Hits, Callee) {
        let hits: &'static Hits = Box::leak(Box::new(Hits {
            words,
            ..Hits::default()
        }));
        let (address, data) = (self.stub, Some(hits as *const Hits as u64));
        (
            hits,
            Callee {
                address,
                data,
                name: "program".into(),
                stack_bytes: 256,
                original_stack: 0,
                guard: Guard::None,
                state: 0,
                sleepable: false,
                keep: None,
            },
        )
    }

    /// Calls, and checks that the function saw what the caller gave it, and the caller its result.
    fn check(&self, registers: usize, indirect_result: bool) -> Caller {
        self.seen.iter().for_each(|v| v.store(0, Ordering::Relaxed));
        let (result, caller) = call(self.function);
        assert_eq!(result, 42);
        let seen = values(self.seen);
        let expected: Vec<u64> = (0x100..0x108).collect();
        assert_eq!(
            seen[..registers],
            expected[..registers],
            "argument registers"
        );
        assert!(!indirect_result || seen[8] == 0x108, "x8 is {:#x}", seen[8]);
        assert_eq!(seen[9..], caller, "x29, x30, sp");
        caller
    }
}

#[test]
fn the_bench_itself_works() {
    bench().check(8, true);
}

#[test]
fn a_hooked_function_gets_its_registers_and_the_program_its_context() {
    for registers in 0..=8u8 {
        for indirect_result in [false, true] {
            let mut b = bench();
            let (hits, callee) = b.callee(registers as usize);
            let args = ArgSpec::new(registers, indirect_result).unwrap();
            let id = b
                .engine
                .attach(b.function, args, Kind::Fentry, callee)
                .unwrap();
            for count in 1..=3 {
                let [fp, lr, _] = b.check(registers as usize, indirect_result);
                assert_eq!(hits.count.load(Ordering::Relaxed), count);
                let ctx = hits.ctx.iter().map(|v| v.load(Ordering::Relaxed));
                assert!(
                    ctx.take(registers as usize)
                        .eq(0x100..0x100 + registers as u64)
                );
                let record = [&hits.record[0], &hits.record[1]].map(|v| v.load(Ordering::Relaxed));
                assert_eq!(record, [fp, lr], "the frame record leads to the caller");
            }
            b.engine.detach(id).unwrap();
            b.check(8, true);
            assert_eq!(hits.count.load(Ordering::Relaxed), 3);
        }
    }
}

#[test]
fn several_programs_come_and_go_while_the_function_works() {
    let mut b = bench();
    let mut attached = Vec::new();
    for _ in 0..6 {
        let (hits, callee) = b.callee(8);
        let id = b
            .engine
            .attach(b.function, ArgSpec::UNKNOWN, Kind::Fentry, callee)
            .unwrap();
        attached.push((id, hits));
        b.check(8, true);
    }
    for (index, (_, hits)) in attached.iter().enumerate() {
        assert_eq!(hits.count.load(Ordering::Relaxed), 6 - index as u64);
        assert_eq!(
            hits.ctx[7].load(Ordering::Relaxed),
            0x107,
            "each one gets the whole context"
        );
    }
    while !attached.is_empty() {
        let (id, hits) = attached.remove(attached.len() / 2);
        let before = hits.count.load(Ordering::Relaxed);
        b.engine.detach(id).unwrap();
        b.check(8, true);
        assert_eq!(hits.count.load(Ordering::Relaxed), before);
    }
    let pool = b.engine.pool();
    assert_eq!(pool.free_bytes(), BYTES as u64 / 2);
}

/// What the assembler makes of constants, executed.
#[test]
fn constants_arrive() {
    let memory = Memory::new();
    for value in [
        0,
        1,
        u64::MAX,
        0x5555_5555_5555_1234,
        0xffff_fff0,
        0x1234_5678_9abc_def0,
        memory.0 + 0x1234,
    ] {
        write(&memory, memory.0, |asm| {
            asm.mov_imm(X0, value);
            asm.emit(add_imm(Size::X, X0, X0, 1));
            asm.emit(a64::ops::sub(Size::X, X0, X0, XZR));
            asm.emit(ret());
        });
        assert_eq!(call(memory.0).0, value.wrapping_add(1));
    }
}

/// A program that does as it is told, and writes down what it saw.
struct Acts {
    state: State,
    log: std::sync::Mutex<Vec<Vec<u64>>>,
    /// Words of its context to write down.
    words: usize,
    /// What it returns.
    result: AtomicU64,
    /// A function that it calls, itself hooked, so many times deep.
    calls: AtomicU64,
    depth: AtomicU64,
    /// Whether it uses the word of a session.
    session: bool,
}

thread_local! {
    /// The `data` of the programs that ran on this thread, as they came.
    static RAN: std::cell::RefCell<Vec<u64>> = const { std::cell::RefCell::new(Vec::new()) };
}

extern "C" fn acting(ctx: *mut u64, data: u64) -> u64 {
    RAN.with_borrow_mut(|ran| ran.push(data));
    // SAFETY: `data` is the leaked value that the callee was made with.
    let acts = unsafe { &*(data as *const Acts) };
    // SAFETY: the image stored so many words at ctx.
    let word = |i: usize| unsafe { ctx.wrapping_add(i).read() };
    let mut seen: Vec<_> = (0..acts.words).map(word).collect();
    if acts.session {
        // SAFETY: a session's word lies below ctx: its address, and in bit 0 whether this is the exit.
        let session = unsafe { ctx.wrapping_sub(1).read() };
        let word = (session & !1) as *mut u64;
        // SAFETY: the session's own word.
        seen.extend([session & 1, unsafe { word.read() }]);
        // SAFETY: as above.
        unsafe { word.write(word.read() + 0x77) };
    }
    seen.extend([task(0).min(1), task(1), task(2)]);
    acts.log.lock().unwrap().push(seen);
    if acts.calls.load(Ordering::Relaxed) != 0 && acts.depth.fetch_sub(1, Ordering::Relaxed) > 0 {
        call(acts.calls.load(Ordering::Relaxed));
    }
    acts.depth.fetch_add(1, Ordering::Relaxed);
    acts.result.load(Ordering::Relaxed)
}

fn acts(words: usize, whole: bool, session: bool) -> &'static Acts {
    Box::leak(Box::new(Acts {
        state: State::new(whole),
        log: std::sync::Mutex::default(),
        words,
        result: AtomicU64::new(0),
        calls: AtomicU64::new(0),
        depth: AtomicU64::new(1),
        session,
    }))
}

impl Acts {
    fn take(&self) -> Vec<Vec<u64>> {
        core::mem::take(&mut self.log.lock().unwrap())
    }
}

impl Bench {
    fn acting(&self, acts: &'static Acts, guard: Guard) -> Callee {
        Callee {
            address: self.stub + 0x40,
            data: Some(acts as *const Acts as u64),
            name: "acting".into(),
            stack_bytes: 256,
            original_stack: 0,
            guard,
            state: acts.state.address(),
            sleepable: false,
            keep: None,
        }
    }
}

const GUARDS: [Guard; 3] = [Guard::None, Guard::Pinned, Guard::Word];
/// Two arguments, a result.
fn two() -> ArgSpec {
    ArgSpec::new(2, false).unwrap()
}

#[test]
fn an_exit_program_gets_arguments_and_result() {
    for guard in GUARDS {
        let mut b = bench();
        let acts = acts(3, false, false);
        let callee = b.acting(acts, guard);
        let id = b
            .engine
            .attach(b.function, two(), Kind::Fexit, callee)
            .unwrap();
        let protected = [
            (guard == Guard::Word) as u64,
            (guard == Guard::Pinned) as u64,
            0,
        ];
        b.check_called(2);
        assert_eq!(acts.take(), [[[0x100, 0x101, 42], protected].concat()]);
        assert_eq!([task(0), task(1), task(2)], [0; 3], "{guard:?}");
        b.engine.detach(id).unwrap();
        b.check(2, false);
        assert!(acts.take().is_empty());
        assert_eq!(b.engine.pool().free_bytes(), BYTES as u64 / 2);
    }
}

impl Bench {
    /// As `check`, of a function that the image calls: it sees another x29, x30 and sp.
    fn check_called(&self, registers: usize) {
        self.seen.iter().for_each(|v| v.store(0, Ordering::Relaxed));
        let (result, _) = call(self.function);
        assert_eq!(result, 42);
        let expected: Vec<u64> = (0x100..0x108).collect();
        assert_eq!(values(self.seen)[..registers], expected[..registers]);
    }
}

#[test]
fn fmod_ret_skips_the_function_or_does_not() {
    for guard in GUARDS {
        let mut b = bench();
        let (first, modify, exit) = (
            acts(2, false, false),
            acts(3, false, false),
            acts(3, false, false),
        );
        for (kind, acts) in [
            (Kind::Fexit, exit),
            (Kind::FmodRet, modify),
            (Kind::Fentry, first),
        ] {
            let callee = b.acting(acts, guard);
            b.engine.attach(b.function, two(), kind, callee).unwrap();
        }
        let protected = [
            (guard == Guard::Word) as u64,
            (guard == Guard::Pinned) as u64,
            0,
        ];
        b.check_called(2);
        assert_eq!(first.take(), [[&[0x100, 0x101], &protected[..]].concat()]);
        assert_eq!(
            modify.take(),
            [[&[0x100, 0x101, 0], &protected[..]].concat()]
        );
        assert_eq!(
            exit.take(),
            [[&[0x100, 0x101, 42], &protected[..]].concat()]
        );

        modify.result.store(7, Ordering::Relaxed);
        b.seen.iter().for_each(|v| v.store(0, Ordering::Relaxed));
        let (result, _) = call(b.function);
        assert_eq!(result, 7);
        assert_eq!(values(b.seen), [0; 12], "the function ran");
        assert_eq!(exit.take(), [[&[0x100, 0x101, 7], &protected[..]].concat()]);
        assert_eq!([task(0), task(1), task(2)], [0; 3]);
    }
}

#[test]
fn a_program_in_place_of_the_function() {
    for guard in [Guard::Word, Guard::Pinned, Guard::None] {
        let mut b = bench();
        let (by, exit) = (acts(2, false, false), acts(3, false, false));
        let callee = b.acting(exit, guard);
        b.engine
            .attach(b.function, two(), Kind::Fexit, callee)
            .unwrap();
        let callee = b.acting(by, guard);
        let id = b
            .engine
            .attach(b.function, two(), Kind::Freplace, callee)
            .unwrap();
        for result in [7, 0] {
            by.result.store(result, Ordering::Relaxed);
            b.seen.iter().for_each(|v| v.store(0, Ordering::Relaxed));
            let (returned, _) = call(b.function);
            assert_eq!(returned, result);
            assert_eq!(values(b.seen), [0; 12], "the function ran");
            assert_eq!(by.take()[0][..2], [0x100, 0x101]);
            assert_eq!(exit.take()[0][..3], [0x100, 0x101, result]);
        }
        if guard == Guard::Word {
            // It calls the function that it replaces: turned away there, so the function runs.
            by.result.store(9, Ordering::Relaxed);
            by.calls.store(b.function, Ordering::Relaxed);
            let (returned, _) = call(b.function);
            assert_eq!(returned, 9);
            assert_ne!(values(b.seen), [0; 12], "the function did not run");
            assert_eq!((by.take().len(), by.state.misses()[0]), (1, 1));
            assert_eq!(exit.take().len(), 2);
        }
        assert_eq!([task(0), task(1), task(2)], [0; 3]);
        b.engine.detach(id).unwrap();
        b.check_called(2);
    }
}

#[test]
fn sessions_have_a_word_each() {
    let mut b = bench();
    let sessions = [
        acts(2, false, true),
        acts(2, false, true),
        acts(2, false, true),
    ];
    for acts in sessions {
        let callee = b.acting(acts, Guard::Word);
        b.engine
            .attach(b.function, two(), Kind::Fsession, callee)
            .unwrap();
    }
    for _ in 0..2 {
        b.check_called(2);
        for acts in sessions {
            let entry = vec![0x100, 0x101, 0, 0, 1, 0, 0];
            let exit = vec![0x100, 0x101, 1, 0x77, 1, 0, 0];
            assert_eq!(acts.take(), [entry, exit]);
        }
    }
}

#[test]
fn a_program_is_turned_away_from_itself_and_that_is_counted() {
    for (whole, kind) in [false, true]
        .into_iter()
        .flat_map(|w| [Kind::Fentry, Kind::Fexit, Kind::Fsession, Kind::FmodRet].map(|k| (w, k)))
    {
        let mut b = bench();
        let (caller, other) = (acts(2, whole, false), acts(2, whole, false));
        caller.calls.store(b.function, Ordering::Relaxed);
        for acts in [caller, other] {
            let callee = b.acting(acts, Guard::Word);
            b.engine.attach(b.function, two(), kind, callee).unwrap();
        }
        b.check_called(2);
        let runs = if kind == Kind::Fsession { 2 } else { 1 };
        // The nested call: the first is turned away, the second is not active yet.
        let nested = if whole { 0 } else { runs };
        let misses = [caller.state.misses()[0], other.state.misses()[0]];
        assert_eq!(caller.take().len(), runs, "{kind} whole {whole}");
        assert_eq!(
            other.take().len(),
            runs + runs * nested,
            "{kind} whole {whole}"
        );
        assert_eq!(misses[0] as usize, runs * runs, "{kind} whole {whole}");
        assert_eq!(misses[1] as usize, if whole { runs * runs } else { 0 });
        assert_eq!([task(0), task(1), task(2)], [0; 3]);
    }
}

#[test]
fn sleepable_programs_are_counted_while_they_run() {
    let mut b = bench();
    let (normal, sleepable) = (acts(2, false, false), acts(2, false, false));
    for (acts, sleeps) in [(normal, false), (sleepable, true)] {
        let callee = Callee {
            sleepable: sleeps,
            ..b.acting(acts, Guard::Word)
        };
        b.engine
            .attach(b.function, two(), Kind::Fexit, callee)
            .unwrap();
    }
    b.check_called(2);
    assert_eq!(sleepable.take(), [[0x100, 0x101, 1, 0, 1]]);
    let left = times_left();
    assert_eq!(left, 1, "leaving the outermost is seen");
    assert_eq!([task(0), task(1), task(2)], [0; 3]);
}

/// A function with 12 arguments: the sum of those on the stack, each with its weight.
fn twelve(memory: &Memory, at: u64) {
    write(memory, at, |asm| {
        asm.emit(nop());
        asm.emit(nop());
        asm.mov_imm(X0, 0);
        for i in 0..4 {
            asm.emit(a64::ops::ldr(X9, SP, 8 * i));
            asm.mov_imm(X10, i as u64 + 1);
            asm.emit(a64::ops::madd(Size::X, X0, X9, X10, X0));
        }
        asm.emit(ret());
    });
}

#[test]
fn arguments_on_the_stack_arrive() {
    let mut b = bench();
    twelve(b.engine.platform(), b.function);
    let function: extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u64 =
        // SAFETY: the code just written, of that type.
        unsafe { std::mem::transmute(b.function) };
    let run = || function(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    assert_eq!(run(), 110);
    let args = ArgSpec::new(8, false)
        .and_then(|a| a.with_stack(4))
        .unwrap();
    for kind in [Kind::Fentry, Kind::FmodRet, Kind::Fexit, Kind::Fsession] {
        let acts = acts(13, false, false);
        let callee = b.acting(acts, Guard::Word);
        let id = b.engine.attach(b.function, args, kind, callee).unwrap();
        assert_eq!(run(), 110, "{kind}");
        for seen in acts.take() {
            assert_eq!(seen[..12], (1..=12).collect::<Vec<_>>(), "{kind}");
        }
        b.engine.detach(id).unwrap();
    }
    let callee = b.acting(acts(0, false, false), Guard::None);
    let refused = b
        .engine
        .attach(b.function, ArgSpec::UNKNOWN, Kind::Fexit, callee);
    assert_eq!(refused.unwrap_err().reason, trampoline::Reason::Arguments);
}

#[test]
fn a_hundred_programs_of_all_kinds_on_one_function() {
    let mut b = bench();
    let kinds = [Kind::Fentry, Kind::Fexit, Kind::FmodRet, Kind::Fsession];
    let all: Vec<_> = (0..100)
        .map(|n| {
            let (acts, kind) = (acts(2, false, false), kinds[n % 4]);
            let callee = b.acting(acts, Guard::Word);
            let id = b.engine.attach(b.function, two(), kind, callee).unwrap();
            (acts, kind, id)
        })
        .collect();
    b.check_called(2);
    for (acts, kind, _) in &all {
        assert_eq!(
            acts.take().len(),
            if *kind == Kind::Fsession { 2 } else { 1 }
        );
    }
    for (_, _, id) in all {
        b.engine.detach(id).unwrap();
    }
    b.check(2, false);
    assert_eq!(b.engine.pool().free_bytes(), BYTES as u64 / 2);
}

#[test]
fn programs_run_in_the_order_in_which_they_were_attached() {
    use Kind::{Fentry, Fexit, FmodRet, Fsession};
    // The kinds in attach order, and the programs that run, by their number in that.
    let mixed = [
        Fexit, FmodRet, Fsession, Fentry, Fsession, Fexit, FmodRet, Fentry,
    ];
    let rows: [(&[Kind], &[usize]); 5] = [
        (&[Fentry; 4], &[0, 1, 2, 3]),
        (&[Fexit; 4], &[0, 1, 2, 3]),
        (&[FmodRet; 4], &[0, 1, 2, 3]),
        (&[Fsession; 4], &[0, 1, 2, 3, 0, 1, 2, 3]),
        (&mixed, &[2, 3, 4, 7, 1, 6, 0, 2, 4, 5]),
    ];
    for guard in GUARDS {
        for (kinds, expected) in rows {
            let mut b = bench();
            let all: Vec<_> = kinds.iter().map(|_| acts(2, false, false)).collect();
            let ids = kinds.iter().zip(&all).map(|(kind, acts)| {
                let callee = b.acting(acts, guard);
                b.engine.attach(b.function, two(), *kind, callee).unwrap()
            });
            let mut ids: Vec<_> = ids.collect();
            let order = |b: &Bench| {
                RAN.take();
                b.check_called(2);
                let place = |data: u64| all.iter().position(|a| *a as *const Acts as u64 == data);
                let ran = RAN.take().into_iter();
                ran.map(|data| place(data).unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(order(&b), expected, "{kinds:?}, {guard:?}");
            b.engine.detach(ids.remove(1)).unwrap();
            let left: Vec<_> = expected.iter().copied().filter(|n| *n != 1).collect();
            assert_eq!(order(&b), left, "{kinds:?}, {guard:?}, without the second");
        }
    }
}
