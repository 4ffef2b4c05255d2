// SPDX-License-Identifier: MIT OR Apache-2.0
//! Helpers that ask this kernel: memory that may not be there, tasks, stacks, locks.

use super::bpf::{ENGINES, hooked, hooked_with, variable};
use super::hooks::{call, function};
use super::tasks::spawn;
use super::{Failure, Outcome, Test, failed};
use crate::arch::{cpu, irq, probe, smp, switch};
use crate::bpf;
use crate::context::{self, Softirq};
use crate::mm::near::NearMemory;
use crate::mm::{self, layout, stack};
use crate::{check, sched};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::map::MapRegion;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "helpers.probe_read_copies_what_is_there",
        seconds: 20,
        run: there,
    },
    Test {
        name: "helpers.probe_read_of_nothing_is_efault_and_zeros",
        seconds: 20,
        run: not_there,
    },
    Test {
        name: "helpers.probe_read_reads_no_device",
        seconds: 20,
        run: device,
    },
    Test {
        name: "helpers.probe_read_works_in_every_context",
        seconds: 20,
        run: contexts,
    },
    Test {
        name: "helpers.probe_read_while_memory_is_unmapped",
        seconds: 60,
        run: races,
    },
    Test {
        name: "helpers.a_program_learns_who_called",
        seconds: 20,
        run: who,
    },
    Test {
        name: "helpers.each_core_has_its_block",
        seconds: 60,
        run: cores,
    },
    Test {
        name: "helpers.a_lock_excludes_the_other_cores",
        seconds: 60,
        run: locked,
    },
    Test {
        name: "helpers.an_nmi_in_the_middle_of_a_lock_goes_on",
        seconds: 60,
        run: nmi_while_locked,
    },
];

/// A page whose byte at index `i` is `i % 251 + 1`, but its last, which is 0; nothing is mapped behind it.
fn page() -> Result<NearMemory, Failure> {
    let memory = NearMemory::new(layout::PAGE);
    let memory = memory.ok_or_else(|| Failure::Failed("no memory near the code".into()))?;
    for (index, word) in memory.words().iter().enumerate() {
        let bytes = core::array::from_fn(|i| byte(index * 8 + i));
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    Ok(memory)
}

fn byte(index: usize) -> u8 {
    if index == layout::PAGE - 1 {
        0
    } else {
        (index % 251) as u8 + 1
    }
}

/// The bytes of a program's only data section.
fn data(map: &str) -> Result<Vec<u8>, Failure> {
    let map = bpf::map(map).ok_or_else(|| Failure::Failed(format!("there is no map {map}")))?;
    let mut value = alloc::vec![0; map.value_size()];
    map.lookup(&[0; 4], &mut value).map_err(|e| failed(&e))?;
    Ok(value)
}

/// What the program `probe` found.
#[derive(PartialEq, Eq, Debug)]
struct Probed {
    bytes: [u8; 16],
    string: [u8; 16],
    result: i64,
    length: i64,
}

fn probed() -> Result<Probed, Failure> {
    let data = data("probe..bss")?;
    let word = |at: usize| {
        let bytes = data.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map(|bytes| i64::from_le_bytes(*bytes))
    };
    let text = |at: usize| data.get(at..).and_then(|rest| rest.first_chunk().copied());
    match (text(0), text(16), word(32), word(40)) {
        (Some(bytes), Some(string), Some(result), Some(length)) => Ok(Probed {
            bytes,
            string,
            result,
            length,
        }),
        _ => Err(Failure::Failed("probe..bss is too short".into())),
    }
}

/// As many of `bytes`, then 0xee.
fn filled(bytes: impl Iterator<Item = u8>) -> [u8; 16] {
    let mut all = [0xee; 16];
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = from;
    }
    all
}

fn there() -> Outcome {
    let memory = page()?;
    for engine in ENGINES {
        hooked("probe", engine, || {
            for start in [0, 1, 7, 8, 64, 100, layout::PAGE - 16, layout::PAGE - 1] {
                for size in 0..=16.min(layout::PAGE - start) {
                    call((memory.start() + start) as u64, size as u64);
                    let found = probed()?;
                    let bytes = filled((start..start + size).map(byte));
                    // The page's last byte is the only 0: else the string is cut to the size.
                    let text = (start..start + size.saturating_sub(1)).map(byte);
                    let text = filled(text.chain((size > 0).then_some(0)));
                    let want = Probed {
                        bytes,
                        string: text,
                        result: 0,
                        length: size as i64,
                    };
                    check!(found == want, "{engine:?} {start} {size}: {found:x?}");
                }
            }
            // A string that ends with the page is read, although what is behind it cannot be.
            call((memory.start() + layout::PAGE - 4) as u64, 16);
            let found = probed()?;
            let end = filled((layout::PAGE - 4..layout::PAGE).map(byte));
            check!(
                found.length == 4 && found.string == end && found.result == -14,
                "{engine:?}: a string at a page's end: {found:x?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Addresses at which `size` bytes are not there, and what they are.
fn nowhere(memory: &NearMemory, size: u64) -> [(&'static str, u64); 9] {
    let local = 0u8;
    let here = core::ptr::from_ref(&local).addr();
    let bottom = stack::bounds(here).map_or(0, |(bottom, _)| bottom) as u64;
    let end = (memory.start() + memory.bytes()) as u64;
    [
        ("null", 0),
        ("near null", 8),
        ("the lower half", 0x40_0000),
        ("no address at all", 0x00ff_8000_0000_0000),
        ("the top", u64::MAX - size + 1),
        ("past the end of the address space", u64::MAX),
        ("a stack's guard", bottom - size),
        ("behind a page", end),
        ("across a page's end", end - size + 1),
    ]
}

fn not_there() -> Outcome {
    let memory = page()?;
    let want = |size: usize| filled(core::iter::repeat_n(0, size));
    for engine in ENGINES {
        hooked("probe", engine, || {
            for size in [2, 3, 8, 9, 16] {
                for (what, address) in nowhere(&memory, size) {
                    call(address, size);
                    let found = probed()?;
                    let bytes = want(size as usize);
                    check!(
                        found.result == -14 && found.bytes == bytes,
                        "{engine:?}: {size} bytes of {what} ({address:#x}): {found:x?}"
                    );
                    // Where the page's last byte ends it, it is a string.
                    check!(
                        what == "across a page's end"
                            || found.length == -14 && found.string == bytes,
                        "{engine:?}: a string of {what} ({address:#x}): {found:x?}"
                    );
                }
            }
            Ok(())
        })?;
    }
    // Up to the last byte that is there.
    let end = memory.start() + memory.bytes();
    for left in 0..=20 {
        let mut into = [0; 40];
        let count = probe::read(&mut into, (end - left) as u64);
        check!(count == left, "{count} of the last {left} bytes of a page");
    }
    Ok(())
}

fn device() -> Outcome {
    let Some(system) = crate::system() else {
        return Err(Failure::Skipped("there is no device tree".into()));
    };
    for region in system.machine.mmio() {
        let address = mm::linear(region.start);
        let mapped = mm::table::translate(address);
        check!(
            mapped.is_some_and(|t| t.device),
            "{address:#x} is no device's: {mapped:?}"
        );
        let count = probe::read(&mut [0; 8], address as u64);
        check!(
            count == 0,
            "{count} bytes of a device's registers at {address:#x}"
        );
    }
    Ok(())
}

/// Probes something that is there and something that is not; 1 if both went as they should, else 2.
fn probe_both(found: &AtomicU64) {
    let mut into = [0; 8];
    let there = core::ptr::from_ref(found).addr() as u64;
    let good = probe::read(&mut into, there) == 8 && probe::read(&mut into, 0) == 0;
    found.store(if good { 1 } else { 2 }, Ordering::Relaxed);
}

fn contexts() -> Outcome {
    static IN_NMI: AtomicU64 = AtomicU64::new(0);
    static IN_SOFTIRQ: AtomicU64 = AtomicU64::new(0);
    fn nmi() {
        probe_both(&IN_NMI);
        call(0, 16);
    }
    fn softirq() {
        probe_both(&IN_SOFTIRQ);
        call(0, 16);
        smp::send_nmi(cpu::index());
    }
    for engine in ENGINES {
        hooked("probe", engine, || {
            IN_NMI.store(0, Ordering::Relaxed);
            IN_SOFTIRQ.store(0, Ordering::Relaxed);
            context::TEST_NMI.set(Some(&(nmi as fn())));
            context::TEST_SOFTIRQ.set(Some(&(softirq as fn())));
            // Masked, as in an interrupt handler; then open again for the softirq.
            let state = irq::disable();
            let masked = AtomicU64::new(0);
            probe_both(&masked);
            irq::restore(state);
            context::raise(Softirq::Test);
            let deadline = crate::arch::timer::now_ns() + 1_000_000_000;
            while IN_NMI.load(Ordering::Relaxed) == 0 && crate::arch::timer::now_ns() < deadline {
                crate::arch::barrier::wfe();
            }
            context::TEST_NMI.set(None);
            context::TEST_SOFTIRQ.set(None);
            let seen = [&masked, &IN_SOFTIRQ, &IN_NMI].map(|c| c.load(Ordering::Relaxed));
            check!(
                seen == [1; 3],
                "{engine:?}: interrupts masked, softirq, NMI: {seen:?}"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// Another core maps and unmaps what this one reads.
fn races() -> Outcome {
    if cpu::online().count() < 2 {
        return Err(Failure::Skipped("it takes two cores".into()));
    }
    const ROUNDS: usize = 300;
    let place = Arc::new(AtomicUsize::new(0));
    let probed = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let other = {
        let (place, probed, done) = (place.clone(), probed.clone(), done.clone());
        spawn("mapper", move || {
            let mut all = Ok(());
            let mut rounds = 0;
            // The other core may take long to come: then more of them.
            while rounds < ROUNDS || probed.load(Ordering::Relaxed) == 0 {
                rounds += 1;
                match page() {
                    Ok(memory) => {
                        place.store(memory.start(), Ordering::Release);
                        sched::yield_now();
                    }
                    Err(e) => all = Err(e),
                }
            }
            done.store(true, Ordering::Release);
            all
        })?
    };
    let (mut whole, mut nothing, mut mixed) = (0, 0, 0);
    while !done.load(Ordering::Acquire) {
        let address = place.load(Ordering::Acquire);
        let mut into = [0; 40];
        let read = probe::read(&mut into, address as u64);
        probed.fetch_add(1, Ordering::Relaxed);
        match read {
            40 if into.iter().enumerate().all(|(i, b)| *b == byte(i)) => whole += 1,
            0 => nothing += 1,
            // Unmapped in the middle, or the page already somebody else's when the last translation ended.
            _ => mixed += 1,
        }
    }
    other.join()?;
    check!(whole + nothing > 0, "nothing was probed");
    crate::println!("    {whole} whole, {nothing} nothing, {mixed} cut");
    Ok(())
}

/// A per-CPU variable of the kernel: every core's copy, asked for on every core.
fn cores() -> Outcome {
    for engine in ENGINES {
        for home in cpu::online() {
            let asked = sched::spawn_on("asks", 1 << home, move || {
                hooked("cores", engine, || {
                    (0..=cpu::MAX_CPUS).try_for_each(|core| ask(engine, home, core))
                })
            });
            check!(asked.is_some(), "no task");
            asked.map_or(Ok(()), |task| task.join())?;
        }
    }
    Ok(())
}

/// What the program sees of a core on core `home`, which runs this.
fn ask(engine: bpf::Engine, home: usize, core: usize) -> Outcome {
    let ticks = |core| cpu::per_cpu(core).ticks.load(Ordering::Relaxed);
    let before = (ticks(core), ticks(home));
    call(core as u64, 0);
    let after = (ticks(core), ticks(home));
    let is = |name: &str| variable("cores", name);
    let own = (is("own")?, is("core")?, is("own_ticks")?);
    check!(
        (own.0, own.1) == (home as u64, home as u64) && (before.1..=after.1).contains(&own.2),
        "{engine:?}: on core {home}, of its own block: {own:?}, ticks from {} to {}",
        before.1,
        after.1
    );
    let there = is("there")?;
    check!(
        there == u64::from(core < cpu::MAX_CPUS),
        "{engine:?}: on core {home}, of core {core}: {there}"
    );
    if there != 0 {
        let seen = (is("number")?, is("online")?, is("ticks")?);
        let online = cpu::online().any(|one| one == core);
        check!(
            // A core that never came has a block of zeros.
            seen.0 == if online { core as u64 } else { 0 }
                && seen.1 == u64::from(online)
                && (before.0..=after.0).contains(&seen.2),
            "{engine:?}: on core {home}, of core {core}: {seen:?}, ticks from {} to {}",
            before.0,
            after.0
        );
    }
    Ok(())
}

fn who() -> Outcome {
    let target = function("workload_call")?;
    for engine in ENGINES {
        let cookie = 0x0123_4567_89ab_cdef;
        hooked_with("who", engine, cookie, || {
            call(1, 0x5ec0);
            Ok(())
        })?;
        let data = data("who..bss")?;
        let words: Vec<u64> = data
            .as_chunks()
            .0
            .iter()
            .map(|w| u64::from_le_bytes(*w))
            .collect();
        let [
            function,
            got,
            arguments,
            second,
            beyond,
            returned,
            task,
            id,
            core,
            depth,
            stack @ ..,
        ] = &words[..]
        else {
            return Err(Failure::Failed("who..bss is too short".into()));
        };
        let current = switch::current();
        let own = [
            target.address as u64,
            cookie,
            0x5ec0,
            core::ptr::from_ref(current).addr() as u64,
            current.id() << 32 | current.id(),
        ];
        let seen = [*function, *got, *second, *task, *id];
        check!(seen == own, "{engine:?}: {seen:#x?} instead of {own:#x?}");
        check!(
            [*arguments as i64, *beyond as i64, *returned as i64] == [2, -22, -95],
            "{engine:?}: {arguments} arguments, beyond {}, result {}",
            *beyond as i64,
            *returned as i64
        );
        check!(*core < cpu::MAX_CPUS as u64, "core {core}");
        // The hooked function, then the test that called it.
        let callers: Vec<String> = stack
            .iter()
            .take(*depth as usize / 8)
            .map(|at| crate::symbols::Name(*at as usize).function())
            .collect();
        check!(
            callers.len() == 4
                && callers[0] == "workload_call"
                && callers[1..]
                    .iter()
                    .any(|name| name.contains("helpers::who") || name.contains("hooked")),
            "{engine:?}: the stack is {callers:?}, {depth} bytes"
        );
        let text = |at: usize, length: usize| {
            let bytes = data.get(at..at + length).unwrap_or_default();
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        let (name, line) = (text(112, 16), text(128, 64));
        let shown: String = current.name().chars().take(15).collect();
        check!(
            name == shown,
            "{engine:?}: the task is {name:?}, not {shown:?}"
        );
        check!(
            line == format!("workload_call by {name}, core {core}"),
            "{engine:?}: {line:?}"
        );
    }
    Ok(())
}

fn locked() -> Outcome {
    const CALLS: u64 = 2000;
    let total =
        || data("locked.shared").map(|d| d.first_chunk().map_or(0, |w| u64::from_le_bytes(*w)));
    for engine in ENGINES {
        let missed = bpf_vm::helpers::missed_spin_locks();
        let before = total()?;
        hooked("locked", engine, || {
            let tasks: Vec<_> = cpu::online()
                .filter_map(|core| {
                    sched::spawn_on("locked", 1 << core, || {
                        for i in 0..CALLS {
                            call(i, i);
                        }
                    })
                })
                .collect();
            let count = tasks.len() as u64;
            tasks.into_iter().for_each(sched::JoinHandle::join);
            let counted = total()? - before;
            check!(
                counted == CALLS * count,
                "{engine:?}: {counted} of {} calls",
                CALLS * count
            );
            Ok(())
        })?;
        let missed = bpf_vm::helpers::missed_spin_locks() - missed;
        check!(
            missed == 0,
            "{engine:?}: {missed} locks were not waited for"
        );
        check!(!irq::disabled(), "interrupts are still masked");
    }
    Ok(())
}

/// A program that an NMI runs in the middle of the one that holds the lock does not wait for it; neither gives the other's back.
fn nmi_while_locked() -> Outcome {
    const CALLS: u64 = 2000;
    const MOST_CALLS: u64 = 10_000_000;
    const WANTED_NMIS: u64 = 50;
    static NMIS: AtomicU64 = AtomicU64::new(0);
    fn nmi() {
        call(1, 1);
        NMIS.fetch_add(1, Ordering::Relaxed);
    }
    let cores: Vec<usize> = cpu::online().collect();
    let [target, .., sender] = cores[..] else {
        return Err(Failure::Skipped("it takes two cores".into()));
    };
    let total = || {
        let data = data("locked.shared")?;
        let word = |at: usize| data.get(at..).and_then(|rest| rest.first_chunk::<8>());
        match (word(0), word(8)) {
            (Some(calls), Some(lock)) => Ok((u64::from_le_bytes(*calls), *lock)),
            _ => Err(Failure::Failed("locked.shared is too short".into())),
        }
    };
    for engine in ENGINES {
        let (before, _) = total()?;
        NMIS.store(0, Ordering::Relaxed);
        context::TEST_NMI.set(Some(&(nmi as fn())));
        let done = Arc::new(AtomicBool::new(false));
        let mut calls = 0;
        let outcome = hooked("locked", engine, || {
            let stop = done.clone();
            let sender = sched::spawn_on("sender", 1 << sender, move || {
                while !stop.load(Ordering::Acquire) {
                    smp::send_nmi(target);
                    sched::yield_now();
                }
            });
            let caller = sched::spawn_on("caller", 1 << target, || {
                let wanted = |i: &u64| *i < CALLS || NMIS.load(Ordering::Relaxed) < WANTED_NMIS;
                let calls = (0..MOST_CALLS).take_while(wanted);
                calls.inspect(|i| _ = call(*i, *i)).count() as u64
            });
            let both = caller.is_some() && sender.is_some();
            calls = caller.map_or(0, sched::JoinHandle::join);
            done.store(true, Ordering::Release);
            sender.into_iter().for_each(sched::JoinHandle::join);
            check!(both, "no tasks");
            Ok(())
        });
        context::TEST_NMI.set(None);
        outcome?;
        let (after, lock) = total()?;
        let (counted, nmis) = (after - before, NMIS.load(Ordering::Relaxed));
        // Where an NMI came between the load and the store that count, its own count is lost.
        check!(
            counted >= calls && counted <= calls + nmis,
            "{engine:?}: {counted} counted of {calls} calls and {nmis} in NMIs"
        );
        check!(nmis > 0, "{engine:?}: no NMI came");
        check!(
            lock == [0; 8],
            "{engine:?}: the lock is not free: {lock:x?}"
        );
    }
    Ok(())
}
