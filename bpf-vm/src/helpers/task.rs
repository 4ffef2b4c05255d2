// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers that say when, where and for whom a program runs: clocks, core, task, per-CPU variables.
//!
//! Each has the safety contract of its type in [`Function`](super::Function): its arguments are what its row says.
use super::memory::ProgramOut;
use crate::host::host;

/// `u64 bpf_ktime_get_ns(void)`: nanoseconds since boot.
pub(super) unsafe extern "C" fn ktime_get_ns(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    host().ktime_ns()
}

/// `u32 bpf_get_smp_processor_id(void)`: the core's number.
pub(super) unsafe extern "C" fn get_smp_processor_id(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    host().cpu().into()
}

/// `u64 bpf_get_current_pid_tgid(void)`: thread group id and task id.
pub(super) unsafe extern "C" fn get_current_pid_tgid(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    host().current_pid_tgid()
}

/// `u64 bpf_ktime_get_boot_ns(void)`: nanoseconds since boot, time asleep included.
pub(super) unsafe extern "C" fn ktime_get_boot_ns(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    host().ktime_boot_ns()
}

/// `u64 bpf_ktime_get_coarse_ns(void)`: nanoseconds since boot. Linux answers with the time of the last tick, which is
/// cheaper there; here there is nothing cheaper than the clock itself.
pub(super) unsafe extern "C" fn ktime_get_coarse_ns(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    host().ktime_ns()
}

/// `u64 bpf_jiffies64(void)`: ticks since boot.
pub(super) unsafe extern "C" fn jiffies64(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    host().jiffies()
}

/// `long bpf_get_numa_node_id(void)`: the NUMA node of the core.
pub(super) unsafe extern "C" fn get_numa_node_id(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    host().numa_node().into()
}

/// `u64 bpf_get_current_uid_gid(void)`: group id and user id, both 0: whatever runs here is the kernel.
pub(super) unsafe extern "C" fn get_current_uid_gid(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    0
}

/// `u64 bpf_get_current_task(void)`, `struct task_struct *bpf_get_current_task_btf(void)`: the address of the task.
pub(super) unsafe extern "C" fn get_current_task(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    host().current_task()
}

/// `long bpf_get_current_comm(void *buf, u32 size)`: 0, and the name of the task, cut to the buffer, its last byte and the
/// rest of it 0.
pub(super) unsafe extern "C" fn get_current_comm(
    buffer: u64,
    size: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `buffer` points to `size` writable bytes.
    let out = unsafe { ProgramOut::new(buffer, size as usize) };
    let name = host().current_comm();
    let last = (size as usize).saturating_sub(1);
    let ends = name.iter().position(|byte| *byte == 0);
    let shown = ends.unwrap_or(name.len()).min(last);
    out.clear();
    for (index, byte) in name.into_iter().take(shown).enumerate() {
        out.set(index, byte);
    }
    0
}

/// `void *bpf_per_cpu_ptr(const void *variable, u32 cpu)`: the address of that core's copy, or 0 if there is no such core.
pub(super) unsafe extern "C" fn per_cpu_ptr(
    variable: u64,
    cpu: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // The helper takes a `u32`.
    host().per_cpu(variable, cpu as u32).unwrap_or(0)
}

/// `void *bpf_this_cpu_ptr(const void *variable)`: the address of this core's copy.
pub(super) unsafe extern "C" fn this_cpu_ptr(variable: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    let host = host();
    host.per_cpu(variable, host.cpu()).unwrap_or(0)
}
