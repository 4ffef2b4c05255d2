// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host in a Linux process: memory that is writable and executable, a thread as a task.
#![expect(dead_code, reason = "each test binary uses a part of it")]

use a64::Assembler;
use a64::ops::br;
use a64::reg::X16;
use std::arch::asm;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use trampoline::runtime::{SHADOW_ENTRY, TRACE_LEFT, TRACE_NESTING_MASK};
use trampoline::{Grace, Platform, PlatformError, Retired, Runtime, Shadow, State};

/// Text in the lower half, the pool in the upper.
pub(crate) const BYTES: usize = 128 << 10;

/// Memory that is writable and executable, as a test may have it.
pub(crate) struct Memory(pub(crate) u64);

impl Memory {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn word(&self, at: u64) -> Option<&'static AtomicU32> {
        let inside = (self.0..self.0 + BYTES as u64).contains(&at) && at.is_multiple_of(4);
        // SAFETY: an aligned word of the mapping, which is never unmapped and only accessed as atomics.
        inside.then(|| unsafe { &*(at as *const AtomicU32) })
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
    fn replace_word(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
        self.patch(at, old, new) // one thread, which is here
    }
    fn read(&self, at: u64) -> Option<u32> {
        Some(self.word(at)?.load(Ordering::Relaxed))
    }
    fn runtime(&self) -> Runtime {
        runtime(self.0)
    }
    fn defer(&self, retired: Retired, _: Grace) {
        retired.free(); // one thread, which is not in the pool
    }
}

/// Where the bench has the branch to [`admit`].
pub(crate) const ADMIT: u64 = 0x3000;
/// Where it has the branch to [`miss`].
pub(crate) const MISS: u64 = 0x3040;

/// As `Runtime::miss` says.
pub(crate) extern "C" fn miss(state: *const State) {
    // SAFETY: the state that the callee was made with, leaked.
    unsafe { &*state }.miss(0);
}

/// How many return addresses are replaced now.
pub(crate) fn pushed() -> u64 {
    let word = TASK.with(|task| task.as_ptr() as u64);
    let pointer: u64;
    // SAFETY: reads the thread pointer.
    unsafe { asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack)) };
    let first = word - pointer + 8 * (TOP as u64 + 1);
    (task(TOP) - first) / SHADOW_ENTRY as u64
}

std::thread_local! {
    /// What of hooks lies in a task: the recursion word, the count of reasons to stay, the count of sleepable programs.
    static TASK: [AtomicU64; FIELDS] = const { [const { AtomicU64::new(0) }; FIELDS] };
}

/// The fields: those named above, the shadow stack's top, its entries.
const TOP: usize = 3;
/// Entries of the shadow stack.
pub(crate) const ENTRIES: usize = 4;
const FIELDS: usize = TOP + 1 + ENTRIES * SHADOW_ENTRY as usize / 8;

/// This thread as a task: its variables lie above the thread pointer (AAELF64, "TLS variant 1").
fn runtime(text: u64) -> Runtime {
    let pointer: u64;
    // SAFETY: reads the thread pointer.
    unsafe { asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack)) };
    let task = TASK.with(|task| task.as_ptr() as u64);
    let word = u16::try_from(task - pointer).expect("near the thread pointer");
    let first = word + 8 * (TOP as u16 + 1);
    TASK.with(|task| {
        // Nothing is pushed yet.
        let empty = task[TOP].load(Ordering::Relaxed) == 0;
        if empty {
            task[TOP].store(first.into(), Ordering::Relaxed);
        }
    });
    Runtime {
        task: a64::SysReg::new(3, 3, 13, 0, 2), // TPIDR_EL0
        word,
        migrate: word + 8,
        trace: word + 16,
        admit: text + ADMIT,
        admit_stack: 0,
        shadow: Shadow {
            top: word + 8 * TOP as u16,
            end: first + ENTRIES as u16 * SHADOW_ENTRY as u16,
        },
        miss: text + MISS,
    }
}

/// A field, as far as it counts what is active.
pub(crate) fn task(field: usize) -> u64 {
    let mask = if field == 2 {
        TRACE_NESTING_MASK.into()
    } else {
        u64::MAX
    };
    TASK.with(|task| task[field].load(Ordering::Relaxed)) & mask
}

/// What a host does if the word is not zero: as `Runtime::admit` says.
pub(crate) extern "C" fn admit(literal: *const u64, frame: *mut u64) -> u64 {
    // SAFETY: the image's literal.
    let state = unsafe { literal.read() } as *const State;
    // SAFETY: the state that the callee was made with, leaked.
    let state = unsafe { &*state };
    let mut at = task(0) as *const u64;
    while !at.is_null() {
        // SAFETY: a frame of an image that is active on this thread, with a guard record.
        let (next, other) = unsafe { (at.add(2).read(), at.add(3).read() as *const u64) };
        // SAFETY: the literal of a program that is active.
        let other = unsafe { other.read() };
        if state.is_whole_context() || other == state.address() {
            state.miss(0);
            return 0;
        }
        at = next as *const u64;
    }
    // SAFETY: the frame's own guard record.
    unsafe { frame.add(2).write(task(0)) };
    // SAFETY: as above.
    unsafe { frame.add(3).write(literal as u64) };
    TASK.with(|task| task[0].store(frame as u64, Ordering::Relaxed));
    1
}

/// How often the outermost sleepable program was left.
pub(crate) fn times_left() -> u64 {
    TASK.with(|task| task[2].load(Ordering::Relaxed)) / u64::from(TRACE_LEFT)
}

/// Writes code at `at`; the address behind it.
pub(crate) fn write(memory: &Memory, at: u64, emit: impl Fn(&mut Assembler<'_>)) -> u64 {
    let mut words = [0; 128];
    let mut asm = Assembler::new(&mut words, at);
    emit(&mut asm);
    let len = asm.finish().unwrap();
    memory.write_code(at, &words[..len]).unwrap();
    at + 4 * len as u64
}

/// Writes a branch to a function of the test binary, which may be out of BL's reach.
pub(crate) fn branch_far(memory: &Memory, at: u64, to: *const ()) {
    write(memory, at, |asm| {
        asm.mov_imm(X16, to as u64);
        asm.emit(br(X16));
    });
}

/// Overwrites what a function may overwrite.
#[inline(always)]
pub(crate) fn spoil() {
    // SAFETY: all registers that AAPCS64 6.1.1 lets a function overwrite are declared.
    unsafe {
        asm!(
            "mov x0, #-1", "mov x1, #-1", "mov x2, #-1", "mov x3, #-1", "mov x4, #-1", "mov x5, #-1",
            "mov x6, #-1", "mov x7, #-1", "mov x8, #-1", "mov x9, #-1", "mov x10, #-1", "mov x11, #-1",
            "mov x12, #-1", "mov x13, #-1", "mov x14, #-1", "mov x15, #-1", "mov x16, #-1",
            "mov x17, #-1", "mov x30, #-1", "cmp x0, #0",
            clobber_abi("C"), out("x30") _,
        )
    }
}
