// SPDX-License-Identifier: MIT OR Apache-2.0
//! BPF trampolines of the Linux way: a function's image, rebuilt for each program more or less, and the op that tracers reach it by.

use super::{
    Code, LINUX, Linux, NOP, Registered, behind_site, descriptor, refused, stack_of, stuck,
    when_idle,
};
use crate::arch::linux::{self as hit, Op, Prog, Progs, Users};
use crate::hook::platform::Kernel;
use crate::hook::{
    Change, Function, HookError, HookId, HookInfo, Hooks, Mechanism, Point, Program, Protection,
    attach_if,
};
use crate::{rcu, symbols, types};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use trampoline::linux::Listing;
use trampoline::linux::filter::Filter;
use trampoline::linux::image::{self, Attached, Description};
use trampoline::pool::{Label, Owner, Pool};
use trampoline::{ArgSpec, Engine, Guard, Kind, Platform, Reason};

/// A BPF trampoline's code.
pub(super) struct Image {
    pub(super) code: Code,
    pub(super) listing: Listing,
    /// Addresses of the NOP behind the call of the function, and of the end.
    bypass: Option<(u64, u64)>,
    stack_bytes: u32,
    users: Box<Users>,
    progs: Progs,
    /// What the code names.
    _programs: Vec<Attached>,
}

/// A function's BPF trampoline.
pub(super) struct Trampoline {
    pub(super) image: Arc<Image>,
    programs: Vec<(HookId, Attached)>,
    op: Registered,
}

impl Trampoline {
    /// Exchanges image and programs for others, also where a tracer's op leads to the image.
    fn exchange(&mut self, image: &mut Arc<Image>, programs: &mut Vec<(HookId, Attached)>) {
        core::mem::swap(&mut self.image, image);
        core::mem::swap(&mut self.programs, programs);
        self.image.lead(&self.op.op);
    }
}

impl Image {
    /// Has a tracer's op lead here.
    fn lead(&self, op: &Op) {
        op.lead_to(self.code.address(), &self.progs);
    }

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
        let (needed, limit) = (built.waiting_bytes, Kernel.waiting_limit());
        if needed > limit {
            return Err(Reason::Waiting { needed, limit });
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
            progs: Progs(programs.iter().filter_map(prog_of).collect()),
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

/// What is counted of a program.
fn prog_of((_, callee, _): &Attached) -> Option<Arc<Prog>> {
    callee.keep.clone()?.downcast().ok()
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

pub(super) fn attach(
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
    let check = |hooks: &Hooks| hooks.check_waiting(function, point.kind);
    attach_if(check, |engine, id| {
        let name = callee.name.clone();
        let mut linux = LINUX.lock();
        let before = linux.trampolines.get(&address);
        let mut programs = before.map_or(Vec::new(), |t| t.programs.clone());
        programs.push((id, (point.kind, callee, point.cookie)));
        let error = match linux.set_programs(engine, address, args, programs) {
            Ok(()) => None,
            Err(Failed { reason, undo: None }) => return Err(refused((address, reason))),
            Err(Failed {
                reason,
                undo: Some(undo),
            }) => Some(stuck(address, reason, undo, id)),
        };
        let hook = TrampolineHook {
            id,
            function: address,
            kind: point.kind,
            program: name,
            prog,
            args,
        };
        Ok((hook, vec![address], error))
    })
}

/// Whether a function's trampoline waits for it to return.
pub(crate) fn waits_for(function: u64) -> bool {
    let linux = LINUX.lock();
    let trampoline = linux.trampolines.get(&function);
    trampoline.is_some_and(|t| {
        t.programs
            .iter()
            .any(|(_, (kind, ..))| kind.calls_function())
    })
}

/// Programs could not be put on, or taken off.
struct Failed {
    reason: Reason,
    /// All is as it was, or else why it could not be: the trampoline is on.
    undo: Option<Box<Reason>>,
}

impl From<Reason> for Failed {
    fn from(reason: Reason) -> Failed {
        Failed { reason, undo: None }
    }
}

impl Linux {
    /// Takes a function's trampoline off. On an error it is as it was.
    fn take_off(&mut self, engine: &mut Engine<Kernel>, function: u64) -> Result<(), Reason> {
        // Out of the map first: what is in there is what the site should lead to.
        let Some(gone) = self.trampolines.remove(&function) else {
            return Ok(());
        };
        if let Err((_, reason)) = self.unregister(&gone.op.op) {
            let op = gone.op.op.clone();
            self.trampolines.insert(function, gone);
            self.lead_back(&op);
            return Err(reason);
        }
        self.abandon(engine, &[function]);
        gone.image.retire();
        Ok(())
    }

    /// Gives a function's trampoline these programs, or none. On an error it is as it was, or says why not.
    fn set_programs(
        &mut self,
        engine: &mut Engine<Kernel>,
        function: u64,
        args: ArgSpec,
        programs: Vec<(HookId, Attached)>,
    ) -> Result<(), Failed> {
        let pool = engine.pool().clone();
        if programs.is_empty() {
            return Ok(self.take_off(engine, function)?);
        }
        let image = Arc::new(Image::new(&pool, function, args, &programs)?);
        if let Some(there) = self.trampolines.get_mut(&function) {
            let (mut other, mut others) = (image, programs);
            there.exchange(&mut other, &mut others);
            let led = self.lead(function);
            if led.is_err()
                && let Some(there) = self.trampolines.get_mut(&function)
            {
                there.exchange(&mut other, &mut others);
            }
            // The old one; or the new one, which a tracer's op may have led to for a moment.
            other.retire();
            return Ok(led?);
        }
        let target = behind_site(hit::direct as *const () as usize);
        let op = Arc::new(Op::new(target, Filter::new(&[function]), None, 0));
        image.lead(&op);
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
            let undo = self.take_off(engine, function).err().map(Box::new);
            return Err(Failed { reason, undo });
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
        Vec::new()
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
            .map_err(|failed| refused((self.function, failed.reason)))
    }
}
