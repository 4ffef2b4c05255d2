// SPDX-License-Identifier: MIT OR Apache-2.0
//! One program on many functions: all of them or none, what each costs, and what its chain, its listing and its addresses say.

use trampoline::attach::DetachError;
use trampoline::fakes::{Call, FakePlatform};
use trampoline::multi::{BYTES_PER_FUNCTION, Program, Target};
use trampoline::registers::Words;
use trampoline::{
    ArgSpec, Callee, CallerIn, Engine, Grace, Guard, Kind, Owner, Platform, PlatformError, Reason,
    Site, SiteTable,
};

const FIRST: u64 = 0xffff_ffff_8000_1000;
const POOL: u64 = 0xffff_ffff_8400_0000;
const PROGRAM: u64 = 0xffff_ffff_8000_8000;
const NOP: u32 = 0xd503_201f;

type Fake = Engine<FakePlatform>;

fn functions(count: u64) -> Vec<u64> {
    (0..count).map(|n| FIRST + 64 * n).collect()
}

fn engine(count: u64) -> (FakePlatform, Fake, Vec<u64>) {
    let all = functions(count);
    let platform = FakePlatform::new(POOL..POOL + 0x2_0000, &all);
    let sites = all.iter().map(|&address| Site {
        address,
        notrace: false,
    });
    let engine = Engine::new(platform.clone(), SiteTable::new(sites).unwrap()).unwrap();
    (platform, engine, all)
}

fn program(exit: bool) -> Program {
    Program {
        exit,
        callee: Callee {
            address: PROGRAM,
            data: Some(0),
            name: "p".into(),
            stack_bytes: 64,
            original_stack: 0,
            guard: Guard::Word,
            state: 0xffff_ffff_8000_9abc,
            sleepable: false,
            keep: None,
        },
        reads: Words::NONE,
    }
}

fn targets(functions: &[u64]) -> Vec<Target> {
    let target = |&function| Target {
        function,
        data: [function + 1, 2, 3],
    };
    functions.iter().map(target).collect()
}

/// Where the word at an address leads, if it is a branch.
fn leads(platform: &FakePlatform, at: u64) -> Option<u64> {
    a64::branch_target(platform.read(at)?, at)
}

#[test]
fn a_thousand_functions_are_two_synchronisations_and_48_bytes_each() {
    let (platform, mut engine, all) = engine(1000);
    let free = engine.pool().free_bytes();
    platform.take_calls();
    let id = engine.attach_multi(&targets(&all), program(false), |_| false);
    let id = id.unwrap().unwrap();
    let calls = platform.take_calls();
    let count = |wanted: fn(&Call) -> bool| calls.iter().filter(|call| wanted(call)).count();
    assert_eq!(count(|call| matches!(call, Call::Write(..))), 1);
    assert_eq!(count(|call| matches!(call, Call::Sync)), 2);
    assert_eq!(count(|call| matches!(call, Call::Patch(..))), 1000);
    // The code is written and every core synchronised before the first function leads there.
    let order: Vec<_> = calls.iter().take(3).collect();
    assert!(
        matches!(order[..], [Call::Write(..), Call::Sync, Call::Patch(..)]),
        "{order:?}"
    );
    assert!(matches!(calls.last(), Some(Call::Sync)));

    let bytes = engine.multi(id).unwrap().bytes();
    assert_eq!(bytes, free - engine.pool().free_bytes());
    assert!(BYTES_PER_FUNCTION <= 64 && bytes < 64 * 1000, "{bytes}");
    for function in &all {
        let stub = engine.multi(id).unwrap().stub(*function).unwrap();
        assert_eq!(leads(&platform, *function), Some(stub.entry));
        assert_eq!(leads(&platform, stub.link), Some(function + 8));
        let data: Vec<_> = (0..8)
            .map(|n| platform.read(stub.link + 8 + 4 * n).unwrap())
            .collect();
        let words: Vec<_> = data
            .chunks(2)
            .map(|h| u64::from(h[0]) | u64::from(h[1]) << 32)
            .collect();
        assert_eq!(words, [*function, function + 1, 2, 3]);
        // Any address in it is the function's, and its caller is in x30.
        for at in [stub.entry, stub.entry + 4, stub.link] {
            assert_eq!(engine.pool().function_of(at), Some(*function));
            assert_eq!(engine.unwind(at), Some(CallerIn::LinkRegister));
            assert!(matches!(
                engine.owner(at).unwrap().label.owner,
                Owner::Functions { .. }
            ));
        }
    }
    let stub = engine.multi(id).unwrap().stub(all[0]).unwrap();
    let body = leads(&platform, stub.entry + 4).unwrap();
    assert_eq!(engine.pool().function_of(body), None);

    engine.detach_multi(id).unwrap();
    let calls = platform.take_calls();
    let syncs = calls.iter().filter(|call| matches!(call, Call::Sync));
    assert_eq!(syncs.count(), 1);
    assert!(matches!(calls.last(), Some(Call::Defer(Grace::Tasks))));
    assert!(all.iter().all(|f| platform.read(*f) == Some(NOP)));
    assert_eq!(engine.changed_sites().count(), 0);
    platform.end_grace_period();
    assert_eq!(engine.pool().free_bytes(), free);
    assert!(engine.detach_multi(id).is_err());
}

#[test]
fn an_error_leaves_every_function_as_it_was() {
    let (platform, mut engine, all) = engine(50);
    let free = engine.pool().free_bytes();
    // The 30th site is not what it should be when it is patched, though it was when it was looked at: the host fails there.
    let first = engine.attach_multi(&targets(&all[..1]), program(false), |_| false);
    platform.take_calls();
    for failing in [0, 1, 17, 48] {
        let before: Vec<_> = all.iter().map(|f| platform.read(*f)).collect();
        let error = PlatformError::NotCode { at: 0 };
        platform.fail_patch(failing, error.clone());
        let failed = engine.attach_multi(&targets(&all[1..]), program(true), |_| false);
        let failed = failed.unwrap_err();
        assert_eq!(failed.function, all[1 + failing]);
        assert_eq!(failed.reason, Reason::Platform(error));
        let after: Vec<_> = all.iter().map(|f| platform.read(*f)).collect();
        assert_eq!(before, after, "patch {failing} failed");
        // Some were led through it for a moment: it is freed by a grace period, as if it had been detached.
        let calls = platform.take_calls();
        assert!(matches!(
            calls[..],
            [.., Call::Sync, Call::Defer(Grace::Unreferenced(_))]
        ));
        platform.end_grace_period();
    }
    assert_eq!(engine.changed_sites().count(), 1);
    let id = first.unwrap().unwrap();
    // A detach that fails is none: all still lead there, and the next one succeeds.
    platform.fail_patch(0, PlatformError::NotCode { at: 1 });
    assert!(engine.detach_multi(id).is_err());
    assert_eq!(engine.changed_sites().count(), 1);
    engine.detach_multi(id).unwrap();
    platform.end_grace_period();
    assert_eq!(engine.pool().free_bytes(), free);

    let order = engine.attach_multi(&targets(&[all[3], all[3]]), program(false), |_| false);
    assert_eq!(order.unwrap_err().reason, Reason::Order { behind: all[3] });
    platform.fail_next(PlatformError::NotCode { at: 2 });
    assert!(
        engine
            .attach_multi(&targets(&all), program(false), |_| false)
            .is_err()
    );
    assert_eq!(engine.pool().free_bytes(), free);
}

#[test]
fn a_detach_that_cannot_be_undone_can_be_gone_on_with() {
    let (platform, mut engine, all) = engine(50);
    let free = engine.pool().free_bytes();
    let id = engine.attach_multi(&targets(&all), program(false), |_| false);
    let id = id.unwrap().unwrap();
    // The 31st patch fails, and of the 30 that are then undone the 4th.
    platform.fail_patch(30, PlatformError::NotCode { at: 1 });
    platform.fail_patch(3, PlatformError::NotCode { at: 2 });
    match engine.detach_multi(id) {
        Err(DetachError::Stuck { function, reason }) => {
            assert_eq!(function, all[30]);
            assert_eq!(reason, Reason::Platform(PlatformError::NotCode { at: 1 }));
        }
        other => panic!("{other:?}"),
    }
    let off: Vec<_> = all
        .iter()
        .filter(|f| platform.read(**f) == Some(NOP))
        .collect();
    assert_eq!(off, [&all[3]]);
    assert_eq!(engine.changed_sites().count(), 49);
    assert!(all.iter().all(|f| engine.check(*f).is_ok()));
    assert_eq!(platform.end_grace_period(), 0);
    // Others come and go meanwhile.
    let other = engine.attach_multi(&targets(&all), program(false), |_| false);
    let other = other.unwrap().unwrap();
    let ids = [id, other];
    let [first, second] = ids.map(|id| id.number());
    assert_eq!(way(&platform, &engine, &ids, all[3]), [second]);
    assert_eq!(way(&platform, &engine, &ids, all[4]), [first, second]);
    engine.detach_multi(id).unwrap();
    assert!(
        all.iter()
            .all(|f| way(&platform, &engine, &ids, *f) == [second])
    );
    engine.detach_multi(other).unwrap();
    assert!(all.iter().all(|f| platform.read(*f) == Some(NOP)));
    assert_eq!(engine.changed_sites().count(), 0);
    platform.end_grace_period();
    assert_eq!(engine.pool().free_bytes(), free);
}

#[test]
fn what_cannot_be_hooked_is_left_out_or_an_error() {
    let (platform, mut engine, all) = engine(4);
    engine.claim(all[1], "a test").unwrap();
    platform.set(all[2], 0);
    let failed = engine.attach_multi(&targets(&all), program(false), |_| false);
    assert_eq!(failed.unwrap_err().function, all[1]);
    let mut left = Vec::new();
    let id = engine.attach_multi(&targets(&all), program(false), |reason| {
        left.push(reason.clone());
        true
    });
    let id = id.unwrap().unwrap();
    assert_eq!(engine.multi(id).unwrap().functions()[..], [all[0], all[3]]);
    assert!(matches!(
        left[..],
        [Reason::Claimed { by: "a test" }, Reason::WordAtSite { .. }]
    ));
    let none = engine.attach_multi(&targets(&all[1..2]), program(false), |_| true);
    assert_eq!(none, Ok(None));
}

/// Where a call of a function passes: the stubs in order, an image (0), the function.
fn way(
    platform: &FakePlatform,
    engine: &Fake,
    ids: &[trampoline::AttachId],
    function: u64,
) -> Vec<u64> {
    let mut way = Vec::new();
    let mut at = match leads(platform, function) {
        None => return way,
        Some(at) => at,
    };
    while at != function + 8 {
        let stub = ids.iter().find_map(|id| {
            let stub = engine.multi(*id)?.stub(function)?;
            (stub.entry == at).then_some((id.number(), stub.link))
        });
        match stub {
            Some((number, link)) => {
                way.push(number);
                at = leads(platform, link).unwrap();
            }
            None => {
                way.push(0);
                break;
            }
        }
    }
    way
}

#[test]
fn stubs_stand_in_attach_order_before_the_image_whatever_comes_and_goes() {
    let (platform, mut engine, all) = engine(3);
    let add = |engine: &mut Fake, functions: &[u64], exit| {
        let id = engine.attach_multi(&targets(functions), program(exit), |_| false);
        id.unwrap().unwrap()
    };
    let fentry = |engine: &mut Fake| {
        let callee = program(false).callee;
        let args = ArgSpec::new(2, false).unwrap();
        engine.attach(all[1], args, Kind::Fentry, callee).unwrap()
    };
    let a = add(&mut engine, &all, false);
    let image = fentry(&mut engine);
    let b = add(&mut engine, &all[1..], true);
    let ids = [a, b];
    let (an, bn) = (a.number(), b.number());
    assert_eq!(way(&platform, &engine, &ids, all[0]), [an]);
    assert_eq!(way(&platform, &engine, &ids, all[1]), [an, bn, 0]);
    assert_eq!(way(&platform, &engine, &ids, all[2]), [an, bn]);
    engine.detach(image).unwrap();
    assert_eq!(way(&platform, &engine, &ids, all[1]), [an, bn]);
    let image = fentry(&mut engine);
    engine.detach_multi(a).unwrap();
    assert_eq!(way(&platform, &engine, &ids, all[0]), []);
    assert_eq!(way(&platform, &engine, &ids, all[1]), [bn, 0]);
    assert_eq!(way(&platform, &engine, &ids, all[2]), [bn]);
    engine.detach_multi(b).unwrap();
    assert_eq!(way(&platform, &engine, &ids, all[1]), [0]);
    engine.detach(image).unwrap();
    assert_eq!(engine.changed_sites().count(), 0);
}

/// The body that a function's stub of a program leads to.
fn body(platform: &FakePlatform, engine: &Fake, id: trampoline::AttachId, function: u64) -> u64 {
    let stub = engine.multi(id).unwrap().stub(function).unwrap();
    leads(platform, stub.entry + 4).unwrap()
}

#[test]
fn two_programs_at_the_entries_of_functions_have_one_body_until_one_is_off() {
    let (platform, mut engine, all) = engine(5);
    let free = engine.pool().free_bytes();
    let add = |engine: &mut Fake, functions: &[u64], exit| {
        let id = engine.attach_multi(&targets(functions), program(exit), |_| false);
        id.unwrap().unwrap()
    };
    for off in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let a = add(&mut engine, &all, false);
        let own = body(&platform, &engine, a, all[0]);
        let b = add(&mut engine, &all[1..4], false);
        let both = body(&platform, &engine, a, all[1]);
        let c = add(&mut engine, &all[2..], false);
        let ids = [a, b, c];
        // Where a is alone, and where what comes behind it is c: at the end b has a body of its own.
        assert_eq!(body(&platform, &engine, a, all[0]), own);
        assert_eq!(body(&platform, &engine, a, all[3]), both);
        assert_ne!(both, own);
        assert_eq!(
            body(&platform, &engine, a, all[4]),
            own,
            "one body of both at a time"
        );
        let of_b = body(&platform, &engine, b, all[1]);
        assert_ne!(body(&platform, &engine, b, all[2]), of_b);
        let numbers = ids.map(|id| id.number());
        assert_eq!(way(&platform, &engine, &ids, all[3]), numbers);
        // It finds the second stub by a distance.
        let [one, two] = [a, b].map(|id| engine.multi(id).unwrap().stub(all[2]).unwrap());
        assert_eq!(leads(&platform, one.link + 4), Some(two.link + 4));
        let names = |at: u64| engine.owner(at).unwrap().label.owner;
        assert!(matches!(names(both), Owner::Functions { .. }));
        assert_eq!(engine.pool().function_of(both), None);
        assert_eq!(engine.unwind(both), Some(CallerIn::LinkRegister));
        assert_eq!(engine.unwind(both + 40), Some(CallerIn::FrameRecord));
        for (n, which) in off.into_iter().enumerate() {
            engine.detach_multi(ids[which]).unwrap();
            let on = off[n + 1..].iter().map(|which| numbers[*which]);
            let mut on: Vec<_> = on.collect();
            on.sort();
            assert_eq!(way(&platform, &engine, &ids, all[3]), on);
            if which == 1 && on.contains(&numbers[0]) {
                assert!(all.iter().all(|f| body(&platform, &engine, a, *f) == own));
            }
        }
        assert_eq!(engine.changed_sites().count(), 0);
        platform.end_grace_period();
        assert_eq!(engine.pool().free_bytes(), free);
    }
}

#[test]
fn a_distance_is_set_anew_when_no_call_can_read_the_old_one() {
    let (platform, mut engine, all) = engine(5);
    let add = |engine: &mut Fake, exit| {
        let id = engine.attach_multi(&targets(&all), program(exit), |_| false);
        id.unwrap().unwrap()
    };
    let a = add(&mut engine, false);
    let own = body(&platform, &engine, a, all[0]);
    let link = engine.multi(a).unwrap().stub(all[0]).unwrap().link;
    let distance = |platform: &FakePlatform| platform.read(link + 4);
    let b = add(&mut engine, false);
    let first = distance(&platform);
    engine.detach_multi(b).unwrap();
    let c = add(&mut engine, false);
    assert_eq!(body(&platform, &engine, a, all[0]), own);
    assert_eq!(distance(&platform), first);
    engine.detach_multi(c).unwrap();
    platform.end_grace_period();
    let d = add(&mut engine, false);
    let both = body(&platform, &engine, a, all[0]);
    assert_ne!(both, own);
    // A program that runs when functions return has its own body.
    engine.detach_multi(d).unwrap();
    platform.end_grace_period();
    let exit = add(&mut engine, true);
    assert_eq!(body(&platform, &engine, a, all[0]), own);
    engine.detach_multi(exit).unwrap();
    engine.detach_multi(a).unwrap();
    platform.end_grace_period();
}

#[test]
fn one_body_that_cannot_be_led_to_is_none() {
    // Of five functions: the links, the distances, the branches to the body.
    for (failing, undone) in [(5, true), (7, true), (10, true), (12, true), (12, false)] {
        let (platform, mut engine, all) = engine(5);
        let free = engine.pool().free_bytes();
        let add = |engine: &mut Fake| {
            let id = engine.attach_multi(&targets(&all), program(false), |_| false);
            id.unwrap().unwrap()
        };
        let a = add(&mut engine);
        let own = body(&platform, &engine, a, all[0]);
        platform.fail_patch(failing, PlatformError::NotCode { at: 1 });
        if !undone {
            platform.fail_patch(0, PlatformError::NotCode { at: 2 });
        }
        let b = add(&mut engine);
        let on = all
            .iter()
            .filter(|f| body(&platform, &engine, a, **f) != own);
        assert_eq!(on.count(), usize::from(!undone));
        let numbers = [a, b].map(|id| id.number());
        assert!(
            all.iter()
                .all(|f| way(&platform, &engine, &[a, b], *f) == numbers)
        );
        engine.detach_multi(b).unwrap();
        assert!(all.iter().all(|f| body(&platform, &engine, a, *f) == own));
        engine.detach_multi(a).unwrap();
        platform.end_grace_period();
        assert_eq!(engine.pool().free_bytes(), free);
    }
    // One that cannot be left is a reason to stay.
    let (platform, mut engine, all) = engine(5);
    let add = |engine: &mut Fake| {
        let id = engine.attach_multi(&targets(&all), program(false), |_| false);
        id.unwrap().unwrap()
    };
    let (a, b) = (add(&mut engine), add(&mut engine));
    platform.fail_patch(3, PlatformError::NotCode { at: 3 });
    match engine.detach_multi(a) {
        Err(DetachError::Stuck { function, .. }) => assert_eq!(function, all[3]),
        other => panic!("{other:?}"),
    }
    let numbers = [a, b].map(|id| id.number());
    assert!(
        all.iter()
            .all(|f| way(&platform, &engine, &[a, b], *f) == numbers)
    );
    engine.detach_multi(a).unwrap();
    engine.detach_multi(b).unwrap();
    assert_eq!(engine.changed_sites().count(), 0);
}
