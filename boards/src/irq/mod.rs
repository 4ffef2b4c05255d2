// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupt controllers behind one trait: GICv2, GICv3, the BCM2836's local controller.
//!
//! What is normal and what is NMI. Software-generated interrupts 0 to 6 are IPIs, 7 is the pseudo-NMI; on a GIC it has a
//! higher priority than everything else, so that the priority mask holds back all but it. Timer and IPIs share one
//! priority: while one of them is active only the NMI gets through, so a handler of a normal interrupt may open DAIF.I.
//! On the BCM2836, which has no priorities, the NMI is an FIQ, and normal interrupts are held back by DAIF.I.
//!
//! Ordering. Whoever sends an IPI has made its stores visible before the target takes it: [`send_ipi`] and [`send_nmi`] do
//! DSB ISHST before they touch the controller (a system register write is not ordered by a DMB; Arm ARM, DSB).
//!
//! [`send_ipi`]: InterruptController::send_ipi
//! [`send_nmi`]: InterruptController::send_nmi
#![forbid(unsafe_code)]

mod bcm2836;
mod gicv2;
mod gicv3;
#[cfg(all(test, not(target_arch = "aarch64")))]
mod tests;

pub use bcm2836::Bcm2836;
pub use gicv2::GicV2;
pub use gicv3::GicV3;

use crate::fdt::{Node, Tree};
use crate::{BoardError, Cpu, Mmio, Region};
use core::fmt;

/// IPIs are 0 to this.
pub const MAX_IPI: u8 = 6;
/// The software-generated interrupt that is the pseudo-NMI.
const NMI: u32 = 7;
/// Priority of the pseudo-NMI and of all else; lower is more urgent.
///
/// In a GIC with two security states, Non-secure software sees priorities halved and moved to the upper half, and with
/// GICv3, SCR_EL3.FIQ decides whether the mask is seen so as well (IHI 0069, 4.8.6; IHI 0048, 3.5.1). These four numbers are
/// right in every combination: `NMI < MASKED <= NORMAL < OPEN` holds whether all, none, or only the priorities are
/// moved (0x20 -> 0x90, 0xc0 -> 0xe0), and with as few as eight levels.
const PRIORITY_NMI: u8 = 0x20;
const PRIORITY_NORMAL: u8 = 0xc0;
/// Value of ICC_PMR_EL1 or GICC_PMR that lets every interrupt through.
pub const PMR_OPEN: u8 = 0xf0;
/// Value of ICC_PMR_EL1 or GICC_PMR that lets only the pseudo-NMI through.
pub const PMR_MASKED: u8 = 0xc0;
/// First INTID of no interrupt at all (IHI 0069, 2.2.1; IHI 0048, 3.2.5).
const SPECIAL: u32 = 1020;
/// How often a register is read that has to change, before the driver says that it does not.
const POLLS: usize = 1_000_000;

/// What an interrupt turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The EL1 virtual timer of this core.
    Timer,
    /// An IPI, 0 to [`MAX_IPI`].
    Ipi(u8),
    /// The pseudo-NMI.
    Nmi,
    /// Something else, by INTID (GIC) or by bit of the core's interrupt source register (BCM2836).
    Device(u32),
    /// Nothing: it went away before it was acknowledged. Needs no `end`.
    Spurious,
}

/// What [`InterruptController::end`] needs to know of an acknowledged interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an acknowledged interrupt holds back others until it is ended"]
pub struct Token(u32);

/// How interrupts are held back so that the pseudo-NMI still comes.
///
/// A write to either PMR takes effect for what follows a DSB SY. PSTATE.I has to be clear for the pseudo-NMI to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masking {
    /// ICC_PMR_EL1 holds [`PMR_MASKED`] or [`PMR_OPEN`].
    IccPmr,
    /// GICC_PMR, a 32-bit register at this virtual address, does.
    GiccPmr(usize),
    /// DAIF.I alone: the NMI is an FIQ. A handler of a normal interrupt has to keep DAIF.I set, and opens DAIF.F.
    Daif,
}

/// An interrupt controller. Cores are named by their index in [`Machine::cpus`](crate::Machine::cpus).
pub trait InterruptController: Sync + Send {
    /// Sets up what all cores share; once, on the boot core, before any `init_core`.
    ///
    /// # Errors
    /// The controller does not answer as it has to.
    fn init(&self) -> Result<(), IrqError>;

    /// Sets up this core's part, with PSTATE.DAIF masked: enables IPIs, pseudo-NMI and timer, and leaves the priority mask
    /// at [`PMR_OPEN`].
    ///
    /// # Errors
    /// The controller does not answer as it has to.
    fn init_core(&self, cpu: usize) -> Result<(), IrqError>;

    /// On an IRQ exception: the most urgent interrupt pending, now active.
    fn acknowledge(&self) -> (Interrupt, Token);

    /// On an FIQ exception, likewise; only [`Masking::Daif`] makes any.
    fn acknowledge_fiq(&self) -> (Interrupt, Token) {
        (Interrupt::Spurious, Token(SPECIAL))
    }

    /// Says that an acknowledged interrupt is dealt with. On the core that acknowledged it; the last acknowledged first.
    fn end(&self, token: Token);

    /// Interrupts a core, which may be this one. An `ipi` above [`MAX_IPI`] is not sent.
    fn send_ipi(&self, target: usize, ipi: u8);

    /// Sends a core, which may be this one, the pseudo-NMI.
    fn send_nmi(&self, target: usize);

    /// How interrupts are held back.
    fn masking(&self) -> Masking;
}

/// Sorts a GIC's INTIDs.
fn classify(intid: u32, timer: u32) -> Interrupt {
    match intid {
        NMI => Interrupt::Nmi,
        ipi if ipi < NMI => Interrupt::Ipi(ipi as u8),
        SPECIAL.. => Interrupt::Spurious,
        intid if intid == timer => Interrupt::Timer,
        intid => Interrupt::Device(intid),
    }
}

/// The private interrupts that a core wants, as GICD_ISENABLER0 and GICR_ISENABLER0 hold them: IPIs, NMI, timer.
fn enabled(timer: u32) -> u32 {
    let software = (1 << (NMI + 1)) - 1;
    software | 1 << (timer % 32)
}

/// The priorities of four interrupts from `first` on, as GICD_IPRIORITYRn and GICR_IPRIORITYRn hold them.
fn priorities(first: u32) -> u32 {
    u32::from_le_bytes(core::array::from_fn(|index| {
        if first + index as u32 == NMI {
            PRIORITY_NMI
        } else {
            PRIORITY_NORMAL
        }
    }))
}

/// The interrupt controller and where its registers are, physical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptsInfo {
    /// GICv2, GIC-400.
    GicV2 {
        /// Distributor.
        dist: Region,
        /// CPU interface.
        cpu: Region,
    },
    /// GICv3 and later.
    GicV3 {
        /// Distributor.
        dist: Region,
        /// Redistributors, a region each cluster or one for all.
        redist: [Option<Region>; MAX_REDIST],
    },
    /// The BCM2836's and BCM2837's local controller.
    Bcm2836 {
        /// Its registers.
        local: Region,
        /// The controller of the peripherals behind it, whose interrupts are switched off.
        peripherals: Option<Region>,
    },
}

/// How many regions of redistributors there is room for.
pub const MAX_REDIST: usize = 4;

/// Drivers, the one to prefer first (a Pi 4 has a GIC and a local controller): `compatible`, and how to read the node.
type Reader = fn(&Node<'_>) -> Option<InterruptsInfo>;
const CONTROLLERS: [(&[&str], Reader); 3] = [
    (&["arm,gic-v3"], GicV3::read),
    (&["arm,cortex-a15-gic", "arm,gic-400"], GicV2::read),
    (&["brcm,bcm2836-l1-intc"], Bcm2836::read),
];
const PERIPHERALS: &[&str] = &["brcm,bcm2836-armctrl-ic"];

/// Finds the interrupt controller in a device tree.
pub(crate) fn find(tree: Tree<'_>) -> Result<InterruptsInfo, BoardError> {
    let find = |wanted: &[&str]| {
        let fits = |node: &Node<'_>| node.is_enabled() && node.is_compatible(wanted);
        tree.nodes().find(fits)
    };
    let found = CONTROLLERS
        .iter()
        .find_map(|(compatible, read)| Some((find(compatible)?, read)));
    let (node, read) = found.ok_or(BoardError::Missing {
        what: "interrupt controller that this kernel knows \
               (arm,gic-v3 | arm,cortex-a15-gic | arm,gic-400 | brcm,bcm2836-l1-intc)",
        remedy: "use a machine that has one",
    })?;
    node.regions()?;
    let mut info = read(&node)
        .ok_or_else(|| node.bad("reg", "the regions of the controller, each large enough"))?;
    if let InterruptsInfo::Bcm2836 { peripherals, .. } = &mut info {
        let behind = find(PERIPHERALS).and_then(|node| regions(&node, [bcm2836::PERIPHERALS_SIZE]));
        *peripherals = behind.map(|[region]| region);
    }
    Ok(info)
}

/// The first regions of a node, if there are as many as sizes and each is at least as large.
fn regions<const N: usize>(node: &Node<'_>, sizes: [u64; N]) -> Option<[Region; N]> {
    let found = node.regions().ok()?;
    let found: [Region; N] = found.get(..N)?.try_into().ok()?;
    let fits = |(region, size): (&Region, u64)| region.size >= size;
    found.iter().zip(sizes).all(fits).then_some(found)
}

impl InterruptsInfo {
    /// Every region of registers.
    pub fn regions(&self) -> impl Iterator<Item = Region> + use<> {
        let [none, rest] = [None, None];
        let list = match *self {
            Self::GicV2 { dist, cpu } => [Some(dist), Some(cpu), none, rest, none],
            Self::GicV3 {
                dist,
                redist: [a, b, c, d],
            } => [Some(dist), a, b, c, d],
            Self::Bcm2836 { local, peripherals } => [Some(local), peripherals, none, rest, none],
        };
        list.into_iter().flatten()
    }

    /// Cells of an interrupt specifier (bindings arm,gic; arm,gic-v3; brcm,bcm2836-l1-intc).
    pub(crate) fn cells(&self) -> usize {
        match self {
            Self::GicV2 { .. } | Self::GicV3 { .. } => 3,
            Self::Bcm2836 { .. } => 2,
        }
    }

    /// The number of the private interrupt that a specifier's first two cells name.
    pub(crate) fn private(&self, specifier: [Option<u32>; 2]) -> Option<u32> {
        /// First cell of a private peripheral interrupt on a GIC, and the INTID of the first.
        const PPI: u32 = 1;
        const FIRST_PPI: u32 = 16;
        match (self, specifier) {
            (Self::Bcm2836 { .. }, [Some(bit @ 0..4), _]) => Some(bit),
            (Self::Bcm2836 { .. }, _) => None,
            (_, [Some(PPI), Some(ppi @ 0..16)]) => Some(FIRST_PPI + ppi),
            _ => None,
        }
    }
}

/// The interrupt controller of this machine.
#[derive(Debug)]
pub enum Controller {
    /// GICv2.
    GicV2(GicV2),
    /// GICv3.
    GicV3(GicV3),
    /// BCM2836.
    Bcm2836(Bcm2836),
}

impl Controller {
    /// The driver for `info`. `map` returns the mapping of a region that [`InterruptsInfo::regions`] names.
    ///
    /// # Errors
    /// See [`GicV3::new`].
    pub fn new(
        info: &InterruptsInfo,
        timer: u32,
        cpus: &[Cpu],
        mut map: impl FnMut(Region) -> Mmio,
    ) -> Result<Self, IrqError> {
        Ok(match *info {
            InterruptsInfo::GicV2 { dist, cpu } => {
                Self::GicV2(GicV2::new(map(dist), map(cpu), timer))
            }
            InterruptsInfo::GicV3 { dist, redist } => {
                let redist = redist.map(|region| region.map(&mut map));
                Self::GicV3(GicV3::new(map(dist), redist, cpus, timer)?)
            }
            InterruptsInfo::Bcm2836 { local, peripherals } => {
                Self::Bcm2836(Bcm2836::new(map(local), peripherals.map(map), timer))
            }
        })
    }

    /// The driver.
    pub fn driver(&self) -> &dyn InterruptController {
        match self {
            Self::GicV2(driver) => driver,
            Self::GicV3(driver) => driver,
            Self::Bcm2836(driver) => driver,
        }
    }
}

/// An interrupt controller does not answer as it has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqError {
    /// No redistributor has this core's affinity.
    NoRedistributor {
        /// The affinity, as in MPIDR_EL1.
        mpidr: u64,
    },
    /// There is no such core.
    NoCore {
        /// The index asked for.
        cpu: usize,
        /// How many there are.
        limit: usize,
    },
    /// ICC_SRE_EL1.SRE stays 0.
    NoSystemRegisters,
    /// A register does not change as it has to.
    Stuck {
        /// The register's field.
        field: &'static str,
    },
}

impl fmt::Display for IrqError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRedistributor { mpidr } => write!(
                f,
                "GICv3: no redistributor for the core with affinity {mpidr:#x}; reg of the arm,gic-v3 node has to hold them all"
            ),
            Self::NoCore { cpu, limit } => write!(
                f,
                "interrupt controller: no core {cpu}, there is room for {limit}; start fewer"
            ),
            Self::NoSystemRegisters => write!(
                f,
                "GICv3: ICC_SRE_EL1.SRE stays 0; firmware or EL2 code has to set ICC_SRE_EL2.Enable and .SRE"
            ),
            Self::Stuck { field } => write!(
                f,
                "interrupt controller: {field} does not change within {POLLS} reads; is the region in the device tree the right one?"
            ),
        }
    }
}

impl core::error::Error for IrqError {}

/// Reads `field` until it is `ready`.
fn poll(field: &'static str, mut ready: impl FnMut() -> bool) -> Result<(), IrqError> {
    for _ in 0..POLLS {
        if ready() {
            return Ok(());
        }
    }
    Err(IrqError::Stuck { field })
}
