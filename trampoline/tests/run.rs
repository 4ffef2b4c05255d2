// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trampolines that run: on arm64 Linux, natively or under qemu-aarch64.
//!
//! `cargo test -p trampoline --target aarch64-unknown-linux-musl`

#![cfg(all(target_arch = "aarch64", target_os = "linux"))]

use a64::inst::PairMode;
use a64::ops::{add_imm, br, mov_sp, nop, ret, stp, str as store};
use a64::reg::*;
use a64::{Assembler, SP, Size, XZR};
use core::arch::asm;
use core::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use trampoline::{ArgSpec, Callee, Engine, Platform, PlatformError, Retired, Site, SiteTable};

/// Text in the lower half, the pool in the upper.
const BYTES: usize = 128 << 10;

/// Memory that is writable and executable, as a test may have it.
struct Memory(u64);

impl Memory {
    fn new() -> Self {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no other memory.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                BYTES,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "executable memory");
        Self(at as u64)
    }

    fn word(&self, at: u64) -> Option<&'static std::sync::atomic::AtomicU32> {
        let inside = (self.0..self.0 + BYTES as u64).contains(&at) && at.is_multiple_of(4);
        // SAFETY: an aligned word of the mapping, which is never unmapped and only accessed as atomics.
        inside.then(|| unsafe { &*(at as *const std::sync::atomic::AtomicU32) })
    }

    fn make_visible(&self, range: Range<u64>) {
        for line in range.step_by(4) {
            // SAFETY: maintenance of a mapped line changes no contents (Arm ARM B2.4.4).
            unsafe {
                asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) line)
            }
        }
    }
}

impl Platform for Memory {
    fn pool(&self) -> Range<u64> {
        self.0 + BYTES as u64 / 2..self.0 + BYTES as u64
    }
    fn write_code(&self, at: u64, words: &[u32]) -> Result<(), PlatformError> {
        for (at, word) in (at..).step_by(4).zip(words) {
            self.word(at)
                .ok_or(PlatformError::NotCode { at })?
                .store(*word, Ordering::Relaxed);
        }
        self.make_visible(at..at + 4 * words.len() as u64);
        Ok(())
    }
    fn sync_cores(&self) {}
    fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
        let word = self.word(at).ok_or(PlatformError::NotCode { at })?;
        let swapped = word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst);
        swapped.map_err(|found| PlatformError::Mismatch {
            at,
            expected: old,
            found,
        })?;
        self.make_visible(at..at + 4);
        Ok(())
    }
    fn read(&self, at: u64) -> Option<u32> {
        Some(self.word(at)?.load(Ordering::Relaxed))
    }
    fn defer(&self, retired: Retired) {
        retired.free(); // one thread, which is not in the pool
    }
}

/// What a place of execution saw: x0-x8, then x29, x30 and sp.
type Seen = [AtomicU64; 12];

fn seen() -> &'static Seen {
    Box::leak(Box::default())
}

fn values(seen: &Seen) -> Vec<u64> {
    seen.iter().map(|v| v.load(Ordering::Relaxed)).collect()
}

/// Writes code at `at`; the address behind it.
fn write(memory: &Memory, at: u64, emit: impl Fn(&mut Assembler<'_>)) -> u64 {
    let mut words = [0; 64];
    let mut asm = Assembler::new(&mut words, at);
    emit(&mut asm);
    let len = asm.finish().unwrap();
    memory.write_code(at, &words[..len]).unwrap();
    at + 4 * len as u64
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
    // SAFETY: overwrites what a function may overwrite (AAPCS64 6.1.1), all of it declared.
    unsafe {
        asm!(
            "mov x0, #-1",
            "mov x1, #-1",
            "mov x2, #-1",
            "mov x3, #-1",
            "mov x4, #-1",
            "mov x5, #-1",
            "mov x6, #-1",
            "mov x7, #-1",
            "mov x8, #-1",
            "mov x9, #-1",
            "mov x10, #-1",
            "mov x11, #-1",
            "mov x12, #-1",
            "mov x13, #-1",
            "mov x14, #-1",
            "mov x15, #-1",
            "mov x16, #-1",
            "mov x17, #-1",
            "cmp x0, #0",
            clobber_abi("C"),
        )
    }
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
    // The test binary may be out of BL's reach.
    let stub = memory.0 + 0x2000;
    write(&memory, stub, |asm| {
        asm.mov_imm(X16, program as *const () as u64);
        asm.emit(br(X16));
    });
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
            let id = b.engine.attach_entry(b.function, args, callee).unwrap();
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
            .attach_entry(b.function, ArgSpec::UNKNOWN, callee)
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
