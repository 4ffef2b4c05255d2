// SPDX-License-Identifier: MIT OR Apache-2.0
//! Probes on a platform in memory: what is written when, what is refused and why, what a failure leaves.

use trampoline::fakes::{Call, FakePlatform};
use trampoline::{
    Callee, CallerIn, DetachError, Engine, Grace, Guard, Kind, Platform, PlatformError, ProbeKind,
    Reason, Site, SiteTable, Spot,
};

/// With a site; 16 words.
const F: u64 = 0xffff_ffff_8000_1000;
/// Without one; 16 words.
const CORE: u64 = 0xffff_ffff_8000_2000;
const NOTRACE: u64 = 0xffff_ffff_8000_3000;
const WORDS: u64 = 16;
const POOL: u64 = 0xffff_ffff_8400_0000;
const NOP: u32 = 0xd503_201f;
const ADD: u32 = 0x9100_0400; // add x0, x0, #1

fn engine() -> (FakePlatform, Engine<FakePlatform>) {
    let platform = FakePlatform::new(POOL..POOL + 0x2000, &[F]);
    for function in [F, CORE, NOTRACE] {
        (0..WORDS).for_each(|i| platform.set(function + 4 * i, ADD));
    }
    platform.set(F, NOP);
    platform.set(F + 4, NOP);
    let site = |address, notrace| Site { address, notrace };
    let sites = SiteTable::new([site(F, false), site(NOTRACE, true)]).unwrap();
    let engine = Engine::new(platform.clone(), sites).unwrap();
    (platform, engine)
}

fn spot(function: u64, offset: u64) -> Spot {
    Spot {
        at: function + offset,
        function: function..function + 4 * WORDS,
    }
}

fn callee(name: &str) -> Callee {
    Callee {
        address: 0xffff_ffff_8000_8000,
        data: None,
        name: name.into(),
        stack_bytes: 64,
        original_stack: 0,
        guard: Guard::None,
        state: 0,
        sleepable: false,
        keep: None,
    }
}

fn replaced(calls: &[Call]) -> Vec<&Call> {
    let changes = |call: &&Call| matches!(call, Call::Patch(..) | Call::Replace(..));
    calls.iter().filter(changes).collect()
}

/// The first and the last program change the instruction while all cores are held; those between by one store.
#[test]
fn an_instruction_gives_way_and_comes_back() {
    let (platform, mut engine) = engine();
    let free = engine.pool().free_bytes();
    let spot = spot(CORE, 8);
    let first = engine.probe(&spot, ProbeKind::Here, callee("a")).unwrap();
    let to_first = platform.read(spot.at).unwrap();
    assert_eq!(
        replaced(&platform.take_calls()),
        [&Call::Replace(spot.at, ADD, to_first)]
    );
    let second = engine.probe(&spot, ProbeKind::Here, callee("b")).unwrap();
    let to_both = platform.read(spot.at).unwrap();
    let calls = platform.take_calls();
    assert_eq!(replaced(&calls), [&Call::Patch(spot.at, to_first, to_both)]);
    assert!(calls.contains(&Call::Defer(Grace::Tasks)));
    assert_eq!(engine.detoured().collect::<Vec<_>>(), [(spot.at, to_both)]);
    assert_eq!(
        engine
            .probes()
            .map(|p| p.callee.name.clone())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    engine.unprobe(first).unwrap();
    let to_second = platform.read(spot.at).unwrap();
    assert_eq!(
        replaced(&platform.take_calls()),
        [&Call::Patch(spot.at, to_both, to_second)]
    );
    engine.unprobe(second).unwrap();
    assert_eq!(
        replaced(&platform.take_calls()),
        [&Call::Replace(spot.at, to_second, ADD)]
    );
    assert_eq!(
        engine.unprobe(second),
        Err(DetachError::Unknown { id: second })
    );
    assert_eq!(engine.detoured().count() + engine.probes().count(), 0);
    assert_eq!(platform.end_grace_period(), 3);
    assert_eq!(engine.pool().free_bytes(), free);
}

/// At an entry with a site nothing but the site's word and links change, and hooks of the function itself stay.
#[test]
fn an_entry_with_a_site_is_a_stub_of_its_chain() {
    let (platform, mut engine) = engine();
    let hook = engine
        .attach(
            F,
            trampoline::ArgSpec::UNKNOWN,
            Kind::Fentry,
            callee("fentry"),
        )
        .unwrap();
    let image = platform.read(F).unwrap();
    let here = spot(F, 0);
    let id = engine.probe(&here, ProbeKind::Here, callee("a")).unwrap();
    let returns = engine.probe(&here, ProbeKind::Return, callee("b")).unwrap();
    engine.unprobe(id).unwrap();
    assert_ne!(platform.read(F), Some(image));
    engine.unprobe(returns).unwrap();
    assert_eq!(platform.read(F), Some(image));
    engine.detach(hook).unwrap();
    assert_eq!(platform.read(F), Some(NOP));
    let calls = platform.take_calls();
    assert!(
        !calls.iter().any(|call| matches!(call, Call::Replace(..))),
        "{calls:?}"
    );
    // Someone may return into both probes that had a program of the return, and have been preempted in the other.
    let returned = |call: &&Call| matches!(call, Call::Defer(Grace::Unreferenced(_)));
    assert_eq!(calls.iter().filter(returned).count(), 2);
}

#[test]
fn what_is_refused_says_why() {
    let (platform, mut engine) = engine();
    let set = |offset: u64, word| platform.set(CORE + offset, word);
    set(8, 0xc85f_fc01); // ldaxr x1, [x0]
    set(12, 0x9100_0421); // add x1, x1, #1
    set(16, 0xb400_0061); // cbz x1, CORE+28
    set(20, 0xc802_fc01); // stlxr w2, x1, [x0]
    set(24, 0x35ff_ff82); // cbnz w2, CORE+8
    set(32, 0x5800_0041); // ldr x1, CORE+40
    set(40, 0x0000_0001);
    set(48, 0xd420_0020); // brk #1
    set(52, 0x17ff_fff3); // b CORE
    set(56, 0xd63f_03c0); // blr x30
    let mut refused = |at: Spot, kind| {
        let error = engine.probe(&at, kind, callee("a")).unwrap_err();
        let message = error.to_string();
        (error.reason, message)
    };
    use ProbeKind::{Here, Return};
    let exclusive = Reason::Exclusive { load: CORE + 8 };
    for (at, kind, reason, text) in [
        (
            spot(NOTRACE, 4),
            Here,
            Reason::Notrace,
            "hook one of its callers",
        ),
        (
            spot(F, 2),
            Here,
            Reason::NotAnInstruction { at: F + 2 },
            "multiples of 4",
        ),
        (
            spot(F, 64),
            Here,
            Reason::NotAnInstruction { at: F + 64 },
            "below its size",
        ),
        (
            spot(F, 4),
            Here,
            Reason::SecondWord { entry: F },
            "0xffffffff80001008",
        ),
        (
            spot(F, 8),
            Return,
            Reason::NotEntry { at: F + 8 },
            "without an offset",
        ),
        (spot(CORE, 8), Here, exclusive.clone(), "0xffffffff80002008"),
        (spot(CORE, 12), Here, exclusive.clone(), "never succeed"),
        (spot(CORE, 16), Here, exclusive.clone(), "before or behind"),
        (spot(CORE, 20), Here, exclusive.clone(), "before or behind"),
        (
            spot(CORE, 40),
            Here,
            Reason::Literal { by: CORE + 32 },
            "it is data",
        ),
        (
            spot(CORE, 44),
            Here,
            Reason::Literal { by: CORE + 32 },
            "it is data",
        ),
        (
            spot(CORE, 48),
            Here,
            Reason::Raises {
                at: CORE + 48,
                word: 0xd420_0020,
            },
            "brk #0x1",
        ),
        (
            spot(CORE, 0),
            Here,
            Reason::BranchToEntry { from: CORE + 52 },
            "probe a later instruction",
        ),
        (
            spot(CORE, 0),
            Return,
            Reason::BranchToEntry { from: CORE + 52 },
            "its callers",
        ),
    ] {
        let (found, message) = refused(at.clone(), kind);
        assert_eq!(found, reason, "{at:x?}");
        assert!(message.contains(text), "{message}");
    }
    let (reason, message) = refused(spot(CORE, 56), Here);
    assert!(
        matches!(reason, Reason::Displace(_)) && message.contains("blr x30"),
        "{message}"
    );
    assert_eq!(platform.take_calls(), [], "nothing was written");
    for offset in [4, 24, 28, 32, 52] {
        let spot = spot(CORE, offset);
        let id = engine.probe(&spot, Here, callee("a"));
        engine
            .unprobe(id.unwrap_or_else(|e| panic!("{e}")))
            .unwrap();
    }
}

#[test]
fn a_failure_leaves_everything_as_it_was() {
    let (platform, mut engine) = engine();
    let free = engine.pool().free_bytes();
    let spot = spot(CORE, 8);
    let busy = PlatformError::Host {
        at: spot.at,
        why: "a core did not come".into(),
    };
    let id = engine.probe(&spot, ProbeKind::Here, callee("a")).unwrap();
    let word = platform.read(spot.at).unwrap();
    platform.fail_next(busy.clone());
    let error = engine.unprobe(id).unwrap_err();
    assert!(error.to_string().contains("a core did not come"), "{error}");
    assert_eq!(
        (platform.read(spot.at), engine.probes().count()),
        (Some(word), 1)
    );
    engine.unprobe(id).unwrap();

    // Someone else's word.
    let id = engine.probe(&spot, ProbeKind::Here, callee("a")).unwrap();
    let word = platform.read(spot.at).unwrap();
    platform.set(spot.at, 0xd420_0080);
    let error = engine
        .probe(&spot, ProbeKind::Here, callee("b"))
        .unwrap_err();
    assert!(error.to_string().contains("brk #0x4"), "{error}");
    assert!(
        engine
            .unprobe(id)
            .unwrap_err()
            .to_string()
            .contains("brk #0x4")
    );
    platform.set(spot.at, word);
    engine.unprobe(id).unwrap();
    platform.end_grace_period();
    assert_eq!(engine.pool().free_bytes(), free);
}

/// Interrupted in a probe of the middle of a function, its own record is the way on only while it is there.
#[test]
fn a_trace_out_of_a_probe_begins_at_the_probed_instruction() {
    let (_, mut engine) = engine();
    let spot = spot(CORE, 8);
    engine.probe(&spot, ProbeKind::Here, callee("a")).unwrap();
    let lines: Vec<_> = engine
        .describe_probes(spot.function.clone())
        .skip(1)
        .collect();
    let callers: Vec<_> = lines
        .iter()
        .map(|l| engine.unwind(l.address).unwrap())
        .collect();
    let probed = CallerIn::Probed { at: spot.at };
    let moved = |l: &trampoline::Line<'_>| l.word == 0x9100_03fd; // mov x29, sp
    let recorded = lines.iter().position(moved).unwrap();
    assert!(callers[..=recorded].iter().all(|c| *c == probed));
    assert_eq!(callers[recorded + 1], CallerIn::FrameRecord);
    assert_eq!(
        callers.last(),
        Some(&CallerIn::FrameRecord),
        "cold and literals"
    );
    let displaced = lines.iter().position(|l| l.word == ADD).unwrap();
    assert_eq!(callers[displaced], probed);
}
