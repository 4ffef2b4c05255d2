// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine as its device tree describes it: memory, cores, UART, interrupts, what the boot loader left.
#![forbid(unsafe_code)]

use crate::fdt::{Node, Tree};
use crate::irq::InterruptsInfo;
use crate::{BoardError, Pl011, Region, irq};

/// How many regions of memory, and how many reserved ones, there is room for.
pub const MAX_REGIONS: usize = 16;
/// How many cores are used.
pub const MAX_CPUS: usize = 8;

/// Regions, as many as there is room for.
type Regions = heapless::Vec<Region, MAX_REGIONS>;

/// What the kernel has to know of the machine it runs on.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// The root's `model`, or `unknown model`.
    pub model: &'a str,
    /// RAM (Devicetree Specification v0.4, 3.4).
    pub memory: Regions,
    /// RAM that is not ours: the memory reservation block (5.3) and `/reserved-memory` (3.5).
    pub reserved: Regions,
    /// The cores in the tree's order, [`MAX_CPUS`] at most.
    pub cpus: heapless::Vec<Cpu, MAX_CPUS>,
    /// Cores in the tree for which there is no room.
    pub cpus_left_out: usize,
    /// How PSCI is called, if the firmware has it.
    pub psci: Option<Conduit>,
    /// The console.
    pub uart: Uart<'a>,
    /// The interrupt controller.
    pub interrupts: InterruptsInfo,
    /// The EL1 virtual timer's interrupt as its controller counts: an INTID (27 as a rule) on a GIC, a bit of the core's
    /// interrupt source register (3) on the BCM2836's local controller.
    pub timer: u32,
    /// The initial RAM disk, physical (`/chosen`, `linux,initrd-start` and `-end`).
    pub initrd: Option<Region>,
    /// The kernel command line (`/chosen`, `bootargs`); empty if there is none.
    pub bootargs: &'a str,
    /// Size of the tree in bytes.
    pub dtb_size: usize,
}

/// A core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its affinity, as in MPIDR_EL1: Aff3 in bits 39:32, Aff2, Aff1, Aff0 in bits 23:0.
    pub mpidr: u64,
    /// How it is started.
    pub enable: Enable,
}

/// How a core is started (`enable-method`; Devicetree Specification v0.4, 3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enable {
    /// By PSCI's CPU_ON.
    Psci,
    /// It polls this physical address for the address to go to.
    SpinTable(u64),
    /// The tree does not say; the boot core needs none.
    Unknown,
}

/// The instruction that calls PSCI (`method` of the PSCI node).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// HVC: the firmware, or hypervisor, is at EL2.
    Hvc,
    /// SMC: it is at EL3, or at EL2 and traps SMC.
    Smc,
}

/// A serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart<'a> {
    /// Which driver it takes.
    pub kind: UartKind,
    /// Its registers.
    pub region: Region,
    /// Its node's name, or how else it was found.
    pub name: &'a str,
}

/// The UARTs that there is a driver for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// Arm PrimeCell PL011 (DDI 0183), driven by [`Pl011`].
    Pl011,
}

const PL011: &[&str] = &["arm,pl011"];
const PSCI: &[&str] = &["arm,psci-1.0", "arm,psci-0.2"];
const TIMER: &[&str] = &["arm,armv8-timer", "arm,armv7-timer"];
/// Where the EL1 virtual timer stands among a timer's interrupts, if `interrupt-names` does not say (binding arm,arch_timer).
const VIRTUAL_TIMER: usize = 2;

/// A UART that is known to be there without a tree that says so.
struct Guess {
    /// What the root's `compatible` holds, when there is a readable root.
    root: &'static str,
    /// The part number in MIDR_EL1 of an Arm core, when there is none.
    part: Option<u64>,
    uart: Uart<'static>,
}

const fn guess(root: &'static str, part: Option<u64>, start: u64, name: &'static str) -> Guess {
    let region = Region {
        start,
        size: 0x1000,
    };
    let kind = UartKind::Pl011;
    let uart = Uart { kind, region, name };
    Guess { root, part, uart }
}

/// BCM2837 and BCM2711 ARM Peripherals, UART0; QEMU's `virt`. Part numbers: Arm ARM, MIDR_EL1, and the cores' manuals.
const GUESSES: [Guess; 3] = [
    guess(
        "brcm,bcm2837",
        Some(0xd03),
        0x3f20_1000,
        "UART0 of a Pi 3, guessed",
    ),
    guess(
        "brcm,bcm2711",
        Some(0xd08),
        0xfe20_1000,
        "UART0 of a Pi 4, guessed",
    ),
    guess(
        "linux,dummy-virt",
        None,
        0x0900_0000,
        "UART of QEMU's virt, guessed",
    ),
];

impl<'a> Machine<'a> {
    /// Reads a device tree. `blob` is the tree, [`magic_ok`](crate::magic_ok) bytes from where x0 points to.
    ///
    /// # Errors
    /// The first thing found missing or wrong; [`best_uart`] finds a port to report it on.
    pub fn from_fdt(blob: &'a [u8]) -> Result<Self, BoardError> {
        let tree = Tree::new(blob)?;
        tree.verify()?;
        let interrupts = irq::find(tree)?;
        let chosen = tree.node("/chosen");
        let (cpus, cpus_left_out) = cpus(tree)?;
        Ok(Self {
            model: tree
                .node("/")
                .and_then(|root| root.string("model"))
                .unwrap_or("unknown model"),
            memory: memory(tree)?,
            reserved: reserved(tree)?,
            cpus,
            cpus_left_out,
            psci: psci(tree),
            uart: uart(tree).ok_or(BoardError::Missing {
                what: "stdout-path or a PL011 (arm,pl011) that is enabled",
                remedy: "name one in /chosen (on a Pi: dtoverlay=disable-bt in config.txt)",
            })?,
            interrupts,
            timer: timer(tree, &interrupts)?,
            initrd: chosen.as_ref().and_then(initrd),
            bootargs: chosen
                .and_then(|chosen| chosen.string("bootargs"))
                .unwrap_or_default(),
            dtb_size: tree.size,
        })
    }

    /// Every region of registers that the kernel has to map as Device memory.
    pub fn mmio(&self) -> impl Iterator<Item = Region> + use<> {
        core::iter::once(self.uart.region).chain(self.interrupts.regions())
    }
}

/// The UART to report an error on: what a tree names, however damaged it is behind that, or the one that the machine is
/// known to have. `midr` is MIDR_EL1, which tells a Pi 3 from a Pi 4 when there is no tree at all.
///
/// A guess from `midr` is made only where no tree says what the machine is: elsewhere it might write to someone's memory.
pub fn best_uart(blob: Option<&[u8]>, midr: u64) -> Option<Uart<'_>> {
    let tree = blob.and_then(|blob| Tree::new(blob).ok());
    if let Some(uart) = tree.and_then(uart) {
        return Some(uart);
    }
    let root = tree.and_then(|tree| tree.node("/"));
    let named = root.filter(|root| root.property("compatible").is_some());
    let arm = midr >> 24 & 0xff == 0x41;
    let part = midr >> 4 & 0xfff;
    let guess = GUESSES.iter().find(|guess| match &named {
        Some(root) => root.is_compatible(&[guess.root]),
        None => arm && guess.part == Some(part),
    });
    guess.map(|guess| guess.uart)
}

/// A node's first region, if it is large enough for the driver.
fn registers(node: &Node<'_>, least: u64) -> Option<Region> {
    let first = *node.regions().ok()?.first()?;
    (first.size >= least).then_some(first)
}

/// `stdout-path` (3.6) if that is a UART with a driver, else the first one that is enabled: on a Pi `stdout-path` may name
/// the mini UART.
fn uart(tree: Tree<'_>) -> Option<Uart<'_>> {
    let as_uart = |node: Node<'_>| {
        let fits = node.is_compatible(PL011);
        fits.then(|| registers(&node, Pl011::SIZE)).flatten()
    };
    let usable = |node: Node<'_>| node.is_enabled().then(|| as_uart(node)).flatten();
    let chosen = || {
        let path = tree.node("/chosen")?.string("stdout-path")?;
        let path = path.split_once(':').map_or(path, |(path, _options)| path);
        if path.starts_with('/') {
            return tree.node(path);
        }
        tree.node(tree.node("/aliases")?.string(path)?)
    };
    let named = chosen().map(|node| (node.name(), node));
    let all = tree.nodes().map(|node| (node.name(), node));
    let (name, region) = named
        .into_iter()
        .chain(all)
        .find_map(|(name, node)| Some((name, usable(node)?)))?;
    let kind = UartKind::Pl011;
    Some(Uart { kind, region, name })
}

fn add(regions: &mut Regions, region: Region, what: &'static str) -> Result<(), BoardError> {
    if region.size == 0 {
        return Ok(());
    }
    let limit = MAX_REGIONS;
    regions
        .push(region)
        .map_err(|_| BoardError::TooMany { what, limit })
}

/// `/memory` nodes are known by their `device_type` (3.4).
fn memory(tree: Tree<'_>) -> Result<Regions, BoardError> {
    let mut memory = Regions::new();
    let is_memory = |node: &Node<'_>| {
        let typed = node.string("device_type") == Some("memory");
        node.depth() == 1 && (typed || node.base_name() == "memory") && node.is_enabled()
    };
    for node in tree.nodes().filter(is_memory) {
        for region in node.regions()? {
            add(&mut memory, region, "regions of memory")?;
        }
    }
    if memory.is_empty() {
        return Err(BoardError::Missing {
            what: "/memory with a size",
            remedy: "let the boot loader fill it in (QEMU and a Pi's firmware do), or write its reg",
        });
    }
    Ok(memory)
}

fn reserved(tree: Tree<'_>) -> Result<Regions, BoardError> {
    const WHAT: &str = "reserved regions of memory";
    let mut reserved = Regions::new();
    for region in tree.reservations() {
        add(&mut reserved, region, WHAT)?;
    }
    let holds = |parent: Node<'_>| parent.depth() == 1 && parent.name() == "reserved-memory";
    let inside = |node: &Node<'_>| node.is_enabled() && node.parent().is_some_and(holds);
    for node in tree.nodes().filter(inside) {
        for region in node.reg()? {
            add(&mut reserved, region, WHAT)?;
        }
    }
    Ok(reserved)
}

/// The cores (3.8), and how many there was no room for.
fn cpus(tree: Tree<'_>) -> Result<(heapless::Vec<Cpu, MAX_CPUS>, usize), BoardError> {
    let mut cpus = heapless::Vec::new();
    let mut left_out = 0;
    let holds = |parent: Node<'_>| parent.depth() == 1 && parent.name() == "cpus";
    let is_cpu = |node: &Node<'_>| {
        node.base_name() == "cpu" && node.is_enabled() && node.parent().is_some_and(holds)
    };
    for node in tree.nodes().filter(is_cpu) {
        let mpidr = node.reg()?.first().map(|reg| reg.start);
        let mpidr = mpidr.ok_or_else(|| node.bad("reg", "the core's affinity, as in MPIDR_EL1"))?;
        let enable = match node.string("enable-method") {
            Some("psci") => Enable::Psci,
            Some("spin-table") => {
                Enable::SpinTable(node.number("cpu-release-addr").ok_or_else(|| {
                    node.bad("cpu-release-addr", "the address that the core polls")
                })?)
            }
            _ => Enable::Unknown,
        };
        left_out += usize::from(cpus.push(Cpu { mpidr, enable }).is_err());
    }
    if cpus.is_empty() {
        return Err(BoardError::Missing {
            what: "/cpus with a cpu",
            remedy: "describe the cores there, each with reg and enable-method",
        });
    }
    Ok((cpus, left_out))
}

fn psci(tree: Tree<'_>) -> Option<Conduit> {
    let node = tree.nodes().find(|node| node.is_compatible(PSCI))?;
    match node.string("method")? {
        "hvc" => Some(Conduit::Hvc),
        "smc" => Some(Conduit::Smc),
        _ => None,
    }
}

fn timer(tree: Tree<'_>, interrupts: &InterruptsInfo) -> Result<u32, BoardError> {
    let node = tree.nodes().find(|node| node.is_compatible(TIMER));
    let node = node.ok_or(BoardError::Missing {
        what: "timer (arm,armv8-timer)",
        remedy: "describe the generic timer, with its interrupts",
    })?;
    let named = node
        .strings("interrupt-names")
        .position(|name| name == "virt");
    let index = named.unwrap_or(VIRTUAL_TIMER);
    let cells = interrupts.cells();
    let mut words = node.cells("interrupts").skip(index.saturating_mul(cells));
    let specifier = [words.next(), words.next()];
    interrupts.private(specifier).ok_or_else(|| {
        node.bad(
            "interrupts",
            "a private interrupt for the virtual timer, the third",
        )
    })
}

fn initrd(chosen: &Node<'_>) -> Option<Region> {
    let start = chosen.number("linux,initrd-start")?;
    let size = chosen.number("linux,initrd-end")?.checked_sub(start)?;
    (size > 0).then_some(Region { start, size })
}
