// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of what others make of what is made here: bpftool of the kernel's types, every clang of springboard.h.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bpf_vm::object::Object;

use crate::Outcome;
use crate::btf;
use crate::extras;
use crate::files;
use crate::kernel;
use crate::programs;
use crate::report::{Report, Verdict};
use crate::setup;
use crate::workspace::Workspace;

/// A program that uses libbpf's tracing macros and the kernel's types; it is only compiled.
const MACROS: &str = "xtask/tests/springboard_h.bpf.c";

/// Runs those whose names `fits` says to run. The Image is there, and springboard.h with it.
pub(crate) fn run(workspace: &Workspace, fits: impl Fn(&str) -> bool, report: &mut Report) {
    let name = "tools/bpftool reads the kernel's types";
    if fits(name) {
        match extras::bpftool() {
            None => report.add(name, skipped("bpftool"), None),
            Some(bpftool) => report.run(name, || read_back(workspace, bpftool)),
        }
    }
    let clangs = extras::clangs();
    if clangs.is_empty() {
        report.add("tools/springboard.h", skipped("clang"), None);
    }
    for clang in clangs {
        let name = format!("tools/springboard.h by {clang}");
        if fits(&name) {
            report.run(&name, || compile_all(workspace, &clang));
        }
    }
}

fn skipped(program: &str) -> Verdict {
    Verdict::Skipped(format!(
        "no {program} is here, and the package manager has none or could not install it"
    ))
}

/// bpftool has to print the section as this program does.
fn read_back(workspace: &Workspace, bpftool: &str) -> Outcome<()> {
    let graph = btf::of_elf(&files::read(&kernel::build(workspace)?)?)?;
    let path = workspace.out().join("kernel.btf");
    files::write(&path, &btf::write::write(&graph)?)?;
    let output = Command::new(bpftool)
        .args(["btf", "dump", "file"])
        .arg(&path)
        .stdin(Stdio::null())
        .output()?;
    let (printed, complaint) = (text(output.stdout), text(output.stderr));
    if !output.status.success() {
        return Err(format!("bpftool refuses {}: {complaint}", path.display()).into());
    }
    let expected = btf::dump::dump(&graph);
    let differs = expected.lines().zip(printed.lines()).find(|(a, b)| a != b);
    match differs {
        Some((own, its)) => Err(format!(
            "bpftool prints\n    {its}\nand `cargo xtask btf --dump`\n    {own}"
        )
        .into()),
        None if expected.lines().count() != printed.lines().count() => Err(format!(
            "bpftool prints {} lines, `cargo xtask btf --dump` {}",
            printed.lines().count(),
            expected.lines().count()
        )
        .into()),
        None => Ok(()),
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Every sample compiles against springboard.h and libbpf's headers alone, with all warnings errors, and loads.
fn compile_all(workspace: &Workspace, clang: &str) -> Outcome<()> {
    let own_headers = setup::own_headers(workspace);
    let include = workspace.include();
    let folders: Vec<&Path> = [Some(&*include), own_headers.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    let out = workspace.out().join("tools").join(clang.replace('/', "_"));
    std::fs::create_dir_all(&out)?;
    let compile = |source: &Path| -> Outcome<PathBuf> {
        let name = source.file_name().ok_or("a source has a name")?;
        let object = out.join(name).with_extension("o");
        let options = programs::options(&folders, source, &object);
        let output = Command::new(clang)
            .args(options)
            .stdin(Stdio::null())
            .output()?;
        match output.status.success() {
            true => Ok(object),
            false => Err(text(output.stderr).into()),
        }
    };
    compile(&workspace.root.join(MACROS))?;
    for source in programs::sources(workspace)? {
        let object = compile(&source)?;
        Object::parse(&files::read(&object)?)
            .map_err(|error| format!("{}: {error}", object.display()))?;
    }
    Ok(())
}
