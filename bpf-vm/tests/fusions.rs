// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the JIT makes one instruction of, run from its start and from its middle, by both engines.
mod support;

use a64::{Inst, Size};
use bpf_vm::jit::{Target, compile};
use support::{program, run_all};

/// Two halves of what is fused. r6 and r7 hold numbers, r1 is their address; if r8 is 1 the first half is jumped over, with r3 being
/// r6 and r4 and r5 being r7. The result is r0.
const HALVES: &[(&str, &str)] = &[
    ("r3 = r7", "r3 += r6\nr0 = r3"),
    ("r3 = r7\nr3 <<= 5", "r0 = r6\nr0 |= r3"),
    ("w3 = w7\nw3 >>= 7\nw4 = w6", "w4 <<= 25\nw3 |= w4\nr0 = r3"),
    ("r3 >>= 12", "r3 &= 255\nr0 = r3"),
    ("r3 <<= 48", "r3 s>>= 56\nr0 = r3"),
    ("w3 = w6", "r0 = r7\nr0 += r3"),
    ("r3 *= r7", "r0 = r6\nr0 -= r3"),
    ("w3 *= 12345", "w3 += 678901\nr0 = r3"),
    ("r4 = r3\nr4 /= r5\nr4 *= r5", "r3 -= r4\nr0 = r3"),
    ("r4 ^= -1", "r0 = r6\nr0 &= r4"),
    ("r3 = r7\nr3 += 1000", "r3 += 2000\nr0 = r3"),
    ("r3 = 0\nr4 = 5", "r3 += r4\nr0 = r3"),
    // Addresses.
    ("r3 = r1", "r2 = r1\nr0 = *(u64 *)(r2 + 8)\nr3 = 0"),
    (
        "r3 = 1",
        "r3 &= 1\nr3 <<= 3\nr4 = r1\nr4 += r3\nr0 = *(u64 *)(r4 + 0)",
    ),
    (
        "w3 = w6",
        "w3 &= 7\nw3 = w3\nr4 = r1\nr4 += r3\nr0 = *(u8 *)(r4 + 8)",
    ),
    (
        "r4 = r7",
        "r2 = r1\nr0 = *(u32 *)(r2 + 0)\nr2 += 4\nr3 = *(u32 *)(r2 + 0)\nr2 += 4\nr0 ^= r3\nr4 = *(u8 *)(r2 + 0)\nr0 += r4",
    ),
    (
        "r3 = r7",
        "*(u64 *)(r1 + 0) = r3\n*(u64 *)(r1 + 8) = r7\nr0 = 1",
    ),
    (
        "r3 = r7",
        "r0 = *(u64 *)(r1 + 0)\nr3 = *(u64 *)(r1 + 8)\nr0 ^= r3",
    ),
    ("r3 = *(u8 *)(r1 + 3)", "r3 = (s8)r3\nr0 = r3"),
    (
        "r3 = *(u16 *)(r1 + 3)",
        "*(u8 *)(r1 + 3) = 77\nr3 = (s16)r3\nr0 = r3",
    ),
    // Tests.
    ("r3 &= 64", "r0 = 1\nif r3 == 0 goto out\nr0 = 2"),
    ("r3 >>= 9", "r3 &= 1\nr0 = 1\nif r3 != 0 goto out\nr0 = 2"),
    (
        "r3 = *(u8 *)(r1 + 0)",
        "r3 &= 255\nr3 += -48\nr3 &= 255\nr0 = 1\nif r3 > 9 goto out\nr0 = 2",
    ),
    (
        "r3 = *(u8 *)(r1 + 0)\nw3 += -250",
        "w3 &= 255\nr0 = 1\nif w3 > 5 goto out\nr0 = 2",
    ),
    ("r3 <<= 3", "r0 = 1\nif r3 s> r7 goto out\nr0 = 2"),
    ("r3 = r7", "r0 = r6\nif r3 > 100 goto out\nr0 = 0"),
    ("r3 = r7", "r0 = 1\nif r3 s< -100 goto out\nr0 = -1"),
    ("r3 = 7", "r0 = r6\nif w3 == 7 goto out\nr0 = r7"),
    // A loop with its test at the top, and what only its end wants.
    (
        "r3 = 9",
        "r3 &= 15\nr0 = 0\ntop: r5 = r3\nif r3 == 0 goto out\nr0 += 1000003\nr4 = 5\nr0 *= r4\nr3 += -1\ngoto top",
    ),
];

const NUMBERS: &[u64] = &[
    0,
    1,
    48,
    57,
    0x3a,
    0xfa,
    0xff,
    0x1234_5678_9abc_def0,
    0xffff_ffff_8000_0000,
    1 << 63,
    u64::MAX,
];

#[test]
fn halves() {
    let mut wrong = Vec::new();
    for (first, second) in HALVES {
        let text = format!(
            "r6 = *(u64 *)(r1 + 0)\nr7 = *(u64 *)(r1 + 8)\nr8 = *(u64 *)(r1 + 16)\n\
             r3 = r6\nr4 = r7\nr5 = r7\nif r8 == 1 goto middle\n{first}\nmiddle: {second}\n\
             out: *(u64 *)(r1 + 24) = r3\nexit\n"
        );
        let program = program(&text, &[]);
        for a in NUMBERS {
            for b in NUMBERS {
                for jump in [0, 1] {
                    let memory: Vec<_> = [*a, *b, jump, 0]
                        .iter()
                        .flat_map(|n| n.to_le_bytes())
                        .collect();
                    if let Err(error) = run_all(&program, &memory, || (), Vec::new) {
                        wrong.push(format!(
                            "{first:?}, {second:?} of {a:#x}, {b:#x}, {jump}: {error}"
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}: {}", wrong.len(), wrong[0]);
}

/// Cortex-A53 erratum 835769: no 64-bit multiply-accumulate right after an access, if asked for.
#[test]
fn accesses_and_products_are_kept_apart() {
    let text = "r3 = *(u64 *)(r1 + 0)\nr4 = r2\nr4 *= r2\nr0 = r3\nr0 += r4\nexit";
    let program = program(text, &[]);
    let close = |erratum_835769| {
        let target = Target {
            erratum_835769,
            arguments: 2,
            ..Target::new(0x1000)
        };
        let code = compile(&program, &target).unwrap();
        let insts: Vec<_> = code.words.iter().map(|word| Inst::decode(*word)).collect();
        let pairs = insts.windows(2);
        pairs
            .filter(|pair| {
                matches!(pair[0], Some(Inst::LoadStore { .. }))
                    && matches!(pair[1], Some(Inst::MulAdd { size: Size::X, .. }))
            })
            .count()
    };
    assert_eq!(close(false), 1, "the program shows nothing");
    assert_eq!(close(true), 0);
}
