// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs one of the suite's benchmark programs by an interpreter: `count ENGINE NAME TIMES`; prints its instructions per run.
//!
//! For a tool that counts the host's instructions (`cargo xtask bench --suite interpreter`): the difference of two numbers
//! of times is what the runs alone take. The engines are `bpf-vm` and, where it is built with it, `rbpf`.
use std::{error::Error, process::ExitCode};

#[path = "../benches/support/mod.rs"]
mod support;

use support::Ours;

fn run(engine: &str, name: &str, times: u32) -> Result<u64, Box<dyn Error>> {
    let ours = Ours::new(name)?;
    // Once for the number, also where rbpf is measured, which counts none.
    let instructions = ours.run()?;
    match engine {
        "bpf-vm" => {
            for _ in 1..times {
                ours.run()?;
            }
        }
        #[cfg(not(target_env = "musl"))]
        "rbpf" => support::Theirs::new(name)?.with(|run| (0..times).try_for_each(|_| run()))??,
        _ => return Err(format!("there is no engine {engine:?}").into()),
    }
    Ok(instructions)
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [engine, name, times] = &arguments[..] else {
        eprintln!("usage: count ENGINE NAME TIMES");
        return ExitCode::from(2);
    };
    let times = times.parse().map_err(Into::into);
    match times.and_then(|times| run(engine, name, times)) {
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
