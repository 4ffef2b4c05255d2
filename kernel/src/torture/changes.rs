// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts hooks on and takes them off at random.

use super::functions::Function;
use super::ledger::{FROM_HOOK, Ledger, PLACES, Place, SKIPPED};
use crate::arch::callee::{Hit, NativeHook};
use crate::arch::lock::SpinLock;
use crate::hook::{self, HookError, HookId, Point, Protection};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};
use fastrand::Rng;
use trampoline::Kind;

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
        let Some((function, places)) = self.ledger.function(self.function) else {
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

/// What was changed.
pub(crate) struct Changes {
    /// Attached, by kind.
    attached: [AtomicU64; KINDS.len()],
    detached: AtomicU64,
    /// Attaches that found the pool full.
    full: AtomicU64,
    messages: SpinLock<Vec<String>>,
}

/// What is attached, as far as it is no question of protection.
const KINDS: [Kind; 4] = [Kind::Fentry, Kind::FmodRet, Kind::Fexit, Kind::Fsession];

impl Changes {
    /// Nothing so far.
    pub(crate) fn new() -> Changes {
        Changes {
            attached: [const { AtomicU64::new(0) }; KINDS.len()],
            detached: AtomicU64::new(0),
            full: AtomicU64::new(0),
            messages: SpinLock::new(Vec::new()),
        }
    }

    /// Hooks in something at a random place of a random function, or takes off what is there.
    pub(crate) fn one(&self, ledger: &'static Ledger, random: &mut Rng) {
        let (function, number) = (ledger.choose(random), random.usize(..PLACES));
        let Some((target, places)) = ledger.function(function) else {
            return;
        };
        let Some(place) = places.get(number).filter(|place| place.take()) else {
            return;
        };
        match place.is_attached() {
            true => self.detach(place),
            false => self.attach(ledger, target, place, (function, number), random),
        }
        place.give_back();
    }

    fn attach(
        &self,
        ledger: &'static Ledger,
        target: &Function,
        place: &Place,
        (function, number): (usize, usize),
        random: &mut Rng,
    ) {
        // One program a function may skip it, or the ones behind it would not be asked.
        let kinds = if number == 0 {
            0..KINDS.len()
        } else {
            2..KINDS.len()
        };
        let index = match number {
            0 => random.usize(kinds),
            _ => [0, 2, 3].get(random.usize(..3)).copied().unwrap_or(0),
        };
        let Some((&kind, count)) = KINDS.get(index).zip(self.attached.get(index)) else {
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
        let skipping = kind == Kind::FmodRet && target.is_overridable() && random.bool();
        let hook = Hook {
            ledger,
            function,
            place: number,
            // What is not guarded would call itself without end; what is not sleepable may not give its core up.
            recursing: guarded && !target.is_sleepy() && random.u8(..4) == 0,
            skipping,
        };
        let point = Point {
            protection,
            sleepable: target.is_sleepy() && random.bool(),
            ..Point::of(kind)
        };
        let Ok(resolved) = hook::resolve(target.name) else {
            return self.say(format!("{} has no site", target.name));
        };
        place.skips.store(skipping, Ordering::Relaxed);
        place.attaching(if kind == Kind::Fsession { 2 } else { 1 });
        let attached = hook::attach_hook(&resolved, point, "torture".into(), Arc::new(hook));
        if let Ok(id) = &attached {
            place.hook.store(id.0, Ordering::Relaxed);
            count.fetch_add(1, Ordering::Relaxed);
        }
        place.attach_returned(attached.is_ok());
        match attached {
            Ok(_) => {}
            Err(HookError::Full(_)) => {
                self.full.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.say(format!("{}, {kind}: {error}", target.name)),
        }
    }

    fn detach(&self, place: &Place) {
        place.detaching();
        let id = HookId(place.hook.load(Ordering::Relaxed));
        let detached = hook::detach(id);
        place.detach_returned(detached.is_ok());
        match detached {
            Ok(()) => {
                self.detached.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.say(format!("hook {id} does not come off: {error}")),
        }
    }

    /// Takes off everything that is still on; nobody else changes anything any more.
    pub(crate) fn detach_all(&self, ledger: &'static Ledger) {
        for function in 0..ledger.len() {
            let places = ledger.function(function).map(|(_, places)| places);
            for place in places.into_iter().flatten().filter(|p| p.is_attached()) {
                self.detach(place);
            }
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
        let kinds: Vec<_> = KINDS
            .iter()
            .zip(attached)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        format!(
            "{} attached ({}), {} taken off, {} found no memory",
            attached.iter().sum::<u64>(),
            kinds.join(", "),
            self.detached.load(Ordering::Relaxed),
            self.full.load(Ordering::Relaxed)
        )
    }
}
