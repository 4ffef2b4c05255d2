// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nothing on the run path allocates or frees: no operation on a map once it is there, no run of a program, no helper. The
//! allocator of this binary counts, by thread.
mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeSet,
    sync::Arc,
};

use bpf_vm::{
    attachment::Attachment,
    helpers::HELPERS,
    interp::Interpreter,
    isa::Op,
    map::{Cursor, HeapMemory, Map, MapDefinition, MapKind, UpdateFlags, ValueWords},
    program::{KernelVariable, ValidatedProgram},
    suite,
};
use support::{BUDGET, Buffer, host, unchecked};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: each method is the system allocator's; counting touches a thread's cell that needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn map(kind: MapKind, key: u32, value: u32, entries: u32, flags: u32) -> Arc<Map> {
    let definition = MapDefinition {
        name: "m".into(),
        kind,
        key_size: key,
        value_size: value,
        max_entries: entries,
        flags,
    };
    Map::create(definition, &HeapMemory::with_limit(1 << 20)).unwrap()
}

/// Runs a program by every engine, twice, for what is done once must not hide what is done always.
fn run(program: &Arc<ValidatedProgram>, attachment: &Attachment, memory: &[u8]) {
    let interpreter = Interpreter::new(program.clone());
    let buffer = Buffer::new(memory);
    let (arguments, regions) = (buffer.arguments(), [buffer.region()]);
    let name = program.name();
    for _ in 0..2 {
        let before = CALLS.get();
        let outcome = interpreter.run_for(attachment, &arguments, &regions, BUDGET);
        assert_eq!(CALLS.get(), before, "interpreter: {name}");
        outcome.unwrap_or_else(|fault| panic!("{name}: {fault}"));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let pages = support::native::Pages::new(1 << 20);
        let code = support::compile(program, pages.address(), support::VARIANTS[0]);
        pages.load(&code);
        for _ in 0..2 {
            let before = CALLS.get();
            // SAFETY: the interpreter has just run it with the same memory, and checked each access.
            unsafe { pages.run(attachment, arguments) };
            assert_eq!(CALLS.get(), before, "compiled: {name}");
        }
    }
}

/// The helpers that a program calls.
fn called(program: &ValidatedProgram) -> impl Iterator<Item = u32> {
    program.instructions().iter().filter_map(|i| match i.op {
        Op::Call { helper } => Some(helper),
        _ => None,
    })
}

/// Programs for the helpers that no text of the suite calls. The maps are those of the test below.
const OTHERS: &[&str] = &[
    // Attachment, numbers, tasks, cores.
    "r6 = r1\ncall 173\nr1 = r6\ncall 174\nr1 = r6\ncall 185\nexit",
    "r6 = r1\nr2 = 0\nr3 = r10\nr3 += -8\ncall 183\nr1 = r6\nr2 = r10\nr2 += -8\ncall 184\nexit",
    "r1 = r10\nr1 += -8\nr2 = 8\nr3 = 1\ncall 148\nexit",
    "call 8\ncall 14\ncall 42\nr0 = 0\nexit",
    "r1 = var[0]\nr2 = 1\ncall 153\nr1 = var[0]\ncall 154\nr0 = 0\nexit",
    // A stack, into memory and into a map.
    "r6 = r1\nr2 = r10\nr2 += -32\nr3 = 32\nr4 = 0\ncall 67\nr1 = r6\nr2 = map[1]\nr3 = 0\ncall 27\nexit",
    // Array and per-CPU array.
    "*(u32 *)(r10 - 4) = 1\n*(u64 *)(r10 - 16) = 5\nr1 = map[0]\nr2 = r10\nr2 += -4\nr3 = r10\nr3 += -16\nr4 = 0\ncall 2
     r1 = map[0]\nr2 = r10\nr2 += -4\ncall 1\nr1 = map[0]\nr2 = r10\nr2 += -4\ncall 3
     r1 = map[2]\nr2 = r10\nr2 += -4\nr3 = 1\ncall 195\nexit",
    // Queue.
    "*(u64 *)(r10 - 8) = 5\nr1 = map[3]\nr2 = r10\nr2 += -8\nr3 = 0\ncall 87\nr1 = map[3]\nr2 = r10\nr2 += -16\ncall 89
     r1 = map[3]\nr2 = r10\nr2 += -16\ncall 88\nexit",
    // Ring buffer.
    "r1 = map[4]\nr2 = 16\nr3 = 0\ncall 131\nif r0 == 0 goto none\nr1 = r0\nr2 = 0\ncall 132
     none: r1 = map[4]\nr2 = 8\nr3 = 0\ncall 131\nif r0 == 0 goto out\nr1 = r0\nr2 = 0\ncall 133
     out: *(u64 *)(r10 - 8) = 5\nr1 = map[4]\nr2 = r10\nr2 += -8\nr3 = 8\nr4 = 0\ncall 130\nr1 = map[4]\nr2 = 0\ncall 134
     exit",
    // Dynptrs: of a record that is written, read and ended either way, of a value.
    "r1 = map[4]\nr2 = 16\nr3 = 0\nr4 = r10\nr4 += -16\ncall 198\nr1 = r10\nr1 += -16\nr2 = 0\nr3 = 8\ncall 203
     *(u64 *)(r10 - 24) = 0\nr1 = r10\nr1 += -16\nr2 = 3\nr3 = r10\nr3 += -24\nr4 = 8\nr5 = 0\ncall 202
     r1 = r10\nr1 += -24\nr2 = 8\nr3 = r10\nr3 += -16\nr4 = 3\nr5 = 0\ncall 201\nr1 = r10\nr1 += -16\nr2 = 0\ncall 199
     r1 = map[4]\nr2 = 16\nr3 = 0\nr4 = r10\nr4 += -16\ncall 198\nr1 = r10\nr1 += -16\nr2 = 0\ncall 200
     r1 = map[0][0]+0\nr2 = 8\nr3 = 0\nr4 = r10\nr4 += -16\ncall 197\nexit",
    // Task storage.
    "call 158\nr6 = r0\nr1 = map[5]\nr2 = r6\nr3 = 0\nr4 = 1\ncall 156\nr1 = map[5]\nr2 = r6\ncall 157\nexit",
    // Callbacks, and a tail call that leads nowhere.
    "r1 = 3\nr2 = func f\nr3 = 0\nr4 = 0\ncall 181\nr1 = map[0]\nr2 = func f\nr3 = 0\nr4 = 0\ncall 164\nexit
     f: r0 = 0\nexit",
    "r2 = map[6]\nr3 = 0\ncall 12\nexit",
];

#[test]
fn runs_and_helpers_do_not_allocate() {
    host::register();
    let maps = suite::maps(&HeapMemory::with_limit(1 << 20)).unwrap();
    let mut seen = BTreeSet::new();
    for (_, text) in suite::TESTS.iter().chain(suite::BENCHES) {
        for case in suite::cases(text).unwrap() {
            let program = Arc::new(case.program(&maps).unwrap());
            seen.extend(called(&program));
            run(&program, &Attachment::NONE, &case.memory);
        }
    }
    let maps = [
        map(MapKind::ARRAY, 4, 8, 4, 0),
        map(MapKind::STACK_TRACE, 4, 64, 4, 0),
        map(MapKind::PERCPU_ARRAY, 4, 8, 4, 0),
        map(MapKind::QUEUE, 0, 8, 4, 0),
        map(MapKind::RINGBUF, 0, 0, 4096, 0),
        map(MapKind::TASK_STORAGE, 4, 8, 4, MapDefinition::NO_PREALLOC),
        map(MapKind::PROG_ARRAY, 4, 4, 4, 0),
    ];
    let attachment = Attachment {
        arguments: 1,
        has_result: 1,
        ..Attachment::NONE
    };
    for text in OTHERS {
        let insns = bpf_vm::asm::assemble(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let mut program = unchecked(insns, &maps);
        program.name = (*text).into();
        program.variables.push(KernelVariable {
            name: "variable".into(),
            address: core::ptr::from_ref(&host::PER_CPU[0]).expose_provenance() as u64,
            bytes: 8,
            type_id: 0,
        });
        let program = program.validate();
        let program = Arc::new(program.unwrap_or_else(|error| panic!("{error}\n{text}")));
        seen.extend(called(&program));
        run(&program, &attachment, &[1; 16]);
    }
    let all: BTreeSet<u32> = HELPERS.iter().map(|helper| helper.number).collect();
    let missing: Vec<_> = all.difference(&seen).collect();
    assert!(missing.is_empty(), "no program calls {missing:?}");
}

#[test]
fn map_operations_do_not_allocate() {
    host::register();
    let before = CALLS.get();
    drop(Box::new(before));
    assert_eq!(CALLS.get(), before + 2, "the allocator counts");
    for (kind, key, value, entries, flags) in [
        (MapKind::ARRAY, 4, 8, 4, 0),
        (MapKind::PERCPU_ARRAY, 4, 8, 4, 0),
        (MapKind::HASH, 8, 8, 4, 0),
        (MapKind::PERCPU_HASH, 300, 8, 4, 0),
        (MapKind::LRU_HASH, 8, 8, 4, 0),
        (MapKind::LRU_PERCPU_HASH, 8, 8, 4, 0),
        (MapKind::LPM_TRIE, 8, 8, 4, MapDefinition::NO_PREALLOC),
        (MapKind::QUEUE, 0, 8, 4, 0),
        (MapKind::STACK, 0, 8, 4, 0),
        (MapKind::RINGBUF, 0, 0, 4096, 0),
        (MapKind::STACK_TRACE, 4, 64, 4, 0),
        (MapKind::TASK_STORAGE, 4, 8, 4, MapDefinition::NO_PREALLOC),
    ] {
        let map = map(kind, key, value, entries, flags);
        let (mut key, mut next, mut out) = ([0; 300], [0; 300], [0; 64]);
        let (size, bytes) = (map.key_size(), map.host_value_size());
        let before = CALLS.get();
        let mut done = 0;
        for round in 0..100u8 {
            if let Some(first) = key[..size].first_mut() {
                *first = round % 8;
            }
            let (key, next) = (&key[..size], &mut next[..size]);
            let write = |words: ValueWords<'_>| words.write_bytes(&[round; 8]);
            done += u32::from(map.update_with(key, UpdateFlags::Any, write).is_ok());
            done += u32::from(map.update(key, &out[..bytes], UpdateFlags::Exist).is_ok());
            done += u32::from(map.lookup_address(key).is_some());
            done += u32::from(map.lookup(key, &mut out[..bytes]).is_ok());
            done += u32::from(map.next_key(None, next).is_ok());
            done += u32::from(map.next_key(Some(key), next).is_ok());
            let mut cursor = Cursor::default();
            while map.step(&mut cursor).is_some() {
                done += 1;
            }
            done += map.pop(|_| {}).is_ok() as u32;
            if round % 3 == 0 {
                done += u32::from(map.delete(key).is_ok());
            }
            if let Some(record) = map.reserve(round.into()) {
                map.commit(record, round % 2 == 0, 0).unwrap();
                done += map
                    .ring_buffer()
                    .unwrap()
                    .drain(|record| record.copy_to(&mut out)) as u32;
            }
            done += u32::from(map.stack_id(&[round.into(); 4], 1 << 10).is_ok());
            let value = map.task_value((round % 8).into(), 0, Some(write));
            done += u32::from(value.is_some());
            done += u32::from(map.task_ended((round % 5).into(), 0).is_ok());
        }
        assert_eq!(CALLS.get(), before, "{kind}");
        assert!(done >= 50, "{kind}: {done} operations succeeded");
    }
}
