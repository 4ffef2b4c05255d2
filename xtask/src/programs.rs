// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compiles programs/*.bpf.c by clang, those that changed, and packs the objects into the initrd.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;
use crate::files;
use crate::initrd;
use crate::progress::Progress;
use crate::setup;
use crate::workspace::Workspace;

const SUFFIX: &str = ".bpf.c";

/// Why there are no BPF objects.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// No compiler.
    #[error("no clang here compiles for BPF; `cargo xtask setup` installs one")]
    NoClang,
    /// The compiler refused.
    #[error("clang does not compile {}; its messages above say why", .0.display())]
    Failed(PathBuf),
    /// Nothing to compile.
    #[error("{} holds no file *{SUFFIX}", .0.display())]
    None(PathBuf),
    /// A path without a last component, or not UTF-8.
    #[error("{} is no file name that an initrd can hold", .0.display())]
    Name(PathBuf),
}

/// The options for a program against libbpf's headers, which are among `folders` where they do not come with the system.
pub(crate) fn options(folders: &[&Path], source: &Path, object: &Path) -> Vec<OsString> {
    let mut options: Vec<OsString> = [
        "-target", "bpf", "-g", "-O2", "-mcpu=v3", "-Wall", "-Werror",
    ]
    .map(OsString::from)
    .to_vec();
    options.push("-D__TARGET_ARCH_arm64".into());
    for folder in folders {
        options.push("-I".into());
        options.push(folder.into());
    }
    options.extend(["-c".into(), source.into(), "-o".into(), object.into()]);
    options
}

/// The programs' sources, sorted by name.
pub(crate) fn sources(workspace: &Workspace) -> Outcome<Vec<PathBuf>> {
    let mut sources = files::list(&workspace.root.join("programs"), false)?;
    sources.retain(|source| stem(source).is_some());
    Ok(sources)
}

/// The name of a program's file without its suffix; `None` for another file.
fn stem(source: &Path) -> Option<&str> {
    source.file_name()?.to_str()?.strip_suffix(SUFFIX)
}

/// Compiles what changed; returns the objects, sorted by name.
///
/// springboard.h is the kernel's where one was built, else the one in programs/include that stands in for it.
pub(crate) fn compile(workspace: &Workspace) -> Outcome<Vec<PathBuf>> {
    let folder = workspace.root.join("programs");
    let own_headers = setup::own_headers(workspace);
    let (made, include) = (workspace.include(), folder.join("include"));
    let folders = [Some(&*made), Some(&include), own_headers.as_deref()];
    let folders: Vec<&Path> = folders.into_iter().flatten().collect();
    let clang = setup::clang().ok_or(ProgramError::NoClang)?;
    let out = workspace.out().join("programs");
    let mut headers = Vec::new();
    for folder in [&made, &include] {
        if folder.is_dir() {
            headers.extend(files::list(folder, true)?);
        }
    }
    let progress = Progress::start("compiling BPF programs");
    let mut objects = Vec::new();
    for source in sources(workspace)? {
        let stem = stem(&source).unwrap_or_default();
        let object = out.join(format!("{stem}.bpf.o"));
        let options = options(&folders, &source, &object);
        let command = format!("{clang} {options:?}");
        let stamp = object.with_extension("cmd");
        let sources = headers.iter().chain([&source]);
        if fs::read_to_string(&stamp).is_ok_and(|old| old == command) && is_newer(&object, sources)
        {
            objects.push(object);
            continue;
        }
        progress.update(&format!("compiling {stem}{SUFFIX}"));
        fs::create_dir_all(&out)?;
        let status = Command::new(&clang)
            .args(&options)
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(ProgramError::Failed(source.clone()).into());
        }
        files::write(&stamp, command.as_bytes())?;
        objects.push(object);
    }
    match objects.is_empty() {
        true => Err(ProgramError::None(folder).into()),
        false => Ok(objects),
    }
}

/// Whether a file is newer than all of `sources`.
fn is_newer<'p>(file: &Path, mut sources: impl Iterator<Item = &'p PathBuf>) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let made = changed(file);
    made.is_some() && sources.all(|source| changed(source).is_some_and(|time| Some(time) < made))
}

/// Packs objects, under their file names, into an initrd at `path`.
pub(crate) fn pack(objects: &[PathBuf], path: &Path) -> Outcome<()> {
    let mut entries = Vec::new();
    for object in objects {
        let name = object.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| ProgramError::Name(object.clone()))?;
        entries.push((name.to_owned(), files::read(object)?));
    }
    Ok(files::write(path, &initrd::archive(&entries)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_gets_the_documented_options() {
        let options = options(&["i".as_ref()], "x.bpf.c".as_ref(), "x.bpf.o".as_ref());
        let text: Vec<_> = options.iter().filter_map(|o| o.to_str()).collect();
        assert_eq!(
            text.join(" "),
            "-target bpf -g -O2 -mcpu=v3 -Wall -Werror -D__TARGET_ARCH_arm64 -I i -c x.bpf.c -o x.bpf.o"
        );
    }
}
