// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starting the other cores, and switching the machine off: PSCI (DEN 0022) or spin table.
#![forbid(unsafe_code)]

use crate::{Conduit, Cpu, Enable, sysreg};
use core::fmt;
use smccc::psci;

/// Why a core was not started, or the machine not switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmpError {
    /// The device tree does not say how to start the core.
    NoMethod {
        /// Its affinity, as in MPIDR_EL1.
        mpidr: u64,
    },
    /// PSCI is asked for, and the device tree has no usable node for it.
    NoPsci,
    /// PSCI refused.
    Refused {
        /// The function called.
        function: &'static str,
        /// What it answered.
        error: psci::Error,
    },
}

impl fmt::Display for SmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMethod { mpidr } => write!(
                f,
                "no way to start the core with affinity {mpidr:#x}; its device tree node needs enable-method psci or spin-table"
            ),
            Self::NoPsci => write!(
                f,
                "no PSCI: the device tree needs a node arm,psci-0.2 with method hvc or smc"
            ),
            Self::Refused { function, error } => write!(
                f,
                "PSCI {function} refused: {error}; the firmware has to allow it"
            ),
        }
    }
}

impl core::error::Error for SmpError {}

/// Starts a core at the physical address `entry`, MMU off, exceptions masked.
///
/// PSCI hands `context` over in x0. A spin table hands over nothing: there a core knows itself by MPIDR_EL1, so `context` had
/// better be found that way. `release` stores its second argument, 64 bits wide, at the physical address that is its
/// first, and cleans that to the point of coherency, for the core polls with its caches off; this function then does the DSB
/// and the SEV that the waiting WFE needs.
///
/// # Errors
/// The tree gives no way to start this core, or PSCI refuses.
pub fn start(
    cpu: &Cpu,
    conduit: Option<Conduit>,
    entry: u64,
    context: u64,
    release: impl FnOnce(u64, u64),
) -> Result<(), SmpError> {
    match cpu.enable {
        Enable::Unknown => Err(SmpError::NoMethod { mpidr: cpu.mpidr }),
        Enable::SpinTable(address) => {
            release(address, entry);
            sysreg::dsb_sy();
            sysreg::sev();
            Ok(())
        }
        Enable::Psci => {
            // The new core may read, caches off or on, all that was stored before.
            sysreg::dsb_sy();
            let function = "CPU_ON";
            call(conduit, function, Call::CpuOn(cpu.mpidr, entry, context))
        }
    }
}

/// Switches the machine off; returns only if that does not work.
pub fn system_off(conduit: Option<Conduit>) -> SmpError {
    let called = call(conduit, "SYSTEM_OFF", Call::Off);
    called.err().unwrap_or(SmpError::NoPsci)
}

/// Resets the machine; returns only if that does not work.
pub fn system_reset(conduit: Option<Conduit>) -> SmpError {
    let called = call(conduit, "SYSTEM_RESET", Call::Reset);
    called.err().unwrap_or(SmpError::NoPsci)
}

/// A PSCI function and its arguments.
#[cfg_attr(
    not(target_arch = "aarch64"),
    expect(dead_code, reason = "a host has no PSCI to hand the arguments to")
)]
enum Call {
    /// Affinity, entry, context.
    CpuOn(u64, u64, u64),
    Off,
    Reset,
}

fn call(conduit: Option<Conduit>, function: &'static str, call: Call) -> Result<(), SmpError> {
    let answer = match conduit.ok_or(SmpError::NoPsci)? {
        #[cfg(target_arch = "aarch64")]
        Conduit::Hvc => through::<smccc::Hvc>(call),
        #[cfg(target_arch = "aarch64")]
        Conduit::Smc => through::<smccc::Smc>(call),
        #[cfg(not(target_arch = "aarch64"))]
        Conduit::Hvc | Conduit::Smc => {
            let _ = call;
            Err(psci::Error::NotSupported)
        }
    };
    answer.map_err(|error| SmpError::Refused { function, error })
}

#[cfg(target_arch = "aarch64")]
fn through<C: smccc::Call>(call: Call) -> Result<(), psci::Error> {
    match call {
        Call::CpuOn(mpidr, entry, context) => psci::cpu_on::<C>(mpidr, entry, context),
        Call::Off => psci::system_off::<C>(),
        Call::Reset => psci::system_reset::<C>(),
    }
}
