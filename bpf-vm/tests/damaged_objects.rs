// SPDX-License-Identifier: MIT OR Apache-2.0
//! Damaged objects: every truncation and thousands of changed bytes give an answer, in bounded memory.
//!
//! One test, since it measures what the whole process allocates.
mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use bpf_vm::{map::HeapMemory, object::Object};
use common::kernel::{Kernel, kernel_for_all, own};

/// Changed bytes that are tried, over all objects.
const CHANGES: u64 = 100_000;
/// The seed of the changes; a failure names its step, so that it can be had again.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes that maps may take in these tests.
const MAP_BYTES: usize = 1 << 16;
/// Bytes that loading may take for each byte of the object, and besides.
const BYTES_PER_BYTE: usize = 16;
const BYTES_BESIDES: usize = 2 * MAP_BYTES;

/// Counts what is allocated.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: it passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(used, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How far loading gets; all that matters is that it ends, without a panic, in bounded memory.
fn load(object: &[u8], kernel: &Kernel<'_>, what: impl Fn() -> String) -> &'static str {
    let before = USED.load(Relaxed);
    PEAK.store(before, Relaxed);
    let load = || {
        let Ok(object) = Object::parse(object) else {
            return "refused";
        };
        let loaded = object.instantiate_in(kernel, &HeapMemory::with_limit(MAP_BYTES));
        kernel.pins.lock().unwrap().clear();
        let Ok(loaded) = loaded else {
            return "parsed";
        };
        let valid = loaded
            .programs
            .into_iter()
            .filter(|p| p.clone().validate().is_ok());
        if valid.count() > 0 { "valid" } else { "loaded" }
    };
    let result = catch_unwind(AssertUnwindSafe(load));
    let result = result.unwrap_or_else(|_| panic!("{} makes the loader panic", what()));
    let peak = PEAK.load(Relaxed) - before;
    let limit = BYTES_PER_BYTE * object.len() + BYTES_BESIDES;
    assert!(
        peak <= limit,
        "{} takes {peak} bytes, more than {limit}",
        what()
    );
    result
}

/// Where an object's types, relocations and symbols lie: start and size of each section of them.
fn parts(file: &[u8]) -> Vec<(usize, usize)> {
    use object::{Object as _, ObjectSection as _};
    let elf = object::File::parse(file).unwrap();
    let named = |name: &str| {
        [".BTF", ".BTF.ext", ".maps", ".symtab"].contains(&name)
            || name.starts_with(".relfentry/")
            || name == ".rel.maps"
    };
    let parts = elf
        .sections()
        .filter(|s| named(s.name().unwrap()) && s.size() > 0);
    parts
        .map(|s| s.file_range().unwrap())
        .map(|(start, size)| (start as usize, size as usize))
        .collect()
}

/// xorshift64 (Marsaglia 2003).
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn damaged_objects_get_an_answer() {
    let Some(kernel) = own("core_kernel") else {
        return;
    };
    let kernel = kernel_for_all(&kernel);
    let objects = [
        common::program("count"),
        common::program("latency"),
        own("linking"),
        own("core_flavours"),
        own("externs"),
        own("functions"),
        own("jump_tables"),
        own("maps"),
    ];
    let Some(objects) = objects.into_iter().collect::<Option<Vec<_>>>() else {
        return;
    };
    for object in &objects {
        assert_eq!(load(object, &kernel, || "a good object".into()), "valid");
        for length in 0..object.len() {
            let what = || format!("an object of {} bytes cut to {length}", object.len());
            assert_eq!(
                load(&object[..length], &kernel, what),
                "refused",
                "cut to {length}"
            );
        }
    }
    let parts: Vec<Vec<_>> = objects.iter().map(|object| parts(object)).collect();
    let mut state = SEED;
    let mut seen = std::collections::BTreeMap::new();
    for step in 0..CHANGES {
        let which = random(&mut state) as usize % objects.len();
        let mut object = objects[which].clone();
        // Every other change hits what is hardest to read.
        let (start, size) = match step % 2 {
            0 => (0, object.len()),
            _ => {
                let parts = &parts[which];
                parts[random(&mut state) as usize % parts.len()]
            }
        };
        let at = start + random(&mut state) as usize % size;
        object[at] = random(&mut state) as u8;
        let what =
            || format!("step {step} of seed {SEED:#x}: object {which} with byte {at} changed");
        *seen.entry(load(&object, &kernel, what)).or_insert(0) += 1;
    }
    println!("{CHANGES} changed bytes, seed {SEED:#x}: {seen:?}");
    // Without these the changes would test nothing.
    for outcome in ["refused", "loaded", "valid"] {
        assert!(seen.contains_key(outcome), "no change led to `{outcome}`");
    }
}
