// SPDX-License-Identifier: MIT OR Apache-2.0
//! Joins BPF to this kernel: objects from the initrd, maps near the code, programs as hooks.
//!
//! An object is loaded when it is first asked for; its maps then live as long as it does, and all its programs share them.
//! A hook holds its program, and the program its maps, until the grace period after its trampoline was taken off.

mod freplace;

pub(crate) use freplace::{forget, freplace};

use crate::arch::callee::{self, Hit, NativeHook, Shape};
use crate::arch::{barrier, cpu, irq, probe, switch, timer, unwind};
use crate::hook::linux::Way;
use crate::hook::{self, Function, HookId, Place, Point, ProbeWay};
use crate::initrd::{self, InitrdError};
use crate::mm::near::NearMemory;
use crate::offered::{self, Offered};
use crate::sched::Mutex;
use crate::targets::{self, Target};
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
use bpf_vm::map::{Map, MapMemory, MapRegion, TailTarget};
use bpf_vm::object::{AttachKind, AttachPoint, Object};
use bpf_vm::program::{UncheckedProgram, ValidatedProgram};
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use freplace::Placed;
use trampoline::registers::Words;
use trampoline::{Kind, ProbeKind};

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
    /// The program is made for a way in that is not there.
    WrongKind {
        /// Its section.
        section: String,
    },
    /// The program is made for another way in than it was to be attached by.
    WrongWay {
        /// Its section.
        section: String,
        /// The way.
        way: &'static str,
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
            BpfError::WrongKind { section } => {
                write!(
                    f,
                    "section {section:?}: what can be attached to a function so far is fentry, fexit, fmod_ret, fsession and freplace, \
                     and the same with .s; at any instruction kprobe, at returns kretprobe; by a pattern kprobe.multi and kretprobe.multi"
                )
            }
            BpfError::WrongWay { section, way } => {
                write!(
                    f,
                    "section {section:?} does not go with {way}: linux takes fentry, fexit and fmod_ret, linux-list and linux-callops \
                     take fentry, the same with -regs and linux-fprobe take kprobe and kprobe.multi, linux-fprobe-exit takes \
                     kretprobe and kretprobe.multi"
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
struct Near;

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

/// Tells bpf-vm what its host is. Once, before any program runs.
pub(crate) fn init() {
    // A second call would change nothing.
    let _ = bpf_vm::host::register(&Host);
    OBJECTS.put(Box::new(Vec::new()));
    freplace::init();
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
            loaded.filled.push((map.clone(), slot.slot));
        }
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
            // The slot was there when it was filled.
            let _ = map.set_program(slot, None);
        }
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

/// Hooks a program onto a function as its section says; `protection` and `cookie` are the caller's choice.
pub(crate) fn attach(spec: &str, function: &Function, engine: Engine) -> Result<HookId, BpfError> {
    attach_at(spec, function, engine, |point| point)
}

/// As [`attach`]; `change` may change how.
pub(crate) fn attach_at(
    spec: &str,
    function: &Function,
    engine: Engine,
    change: impl FnOnce(Point) -> Point,
) -> Result<HookId, BpfError> {
    let (object, program) = program(spec)?;
    let wrong = || BpfError::WrongKind {
        section: program.section().into(),
    };
    let point = AttachPoint::parse(program.section()).map_err(|_| wrong())?;
    let kind = match point.kind {
        AttachKind::Fentry => Kind::Fentry,
        AttachKind::Fexit => Kind::Fexit,
        AttachKind::FmodRet => Kind::FmodRet,
        AttachKind::Fsession => Kind::Fsession,
        AttachKind::Freplace => Kind::Freplace,
        AttachKind::Kprobe | AttachKind::Kretprobe => {
            let place = Place::of(function.address, 0).ok_or_else(wrong)?;
            return attach_probe(spec, &place, engine, ProbeWay::Detour, change);
        }
        _ => return Err(wrong()),
    };
    let point = change(Point {
        sleepable: point.sleepable,
        ..Point::of(kind)
    });
    let kind = point.kind;
    allowed(spec, function, &program, &point)?;
    let name = program.name().into();
    let program = runnable(spec, program, engine, Shape::of(kind))?;
    let id = hook::attach(function, point, program).map_err(BpfError::Hook)?;
    freplace::note(Placed {
        id,
        spec: spec.into(),
        object,
        name,
        engine,
        point,
        function: *function,
        replaced: Vec::new(),
    });
    Ok(id)
}

/// Whether a program may call what it calls, attached so.
fn allowed(
    spec: &str,
    function: &Function,
    program: &ValidatedProgram,
    point: &Point,
) -> Result<(), BpfError> {
    if point.kind != Kind::Fsession && offered::asks_for_session(program) {
        return Err(BpfError::Refused {
            object: spec.into(),
            why: "the program calls bpf_session_*, which only programs in fsession/... may".into(),
        });
    }
    match offered::asks_for_original(program) {
        true => original_allowed(spec, function, point),
        false => Ok(()),
    }
}

/// Whether a program that calls the original may be attached so: it has to stand in for it, and to block if that does.
fn original_allowed(spec: &str, function: &Function, point: &Point) -> Result<(), BpfError> {
    let why = if point.kind != Kind::Freplace {
        "the program calls springboard_call_original, which only programs in freplace/... may"
            .into()
    } else if !point.sleepable && targets::is(function.name, Target::Sleepable) {
        format!(
            "the program calls the original, {} may block, and a program may block only in freplace.s/...",
            function.name
        )
    } else {
        return Ok(());
    };
    let object = spec.into();
    Err(BpfError::Refused { object, why })
}

/// Hooks a program onto functions the Linux way, as its section says; `change` may change how.
pub(crate) fn attach_linux(
    spec: &str,
    functions: &[Function],
    engine: Engine,
    way: Way,
    change: impl FnOnce(Point) -> Point,
) -> Result<HookId, BpfError> {
    let (_, program) = program(spec)?;
    let wrong = || BpfError::WrongWay {
        section: program.section().into(),
        way: way.name(),
    };
    let point = AttachPoint::parse(program.section()).map_err(|_| wrong())?;
    let registers = matches!(point.kind, AttachKind::Kprobe | AttachKind::KprobeMulti);
    let returns = matches!(
        point.kind,
        AttachKind::Kretprobe | AttachKind::KretprobeMulti
    );
    let kind = match (way, point.kind) {
        (Way::Trampoline, AttachKind::Fexit) => Kind::Fexit,
        (Way::Trampoline, AttachKind::FmodRet) => Kind::FmodRet,
        (
            Way::Trampoline | Way::List { all: false } | Way::CallOps { all: false },
            AttachKind::Fentry,
        ) => Kind::Fentry,
        (Way::List { all: true } | Way::CallOps { all: true } | Way::Fprobe, _) if registers => {
            Kind::Fentry
        }
        (Way::FprobeExit, _) if returns => Kind::Fexit,
        _ => return Err(wrong()),
    };
    let point = change(Point {
        sleepable: point.sleepable,
        ..Point::of(kind)
    });
    let program = runnable(spec, program, engine, way.shape(kind))?;
    hook::linux::attach(functions, way, point, program).map_err(BpfError::Hook)
}

/// Whether the program of that name is attached by a pattern, by what its section says.
pub(crate) fn is_multi(spec: &str) -> Result<bool, BpfError> {
    let (_, program) = program(spec)?;
    Ok(multi_point(&program).is_some())
}

/// Whether a program of many functions runs at their exits, and the pattern of its section; `None`: it is no such program.
fn multi_point(program: &ValidatedProgram) -> Option<(bool, Option<&str>)> {
    let point = AttachPoint::parse(program.section()).ok()?;
    match point.kind {
        AttachKind::KprobeMulti => Some((false, point.target)),
        AttachKind::KretprobeMulti => Some((true, point.target)),
        _ => None,
    }
}

/// Puts a program on all functions that fit `pattern`, or its section's; `cookie` says what it is told on each.
pub(crate) fn attach_multi(
    spec: &str,
    pattern: Option<&str>,
    engine: Engine,
    protection: hook::Protection,
    cookie: impl Fn(u64) -> u64,
) -> Result<hook::AttachedMany, BpfError> {
    let (_, program) = program(spec)?;
    let wrong = || BpfError::WrongKind {
        section: program.section().into(),
    };
    let (_, own) = multi_point(&program).ok_or_else(wrong)?;
    let pattern = pattern.or(own).ok_or_else(wrong)?;
    let selection = hook::select(pattern).map_err(BpfError::Hook)?;
    attach_selection(spec, selection, engine, protection, cookie)
}

/// As [`attach_multi`], on the functions of a selection.
pub(crate) fn attach_selection(
    spec: &str,
    selection: hook::Selection,
    engine: Engine,
    protection: hook::Protection,
    cookie: impl Fn(u64) -> u64,
) -> Result<hook::AttachedMany, BpfError> {
    let (_, program) = program(spec)?;
    let (exit, _) = multi_point(&program).ok_or_else(|| BpfError::WrongKind {
        section: program.section().into(),
    })?;
    let many = hook::Many {
        exit,
        protection,
        reads: match engine {
            Engine::Jit => program.context_words().map_or(Words::ALL, Words::of),
            Engine::Interpreter => Words::ALL, // its region is the whole context
        },
    };
    let program = runnable(spec, program, engine, Shape::Many)?;
    hook::attach_multi(selection, many, cookie, program).map_err(BpfError::Hook)
}

/// How a program in a section `kprobe` or `kretprobe` is called; `None` for those of other sections.
pub(crate) fn probe_kind(section: &str) -> Option<ProbeKind> {
    match AttachPoint::parse(section).ok()?.kind {
        AttachKind::Kprobe => Some(ProbeKind::Here),
        AttachKind::Kretprobe => Some(ProbeKind::Return),
        _ => None,
    }
}

/// Hooks a program of a section `kprobe` or `kretprobe` onto an instruction; `change` may change its protection and cookie.
pub(crate) fn attach_probe(
    spec: &str,
    place: &Place,
    engine: Engine,
    way: ProbeWay,
    change: impl FnOnce(Point) -> Point,
) -> Result<HookId, BpfError> {
    let (_, program) = program(spec)?;
    let kind = probe_kind(program.section()).ok_or_else(|| BpfError::WrongKind {
        section: program.section().into(),
    })?;
    if offered::asks_for_session(&program) {
        return Err(BpfError::Refused {
            object: spec.into(),
            why: "the program calls bpf_session_*, which only programs in fsession/... may".into(),
        });
    }
    let point = change(Point::of(Kind::Fentry));
    let program = runnable(spec, program, engine, Shape::Registers)?;
    hook::attach_probe(place, kind, way, point, program).map_err(BpfError::Hook)
}

/// A program, ready to be hooked in where it gets a context of this shape.
fn runnable(
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
                    stack_bytes: made.stack_bytes + called_stack(&compiled.program),
                    keep: compiled,
                }
            };
            hook::Program::new(spec.into(), engine.name(), make)
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
