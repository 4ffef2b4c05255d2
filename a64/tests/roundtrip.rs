// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random instructions and random words: encode and decode undo each other, disassemblers agree.

mod common;

use a64::imm::*;
use a64::inst::*;
use a64::{Gpr, Inst, Reg, RegOrSp, SP, Size, XZR};
use disarm64::InsnOpcode;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

/// Random numbers to draw operands from.
struct Draw<'a>(std::slice::Iter<'a, u32>);

impl Draw<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        let number = self
            .0
            .next()
            .copied()
            .expect("enough entropy for one instruction");
        u64::from(number) % limit
    }
    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }
    fn one<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
    fn gpr(&mut self) -> Gpr {
        Reg::new(self.below(32) as u8).map_or(XZR, Gpr::from)
    }
    fn sp(&mut self) -> RegOrSp {
        Reg::new(self.below(32) as u8).map_or(SP, RegOrSp::from)
    }
    fn size(&mut self) -> Size {
        self.one(&[Size::W, Size::X])
    }
    fn signed(&mut self, limit: i64, step: i64) -> i64 {
        (self.below(2 * limit as u64) as i64 - limit) * step
    }
    fn amount(&mut self) -> Amount {
        let size = self.size();
        Amount::new(size, self.below(size.bits() as u64)).unwrap()
    }
    fn shift(&mut self) -> Shift {
        let kind = self.one(&[
            ShiftKind::Lsl,
            ShiftKind::Lsr,
            ShiftKind::Asr,
            ShiftKind::Ror,
        ]);
        Shift {
            kind,
            amount: self.amount(),
        }
    }
    /// A run of ones, rotated, repeated.
    fn mask(&mut self) -> LogicalImm {
        let size = self.size();
        let width = 2 << self.below(size.bits().ilog2() as u64);
        let element = u64::MAX >> (64 - 1 - self.below(width - 1));
        let value = (0..64)
            .step_by(width as usize)
            .fold(0, |v, at| v | element << at);
        let value = value.rotate_left(self.below(64) as u32);
        let value = if size == Size::W {
            value & 0xffff_ffff
        } else {
            value
        };
        LogicalImm::new(size, value).unwrap()
    }
    fn imm12(&mut self) -> Imm12 {
        let shift = self.one(&[0, 12]);
        Imm12::new(self.below(4096) << shift).unwrap()
    }
}

const VARIANTS: u64 = 47;

/// An instruction of class `class`, with operands from `d`.
fn inst(class: u64, d: &mut Draw<'_>) -> Inst {
    let imm19 = |d: &mut Draw<'_>| Imm19::new(d.signed(1 << 18, 4)).unwrap();
    let nzcv = |d: &mut Draw<'_>| UImm4::new(d.below(16)).unwrap();
    let (rd, rn, rm, ra) = (d.gpr(), d.gpr(), d.gpr(), d.gpr());
    let (rd_sp, rn_sp, size) = (d.sp(), d.sp(), d.size());
    let (rs, rt, rt2) = (rm, rd, ra);
    match class {
        0 => Inst::Udf {
            imm: d.below(65536) as u16,
        },
        1 => Inst::Branch {
            link: d.flag(),
            offset: Imm26::new(d.signed(1 << 25, 4)).unwrap(),
        },
        2 => Inst::BranchCond {
            cond: d.one(Cond::ALL),
            offset: imm19(d),
        },
        3 => Inst::CompareBranch {
            nonzero: d.flag(),
            size,
            rt,
            offset: imm19(d),
        },
        4 => {
            let (bit, offset) = (d.below(64), d.signed(1 << 13, 4));
            let (bit, offset) = (BitNumber::new(bit).unwrap(), Imm14::new(offset).unwrap());
            Inst::TestBranch {
                nonzero: d.flag(),
                bit,
                rt,
                offset,
            }
        }
        5 => Inst::BranchReg {
            op: d.one(BranchRegOp::ALL),
            rn,
        },
        6 => Inst::Eret,
        7 => Inst::Hint {
            number: UImm7::new(d.below(128)).unwrap(),
        },
        8 => Inst::Barrier {
            op: d.one(BarrierOp::ALL),
            option: nzcv(d),
        },
        9 => Inst::Exception {
            op: d.one(ExceptionOp::ALL),
            imm: d.below(65536) as u16,
        },
        10 => Inst::Mrs {
            rt,
            reg: d.one(SysReg::NAMES).0,
        },
        11 => {
            let (op0, op1, crn, crm) = (2 + d.below(2), d.below(8), d.below(16), d.below(16));
            let reg = SysReg::new(op0 as u8, op1 as u8, crn as u8, crm as u8, d.below(8) as u8);
            Inst::Msr { reg, rt }
        }
        12 => Inst::MsrImm {
            field: d.one(PstateField::ALL),
            imm: nzcv(d),
        },
        13 => {
            let (op1, op2) = (
                UImm3::new(d.below(8)).unwrap(),
                UImm3::new(d.below(8)).unwrap(),
            );
            Inst::Sys {
                op1,
                crn: nzcv(d),
                crm: nzcv(d),
                op2,
                rt,
            }
        }
        14 => {
            let shift = d.below(size.bits() as u64 / 16) as u32 * 16;
            let imm = Imm16::new(size, d.below(65536) as u16, shift).unwrap();
            Inst::MoveWide {
                op: d.one(MoveWideOp::ALL),
                rd,
                imm,
            }
        }
        15 => Inst::Adr {
            rd,
            offset: Imm21::new(d.signed(1 << 20, 1)).unwrap(),
        },
        16 => Inst::Adrp {
            rd,
            pages: Imm21::new(d.signed(1 << 20, 1)).unwrap(),
        },
        17 => {
            let (op, imm) = (d.one(AddSub::ALL), d.imm12());
            Inst::AddSubImm {
                op,
                size,
                rd: rd_sp,
                rn: rn_sp,
                imm,
            }
        }
        18 => {
            let (op, imm) = (d.one(AddSub::ALL), d.imm12());
            Inst::AddSubImmFlags {
                op,
                size,
                rd,
                rn: rn_sp,
                imm,
            }
        }
        19 => {
            let shift = AddShift::new(d.shift()).unwrap_or(AddShift::none(size));
            Inst::AddSubReg {
                op: d.one(AddSub::ALL),
                flags: d.flag(),
                rd,
                rn,
                rm,
                shift,
            }
        }
        20 => {
            let (op, extend) = (d.one(AddSub::ALL), d.one(a64::inst::Extend::ALL));
            let shift = ExtendShift::new(d.below(5)).unwrap();
            Inst::AddSubExt {
                op,
                size,
                rd: rd_sp,
                rn: rn_sp,
                rm,
                extend,
                shift,
            }
        }
        21 => {
            let (op, extend) = (d.one(AddSub::ALL), d.one(a64::inst::Extend::ALL));
            let shift = ExtendShift::new(d.below(5)).unwrap();
            Inst::AddSubExtFlags {
                op,
                size,
                rd,
                rn: rn_sp,
                rm,
                extend,
                shift,
            }
        }
        22 => Inst::Carry {
            op: d.one(CarryOp::ALL),
            size,
            rd,
            rn,
            rm,
        },
        23 => Inst::LogicalImm {
            op: d.one(LogicalImmOp::ALL),
            rd: rd_sp,
            rn,
            imm: d.mask(),
        },
        24 => Inst::AndsImm {
            rd,
            rn,
            imm: d.mask(),
        },
        25 => Inst::LogicalReg {
            op: d.one(LogicalOp::ALL),
            rd,
            rn,
            rm,
            shift: d.shift(),
        },
        26 => {
            let (r, s) = (d.below(size.bits() as u64), d.below(size.bits() as u64));
            let range = BitRange::new(size, r, s).unwrap();
            Inst::Bitfield {
                op: d.one(BitfieldOp::ALL),
                rd,
                rn,
                range,
            }
        }
        27 => Inst::Extract {
            rd,
            rn,
            rm,
            lsb: d.amount(),
        },
        28 => Inst::MulAdd {
            op: d.one(MulAddOp::ALL),
            size,
            rd,
            rn,
            rm,
            ra,
        },
        29 => Inst::MulAddLong {
            op: d.one(MulAddLongOp::ALL),
            rd,
            rn,
            rm,
            ra,
        },
        30 => Inst::MulHigh {
            op: d.one(MulHighOp::ALL),
            rd,
            rn,
            rm,
        },
        31 => Inst::TwoSource {
            op: d.one(TwoSourceOp::ALL),
            size,
            rd,
            rn,
            rm,
        },
        32 => Inst::OneSource {
            op: d.one(OneSourceOp::ALL),
            rd,
            rn,
        },
        33 => Inst::Select {
            op: d.one(SelectOp::ALL),
            size,
            rd,
            rn,
            rm,
            cond: d.one(Cond::ALL),
        },
        34 => {
            let (op, cond) = (d.one(CompareOp::ALL), d.one(Cond::ALL));
            Inst::CompareReg {
                op,
                size,
                rn,
                rm,
                nzcv: nzcv(d),
                cond,
            }
        }
        35 => {
            let (op, cond) = (d.one(CompareOp::ALL), d.one(Cond::ALL));
            let imm = UImm5::new(d.below(32)).unwrap();
            Inst::CompareImm {
                op,
                size,
                rn,
                imm,
                nzcv: nzcv(d),
                cond,
            }
        }
        36 => {
            let (op, offset) = (d.one(Access::ALL), UImm12::new(d.below(4096)).unwrap());
            Inst::LoadStore {
                op,
                rt,
                rn: rn_sp,
                offset,
            }
        }
        37 => {
            let (op, mode) = (d.one(Access::ALL), d.one(Mode9::ALL));
            let offset = SImm9::new(d.signed(256, 1)).unwrap();
            Inst::LoadStore9 {
                op,
                mode,
                rt,
                rn: rn_sp,
                offset,
            }
        }
        38 => {
            let (op, extend, scaled) = (d.one(Access::ALL), d.one(IndexExtend::ALL), d.flag());
            Inst::LoadStoreReg {
                op,
                rt,
                rn: rn_sp,
                rm,
                extend,
                scaled,
            }
        }
        39 => Inst::LoadLiteral {
            op: d.one(LiteralOp::ALL),
            rt,
            offset: imm19(d),
        },
        40 => Inst::PrefetchLiteral {
            op: UImm5::new(d.below(32)).unwrap(),
            offset: imm19(d),
        },
        41 => {
            let (op, mode) = (d.one(PairOp::ALL), d.one(PairMode::ALL));
            let offset = SImm7::new(d.signed(64, 1)).unwrap();
            Inst::Pair {
                op,
                mode,
                rt,
                rt2,
                rn: rn_sp,
                offset,
            }
        }
        42 => Inst::Ordered {
            op: d.one(OrderedOp::ALL),
            size: d.one(MemSize::ALL),
            rt,
            rn: rn_sp,
        },
        43 => {
            let (op, size) = (d.one(StoreExclusiveOp::ALL), d.one(MemSize::ALL));
            Inst::StoreExclusive {
                op,
                size,
                rs,
                rt,
                rn: rn_sp,
            }
        }
        44 => {
            let (op, size) = (d.one(AtomicOp::ALL), d.one(MemSize::ALL));
            Inst::Atomic {
                op,
                size,
                acquire: d.flag(),
                release: d.flag(),
                rs,
                rt,
                rn: rn_sp,
            }
        }
        45 => {
            let size = d.one(MemSize::ALL);
            Inst::Cas {
                size,
                acquire: d.flag(),
                release: d.flag(),
                rs,
                rt,
                rn: rn_sp,
            }
        }
        _ => Inst::NOP,
    }
}

fn any_inst() -> impl Strategy<Value = Inst> {
    (0..VARIANTS, any::<[u32; 20]>()).prop_map(|(class, seed)| inst(class, &mut Draw(seed.iter())))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn decode_undoes_encode(inst in any_inst()) {
        prop_assert_eq!(Inst::decode(inst.encode()), Some(inst), "{:#010x} {}", inst.encode(), inst);
    }

    #[test]
    fn encode_undoes_decode(word in any::<u32>()) {
        if let Some(inst) = Inst::decode(word) {
            prop_assert_eq!(inst.encode(), word, "{}", inst);
        }
    }

    #[test]
    fn disarm64_knows_it_by_the_same_name(inst in any_inst()) {
        prop_assume!(!matches!(inst, Inst::Hint { .. }) || is_comparable(&inst));
        let theirs = disarm64::decoder::decode(inst.encode());
        let theirs = theirs.map(|i| i.definition().mnemonic);
        let text = inst.to_string();
        prop_assert!(common::mnemonics_agree(&text, theirs), "{:#010x} {} {:?}", inst.encode(), text, theirs);
    }

    #[test]
    fn logical_immediates_hold_their_value(bits in any::<u64>(), seed in any::<[u32; 8]>()) {
        let mask = Draw(seed.iter()).mask();
        prop_assert_eq!(LogicalImm::new(mask.size(), mask.value()), Ok(mask));
        if let Ok(imm) = LogicalImm::new(Size::X, bits) {
            prop_assert_eq!(imm.value(), bits);
        }
    }
}

/// Every (N, immr, imms) that decodes stands for a value; the 5334 values of 64 bits are all found.
#[test]
fn all_64_bit_masks_are_encodable() {
    let mut values: Vec<u64> = (0..1 << 13)
        .filter_map(
            |fields: u32| match Inst::decode(0x9200_0000 | fields << 10) {
                Some(Inst::LogicalImm { imm, .. }) => Some(imm.value()),
                _ => None,
            },
        )
        .collect();
    values.sort_unstable();
    values.dedup();
    // 64-bit: a width w has w * (w - 1) values; the sum over 2, 4, .. 64.
    assert_eq!(
        values.len(),
        [2, 4, 8, 16, 32, 64]
            .iter()
            .map(|w| w * (w - 1))
            .sum::<usize>()
    );
    for value in values {
        assert_eq!(
            LogicalImm::new(Size::X, value).map(LogicalImm::value),
            Ok(value)
        );
    }
}

/// Random instructions as llvm-mc prints them, in one run of it.
#[test]
fn llvm_mc_prints_random_instructions_alike() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = any_inst();
    let insts: Vec<Inst> = (0..20_000)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect();
    let words: Vec<u32> = insts.iter().map(|i| i.encode()).collect();
    let Some(theirs) = common::llvm_mc(&words) else {
        return;
    };
    let mut wrong: Vec<String> = insts
        .iter()
        .filter(|inst| is_comparable(inst))
        .filter_map(|inst| match theirs.get(&inst.encode()) {
            Some(text) if *text == inst.to_string() => None,
            text => Some(format!(
                "{:#010x}: {inst}, llvm-mc says {text:?}",
                inst.encode()
            )),
        })
        .collect();
    wrong.sort();
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        insts.len(),
        wrong.join("\n")
    );
}

/// Names of system registers and operations are a matter of the tool's version.
fn is_comparable(inst: &Inst) -> bool {
    match inst {
        Inst::Mrs { .. } | Inst::Msr { .. } | Inst::MsrImm { .. } | Inst::Sys { .. } => false,
        Inst::Hint { number } => number.value() < 6,
        _ => true,
    }
}
