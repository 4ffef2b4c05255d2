// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tests in the kernel, board by board; one that panics or hangs fails alone, and the next boot goes on behind it.
//!
//! With `job=test` the kernel prints `@test list NAME` for each test (all that it does under `list`), and as it runs them
//! `@test start NAME`, then `@test ok NAME`, `@test fail NAME: reason` or `@test skip NAME: reason`. A test that prints none of them
//! panicked or hung.

use std::time::{Duration, Instant};

use crate::Outcome;
use crate::console;
use crate::machine::{Board, MachineError, MachineOptions};
use crate::progress::Progress;
use crate::qemu::{Boot, Event, Keyboard, Session};
use crate::report::{Report, Verdict};

/// How long one test may take here. The kernel has limits of its own, in emulated time.
const LIMIT: Duration = Duration::from_secs(600);
/// How many lines of the console a failure shows.
const SHOWN: usize = 60;

/// The boards and entries that every run covers.
pub(crate) fn matrix() -> Vec<MachineOptions> {
    let virt = |gic, el, cpus, parallel| MachineOptions {
        gic: Some(gic),
        el: Some(el),
        cpus: Some(cpus),
        parallel,
        ..MachineOptions::of(Board::Virt)
    };
    let raspi = |board| MachineOptions {
        parallel: true,
        ..MachineOptions::of(board)
    };
    vec![
        virt(2, 1, 4, true),
        virt(2, 2, 4, true),
        virt(3, 1, 4, true),
        virt(3, 2, 4, true),
        virt(3, 1, 1, true),
        virt(3, 1, 8, true),
        // Exact counts exist under icount only.
        virt(3, 1, 4, false),
        raspi(Board::Raspi3b),
        raspi(Board::Raspi4b),
    ]
}

/// The rooms whose tests go by how the kernel was entered and by what interrupts it: all that runs on a machine which differs from
/// another one in nothing else.
const ENTRY_ROOMS: &str = "memory,interrupts,rendezvous,tasks,overflow,grace,recursion";

/// The rooms whose tests a machine of the matrix runs, if not all.
fn rooms(options: &MachineOptions) -> Option<&'static str> {
    (options.el == Some(2)).then_some(ENTRY_ROOMS)
}

/// A line of the protocol.
#[derive(Debug, PartialEq, Eq)]
enum Said<'l> {
    List(&'l str),
    Start(&'l str),
    Ok(&'l str),
    Fail(&'l str, &'l str),
    Skip(&'l str, &'l str),
}

fn parse(line: &str) -> Option<Said<'_>> {
    let (verb, name) = line.trim().strip_prefix("@test ")?.split_once(' ')?;
    let (short, why) = name.split_once(": ").unwrap_or((name, "no reason given"));
    match verb {
        "list" => Some(Said::List(name)),
        "start" => Some(Said::Start(name)),
        "ok" => Some(Said::Ok(name)),
        "fail" => Some(Said::Fail(short, why)),
        "skip" => Some(Said::Skip(short, why)),
        _ => None,
    }
}

/// What one boot's lines say so far.
#[derive(Debug, Default)]
struct Boots {
    /// The test that runs, and what was printed since it started.
    current: Option<(String, Vec<String>)>,
    /// When it started.
    started: Option<Instant>,
    /// Results, in order, and how long each took.
    results: Vec<(String, Verdict, Option<Duration>)>,
    /// All tests there are.
    list: Vec<String>,
}

impl Boots {
    fn line(&mut self, line: &str) {
        match parse(line) {
            Some(Said::List(name)) => self.list.push(name.to_owned()),
            Some(Said::Start(name)) => {
                self.fail("another test started before this one reported a result");
                self.current = Some((name.to_owned(), Vec::new()));
                self.started = Some(Instant::now());
            }
            Some(Said::Ok(name)) => self.result(name, Verdict::Passed),
            Some(Said::Fail(name, why)) => match self.current.is_some() {
                true => {
                    self.fail(why);
                }
                false => self.result(name, Verdict::Failed(format!("    {why}"))),
            },
            Some(Said::Skip(name, why)) => self.result(name, Verdict::Skipped(why.to_owned())),
            None => {
                if let Some((_, lines)) = &mut self.current {
                    lines.push(line.to_owned());
                }
            }
        }
    }

    fn result(&mut self, name: &str, verdict: Verdict) {
        self.current.take_if(|(current, _)| current == name);
        let took = self.started.take().map(|start| start.elapsed());
        self.results.push((name.to_owned(), verdict, took));
    }

    /// The running test, if there is one, has failed; returns its name.
    fn fail(&mut self, why: &str) -> Option<String> {
        let (name, lines) = self.current.take()?;
        let skipped = lines.len().saturating_sub(SHOWN);
        let shown = lines
            .iter()
            .skip(skipped)
            .map(|line| format!("\n    | {line}"));
        let text = format!("    {why}{}", shown.collect::<String>());
        let took = self.started.take().map(|start| start.elapsed());
        self.results
            .push((name.clone(), Verdict::Failed(text), took));
        Some(name)
    }
}

/// How a boot ended.
enum End {
    /// The kernel said with which status.
    Status(i32),
    /// QEMU ended, or the time was up: why, and the last lines.
    Lost(String, String),
}

/// One boot, until its end or a hang.
fn boot_once(
    options: &MachineOptions,
    boot: &Boot,
    words: &[String],
    mut seen: impl FnMut(&str),
    progress: &Progress,
) -> Outcome<End> {
    let (mut session, _) = Session::start(options, boot, words, Keyboard::None)?;
    let mut start = Instant::now();
    loop {
        match session.next() {
            Event::Line(line) => {
                if let Some(status) = console::exit_status(&line) {
                    return Ok(End::Status(status));
                }
                if let Some(Said::Start(name)) = parse(&line) {
                    start = Instant::now();
                    progress.update(name);
                }
                seen(&line);
            }
            Event::Quiet if start.elapsed() > LIMIT => {
                let tail = session.tail();
                let limit = LIMIT.as_secs();
                return Ok(End::Lost(format!("no end after {limit} s"), tail));
            }
            Event::Quiet => progress.tick(),
            Event::End(status) => {
                let why = format!("QEMU ended (status {status}) and the kernel did not say why");
                return Ok(End::Lost(why, session.tail()));
            }
        }
    }
}

/// Which tests there are, by asking the kernel.
fn list(options: &MachineOptions, boot: &Boot, rooms: Option<&String>) -> Outcome<Vec<String>> {
    let words = ["job=test", "list"].map(str::to_owned);
    let words: Vec<_> = words.into_iter().chain(rooms.cloned()).collect();
    let mut boots = Boots::default();
    let progress = Progress::start("listing the tests in the kernel");
    let end = boot_once(options, boot, &words, |line| boots.line(line), &progress)?;
    match end {
        End::Status(0) => Ok(boots.list),
        End::Status(status) => Err(format!("the list of tests: exit status {status}").into()),
        End::Lost(why, tail) => Err(format!("the list of tests: {why}\n{tail}").into()),
    }
}

/// Runs the tests whose names contain `filter` on all machines; those that take one core here side by side.
pub(crate) fn run_all(boot: &Boot, filter: Option<&str>, report: &mut Report) {
    let (single, parallel): (Vec<_>, Vec<_>) = matrix().into_iter().partition(takes_one_core);
    for options in parallel {
        run(&options, boot, filter, report);
    }
    let one = |options: &MachineOptions| {
        let mut report = Report::default();
        run(options, boot, filter, &mut report);
        report
    };
    for pair in single.chunks(2) {
        match pair {
            [first, second] => report.both(|| one(first), || one(second)),
            rest => rest.iter().for_each(|o| run(o, boot, filter, report)),
        }
    }
}

/// Whether a machine keeps one core busy here: its own cores take turns, or it has one.
fn takes_one_core(options: &MachineOptions) -> bool {
    !options.parallel || options.cpus == Some(1)
}

/// Runs the tests whose names contain `filter` on one machine.
fn run(options: &MachineOptions, boot: &Boot, filter: Option<&str>, report: &mut Report) {
    let machine = crate::machine::qemu_version().and_then(|version| options.machine(version));
    let machine = match machine {
        Ok(machine) => machine,
        Err(error) => {
            let name = format!("kernel/{}", options.board);
            let verdict = match error.is_old_qemu() {
                true => Verdict::Skipped(error.to_string()),
                false => Verdict::Failed(refusal(&error)),
            };
            return report.add(&name, verdict, None);
        }
    };
    let name = format!("kernel/{machine}");
    // Whoever asks for tests by name gets them on every machine.
    let rooms = rooms(options).filter(|_| filter.is_none());
    let rooms = rooms.map(|rooms| format!("rooms={rooms}"));
    let all = match list(options, boot, rooms.as_ref()) {
        Ok(all) if all.is_empty() => Err("the kernel lists no tests".into()),
        other => other,
    };
    let all = match all {
        Ok(all) => all,
        Err(error) => return report.add(&name, Verdict::Failed(format!("    {error}")), None),
    };
    if let Some(rooms) = &rooms {
        let why = format!(
            "{rooms}: the tests of the other rooms run on the machine that was entered at EL1"
        );
        report.add(&format!("{name}/other rooms"), Verdict::Skipped(why), None);
    }
    // Each start runs what is left, up to the first failure; with a filter, each test gets a start of its own.
    let mut starts: Vec<String> = match filter {
        None => all
            .first()
            .map(|first| format!("from={first}"))
            .into_iter()
            .collect(),
        Some(filter) => {
            let fits = |test: &&String| format!("{name}/{test}").contains(filter);
            let mut starts: Vec<_> = all
                .iter()
                .filter(fits)
                .map(|t| format!("test={t}"))
                .collect();
            starts.reverse();
            starts
        }
    };
    while let Some(start) = starts.pop() {
        let mut words = vec!["job=test".to_owned(), start.clone()];
        words.extend(rooms.clone());
        if is_long(options) || filter.is_some() {
            words.push("long".to_owned());
        }
        let progress = Progress::start(&name);
        let mut boots = Boots::default();
        let end = boot_once(options, boot, &words, |line| boots.line(line), &progress);
        drop(progress);
        let (why, tail, clean) = match end {
            Ok(End::Status(0)) => ("it reported no result".to_owned(), String::new(), true),
            Ok(End::Status(status)) => {
                let why = format!("the run ended with status {status}");
                (why, String::new(), false)
            }
            Ok(End::Lost(why, tail)) => (why, tail, false),
            Err(error) => (error.to_string(), String::new(), false),
        };
        let failed = boots.fail(&why);
        // The kernel's status is 1 when a test failed: that one is reported already.
        let is_failure = |(_, verdict, _): &(_, Verdict, _)| matches!(verdict, Verdict::Failed(_));
        let clean = clean || boots.results.iter().any(is_failure);
        for (test, verdict, took) in boots.results {
            report.add(&format!("{name}/{test}"), verdict, took);
        }
        match failed.and_then(|failed| all.iter().position(|test| *test == failed)) {
            Some(at) if filter.is_none() => {
                starts.extend(all.get(at + 1).map(|next| format!("from={next}")));
            }
            None if !clean => {
                report.add(&name, Verdict::Failed(format!("    {why}\n{tail}")), None);
            }
            _ => {}
        }
    }
}

/// The machine that the tests of minutes run on: where instructions are counted, cores wait for each other for instructions, not for
/// their turns on this machine. In parallel the torture run changes hooks as often.
fn is_long(options: &MachineOptions) -> bool {
    !options.parallel
}

fn refusal(error: &MachineError) -> String {
    format!("    {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn after(lines: &[&str]) -> Boots {
        let mut boots = Boots::default();
        lines.iter().for_each(|line| boots.line(line));
        boots
    }

    /// docs/tests.md says which tests show what.
    #[test]
    fn the_tests_of_the_tables_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let sources = std::fs::read_dir(root.join("kernel/src/tests")).unwrap();
        let sources: String = sources
            .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
            .collect();
        let tables = std::fs::read_to_string(root.join("docs/tests.md")).unwrap();
        let is_name = |text: &&str| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            text.split_once('.')
                .is_some_and(|(room, test)| room.chars().all(plain) && test.chars().all(plain))
        };
        let names: Vec<_> = tables.split('`').filter(is_name).collect();
        assert!(names.len() > 50, "{names:?}");
        for name in names {
            assert!(sources.contains(&format!("\"{name}\"")), "{name}");
        }
    }

    #[test]
    fn the_protocol_is_understood() {
        assert_eq!(parse("@test start a::b"), Some(Said::Start("a::b")));
        assert_eq!(
            parse("@test skip a: one core: two needed"),
            Some(Said::Skip("a", "one core: two needed"))
        );
        assert_eq!(parse("test start a"), None);
        assert_eq!(parse("@test dance a"), None);
        let boots = after(&[
            "@test list a",
            "@test list b",
            "@test start a",
            "noise",
            "@test ok a",
            "@test start b",
            "@test skip b: why",
        ]);
        assert_eq!(boots.list, ["a", "b"]);
        let results = boots
            .results
            .iter()
            .map(|(name, verdict, _)| (&**name, verdict));
        assert_eq!(
            results.collect::<Vec<_>>(),
            [
                ("a", &Verdict::Passed),
                ("b", &Verdict::Skipped("why".into()))
            ]
        );
        assert!(boots.current.is_none());
    }

    #[test]
    fn a_test_without_a_result_has_failed() {
        let mut boots = after(&["@test start a", "*** panicked", "    frame"]);
        assert_eq!(boots.fail("the run ended").as_deref(), Some("a"));
        let Some((name, Verdict::Failed(why), _)) = boots.results.pop() else {
            panic!("no failure");
        };
        assert_eq!(name, "a");
        assert!(
            why.contains("the run ended") && why.contains("*** panicked"),
            "{why}"
        );
        let boots = after(&[
            "@test start a",
            "a clue",
            "@test fail a: 1 found: 2 expected",
        ]);
        let (_, Verdict::Failed(why), _) = &boots.results[0] else {
            panic!("no failure");
        };
        assert!(
            why.contains("1 found: 2 expected") && why.contains("a clue"),
            "{why}"
        );
        let boots = after(&["@test start a", "@test start b", "@test ok b"]);
        assert!(matches!(boots.results[0], (_, Verdict::Failed(_), _)));
        assert!(matches!(&boots.results[1], (name, Verdict::Passed, Some(_)) if name == "b"));
        assert!(after(&[]).fail("x").is_none());
    }

    #[test]
    fn every_board_is_covered() {
        let matrix = matrix();
        let version = crate::machine::Version(10, 0, 0);
        let names: Vec<_> = matrix
            .iter()
            .map(|options| options.machine(version).expect("machine").to_string())
            .collect();
        assert_eq!(
            names,
            [
                "virt gicv2 el1",
                "virt gicv2 el2",
                "virt gicv3 el1",
                "virt gicv3 el2",
                "virt gicv3 el1 1 core",
                "virt gicv3 el1 8 cores",
                "virt gicv3 el1 icount",
                "raspi3b",
                "raspi4b",
            ]
        );
    }
}
