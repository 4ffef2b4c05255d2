// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: the workspace, its target directory, cargo.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The target that the kernel and its libraries are built for.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";
/// The target whose tests run under qemu-user.
pub(crate) const USER_TARGET: &str = "aarch64-unknown-linux-musl";
/// The kernel's package and binary.
pub(crate) const KERNEL: &str = "springboard";

/// Why the workspace cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkspaceError {
    /// cargo did not start.
    #[error("cannot start `cargo metadata`: {0}; install Rust by rustup")]
    Start(std::io::Error),
    /// cargo answered with something else than the metadata.
    #[error("`cargo metadata` names no target directory: {0}")]
    Metadata(String),
}

/// The source tree and where its products go.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The folder of the workspace's Cargo.toml.
    pub(crate) root: PathBuf,
    /// cargo's target directory, wherever the environment or a configuration puts it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the workspace that this program was started from by cargo, else the one that it was built from.
    pub(crate) fn find() -> Result<Self, WorkspaceError> {
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = package
            .parent()
            .map_or_else(|| package.clone(), Path::to_owned);
        let found = Self {
            target: root.join("target"),
            root,
        };
        let output = found
            .cargo()
            .args(["metadata", "--no-deps", "--format-version=1"])
            .stderr(Stdio::inherit())
            .output()
            .map_err(WorkspaceError::Start)?;
        let metadata: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| WorkspaceError::Metadata(error.to_string()))?;
        let target = metadata
            .get("target_directory")
            .and_then(Value::as_str)
            .ok_or_else(|| WorkspaceError::Metadata("no field target_directory".into()))?;
        Ok(Self {
            target: target.into(),
            ..found
        })
    }

    /// The folder for what this program makes: the Image, programs, the initrd.
    pub(crate) fn out(&self) -> PathBuf {
        self.target.join(KERNEL)
    }

    /// The folder of springboard.h, which is made with the Image.
    pub(crate) fn include(&self) -> PathBuf {
        self.out().join("include")
    }

    /// cargo, in the workspace, without what the cargo that started this program said about xtask.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command
    }
}
