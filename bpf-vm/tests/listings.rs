// SPDX-License-Identifier: MIT OR Apache-2.0
//! The JIT's code for a few programs is the one in `listings/`, word for word. `BLESS=1` writes the files anew.
mod support;

use bpf_vm::jit::{Features, Target, compile, listing};
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
