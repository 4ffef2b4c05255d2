// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interactive shell on the serial console: reads lines, finds the command, says what went wrong.

mod commands;
mod inspect;
mod keys;
mod line;

use crate::workload::TransferError;
use crate::{bpf, hook, print, println, trace};
use alloc::string::String;
use alloc::vec::Vec;
use commands::Command;
use core::fmt;
use keys::Keys;
use line::{Editor, Event};

const PROMPT: &str = "springboard> ";

/// What commands share.
struct Shell {
    keys: Keys,
    /// Lines that hooks write (`bpf_trace_printk`).
    trace: trace::Reader,
    /// The exit code that `poweroff` takes if it is not given one.
    status: u32,
    /// Set by `poweroff`.
    exit: Option<u32>,
}

/// Why a command did not do what was asked.
enum ShellError {
    /// There is no such command: what was typed, and a name like it.
    Unknown(String, Option<&'static str>),
    /// Arguments are missing or too many: the command.
    Usage(&'static Command),
    /// An argument is no number in its range: what, what was typed, the greatest.
    Number(&'static str, String, u64),
    /// A cookie is no number of 64 bits: what was typed.
    Cookie(String),
    /// The kernel has no such hook of its own.
    Native(String),
    /// No map is called so: what was typed, what there is.
    NoMap(String, Vec<String>),
    /// No hook is there to detach: what was typed.
    NoHook(String),
    /// Nothing can be measured while something is hooked.
    Hooked,
    /// ^C.
    Interrupted,
    /// The name is no function's.
    Resolve(hook::ResolveError),
    /// The hook engine refused.
    Hook(hook::HookError),
    /// The program was refused.
    Bpf(bpf::BpfError),
    /// The transfer failed.
    Tcp(TransferError),
}

impl fmt::Display for ShellError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(typed, Some(near)) => {
                write!(
                    f,
                    "no command is called {typed:?}; did you mean {near}? help lists all"
                )
            }
            Self::Unknown(typed, None) => {
                write!(f, "no command is called {typed:?}; help lists all")
            }
            Self::Usage(command) => {
                write!(f, "expected: {} - {}", command.usage(), command.summary())
            }
            Self::Native(typed) => write!(
                f,
                "no native hook is called {typed:?}; there are empty, count and again"
            ),
            Self::Number(what, typed, most) => {
                write!(
                    f,
                    "{what} is {typed:?}; expected: a number up to {most}, decimal or 0x and hexadecimal"
                )
            }
            Self::Cookie(typed) => write!(
                f,
                "cookie is {typed:?}; expected: {} to {}, decimal, or 0x and hexadecimal",
                i64::MIN,
                u64::MAX
            ),
            Self::NoMap(typed, there) if there.is_empty() => {
                write!(
                    f,
                    "there is no map {typed:?}; no object that is loaded has maps, programs loads them all"
                )
            }
            Self::NoMap(typed, there) => write!(
                f,
                "there is no map {typed:?}; there are {}",
                there.join(", ")
            ),
            Self::NoHook(typed) => write!(f, "there is no hook on {typed}; hooks lists all"),
            Self::Hooked => write!(
                f,
                "costs are differences to functions without hooks: detach what hooks lists"
            ),
            Self::Interrupted => write!(f, "interrupted"),
            Self::Resolve(e) => e.fmt(f),
            Self::Hook(e) => e.fmt(f),
            Self::Bpf(e) => e.fmt(f),
            Self::Tcp(e) => e.fmt(f),
        }
    }
}

/// `From` for the errors of what the shell calls, so that `?` does.
macro_rules! from_errors {
    ($($variant:ident: $error:ty),*) => {
        $(impl From<$error> for ShellError {
            fn from(error: $error) -> ShellError {
                ShellError::$variant(error)
            }
        })*
    };
}
from_errors!(Resolve: hook::ResolveError, Hook: hook::HookError, Bpf: bpf::BpfError, Tcp: TransferError);

/// Runs the shell until `poweroff`; returns the run's exit code.
pub(crate) fn run() -> u32 {
    println!("help lists the commands; Tab completes, arrows recall");
    let mut shell = Shell {
        keys: Keys::new(),
        trace: trace::Reader::new(),
        status: 0,
        exit: None,
    };
    let mut editor = Editor::new(PROMPT);
    let mut out = String::new();
    loop {
        // A String takes everything: its `fmt::Write` has no errors.
        let _ = editor.show(&mut out);
        let line = loop {
            print!("{out}");
            out.clear();
            match editor.key(shell.keys.next(), &mut out, &commands::complete) {
                Ok(Event::Line(line)) => break Some(line),
                Ok(Event::Interrupted) => break None,
                Ok(Event::More) | Err(fmt::Error) => {}
            }
        };
        print!("{out}");
        out.clear();
        if let Some(Err(e)) = line.map(|line| commands::execute(&mut shell, line.trim())) {
            println!("{e}");
        }
        if let Some(code) = shell.exit {
            return code;
        }
    }
}
