// SPDX-License-Identifier: MIT OR Apache-2.0
//! The drivers against registers that are plain memory: what they write where.
#![forbid(unsafe_code)]

use super::*;
use crate::sysreg::file;
use crate::{Enable, MAX_CPUS};

const TIMER: u32 = 27;
/// Slots of the host's register file.
const MPIDR: usize = 0;
const IAR1: usize = 1;
const EOIR1: usize = 2;
const SRE: usize = 5;
const IGRPEN1: usize = 6;
const PMR: usize = 7;
const SGI1R: usize = 8;

/// As a GIC in the given view compares: Non-secure software's values are halved and moved up.
fn moved(value: u8) -> u8 {
    0x80 | value >> 1
}

#[test]
fn priorities_are_right_in_every_view() {
    let same: fn(u8) -> u8 = |value| value;
    // Priorities and mask as written; both moved; only the priorities moved (GICv3 with SCR_EL3.FIQ clear).
    for (priority, mask) in [(same, same), (moved, moved), (moved, same)] {
        // Levels: 256 down to 16, and 8 to Non-secure software whose GIC has 16.
        for levels in [0xff, 0xf8, 0xf0] {
            let stored = |value: u8| priority(value) & levels;
            let let_through = |value, limit: u8| stored(value) < mask(limit) & levels;
            assert!(let_through(PRIORITY_NMI, PMR_MASKED));
            assert!(!let_through(PRIORITY_NORMAL, PMR_MASKED));
            assert!(let_through(PRIORITY_NORMAL, PMR_OPEN));
        }
    }
    assert_eq!(priorities(4).to_le_bytes(), [0xc0, 0xc0, 0xc0, 0x20]);
    assert_eq!(priorities(8).to_le_bytes(), [0xc0; 4]);
}

#[test]
fn gicv2_writes_what_it_should() {
    let (dist, cpu) = (Mmio::fake(0x1000), Mmio::fake(0x1000));
    let gic = GicV2::new(dist, cpu, TIMER);
    // 64 interrupts; this core is bit 2 in target lists.
    dist.write(0x004, 1);
    dist.write(0x800, 0x0404_0404);
    gic.init().expect("init");
    gic.init_core(1).expect("init_core");
    assert_eq!((dist.read(0x000), cpu.read(0x00)), (1, 1));
    assert_eq!(dist.read(0x184), u32::MAX, "SPIs are off");
    assert_eq!(dist.read(0x188), 0, "no further than ITLinesNumber");
    assert_eq!(dist.read(0x100), 0x0800_00ff);
    assert_eq!(dist.read(0x404), 0x20c0_c0c0);
    assert_eq!(cpu.read(0x04), 0xf0);
    assert!(
        dist.read(0x080) == 0 && dist.read(0x084) == 0,
        "groups are the firmware's"
    );

    gic.send_ipi(1, 3);
    assert_eq!(dist.read(0xf00), 4 << 16 | 3);
    gic.send_nmi(1);
    assert_eq!(dist.read(0xf00), 4 << 16 | 7);
    gic.send_ipi(1, 7);
    assert_eq!(dist.read(0xf00), 4 << 16 | 7, "IPI 7 would be the NMI");
    gic.send_ipi(0, 0);
    assert_eq!(
        dist.read(0xf00),
        2 << 24,
        "a core without a bit is this one"
    );

    // SGI 5 from core 3: EOIR gets the sender back.
    cpu.write(0x0c, 3 << 10 | 5);
    let (interrupt, token) = gic.acknowledge();
    assert_eq!(interrupt, Interrupt::Ipi(5));
    gic.end(token);
    assert_eq!(cpu.read(0x10), 3 << 10 | 5);
    for (iar, expected) in [
        (7, Interrupt::Nmi),
        (27, Interrupt::Timer),
        (33, Interrupt::Device(33)),
        (1023, Interrupt::Spurious),
    ] {
        cpu.write(0x0c, iar);
        let (interrupt, token) = gic.acknowledge();
        assert_eq!(interrupt, expected);
        gic.end(token);
        let ended = if iar < 1020 { iar } else { 33 };
        assert_eq!(cpu.read(0x10), ended);
    }
    assert!(matches!(gic.masking(), Masking::GiccPmr(at) if at == cpu.address(4, 4)));
    let limit = MAX_CPUS;
    assert_eq!(gic.init_core(8), Err(IrqError::NoCore { cpu: 8, limit }));
}

/// Two regions: the first of plain redistributors, the second, with virtual LPIs, of larger ones.
fn redistributors() -> [Option<Mmio>; MAX_REDIST] {
    let (small, large) = (Mmio::fake(0x4_0000), Mmio::fake(0x8_0000));
    let typer = |region: Mmio, at: usize, affinity: u64, flags| {
        region.set64(at + 8, affinity << 32 | flags);
    };
    typer(small, 0, 0x0000_0000, 0);
    typer(small, 0x2_0000, 0x0000_0001, 1 << 4);
    typer(large, 0, 0x0000_0100, 1 << 1);
    // What happens to be in the frame for virtual LPIs is no GICR_TYPER.
    typer(large, 0x2_0000, 0x0203_0412, 1 << 4);
    typer(large, 0x4_0000, 0x0203_0412, 1 << 1 | 1 << 4);
    [Some(small), Some(large), None, None]
}

fn cpu(mpidr: u64) -> Cpu {
    let enable = Enable::Psci;
    Cpu { mpidr, enable }
}

#[test]
fn gicv3_finds_each_cores_redistributor() {
    let _lock = file::lock();
    let [small, large, ..] = redistributors();
    let (small, large) = (small.expect("region"), large.expect("region"));
    let dist = Mmio::fake(0x1_0000);
    dist.write(4, 2);
    // MPIDR_EL1 has bits that are no affinity.
    let cpus = [cpu(0x8000_0001), cpu(0x02_0003_0412), cpu(0)];
    let gic = GicV3::new(dist, [Some(small), Some(large), None, None], &cpus, TIMER).expect("gic");
    small.write(0x2_0014, 1 << 1);
    gic.init().expect("init");
    gic.init_core(0).expect("init_core");
    assert_eq!(dist.read(0), 0x12);
    assert_eq!((dist.read(0x88), dist.read(0x8c)), (u32::MAX, 0));
    let sgi = 0x2_0000 + 0x1_0000;
    assert_eq!(small.read(0x2_0014), 0, "awake");
    assert_eq!(small.read(sgi + 0x080), u32::MAX);
    assert_eq!(small.read(sgi + 0x100), 0x0800_00ff);
    assert_eq!(small.read(sgi + 0x404), 0x20c0_c0c0);
    assert_eq!(small.read(0x1_0100), 0, "not another core's");
    assert_eq!([SRE, PMR, IGRPEN1].map(file::get), [1, 0xf0, 1]);
    gic.init_core(1).expect("init_core");
    assert_eq!(large.read(0x4_0000 + 0x1_0100), 0x0800_00ff);

    gic.send_ipi(1, 2);
    // Aff3 2, RS 1, Aff2 3, INTID 2, Aff1 4, bit 2 of the list: Aff0 is 0x12.
    assert_eq!(file::get(SGI1R), 0x0002_1003_0204_0004);
    gic.send_nmi(0);
    assert_eq!(file::get(SGI1R), 0x0000_0000_0700_0002);
    gic.send_ipi(3, 1);
    assert_eq!(
        file::get(SGI1R),
        0x0000_0000_0700_0002,
        "there is no core 3"
    );

    for (iar, expected, ended) in [
        (6, Interrupt::Ipi(6), 6),
        (7, Interrupt::Nmi, 7),
        (27, Interrupt::Timer, 27),
        (1023, Interrupt::Spurious, 27),
    ] {
        file::set(IAR1, iar);
        let (interrupt, token) = gic.acknowledge();
        assert_eq!(interrupt, expected);
        gic.end(token);
        assert_eq!(file::get(EOIR1), ended);
    }
}

#[test]
fn gicv3_names_what_does_not_answer() {
    let _lock = file::lock();
    let dist = Mmio::fake(0x1_0000);
    let error = GicV3::new(dist, redistributors(), &[cpu(0x200)], TIMER).err();
    assert_eq!(error, Some(IrqError::NoRedistributor { mpidr: 0x200 }));
    let redist = redistributors();
    let gic = GicV3::new(dist, redist, &[cpu(0)], TIMER).expect("gic");
    redist[0].expect("region").write(0x14, 1 << 2);
    let field = "GICR_WAKER.ChildrenAsleep";
    assert_eq!(gic.init_core(0), Err(IrqError::Stuck { field }));
    dist.write(0, 1 << 31);
    assert_eq!(gic.init(), Ok(()), "the write of 0 clears RWP in memory");
}

#[test]
fn bcm2836_routes_and_takes_letters() {
    let _lock = file::lock();
    let (local, peripherals) = (Mmio::fake(0x100), Mmio::fake(0x200));
    let intc = Bcm2836::new(local, Some(peripherals), 3);
    intc.init().expect("init");
    assert_eq!(
        [0x1c, 0x20, 0x24].map(|at| peripherals.read(at)),
        [u32::MAX; 3]
    );
    intc.init_core(2).expect("init_core");
    assert_eq!(local.read(0x48), 1 << 3);
    assert_eq!(local.read(0x58), 1 << 0 | 1 << 5);
    assert_eq!(
        intc.init_core(4),
        Err(IrqError::NoCore { cpu: 4, limit: 4 })
    );

    intc.send_ipi(1, 6);
    assert_eq!(local.read(0x90), 1 << 6);
    intc.send_nmi(3);
    assert_eq!(local.read(0xb4), 1);

    file::set(MPIDR, 0x8000_0002);
    // Timer and mailbox 0 with letters 1 and 4: the letters come first, one by one.
    local.write(0x68, 1 << 4 | 1 << 3);
    local.write(0xe0, 1 << 4 | 1 << 1);
    assert_eq!(intc.acknowledge().0, Interrupt::Ipi(1));
    assert_eq!(local.read(0xe0), 1 << 1, "only that letter is cleared");
    for (source, expected) in [
        (1 << 3, Interrupt::Timer),
        (1 << 8, Interrupt::Device(8)),
        (0, Interrupt::Spurious),
    ] {
        local.write(0x68, source);
        assert_eq!(intc.acknowledge().0, expected);
    }
    assert_eq!(intc.acknowledge_fiq().0, Interrupt::Spurious);
    local.write(0x78, 1 << 5);
    local.write(0xe4, 1);
    assert_eq!(intc.acknowledge_fiq().0, Interrupt::Nmi);
    assert_eq!(intc.masking(), Masking::Daif);
}
