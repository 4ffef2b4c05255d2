// SPDX-License-Identifier: MIT OR Apache-2.0
//! Words and their text: a table, and two independent disassemblers (disarm64, llvm-mc) over it.

mod common;
mod rows;

use a64::Inst;
use a64::display_word;
use common::llvm_mc;
use disarm64::InsnOpcode;
use rows::ROWS;

/// Runs `check` over all rows and fails with all complaints together.
fn over_rows(check: impl Fn(u32, &str) -> Option<String>) {
    let wrong: Vec<_> = ROWS
        .iter()
        .filter_map(|(word, text)| check(*word, text))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        ROWS.len(),
        wrong.join("\n")
    );
}

#[test]
fn every_row_prints_its_text() {
    over_rows(|word, text| {
        let printed = Inst::decode(word).map_or("does not decode".into(), |i| i.to_string());
        (printed != text).then(|| format!("{word:#010x}: {printed}, expected {text}"))
    });
}

#[test]
fn every_row_encodes_to_its_word() {
    over_rows(|word, text| {
        let encoded = Inst::decode(word)?.encode();
        (encoded != word).then(|| format!("{text}: {encoded:#010x}, expected {word:#010x}"))
    });
}

#[test]
fn disarm64_reads_the_same_mnemonics() {
    over_rows(|word, text| {
        let theirs = disarm64::decoder::decode(word).map(|i| i.definition().mnemonic);
        match common::mnemonics_agree(text, theirs) {
            true => None,
            false => Some(format!("{word:#010x}: {text}, disarm64 says {theirs:?}")),
        }
    });
}

#[test]
fn llvm_mc_prints_the_same_text() {
    let words: Vec<u32> = ROWS.iter().map(|(word, _)| *word).collect();
    let Some(theirs) = llvm_mc(&words) else {
        return;
    };
    over_rows(|word, text| match theirs.get(&word) {
        Some(their) if their == text => None,
        their => Some(format!("{word:#010x}: {text}, llvm-mc says {their:?}")),
    });
}

#[test]
fn targets_are_addresses_when_the_place_is_known() {
    let rows = [
        (0x1400_0004, "b 0xffff000000001018"),
        (0x97ff_ffff, "bl 0xffff000000001004"),
        (0x5400_0041, "b.ne 0xffff000000001010"),
        (0xb000_0000, "adrp x0, 0xffff000000002000"),
        (0x3000_0000, "adr x0, 0xffff000000001009"),
        (0x5800_0040, "ldr x0, 0xffff000000001010"),
        (0x0420_0000, ".word 0x04200000"),
    ];
    for (word, text) in rows {
        assert_eq!(display_word(word, 0xffff_0000_0000_1008).to_string(), text);
    }
}

#[test]
fn what_is_not_known_does_not_decode() {
    // SIMD, SVE, unallocated: extended shift 5, W with 6-bit shift, mov wide hw 2 in W, all-ones mask.
    for word in [
        0x4e20_1c00,
        0x0420_0000,
        0x8b22_7420,
        0x0b02_8020,
        0x52c0_0000,
        0x9240_fc00,
        0x5400_0010,
    ] {
        assert_eq!(Inst::decode(word), None, "{word:#010x}");
    }
}
