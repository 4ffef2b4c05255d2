// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands: their table, how one is found, how its arguments are completed, and those that change something.

use super::inspect;
use super::{Shell, ShellError};
use crate::arch::pmu::{self, Counter};
use crate::bpf::Engine;
use crate::hook::linux::WAYS;
use crate::hook::{
    self, Function, HookId, How, Native, Place, ProbeWay, Protection, Settings, WayIn, livepatch,
};
use crate::ksyms::Flags;
use crate::workload::{PATCHES, TARGETS, TRANSFER_BYTES, Transfer};
use crate::{arch, bench, bpf, integrity, println, sched, symbols, system};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use trampoline::{Kind, ProbeKind};

/// What a command returns.
pub(super) type Outcome = Result<(), ShellError>;

/// What an argument is, for completion.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    Command,
    Function,
    Program,
    Map,
    Patch,
    Target,
    Word(&'static str),
    /// Nothing that could be completed.
    None,
}

/// A command.
pub(super) struct Command {
    name: &'static str,
    /// Its arguments; brackets mark what may be left out.
    arguments: &'static str,
    /// A line, and more for `help COMMAND`; [`CRASHES`] stands for their names.
    help: &'static str,
    /// The last kind also takes what follows: names of functions may hold spaces.
    completes: &'static [Argument],
    run: fn(&mut Shell, &'static Command, &str) -> Outcome,
}

impl Command {
    /// Name and arguments.
    pub(super) fn usage(&self) -> String {
        format!("{} {}", self.name, self.arguments)
            .trim_end()
            .to_owned()
    }

    /// What it does, in a line.
    pub(super) fn summary(&self) -> &'static str {
        self.help.lines().next().unwrap_or_default()
    }
}

macro_rules! commands {
    ($($name:literal, $arguments:literal, [$($completes:expr),*], $run:path, $help:literal;)*) => {
        &[$(Command { name: $name, arguments: $arguments, help: $help, completes: &[$($completes),*], run: $run }),*]
    };
}

/// Stands in a help text for the names of all crashes.
const CRASHES: &str = "{crashes}";

/// All commands, in the order of `help`.
pub(super) static COMMANDS: &[Command] = commands![
    "help", "[COMMAND]", [Argument::Command], help, "lists the commands, or explains one";
    "functions", "[PATTERN]", [Argument::Function], inspect::functions, "functions that can be hooked
    PATTERN is a name in which * stands for anything; without a * every name that holds it fits";
    "programs", "", [], inspect::programs, "BPF programs of the initrd's objects";
    "attach", "PROGRAM [FUNCTION] [interp|jit|native] [KIND] [GUARD] [cookie=N] [WAY]", [Argument::Program, Argument::Function], attach,
    "hooks a program onto a function, as its section says
    PROGRAM is OBJECT/PROGRAM, or OBJECT if it has one program, run by the interpreter or compiled (jit, if not said)
    or, with native, one of the kernel's own: empty, count, again (which calls workload_call); then KIND is fentry, if not said,
    fexit, fmod_ret, fsession, kprobe, kretprobe, kprobe.multi or kretprobe.multi
    FUNCTION is a full name or the end of one, of a BPF program what its section names, if not said; for a kprobe it may be
    FUNCTION+OFFSET, any instruction of any function; for a kprobe.multi or kretprobe.multi it is a PATTERN, in which * stands for
    anything: it is put on every function that fits
    GUARD keeps the program from running inside itself: word, if not said; context: inside any program; pinned: not, but it
    stays on its core; none: not
    WAY is one of Linux's: linux (a BPF trampoline), linux-list or linux-callops (ftrace with the list of ops or per-callsite ops; with
    -regs at the end all registers are saved), linux-fprobe, linux-fprobe-exit (of programs in kprobe.multi, kretprobe.multi),
    linux-kprobe (a BRK; of programs in kprobe, kretprobe)";
    "detach", "ID|FUNCTION", [Argument::Function], detach, "takes off a hook, or all hooks of a function";
    "replace", "FUNCTION BY", [Argument::Function, Argument::Function], replace, "a function by another one of the kernel
    FUNCTION is one that is marked overridable; BY takes and returns the same. Who is in it ends in it; `detach` gives it back";
    "freplace", "PROGRAM ID", [Argument::Program], freplace, "a function of an attached BPF program by another program
    PROGRAM says by its section, freplace/FUNCTION, which; ID is the hook of the one that calls it";
    "patch", "[NAME]", [Argument::Patch], patch, "puts a live patch on, or lists them
    functions that have to change together are replaced task by task, none in the middle of them; `detach` takes it off so";
    "hooks", "", [], inspect::hooks, "what is hooked
    bytes is the size of the trampoline, which its hooks share, stack the deepest of a hit in bytes, hits what a native hook counted;
    misses are hits that were turned away: 0 if none was, else by context: task/softirq/hardirq/NMI";
    "show", "FUNCTION", [Argument::Function], inspect::show, "live code of a function's entry and of its trampoline";
    "maps", "", [], inspect::maps, "maps of the objects that are loaded";
    "map", "dump MAP", [Argument::Word("dump"), Argument::Map], inspect::map, "keys and values of a map, OBJECT.MAP
    of a ring buffer: its records, which are then gone";
    "trace", "", [], inspect::trace, "what programs printed since the last time";
    "call", "[N] [FUNCTION]", [Argument::None, Argument::Target], call, "calls a function N times
    FUNCTION is workload_call, workload_nested, workload_struct, workload_six or workload_exchange, the first if not said; N is 1000 if not
    said; ^C ends it early";
    "tcp", "[BYTES]", [], tcp, "moves BYTES over TCP on a loopback, 65536 if not said";
    "crash", "KIND", [], crash, "goes wrong on purpose, to see the report
    KIND is one of {crashes}; site and trampoline change code behind the hook engine's back";
    "integrity", "", [], integrity, "compares the code with what was linked, and says which hook owns each difference
    if one is no hook's, poweroff ends the run with 1";
    "bench", "", [], bench, "measures what hooks cost and prints the table; nothing may be hooked";
    "cpus", "", [], inspect::cpus, "the cores that run";
    "tasks", "", [], inspect::tasks, "the kernel's threads";
    "mem", "", [], inspect::mem, "memory in use";
    "poweroff", "[CODE]", [], poweroff, "ends the run with an exit code, 0 if not said and nothing was found wrong";
];

/// Runs a line.
pub(super) fn execute(shell: &mut Shell, line: &str) -> Outcome {
    let (name, arguments) = first_word(line);
    if name.is_empty() {
        return Ok(());
    }
    let command = find(name)?;
    (command.run)(shell, command, arguments)
}

/// The first word and the rest, both without spaces around them.
pub(super) fn first_word(line: &str) -> (&str, &str) {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (word, rest.trim_start())
}

/// The command called `name`; an error names the one most like it.
fn find(name: &str) -> Result<&'static Command, ShellError> {
    if let Some(command) = COMMANDS.iter().find(|command| command.name == name) {
        return Ok(command);
    }
    // Alike is what begins and ends alike: one letter wrong, missing or too many leaves all the others in these two parts.
    let alike = |known: &str| {
        let same = |a: &mut dyn Iterator<Item = (u8, u8)>| a.take_while(|(a, b)| a == b).count();
        let start = same(&mut known.bytes().zip(name.bytes()));
        let end = same(&mut known.bytes().rev().zip(name.bytes().rev()));
        start + end
    };
    let best = COMMANDS.iter().max_by_key(|command| alike(command.name));
    let near = best.filter(|best| 2 * alike(best.name) >= best.name.len().max(name.len()));
    Err(ShellError::Unknown(
        name.to_owned(),
        near.map(|command| command.name),
    ))
}

/// Completion for the line editor: the length of the word before the cursor, and what it could become.
pub(super) fn complete(before: &str) -> (usize, Vec<String>) {
    let Some((name, mut rest)) = before.trim_start().split_once(' ') else {
        let typed = before.trim_start();
        return (typed.len(), candidates(Argument::Command, typed));
    };
    let kinds = COMMANDS
        .iter()
        .find(|command| command.name == name)
        .map_or(&[][..], |command| command.completes);
    let Some((last, others)) = kinds.split_last() else {
        return (0, Vec::new());
    };
    for kind in others {
        match rest.trim_start().split_once(' ') {
            Some((_, behind)) => rest = behind,
            None => {
                return (
                    rest.trim_start().len(),
                    candidates(*kind, rest.trim_start()),
                );
            }
        }
    }
    let typed = rest.trim_start();
    (typed.len(), candidates(*last, typed))
}

/// What begins with `typed`.
fn candidates(kind: Argument, typed: &str) -> Vec<String> {
    let mut all: Vec<String> = match kind {
        Argument::Command => COMMANDS
            .iter()
            .map(|command| command.name.to_owned())
            .collect(),
        Argument::Function => symbols::blob()
            .into_iter()
            .flat_map(|blob| blob.symbols())
            .filter(|symbol| symbol.flags.contains(Flags::SITE) && symbol.name.starts_with(typed))
            .map(|symbol| symbol.name.to_owned())
            .collect(),
        Argument::Program => {
            let programs = bpf::programs();
            programs
                .into_iter()
                .flatten()
                .map(|p| format!("{}/{}", p.object, p.name))
                .collect()
        }
        Argument::Map => bpf::maps().into_iter().map(|(name, _)| name).collect(),
        Argument::Patch => PATCHES.iter().map(|patch| patch.name.to_owned()).collect(),
        Argument::Target => TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        Argument::Word(word) => [word.to_owned()].into(),
        Argument::None => Vec::new(),
    };
    all.retain(|candidate| candidate.starts_with(typed));
    all.sort_unstable();
    all.dedup();
    all
}

/// Fails if there are arguments.
pub(super) fn no_arguments(command: &'static Command, arguments: &str) -> Outcome {
    match arguments.is_empty() {
        true => Ok(()),
        false => Err(ShellError::Usage(command)),
    }
}

/// The only argument as a number up to `most`; `default` if there is none.
fn number(what: &'static str, typed: &str, default: u64, most: u64) -> Result<u64, ShellError> {
    if typed.is_empty() {
        return Ok(default);
    }
    let parsed = match typed.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => typed.parse(),
    };
    parsed
        .ok()
        .filter(|value| *value <= most)
        .ok_or_else(|| ShellError::Number(what, typed.to_owned(), most))
}

/// A cookie: any 64 bits.
fn cookie(typed: &str) -> Result<u64, ShellError> {
    let wrong = || ShellError::Cookie(typed.to_owned());
    match typed.starts_with('-') {
        true => typed.parse::<i64>().map(i64::cast_unsigned).ok(),
        false if typed.is_empty() => None,
        false => number("cookie", typed, 0, u64::MAX).ok(),
    }
    .ok_or_else(wrong)
}

/// The function that the rest of a line names.
pub(super) fn function(command: &'static Command, name: &str) -> Result<Function, ShellError> {
    match name.is_empty() {
        true => Err(ShellError::Usage(command)),
        false => Ok(hook::resolve(name)?),
    }
}

/// The instruction that the rest of a line names.
pub(super) fn place(command: &'static Command, name: &str) -> Result<Place, ShellError> {
    if name.is_empty() {
        return Err(ShellError::Usage(command));
    }
    Ok(hook::resolve_place(name)?)
}

fn help(_: &mut Shell, _: &'static Command, arguments: &str) -> Outcome {
    if !arguments.is_empty() {
        let command = find(arguments)?;
        let help = command.help.replace(CRASHES, &arch::crash::names());
        println!("{}\n    {help}", command.usage());
        return Ok(());
    }
    let width = COMMANDS
        .iter()
        .map(|command| command.usage().len())
        .max()
        .unwrap_or(0);
    for command in COMMANDS {
        println!("{:width$}  {}", command.usage(), command.summary());
    }
    Ok(())
}

/// How a program is run, by the word for it.
/// What runs a program.
#[derive(Clone, Copy)]
enum By {
    Engine(Engine),
    Native,
}

/// What may stand behind the function's name.
const ENGINES: [(&str, By); 3] = [
    ("interp", By::Engine(Engine::Interpreter)),
    ("jit", By::Engine(Engine::Jit)),
    ("native", By::Native),
];
/// How a native hook is called.
const KINDS: [(&str, How); 8] = [
    ("fentry", How::Trampoline(Kind::Fentry)),
    ("fmod_ret", How::Trampoline(Kind::FmodRet)),
    ("fexit", How::Trampoline(Kind::Fexit)),
    ("fsession", How::Trampoline(Kind::Fsession)),
    ("kprobe", How::Probe(ProbeKind::Here, ProbeWay::Detour)),
    ("kretprobe", How::Probe(ProbeKind::Return, ProbeWay::Detour)),
    ("kprobe.multi", How::Many { exit: false }),
    ("kretprobe.multi", How::Many { exit: true }),
];
const PROTECTIONS: [Protection; 4] = [
    Protection::Program,
    Protection::Context,
    Protection::Pinned,
    Protection::None,
];

fn attach(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    let (program, mut name) = first_word(arguments);
    let (mut by, mut kind) = (By::Engine(Engine::Jit), None);
    let (mut way, mut settings) = (WayIn::Springboard, Settings::default());
    let ways = || {
        WAYS.map(WayIn::Linux)
            .into_iter()
            .chain([WayIn::LinuxKprobe])
    };
    // Names of functions may hold spaces: words are taken from the end as long as they say something. The last one that is left is a
    // function if nothing else says which.
    let own = bpf::named_target(program).ok().flatten();
    while !name.is_empty() {
        let (before, last) = name.rsplit_once(' ').unwrap_or(("", name));
        if before.is_empty() && own.is_none() {
            break;
        }
        if let Some((_, engine)) = ENGINES.iter().find(|(word, _)| *word == last) {
            by = *engine;
        } else if let Some((_, found)) = KINDS.iter().find(|(word, _)| *word == last) {
            kind = Some(*found);
        } else if let Some(found) = PROTECTIONS.iter().find(|p| p.name() == last) {
            settings.protection = Some(*found);
        } else if let Some(found) = ways().find(|way| way.name() == last) {
            way = found;
        } else if let Some(number) = last.strip_prefix("cookie=") {
            settings.cookie = cookie(number)?;
        } else {
            break;
        }
        name = before.trim_end();
    }
    let hooked = match (by, kind) {
        (By::Engine(engine), kind) if !program.is_empty() => {
            bpf::attach_at(program, engine, way, settings, |how, own| {
                let name = own.filter(|_| name.is_empty()).unwrap_or(name);
                match kind.filter(|kind| *kind != how) {
                    None if name.is_empty() => Err(hook::HookError::Unnamed),
                    None => how.at(name),
                    Some(_) => Err(hook::HookError::Target {
                        function: name.into(),
                        why: "the program's section says how, and it is another way than that; KIND is for native hooks".into(),
                    }),
                }
            })?
        }
        (By::Native, kind) if !name.is_empty() => {
            let how = match (kind, way) {
                (None, way) => way.entry(),
                (Some(how), WayIn::Springboard) => how,
                (Some(How::Trampoline(kind)), WayIn::Linux(way)) => How::Linux(way, kind),
                (Some(How::Probe(kind, _)), WayIn::LinuxKprobe) => {
                    How::Probe(kind, ProbeWay::Breakpoint)
                }
                _ => return Err(ShellError::Usage(command)),
            };
            let native = native(program)?;
            let at = how.at(name)?;
            let program = native.program(at.shape());
            hook::hook_in(at, settings, program)?
        }
        _ => return Err(ShellError::Usage(command)),
    };
    println!("hook {}: {program} on {}", hooked.id, hooked.on);
    if hooked.skipped.count() != 0 {
        println!("left out: {}", hooked.skipped);
    }
    Ok(())
}

/// The native hook of that name.
fn native(name: &str) -> Result<Native, ShellError> {
    let natives = [Native::Empty, Native::Count, Native::Again];
    let native = natives.into_iter().find(|native| native.name() == name);
    native.ok_or_else(|| ShellError::Native(name.to_owned()))
}

fn replace(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    let (name, by) = first_word(arguments);
    let (function, by) = (function(command, name)?, function(command, by)?);
    let id = hook::replace(&function, &by)?;
    println!("hook {id}: {} in place of {}", by.name, function.name);
    Ok(())
}

fn freplace(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    let (program, id) = first_word(arguments);
    if id.is_empty() {
        return Err(ShellError::Usage(command));
    }
    let target = number("ID", id, 0, u64::MAX)?;
    let id = bpf::freplace(program, HookId(target))?;
    println!("hook {id}: {program} in a place of hook {target}");
    Ok(())
}

fn patch(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    if !arguments.is_empty() {
        let patch = PATCHES.iter().find(|patch| patch.name == arguments);
        let patch = patch.ok_or(ShellError::Usage(command))?;
        let id = livepatch::apply(patch)?;
        println!(
            "hook {id}: patch {} is on its way; patch says how far",
            patch.name
        );
        return Ok(());
    }
    inspect::patches();
    Ok(())
}

fn detach(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    let ids: Vec<HookId> = match arguments.starts_with(|c: char| c.is_ascii_digit()) {
        true => [HookId(number("ID", arguments, 0, u64::MAX)?)].into(),
        false => {
            let name = place(command, arguments)?.name();
            hook::list()
                .iter()
                .filter(|hook| hook.function.split(", ").any(|function| function == name))
                .map(|hook| hook.id)
                .collect()
        }
    };
    if ids.is_empty() {
        return Err(ShellError::NoHook(arguments.to_owned()));
    }
    for id in ids {
        hook::detach(id)?;
        match livepatch::list().iter().any(|patch| patch.id == id) {
            true => println!("hook {id} is on its way off; patch says how far"),
            false => println!("hook {id} is off"),
        }
    }
    Ok(())
}

/// Counts what `work` takes, interrupts and other cores included, and prints it behind what was done.
fn counted<T>(
    work: impl FnOnce() -> Result<T, ShellError>,
    done: impl FnOnce(T) -> String,
) -> Outcome {
    sched::migrate_disable(); // a cycle counter is a core's own
    let start = pmu::read();
    let result = work();
    let count = pmu::difference(start, pmu::read());
    sched::migrate_enable();
    let done = done(result?);
    match pmu::counter() {
        Counter::None => println!("{done}"),
        counter => println!("{done}; {count} {}, interrupts included", counter.name()),
    }
    Ok(())
}

fn call(shell: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    /// Calls between two looks at the keys.
    const PIECE: u64 = 100_000;
    let (calls, name) = first_word(arguments);
    let calls = number("N", calls, 1000, u64::MAX)?;
    let target = TARGETS
        .iter()
        .find(|(target, _)| name.is_empty() || *target == name);
    let (name, target) = target.ok_or(ShellError::Usage(command))?;
    let work = || {
        let (mut left, mut last) = (calls, 0);
        while left != 0 {
            let piece = left.min(PIECE);
            last = target(piece);
            left -= piece;
            if left != 0 && shell.keys.interrupted() {
                return Err(ShellError::Interrupted);
            }
        }
        Ok(last)
    };
    counted(work, |last| {
        format!("{calls} calls of {name}, the last returned {last:#x}")
    })
}

fn tcp(_: &mut Shell, _: &'static Command, arguments: &str) -> Outcome {
    let bytes = number("BYTES", arguments, TRANSFER_BYTES as u64, 16 << 20)?;
    let mut transfer = Transfer::new();
    counted(
        || Ok(transfer.run(bytes as usize)?),
        |stats| {
            format!(
                "{} bytes arrived as sent, in {} packets and {} polls",
                stats.bytes, stats.packets, stats.polls
            )
        },
    )
}

fn bench(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    if !hook::list().is_empty() {
        return Err(ShellError::Hooked);
    }
    if let Some(system) = system() {
        bench::run(&system.options); // says itself what failed
    }
    Ok(())
}

fn crash(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    arch::crash::crash(arguments).ok_or(ShellError::Usage(command))
}

fn integrity(shell: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    shell.status = shell.status.max(integrity::run());
    Ok(())
}

fn poweroff(shell: &mut Shell, _: &'static Command, arguments: &str) -> Outcome {
    let status = u64::from(shell.status);
    shell.exit = Some(number("CODE", arguments, status, u64::from(u32::MAX))? as u32);
    Ok(())
}
