// SPDX-License-Identifier: MIT OR Apache-2.0
//! The JIT's code for a few programs is the one in `listings/`, word for word. `BLESS=1` writes the files anew.
mod support;

use a64::inst::SysReg;
use bpf_vm::jit::{Features, InPlace, Number, Target, compile, listing};
use support::program;

/// Name, features, text. Nothing with maps: their addresses differ from run to run.
const PROGRAMS: &[(&str, Features, &str)] = &[
    ("empty", LL_SC, "r0 = 0\nexit"),
    (
        "argument",
        LL_SC,
        "r3 = *(u64 *)(r1 + 8)
         r0 = 0
         if r3 != 42 goto out
         r0 = 1
         out: exit",
    ),
    (
        "stack",
        LL_SC,
        "*(u64 *)(r10 - 8) = 0
         *(u32 *)(r10 - 4) = r1
         r0 = *(u64 *)(r10 - 8)
         exit",
    ),
    (
        "call",
        LL_SC,
        "r6 = *(u64 *)(r1 + 0)
         r7 = *(u64 *)(r1 + 8)
         call 5
         r0 -= r6
         r0 += r7
         exit",
    ),
    (
        "loop",
        LL_SC,
        "r0 = 0
         again: r3 = *(u8 *)(r1 + 0)
         r0 += r3
         r1 += 1
         r2 += -1
         if r2 != 0 goto again
         exit",
    ),
    (
        "in_place",
        LL_SC,
        "call 14\nr6 = r0\ncall 8\nr0 += r6\nexit",
    ),
    (
        "three_operands",
        LL_SC,
        "r3 = r1
         r3 += r2
         w4 = w1
         w4 &= 255
         r3 ^= r4
         r0 = r2
         r0 <<= 4
         r0 |= r3
         r4 = r2
         r4 ^= -1
         r0 &= r4
         r1 *= r2
         r0 -= r1
         exit",
    ),
    (
        "fields",
        LL_SC,
        "r3 = r1
         r3 <<= 24
         r3 s>>= 56
         r4 = r1
         r4 >>= 12
         r4 &= 15
         w0 = w2
         w0 >>= 19
         w2 <<= 13
         w0 |= w2
         r0 += r3
         r0 -= r4
         exit",
    ),
    (
        "addresses",
        LL_SC,
        "r3 = r2
         r3 <<= 3
         r4 = r1
         r4 += r3
         r0 = *(u64 *)(r4 + 0)
         w2 = w2
         r5 = r1
         r5 += r2
         r3 = *(u8 *)(r5 + 0)
         r0 += r3
         r3 = *(u16 *)(r1 + 0)
         r3 = (s16)r3
         r1 += 2
         r0 += r3
         r3 = *(u32 *)(r1 + 8)
         r4 = *(u32 *)(r1 + 12)
         r0 += r3
         r0 += r4
         exit",
    ),
    (
        "tests",
        LL_SC,
        "r0 = 0
         r3 = r1
         r3 &= 8
         if r3 == 0 goto out
         r4 = *(u8 *)(r2 + 0)
         w5 = w4
         w5 += -48
         w5 &= 255
         if w5 > 9 goto out
         r0 = 1
         if r1 == 7 goto +1
         r0 = 0
         out: exit",
    ),
    (
        "rotated",
        LL_SC,
        "r0 = 0
         top: if r2 == 0 goto out
         r3 = *(u64 *)(r1 + 0)
         r1 += 8
         r3 *= 1000003
         r0 += r3
         r2 += -1
         r4 = 5
         goto top
         out: exit",
    ),
    (
        "jumped_into",
        LL_SC,
        "r3 = r1
         if r2 == 0 goto middle
         r3 = r2
         middle: r3 += r2
         r3 <<= 3
         r0 = r3
         if r1 == 1 goto last
         r0 = r1
         r0 <<= 2
         last: r0 += r3
         exit",
    ),
    ("atomic", LL_SC, ATOMIC),
    ("atomic_lse", Features { lse: true }, ATOMIC),
    (
        "local_call",
        LL_SC,
        "r6 = r1
         r1 = 5
         r2 = 7
         call local f
         r0 += r6
         exit
         f: r0 = r1
         r0 *= r2
         exit",
    ),
];
/// What is asked in place of a call, in registers that the kernel has something else in.
const IN_PLACE: InPlace = InPlace {
    task: Some(SysReg::SP_EL0),
    task_number: Some(Number {
        register: SysReg::SP_EL0,
        offset: 48,
    }),
    cpu: Some(Number {
        register: SysReg::TPIDR_EL1,
        offset: 8,
    }),
    clock: None,
};
const LL_SC: Features = Features { lse: false };
const ATOMIC: &str = "r3 = 1
    lock *(u64 *)(r1 + 0) += r3
    w3 = atomic_fetch_or((u32 *)(r1 + 8), w3)
    r0 = cmpxchg_64(r1 + 16, r0, r3)
    exit";

#[test]
fn listings_are_as_blessed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listings");
    let mut wrong = Vec::new();
    for (name, features, text) in PROGRAMS {
        let program = program(text, &[]);
        let target = Target {
            features: *features,
            arguments: 2,
            in_place: IN_PLACE,
            helper: &|number| Some(0x8_0000 + u64::from(number) * 16),
            ..Target::new(0x10_0000)
        };
        let is = listing(&program, &compile(&program, &target).unwrap());
        let path = format!("{folder}/{name}.txt");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &is).unwrap();
        }
        let blessed = std::fs::read_to_string(&path).unwrap_or_default();
        if is != blessed {
            wrong.push(format!("{path} is\n{blessed}\nand should be\n{is}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
