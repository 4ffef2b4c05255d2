// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files for a Raspberry Pi's SD card.

use std::fs;
use std::path::Path;

use clap::ValueEnum;

use crate::Outcome;
use crate::files;
use crate::qemu::Boot;

/// Boards that start from an SD card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Card {
    /// Raspberry Pi 3 B, 3 B+
    Rpi3,
    /// Raspberry Pi 4 B
    Rpi4,
}

impl Card {
    fn name(self) -> &'static str {
        match self {
            Self::Rpi3 => "Raspberry Pi 3",
            Self::Rpi4 => "Raspberry Pi 4",
        }
    }

    /// The kernel command line; the kernel counts cycles on hardware unless told otherwise.
    fn command_line(self) -> &'static str {
        match self {
            Self::Rpi3 => "job=bench board=rpi3\n",
            Self::Rpi4 => "job=bench board=rpi4\n",
        }
    }

    /// What the firmware needs of its own.
    fn firmware(self) -> &'static str {
        match self {
            Self::Rpi3 => {
                "bootcode.bin, start.elf, fixup.dat, bcm2710-rpi-3-b.dtb (3 B+: bcm2710-rpi-3-b-plus.dtb)"
            }
            Self::Rpi4 => "start4.elf, fixup4.dat, bcm2711-rpi-4-b.dtb",
        }
    }
}

/// For the firmware: 64 bits, PL011 on the header instead of Bluetooth, a fixed clock so that cycles compare, the initrd.
const CONFIG: &str = "\
arm_64bit=1
kernel=kernel8.img
enable_uart=1
dtoverlay=disable-bt
force_turbo=1
initramfs programs.cpio followkernel
";

fn readme(card: Card) -> String {
    format!(
        "Springboard on a {name}\n\
         \n\
         Copy everything in this folder to the first partition (FAT32) of an SD card, together with these files of the\n\
         Raspberry Pi firmware (folder boot/ of the project raspberrypi/firmware; any card with Raspberry Pi OS has them):\n\
         \n    {firmware}\n    overlays/disable-bt.dtbo\n\
         \n\
         Serial console: pins 8 (TXD), 10 (RXD) and 6 (ground) of the header, 3.3 V, 115200 baud, 8N1.\n\
         cmdline.txt holds the kernel command line: job=bench measures, job=shell is the interactive shell.\n\
         The last line of a run is `springboard: exit N`; 0 is success.\n",
        name = card.name(),
        firmware = card.firmware(),
    )
}

/// Writes the files to `out`; returns their names.
pub(crate) fn write(card: Card, boot: &Boot, out: &Path) -> Outcome<Vec<&'static str>> {
    fs::create_dir_all(out)?;
    let contents = [
        ("kernel8.img", files::read(boot.image())?),
        ("programs.cpio", files::read(boot.initrd())?),
        ("config.txt", CONFIG.into()),
        ("cmdline.txt", card.command_line().into()),
        ("README.txt", readme(card).into()),
    ];
    for (name, bytes) in &contents {
        files::write(&out.join(name), bytes)?;
    }
    Ok(contents.iter().map(|(name, _)| *name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_firmware_is_told_what_the_kernel_needs() {
        for line in [
            "arm_64bit=1",
            "enable_uart=1",
            "dtoverlay=disable-bt",
            "force_turbo=1",
            "initramfs programs.cpio followkernel",
        ] {
            assert!(CONFIG.lines().any(|l| l == line), "{line}");
        }
        for (card, file) in [(Card::Rpi3, "bootcode.bin"), (Card::Rpi4, "start4.elf")] {
            let text = readme(card);
            assert!(
                text.contains(file) && text.contains("disable-bt.dtbo"),
                "{text}"
            );
            assert!(card.command_line().ends_with('\n'));
        }
    }
}
