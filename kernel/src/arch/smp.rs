// SPDX-License-Identifier: MIT OR Apache-2.0
//! The other cores: starting them, interrupting them, synchronising them, parking them while something is measured.

use super::cpu::{self, MAX_CPUS, per_cpu};
use super::{barrier, irq, lock::Late, timer};
use crate::mm::stack::Stack;
use crate::sched::{self, Task};
use alloc::boxed::Box;
use boards::irq::InterruptController;
use boards::{Cpu, Machine};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Inter-processor interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Ipi {
    /// Choose a task anew.
    Reschedule = 0,
    /// Have a context synchronisation event.
    Sync = 1,
    /// Sleep until the measurement is over.
    Park = 2,
    /// What a test installed.
    Test = 3,
    /// Call the function that [`call`] was given.
    Call = 4,
    /// Wait in a rendezvous.
    Stop = 5,
}

/// The machine's interrupt controller, in a form that [`Late`] can hold.
pub(crate) struct Controller(pub &'static dyn InterruptController);

static CONTROLLER: Late<Controller> = Late::new();

/// The interrupt controller, once the boot has found it.
pub(crate) fn controller() -> Option<&'static dyn InterruptController> {
    CONTROLLER.get().map(|c| c.0)
}

/// Sets it, on the boot core.
pub(crate) fn set_controller(controller: &'static Controller) {
    CONTROLLER.set(controller);
}

/// { stack top, task, per-CPU block } for the core that is just starting; boot.s reads it with the MMU on.
#[unsafe(no_mangle)]
static SECONDARY_BOOT: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

unsafe extern "C" {
    fn secondary_entry();
}

/// Gives a core its overflow stack and its idle task; returns the top of the idle task's stack.
pub(crate) fn prepare_core(index: usize) -> Option<(usize, &'static Task)> {
    let overflow = Box::leak(Box::new(Stack::new()?));
    let block = per_cpu(index);
    block.overflow_top.store(overflow.top(), Ordering::Relaxed);
    block.index.store(index, Ordering::Relaxed);
    let idle = sched::new_idle(index)?;
    block.idle.set(idle);
    Some((idle.stack_range().end, idle))
}

/// Starts the cores that the device tree names, one at a time. Returns a line for each that did not come.
pub(crate) fn start_others(
    machine: &Machine<'_>,
    image_pa: u64,
) -> alloc::vec::Vec<alloc::string::String> {
    let mut missing = alloc::vec::Vec::new();
    let own = super::mpidr();
    let entry =
        image_pa + (secondary_entry as *const () as usize - crate::mm::layout::IMAGE) as u64;
    let others = machine
        .cpus
        .iter()
        .filter(|c| c.mpidr != own)
        .take(MAX_CPUS - 1);
    for (index, core) in (1..).zip(others) {
        if let Err(why) = start_one(index, core, machine, entry) {
            missing.push(alloc::format!(
                "core {index} (mpidr {:#x}) did not start: {why}",
                core.mpidr
            ));
            if why == SILENT {
                break; // SECONDARY_BOOT is its own as long as it may still come
            }
        }
    }
    missing
}

/// Why a core that was told to start counts as missing, and no other is started after it.
const SILENT: &str = "no sign of life after two seconds, so no further core is started";

fn start_one(
    index: usize,
    core: &Cpu,
    machine: &Machine<'_>,
    entry: u64,
) -> Result<(), alloc::string::String> {
    let (top, idle) = prepare_core(index).ok_or("no memory for its stacks")?;
    SECONDARY_BOOT[0].store(top, Ordering::Relaxed);
    SECONDARY_BOOT[1].store(core::ptr::from_ref(idle).addr(), Ordering::Relaxed);
    SECONDARY_BOOT[2].store(cpu::address(index), Ordering::Relaxed);
    // The new core reads this through the same inner shareable, cacheable mapping; the DSB orders it before the start.
    barrier::dsb_ish();
    boards::smp::start(core, machine.psci, entry, 0, super::devices::release)
        .map_err(|e| alloc::format!("{e}"))?;
    let deadline = timer::now_ns() + 2_000_000_000;
    while !per_cpu(index).online.load(Ordering::Acquire) {
        if timer::now_ns() > deadline {
            return Err(SILENT.into());
        }
        barrier::wfe(); // at the latest the timer's event stream ends it
    }
    Ok(())
}

/// Upper-half Rust of every core but the boot core.
#[unsafe(no_mangle)]
extern "C" fn springboard_secondary() -> ! {
    let index = cpu::index();
    timer::enable_event_stream();
    if let Some(controller) = controller()
        && let Err(e) = controller.init_core(index)
    {
        crate::println!("springboard: core {index}: {e}");
        loop {
            barrier::wfi();
        }
    }
    irq::disable();
    irq::open_exceptions();
    super::pmu::start();
    sched::run_idle()
}

/// Says that this core runs tasks from now on.
pub(crate) fn now_online() {
    cpu::this_cpu().online.store(true, Ordering::Release);
    barrier::dsb_ishst();
    barrier::sev();
}

/// Interrupts another core.
pub(crate) fn send(target: usize, ipi: Ipi) {
    if let Some(controller) = controller() {
        controller.send_ipi(target, ipi as u8);
    }
}

/// Interrupts a core with the pseudo-NMI, its own included.
pub(crate) fn send_nmi(target: usize) {
    if let Some(controller) = controller() {
        controller.send_nmi(target);
    }
}

/// Counts the context synchronisation events that were asked for, and which each core has had.
static SYNC_ASKED: AtomicU64 = AtomicU64::new(0);
static SYNC_DONE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Returns when every core has had a context synchronisation event after this was called.
///
/// Taking an exception is one (Arm ARM glossary; SCTLR_EL1.EIS). Interrupts must be on: two cores may call this at a time,
/// and each has to answer the other while it waits. A ticket that a core has answered covers all those before it.
pub(crate) fn sync_cores() {
    debug_assert!(!irq::disabled());
    let ticket = SYNC_ASKED.fetch_add(1, Ordering::AcqRel) + 1;
    crate::sched::preempt_disable();
    let own = cpu::index();
    barrier::isb();
    for core in cpu::online().filter(|&c| c != own) {
        send(core, Ipi::Sync);
    }
    for core in cpu::online().filter(|&c| c != own) {
        while SYNC_DONE[core].load(Ordering::Acquire) < ticket {
            barrier::wfe();
        }
    }
    crate::sched::preempt_enable();
}

/// [`Ipi::Sync`] on the core that was asked.
pub(crate) fn handle_sync() {
    let asked = SYNC_ASKED.load(Ordering::Acquire);
    barrier::isb();
    SYNC_DONE[cpu::index()].fetch_max(asked, Ordering::Release);
    barrier::dsb_ishst();
    barrier::sev();
}

/// What [`call`] has cores do, in the IPI's handler; the frame is what it interrupted.
pub(crate) type Call = fn(&super::trap::Frame);

static CALL: super::lock::Swap<Call> = super::lock::Swap::new();
static CALL_ASKED: AtomicU64 = AtomicU64::new(0);
static CALL_DONE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Calls a function on each of `cores`, a bit each, this one included, in the handler of an interrupt; returns when all have
/// returned from it. Interrupts must be on. One caller at a time: `rcu/look.rs` has the lock.
pub(crate) fn call(cores: u64, function: &'static Call) {
    debug_assert!(!irq::disabled());
    CALL.set(Some(function));
    let ticket = CALL_ASKED.fetch_add(1, Ordering::AcqRel) + 1;
    let asked = || cpu::online().filter(|&c| cores >> c & 1 != 0);
    for core in asked() {
        send(core, Ipi::Call);
    }
    for core in asked() {
        while CALL_DONE[core].load(Ordering::Acquire) < ticket {
            barrier::wfe();
        }
    }
    CALL.set(None);
}

/// [`Ipi::Call`] on the core that was asked.
pub(crate) fn handle_call(frame: &super::trap::Frame) {
    let asked = CALL_ASKED.load(Ordering::Acquire);
    if let Some(function) = CALL.get() {
        function(frame);
    }
    CALL_DONE[cpu::index()].fetch_max(asked, Ordering::Release);
    barrier::dsb_ishst();
    barrier::sev();
}

/// Who measures: its core's index plus one; 0 for no one.
static PARK: AtomicUsize = AtomicUsize::new(0);
static PARKED: AtomicU32 = AtomicU32::new(0);

/// Cores that were sent to sleep; dropping it wakes them.
pub(crate) struct Parked(irq::State, u64);

/// Sends every other core to WFI, interrupts masked and tick stopped, masks this core's interrupts and stops its tick.
pub(crate) fn park_others() -> Parked {
    crate::sched::preempt_disable();
    let own = cpu::index();
    PARK.store(own + 1, Ordering::Release);
    let mut others = 0;
    for core in cpu::online().filter(|&c| c != own) {
        others += 1;
        send(core, Ipi::Park);
    }
    while PARKED.load(Ordering::Acquire) < others {
        barrier::wfe();
    }
    // Interrupts that the last core to be parked sent to the others are still to be taken: let them.
    for _ in 0..16 {
        barrier::wfe();
    }
    let state = irq::disable();
    let daif = irq::daif();
    irq::mask_all();
    timer::stop_tick();
    Parked(state, daif)
}

impl Drop for Parked {
    fn drop(&mut self) {
        let own = cpu::index();
        PARK.store(0, Ordering::Release);
        // An interrupt ends WFI although it is masked; it is taken and ignored when the core opens again.
        for core in cpu::online().filter(|&c| c != own) {
            send(core, Ipi::Park);
        }
        timer::start_tick();
        irq::set_daif(self.1);
        irq::restore(self.0);
        // With interrupts on: one that has left already may hold a rendezvous, and keep the others in it until this core comes.
        while PARKED.load(Ordering::Acquire) != 0 {
            barrier::wfe();
        }
        crate::sched::preempt_enable();
    }
}

/// Cores that are in [`park_if_asked`], a bit each: interrupts taken there do nothing but end.
static SLEEPING: AtomicU64 = AtomicU64::new(0);

/// Whether this core is parked.
pub(crate) fn is_parked() -> bool {
    SLEEPING.load(Ordering::Relaxed) >> cpu::index() & 1 != 0
}

/// On exception exit, all masked: sleeps as long as someone measures.
pub(crate) fn park_if_asked() {
    let own = cpu::index();
    let owner = PARK.load(Ordering::Acquire);
    if owner == 0 || owner == own + 1 || is_parked() {
        return;
    }
    let me = 1 << own;
    SLEEPING.fetch_or(me, Ordering::Relaxed);
    timer::stop_tick();
    drain();
    PARKED.fetch_add(1, Ordering::AcqRel);
    barrier::dsb_ishst();
    barrier::sev();
    while PARK.load(Ordering::Acquire) != 0 {
        barrier::wfi();
        // An interrupt that is pending ends WFI at once, each time: left alone it would keep this core running, and its
        // instructions would be counted as the measured core's.
        drain();
    }
    PARKED.fetch_sub(1, Ordering::AcqRel);
    barrier::dsb_ishst();
    barrier::sev();
    SLEEPING.fetch_and(!me, Ordering::Relaxed);
    timer::start_tick();
}

/// Takes what is pending: opens PSTATE for a moment; the priority mask is open.
fn drain() {
    irq::unmask_all();
    barrier::isb();
    irq::mask_all();
    timer::stop_tick(); // should a last tick have come
}
