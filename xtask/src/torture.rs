// SPDX-License-Identifier: MIT OR Apache-2.0
//! The torture run (`kernel/src/torture`): for as long as one likes, and a minute a board as a test.

use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::Outcome;
use crate::machine::{Accel, Board, MachineOptions};
use crate::progress::Progress;
use crate::qemu::{self, Boot, Keyboard, Session};

/// What the run does beside: setting up, detaching, comparing memory, waiting for grace periods.
const BESIDE: Duration = Duration::from_secs(180);
/// How long one is as a test, in seconds.
const TEST_SECONDS: u64 = 60;

/// How many minutes a run can be told to take: a week at most.
pub(crate) fn minutes() -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(1..=7 * 24 * 60)
}

/// How long, where and from which seed.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    machine: MachineOptions,
    /// For how many minutes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = minutes())]
    minutes: u64,
    /// Where the random numbers begin [default: the time, which is printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Options {
    /// The machine: under emulation its cores run in parallel, for races are what this is after.
    pub(crate) fn machine(&self) -> MachineOptions {
        parallel(self.machine.clone())
    }
}

fn parallel(machine: MachineOptions) -> MachineOptions {
    MachineOptions {
        parallel: machine.accel == Accel::Tcg || machine.parallel,
        ..machine
    }
}

fn words(seconds: u64, seed: Option<u64>) -> Vec<String> {
    let seed = seed.map(|seed| format!("seed={seed}"));
    let words = ["job=torture".to_owned(), format!("seconds={seconds}")];
    words.into_iter().chain(seed).collect()
}

/// Runs it on the console; the kernel's exit status.
pub(crate) fn run(options: &Options, boot: &Boot) -> Outcome<i32> {
    let seconds = options.minutes.saturating_mul(60);
    let limit = Duration::from_secs(seconds).saturating_add(BESIDE);
    let words = words(seconds, options.seed);
    let machine = options.machine();
    qemu::run(&machine, boot, &words, Keyboard::None, Some(limit))
}

/// One minute on a board; what it found is the error.
pub(crate) fn test(board: Board, boot: &Boot) -> Outcome<()> {
    let machine = parallel(MachineOptions::of(board));
    let limit = Duration::from_secs(TEST_SECONDS) + BESIDE;
    let words = words(TEST_SECONDS, None);
    let (mut session, _) = Session::start(&machine, boot, &words, Keyboard::None)?;
    let progress = Progress::start(&format!("torture on {board}"));
    let mut lines = Vec::new();
    let status = session.follow(
        Some(limit),
        |line| {
            progress.update(line);
            lines.push(line.to_owned());
        },
        &progress,
    )?;
    match status {
        0 => Ok(()),
        status => Err(format!("status {status}\n    {}", lines.join("\n    ")).into()),
    }
}
