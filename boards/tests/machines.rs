// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every field read from the trees of QEMU's `virt` (by QEMU itself) and of the Pis, and what damaged trees lead to.

use boards::irq::{InterruptsInfo, MAX_REDIST};
use boards::{
    BoardError, Conduit, Enable, MAX_CPUS, Machine, Region, UartKind, best_uart, magic_ok, trees,
};
use std::process::{Command, Stdio};
use vm_fdt::FdtWriter;

const CORTEX_A53: u64 = 0x410f_d034;
const CORTEX_A72: u64 = 0x410f_d083;

fn region(start: u64, size: u64) -> Region {
    Region { start, size }
}

/// QEMU's tree for `virt`, or `None`, and a line that says so, where there is no QEMU.
fn virt(gic: u32, el2: bool, cpus: usize) -> Option<Vec<u8>> {
    const QEMU: &str = "qemu-system-aarch64";
    let file = std::env::temp_dir().join(format!(
        "springboard-virt-{}-{gic}-{el2}-{cpus}.dtb",
        std::process::id()
    ));
    let el2 = if el2 { "on" } else { "off" };
    let machine = format!(
        "virt,gic-version={gic},virtualization={el2},dumpdtb={}",
        file.display()
    );
    let cpus = cpus.to_string();
    let ran = Command::new(QEMU)
        .args([
            "-M",
            &machine,
            "-cpu",
            "cortex-a72",
            "-smp",
            &cpus,
            "-m",
            "768M",
        ])
        .args(["-nic", "none", "-nographic"])
        .stdout(Stdio::null())
        .status();
    match ran {
        Err(error) => {
            eprintln!("SKIPPED: {QEMU} does not start ({error}); install it to test its trees");
            None
        }
        Ok(status) => {
            assert!(status.success(), "{QEMU} -M {machine}: {status}");
            let tree = std::fs::read(&file).expect("QEMU wrote the tree");
            std::fs::remove_file(&file).expect("the tree is removed");
            Some(tree)
        }
    }
}

#[test]
fn qemu_virt_field_by_field() {
    for (gic, el2, cpus) in [(2, false, 1), (2, true, 4), (3, false, 8), (3, true, 2)] {
        let Some(tree) = virt(gic, el2, cpus) else {
            return;
        };
        let machine = Machine::from_fdt(&tree).expect("a complete tree");
        assert_eq!(machine.model, "linux,dummy-virt");
        assert_eq!(machine.memory, [region(0x4000_0000, 768 << 20)]);
        assert_eq!(machine.reserved, []);
        assert_eq!(machine.cpus.len(), cpus);
        for (index, cpu) in machine.cpus.iter().enumerate() {
            assert_eq!(cpu.mpidr, index as u64);
            // A single core needs no starting.
            let enable = if cpus > 1 {
                Enable::Psci
            } else {
                Enable::Unknown
            };
            assert_eq!(cpu.enable, enable);
        }
        assert_eq!(machine.cpus_left_out, 0);
        let conduit = if el2 { Conduit::Smc } else { Conduit::Hvc };
        assert_eq!(machine.psci, Some(conduit));
        assert_eq!(machine.uart.kind, UartKind::Pl011);
        assert_eq!(machine.uart.region, region(0x0900_0000, 0x1000));
        assert_eq!(machine.uart.name, "pl011@9000000");
        let dist = region(0x0800_0000, 0x1_0000);
        let redist = |index| (index == 0).then_some(region(0x080a_0000, 0xf6_0000));
        let expected = match gic {
            2 => InterruptsInfo::GicV2 {
                dist,
                cpu: region(0x0801_0000, 0x1_0000),
            },
            _ => InterruptsInfo::GicV3 {
                dist,
                redist: std::array::from_fn::<_, MAX_REDIST, _>(redist),
            },
        };
        assert_eq!(machine.interrupts, expected);
        assert_eq!(machine.timer, 27);
        assert_eq!(machine.initrd, None);
        assert_eq!(machine.bootargs, "");
        assert_eq!(machine.dtb_size, tree.len());
        assert_eq!(machine.mmio().count(), 3);
    }
}

#[test]
fn cores_beyond_the_limit_are_counted() {
    let Some(tree) = virt(3, false, MAX_CPUS + 3) else {
        return;
    };
    let machine = Machine::from_fdt(&tree).expect("a complete tree");
    assert_eq!((machine.cpus.len(), machine.cpus_left_out), (MAX_CPUS, 3));
}

#[test]
fn the_pis_field_by_field() {
    let bcm2836 = InterruptsInfo::Bcm2836 {
        local: region(0x4000_0000, 0x100),
        peripherals: Some(region(0x3f00_b200, 0x200)),
    };
    let gic400 = InterruptsInfo::GicV2 {
        dist: region(0xff84_1000, 0x1000),
        cpu: region(0xff84_2000, 0x2000),
    };
    let pi3 = trees::raspi3b().expect("a tree");
    let pi4 = trees::raspi4b().expect("a tree");
    for (tree, model, uart, interrupts, timer) in [
        (
            &pi3,
            "Raspberry Pi 3 Model B (QEMU)",
            0x3f20_1000,
            bcm2836,
            3,
        ),
        (
            &pi4,
            "Raspberry Pi 4 Model B (QEMU)",
            0xfe20_1000,
            gic400,
            27,
        ),
    ] {
        let machine = Machine::from_fdt(tree).expect("a complete tree");
        assert_eq!(machine.model, model);
        assert_eq!(machine.memory, [region(0, 0x3b40_0000)]);
        assert_eq!(machine.reserved, [region(0, 0x1000)]);
        let cpus: Vec<_> = machine
            .cpus
            .iter()
            .map(|cpu| (cpu.mpidr, cpu.enable))
            .collect();
        let expected = [0xd8, 0xe0, 0xe8, 0xf0].map(Enable::SpinTable);
        assert!(cpus.into_iter().eq((0..4).zip(expected)));
        assert_eq!(machine.psci, None);
        assert_eq!(machine.uart.region, region(uart, 0x200));
        assert_eq!(machine.uart.name, "serial@7e201000");
        assert_eq!(machine.interrupts, interrupts);
        assert_eq!(machine.timer, timer);
        assert_eq!(machine.dtb_size, tree.len());
        let mapped: Vec<_> = machine.mmio().collect();
        assert_eq!(mapped.len(), 3);
        assert_eq!(mapped[0], machine.uart.region);
    }
}

/// A tree of nodes, nested by depth: what a firmware may pass, and what it should not.
struct Builder(FdtWriter, Vec<vm_fdt::FdtWriterNode>);

impl Builder {
    fn new() -> Self {
        Self(FdtWriter::new().expect("a writer"), Vec::new()).node("")
    }
    fn node(mut self, name: &str) -> Self {
        self.1.push(self.0.begin_node(name).expect("a node"));
        self
    }
    fn up(mut self) -> Self {
        let node = self.1.pop().expect("an open node");
        self.0.end_node(node).expect("an end");
        self
    }
    fn text(mut self, name: &str, value: &str) -> Self {
        self.0.property_string(name, value).expect("a string");
        self
    }
    fn cells(mut self, name: &str, value: &[u32]) -> Self {
        self.0.property_array_u32(name, value).expect("cells");
        self
    }
    fn finish(mut self) -> Vec<u8> {
        while !self.1.is_empty() {
            self = self.up();
        }
        self.0.finish().expect("a tree")
    }
    fn memory(self) -> Self {
        self.node("memory@0")
            .cells("reg", &[0, 0, 0, 0x1000_0000])
            .up()
    }
    fn cpu(self) -> Self {
        let cpus = self.node("cpus").cells("#address-cells", &[2]);
        cpus.cells("#size-cells", &[0])
            .node("cpu@103")
            .cells("reg", &[1, 0x103])
            .up()
            .up()
    }
    fn gic(self) -> Self {
        let gic = self.node("intc@0").text("compatible", "arm,cortex-a15-gic");
        gic.cells("reg", &[0, 0x1_0000, 0, 0x1000, 0, 0x2_0000, 0, 0x2000])
            .up()
    }
    fn timer(self) -> Self {
        let timer = self.node("timer").text("compatible", "arm,armv8-timer");
        timer
            .cells("interrupts", &[1, 13, 8, 1, 14, 8, 1, 11, 8, 1, 10, 8])
            .up()
    }
    fn uart(self, name: &str, start: u32, status: &str) -> Self {
        let uart = self.node(name).text("compatible", "arm,pl011");
        uart.cells("reg", &[0, start, 0, 0x1000])
            .text("status", status)
            .up()
    }
    fn two_cells(self) -> Self {
        self.cells("#address-cells", &[2])
            .cells("#size-cells", &[2])
    }
}

#[test]
fn what_a_boot_loader_adds() {
    let tree = Builder::new().two_cells().memory().cpu().gic().timer();
    let tree = tree
        .uart("serial@1000", 0x1000, "okay")
        .uart("serial@2000", 0x2000, "okay");
    let tree = tree.node("aliases").text("console", "/serial@2000").up();
    let tree = tree
        .node("chosen")
        .text("stdout-path", "console:115200n8")
        .text("bootargs", "shell quiet");
    let tree = tree
        .cells("linux,initrd-start", &[0x100])
        .cells("linux,initrd-end", &[0, 0x180])
        .up();
    let tree = tree.node("reserved-memory").two_cells();
    let tree = tree.node("no-address").cells("size", &[0, 1]).up();
    let tree = tree
        .node("off@3")
        .cells("reg", &[0, 3, 0, 3])
        .text("status", "disabled")
        .up();
    let tree = tree
        .node("on@4")
        .cells("reg", &[0, 4, 0, 5])
        .up()
        .up()
        .finish();
    let machine = Machine::from_fdt(&tree).expect("a complete tree");
    assert_eq!(machine.model, "unknown model");
    assert_eq!(machine.bootargs, "shell quiet");
    assert_eq!(machine.initrd, Some(region(0x100, 0x80)));
    assert_eq!(machine.reserved, [region(4, 5)]);
    assert_eq!(machine.uart.region.start, 0x2000);
    let [cpu] = machine.cpus[..] else {
        panic!("one core, not {:?}", machine.cpus)
    };
    assert_eq!((cpu.mpidr, cpu.enable), (0x1_0000_0103, Enable::Unknown));
}

type Part = fn(Builder) -> Builder;

#[test]
fn a_message_names_what_is_missing() {
    let whole = |leave_out: &str| {
        let mut tree = Builder::new().two_cells();
        let parts: [(&str, Part); 5] = [
            ("/memory", Builder::memory),
            ("/cpus", Builder::cpu),
            ("interrupt controller", Builder::gic),
            ("timer", Builder::timer),
            ("stdout-path or a PL011", |it| {
                it.uart("serial@1000", 0x1000, "okay")
            }),
        ];
        for (_, add) in parts.iter().filter(|(name, _)| *name != leave_out) {
            tree = add(tree);
        }
        (tree.finish(), parts.map(|(name, _)| name))
    };
    let (complete, parts) = whole("nothing");
    assert_eq!(Machine::from_fdt(&complete).map(|it| it.timer), Ok(27));
    for part in parts {
        let (tree, _) = whole(part);
        let error = Machine::from_fdt(&tree).expect_err(part);
        assert!(error.to_string().contains(part), "{part}: {error}");
        let uart = best_uart(Some(&tree), 0).map(|uart| uart.region.start);
        let there = part != "stdout-path or a PL011";
        assert_eq!(uart, there.then_some(0x1000), "without {part}");
    }
}

#[test]
fn properties_that_are_no_use_are_named() {
    let tree = |cells: &[u32]| {
        let tree = Builder::new().two_cells().memory().cpu().timer();
        let gic = tree
            .node("intc@0")
            .text("compatible", "arm,gic-400")
            .cells("reg", cells)
            .up();
        gic.uart("serial@1000", 0x1000, "okay").finish()
    };
    // Cut off, one region of two, too small, an address that overflows.
    for reg in [
        &[0, 0x1000, 0][..],
        &[0, 0x1000, 0, 0x1000],
        &[0, 0x1000, 0, 0x1000, 0, 0x2000, 0, 4],
        &[u32::MAX, u32::MAX, 0, 0x1000, 0, 0x2000, 0, 0x1000],
    ] {
        let tree = tree(reg);
        let error = Machine::from_fdt(&tree).expect_err("no use").to_string();
        assert!(
            error.contains("reg of node \"intc@0\""),
            "{reg:x?}: {error}"
        );
    }
}

#[test]
fn addresses_are_translated_only_within_ranges() {
    let bus = |ranges: Option<&[u32]>, start: u32| {
        let bus = Builder::new().two_cells().node("soc");
        let bus = bus.cells("#address-cells", &[1]).cells("#size-cells", &[1]);
        let bus = match ranges {
            Some(ranges) => bus.cells("ranges", ranges),
            None => bus,
        };
        let uart = bus.node("serial@1").text("compatible", "arm,pl011");
        let tree = uart.cells("reg", &[start, 0x100]).finish();
        best_uart(Some(&tree), 0).map(|uart| uart.region.start)
    };
    // Two ranges of 0x1000 bytes, the second to beyond 4 GiB.
    let two = [0x1000, 0, 0x8000, 0x1000, 0x4000, 2, 0x5000, 0x1000];
    for (start, expected) in [
        (0x1000, Some(0x8000)),
        (0x1f00, Some(0x8f00)),
        (0x1f01, None),
        (0x0fff, None),
        (0x4010, Some(0x2_0000_5010)),
        (0x5000, None),
    ] {
        assert_eq!(bus(Some(&two), start), expected, "{start:#x}");
    }
    assert_eq!(bus(Some(&[]), 0x1f01), Some(0x1f01), "empty: one to one");
    assert_eq!(
        bus(None, 0x1f01),
        None,
        "none: the CPU does not reach this bus"
    );
}

#[test]
fn the_best_uart_of_a_bad_tree() {
    let start = |tree: Option<&[u8]>, midr| best_uart(tree, midr).map(|uart| uart.region.start);
    // No tree: by core.
    assert_eq!(start(None, CORTEX_A53), Some(0x3f20_1000));
    assert_eq!(start(None, CORTEX_A72), Some(0xfe20_1000));
    assert_eq!(start(None, 0), None);
    // Not by the part number of another implementer.
    assert_eq!(start(None, CORTEX_A53 & 0xff_ffff), None);
    // ATAGS.
    assert_eq!(magic_ok(&[5, 0, 0, 0, 1, 0, 0x41, 0x54]), None);
    // A tree that says what it is: then the core does not count.
    let tree = Builder::new()
        .text("compatible", "linux,dummy-virt")
        .finish();
    assert_eq!(start(Some(&tree), CORTEX_A72), Some(0x0900_0000));
    let tree = Builder::new().text("compatible", "acme,toaster").finish();
    assert_eq!(start(Some(&tree), CORTEX_A72), None);
    // A port that is switched off is not used, the next one is.
    let tree = Builder::new()
        .two_cells()
        .uart("serial@1000", 0x1000, "disabled");
    let tree = tree.uart("serial@2000", 0x2000, "okay").finish();
    assert_eq!(start(Some(&tree), CORTEX_A72), Some(0x2000));
    // Damaged behind the port and before it; cut off, which takes the names of all properties.
    let mut tree = trees::raspi4b().expect("a tree");
    let uart = find(&tree, b"serial@7e201000\0\0\0\0\x03");
    let behind = uart + find(&tree[uart..], b"okay\0\0\0\0\0\0\0\x02") + 8;
    tree[behind] = 0xff;
    let damage = BoardError::Structure { offset: behind };
    assert_eq!(Machine::from_fdt(&tree).err(), Some(damage));
    assert_eq!(start(Some(&tree), CORTEX_A53), Some(0xfe20_1000));
    // The root's `compatible` is still there.
    tree[uart - 4] = 0xff;
    assert_eq!(start(Some(&tree), CORTEX_A53), Some(0xfe20_1000));
    let cut = &tree[..uart];
    let (have, want) = (uart, tree.len());
    let truncated = BoardError::Truncated { have, want };
    assert_eq!(Machine::from_fdt(cut).err(), Some(truncated));
    assert_eq!(start(Some(cut), CORTEX_A53), Some(0x3f20_1000));
}

#[test]
fn magic_gives_the_size_but_not_any_size() {
    let tree = trees::raspi3b().expect("a tree");
    let first = |tree: &[u8]| <[u8; 8]>::try_from(&tree[..8]).expect("eight bytes");
    assert_eq!(magic_ok(&first(&tree)), Some(tree.len()));
    let mut huge = first(&tree);
    huge[4] = 0xff;
    assert_eq!(magic_ok(&huge), Some(2 << 20));
}

/// Names beyond the specification's 31 letters are common and no reason to refuse a tree.
#[test]
fn long_names_are_read() {
    let tree = trees::raspi3b().expect("a tree");
    let mut long = tree.clone();
    // The names block comes last: put another name behind it, and let the property point there.
    let (strings, size) = (word(&tree, 3), word(&tree, 8));
    let name = b"a-property-name-that-is-longer-than-thirty-one-letters\0";
    long.extend(name);
    set(&mut long, 1, tree.len() as u32 + name.len() as u32);
    set(&mut long, 8, size + name.len() as u32);
    // The first property: the root's empty name and its BEGIN_NODE, PROP and length come before this.
    let property = word(&tree, 2) as usize / 4 + 4;
    let name = strings as usize + word(&tree, property) as usize;
    assert_eq!(&tree[name..name + 6], b"model\0");
    set(&mut long, property, tree.len() as u32 - strings);
    assert_eq!(
        Machine::from_fdt(&long).map(|it| it.model),
        Ok("unknown model")
    );
}

fn find(bytes: &[u8], wanted: &[u8]) -> usize {
    let mut windows = bytes.windows(wanted.len());
    windows.position(|it| it == wanted).expect("it is there")
}

fn word(bytes: &[u8], index: usize) -> u32 {
    u32::from_be_bytes(bytes[index * 4..][..4].try_into().expect("four bytes"))
}

fn set(bytes: &mut [u8], index: usize, value: u32) {
    bytes[index * 4..][..4].copy_from_slice(&value.to_be_bytes());
}

/// xorshift64: the same trees in every run.
fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize >> 8
}

fn read_all(tree: &[u8]) -> Option<usize> {
    let uart = best_uart(Some(tree), CORTEX_A72);
    let answer = match Machine::from_fdt(tree) {
        Ok(machine) => {
            assert!(
                machine
                    .mmio()
                    .all(|it| it.start.checked_add(it.size).is_some())
            );
            None
        }
        Err(error) => Some(error.to_string().len()),
    };
    assert!(uart.is_none_or(|uart| uart.region.size >= 0x48));
    answer
}

#[test]
fn no_bytes_make_it_panic() {
    let mut all = vec![
        trees::raspi3b().expect("a tree"),
        trees::raspi4b().expect("a tree"),
    ];
    // QEMU's trees are mostly padding; the header says where the names end.
    all.extend(
        [virt(2, true, 4), virt(3, false, 2)]
            .into_iter()
            .flatten()
            .map(|mut tree| {
                let end = word(&tree, 3) + word(&tree, 8);
                tree.truncate(end as usize);
                set(&mut tree, 1, end);
                tree
            }),
    );
    let mut state = 0x5eed;
    let mut refused = 0;
    for tree in all {
        assert_eq!(read_all(&tree), None, "whole");
        for length in (0..tree.len()).step_by(1 + tree.len() / 2000) {
            assert!(read_all(&tree[..length]).is_some(), "cut to {length}");
        }
        for round in 0..3000 {
            let mut bad = tree.clone();
            for _ in 0..=round % 8 {
                // One corruption in four hits the header.
                let reach = if round % 4 == 0 { 40 } else { bad.len() };
                let at = random(&mut state) % reach;
                bad[at] = random(&mut state) as u8;
            }
            refused += usize::from(read_all(&bad).is_some());
        }
    }
    assert!(
        refused > 1000,
        "{refused} damaged trees were refused: the damage does nothing"
    );
    assert!(read_all(&[]).is_some());
}
