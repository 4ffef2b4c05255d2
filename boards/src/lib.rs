// SPDX-License-Identifier: MIT OR Apache-2.0
//! What differs between the machines that Springboard boots on, picked by device tree.
//!
//! Boot flow, as the kernel uses this crate:
//!
//! 1. [`magic_ok`] on the first eight bytes that x0 points to says whether there is a device tree, and how large.
//! 2. [`Machine::from_fdt`] reads from it all that the kernel has to know; when it cannot, its [`BoardError`] names what
//!    is missing and [`best_uart`] finds a port to say so on.
//! 3. The kernel maps [`Machine::mmio`] as Device memory and hands the mappings, as [`Mmio`], to [`Pl011`] and
//!    [`irq::Controller`].
//! 4. [`smp::start`] brings up the other cores.
//!
//! Nothing here allocates, and no byte of a tree makes it panic. `unsafe` is in `mmio` and `sysreg` alone.
#![cfg_attr(not(any(test, feature = "trees")), no_std)]
#![deny(unsafe_code)]

mod error;
mod fdt;
pub mod irq;
mod machine;
mod mmio;
pub mod smp;
mod sysreg;
#[cfg(feature = "trees")]
pub mod trees;
mod uart;

pub use error::{BoardError, Name};
pub use fdt::magic_ok;
pub use machine::{
    Conduit, Cpu, Enable, MAX_CPUS, MAX_REGIONS, Machine, Uart, UartKind, best_uart,
};
pub use mmio::Mmio;
pub use uart::Pl011;

/// A range of physical addresses; `start + size` does not overflow in any region that this crate returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Region {
    /// The first address behind the region.
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.size)
    }
}
