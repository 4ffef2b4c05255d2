// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decodes a word, moves the instruction to another address, and prints both: the README's example.
use a64::{Assembler, Inst, branch_target, display_word, relocate};

fn main() {
    // `b 0x1008`, at 0x1000, and what does the same at 0x4000.
    let (word, from, to) = (0x1400_0002, 0x1000, 0x4000);
    println!("{from:x}: {}", display_word(word, from));
    assert_eq!(Inst::decode(word).map(Inst::encode), Some(word));
    let mut words = [0; 8];
    let mut asm = Assembler::new(&mut words, to);
    relocate(word, from, &mut asm).expect("every branch can be moved");
    let count = asm.finish().expect("eight words are enough");
    for (word, at) in words.iter().take(count).zip((to..).step_by(4)) {
        println!("{at:x}: {}", display_word(*word, at));
    }
    assert_eq!(branch_target(words[0], to), branch_target(word, from));
}
