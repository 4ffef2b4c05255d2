// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs as text: their instructions, and the arm64 code that they are compiled to.

use std::fmt::Write;

use bpf_vm::isa::{Insn, Op};
use bpf_vm::jit::{self, Code, Features, Target};
use bpf_vm::object::LoadedObject;
use bpf_vm::program::{Instruction, UncheckedProgram, ValidatedProgram};

use super::session;
use super::{BpfError, File};

/// Where helpers are in a listing: behind the code, in reach of BL, and 16 bytes each, so that the same object gives the
/// same listing every time.
const HELPERS_BEHIND: u64 = 1 << 24;
const HELPER_BYTES: u64 = 16;

/// What an instruction names by a number, in words.
pub(super) fn comment(program: &ValidatedProgram, i: &Instruction) -> Option<String> {
    let map = |index: u32| {
        let map = program.maps().get(usize::try_from(index).ok()?)?;
        Some(map.definition().name.clone())
    };
    let target = program.instructions().get(usize::try_from(i.target).ok()?);
    match i.op {
        Op::LoadMap { map: index, .. } => map(index),
        Op::LoadMapValue {
            map: index, offset, ..
        } => Some(format!("{}+{offset}", map(index)?)),
        Op::LoadVariable { variable, .. } => {
            let variable = program.variables().get(usize::try_from(variable).ok()?)?;
            Some(variable.name.clone())
        }
        Op::Call { .. } | Op::CallKernel { .. } => Some(program.called(i.op)?.name.into()),
        Op::CallLocal { .. } | Op::LoadFunction { .. } => {
            Some(format!("function at {}", target?.slot))
        }
        Op::Goto { .. } | Op::If { .. } => Some(format!("to {}", target?.slot)),
        _ => None,
    }
}

/// The heading of a program.
fn heading(program: &ValidatedProgram) -> String {
    format!("{} ({}):\n", program.name(), program.section())
}

/// The instructions of an object's programs: slot, offset in bytes, bytes, text, what it names.
pub(super) fn disassembly(file: &File, wanted: Option<&str>) -> Result<String, BpfError> {
    let mut text = String::new();
    let kernel = file.kernel()?;
    for index in file.programs(wanted)? {
        let (loaded, program) =
            session::load(&file.object, &kernel, index).map_err(|error| file.error(error))?;
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&heading(&program));
        let slots = slots(&loaded, index);
        for (number, function) in program.functions().iter().enumerate() {
            let range = function.start as usize..function.end as usize;
            let body = program.instructions().get(range).unwrap_or_default();
            if let Some(first) = body.first().filter(|_| number > 0) {
                let _ = writeln!(text, "  function at {}:", first.slot);
            }
            for i in body {
                let slot = i.slot as usize;
                let bytes = slots.get(slot..slot + i.op.slots()).unwrap_or_default();
                let mut bytes = bytes.iter().map(|insn| hex(*insn));
                let first = bytes.next().unwrap_or_default();
                let line = format!("{slot:5} {:6x}  {first}  {}", slot * Insn::BYTES, i.op);
                let _ = match comment(&program, i) {
                    Some(comment) => writeln!(text, "{line:<72} ; {comment}"),
                    None => writeln!(text, "{line}"),
                };
                for (more, bytes) in (slot + 1..).zip(bytes) {
                    let _ = writeln!(text, "{:5} {:6x}  {bytes}", "", more * Insn::BYTES);
                }
            }
        }
    }
    Ok(text)
}

fn slots(loaded: &LoadedObject, index: usize) -> &[Insn] {
    let program: Option<&UncheckedProgram> = loaded.programs.get(index);
    program.map_or(&[], |program| &program.insns)
}

fn hex(insn: Insn) -> String {
    let bytes = insn.to_bytes().map(|byte| format!("{byte:02x}"));
    bytes.join(" ")
}

/// A program's code for an address, helpers where a listing has them.
pub(super) fn compile(
    program: &ValidatedProgram,
    lse: bool,
    base: u64,
) -> Result<Code, jit::JitError> {
    let place = |number: u32| base.wrapping_add(HELPERS_BEHIND + u64::from(number) * HELPER_BYTES);
    let target = Target {
        features: Features { lse },
        helper: &|number| Some(place(number)),
        dispatch: place(0),
        ..Target::new(base)
    };
    jit::compile(program, &target)
}

/// The arm64 code of an object's programs, each BPF instruction before the words that it became.
pub(super) fn code(
    file: &File,
    wanted: Option<&str>,
    lse: bool,
    base: u64,
) -> Result<String, BpfError> {
    let mut text = String::new();
    let kernel = file.kernel()?;
    for index in file.programs(wanted)? {
        let (_loaded, program) =
            session::load(&file.object, &kernel, index).map_err(|error| file.error(error))?;
        let code = compile(&program, lse, base)
            .map_err(|error| file.error(format!("program `{}`: {error}", program.name())))?;
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&heading(&program));
        let listing = jit::listing(&program, &code);
        for line in listing.lines() {
            let slot = line.strip_prefix("; ").and_then(|l| l.split_once(':'));
            let slot = slot.and_then(|(slot, _)| slot.parse().ok());
            let i = slot.and_then(|slot: u32| {
                let instructions = program.instructions();
                let index = instructions.binary_search_by_key(&slot, |i| i.slot);
                instructions.get(index.ok()?)
            });
            let _ = match i.and_then(|i| comment(&program, i)) {
                Some(comment) => writeln!(text, "{line:<46} ; {comment}"),
                None => writeln!(text, "{line}"),
            };
        }
        let _ = writeln!(
            text,
            "; {} instructions became {} words, which use {} bytes of stack",
            program.instructions().len(),
            code.words.len(),
            code.stack_bytes
        );
    }
    Ok(text)
}
