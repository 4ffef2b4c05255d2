// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who was hit how often, and what that should have been.
//!
//! Every function has a few *places* for hooks ([`place`](super::place)). A place counts hits by caller: `who` is the first argument of every
//! call, and only one context of one task or core calls with a given one, one call after the other. So a caller that compares a place's
//! count before and after its call sees exactly what this call did, and by the place's phase whether the call lay wholly inside an attachment.
//!
//! The loads are ordered with the call by DMB: `attach` returns when every core has had a context synchronisation event after the site
//! was changed, so a core that sees the phase stored after that fetches the new site.
//!
//! A function that calls another one of them is a call of both.

use super::functions::{self, Function};
use super::place::{Look, Place};
use crate::arch::lock::Swap;
use crate::arch::{cpu, irq, switch, timer};
use crate::context::{self, Context};
use crate::hook::{self, ResolveError};
use crate::sched;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use fastrand::Rng;

/// Tasks that call functions.
pub(crate) const TASKS: usize = 12;
/// Callers: the tasks, and softirq, hardirq and NMI of each core.
pub(crate) const CALLERS: usize = TASKS + 3 * cpu::MAX_CPUS;
/// How many functions are hot at a time.
const HOT: usize = 8;
/// For how long, in nanoseconds.
const HOT_NS: u64 = 100_000_000;
/// Added to `who` by calls that a hook makes: nobody checks their hits.
pub(crate) const FROM_HOOK: u64 = 128;
/// Places for hooks of one function each.
pub(crate) const SINGLE: usize = 4;
/// The place of a hook that is on all functions of a group.
pub(crate) const MANY: usize = SINGLE;
/// The place of what takes the function's place.
pub(crate) const REPLACED: usize = MANY + 1;
/// Places, a function.
pub(crate) const PLACES: usize = REPLACED + 1;
/// What a hook that skips functions makes them return, beside `who` and the value.
pub(crate) const SKIPPED: u64 = 0x5349_5050_4544_0000;

/// The account of the run, for those who are called without being told of one.
pub(crate) static LEDGER: Swap<Ledger> = Swap::new();

/// What takes the place of the function of that number was called.
pub(crate) fn replaced(number: usize, who: u64) {
    let entry = LEDGER.get().and_then(|ledger| ledger.entry(number));
    if let Some(place) = entry.and_then(|entry| entry.places.get(REPLACED)) {
        place.hit(who);
    }
}

/// By which number a BPF program knows a place.
pub(crate) fn cookie(function: usize, place: usize) -> u64 {
    (function * PLACES + place) as u64
}

/// A BPF program was hit at the place of that number, by `who`, or whoever runs here; `replaced`: it says so by a function that takes the
/// place of its own. Whether that counts.
pub(crate) fn program_hit(cookie: u64, who: u64, replaced: bool) -> bool {
    let Some(ledger) = LEDGER.get() else {
        return false;
    };
    if replaced {
        ledger.by_replaced.fetch_add(1, Ordering::Relaxed);
    }
    let who = match who {
        u64::MAX => ledger.here(),
        who => who,
    };
    let (function, place) = (cookie as usize / PLACES, cookie as usize % PLACES);
    let entry = ledger.entry(function);
    let place = entry.and_then(|entry| entry.places.get(place));
    place.is_some_and(|place| place.hit(who))
}

/// Whether a call reached a function.
#[derive(Clone, Copy)]
enum Called {
    /// What called it was skipped.
    No,
    /// It did; or, if so, a hook skipped it.
    Yes(bool),
}

/// What was wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Wrong {
    /// The function returned something else.
    Result,
    /// A hook that was attached all the time was not hit as often as it should.
    Lost,
    /// A hook was hit too often, also by a call that overlaps an attach or a detach.
    Double,
    /// A hook that was attached at no time was hit.
    Stray,
}

/// How many findings are kept; all are counted.
const KEPT: usize = 16;

/// A finding, in words so that any context can write it.
struct Finding {
    /// Whether it is written.
    ready: AtomicBool,
    words: [AtomicU64; 5],
}

/// One of the functions, as this kernel has it, with its places.
pub(crate) struct Entry {
    pub(crate) function: &'static Function,
    pub(crate) hooked: hook::Function,
    pub(crate) places: [Place; PLACES],
    /// How many want it not to be called for a while.
    closed: AtomicU64,
}

impl Entry {
    fn before(&self, who: u64) -> [Look; PLACES] {
        self.places.each_ref().map(|place| place.before(who))
    }

    fn after(&self, who: u64) -> [Look; PLACES] {
        self.places.each_ref().map(|place| place.after(who))
    }
}

/// What the places of a function say of a call.
#[derive(Clone, Copy, Default)]
struct Checked {
    /// How many were attached or free all the time.
    certain: u64,
    /// A hook that skips the function was hit.
    may_skip: bool,
    /// And was attached all the time.
    must_skip: bool,
}

/// The whole account.
pub(crate) struct Ledger {
    functions: Vec<Entry>,
    /// By address.
    addresses: BTreeMap<u64, usize>,
    findings: [Finding; KEPT],
    found: AtomicU64,
    /// Calls that were checked, and of these, places that were looked at while attached or free all the time.
    calls: [AtomicU64; CALLERS],
    certain: [AtomicU64; CALLERS],
    /// The tasks that call, by their numbers in the kernel.
    tasks: [AtomicU64; TASKS],
    /// How many calls a caller is in that a hook makes in his context.
    within_hooks: [AtomicU64; CALLERS],
    /// Which function a caller is in, by its number and 1; 0 for none.
    inside: [AtomicU64; CALLERS],
    /// Hits that programs told of by a replaced function of theirs.
    by_replaced: AtomicU64,
}

impl Ledger {
    /// An empty one.
    ///
    /// # Errors
    /// One of the functions cannot be hooked.
    pub(crate) fn new() -> Result<Box<Ledger>, ResolveError> {
        let entry = |function: &'static Function| {
            Ok(Entry {
                function,
                hooked: hook::resolve(function.name)?,
                places: [const { Place::new() }; PLACES],
                closed: AtomicU64::new(0),
            })
        };
        let functions = functions::all().map(entry).collect::<Result<Vec<_>, _>>()?;
        let addresses = functions.iter().enumerate();
        let addresses = addresses.map(|(index, entry)| (entry.hooked.address as u64, index));
        Ok(Box::new(Ledger {
            addresses: addresses.collect(),
            functions,
            findings: [const {
                Finding {
                    ready: AtomicBool::new(false),
                    words: [const { AtomicU64::new(0) }; 5],
                }
            }; KEPT],
            found: AtomicU64::new(0),
            calls: [const { AtomicU64::new(0) }; CALLERS],
            certain: [const { AtomicU64::new(0) }; CALLERS],
            tasks: [const { AtomicU64::new(0) }; TASKS],
            within_hooks: [const { AtomicU64::new(0) }; CALLERS],
            inside: [const { AtomicU64::new(0) }; CALLERS],
            by_replaced: AtomicU64::new(0),
        }))
    }

    /// The task that runs is this caller from now on.
    pub(crate) fn is_caller(&self, who: usize) {
        if let Some(task) = self.tasks.get(who) {
            task.store(switch::current().id(), Ordering::Relaxed);
        }
    }

    /// The caller whose context this is. Any context.
    pub(crate) fn caller(&self) -> Option<u64> {
        // A hook without a guard may be moved to another core, where another context may be.
        let state = irq::disable();
        let (context, core) = (context::current(), cpu::index());
        irq::restore(state);
        if context != Context::Task {
            return Some(caller_in(core, context));
        }
        let id = switch::current().id();
        let is_it = |task: &AtomicU64| task.load(Ordering::Relaxed) == id;
        let found = self.tasks.iter().position(is_it);
        found.map(|who| who as u64)
    }

    /// Who calls here, for hooks that cannot see it by an argument; [`FROM_HOOK`]: a hook does, or nobody. Any context.
    pub(crate) fn here(&self) -> u64 {
        let who = self.caller().unwrap_or(FROM_HOOK);
        let within = self.within_hooks.get(who as usize);
        let by_itself = within.is_some_and(|within| within.load(Ordering::Relaxed) == 0);
        if by_itself { who } else { FROM_HOOK }
    }

    /// A hook calls this function in `work`: nobody checks that call, and what is attached there perhaps missed it.
    pub(crate) fn within_hook(&self, function: usize, work: impl FnOnce()) {
        let caller = self.caller();
        let within = caller.and_then(|who| self.within_hooks.get(who as usize));
        // Only this caller's context writes it; what interrupts it counts for itself.
        let add = |by: i64| {
            if let Some(within) = within {
                let now = within.load(Ordering::Relaxed).wrapping_add_signed(by);
                within.store(now, Ordering::Release);
            }
        };
        add(1);
        work();
        let entries = self.called_by(function).filter_map(|f| self.entry(f));
        entries
            .flat_map(|entry| &entry.places)
            .for_each(Place::perhaps);
        add(-1);
    }

    /// A function, and the other one that it calls.
    fn called_by(&self, function: usize) -> impl Iterator<Item = usize> {
        let inner = self.entry(function).and_then(|e| e.function.calls());
        [Some(function), inner].into_iter().flatten()
    }

    /// How many calls of these functions are under way that nothing is noted of yet. A miss that was counted before this is asked belongs to
    /// one of these, or is noted.
    pub(crate) fn under_way(&self, is_one: impl Fn(usize) -> bool) -> u64 {
        // With the one before each call: who reads a count that a call has raised sees that the call is under way.
        fence(Ordering::SeqCst);
        let callers = self.inside.iter().zip(&self.within_hooks);
        let calls = callers.map(|(inside, within)| {
            let function = (inside.load(Ordering::Acquire) as usize).checked_sub(1);
            let concerned = function.is_some_and(|f| self.called_by(f).any(&is_one));
            match concerned {
                true => 1 + within.load(Ordering::Acquire),
                false => 0,
            }
        });
        calls.sum()
    }

    /// How many functions there are.
    pub(crate) fn len(&self) -> usize {
        self.functions.len()
    }

    /// A random function: seven of eight times one of the few that are hot at present, so that callers and changes meet.
    pub(crate) fn choose(&self, random: &mut Rng) -> usize {
        let all = self.functions.len();
        match random.u8(..8) {
            0 => random.usize(..all),
            _ => {
                let window = (timer::now_ns() / HOT_NS) as usize;
                (window * HOT + random.usize(..HOT)) % all
            }
        }
    }

    /// A function and its places.
    pub(crate) fn entry(&self, index: usize) -> Option<&Entry> {
        self.functions.get(index)
    }

    /// The number of the function at an address. Any context.
    pub(crate) fn number(&self, address: u64) -> Option<usize> {
        self.addresses.get(&address).copied()
    }

    /// The function at an address. Any context.
    pub(crate) fn at(&self, address: u64) -> Option<&Entry> {
        self.entry(self.number(address)?)
    }

    /// Does something while none of these functions is called. Task context; hooks may come and go there by others.
    pub(crate) fn quietly<T>(&self, functions: Range<usize>, work: impl FnOnce() -> T) -> T {
        let entries = || self.functions.get(functions.clone()).unwrap_or_default();
        for entry in entries() {
            entry.closed.fetch_add(1, Ordering::Relaxed);
        }
        // The fence in `under_way` orders this with the one before each call: who does not see the function closed is seen under way.
        while self.under_way(|function| functions.contains(&function)) != 0 {
            sched::yield_now();
        }
        let done = work();
        for entry in entries() {
            entry.closed.fetch_sub(1, Ordering::Release);
        }
        done
    }

    /// Calls a function and checks what comes of it, unless it is closed ([`quietly`](Self::quietly)). Any context, as long as `who` is this context's own: no lock, no
    /// allocation.
    pub(crate) fn call(&self, index: usize, who: u64, value: u64) {
        let Some(entry) = self.entry(index) else {
            return;
        };
        let inner = entry.function.calls();
        let inner = inner.and_then(|number| Some((number, self.entry(number)?)));
        let inside = |function: u64| {
            if let Some(inside) = self.inside.get(who as usize) {
                inside.store(function, Ordering::Release);
            }
        };
        inside(index as u64 + 1);
        fence(Ordering::SeqCst);
        let mut entries = self.called_by(index).filter_map(|f| self.entry(f));
        if entries.any(|entry| entry.closed.load(Ordering::Acquire) != 0) {
            inside(0);
            return;
        }
        let before = entry.before(who);
        let inner_before = inner.map(|(_, inner)| inner.before(who));
        fence(Ordering::SeqCst);
        let (result, expected) = entry.function.call(who, value);
        fence(Ordering::SeqCst);
        let skipped = result == SKIPPED ^ who ^ value;
        let own = self.check((index, entry), before, who, |may_skip| {
            Called::Yes(may_skip && skipped)
        });
        let mut certain = own.certain;
        if let (Some(inner), Some(before)) = (inner, inner_before) {
            let called = match skipped && own.may_skip {
                true => Called::No,
                false => Called::Yes(false),
            };
            certain += self.check(inner, before, who, |_| called).certain;
        }
        if !(skipped && own.may_skip || result == expected && !own.must_skip) {
            self.note(Wrong::Result, index, who, result, expected);
        }
        // All is noted.
        inside(0);
        for (counts, more) in [(&self.calls, 1), (&self.certain, certain)] {
            if let Some(count) = counts.get(who as usize) {
                count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
            }
        }
    }

    /// Whether a function's places were hit as they should by a call of it, or while it was not called: `called` says that, told whether a
    /// hook was hit that skips it.
    fn check(
        &self,
        (index, entry): (usize, &Entry),
        before: [Look; PLACES],
        who: u64,
        called: impl Fn(bool) -> Called,
    ) -> Checked {
        let after = entry.after(who);
        // Whether nothing at all was changed on the function meanwhile.
        let still = before.iter().zip(&after).all(|(b, a)| b.is_still(a));
        let mut checked = Checked::default();
        let looks = entry.places.iter().zip(before.iter().zip(&after));
        for (number, (place, (before, after))) in looks.enumerate() {
            let hit = after.hits.wrapping_sub(before.hits);
            // The same phase before and after: then so were the traits.
            let (phase, traits) = (before.phase, before.traits);
            let same = phase == after.phase;
            let (whole, most) = (traits.hits(), before.at_most(after));
            if before.may_skip(after) && hit != 0 {
                checked.may_skip = true;
                checked.must_skip |= same && traits.skips;
            }
            let called = called(checked.may_skip);
            let wrong = match (called, same, phase % 4) {
                (Called::No, _, _) if hit > 0 => Some(Wrong::Stray),
                (Called::No, _, _) => None,
                // What takes the place of a function that is skipped is skipped with it.
                (Called::Yes(true), true, 2) if number == REPLACED => None,
                (_, true, 2) if hit < whole && traits.may_miss && (still || !traits.by_image) => {
                    place.miss(phase, whole - hit);
                    None
                }
                (_, true, 2) if hit < whole && traits.may_miss => {
                    place.perhaps();
                    None
                }
                (_, true, 2) if hit < whole => Some(Wrong::Lost),
                _ if hit > most && most == 0 => Some(Wrong::Stray),
                _ if hit > most => Some(Wrong::Double),
                (_, true, 0 | 2) => None,
                _ => {
                    if hit == 0 {
                        place.perhaps();
                    }
                    None
                }
            };
            checked.certain += u64::from(same && phase.is_multiple_of(2));
            if let Some(wrong) = wrong {
                self.note(wrong, index, who, hit, number as u64);
            }
        }
        checked
    }

    fn note(&self, wrong: Wrong, function: usize, who: u64, found: u64, other: u64) {
        let index = self.found.fetch_add(1, Ordering::Relaxed);
        if let Some(finding) = self.findings.get(index as usize) {
            let words = [wrong as u64, function as u64, who, found, other];
            for (to, from) in finding.words.iter().zip(words) {
                to.store(from, Ordering::Relaxed);
            }
            finding.ready.store(true, Ordering::Release);
        }
    }

    /// How many things were wrong.
    pub(crate) fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Calls that were checked, and how often a place's hits were known exactly.
    pub(crate) fn calls(&self) -> (u64, u64) {
        let sum = |counts: &[AtomicU64; CALLERS]| {
            counts
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .sum()
        };
        (sum(&self.calls), sum(&self.certain))
    }

    /// Hits that programs told of by a replaced function of theirs.
    pub(crate) fn by_replaced(&self) -> u64 {
        self.by_replaced.load(Ordering::Relaxed)
    }

    /// Calls that were checked in a context that interrupts tasks, on all cores.
    pub(crate) fn calls_in(&self, context: Context) -> u64 {
        let callers = (0..cpu::MAX_CPUS).map(|core| caller_in(core, context) as usize);
        let counts = callers.filter_map(|who| self.calls.get(who));
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The first findings, in words.
    pub(crate) fn findings(&self) -> impl Iterator<Item = alloc::string::String> {
        let ready = self
            .findings
            .iter()
            .filter(|f| f.ready.load(Ordering::Acquire));
        ready.map(|finding| {
            let [wrong, function, who, found, other] =
                finding.words.each_ref().map(|word| word.load(Ordering::Relaxed));
            let name = self.entry(function as usize).map_or("?", |e| e.function.name);
            let caller = Caller(who);
            match wrong {
                0 => alloc::format!("{name}, called by {caller}: returned {found:#x}, not {other:#x}"),
                1 => alloc::format!("{name}, called by {caller}: the hook at place {other} was attached and hit {found} times: lost"),
                2 => alloc::format!("{name}, called by {caller}: the hook at place {other} was hit {found} times: too often"),
                _ => alloc::format!("{name}, called by {caller}: a hook at place {other} that is not attached was hit {found} times"),
            }
        })
    }
}

/// Who calls, for people.
struct Caller(u64);

impl core::fmt::Display for Caller {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.0 as usize).checked_sub(TASKS) {
            None => write!(f, "task {}", self.0),
            Some(other) => {
                let context = ["softirq", "hardirq", "NMI"].get(other % 3).unwrap_or(&"?");
                write!(f, "{context} on core {}", other / 3)
            }
        }
    }
}

/// The number of a core's softirq (1), hardirq (2) or NMI (3) as a caller.
pub(crate) fn caller_in(core: usize, context: Context) -> u64 {
    (TASKS + 3 * core + (context as usize).saturating_sub(1)) as u64
}
