// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many A64 instructions the JIT's code executes for one of BPF, on a core with LSE and on one without.

use std::fmt;
use std::time::Duration;

use bpf_vm::suite::BENCHES;
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::Outcome;
use crate::machine::{Cpu, MachineOptions, Version};
use crate::progress::Progress;
use crate::qemu::{Boot, Keyboard, Session};

/// What there is to measure other than hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// A64 instructions that compiled programs execute for one of BPF
    Jit,
    /// Instructions of this machine, and time, that the interpreter takes for one of BPF
    Interpreter,
}

/// The version of the document's form.
const SCHEMA: u64 = 1;
/// The most that a core with LSE may execute for one BPF instruction: in the median of the programs.
const MEDIAN_LIMIT: f64 = 1.0;
/// And in the worst.
const WORST_LIMIT: f64 = 1.2;
/// The most that a core without LSE may execute in a program with atomics.
const EXCLUSIVE_LIMIT: f64 = 2.0;
/// What a program with atomics is called by.
const ATOMICS: &str = "atomics";

/// One program's figures: how many instructions of each kind were executed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    program: String,
    bpf: u64,
    a64: u64,
    ratio: f64,
}

/// All of them on one kind of core.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figures {
    cpu: Cpu,
    qemu: Version,
    rows: Vec<Row>,
}

/// Why there are no figures, or none that are good.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum SuiteError {
    /// A line for programs that is not the JSON object it should be.
    #[error("the kernel's line {line:?}: {what}")]
    Line { line: String, what: String },
    /// Nothing was measured.
    #[error("the kernel printed no @jit line: it measured nothing")]
    Missing,
    /// The kernel reported a failure.
    #[error("the run failed with exit status {status}; the last lines were:\n{tail}")]
    Status { status: i32, tail: String },
    /// Programs that the kernel should have measured.
    #[error(
        "{cpu}: the kernel measured {found} programs and not {}, which `bpf_vm::suite::BENCHES` names; \
         kernel/src/bench/jit.rs has to print a row of each",
        names.join(", ")
    )]
    Programs {
        cpu: Cpu,
        found: usize,
        names: Vec<&'static str>,
    },
    /// Too many instructions.
    #[error("{}", list(.0))]
    Limits(Vec<Excess>),
}

/// A limit that was missed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Excess {
    cpu: Cpu,
    what: String,
    limit: f64,
    found: f64,
}

fn list(excesses: &[Excess]) -> String {
    let lines = excesses.iter().map(|e| {
        format!(
            "{}: {} is {:.3} A64 instructions for one of BPF, and the limit is {:.3}",
            e.cpu, e.what, e.found, e.limit
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

impl Figures {
    fn ratios(&self) -> Vec<f64> {
        let mut ratios: Vec<_> = self.rows.iter().map(|row| row.ratio).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    /// The middle one, or the mean of the two in the middle.
    fn median(&self) -> f64 {
        let ratios = self.ratios();
        let middle = ratios.len() / 2;
        let at = |index: usize| ratios.get(index).copied().unwrap_or_default();
        match ratios.len() % 2 {
            0 => (at(middle.saturating_sub(1)) + at(middle)) / 2.0,
            _ => at(middle),
        }
    }

    fn worst(&self) -> f64 {
        self.ratios().last().copied().unwrap_or_default()
    }

    /// The programs of the suite that there is no row of.
    fn missing(&self) -> Vec<&'static str> {
        let names = BENCHES.iter().map(|(name, _)| *name);
        names
            .filter(|name| self.rows.iter().all(|row| row.program != *name))
            .collect()
    }

    /// The limits that are missed.
    fn excesses(&self) -> Vec<Excess> {
        let with_atomics = |row: &&Row| row.program.contains(ATOMICS);
        let figures: Vec<(String, f64, f64)> = match self.cpu {
            Cpu::NeoverseN1 => vec![
                ("the median".into(), MEDIAN_LIMIT, self.median()),
                ("the worst".into(), WORST_LIMIT, self.worst()),
            ],
            Cpu::CortexA72 => {
                let rows = self.rows.iter().filter(with_atomics);
                rows.map(|row| (row.program.clone(), EXCLUSIVE_LIMIT, row.ratio))
                    .collect()
            }
        };
        let missed = figures
            .into_iter()
            .filter(|(_, limit, found)| found > limit);
        missed
            .map(|(what, limit, found)| Excess {
                cpu: self.cpu,
                what,
                limit,
                found,
            })
            .collect()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "A64 instructions executed for one of BPF; virt, -cpu {}, QEMU {}, counter INST_RETIRED under -icount",
            self.cpu, self.qemu
        )?;
        writeln!(
            f,
            "\n{:<12} {:>10} {:>10} {:>8}",
            "program", "BPF", "A64", "ratio"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:<12} {:>10} {:>10} {:>8.3}",
                row.program, row.bpf, row.a64, row.ratio
            )?;
        }
        writeln!(f, "{:<34} {:>8.3}", "median", self.median())?;
        writeln!(f, "{:<34} {:>8.3}", "worst", self.worst())
    }
}

/// Takes a line if it is a row.
fn take(line: &str) -> Result<Option<Row>, SuiteError> {
    let Some(json) = line.strip_prefix("@jit ") else {
        return Ok(None);
    };
    let bad = |what: String| SuiteError::Line {
        line: line.to_owned(),
        what,
    };
    let row: Value = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    let number = |field: &str| row.get(field).and_then(Value::as_u64);
    let program = row.get("program").and_then(Value::as_str);
    match (program, number("bpf"), number("a64")) {
        (Some(program), Some(bpf), Some(a64)) if bpf > 0 => Ok(Some(Row {
            program: program.to_owned(),
            bpf,
            a64,
            ratio: a64 as f64 / bpf as f64,
        })),
        _ => Err(bad("it has no program, bpf and a64, or bpf is 0".to_owned())),
    }
}

/// Measures on the core that the options name, or on each kind.
pub(crate) fn measure(
    options: &MachineOptions,
    boot: &Boot,
    limit: Option<Duration>,
) -> Outcome<Vec<Figures>> {
    let cpus = match options.cpu {
        Some(cpu) => vec![cpu],
        None => vec![Cpu::NeoverseN1, Cpu::CortexA72],
    };
    cpus.into_iter()
        .map(|cpu| {
            let options = MachineOptions {
                cpu: Some(cpu),
                ..options.clone()
            };
            measure_on(&options, cpu, boot, limit)
        })
        .collect()
}

fn measure_on(
    options: &MachineOptions,
    cpu: Cpu,
    boot: &Boot,
    limit: Option<Duration>,
) -> Outcome<Figures> {
    let words = ["job=bench", "suite=jit", "rows"].map(str::to_owned);
    let (mut session, machine) = Session::start(options, boot, &words, Keyboard::None)?;
    let progress = Progress::start(&format!("measuring on {machine}, {cpu}"));
    let (mut rows, mut first_error) = (Vec::new(), None);
    let status = session.follow(
        limit,
        |line| match take(line) {
            Ok(row) => rows.extend(row),
            Err(error) => first_error = first_error.take().or(Some(error)),
        },
        &progress,
    )?;
    drop(progress);
    match (status, first_error) {
        (_, Some(error)) => Err(error.into()),
        (0, None) if rows.is_empty() => Err(SuiteError::Missing.into()),
        (0, None) => Ok(Figures {
            cpu,
            qemu: machine.qemu,
            rows,
        }),
        (status, None) => {
            let tail = session.tail();
            Err(SuiteError::Status { status, tail }.into())
        }
    }
}

/// Prints the tables.
pub(crate) fn print(figures: &[Figures]) {
    for table in figures {
        println!("{table}");
    }
}

/// The figures as one JSON document.
pub(crate) fn document(figures: &[Figures]) -> Value {
    let row = |row: &Row| json!({ "program": row.program, "bpf": row.bpf, "a64": row.a64, "ratio": row.ratio });
    let cores = figures.iter().map(|core| {
        json!({
            "cpu": core.cpu.to_string(),
            "qemu": core.qemu.to_string(),
            "rows": core.rows.iter().map(row).collect::<Vec<_>>(),
            "median": core.median(),
            "worst": core.worst(),
        })
    });
    json!({ "schema": SCHEMA, "suite": "jit", "cores": cores.collect::<Vec<_>>() })
}

/// Holds the figures against the limits: of every program of the suite, on each core.
pub(crate) fn check(figures: &[Figures]) -> Result<(), SuiteError> {
    for core in figures {
        let names = core.missing();
        if !names.is_empty() {
            let (cpu, found) = (core.cpu, core.rows.len());
            return Err(SuiteError::Programs { cpu, found, names });
        }
    }
    let excesses: Vec<_> = figures.iter().flat_map(Figures::excesses).collect();
    match excesses.is_empty() {
        true => Ok(()),
        false => Err(SuiteError::Limits(excesses)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(cpu: Cpu, ratios: &[(&str, f64)]) -> Figures {
        let row = |(program, ratio): &(&str, f64)| Row {
            program: (*program).to_owned(),
            bpf: 1000,
            a64: (ratio * 1000.0) as u64,
            ratio: *ratio,
        };
        Figures {
            cpu,
            qemu: Version(10, 0, 2),
            rows: ratios.iter().map(row).collect(),
        }
    }

    #[test]
    fn rows_are_read() {
        let row = take(r#"@jit {"program":"sort","bpf":200,"a64":100}"#);
        let row = row.expect("valid").expect("a row");
        assert_eq!((row.program.as_str(), row.bpf, row.a64), ("sort", 200, 100));
        assert_eq!(take("program BPF"), Ok(None));
        assert!(matches!(
            take("@jit {\"program\":1}"),
            Err(SuiteError::Line { .. })
        ));
    }

    #[test]
    fn limits_are_held() {
        let n1 = |ratios| figures(Cpu::NeoverseN1, ratios).excesses();
        assert_eq!(n1(&[("a", 0.9), ("b", 1.0), ("c", 1.2)]), []);
        let missed = n1(&[("a", 0.9), ("b", 1.001), ("c", 1.201)]);
        assert_eq!(missed.len(), 2);
        let a72 = |ratios| figures(Cpu::CortexA72, ratios);
        assert_eq!(a72(&[("sort", 3.0), ("atomics", 2.0)]).excesses(), []);
        let all: Vec<_> = BENCHES.iter().map(|(name, _)| (*name, 1.0)).collect();
        let slow: Vec<_> = all
            .iter()
            .map(|(name, _)| match name.contains(ATOMICS) {
                true => (*name, 2.5),
                false => (*name, 1.0),
            })
            .collect();
        let error = check(&[a72(&slow)]).expect_err("missed").to_string();
        assert!(error.contains("cortex-a72: atomics is 2.500"), "{error}");
        assert_eq!(check(&[a72(&all), figures(Cpu::NeoverseN1, &all)]), Ok(()));
    }

    #[test]
    fn every_program_has_a_row() {
        let all: Vec<_> = BENCHES.iter().map(|(name, _)| (*name, 1.0)).collect();
        for cpu in [Cpu::NeoverseN1, Cpu::CortexA72] {
            for (at, (name, _)) in all.iter().enumerate() {
                let (mut few, names) = (all.clone(), vec![*name]);
                few.remove(at);
                let found = few.len();
                let missed = Err(SuiteError::Programs { cpu, found, names });
                assert_eq!(check(&[figures(cpu, &few)]), missed);
            }
        }
        let error = check(&[figures(Cpu::CortexA72, &all[..1])]).expect_err("one program");
        let (error, last) = (error.to_string(), all[all.len() - 1].0);
        assert!(
            error.contains("measured 1 programs") && error.contains(last),
            "{error}"
        );
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let median = |ratios: &[(&str, f64)]| figures(Cpu::NeoverseN1, ratios).median();
        assert_eq!(median(&[("a", 3.0), ("b", 1.0), ("c", 2.0)]), 2.0);
        assert_eq!(median(&[("a", 3.0), ("b", 1.0)]), 2.0);
    }
}
