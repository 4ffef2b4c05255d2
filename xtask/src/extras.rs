// SPDX-License-Identifier: MIT OR Apache-2.0
//! What only tests use, and do without where it cannot be had: bpftool, valgrind, and every clang from 14 on that the
//! package manager has.
//!
//! Unlike the needs in [`crate::setup`] none of this stops anything: a test that finds nothing to work with is skipped.

use std::collections::BTreeSet;
use std::process::Command;

use crate::setup::{self, Os};
use crate::workspace::Workspace;

/// The oldest clang whose objects are tested.
const OLDEST_CLANG: u32 = 14;
/// Versions are looked for up to this one.
const NEWEST_CLANG: u32 = 40;
/// Reads BTF.
const BPFTOOL: &str = "bpftool";
/// Counts what the interpreter executes; what it is held against are x86-64's figures.
const VALGRIND: &str = "valgrind";
/// What the packages are for.
const WHY: &str = "what only tests use: other versions of clang, bpftool, valgrind";
/// Where Debian has it, outside of the path of users.
const BPFTOOL_OF_ROOT: &str = "/usr/sbin/bpftool";

/// The command that lists packages by name, a line each with the name first; `None` where versions have no packages.
fn query(os: Os) -> Option<&'static [&'static str]> {
    match os {
        Os::Debian => Some(&[
            "apt-cache",
            "search",
            "--names-only",
            "^(bpftool|valgrind|clang-[0-9]+)$",
        ]),
        Os::Fedora => Some(&[
            "dnf",
            "--quiet",
            "repoquery",
            "--qf",
            "%{name}\n",
            "bpftool",
            "valgrind",
            "clang[0-9]*",
        ]),
        Os::Macos => None,
    }
}

/// Packages that tests want, in a package manager's list: the package, the program in it.
fn wanted(list: &str) -> Vec<(String, String)> {
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let names: BTreeSet<_> = names.collect();
    let program = |name: &str| {
        match name {
            BPFTOOL => return Some(name.to_owned()),
            VALGRIND => return cfg!(target_arch = "x86_64").then(|| name.to_owned()),
            _ => {}
        }
        // clang-16 is Debian's name, clang16 Fedora's; the program is clang-16 in both.
        let version = name.strip_prefix("clang")?;
        let version: u32 = version.trim_start_matches('-').parse().ok()?;
        (version >= OLDEST_CLANG).then(|| clang(version))
    };
    names
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), program(name)?)))
        .collect()
}

fn clang(version: u32) -> String {
    format!("clang-{version}")
}

/// bpftool, if it is here.
pub(crate) fn bpftool() -> Option<&'static str> {
    let mut places = [BPFTOOL, BPFTOOL_OF_ROOT].into_iter();
    places.find(|program| setup::succeeds(&[program, "version"]))
}

/// Whether valgrind is here.
pub(crate) fn valgrind() -> bool {
    setup::succeeds(&[VALGRIND, "--version"])
}

/// All clangs from 14 on that are here and compile for BPF: those with a version in their name, else the one that
/// programs are compiled with.
pub(crate) fn clangs() -> Vec<String> {
    let versions = (OLDEST_CLANG..=NEWEST_CLANG).map(clang);
    let found: Vec<_> = versions
        .filter(|clang| setup::compiles_bpf(clang))
        .collect();
    match found.is_empty() {
        true => setup::clang().into_iter().collect(),
        false => found,
    }
}

fn is_here(program: &str) -> bool {
    match program {
        BPFTOOL => bpftool().is_some(),
        VALGRIND => valgrind(),
        clang => setup::compiles_bpf(clang),
    }
}

/// What the package manager has of it.
fn offered(query: &[&str]) -> Vec<(String, String)> {
    let Some((program, arguments)) = query.split_first() else {
        return Vec::new();
    };
    let output = Command::new(program).args(arguments).output();
    let list = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    wanted(&list.unwrap_or_default())
}

/// The packages whose programs are not here.
fn missing(offered: Vec<(String, String)>) -> Vec<String> {
    let missing = offered.into_iter().filter(|(_, program)| !is_here(program));
    missing.map(|(package, _)| package).collect()
}

/// Installs what tests use and is missing, and says so; where that does not work it says that tests will be skipped.
pub(crate) fn ensure(workspace: &Workspace) {
    let Some((os, query)) = setup::this_os().and_then(|os| Some((os, query(os)?))) else {
        return;
    };
    let offered_now = offered(query);
    // An empty list is one that was never fetched.
    let fetched = !offered_now.is_empty();
    let mut packages = missing(offered_now);
    if packages.is_empty() && fetched {
        return;
    }
    let skipped = |packages: &[String], why: &str| {
        eprintln!(
            "setup: not here, so that some tests will be skipped: {}; {why}",
            packages.join(", ")
        );
    };
    let list = setup::list_step(os);
    if !setup::may_install() {
        let steps = list
            .into_iter()
            .chain(setup::install_step(os, &packages, WHY));
        let commands: Vec<_> = steps.map(|step| step.to_string()).collect();
        let commands = commands.join(" && ");
        let why = format!("not root, and sudo asks for a password; {commands}");
        return skipped(&packages, &why);
    }
    // The list that was looked into may be missing or old.
    if let Err(error) = setup::carry_out(workspace, list.as_slice()) {
        return skipped(&packages, &error.to_string());
    }
    packages = missing(offered(query));
    let install = setup::install_step(os, &packages, WHY);
    if let Err(error) = setup::carry_out(workspace, install.as_slice()) {
        skipped(&packages, &error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_both_names_are_understood() {
        let debian = "clang-13 - C, C++ and Objective-C compiler\nclang-14 - C, C++\nbpftool - Inspection\nclang-22 - C\n";
        let pair = |package: &str, program: &str| (package.to_owned(), program.to_owned());
        assert_eq!(
            wanted(debian),
            [
                pair("bpftool", "bpftool"),
                pair("clang-14", "clang-14"),
                pair("clang-22", "clang-22")
            ]
        );
        let fedora = "clang17\nclang17-libs\nclang18\nclang18\n\nclang\nbpftool\n";
        assert_eq!(
            wanted(fedora),
            [
                pair("bpftool", "bpftool"),
                pair("clang17", "clang-17"),
                pair("clang18", "clang-18")
            ]
        );
        assert_eq!(wanted(""), []);
        let counted = wanted("valgrind - instrumentation framework\nvalgrind-dbg - symbols\n");
        match cfg!(target_arch = "x86_64") {
            true => assert_eq!(counted, [pair("valgrind", "valgrind")]),
            false => assert_eq!(counted, []),
        }
    }
}
