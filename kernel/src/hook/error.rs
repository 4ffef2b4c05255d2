// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a function was not hooked, or a hook not taken off.

use super::{HookId, ResolveError, Skipped};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use trampoline::Reason;
use trampoline::pool::PoolError;

/// Why a function was not hooked, or a hook not taken off.
#[derive(Debug)]
pub(crate) enum HookError {
    /// The pool is full.
    Full(PoolError),
    /// The engine refused: which function, and why.
    Refused(String, Reason),
    /// A program could not be compiled, or its code not be written.
    Code(String),
    /// A pattern fits no function that can be hooked.
    Nothing {
        /// The pattern.
        pattern: String,
        /// The nearest names.
        nearest: Vec<&'static str>,
        /// Functions that it fits and that cannot be hooked, by reason.
        skipped: Skipped,
    },
    /// The function is replaced already.
    Replaced {
        /// Its name.
        function: String,
        /// What replaces it: kind and program.
        by: String,
        /// The hook of that.
        id: HookId,
    },
    /// The attach failed, and what it had done could not be undone: the hook is on.
    Stuck {
        /// The function.
        function: String,
        /// Why it was not attached.
        reason: Box<Reason>,
        /// Why it could not be taken off again.
        undo: Box<Reason>,
        /// Its hook.
        id: HookId,
    },
    /// A live patch is on its way on or off.
    Busy {
        /// Its name.
        patch: String,
        /// Its hook.
        id: HookId,
    },
    /// Neither the program's section nor anyone else names a function.
    Unnamed,
    /// The name is no function's.
    Name(ResolveError),
    /// There is no such hook.
    NoSuchHook(HookId),
    /// The function is not one of those that this kind of hook may be put on.
    Target {
        /// Its name.
        function: String,
        /// What is missing, and which functions have it.
        why: String,
    },
}

impl fmt::Display for HookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HookError::Full(e) => write!(f, "{e}"),
            HookError::Refused(name, e) => write!(f, "{name} cannot be hooked: {e}"),
            HookError::Unnamed => f.write_str(
                "no function is named, and the program's section names none either: say which",
            ),
            HookError::Code(why) => write!(f, "the program's code: {why}"),
            HookError::Target { function, why } => {
                write!(f, "{function} cannot be hooked so: {why}")
            }
            HookError::Nothing {
                pattern,
                nearest,
                skipped,
            } => match skipped.count() {
                0 => write!(
                    f,
                    "no function fits {pattern:?}; the nearest names are {}; * stands for anything",
                    nearest.join(", ")
                ),
                _ => write!(
                    f,
                    "no function that fits {pattern:?} can be hooked: {skipped}"
                ),
            },
            HookError::Replaced { function, by, id } => write!(
                f,
                "{function} is replaced already by {by} (hook {id}): a function has one body; `detach {id}` takes that off first{}",
                match by.starts_with("livepatch ") {
                    true => ", and `patch` says when it is off",
                    false => "",
                }
            ),
            HookError::Stuck {
                function,
                reason,
                undo,
                id,
            } => write!(
                f,
                "{function} cannot be hooked: {reason}; nor could the hook be taken off again: {undo}; it is on, as hook {id}: \
                 `detach {id}` tries once more"
            ),
            HookError::Busy { patch, id } => write!(
                f,
                "live patch {patch} (hook {id}) is on its way; `patch` says what it waits for, and there is one at a time: try again \
                 when it has arrived"
            ),
            HookError::Name(e) => e.fmt(f),
            HookError::NoSuchHook(id) => write!(f, "there is no hook {id}; `hooks` lists them"),
        }
    }
}

impl HookError {
    pub(super) fn refused(name: &str, reason: Reason) -> HookError {
        match reason {
            Reason::Pool(full) => HookError::Full(full),
            other => HookError::Refused(name.into(), other),
        }
    }
}
