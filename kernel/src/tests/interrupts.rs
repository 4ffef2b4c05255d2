// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts, softirqs, NMI, and the recursion word in each context.

use super::{Outcome, Test};
use crate::arch::{barrier, cpu, irq, smp, switch, timer};
use crate::context::{self, Context, Softirq};
use crate::{check, sched};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "interrupts.tick_on_every_core",
        seconds: 10,
        run: ticks,
    },
    Test {
        name: "interrupts.nmi_comes_while_interrupts_are_masked",
        seconds: 10,
        run: nmi_while_masked,
    },
    Test {
        name: "interrupts.nmi_reaches_every_core",
        seconds: 10,
        run: nmi_everywhere,
    },
    Test {
        name: "interrupts.normal_interrupts_are_held_back",
        seconds: 10,
        run: held_back,
    },
    Test {
        name: "interrupts.softirq_from_a_task",
        seconds: 10,
        run: softirq_from_task,
    },
    Test {
        name: "interrupts.each_context_has_its_own_recursion_word",
        seconds: 10,
        run: words,
    },
    Test {
        name: "interrupts.contexts_nest_on_purpose",
        seconds: 10,
        run: nested,
    },
    Test {
        name: "interrupts.sync_reaches_every_core",
        seconds: 20,
        run: sync,
    },
    Test {
        name: "interrupts.cores_can_be_parked",
        seconds: 20,
        run: park,
    },
];

/// Waits for a condition for at most a second of emulated time.
fn soon(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = timer::now_ns() + 1_000_000_000;
    while !condition() {
        if timer::now_ns() > deadline {
            return false;
        }
        barrier::wfe(); // the event stream ends it at the latest
    }
    true
}

fn ticks() -> Outcome {
    for core in cpu::online() {
        let ticks = &cpu::per_cpu(core).ticks;
        let before = ticks.load(Ordering::Relaxed);
        let more = soon(|| {
            sched::sleep_ns(1_000_000);
            ticks.load(Ordering::Relaxed) > before + 2
        });
        check!(
            more,
            "core {core} has had {} ticks in a second",
            ticks.load(Ordering::Relaxed) - before
        );
    }
    Ok(())
}

static SEEN: AtomicU32 = AtomicU32::new(0);

fn nmi_while_masked() -> Outcome {
    fn seen() {
        if context::current() == Context::Nmi {
            SEEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    SEEN.store(0, Ordering::Relaxed);
    context::TEST_NMI.set(Some(&(seen as fn())));
    let state = irq::disable();
    smp::send_nmi(cpu::index());
    let came = soon(|| SEEN.load(Ordering::Relaxed) == 1);
    irq::restore(state);
    context::TEST_NMI.set(None);
    check!(came, "the NMI did not come while interrupts were masked");
    Ok(())
}

fn nmi_everywhere() -> Outcome {
    for core in cpu::online() {
        let count = &cpu::per_cpu(core).nmis;
        let before = count.load(Ordering::Relaxed);
        smp::send_nmi(core);
        check!(
            soon(|| count.load(Ordering::Relaxed) == before + 1),
            "core {core} took no NMI"
        );
    }
    Ok(())
}

fn held_back() -> Outcome {
    let state = irq::disable();
    let block = cpu::this_cpu();
    let before = block.ticks.load(Ordering::Relaxed);
    let begin = timer::now_ns();
    while timer::now_ns() < begin + 5_000_000 {
        core::hint::spin_loop();
    }
    let during = block.ticks.load(Ordering::Relaxed) - before;
    irq::restore(state);
    check!(
        during == 0,
        "{during} ticks came while interrupts were masked"
    );
    check!(
        soon(|| block.ticks.load(Ordering::Relaxed) > before),
        "no tick came afterwards"
    );
    Ok(())
}

fn softirq_from_task() -> Outcome {
    fn seen() {
        if context::current() == Context::Softirq && !irq::disabled() {
            SEEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    SEEN.store(0, Ordering::Relaxed);
    context::TEST_SOFTIRQ.set(Some(&(seen as fn())));
    context::raise(Softirq::Test);
    let seen = SEEN.load(Ordering::Relaxed);
    context::TEST_SOFTIRQ.set(None);
    check!(
        seen == 1,
        "the softirq ran {seen} times, in softirq context with interrupts on"
    );
    Ok(())
}

static WORD_IN_SOFTIRQ: AtomicU64 = AtomicU64::new(1);
static WORD_IN_NMI: AtomicU64 = AtomicU64::new(1);
static NMI_OUTER: AtomicU64 = AtomicU64::new(1);

fn words() -> Outcome {
    fn softirq() {
        let word = &switch::current().word;
        WORD_IN_SOFTIRQ.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
        word.store(0x50f7, Ordering::Relaxed);
        // An NMI in the middle of the softirq: a third context.
        smp::send_nmi(cpu::index());
        soon(|| WORD_IN_NMI.load(Ordering::Relaxed) != 1);
        NMI_OUTER.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    fn nmi() {
        let word = &switch::current().word;
        WORD_IN_NMI.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
        word.store(0x171, Ordering::Relaxed);
    }
    for cell in [&WORD_IN_SOFTIRQ, &WORD_IN_NMI, &NMI_OUTER] {
        cell.store(1, Ordering::Relaxed);
    }
    let word = &switch::current().word;
    word.store(0x7a5c, Ordering::Relaxed);
    context::TEST_SOFTIRQ.set(Some(&(softirq as fn())));
    context::TEST_NMI.set(Some(&(nmi as fn())));
    context::raise(Softirq::Test);
    context::TEST_SOFTIRQ.set(None);
    context::TEST_NMI.set(None);
    let mine = word.swap(0, Ordering::Relaxed);
    check!(
        WORD_IN_SOFTIRQ.load(Ordering::Relaxed) == 0,
        "the softirq did not begin with a fresh word"
    );
    check!(
        WORD_IN_NMI.load(Ordering::Relaxed) == 0,
        "the NMI did not begin with a fresh word"
    );
    check!(
        NMI_OUTER.load(Ordering::Relaxed) == 0x50f7,
        "the NMI did not restore the softirq's word"
    );
    check!(mine == 0x7a5c, "the task's word is {mine:#x} afterwards");
    // Preempted and moved: the word stays the task's.
    word.store(0xbeef, Ordering::Relaxed);
    for _ in 0..20 {
        sched::yield_now();
        sched::sleep_ns(1_000_000);
    }
    let after = switch::current().word.swap(0, Ordering::Relaxed);
    check!(
        after == 0xbeef,
        "the task's word is {after:#x} after sleeping"
    );
    Ok(())
}

/// Per context, task first: the word found at entry, and the one found when the contexts above were over.
static AT_ENTRY: [AtomicU64; 4] = [const { AtomicU64::new(1) }; 4];
static AT_EXIT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// What each context does in [`nested`]: leaves its mark in the word, interrupts itself, and looks at the mark.
fn interrupt_myself(me: Context, next: impl FnOnce()) {
    let word = &switch::current().word;
    if context::current() == me {
        AT_ENTRY[me as usize].store(word.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    word.store(0xc0 + me as u64, Ordering::Relaxed);
    next();
    AT_EXIT[me as usize].store(word.load(Ordering::Relaxed), Ordering::Relaxed);
}

fn nested() -> Outcome {
    fn exited(context: Context) -> bool {
        AT_EXIT[context as usize].load(Ordering::Relaxed) != 0
    }
    fn softirq() {
        interrupt_myself(Context::Softirq, || {
            smp::send(cpu::index(), smp::Ipi::Test);
            soon(|| exited(Context::Hardirq));
        });
    }
    fn hardirq() {
        interrupt_myself(Context::Hardirq, || {
            smp::send_nmi(cpu::index());
            soon(|| exited(Context::Nmi));
        });
    }
    fn nmi() {
        interrupt_myself(Context::Nmi, || ());
    }
    AT_ENTRY.iter().for_each(|w| w.store(1, Ordering::Relaxed));
    AT_EXIT.iter().for_each(|w| w.store(0, Ordering::Relaxed));
    context::TEST_SOFTIRQ.set(Some(&(softirq as fn())));
    context::TEST_HARDIRQ.set(Some(&(hardirq as fn())));
    context::TEST_NMI.set(Some(&(nmi as fn())));
    interrupt_myself(Context::Task, || context::raise(Softirq::Test));
    switch::current().word.store(0, Ordering::Relaxed);
    for slot in [
        &context::TEST_SOFTIRQ,
        &context::TEST_HARDIRQ,
        &context::TEST_NMI,
    ] {
        slot.set(None);
    }
    for context in [
        Context::Task,
        Context::Softirq,
        Context::Hardirq,
        Context::Nmi,
    ] {
        let entry = AT_ENTRY[context as usize].load(Ordering::Relaxed);
        let exit = AT_EXIT[context as usize].load(Ordering::Relaxed);
        check!(
            entry == 0,
            "{context:?} context began with the word {entry:#x}"
        );
        check!(
            exit == 0xc0 + context as u64,
            "{context:?} context's word was {exit:#x} after those above it"
        );
    }
    Ok(())
}

fn sync() -> Outcome {
    for _ in 0..50 {
        smp::sync_cores();
    }
    Ok(())
}

fn park() -> Outcome {
    for _ in 0..10 {
        let parked = smp::park_others();
        let begin = timer::now();
        while timer::now() - begin < timer::frequency() / 5000 {
            core::hint::spin_loop();
        }
        drop(parked);
    }
    ticks()
}
