// SPDX-License-Identifier: MIT OR Apache-2.0
//! Springboard: a small arm64 kernel whose business is hooking functions.
//!
//! The boot, numbered:
//! 1. `arch/boot.s`: from the boot loader at EL2 or EL1 to this file, at linked addresses, on the first page tables.
//! 2. [`springboard_main`]: reads the device tree; finds the console, memory, interrupt controller and cores.
//! 3. [`mm::init`]: linear map, executable pool, heap, page frames.
//! 4. [`on_idle_stack`]: the boot core becomes a core like the others, on a stack with a guard; starts the other cores.
//! 5. [`main_task`]: a kernel thread that does what the command line asks for: `job=bench`, `shell`, `test`, `torture` or `integrity`.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

#[expect(
    unsafe_code,
    reason = "the processor's room (STYLE.md: where unsafe may live)"
)]
mod arch;
mod bench;
mod bpf;
mod command_line;
mod console;
mod context;
mod glob;
mod hook;
mod hook_path;
mod hooked;
mod initrd;
mod integrity;
#[expect(
    dead_code,
    reason = "xtask includes the same file and writes what is only read here"
)]
mod ksyms;
#[expect(
    unsafe_code,
    reason = "the memory's room (STYLE.md: where unsafe may live)"
)]
mod mm;
mod offered;
mod rcu;
mod sched;
mod shell;
mod slow;
mod symbols;
mod targets;
mod task;
mod tests;
mod torture;
mod trace;
mod types;
mod workload;
mod written;

use alloc::boxed::Box;
use arch::lock::Late;
use arch::{cpu, exit, irq, pmu, smp, timer};
use boards::{Machine, Pl011};
use command_line::Options;

/// What the boot found, for the tasks.
pub struct System {
    /// The machine, by its device tree.
    pub machine: Machine<'static>,
    /// Where the image lies.
    pub image_pa: u64,
    /// What the command line asks for.
    pub options: Options<'static>,
}

static SYSTEM: Late<System> = Late::new();

/// The system, from step 4 of the boot on.
pub fn system() -> Option<&'static System> {
    SYSTEM.get()
}

/// Upper-half Rust begins here, on the boot stack: `tree` is what the firmware left in x0.
#[expect(unsafe_code, reason = "the name is how boot.s finds it")]
#[unsafe(no_mangle)]
extern "C" fn springboard_main(tree: u64, image_pa: u64) -> ! {
    cpu::init_boot_core();
    mm::early_init(image_pa);
    let bytes = mm::device_tree(tree);
    let blob = bytes
        .first_chunk()
        .and_then(boards::magic_ok)
        .and_then(|size| bytes.get(..size));
    let Some(blob) = blob else {
        early_console(None);
        println!("\nspringboard: there is no device tree at x0 = {tree:#x}");
        println!(
            "  the boot loader has to pass one: QEMU's raspi machines need -dtb FILE (`cargo xtask run` gives it),"
        );
        println!("  a Pi's firmware needs its bcm27xx-*.dtb beside kernel8.img");
        exit::exit(2)
    };
    let mut machine = match Machine::from_fdt(blob) {
        Ok(machine) => machine,
        Err(e) => {
            early_console(Some(blob));
            println!("\nspringboard: {e}");
            exit::exit(2)
        }
    };
    // The boot core is core 0, wherever the tree lists it.
    match machine.cpus.iter().position(|c| c.mpidr == arch::mpidr()) {
        Some(at) => machine.cpus.swap(0, at),
        None => {
            early_console(Some(blob));
            println!(
                "\nspringboard: the device tree: /cpus has no node for this core, mpidr {:#x}",
                arch::mpidr()
            );
            exit::exit(2)
        }
    }
    if let Err(what) = mm::init(&machine, image_pa, Some((tree, blob.len()))) {
        early_console(Some(blob));
        println!("\nspringboard: {what}");
        exit::exit(2)
    }
    let uart = Box::leak(Box::new(Pl011::new(arch::devices::mmio(
        machine.uart.region,
    ))));
    uart.init();
    console::init(uart);
    let options = Options::parse(machine.bootargs);
    if options.semihosting {
        exit::use_semihosting();
    }
    if let Some(conduit) = machine.psci {
        exit::use_psci(Box::leak(Box::new(conduit)));
    }
    let system: &'static System = Box::leak(Box::new(System {
        machine,
        image_pa,
        options,
    }));
    SYSTEM.set(system);
    if let Err(e) = symbols::init() {
        println!("springboard: the image carries no symbols ({e}): build it with cargo xtask");
        exit::exit(2)
    }
    if let Err(e) = timer::init() {
        println!("springboard: {e}");
        exit::exit(2)
    }
    match smp::prepare_core(0) {
        Some((_, idle)) => arch::switch::become_idle(idle, on_idle_stack),
        None => {
            println!("springboard: no memory for the boot core's stacks");
            exit::exit(2)
        }
    }
}

/// The best UART there is, for a message about a machine that cannot be used.
fn early_console(blob: Option<&[u8]>) {
    if let Some(uart) = boards::best_uart(blob, arch::midr())
        && mm::early_device(uart.region)
    {
        let port = Pl011::new(arch::devices::mmio(uart.region));
        port.init();
        console::init_early(port);
    }
}

/// Step 4: this core on its idle task's stack.
extern "C" fn on_idle_stack() -> ! {
    let Some(system) = system() else {
        exit::exit(2)
    };
    timer::enable_event_stream();
    if let Err(e) = arch::devices::init_interrupts(&system.machine) {
        println!("springboard: the interrupt controller: {e}");
        exit::exit(2)
    }
    if let Err(e) = pmu::choose(system.options.counter) {
        println!("springboard: {e}");
        exit::exit(2)
    }
    pmu::start();
    irq::open_exceptions();
    cpu::this_cpu()
        .online
        .store(true, core::sync::atomic::Ordering::Release);
    for line in smp::start_others(&system.machine, system.image_pa) {
        println!("springboard: {line}");
    }
    if !rcu::start() || !slow::start() || sched::spawn("main", main_task).is_none() {
        println!("springboard: no memory for the first tasks");
        exit::exit(2)
    }
    sched::run_idle()
}

/// Step 5: what the command line asks for.
fn main_task() {
    let Some(system) = system() else {
        exit::exit(2)
    };
    let cores = cpu::online().count();
    println!(
        "springboard {}  {}  {cores} core{} EL{}",
        env!("CARGO_PKG_VERSION"),
        system.machine.model,
        if cores == 1 { "" } else { "s" },
        arch::exception_level()
    );
    for word in &system.options.unknown {
        println!(
            "springboard: the command line's `{word}` is not known; see docs/architecture.md, \"Command line\""
        );
    }
    if let Err(e) = hook::init() {
        println!("springboard: hooks: {e}");
        exit::exit(2)
    }
    let code = match system.options.job {
        command_line::Job::Bench => match system.options.suite {
            None => bench::run(&system.options),
            Some("jit") => bench::jit::run(&system.options),
            Some(other) => {
                println!("springboard: suite={other}: the suite that there is is jit");
                2
            }
        },
        command_line::Job::Shell => shell::run(),
        command_line::Job::Test => tests::run(&system.options),
        command_line::Job::Integrity => integrity::run(),
        command_line::Job::Torture => torture::run(&system.options),
        command_line::Job::Crash => crash(system.options.crash.unwrap_or_default()),
    };
    exit::exit(code)
}

/// Goes wrong on purpose; that it comes back is the defect.
fn crash(kind: &str) -> u32 {
    println!("springboard: crash={kind}, on purpose");
    match arch::crash::crash(kind) {
        Some(()) => println!("springboard: crash={kind} went unnoticed"),
        None => {
            println!("springboard: crash= takes {}", arch::crash::names());
        }
    }
    3
}

/// A panic is a defect: it says where, and ends the run.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    arch::trap::begin_report();
    println!("\n*** {info}");
    arch::trap::print_where();
    println!("    stack trace:");
    arch::unwind::print_here();
    arch::trap::print_hooked();
    exit::exit(101)
}
