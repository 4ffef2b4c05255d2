// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects of every clang on this machine, at -O1 and -O2, with -mcpu=v3 and v4: they load, and give the same results by
//! the interpreter and, where the machine is arm64, as compiled code. What was skipped is listed.
mod common;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::AtomicU64},
};

use bpf_vm::{
    interp::{Interpreter, Region},
    map::{HeapMemory, MapKind, TailTarget},
    object::{LoadedObject, Object},
    program::ValidatedProgram,
};
use common::{
    compile_with,
    kernel::{Kernel, kernel_for_all, own},
    programs,
};

/// Instructions that a program of these tests may take.
const BUDGET: u64 = 100_000;
/// Words of the context.
const WORDS: usize = 256;
/// Programs of tests/objects that run; the others there are what has to be refused, or a kernel.
const OWN: [&str; 8] = [
    "core",
    "core_flavours",
    "externs",
    "functions",
    "jump_tables",
    "linking",
    "maps",
    "switch",
];
/// The samples that are not tried, and why.
const OF_ONE_KERNEL: [(&str, &str); 10] = [
    ("cores", "it reads a variable that only Springboard has"),
    ("linger", "it reads a variable that only Springboard has"),
    ("offered", "it calls functions that only Springboard has"),
    ("page_in", "it reads a variable that only Springboard has"),
    ("recursion", "it calls functions that only Springboard has"),
    ("replace", "it calls functions that only Springboard has"),
    (
        "replace_rule",
        "its programs take numbers in place of a context",
    ),
    (
        "session",
        "it calls functions that only a kernel with sessions has",
    ),
    ("torture", "it calls functions that only Springboard has"),
    (
        "torture_replace",
        "it calls functions that only Springboard has",
    ),
];
/// Programs whose result is a number that a compiler chose.
const CHOSEN: [&str; 1] = ["local_id"];
/// Optimisations and processors to try.
const OPTIMISATIONS: [&str; 2] = ["-O1", "-O2"];
const PROCESSORS: [&str; 2] = ["-mcpu=v3", "-mcpu=v4"];

/// Past the test harness, which would keep it back.
fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

/// Every `clang-N` on the path, by number; else `clang`.
fn clangs() -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut numbers = BTreeSet::new();
    for folder in std::env::split_paths(&path) {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        let of_name = |name: String| name.strip_prefix("clang-")?.parse::<u32>().ok();
        numbers.extend(names.filter_map(of_name));
    }
    let mut clangs: Vec<_> = numbers.iter().map(|n| format!("clang-{n}")).collect();
    if clangs.is_empty() {
        clangs.push("clang".into());
    }
    clangs
}

/// Whether a clang compiles for BPF and that processor.
fn takes(clang: &str, processor: &str) -> Result<(), String> {
    let output = Command::new(clang)
        .args([
            "-target",
            "bpf",
            processor,
            "-Werror",
            "-x",
            "c",
            "-c",
            "/dev/null",
            "-o",
        ])
        .arg("/dev/null")
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Some warn of a processor that they do not know and go on.
    if output.status.success() && said.is_empty() {
        return Ok(());
    }
    Err(said.lines().next().unwrap_or("it fails").to_owned())
}

/// What is compiled; what is not, and why.
fn sources() -> (Vec<PathBuf>, Vec<(String, &'static str)>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    let mut sources: Vec<_> = OWN
        .iter()
        .map(|name| folder.join(format!("{name}.bpf.c")))
        .collect();
    let mut skipped = Vec::new();
    let samples = std::fs::read_dir(programs()).unwrap();
    for sample in samples.map(|entry| entry.unwrap().path()) {
        let name = sample.file_name().unwrap().to_str().unwrap();
        let Some(name) = name.strip_suffix(".bpf.c") else {
            continue;
        };
        match OF_ONE_KERNEL.iter().find(|(skipped, _)| *skipped == name) {
            Some((_, why)) => skipped.push((name.to_owned(), *why)),
            None => sources.push(sample),
        }
    }
    sources.sort();
    skipped.sort();
    (sources, skipped)
}

/// A row for a sample that is no longer there would hide that another is not tried.
#[test]
fn samples_that_are_skipped_are_there() {
    let (_, skipped) = sources();
    let rows = OF_ONE_KERNEL.map(|(name, why)| (name.to_owned(), why));
    assert_eq!(skipped, rows);
}

/// Runs a program with a context in r1.
trait Engine {
    fn run(&self, program: &Arc<ValidatedProgram>, context: &[u64]) -> u64;

    /// Where compiled code enters a program by a tail call; 0 for an engine that does not need it.
    fn tail_entry(&self, program: &Arc<ValidatedProgram>) -> u64;
}

struct Interpreted;

impl Engine for Interpreted {
    fn run(&self, program: &Arc<ValidatedProgram>, context: &[u64]) -> u64 {
        let context = Region::constant(context);
        let outcome = Interpreter::new(program.clone()).run(&[context.start()], &[context], BUDGET);
        let name = program.name();
        outcome.unwrap_or_else(|fault| panic!("{name}: {fault}")).r0
    }

    fn tail_entry(&self, _: &Arc<ValidatedProgram>) -> u64 {
        0
    }
}

#[cfg(target_arch = "aarch64")]
mod native {
    use std::sync::Mutex;

    use bpf_vm::{
        attachment::Attachment,
        jit::{self, Target},
    };

    use super::{support::native::Pages, *};

    /// Arguments before the attachment, as `Pages::run` passes them.
    const ARGUMENTS: usize = 2;
    /// Bytes for each program's code.
    const BYTES: usize = 1 << 16;

    /// Keeps the code that others may enter.
    #[derive(Default)]
    pub(super) struct Compiled(Mutex<Vec<Pages>>);

    fn place(program: &ValidatedProgram) -> (Pages, u32) {
        let pages = Pages::new(BYTES);
        let target = Target {
            arguments: ARGUMENTS,
            ..Target::new(pages.address())
        };
        let code = jit::compile(program, &target).unwrap();
        pages.load(&code);
        (pages, code.tail_entry)
    }

    impl Engine for Compiled {
        fn run(&self, program: &Arc<ValidatedProgram>, context: &[u64]) -> u64 {
            let (pages, _) = place(program);
            let context = context.as_ptr().expose_provenance() as u64;
            // SAFETY: the interpreter has run the same program on the same memory, and checked each access.
            unsafe { pages.run(&Attachment::NONE, [context, 0]) }
        }

        fn tail_entry(&self, program: &Arc<ValidatedProgram>) -> u64 {
            let (pages, entry) = place(program);
            let address = pages.address() + u64::from(entry);
            self.0.lock().unwrap().push(pages);
            address
        }
    }
}

/// What an object's programs return, one after the other, and what is in its variables and arrays then.
fn results(
    object: &Object,
    loaded: LoadedObject,
    engine: &dyn Engine,
) -> BTreeMap<String, Vec<u8>> {
    let validate = |program: bpf_vm::program::UncheckedProgram| {
        Arc::new(program.validate().unwrap_or_else(|error| panic!("{error}")))
    };
    let mut programs: Vec<_> = loaded.programs.into_iter().map(validate).collect();
    for slot in &loaded.program_slots {
        let program = programs[slot.program].clone();
        let target = TailTarget {
            entry: AtomicU64::new(engine.tail_entry(&program)),
            program,
            keep: None,
        };
        let map = &loaded.maps[slot.map];
        map.set_program(slot.slot, Some(Arc::new(target))).unwrap();
    }
    let mut results = BTreeMap::new();
    // In an order that does not depend on where a compiler puts them.
    programs.sort_by_key(|program| program.name().to_owned());
    for program in &programs {
        let mut all = Vec::new();
        for first in 0..8 {
            let context: Vec<u64> = (0..WORDS as u64)
                .map(|index| match index {
                    0 => first,
                    1 => 3,
                    _ => index.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                })
                .collect();
            all.extend(engine.run(program, &context).to_le_bytes());
        }
        if !CHOSEN.contains(&program.name()) {
            results.insert(format!("program {}", program.name()), all);
        }
    }
    let read = |map: &bpf_vm::map::Map, index: u32| {
        let mut value = vec![0; map.host_value_size()];
        map.lookup(&index.to_ne_bytes(), &mut value).unwrap();
        value
    };
    for variable in object.variables() {
        let value = read(&loaded.maps[variable.map], 0);
        let start = variable.offset as usize;
        let bytes = value[start..start + variable.size as usize].to_vec();
        results.insert(format!("variable {}", variable.name), bytes);
    }
    for map in &loaded.maps {
        let definition = map.definition();
        if definition.kind == MapKind::ARRAY && !definition.name.starts_with('.') {
            let values = (0..definition.max_entries).flat_map(|index| read(map, index));
            results.insert(format!("map {}", definition.name), values.collect());
        }
    }
    // Programs hold their program arrays.
    for slot in &loaded.program_slots {
        loaded.maps[slot.map].set_program(slot.slot, None).unwrap();
    }
    results
}

/// The results of one object file by all engines, which have to agree.
fn results_by_all(file: &[u8], kernel: &Kernel<'_>, what: &str) -> BTreeMap<String, Vec<u8>> {
    let object = Object::parse(file).unwrap_or_else(|error| panic!("{what}: {error}"));
    let load = || {
        kernel.pins.lock().unwrap().clear();
        let loaded = object.instantiate_in(kernel, &HeapMemory::with_limit(1 << 20));
        loaded.unwrap_or_else(|error| panic!("{what}: {error}"))
    };
    let interpreted = results(&object, load(), &Interpreted);
    #[cfg(target_arch = "aarch64")]
    {
        let compiled = results(&object, load(), &native::Compiled::default());
        for (name, value) in &interpreted {
            assert_eq!(compiled.get(name), Some(value), "{what}: {name}, compiled");
        }
    }
    interpreted
}

#[test]
fn every_clang_gives_the_same_results() {
    let Some(kernel) = own("core_kernel") else {
        return;
    };
    let kernel = kernel_for_all(&kernel);
    let mut variants = Vec::new();
    for clang in clangs() {
        for processor in PROCESSORS {
            match takes(&clang, processor) {
                Ok(()) => variants.extend(OPTIMISATIONS.map(|o| (clang.clone(), o, processor))),
                Err(why) => say(&format!("skipped: {clang} {processor}: {why}\n")),
            }
        }
    }
    assert!(!variants.is_empty(), "no clang compiles for BPF");
    let (sources, skipped) = sources();
    for (name, why) in skipped {
        say(&format!("skipped: {name}: {why}\n"));
    }
    let mut first: BTreeMap<PathBuf, (String, BTreeMap<String, Vec<u8>>)> = BTreeMap::new();
    for (clang, optimisation, processor) in &variants {
        for source in &sources {
            let what = format!("{}, {clang} {optimisation} {processor}", source.display());
            let file = match compile_with(clang, &[optimisation, processor], source) {
                Ok(file) => file,
                Err(error) => panic!("{what}: {error:?}"),
            };
            let results = results_by_all(&file, &kernel, &what);
            let (whose, expected) = first
                .entry(source.clone())
                .or_insert_with(|| (what.clone(), results.clone()));
            assert_eq!(
                results.keys().collect::<Vec<_>>(),
                expected.keys().collect::<Vec<_>>(),
                "{what}, and {whose}"
            );
            for (name, value) in &results {
                assert_eq!(value, &expected[name], "{name}: {what}, and {whose}");
            }
        }
    }
    let names: Vec<_> = variants
        .iter()
        .map(|(clang, optimisation, processor)| format!("{clang} {optimisation} {processor}"))
        .collect();
    println!("{} objects each by {}", first.len(), names.join(", "));
}
