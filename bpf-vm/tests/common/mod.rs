// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles programs in C for tests, as a user would.
#![allow(
    dead_code,
    reason = "each test binary uses the part of this that it needs"
)]
pub(crate) mod kernel;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// The repository's `programs/`.
pub(crate) fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../programs")
}

/// The object of a source, compiled with `programs/compile_flags.txt`; `None`, said aloud, if there is no clang.
pub(crate) fn compile(source: &Path) -> Option<Vec<u8>> {
    match compile_with("clang", &[], source) {
        Ok(object) => Some(object),
        Err(CompileError::NoClang(error)) => {
            // Past the test harness, which would keep it back.
            let skipped = format!("skipped: {}: no clang ({error})\n", source.display());
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
            None
        }
        Err(CompileError::Refused(error)) => panic!("{}: {error}", source.display()),
    }
}

/// Why there is no object.
#[derive(Debug)]
pub(crate) enum CompileError {
    NoClang(std::io::Error),
    /// What clang said.
    Refused(String),
}

/// As [`compile`], by some clang, with options that count more than those of the file.
pub(crate) fn compile_with(
    clang: &str,
    options: &[&str],
    source: &Path,
) -> Result<Vec<u8>, CompileError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{}-{}.o", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = Command::new(clang)
        .current_dir(programs())
        .arg("@compile_flags.txt")
        .args(options)
        .arg("-c")
        .arg(source.canonicalize().unwrap())
        .arg("-o")
        .arg(&object)
        .output()
        .map_err(CompileError::NoClang)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(CompileError::Refused(said));
    }
    let bytes = std::fs::read(&object).unwrap();
    std::fs::remove_file(object).unwrap();
    Ok(bytes)
}

/// The object of `programs/NAME.bpf.c`.
pub(crate) fn program(name: &str) -> Option<Vec<u8>> {
    compile(&programs().join(format!("{name}.bpf.c")))
}
