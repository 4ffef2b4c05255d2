// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles programs in C for tests, as a user would.
#![allow(
    dead_code,
    reason = "each test binary uses the part of this that it needs"
)]
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
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{}-{}.o", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = Command::new("clang")
        .current_dir(programs())
        .arg("@compile_flags.txt")
        .arg("-c")
        .arg(source.canonicalize().unwrap())
        .arg("-o")
        .arg(&object)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            // Past the test harness, which would keep it back.
            let skipped = format!("skipped: {}: no clang ({error})\n", source.display());
            std::io::stderr().write_all(skipped.as_bytes()).unwrap();
            return None;
        }
    };
    assert!(
        output.status.success(),
        "{}: {}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let bytes = std::fs::read(&object).unwrap();
    std::fs::remove_file(object).unwrap();
    Some(bytes)
}

/// The object of `programs/NAME.bpf.c`.
pub(crate) fn program(name: &str) -> Option<Vec<u8>> {
    compile(&programs().join(format!("{name}.bpf.c")))
}
