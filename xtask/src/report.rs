// SPDX-License-Identifier: MIT OR Apache-2.0
//! Test results as they come, and the line at the end.

use std::fmt;
use std::sync::Mutex;
use std::thread;
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

    /// Runs tests that take a core each, two at a time; results come as they end.
    pub(crate) fn run_in_pairs<E: fmt::Display, T>(&mut self, tests: Vec<(String, T)>)
    where
        T: FnOnce() -> Result<(), E> + Send,
    {
        let tests = Mutex::new(tests.into_iter());
        let next = || tests.lock().ok()?.next();
        let work = || {
            let mut report = Report::default();
            while let Some((name, test)) = next() {
                report.run(&name, test);
            }
            report
        };
        self.both(work, work);
    }

    /// Does both at once, and counts the results of both.
    pub(crate) fn both(
        &mut self,
        first: impl FnOnce() -> Report + Send,
        second: impl FnOnce() -> Report,
    ) {
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(first);
            let second = second();
            (first.join(), second)
        });
        self.join(second);
        match first {
            Ok(first) => self.join(first),
            Err(_) => self.add(
                "tests side by side",
                Verdict::Failed("    one of them panicked; its message is above".into()),
                None,
            ),
        }
    }

    fn join(&mut self, other: Report) {
        self.passed += other.passed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
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

    #[test]
    fn pairs_are_all_run_and_counted() {
        let mut report = Report::default();
        let tests = (0..9).map(|n| {
            let test = move || if n == 4 { Err("broken") } else { Ok(()) };
            (n.to_string(), test)
        });
        report.run_in_pairs(tests.collect());
        assert_eq!(report.close(), "failed: 4\n8 passed, 1 failed");
    }

    #[test]
    fn a_panic_beside_another_test_is_a_failure() {
        let mut report = Report::default();
        report.both(|| panic!("on purpose"), Report::default);
        assert!(report.has_failures());
    }
}
