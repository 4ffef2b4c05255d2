// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of `suite=jit`: how many A64 instructions compiled programs execute for one of BPF.
//!
//! Each program of `bpf_vm::suite::BENCHES` runs compiled, with the counter on, every other core parked and interrupts
//! masked; three repetitions have to agree. What it computes and how many BPF instructions it executes is held
//! against the interpreter and against what the suite's text says. What counting and calling cost is measured with a program
//! whose length is known, and taken off.

use crate::arch::{callee, cpu, pmu};
use crate::bench::{BenchError, Fixed, steady};
use crate::command_line::Options;
use crate::{bpf, hook, println};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::interp::{Interpreter, Region};
use bpf_vm::jit;
use bpf_vm::program::ValidatedProgram;
use bpf_vm::suite::{self, Case};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The most BPF instructions that one of the programs executes.
const BUDGET: u64 = 10_000_000;
/// Two instructions, whatever they are compiled to: they are executed once each.
const STRAIGHT: &str = "r0 = 0\nexit\n";

/// One program's figures.
struct Row {
    program: String,
    bpf: u64,
    a64: u64,
}

impl Row {
    fn ratio(&self) -> Fixed {
        Fixed::ratio(self.a64, self.bpf)
    }
}

/// The memory that programs work on: r1 its address, r2 its length in bytes.
pub(crate) struct Memory(pub(crate) Vec<AtomicU64>);

impl Memory {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(words(bytes).map(AtomicU64::new).collect())
    }

    pub(crate) fn reset(&self, bytes: &[u8]) {
        for (to, from) in self.0.iter().zip(words(bytes)) {
            to.store(from, Relaxed);
        }
    }

    pub(crate) fn arguments(&self) -> [u64; 2] {
        let address = self.0.as_ptr().expose_provenance() as u64;
        [address, 8 * self.0.len() as u64]
    }

    pub(crate) fn contents(&self) -> Vec<u64> {
        self.0.iter().map(|word| word.load(Relaxed)).collect()
    }
}

/// Bytes as 64-bit words, the last filled with zeros.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word.iter_mut()
            .zip(chunk)
            .for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(word)
    })
}

fn failed(name: &str, why: &dyn fmt::Display) -> BenchError {
    BenchError::Workload(format!("{name}: {why}"))
}

/// A program's code in the pool, and what the compiler says of it.
pub(crate) fn place(
    name: &str,
    program: &ValidatedProgram,
    features: jit::Features,
) -> Result<(hook::ProgramCode, jit::Code), BenchError> {
    let compile = |base| {
        let target = jit::Target {
            features,
            ..bpf::target(base, 2)
        };
        jit::compile(program, &target).map_err(|e| e.to_string())
    };
    let code = hook::place(name, program.instructions().len(), |base| {
        compile(base).map(|c| c.words)
    })
    .map_err(|e| failed(name, &e))?;
    let compiled = compile(code.address()).map_err(|e| failed(name, &e))?;
    Ok((code, compiled))
}

/// What compiled code executes, the harness included; checked against what the interpreter makes of the program.
fn measure(case: &Case<'_>) -> Result<(u64, u64, u64), BenchError> {
    let name = case.name;
    let program = Arc::new(case.program(&[]).map_err(|e| failed(name, &e))?);
    let memory = Memory::new(&case.memory);
    let regions = [Region::words(&memory.0)];
    let outcome = Interpreter::new(program.clone())
        .run(&memory.arguments(), &regions, BUDGET)
        .map_err(|e| failed(name, &e))?;
    let after = memory.contents();
    let as_written = case.r0.is_none_or(|r0| r0 == outcome.r0)
        && case
            .after
            .as_ref()
            .is_none_or(|bytes| words(bytes).eq(after.iter().copied()))
        && case.instructions.is_none_or(|n| n == outcome.instructions);
    if !as_written {
        let why = format!(
            "interpreted it gives {:#x} after {} instructions, or memory that the suite does not expect",
            outcome.r0, outcome.instructions
        );
        return Err(failed(name, &why));
    }
    let features = jit::Features {
        lse: cpu::has_lse(),
    };
    let (code, compiled) = place(name, &program, features)?;
    let entry = callee::entry(&code);
    let (mut r0, [address, bytes]) = (0, memory.arguments());
    let count = steady(name, &mut || memory.reset(&case.memory), &mut || {
        r0 = entry(address, bytes)
    })?;
    if r0 != outcome.r0 || memory.contents() != after {
        let why = format!(
            "compiled it gives {r0:#x} and interpreted {:#x}, or other memory",
            outcome.r0
        );
        return Err(failed(name, &why));
    }
    Ok((outcome.instructions, count, compiled.words.len() as u64))
}

fn rows() -> Result<Vec<Row>, BenchError> {
    let straight = Case {
        name: "straight",
        text: STRAIGHT.into(),
        ..Case::default()
    };
    let (_, count, length) = measure(&straight)?;
    let harness = count.saturating_sub(length);
    let mut rows = Vec::new();
    for (file, text) in suite::BENCHES {
        for case in suite::cases(text).map_err(|e| failed(file, &e))? {
            let (bpf, count, _) = measure(&case)?;
            rows.push(Row {
                program: case.name.into(),
                bpf,
                a64: count.saturating_sub(harness),
            });
        }
    }
    Ok(rows)
}

/// Runs the suite: prints the table and, for programs, its rows.
pub(crate) fn run(options: &Options<'_>) -> u32 {
    if pmu::counter() != pmu::Counter::Instructions {
        println!(
            "springboard: suite=jit counts instructions, which needs counter=instructions and QEMU's -icount"
        );
        return 1;
    }
    let rows = match rows() {
        Ok(rows) => rows,
        Err(e) => {
            println!("springboard: bench: {e}");
            return 1;
        }
    };
    let atomics = if cpu::has_lse() { "LSE" } else { "LL/SC" };
    println!();
    println!("A64 instructions executed for one of BPF, atomics by {atomics}");
    println!();
    println!(
        "{:<12} {:>10} {:>10} {:>8}",
        "program", "BPF", "A64", "ratio"
    );
    for row in &rows {
        let Row { program, bpf, a64 } = row;
        println!("{program:<12} {bpf:>10} {a64:>10} {:>8}", row.ratio());
        if options.rows {
            println!("@jit {{\"program\":{program:?},\"bpf\":{bpf},\"a64\":{a64}}}");
        }
    }
    0
}
