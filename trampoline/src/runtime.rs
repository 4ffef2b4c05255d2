// SPDX-License-Identifier: MIT OR Apache-2.0
//! What generated code knows of its host: where the current task is, and what of hooks lies in it.
//!
//! **The recursion word.** Each context (task, softirq, hardirq, NMI) has one: the host's asynchronous exceptions and its entry
//! to softirq save the interrupted one and start with zero. It lies in the task, which is reached by a register that the scheduler
//! switches, so it is right between any two instructions, on whatever core the task goes on. It heads the list of what is active in
//! the context: the address of a frame record of an image, behind which lies the image's *guard record*:
//!
//! ```text
//!   word -> +0  x29          +16  the word that was there before
//!           +8  x30          +24  address of a literal: the address of the active program's State, or 0
//! ```

use a64::SysReg;

/// Offset of the guard record from the frame record: what the word was.
pub const RECORD_NEXT: i64 = 16;
/// Offset in a frame of the address of the literal that names the active program.
pub const RECORD_PROGRAM: i64 = 24;

/// Offset in the frame of a probe: all registers, as [`crate::registers`] has them.
pub const PROBE_CONTEXT: i64 = RECORD_PROGRAM + 8;

/// Offset in the frame of a body that many functions share: the address of the stub's link, by which the function is known; behind it x8.
pub const SHARED_LINK: i64 = 32;

/// The bits of [`Runtime::trace`] that count the sleepable programs that the task is in.
pub const TRACE_NESTING_MASK: u32 = 0xffff;
/// What leaving the outermost sleepable program adds to [`Runtime::trace`]; it wraps. A task that sleeps in one after the other is
/// never seen outside of one, but this is seen to change.
pub const TRACE_LEFT: u32 = 1 << 16;

/// What generated code knows of its host. Offsets are in bytes, from the task's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// The system register that holds the address of the current task.
    pub task: SysReg,
    /// The recursion word: 8 bytes.
    pub word: u16,
    /// The count of reasons for which the task stays on its core: 4 bytes.
    pub migrate: u16,
    /// The count of sleepable programs that the task is in ([`TRACE_NESTING_MASK`], [`TRACE_LEFT`]): 4 bytes.
    pub trace: u16,
    /// Address of an `extern "C" fn(literal: *const u64, frame: *mut u64) -> u64` that is called if the word is not zero.
    ///
    /// It walks the list. If the program that the literal names may run it makes `frame` the head of the list, with
    /// that literal, and returns 1; else it counts a miss and returns 0. It keeps no register that a function may change.
    pub admit: u64,
    /// The most stack that it uses, in bytes.
    pub admit_stack: u32,
    /// Where return addresses are kept that were replaced.
    pub shadow: Shadow,
    /// Address of an `extern "C" fn(state: *const State)` that counts a miss of a program, in the present context. It takes no more stack
    /// than `admit`.
    pub miss: u64,
}

/// A task's shadow stack: an entry for each return address that a hook has replaced.
///
/// ```text
///   +0  where the function returns to    +16  what that was replaced by
///   +8  sp at the function's entry       +24  cookie: the hook's own word
/// ```
///
/// To push: raise the top first, then write the entry, then replace the address. To pop: read the entry first, then lower
/// the top. What interrupts in between works above what is claimed, and has taken it back when it returns; program order is all the
/// order that this takes on the core that runs the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// Where the offset of the next free entry lies, from the task's address as that is: 4 bytes.
    pub top: u16,
    /// What that is when no entry is left; below 4096.
    pub end: u16,
}

/// In an entry of the shadow stack: where the function returns to; behind it sp at its entry.
pub const SHADOW_RETURN: i64 = 0;
/// In an entry of the shadow stack: what the return address was replaced by; behind it the cookie.
pub const SHADOW_LANDING: i64 = 16;
/// In an entry of the shadow stack: the hook's own word.
pub const SHADOW_COOKIE: i64 = 24;
/// Bytes of an entry of the shadow stack.
pub const SHADOW_ENTRY: i64 = 32;
