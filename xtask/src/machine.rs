// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine to emulate: board, interrupt controller, exception level, cores, and QEMU's options for it.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use clap::{Args, ValueEnum};

/// The emulator's command.
pub(crate) const QEMU: &str = "qemu-system-aarch64";

/// Boards that QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Board {
    /// QEMU's generic arm64 machine
    Virt,
    /// Raspberry Pi 3 B
    Raspi3b,
    /// Raspberry Pi 4 B (QEMU 9 or later)
    Raspi4b,
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Virt => "virt",
            Self::Raspi3b => "raspi3b",
            Self::Raspi4b => "raspi4b",
        })
    }
}

/// Cores that QEMU's virt machine emulates here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Cpu {
    /// Armv8.0: atomics by exclusive loads and stores
    CortexA72,
    /// Armv8.2: atomics in one instruction (LSE)
    NeoverseN1,
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CortexA72 => "cortex-a72",
            Self::NeoverseN1 => "neoverse-n1",
        })
    }
}

/// What executes the instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// QEMU's emulation: instructions are counted exactly
    Tcg,
    /// Linux's hypervisor, on an arm64 machine
    Kvm,
    /// macOS's hypervisor, on an Apple machine
    Hvf,
}

/// The options that say which machine to emulate.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineOptions {
    /// Board to emulate
    #[arg(long, value_enum, default_value_t = Board::Virt, global = true)]
    pub(crate) board: Board,
    /// Version of the interrupt controller [virt only; default: 3]
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=3), global = true)]
    pub(crate) gic: Option<u8>,
    /// Exception level that the kernel is entered at [virt: default 1; raspi: always 2]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2), global = true)]
    pub(crate) el: Option<u8>,
    /// Number of cores [virt: 1 to 8, default 4; raspi: always 4]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8), global = true)]
    pub(crate) cpus: Option<u8>,
    /// Kind of core [virt only; default: cortex-a72]
    #[arg(long, value_enum, global = true)]
    pub(crate) cpu: Option<Cpu>,
    /// What executes the instructions
    #[arg(long, value_enum, default_value_t = Accel::Tcg, global = true)]
    pub(crate) accel: Accel,
    /// Emulate the cores in parallel: faster, and nothing can be counted
    #[arg(long, global = true)]
    pub(crate) parallel: bool,
    /// Device tree to hand over instead of the board's own
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) dtb: Option<PathBuf>,
    /// Initrd to hand over instead of the compiled programs
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) initrd: Option<PathBuf>,
}

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Why a machine cannot be emulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MachineError {
    /// No emulator.
    #[error("{QEMU} does not start; `cargo xtask setup` installs it")]
    NoQemu,
    /// The emulator's version is unknown.
    #[error("`{QEMU} --version` prints no version: {0:?}")]
    Version(String),
    /// An option that the board does not have.
    #[error("{board} has {has}: leave {option} out")]
    Option {
        board: Board,
        has: &'static str,
        option: &'static str,
    },
    /// The device tree could not be written.
    #[error("the device tree of {0} cannot be written: {1}")]
    Tree(Board, String),
    /// A board that this version does not know.
    #[error(
        "{board} needs QEMU {needs} or later, here is {found}; on Debian 12 its backports have one"
    )]
    TooOld {
        board: Board,
        needs: Version,
        found: Version,
    },
}

impl MachineError {
    /// Whether a newer emulator would help: tests count such a board as skipped.
    pub(crate) fn is_old_qemu(&self) -> bool {
        matches!(self, Self::TooOld { .. })
    }
}

/// The version that `qemu-system-aarch64 --version` prints.
fn parse_version(text: &str) -> Result<Version, MachineError> {
    let word = text
        .split_once("version ")
        .map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit() && c != '.'))
        .and_then(|mut words| words.next());
    let numbers: Vec<u32> = word
        .into_iter()
        .flat_map(|word| word.split('.'))
        .filter_map(|number| number.parse().ok())
        .collect();
    match numbers[..] {
        [major, minor, patch, ..] => Ok(Version(major, minor, patch)),
        _ => Err(MachineError::Version(text.into())),
    }
}

/// The version of the emulator on this machine.
pub(crate) fn qemu_version() -> Result<Version, MachineError> {
    let output = Command::new(QEMU).arg("--version").output();
    let output = output.map_err(|_| MachineError::NoQemu)?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// A machine that can be emulated here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Which board.
    pub(crate) board: Board,
    /// Version of the interrupt controller; of no meaning on the raspi boards.
    pub(crate) gic: u8,
    /// Exception level at entry.
    pub(crate) el: u8,
    /// Number of cores.
    pub(crate) cpus: u8,
    /// Which kind, if it is emulated and the board leaves a choice.
    pub(crate) cpu: Cpu,
    /// What executes.
    pub(crate) accel: Accel,
    /// Whether retired instructions can be counted (QEMU's icount).
    pub(crate) counts: bool,
    /// Version of the emulator.
    pub(crate) qemu: Version,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.board)?;
        if self.board == Board::Virt {
            write!(f, " gicv{} el{}", self.gic, self.el)?;
        }
        if (self.board, self.cpus) != (Board::Virt, 4) && self.board == Board::Virt {
            write!(f, " {} core", self.cpus)?;
            f.write_str(if self.cpus == 1 { "" } else { "s" })?;
        }
        f.write_str(if self.counts { " icount" } else { "" })
    }
}

impl MachineOptions {
    /// The options of `board`, everything else as it comes.
    pub(crate) fn of(board: Board) -> Self {
        Self {
            board,
            gic: None,
            el: None,
            cpus: None,
            cpu: None,
            accel: Accel::Tcg,
            parallel: false,
            dtb: None,
            initrd: None,
        }
    }

    /// Checks the options against the board and the emulator's version.
    pub(crate) fn machine(&self, qemu: Version) -> Result<Machine, MachineError> {
        let board = self.board;
        let refuse = |has, option| Err(MachineError::Option { board, has, option });
        if board != Board::Virt {
            match self {
                Self { gic: Some(_), .. } => {
                    return refuse("one interrupt controller, its own", "--gic");
                }
                Self { el: Some(1), .. } => return refuse("an entry at EL2 only", "--el"),
                Self { cpus: Some(n), .. } if *n != 4 => return refuse("four cores", "--cpus"),
                Self { cpu: Some(_), .. } => return refuse("one kind of core, its own", "--cpu"),
                Self { accel, .. } if *accel != Accel::Tcg => {
                    return refuse("emulated cores only", "--accel");
                }
                _ => {}
            }
        }
        if self.accel != Accel::Tcg && self.cpu.is_some() {
            return refuse("this machine's own cores under a hypervisor", "--cpu");
        }
        if self.accel != Accel::Tcg && self.el == Some(2) {
            return refuse("an entry at EL1 only under a hypervisor", "--el 2");
        }
        let needs = Version(9, 0, 0);
        if board == Board::Raspi4b && qemu < needs {
            return Err(MachineError::TooOld {
                board,
                needs,
                found: qemu,
            });
        }
        Ok(Machine {
            board,
            gic: self.gic.unwrap_or(3),
            el: self.el.unwrap_or(if board == Board::Virt { 1 } else { 2 }),
            cpus: self.cpus.unwrap_or(4),
            cpu: self.cpu.unwrap_or(Cpu::CortexA72),
            accel: self.accel,
            counts: self.accel == Accel::Tcg && !self.parallel,
            qemu,
        })
    }
}

impl Machine {
    /// The device tree to pass to a board that QEMU starts without one.
    pub(crate) fn device_tree(&self) -> Result<Option<Vec<u8>>, MachineError> {
        let tree = match self.board {
            Board::Virt => return Ok(None),
            Board::Raspi3b => boards::trees::raspi3b(),
            Board::Raspi4b => boards::trees::raspi4b(),
        };
        match tree {
            Ok(tree) => Ok(Some(tree)),
            Err(error) => Err(MachineError::Tree(self.board, error.to_string())),
        }
    }

    /// QEMU's options for the hardware.
    pub(crate) fn options(&self) -> Vec<OsString> {
        let hypervisor = self.accel != Accel::Tcg;
        let mut options: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| options.extend(words.iter().map(ToString::to_string));
        match self.board {
            Board::Virt => {
                let el2 = if self.el == 2 {
                    ",virtualization=on"
                } else {
                    ""
                };
                let gic = match self.accel {
                    Accel::Kvm => "host".to_owned(),
                    Accel::Tcg | Accel::Hvf => self.gic.to_string(),
                };
                add(&["-M", &format!("virt,gic-version={gic}{el2}")]);
                let cpu = self.cpu.to_string();
                add(&["-cpu", if hypervisor { "host" } else { &cpu }]);
                add(&["-smp", &self.cpus.to_string(), "-m", "512"]);
            }
            board => add(&["-M", &board.to_string()]),
        }
        add(&["-nic", "none", "-nographic"]);
        match (self.accel, self.counts) {
            (Accel::Tcg, true) => add(&["-icount", "shift=0,sleep=off"]),
            (Accel::Tcg, false) => add(&["-accel", "tcg,thread=multi"]),
            (Accel::Kvm, _) => add(&["-accel", "kvm"]),
            (Accel::Hvf, _) => add(&["-accel", "hvf"]),
        }
        if !hypervisor {
            add(&["-semihosting-config", "enable=on,target=native"]);
        }
        options.into_iter().map(OsString::from).collect()
    }

    /// The words of the kernel command line that tell it about the machine.
    pub(crate) fn words(&self) -> Vec<String> {
        let counter = match (self.accel, self.counts) {
            (Accel::Tcg, true) => Some("counter=instructions"),
            (Accel::Tcg, false) => Some("counter=none"),
            (Accel::Kvm | Accel::Hvf, _) => None,
        };
        let semihosting = (self.accel == Accel::Tcg).then_some("semihosting");
        [counter, semihosting]
            .into_iter()
            .flatten()
            .map(str::to_owned)
            .chain([
                format!("qemu={}", self.qemu),
                format!("board={}", self.board),
            ])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Version = Version(10, 0, 2);

    fn text(machine: &Machine) -> String {
        let options: Vec<_> = machine.options();
        let words: Vec<_> = options.iter().filter_map(|o| o.to_str()).collect();
        words.join(" ")
    }

    #[test]
    fn versions_are_read() {
        for (text, version) in [
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds)\nCopyright",
                Some(NEW),
            ),
            ("QEMU emulator version 7.2.15", Some(Version(7, 2, 15))),
            ("", None),
            ("version x", None),
        ] {
            assert_eq!(parse_version(text).ok(), version, "{text:?}");
        }
    }

    #[test]
    fn machines_become_options() {
        let mut options = MachineOptions::of(Board::Virt);
        let machine = options.machine(NEW).expect("virt");
        assert_eq!(
            text(&machine),
            "-M virt,gic-version=3 -cpu cortex-a72 -smp 4 -m 512 -nic none -nographic -icount shift=0,sleep=off \
             -semihosting-config enable=on,target=native"
        );
        assert_eq!(
            machine.words().join(" "),
            "counter=instructions semihosting qemu=10.0.2 board=virt"
        );
        options.cpu = Some(Cpu::NeoverseN1);
        let other = options.machine(NEW).expect("virt");
        assert!(text(&other).contains(" -cpu neoverse-n1 "));
        options.cpu = None;
        options.gic = Some(2);
        options.el = Some(2);
        options.parallel = true;
        let machine = options.machine(NEW).expect("virt");
        assert!(text(&machine).starts_with("-M virt,gic-version=2,virtualization=on "));
        assert!(text(&machine).contains("-accel tcg,thread=multi"));
        assert!(machine.words().contains(&"counter=none".into()));
        let machine = MachineOptions::of(Board::Raspi3b)
            .machine(NEW)
            .expect("raspi3b");
        assert!(text(&machine).starts_with("-M raspi3b -nic none"));
        options.el = None;
        options.accel = Accel::Kvm;
        let machine = options.machine(NEW).expect("kvm");
        assert!(text(&machine).contains("-cpu host") && !text(&machine).contains("semihosting"));
        assert_eq!(machine.words().join(" "), "qemu=10.0.2 board=virt");
    }

    #[test]
    fn boards_refuse_what_they_do_not_have() {
        let raspi = || MachineOptions::of(Board::Raspi3b);
        for options in [
            MachineOptions {
                gic: Some(2),
                ..raspi()
            },
            MachineOptions {
                el: Some(1),
                ..raspi()
            },
            MachineOptions {
                cpus: Some(2),
                ..raspi()
            },
            MachineOptions {
                accel: Accel::Kvm,
                ..raspi()
            },
            MachineOptions {
                cpu: Some(Cpu::NeoverseN1),
                ..raspi()
            },
            MachineOptions {
                accel: Accel::Kvm,
                cpu: Some(Cpu::CortexA72),
                ..MachineOptions::of(Board::Virt)
            },
            MachineOptions {
                accel: Accel::Hvf,
                el: Some(2),
                ..MachineOptions::of(Board::Virt)
            },
        ] {
            let error = options.machine(NEW).expect_err("refused");
            assert!(matches!(error, MachineError::Option { .. }), "{error}");
        }
        let old = MachineOptions::of(Board::Raspi4b).machine(Version(7, 2, 0));
        let error = old.expect_err("too old");
        assert!(
            error.is_old_qemu() && error.to_string().contains("7.2.0"),
            "{error}"
        );
    }
}
