// SPDX-License-Identifier: MIT OR Apache-2.0
//! Per-CPU data: one block a core, found by TPIDR_EL1.

use super::{lock::Late, mrs, msr};
use crate::sched::Task;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The most cores this kernel starts.
pub(crate) const MAX_CPUS: usize = 8;

/// What belongs to one core. Written by that core unless a field says otherwise.
#[repr(C)]
pub(crate) struct PerCpu {
    /// Top of the stack that a stack overflow is reported on; vectors.s reads it at offset 0.
    pub overflow_top: AtomicUsize,
    /// This core's index, 0 for the boot core.
    pub index: AtomicUsize,
    /// Someone wants this core to choose a task anew; set by any core.
    pub need_resched: AtomicBool,
    /// How many hardirq handlers are active: 0 or 1.
    pub hardirq: AtomicU32,
    /// How many NMI handlers are active.
    pub nmi: AtomicU32,
    /// Softirqs are being run.
    pub softirq_active: AtomicBool,
    /// Softirqs that were raised, a bit each.
    pub softirq_pending: AtomicU32,
    /// The task that runs when no other can.
    pub idle: Late<Task>,
    /// Timer ticks taken.
    pub ticks: AtomicU64,
    /// NMIs taken.
    pub nmis: AtomicU64,
    /// Address of the breakpoint whose programs run here, 0 for none.
    pub breakpoint: AtomicU64,
    /// Address of the registers of its hit, if the function may return at once; 0 else.
    pub may_return: AtomicU64,
    /// Whether it does.
    pub returns: AtomicBool,
    /// What it returns.
    pub returned: AtomicU64,
    /// The core runs tasks; set by itself.
    pub online: AtomicBool,
}

impl PerCpu {
    const fn new() -> PerCpu {
        PerCpu {
            overflow_top: AtomicUsize::new(0),
            index: AtomicUsize::new(0),
            need_resched: AtomicBool::new(false),
            hardirq: AtomicU32::new(0),
            nmi: AtomicU32::new(0),
            softirq_active: AtomicBool::new(false),
            softirq_pending: AtomicU32::new(0),
            idle: Late::new(),
            ticks: AtomicU64::new(0),
            nmis: AtomicU64::new(0),
            breakpoint: AtomicU64::new(0),
            may_return: AtomicU64::new(0),
            returns: AtomicBool::new(false),
            returned: AtomicU64::new(0),
            online: AtomicBool::new(false),
        }
    }
}

/// The boot core's block. As the variables in Linux's section of this name it stands for every core's: `bpf_per_cpu_ptr` leads from
/// it to each.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data..percpu")]
pub(crate) static springboard_cpu: PerCpu = PerCpu::new();

/// Those of the cores from 1 on.
static OTHERS: [PerCpu; MAX_CPUS - 1] = [const { PerCpu::new() }; MAX_CPUS - 1];

/// The block of core `index`, if there may be such a core.
fn block(index: usize) -> Option<&'static PerCpu> {
    match index.checked_sub(1) {
        None => Some(&springboard_cpu),
        Some(other) => OTHERS.get(other),
    }
}

/// The block of core `index`; indices of cores that do not exist wrap to ones that may.
pub(crate) fn per_cpu(index: usize) -> &'static PerCpu {
    block(index % MAX_CPUS).unwrap_or(&springboard_cpu)
}

/// Tells this core which block is its own: the boot core's first act, the others come with it set.
pub(crate) fn init_boot_core() {
    // The block lives as long as the image.
    msr!(
        "tpidr_el1",
        core::ptr::from_ref(&springboard_cpu).addr() as u64
    );
}

/// This core's block. The caller may be moved to another core the next moment unless it is not preemptible.
#[inline(always)]
pub(crate) fn this_cpu() -> &'static PerCpu {
    let block = mrs!("tpidr_el1") as usize;
    // SAFETY: `init_boot_core` and SECONDARY_BOOT set TPIDR_EL1 to a core's block before any Rust that comes here.
    unsafe { &*(block as *const PerCpu) }
}

/// This core's index.
#[inline(always)]
pub(crate) fn index() -> usize {
    this_cpu().index.load(Ordering::Relaxed)
}

/// The address of core `index`'s copy of what lies at `variable` in the boot core's block; `None` if that is not there, or
/// there cannot be such a core.
pub(crate) fn copy_of(variable: usize, index: usize) -> Option<usize> {
    let offset = variable.checked_sub(address(0))?;
    let block = block(index).filter(|_| offset < size_of::<PerCpu>())?;
    Some(core::ptr::from_ref(block).addr() + offset)
}

/// Cores that run tasks.
pub(crate) fn online() -> impl Iterator<Item = usize> {
    (0..MAX_CPUS).filter(|&i| per_cpu(i).online.load(Ordering::Acquire))
}

/// Address of a block, for SECONDARY_BOOT.
pub(super) fn address(index: usize) -> usize {
    core::ptr::from_ref(per_cpu(index)).addr()
}

/// Whether this core has FEAT_LSE's atomics (ID_AA64ISAR0_EL1.Atomic at least 2).
pub(crate) fn has_lse() -> bool {
    mrs!("id_aa64isar0_el1") >> 20 & 0xf >= 2
}

/// Where a core's number lies in the block that TPIDR_EL1 names, for compiled programs: in bytes.
pub(crate) const INDEX_OFFSET: u32 = core::mem::offset_of!(PerCpu, index) as u32;

/// Whether this core may have erratum 835769: a Cortex-A53, whose revisions before r0p5 have it.
pub(crate) fn has_erratum_835769() -> bool {
    // MIDR_EL1: implementer Arm (0x41) in bits 31 to 24, part number in bits 15 to 4 (Cortex-A53 TRM, 4.3.1).
    let midr = super::midr();
    midr >> 24 & 0xff == 0x41 && midr >> 4 & 0xfff == 0xd03
}
