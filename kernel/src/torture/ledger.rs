// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who was hit how often, and what that should have been.
//!
//! Every function has a few *places* for hooks. A place counts hits by caller: `who` is the first argument of every call, and only
//! one context of one task or core calls with a given one, one call after the other. So a caller that compares a place's count before
//! and after its call sees exactly what this call did.
//!
//! A place's phase says what may be expected. It is stored after an attach has returned, and before a detach begins:
//!
//! ```text
//!   4n free -> 4n+1 attaching -> 4n+2 attached -> 4n+3 detaching -> 4n+4 free
//! ```
//!
//! A call that finds the same phase before and after it lay wholly inside an attachment, or wholly outside. The loads are ordered with
//! the call by DMB: `attach` returns when every core has had a context synchronisation event after the site was changed, so a
//! core that sees the phase stored after that fetches the new site.
//!
//! Some hooks may miss a call and have to say so: those that keep return addresses on the shadow stack, which may be full, and those of
//! the Linux way, whose guards turn away what another context of the same core is in. A call that such a hook did not see is
//! counted, and when the hook is taken off it must have counted as many misses at least.

use super::functions::{self, Function};
use crate::arch::lock::Swap;
use crate::arch::{cpu, irq, switch, timer};
use crate::context::{self, Context};
use crate::hook::{self, ResolveError};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
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

/// What is to be expected of a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Traits {
    /// It is hit twice by a whole call, not once.
    pub twice: bool,
    /// It skips the function.
    pub skips: bool,
    /// It may miss a call, which it then counts.
    pub may_miss: bool,
}

impl Traits {
    fn bits(self) -> u64 {
        u64::from(self.twice) | u64::from(self.skips) << 1 | u64::from(self.may_miss) << 2
    }

    fn of(bits: u64) -> Traits {
        Traits {
            twice: bits & 1 != 0,
            skips: bits & 2 != 0,
            may_miss: bits & 4 != 0,
        }
    }
}

/// The low bits of a place's missed hits are their count, those above it which attachment missed them, modulo what fits.
const MISSED_BITS: u32 = 40;

/// What a caller sees of a place.
#[derive(Clone, Copy)]
struct Look {
    phase: u64,
    hits: u64,
    traits: Traits,
}

/// A place for a hook.
pub(crate) struct Place {
    phase: AtomicU64,
    /// Whoever attaches or detaches here.
    taken: AtomicBool,
    /// What is attached: [`Traits`] as bits.
    traits: AtomicU64,
    /// Hits that whole calls missed, below the number of the attachment that they missed ([`MISSED_BITS`]).
    missed: AtomicU64,
    /// The hook's number while one is attached.
    pub(crate) hook: AtomicU64,
    hits: [AtomicU64; CALLERS],
}

impl Place {
    const fn new() -> Place {
        Place {
            phase: AtomicU64::new(0),
            taken: AtomicBool::new(false),
            traits: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            hook: AtomicU64::new(0),
            hits: [const { AtomicU64::new(0) }; CALLERS],
        }
    }

    /// One hit by a caller; calls that hooks make are not counted. Whether it was.
    #[inline(always)]
    pub(crate) fn hit(&self, who: u64) -> bool {
        let hits = self.hits.get(who as usize);
        if let Some(hits) = hits {
            // Only this caller's context writes it.
            hits.store(hits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        hits.is_some()
    }

    /// Where it is in its life, of a place that was taken: 0 free, 1 attaching, 2 attached, 3 detaching.
    pub(crate) fn stage(&self) -> u64 {
        self.phase.load(Ordering::Relaxed) % 4
    }

    /// Hits that calls missed since the hook was attached.
    pub(crate) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Acquire) & ((1 << MISSED_BITS) - 1)
    }

    /// A call that lay wholly inside the attachment of this phase missed it so often. Of one that is over by now nobody asks.
    fn miss(&self, phase: u64, hits: u64) {
        let which = attachment(phase);
        let same = |missed: u64| (missed >> MISSED_BITS == which).then_some(missed + hits);
        let _ = self
            .missed
            .fetch_update(Ordering::Release, Ordering::Relaxed, same);
    }

    /// Takes the place for a change; false if someone else has it.
    pub(crate) fn take(&self) -> bool {
        !self.taken.swap(true, Ordering::Acquire)
    }

    /// Gives it back.
    pub(crate) fn give_back(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// Whether something is attached. Of a place that was taken.
    pub(crate) fn is_attached(&self) -> bool {
        self.stage() == 2
    }

    /// An attach of something of these traits begins.
    pub(crate) fn attaching(&self, traits: Traits) {
        let which = attachment(self.phase.load(Ordering::Relaxed));
        self.missed.store(which << MISSED_BITS, Ordering::Relaxed);
        self.traits.store(traits.bits(), Ordering::Relaxed);
        self.step(1);
    }

    /// The attach that began has returned: whether something is attached now.
    pub(crate) fn attach_returned(&self, attached: bool) {
        self.step(if attached { 1 } else { 3 });
    }

    /// A detach begins.
    pub(crate) fn detaching(&self) {
        self.step(1);
    }

    /// The detach that began has returned: whether it is off now.
    pub(crate) fn detach_returned(&self, detached: bool) {
        self.step(if detached { 1 } else { 3 });
    }

    fn step(&self, by: u64) {
        self.phase.fetch_add(by, Ordering::SeqCst);
    }

    /// What a caller sees before a call: the phase first, so that what belongs to it is not older.
    fn before(&self, who: u64) -> Look {
        let phase = self.phase.load(Ordering::Acquire);
        self.look(who, phase)
    }

    /// What a caller sees after a call: the phase last, so that what belongs to it is not younger.
    fn after(&self, who: u64) -> Look {
        let look = self.look(who, 0);
        fence(Ordering::Acquire);
        Look {
            phase: self.phase.load(Ordering::Relaxed),
            ..look
        }
    }

    fn look(&self, who: u64, phase: u64) -> Look {
        let hits = self.hits.get(who as usize);
        Look {
            phase,
            hits: hits.map_or(0, |hits| hits.load(Ordering::Relaxed)),
            traits: Traits::of(self.traits.load(Ordering::Relaxed)),
        }
    }
}

/// The number of the attachment that a phase belongs to, as far as it fits beside a count.
fn attachment(phase: u64) -> u64 {
    (phase / 4) & ((1 << (u64::BITS - MISSED_BITS)) - 1)
}

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

/// A BPF program was hit at the place of that number, by `who`, or whoever runs here. Whether that counts.
pub(crate) fn program_hit(cookie: u64, who: u64) -> bool {
    let Some(ledger) = LEDGER.get() else {
        return false;
    };
    let who = match who {
        u64::MAX => ledger.here(),
        who => who,
    };
    let (function, place) = (cookie as usize / PLACES, cookie as usize % PLACES);
    let entry = ledger.entry(function);
    let place = entry.and_then(|entry| entry.places.get(place));
    place.is_some_and(|place| place.hit(who))
}

/// What was wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Wrong {
    /// The function returned something else.
    Result,
    /// A hook that was attached all the time was not hit as often as it should.
    Lost,
    /// A hook was hit too often.
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

    /// A hook makes calls of its own in `work`.
    pub(crate) fn within_hook(&self, work: impl FnOnce()) {
        let caller = self.caller();
        let within = caller.and_then(|who| self.within_hooks.get(who as usize));
        // Only this caller's context writes it; what interrupts it counts for itself.
        let add = |by: i64| {
            if let Some(within) = within {
                let now = within.load(Ordering::Relaxed).wrapping_add_signed(by);
                within.store(now, Ordering::Relaxed);
            }
        };
        add(1);
        work();
        add(-1);
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

    /// Calls a function and checks what comes of it. Any context, as long as `who` is this context's own: no lock, no
    /// allocation.
    pub(crate) fn call(&self, index: usize, who: u64, value: u64) {
        let Some(Entry {
            function, places, ..
        }) = self.entry(index)
        else {
            return;
        };
        let before = places.each_ref().map(|place| place.before(who));
        fence(Ordering::SeqCst);
        let (result, expected) = function.call(who, value);
        fence(Ordering::SeqCst);
        let (mut may_skip, mut must_skip) = (false, false);
        let skipped = result == SKIPPED ^ who ^ value;
        let mut certain = 0;
        for (number, (place, before)) in places.iter().zip(before).enumerate() {
            let after = place.after(who);
            let hit = after.hits.wrapping_sub(before.hits);
            // The same phase before and after: then so were the traits.
            let (phase, traits) = (before.phase, before.traits);
            let same = phase == after.phase;
            let whole = if traits.twice { 2 } else { 1 };
            if (traits.skips || after.traits.skips) && hit != 0 {
                (may_skip, must_skip) = (true, must_skip || same && traits.skips);
            }
            let wrong = match (same, phase % 4) {
                // What takes the place of a function that is skipped is skipped with it.
                (true, 2) if number == REPLACED && may_skip && skipped => None,
                (true, 2) if hit < whole && traits.may_miss => {
                    place.miss(phase, whole - hit);
                    None
                }
                (true, 2) if hit < whole => Some(Wrong::Lost),
                (true, 2) if hit > whole => Some(Wrong::Double),
                (true, 0) if hit > 0 => Some(Wrong::Stray),
                // It may have been off and on again in the meantime, but a call meets one image.
                (false, _) if hit > 2 => Some(Wrong::Double),
                _ => None,
            };
            certain += u64::from(same && phase.is_multiple_of(2));
            if let Some(wrong) = wrong {
                self.note(wrong, index, who, hit, number as u64);
            }
        }
        if !(skipped && may_skip || result == expected && !must_skip) {
            self.note(Wrong::Result, index, who, result, expected);
        }
        for (counts, more) in [(&self.calls, 1), (&self.certain, certain)] {
            if let Some(count) = counts.get(who as usize) {
                count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
            }
        }
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
