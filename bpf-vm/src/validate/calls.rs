// SPDX-License-Identifier: MIT OR Apache-2.0
//! The calls that a program's instructions name: that they end, and how deep they go.
//!
//! A function whose address is taken counts as called there, as by Linux: it is for a helper to call back, in a frame of its own. Where
//! a `callx` leads, and which function's address a helper gets, is known at run time only: engines look again.
#![forbid(unsafe_code)]

use alloc::{vec, vec::Vec};
use core::ops::Range;

use super::{Reason, Refusal};
use crate::{interp::MAX_FRAMES, program::Instruction};

/// What is known of a function.
#[derive(Clone, Copy, Default)]
enum Seen {
    #[default]
    Not,
    /// Its calls are being followed.
    Open,
    Done {
        /// Frames of it and of what it calls.
        frames: usize,
        /// What it calls that goes deepest; itself if it calls nothing.
        deepest: usize,
    },
}

/// A function whose calls are being followed.
struct Open {
    function: usize,
    /// The next instruction to look at.
    next: u32,
    frames: usize,
    deepest: usize,
}

impl Open {
    /// Notes that it calls a function that, with what that one calls, has so many frames.
    fn calls(&mut self, callee: usize, frames: usize) {
        if self.frames <= frames {
            (self.frames, self.deepest) = (frames + 1, callee);
        }
    }
}

/// A walk over the calls, depth first.
struct Walk<'p> {
    instructions: &'p [Instruction],
    functions: &'p [Range<u32>],
    /// Of each function.
    seen: Vec<Seen>,
    /// Those whose calls are being followed, each called by the one before it.
    open: Vec<Open>,
}

impl Walk<'_> {
    /// A function's first slot.
    fn slot(&self, function: usize) -> usize {
        let range = self.functions.get(function);
        let first = range.and_then(|range| self.instructions.get(range.start as usize));
        first.map_or(0, |first| first.slot as usize)
    }

    fn set(&mut self, function: usize, seen: Seen) {
        if let Some(place) = self.seen.get_mut(function) {
            *place = seen;
        }
    }

    /// Begins with a function's calls.
    fn enter(&mut self, function: usize) {
        self.set(function, Seen::Open);
        self.open.push(Open {
            function,
            next: self.functions.get(function).map_or(0, |range| range.start),
            frames: 1,
            deepest: function,
        });
    }

    /// Follows the next call of the innermost function, or leaves it; false if there is none.
    fn step(&mut self) -> Result<bool, Refusal> {
        let Some(last) = self.open.last_mut() else {
            return Ok(false);
        };
        let end = self
            .functions
            .get(last.function)
            .map_or(0, |range| range.end);
        let rest = self.instructions.get(last.next as usize..end as usize);
        let mut rest = (last.next..).zip(rest.unwrap_or_default());
        let Some((at, call)) = rest.find(|(_, i)| i.op.function().is_some()) else {
            let (function, frames, deepest) = (last.function, last.frames, last.deepest);
            self.set(function, Seen::Done { frames, deepest });
            self.open.pop();
            if let Some(caller) = self.open.last_mut() {
                caller.calls(function, frames);
            }
            return Ok(true);
        };
        last.next = at + 1;
        let known = self
            .functions
            .binary_search_by_key(&call.target, |range| range.start);
        let Ok(callee) = known else {
            return Ok(true);
        };
        match self.seen.get(callee) {
            Some(Seen::Open) => {
                let circle = self.open.iter().skip_while(|open| open.function != callee);
                let functions = circle.map(|open| self.slot(open.function)).collect();
                return Err((Some(call.slot as usize), Reason::Recursion { functions }));
            }
            Some(&Seen::Done { frames, .. }) => last.calls(callee, frames),
            _ => self.enter(callee),
        }
        Ok(true)
    }

    /// The frames of a function and of what it calls, and which of these goes deepest.
    fn of(&self, function: usize) -> (usize, usize) {
        match self.seen.get(function) {
            Some(&Seen::Done { frames, deepest }) => (frames, deepest),
            _ => (0, function),
        }
    }
}

/// How many frames the program has at most by the calls that its instructions name, the entry's included. Time and memory are
/// linear in the number of instructions, but for finding a function by its start.
///
/// # Errors
/// The first call that leads back into a function that led to it; more than [`MAX_FRAMES`] frames.
pub(super) fn frames(
    instructions: &[Instruction],
    functions: &[Range<u32>],
) -> Result<usize, Refusal> {
    let mut walk = Walk {
        instructions,
        functions,
        seen: vec![Seen::Not; functions.len()],
        open: Vec::new(),
    };
    // What the entry does not lead to is there because something else names it: it is in a circle, or behind one.
    for function in 0..functions.len() {
        if matches!(walk.seen.get(function), Some(Seen::Not)) {
            walk.enter(function);
            while walk.step()? {}
        }
    }
    let (frames, _) = walk.of(0);
    if frames <= MAX_FRAMES {
        return Ok(frames);
    }
    let next = |function: &usize| Some(walk.of(*function).1);
    let path = core::iter::successors(Some(0), next).take(MAX_FRAMES + 1);
    let functions = path.map(|function| walk.slot(function)).collect();
    Err((None, Reason::CallDepth { frames, functions }))
}
