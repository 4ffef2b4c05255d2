// SPDX-License-Identifier: MIT OR Apache-2.0
//! What ends a run of the interpreter, and programs at the edge of what the engines take.
mod support;

use std::sync::Arc;

use bpf_vm::{
    interp::{FaultKind, Interpreter, Region},
    isa::Insn,
    jit::{self, JitError, Target},
    program::{MAX_SLOTS, ValidatedProgram},
};
use support::{Buffer, array, interpret, program, run_all, unchecked};

#[test]
fn faults() {
    const ROWS: &[(&str, &str)] = &[
        (
            "r0 = *(u8 *)(r1 + 8)\nexit",
            "instruction 0, `r0 = *(u8 *)(r1 + 8)`: 1 bytes at",
        ),
        ("r0 = *(u64 *)(r1 + 1)\nexit", "8 bytes at"),
        ("r0 = *(u8 *)(r1 - 1)\nexit", "1 bytes at"),
        ("r0 = 0\nr0 = *(u64 *)(r0 + 0)\nexit", "8 bytes at 0x0"),
        ("r0 = *(u8 *)(r10 + 0)\nexit", "1 bytes at"),
        ("*(u64 *)(r10 - 513) = 0\nexit", "8 bytes at"),
        ("lock *(u32 *)(r1 + 2) += r0\nexit", "4 bytes at"),
        ("r0 = load_acquire((u64 *)(r10 - 9))\nexit", "8 bytes at"),
        ("r3 = map[0]\nr0 = *(u64 *)(r3 + 0)\nexit", "8 bytes at"),
        (
            "r3 = map[0][0]+16\nr0 = *(u64 *)(r3 + 8)\nexit",
            "8 bytes at",
        ),
        ("goto -1", "did not end within 1000000 instructions"),
        // What a register leads to is known here only.
        (
            "r1 = func f\ncallx r1\nexit\nf: callx r1\nexit",
            "instruction 4, `callx r1`: local calls are more than 8 deep",
        ),
        (
            "r1 = 5\nr2 = r10\nr2 += -8\ncall 1\nexit",
            "argument 1 of bpf_map_lookup_elem is 0x5",
        ),
        (
            "r2 = r1\nr2 += 5\nr1 = map[0]\ncall 1\nexit",
            "argument 2 of bpf_map_lookup_elem",
        ),
        // The stack of a function that has returned is nobody's, also if it was accessed last.
        (
            "call local f\nr0 = *(u64 *)(r0 + 0)\nexit\nf: r0 = r10\nr0 += -8\n*(u64 *)(r0 + 0) = 1\nexit",
            "instruction 1, `r0 = *(u64 *)(r0 + 0)`: 8 bytes at",
        ),
        (
            "call local f\nr0 = *(u64 *)(r0 + 0)\nexit\nf: *(u32 *)(r10 - 8) = 1\nr2 = r10\nr2 += -8\nr1 = map[0]\n\
             call 1\nr0 = r10\nr0 += -8\nexit",
            "instruction 1, `r0 = *(u64 *)(r0 + 0)`: 8 bytes at",
        ),
        // So is one that is not entered yet.
        ("r0 = *(u64 *)(r10 + 568)\nexit", "8 bytes at"),
        // The key that a walk hands out is its callback's for the one round.
        (
            "r1 = map[0]\nr2 = func f\nr3 = r10\nr3 += -8\nr4 = 0\ncall 164\nr0 = *(u64 *)(r10 - 8)\n\
             r0 = *(u32 *)(r0 + 0)\nexit\nf: *(u64 *)(r4 + 0) = r2\nr0 = *(u32 *)(r2 + 0)\nr0 = 1\nexit",
            "`r0 = *(u32 *)(r0 + 0)`: 4 bytes at",
        ),
        ("r2 = 9\ncall 6\nexit", "argument 1 of bpf_trace_printk"),
        ("r2 = 0\ncall 6\nexit", "argument 1 of bpf_trace_printk"),
    ];
    let mut wrong = Vec::new();
    for (text, want) in ROWS {
        let program = program(text, &[array(8, 3)]);
        match interpret(&program, &Buffer::new(&[0; 8])) {
            Ok(outcome) => wrong.push(format!("{text:?}: {outcome:?}")),
            Err(fault) if fault.to_string().contains(want) => {}
            Err(fault) => wrong.push(format!("{text:?}: {fault}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A run may take exactly as many instructions as its budget.
#[test]
fn budgets() {
    const TEXTS: [&str; 4] = [
        "r0 = 0\nexit",
        "r3 = 100\nagain: r3 += -1\nif r3 != 0 goto again\nr0 = 0\nexit",
        "goto over\nback: r0 = 1\nexit\nover: gotol back",
        "call local f\ncall 8\nr1 = 3\nr2 = func f\nr3 = 0\nr4 = 0\ncall 181\nexit\nf: r0 = 0\nexit",
    ];
    for text in TEXTS {
        let interpreter = Interpreter::new(program(text, &[]));
        let all = interpreter.run(&[], &[], u64::MAX).unwrap();
        let exact = interpreter.run(&[], &[], all.instructions);
        assert_eq!(exact, Ok(all), "{text:?}");
        for budget in 0..all.instructions {
            let fault = interpreter.run(&[], &[], budget).unwrap_err();
            assert_eq!(fault.kind, FaultKind::Budget(budget), "{text:?}");
        }
    }
}

#[test]
fn a_constant_region_is_not_written() {
    let context = [7_u64, 8];
    let run = |text| {
        let region = Region::constant(&context);
        Interpreter::new(program(text, &[])).run(&[region.start()], &[region], 100)
    };
    assert_eq!(run("r0 = *(u64 *)(r1 + 8)\nexit").unwrap().r0, 8);
    assert!(run("*(u8 *)(r1 + 15) = 0\nr0 = 0\nexit").is_err());
    assert_eq!(context, [7, 8]);
}

/// Branches over more code than TBZ (32 KiB) and than CBZ and B.cond (1 MiB) reach, forwards and backwards.
#[test]
fn far_branches() {
    // Nine words without LSE.
    let line = "r0 = cmpxchg_64(r10 - 16, r0, r10)\n";
    for fill in [3_000, 30_000] {
        let filler = line.repeat(fill);
        for (test, taken) in [
            ("r5 & 1", false),
            ("r5 s< 0", false),
            ("r5 == 0", false),
            ("r5 != 6", false),
            ("r5 & 2", true),
            ("r5 s>= 0", true),
            ("r5 != 0", true),
            ("r5 == 6", true),
        ] {
            let text = format!(
                "r5 = 6\nr0 = 0\n*(u64 *)(r10 - 16) = 5\ngoto start\nback: r0 = 3\nexit\n\
                 start: if {test} goto far\n{filler}\
                 far: if {test} goto back\nr0 = 2\nexit\n"
            );
            let (outcome, _) = run_all(&program(&text, &[]), &[], || (), Vec::new).unwrap();
            let want = if taken { 3 } else { 2 };
            assert_eq!(outcome.r0, want, "{test} over {fill}");
        }
    }
}

/// As many slots as a program may have, each `every`th another line; 200 plain ones at both ends.
fn longest(line: &str, every: usize, other: &str) -> Arc<ValidatedProgram> {
    let mut text = String::new();
    for n in 0..MAX_SLOTS - 2 {
        text += match n % every {
            _ if !(200..MAX_SLOTS - 202).contains(&n) => "r3 = r1\n",
            last if last == every - 1 => other,
            _ => line,
        };
    }
    text += "r0 = 0\nexit\n";
    program(&text, &[])
}

/// The most seconds that a program takes to compile: a second or so on a slow machine, and hours where its length counts
/// more than once.
const MOST_SECONDS: u64 = 60;

/// Compiles a program within the time that there is for one; its words.
fn compile_in_time(what: &str, program: &ValidatedProgram) -> usize {
    let start = std::time::Instant::now();
    let code = jit::compile(program, &Target::new(0x1000)).unwrap();
    let (words, took) = (code.words.len(), start.elapsed());
    println!("{what}: {words} words in {took:?}");
    assert!(took.as_secs() < MOST_SECONDS, "{what}: {took:?}");
    words
}

/// The longest programs compile in time and code that grow with their length only.
#[test]
#[cfg_attr(
    target_arch = "aarch64",
    ignore = "it runs no compiled code; the host is faster"
)]
fn the_longest_programs_compile() {
    for (line, every, other) in [
        ("r3 += r2\n", 2, "r2 += r1\n"),
        ("if r1 == 0 goto +0\n", 3, "r1 += r2\n"),
        ("if r1 == 0 goto +100\n", 200, "goto -150\n"),
        ("lock *(u64 *)(r1 + 0) += r2\n", 2, "call 8\n"),
    ] {
        let words = compile_in_time(line.trim(), &longest(line, every, other));
        assert!(words < 8 * MAX_SLOTS, "{words} words");
    }
}

/// So do programs of as many functions as fit, called one by one or by any of as many registers.
#[test]
#[cfg_attr(
    target_arch = "aarch64",
    ignore = "it runs no compiled code; the host is faster"
)]
fn the_most_functions_compile() {
    // A call, and two instructions of a function.
    let called = MAX_SLOTS / 3 - 1;
    let mut text: String = (0..called).map(|n| format!("call local f{n}\n")).collect();
    text += "exit\n";
    (0..called).for_each(|n| text += &format!("f{n}: r0 = {n}\nexit\n"));
    let words = compile_in_time("functions that are called", &program(&text, &[]));
    assert!(words < 8 * MAX_SLOTS, "{words} words");
    // An address of two slots, a call by it, and two instructions of a function: each call may lead to each function.
    let taken = MAX_SLOTS / 5 - 1;
    let mut text: String = (0..taken)
        .map(|n| format!("r1 = func f{n}\ncallx r1\n"))
        .collect();
    text += "exit\n";
    (0..taken).for_each(|n| text += &format!("f{n}: r0 = {n}\nexit\n"));
    let words = compile_in_time("functions whose addresses are taken", &program(&text, &[]));
    assert!(words < 8 * MAX_SLOTS, "{words} words");
}

/// A loop of many blocks that each lead to the one before, with two ways in, and then another like it, compile in time that
/// grows with their length, too, although their whole shape is looked at.
#[test]
#[cfg_attr(
    target_arch = "aarch64",
    ignore = "it runs no compiled code; the host is faster"
)]
fn ladders_with_two_ways_in_compile() {
    let (ladder, chain) = (8000, 4000);
    let mut to = vec![ladder, 2];
    to.extend(1..ladder);
    to.extend((0..chain).map(|n| ladder + 1 + chain + n));
    to.push(ladder + 1 + chain + 1);
    to.extend((1..chain).map(|n| ladder + chain + n));
    let mut text = String::from("r0 = 0\n");
    for (line, to) in to.into_iter().enumerate() {
        text += &format!("l{line}: if r1 == 0 goto l{to}\n");
    }
    text += "exit\n";
    let ladder = program(&text, &[]);
    assert!((16_000..1 << 14).contains(&ladder.instructions().len()));
    let start = std::time::Instant::now();
    let code = jit::compile(&ladder, &Target::new(0x1000)).unwrap();
    println!("{} words in {:?}", code.words.len(), start.elapsed());
    // A second or so on a slow machine, and hours where it is cubic.
    assert!(start.elapsed().as_secs() < 20);
}

/// Where calls by register may lead counts for compiled code, whose stack has to have a bound.
#[test]
fn recursion_and_depth_by_register() {
    let compile = |text: &str| jit::compile(&program(text, &[]), &Target::new(0)).map(|_| ());
    let recursive = compile("r1 = func f\ncallx r1\nexit\nf: callx r1\nexit");
    assert!(
        matches!(recursive, Err(JitError::Recursion { slot: 4 })),
        "{recursive:?}"
    );
    // The entry takes the address of the first of a chain, and another function calls by register.
    let chain = |length| {
        let mut text = String::from("r1 = func f1\ncall local g\nexit\ng: callx r1\nexit\n");
        for n in 1..length {
            text += &format!("f{n}: call local f{}\nexit\n", n + 1);
        }
        text + &format!("f{length}: r0 = 0\nexit\n")
    };
    assert_eq!(compile(&chain(6)), Ok(()));
    assert_eq!(compile(&chain(7)), Err(JitError::CallDepth(9)));
    let run = |length| interpret(&program(&chain(length), &[]), &Buffer::new(&[]));
    assert_eq!(run(6).map(|outcome| outcome.r0), Ok(0));
    assert_eq!(run(7).unwrap_err().kind, FaultKind::CallDepth);
}

#[test]
fn stack_is_what_frames_add_up_to() {
    let bytes = |text: &str| {
        let code = jit::compile(&program(text, &[array(8, 3)]), &Target::new(0));
        code.unwrap().stack_bytes
    };
    assert_eq!(bytes("r0 = 0\nexit"), 0);
    assert_eq!(bytes("*(u8 *)(r10 - 20) = 1\nr0 = 0\nexit"), 32);
    assert_eq!(bytes("r2 = r10\nr0 = *(u8 *)(r2 - 9)\nexit"), 16);
    assert_eq!(bytes("r2 = r10\nr2 -= r1\nr0 = *(u8 *)(r2 - 9)\nexit"), 512);
    assert_eq!(bytes("call 8\nexit"), 16);
    assert_eq!(bytes("r6 = r1\ncall 8\nr0 = r6\nexit"), 32);
    assert_eq!(
        bytes("call local f\nexit\nf: *(u64 *)(r10 - 8) = 1\ncall 8\nexit"),
        16 + 32
    );
}

/// Random bytes as a program: refused or compiled, without a panic.
#[test]
#[cfg_attr(
    target_arch = "aarch64",
    ignore = "it runs no compiled code; the host is faster"
)]
fn random_slots() {
    let mut state = 1_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut valid = 0;
    for _ in 0..200_000 {
        let insns: Vec<_> = (0..1 + next() % 5)
            .map(|_| {
                let mut insn = Insn::from_bytes(next().to_le_bytes());
                // Small fields, so that some get through.
                insn.off = (next() % 4) as i16 - if next() % 2 == 0 { 2 } else { 0 };
                insn.imm = if next() % 2 == 0 {
                    0
                } else {
                    insn.imm >> (next() % 32)
                };
                insn
            })
            .chain([bpf_vm::isa::Op::Exit.encode().0])
            .collect();
        if let Ok(program) = unchecked(insns, &[array(8, 3)]).validate() {
            valid += 1;
            let _ = jit::compile(&program, &Target::new(0x4000));
            let _ = Interpreter::new(Arc::new(program)).run(&[], &[], 100);
        }
    }
    println!("{valid} of 200000 were valid");
    assert!(valid > 1000, "{valid}");
}
