// SPDX-License-Identifier: MIT OR Apache-2.0
//! The same programs for rbpf, by its interpreter with all that it checks by default.
use std::{error::Error, hint::black_box};

use bpf_vm::{asm::assemble, suite::Case};

use super::{case, right};

/// A program for rbpf, as slots.
pub(crate) struct Theirs {
    case: Case<'static>,
    slots: Vec<u8>,
}

impl Theirs {
    pub(crate) fn new(name: &str) -> Result<Self, Box<dyn Error>> {
        let case = case(name)?;
        // rbpf hands over the memory's address and not its length.
        let text = format!("r2 = {}\n{}", case.memory.len(), case.text);
        let slots = assemble(&text)?;
        let slots = slots.iter().flat_map(|slot| slot.to_bytes()).collect();
        Ok(Self { case, slots })
    }

    /// Calls `use_run` with what runs it once, on its memory as it begins.
    ///
    /// # Errors
    /// rbpf refuses the program, or a run of it; or what `use_run` returns.
    pub(crate) fn with<T>(
        &self,
        use_run: impl FnOnce(&mut dyn FnMut() -> Result<(), Box<dyn Error>>) -> T,
    ) -> Result<T, Box<dyn Error>> {
        let vm = rbpf::EbpfVmMbuff::new(Some(&self.slots))?;
        let mut memory = self.case.memory.clone();
        let mut run = || {
            memory.copy_from_slice(&self.case.memory);
            // Without a metadata buffer r1 is the memory's address. The program writes through the shared slice that
            // rbpf asks for, so the compiler is to forget what it knows of it.
            let r0 = vm.execute_program(black_box(&memory), &[])?;
            black_box(&mut memory);
            right(&self.case, r0)
        };
        Ok(use_run(&mut run))
    }
}
