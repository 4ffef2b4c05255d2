// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host answers in place is no call in compiled code; what it does not is one.
mod support;

use std::{
    ptr::NonNull,
    sync::{Arc, atomic::AtomicU64},
};

use a64::inst::{BranchRegOp, Inst, SysReg};
use bpf_vm::{
    jit::{Clock, InPlace, Number, Target, compile},
    map::{HeapMemory, Map, MapDefinition, MapKind, MapMemory, MapRegion},
};
use support::program;

/// All of it, in registers that the kernel has something else in.
const ALL: InPlace = InPlace {
    task: Some(SysReg::SP_EL0),
    task_number: Some(Number {
        register: SysReg::SP_EL0,
        offset: 48,
    }),
    cpu: Some(Number {
        register: SysReg::TPIDR_EL1,
        offset: 8,
    }),
    clock: Some(Clock {
        counter: SysReg::CNTVCT_EL0,
        scale: 16 << 32,
    }),
};
/// A lookup in the program's map.
const LOOKUP: &str = "*(u32 *)(r10 - 4) = 1\nr1 = map[0]\nr2 = r10\nr2 += -4\ncall 1\nexit";

fn array(kind: MapKind, value_size: u32, max_entries: u32, memory: &dyn MapMemory) -> Arc<Map> {
    let definition = MapDefinition {
        name: "array".into(),
        kind,
        key_size: 4,
        value_size,
        max_entries,
        flags: 0,
    };
    Map::create(definition, memory).unwrap()
}

/// Whether the program's code has a BL or a BLR.
fn calls(text: &str, maps: &[Arc<Map>], in_place: InPlace) -> bool {
    let target = Target {
        in_place,
        ..Target::new(0x10_0000)
    };
    let code = compile(&program(text, maps), &target).unwrap();
    let is_call = |word: &u32| {
        matches!(
            Inst::decode(*word),
            Some(
                Inst::Branch { link: true, .. }
                    | Inst::BranchReg {
                        op: BranchRegOp::Blr,
                        ..
                    }
            )
        )
    };
    code.words.iter().any(is_call)
}

#[test]
fn what_the_host_answers_in_place_is_no_call() {
    let mut wrong = Vec::new();
    for helper in [5, 8, 14, 35, 158] {
        let text = format!("call {helper}\nexit");
        if calls(&text, &[], ALL) {
            wrong.push(format!("helper {helper} is called"));
        }
        if !calls(&text, &[], InPlace::default()) {
            wrong.push(format!(
                "helper {helper} is not called, and the host said nothing"
            ));
        }
    }
    let memory = HeapMemory::with_limit(1 << 20);
    for value_size in [8, 24] {
        for (kind, entries) in [MapKind::ARRAY, MapKind::PERCPU_ARRAY]
            .into_iter()
            .flat_map(|kind| [(kind, 3), (kind, 5000)])
        {
            let map = [array(kind, value_size, entries, &memory)];
            if calls(LOOKUP, &map, ALL) {
                wrong.push(format!(
                    "a lookup in {kind:?} of {value_size} bytes is called"
                ));
            }
            // Where an array's values are is known whatever the host says; which core's is not.
            if calls(LOOKUP, &map, InPlace::default()) != (kind == MapKind::PERCPU_ARRAY) {
                wrong.push(format!(
                    "a lookup in {kind:?} of {value_size} bytes without the core's number"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Addresses with nothing behind them until they are written.
struct Reserved;

/// Its memory, in bytes.
struct ReservedRegion(NonNull<AtomicU64>, usize);

impl MapMemory for Reserved {
    fn allocate(&self, bytes: usize) -> Option<Box<dyn MapRegion>> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping somewhere touches no memory that is in use.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "no {bytes} bytes of addresses");
        Some(Box::new(ReservedRegion(NonNull::new(start.cast())?, bytes)))
    }
}

impl Drop for ReservedRegion {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's, and nobody has its words any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), self.1) };
    }
}

// SAFETY: a mapping is every thread's.
unsafe impl Send for ReservedRegion {}
// SAFETY: all that is shared is a slice of atomic words.
unsafe impl Sync for ReservedRegion {}

// SAFETY: the mapping stays where it is until the region is dropped.
unsafe impl MapRegion for ReservedRegion {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is as long, aligned to a page, zeroed, and mapped as long as the region lives.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.1 / size_of::<AtomicU64>()) }
    }
}

/// A core's values may be 4 GiB or more; the product by which they are found takes 32 bits of that.
#[test]
fn where_a_core_s_values_are_too_many_the_helper_is_called() {
    let entries = u32::try_from((1_u64 << 32) / 24).unwrap();
    for (entries, called) in [(entries, false), (entries + 1, true)] {
        let map = array(MapKind::PERCPU_ARRAY, 24, entries, &Reserved);
        let stride = map.cpu_stride().unwrap();
        assert_eq!(stride > u32::MAX as usize, called, "{stride}");
        assert_eq!(calls(LOOKUP, &[map], ALL), called, "{stride} bytes a core");
    }
}
