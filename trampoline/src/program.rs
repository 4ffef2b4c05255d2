// SPDX-License-Identifier: MIT OR Apache-2.0
//! A program to be called by an image: when, and under what protection.

use alloc::string::String;
use alloc::sync::Arc;
use core::any::Any;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// When a program is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// At the function's entry; its result is not used.
    Fentry,
    /// At the entry, behind all [`Fentry`](Self::Fentry): if its result is not zero, the function is skipped and returns that.
    FmodRet,
    /// In place of the function, which is skipped: its result is the function's. The function runs when the program is turned
    /// away. One program of this kind a function, the last at the entry.
    Freplace,
    /// When the function has returned, or was skipped.
    Fexit,
    /// At the entry and at the exit, with a word that is zero at first and the same at both.
    Fsession,
}

impl Kind {
    /// Its name, as ELF sections have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::FmodRet => "fmod_ret",
            Self::Freplace => "freplace",
            Self::Fexit => "fexit",
            Self::Fsession => "fsession",
        }
    }

    /// Whether the image has to call the function, because something comes after it.
    pub const fn calls_function(self) -> bool {
        !matches!(self, Self::Fentry)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What keeps a program from running inside itself, and on its core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Nothing: the program is proven to call nothing that is hooked, and to need no core of its own.
    None,
    /// No recursion protection; the task stays on its core.
    Pinned,
    /// The recursion word of the context ([`Runtime::word`](crate::runtime::Runtime::word)). While the word is not zero its task stays on
    /// its core, unless all that is active there may be moved ([`State::movable`]).
    Word,
    /// Two functions of the host, called around the program: `enter(state, frame) -> u64` (0: turned away) and
    /// `exit(state, frame)`.
    Call {
        /// Address of the first.
        enter: u64,
        /// Address of the second.
        exit: u64,
    },
}

/// How many contexts can be nested in one another: task, softirq, hardirq, NMI.
pub const CONTEXTS: usize = 4;

/// What a guard knows of one program: whom to turn away, and how often that happened.
///
/// Its address is what tells programs apart, so it lives as long as anything that names it.
#[derive(Debug, Default)]
#[repr(C)]
pub struct State {
    misses: [AtomicU64; CONTEXTS],
    /// Not zero: turned away whenever any program is active in the context, not only itself.
    whole_context: AtomicU64,
    /// Not zero: the program may sleep.
    sleepable: AtomicU64,
    /// Not zero: the program uses nothing of the core that it runs on.
    movable: AtomicU64,
}

impl State {
    /// Counts nothing so far. `whole_context`: turned away also if another program is active in the context; others are not turned away by it
    /// while it is active, unless they are of this kind too.
    pub const fn new(whole_context: bool) -> Self {
        Self {
            misses: [const { AtomicU64::new(0) }; CONTEXTS],
            whole_context: AtomicU64::new(whole_context as u64),
            sleepable: AtomicU64::new(0),
            movable: AtomicU64::new(0),
        }
    }

    /// The same of a program that may sleep, if `sleepable`.
    pub const fn sleepable(self, sleepable: bool) -> Self {
        Self {
            sleepable: AtomicU64::new(sleepable as u64),
            ..self
        }
    }

    /// The same of a program that uses nothing of the core that it runs on, if `movable`: its task may go on on another one.
    pub const fn movable(self, movable: bool) -> Self {
        Self {
            movable: AtomicU64::new(movable as u64),
            ..self
        }
    }

    /// Whether its task may go on on another core in the middle of it.
    pub fn is_movable(&self) -> bool {
        self.movable.load(Relaxed) != 0
    }

    /// Whether the program may sleep.
    pub fn is_sleepable(&self) -> bool {
        self.sleepable.load(Relaxed) != 0
    }

    /// Whether any active program turns it away.
    pub fn is_whole_context(&self) -> bool {
        self.whole_context.load(Relaxed) != 0
    }

    /// Counts a hit that was turned away, in a context by its number from 0 (task) to 3 (NMI).
    pub fn miss(&self, context: usize) {
        if let Some(misses) = self.misses.get(context) {
            misses.fetch_add(1, Relaxed);
        }
    }

    /// Hits that were turned away, by context.
    pub fn misses(&self) -> [u64; CONTEXTS] {
        self.misses.each_ref().map(|misses| misses.load(Relaxed))
    }

    /// The number that stands for it in an image: its address, provenance exposed.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }
}

/// A program to be called by an image.
#[derive(Clone)]
pub struct Callee {
    /// Address of an `extern "C" fn(ctx: *const u64, data: u64) -> u64`, within reach of BL.
    pub address: u64,
    /// The second argument; `None`: the program does not look at it.
    pub data: Option<u64>,
    /// Its name, for people.
    pub name: String,
    /// The deepest stack of a run, in bytes.
    pub stack_bytes: u32,
    /// What it has on the stack while it calls the function that it stands in for, in bytes; 0: it calls none.
    pub original_stack: u32,
    /// How it is protected.
    pub guard: Guard,
    /// Address of the [`State`] that the guard goes by.
    pub state: u64,
    /// Whether it may sleep.
    pub sleepable: bool,
    /// What has to live as long as an image that names the address, the data or the state.
    pub keep: Option<Arc<dyn Any + Send + Sync>>,
}
