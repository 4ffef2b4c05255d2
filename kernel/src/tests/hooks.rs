// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks: attach, detach, arguments, several on one function, errors, and all of it under load.

use super::sleepers::pool_is_back;
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook};
use crate::arch::{code, cpu, timer};
use crate::hook::linux::Way;
use crate::hook::{self, Function, HookId, How, Native, Point, ProbeWay, Protection};
use crate::mm::layout::POOL;
use crate::sched;
use crate::workload::{workload_call, workload_six};
use crate::{check, rcu};
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use trampoline::{Kind, ProbeKind};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "hooks.count_every_call",
        seconds: 20,
        run: counts,
    },
    Test {
        name: "hooks.get_the_arguments_and_change_nothing",
        seconds: 20,
        run: arguments,
    },
    Test {
        name: "hooks.several_on_one_function_in_order",
        seconds: 20,
        run: several,
    },
    Test {
        name: "hooks.site_is_as_it_was_after_detach",
        seconds: 20,
        run: site_restored,
    },
    Test {
        name: "hooks.freed_code_is_filled_with_brk",
        seconds: 20,
        run: filled,
    },
    Test {
        name: "hooks.pool_comes_back",
        seconds: 30,
        run: pool_returns,
    },
    Test {
        name: "hooks.full_pool_is_an_error",
        seconds: 60,
        run: pool_full,
    },
    Test {
        name: "hooks.what_cannot_be_hooked_says_why",
        seconds: 20,
        run: refused,
    },
    Test {
        name: "hooks.detach_does_not_wait",
        seconds: 20,
        run: no_wait,
    },
    Test {
        name: "hooks.three_hundred_changes_under_load",
        seconds: 900,
        run: || stress(300),
    },
    Test {
        name: "hooks.ten_thousand_changes_under_load",
        seconds: 900,
        run: ten_thousand,
    },
];

/// The function of that name.
pub(super) fn function(name: &str) -> Result<Function, Failure> {
    hook::resolve(name).map_err(|e| failed(&e))
}

/// Calls the hooked function through a pointer that the compiler does not see through.
pub(super) fn call(a: u64, b: u64) -> u64 {
    black_box(workload_call as extern "C" fn(u64, u64) -> u64)(a, b)
}

struct Recorder {
    hits: AtomicU64,
    words: [AtomicU64; 8],
}

impl Recorder {
    fn new() -> Arc<Recorder> {
        Arc::new(Recorder {
            hits: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; 8],
        })
    }
}

impl NativeHook for Recorder {
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        self.hits.fetch_add(1, Ordering::Relaxed);
        for (to, from) in self.words.iter().zip(hit.words()) {
            to.store(*from, Ordering::Relaxed);
        }
        u64::MAX // a result that would do harm if it were used
    }
}

fn attach<T: NativeHook>(name: &str, hook: &Arc<T>) -> Result<HookId, Failure> {
    hook::attach_hook(
        &function(name)?,
        Point::of(Kind::Fentry),
        "test".into(),
        hook.clone(),
    )
    .map_err(|e| failed(&e))
}

/// Takes a hook off.
pub(super) fn detach(id: HookId) -> Outcome {
    hook::detach(id).map_err(|e| failed(&e))
}

fn counts() -> Outcome {
    let id = hook::attach_native(
        &function("workload_call")?,
        Native::Count,
        Point::of(Kind::Fentry),
    )
    .map_err(|e| failed(&e))?;
    for i in 0..1000 {
        check!(
            call(i, 7) == 3 * i + 7,
            "a hooked call returned the wrong result"
        );
    }
    let hits = hook::hits(id);
    detach(id)?;
    call(1, 1);
    check!(hits == Some(1000), "1000 calls were {hits:?} hits");
    Ok(())
}

fn arguments() -> Outcome {
    let recorder = Recorder::new();
    let id = attach("workload_six", &recorder)?;
    let f = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
    let result = f(0x11, 0x22, 0x33, 0x44, 0x55, u64::MAX);
    detach(id)?;
    let expected = f(0x11, 0x22, 0x33, 0x44, 0x55, u64::MAX);
    check!(
        result == expected,
        "hooked {result:#x}, unhooked {expected:#x}"
    );
    for (word, expected) in recorder
        .words
        .iter()
        .zip([0x11, 0x22, 0x33, 0x44, 0x55, u64::MAX])
    {
        let word = word.load(Ordering::Relaxed);
        check!(
            word == expected,
            "the hook got {word:#x} instead of {expected:#x}"
        );
    }
    Ok(())
}

static ORDER: AtomicU64 = AtomicU64::new(0);

struct Digit(u64);

impl NativeHook for Digit {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        ORDER.store(
            ORDER.load(Ordering::Relaxed) * 10 + self.0,
            Ordering::Relaxed,
        );
        0
    }
}

/// The digits that one call of the hooked function leaves, and whether its result was right.
fn digits() -> (u64, bool) {
    ORDER.store(0, Ordering::Relaxed);
    let right = call(5, 6) == 21;
    (ORDER.load(Ordering::Relaxed), right)
}

/// Hooks programs of these kinds onto one function, each with its place as its digit, and takes the third off: what a call leaves
/// before and after must be this.
fn in_order(kinds: &[Kind], protection: Protection, all: u64, without_third: u64) -> Outcome {
    let target = function("workload_call")?;
    let ids: Result<Vec<_>, _> = kinds
        .iter()
        .zip(1..)
        .map(|(kind, digit)| {
            let point = Point {
                protection,
                ..Point::of(*kind)
            };
            let hook = Arc::new(Digit(digit));
            hook::attach_hook(&target, point, "test".into(), hook).map_err(|e| failed(&e))
        })
        .collect();
    let mut ids = ids?;
    let seen = digits();
    detach(ids.remove(2))?;
    let seen_without = digits();
    for id in ids {
        detach(id)?;
    }
    check!(
        seen == (all, true) && seen_without == (without_third, true),
        "{kinds:?}, {protection:?}: order {seen:?}, not {all}, and without the third {seen_without:?}, not {without_third}"
    );
    let none = digits();
    check!(
        none == (0, true),
        "{kinds:?}: a hook ran after it was taken off: {none:?}"
    );
    Ok(())
}

fn several() -> Outcome {
    use Kind::{Fentry, Fexit, FmodRet, Fsession};
    for protection in [
        Protection::Program,
        Protection::Context,
        Protection::Pinned,
        Protection::None,
    ] {
        for kind in [Fentry, Fexit, FmodRet] {
            in_order(&[kind; 5], protection, 12345, 1245)?;
        }
        in_order(&[Fsession; 5], protection, 12345_12345, 1245_1245)?;
        // In attach order among each other: fentry and entries of sessions, then fmod_ret, and behind the function fexit and exits of
        // sessions.
        let mixed = [
            Fexit, FmodRet, Fsession, Fentry, Fsession, Fexit, FmodRet, Fentry,
        ];
        in_order(&mixed, protection, 3458271356, 45827156)?;
    }
    Ok(())
}

const NOP: u32 = 0xd503_201f;

fn words(function: &Function) -> [Option<u32>; 4] {
    core::array::from_fn(|i| code::read(function.address - 8 + 4 * i))
}

fn site_restored() -> Outcome {
    let function = function("workload_call")?;
    check!(
        words(&function) == [Some(NOP); 4],
        "the site is not four NOPs: {:x?}",
        words(&function)
    );
    let recorder = Recorder::new();
    let id = attach("workload_call", &recorder)?;
    let hooked = words(&function);
    detach(id)?;
    check!(
        hooked[2] != Some(NOP),
        "attach changed nothing: {hooked:x?}"
    );
    check!(
        hooked[3] == Some(NOP),
        "attach changed more than one word: {hooked:x?}"
    );
    check!(
        words(&function) == [Some(NOP); 4],
        "the site is not as it was: {:x?}",
        words(&function)
    );
    Ok(())
}

/// Where the branch at a hooked function's entry leads.
fn trampoline_of(function: &Function) -> Option<usize> {
    let word = code::read(function.address)?;
    a64::relocate::branch_target(word, function.address as u64).map(|t| t as usize)
}

fn filled() -> Outcome {
    let function = function("workload_call")?;
    let id = attach("workload_call", &Recorder::new())?;
    let image = trampoline_of(&function).unwrap_or(0);
    check!(image >= POOL, "no trampoline in the pool: {image:#x}");
    detach(id)?;
    rcu::barrier();
    for i in 0..4 {
        let word = code::read(image + 4 * i).unwrap_or(0);
        check!(
            word & 0xffe0_001f == 0xd420_0000,
            "{:#x} holds {word:#010x}, no BRK",
            image + 4 * i
        );
    }
    Ok(())
}

fn pool_returns() -> Outcome {
    rcu::barrier();
    let before = hook::pool_free();
    for _ in 0..20 {
        let id = attach("workload_call", &Recorder::new())?;
        let second = attach("workload_six", &Recorder::new())?;
        detach(id)?;
        detach(second)?;
    }
    pool_is_back(before)
}

fn pool_full() -> Outcome {
    rcu::barrier();
    let before = hook::pool_free();
    let hog = hook::take_pool();
    let error = hook::attach_native(
        &function("workload_call")?,
        Native::Count,
        Point::of(Kind::Fentry),
    );
    let result = call(2, 2);
    drop(hog);
    let Err(error) = error else {
        check!(false, "attached although the pool was full");
        return Ok(());
    };
    let text = error.to_string();
    check!(
        text.contains("pool"),
        "the message does not name the pool: {text}"
    );
    check!(result == 8, "the function is broken after a refused attach");
    check!(
        words(&function("workload_call")?) == [Some(NOP); 4],
        "a refused attach changed the site"
    );
    rcu::barrier();
    let after = hook::pool_free();
    check!(before == after, "{before} bytes were free, now {after}");
    counts()
}

/// Has no code of its own: it is part of [`melts`], and of that only.
#[inline(always)]
fn melted(number: u64) -> u64 {
    black_box(number) + 7
}

#[inline(never)]
fn melts(number: u64) -> u64 {
    melted(number)
}

/// However it is asked for, the error says where the code is; the site there is as it was.
fn inlined_away() -> Outcome {
    const WHERE: &str = "springboard::tests::hooks::melted was inlined away: its code is part of \
        springboard::tests::hooks::melts; hook that, or mark it #[inline(never)]";
    check!(black_box(melts)(3) == 10, "the target does not add seven");
    let says = |name: &str, how: How, text: &str| match how.at(name) {
        Ok(_) => Err(Failure::Failed(format!("{how:?} found {name}"))),
        Err(e) => {
            check!(e.to_string().contains(text), "{how:?}: {e}");
            Ok(())
        }
    };
    for how in [
        How::Trampoline(Kind::Fentry),
        How::Probe(ProbeKind::Here, ProbeWay::Detour),
        How::Many { exit: false },
        How::Linux(Way::List { all: false }, Kind::Fentry),
    ] {
        for name in [
            "melted",
            "hooks::melted",
            "springboard::tests::hooks::melted",
        ] {
            says(name, how, WHERE)?;
        }
        says("elted", how, "no function")?;
        // Part of more than three.
        says(
            "torture::functions::mix",
            how,
            " others; hook one of these, or mark",
        )?;
    }
    let site = words(&function("hooks::melts")?);
    check!(site == [Some(NOP); 4], "the site is {site:x?}");
    Ok(())
}

fn refused() -> Outcome {
    for (name, part) in [
        ("workload_cal", "workload_call"),
        ("memcpy", "cannot be hooked"),
        ("switch_stacks", "cannot be hooked"),
        ("", "no function"),
        ("*", "no function"),
    ] {
        match hook::resolve(name) {
            Ok(f) => check!(false, "{name:?} was resolved to {}", f.name),
            Err(e) => check!(e.to_string().contains(part), "{name:?}: {e}"),
        }
    }
    inlined_away()?;
    let nowhere = Function {
        address: function("workload_call")?.address + 8,
        name: "not_an_entry",
    };
    match hook::attach_native(&nowhere, Native::Empty, Point::of(Kind::Fentry)) {
        Ok(_) => check!(false, "attached to an address that is no entry"),
        Err(e) => check!(
            e.to_string().contains("not_an_entry"),
            "the message does not name the function: {e}"
        ),
    }
    Ok(())
}

fn no_wait() -> Outcome {
    // A task that has no quiescent state: the grace period cannot end, detach returns all the same.
    let stop = Arc::new(AtomicBool::new(false));
    let spinner = {
        let stop = stop.clone();
        spawn("spinner", move || {
            while !stop.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        })?
    };
    sched::sleep_ns(3_000_000);
    let id = attach("workload_call", &Recorder::new())?;
    let outcome = detach(id);
    sched::sleep_ns(20_000_000);
    let (_, waiting) = rcu::counts();
    stop.store(true, Ordering::Relaxed);
    spinner.join();
    outcome?;
    check!(
        waiting != 0,
        "nothing waits for the grace period although it cannot have ended"
    );
    rcu::barrier();
    Ok(())
}

/// Hits of one worker's calls, by the call's own stamp.
pub(super) struct Stamps {
    /// Per worker: the stamp last hit, and how often that one was.
    last: [AtomicU64; 8],
    count: [AtomicU64; 8],
}

impl NativeHook for Stamps {
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        let [stamp, worker, ..] = hit.words() else {
            return 0;
        };
        let worker = *worker as usize & 7;
        if self.last[worker].swap(*stamp, Ordering::Relaxed) == *stamp {
            self.count[worker].fetch_add(1, Ordering::Relaxed);
        } else {
            self.count[worker].store(1, Ordering::Relaxed);
        }
        0
    }
}

/// The attacher's clock: even while detached, odd while attached; it moves *outside* of attach and detach.
///
/// An attachment's life is four moments of this counter: 4k+1 attach begins, 4k+2 attach returned, 4k+3 detach is about to
/// be called, 4k+4 detach returned. A call that sees 4k+2 before it begins and after it ended lay wholly inside; one that
/// sees 4k (or 0) both times lay wholly outside; every other call overlaps a change.
static PHASE: AtomicU64 = AtomicU64::new(0);

fn ten_thousand() -> Outcome {
    if !crate::system().is_some_and(|s| s.options.long) {
        return Err(Failure::Skipped(
            "it takes minutes where many cores are emulated in parallel; the word `long` asks for it".into(),
        ));
    }
    stress(10_000)
}

fn stress(changes: u64) -> Outcome {
    let function = function("workload_call")?;
    stress_with(4, changes, &|_, stamps| {
        hook::attach_hook(
            &function,
            Point::of(Kind::Fentry),
            "stress".into(),
            stamps.clone(),
        )
    })
}

/// Attaches what is attached in this round.
pub(super) type Attach<'a> = dyn Fn(u64, &Arc<Stamps>) -> Result<HookId, hook::HookError> + 'a;

/// `workers` tasks, at most eight, call `workload_call` without pause while this one attaches, by `attach`, and detaches on it, `changes`
/// times. What is attached gets the two arguments first.
pub(super) fn stress_with(workers: u64, changes: u64, attach: &Attach) -> Outcome {
    let stamps = Arc::new(Stamps {
        last: [const { AtomicU64::new(0) }; 8],
        count: [const { AtomicU64::new(0) }; 8],
    });
    let stop = Arc::new(AtomicBool::new(false));
    PHASE.store(0, Ordering::SeqCst);
    let workers: Result<Vec<_>, _> = (0..workers)
        .map(|worker| {
            let (stamps, stop) = (stamps.clone(), stop.clone());
            spawn("caller", move || -> Result<[u64; 3], alloc::string::String> {
                let mut seen = [0u64; 3]; // inside, outside, overlapping
                let mut stamp = worker + 8;
                while !stop.load(Ordering::Relaxed) {
                    stamp += 8;
                    stamps.count[worker as usize].store(0, Ordering::Relaxed);
                    let before = PHASE.load(Ordering::SeqCst);
                    let result = call(stamp, worker);
                    let after = PHASE.load(Ordering::SeqCst);
                    if result != stamp * 3 + worker {
                        return Err(format!("call {stamp} of worker {worker} returned {result}"));
                    }
                    let hits = stamps.count[worker as usize].load(Ordering::Relaxed);
                    let (kind, allowed) = match (before % 4, before == after) {
                        (2, true) => (0, 1..=1),
                        (0, true) => (1, 0..=0),
                        _ => (2, 0..=1),
                    };
                    if !allowed.contains(&hits) {
                        return Err(format!(
                            "worker {worker}: a call between phases {before} and {after} was hit {hits} times"
                        ));
                    }
                    seen[kind] += 1;
                    sched::quiescent();
                }
                Ok(seen)
            })
        })
        .collect();
    let workers = workers?;
    let begin = timer::now_ns();
    let mut outcome = Ok(());
    for round in 0..changes {
        PHASE.fetch_add(1, Ordering::SeqCst);
        match attach(round, &stamps) {
            Ok(id) => {
                PHASE.fetch_add(1, Ordering::SeqCst);
                if round % 16 == 0 {
                    sched::yield_now(); // so that whole calls fit in
                }
                PHASE.fetch_add(1, Ordering::SeqCst);
                if let Err(e) = hook::detach(id) {
                    outcome = Err(failed(&e));
                    break;
                }
                PHASE.fetch_add(1, Ordering::SeqCst);
                if round % 16 == 8 {
                    sched::yield_now();
                }
            }
            // Freeing is by callback: when the pool is used up by what still waits, wait for it.
            Err(hook::HookError::Full(_)) => {
                rcu::barrier();
                PHASE.fetch_add(3, Ordering::SeqCst);
            }
            Err(e) => {
                outcome = Err(failed(&e));
                break;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = [0; 3];
    for worker in workers {
        match worker.join() {
            Ok(counts) => {
                for (sum, count) in seen.iter_mut().zip(counts) {
                    *sum += count;
                }
            }
            Err(why) => outcome = outcome.and(Err(Failure::Failed(why))),
        }
    }
    outcome?;
    crate::println!(
        "    {changes} times attached and detached in {} ms on {} cores; calls: {} inside, {} outside, {} overlapping",
        (timer::now_ns() - begin) / 1_000_000,
        cpu::online().count(),
        seen[0],
        seen[1],
        seen[2]
    );
    check!(seen.iter().sum::<u64>() > 0, "no call was made");
    rcu::barrier();
    Ok(())
}
