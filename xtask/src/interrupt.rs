// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ctrl-C: ends the emulators that are running and removes temporary folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Child};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The exit status of a program that SIGINT ended, as shells count it (128 + 2).
const INTERRUPTED: i32 = 130;

/// What has to be cleaned up.
struct Duties {
    children: Vec<Arc<Mutex<Child>>>,
    folders: Vec<PathBuf>,
}

static DUTIES: Mutex<Duties> = Mutex::new(Duties {
    children: Vec::new(),
    folders: Vec::new(),
});

/// A lock that a panicking thread held is still good: what it guards is only ever pushed to and removed from.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills a child and waits for its end; one that has ended is left alone.
fn kill(child: &Mutex<Child>) {
    let mut child = lock(child);
    if matches!(child.try_wait(), Ok(None)) {
        // Both fail only when the child has ended meanwhile, which is what is wanted.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn clean_up() {
    let duties = lock(&DUTIES);
    duties.children.iter().for_each(|child| kill(child));
    for folder in &duties.folders {
        // Nobody is left who could be told.
        let _ = fs::remove_dir_all(folder);
    }
}

/// Installs the handler; called once, at the start.
pub(crate) fn install() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| {
        clean_up();
        process::exit(INTERRUPTED);
    })
}

/// A child process that does not outlive this value, nor Ctrl-C.
#[derive(Debug)]
pub(crate) struct Guarded(Arc<Mutex<Child>>);

impl Guarded {
    /// Takes care of a child.
    pub(crate) fn new(child: Child) -> Self {
        let child = Arc::new(Mutex::new(child));
        lock(&DUTIES).children.push(Arc::clone(&child));
        Self(child)
    }

    /// The exit status, if the child has ended by itself; -1 stands for a signal.
    pub(crate) fn ended(&self) -> Option<i32> {
        let status = lock(&self.0).try_wait().ok().flatten()?;
        Some(status.code().unwrap_or(-1))
    }

    /// Ends it now.
    pub(crate) fn kill(&self) {
        kill(&self.0);
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
        lock(&DUTIES)
            .children
            .retain(|child| !Arc::ptr_eq(child, &self.0));
    }
}

/// A folder of this process that does not outlive this value, nor Ctrl-C.
#[derive(Debug)]
pub(crate) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// Makes it, below `parent`.
    pub(crate) fn new(parent: &Path) -> std::io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("run-{}-{number}", process::id()));
        fs::create_dir_all(&folder)?;
        lock(&DUTIES).folders.push(folder.clone());
        Ok(Self(folder))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        lock(&DUTIES).folders.retain(|folder| *folder != self.0);
        // It lies in the target directory, which `cargo clean` empties.
        let _ = fs::remove_dir_all(&self.0);
    }
}
