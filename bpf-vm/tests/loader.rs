// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an object asks of its kernel: types by CO-RE, functions, variables, settings, maps that are pinned or hold
//! others. The kernel is an object as well, compiled by the same clang: its `.BTF` is the kernel's.
mod common;

use std::sync::{Arc, Mutex, atomic::AtomicU64};

use bpf_vm::{
    btf::{Btf, Kind},
    helpers::{Argument, Function, HELPERS, Helper, Returns},
    interp::{Fault, Interpreter, Region},
    map::{HeapMemory, Map, TailTarget, UpdateFlags},
    object::{Environment as _, LoadedObject, Object, ProgramSlot},
    program::{UncheckedProgram, ValidatedProgram},
};
use common::kernel::{CLOCK, Kernel, PROBE, extern_kernel, kernel_add, own, section};

/// Instructions that a program of these tests may take.
const BUDGET: u64 = 10_000;
/// Words of the memory that programs of core.bpf.c read.
const WORDS: usize = 256;

fn memory() -> HeapMemory {
    HeapMemory::with_limit(1 << 20)
}

fn program<'a>(loaded: &'a LoadedObject, name: &str) -> &'a UncheckedProgram {
    let found = loaded.programs.iter().find(|p| p.name == name);
    found.unwrap_or_else(|| panic!("no program {name}"))
}

fn validated(loaded: &LoadedObject, name: &str) -> Arc<ValidatedProgram> {
    let program = program(loaded, name).clone().validate();
    Arc::new(program.unwrap_or_else(|error| panic!("{error}")))
}

/// What a program returns whose r1 points to words.
fn run(program: Arc<ValidatedProgram>, words: &[u64]) -> Result<u64, Fault> {
    let context = Region::constant(words);
    let outcome = Interpreter::new(program).run(&[context.start()], &[context], BUDGET);
    outcome.map(|outcome| outcome.r0)
}

/// As [`run`], of a program of an object.
fn call(loaded: &LoadedObject, name: &str, words: &[u64]) -> u64 {
    run(validated(loaded, name), words).unwrap_or_else(|fault| panic!("{name}: {fault}"))
}

/// xorshift64 (Marsaglia 2003).
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Every program of core.bpf.c, relocated to the kernel's types, returns what the kernel's own program of that name
/// does.
#[test]
fn core_reads_what_the_kernel_reads() {
    let (Some(object), Some(flavours), Some(kernel)) =
        (own("core"), own("core_flavours"), own("core_kernel"))
    else {
        return;
    };
    let reference = Object::parse(&kernel)
        .unwrap()
        .instantiate(&memory())
        .unwrap();
    let kernel = Kernel {
        btf: Some(Btf::parse(section(&kernel, ".BTF")).unwrap()),
        ..Kernel::default()
    };
    let object = Object::parse(&object).unwrap();
    let mut loaded = object.instantiate_in(&kernel, &memory()).unwrap();
    let flavours = Object::parse(&flavours).unwrap();
    let flavours = flavours.instantiate_in(&kernel, &memory()).unwrap();
    loaded.programs.extend(flavours.programs);
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut compared = 0;
    for _ in 0..20 {
        let words: Vec<u64> = (0..WORDS).map(|_| random(&mut state)).collect();
        for program in &reference.programs {
            let name = &*program.name;
            let ours = self::program(&loaded, name).clone();
            let validated = match name {
                "by_probe" => ours.validate_with(PROBE),
                _ => ours.validate(),
            };
            let validated = Arc::new(validated.unwrap_or_else(|error| panic!("{error}")));
            let got = run(validated, &words).unwrap_or_else(|fault| panic!("{name}: {fault}"));
            assert_eq!(got, call(&reference, name, &words), "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 20 * reference.programs.len());
    let missing: Vec<&str> = object
        .programs()
        .map(|(name, _)| name)
        .filter(|name| !reference.programs.iter().any(|p| p.name == *name))
        .collect();
    assert_eq!(missing, ["local_id", "kernel_id"]);
    let kernel_id = kernel.btf.as_ref().unwrap().find(Kind::STRUCT, "task");
    assert_eq!(call(&loaded, "kernel_id", &[]), kernel_id.unwrap().into());
}

/// The object's own type has the id that its own BTF says.
#[test]
fn local_types_need_no_kernel() {
    let (Some(file), Some(kernel)) = (own("core"), own("core_kernel")) else {
        return;
    };
    let kernel = Kernel {
        btf: Some(Btf::parse(section(&kernel, ".BTF")).unwrap()),
        ..Kernel::default()
    };
    let object = Object::parse(&file).unwrap();
    let local = Btf::parse(section(&file, ".BTF")).unwrap();
    let loaded = object.instantiate_in(&kernel, &memory()).unwrap();
    let id = local.find(Kind::STRUCT, "task").unwrap();
    assert_eq!(call(&loaded, "local_id", &[]), id.into());
}

/// Against its own types nothing changes; without any, loading says what is needed.
#[test]
fn core_against_its_own_types_changes_nothing() {
    let Some(file) = own("core") else {
        return;
    };
    let object = Object::parse(&file).unwrap();
    let kernel = Kernel {
        btf: Some(Btf::parse(section(&file, ".BTF")).unwrap()),
        ..Kernel::default()
    };
    let loaded = object.instantiate_in(&kernel, &memory()).unwrap();
    let elf = {
        use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
        let elf = object::File::parse(&*file).unwrap();
        let code = elf.section_by_name("fentry/workload_call").unwrap();
        let symbols = elf
            .symbols()
            .filter(|s| s.section_index() == Some(code.index()));
        let data = code.data().unwrap();
        symbols
            .filter(|s| s.size() > 0)
            .map(|s| {
                let start = s.address() as usize;
                let bytes = &data[start..start + s.size() as usize];
                (s.name().unwrap().to_owned(), bytes.to_vec())
            })
            .collect::<Vec<_>>()
    };
    for (name, code) in elf {
        // What asks about types that are not there, or for the kernel's numbers, is made to change, and a bit-field may be
        // loaded by loads of several sizes.
        if matches!(
            &*name,
            "kernel_id" | "type_exists" | "read_flags" | "read_state" | "read_level" | "by_probe"
        ) {
            continue;
        }
        let insns = &program(&loaded, &name).insns;
        let bytes: Vec<u8> = insns.iter().flat_map(|insn| insn.to_bytes()).collect();
        assert_eq!(bytes, code, "{name}");
    }
    let error = object.instantiate(&memory()).unwrap_err().to_string();
    assert!(error.contains("hand its BTF to the loader"), "{error}");
}

/// What the kernel does not have is named where the program can get to it.
#[test]
fn core_names_what_is_missing() {
    let (Some(object), Some(kernel)) = (own("core_bad"), own("core_kernel")) else {
        return;
    };
    let kernel = Kernel {
        btf: Some(Btf::parse(section(&kernel, ".BTF")).unwrap()),
        ..Kernel::default()
    };
    let object = Object::parse(&object).unwrap();
    let loaded = object.instantiate_in(&kernel, &memory()).unwrap();
    for (name, wanted) in [
        (
            "no_field",
            &[
                "program `no_field`",
                "section `fentry/workload_call`, offset 0x0",
                "FIELD_BYTE_OFFSET of struct task::gone (0:0)",
                "the kernel has none",
            ][..],
        ),
        (
            "no_nested_field",
            &["struct task___nested::in.deep[1].missing (0:0:0:1:0)"],
        ),
        (
            "no_enumerator",
            &["ENUMVAL_VALUE of enum color::VIOLET (0)"],
        ),
        (
            "other_size",
            &[
                "struct task::priority (0:1)",
                "8 bytes in the object and 4 in the kernel",
            ],
        ),
    ] {
        let error = program(&loaded, name).clone().validate().unwrap_err();
        let message = error.to_string();
        for wanted in wanted {
            assert!(message.contains(wanted), "{name}: `{wanted}`: {message}");
        }
    }
    assert_eq!(call(&loaded, "two", &[]), 0, "it asks first");
}

/// Two types of a name that answer differently are none to choose from.
#[test]
fn core_does_not_guess() {
    let (Some(object), Some(kernel)) = (own("core_bad"), own("core_twins")) else {
        return;
    };
    let kernel = Kernel {
        btf: Some(Btf::parse(section(&kernel, ".BTF")).unwrap()),
        ..Kernel::default()
    };
    let object = Object::parse(&object).unwrap();
    let error = object.instantiate_in(&kernel, &memory()).unwrap_err();
    let message = error.to_string();
    for wanted in [
        "section `fentry/workload_call`",
        "struct twin::x (0:0)",
        "both are called that and answer differently: 0x0 and 0x4",
    ] {
        assert!(message.contains(wanted), "`{wanted}`: {message}");
    }
}

/// `bpf_core_type_matches`, which clang has since version 16: made of questions whether types exist.
#[test]
fn types_match_member_by_member() {
    /// Where the records are, and their numbers, in `.BTF.ext` (`struct btf_ext_header`, `struct bpf_core_relo`).
    const CORE_OFFSET_AT: usize = 24;
    const TYPE_EXISTS: u32 = 8;
    const TYPE_MATCHES: u32 = 12;
    let (Some(mut file), Some(kernel)) = (own("core_matches"), own("core_kernel")) else {
        return;
    };
    let kernel = Kernel {
        btf: Some(Btf::parse(section(&kernel, ".BTF")).unwrap()),
        ..Kernel::default()
    };
    let ask = |file: &[u8]| {
        let object = Object::parse(file).unwrap();
        let loaded = object.instantiate_in(&kernel, &memory()).unwrap();
        let programs = object.programs().map(|(name, _)| name);
        programs
            .map(|name| (name.to_owned(), call(&loaded, name, &[])))
            .collect::<Vec<_>>()
    };
    let existing = ask(&file);
    assert!(
        existing.iter().all(|(_, exists)| *exists == 1),
        "{existing:?}"
    );
    let data = section(&file, ".BTF.ext").to_vec();
    let at = file.windows(data.len()).position(|w| w == data).unwrap();
    let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize;
    let start = at + word(4) + word(CORE_OFFSET_AT);
    let end = start + word(CORE_OFFSET_AT + 4);
    let mut changed = 0;
    for place in (start..end).step_by(4) {
        if file[place..place + 4] == TYPE_EXISTS.to_le_bytes() && (place - start) % 16 == 8 {
            file[place..place + 4].copy_from_slice(&TYPE_MATCHES.to_le_bytes());
            changed += 1;
        }
    }
    assert_eq!(changed, existing.len());
    for (name, matches) in ask(&file) {
        assert_eq!(matches == 1, name.starts_with("same"), "{name}: {matches}");
    }
}

#[test]
fn functions_by_address_and_name() {
    let Some(object) = own("functions") else {
        return;
    };
    let object = Object::parse(&object).unwrap();
    let programs: Vec<_> = object.programs().map(|(name, _)| name).collect();
    assert_eq!(programs, ["loops", "calls"]);
    let loaded = object.instantiate(&memory()).unwrap();
    // 0 + 1 + 2 + 3 + 4, and 0 to 3 until it stops.
    assert_eq!(call(&loaded, "loops", &[5]), 10_004);
    assert_eq!(call(&loaded, "calls", &[7]), 14 + 2100 + 210_000 + 8 + 17);
}

static KERNEL_ADD_ONE: Helper = Helper::new(
    0,
    "kernel_add",
    &[Argument::Scalar],
    Returns::Scalar,
    Function::Plain(kernel_add),
);

#[test]
fn externs_are_found() {
    let (Some(object), Some(kernel)) = (own("externs"), own("externs_kernel")) else {
        return;
    };
    let object = Object::parse(&object).unwrap();
    let kernel = extern_kernel(&kernel);
    let loaded = object.instantiate_in(&kernel, &memory()).unwrap();
    assert_eq!(call(&loaded, "functions", &[3, 4]), 1007);
    assert_eq!(call(&loaded, "variables", &[]), 5);
    let start = CLOCK.as_ptr().expose_provenance() as u64;
    assert_eq!(call(&loaded, "addresses", &[]), start);
    for (which, want) in (0..).zip([
        0x6000c,
        1,
        0,
        2,
        u64::from(b'n'),
        u64::MAX,
        u64::from(b'a') + 256 * u64::from(b'c'),
    ]) {
        assert_eq!(call(&loaded, "settings", &[which]), want, "setting {which}");
    }
    assert_eq!(call(&loaded, "guarded", &[9]), 9);
    // The same, without types to compare.
    let untyped = Kernel {
        btf: None,
        ..kernel
    };
    let loaded = object.instantiate_in(&untyped, &memory()).unwrap();
    assert_eq!(call(&loaded, "functions", &[3, 4]), 1007);
    assert_eq!(call(&loaded, "variables", &[]), 5);
}

/// A change to a kernel, and what has to be said about it.
type Row = (fn(&mut Kernel<'_>), &'static [&'static str]);

#[test]
fn externs_that_do_not_fit_are_named() {
    let (Some(object), Some(file)) = (own("externs"), own("externs_kernel")) else {
        return;
    };
    let object = Object::parse(&object).unwrap();
    let rows: [Row; 7] = [
        (
            |kernel| kernel.functions.clear(),
            &[
                "section `fentry/workload_call`",
                "symbol `kernel_add`",
                "no function",
                "__weak",
            ],
        ),
        (
            |kernel| kernel.functions = vec![&KERNEL_ADD_ONE],
            &[
                "symbol `kernel_add`",
                "2 parameters, the kernel's function has 1",
            ],
        ),
        (
            |kernel| kernel.variables.clear(),
            &["symbol `kernel_clock`", "no variable"],
        ),
        (
            |kernel| {
                let btf = kernel.btf.as_ref().unwrap();
                let int = btf.ids().find(|&id| btf.kind(id) == Some(Kind::INT));
                kernel.variables[0].type_id = int.unwrap();
            },
            &["symbol `kernel_clock`", "its type is not"],
        ),
        (
            |kernel| _ = kernel.settings.remove("CONFIG_LARGE"),
            &["section `.kconfig`", "variable `CONFIG_LARGE`", "__weak"],
        ),
        (
            |kernel| _ = kernel.settings.insert("CONFIG_BOOL", "m"),
            &[
                "variable `CONFIG_BOOL`",
                "the value is m, the variable a bool (y or n)",
            ],
        ),
        (
            |kernel| _ = kernel.settings.insert("LINUX_KERNEL_VERSION", "0x80000000"),
            &[
                "variable `LINUX_KERNEL_VERSION`",
                "a signed integer of 4 bytes",
            ],
        ),
    ];
    for (change, wanted) in rows {
        let mut kernel = extern_kernel(&file);
        change(&mut kernel);
        let result = object.instantiate_in(&kernel, &memory());
        let message = result.map(drop).unwrap_err().to_string();
        for wanted in wanted {
            assert!(message.contains(wanted), "`{wanted}` is not in: {message}");
        }
    }
}

#[test]
fn a_prototype_is_compared() {
    // The kernel's type of the variable in place of the function's.
    let (Some(object), Some(mut file)) = (own("externs"), own("externs_kernel")) else {
        return;
    };
    let object = Object::parse(&object).unwrap();
    let (at, prototype) = {
        let data = section(&file, ".BTF");
        let btf = Btf::parse(data).unwrap();
        let function = btf.find(Kind::FUNC, "kernel_add").unwrap();
        let prototype = btf.referent(function).unwrap();
        // FUNC_PROTO: name, info, return type, then (name, type) a parameter. Find it by its own bytes.
        let whole = file.windows(data.len()).position(|w| w == data).unwrap();
        (whole, prototype)
    };
    let variable = {
        let btf = Btf::parse(section(&file, ".BTF")).unwrap();
        btf.referent(btf.find(Kind::VAR, "kernel_clock").unwrap())
            .unwrap()
    };
    // The FUNC's third word is its prototype's id, and only it follows an info word of kind 12, global.
    let wanted = [(12u32 << 24 | 1).to_le_bytes(), prototype.to_le_bytes()].concat();
    let place = file[at..].windows(8).position(|w| w == wanted).unwrap() + at + 4;
    file[place..place + 4].copy_from_slice(&variable.to_le_bytes());
    let kernel = extern_kernel(&file);
    let error = object.instantiate_in(&kernel, &memory()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("symbol `kernel_add`: its prototype is not"),
        "{message}"
    );
}

#[test]
fn a_weak_function_is_tested_first() {
    let Some(object) = own("externs_unguarded") else {
        return;
    };
    let object = Object::parse(&object).unwrap();
    let loaded = object.instantiate(&memory()).unwrap();
    let error = loaded.programs[0].clone().validate().unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("weak kernel function `kernel_gone`, which the kernel does not have"),
        "{message}"
    );
}

/// Maps that are in others from the start, and a program in a program array.
#[test]
fn maps_hold_what_c_says() {
    let Some(object) = own("maps") else {
        return;
    };
    let object = Object::parse(&object).unwrap();
    let loaded = object.instantiate(&memory()).unwrap();
    assert_eq!(call(&loaded, "count", &[0, 5]), 1, "nothing is in slot 0");
    assert_eq!(
        call(&loaded, "count", &[1, 5]),
        100,
        "by_key holds the other"
    );
    assert_eq!(call(&loaded, "count", &[3, 7]), 107);
    assert_eq!(call(&loaded, "count", &[4, 5]), 1);
    let map = |name: &str| {
        let found = loaded.maps.iter().find(|m| m.definition().name == name);
        found.unwrap().clone()
    };
    let mut value = [0; 8];
    map("inner_one")
        .lookup(&0u32.to_ne_bytes(), &mut value)
        .unwrap();
    assert_eq!(u64::from_ne_bytes(value), 5);
    let inner = map("later").inner_definition().cloned().unwrap();
    assert_eq!(
        (&*inner.name, inner.max_entries, inner.value_size),
        ("later.inner", 8, 4)
    );

    let [ProgramSlot { map, slot, program }] = loaded.program_slots[..] else {
        panic!("{:?}", loaded.program_slots);
    };
    let (map, program) = (&loaded.maps[map], &loaded.programs[program]);
    assert_eq!(
        (&*map.definition().name, slot, &*program.name),
        ("jumps", 2, "target_two")
    );
    assert_eq!(
        call(&loaded, "jump", &[]),
        u64::from(u32::MAX),
        "it is for the host to put in"
    );
    let target = TailTarget {
        program: validated(&loaded, "target_two"),
        entry: AtomicU64::new(0),
        keep: None,
    };
    map.set_program(slot, Some(Arc::new(target))).unwrap();
    assert_eq!(
        call(&loaded, "jump", &[]),
        221,
        "10, 10, and 1 by the target"
    );
    // The program holds the map, and the map the program.
    map.set_program(slot, None).unwrap();
}

#[test]
fn pinned_maps_are_shared() {
    let (Some(object), Some(other)) = (own("maps"), own("maps_other")) else {
        return;
    };
    let [object, other] = [object, other].map(|file| Object::parse(&file).unwrap());
    let kernel = Kernel::default();
    let [first, second] = [&object, &other].map(|o| o.instantiate_in(&kernel, &memory()).unwrap());
    assert_eq!(
        kernel.pins.lock().unwrap().len(),
        1,
        "only what asks for it"
    );
    call(&first, "share", &[5, 77]);
    assert_eq!(call(&second, "look", &[5]), 77);
    assert_eq!(call(&second, "look", &[6]), u64::MAX);
    // Another instance finds it too, and has its other maps for itself.
    let third = object.instantiate_in(&kernel, &memory()).unwrap();
    call(&third, "share", &[6, 78]);
    assert_eq!(call(&second, "look", &[6]), 78);
    let own = |loaded: &LoadedObject| {
        let found = loaded
            .maps
            .iter()
            .find(|m| m.definition().name == "inner_one");
        found.unwrap().handle()
    };
    assert_ne!(own(&first), own(&third));

    // Without a place for pins, each has its own.
    let alone = other.instantiate(&memory()).unwrap();
    assert_eq!(call(&alone, "look", &[5]), u64::MAX);

    let mut definition = second.maps[0].definition().clone();
    definition.max_entries = 9;
    let different = Map::create(definition, &memory()).unwrap();
    let kernel = Kernel {
        pins: Mutex::new(vec![different]),
        ..Kernel::default()
    };
    let error = other.instantiate_in(&kernel, &memory()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "map `shared` is pinned already and its max_entries is 9, here 8; give it another name, or the same definition"
    );
}

/// A pinned map is also what a map of maps holds from the start: the one that an earlier object pinned.
#[test]
fn a_pinned_map_is_an_inner_one() {
    let files = [own("pinned_inner"), own("pinned_inner_other")];
    let [Some(object), Some(other)] = files else {
        return;
    };
    let [object, other] = [object, other].map(|file| Object::parse(&file).unwrap());
    let kernel = Kernel::default();
    let load = |object: &Object| object.instantiate_in(&kernel, &memory()).unwrap();
    let (first, second) = (load(&object), load(&other));
    let pins = kernel.pins.lock().unwrap();
    let names = pins.iter().map(|map| &*map.definition().name);
    assert_eq!(Vec::from_iter(names), ["first"]);
    for loaded in [&first, &second] {
        let outer = loaded
            .maps
            .iter()
            .find(|map| map.inner(pins[0].handle()).is_some());
        let outer = outer.expect("a map of maps holds the pinned map");
        assert_eq!(outer.inner_maps().count(), 1);
    }
    drop(pins);
    assert_eq!(call(&first, "add", &[1, 5]), 5);
    assert_eq!(call(&second, "look", &[0]), 5);
    // A second instance has its own map of maps, with the same map in it.
    let third = load(&object);
    assert_eq!(call(&third, "add", &[1, 6]), 11);
    assert_eq!(call(&second, "look", &[0]), 11);
    assert_eq!(
        call(&third, "add", &[0, 1]),
        u64::MAX,
        "only slot 1 holds a map"
    );
    // It stays when the objects that it came with are gone.
    drop((first, third));
    assert_eq!(call(&load(&object), "add", &[1, 0]), 11);
    // Without a place for pins, each has its own.
    let alone = other.instantiate(&memory()).unwrap();
    assert_eq!(call(&alone, "look", &[0]), 0);
}

/// An object that is not loaded to the end pins nothing.
#[test]
fn what_fails_is_not_pinned() {
    let Some(object) = own("maps") else {
        return;
    };
    let object = Object::parse(&object).unwrap();
    let kernel = Kernel::default();
    let short = HeapMemory::with_limit(64);
    assert!(object.instantiate_in(&kernel, &short).is_err());
    assert!(kernel.pins.lock().unwrap().is_empty());
    let loaded = object.instantiate_in(&kernel, &memory()).unwrap();
    let shared = kernel.pinned("shared").unwrap();
    assert!(loaded.maps.iter().any(|map| Arc::ptr_eq(map, &shared)));
    shared.update(&[1; 4], &[2; 8], UpdateFlags::Any).unwrap();
}

/// The table that tests hand in is one that the validator takes.
#[test]
fn tables_are_sorted() {
    assert!(PROBE.is_sorted_by_key(|helper| helper.number));
    assert!(HELPERS.iter().all(|helper| helper.name.starts_with("bpf_")));
}
