// SPDX-License-Identifier: MIT OR Apache-2.0
//! The suite of text programs (`bpf_vm::suite`) on this core: by the interpreter, and as compiled code in the pool.
//!
//! r0, memory and the maps' values have to be what the text says and the same by both, the interpreter's count of
//! instructions what the text says, and the stack that compiled code used within what the compiler said beforehand.

use super::{Failure, Outcome, Test, failed};
use crate::arch::{callee, cpu, stack_use};
use crate::bench::jit::{self as jit_bench, Memory};
use crate::check;
use a64::{Inst, Size};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use bpf_vm::interp::{Interpreter, Region};
use bpf_vm::isa::Op;
use bpf_vm::jit::Features;
use bpf_vm::map::{HeapMemory, Map, TailTarget, UpdateFlags};
use bpf_vm::program::ValidatedProgram;
use bpf_vm::suite::{self, Case};
use core::sync::atomic::AtomicU64;

/// More instructions than any program of the suite executes.
const BUDGET: u64 = 1_000_000;
/// Bytes that the suite's maps may take.
const MAPS: usize = 1 << 20;
/// Bytes of stack that are watched: more than any program of the suite uses with the helpers that it calls.
const WATCHED: usize = 12 << 10;
/// What the programs run for: nothing.
static ATTACHMENT: Attachment = Attachment::NONE;
/// How many of the failures of one text are told.
const TOLD: usize = 8;

/// A test for each text, and one that none is missing.
macro_rules! texts {
    ($($name:literal,)*) => {
        const TEXTS: &[&str] = &[$($name),*];

        pub(super) const TESTS: &[Test] = &[
            $(Test {
                name: concat!("suite.", $name),
                seconds: 120,
                run: || text($name, suite::TESTS),
            },)*
            Test {
                name: "suite.no_text_is_left_out",
                seconds: 20,
                run: none_is_left_out,
            },
            Test {
                name: "suite.benchmarks",
                seconds: 120,
                run: || suite::BENCHES.iter().try_for_each(|(name, _)| text(name, suite::BENCHES)),
            },
            Test {
                name: "suite.stack_is_measured",
                seconds: 20,
                run: stack_is_measured,
            },
            Test {
                name: "suite.products_wait_for_accesses_on_a_cortex_a53",
                seconds: 20,
                run: products,
            },
        ];
    };
}
texts! {
    "base32", "base64", "divmul32", "divmul64", "atomic32", "atomic64", "memory", "jumps", "calls", "tail_calls", "helpers",
}

fn none_is_left_out() -> Outcome {
    for (name, _) in suite::TESTS {
        check!(
            TEXTS.contains(name),
            "the kernel's tests do not name the text {name}"
        );
    }
    Ok(())
}

/// The maps that the suite's programs name, and what programs left in them.
struct Maps(Vec<Arc<Map>>);

impl Maps {
    fn new() -> Result<Self, Failure> {
        let maps = suite::maps(&HeapMemory::with_limit(MAPS)).map_err(|e| failed(&e))?;
        Ok(Self(maps))
    }

    fn arrays(&self) -> impl Iterator<Item = &Arc<Map>> {
        self.0.iter().take(suite::PROGRAMS)
    }

    /// Begins a run: values of 0, and in the program array the program itself, entered there by compiled code.
    fn begin(&self, program: &Arc<ValidatedProgram>, entry: u64) -> Result<(), Failure> {
        for map in self.arrays() {
            for key in 0..3_u32 {
                let zero = vec![0; map.value_size()];
                map.update(&key.to_le_bytes(), &zero, UpdateFlags::Any)
                    .map_err(|e| failed(&e))?;
            }
        }
        self.set_program(Some(Arc::new(TailTarget {
            program: program.clone(),
            entry: AtomicU64::new(entry),
            keep: None,
        })))
    }

    /// The program array holds the program and the program the array: neither would ever be freed.
    fn end(&self) -> Result<(), Failure> {
        self.set_program(None)
    }

    fn set_program(&self, target: Option<Arc<TailTarget>>) -> Result<(), Failure> {
        match self.0.get(suite::PROGRAMS) {
            // Whatever was there has ended its run.
            Some(map) => map.set_program(0, target).map(drop).map_err(|e| failed(&e)),
            None => Ok(()),
        }
    }

    fn values(&self) -> Vec<u8> {
        let mut values = Vec::new();
        for map in self.arrays() {
            for key in 0..3_u32 {
                let mut value = vec![0; map.value_size()];
                if map.lookup(&key.to_le_bytes(), &mut value).is_ok() {
                    values.extend(value);
                }
            }
        }
        values
    }
}

/// Whether nothing but the program's own code runs on its stack: helpers use more than the compiler knows.
fn is_alone(program: &ValidatedProgram) -> bool {
    let calls_out = |op| {
        matches!(
            op,
            Op::Call { .. } | Op::CallKernel { .. } | Op::CallReg { .. }
        )
    };
    !program.instructions().iter().any(|i| calls_out(i.op))
}

/// Runs a case by both engines; what is not as it should be, in words.
fn run(case: &Case<'_>, maps: &Maps) -> Result<Vec<String>, Failure> {
    let program = Arc::new(case.program(&maps.0).map_err(|e| failed(&e))?);
    let memory = Memory::new(&case.memory);
    let mut wrong = Vec::new();
    maps.begin(&program, 0)?;
    let regions = [Region::words(&memory.0)];
    let interpreter = Interpreter::new(program.clone());
    let outcome = interpreter.run_for(&ATTACHMENT, &memory.arguments(), &regions, BUDGET);
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(fault) => return Ok(vec![format!("interpreted: {fault}")]),
    };
    let (after, values) = (memory.contents(), maps.values());
    if case.r0.is_some_and(|r0| r0 != outcome.r0) {
        wrong.push(format!("interpreted: r0 is {:#x}", outcome.r0));
    }
    let expected = case.after.as_deref().map(Memory::new);
    if expected.is_some_and(|expected| expected.contents() != after) {
        wrong.push(format!("interpreted: memory is {after:x?}"));
    }
    if case.instructions.is_some_and(|n| n != outcome.instructions) {
        wrong.push(format!(
            "interpreted: {} instructions",
            outcome.instructions
        ));
    }
    let exclusive = Features { lse: false };
    let large = cpu::has_lse().then_some(Features { lse: true });
    for features in [Some(exclusive), large].into_iter().flatten() {
        let (placed, code) =
            jit_bench::place(case.name, &program, features).map_err(|e| failed(&e))?;
        memory.reset(&case.memory);
        maps.begin(&program, placed.address() + u64::from(code.tail_entry))?;
        let [address, bytes] = memory.arguments();
        let arguments = [address, bytes, ATTACHMENT.address()];
        let called = stack_use::call(callee::entry(&placed), arguments, WATCHED);
        let Some((r0, used)) = called else {
            return Err(Failure::Failed(format!(
                "no {WATCHED} bytes of stack are left"
            )));
        };
        if r0 != outcome.r0 || memory.contents() != after || maps.values() != values {
            wrong.push(format!(
                "compiled, {features:?}: r0 is {r0:#x}, interpreted {:#x}; memory {:x?}, interpreted {after:x?}",
                outcome.r0,
                memory.contents()
            ));
        }
        let said = code.stack_bytes as usize;
        if is_alone(&program) && used > said {
            wrong.push(format!(
                "compiled, {features:?}: {used} bytes of stack used, {said} announced"
            ));
        }
        if case.stack.is_some_and(|most| code.stack_bytes > most) {
            wrong.push(format!("compiled, {features:?}: {said} bytes of stack"));
        }
    }
    maps.end()?;
    Ok(wrong)
}

/// Runs all cases of a text.
fn text(name: &str, of: &[(&str, &str)]) -> Outcome {
    let text = of.iter().find(|(known, _)| *known == name);
    let Some((_, text)) = text else {
        return Err(Failure::Failed(format!("the suite has no text {name}")));
    };
    let cases = suite::cases(text).map_err(|e| failed(&e))?;
    let maps = Maps::new()?;
    let mut wrong = Vec::new();
    for case in &cases {
        let found = run(case, &maps)?;
        wrong.extend(found.iter().map(|why| format!("{}: {why}", case.name)));
    }
    let told: Vec<_> = wrong.iter().take(TOLD).map(String::as_str).collect();
    check!(
        wrong.is_empty(),
        "{} of {} cases of {name}: {}",
        wrong.len(),
        cases.len(),
        told.join("; ")
    );
    Ok(())
}

/// What is used is what was announced, to the byte, and no less than what the programs write.
fn stack_is_measured() -> Outcome {
    for (text, least) in [
        ("r0 = 0\nexit", 0),
        ("*(u64 *)(r10 - 512) = 1\nr0 = 0\nexit", 512),
        (
            "*(u64 *)(r10 - 256) = 1\nr1 = r10\nr1 += -256\ncall local f\nexit\nf: *(u64 *)(r10 - 128) = 1\nr0 = 0\nexit",
            256 + 128,
        ),
    ] {
        let case = Case {
            name: "stack",
            text: text.into(),
            ..Case::default()
        };
        let program = case.program(&[]).map_err(|e| failed(&e))?;
        let features = Features { lse: false };
        let (placed, code) =
            jit_bench::place(case.name, &program, features).map_err(|e| failed(&e))?;
        let called = stack_use::call(callee::entry(&placed), [0; 3], WATCHED);
        let used = called.map(|(_, used)| used);
        check!(
            used.is_some_and(|used| used == code.stack_bytes as usize && used >= least),
            "{text:?}: {used:?} bytes used, {} announced, {least} written",
            code.stack_bytes
        );
    }
    let sp = stack_use::call(nothing, [0; 3], 1 << 20);
    check!(sp.is_none(), "more stack than there is was watched");
    Ok(())
}

/// Erratum 835769: no 64-bit multiply-accumulate right after an access, where the core may have it; elsewhere it is where it is best.
fn products() -> Outcome {
    let case = Case {
        name: "products",
        text: "r3 = *(u64 *)(r1 + 0)\nr4 = r2\nr4 *= r2\nr0 = r3\nr0 += r4\nexit".into(),
        ..Case::default()
    };
    let program = case.program(&[]).map_err(|e| failed(&e))?;
    let (_, code) =
        jit_bench::place(case.name, &program, Features { lse: false }).map_err(|e| failed(&e))?;
    let close = |pair: &&[u32]| {
        let [first, second] = [0, 1].map(|i| pair.get(i).and_then(|word| Inst::decode(*word)));
        matches!(first, Some(Inst::LoadStore { .. }))
            && matches!(second, Some(Inst::MulAdd { size: Size::X, .. }))
    };
    let close = code.words.windows(2).filter(close).count();
    // The Pi 3's cores are Cortex-A53s; so may others' be.
    let machine = crate::system().map_or("", |system| system.machine.model);
    let a53 = cpu::has_erratum_835769();
    check!(
        a53 || !machine.contains("Raspberry Pi 3"),
        "the cores of {machine} do not count as Cortex-A53s"
    );
    let expected = usize::from(!a53);
    check!(
        close == expected,
        "{close} such products, not {expected}: {:08x?}",
        code.words
    );
    Ok(())
}

extern "C" fn nothing(_: u64, _: u64) -> u64 {
    0
}
