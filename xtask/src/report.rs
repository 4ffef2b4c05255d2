// SPDX-License-Identifier: MIT OR Apache-2.0
//! Test results as they come, and the line at the end.

use std::fmt;
use std::time::{Duration, Instant};

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It passed.
    Passed,
    /// It failed, for this reason (any number of lines).
    Failed(String),
    /// It could not be run, for this reason.
    Skipped(String),
}

/// All results so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: usize,
    skipped: usize,
    failures: Vec<(String, String)>,
}

impl Report {
    /// Counts a result and prints its line.
    pub(crate) fn add(&mut self, name: &str, verdict: Verdict, took: Option<Duration>) {
        let took = took.map(|took| format!(" ({:.1} s)", took.as_secs_f64()));
        let took = took.unwrap_or_default();
        match verdict {
            Verdict::Passed => {
                println!("ok    {name}{took}");
                self.passed += 1;
            }
            Verdict::Skipped(why) => {
                println!("skip  {name}: {why}");
                self.skipped += 1;
            }
            Verdict::Failed(why) => {
                println!("FAIL  {name}{took}\n{why}");
                self.failures.push((name.to_owned(), why));
            }
        }
    }

    /// Runs one test and adds its result.
    pub(crate) fn run<E: fmt::Display>(
        &mut self,
        name: &str,
        test: impl FnOnce() -> Result<(), E>,
    ) {
        let start = Instant::now();
        let verdict = match test() {
            Ok(()) => Verdict::Passed,
            Err(error) => Verdict::Failed(format!("    {error}")),
        };
        self.add(name, verdict, Some(start.elapsed()));
    }

    /// Whether anything failed.
    pub(crate) fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    /// How many results there are.
    pub(crate) fn len(&self) -> usize {
        self.passed + self.skipped + self.failures.len()
    }

    /// The names of what failed, and the line that closes a run.
    pub(crate) fn close(&self) -> String {
        let mut text = String::new();
        for (name, _) in &self.failures {
            text.push_str(&format!("failed: {name}\n"));
        }
        text.push_str(&format!(
            "{} passed, {} failed",
            self.passed,
            self.failures.len()
        ));
        if self.skipped > 0 {
            text.push_str(&format!(", {} skipped", self.skipped));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts() {
        let mut report = Report::default();
        report.add("a", Verdict::Passed, None);
        assert_eq!(report.close(), "1 passed, 0 failed");
        report.add("b", Verdict::Skipped("too old".into()), None);
        report.run("c", || Err("broken"));
        assert_eq!(report.close(), "failed: c\n1 passed, 1 failed, 1 skipped");
        assert!(report.has_failures() && report.len() == 3);
    }
}
