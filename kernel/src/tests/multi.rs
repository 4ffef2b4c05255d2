// SPDX-License-Identifier: MIT OR Apache-2.0
//! One program on many functions: arguments, cookie and function of each, beside other hooks, under load, asleep, on the whole kernel.

use super::hooks::{detach, function};
use super::sleepers::{pool_is_back, under_ten_sleepers};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook, Shape};
use crate::arch::pmu::{self, Counter};
use crate::arch::{switch, timer};
use crate::bpf::{self, Engine};
use crate::hook::linux::Way;
use crate::hook::{
    self, At, HookId, HookedIn, How, Many, Native, Point, Protection, Settings, WayIn,
};
use crate::mm::heap;
use crate::workload::{
    TRANSFER_BYTES, Transfer, workload_call, workload_nested, workload_six, workload_twelve,
};
use crate::{check, hooked, println, rcu, sched};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use trampoline::Kind;
use trampoline::registers::{PC, SP, x};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "multi.each_function_has_its_arguments_cookie_and_address",
        seconds: 30,
        run: each,
    },
    Test {
        name: "multi.natives_see_all_registers",
        seconds: 20,
        run: registers,
    },
    Test {
        name: "multi.beside_trampolines_in_any_order",
        seconds: 60,
        run: orders,
    },
    Test {
        name: "multi.on_and_off_under_load",
        seconds: 60,
        run: load,
    },
    Test {
        name: "multi.detached_under_ten_sleepers",
        seconds: 60,
        run: sleepers,
    },
    Test {
        name: "multi.misses_are_counted",
        seconds: 30,
        run: misses,
    },
    Test {
        name: "multi.what_fits_nothing_is_refused",
        seconds: 20,
        run: refused,
    },
    Test {
        name: "multi.every_function_of_the_kernel",
        seconds: 120,
        run: everything,
    },
];

/// The functions that [`calls`] calls, by name.
const CALLED: [&str; 4] = [
    "workload_call",
    "workload_six",
    "workload_twelve",
    "workload_nested",
];
const PATTERN: &str = "workload_*";

/// Calls each function of [`CALLED`] once, [`workload_call`] two times more; whether all results were right.
fn calls(n: u64) -> bool {
    let call = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
    let nested = black_box(workload_nested as extern "C" fn(u64, u64) -> u64);
    let six = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
    let twelve =
        black_box(workload_twelve as extern "C" fn(_, _, _, _, _, _, _, _, _, _, _, _) -> u64);
    let weights = |count: u64| (1..=count).map(|w| w * (n + w - 1)).sum::<u64>();
    [
        call(n, 7) == 3 * n + 7,
        six(n, n + 1, n + 2, n + 3, n + 4, n + 5) == weights(6),
        twelve(
            n,
            n + 1,
            n + 2,
            n + 3,
            n + 4,
            n + 5,
            n + 6,
            n + 7,
            n + 8,
            n + 9,
            n + 10,
            n + 11,
        ) == weights(12),
        nested(n, 5) == 4 * (n + 5),
    ]
    .iter()
    .all(|right| *right)
}

fn cookie(function: u64) -> u64 {
    function.rotate_left(17) ^ 0x5bd1
}

/// What `programs/multi.bpf.c` noted of a function.
fn noted(map: &str, function: u64) -> Result<[u64; 6], Failure> {
    let map = bpf::map(map).ok_or_else(|| Failure::Failed(format!("no map {map}")))?;
    let mut value = [0; 48];
    map.lookup(&function.to_le_bytes(), &mut value)
        .map_err(|e| failed(&e))?;
    let (words, _) = value.as_chunks::<8>();
    let mut noted = words.iter().map(|word| u64::from_le_bytes(*word));
    Ok(core::array::from_fn(|_| noted.next().unwrap_or_default()))
}

fn each() -> Outcome {
    each_by([WayIn::Springboard; 2]).map(drop)
}

/// Programs on [`PATTERN`], by these ways at entries and exits, see what is each function's own. Returns how many functions they were on,
/// and what the last one left out.
pub(super) fn each_by(ways: [WayIn; 2]) -> Result<(usize, String), Failure> {
    let mut on = (0, String::new());
    for engine in [Engine::Jit, Engine::Interpreter] {
        let how = engine.name();
        let attach = |program, way| {
            let at = |how: How, own: Option<&str>| {
                Ok(match how.at(own.unwrap_or_default())? {
                    At::Many(selection, exit) => At::Many(selection.with_cookies(cookie), exit),
                    At::LinuxMany(selection, way, kind) => {
                        At::LinuxMany(selection.with_cookies(cookie), way, kind)
                    }
                    other => other,
                })
            };
            let settings = Settings::default();
            bpf::attach_at(program, engine, way, settings, at).map_err(|e| failed(&e))
        };
        let entries = attach("multi/entry_note", ways[0])?;
        let exits = attach("multi/exit_note", ways[1])?;
        on = (exits.functions, exits.skipped.to_string());
        check!(
            entries.functions >= CALLED.len() && entries.functions == exits.functions,
            "{how}: {} and {} functions fit {PATTERN}",
            entries.functions,
            exits.functions
        );
        let mut before = Vec::new();
        for name in CALLED {
            let address = function(name)?.address as u64;
            let hits = |map| noted(map, address).map_or(0, |seen| seen[1]);
            before.push((hits("multi.entries"), hits("multi.exits")));
        }
        const CALLS: u64 = 100;
        for n in 0..CALLS {
            check!(calls(n), "{how}: a wrong result");
        }
        let (missed, missed_exits) = (hook::misses(entries.id), hook::misses(exits.id));
        detach(entries.id)?;
        detach(exits.id)?;
        check!(calls(1000), "{how}: a wrong result after the detach");
        check!(
            missed == [0; 4] && missed_exits == [0; 4],
            "{how}: misses {missed:?} {missed_exits:?}"
        );
        let n = CALLS - 1;
        for (name, before) in CALLED.into_iter().zip(before) {
            let address = function(name)?.address as u64;
            let (times, first, second, result) = match name {
                // The last call of it is the second of the last workload_nested.
                "workload_call" => (3, 5, n, 3 * 5 + n),
                "workload_nested" => (1, n, 5, 4 * (n + 5)),
                "workload_six" => (1, n, n + 1, (1..=6).map(|w| w * (n + w - 1)).sum()),
                _ => (1, n, n + 1, (1..=12).map(|w| w * (n + w - 1)).sum()),
            };
            let entry = noted("multi.entries", address)?;
            let [told, hits, a, b, _, pc] = entry;
            check!(
                [told, hits - before.0, a, b, pc]
                    == [cookie(address), times * CALLS, first, second, address],
                "{how}: the entry of {name} saw {entry:x?}"
            );
            let exit = noted("multi.exits", address)?;
            let [told, hits, a, _, sp, pc] = exit;
            check!(
                [told, hits - before.1, a, sp]
                    == [cookie(address), times * CALLS, result, entry[4]],
                "{how}: the exit of {name} saw {exit:x?}"
            );
            check!(
                crate::symbols::blob().is_some_and(|b| b.lookup(pc).is_some()),
                "{how}: {name} returns to {pc:#x}"
            );
        }
    }
    Ok(on)
}

/// The words of a context.
struct Registers([AtomicU64; 34]);

impl Default for Registers {
    fn default() -> Registers {
        Registers([const { AtomicU64::new(0) }; 34])
    }
}

/// A native hook: notes what it saw, and does what a test asks for.
#[derive(Default)]
struct Program {
    hits: AtomicU64,
    registers: Registers,
    function: AtomicU64,
    cookie: AtomicU64,
    /// Calls this function at every hit.
    calls: AtomicU64,
    /// The names that a stack trace gave.
    trace: AtomicBool,
    traced: AtomicU64,
}

impl NativeHook for Program {
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        self.hits.fetch_add(1, Relaxed);
        for (to, from) in self.registers.0.iter().zip(hit.words()) {
            to.store(*from, Relaxed);
        }
        self.function.store(hit.attachment().function, Relaxed);
        self.cookie.store(hit.attachment().cookie, Relaxed);
        if self.trace.load(Relaxed) {
            let mut trace = [0; 1];
            crate::arch::unwind::hook_trace(0, &mut trace);
            self.traced.store(trace[0], Relaxed);
        }
        // By a pointer that nothing sees through: what a hook may not do is not on the path of hooks (linker/audit.rules).
        match self.calls.load(Relaxed) {
            0 => {}
            1 => drop(black_box(workload_call as extern "C" fn(u64, u64) -> u64)(
                8, 9,
            )),
            _ => drop(black_box(
                workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64,
            )(1, 2, 3, 4, 5, 6)),
        }
        0
    }
}

impl Program {
    fn register(&self, offset: i64) -> u64 {
        let word = self.registers.0.get(offset as usize / 8);
        word.map_or(0, |word| word.load(Relaxed))
    }

    fn take_hits(&self) -> u64 {
        self.hits.swap(0, Relaxed)
    }
}

fn put<H>(pattern: &str, many: Many, program: &Arc<H>) -> Result<HookedIn, Failure>
where
    H: NativeHook + Send + Sync + 'static,
{
    let selection = hook::select(pattern).map_err(|e| failed(&e))?;
    let program = hook::Program::native("test".into(), program.clone(), Shape::Many);
    hook::attach_multi(selection.with_cookies(cookie), many, 0, program).map_err(|e| failed(&e))
}

/// At entries or exits, with the guard that programs have if nothing else is said.
fn many_at(exit: bool) -> Many {
    Many {
        exit,
        protection: Protection::Program,
    }
}

/// All ways to protect a program that nothing here makes recurse.
const PROTECTIONS: [Protection; 4] = [
    Protection::Program,
    Protection::Context,
    Protection::Pinned,
    Protection::None,
];

fn registers() -> Outcome {
    let call = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
    let six = function("workload_six")?.address as u64;
    let address = function("workload_call")?.address as u64;
    for protection in PROTECTIONS {
        for exit in [false, true] {
            let how = format!("{protection:?}, exit {exit}");
            let program = Arc::new(Program::default());
            program.trace.store(true, Relaxed);
            let many = Many {
                protection,
                ..many_at(exit)
            };
            let hooked = put(PATTERN, many, &program)?;
            let result = call(4, 9);
            let shown = hook::describe(address as usize).len();
            let traced = program.traced.load(Relaxed);
            detach(hooked.id)?;
            check!(result == 21, "{how}: a wrong result");
            let [x0, x1, sp, pc] = [x(0), x(1), SP, PC].map(|at| program.register(at));
            let expected = if exit { 21 } else { 4 };
            check!(
                x0 == expected && (exit || x1 == 9),
                "{how}: x0 {x0:#x}, x1 {x1:#x}"
            );
            let stack = switch::current().stack_range();
            check!(stack.contains(&(sp as usize)), "{how}: sp {sp:#x}");
            check!((pc == address) != exit, "{how}: pc {pc:#x}");
            let pstate = program.register(trampoline::registers::PSTATE);
            check!(pstate & 0xf == 5, "{how}: pstate {pstate:#x}");
            let (seen, told) = (program.function.load(Relaxed), program.cookie.load(Relaxed));
            check!(
                seen == address && told == cookie(address),
                "{how}: function {seen:#x}, cookie {told:#x}"
            );
            check!(
                traced == address,
                "{how}: the trace begins at {traced:#x}, not at the function"
            );
            check!(shown > 20, "{how}: {shown} instructions are shown");
        }
    }
    // A hit that finds another program active comes through the cold part, and has its own function's data there too.
    let (outer, inner) = (Arc::new(Program::default()), Arc::new(Program::default()));
    inner.calls.store(2, Relaxed);
    let ids = [
        put("workload_call", many_at(false), &inner)?.id,
        put(PATTERN, many_at(false), &outer)?.id,
        put(PATTERN, many_at(true), &outer)?.id,
    ];
    call(1, 1);
    let (seen, told) = (outer.function.load(Relaxed), outer.cookie.load(Relaxed));
    let hits = (outer.take_hits(), inner.take_hits());
    for id in ids {
        detach(id)?;
    }
    check!(hits == (4, 1), "{hits:?} hits, not 4 and 1");
    check!(
        [seen, told] == [address, cookie(address)],
        "the last hit was of {seen:#x}, cookie {told:#x}, not {six:#x} or {address:#x}"
    );
    Ok(())
}

/// The hooks of [`orders`].
const HOOKS: [(&str, Kind, bool); 4] = [
    ("entries of many", Kind::Fentry, true),
    ("exits of many", Kind::Fexit, true),
    ("fentry", Kind::Fentry, false),
    ("fexit", Kind::Fexit, false),
];

fn orders() -> Outcome {
    let target = function("workload_call")?;
    let call = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
    rcu::barrier();
    let free = hook::pool_free();
    const OFF: [[usize; 4]; 3] = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]];
    for (round, order) in permutations().into_iter().enumerate() {
        if let Some(&off) = OFF.get(round % OFF.len()) {
            let programs: [Arc<Program>; 4] = Default::default();
            let mut ids: [Option<HookId>; 4] = [None; 4];
            let mut n = 0;
            let mut look = |ids: &[Option<HookId>; 4]| {
                n += 1;
                let right = call(n, 2) == 3 * n + 2;
                let hits = programs.each_ref().map(|p| p.take_hits());
                let wanted = ids.map(|id| u64::from(id.is_some()));
                check!(right, "{order:?}, {off:?}: a wrong result");
                check!(
                    hits == wanted,
                    "{order:?}, {off:?}: hits {hits:?}, not {wanted:?}"
                );
                Ok(())
            };
            for &which in &order {
                let (_, kind, many) = HOOKS[which];
                let program = &programs[which];
                ids[which] = Some(if many {
                    put(PATTERN, many_at(kind == Kind::Fexit), program)?.id
                } else {
                    let label = "test".into();
                    hook::attach_hook(&target, Point::of(kind), label, program.clone())
                        .map_err(|e| failed(&e))?
                });
                look(&ids)?;
            }
            for place in off {
                if let Some(id) = ids[order[place]].take() {
                    detach(id)?;
                }
                look(&ids)?;
            }
        }
    }
    pool_is_back(free)
}

/// The orders of four things.
fn permutations() -> Vec<[usize; 4]> {
    let all = (0..256usize).map(|n| [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6]);
    all.filter(|order| (0..4).all(|which| order.contains(&which)))
        .collect()
}

fn load() -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    let stop = Arc::new(AtomicBool::new(false));
    let programs: [Arc<Program>; 2] = Default::default();
    // One stays on all the time, first with the body of another one in front of it, then with those that come and go behind it.
    let (before, stays) = (Arc::<Program>::default(), Arc::<Program>::default());
    let before = put(PATTERN, many_at(false), &before)?.id;
    let stays_on = put(PATTERN, many_at(false), &stays)?.id;
    let workers: Result<Vec<_>, _> = (0..4)
        .map(|n| {
            let stop = stop.clone();
            spawn("worker", move || {
                let (mut rounds, mut right) = (0, true);
                while !stop.load(Relaxed) {
                    right &= calls(4 * rounds + n);
                    rounds += 1;
                }
                (rounds, right)
            })
        })
        .collect();
    let workers = workers?;
    sched::sleep_ns(2_000_000);
    detach(before)?;
    let begin = timer::now_ns();
    let mut times = 0;
    while timer::now_ns() - begin < 300_000_000 {
        let ids = [
            put(PATTERN, many_at(false), &programs[0])?.id,
            put(PATTERN, many_at(true), &programs[1])?.id,
        ];
        sched::sleep_ns(2_000_000);
        for id in ids {
            detach(id)?;
        }
        times += 1;
    }
    stop.store(true, Relaxed);
    let done: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
    detach(stays_on)?;
    check!(done.iter().all(|(_, right)| *right), "a wrong result");
    let most: u64 = done.iter().map(|(rounds, _)| 6 * rounds).sum();
    let hits = stays.take_hits();
    check!(
        hits == most,
        "{hits} hits of {most} calls by the one that was on all the time, {times} times others were put on and off"
    );
    for program in &programs {
        let hits = program.take_hits();
        check!(
            hits > 0 && hits <= most,
            "{hits} hits of {most} calls, {times} times on and off"
        );
    }
    pool_is_back(free)
}

fn sleepers() -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    let program = Arc::new(Program::default());
    let hooked = put(PATTERN, many_at(true), &program)?;
    let kept = || hook::pool_free() < free;
    let (kept, right) = under_ten_sleepers(|| detach(hooked.id), kept)?;
    check!(kept, "the code was freed under ten tasks that return to it");
    check!(right, "a call over which the hook was taken off went wrong");
    let hits = program.take_hits();
    check!(hits == 0, "{hits} hits after the detach");
    pool_is_back(free)
}

/// Calls itself `n` times, by a pointer that nothing sees through; `n`.
#[inline(never)]
fn deep(n: u64) -> u64 {
    match n {
        0 => 0,
        n => 1 + black_box(deep as fn(u64) -> u64)(n - 1),
    }
}

fn misses() -> Outcome {
    // A program that calls what it hooks: turned away once a hit.
    let call = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
    for exit in [false, true] {
        let program = Arc::new(Program::default());
        program.calls.store(1, Relaxed);
        let hooked = put("workload_call", many_at(exit), &program)?;
        for n in 0..10 {
            check!(call(n, 1) == 3 * n + 1, "a wrong result");
        }
        let missed = hook::misses(hooked.id);
        detach(hooked.id)?;
        let hits = program.take_hits();
        check!(
            (hits, missed) == (10, [10, 0, 0, 0]),
            "exit {exit}: 10 calls from outside and 10 from inside, {hits} hits, misses {missed:?}"
        );
    }
    // Deeper than a task has entries for return addresses.
    let program = Arc::new(Program::default());
    let hooked = put("springboard::tests::multi::deep", many_at(true), &program)?;
    let result = black_box(deep as fn(u64) -> u64)(99);
    let missed: u64 = hook::misses(hooked.id).iter().sum();
    detach(hooked.id)?;
    let hits = program.take_hits();
    let entries = crate::task::SHADOW_ENTRIES as u64;
    check!(result == 99, "a wrong result: {result}");
    check!(
        (hits, missed) == (entries, 100 - entries),
        "100 calls in one another: {hits} hits, {missed} misses"
    );
    Ok(())
}

fn refused() -> Outcome {
    let attach = |pattern| {
        let count = Native::Count.program(Shape::Many);
        let hooked = hook::select(pattern)
            .and_then(|selection| hook::attach_multi(selection, many_at(false), 0, count));
        hooked.map_err(|e| e.to_string())
    };
    for (pattern, part) in [
        ("workload_cal", "the nearest names are workload_call"),
        ("", "no function fits"),
        ("springboard::arch::admit::admit*", "on a hook's own path"),
    ] {
        match attach(pattern) {
            Ok(hooked) => {
                detach(hooked.id)?;
                check!(false, "{pattern}: {} were hooked", hooked.functions);
            }
            Err(why) => check!(why.contains(part), "{pattern}: {why}"),
        }
    }
    let (way, settings) = (WayIn::Linux(Way::Fprobe), Settings::default());
    let at = |how: How, _: Option<&str>| how.at("*");
    check!(
        bpf::attach_at("empty", Engine::Jit, way, settings, at).is_err(),
        "a program of fentry was put on by fprobe"
    );
    Ok(())
}

/// What `work` takes: nanoseconds, and instructions of the whole system where they are counted.
fn measured<T>(work: impl FnOnce() -> T) -> (T, String) {
    sched::migrate_disable();
    let (begin, start) = (timer::now_ns(), pmu::read());
    let done = work();
    let (count, ns) = (pmu::difference(start, pmu::read()), timer::now_ns() - begin);
    sched::migrate_enable();
    let us = ns / 1000;
    let text = match pmu::counter() {
        Counter::None => format!("{us} us"),
        counter => format!("{us} us, {count} {}", counter.name()),
    };
    (done, text)
}

/// A native hook: counts its hits, and those of the functions of [`CALLED`] each for itself.
struct Counts {
    all: AtomicU64,
    functions: [(u64, AtomicU64); CALLED.len()],
}

impl Counts {
    fn new() -> Result<Counts, Failure> {
        let mut functions = [const { (0, AtomicU64::new(0)) }; CALLED.len()];
        for (entry, name) in functions.iter_mut().zip(CALLED) {
            entry.0 = function(name)?.address as u64;
        }
        let all = AtomicU64::new(0);
        Ok(Counts { all, functions })
    }

    fn all(&self) -> u64 {
        self.all.load(Relaxed)
    }

    /// Hits of the functions of [`CALLED`], in that order.
    fn of_called(&self) -> [u64; CALLED.len()] {
        self.functions
            .each_ref()
            .map(|(_, hits)| hits.load(Relaxed))
    }
}

impl NativeHook for Counts {
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        self.all.fetch_add(1, Relaxed);
        for (function, hits) in &self.functions {
            if *function == hit.attachment().function {
                hits.fetch_add(1, Relaxed);
            }
        }
        0
    }
}

/// Tasks that call, and how often each does, in [`known_calls`].
const CALLERS: u64 = 4;
const ROUNDS: u64 = 500;

/// A known number of calls while `counts` is on everything, and the whole kernel works: nobody else calls the functions of [`PATTERN`].
/// Beside it a program is on these alone, whose every hit calls one of them, which it must miss and `counts` must not.
fn known_calls(exit: bool, counts: &Counts, tcp: &mut Transfer) -> Outcome {
    let program = Arc::new(Program::default());
    program.calls.store(1, Relaxed);
    let beside = put(PATTERN, many_at(exit), &program)?;
    let before = counts.of_called();
    let callers: Result<Vec<_>, _> = (0..CALLERS)
        .map(|_| spawn("caller", || (0..ROUNDS).all(calls)))
        .collect();
    let moved = tcp.run(TRANSFER_BYTES);
    let done: Vec<_> = callers?.into_iter().map(|caller| caller.join()).collect();
    let right = done.iter().all(|right| *right);
    let counted = counts.of_called();
    let missed: u64 = hook::misses(beside.id).iter().sum();
    detach(beside.id)?;
    let hits = program.take_hits();
    moved.map_err(|e| failed(&e))?;
    check!(right, "exit {exit}: a wrong result");
    // `calls` calls `workload_call` three times, and the others once.
    let each = CALLERS * ROUNDS;
    let of_callers = [3 * each, each, each, each];
    let outside: u64 = of_callers.iter().sum();
    println!("{outside} calls of {CALLED:?}, and one from each hit: {hits} hits, {missed} misses");
    check!(
        hits + missed == 2 * outside && hits == outside,
        "exit {exit}: {outside} calls from outside and as many from inside, {hits} hits, {missed} misses"
    );
    let mut wanted = of_callers;
    wanted[0] += outside;
    let found: Vec<_> = counted.iter().zip(before).map(|(c, b)| c - b).collect();
    check!(
        found == wanted,
        "exit {exit}: on everything, {found:?} hits of {CALLED:?}, which were called {wanted:?} times"
    );
    Ok(())
}

/// What a multi-attach takes that does not grow with its functions, in bytes: the body, and what is known of it.
const SHARED_BYTES: usize = 2048;

fn everything() -> Outcome {
    rcu::barrier();
    let free = hook::pool_free();
    // Texts of marks stay for those that come after.
    let heap = || heap::usage().1 + hooked::kept();
    let mut tcp = Transfer::new();
    let (moved, plain) = measured(|| tcp.run(TRANSFER_BYTES));
    moved.map_err(|e| failed(&e))?;
    println!("tcp, {TRANSFER_BYTES} bytes: {plain}");
    for exit in [false, true] {
        rcu::barrier();
        let free_heap = heap();
        let counts = Arc::new(Counts::new()?);
        let (hooked, took) = measured(|| put("*", many_at(exit), &counts));
        let hooked = hooked?;
        let bytes = free - hook::pool_free();
        let of_heap = free_heap.saturating_sub(heap());
        println!(
            "exit {exit}: on {} functions in {took}, {bytes} bytes of the pool, {of_heap} of the heap; left out: {}",
            hooked.functions, hooked.skipped
        );
        let before = counts.all();
        let (moved, took) = measured(|| tcp.run(TRANSFER_BYTES));
        let hits = counts.all() - before;
        let misses = hook::misses(hooked.id);
        println!("tcp: {took}, {hits} hits, {misses:?} misses");
        let known = known_calls(exit, &counts, &mut tcp);
        let listed = hook::list();
        let (off, took) = measured(|| hook::detach(hooked.id));
        off.map_err(|e| failed(&e))?;
        println!("off in {took}");
        known?;
        let moved = moved.map_err(|e| failed(&e))?;
        check!(
            moved.bytes == TRANSFER_BYTES,
            "{} bytes arrived",
            moved.bytes
        );
        check!(
            hooked.functions > 1000 && hits > 1000,
            "{hits} hits on {} functions",
            hooked.functions
        );
        check!(
            bytes + of_heap <= 64 * hooked.functions + SHARED_BYTES,
            "{bytes} bytes of the pool and {of_heap} of the heap for {} functions",
            hooked.functions
        );
        check!(
            listed.iter().any(|l| l.id == hooked.id && l.bytes == bytes),
            "the list does not have it with {bytes} bytes"
        );
    }
    tcp.run(TRANSFER_BYTES).map_err(|e| failed(&e))?;
    pool_is_back(free)
}
