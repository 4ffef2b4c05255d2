// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measurements for programs: collects the kernel's `@bench` and `@row` lines into one JSON document.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::Outcome;
use crate::files;
use crate::machine::{MachineOptions, Version};
use crate::programs;
use crate::progress::Progress;
use crate::qemu::{Boot, Keyboard, Session};
use crate::workspace::Workspace;

/// The version of the document's form.
const SCHEMA: u64 = 1;
/// Fields of a row, and of the document as far as the kernel knows them.
const ROW: [&str; 9] = [
    "id", "hook", "program", "target", "guard", "calls", "baseline", "total", "overhead",
];
const HEAD: [&str; 3] = ["board", "counter", "exact"];

/// Rows and what they may cost at most.
const LIMITS: [(&str, f64); 19] = [
    ("fentry/empty/workload_call", 30.0),
    ("fexit/empty/workload_call", 40.0),
    ("fmod_ret/empty/workload_call", 44.0),
    ("fentry.s/empty/workload_call", 44.0),
    ("kprobe/empty/workload_call", 60.0),
    ("kprobe-detour/empty/workload_call", 60.0),
    ("multi-entry/empty/workload_call", 36.0),
    ("attach/fentry/workload_call", 200_000.0),
    ("attach/fexit/workload_call", 200_000.0),
    ("attach/fentry.s/workload_call", 200_000.0),
    ("attach/fmod_ret/workload_call", 200_000.0),
    ("attach/fsession/workload_call", 200_000.0),
    ("attach/fexit.s/workload_call", 200_000.0),
    ("attach/fmod_ret.s/workload_call", 200_000.0),
    ("attach/fsession.s/workload_call", 200_000.0),
    ("attach/kprobe/workload_call", 200_000.0),
    ("attach/kretprobe/workload_call", 200_000.0),
    ("attach-1000/multi-entry/*", 4_000_000.0),
    ("attach-1000/multi-exit/*", 4_000_000.0),
];

/// Rows that may cost so much more than others at most: what a second program on a function adds.
const MORE: [(&str, &str, f64); 6] = [
    (
        "fentry/empty/workload_call",
        "fentry*2/empty/workload_call",
        16.0,
    ),
    (
        "fexit/empty/workload_call",
        "fexit*2/empty/workload_call",
        16.0,
    ),
    (
        "kprobe/empty/workload_call",
        "kprobe*2/empty/workload_call",
        16.0,
    ),
    (
        "fmod_ret/empty/workload_call",
        "fmod_ret*2/empty/workload_call",
        16.0,
    ),
    (
        "fentry.s/empty/workload_call",
        "fentry.s*2/empty/workload_call",
        16.0,
    ),
    (
        "multi-entry/empty/workload_call",
        "multi-entry*2/empty/workload_call",
        16.0,
    ),
];

/// Why there are no measurements.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum BenchError {
    /// A line for programs that is not the JSON object it should be.
    #[error("the kernel's line {line:?}: {what}")]
    Line { line: String, what: String },
    /// No heading, or no rows.
    #[error("the kernel printed no {0} line: it measured nothing")]
    Missing(&'static str),
    /// Not KIND:FUNCTION.
    #[error("--attach {0:?}: KIND:FUNCTION expected, for example fentry:workload_call")]
    Attach(String),
    /// A name that the kernel command line cannot hold.
    #[error(
        "{0:?} contains a space, which the kernel command line cannot hold; the last parts of a function's path are enough \
         (`Socket::process`), a file can be renamed"
    )]
    Space(String),
    /// A row that costs more than it may, or is not there.
    #[error("row {id}: it may cost {limit} instructions, and costs {}", found.map_or("nothing that was measured".to_owned(), |found| found.to_string()))]
    Limit {
        id: &'static str,
        limit: f64,
        found: Option<f64>,
    },
    /// The kernel reported a failure.
    #[error("the run failed with exit status {0}; the messages above say why")]
    Status(i32),
}

/// The lines for programs, collected.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Collected {
    head: Option<Map<String, Value>>,
    /// The rows, in the order printed.
    pub(crate) rows: Vec<Value>,
}

impl Collected {
    /// Takes a line if it is one for programs; false if it is for people.
    pub(crate) fn take(&mut self, line: &str) -> Result<bool, BenchError> {
        let object = |json: &str, fields: &[&str]| {
            let bad = |what: String| BenchError::Line {
                line: line.to_owned(),
                what,
            };
            let object: Map<String, Value> =
                serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
            match fields.iter().find(|field| !object.contains_key(**field)) {
                Some(field) => Err(bad(format!("field {field:?} is missing"))),
                None => Ok(object),
            }
        };
        if let Some(json) = line.strip_prefix("@row ") {
            self.rows.push(object(json, &ROW)?.into());
        } else if let Some(json) = line.strip_prefix("@bench ") {
            self.head = Some(object(json, &HEAD)?);
        }
        Ok(line.starts_with('@'))
    }

    /// The document.
    fn document(self, qemu: Version) -> Result<Value, BenchError> {
        let head = self.head.ok_or(BenchError::Missing("@bench"))?;
        if self.rows.is_empty() {
            return Err(BenchError::Missing("@row"));
        }
        let mut document = Map::from_iter([("schema".to_owned(), SCHEMA.into())]);
        document.extend(head);
        document.insert("qemu".into(), qemu.to_string().into());
        document.insert("rows".into(), self.rows.into());
        Ok(document.into())
    }
}

/// Someone else's program and where to hook it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Foreign {
    object: PathBuf,
    words: Vec<String>,
}

impl Foreign {
    /// An object file, and KIND:FUNCTION.
    pub(crate) fn new(object: PathBuf, attach: String) -> Result<Self, BenchError> {
        let valid = attach.split_once(':');
        if !valid.is_some_and(|(kind, function)| !kind.is_empty() && !function.is_empty()) {
            return Err(BenchError::Attach(attach));
        }
        let name = object.file_name().unwrap_or_default().to_string_lossy();
        for text in [&*name, &attach] {
            if text.contains(char::is_whitespace) {
                return Err(BenchError::Space(text.to_owned()));
            }
        }
        let words = vec![
            format!("object={}", object_name(&object)),
            format!("attach={attach}"),
        ];
        Ok(Self { object, words })
    }
}

/// What the kernel calls an object file: its name without `.bpf.o` or `.o`.
fn object_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".bpf.o").or(name.strip_suffix(".o"));
    stem.unwrap_or(&name).to_owned()
}

/// Measures; returns the document. The table is printed as the kernel prints it, unless `quiet`.
pub(crate) fn measure(
    workspace: &Workspace,
    options: &MachineOptions,
    boot: &Boot,
    foreign: Option<&Foreign>,
    limit: Option<Duration>,
    quiet: bool,
) -> Outcome<Value> {
    let mut words = vec!["job=bench".to_owned(), "rows".to_owned()];
    let mut boot = boot.clone();
    if let Some(foreign) = foreign {
        words.extend(foreign.words.iter().cloned());
        let mut objects = programs::compile(workspace)?;
        objects.retain(|object| object_name(object) != object_name(&foreign.object));
        objects.push(foreign.object.clone());
        let initrd = workspace.out().join("bench.cpio");
        programs::pack(&objects, &initrd)?;
        boot = boot.with_initrd(initrd);
    }
    let (mut session, machine) = Session::start(options, &boot, &words, Keyboard::None)?;
    let progress = Progress::start(&format!("measuring on {machine}"));
    let mut collected = Collected::default();
    let mut first_error = None;
    let status = session.follow(
        limit,
        |line| match collected.take(line) {
            Ok(true) => progress.update(&format!(
                "measuring on {machine}: {} rows",
                collected.rows.len()
            )),
            Ok(false) if quiet => {}
            Ok(false) => progress.print(line),
            Err(error) => first_error = first_error.take().or(Some(error)),
        },
        &progress,
    )?;
    drop(progress);
    match (status, first_error) {
        (0, None) => Ok(collected.document(machine.qemu)?),
        (_, Some(error)) => Err(error.into()),
        (status, None) if quiet => {
            Err(format!("{}\n{}", BenchError::Status(status), session.tail()).into())
        }
        (status, None) => Err(BenchError::Status(status).into()),
    }
}

/// Holds the rows of a document against [`LIMITS`].
pub(crate) fn check(document: &Value) -> Result<(), BenchError> {
    let rows = document.get("rows").and_then(Value::as_array);
    let overhead = |id: &str| {
        let is_it = |row: &&Value| row.get("id").and_then(Value::as_str) == Some(id);
        let row = rows.into_iter().flatten().find(is_it)?;
        row.get("overhead").and_then(Value::as_f64)
    };
    let within = |id, limit: f64| match overhead(id) {
        Some(found) if found <= limit => Ok(()),
        found => Err(BenchError::Limit { id, limit, found }),
    };
    LIMITS
        .into_iter()
        .try_for_each(|(id, limit)| within(id, limit))?;
    MORE.into_iter().try_for_each(|(one, two, more)| {
        let one = overhead(one).ok_or(BenchError::Limit {
            id: one,
            limit: more,
            found: None,
        })?;
        within(two, one + more)
    })
}

/// Writes the document.
pub(crate) fn write(document: &Value, path: &Path) -> Outcome<()> {
    let text = serde_json::to_string_pretty(document)?;
    Ok(files::write(path, format!("{text}\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    const LINE: &str = r#"@row {"id":"fentry/empty/call","hook":"fentry","program":"empty","target":"call","guard":"none","calls":1000,"baseline":13,"total":20,"overhead":7}"#;
    const HEADING: &str = r#"@bench {"board":"virt","counter":"instructions","exact":true}"#;

    /// README.md shows lines of what `cargo xtask run` printed, which the book has whole.
    #[test]
    fn the_readme_shows_rows_of_the_book() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let read = |path: &str| fs::read_to_string(root.join(path)).expect(path);
        let (readme, run) = (read("README.md"), read("book/src/output/run.txt"));
        let rows = readme.lines().filter(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let guards = ["none", "word", "active", "bits", "bits+cpu", "core"];
            matches!(words[..], [_, _, _, guard, number, ..]
                if guards.contains(&guard) && number.parse::<f64>().is_ok())
        });
        let mut shown = 0;
        for row in rows {
            assert!(
                run.lines().any(|line| line.trim_end() == row),
                "not there: {row}"
            );
            shown += 1;
        }
        assert!(shown > 20, "{shown} rows");
    }

    #[test]
    fn lines_become_a_document() {
        let mut collected = Collected::default();
        assert_eq!(collected.take("| a table |"), Ok(false));
        assert_eq!(collected.take(HEADING), Ok(true));
        assert_eq!(collected.take(LINE), Ok(true));
        let document = collected.document(Version(10, 0, 2)).expect("document");
        let text = document.to_string();
        assert!(
            text.starts_with(
                r#"{"schema":1,"board":"virt","counter":"instructions","exact":true,"qemu":"10.0.2","rows":[{"id":"fentry/empty/call","hook""#
            ),
            "{text}"
        );
        assert_eq!(document.pointer("/rows/0/overhead"), Some(&7.into()));
    }

    #[test]
    fn damaged_lines_are_errors() {
        let mut collected = Collected::default();
        let message = |error: Result<bool, BenchError>| error.expect_err("refused").to_string();
        assert!(message(collected.take("@row {")).contains("@row {"));
        let short = LINE.replace("\"calls\"", "\"kalls\"");
        assert!(message(collected.take(&short)).contains("\"calls\" is missing"));
        assert_eq!(
            collected.document(Version(1, 0, 0)),
            Err(BenchError::Missing("@bench"))
        );
        let mut collected = Collected::default();
        assert_eq!(collected.take(HEADING), Ok(true));
        assert_eq!(
            collected.document(Version(1, 0, 0)),
            Err(BenchError::Missing("@row"))
        );
    }

    #[test]
    fn rows_are_held_against_their_limits() {
        let of = |id| LIMITS.into_iter().find(|(other, _)| *other == id);
        let seconds = MORE.map(|(one, two, more)| (two, of(one).expect("a limit").1 + more));
        let limits: Vec<_> = LIMITS.into_iter().chain(seconds).collect();
        let document = |above: Option<&str>| {
            let row = |&(id, limit): &(&str, f64)| {
                let overhead = if above == Some(id) {
                    limit + 1.0
                } else {
                    limit
                };
                serde_json::json!({"id": id, "overhead": overhead})
            };
            serde_json::json!({"rows": limits.iter().map(row).collect::<Vec<_>>()})
        };
        assert_eq!(check(&document(None)), Ok(()));
        let text = |document: &Value| check(document).expect_err("refused").to_string();
        for &(id, limit) in &limits {
            let above = text(&document(Some(id)));
            let costs = format!("may cost {limit} instructions, and costs {}", limit + 1.0);
            assert!(above.contains(id) && above.ends_with(&costs), "{above}");
        }
        let missing = text(&serde_json::json!({"rows": []}));
        assert!(
            missing.ends_with("costs nothing that was measured"),
            "{missing}"
        );
    }

    #[test]
    fn foreign_programs_become_words() {
        let foreign = |object: &str, attach: &str| Foreign::new(object.into(), attach.into());
        let words = foreign("/tmp/mine.o", "fentry:workload_call").map(|f| f.words);
        assert_eq!(
            words,
            Ok(vec![
                "object=mine".into(),
                "attach=fentry:workload_call".into()
            ])
        );
        for attach in ["workload_call", "fentry:", ":f"] {
            let error = foreign("x.o", attach);
            assert_eq!(error, Err(BenchError::Attach(attach.into())));
        }
        for (object, attach) in [("x.o", "fentry:<A as B>::f"), ("my x.o", "fentry:f")] {
            assert!(matches!(foreign(object, attach), Err(BenchError::Space(_))));
        }
    }
}
