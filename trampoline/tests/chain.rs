// SPDX-License-Identifier: MIT OR Apache-2.0
//! The chain of a function: whatever is put in or taken out, in any order, a call passes through the stubs, the image, the body.

use trampoline::fakes::FakePlatform;
use trampoline::{
    ArgSpec, AttachError, Callee, Engine, Guard, Kind, Label, Owner, Platform, Reason, Site,
    SiteTable, Stub,
};

const F: u64 = 0xffff_ffff_8000_1000;
const POOL: u64 = 0xffff_ffff_8400_0000;
const NOP: u32 = 0xd503_201f;
const REPLACEMENT: u64 = 0xffff_ffff_8000_7000;

type Fake = Engine<FakePlatform>;

fn engine() -> (FakePlatform, Fake) {
    let platform = FakePlatform::new(POOL..POOL + 0x2000, &[F]);
    let site = Site {
        address: F,
        notrace: false,
    };
    let engine = Engine::new(platform.clone(), SiteTable::new([site]).unwrap()).unwrap();
    (platform, engine)
}

fn attach(engine: &mut Fake, kind: Kind) -> trampoline::AttachId {
    let callee = Callee {
        address: 0xffff_ffff_8000_8000,
        data: None,
        name: "p".into(),
        stack_bytes: 64,
        original_stack: 0,
        guard: Guard::None,
        state: 0,
        sleepable: false,
        keep: None,
    };
    let args = ArgSpec::new(2, false).unwrap();
    engine.attach(F, args, kind, callee).unwrap()
}

/// A stub of one instruction and its link.
fn stub(engine: &Fake) -> (trampoline::Code<FakePlatform>, Stub) {
    let owner = Owner::Trampoline { function: F };
    let label = Label {
        owner,
        record: None,
    };
    let reserved = engine.pool().reserve(2, "a stub").unwrap();
    let code = reserved
        .publish(label, &[NOP, a64::ops::brk(1).encode()])
        .unwrap();
    let (entry, link) = (code.address(), code.address() + 4);
    (code, Stub { entry, link })
}

/// Where a call of the function passes: links are followed from the site to the body; 1 is the function's own, 2 the replacement.
fn way(platform: &FakePlatform, engine: &Fake, stubs: &[Stub]) -> Vec<u64> {
    let mut way = Vec::new();
    let word = platform.read(F).unwrap();
    let mut at = match a64::branch_target(word, F) {
        Some(target) => target,
        None => {
            assert_eq!(word, NOP);
            F + 8
        }
    };
    loop {
        if at == F + 8 {
            way.push(1);
            return way;
        }
        if at == REPLACEMENT {
            way.push(2);
            return way;
        }
        let link = match stubs.iter().position(|stub| stub.entry == at) {
            Some(index) => {
                way.push(100 + index as u64);
                stubs[index].link
            }
            None => {
                way.push(50);
                let lines: Vec<_> = engine.describe(F).map(|l| (l.address, l.word)).collect();
                let onward = |(at, word): &(u64, u32)| {
                    let target = a64::branch_target(*word, *at)?;
                    (*at != F && [F + 8, REPLACEMENT].contains(&target)).then_some(*at)
                };
                lines.iter().find_map(onward).expect("the image goes on")
            }
        };
        at = a64::branch_target(platform.read(link).unwrap(), link).expect("a link is a branch");
    }
}

#[test]
fn every_order_of_putting_in_and_taking_out() {
    // Four things: two stubs, a program, a replacement. All orders of putting in, and of taking out.
    let orders: Vec<[usize; 4]> = (0..256)
        .map(|n| [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6 & 3])
        .filter(|o| (0..4).all(|x| o.contains(&x)))
        .collect();
    assert_eq!(orders.len(), 24);
    for kind in [Kind::Fentry, Kind::Fexit] {
        for put in &orders {
            for take in &orders {
                let (platform, mut engine) = engine();
                let (kept, stubs): (Vec<_>, Vec<_>) = (0..2).map(|_| stub(&engine)).unzip();
                let (mut there, mut program) = ([false; 4], None);
                let mut first = None;
                for (step, &what) in put.iter().chain(take).enumerate() {
                    let on = step < 4;
                    match (what, on) {
                        (2, true) => program = Some(attach(&mut engine, kind)),
                        (2, false) => engine.detach(program.unwrap()).unwrap(),
                        (3, true) => engine.replace(F, Some(REPLACEMENT)).unwrap(),
                        (3, false) => engine.replace(F, None).unwrap(),
                        (stub, true) => {
                            first.get_or_insert(stub);
                            engine.push_stub(F, stubs[stub]).unwrap();
                        }
                        (stub, false) => {
                            assert!(engine.remove_stub(F, stubs[stub].entry).unwrap());
                        }
                    }
                    there[what] = on;
                    let mut expected = Vec::new();
                    let first = first.unwrap_or(0);
                    for stub in [first, 1 - first] {
                        expected.extend(there[stub].then_some(100 + stub as u64));
                    }
                    expected.extend(there[2].then_some(50));
                    expected.push(if there[3] { 2 } else { 1 });
                    assert_eq!(
                        way(&platform, &engine, &stubs),
                        expected,
                        "{kind}, {put:?} then {take:?}, step {step}"
                    );
                }
                assert_eq!(platform.read(F), Some(NOP));
                assert_eq!(engine.changed_sites().count(), 0);
                drop(kept);
            }
        }
    }
}

/// A task that sleeps in a program of an older image goes on in the function's present body.
#[test]
fn older_images_lead_to_the_replacement() {
    let (platform, mut engine) = engine();
    let first = attach(&mut engine, Kind::Fexit);
    let find = |platform: &FakePlatform| {
        let image = a64::branch_target(platform.read(F).unwrap(), F).unwrap();
        let words = (image..image + 200).step_by(4);
        let link = words.filter(|at| {
            let word = platform.read(*at).unwrap_or(0);
            a64::is_call(word) && a64::branch_target(word, *at) == Some(F + 8)
        });
        link.last().expect("the image calls the function")
    };
    let old = find(&platform);
    attach(&mut engine, Kind::Fexit);
    let new = find(&platform);
    assert_ne!(old, new);
    let leads = |at: u64| a64::branch_target(platform.read(at).unwrap(), at).unwrap();
    engine.replace(F, Some(REPLACEMENT)).unwrap();
    assert_eq!([leads(old), leads(new)], [REPLACEMENT; 2]);
    engine.replace(F, None).unwrap();
    assert_eq!([leads(old), leads(new)], [F + 8; 2]);
    engine.detach(first).unwrap();
}

#[test]
fn what_is_taken_is_refused_and_stays() {
    let (platform, mut engine) = engine();
    let (_kept, stub) = stub(&engine);
    engine.claim(F, "the Linux way").unwrap();
    let refused = |error: AttachError| matches!(error.reason, Reason::Claimed { .. });
    assert!(engine.push_stub(F, stub).is_err_and(refused));
    assert!(engine.replace(F, Some(REPLACEMENT)).is_err_and(refused));
    assert!(engine.claim(F, "another").is_err_and(refused));
    engine.unclaim(F);
    engine.replace(F, Some(REPLACEMENT)).unwrap();
    let error = engine.replace(F, Some(REPLACEMENT + 64)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("replaced already, by code at 0xffffffff80007000")
    );
    let error = engine.claim(F, "the Linux way").unwrap_err();
    assert!(error.to_string().contains("taken by hooks by trampoline"));
    platform.set(F, NOP);
    assert!(
        engine
            .push_stub(F, stub)
            .is_err_and(|e| matches!(e.reason, Reason::WordAtSite { .. }))
    );
    assert!(!engine.remove_stub(F, stub.entry).unwrap());
}
