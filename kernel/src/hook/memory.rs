// SPDX-License-Identifier: MIT OR Apache-2.0
//! Executable memory: code of programs in the pool, and what an address there belongs to.

use super::platform::Kernel;
use super::{Change, HookError};
use crate::arch::lock::Late;
use crate::arch::{code, unwind};
use crate::mm::layout::{POOL, POOL_SIZE};
use crate::symbols;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use trampoline::CallerIn;
use trampoline::pool::{Found, Label, Owner, Pool, Reserved};

/// The pool of the engine, which needs no lock.
static MEMORY: Late<Arc<Pool<Kernel>>> = Late::new();

/// Where code can be placed from now on.
pub(super) fn init(pool: Arc<Pool<Kernel>>) {
    MEMORY.set(Box::leak(Box::new(pool)));
}

/// Executable memory with a program's code; its drop gives the memory back.
pub(crate) type ProgramCode = trampoline::pool::Code<Kernel>;

/// Numbers programs, for the unwinder.
static PROGRAMS: AtomicU64 = AtomicU64::new(1);

/// Places a program's code in the pool. `compile` says what it is at an address; its length may depend on that a little. `guess`
/// is how many words it may have: if that is enough, it is compiled once, for where it lies.
pub(crate) fn place(
    name: &str,
    guess: usize,
    compile: impl Fn(u64) -> Result<Vec<u32>, String>,
) -> Result<ProgramCode, HookError> {
    let memory = MEMORY
        .get()
        .ok_or_else(|| HookError::Code("the hook engine is not running".into()))?;
    let mut room = guess;
    loop {
        let reserved = match memory.reserve(room, name) {
            // As much as it needs may be there.
            Err(_) => {
                let needed = compile(POOL as u64).map_err(HookError::Code)?.len();
                memory.reserve(needed, name).map_err(HookError::Full)?
            }
            Ok(reserved) => reserved,
        };
        let words = compile(reserved.address()).map_err(HookError::Code)?;
        if words.len() > reserved.capacity() {
            room = words.len();
            continue;
        }
        let id = PROGRAMS.fetch_add(1, Ordering::Relaxed);
        let label = Label {
            owner: Owner::Program { id },
            record: None,
        };
        return reserved
            .publish(label, &words)
            .map_err(|e| HookError::Code(e.to_string()));
    }
}

/// Takes all executable memory away, for the test of a full pool.
pub(crate) fn take_pool() -> Vec<Reserved<Kernel>> {
    let Some(memory) = MEMORY.get() else {
        return Vec::new();
    };
    let piece = || {
        memory
            .reserve(
                (memory.largest_free() / 4).checked_sub(4)? as usize,
                "a test",
            )
            .ok()
    };
    core::iter::from_fn(piece).collect()
}

/// Whether an address lies in code of the Linux way that calls programs: what it returns to next is the hooked function. Any context:
/// no lock.
pub(crate) fn is_linux(address: usize) -> bool {
    let found = MEMORY.get().and_then(|m| m.find(address as u64));
    let owner = found.map(|found| found.label.owner);
    matches!(owner, Some(Owner::Linux { .. } | Owner::Shared { .. }))
}

/// Whether an address lies in a BPF trampoline of the Linux way, which counts who is inside. Any context: no lock.
pub(crate) fn is_linux_trampoline(address: usize) -> bool {
    let found = MEMORY.get().and_then(|m| m.find(address as u64));
    matches!(found.map(|f| f.label.owner), Some(Owner::Linux { .. }))
}

/// Whether an address lies in code that hooks one of the functions at these addresses, or may: of a body that many functions share
/// nothing but its frame, whose record is at `frame` (0: not known), says for which it works. The Linux way is never on a function that is
/// replaced.
pub(super) fn may_hook(address: usize, frame: usize, mut is_one: impl FnMut(u64) -> bool) -> bool {
    let Some((pool, found)) = found(address) else {
        return false;
    };
    match found.label.owner {
        Owner::Trampoline { function } => is_one(function),
        Owner::Probe { at } => {
            let symbol = symbols::blob().and_then(|blob| blob.lookup(at));
            symbol.is_some_and(|(symbol, _)| is_one(symbol.address))
        }
        Owner::Functions { .. } => of_many(pool, &found, address, frame).is_none_or(is_one),
        Owner::Program { .. } | Owner::Linux { .. } | Owner::Shared { .. } => false,
    }
}

/// The function whose stub an address lies in, if it is in the stub of one of many functions. Any context: no lock.
pub(crate) fn stub_of(address: usize) -> Option<u64> {
    let (pool, found) = found(address)?;
    match found.label.owner {
        Owner::Functions { .. } => pool.function_of(address as u64),
        _ => None,
    }
}

/// What an address of the pool belongs to.
fn found(address: usize) -> Option<(&'static Pool<Kernel>, Found)> {
    let pool: &Pool<Kernel> = MEMORY.get()?;
    Some((pool, pool.find(address as u64)?))
}

/// Which of many functions the code at an address works for: a stub is one function's; of the body its frame, whose record is at `frame`,
/// knows that.
fn of_many(pool: &Pool<Kernel>, found: &Found, address: usize, frame: usize) -> Option<u64> {
    let recorded = found.caller == CallerIn::FrameRecord;
    let link = recorded.then(|| unwind::link(frame));
    pool.function_of(link.flatten().unwrap_or(address as u64))
}

/// What an address of the pool is to a stack trace.
pub(crate) enum Hooked {
    /// In a trampoline of the function at this address, which a trace shows in its stead.
    Function(u64),
    /// In a probe of the instruction at this address, in the middle of a function.
    Probe {
        /// The address of the instruction.
        at: u64,
        /// Whether the probe's own frame record, which x29 points to here, shows that address.
        recorded: bool,
    },
}

/// The trampoline or probe that an address lies in; `frame` is where the frame record of its code is, 0 if that is not known. Any
/// context: no lock.
pub(crate) fn hooked_at(address: usize, frame: usize) -> Option<Hooked> {
    let (pool, found) = found(address)?;
    match found.label.owner {
        Owner::Trampoline { function } => Some(Hooked::Function(function)),
        Owner::Probe { at } => Some(Hooked::Probe {
            at,
            recorded: found.caller == CallerIn::FrameRecord,
        }),
        Owner::Program { .. } | Owner::Linux { .. } | Owner::Shared { .. } => None,
        Owner::Functions { .. } => of_many(pool, &found, address, frame).map(Hooked::Function),
    }
}

/// The parts of the pool that are in use, by address; what is freed meanwhile is filled, what is handed out is missing.
pub(crate) fn live() -> Vec<Range<u64>> {
    let Some(memory) = MEMORY.get() else {
        return Vec::new();
    };
    let Range { start, end } = memory.window();
    let free: Vec<_> = memory.free().collect();
    let starts = core::iter::once(start).chain(free.iter().map(|run| run.end));
    let ends = free.iter().map(|run| run.start).chain([end]);
    let runs = starts.zip(ends).map(|(start, end)| start..end);
    runs.filter(|run| !run.is_empty()).collect()
}

/// Looks at every word of the pool that is free; returns how many there are, and those that are not filled.
pub(crate) fn free_words(most: usize) -> (usize, Vec<Change>) {
    let Some(memory) = MEMORY.get() else {
        return (0, Vec::new());
    };
    let (mut count, mut other) = (0, Vec::new());
    for address in memory.free().flat_map(|run| run.step_by(4)) {
        count += 1;
        let word = code::read(address as usize).unwrap_or_default();
        // It may have been handed out since.
        if word != trampoline::pool::FILL
            && other.len() < most
            && memory.free().any(|run| run.contains(&address))
        {
            other.push(Change { address, word });
        }
    }
    (count, other)
}

/// Says what an address outside of the image is; for reports, so it takes no lock.
pub(crate) fn describe_address(address: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !(POOL..POOL + POOL_SIZE).contains(&address) {
        return write!(f, "?");
    }
    match MEMORY.get().and_then(|m| m.find(address as u64)) {
        Some(found) => match found.label.owner {
            Owner::Trampoline { function } => {
                write!(
                    f,
                    "trampoline of {}+{:#x}",
                    symbols::FunctionName(function as usize),
                    address as u64 - found.start
                )
            }
            Owner::Probe { at } => {
                let (symbol, offset) = match symbols::blob().and_then(|b| b.lookup(at)) {
                    Some((symbol, offset)) => (symbol.name, offset),
                    None => ("?", at),
                };
                write!(
                    f,
                    "probe of {symbol}+{offset:#x}, at +{:#x}",
                    address as u64 - found.start
                )
            }
            Owner::Functions { .. } => match MEMORY
                .get()
                .and_then(|m| m.function_of(address as u64))
            {
                Some(function) => write!(f, "stub of {}", symbols::FunctionName(function as usize)),
                None => write!(
                    f,
                    "trampoline of many functions+{:#x}",
                    address as u64 - found.start
                ),
            },
            Owner::Program { id } => write!(
                f,
                "code of BPF program {id}+{:#x}",
                address as u64 - found.start
            ),
            Owner::Linux { function } => write!(
                f,
                "linux trampoline of {}+{:#x}",
                symbols::FunctionName(function as usize),
                address as u64 - found.start
            ),
            Owner::Shared { id } => write!(
                f,
                "{}+{:#x}",
                super::linux::shared_name(id),
                address as u64 - found.start
            ),
        },
        None => write!(f, "free executable memory"),
    }
}

/// Bytes of the executable pool that are free.
pub(crate) fn pool_free() -> usize {
    MEMORY.get().map_or(0, |m| m.free_bytes() as usize)
}
