// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the validator refuses, and how it says so.
mod support;

use bpf_vm::{
    asm::assemble,
    helpers::{Function, Helper, Returns},
    isa::{DecodeError, Insn, Op},
    program::MAX_SLOTS,
};
use support::{array, unchecked};

/// What is appended to the error's front is the program's name.
fn error(insns: Vec<Insn>) -> String {
    let error = unchecked(insns, &[array(8, 3)]).validate().map(|_| ());
    error.unwrap_err().to_string()
}

#[test]
fn texts() {
    const ROWS: &[(&str, &str)] = &[
        (
            "r0 = 0",
            "instruction 0, `r0 = 0`: execution runs past the end",
        ),
        (
            "r0 = 0\nif r0 == 0 goto -2",
            "instruction 1, `if r0 == 0 goto -2`: execution runs past",
        ),
        (
            "goto +1\nexit",
            "instruction 0, `goto +1`: it leads to slot 2, outside",
        ),
        ("goto -2\nexit", "it leads to slot -1, outside"),
        ("gotol +2000000000\nexit", "slot 2000000001, outside"),
        (
            "if r0 > 5 goto +1\nr1 = 1 ll\nexit",
            "slot 2, the second half of an lddw",
        ),
        (
            "r10 = 5\nexit",
            "instruction 0, `r10 = 5`: r10 is the frame pointer and read only",
        ),
        ("r10 = *(u64 *)(r1 + 0)\nexit", "r10 is the frame pointer"),
        (
            "r10 = xchg_64(r1 + 0, r10)\nexit",
            "r10 is the frame pointer",
        ),
        (
            "call 9999\nexit",
            "instruction 0, `call 9999`: there is no helper 9999; these exist: bpf_map_lookup",
        ),
        (
            "r2 = func +5\nexit",
            "instruction 0, `r2 = func +5`: it leads to slot 6, outside",
        ),
        (
            "r2 = func f\nexit\nf: r0 = 1",
            "instruction 3, `r0 = 1`: execution runs past",
        ),
        (
            "r2 = var[1]\nexit",
            "there is no kernel variable 1; the program has 0",
        ),
        ("call -1\nexit", "was not relocated"),
        ("call local -1\nexit", "was not relocated"),
        ("call local +7\nexit", "slot 8, outside"),
        ("r1 = map[1]\nexit", "there is no map 1; the program has 1"),
        (
            "r1 = map[0][0]+24\nexit",
            "offset 24 is outside of the map's 24 bytes",
        ),
        (
            "call local f\nexit\nf: goto -2",
            "it leads to slot 1, which is in another function",
        ),
        (
            "r0 = 0\ncall local f\ngoto over\nf: r0 = 1\nover: exit",
            "which is in another function",
        ),
        (
            "call local f\nr0 = 0\nf: r0 = 1\nexit",
            "instruction 1, `r0 = 0`: execution runs past",
        ),
        (
            "r0 = 0\ncall local -2\nexit",
            "instruction 1, `call local -2`: the function calls itself (where a function's address is taken, it counts as called), \
             through those at slots 0 -> 0; make it a loop",
        ),
        (
            "call local f\nexit\nf: r0 = 0\ncall local g\nexit\ng: r0 = 1\ncall local h\nexit\nh: call local f\nexit",
            "instruction 8, `call local -7`: the function calls itself (where a function's address is taken, it counts as called), \
             through those at slots 2 -> 5 -> 8 -> 2; make it a loop",
        ),
        // A callback that has itself called back, in slots after an lddw's second one.
        (
            "r2 = func f\ncall 181\nexit\nf: r2 = func g\ncall 181\nexit\ng: r2 = func f\ncall 181\nexit",
            "instruction 8, `r2 = func -5`: the function calls itself (where a function's address is taken, it counts as called), \
             through those at slots 4 -> 8 -> 4; make it a loop",
        ),
        // Nothing leads there.
        (
            "r0 = 0\nexit\nf: r0 = 1\ncall local f\nexit",
            "through those at slots 2 -> 2;",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, want) in ROWS {
        let is = error(assemble(text).unwrap());
        if !is.starts_with("program `test`: ") || !is.contains(want) {
            wrong.push(format!("{text:?}: {is}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Calls, and addresses of functions, lead to eight frames and no further; long ways are told by their beginning.
#[test]
fn depth_of_calls() {
    let chain = |length: usize, last: &str| {
        let mut text = String::new();
        for n in 1..length {
            let by = if n % 2 == 0 {
                "r2 = func"
            } else {
                "call local"
            };
            text += &format!("f{n}: {by} f{}\nexit\n", n + 1);
        }
        assemble(&(text + &format!("f{length}: {last}\nexit\n"))).unwrap()
    };
    let valid = unchecked(chain(8, "r0 = 0"), &[]).validate();
    assert_eq!(valid.map(|program| program.functions().len()), Ok(8));
    assert_eq!(
        error(chain(9, "r0 = 0")),
        "program `test`: calls are 9 frames deep, the entry's and callbacks' included, and the limit is 8; inline some of the \
         functions at slots 0 -> 2 -> 5 -> 7 -> 10 -> 12 -> 15 -> 17 -> 20"
    );
    assert_eq!(
        error(chain(10_000, "r0 = 0")),
        "program `test`: calls are 10000 frames deep, the entry's and callbacks' included, and the limit is 8; inline some of \
         the functions at slots 0 -> 2 -> 5 -> 7 -> 10 -> 12 -> 15 -> 17 -> 20 -> (9991 more)"
    );
    let circle = error(chain(10_000, "call local f2"));
    let want = "through those at slots 2 -> 5 -> 7 -> 10 -> 12 -> 15 -> 17 -> 20 -> 22 -> (9990 more) -> 2; make it a loop";
    assert!(circle.ends_with(want), "{circle}");

    // The deepest way counts, whichever comes first, and a function that several call is looked at once.
    let twice = |length: usize| {
        let mut text = String::from("call local f1\ncall local f2\nexit\n");
        for n in 1..length {
            text += &format!("f{n}: call local f{0}\ncall local f{0}\nexit\n", n + 1);
        }
        unchecked(
            assemble(&(text + &format!("f{length}: r0 = 0\nexit\n"))).unwrap(),
            &[],
        )
        .validate()
    };
    assert!(twice(7).is_ok());
    let deep = twice(60).unwrap_err().to_string();
    assert!(deep.contains("calls are 61 frames deep"), "{deep}");
}

#[test]
fn slots() {
    const ROWS: &[([u8; 8], &str)] = &[
        ([0xff, 0, 0, 0, 0, 0, 0, 0], "opcode 0xff is not defined"),
        (
            [0x06, 0, 1, 0, 0, 0, 0, 0],
            "field `off` of opcode 0x06 is reserved",
        ),
        (
            [0x07, 0x10, 0, 0, 0, 0, 0, 0],
            "field `src` of opcode 0x07 is reserved",
        ),
        (
            [0x0f, 0x00, 0, 0, 9, 0, 0, 0],
            "field `imm` of opcode 0x0f is reserved and must be 0, but is 9",
        ),
        (
            [0x07, 0x0b, 0, 0, 0, 0, 0, 0],
            "`dst` names register r11; the registers are r0 to r10",
        ),
        ([0x0f, 0xc0, 0, 0, 0, 0, 0, 0], "`src` names register r12"),
        (
            [0x0f, 0x00, 1, 0, 0, 0, 0, 0],
            "field `off` = 0x1 has no meaning for opcode 0x0f",
        ),
        (
            [0xd4, 0x00, 0, 0, 17, 0, 0, 0],
            "field `imm` = 0x11 has no meaning",
        ),
        (
            [0xdb, 0x00, 0, 0, 0x77, 0, 0, 0],
            "field `imm` = 0x77 has no meaning",
        ),
        (
            [0xc3, 0x00, 0, 0, 0x77, 0, 0, 0],
            "field `imm` = 0x77 has no meaning",
        ),
        ([0xd3, 0x00, 0, 0, 0, 0, 0, 0], "opcode 0xd3 is not defined"),
        ([0x18, 0x00, 0, 0, 0, 0, 0, 0], "lddw takes two slots"),
        ([0x18, 0x30, 0, 0, 0, 0, 0, 0], "lddw takes two slots"),
        ([0x20, 0, 0, 0, 0, 0, 0, 0], "legacy packet access"),
        ([0x50, 0, 0, 0, 0, 0, 0, 0], "legacy packet access"),
        (
            [0x85, 0x20, 0, 0, 1, 0, 0, 0],
            "there is no kernel function 1; the program has 0",
        ),
        (
            [0x8d, 0x01, 0, 0, 3, 0, 0, 0],
            "field `imm` of opcode 0x8d is reserved",
        ),
        ([0x8d, 0x0b, 0, 0, 0, 0, 0, 0], "`dst` names register r11"),
        (
            [0x95, 0, 0, 0, 1, 0, 0, 0],
            "field `imm` of opcode 0x95 is reserved",
        ),
        ([0x8f, 0, 0, 0, 0, 0, 0, 0], "opcode 0x8f is not defined"),
        (
            [0xbc, 0, 32, 0, 0, 0, 0, 0],
            "field `off` = 0x20 has no meaning",
        ),
        (
            [0xb7, 0, 8, 0, 0, 0, 0, 0],
            "field `off` = 0x8 has no meaning",
        ),
    ];
    let exit = Op::Exit.encode().0;
    let mut wrong = Vec::new();
    for (bytes, want) in ROWS {
        let is = error(vec![Insn::from_bytes(*bytes), exit]);
        if !is.contains("instruction 0, `") || !is.contains(want) {
            wrong.push(format!("{bytes:02x?}: {is}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn length() {
    assert!(error(Vec::new()).contains("it has no instructions"));
    let exit = Op::Exit.encode().0;
    assert!(unchecked(vec![exit; MAX_SLOTS], &[]).validate().is_ok());
    let long = error(vec![exit; MAX_SLOTS + 1]);
    assert!(
        long.contains("1000001 instruction slots and the limit is 1000000"),
        "{long}"
    );
}

/// Whatever decodes encodes to the same slot: of the fields that it has no room for, each must be zero.
#[test]
fn every_opcode_decodes_to_itself_or_is_refused() {
    let mut decoded = 0;
    for opcode in 0..=255 {
        for (regs, off, imm) in [
            (0x21, 0, 0),
            (0x21, 8, 0),
            (0x21, 0, 0x11),
            (0x01, 0, 0x10),
            (0x01, 5, 64),
            (0x00, 3, 0),
            (0x00, 0, 0),
            (0x10, 0, 7),
            (0x01, 1, 7),
            (0x21, -4, 0x41),
            (0x21, -4, 0x100),
            (0x21, 0, 0x110),
        ] {
            let insn = Insn {
                opcode,
                dst: regs & 15,
                src: regs >> 4,
                off,
                imm,
            };
            let next = Some(Insn::default());
            match Op::decode(insn, next) {
                Ok(op) => {
                    decoded += 1;
                    let (first, second) = op.encode();
                    assert_eq!(first, insn, "{op}");
                    assert_eq!(second.is_some(), op.slots() == 2);
                    let text = op.to_string();
                    let back = assemble(&text).unwrap_or_else(|error| panic!("{error}"));
                    assert_eq!(back.first(), Some(&first), "{text}");
                    assert_eq!(back.get(1).copied(), second, "{text}");
                }
                Err(DecodeError::Lddw) => assert_eq!(opcode, 0x18),
                Err(_) => {}
            }
        }
    }
    assert!(decoded > 400, "{decoded}");
}

extern "C" fn nothing(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    0
}

const FREE: Helper = Helper::new(1, "free", &[], Returns::Scalar, Function::Plain(nothing));
/// A host's own helpers.
static OWN: &[Helper] = &[
    FREE,
    Helper {
        number: 2,
        name: "closed",
        ..FREE
    }
    .gpl_only(),
    Helper {
        number: 3,
        name: "waits",
        ..FREE
    }
    .sleeps(),
];
static SLEEPS: Helper = Helper {
    name: "slow",
    ..FREE
}
.sleeps();

#[test]
fn an_unknown_helper_is_told_from_those_of_the_host() {
    let program = unchecked(assemble("call 4\nexit").unwrap(), &[]);
    let error = program.validate_with(OWN).map(|_| ()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with("there is no helper 4; these exist: free (1) closed (2) waits (3)"),
        "{text}"
    );
}

#[test]
fn licence_and_section_say_what_may_be_called() {
    let check = |text: &str, section: &str, licence: Option<&str>| {
        let mut program = unchecked(assemble(text).unwrap(), &[]);
        program.section = section.into();
        program.kfuncs = vec![&SLEEPS];
        let checked = program.validate_with(OWN).unwrap().check_calls(licence);
        checked.map_err(|error| error.to_string())
    };
    let gpl = Some("Dual MIT/GPL");
    let closed = |said: &str| {
        let text = format!(
            "program `test` may call closed, which is for programs under a licence compatible with the GPL, and {said}"
        );
        move |error: String| error.starts_with(&text)
    };
    let by_register = "r1 = 1\ncallx r1\nexit";
    for section in ["fentry/f", "fentry.s/f"] {
        assert_eq!(check("call 1\nexit", section, None), Ok(()));
        for text in ["call 2\nexit", by_register] {
            assert_eq!(check(text, section, gpl), Ok(()));
            let own = closed("its licence is \"MIT\"; name one of GPL, ");
            assert!(check(text, section, Some("MIT")).is_err_and(own));
            let none = closed("its object has no section `license`; add");
            assert!(check(text, section, None).is_err_and(none));
        }
    }
    assert_eq!(check("call 3\nexit", "fentry.s/f", None), Ok(()));
    let waits = |error: String| error.contains("may call waits, which may sleep");
    assert!(check("call 3\nexit", "fentry/f", gpl).is_err_and(waits));
    let kernel = "call kfunc[0]\nexit";
    assert_eq!(check(kernel, "fentry.s/f", None), Ok(()));
    let sleeps = |error: String| error.contains("may call slow, which may sleep");
    assert!(check(kernel, "fentry/f", gpl).is_err_and(sleeps));
    assert!(check(kernel, "", gpl).is_err_and(sleeps));
}
