// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dynptrs: a ring buffer's records of a size that is known when the program runs, and maps' values, by every engine; and
//! what the interpreter makes of dynptrs that a program forged or damaged.
mod support;

use std::sync::Arc;

use bpf_vm::{
    interp::FaultKind,
    map::{HeapMemory, Map, MapDefinition, MapKind},
};
use support::{Buffer, array, host, interpret, program, run_all};

fn ring() -> Arc<Map> {
    let definition = MapDefinition {
        name: "ring".into(),
        kind: MapKind::RINGBUF,
        key_size: 0,
        value_size: 0,
        max_entries: 4096,
        flags: 0,
    };
    Map::create(definition, &HeapMemory::with_limit(1 << 16)).unwrap()
}

/// The records that are there for the reader: the length of each in one byte, and its bytes. Then what is under way.
fn records(ring: &Map) -> Vec<u8> {
    let (mut all, ring) = (Vec::new(), ring.ring_buffer().unwrap());
    ring.drain(|record| {
        let mut bytes = vec![0; record.len()];
        record.copy_to(&mut bytes);
        all.push(bytes.len() as u8);
        all.extend(bytes);
    });
    all.extend(ring.query(0).to_le_bytes());
    all
}

/// `call` with the dynptr at r10 - 16, after reserving a record of 12 bytes through it. r6 is the context.
const RESERVE: &str = "r6 = r1
    r1 = map[0]
    r2 = 12
    r3 = 0
    r4 = r10
    r4 += -16
    call 198
    if r0 != 0 goto out
    ";
/// Submits it.
const SUBMIT: &str = "r1 = r10
    r1 += -16
    r2 = 0
    call 199
    ";

/// Runs by every engine with an empty ring buffer and an array of one value of 16 bytes: r0, and the records.
fn run(text: &str) -> (i64, Vec<u8>) {
    host::register();
    let maps = [ring(), array(16, 1)];
    let program = program(text, &maps);
    let zero = || {
        let any = bpf_vm::map::UpdateFlags::Any;
        maps[1].update(&[0; 4], &[0; 16], any).unwrap();
        records(&maps[0]);
    };
    let state = || {
        let mut value = vec![0; 16];
        maps[1].lookup(&[0; 4], &mut value).unwrap();
        [records(&maps[0]), value].concat()
    };
    let (outcome, _) =
        run_all(&program, &[], zero, state).unwrap_or_else(|e| panic!("{e}\n{text}"));
    // The interpreter once more, for what it left.
    zero();
    let again = interpret(&program, &Buffer::new(&[])).unwrap();
    assert_eq!(again.r0, outcome.r0);
    (outcome.r0 as i64, state())
}

/// The records, none under way, and the array's value.
fn left(records: &[&[u8]], value: [u8; 16]) -> Vec<u8> {
    let mut all = Vec::new();
    for record in records {
        all.push(record.len() as u8);
        all.extend(*record);
    }
    all.extend([0; 8]);
    all.extend(value);
    all
}

#[test]
fn a_record_is_written_read_and_submitted_through_a_dynptr() {
    // Written at 4 from the stack, then directly at 0; read back at 2.
    let text = format!(
        "{RESERVE}r1 = 0x1122334455667788 ll
        *(u64 *)(r10 - 24) = r1
        r1 = r10
        r1 += -16
        r2 = 4
        r3 = r10
        r3 += -24
        r4 = 8
        r5 = 0
        call 202
        if r0 != 0 goto out
        r1 = r10
        r1 += -16
        r2 = 0
        r3 = 4
        call 203
        if r0 == 0 goto out
        *(u32 *)(r0 + 0) = 0x0d0c0b0a
        r1 = r10
        r1 += -32
        r2 = 8
        r3 = r10
        r3 += -16
        r4 = 2
        r5 = 0
        call 201
        r7 = *(u64 *)(r10 - 32)
        if r0 != 0 goto out
        {SUBMIT}r0 = r7
        out: exit"
    );
    let (r0, after) = run(&text);
    assert_eq!(r0 as u64, 0x3344_5566_7788_0d0c);
    let record = [
        10, 11, 12, 13, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
    ];
    assert_eq!(after, left(&[&record], [0; 16]));
}

#[test]
fn a_record_is_discarded_through_a_dynptr() {
    let text = format!("{RESERVE}r1 = r10\nr1 += -16\nr2 = 0\ncall 200\nr0 = 7\nout: exit");
    assert_eq!(run(&text), (7, left(&[], [0; 16])));
}

/// A dynptr that is ended, or was never reserved, is null: its helpers say so, and ending it again does nothing.
#[test]
fn a_null_dynptr_is_no_dynptr() {
    let reserve = |size: u64, flags: u64| {
        let twelve = format!("r2 = {size}\n    r3 = {flags}");
        RESERVE
            .replace("r2 = 12\n    r3 = 0", &twelve)
            .replace("if r0 != 0 goto out", "r9 = r0")
    };
    let read = "r1 = r10\nr1 += -32\nr2 = 0\nr3 = r10\nr3 += -16\nr4 = 0\nr5 = 0\ncall 201\n";
    let write = "r1 = r10\nr1 += -16\nr2 = 0\nr3 = r10\nr4 = 0\nr5 = 0\ncall 202\n";
    let data = "r1 = r10\nr1 += -16\nr2 = 0\nr3 = 0\ncall 203\n";
    let discard = SUBMIT.replace("call 199", "call 200");
    let (flags, large, full) = (reserve(12, 1), reserve(1 << 24, 0), reserve(4096, 0));
    let submitted = format!("{}{SUBMIT}", reserve(12, 0));
    for (before, reserved, records) in [
        (flags.as_str(), -22, &[][..]),
        (&large, -7, &[]),
        (&full, -22, &[]),
        (&submitted, 0, &[&[0; 12][..]]),
    ] {
        for (call, want) in [(read, -22), (write, -22), (data, 0)] {
            let text = format!("{before}{call}r8 = r0\n{SUBMIT}{discard}r0 = r8\nexit");
            let (r0, after) = run(&text);
            assert_eq!(r0, want, "{text}");
            assert_eq!(after.len(), left(records, [0; 16]).len(), "{text}");
        }
        let text = format!("{before}{SUBMIT}r0 = r9\nexit");
        assert_eq!(run(&text).0, reserved, "{text}");
    }
}

#[test]
fn what_lies_past_the_end_is_too_big() {
    for (offset, len, flags, copied, data) in [
        (0, 12, 0, 0, true),
        (12, 0, 0, 0, true),
        (4, 8, 0, 0, true),
        (5, 8, 0, -7, false),
        (13, 0, 0, -7, false),
        (-1, 8, 0, -7, false),
        (0, 13, 0, -7, false),
        (0, 8, 1, -22, true),
    ] {
        let at = format!("r2 = {offset}\nw2 = w2\n");
        let calls = [
            format!(
                "r1 = r10\nr1 += -48\nr2 = {len}\nr3 = r10\nr3 += -16\nr4 = {offset}\nr5 = {flags}\ncall 201\n"
            ),
            format!(
                "r1 = r10\nr1 += -16\n{at}r3 = r10\nr3 += -48\nr4 = {len}\nr5 = {flags}\ncall 202\n"
            ),
            format!("r1 = r10\nr1 += -16\n{at}r3 = {len}\ncall 203\nr0 = r0 != 0\n"),
        ];
        for (call, want) in calls.iter().zip([copied, copied, data.into()]) {
            let call = call.replace("r0 = r0 != 0", "if r0 == 0 goto end\nr0 = 1\nend:");
            let text = format!(
                "{RESERVE}*(u64 *)(r10 - 48) = 0\n*(u64 *)(r10 - 40) = 0\n{call}r8 = r0\n{SUBMIT}r0 = r8\nout: exit"
            );
            let (r0, after) = run(&text);
            assert_eq!(r0, want, "{offset} {len} {flags}\n{text}");
            assert_eq!(after, left(&[&[0; 12]], [0; 16]), "{text}");
        }
    }
    // Both at once: past the end comes first in a write, as in Linux.
    let text = format!(
        "{RESERVE}r1 = r10\nr1 += -16\nr2 = 13\nr3 = r10\nr4 = 0\nr5 = 1\ncall 202\nr8 = r0\n{SUBMIT}r0 = r8\nout: exit"
    );
    assert_eq!(run(&text).0, -7);
}

/// A value's bytes, moved within it both ways.
#[test]
fn a_maps_value_is_reached_through_a_dynptr() {
    let from_mem = |size: u64, flags: u64| {
        format!("r1 = map[1][0]+0\nr2 = {size}\nr3 = {flags}\nr4 = r10\nr4 += -16\ncall 197\n")
    };
    let fill = "r1 = map[1][0]+0\nr2 = 0x0706050403020100 ll\n*(u64 *)(r1 + 0) = r2
        r2 = 0x0f0e0d0c0b0a0908 ll\n*(u64 *)(r1 + 8) = r2\n";
    let start: [u8; 16] = std::array::from_fn(|index| index as u8);
    for (from, to, len) in [
        (0, 3, 13),
        (3, 0, 13),
        (1, 9, 7),
        (5, 5, 11),
        (0, 8, 8),
        (2, 1, 14),
    ] {
        let write = format!(
            "{fill}{}if r0 != 0 goto out\nr1 = r10\nr1 += -16\nr2 = {to}\nr3 = map[1][0]+{from}\nr4 = {len}\nr5 = 0\ncall 202\nout: exit",
            from_mem(16, 0)
        );
        let read = format!(
            "{fill}{}if r0 != 0 goto out\nr1 = map[1][0]+{to}\nr2 = {len}\nr3 = r10\nr3 += -16\nr4 = {from}\nr5 = 0\ncall 201\nout: exit",
            from_mem(16, 0)
        );
        let mut want = start;
        want.copy_within(from..from + len, to);
        for text in [write, read] {
            assert_eq!(
                run(&text),
                (0, left(&[], want)),
                "{from} {to} {len}\n{text}"
            );
        }
    }
    assert_eq!(run(&format!("{}exit", from_mem(16, 1))).0, -22);
    // Its first four bytes and no more.
    let data = |offset, len| {
        format!(
            "{}r1 = r10\nr1 += -16\nr2 = {offset}\nr3 = {len}\ncall 203\nif r0 == 0 goto out\n*(u8 *)(r0 + 0) = 9\nr0 = 1\nout: exit",
            from_mem(4, 0)
        )
    };
    let mut value = [0; 16];
    value[3] = 9;
    assert_eq!(run(&data(3, 1)), (1, left(&[], value)));
    assert_eq!(run(&data(3, 2)), (0, left(&[], [0; 16])));
}

/// The interpreter ends the run of a program that damages a dynptr or makes one up.
#[test]
fn a_forged_dynptr_is_refused() {
    host::register();
    let maps = [ring(), array(16, 1)];
    let value = maps[1].value_address(0).unwrap();
    let refused = |text: &str, number: usize| {
        let done = interpret(&program(text, &maps), &Buffer::new(&[0; 32]));
        let kind = done.expect_err(text).kind;
        assert!(
            matches!(kind, FaultKind::Argument { number: is, .. } if is == number),
            "{kind:?}\n{text}"
        );
    };
    let at = "r1 = r10\nr1 += -16\nr2 = 0\n";
    let damages = [
        // Another address, another size, another kind; the value of a map as a record.
        "r1 = *(u64 *)(r10 - 16)\nr1 += 8\n*(u64 *)(r10 - 16) = r1\n",
        "r1 = *(u64 *)(r10 - 8)\nr1 += 8\n*(u64 *)(r10 - 8) = r1\n",
        "r1 = *(u64 *)(r10 - 8)\nr1 += 1\n*(u64 *)(r10 - 8) = r1\n",
        "*(u64 *)(r10 - 16) = 0\n",
        "*(u64 *)(r10 - 16) = 4096\n",
        "*(u64 *)(r10 - 8) = 0\n",
        "r1 = 0xffffffffffffffff ll\n*(u64 *)(r10 - 8) = r1\n",
        "r1 = map[1][0]+0\n*(u64 *)(r10 - 16) = r1\n",
        "r1 = r10\nr1 += -64\n*(u64 *)(r10 - 16) = r1\n",
    ];
    for damage in damages {
        for call in [
            format!("{at}call 199\n"),
            format!("{at}call 200\n"),
            format!("{at}r3 = r10\nr3 += -64\nr4 = 0\nr5 = 0\ncall 202\n"),
            format!("{at}r3 = 4\ncall 203\n"),
        ] {
            refused(&format!("{RESERVE}{damage}{call}out: exit"), 1);
        }
        let read = "r1 = r10\nr1 += -64\nr2 = 4\nr3 = r10\nr3 += -16\nr4 = 0\nr5 = 0\ncall 201\n";
        refused(&format!("{RESERVE}{damage}{read}out: exit"), 3);
    }
    // A value's dynptr is no record's; made up, it names only what is a map's value.
    let made = |address: u64, size: u64| {
        let size = size | 1 << 28;
        format!(
            "r1 = {address:#x} ll\n*(u64 *)(r10 - 16) = r1\nr1 = {size:#x} ll\n*(u64 *)(r10 - 8) = r1\n"
        )
    };
    refused(&format!("{}{at}call 199\nexit", made(value, 16)), 1);
    for (address, size) in [(value + 8, 16), (value - 8, 16), (8, 8), (u64::MAX, 8)] {
        refused(
            &format!("{}{at}r3 = 4\ncall 203\nexit", made(address, size)),
            1,
        );
    }
    // A copy that outlives the record.
    let copied = format!(
        "{RESERVE}r1 = *(u64 *)(r10 - 16)\n*(u64 *)(r10 - 32) = r1\nr1 = *(u64 *)(r10 - 8)\n*(u64 *)(r10 - 24) = r1\n{SUBMIT}"
    );
    for call in ["call 199\n", "r3 = 4\ncall 203\n"] {
        let text = format!("{copied}r1 = r10\nr1 += -32\nr2 = 0\n{call}out: exit");
        refused(&text, 1);
    }
    // Not on the stack, not aligned, not all of it; no memory of a value's.
    for place in [
        "r4 = map[1][0]+0",
        "r4 = r6",
        "r4 = r10\nr4 += -12",
        "r4 = r10\nr4 += -8",
    ] {
        let text = RESERVE.replace("r4 = r10\n    r4 += -16", place);
        refused(&format!("{text}out: exit"), 4);
    }
    let from = |memory: &str| {
        format!("r6 = r1\n{memory}\nr2 = 8\nr3 = 0\nr4 = r10\nr4 += -16\ncall 197\nexit")
    };
    for memory in [
        "r1 = r10\nr1 += -64",
        "r1 = r6",
        "r1 = map[1][0]+12",
        "r1 = 0",
    ] {
        refused(&from(memory), 1);
    }
}
