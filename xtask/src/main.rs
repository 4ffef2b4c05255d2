// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host side of Springboard: sets up, builds, boots, tests, measures. `cargo xtask help` lists the commands.
//!
//! A run, numbered:
//! 1. [`setup`], [`extras`]: what the machine lacks is installed, or named.
//! 2. [`kernel`], [`linked`]: cargo builds the kernel; its ELF file is read and its sites checked.
//! 3. [`callgraph`], [`notrace`], [`symbols`], [`btf`], [`image`]: the functions that no hook may touch, the names, the types, the bootable
//!    Image.
//! 4. [`programs`], [`initrd`]: clang compiles the BPF programs; they travel as a cpio archive.
//! 5. [`machine`], [`qemu`], [`console`]: the board, its emulator, its console, its last line.
//! 6. [`bench`], [`jit_suite`], [`interpreter_suite`], [`test`], [`kernel_tests`], [`interop`], [`report`]: what is made of the
//!    console's lines.
//!
//! [`bpf`] runs, shows and compiles BPF objects without any of that.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::{Parser, Subcommand};

extern crate alloc;

mod audit;
mod bench;
mod bpf;
mod btf;
mod callgraph;
mod console;
mod dwarf;
mod extras;
mod files;
mod frames;
mod fuzz;
#[path = "../../kernel/src/glob.rs"]
mod glob;
mod image;
mod initrd;
mod inlined;
mod interop;
mod interpreter_suite;
mod interrupt;
mod jit_suite;
mod kernel;
mod kernel_tests;
#[path = "../../kernel/src/ksyms.rs"]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the kernel reads what is only written here")
)]
mod ksyms;
mod linked;
mod machine;
mod notrace;
mod programs;
mod progress;
mod qemu;
mod report;
mod rules;
mod sdcard;
mod setup;
mod symbols;
#[path = "../../kernel/src/targets.rs"]
#[expect(dead_code, reason = "xtask does not ask what is overridable")]
mod targets;
mod test;
mod torture;
mod waiting;
mod workspace;

use machine::MachineOptions;
use qemu::{Boot, Keyboard};
use workspace::Workspace;

/// The result of a command: errors of any stage, each with a message that says what to do.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Sets up, builds, boots, tests and measures Springboard
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    propagate_version = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Set up, build, boot in QEMU, hook, measure, print the table
    Run {
        #[command(flatten)]
        machine: MachineOptions,
        /// End the run after this many seconds; without it, after 900, and a shell when it is left
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Words for the kernel command line
        words: Vec<String>,
    },
    /// Boot into the interactive shell (Ctrl-A x ends QEMU)
    Shell {
        #[command(flatten)]
        machine: MachineOptions,
        /// Words for the kernel command line
        words: Vec<String>,
    },
    /// Set up, then run every test on this machine and in QEMU
    Test {
        /// Only tests whose names contain this text
        filter: Option<String>,
        /// Only these kinds of tests
        #[arg(long, value_enum, value_delimiter = ',')]
        only: Vec<test::Kind>,
    },
    /// Measure, and write the figures as JSON
    Bench {
        #[command(flatten)]
        machine: MachineOptions,
        /// Where to write the figures
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Measure this instead of hooks, and hold it against its limits
        #[arg(long, value_enum, conflicts_with_all = ["object", "attach"])]
        suite: Option<jit_suite::Suite>,
        /// Measure this BPF object instead of Springboard's own programs
        #[arg(long, value_name = "FILE", requires = "attach")]
        object: Option<PathBuf>,
        /// Where to hook the object, for example fentry:workload_call
        #[arg(long, value_name = "KIND:FUNCTION", requires = "object")]
        attach: Option<String>,
        /// End the run after this many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 900)]
        timeout: u64,
    },
    /// Fuzz loader, disassembler, interpreter, and interpreter against JIT
    Fuzz {
        #[command(flatten)]
        options: fuzz::Options,
    },
    /// Hook and unhook hundreds of functions at random while all cores and contexts call them, and check everything
    Torture {
        #[command(flatten)]
        options: torture::Options,
    },
    /// Write the files for a Raspberry Pi's SD card
    Image {
        /// Board that the card is for
        #[arg(long, value_enum)]
        board: sdcard::Card,
        /// Folder to write to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Install what is missing: Rust's parts, QEMU, clang, libbpf's headers
    Setup {
        /// Print the steps without doing them, as for a machine that has nothing
        #[arg(long)]
        plan: bool,
        /// System to plan for [default: this one]
        #[arg(long, value_enum, requires = "plan")]
        os: Option<setup::Os>,
    },
    /// Print the functions that hooks may not touch, and why
    Notrace,
    /// Prove that hooks reach no allocator, no lock and no site, and how much stack they take
    Audit {
        /// Where to write what was found
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Count the functions that hooks may touch
    Sites {
        /// Print each one
        #[arg(long)]
        list: bool,
    },
    /// Show or write the types of what the kernel exports
    Btf {
        /// Where to write them as BTF, for `bpftool btf dump file`
        #[arg(long, value_name = "FILE")]
        raw: Option<PathBuf>,
        /// Where to write them as C, for programs (springboard.h)
        #[arg(long, value_name = "FILE")]
        header: Option<PathBuf>,
        /// Print each one as bpftool does
        #[arg(long)]
        dump: bool,
    },
    /// Run, disassemble, compile or describe a BPF object file on this machine
    Bpf {
        #[command(subcommand)]
        action: bpf::Action,
    },
    /// Build the book
    Book,
    /// Boot a kernel that cargo built (what `cargo run` calls)
    #[command(hide = true)]
    Runner {
        /// The kernel's ELF file
        elf: PathBuf,
        #[command(flatten)]
        machine: MachineOptions,
        /// Words for the kernel command line
        words: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = interrupt::install()
        .map_err(Into::into)
        .and_then(|()| execute(arguments.command));
    match outcome {
        // The kernel's statuses are small; what does not fit is a failure all the same.
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Sets up, and checks the machine's options before anything is built for it.
fn prepare(workspace: &Workspace, machine: &MachineOptions) -> Outcome<Boot> {
    setup::ensure(workspace)?;
    machine.machine(machine::qemu_version()?)?;
    Boot::build(workspace)
}

/// After how many seconds a run ends that nobody types into.
const RUN_SECONDS: u64 = 900;

/// Who types on the console, by the words of the kernel's command line: a shell is typed into.
fn keyboard(words: &[String]) -> Keyboard {
    match words.iter().any(|word| word == "job=shell") {
        true => Keyboard::Terminal,
        false => Keyboard::None,
    }
}

/// Carries out a command; the exit status of this program.
fn execute(command: Task) -> Outcome<i32> {
    let workspace = Workspace::find()?;
    match command {
        Task::Run {
            machine,
            timeout,
            words,
        } => {
            let boot = prepare(&workspace, &machine)?;
            let words = job(words, "bench");
            let keyboard = keyboard(&words);
            let limit = timeout.or((keyboard == Keyboard::None).then_some(RUN_SECONDS));
            let limit = limit.map(Duration::from_secs);
            qemu::run(&machine, &boot, &words, keyboard, limit)
        }
        Task::Shell { machine, words } => {
            let boot = prepare(&workspace, &machine)?;
            qemu::run(
                &machine,
                &boot,
                &job(words, "shell"),
                Keyboard::Terminal,
                None,
            )
        }
        Task::Runner {
            elf,
            machine,
            words,
        } => {
            let boot = Boot::of(&workspace, &elf)?;
            let words = job(words, "bench");
            qemu::run(&machine, &boot, &words, keyboard(&words), None)
        }
        Task::Test { filter, only } => {
            setup::ensure(&workspace)?;
            Ok(match test::run(&workspace, filter.as_deref(), &only)? {
                true => 0,
                false => 1,
            })
        }
        Task::Bench {
            machine,
            json,
            suite,
            object,
            attach,
            timeout,
        } => {
            let limit = Some(Duration::from_secs(timeout));
            if let Some(jit_suite::Suite::Jit) = suite {
                let boot = prepare(&workspace, &machine)?;
                let figures = jit_suite::measure(&machine, &boot, limit)?;
                jit_suite::print(&figures);
                if let Some(path) = json {
                    bench::write(&jit_suite::document(&figures), &path)?;
                    println!("written: {}", path.display());
                }
                return Ok(jit_suite::check(&figures).map(|()| 0)?);
            }
            if let Some(jit_suite::Suite::Interpreter) = suite {
                return bench_interpreter(&workspace, json.as_deref());
            }
            let foreign = match object.zip(attach) {
                Some((object, attach)) => Some(bench::Foreign::new(object, attach)?),
                None => None,
            };
            let boot = prepare(&workspace, &machine)?;
            let document =
                bench::measure(&workspace, &machine, &boot, foreign.as_ref(), limit, false)?;
            if let Some(path) = json {
                bench::write(&document, &path)?;
                println!("written: {}", path.display());
            }
            Ok(0)
        }
        Task::Fuzz { options } => {
            setup::ensure(&workspace)?;
            Ok(match fuzz::run(&workspace, &options)? {
                true => 0,
                false => 1,
            })
        }
        Task::Torture { options } => {
            let boot = prepare(&workspace, &options.machine())?;
            torture::run(&options, &boot)
        }
        Task::Image { board, out } => {
            setup::ensure(&workspace)?;
            let boot = Boot::build(&workspace)?;
            for name in sdcard::write(board, &boot, &out)? {
                println!("written: {}", out.join(name).display());
            }
            println!("README.txt there names the firmware files to add.");
            Ok(0)
        }
        Task::Setup { plan: true, os } => setup::print_plan(&workspace, os).map(|()| 0),
        Task::Setup { .. } => {
            println!(
                "{}",
                match setup::ensure(&workspace)? {
                    true => "setup: done",
                    false => "setup: everything is there",
                }
            );
            Ok(0)
        }
        Task::Notrace => print_notrace(&workspace),
        Task::Audit { json } => Ok(match audit::run(&workspace, json.as_deref())? {
            true => 0,
            false => 1,
        }),
        Task::Sites { list } => print_sites(&workspace, list),
        Task::Btf { raw, header, dump } => {
            write_btf(&workspace, raw.as_deref(), header.as_deref(), dump).map(|()| 0)
        }
        Task::Bpf { action } => bpf::act(&workspace, action),
        Task::Book => {
            let index = build_book(&workspace)?;
            println!("written: {}", index.display());
            Ok(0)
        }
    }
}

/// Counts and times the interpreter on this machine, and holds the figures against their limits.
fn bench_interpreter(workspace: &Workspace, json: Option<&Path>) -> Outcome<i32> {
    setup::ensure(workspace)?;
    extras::ensure(workspace);
    if let Some(why) = interpreter_suite::cannot_count() {
        return Err(why.into());
    }
    let counts = interpreter_suite::count(workspace)?;
    println!("{counts}");
    let times = interpreter_suite::time(workspace, &counts)?;
    println!("{times}");
    if let Some(path) = json {
        bench::write(&interpreter_suite::document(&counts, &times), path)?;
        println!("written: {}", path.display());
    }
    interpreter_suite::check_counts(&counts)?;
    interpreter_suite::check_times(&times)?;
    Ok(0)
}

/// The words with the job in front; a bare `bench`, `shell`, `test`, `torture` or `integrity` names it, otherwise it is `default`.
fn job(mut words: Vec<String>, default: &str) -> Vec<String> {
    let named = words.iter().position(|word| {
        ["bench", "shell", "test", "torture", "integrity"].contains(&word.as_str())
    });
    let job = match named {
        Some(at) => words.remove(at),
        None => default.to_owned(),
    };
    if !words.iter().any(|word| word.starts_with("job=")) {
        words.insert(0, format!("job={job}"));
    }
    words
}

fn print_notrace(workspace: &Workspace) -> Outcome<i32> {
    let (linked, set, _) = image::examine(workspace, &kernel::build(workspace)?)?;
    let name = |index: usize| linked.functions.get(index).map_or("?", |f| f.name.as_str());
    for (index, why) in &set.members {
        match why {
            notrace::Why::Root(reason) => println!("{}  (root: {reason})", name(*index)),
            notrace::Why::Caller(caller) => println!("{}  (from {})", name(*index), name(*caller)),
        }
    }
    println!(
        "\n{} functions; branches through a register that {} does not resolve:",
        set.members.len(),
        rules::RULES
    );
    for (index, address) in set.not_followed() {
        let start = linked.functions.get(index).map_or(0, |f| f.address);
        println!("{address:#x}  {}+{:#x}", name(index), address - start);
    }
    Ok(0)
}

fn print_sites(workspace: &Workspace, list: bool) -> Outcome<i32> {
    let (linked, set, _) = image::examine(workspace, &kernel::build(workspace)?)?;
    let sites = symbols::sites(&linked, |index| set.contains(index));
    for index in sites.iter().filter(|_| list) {
        if let Some(function) = linked.functions.get(*index) {
            println!("{:#x}  {}", function.address, function.name);
        }
    }
    println!(
        "{} functions, {} with a patchable entry, {} of them sites; {} are notrace",
        linked.functions.iter().filter(|f| !f.label).count(),
        linked.entries.len(),
        sites.len(),
        set.members.len()
    );
    Ok(0)
}

/// Reads the kernel's types and writes them wherever they are wanted; says what there is if nowhere.
fn write_btf(
    workspace: &Workspace,
    raw: Option<&Path>,
    header: Option<&Path>,
    dump: bool,
) -> Outcome<()> {
    let graph = btf::of_elf(&files::read(&kernel::build(workspace)?)?)?;
    let files = [
        (raw, btf::write::write(&graph)?),
        (header, btf::header::header(&graph).into_bytes()),
    ];
    for (path, bytes) in files {
        if let Some(path) = path {
            files::write(path, &bytes)?;
            eprintln!("written: {}", path.display());
        }
    }
    match dump {
        true => print!("{}", btf::dump::dump(&graph)),
        false => println!("{}", btf::dump::summary(&graph)),
    }
    Ok(())
}

/// Builds the book by the program of its own that links mdBook; returns the first page.
pub(crate) fn build_book(workspace: &Workspace) -> Outcome<PathBuf> {
    let out = workspace.target.join("book");
    let status = workspace
        .cargo()
        .args(["run", "--target", "host-tuple", "--package", "xtask"])
        .args(["--features", "book", "--bin", "book", "--"])
        .args([workspace.root.join("book"), out.clone()])
        // mdBook is compiled for one short run.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .stdin(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(out.join("index.html")),
        false => Err("the book does not build; the messages above say why".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_has_a_help_text() {
        let all = Arguments::command();
        let of_bpf = all.find_subcommand("bpf").expect("bpf").get_subcommands();
        for command in all.get_subcommands().chain(of_bpf) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn bare_words_name_the_job() {
        for (given, expected) in [
            ("", "job=bench"),
            ("shell", "job=shell"),
            ("integrity", "job=integrity"),
            ("counter=none shell", "job=shell counter=none"),
            ("job=test from=x", "job=test from=x"),
        ] {
            assert_eq!(job(words(given), "bench").join(" "), expected, "{given:?}");
        }
    }

    #[test]
    fn a_shell_is_typed_into() {
        for (given, expected) in [
            ("shell", Keyboard::Terminal),
            ("counter=none job=shell", Keyboard::Terminal),
            ("", Keyboard::None),
            ("test", Keyboard::None),
        ] {
            assert_eq!(keyboard(&job(words(given), "bench")), expected, "{given:?}");
        }
    }
}
