// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks of the Linux way: which ops there are, what each site leads to, BPF trampolines, and how all of it is put on and taken off.
//!
//! There is one list of ops, the last registered first: tracers and, of each function with a BPF trampoline, one that leads there. A
//! function's site leads to its trampoline if nothing else traces it, else to the shared caller of the kind that its tracers want. Whoever
//! attaches here waits for a grace period before a site's second word is changed, and whoever detaches for one behind it, as
//! Linux's callers do.

mod tracer;
pub(super) mod trampoline;

pub(crate) use tracer::{attach, attach_multi};

use super::platform::Kernel;
use super::{Change, CodeLine, HookError, HookId, Protection};
use crate::arch::callee::Shape;
use crate::arch::linux::{self as hit, Op};
use crate::arch::lock::Swap;
use crate::arch::{code, cpu};
use crate::sched::{self, Mutex};
use crate::{rcu, symbols};
use ::trampoline::linux::caller::{self, Caller, Find};
use ::trampoline::linux::filter::Filter;
use ::trampoline::linux::{Listing, fprobe, site};
use ::trampoline::platform::PlatformError;
use ::trampoline::pool::{Label, Owner, Pool};
use ::trampoline::{Engine, Kind, Reason};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use trampoline::Trampoline;

/// Executable memory with code or a descriptor.
type Code = ::trampoline::pool::Code<Kernel>;

/// How a program is entered, of those ways that Linux has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// By the function's BPF trampoline.
    Trampoline,
    /// By the shared caller, which calls what a global pointer names.
    List {
        /// With all registers, not only those that may carry arguments.
        all: bool,
    },
    /// By the shared caller, which calls what the word before the function names.
    CallOps {
        /// With all registers, not only those that may carry arguments.
        all: bool,
    },
    /// By fprobe, at the entry, as kprobe_multi does.
    Fprobe,
    /// By fprobe, at the exit, as kprobe_multi does.
    FprobeExit,
}

/// All of them.
pub(crate) const WAYS: [Way; 7] = [
    Way::Trampoline,
    Way::List { all: false },
    Way::List { all: true },
    Way::CallOps { all: false },
    Way::CallOps { all: true },
    Way::Fprobe,
    Way::FprobeExit,
];

/// How the shared caller finds the op of a site.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Finds {
    List,
    CallOps,
}

impl Way {
    /// The word for tables and for the shell.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Trampoline => "linux",
            Way::List { all: false } => "linux-list",
            Way::List { all: true } => "linux-list-regs",
            Way::CallOps { all: false } => "linux-callops",
            Way::CallOps { all: true } => "linux-callops-regs",
            Way::Fprobe => "linux-fprobe",
            Way::FprobeExit => "linux-fprobe-exit",
        }
    }

    /// What keeps a program from running inside itself: the word for tables.
    pub(crate) fn guard(self, protection: Protection) -> &'static str {
        match (self, protection) {
            (Way::Trampoline, Protection::Program | Protection::Context) => "active",
            (Way::Trampoline, _) => "migrate",
            (Way::List { .. } | Way::CallOps { .. }, _) => "bits",
            (Way::Fprobe | Way::FprobeExit, _) => "bits+cpu",
        }
    }

    /// What a program's context is.
    pub(crate) fn shape(self, kind: Kind) -> Shape {
        match self {
            Way::Trampoline => Shape::of(kind),
            Way::List { all: false } | Way::CallOps { all: false } => Shape::Arguments,
            _ => Shape::Registers,
        }
    }

    fn finds(self) -> Option<Finds> {
        match self {
            Way::Trampoline => None,
            Way::List { .. } => Some(Finds::List),
            Way::CallOps { .. } | Way::Fprobe | Way::FprobeExit => Some(Finds::CallOps),
        }
    }

    /// What an op calls; `each`: on a pattern.
    fn function(self, each: bool) -> hit::OpFunction {
        match (self, each) {
            (Way::Trampoline, _) => hit::direct,
            (Way::List { .. } | Way::CallOps { .. }, _) => hit::program,
            (Way::Fprobe, false) => hit::fprobe_entry,
            (Way::Fprobe, true) => hit::fprobe_entry_each,
            (Way::FprobeExit, false) => hit::fprobe_exit,
            (Way::FprobeExit, true) => hit::fprobe_exit_each,
        }
    }
}

/// Who holds the sites.
const CLAIM: &str = "hooks of the Linux way";
const NOP: u32 = a64::Inst::NOP.encode();

/// Code that all functions share.
struct Shared {
    code: Code,
    listing: Listing,
}

/// What [`Owner::Shared`] names: numbers of the shared callers, then of the rest.
const SHARED: [&str; 6] = [
    "the shared caller (list, argument registers)",
    "the shared caller (list, all registers)",
    "the shared caller (per-callsite ops, argument registers)",
    "the shared caller (per-callsite ops, all registers)",
    "the return trampoline",
    "a descriptor of an op",
];
const LANDING: u64 = 4;
const DESCRIPTOR: u64 = 5;

/// What shared code is called.
pub(super) fn shared_name(id: u64) -> &'static str {
    SHARED.get(id as usize).copied().unwrap_or("shared code")
}

/// An op that is registered, with what leads to it.
#[derive(Clone)]
struct Registered {
    op: Arc<Op>,
    /// `None`: it leads to a trampoline, and does not mind how it is found.
    finds: Option<Finds>,
    all: bool,
    descriptor: Arc<Code>,
}

/// A site that is turned: its first word is the Linux way's.
#[derive(Clone, Copy)]
struct Site {
    /// What its second word leads to.
    lead: Option<u64>,
    /// The word before the function.
    word: u32,
    /// A tasks-RCU grace period has passed since it was turned: nobody is between its words with x9 not set.
    settled: bool,
}

struct Linux {
    /// By number: `2 * Finds + all`.
    callers: Vec<Shared>,
    landing: Shared,
    /// Walks the list.
    walk: Registered,
    /// Does nothing.
    nothing: Registered,
    sites: BTreeMap<u64, Site>,
    /// The last registered first.
    ops: Vec<Registered>,
    trampolines: BTreeMap<u64, Trampoline>,
}

/// Taken inside the lock of all hooks.
static LINUX: Mutex<Linux> = Mutex::empty();

/// A change of a site's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// It becomes the Linux way's.
    Turn,
    /// It leads somewhere else, or names another op.
    Lead,
    /// It becomes two NOPs again.
    Back,
}

/// Of tests: asked before a site's words change, with its function's address. It may wait; if it says so the change fails.
pub(crate) static FAULT: Swap<fn(Step, u64) -> bool> = Swap::new();

/// Asks [`FAULT`].
fn may_change(step: Step, function: u64) -> Result<(), Reason> {
    if FAULT.get().is_some_and(|fails| fails(step, function)) {
        let why = "a test has it fail".into();
        return Err(Reason::Platform(PlatformError::Host { at: function, why }));
    }
    Ok(())
}

/// The address of a function of the hook path behind its site, as code enters it that knows nothing hooks it.
fn behind_site(address: usize) -> u64 {
    let nop = |at| code::read(at) == Some(NOP);
    match nop(address) && nop(address + 4) {
        true => address as u64 + ::trampoline::Site::BYTES,
        false => address as u64,
    }
}

fn shared(
    pool: &Arc<Pool<Kernel>>,
    id: u64,
    most: usize,
    generate: impl FnOnce(&mut [u32], u64) -> Result<(usize, Listing), a64::AsmError>,
) -> Result<Shared, Reason> {
    let reserved = pool.reserve(most, shared_name(id)).map_err(Reason::Pool)?;
    let mut words = vec![0; reserved.capacity()];
    let (len, listing) = generate(&mut words, reserved.address()).map_err(Reason::Code)?;
    words.truncate(len);
    let label = Label {
        owner: Owner::Shared { id },
        record: Some(listing.record.clone()),
    };
    let code = reserved.publish(label, &words).map_err(Reason::Platform)?;
    Ok(Shared { code, listing })
}

/// Names an op where the word before a function can lead.
fn descriptor(pool: &Arc<Pool<Kernel>>, op: &Arc<Op>) -> Result<Arc<Code>, Reason> {
    let reserved = pool
        .reserve(4, shared_name(DESCRIPTOR))
        .map_err(Reason::Pool)?;
    let address = Arc::as_ptr(op).expose_provenance() as u64;
    let words = [op.function(), address].map(|v| [v as u32, (v >> 32) as u32]);
    let label = Label {
        owner: Owner::Shared { id: DESCRIPTOR },
        record: None,
    };
    let code = reserved.publish(label, words.as_flattened());
    Ok(Arc::new(code.map_err(Reason::Platform)?))
}

/// Makes the shared code.
pub(super) fn init(pool: &Arc<Pool<Kernel>>) -> Result<(), Reason> {
    let mut callers = Vec::new();
    for find in [Find::Global(hit::current_address()), Find::Callsite] {
        for all in [false, true] {
            let id = callers.len() as u64;
            let caller = Caller { find, all };
            callers.push(shared(pool, id, caller::WORDS_AT_MOST, |words, base| {
                caller.generate(words, base)
            })?);
        }
    }
    let handler = behind_site(hit::returned as *const () as usize);
    let landing = shared(pool, LANDING, fprobe::WORDS_AT_MOST, |words, base| {
        fprobe::return_trampoline(handler, words, base)
    })?;
    hit::set_landing(landing.code.address());
    let fixed = |function: hit::OpFunction| -> Result<Registered, Reason> {
        let function = behind_site(function as *const () as usize);
        let op = Arc::new(Op::new(function, Filter::new(&[]), None, 0));
        let descriptor = descriptor(pool, &op)?;
        Ok(Registered {
            op,
            finds: None,
            all: false,
            descriptor,
        })
    };
    let (walk, nothing) = (fixed(hit::walk)?, fixed(hit::nothing)?);
    hit::set_list([].iter(), &nothing.op);
    LINUX.put(Box::new(Linux {
        callers,
        landing,
        walk,
        nothing,
        sites: BTreeMap::new(),
        ops: Vec::new(),
        trampolines: BTreeMap::new(),
    }));
    Ok(())
}

impl Linux {
    fn caller(&self, finds: Finds, all: bool) -> Option<&Shared> {
        self.callers.get(2 * finds as usize + usize::from(all))
    }

    /// What a function's site should lead to, and where the word before it.
    fn wanted(&self, function: u64) -> (Option<u64>, Option<u64>) {
        let here = || {
            let traces = |r: &&Registered| r.op.filter.contains(function);
            self.ops.iter().filter(traces)
        };
        let tracers: Vec<_> = here().filter(|r| r.finds.is_some()).collect();
        let Some(finds) = tracers.first().and_then(|r| r.finds) else {
            let trampoline = self.trampolines.get(&function);
            return (trampoline.map(|t| t.image.code.address()), None);
        };
        let all = tracers.iter().any(|r| r.all);
        let lead = self.caller(finds, all).map(|c| c.code.address());
        let word = match (finds, here().count(), tracers.first()) {
            (Finds::List, ..) => None,
            (Finds::CallOps, 1, Some(only)) => Some(only.descriptor.address()),
            (Finds::CallOps, ..) => Some(self.walk.descriptor.address()),
        };
        (lead, word)
    }

    /// Makes a site lead where it should.
    fn lead(&mut self, function: u64) -> Result<(), Reason> {
        let (lead, op) = self.wanted(function);
        let nothing = self.nothing.descriptor.address();
        let Some(at) = self.sites.get_mut(&function) else {
            return Ok(());
        };
        // Someone may be on his way to read the word: it stays one that leads to an op for as long as the site is this way.
        let op = op.or((at.word != NOP).then_some(nothing));
        let word = op.map_or(Some(NOP), |op| site::op_word(function, op));
        let word = word.unwrap_or(NOP); // the window is smaller than 2 GiB
        if (word, lead) != (at.word, at.lead) {
            may_change(Step::Lead, function)?;
        }
        site::set_op_word(&Kernel, function, at.word, word).map_err(Reason::Platform)?;
        at.word = word;
        site::lead(&Kernel, function, at.lead, lead)?;
        at.lead = lead;
        Ok(())
    }

    /// Turns the sites that are not this way yet, all or none, and waits until all of them are settled. Those that were turned here lead
    /// nowhere so far.
    fn prepare(
        &mut self,
        engine: &mut Engine<Kernel>,
        functions: &[u64],
    ) -> Result<(), (u64, Reason)> {
        let mut done = Vec::new();
        let mut result = Ok(());
        for &function in functions {
            if self.sites.contains_key(&function) {
                continue;
            }
            let claimed = engine.claim(function, CLAIM).map_err(|e| e.reason);
            let turned = claimed.and_then(|()| {
                let turned = may_change(Step::Turn, function);
                let turned = turned.and_then(|()| site::prepare(&Kernel, function));
                turned.inspect_err(|_| engine.unclaim(function))
            });
            if let Err(reason) = turned {
                result = Err((function, reason));
                break;
            }
            let site = Site {
                lead: None,
                word: NOP,
                settled: false,
            };
            self.sites.insert(function, site);
            done.push(function);
        }
        if result.is_err() {
            self.abandon(engine, &done);
            return result;
        }
        // Not only those: one that could not be turned back, of an attach that failed, may not have settled.
        let unsettled = |function| self.sites.get(function).is_some_and(|at| !at.settled);
        if functions.iter().any(unsettled) {
            // Someone may be preempted between the two words, with x9 not set.
            rcu::synchronize(rcu::Flavour::Tasks);
            self.sites.values_mut().for_each(|at| at.settled = true);
        }
        Ok(())
    }

    /// Turns back those sites that lead nowhere. A grace period has passed since they led somewhere, if they ever did.
    fn abandon(&mut self, engine: &mut Engine<Kernel>, functions: &[u64]) {
        for &function in functions {
            let Some(at) = self.sites.get(&function).copied() else {
                continue;
            };
            if at.lead.is_some() {
                continue;
            }
            // On an error it stays the Linux way's, leads nowhere, and is accounted for: the next hook or detach tries again.
            let back = site::set_op_word(&Kernel, function, at.word, NOP);
            if back.is_ok()
                && let Some(at) = self.sites.get_mut(&function)
            {
                at.word = NOP;
                let back = may_change(Step::Back, function);
                if back.and_then(|()| site::restore(&Kernel, function)).is_ok() {
                    self.sites.remove(&function);
                    engine.unclaim(function);
                }
            }
        }
    }

    /// Tells the hit path which ops there are. One alone is called as it is.
    fn publish(&self) {
        let current = match self.ops.as_slice() {
            [] => &self.nothing,
            [only] if only.finds == Some(Finds::List) => only,
            _ => &self.walk,
        };
        hit::set_list(self.ops.iter().map(|r| &r.op), &current.op);
    }

    /// Registers an op whose functions' sites are turned.
    ///
    /// # Errors
    /// A site could not be changed; others may lead to the op already, and it is in the list: the caller unregisters it.
    fn register(&mut self, new: Registered) -> Result<(), (u64, Reason)> {
        let functions: Vec<_> = new.op.filter.functions().collect();
        self.ops.insert(0, new);
        self.publish();
        let mut lead = |function| self.lead(function).map_err(|reason| (function, reason));
        functions.into_iter().try_for_each(&mut lead)
    }

    /// Takes an op out, off its sites and out of the list, and waits until nobody can be in it.
    ///
    /// # Errors
    /// A site could not be changed; the op is in the list as it was. The caller leads its sites there again ([`Linux::lead_back`]).
    fn unregister(&mut self, op: &Arc<Op>) -> Result<(), (u64, Reason)> {
        let place = self.ops.iter().position(|r| Arc::ptr_eq(&r.op, op));
        let Some(place) = place else {
            return Ok(());
        };
        let gone = self.ops.remove(place);
        self.ops.shrink_to_fit();
        for function in op.filter.functions() {
            if let Err(reason) = self.lead(function) {
                self.ops.insert(place, gone);
                return Err((function, reason));
            }
        }
        self.publish();
        rcu::synchronize(rcu::Flavour::Tasks);
        Ok(())
    }

    /// Leads the sites of an op that could not be taken out where they led: one that does not is hooked by nothing that is freed.
    fn lead_back(&mut self, op: &Op) {
        for function in op.filter.functions() {
            let _ = self.lead(function);
        }
    }

    /// Whether a tracer that is found so can be put on a function.
    ///
    /// # Errors
    /// Someone else has it, or tracers that are found otherwise: two that are cannot share a function.
    fn free_for(
        &self,
        engine: &mut Engine<Kernel>,
        function: u64,
        finds: Finds,
    ) -> Result<(), Reason> {
        let other = |r: &&Registered| r.finds.is_some_and(|f| f != finds);
        let mut others = self.ops.iter().filter(other);
        if others.any(|r| r.op.filter.contains(function)) {
            let by = match finds {
                Finds::List => "tracers with per-callsite ops",
                Finds::CallOps => "tracers of the list without per-callsite ops",
            };
            return Err(Reason::Claimed { by });
        }
        if !self.sites.contains_key(&function) {
            engine.claim(function, CLAIM).map_err(|e| e.reason)?;
            engine.unclaim(function);
        }
        Ok(())
    }
}

/// Turns back what could not be turned back when its last hook went, or its first did not come: somebody wants to hook functions the other
/// way.
pub(super) fn give_back_left(engine: &mut Engine<Kernel>) {
    let mut linux = LINUX.lock();
    let left = linux.sites.iter().filter(|(_, at)| at.lead.is_none());
    let left: Vec<_> = left.map(|(function, _)| *function).collect();
    linux.abandon(engine, &left);
}

/// The words of text that sites of this way have changed, also of one that could not be turned back and that nothing hooks.
pub(super) fn changes() -> Vec<Change> {
    let linux = LINUX.lock();
    let words = linux.sites.iter().flat_map(|(&function, at)| {
        let second = site::second_word(function, at.lead).unwrap_or(NOP);
        [
            (site::op_word_address(function), at.word),
            (function, site::first_word()),
            (function + 4, second),
        ]
    });
    let words = words.filter(|(_, word)| *word != NOP);
    words
        .map(|(address, word)| Change { address, word })
        .collect()
}

fn refused((function, reason): (u64, Reason)) -> HookError {
    HookError::refused(&symbols::Name(function as usize).function(), reason)
}

/// It failed at that function, and could not be undone: what it made is a hook.
fn stuck(function: u64, reason: Reason, undo: Box<Reason>, id: HookId) -> HookError {
    HookError::Stuck {
        function: symbols::Name(function as usize).function(),
        reason: Box::new(reason),
        undo,
        id,
    }
}

/// How many returns of so many functions may be under way for one program: as many as can be if nobody blocks in a function, twice a
/// core for each.
pub(super) fn nodes(functions: usize) -> u32 {
    (2 * cpu::online().count() * functions) as u32
}

/// The stack that a return takes beside its programs, in bytes.
pub(super) fn return_stack() -> u32 {
    let frame = LINUX.lock().landing.listing.frame_bytes;
    frame.saturating_add(stack_of(hit::returned as *const () as usize))
}

/// An op is off: calls that it has seen begin run nothing when they end, and it goes with `others` when the last of them has.
pub(super) fn retire<T: Send + 'static>(op: Arc<Op>, others: T) {
    op.stop();
    // No function may return to its program any more.
    when_idle((op, others), |(op, _)| op.at_rest());
}

/// The most stack of a function of the hit path, where the audit does not say.
const UNKNOWN_STACK: u32 = 512;

fn stack_of(function: usize) -> u32 {
    symbols::stack_of(function as u64).unwrap_or(UNKNOWN_STACK)
}

/// How long to wait before it is looked again whether someone is still inside, in nanoseconds.
const LOOK_AGAIN_NS: u64 = 2_000_000;

/// Drops `what` a tasks-RCU grace period after one behind which `idle` held.
fn when_idle<T: Send + 'static>(what: T, idle: impl Fn(&T) -> bool + Send + 'static) {
    rcu::defer(rcu::Flavour::Tasks, move || {
        if idle(&what) {
            rcu::defer(rcu::Flavour::Tasks, move || drop(what));
        } else {
            sched::sleep_ns(LOOK_AGAIN_NS);
            when_idle(what, idle);
        }
    });
}

/// The live code that a function's site leads to; nothing if it does not go this way.
pub(super) fn describe(function: u64) -> Vec<CodeLine> {
    let linux = LINUX.lock();
    let Some(at) = linux.sites.get(&function) else {
        return Vec::new();
    };
    let line = |address: u64, ingredient| {
        Some(CodeLine {
            address: address as usize,
            word: code::read(address as usize)?,
            ingredient,
        })
    };
    let mut lines = Vec::new();
    if at.word != NOP {
        lines.extend(line(site::op_word_address(function), "literal"));
    }
    lines.extend(
        [function, function + 4]
            .map(|at| line(at, "site"))
            .into_iter()
            .flatten(),
    );
    let mut code = |code: &Code, listing: &Listing| {
        for index in 0..code.words() {
            let ingredient = listing.span(index).map_or("", |s| s.ingredient.name());
            lines.extend(line(code.address() + 4 * index as u64, ingredient));
        }
    };
    let led = |s: &&Shared| at.lead == Some(s.code.address());
    if let Some(shared) = linux.callers.iter().find(led) {
        code(&shared.code, &shared.listing);
    }
    if let Some(trampoline) = linux.trampolines.get(&function) {
        code(&trampoline.image.code, &trampoline.image.listing);
    }
    let exits = |r: &&Registered| r.op.filter.contains(function) && r.op.returns();
    if linux.ops.iter().any(|r| exits(&r)) {
        code(&linux.landing.code, &linux.landing.listing);
    }
    lines
}
