// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Linux way: golden listings of its code, what it costs, and the order in which a site is changed. `BLESS=1` writes the listings.

use std::fmt::Write;
use std::path::Path;
use trampoline::fakes::{Call, FakePlatform};
use trampoline::linux::caller::{Caller, Find, WORDS_AT_MOST};
use trampoline::linux::filter::Filter;
use trampoline::linux::image::{Attached, Built, Description, Users};
use trampoline::linux::{Listing, fprobe, site};
use trampoline::{ArgSpec, Callee, Guard, Ingredient, Kind, Platform, PlatformError, Reason};

const FUNCTION: u64 = 0xffff_ffff_8000_1000;
const POOL: u64 = 0xffff_ffff_8400_0000;
const CODE: u64 = POOL + 0x10;
const HOST: u64 = 0xffff_ffff_8000_2000;
const HEAP: u64 = 0xffff_ff80_4123_4560;

fn listing(words: &[u32], base: u64, listing: &Listing) -> String {
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        let address = base + 4 * index as u64;
        let record = &listing.record;
        let caller = match index >= record.before && !record.gone.contains(&index) {
            true => "record",
            false => "x30",
        };
        let ingredient = listing.span(index).unwrap().ingredient;
        let code = a64::display_word(*word, address).to_string();
        let row = format!("{address:x}  {ingredient:8} {caller:7} {code}");
        writeln!(text, "{}", row.trim_end()).unwrap();
    }
    text
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/listings")
        .join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == text,
        "{name} is now:\n{text}\nit was:\n{golden}\nBLESS=1 accepts it"
    );
}

#[test]
fn shared_callers() {
    let finds = [("list", Find::Global(HOST)), ("callops", Find::Callsite)];
    for (name, find) in finds {
        for all in [false, true] {
            let mut words = [0; WORDS_AT_MOST];
            let (len, what) = Caller { find, all }.generate(&mut words, CODE).unwrap();
            let registers = if all { "all" } else { "arguments" };
            let text = listing(&words[..len], CODE, &what);
            compare(&format!("linux_{name}_{registers}.txt"), &text);
        }
    }
}

#[test]
fn the_return_trampoline() {
    let mut words = [0; fprobe::WORDS_AT_MOST];
    let (len, what) = fprobe::return_trampoline(HOST, &mut words, CODE).unwrap();
    compare("linux_return.txt", &listing(&words[..len], CODE, &what));
}

fn program(kind: Kind) -> Attached {
    let callee = Callee {
        address: HOST + 0x300,
        data: None,
        name: "empty".into(),
        stack_bytes: 0,
        original_stack: 0,
        guard: Guard::Call {
            enter: HOST,
            exit: HOST + 0x100,
        },
        state: HEAP,
        sleepable: false,
        keep: None,
    };
    (kind, callee, 0)
}

fn build(args: ArgSpec, programs: &[Attached]) -> (Vec<u32>, Built) {
    let users = Users {
        enter: HOST + 0x400,
        exit: HOST + 0x500,
        of: HEAP + 0x100,
    };
    let description = Description {
        args,
        programs,
        users,
    };
    let mut words = vec![0; description.words_at_most()];
    let built = description.generate(&mut words, CODE).unwrap();
    words.truncate(built.words);
    (words, built)
}

/// Instructions of the trampoline itself, as Linux's have been counted: 32 + 2N, 45 + 2N, 49 + 2N with N arguments in registers. A
/// trampoline is straight, so its length is what a hit executes.
#[test]
fn a_trampoline_costs_what_linux_s_does() {
    for (kind, base) in [(Kind::Fentry, 32), (Kind::Fexit, 45), (Kind::FmodRet, 49)] {
        for registers in 0..=8 {
            let args = ArgSpec::new(registers, false).unwrap();
            let (words, _) = build(args, &[program(kind)]);
            let expected = base + 2 * usize::from(registers);
            assert_eq!(words.len(), expected, "{kind} with {registers} arguments");
        }
    }
}

#[test]
fn trampolines() {
    let two = ArgSpec::new(2, false).unwrap();
    for kind in [Kind::Fentry, Kind::Fexit, Kind::FmodRet] {
        let (words, built) = build(two, &[program(kind)]);
        let text = listing(&words, CODE, &built.listing);
        compare(&format!("linux_{kind}.txt"), &text);
    }
    let many = ArgSpec::new(8, true).unwrap().with_stack(3).unwrap();
    let programs = [Kind::Fexit, Kind::Fentry, Kind::FmodRet].map(program);
    let (words, built) = build(many, &programs);
    compare(
        "linux_all_kinds.txt",
        &listing(&words, CODE, &built.listing),
    );
    let (at, end) = built.bypass.unwrap();
    assert_eq!(words[at], a64::ops::nop().encode());
    let to = &built.listing.span(end).unwrap();
    assert_eq!(
        to.ingredient,
        Ingredient::Guard,
        "whom it tells that it is over"
    );
}

#[test]
fn a_site_changes_there_and_back_in_this_order() {
    let platform = FakePlatform::new(POOL..POOL + 0x1000, &[FUNCTION]);
    let mov = site::first_word();
    assert_eq!(a64::display_word(mov, FUNCTION).to_string(), "mov x9, x30");
    let nop = a64::ops::nop().encode();
    let bl = site::second_word(FUNCTION, Some(CODE)).unwrap();
    assert_eq!(a64::branch_target(bl, FUNCTION + 4), Some(CODE));
    site::prepare(&platform, FUNCTION).unwrap();
    assert!(site::prepare(&platform, FUNCTION).is_err(), "it is already");
    site::lead(&platform, FUNCTION, None, Some(CODE)).unwrap();
    site::lead(&platform, FUNCTION, Some(CODE), None).unwrap();
    site::restore(&platform, FUNCTION).unwrap();
    assert_eq!(
        platform.take_calls(),
        [
            Call::Replace(FUNCTION, nop, mov),
            Call::Replace(FUNCTION, nop, mov),
            Call::Patch(FUNCTION + 4, nop, bl),
            Call::Sync,
            Call::Patch(FUNCTION + 4, bl, nop),
            Call::Sync,
            Call::Replace(FUNCTION, mov, nop),
        ]
    );
    let far = site::lead(&platform, FUNCTION, None, Some(FUNCTION + (1 << 30)));
    assert!(matches!(far, Err(Reason::Code(_))), "{far:?}");
    let stuck = site::restore(&platform, FUNCTION);
    assert!(matches!(
        stuck,
        Err(Reason::Platform(PlatformError::Mismatch { .. }))
    ));
    assert_eq!(platform.read(FUNCTION), Some(nop), "as it was");
}

#[test]
fn the_word_before_a_function_leads_to_its_op() {
    for distance in [-0x7000_0000i64, -16, 16, 0x7000_0000] {
        let op = (FUNCTION + 8).wrapping_add_signed(distance);
        let word = site::op_word(FUNCTION, op).unwrap();
        let back = (FUNCTION + 8).wrapping_add_signed(i64::from(word as i32));
        assert_eq!(back, op);
    }
    assert_eq!(site::op_word(FUNCTION, FUNCTION - (1 << 32)), None);
}

#[test]
fn a_filter_holds_what_it_was_made_of_and_nothing_else() {
    for count in [0, 1, 2, 3, 100, 5000] {
        let functions: Vec<u64> = (0..count).map(|n| FUNCTION + 36 * n).collect();
        let filter = Filter::new(&functions);
        assert!(functions.iter().all(|f| filter.contains(*f)));
        assert!(functions.iter().all(|f| !filter.contains(*f + 4)));
        assert_eq!(filter.functions().count() as u64, count);
    }
}
