// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory: page frames, heap, page tables, stacks with guards, memory near the code.
//!
//! One of the rooms where `unsafe` may live: what leaves it are owned values and physical addresses.

pub(crate) mod frames;
pub(crate) mod heap;
pub(crate) mod layout;
pub(crate) mod near;
pub(crate) mod stack;
pub(crate) mod table;

pub(crate) use table::Access;

use boards::{Machine, Region};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use heapless::Vec;
use layout::{DEVICE_TREE, DEVICE_TREE_SIZE, IMAGE, LINEAR, PAGE, POOL, POOL_SIZE};

unsafe extern "C" {
    static _text_end: u8;
    static _rodata_end: u8;
    static _image_end: u8;
}

/// Addresses of the image's parts: `(end of text, end of rodata, end of data)`, all page aligned.
pub(crate) fn image_parts() -> (usize, usize, usize) {
    (
        (&raw const _text_end).addr(),
        (&raw const _rodata_end).addr(),
        (&raw const _image_end).addr(),
    )
}

/// Bytes of the image with what xtask appended: `image_size` in its own header.
pub(crate) fn image_bytes() -> usize {
    // SAFETY: offset 16 of the image's header (Linux arm64 boot protocol) is an aligned u64, mapped read-execute.
    let size = unsafe { ((IMAGE + 16) as *const u64).read() } as usize;
    size.next_multiple_of(PAGE)
}

/// What xtask appended to the image: the symbol blob. Empty if nothing was.
pub(crate) fn blob() -> &'static [u8] {
    let (_, _, end) = image_parts();
    let bytes = (IMAGE + image_bytes()).saturating_sub(end);
    // SAFETY: boot.s maps `_image_end .. _image_start + image_size` read-only, and nothing ever unmaps it.
    unsafe { core::slice::from_raw_parts(end as *const u8, bytes) }
}

/// What boot.s mapped of the device tree at physical address `pa`; the tree's own length is checked by its parser.
pub(crate) fn device_tree(pa: u64) -> &'static [u8] {
    let offset = pa as usize & 0x1f_ffff;
    // SAFETY: boot.s maps 4 MiB from the 2 MiB block that holds `pa`, read-only, and nothing ever unmaps it.
    unsafe {
        core::slice::from_raw_parts(
            (DEVICE_TREE + offset) as *const u8,
            DEVICE_TREE_SIZE - offset,
        )
    }
}

/// Physical memory that stays as the boot loader left it, for example the initrd.
pub(crate) fn boot_memory(region: &Region) -> Option<&'static [u8]> {
    let end = region.start.checked_add(region.size)?;
    if end > layout::LINEAR_SIZE || region.size == 0 {
        return None;
    }
    let mut va = LINEAR + region.start as usize;
    let (start, last) = (va, LINEAR + end as usize);
    while va < last {
        table::translate(va)?;
        va = (va & !(PAGE - 1)) + PAGE;
    }
    // SAFETY: every page of it was just seen to be mapped; mm::init reserved the range, so no one writes it.
    Some(unsafe { core::slice::from_raw_parts(start as *const u8, region.size as usize) })
}

/// Address in the linear map.
pub(crate) fn linear(pa: u64) -> usize {
    LINEAR + pa as usize
}

pub(crate) fn fill(start: usize, bytes: usize, value: u8) {
    // SAFETY: callers in this module pass page frames that they own, in the linear map, where RAM is RW.
    unsafe { core::ptr::write_bytes(start as *mut u8, value, bytes) }
}

/// Maps a page with these bytes, and zeros behind them, read-only.
///
/// # Errors
/// No memory, or something is mapped there.
pub(crate) fn map_copy(va: usize, bytes: &[u8]) -> Result<(), table::MapError> {
    let frame = frames::allocate(1).ok_or(table::MapError::NoTable)?;
    fill(linear(frame), PAGE, 0);
    // SAFETY: a page frame that is this function's own, in the linear map, where RAM is RW.
    let page = unsafe { core::slice::from_raw_parts_mut(linear(frame) as *mut u8, PAGE) };
    page.iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = *from);
    table::map_page(va, frame, Access::Read).inspect_err(|_| frames::free(frame, 1))
}

/// Undoes [`map_copy`].
pub(crate) fn unmap_copy(va: usize) {
    if let Some(frame) = table::unmap_page(va) {
        frames::free(frame, 1);
    }
}

/// Physical address of the pool's copy; 0 before there is one.
static POOL_COPY: AtomicU64 = AtomicU64::new(0);

/// As many words as the pool has, for what was written there; empty before [`init`].
pub(crate) fn pool_copy() -> &'static [AtomicU32] {
    let pa = POOL_COPY.load(Ordering::Acquire);
    if pa == 0 {
        return &[];
    }
    // SAFETY: `init` reserved POOL_SIZE bytes there for this, page aligned, in the linear map, where RAM is RW; they are reached by
    // this slice only, whose words are atomic and valid for any bits.
    unsafe { core::slice::from_raw_parts(linear(pa) as *const AtomicU32, POOL_SIZE / 4) }
}

fn zero_frame(pa: u64) {
    fill(linear(pa), PAGE, 0);
}

/// How many bytes from `start` hold `value`. Every detach asks this of a whole stack, so it looks at 64 at a time first.
fn count_leading(start: usize, bytes: usize, value: u8) -> usize {
    let aligned = start.is_multiple_of(16);
    let most = start + if aligned { bytes & !63 } else { 0 };
    let at: usize;
    // SAFETY: callers pass a mapped stack that they own, and this only loads words of it, up to `most`.
    unsafe {
        core::arch::asm!(
            "2: cmp {at}, {most}",
            "b.hs 3f",
            "ldp {a}, {b}, [{at}]",
            "ldp {c}, {d}, [{at}, #16]",
            "cmp {a}, {word}",
            "ccmp {b}, {word}, #0, eq",
            "ccmp {c}, {word}, #0, eq",
            "ccmp {d}, {word}, #0, eq",
            "ldp {a}, {b}, [{at}, #32]",
            "ldp {c}, {d}, [{at}, #48]",
            "ccmp {a}, {word}, #0, eq",
            "ccmp {b}, {word}, #0, eq",
            "ccmp {c}, {word}, #0, eq",
            "ccmp {d}, {word}, #0, eq",
            "b.ne 3f",
            "add {at}, {at}, #64",
            "b 2b",
            "3:",
            at = inout(reg) start => at,
            most = in(reg) most,
            word = in(reg) u64::from_ne_bytes([value; 8]),
            a = out(reg) _,
            b = out(reg) _,
            c = out(reg) _,
            d = out(reg) _,
            options(readonly, nostack)
        )
    };
    let done = at - start;
    let rest = (done..bytes)
        // SAFETY: as above, a byte.
        .take_while(|i| unsafe { ((start + i) as *const u8).read_volatile() } == value);
    done + rest.count()
}

/// Ranges still free while the boot lays out memory.
struct Free(Vec<(u64, u64), 64>);

impl Free {
    fn reserve(&mut self, start: u64, end: u64) {
        let mut i = 0;
        while let Some(&(s, e)) = self.0.get(i) {
            if start >= e || end <= s {
                i += 1;
                continue;
            }
            self.0.swap_remove(i);
            // A full list loses the smaller remainder: memory unused, nothing wrong.
            if s < start {
                let _ = self.0.push((s, start));
            }
            if end < e {
                let _ = self.0.push((end, e));
            }
        }
    }

    /// Takes `bytes`, aligned, from the top of the lowest range that has them.
    fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let mut best: Option<u64> = None;
        for &(s, e) in &self.0 {
            if let Some(start) = e
                .checked_sub(bytes)
                .map(|x| x & !(align - 1))
                .filter(|&x| x >= s)
            {
                best = Some(best.map_or(start, |b| b.min(start)));
            }
        }
        let start = best?;
        self.reserve(start, start + bytes);
        Some(start)
    }
}

/// Tells the page tables where the image lies: before anything is mapped.
pub(crate) fn early_init(image_pa: u64) {
    let (_, _, data_end) = image_parts();
    table::init(image_pa, (data_end - IMAGE) as u64);
}

/// Maps a device before [`init`], for a message.
pub(crate) fn early_device(region: Region) -> bool {
    table::map_linear(
        region.start,
        region.start + region.size,
        Access::Device,
        true,
    )
    .is_ok()
}

/// Builds the linear map, the pool's mapping, the heap and the page frames. Once, on the boot core.
pub(crate) fn init(
    machine: &Machine<'_>,
    image_pa: u64,
    tree: Option<(u64, usize)>,
) -> Result<(), &'static str> {
    let (text_end, rodata_end, data_end) = image_parts();
    let image_end = image_pa + image_bytes() as u64;

    let mut free = Free(Vec::new());
    for r in &machine.memory {
        let _ = free
            .0
            .push((r.start, (r.start + r.size).min(layout::LINEAR_SIZE)));
    }
    free.reserve(0, PAGE as u64); // spin table and firmware stub
    free.reserve(image_pa, image_end);
    for r in machine.reserved.iter().chain(&machine.initrd) {
        free.reserve(
            r.start & !(PAGE as u64 - 1),
            (r.start + r.size).next_multiple_of(PAGE as u64),
        );
    }
    if let Some((start, bytes)) = tree {
        free.reserve(
            start & !(PAGE as u64 - 1),
            (start + bytes as u64).next_multiple_of(PAGE as u64),
        );
    }
    let pool_pa = free
        .take(POOL_SIZE as u64, 2 << 20)
        .ok_or("/memory: no 8 MiB for the executable pool; give the machine more memory")?;
    let copy_pa = free.take(POOL_SIZE as u64, PAGE as u64).ok_or(
        "/memory: no 8 MiB for the copy of the executable pool; give the machine more memory",
    )?;
    let total: u64 = free.0.iter().map(|(s, e)| e - s).sum();
    let heap_bytes = (total / 4).min(32 << 20) & !(PAGE as u64 - 1);
    let heap_pa = free
        .take(heap_bytes, PAGE as u64)
        .ok_or("/memory: no room for the heap")?;

    let whole = |e: table::MapError| match e {
        table::MapError::NoTable => {
            "the boot's page tables are used up: too many memory or device ranges"
        }
        table::MapError::Occupied(_) => "the device tree's memory and device ranges overlap",
    };
    // Image and pool are mapped page by page and read-only where they are code or constants.
    let offset = |va: usize| image_pa + (va - IMAGE) as u64;
    let special = [
        (image_pa, offset(rodata_end), Access::Read),
        (offset(rodata_end), offset(data_end), Access::Write),
        (offset(data_end), image_end, Access::Read),
        (pool_pa, pool_pa + POOL_SIZE as u64, Access::Read),
    ];
    debug_assert!(text_end <= rodata_end);
    for r in &machine.memory {
        let (mut at, end) = (r.start, r.start + r.size);
        while at < end {
            if let Some(&(_, e, access)) = special.iter().find(|(s, e, _)| (*s..*e).contains(&at)) {
                table::map_linear(at, e.min(end), access, true).map_err(whole)?;
                at = e;
            } else {
                let next = special
                    .iter()
                    .map(|s| s.0)
                    .filter(|&s| s > at)
                    .min()
                    .unwrap_or(end)
                    .min(end);
                table::map_linear(at, next, Access::Write, false).map_err(whole)?;
                at = next;
            }
        }
    }
    for page in (0..POOL_SIZE).step_by(PAGE) {
        table::map_page(POOL + page, pool_pa + page as u64, Access::Execute).map_err(whole)?;
    }
    for r in machine.mmio() {
        table::map_linear(r.start, r.start + r.size, Access::Device, true).map_err(whole)?;
    }
    POOL_COPY.store(copy_pa, Ordering::Release);
    heap::init(linear(heap_pa), heap_bytes as usize);
    for &(s, e) in &free.0 {
        frames::add(s, e);
    }
    Ok(())
}
