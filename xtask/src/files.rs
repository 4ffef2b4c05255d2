// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files read and written, with errors that name them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed: what was tried, on what, and the system's reason.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub(crate) struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn at<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> FileError + 'p {
    move |source| FileError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// All bytes of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(at("read", path))
}

/// All of a file as text.
pub(crate) fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(at("read", path))
}

/// Writes a file at once: who reads it at the same time sees the old or the new one. Makes its folder.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(at("create", parent))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(name);
    fs::write(&part, bytes).map_err(at("write", &part))?;
    fs::rename(&part, path).map_err(at("write", path))
}

/// The files of a folder, or of it and all folders below it, sorted.
pub(crate) fn list(folder: &Path, deep: bool) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        let path = entry.map_err(at("list", folder))?.path();
        match path.is_dir() {
            true if deep => found.extend(list(&path, true)?),
            true => {}
            false => found.push(path),
        }
    }
    found.sort();
    Ok(found)
}
