// SPDX-License-Identifier: MIT OR Apache-2.0
//! A body that chooses between two by a word of the task: what a function leads to while tasks change from the one to the other.
//!
//! ```text
//!   mrs  x9, SP_EL0
//!   ldr  w9, [x9, #word]
//!   cbz  w9, zero
//!   b    body of those whose word is not 0
//! zero:
//!   b    body of those whose word is 0
//! ```
//!
//! At a function's entry, and behind its site, x9 is free (AAPCS64 6.1.1); everything else is as the caller left it.

use crate::attach::Reason;
use crate::platform::Platform;
use crate::pool::{Code, Label, Owner, Pool};
use crate::runtime::Runtime;
use a64::inst::Access;
use a64::ops::{cbz, mem, mrs};
use a64::reg::X9;
use a64::{Assembler, Fixup, Gpr, LabelSlot, Size};
use alloc::format;
use alloc::sync::Arc;

const WORDS: usize = 5;

/// A switch in the pool; its drop gives the memory back.
pub struct Switch<P: Platform> {
    code: Code<P>,
}

impl<P: Platform> Switch<P> {
    /// Publishes a switch of `function`'s bodies by the 32-bit word at offset `word` in the task.
    ///
    /// # Errors
    /// The pool is full, a body is out of a branch's reach, or the host cannot write.
    pub fn new(
        pool: &Arc<Pool<P>>,
        function: u64,
        word: u16,
        zero: u64,
        other: u64,
    ) -> Result<Self, Reason> {
        let name = format!("the switch of {function:#x}");
        let reserved = pool.reserve(WORDS, &name).map_err(Reason::Pool)?;
        let mut words = [0; WORDS];
        let (mut labels, mut fixups) = ([LabelSlot::default()], [Fixup::default()]);
        let asm = Assembler::new(&mut words, reserved.address());
        let mut asm = asm.with_labels(&mut labels, &mut fixups);
        let Runtime { task, .. } = pool.platform().runtime();
        asm.emit(mrs(X9, task));
        asm.emit(mem(Access::LdrW, Gpr::from(X9), X9, word.into()));
        let at_zero = asm.new_label();
        asm.branch(cbz(Size::W, X9), at_zero);
        asm.b_abs(other);
        asm.bind(at_zero);
        asm.b_abs(zero);
        asm.finish().map_err(Reason::Code)?;
        let label = Label {
            owner: Owner::Trampoline { function },
            record: None,
        };
        let code = reserved.publish(label, &words).map_err(Reason::Platform)?;
        Ok(Self { code })
    }

    /// The address of its first instruction.
    pub fn address(&self) -> u64 {
        self.code.address()
    }

    /// Bytes of the pool that it takes.
    pub fn bytes(&self) -> u64 {
        self.code.bytes()
    }
}
