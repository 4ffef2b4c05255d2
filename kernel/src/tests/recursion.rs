// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks on what the kernel itself runs on: scheduler, timer interrupt, allocator, console. Nothing is lost without a count.

use super::bpf::variable;
use super::hooks::{call, detach, function};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook, Shape};
use crate::arch::{cpu, irq, probe, smp, switch, timer};
use crate::bpf::{self, Engine};
use crate::context::{self, Context};
use crate::hook::{self, Function, HookId, Native, Place, Point, ProbeWay, Program, Protection};
use crate::ksyms::Flags;
use crate::workload::{workload_call, workload_six};
use crate::{check, integrity, println, rcu, sched, symbols};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::map::Map;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use trampoline::{Kind, ProbeKind};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "recursion.hooks_on_the_scheduler",
        seconds: 60,
        run: scheduler,
    },
    Test {
        name: "recursion.hooks_on_the_timer_interrupt",
        seconds: 60,
        run: timer_interrupt,
    },
    Test {
        name: "recursion.hooks_on_the_allocator",
        seconds: 60,
        run: allocator,
    },
    Test {
        name: "recursion.hooks_on_the_console",
        seconds: 60,
        run: console,
    },
    Test {
        name: "recursion.what_hooks_run_on_is_refused",
        seconds: 60,
        run: notrace,
    },
    Test {
        name: "recursion.two_hooks_that_call_each_other",
        seconds: 20,
        run: mutual,
    },
    Test {
        name: "recursion.a_synchronous_exception_keeps_the_word",
        seconds: 20,
        run: synchronous,
    },
    Test {
        name: "recursion.a_hook_preempted_in_its_guard_keeps_its_word",
        seconds: 120,
        run: preempted,
    },
    Test {
        name: "recursion.a_hook_moved_in_its_guard_keeps_its_word",
        seconds: 120,
        run: moved,
    },
];

/// Counts hits: all, those of one task in task context, and by context.
struct Watch {
    task: u64,
    hits: AtomicU64,
    own: AtomicU64,
    contexts: [AtomicU64; 4],
}

impl NativeHook for Watch {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        let context = context::current();
        self.hits.fetch_add(1, Relaxed);
        if let Some(count) = self.contexts.get(context as usize) {
            count.fetch_add(1, Relaxed);
        }
        if context == Context::Task && switch::current().id() == self.task {
            self.own.fetch_add(1, Relaxed);
        }
        0
    }
}

/// A function hooked by a native hook and by a compiled program that goes through many helpers.
struct Both {
    name: &'static str,
    ids: [HookId; 2],
    watch: Arc<Watch>,
}

const TALLY: &str = "tally";

impl Both {
    fn attach(name: &'static str) -> Result<Both, Failure> {
        let function = function(name)?;
        let watch = Arc::new(Watch {
            task: switch::current().id(),
            hits: AtomicU64::new(0),
            own: AtomicU64::new(0),
            contexts: Default::default(),
        });
        let point = Point::of(Kind::Fentry);
        let native = hook::attach_hook(&function, point, "watch".into(), watch.clone())
            .map_err(|e| failed(&e))?;
        match bpf::attach(TALLY, &function, Engine::Jit) {
            Ok(program) => Ok(Both {
                name,
                ids: [native, program],
                watch,
            }),
            Err(e) => {
                hook::detach(native).map_err(|e| failed(&e))?;
                Err(failed(&e))
            }
        }
    }

    /// Takes both off; none was ever turned away.
    fn detach(&self) -> Outcome {
        let misses = self.ids.map(hook::misses);
        for id in self.ids {
            hook::detach(id).map_err(|e| failed(&e))?;
        }
        check!(
            misses == [[0; 4]; 2],
            "{}: turned away: {misses:?}",
            self.name
        );
        Ok(())
    }

    fn hits(&self) -> u64 {
        self.watch.hits.load(Relaxed)
    }

    fn own(&self) -> u64 {
        self.watch.own.load(Relaxed)
    }
}

/// Where the program counts by task.
fn tally_map() -> Result<Arc<Map>, Failure> {
    let missing = || Failure::Failed("the program tally has no map by_task".into());
    bpf::map("tally.by_task").ok_or_else(missing)
}

/// What the program counted of this task's calls, whatever it is attached to. Allocates nothing.
fn tallied(map: &Map) -> u64 {
    let mut value = [0; 8];
    let task = switch::current().id() as u32;
    // Nothing is there before its first call.
    match map.lookup(&task.to_le_bytes(), &mut value) {
        Ok(()) => u64::from_le_bytes(value),
        Err(_) => 0,
    }
}

/// Runs `work` with both hooks on a function: how often this task called it, by the native hook and by the program.
fn own_calls(name: &'static str, work: impl FnOnce() -> Outcome) -> Result<(u64, u64), Failure> {
    let map = tally_map()?;
    let both = Both::attach(name)?;
    // Together: a tick in between would be a call that only one of them counts.
    let counts = || {
        let state = irq::disable();
        let counts = (both.own(), tallied(&map));
        irq::restore(state);
        counts
    };
    let before = counts();
    let done = work();
    let after = counts();
    both.detach()?;
    done?;
    Ok((after.0 - before.0, after.1 - before.1))
}

fn scheduler() -> Outcome {
    const YIELDS: u64 = 200;
    let others: Result<Vec<_>, _> = (0..3u64)
        .map(|n| {
            spawn("yielder", move || {
                let right = |i: u64| {
                    match i % 4 {
                        0 => sched::sleep_ns(1_000_000),
                        _ => sched::yield_now(),
                    }
                    call(n, i) == 3 * n + i
                };
                (0..400).all(right)
            })
        })
        .collect();
    let others = others?;
    for name in [
        "springboard::sched::yield_now",
        "<springboard::arch::switch::HandoffLock<springboard::sched::Queue>>::switch::<springboard::sched::schedule::{closure#0}>",
    ] {
        let counted = own_calls(name, || {
            (0..YIELDS).for_each(|_| black_box(sched::yield_now as fn())());
            Ok(())
        })?;
        // Each is one call of either; the second also runs when the tick takes the core.
        let exact = name.ends_with("yield_now");
        check!(
            counted.0 == counted.1
                && if exact {
                    counted.0 == YIELDS
                } else {
                    counted.0 >= YIELDS
                },
            "{name}: {YIELDS} yields, {counted:?} hits of hook and program"
        );
    }
    let blocks = own_calls("springboard::sched::block", || {
        (0..10).for_each(|_| black_box(sched::sleep_ns as fn(u64))(1_000_000));
        Ok(())
    })?;
    check!(
        blocks.0 == blocks.1 && blocks.0 >= 10,
        "10 sleeps, {blocks:?} hits of hook and program"
    );
    // All of it at once, under the same load.
    let mut all = Vec::new();
    for name in [
        "springboard::sched::preempt",
        "springboard::sched::block",
        "springboard::sched::sleep_ns",
        "springboard::sched::wake_sleepers",
        "<springboard::sched::WaitQueue>::wake_all",
    ] {
        all.push(Both::attach(name)?);
    }
    let right = others.into_iter().all(|task| task.join());
    sched::sleep_ns(20_000_000);
    let silent: Vec<_> = all
        .iter()
        .filter(|both| both.hits() == 0 && both.name != "springboard::sched::preempt")
        .map(|both| both.name)
        .collect();
    for both in &all {
        both.detach()?;
    }
    check!(right, "a task under hooks on the scheduler went wrong");
    check!(silent.is_empty(), "{silent:?} were never hit");
    Ok(())
}

/// With all cores still: ticks that there were, and what `counts` says.
fn still<T>(counts: impl FnOnce() -> T) -> (u64, T) {
    let parked = smp::park_others();
    let ticks = cpu::online().map(|core| cpu::per_cpu(core).ticks.load(Relaxed));
    let found = (ticks.sum(), counts());
    drop(parked);
    found
}

fn timer_interrupt() -> Outcome {
    let tick = Both::attach("springboard::sched::tick")?;
    let others: Result<Vec<_>, _> = [
        "trap_irq",
        "springboard::context::raise",
        "springboard::context::run_softirqs",
        "springboard::sched::wake_sleepers",
    ]
    .into_iter()
    .map(Both::attach)
    .collect();
    let others = others?;
    let counts = || (tick.hits(), others.iter().map(Both::hits).sum::<u64>());
    let (ticks, (hits, _)) = still(counts);
    let right = (0..50_u64).all(|i| {
        sched::sleep_ns(1_000_000);
        call(i, 1) == 3 * i + 1
    });
    let (ticks_now, (hits_now, rest)) = still(counts);
    let context =
        |both: &Both, context: Context| both.watch.contexts[context as usize].load(Relaxed);
    let in_hardirq = context(&tick, Context::Hardirq);
    let in_softirq = others
        .last()
        .map(|both| (context(both, Context::Softirq), both.hits()));
    let all = tick.hits();
    for both in others.iter().chain([&tick]) {
        both.detach()?;
    }
    check!(right, "a wrong result");
    check!(
        ticks_now - ticks == hits_now - hits && ticks_now > ticks,
        "{} ticks, {} hits",
        ticks_now - ticks,
        hits_now - hits
    );
    check!(
        in_hardirq >= hits_now && in_hardirq <= all && rest > 0,
        "{in_hardirq} of {all} ticks in hardirq; {rest} hits around them"
    );
    check!(
        in_softirq.is_some_and(|(softirq, all)| softirq > 0 && softirq <= all),
        "the timer softirq: {in_softirq:?}"
    );
    Ok(())
}

fn allocator() -> Outcome {
    const BOXES: u64 = 500;
    // What every allocation ends in, under the lock of the heap: what is in front of it is inlined here and there.
    for name in [
        "<springboard::mm::heap::Blocks>::allocate",
        "<springboard::mm::heap::Blocks>::deallocate",
    ] {
        let counted = own_calls(name, || {
            // Through a pointer, or the compiler does without the heap.
            for i in 0..BOXES {
                drop(black_box(Box::new as fn(u64) -> Box<u64>)(i));
            }
            Ok(())
        })?;
        check!(
            counted == (BOXES, BOXES),
            "{name}: {BOXES} boxes, {counted:?} hits of hook and program"
        );
        // The hook engine allocates while its own allocator is hooked, and takes the hook off all the same.
        let both = Both::attach(name)?;
        let before = both.own();
        let function = function("workload_call")?;
        for i in 0..20 {
            let id = hook::attach_native(&function, Native::Count, Point::of(Kind::Fentry))
                .map_err(|e| failed(&e))?;
            check!(call(i, 2) == 3 * i + 2, "a wrong result");
            let hits = hook::hits(id);
            hook::detach(id).map_err(|e| failed(&e))?;
            check!(hits == Some(1), "one call, {hits:?} hits");
        }
        rcu::barrier();
        let hits = both.own() - before;
        both.detach()?;
        check!(hits >= 20, "{name}: 20 attaches, {hits} hits");
    }
    let free = variable(TALLY, "no_room")?;
    check!(free == 0, "{free} calls found no room in the map");
    Ok(())
}

fn console() -> Outcome {
    const LINES: u64 = 5;
    let print = "springboard::console::print";
    let write = "<springboard::console::Port as core::fmt::Write>::write_str";
    for (name, exact) in [(print, true), (write, false)] {
        let counted = own_calls(name, || {
            for line in 1..=LINES {
                println!("a line of a test, number {line}, printed with its console hooked");
            }
            Ok(())
        })?;
        check!(
            counted.0 == counted.1 && counted.0 >= LINES && (!exact || counted.0 == LINES),
            "{name}: {LINES} lines, {counted:?} hits of hook and program"
        );
    }
    Ok(())
}

/// Whatever helpers, native hooks and trampolines reach has no site to be hooked at, and says so.
fn notrace() -> Outcome {
    let blob = symbols::blob().ok_or_else(|| Failure::Failed("no symbols".into()))?;
    let mut refused = 0;
    for symbol in blob.symbols() {
        if !symbol.flags.contains(Flags::NOTRACE) {
            continue;
        }
        let function = Function {
            address: symbol.address as usize,
            name: symbol.name,
        };
        let attached = hook::attach_native(&function, Native::Empty, Point::of(Kind::Fentry));
        let Err(e) = attached else {
            check!(false, "{} was hooked", symbol.name);
            continue;
        };
        let text = e.to_string();
        let said = "it is on the path of a hook itself (notrace); hook one of its callers";
        check!(
            text.contains(said) && text.contains(symbol.name),
            "{}: {text}",
            symbol.name
        );
        refused += 1;
    }
    check!(refused > 50, "only {refused} functions are notrace");
    // By name, as a person asks; what a helper's host does, the trampoline's slow side, the exception that a probe ends in.
    for name in [
        "springboard::trace::write",
        "springboard::arch::admit::admit",
        "trap_sync",
    ] {
        let text = hook::resolve(name).map_or_else(|e| e.to_string(), |_| "it was found".into());
        check!(
            text.contains("(notrace)") && text.contains("cargo xtask notrace"),
            "{name}: {text}"
        );
    }
    let report = integrity::check().map_err(|e| failed(&e))?;
    check!(
        report.accounted == 0 && report.unaccounted == 0,
        "{} words changed by what was refused",
        report.accounted + report.unaccounted
    );
    Ok(())
}

/// Calls another function from its hits.
struct Calls {
    target: fn(),
    hits: AtomicU64,
}

impl NativeHook for Calls {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        self.hits.fetch_add(1, Relaxed);
        black_box(self.target)();
        0
    }
}

fn call_six() {
    black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64)(1, 1, 1, 1, 1, 1);
}

fn call_call() {
    call(1, 1);
}

/// Reads where nothing is, which is a data abort, and goes on.
fn abort_and_call_six() {
    black_box(probe::read(&mut [0; 8], 0x10));
    call_six();
}

/// A hook has a data abort, and then calls a function with a BRK in it, whose program calls the hooked function: it is still the
/// context of the hook, which is turned away.
fn synchronous() -> Outcome {
    let calls = |target| {
        Arc::new(Calls {
            target,
            hits: AtomicU64::new(0),
        })
    };
    let (outer, inner) = (calls(abort_and_call_six as fn()), calls(call_call as fn()));
    let six = function("workload_six")?.address;
    let place = Place::of(six, 8).ok_or_else(|| failed(&"no symbols"))?;
    let program = Program::native("calls".into(), inner.clone(), Shape::Registers);
    let (kind, point) = (ProbeKind::Here, Point::of(Kind::Fentry));
    let brk = hook::attach_probe(&place, kind, ProbeWay::Breakpoint, point, program);
    let brk = brk.map_err(|e| failed(&e))?;
    let call_hook = function("workload_call").and_then(|f| {
        hook::attach_hook(&f, point, "calls".into(), outer.clone()).map_err(|e| failed(&e))
    });
    let hook = match call_hook {
        Ok(hook) => hook,
        Err(e) => {
            detach(brk)?;
            return Err(e);
        }
    };
    let result = call(1, 2);
    let misses = [hook, brk].map(hook::misses);
    detach(hook)?;
    detach(brk)?;
    let hits = [&outer, &inner].map(|calls| calls.hits.load(Relaxed));
    check!(
        (result, hits, misses) == (5, [1, 1], [[1, 0, 0, 0], [0; 4]]),
        "returned {result}; of the hook and the BRK hits {hits:?}, misses {misses:?}"
    );
    Ok(())
}

fn mutual() -> Outcome {
    const CALLS: u64 = 25;
    use Protection::{Context, Program};
    for (protections, expected) in [
        // Each call of one runs its hook, whose call of the other runs that one's, whose call of the first is turned away.
        ([Program; 2], ([2 * CALLS; 2], [CALLS; 2])),
        // While any program is active none runs.
        ([Context; 2], ([CALLS; 2], [CALLS; 2])),
        // While the first is active the other one runs, and the first does not while the other one is.
        ([Context, Program], ([CALLS, 2 * CALLS], [2 * CALLS, 0])),
    ] {
        let hook = |protection, name: &str, target| {
            let calls = Arc::new(Calls {
                target,
                hits: AtomicU64::new(0),
            });
            let point = Point {
                protection,
                ..Point::of(Kind::Fentry)
            };
            let id = hook::attach_hook(&function(name)?, point, "calls".into(), calls.clone())
                .map_err(|e| failed(&e))?;
            Ok::<_, Failure>((id, calls))
        };
        let hooks = [
            hook(protections[0], "workload_call", call_six as fn())?,
            hook(protections[1], "workload_six", call_call as fn())?,
        ];
        for i in 0..CALLS {
            check!(call(i, 1) == 3 * i + 1, "a wrong result");
            call_six();
        }
        let list = hook::list();
        let misses = hooks.each_ref().map(|(id, _)| {
            let listed = list.iter().find(|hook| hook.id == *id);
            listed.map_or([0; 4], |hook| hook.misses)
        });
        let hits = hooks.each_ref().map(|(_, calls)| calls.hits.load(Relaxed));
        for (id, _) in hooks {
            hook::detach(id).map_err(|e| failed(&e))?;
        }
        let in_task = misses.map(|misses| misses[0]);
        let elsewhere: u64 = misses.iter().flat_map(|misses| &misses[1..]).sum();
        check!(
            (hits, in_task) == expected && elsewhere == 0,
            "{protections:?}: hits {hits:?}, misses {misses:?}; expected {expected:?}"
        );
    }
    Ok(())
}

/// For how long a hook waits at most until it is moved to another core.
const UNTIL_MOVED_NS: u64 = 200_000_000;

/// Stays in its hit over many ticks or until it is moved, looks whether task, word and core are the same, and calls the hooked function.
#[derive(Default)]
struct Stays {
    hits: AtomicU64,
    moved: AtomicU64,
    other_word: AtomicU64,
    /// Blocks as well, in a sleepable program.
    sleeps: bool,
    /// It may be moved, and waits for that.
    movable: bool,
}

impl NativeHook for Stays {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        self.hits.fetch_add(1, Relaxed);
        let (home, word) = (cpu::index(), switch::current().word.load(Relaxed));
        let look = || {
            let found = switch::current().word.load(Relaxed);
            let wrong = found != word || word == 0;
            self.other_word.fetch_add(wrong.into(), Relaxed);
            cpu::index() != home
        };
        if self.movable {
            let from = timer::now_ns();
            while !look() && timer::now_ns() - from < UNTIL_MOVED_NS {}
        } else {
            let ticks = &cpu::per_cpu(home).ticks;
            let from = ticks.load(Relaxed);
            while ticks.load(Relaxed).wrapping_sub(from) < 5 {
                self.moved.fetch_add(look().into(), Relaxed);
            }
        }
        if self.sleeps {
            black_box(sched::sleep_ns as fn(u64))(2_000_000);
        }
        self.moved.fetch_add(look().into(), Relaxed);
        black_box(call as fn(u64, u64) -> u64)(1, 1);
        0
    }
}

/// The flavours of protection whose hooks can be preempted: the guard, and whether the program may sleep.
const FLAVOURS: [(Protection, bool); 4] = [
    (Protection::Program, false),
    (Protection::Context, false),
    (Protection::Program, true),
    (Protection::Context, true),
];

/// How often each task is hit.
const HIT_CALLS: u64 = 10;

/// So many hits of more tasks than there are cores: two a core.
fn all_hits() -> u64 {
    2 * HIT_CALLS * cpu::online().count() as u64
}

fn preempted() -> Outcome {
    for (protection, sleepable) in FLAVOURS {
        let (what, hook) = hit_by_tasks(protection, sleepable, false)?;
        let moved = hook.moved.load(Relaxed);
        check!(moved == 0, "{what}: on another core {moved} times");
    }
    check!(
        workload_call(1, 1) == 4,
        "a wrong result after the hooks are off"
    );
    Ok(())
}

fn moved() -> Outcome {
    if cpu::online().count() == 1 {
        return Err(Failure::Skipped("one core: two needed to move".into()));
    }
    for (protection, sleepable) in FLAVOURS {
        let (what, hook) = hit_by_tasks(protection, sleepable, true)?;
        let moved = hook.moved.load(Relaxed);
        // The last tasks have a core each, and nothing moves them.
        check!(
            2 * moved > all_hits(),
            "{what}: moved in {moved} of {} hits",
            all_hits()
        );
    }
    check!(
        workload_call(1, 1) == 4,
        "a wrong result after the hooks are off"
    );
    Ok(())
}

/// Tasks call a function whose hook stays in each hit, and calls the function itself. Each hit is one, each call from inside is turned
/// away and counted, and the word is the same all the time.
fn hit_by_tasks(
    protection: Protection,
    sleepable: bool,
    movable: bool,
) -> Result<(String, Arc<Stays>), Failure> {
    let hook = Arc::new(Stays {
        sleeps: sleepable,
        movable,
        ..Stays::default()
    });
    let point = Point {
        protection,
        sleepable,
        ..Point::of(Kind::Fexit)
    };
    let program = Program::native("stays".into(), hook.clone(), Shape::of(point.kind));
    let program = match movable {
        true => program.movable(),
        false => program,
    };
    let id = hook::attach(&function("workload_call")?, point, program).map_err(|e| failed(&e))?;
    let begin = timer::now_ns();
    let tasks: Result<Vec<_>, _> = (0..all_hits() / HIT_CALLS)
        .map(|n| {
            spawn("in a hook", move || {
                let mut wrong = 0u64;
                for i in 0..HIT_CALLS {
                    wrong += u64::from(call(n, i) != 3 * n + i);
                    // Out of the hook nothing binds it.
                    wrong += u64::from(switch::current().word.load(Relaxed) != 0);
                    sched::yield_now();
                }
                wrong
            })
        })
        .collect();
    let wrong: u64 = tasks?.into_iter().map(|task| task.join()).sum();
    let took = timer::now_ns() - begin;
    let misses = hook::misses(id);
    hook::detach(id).map_err(|e| failed(&e))?;
    let [hits, other] = [&hook.hits, &hook.other_word].map(|n| n.load(Relaxed));
    let what = format!("{protection:?}, sleepable: {sleepable}, {took} ns");
    check!(wrong == 0, "{what}: {wrong} wrong results or words");
    check!(
        hits == all_hits() && misses == [all_hits(), 0, 0, 0],
        "{what}: {} calls and as many from inside: hits {hits}, misses {misses:?}",
        all_hits()
    );
    check!(other == 0, "{what}: another word {other} times");
    Ok((what, hook))
}
