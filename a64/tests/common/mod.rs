// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two independent disassemblers to compare with.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};

/// What llvm-mc prints for each word of `words` that it knows; `None`, said aloud, without llvm-mc.
pub(crate) fn llvm_mc(words: &[u32]) -> Option<HashMap<u32, String>> {
    let spawned = Command::new("llvm-mc")
        .args([
            "-triple=aarch64",
            "-mattr=+lse,+pan,+bti,+el3",
            "-disassemble",
            "-show-encoding",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            eprintln!("skipped: llvm-mc does not start ({error}); install the package llvm");
            return None;
        }
    };
    let bytes = |word: &u32| word.to_le_bytes().map(|b| format!("{b:#04x}")).join(" ");
    let input = words.iter().map(bytes).collect::<Vec<_>>().join("\n");
    let mut stdin = child.stdin.take().expect("its input is a pipe");
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("llvm-mc ends");
    writer
        .join()
        .expect("the writer ends")
        .expect("llvm-mc reads its input");
    let text = String::from_utf8(output.stdout).expect("llvm-mc prints ASCII");
    Some(text.lines().filter_map(parse).collect())
}

/// `mov x0, x1 // encoding: [0xe0,0x03,0x01,0xaa]`
fn parse(line: &str) -> Option<(u32, String)> {
    let (text, encoding) = line.split_once("// encoding: [")?;
    let text = text
        .split("//")
        .next()?
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    let bytes = encoding.trim_end_matches(']').split(',');
    let bytes: Vec<u8> = bytes
        .filter_map(|b| u8::from_str_radix(b.trim_start_matches("0x"), 16).ok())
        .collect();
    Some((u32::from_le_bytes(bytes.try_into().ok()?), text))
}

/// Aliases, and the instructions that each may stand for; disarm64 names the latter.
const ALIASES: &[(&str, &str)] = &[
    ("hint", "nop yield wfe wfi sev sevl csdb bti hint"),
    ("dsb", "ssbb pssbb"),
    ("sys", "ic dc tlbi at"),
    // Younger names of what is SYS here.
    (
        "gcspushm gcsss1 gcspushx gcspopcx gcspopx trcit cfp dvp cpp cosp brb",
        "sys",
    ),
    ("movz movn orr add", "mov"),
    ("subs", "cmp negs"),
    ("adds", "cmn"),
    ("sub", "neg"),
    ("sbc", "ngc"),
    ("sbcs", "ngcs"),
    ("orn", "mvn"),
    ("ands", "tst"),
    ("ubfm", "lsl lsr uxtb uxth ubfx ubfiz"),
    ("sbfm", "asr sxtb sxth sxtw sbfx sbfiz"),
    ("bfm", "bfi bfxil"),
    ("extr", "ror"),
    ("madd", "mul"),
    ("msub", "mneg"),
    ("smaddl", "smull"),
    ("smsubl", "smnegl"),
    ("umaddl", "umull"),
    ("umsubl", "umnegl"),
    ("lslv", "lsl"),
    ("lsrv", "lsr"),
    ("asrv", "asr"),
    ("rorv", "ror"),
    ("csinc", "cset cinc"),
    ("csinv", "csetm cinv"),
    ("csneg", "cneg"),
];

/// Whether the text's mnemonic is, or is an alias of, the one that disarm64 read.
pub(crate) fn mnemonics_agree(text: &str, theirs: Option<&str>) -> bool {
    let ours = text.split(' ').next().unwrap_or("");
    let has = |list: &str, name| list.split(' ').any(|entry| entry == name);
    theirs.is_some_and(|theirs| {
        theirs == ours
            || theirs == "b.c" && ours.starts_with("b.")
            || ours.strip_prefix("st") == theirs.strip_prefix("ld") && ours.starts_with("st")
            || ALIASES
                .iter()
                .any(|(base, alias)| has(base, theirs) && has(alias, ours))
    })
}
