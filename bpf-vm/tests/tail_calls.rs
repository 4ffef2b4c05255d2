// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tail calls, by interpreter and compiled code: where they lead, how many there may be, what is left behind.
mod support;

use std::sync::{Arc, atomic::AtomicU64};

use bpf_vm::{
    attachment::Attachment,
    interp::{FaultKind, Interpreter, Region},
    jit::{self, JitError, Target},
    map::{HeapMemory, Map, MapDefinition, MapKind, TailTarget},
    program::ValidatedProgram,
};
use support::program;

/// A program array of four slots.
fn programs() -> Arc<Map> {
    let definition = MapDefinition {
        name: "programs".into(),
        kind: MapKind::PROG_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 4,
        flags: 0,
    };
    Map::create(definition, &HeapMemory::with_limit(1 << 12)).unwrap()
}

/// Counts in the context's first word, then goes on in slot `slot`; -1 added to r0 if that fails.
fn step(slot: u32, add: u64) -> String {
    format!(
        "r6 = r1
        r2 = *(u64 *)(r1 + 0)
        r2 += {add}
        *(u64 *)(r1 + 0) = r2
        r2 = map[0]
        r3 = {slot}
        call 12
        r0 = *(u64 *)(r6 + 0)
        r0 += 1000
        exit"
    )
}

/// Runs `entry` with `targets` in the slots from 0 on, by every engine; r0 and the context's word afterwards.
fn run(entry: &str, targets: &[&str]) -> (u64, u64) {
    let map = programs();
    let maps = [map.clone()];
    let entry = program(entry, &maps);
    let targets: Vec<_> = targets.iter().map(|text| program(text, &maps)).collect();
    #[cfg(target_arch = "aarch64")]
    let pages: Vec<_> = targets
        .iter()
        .map(|target| {
            let pages = support::native::Pages::new(1 << 16);
            let code = jit::compile(target, &Target::new(pages.address())).unwrap();
            pages.load(&code);
            (pages.address() + u64::from(code.tail_entry), pages)
        })
        .collect();
    for (slot, target) in (0..).zip(&targets) {
        #[cfg(target_arch = "aarch64")]
        let address = pages[slot as usize].0;
        #[cfg(not(target_arch = "aarch64"))]
        let address = 0;
        let target = TailTarget {
            program: Arc::<ValidatedProgram>::clone(target),
            entry: AtomicU64::new(address),
            keep: None,
        };
        let old = map.set_program(slot, Some(Arc::new(target)));
        assert!(old.unwrap().is_none());
    }
    let words = [AtomicU64::new(0)];
    let context = words.as_ptr().expose_provenance() as u64;
    let attachment = Attachment {
        cookie: 7,
        ..Attachment::NONE
    };
    let interpreter = Interpreter::new(entry.clone());
    let regions = [Region::words(&words)];
    let outcome = interpreter.run_for(&attachment, &[context], &regions, 1_000_000);
    let outcome = outcome.unwrap();
    let result = (
        outcome.r0,
        words[0].swap(0, std::sync::atomic::Ordering::Relaxed),
    );
    let pages_entry = jit::compile(&entry, &Target::new(0x8_0000)).unwrap();
    assert!(pages_entry.tail_entry > 0);
    #[cfg(target_arch = "aarch64")]
    {
        let pages = support::native::Pages::new(1 << 16);
        let code = jit::compile(&entry, &Target::new(pages.address())).unwrap();
        pages.load(&code);
        for _ in 0..2 {
            // SAFETY: the interpreter has just run it with the same memory, and checked each access.
            let r0 = unsafe { pages.run(&attachment, [context, attachment.address()]) };
            let word = words[0].swap(0, std::sync::atomic::Ordering::Relaxed);
            assert_eq!((r0, word), result, "compiled");
        }
    }
    result
}

#[test]
fn a_tail_call_does_not_come_back() {
    let target = "r0 = *(u64 *)(r1 + 0)\nr0 += 5\nexit";
    assert_eq!(run(&step(0, 1), &[target]), (6, 1));
    assert_eq!(run(&step(1, 1), &["r0 = 1\nexit", target]), (6, 1));
}

#[test]
fn what_cannot_be_called_goes_on() {
    for slot in [1, 4, u32::MAX] {
        assert_eq!(run(&step(slot, 3), &["r0 = 0\nexit"]), (1003, 3), "{slot}");
    }
}

#[test]
fn there_are_33_at_most() {
    let forever = step(0, 1);
    // The entry, and 33 more.
    assert_eq!(run(&forever, &[&forever]), (1034, 34));
    let (ping, pong) = (step(1, 1), step(0, 1));
    assert_eq!(run(&ping, &[&ping, &pong]), (1034, 34));
}

/// What is called may ask for the attachment, which the caller hands on: so it is needed by a program that itself asks for
/// nothing.
#[test]
fn the_attachment_is_handed_on() {
    let cookie = "call 174\nr0 += 5\nexit";
    assert_eq!(run(&step(0, 1), &[cookie]), (12, 1));
    let needs = |text: &str| program(text, &[programs()]).needs_attachment();
    assert!(needs(&step(0, 1)) && needs(cookie));
    assert!(needs("r1 = 8\ncallx r1\nexit"));
    assert!(!needs("call 8\nexit"));
}

/// The count is one for the whole run, also where a function of the program makes the calls.
#[test]
fn functions_make_them_too() {
    let entry = "r6 = r1
        call local f
        r7 = r0
        r1 = r6
        call local f
        r0 += r7
        exit
        f: r8 = r1
        r2 = map[0]
        r3 = 0
        call 12
        r0 = *(u64 *)(r8 + 0)
        exit";
    let target = step(0, 1);
    // 33 calls in the first f, whose last target returns 1033; none is left for the second, which returns 33.
    assert_eq!(run(entry, &[&target]), (1033 + 33, 33));
}

#[test]
fn callbacks_make_none() {
    let text = "r1 = 1\nr2 = func f\nr3 = 0\nr4 = 0\ncall 181\nexit
        f: r1 = r2\nr2 = map[0]\nr3 = 0\ncall 12\nr0 = 0\nexit";
    let refused = jit::compile(&program(text, &[programs()]), &Target::new(0));
    assert_eq!(
        refused.map(|_| ()),
        Err(JitError::TailCallInCallback { slot: 11 })
    );
    let text = "r2 = *(u64 *)(r1 + 0)\nr3 = 0\ncall 12\nr0 = 0\nexit";
    let refused = jit::compile(&program(text, &[]), &Target::new(0));
    assert_eq!(refused.map(|_| ()), Err(JitError::TailCall { slot: 2 }));
}

/// The program that a run turned into has its own maps, and no longer those of the one it was.
#[test]
fn maps_stay_behind() {
    let (map, array) = (programs(), support::array(8, 3));
    // The interpreter leaves r7 as it is; the map's value is what was accessed last.
    let entry = "r7 = map[1][0]+8
        r0 = *(u64 *)(r7 + 0)
        r2 = map[0]
        r3 = 0
        call 12
        r0 = 1
        exit";
    let target = "r0 = *(u64 *)(r7 + 0)
        exit";
    let interpreter = Interpreter::new(program(entry, &[map.clone(), array.clone()]));
    for (maps, fits) in [(&[][..], false), (&[array][..], true)] {
        let target = TailTarget {
            program: program(target, maps),
            entry: AtomicU64::new(0),
            keep: None,
        };
        drop(map.set_program(0, Some(Arc::new(target))));
        match interpreter.run(&[], &[], 100) {
            Ok(outcome) => assert!(fits && outcome.r0 == 0, "{outcome:?}"),
            Err(fault) => {
                assert!(!fits && matches!(fault.kind, FaultKind::Memory { bytes: 8, .. }));
                assert_eq!(fault.slot, 0);
            }
        }
    }
}
