// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the Linux way refuses, and what is left when a site cannot be changed.

use super::hooks::{call, detach, function};
use super::linux::{Probe, attach, attach_to, free_at_rest, nothing_left, test};
use super::linux_returns::call_blocks;
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::hook::linux::{WAYS, Way};
use crate::hook::{self, HookError, HookId, Point, Settings, WayIn};
use crate::workload::{set_gate, workload_six};
use crate::{bpf, check, integrity, rcu, sched};
use alloc::string::ToString;
use alloc::sync::Arc;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use trampoline::Kind;

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

/// Which changes of sites fail, from now on: a bit each, the lowest first.
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Set at the first change that fails, which then waits for those who act on it.
static FAULT: AtomicBool = AtomicBool::new(false);

fn fails(_: u64) -> bool {
    let faults = FAULTS.load(Relaxed);
    FAULTS.store(faults >> 1, Relaxed);
    let fails = faults & 1 != 0;
    if fails && !FAULT.swap(true, Relaxed) {
        sched::sleep_ns(10_000_000);
    }
    fails
}

/// Runs `work` while changes of sites fail as `faults` says.
fn with_faults<T>(faults: u64, work: impl FnOnce() -> T) -> T {
    FAULTS.store(faults, Relaxed);
    FAULT.store(false, Relaxed);
    hook::linux::FAULT.set(Some(&(fails as fn(u64) -> bool)));
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
        let id = match with_faults(0b1110, on) {
            Err(HookError::Stuck { id, .. }) => id,
            other => return Err(Failure::Failed(alloc::format!("{other:?}"))),
        };
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
