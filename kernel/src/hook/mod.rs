// SPDX-License-Identifier: MIT OR Apache-2.0
//! Joins the hook engine to this kernel: names to functions, attach and detach under one mutex, freeing by callback.

mod attach;
mod breakpoint;
mod error;
pub(crate) mod linux;
pub(crate) mod livepatch;
mod memory;
mod multi;
mod native;
mod platform;
mod probe;
mod replace;
mod resolve;

pub(crate) use attach::{At, HookedIn, How, Settings, WayIn, hook_in};
pub(crate) use error::HookError;
pub(crate) use memory::{
    Hooked, ProgramCode, describe_address, free_words, hooked_at, is_linux, is_linux_trampoline,
    live, place, pool_free, stub_of, take_pool,
};
pub(crate) use multi::{Many, Selection, Skipped, attach_multi, select};
pub(crate) use native::{Native, attach_native};
pub(crate) use probe::{Place, Way as ProbeWay, attach_probe};
pub(crate) use replace::replace;
pub(crate) use resolve::{Function, ResolveError, resolve, resolve_place};

use crate::arch::callee::{Callee, NativeHook, Shape, callee};
use crate::ksyms::Flags;
use crate::mm::layout::{POOL, POOL_SIZE};
use crate::mm::stack;
use crate::sched::{self, Mutex};
use crate::targets::{self, Target};
use crate::{hooked, rcu, symbols, types, written};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use core::any::Any;
use core::fmt;
use core::sync::atomic::Ordering;
use native::Count;
pub(crate) use platform::Kernel;
use trampoline::attach::DetachError;
use trampoline::program::CONTEXTS;
use trampoline::registers::Words;
use trampoline::site::{Site, SiteTable};
use trampoline::{Engine, Guard, Kind, Reason, State};

/// Names a hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HookId(pub u64);

impl fmt::Display for HookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A hook that is not a program of a trampoline: what lists, reports and `detach` ask of it.
pub(crate) trait Mechanism: Send {
    /// What it is, for lists.
    fn info(&self) -> HookInfo;
    /// Whether it hooks the function at this address.
    fn covers(&self, function: u64) -> bool;
    /// Whether it stands in the place of the function at this address.
    fn replaces(&self, _function: u64) -> bool {
        false
    }
    /// Whether the function at this address stands in the place of another by it.
    fn stands_in(&self, _function: u64) -> bool {
        false
    }
    /// Address of the function that it hooks although that may have no site.
    fn without_site(&self) -> Option<u64> {
        None
    }
    /// Words of text that it changed by itself; those of sites that the engine, or the Linux way as a whole, changed for it are not among
    /// them.
    fn changes(&self) -> Vec<Change>;
    /// How often a counting native hook was hit; `None` for other programs.
    fn hits(&self) -> Option<u64>;
    /// Takes it off. What it used is freed by callback, when no one can be in it.
    ///
    /// # Errors
    /// It is still on.
    fn detach(&mut self, engine: &mut Engine<Kernel>) -> Result<(), HookError>;
    /// Whether it is listed after [`Mechanism::detach`] until it says itself that it is off ([`Hooks::forget`]).
    fn leaves_later(&self) -> bool {
        false
    }
}

/// Every hook there is.
struct Hooks {
    engine: Engine<Kernel>,
    /// Those that are not programs of trampolines. Their numbers are the engine's ([`Engine::new_id`]).
    others: BTreeMap<u64, Box<dyn Mechanism>>,
}

/// Behind a lock that blocks: whoever changes code waits for other cores with interrupts on.
static HOOKS: Mutex<Hooks> = Mutex::empty();

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
        written::write(at, &[trampoline::pool::FILL; PIECE]).map_err(|e| e.to_string())?;
    }
    let engine = Engine::new(Kernel, sites).map_err(|e| e.to_string())?;
    hooked::init();
    types::init();
    memory::init(engine.pool().clone());
    linux::init(engine.pool()).map_err(|e| e.to_string())?;
    HOOKS.put(Box::new(Hooks {
        engine,
        others: BTreeMap::new(),
    }));
    crate::bpf::init();
    match livepatch::start() {
        true => Ok(()),
        false => Err("no memory for the task that live patches need".into()),
    }
}

/// Calls `f` with every hook there is; nothing is attached or detached meanwhile.
fn with_hooks<T>(f: impl FnOnce(&mut Hooks) -> T) -> T {
    f(&mut HOOKS.lock())
}

/// A program that runs as a hook, wherever it is: what the kernel knows of it.
pub(crate) struct Running {
    /// What runs it: the word for lists.
    pub engine: &'static str,
    /// Whether it may block.
    pub sleepable: bool,
    /// What the guard knows of it.
    pub state: Arc<State>,
    counter: Option<Arc<Count>>,
    /// The program and what it needs: kept, never looked at.
    _own: Arc<dyn Any + Send + Sync>,
}

impl Running {
    /// How often a counting native hook was hit.
    pub(crate) fn hits(&self) -> Option<u64> {
        self.counter
            .as_ref()
            .map(|count| count.0.load(Ordering::Relaxed))
    }
}

/// A program to be hooked in somewhere.
pub(crate) struct Program {
    /// Its name, for lists.
    pub label: String,
    /// What runs it: the word for lists.
    pub engine: &'static str,
    /// What it may read of its context, if that is the registers.
    pub reads: Words,
    /// Makes what is called, for the place that it is attached to.
    pub make: Box<dyn FnOnce(Attachment) -> Callee>,
    movable: bool,
    counter: Option<Arc<Count>>,
}

impl Program {
    /// A program that `make` makes what is called of.
    pub(crate) fn new(
        label: String,
        engine: &'static str,
        make: impl FnOnce(Attachment) -> Callee + 'static,
    ) -> Program {
        Program {
            label,
            engine,
            reads: Words::ALL,
            make: Box::new(make),
            movable: false,
            counter: None,
        }
    }

    /// It reads no more of the registers than these.
    pub(crate) fn reading(self, reads: Words) -> Program {
        Program { reads, ..self }
    }

    /// A hook written in Rust, that gets a context of this shape.
    pub(crate) fn native<T: NativeHook>(label: String, hook: Arc<T>, shape: Shape) -> Program {
        Program::new(label, "native", move |attachment| {
            callee(hook, attachment, shape)
        })
    }

    /// It uses nothing of the core that it runs on, so its task may be moved to another in the middle of it: its recursion word goes along.
    pub(crate) fn movable(self) -> Program {
        Program {
            movable: true,
            ..self
        }
    }

    fn counting(self, count: Arc<Count>) -> Program {
        Program {
            counter: Some(count),
            ..self
        }
    }

    /// The program at its place: what an image calls, and what the kernel knows of it, which the former keeps alive.
    pub(crate) fn at(
        self,
        attachment: Attachment,
        protection: Protection,
        sleepable: bool,
    ) -> (trampoline::Callee, Arc<Running>) {
        let state = State::new(protection == Protection::Context)
            .sleepable(sleepable)
            .movable(self.movable);
        let state = Arc::new(state);
        self.with_state(attachment, protection, sleepable, state)
    }

    /// As [`Program::at`], in the place of one that the guard knows by this state.
    fn with_state(
        self,
        attachment: Attachment,
        protection: Protection,
        sleepable: bool,
        state: Arc<State>,
    ) -> (trampoline::Callee, Arc<Running>) {
        let Callee {
            address,
            data,
            stack_bytes,
            original_stack,
            keep,
        } = (self.make)(attachment);
        let running = Arc::new(Running {
            engine: self.engine,
            sleepable,
            state,
            counter: self.counter,
            _own: keep,
        });
        let callee = trampoline::Callee {
            address,
            data,
            name: self.label,
            stack_bytes,
            original_stack,
            guard: protection.guard(),
            state: running.state.address(),
            sleepable,
            keep: Some(running.clone()),
        };
        (callee, running)
    }
}

/// How a program is kept from running inside itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Protection {
    /// By the context's recursion word: turned away while it is active itself in this context.
    #[default]
    Program,
    /// By the context's recursion word: turned away while it or any other program is active in this context, as far as the word tells (of
    /// programs under one of these two, not of those under no guard or one of Linux's).
    ///
    /// This is asked of the program that comes, not of those that are active: it keeps this one out of others, not others out of this one.
    /// While it is active, one under [`Protection::Program`] runs if it is not active itself, and one under no guard runs. Programs at the
    /// same place run one after the other, so they do not turn each other away.
    Context,
    /// Not at all, but the task stays on its core. As with [`Protection::None`], nothing tells that it is active: it may call only what
    /// reaches no other hook, as the audit proves of helpers, or a sleepable one that it reaches would block under it.
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

/// Whether a function allows what a program attached so may do.
fn check_target(function: &Function, point: Point) -> Result<(), HookError> {
    let target = |wanted, what: &str| match targets::is(function.name, wanted) {
        true => Ok(()),
        false => Err(HookError::Target {
            function: function.name.into(),
            why: targets::missing(wanted, what),
        }),
    };
    match point.kind {
        Kind::FmodRet => target(Target::Overridable, "fmod_ret changes what it returns")?,
        Kind::Freplace => target(Target::Overridable, "freplace runs in its place")?,
        Kind::Fentry | Kind::Fexit | Kind::Fsession => {}
    }
    if point.sleepable {
        target(Target::Sleepable, "a sleepable program blocks in it")?;
    }
    Ok(())
}

/// The most that may wait for grace periods when something more is hooked in.
const MOST_DEFERRED: u64 = 2048;

/// Waits until not too much waits for grace periods. A detach never waits, so who attaches and detaches without end would use up all
/// memory with what is not freed yet: the next attach waits for it.
fn wait_for_room() {
    while rcu::counts().1 > MOST_DEFERRED {
        sched::sleep_ns(1_000_000);
    }
}

/// Hooks a program onto a function, by its trampoline.
pub(crate) fn attach(
    function: &Function,
    point: Point,
    program: Program,
) -> Result<HookId, HookError> {
    check_target(function, point)?;
    wait_for_room();
    let args = types::arguments(function.name);
    if point.kind == Kind::Freplace && (args.results() > 1 || args.indirect_result()) {
        return Err(HookError::Target {
            function: function.name.into(),
            why: "it returns more than a word, and a program returns one; hook it by fexit".into(),
        });
    }
    let (callee, _) = program.at(
        attachment(function, point),
        point.protection,
        point.sleepable,
    );
    let mut hooks = HOOKS.lock();
    hooks.check_waiting(function, point.kind)?;
    let engine = &mut hooks.engine;
    linux::give_back_left(engine);
    let id = apart(|| engine.attach(function.address as u64, args, point.kind, callee));
    let id = id.map_err(|e| hooks.named(HookError::refused(function.name, e.reason)))?;
    hooks.mark(&[function.address as u64], None);
    drop(hooks);
    // An image that was replaced is freed when no stack holds its address: this one's dead words must not.
    stack::scrub();
    Ok(HookId(id.number()))
}

/// What a program is told of its place.
fn attachment(function: &Function, point: Point) -> Attachment {
    Attachment {
        function: function.address as u64,
        cookie: point.cookie,
        arguments: types::arguments(function.name).words().into(),
        has_result: matches!(point.kind, Kind::Fexit | Kind::FmodRet | Kind::Fsession).into(),
    }
}

/// Puts a program in the place of one that is attached, as that is: its number, its order and the count of its misses stay.
///
/// # Errors
/// It is not attached; what [`attach`] says of the new one. The old one stays.
pub(crate) fn exchange(
    engine: &mut Engine<Kernel>,
    id: HookId,
    function: &Function,
    point: Point,
    program: Program,
) -> Result<(), HookError> {
    let mut all = engine.attached();
    let old = all.find(|a| a.id.number() == id.0);
    let old = old.and_then(|a| Some((a.id, running(&a)?.state.clone())));
    drop(all);
    let (engine_id, state) = old.ok_or(HookError::NoSuchHook(id))?;
    let attachment = attachment(function, point);
    let (callee, _) = program.with_state(attachment, point.protection, point.sleepable, state);
    engine.exchange(engine_id, callee).map_err(|e| match e {
        DetachError::Unknown { .. } => HookError::NoSuchHook(id),
        DetachError::Stuck { reason, .. } => HookError::refused(function.name, reason),
    })
}

/// As [`attach`], of a hook written in Rust.
pub(crate) fn attach_hook<T: NativeHook>(
    function: &Function,
    point: Point,
    label: String,
    hook: Arc<T>,
) -> Result<HookId, HookError> {
    attach(
        function,
        point,
        Program::native(label, hook, Shape::of(point.kind)),
    )
}

/// Runs `work` in a frame of its own, so that [`stack::scrub`] finds below the caller's what it left behind.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Puts on a hook that is not a program of a trampoline; `make` does it, and says which functions it hooks.
pub(crate) fn attach_other<M: Mechanism + 'static>(
    make: impl FnOnce(&mut Engine<Kernel>, HookId) -> Result<(M, Vec<u64>), HookError>,
) -> Result<HookId, HookError> {
    attach_or_keep(|engine, id| {
        linux::give_back_left(engine);
        make(engine, id).map(|(made, functions)| (made, functions, None))
    })
}

/// As [`attach_other`]. What `make` hands out with an error could not be taken off again: it is listed and can be detached, and that
/// error is the result.
pub(crate) fn attach_or_keep<M: Mechanism + 'static>(
    make: impl FnOnce(
        &mut Engine<Kernel>,
        HookId,
    ) -> Result<(M, Vec<u64>, Option<HookError>), HookError>,
) -> Result<HookId, HookError> {
    attach_if(|_| Ok(()), make)
}

/// As [`attach_or_keep`], if `check` has nothing against it.
fn attach_if<M: Mechanism + 'static>(
    check: impl FnOnce(&Hooks) -> Result<(), HookError>,
    make: impl FnOnce(
        &mut Engine<Kernel>,
        HookId,
    ) -> Result<(M, Vec<u64>, Option<HookError>), HookError>,
) -> Result<HookId, HookError> {
    wait_for_room();
    let mut hooks = HOOKS.lock();
    check(&hooks)?;
    let id = HookId(hooks.engine.new_id().number());
    let made = apart(|| make(&mut hooks.engine, id));
    let (mechanism, functions, error) = made.map_err(|e| hooks.named(e))?;
    hooks.others.insert(id.0, Box::new(mechanism));
    hooks.mark(&functions, Some(id));
    drop(hooks);
    stack::scrub();
    error.map_or(Ok(id), Err)
}

/// What a trampoline's program keeps.
fn running<'a>(hook: &trampoline::attach::Attached<'a>) -> Option<&'a Running> {
    hook.callee.keep.as_ref()?.downcast_ref::<Running>()
}

impl Hooks {
    /// Whether a trampoline may call a function, and wait for it to return: no more of these stand on one another than
    /// [`stack::HIT_LIMIT`] counts on.
    fn check_waiting(&self, function: &Function, kind: Kind) -> Result<(), HookError> {
        if !kind.calls_function() {
            return Ok(());
        }
        let refused = |why: &str| HookError::Target {
            function: function.name.into(),
            why: format!("{why}; hook its entry by fentry, or its return by kretprobe"),
        };
        if targets::is_first(function.name) {
            return Err(refused(
                "it is the first function of a stack or of a context, and a trampoline that waits for it would stand below \
                 everything there",
            ));
        }
        let mut others = self.others.values();
        match others.find(|other| other.stands_in(function.address as u64)) {
            None => Ok(()),
            Some(other) => {
                let HookInfo { id, function, .. } = other.info();
                let text = format!(
                    "it stands in the place of {function} (hook {id}), and a trampoline that waits for it would stand on the one that waits \
                     for that; hook {function} so, which is the same"
                );
                Err(refused(&text))
            }
        }
    }

    /// Tells reports what functions are hooked by now; `fresh` hooks all of them.
    fn mark(&self, functions: &[u64], fresh: Option<HookId>) {
        let others = self
            .others
            .iter()
            .map(|(id, other)| (Some(HookId(*id)), other));
        let others: Vec<_> = others.map(|(id, m)| (id == fresh, m, m.info())).collect();
        // The text of the last function that no trampoline hooks, and which of the others hook it.
        let (mut last, mut by) = (None, Vec::new());
        let mut covers = Vec::new();
        let mut near = 0;
        let mut with_images: Vec<_> = self.engine.with_images().collect();
        with_images.sort_unstable();
        let all_fresh = others.iter().all(|(all, ..)| *all);
        covers.resize(others.len(), all_fresh);
        for &function in functions {
            if !all_fresh {
                covers.clear();
                covers.extend(others.iter().map(|(all, m, _)| *all || m.covers(function)));
            }
            let alone = with_images.binary_search(&function).is_err();
            if alone && !covers.contains(&true) {
                hooked::clear(function);
                continue;
            }
            if alone
                && let Some(text) = last
                && covers == by
                && hooked::share(function, text, &mut near)
            {
                continue;
            }
            let here = self.engine.attached_to(function);
            let programs = here.map(|a| (a.kind.name(), a.callee.name.as_str()));
            let others = others.iter().zip(&covers).filter(|(_, covers)| **covers);
            let others = others.map(|((.., info), _)| (info.kind, info.program.as_str()));
            hooked::update(function, programs.chain(others));
            if alone {
                by.clone_from(&covers);
                last = hooked::text_of(function);
            }
        }
    }

    /// An error, with the hook's name if it says no more than that something replaces the function.
    fn named(&self, error: HookError) -> HookError {
        let HookError::Refused(function, Reason::Replaced { .. }) = &error else {
            return error;
        };
        let Ok(Function { address, .. }) = resolve(function) else {
            return error;
        };
        let address = address as u64;
        let mut programs = self.engine.attached_to(address);
        let program = programs.find(|a| a.kind == Kind::Freplace).map(|a| {
            let by = format!("{} {}", a.kind.name(), a.callee.name);
            (by, HookId(a.id.number()))
        });
        let mut others = self.others.iter().filter(|(_, m)| m.replaces(address));
        let other = others.next().map(|(id, mechanism)| {
            let info = mechanism.info();
            (format!("{} {}", info.kind, info.program), HookId(*id))
        });
        match program.or(other) {
            Some((by, id)) => HookError::Replaced {
                function: function.clone(),
                by,
                id,
            },
            None => error,
        }
    }

    /// A mechanism is off: it is listed no more.
    fn forget(&mut self, id: HookId) {
        if let Some(gone) = self.others.remove(&id.0) {
            let all = self.engine.sites().iter().map(|site| site.address);
            let sites = all.filter(|function| gone.covers(*function));
            let functions: Vec<_> = sites.chain(gone.without_site()).collect();
            self.mark(&functions, None);
        }
    }

    /// Asks the trampoline's program or the mechanism of that number.
    fn ask<T>(
        &self,
        id: HookId,
        program: impl FnOnce(&Running) -> T,
        other: impl FnOnce(&dyn Mechanism) -> T,
    ) -> Option<T> {
        if let Some(mechanism) = self.others.get(&id.0) {
            return Some(other(&**mechanism));
        }
        let hook = self.engine.attached().find(|a| a.id.number() == id.0)?;
        running(&hook).map(program)
    }
}

/// Takes a hook off. Does not wait: what it used is freed by callback.
pub(crate) fn detach(id: HookId) -> Result<(), HookError> {
    let mut hooks = HOOKS.lock();
    let hooks_mut = &mut *hooks;
    if let Some(mechanism) = hooks_mut.others.get_mut(&id.0) {
        apart(|| mechanism.detach(&mut hooks_mut.engine))?;
        if !mechanism.leaves_later() {
            hooks.forget(id);
        }
        drop(hooks);
        stack::scrub();
        return Ok(());
    }
    let found = hooks
        .engine
        .attached()
        .find(|a| a.id.number() == id.0)
        .map(|a| (a.id, a.function));
    let (engine_id, function) = found.ok_or(HookError::NoSuchHook(id))?;
    apart(|| hooks.engine.detach(engine_id)).map_err(|e| match e {
        DetachError::Unknown { .. } => HookError::NoSuchHook(id),
        DetachError::Stuck { reason, .. } => {
            HookError::refused(&symbols::Name(function as usize).function(), reason)
        }
    })?;
    // What took the place of the program's functions is off with it.
    let with_it = crate::bpf::forget(id);
    with_it.into_iter().for_each(|id| hooks.forget(id));
    hooks.mark(&[function], None);
    drop(hooks);
    stack::scrub();
    Ok(())
}

/// How often a counting native hook was hit.
pub(crate) fn hits(id: HookId) -> Option<u64> {
    HOOKS.lock().ask(id, Running::hits, |m| m.hits())?
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
    let misses = HOOKS
        .lock()
        .ask(id, |p| p.state.misses(), |m| m.info().misses);
    misses.unwrap_or_default()
}

/// Does something if the trampoline's program of that number is attached; nothing is taken off meanwhile.
pub(crate) fn if_attached<T>(id: HookId, work: impl FnOnce() -> T) -> Option<T> {
    let hooks = HOOKS.lock();
    let attached = hooks.engine.attached().any(|a| a.id.number() == id.0);
    attached.then(work)
}

/// All hooks.
pub(crate) fn list() -> Vec<HookInfo> {
    let hooks = HOOKS.lock();
    let info = |hook: trampoline::attach::Attached<'_>| HookInfo {
        id: HookId(hook.id.number()),
        function: symbols::Name(hook.function as usize).function(),
        kind: hook.kind.name(),
        program: hook.callee.name.clone(),
        engine: running(&hook).map_or("", |r| r.engine),
        sleepable: running(&hook).is_some_and(|r| r.sleepable),
        misses: running(&hook).map_or([0; CONTEXTS], |r| r.state.misses()),
        bytes: hook.image_bytes as usize,
        stack_bytes: hook.stack_bytes as usize,
    };
    let mut all: Vec<_> = hooks.engine.attached().map(info).collect();
    all.extend(hooks.others.iter().map(|(id, mechanism)| HookInfo {
        id: HookId(*id),
        ..mechanism.info()
    }));
    all
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
    let hooks = HOOKS.lock();
    let line = |l: trampoline::attach::Line<'_>| CodeLine {
        address: l.address as usize,
        word: l.word,
        ingredient: l.ingredient.name(),
    };
    let function = function as u64;
    let lines = apart(|| {
        let linux = linux::describe(function);
        if !linux.is_empty() {
            return linux;
        }
        let lines = hooks.engine.describe(function).map(line);
        let size = symbols::blob().and_then(|blob| blob.lookup(function));
        let size = size.map_or(0, |(symbol, _)| symbol.size.into());
        let probes = hooks.engine.describe_probes(function..function + size);
        lines.chain(probes.map(line)).collect()
    });
    drop(hooks);
    stack::scrub();
    lines
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
    let hooks = HOOKS.lock();
    let sites = hooks.engine.changed_sites().chain(hooks.engine.detoured());
    let mut changes: Vec<_> = sites
        .map(|(address, word)| Change { address, word })
        .collect();
    changes.extend(hooks.others.values().flat_map(|m| m.changes()));
    changes.extend(linux::changes());
    changes.sort_unstable_by_key(|change| change.address);
    changes.dedup_by_key(|change| change.address);
    look(&changes)
}
