// SPDX-License-Identifier: MIT OR Apache-2.0
//! Joins the hook engine to this kernel: names to functions, attach and detach under one mutex, freeing by callback.

use crate::arch::callee::{Callee, Context, NativeHook, callee};
use crate::arch::code::{self, CodeError};
use crate::arch::smp;
use crate::ksyms::{Flags, Symbol};
use crate::mm::layout::{POOL, POOL_SIZE};
use crate::sched::Mutex;
use crate::{rcu, symbols};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use trampoline::attach::Owner;
use trampoline::pool::PoolFull;
use trampoline::{AttachError, AttachId, Code, Engine, Platform, Retired, SiteKind};

/// A function that can be named.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Address of its entry: the two NOPs.
    pub address: usize,
    /// Its full name.
    pub name: &'static str,
}

/// Why a name is no function that can be hooked.
#[derive(Debug)]
pub enum ResolveError {
    /// No function has that name.
    Unknown {
        /// What was asked for.
        asked: String,
        /// The nearest names.
        nearest: Vec<&'static str>,
    },
    /// Several have.
    Ambiguous {
        /// What was asked for.
        asked: String,
        /// The candidates.
        candidates: Vec<&'static str>,
    },
    /// It has no site.
    NoSite {
        /// The function.
        name: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The image has no symbols.
    NoSymbols,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResolveError::Unknown { asked, nearest } => {
                write!(f, "no function is called {asked:?}; the nearest names are {}", nearest.join(", "))
            }
            ResolveError::Ambiguous { asked, candidates } => {
                write!(f, "{asked:?} could be any of {}; give more of its path", candidates.join(", "))
            }
            ResolveError::NoSite { name, why } => write!(f, "{name} cannot be hooked: {why}"),
            ResolveError::NoSymbols => write!(f, "the image carries no symbols: boot the Image that cargo xtask writes"),
        }
    }
}

/// The function of that name; a part of a path will do if it is the end of one function's only.
pub fn resolve(name: &str) -> Result<Function, ResolveError> {
    let blob = symbols::blob().ok_or(ResolveError::NoSymbols)?;
    let exact: Vec<Symbol<'static>> = blob.by_name(name).filter(|s| s.name == name).collect();
    let found = if exact.is_empty() { blob.by_name(name).collect() } else { exact };
    let hookable: Vec<_> = found.iter().filter(|s| s.flags.contains(Flags::SITE)).collect();
    match (hookable.as_slice(), found.as_slice()) {
        ([one], _) => Ok(Function { address: one.address as usize, name: one.name }),
        ([], []) => Err(ResolveError::Unknown {
            asked: name.into(),
            nearest: blob.nearest::<3>(name).iter().flatten().map(|s| s.name).collect(),
        }),
        ([], [symbol, ..]) => Err(ResolveError::NoSite {
            name: symbol.name,
            why: if symbol.flags.contains(Flags::NOTRACE) {
                "it is on a hook's own path (notrace); `cargo xtask notrace` prints that set"
            } else {
                "it was compiled without a site (assembly, or from a prebuilt crate); detours are not there so far"
            },
        }),
        (several, _) => Err(ResolveError::Ambiguous {
            asked: name.into(),
            candidates: several.iter().take(8).map(|s| s.name).collect(),
        }),
    }
}

/// Counts hits.
struct Count(AtomicU64);

impl NativeHook for Count {
    fn hit(&self, _: &Context) -> u64 {
        // As the BPF program counts: a load and a store, no atomic addition.
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        0
    }
}

/// Does nothing.
struct Empty;

impl NativeHook for Empty {
    fn hit(&self, _: &Context) -> u64 {
        0
    }
}

/// The native hooks that can be attached by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Native {
    /// Does nothing.
    Empty,
    /// Counts hits.
    Count,
}

impl Native {
    /// The name of the program of the same effect.
    pub fn name(self) -> &'static str {
        match self {
            Native::Empty => "empty",
            Native::Count => "count",
        }
    }
}

/// What the engine says when it refuses.
pub type EngineError = AttachError<CodeError>;

/// Why a function was not hooked, or a hook not taken off.
#[derive(Debug)]
pub enum HookError {
    /// There is no engine: the boot did not get that far.
    NoEngine,
    /// The pool is full.
    Full(PoolFull),
    /// The engine refused: which function, and why.
    Refused(&'static str, EngineError),
    /// A program's code could not be placed: what the compiler says.
    Code(String),
    /// There is no such hook.
    NoSuchHook(HookId),
}

impl fmt::Display for HookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HookError::NoEngine => write!(f, "the hook engine is not running"),
            HookError::Full(e) => write!(f, "{e}"),
            HookError::Refused(name, e) => write!(f, "{name} cannot be hooked: {e}"),
            HookError::Code(why) => write!(f, "the program cannot be compiled: {why}"),
            HookError::NoSuchHook(id) => write!(f, "there is no hook {id}; `hooks` lists them"),
        }
    }
}

impl HookError {
    fn from_engine(name: &'static str, e: EngineError) -> HookError {
        match e {
            AttachError::Full(full) => HookError::Full(full),
            AttachError::NoSuchId(id) => HookError::NoSuchHook(HookId(id.0)),
            other => HookError::Refused(name, other),
        }
    }
}

/// Names a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HookId(pub u32);

impl fmt::Display for HookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// This kernel, as the engine sees it.
struct Kernel;

impl Platform for Kernel {
    type Error = CodeError;

    fn pool(&self) -> Range<u64> {
        POOL as u64..(POOL + POOL_SIZE) as u64
    }

    fn site(&self, function: u64) -> SiteKind {
        match symbols::blob().and_then(|b| b.lookup(function)) {
            Some((symbol, 0)) if symbol.flags.contains(Flags::SITE) => SiteKind::Site,
            Some((symbol, 0)) if symbol.flags.contains(Flags::NOTRACE) => SiteKind::Notrace,
            _ => SiteKind::None,
        }
    }

    fn read(&self, at: u64) -> Option<u32> {
        code::read(at as usize)
    }

    fn write_code(&self, at: u64, words: &[u32]) -> Result<(), CodeError> {
        code::write(at as usize, words)
    }

    fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), CodeError> {
        code::patch(at as usize, old, new)
    }

    fn sync_cores(&self) {
        smp::sync_cores();
    }
}

/// The engine, behind a lock that blocks: whoever changes code waits for other cores with interrupts on.
static ENGINE: Mutex<Engine<Kernel>> = Mutex::empty();

/// Makes the engine; fills the pool with BRK.
pub fn init() -> Result<(), CodeError> {
    ENGINE.put(Box::new(Engine::new(Kernel)?));
    crate::bpf::init();
    Ok(())
}

/// Frees what a detach or a replacement took off, when no task can be in it any more.
fn defer(retired: Option<Retired>) {
    let Some(retired) = retired else { return };
    rcu::defer(move || {
        let reclaimed = ENGINE.lock().reclaim(retired);
        match reclaimed {
            // Dropped outside of the lock: a callee's own code goes back to the engine.
            Ok(callees) => drop(callees),
            Err(e) => crate::println!("springboard: freeing a trampoline: {e}"),
        }
    });
}

/// What the kernel knows of a hook beside the engine.
struct Attached {
    engine: &'static str,
    counter: Option<Arc<Count>>,
    /// The program and what it needs: kept, never looked at.
    _own: Arc<dyn Any + Send + Sync>,
}

/// Hooks a callee onto a function's entry. `label` and `engine` are for lists.
pub fn attach(function: &Function, label: String, engine: &'static str, callee: Callee) -> Result<HookId, HookError> {
    attach_counted(function, label, engine, callee, None)
}

fn attach_counted(
    function: &Function,
    label: String,
    engine: &'static str,
    callee: Callee,
    counter: Option<Arc<Count>>,
) -> Result<HookId, HookError> {
    let keep: Arc<dyn Any + Send + Sync> = Arc::new(Attached { engine, counter, _own: callee.keep });
    let callee = trampoline::Callee { address: callee.address, data: callee.data, label, keep };
    let attached = ENGINE.lock().attach(function.address as u64, callee);
    let (id, retired) = attached.map_err(|e| HookError::from_engine(function.name, e))?;
    defer(retired);
    Ok(HookId(id.0))
}

/// Hooks one of the native hooks onto a function's entry.
pub fn attach_native(function: &Function, which: Native) -> Result<HookId, HookError> {
    match which {
        Native::Empty => attach(function, which.name().into(), "native", callee(Arc::new(Empty))),
        Native::Count => {
            let count = Arc::new(Count(AtomicU64::new(0)));
            attach_counted(function, which.name().into(), "native", callee(count.clone()), Some(count))
        }
    }
}

/// Executable memory with a program's code; goes back to the engine when it is dropped.
pub struct ProgramCode(Option<Code>);

impl ProgramCode {
    /// Address of the first instruction.
    pub fn address(&self) -> u64 {
        self.0.as_ref().map_or(0, Code::address)
    }
}

impl Drop for ProgramCode {
    fn drop(&mut self) {
        if let Some(code) = self.0.take()
            && let Err(e) = ENGINE.lock().free_code(code)
        {
            crate::println!("springboard: freeing a program's code: {e}");
        }
    }
}

/// What [`Engine::place`] is told by a compiler that fails.
enum PlaceError {
    Engine(EngineError),
    Compiler(String),
}

impl From<EngineError> for PlaceError {
    fn from(e: EngineError) -> PlaceError {
        PlaceError::Engine(e)
    }
}

/// Places a program's code in the pool. `compile` says what it is at an address; its length may depend on that a little.
pub fn place(compile: impl Fn(u64) -> Result<Vec<u32>, String>) -> Result<ProgramCode, HookError> {
    let mut room = compile(POOL as u64).map_err(HookError::Code)?.len();
    loop {
        let placed = ENGINE.lock().place(room, |base| compile(base).map_err(PlaceError::Compiler));
        match placed {
            Ok(code) => return Ok(ProgramCode(Some(code))),
            Err(PlaceError::Engine(AttachError::TooLong { words, .. })) if words > room => room = words,
            Err(PlaceError::Engine(e)) => return Err(HookError::from_engine("the program", e)),
            Err(PlaceError::Compiler(why)) => return Err(HookError::Code(why)),
        }
    }
}

/// Takes executable memory away, for the test of a full pool.
pub fn take_pool(bytes: usize) -> Result<Vec<ProgramCode>, HookError> {
    let mut taken = Vec::new();
    let mut left = bytes;
    let mut piece = bytes;
    while left > 0 && piece >= 16 {
        let placed = ENGINE.lock().place(piece / 4, |_| Ok::<_, PlaceError>(Vec::new()));
        match placed {
            Ok(code) => {
                taken.push(ProgramCode(Some(code)));
                left -= piece;
            }
            Err(_) => piece = (piece / 2) & !15,
        }
        piece = piece.min(left);
    }
    Ok(taken)
}

/// Takes a hook off. Does not wait: what it used is freed by callback.
pub fn detach(id: HookId) -> Result<(), HookError> {
    let retired = ENGINE.lock().detach(AttachId(id.0)).map_err(|e| HookError::from_engine("the function", e))?;
    defer(retired);
    Ok(())
}

/// How often a counting native hook was hit.
pub fn hits(id: HookId) -> Option<u64> {
    let engine = ENGINE.lock();
    let info = engine.list().find(|i| i.id.0 == id.0)?;
    let attached = info.callee.keep.downcast_ref::<Attached>()?;
    attached.counter.as_ref().map(|c| c.0.load(Ordering::Relaxed))
}

/// A hook, for a list.
pub struct HookInfo {
    /// Its name.
    pub id: HookId,
    /// The hooked function.
    pub function: String,
    /// How it is entered.
    pub kind: &'static str,
    /// What runs.
    pub program: String,
    /// What runs it.
    pub engine: &'static str,
    /// Bytes of the function's trampoline, shared by its hooks.
    pub bytes: usize,
}

/// All hooks.
pub fn list() -> Vec<HookInfo> {
    let engine = ENGINE.lock();
    engine
        .list()
        .map(|info| HookInfo {
            id: HookId(info.id.0),
            function: symbols::Name(info.function as usize).function(),
            kind: "fentry",
            program: info.callee.label.clone(),
            engine: info.callee.keep.downcast_ref::<Attached>().map_or("", |a| a.engine),
            bytes: info.bytes as usize,
        })
        .collect()
}

/// Bytes of the executable pool that are free.
pub fn pool_free() -> usize {
    ENGINE.lock().available() as usize
}

/// A word of a function's site or trampoline.
pub struct CodeLine {
    /// Its address.
    pub address: usize,
    /// What is there.
    pub word: u32,
    /// What it is for.
    pub ingredient: &'static str,
}

/// The live code of a function's site and, if it is hooked, of its trampoline.
pub fn describe(function: usize) -> Vec<CodeLine> {
    let engine = ENGINE.lock();
    let line = |l: trampoline::attach::CodeLine| CodeLine {
        address: l.at as usize,
        word: l.word,
        ingredient: l.ingredient.name(),
    };
    engine.describe(function as u64).into_iter().map(line).collect()
}

/// Says what an address outside of the image is; for reports, so it never waits.
pub fn describe_address(address: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !(POOL..POOL + POOL_SIZE).contains(&address) {
        return write!(f, "?");
    }
    match ENGINE.try_lock().map(|e| e.owner(address as u64)) {
        Some(Owner::Trampoline { function, .. }) => {
            write!(f, "trampoline of {}", symbols::Name(function as usize))
        }
        Some(Owner::Code) => write!(f, "code of a BPF program"),
        Some(Owner::Unknown) => write!(f, "executable pool, freed"),
        None => write!(f, "executable pool"),
    }
}
