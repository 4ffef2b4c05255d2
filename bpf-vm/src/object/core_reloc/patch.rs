// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts a CO-RE relocation's answer into its instruction.
#![forbid(unsafe_code)]

use alloc::format;

use super::{
    super::slots::{op_at, put},
    Access, Answer, Problem,
};
use crate::isa::{Insn, Op, Operand, Size, Width};

/// What an instruction that must not be reached is replaced with: the validator refuses it.
const POISON: Op = Op::Call { helper: u32::MAX };

/// Replaces the instruction at a slot, so that a program that can reach it is refused; how many slots it took.
pub(in super::super) fn poison(insns: &mut [Insn], slot: usize) -> usize {
    let slots = op_at(insns, slot).map_or(1, Op::slots);
    for slot in slot..slot + slots {
        put(insns, slot, POISON);
    }
    slots
}

/// Changes the instruction at a slot as the answer says: an immediate, or a load's or store's offset and size.
///
/// `Ok(Err)`: the kernel's field cannot be accessed by this instruction, for the reason given. Errors: no instruction
/// that takes such a relocation, or a value that it has no room for.
pub(in super::super) fn apply(
    insns: &mut [Insn],
    slot: usize,
    answer: &Answer,
) -> Result<Result<(), Problem>, Problem> {
    let value = answer.value;
    let op = op_at(insns, slot).ok_or(Problem::from("it is at no instruction"))?;
    let too_large = || Problem(format!("{value:#x} does not fit into `{op}`"));
    let new = match op {
        Op::Alu {
            width,
            op,
            dst,
            src: Operand::Imm(_),
        } => {
            let signed = i32::try_from(value.cast_signed()).ok();
            // In 32 bits only the low half counts.
            let half = (width == Width::W32).then(|| u32::try_from(value).ok());
            let imm = signed.or(half.flatten().map(u32::cast_signed));
            Op::Alu {
                width,
                op,
                dst,
                src: Operand::Imm(imm.ok_or_else(too_large)?),
            }
        }
        Op::LoadImm { dst, .. } => Op::LoadImm { dst, value },
        Op::Load { .. }
        | Op::Store { .. }
        | Op::Atomic { .. }
        | Op::LoadAcquire { .. }
        | Op::StoreRelease { .. } => {
            let new_size = match answer.access {
                Access::Same => None,
                Access::Resized(bytes) => {
                    let size = Size::ALL
                        .into_iter()
                        .find(|s| u64::from(s.bytes()) == bytes);
                    Some(size.ok_or_else(|| {
                        Problem(format!("the kernel's field has {bytes} bytes; `{op}` loads and stores 1, 2, 4 or 8"))
                    })?)
                }
                Access::Impossible(from, to) => {
                    return Ok(Err(Problem(format!(
                        "the field has {from} bytes in the object and {to} in the kernel, and only pointers and unsigned \
                         integers can be accessed in another size; read it with BPF_CORE_READ_BITFIELD or a flavour"
                    ))));
                }
            };
            let new_off = i16::try_from(value).map_err(|_| too_large())?;
            moved(op, new_off, new_size)
        }
        _ => return Err(Problem(format!("`{op}` takes no CO-RE relocation"))),
    };
    put(insns, slot, new);
    Ok(Ok(()))
}

/// A load or store at another offset and, if one is given, of another size.
fn moved(op: Op, new_off: i16, new_size: Option<Size>) -> Op {
    let mut op = op;
    if let Op::Load { size, off, .. }
    | Op::Store { size, off, .. }
    | Op::Atomic { size, off, .. }
    | Op::LoadAcquire { size, off, .. }
    | Op::StoreRelease { size, off, .. } = &mut op
    {
        *off = new_off;
        *size = new_size.unwrap_or(*size);
    }
    op
}
