// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel thread: what the scheduler, trampolines and grace periods know of it.
//!
//! Trampolines reach the fields in [`layout`] with plain loads and stores, through SP_EL0. That is enough, with no exclusive
//! access and nothing masked: only the core that runs the task writes them, and whatever interrupts it there and writes
//! them too has put them back before it returns.

use crate::arch::lock::{SpinLock, Swap};
use crate::mm::stack::Stack;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence};

/// Where a task is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum State {
    /// On the queue or on a core.
    Runnable = 0,
    /// Waiting to be woken; of an idle task: off its core, and quiescent there.
    Blocked = 1,
    /// Over; its stack may be used again.
    Dead = 2,
    /// Being made: no wake-up, meant for the task that it was, may start it.
    New = 3,
}

/// What a task was started for.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Who waits for a task's end.
pub(crate) trait End: Send + Sync {
    /// Someone still does.
    fn is_awaited(&self) -> bool;
    /// The task ended before its job was done.
    fn died(&self);
}

/// A return address that an exit hook has replaced.
///
/// To push: read `shadow_top`; at [`layout::SHADOW_END`] count a miss and leave the function alone; else *first* raise
/// `shadow_top` by [`layout::SHADOW_ENTRY`], *then* write the entry, then replace the return address. To pop: *first*
/// read the entry, *then* lower `shadow_top`. An interrupt on this core between any two of these instructions pushes
/// above what is claimed and has popped it before it returns, so it never writes an entry in use and leaves `shadow_top`
/// as it was; program order is all the order this needs, for an exception is taken between two instructions of the same
/// core. Other cores read the stack of a task that runs nowhere, under the queue's lock. An entry that is claimed and not
/// written yet holds an old one's words: the unwinder takes an entry only for a frame whose return address is `landing`, which
/// is put there last, and the scan for addresses at worst finds one too many.
#[repr(C)]
pub(crate) struct ShadowEntry {
    /// Where the function returns to.
    pub return_address: AtomicU64,
    /// sp at the function's entry; its frame record lies below.
    pub frame: AtomicU64,
    /// What the return address was replaced by: where the exit hook begins.
    pub landing: AtomicU64,
    /// The hook's own.
    pub cookie: AtomicU64,
}

impl ShadowEntry {
    const fn new() -> ShadowEntry {
        ShadowEntry {
            return_address: AtomicU64::new(0),
            frame: AtomicU64::new(0),
            landing: AtomicU64::new(0),
            cookie: AtomicU64::new(0),
        }
    }
}

/// Replaced return addresses that a task can have at a time, over all contexts on its stack.
pub(crate) const SHADOW_ENTRIES: usize = 64;

/// A kernel thread.
#[repr(C)]
pub(crate) struct Task {
    /// Heads the list of programs active in the present context (DESIGN 6); vectors.s reads it at offset 0.
    pub word: AtomicU64,
    /// Tasks-trace RCU readers, which may block. [`layout::TRACE_NESTING_MASK`]: how many this task is in;
    /// above: how often it has left the outermost.
    pub trace_nesting: AtomicU32,
    /// It stays on its core while this is not 0.
    pub migrate: AtomicU32,
    /// No other task takes its core while this is not 0.
    pub preempt: AtomicU32,
    /// Offset in the task of the shadow stack's next free entry.
    pub shadow_top: AtomicU32,
    /// Replaced return addresses.
    shadow: [ShadowEntry; SHADOW_ENTRIES],
    /// Which of two versions of functions that are being replaced it runs (`hook/livepatch.rs`): a switch goes by it. Written under
    /// the queue's lock while the task runs nowhere, else by its own core's interrupt handler.
    pub patch: AtomicU32,
    /// Saved stack pointer while it does not run.
    pub sp: AtomicUsize,
    pub(crate) state: AtomicU32,
    /// Bits of contexts in which something traces the Linux way (arch/linux.rs).
    pub(crate) trace_recursion: AtomicU32,
    /// Nesting of RCU readers of the Linux way. Grace periods here do not ask for it: they wait for a voluntary switch.
    pub(crate) rcu_nesting: AtomicU32,
    /// Run context of the program that runs the Linux way, 0 for none.
    pub(crate) run_context: AtomicU64,
    /// Locks that block which it holds.
    pub(crate) locks: AtomicU32,
    /// A wake-up came while it was still deciding to block.
    pub(crate) woken: AtomicBool,
    pub(crate) idle: AtomicBool,
    /// An idle task takes the interrupt that ended its sleep: in code without a site, so in no trampoline.
    pub(crate) resting: AtomicBool,
    /// A core runs it; if not, all its registers are on its stack. Holds under the queue's lock.
    pub(crate) running: AtomicBool,
    /// Times it gave up its core of its own will: quiescent states for tasks RCU.
    pub voluntary: AtomicU64,
    /// Core it runs or last ran on.
    pub(crate) core: AtomicUsize,
    /// The last tasks-trace RCU grace period that it no longer holds up.
    pub(crate) trace_quiescent: AtomicU64,
    /// A tasks-trace RCU grace period's number, low half, and how often it had left when first seen in that.
    pub(crate) trace_first: AtomicU64,
    /// Cores it may run on, a bit each.
    pub(crate) affinity: AtomicU64,
    /// It left its core inside the executable pool or with programs active, and has to go on there.
    pub(crate) bound: AtomicBool,
    /// The next task in the queue that it waits in.
    pub(crate) next_waiter: Swap<Task>,
    /// Wake-up time in counter ticks, 0 for none.
    pub(crate) wake_at: AtomicU64,
    pub(crate) id: AtomicU64,
    /// One past its stack, 0 before it has one.
    pub(crate) stack_top: AtomicUsize,
    pub(crate) stack: SpinLock<Option<Stack>>,
    pub(crate) job: SpinLock<Option<Job>>,
    /// Its stack was used up, paint and all.
    pub(crate) broken: AtomicBool,
    /// Who waits for its end.
    pub(crate) end: SpinLock<Option<Arc<dyn End>>>,
    pub(crate) name: SpinLock<heapless::String<32>>,
    /// The name's first bytes, for those who may not take a lock; written before the task runs.
    short_name: [AtomicU64; 2],
}

/// What trampolines use of the current task: byte offsets from SP_EL0. All fit the immediates of LDR, STR and ADD.
pub(crate) mod layout {
    use super::{SHADOW_ENTRIES, ShadowEntry, Task, offset_of};

    /// The recursion word, 64 bits. A task stays on its core, as if migration were disabled, while its own word leads to a program that
    /// has not said that it may be moved.
    pub(crate) const WORD: usize = offset_of!(Task, word);
    /// Tasks-trace RCU readers, 32 bits. To enter, add 1. To leave, subtract 1, and if then the bits of [`TRACE_NESTING_MASK`]
    /// are 0, add [`TRACE_LEFT`] (LDR, SUB, TST, ADD, CSEL, STR): a task that is asleep in one reader after the other
    /// is never seen outside of one, and would hold up a grace period for good.
    pub(crate) const TRACE_NESTING: usize = offset_of!(Task, trace_nesting);
    /// The bits that count how many readers the task is in.
    pub(crate) const TRACE_NESTING_MASK: u32 = 0xffff;
    /// What leaving the outermost reader adds; it wraps.
    pub(crate) const TRACE_LEFT: u32 = 0x1_0000;
    /// Nesting of migrate_disable, 32 bits.
    pub(crate) const MIGRATE: usize = offset_of!(Task, migrate);
    /// Nesting of preempt_disable, 32 bits.
    pub(crate) const PREEMPT: usize = offset_of!(Task, preempt);
    /// Offset in the task of the shadow stack's next free entry, 32 bits.
    pub(crate) const SHADOW_TOP: usize = offset_of!(Task, shadow_top);
    /// The first entry's offset: SHADOW_TOP holds this when nothing is pushed.
    pub(crate) const SHADOW_START: usize = offset_of!(Task, shadow);
    /// Bytes of an entry.
    pub(crate) const SHADOW_ENTRY: usize = size_of::<ShadowEntry>();
    /// SHADOW_TOP holds this when no entry is left.
    pub(crate) const SHADOW_END: usize = SHADOW_START + SHADOW_ENTRIES * SHADOW_ENTRY;
    /// The version of functions that are being replaced, 32 bits: 0 or 1.
    pub(crate) const PATCH: usize = offset_of!(Task, patch);
    /// In an entry: where the function returns to, 64 bits.
    pub(crate) const ENTRY_RETURN: usize = offset_of!(ShadowEntry, return_address);
    /// In an entry: sp at the function's entry, 64 bits.
    pub(crate) const ENTRY_FRAME: usize = offset_of!(ShadowEntry, frame);
    /// In an entry: what the return address was replaced by, 64 bits.
    pub(crate) const ENTRY_LANDING: usize = offset_of!(ShadowEntry, landing);
    /// In an entry: the hook's own word, 64 bits.
    pub(crate) const ENTRY_COOKIE: usize = offset_of!(ShadowEntry, cookie);

    const _: () = {
        assert!(WORD == 0, "vectors.s reads it there");
        assert!(TRACE_NESTING == 8 && MIGRATE == 12 && PREEMPT == 16 && SHADOW_TOP == 20);
        assert!(SHADOW_START == 24 && SHADOW_ENTRY == 32);
        assert!(PATCH < 1 << 12);
        assert!(SHADOW_END < 1 << 12, "CMP and ADD take 12 bits");
        assert!(ENTRY_RETURN == 0 && ENTRY_FRAME == 8, "one STP writes both");
        assert!(
            ENTRY_LANDING == 16 && ENTRY_COOKIE == 24,
            "one STP writes both"
        );
    };
}

impl ShadowEntry {
    /// All of it, for the search for addresses.
    pub(crate) fn words(&self) -> [u64; 4] {
        [
            &self.return_address,
            &self.frame,
            &self.landing,
            &self.cookie,
        ]
        .map(|word| word.load(Ordering::Relaxed))
    }
}

impl Task {
    /// Where its number lies, for compiled programs: bytes from its address.
    pub(crate) const ID_OFFSET: u32 = offset_of!(Task, id) as u32;

    /// The task that boot code runs in.
    pub(crate) const fn boot() -> Task {
        Task {
            word: AtomicU64::new(0),
            trace_nesting: AtomicU32::new(0),
            migrate: AtomicU32::new(0),
            preempt: AtomicU32::new(1),
            shadow_top: AtomicU32::new(layout::SHADOW_START as u32),
            shadow: [const { ShadowEntry::new() }; SHADOW_ENTRIES],
            patch: AtomicU32::new(0),
            sp: AtomicUsize::new(0),
            state: AtomicU32::new(State::Runnable as u32),
            trace_recursion: AtomicU32::new(0),
            rcu_nesting: AtomicU32::new(0),
            run_context: AtomicU64::new(0),
            locks: AtomicU32::new(0),
            woken: AtomicBool::new(false),
            idle: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            running: AtomicBool::new(false),
            voluntary: AtomicU64::new(0),
            core: AtomicUsize::new(0),
            trace_quiescent: AtomicU64::new(0),
            trace_first: AtomicU64::new(0),
            affinity: AtomicU64::new(u64::MAX),
            bound: AtomicBool::new(false),
            next_waiter: Swap::new(),
            wake_at: AtomicU64::new(0),
            id: AtomicU64::new(0),
            stack_top: AtomicUsize::new(0),
            stack: SpinLock::new(None),
            job: SpinLock::new(None),
            broken: AtomicBool::new(false),
            end: SpinLock::new(None),
            name: SpinLock::new(heapless::String::new()),
            short_name: [
                AtomicU64::new(u64::from_le_bytes(*b"boot\0\0\0\0")),
                AtomicU64::new(0),
            ],
        }
    }

    /// Forgets the life that it had before.
    pub(crate) fn begin_life(&self) {
        self.word.store(0, Ordering::Relaxed);
        self.trace_nesting.store(0, Ordering::Relaxed);
        self.migrate.store(0, Ordering::Relaxed);
        self.preempt.store(0, Ordering::Relaxed);
        self.shadow_top
            .store(layout::SHADOW_START as u32, Ordering::Relaxed);
        self.trace_recursion.store(0, Ordering::Relaxed);
        self.rcu_nesting.store(0, Ordering::Relaxed);
        self.run_context.store(0, Ordering::Relaxed);
        self.locks.store(0, Ordering::Relaxed);
        self.woken.store(false, Ordering::Relaxed);
        self.running.store(false, Ordering::Relaxed);
        self.bound.store(false, Ordering::Relaxed);
        self.wake_at.store(0, Ordering::Relaxed);
    }

    /// What it was spawned as; "boot" before there are tasks.
    pub(crate) fn name(&self) -> heapless::String<32> {
        match self.name.try_lock() {
            Some(name) if !name.is_empty() => name.clone(),
            _ => heapless::String::try_from("boot").unwrap_or_default(),
        }
    }

    /// The first 15 bytes of its name, and zeros. Any context: no lock.
    pub(crate) fn short_name(&self) -> [u8; 16] {
        let [low, high] = self
            .short_name
            .each_ref()
            .map(|word| word.load(Ordering::Relaxed));
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }

    /// Names it, before it runs.
    pub(crate) fn set_name(&self, name: heapless::String<32>) {
        let mut bytes = [0; 16];
        let last = bytes.len() - 1;
        for (to, from) in bytes.iter_mut().take(last).zip(name.bytes()) {
            *to = from;
        }
        for (word, bytes) in self.short_name.iter().zip(bytes.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        *self.name.lock() = name;
    }

    /// Number of this life.
    pub(crate) fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    /// Where it is in its life.
    pub(crate) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Runnable,
            1 => State::Blocked,
            2 => State::Dead,
            _ => State::New,
        }
    }

    /// The core it runs or last ran on.
    pub(crate) fn core(&self) -> usize {
        self.core.load(Ordering::Relaxed)
    }

    /// Whether it is a core's idle task.
    pub(crate) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// Whether someone waits for its end.
    pub(crate) fn is_awaited(&self) -> bool {
        self.end.lock().as_ref().is_some_and(|end| end.is_awaited())
    }

    /// Whether another task may take its core now.
    pub(crate) fn preemptible(&self) -> bool {
        self.preempt.load(Ordering::Relaxed) == 0
    }

    /// The addresses of its stack; none before it has one. Takes no lock: a task keeps its stack for good.
    pub(crate) fn stack_range(&self) -> core::ops::Range<usize> {
        let top = self.stack_top.load(Ordering::Relaxed);
        top.saturating_sub(crate::mm::layout::STACK_SIZE)..top
    }

    /// The next task on its stack finds that painted anew: this one used more than the kernel does, on purpose.
    pub(crate) fn stack_was_used_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Most bytes of stack it ever used.
    pub(crate) fn stack_used(&self) -> usize {
        self.stack.lock().as_ref().map_or(0, Stack::high_water)
    }

    /// The replaced return addresses, the latest first. Of the current task, or of one that runs nowhere.
    pub(crate) fn shadow(&self) -> impl Iterator<Item = &ShadowEntry> + Clone {
        let bytes = self.shadow_top.load(Ordering::Relaxed) as usize - layout::SHADOW_START;
        let used = (bytes / layout::SHADOW_ENTRY).min(SHADOW_ENTRIES);
        self.shadow.iter().take(used).rev()
    }

    /// Begins a tasks-trace RCU reader, as a trampoline does. Of the current task.
    pub(crate) fn trace_enter(&self) {
        let word = self.trace_nesting.load(Ordering::Relaxed);
        self.trace_nesting
            .store(word.wrapping_add(1), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// Ends a tasks-trace RCU reader, as a trampoline does. Of the current task.
    pub(crate) fn trace_leave(&self) {
        compiler_fence(Ordering::SeqCst);
        let word = self.trace_nesting.load(Ordering::Relaxed).wrapping_sub(1);
        let outermost = word & layout::TRACE_NESTING_MASK == 0;
        let left = if outermost { layout::TRACE_LEFT } else { 0 };
        self.trace_nesting
            .store(word.wrapping_add(left), Ordering::Relaxed);
    }

    /// Pushes a replaced return address, for hooks in Rust; false when no entry is left, which the hook counts as a miss.
    /// Of the current task.
    pub(crate) fn shadow_push(&self, [returns, frame, landing, cookie]: [u64; 4]) -> bool {
        let top = self.shadow_top.load(Ordering::Relaxed);
        let index = (top as usize - layout::SHADOW_START) / layout::SHADOW_ENTRY;
        let Some(entry) = self.shadow.get(index) else {
            return false;
        };
        self.shadow_top
            .store(top + layout::SHADOW_ENTRY as u32, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst); // claimed before it is written: see ShadowEntry
        entry.return_address.store(returns, Ordering::Relaxed);
        entry.frame.store(frame, Ordering::Relaxed);
        entry.landing.store(landing, Ordering::Relaxed);
        entry.cookie.store(cookie, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        true
    }

    /// Pops the latest replaced return address: what was pushed. Of the current task.
    pub(crate) fn shadow_pop(&self) -> Option<[u64; 4]> {
        let entry = self.shadow().next()?;
        let words = entry.words();
        compiler_fence(Ordering::SeqCst); // read before it is given up: see ShadowEntry
        let top = self.shadow_top.load(Ordering::Relaxed);
        self.shadow_top
            .store(top - layout::SHADOW_ENTRY as u32, Ordering::Relaxed);
        Some(words)
    }

    /// Whether it is in a sleepable program. Of the current task.
    pub(crate) fn in_sleepable(&self) -> bool {
        self.trace_nesting.load(Ordering::Relaxed) & layout::TRACE_NESTING_MASK != 0
    }

    /// Whether it may be run on `core` now.
    pub(crate) fn may_run_on(&self, core: usize) -> bool {
        let here = self.core.load(Ordering::Relaxed) == core;
        let bound = self.migrate.load(Ordering::Relaxed) != 0 || self.bound.load(Ordering::Relaxed);
        self.affinity.load(Ordering::Relaxed) >> core & 1 != 0 && (here || !bound)
    }
}
