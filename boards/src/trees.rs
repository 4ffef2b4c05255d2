// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device trees for QEMU's `raspi3b` and `raspi4b`, which start without one: as much as the kernel reads.
//!
//! Written from BCM2837 (BCM2836 ARM-local peripherals, BCM2835 ARM Peripherals) and BCM2711 ARM Peripherals, and from the
//! bindings named. QEMU's `-dtb` replaces `/memory` by what the machine has, and adds command line and initrd to `/chosen`. A
//! real Pi's firmware passes its own tree.
#![forbid(unsafe_code)]

use vm_fdt::{Error, FdtReserveEntry, FdtWriter};

/// Phandle of the interrupt controller.
const INTERRUPTS: u32 = 1;
/// What the firmware keeps in page 0: the code that the other cores wait in, and their spin table.
const FIRMWARE: (u64, u64) = (0, 0x1000);
/// Where core 0's release address lies in it; the others follow, eight bytes each.
const SPIN_TABLE: u64 = 0xd8;

/// What is different between two machines.
struct Pi {
    model: &'static str,
    /// The root's `compatible`.
    compatible: &'static [&'static str],
    /// RAM, start and size.
    memory: [u64; 2],
    core: &'static str,
    /// `/soc` ranges: bus address, physical address, size.
    ranges: &'static [[u32; 3]],
    controller: Controller,
    timer: &'static str,
    /// Of the timer: secure physical, physical, virtual, hypervisor.
    timer_interrupts: &'static [u32],
}

/// The interrupt controller; addresses are those of the bus.
struct Controller {
    compatible: &'static str,
    address: u32,
    /// Offset from `address`, and size.
    registers: &'static [[u32; 2]],
    cells: u32,
    /// The peripherals' controller behind it, if that is another one.
    behind: Option<u32>,
}

/// Offset of the first PL011 on the peripheral bus, which is at 0x7e00_0000 (BCM2835 ARM Peripherals, 13.4).
const UART0: u32 = 0x7e20_1000;
/// Peripheral interrupts, level, active high.
const LEVEL_HIGH: u32 = 4;
/// Private peripheral interrupt, for all four cores, level, active low (binding arm,gic).
const PPI: u32 = 1;
const LEVEL_LOW_4: u32 = 0xf08;

const RASPI3B: Pi = Pi {
    model: "Raspberry Pi 3 Model B (QEMU)",
    compatible: &["raspberrypi,3-model-b", "brcm,bcm2837"],
    // 1 GiB, less what a Pi's firmware gives the VideoCore.
    memory: [0, 0x3b40_0000],
    core: "arm,cortex-a53",
    ranges: &[
        [0x7e00_0000, 0x3f00_0000, 0x0100_0000],
        [0x4000_0000, 0x4000_0000, 0x0000_1000],
    ],
    controller: Controller {
        compatible: "brcm,bcm2836-l1-intc",
        address: 0x4000_0000,
        registers: &[[0, 0x100]],
        cells: 2,
        behind: Some(0x7e00_b200),
    },
    timer: "arm,armv7-timer",
    timer_interrupts: &[0, LEVEL_HIGH, 1, LEVEL_HIGH, 3, LEVEL_HIGH, 2, LEVEL_HIGH],
};

const RASPI4B: Pi = Pi {
    model: "Raspberry Pi 4 Model B (QEMU)",
    compatible: &["raspberrypi,4-model-b", "brcm,bcm2711"],
    // The first GiB, less what a Pi's firmware gives the VideoCore.
    memory: [0, 0x3b40_0000],
    core: "arm,cortex-a72",
    ranges: &[
        [0x7e00_0000, 0xfe00_0000, 0x0180_0000],
        [0x4000_0000, 0xff80_0000, 0x0080_0000],
    ],
    controller: Controller {
        compatible: "arm,gic-400",
        address: 0x4004_1000,
        registers: &[[0, 0x1000], [0x1000, 0x2000]],
        cells: 3,
        behind: None,
    },
    timer: "arm,armv8-timer",
    timer_interrupts: &[
        PPI,
        13,
        LEVEL_LOW_4,
        PPI,
        14,
        LEVEL_LOW_4,
        PPI,
        11,
        LEVEL_LOW_4,
        PPI,
        10,
        LEVEL_LOW_4,
    ],
};

/// A device tree blob for QEMU's `raspi3b`.
///
/// # Errors
/// The writer refuses a name or a value.
pub fn raspi3b() -> Result<Vec<u8>, Error> {
    write(&RASPI3B)
}

/// A device tree blob for QEMU's `raspi4b`.
///
/// # Errors
/// The writer refuses a name or a value.
pub fn raspi4b() -> Result<Vec<u8>, Error> {
    write(&RASPI4B)
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}

fn write(pi: &Pi) -> Result<Vec<u8>, Error> {
    let (start, size) = FIRMWARE;
    let mut fdt = FdtWriter::new_with_mem_reserv(&[FdtReserveEntry::new(start, size)?])?;
    let root = fdt.begin_node("")?;
    fdt.property_string("model", pi.model)?;
    fdt.property_string_list("compatible", strings(pi.compatible))?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", INTERRUPTS)?;

    let serial = format!("serial@{UART0:x}");
    let path = format!("/soc/{serial}");
    let aliases = fdt.begin_node("aliases")?;
    fdt.property_string("serial0", &path)?;
    fdt.end_node(aliases)?;
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("stdout-path", "serial0:115200n8")?;
    fdt.end_node(chosen)?;

    let memory = fdt.begin_node("memory@0")?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &pi.memory)?;
    fdt.end_node(memory)?;

    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for number in 0..4 {
        let cpu = fdt.begin_node(&format!("cpu@{number}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", pi.core)?;
        fdt.property_u32("reg", number)?;
        fdt.property_string("enable-method", "spin-table")?;
        fdt.property_u64("cpu-release-addr", SPIN_TABLE + 8 * u64::from(number))?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;

    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", pi.timer)?;
    fdt.property_array_u32("interrupts", pi.timer_interrupts)?;
    fdt.end_node(timer)?;

    let soc = fdt.begin_node("soc")?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 1)?;
    // The root counts addresses in two cells.
    let ranges: Vec<u32> = pi
        .ranges
        .iter()
        .flat_map(|[bus, physical, size]| [*bus, 0, *physical, *size])
        .collect();
    fdt.property_array_u32("ranges", &ranges)?;

    let controller = &pi.controller;
    let name = format!("interrupt-controller@{:x}", controller.address);
    let node = fdt.begin_node(&name)?;
    fdt.property_string("compatible", controller.compatible)?;
    let registers = controller.registers.iter();
    let registers: Vec<u32> = registers
        .flat_map(|[offset, size]| [controller.address + offset, *size])
        .collect();
    fdt.property_array_u32("reg", &registers)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", controller.cells)?;
    fdt.property_phandle(INTERRUPTS)?;
    fdt.end_node(node)?;
    if let Some(address) = controller.behind {
        let node = fdt.begin_node(&format!("interrupt-controller@{address:x}"))?;
        fdt.property_string("compatible", "brcm,bcm2836-armctrl-ic")?;
        fdt.property_array_u32("reg", &[address, 0x200])?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 2)?;
        fdt.property_array_u32("interrupts", &[8, LEVEL_HIGH])?;
        fdt.end_node(node)?;
    }

    let node = fdt.begin_node(&serial)?;
    fdt.property_string_list("compatible", strings(&["arm,pl011", "arm,primecell"]))?;
    fdt.property_array_u32("reg", &[UART0, 0x200])?;
    fdt.property_string("status", "okay")?;
    fdt.end_node(node)?;

    fdt.end_node(soc)?;
    fdt.end_node(root)?;
    fdt.finish()
}
