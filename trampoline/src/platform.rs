// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the engine needs from its host.

use core::fmt::Display;
use core::ops::Range;

/// What stands at an address that someone wants to hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SiteKind {
    /// The entry of a function with a site.
    Site,
    /// A function on a hook's own path: hooking it would recurse through the hook.
    Notrace,
    /// No function's entry, or one without a site.
    None,
}

/// A host of hooks: its executable memory, its text, its cores.
///
/// Code becomes visible to other cores in three steps (Arm ARM DDI 0487, B2.4.4): written and cleaned to the point of
/// unification, invalidated by the address it runs at, and a context synchronisation event on each core. The first two
/// are [`Platform::write_code`] and [`Platform::patch`], the third is [`Platform::sync_cores`].
pub trait Platform {
    /// Why code was not written.
    type Error: Display;

    /// Addresses of executable memory that is the engine's alone. All of it, and all of the text, within ±128 MiB.
    fn pool(&self) -> Range<u64>;

    /// What stands at `function`.
    fn site(&self, function: u64) -> SiteKind;

    /// Reads a word of code.
    fn read(&self, at: u64) -> Option<u32>;

    /// Writes words that no core can be executing, and makes them visible to instruction fetches that begin after the next
    /// [`Platform::sync_cores`].
    ///
    /// # Errors
    /// Nothing, or a part, was written; the memory is still not executed by anyone.
    fn write_code(&self, at: u64, words: &[u32]) -> Result<(), Self::Error>;

    /// Replaces the word `old` by `new` with one aligned 32-bit store, while other cores may be executing it.
    ///
    /// # Errors
    /// The word there is not `old`, or could not be written; it is as it was.
    fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), Self::Error>;

    /// Returns when every core has had a context synchronisation event since the call.
    fn sync_cores(&self);
}
