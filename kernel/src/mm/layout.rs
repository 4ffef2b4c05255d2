// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things lie in the upper half: one 39-bit space.
//!
//! ```text
//! 0xffffff80_00000000  linear map: physical memory and devices, RW-NX (image and pool read-only)   256 GiB
//! 0xffffffff_80000000  image: text RX, rodata RO, data RW, symbols RO                    at most 30 MiB
//! 0xffffffff_84000000  executable pool, RX                                                8 MiB
//! 0xffffffff_87000000  patch mappings, a page a core, mapped only while a core writes code
//! 0xffffffff_90000000  map values and what else hooked code reaches by ADRP, RW-NX      256 MiB
//! 0xffffffff_a0000000  stacks: slots of 512 KiB, the upper half mapped                   256 MiB
//! 0xffffffff_b0000000  device tree, RO                                                    4 MiB
//! 0xffffffff_b1000000  slow memory: the initrd, a page mapped RO when it was brought in      1 MiB
//! ```
//! Image, pool and patch mappings share one 128 MiB window, so B and BL always reach (Arm ARM C6.2, B: ±128 MiB).

/// Bytes in a page: the 4 KiB granule.
pub(crate) const PAGE: usize = 4096;
/// Virtual address of physical address 0.
pub(crate) const LINEAR: usize = 0xffff_ff80_0000_0000;
/// Bytes of physical address space that the linear map can hold.
pub(crate) const LINEAR_SIZE: u64 = 256 << 30;
/// Linked address of the image (`_image_start` in linker/kernel.ld).
pub(crate) const IMAGE: usize = 0xffff_ffff_8000_0000;
/// The executable pool as it is run.
pub(crate) const POOL: usize = IMAGE + (64 << 20);
/// Bytes in the executable pool.
pub(crate) const POOL_SIZE: usize = 8 << 20;
/// Patch mappings, one page a core.
pub(crate) const PATCH: usize = IMAGE + (112 << 20);
/// Map values, within ADRP's reach of the pool.
pub(crate) const NEAR: usize = IMAGE + (256 << 20);
/// Bytes for map values.
pub(crate) const NEAR_SIZE: usize = 256 << 20;
/// Stacks.
pub(crate) const STACKS: usize = IMAGE + (512 << 20);
/// Bytes in a stack slot; the upper half is the stack, the lower half is never mapped (vectors.s tests bit 18).
pub(crate) const STACK_SLOT: usize = 512 << 10;
/// Bytes in a stack.
pub(crate) const STACK_SIZE: usize = STACK_SLOT / 2;
/// How many stacks there can be.
pub(crate) const STACK_COUNT: usize = (256 << 20) / STACK_SLOT;
/// Where boot.s maps the 2 MiB block that the device tree begins in, and the next.
pub(crate) const DEVICE_TREE: usize = IMAGE + (768 << 20);
/// Bytes mapped there.
pub(crate) const DEVICE_TREE_SIZE: usize = 4 << 20;
/// Slow memory (slow.rs).
pub(crate) const SLOW: usize = IMAGE + (784 << 20);
/// Bytes of slow memory at most.
pub(crate) const SLOW_SIZE: usize = 1 << 20;

const _: () = assert!(STACK_SIZE == 1 << 18, "vectors.s tests bit 18 of sp");
