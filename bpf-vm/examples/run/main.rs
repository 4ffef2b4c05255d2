// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a program of an object file: `run FILE [--program NAME] [--memory HEX] [--btf FILE] [--kconfig NAME=VALUE]... [--jit]`.
//!
//! This is what `cargo xtask bpf run --jit` starts under qemu-aarch64; without `--jit` the program is interpreted. The
//! interpreter runs it first in any case, and both have to leave the same.
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use bpf_vm::object::Object;

mod compiled;
mod memory;
mod session;
#[cfg(target_arch = "aarch64")]
#[path = "../../tests/support/mod.rs"]
mod support;

const USAGE: &str = "usage: run FILE [--program NAME] [--memory HEX] [--btf FILE] [--kconfig NAME=VALUE]... [--jit]";

const COMPILER: session::Compiler = session::Compiler {
    run: |program, arguments| compiled::run(program, arguments, |target| target),
    tail_entry: |program| compiled::tail_entry(program, |target| target),
};

fn run() -> Result<String, String> {
    let (mut file, mut program, mut given, mut jit) = (None, None, Vec::new(), false);
    let (mut types, mut settings) = (None, Vec::new());
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments
                .next()
                .map(|value| value.to_string_lossy().into_owned());
            value.ok_or_else(|| format!("{} needs a value\n{USAGE}", argument.display()))
        };
        match argument.to_str() {
            Some("--program") => program = Some(value()?),
            Some("--memory") => given = memory::hex("memory", &value()?)?,
            Some("--btf") => types = Some(session::read(Path::new(&value()?))?),
            Some("--kconfig") => settings.push(session::setting(&value()?)?),
            Some("--jit") => jit = true,
            Some(option) if option.starts_with("--") => {
                return Err(format!("{option:?} is no option\n{USAGE}"));
            }
            _ if file.is_none() => file = Some(PathBuf::from(argument)),
            _ => return Err(format!("there is one file to run\n{USAGE}")),
        }
    }
    let file = file.ok_or(USAGE)?;
    let object = Object::parse(&session::read(&file)?);
    let object = object.map_err(|error| format!("{}: {error}", file.display()))?;
    let kernel = session::Kernel::new(types.as_deref(), &settings)?;
    let index = session::choose(&object, program.as_deref())?;
    let report = session::run(&object, &kernel, index, &given, jit.then_some(COMPILER))?;
    Ok(report.to_string())
}

fn main() -> ExitCode {
    match run() {
        Ok(text) => match io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
