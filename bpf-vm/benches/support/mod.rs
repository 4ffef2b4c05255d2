// SPDX-License-Identifier: MIT OR Apache-2.0
//! The suite's benchmark programs, ready to be run again and again by this crate's interpreter or by rbpf's.
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bpf_vm::{
    interp::{Interpreter, Region},
    map::HeapMemory,
    suite::{self, Case},
};

#[cfg(not(target_env = "musl"))]
mod theirs;

#[cfg(not(target_env = "musl"))]
pub(crate) use theirs::Theirs;

/// More instructions than any of the programs executes.
const BUDGET: u64 = 1 << 32;

/// One program, as `bpf_vm::suite` has it.
pub(crate) fn case(name: &str) -> Result<Case<'static>, Box<dyn Error>> {
    let found = suite::BENCHES.iter().find(|(known, _)| *known == name);
    let (_, text) = found.ok_or_else(|| format!("there is no program {name:?}"))?;
    Ok(suite::cases(text)?.pop().ok_or("the text holds no case")?)
}

/// Whether a result is the one that the suite says.
fn right(case: &Case<'_>, r0: u64) -> Result<(), Box<dyn Error>> {
    match case.r0 == Some(r0) {
        true => Ok(()),
        false => Err(format!("{} gives {r0:#x}", case.name).into()),
    }
}

/// A program for this crate's interpreter.
pub(crate) struct Ours {
    case: Case<'static>,
    interpreter: Interpreter,
    fresh: Vec<u64>,
    words: Vec<AtomicU64>,
}

impl Ours {
    pub(crate) fn new(name: &str) -> Result<Self, Box<dyn Error>> {
        let case = case(name)?;
        let maps = suite::maps(&HeapMemory::with_limit(1 << 20))?;
        let interpreter = Interpreter::new(Arc::new(case.program(&maps)?));
        let (words, _) = case.memory.as_chunks();
        let fresh: Vec<_> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        if fresh.len() * size_of::<u64>() != case.memory.len() {
            return Err(format!("{name}'s memory is no whole words").into());
        }
        let words = fresh.iter().copied().map(AtomicU64::new).collect();
        Ok(Self {
            case,
            interpreter,
            fresh,
            words,
        })
    }

    /// Runs it once, on its memory as it begins; how many BPF instructions that were.
    pub(crate) fn run(&self) -> Result<u64, Box<dyn Error>> {
        for (word, fresh) in self.words.iter().zip(&self.fresh) {
            word.store(*fresh, Relaxed);
        }
        let address = self.words.as_ptr().expose_provenance() as u64;
        let arguments = [address, self.case.memory.len() as u64];
        let regions = [Region::words(&self.words)];
        let outcome = self.interpreter.run(&arguments, &regions, BUDGET)?;
        right(&self.case, outcome.r0)?;
        Ok(outcome.instructions)
    }
}
