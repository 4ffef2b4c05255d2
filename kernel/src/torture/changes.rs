// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts hooks on and takes them off at random.

use super::functions::{Function, GROUPS, PATCH, PATCHED, PATTERNS, SWAPS};
use super::ledger::{Entry, FROM_HOOK, Ledger, MANY, REPLACED, SINGLE, SKIPPED, cookie};
use super::place::{Place, Traits};
use super::ways::{OTHER_MARK, WAYS, Way, by_image, hows, may_miss, program, returned, way_in};
use crate::arch::callee::{Hit, NativeHook};
use crate::arch::lock::SpinLock;
use crate::bpf::{self, BpfError, Engine};
use crate::hook::linux::Way as LinuxWay;
use crate::hook::livepatch::{self, Phase};
use crate::hook::{
    self, At, HookError, HookId, HookedIn, How, Program, Protection, Settings, WayIn,
};
use crate::sched;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use fastrand::Rng;
use trampoline::{Kind, ProbeKind, Site};

/// How many milliseconds a live patch may take to get off at the end.
const PATIENCE: usize = 10_000;
/// How many messages are kept.
const KEPT: usize = 8;

/// What is hooked in.
struct Hook {
    ledger: &'static Ledger,
    function: usize,
    place: usize,
    /// It runs when the function has returned, and no argument says who called.
    returned: bool,
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
        let who = if self.returned {
            self.ledger.here()
        } else {
            who
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
            self.ledger.within_hook(self.function, || {
                // By a pointer that nothing sees through: what a hook may not do is not on the path of hooks (linker/audit.rules).
                black_box(Function::call as fn(&Function, u64, u64) -> (u64, u64))(
                    function,
                    who | FROM_HOOK,
                    value,
                );
            });
        }
        match self.skipping {
            true => SKIPPED ^ who ^ value,
            false => 0,
        }
    }
}

/// What is hooked in on all functions of a group at once.
struct OnMany {
    ledger: &'static Ledger,
    /// As of a [`Hook`].
    returned: bool,
}

impl NativeHook for OnMany {
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        let entry = self.ledger.at(hit.attachment().function);
        let place = entry.and_then(|entry| entry.places.get(MANY));
        let who = match self.returned {
            true => Some(self.ledger.here()),
            false => hit.words().first().copied(),
        };
        if let (Some(place), Some(who)) = (place, who) {
            place.hit(who);
        }
        0
    }
}

/// A group that one hook is on, or nobody.
struct Group {
    taken: AtomicBool,
    hook: AtomicU64,
}

impl Group {
    const fn new() -> Group {
        Group {
            taken: AtomicBool::new(false),
            hook: AtomicU64::new(0),
        }
    }
}

/// What was changed.
pub(crate) struct Changes {
    /// Attached, by way.
    attached: [AtomicU64; WAYS.len()],
    /// Of these, BPF programs.
    programs: AtomicU64,
    detached: AtomicU64,
    /// Calls that hooks missed and counted.
    missed: AtomicU64,
    /// Of these, by hooks of which it was known exactly how many they had to count.
    exactly: AtomicU64,
    /// Such hooks, also those that had to count none.
    exact: AtomicU64,
    /// Attaches that found the pool full.
    full: AtomicU64,
    groups: [Group; PATTERNS.len()],
    patch: Group,
    messages: SpinLock<Vec<String>>,
}

impl Changes {
    /// Nothing so far.
    pub(crate) fn new() -> Changes {
        Changes {
            attached: [const { AtomicU64::new(0) }; WAYS.len()],
            programs: AtomicU64::new(0),
            detached: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            exactly: AtomicU64::new(0),
            exact: AtomicU64::new(0),
            full: AtomicU64::new(0),
            groups: [const { Group::new() }; PATTERNS.len()],
            patch: Group::new(),
            messages: SpinLock::new(Vec::new()),
        }
    }

    /// Hooks in something at a random place of a random function, or takes off what is there; now and then of a whole group.
    pub(crate) fn one(&self, ledger: &'static Ledger, random: &mut Rng) {
        match random.u8(..16) {
            0 => self.many(
                ledger,
                random.usize(..PATTERNS.len()),
                random.bool(),
                random,
            ),
            1 => self.swap(ledger, *random.choice(SWAPS).unwrap_or(&SWAPS[0]), random),
            2 => self.live(ledger),
            _ => self.single(ledger, random),
        }
    }

    /// Hooks in everything that can be hooked in, one after the other, and takes it off again: what is allocated once for good, at
    /// the first of its kind, is allocated then. Nobody else changes anything, and nobody calls.
    pub(crate) fn each_once(&self, ledger: &'static Ledger, random: &mut Rng) {
        let mut done = Vec::new();
        // Objects stay loaded from their first use on, and which programs are used here is a matter of luck.
        let loaded = bpf::section(OTHER_MARK).map(|_| ());
        self.check(OTHER_MARK, loaded);
        for (function, number) in (0..ledger.len()).flat_map(|f| (0..SINGLE).map(move |n| (f, n))) {
            let Some(entry) = ledger.entry(function) else {
                continue;
            };
            for how in hows(entry, (function, number)) {
                let place = entry.places.get(number).filter(|_| !done.contains(how));
                let Some(place) = place else {
                    continue;
                };
                self.attach(ledger, entry, place, (function, number), *how, random);
                if place.is_attached() {
                    if place.mark.load(Ordering::Relaxed) != 0 {
                        self.replace_mark(place);
                        self.replace_mark(place);
                    }
                    self.detach(ledger, function, place, random);
                    done.push(*how);
                }
            }
        }
        for (number, exit) in (0..PATTERNS.len()).flat_map(|n| [(n, false), (n, true)]) {
            self.many(ledger, number, exit, random);
            self.many(ledger, number, exit, random);
        }
        for swap in SWAPS {
            self.swap(ledger, *swap, random);
            self.swap(ledger, *swap, random);
        }
        self.live(ledger);
        self.until_unpatched(ledger);
    }

    fn single(&self, ledger: &'static Ledger, random: &mut Rng) {
        let (function, number) = (ledger.choose(random), random.usize(..SINGLE));
        let Some(entry) = ledger.entry(function) else {
            return;
        };
        let Some(place) = entry.places.get(number).filter(|place| place.take()) else {
            return;
        };
        match (
            place.is_attached(),
            random.choice(hows(entry, (function, number))),
        ) {
            (true, _) if place.mark.load(Ordering::Relaxed) != 0 && random.bool() => {
                self.replace_mark(place);
            }
            (true, _) => self.detach(ledger, function, place, random),
            (false, Some(how)) => {
                self.attach(ledger, entry, place, (function, number), *how, random)
            }
            (false, None) => {}
        }
        place.give_back();
    }

    fn attach(
        &self,
        ledger: &'static Ledger,
        entry: &Entry,
        place: &Place,
        (function, number): (usize, usize),
        how: How,
        random: &mut Rng,
    ) {
        let target = entry.function;
        let protections = [
            Protection::Program,
            Protection::Context,
            Protection::Pinned,
            Protection::None,
        ];
        let protection = *random.choice(&protections).unwrap_or(&Protection::Program);
        let guarded = matches!(protection, Protection::Program | Protection::Context);
        let traced = matches!(how, How::Trampoline(_));
        let settings = Settings {
            sleepable: target.is_sleepy() && traced && random.bool(),
            protection: Some(protection),
            cookie: cookie(function, number),
        };
        let program = program(how, settings.sleepable).filter(|_| random.u8(..3) == 0);
        let kind = match how {
            How::Trampoline(kind) | How::Linux(LinuxWay::Trampoline, kind) => kind,
            _ => Kind::Fentry,
        };
        let skipping =
            kind == Kind::FmodRet && program.is_none() && target.is_overridable() && random.bool();
        // What is not guarded would call itself without end; what is not sleepable may not give its core up.
        // What counts its misses would count those too, and hide others among them.
        let recursing = guarded && !may_miss(how) && !target.is_sleepy() && random.u8(..4) == 0;
        let traits = Traits {
            twice: kind == Kind::Fsession,
            skips: skipping,
            may_miss: may_miss(how),
            by_image: by_image(how),
        };
        // Behind its site, too, if it runs whenever it is called: nothing takes its place or skips it.
        let whole = target.is_linux() || !target.is_overridable();
        let behind = whole && random.bool();
        let at = move |how: How| {
            Ok(match how.on(entry.hooked)? {
                At::Probe(place, ProbeKind::Here, way) if behind => {
                    let offset = Site::BYTES;
                    At::Probe(hook::Place { offset, ..place }, ProbeKind::Here, way)
                }
                at => at,
            })
        };
        // Half of those that may miss calls are put on while nobody calls: nothing overlaps then.
        let quiet = may_miss(how) && random.bool();
        let attach = || {
            place.attaching(traits);
            let attached = match program {
                Some(program) => self.bpf(program, way_in(how), settings, at, random),
                None => {
                    let hook = Arc::new(Hook {
                        ledger,
                        function,
                        place: number,
                        returned: returned(how),
                        recursing,
                        skipping,
                    });
                    let program = Program::native("torture".into(), hook, how.shape());
                    let attached = at(how).and_then(|at| hook::hook_in(at, settings, program));
                    attached.map_err(BpfError::Hook)
                }
            };
            let attached = attached.map(|hooked| hooked.id);
            let marks = program.is_some() && traced && attached.is_ok();
            place.mark.store(marks.into(), Ordering::Relaxed);
            self.attached(place, Way::of(how), target.name, attached);
        };
        // Of no function nobody has to keep off.
        let functions = if quiet { function..function + 1 } else { 0..0 };
        ledger.quietly(functions, attach);
    }

    /// Hooks in a BPF program, by any engine.
    fn bpf(
        &self,
        program: &str,
        way: WayIn,
        settings: Settings,
        at: impl FnOnce(How) -> Result<At, HookError>,
        random: &mut Rng,
    ) -> Result<HookedIn, BpfError> {
        let engine = match random.bool() {
            true => Engine::Jit,
            false => Engine::Interpreter,
        };
        let hooked = bpf::attach_at(program, engine, way, settings, |how, _| at(how))?;
        self.programs.fetch_add(1, Ordering::Relaxed);
        Ok(hooked)
    }

    /// An attach at a place has returned.
    fn attached(&self, place: &Place, way: Way, name: &str, attached: Result<HookId, BpfError>) {
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
    fn check<T>(&self, name: &str, attached: Result<T, BpfError>) {
        match attached {
            Ok(_) => {}
            Err(BpfError::Hook(HookError::Full(_))) => {
                self.full.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.say(format!("{name}: {error}")),
        }
    }

    /// Puts a function of another object in the place of one of the BPF program that is attached here, or takes it away again. What is
    /// attached stays attached: each call hits it, by the one or the other.
    fn replace_mark(&self, place: &Place) {
        let mark = &place.mark;
        let by = HookId(mark.load(Ordering::Relaxed) >> 1);
        if by.0 == 0 {
            let target = HookId(place.hook.load(Ordering::Relaxed));
            let replaced = bpf::freplace(OTHER_MARK, target);
            if let Ok(id) = &replaced {
                mark.store(id.0 << 1 | 1, Ordering::Relaxed);
                self.count(Way::Freplace);
            }
            self.check(OTHER_MARK, replaced);
        } else if self.off(by) {
            mark.store(1, Ordering::Relaxed);
        }
    }

    fn detach(&self, ledger: &Ledger, function: usize, place: &Place, random: &mut Rng) {
        let id = HookId(place.hook.load(Ordering::Relaxed));
        let functions = function..function + 1;
        self.settle(ledger, || [place].into_iter(), functions, id, random);
        place.detaching();
        let off = self.off(id);
        place.detach_returned(off);
    }

    /// Whether the hook on these places, of these functions, has counted as many misses as calls missed it: no fewer than
    /// those that lay wholly inside, and no more than with those of which that is not known. A miss is counted in the call, and the call
    /// noted after it; so the first are read before the hook's count, and who is under way, and then what is noted, after it. Half of the time
    /// nobody calls the functions meanwhile.
    fn settle<'p, P: Iterator<Item = &'p Place>>(
        &self,
        ledger: &Ledger,
        places: impl Fn() -> P,
        functions: Range<usize>,
        id: HookId,
        random: &mut Rng,
    ) {
        if !places().any(|place| place.traits().may_miss) {
            return;
        }
        let closed = if random.bool() {
            functions.clone()
        } else {
            0..0
        };
        ledger.quietly(closed, || self.compare(ledger, places, functions, id));
    }

    fn compare<'p, P: Iterator<Item = &'p Place>>(
        &self,
        ledger: &Ledger,
        places: impl Fn() -> P,
        functions: Range<usize>,
        id: HookId,
    ) {
        let sum = || {
            places()
                .map(Place::missed)
                .fold((0, 0), |sum, (missed, perhaps)| {
                    (sum.0 + missed, sum.1 + perhaps)
                })
        };
        let (at_least, _) = sum();
        let counted = hook::misses(id).iter().sum::<u64>();
        let under_way = ledger.under_way(|f| functions.contains(&f));
        let (missed, perhaps) = sum();
        let at_most = missed + perhaps + under_way;
        if !(at_least..=at_most).contains(&counted) {
            let hooks = hook::list();
            let it = hooks.iter().find(|hook| hook.id == id);
            let what = it.map_or("?".into(), |it| {
                format!("{} of {} by {}", it.kind, it.function, it.engine)
            });
            self.say(format!(
                "hook {id} ({what}) counted {counted} misses: calls missed it {at_least} times at least, and {at_most} at most ({perhaps} \
                 met it perhaps, {under_way} are under way)"
            ));
        }
        self.missed.fetch_add(at_least, Ordering::Relaxed);
        if at_least == at_most {
            self.exactly.fetch_add(at_least, Ordering::Relaxed);
            self.exact.fetch_add(1, Ordering::Relaxed);
        }
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

    /// Puts a hook on all functions of a group, at their entry or exit, or takes it off.
    fn many(&self, ledger: &'static Ledger, number: usize, exit: bool, random: &mut Rng) {
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
                let id = HookId(group.hook.load(Ordering::Relaxed));
                self.settle(ledger, places, functions.clone(), id, random);
                places().for_each(Place::detaching);
                let off = self.off(id);
                places().for_each(|place| place.detach_returned(off));
            }
            false => {
                let how = How::Many { exit };
                let traits = Traits {
                    may_miss: may_miss(how),
                    ..Traits::default()
                };
                let settings = Settings::default();
                let at = |how: How| {
                    let cookie_of = |address| {
                        let number = ledger.number(address);
                        number.map_or(u64::MAX, |number| cookie(number, MANY))
                    };
                    match how.at(pattern)? {
                        At::Many(all, exit) => Ok(At::Many(all.with_cookies(cookie_of), exit)),
                        other => Ok(other),
                    }
                };
                let quiet = may_miss(how) && random.bool();
                let attach = || {
                    places().for_each(|place| place.attaching(traits));
                    let attached = match program(how, false).filter(|_| random.bool()) {
                        Some(program) => self.bpf(program, way_in(how), settings, at, random),
                        None => {
                            let hook = Arc::new(OnMany {
                                ledger,
                                returned: exit,
                            });
                            let program = Program::native("torture".into(), hook, how.shape());
                            let attached =
                                at(how).and_then(|at| hook::hook_in(at, settings, program));
                            attached.map_err(BpfError::Hook)
                        }
                    };
                    if let Ok(attached) = &attached {
                        group.hook.store(attached.id.0, Ordering::Relaxed);
                        self.count(Way::of(how));
                    }
                    places().for_each(|place| place.attach_returned(attached.is_ok()));
                    self.check(pattern, attached);
                };
                ledger.quietly(if quiet { functions.clone() } else { 0..0 }, attach);
            }
        }
        group.taken.store(false, Ordering::Release);
    }

    /// Puts another function in a function's place, or puts that back.
    fn swap(
        &self,
        ledger: &'static Ledger,
        (number, _, by): (usize, &str, &str),
        random: &mut Rng,
    ) {
        let Some(entry) = ledger.entry(number) else {
            return;
        };
        let Some(place) = entry.places.get(REPLACED).filter(|place| place.take()) else {
            return;
        };
        match (place.is_attached(), hook::resolve(by)) {
            (true, _) => self.detach(ledger, number, place, random),
            (false, Ok(by)) => {
                place.attaching(Traits::default());
                let replaced = hook::replace(&entry.hooked, &by);
                let replaced = replaced.map_err(BpfError::Hook);
                self.attached(place, Way::Replace, by.name, replaced);
            }
            (false, Err(error)) => self.say(format!("{by}: {error}")),
        }
        place.give_back();
    }

    /// Goes one step on with a live patch: it is put on, is on when all tasks have changed over, is taken off, and so on.
    fn live(&self, ledger: &'static Ledger) {
        let group = &self.patch;
        if group.taken.swap(true, Ordering::Acquire) {
            return;
        }
        let places = || {
            let entries = PATCHED.iter().filter_map(|(n, ..)| ledger.entry(*n));
            entries.filter_map(|entry| entry.places.get(REPLACED))
        };
        let id = HookId(group.hook.load(Ordering::Relaxed));
        let phase = || {
            let patches = livepatch::list();
            let it = patches.iter().find(|patch| patch.id == id);
            it.map(|patch| patch.phase)
        };
        match places().next().map_or(0, Place::stage) {
            0 => {
                places().for_each(|place| place.attaching(Traits::default()));
                match livepatch::apply(&PATCH) {
                    Ok(id) => group.hook.store(id.0, Ordering::Relaxed),
                    Err(error) => {
                        places().for_each(|place| place.attach_returned(false));
                        self.check(PATCH.name, Err::<(), _>(BpfError::Hook(error)));
                    }
                }
            }
            1 if phase() == Some(Phase::On) => {
                places().for_each(|place| place.attach_returned(true));
                self.count(Way::LivePatch);
            }
            2 => {
                places().for_each(Place::detaching);
                if !self.off(id) {
                    places().for_each(|place| place.detach_returned(false));
                }
            }
            3 if phase().is_none() => places().for_each(|place| place.detach_returned(true)),
            _ => {}
        }
        group.taken.store(false, Ordering::Release);
    }

    /// Goes on with a live patch until it is off.
    fn until_unpatched(&self, ledger: &'static Ledger) {
        let patched = PATCHED.first().and_then(|(n, ..)| ledger.entry(*n));
        let patched = patched.and_then(|entry| entry.places.get(REPLACED));
        for _ in 0..PATIENCE {
            if patched.is_none_or(|place| place.stage() == 0) {
                break;
            }
            self.live(ledger);
            sched::sleep_ns(1_000_000);
        }
    }

    /// Takes off everything that is still on; nobody else changes anything any more.
    pub(crate) fn detach_all(&self, ledger: &'static Ledger, random: &mut Rng) {
        for (number, group) in GROUPS.iter().enumerate().take(PATTERNS.len()) {
            let start = GROUPS.iter().take(number).map(|g| g.len()).sum();
            let place = ledger.entry(start).and_then(|entry| entry.places.get(MANY));
            if !group.is_empty() && place.is_some_and(Place::is_attached) {
                self.many(ledger, number, false, random);
            }
        }
        self.until_unpatched(ledger);
        let entries = (0..ledger.len()).filter_map(|function| ledger.entry(function));
        // Those of groups and of the live patch have no hook of their own: what went wrong with these has been said.
        let patched = |number: usize| PATCHED.iter().any(|(patched, ..)| *patched == number);
        for (number, entry) in entries.enumerate() {
            let places = entry.places.iter().enumerate();
            let own = places
                .filter(|(place, _)| *place != MANY && !(*place == REPLACED && patched(number)));
            for (_, place) in own.filter(|(_, place)| place.is_attached()) {
                self.detach(ledger, number, place, random);
            }
        }
    }

    fn say(&self, message: String) {
        let mut messages = self.messages.lock();
        if messages.len() < KEPT {
            messages.push(message);
        }
    }

    /// How many were attached by each way so far, with the ways' names.
    pub(crate) fn by_way(&self) -> [(&'static str, u64); WAYS.len()] {
        let attached = self.attached.each_ref().map(|c| c.load(Ordering::Relaxed));
        let mut by_way = WAYS.map(|(_, name)| (name, 0));
        for ((_, to), count) in by_way.iter_mut().zip(attached) {
            *to = count;
        }
        by_way
    }

    /// Hooks of which it was known exactly how many misses they had to count: nothing overlapped.
    pub(crate) fn exact(&self) -> u64 {
        self.exact.load(Ordering::Relaxed)
    }

    /// What went wrong.
    pub(crate) fn messages(&self) -> Vec<String> {
        self.messages.lock().clone()
    }

    /// In numbers, for a line.
    pub(crate) fn summary(&self) -> String {
        let by_way = self.by_way();
        let ways: Vec<_> = by_way.map(|(name, count)| format!("{count} {name}")).into();
        format!(
            "{} attached ({}; {} of them BPF programs), {} taken off, {} found no memory, {} calls missed a hook and were counted, {} of \
             them by hooks whose misses are known exactly, {} hooks in all",
            by_way.iter().map(|(_, count)| count).sum::<u64>(),
            ways.join(", "),
            self.programs.load(Ordering::Relaxed),
            self.detached.load(Ordering::Relaxed),
            self.full.load(Ordering::Relaxed),
            self.missed.load(Ordering::Relaxed),
            self.exactly.load(Ordering::Relaxed),
            self.exact()
        )
    }
}
