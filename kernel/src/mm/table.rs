// SPDX-License-Identifier: MIT OR Apache-2.0
//! The upper-half page tables: map, unmap, translate; nothing is ever writable and executable.
//!
//! Three levels of 4 KiB tables (VMSAv8-64, Arm ARM D8.2). Blocks are made at boot only; afterwards entries change
//! between invalid and valid (map) and back (unmap), so break-before-make (D8.16) holds by construction.

use super::layout::{IMAGE, LINEAR, LINEAR_SIZE, PAGE};
use crate::arch::{barrier, lock::SpinLock};
use core::sync::atomic::{AtomicU64, Ordering};

/// What a mapping may be used for. There is no writable and executable one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Code: read and execute.
    Execute,
    /// Constants: read.
    Read,
    /// Data: read and write.
    Write,
    /// Device registers: read and write, Device-nGnRE.
    Device,
}

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AttrIndx: the attributes' place in MAIR_EL1 (boot.s); 0 and 1 are Device.
const ATTR_MASK: u64 = 7 << 2;
const ATTR_DEVICE: u64 = 1 << 2;
const ATTR_NORMAL: u64 = 2 << 2;
const AP_RO: u64 = 1 << 7;
const SH_INNER: u64 = 0b11 << 8;
const AF: u64 = 1 << 10;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

impl Access {
    fn bits(self) -> u64 {
        AF | UXN
            | match self {
                Access::Execute => ATTR_NORMAL | SH_INNER | AP_RO,
                Access::Read => ATTR_NORMAL | SH_INNER | AP_RO | PXN,
                Access::Write => ATTR_NORMAL | SH_INNER | PXN,
                Access::Device => ATTR_DEVICE | PXN,
            }
    }
}

/// Why a page could not be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// Something is mapped there already.
    Occupied(usize),
    /// No memory for a table.
    NoTable,
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            MapError::Occupied(va) => write!(f, "{va:#x} is mapped already; unmap it first"),
            MapError::NoTable => write!(
                f,
                "no page is left for a page table; free memory or give the machine more"
            ),
        }
    }
}

const BOOT_POOL: usize = 48;

/// One table: 512 descriptors.
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

/// Tables for the time before there are page frames; part of the image, so mapped from the first moment.
static BOOT_TABLES: [Table; BOOT_POOL] =
    [const { Table([const { AtomicU64::new(0) }; 512]) }; BOOT_POOL];

/// Physical addresses of the image: its first, and the one after its data.
static IMAGE_AT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Where tables come from. Held by whoever changes an entry; reading needs no lock, for tables are never given back.
struct Allocator {
    boot_used: usize,
}

static LOCK: SpinLock<Allocator> = SpinLock::new(Allocator { boot_used: 0 });

/// The table at physical address `pa`.
fn table_at(pa: u64) -> &'static Table {
    let [start, end] = IMAGE_AT.each_ref().map(|a| a.load(Ordering::Relaxed));
    let va = if pa >= start && pa < end {
        (pa - start) as usize + IMAGE
    } else {
        LINEAR + pa as usize
    };
    // SAFETY: `pa` came from `allocate` or from boot.s, which hand out whole, aligned pages that are only ever
    // used as tables and never given back; image and linear map keep them mapped. Entries are atomics.
    unsafe { &*(va as *const Table) }
}

impl Allocator {
    /// A zeroed table: its physical address.
    fn allocate(&mut self) -> Result<u64, MapError> {
        if let Some(table) = BOOT_TABLES.get(self.boot_used) {
            self.boot_used += 1;
            let image_pa = IMAGE_AT[0].load(Ordering::Relaxed);
            return Ok(core::ptr::from_ref(table) as u64 - IMAGE as u64 + image_pa);
        }
        let frame = super::frames::allocate(1).ok_or(MapError::NoTable)?;
        super::zero_frame(frame);
        Ok(frame)
    }

    /// The descriptor for `va` at `level`, tables made on the way if `make`.
    fn entry(
        &mut self,
        va: usize,
        level: usize,
        make: bool,
    ) -> Result<Option<&'static AtomicU64>, MapError> {
        let mut table = table_at(root());
        for l in 1..=level {
            let entry = &table.0[(va >> (39 - 9 * l)) & 511];
            if l == level {
                return Ok(Some(entry));
            }
            let mut value = entry.load(Ordering::Relaxed);
            if value & VALID == 0 {
                if !make {
                    return Ok(None);
                }
                value = self.allocate()? | VALID | TABLE_OR_PAGE;
                // The zeroed table must be visible to the walker before the entry that leads to it.
                barrier::dsb_ishst();
                entry.store(value, Ordering::Relaxed);
            } else if value & TABLE_OR_PAGE == 0 {
                return if make {
                    Err(MapError::Occupied(va))
                } else {
                    Ok(Some(entry))
                };
            }
            table = table_at(value & ADDRESS);
        }
        Ok(None)
    }
}

/// Physical address of the level 1 table that TTBR1_EL1 names.
fn root() -> u64 {
    crate::arch::ttbr1() & ADDRESS
}

/// Told once at boot where the image lies in memory.
pub(super) fn init(image_pa: u64, image_bytes: u64) {
    let [start, end] = &IMAGE_AT;
    start.store(image_pa, Ordering::Relaxed);
    end.store(image_pa + image_bytes, Ordering::Relaxed);
}

/// Maps one page.
pub(crate) fn map_page(va: usize, pa: u64, access: Access) -> Result<(), MapError> {
    let mut allocator = LOCK.lock();
    let Some(entry) = allocator.entry(va, 3, true)? else {
        return Err(MapError::NoTable);
    };
    if entry.load(Ordering::Relaxed) & VALID != 0 {
        return Err(MapError::Occupied(va));
    }
    entry.store(
        (pa & ADDRESS) | access.bits() | VALID | TABLE_OR_PAGE,
        Ordering::Relaxed,
    );
    // DSB: the walker sees the entry; ISB: so do instructions behind it (D8.16, invalid to valid needs no TLBI).
    barrier::dsb_ishst();
    barrier::isb();
    Ok(())
}

/// Unmaps one page; when this returns no core has a translation for it. Returns what it was mapped to.
pub(crate) fn unmap_page(va: usize) -> Option<u64> {
    let mut allocator = LOCK.lock();
    let entry = allocator.entry(va, 3, false).ok()??;
    let old = entry.swap(0, Ordering::Relaxed);
    // D8.16: the store, then TLBI by VA for the inner shareable domain, then DSB waits for all cores to finish.
    barrier::dsb_ishst();
    barrier::tlbi_va(va);
    barrier::dsb_ish();
    barrier::isb();
    (old & VALID != 0).then_some(old & ADDRESS)
}

/// Maps physical memory in the linear map, in 2 MiB blocks where `pages` is false and the range allows it.
pub(super) fn map_linear(
    start: u64,
    end: u64,
    access: Access,
    pages: bool,
) -> Result<(), MapError> {
    const BLOCK: u64 = 2 << 20;
    let mut pa = start & !(PAGE as u64 - 1);
    let end = end.min(LINEAR_SIZE);
    let mut allocator = LOCK.lock();
    while pa < end {
        let va = LINEAR + pa as usize;
        let whole = !pages && pa.is_multiple_of(BLOCK) && end - pa >= BLOCK;
        let entry = match allocator.entry(va, if whole { 2 } else { 3 }, true) {
            Ok(Some(entry)) => entry,
            // A device beside another may share its block: mapped already is as good.
            Err(MapError::Occupied(_)) if access == Access::Device => {
                pa += PAGE as u64;
                continue;
            }
            Ok(None) => return Err(MapError::NoTable),
            Err(e) => return Err(e),
        };
        if entry.load(Ordering::Relaxed) & VALID == 0 {
            let kind = if whole { 0 } else { TABLE_OR_PAGE };
            entry.store(pa | access.bits() | VALID | kind, Ordering::Relaxed);
        }
        pa += if whole { BLOCK } else { PAGE as u64 };
    }
    barrier::dsb_ishst();
    barrier::isb();
    Ok(())
}

/// What the tables say of an address: the physical address and whether it may be written and executed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translation {
    /// Physical address.
    pub pa: u64,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
    /// Leads to device registers: a read may have an effect.
    pub device: bool,
}

/// Walks the tables as the hardware does. Any context: no lock. The lower half is not mapped.
pub(crate) fn translate(va: usize) -> Option<Translation> {
    if va < LINEAR {
        return None;
    }
    let mut table = table_at(root());
    for level in 1..=3 {
        let value = table.0[(va >> (39 - 9 * level)) & 511].load(Ordering::Acquire);
        if value & VALID == 0 {
            return None;
        }
        if level == 3 || value & TABLE_OR_PAGE == 0 {
            let offset = va as u64 & ((1 << (39 - 9 * level)) - 1);
            let base = value & ADDRESS & !((1 << (39 - 9 * level)) - 1);
            return Some(Translation {
                pa: base | offset,
                write: value & AP_RO == 0,
                execute: value & PXN == 0,
                device: value & ATTR_MASK <= ATTR_DEVICE,
            });
        }
        table = table_at(value & ADDRESS);
    }
    None
}

/// Every valid leaf of the upper half: `(first address, bytes, write, execute)`. For the W^X test and `mem`.
pub(crate) fn for_each_leaf(mut visit: impl FnMut(usize, usize, bool, bool)) {
    let leaf = |value: u64| (value & AP_RO == 0, value & PXN == 0);
    let top = 0xffff_ff80_0000_0000_usize;
    for (i1, e1) in table_at(root()).0.iter().enumerate() {
        let v1 = e1.load(Ordering::Relaxed);
        if v1 & VALID == 0 {
            continue;
        }
        for (i2, e2) in table_at(v1 & ADDRESS).0.iter().enumerate() {
            let v2 = e2.load(Ordering::Relaxed);
            let va2 = top + (i1 << 30) + (i2 << 21);
            if v2 & VALID == 0 {
                continue;
            }
            if v2 & TABLE_OR_PAGE == 0 {
                let (w, x) = leaf(v2);
                visit(va2, 2 << 20, w, x);
                continue;
            }
            for (i3, e3) in table_at(v2 & ADDRESS).0.iter().enumerate() {
                let v3 = e3.load(Ordering::Relaxed);
                if v3 & VALID != 0 {
                    let (w, x) = leaf(v3);
                    visit(va2 + (i3 << 12), PAGE, w, x);
                }
            }
        }
    }
}
