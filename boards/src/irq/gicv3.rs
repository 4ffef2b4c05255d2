// SPDX-License-Identifier: MIT OR Apache-2.0
//! GICv3 and later (IHI 0069), affinity routing on, CPU interface by system registers.
//!
//! All that is ours is in group 1. With two security states the firmware has put it there, and what a Non-secure write
//! would do to a group register is ignored; with one (QEMU's `virt`), this driver puts it there.
#![forbid(unsafe_code)]

use super::{
    Interrupt, InterruptController, InterruptsInfo, IrqError, MAX_REDIST, Masking, NMI, PMR_OPEN,
    SPECIAL, Token, classify, enabled, poll, priorities, regions,
};
use crate::fdt::Node;
use crate::{Cpu, MAX_CPUS, Mmio, sysreg};

/// Distributor (12.8, 12.9).
const GICD_SIZE: u64 = 0x1_0000;
const GICD_CTLR: usize = 0x0000;
const GICD_TYPER: usize = 0x0004;
const GICD_IGROUPR: usize = 0x0080;
const GICD_ICENABLER: usize = 0x0180;
const GICD_ICACTIVER: usize = 0x0380;
/// GICD_CTLR. Bit 1 is EnableGrp1A to Non-secure software and EnableGrp1 where there is one security state; bit 4
/// is ARE_NS and ARE.
const GICD_CTLR_GROUP1: u32 = 1 << 1;
const GICD_CTLR_ARE: u32 = 1 << 4;
const GICD_CTLR_RWP: u32 = 1 << 31;
/// Redistributor: a 64 KiB frame for the core, one for its private interrupts (12.10, 12.11); two more with virtual LPIs.
const GICR_SIZE: u64 = 0x2_0000;
const GICR_VLPI_SIZE: usize = 0x4_0000;
const GICR_CTLR: usize = 0x0000;
const GICR_TYPER: usize = 0x0008;
const GICR_WAKER: usize = 0x0014;
const GICR_CTLR_RWP: u32 = 1 << 3;
/// Fields of GICR_TYPER.
const TYPER_VLPIS: u64 = 1 << 1;
const TYPER_LAST: u64 = 1 << 4;
/// Fields of GICR_WAKER.
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
/// The frame for private interrupts.
const SGI: usize = 0x1_0000;
const GICR_IGROUPR0: usize = SGI + 0x0080;
const GICR_ISENABLER0: usize = SGI + 0x0100;
const GICR_ICENABLER0: usize = SGI + 0x0180;
const GICR_ICPENDR0: usize = SGI + 0x0280;
const GICR_ICACTIVER0: usize = SGI + 0x0380;
const GICR_IPRIORITYR: usize = SGI + 0x0400;
/// ICC_SRE_EL1.SRE; ICC_CTLR_EL1.CBPR and .EOImode; ICC_IGRPEN1_EL1.Enable.
const SRE: u64 = 1;
const CTLR_CBPR_EOIMODE: u64 = 3;
const IGRPEN1_ENABLE: u64 = 1;
/// INTID in ICC_IAR1_EL1.
const INTID: u64 = 0xff_ffff;
/// The affinity fields of MPIDR_EL1: Aff3 in 39:32, Aff2 to Aff0 in 23:0.
const AFFINITY: u64 = 0xff_00ff_ffff;

/// A GICv3.
#[derive(Debug)]
pub struct GicV3 {
    dist: Mmio,
    timer: u32,
    /// A core each: its redistributor's frames and its affinity.
    cores: heapless::Vec<(Mmio, u64), MAX_CPUS>,
}

impl GicV3 {
    /// The driver for a mapped distributor and mapped regions of redistributors; `timer` is
    /// [`Machine::timer`](crate::Machine::timer). Reads GICR_TYPER to find each core's redistributor by affinity.
    ///
    /// # Errors
    /// [`IrqError::NoRedistributor`] for a core that has none.
    pub fn new(
        dist: Mmio,
        redist: [Option<Mmio>; MAX_REDIST],
        cpus: &[Cpu],
        timer: u32,
    ) -> Result<Self, IrqError> {
        let mut cores = heapless::Vec::new();
        for (cpu, Cpu { mpidr, .. }) in cpus.iter().enumerate() {
            let mpidr = mpidr & AFFINITY;
            let has_it = |frame: &Mmio| affinity(frame.read64(GICR_TYPER)) == mpidr;
            let found = redist
                .into_iter()
                .flatten()
                .find_map(|region| frames(region).find(has_it));
            let found = found.ok_or(IrqError::NoRedistributor { mpidr })?;
            let limit = MAX_CPUS;
            cores
                .push((found, mpidr))
                .map_err(|_| IrqError::NoCore { cpu, limit })?;
        }
        Ok(Self { dist, timer, cores })
    }

    /// Its registers, from the device tree (binding arm,gic-v3): distributor, then as many regions of redistributors as
    /// `#redistributor-regions` says, one if it does not.
    pub(super) fn read(node: &Node<'_>) -> Option<InterruptsInfo> {
        let [dist] = regions(node, [GICD_SIZE])?;
        let count = node.number("#redistributor-regions").unwrap_or(1);
        let count = usize::try_from(count)
            .ok()
            .filter(|it| (1..=MAX_REDIST).contains(it))?;
        let all = node.regions().ok()?;
        let found = all.get(1..=count)?;
        let large = found.iter().all(|region| region.size >= GICR_SIZE);
        let redist = core::array::from_fn(|index| found.get(index).copied());
        large.then_some(InterruptsInfo::GicV3 { dist, redist })
    }

    fn send(&self, target: usize, sgi: u32) {
        let Some((_, mpidr)) = self.cores.get(target) else {
            return;
        };
        let level = |number: u32| mpidr >> (8 * number) & 0xff;
        // ICC_SGI1R_EL1: Aff3, RS (the sixteen values of Aff0 that the list is about), Aff2, INTID, Aff1, list.
        let to = (mpidr >> 32 & 0xff) << 48
            | (level(0) >> 4) << 44
            | level(2) << 32
            | u64::from(sgi) << 24
            | level(1) << 16
            | 1 << (level(0) & 0xf);
        sysreg::dsb_ishst();
        sysreg::write_sgi1r(to);
        // Without it the write may be seen late (12.1.6).
        sysreg::isb();
    }

    fn wait_for_distributor(&self) -> Result<(), IrqError> {
        poll("GICD_CTLR.RWP", || {
            self.dist.read(GICD_CTLR) & GICD_CTLR_RWP == 0
        })
    }
}

/// GICR_TYPER's affinity, in MPIDR_EL1's places.
fn affinity(typer: u64) -> u64 {
    let value = typer >> 32;
    (value >> 24) << 32 | value & 0xff_ffff
}

/// The redistributors in a region, up to the one that says that it is the last (GICR_TYPER.Last).
fn frames(region: Mmio) -> impl Iterator<Item = Mmio> {
    let mut next = Some(0);
    core::iter::from_fn(move || {
        let at = next?;
        let frame = region.part(at, GICR_SIZE as usize)?;
        let typer = frame.read64(GICR_TYPER);
        let size = if typer & TYPER_VLPIS == 0 {
            GICR_SIZE as usize
        } else {
            GICR_VLPI_SIZE
        };
        next = (typer & TYPER_LAST == 0).then_some(at + size);
        Some(frame)
    })
}

impl InterruptController for GicV3 {
    fn init(&self) -> Result<(), IrqError> {
        self.dist.write(GICD_CTLR, 0);
        self.wait_for_distributor()?;
        // GICD_TYPER.ITLinesNumber: 32 interrupts each, the first 32 belong to the redistributors.
        let lines = self.dist.read(GICD_TYPER) & 0x1f;
        for word in 1..=lines as usize {
            self.dist.write(GICD_IGROUPR + 4 * word, u32::MAX);
            self.dist.write(GICD_ICENABLER + 4 * word, u32::MAX);
            self.dist.write(GICD_ICACTIVER + 4 * word, u32::MAX);
        }
        self.wait_for_distributor()?;
        // Affinity routing is switched on before the group is (GICD_CTLR).
        self.dist.write(GICD_CTLR, GICD_CTLR_ARE);
        self.wait_for_distributor()?;
        self.dist.write(GICD_CTLR, GICD_CTLR_ARE | GICD_CTLR_GROUP1);
        self.wait_for_distributor()
    }

    fn init_core(&self, cpu: usize) -> Result<(), IrqError> {
        let limit = self.cores.len();
        let (redist, _) = self.cores.get(cpu).ok_or(IrqError::NoCore { cpu, limit })?;
        // The core is awake: its redistributor may send it interrupts (11.1). Ignored where it is Secure, and reads as 0.
        redist.write(GICR_WAKER, redist.read(GICR_WAKER) & !WAKER_PROCESSOR_SLEEP);
        poll("GICR_WAKER.ChildrenAsleep", || {
            redist.read(GICR_WAKER) & WAKER_CHILDREN_ASLEEP == 0
        })?;
        redist.write(GICR_ICENABLER0, u32::MAX);
        poll("GICR_CTLR.RWP", || {
            redist.read(GICR_CTLR) & GICR_CTLR_RWP == 0
        })?;
        redist.write(GICR_ICPENDR0, u32::MAX);
        redist.write(GICR_ICACTIVER0, u32::MAX);
        redist.write(GICR_IGROUPR0, u32::MAX);
        for first in (0..32).step_by(4) {
            redist.write(GICR_IPRIORITYR + first as usize, priorities(first));
        }
        redist.write(GICR_ISENABLER0, enabled(self.timer));

        sysreg::write_sre(sysreg::read_sre() | SRE);
        sysreg::isb();
        if sysreg::read_sre() & SRE == 0 {
            return Err(IrqError::NoSystemRegisters);
        }
        // One write to EOIR both drops the priority and deactivates; group 1 has its own binary point, the smallest there
        // is, so that all priority bits take part in preemption (ICC_CTLR_EL1, ICC_BPR1_EL1).
        sysreg::write_ctlr(sysreg::read_ctlr() & !CTLR_CBPR_EOIMODE);
        sysreg::write_bpr1(0);
        sysreg::write_pmr(PMR_OPEN.into());
        sysreg::write_igrpen1(IGRPEN1_ENABLE);
        sysreg::isb();
        sysreg::dsb_sy();
        Ok(())
    }

    fn acknowledge(&self) -> (Interrupt, Token) {
        let intid = sysreg::read_iar1() & INTID;
        // The interrupt is active for the redistributor only once the read is complete (12.1.6).
        sysreg::dsb_sy();
        (classify(intid as u32, self.timer), Token(intid as u32))
    }

    fn end(&self, token: Token) {
        if token.0 < SPECIAL {
            // What the handler did to its device comes first.
            sysreg::dsb_sy();
            sysreg::write_eoir1(token.0.into());
            sysreg::isb();
        }
    }

    fn send_ipi(&self, target: usize, ipi: u8) {
        if ipi <= super::MAX_IPI {
            self.send(target, ipi.into());
        }
    }

    fn send_nmi(&self, target: usize) {
        self.send(target, NMI);
    }

    fn masking(&self) -> Masking {
        Masking::IccPmr
    }
}
