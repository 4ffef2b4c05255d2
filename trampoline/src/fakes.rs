// SPDX-License-Identifier: MIT OR Apache-2.0
//! A platform in ordinary memory, for host tests: it records calls and fails on request.

use crate::platform::{Grace, Platform, PlatformError, Retired};
use crate::runtime::Runtime;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One call of the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `write_code(at, words)`, with the number of words.
    Write(u64, usize),
    /// `sync_cores()`
    Sync,
    /// `patch(at, old, new)`
    Patch(u64, u32, u32),
    /// `replace_word(at, old, new)`
    Replace(u64, u32, u32),
    /// `defer(.., grace)`
    Defer(Grace),
}

#[derive(Default)]
struct State {
    words: BTreeMap<u64, u32>,
    calls: Vec<Call>,
    deferred: Vec<Retired>,
    failing: Option<PlatformError>,
    /// Patches that still succeed before one fails, then those before the next.
    failing_patches: VecDeque<(usize, PlatformError)>,
    /// The stack that a hit may take, and that may be in use while the function runs.
    stack: Option<(u32, u32)>,
}

/// A platform whose code is a map from address to word. Clones share it.
#[derive(Clone)]
pub struct FakePlatform {
    pool: Range<u64>,
    state: Arc<Mutex<State>>,
}

impl FakePlatform {
    /// A host with this pool, and functions at these addresses: two NOPs and a RET each.
    pub fn new(pool: Range<u64>, functions: &[u64]) -> Self {
        let fake = Self {
            pool,
            state: Arc::default(),
        };
        for function in functions {
            fake.set(*function, a64::ops::nop().encode());
            fake.set(*function + 4, a64::ops::nop().encode());
            fake.set(*function + 8, a64::ops::ret().encode());
        }
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, call: Call, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
        let mut state = self.state();
        state.calls.push(call);
        if let Some(error) = state.failing.take() {
            return Err(error);
        }
        if let Some((after, error)) = state.failing_patches.pop_front() {
            match after.checked_sub(1) {
                Some(after) => state.failing_patches.push_front((after, error)),
                None => return Err(error),
            }
        }
        match state.words.get_mut(&at) {
            None => Err(PlatformError::NotCode { at }),
            Some(word) if *word != old => Err(PlatformError::Mismatch {
                at,
                expected: old,
                found: *word,
            }),
            Some(word) => {
                *word = new;
                Ok(())
            }
        }
    }

    /// Sets a word behind the engine's back.
    pub fn set(&self, at: u64, word: u32) {
        self.state().words.insert(at, word);
    }

    /// Takes the record of calls.
    pub fn take_calls(&self) -> Vec<Call> {
        core::mem::take(&mut self.state().calls)
    }

    /// The next write or patch fails with this.
    pub fn fail_next(&self, error: PlatformError) {
        self.state().failing = Some(error);
    }

    /// The next write succeeds; of the patches behind it, and behind the last one that was to fail, the one that comes after so many others
    /// fails with this.
    pub fn fail_patch(&self, after: usize, error: PlatformError) {
        self.state().failing_patches.push_back((after, error));
    }

    /// So much stack may a hit take, and so much of it be in use while the function runs, in bytes.
    pub fn limit_stack(&self, hit: u32, waiting: u32) {
        self.state().stack = Some((hit, waiting));
    }

    /// Ends the grace period: drops what was deferred, and says how many that were.
    pub fn end_grace_period(&self) -> usize {
        let deferred = core::mem::take(&mut self.state().deferred);
        deferred.into_iter().map(Retired::free).count()
    }
}

impl Platform for FakePlatform {
    fn pool(&self) -> Range<u64> {
        self.pool.clone()
    }

    fn write_code(&self, at: u64, words: &[u32]) -> Result<(), PlatformError> {
        let mut state = self.state();
        state.calls.push(Call::Write(at, words.len()));
        if let Some(error) = state.failing.take() {
            return Err(error);
        }
        state
            .words
            .extend((at..).step_by(4).zip(words.iter().copied()));
        Ok(())
    }

    fn sync_cores(&self) {
        self.state().calls.push(Call::Sync);
    }

    fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
        self.store(Call::Patch(at, old, new), at, old, new)
    }

    fn replace_word(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
        self.store(Call::Replace(at, old, new), at, old, new)
    }

    fn read(&self, at: u64) -> Option<u32> {
        self.state().words.get(&at).copied()
    }

    fn runtime(&self) -> Runtime {
        RUNTIME
    }

    fn stack_limit(&self) -> u32 {
        self.state().stack.map_or(u32::MAX, |(hit, _)| hit)
    }

    fn waiting_limit(&self) -> u32 {
        self.state().stack.map_or(u32::MAX, |(_, waiting)| waiting)
    }

    fn defer(&self, retired: Retired, grace: Grace) {
        let mut state = self.state();
        state.calls.push(Call::Defer(grace));
        state.deferred.push(retired);
    }
}

/// What code for a [`FakePlatform`] knows of it.
pub const RUNTIME: Runtime = Runtime {
    task: a64::SysReg::SP_EL0,
    word: 0,
    migrate: 0x14,
    trace: 0x18,
    admit: 0xffff_ffff_8000_9000,
    admit_stack: 0,
    shadow: crate::runtime::Shadow {
        top: 0x1c,
        end: 0x820,
    },
    miss: 0xffff_ffff_8000_9100,
};
