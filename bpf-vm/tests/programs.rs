// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each text program of the suite gives the result that is written above it, by every engine.
mod support;

use std::sync::{Arc, atomic::AtomicU64};

use bpf_vm::{
    attachment::Attachment,
    map::{HeapMemory, TailTarget, UpdateFlags},
    suite,
};
use support::{VARIANTS, compile, run_all_with};

fn check(text: &str) {
    let mut wrong = Vec::new();
    let cases = suite::cases(text).unwrap_or_else(|error| panic!("{error}"));
    assert!(!cases.is_empty());
    let maps = suite::maps(&HeapMemory::with_limit(1 << 20)).unwrap();
    for case in &cases {
        let program = case.program(&maps);
        let program = Arc::new(program.unwrap_or_else(|error| panic!("{}: {error}", case.name)));
        let reset = || {
            for map in &maps[..suite::PROGRAMS] {
                let zero = vec![0; map.value_size()];
                for key in 0..3_u32 {
                    map.update(&key.to_le_bytes(), &zero, UpdateFlags::Any)
                        .unwrap();
                }
            }
        };
        let state = || {
            let mut value = [0; 8];
            maps[0].lookup(&1_u32.to_le_bytes(), &mut value).unwrap();
            value.to_vec()
        };
        // The program is in the program array while it runs, by the engine that runs it.
        let programs = &maps[suite::PROGRAMS];
        let enter = |entry| {
            let target = TailTarget {
                program: program.clone(),
                entry: AtomicU64::new(entry),
                keep: None,
            };
            drop(programs.set_program(0, Some(Arc::new(target))));
        };
        let ran = run_all_with(
            &Attachment::NONE,
            &program,
            &case.memory,
            reset,
            state,
            enter,
        );
        drop(programs.set_program(0, None));
        let stack = compile(&program, 0x8_0000, VARIANTS[0]).stack_bytes;
        if case.stack.is_some_and(|most| stack > most) {
            wrong.push(format!("{}: {stack} bytes of stack", case.name));
        }
        match ran {
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
            Ok((outcome, after)) => {
                if case.r0.is_some_and(|r0| r0 != outcome.r0) {
                    wrong.push(format!("{}: r0 is {:#x}", case.name, outcome.r0));
                }
                if case.after.as_ref().is_some_and(|a| *a != after) {
                    wrong.push(format!("{}: memory is {after:02x?}", case.name));
                }
                if case.instructions.is_some_and(|n| n != outcome.instructions) {
                    let n = outcome.instructions;
                    wrong.push(format!("{}: {n} instructions", case.name));
                }
            }
        }
    }
    let count = cases.len();
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{count} programs");
}

#[test]
fn tests() {
    support::host::register();
    suite::TESTS.iter().for_each(|(_, text)| check(text));
}

#[test]
fn benches() {
    suite::BENCHES.iter().for_each(|(_, text)| check(text));
}
