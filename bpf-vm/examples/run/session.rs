// SPDX-License-Identifier: MIT OR Apache-2.0
//! One program of an object on a PC: chosen, given memory, run, and what it left.
use std::{
    fmt,
    fmt::Write as _,
    fs,
    io::Read as _,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bpf_vm::{
    btf::Btf,
    host::{self, Host},
    interp::{FaultKind, Interpreter},
    map::{HeapMemory, Map, MapKind, TailTarget},
    object::{Environment, LINUX_VERSION, LoadedObject, Object, ObjectError},
    program::ValidatedProgram,
};

use super::memory::Memory;

/// Instructions after which a program is taken to have no end.
const BUDGET: u64 = 1 << 28;
/// Bytes of a file that are read at most: far more than the longest program with its types takes, and a device has no end.
const MOST_FILE: u64 = 64 << 20;
/// Bytes that an object's maps may take together.
const MAP_MEMORY: usize = 1 << 30;
/// Elements of a map that are looked at, and lines that are printed of it.
const MOST_ELEMENTS: usize = 1 << 16;
const MOST_LINES: usize = 64;
/// Bytes that are kept of what a program prints.
const MOST_TEXT: usize = 1 << 20;
/// The first address that could belong to anything.
const PAGE: u64 = 4096;

/// All bytes of an object or of a kernel's types.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|open| open.take(MOST_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    match bytes.len() as u64 > MOST_FILE {
        false => Ok(bytes),
        true => Err(format!(
            "{} has more than {MOST_FILE} bytes, the limit for an object; is it one?",
            file.display()
        )),
    }
}

/// The host of programs on a PC. Everything it says is the same in every run, so that runs can be compared: one core, one
/// task, and a clock that goes on by a microsecond each time it is asked.
struct Pc {
    clock: AtomicU64,
    printed: Mutex<String>,
}

/// What the clock says first, in nanoseconds, and by how much it goes on.
const START: u64 = 1_000_000_000;
const TICK: u64 = 1_000;

static PC: Pc = Pc {
    clock: AtomicU64::new(START),
    printed: Mutex::new(String::new()),
};

impl Pc {
    /// Begins anew; what was printed until then.
    fn reset(&self) -> String {
        self.clock.store(START, Relaxed);
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *printed)
    }
}

impl Host for Pc {
    fn ktime_ns(&self) -> u64 {
        self.clock.fetch_add(TICK, Relaxed)
    }

    fn cpu(&self) -> u32 {
        0
    }

    fn current_pid_tgid(&self) -> u64 {
        1 << 32 | 1
    }

    fn current_comm(&self) -> [u8; 16] {
        *b"springboard\0\0\0\0\0"
    }

    fn print(&self, text: fmt::Arguments<'_>) {
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        if printed.len() < MOST_TEXT {
            // Writing to a string cannot fail.
            let _ = printed.write_fmt(text);
            if !printed.ends_with('\n') {
                printed.push('\n');
            }
        }
    }
}

/// A setting of the kernel's configuration: its name, and its value as a `.config` file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// Reads `NAME=VALUE`.
///
/// # Errors
/// There is no name, or no value.
pub(crate) fn setting(text: &str) -> Result<Setting, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok(Setting {
            name: name.into(),
            value: value.into(),
        }),
        _ => Err(format!(
            "{text:?} is no NAME=VALUE; for example CONFIG_SMP=y, CONFIG_HZ=100, CONFIG_NAME=\"text\" with the quotes"
        )),
    }
}

/// What objects find of a kernel: its types, if they were given, and the settings that were.
#[derive(Debug)]
pub(crate) struct Kernel<'a> {
    btf: Option<Btf<'a>>,
    settings: &'a [Setting],
}

impl<'a> Kernel<'a> {
    /// The kernel with that BTF section and those settings.
    ///
    /// # Errors
    /// The section is none.
    pub(crate) fn new(btf: Option<&'a [u8]>, settings: &'a [Setting]) -> Result<Self, String> {
        let btf = btf.map(Btf::parse).transpose();
        let btf = btf.map_err(|error| format!("the kernel's types: {error}"))?;
        Ok(Self { btf, settings })
    }
}

impl Environment for Kernel<'_> {
    fn btf(&self) -> Option<&Btf<'_>> {
        self.btf.as_ref()
    }

    fn kconfig(&self, name: &str) -> Option<String> {
        // As with a compiler's options, the last one counts.
        let given = self.settings.iter().rfind(|given| given.name == name);
        match given {
            Some(given) => Some(given.value.clone()),
            None => (name == "LINUX_KERNEL_VERSION").then(|| LINUX_VERSION.to_string()),
        }
    }
}

/// The index of the program of that name or section, of the only one without a name.
///
/// # Errors
/// There is none, or there are several; the message lists what there is.
pub(crate) fn choose(object: &Object, wanted: Option<&str>) -> Result<usize, String> {
    let all: Vec<_> = object.programs().collect();
    let list = || {
        let lines = all
            .iter()
            .map(|(name, section)| format!("\n    {name}  ({section})"));
        lines.collect::<String>()
    };
    let Some(wanted) = wanted else {
        return match all.len() {
            1 => Ok(0),
            count => Err(format!(
                "the object has {count} programs; choose one by --program:{}",
                list()
            )),
        };
    };
    if let Some(index) = all.iter().position(|(name, _)| *name == wanted) {
        return Ok(index);
    }
    let mut in_section = (0..)
        .zip(&all)
        .filter(|(_, (_, section))| *section == wanted);
    match (in_section.next(), in_section.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some(_), Some(_)) => Err(format!(
            "several programs are in section {wanted:?}; choose one by its name:{}",
            list()
        )),
        (None, _) => Err(format!(
            "no program and no section is called {wanted:?}; there are:{}",
            list()
        )),
    }
}

/// An object with its maps, created anew, and the program of that index, validated.
///
/// # Errors
/// The maps cannot be created, or the program's structure is not sound.
pub(crate) fn load(
    object: &Object,
    kernel: &Kernel<'_>,
    index: usize,
) -> Result<(LoadedObject, Arc<ValidatedProgram>), String> {
    // Maps learn here how many cores there are.
    let _ = host::register(&PC);
    let loaded = object.instantiate_in(kernel, &HeapMemory::with_limit(MAP_MEMORY));
    let loaded = loaded.map_err(|error| match (&error, &kernel.btf) {
        (ObjectError::CoreRelocation { .. }, None) => {
            format!("{error} (--btf FILE names one that has it)")
        }
        (ObjectError::Kconfig { variable, .. }, _) => {
            format!("{error} (--kconfig {variable}=VALUE gives it here)")
        }
        _ => error.to_string(),
    })?;
    let program = loaded.programs.get(index).cloned();
    let program = program.ok_or("there is no such program")?.validate();
    Ok((
        loaded,
        Arc::new(program.map_err(|error| error.to_string())?),
    ))
}

/// How compiled code is made and run.
#[derive(Clone, Copy)]
pub(crate) struct Compiler {
    /// Runs a program with r1 and r2; its r0.
    pub(crate) run: fn(&ValidatedProgram, [u64; 2]) -> Result<u64, String>,
    /// Compiles a program to stay; the address by which a tail call enters it.
    pub(crate) tail_entry: fn(&ValidatedProgram) -> Result<u64, String>,
}

/// What a run left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    r0: u64,
    /// Executed, by the interpreter; compiled code counts none, and its report is one that was compared.
    instructions: Option<u64>,
    printed: String,
    /// A line for each variable, element and record that is not as it was.
    changes: Vec<String>,
    memory: Vec<u8>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "r0            {:#x} ({})",
            self.r0,
            self.r0.cast_signed()
        )?;
        match self.instructions {
            Some(instructions) => writeln!(f, "instructions  {instructions}")?,
            None => writeln!(f, "compiled      leaves the same as interpreted")?,
        }
        for line in self.printed.lines() {
            writeln!(f, "printed       {line}")?;
        }
        for line in &self.changes {
            writeln!(f, "{line}")?;
        }
        if !self.memory.is_empty() {
            writeln!(f, "memory        {}", bytes(&self.memory))?;
        }
        Ok(())
    }
}

impl Report {
    /// Whether another engine's run left the same.
    ///
    /// # Errors
    /// In what they differ.
    pub(crate) fn compare(&self, interpreted: &Self) -> Result<(), String> {
        let differs = |what: &str, this: String, other: String| {
            Err(format!(
                "the engines differ in {what}: compiled {this}, interpreted {other}"
            ))
        };
        if self.r0 != interpreted.r0 {
            return differs(
                "r0",
                format!("{:#x}", self.r0),
                format!("{:#x}", interpreted.r0),
            );
        }
        if self.memory != interpreted.memory {
            return differs("memory", bytes(&self.memory), bytes(&interpreted.memory));
        }
        if self.printed != interpreted.printed {
            let (this, other) = (&self.printed, &interpreted.printed);
            return differs("what is printed", format!("{this:?}"), format!("{other:?}"));
        }
        if self.changes != interpreted.changes {
            let (this, other) = (self.changes.join("; "), interpreted.changes.join("; "));
            return differs("what is stored", this, other);
        }
        Ok(())
    }
}

/// Runs the program of that index by the interpreter, and then as compiled code if it is said how; what the last one
/// left.
///
/// # Errors
/// The program does not load; an access or a helper's argument is refused; it does not end; the engines differ.
pub(crate) fn run(
    object: &Object,
    kernel: &Kernel<'_>,
    index: usize,
    given: &[u8],
    compiler: Option<Compiler>,
) -> Result<Report, String> {
    // The same address for both.
    let memory = Memory::new(given);
    let load = || load(object, kernel, index);
    let interpreted = run_once(object, load()?, &memory, None, |program| {
        let outcome =
            Interpreter::new(program.clone()).run(&memory.arguments(), &[memory.region()], BUDGET);
        let outcome = outcome.map_err(|fault| {
            let hint = match fault.kind {
                FaultKind::Memory { address, .. } if address < PAGE && given.is_empty() => {
                    "; --memory HEX gives r1 something to point to"
                }
                _ => "",
            };
            format!("program `{}`: {fault}{hint}", program.name())
        })?;
        Ok((outcome.r0, Some(outcome.instructions)))
    })?;
    let Some(compiler) = compiler else {
        return Ok(interpreted);
    };
    memory.set(given);
    let report = run_once(object, load()?, &memory, Some(compiler), |program| {
        Ok(((compiler.run)(program, memory.arguments())?, None))
    })?;
    report.compare(&interpreted)?;
    Ok(report)
}

/// Puts programs where the object says that tail calls find them.
fn fill_program_arrays(loaded: &LoadedObject, compiler: Option<Compiler>) -> Result<(), String> {
    for place in &loaded.program_slots {
        let program = loaded.programs.get(place.program).cloned();
        let program = program.ok_or("there is no such program")?.validate();
        let program = program.map_err(|error| error.to_string())?;
        let entry = match compiler {
            Some(compiler) => (compiler.tail_entry)(&program)?,
            None => 0,
        };
        let target = TailTarget {
            program: Arc::new(program),
            entry: AtomicU64::new(entry),
            keep: None,
        };
        let map = loaded.maps.get(place.map).ok_or("there is no such map")?;
        map.set_program(place.slot, Some(Arc::new(target)))
            .map_err(|error| format!("map `{}`: {error}", map.definition().name))?;
    }
    Ok(())
}

fn run_once(
    object: &Object,
    (loaded, program): (LoadedObject, Arc<ValidatedProgram>),
    memory: &Memory,
    compiler: Option<Compiler>,
    engine: impl FnOnce(&Arc<ValidatedProgram>) -> Result<(u64, Option<u64>), String>,
) -> Result<Report, String> {
    fill_program_arrays(&loaded, compiler)?;
    let before = contents(object, &loaded);
    PC.reset();
    let result = engine(&program);
    let printed = PC.reset();
    let (r0, instructions) = result.map_err(|error| match printed.is_empty() {
        true => error,
        false => format!("{error}\nbefore that it printed:\n{}", printed.trim_end()),
    })?;
    let mut changes = differences(&before, &contents(object, &loaded));
    for map in &loaded.maps {
        changes.extend(taken_out(map));
    }
    Ok(Report {
        r0,
        instructions,
        printed,
        changes,
        memory: memory.bytes(),
    })
}

fn bytes(bytes: &[u8]) -> String {
    let text: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.join(" ")
}

/// A value as a number if it has a number's size, else as bytes.
fn value(value: &[u8]) -> String {
    let mut word = [0; 8];
    match value.len() {
        1 | 2 | 4 | 8 => {
            word.iter_mut()
                .zip(value)
                .for_each(|(to, from)| *to = *from);
            let number = u64::from_le_bytes(word);
            match number {
                0..10 => number.to_string(),
                _ => format!("{number} ({number:#x})"),
            }
        }
        _ => bytes(value),
    }
}

/// What lies where: (name, key) -> value. Elements of arrays that hold only zeros are left out.
type Contents = Vec<((String, Vec<u8>), Vec<u8>)>;

fn contents(object: &Object, loaded: &LoadedObject) -> Contents {
    let mut all = Contents::new();
    for (index, map) in loaded.maps.iter().enumerate() {
        let mut variables = object
            .variables()
            .iter()
            .filter(|v| v.map == index)
            .peekable();
        if variables.peek().is_some() {
            let mut section = vec![0; map.host_value_size()];
            if map.lookup(&0_u32.to_ne_bytes(), &mut section).is_err() {
                continue;
            }
            for variable in variables {
                let range = variable.offset as usize..(variable.offset + variable.size) as usize;
                let value = section.get(range).unwrap_or_default().to_vec();
                all.push(((variable.name.clone(), Vec::new()), value));
            }
            continue;
        }
        if map.definition().kind.holds_maps() || map.definition().kind == MapKind::STACK_TRACE {
            continue;
        }
        let is_array = matches!(
            map.definition().kind,
            MapKind::ARRAY | MapKind::PERCPU_ARRAY
        );
        let (mut key, mut next) = (None, vec![0; map.key_size()]);
        for _ in 0..MOST_ELEMENTS {
            if map.next_key(key.as_deref(), &mut next).is_err() {
                break;
            }
            let mut value = vec![0; map.host_value_size()];
            if map.lookup(&next, &mut value).is_ok()
                && !(is_array && value.iter().all(|byte| *byte == 0))
            {
                all.push(((map.definition().name.clone(), next.clone()), value));
            }
            key = Some(next.clone());
        }
    }
    all.sort();
    all
}

/// A line for each place whose contents differ.
fn differences(before: &Contents, after: &Contents) -> Vec<String> {
    let find = |contents: &Contents, place: &(String, Vec<u8>)| {
        let at = contents.binary_search_by(|(known, _)| known.cmp(place));
        at.ok()
            .and_then(|at| contents.get(at))
            .map(|(_, value)| value.clone())
    };
    let mut places: Vec<_> = before.iter().chain(after).map(|(place, _)| place).collect();
    places.sort();
    places.dedup();
    let mut lines = Vec::new();
    let mut left_out = 0;
    for place in places {
        let (old, new) = (find(before, place), find(after, place));
        if old == new {
            continue;
        }
        if lines.len() == MOST_LINES {
            left_out += 1;
            continue;
        }
        let (name, key) = place;
        let shown = |contents: Option<Vec<u8>>| contents.map_or("nothing".into(), |v| value(&v));
        lines.push(match key.is_empty() {
            true => format!("variable      {name}: {} -> {}", shown(old), shown(new)),
            // An element of an array that held zeros.
            false if old.is_none() => {
                format!("map           {name}[{}] = {}", value(key), shown(new))
            }
            false => format!(
                "map           {name}[{}]: {} -> {}",
                value(key),
                shown(old),
                shown(new)
            ),
        });
    }
    if left_out > 0 {
        lines.push(format!("              and {left_out} more"));
    }
    lines
}

/// What a program put into a queue, stack or ring buffer, which only taking it out shows.
fn taken_out(map: &Map) -> Vec<String> {
    let name = &map.definition().name;
    let mut lines = Vec::new();
    if let Some(ring) = map.ring_buffer() {
        ring.drain(|record| {
            let mut copy = vec![0; record.len()];
            record.copy_to(&mut copy);
            lines.push(format!("record        {name}: {}", bytes(&copy)));
        });
    }
    if matches!(map.definition().kind, MapKind::QUEUE | MapKind::STACK) {
        let mut copy = vec![0; map.value_size()];
        while map
            .pop(|words| bpf_vm::map::memory::read_bytes(words, &mut copy))
            .is_ok()
        {
            lines.push(format!("element       {name}: {}", value(&copy)));
        }
    }
    let left_out = lines.len().saturating_sub(MOST_LINES);
    lines.truncate(MOST_LINES);
    if left_out > 0 {
        lines.push(format!("              and {left_out} more"));
    }
    lines
}
