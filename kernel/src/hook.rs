// SPDX-License-Identifier: MIT OR Apache-2.0
//! Joins the hook engine to this kernel: names to functions, attach and detach under one mutex, freeing by callback.

use crate::arch::admit;
use crate::arch::callee::{self, Callee, Hit, NativeHook, callee};
use crate::arch::code::{self, CodeError};
use crate::arch::lock::Late;
use crate::arch::smp;
use crate::ksyms::{Flags, Symbol};
use crate::mm::layout::{POOL, POOL_SIZE};
use crate::mm::stack;
use crate::sched::Mutex;
use crate::targets::{self, Target};
use crate::task::layout;
use crate::{hooked, rcu, symbols, types};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use core::any::Any;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use trampoline::attach::{DetachError, Reason};
use trampoline::platform::{Grace, Platform, PlatformError, Retired};
use trampoline::pool::{Label, Owner, Pool, PoolError, Reserved};
use trampoline::program::CONTEXTS;
use trampoline::runtime::{TRACE_LEFT, TRACE_NESTING_MASK};
use trampoline::site::{Site, SiteState, SiteTable};
use trampoline::{Engine, Guard, Kind, Runtime, State};

/// A function that can be named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    /// Address of its entry: the two NOPs.
    pub address: usize,
    /// Its full name.
    pub name: &'static str,
}

/// Why a name is no function that can be hooked.
#[derive(Debug)]
pub(crate) enum ResolveError {
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
                write!(
                    f,
                    "no function is called {asked:?}; the nearest names are {}",
                    nearest.join(", ")
                )
            }
            ResolveError::Ambiguous { asked, candidates } => {
                write!(
                    f,
                    "{asked:?} could be any of {}; give more of its path",
                    candidates.join(", ")
                )
            }
            ResolveError::NoSite { name, why } => write!(f, "{name} cannot be hooked: {why}"),
            ResolveError::NoSymbols => write!(
                f,
                "the image carries no symbols: boot the Image that cargo xtask writes"
            ),
        }
    }
}

/// The function of that name; a part of a path will do if it is the end of one function's only.
pub(crate) fn resolve(name: &str) -> Result<Function, ResolveError> {
    let blob = symbols::blob().ok_or(ResolveError::NoSymbols)?;
    let exact: Vec<Symbol<'static>> = blob.by_name(name).filter(|s| s.name == name).collect();
    let found = if exact.is_empty() {
        blob.by_name(name).collect()
    } else {
        exact
    };
    let hookable: Vec<_> = found
        .iter()
        .filter(|s| s.flags.contains(Flags::SITE))
        .collect();
    match (hookable.as_slice(), found.as_slice()) {
        ([one], _) => Ok(Function {
            address: one.address as usize,
            name: one.name,
        }),
        ([], []) => Err(ResolveError::Unknown {
            asked: name.into(),
            nearest: blob
                .nearest::<3>(name)
                .iter()
                .flatten()
                .map(|s| s.name)
                .collect(),
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
    fn hit(&self, _: &Hit<'_>) -> u64 {
        // As the BPF program counts: a load and a store, no atomic addition.
        self.0
            .store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        0
    }
}

/// Does nothing.
struct Empty;

impl NativeHook for Empty {
    fn hit(&self, _: &Hit<'_>) -> u64 {
        0
    }
}

/// The native hooks that can be attached by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Native {
    /// Does nothing.
    Empty,
    /// Counts hits.
    Count,
}

impl Native {
    /// The name of the program of the same effect.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Native::Empty => "empty",
            Native::Count => "count",
        }
    }
}

/// Why a function was not hooked, or a hook not taken off.
#[derive(Debug)]
pub(crate) enum HookError {
    /// The pool is full.
    Full(PoolError),
    /// The engine refused: which function, and why.
    Refused(String, Reason),
    /// A program could not be compiled, or its code not be written.
    Code(String),
    /// There is no such hook.
    NoSuchHook(HookId),
    /// The function is not one of those that this kind of hook may be put on.
    Target {
        /// Its name.
        function: String,
        /// What is missing, and which functions have it.
        why: String,
    },
}

impl fmt::Display for HookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HookError::Full(e) => write!(f, "{e}"),
            HookError::Refused(name, e) => write!(f, "{name} cannot be hooked: {e}"),
            HookError::Code(why) => write!(f, "the program's code: {why}"),
            HookError::Target { function, why } => {
                write!(f, "{function} cannot be hooked so: {why}")
            }
            HookError::NoSuchHook(id) => write!(f, "there is no hook {id}; `hooks` lists them"),
        }
    }
}

impl HookError {
    fn refused(name: &str, reason: Reason) -> HookError {
        match reason {
            Reason::Pool(full) => HookError::Full(full),
            other => HookError::Refused(name.into(), other),
        }
    }
}

/// Names a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HookId(pub u64);

impl fmt::Display for HookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// This kernel, as the engine sees it.
pub(crate) struct Kernel;

const _: () = assert!(
    layout::TRACE_LEFT == TRACE_LEFT && layout::TRACE_NESTING_MASK == TRACE_NESTING_MASK,
    "grace periods and trampolines mean the same"
);

impl From<CodeError> for PlatformError {
    fn from(e: CodeError) -> PlatformError {
        match e {
            CodeError::NotCode(at) => PlatformError::NotCode { at: at as u64 },
            CodeError::Unexpected {
                at,
                expected,
                found,
            } => PlatformError::Mismatch {
                at: at as u64,
                expected,
                found,
            },
            CodeError::Map(e) => PlatformError::Host {
                at: 0,
                why: e.to_string(),
            },
        }
    }
}

impl Platform for Kernel {
    fn pool(&self) -> Range<u64> {
        POOL as u64..(POOL + POOL_SIZE) as u64
    }

    fn read(&self, at: u64) -> Option<u32> {
        code::read(at as usize)
    }

    fn write_code(&self, at: u64, words: &[u32]) -> Result<(), PlatformError> {
        Ok(code::write(at as usize, words)?)
    }

    fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
        Ok(code::patch(at as usize, old, new)?)
    }

    fn sync_cores(&self) {
        smp::sync_cores();
    }

    fn runtime(&self) -> Runtime {
        Runtime {
            task: a64::SysReg::SP_EL0,
            word: layout::WORD as u16,
            migrate: layout::MIGRATE as u16,
            trace: layout::TRACE_NESTING as u16,
            admit: admit::admit as *const () as usize as u64,
            admit_stack: admit::STACK,
        }
    }

    fn stack_limit(&self) -> u32 {
        // Each context that can be nested on a stack may be in the deepest hook.
        (stack::HOOK_RESERVE / CONTEXTS) as u32
    }

    fn defer(&self, retired: Retired, grace: Grace) {
        match grace {
            Grace::Tasks => rcu::defer(rcu::Flavour::Tasks, move || retired.free()),
            Grace::Unreferenced(range) => {
                rcu::defer_unreferenced(range, move || retired.free());
            }
        }
    }
}

/// The engine, behind a lock that blocks: whoever changes code waits for other cores with interrupts on.
static ENGINE: Mutex<Engine<Kernel>> = Mutex::empty();
/// The same engine's memory, which needs no lock.
static MEMORY: Late<Arc<Pool<Kernel>>> = Late::new();

/// Makes the engine: the image's sites, and a pool filled with BRK.
pub(crate) fn init() -> Result<(), String> {
    let blob = symbols::blob().ok_or("the image carries no symbols")?;
    // Several symbols may stand at one address: functions with the same code are one.
    let mut sites = BTreeMap::new();
    for symbol in blob.symbols() {
        let notrace = symbol.flags.contains(Flags::NOTRACE);
        if notrace || symbol.flags.contains(Flags::SITE) {
            *sites.entry(symbol.address).or_insert(false) |= notrace;
        }
    }
    let sites = sites
        .into_iter()
        .map(|(address, notrace)| Site { address, notrace });
    let sites = SiteTable::new(sites).map_err(|e| e.to_string())?;
    const PIECE: usize = 1024;
    for at in (POOL..POOL + POOL_SIZE).step_by(PIECE * 4) {
        code::write(at, &[trampoline::pool::FILL; PIECE]).map_err(|e| e.to_string())?;
    }
    let engine = Engine::new(Kernel, sites).map_err(|e| e.to_string())?;
    hooked::init();
    types::init();
    MEMORY.set(Box::leak(Box::new(engine.pool().clone())));
    ENGINE.put(Box::new(engine));
    crate::bpf::init();
    Ok(())
}

/// What the kernel knows of a hook beside the engine.
struct Attached {
    engine: &'static str,
    sleepable: bool,
    state: State,
    counter: Option<Arc<Count>>,
    /// The program and what it needs: kept, never looked at.
    _own: Arc<dyn Any + Send + Sync>,
}

/// How a program is kept from running inside itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Protection {
    /// By the context's recursion word: turned away while it is active itself.
    #[default]
    Program,
    /// By the context's recursion word: turned away while any program is active.
    Context,
    /// Not at all, but the task stays on its core.
    Pinned,
    /// Not at all, since it is proven to need nothing.
    None,
}

impl Protection {
    /// The word for tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Protection::Program => "word",
            Protection::Context => "context",
            Protection::Pinned => "pinned",
            Protection::None => "none",
        }
    }

    fn guard(self) -> Guard {
        match self {
            Protection::Program | Protection::Context => Guard::Word,
            Protection::Pinned => Guard::Pinned,
            Protection::None => Guard::None,
        }
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    /// When it is called.
    pub kind: Kind,
    /// Whether it may block.
    pub sleepable: bool,
    /// What keeps it from running inside itself.
    pub protection: Protection,
    /// What it is told when it asks for its cookie.
    pub cookie: u64,
}

impl Point {
    /// Of a kind, as programs are attached if nothing else is said.
    pub(crate) const fn of(kind: Kind) -> Point {
        Point {
            kind,
            sleepable: false,
            protection: Protection::Program,
            cookie: 0,
        }
    }
}

/// Hooks a program onto a function. `label` and `engine` are for lists; `make` makes the callee for its place.
pub(crate) fn attach(
    function: &Function,
    point: Point,
    label: String,
    engine: &'static str,
    make: impl FnOnce(Attachment) -> Callee,
) -> Result<HookId, HookError> {
    attach_counted(function, point, label, engine, make, None)
}

/// As [`attach`], of a hook written in Rust.
pub(crate) fn attach_hook<T: NativeHook>(
    function: &Function,
    point: Point,
    label: String,
    hook: Arc<T>,
) -> Result<HookId, HookError> {
    let session = point.kind == Kind::Fsession;
    let make = |attachment| callee(hook, attachment, session);
    attach(function, point, label, "native", make)
}

fn attach_counted(
    function: &Function,
    point: Point,
    label: String,
    engine: &'static str,
    make: impl FnOnce(Attachment) -> Callee,
    counter: Option<Arc<Count>>,
) -> Result<HookId, HookError> {
    let target = |wanted, what: &str| match targets::is(function.name, wanted) {
        true => Ok(()),
        false => Err(HookError::Target {
            function: function.name.into(),
            why: targets::missing(wanted, what),
        }),
    };
    if point.kind == Kind::FmodRet {
        target(Target::Overridable, "fmod_ret changes what it returns")?;
    }
    if point.sleepable {
        target(Target::Sleepable, "a sleepable program blocks in it")?;
    }
    let args = types::arguments(function.name);
    let callee::Callee {
        address,
        data,
        stack_bytes,
        keep,
    } = make(Attachment {
        function: function.address as u64,
        cookie: point.cookie,
        arguments: args.words().into(),
        has_result: matches!(point.kind, Kind::Fexit | Kind::FmodRet | Kind::Fsession).into(),
    });
    let attached = Arc::new(Attached {
        engine,
        sleepable: point.sleepable,
        state: State::new(point.protection == Protection::Context),
        counter,
        _own: keep,
    });
    let callee = trampoline::Callee {
        address,
        data,
        name: label,
        stack_bytes,
        guard: point.protection.guard(),
        state: attached.state.address(),
        sleepable: point.sleepable,
        keep: Some(attached),
    };
    let mut engine = ENGINE.lock();
    let id = engine
        .attach(function.address as u64, args, point.kind, callee)
        .map_err(|e| HookError::refused(function.name, e.reason))?;
    mark(&engine, function.address as u64);
    drop(engine);
    // An image that was replaced is freed when no stack holds its address: this one's dead words must not.
    stack::scrub();
    Ok(HookId(id.number()))
}

/// What a hook's `keep` is.
fn attached<'a>(hook: &trampoline::attach::Attached<'a>) -> Option<&'a Attached> {
    hook.callee.keep.as_ref()?.downcast_ref::<Attached>()
}

/// Tells reports what a function is hooked by now.
fn mark(engine: &Engine<Kernel>, function: u64) {
    let here = engine.attached().filter(|a| a.function == function);
    hooked::update(
        function,
        here.map(|a| (a.kind.name(), a.callee.name.as_str())),
    );
}

/// Hooks one of the native hooks onto a function.
pub(crate) fn attach_native(
    function: &Function,
    which: Native,
    point: Point,
) -> Result<HookId, HookError> {
    match which {
        Native::Empty => attach_hook(function, point, which.name().into(), Arc::new(Empty)),
        Native::Count => {
            let count = Arc::new(Count(AtomicU64::new(0)));
            let (hook, session) = (count.clone(), point.kind == Kind::Fsession);
            let make = |attachment| callee(hook, attachment, session);
            let label = which.name().into();
            attach_counted(function, point, label, "native", make, Some(count))
        }
    }
}

/// Executable memory with a program's code; its drop gives the memory back.
pub(crate) type ProgramCode = trampoline::pool::Code<Kernel>;

/// Numbers programs, for the unwinder.
static PROGRAMS: AtomicU64 = AtomicU64::new(1);

/// Places a program's code in the pool. `compile` says what it is at an address; its length may depend on that a little.
pub(crate) fn place(
    name: &str,
    compile: impl Fn(u64) -> Result<Vec<u32>, String>,
) -> Result<ProgramCode, HookError> {
    let memory = MEMORY
        .get()
        .ok_or_else(|| HookError::Code("the hook engine is not running".into()))?;
    let mut room = compile(POOL as u64).map_err(HookError::Code)?.len();
    loop {
        let reserved = memory.reserve(room, name).map_err(HookError::Full)?;
        let words = compile(reserved.address()).map_err(HookError::Code)?;
        if words.len() > reserved.capacity() {
            room = words.len();
            continue;
        }
        let id = PROGRAMS.fetch_add(1, Ordering::Relaxed);
        let label = Label {
            owner: Owner::Program { id },
            record: None,
        };
        return reserved
            .publish(label, &words)
            .map_err(|e| HookError::Code(e.to_string()));
    }
}

/// Takes all executable memory away, for the test of a full pool.
pub(crate) fn take_pool() -> Vec<Reserved<Kernel>> {
    let Some(memory) = MEMORY.get() else {
        return Vec::new();
    };
    let piece = || {
        memory
            .reserve(
                (memory.largest_free() / 4).checked_sub(4)? as usize,
                "a test",
            )
            .ok()
    };
    core::iter::from_fn(piece).collect()
}

/// Takes a hook off. Does not wait: what it used is freed by callback.
pub(crate) fn detach(id: HookId) -> Result<(), HookError> {
    let mut engine = ENGINE.lock();
    let found = engine
        .attached()
        .find(|a| a.id.number() == id.0)
        .map(|a| (a.id, a.function));
    let (engine_id, function) = found.ok_or(HookError::NoSuchHook(id))?;
    engine.detach(engine_id).map_err(|e| match e {
        DetachError::Unknown { .. } => HookError::NoSuchHook(id),
        DetachError::Stuck { reason, .. } => {
            HookError::refused(&symbols::Name(function as usize).function(), reason)
        }
    })?;
    mark(&engine, function);
    drop(engine);
    stack::scrub();
    Ok(())
}

/// How often a counting native hook was hit.
pub(crate) fn hits(id: HookId) -> Option<u64> {
    let engine = ENGINE.lock();
    let hook = engine.attached().find(|a| a.id.number() == id.0)?;
    attached(&hook)?
        .counter
        .as_ref()
        .map(|c| c.0.load(Ordering::Relaxed))
}

/// A hook, for a list.
pub(crate) struct HookInfo {
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
    /// Whether it may block.
    pub sleepable: bool,
    /// Hits that were turned away, by context: task, softirq, hardirq, NMI.
    pub misses: [u64; CONTEXTS],
    /// Bytes of the function's trampoline, shared by its hooks.
    pub bytes: usize,
    /// The deepest stack of a hit, in bytes.
    pub stack_bytes: usize,
}

/// Hits of a hook that were turned away, by context; none if it is not attached.
pub(crate) fn misses(id: HookId) -> [u64; CONTEXTS] {
    let engine = ENGINE.lock();
    let hook = engine.attached().find(|a| a.id.number() == id.0);
    let state = hook.as_ref().and_then(attached).map(|a| a.state.misses());
    state.unwrap_or_default()
}

/// All hooks.
pub(crate) fn list() -> Vec<HookInfo> {
    let engine = ENGINE.lock();
    let info = |hook: trampoline::attach::Attached<'_>| HookInfo {
        id: HookId(hook.id.number()),
        function: symbols::Name(hook.function as usize).function(),
        kind: hook.kind.name(),
        program: hook.callee.name.clone(),
        engine: attached(&hook).map_or("", |a| a.engine),
        sleepable: attached(&hook).is_some_and(|a| a.sleepable),
        misses: attached(&hook).map_or([0; CONTEXTS], |a| a.state.misses()),
        bytes: hook.image_bytes as usize,
        stack_bytes: hook.stack_bytes as usize,
    };
    engine.attached().map(info).collect()
}

/// Bytes of the executable pool that are free.
pub(crate) fn pool_free() -> usize {
    MEMORY.get().map_or(0, |m| m.free_bytes() as usize)
}

/// A word of a function's site or trampoline.
pub(crate) struct CodeLine {
    /// Its address.
    pub address: usize,
    /// What is there.
    pub word: u32,
    /// What it is for.
    pub ingredient: &'static str,
}

/// The live code of a function's site and, if it is hooked, of its trampoline.
pub(crate) fn describe(function: usize) -> Vec<CodeLine> {
    let engine = ENGINE.lock();
    let line = |l: trampoline::attach::Line<'_>| CodeLine {
        address: l.address as usize,
        word: l.word,
        ingredient: l.ingredient.name(),
    };
    engine.describe(function as u64).map(line).collect()
}

/// The function whose trampoline an address lies in. Any context: no lock.
pub(crate) fn trampoline_of(address: usize) -> Option<u64> {
    match MEMORY.get()?.find(address as u64)?.label.owner {
        Owner::Trampoline { function } => Some(function),
        Owner::Program { .. } => None,
    }
}

/// A word of the kernel's text that a hook changed.
pub(crate) struct Change {
    /// Its address.
    pub address: u64,
    /// What the hook put there.
    pub word: u32,
}

/// Hands out every change of the text, by address; nothing is attached or detached until `look` is done.
pub(crate) fn with_changes<T>(look: impl FnOnce(&[Change]) -> T) -> T {
    let engine = ENGINE.lock();
    let mut changes: Vec<Change> = Vec::new();
    for hook in engine.attached() {
        let Some(SiteState::Branch(image)) = engine.state(hook.function) else {
            continue;
        };
        let offset = image.wrapping_sub(hook.function) as i64;
        let branch = a64::imm::Imm26::new(offset).map(|offset| a64::Inst::Branch {
            link: false,
            offset,
        });
        if let Ok(branch) = branch {
            changes.push(Change {
                address: hook.function,
                word: branch.encode(),
            });
        }
    }
    changes.sort_unstable_by_key(|change| change.address);
    changes.dedup_by_key(|change| change.address);
    look(&changes)
}

/// Looks at every word of the pool that is free; returns how many there are, and those that are not filled.
pub(crate) fn free_words(most: usize) -> (usize, Vec<Change>) {
    let Some(memory) = MEMORY.get() else {
        return (0, Vec::new());
    };
    let (mut count, mut other) = (0, Vec::new());
    for address in memory.free().flat_map(|run| run.step_by(4)) {
        count += 1;
        let word = code::read(address as usize).unwrap_or_default();
        // It may have been handed out since.
        if word != trampoline::pool::FILL
            && other.len() < most
            && memory.free().any(|run| run.contains(&address))
        {
            other.push(Change { address, word });
        }
    }
    (count, other)
}

/// Says what an address outside of the image is; for reports, so it takes no lock.
pub(crate) fn describe_address(address: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !(POOL..POOL + POOL_SIZE).contains(&address) {
        return write!(f, "?");
    }
    match MEMORY.get().and_then(|m| m.find(address as u64)) {
        Some(found) => match found.label.owner {
            Owner::Trampoline { function } => {
                write!(
                    f,
                    "trampoline of {}+{:#x}",
                    symbols::FunctionName(function as usize),
                    address as u64 - found.start
                )
            }
            Owner::Program { id } => write!(
                f,
                "code of BPF program {id}+{:#x}",
                address as u64 - found.start
            ),
        },
        None => write!(f, "free executable memory"),
    }
}
