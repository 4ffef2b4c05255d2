// SPDX-License-Identifier: MIT OR Apache-2.0
//! What depends on the address: the assembler's constants, labels and reach, and the relocator.
//!
//! The code that comes out is executed by a small interpreter of the instructions that it may use.

use a64::imm::Imm21;
use a64::inst::*;
use a64::ops::*;
use a64::reg::*;
use a64::{AsmError, Assembler, Fixup, Inst, LabelSlot, RelocateError, Size::X, relocate};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Where execution left the code, and the registers that it wrote.
#[derive(Debug, PartialEq)]
struct Outcome {
    pc: u64,
    written: BTreeMap<u8, u64>,
    loaded_from: Option<u64>,
}

/// Runs `words` at `base` until control leaves them. `taken` decides the original conditional branch.
fn run(words: &[u32], base: u64, taken: &dyn Fn(Inst) -> bool) -> Outcome {
    let mut outcome = Outcome {
        pc: base,
        written: BTreeMap::new(),
        loaded_from: None,
    };
    loop {
        let pc = outcome.pc;
        let Some(word) = words.get((pc.wrapping_sub(base) / 4) as usize) else {
            return outcome;
        };
        let inst = Inst::decode(*word).expect("known instructions");
        let mut next = pc.wrapping_add(4);
        let read = |n: u8| outcome.written.get(&n).copied().unwrap_or(0);
        let target = pc.wrapping_add_signed(inst.offset().unwrap_or(0));
        let write = match inst {
            Inst::Branch { link, .. } => {
                let link = link.then_some((30, next));
                next = target;
                link
            }
            Inst::BranchReg {
                op: BranchRegOp::Br,
                rn,
            } => {
                next = 0x1000 + u64::from(rn.number());
                None
            }
            Inst::BranchReg {
                op: BranchRegOp::Blr,
                rn,
            } => {
                let link = next;
                next = 0x1000 + u64::from(rn.number());
                Some((30, link))
            }
            Inst::BranchCond { .. } | Inst::CompareBranch { .. } | Inst::TestBranch { .. } => {
                if taken(inst) {
                    next = target;
                }
                None
            }
            Inst::Adr { rd, .. } => Some((rd.number(), target)),
            Inst::Adrp { rd, pages } => Some((
                rd.number(),
                (pc & !4095).wrapping_add_signed(pages.value() * 4096),
            )),
            Inst::AddSubImm {
                op: AddSub::Add,
                rd,
                rn,
                imm,
                ..
            } => Some((rd.number(), read(rn.number()).wrapping_add(imm.value()))),
            Inst::LogicalImm {
                op: LogicalImmOp::Orr,
                rd,
                imm,
                ..
            } => Some((rd.number(), imm.value())),
            Inst::MoveWide { op, rd, imm } => {
                let bits = u64::from(imm.unshifted()) << imm.shift();
                let value = match op {
                    MoveWideOp::Movz => bits,
                    MoveWideOp::Movn => !bits,
                    MoveWideOp::Movk => read(rd.number()) & !(0xffff << imm.shift()) | bits,
                };
                let value = if imm.size() == X {
                    value
                } else {
                    value & 0xffff_ffff
                };
                Some((rd.number(), value))
            }
            Inst::LoadLiteral { rt, .. } => {
                outcome.loaded_from = Some(target);
                Some((rt.number(), 0))
            }
            Inst::LoadStore { rt, rn, .. } => {
                outcome.loaded_from = Some(read(rn.number()));
                Some((rt.number(), 0))
            }
            Inst::Hint { .. } | Inst::PrefetchLiteral { .. } => None,
            other => panic!("{other} is not expected here"),
        };
        outcome.written.extend(write.filter(|(n, _)| *n != 31));
        outcome.pc = next;
    }
}

fn assemble(base: u64, emit: impl Fn(&mut Assembler<'_>)) -> Result<Vec<u32>, AsmError> {
    let mut sizing = Assembler::sizing(base);
    emit(&mut sizing);
    let len = sizing.finish()?;
    let mut words = vec![0; len];
    let mut asm = Assembler::new(&mut words, base);
    emit(&mut asm);
    assert_eq!(asm.finish(), Ok(len), "the dry run gave the size");
    Ok(words)
}

const KERNEL: u64 = 0xffff_8000_1234_5000;

#[test]
fn constants_take_the_fewest_instructions() {
    let rows = [
        (0, 1),
        (0xffff, 1),
        (0xffff_0000_0000, 1),
        (u64::MAX, 1),
        (0xffff_ffff, 1),
        (0xffff_fff0, 1),
        (0xffff_ffff_ffff_1234, 1),
        (0x5555_5555_5555_5555, 1),
        (0x0f0f_0f0f, 1),
        (KERNEL + 0x8000, 1),      // ADR
        (KERNEL + 0x1000_0000, 1), // ADRP, page-aligned
        (KERNEL + 0x1000_0008, 2), // ADRP and ADD
        (0x1234_5678, 2),
        (0xffff_ffff_1234_5678, 2),
        (0x5555_5555_5555_1234, 2), // ORR and MOVK
        (0x0000_1234_5678_9abc, 3),
        (0xffff_0000_1234_5678, 3),
        (0x1234_5678_9abc_def0, 4),
    ];
    for (value, expected) in rows {
        let words = assemble(KERNEL, |asm| asm.mov_imm(X5, value)).unwrap();
        assert_eq!(words.len(), expected, "{value:#x}");
        assert_eq!(run(&words, KERNEL, &|_| false).written[&5], value);
    }
}

/// Cortex-A53 erratum 843419.
#[test]
fn no_adrp_in_the_last_two_words_of_a_page() {
    for (offset, adrp) in [
        (0xff4, true),
        (0xff8, false),
        (0xffc, false),
        (0x1000, true),
    ] {
        let words = assemble(KERNEL + offset, |asm| asm.mov_imm(X0, KERNEL + 0x1000_0008)).unwrap();
        let has = words
            .iter()
            .any(|w| matches!(Inst::decode(*w), Some(Inst::Adrp { .. })));
        assert_eq!(has, adrp, "at {offset:#x}");
        let outcome = run(&words, KERNEL + offset, &|_| false);
        assert_eq!(outcome.written[&0], KERNEL + 0x1000_0008);
    }
}

#[test]
fn labels_lead_forwards_and_backwards() {
    let (mut labels, mut fixups) = ([LabelSlot::default(); 2], [Fixup::default(); 2]);
    let mut words = [0; 8];
    let mut asm = Assembler::new(&mut words, 0x4000).with_labels(&mut labels, &mut fixups);
    let (top, end) = (asm.new_label(), asm.new_label());
    asm.bind(top);
    asm.branch(cbz(X, X0), end);
    asm.emit(sub_imm(X, X0, X0, 1));
    asm.branch(b_cond(Cond::Ne), top);
    asm.branch(b(), end);
    asm.bind(end);
    asm.emit(ret());
    assert_eq!(asm.finish(), Ok(5));
    let text: Vec<_> = words
        .iter()
        .take(5)
        .map(|w| Inst::decode(*w).unwrap().to_string())
        .collect();
    assert_eq!(
        text,
        ["cbz x0, #16", "sub x0, x0, #1", "b.ne #-8", "b #4", "ret"]
    );
}

#[test]
fn errors_stick_and_say_what_is_wrong() {
    let mut words = [0; 2];
    let mut asm = Assembler::new(&mut words, 0x1000);
    asm.emit(add_imm(X, X0, X1, 4097));
    asm.emit(nop());
    assert_eq!(asm.len(), 0);
    let message = asm.finish().unwrap_err().to_string();
    assert!(
        message.contains("0x1000") && message.contains("4097"),
        "{message}"
    );

    let mut asm = Assembler::new(&mut words, 0x1000);
    (0..3).for_each(|_| asm.emit(nop()));
    assert_eq!(asm.finish(), Err(AsmError::BufferFull { capacity: 2 }));

    let mut asm = Assembler::sizing(0x1000);
    asm.b_abs(0x1000 + (128 << 20));
    assert!(matches!(
        asm.finish(),
        Err(AsmError::OutOfReach { pc: 0x1000, .. })
    ));

    let mut asm = Assembler::sizing(0x1000);
    asm.new_label();
    assert_eq!(asm.finish(), Err(AsmError::TooManyLabels { capacity: 0 }));

    let (mut labels, mut fixups) = ([LabelSlot::default(); 1], [Fixup::default(); 1]);
    let mut asm = Assembler::sizing(0x1000).with_labels(&mut labels, &mut fixups);
    let label = asm.new_label();
    asm.branch(b(), label);
    assert_eq!(
        asm.finish(),
        Err(AsmError::Unbound {
            label: 0,
            pc: 0x1000
        })
    );

    let mut asm = Assembler::sizing(0x1000).with_labels(&mut labels, &mut fixups);
    let label = asm.new_label();
    asm.branch(b(), label);
    asm.branch(b(), label);
    assert_eq!(asm.finish(), Err(AsmError::TooManyFixups { capacity: 1 }));

    assert_eq!(
        Assembler::sizing(0x1002).finish(),
        Err(AsmError::Misaligned { base: 0x1002 })
    );
}

/// What `word` does at `from`, and what its displaced form does at `to`.
fn both(word: u32, from: u64, to: u64, taken: bool) -> (Outcome, Outcome) {
    let condition = Inst::decode(word).unwrap();
    // The inverse condition is taken exactly when the original one is not.
    let decide = |inst: Inst| taken == same_sense(inst, condition);
    let words = assemble(to, |asm| relocate(word, from, asm).unwrap()).unwrap();
    let mut moved = run(&words, to, &decide);
    // Falling out of the displaced code is going on after the original.
    if moved.pc == to + 4 * words.len() as u64 {
        moved.pc = from + 4;
    }
    (run(&[word], from, &decide), moved)
}

fn same_sense(a: Inst, b: Inst) -> bool {
    match (a, b) {
        (Inst::BranchCond { cond: a, .. }, Inst::BranchCond { cond: b, .. }) => a == b,
        (Inst::CompareBranch { nonzero: a, .. }, Inst::CompareBranch { nonzero: b, .. }) => a == b,
        (Inst::TestBranch { nonzero: a, .. }, Inst::TestBranch { nonzero: b, .. }) => a == b,
        _ => unreachable!("{a} against {b}"),
    }
}

#[test]
fn displaced_instructions_have_the_same_effect_near_and_far() {
    let from = 0xffff_8000_0100_0ff0;
    let words = [
        b().with_offset(0x1000).unwrap(),
        bl().with_offset(-0x1000).unwrap(),
        blr(X9),
        br(X16),
        cbz(X, X3).with_offset(0x40).unwrap(),
        cbnz(X, X3).with_offset(-0x40).unwrap(),
        tbz(X3, 40).unwrap().with_offset(0x40).unwrap(),
        b_cond(Cond::Lt).with_offset(0x40).unwrap(),
        Inst::Adr {
            rd: X7.into(),
            offset: Imm21::new(-3).unwrap(),
        },
        Inst::Adrp {
            rd: X7.into(),
            pages: Imm21::new(9).unwrap(),
        },
        Inst::Adr {
            rd: a64::XZR,
            offset: Imm21::new(8).unwrap(),
        },
        Inst::decode(0x5800_0047).unwrap(), // ldr x7, #8
        Inst::decode(0x9800_0047).unwrap(), // ldrsw x7, #8
        Inst::decode(0xd800_0040).unwrap(), // prfm pldl1keep, #8
    ];
    for to in [
        from + 0x80,
        from + 0x8_0004,
        from + 0x40_0008,
        from - 0x700_0000,
        from + 0x7f0_0000,
    ] {
        for (inst, taken) in words.iter().flat_map(|w| [(w, false), (w, true)]) {
            let (original, moved) = both(inst.encode(), from, to, taken);
            assert_eq!(original, moved, "{inst} moved to {to:#x}");
        }
    }
}

#[test]
fn b_al_and_b_nv_always_branch() {
    for cond in [Cond::Al, Cond::Nv] {
        let word = b_cond(cond).with_offset(64).unwrap().encode();
        let words = assemble(0x80_0000, |asm| relocate(word, 0x1000, asm).unwrap()).unwrap();
        assert_eq!(run(&words, 0x80_0000, &|_| false).pc, 0x1040);
    }
}

#[test]
fn other_words_are_copied() {
    // nop; mov x0, x1; stp; a SIMD add; an SVE add
    for word in [
        0xd503_201f,
        0xaa01_03e0,
        0xa9bf_7bfd,
        0x4e20_1c00,
        0x0420_0000,
    ] {
        assert_eq!(
            assemble(0x1000, |asm| relocate(word, 0x9000, asm).unwrap()),
            Ok(vec![word])
        );
    }
    // ldr q0, #8, near
    let moved = assemble(0x1000, |asm| relocate(0x9c00_0040, 0x1010, asm).unwrap());
    assert_eq!(moved, Ok(vec![0x9c00_00c0]));
}

#[test]
fn what_cannot_be_displaced_is_named() {
    let refuse = |word, to| {
        let mut asm = Assembler::sizing(to);
        relocate(word, 0x1000, &mut asm).unwrap_err()
    };
    // BC.eq (FEAT_HBC), RETAASPPC, CBBGT (FEAT_CMPBR), AUTIASPPC, LDR with opc 3 and V
    for word in [
        0x5400_0050,
        0x5500_001f,
        0x7400_8000,
        0xf380_001f,
        0xdc00_0040,
    ] {
        assert_eq!(
            refuse(word, 0x2000),
            RelocateError::Unknown { word, pc: 0x1000 }
        );
    }
    let error = refuse(blr(X30).encode(), 0x2000);
    assert!(
        error.to_string().contains("`blr x30` from 0x1000"),
        "{error}"
    );
    let error = refuse(0x5800_005f, 0x1000_0000); // ldr xzr, #8
    assert!(matches!(error, RelocateError::NoRegister { .. }));
    for word in [b().encode(), cbz(X, X0).encode(), 0x9c00_0040] {
        let error = refuse(word, 0x1000_0000);
        assert!(matches!(error, RelocateError::Assemble { .. }), "{error}");
    }
}

#[test]
fn call_graph_queries() {
    use a64::{branch_target, is_call, is_terminator};
    let call = bl().with_offset(-16).unwrap().encode();
    assert_eq!(branch_target(call, 0x1000), Some(0xff0));
    assert_eq!(branch_target(ret().encode(), 0x1000), None);
    assert_eq!(
        branch_target(0x5800_0040, 0x1000),
        None,
        "a literal is no branch"
    );
    assert!(is_call(call) && is_call(blr(X1).encode()) && !is_call(b().encode()));
    assert!(is_terminator(ret().encode()) && is_terminator(b().encode()) && is_terminator(0));
    assert!(!is_terminator(call) && !is_terminator(b_cond(Cond::Eq).encode()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_constant_arrives(
        chunks in prop::array::uniform4(prop_oneof![Just(0u16), Just(0xffff), Just(0x5555), any::<u16>()]),
        page in 0u64..1 << 20,
    ) {
        let value = chunks.iter().fold(0, |v, c| v << 16 | u64::from(*c));
        let base = page * 4;
        let words = assemble(base, |asm| asm.mov_imm(X9, value)).unwrap();
        prop_assert!(words.len() <= 4);
        prop_assert_eq!(run(&words, base, &|_| false).written[&9], value);
        let anywhere = assemble(base, |asm| asm.mov_imm_anywhere(X9, value)).unwrap();
        prop_assert!(anywhere.len() >= words.len());
        prop_assert_eq!(run(&anywhere, base, &|_| false).written[&9], value);
    }
}
