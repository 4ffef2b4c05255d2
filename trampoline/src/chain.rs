// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hooked function's site leads to, link by link.
//!
//! ```text
//!   site -> stub -> stub -> image -> body
//! ```
//!
//! A *stub* is someone else's code in the pool that does its own work and goes on by one `b`, its link: many functions' hooks
//! share what it calls (multi-attach, probes at an entry). The *image* calls the programs that are attached to this function. The
//! *body* is what is left of the function behind its site, or what replaces it. Each link is one word, B, BL or NOP, so whatever is
//! put in or taken out is one store ([`crate::patch`]), and whoever is on his way sees the one chain or the other.

use crate::attach::{AttachId, Program, Reason};
use crate::image::Image;
use crate::patch::patch;
use crate::platform::{Patch, Platform};
use crate::program::Kind;
use crate::site::Site;
use a64::imm::Imm26;
use a64::{AsmError, Inst};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use smallvec::SmallVec;

/// Code in the pool that a site leads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    /// Address of its first instruction. It finds everything as the function's caller left it, but x9-x17 and NZCV.
    pub entry: u64,
    /// Address of its link: a B (or BRK, until it is in a chain) that the engine sets to what comes next. All registers that may
    /// carry arguments, x29, x30 and the stack are there as at `entry`.
    pub link: u64,
}

/// The image of a function and its programs, in attach order.
pub(crate) struct Hook<P: Platform> {
    pub(crate) image: Arc<Image<P>>,
    pub(crate) programs: Vec<Program>,
    /// Images that were in its place before and that tasks may still return into.
    pub(crate) older: Vec<Weak<Image<P>>>,
}

impl<P: Platform> Hook<P> {
    /// Older images that are still alive, and then the present one.
    pub(crate) fn images(&self) -> impl Iterator<Item = Arc<Image<P>>> {
        let older = self.older.iter().filter_map(Weak::upgrade);
        older.chain([self.image.clone()])
    }
}

/// The last link in front of a function's image or body.
#[derive(Clone, Copy)]
pub(crate) struct End {
    /// Its address.
    pub(crate) at: u64,
    /// What is there.
    pub(crate) word: u32,
    /// Where it leads.
    pub(crate) next: u64,
}

/// A function's chain.
pub(crate) struct Chain<P: Platform> {
    function: u64,
    pub(crate) stubs: SmallVec<[Stub; 1]>,
    /// Boxed: of a thousand functions with a stub hardly one has an image.
    pub(crate) hook: Option<Box<Hook<P>>>,
    /// What replaces the function.
    pub(crate) replacement: Option<u64>,
}

const NOP: u32 = Inst::NOP.encode();

impl<P: Platform> Chain<P> {
    pub(crate) fn new(function: u64) -> Self {
        Self {
            function,
            stubs: SmallVec::new(),
            hook: None,
            replacement: None,
        }
    }

    /// Whether the function is as if it had never been hooked.
    pub(crate) fn is_empty(&self) -> bool {
        self.stubs.is_empty() && self.hook.is_none() && self.replacement.is_none()
    }

    /// Where the function goes on behind its site.
    pub(crate) fn body(&self) -> u64 {
        self.replacement
            .unwrap_or(self.function.wrapping_add(Site::BYTES))
    }

    /// What replaces the function: other code, or a program that its image calls.
    pub(crate) fn replaced_by(&self) -> Option<u64> {
        let programs = self.hook.iter().flat_map(|hook| &hook.programs);
        let mut programs = programs.filter(|program| program.kind == Kind::Freplace);
        let program = programs.next().map(|program| program.callee.address);
        self.replacement.or(program)
    }

    /// What the last stub leads to; `None`: the function itself.
    fn behind_stubs(&self) -> Option<u64> {
        let image = self.hook.as_ref().map(|hook| hook.image.code.address());
        image.or(self.replacement)
    }

    /// What the site leads to; `None`: the function itself.
    pub(crate) fn head(&self) -> Option<u64> {
        let stub = self.stubs.first().map(|stub| stub.entry);
        stub.or(self.behind_stubs())
    }

    /// The word that leads from `link` to `to`.
    fn word(&self, link: u64, to: Option<u64>) -> Result<u32, Reason> {
        match to {
            None if link == self.function => Ok(NOP),
            to => branch(
                link,
                to.unwrap_or(self.function.wrapping_add(Site::BYTES)),
                false,
            ),
        }
    }

    /// The word that belongs at the site.
    pub(crate) fn site_word(&self) -> Result<u32, Reason> {
        self.word(self.function, self.head())
    }

    fn relink(
        &self,
        platform: &P,
        link: u64,
        old: Option<u64>,
        new: Option<u64>,
    ) -> Result<(), Reason> {
        let (old, new) = (self.word(link, old)?, self.word(link, new)?);
        if old == new {
            return Ok(());
        }
        patch(platform, link, old, new).map_err(Reason::Platform)
    }

    /// Where a stub is put behind those that are there.
    pub(crate) fn end(&self) -> Result<End, Reason> {
        let (at, next) = (self.last_link(), self.behind_stubs());
        Ok(End {
            at,
            word: self.word(at, next)?,
            next: next.unwrap_or(self.function.wrapping_add(Site::BYTES)),
        })
    }

    /// How a stub is taken out: its place, and the patch that leads past it; `None` if it is not there.
    pub(crate) fn removal(&self, entry: u64) -> Result<Option<(usize, Patch)>, Reason> {
        let Some(index) = self.stubs.iter().position(|stub| stub.entry == entry) else {
            return Ok(None);
        };
        let before = index.checked_sub(1).and_then(|i| self.stubs.get(i));
        let at = before.map_or(self.function, |stub| stub.link);
        let next = self.stubs.get(index + 1).map(|stub| stub.entry);
        let patch = Patch {
            at,
            old: self.word(at, Some(entry))?,
            new: self.word(at, next.or(self.behind_stubs()))?,
        };
        Ok(Some((index, patch)))
    }

    /// The link in front of the image or the body.
    fn last_link(&self) -> u64 {
        self.stubs.last().map_or(self.function, |stub| stub.link)
    }

    /// Sets the link of a stub that is in no chain yet: its maker need not know what it leads to.
    fn prepare(&self, platform: &P, stub: Stub, next: Option<u64>) -> Result<(), Reason> {
        let (found, word) = (platform.read(stub.link), self.word(stub.link, next)?);
        let found = found.ok_or(Reason::WordAtSite {
            at: stub.link,
            expected: word,
            found,
        })?;
        if found != word {
            patch(platform, stub.link, found, word).map_err(Reason::Platform)?;
        }
        Ok(())
    }

    /// Puts a stub behind those that are there.
    pub(crate) fn push(&mut self, platform: &P, stub: Stub) -> Result<(), Reason> {
        let next = self.behind_stubs();
        self.prepare(platform, stub, next)?;
        self.relink(platform, self.last_link(), next, Some(stub.entry))?;
        self.stubs.push(stub);
        Ok(())
    }

    /// Puts another stub in the place of one that is there: whoever is on his way passes the one or the other.
    pub(crate) fn swap(&mut self, platform: &P, old: u64, new: Stub) -> Result<(), Reason> {
        let Some(index) = self.stubs.iter().position(|stub| stub.entry == old) else {
            return self.push(platform, new);
        };
        let next = self.stubs.get(index + 1).map(|stub| stub.entry);
        self.prepare(platform, new, next.or(self.behind_stubs()))?;
        let before = index.checked_sub(1).and_then(|i| self.stubs.get(i));
        let link = before.map_or(self.function, |stub| stub.link);
        self.relink(platform, link, Some(old), Some(new.entry))?;
        if let Some(slot) = self.stubs.get_mut(index) {
            *slot = new;
        }
        Ok(())
    }

    /// Takes a stub out; false if it is not there.
    pub(crate) fn remove(&mut self, platform: &P, entry: u64) -> Result<bool, Reason> {
        let Some((index, past)) = self.removal(entry)? else {
            return Ok(false);
        };
        patch(platform, past.at, past.old, past.new).map_err(Reason::Platform)?;
        self.stubs.remove(index);
        Ok(true)
    }

    /// Leads to the image of `hook`, or to none; returns what was in its place.
    pub(crate) fn set_hook(
        &mut self,
        platform: &P,
        hook: Option<Hook<P>>,
    ) -> Result<Option<Hook<P>>, Reason> {
        let new = hook.as_ref().map(|hook| hook.image.code.address());
        let (link, old) = (self.last_link(), self.behind_stubs());
        self.relink(platform, link, old, new.or(self.replacement))?;
        let old = core::mem::replace(&mut self.hook, hook.map(Box::new));
        Ok(old.map(|hook| *hook))
    }

    /// Makes `replacement` the body, or the function itself.
    ///
    /// Older images that tasks may still go on in lead there as well when this returns; on an error some may and some may not,
    /// and the body is what it was.
    pub(crate) fn set_replacement(
        &mut self,
        platform: &P,
        replacement: Option<u64>,
    ) -> Result<(), Reason> {
        let old = self.body();
        let new = replacement.unwrap_or(self.function.wrapping_add(Site::BYTES));
        match &self.hook {
            Some(hook) => {
                for image in hook.images() {
                    let (at, link) = image.onward;
                    let (old, new) = (branch(at, old, link)?, branch(at, new, link)?);
                    if old != new {
                        patch(platform, at, old, new).map_err(Reason::Platform)?;
                    }
                }
            }
            None => self.relink(platform, self.last_link(), self.replacement, replacement)?,
        }
        self.replacement = replacement;
        Ok(())
    }

    /// Takes a program's calls out of the images that tasks may still return into.
    pub(crate) fn silence(images: impl Iterator<Item = Arc<Image<P>>>, id: AttachId) {
        for image in images.filter(|image| image.may_block) {
            // The program is off its site; a call in an image that cannot be changed is one more of those that had begun.
            let _ = image.silence(id);
        }
    }
}

/// The word at `pc` that leads to `target`, by BL if it is a call.
pub(crate) fn branch(pc: u64, target: u64, link: bool) -> Result<u32, Reason> {
    Imm26::new(target.wrapping_sub(pc) as i64)
        .map(|offset| Inst::Branch { link, offset }.encode())
        .map_err(|error| Reason::Code(AsmError::OutOfReach { pc, target, error }))
}
