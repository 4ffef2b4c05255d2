// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random valid programs, their choices made by the fuzzer: interpreter and compiled code agree.
//!
//! The fuzzer sees the coverage of generator, interpreter and compiler on this machine; the compiled code runs in
//! qemu-user, in a process that is started once: bpf-vm's example `pair`, whose path is in `SPRINGBOARD_PAIR`.
#![no_main]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Mutex,
};

use bpf_vm::{
    isa::Insn,
    jit::{self, Target},
    map::{HeapMemory, Map, MapDefinition, MapKind},
    program::UncheckedProgram,
};
use libfuzzer_sys::fuzz_target;

#[path = "../../bpf-vm/tests/support/generate.rs"]
mod generate;

/// The process that runs both engines.
struct Peer {
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    fn start() -> Self {
        let path = std::env::var("SPRINGBOARD_PAIR")
            .expect("SPRINGBOARD_PAIR names bpf-vm's example `pair`; cargo xtask fuzz sets it");
        let mut child = Command::new("qemu-aarch64")
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-aarch64 starts; cargo xtask setup installs it");
        let to = child.stdin.take().expect("its input is a pipe");
        let from = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Self {
            _child: child,
            to,
            from,
        }
    }

    /// What both engines made of a program: `ok`, or how they differ.
    fn ask(&mut self, program: &[Insn]) -> String {
        let mut line: String = program
            .iter()
            .flat_map(|insn| insn.to_bytes())
            .map(|byte| format!("{byte:02x}"))
            .collect();
        line.push('\n');
        let mut answer = String::new();
        let said = self.to.write_all(line.as_bytes());
        if said
            .and_then(|()| self.from.read_line(&mut answer))
            .is_err()
            || answer.is_empty()
        {
            answer = "the process that runs compiled code died".into();
        }
        answer
    }
}

static PEER: Mutex<Option<Peer>> = Mutex::new(None);

fuzz_target!(|choices: &[u8]| {
    let insns = generate::generate(1, choices);
    let definition = MapDefinition {
        name: "array".into(),
        kind: MapKind::ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: 3,
        flags: 0,
    };
    let map = Map::create(definition, &HeapMemory::with_limit(64)).expect("three words");
    let program = UncheckedProgram {
        insns: insns.clone(),
        maps: vec![map],
        ..UncheckedProgram::default()
    };
    let program = program
        .validate()
        .expect("the generator makes valid programs");
    jit::compile(&program, &Target::new(0x8_0000)).expect("which compile");
    let mut peer = PEER.lock().expect("one thread");
    let answer = peer.get_or_insert_with(Peer::start).ask(&insns);
    if answer.trim() != "ok" {
        let text: String = program
            .instructions()
            .iter()
            .map(|i| format!("{}: {}\n", i.slot, i.op))
            .collect();
        panic!("{}\n{text}", answer.trim().replace("\\n", "\n"));
    }
});
