// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fuzzing: builds the targets in fuzz/ with coverage and the address sanitizer, runs each for a time or a number of runs.
//!
//! The folder is laid out for cargo-fuzz, which works on it as well; here the same flags are given to cargo directly, so
//! that nothing has to be installed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use crate::Outcome;
use crate::interrupt::Guarded;
use crate::programs;
use crate::progress::Progress;
use crate::torture;
use crate::workspace::{USER_TARGET, Workspace};

/// What is fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// Any bytes as an object file
    Object,
    /// Any slots and texts through disassembler and assembler
    Disassembler,
    /// Any slots as a program for the interpreter
    Interpreter,
    /// Random valid programs, interpreter against compiled code in qemu-user
    Pair,
}

impl Target {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Disassembler => "disassembler",
            Self::Interpreter => "interpreter",
            Self::Pair => "pair",
        }
    }
}

/// How much is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Minutes for all targets together
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = torture::minutes())]
    minutes: u64,
    /// Only this target
    #[arg(long, value_enum)]
    target: Option<Target>,
    /// Seed of the mutations; 0: another one each time
    #[arg(long, default_value_t = 0)]
    seed: u32,
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    /// After so much time.
    Time(Duration),
    /// After so many inputs, from an empty corpus, so that every run is the same.
    Runs(u64),
}

/// Coverage as libFuzzer wants it, and the address sanitizer: what cargo-fuzz passes.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing -Zsanitizer=address -Ccodegen-units=1";
/// An input that takes longer than this is a hang, in seconds.
const HANG: u64 = 20;
/// Memory in MiB that a target may take.
const MEMORY: u64 = 2048;

/// The built targets.
pub(crate) struct Fuzzers {
    programs: PathBuf,
    pair: PathBuf,
    out: PathBuf,
}

/// `cargo xtask fuzz`; whether nothing was found.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Outcome<bool> {
    let fuzzers = Fuzzers::build(workspace)?;
    let targets = match &options.target {
        Some(target) => std::slice::from_ref(target),
        None => Target::value_variants(),
    };
    let share = Duration::from_secs(options.minutes * 60) / targets.len() as u32;
    let mut clean = true;
    for &target in targets {
        match fuzzers.run(target, Limit::Time(share), options.seed) {
            Ok(runs) => println!("{}: {runs} inputs, nothing found", target.name()),
            Err(error) => {
                println!("{}: {error}", target.name());
                clean = false;
            }
        }
    }
    Ok(clean)
}

impl Fuzzers {
    /// Builds all targets, and the program that runs compiled code for one of them.
    pub(crate) fn build(workspace: &Workspace) -> Outcome<Self> {
        let out = workspace.out().join("fuzz");
        let build = out.join("build");
        let mut command = workspace.cargo();
        command
            .args(["build", "--release", "--target", "host-tuple"])
            .arg("--manifest-path")
            .arg(workspace.root.join("fuzz/Cargo.toml"))
            .env("CARGO_TARGET_DIR", &build)
            .env("RUSTFLAGS", FLAGS)
            .stdin(Stdio::null());
        if !command.status()?.success() {
            return Err("the fuzz targets do not build; the messages above say why".into());
        }
        let mut command = workspace.cargo();
        command
            .args(["build", "--package", "bpf-vm", "--example", "pair"])
            .args(["--target", USER_TARGET])
            .stdin(Stdio::null());
        if !command.status()?.success() {
            return Err(
                "bpf-vm's example `pair` does not build; the messages above say why".into(),
            );
        }
        // `host-tuple` names the folder by the machine's own triple: the one that has the programs.
        let programs = fs::read_dir(&build)?
            .flatten()
            .map(|folder| folder.path().join("release"))
            .find(|folder| folder.join(Target::Object.name()).is_file())
            .ok_or("cargo built the fuzz targets somewhere else than in its target directory")?;
        let fuzzers = Self {
            programs,
            pair: workspace
                .target
                .join(USER_TARGET)
                .join("debug/examples/pair"),
            out,
        };
        // Mutations start from real objects.
        let seeds = fuzzers.folder("seeds", Target::Object)?;
        for program in programs::compile(workspace)? {
            if let Some(name) = program.file_name() {
                fs::copy(&program, seeds.join(name))?;
            }
        }
        Ok(fuzzers)
    }

    /// A folder of a target's own, made if it is not there.
    fn folder(&self, kind: &str, target: Target) -> Outcome<PathBuf> {
        let folder = self.out.join(kind).join(target.name());
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Runs one target; how many inputs it tried. An error names the input that failed and how to run it again.
    pub(crate) fn run(&self, target: Target, limit: Limit, seed: u32) -> Outcome<u64> {
        let artifacts = self.folder("artifacts", target)?;
        let log_path = self.out.join(format!("{}.log", target.name()));
        let mut command = Command::new(self.programs.join(target.name()));
        command
            .arg(format!("-seed={seed}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-timeout={HANG}"))
            .arg(format!("-rss_limit_mb={MEMORY}"))
            .arg("-print_final_stats=1")
            .env("SPRINGBOARD_PAIR", &self.pair)
            // Freed memory would count as a leak of the process that a target keeps.
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        match limit {
            Limit::Time(time) => {
                command.arg(format!("-max_total_time={}", time.as_secs()));
                command.arg(self.folder("corpus", target)?);
            }
            Limit::Runs(runs) => {
                command.arg(format!("-runs={runs}"));
            }
        }
        command.arg(self.folder("seeds", target)?);
        let progress = Progress::start(target.name());
        let start = Instant::now();
        let mut child = command.spawn()?;
        let output = child.stderr.take().ok_or("the output is a pipe")?;
        let child = Guarded::new(child);
        let mut log = File::create(&log_path)?;
        let mut last = Vec::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            writeln!(log, "{line}")?;
            progress.update(&format!(
                "{} {} s: {line}",
                target.name(),
                start.elapsed().as_secs()
            ));
            last.push(line);
        }
        let runs = last.iter().find_map(|line| {
            let number = line.strip_prefix("stat::number_of_executed_units:")?;
            number.trim().parse().ok()
        });
        // Its output has ended, so it is about to.
        let status = loop {
            if let Some(status) = child.ended() {
                break status;
            }
            thread::sleep(Duration::from_millis(10));
        };
        match (status, runs) {
            (0, Some(runs)) => Ok(runs),
            _ => Err(failure(&last, &log_path, target).into()),
        }
    }
}

/// What went wrong, from the fuzzer's output.
fn failure(lines: &[String], log: &Path, target: Target) -> String {
    let said = lines
        .iter()
        .find(|line| line.contains("panicked at") || line.contains("ERROR:"))
        .map_or("it ended without a result", String::as_str);
    let input = lines
        .iter()
        .find_map(|line| line.split("Test unit written to ").nth(1));
    let again = match input
        .map(Path::new)
        .and_then(Path::file_name)
        .and_then(OsStr::to_str)
    {
        Some(_) => format!(
            "; the input is {}; run it again by `cargo fuzz run {} FILE`",
            input.unwrap_or_default(),
            target.name()
        ),
        None => String::new(),
    };
    format!("{said}{again}; all that it said is in {}", log.display())
}
