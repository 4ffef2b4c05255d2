// SPDX-License-Identifier: MIT OR Apache-2.0
//! One program on many functions: a block of stubs with one body, put on and taken off in one go.
//!
//! **Publishing** differs from a trampoline's ([`crate::attach`]) in that it is done once for all: the block is written, every core
//! synchronised; then all functions' links are patched, and every core synchronised again. All of them or none.

use crate::attach::{AttachError, AttachId, DetachError, Engine, Reason};
use crate::body::Storage;
use crate::chain::{Chain, End, Stub, branch};
use crate::ingredient::{Ingredient, Span};
use crate::pair::By;
use crate::patch::{patch, patch_all};
use crate::platform::{Grace, Patch, Platform, Retired};
use crate::pool::{Code, Label, Owner, Pool, UNIT};
use crate::program::{Callee, Kind};
use crate::registers::Words;
use crate::runtime::Runtime;
use crate::shared::{DATA, LINK, STUB_WORDS, Shared};
use a64::imm::Imm21;
use a64::reg::X12;
use a64::{Assembler, Inst};
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;

/// Bytes of the pool that each function takes; the body and a header come once.
pub const BYTES_PER_FUNCTION: usize = 4 * STUB_WORDS;
const _: () = assert!(BYTES_PER_FUNCTION <= 64 && BYTES_PER_FUNCTION.is_multiple_of(UNIT as usize));

/// One of the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub function: u64,
    /// What lies behind that address where the program's second argument points to, for this function.
    pub data: [u64; 3],
}

/// What is attached to them.
#[derive(Clone)]
pub struct Program {
    /// Whether it runs when a function returns, else at its entry.
    pub exit: bool,
    /// The program. Its second argument, if it looks at that (`data` is not `None`), is the address of the function's
    /// address and data; of `data` nothing else counts. It may not sleep.
    pub callee: Callee,
    /// The words that it may read of its context, which is [`crate::registers`]'.
    pub reads: Words,
}

/// A program on many functions.
pub struct Multi<P: Platform> {
    pub(crate) block: Arc<Block<P>>,
    /// The body of this program and the next one, also one that is not freed yet (pair.rs).
    pub(crate) follower: Weak<Block<P>>,
    /// Ascending. All that is kept of each, besides its stub.
    functions: Arc<[u64]>,
    /// It is on all of them; else each has a chain of its own that knows.
    whole: bool,
}

/// Its code, and what that keeps alive.
pub(crate) struct Block<P: Platform> {
    code: Code<P>,
    pub(crate) programs: Vec<(Kind, Callee)>,
    pub(crate) reads: Words,
    pub(crate) exit: bool,
    spans: Vec<Span>,
    /// Address of each call of the program, and of the instruction to go on at without it.
    calls: Vec<(u64, u64)>,
    /// Index of the first stub's first word.
    stubs: usize,
    stack_bytes: u32,
}

impl<P: Platform> Multi<P> {
    /// The functions, by ascending address.
    pub fn functions(&self) -> &Arc<[u64]> {
        &self.functions
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    pub(crate) fn break_up(&mut self) {
        self.whole = false;
    }

    /// Bytes of the pool that it takes, with the body and the header.
    pub fn bytes(&self) -> u64 {
        self.block.code.bytes()
    }

    /// The deepest stack of a hit: the body and the program, in bytes.
    pub fn stack_bytes(&self) -> u32 {
        self.block.stack_bytes
    }

    /// The stub of a function.
    pub fn stub(&self, function: u64) -> Option<Stub> {
        let index = self.functions.binary_search(&function).ok()?;
        Some(self.block.stub(index))
    }

    /// The instructions of a function's stub, then of the body that it goes by: addresses, what they are for, and for which program.
    pub(crate) fn instructions<'a>(
        &'a self,
        function: u64,
        by: By<'a, P>,
    ) -> impl Iterator<Item = (u64, Ingredient, &'a str)> {
        let (body, unused) = match by {
            By::Own => (Some(&*self.block), 0),
            By::Both(block) => (Some(block), 0),
            By::Before => (None, LINK),
        };
        let stub = self.stub(function).into_iter();
        let stub = stub.flat_map(move |stub| {
            let parts = [Ingredient::Enter, Ingredient::Enter, Ingredient::Return];
            let words = (stub.entry..).step_by(4).zip(parts).skip(unused);
            words.map(|(at, part)| (at, part, self.block.name(None)))
        });
        let body = body.into_iter().flat_map(|block| {
            let spans = block.spans.iter();
            let words = spans.flat_map(|span| core::iter::repeat_n(span, span.len));
            let words = (block.start()..).step_by(4).zip(words);
            words.map(|(at, span)| (at, span.ingredient, block.name(span.program)))
        });
        stub.chain(body)
    }
}

fn stub_at(start: u64, stubs: usize, index: usize) -> Stub {
    let entry = start + 4 * (stubs + index * STUB_WORDS) as u64;
    Stub {
        entry,
        link: entry + 4 * LINK as u64,
    }
}

impl<P: Platform> Block<P> {
    /// Where its body begins.
    pub(crate) fn start(&self) -> u64 {
        self.code.address()
    }

    /// The name of one of its programs, the first if it is nobody's.
    fn name(&self, program: Option<usize>) -> &str {
        let program = self.programs.get(program.unwrap_or(0));
        program.map_or("", |(_, callee)| &callee.name)
    }

    fn stub(&self, index: usize) -> Stub {
        stub_at(self.code.address(), self.stubs, index)
    }

    /// Takes the calls of the program out, for those that return an hour later: each BL becomes a B or NOP (patch.rs).
    fn silence(&self) {
        let platform = self.code.pool().platform();
        for &(at, resume) in &self.calls {
            let over = match resume.wrapping_sub(at) {
                4 => Ok(Inst::NOP.encode()),
                _ => branch(at, resume, false),
            };
            let word = platform.read(at).filter(|word| a64::is_call(*word));
            if let (Some(word), Ok(over)) = (word, over) {
                // The program is off all its functions; a call that cannot be changed is one more of those that had begun.
                let _ = patch(platform, at, word, over);
            }
        }
    }

    /// What has to be over before it may be freed.
    fn grace(&self) -> Grace {
        let start = self.code.address();
        match self.exit {
            true => Grace::Unreferenced(start..start + 4 * self.code.words() as u64),
            false => Grace::Tasks,
        }
    }
}

/// A function, and where its new stub is linked in.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    target: Target,
    link: End,
}

/// A block to be written.
pub(crate) struct Plan<'a> {
    pub(crate) shared: Shared<'a>,
    pub(crate) places: &'a [Place],
}

impl Plan<'_> {
    pub(crate) fn build<P: Platform>(&self, pool: &Arc<Pool<P>>) -> Result<Block<P>, Reason> {
        let programs = self.shared.programs;
        let mut storage = Storage::new(programs.len());
        let mut asm = storage.lend(Assembler::sizing(pool.window().start));
        self.shared.emit(&mut asm);
        // A constant takes at most three words more where it is far; and the literal is aligned.
        let constants = 2 * programs.len();
        let body = (asm.finish().map_err(Reason::Code)? + constants * 3 + 1).next_multiple_of(4);
        let stubs = self.places.len() * STUB_WORDS;
        let name = programs.first().map_or("", |(_, callee)| &callee.name);
        let reserved = pool.reserve(body + stubs, name).map_err(Reason::Pool)?;
        let start = reserved.address();
        let mut words = vec![0; body];
        let mut asm = storage.lend(Assembler::new(&mut words, start));
        let built = self.shared.emit(&mut asm);
        let len = asm.finish().map_err(Reason::Code)?;
        words.truncate(len);
        words.resize(body, crate::pool::FILL);
        let (needed, limit) = (built.stack_bytes, pool.platform().stack_limit());
        if needed > limit {
            return Err(Reason::Stack { needed, limit });
        }
        words.reserve_exact(stubs);
        for (index, place) in self.places.iter().enumerate() {
            words.extend_from_slice(&stub(start, stub_at(start, body, index), place)?);
        }
        let label = Label {
            owner: Owner::Functions { stubs: body as u32 },
            record: Some(built.record),
        };
        let code = reserved.publish(label, &words).map_err(Reason::Platform)?;
        let at = |index: usize| start + 4 * index as u64;
        Ok(Block {
            code,
            programs: programs.to_vec(),
            reads: self.shared.reads,
            exit: self.shared.exit,
            spans: built.spans,
            calls: built
                .calls
                .iter()
                .map(|c| (at(c.at), at(c.resume)))
                .collect(),
            stubs: body,
            stack_bytes: built.stack_bytes,
        })
    }
}

/// A stub's words, as shared.rs shows them.
fn stub(body: u64, at: Stub, place: &Place) -> Result<[u32; STUB_WORDS], Reason> {
    let target = place.target;
    let offset = Imm21::new((at.link - at.entry) as i64);
    let offset = offset.map_err(|error| {
        let pc = at.entry;
        Reason::Code(a64::AsmError::Immediate { pc, error })
    })?;
    let rd = X12.into();
    let mut words = [crate::pool::FILL; STUB_WORDS];
    let code = [
        Inst::Adr { rd, offset }.encode(),
        branch(at.entry + 4, body, false)?,
        branch(at.link, place.link.next, false)?,
    ];
    let data = core::iter::once(target.function).chain(target.data);
    let halves = data.flat_map(|word| [word as u32, (word >> 32) as u32]);
    words.iter_mut().zip(code).for_each(|(to, from)| *to = from);
    let to = words.iter_mut().skip(DATA);
    to.zip(halves).for_each(|(to, from)| *to = from);
    Ok(words)
}

impl<P: Platform> Engine<P> {
    /// Calls a program whenever one of the functions is called, or returns: behind the stubs that they have already, in front of their
    /// trampolines. `targets` ascend by address. A function that cannot be hooked is left out if `skip` says so of the reason.
    ///
    /// `None`: all were left out.
    ///
    /// # Errors
    /// All functions are as they were; the error names the first that was in the way.
    pub fn attach_multi(
        &mut self,
        targets: &[Target],
        program: Program,
        mut skip: impl FnMut(&Reason) -> bool,
    ) -> Result<Option<AttachId>, AttachError> {
        let mut places = Vec::with_capacity(targets.len());
        let (mut last, mut near) = (None, 0);
        for &target in targets {
            let function = target.function;
            let refused = |reason| AttachError { function, reason };
            if let Some(behind) = last.filter(|behind| *behind >= function) {
                return Err(refused(Reason::Order { behind }));
            }
            last = Some(function);
            match self.check_site_near(&mut near, function) {
                Ok(()) => {}
                Err(reason) if skip(&reason) => continue,
                Err(reason) => return Err(refused(reason)),
            }
            let chain = self.chains.get(function);
            let link = chain.map_or_else(|| Chain::<P>::new(function).end(), |chain| chain.end());
            let link = link.map_err(refused)?;
            places.push(Place { target, link });
        }
        let Some(first) = places.first() else {
            return Ok(None);
        };
        let whole = |reason| AttachError {
            function: first.target.function,
            reason,
        };
        let Program {
            exit,
            callee,
            reads,
        } = program;
        let kind = if exit { Kind::Fexit } else { Kind::Fentry };
        let runtime: Runtime = self.platform().runtime();
        let plan = Plan {
            shared: Shared {
                exit,
                programs: &[(kind, callee)],
                reads,
                runtime: &runtime,
            },
            places: &places,
        };
        let block = Arc::new(plan.build(&self.pool).map_err(whole)?);
        let patches = places.iter().enumerate().map(|(index, place)| {
            let (function, link) = (place.target.function, place.link);
            let new = branch(link.at, block.stub(index).entry, false);
            Ok(Patch {
                at: link.at,
                old: link.word,
                new: new.map_err(|reason| AttachError { function, reason })?,
            })
        });
        let patches = patches.collect::<Result<Vec<Patch>, _>>()?;
        if let Err(failed) = patch_all(self.platform(), &patches) {
            match failed.undone {
                // Some were led through it for a moment.
                true => self.retire_block(block),
                // And some still are, for good.
                false => core::mem::forget(block),
            }
            let place = places.get(failed.index);
            let function = place.map_or(0, |place| place.target.function);
            let reason = Reason::Platform(failed.error);
            return Err(AttachError { function, reason });
        }
        let functions = places.iter().map(|place| place.target.function).collect();
        let id = self.new_id();
        let whole = true;
        let multi = Multi {
            block,
            follower: Weak::new(),
            functions,
            whole,
        };
        self.chains.insert(id, multi);
        self.pair_up(id);
        Ok(Some(id))
    }

    /// The program on many functions of that number.
    pub fn multi(&self, id: AttachId) -> Option<&Multi<P>> {
        self.chains.multi(id)
    }

    /// Takes it off all its functions. Does not wait: what it leaves is freed by [`Platform::defer`].
    ///
    /// A call that has begun may still run a program of its entry once; a program of its exit is not run any more.
    ///
    /// # Errors
    /// It is still on all of them; or, if the host could not undo what it had done, on those that it could not be taken off. It can be
    /// detached again in either case.
    pub fn detach_multi(&mut self, id: AttachId) -> Result<(), DetachError> {
        self.unpair(id)?;
        let multi = self.chains.multi(id).ok_or(DetachError::Unknown { id })?;
        let mut found = Vec::with_capacity(multi.functions.len());
        for (index, &function) in multi.functions.iter().enumerate() {
            let stuck = |reason| DetachError::Stuck { function, reason };
            let chain = self.chains.get(function);
            let removal = chain.map_or(Ok(None), |c| c.removal(multi.block.stub(index).entry));
            if let Some((place, patch)) = removal.map_err(stuck)? {
                found.push((function, place, patch));
            }
        }
        let patches: Vec<_> = found.iter().map(|(_, _, patch)| *patch).collect();
        if let Err(failed) = patch_all(self.platform(), &patches) {
            if !failed.undone {
                self.chains.break_up(id);
            }
            for (function, place, patch) in found.iter().filter(|_| !failed.undone) {
                if self.pool.platform().read(patch.at) == Some(patch.new)
                    && let Some(chain) = self.chains.own_mut(*function)
                {
                    chain.stubs.remove(*place);
                    self.chains.forget_empty(*function);
                }
            }
            return Err(DetachError::Stuck {
                function: found.get(failed.index).map_or(0, |(f, ..)| *f),
                reason: Reason::Platform(failed.error),
            });
        }
        if let Some(multi) = self.chains.remove(id) {
            if multi.block.exit {
                multi.block.silence();
            }
            self.retire_block(multi.block);
        }
        Ok(())
    }

    pub(crate) fn retire_block(&self, block: Arc<Block<P>>) {
        let grace = block.grace();
        self.platform().defer(Retired::new(block), grace);
    }
}
