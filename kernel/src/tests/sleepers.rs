// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks that are taken off while tasks are inside, and what is left of their code.

use super::tasks::spawn;
use super::{Failure, Outcome};
use crate::arch::code;
use crate::hook::Function;
use crate::mm::layout::{POOL, POOL_SIZE};
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

/// Code in the pool; its address is inverted, for one on the stack of who looks would keep the code alive.
pub(super) struct Image(usize);

impl Image {
    /// What the branch at `at` leads to.
    #[inline(never)]
    pub(super) fn behind(at: usize) -> Result<Image, Failure> {
        let target = code::read(at).and_then(|word| a64::branch_target(word, at as u64));
        let image = target.map(|target| Image(!(target as usize)));
        image.ok_or_else(|| Failure::Failed("no branch at the hooked entry".into()))
    }

    /// The compiled program that a hooked function's trampoline calls.
    #[inline(never)]
    pub(super) fn of_program(function: &Function) -> Result<Image, Failure> {
        let lines = hook::describe(function.address);
        let calls = lines
            .iter()
            .filter(|line| line.ingredient == "program" && a64::is_call(line.word));
        let mut to = calls.filter_map(|line| a64::branch_target(line.word, line.address as u64));
        let code = to.find(|to| (POOL..POOL + POOL_SIZE).contains(&(*to as usize)));
        let code = code.map(|code| Image(!(code as usize)));
        code.ok_or_else(|| Failure::Failed("no compiled program is called".into()))
    }

    /// Its first words, as many as the pool hands out at least.
    #[inline(never)]
    fn words(&self) -> [Option<u32>; 4] {
        core::array::from_fn(|index| code::read(!black_box(self.0) + 4 * index))
    }

    /// Whether it is not freed.
    pub(super) fn is_there(&self) -> bool {
        !self.words().contains(&Some(FILL))
    }

    /// Whether it is freed: nothing but BRK is there.
    pub(super) fn is_filled(&self) -> bool {
        self.words() == [Some(FILL); 4]
    }

    /// It is freed after a grace period.
    pub(super) fn check_freed(&self) -> Outcome {
        rcu::barrier();
        let words = self.words();
        check!(self.is_filled(), "the freed code holds {words:x?}, not BRK");
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
