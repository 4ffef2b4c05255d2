// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts hooks on and takes them off at random.

use super::functions::{Function, GROUPS, PATTERNS, SWAPS};
use super::ledger::{Entry, FROM_HOOK, Ledger, MANY, Place, REPLACED, SINGLE, SKIPPED};
use crate::arch::callee::{Hit, NativeHook, Shape};
use crate::arch::lock::SpinLock;
use crate::hook::{self, HookError, HookId, Many, Point, ProbeWay, Program, Protection};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use fastrand::Rng;
use trampoline::{Kind, ProbeKind};

/// How many messages are kept.
const KEPT: usize = 8;

/// What is hooked in.
struct Hook {
    ledger: &'static Ledger,
    function: usize,
    place: usize,
    /// It calls the function that it hooks.
    recursing: bool,
    /// It makes callers see [`SKIPPED`] instead of the function.
    skipping: bool,
}

impl NativeHook for Hook {
    #[inline(never)] // linker/audit.rules names it
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        let (Some(&who), Some(&value)) = (hit.words().first(), hit.words().get(1)) else {
            return 0;
        };
        let Some(Entry {
            function, places, ..
        }) = self.ledger.entry(self.function)
        else {
            return 0;
        };
        if let Some(place) = places.get(self.place) {
            place.hit(who);
        }
        if self.recursing {
            // By a pointer that nothing sees through: what a hook may not do is not on the path of hooks (linker/audit.rules).
            black_box(Function::call as fn(&Function, u64, u64) -> (u64, u64))(
                function,
                who | FROM_HOOK,
                value,
            );
        }
        match self.skipping {
            true => SKIPPED ^ who ^ value,
            false => 0,
        }
    }
}

/// What is hooked in on all functions of a group at once.
struct OnMany(&'static Ledger);

impl NativeHook for OnMany {
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        let entry = self.0.at(hit.attachment().function);
        let place = entry.and_then(|entry| entry.places.get(MANY));
        if let (Some(place), Some(&who)) = (place, hit.words().first()) {
            place.hit(who);
        }
        0
    }
}

/// How something is hooked in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Trampoline(Kind),
    Probe,
    Many,
    Replace,
}

/// All ways, with the words of the summary.
const WAYS: [(Way, &str); 7] = [
    (Way::Trampoline(Kind::FmodRet), "fmod_ret"),
    (Way::Trampoline(Kind::Fentry), "fentry"),
    (Way::Trampoline(Kind::Fexit), "fexit"),
    (Way::Trampoline(Kind::Fsession), "fsession"),
    (Way::Probe, "kprobe"),
    (Way::Many, "multi"),
    (Way::Replace, "replace"),
];

/// A group that one hook is on, or nobody.
struct Group {
    taken: AtomicBool,
    hook: AtomicU64,
}

/// What was changed.
pub(crate) struct Changes {
    /// Attached, by way.
    attached: [AtomicU64; WAYS.len()],
    detached: AtomicU64,
    /// Attaches that found the pool full.
    full: AtomicU64,
    groups: [Group; GROUPS.len()],
    messages: SpinLock<Vec<String>>,
}

impl Changes {
    /// Nothing so far.
    pub(crate) fn new() -> Changes {
        Changes {
            attached: [const { AtomicU64::new(0) }; WAYS.len()],
            detached: AtomicU64::new(0),
            full: AtomicU64::new(0),
            groups: [const {
                Group {
                    taken: AtomicBool::new(false),
                    hook: AtomicU64::new(0),
                }
            }; GROUPS.len()],
            messages: SpinLock::new(Vec::new()),
        }
    }

    /// Hooks in something at a random place of a random function, or takes off what is there; now and then of a whole group.
    pub(crate) fn one(&self, ledger: &'static Ledger, random: &mut Rng) {
        match random.u8(..16) {
            0 => self.many(ledger, random.usize(..GROUPS.len())),
            1 => self.swap(ledger, *random.choice(SWAPS).unwrap_or(&SWAPS[0])),
            _ => self.single(ledger, random),
        }
    }

    fn single(&self, ledger: &'static Ledger, random: &mut Rng) {
        let (function, number) = (ledger.choose(random), random.usize(..SINGLE));
        let Some(entry) = ledger.entry(function) else {
            return;
        };
        let Some(place) = entry.places.get(number).filter(|place| place.take()) else {
            return;
        };
        match place.is_attached() {
            true => self.detach(place),
            false => self.attach(ledger, entry, place, (function, number), random),
        }
        place.give_back();
    }

    fn attach(
        &self,
        ledger: &'static Ledger,
        entry: &Entry,
        place: &Place,
        (function, number): (usize, usize),
        random: &mut Rng,
    ) {
        let target = entry.function;
        // One program a function may skip it, or the ones behind it would not be asked.
        let first = if number == 0 { 0 } else { 1 };
        let Some(&(way, _)) = WAYS.get(random.usize(first..5)) else {
            return;
        };
        let protections = [
            Protection::Program,
            Protection::Context,
            Protection::Pinned,
            Protection::None,
        ];
        let protection = *random.choice(&protections).unwrap_or(&Protection::Program);
        let guarded = matches!(protection, Protection::Program | Protection::Context);
        let kind = match way {
            Way::Trampoline(kind) => kind,
            _ => Kind::Fentry,
        };
        let skipping = kind == Kind::FmodRet && target.is_overridable() && random.bool();
        let hook = Arc::new(Hook {
            ledger,
            function,
            place: number,
            // What is not guarded would call itself without end; what is not sleepable may not give its core up.
            recursing: guarded && !target.is_sleepy() && random.u8(..4) == 0,
            skipping,
        });
        let sleepable = target.is_sleepy() && way != Way::Probe && random.bool();
        let point = Point {
            protection,
            sleepable,
            ..Point::of(kind)
        };
        place.skips.store(skipping, Ordering::Relaxed);
        place.attaching(if kind == Kind::Fsession { 2 } else { 1 });
        let attached = match way {
            Way::Probe => {
                let program = Program::native("torture".into(), hook, Shape::Registers);
                let at = hook::Place::of(entry.hooked.address, 0);
                at.map(|at| {
                    hook::attach_probe(&at, ProbeKind::Here, ProbeWay::Detour, point, program)
                })
            }
            _ => Some(hook::attach_hook(
                &entry.hooked,
                point,
                "torture".into(),
                hook,
            )),
        };
        match attached {
            Some(attached) => self.attached(place, way, target.name, attached),
            None => {
                place.attach_returned(false);
                self.say(format!("{} is no place for a probe", target.name));
            }
        }
    }

    /// An attach at a place has returned.
    fn attached(&self, place: &Place, way: Way, name: &str, attached: Result<HookId, HookError>) {
        if let Ok(id) = &attached {
            place.hook.store(id.0, Ordering::Relaxed);
            self.count(way);
        }
        place.attach_returned(attached.is_ok());
        self.check(name, attached);
    }

    fn count(&self, way: Way) {
        let ways = WAYS.iter().zip(&self.attached);
        for (_, count) in ways.filter(|((other, _), _)| *other == way) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Only a full pool is a reason for an attach to fail.
    fn check<T>(&self, name: &str, attached: Result<T, HookError>) {
        match attached {
            Ok(_) => {}
            Err(HookError::Full(_)) => {
                self.full.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.say(format!("{name}: {error}")),
        }
    }

    fn detach(&self, place: &Place) {
        place.detaching();
        let off = self.off(HookId(place.hook.load(Ordering::Relaxed)));
        place.detach_returned(off);
    }

    /// Takes a hook off; whether it is.
    fn off(&self, id: HookId) -> bool {
        let detached = hook::detach(id);
        match &detached {
            Ok(()) => {
                self.detached.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.say(format!("hook {id} does not come off: {error}")),
        }
        detached.is_ok()
    }

    /// Puts a hook on all functions of a group, or takes it off.
    fn many(&self, ledger: &'static Ledger, number: usize) {
        let (Some(group), Some(pattern)) = (self.groups.get(number), PATTERNS.get(number)) else {
            return;
        };
        if group.taken.swap(true, Ordering::Acquire) {
            return;
        }
        let start = GROUPS.iter().take(number).map(|g| g.len()).sum::<usize>();
        let functions: Range<usize> = start..start + GROUPS.get(number).map_or(0, |g| g.len());
        let places = || {
            let entries = functions.clone().filter_map(|index| ledger.entry(index));
            entries.filter_map(|entry| entry.places.get(MANY))
        };
        match places().next().is_some_and(Place::is_attached) {
            true => {
                places().for_each(Place::detaching);
                let off = self.off(HookId(group.hook.load(Ordering::Relaxed)));
                places().for_each(|place| place.detach_returned(off));
            }
            false => {
                places().for_each(|place| place.attaching(1));
                let hook = Arc::new(OnMany(ledger));
                let attached = hook::select(pattern).and_then(|selection| {
                    let many = Many::at(false);
                    hook::attach_multi_hook(selection, many, |_| 0, "torture".into(), hook)
                });
                if let Ok(attached) = &attached {
                    group.hook.store(attached.id.0, Ordering::Relaxed);
                    self.count(Way::Many);
                }
                places().for_each(|place| place.attach_returned(attached.is_ok()));
                self.check(pattern, attached);
            }
        }
        group.taken.store(false, Ordering::Release);
    }

    /// Puts another function in a function's place, or puts that back.
    fn swap(&self, ledger: &'static Ledger, (number, by): (usize, &str)) {
        let Some(entry) = ledger.entry(number) else {
            return;
        };
        let Some(place) = entry.places.get(REPLACED).filter(|place| place.take()) else {
            return;
        };
        match (place.is_attached(), hook::resolve(by)) {
            (true, _) => self.detach(place),
            (false, Ok(by)) => {
                place.attaching(1);
                let replaced = hook::replace(&entry.hooked, &by);
                self.attached(place, Way::Replace, by.name, replaced);
            }
            (false, Err(error)) => self.say(format!("{by}: {error}")),
        }
        place.give_back();
    }

    /// Takes off everything that is still on; nobody else changes anything any more.
    pub(crate) fn detach_all(&self, ledger: &'static Ledger) {
        for (number, group) in GROUPS.iter().enumerate() {
            let start = GROUPS.iter().take(number).map(|g| g.len()).sum();
            let place = ledger.entry(start).and_then(|entry| entry.places.get(MANY));
            if !group.is_empty() && place.is_some_and(Place::is_attached) {
                self.many(ledger, number);
            }
        }
        let entries = (0..ledger.len()).filter_map(|function| ledger.entry(function));
        for place in entries.flat_map(|e| &e.places).filter(|p| p.is_attached()) {
            self.detach(place);
        }
    }

    fn say(&self, message: String) {
        let mut messages = self.messages.lock();
        if messages.len() < KEPT {
            messages.push(message);
        }
    }

    /// What went wrong.
    pub(crate) fn messages(&self) -> Vec<String> {
        self.messages.lock().clone()
    }

    /// In numbers, for a line.
    pub(crate) fn summary(&self) -> String {
        let attached = self.attached.each_ref().map(|c| c.load(Ordering::Relaxed));
        let ways: Vec<_> = WAYS
            .iter()
            .zip(attached)
            .map(|((_, name), count)| format!("{count} {name}"))
            .collect();
        format!(
            "{} attached ({}), {} taken off, {} found no memory",
            attached.iter().sum::<u64>(),
            ways.join(", "),
            self.detached.load(Ordering::Relaxed),
            self.full.load(Ordering::Relaxed)
        )
    }
}
