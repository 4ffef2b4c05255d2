// SPDX-License-Identifier: MIT OR Apache-2.0
//! Is the code what was linked? Compares word by word, and accounts for each difference by the hook that owns it.
//!
//! The blob behind the image holds the code as linked, mapped read-only. A word that differs is accounted for if a hook says
//! that it changed this word, and to what is there. Executable memory has to hold what was written there last, by its owner, and
//! nothing but BRK where it is free.

use crate::arch::code;
use crate::hook::{self, Change};
use crate::println;
use crate::symbols::{self, Name};
use crate::written::{self, Foreign};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Where xtask writes the Image's size after linking (Linux, Documentation/arch/arm64/booting.rst: `image_size`), as offset in
/// the image.
const IMAGE_SIZE: Range<u64> = 16..24;
/// How many differences are kept; the rest is counted.
const KEPT: usize = 64;

/// A word that is not what was linked, or not what a hook put there.
pub(crate) struct Difference {
    /// Its address.
    pub(crate) address: u64,
    /// What was linked.
    linked: u32,
    /// What is there.
    found: u32,
    /// What a hook says it put there.
    hook: Option<u32>,
}

impl Difference {
    /// Whether a hook owns it.
    pub(crate) fn is_accounted_for(&self) -> bool {
        self.hook == Some(self.found)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, linked, found) = (self.address, self.linked, self.found);
        write!(f, "{address:#x}  {linked:08x} -> {found:08x}  ")?;
        let at = address as usize;
        match self.hook {
            Some(word) if word == found => write!(f, "{}", Name(at)),
            Some(word) => write!(
                f,
                "{}: UNACCOUNTED FOR, its hook put {word:08x} there",
                Name(at)
            ),
            None => write!(f, "{}: UNACCOUNTED FOR, no hook changed it", Name(at)),
        }
    }
}

/// What was found.
#[derive(Default)]
pub(crate) struct Report {
    /// Words of code that were compared.
    pub(crate) words: usize,
    /// Differences that a hook owns.
    pub(crate) accounted: usize,
    /// Differences that none owns.
    pub(crate) unaccounted: usize,
    /// Those of both kinds, as many as are kept.
    pub(crate) differences: Vec<Difference>,
    /// Words of the executable pool that are in use: trampolines and programs.
    pub(crate) live: usize,
    /// Those of them that are not what their owner wrote.
    pub(crate) foreign: usize,
    /// These, as many as are kept.
    pub(crate) in_pool: Vec<Foreign>,
    /// Free words of the executable pool.
    free: usize,
    /// Those of them that are not filled, as many as are kept.
    pub(crate) unfilled: Vec<Change>,
}

/// Compares everything. Task context; nothing is attached or detached meanwhile.
pub(crate) fn check() -> Result<Report, String> {
    let blob = symbols::blob().ok_or("the image carries no symbols")?;
    let text = blob.text().as_chunks::<4>().0;
    if text.is_empty() {
        return Err("the image carries no copy of its code; build it with cargo xtask".into());
    }
    let mut report = hook::with_changes(|changes| compare(blob.base(), text, changes));
    (report.live, report.foreign, report.in_pool) = written::compare(KEPT);
    (report.free, report.unfilled) = hook::free_words(KEPT);
    Ok(report)
}

fn compare(base: u64, text: &[[u8; 4]], changes: &[Change]) -> Report {
    let mut report = Report::default();
    let mut changes = changes.iter().peekable();
    for (address, word) in (base..).step_by(4).zip(text) {
        if IMAGE_SIZE.contains(&(address - base)) {
            continue;
        }
        report.words += 1;
        while changes.next_if(|change| change.address < address).is_some() {}
        let hook = changes.next_if(|change| change.address == address);
        let linked = u32::from_le_bytes(*word);
        let found = code::read(address as usize).unwrap_or_default();
        let difference = Difference {
            address,
            linked,
            found,
            hook: hook.map(|change| change.word),
        };
        match (
            difference.is_accounted_for(),
            found == linked && hook.is_none(),
        ) {
            (_, true) => continue,
            (true, _) => report.accounted += 1,
            (false, _) => report.unaccounted += 1,
        }
        if report.differences.len() < KEPT
            || !difference.is_accounted_for() && report.unaccounted <= KEPT
        {
            report.differences.push(difference);
        }
    }
    report
}

/// Compares, prints what differs and who owns it; returns the exit code: 1 if a difference is no hook's.
pub(crate) fn run() -> u32 {
    let report = match check() {
        Ok(report) => report,
        Err(why) => {
            println!("integrity: {why}");
            return 2;
        }
    };
    for difference in &report.differences {
        println!("  {difference}");
    }
    let all = report.accounted + report.unaccounted;
    if all > report.differences.len() {
        println!("  and {} more", all - report.differences.len());
    }
    for foreign in &report.in_pool {
        println!("  {foreign}");
    }
    if report.foreign > report.in_pool.len() {
        println!("  and {} more", report.foreign - report.in_pool.len());
    }
    for Change { address, word } in &report.unfilled {
        println!("  {address:#x}  {word:08x}  free executable memory: UNACCOUNTED FOR, not BRK");
    }
    println!(
        "integrity: {} words of code, {} changed by hooks, {} unaccounted for; {} words of trampolines and programs, {} unaccounted for; \
         {} free words of executable memory, {} of them not BRK",
        report.words,
        report.accounted,
        report.unaccounted,
        report.live,
        report.foreign,
        report.free,
        report.unfilled.len()
    );
    let wrong = report.unaccounted + report.foreign + report.unfilled.len();
    u32::from(wrong != 0)
}
