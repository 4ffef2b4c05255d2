// SPDX-License-Identifier: MIT OR Apache-2.0
//! An image: generated code in the pool, what its instructions are for, and what it keeps alive.

use crate::attach::{AttachId, Program, Reason};
use crate::body::{Callee, Entry, emit_entry};
use crate::ingredient::Span;
use crate::platform::Platform;
use crate::pool::{Code, Label, Owner, Pool};
use a64::Assembler;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

/// A trampoline of one function. Dropped when nobody executes it, it gives its memory back.
pub(crate) struct Image<P: Platform> {
    pub(crate) code: Code<P>,
    pub(crate) spans: Vec<Span>,
    /// The program of each call, and the address of the call.
    pub(crate) calls: Vec<(AttachId, u64)>,
    /// What the instructions name: alive as long as they are.
    pub(crate) callees: Vec<Callee>,
    pub(crate) stack_bytes: u32,
}

impl<P: Platform> Image<P> {
    /// Generates, writes and publishes the image that calls `programs`, for the function's entry.
    ///
    /// No site leads to it yet. On an error the pool is as it was.
    pub(crate) fn entry(
        pool: &Arc<Pool<P>>,
        function: u64,
        programs: &[Program],
    ) -> Result<Self, Reason> {
        let callees: Vec<_> = programs.iter().map(|p| p.callee.clone()).collect();
        let args = programs.iter().map(|p| p.args).reduce(|a, b| a.union(b));
        let args = args.unwrap_or(crate::body::ArgSpec::UNKNOWN);
        let entry = Entry {
            function,
            args,
            programs: &callees,
        };

        let name = format!("the trampoline of {function:#x}");
        let bound = entry
            .words_at_most(pool.window().start)
            .map_err(Reason::Code)?;
        let reserved = pool.reserve(bound, &name).map_err(Reason::Pool)?;
        let base = reserved.address();
        let mut words = vec![0; reserved.capacity()];
        let mut asm = Assembler::new(&mut words, base);
        let body = emit_entry(&mut asm, &entry);
        let len = asm.finish().map_err(Reason::Code)?;
        words.truncate(len);

        let label = Label {
            owner: Owner::Trampoline { function },
            record: Some(body.record),
        };
        let code = reserved.publish(label, &words).map_err(Reason::Platform)?;
        let calls = body.calls.iter().map(|index| base + 4 * *index as u64);
        let calls = programs.iter().map(|p| p.id).zip(calls).collect();
        Ok(Self {
            code,
            spans: body.spans,
            calls,
            callees,
            stack_bytes: body.stack_bytes,
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
}
