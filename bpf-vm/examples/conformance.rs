// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plugin that the public BPF conformance suite runs: a program and its memory in, r0 out.
//!
//! `conformance [MEMORY] [--interpret | --jit] [--program HEX]`: MEMORY is hex bytes and may be empty, the program is hex
//! bytes on standard input unless `--program` gives it. It runs with r1 = memory (0 if there is none), r2 = its length, 512
//! bytes of stack, and helper 5, which returns its first argument. r0 goes to standard output as hex without a prefix.
//! Whatever is wrong goes to standard error, and the exit status is 1.
//!
//! The interpreter checks every access, and ends a program after [`BUDGET`] instructions. With `--jit` it runs first, and
//! what it refuses is not run as compiled code.
use std::{
    io::{self, Read, Write},
    process::ExitCode,
    sync::Arc,
};

use bpf_vm::{
    helpers::{Argument, Function, Helper, Returns},
    interp::Interpreter,
    isa::Insn,
    jit::Target,
    program::{MAX_SLOTS, UncheckedProgram},
};

#[path = "run/compiled.rs"]
#[expect(dead_code, reason = "without maps there are no tail calls")]
mod compiled;
#[path = "run/memory.rs"]
#[expect(
    dead_code,
    reason = "what a run leaves in the memory is not asked for here"
)]
mod memory;
#[cfg(target_arch = "aarch64")]
#[path = "../tests/support/mod.rs"]
mod support;

use memory::{Memory, hex};

/// Instructions after which a program is taken to have no end.
const BUDGET: u64 = 1 << 26;
/// Characters of hex that are read at most: each byte of the longest program as two digits and two blanks, and more.
const MOST_TEXT: u64 = (MAX_SLOTS * Insn::BYTES * 4 + 4096) as u64;

/// The one helper that the suite asks for.
const FIRST: u32 = 5;
static HELPERS: [Helper; 1] = [Helper::new(
    FIRST,
    "first_argument",
    &[Argument::Any],
    Returns::Scalar,
    Function::Plain(first),
)];

extern "C" fn first(a: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    a
}

/// What compiled code calls for `callx` of a number: `-EINVAL` for all others, as interpreted.
extern "C" fn dispatch(a: u64, _: u64, _: u64, _: u64, _: u64, _: u64, number: u64) -> u64 {
    match number == u64::from(FIRST) {
        true => a,
        false => -22_i64 as u64,
    }
}

fn target(target: Target<'static>) -> Target<'static> {
    Target {
        helper: &|number| (number == FIRST).then_some(first as *const () as usize as u64),
        dispatch: dispatch as *const () as usize as u64,
        ..target
    }
}

const USAGE: &str = "usage: conformance [MEMORY] [--interpret | --jit] [--program HEX]\n\
    MEMORY and the program (on standard input without --program) are hex bytes; prints r0 as hex";

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    memory: String,
    program: Option<String>,
    jit: bool,
    help: bool,
}

impl Request {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut request = Self::default();
        let mut arguments = arguments.peekable();
        if let Some(memory) = arguments.next_if(|argument| !argument.starts_with("--")) {
            request.memory = memory;
        }
        while let Some(argument) = arguments.next() {
            // The suite hands over all options as one argument, which may be empty.
            let mut words = argument.split_whitespace();
            while let Some(word) = words.next() {
                match word {
                    "--interpret" => request.jit = false,
                    "--jit" => request.jit = true,
                    "--help" => request.help = true,
                    "--program" => {
                        let rest = words.by_ref().collect::<Vec<_>>().join(" ");
                        let given = match rest.is_empty() {
                            true => arguments.next(),
                            false => Some(rest),
                        };
                        request.program = Some(given.ok_or("--program needs hex bytes after it")?);
                    }
                    "--elf" => {
                        return Err("--elf is not supported: give the program's instructions, or run the object by \
                                    `cargo xtask bpf run`"
                            .into());
                    }
                    other => return Err(format!("{other:?} is no option\n{USAGE}")),
                }
            }
        }
        Ok(request)
    }
}

/// The program as it came in on standard input.
fn standard_input() -> Result<String, String> {
    let mut text = String::new();
    let read = io::stdin().take(MOST_TEXT + 1).read_to_string(&mut text);
    read.map_err(|error| format!("the program on standard input cannot be read: {error}"))?;
    match text.len() as u64 > MOST_TEXT {
        false => Ok(text),
        true => Err(format!(
            "the program has more than {MOST_TEXT} characters; the limit is {MAX_SLOTS} instruction slots"
        )),
    }
}

/// Runs what is asked for; r0.
fn run(request: Request) -> Result<u64, String> {
    let bytes = hex("memory", &request.memory)?;
    let text = match request.program {
        Some(text) => text,
        None => standard_input()?,
    };
    let program = hex("program", &text)?;
    let (slots, rest) = program.as_chunks();
    if !rest.is_empty() {
        return Err(format!(
            "the program has {} bytes, which is no multiple of {}, the size of an instruction",
            program.len(),
            Insn::BYTES
        ));
    }
    let program = UncheckedProgram {
        name: "conformance".into(),
        section: "conformance".into(),
        insns: slots.iter().map(|&slot| Insn::from_bytes(slot)).collect(),
        ..UncheckedProgram::default()
    };
    let program = program.validate_with(&HELPERS);
    let program = Arc::new(program.map_err(|error| error.to_string())?);
    let memory = Memory::new(&bytes);
    let interpreter = Interpreter::new(program.clone());
    let outcome = interpreter.run(&memory.arguments(), &[memory.region()], BUDGET);
    let outcome = outcome.map_err(|fault| fault.to_string())?;
    if !request.jit {
        return Ok(outcome.r0);
    }
    memory.set(&bytes);
    compiled::run(&program, memory.arguments(), target)
}

fn main() -> ExitCode {
    // What is not UTF-8 is not hex either, and is refused as that.
    let arguments = std::env::args_os().skip(1);
    let request = Request::parse(arguments.map(|a| a.to_string_lossy().into_owned()));
    let answer = request.and_then(|request| match request.help {
        true => Ok(USAGE.into()),
        false => run(request).map(|r0| format!("{r0:x}")),
    });
    match answer {
        Ok(text) => match writeln!(io::stdout(), "{text}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            eprintln!("conformance: {error}");
            ExitCode::FAILURE
        }
    }
}
