// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kprobes by BRK: from the exception to the programs, and on in the slot (trampoline/src/linux/kprobe.rs).
//!
//! A table, sorted by address, says what each breakpoint runs. It is never changed: who puts a breakpoint on or off publishes another
//! one and drops the old one after a tasks-RCU grace period. A handler holds up such a grace period, for the task that it interrupts
//! passes no quiescent state before it has returned; so it reads the table with no lock and no count, in any context.
//!
//! All of DAIF is masked from the exception to the return to the slot, as it is for Linux's handler but for its NMI.
//! So a handler is not preempted, and the probe that a core is in is the core's own variable: a breakpoint that is hit while that is
//! set, by what a program calls, is turned away, whichever probe it belongs to. Its instruction is executed all the same.

use super::cpu::this_cpu;
use super::linux::{self, Op};
use super::trap::Frame;
use super::{code, smp};
use crate::hook::{Program, Protection, Running};
use crate::{context, rcu};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use core::sync::atomic::{AtomicPtr, Ordering};
use trampoline::linux::kprobe::IMMEDIATE;
use trampoline::{State, registers};

/// A program at a breakpoint.
#[derive(Clone)]
pub(crate) struct Called {
    /// Its code: an `extern "C" fn(ctx, data) -> u64`.
    address: u64,
    data: u64,
    /// What of it is counted; keeps the program alive.
    running: Arc<Running>,
    /// Of a kretprobe: what has the program run when the function returns.
    at_return: Option<Arc<Op>>,
}

impl Called {
    /// A program, whose context is the registers, at its place.
    pub(crate) fn new(program: Program, attachment: Attachment) -> (Called, u32) {
        let (callee, running) = program.at(attachment, Protection::None, false);
        let called = Called {
            address: callee.address,
            data: callee.data.unwrap_or(0),
            running,
            at_return: None,
        };
        (called, callee.stack_bytes)
    }

    /// The program at the return of the function that begins at `at`, of which `nodes` may be under way.
    pub(crate) fn returning(self, at: u64, nodes: u32) -> (Called, Arc<Op>) {
        let program = linux::Called {
            address: self.address,
            data: self.data,
            running: self.running.clone(),
        };
        let op = Arc::new(Op::kretprobe(at, program, nodes));
        let at_return = Some(op.clone());
        (Called { at_return, ..self }, op)
    }

    /// What the kernel knows of it.
    pub(crate) fn running(&self) -> &Arc<Running> {
        &self.running
    }

    fn state(&self) -> &State {
        &self.running.state
    }
}

/// A breakpoint.
pub(crate) struct Entry {
    /// Its address.
    pub at: u64,
    /// Where to go on.
    pub slot: u64,
    /// Whether a program may have the function return at once: it is at the entry of one that allows that.
    pub overridable: bool,
    /// What it runs, in the order it came.
    pub programs: Vec<Called>,
}

/// Stack that a hit takes beside its programs, in bytes: the exception's frame and the handler's; a test holds it against what
/// `cargo xtask audit` computes.
pub(crate) const STACK: u32 = 1024;

/// The table; null while it is empty.
static TABLE: AtomicPtr<Vec<Entry>> = AtomicPtr::new(core::ptr::null_mut());

/// Publishes another table. Only by the one who holds the lock of all hooks; every core that takes a breakpoint from now on goes by it.
pub(crate) fn publish(mut entries: Vec<Entry>) {
    entries.sort_unstable_by_key(|entry| entry.at);
    let new = Box::into_raw(Box::new(entries));
    // Release: who sees the pointer sees the entries (pairs with `find`).
    let old = TABLE.swap(new, Ordering::AcqRel);
    // The store is visible before a BRK is put anywhere: patching and the rendezvous synchronise all cores.
    smp::sync_cores();
    if !old.is_null() {
        // SAFETY: came from `Box::into_raw` here, and only this function takes it out of TABLE.
        let old = unsafe { Box::from_raw(old) };
        rcu::defer(rcu::Flavour::Tasks, move || drop(old));
    }
}

fn table() -> Option<&'static Vec<Entry>> {
    // SAFETY: null, or a table that is dropped a grace period after it was replaced: it is used
    // within a handler only. Acquire pairs with `publish`.
    unsafe { TABLE.load(Ordering::Acquire).as_ref() }
}

fn find(at: u64) -> Option<&'static Entry> {
    let table = table()?;
    let index = table.binary_search_by_key(&at, |entry| entry.at).ok()?;
    table.get(index)
}

/// ESR_EL1.EC of a BRK in AArch64 state (Arm ARM D24.2.40); the low 16 bits of the syndrome are its immediate.
const CLASS: u64 = 0x3c;

/// Handles an exception if it is a kprobe's.
pub(super) fn handle(frame: &mut Frame) -> bool {
    if frame.esr >> 26 != CLASS || frame.esr as u16 != IMMEDIATE {
        return false;
    }
    let Some(entry) = find(frame.elr) else {
        // Taken off while the exception was on its way: the instruction is there again.
        return code::read(frame.elr as usize) != Some(trampoline::linux::kprobe::BREAKPOINT);
    };
    let active = &this_cpu().breakpoint;
    if active.load(Ordering::Relaxed) != 0 {
        let context = context::current() as usize;
        entry.programs.iter().for_each(|p| p.state().miss(context));
    } else {
        active.store(entry.at, Ordering::Relaxed);
        if entry.overridable {
            let registers = core::ptr::from_ref(&*frame).addr() as u64;
            this_cpu().may_return.store(registers, Ordering::Relaxed);
        }
        for program in &entry.programs {
            match &program.at_return {
                None => run(program, frame),
                Some(op) => linux::kretprobe(op, frame),
            }
        }
        let returns = entry.overridable && take_return(frame);
        active.store(0, Ordering::Relaxed);
        if returns {
            return true;
        }
    }
    frame.elr = entry.slot;
    true
}

/// Has the function return at once if a program wants it to: as if it had done so at its entry, where x30 is its caller, or what a
/// kretprobe put in its place.
fn take_return(frame: &mut Frame) -> bool {
    let core = this_cpu();
    core.may_return.store(0, Ordering::Relaxed);
    let returns = core.returns.load(Ordering::Relaxed);
    if returns {
        core.returns.store(false, Ordering::Relaxed);
        frame.x[0] = core.returned.load(Ordering::Relaxed);
        frame.elr = frame.x[30];
    }
    returns
}

/// Has the function whose registers at its entry are at `context` return `value` when the programs of its breakpoint have run; false if
/// that is not where this core is. All of it is this core's: a breakpoint's programs run with interrupts masked, and in an NMI none
/// does while these do.
pub(crate) fn override_return(context: u64, value: u64) -> bool {
    let core = this_cpu();
    let here = context != 0 && core.may_return.load(Ordering::Relaxed) == context;
    if here {
        core.returned.store(value, Ordering::Relaxed);
        core.returns.store(true, Ordering::Relaxed);
    }
    here
}

/// The breakpoint that this core runs programs of; any context.
pub(super) fn active() -> Option<u64> {
    match this_cpu().breakpoint.load(Ordering::Relaxed) {
        0 => None,
        at => Some(at),
    }
}

const _: () = {
    use core::mem::offset_of;
    // The frame begins as the context that programs of probes get.
    assert!(offset_of!(Frame, x) == 0 && offset_of!(Frame, sp) == registers::SP as usize);
    assert!(offset_of!(Frame, elr) == registers::PC as usize);
    assert!(offset_of!(Frame, spsr) == registers::PSTATE as usize);
};

/// Not inlined: audit.rules names it.
#[inline(never)]
fn run(program: &Called, frame: &Frame) {
    // SAFETY: `Called::new` got it from `Program::at`: the entry of a function with this signature, which `running` keeps alive.
    let function = unsafe {
        core::mem::transmute::<usize, extern "C" fn(*const u64, u64) -> u64>(
            program.address as usize,
        )
    };
    function(core::ptr::from_ref(frame).cast(), program.data);
}
