// SPDX-License-Identifier: MIT OR Apache-2.0
//! An image: generated code in the pool, what its instructions are for, and what it keeps alive.

use crate::args::ArgSpec;
use crate::attach::{AttachId, Line, Program, Reason};
use crate::body::{Body, Description, Storage};
use crate::ingredient::Span;
use crate::patch::patch;
use crate::platform::{Grace, Platform, PlatformError};
use crate::pool::{Code, Label, Owner, Pool};
use crate::program::{Callee, Kind};
use a64::{AsmError, Assembler, Inst};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

/// A call of a program in an image.
#[derive(Clone, Copy)]
pub(crate) struct CallSite {
    program: AttachId,
    /// Address of the BL.
    at: u64,
    /// Address of the instruction to go on at without it.
    resume: u64,
}

/// A trampoline of one function. Dropped when nobody executes it, it gives its memory back.
pub(crate) struct Image<P: Platform> {
    pub(crate) code: Code<P>,
    pub(crate) spans: Vec<Span>,
    /// Where programs are called.
    pub(crate) calls: Vec<CallSite>,
    /// What the instructions name: alive as long as they are.
    pub(crate) callees: Vec<(Kind, Callee)>,
    /// Address of the branch to the function's body, and whether it is a call.
    pub(crate) onward: (u64, bool),
    pub(crate) stack_bytes: u32,
    /// Whether a task may block while it is inside, or while it will return there.
    pub(crate) may_block: bool,
}

impl<P: Platform> Image<P> {
    /// Generates, writes and publishes the image that calls `programs`, for the function's entry, and goes on in `body`.
    ///
    /// No site leads to it yet. On an error the pool is as it was.
    pub(crate) fn new(
        pool: &Arc<Pool<P>>,
        function: u64,
        body: u64,
        programs: &[Program],
    ) -> Result<Self, Reason> {
        let callees: Vec<_> = programs
            .iter()
            .map(|p| (p.kind, p.callee.clone()))
            .collect();
        let args = programs.iter().map(|p| p.args).reduce(|a, b| a.union(b));
        let args = args.unwrap_or(ArgSpec::UNKNOWN);
        let calls_function = programs.iter().any(|p| p.kind.calls_function());
        if args.stack().is_none() && calls_function {
            return Err(Reason::Arguments);
        }
        let runtime = pool.platform().runtime();
        let description = Description {
            body,
            args,
            programs: &callees,
            runtime: &runtime,
        };

        let bound = description
            .words_at_most(pool.window().start)
            .map_err(Reason::Code)?;
        let (owner, name) = (
            Owner::Trampoline { function },
            format!("the trampoline of {function:#x}"),
        );
        let mut image = Self::place(pool, owner, &name, programs, bound, |asm| {
            Ok(description.emit(asm))
        })?;
        image.onward.1 = calls_function;
        Ok(image)
    }

    /// Writes and publishes what `emit` makes for these programs, at most `bound` words.
    pub(crate) fn place(
        pool: &Arc<Pool<P>>,
        owner: Owner,
        name: &str,
        programs: &[Program],
        bound: usize,
        emit: impl FnOnce(&mut Assembler<'_>) -> Result<Body, Reason>,
    ) -> Result<Self, Reason> {
        let callees = programs.iter().map(|p| (p.kind, p.callee.clone()));
        // One more for what a label may say behind the code.
        let reserved = pool.reserve(bound + 1, name).map_err(Reason::Pool)?;
        let base = reserved.address();
        let mut words = vec![0; reserved.capacity()];
        let mut storage = Storage::new(programs.len());
        let mut asm = storage.lend(Assembler::new(&mut words, base));
        let body = emit(&mut asm)?;
        let len = asm.finish().map_err(Reason::Code)?;
        words.truncate(len);
        let (needed, limit) = (body.stack_bytes, pool.platform().stack_limit());
        if needed > limit {
            return Err(Reason::Stack { needed, limit });
        }
        let (needed, limit) = (body.waiting_bytes, pool.platform().waiting_limit());
        if needed > limit {
            return Err(Reason::Waiting { needed, limit });
        }

        let record = Some(body.record);
        let label = Label { owner, record };
        let code = reserved.publish(label, &words).map_err(Reason::Platform)?;
        let at = |index: usize| base + 4 * index as u64;
        let calls = body.calls.iter().filter_map(|call| {
            Some(CallSite {
                program: programs.get(call.program)?.id,
                at: at(call.at),
                resume: at(call.resume),
            })
        });
        let calls = calls.collect();
        Ok(Self {
            code,
            spans: body.spans,
            calls,
            onward: (at(body.onward), false),
            callees: callees.collect(),
            stack_bytes: body.stack_bytes,
            may_block: body.may_block,
        })
    }

    /// Its live code.
    pub(crate) fn lines<'a>(&'a self, platform: &'a P) -> impl Iterator<Item = Line<'a>> {
        (0..self.code.words()).filter_map(|index| {
            let address = self.code.address() + 4 * index as u64;
            let word = platform.read(address)?;
            let span = self.span(index)?;
            let callee = span.program.and_then(|number| self.callees.get(number));
            let note = callee.map_or("", |(_, c)| c.name.as_str());
            Some(Line {
                address,
                word,
                ingredient: span.ingredient,
                note,
            })
        })
    }

    /// The ingredient and program of the instruction at this index.
    pub(crate) fn span(&self, index: usize) -> Option<Span> {
        let mut end = 0;
        self.spans.iter().copied().find(|span| {
            end += span.len;
            index < end
        })
    }

    /// What has to be over before it may be freed.
    pub(crate) fn grace(&self) -> Grace {
        let start = self.code.address();
        match self.may_block {
            true => Grace::Unreferenced(start..start + 4 * self.code.words() as u64),
            false => Grace::Tasks,
        }
    }

    /// Takes the calls of a program out, where they are: each BL becomes a NOP, or a B behind what it is there for. They may replace
    /// each other while cores execute them (patch.rs). Does nothing a second time.
    pub(crate) fn silence(&self, id: AttachId) -> Result<(), Reason> {
        let platform = self.code.pool().platform();
        for call in self.calls.iter().filter(|call| call.program == id) {
            let at = call.at;
            let word = platform.read(at);
            let word = word.ok_or(Reason::Platform(PlatformError::NotCode { at }))?;
            if !a64::is_call(word) {
                continue; // silent already
            }
            let distance = call.resume.wrapping_sub(at) as i64;
            let over = match distance {
                4 => Ok(Inst::NOP),
                _ => a64::ops::b().with_offset(distance),
            };
            let over = over.map_err(|error| Reason::Code(AsmError::Immediate { pc: at, error }))?;
            let over = over.encode();
            patch(platform, at, word, over).map_err(Reason::Platform)?;
        }
        Ok(())
    }
}
