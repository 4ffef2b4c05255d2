// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local interrupt controller of BCM2836 and BCM2837, as in a Pi 2 and 3 (BCM2836 ARM-local peripherals, QA7).
//!
//! Every core has four mailboxes, 32 bits each: other cores set bits, the core clears them, and while one is set the mailbox
//! interrupts. Mailbox 0 carries the IPIs, a bit each, as IRQ; mailbox 1 carries the pseudo-NMI, as FIQ. There are no
//! priorities and nothing is active: what is pending comes again until its cause is gone.
#![forbid(unsafe_code)]

use super::{
    Interrupt, InterruptController, InterruptsInfo, IrqError, MAX_IPI, Masking, SPECIAL, Token,
    regions,
};
use crate::fdt::Node;
use crate::{Mmio, sysreg};

/// Cores of the chip; Aff0 in MPIDR_EL1 is their number.
const CORES: usize = 4;
/// Registers (QA7, chapter 4): four bytes a core, and sixteen a core for the mailboxes.
const SIZE: u64 = 0x100;
const TIMER_CONTROL: usize = 0x40;
const MAILBOX_CONTROL: usize = 0x50;
const IRQ_SOURCE: usize = 0x60;
const FIQ_SOURCE: usize = 0x70;
const MAILBOX_SET: usize = 0x80;
const MAILBOX_CLEAR: usize = 0xc0;
/// The IPIs' mailbox and the NMI's.
const IPI: usize = 0;
const NMI: usize = 1;
/// Bits of the source registers: 0 to 3 timers, 4 to 7 mailboxes.
const SOURCE_MAILBOX: u32 = 4;
/// Mailbox control: bits 0 to 3 route a mailbox to IRQ, 4 to 7 to FIQ, which wins.
const MAILBOX_IRQ: u32 = 0;
const MAILBOX_FIQ: u32 = 4;
/// The peripherals' controller (BCM2835 ARM Peripherals, 7.5): FIQ control, and three registers that disable.
pub(super) const PERIPHERALS_SIZE: u64 = 0x28;
const FIQ_CONTROL: usize = 0x0c;
const DISABLE: [usize; 3] = [0x1c, 0x20, 0x24];

/// A BCM2836 local interrupt controller.
#[derive(Debug)]
pub struct Bcm2836 {
    local: Mmio,
    peripherals: Option<Mmio>,
    timer: u32,
}

impl Bcm2836 {
    /// The driver for a mapped controller, and for that of the peripherals behind it, whose interrupts it switches off; `timer`
    /// is [`Machine::timer`](crate::Machine::timer).
    pub const fn new(local: Mmio, peripherals: Option<Mmio>, timer: u32) -> Self {
        Self {
            local,
            peripherals,
            timer,
        }
    }

    /// Its registers, from the device tree (binding brcm,bcm2836-l1-intc).
    pub(super) fn read(node: &Node<'_>) -> Option<InterruptsInfo> {
        let [local] = regions(node, [SIZE])?;
        let peripherals = None;
        Some(InterruptsInfo::Bcm2836 { local, peripherals })
    }

    fn this_core() -> usize {
        sysreg::read_mpidr() as usize % CORES
    }

    fn send(&self, target: usize, mailbox: usize, bit: u8) {
        if target < CORES {
            sysreg::dsb_ishst();
            self.local
                .write(MAILBOX_SET + 16 * target + 4 * mailbox, 1 << bit);
        }
    }

    /// Takes the lowest bit of one of this core's mailboxes.
    fn take(&self, core: usize, mailbox: usize) -> Option<u8> {
        let register = MAILBOX_CLEAR + 16 * core + 4 * mailbox;
        let letters = self.local.read(register);
        let lowest = letters.trailing_zeros();
        (letters != 0).then(|| {
            self.local.write(register, 1 << lowest);
            // The interrupt is gone before the handler returns, and the handler sees what the sender wrote.
            sysreg::dsb_sy();
            lowest as u8
        })
    }
}

impl InterruptController for Bcm2836 {
    fn init(&self) -> Result<(), IrqError> {
        if let Some(peripherals) = self.peripherals {
            peripherals.write(FIQ_CONTROL, 0);
            for register in DISABLE {
                peripherals.write(register, u32::MAX);
            }
        }
        Ok(())
    }

    fn init_core(&self, cpu: usize) -> Result<(), IrqError> {
        if cpu >= CORES {
            return Err(IrqError::NoCore { cpu, limit: CORES });
        }
        for mailbox in [IPI, NMI] {
            self.local
                .write(MAILBOX_CLEAR + 16 * cpu + 4 * mailbox, u32::MAX);
        }
        let route = 1 << (MAILBOX_IRQ + IPI as u32) | 1 << (MAILBOX_FIQ + NMI as u32);
        self.local.write(MAILBOX_CONTROL + 4 * cpu, route);
        self.local.write(TIMER_CONTROL + 4 * cpu, 1 << self.timer);
        sysreg::dsb_sy();
        Ok(())
    }

    fn acknowledge(&self) -> (Interrupt, Token) {
        let core = Self::this_core();
        let source = self.local.read(IRQ_SOURCE + 4 * core);
        let ipi = || match self.take(core, IPI)? {
            ipi @ 0..=MAX_IPI => Some(Interrupt::Ipi(ipi)),
            _ => None,
        };
        let first = source.trailing_zeros();
        let interrupt = if source & 1 << (SOURCE_MAILBOX + IPI as u32) != 0 {
            ipi().unwrap_or(Interrupt::Spurious)
        } else if source & 1 << self.timer != 0 {
            Interrupt::Timer
        } else if source != 0 {
            Interrupt::Device(first)
        } else {
            Interrupt::Spurious
        };
        (interrupt, Token(SPECIAL))
    }

    fn acknowledge_fiq(&self) -> (Interrupt, Token) {
        let core = Self::this_core();
        let pending = self.local.read(FIQ_SOURCE + 4 * core) & 1 << (SOURCE_MAILBOX + NMI as u32);
        let taken = (pending != 0).then(|| self.take(core, NMI)).flatten();
        let interrupt = taken.map_or(Interrupt::Spurious, |_| Interrupt::Nmi);
        (interrupt, Token(SPECIAL))
    }

    fn end(&self, _token: Token) {}

    fn send_ipi(&self, target: usize, ipi: u8) {
        if ipi <= MAX_IPI {
            self.send(target, IPI, ipi);
        }
    }

    fn send_nmi(&self, target: usize) {
        self.send(target, NMI, 0);
    }

    fn masking(&self) -> Masking {
        Masking::Daif
    }
}
