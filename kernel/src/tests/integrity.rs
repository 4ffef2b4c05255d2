// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is hooked shows: marks in reports, and the text against what was linked.

use super::tasks::spawn;
use super::{Failure, Outcome, Test};
use crate::hook::{self, Native};
use crate::workload::workload_call;
use crate::{check, hooked, sched, symbols};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "integrity.marks_name_what_is_hooked",
        seconds: 20,
        run: marks,
    },
    Test {
        name: "integrity.texts_are_shared_and_reused",
        seconds: 20,
        run: texts,
    },
    Test {
        name: "integrity.readers_see_whole_texts",
        seconds: 60,
        run: whole_texts,
    },
];

fn failed(e: &dyn core::fmt::Display) -> Failure {
    Failure::Failed(e.to_string())
}

/// An address inside a function that no other test hooks meanwhile.
fn inside() -> u64 {
    workload_call as *const () as u64 + 8
}

fn mark_of(address: u64) -> Option<String> {
    hooked::of(address).map(|mark| mark.to_string())
}

fn marks() -> Outcome {
    let name = || format!("{}", symbols::Name(inside() as usize));
    check!(name() == "workload_call+0x8", "{} before", name());
    let function = hook::resolve("workload_call").map_err(|e| failed(&e))?;
    let first = hook::attach_native(&function, Native::Count).map_err(|e| failed(&e))?;
    let second = hook::attach_native(&function, Native::Empty).map_err(|e| failed(&e))?;
    let both = "workload_call+0x8 [hooked: fentry count, fentry empty]";
    check!(name() == both, "{} with two hooks", name());
    let listed: Vec<_> = hooked::all().map(|(name, _)| name).collect();
    check!(listed == ["workload_call"], "{listed:?} are hooked");
    hook::detach(first).map_err(|e| failed(&e))?;
    let one = "workload_call+0x8 [hooked: fentry empty]";
    check!(name() == one, "{} with one hook", name());
    hook::detach(second).map_err(|e| failed(&e))?;
    check!(name() == "workload_call+0x8", "{} after", name());
    Ok(())
}

fn texts() -> Outcome {
    check!(
        !hooked::set(0, "x") && hooked::of(0).is_none(),
        "address 0 is no function"
    );
    // Cut, and at a character.
    hooked::set(inside(), &"é".repeat(hooked::LONGEST));
    let cut = mark_of(inside());
    check!(
        cut == Some("é".repeat(hooked::LONGEST / 2)),
        "a long text became {cut:?}"
    );
    let by = (0..20).map(|_| ("fexit", "a_program_of_a_name_that_is_longer_than_31_bytes"));
    hooked::update(inside(), by);
    let several = mark_of(inside()).unwrap_or_default();
    check!(
        several == "fexit a_program_of_a_name_that_is_lon, ...",
        "twenty programs became {several:?}"
    );
    hooked::clear(inside());
    // More texts than a block has, each its own; twice, so that texts are used again.
    let blob = symbols::blob().ok_or_else(|| Failure::Failed("no symbols".into()))?;
    for round in 0..2 {
        let text = |index: usize| format!("text {round} {index}");
        for (index, site) in blob.sites().take(200).enumerate() {
            check!(hooked::set(site, &text(index)), "{site:#x} is no function");
        }
        for (index, site) in blob.sites().take(200).enumerate() {
            let found = mark_of(site);
            check!(
                found == Some(text(index)),
                "{found:?} for {:?}",
                text(index)
            );
        }
        blob.sites().take(200).for_each(|site| {
            hooked::clear(site);
        });
        check!(hooked::all().count() == 0, "something is hooked still");
    }
    Ok(())
}

fn whole_texts() -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let reader = spawn("reader", move || {
        let (mut reads, mut torn) = (0u64, None);
        while !seen.load(Ordering::Relaxed) {
            if let Some(text) = mark_of(inside()) {
                let first = text.bytes().next();
                if text.len() != 40 || text.bytes().any(|b| Some(b) != first) {
                    torn = Some(text).filter(|t| !t.starts_with("by more")).or(torn);
                }
                reads += 1;
            }
        }
        (reads, torn)
    })?;
    for round in 0..20_000 {
        let text = if round % 2 == 0 { "a" } else { "b" };
        hooked::set(inside(), &text.repeat(40));
        if round % 1000 == 0 {
            sched::yield_now();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (reads, torn) = reader.join();
    hooked::clear(inside());
    check!(torn.is_none(), "a mixed text: {torn:?}");
    check!(reads > 0, "the reader never ran");
    Ok(())
}
