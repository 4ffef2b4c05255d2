// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each text program of `programs/` gives the result that is written above it, by every engine.
mod support;

use support::{array, program, run_all};

/// One program with what it starts from and what has to come out.
#[derive(Default)]
struct Case<'a> {
    name: &'a str,
    text: String,
    memory: Vec<u8>,
    r0: Option<u64>,
    after: Option<Vec<u8>>,
    instructions: Option<u64>,
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: &str| u8::from_str_radix(byte, 16).unwrap();
    text.split_whitespace().map(digit).collect()
}

fn number(text: &str) -> u64 {
    match (text.strip_prefix("0x"), text.strip_prefix('-')) {
        (Some(hex), _) => u64::from_str_radix(hex, 16).unwrap(),
        (_, Some(negative)) => negative.parse::<u64>().unwrap().wrapping_neg(),
        _ => text.parse().unwrap(),
    }
}

/// `== name` begins a case; `-- memory`, `-- r0`, `-- after`, `-- instructions` say what goes in and comes out.
fn cases(text: &str) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case {
                name,
                ..Case::default()
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            assert!(line.is_empty() || line.starts_with('#'), "{line}");
            continue;
        };
        match line.strip_prefix("-- ").and_then(|l| l.split_once(' ')) {
            Some(("memory", bytes)) => case.memory = hex(bytes),
            Some(("after", bytes)) => case.after = Some(hex(bytes)),
            Some(("r0", value)) => case.r0 = Some(number(value)),
            Some(("instructions", value)) => case.instructions = Some(number(value)),
            Some((other, _)) => panic!("{other}?"),
            None => case.text += &format!("{line}\n"),
        }
    }
    cases
}

fn check(text: &str) {
    let mut wrong = Vec::new();
    let cases = cases(text);
    assert!(!cases.is_empty());
    for case in &cases {
        let maps = [array(8, 3), array(12, 5000)];
        let program = program(&case.text, &maps);
        let reset = || {
            for map in &maps {
                let zero = vec![0; map.value_size()];
                for key in 0..3_u32 {
                    let any = bpf_vm::map::UpdateFlags::Any;
                    map.update(&key.to_le_bytes(), &zero, any).unwrap();
                }
            }
        };
        let state = || {
            let mut value = [0; 8];
            maps[0].lookup(&1_u32.to_le_bytes(), &mut value).unwrap();
            value.to_vec()
        };
        match run_all(&program, &case.memory, reset, state) {
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

macro_rules! files {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            check(include_str!(concat!("programs/", stringify!($name), ".txt")));
        }
    )*};
}
files! { memory jumps calls }
