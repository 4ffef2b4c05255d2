// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any bytes as an object: an error or programs that are validated, compiled and run, never a panic. The kernel that it
//! is loaded into has whatever it asks for, and types that are in the same bytes.
#![no_main]

use std::sync::Arc;

use bpf_vm::{
    btf::Btf,
    helpers::{self, Helper},
    interp::Interpreter,
    jit::{self, Target},
    map::HeapMemory,
    object::{Environment, Object},
    program::KernelVariable,
};
use libfuzzer_sys::fuzz_target;

/// Bytes of map values that an object may ask for.
const MAPS: usize = 1 << 20;
/// Instructions that a program may run.
const BUDGET: u64 = 10_000;

/// Where BTF starts (`BTF_MAGIC` and version 1 of `linux/btf.h`).
const BTF_START: &[u8] = &[0x9f, 0xeb, 1];

/// A kernel that has everything.
struct Kernel<'a> {
    btf: Option<Btf<'a>>,
}

/// What variables are at.
static WORD: u64 = 7;

impl Environment for Kernel<'_> {
    fn btf(&self) -> Option<&Btf<'_>> {
        self.btf.as_ref()
    }

    fn kfunc(&self, _: &str) -> Option<&'static Helper> {
        // `bpf_get_smp_processor_id`, which takes nothing.
        helpers::by_number(8)
    }

    fn variable(&self, name: &str) -> Option<KernelVariable> {
        let type_id = self.btf.as_ref()?.find(bpf_vm::btf::Kind::VAR, name)?;
        Some(KernelVariable {
            name: name.into(),
            address: (&raw const WORD).expose_provenance() as u64,
            bytes: 8,
            type_id,
        })
    }

    fn kconfig(&self, name: &str) -> Option<String> {
        let texts = ["y", "m", "4711", "\"text\""];
        texts
            .get(name.len() % (texts.len() + 1))
            .map(|&text| text.into())
    }
}

fuzz_target!(|file: &[u8]| {
    let Ok(object) = Object::parse(file) else {
        return;
    };
    let types = file
        .windows(BTF_START.len())
        .rposition(|start| start == BTF_START);
    let kernel = Kernel {
        btf: types.and_then(|at| Btf::parse(file.get(at..)?).ok()),
    };
    let Ok(loaded) = object.instantiate_in(&kernel, &HeapMemory::with_limit(MAPS)) else {
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
