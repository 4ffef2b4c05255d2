// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the Linux way refuses, and what is left when a site cannot be changed.

use super::hooks::{call, detach, function};
use super::linux::{Probe, attach, attach_to, free_at_rest, nothing_left, test};
use super::linux_returns::call_blocks;
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::behind_first_word;
use crate::arch::code;
use crate::hook::linux::{Step, WAYS, Way};
use crate::hook::{self, HookError, HookId, Point, Settings, WayIn};
use crate::workload::{Callable, set_gate, workload_call, workload_encode, workload_six};
use crate::{bpf, check, integrity, rcu, sched};
use alloc::string::ToString;
use alloc::sync::Arc;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use trampoline::Kind;
use trampoline::linux::site::first_word;

pub(super) const TESTS: &[Test] = &[
    test("linux.what_does_not_fit_is_refused", 30, refused),
    test(
        "linux.an_image_that_failed_is_led_to_by_nothing",
        30,
        failed_image,
    ),
    test(
        "linux.a_return_outlives_an_attach_that_failed",
        60,
        failed_return,
    ),
    test("linux.what_cannot_be_undone_is_a_hook", 30, failed_twice),
    test(
        "linux.a_detach_that_failed_changes_nothing",
        60,
        failed_detach,
    ),
    test(
        "linux.a_site_that_could_not_be_turned_back_settles_first",
        120,
        unsettled,
    ),
    test(
        "linux.a_site_that_stayed_turned_is_used_again",
        30,
        stayed_turned,
    ),
    test(
        "linux.a_trampoline_that_cannot_be_undone_is_a_hook",
        30,
        failed_trampoline,
    ),
];

fn refused() -> Outcome {
    let says = |what: Result<HookId, HookError>, parts: &[&str]| {
        match what {
            Ok(_) => check!(false, "it was hooked; expected {parts:?}"),
            Err(e) => {
                let text = e.to_string();
                let all = parts.iter().all(|part| text.contains(part));
                check!(all, "{text:?} does not say {parts:?}");
            }
        }
        Ok(())
    };
    let probe = Arc::new(Probe::default());
    let other = Arc::new(Probe::default());
    let function = function("workload_call")?;
    let native = |point| hook::attach_hook(&function, point, "test".into(), other.clone());
    let entry = Point::of(Kind::Fentry);
    let taken = "take these off first";
    let id = attach(
        "workload_call",
        Way::CallOps { all: false },
        Kind::Fentry,
        &probe,
    )?;
    says(native(entry), &["workload_call", "the Linux way", taken])?;
    let list = Way::List { all: false };
    says(
        attach_to(&["workload_call"], list, entry, &other),
        &["per-callsite ops", taken],
    )?;
    detach(id)?;
    let id = native(entry).map_err(|e| failed(&e))?;
    let six_then_call = ["workload_six", "workload_call"];
    for way in WAYS {
        says(
            attach_to(&["workload_call"], way, entry, &probe),
            &["workload_call", "hooks by trampoline", taken],
        )?;
    }
    says(
        attach_to(&six_then_call, Way::Fprobe, entry, &probe),
        &["workload_call", taken],
    )?;
    detach(id)?;
    let sleepable = Point {
        sleepable: true,
        ..entry
    };
    says(
        attach_to(&["workload_call"], list, sleepable, &probe),
        &["must not block", "linux"],
    )?;
    let session = Point::of(Kind::Fsession);
    says(
        attach_to(&["workload_call"], Way::Trampoline, session, &probe),
        &["workload_call", "sessions"],
    )?;
    says(attach_to(&[], list, entry, &probe), &["no function"])?;
    let notrace = Point::of(Kind::FmodRet);
    says(
        attach_to(&["springboard_main"], Way::Trampoline, notrace, &probe),
        &["not marked overridable"],
    )?;
    let wrong = bpf::attach_at(
        "linux/entry_empty",
        bpf::Engine::Jit,
        WayIn::Linux(Way::Trampoline),
        Settings::default(),
        |how, _| how.on(function),
    );
    match wrong {
        Ok(_) => check!(false, "a kprobe.multi program went on a trampoline"),
        Err(e) => {
            let text = e.to_string();
            check!(text.contains("does not go with linux"), "{text}");
        }
    }
    // All is as it was: nothing refused has left a site behind.
    let report = integrity::check().map_err(Failure::Failed)?;
    check!(
        report.unaccounted == 0 && report.accounted == 0,
        "{} words are changed",
        report.accounted
    );
    check!(call(2, 2) == 8, "a wrong result");
    Ok(())
}

/// Which changes of sites fail, from now on, by [`Step`]: a bit each, the lowest first.
static FAULTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// Set at the first change that fails, which then waits for those who act on it.
static FAULT: AtomicBool = AtomicBool::new(false);

fn fails(step: Step, _: u64) -> bool {
    let left = &FAULTS[step as usize];
    let faults = left.load(Relaxed);
    left.store(faults >> 1, Relaxed);
    let fails = faults & 1 != 0;
    if fails && !FAULT.swap(true, Relaxed) {
        sched::sleep_ns(10_000_000);
    }
    fails
}

/// Runs `work` while changes of what sites lead to fail as `faults` says.
fn with_faults<T>(faults: u64, work: impl FnOnce() -> T) -> T {
    with_faults_of(&[(Step::Lead, faults)], work)
}

/// Runs `work` while changes of sites of each kind fail as is said of it.
fn with_faults_of<T>(faults: &[(Step, u64)], work: impl FnOnce() -> T) -> T {
    FAULTS.iter().for_each(|left| left.store(0, Relaxed));
    for (step, faults) in faults {
        FAULTS[*step as usize].store(*faults, Relaxed);
    }
    FAULT.store(false, Relaxed);
    hook::linux::FAULT.set(Some(&(fails as fn(Step, u64) -> bool)));
    let result = work();
    hook::linux::FAULT.set(None);
    result
}

fn failed_image() -> Outcome {
    let free = free_at_rest();
    // The change fails once, or is not to be had.
    for faults in [1, u64::MAX] {
        for kind in [Kind::Fentry, Kind::Fexit] {
            let probe = Arc::new(Probe::default());
            let on = || attach_to(&["workload_call"], Way::Trampoline, Point::of(kind), &probe);
            let attached = with_faults(faults, on);
            rcu::barrier();
            let result = call(1, 2);
            check!(
                matches!(attached, Err(HookError::Refused(..))) && result == 5,
                "faults {faults:#x}: {attached:?}, a call returned {result}"
            );
            check!(probe.take_hits() == [0; 4], "it is hit");
            nothing_left(&probe, free)?;
        }
    }
    Ok(())
}

fn failed_return() -> Outcome {
    let free = free_at_rest();
    let probe = Arc::new(Probe::default());
    set_gate(false);
    FAULT.store(false, Relaxed);
    let sleeper = spawn("sleeper", || {
        while !FAULT.load(Relaxed) {
            sched::sleep_ns(100_000);
        }
        call_blocks(3, 5) == 13
    })?;
    // The first site is led, a task comes in, the second one fails.
    let names = ["workload_blocks", "workload_call"];
    let on = || attach_to(&names, Way::FprobeExit, Point::of(Kind::Fexit), &probe);
    let attached = with_faults(0b10, on);
    sched::sleep_ns(50_000_000);
    rcu::barrier();
    let kept = Arc::strong_count(&probe);
    set_gate(true);
    let right = sleeper.join();
    let hits = probe.take_hits();
    check!(
        matches!(attached, Err(HookError::Refused(..))),
        "{attached:?}"
    );
    check!(kept > 1, "freed under a task that will return into it");
    check!(
        right && hits == [0; 4],
        "right: {right}, and hits {hits:?} of what is not attached"
    );
    nothing_left(&probe, free)
}

fn failed_twice() -> Outcome {
    let free = free_at_rest();
    let six = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
    for way in [Way::CallOps { all: false }, Way::FprobeExit] {
        let probe = Arc::new(Probe::default());
        // The second site fails, then the first one's way back, then the second one once more.
        let on = || {
            let names = ["workload_six", "workload_call"];
            attach_to(&names, way, Point::of(Kind::Fentry), &probe)
        };
        let id = stuck(with_faults(0b1110, on))?;
        let listed = hook::list().iter().any(|h| h.id == id);
        let right = six(1, 0, 0, 0, 0, 1) == 7 && call(1, 2) == 5;
        let hits = probe.take_hits();
        check!(
            listed && right && hits == [1, 0, 0, 0],
            "listed: {listed}, right: {right}, hits {hits:?}"
        );
        detach(id)?;
        nothing_left(&probe, free)?;
    }
    Ok(())
}

fn failed_detach() -> Outcome {
    let free = free_at_rest();
    let refused = |faults, id| {
        let detached = with_faults(faults, || hook::detach(id));
        check!(
            matches!(detached, Err(HookError::Refused(..))),
            "faults {faults:#b}: {detached:?}"
        );
        Ok(())
    };
    // The first change fails, and of what puts it back none, the first, the second, or all.
    for faults in [0b1, 0b11, 0b101, u64::MAX] {
        // A trampoline loses one of two programs, and then the other.
        let probes: [Arc<Probe>; 2] = Default::default();
        let [entry, exit] = &probes;
        let first = attach("workload_call", Way::Trampoline, Kind::Fentry, entry)?;
        let second = attach("workload_call", Way::Trampoline, Kind::Fexit, exit)?;
        let hit = |expected| {
            let found = (call(1, 2), [entry, exit].map(|p| p.take_hits()[0]));
            check!(
                found == (5, expected),
                "faults {faults:#b}: result and hits {found:?}, not {expected:?}"
            );
            Ok(())
        };
        refused(faults, second)?;
        hit([1, 1])?;
        detach(second)?;
        hit([1, 0])?;
        refused(faults, first)?;
        hit([1, 0])?;
        detach(first)?;
        hit([0, 0])?;
        nothing_left(entry, free)?;
        nothing_left(exit, free)?;
    }
    // Of two functions the second one fails, and then the first one's way back as well.
    let six = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
    for way in [Way::CallOps { all: false }, Way::FprobeExit] {
        for (faults, expected) in [(0b10, 2), (0b110, 1)] {
            let probe = Arc::new(Probe::default());
            let names = ["workload_six", "workload_call"];
            let id = attach_to(&names, way, Point::of(Kind::Fentry), &probe);
            let id = id.map_err(|e| failed(&e))?;
            refused(faults, id)?;
            let right = six(1, 0, 0, 0, 0, 1) == 7 && call(1, 2) == 5;
            let hits = probe.take_hits()[0];
            check!(
                right && hits == expected,
                "{} with faults {faults:#b}: right: {right}, {hits} hits, not {expected}",
                way.name()
            );
            detach(id)?;
            nothing_left(&probe, free)?;
        }
    }
    Ok(())
}

/// Two functions, in the order in which sites are changed: by address.
fn by_address() -> [(&'static str, Callable); 2] {
    let mut both = [
        ("workload_call", workload_call as Callable),
        ("workload_encode", workload_encode as Callable),
    ];
    both.sort_unstable_by_key(|(_, f)| *f as usize);
    both.map(|(name, f)| (name, black_box(f)))
}

/// Attaches to both.
fn on_both(probe: &Arc<Probe>) -> Result<HookId, HookError> {
    let names = by_address().map(|(name, _)| name);
    let way = Way::CallOps { all: false };
    attach_to(&names, way, Point::of(Kind::Fentry), probe)
}

const NOP: u32 = a64::Inst::NOP.encode();

/// The two words of a function's site.
fn site_of(f: Callable) -> [u32; 2] {
    let address = f as usize;
    [address, address + 4].map(|at| code::read(at).unwrap_or(0))
}

/// An attach fails at the second of both functions, and the first one's site cannot be turned back, or was turned before.
fn leave_turned(probe: &Arc<Probe>) -> Outcome {
    let [(_, f), _] = by_address();
    let others = u64::from(site_of(f) == [NOP; 2]);
    let faults = [(Step::Turn, 1 << others), (Step::Back, 0b1)];
    let attached = with_faults_of(&faults, || on_both(probe));
    let site = site_of(f);
    check!(
        matches!(attached, Err(HookError::Refused(..))) && site == [first_word(), NOP],
        "{attached:?}, and the site is {site:08x?}"
    );
    Ok(())
}

fn unsettled() -> Outcome {
    for way in WAYS {
        // Another attach that fails does not settle it either.
        for failures in [1, 2] {
            settles(way, failures)?;
        }
    }
    Ok(())
}

/// After so many attaches that fail one by that way: it waits for a task that is preempted between the two words.
fn settles(way: Way, failures: usize) -> Outcome {
    let free = free_at_rest();
    let [(name, f), _] = by_address();
    let expected = f(3, 4);
    let probe = Arc::new(Probe::default());
    leave_turned(&probe)?;
    let flags: [Arc<AtomicBool>; 3] = Default::default();
    let [inside, go_on, attached] = flags.clone();
    // It calls behind the first word without ever giving up its core, as if it had been preempted there before each call.
    let between = spawn("between", move || {
        let f = black_box(behind_first_word(f));
        let mut right = true;
        while !go_on.load(Relaxed) {
            right &= f(3, 4) == expected;
            inside.store(true, Relaxed);
        }
        right
    })?;
    let [inside, go_on, is_attached] = &flags;
    while !inside.load(Relaxed) {
        sched::sleep_ns(1_000_000);
    }
    let failed_again = (1..failures).try_for_each(|_| leave_turned(&probe));
    let own = probe.clone();
    let attaching = spawn("attaches", move || {
        let id = attach(name, way, Kind::Fentry, &own);
        attached.store(true, Relaxed);
        id
    });
    // Longer than an attach takes that waits for nobody.
    sched::sleep_ns(60_000_000);
    let (early, site) = (is_attached.load(Relaxed), site_of(f));
    go_on.store(true, Relaxed);
    let right = between.join();
    let id = attaching?.join();
    failed_again?;
    let id = id?;
    let (result, hits) = (f(3, 4), probe.take_hits());
    detach(id)?;
    let way = way.name();
    check!(
        !early && site == [first_word(), NOP],
        "{way}, {failures} failed: under a task between the two words it was attached ({early}) or the site changed: {site:08x?}"
    );
    check!(right, "{way}: a call behind the first word went wrong");
    check!(
        result == expected && hits == [1, 0, 0, 0],
        "{way}: returned {result}, hits {hits:?}"
    );
    check!(site_of(f) == [NOP; 2], "{way}: the site stays turned");
    nothing_left(&probe, free)
}

fn stayed_turned() -> Outcome {
    let free = free_at_rest();
    let [(name, f), _] = by_address();
    let expected = f(1, 2);
    let probe = Arc::new(Probe::default());
    leave_turned(&probe)?;
    let words = changed_words()?;
    let hooks = hook::list().len();
    check!(
        words == 1 && hooks == 0 && f(1, 2) == expected,
        "{words} words are changed, {hooks} hooks are there"
    );
    for way in WAYS {
        // It is not turned again, and not turned back either when the hook is taken off.
        let on = || attach(name, way, Kind::Fentry, &probe);
        let id = with_faults_of(&[(Step::Turn, 1)], on)?;
        let (result, hits) = (f(1, 2), probe.take_hits()[0]);
        with_faults_of(&[(Step::Back, 1)], || detach(id))?;
        let (words, site) = (changed_words()?, site_of(f));
        check!(
            (result, hits) == (expected, 1) && words == 1 && site == [first_word(), NOP],
            "{}: returned {result}, {hits} hits; {words} words are changed, the site is {site:08x?}",
            way.name()
        );
        check!(f(1, 2) == expected, "{}: wrong when off", way.name());
    }
    // A hook that is not of this way has it turned back.
    let native = || {
        let point = Point::of(Kind::Fentry);
        hook::attach_hook(&function(name)?, point, "native".into(), probe.clone())
            .map_err(|e| failed(&e))
    };
    let refused = with_faults_of(&[(Step::Back, 1)], native);
    let id = native()?;
    let (result, hits) = (f(1, 2), probe.take_hits()[0]);
    detach(id)?;
    check!(
        refused.is_err() && (result, hits) == (expected, 1) && site_of(f) == [NOP; 2],
        "refused: {}, returned {result}, {hits} hits; the site is {:08x?}",
        refused.is_err(),
        site_of(f)
    );
    nothing_left(&probe, free)
}

/// Words of code that are changed and accounted for; no others may be.
fn changed_words() -> Result<usize, Failure> {
    let report = integrity::check().map_err(Failure::Failed)?;
    check!(
        report.unaccounted == 0,
        "{} words are changed that no one accounts for",
        report.unaccounted
    );
    Ok(report.accounted)
}

fn failed_trampoline() -> Outcome {
    let free = free_at_rest();
    let [_, (name, f)] = by_address();
    let expected = f(1, 2);
    let probes: [Arc<Probe>; 2] = Default::default();
    let [tracer, program] = &probes;
    let call = || (f(1, 2), probes.each_ref().map(|p| p.take_hits()[0]));
    // The undoing fails, and then what puts it back, or not.
    for (faults, hits) in [(0b111, [0, 0]), (0b11, [1, 1])] {
        for kind in [Kind::Fentry, Kind::Fexit] {
            // A tracer that could not be taken off leads here only from the first function: so the second one's site is not where it
            // should be, and undoing a later change of it is a change too.
            let first = stuck(with_faults(0b1110, || on_both(tracer)))?;
            let on = || attach_to(&[name], Way::Trampoline, Point::of(kind), program);
            let second = stuck(with_faults(faults, on))?;
            let both = call();
            let listed = hook::list().iter().any(|h| h.id == second);
            detach(second)?;
            let alone = call();
            detach(first)?;
            check!(
                listed && both == (expected, hits),
                "{kind}, faults {faults:#b}: listed: {listed}, result and hits {both:?}, not {hits:?}"
            );
            // By now the site leads where it should.
            check!(
                alone == (expected, [1, 0]),
                "{kind}, faults {faults:#b}: then {alone:?}"
            );
            nothing_left(tracer, free)?;
            nothing_left(program, free)?;
        }
    }
    Ok(())
}

/// The hook that an attach made which failed and could not be undone.
fn stuck(attached: Result<HookId, HookError>) -> Result<HookId, Failure> {
    match attached {
        Err(HookError::Stuck { id, .. }) => Ok(id),
        other => Err(Failure::Failed(alloc::format!("{other:?}"))),
    }
}
