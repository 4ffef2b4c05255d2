// SPDX-License-Identifier: MIT OR Apache-2.0
//! Starts an example of this package as a process, on the machine that it is built for or emulated.
use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Runs aarch64 programs where that is not the machine's own.
const EMULATOR: &str = "qemu-aarch64";
/// An example of this package, built if it is not there or old. A test binary uses one of them.
pub(crate) fn command(name: &str) -> Command {
    static PATH: OnceLock<(PathBuf, bool)> = OnceLock::new();
    let (path, emulated) = PATH.get_or_init(|| {
        // target/TRIPLE/PROFILE/deps/TEST-HASH
        let this = std::env::current_exe().unwrap();
        let folder = this.ancestors().nth(2).unwrap();
        let triple = folder.parent().and_then(|f| f.file_name()).unwrap();
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--example", name, "--target"])
            .arg(triple)
            .args([
                "--manifest-path",
                concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
            ])
            .stdin(Stdio::null())
            .status();
        let path = folder.join("examples").join(name);
        assert!(
            status.is_ok_and(|s| s.success()) && path.is_file(),
            "{path:?}"
        );
        let version = Command::new(EMULATOR)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        let emulated = cfg!(all(target_arch = "aarch64", target_env = "musl")) && version.is_ok();
        (path, emulated)
    });
    match emulated {
        true => {
            let mut command = Command::new(EMULATOR);
            command.arg(path);
            command
        }
        false => Command::new(path),
    }
}
