// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random valid programs: the interpreter and compiled code agree on every register, the memory and the map's values.
//!
//! `RANDOM_PROGRAMS` says how many (2000 unless told), `RANDOM_SEED` where to begin; a failure names its seed. Some hundred more are
//! made of proptest's choices, of which a failure shows the fewest that do.
#[path = "support/generate.rs"]
mod generate;
mod support;

use std::sync::Arc;

use bpf_vm::{
    isa::Insn,
    jit::{self, RegisterSet, Target},
    map::{Map, UpdateFlags},
    program::ValidatedProgram,
};
use generate::{MEMORY, generate};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use support::{VARIANTS, Variant, array, run_by, unchecked};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn text(program: &ValidatedProgram) -> String {
    let lines = program.instructions().iter();
    lines.map(|i| format!("{}: {}\n", i.slot, i.op)).collect()
}

#[test]
fn engines_agree() {
    let (count, first) = (setting("RANDOM_PROGRAMS", 2000), setting("RANDOM_SEED", 1));
    println!("seeds {first} to {}", first + count - 1);
    // A thread a core, each with a map of its own and every n-th seed.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let executed: u64 = std::thread::scope(|scope| {
        let share = |thread| (first + thread..first + count).step_by(threads as usize);
        let run = |thread| scope.spawn(move || share(thread).map(agree_on()).sum::<u64>());
        let running: Vec<_> = (0..threads).map(run).collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    println!("{count} programs, {executed} instructions");
}

/// Runs the program of a seed by the interpreter and, compiled, as one variant; returns how many instructions it executed.
fn agree_on() -> impl FnMut(u64) -> u64 {
    let run = by_both();
    move |seed| {
        let variant = VARIANTS[seed as usize % VARIANTS.len()];
        let executed = run(generate(seed, &[]), &[variant]);
        executed.unwrap_or_else(|error| panic!("seed {seed}: {error}"))
    }
}

/// Runs programs by both engines; returns how many instructions one executed, or where the two disagree.
fn by_both() -> impl Fn(Vec<Insn>, &[Variant]) -> Result<u64, String> {
    let map = array(8, 3);
    let memory: Vec<u8> = (0..MEMORY as u32).map(|n| (n * 73 + 41) as u8).collect();
    move |insns, variants| {
        let reset = || {
            for key in 0..3_u32 {
                let value = u64::from(key) * 0x0123_4567_89ab_cdef;
                map.update(&key.to_le_bytes(), &value.to_le_bytes(), UpdateFlags::Any)
                    .unwrap();
            }
        };
        let program = unchecked(insns, std::slice::from_ref(&map)).validate();
        let program = Arc::new(program.map_err(|error| error.to_string())?);
        match run_by(variants, &program, &memory, reset, || values(&map)) {
            Ok((outcome, _)) => Ok(outcome.instructions),
            Err(error) => Err(format!("{error}\n{}", text(&program))),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1), // the same in every run
        ..Default::default()
    })]

    /// As [`engines_agree`], of any choices.
    #[test]
    fn engines_agree_on_any_choices(choices in vec(any::<u8>(), 0..2048)) {
        let outcome = by_both()(generate(1, &choices), &VARIANTS);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}

fn values(map: &Map) -> Vec<u8> {
    let mut all = Vec::new();
    for key in 0..3_u32 {
        let mut value = [0; 8];
        map.lookup(&key.to_le_bytes(), &mut value).unwrap();
        all.extend(value);
    }
    all
}

/// Programs compile, or are refused, with every small set of registers; and they decode back from their text.
#[test]
fn text_and_registers() {
    let map = array(8, 3);
    for seed in 1..200 {
        let insns = generate(seed, &[]);
        let program = unchecked(insns.clone(), std::slice::from_ref(&map))
            .validate()
            .unwrap();
        let text: String = program
            .instructions()
            .iter()
            .map(|i| format!("{}\n", i.op))
            .collect();
        assert_eq!(bpf_vm::asm::assemble(&text).unwrap(), insns, "seed {seed}");
        let mut registers = RegisterSet::ALL;
        let mut refused = false;
        for number in 0..29 {
            let target = Target {
                registers,
                ..Target::new(0x1000)
            };
            let compiled = jit::compile(&program, &target);
            assert!(
                !refused || compiled.is_err(),
                "seed {seed}: fewer registers are enough"
            );
            refused = compiled.is_err();
            registers = registers.without(a64::Reg::new(number).unwrap());
        }
        assert!(refused, "seed {seed}: no registers at all are enough");
    }
}
