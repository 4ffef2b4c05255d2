// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program from text to a result and to A64 code: the README's example.
use std::sync::Arc;

use bpf_vm::{
    asm::assemble,
    interp::Interpreter,
    jit::{Target, compile, listing},
    program::UncheckedProgram,
};

fn main() {
    let unchecked = UncheckedProgram {
        insns: assemble("r0 = r1\nr0 += 2\nexit").expect("it assembles"),
        ..UncheckedProgram::default()
    };
    let program = Arc::new(unchecked.validate().expect("it is valid"));
    // The argument is 40; no memory to read, and at most 100 instructions.
    let outcome = Interpreter::new(program.clone()).run(&[40], &[], 100);
    assert_eq!(outcome.expect("it ends").r0, 42);
    let code = compile(&program, &Target::new(0x10_0000)).expect("it compiles");
    println!("{}", listing(&program, &code));
}
