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
use crate::chain::{Chain, Hook, Stub};
use crate::chains::Chains;
use crate::detour::Detour;
use crate::image::Image;
use crate::ingredient::{CallerIn, Ingredient};
use crate::platform::{Platform, PlatformError, Retired};
use crate::pool::{Found, Pool, PoolError};
use crate::program::{Callee, Kind};
use crate::site::{Site, SiteState, SiteTable};
use a64::{AsmError, Inst, RelocateError};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
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
    /// Someone else changes its site by other rules.
    Claimed {
        /// Who.
        by: &'static str,
    },
    /// It is replaced already.
    Replaced {
        /// Address of what replaces it.
        by: u64,
    },
    /// The address is not that of an instruction of the function.
    NotAnInstruction {
        /// The address.
        at: u64,
    },
    /// It is the second word of a site.
    SecondWord {
        /// Address of the function.
        entry: u64,
    },
    /// A function's return is probed at its entry only.
    NotEntry {
        /// The address that was given.
        at: u64,
    },
    /// It lies between a load-exclusive and its store-exclusive.
    Exclusive {
        /// Address of the former.
        load: u64,
    },
    /// It is the entry, without a site, of a function that branches there itself.
    BranchToEntry {
        /// Address of the branch.
        from: u64,
    },
    /// It is data that an instruction loads.
    Literal {
        /// Address of the load.
        by: u64,
    },
    /// It raises an exception that is told by its address.
    Raises {
        /// The address.
        at: u64,
        /// The instruction.
        word: u32,
    },
    /// The instruction cannot be displaced.
    Displace(Box<RelocateError>),
    /// The functions of one call do not ascend.
    Order {
        /// The one before it.
        behind: u64,
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
    /// More stack would be in use while the function runs than the host sets aside for it.
    Waiting {
        /// Bytes that would be in use: the image's frame, and what a program takes that calls the function itself.
        needed: u32,
        /// Bytes that may be.
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
            Self::Claimed { by } => write!(f, "it is taken by {by}; take these off first"),
            Self::Replaced { by } => write!(
                f,
                "it is replaced already, by code at {by:#x}; end that replacement first"
            ),
            Self::NotAnInstruction { at } => write!(
                f,
                "{at:#x} is no instruction of it: offsets are multiples of 4 below its size; `show` lists what is there"
            ),
            Self::SecondWord { entry } => write!(
                f,
                "{:#x} is the second word of its site, which belongs to the first; probe the entry, or the instruction behind the site at {:#x}",
                entry.wrapping_add(4),
                entry.wrapping_add(Site::BYTES)
            ),
            Self::NotEntry { at } => write!(
                f,
                "{at:#x} is not its entry, where alone the return address is known; give the function without an offset"
            ),
            Self::Exclusive { load } => write!(
                f,
                "a load-exclusive at {load:#x} comes before it and its store-exclusive behind it, which would never succeed with a probe in \
                 between; probe an instruction before or behind the two"
            ),
            Self::BranchToEntry { from } => write!(
                f,
                "it branches to its own entry at {from:#x}, so that is no call alone, and it has no site; probe a later instruction, or its callers"
            ),
            Self::Literal { by } => write!(
                f,
                "the instruction at {by:#x} loads it: it is data; probe an instruction"
            ),
            Self::Raises { at, word } => write!(
                f,
                "`{}` at {at:#x} raises an exception, which is told by its address; probe an instruction before it",
                a64::display_word(*word, *at)
            ),
            Self::Displace(error) => error.fmt(f),
            Self::Order { behind } => write!(
                f,
                "it comes behind {behind:#x} in the list of functions, which has to ascend; sort the list, and name each once"
            ),
            Self::Arguments => f.write_str(
                "what its callers leave on the stack is not known, so a trampoline cannot call it: types are known of extern \"C\" \
                 functions that are exported (no_mangle); hook its entry by fentry, or its return by kretprobe, which need none",
            ),
            Self::Stack { needed, limit } => write!(
                f,
                "a hit would take {needed} bytes of stack and {limit} are set aside for one; make the program's frames smaller"
            ),
            Self::Waiting { needed, limit } => write!(
                f,
                "{needed} bytes of stack would be in use while the function runs, and {limit} are set aside for that; call the original \
                 with smaller frames on the stack, or hook the function by programs at its entry, or at its return by kretprobe, which \
                 leave nothing there"
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
    pub(crate) pool: Arc<Pool<P>>,
    sites: SiteTable,
    pub(crate) chains: Chains<P>,
    claims: BTreeMap<u64, &'static str>,
    /// Probes, by the address of the instruction.
    pub(crate) detours: BTreeMap<u64, Detour<P>>,
    /// Instructions in whose place someone's breakpoint is.
    pub(crate) breakpoints: BTreeMap<u64, u32>,
    functions: BTreeMap<AttachId, u64>,
    last: u64,
}

const NOP: u32 = Inst::NOP.encode();

impl<P: Platform> Engine<P> {
    /// An engine for these sites, in the platform's pool.
    pub fn new(platform: P, sites: SiteTable) -> Result<Self, PoolError> {
        Ok(Self {
            pool: Pool::new(platform)?,
            sites,
            chains: Chains::new(),
            claims: BTreeMap::new(),
            detours: BTreeMap::new(),
            breakpoints: BTreeMap::new(),
            functions: BTreeMap::new(),
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
        self.check_site(function)?;
        let chain = self.chains.own(function);
        if program.kind == Kind::Freplace
            && let Some(by) = chain.and_then(Chain::replaced_by)
        {
            return Err(Reason::Replaced { by });
        }
        let hook = chain.and_then(|c| c.hook.as_ref());
        let attached = hook.map(|h| h.programs.as_slice()).unwrap_or(&[]);
        let programs: Vec<_> = attached.iter().cloned().chain([program]).collect();
        self.swap(function, programs)
    }

    /// Whether a function can be hooked now.
    ///
    /// # Errors
    /// What is in the way.
    pub fn check(&self, function: u64) -> Result<(), Reason> {
        self.check_site(function)
    }

    /// A function can be hooked if it has a site, nobody else holds that, and its words are what the engine left there.
    pub(crate) fn check_site(&self, function: u64) -> Result<(), Reason> {
        self.check_at(function, self.sites.get(function))
    }

    /// As [`Self::check_site`], of functions that ascend: `near` is where the last one's site is.
    pub(crate) fn check_site_near(&self, near: &mut usize, function: u64) -> Result<(), Reason> {
        self.check_at(function, self.sites.get_near(near, function))
    }

    fn check_at(&self, function: u64, site: Option<Site>) -> Result<(), Reason> {
        match site {
            None => {
                let nearest = self.sites.at_or_below(function).map(|s| s.address);
                return Err(Reason::NotASite { nearest });
            }
            Some(Site { notrace: true, .. }) => return Err(Reason::Notrace),
            Some(_) => {}
        }
        if let Some(by) = self.claims.get(&function) {
            return Err(Reason::Claimed { by });
        }
        let chain = self.chains.get(function);
        let first = chain.map_or(Ok(NOP), |chain| chain.site_word())?;
        for (at, expected) in [(function, first), (function.wrapping_add(4), NOP)] {
            let found = self.platform().read(at);
            if found != Some(expected) {
                return Err(Reason::WordAtSite {
                    at,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Builds the image of `programs`, puts it into the function's chain, retires the one that was there.
    fn swap(&mut self, function: u64, programs: Vec<Program>) -> Result<(), Reason> {
        let chain = self.chains.make(function);
        let replaced =
            Image::new(&self.pool, function, chain.body(), &programs).and_then(|image| {
                let mut older = Vec::new();
                if let Some(hook) = &chain.hook {
                    older = hook.older.clone();
                    older.retain(|image| image.strong_count() > 0);
                    if hook.image.may_block {
                        older.push(Arc::downgrade(&hook.image));
                    }
                }
                let image = Arc::new(image);
                chain.set_hook(
                    self.pool.platform(),
                    Some(Hook {
                        image,
                        programs,
                        older,
                    }),
                )
            });
        let before = self.finish(function, replaced)?;
        if let Some(hook) = before {
            self.retire(hook.image);
        }
        Ok(())
    }

    /// After a change of a function's chain, whether it was made or not: forgets the chain if nothing is in it.
    fn finish<T>(&mut self, function: u64, outcome: Result<T, Reason>) -> Result<T, Reason> {
        self.chains.forget_empty(function);
        outcome
    }

    pub(crate) fn retire(&self, image: Arc<Image<P>>) {
        let grace = image.grace();
        self.platform().defer(Retired::new(image), grace);
    }

    /// Leads a function's site through a stub, behind those that it leads through already and before its image.
    ///
    /// The stub is published code of the caller's; he frees it a grace period after [`Self::remove_stub`].
    pub fn push_stub(&mut self, function: u64, stub: Stub) -> Result<(), AttachError> {
        let pushed = self.check_site(function).and_then(|()| {
            let chain = self.chains.make(function);
            let pushed = chain.push(self.pool.platform(), stub);
            self.finish(function, pushed)
        });
        pushed.map_err(|reason| AttachError { function, reason })
    }

    /// Takes a stub, known by its entry, out of a function's chain; false if it is not there.
    ///
    /// Tasks may still be in it, and may leave it by its link, until a grace period is over.
    pub fn remove_stub(&mut self, function: u64, entry: u64) -> Result<bool, AttachError> {
        if self.chains.get(function).is_none() {
            return Ok(false);
        }
        let chain = self.chains.make(function);
        let removed = chain.remove(self.pool.platform(), entry);
        self.finish(function, removed)
            .map_err(|reason| AttachError { function, reason })
    }

    /// Puts a stub into a function's chain, takes it out, or puts another in its place.
    pub(crate) fn swap_stub(
        &mut self,
        function: u64,
        old: Option<u64>,
        new: Option<Stub>,
    ) -> Result<(), Reason> {
        let chain = self.chains.make(function);
        let platform = self.pool.platform();
        let swapped = match (old, new) {
            (Some(old), Some(new)) => chain.swap(platform, old, new),
            (None, Some(new)) => chain.push(platform, new),
            (Some(old), None) => chain.remove(platform, old).map(|_| ()),
            (None, None) => Ok(()),
        };
        self.finish(function, swapped)
    }

    /// Who has claimed the function whose entry this is, or the instruction.
    pub(crate) fn claimed(&self, at: u64) -> Option<&'static str> {
        self.claims.get(&at).copied()
    }

    /// Claims an instruction that the caller has changed already.
    pub(crate) fn claim_word(&mut self, at: u64, by: &'static str) {
        self.claims.insert(at, by);
    }

    /// Makes `replacement` the function's body: what its callers and its hooks reach in its stead. `None`: its own again.
    ///
    /// # Errors
    /// Among others: it is replaced already. Tasks may be in the old body, or on their way there, until a grace period is over.
    pub fn replace(&mut self, function: u64, replacement: Option<u64>) -> Result<(), AttachError> {
        let before = match replacement {
            Some(_) => None,
            None => self.replacement(function),
        };
        self.redirect(function, before, replacement)
    }

    /// As [`Self::replace`], from one replacement to the other: at no time a call reaches anything but these two.
    ///
    /// # Errors
    /// Among others: it is not replaced by `from`, or by a program.
    pub fn redirect(
        &mut self,
        function: u64,
        from: Option<u64>,
        to: Option<u64>,
    ) -> Result<(), AttachError> {
        let replaced = self.check_site(function).and_then(|()| {
            let chain = self.chains.make(function);
            let other = chain.replaced_by().filter(|by| Some(*by) != from);
            let replaced = match other {
                Some(by) => Err(Reason::Replaced { by }),
                None => chain.set_replacement(self.pool.platform(), to),
            };
            self.finish(function, replaced)
        });
        replaced.map_err(|reason| AttachError { function, reason })
    }

    /// What a function is replaced by, unless it is a program.
    pub fn replacement(&self, function: u64) -> Option<u64> {
        self.chains.own(function)?.replacement
    }

    /// Keeps everybody else from hooking a function, whose site the caller changes by himself; `by` says who he is.
    ///
    /// # Errors
    /// It is hooked, or claimed.
    pub fn claim(&mut self, function: u64, by: &'static str) -> Result<(), AttachError> {
        let claimed = self
            .check_site(function)
            .and_then(|()| match self.chains.get(function) {
                Some(_) => Err(Reason::Claimed {
                    by: "hooks by trampoline",
                }),
                None => Ok(()),
            });
        claimed.map_err(|reason| AttachError { function, reason })?;
        self.claims.insert(function, by);
        Ok(())
    }

    /// Gives a claim up; the site's words are NOPs again.
    pub fn unclaim(&mut self, function: u64) {
        self.claims.remove(&function);
    }

    /// A number that no attachment of this engine has or will have, for hooks that the host keeps itself.
    pub fn new_id(&mut self) -> AttachId {
        self.last += 1;
        AttachId(self.last)
    }

    /// Every site that is not as linked, in no order, with the word that belongs there.
    pub fn changed_sites(&self) -> impl Iterator<Item = (u64, u32)> {
        let chains = self.chains.all();
        chains.filter_map(|(function, chain)| Some((function, chain.site_word().ok()?)))
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
        let Some(chain) = self.chains.own_mut(function) else {
            return Err(unknown);
        };
        let Some(hook) = &mut chain.hook else {
            return Err(unknown);
        };
        let others = hook.programs.iter().filter(|p| p.id != id);
        let rest: Vec<_> = others.cloned().collect();
        let images: Vec<_> = hook.images().collect();
        let stuck = |reason| DetachError::Stuck { function, reason };
        if rest.is_empty() {
            let taken = chain.set_hook(self.pool.platform(), None);
            if let Some(hook) = self.finish(function, taken).map_err(stuck)? {
                self.retire(hook.image);
            }
        } else {
            match self.swap(function, rest) {
                // Detaching must not need memory: the calls become branches where they are.
                Err(Reason::Pool(_)) => {
                    let hook = self.chains.own_mut(function);
                    if let Some(hook) = hook.and_then(|chain| chain.hook.as_mut()) {
                        hook.image.silence(id).map_err(stuck)?;
                        hook.programs.retain(|p| p.id != id);
                    }
                }
                other => other.map_err(stuck)?,
            }
        }
        self.functions.remove(&id);
        Chain::silence(images.into_iter(), id);
        Ok(())
    }

    /// Puts another program in the place of an attached one: its number, kind and order stay, and from one store on its function calls the
    /// other. Calls that have begun may still run the one before, entry and exit.
    ///
    /// # Errors
    /// It is not attached; or what [`Self::attach`] says of the other.
    pub fn exchange(&mut self, id: AttachId, callee: Callee) -> Result<(), DetachError> {
        let function = self.function_of(id).ok_or(DetachError::Unknown { id })?;
        let hook = self.chains.own(function).and_then(|c| c.hook.as_ref());
        let hook = hook.ok_or(DetachError::Unknown { id })?;
        let mut programs = hook.programs.clone();
        let place = programs.iter_mut().find(|program| program.id == id);
        place.ok_or(DetachError::Unknown { id })?.callee = callee;
        self.swap(function, programs)
            .map_err(|reason| DetachError::Stuck { function, reason })
    }

    /// What a function's site leads to; `None` if it has no site.
    pub fn state(&self, function: u64) -> Option<SiteState> {
        self.sites.get(function)?;
        let head = self.chains.get(function).and_then(|chain| chain.head());
        Some(head.map_or(SiteState::Nops, SiteState::Branch))
    }

    /// Everything that is attached, function by function, in attach order.
    pub fn attached(&self) -> impl Iterator<Item = Attached<'_>> {
        let functions = self.chains.functions_of_own();
        functions.flat_map(|function| self.attached_to(function))
    }

    /// What is attached to one function, in attach order.
    pub fn attached_to(&self, function: u64) -> impl Iterator<Item = Attached<'_>> {
        let hook = self.chains.own(function).and_then(|c| c.hook.as_ref());
        hook.into_iter().flat_map(move |hook| {
            hook.programs.iter().map(move |p| Attached {
                id: p.id,
                function,
                kind: p.kind,
                callee: &p.callee,
                image_bytes: hook.image.code.bytes(),
                stack_bytes: hook.image.stack_bytes,
            })
        })
    }

    /// The functions that have an image of their own, once for each program that is attached, in attach order.
    pub fn with_images(&self) -> impl Iterator<Item = u64> + '_ {
        self.functions.values().copied()
    }

    /// The function that a program is attached to.
    pub fn function_of(&self, id: AttachId) -> Option<u64> {
        self.functions.get(&id).copied()
    }

    /// The live code of a function's site, of what many functions share with it, and of its image; nothing if it has no site.
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
        let multis = self.chains.bodies(function).into_iter();
        let multis = multis.flat_map(move |(multi, by)| {
            multi
                .instructions(function, by)
                .filter_map(|(address, ingredient, note)| {
                    Some(Line {
                        address,
                        word: self.platform().read(address)?,
                        ingredient,
                        note,
                    })
                })
        });
        let hook = self.chains.own(function).and_then(|c| c.hook.as_ref());
        let image = hook
            .into_iter()
            .flat_map(|hook| hook.image.lines(self.platform()));
        site.chain(multis).chain(image)
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
