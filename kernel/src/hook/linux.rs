// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks of the Linux way: which ops there are, what each site leads to, BPF trampolines, and how all of it is put on and taken off.
//!
//! There is one list of ops, the last registered first: tracers and, of each function with a BPF trampoline, one that leads there. A
//! function's site leads to its trampoline if nothing else traces it, else to the shared caller of the kind that its tracers want. Whoever
//! attaches here waits for a grace period before a site's second word is changed, and whoever detaches for one behind it, as
//! Linux's callers do.

use super::platform::Kernel;
use super::{
    Change, CodeLine, Function, HookError, HookId, HookInfo, Mechanism, Point, Program, Protection,
    Running, attach_other, check_target,
};
use crate::arch::callee::Shape;
use crate::arch::linux::{self as hit, Called, Op, Prog, Users};
use crate::arch::{code, cpu};
use crate::mm::stack;
use crate::sched::{self, Mutex};
use crate::{rcu, symbols, types};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use trampoline::linux::caller::{self, Caller, Find};
use trampoline::linux::filter::Filter;
use trampoline::linux::image::{self, Attached, Description};
use trampoline::linux::{Listing, fprobe, site};
use trampoline::pool::{Label, Owner, Pool};
use trampoline::program::CONTEXTS;
use trampoline::{ArgSpec, Engine, Guard, Kind, Platform, Reason};

/// Executable memory with code or a descriptor.
type Code = trampoline::pool::Code<Kernel>;

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

    fn function(self) -> hit::OpFunction {
        match self {
            Way::Trampoline => hit::direct,
            Way::List { .. } | Way::CallOps { .. } => hit::program,
            Way::Fprobe => hit::fprobe_entry,
            Way::FprobeExit => hit::fprobe_exit,
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

/// A hooked function's site.
#[derive(Clone, Copy)]
struct Site {
    /// What its second word leads to.
    lead: Option<u64>,
    /// The word before the function.
    word: u32,
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

/// The address of a function of the hook path behind its site, as code enters it that knows nothing hooks it.
fn behind_site(address: usize) -> u64 {
    let nop = |at| code::read(at) == Some(NOP);
    match nop(address) && nop(address + 4) {
        true => address as u64 + trampoline::Site::BYTES,
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
        site::set_op_word(&Kernel, function, at.word, word).map_err(Reason::Platform)?;
        at.word = word;
        site::lead(&Kernel, function, at.lead, lead)?;
        at.lead = lead;
        Ok(())
    }

    /// Turns the sites that are not this way yet; they lead nowhere so far. All or none.
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
                site::prepare(&Kernel, function).inspect_err(|_| engine.unclaim(function))
            });
            if let Err(reason) = turned {
                result = Err((function, reason));
                break;
            }
            let lead = None;
            self.sites.insert(function, Site { lead, word: NOP });
            done.push(function);
        }
        if result.is_err() {
            self.abandon(engine, &done);
        } else if !done.is_empty() {
            // Someone may be preempted between the two words, with x9 not set.
            rcu::synchronize(rcu::Flavour::Tasks);
        }
        result
    }

    /// Turns back those sites that lead nowhere. A grace period has passed since they led somewhere.
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
                if site::restore(&Kernel, function).is_ok() {
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
    fn register(&mut self, new: Registered) -> Result<(), (u64, Reason)> {
        let functions: Vec<_> = new.op.filter.functions().collect();
        let op = new.op.clone();
        self.ops.insert(0, new);
        self.publish();
        for &function in &functions {
            if let Err(reason) = self.lead(function) {
                self.unregister(&op);
                return Err((function, reason));
            }
        }
        Ok(())
    }

    /// Takes an op out, off its sites and out of the list, and waits until nobody can be in it.
    fn unregister(&mut self, op: &Arc<Op>) {
        self.ops.retain(|r| !Arc::ptr_eq(&r.op, op));
        for function in op.filter.functions() {
            // On an error the site leads where it did: to code that stays, and to an op that is not in the list any more.
            let _ = self.lead(function);
        }
        self.publish();
        rcu::synchronize(rcu::Flavour::Tasks);
    }

    /// Why two tracers cannot share a function.
    fn conflict(&self, functions: &[u64], finds: Finds) -> Option<u64> {
        let other = |r: &&Registered| r.finds.is_some_and(|f| f != finds);
        let clash = |f: &u64| {
            let mut others = self.ops.iter().filter(other);
            others.any(|r| r.op.filter.contains(*f))
        };
        functions.iter().copied().find(clash)
    }

    /// The words of text that a site's being this way has changed.
    fn changes(&self, function: u64) -> Vec<Change> {
        let Some(at) = self.sites.get(&function) else {
            return Vec::new();
        };
        let second = site::second_word(function, at.lead).unwrap_or(NOP);
        let words = [
            (site::op_word_address(function), at.word),
            (function, site::first_word()),
            (function + 4, second),
        ];
        let words = words.into_iter().filter(|(_, word)| *word != NOP);
        words
            .map(|(address, word)| Change { address, word })
            .collect()
    }
}

fn refused((function, reason): (u64, Reason)) -> HookError {
    HookError::refused(&symbols::Name(function as usize).function(), reason)
}

/// The most stack of a function of the hit path, where the audit does not say.
const UNKNOWN_STACK: u32 = 512;

fn stack_of(function: usize) -> u32 {
    symbols::stack_of(function as u64).unwrap_or(UNKNOWN_STACK)
}

/// A hook by an op.
struct OpHook {
    functions: Vec<u64>,
    way: Way,
    program: String,
    op: Arc<Op>,
    running: Arc<Running>,
    bytes: u64,
    stack_bytes: u32,
    /// Kept as long as the op.
    keep: Option<(trampoline::Callee, Arc<Code>)>,
}

/// Hooks a program onto functions, by an op of its own.
pub(crate) fn attach(
    functions: &[Function],
    way: Way,
    point: Point,
    program: Program,
) -> Result<HookId, HookError> {
    let Some(first) = functions.first() else {
        return Err(HookError::Code(
            "no function to hook; name one at least".into(),
        ));
    };
    for function in functions {
        check_target(function, point)?;
    }
    if way == Way::Trampoline {
        return attach_trampoline(first, point, program);
    }
    let unsuited = |why: &str| HookError::Target {
        function: first.name.into(),
        why: why.into(),
    };
    if point.sleepable {
        return Err(unsuited(
            "an op's program must not block; attach it by the function's trampoline (linux)",
        ));
    }
    if point.kind != Kind::Fentry && way != Way::FprobeExit {
        return Err(unsuited(
            "an op is called at a function's entry; attach the program by the function's trampoline (linux)",
        ));
    }
    let arguments = match way.shape(point.kind) {
        Shape::Registers => 0,
        _ => types::arguments(first.name).registers(),
    };
    let attachment = Attachment {
        function: first.address as u64,
        cookie: point.cookie,
        arguments: arguments.into(),
        has_result: false.into(),
    };
    let (callee, running) = program.at(attachment, point.protection, false);
    let mut frames = stack_of(hit::walk as *const () as usize)
        .saturating_add(stack_of(way.function() as *const () as usize))
        .saturating_add(callee.stack_bytes);
    let addresses: Vec<_> = functions.iter().map(|f| f.address as u64).collect();
    attach_other(|engine, _| {
        let mut linux = LINUX.lock();
        let all = way.shape(point.kind) == Shape::Registers
            && matches!(way, Way::List { .. } | Way::CallOps { .. });
        let finds = way.finds().unwrap_or(Finds::List);
        let own = linux
            .caller(finds, all)
            .map_or(0, |c| c.listing.frame_bytes);
        frames = frames.saturating_add(own.max(linux.landing.listing.frame_bytes));
        check_stack(first, frames)?;
        if let Some(function) = linux.conflict(&addresses, finds) {
            let by = match finds {
                Finds::List => "tracers with per-callsite ops",
                Finds::CallOps => "tracers of the list without per-callsite ops",
            };
            return Err(refused((function, Reason::Claimed { by })));
        }
        let nodes = match way {
            // As many as can be under way if nobody blocks in a function: twice a core for each.
            Way::FprobeExit => (2 * cpu::online().count() * functions.len()) as u32,
            _ => 0,
        };
        let called = Called {
            address: callee.address,
            data: callee.data.unwrap_or(0),
            running: running.clone(),
        };
        let function = behind_site(way.function() as *const () as usize);
        let op = Op::new(function, Filter::new(&addresses), Some(called), nodes);
        let op = Arc::new(op);
        let descriptor = descriptor(engine.pool(), &op).map_err(|r| refused((0, r)))?;
        let new = Registered {
            op: op.clone(),
            finds: Some(finds),
            all,
            descriptor: descriptor.clone(),
        };
        linux.prepare(engine, &addresses).map_err(refused)?;
        if let Err(e) = linux.register(new) {
            linux.abandon(engine, &addresses);
            return Err(refused(e));
        }
        let hook = OpHook {
            functions: addresses.clone(),
            way,
            program: callee.name.clone(),
            op,
            running,
            bytes: descriptor.bytes(),
            stack_bytes: frames,
            keep: Some((callee, descriptor)),
        };
        Ok((hook, addresses))
    })
}

fn check_stack(function: &Function, needed: u32) -> Result<(), HookError> {
    let limit = (stack::HOOK_RESERVE / CONTEXTS) as u32;
    match needed > limit {
        true => Err(HookError::refused(
            function.name,
            Reason::Stack { needed, limit },
        )),
        false => Ok(()),
    }
}

impl Mechanism for OpHook {
    fn info(&self) -> HookInfo {
        let first = self.functions.first().copied().unwrap_or(0);
        let mut function = symbols::Name(first as usize).function();
        if self.functions.len() > 1 {
            function = alloc::format!("{function} and {} more", self.functions.len() - 1);
        }
        HookInfo {
            id: HookId(0),
            function,
            kind: self.way.name(),
            program: self.program.clone(),
            engine: self.running.engine,
            sleepable: false,
            misses: self.running.state.misses(),
            bytes: self.bytes as usize,
            stack_bytes: self.stack_bytes as usize,
        }
    }

    fn covers(&self, function: u64) -> bool {
        self.functions.contains(&function)
    }

    fn changes(&self) -> Vec<Change> {
        let linux = LINUX.lock();
        let functions = self.functions.iter();
        functions.flat_map(|f| linux.changes(*f)).collect()
    }

    fn hits(&self) -> Option<u64> {
        self.running.hits()
    }

    fn detach(&mut self, engine: &mut Engine<Kernel>) -> Result<(), HookError> {
        let mut linux = LINUX.lock();
        self.op.stop();
        linux.unregister(&self.op);
        linux.abandon(engine, &self.functions);
        drop(linux);
        if let Some((callee, descriptor)) = self.keep.take() {
            // No function may return to its program any more.
            when_idle((self.op.clone(), callee, descriptor), |(op, ..)| {
                op.at_rest()
            });
        }
        Ok(())
    }
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

/// A BPF trampoline's code.
struct Image {
    code: Code,
    listing: Listing,
    /// Addresses of the NOP behind the call of the function, and of the end.
    bypass: Option<(u64, u64)>,
    stack_bytes: u32,
    users: Box<Users>,
    /// What the code names.
    _programs: Vec<Attached>,
}

/// A function's BPF trampoline.
struct Trampoline {
    image: Arc<Image>,
    programs: Vec<(HookId, Attached)>,
    op: Registered,
}

impl Image {
    fn new(
        pool: &Arc<Pool<Kernel>>,
        function: u64,
        args: ArgSpec,
        programs: &[(HookId, Attached)],
    ) -> Result<Image, Reason> {
        let programs: Vec<_> = programs.iter().map(|(_, p)| p.clone()).collect();
        let calls = programs.iter().any(|(kind, ..)| kind.calls_function());
        if calls && args.stack().is_none() {
            return Err(Reason::Arguments);
        }
        let users = Box::new(Users::new());
        let description = Description {
            args,
            programs: &programs,
            users: image::Users {
                enter: behind_site(hit::came as *const () as usize),
                exit: behind_site(hit::left as *const () as usize),
                of: core::ptr::from_ref(&*users).expose_provenance() as u64,
            },
        };
        let name = alloc::format!("the trampoline of {function:#x}");
        let reserved = pool
            .reserve(description.words_at_most(), &name)
            .map_err(Reason::Pool)?;
        let base = reserved.address();
        let mut words = vec![0; reserved.capacity()];
        let built = description
            .generate(&mut words, base)
            .map_err(Reason::Code)?;
        words.truncate(built.words);
        let (needed, limit) = (built.stack_bytes, Kernel.stack_limit());
        if needed > limit {
            return Err(Reason::Stack { needed, limit });
        }
        let label = Label {
            owner: Owner::Linux { function },
            record: Some(built.listing.record.clone()),
        };
        let code = reserved.publish(label, &words).map_err(Reason::Platform)?;
        let at = |index: usize| base + 4 * index as u64;
        Ok(Image {
            code,
            listing: built.listing,
            bypass: built.bypass.map(|(nop, end)| (at(nop), at(end))),
            stack_bytes: built.stack_bytes,
            users,
            _programs: programs,
        })
    }

    /// Frees it when nobody can be in it, nor return into it. Nothing leads to it any more.
    fn retire(self: Arc<Image>) {
        let Some((nop, end)) = self.bypass else {
            // Sleepable programs first, then whoever is in the code.
            rcu::defer_all(move || drop(self));
            return;
        };
        // Who is in the function runs nothing of the exit: B may replace NOP while cores execute it.
        let over = a64::ops::b().with_offset(end.wrapping_sub(nop) as i64);
        if let Ok(over) = over {
            // On an error those calls run the exit once more, and the image lives until then all the same.
            if Kernel.patch(nop, NOP, over.encode()).is_ok() {
                Kernel.sync_cores();
            }
        }
        when_idle(self, |image| !image.users.any());
    }
}

/// The functions that go around a program, and the stack that they use.
fn guard_of(protection: Protection, sleepable: bool) -> (Guard, u32) {
    type Enter = extern "C" fn(*const Prog, *const hit::Run) -> u64;
    type Exit = extern "C" fn(*const Prog, u64, *const hit::Run);
    let recursion = matches!(protection, Protection::Program | Protection::Context);
    let (enter, exit): (Enter, Exit) = match (sleepable, recursion) {
        (false, true) => (hit::enter_recur, hit::exit_recur),
        (false, false) => (hit::enter, hit::exit),
        (true, true) => (hit::enter_sleepable_recur, hit::exit_sleepable_recur),
        (true, false) => (hit::enter_sleepable, hit::exit_sleepable),
    };
    let (enter, exit) = (enter as *const () as usize, exit as *const () as usize);
    let guard = Guard::Call {
        enter: behind_site(enter),
        exit: behind_site(exit),
    };
    (guard, stack_of(enter).max(stack_of(exit)))
}

/// A program of a BPF trampoline.
struct TrampolineHook {
    id: HookId,
    function: u64,
    kind: Kind,
    program: String,
    prog: Arc<Prog>,
    args: ArgSpec,
}

fn attach_trampoline(
    function: &Function,
    point: Point,
    program: Program,
) -> Result<HookId, HookError> {
    if matches!(point.kind, Kind::Fsession | Kind::Freplace) {
        return Err(HookError::Target {
            function: function.name.into(),
            why: "the Linux way has neither sessions nor replacing here; attach it without linux"
                .into(),
        });
    }
    let args = types::arguments(function.name);
    let attachment = Attachment {
        function: function.address as u64,
        cookie: point.cookie,
        arguments: args.words().into(),
        has_result: point.kind.calls_function().into(),
    };
    let (mut callee, running) = program.at(attachment, point.protection, point.sleepable);
    let prog = Arc::new(Prog::new(running));
    let (guard, around) = guard_of(point.protection, point.sleepable);
    callee.guard = guard;
    callee.stack_bytes = callee.stack_bytes.max(around);
    callee.state = Arc::as_ptr(&prog).expose_provenance() as u64;
    callee.keep = Some(prog.clone());
    let address = function.address as u64;
    attach_other(|engine, id| {
        let name = callee.name.clone();
        let mut linux = LINUX.lock();
        let before = linux.trampolines.get(&address);
        let mut programs = before.map_or(Vec::new(), |t| t.programs.clone());
        programs.push((id, (point.kind, callee, point.cookie)));
        linux
            .set_programs(engine, address, args, programs)
            .map_err(|reason| refused((address, reason)))?;
        let hook = TrampolineHook {
            id,
            function: address,
            kind: point.kind,
            program: name,
            prog,
            args,
        };
        Ok((hook, vec![address]))
    })
}

impl Linux {
    /// Gives a function's trampoline these programs, or none. On an error it is as it was.
    fn set_programs(
        &mut self,
        engine: &mut Engine<Kernel>,
        function: u64,
        args: ArgSpec,
        programs: Vec<(HookId, Attached)>,
    ) -> Result<(), Reason> {
        let pool = engine.pool().clone();
        if programs.is_empty() {
            if let Some(gone) = self.trampolines.remove(&function) {
                self.unregister(&gone.op.op);
                self.abandon(engine, &[function]);
                gone.image.retire();
            }
            return Ok(());
        }
        let image = Arc::new(Image::new(&pool, function, args, &programs)?);
        if let Some(there) = self.trampolines.get_mut(&function) {
            let old = core::mem::replace(&mut there.image, image.clone());
            let direct = &there.op.op.direct;
            direct.store(image.code.address(), core::sync::atomic::Ordering::Release);
            there.programs = programs;
            self.lead(function)?;
            old.retire();
            return Ok(());
        }
        let target = behind_site(hit::direct as *const () as usize);
        let op = Arc::new(Op::new(target, Filter::new(&[function]), None, 0));
        op.direct
            .store(image.code.address(), core::sync::atomic::Ordering::Release);
        let new = Registered {
            descriptor: descriptor(&pool, &op)?,
            op,
            finds: None,
            all: false,
        };
        self.prepare(engine, &[function]).map_err(|(_, r)| r)?;
        let trampoline = Trampoline {
            image,
            programs,
            op: new.clone(),
        };
        self.trampolines.insert(function, trampoline);
        if let Err((_, reason)) = self.register(new) {
            self.trampolines.remove(&function);
            self.abandon(engine, &[function]);
            return Err(reason);
        }
        Ok(())
    }
}

impl Mechanism for TrampolineHook {
    fn info(&self) -> HookInfo {
        let linux = LINUX.lock();
        let image = linux.trampolines.get(&self.function).map(|t| &t.image);
        let running = &self.prog.running;
        HookInfo {
            id: self.id,
            function: symbols::Name(self.function as usize).function(),
            kind: match self.kind {
                Kind::Fentry => "linux-fentry",
                Kind::FmodRet => "linux-fmod_ret",
                Kind::Fexit | Kind::Fsession | Kind::Freplace => "linux-fexit",
            },
            program: self.program.clone(),
            engine: running.engine,
            sleepable: running.sleepable,
            misses: running.state.misses(),
            bytes: image.map_or(0, |i| i.code.bytes() as usize),
            stack_bytes: image.map_or(0, |i| i.stack_bytes as usize),
        }
    }

    fn covers(&self, function: u64) -> bool {
        self.function == function
    }

    fn changes(&self) -> Vec<Change> {
        LINUX.lock().changes(self.function)
    }

    fn hits(&self) -> Option<u64> {
        self.prog.running.hits()
    }

    fn detach(&mut self, engine: &mut Engine<Kernel>) -> Result<(), HookError> {
        let mut linux = LINUX.lock();
        let Some(there) = linux.trampolines.get(&self.function) else {
            return Err(HookError::NoSuchHook(self.id));
        };
        let others = there.programs.iter().filter(|(id, _)| *id != self.id);
        let rest: Vec<_> = others.cloned().collect();
        linux
            .set_programs(engine, self.function, self.args, rest)
            .map_err(|reason| refused((self.function, reason)))
    }
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
