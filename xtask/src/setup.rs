// SPDX-License-Identifier: MIT OR Apache-2.0
//! Set-up: what a machine needs, how each system gets it, what is missing here.
//!
//! One table of needs ([`NEEDS`]); Rust's targets and components are those of rust-toolchain.toml.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::ValueEnum;

use crate::Outcome;
use crate::files;
use crate::workspace::Workspace;

/// Systems whose package manager is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Os {
    /// Debian, Ubuntu and what derives from them: apt
    Debian,
    /// Fedora and what derives from it: dnf
    Fedora,
    /// macOS: Homebrew
    Macos,
}

/// How to see that something is there.
#[derive(Debug)]
enum Check {
    /// A command that starts.
    Runs(&'static [&'static str]),
    /// A clang that compiles for BPF.
    BpfClang,
    /// libbpf's headers, in the system's folder or in the target directory.
    LibbpfHeaders,
}

/// Something that running or testing needs besides Rust.
#[derive(Debug)]
struct Need {
    name: &'static str,
    why: &'static str,
    check: Check,
    /// Package names for Debian, Fedora, macOS; "" where the system has none.
    packages: [&'static str; 3],
}

/// Everything besides Rust.
const NEEDS: [Need; 4] = [
    Need {
        name: "QEMU",
        why: "boots the kernel",
        check: Check::Runs(&["qemu-system-aarch64", "--version"]),
        packages: ["qemu-system-arm", "qemu-system-aarch64", "qemu"],
    },
    Need {
        name: "QEMU's user mode",
        why: "runs tests of generated code on this machine",
        check: Check::Runs(&["qemu-aarch64", "--version"]),
        packages: ["qemu-user", "qemu-user", ""],
    },
    Need {
        name: "clang",
        why: "compiles the BPF programs",
        check: Check::BpfClang,
        packages: ["clang", "clang", "llvm"],
    },
    Need {
        name: "libbpf's headers",
        why: "are what BPF programs are written against",
        check: Check::LibbpfHeaders,
        packages: ["libbpf-dev", "libbpf-devel", ""],
    },
];

/// Where libbpf's headers are installed where no package has them, below the target directory.
const OWN_LIBBPF: &str = "libbpf/root/usr/include";
/// The version of libbpf that is fetched where no package has it.
const LIBBPF_VERSION: &str = "v1.5.0";

/// Why the set-up stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// This system's package manager is not in the table.
    #[error(
        "this system is none of debian, fedora, macos (see /etc/os-release); install by hand: {0}"
    )]
    UnknownOs(String),
    /// Something has to be installed and this user may not.
    #[error("not root, and sudo asks for a password; run this, then try again:\n    {0}")]
    NotAllowed(String),
    /// A step failed.
    #[error("`{0}` failed; see its messages above")]
    Step(String),
    /// A step succeeded and what it was for is still not there.
    #[error("still missing after the installation: {0}")]
    StillMissing(String),
    /// rust-toolchain.toml lacks a line.
    #[error("rust-toolchain.toml has no line `{0} = …`")]
    Toolchain(&'static str),
}

/// A command to run, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    why: String,
    command: Vec<String>,
    /// Whether it changes the system, so that only root may do it.
    root: bool,
}

impl Step {
    fn new(why: impl Into<String>, root: bool, command: &[&str]) -> Self {
        let command = command.iter().map(ToString::to_string).collect();
        let why = why.into();
        Self { why, command, root }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sudo = if self.root { "sudo " } else { "" };
        write!(f, "{sudo}{}", self.command.join(" "))
    }
}

/// What rust-toolchain.toml pins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Toolchain {
    channel: String,
    components: Vec<String>,
    targets: Vec<String>,
}

impl Toolchain {
    fn parse(text: &str) -> Result<Self, SetupError> {
        let strings = |key: &'static str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(name, _)| name.trim() == key)
                .map(|(_, value)| {
                    let quoted = value.split('"').skip(1).step_by(2);
                    quoted.map(str::to_owned).collect::<Vec<_>>()
                })
                .ok_or(SetupError::Toolchain(key))
        };
        Ok(Self {
            channel: strings("channel")?.join(""),
            components: strings("components")?,
            targets: strings("targets")?,
        })
    }

    /// The parts that are not installed. Without rustup only targets can be looked for.
    fn missing(&self) -> Self {
        let installed = |what: &str| {
            let rustup = Command::new("rustup")
                .args([what, "list", "--installed", "--toolchain", &self.channel])
                .output();
            rustup
                .ok()
                .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let without =
            |wanted: &[String], listed: Option<String>, part_of: fn(&str, &str) -> bool| {
                let listed = listed.unwrap_or_default();
                let absent = |name: &&String| !listed.lines().any(|line| part_of(line, name));
                wanted.iter().filter(absent).cloned().collect::<Vec<_>>()
            };
        let Some(targets) = installed("target") else {
            let has = |target: &String| {
                let arguments = ["--print", "target-libdir", "--target", target];
                let output = Command::new("rustc").args(arguments).output();
                output.is_ok_and(|o| Path::new(String::from_utf8_lossy(&o.stdout).trim()).is_dir())
            };
            let targets = self.targets.iter().filter(|target| !has(target));
            return Self {
                targets: targets.cloned().collect(),
                ..Self::default()
            };
        };
        Self {
            channel: self.channel.clone(),
            // Listed as "clippy-x86_64-unknown-linux-gnu".
            components: without(&self.components, installed("component"), |line, name| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            }),
            targets: without(&self.targets, Some(targets), |line, name| line == name),
        }
    }
}

/// The step that fetches the list of packages, where that is one of its own.
pub(crate) fn list_step(os: Os) -> Option<Step> {
    (os == Os::Debian).then(|| Step::new("the list of packages", true, &["apt-get", "update"]))
}

/// The step that installs packages, if there are any.
pub(crate) fn install_step(os: Os, packages: &[impl AsRef<str>], why: &str) -> Option<Step> {
    let install: &[&str] = match os {
        Os::Debian => &["apt-get", "install", "--yes", "--no-install-recommends"],
        Os::Fedora => &["dnf", "install", "--assumeyes"],
        Os::Macos => &["brew", "install"],
    };
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    let step = || Step::new(why, os != Os::Macos, &[install, &packages].concat());
    (!packages.is_empty()).then(step)
}

/// The steps that get `needs` and the toolchain's parts on a system.
fn plan(os: Os, needs: &[&Need], toolchain: &Toolchain) -> Vec<Step> {
    let mut steps = Vec::new();
    for (what, parts) in [
        ("target", &toolchain.targets),
        ("component", &toolchain.components),
    ] {
        if !parts.is_empty() {
            let mut command = vec!["rustup", what, "add", "--toolchain", &toolchain.channel];
            command.extend(parts.iter().map(String::as_str));
            let why = format!("Rust {what}s of the pinned toolchain");
            steps.push(Step::new(why, false, &command));
        }
    }
    let packages: Vec<&str> = needs
        .iter()
        .filter_map(|need| need.packages.get(os as usize))
        .copied()
        .filter(|package| !package.is_empty())
        .collect();
    if !packages.is_empty() {
        let why = needs
            .iter()
            .filter(|need| {
                need.packages
                    .get(os as usize)
                    .is_some_and(|p| !p.is_empty())
            })
            .map(|need| format!("{} ({})", need.name, need.why))
            .collect::<Vec<_>>()
            .join(", ");
        steps.extend(list_step(os));
        steps.extend(install_step(os, &packages, &why));
    }
    let headers = |need: &&Need| matches!(need.check, Check::LibbpfHeaders);
    if os == Os::Macos && needs.iter().any(headers) {
        let root = format!("target/{}", OWN_LIBBPF.trim_end_matches("/usr/include"));
        steps.push(Step::new(
            "libbpf's sources, for its headers",
            false,
            &[
                "git",
                "clone",
                "--depth=1",
                &format!("--branch={LIBBPF_VERSION}"),
                "https://github.com/libbpf/libbpf",
                "target/libbpf",
            ],
        ));
        steps.push(Step::new(
            "libbpf's headers",
            false,
            &[
                "make",
                "--directory=target/libbpf/src",
                &format!("DESTDIR=../../../{root}"),
                "install_headers",
                "install_uapi_headers",
            ],
        ));
    }
    steps
}

/// The system from the contents of /etc/os-release (freedesktop.org os-release(5): ID, then ID_LIKE).
fn os_of(release: &str) -> Option<Os> {
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_matches('"').to_owned())
    };
    let ids = [value("ID="), value("ID_LIKE=")];
    ids.iter()
        .flatten()
        .flat_map(|ids| ids.split_whitespace())
        .find_map(|id| match id {
            "debian" | "ubuntu" => Some(Os::Debian),
            "fedora" | "rhel" => Some(Os::Fedora),
            _ => None,
        })
}

pub(crate) fn this_os() -> Option<Os> {
    match cfg!(target_os = "macos") {
        true => Some(Os::Macos),
        false => os_of(&fs::read_to_string("/etc/os-release").ok()?),
    }
}

/// Whether a command can be started and ends well.
pub(crate) fn succeeds(command: &[&str]) -> bool {
    let Some((program, arguments)) = command.split_first() else {
        return false;
    };
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The clang to compile BPF programs with: `$CLANG`, the one on the path, Homebrew's (Apple's knows no BPF).
pub(crate) fn clang() -> Option<String> {
    let own = std::env::var("CLANG").ok();
    let others = [
        "clang",
        "/opt/homebrew/opt/llvm/bin/clang",
        "/usr/local/opt/llvm/bin/clang",
    ];
    own.into_iter()
        .chain(others.map(str::to_owned))
        .find(|clang| compiles_bpf(clang))
}

/// Whether that is a clang which is here and knows BPF.
pub(crate) fn compiles_bpf(clang: &str) -> bool {
    let output = Command::new(clang).arg("--print-targets").output();
    output.is_ok_and(|o| {
        let text = String::from_utf8_lossy(&o.stdout).into_owned();
        text.split_whitespace().any(|word| word == "bpf")
    })
}

/// The folder of libbpf's headers where they do not come with the system.
pub(crate) fn own_headers(workspace: &Workspace) -> Option<std::path::PathBuf> {
    let folder = workspace.target.join(OWN_LIBBPF);
    folder.join("bpf/bpf_helpers.h").exists().then_some(folder)
}

fn is_there(need: &Need, workspace: &Workspace) -> bool {
    match need.check {
        Check::Runs(command) => succeeds(command),
        Check::BpfClang => clang().is_some(),
        Check::LibbpfHeaders => {
            Path::new("/usr/include/bpf/bpf_helpers.h").exists() || own_headers(workspace).is_some()
        }
    }
}

fn missing(workspace: &Workspace, os: Option<Os>) -> Vec<&'static Need> {
    let has_package = |need: &&Need| {
        let package = os.and_then(|os| need.packages.get(os as usize));
        package.is_none_or(|p| !p.is_empty()) || matches!(need.check, Check::LibbpfHeaders)
    };
    NEEDS
        .iter()
        .filter(has_package)
        .filter(|need| !is_there(need, workspace))
        .collect()
}

fn names(needs: &[&Need], toolchain: &Toolchain) -> String {
    let rust = toolchain.targets.iter().chain(&toolchain.components);
    let needs = needs.iter().map(|need| need.name.to_owned());
    let all: BTreeSet<_> = needs
        .chain(rust.map(|part| format!("Rust's {part}")))
        .collect();
    all.into_iter().collect::<Vec<_>>().join(", ")
}

fn toolchain(workspace: &Workspace) -> Outcome<Toolchain> {
    let text = files::read_text(&workspace.root.join("rust-toolchain.toml"))?;
    Ok(Toolchain::parse(&text)?)
}

/// Prints all steps for a system, this one if none is named, as on a machine that has nothing; does nothing.
pub(crate) fn print_plan(workspace: &Workspace, os: Option<Os>) -> Outcome<()> {
    let os = os
        .or_else(this_os)
        .ok_or_else(|| SetupError::UnknownOs("--os names the system to plan for".into()))?;
    let all: Vec<_> = NEEDS.iter().collect();
    for step in plan(os, &all, &toolchain(workspace)?) {
        println!("# {}\n{step}", step.why);
    }
    println!(
        "# Tests also use, and are skipped without: bpftool, every clang from 14 on that has a package of its own"
    );
    Ok(())
}

/// Installs what is missing and says so. Returns whether there was anything to do.
pub(crate) fn ensure(workspace: &Workspace) -> Outcome<bool> {
    let os = this_os();
    let toolchain = toolchain(workspace)?;
    let look = || (missing(workspace, os), toolchain.missing());
    let (needs, rust) = look();
    if needs.is_empty() && rust.targets.is_empty() && rust.components.is_empty() {
        return Ok(false);
    }
    let absent = names(&needs, &rust);
    eprintln!("setup: missing here: {absent}");
    let os = match os {
        Some(os) => os,
        None if needs.is_empty() => Os::Debian,
        None => return Err(SetupError::UnknownOs(absent).into()),
    };
    let steps = plan(os, &needs, &rust);
    if steps.iter().any(|step| step.root) && !may_install() {
        let commands: Vec<_> = steps.iter().map(ToString::to_string).collect();
        return Err(SetupError::NotAllowed(commands.join(" &&\n    ")).into());
    }
    carry_out(workspace, &steps)?;
    let (needs, rust) = look();
    match names(&needs, &rust) {
        none if none.is_empty() => Ok(true),
        absent => Err(SetupError::StillMissing(absent).into()),
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout == b"0\n")
}

/// Whether this user may change the system without being asked for a password.
pub(crate) fn may_install() -> bool {
    is_root() || succeeds(&["sudo", "-n", "true"])
}

/// Does the steps in order, up to the first that fails, and says what each is for.
pub(crate) fn carry_out(workspace: &Workspace, steps: &[Step]) -> Result<(), SetupError> {
    let sudo = !is_root();
    for step in steps {
        eprintln!("setup: {}: {}", step.why, step.command.join(" "));
        let with_sudo = (step.root && sudo).then(|| "sudo".to_owned());
        let mut words = with_sudo.iter().chain(&step.command);
        let Some(program) = words.next() else {
            continue;
        };
        let status = Command::new(program)
            .args(words)
            .current_dir(&workspace.root)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(SetupError::Step(step.to_string()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pinned() -> Toolchain {
        let file = include_str!("../../rust-toolchain.toml");
        Toolchain::parse(file).expect("rust-toolchain.toml")
    }

    fn commands(os: Os) -> Vec<String> {
        let all: Vec<_> = NEEDS.iter().collect();
        let steps = plan(os, &all, &pinned());
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_toolchain_file_is_understood() {
        let pinned = pinned();
        assert!(pinned.channel.starts_with("1."), "{pinned:?}");
        assert!(pinned.targets.iter().any(|t| t == crate::workspace::TARGET));
        assert!(
            pinned
                .targets
                .iter()
                .any(|t| t == crate::workspace::USER_TARGET)
        );
        assert!(pinned.components.iter().any(|c| c == "clippy"));
        assert!(matches!(
            Toolchain::parse("channel = \"1\""),
            Err(SetupError::Toolchain("components"))
        ));
    }

    #[test]
    fn each_system_has_its_steps() {
        let rust = |steps: &[String]| {
            steps[0].starts_with("rustup target add --toolchain 1.")
                && steps[1].starts_with("rustup component add --toolchain 1.")
        };
        let debian = commands(Os::Debian);
        assert!(rust(&debian));
        assert_eq!(
            debian[2..],
            [
                "sudo apt-get update",
                "sudo apt-get install --yes --no-install-recommends qemu-system-arm qemu-user clang libbpf-dev"
            ]
        );
        let fedora = commands(Os::Fedora);
        assert!(rust(&fedora));
        assert_eq!(
            fedora[2..],
            ["sudo dnf install --assumeyes qemu-system-aarch64 qemu-user clang libbpf-devel"]
        );
        let macos = commands(Os::Macos);
        assert!(rust(&macos));
        assert_eq!(macos[2], "brew install qemu llvm");
        assert!(macos[3].starts_with("git clone") && macos[4].contains("install_headers"));
        assert_eq!(macos.len(), 5);
    }

    #[test]
    fn nothing_missing_is_no_step() {
        for os in [Os::Debian, Os::Fedora, Os::Macos] {
            assert_eq!(plan(os, &[], &Toolchain::default()), []);
        }
        let one = plan(Os::Debian, &[&NEEDS[2]], &Toolchain::default());
        assert_eq!(one.len(), 2);
        assert!(one[1].command.ends_with(&["clang".to_owned()]));
    }

    #[test]
    fn systems_are_told_apart() {
        for (release, os) in [
            ("NAME=x\nID=debian\n", Some(Os::Debian)),
            (
                "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
                Some(Os::Debian),
            ),
            ("ID=fedora\n", Some(Os::Fedora)),
            (
                "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
                Some(Os::Fedora),
            ),
            ("ID=arch\n", None),
            ("", None),
        ] {
            assert_eq!(os_of(release), os, "{release:?}");
        }
    }
}
