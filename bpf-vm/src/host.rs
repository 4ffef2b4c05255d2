// SPDX-License-Identifier: MIT OR Apache-2.0
//! What helpers need from whoever runs programs: time, the core's number, a place to print.
#![forbid(unsafe_code)]

use core::fmt;

use spin::{once::Once, relax::Loop};

/// The host of this machine's programs. Its methods run on a hook's path, in any context up to NMI: they may neither
/// allocate nor wait for a lock, nor reach a site that a program could be hooked onto.
pub trait Host: Sync {
    /// Nanoseconds since boot, never going back (`CLOCK_MONOTONIC`).
    fn ktime_ns(&self) -> u64;

    /// The number of the core that runs this, from 0.
    fn cpu(&self) -> u32;

    /// The current task: thread group id in the upper 32 bits, task id in the lower.
    fn current_pid_tgid(&self) -> u64;

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
