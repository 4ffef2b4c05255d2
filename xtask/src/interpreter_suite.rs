// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the interpreter costs on this machine: its instructions for one of BPF by callgrind, times by criterion, rbpf beside it.
//!
//! callgrind counts the instructions that a process executes, the same in each run. The example `count` of bpf-vm runs a
//! program as often as it is told; the difference of two such counts is what the runs alone take.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::Outcome;
use crate::extras;
use crate::files;
use crate::progress::Progress;
use crate::test::silent;
use crate::workspace::Workspace;

/// The version of the document's form.
const SCHEMA: u64 = 1;
/// The most x86-64 instructions for one of BPF, in the median of the programs.
const MEDIAN_LIMIT: f64 = 18.0;
/// The least that rbpf's figures are of ours, in the geometric mean of the programs that rbpf runs.
const RATIO_LIMIT: f64 = 4.0;
/// The fewest programs that this may be said of.
const FEWEST: usize = 6;
/// How often a program runs in the difference of two counts.
const RUNS: u64 = 10;

/// An interpreter that the example and the bench know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Ours,
    Theirs,
}

impl Engine {
    /// Its name in commands, and of criterion's folders.
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "bpf-vm",
            Self::Theirs => "rbpf",
        }
    }
}

/// A program's figures: of what, and how much of it by either engine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    program: &'static str,
    /// BPF instructions of a run.
    bpf: u64,
    ours: f64,
    /// rbpf's, or why there is none.
    theirs: Result<f64, String>,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        Some(self.theirs.as_ref().ok()? / self.ours)
    }
}

/// A table of them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figures {
    /// What the figures are.
    unit: &'static str,
    rows: Vec<Row>,
}

/// Why there are no figures, or none that are good.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum InterpreterError {
    /// A tool's output has no number where one should be.
    #[error("{what}: {text:?} is no number")]
    NoNumber {
        /// What the number is.
        what: String,
        /// What there is instead.
        text: String,
    },
    /// A command failed.
    #[error("`{command}` failed:\n{output}")]
    Failed {
        /// The command.
        command: String,
        /// What it printed.
        output: String,
    },
    /// cargo built nothing that can be run.
    #[error("cargo built no example `count`")]
    NoExample,
    /// Too many instructions.
    #[error(
        "the interpreter takes {found:.2} {unit} in the median, and the limit is {MEDIAN_LIMIT}"
    )]
    Median {
        /// The median.
        found: f64,
        /// Of what.
        unit: &'static str,
    },
    /// Too little faster than rbpf.
    #[error(
        "rbpf takes {found:.2} times the {unit}, in the geometric mean of {programs} programs; it has to be {RATIO_LIMIT} \
         times, of {FEWEST} programs at least"
    )]
    Ratio {
        /// The geometric mean of the ratios.
        found: f64,
        /// How many programs rbpf runs.
        programs: usize,
        /// Of what.
        unit: &'static str,
    },
}

impl Figures {
    /// The middle one of our figures, or the mean of the two in the middle.
    fn median(&self) -> f64 {
        let mut ours: Vec<_> = self.rows.iter().map(|row| row.ours).collect();
        ours.sort_by(f64::total_cmp);
        let at = |index: usize| ours.get(index).copied().unwrap_or_default();
        (at(ours.len().saturating_sub(1) / 2) + at(ours.len() / 2)) / 2.0
    }

    /// The geometric mean of the ratios, and of how many programs.
    fn ratio(&self) -> (f64, usize) {
        let ratios: Vec<_> = self.rows.iter().filter_map(Row::ratio).collect();
        let logs: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
        ((logs / ratios.len().max(1) as f64).exp(), ratios.len())
    }

    fn check_ratio(&self) -> Result<(), InterpreterError> {
        let (found, programs) = self.ratio();
        match found >= RATIO_LIMIT && programs >= FEWEST {
            true => Ok(()),
            false => Err(InterpreterError::Ratio {
                found,
                programs,
                unit: self.unit,
            }),
        }
    }

    fn document(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "program": row.program, "bpf": row.bpf, "bpf-vm": row.ours, "rbpf": row.theirs.as_ref().ok(),
                "ratio": row.ratio(),
            })
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({ "unit": self.unit, "rows": rows, "median": self.median(), "ratio": self.ratio().0 })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.unit)?;
        writeln!(
            f,
            "{:<12} {:>10} {:>10} {:>10} {:>8}",
            "program", "BPF", "bpf-vm", "rbpf", "ratio"
        )?;
        for row in &self.rows {
            write!(f, "{:<12} {:>10} {:>10.2}", row.program, row.bpf, row.ours)?;
            match (&row.theirs, row.ratio()) {
                (Ok(theirs), Some(ratio)) => writeln!(f, " {theirs:>10.2} {ratio:>8.2}")?,
                _ => writeln!(f, " {:>10} {:>8}", "-", "-")?,
            }
        }
        writeln!(f, "{:<23} {:>10.2}", "median", self.median())?;
        let (ratio, programs) = self.ratio();
        let text = format!("geometric mean of {programs}");
        writeln!(f, "{text:<34} {:>19.2}", ratio)?;
        for row in &self.rows {
            if let Err(why) = &row.theirs {
                writeln!(f, "rbpf does not run {}: {why}", row.program)?;
            }
        }
        Ok(())
    }
}

/// Runs a command to its end; its standard output and standard error.
fn output(command: &mut Command) -> Outcome<(String, String)> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (printed, errors) = (text(&output.stdout), text(&output.stderr));
    match output.status.success() {
        true => Ok((printed, errors)),
        false => Err(InterpreterError::Failed {
            command: format!("{command:?}"),
            output: format!("{printed}{errors}"),
        }
        .into()),
    }
}

fn number(what: &str, text: &str) -> Result<u64, InterpreterError> {
    text.trim().parse().map_err(|_| InterpreterError::NoNumber {
        what: what.to_owned(),
        text: text.to_owned(),
    })
}

/// What callgrind says at its end of all instructions of the process.
fn collected(errors: &str) -> Result<u64, InterpreterError> {
    let found = errors.lines().find_map(|line| line.split_once("Collected"));
    let text = found.map_or("", |(_, rest)| rest.trim_start_matches([' ', ':']));
    number("callgrind's count", text)
}

/// Why nothing can be counted here; `None` if it can.
pub(crate) fn cannot_count() -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some("the limits are those of x86-64, where callgrind runs on Linux".into());
    }
    match extras::valgrind() {
        true => None,
        false => Some("no valgrind here; the system's package of that name has callgrind".into()),
    }
}

/// Builds the example that runs a program as often as it is told.
fn build(workspace: &Workspace) -> Outcome<PathBuf> {
    let mut command = workspace.cargo();
    command
        .args([
            "build",
            "--release",
            "--package",
            "bpf-vm",
            "--example",
            "count",
        ])
        .args([
            "--target",
            "host-tuple",
            "--message-format",
            "json-render-diagnostics",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    };
    let found = text.lines().filter_map(executable).next_back();
    match output.status.success() {
        true => Ok(found.ok_or(InterpreterError::NoExample)?),
        false => Err("the example `count` does not build; the messages above say why".into()),
    }
}

/// The host's instructions for one of BPF, by callgrind.
pub(crate) fn count(workspace: &Workspace) -> Outcome<Figures> {
    let example = build(workspace)?;
    let progress = Progress::start("counting instructions");
    let counted = |engine: Engine, program: &str, times: u64| -> Outcome<(u64, u64)> {
        progress.update(&format!("counting {} of {program}", engine.name()));
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(&example)
            .args([engine.name(), program, &times.to_string()]);
        let (printed, errors) = output(&mut command)?;
        Ok((number("count's answer", &printed)?, collected(&errors)?))
    };
    let per_instruction = |engine: Engine, program: &str| -> Outcome<(u64, f64)> {
        let (bpf, once) = counted(engine, program, 1)?;
        let (_, more) = counted(engine, program, 1 + RUNS)?;
        let host = more.saturating_sub(once) as f64;
        Ok((bpf, host / RUNS as f64 / bpf.max(1) as f64))
    };
    let mut rows = Vec::new();
    for (program, _) in bpf_vm::suite::BENCHES {
        let (bpf, ours) = per_instruction(Engine::Ours, program)?;
        let theirs = match refusal(&example, program)? {
            None => Ok(per_instruction(Engine::Theirs, program)?.1),
            Some(why) => Err(why),
        };
        rows.push(Row {
            program,
            bpf,
            ours,
            theirs,
        });
    }
    Ok(Figures {
        unit: "x86-64 instructions for one of BPF",
        rows,
    })
}

/// Why rbpf does not run a program; `None` if it does.
fn refusal(example: &Path, program: &str) -> Outcome<Option<String>> {
    let mut command = Command::new(example);
    command.args([Engine::Theirs.name(), program, "1"]);
    let output = command.stdin(Stdio::null()).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let why = errors.trim().trim_start_matches("count: ").to_owned();
    Ok((!output.status.success()).then_some(why))
}

/// The times of one run, by criterion.
pub(crate) fn time(workspace: &Workspace, counts: &Figures) -> Outcome<Figures> {
    let home = workspace.target.join("criterion");
    let bench = || {
        let mut command = workspace.cargo();
        command
            .args([
                "bench",
                "--package",
                "bpf-vm",
                "--bench",
                "interpreter",
                "--target",
                "host-tuple",
            ])
            .env("CRITERION_HOME", &home);
        command
    };
    if !bench()
        .arg("--no-run")
        .stdin(Stdio::null())
        .status()?
        .success()
    {
        return Err("the bench does not build; the messages above say why".into());
    }
    silent("timing the interpreters", bench())?;
    let nanoseconds = |engine: Engine, program: &str| -> Outcome<f64> {
        let path = home
            .join(program)
            .join(engine.name())
            .join("new/estimates.json");
        let text = files::read_text(&path)?;
        let estimates: Value = serde_json::from_str(&text)?;
        let mean = estimates.pointer("/mean/point_estimate");
        Ok(mean
            .and_then(Value::as_f64)
            .ok_or_else(|| InterpreterError::NoNumber {
                what: format!("the mean in {}", path.display()),
                text,
            })?)
    };
    let row = |row: &Row| -> Outcome<Row> {
        let per_instruction =
            |engine| nanoseconds(engine, row.program).map(|time| time / row.bpf.max(1) as f64);
        let theirs = match &row.theirs {
            Ok(_) => Ok(per_instruction(Engine::Theirs)?),
            Err(why) => Err(why.clone()),
        };
        Ok(Row {
            ours: per_instruction(Engine::Ours)?,
            theirs,
            ..row.clone()
        })
    };
    Ok(Figures {
        unit: "nanoseconds for one BPF instruction",
        rows: counts.rows.iter().map(row).collect::<Outcome<_>>()?,
    })
}

/// Holds what was counted against the limits.
pub(crate) fn check_counts(counts: &Figures) -> Result<(), InterpreterError> {
    let (found, unit) = (counts.median(), counts.unit);
    match found <= MEDIAN_LIMIT {
        true => counts.check_ratio(),
        false => Err(InterpreterError::Median { found, unit }),
    }
}

/// Holds the times against the limits.
pub(crate) fn check_times(times: &Figures) -> Result<(), InterpreterError> {
    times.check_ratio()
}

/// The figures as one JSON document.
pub(crate) fn document(counts: &Figures, times: &Figures) -> Value {
    json!({
        "schema": SCHEMA, "suite": "interpreter", "instructions": counts.document(), "times": times.document(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(rows: &[(f64, Option<f64>)]) -> Figures {
        let row = |&(ours, theirs): &(f64, Option<f64>)| Row {
            program: "p",
            bpf: 1000,
            ours,
            theirs: theirs.ok_or_else(|| "it does not".into()),
        };
        Figures {
            unit: "instructions",
            rows: rows.iter().map(row).collect(),
        }
    }

    #[test]
    fn callgrind_is_read() {
        let text = "==1== Events    : Ir\n==1== Collected : 4249666\n==1==\n";
        assert_eq!(collected(text), Ok(4_249_666));
        let error = collected("==1== no such thing").expect_err("no count");
        assert!(error.to_string().contains("callgrind's count"), "{error}");
    }

    #[test]
    fn limits_are_held() {
        let good = [(18.0, Some(72.0)); 6];
        assert_eq!(check_counts(&figures(&good)), Ok(()));
        let slow = figures(&[(18.1, Some(90.0)); 6]);
        let error = check_counts(&slow).expect_err("slow").to_string();
        assert!(
            error.contains("18.10 instructions in the median"),
            "{error}"
        );
        let near = figures(&[(18.0, Some(71.0)); 6]);
        assert!(matches!(
            check_times(&near),
            Err(InterpreterError::Ratio { programs: 6, .. })
        ));
        // What rbpf does not run proves nothing.
        let few = figures(&[&good[..5], &[(18.0, None)]].concat());
        assert!(matches!(
            check_counts(&few),
            Err(InterpreterError::Ratio { programs: 5, .. })
        ));
    }

    #[test]
    fn the_table_says_what_rbpf_refuses() {
        let table = figures(&[(10.0, Some(80.0)), (12.0, None), (20.0, Some(20.0))]);
        let text = table.to_string();
        assert!(text.contains("rbpf does not run p: it does not"), "{text}");
        assert_eq!(table.median(), 12.0);
        let (ratio, programs) = table.ratio();
        assert!((ratio - 8_f64.sqrt()).abs() < 1e-9 && programs == 2);
    }
}
