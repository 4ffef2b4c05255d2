// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any bytes as an object: an error or programs that are validated, compiled and run, never a panic.
#![no_main]

use std::sync::Arc;

use bpf_vm::{
    interp::Interpreter,
    jit::{self, Target},
    map::HeapMemory,
    object::Object,
};
use libfuzzer_sys::fuzz_target;

/// Bytes of map values that an object may ask for.
const MAPS: usize = 1 << 20;
/// Instructions that a program may run.
const BUDGET: u64 = 10_000;

fuzz_target!(|file: &[u8]| {
    let Ok(object) = Object::parse(file) else {
        return;
    };
    let Ok(loaded) = object.instantiate(&HeapMemory::with_limit(MAPS)) else {
        return;
    };
    for program in loaded.programs {
        if let Ok(program) = program.validate() {
            // Both may refuse, or end the run.
            let _ = jit::compile(&program, &Target::new(0x8_0000));
            let _ = Interpreter::new(Arc::new(program)).run(&[], &[], BUDGET);
        }
    }
});
