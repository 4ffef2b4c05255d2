// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each text program of the suite gives the result that is written above it, by every engine.
mod support;

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
};

use bpf_vm::attachment::Attachment;
use bpf_vm::{
    isa::{AluOp, AtomicOp, Cond, Op, Operand, Reg, Size, Swap, Width},
    map::{HeapMemory, TailTarget, UpdateFlags},
    suite,
};
use support::{VARIANTS, compile, run_all_with};

fn check(text: &str) {
    let mut wrong = Vec::new();
    let cases = suite::cases(text).unwrap_or_else(|error| panic!("{error}"));
    assert!(!cases.is_empty());
    let maps = suite::maps(&HeapMemory::with_limit(1 << 20)).unwrap();
    for case in &cases {
        let program = case.program(&maps);
        let program = Arc::new(program.unwrap_or_else(|error| panic!("{}: {error}", case.name)));
        let reset = || {
            for map in &maps[..suite::PROGRAMS] {
                let zero = vec![0; map.value_size()];
                for key in 0..3_u32 {
                    map.update(&key.to_le_bytes(), &zero, UpdateFlags::Any)
                        .unwrap();
                }
            }
        };
        let state = || {
            let mut value = [0; 8];
            maps[0].lookup(&1_u32.to_le_bytes(), &mut value).unwrap();
            value.to_vec()
        };
        // The program is in the program array while it runs, by the engine that runs it.
        let programs = &maps[suite::PROGRAMS];
        let enter = |entry| {
            let target = TailTarget {
                program: program.clone(),
                entry: AtomicU64::new(entry),
                keep: None,
            };
            drop(programs.set_program(0, Some(Arc::new(target))));
        };
        let ran = run_all_with(
            &Attachment::NONE,
            &program,
            &case.memory,
            reset,
            state,
            enter,
        );
        drop(programs.set_program(0, None));
        let stack = compile(&program, 0x8_0000, VARIANTS[0]).stack_bytes;
        if case.stack.is_some_and(|most| stack > most) {
            wrong.push(format!("{}: {stack} bytes of stack", case.name));
        }
        match ran {
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
            Ok((outcome, after)) => {
                if case.r0.is_some_and(|r0| r0 != outcome.r0) {
                    wrong.push(format!("{}: r0 is {:#x}", case.name, outcome.r0));
                }
                if case.after.as_ref().is_some_and(|a| *a != after) {
                    wrong.push(format!("{}: memory is {after:02x?}", case.name));
                }
                if case.instructions.is_some_and(|n| n != outcome.instructions) {
                    let n = outcome.instructions;
                    wrong.push(format!("{}: {n} instructions", case.name));
                }
            }
        }
    }
    let count = cases.len();
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    println!("{count} programs");
}

#[test]
fn tests() {
    support::host::register();
    suite::TESTS.iter().for_each(|(_, text)| check(text));
}

#[test]
fn benches() {
    suite::BENCHES.iter().for_each(|(_, text)| check(text));
}

const BOTH: [Width; 2] = [Width::W32, Width::W64];

/// What kind of instruction it is, by the choices that make it another one.
fn kind(op: Op) -> String {
    let of = |src: Operand| match src {
        Operand::Reg(_) => "register",
        Operand::Imm(_) => "immediate",
    };
    match op {
        Op::Alu { width, op, src, .. } => format!("{op:?} {width:?} {}", of(src)),
        Op::Neg { width, .. } => format!("Neg {width:?}"),
        Op::Swap { kind, size, .. } => format!("{kind:?} {size:?}"),
        Op::Load { size, signed, .. } => format!("Load {size:?} {signed}"),
        Op::Store { size, src, .. } => format!("Store {size:?} {}", of(src)),
        Op::Atomic { size, op, .. } => format!("Atomic {op:?} {size:?}"),
        Op::LoadAcquire { size, .. } => format!("LoadAcquire {size:?}"),
        Op::StoreRelease { size, .. } => format!("StoreRelease {size:?}"),
        Op::Goto { long, .. } => format!("Goto {long}"),
        Op::If {
            width, cond, src, ..
        } => format!("{cond:?} {width:?} {}", of(src)),
        other => format!("{other:?}")
            .split([' ', '{'])
            .next()
            .unwrap()
            .into(),
    }
}

/// One instruction of each kind that there is, but for calls of kernel functions and addresses of kernel variables, which no text has.
fn every() -> Vec<Op> {
    let (dst, base, off) = (Reg::R0, Reg::R1, 0);
    let operands = [Operand::Reg(Reg::R1), Operand::Imm(1)];
    let mut all = vec![
        Op::LoadImm { dst, value: 0 },
        Op::LoadMap { dst, map: 0 },
        Op::LoadMapValue {
            dst,
            map: 0,
            offset: 0,
        },
        Op::LoadFunction { dst, off: 0 },
        Op::Call { helper: 1 },
        Op::CallLocal { off: 0 },
        Op::CallReg { target: dst },
        Op::Exit,
    ];
    all.extend([false, true].map(|long| Op::Goto { off: 0, long }));
    for width in BOTH {
        all.push(Op::Neg { width, dst });
        for src in operands {
            for op in AluOp::all() {
                let exists = match op {
                    AluOp::Movsx32 => width == Width::W64 && src == operands[0],
                    _ => src == operands[0] || !op.is_sign_extension(),
                };
                all.extend(exists.then_some(Op::Alu {
                    width,
                    op,
                    dst,
                    src,
                }));
            }
            all.extend(Cond::all().map(|cond| Op::If {
                width,
                cond,
                dst,
                src,
                off,
            }));
        }
    }
    for size in Size::ALL {
        all.push(Op::Load {
            size,
            signed: false,
            dst,
            base,
            off,
        });
        if size != Size::Dw {
            all.push(Op::Load {
                size,
                signed: true,
                dst,
                base,
                off,
            });
        }
        if size != Size::B {
            all.extend([Swap::Le, Swap::Be, Swap::Bswap].map(|kind| Op::Swap { kind, size, dst }));
        }
        all.extend(operands.map(|src| Op::Store {
            size,
            base,
            off,
            src,
        }));
        all.push(Op::LoadAcquire {
            size,
            dst,
            base,
            off,
        });
        all.push(Op::StoreRelease {
            size,
            base,
            off,
            src: dst,
        });
        if matches!(size, Size::W | Size::Dw) {
            all.extend(AtomicOp::all().map(|op| Op::Atomic {
                size,
                op,
                base,
                off,
                src: dst,
            }));
        }
    }
    all
}

#[test]
fn every_instruction_is_in_the_suite() {
    let maps = suite::maps(&HeapMemory::with_limit(1 << 20)).unwrap();
    let mut missing: BTreeSet<_> = every().into_iter().map(kind).collect();
    let count = missing.len();
    for (_, text) in suite::TESTS {
        for case in suite::cases(text).unwrap() {
            for i in case.program(&maps).unwrap().instructions() {
                missing.remove(&kind(i.op));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "{} of {count}: {missing:?}",
        missing.len()
    );
}
