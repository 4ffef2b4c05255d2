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
    Change, Function, HookError, HookId, HookInfo, HookedIn, Mechanism, Point, Program, Running,
    Selection, Skipped, attach_or_keep, check_target,
};
use crate::mm::stack;
use crate::{symbols, types};
use ::trampoline::linux::filter::Filter;
use ::trampoline::{Engine, Kind, Reason};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;

/// A hook by an op.
struct OpHook {
    /// Ascending.
    functions: Vec<u64>,
    /// What they are called together.
    on: String,
    way: Way,
    program: String,
    op: Arc<Op>,
    running: Arc<Running>,
    bytes: u64,
    stack_bytes: u32,
    /// Kept as long as the op.
    keep: Option<(::trampoline::Callee, Arc<Code>)>,
}

/// Where an op's program is hooked.
struct Spot {
    /// The functions, and what the program is told on each when it asks for its cookie.
    functions: Vec<(u64, u64)>,
    /// The name of the first one.
    first: String,
    /// Words of arguments that are known of it.
    arguments: u8,
    /// The pattern that named them, if one did, and those that were left out.
    pattern: Option<(String, Skipped)>,
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
    let spot = Spot {
        functions: functions
            .iter()
            .map(|f| (f.address as u64, point.cookie))
            .collect(),
        first: first.name.into(),
        arguments: types::arguments(first.name).registers(),
        pattern: None,
    };
    attach_op(spot, way, point, program).map(|hooked| hooked.id)
}

/// As [`attach`], by fprobe onto all functions of a selection; the program's context has the shape [`Shape::Many`]. A function that
/// someone else has taken is left out.
pub(crate) fn attach_multi(
    selection: Selection,
    way: Way,
    point: Point,
    program: Program,
) -> Result<HookedIn, HookError> {
    let first = selection.functions.first().copied().unwrap_or(0);
    let cookies = selection.cookies.into_iter();
    let cookies = cookies.chain(core::iter::repeat(point.cookie));
    let spot = Spot {
        functions: selection.functions.into_iter().zip(cookies).collect(),
        first: symbols::Name(first as usize).function(),
        arguments: 0,
        pattern: Some((selection.pattern, selection.skipped)),
    };
    attach_op(spot, way, point, program)
}

fn attach_op(spot: Spot, way: Way, point: Point, program: Program) -> Result<HookedIn, HookError> {
    let Spot {
        mut functions,
        first,
        arguments,
        mut pattern,
    } = spot;
    let unsuited = |why: &str| HookError::Target {
        function: first.clone(),
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
    let attachment = Attachment {
        function: functions.first().map_or(0, |(function, _)| *function),
        cookie: point.cookie,
        arguments: match way.shape(point.kind) {
            Shape::Registers => 0,
            _ => arguments.into(),
        },
        has_result: false.into(),
    };
    functions.sort_unstable();
    functions.dedup();
    let (callee, running) = program.at(attachment, point.protection, false);
    let mut frames = stack_of(hit::walk as *const () as usize)
        .saturating_add(stack_of(
            way.function(pattern.is_some()) as *const () as usize
        ))
        .saturating_add(callee.stack_bytes);
    let mut hooked = 0;
    let id = attach_or_keep(|engine, id| {
        let mut linux = LINUX.lock();
        let all = way.shape(point.kind) == Shape::Registers
            && matches!(way, Way::List { .. } | Way::CallOps { .. });
        let finds = way.finds().unwrap_or(Finds::List);
        let own = linux
            .caller(finds, all)
            .map_or(0, |c| c.listing.frame_bytes);
        frames = frames.saturating_add(own.max(linux.landing.listing.frame_bytes));
        check_stack(&first, frames)?;
        let (mut addresses, mut cookies) = (Vec::new(), Vec::new());
        for &(function, cookie) in &functions {
            let Err(reason) = linux.free_for(engine, function, finds) else {
                addresses.push(function);
                cookies.push(cookie);
                continue;
            };
            let skipped = pattern.as_mut().map(|(_, skipped)| skipped);
            if !skipped.is_some_and(|skipped| skipped.taken(&reason)) {
                return Err(refused((function, reason)));
            }
        }
        if let (true, Some((pattern, skipped))) = (addresses.is_empty(), &pattern) {
            return Err(HookError::Nothing {
                pattern: pattern.clone(),
                nearest: Vec::new(),
                skipped: skipped.clone(),
            });
        }
        hooked = addresses.len();
        let each = pattern.is_some();
        let most = match way {
            Way::FprobeExit => nodes(if each { 1 } else { hooked }),
            _ => 0,
        };
        let called = Called {
            address: callee.address,
            data: callee.data.unwrap_or(0),
            running: running.clone(),
        };
        let function = behind_site(way.function(each) as *const () as usize);
        let op = Arc::new(match each {
            true => Op::on_each(function, &addresses, &cookies, called, most),
            false => Op::new(function, Filter::new(&addresses), Some(called), most),
        });
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
            on: match &pattern {
                Some((pattern, _)) => format!("{pattern} ({hooked} functions)"),
                None if hooked == 1 => first.clone(),
                None => format!("{first} and {} more", hooked - 1),
            },
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
    })?;
    Ok(HookedIn {
        id,
        on: format!("{hooked} functions"),
        functions: hooked,
        skipped: pattern.map(|(_, skipped)| skipped).unwrap_or_default(),
    })
}

fn check_stack(function: &str, needed: u32) -> Result<(), HookError> {
    let limit = stack::HIT_LIMIT as u32;
    match needed > limit {
        true => Err(HookError::refused(
            function,
            Reason::Stack { needed, limit },
        )),
        false => Ok(()),
    }
}

impl Mechanism for OpHook {
    fn info(&self) -> HookInfo {
        HookInfo {
            id: HookId(0),
            function: self.on.clone(),
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
        self.functions.binary_search(&function).is_ok()
    }

    fn changes(&self) -> Vec<Change> {
        Vec::new()
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
