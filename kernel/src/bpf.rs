// SPDX-License-Identifier: MIT OR Apache-2.0
//! Joins BPF to this kernel: objects from the initrd, maps near the code, programs as hooks.
//!
//! An object is loaded when it is first asked for; its maps then live as long as it does, and all its programs share them.
//! A hook holds its program, and the program its maps, until the grace period after its trampoline was taken off.

mod attach;
mod freplace;
mod tail;

pub(crate) use attach::{attach, attach_at};
pub(crate) use freplace::{forget, freplace};
use tail::Whole;

use crate::arch::callee::{self, Hit, NativeHook, Shape};
use crate::arch::{barrier, breakpoint, cpu, irq, probe, switch, timer, unwind};
use crate::hook;
use crate::initrd::{self, InitrdError};
use crate::mm::near::NearMemory;
use crate::offered::{self, Offered};
use crate::sched::{self, Mutex};
use crate::task::Task;
use crate::{slow, symbols, trace};
use a64::inst::SysReg;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::attachment::Attachment;
use bpf_vm::helpers::Helper;
use bpf_vm::host::Symbol;
use bpf_vm::interp::{Interpreter, Region};
use bpf_vm::jit;
use bpf_vm::map::{Map, MapError, MapKind, MapMemory, MapRegion, TailTarget};
use bpf_vm::object::{AttachPoint, Object};
use bpf_vm::program::{UncheckedProgram, ValidatedProgram};
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use trampoline::registers::Words;

/// How a program is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Engine {
    /// Instruction by instruction, every memory access checked.
    Interpreter,
    /// Compiled to A64.
    Jit,
}

impl Engine {
    /// The word for tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Engine::Interpreter => "interpreter",
            Engine::Jit => "jit",
        }
    }
}

/// The most instructions that an interpreted program may run before it is ended.
const BUDGET: u64 = 1_000_000;

/// Why a program was not attached.
#[derive(Debug)]
pub(crate) enum BpfError {
    /// There are no objects at all.
    Initrd(InitrdError),
    /// No object has that name.
    NoObject {
        /// What was asked for.
        asked: String,
        /// What there is.
        there: Vec<String>,
    },
    /// The object has no such program, or several and none was named.
    NoProgram {
        /// The object.
        object: String,
        /// Its programs.
        there: Vec<String>,
    },
    /// The object could not be loaded, or its program is not sound, or not compiled: what the stage says.
    Refused {
        /// The object.
        object: String,
        /// The stage's message.
        why: String,
    },
    /// Its section does not go that way.
    WrongWay {
        /// The section.
        section: String,
        /// The way.
        way: hook::WayIn,
    },
    /// The hook engine refused.
    Hook(hook::HookError),
}

impl fmt::Display for BpfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BpfError::Initrd(e) => write!(f, "{e}"),
            BpfError::NoObject { asked, there } => {
                write!(
                    f,
                    "the initrd has no object {asked:?}; it has {}",
                    there.join(", ")
                )
            }
            BpfError::NoProgram { object, there } => {
                write!(
                    f,
                    "name one of object {object}'s programs, as {object}/NAME: {}",
                    there.join(", ")
                )
            }
            BpfError::Refused { object, why } => write!(f, "object {object}: {why}"),
            BpfError::WrongWay {
                section,
                way: hook::WayIn::Springboard,
            } => {
                write!(
                    f,
                    "section {section:?}: what can be attached is fentry, fexit, fmod_ret, fsession and freplace, the same with .s, \
                     kprobe, kretprobe, kprobe.multi and kretprobe.multi"
                )
            }
            BpfError::WrongWay { section, way } => {
                write!(
                    f,
                    "section {section:?} does not go with {}: linux takes fentry, fexit and fmod_ret, linux-list and linux-callops \
                     take fentry, the same with -regs and linux-fprobe take kprobe and kprobe.multi, linux-fprobe-exit takes \
                     kretprobe and kretprobe.multi, linux-kprobe takes kprobe and kretprobe",
                    way.name()
                )
            }
            BpfError::Hook(e) => write!(f, "{e}"),
        }
    }
}

/// What helpers ask of this kernel.
struct Host;

impl bpf_vm::host::Host for Host {
    fn ktime_ns(&self) -> u64 {
        timer::now_ns()
    }

    fn cpu(&self) -> u32 {
        cpu::index() as u32
    }

    fn cpus(&self) -> u32 {
        cpu::MAX_CPUS as u32
    }

    fn override_return(&self, context: u64, value: u64) -> bool {
        breakpoint::override_return(context, value)
    }

    fn mask_interrupts(&self) -> u64 {
        irq::disable().into_word()
    }

    fn restore_interrupts(&self, state: u64) {
        irq::restore(irq::State::from_word(state));
    }

    fn relax(&self) {
        // Not ISB: an emulated core would wait out its time slice, and a WFE might not be woken by a plain store.
        barrier::yield_hint();
    }

    fn current_pid_tgid(&self) -> u64 {
        let id = switch::current().id();
        id << 32 | id & 0xffff_ffff
    }

    fn current_task(&self) -> u64 {
        core::ptr::from_ref(switch::current()).addr() as u64
    }

    // Tasks are used again, and programs come by the address of the current one only.
    fn task_id(&self, task: u64) -> u64 {
        if task == self.current_task() {
            switch::current().id()
        } else {
            0
        }
    }

    fn current_comm(&self) -> [u8; 16] {
        switch::current().short_name()
    }

    fn probe_read(&self, into: &mut [u8], from: u64) -> usize {
        probe::read(into, from)
    }

    fn copy_from_slow(&self, into: &mut [u8], from: u64) -> usize {
        slow::read(into, from)
    }

    fn per_cpu(&self, variable: u64, cpu: u32) -> Option<u64> {
        cpu::copy_of(variable as usize, cpu as usize).map(|address| address as u64)
    }

    // A program's context is that of the hook that it runs in.
    fn stack_trace(&self, _: u64, skip: usize, into: &mut [u64]) -> usize {
        unwind::hook_trace(skip, into)
    }

    fn symbol(&self, address: u64) -> Option<Symbol<'_>> {
        let (symbol, offset) = symbols::blob()?.lookup(address)?;
        Some(Symbol {
            name: symbol.name,
            offset,
            size: symbol.size.into(),
        })
    }

    fn print(&self, text: fmt::Arguments<'_>) {
        trace::write(text);
    }
}

/// Map values within ADRP's reach of the pool.
pub(crate) struct Near;

impl MapMemory for Near {
    fn allocate(&self, bytes: usize) -> Option<Box<dyn MapRegion>> {
        Some(Box::new(NearMemory::new(bytes)?))
    }
}

/// A loaded object.
struct Loaded {
    name: String,
    /// Its programs as they were linked, for those that others become parts of.
    unchecked: Vec<UncheckedProgram>,
    /// Its types, if it has any.
    types: Option<Box<[u8]>>,
    maps: Vec<Arc<Map>>,
    programs: Vec<Arc<ValidatedProgram>>,
    /// Slots of program arrays that hold its programs from the start.
    filled: Vec<(Arc<Map>, u32)>,
}

static OBJECTS: Mutex<Vec<Arc<Loaded>>> = Mutex::empty();

/// Maps that have a value a task.
static OF_TASKS: Mutex<Vec<Arc<Map>>> = Mutex::empty();

/// How often a map is asked to give up a task's value while someone else changes it.
const PATIENCE: usize = 1000;

/// The current task is about to end: what maps keep of it is given up.
fn task_ends() {
    let task = switch::current();
    let (address, id) = (core::ptr::from_ref(task).addr() as u64, task.id());
    for map in OF_TASKS.lock().iter() {
        // It has a value or none, and someone may be changing the map.
        for _ in 0..PATIENCE {
            match map.task_ended(address, id) {
                Err(MapError::Busy) => sched::yield_now(),
                _ => break,
            }
        }
    }
}

/// Tells bpf-vm what its host is. Once, before any program runs.
pub(crate) fn init() {
    // A second call would change nothing.
    let _ = bpf_vm::host::register(&Host);
    OBJECTS.put(Box::new(Vec::new()));
    OF_TASKS.put(Box::new(Vec::new()));
    sched::at_end(task_ends);
    freplace::init();
    tail::init();
    offered::init();
}

/// An object's name: its file's, without folders and endings.
fn object_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".bpf.o")
        .or(file.strip_suffix(".o"))
        .unwrap_or(file)
}

/// Loads an object from bytes: all of it or nothing.
fn load(name: &str, bytes: &[u8]) -> Result<Loaded, BpfError> {
    let refused = |why: &dyn fmt::Display| BpfError::Refused {
        object: name.into(),
        why: why.to_string(),
    };
    let object = Object::parse(bytes).map_err(|e| refused(&e))?;
    let licence = object.license().map(ToString::to_string);
    let offered = Offered::new().map_err(|e| refused(&e))?;
    let object = object
        .instantiate_in(&offered, &Near)
        .map_err(|e| refused(&e))?;
    let unchecked = object.programs.clone();
    let programs = object
        .programs
        .into_iter()
        .map(|p| p.validate().map(Arc::new).map_err(|e| refused(&e)))
        .collect::<Result<Vec<_>, _>>()?;
    for program in &programs {
        program
            .check_calls(licence.as_deref())
            .map_err(|e| refused(&e))?;
    }
    let of_tasks = |map: &&Arc<Map>| map.definition().kind == MapKind::TASK_STORAGE;
    OF_TASKS
        .lock()
        .extend(object.maps.iter().filter(of_tasks).cloned());
    let mut loaded = Loaded {
        name: name.into(),
        unchecked,
        types: bpf_vm::object::types(bytes).map(Box::from),
        maps: object.maps,
        programs,
        filled: Vec::new(),
    };
    for slot in object.program_slots {
        if let (Some(map), Some(program)) =
            (loaded.maps.get(slot.map), loaded.programs.get(slot.program))
        {
            let (code, compiled) = compile(name, program)?;
            let target = TailTarget {
                program: program.clone(),
                entry: AtomicU64::new(code.address() + u64::from(compiled.tail_entry)),
                keep: Some(Arc::new(code)),
            };
            map.set_program(slot.slot, Some(Arc::new(target)))
                .map_err(|e| refused(&e))?;
            let target = tail::Target {
                program: program.clone(),
                stack_bytes: compiled.stack_bytes + called_stack(program),
            };
            tail::note(map, slot.slot, Some(target));
            loaded.filled.push((map.clone(), slot.slot));
        }
    }
    for program in &loaded.programs {
        tail::check(program).map_err(|e| refused(&e))?;
    }
    Ok(loaded)
}

impl Loaded {
    /// A program of it as it was linked.
    fn unchecked(&self, name: &str) -> Option<&UncheckedProgram> {
        self.unchecked.iter().find(|program| program.name == name)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // A program holds its program arrays, and these hold programs. No object that has hooks is ever dropped.
        for (map, slot) in self.filled.drain(..) {
            tail::note(&map, slot, None);
            // The slot was there when it was filled.
            let _ = map.set_program(slot, None);
        }
        let own = |map: &Arc<Map>| self.maps.iter().any(|own| Arc::ptr_eq(own, map));
        OF_TASKS.lock().retain(|map| !own(map));
    }
}

/// Words that an instruction is taken to need before it is compiled, and a program besides.
const GUESS: usize = 4;

/// Compiles a program into the pool; what is said of it is for where it lies.
fn compile(
    name: &str,
    program: &ValidatedProgram,
) -> Result<(hook::ProgramCode, jit::Code), BpfError> {
    let last = Cell::new(None);
    let at = |base| {
        let compiled = jit::compile(program, &target(base, 1)).map_err(|e| e.to_string())?;
        let words = compiled.words.clone();
        last.set(Some(compiled));
        Ok(words)
    };
    let guess = GUESS * program.instructions().len() + GUESS;
    let code = hook::place(name, guess, at).map_err(BpfError::Hook)?;
    // The last one is what lies there.
    let compiled = last.take().ok_or_else(|| BpfError::Refused {
        object: name.into(),
        why: "nothing was compiled".into(),
    })?;
    Ok((code, compiled))
}

/// The object of that name, loaded if it was not.
fn object(name: &str) -> Result<Arc<Loaded>, BpfError> {
    let mut objects = OBJECTS.lock();
    if let Some(found) = objects.iter().find(|o| o.name == name) {
        return Ok(found.clone());
    }
    let files = initrd::files().map_err(BpfError::Initrd)?;
    let Some(file) = files.iter().find(|f| object_name(f.name) == name) else {
        let there = files.iter().map(|f| object_name(f.name).into()).collect();
        return Err(BpfError::NoObject {
            asked: name.into(),
            there,
        });
    };
    let loaded = Arc::new(load(name, file.bytes)?);
    objects.push(loaded.clone());
    Ok(loaded)
}

/// Loads bytes that a test brings as an object, and forgets it; for bad input.
pub(crate) fn try_load(name: &str, bytes: &[u8]) -> Result<usize, BpfError> {
    load(name, bytes).map(|l| l.programs.len())
}

/// `OBJECT` with one program, or `OBJECT/PROGRAM`.
fn program(spec: &str) -> Result<(Arc<Loaded>, Arc<ValidatedProgram>), BpfError> {
    let (name, wanted) = match spec.split_once('/') {
        Some((name, program)) => (name, Some(program)),
        None => (spec, None),
    };
    let object = object(name)?;
    let program = match wanted {
        Some(wanted) => object.programs.iter().find(|p| p.name() == wanted),
        None if object.programs.len() == 1 => object.programs.first(),
        None => None,
    };
    match program.cloned() {
        Some(program) => Ok((object, program)),
        None => {
            let there = object.programs.iter().map(|p| p.name().into()).collect();
            Err(BpfError::NoProgram {
                object: name.into(),
                there,
            })
        }
    }
}

/// The section of a program, which says how it attaches.
pub(crate) fn section(spec: &str) -> Result<String, BpfError> {
    let (_, program) = program(spec)?;
    Ok(program.section().into())
}

/// The function or pattern that a program's section names, if it names one.
pub(crate) fn named_target(spec: &str) -> Result<Option<String>, BpfError> {
    let section = section(spec)?;
    let point = AttachPoint::parse(&section).ok();
    Ok(point.and_then(|point| point.target.map(String::from)))
}

/// A program run by the interpreter.
struct Interpreted {
    interpreter: Interpreter,
    faults: AtomicU64,
}

impl NativeHook for Interpreted {
    fn hit(&self, hit: &Hit<'_>) -> u64 {
        let words = hit.words();
        let context = Region::constant(words);
        let session = hit.session().map(|(_, word)| core::slice::from_ref(word));
        let regions = [context, session.map_or(context, Region::words)];
        match self.interpreter.run_for(
            hit.attachment(),
            &[words.as_ptr().expose_provenance() as u64],
            &regions,
            BUDGET,
        ) {
            Ok(outcome) => outcome.r0,
            Err(fault) => {
                self.faults.fetch_add(1, Ordering::Relaxed);
                trace::write(format_args!("a program was ended: {fault}"));
                0
            }
        }
    }
}

/// A program, ready to be hooked in where it gets a context of this shape.
pub(crate) fn runnable(
    spec: &str,
    program: Arc<ValidatedProgram>,
    engine: Engine,
    shape: Shape,
) -> Result<hook::Program, BpfError> {
    Ok(match engine {
        Engine::Interpreter => {
            let hook = Arc::new(Interpreted {
                interpreter: Interpreter::new(program),
                faults: AtomicU64::new(0),
            });
            hook::Program::new(spec.into(), engine.name(), move |attachment| {
                callee::callee(hook, attachment, shape)
            })
        }
        Engine::Jit => {
            let (code, made) = compile(spec, &program)?;
            let whole = Whole::of(&program);
            let original_stack = match whole.programs().any(offered::asks_for_original) {
                true => whole.stack_bytes(made.stack_bytes + offered::original_stack()),
                false => 0,
            };
            let reads = whole.context_words().map_or(Words::ALL, Words::of);
            let stack_bytes = whole.stack_bytes(made.stack_bytes + called_stack(&program));
            let make = move |attachment: Attachment| {
                let compiled = Arc::new(Compiled {
                    attachment,
                    code,
                    program,
                });
                let asks = compiled.program.needs_attachment();
                callee::Callee {
                    address: compiled.code.address(),
                    data: asks.then(|| compiled.attachment.address()),
                    stack_bytes,
                    original_stack,
                    keep: compiled,
                }
            };
            hook::Program::new(spec.into(), engine.name(), make).reading(reads)
        }
    })
}

/// What programs are compiled for here, with `arguments` arguments, to run at `base`.
///
/// In place of calls: SP_EL0 is the current task on whatever core it runs; TPIDR_EL1 leads to the core's block, which is
/// never freed; whoever attaches a program that reads per-CPU values has it run where it is not moved: a task that is
/// preempted in the pool goes on on the same core.
pub(crate) fn target(base: u64, arguments: usize) -> jit::Target<'static> {
    jit::Target {
        features: jit::Features {
            lse: cpu::has_lse(),
        },
        arguments,
        in_place: jit::InPlace {
            task: Some(SysReg::SP_EL0),
            task_number: Some(jit::Number {
                register: SysReg::SP_EL0,
                offset: Task::ID_OFFSET,
            }),
            cpu: Some(jit::Number {
                register: SysReg::TPIDR_EL1,
                offset: cpu::INDEX_OFFSET,
            }),
            clock: Some(jit::Clock {
                counter: SysReg::CNTVCT_EL0,
                scale: timer::scale(),
            }),
        },
        erratum_835769: cpu::has_erratum_835769(),
        ..jit::Target::new(base)
    }
}

/// The deepest stack of the helpers and kernel functions that a program calls, in bytes: what the audit found. One that calls by
/// register may call any.
fn called_stack(program: &ValidatedProgram) -> u32 {
    let of = |helper: &Helper| helper.function.address().and_then(symbols::stack_of);
    program.callable().filter_map(of).max().unwrap_or(0)
}

/// A compiled program: its code, what the code is told of its place, and the program that holds the maps that the code names.
struct Compiled {
    /// Its address is in the trampoline.
    attachment: Attachment,
    code: hook::ProgramCode,
    program: Arc<ValidatedProgram>,
}

/// A loaded program, for a list.
pub(crate) struct ProgramInfo {
    /// Its object.
    pub object: String,
    /// Its name.
    pub name: String,
    /// Its section.
    pub section: String,
    /// How many instructions it has.
    pub insns: usize,
}

/// What the initrd's objects hold; an object that can't be loaded is an error in its place.
pub(crate) fn programs() -> Vec<Result<ProgramInfo, BpfError>> {
    let files = match initrd::files() {
        Ok(files) => files,
        Err(e) => return alloc::vec![Err(BpfError::Initrd(e))],
    };
    let mut list = Vec::new();
    for file in files {
        match object(object_name(file.name)) {
            Ok(loaded) => list.extend(loaded.programs.iter().map(|p| {
                Ok(ProgramInfo {
                    object: loaded.name.clone(),
                    name: p.name().into(),
                    section: p.section().into(),
                    insns: p.instructions().len(),
                })
            })),
            Err(e) => list.push(Err(e)),
        }
    }
    list
}

/// The maps of the loaded objects: `OBJECT.MAP` and the map.
pub(crate) fn maps() -> Vec<(String, Arc<Map>)> {
    let objects = OBJECTS.lock();
    let named = |o: &Arc<Loaded>| {
        let name = o.name.clone();
        o.maps
            .iter()
            .map(move |m| (format!("{name}.{}", m.definition().name), m.clone()))
            .collect::<Vec<_>>()
    };
    objects.iter().flat_map(named).collect()
}

/// A map by `OBJECT.MAP`, loading the object if it was not.
pub(crate) fn map(name: &str) -> Option<Arc<Map>> {
    let (object_name, _) = name.split_once('.')?;
    let _ = object(object_name).ok()?;
    maps().into_iter().find(|(n, _)| n == name).map(|(_, m)| m)
}
