// SPDX-License-Identifier: MIT OR Apache-2.0
//! The engine: attaches programs to functions and detaches them.
//!
//! The engine is plain state behind `&mut self`: the host puts it into a lock of its own kind, and
//! makes of an [`AttachId`] a value whose drop detaches.
//!
//! **Publishing** (Arm ARM B2.4.4 and B2.2.5): the image is written and cleaned to the point of
//! unification; every core gets a context synchronisation event, so that none has stale words of that
//! memory; only then the site's first word is replaced, by one store; then every core is synchronised
//! again, so that a call that begins after `attach` has returned runs the program.
//!
//! **Retiring**: the site is replaced first, every core synchronised, and the old image goes to
//! [`Platform::defer`]: someone may be executing it, or have been preempted in it.

use crate::args::ArgSpec;
use crate::image::Image;
use crate::ingredient::{CallerIn, Ingredient};
use crate::patch::patch;
use crate::platform::{Platform, PlatformError, Retired};
use crate::pool::{Found, Pool, PoolError};
use crate::program::{Callee, Kind};
use crate::site::{Site, SiteState, SiteTable};
use a64::{AsmError, Inst};
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;

/// Names one attached program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttachId(u64);

impl AttachId {
    /// Its number, counted from 1; no two attachments of an engine have the same.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for AttachId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why a program was not attached. The function's site is as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachError {
    /// Address of the function.
    pub function: u64,
    /// What was in the way, and what can be done.
    pub reason: Reason,
}

/// What keeps a program from being attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The address is not the entry of a function that has a site.
    NotASite {
        /// The nearest site at or below it.
        nearest: Option<u64>,
    },
    /// The function is on a hook's own path.
    Notrace,
    /// A word of the site is not what it should be.
    WordAtSite {
        /// Address of the word.
        at: u64,
        /// What should be there.
        expected: u32,
        /// What is there; `None`: no code.
        found: Option<u32>,
    },
    /// It is not known what the function has on the stack, so it cannot be called from an image.
    Arguments,
    /// A hit would take more stack than the host sets aside for it.
    Stack {
        /// Bytes that it would take: the image, the deepest program, and what that calls.
        needed: u32,
        /// Bytes that it may take.
        limit: u32,
    },
    /// No memory for the image.
    Pool(PoolError),
    /// The image cannot be generated: something is out of a branch's reach.
    Code(AsmError),
    /// The host could not write or patch.
    Platform(PlatformError),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASite { nearest: Some(near) } => write!(
                f,
                "not the entry of a function with a site; the nearest below is at {near:#x}, hook that one"
            ),
            Self::NotASite { nearest: None } => f.write_str(
                "not the entry of a function with a site, and none lies below; give a function's address",
            ),
            Self::Notrace => {
                f.write_str("it is on the path of a hook itself (notrace); hook one of its callers")
            }
            Self::WordAtSite { at, expected, found: Some(found) } => write!(
                f,
                "its site holds `{}` at {at:#x}, not `{}`: someone else changed it; undo that first",
                a64::display_word(*found, *at),
                a64::display_word(*expected, *at)
            ),
            Self::WordAtSite { at, .. } => {
                write!(f, "its site at {at:#x} is not mapped as code; map it, or leave it out of the table")
            }
            Self::Arguments => f.write_str(
                "its arguments are not known, so nothing but fentry fits; types are known of extern \"C\" functions that are \
                 exported (no_mangle)",
            ),
            Self::Stack { needed, limit } => write!(
                f,
                "a hit would take {needed} bytes of stack and {limit} are set aside for one; make the program's frames smaller"
            ),
            Self::Pool(error) => error.fmt(f),
            Self::Code(error) => write!(f, "its trampoline cannot be generated: {error}"),
            Self::Platform(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot hook the function at {:#x}: {}",
            self.function, self.reason
        )
    }
}

impl core::error::Error for AttachError {}

/// Why a program was not detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetachError {
    /// Nothing is attached under that number.
    Unknown {
        /// The number.
        id: AttachId,
    },
    /// The function's code could not be changed back; the program is still attached.
    Stuck {
        /// Address of the function.
        function: u64,
        /// What was in the way.
        reason: Reason,
    },
}

impl fmt::Display for DetachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { id } => {
                write!(
                    f,
                    "nothing is attached under number {id}; list what is, it may be detached already"
                )
            }
            Self::Stuck { function, reason } => {
                write!(f, "cannot unhook the function at {function:#x}: {reason}")
            }
        }
    }
}

impl core::error::Error for DetachError {}

/// One attached program.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) id: AttachId,
    pub(crate) kind: Kind,
    pub(crate) args: ArgSpec,
    pub(crate) callee: Callee,
}

/// A hooked function: the image its site leads to, and the programs in attach order.
struct Hook<P: Platform> {
    image: Arc<Image<P>>,
    programs: Vec<Program>,
    /// Images that the site led to before and that tasks may still return into.
    older: Vec<Weak<Image<P>>>,
}

/// An attached program, as listed.
pub struct Attached<'a> {
    /// Its number.
    pub id: AttachId,
    /// Address of the function.
    pub function: u64,
    /// When it is called.
    pub kind: Kind,
    /// What is called.
    pub callee: &'a Callee,
    /// Bytes of the pool that the function's image takes; programs on one function share it.
    pub image_bytes: u64,
    /// The deepest stack of a hit: image and programs, in bytes.
    pub stack_bytes: u32,
}

/// One instruction of a hooked function's path, as it is in memory now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Where it is.
    pub address: u64,
    /// What is there.
    pub word: u32,
    /// What it is for.
    pub ingredient: Ingredient,
    /// The name of the program that it serves, if it serves one.
    pub note: &'a str,
}

/// The hook engine of a host.
pub struct Engine<P: Platform> {
    pool: Arc<Pool<P>>,
    sites: SiteTable,
    hooks: BTreeMap<u64, Hook<P>>,
    functions: BTreeMap<AttachId, u64>,
    last: u64,
}

const NOP: u32 = Inst::NOP.encode();

impl<P: Platform> Engine<P> {
    /// An engine for these sites, in the platform's pool.
    pub fn new(platform: P, sites: SiteTable) -> Result<Self, PoolError> {
        let (hooks, functions) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            pool: Pool::new(platform)?,
            sites,
            hooks,
            functions,
            last: 0,
        })
    }

    /// The executable memory; a clone of it serves unwinders without the engine's lock.
    pub fn pool(&self) -> &Arc<Pool<P>> {
        &self.pool
    }

    /// The host.
    pub fn platform(&self) -> &P {
        self.pool.platform()
    }

    /// Where functions can be hooked.
    pub fn sites(&self) -> &SiteTable {
        &self.sites
    }

    /// Calls `callee` whenever `function` is called, as `kind` says, after the programs of that kind that are attached already.
    ///
    /// `args` says what is live at the function's entry; with several programs, what any of them says.
    pub fn attach(
        &mut self,
        function: u64,
        args: ArgSpec,
        kind: Kind,
        callee: Callee,
    ) -> Result<AttachId, AttachError> {
        let id = AttachId(self.last + 1);
        let program = Program {
            id,
            kind,
            args,
            callee,
        };
        self.add(function, program)
            .map_err(|reason| AttachError { function, reason })?;
        self.last = id.0;
        self.functions.insert(id, function);
        Ok(id)
    }

    fn add(&mut self, function: u64, program: Program) -> Result<(), Reason> {
        match self.sites.get(function) {
            None => {
                let nearest = self.sites.at_or_below(function).map(|s| s.address);
                return Err(Reason::NotASite { nearest });
            }
            Some(Site { notrace: true, .. }) => return Err(Reason::Notrace),
            Some(_) => {}
        }
        let old = match self.hooks.get(&function) {
            Some(hook) => branch(function, &hook.image)?,
            None => NOP,
        };
        for (at, expected) in [(function, old), (function.wrapping_add(4), NOP)] {
            let found = self.platform().read(at);
            if found != Some(expected) {
                return Err(Reason::WordAtSite {
                    at,
                    expected,
                    found,
                });
            }
        }
        let attached = self
            .hooks
            .get(&function)
            .map(|h| h.programs.as_slice())
            .unwrap_or(&[]);
        let programs: Vec<_> = attached.iter().cloned().chain([program]).collect();
        self.swap(function, old, programs)
    }

    /// Builds the image of `programs`, leads the site there, retires the image it led to.
    fn swap(&mut self, function: u64, old: u32, programs: Vec<Program>) -> Result<(), Reason> {
        let image = Arc::new(Image::new(&self.pool, function, &programs)?);
        let new = branch(function, &image)?;
        patch(self.platform(), function, old, new).map_err(Reason::Platform)?;
        let before = self.hooks.remove(&function);
        let mut older = Vec::new();
        if let Some(hook) = before {
            older = hook.older;
            older.retain(|image| image.strong_count() > 0);
            if hook.image.may_block {
                older.push(Arc::downgrade(&hook.image));
            }
            self.retire(hook.image);
        }
        let hook = Hook {
            image,
            programs,
            older,
        };
        self.hooks.insert(function, hook);
        Ok(())
    }

    fn retire(&self, image: Arc<Image<P>>) {
        let grace = image.grace();
        self.platform().defer(Retired::new(image), grace);
    }

    /// Takes a program off its function. Does not wait: what it leaves is freed by [`Platform::defer`].
    ///
    /// A call that has begun may still run a program of its entry once; a program of its exit is not run any more, for that may be
    /// any time from now.
    pub fn detach(&mut self, id: AttachId) -> Result<(), DetachError> {
        let unknown = DetachError::Unknown { id };
        let Some(function) = self.functions.get(&id).copied() else {
            return Err(unknown);
        };
        let Some(hook) = self.hooks.get(&function) else {
            return Err(unknown);
        };
        let rest: Vec<_> = hook
            .programs
            .iter()
            .filter(|p| p.id != id)
            .cloned()
            .collect();
        let current = hook.image.clone();
        let older: Vec<_> = hook.older.iter().filter_map(Weak::upgrade).collect();
        let stuck = |reason| DetachError::Stuck { function, reason };
        let old = branch(function, &current).map_err(stuck)?;
        if rest.is_empty() {
            patch(self.platform(), function, old, NOP)
                .map_err(|error| stuck(Reason::Platform(error)))?;
            if let Some(hook) = self.hooks.remove(&function) {
                self.retire(hook.image);
            }
        } else {
            match self.swap(function, old, rest) {
                // Detaching must not need memory: the calls become branches where they are.
                Err(Reason::Pool(_)) => {
                    current.silence(id).map_err(stuck)?;
                    if let Some(hook) = self.hooks.get_mut(&function) {
                        hook.programs.retain(|p| p.id != id);
                    }
                }
                other => other.map_err(stuck)?,
            }
        }
        self.functions.remove(&id);
        for image in older.iter().chain([&current]).filter(|i| i.may_block) {
            // The program is off its site; a call in an image that cannot be changed is one more of those that had begun.
            let _ = image.silence(id);
        }
        Ok(())
    }

    /// What a function's site leads to; `None` if it has no site.
    pub fn state(&self, function: u64) -> Option<SiteState> {
        self.sites.get(function)?;
        Some(match self.hooks.get(&function) {
            Some(hook) => SiteState::Branch(hook.image.code.address()),
            None => SiteState::Nops,
        })
    }

    /// Everything that is attached, function by function, in attach order.
    pub fn attached(&self) -> impl Iterator<Item = Attached<'_>> {
        self.hooks.iter().flat_map(|(function, hook)| {
            hook.programs.iter().map(|p| Attached {
                id: p.id,
                function: *function,
                kind: p.kind,
                callee: &p.callee,
                image_bytes: hook.image.code.bytes(),
                stack_bytes: hook.image.stack_bytes,
            })
        })
    }

    /// The function that a program is attached to.
    pub fn function_of(&self, id: AttachId) -> Option<u64> {
        self.functions.get(&id).copied()
    }

    /// The live code of a function's site and of its image; nothing if it has no site.
    pub fn describe(&self, function: u64) -> impl Iterator<Item = Line<'_>> {
        let site = self.sites.get(function);
        let words = site
            .into_iter()
            .flat_map(move |_| (0..Site::WORDS).map(move |i| function + 4 * i));
        let site = words.filter_map(|address| {
            let word = self.platform().read(address)?;
            Some(Line {
                address,
                word,
                ingredient: Ingredient::Site,
                note: "",
            })
        });
        let hook = self.hooks.get(&function);
        let image = hook.into_iter().flat_map(|hook| {
            (0..hook.image.code.words()).filter_map(|index| {
                let address = hook.image.code.address() + 4 * index as u64;
                let word = self.platform().read(address)?;
                let span = hook.image.span(index)?;
                let callee = span
                    .program
                    .and_then(|number| hook.image.callees.get(number));
                let note = callee.map_or("", |(_, c)| c.name.as_str());
                Some(Line {
                    address,
                    word,
                    ingredient: span.ingredient,
                    note,
                })
            })
        });
        site.chain(image)
    }

    /// What an address in the pool belongs to, also an image that is detached and not freed yet.
    pub fn owner(&self, pc: u64) -> Option<Found> {
        self.pool.find(pc)
    }

    /// Where the caller is when the PC is in the pool.
    pub fn unwind(&self, pc: u64) -> Option<CallerIn> {
        self.owner(pc).map(|found| found.caller)
    }
}

/// The word that leads a site to an image.
fn branch<P: Platform>(function: u64, image: &Image<P>) -> Result<u32, Reason> {
    let (pc, target) = (function, image.code.address());
    a64::ops::b()
        .with_offset(target.wrapping_sub(pc) as i64)
        .map(Inst::encode)
        .map_err(|error| Reason::Code(AsmError::OutOfReach { pc, target, error }))
}
