// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs one of the suite's benchmark programs by the interpreter: `count NAME TIMES`; prints its instructions per run.
//!
//! For a tool that counts the host's instructions: the difference of two numbers of times is what the runs alone take.
use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
};

use bpf_vm::{
    interp::{Interpreter, Region},
    map::HeapMemory,
    suite,
};

/// More instructions than any of the programs executes.
const BUDGET: u64 = 1 << 32;

fn run(name: &str, times: u32) -> Result<u64, Box<dyn std::error::Error>> {
    let found = suite::BENCHES.iter().find(|(known, _)| *known == name);
    let (_, text) = found.ok_or_else(|| format!("there is no program {name:?}"))?;
    let case = suite::cases(text)?.pop().ok_or("the text holds no case")?;
    let maps = suite::maps(&HeapMemory::with_limit(1 << 20))?;
    let interpreter = Interpreter::new(Arc::new(case.program(&maps)?));
    let mut instructions = 0;
    for _ in 0..times {
        let words = case.memory.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word.iter_mut()
                .zip(chunk)
                .for_each(|(to, from)| *to = *from);
            AtomicU64::new(u64::from_le_bytes(word))
        });
        let words: Vec<_> = words.collect();
        let address = words.as_ptr().expose_provenance() as u64;
        let arguments = [address, case.memory.len() as u64];
        let outcome = interpreter.run(&arguments, &[Region::words(&words)], BUDGET)?;
        if Some(outcome.r0) != case.r0 {
            return Err(format!("{name} gives {:#x}", outcome.r0).into());
        }
        instructions = outcome.instructions;
    }
    Ok(instructions)
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [name, times] = &arguments[..] else {
        eprintln!("usage: count NAME TIMES");
        return ExitCode::from(2);
    };
    match times
        .parse()
        .map_err(Into::into)
        .and_then(|times| run(name, times))
    {
        Ok(instructions) => {
            println!("{instructions}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("count: {error}");
            ExitCode::FAILURE
        }
    }
}
