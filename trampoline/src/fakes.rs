// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host for tests: memory in a map, every call recorded.

use crate::platform::{Platform, SiteKind};
use crate::site::NOP;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Range;

/// A call that the engine made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// `write_code`: address and number of words.
    Write(u64, usize),
    /// `patch`: address, old and new word.
    Patch(u64, u32, u32),
    /// `sync_cores`.
    Sync,
}

/// A host whose functions and pool are where it is told.
pub struct FakePlatform {
    pool: Range<u64>,
    notrace: Vec<u64>,
    sites: Vec<u64>,
    /// Words of code, by address.
    pub memory: RefCell<BTreeMap<u64, u32>>,
    /// What was called, in order.
    pub calls: RefCell<Vec<Call>>,
    /// Addresses whose patch fails.
    pub broken: RefCell<Vec<u64>>,
}

impl FakePlatform {
    /// Functions at `sites`, each with two NOPs at its entry and two before it; those in `notrace` may not be hooked.
    pub fn new(pool: Range<u64>, sites: &[u64], notrace: &[u64]) -> FakePlatform {
        let memory = sites.iter().flat_map(|&s| [s - 8, s - 4, s, s + 4]).map(|at| (at, NOP)).collect();
        FakePlatform {
            pool,
            notrace: notrace.into(),
            sites: sites.into(),
            memory: RefCell::new(memory),
            calls: RefCell::default(),
            broken: RefCell::default(),
        }
    }

    /// The calls since the last time this was asked.
    pub fn take_calls(&self) -> Vec<Call> {
        self.calls.take()
    }
}

impl Platform for &FakePlatform {
    type Error = String;

    fn pool(&self) -> Range<u64> {
        self.pool.clone()
    }

    fn site(&self, function: u64) -> SiteKind {
        match () {
            () if self.notrace.contains(&function) => SiteKind::Notrace,
            () if self.sites.contains(&function) => SiteKind::Site,
            () => SiteKind::None,
        }
    }

    fn read(&self, at: u64) -> Option<u32> {
        self.memory.borrow().get(&at).copied()
    }

    fn write_code(&self, at: u64, words: &[u32]) -> Result<(), String> {
        if !self.pool.contains(&at) {
            return Err(alloc::format!("{at:#x} is not in the pool"));
        }
        self.calls.borrow_mut().push(Call::Write(at, words.len()));
        self.memory.borrow_mut().extend((0..).zip(words).map(|(i, &w)| (at + 4 * i, w)));
        Ok(())
    }

    fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), String> {
        if self.broken.borrow().contains(&at) {
            return Err("broken".into());
        }
        if self.read(at) != Some(old) {
            return Err("another word".into());
        }
        self.calls.borrow_mut().push(Call::Patch(at, old, new));
        self.memory.borrow_mut().insert(at, new);
        Ok(())
    }

    fn sync_cores(&self) {
        self.calls.borrow_mut().push(Call::Sync);
    }
}
