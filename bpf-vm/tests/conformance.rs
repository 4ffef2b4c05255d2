// SPDX-License-Identifier: MIT OR Apache-2.0
//! The example `conformance`, run as the conformance suite runs it: a process a program, by every engine of this machine.
#[path = "support/example.rs"]
mod example;

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Output, Stdio},
};

use bpf_vm::{
    asm::assemble,
    isa::{AluOp, AtomicOp, Cond, Insn, Op, Operand, Size, Swap, Width},
    suite,
};

/// How the plugin is told which engine to use, on this machine.
const ENGINES: &[&str] = if cfg!(target_arch = "aarch64") {
    &["--interpret", "--jit"]
} else {
    &["--interpret"]
};

/// Runs the plugin with a program on its standard input.
fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = example::command("conformance")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A plugin that refuses its arguments does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// The result, or the message of an exit with status 1.
fn result(arguments: &[&str], input: &[u8]) -> Result<String, String> {
    let output = run(arguments, input);
    let text = |bytes| String::from_utf8(bytes).unwrap().trim_end().to_owned();
    let (said, complained) = (text(output.stdout), text(output.stderr));
    match output.status.code() {
        Some(0) if complained.is_empty() => Ok(said),
        Some(1) if said.is_empty() && !complained.is_empty() => Err(complained),
        status => panic!("{arguments:?}: status {status:?}, {said:?}, {complained:?}"),
    }
}

/// Bytes as the suite writes them.
fn hex(bytes: impl IntoIterator<Item = u8>) -> String {
    bytes
        .into_iter()
        .map(|byte| format!("{byte:02x} "))
        .collect()
}

fn code(text: &str) -> String {
    let insns = assemble(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    hex(insns.into_iter().flat_map(Insn::to_bytes))
}

/// The cases of the conformance groups, and of jumps and calls.
fn instructions() -> Vec<suite::Case<'static>> {
    let groups = suite::TESTS.iter().filter(|(name, _)| *name != "helpers");
    groups
        .flat_map(|(_, text)| suite::cases(text).unwrap())
        .collect()
}

/// One case of so many is run as a process; the others run in tests/programs.rs.
const SHARE: usize = 5;

#[test]
fn every_instruction_gives_what_the_rfc_says() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for case in instructions().into_iter().step_by(SHARE) {
        // The plugin has no maps, and another helper.
        let (Some(r0), false) = (
            case.r0,
            case.text.contains("map[") || case.text.contains("call "),
        ) else {
            continue;
        };
        for engine in ENGINES {
            count += 1;
            let memory = hex(case.memory.iter().copied());
            let found = result(&[&memory, engine], code(&case.text).as_bytes());
            let expected = format!("{:x}", r0);
            if found.as_ref() != Ok(&expected) {
                wrong.push(format!(
                    "{} {engine}: {found:?}, expected {expected}",
                    case.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 200, "{count}");
}

/// An instruction without its registers, offsets and values.
fn kind(op: Op) -> String {
    let source = |src| match src {
        Operand::Reg(_) => "register",
        Operand::Imm(_) => "immediate",
    };
    match op {
        Op::Alu { width, op, src, .. } => format!("{op:?} {width:?} {}", source(src)),
        Op::Neg { width, .. } => format!("Neg {width:?}"),
        Op::Swap { kind, size, .. } => format!("{kind:?} {size:?}"),
        Op::Load { size, signed, .. } => format!("Load {size:?} {signed}"),
        Op::Store { size, src, .. } => format!("Store {size:?} {}", source(src)),
        Op::Atomic { size, op, .. } => format!("Atomic {size:?} {op:?}"),
        Op::LoadAcquire { size, .. } => format!("LoadAcquire {size:?}"),
        Op::StoreRelease { size, .. } => format!("StoreRelease {size:?}"),
        Op::If {
            width, cond, src, ..
        } => format!("If {width:?} {cond:?} {}", source(src)),
        Op::Goto { long, .. } => format!("Goto {long}"),
        // The rest has one form each.
        other => {
            let name = format!("{other:?}");
            name.split(' ').next().unwrap_or_default().to_owned()
        }
    }
}

#[test]
fn no_instruction_is_left_out() {
    let mut there = BTreeSet::new();
    for case in instructions() {
        let mut slots = &assemble(&case.text).unwrap()[..];
        while let [first, rest @ ..] = slots {
            let op = Op::decode(*first, rest.first().copied()).unwrap();
            there.insert(kind(op));
            slots = &slots[op.slots()..];
        }
    }
    let mut wanted = BTreeSet::new();
    let (both, operands) = ([Width::W32, Width::W64], ["register", "immediate"]);
    for width in both {
        wanted.insert(format!("Neg {width:?}"));
        for operand in operands {
            for op in AluOp::all() {
                let sign_extends = matches!(op, AluOp::Movsx8 | AluOp::Movsx16 | AluOp::Movsx32);
                // Sign extension takes a register, and from 32 bits only to 64 (section 4.1).
                let undefined = (sign_extends && operand == "immediate")
                    || (op == AluOp::Movsx32 && width == Width::W32);
                if !undefined {
                    wanted.insert(format!("{op:?} {width:?} {operand}"));
                }
            }
            for cond in Cond::all() {
                wanted.insert(format!("If {width:?} {cond:?} {operand}"));
            }
        }
    }
    let sizes = [Size::B, Size::H, Size::W, Size::Dw];
    for size in sizes {
        wanted.insert(format!("Load {size:?} false"));
        wanted.extend(operands.map(|operand| format!("Store {size:?} {operand}")));
        wanted.insert(format!("LoadAcquire {size:?}"));
        wanted.insert(format!("StoreRelease {size:?}"));
        if size != Size::Dw {
            wanted.insert(format!("Load {size:?} true"));
        }
        if size != Size::B {
            for kind in [Swap::Le, Swap::Be, Swap::Bswap] {
                wanted.insert(format!("{kind:?} {size:?}"));
            }
        }
    }
    for op in AtomicOp::all() {
        wanted.extend([Size::W, Size::Dw].map(|size| format!("Atomic {size:?} {op:?}")));
    }
    let others = [
        "LoadImm",
        "LoadMap",
        "LoadMapValue",
        "LoadFunction",
        "Goto true",
        "Goto false",
        "Call",
        "CallLocal",
        "CallReg",
        "Exit",
    ];
    wanted.extend(others.map(str::to_owned));
    let missing: Vec<_> = wanted.difference(&there).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let unknown: Vec<_> = there.difference(&wanted).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn helper_5_returns_its_first_argument() {
    let by_number = code("r1 = -2\ncall 5\nexit");
    let by_register = code("r1 = -2\nr3 = 5\ncallx r3\nexit");
    // LLVM before version 19 has the register in imm.
    let older = "b7 01 00 00 fe ff ff ff b7 03 00 00 05 00 00 00 8d 00 00 00 03 00 00 00 95 00 00 00 00 00 00 00";
    for engine in ENGINES {
        for text in [&*by_number, &*by_register, older] {
            let found = result(&["", engine], text.as_bytes());
            assert_eq!(found.as_deref(), Ok("fffffffffffffffe"), "{engine} {text}");
        }
        let other = code("r3 = 6\ncallx r3\nexit");
        let found = result(&["", engine], other.as_bytes());
        assert_eq!(found.as_deref(), Ok("ffffffffffffffea"), "{engine}");
    }
}

#[test]
fn memory_and_program_come_as_the_protocol_says() {
    let [size, first, both] = [
        "r0 = r2\nexit",
        "r0 = *(u8 *)(r1 + 0)\nexit",
        "r0 = r1\nr0 |= r2\nexit",
    ]
    .map(code);
    let seven = code("r0 = 7\nexit");
    let compact: String = seven.split_whitespace().collect();
    let spread = seven.replace(' ', "\r\n\t").to_uppercase();
    for (arguments, input, expected) in [
        // Memory: there, empty, missing, with and without blanks.
        (&["aabbcc"][..], &*size, "3"),
        (&["aa  bb  cc  "], &size, "3"),
        (&[" AB"], &first, "ab"),
        (&["", ""], &both, "0"),
        (&[""], &both, "0"),
        (&[], &both, "0"),
        (&["--interpret"], &both, "0"),
        // Programs on standard input and by option; options as one argument.
        (&["", "--interpret"], &compact, "7"),
        (&["", ""], &spread, "7"),
        (&["", "--program", &seven], "", "7"),
        (&["ff", "--program", &compact], "nonsense", "7"),
        (&["", &format!("--interpret --program {seven}")], "", "7"),
        (&["--program", &seven], "", "7"),
    ] {
        let found = result(arguments, input.as_bytes());
        assert_eq!(found.as_deref(), Ok(expected), "{arguments:?} {input:?}");
    }
    let help = result(&["--help"], b"").unwrap();
    assert!(help.starts_with("usage: "), "{help}");
}

#[test]
fn what_is_wrong_is_said_and_the_status_is_1() {
    let cases = [
        (
            &[""][..],
            "20 00 00 00 00 00 00 00".to_owned(),
            "legacy packet access",
        ),
        (
            &[""],
            "50 10 00 00 00 00 00 00".to_owned(),
            "legacy packet access",
        ),
        (&[""], String::new(), "it has no instructions"),
        (
            &[""],
            "95 00".to_owned(),
            "2 bytes, which is no multiple of 8",
        ),
        (&[""], "95 0".to_owned(), "odd number of hex digits"),
        (&[""], "0x95".to_owned(), "the program holds 'x'"),
        (&["0g"], code("exit"), "the memory holds 'g'"),
        (&["", "--fast"], code("exit"), "\"--fast\" is no option"),
        (&["", "--program"], code("exit"), "--program needs"),
        (&["", "--elf"], code("exit"), "--elf is not supported"),
        (&[""], "ff 00 00 00 00 00 00 00".to_owned(), "opcode 0xff"),
        (&[""], "95 00 00 00 01 00 00 00".to_owned(), "reserved"),
        (&[""], code("call 6\nexit"), "no helper 6"),
        (&[""], code("call kfunc[1]\nexit"), "no kernel function 1"),
        (&[""], code("r1 = map[0]\nexit"), "no map 0"),
        (
            &[""],
            code("r3 = 4096\ncallx r3\nexit"),
            "too large for a helper's number",
        ),
        (&[""], code("r0 = 1"), "past the end"),
        (&[""], code("goto -1"), "did not end within"),
        // One byte too far: of memory, of none, of the stack.
        (
            &["aabbccddee"],
            code("r0 = *(u16 *)(r1 + 4)\nexit"),
            "2 bytes at",
        ),
        (&[""], code("r0 = *(u8 *)(r1 + 0)\nexit"), "1 bytes at 0x0"),
        (&[""], code("r0 = *(u64 *)(r10 - 513)\nexit"), "8 bytes at"),
        (&[""], code("r0 = *(u8 *)(r10 + 0)\nexit"), "1 bytes at"),
        (&[""], code("call local -1\nexit"), "not relocated"),
    ];
    for engine in ENGINES {
        for (arguments, input, expected) in &cases {
            let arguments = [arguments, &[*engine][..]].concat();
            // An option that lacks its value takes what follows.
            let arguments = match expected.starts_with("--program needs") {
                true => &arguments[..arguments.len() - 1],
                false => &arguments[..],
            };
            match result(arguments, input.as_bytes()) {
                Err(message) => assert!(message.contains(expected), "{expected}: {message}"),
                Ok(r0) => panic!("{expected}: r0 is {r0}"),
            }
        }
    }
    if cfg!(not(target_arch = "aarch64")) {
        let message = result(&["", "--jit"], code("exit").as_bytes()).unwrap_err();
        assert!(message.contains("arm64"), "{message}");
    }
}

#[test]
fn a_program_that_goes_by_its_stack_s_address_ends_with_a_message() {
    if !ENGINES.contains(&"--jit") {
        return;
    }
    // Bits of r10 decide whether it writes to address 16; of all masks at least one tells the two stacks apart.
    let mut messages = 0;
    for bit in 4..48 {
        for taken in ["== 0", "!= 0"] {
            let text = code(&format!(
                "r3 = r10\nr3 >>= {bit}\nr3 &= 1\nr0 = 0\nif r3 {taken} goto +2\nr3 = 16\n*(u64 *)(r3 + 0) = r0\nexit"
            ));
            if let Err(message) = result(&["", "--jit"], text.as_bytes()) {
                messages += usize::from(message.contains("compiled code accessed memory"));
            }
        }
    }
    assert!(messages > 0);
}

#[test]
fn no_bytes_make_it_crash() {
    /// xorshift64* (Vigna, 2014).
    fn next(state: &mut u64) -> u64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let opcodes: Vec<u8> = instructions()
        .iter()
        .flat_map(|case| assemble(&case.text).unwrap())
        .map(|insn| insn.opcode)
        .collect();
    // A process takes longer to start where it is emulated.
    let rounds = if ENGINES.len() > 1 { 30 } else { 200 };
    for round in 0..rounds {
        let mut bytes = Vec::new();
        for _ in 0..next(&mut state) % 12 {
            let mut slot = next(&mut state).to_le_bytes();
            // Most would be refused by their first byte alone.
            slot[0] = opcodes[(next(&mut state) % opcodes.len() as u64) as usize];
            if round % 2 == 0 {
                slot[1] = (slot[1] % 11) | ((slot[1] / 24) << 4);
                slot[2..].fill(0);
            }
            bytes.extend(slot);
        }
        bytes.extend(
            next(&mut state)
                .to_le_bytes()
                .iter()
                .take((round % 9) as usize),
        );
        let memory = hex(next(&mut state).to_le_bytes());
        for engine in ENGINES {
            let _ = result(&[&memory, engine], hex(bytes.clone()).as_bytes());
            // And as they are, as text and as arguments.
            let _ = result(&[&memory, engine], &bytes);
        }
    }
    let long = "95 ".repeat(4_100_000 * 3);
    let message = result(&[""], long.as_bytes()).unwrap_err();
    assert!(message.contains("limit is 1000000"), "{message}");
}
