// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs programs by both engines, for a fuzzer on another machine: a program a line in, `ok` or the difference out.
//!
//! A program is the hex bytes of its slots; r1 points to `generate::MEMORY` bytes, map 0 is an array of three 8-byte
//! values. Where the machine is not arm64 there is only the interpreter to run it, and the compiler to refuse it.
use std::io::{BufRead, Write};
use std::sync::Arc;

#[path = "../tests/support/generate.rs"]
#[expect(dead_code, reason = "only the size of its memory is needed here")]
mod generate;
#[path = "../tests/support/mod.rs"]
mod support;

use bpf_vm::{isa::Insn, map::UpdateFlags};
use support::{array, run_all, unchecked};

/// The bytes of a line of hex digits.
fn bytes(line: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = line.trim().as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    rest.is_empty()
        .then(|| pairs.iter().map(byte).collect())
        .flatten()
}

/// What both engines make of it.
fn answer(line: &str) -> Result<(), String> {
    let bytes = bytes(line).ok_or("the line is no hex digits")?;
    let (slots, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(format!("{} bytes are no whole slots", bytes.len()));
    }
    let insns = slots.iter().map(|&slot| Insn::from_bytes(slot)).collect();
    let map = array(8, 3);
    let program = unchecked(insns, std::slice::from_ref(&map)).validate();
    let program = Arc::new(program.map_err(|error| error.to_string())?);
    let memory: Vec<u8> = (0..generate::MEMORY).map(|n| (n * 73 + 41) as u8).collect();
    let keys = || (0..3_u32).map(u32::to_le_bytes);
    let reset = || {
        for key in keys() {
            let value = u64::from(key[0]) * 0x0123_4567_89ab_cdef;
            let updated = map.update(&key, &value.to_le_bytes(), UpdateFlags::Any);
            updated.expect("an array of three values");
        }
    };
    let state = || {
        let value = |key: [u8; 4]| {
            let mut value = [0; 8];
            map.lookup(&key, &mut value).map(|()| value)
        };
        keys().filter_map(|key| value(key).ok()).flatten().collect()
    };
    run_all(&program, &memory, reset, state).map(|_| ())
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        match answer(&line?) {
            Ok(()) => writeln!(out, "ok")?,
            // The answer is one line.
            Err(difference) => writeln!(out, "{}", difference.replace('\n', "\\n"))?,
        }
        out.flush()?;
    }
    Ok(())
}
