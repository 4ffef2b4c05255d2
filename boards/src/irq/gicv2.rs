// SPDX-License-Identifier: MIT OR Apache-2.0
//! GICv2 and GIC-400 (IHI 0048).
//!
//! It never touches GICD_IGROUPR: without security extensions, as on QEMU's `virt`, everything is in group 0; with them
//! the firmware has put what is ours into group 1, and Non-secure software sees only that. Either way bit 0 of GICD_CTLR
//! and GICC_CTLR is the enable that counts (4.3.1, 4.4.1), and interrupts arrive as IRQ.
#![forbid(unsafe_code)]

use super::{
    Interrupt, InterruptController, InterruptsInfo, IrqError, Masking, NMI, PMR_OPEN, SPECIAL,
    Token, classify, enabled, priorities, regions,
};
use crate::fdt::Node;
use crate::{MAX_CPUS, Mmio, sysreg};
use core::sync::atomic::{AtomicU8, Ordering};

/// Distributor (table 4-1).
const GICD_SIZE: u64 = 0x1000;
const GICD_CTLR: usize = 0x000;
const GICD_TYPER: usize = 0x004;
const GICD_ISENABLER: usize = 0x100;
const GICD_ICENABLER: usize = 0x180;
const GICD_ICACTIVER: usize = 0x380;
const GICD_IPRIORITYR: usize = 0x400;
const GICD_ITARGETSR: usize = 0x800;
const GICD_SGIR: usize = 0xf00;
/// TargetListFilter of GICD_SGIR: to this core only; CPUTargetList starts at bit 16 (4.3.15).
const SGIR_SELF: u32 = 2 << 24;
const SGIR_TARGETS: u32 = 16;
/// CPU interface (table 4-2).
const GICC_SIZE: u64 = 0x1000;
const GICC_CTLR: usize = 0x00;
const GICC_PMR: usize = 0x04;
const GICC_BPR: usize = 0x08;
const GICC_IAR: usize = 0x0c;
const GICC_EOIR: usize = 0x10;
/// INTID in GICC_IAR; the bits above name the core that sent an SGI, and GICC_EOIR wants them back (4.4.4, 4.4.5).
const INTID: u32 = 0x3ff;
const ENABLE: u32 = 1;

/// A GICv2.
#[derive(Debug)]
pub struct GicV2 {
    dist: Mmio,
    cpu: Mmio,
    timer: u32,
    /// The bit of each core in target lists, as it reads it itself; 0 until its `init_core`, and with a single core.
    targets: [AtomicU8; MAX_CPUS],
}

impl GicV2 {
    /// The driver for a mapped distributor and CPU interface; `timer` is [`Machine::timer`](crate::Machine::timer).
    pub fn new(dist: Mmio, cpu: Mmio, timer: u32) -> Self {
        let targets = [const { AtomicU8::new(0) }; MAX_CPUS];
        Self {
            dist,
            cpu,
            timer,
            targets,
        }
    }

    /// Its registers, from the device tree (binding arm,gic): distributor and CPU interface.
    pub(super) fn read(node: &Node<'_>) -> Option<InterruptsInfo> {
        let [dist, cpu] = regions(node, [GICD_SIZE, GICC_SIZE])?;
        Some(InterruptsInfo::GicV2 { dist, cpu })
    }

    fn send(&self, target: usize, sgi: u32) {
        let target = self
            .targets
            .get(target)
            .map_or(0, |it| it.load(Ordering::Relaxed));
        let to = match target {
            // GICD_ITARGETSR0 reads as zero where there is one core (4.3.12): then it is this one.
            0 => SGIR_SELF,
            list => u32::from(list) << SGIR_TARGETS,
        };
        sysreg::dsb_ishst();
        self.dist.write(GICD_SGIR, to | sgi);
    }
}

impl InterruptController for GicV2 {
    fn init(&self) -> Result<(), IrqError> {
        self.dist.write(GICD_CTLR, 0);
        // ITLinesNumber (4.3.2): 32 interrupts each, the first 32 are private to a core and `init_core`'s.
        let lines = self.dist.read(GICD_TYPER) & 0x1f;
        for word in 1..=lines as usize {
            self.dist.write(GICD_ICENABLER + 4 * word, u32::MAX);
            self.dist.write(GICD_ICACTIVER + 4 * word, u32::MAX);
        }
        self.dist.write(GICD_CTLR, ENABLE);
        Ok(())
    }

    fn init_core(&self, cpu: usize) -> Result<(), IrqError> {
        let limit = self.targets.len();
        let target = self
            .targets
            .get(cpu)
            .ok_or(IrqError::NoCore { cpu, limit })?;
        // These registers are banked: every core sees its own (4.3.5, 4.3.6, 4.3.10 to 4.3.12).
        self.dist.write(GICD_ICENABLER, u32::MAX);
        self.dist.write(GICD_ICACTIVER, u32::MAX);
        for first in (0..32).step_by(4) {
            self.dist
                .write(GICD_IPRIORITYR + first as usize, priorities(first));
        }
        target.store(self.dist.read(GICD_ITARGETSR) as u8, Ordering::Relaxed);
        self.dist.write(GICD_ISENABLER, enabled(self.timer));
        // The smallest binary point that there is: all priority bits take part in preemption (3.3.3).
        self.cpu.write(GICC_BPR, 0);
        self.cpu.write(GICC_PMR, PMR_OPEN.into());
        self.cpu.write(GICC_CTLR, ENABLE);
        sysreg::dsb_sy();
        Ok(())
    }

    fn acknowledge(&self) -> (Interrupt, Token) {
        let found = self.cpu.read(GICC_IAR);
        // The interrupt is active, and its handler may look at what its sender wrote, once the read is complete.
        sysreg::dsb_sy();
        (classify(found & INTID, self.timer), Token(found))
    }

    fn end(&self, token: Token) {
        if token.0 & INTID < SPECIAL {
            // What the handler did to its device comes first.
            sysreg::dsb_sy();
            self.cpu.write(GICC_EOIR, token.0);
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
        Masking::GiccPmr(self.cpu.address(GICC_PMR, 4))
    }
}
