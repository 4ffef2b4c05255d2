// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every test there is: on the host, under qemu-user, of the linked kernel, in the kernel on each board, on the console, of the figures, of the book.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::Outcome;
use crate::audit;
use crate::bench;
use crate::console::Transcript;
use crate::extras;
use crate::files;
use crate::fuzz;
use crate::interop;
use crate::interpreter_suite;
use crate::jit_suite;
use crate::kernel_tests;
use crate::machine::{Board, MachineOptions, qemu_version};
use crate::progress::Progress;
use crate::qemu::{Boot, Keyboard, Session};
use crate::report::{Report, Verdict};
use crate::torture;
use crate::workspace::{KERNEL, TARGET, USER_TARGET, Workspace};

/// Kinds of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Formatting and clippy
    Lint,
    /// Unit tests on this machine
    Host,
    /// Unit tests of generated code, under qemu-user
    User,
    /// Random inputs: fuzz targets and random programs, seeded, so that every run is the same
    Fuzz,
    /// What bpftool and every clang here make of the kernel's types
    Tools,
    /// The rules of the hook path, proven over the linked kernel
    Audit,
    /// Tests in the kernel, on every board
    Kernel,
    /// Tests that type on the console
    Console,
    /// Everything that hooks can do at random, for a minute a board
    Torture,
    /// Figures that must not change from run to run
    Bench,
    /// The book builds
    Book,
}

/// The crates whose tests run under qemu-user: those that emit code.
const USER_CRATES: [&str; 3] = ["a64", "trampoline", "bpf-vm"];
/// Random programs that interpreter and compiled code are compared by.
const RANDOM_PROGRAMS: u32 = 100_000;
/// Inputs that each fuzz target tries in a test run.
const FUZZ_RUNS: [(fuzz::Target, u64); 4] = [
    (fuzz::Target::Object, 100_000),
    (fuzz::Target::Disassembler, 200_000),
    (fuzz::Target::Interpreter, 200_000),
    (fuzz::Target::Pair, 3_000),
];
/// The seed of their mutations.
const FUZZ_SEED: u32 = 1;
/// How long the console may leave a test waiting.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the measurements of one board may take.
const BENCH_LIMIT: Duration = Duration::from_secs(300);
/// Where the transcripts lie, in the workspace.
const TRANSCRIPTS: &str = "xtask/tests/console";

/// Runs all tests, or those of some kinds, or those whose names contain `filter`.
pub(crate) fn run(workspace: &Workspace, filter: Option<&str>, only: &[Kind]) -> Outcome<bool> {
    let mut report = Report::default();
    let wanted = |kind| only.is_empty() || only.contains(&kind);
    if [Kind::Host, Kind::User, Kind::Tools, Kind::Bench]
        .into_iter()
        .any(wanted)
    {
        extras::ensure(workspace);
    }
    if wanted(Kind::Lint) {
        lint(workspace, filter, &mut report);
    }
    if wanted(Kind::Host) {
        let packages = ["--workspace", "--exclude", KERNEL, "--target", "host-tuple"];
        cargo_test(workspace, "host", &packages, filter, &mut report);
    }
    if wanted(Kind::User) {
        let mut arguments: Vec<_> = USER_CRATES.iter().flat_map(|c| ["--package", c]).collect();
        arguments.extend(["--target", USER_TARGET]);
        cargo_test(workspace, "user", &arguments, filter, &mut report);
    }
    if wanted(Kind::Fuzz) {
        fuzz_tests(workspace, filter, &mut report);
    }
    if wanted(Kind::Bench) {
        interpreter_figures(workspace, filter, &mut report);
    }
    if wanted(Kind::Audit) {
        type Check = fn(&Workspace) -> Outcome<()>;
        let checks: [(&str, Check); 2] = [
            ("audit/the rules hold", audit::rules_hold),
            ("audit/a broken rule is found", audit::breach_is_found),
        ];
        for (name, check) in checks {
            if fits(name, filter) {
                report.run(name, || check(workspace));
            }
        }
    }
    if [
        Kind::Tools,
        Kind::Kernel,
        Kind::Console,
        Kind::Torture,
        Kind::Bench,
    ]
    .into_iter()
    .any(wanted)
    {
        match Boot::build(workspace) {
            Err(error) => report.add("build", Verdict::Failed(format!("    {error}")), None),
            Ok(boot) => {
                if wanted(Kind::Tools) {
                    interop::run(workspace, |name| fits(name, filter), &mut report);
                }
                if wanted(Kind::Kernel) {
                    kernel_tests::run_all(&boot, filter, &mut report);
                }
                if wanted(Kind::Console) {
                    console_tests(workspace, &boot, filter, &mut report)?;
                }
                if wanted(Kind::Torture) {
                    on_boards("torture", filter, &mut report, |board| {
                        torture::test(board, &boot)
                    });
                }
                if wanted(Kind::Bench) {
                    figures(workspace, &boot, filter, &mut report);
                    jit_figures(&boot, filter, &mut report);
                }
            }
        }
    }
    if wanted(Kind::Book) && fits("book", filter) {
        report.run("book", || crate::build_book(workspace).map(|_| ()));
    }
    if report.len() == 0 {
        return Err(format!("no test is called {:?}", filter.unwrap_or_default()).into());
    }
    println!("{}", report.close());
    Ok(!report.has_failures())
}

fn fits(name: &str, filter: Option<&str>) -> bool {
    filter.is_none_or(|filter| name.contains(filter))
}

/// Runs a command, and returns what it printed; that is the reason when it fails.
pub(crate) fn silent(name: &str, mut command: Command) -> Result<String, String> {
    let progress = Progress::start(name);
    let (sender, receiver) = mpsc::channel();
    // The receiver waits for the one result.
    thread::spawn(move || sender.send(command.stdin(Stdio::null()).output()));
    let output = loop {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(output) => break output.map_err(|error| error.to_string())?,
            Err(RecvTimeoutError::Timeout) => progress.tick(),
            Err(RecvTimeoutError::Disconnected) => return Err("the command was lost".into()),
        }
    };
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    match output.status.success() {
        true => Ok(text.concat()),
        false => Err(text.concat()),
    }
}

fn lint(workspace: &Workspace, filter: Option<&str>, report: &mut Report) {
    let clippy = ["--no-deps", "--", "-D", "warnings"];
    let host = [
        "clippy",
        "--workspace",
        "--exclude",
        KERNEL,
        "--target",
        "host-tuple",
        "--all-targets",
    ];
    let target = [
        "clippy",
        "--workspace",
        "--exclude",
        "xtask",
        "--target",
        TARGET,
    ];
    for (name, arguments) in [
        ("lint/format", vec!["fmt", "--all", "--check"]),
        ("lint/clippy host", [&host[..], &clippy].concat()),
        ("lint/clippy target", [&target[..], &clippy].concat()),
    ] {
        if fits(name, filter) {
            let mut command = workspace.cargo();
            command.args(arguments);
            report.run(name, || silent(name, command).map(|_| ()));
        }
    }
}

/// A line of a test program's output.
#[derive(Debug, PartialEq, Eq)]
enum Printed {
    Test(String, Verdict),
    /// The output of a failed test begins: its name.
    Details(String),
    /// Of any other kind.
    Other,
}

fn parse(line: &str) -> Printed {
    if let Some(name) = line
        .strip_prefix("---- ")
        .and_then(|l| l.strip_suffix(" stdout ----"))
    {
        return Printed::Details(name.to_owned());
    }
    let result = line
        .strip_prefix("test ")
        .and_then(|rest| rest.rsplit_once(" ... "));
    let Some((name, result)) = result else {
        return Printed::Other;
    };
    let name = name.trim_end_matches(" - should panic").to_owned();
    match result.split(',').next() {
        Some("ok") => Printed::Test(name, Verdict::Passed),
        Some("FAILED") => Printed::Test(name, Verdict::Failed(String::new())),
        Some("ignored") => Printed::Test(name, Verdict::Skipped(result.to_owned())),
        _ => Printed::Other,
    }
}

/// `cargo test`: one result for each test; messages of compilers pass through.
fn cargo_test(
    workspace: &Workspace,
    kind: &str,
    arguments: &[&str],
    filter: Option<&str>,
    report: &mut Report,
) {
    let mut command = workspace.cargo();
    command.args(["test", "--no-fail-fast"]).args(arguments);
    if let Some(filter) = filter {
        // "host/name" and "name" both pick it.
        let name = filter
            .strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix('/'));
        command.args(["--", name.unwrap_or(filter)]);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return report.add(kind, Verdict::Failed(format!("    {error}")), None),
    };
    let mut failed = Vec::new();
    let mut details: Vec<(String, String)> = Vec::new();
    let mut anything = false;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            anything |= line.starts_with("test result:");
            match parse(&line) {
                Printed::Test(name, Verdict::Failed(_)) => failed.push(name),
                Printed::Test(name, verdict) => {
                    report.add(&format!("{kind}/{name}"), verdict, None)
                }
                Printed::Details(name) => details.push((name, String::new())),
                Printed::Other => match details.last_mut() {
                    Some((_, text)) if line != "failures:" && !line.starts_with("test result:") => {
                        text.push_str(&format!("    | {line}\n"));
                    }
                    _ => {}
                },
            }
        }
    }
    let succeeded = child.wait().is_ok_and(|status| status.success());
    if !succeeded && failed.is_empty() {
        let what = if anything {
            "a test program crashed"
        } else {
            "the tests do not build"
        };
        let text = format!("    {what}; the messages above say why");
        report.add(kind, Verdict::Failed(text), None);
    }
    for name in failed {
        let text = details.iter().find(|(n, _)| *n == name);
        let text = text.map(|(_, text)| text.clone()).unwrap_or_default();
        report.add(&format!("{kind}/{name}"), Verdict::Failed(text), None);
    }
}

/// The bounded share of what `cargo xtask fuzz` does without end, and the random programs by both engines.
fn fuzz_tests(workspace: &Workspace, filter: Option<&str>, report: &mut Report) {
    let name = format!("fuzz/{RANDOM_PROGRAMS} random programs");
    if fits(&name, filter) {
        let mut command = workspace.cargo();
        command
            .args(["test", "--package", "bpf-vm", "--target", USER_TARGET])
            .args([
                "--test",
                "random",
                "--",
                "engines_agree",
                "--exact",
                "--nocapture",
            ])
            .env("RANDOM_PROGRAMS", RANDOM_PROGRAMS.to_string());
        let ran = format!("{RANDOM_PROGRAMS} programs, ");
        report.run(&name, || match silent(&name, command)?.contains(&ran) {
            true => Ok(()),
            false => Err(format!("no test printed {ran:?}: nothing was run")),
        });
    }
    let name = |target: fuzz::Target| format!("fuzz/{}", target.name());
    let targets: Vec<_> = FUZZ_RUNS
        .into_iter()
        .filter(|(target, _)| fits(&name(*target), filter))
        .collect();
    if targets.is_empty() {
        return;
    }
    match fuzz::Fuzzers::build(workspace) {
        Err(error) => report.add("fuzz", Verdict::Failed(format!("    {error}")), None),
        Ok(fuzzers) => {
            let fuzzers = &fuzzers;
            let tests = targets.into_iter().map(|(target, runs)| {
                let run = move || {
                    let ran = fuzzers.run(target, fuzz::Limit::Runs(runs), FUZZ_SEED);
                    ran.map(|_| ())
                };
                (name(target), run)
            });
            report.run_in_pairs(tests.collect());
        }
    }
}

/// A transcript's machine and the words of the command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct RunLine {
    #[command(flatten)]
    machine: MachineOptions,
    words: Vec<String>,
}

fn console_tests(
    workspace: &Workspace,
    boot: &Boot,
    filter: Option<&str>,
    report: &mut Report,
) -> Outcome<()> {
    let folder = workspace.root.join(TRANSCRIPTS);
    let tests = files::list(&folder, false)?.into_iter().map(|path| {
        let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        let name = format!("console/{stem}");
        (name, move || console_test(workspace, boot, &path))
    });
    let tests = tests.filter(|(name, _)| fits(name, filter));
    report.run_in_pairs(tests.collect());
    Ok(())
}

fn console_test(workspace: &Workspace, boot: &Boot, path: &Path) -> Outcome<()> {
    let transcript = Transcript::parse(&files::read_text(path)?)?;
    let mut line = RunLine::try_parse_from(&transcript.options)?;
    // Files that a transcript names lie beside it.
    for file in [&mut line.machine.dtb, &mut line.machine.initrd] {
        *file = file
            .take()
            .map(|file| workspace.root.join(TRANSCRIPTS).join(file));
    }
    let (mut session, _) = Session::start(&line.machine, boot, &line.words, Keyboard::Program)?;
    Ok(session.play(&transcript, PATIENCE)?)
}

/// Runs a test on every board that this QEMU has; its name is `name`, with the board in the place of `BOARD` or behind it.
fn on_boards(
    name: &str,
    filter: Option<&str>,
    report: &mut Report,
    test: impl Fn(Board) -> Outcome<()>,
) {
    for board in [Board::Virt, Board::Raspi3b, Board::Raspi4b] {
        let name = match name.contains("BOARD") {
            true => name.replace("BOARD", &board.to_string()),
            false => format!("{name}/{board}"),
        };
        if !fits(&name, filter) {
            continue;
        }
        let machine = qemu_version().and_then(|version| MachineOptions::of(board).machine(version));
        if let Err(error) = machine
            && error.is_old_qemu()
        {
            report.add(&name, Verdict::Skipped(error.to_string()), None);
            continue;
        }
        report.run(&name, || test(board));
    }
}

/// Measures twice on every board: all figures are exact, so all rows are the same; some have limits.
fn figures(workspace: &Workspace, boot: &Boot, filter: Option<&str>, report: &mut Report) {
    on_boards("bench/BOARD twice the same", filter, report, |board| {
        let options = MachineOptions::of(board);
        let once = || bench::measure(workspace, &options, boot, None, Some(BENCH_LIMIT), true);
        // Side by side: what is counted does not go by how fast it runs.
        let (first, second) = thread::scope(|scope| {
            let other = scope.spawn(|| once().map_err(|error| error.to_string()));
            (once(), other.join())
        });
        let second = second.map_err(|_| "the second measurement panicked")?;
        let (first, second) = (first?, second?);
        match first == second {
            true => Ok(bench::check(&first)?),
            false => Err(differences(&first, &second).into()),
        }
    });
}

/// Measures the JIT's code on both kinds of cores, and holds it against its limits.
fn jit_figures(boot: &Boot, filter: Option<&str>, report: &mut Report) {
    let name = "bench/jit within its limits";
    if fits(name, filter) {
        report.run(name, || -> Outcome<()> {
            let options = MachineOptions::of(Board::Virt);
            let figures = jit_suite::measure(&options, boot, Some(BENCH_LIMIT))?;
            Ok(jit_suite::check(&figures)?)
        });
    }
}

/// Counts what the interpreter executes on this machine, and holds it against its limits.
fn interpreter_figures(workspace: &Workspace, filter: Option<&str>, report: &mut Report) {
    let name = "bench/interpreter within its limits";
    if !fits(name, filter) {
        return;
    }
    match interpreter_suite::cannot_count() {
        Some(why) => report.add(name, Verdict::Skipped(why), None),
        None => report.run(name, || -> Outcome<()> {
            let counts = interpreter_suite::count(workspace)?;
            Ok(interpreter_suite::check_counts(&counts)?)
        }),
    }
}

/// The rows in which two documents differ.
fn differences(first: &serde_json::Value, second: &serde_json::Value) -> String {
    let rows = |document: &serde_json::Value| {
        let rows = document.get("rows").and_then(serde_json::Value::as_array);
        rows.cloned().unwrap_or_default()
    };
    let (first, second) = (rows(first), rows(second));
    let mut text = format!("{} rows, then {} rows", first.len(), second.len());
    for (a, b) in first.iter().zip(&second).filter(|(a, b)| a != b) {
        text.push_str(&format!("\n    first  {a}\n    second {b}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_are_read() {
        for (line, expected) in [
            ("test a::b ... ok", Some(Verdict::Passed)),
            ("test a - should panic ... ok", Some(Verdict::Passed)),
            ("test a ... FAILED", Some(Verdict::Failed(String::new()))),
            (
                "test a ... ignored, why",
                Some(Verdict::Skipped("ignored, why".into())),
            ),
            ("test result: ok. 1 passed; 0 failed", None),
            ("running 3 tests", None),
        ] {
            let found = match parse(line) {
                Printed::Test(_, verdict) => Some(verdict),
                _ => None,
            };
            assert_eq!(found, expected, "{line:?}");
        }
        assert_eq!(
            parse("---- a::b stdout ----"),
            Printed::Details("a::b".into())
        );
    }

    #[test]
    fn transcripts_name_machines() {
        let words = ["--board", "raspi3b", "--", "job=shell", "x"];
        let line = RunLine::try_parse_from(words).expect("options");
        assert_eq!(line.machine.board, Board::Raspi3b);
        assert_eq!(line.words, ["job=shell", "x"]);
        assert!(RunLine::try_parse_from(["--bord"]).is_err());
    }

    #[test]
    fn every_transcript_is_well_formed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/console");
        let mut count = 0;
        for path in files::list(&folder, false).expect("folder") {
            let text = files::read_text(&path).expect("text");
            let transcript =
                Transcript::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            RunLine::try_parse_from(&transcript.options)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            count += 1;
        }
        assert!(count > 0);
    }

    #[test]
    fn differing_rows_are_shown() {
        let document = |n: u32| serde_json::json!({"rows": [{"id": "same"}, {"id": n}]});
        let text = differences(&document(1), &document(2));
        assert!(
            text.contains(r#"{"id":1}"#) && !text.contains("same"),
            "{text}"
        );
    }
}
