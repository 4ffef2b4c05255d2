// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks that are taken off while tasks are inside, and what is left of their code.

use super::tasks::spawn;
use super::{Failure, Outcome};
use crate::arch::code;
use crate::task::State;
use crate::workload::{set_gate, workload_blocks};
use crate::{check, hook, rcu, sched};
use alloc::vec::Vec;
use core::hint::black_box;
use trampoline::pool::FILL;

/// Has ten tasks sleep in [`workload_blocks`], takes a hook off meanwhile, and looks when any grace period would have ended that does
/// not wait for them. What was seen, and whether all ten calls returned the right result.
pub(super) fn under_ten_sleepers<T>(
    detach: impl FnOnce() -> Outcome,
    look: impl FnOnce() -> T,
) -> Result<(T, bool), Failure> {
    let blocks = black_box(workload_blocks as extern "C" fn(u64, u64) -> u64);
    set_gate(false);
    let tasks: Result<Vec<_>, _> = (0..10)
        .map(|n| spawn("sleeper", move || blocks(n, 5) == n + 10))
        .collect();
    let asleep = are_asleep("sleeper", 10);
    let detached = detach();
    sched::sleep_ns(50_000_000);
    let seen = look();
    set_gate(true);
    let right = tasks?.into_iter().all(|task| task.join());
    detached?;
    asleep?;
    Ok((seen, right))
}

/// Waits until so many tasks of a name are blocked, which they are in one place only.
pub(super) fn are_asleep(name: &str, tasks: usize) -> Outcome {
    let asleep = || {
        let mut asleep = 0;
        sched::for_each(|task| {
            let blocked = task.state() == State::Blocked && task.name() == name;
            asleep += usize::from(blocked);
        });
        asleep == tasks
    };
    let mut looks = (0..1000).map(|_| sched::sleep_ns(5_000_000));
    check!(
        looks.any(|()| asleep()),
        "{tasks} tasks {name} do not come to sleep"
    );
    Ok(())
}

/// The code that a branch leads to; its address is inverted, for one on the stack of who looks would keep the code alive.
pub(super) struct Image(usize);

impl Image {
    /// What the branch at `at` leads to.
    #[inline(never)]
    pub(super) fn behind(at: usize) -> Result<Image, Failure> {
        let target = code::read(at).and_then(|word| a64::branch_target(word, at as u64));
        let image = target.map(|target| Image(!(target as usize)));
        image.ok_or_else(|| Failure::Failed("no branch at the hooked entry".into()))
    }

    #[inline(never)]
    fn first_word(&self) -> Option<u32> {
        code::read(!black_box(self.0))
    }

    /// Whether it is not freed.
    pub(super) fn is_there(&self) -> bool {
        self.first_word().is_some_and(|word| word != FILL)
    }

    /// It is freed after a grace period.
    pub(super) fn check_freed(&self) -> Outcome {
        rcu::barrier();
        let word = self.first_word();
        check!(
            word == Some(FILL),
            "the freed image holds {word:x?}, not BRK"
        );
        Ok(())
    }
}

/// After a grace period so many bytes of the pool are free, as before.
pub(super) fn pool_is_back(free: usize) -> Outcome {
    rcu::barrier();
    let now = hook::pool_free();
    check!(free == now, "{free} bytes of the pool were free, now {now}");
    Ok(())
}
