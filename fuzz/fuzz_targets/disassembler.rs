// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any slots: what decodes prints as a text that assembles to the same operation.
#![no_main]

use bpf_vm::{
    asm::assemble,
    isa::{Insn, Op},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (slots, rest) = bytes.as_chunks();
    let mut insns = slots.iter().map(|&slot| Insn::from_bytes(slot)).peekable();
    while let Some(insn) = insns.next() {
        if let Ok(op) = Op::decode(insn, insns.peek().copied()) {
            let (text, (first, second)) = (op.to_string(), op.encode());
            let back = assemble(&text).unwrap_or_else(|error| panic!("{op:?}: {error}"));
            assert_eq!(back.first(), Some(&first), "{text}");
            assert_eq!(back.get(1).copied(), second, "{text}");
            assert_eq!(Op::decode(first, second), Ok(op), "{text}");
        }
    }
    // The same bytes as a text: an error or a program.
    let _ = rest;
    let _ = assemble(&String::from_utf8_lossy(bytes));
});
