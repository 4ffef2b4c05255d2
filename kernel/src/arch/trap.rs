// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions: what comes, who handles it, and what is printed when no one can.

use super::cpu::{self, this_cpu};
use super::smp::{self, Ipi};
use super::{breakpoint, irq, probe, switch, timer, unwind};
use crate::{console, context, hooked, println, sched};
use boards::irq::{Interrupt, InterruptController, Token};
use core::sync::atomic::{AtomicUsize, Ordering};

/// What vectors.s saves; the offsets are its.
#[repr(C)]
pub(crate) struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Stack pointer before the exception.
    pub sp: u64,
    /// Where it was taken.
    pub elr: u64,
    /// PSTATE there.
    pub spsr: u64,
    /// Syndrome.
    pub esr: u64,
    /// Fault address.
    pub far: u64,
    /// Recursion word of the interrupted context.
    pub word: u64,
    pad: u64,
    /// Frame record for the unwinder.
    pub record: [u64; 2],
}

const _: () = assert!(size_of::<Frame>() == 320);

const DAIF: u64 = 0xf << 6;

/// Synchronous exception: a fault, or a BRK.
#[unsafe(no_mangle)]
extern "C" fn trap_sync(frame: &mut Frame) {
    if breakpoint::handle(frame) {
        return;
    }
    if let Some(landing) = probe::landing(frame) {
        frame.elr = landing;
        return;
    }
    // A synchronous exception is the context it interrupts: what was open there is open here.
    irq::set_daif(frame.spsr & DAIF);
    die(&format_args!("{}", Syndrome(frame.esr)), frame);
}

/// Interrupt request.
#[unsafe(no_mangle)]
extern "C" fn trap_irq(frame: &mut Frame) {
    let Some(controller) = smp::controller() else {
        die(
            &"an interrupt before there is an interrupt controller",
            frame,
        );
    };
    let (interrupt, token) = controller.acknowledge();
    match interrupt {
        Interrupt::Nmi => nmi(controller, token, frame),
        Interrupt::Spurious => {}
        other => {
            let block = this_cpu();
            block.hardirq.fetch_add(1, Ordering::Relaxed);
            // The running priority keeps normal interrupts out until `end`; an NMI may come.
            irq::open_exceptions();
            match other {
                Interrupt::Timer => tick(),
                Interrupt::Ipi(n) if n == Ipi::Sync as u8 => smp::handle_sync(),
                Interrupt::Ipi(n) if n == Ipi::Reschedule as u8 => {
                    block.need_resched.store(true, Ordering::Relaxed)
                }
                Interrupt::Ipi(n) if n == Ipi::Stop as u8 => super::rendezvous::hold(),
                Interrupt::Ipi(n) if n == Ipi::Call as u8 => smp::handle_call(frame),
                Interrupt::Ipi(n) if n == Ipi::Test as u8 => context::TEST_HARDIRQ.call(),
                Interrupt::Ipi(_) => {}
                Interrupt::Device(n) => println!("interrupt {n} has no handler"),
                Interrupt::Nmi | Interrupt::Spurious => {}
            }
            irq::mask_all();
            controller.end(token);
            block.hardirq.fetch_sub(1, Ordering::Relaxed);
            leave(frame);
        }
    }
}

/// Fast interrupt request: the Pi 3's pseudo-NMI.
#[unsafe(no_mangle)]
extern "C" fn trap_fiq(frame: &mut Frame) {
    match smp::controller() {
        Some(controller) => match controller.acknowledge_fiq() {
            (Interrupt::Nmi, token) => nmi(controller, token, frame),
            (Interrupt::Spurious, _) => {}
            _ => die(&"a fast interrupt that no one sent", frame),
        },
        None => die(
            &"a fast interrupt before there is an interrupt controller",
            frame,
        ),
    }
}

/// SError: an access went wrong somewhere, some time ago.
#[unsafe(no_mangle)]
extern "C" fn trap_serror(frame: &mut Frame) {
    die(
        &"SError: an earlier access was refused by the system",
        frame,
    );
}

#[unsafe(no_mangle)]
extern "C" fn trap_unexpected(frame: &mut Frame) {
    die(
        &"an exception from EL0 or with SP_EL0, which this kernel never uses",
        frame,
    );
}

fn nmi(controller: &dyn InterruptController, token: Token, frame: &Frame) {
    let block = this_cpu();
    block.nmi.fetch_add(1, Ordering::Relaxed);
    block.nmis.fetch_add(1, Ordering::Relaxed);
    context::nmi();
    crate::rcu::answer_nmi(frame);
    controller.end(token);
    block.nmi.fetch_sub(1, Ordering::Relaxed);
}

fn tick() {
    timer::next_tick();
    let block = this_cpu();
    block.ticks.fetch_add(1, Ordering::Relaxed);
    context::raise(context::Softirq::Timer);
    sched::tick();
}

/// On the way out of an interrupt: softirqs, parking, another task. All is masked here, as at entry.
fn leave(frame: &Frame) {
    let block = this_cpu();
    if smp::is_parked() {
        return; // the core goes back to sleep, whatever else it was asked for
    }
    if block.softirq_active.load(Ordering::Relaxed) {
        return; // the softirqs that this interrupted go on, and leave by their own way
    }
    if block.softirq_pending.load(Ordering::Relaxed) != 0 {
        irq::disable();
        irq::open_exceptions();
        context::run_softirqs();
        irq::mask_all();
        // PSTATE masks everything; the priority mask has to be open, or nothing would end WFI in `park_if_asked`.
        irq::open_priority();
    }
    smp::park_if_asked();
    if block.need_resched.load(Ordering::Relaxed) && switch::current().preemptible() {
        irq::disable();
        irq::open_exceptions();
        sched::preempt(frame.elr as usize, frame.word);
        irq::mask_all();
    }
    // The interrupted code had normal interrupts on, or this one could not have come.
    irq::open_priority();
}

/// The exception class and what it says, in words (Arm ARM, ESR_EL1).
struct Syndrome(u64);

impl core::fmt::Display for Syndrome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let class = self.0 >> 26;
        let name = match class {
            0x00 => "undefined instruction",
            0x07 => "a vector register was used: the kernel is soft-float",
            0x0e => "illegal execution state",
            0x15 => "SVC",
            0x18 => "trapped system register access",
            0x21 => "instruction abort",
            0x22 => "misaligned program counter",
            0x25 => "data abort",
            0x26 => "misaligned stack pointer",
            0x2f => "SError",
            0x3c if self.0 as u16 == trampoline::pool::FILL_IMMEDIATE => {
                "BRK #0xdead: executable memory that is not in use was executed: freed too early, or never filled"
            }
            0x3c => "BRK",
            _ => "exception",
        };
        write!(f, "{name} (class {class:#x})")?;
        if matches!(class, 0x21 | 0x25) {
            let kind = match self.0 & 0x3c {
                0x04 => "nothing is mapped there",
                0x08 => "access flag",
                0x0c => "not allowed there",
                0x10 => "refused by the system",
                0x20 => "misaligned",
                _ => "fault",
            };
            let what = if class == 0x21 {
                "execute"
            } else if self.0 & 0x40 != 0 {
                "write"
            } else {
                "read"
            };
            write!(f, ", {what}: {kind}")?;
        }
        Ok(())
    }
}

/// The core that reports, its index plus one, and how many faults it has had since.
static DYING: AtomicUsize = AtomicUsize::new(0);
static AGAIN: AtomicUsize = AtomicUsize::new(0);

/// The second report of a run would only hide the first: another core stops here, and a report that faults itself ends the
/// run where it has come to.
pub(crate) fn begin_report() {
    irq::mask_all();
    let own = cpu::index() + 1;
    let first = DYING.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire);
    match first {
        Ok(_) => console::break_lock(),
        Err(core) if core == own && AGAIN.fetch_add(1, Ordering::Relaxed) == 0 => {
            println!("\n*** another fault in the middle of this report");
            super::exit::exit(101);
        }
        Err(_) => loop {
            super::barrier::wfi();
        },
    }
}

/// Whether a report is being printed that ends the run.
pub(crate) fn is_reporting() -> bool {
    DYING.load(Ordering::Relaxed) != 0
}

/// Prints everything about an exception that no one can handle, and ends the run.
#[cold]
#[inline(never)]
fn die(what: &dyn core::fmt::Display, frame: &Frame) -> ! {
    begin_report();
    print_exception(what, frame);
    super::exit::exit(101);
}

/// Prints everything about an exception.
pub(super) fn print_exception(what: &dyn core::fmt::Display, frame: &Frame) {
    println!("\n*** {what}");
    print_where();
    println!(
        "    pc {:#018x}  {}",
        frame.elr,
        crate::symbols::Name(frame.elr as usize)
    );
    println!(
        "    esr {:#010x}  far {:#018x}  spsr {:#x}  sp {:#018x}",
        frame.esr, frame.far, frame.spsr, frame.sp
    );
    for (i, value) in frame.x.iter().enumerate() {
        let end = if i % 4 == 3 || i == 30 { "\n" } else { "" };
        crate::print!("    x{i:<2} {value:#018x}{end}");
    }
    for (i, value) in frame.x.iter().enumerate() {
        if hooked::of(*value).is_some() {
            println!("    x{i} lies in {}", crate::symbols::Name(*value as usize));
        }
    }
    if let Some((bottom, _)) = crate::mm::stack::bounds(frame.sp as usize)
        && (frame.sp as usize) < bottom + 320
    {
        println!("    sp lies in the guard below a stack that begins at {bottom:#x}");
    }
    println!("    stack trace:");
    unwind::print(
        frame.elr as usize,
        frame.x[30] as usize,
        frame.x[29] as usize,
    );
    print_hooked();
}

/// Prints what is hooked, whether it stands in the trace or not: a hook's work outlives its frame.
pub(crate) fn print_hooked() {
    const SHOWN: usize = 16;
    let count = hooked::all().count();
    for (name, mark) in hooked::all().take(SHOWN) {
        println!("    hooked: {name} [{mark}]");
    }
    if count > SHOWN {
        println!("    hooked: {} functions more", count - SHOWN);
    }
}

/// Core, context and task.
pub(crate) fn print_where() {
    println!(
        "    core {}, {:?} context, task {}, EL{}",
        cpu::index(),
        context::current(),
        switch::current().name(),
        super::exception_level()
    );
}
