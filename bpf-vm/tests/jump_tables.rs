// SPDX-License-Identifier: MIT OR Apache-2.0
//! Jump tables as clang 22 writes them, in assembly that every clang takes: where they lead, and how damage is named.
mod common;
mod support;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bpf_vm::{
    isa::Insn,
    map::HeapMemory,
    object::{Object, ObjectError},
};
use common::{CompileError, compile_with};
use support::{run_all, unchecked};

/// Goes to what the table says at the index in the context's first word, with the second word added to it.
const FUNCTION: &str = "
    .section \"fentry/f\",\"ax\",@progbits
.Lf:
    r0 = 0
    exit
    .globl f
    .type f,@function
f:
    r2 = *(u64 *)(r1 + 0)
    r4 = *(u64 *)(r1 + 8)
    r2 <<= 3
    r3 = BPF.JT.0.0 ll
    r3 += r2
    r2 = *(u64 *)(r3 + 0)
    r2 += r4
    .quad 0x20d
.Lone:
    r0 = 11
    exit
.Ltwo:
    r0 = 22 ll
    exit
.Lthree:
    r0 = 33
    exit
    .size f, .-f
";
/// Another function, which goes by the same table.
const OTHER: &str = "
    .section \"fentry/g\",\"ax\",@progbits
    .globl g
    .type g,@function
g:
    r3 = BPF.JT.0.0 ll
    .quad 0x30d
    .rept 20
    exit
    .endr
    .size g, .-g
";
/// The table.
const TABLE: &str = "
    .section .jumptables,\"\",@progbits
    .globl BPF.JT.0.0
    .type BPF.JT.0.0,@object
BPF.JT.0.0:
    .quad .Lone - .Lf
    .quad .Lthree - .Lf
    .quad .Ltwo - .Lf
    .size BPF.JT.0.0, .-BPF.JT.0.0
";

/// The object of a text; `None`, said aloud, without a clang.
fn assemble(name: &str, text: &str) -> Option<Vec<u8>> {
    // Tests that run at the same time do not share files.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Relaxed);
    let file = format!("{name}-{}-{count}.s", std::process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
    std::fs::write(&path, text).unwrap();
    let object = compile_with("clang", &["-Wno-unused-command-line-argument"], &path);
    std::fs::remove_file(&path).unwrap();
    match object {
        Ok(object) => Some(object),
        Err(CompileError::NoClang(error)) => {
            eprintln!("skipped: no clang ({error})");
            None
        }
        Err(CompileError::Refused(error)) => panic!("{name}: {error}"),
    }
}

/// What the object's first program returns, by all engines, for each context.
fn results(file: &[u8], contexts: &[[u64; 2]]) -> Vec<u64> {
    let object = Object::parse(file).unwrap_or_else(|error| panic!("{error}"));
    let loaded = object
        .instantiate(&HeapMemory::with_limit(1 << 24))
        .unwrap();
    let program = loaded.programs.into_iter().next().unwrap();
    let program = Arc::new(program.validate().unwrap_or_else(|error| panic!("{error}")));
    let run = |context: &[u64; 2]| {
        let bytes: Vec<u8> = context.iter().flat_map(|word| word.to_le_bytes()).collect();
        let result = run_all(&program, &bytes, || (), Vec::new);
        result.unwrap_or_else(|error| panic!("{error}")).0.r0
    };
    contexts.iter().map(run).collect()
}

#[test]
fn a_table_leads_to_its_cases() {
    let Some(file) = assemble("good", &format!("{FUNCTION}{TABLE}")) else {
        return;
    };
    let minus = |n: u64| n.wrapping_neg();
    let rows = [
        ([0, 0], 11),
        ([1, 0], 33),
        ([2, 0], 22),
        ([0, 16], 22),
        // What is in no table ends the function with 0, though an instruction is there, or the low half is a case.
        ([0, 8], 0),
        ([0, minus(8)], 0),
        ([1, 1 << 32], 0),
        ([1, 1 << 63], 0),
    ];
    assert_eq!(
        results(&file, &rows.map(|(context, _)| context)),
        rows.map(|(_, r0)| r0)
    );
    let object = Object::parse(&file).unwrap();
    assert_eq!(object.variables(), [], "tables are no variables");
}

/// A function of `cases` cases, with `apart` instructions behind each, which goes by each of these registers in turn.
fn long(cases: usize, apart: usize, registers: &[u8]) -> String {
    let jumps: String = registers
        .iter()
        .map(|r| format!(" r{r} = *(u64 *)(r3 + 0)\n .quad 0x{r:x}0d\n"))
        .collect();
    let bodies: String = (0..cases)
        .map(|n| {
            format!(
                ".L{n}:\n r0 = {}\n exit\n .rept {apart}\n r0 += 1\n .endr\n",
                n * 3 + 1
            )
        })
        .collect();
    let words: String = (0..cases)
        .rev()
        .map(|n| format!(" .quad .L{n} - .Lf\n"))
        .collect();
    format!(
        ".section \"fentry/f\",\"ax\",@progbits\n.Lf:\n .globl f\n .type f,@function\nf:\n r2 = *(u64 *)(r1 + 0)\n \
         r2 <<= 3\n r3 = BPF.JT.0.0 ll\n r3 += r2\n{jumps}{bodies} exit\n .size f, .-f\n \
         .section .jumptables,\"\",@progbits\n .type BPF.JT.0.0,@object\nBPF.JT.0.0:\n{words} .size BPF.JT.0.0, .-BPF.JT.0.0\n"
    )
}

/// Cases farther away than 16 bits reach, more than are compared one after the other.
#[test]
fn far_cases_are_reached() {
    const CASES: usize = 90;
    let Some(file) = assemble("far", &long(CASES, 1000, &[9])) else {
        return;
    };
    let last = CASES as u64 - 1;
    // Where the numbers are halved, too.
    let indices = [0, 1, last / 2, last / 2 + 1, last - 1, last];
    let wanted = indices.map(|index| (last - index) * 3 + 1);
    assert_eq!(results(&file, &indices.map(|index| [index, 0])), wanted);
}

/// The comparisons count.
#[test]
fn length_is_limited() {
    let Some(file) = assemble("length", &long(20_000, 0, &[4, 5, 6, 7, 8, 9, 2, 0])) else {
        return;
    };
    assert_eq!(Object::parse(&file).err(), None);
    let Some(file) = assemble("too_long", &long(150_000, 0, &[4, 5, 6, 7, 8, 9, 2, 0])) else {
        return;
    };
    let error = Object::parse(&file).err().unwrap();
    assert!(
        matches!(&error, ObjectError::TooLong { program, .. } if program == "f"),
        "{error}"
    );
}

/// Megabytes of table for a few cases, used and unused, and many functions that want the same table.
#[test]
fn big_tables_take_no_time() {
    const WORDS: usize = 1 << 20;
    let big = TABLE.replace(
        "    .size",
        &format!("    .fill {WORDS}, 8, 104\n    .size"),
    );
    let alone = "\n .section \"fentry/h\",\"ax\",@progbits\n .globl h\n .type h,@function\nh:\n r0 = 7\n exit\n .size h, .-h\n";
    let many: String = (0..2000)
        .map(|n| {
            let other = OTHER
                .replace("20\n", "30\n")
                .replace("\"fentry/g", &format!("\"fentry/g{n}"));
            let other = other
                .replace("\ng:", &format!("\ng{n}:"))
                .replace(".globl g", &format!(".globl g{n}"));
            other
                .replace(" g,", &format!(" g{n},"))
                .replace(".-g", &format!(".-g{n}"))
        })
        .collect();
    for (name, text, wanted) in [
        ("used", format!("{FUNCTION}{big}"), Ok(11)),
        (
            "unused",
            format!("{alone}{big}")
                .replace(".Lone - .Lf", "1")
                .replace(".Ltwo - .Lf", "1")
                .replace(".Lthree - .Lf", "1"),
            Ok(7),
        ),
        (
            "shared",
            format!("{many}{FUNCTION}{big}"),
            Err("another jump by the same table"),
        ),
    ] {
        let Some(file) = assemble(name, &text) else {
            return;
        };
        let start = Instant::now();
        match (Object::parse(&file), wanted) {
            (Ok(_), Ok(r0)) => assert_eq!(results(&file, &[[0, 0]]), [r0]),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{name}: {error}"),
            (found, _) => panic!("{name}: {found:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{name}");
    }
}

#[test]
fn damage_is_named() {
    let with = |table: &str| format!("{FUNCTION}{table}");
    let first = |word: &str| with(&TABLE.replace(".Lone - .Lf", word));
    let rows = [
        (
            "no_table",
            FUNCTION.replace("BPF.JT.0.0 ll", "0 ll"),
            "section `fentry/f`, offset 0x50, symbol `f`: gotox, a jump by register, in a function that refers to no jump \
             table; RFC 9669 has no such jump, compile with -fno-jump-tables",
        ),
        (
            "odd",
            first(".Lone - .Lf + 4"),
            "section `.jumptables`, offset 0x0, symbol `BPF.JT.0.0`: the word leads to offset 0x5c of section `fentry/f`, \
             which is no multiple of 8 (`f`)",
        ),
        (
            "before",
            with(&TABLE.replace(".Ltwo - .Lf", "8")),
            "section `.jumptables`, offset 0x10, symbol `BPF.JT.0.0`: the word leads to offset 0x8 of section `fentry/f`, \
             which is outside of the function that jumps by it (`f`)",
        ),
        (
            "behind",
            first("144"),
            "leads to offset 0x90 of section `fentry/f`, which is outside",
        ),
        (
            "far_behind",
            first("-8"),
            "leads to offset 0xfffffffffffffff8 of section `fentry/f`, which is outside",
        ),
        (
            "lddw",
            first(".Ltwo - .Lf + 8"),
            "leads to offset 0x70 of section `fentry/f`, the second half of an lddw (`f`)",
        ),
        (
            "size",
            with(&TABLE.replace(".-BPF.JT.0.0", "12")),
            "section `.jumptables`, offset 0x0, symbol `BPF.JT.0.0`: a jump table of 12 bytes in a section of 24; it has to \
             be whole words",
        ),
        (
            "empty",
            with(&TABLE.replace(".-BPF.JT.0.0", "0")),
            "a jump table of 0 bytes",
        ),
        (
            "past_the_end",
            with(&TABLE.replace(".-BPF.JT.0.0", "32")),
            "a jump table of 32 bytes in a section of 24",
        ),
        (
            "overlap",
            with(&format!(
                "{TABLE}\n .type BPF.JT.0.1,@object\n .set BPF.JT.0.1, BPF.JT.0.0 + 16\n .size BPF.JT.0.1, 8\n"
            )),
            "offset 0x10, symbol `BPF.JT.0.1`: the jump table overlaps `BPF.JT.0.0`",
        ),
        (
            "no_symbol",
            with(&TABLE.replace("@object", "@notype")),
            "section `fentry/f`, offset 0x28, symbol `BPF.JT.0.0`: it refers to offset 0x0 of section `.jumptables`, where \
             no symbol says that a table is",
        ),
        (
            "shared",
            format!("{FUNCTION}{OTHER}{TABLE}"),
            "section `.jumptables`, offset 0x0, symbol `BPF.JT.0.0`: function `g` and another jump by the same table",
        ),
        (
            "falls_off",
            with(TABLE).replace("r0 = 33\n    exit", "exit\n    r0 = 33"),
            "section `fentry/f`, offset 0x88, symbol `f`: execution runs past the end of the function here",
        ),
        (
            "relocated",
            format!("{FUNCTION}{TABLE}\n .section .rodata,\"a\",@progbits\n .quad f\n"),
            "section `.rodata`, offset 0x0, symbol `f`: a pointer as a global variable's initial value",
        ),
        (
            "start",
            format!("{FUNCTION}{TABLE}\n .section .rodata,\"a\",@progbits\n .quad .Lf + 16\n"),
            "section `.rodata`, offset 0x0, symbol `fentry/f`: a pointer as a global variable's initial value",
        ),
        (
            "between",
            format!("{FUNCTION}{TABLE}\n .section .rodata,\"a\",@progbits\n .quad .Lf + 8\n"),
            "section `.rodata`, offset 0x0, symbol `fentry/f`: a pointer as a global variable's initial value",
        ),
        (
            "label_in_lddw",
            format!("{FUNCTION}{TABLE}\n .section .rodata,\"a\",@progbits\n .quad 0, .Ltwo + 8\n"),
            "section `.rodata`, offset 0x8, symbol `fentry/f`: the word leads to offset 0x70 of section `fentry/f`, the \
             second half of an lddw (`f`)",
        ),
    ];
    for (name, text, wanted) in rows {
        let Some(file) = assemble(name, &text) else {
            return;
        };
        let error = Object::parse(&file).err().map(|error| error.to_string());
        let error = error.unwrap_or_default();
        assert!(error.contains(wanted), "{name}: {error}");
    }
}

/// Without an object around them, and with fields that nothing uses, Linux's jumps are named, with a way out.
#[test]
fn jumps_that_the_rfc_does_not_have_are_named() {
    for (bytes, parts) in [
        (
            [0x0d, 0x02, 0, 0, 0, 0, 0, 0],
            ["gotox", "-fno-jump-tables"],
        ),
        (
            [0x0d, 0x02, 0, 0, 1, 0, 0, 0],
            ["gotox", "-fno-jump-tables"],
        ),
        ([0xe5, 0, 1, 0, 0, 0, 0, 0], ["may_goto", "bpf_loop"]),
    ] {
        let error = unchecked(vec![Insn::from_bytes(bytes)], &[]).validate();
        let error = error.map(|_| ()).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("v3 or v4"), "{error}");
    }
}
