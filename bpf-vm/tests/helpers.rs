// SPDX-License-Identifier: MIT OR Apache-2.0
//! Helpers that need more than a text program of the suite: an attachment, a per-CPU variable, read-only maps; and what the
//! interpreter does not let through.
mod support;

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use bpf_vm::{
    asm::assemble,
    attachment::Attachment,
    helpers::{HELPERS, missed_spin_locks},
    interp::FaultKind,
    map::{HeapMemory, Map, MapDefinition, MapKind, UpdateFlags},
    program::{KernelVariable, ValidatedProgram},
};
use support::{
    Buffer, array,
    host::{self, CPUS, PER_CPU},
    interpret, interpret_for, program, run_all, run_all_with, unchecked,
};

/// Runs by every engine; r0 and the memory afterwards.
fn run(attachment: &Attachment, text: &str, memory: &[u64]) -> (i64, Vec<u64>) {
    host::register();
    let bytes: Vec<u8> = memory.iter().flat_map(|word| word.to_le_bytes()).collect();
    let done = run_all_with(
        attachment,
        &program(text, &[]),
        &bytes,
        || {},
        Vec::new,
        |_| (),
    );
    let (outcome, after) = done.unwrap_or_else(|error| panic!("{error}\n{text}"));
    let words = after.as_chunks().0.iter();
    (
        outcome.r0 as i64,
        words.map(|word| u64::from_le_bytes(*word)).collect(),
    )
}

fn fault(text: &str, maps: &[Arc<Map>], memory: &[u8]) -> FaultKind {
    host::register();
    let done = interpret(&program(text, maps), &Buffer::new(memory));
    done.expect_err(text).kind
}

const ENTRY: Attachment = Attachment {
    function: 0xffff_ffff_8000_1000,
    cookie: 0x1122_3344_5566_7788,
    arguments: 3,
    has_result: 0,
};
const EXIT: Attachment = Attachment {
    has_result: 1,
    ..ENTRY
};

#[test]
fn an_attachment_says_what_the_function_is() {
    let ask = |number| format!("call {number}\nexit");
    for attachment in [ENTRY, EXIT] {
        let ask = |number| run(&attachment, &ask(number), &[0; 4]).0 as u64;
        assert_eq!(ask(173), ENTRY.function);
        assert_eq!(ask(174), ENTRY.cookie);
        assert_eq!(ask(185), 3);
    }
    assert_eq!(run(&Attachment::NONE, &ask(174), &[0]).0, 0);
}

#[test]
fn arguments_and_results_are_where_the_attachment_says() {
    // r1 is the context; the value is written to the stack and comes back in word 4.
    let argument = |number: i64| {
        format!(
            "r6 = r1
            *(u64 *)(r10 - 8) = 77
            r2 = {number}
            r3 = r10
            r3 += -8
            call 183
            r1 = *(u64 *)(r10 - 8)
            *(u64 *)(r6 + 32) = r1
            exit"
        )
    };
    let result = "r6 = r1
        *(u64 *)(r10 - 8) = 77
        r2 = r10
        r2 += -8
        call 184
        r1 = *(u64 *)(r10 - 8)
        *(u64 *)(r6 + 32) = r1
        exit";
    let words = [10, 11, 12, 13, 0];
    for (attachment, text, r0, value) in [
        (ENTRY, argument(0).as_str(), 0, 10),
        (ENTRY, &argument(2), 0, 12),
        (ENTRY, &argument(3), -22, 77),
        (EXIT, &argument(3), -22, 77),
        (ENTRY, &argument(-1), -22, 77),
        (Attachment::NONE, &argument(0), -22, 77),
        (ENTRY, result, -95, 77),
        (EXIT, result, 0, 13),
        (Attachment::NONE, result, -95, 77),
    ] {
        let (is, after) = run(&attachment, text, &words);
        assert_eq!((is, after[4]), (r0, value), "{attachment:?}\n{text}");
    }
}

#[test]
fn the_interpreter_looks_whether_the_context_has_what_the_attachment_says() {
    host::register();
    let program = program("call 185\nexit", &[]);
    let done = |attachment, words: usize| {
        interpret_for(&attachment, &program, &Buffer::new(&vec![0; 8 * words]))
    };
    assert!(done(ENTRY, 3).is_ok());
    assert!(done(EXIT, 4).is_ok());
    assert!(matches!(
        done(EXIT, 3).unwrap_err().kind,
        FaultKind::Argument { number: 1, .. }
    ));
}

#[test]
fn each_core_has_its_copy_of_a_per_cpu_variable() {
    host::register();
    let variable = KernelVariable {
        name: "counter".into(),
        address: core::ptr::from_ref(&PER_CPU[0]).expose_provenance() as u64,
        bytes: 8,
        type_id: 0,
    };
    let with = |text: &str| -> Arc<ValidatedProgram> {
        let mut program = unchecked(assemble(text).unwrap(), &[]);
        program.variables = vec![variable.clone()];
        Arc::new(program.validate().unwrap())
    };
    let of = |cpu: u32| {
        let text = format!(
            "r1 = var[0]
            r2 = {cpu}
            call 153
            if r0 == 0 goto out
            r0 = *(u64 *)(r0 + 0)
            out: exit"
        );
        run_all(&with(&text), &[], || {}, Vec::new).unwrap().0.r0
    };
    assert_eq!(
        [0, 1, 2, 3, 4, u32::MAX >> 1].map(of),
        [100, 101, 102, 0, 0, 0]
    );
    let own = with("r1 = var[0]\ncall 154\nr0 = *(u64 *)(r0 + 0)\nexit");
    assert_eq!(run_all(&own, &[], || {}, Vec::new).unwrap().0.r0, 100);
    // Not the one that no core has, and not what lies beside.
    let beside = with("r1 = var[0]\nr2 = 2\ncall 153\nr0 = *(u64 *)(r0 + 8)\nexit");
    let fault = interpret(&beside, &Buffer::new(&[])).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Memory { .. }), "{fault}");
    let no_variable = with("r1 = 0\ncall 154\nexit");
    let fault = interpret(&no_variable, &Buffer::new(&[])).unwrap_err();
    assert!(fault.to_string().contains("bpf_this_cpu_ptr"), "{fault}");
    assert_eq!(PER_CPU.len(), CPUS as usize);
}

/// A map of one value that programs only read.
fn constant(value: &[u8]) -> Arc<Map> {
    let definition = MapDefinition {
        name: "rodata".into(),
        kind: MapKind::ARRAY,
        key_size: 4,
        value_size: value.len() as u32,
        max_entries: 1,
        flags: MapDefinition::RDONLY_PROG,
    };
    let map = Map::create(definition, &HeapMemory::with_limit(1 << 16)).unwrap();
    let start = map.value_address(0).unwrap() as usize;
    for (index, byte) in value.iter().enumerate() {
        let at = core::ptr::with_exposed_provenance_mut(start + index);
        // SAFETY: a byte of the value, which nobody else accesses yet.
        unsafe { AtomicU8::from_ptr(at) }.store(*byte, Relaxed);
    }
    map.freeze();
    map
}

#[test]
fn a_string_is_in_memory_that_nobody_else_writes() {
    host::register();
    let compare = "r2 = 4
        r3 = map[0][0]+0
        call 182
        exit";
    let read_only = program(compare, &[constant(b"abc\0")]);
    let r0 = |bytes: &[u8]| run_all(&read_only, bytes, || {}, Vec::new).unwrap().0.r0 as i64;
    assert_eq!([r0(b"abc\0"), r0(b"abd\0"), r0(b"abb\0")], [0, 1, -1]);
    let third = |kind| matches!(kind, FaultKind::Argument { number: 3, .. });
    // A map that others may write; a string without an end; the context; nothing at all.
    assert!(third(fault(compare, &[array(4, 1)], b"abc\0")));
    assert!(third(fault(compare, &[constant(b"abcd1234")], b"abc\0")));
    assert!(third(fault(
        "r2 = 4\nr3 = r1\ncall 182\nexit",
        &[],
        b"abc\0\0\0\0\0"
    )));
    assert!(third(fault(
        "r2 = 4\nr3 = 0\ncall 182\nexit",
        &[],
        b"abc\0"
    )));
    // The same for a format.
    assert!(third(fault(
        "r2 = 4\nr3 = r1\nr4 = 0\nr5 = 0\ncall 165\nexit",
        &[],
        &[0; 8]
    )));
}

#[test]
fn the_interpreter_refuses_memory_that_a_helper_may_not_touch() {
    for (text, argument) in [
        ("r2 = 9\ncall 16\nexit", 1),                  // past the end
        ("r2 = 0\ncall 16\nexit", 2),                  // no room for a name
        ("r1 = 0\nr2 = 8\nr3 = 0\ncall 113\nexit", 1), // nowhere
        ("r2 = 9\nr3 = 0\ncall 115\nexit", 1),
        ("r2 = 8\nr3 = r10\ncall 177\nexit", 0), // r4 is 0: no data, whatever r3 is
        ("r2 = 8\nr3 = r10\nr4 = 8\ncall 177\nexit", 3), // above the stack
        ("r1 += 4\nr2 = 0\ncall 183\nexit", 1),  // not the context
        ("r2 = 0\nr3 = r10\nr3 += -4\ncall 183\nexit", 3), // not aligned
        ("r1 = 0\ncall 93\nexit", 1),
        ("r1 += 2\ncall 93\nexit", 1), // not aligned
    ] {
        match (
            argument,
            interpret(&program(text, &[]), &Buffer::new(&[0; 8])),
        ) {
            (0, done) => assert!(done.is_ok(), "{text}"),
            (_, Err(fault)) => match fault.kind {
                FaultKind::Argument { number, .. } => assert_eq!(number, argument, "{text}"),
                _ => panic!("{fault}\n{text}"),
            },
            (_, Ok(_)) => panic!("not refused:\n{text}"),
        }
    }
}

#[test]
fn a_lock_is_given_back_whatever_the_program_does() {
    let map = array(16, 1);
    let value = || {
        let mut bytes = [0; 16];
        map.lookup(&[0; 4], &mut bytes).unwrap();
        bytes
    };
    let take = "r6 = map[0][0]+0\nr1 = r6\ncall 93\n";
    let before = missed_spin_locks();
    for (rest, first) in [
        ("exit", true),                                     // not given back
        ("r1 = r6\ncall 93\nexit", true),                   // taken again
        ("r1 = r6\nr1 += 4\ncall 93\nexit", false),         // a second one
        ("r1 = r6\nr1 += 4\ncall 94\nexit", false),         // another one given back
        ("r1 = r6\ncall 94\nr1 = r6\ncall 94\nexit", true), // given back twice
    ] {
        let address = map.value_address(0).unwrap() + if first { 0 } else { 4 };
        let kind = fault(&format!("{take}{rest}"), std::slice::from_ref(&map), &[]);
        assert_eq!(kind, FaultKind::Lock(address), "{rest}");
        assert_eq!(value(), [0; 16], "{rest}");
    }
    // A fault in the middle.
    let kind = fault(
        &format!("{take}r0 = *(u64 *)(r6 + 64)\nexit"),
        std::slice::from_ref(&map),
        &[],
    );
    assert!(matches!(kind, FaultKind::Memory { .. }));
    assert_eq!(value(), [0; 16]);
    assert_eq!(missed_spin_locks(), before);
}

/// An update while the lock is held leaves the lock alone, also where a hash uses the element again; the host reads it
/// as 0.
#[test]
fn an_update_leaves_a_lock_as_it_is() {
    host::register();
    let before = missed_spin_locks();
    for (kind, at) in [
        (MapKind::ARRAY, 0),
        (MapKind::ARRAY, 12),
        (MapKind::HASH, 4),
    ] {
        let definition = MapDefinition {
            name: "locked".into(),
            kind,
            key_size: 4,
            value_size: 16,
            max_entries: 1,
            flags: 0,
        };
        let map = Map::create_locked(definition, at, &HeapMemory::with_limit(1 << 16)).unwrap();
        let (key, ones) = ([0; 4], [0x11; 16]);
        // In a hash each update takes another element; the one with the lock comes again while it is held.
        let update =
            "r1 = map[0]\nr2 = r10\nr2 += -4\nr3 = r10\nr3 += -24\nr4 = 0\ncall 2\nr7 |= r0\n";
        let updates = update.repeat(24);
        let text = format!(
            "*(u32 *)(r10 - 4) = 0
            r7 = 0x2222222222222222 ll
            *(u64 *)(r10 - 24) = r7
            *(u64 *)(r10 - 16) = r7
            r7 = 0
            r1 = map[0]
            r2 = r10
            r2 += -4
            call 1
            if r0 == 0 goto out
            r6 = r0
            r6 += {at}
            r1 = r6
            call 93
            {updates}r8 = *(u32 *)(r6 + 0)
            r1 = r6
            call 94
            r0 = *(u32 *)(r6 + 0)
            r0 <<= 1
            r0 |= r7
            if r8 != 0 goto out
            r0 = -1
            out: exit"
        );
        let reset = || map.update(&key, &ones, UpdateFlags::Any).unwrap();
        let value = || {
            let mut value = vec![0xff; 16];
            map.lookup(&key, &mut value).unwrap();
            value
        };
        let program = program(&text, std::slice::from_ref(&map));
        let (outcome, _) = run_all(&program, &[], reset, value).unwrap();
        assert_eq!(outcome.r0, 0, "{kind} {at}");
        let mut want = vec![0x22; 16];
        want[at as usize..at as usize + 4].fill(0);
        assert_eq!(value(), want, "{kind} {at}");
    }
    assert_eq!(missed_spin_locks(), before);
}

/// `bpf_for_each_map_elem` visits each element of arrays and hashes once, in a per-CPU map the running core's values.
#[test]
fn walks_over_every_kind_that_has_them() {
    host::register();
    let create = |kind, key_size, value_size, max_entries, flags| {
        let definition = MapDefinition {
            name: "walked".into(),
            kind,
            key_size,
            value_size,
            max_entries,
            flags,
        };
        Map::create(definition, &HeapMemory::with_limit(1 << 16)).unwrap()
    };
    // Keys to the callback's context, and thousands of values; each value grows by one.
    let text = "*(u64 *)(r10 - 8) = 0
        r1 = map[0]
        r2 = func each
        r3 = r10
        r3 += -8
        r4 = 0
        call 164
        r1 = *(u64 *)(r10 - 8)
        r1 <<= 8
        r0 += r1
        exit
        each: r0 = *(u64 *)(r3 + 0)
        r0 += 1
        *(u64 *)(r3 + 0) = r0
        r0 *= 0
        r5 = *(u32 *)(r2 + 0)
        r1 = *(u64 *)(r3 + 0)
        r1 *= 1000
        r1 += r5
        r5 = *(u64 *)(r4 + 0)
        r5 += r1
        *(u64 *)(r4 + 0) = r5
        exit";
    for kind in [
        MapKind::ARRAY,
        MapKind::HASH,
        MapKind::LRU_HASH,
        MapKind::PERCPU_ARRAY,
        MapKind::PERCPU_HASH,
        MapKind::LRU_PERCPU_HASH,
    ] {
        let map = create(kind, 4, 8, 3, 0);
        let words = map.host_value_size() / 8;
        // Key n has the value 10 n + 1 on the first core, 100 more on each one after it.
        let start = |key: u32, word: usize| u64::from(10 * key + 1) + 100 * word as u64;
        let reset = || {
            for key in 0..3 {
                let value: Vec<u8> = (0..words)
                    .flat_map(|word| start(key, word).to_ne_bytes())
                    .collect();
                map.update(&key.to_ne_bytes(), &value, UpdateFlags::Any)
                    .unwrap();
            }
        };
        let state = || {
            let mut all = vec![0; 3 * 8 * words];
            for (key, value) in (0..3_u32).zip(all.chunks_mut(8 * words)) {
                map.lookup(&key.to_ne_bytes(), value).unwrap();
            }
            all
        };
        let program = program(text, std::slice::from_ref(&map));
        let (outcome, _) = run_all(&program, &[], reset, state).unwrap();
        // The host's running core.
        let own = 0;
        let sum: u64 = (0..3)
            .map(|key| 1000 * (start(key, own) + 1) + u64::from(key))
            .sum();
        assert_eq!(outcome.r0, 3 + (sum << 8), "{kind}");
        let want = (0..3).flat_map(|key| (0..words).map(move |word| (key, word)));
        let want: Vec<u8> = want
            .flat_map(|(key, word)| (start(key, word) + u64::from(word == own)).to_ne_bytes())
            .collect();
        assert_eq!(state(), want, "{kind}");
    }
    for (kind, sizes) in [
        (MapKind::QUEUE, (0, 8, 1, 0)),
        (MapKind::STACK, (0, 8, 1, 0)),
        (MapKind::LPM_TRIE, (8, 8, 1, MapDefinition::NO_PREALLOC)),
        (MapKind::STACK_TRACE, (4, 8, 1, 0)),
        (MapKind::RINGBUF, (0, 0, 4096, 0)),
        (MapKind::TASK_STORAGE, (4, 8, 0, MapDefinition::NO_PREALLOC)),
    ] {
        let (key_size, value_size, max_entries, flags) = sizes;
        let program = program(
            text,
            &[create(kind, key_size, value_size, max_entries, flags)],
        );
        let (outcome, _) = run_all(&program, &[], || (), Vec::new).unwrap();
        assert_eq!(outcome.r0 as i64, -22, "{kind}");
    }
}

/// What the helpers say of a map that programs only read.
#[test]
fn programs_change_no_map_that_they_only_read() {
    host::register();
    let definition = |kind, key_size| MapDefinition {
        name: "read".into(),
        kind,
        key_size,
        value_size: 8,
        max_entries: 1,
        flags: MapDefinition::RDONLY_PROG,
    };
    let create = |kind, key_size| {
        Map::create(definition(kind, key_size), &HeapMemory::with_limit(1 << 16)).unwrap()
    };
    let maps = [create(MapKind::HASH, 4), create(MapKind::QUEUE, 0)];
    maps[0].update(&[0; 4], &[5; 8], UpdateFlags::Any).unwrap();
    for call in [
        "r1 = map[0]\nr2 = r10\nr2 += -8\nr3 = r2\nr4 = 0\ncall 2",
        "r1 = map[0]\nr2 = r10\nr2 += -8\ncall 3",
        "r1 = map[1]\nr2 = r10\nr2 += -8\nr3 = 0\ncall 87",
        "r1 = map[1]\nr2 = r10\nr2 += -8\ncall 88",
    ] {
        let program = program(&format!("*(u64 *)(r10 - 8) = 0\n{call}\nexit"), &maps);
        let (outcome, _) = run_all(&program, &[], || (), Vec::new).unwrap();
        assert_eq!(outcome.r0 as i64, -1, "{call}");
    }
    let mut value = [0; 8];
    maps[0].lookup(&[0; 4], &mut value).unwrap();
    assert_eq!(value, [5; 8]);
}

#[test]
fn what_is_printed_reaches_the_host() {
    host::register();
    let text = "*(u64 *)(r10 - 8) = 0x6425 # %d
        r1 = r10
        r1 += -8
        r2 = 8
        r3 = -123
        call 6
        exit";
    let before = host::PRINTED.load(Relaxed);
    let done = interpret(&program(text, &[]), &Buffer::new(&[]));
    assert_eq!(done.unwrap().r0, 4);
    assert_eq!(host::PRINTED.load(Relaxed) - before, 4);
}

/// Linux's `bpf_helper_defs.h`, where libbpf is installed, has the same numbers and names, and as many arguments.
#[test]
fn numbers_names_and_arguments_are_linuxs() {
    let Ok(header) = std::fs::read_to_string("/usr/include/bpf/bpf_helper_defs.h") else {
        println!("skipped: libbpf's headers are not installed");
        return;
    };
    // static RETURN (* const bpf_NAME)(ARGUMENTS) = (void *) NUMBER;
    let mut checked = 0;
    for line in header.lines().filter(|line| line.starts_with("static ")) {
        let number = line.rsplit(' ').next().unwrap().trim_end_matches(';');
        let Ok(helper) = HELPERS.binary_search_by_key(&number.parse().unwrap(), |h| h.number)
        else {
            continue;
        };
        let helper = &HELPERS[helper];
        let name = line.split("bpf_").find(|part| part.contains(")(")).unwrap();
        let (name, arguments) = name.split_once(")(").unwrap();
        assert_eq!(helper.name, format!("bpf_{name}"), "{line}");
        let arguments = arguments
            .split_once(") =")
            .map_or(line.rsplit_once(")(").unwrap().1, |a| a.0);
        let count = match arguments.trim() {
            "void" => 0,
            list => list.split(',').count(),
        };
        // trace_printk's last three are `...`.
        let own = helper.arguments.len() - if helper.number == 6 { 2 } else { 0 };
        assert_eq!(own, count, "{line}");
        checked += 1;
    }
    assert_eq!(checked, HELPERS.len());
}
