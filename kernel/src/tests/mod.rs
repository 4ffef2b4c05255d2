// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests that run in the kernel, on whatever board it booted.
//!
//! Each prints what a program can read: `@test start NAME`, then `@test ok NAME`, `@test fail NAME: why` or
//! `@test skip NAME: why`. A panic or a fault ends the run with its report, and a test that takes longer than its limit
//! in emulated time panics: `cargo xtask test` then counts that one as failed and goes on behind it.

mod above;
mod bpf;
mod deepest;
mod grace;
mod helpers;
mod hooks;
mod integrity;
mod interrupts;
mod kinds;
mod linux;
mod linux_failures;
mod linux_returns;
mod memory;
mod multi;
mod overflow;
mod own_helper;
mod probes;
mod recursion;
mod rendezvous;
mod replace;
mod sleepers;
mod slow;
mod stress;
mod suite;
mod tasks;

use crate::arch::lock::SpinLock;
use crate::arch::timer;
use crate::command_line::Options;
use crate::mm::stack;
use crate::println;
use alloc::string::{String, ToString};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// How a test ended, unless it passed.
pub(crate) enum Failure {
    /// What was expected and what was found.
    Failed(String),
    /// Why it can't be run here.
    Skipped(String),
}

/// What a test returns.
pub(crate) type Outcome = Result<(), Failure>;

/// The failure that an error is.
fn failed(e: &dyn fmt::Display) -> Failure {
    Failure::Failed(e.to_string())
}

/// A test.
pub(crate) struct Test {
    /// `room.what_holds`.
    pub name: &'static str,
    /// Its limit in seconds of emulated time.
    pub seconds: u64,
    /// The test.
    pub run: fn() -> Outcome,
}

const TESTS: &[&[Test]] = &[
    memory::TESTS,
    interrupts::TESTS,
    rendezvous::TESTS,
    tasks::TESTS,
    overflow::TESTS,
    grace::TESTS,
    hooks::TESTS,
    kinds::TESTS,
    linux::TESTS,
    linux_returns::TESTS,
    linux_failures::TESTS,
    multi::TESTS,
    probes::TESTS,
    replace::TESTS,
    integrity::TESTS,
    bpf::TESTS,
    helpers::TESTS,
    stress::TESTS,
    slow::TESTS,
    recursion::TESTS,
    own_helper::TESTS,
    suite::TESTS,
    deepest::TESTS,
];

/// Fails the test unless the condition holds; the rest is the message, as for `format!`.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err($crate::tests::Failure::Failed(alloc::format!($($message)*)));
        }
    };
}

/// When the running test has to be over, in nanoseconds; 0 for no limit.
static DEADLINE: AtomicU64 = AtomicU64::new(0);
static RUNNING: SpinLock<&'static str> = SpinLock::new("");

/// Called by each tick: a test that hangs fails here.
pub(crate) fn watch() {
    let deadline = DEADLINE.load(Ordering::Relaxed);
    if deadline != 0 && timer::now_ns() > deadline {
        DEADLINE.store(0, Ordering::Relaxed);
        panic!("the test {} took longer than its limit", *RUNNING.lock());
    }
}

/// Runs what the command line asks for; the exit code is 1 if one failed.
pub(crate) fn run(options: &Options<'_>) -> u32 {
    let mut passed = 0;
    let mut failed = 0;
    let mut skipped = 0;
    let mut begun = options.from.is_none();
    let mut found = false;
    let is_in = |test: &&Test| {
        let room = test.name.split('.').next();
        options
            .rooms
            .is_none_or(|rooms| rooms.split(',').any(|r| Some(r) == room))
    };
    for test in TESTS.iter().flat_map(|t| t.iter()).filter(is_in) {
        if options.from == Some(test.name) {
            begun = true;
        }
        if !begun || options.test.is_some_and(|t| t != test.name) {
            continue;
        }
        found = true;
        if options.list {
            println!("@test list {}", test.name);
            continue;
        }
        println!("@test start {}", test.name);
        *RUNNING.lock() = test.name;
        DEADLINE.store(
            timer::now_ns() + test.seconds * 1_000_000_000,
            Ordering::Relaxed,
        );
        // What earlier tests left on this stack must not lie in frames that wait for code to be freed.
        stack::scrub();
        let outcome = (test.run)();
        DEADLINE.store(0, Ordering::Relaxed);
        match outcome {
            Ok(()) => {
                println!("@test ok {}", test.name);
                passed += 1;
            }
            Err(Failure::Skipped(why)) => {
                println!("@test skip {}: {why}", test.name);
                skipped += 1;
            }
            Err(Failure::Failed(why)) => {
                println!("@test fail {}: {why}", test.name);
                failed += 1;
            }
        }
    }
    if !found {
        println!(
            "springboard: no test is called {:?}; `job=test list` names them",
            options.test.or(options.from)
        );
        return 2;
    }
    if !options.list {
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    u32::from(failed != 0)
}
