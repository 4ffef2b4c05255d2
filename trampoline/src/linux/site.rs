// SPDX-License-Identifier: MIT OR Apache-2.0
//! A site of the Linux way, and how a site changes between the two ways while other cores call the function.
//!
//! ```text
//!   function-4   .word    where the op of this function is named, as an offset from function+8 (only of per-callsite ops)
//!   function     mov      x9, x30
//!   function+4   bl       what it leads to, or nop
//!   function+8   ...      the function as it was compiled
//! ```
//!
//! **There.** Both words are NOPs. MOV is not one of the instructions that may replace another while a core executes it
//! ([`crate::patch`]), so word 0 is replaced while all other cores are held ([`prepare`]). Someone may have been preempted between the two
//! words, or held there: he has executed the NOP, so his x9 is anything. Word 1 is still a NOP for him. Only after a tasks-RCU grace
//! period, when every task has been seen elsewhere, may word 1 become a BL ([`lead`]), by one store.
//!
//! **Back.** Word 1 becomes a NOP first, by one store; then nobody comes to what it led to without having been there before. Whoever is
//! between the two words has x9 set in vain. Then word 0 becomes a NOP while the others are held ([`restore`]). No
//! grace period is needed between these two: MOV without a BL behind it does nothing. One is needed before what the BL led to is
//! freed.

use crate::attach::Reason;
use crate::patch::patch;
use crate::platform::{Platform, PlatformError};
use a64::reg::{X9, X30};
use a64::{AsmError, Inst, Size};

/// The first word of a site that goes the Linux way: the caller's return address is kept where BL leaves it alone.
pub fn first_word() -> u32 {
    a64::ops::mov(Size::X, X9, X30).encode()
}

const NOP: u32 = Inst::NOP.encode();

/// The second word: leads to `target`, or nowhere.
///
/// # Errors
/// It is out of BL's reach.
pub fn second_word(function: u64, target: Option<u64>) -> Result<u32, Reason> {
    let at = second(function);
    let Some(target) = target else {
        return Ok(NOP);
    };
    let bl = a64::ops::bl().with_offset(target.wrapping_sub(at) as i64);
    bl.map(Inst::encode).map_err(|error| {
        Reason::Code(AsmError::OutOfReach {
            pc: at,
            target,
            error,
        })
    })
}

fn second(function: u64) -> u64 {
    function.wrapping_add(4)
}

/// Two NOPs become the Linux way's, that lead nowhere yet. A tasks-RCU grace period has to pass before [`lead`].
///
/// # Errors
/// Word 0 is no NOP, or the others could not be held; the site is as it was.
pub fn prepare(platform: &impl Platform, function: u64) -> Result<(), Reason> {
    platform
        .replace_word(function, NOP, first_word())
        .map_err(Reason::Platform)
}

/// Changes what a site leads to, by one store; every core has seen it when this returns.
///
/// # Errors
/// It leads somewhere else already, or `new` is out of reach; it is as it was.
pub fn lead(
    platform: &impl Platform,
    function: u64,
    old: Option<u64>,
    new: Option<u64>,
) -> Result<(), Reason> {
    let (old, new) = (second_word(function, old)?, second_word(function, new)?);
    if old == new {
        return Ok(());
    }
    patch(platform, second(function), old, new).map_err(Reason::Platform)
}

/// A site that leads nowhere becomes two NOPs again.
///
/// # Errors
/// Word 0 is not the Linux way's, or the others could not be held; the site is as it was.
pub fn restore(platform: &impl Platform, function: u64) -> Result<(), Reason> {
    platform
        .replace_word(function, first_word(), NOP)
        .map_err(Reason::Platform)
}

/// Where the word lies that names a function's op.
pub const fn op_word_address(function: u64) -> u64 {
    function.wrapping_sub(4)
}

/// What that word is: where the op is named, from where the function goes on behind its site; `None` beyond 2 GiB.
pub fn op_word(function: u64, descriptor: u64) -> Option<u32> {
    let offset = descriptor.wrapping_sub(function.wrapping_add(crate::Site::BYTES)) as i64;
    i32::try_from(offset).ok().map(|offset| offset as u32)
}

/// Replaces the word that names a function's op. It is data, and read by the shared caller alone; every core reads the new one when
/// this returns.
///
/// # Errors
/// The word is not `old`; it is as it was.
pub fn set_op_word(
    platform: &impl Platform,
    function: u64,
    old: u32,
    new: u32,
) -> Result<(), PlatformError> {
    if old != new {
        platform.patch(op_word_address(function), old, new)?;
        platform.sync_cores();
    }
    Ok(())
}
