// SPDX-License-Identifier: MIT OR Apache-2.0
//! One body for two programs on the same functions, so that the registers are saved once.
//!
//! Each stub's own body saves and restores them. Where two stubs of entries stand one behind the other, the first one's branch to its body
//! is led to a body of both, which calls the one program and the other, and goes on by the second stub's link:
//!
//! ```text
//!   site -> stub -> body of both ------------> what is next
//!             '-> link -> stub -> own body -> link -^
//! ```
//!
//! The links stay what they are, and the second stub with its own body stays where it is. So it does not matter when a call passes that
//! one branch, before or after it is changed, in whichever order with the links: it runs each program once. Everything that changes a chain
//! knows nothing of this; only before one of the two is taken off the branch is set back.
//!
//! The body of both finds the second stub by the distance that lies in the first (shared.rs). Calls that are still in such a body when it is
//! taken out read it, so it may be given another value only when that body is freed: a program has one body of both at a time as the first.

use crate::attach::{AttachId, DetachError, Engine, Reason};
use crate::chain::{Stub, branch};
use crate::multi::{Block, Multi, Plan};
use crate::patch::patch_all;
use crate::platform::{Patch, Platform};
use crate::shared::{DISTANCE, Shared};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// What a body works for.
pub(crate) struct Pair<P: Platform> {
    first: AttachId,
    pub(crate) second: AttachId,
    pub(crate) block: Arc<Block<P>>,
    /// Ascending: the functions of both whose stubs stand one behind the other.
    functions: Vec<u64>,
}

/// By which body a function's stub of a program goes.
pub(crate) enum By<'a, P: Platform> {
    /// Its own.
    Own,
    /// That of its program and the next one's.
    Both(&'a Block<P>),
    /// That of the one before it: nobody comes by its entry.
    Before,
}

impl<P: Platform> Pair<P> {
    /// Whether that program's stub of a function leads to this body.
    pub(crate) fn is_first(&self, id: AttachId, function: u64) -> bool {
        self.first == id && self.functions.binary_search(&function).is_ok()
    }
}

/// Where a stub leads to its body.
fn lead(stub: Stub) -> u64 {
    stub.entry + 4
}

/// The change of the word at `at` to a branch; `None`: it is that already.
fn change(platform: &impl Platform, at: u64, to: u64) -> Result<Option<Patch>, Reason> {
    let new = branch(at, to, false)?;
    let old = platform.read(at).filter(|old| *old != new);
    Ok(old.map(|old| Patch { at, old, new }))
}

impl<P: Platform> Engine<P> {
    /// A program was put on many functions: where its stubs stand behind those of others one body does for both. What cannot be done is left
    /// as it is, for it costs a few instructions and nothing else.
    pub(crate) fn pair_up(&mut self, second: AttachId) {
        let firsts: Vec<_> = self.chains.ids().filter(|id| *id != second).collect();
        for first in firsts {
            let _ = self.pair(first, second);
        }
    }

    fn pair(&mut self, first: AttachId, second: AttachId) -> Result<(), Reason> {
        let (Some(one), Some(two)) = (self.chains.multi(first), self.chains.multi(second)) else {
            return Ok(());
        };
        if one.block.exit || two.block.exit || one.follower.strong_count() != 0 {
            return Ok(());
        }
        let both = |function: &u64| {
            let (a, b) = (one.stub(*function)?, two.stub(*function)?);
            let chain = self.chains.own(*function)?;
            let mut pairs = chain.stubs.windows(2);
            pairs
                .any(|pair| pair == [a, b])
                .then_some((*function, a, b))
        };
        let places: Vec<_> = two.functions().iter().filter_map(both).collect();
        if places.is_empty() {
            return Ok(());
        }
        let platform = self.platform();
        let programs: Vec<_> = [one, two]
            .into_iter()
            .flat_map(|m| m.block.programs.clone())
            .collect();
        let plan = Plan {
            shared: Shared {
                exit: false,
                programs: &programs,
                reads: one.block.reads.and(two.block.reads),
                runtime: &platform.runtime(),
            },
            places: &[],
        };
        let block = Arc::new(plan.build(&self.pool)?);
        let distances = places.iter().map(|(_, a, b)| {
            let at = |stub: &Stub| stub.entry + 4 * DISTANCE as u64;
            change(platform, at(a), at(b))
        });
        let distances = distances.filter_map(Result::transpose);
        let distances = distances.collect::<Result<Vec<_>, _>>()?;
        // All of them, and every core synchronised, before anybody reads one. What fails here nobody has seen.
        patch_all(platform, &distances).map_err(|failed| Reason::Platform(failed.error))?;
        let leads = places
            .iter()
            .map(|(_, a, _)| change(platform, lead(*a), block.start()));
        let leads = leads.filter_map(Result::transpose);
        let leads = leads.collect::<Result<Vec<_>, _>>()?;
        let done = patch_all(platform, &leads);
        if let Some(one) = self.chains.multi_mut(first) {
            one.follower = Arc::downgrade(&block);
        }
        match done {
            // Some were led through it for a moment.
            Err(failed) if failed.undone => {
                self.retire_block(block);
                Err(Reason::Platform(failed.error))
            }
            // And if some still are: they are found when it is taken out.
            _ => {
                self.chains.pairs.push(Pair {
                    first,
                    second,
                    block,
                    functions: places.iter().map(|(function, ..)| *function).collect(),
                });
                Ok(())
            }
        }
    }

    /// A program is about to be taken off: what goes by a body of it and another one goes by their own bodies again.
    ///
    /// # Errors
    /// Some still do; each program is on all its functions.
    pub(crate) fn unpair(&mut self, id: AttachId) -> Result<(), DetachError> {
        let of_it = |pair: &Pair<P>| pair.first == id || pair.second == id;
        while let Some(index) = self.chains.pairs.iter().position(of_it) {
            let pair = self.chains.pairs.swap_remove(index);
            let failed = self.chains.multi(pair.first).map_or(Ok(()), |one| {
                self.set_back(one, &pair)
                    .map_err(|(function, reason)| DetachError::Stuck { function, reason })
            });
            if failed.is_err() {
                self.chains.pairs.push(pair);
                return failed;
            }
            self.retire_block(pair.block);
        }
        Ok(())
    }

    fn set_back(&self, one: &Multi<P>, pair: &Pair<P>) -> Result<(), (u64, Reason)> {
        let platform = self.platform();
        let (mut functions, mut patches) = (Vec::new(), Vec::new());
        for &function in &pair.functions {
            let refused = |reason| (function, reason);
            if let Some(stub) = one.stub(function)
                && let Some(patch) =
                    change(platform, lead(stub), one.block.start()).map_err(refused)?
            {
                functions.push(function);
                patches.push(patch);
            }
        }
        patch_all(platform, &patches).map_err(|failed| {
            let function = functions.get(failed.index).copied();
            (function.unwrap_or(0), Reason::Platform(failed.error))
        })
    }
}
