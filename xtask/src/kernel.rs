// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the kernel's ELF file.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use crate::workspace::{KERNEL, TARGET, Workspace};

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    /// cargo did not start.
    #[error("cannot start cargo: {0}")]
    Start(std::io::Error),
    /// The compiler or the linker refused; it has said why.
    #[error("the kernel does not build; the messages above say why")]
    Failed,
    /// cargo succeeded and named no executable.
    #[error("cargo built no executable called {KERNEL}")]
    Missing,
}

/// Builds the kernel as cargo's profile `dev` says; returns the path of the ELF file. cargo shows its own progress.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf, BuildError> {
    let output = workspace
        .cargo()
        .args(["build", "--package", KERNEL, "--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .map_err(BuildError::Start)?;
    if !output.status.success() {
        return Err(BuildError::Failed);
    }
    executable(&String::from_utf8_lossy(&output.stdout)).ok_or(BuildError::Missing)
}

/// The kernel's path in cargo's messages, one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message.pointer("/target/name").and_then(Value::as_str) == Some(KERNEL))
        .find_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = concat!(
            "not json\n",
            r#"{"reason":"compiler-artifact","target":{"name":"a64"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"springboard"},"executable":"/t/springboard"}"#,
            "\n",
        );
        assert_eq!(
            executable(messages).as_deref(),
            Some("/t/springboard".as_ref())
        );
        assert_eq!(executable("{}"), None);
    }
}
