// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a program may become by tail calls: the programs in the program arrays that it refers to, and in theirs.
//!
//! A tail call hands over the context, so all of them must be hooked in the same way; and what is asked of a program when it is attached (what it
//! reads, calls and needs of the stack) is asked of all of them.

use crate::sched::Mutex;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::map::{Map, MapKind};
use bpf_vm::object::AttachPoint;
use bpf_vm::program::ValidatedProgram;

/// A slot of a program array, and what is in it.
struct Slot {
    array: u64,
    index: u32,
    target: Target,
}

/// What a program may become.
#[derive(Clone)]
pub(super) struct Target {
    /// The program.
    pub program: Arc<ValidatedProgram>,
    /// The deepest stack of its compiled code, with what it calls, in bytes.
    pub stack_bytes: u32,
}

/// All slots that are filled.
static SLOTS: Mutex<Vec<Slot>> = Mutex::empty();

/// Once, before any object is loaded.
pub(super) fn init() {
    SLOTS.put(Box::new(Vec::new()));
}

/// A slot holds this program from now on, or none.
pub(super) fn note(array: &Arc<Map>, index: u32, target: Option<Target>) {
    let array = array.handle();
    let mut slots = SLOTS.lock();
    slots.retain(|slot| (slot.array, slot.index) != (array, index));
    slots.extend(target.map(|target| Slot {
        array,
        index,
        target,
    }));
}

fn is_array(map: &Arc<Map>) -> bool {
    map.definition().kind == MapKind::PROG_ARRAY
}

/// All that a program may become, itself not counted if it cannot become itself.
fn targets(program: &ValidatedProgram) -> Vec<Target> {
    let mut all: Vec<Target> = Vec::new();
    if !program.maps().iter().any(is_array) {
        return all;
    }
    let slots = SLOTS.lock();
    let add = |from: &ValidatedProgram, all: &mut Vec<Target>| {
        let refers = |slot: &&Slot| from.maps().iter().any(|map| map.handle() == slot.array);
        for Slot { target, .. } in slots.iter().filter(refers) {
            let known = |other: &Target| Arc::ptr_eq(&other.program, &target.program);
            if !all.iter().any(known) {
                all.push(target.clone());
            }
        }
    };
    add(program, &mut all);
    let mut next = 0;
    while let Some(from) = all.get(next).map(|target| target.program.clone()) {
        next += 1;
        add(&from, &mut all);
    }
    all
}

/// A program with all that it may become.
pub(super) struct Whole<'p> {
    program: &'p ValidatedProgram,
    targets: Vec<Target>,
}

impl<'p> Whole<'p> {
    /// As program arrays are filled now.
    pub(super) fn of(program: &'p ValidatedProgram) -> Whole<'p> {
        Whole {
            program,
            targets: targets(program),
        }
    }

    /// All of them.
    pub(super) fn programs(&self) -> impl Iterator<Item = &ValidatedProgram> {
        let others = self.targets.iter().map(|target| &*target.program);
        others.chain([self.program])
    }

    /// The words of the context that any of them may read, a bit each; `None`: any word.
    pub(super) fn context_words(&self) -> Option<u64> {
        let words = self.programs().map(ValidatedProgram::context_words);
        words.reduce(|a, b| Some(a? | b?)).flatten()
    }

    /// The deepest stack of any of them, if the program itself takes `own` bytes.
    pub(super) fn stack_bytes(&self, own: u32) -> u32 {
        let stacks = self.targets.iter().map(|target| target.stack_bytes);
        stacks.fold(own, u32::max)
    }
}

/// Whether all that a program may become gets the same context, and may block where it may.
///
/// # Errors
/// Which one does not.
pub(super) fn check(program: &ValidatedProgram) -> Result<(), String> {
    let way = |program: &ValidatedProgram| {
        let point = AttachPoint::parse(program.section()).ok();
        point.map(|point| (point.kind, point.sleepable))
    };
    let own = way(program);
    let targets = targets(program);
    let mut others = targets.iter().map(|target| &target.program);
    match others.find(|other| way(other) != own) {
        None => Ok(()),
        Some(other) => Err(format!(
            "{} (section {:?}) may become {} (section {:?}) by a tail call, which would find another context than it expects; put \
             both in sections of the same kind",
            program.name(),
            program.section(),
            other.name(),
            other.section()
        )),
    }
}
