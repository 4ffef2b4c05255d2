// SPDX-License-Identifier: MIT OR Apache-2.0
//! Live patching: several functions are replaced together, task by task, so that no task runs half old, half new.
//!
//! ```text
//!   off  --apply-->  starting  -->  going over  -->  on  --detach-->  starting  -->  going back  -->  off
//!                                       ^  detach, apply: the other way  |
//!                                       +--------------------------------+
//! ```
//!
//! Each task has a version, 0 or 1 ([`Task::patch`]), the same in all tasks while nothing changes. A change leads the sites of the old
//! functions through switches in the pool (`trampoline::switch`), which send a task on by its version: at first all go where they went
//! before. When a tasks-RCU grace period has passed, nobody is on a way to a body that was laid before. Then task after
//! task gets the other version. When all have it, the sites lead straight to the functions that have it, and the switches are
//! freed after another tasks-RCU grace period. A change that is taken back half-way gives tasks their first version again.
//!
//! **When a task changes over**: when it is in none of the functions, old and new, nor in those that the patch says have to see one
//! version from beginning to end. So what one such function calls is all of one version. A task is in a function if it will go on at an
//! address behind the function's entry: where it was interrupted, or where something returns to (`unwind::each_way_back`); and
//! also if it will in a trampoline, a probe or a switch of the function, for there it may have chosen and not gone yet. At the entry itself it
//! will choose by its new version. A task that cannot be followed to the beginning of its stack is taken for one that is inside.
//!
//! **Why that is safe** against the task itself: a task that runs nowhere is changed under the queue's lock, so it starts
//! with the version written; one that runs is changed by its own core in the IPI's handler, between two of its instructions (`rcu/look.rs`).
//! A switch reads the version once.
//!
//! **Interrupts** run on a task's stack and go by its version: the task in SP_EL0 is the one that they interrupt. A handler runs
//! to its end with one version: it is not changed from another core, for its task runs; nor by the IPI, which finds the handler's
//! frames on the stack if it interrupts one (softirq) and does not come in others (hardirq, NMI). An NMI on top of the IPI's handler
//! begins and ends on one side of the store. What handlers of two tasks hand to each other may be of two versions, as between tasks.
//!
//! **New tasks** have the version that the change leads to, from birth: their stack is empty.
//!
//! One change at a time: a patch is refused while another one is on its way. A function that is replaced already, by whatever, is refused too:
//! what one patch assumes of a function the other would break.

use super::memory::may_hook;
use super::replace::check;
use super::{
    Change, Function, HookError, HookId, HookInfo, Kernel, Mechanism, attach_other, with_hooks,
};
use crate::arch::lock::SpinLock;
use crate::arch::unwind;
use crate::rcu::{self, Flavour, Watchdog, look};
use crate::sched::{self, Task, WaitQueue};
use crate::task::layout;
use crate::workload::NamedPatch;
use crate::{println, symbols};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use trampoline::program::CONTEXTS;
use trampoline::{Engine, Site, Switch};

/// How long a change may take before the tasks that it waits for are reported, in nanoseconds.
const STALL_NS: u64 = 5_000_000_000;
/// How long it waits between two looks at the tasks that are left, in nanoseconds.
const PAUSE_NS: u64 = 1_000_000;

/// Where a patch is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Phase {
    /// The sites lead to switches; nobody has changed over.
    Starting = 0,
    /// Tasks change over to the new functions.
    GoingOver = 1,
    /// Tasks change over to the old functions.
    GoingBack = 2,
    /// The new functions are in place.
    On = 3,
    /// The old ones are again.
    Off = 4,
}

impl Phase {
    /// The words for lists.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::GoingOver => "going over",
            Phase::GoingBack => "going back",
            Phase::On => "on",
            Phase::Off => "off",
        }
    }
}

/// A function and what takes its place.
#[derive(Clone, Copy)]
struct Pair {
    old: Function,
    new: Function,
}

impl Pair {
    /// Where a version's tasks go; `None`: the function itself.
    fn body(&self, new: bool) -> Option<u64> {
        new.then_some(self.new.address as u64)
    }

    fn old(&self) -> u64 {
        self.old.address as u64
    }
}

/// The addresses of a function behind its entry, and before its end: who is there has begun and not ended. The entry itself is what
/// every pointer to the function holds, and who stands there has yet to choose.
#[derive(Clone, Copy)]
struct Addresses {
    entry: u64,
    end: u64,
}

/// A patch: what its owner, its change and lists know of it.
struct Patch {
    id: HookId,
    name: String,
    pairs: Vec<Pair>,
    /// The functions that no task changes over in.
    inside: Vec<Addresses>,
    /// What is wanted: the new functions.
    wanted: AtomicBool,
    phase: AtomicU32,
    /// Tasks that have not changed over.
    left: AtomicUsize,
}

impl Patch {
    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::GoingOver,
            2 => Phase::GoingBack,
            3 => Phase::On,
            _ => Phase::Off,
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Release);
    }

    fn busy(&self) -> HookError {
        HookError::Busy {
            patch: self.name.clone(),
            id: self.id,
        }
    }

    fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }
}

/// A change that is on its way.
#[derive(Clone)]
struct Transition {
    patch: Arc<Patch>,
    /// The version of tasks that run the new functions; the other one is not it.
    new: u32,
    /// By pair.
    switches: Arc<Vec<Switch<Kernel>>>,
}

impl Transition {
    /// The version of tasks that run what is wanted.
    fn target(&self, wanted: bool) -> u32 {
        if wanted { self.new } else { 1 - self.new }
    }
}

/// The change that is on its way. Written with the hooks' lock held.
static TRANSITION: SpinLock<Option<Transition>> = SpinLock::new(None);
static WORK: WaitQueue = WaitQueue::new();
/// The version of all tasks while nothing changes. Written with the hooks' lock held.
static VERSION: AtomicU32 = AtomicU32::new(0);

fn transition() -> Option<Transition> {
    TRANSITION.lock().clone()
}

/// Starts the task that changes tasks over.
pub(super) fn start() -> bool {
    sched::spawn("livepatch", run).is_some()
}

/// Puts a patch on: all its functions or none. Returns when the change has begun; [`list`] says how far it is.
///
/// # Errors
/// A function has no such name, or may not be replaced so (see [`check`]); another change is on its way.
pub(crate) fn apply(named: &NamedPatch) -> Result<HookId, HookError> {
    if let Some(running) = transition().filter(|t| t.patch.name == named.name) {
        // It is on its way, perhaps off: the other way again.
        return with_hooks(|_| {
            let still = transition().is_some_and(|t| Arc::ptr_eq(&t.patch, &running.patch));
            if !still || running.patch.wanted() {
                return Err(running.patch.busy());
            }
            running.patch.wanted.store(true, Ordering::Release);
            Ok(running.patch.id)
        });
    }
    let function = |name: &&str| super::resolve(name).map_err(HookError::Name);
    let mut pairs = Vec::new();
    for (old, new) in named.pairs {
        let (old, new) = (function(old)?, function(new)?);
        pairs.push(Pair { old, new });
    }
    let whole = named.whole.iter().map(function);
    let whole = whole.collect::<Result<Vec<_>, _>>()?;
    let functions = pairs.iter().flat_map(|p| [p.old, p.new]).chain(whole);
    let inside = functions.filter_map(|function| addresses(&function));
    let inside = inside.collect();
    let applied = attach_other(|engine, id| {
        let patch = Arc::new(Patch {
            id,
            name: named.name.into(),
            pairs,
            inside,
            wanted: AtomicBool::new(true),
            phase: AtomicU32::new(Phase::Starting as u32),
            left: AtomicUsize::new(0),
        });
        for pair in &patch.pairs {
            check(engine, &pair.old, &pair.new)?;
        }
        begin(engine, &patch)?;
        PATCHES.lock().push(patch.clone());
        let functions = patch.pairs.iter().map(Pair::old).collect();
        Ok((LivePatch { patch }, functions))
    });
    WORK.wake_all();
    applied
}

fn addresses(function: &Function) -> Option<Addresses> {
    let (symbol, _) = symbols::blob()?.lookup(function.address as u64)?;
    Some(Addresses {
        entry: symbol.address,
        end: symbol.address + u64::from(symbol.size),
    })
}

/// Leads the old functions' sites through switches, to where they lead now, and hands the rest to the task.
fn begin(engine: &mut Engine<Kernel>, patch: &Arc<Patch>) -> Result<(), HookError> {
    if let Some(running) = transition() {
        return Err(running.patch.busy());
    }
    let now = VERSION.load(Ordering::Relaxed);
    let on = patch.phase() == Phase::On;
    let new = if on { now } else { 1 - now };
    let mut switches = Vec::new();
    for pair in &patch.pairs {
        let bodies = [pair.old() + Site::BYTES, pair.new.address as u64];
        let [zero, one] = if new == 1 {
            bodies
        } else {
            [bodies[1], bodies[0]]
        };
        let switch = Switch::new(engine.pool(), pair.old(), layout::PATCH as u16, zero, one);
        switches.push(switch.map_err(|reason| HookError::refused(pair.old.name, reason))?);
    }
    for (done, (pair, switch)) in patch.pairs.iter().zip(&switches).enumerate() {
        let led = engine.redirect(pair.old(), pair.body(on), Some(switch.address()));
        if let Err(error) = led {
            let mut begun = patch.pairs.iter().zip(&switches).take(done);
            let undone = begun.all(|(pair, switch)| {
                let (switch, body) = (Some(switch.address()), pair.body(on));
                engine.redirect(pair.old(), switch, body).is_ok()
            });
            // A switch that stays leads where the function did before, and has to stay for good.
            match undone {
                true => rcu::defer(Flavour::Tasks, move || drop(switches)),
                false => core::mem::forget(switches),
            }
            return Err(HookError::refused(pair.old.name, error.reason));
        }
    }
    patch.set_phase(Phase::Starting);
    *TRANSITION.lock() = Some(Transition {
        patch: patch.clone(),
        new,
        switches: Arc::new(switches),
    });
    Ok(())
}

/// A patch, among the hooks.
struct LivePatch {
    patch: Arc<Patch>,
}

impl Mechanism for LivePatch {
    fn info(&self) -> HookInfo {
        let patch = &self.patch;
        let names: Vec<_> = patch.pairs.iter().map(|pair| pair.old.name).collect();
        let switching = transition().filter(|t| Arc::ptr_eq(&t.patch, patch));
        HookInfo {
            id: patch.id,
            function: names.join(", "),
            kind: "livepatch",
            program: patch.name.clone(),
            engine: "kernel",
            sleepable: false,
            misses: [0; CONTEXTS],
            bytes: switching.map_or(0, |t| t.switches.iter().map(Switch::bytes).sum()) as usize,
            stack_bytes: 0,
        }
    }

    fn covers(&self, function: u64) -> bool {
        self.patch.pairs.iter().any(|pair| pair.old() == function)
    }

    fn replaces(&self, function: u64) -> bool {
        self.covers(function)
    }

    fn stands_in(&self, function: u64) -> bool {
        let mut pairs = self.patch.pairs.iter();
        pairs.any(|pair| pair.new.address as u64 == function)
    }

    fn changes(&self) -> Vec<Change> {
        Vec::new()
    }

    fn hits(&self) -> Option<u64> {
        None
    }

    /// Begins to take it off, or turns it round on its way on.
    fn detach(&mut self, engine: &mut Engine<Kernel>) -> Result<(), HookError> {
        let patch = &self.patch;
        if !patch.wanted() {
            return Err(patch.busy());
        }
        if patch.phase() == Phase::On {
            begin(engine, patch)?;
        }
        patch.wanted.store(false, Ordering::Release);
        WORK.wake_all();
        Ok(())
    }

    fn leaves_later(&self) -> bool {
        true
    }
}

/// A patch, for a list.
pub(crate) struct Status {
    /// Its hook.
    pub id: HookId,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub phase: Phase,
    /// Tasks that have not changed over.
    pub left: usize,
}

/// Every patch that is on, or on its way. The hooks' lock is not needed to look.
static PATCHES: SpinLock<Vec<Arc<Patch>>> = SpinLock::new(Vec::new());

/// The patches that are on, or on their way.
pub(crate) fn list() -> Vec<Status> {
    let patches = PATCHES.lock().clone();
    let status = |patch: &Arc<Patch>| Status {
        id: patch.id,
        name: patch.name.clone(),
        phase: patch.phase(),
        left: patch.left.load(Ordering::Relaxed),
    };
    patches.iter().map(status).collect()
}

/// What a look goes by.
struct Search {
    patch: Arc<Patch>,
    target: u32,
}

static SEARCH: SpinLock<Option<Arc<Search>>> = SpinLock::new(None);

/// The task's life.
fn run() {
    loop {
        WORK.wait_until(|| TRANSITION.lock().is_some());
        if let Some(transition) = transition() {
            change_over(&transition);
        }
    }
}

/// Brings all tasks to the version that is wanted in the end, and the sites with them.
fn change_over(transition: &Transition) {
    let patch = &transition.patch;
    // Who was on his way to a body when the sites were redirected has arrived.
    rcu::synchronize(Flavour::Tasks);
    let mut watchdog = Watchdog::with_limit("a live patch", STALL_NS);
    let mut wanted = patch.wanted();
    loop {
        if patch.wanted() != wanted {
            wanted = patch.wanted();
            watchdog = Watchdog::with_limit("a live patch", STALL_NS);
        }
        let target = transition.target(wanted);
        patch.left.store(others(target).len(), Ordering::Relaxed);
        patch.set_phase(if wanted {
            Phase::GoingOver
        } else {
            Phase::GoingBack
        });
        // First what is born, then what is there: nobody is missed.
        sched::set_patch(target);
        look_once(patch, target);
        let left = others(target);
        patch.left.store(left.len(), Ordering::Relaxed);
        if left.is_empty() {
            match finish(transition, wanted) {
                Ok(true) => return,
                Ok(false) => continue,
                Err(e) => println!("live patch {}: {e}; tried again", patch.name),
            }
        }
        if watchdog.check(left.into_iter()) {
            println!(
                "live patch {}: `detach {}` takes it back if it was on its way on, `patch {}` if it was on its way off",
                patch.name, patch.id, patch.name
            );
        }
        sched::sleep_ns(PAUSE_NS);
    }
}

/// The tasks of the other version.
fn others(target: u32) -> Vec<&'static Task> {
    let mut tasks = Vec::new();
    sched::for_each(|task| {
        if task.patch.load(Ordering::Relaxed) != target {
            tasks.push(task);
        }
    });
    tasks
}

/// Looks at each task of the other version, and changes over those that are in none of the functions.
fn look_once(patch: &Arc<Patch>, target: u32) {
    let patch = patch.clone();
    *SEARCH.lock() = Some(Arc::new(Search { patch, target }));
    look::at_tasks(others(target).into_iter(), &(change as look::Look));
    *SEARCH.lock() = None;
}

/// The look. `from` as [`look::Look`] says.
fn change(task: &'static Task, from: usize) {
    let search = SEARCH.lock().clone();
    let Some(search) = search else {
        return;
    };
    if from == 0 || !search.patch.is_in(task, from) {
        task.patch.store(search.target, Ordering::Relaxed);
    }
}

impl Patch {
    /// Whether a task is in one of the functions, or on its way into one, or cannot be followed. `from` as [`look::Look`] says.
    fn is_in(&self, task: &Task, from: usize) -> bool {
        let mut found = false;
        let whole = unwind::each_way_back(task, from, |address, frame| {
            let mut inside = self.inside.iter();
            found |= inside.any(|f| address > f.entry && address < f.end);
            let watched = |function| self.inside.iter().any(|f| f.entry == function);
            found |= may_hook(address as usize, frame, watched);
        });
        found || !whole
    }
}

/// All tasks have the version of what is wanted: leads the sites straight there. False if something else is wanted by now.
fn finish(transition: &Transition, wanted: bool) -> Result<bool, HookError> {
    let patch = &transition.patch;
    with_hooks(|hooks| {
        // Whoever changes his mind has this lock.
        if patch.wanted() != wanted {
            return Ok(false);
        }
        for (pair, switch) in patch.pairs.iter().zip(transition.switches.iter()) {
            // Again, perhaps, if it failed half-way the last time: then it leads there already.
            if hooks.engine.replacement(pair.old()) != pair.body(wanted) {
                let led =
                    hooks
                        .engine
                        .redirect(pair.old(), Some(switch.address()), pair.body(wanted));
                led.map_err(|e| HookError::refused(pair.old.name, e.reason))?;
            }
        }
        VERSION.store(transition.target(wanted), Ordering::Relaxed);
        patch.set_phase(if wanted { Phase::On } else { Phase::Off });
        *TRANSITION.lock() = None;
        if !wanted {
            PATCHES.lock().retain(|other| !Arc::ptr_eq(other, patch));
            hooks.forget(patch.id);
        }
        // A task may have been preempted in a switch.
        let switches = transition.switches.clone();
        rcu::defer(Flavour::Tasks, move || drop(switches));
        Ok(true)
    })
}
