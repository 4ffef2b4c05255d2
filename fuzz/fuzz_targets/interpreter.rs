// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any slots as a program: refused, or run until it ends or is ended, touching nothing but its own memory.
#![no_main]

use std::sync::{Arc, atomic::AtomicU64};

use bpf_vm::{
    interp::{Interpreter, Region},
    isa::Insn,
    jit::{self, Target},
    map::{HeapMemory, Map, MapDefinition, MapKind},
    program::UncheckedProgram,
};
use libfuzzer_sys::fuzz_target;

/// Instructions that a program may run.
const BUDGET: u64 = 10_000;

fuzz_target!(|bytes: &[u8]| {
    let (slots, _) = bytes.as_chunks();
    let definition = MapDefinition {
        name: "array".into(),
        kind: MapKind::ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 3,
        flags: 0,
    };
    let map = Map::create(definition, &HeapMemory::with_limit(64)).expect("three words");
    let program = UncheckedProgram {
        insns: slots.iter().map(|&slot| Insn::from_bytes(slot)).collect(),
        maps: vec![map],
        ..UncheckedProgram::default()
    };
    let Ok(program) = program.validate() else {
        return;
    };
    // It may refuse: recursion, call depth, registers.
    let _ = jit::compile(&program, &Target::new(0x8_0000));
    let memory = [const { AtomicU64::new(0x0123_4567_89ab_cdef) }; 8];
    let arguments = [memory.as_ptr().expose_provenance() as u64, 64];
    let _ = Interpreter::new(Arc::new(program)).run(&arguments, &[Region::words(&memory)], BUDGET);
});
