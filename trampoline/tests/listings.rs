// SPDX-License-Identifier: MIT OR Apache-2.0
//! Golden listings of images, and what they cost. `BLESS=1 cargo test` writes the files anew.

use std::fmt::Write;
use std::path::Path;
use trampoline::fakes::FakePlatform;
use trampoline::multi::{Program, Target};
use trampoline::registers::Words;
use trampoline::{
    ArgSpec, Callee, CallerIn, Engine, Guard, Ingredient, Kind, ProbeKind, Site, SiteTable, Spot,
};

const FUNCTION: u64 = 0xffff_ffff_8000_1000;
const POOL: u64 = 0xffff_ffff_8400_0000;
const PROGRAM: u64 = 0xffff_ffff_8000_2000;

fn engine() -> Engine<FakePlatform> {
    let platform = FakePlatform::new(POOL..POOL + 0x1000, &[FUNCTION]);
    let sites = SiteTable::new([Site {
        address: FUNCTION,
        notrace: false,
    }])
    .unwrap();
    Engine::new(platform, sites).unwrap()
}

fn callee(name: &str, address: u64, data: Option<u64>) -> Callee {
    Callee {
        address,
        data,
        name: name.into(),
        stack_bytes: 0,
        original_stack: 0,
        guard: Guard::None,
        state: 0,
        sleepable: false,
        keep: None,
    }
}

fn hooked(args: ArgSpec, programs: &[Callee]) -> Engine<FakePlatform> {
    let mut engine = engine();
    for program in programs {
        engine
            .attach(FUNCTION, args, Kind::Fentry, program.clone())
            .unwrap();
    }
    engine
}

fn listing(engine: &Engine<FakePlatform>) -> String {
    let mut text = String::new();
    let probes = engine.describe_probes(FUNCTION..FUNCTION + 0x100);
    for line in engine.describe(FUNCTION).chain(probes) {
        let caller = match engine.unwind(line.address) {
            Some(CallerIn::FrameRecord) => "record",
            Some(CallerIn::LinkRegister) => "x30",
            Some(CallerIn::Probed { .. }) => "probed",
            None => "",
        };
        let code = a64::display_word(line.word, line.address).to_string();
        let (address, ingredient, note) = (line.address, line.ingredient, line.note);
        let row = format!("{address:x}  {ingredient:8} {caller:7} {code:38} {note}");
        writeln!(text, "{}", row.trim_end()).unwrap();
    }
    text
}

fn compare(name: &str, engine: &Engine<FakePlatform>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/listings")
        .join(name);
    let text = listing(engine);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == text,
        "{name} is now:\n{text}\nit was:\n{golden}\nBLESS=1 accepts it"
    );
}

#[test]
fn nothing_known_about_the_function() {
    compare(
        "unknown.txt",
        &hooked(ArgSpec::UNKNOWN, &[callee("empty", PROGRAM, None)]),
    );
}

#[test]
fn two_programs_with_data_near_and_far() {
    let programs = [
        callee("near", PROGRAM, Some(POOL + 0x20_0010)),
        callee("far", PROGRAM + 0x100, Some(0xffff_0000_1234_5678)),
    ];
    compare("two_programs.txt", &hooked(ArgSpec::UNKNOWN, &programs));
}

#[test]
fn typed_arguments_only() {
    for registers in 0..=3 {
        let args = ArgSpec::new(registers, registers == 3).unwrap();
        let engine = hooked(args, &[callee("typed", PROGRAM, None)]);
        compare(&format!("typed_{registers}.txt"), &engine);
    }
}

/// Each kind by itself with a guard of its own, and all of them with several programs; two arguments.
#[test]
fn kinds_and_guards() {
    let args = ArgSpec::new(2, false).unwrap();
    let guarded = |name: &str, number: u64| Callee {
        guard: Guard::Word,
        state: 0xffff_ffff_9000_0000 + 0x40 * number,
        ..callee(name, PROGRAM + 0x100 * number, None)
    };
    let kinds = [Kind::Fentry, Kind::FmodRet, Kind::Fexit, Kind::Fsession];
    for kind in kinds.into_iter().chain([Kind::Freplace]) {
        let mut engine = engine();
        engine
            .attach(FUNCTION, args, kind, guarded("one", 0))
            .unwrap();
        compare(&format!("{kind}.txt"), &engine);
    }
    let mut engine = engine();
    for (number, kind) in (0..).zip(kinds.into_iter().chain(kinds)) {
        let name = format!("{kind}{}", number / 4 + 1);
        engine
            .attach(FUNCTION, args, kind, guarded(&name, number))
            .unwrap();
    }
    compare("all_kinds.txt", &engine);
    let mut engine = self::engine();
    for (name, guard, sleepable) in [
        ("pinned", Guard::Pinned, false),
        ("sleepable", Guard::Pinned, true),
        (
            "called",
            Guard::Call {
                enter: PROGRAM + 0x800,
                exit: PROGRAM + 0x900,
            },
            false,
        ),
    ] {
        let callee = Callee {
            guard,
            sleepable,
            ..guarded(name, 1)
        };
        engine.attach(FUNCTION, args, Kind::Fentry, callee).unwrap();
    }
    compare("other_guards.txt", &engine);
}

/// At the entry by the site, with a program of the return; and in the middle, displacing a branch, by two programs.
#[test]
fn probes() {
    let guarded = |name: &str, number: u64| Callee {
        guard: Guard::Word,
        state: 0xffff_ffff_9000_0000 + 0x40 * number,
        ..callee(name, PROGRAM + 0x100 * number, None)
    };
    let function = FUNCTION..FUNCTION + 0x10;
    let spot = |at| Spot {
        at,
        function: function.clone(),
    };
    let mut engine = engine();
    for (kind, name) in [(ProbeKind::Here, "here"), (ProbeKind::Return, "return")] {
        let callee = guarded(name, 0);
        engine.probe(&spot(FUNCTION), kind, callee).unwrap();
    }
    compare("probe_entry.txt", &engine);

    let mut engine = self::engine();
    let middle = FUNCTION + 12;
    let branch = a64::ops::cbnz(a64::Size::X, a64::reg::X3).with_offset(-4);
    engine.platform().set(middle, branch.unwrap().encode());
    for number in 0..2 {
        let callee = guarded("middle", number);
        engine
            .probe(&spot(middle), ProbeKind::Here, callee)
            .unwrap();
    }
    compare("probe_middle.txt", &engine);
}

#[test]
fn not_hooked() {
    compare("not_hooked.txt", &engine());
}

/// A native program that does nothing is `mov w0, #0; ret`, two instructions.
#[test]
fn an_empty_hook_costs_at_most_twenty_instructions() {
    const PROGRAM_INSTRUCTIONS: usize = 2;
    let engine = hooked(ArgSpec::UNKNOWN, &[callee("empty", PROGRAM, None)]);
    let image = engine
        .describe(FUNCTION)
        .filter(|l| l.ingredient != Ingredient::Site)
        .count();
    // The image is straight-line code; the branch at the site takes the place of its two NOPs.
    let cost = image + PROGRAM_INSTRUCTIONS + 1 - 2;
    assert!(cost <= 20, "{cost} instructions");
    println!("an empty native hook with all registers saved: {cost} instructions");
}

#[test]
fn many() {
    for (exit, programs, name) in [
        (false, 1, "multi_entry.txt"),
        (false, 2, "multi_entry_two.txt"),
        (true, 1, "multi_exit.txt"),
    ] {
        let mut engine = engine();
        let callee = Callee {
            guard: Guard::Word,
            state: 0xffff_ffff_9000_0000,
            ..callee("many", PROGRAM, Some(0))
        };
        let target = Target {
            function: FUNCTION,
            data: [1, 2, 3],
        };
        let program = Program {
            exit,
            callee,
            reads: Words::of(1 << 9 | 1 << 29 | 1 << 30 | 1 << 31 | 1 << 32 | 1 << 33),
        };
        for number in 0..programs {
            let mut program = program.clone();
            program.callee.name = ["many", "more"][number].into();
            engine.attach_multi(&[target], program, |_| false).unwrap();
        }
        compare(name, &engine);
    }
}
