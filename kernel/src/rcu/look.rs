// SPDX-License-Identifier: MIT OR Apache-2.0
//! One look at each of some tasks, where nothing of it can change meanwhile.
//!
//! A task that runs nowhere is looked at under the queue's lock: no core can start it, and all it did before it left its
//! core happened before that core gave the lock back. A task that runs is looked at by its own core, in the handler of an
//! IPI: a core sees its own stores in program order, whatever other cores may see of them, and its registers are in the frame
//! that the exception saved on the stack. The IPI does not come while an NMI handler or another interrupt handler runs, so
//! these leave nothing out of sight. A task that is between the two, or moves meanwhile, is not looked at this time; the
//! caller asks again.

use crate::arch::smp;
use crate::arch::trap::Frame;
use crate::arch::{barrier, switch};
use crate::mm::stack;
use crate::sched::{self, Mutex, Task};
use alloc::boxed::Box;

/// What is done with a task: the lowest address of its stack in use, or of the stack that its interrupt runs on; 0 if it has none
/// in use, being over or not begun.
pub(crate) type Look = fn(&'static Task, usize);

/// One caller at a time, and what it has the cores do.
static LOOKING: Mutex<()> = Mutex::empty();
static LOOK: crate::arch::lock::Swap<Look> = crate::arch::lock::Swap::new();

/// Lets the first caller in.
pub(super) fn init() {
    LOOKING.put(Box::new(()));
}

/// Looks at those of `tasks` that can be caught.
pub(crate) fn at_tasks(tasks: impl Iterator<Item = &'static Task>, look: &'static Look) {
    let _one = LOOKING.lock();
    let mut cores = 0u64;
    for task in tasks {
        if let Some(core) = sched::while_off_core(task, |sp| look(task, sp)) {
            cores |= 1 << core;
        }
    }
    LOOK.set(Some(look));
    // This task is looked at too, and not for what the looks above left behind.
    stack::scrub();
    smp::call(cores, &(interrupted as smp::Call));
    LOOK.set(None);
}

/// On a core that runs a task of interest, in the IPI's handler.
fn interrupted(frame: &Frame) {
    // The caller's stores before the IPI come before what the interrupted code loads behind this; and what that code
    // loaded and stored before comes before this core's answer. Exceptions alone do not order accesses (Arm ARM B2.3).
    barrier::dmb_ish();
    if let Some(look) = LOOK.get() {
        look(switch::current(), core::ptr::from_ref(frame).addr());
    }
}
