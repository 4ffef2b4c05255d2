// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects compiled by clang, loaded and run by the interpreter; bad ones and the errors that name what is wrong.
mod common;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bpf_vm::{
    host::{self, Host},
    interp::{Interpreter, Region},
    map::{HeapMemory, Map, MapError, MapMemory, UpdateFlags},
    object::{AttachPoint, LoadedObject, Object},
};
use common::{compile, program, programs};

/// Instructions that a program of these tests may take.
const BUDGET: u64 = 10_000;

/// All `*.bpf.c` of a folder, sorted.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().is_some_and(|path| path.ends_with(".bpf.c")))
        .collect();
    sources.sort();
    assert!(!sources.is_empty(), "{} has no *.bpf.c", folder.display());
    sources
}

fn memory() -> HeapMemory {
    HeapMemory::with_limit(1 << 20)
}

fn load(object: &[u8]) -> LoadedObject {
    Object::parse(object)
        .unwrap()
        .instantiate(&memory())
        .unwrap()
}

/// One program of an object, ready to be called as a hook would call it.
struct Hook(Interpreter);

impl Hook {
    fn of(object: &LoadedObject, name: &str) -> Self {
        let program = object.programs.iter().find(|program| program.name == name);
        Self(Interpreter::new(Arc::new(
            program.unwrap().clone().validate().unwrap(),
        )))
    }

    fn call(&self, arguments: &[u64]) -> u64 {
        let context = Region::constant(arguments);
        let outcome = self.0.run(&[context.start()], &[context], BUDGET);
        outcome.unwrap_or_else(|fault| panic!("{fault}")).r0
    }
}

fn map<'a>(object: &'a LoadedObject, name: &str) -> &'a Arc<Map> {
    let map = object.maps.iter().find(|map| map.definition().name == name);
    map.unwrap_or_else(|| panic!("no map {name}"))
}

/// The word at byte `offset` of a value.
fn word(object: &LoadedObject, name: &str, index: u32, offset: usize) -> u64 {
    let map = map(object, name);
    let mut value = vec![0; map.value_size()];
    map.lookup(&index.to_ne_bytes(), &mut value).unwrap();
    u64::from_ne_bytes(value[offset..offset + 8].try_into().unwrap())
}

/// A host whose clock a test sets.
struct TestHost {
    now: AtomicU64,
    printed: Mutex<Vec<String>>,
}

impl Host for TestHost {
    fn ktime_ns(&self) -> u64 {
        self.now.load(Relaxed)
    }

    fn cpu(&self) -> u32 {
        3
    }

    fn current_pid_tgid(&self) -> u64 {
        7 << 32 | 9
    }

    fn print(&self, text: fmt::Arguments<'_>) {
        self.printed.lock().unwrap().push(text.to_string());
    }
}

static HOST: TestHost = TestHost {
    now: AtomicU64::new(0),
    printed: Mutex::new(Vec::new()),
};

fn register_host() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        host::register(&HOST).unwrap();
        assert!(host::register(&HOST).is_err(), "a second host is refused");
    });
}

/// Every sample loads, says what it attaches to, has a licence, and validates.
#[test]
fn samples_load() {
    for source in sources(&programs()) {
        let Some(object) = compile(&source) else {
            return;
        };
        let name = source.display();
        let object = Object::parse(&object).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(object.license(), Some("Dual MIT/GPL"), "{name}");
        for (program, section) in object.programs() {
            let point = AttachPoint::parse(section).unwrap();
            assert!(point.target.is_some(), "{name}: {program}: {section}");
        }
        let loaded = match object.instantiate(&memory()) {
            Ok(loaded) => loaded,
            // Some are about what a kernel has.
            Err(error) => {
                let wants = [
                    ("cores.bpf.c", "springboard_"),
                    ("linger.bpf.c", "springboard_"),
                    ("offered.bpf.c", "springboard_"),
                    ("page_in.bpf.c", "springboard_"),
                    ("session.bpf.c", "bpf_session_"),
                    ("replace.bpf.c", "springboard_"),
                    ("recursion.bpf.c", "springboard_"),
                    ("torture.bpf.c", "springboard_"),
                    ("torture_replace.bpf.c", "springboard_"),
                ];
                let of_kernel = |(file, symbol): &(&str, &str)| {
                    source.ends_with(file) && error.to_string().contains(symbol)
                };
                assert!(wants.iter().any(of_kernel), "{name}: {error}");
                continue;
            }
        };
        for program in loaded.programs {
            program
                .validate()
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn count_counts() {
    for (name, map, variable) in [
        ("count", "calls", None),
        ("count_global", ".bss", Some("calls")),
    ] {
        let Some(object) = program(name) else {
            return;
        };
        let loaded = load(&object);
        let hook = Hook::of(&loaded, name);
        for _ in 0..5 {
            assert_eq!(hook.call(&[1, 2]), 0);
        }
        assert_eq!(word(&loaded, map, 0, 0), 5, "{name}");
        let object = Object::parse(&object).unwrap();
        let variables: Vec<&str> = object.variables().iter().map(|v| &*v.name).collect();
        assert_eq!(variables, Vec::from_iter(variable));
        // Each instance has its own maps.
        assert_eq!(word(&object.instantiate(&memory()).unwrap(), map, 0, 0), 0);
    }
}

#[test]
fn filter_takes_what_is_wanted() {
    let Some(object) = program("filter") else {
        return;
    };
    let mut object = Object::parse(&object).unwrap();
    let matched = |object: &Object, argument| {
        let loaded = object.instantiate(&memory()).unwrap();
        let hook = Hook::of(&loaded, "filter");
        hook.call(&[argument, 0]);
        hook.call(&[argument + 1, 0]);
        word(&loaded, ".bss", 0, 0)
    };
    assert_eq!(matched(&object, 42), 1);
    assert_eq!(matched(&object, 99), 0);
    object.set_variable("wanted", &99u64.to_ne_bytes()).unwrap();
    assert_eq!(matched(&object, 99), 1);
    assert_eq!(matched(&object, 42), 0);
    let error = object.set_variable("wanted", &[0; 4]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the variable `wanted` has 8 bytes, 4 were given"
    );
    let error = object.set_variable("unknown", &[0; 4]).unwrap_err();
    assert!(error.to_string().contains("no global variable `unknown`"));
    // Constants stay what they are once programs run.
    let loaded = object.instantiate(&memory()).unwrap();
    let update = map(&loaded, ".rodata").update(&[0; 4], &[0; 8], UpdateFlags::Any);
    assert_eq!(update, Err(MapError::NotPermitted));
}

/// The helpers that ask the host: time, core number, printing.
#[test]
fn host_is_asked() {
    register_host();
    let (Some(latency), Some(printk)) = (program("latency"), program("printk")) else {
        return;
    };
    let loaded = load(&latency);
    let hook = Hook::of(&loaded, "latency");
    // Distances of 1, 2 and 3, 1000, 2^40 nanoseconds.
    for now in [1, 2, 4, 7, 1007, 1007 + (1 << 40)] {
        HOST.now.store(now, Relaxed);
        hook.call(&[]);
    }
    let histogram: Vec<(u32, u64)> = (0..64)
        .map(|bucket| (bucket, word(&loaded, "between", bucket, 0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(histogram, [(0, 1), (1, 2), (9, 1), (40, 1)]);

    let loaded = load(&printk);
    Hook::of(&loaded, "printk").call(&[12, 0xab]);
    assert_eq!(
        *HOST.printed.lock().unwrap(),
        ["cpu 3: workload_call(12, 0xab)"]
    );
}

/// Shared functions, several programs, every data section.
#[test]
fn linking() {
    let Some(object) = own("linking") else {
        return;
    };
    let parsed = Object::parse(&object).unwrap();
    let programs: Vec<_> = parsed.programs().collect();
    assert_eq!(
        programs,
        [
            ("both", "fentry/workload_call"),
            ("one", "fentry/workload_call"),
            ("none", "fexit.s/workload_other"),
        ]
    );
    let mut maps: Vec<&str> = parsed.maps().map(|map| &*map.name).collect();
    maps.sort_unstable();
    assert_eq!(
        maps,
        [
            ".bss",
            ".data",
            ".data.elsewhere",
            ".rodata",
            "first_map",
            "second_map"
        ]
    );
    let loaded = parsed.instantiate(&memory()).unwrap();
    let [both, one, none] = ["both", "one", "none"].map(|name| Hook::of(&loaded, name));
    assert_eq!(none.call(&[]), 3);
    assert_eq!(both.call(&[1, 10]), 0, "not the wanted argument");
    assert_eq!(both.call(&[3, 10]), 10 * 5 + 10, "sum is 10, factor 5");
    assert_eq!(one.call(&[4]), 14, "the sum is the same variable");
    assert_eq!(both.call(&[3, 1]), 15 * 5 + 15);
    assert_eq!(word(&loaded, "second_map", 1, 8), 3);
    assert_eq!(word(&loaded, "first_map", 3, 0), 7);
    let calls = parsed
        .variables()
        .iter()
        .find(|v| v.name == "calls")
        .unwrap();
    let value = word(&loaded, ".bss", 0, calls.offset as usize);
    assert_eq!(value, 3);
    // A program holds the maps that it uses and no others.
    let maps_of = |name: &str| {
        let program = loaded
            .programs
            .iter()
            .find(|program| program.name == name)
            .unwrap();
        let mut maps: Vec<&str> = program
            .maps
            .iter()
            .map(|map| &*map.definition().name)
            .collect();
        maps.sort_unstable();
        maps
    };
    assert_eq!(maps_of("none"), [".rodata"]);
    assert_eq!(maps_of("one"), [".bss", "first_map"]);
}

/// One row a bad program: its file, and what the error has to say.
#[test]
fn bad_programs_are_refused_by_name() {
    let rows = [
        (
            "core_relocation",
            &[
                "section `fentry/workload_call`",
                "offset 0x0",
                "FIELD_BYTE_OFFSET of struct somewhere::field (0:0)",
            ][..],
        ),
        (
            "data_address",
            &["section `.data`", "offset 0x0", "symbol `variable`"],
        ),
        (
            "legacy_map",
            &["section `maps`", "legacy map definitions", "SEC(\".maps\")"],
        ),
        ("map_without_type", &["map `untyped`", "field `type`"]),
        (
            "missing_kernel_function",
            &[
                "section `fentry/workload_call`",
                "offset 0x8",
                "symbol `bpf_no_such_kfunc`",
                "no function",
            ],
        ),
        (
            "missing_setting",
            &[
                "section `.kconfig`",
                "variable `CONFIG_NO_SUCH_SETTING`",
                "__weak",
            ],
        ),
        ("no_program", &["no program", "SEC("]),
        (
            "static_program",
            &[
                "section `fentry/workload_call`",
                "function `static_program`",
                "`static`",
            ],
        ),
        ("unknown_helper", &["9999"]),
        (
            "unresolved",
            &[
                "section `fentry/workload_call`",
                "offset 0x8",
                "symbol `defined_nowhere`",
            ],
        ),
        (
            "unsupported_map",
            &["map `sockets`", "BPF_MAP_TYPE_SOCKMAP (15)"],
        ),
        (
            "wrong_inner_map",
            &["map `outer`", "field `values`", "element 1, map `narrow`"],
        ),
    ];
    let sources = sources(&programs().join("bad"));
    assert_eq!(
        sources.len(),
        rows.len(),
        "a row for each file in programs/bad"
    );
    for (name, wanted) in rows {
        let source = programs().join("bad").join(format!("{name}.bpf.c"));
        let Some(object) = compile(&source) else {
            return;
        };
        let result = Object::parse(&object)
            .and_then(|object| object.instantiate(&memory()))
            .map_err(|error| error.to_string())
            .and_then(|object| {
                let program = object.programs.into_iter().next().unwrap();
                program.validate().map_err(|error| error.to_string())
            });
        let message = result
            .err()
            .unwrap_or_else(|| panic!("{name} was accepted"));
        for wanted in wanted {
            assert!(
                message.contains(wanted),
                "{name}: `{wanted}` is not in: {message}"
            );
        }
    }
}

/// Damage to an object.
type Change = fn(&mut Vec<u8>);

/// Files that are no BPF object at all, made from a good one by changing its header.
#[test]
fn foreign_files_are_named() {
    let Some(object) = program("count") else {
        return;
    };
    let message = |change: Change| {
        let mut object = object.clone();
        change(&mut object);
        Object::parse(&object).unwrap_err().to_string()
    };
    // Offsets of e_ident's class and byte order, e_type, e_machine, e_shoff (ELF-64 object file format).
    let rows: [(Change, &str); 10] = [
        (
            |o| o.clear(),
            "the ELF header ends at byte 64, the file has 0",
        ),
        (
            |o| o.truncate(40),
            "the ELF header ends at byte 64, the file has 40",
        ),
        (|o| o.truncate(1000), "the section table ends at byte"),
        (|o| o[0] = b'#', "starts with the bytes 23 45 4c 46"),
        (|o| o[4] = 1, "class 1 and byte order 1"),
        (|o| o[5] = 2, "for an unknown machine (machine 63232)"),
        (|o| o[18] = 183, "for EM_AARCH64 (machine 183)"),
        (|o| o[18] = 62, "for EM_X86_64 (machine 62)"),
        (|o| o[16] = 2, "of ELF type 2"),
        (|o| o[40] ^= 1, "the section table"),
    ];
    for (change, wanted) in rows {
        let message = message(change);
        assert!(message.contains(wanted), "`{wanted}` is not in: {message}");
    }
    assert!(Object::parse(&object).is_ok());
    let mut big = object.clone();
    (big[5], big[16], big[17], big[18], big[19]) = (2, 0, 1, 0, 247);
    let error = Object::parse(&big).unwrap_err().to_string();
    assert!(error.contains("byte order 2"), "{error}");
}

/// A host that has no memory left gets an error, not half an object.
#[test]
fn memory_may_run_out() {
    let Some(object) = program("latency") else {
        return;
    };
    let object = Object::parse(&object).unwrap();
    // 8 bytes of `.bss` and 64 values of 8.
    let need = 8 + 64 * 8;
    assert!(object.instantiate(&HeapMemory::with_limit(need)).is_ok());
    let short = HeapMemory::with_limit(need - 1);
    let error = object.instantiate(&short).unwrap_err().to_string();
    assert!(error.contains("no memory left"), "{error}");
    assert!(
        short.allocate(need - 8).is_some(),
        "all memory is given back"
    );
}

/// The object of `tests/objects/NAME.bpf.c`.
fn own(name: &str) -> Option<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    compile(&folder.join(format!("{name}.bpf.c")))
}

/// Offset in the file, and size, of a section.
fn section(file: &[u8], name: &str) -> (usize, usize) {
    use object::{Object as _, ObjectSection as _};
    let elf = object::File::parse(file).unwrap();
    let section = elf
        .section_by_name(name)
        .unwrap_or_else(|| panic!("no {name}"));
    let (start, size) = section.file_range().unwrap();
    (start as usize, size as usize)
}

/// Adds to a little-endian word of a file.
fn add(file: &mut [u8], at: usize, difference: i32) {
    let word: &mut [u8; 4] = (&mut file[at..at + 4]).try_into().unwrap();
    *word = u32::from_le_bytes(*word)
        .wrapping_add_signed(difference)
        .to_le_bytes();
}

/// Damage that a random byte hardly does: each row changes one field of a good object and has one error.
#[test]
fn damage_is_named() {
    const PROGRAM: &str = "fentry/workload_call";
    const RELOCATIONS: &str = ".relfentry/workload_call";
    let Some(object) = own("linking") else {
        return;
    };
    let rows: [(&str, Change, &[&str]); 8] = [
        (
            "a relocation past its section",
            |o| {
                let (at, _) = section(o, RELOCATIONS);
                o[at + 2] = 1;
            },
            &["`.relfentry/workload_call`", "a relocation at offset 0x1"],
        ),
        (
            "a relocation of the second slot of lddw",
            |o| {
                let (at, _) = section(o, RELOCATIONS);
                add(o, at, 8);
            },
            &[
                "section `fentry/workload_call`",
                "not at the start of an instruction",
            ],
        ),
        (
            "a relocation of an unknown type",
            |o| {
                let (at, _) = section(o, RELOCATIONS);
                o[at + 8] = 3;
            },
            &["section `fentry/workload_call`", "relocation of type 3"],
        ),
        (
            "a variable past its section's end",
            |o| {
                // The addend is the immediate of the instruction that refers to the variable.
                let (code, size) = section(o, PROGRAM);
                let (at, bytes) = section(o, RELOCATIONS);
                let wanted = symbol(o, "wanted");
                let entry = (at..at + bytes).step_by(16).find(|&entry| {
                    u32::from_le_bytes(o[entry + 12..entry + 16].try_into().unwrap()) == wanted
                });
                let offset = o[entry.unwrap()] as usize;
                assert!(offset < size);
                o[code + offset + 5] = 0x10;
            },
            &["symbol `wanted`", "offset 0x1000 of section `.rodata`"],
        ),
        (
            "types cut off",
            |o| {
                let (at, _) = section(o, ".BTF");
                add(o, at + 12, -4);
            },
            &["section `.BTF`", "cut off"],
        ),
        (
            "a function over the next",
            |o| {
                let (at, _) = section(o, ".symtab");
                let symbol = at + 24 * symbol(o, "both") as usize;
                add(o, symbol + 16, 8);
            },
            &["function `one`", "overlaps"],
        ),
        (
            "a function past the end of its section",
            |o| {
                let (at, _) = section(o, ".symtab");
                let symbol = at + 24 * symbol(o, "one") as usize;
                o[symbol + 17] = 0x10;
            },
            &["function `one`", "past the section's end"],
        ),
        (
            "sections that share bytes",
            |o| {
                // e_shoff; each header has 64 bytes, sh_offset at 24, sh_size at 32.
                let headers = u64::from_le_bytes(o[40..48].try_into().unwrap()) as usize;
                let length = o.len() as u64;
                for header in (headers..o.len()).step_by(64).skip(1) {
                    if o[header + 4] == 1 {
                        o[header + 24..header + 32].copy_from_slice(&0u64.to_le_bytes());
                        o[header + 32..header + 40].copy_from_slice(&length.to_le_bytes());
                    }
                }
            },
            &["section table", "some overlap"],
        ),
    ];
    for (what, change, wanted) in rows {
        let mut object = object.clone();
        change(&mut object);
        let message = match Object::parse(&object) {
            Ok(_) => panic!("{what}: accepted"),
            Err(error) => error.to_string(),
        };
        for wanted in wanted {
            assert!(
                message.contains(wanted),
                "{what}: `{wanted}` is not in: {message}"
            );
        }
    }
}

/// The index of a symbol.
fn symbol(file: &[u8], name: &str) -> u32 {
    use object::{Object as _, ObjectSymbol as _};
    let elf = object::File::parse(file).unwrap();
    elf.symbol_by_name(name).unwrap().index().0 as u32
}

/// The type of a map's value says where its lock is.
#[test]
fn a_lock_is_found_in_its_value() {
    let Some(object) = own("spin_lock") else {
        return;
    };
    register_host();
    let loaded = load(&object);
    assert_eq!(Hook::of(&loaded, "held").call(&[]) as i64, 5);
}

#[test]
fn a_maps_struct_is_limited() {
    let Some(object) = own("many_fields") else {
        return;
    };
    let message = Object::parse(&object).unwrap_err().to_string();
    for wanted in ["map `wide`", "65 members", "limit is 64"] {
        assert!(message.contains(wanted), "`{wanted}` is not in: {message}");
    }
}

/// A million instructions, and no more.
#[test]
fn length_is_limited() {
    let Some(object) = own("long") else {
        return;
    };
    let message = Object::parse(&object).unwrap_err().to_string();
    for wanted in ["program `fourth`", "1000000"] {
        assert!(message.contains(wanted), "`{wanted}` is not in: {message}");
    }
}
