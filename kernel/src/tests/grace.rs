// SPDX-License-Identifier: MIT OR Apache-2.0
//! Grace periods: whom each flavour waits for, that none holds up another, and what is said of one that takes long.

use super::hooks::function;
use super::linux::settle;
use super::sleepers::{Image, pool_is_back};
use super::slow::wait_for_sleepers;
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::callee::{Hit, NativeHook};
use crate::arch::{cpu, probe, smp, switch, timer};
use crate::bpf::{self, Engine};
use crate::hook::linux::Way;
use crate::hook::{self, How, Point, Protection, Settings};
use crate::mm::{layout, stack};
use crate::rcu::{self, Flavour};
use crate::sched::{self, JoinHandle, WaitQueue};
use crate::workload::workload_call;
use crate::{check, slow, symbols};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::map::{Map, MapDefinition, MapKind, UpdateFlags};
use bpf_vm::suite::Case;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use trampoline::Kind;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "grace.tasks_rcu_waits_for_a_preempted_task",
        seconds: 30,
        run: grace,
    },
    Test {
        name: "grace.trace_rcu_waits_for_readers_that_sleep_and_that_run",
        seconds: 60,
        run: readers,
    },
    Test {
        name: "grace.trace_rcu_readers_never_see_what_was_freed",
        seconds: 120,
        run: racing_readers,
    },
    Test {
        name: "grace.an_image_waits_for_every_address_in_it",
        seconds: 60,
        run: referenced,
    },
    Test {
        name: "grace.an_image_waits_for_tasks_preempted_in_its_program",
        seconds: 60,
        run: preempted,
    },
    Test {
        name: "grace.a_map_waits_for_tasks_preempted_in_its_program",
        seconds: 60,
        run: maps,
    },
    Test {
        name: "grace.a_map_waits_for_tasks_asleep_in_its_program",
        seconds: 60,
        run: maps_of_sleepers,
    },
    Test {
        name: "grace.compiled_code_waits_for_tasks_in_it",
        seconds: 60,
        run: compiled,
    },
    Test {
        name: "grace.all_of_what_was_deferred_ends",
        seconds: 60,
        run: all_end,
    },
    Test {
        name: "grace.a_stall_shows_where_the_task_is",
        seconds: 60,
        run: stalls,
    },
];

/// A flag that a callback raises.
#[derive(Clone)]
struct Flag(Arc<AtomicBool>);

impl Flag {
    fn new() -> Flag {
        Flag(Arc::new(AtomicBool::new(false)))
    }

    fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Waits until it is up, for at most this long.
    fn within(&self, ns: u64) -> bool {
        let deadline = timer::now_ns() + ns;
        while !self.is_up() && timer::now_ns() < deadline {
            sched::sleep_ns(1_000_000);
        }
        self.is_up()
    }

    /// A callback that raises it.
    fn raiser(&self) -> impl FnOnce() + Send + 'static {
        let flag = self.clone();
        move || flag.raise()
    }
}

/// Longer than any grace period that nothing holds up, under emulation too.
const LONG: u64 = 5_000_000_000;
/// Long enough for one that should not end to end by mistake.
const SHORT: u64 = 60_000_000;

fn grace() -> Outcome {
    let called = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let spinner = {
        let stop = stop.clone();
        spawn("spinner", move || {
            while !stop.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        })?
    };
    sched::sleep_ns(5_000_000); // it runs, and is preempted now and then
    {
        let called = called.clone();
        rcu::defer(Flavour::Tasks, move || {
            called.store(true, Ordering::Release)
        });
    }
    sched::sleep_ns(30_000_000);
    let early = called.load(Ordering::Acquire);
    stop.store(true, Ordering::Relaxed);
    spinner.join();
    let begin = timer::now_ns();
    rcu::barrier();
    check!(
        !early,
        "the grace period ended although a task had no quiescent state"
    );
    check!(called.load(Ordering::Acquire), "the callback did not come");
    check!(
        timer::now_ns() - begin < 5_000_000_000,
        "the grace period took long"
    );
    Ok(())
}

/// How a task stands in a reader.
#[derive(Clone, Copy, Debug)]
enum Stand {
    Asleep,
    Running,
}

/// A task that is in a tasks-trace reader until `leave`; returns when it is in.
fn reader(how: Stand, leave: &Flag) -> Result<JoinHandle<()>, Failure> {
    let (inside, leave) = (Flag::new(), leave.clone());
    let begun = inside.clone();
    let task = spawn("reader", move || {
        switch::current().trace_enter();
        inside.raise();
        while !leave.is_up() {
            match how {
                Stand::Asleep => sched::sleep_ns(1_000_000),
                Stand::Running => core::hint::spin_loop(),
            }
        }
        switch::current().trace_leave();
    })?;
    check!(begun.within(LONG), "the reader did not begin");
    Ok(task)
}

fn readers() -> Outcome {
    for how in [Stand::Asleep, Stand::Running] {
        let leave = Flag::new();
        let task = reader(how, &leave)?;
        let (traced, both, tasks) = (Flag::new(), Flag::new(), Flag::new());
        rcu::defer(Flavour::TasksTrace, traced.raiser());
        rcu::defer_all(both.raiser());
        rcu::defer(Flavour::Tasks, tasks.raiser());
        if let Stand::Asleep = how {
            check!(
                tasks.within(LONG),
                "a sleeping reader held up tasks RCU, which it is not of"
            );
        }
        sched::sleep_ns(SHORT);
        let early = traced.is_up() || both.is_up();
        leave.raise();
        task.join();
        check!(!early, "{how:?}: the grace period ended with the reader in");
        check!(
            traced.within(LONG) && both.within(LONG) && tasks.within(LONG),
            "{how:?}: the reader is out, and the grace period does not end"
        );
    }
    Ok(())
}

/// The object that readers look up: its number; freed objects are marked.
static CURRENT: AtomicU64 = AtomicU64::new(0);
static FREED: [AtomicBool; 512] = [const { AtomicBool::new(false) }; 512];

fn racing_readers() -> Outcome {
    FREED.iter().for_each(|f| f.store(false, Ordering::Relaxed));
    CURRENT.store(0, Ordering::Relaxed);
    let stop = Flag::new();
    let tasks: Result<Vec<_>, _> = (0..4u64)
        .map(|i| {
            let stop = stop.clone();
            spawn("reader", move || {
                let (mut looks, mut wrong) = (0u64, 0u64);
                while !stop.is_up() {
                    // As a trampoline does it: plain loads and stores, no barrier. Asleep most of the time, and inside.
                    switch::current().trace_enter();
                    let object = &FREED[CURRENT.load(Ordering::Relaxed) as usize % 512];
                    if looks % 64 == i {
                        sched::sleep_ns(1_000_000);
                    }
                    wrong += u64::from(object.load(Ordering::Relaxed));
                    switch::current().trace_leave();
                    looks += 1;
                }
                (looks, wrong)
            })
        })
        .collect();
    let tasks = tasks?;
    for next in 1..60 {
        let old = CURRENT.swap(next, Ordering::AcqRel);
        rcu::defer(Flavour::TasksTrace, move || {
            FREED[old as usize % 512].store(true, Ordering::Release);
        });
        if next % 4 == 0 {
            rcu::synchronize(Flavour::TasksTrace);
        }
    }
    rcu::barrier();
    stop.raise();
    let freed = FREED.iter().filter(|f| f.load(Ordering::Relaxed)).count();
    for task in tasks {
        let (looks, wrong) = task.join();
        check!(looks > 0, "a reader never read");
        check!(
            wrong == 0,
            "{wrong} of {looks} looks were at a freed object"
        );
    }
    check!(freed == 59, "{freed} of 59 objects were freed");
    Ok(())
}

/// A place for images that no real one is at, so that nothing else holds addresses in it.
const SHAM: u64 = (layout::POOL + layout::POOL_SIZE) as u64 + 0x10_0000;
const SHAM_SIZE: u64 = 0x100;

/// Where a task holds an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holds {
    /// On its stack, asleep.
    Asleep,
    /// On its stack or in a register, running and never yielding.
    Running,
    /// On its shadow stack, asleep.
    Shadow,
    /// On the stack below a softirq that goes on.
    UnderSoftirq,
}

static RELEASE: WaitQueue = WaitQueue::new();

/// A sham image. Not inlined, so that the test's own frame holds no address in it.
#[inline(never)]
fn defer_image(number: u64) -> Flag {
    let freed = Flag::new();
    let image = SHAM + number * SHAM_SIZE;
    rcu::defer_unreferenced(image..image + SHAM_SIZE, freed.raiser());
    freed
}

/// Holds the last word of a sham image until `leave`, in frames of its own.
#[inline(never)]
fn hold(how: Holds, number: u64, inside: &Flag, leave: &Flag) -> u64 {
    let address = SHAM + (number + 1) * SHAM_SIZE - 4;
    let mut kept = [0, address];
    black_box(&mut kept);
    match how {
        Holds::Asleep => {
            inside.raise();
            RELEASE.wait_until(|| leave.is_up());
        }
        Holds::Shadow => {
            let task = switch::current();
            kept[1] = 0;
            black_box(&mut kept);
            task.shadow_push([address, 0, 0, 0]);
            clean(inside, leave);
            task.shadow_pop();
        }
        Holds::Running => {
            inside.raise();
            while !leave.is_up() {
                sched::quiescent(); // so that it is the search that finds it, not tasks RCU that waits
            }
        }
        Holds::UnderSoftirq => {
            *SOFTIRQ.lock() = Some((inside.clone(), leave.clone()));
            crate::context::raise(crate::context::Softirq::Test);
        }
    }
    black_box(&mut kept)[1]
}

/// Waits with no address below.
#[inline(never)]
fn clean(inside: &Flag, leave: &Flag) {
    stack::scrub();
    inside.raise();
    RELEASE.wait_until(|| leave.is_up());
}

/// What the softirq of [`Holds::UnderSoftirq`] raises and waits for.
static SOFTIRQ: crate::arch::lock::SpinLock<Option<(Flag, Flag)>> =
    crate::arch::lock::SpinLock::new(None);

fn softirq() {
    let flags = SOFTIRQ.lock().take();
    if let Some((inside, leave)) = flags {
        inside.raise();
        while !leave.is_up() {
            sched::quiescent();
            crate::arch::barrier::wfe();
        }
    }
}

fn referenced() -> Outcome {
    crate::context::TEST_SOFTIRQ.set(Some(&(softirq as fn())));
    let outcome = [
        Holds::Asleep,
        Holds::Shadow,
        Holds::Running,
        Holds::UnderSoftirq,
    ]
    .into_iter()
    .try_for_each(referenced_by);
    crate::context::TEST_SOFTIRQ.set(None);
    outcome
}

fn referenced_by(how: Holds) -> Outcome {
    if how == Holds::UnderSoftirq && cpu::online().count() == 1 {
        return Ok(()); // it would keep the only core
    }
    let (inside, leave) = (Flag::new(), Flag::new());
    let task = {
        let (inside, leave) = (inside.clone(), leave.clone());
        spawn("sleeper", move || hold(how, 1, &inside, &leave))?
    };
    check!(inside.within(LONG), "{how:?}: the task did not begin");
    let freed = [0, 1, 2].map(defer_image);
    let other = Flag::new();
    rcu::defer(Flavour::TasksTrace, other.raiser());
    stack::scrub();
    let neighbours = freed[0].within(LONG) && freed[2].within(LONG);
    let others = other.within(LONG);
    sched::sleep_ns(SHORT);
    let early = freed[1].is_up();
    leave.raise();
    RELEASE.wake_all();
    task.join();
    check!(
        !early,
        "{how:?}: an image was freed that a task returns into"
    );
    check!(neighbours, "{how:?}: images that no one returns into wait");
    check!(others, "{how:?}: tasks-trace RCU was held up");
    check!(
        freed.iter().all(|freed| freed.within(LONG)),
        "{how:?}: an image waits although no one holds its address"
    );
    Ok(())
}

/// Keeps tasks in a trampoline until a flag is up; they are preempted there.
struct Spin {
    inside: AtomicU64,
    leave: Flag,
}

impl NativeHook for Spin {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        self.inside.fetch_add(1, Ordering::Relaxed);
        // No `spin_loop`: the audit takes a YIELD in a hook for a wait.
        while !self.leave.is_up() {
            black_box(());
        }
        0
    }
}

fn preempted() -> Outcome {
    const TASKS: u64 = 10;
    rcu::barrier();
    let free = hook::pool_free();
    let spin = Arc::new(Spin {
        inside: AtomicU64::new(0),
        leave: Flag::new(),
    });
    let function = function("workload_call")?;
    let point = Point::of(Kind::Fentry);
    let id = hook::attach_hook(&function, point, "spin".into(), spin.clone());
    let id = id.map_err(|e| Failure::Failed(format!("{e}")))?;
    let image = Image::behind(function.address)?;
    let call = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
    let tasks: Result<Vec<_>, _> = (0..TASKS)
        .map(|n| spawn("spinner", move || call(n, 7) == 3 * n + 7))
        .collect();
    let deadline = timer::now_ns() + LONG;
    let inside = || spin.inside.load(Ordering::Relaxed);
    while inside() < TASKS && timer::now_ns() < deadline {
        sched::sleep_ns(1_000_000);
    }
    let inside = inside();
    let detached = hook::detach(id);
    // Longer than any grace period takes that nothing holds up: the image has to stay, for ten tasks are in it, on fewer cores.
    sched::sleep_ns(SHORT);
    let kept = image.is_there();
    spin.leave.raise();
    let right = tasks?.into_iter().all(JoinHandle::join);
    detached.map_err(|e| Failure::Failed(format!("{e}")))?;
    check!(inside == TASKS, "{inside} of {TASKS} tasks came in");
    check!(kept, "the image was freed under ten tasks that are in it");
    check!(right, "a call returned a wrong result");
    image.check_freed()?;
    pool_is_back(free)
}

/// Counts in its map who came in, and stays as long as the map's first word is 0; then adds the count to what another map has.
const STAYS: &str = "r1 = map[0][0]+0
r2 = 1
lock *(u64 *)(r1 + 8) += r2
stay: r0 = *(u64 *)(r1 + 0)
if r0 == 0 goto stay
r2 = *(u64 *)(r1 + 8)
r1 = map[1][0]+0
lock *(u64 *)(r1 + 0) += r2
exit
";

/// The same, asleep until a page of slow memory is there.
fn sleeps() -> String {
    format!(
        "r1 = map[0][0]+0
r2 = 1
lock *(u64 *)(r1 + 8) += r2
r1 = r10
r1 += -8
r2 = 8
r3 = {:#x} ll
call 148
r1 = map[0][0]+0
r2 = *(u64 *)(r1 + 8)
r1 = map[1][0]+0
lock *(u64 *)(r1 + 0) += r2
r0 = 0
exit
",
        layout::SLOW
    )
}

/// Whether a program's map and code were there while tasks were in it and it was taken off, and when the last one had left and a grace
/// period had passed.
#[derive(Debug)]
struct Kept {
    map: [bool; 2],
    code: [bool; 2],
}

/// As it should be.
const AS_LONG_AS_USED: [bool; 2] = [true, false];

/// What programs' maps and code wait for: an entry's image for tasks RCU, and if it may block, as an exit's, until no stack holds an address
/// of it; Linux's for tasks-trace RCU and tasks RCU, and an exit's until nobody is inside.
const PLACES: [How; 4] = [
    How::Trampoline(Kind::Fentry),
    How::Trampoline(Kind::Fexit),
    How::Linux(Way::Trampoline, Kind::Fentry),
    How::Linux(Way::Trampoline, Kind::Fexit),
];

/// Looks at what is kept of a program by each engine, in each place and with each protection where ten tasks can be inside behind a
/// detach.
fn each_kept(stand: Stand, engines: &[Engine], look: fn(&Kept, &str) -> Outcome) -> Outcome {
    for &engine in engines {
        for how in PLACES {
            for protection in [Protection::Program, Protection::None] {
                // Linux's detach waits for tasks that go round, and its guard turns away who comes to a core where someone is inside.
                let waits = matches!(stand, Stand::Running) || protection == Protection::Program;
                if matches!(how, How::Linux(..)) && waits {
                    continue;
                }
                let what = format!("{stand:?}, {how:?}, {protection:?}, {engine:?}");
                let kept = while_inside(stand, engine, how, protection, &what)?;
                look(&kept, &what)?;
            }
        }
    }
    Ok(())
}

fn look_at_map(kept: &Kept, what: &str) -> Outcome {
    check!(
        kept.map == AS_LONG_AS_USED,
        "{what}: whether the map was there under tasks in its program, and after: {kept:?}"
    );
    Ok(())
}

fn look_at_code(kept: &Kept, what: &str) -> Outcome {
    check!(
        kept.code == AS_LONG_AS_USED,
        "{what}: whether the code was there under tasks in it, and no BRK after: {kept:?}"
    );
    Ok(())
}

fn maps() -> Outcome {
    each_kept(Stand::Running, &[Engine::Jit], look_at_map)
}

fn maps_of_sleepers() -> Outcome {
    let engines = [Engine::Jit, Engine::Interpreter];
    each_kept(Stand::Asleep, &engines, look_at_map)
}

fn compiled() -> Outcome {
    each_kept(Stand::Running, &[Engine::Jit], look_at_code)?;
    each_kept(Stand::Asleep, &[Engine::Jit], look_at_code)
}

/// A map with a value of so many bytes.
fn own_map(bytes: u32) -> Result<Arc<Map>, Failure> {
    let definition = MapDefinition {
        name: "stays".into(),
        kind: MapKind::ARRAY,
        key_size: 4,
        value_size: bytes,
        max_entries: 1,
        flags: 0,
    };
    Map::create(definition, &bpf::Near).map_err(|e| failed(&e))
}

/// A word of its value.
fn word_of(map: &Map, index: usize) -> Option<u64> {
    let mut value = [0; 16];
    let value = value.get_mut(..map.value_size())?;
    map.lookup(&[0; 4], value).ok()?;
    let word = value.as_chunks::<8>().0.get(index)?;
    Some(u64::from_le_bytes(*word))
}

/// A program, which alone holds its map, is taken off while more tasks than there are cores are inside it.
#[inline(never)]
fn while_inside(
    stand: Stand,
    engine: Engine,
    how: How,
    protection: Protection,
    what: &str,
) -> Result<Kept, Failure> {
    const TASKS: u64 = 10;
    rcu::barrier();
    let free = hook::pool_free();
    let (map, sums) = (own_map(16)?, own_map(8)?);
    let (kept, address) = (Arc::downgrade(&map), map.value_address(0));
    let is_mapped = || address.is_some_and(|at| probe::read(&mut [0; 8], at) == 8);
    let case = Case {
        name: "stays",
        text: match stand {
            Stand::Running => STAYS.into(),
            Stand::Asleep => sleeps(),
        },
        ..Case::default()
    };
    let program = case.program(&[map, sums.clone()]);
    let program = Arc::new(program.map_err(|e| failed(&e))?);
    let program = bpf::runnable("stays", program, engine, how.shape());
    let program = program.map_err(|e| failed(&e))?;
    let target = function("workload_call")?;
    let settings = Settings {
        sleepable: matches!(stand, Stand::Asleep),
        protection: Some(protection),
        ..Settings::default()
    };
    let at = how.on(target).map_err(|e| failed(&e))?;
    let hooked = hook::hook_in(at, settings, program).map_err(|e| failed(&e))?;
    let code = match engine {
        Engine::Jit => Some(Image::of_program(&target)?),
        Engine::Interpreter => None,
    };
    slow::evict();
    slow::hold(true);
    let call = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
    let tasks: Result<Vec<_>, _> = (0..TASKS)
        .map(|n| spawn("stays", move || call(n, 7) == 3 * n + 7))
        .collect();
    let came = || kept.upgrade().and_then(|map| word_of(&map, 1));
    let deadline = timer::now_ns() + LONG;
    while came() < Some(TASKS) && timer::now_ns() < deadline {
        sched::sleep_ns(1_000_000);
    }
    let stay = match stand {
        Stand::Running => TASKS,
        Stand::Asleep => wait_for_sleepers(TASKS),
    };
    let inside = (came(), stay);
    let detached = hook::detach(hooked.id);
    // Longer than any grace period takes that nothing holds up.
    sched::sleep_ns(SHORT);
    let there = || code.as_ref().is_some_and(Image::is_there);
    let under = (came() == Some(TASKS) && is_mapped(), there());
    if let Some(map) = kept.upgrade() {
        let value = [1, TASKS].map(u64::to_le_bytes);
        // On an error tasks that go round stay, and the test takes too long.
        let _ = map.update(&[0; 4], value.as_flattened(), UpdateFlags::Any);
    }
    slow::hold(false);
    let right = tasks?.into_iter().all(JoinHandle::join);
    detached.map_err(|e| failed(&e))?;
    check!(
        inside == (Some(TASKS), TASKS),
        "{what}: tasks that came in, and that stay: {inside:?} of {TASKS}"
    );
    settle(free)?;
    // The image's grace period was over, and then that of the program is; what waits looks again and again.
    let _ = (0..100).any(|_| {
        rcu::barrier();
        kept.strong_count() == 0
    });
    let sum = word_of(&sums, 0);
    check!(
        right && sum == Some(TASKS * TASKS),
        "{what}: a call returned a wrong result, or the map did not say {TASKS} to each task in the end: {sum:?}"
    );
    let is_filled = || code.as_ref().is_some_and(Image::is_filled);
    Ok(Kept {
        map: [under.0, kept.strong_count() != 0 || is_mapped()],
        code: [under.1, !is_filled()],
    })
}

fn all_end() -> Outcome {
    let called = Arc::new(AtomicU64::new(0));
    for i in 0..300u64 {
        let count = called.clone();
        let callback = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let image = SHAM + 0x1000 + i * SHAM_SIZE;
        match i % 5 {
            0 => rcu::defer(Flavour::Rcu, callback),
            1 => rcu::defer(Flavour::Tasks, callback),
            2 => rcu::defer(Flavour::TasksTrace, callback),
            3 => rcu::defer_all(callback),
            _ => rcu::defer_unreferenced(image..image + SHAM_SIZE, callback),
        }
        if i % 50 == 0 {
            smp::send(cpu::index(), smp::Ipi::Reschedule);
        }
    }
    rcu::barrier();
    let called = called.load(Ordering::Relaxed);
    check!(called == 300, "{called} of 300 callbacks were called");
    let (_, waiting) = rcu::counts();
    check!(waiting == 0, "{waiting} still wait");
    Ok(())
}

#[inline(never)]
fn spin_in_here(leave: &Flag) -> bool {
    while !leave.is_up() {
        core::hint::spin_loop();
    }
    black_box(true)
}

#[inline(never)]
fn sleep_in_here(leave: &Flag) -> bool {
    while !leave.is_up() {
        sched::sleep_ns(1_000_000);
    }
    black_box(true)
}

fn stalls() -> Outcome {
    let outcome = stall_of("spin_in_here", Stand::Running)
        .and_then(|()| stall_of("sleep_in_here", Stand::Asleep));
    rcu::set_stall_limit(rcu::STALL_NS);
    outcome
}

fn stall_of(function: &str, how: Stand) -> Outcome {
    rcu::barrier();
    rcu::set_stall_limit(20_000_000);
    let leave = Flag::new();
    let id = Arc::new(AtomicU64::new(0));
    let task = {
        let (leave, id) = (leave.clone(), id.clone());
        spawn("holdout", move || {
            let me = switch::current();
            me.trace_enter();
            id.store(me.id(), Ordering::Release);
            black_box(match how {
                Stand::Running => spin_in_here(&leave),
                Stand::Asleep => sleep_in_here(&leave),
            });
            me.trace_leave();
        })?
    };
    while id.load(Ordering::Acquire) == 0 {
        sched::sleep_ns(1_000_000);
    }
    sched::sleep_ns(3_000_000); // it is in the function
    let flavour = match how {
        Stand::Running => Flavour::Tasks,
        Stand::Asleep => Flavour::TasksTrace,
    };
    let over = Flag::new();
    rcu::defer(flavour, over.raiser());
    let deadline = timer::now_ns() + LONG;
    while rcu::last_stall().is_none() && timer::now_ns() < deadline {
        sched::sleep_ns(5_000_000);
    }
    let stall = rcu::last_stall();
    leave.raise();
    task.join();
    check!(over.within(LONG), "the grace period did not end");
    let Some((reported, trace)) = stall else {
        return Err(Failure::Failed(format!(
            "{how:?}: nothing was reported of a grace period that took long"
        )));
    };
    let id = id.load(Ordering::Relaxed);
    check!(
        reported == id,
        "task {reported} was reported, not task {id}"
    );
    let names: Vec<_> = trace
        .iter()
        .map(|&address| symbols::Name(address - 4).function())
        .collect();
    check!(
        names.iter().any(|name| name.contains(function)),
        "{how:?}: {function} is not on the trace {names:?}"
    );
    Ok(())
}
