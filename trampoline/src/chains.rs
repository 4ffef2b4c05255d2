// SPDX-License-Identifier: MIT OR Apache-2.0
//! The chains of all hooked functions.
//!
//! A function that one program on many hooks, and nothing else does, has no chain of its own: the program's list of functions says all
//! there is to know of it, in eight bytes. It gets one as soon as something joins.

use crate::attach::AttachId;
use crate::chain::Chain;
use crate::multi::Multi;
use crate::pair::{By, Pair};
use crate::platform::Platform;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Deref;

/// By function, and by program on many functions.
///
/// A function without a chain of its own is on the list of one [`Multi`] at most that is whole, and its site leads to the stub there and
/// from there to its body.
pub(crate) struct Chains<P: Platform> {
    own: BTreeMap<u64, Chain<P>>,
    multis: BTreeMap<AttachId, Multi<P>>,
    /// The bodies that work for two of these.
    pub(crate) pairs: Vec<Pair<P>>,
}

/// A function's chain: its own, or what a list says.
pub(crate) enum Found<'a, P: Platform> {
    Own(&'a Chain<P>),
    Listed(Chain<P>),
}

impl<P: Platform> Deref for Found<'_, P> {
    type Target = Chain<P>;

    fn deref(&self) -> &Chain<P> {
        match self {
            Self::Own(chain) => chain,
            Self::Listed(chain) => chain,
        }
    }
}

impl<P: Platform> Chains<P> {
    /// Nothing is hooked.
    pub(crate) const fn new() -> Self {
        Self {
            own: BTreeMap::new(),
            multis: BTreeMap::new(),
            pairs: Vec::new(),
        }
    }

    /// What a list says of a function that has no chain of its own.
    fn listed(&self, function: u64) -> Option<Chain<P>> {
        let mut whole = self.multis.values().filter(|multi| multi.is_whole());
        let stub = whole.find_map(|multi| multi.stub(function))?;
        let mut chain = Chain::new(function);
        chain.stubs.push(stub);
        Some(chain)
    }

    /// A function's chain; `None`: it is not hooked.
    pub(crate) fn get(&self, function: u64) -> Option<Found<'_, P>> {
        match self.own.get(&function) {
            Some(chain) => Some(Found::Own(chain)),
            None => self.listed(function).map(Found::Listed),
        }
    }

    /// A function's chain of its own, if it has one.
    pub(crate) fn own(&self, function: u64) -> Option<&Chain<P>> {
        self.own.get(&function)
    }

    /// As [`Self::own`], to be changed; followed by [`Self::forget_empty`].
    pub(crate) fn own_mut(&mut self, function: u64) -> Option<&mut Chain<P>> {
        self.own.get_mut(&function)
    }

    /// A function's chain, to be changed: it has one of its own from now on, until [`Self::forget_empty`] finds nothing in it.
    pub(crate) fn make(&mut self, function: u64) -> &mut Chain<P> {
        if !self.own.contains_key(&function) {
            let listed = self.listed(function);
            self.own
                .insert(function, listed.unwrap_or_else(|| Chain::new(function)));
        }
        self.own
            .entry(function)
            .or_insert_with(|| Chain::new(function))
    }

    /// Forgets a function's chain if nothing is in it.
    pub(crate) fn forget_empty(&mut self, function: u64) {
        if self.own.get(&function).is_some_and(Chain::is_empty) {
            self.own.remove(&function);
        }
    }

    /// The functions that have a chain of their own, ascending.
    pub(crate) fn functions_of_own(&self) -> impl Iterator<Item = u64> {
        self.own.keys().copied()
    }

    /// All that are hooked, once each, with their chains, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u64, Found<'_, P>)> {
        let own = self.own.iter();
        let own = own.map(|(function, chain)| (*function, Found::Own(chain)));
        let whole = self.multis.values().filter(|multi| multi.is_whole());
        let listed = whole.flat_map(|multi| multi.functions().iter());
        let listed = listed.filter(|function| !self.own.contains_key(function));
        own.chain(listed.filter_map(|function| {
            let chain = self.listed(*function)?;
            Some((*function, Found::Listed(chain)))
        }))
    }

    /// A program is on all its functions now: of those that nothing else hooks its list says so, the others get its stub at the end of
    /// their chains.
    pub(crate) fn insert(&mut self, id: AttachId, multi: Multi<P>) {
        // With no one else there is no one to ask.
        if !(self.own.is_empty() && self.multis.is_empty()) {
            for &function in multi.functions().iter() {
                if self.get(function).is_some()
                    && let Some(stub) = multi.stub(function)
                {
                    self.make(function).stubs.push(stub);
                }
            }
        }
        self.multis.insert(id, multi);
    }

    /// The program of that number.
    pub(crate) fn multi(&self, id: AttachId) -> Option<&Multi<P>> {
        self.multis.get(&id)
    }

    /// As [`Self::multi`], to be changed.
    pub(crate) fn multi_mut(&mut self, id: AttachId) -> Option<&mut Multi<P>> {
        self.multis.get_mut(&id)
    }

    /// All programs on many functions.
    pub(crate) fn ids(&self) -> impl Iterator<Item = AttachId> {
        self.multis.keys().copied()
    }

    /// The programs whose stubs a function's calls pass, in order, and which bodies these go by.
    pub(crate) fn bodies(&self, function: u64) -> Vec<(&Multi<P>, By<'_, P>)> {
        let stubs = self.get(function).map(|chain| chain.stubs.clone());
        let mut behind = None;
        let body = |stub| {
            let mut all = self.multis.iter();
            let (id, multi) = all.find(|(_, multi)| multi.stub(function) == Some(stub))?;
            // Of three in a row the first two have one body; that of the second and the third waits until the first is off.
            let by = match behind.take() == Some(*id) {
                true => By::Before,
                false => {
                    let mut pairs = self.pairs.iter();
                    let pair = pairs.find(|pair| pair.is_first(*id, function));
                    behind = pair.map(|pair| pair.second);
                    pair.map_or(By::Own, |pair| By::Both(&pair.block))
                }
            };
            Some((multi, by))
        };
        stubs.into_iter().flatten().filter_map(body).collect()
    }

    /// A program is about to be taken off some of its functions and to stay on others: each has a chain of its own from now on.
    pub(crate) fn break_up(&mut self, id: AttachId) {
        let functions = self.multi(id).filter(|multi| multi.is_whole());
        let functions = functions.map(|multi| multi.functions().clone());
        for &function in functions.iter().flat_map(|functions| functions.iter()) {
            self.make(function);
        }
        if let Some(multi) = self.multis.get_mut(&id) {
            multi.break_up();
        }
    }

    /// A program is off all its functions.
    pub(crate) fn remove(&mut self, id: AttachId) -> Option<Multi<P>> {
        let gone = self.multis.remove(&id)?;
        for &function in gone.functions().iter() {
            if let Some(chain) = self.own.get_mut(&function) {
                let stub = gone.stub(function);
                chain.stubs.retain(|other| Some(*other) != stub);
                self.forget_empty(function);
            }
        }
        Some(gone)
    }
}
