// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a machine in QEMU: its console, its end, its limits of time.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::console::{self, Exchange, Plain, Transcript};
use crate::files;
use crate::image;
use crate::interrupt::{Guarded, TemporaryFolder, lock};
use crate::kernel;
use crate::machine::{Machine, MachineOptions, QEMU, qemu_version};
use crate::programs;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// How long QEMU may go on after the console's last line.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often a waiting loop looks around.
const GLANCE: Duration = Duration::from_millis(100);
/// How many of the last lines an error shows.
const TAIL: usize = 25;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QemuError {
    /// QEMU did not start.
    #[error("cannot start {QEMU}: {0}; `cargo xtask setup` installs it")]
    Start(io::Error),
    /// The console could not be written to.
    #[error("cannot type on the console: {0}")]
    Type(io::Error),
    /// The kernel never said how it ended.
    #[error(
        "the run ended (QEMU's status: {status}) without the line `springboard: exit N`; the last lines were:\n{tail}"
    )]
    NoExitLine { status: i32, tail: String },
    /// It took too long.
    #[error("no end after {} s; the last lines were:\n{tail}", limit.as_secs())]
    Timeout { limit: Duration, tail: String },
    /// An expected text did not come.
    #[error("{what} did not appear; the last lines were:\n{tail}")]
    Expected { what: String, tail: String },
    /// A text came that should not.
    #[error("{what:?} appeared, which it must not; the last lines were:\n{tail}")]
    Refused { what: String, tail: String },
    /// The run ended with another status.
    #[error("exit status {found}, {expected} expected; the last lines were:\n{tail}")]
    Status {
        expected: i32,
        found: i32,
        tail: String,
    },
}

/// What a machine boots: files, made once for all runs.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    image: PathBuf,
    initrd: PathBuf,
    folder: PathBuf,
}

impl Boot {
    /// Builds the kernel, the Image, the programs and the initrd: whatever changed.
    pub(crate) fn build(workspace: &Workspace) -> Outcome<Self> {
        let elf = kernel::build(workspace)?;
        Self::of(workspace, &elf)
    }

    /// The same for a kernel that is built already.
    pub(crate) fn of(workspace: &Workspace, elf: &Path) -> Outcome<Self> {
        let folder = workspace.out();
        let boot = Self {
            image: folder.join("Image"),
            initrd: folder.join("programs.cpio"),
            folder,
        };
        image::make(workspace, elf, &boot.image)?;
        programs::pack(&programs::compile(workspace)?, &boot.initrd)?;
        Ok(boot)
    }

    /// The Image file.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// The initrd.
    pub(crate) fn initrd(&self) -> &Path {
        &self.initrd
    }

    /// The same kernel with another initrd.
    pub(crate) fn with_initrd(self, initrd: PathBuf) -> Self {
        Self { initrd, ..self }
    }
}

/// Who types on the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyboard {
    /// Nobody.
    None,
    /// Whoever sits at this terminal.
    Terminal,
    /// This program.
    Program,
}

/// What happened on the console.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A whole line, as plain text.
    Line(String),
    /// Nothing, for a moment.
    Quiet,
    /// QEMU has ended, with this status; everything it printed has been seen.
    End(i32),
}

/// A machine that is running. Dropping it ends it.
pub(crate) struct Session {
    child: Guarded,
    typing: Option<ChildStdin>,
    chunks: Receiver<Vec<u8>>,
    errors: Arc<Mutex<String>>,
    echo: bool,
    plain: Plain,
    text: String,
    lines_seen: usize,
    expected_from: usize,
    _folder: TemporaryFolder,
}

impl Session {
    /// Starts a machine. `words` go to the kernel command line, before those about the machine.
    pub(crate) fn start(
        options: &MachineOptions,
        boot: &Boot,
        words: &[String],
        keyboard: Keyboard,
    ) -> Outcome<(Self, Machine)> {
        let machine = options.machine(qemu_version()?)?;
        let folder = TemporaryFolder::new(&boot.folder)?;
        let initrd = options.initrd.as_ref().unwrap_or(&boot.initrd);
        let mut arguments = machine.options();
        let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        add("-kernel", boot.image.clone().into());
        add("-initrd", initrd.into());
        let words = [words, &machine.words()].concat();
        add("-append", words.join(" ").into());
        let tree = match (&options.dtb, machine.device_tree()?) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(bytes)) => {
                let path = folder.path().join(format!("{}.dtb", machine.board));
                files::write(&path, &bytes)?;
                Some(path)
            }
            (None, None) => None,
        };
        if let Some(tree) = tree {
            add("-dtb", tree.into());
        }
        let mut child = emulator()
            .args(arguments)
            .stdin(match keyboard {
                Keyboard::None => Stdio::null(),
                Keyboard::Terminal => Stdio::inherit(),
                Keyboard::Program => Stdio::piped(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(QemuError::Start)?;
        let typing = child.stdin.take();
        let (sender, chunks) = mpsc::channel();
        if let Some(output) = child.stdout.take() {
            // The receiver is gone when the session is: then nobody listens.
            thread::spawn(move || forward(output, |bytes| sender.send(bytes.to_vec()).is_ok()));
        }
        let errors = Arc::new(Mutex::new(String::new()));
        if let Some(output) = child.stderr.take() {
            let errors = Arc::clone(&errors);
            thread::spawn(move || {
                forward(output, |bytes| {
                    lock(&errors).push_str(&String::from_utf8_lossy(bytes));
                    true
                });
            });
        }
        let session = Self {
            child: Guarded::new(child),
            typing,
            chunks,
            errors,
            echo: false,
            plain: Plain::default(),
            text: String::new(),
            lines_seen: 0,
            expected_from: 0,
            _folder: folder,
        };
        Ok((session, machine))
    }

    /// Passes the console on to standard output as it comes, byte by byte.
    pub(crate) fn echo(mut self) -> Self {
        self.echo = true;
        self
    }

    /// Takes in what the console printed within `wait`. False: it has closed.
    fn take_in(&mut self, wait: Duration) -> bool {
        let bytes = match self.chunks.recv_timeout(wait) {
            Ok(bytes) => bytes,
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
        if self.echo {
            let mut out = io::stdout().lock();
            // Whoever closed standard output does not want to see it.
            let _ = out.write_all(&bytes).and_then(|()| out.flush());
        }
        self.plain.read(&bytes, &mut self.text);
        true
    }

    fn next_line(&mut self) -> Option<String> {
        let rest = self.text.get(self.lines_seen..)?;
        let (line, _) = rest.split_once('\n')?;
        self.lines_seen += line.len() + 1;
        Some(line.to_owned())
    }

    /// The next thing that happens; waits a moment at most.
    pub(crate) fn next(&mut self) -> Event {
        if let Some(line) = self.next_line() {
            return Event::Line(line);
        }
        let open = self.take_in(GLANCE);
        match (self.next_line(), open) {
            (Some(line), _) => Event::Line(line),
            (None, true) => Event::Quiet,
            (None, false) => match self.text.get(self.lines_seen..) {
                // What follows the last line break is a line as well.
                Some(rest) if !rest.is_empty() => {
                    let line = rest.to_owned();
                    self.lines_seen = self.text.len();
                    Event::Line(line)
                }
                _ => Event::End(self.wait(FAREWELL)),
            },
        }
    }

    /// Gives QEMU a while to end, then ends it; its status, -1 when it had to be ended.
    fn wait(&self, patience: Duration) -> i32 {
        let start = Instant::now();
        loop {
            match self.child.ended() {
                Some(status) => return status,
                None if start.elapsed() > patience => {
                    self.child.kill();
                    return -1;
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// The last lines, and what QEMU itself complained about.
    pub(crate) fn tail(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        let skipped = lines.len().saturating_sub(TAIL);
        let mut tail = String::new();
        for line in lines.iter().skip(skipped) {
            // Writing to a String cannot fail.
            let _ = writeln!(tail, "    | {line}");
        }
        for line in lock(&self.errors).lines() {
            let _ = writeln!(tail, "    {QEMU}: {line}");
        }
        tail
    }

    /// Follows the run to its end, `line` seeing each line; returns the status that the kernel stated.
    pub(crate) fn follow(
        &mut self,
        limit: Option<Duration>,
        mut line: impl FnMut(&str),
        progress: &Progress,
    ) -> Result<i32, QemuError> {
        let start = Instant::now();
        loop {
            if let Some(limit) = limit.filter(|limit| start.elapsed() > *limit) {
                self.child.kill();
                let tail = self.tail();
                return Err(QemuError::Timeout { limit, tail });
            }
            match self.next() {
                Event::Line(text) => match console::exit_status(&text) {
                    Some(status) => {
                        self.wait(FAREWELL);
                        return Ok(status);
                    }
                    None => line(&text),
                },
                Event::Quiet if self.echo => {}
                Event::Quiet => progress.tick(),
                Event::End(status) => {
                    let tail = self.tail();
                    return Err(QemuError::NoExitLine { status, tail });
                }
            }
        }
    }

    /// Types on the console.
    fn send(&mut self, text: &str) -> Result<(), QemuError> {
        let Some(typing) = &mut self.typing else {
            return Err(QemuError::Type(io::ErrorKind::BrokenPipe.into()));
        };
        let bytes = format!("{text}\r");
        typing
            .write_all(bytes.as_bytes())
            .and_then(|()| typing.flush())
            .map_err(QemuError::Type)
    }

    /// Waits for a text behind everything that was waited for before; returns where it begins in the console's text.
    fn expect(&mut self, what: &str, limit: Duration) -> Result<usize, QemuError> {
        let start = Instant::now();
        loop {
            let rest = self.text.get(self.expected_from..).unwrap_or_default();
            if let Some(at) = rest.find(what) {
                let begin = self.expected_from + at;
                self.expected_from = begin + what.len();
                return Ok(begin);
            }
            if start.elapsed() > limit || !self.take_in(GLANCE) {
                let what = format!("{what:?}");
                let tail = self.tail();
                return Err(QemuError::Expected { what, tail });
            }
        }
    }

    /// Plays a transcript: types, expects, and compares the exit status. `limit` holds for each text that is waited for.
    pub(crate) fn play(
        &mut self,
        transcript: &Transcript,
        limit: Duration,
    ) -> Result<(), QemuError> {
        let mut exchange = &transcript.first;
        for (command, next) in &transcript.commands {
            self.exchange(exchange, &transcript.prompt, limit)?;
            self.send(command)?;
            exchange = next;
        }
        self.exchange(exchange, "springboard: exit ", limit)?;
        let found = self.follow(Some(limit), |_| {}, &Progress::start("waiting for the end"))?;
        match found == transcript.exit {
            true => Ok(()),
            false => Err(QemuError::Status {
                expected: transcript.exit,
                found,
                tail: self.tail(),
            }),
        }
    }

    fn exchange(
        &mut self,
        exchange: &Exchange,
        end: &str,
        limit: Duration,
    ) -> Result<(), QemuError> {
        let from = self.expected_from;
        for text in &exchange.expected {
            self.expect(text, limit)?;
        }
        let to = self.expect(end, limit)?;
        let between = self.text.get(from..to).unwrap_or_default();
        match exchange.refused.iter().find(|text| between.contains(*text)) {
            None => Ok(()),
            Some(what) => Err(QemuError::Refused {
                what: what.clone(),
                tail: self.tail(),
            }),
        }
    }
}

/// QEMU as a command; where util-linux is, one that the kernel ends when this program is killed and cannot do it itself.
fn emulator() -> Command {
    static MORTAL: LazyLock<bool> = LazyLock::new(|| {
        let mut probe = Command::new("setpriv");
        probe.args(["--pdeathsig", "KILL", "true"]);
        probe.stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    if !*MORTAL {
        return Command::new(QEMU);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", QEMU]);
    command
}

/// Hands on what a pipe brings until it closes or nobody wants it.
fn forward(mut pipe: impl Read, mut to: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        if !buffer.get(..length).is_some_and(&mut to) {
            return;
        }
    }
}

/// Saves the terminal's settings for as long as this value lives: a QEMU that is killed leaves them raw.
struct Terminal(Option<String>);

impl Terminal {
    fn save() -> Self {
        let stty = Command::new("stty")
            .arg("-g")
            .stdin(Stdio::inherit())
            .stderr(Stdio::null())
            .output();
        let settings = stty.ok().filter(|output| output.status.success());
        Self(settings.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            // No more can be done; `stty sane` is what a user types then.
            let _ = Command::new("stty").arg(settings).status();
        }
    }
}

/// Boots, passes the console through, and returns the run's exit status.
pub(crate) fn run(
    options: &MachineOptions,
    boot: &Boot,
    words: &[String],
    keyboard: Keyboard,
    limit: Option<Duration>,
) -> Outcome<i32> {
    let _terminal = (keyboard == Keyboard::Terminal).then(Terminal::save);
    let (session, _) = Session::start(options, boot, words, keyboard)?;
    let progress = Progress::start("running");
    Ok(session.echo().follow(limit, |_| {}, &progress)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_forwarded_until_nobody_listens() {
        let mut seen = Vec::new();
        forward(&[7_u8; 10_000][..], |bytes| {
            seen.extend_from_slice(bytes);
            seen.len() < 8192
        });
        assert_eq!(seen.len(), 8192);
    }
}
