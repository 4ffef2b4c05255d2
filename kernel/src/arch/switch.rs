// SPDX-License-Identifier: MIT OR Apache-2.0
//! The current task, and changing it.
//!
//! SP_EL0 names the current task: the scheduler switches it with the stack, so it is right on whatever core the task
//! runs, between any two instructions. No EL0 exists, and SPSel is 1 throughout.

use super::lock::RawLock;
use super::{barrier, irq, mrs};
use crate::sched::Task;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering;

unsafe extern "C" {
    fn switch_stacks(previous_sp: *mut usize, next_sp: usize, next: *const u8);
    fn task_start();
    fn jump_to_stack(sp: usize, function: extern "C" fn() -> !) -> !;
}

/// The task that runs before there is a scheduler; boot.s puts it into SP_EL0.
#[unsafe(no_mangle)]
static BOOT_TASK: Task = Task::boot();

/// The task this code runs in (for an interrupt handler: the one it interrupted).
#[inline(always)]
pub(crate) fn current() -> &'static Task {
    let task = mrs!("sp_el0") as usize;
    // SAFETY: boot.s, SECONDARY_BOOT and `switch_stacks` put only `&'static Task`s into SP_EL0; tasks are never freed.
    unsafe { &*(task as *const Task) }
}

/// A lock that is held across the switch and given back by the task that runs next.
///
/// So the previous task cannot be picked by another core before its registers are saved.
pub(crate) struct HandoffLock<T> {
    raw: RawLock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only while the raw lock is held (see `with`, `switch`).
unsafe impl<T: Send> Sync for HandoffLock<T> {}

impl<T> HandoffLock<T> {
    /// A free lock around `value`.
    pub(crate) const fn new(value: T) -> HandoffLock<T> {
        HandoffLock {
            raw: RawLock::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Runs `f` with the value, interrupts masked.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let state = irq::disable();
        self.raw.lock();
        // SAFETY: the raw lock is held and `f` cannot keep the reference.
        let result = f(unsafe { &mut *self.value.get() });
        self.raw.unlock();
        irq::restore(state);
        result
    }

    /// Lets `decide` name the next task and switches to it; returns when this task is switched to again.
    ///
    /// Interrupts must be masked by [`irq::disable`], and NMI open, so that every task is resumed in the same state.
    #[inline(never)] // hooked by tests
    pub(crate) fn switch(&self, decide: impl FnOnce(&mut T) -> Option<&'static Task>) {
        debug_assert!(irq::disabled());
        self.raw.lock();
        // SAFETY: the raw lock is held and `decide` cannot keep the reference.
        let next = decide(unsafe { &mut *self.value.get() });
        if let Some(next) = next {
            let previous = current();
            let sp = next.sp.load(Ordering::Relaxed);
            // Another core may just have mapped a new task's stack. A translation table walk may be done ahead of the load
            // that saw the task on the queue, and then fault; behind an ISB it is not (D8.2, without FEAT_ETS).
            barrier::isb();
            // SAFETY: `next` is not running (decide took it off the queue under this lock), so `sp` is what
            // `switch_stacks` or `prepare` stored; `previous.sp` is written by no one else while it runs here.
            unsafe { switch_stacks(previous.sp.as_ptr(), sp, core::ptr::from_ref(next).cast()) };
        }
        // Either no switch happened, or another task's `switch` handed the lock to this one.
        self.raw.unlock();
    }

    /// A new task's first act: gives back the lock that the switch to it handed over.
    pub(crate) fn finish_first_switch(&self) {
        self.raw.unlock();
    }
}

/// Makes a stack that [`HandoffLock::switch`] enters `task_main` with; returns its sp.
pub(crate) fn prepare(stack: &crate::mm::stack::Stack) -> usize {
    let sp = stack.top() - 96;
    let slot = |i: usize| (sp + i * 8) as *mut usize;
    let start = task_start as *const () as usize;
    for i in 0..12 {
        // x29, x30 first (see switch_stacks): a null frame record ends stack traces.
        let value = if i == 1 { start } else { 0 };
        // SAFETY: the twelve words below the top of a mapped stack that no one uses so far.
        unsafe { slot(i).write(value) };
    }
    sp
}

/// The boot core becomes its idle task: leaves the boot stack for good and goes on in `function`.
pub(crate) fn become_idle(idle: &'static Task, function: extern "C" fn() -> !) -> ! {
    let top = idle.stack_range().end;
    super::msr!("sp_el0", core::ptr::from_ref(idle).addr() as u64);
    // SAFETY: the idle task's stack is mapped and unused; the boot stack is never returned to.
    unsafe { jump_to_stack(top, function) }
}
