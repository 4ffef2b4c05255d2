// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tracers of the Linux way: programs that the shared caller reaches by an op of their own.

use super::{
    Code, Finds, LINUX, Registered, Way, behind_site, descriptor, nodes, refused, retire, stack_of,
    stuck, trampoline,
};
use crate::arch::callee::Shape;
use crate::arch::linux::{self as hit, Called, Op};
use crate::hook::platform::Kernel;
use crate::hook::{
    Change, Function, HookError, HookId, HookInfo, Mechanism, Point, Program, Running,
    attach_or_keep, check_target,
};
use crate::mm::stack;
use crate::{symbols, types};
use ::trampoline::linux::filter::Filter;
use ::trampoline::{Engine, Kind, Reason};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;

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
    keep: Option<(::trampoline::Callee, Arc<Code>)>,
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
        return trampoline::attach(first, point, program);
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
    attach_or_keep(|engine, id| {
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
        let most = match way {
            Way::FprobeExit => nodes(functions.len()),
            _ => 0,
        };
        let called = Called {
            address: callee.address,
            data: callee.data.unwrap_or(0),
            running: running.clone(),
        };
        let function = behind_site(way.function() as *const () as usize);
        let op = Op::new(function, Filter::new(&addresses), Some(called), most);
        let op = Arc::new(op);
        let descriptor = descriptor(engine.pool(), &op).map_err(|r| refused((0, r)))?;
        let new = Registered {
            op: op.clone(),
            finds: Some(finds),
            all,
            descriptor: descriptor.clone(),
        };
        linux.prepare(engine, &addresses).map_err(refused)?;
        let mut error = None;
        if let Err((function, reason)) = linux.register(new) {
            match linux.unregister(&op) {
                Ok(()) => {
                    linux.abandon(engine, &addresses);
                    retire(op, (callee, descriptor));
                    return Err(refused((function, reason)));
                }
                Err((_, undo)) => {
                    linux.lead_back(&op);
                    error = Some(stuck(function, reason, Box::new(undo), id));
                }
            }
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
        Ok((hook, addresses, error))
    })
}

fn check_stack(function: &Function, needed: u32) -> Result<(), HookError> {
    let limit = stack::HIT_LIMIT as u32;
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
        if let Err(at) = linux.unregister(&self.op) {
            linux.lead_back(&self.op);
            return Err(refused(at));
        }
        linux.abandon(engine, &self.functions);
        drop(linux);
        if let Some(keep) = self.keep.take() {
            retire(self.op.clone(), keep);
        }
        Ok(())
    }
}
