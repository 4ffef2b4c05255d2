// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kprobes by BRK: an instruction gives way to a breakpoint, and is executed out of line.
//!
//! The host's exception handler finds the probe by the address, runs its programs with the exception's own frame as their context, and
//! returns to the *slot*: the displaced instruction, written anew for its place (`a64`), and `b pc+4`. So a hit is one exception.
//! Linux (arch/arm64/kernel/probes) executes an instruction that does not depend on its address in such a slot, followed by
//! a second BRK whose handler goes back, and simulates the others; it takes two exceptions for most instructions.
//!
//! BRK may replace B, BL, NOP and a few others, and be replaced by them, while cores execute them (patch.rs). For all other
//! instructions both ways happen while all other cores are held.
//!
//! What can be probed is what a detour can displace (detour.rs). At an entry with a site the function is claimed: its first NOP
//! is the breakpoint's.

use crate::attach::{AttachError, Engine, Reason};
use crate::detour::Spot;
use crate::patch::{is_patchable, patch};
use crate::platform::{Grace, Platform, Retired};
use crate::pool::{Code, Label, Owner};
use a64::Assembler;
use alloc::boxed::Box;
use alloc::format;

/// The immediate of the breakpoint (Linux, asm/brk-imm.h: `KPROBES_BRK_IMM`).
pub const IMMEDIATE: u16 = 4;

/// The breakpoint.
pub const BREAKPOINT: u32 = a64::ops::brk(IMMEDIATE).encode();

/// Who claims the function or the instruction.
const CLAIM: &str = "kprobes by BRK";

/// An instruction with its slot.
pub struct Breakpoint<P: Platform> {
    spot: Spot,
    word: u32,
    slot: Code<P>,
}

impl<P: Platform> Breakpoint<P> {
    /// Where it is.
    pub fn spot(&self) -> &Spot {
        &self.spot
    }

    /// Address of the slot: where to go on behind the programs.
    pub fn slot(&self) -> u64 {
        self.slot.address()
    }

    /// Bytes of the pool that it takes.
    pub fn bytes(&self) -> u64 {
        self.slot.bytes()
    }
}

impl<P: Platform> Engine<P> {
    /// Makes the slot of an instruction. Nothing leads there until [`Self::arm`], before which the host's handler has to know it.
    pub fn breakpoint(&self, spot: &Spot) -> Result<Breakpoint<P>, AttachError> {
        let refused = |reason| AttachError {
            function: spot.function.start,
            reason,
        };
        let word = self.breakable(spot).map_err(refused)?;
        let pool = self.pool();
        /// Words that a displaced instruction takes at most, and the branch.
        const MOST: usize = 8;
        let name = format!("the slot of {:#x}", spot.at);
        let reserved = pool.reserve(MOST, &name);
        let reserved = reserved.map_err(|e| refused(Reason::Pool(e)))?;
        let mut words = [0; MOST];
        let mut asm = Assembler::new(&mut words, reserved.address());
        a64::relocate(word, spot.at, &mut asm)
            .map_err(|e| refused(Reason::Displace(Box::new(e))))?;
        asm.b_abs(spot.at.wrapping_add(4));
        let len = asm.finish().map_err(|e| refused(Reason::Code(e)))?;
        let label = Label {
            owner: Owner::Probe { at: spot.at },
            record: None,
        };
        let words = words.get(..len).unwrap_or_default();
        let slot = reserved.publish(label, words);
        Ok(Breakpoint {
            spot: spot.clone(),
            word,
            slot: slot.map_err(|e| refused(Reason::Platform(e)))?,
        })
    }

    fn breakable(&self, spot: &Spot) -> Result<u32, Reason> {
        let word = self.check_displaced(spot)?;
        if self.detours.contains_key(&spot.at) {
            return Err(Reason::Claimed {
                by: "probes by a branch",
            });
        }
        match self.claimed(spot.at) {
            Some(by) => Err(Reason::Claimed { by }),
            None => Ok(word),
        }
    }

    /// Puts the BRK into the instruction's place.
    pub fn arm(&mut self, breakpoint: &Breakpoint<P>) -> Result<(), AttachError> {
        let Breakpoint { spot, word, .. } = breakpoint;
        let (at, function) = (spot.at, spot.function.start);
        let refused = |reason| AttachError { function, reason };
        self.breakable(spot).map_err(refused)?;
        let site = at == function && self.sites().get(function).is_some();
        if site {
            self.claim(function, CLAIM)?;
        }
        let changed = self.change(at, *word, BREAKPOINT);
        match changed {
            Ok(()) => {
                self.claim_word(at, CLAIM);
                self.breakpoints.insert(at, *word);
            }
            Err(_) if site => self.unclaim(function),
            Err(_) => {}
        }
        changed.map_err(refused)
    }

    /// Puts the instruction back. The host's handler has to know the breakpoint until this has returned: then no core is between
    /// the exception and the handler's look.
    pub fn disarm(&mut self, breakpoint: &Breakpoint<P>) -> Result<(), AttachError> {
        let Breakpoint { spot, word, .. } = breakpoint;
        let (at, function) = (spot.at, spot.function.start);
        self.change(at, BREAKPOINT, *word)
            .map_err(|reason| AttachError { function, reason })?;
        self.breakpoints.remove(&at);
        self.unclaim(at);
        Ok(())
    }

    /// Frees the slot when no task can be in it any more.
    pub fn retire_breakpoint(&self, breakpoint: Breakpoint<P>) {
        self.platform()
            .defer(Retired::new(breakpoint), Grace::Tasks);
    }

    fn change(&self, at: u64, old: u32, new: u32) -> Result<(), Reason> {
        let platform = self.platform();
        let changed = match is_patchable(old) && is_patchable(new) {
            true => patch(platform, at, old, new),
            false => platform.replace_word(at, old, new),
        };
        changed.map_err(Reason::Platform)
    }
}
