// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kprobes and kretprobes by BRK as hooks of this kernel: programs at one instruction share its breakpoint.

use super::probe::Place;
use super::{Change, HookError, HookId, HookInfo, Kernel, Mechanism, Program, Running, linux};
use crate::arch::breakpoint::{self, Called, Entry};
use crate::arch::linux::Op;
use crate::arch::lock::SpinLock;
use crate::targets::{self, Target};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use trampoline::linux::kprobe::{BREAKPOINT, Breakpoint};
use trampoline::{Engine, ProbeKind};

/// What is on, by address. Changed under the lock of all hooks alone; nothing waits for this one.
static ARMED: SpinLock<BTreeMap<u64, Armed>> = SpinLock::new(BTreeMap::new());

/// A breakpoint and the hooks that share it, in the order they came.
struct Armed {
    breakpoint: Arc<Breakpoint<Kernel>>,
    /// It is at the entry of a function that may be made to return at once.
    overridable: bool,
    hooks: Vec<(HookId, Called)>,
}

/// A program at a breakpoint.
pub(super) struct Probe {
    id: HookId,
    place: Place,
    label: String,
    running: Arc<Running>,
    bytes: usize,
    stack_bytes: usize,
    /// Of a kretprobe: what returns that are under way lead to.
    at_return: Option<Arc<Op>>,
}

/// Says to the exception handler what is on.
fn publish() {
    let entry = |(at, armed): (&u64, &Armed)| Entry {
        at: *at,
        slot: armed.breakpoint.slot(),
        overridable: armed.overridable,
        programs: armed
            .hooks
            .iter()
            .map(|(_, called)| called.clone())
            .collect(),
    };
    let entries = ARMED.lock().iter().map(entry).collect();
    breakpoint::publish(entries);
}

impl Probe {
    /// Puts a program on an instruction, or on the return of the function whose entry that is, behind those that are there.
    pub(super) fn attach(
        engine: &mut Engine<Kernel>,
        id: HookId,
        place: Place,
        kind: ProbeKind,
        attachment: Attachment,
        program: Program,
    ) -> Result<Probe, HookError> {
        let at = place.address();
        let returns = kind == ProbeKind::Return;
        // On the path of hooks a push to the shadow stack could come in the middle of another one.
        if returns && engine.sites().get(at).is_none_or(|site| site.notrace) {
            return Err(HookError::Target {
                function: place.name(),
                why: "a kretprobe by BRK is at the entry of a function with a site; `functions` lists these".into(),
            });
        }
        let refused = |e: trampoline::AttachError| HookError::refused(&place.name(), e.reason);
        let label = program.label.clone();
        let (called, stack_bytes) = Called::new(program, attachment);
        let running = called.running().clone();
        let mut own = breakpoint::STACK;
        let (mut called, mut at_return) = (called, None);
        if returns {
            own = own.max(linux::return_stack());
            let (returning, op) = called.returning(at, linux::nodes(1));
            (called, at_return) = (returning, Some(op));
        }
        let stack_bytes = own.saturating_add(stack_bytes);
        let limit = trampoline::Platform::stack_limit(&Kernel);
        if stack_bytes > limit {
            let needed = stack_bytes;
            let reason = trampoline::Reason::Stack { needed, limit };
            return Err(HookError::refused(&place.name(), reason));
        }
        let there = ARMED.lock().get(&at).map(|armed| armed.breakpoint.clone());
        let breakpoint = match there {
            Some(breakpoint) => breakpoint,
            None => Arc::new(engine.breakpoint(&place.spot()).map_err(refused)?),
        };
        let first = {
            let mut armed = ARMED.lock();
            let armed = armed.entry(at).or_insert_with(|| Armed {
                breakpoint: breakpoint.clone(),
                overridable: place.offset == 0
                    && targets::is(place.function.name, Target::Overridable),
                hooks: Vec::new(),
            });
            armed.hooks.push((id, called));
            armed.hooks.len() == 1
        };
        publish();
        if first && let Err(error) = engine.arm(&breakpoint) {
            ARMED.lock().remove(&at);
            publish();
            return Err(refused(error));
        }
        Ok(Probe {
            id,
            place,
            label,
            running,
            bytes: breakpoint.bytes() as usize,
            stack_bytes: stack_bytes as usize,
            at_return,
        })
    }

    /// Returns that are under way run nothing from now on.
    fn retire_returns(&mut self) {
        if let Some(op) = self.at_return.take() {
            linux::retire(op, ());
        }
    }
}

impl Mechanism for Probe {
    fn info(&self) -> HookInfo {
        HookInfo {
            id: self.id,
            function: self.place.name(),
            kind: match self.at_return {
                Some(_) => "linux-kretprobe",
                None => "linux-kprobe",
            },
            program: self.label.clone(),
            engine: self.running.engine,
            sleepable: false,
            misses: self.running.state.misses(),
            bytes: self.bytes,
            stack_bytes: self.stack_bytes,
        }
    }

    fn covers(&self, function: u64) -> bool {
        self.place.function.address == function
    }

    fn without_site(&self) -> Option<u64> {
        Some(self.place.function.address)
    }

    fn changes(&self) -> Vec<Change> {
        let address = self.place.address();
        [Change {
            address,
            word: BREAKPOINT,
        }]
        .into()
    }

    fn hits(&self) -> Option<u64> {
        self.running.hits()
    }

    fn detach(&mut self, engine: &mut Engine<Kernel>) -> Result<(), HookError> {
        let at = self.place.address();
        let found = ARMED.lock().get(&at).map(|armed| {
            let others = armed.hooks.iter().any(|(id, _)| *id != self.id);
            (armed.breakpoint.clone(), others)
        });
        let Some((breakpoint, others)) = found else {
            return Err(HookError::NoSuchHook(self.id));
        };
        if others {
            if let Some(armed) = ARMED.lock().get_mut(&at) {
                armed.hooks.retain(|(id, _)| *id != self.id);
            }
            publish();
            self.retire_returns();
            return Ok(());
        }
        let disarmed = engine.disarm(&breakpoint);
        disarmed.map_err(|e| HookError::refused(&self.place.name(), e.reason))?;
        // No core is on its way from the BRK to the table any more.
        drop(breakpoint);
        let gone = ARMED.lock().remove(&at);
        publish();
        self.retire_returns();
        if let Some(breakpoint) = gone.and_then(|armed| Arc::into_inner(armed.breakpoint)) {
            engine.retire_breakpoint(breakpoint);
        }
        Ok(())
    }
}
