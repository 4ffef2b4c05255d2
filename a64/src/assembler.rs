// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes instructions into a buffer, for the address they will run at.
//!
//! Errors stick: the first one is kept, nothing is written after it, and [`Assembler::finish`]
//! reports it, so that the code that emits reads like the code it emits. An assembler without a
//! buffer ([`Assembler::sizing`]) does everything but write: its `finish` is the size.

use crate::imm::{Imm12, Imm16, Imm21, ImmError, LogicalImm};
use crate::inst::{AddSub, Inst, LogicalImmOp, MoveWideOp};
use crate::ops;
use crate::reg::{Reg, Size, XZR};
use core::fmt;

/// Why code could not be assembled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsmError {
    /// The buffer has no room for another word.
    BufferFull {
        /// Words it holds.
        capacity: usize,
    },
    /// An operand that its field cannot hold.
    Immediate {
        /// Where the instruction would have been.
        pc: u64,
        /// Which operand, and what its field holds.
        error: ImmError,
    },
    /// A branch or an address computation does not reach its target.
    OutOfReach {
        /// Where the instruction is.
        pc: u64,
        /// Where it should lead.
        target: u64,
        /// What the offset's field holds.
        error: ImmError,
    },
    /// The caller's label slice is used up.
    TooManyLabels {
        /// Labels it holds.
        capacity: usize,
    },
    /// The caller's fix-up slice is used up.
    TooManyFixups {
        /// Forward branches it holds.
        capacity: usize,
    },
    /// A branch goes to a label that was never bound.
    Unbound {
        /// The label's number, in the order of creation.
        label: usize,
        /// Where the branch is.
        pc: u64,
    },
    /// A label was bound twice.
    BoundTwice {
        /// The label's number, in the order of creation.
        label: usize,
    },
    /// The address that the code will run at is not a multiple of four.
    Misaligned {
        /// That address.
        base: u64,
    },
}

impl fmt::Display for AsmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BufferFull { capacity } => write!(
                f,
                "the code needs more than the {capacity} words of its buffer; size it with a dry run first"
            ),
            Self::Immediate { pc, error } => write!(f, "instruction at {pc:#x}: {error}"),
            Self::OutOfReach { pc, target, error } => write!(
                f,
                "{pc:#x} does not reach {target:#x}: offset {}, the field holds {}; place the code nearer or go through a register",
                error.value, error.holds
            ),
            Self::TooManyLabels { capacity } => {
                write!(
                    f,
                    "more than {capacity} labels; give the assembler a longer label slice"
                )
            }
            Self::TooManyFixups { capacity } => write!(
                f,
                "more than {capacity} forward branches; give the assembler a longer fix-up slice"
            ),
            Self::Unbound { label, pc } => {
                write!(
                    f,
                    "the branch at {pc:#x} goes to label {label}, which was never bound; bind it"
                )
            }
            Self::BoundTwice { label } => {
                write!(
                    f,
                    "label {label} is bound twice; make a label for each place"
                )
            }
            Self::Misaligned { base } => {
                write!(f, "code address {base:#x} is not a multiple of 4; align it")
            }
        }
    }
}

impl core::error::Error for AsmError {}

/// A place in the code, bound once, branched to any number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Label(usize);

/// The caller's storage for one label.
#[derive(Clone, Copy, Debug, Default)]
pub struct LabelSlot(Option<usize>);

/// The caller's storage for one branch to a label that is not bound yet.
#[derive(Clone, Copy, Debug)]
pub struct Fixup {
    at: usize,
    label: Label,
    inst: Inst,
}

impl Default for Fixup {
    fn default() -> Self {
        Self {
            at: 0,
            label: Label(0),
            inst: Inst::NOP,
        }
    }
}

/// Where the words go.
enum Output<'a> {
    Buffer(&'a mut [u32]),
    Sizing,
}

/// Writes instructions one after the other for the address `base`.
pub struct Assembler<'a> {
    output: Output<'a>,
    base: u64,
    len: usize,
    error: Option<AsmError>,
    labels: &'a mut [LabelSlot],
    used_labels: usize,
    fixups: &'a mut [Fixup],
    used_fixups: usize,
}

impl<'a> Assembler<'a> {
    /// Writes into `words`, which will be run at the address `base` (a multiple of 4).
    pub fn new(words: &'a mut [u32], base: u64) -> Self {
        Self::with_output(Output::Buffer(words), base)
    }

    /// Writes nothing; counts what code for `base` takes.
    pub fn sizing(base: u64) -> Self {
        Self::with_output(Output::Sizing, base)
    }

    fn with_output(output: Output<'a>, base: u64) -> Self {
        let error = (!base.is_multiple_of(4)).then_some(AsmError::Misaligned { base });
        let (labels, fixups) = (Default::default(), Default::default());
        Self {
            output,
            base,
            len: 0,
            error,
            labels,
            used_labels: 0,
            fixups,
            used_fixups: 0,
        }
    }

    /// Lends storage for labels and for branches to labels that are not bound yet.
    pub fn with_labels(mut self, labels: &'a mut [LabelSlot], fixups: &'a mut [Fixup]) -> Self {
        (self.labels, self.fixups) = (labels, fixups);
        self
    }

    /// The address that the code starts at.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The address of the next instruction.
    pub fn pc(&self) -> u64 {
        self.base.wrapping_add(self.len as u64 * 4)
    }

    /// Words emitted so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was emitted yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first error so far.
    pub fn error(&self) -> Option<AsmError> {
        self.error
    }

    /// Records an error, unless there is one already; nothing is written from here on.
    pub fn fail(&mut self, error: AsmError) {
        self.error.get_or_insert(error);
    }

    /// Emits an instruction, or the error that making it gave.
    pub fn emit(&mut self, inst: impl Into<Result<Inst, ImmError>>) {
        match inst.into() {
            Ok(inst) => self.emit_word(inst.encode()),
            Err(error) => self.fail(AsmError::Immediate {
                pc: self.pc(),
                error,
            }),
        }
    }

    /// Emits a word as it is.
    pub fn emit_word(&mut self, word: u32) {
        if self.error.is_some() {
            return;
        }
        if let Output::Buffer(words) = &mut self.output {
            let capacity = words.len();
            match words.get_mut(self.len) {
                Some(slot) => *slot = word,
                None => return self.fail(AsmError::BufferFull { capacity }),
            }
        }
        self.len += 1;
    }

    /// A label to be bound later.
    pub fn new_label(&mut self) -> Label {
        let capacity = self.labels.len();
        match self.labels.get_mut(self.used_labels) {
            Some(slot) => *slot = LabelSlot(None),
            None => self.fail(AsmError::TooManyLabels { capacity }),
        }
        self.used_labels += 1;
        Label(self.used_labels - 1)
    }

    /// Makes `label` the address of the next instruction.
    pub fn bind(&mut self, label: Label) {
        let here = self.len;
        match self.labels.get_mut(label.0) {
            Some(slot) if slot.0.is_none() => slot.0 = Some(here),
            Some(_) => self.fail(AsmError::BoundTwice { label: label.0 }),
            None => {} // its creation failed already
        }
    }

    /// The address of a bound label.
    pub fn address_of(&self, label: Label) -> Option<u64> {
        let index = self.labels.get(label.0)?.0?;
        Some(self.base.wrapping_add(index as u64 * 4))
    }

    /// Emits a PC-relative instruction that leads to `label`; the offset it has is replaced.
    pub fn branch(&mut self, inst: Inst, label: Label) {
        if let Some(target) = self.address_of(label) {
            return self.branch_to(inst, target);
        }
        let capacity = self.fixups.len();
        match self.fixups.get_mut(self.used_fixups) {
            Some(slot) => {
                *slot = Fixup {
                    at: self.len,
                    label,
                    inst,
                }
            }
            None => return self.fail(AsmError::TooManyFixups { capacity }),
        }
        self.used_fixups += 1;
        self.emit_word(inst.encode());
    }

    /// Emits a PC-relative instruction that leads to the address `target`.
    pub fn branch_to(&mut self, inst: Inst, target: u64) {
        let pc = self.pc();
        match inst.with_offset(target.wrapping_sub(pc) as i64) {
            Ok(inst) => self.emit_word(inst.encode()),
            Err(error) => self.fail(AsmError::OutOfReach { pc, target, error }),
        }
    }

    /// `bl target`; an error beyond 128 MiB.
    pub fn bl_abs(&mut self, target: u64) {
        self.branch_to(ops::bl(), target);
    }

    /// `b target`; an error beyond 128 MiB.
    pub fn b_abs(&mut self, target: u64) {
        self.branch_to(ops::b(), target);
    }

    /// Loads any 64-bit value by the fewest instructions that this crate knows: one to four.
    ///
    /// Besides MOVZ, MOVN, MOVK and ORR it uses ADR and ADRP, so the count depends on `base`.
    pub fn mov_imm(&mut self, rd: Reg, value: u64) {
        let fixed = constant(rd, value);
        let near = address(rd, value, self.pc());
        let best = match near {
            Some(near) if near.len < fixed.len => near,
            _ => fixed,
        };
        self.sequence(best);
    }

    /// As [`Self::mov_imm`], but the count depends on nothing but `value`.
    pub fn mov_imm_anywhere(&mut self, rd: Reg, value: u64) {
        self.sequence(constant(rd, value));
    }

    fn sequence(&mut self, sequence: Sequence) {
        sequence
            .insts
            .into_iter()
            .take(sequence.len)
            .for_each(|inst| self.emit(inst));
    }

    /// Resolves the branches to labels; the number of words, or the first error.
    pub fn finish(mut self) -> Result<usize, AsmError> {
        for fixup in self.fixups.iter().take(self.used_fixups) {
            if self.error.is_some() {
                break;
            }
            let pc = self.base.wrapping_add(fixup.at as u64 * 4);
            let Some(target) = self.address_of(fixup.label) else {
                self.error = Some(AsmError::Unbound {
                    label: fixup.label.0,
                    pc,
                });
                break;
            };
            match (
                fixup.inst.with_offset(target.wrapping_sub(pc) as i64),
                &mut self.output,
            ) {
                (Ok(inst), Output::Buffer(words)) => {
                    if let Some(word) = words.get_mut(fixup.at) {
                        *word = inst.encode();
                    }
                }
                (Ok(_), Output::Sizing) => {}
                (Err(error), _) => {
                    self.error = Some(AsmError::OutOfReach { pc, target, error });
                }
            }
        }
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.len),
        }
    }
}

/// Up to four instructions that load a value.
#[derive(Clone, Copy)]
struct Sequence {
    insts: [Inst; 4],
    len: usize,
}

impl Sequence {
    fn of(first: Inst) -> Self {
        Self {
            insts: [first, Inst::NOP, Inst::NOP, Inst::NOP],
            len: 1,
        }
    }

    fn then(mut self, inst: Inst) -> Self {
        if let Some(slot) = self.insts.get_mut(self.len) {
            *slot = inst;
            self.len += 1;
        }
        self
    }
}

/// The address `value` by ADR, ADRP, or ADRP and ADD, when it is in reach of `pc`.
fn address(rd: Reg, value: u64, pc: u64) -> Option<Sequence> {
    if let Ok(offset) = Imm21::new(value.wrapping_sub(pc) as i64) {
        return Some(Sequence::of(Inst::Adr {
            rd: rd.into(),
            offset,
        }));
    }
    // Cortex-A53 erratum 843419: no ADRP in the last two words of a 4 KiB page.
    if pc & 0xfff >= 0xff8 {
        return None;
    }
    let pages = (value >> 12).wrapping_sub(pc >> 12) as i64;
    let adrp = Sequence::of(Inst::Adrp {
        rd: rd.into(),
        pages: Imm21::new(pages).ok()?,
    });
    let low = Imm12::new(value & 0xfff).ok()?;
    Some(match low == Imm12::ZERO {
        true => adrp,
        false => adrp.then(Inst::AddSubImm {
            op: AddSub::Add,
            size: Size::X,
            rd: rd.into(),
            rn: rd.into(),
            imm: low,
        }),
    })
}

/// The value by MOVZ, MOVN, ORR and MOVK.
fn constant(rd: Reg, value: u64) -> Sequence {
    let orr = |size, value| {
        let imm = LogicalImm::new(size, value).ok()?;
        let op = LogicalImmOp::Orr;
        Some(Sequence::of(Inst::LogicalImm {
            op,
            rd: rd.into(),
            rn: XZR,
            imm,
        }))
    };
    let narrow = value >> 32 == 0;
    let mut best = pieces(rd, Size::X, value, 0);
    let mut offer = |other: Sequence| {
        if other.len < best.len {
            best = other;
        }
    };
    offer(pieces(rd, Size::X, value, 0xffff));
    if narrow {
        offer(pieces(rd, Size::W, value, 0));
        offer(pieces(rd, Size::W, value, 0xffff));
        orr(Size::W, value).into_iter().for_each(&mut offer);
    }
    orr(Size::X, value).into_iter().for_each(&mut offer);
    // A bitmask that differs in one sixteenth of bits, and MOVK for that.
    for at in 0..4 {
        let bits = chunk(value, at);
        for other in [0, 0xffff, chunk(value, at ^ 1), chunk(value, at ^ 2)] {
            let mask = value & !(0xffff << (16 * at)) | (other as u64) << (16 * at);
            if let Some(first) = orr(Size::X, mask) {
                offer(first.then(piece(rd, MoveWideOp::Movk, Size::X, bits, at)));
            }
        }
    }
    best
}

fn chunk(value: u64, at: u32) -> u16 {
    (value >> (16 * at)) as u16
}

fn piece(rd: Reg, op: MoveWideOp, size: Size, bits: u16, at: u32) -> Inst {
    // `at` counts the sixteen-bit pieces of `size`, so the shift is one that Imm16 holds.
    let imm = Imm16::new(size, bits, 16 * at).unwrap_or(Imm16::low(size, bits));
    Inst::MoveWide {
        op,
        rd: rd.into(),
        imm,
    }
}

/// MOVZ (`fill` 0) or MOVN (`fill` 0xffff) for one piece, MOVK for the others that differ from `fill`.
fn pieces(rd: Reg, size: Size, value: u64, fill: u16) -> Sequence {
    let count = size.bits() / 16;
    let mut differing = (0..count).filter(|at| chunk(value, *at) != fill);
    let first = differing.next().unwrap_or(0);
    let bits = chunk(value, first) ^ fill;
    let op = if fill == 0 {
        MoveWideOp::Movz
    } else {
        MoveWideOp::Movn
    };
    differing.fold(
        Sequence::of(piece(rd, op, size, bits, first)),
        |sequence, at| sequence.then(piece(rd, MoveWideOp::Movk, size, chunk(value, at), at)),
    )
}
