// SPDX-License-Identifier: MIT OR Apache-2.0
//! The engine: attach and detach, several programs on one function, code that is freed later.
//!
//! **Publishing.** The image is written and made visible; every core has a context synchronisation event; only then the site
//! branches to it (Arm ARM B2.4.4: without the event a core could execute stale instructions prefetched from there). The
//! site's word changes by one store between words that may change while executed (B2.2.5); a second event follows, so
//! that when attach returns every core that calls the function is hit, and when detach returns none is.
//!
//! **Freeing.** A task may have been preempted inside the image, or be in a program that returns into it. Detach hands out a
//! [`Retired`]; the host gives it to [`Engine::reclaim`] when each task has been elsewhere (tasks RCU), and nobody waits.
//! What the image's programs need is kept by it, and returned by `reclaim` to be dropped outside of the host's lock.

use crate::body::{self, Callee};
use crate::ingredient::{CallerIn, Ingredient};
use crate::platform::{Platform, SiteKind};
use crate::pool::{Pool, PoolFull, Span};
use crate::site;
use a64::AsmError;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

/// What free executable memory is filled with: BRK #0xdead.
pub const FREE: u32 = 0xd420_0000 | 0xdead << 5;

/// Names an attachment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct AttachId(pub u32);

impl fmt::Display for AttachId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Why something was not attached or detached. The site is as it was.
#[derive(Debug)]
pub enum AttachError<E> {
    /// There is no site at that address.
    NoSite(u64),
    /// The function is on a hook's own path.
    Notrace(u64),
    /// The site holds a word that this engine did not put there.
    Foreign {
        /// The function.
        function: u64,
        /// The word at its entry, if it can be read.
        found: Option<u32>,
    },
    /// No executable memory is left.
    Full(PoolFull),
    /// The trampoline cannot be generated: something is out of reach.
    Code(AsmError),
    /// Code does not fit into what was set aside for it.
    TooLong {
        /// Words it has.
        words: usize,
        /// Words set aside.
        room: usize,
    },
    /// The host could not write code.
    Platform(E),
    /// There is no such attachment (any more).
    NoSuchId(AttachId),
}

impl<E: fmt::Display> fmt::Display for AttachError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::NoSite(at) => write!(f, "there is no site at {at:#x}: it is not the entry of a function with one"),
            AttachError::Notrace(at) => {
                write!(f, "the function at {at:#x} is on a hook's own path (notrace): a hook on it would recurse")
            }
            AttachError::Foreign { function, found: Some(word) } => write!(
                f,
                "the entry at {function:#x} holds {word:#010x}, which this engine did not put there; undo that first"
            ),
            AttachError::Foreign { function, found: None } => write!(f, "the entry at {function:#x} cannot be read"),
            AttachError::Full(e) => write!(f, "{e}"),
            AttachError::Code(e) => write!(f, "the trampoline: {e}"),
            AttachError::TooLong { words, room } => write!(f, "the code has {words} words, {room} were set aside"),
            AttachError::Platform(e) => write!(f, "code was not written: {e}"),
            AttachError::NoSuchId(id) => write!(f, "there is no hook {id} (any more)"),
        }
    }
}

/// A trampoline in executable memory.
struct Image {
    span: Span,
    map: Vec<Ingredient>,
}

/// A hooked function.
struct Hooked {
    image: Image,
    /// The word at the site: a branch to the image.
    word: u32,
    programs: Vec<(AttachId, Callee)>,
}

/// Executable memory that is no longer reached from a site, and what it may still need. The host gives it to
/// [`Engine::reclaim`] after a tasks-RCU grace period; dropping it loses the memory.
#[must_use = "give it to Engine::reclaim after a grace period"]
pub struct Retired {
    span: Span,
    keep: Vec<Callee>,
}

impl Retired {
    /// Where the code is.
    pub fn start(&self) -> u64 {
        self.span.start()
    }
}

/// Executable memory with code that a callee was compiled to. The host gives it to [`Engine::free_code`] when nothing can
/// call it any more; dropping it loses the memory.
#[derive(Debug)]
#[must_use = "give it to Engine::free_code"]
pub struct Code {
    span: Span,
    words: usize,
}

impl Code {
    /// Address of the first instruction.
    pub fn address(&self) -> u64 {
        self.span.start()
    }

    /// Instructions.
    pub fn words(&self) -> usize {
        self.words
    }
}

/// A line of `show`: a word of code and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct CodeLine {
    /// Address.
    pub at: u64,
    /// The word there now.
    pub word: u32,
    /// What it is for.
    pub ingredient: Ingredient,
}

/// An attachment, for a list.
pub struct Info<'a> {
    /// Its name.
    pub id: AttachId,
    /// The hooked function.
    pub function: u64,
    /// The program.
    pub callee: &'a Callee,
    /// Bytes of the function's image, which all its programs share.
    pub bytes: u64,
}

/// What an address in the pool belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The trampoline of this function.
    Trampoline {
        /// The function.
        function: u64,
        /// Where the caller's return address is at that instruction.
        caller: CallerIn,
    },
    /// A callee's code.
    Code,
    /// Code that was taken off and waits for its grace period, or nothing.
    Unknown,
}

/// All hooks of a host. Methods that change something take `&mut self`: the host puts it behind a lock that may block.
pub struct Engine<P: Platform> {
    platform: P,
    pool: Pool,
    hooked: BTreeMap<u64, Hooked>,
    /// Start and end of placed code.
    code: BTreeMap<u64, u64>,
    next_id: u32,
}

impl<P: Platform> Engine<P> {
    /// An engine without hooks; fills the pool with BRK, so that a stray branch into it is caught.
    ///
    /// # Errors
    /// The pool could not be written.
    pub fn new(platform: P) -> Result<Engine<P>, P::Error> {
        let range = platform.pool();
        let pool = Pool::new(range.clone());
        fill(&platform, range.start, range.end - range.start)?;
        Ok(Engine { platform, pool, hooked: BTreeMap::new(), code: BTreeMap::new(), next_id: 1 })
    }

    /// Hooks `callee` onto the entry of `function`, behind those that are there. Where there are some, their image is
    /// replaced by one with all of them, and the old one is handed out.
    ///
    /// # Errors
    /// See [`AttachError`]; the site is as it was.
    pub fn attach(&mut self, function: u64, callee: Callee) -> Result<(AttachId, Option<Retired>), AttachError<P::Error>> {
        match self.platform.site(function) {
            SiteKind::Site => {}
            SiteKind::Notrace => return Err(AttachError::Notrace(function)),
            SiteKind::None => return Err(AttachError::NoSite(function)),
        }
        let id = AttachId(self.next_id);
        let mut programs = self.hooked.get(&function).map_or(Vec::new(), |h| h.programs.clone());
        programs.push((id, callee));
        let retired = self.install(function, programs)?;
        self.next_id += 1;
        Ok((id, retired))
    }

    /// Takes an attachment off. Nothing waits: what is to be freed later is handed out.
    ///
    /// # Errors
    /// See [`AttachError`]; the hook is still there.
    pub fn detach(&mut self, id: AttachId) -> Result<Option<Retired>, AttachError<P::Error>> {
        let found = self.hooked.iter().find(|(_, h)| h.programs.iter().any(|(i, _)| *i == id));
        let Some((&function, hooked)) = found else {
            return Err(AttachError::NoSuchId(id));
        };
        let programs = hooked.programs.iter().filter(|(i, _)| *i != id).cloned().collect();
        self.install(function, programs)
    }

    /// Makes `programs` the ones that are hooked onto `function`, by one store to its site.
    fn install(
        &mut self,
        function: u64,
        programs: Vec<(AttachId, Callee)>,
    ) -> Result<Option<Retired>, AttachError<P::Error>> {
        let old_word = self.hooked.get(&function).map_or(site::NOP, |h| h.word);
        let found = self.platform.read(function);
        if found != Some(old_word) {
            return Err(AttachError::Foreign { function, found });
        }
        let new = if programs.is_empty() { None } else { Some(self.generate(function, &programs)?) };
        let new_word = new.as_ref().map_or(site::NOP, |(_, word)| *word);
        debug_assert!(site::may_change_while_executed(old_word) && site::may_change_while_executed(new_word));
        if let Err(e) = self.platform.patch(function, old_word, new_word) {
            if let Some((image, _)) = new {
                self.release(image.span)?;
            }
            return Err(AttachError::Platform(e));
        }
        self.platform.sync_cores();
        let old = match new {
            Some((image, word)) => self.hooked.insert(function, Hooked { image, word, programs }),
            None => self.hooked.remove(&function),
        };
        Ok(old.map(|h| Retired { span: h.image.span, keep: h.programs.into_iter().map(|(_, c)| c).collect() }))
    }

    /// Writes an image for `programs` and makes it visible to every core: the image and the site's branch to it.
    fn generate(
        &mut self,
        function: u64,
        programs: &[(AttachId, Callee)],
    ) -> Result<(Image, u32), AttachError<P::Error>> {
        let callees: Vec<Callee> = programs.iter().map(|(_, c)| c.clone()).collect();
        let base = self.platform.pool().start;
        let size = body::entry(function, &callees, base).map_err(AttachError::Code)?.words.len();
        let span = self.pool.allocate(size as u64 * 4).map_err(AttachError::Full)?;
        let built = body::entry(function, &callees, span.start()).map_err(AttachError::Code).and_then(|body| {
            let word = site::branch(function, span.start()).ok_or(AttachError::NoSite(function))?;
            self.platform.write_code(span.start(), &body.words).map_err(AttachError::Platform)?;
            Ok((body.map, word))
        });
        match built {
            Ok((map, word)) => {
                self.platform.sync_cores();
                Ok((Image { span, map }, word))
            }
            Err(e) => {
                self.release(span)?;
                Err(e)
            }
        }
    }

    /// Fills a range with BRK and gives it back to the pool.
    fn release(&mut self, span: Span) -> Result<(), AttachError<P::Error>> {
        let filled = fill(&self.platform, span.start(), span.bytes());
        self.pool.free(span);
        filled.map_err(AttachError::Platform)
    }

    /// Frees what was taken off. To be called when no task can be in it any more; the callees that come back may be dropped.
    ///
    /// # Errors
    /// The memory could not be filled with BRK; it is free all the same.
    pub fn reclaim(&mut self, retired: Retired) -> Result<Vec<Callee>, AttachError<P::Error>> {
        self.release(retired.span)?;
        Ok(retired.keep)
    }

    /// Places a callee's code: `compile` gets the address it will run at and returns the words, at most `room` of them.
    ///
    /// # Errors
    /// No room in the pool, more words than were set aside, or what `compile` says through `From`.
    pub fn place<X: From<AttachError<P::Error>>>(
        &mut self,
        room: usize,
        compile: impl FnOnce(u64) -> Result<Vec<u32>, X>,
    ) -> Result<Code, X> {
        let span = self.pool.allocate(room as u64 * 4).map_err(|e| X::from(AttachError::Full(e)))?;
        let written = compile(span.start()).and_then(|words| {
            if words.len() > room {
                return Err(AttachError::TooLong { words: words.len(), room }.into());
            }
            self.platform.write_code(span.start(), &words).map_err(|e| X::from(AttachError::Platform(e)))?;
            Ok(words.len())
        });
        match written {
            Ok(words) => {
                self.platform.sync_cores();
                self.code.insert(span.start(), span.start() + span.bytes());
                Ok(Code { span, words })
            }
            Err(e) => {
                self.release(span)?;
                Err(e)
            }
        }
    }

    /// Frees placed code that nothing can call any more.
    ///
    /// # Errors
    /// As [`Engine::reclaim`].
    pub fn free_code(&mut self, code: Code) -> Result<(), AttachError<P::Error>> {
        self.code.remove(&code.span.start());
        self.release(code.span)
    }

    /// Bytes of the pool that are free.
    pub fn available(&self) -> u64 {
        self.pool.available()
    }

    /// All attachments, by function and in the order they are called.
    pub fn list(&self) -> impl Iterator<Item = Info<'_>> {
        self.hooked.iter().flat_map(|(&function, h)| {
            h.programs.iter().map(move |(id, callee)| Info { id: *id, function, callee, bytes: h.image.span.bytes() })
        })
    }

    /// The live code of a function's site and of its trampoline.
    pub fn describe(&self, function: u64) -> Vec<CodeLine> {
        let line = |at, ingredient| self.platform.read(at).map(|word| CodeLine { at, word, ingredient });
        let mut lines: Vec<_> = (0..4).filter_map(|i| line(function - 8 + 4 * i, Ingredient::Site)).collect();
        if let Some(h) = self.hooked.get(&function) {
            let start = h.image.span.start();
            lines.extend((0..).zip(&h.image.map).filter_map(|(i, &what)| line(start + 4 * i, what)));
        }
        lines
    }

    /// What an address in the pool belongs to.
    pub fn owner(&self, pc: u64) -> Owner {
        for (&function, h) in &self.hooked {
            if h.image.span.contains(pc) {
                let index = (pc - h.image.span.start()) as usize / 4;
                return Owner::Trampoline { function, caller: body::caller_at(&h.image.map, index) };
            }
        }
        match self.code.range(..=pc).next_back() {
            Some((_, &end)) if pc < end => Owner::Code,
            _ => Owner::Unknown,
        }
    }
}

/// Fills executable memory with [`FREE`].
fn fill<P: Platform>(platform: &P, start: u64, bytes: u64) -> Result<(), P::Error> {
    const PIECE: usize = 1024;
    let words = [FREE; PIECE];
    let mut at = start;
    let mut left = (bytes / 4) as usize;
    while left > 0 {
        let now = left.min(PIECE);
        platform.write_code(at, &words[..now])?;
        at += now as u64 * 4;
        left -= now;
    }
    Ok(())
}
