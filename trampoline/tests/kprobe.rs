// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kprobes by BRK on a platform in memory: the slot, how the instruction gives way, who excludes whom.

use trampoline::fakes::{Call, FakePlatform};
use trampoline::linux::kprobe::{BREAKPOINT, Breakpoint};
use trampoline::{
    ArgSpec, Callee, CallerIn, Engine, Grace, Guard, Kind, Platform, ProbeKind, Reason, Site,
    SiteTable, Spot,
};

const F: u64 = 0xffff_ffff_8000_1000;
const POOL: u64 = 0xffff_ffff_8400_0000;
const NOP: u32 = 0xd503_201f;
const ADD: u32 = 0x9100_0400; // add x0, x0, #1
const BL: u32 = 0x9400_0004; // bl F+32, where it is

fn engine() -> (FakePlatform, Engine<FakePlatform>) {
    let platform = FakePlatform::new(POOL..POOL + 0x2000, &[F]);
    platform.set(F + 8, ADD);
    platform.set(F + 12, ADD);
    platform.set(F + 16, BL);
    let site = Site {
        address: F,
        notrace: false,
    };
    let sites = SiteTable::new([site]).unwrap();
    (platform.clone(), Engine::new(platform, sites).unwrap())
}

fn spot(offset: u64) -> Spot {
    Spot {
        at: F + offset,
        function: F..F + 20,
    }
}

fn callee() -> Callee {
    Callee {
        address: F + 0x1000,
        data: None,
        name: "p".into(),
        stack_bytes: 0,
        original_stack: 0,
        guard: Guard::None,
        state: 0,
        sleepable: false,
        keep: None,
    }
}

fn put(engine: &mut Engine<FakePlatform>, offset: u64) -> Breakpoint<FakePlatform> {
    let breakpoint = engine.breakpoint(&spot(offset)).unwrap();
    engine.arm(&breakpoint).unwrap();
    breakpoint
}

/// NOP and BL may become BRK while cores run, ADD may not; a slot does what its instruction did, and goes on behind it.
#[test]
fn an_instruction_gives_way_to_a_brk() {
    let (platform, mut engine) = engine();
    let free = engine.pool().free_bytes();
    for (offset, word, held) in [(0, NOP, false), (8, ADD, true), (16, BL, false)] {
        let at = F + offset;
        let changed = |old, new| match held {
            true => Call::Replace(at, old, new),
            false => Call::Patch(at, old, new),
        };
        let breakpoint = put(&mut engine, offset);
        assert!(platform.take_calls().contains(&changed(word, BREAKPOINT)));
        assert_eq!(platform.read(at), Some(BREAKPOINT));
        let slot = breakpoint.slot();
        assert_eq!(engine.unwind(slot), Some(CallerIn::Probed { at }));
        let words: Vec<_> = (0..3)
            .map(|i| platform.read(slot + 4 * i).unwrap_or(0))
            .collect();
        let on = |index: usize| a64::branch_target(words[index], slot + 4 * index as u64);
        match word {
            // A call: x30, and a branch there; nothing of the slot stays on a stack.
            BL => assert!(!a64::is_call(words[1]) && !a64::is_call(words[2])),
            _ => assert_eq!((words[0], on(1)), (word, Some(at + 4))),
        }
        engine.disarm(&breakpoint).unwrap();
        assert!(platform.take_calls().contains(&changed(BREAKPOINT, word)));
        engine.retire_breakpoint(breakpoint);
        assert!(platform.take_calls().contains(&Call::Defer(Grace::Tasks)));
        assert_eq!(platform.end_grace_period(), 1);
    }
    assert_eq!(engine.pool().free_bytes(), free);
}

#[test]
fn who_is_there_keeps_the_others_out() {
    let (platform, mut engine) = engine();
    let by_brk = Reason::Claimed {
        by: "kprobes by BRK",
    };
    let entry = put(&mut engine, 0);
    let middle = put(&mut engine, 8);
    let error = engine.attach(F, ArgSpec::UNKNOWN, Kind::Fentry, callee());
    assert_eq!(error.unwrap_err().reason, by_brk);
    for offset in [0, 8] {
        let error = engine.probe(&spot(offset), ProbeKind::Here, callee());
        assert_eq!(error.unwrap_err().reason, by_brk);
        assert_eq!(
            engine.breakpoint(&spot(offset)).err().unwrap().reason,
            by_brk
        );
    }
    engine.disarm(&entry).unwrap();
    engine.disarm(&middle).unwrap();
    let hook = engine
        .attach(F, ArgSpec::UNKNOWN, Kind::Fentry, callee())
        .unwrap();
    let probe = engine.probe(&spot(8), ProbeKind::Here, callee()).unwrap();
    let words = [platform.read(F), platform.read(F + 8)];
    for (breakpoint, by) in [
        (&entry, "hooks by trampoline"),
        (&middle, "probes by a branch"),
    ] {
        assert_eq!(
            engine.arm(breakpoint).unwrap_err().reason,
            Reason::Claimed { by }
        );
    }
    assert_eq!([platform.read(F), platform.read(F + 8)], words);
    engine.detach(hook).unwrap();
    engine.unprobe(probe).unwrap();
    engine.arm(&entry).unwrap();
    engine.disarm(&entry).unwrap();
}
