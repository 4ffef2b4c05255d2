// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many tasks, one function, hooks that come and go: none is ever hit with another's data.

use super::hooks::function;
use super::tasks::spawn;
use super::{Failure, Outcome, Test};
use crate::arch::callee::{Hit, NativeHook};
use crate::hook::{self, HookId, Point};
use crate::workload::{workload_call, workload_six};
use crate::{check, rcu, sched};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use fastrand::Rng;
use trampoline::Kind;

pub(super) const TESTS: &[Test] = &[Test {
    name: "stress.no_hook_is_hit_with_anothers_data",
    seconds: 120,
    run: own_data,
}];

const TASKS: u64 = 25;
const HOOKS: usize = 8;
const CHANGES: usize = 150;

/// A hook that knows what it has to be told.
struct Own {
    function: u64,
    cookie: u64,
    arguments: u32,
    hits: AtomicU64,
    foreign: AtomicU64,
}

impl NativeHook for Own {
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        let told = hit.attachment();
        let own = (self.function, self.cookie, self.arguments);
        let right = (told.function, told.cookie, told.arguments) == own;
        // Both functions are only called with a second argument that is the first one, inverted.
        let arguments = hit.words().first().zip(hit.words().get(1));
        let right = right && arguments.is_some_and(|(a, b)| *a == !*b);
        let count = if right { &self.hits } else { &self.foreign };
        count.fetch_add(1, Relaxed);
        0
    }
}

fn own_data() -> Outcome {
    const KINDS: [Kind; 4] = [Kind::Fentry, Kind::FmodRet, Kind::Fexit, Kind::Fsession];
    let functions = [
        (function("workload_call")?, 2),
        (function("workload_six")?, 6),
    ];
    let stop = Arc::new(AtomicBool::new(false));
    let calls = |stop: Arc<AtomicBool>| {
        move || {
            let pair = black_box(workload_call as extern "C" fn(u64, u64) -> u64);
            let six = black_box(workload_six as extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64);
            let mut right = true;
            let mut n = 0u64;
            while !stop.load(Relaxed) {
                n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
                right &= pair(n, !n) == n.wrapping_mul(3).wrapping_add(!n);
                let sum = n.wrapping_add((!n).wrapping_mul(2));
                right &= six(n, !n, 1, 2, 3, 4) == sum.wrapping_add(3 + 8 + 15 + 24);
                // Who changes what is hooked wants a turn, too.
                if n.is_multiple_of(256) {
                    sched::sleep_ns(500_000);
                }
            }
            right
        }
    };
    let tasks: Result<Vec<_>, Failure> = (0..TASKS)
        .map(|_| spawn("caller", calls(stop.clone())))
        .collect();
    let tasks = tasks?;
    let mut random = Rng::with_seed(1);
    let mut hooks: [Option<(HookId, Arc<Own>)>; HOOKS] = [const { None }; HOOKS];
    let (mut hits, mut foreign) = (0, 0);
    let mut result = Ok(());
    for change in 0..CHANGES {
        let Some(slot) = random.choice(&mut hooks) else {
            break;
        };
        match slot.take() {
            Some((id, own)) => {
                result = hook::detach(id);
                // Calls that began before may be counted later, or not at all.
                hits += own.hits.load(Relaxed);
                foreign += own.foreign.load(Relaxed);
            }
            None => {
                let Some((function, arguments)) = random.choice(&functions) else {
                    break;
                };
                let own = Arc::new(Own {
                    function: function.address as u64,
                    cookie: 0xc00_c1e0 + change as u64,
                    arguments: *arguments,
                    hits: AtomicU64::new(0),
                    foreign: AtomicU64::new(0),
                });
                let point = Point {
                    cookie: own.cookie,
                    ..Point::of(*random.choice(&KINDS).unwrap_or(&Kind::Fentry))
                };
                let attached = hook::attach_hook(function, point, "own".into(), own.clone());
                result = attached.map(|id| *slot = Some((id, own)));
            }
        }
        if result.is_err() {
            break;
        }
    }
    for (id, own) in hooks.into_iter().flatten() {
        result = result.and(hook::detach(id));
        hits += own.hits.load(Relaxed);
        foreign += own.foreign.load(Relaxed);
    }
    stop.store(true, Relaxed);
    let right = tasks.into_iter().all(|task| task.join());
    rcu::barrier();
    result.map_err(|e| Failure::Failed(e.to_string()))?;
    check!(right, "a call returned a wrong result");
    check!(
        foreign == 0,
        "{foreign} hits with another hook's data, {hits} with the own"
    );
    check!(hits > 0, "no hook was ever hit");
    Ok(())
}
