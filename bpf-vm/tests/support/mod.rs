// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a text program by the interpreter and, where the machine is arm64, as compiled code, with the same memory.
#![allow(
    dead_code,
    reason = "each test binary uses the part of this that it needs"
)]

pub(crate) mod host;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bpf_vm::{
    asm::assemble,
    attachment::Attachment,
    interp::{Fault, Interpreter, Outcome, Region},
    isa::Insn,
    jit::{self, Code, Features, RegisterSet, Target},
    map::{HeapMemory, Map, MapDefinition, MapKind},
    program::{UncheckedProgram, ValidatedProgram},
};

/// More instructions than any test program executes.
pub(crate) const BUDGET: u64 = 1_000_000;

/// An array map of `entries` values of `size` bytes.
pub(crate) fn array(size: u32, entries: u32) -> Arc<Map> {
    let definition = MapDefinition {
        name: "array".into(),
        kind: MapKind::ARRAY,
        key_size: 4,
        value_size: size,
        max_entries: entries,
        flags: 0,
    };
    Map::create(definition, &HeapMemory::with_limit(1 << 20)).unwrap()
}

pub(crate) fn unchecked(insns: Vec<Insn>, maps: &[Arc<Map>]) -> UncheckedProgram {
    UncheckedProgram {
        name: "test".into(),
        section: "test".into(),
        insns,
        maps: maps.to_vec(),
        ..UncheckedProgram::default()
    }
}

/// Assembles and validates; panics with the error.
pub(crate) fn program(text: &str, maps: &[Arc<Map>]) -> Arc<ValidatedProgram> {
    let shown = text.get(..1000).unwrap_or(text);
    let insns = assemble(text).unwrap_or_else(|error| panic!("{error}\n{shown}"));
    let program = unchecked(insns, maps).validate();
    Arc::new(program.unwrap_or_else(|error| panic!("{error}\n{shown}")))
}

/// The memory that r1 points to, r2 being its size in bytes.
pub(crate) struct Buffer(Vec<AtomicU64>);

impl Buffer {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut words: Vec<_> = bytes
            .chunks(8)
            .map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                AtomicU64::new(u64::from_le_bytes(word))
            })
            .collect();
        // An address even if there is nothing in it.
        words.reserve(1);
        Self(words)
    }

    pub(crate) fn set(&self, from: &Self) {
        for (to, from) in self.0.iter().zip(&from.0) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|word| word.load(Relaxed).to_le_bytes())
            .collect()
    }

    pub(crate) fn arguments(&self) -> [u64; 2] {
        let address = self.0.as_ptr().expose_provenance() as u64;
        [address, size_of_val(&self.0[..]) as u64]
    }

    pub(crate) fn region(&self) -> Region<'_> {
        Region::words(&self.0)
    }
}

pub(crate) fn interpret(
    program: &Arc<ValidatedProgram>,
    memory: &Buffer,
) -> Result<Outcome, Fault> {
    interpret_for(&Attachment::NONE, program, memory)
}

pub(crate) fn interpret_for(
    attachment: &Attachment,
    program: &Arc<ValidatedProgram>,
    memory: &Buffer,
) -> Result<Outcome, Fault> {
    let (arguments, regions) = (memory.arguments(), [memory.region()]);
    Interpreter::new(program.clone()).run_for(attachment, &arguments, &regions, BUDGET)
}

/// Few registers: x0 to x2 and x19 to x26, so that callee-saved ones have to do for everything.
const FEW: RegisterSet = {
    let mut few = RegisterSet::ALL;
    let mut number = 3;
    while number < 29 {
        if let Some(reg) = a64::Reg::new(number)
            && (number < 19 || number > 26)
        {
            few = few.without(reg);
        }
        number += 1;
    }
    few
};

/// What programs are compiled for; qemu's default core has all of it.
pub(crate) type Variant = (Features, RegisterSet);

/// Those that every test compiles for.
pub(crate) const VARIANTS: [Variant; 3] = [
    (Features { lse: false }, RegisterSet::ALL),
    (Features { lse: true }, RegisterSet::ALL),
    (Features { lse: false }, FEW),
];

pub(crate) fn compile(program: &ValidatedProgram, base: u64, variant: Variant) -> Code {
    let (features, registers) = variant;
    let target = Target {
        features,
        registers,
        arguments: 2,
        ..Target::new(base)
    };
    jit::compile(program, &target).unwrap_or_else(|error| panic!("{error}"))
}

/// Compiled code on the machine that runs the test.
#[cfg(target_arch = "aarch64")]
pub(crate) mod native {
    use super::*;

    /// The shortest line that CTR_EL0 can name, bytes.
    const LINE: usize = 16;

    /// Executable pages.
    pub(crate) struct Pages {
        start: *mut libc::c_void,
        bytes: usize,
    }

    impl Pages {
        pub(crate) fn new(bytes: usize) -> Self {
            let (protection, flags) = (
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            );
            // SAFETY: a new mapping somewhere touches no memory that is in use.
            let start =
                unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
            assert_ne!(start, libc::MAP_FAILED, "no executable memory");
            Self { start, bytes }
        }

        pub(crate) fn address(&self) -> u64 {
            self.start as u64
        }

        /// Writes code to where it was compiled for, and makes it visible to instruction fetches.
        pub(crate) fn load(&self, code: &Code) {
            assert_eq!(code.base, self.address());
            assert!(
                code.words.len() * 4 <= self.bytes,
                "code larger than its pages"
            );
            let to = self.start.cast::<u32>();
            // SAFETY: the pages hold as many words, and nobody else uses them.
            unsafe { std::ptr::copy_nonoverlapping(code.words.as_ptr(), to, code.words.len()) };
            let end = self.address() + code.words.len() as u64 * 4;
            for line in (self.address()..end).step_by(LINE) {
                // To the point of unification by address, data before instructions (Arm ARM B2.4.4).
                // SAFETY: the line is in this mapping, and cleaning changes no memory.
                unsafe { std::arch::asm!("dc cvau, {}", in(reg) line) };
            }
            // SAFETY: a barrier.
            unsafe { std::arch::asm!("dsb ish") };
            for line in (self.address()..end).step_by(LINE) {
                // SAFETY: the line is in this mapping, and invalidating instructions changes no memory.
                unsafe { std::arch::asm!("ic ivau, {}", in(reg) line) };
            }
            // SAFETY: barriers.
            unsafe { std::arch::asm!("dsb ish", "isb") };
        }

        /// Runs the code that was loaded.
        ///
        /// # Safety
        /// It is compiled from a program that only touches memory that it may.
        pub(crate) unsafe fn run(&self, attachment: &Attachment, [a, b]: [u64; 2]) -> u64 {
            // SAFETY: the pages hold compiled code, whose entry is its first word and has this type.
            let entry: extern "C" fn(u64, u64, u64) -> u64 =
                unsafe { std::mem::transmute(self.start) };
            entry(a, b, attachment.address())
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: the mapping is this value's own, and its code has returned.
            unsafe { libc::munmap(self.start, self.bytes) };
        }
    }
}

/// Runs by all engines that this machine has; they have to agree on r0, the memory and the maps' values.
/// `before` resets the maps. Returns what the interpreter said.
pub(crate) fn run_all(
    program: &Arc<ValidatedProgram>,
    bytes: &[u8],
    before: impl Fn(),
    state: impl Fn() -> Vec<u8>,
) -> Result<(Outcome, Vec<u8>), String> {
    run_all_with(&Attachment::NONE, program, bytes, before, state, |_| ())
}

/// As [`run_all`], by the interpreter and code compiled for these variants.
pub(crate) fn run_by(
    variants: &[Variant],
    program: &Arc<ValidatedProgram>,
    bytes: &[u8],
    before: impl Fn(),
    state: impl Fn() -> Vec<u8>,
) -> Result<(Outcome, Vec<u8>), String> {
    let attachment = &Attachment::NONE;
    run(variants, attachment, program, bytes, before, state, |_| ())
}

/// As [`run_all`], for an attachment; `enter` is told where a tail call enters the program, before each engine runs it (0 for
/// the interpreter).
pub(crate) fn run_all_with(
    attachment: &Attachment,
    program: &Arc<ValidatedProgram>,
    bytes: &[u8],
    before: impl Fn(),
    state: impl Fn() -> Vec<u8>,
    enter: impl Fn(u64),
) -> Result<(Outcome, Vec<u8>), String> {
    run(&VARIANTS, attachment, program, bytes, before, state, enter)
}

fn run(
    variants: &[Variant],
    attachment: &Attachment,
    program: &Arc<ValidatedProgram>,
    bytes: &[u8],
    before: impl Fn(),
    state: impl Fn() -> Vec<u8>,
    enter: impl Fn(u64),
) -> Result<(Outcome, Vec<u8>), String> {
    let (fresh, memory) = (Buffer::new(bytes), Buffer::new(bytes));
    before();
    enter(0);
    let outcome = interpret_for(attachment, program, &memory);
    let outcome = outcome.map_err(|fault| format!("interpreter: {fault}"))?;
    let (after, values) = (memory.bytes(), state());
    #[cfg(not(target_arch = "aarch64"))]
    for &variant in variants {
        compile(program, 0x8_0000, variant);
    }
    #[cfg(target_arch = "aarch64")]
    {
        let pages = native::Pages::new(1 << 23);
        for &variant in variants {
            let code = compile(program, pages.address(), variant);
            pages.load(&code);
            memory.set(&fresh);
            before();
            enter(code.base + u64::from(code.tail_entry));
            // SAFETY: the interpreter has just run it with the same memory, and checked each access.
            let r0 = unsafe { pages.run(attachment, memory.arguments()) };
            let listing = || bpf_vm::jit::listing(program, &code);
            if r0 != outcome.r0 {
                let (want, text) = (outcome.r0, listing());
                return Err(format!(
                    "{variant:?}: r0 is {r0:#x}, interpreted {want:#x}\n{text}"
                ));
            }
            if memory.bytes() != after || state() != values {
                let (is, text) = (memory.bytes(), listing());
                return Err(format!(
                    "{variant:?}: memory is {is:02x?}, interpreted {after:02x?}\n{text}"
                ));
            }
        }
    }
    let _ = (&fresh, values, &enter);
    Ok((outcome, after))
}
