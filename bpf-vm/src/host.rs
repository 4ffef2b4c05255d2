// SPDX-License-Identifier: MIT OR Apache-2.0
//! What helpers need from whoever runs programs: time, the core's number, a place to print.
#![forbid(unsafe_code)]

use core::fmt;

use spin::{once::Once, relax::Loop};

#[cfg(test)]
pub(crate) mod testing;

/// A function that an address lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes from its start to the address.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// The host of this machine's programs. Its methods run on a hook's path, in any context up to NMI: they may neither
/// allocate nor wait for a lock, nor reach a site that a program could be hooked onto. The one that may is
/// [`copy_from_slow`](Self::copy_from_slow).
///
/// What has a default body is what a host without tasks, per-CPU data or faults can say.
pub trait Host: Sync {
    /// Nanoseconds since boot, never going back (`CLOCK_MONOTONIC`).
    fn ktime_ns(&self) -> u64;

    /// As [`ktime_ns`](Self::ktime_ns), and counting while the machine sleeps (`CLOCK_BOOTTIME`).
    fn ktime_boot_ns(&self) -> u64 {
        self.ktime_ns()
    }

    /// Ticks since boot; of a millisecond unless the host says something else.
    fn jiffies(&self) -> u64 {
        self.ktime_ns() / 1_000_000
    }

    /// The number of the core that runs this, from 0 and below [`cpus`](Self::cpus).
    fn cpu(&self) -> u32;

    /// How many cores there can be; the same at every call.
    fn cpus(&self) -> u32 {
        1
    }

    /// The NUMA node of the core that runs this.
    fn numa_node(&self) -> u32 {
        0
    }

    /// The current task: thread group id in the upper 32 bits, task id in the lower.
    fn current_pid_tgid(&self) -> u64;

    /// The address of the current task; 0 if there are no tasks. Good until the task ends.
    fn current_task(&self) -> u64 {
        0
    }

    /// What tells the task at that address from those that had the address before it; 0 if addresses are not used
    /// again. `task` comes from [`current_task`](Self::current_task).
    fn task_id(&self, task: u64) -> u64 {
        let _ = task;
        0
    }

    /// The current task's name (`TASK_COMM_LEN` is 16): cut to 15 bytes and followed by zeros.
    fn current_comm(&self) -> [u8; 16] {
        [0; 16]
    }

    /// Copies from any address, without harm if nothing is there: how many bytes at the front of `into` were copied. It reads
    /// no memory whose reading has an effect, and what lies in one page is copied up to the last byte that is there.
    fn probe_read(&self, into: &mut [u8], from: u64) -> usize {
        let _ = (into, from);
        0
    }

    /// As [`probe_read`](Self::probe_read), from memory that may have to be brought in first: it may block the task meanwhile. Only
    /// programs that may sleep call it. Where the task may not block after all, with interrupts masked or in an interrupt, it
    /// copies at most what is there.
    fn copy_from_slow(&self, into: &mut [u8], from: u64) -> usize {
        let _ = (into, from);
        0
    }

    /// The function that an address lies in, for text.
    fn symbol(&self, address: u64) -> Option<Symbol<'_>> {
        let _ = address;
        None
    }

    /// The address of core `cpu`'s copy of the per-CPU variable at `variable`; none if there is no such core or the variable is
    /// not per-CPU.
    fn per_cpu(&self, variable: u64, cpu: u32) -> Option<u64> {
        let _ = (variable, cpu);
        None
    }

    /// Where the stack goes that a program's context stands on: the address of the function that the program is attached to,
    /// then return addresses, innermost first, after leaving out `skip` of all these; how many were written.
    fn stack_trace(&self, context: u64, skip: usize, into: &mut [u64]) -> usize {
        let _ = (context, skip, into);
        0
    }

    /// Makes the function that a program's context belongs to return `value` at once; whether that could be arranged.
    fn override_return(&self, context: u64, value: u64) -> bool {
        let _ = (context, value);
        false
    }

    /// Keeps interrupts (not NMIs) off this core, and with them other tasks; hand the result, which fits into 16 bits, to
    /// [`restore_interrupts`](Self::restore_interrupts).
    fn mask_interrupts(&self) -> u64 {
        0
    }

    /// Undoes [`mask_interrupts`](Self::mask_interrupts), the innermost first.
    fn restore_interrupts(&self, state: u64) {
        let _ = state;
    }

    /// One round of waiting for another core.
    fn relax(&self) {
        core::hint::spin_loop();
    }

    /// A ring buffer has something for its reader.
    fn wake_reader(&self, map: &crate::map::Map) {
        let _ = map;
    }

    /// Takes one text that a program printed, which may or may not end in a newline. It is formatted only while this
    /// writes it out.
    fn print(&self, text: fmt::Arguments<'_>);
}

/// A host is registered already; there is one for all programs, for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AlreadyRegistered;

impl fmt::Display for AlreadyRegistered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a host for BPF helpers is registered already; register one, once, at boot")
    }
}

impl core::error::Error for AlreadyRegistered {}

/// The host, set once; read by an acquire load, without a lock.
static HOST: Once<&'static dyn Host, Loop> = Once::new();

/// Names the host that helpers ask from now on. Until then time and core number are 0, and what is printed is lost.
pub fn register(host: &'static dyn Host) -> Result<(), AlreadyRegistered> {
    let mut new = false;
    HOST.call_once(|| {
        new = true;
        host
    });
    if new { Ok(()) } else { Err(AlreadyRegistered) }
}

/// The registered host, or one that knows nothing.
pub(crate) fn host() -> &'static dyn Host {
    HOST.get().copied().unwrap_or(&NoHost)
}

/// Stands in until a host is registered.
struct NoHost;

impl Host for NoHost {
    fn ktime_ns(&self) -> u64 {
        0
    }

    fn cpu(&self) -> u32 {
        0
    }

    fn current_pid_tgid(&self) -> u64 {
        0
    }

    fn print(&self, _: fmt::Arguments<'_>) {}
}
