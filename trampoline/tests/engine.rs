// SPDX-License-Identifier: MIT OR Apache-2.0
//! The engine on a fake platform: order of steps, errors, memory, several programs on a function.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use trampoline::fakes::{Call, FakePlatform};
use trampoline::pool::FILL;
use trampoline::{
    ArgSpec, AttachError, AttachId, Callee, CallerIn, DetachError, Engine, Grace, Guard,
    Ingredient, Kind, Owner, Platform, PlatformError, PoolError, Reason, Runtime, Site, SiteError,
    SiteState, SiteTable,
};

const F: u64 = 0xffff_ffff_8000_1000;
const G: u64 = 0xffff_ffff_8000_1100;
const NOTRACE: u64 = 0xffff_ffff_8000_1200;
const FUNCTIONS: [u64; 3] = [F, G, NOTRACE];
const POOL: u64 = 0xffff_ffff_8400_0000;
const NOP: u32 = 0xd503_201f;

fn engine_with(pool_bytes: u64) -> (FakePlatform, Engine<FakePlatform>) {
    let platform = FakePlatform::new(POOL..POOL + pool_bytes, &FUNCTIONS);
    let sites = FUNCTIONS.map(|address| Site {
        address,
        notrace: address == NOTRACE,
    });
    let engine = Engine::new(platform.clone(), SiteTable::new(sites).unwrap()).unwrap();
    (platform, engine)
}

fn engine() -> (FakePlatform, Engine<FakePlatform>) {
    engine_with(0x1000)
}

fn callee(name: &str) -> Callee {
    let address = 0xffff_ffff_8000_8000;
    Callee {
        address,
        data: Some(1),
        name: name.into(),
        stack_bytes: 64,
        original_stack: 0,
        guard: Guard::None,
        state: 0,
        sleepable: false,
        keep: None,
    }
}

fn attach(
    engine: &mut Engine<FakePlatform>,
    function: u64,
    name: &str,
) -> Result<AttachId, AttachError> {
    engine.attach(function, ArgSpec::UNKNOWN, Kind::Fentry, callee(name))
}

/// The programs of a function's image in order, and that they are the ones that are listed.
fn programs(engine: &Engine<FakePlatform>, function: u64) -> Vec<String> {
    let lines = engine
        .describe(function)
        .filter(|l| l.ingredient == Ingredient::Program);
    lines
        .filter(|l| a64::is_call(l.word))
        .map(|l| l.note.to_string())
        .collect()
}

fn image(engine: &Engine<FakePlatform>, function: u64) -> u64 {
    match engine.state(function) {
        Some(SiteState::Branch(image)) => image,
        other => panic!("not hooked: {other:?}"),
    }
}

#[test]
fn an_image_is_written_and_synchronised_before_the_site_leads_to_it() {
    let (platform, mut engine) = engine();
    let id = attach(&mut engine, F, "a").unwrap();
    let site = platform.read(F).unwrap();
    assert_eq!(a64::branch_target(site, F), Some(image(&engine, F)));
    assert_eq!(platform.read(F + 4), Some(NOP));
    let calls = platform.take_calls();
    let [
        Call::Write(at, _),
        Call::Sync,
        Call::Patch(F, NOP, new),
        Call::Sync,
    ] = calls[..]
    else {
        panic!("{calls:x?}");
    };
    assert!(at <= image(&engine, F) && new == site);

    engine.detach(id).unwrap();
    assert_eq!(
        platform.take_calls(),
        [
            Call::Patch(F, site, NOP),
            Call::Sync,
            Call::Defer(Grace::Tasks)
        ]
    );
    assert_eq!(engine.state(F), Some(SiteState::Nops));
}

#[test]
fn several_programs_are_one_image_in_attach_order() {
    let (platform, mut engine) = engine();
    let mut ids = vec![attach(&mut engine, F, "a").unwrap()];
    for name in ["b", "c"] {
        let old = image(&engine, F);
        platform.take_calls();
        ids.push(attach(&mut engine, F, name).unwrap());
        // Another image, and one store that swaps it in.
        let swapped = |at: u64, word: u32| a64::branch_target(word, at) == Some(old);
        let calls = platform.take_calls();
        assert!(
            matches!(
                calls[..],
                [Call::Write(..), Call::Sync, Call::Patch(at, word, _), Call::Sync, Call::Defer(_)] if swapped(at, word)
            ),
            "{calls:x?}"
        );
    }
    attach(&mut engine, G, "other").unwrap();
    assert_eq!(programs(&engine, F), ["a", "b", "c"]);
    assert_eq!(programs(&engine, G), ["other"]);
    let old = image(&engine, F);
    platform.take_calls();
    engine.detach(ids[1]).unwrap();
    assert_eq!(programs(&engine, F), ["a", "c"]);
    assert_ne!(
        image(&engine, F),
        old,
        "the old image may still be executing"
    );
    let calls = platform.take_calls();
    assert!(matches!(
        calls[..],
        [
            Call::Write(..),
            Call::Sync,
            Call::Patch(..),
            Call::Sync,
            Call::Defer(_)
        ]
    ));
    engine.detach(ids[0]).unwrap();
    engine.detach(ids[2]).unwrap();
    assert_eq!(platform.read(F), Some(NOP));
    assert_eq!(programs(&engine, G), ["other"]);
    assert_eq!(
        engine.attached().map(|a| a.function).collect::<Vec<_>>(),
        [G]
    );
    assert_eq!(
        engine.detach(ids[2]),
        Err(DetachError::Unknown { id: ids[2] })
    );
}

#[test]
fn memory_comes_back_filled_after_the_grace_period_and_not_before() {
    let (platform, mut engine) = engine();
    let before = engine.pool().free_bytes();
    let id = attach(&mut engine, F, "a").unwrap();
    let (start, taken) = (image(&engine, F), engine.pool().free_bytes());
    assert!(taken < before);
    engine.detach(id).unwrap();
    assert_eq!(engine.pool().free_bytes(), taken);
    assert_ne!(platform.read(start), Some(FILL));
    assert_eq!(platform.end_grace_period(), 1);
    assert_eq!(engine.pool().free_bytes(), before);
    let free: u64 = engine.pool().free().map(|run| run.end - run.start).sum();
    assert_eq!(free, before);
    for at in (start..start + 64).step_by(4) {
        assert_eq!(platform.read(at), Some(FILL));
    }
    // And is used again.
    attach(&mut engine, F, "a").unwrap();
    assert_eq!(image(&engine, F), start);
}

#[test]
fn what_an_image_names_lives_as_long_as_it_does() {
    let (platform, mut engine) = engine();
    let keep = Arc::new(7u64);
    let callee = Callee {
        keep: Some(keep.clone()),
        ..callee("a")
    };
    let id = engine
        .attach(F, ArgSpec::UNKNOWN, Kind::Fentry, callee)
        .unwrap();
    engine.detach(id).unwrap();
    assert!(
        Arc::strong_count(&keep) > 1,
        "a preempted task may be about to call the program"
    );
    platform.end_grace_period();
    assert_eq!(Arc::strong_count(&keep), 1);
}

/// What must hold after an attach that failed.
fn unchanged(platform: &FakePlatform, engine: &Engine<FakePlatform>, free: u64) {
    assert_eq!(platform.read(F), Some(NOP));
    assert_eq!(engine.state(F), Some(SiteState::Nops));
    assert_eq!(engine.attached().count(), 0);
    assert_eq!(engine.pool().free_bytes(), free);
    assert!(
        !platform
            .take_calls()
            .iter()
            .any(|c| matches!(c, Call::Defer(_))),
        "nothing was in use"
    );
}

#[test]
fn a_failed_attach_changes_nothing() {
    let host = || PlatformError::Host {
        at: POOL,
        why: "no patch mapping".into(),
    };
    let (platform, mut engine) = engine();
    let free = engine.pool().free_bytes();
    platform.fail_next(host());
    let error = attach(&mut engine, F, "a").unwrap_err();
    assert_eq!(
        error,
        AttachError {
            function: F,
            reason: Reason::Platform(host())
        }
    );
    unchanged(&platform, &engine, free);
    // Someone else's probe.
    for (at, word) in [
        (F, a64::ops::brk(4).encode()),
        (
            F + 4,
            a64::ops::mov(a64::Size::X, a64::reg::X9, a64::reg::X30).encode(),
        ),
    ] {
        platform.set(at, word);
        let error = attach(&mut engine, F, "a").unwrap_err();
        assert_eq!(
            error.reason,
            Reason::WordAtSite {
                at,
                expected: NOP,
                found: Some(word)
            }
        );
        platform.set(at, NOP);
        unchanged(&platform, &engine, free);
    }
}

#[test]
fn a_patch_that_loses_a_race_gives_the_memory_back() {
    struct Racing(FakePlatform);
    impl Platform for Racing {
        fn pool(&self) -> std::ops::Range<u64> {
            self.0.pool()
        }
        fn write_code(&self, at: u64, words: &[u32]) -> Result<(), PlatformError> {
            self.0.write_code(at, words)
        }
        fn sync_cores(&self) {
            self.0.set(F, 0xd420_0080); // someone's brk #4, between the check and the store
        }
        fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
            self.0.patch(at, old, new)
        }
        fn replace_word(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
            self.0.replace_word(at, old, new)
        }
        fn read(&self, at: u64) -> Option<u32> {
            self.0.read(at)
        }
        fn runtime(&self) -> Runtime {
            self.0.runtime()
        }
        fn defer(&self, retired: trampoline::Retired, grace: Grace) {
            self.0.defer(retired, grace)
        }
    }
    let fake = FakePlatform::new(POOL..POOL + 0x1000, &FUNCTIONS);
    let sites = SiteTable::new([Site {
        address: F,
        notrace: false,
    }])
    .unwrap();
    let mut engine = Engine::new(Racing(fake.clone()), sites).unwrap();
    let free = engine.pool().free_bytes();
    let error = engine
        .attach(F, ArgSpec::UNKNOWN, Kind::Fentry, callee("a"))
        .unwrap_err();
    let expected = PlatformError::Mismatch {
        at: F,
        expected: NOP,
        found: 0xd420_0080,
    };
    assert_eq!(error.reason, Reason::Platform(expected));
    assert!(error.to_string().contains("brk #0x4"), "{error}");
    assert_eq!(engine.pool().free_bytes(), free);
    assert_eq!(engine.state(F), Some(SiteState::Nops));
    assert_eq!(
        fake.read(F),
        Some(0xd420_0080),
        "what someone else wrote stays"
    );
}

#[test]
fn what_cannot_be_hooked_says_why() {
    let (_, mut engine) = engine();
    for (function, reason) in [
        (F + 4, Reason::NotASite { nearest: Some(F) }),
        (0x1000, Reason::NotASite { nearest: None }),
        (NOTRACE, Reason::Notrace),
    ] {
        let error = attach(&mut engine, function, "a").unwrap_err();
        assert_eq!(error, AttachError { function, reason });
        assert!(
            error.to_string().contains(&format!("{function:#x}")),
            "{error}"
        );
    }
    let far = Callee {
        address: 0xffff_0000_0000_0000,
        ..callee("far")
    };
    let error = engine
        .attach(F, ArgSpec::UNKNOWN, Kind::Fentry, far)
        .unwrap_err();
    assert!(matches!(error.reason, Reason::Code(_)), "{error}");
    assert!(error.to_string().contains("0xffff000000000000"), "{error}");
}

#[test]
fn a_full_pool_is_an_error_and_detaching_needs_no_memory() {
    let (platform, mut engine) = engine_with(0x140);
    let a = attach(&mut engine, F, "a").unwrap();
    let b = attach(&mut engine, F, "b").unwrap();
    let c = attach(&mut engine, F, "c").unwrap_err();
    let Reason::Pool(PoolError::Full {
        asked,
        largest,
        free,
        ..
    }) = &c.reason
    else {
        panic!("{c}")
    };
    assert!(asked > largest && largest <= free);
    assert!(c.to_string().contains(&format!("{asked} bytes")), "{c}");
    assert_eq!(programs(&engine, F), ["a", "b"]);
    platform.take_calls();

    // No room for the smaller image either: the call becomes a NOP in place.
    let old = image(&engine, F);
    let hog = engine
        .pool()
        .reserve(engine.pool().largest_free() as usize / 4 - 4, "hog")
        .unwrap();
    engine.detach(a).unwrap();
    assert_eq!(image(&engine, F), old);
    assert_eq!(programs(&engine, F), ["b"]);
    let calls = platform.take_calls();
    assert!(
        matches!(calls[..], [Call::Patch(_, _, NOP), Call::Sync]),
        "{calls:x?}"
    );
    assert_eq!(engine.attached().map(|x| x.id).collect::<Vec<_>>(), [b]);

    drop(hog);
    platform.end_grace_period();
    attach(&mut engine, F, "c").unwrap();
    assert_eq!(programs(&engine, F), ["b", "c"]);
    engine.detach(b).unwrap();
    assert_eq!(programs(&engine, F), ["c"]);
}

#[test]
fn a_detach_that_cannot_patch_leaves_the_program_attached() {
    let (platform, mut engine) = engine();
    let id = attach(&mut engine, F, "a").unwrap();
    platform.fail_next(PlatformError::NotCode { at: F });
    let error = engine.detach(id).unwrap_err();
    assert!(
        matches!(error, DetachError::Stuck { function: F, .. }),
        "{error}"
    );
    assert_eq!(programs(&engine, F), ["a"]);
    engine.detach(id).unwrap();
}

#[test]
fn an_address_in_the_pool_is_known_until_it_is_freed() {
    let (platform, mut engine) = engine();
    let id = attach(&mut engine, F, "a").unwrap();
    attach(&mut engine, G, "b").unwrap();
    let pool = engine.pool().clone();
    for function in [F, G] {
        let start = image(&engine, function);
        let lines: Vec<_> = engine.describe(function).skip(2).collect();
        for line in &lines {
            let found = engine.owner(line.address).unwrap();
            assert_eq!(found.label.owner, Owner::Trampoline { function });
            assert_eq!((found.start, found.words), (start, lines.len() as u64));
        }
        let callers: Vec<_> = lines
            .iter()
            .map(|l| engine.unwind(l.address).unwrap())
            .collect();
        let record = callers
            .iter()
            .filter(|c| **c == CallerIn::FrameRecord)
            .count();
        assert_eq!(
            record,
            lines.len() - 3,
            "before the record, and at the last branch"
        );
        assert_eq!(engine.unwind(start - 4), None, "the header is no code");
        assert_eq!(engine.unwind(start + 4 * lines.len() as u64), None);
    }
    let start = image(&engine, F);
    engine.detach(id).unwrap();
    assert!(
        pool.find(start).is_some(),
        "someone may still be executing there"
    );
    platform.end_grace_period();
    assert_eq!(pool.find(start), None);
    assert_eq!(pool.find(0x1234), None);
}

#[test]
fn programs_have_code_in_the_pool_as_well() {
    let (platform, engine) = engine();
    let reserved = engine.pool().reserve(10, "program 3").unwrap();
    let (at, label) = (
        reserved.address(),
        trampoline::Label {
            owner: Owner::Program { id: 3 },
            record: None,
        },
    );
    assert!(at % 16 == 0 && reserved.capacity() >= 10);
    let code = reserved
        .publish(label.clone(), &[NOP, a64::ops::ret().encode()])
        .unwrap();
    assert_eq!((code.address(), code.words(), code.bytes()), (at, 2, 32));
    let found = engine.pool().find(at + 4).unwrap();
    assert_eq!(
        (found.label, found.caller),
        (label.clone(), CallerIn::LinkRegister)
    );
    assert_eq!(
        engine.pool().free_bytes(),
        0x1000 - 32,
        "what was not needed went back"
    );
    assert!(matches!(
        platform.take_calls()[..],
        [Call::Write(_, 6), Call::Sync]
    ));
    drop(code);
    assert_eq!(engine.pool().free_bytes(), 0x1000);
    let small = engine.pool().reserve(1, "x").unwrap();
    assert!(small.publish(label, &[NOP; 100]).is_err());
    assert_eq!(engine.pool().free_bytes(), 0x1000);
}

#[test]
fn memory_that_cannot_be_filled_is_not_handed_out_again() {
    let (platform, engine) = engine();
    let label = trampoline::Label {
        owner: Owner::Program { id: 3 },
        record: None,
    };
    let code = engine
        .pool()
        .reserve(4, "x")
        .unwrap()
        .publish(label, &[NOP; 4])
        .unwrap();
    platform.fail_next(PlatformError::NotCode { at: POOL });
    drop(code);
    assert_eq!(engine.pool().free_bytes(), 0x1000 - 32);
}

/// Reserve and free in a changing pattern: pieces never overlap, and all of it comes back.
#[test]
fn the_pool_never_hands_out_a_unit_twice() {
    let (_, engine) = engine_with(0x4000);
    let pool = engine.pool();
    let mut held = Vec::new();
    let mut seed = 1u64;
    for _ in 0..5000 {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let words = (seed >> 33) as usize % 200;
        if seed >> 63 == 0 || held.is_empty() {
            if let Ok(reserved) = pool.reserve(words, "x") {
                let mine =
                    reserved.address() - 16..reserved.address() + 4 * reserved.capacity() as u64;
                assert!(POOL <= mine.start && mine.end <= POOL + 0x4000);
                for (other, _) in &held {
                    let other: &std::ops::Range<u64> = other;
                    assert!(mine.end <= other.start || other.end <= mine.start);
                }
                held.push((mine, reserved));
            }
        } else {
            held.swap_remove((seed >> 40) as usize % held.len());
        }
        let used: u64 = held.iter().map(|(range, _)| range.end - range.start).sum();
        assert_eq!(pool.free_bytes(), 0x4000 - used);
    }
    drop(held);
    assert_eq!(pool.largest_free(), 0x4000);
}

/// Several cores at once: what is handed out is handed out once.
#[test]
fn reserving_is_safe_from_several_threads() {
    let (_, engine) = engine_with(0x1000);
    let owners: Vec<AtomicU32> = (0..0x1000 / 16).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 1..=4 {
            let (pool, owners) = (engine.pool(), &owners);
            scope.spawn(move || {
                for round in 0..2000 {
                    let Ok(mine) = pool.reserve(1 + round % 90, "x") else {
                        continue;
                    };
                    let first = (mine.address() - 16 - POOL) / 16;
                    let units = first as usize..first as usize + mine.capacity().div_ceil(4) + 1;
                    for unit in &owners[units.clone()] {
                        assert_eq!(unit.swap(thread, Ordering::Relaxed), 0);
                    }
                    for unit in &owners[units] {
                        assert_eq!(unit.swap(0, Ordering::Relaxed), thread);
                    }
                }
            });
        }
    });
    assert_eq!(engine.pool().largest_free(), 0x1000);
}

#[test]
fn the_larger_argument_list_counts() {
    let (_, mut engine) = engine();
    let (two, four) = (
        ArgSpec::new(2, false).unwrap(),
        ArgSpec::new(4, false).unwrap(),
    );
    engine.attach(F, two, Kind::Fentry, callee("a")).unwrap();
    let stores = |e: &Engine<FakePlatform>| {
        e.describe(F)
            .filter(|l| l.ingredient == Ingredient::Save)
            .count()
            - 2
    };
    assert_eq!(stores(&engine), 1);
    engine.attach(F, four, Kind::Fentry, callee("b")).unwrap();
    assert_eq!(stores(&engine), 2);
    assert_eq!(ArgSpec::new(9, false), None);
    // 16 for the record, 32 for four registers, 64 for the deepest program
    assert!(engine.attached().all(|a| a.stack_bytes == 112));
}

#[test]
fn tables_and_windows_that_make_no_sense() {
    let table = |addresses: &[u64]| {
        SiteTable::new(addresses.iter().map(|a| Site {
            address: *a,
            notrace: false,
        }))
        .err()
    };
    assert_eq!(table(&[]), Some(SiteError::Empty));
    assert_eq!(table(&[8, 2]), Some(SiteError::Misaligned { address: 2 }));
    assert_eq!(table(&[8, 4, 8]), Some(SiteError::Duplicate { address: 8 }));
    assert_eq!(table(&[8, 4]), None);
    for (start, end) in [(POOL, POOL), (POOL + 8, POOL + 32), (POOL, POOL + 24)] {
        let sites = SiteTable::new([Site {
            address: F,
            notrace: false,
        }])
        .unwrap();
        let error = Engine::new(FakePlatform::new(start..end, &[]), sites).err();
        assert_eq!(error, Some(PoolError::Window { start, end }));
    }
}

#[test]
fn only_eight_kinds_of_word_may_change_under_way() {
    use trampoline::patch::is_patchable;
    // nop, b, bl, brk, hvc, isb, smc, svc
    for word in [
        NOP,
        0x1400_0001,
        0x9400_0001,
        0xd420_0000,
        0xd400_0002,
        0xd503_3fdf,
        0xd400_0003,
        0xd400_0001,
    ] {
        assert!(is_patchable(word), "{word:#010x}");
    }
    // yield, hlt, b.eq, dsb, ret, mov, udf
    for word in [
        0xd503_203f,
        0xd440_0000,
        0x5400_0000,
        0xd503_3f9f,
        0xd65f_03c0,
        0xaa01_03e0,
        0,
    ] {
        assert!(!is_patchable(word), "{word:#010x}");
    }
}

#[test]
fn a_hit_takes_no_more_stack_than_the_host_sets_aside() {
    let two = ArgSpec::new(2, false).unwrap();
    let twelve = ArgSpec::new(8, false).unwrap().with_stack(4).unwrap();
    let plain = callee("a");
    let replacement = Callee {
        stack_bytes: 1064,
        original_stack: 1000,
        ..callee("calls the original")
    };
    // The frame: x29 and x30, arguments, result. While the function runs, also the words that it finds on the stack, or the program.
    for (kind, args, program, frame, more) in [
        (Kind::Fexit, two, &plain, 48, 0),
        (Kind::Fexit, twelve, &plain, 128, 32),
        (Kind::Freplace, two, &replacement, 48, 1000),
    ] {
        let (platform, mut engine) = engine();
        let mut refused = |hit, waiting| {
            platform.limit_stack(hit, waiting);
            let error = engine.attach(F, args, kind, program.clone()).unwrap_err();
            assert_eq!(platform.read(F), Some(NOP));
            (error.reason.clone(), error.to_string())
        };
        let (needed, limit) = (frame + more, frame + more - 1);
        let (reason, text) = refused(u32::MAX, limit);
        assert_eq!(reason, Reason::Waiting { needed, limit });
        let numbers = format!(
            "{needed} bytes of stack would be in use while the function runs, and {limit} are"
        );
        assert!(text.contains(&numbers), "{text}");
        let hit = frame + program.stack_bytes;
        let (needed, limit) = (hit, hit - 1);
        assert_eq!(refused(limit, u32::MAX).0, Reason::Stack { needed, limit });
        platform.limit_stack(hit, frame + more);
        engine.attach(F, args, kind, program.clone()).unwrap();
    }
    // At the entry nothing waits.
    let (platform, mut engine) = engine();
    platform.limit_stack(u32::MAX, 0);
    engine.attach(F, two, Kind::Fentry, plain).unwrap();
}
