// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands that only look: functions, hooks, code, programs, maps, cores, tasks, memory.

use super::commands::{Command, Outcome, first_word, no_arguments, place};
use super::{Shell, ShellError};
use crate::arch::cpu;
use crate::hook::livepatch::{self, Phase};
use crate::ksyms::Flags;
use crate::mm::{frames, heap, layout};
use crate::workload::PATCHES;
use crate::{bpf, hook, println, sched, symbols, system};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use bpf_vm::map::Map;
use core::sync::atomic::Ordering;

/// `functions [PATTERN]`
pub(super) fn functions(shell: &mut Shell, _: &'static Command, arguments: &str) -> Outcome {
    let blob = symbols::blob().ok_or(hook::ResolveError::NoSymbols)?;
    let pattern = match arguments.contains('*') {
        true => arguments.to_owned(),
        false => format!("*{arguments}*"),
    };
    let hooked: Vec<_> = hook::list().into_iter().map(|hook| hook.function).collect();
    let mut count = 0;
    for symbol in blob
        .matching(&pattern)
        .filter(|symbol| symbol.flags.contains(Flags::SITE))
    {
        let mark = if hooked.iter().any(|name| name == symbol.name) {
            "hooked"
        } else {
            ""
        };
        println!("{:#x}  {mark:6}  {}", symbol.address, symbol.name);
        count += 1;
        if shell.keys.interrupted() {
            return Err(ShellError::Interrupted);
        }
    }
    println!(
        "{count} of {} functions that can be hooked",
        blob.sites().len()
    );
    Ok(())
}

/// `programs`
pub(super) fn programs(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    for program in bpf::programs() {
        match program {
            Ok(p) => println!(
                "{:24}  {:32}  {} instructions",
                format!("{}/{}", p.object, p.name),
                p.section,
                p.insns
            ),
            Err(e) => println!("{e}"),
        }
    }
    Ok(())
}

/// `hooks`
pub(super) fn hooks(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    let hooks = hook::list();
    if hooks.is_empty() {
        println!("nothing is hooked");
        return Ok(());
    }
    let row = |cells: [&str; 9]| {
        let [id, kind, program, engine, bytes, stack, hits, misses, name] = cells;
        println!(
            "{id:>4}  {kind:10}  {program:20}  {engine:12}  {bytes:>6}  {stack:>6}  {hits:>8}  {misses:>8}  {name}"
        );
    };
    row([
        "id", "kind", "program", "engine", "bytes", "stack", "hits", "misses", "function",
    ]);
    for h in hooks {
        let (id, bytes) = (format!("{}", h.id), format!("{}", h.bytes));
        let stack = format!("{}", h.stack_bytes);
        let hits = hook::hits(h.id).map_or(String::new(), |hits| format!("{hits}"));
        // By context: task, softirq, hardirq, NMI.
        let misses = match h.misses {
            [0, 0, 0, 0] => String::from("0"),
            [task, softirq, hardirq, nmi] => format!("{task}/{softirq}/{hardirq}/{nmi}"),
        };
        let kind = format!("{}{}", h.kind, if h.sleepable { ".s" } else { "" });
        row([
            &id,
            &kind,
            &h.program,
            h.engine,
            &bytes,
            &stack,
            &hits,
            &misses,
            &h.function,
        ]);
    }
    Ok(())
}

/// `patch`
pub(super) fn patches() {
    let there = livepatch::list();
    for named in PATCHES {
        match there.iter().find(|patch| patch.name == named.name) {
            None => println!("      {:10}  off", named.name),
            Some(patch) => {
                let left = match patch.phase {
                    Phase::GoingOver | Phase::GoingBack => {
                        format!(", {} tasks left", patch.left)
                    }
                    _ => String::new(),
                };
                println!(
                    "{:>4}  {:10}  {}{left}",
                    format!("{}", patch.id),
                    patch.name,
                    patch.phase.name()
                );
            }
        }
        for (old, new) in named.pairs {
            println!("                  {old} by {new}");
        }
    }
}

/// `show FUNCTION`
pub(super) fn show(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    let function = place(command, arguments)?.function;
    println!("{}", function.name);
    let mut next = None;
    for line in hook::describe(function.address as usize) {
        if next.is_some_and(|next| next != line.address) {
            println!("  ...");
        }
        next = Some(line.address + 4);
        let text = match line.ingredient {
            "literal" => format!(".word {:#010x}", line.word),
            _ => format!("{}", a64::display_word(line.word, line.address as u64)),
        };
        let target = match a64::branch_target(line.word, line.address as u64) {
            Some(target) => format!("{}", symbols::Name(target as usize)),
            None => String::new(),
        };
        let row = format!(
            "  {:x}  {:08x}  {:10}  {text:36}  {target}",
            line.address, line.word, line.ingredient
        );
        println!("{}", row.trim_end());
    }
    Ok(())
}

/// `maps`
pub(super) fn maps(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    let maps = bpf::maps();
    if maps.is_empty() {
        println!("no map: an object is loaded when it is first attached, or by programs");
    }
    for (name, map) in maps {
        let d = map.definition();
        let (key, value) = (d.key_size, d.value_size);
        println!(
            "{name:24}  {}  key {key} bytes, value {value} bytes, entries: {}",
            d.kind, d.max_entries
        );
    }
    Ok(())
}

/// `map dump MAP`
pub(super) fn map(shell: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    /// Maps with more entries than this leave out those that are zero.
    const SHORT: u32 = 16;
    let (verb, name) = first_word(arguments);
    if verb != "dump" || name.is_empty() {
        return Err(ShellError::Usage(command));
    }
    let Some(map) = bpf::map(name) else {
        let there = bpf::maps().into_iter().map(|(name, _)| name).collect();
        return Err(ShellError::NoMap(name.to_owned(), there));
    };
    if let Some(ring) = map.ring_buffer() {
        let records = ring.drain(|record| {
            let mut value = vec![0; record.len()];
            record.copy_to(&mut value);
            print_value("record  ".into(), &value);
        });
        println!("records since the last time: {records}");
        return Ok(());
    }
    let all = map.definition().max_entries <= SHORT;
    let (mut key, mut next, mut value) = (
        None,
        vec![0; map.key_size()],
        vec![0; map.host_value_size()],
    );
    let (mut entries, mut zero) = (0, 0);
    while map.next_key(key.as_deref(), &mut next).is_ok() {
        // An entry may go away between the two calls.
        if map.lookup(&next, &mut value).is_ok() {
            entries += 1;
            if all || value.iter().any(|byte| *byte != 0) {
                print_entry(&map, &next, &value);
            } else {
                zero += 1;
            }
        }
        key = Some(next.clone());
        if shell.keys.interrupted() {
            return Err(ShellError::Interrupted);
        }
    }
    match zero {
        0 => println!("entries: {entries}"),
        zero => println!("entries: {entries}, of them zero and not shown: {zero}"),
    }
    Ok(())
}

/// A key and its value; in a per-CPU map each core's, with the core's number.
fn print_entry(map: &Map, key: &[u8], value: &[u8]) {
    let key: Vec<_> = key.chunks(16).map(bytes).collect();
    let before = format!("key {}  ", key.join(" "));
    if !map.definition().kind.is_per_cpu() {
        return print_value(format!("{before}value "), value);
    }
    // As the map hands them out: each core's rounded up to whole words.
    let bytes = value.len() / map.cpus() as usize;
    let mut before = before;
    for (core, value) in value.chunks(bytes.max(1)).enumerate() {
        // There are values for more cores than this machine has.
        let online = cpu::online().any(|online| online == core);
        if online || value.iter().any(|byte| *byte != 0) {
            let own = value.get(..map.value_size()).unwrap_or(value);
            print_value(format!("{before}core {core} "), own);
            before = " ".repeat(before.len());
        }
    }
}

/// Bytes behind a text; the lines of many stand below each other.
fn print_value(mut before: String, value: &[u8]) {
    for row in value.chunks(16) {
        println!("{before}{}", bytes(row));
        before = " ".repeat(before.len());
    }
}

/// Bytes in hexadecimal, and as little-endian numbers where they are one u32 or whole u64s.
fn bytes(row: &[u8]) -> String {
    let numbers: Vec<u64> = match (row.as_chunks::<8>(), row.as_array::<4>()) {
        ((words, []), _) => words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
        (_, Some(word)) => vec![u32::from_le_bytes(*word).into()],
        _ => vec![],
    };
    let hexadecimal: Vec<_> = row.iter().map(|byte| format!("{byte:02x}")).collect();
    let decimal: Vec<_> = numbers.iter().map(|number| format!("{number}")).collect();
    match decimal.is_empty() {
        true => hexadecimal.join(" "),
        false => format!("{} = {}", hexadecimal.join(" "), decimal.join(", ")),
    }
}

/// `trace`
pub(super) fn trace(shell: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    let (lost, mut lines) = (shell.trace.lost, 0);
    while let Some(line) = shell.trace.next_line() {
        println!("{line}");
        lines += 1;
        if shell.keys.interrupted() {
            return Err(ShellError::Interrupted);
        }
    }
    match shell.trace.lost - lost {
        0 if lines == 0 => println!("nothing was printed since the last time"),
        0 => {}
        lost => println!("{lost} lines before these were overwritten"),
    }
    Ok(())
}

/// `cpus`
pub(super) fn cpus(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    println!(
        "{:>4}  {:>8}  {:>10}  {:>6}",
        "core", "mpidr", "ticks", "nmis"
    );
    for core in cpu::online() {
        let block = cpu::per_cpu(core);
        let mpidr = system()
            .and_then(|system| system.machine.cpus.get(core))
            .map_or(0, |cpu| cpu.mpidr);
        let (ticks, nmis) = (
            block.ticks.load(Ordering::Relaxed),
            block.nmis.load(Ordering::Relaxed),
        );
        println!(
            "{core:>4}  {:>8}  {ticks:>10}  {nmis:>6}",
            format!("{mpidr:#x}")
        );
    }
    Ok(())
}

/// `tasks`
pub(super) fn tasks(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    println!(
        "{:>4}  {:16}  {:8}  {:>4}  {:>10}  most stack used",
        "id", "name", "state", "core", "waits"
    );
    sched::for_each(|task| {
        let waits = task.voluntary.load(Ordering::Relaxed);
        let state = format!("{:?}", task.state()).to_lowercase();
        println!(
            "{:>4}  {:16}  {state:8}  {:>4}  {waits:>10}  {} of {} bytes",
            task.id(),
            task.name(),
            task.core(),
            task.stack_used(),
            layout::STACK_SIZE
        );
    });
    Ok(())
}

/// `mem`
pub(super) fn mem(_: &mut Shell, command: &'static Command, arguments: &str) -> Outcome {
    no_arguments(command, arguments)?;
    let row = |what: &str, total: usize, free: usize| {
        println!("{what:12}  {total:>11} bytes, {free:>11} of them free")
    };
    let (heap_total, heap_free) = heap::usage();
    let (total, free) = frames::usage();
    row("heap", heap_total, heap_free);
    row("code pool", layout::POOL_SIZE, hook::pool_free());
    row("page frames", total * layout::PAGE, free * layout::PAGE);
    Ok(())
}
