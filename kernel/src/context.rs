// SPDX-License-Identifier: MIT OR Apache-2.0
//! The four contexts that code runs in, and softirqs.
//!
//! A context is what can interrupt another on one core: task, softirq, hardirq, NMI. Each asynchronous one starts with a
//! fresh recursion word: vectors.s sees to it for hardirq and NMI, [`run_softirqs`] for softirq, wherever it is entered
//! from; so a hook needs no look at where it runs to know whether *this context* is already in it.

use crate::arch::cpu::this_cpu;
use crate::arch::{irq, switch};
use core::sync::atomic::Ordering;

/// What can interrupt what, upwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Context {
    /// A kernel thread.
    Task,
    /// Deferred interrupt work, interrupts on.
    Softirq,
    /// An interrupt handler.
    Hardirq,
    /// A pseudo-NMI handler.
    Nmi,
}

/// The context of the caller. For reports and counts; what a hook costs when nothing is wrong has no part of it.
pub(crate) fn current() -> Context {
    // Masked, or a task could be moved between finding its core and looking at it: there another context may be.
    let state = irq::disable();
    let context = of_this_core();
    irq::restore(state);
    context
}

/// The same, of a caller that stays on its core.
fn of_this_core() -> Context {
    let block = this_cpu();
    if block.nmi.load(Ordering::Relaxed) != 0 {
        Context::Nmi
    } else if block.hardirq.load(Ordering::Relaxed) != 0 {
        Context::Hardirq
    } else if block.softirq_active.load(Ordering::Relaxed) {
        Context::Softirq
    } else {
        Context::Task
    }
}

/// Kinds of deferred work, a bit each in the core's pending word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Softirq {
    /// Sleepers whose time has come.
    Timer = 0,
    /// What a test installed.
    Test = 1,
}

/// Asks for deferred work on this core; it runs when the interrupt that asks is over, or at once from a task.
#[inline(never)] // hooked by tests
pub(crate) fn raise(which: Softirq) {
    let at_once = !irq::disabled();
    // Masked, or a task could mark one core and go on on another.
    let state = irq::disable();
    this_cpu()
        .softirq_pending
        .fetch_or(1 << which as u32, Ordering::Relaxed);
    if at_once && current() == Context::Task {
        run_softirqs();
    }
    irq::restore(state);
}

/// Runs what is pending on this core. Called and returns with normal interrupts masked; they are on in between.
#[inline(never)] // hooked by tests
pub(crate) fn run_softirqs() {
    let block = this_cpu();
    if block.softirq_active.swap(true, Ordering::Relaxed) {
        return;
    }
    let word = &switch::current().word;
    let outer = word.swap(0, Ordering::Relaxed);
    loop {
        let pending = block.softirq_pending.swap(0, Ordering::Relaxed);
        if pending == 0 {
            break;
        }
        irq::enable();
        if pending & 1 << Softirq::Timer as u32 != 0 {
            crate::sched::wake_sleepers();
        }
        if pending & 1 << Softirq::Test as u32 != 0 {
            TEST_SOFTIRQ.call();
        }
        irq::disable();
    }
    word.store(outer, Ordering::Relaxed);
    block.softirq_active.store(false, Ordering::Relaxed);
}

/// A function that a test hangs into a context.
pub(crate) struct Slot(crate::arch::lock::Swap<fn()>);

/// Runs in softirq context when [`Softirq::Test`] is raised.
pub(crate) static TEST_SOFTIRQ: Slot = Slot(crate::arch::lock::Swap::new());
/// Runs in hardirq context at [`Ipi::Test`](crate::arch::smp::Ipi::Test).
pub(crate) static TEST_HARDIRQ: Slot = Slot(crate::arch::lock::Swap::new());
/// Runs in NMI context at each NMI.
pub(crate) static TEST_NMI: Slot = Slot(crate::arch::lock::Swap::new());

impl Slot {
    /// Puts a function in, or takes it out.
    pub(crate) fn set(&self, function: Option<&'static fn()>) {
        self.0.set(function);
    }

    /// Calls what is in.
    pub(crate) fn call(&self) {
        if let Some(function) = self.0.get() {
            function();
        }
    }
}

/// The NMI's work.
pub(crate) fn nmi() {
    TEST_NMI.call();
}
