// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device registers: one load or store instruction each, which is what a hypervisor can emulate.
//!
//! A trapped access is described by ESR_EL2.ISS only for the plain forms of single-register loads and stores (Arm ARM, ISS
//! encoding for a Data Abort, ISV), and a compiler is free to use others; so the instruction is written out.
#![expect(unsafe_code, reason = "registers are reached through raw addresses")]

/// A mapped block of device registers.
///
/// It is a handle: copies name the same registers, whose order of accesses is the drivers' business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    base: usize,
    size: usize,
}

impl Mmio {
    /// Names a block of registers.
    ///
    /// # Safety
    /// `base` to `base + size` is mapped for reading and writing as Device memory, `base` is 8-byte aligned, stays
    /// mapped for as long as any copy of this handle is used, and what is there is what the driver takes it for: device
    /// registers that no Rust reference points to.
    pub const unsafe fn new(base: usize, size: usize) -> Self {
        Self { base, size }
    }

    /// A part of the block, from byte `offset` on; `None` if it is not inside.
    pub(crate) fn part(self, offset: usize, size: usize) -> Option<Self> {
        let inside = offset.checked_add(size)? <= self.size && offset.is_multiple_of(8);
        let base = self.base.checked_add(offset)?;
        inside.then_some(Self { base, size })
    }

    /// The virtual address of a register of `width` bytes. Offsets are constants of the drivers, and machines are refused
    /// whose regions are smaller than those need, so this fails only for a mistake in a driver.
    pub(crate) fn address(self, offset: usize, width: usize) -> usize {
        assert!(
            offset.is_multiple_of(width) && offset + width <= self.size,
            "register at {offset:#x} is not inside its block of {:#x} bytes; the driver is wrong",
            self.size
        );
        self.base + offset
    }

    /// Reads the 32-bit register at byte `offset`.
    pub(crate) fn read(self, offset: usize) -> u32 {
        let address = self.address(offset, 4);
        #[cfg(target_arch = "aarch64")]
        {
            let value;
            // SAFETY: `new`'s caller vouches for the mapping, `address` for bounds and alignment; a load from a device
            // register changes no memory that Rust knows of.
            unsafe {
                core::arch::asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
            }
            value
        }
        #[cfg(not(target_arch = "aarch64"))]
        // SAFETY: as above; here the registers are a test's memory.
        unsafe {
            (address as *const u32).read_volatile()
        }
    }

    /// Reads the 64-bit register at byte `offset`.
    pub(crate) fn read64(self, offset: usize) -> u64 {
        let address = self.address(offset, 8);
        #[cfg(target_arch = "aarch64")]
        {
            let value;
            // SAFETY: as in `read`.
            unsafe {
                core::arch::asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags));
            }
            value
        }
        #[cfg(not(target_arch = "aarch64"))]
        // SAFETY: as in `read`.
        unsafe {
            (address as *const u64).read_volatile()
        }
    }

    /// Writes the 32-bit register at byte `offset`.
    pub(crate) fn write(self, offset: usize, value: u32) {
        let address = self.address(offset, 4);
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as in `read`; a store to a device register changes no memory that Rust knows of.
        unsafe {
            core::arch::asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack, preserves_flags));
        }
        #[cfg(not(target_arch = "aarch64"))]
        // SAFETY: as in `read`.
        unsafe {
            (address as *mut u32).write_volatile(value);
        }
    }
}

#[cfg(test)]
impl Mmio {
    /// Registers for a test: zeroed memory that is never freed. What is written can be read back, nothing more.
    pub(crate) fn fake(size: usize) -> Self {
        let memory = vec![0u64; size / 8].leak();
        // SAFETY: the memory is mapped, aligned for u64, stays, and `memory` is the only reference, which ends here.
        unsafe { Self::new(memory.as_mut_ptr().expose_provenance(), size) }
    }

    /// Puts a value where a 64-bit register is.
    pub(crate) fn set64(self, offset: usize, value: u64) {
        self.write(offset, value as u32);
        self.write(offset + 4, (value >> 32) as u32);
    }
}
