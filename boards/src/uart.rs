// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PL011 UART (DDI 0183), polled.
#![forbid(unsafe_code)]

use crate::Mmio;

/// Registers, byte offsets (DDI 0183, 3.2).
const DR: usize = 0x00;
const FR: usize = 0x18;
const LCR_H: usize = 0x2c;
const CR: usize = 0x30;
const IMSC: usize = 0x38;
const ICR: usize = 0x44;
/// UARTFR.
const FR_BUSY: u32 = 1 << 3;
const FR_RXFE: u32 = 1 << 4;
const FR_TXFF: u32 = 1 << 5;
/// UARTLCR_H: eight bits, no parity, one stop bit, FIFOs on.
const LCR_8N1_FIFO: u32 = 3 << 5 | 1 << 4;
/// UARTCR: UARTEN, TXE, RXE.
const CR_ON: u32 = 1 << 0 | 1 << 8 | 1 << 9;
/// UARTDR: break, parity and framing error; an overrun lost a later byte, not this one.
const DR_ERRORS: u32 = 0x7 << 8;
/// All interrupts of UARTICR.
const ALL: u32 = 0x7ff;
/// How often the flags are read before a byte is given up: a port that does not take one must not stop the kernel.
const POLLS: usize = 1_000_000;

/// A PL011. A handle: copies name the same port; nothing is kept between calls.
#[derive(Clone, Copy, Debug)]
pub struct Pl011 {
    registers: Mmio,
}

impl Pl011 {
    /// Bytes of registers that the driver needs.
    pub const SIZE: u64 = 0x48;

    /// The driver for a mapped PL011; touches no register.
    pub const fn new(registers: Mmio) -> Self {
        Self { registers }
    }

    /// Switches the port on, 8N1, with FIFOs and without interrupts, at the baud rate that the firmware has set: what the
    /// divisor means depends on a clock that only the firmware knows. The write of UARTLCR_H latches it again (DDI 0183,
    /// 3.3.7); the order is that of 3.3.8.
    pub fn init(&self) {
        self.wait_while(FR_BUSY);
        self.registers.write(CR, 0);
        self.registers.write(IMSC, 0);
        self.registers.write(ICR, ALL);
        self.registers.write(LCR_H, LCR_8N1_FIFO);
        self.registers.write(CR, CR_ON);
    }

    /// Sends a byte, once there is room for it; a port that never has any loses it.
    pub fn write(&self, byte: u8) {
        if self.wait_while(FR_TXFF) {
            self.registers.write(DR, byte.into());
        }
    }

    /// Waits until everything is sent.
    pub fn flush(&self) {
        self.wait_while(FR_BUSY);
    }

    /// A byte that has come in, if there is one; what was garbled on the line is dropped.
    pub fn try_read(&self) -> Option<u8> {
        while self.registers.read(FR) & FR_RXFE == 0 {
            let data = self.registers.read(DR);
            if data & DR_ERRORS == 0 {
                return Some(data as u8);
            }
        }
        None
    }

    /// Whether `flag` went away in time.
    fn wait_while(&self, flag: u32) -> bool {
        (0..POLLS).any(|_| self.registers.read(FR) & flag == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (Mmio, Pl011) {
        let registers = Mmio::fake(Pl011::SIZE as usize);
        (registers, Pl011::new(registers))
    }

    #[test]
    fn init_keeps_the_baud_rate() {
        let (registers, uart) = port();
        let divisors = [0x24, 0x28];
        for divisor in divisors {
            registers.write(divisor, 0x1a);
        }
        registers.write(IMSC, 0x70);
        uart.init();
        assert_eq!(divisors.map(|offset| registers.read(offset)), [0x1a; 2]);
        assert_eq!(registers.read(CR), 0x301);
        assert_eq!(registers.read(LCR_H), 0x70);
        assert_eq!(registers.read(IMSC), 0);
    }

    #[test]
    fn a_full_port_loses_the_byte_and_does_not_hang() {
        let (registers, uart) = port();
        uart.write(b'a');
        assert_eq!(registers.read(DR), b'a'.into());
        registers.write(FR, FR_TXFF);
        uart.write(b'b');
        assert_eq!(registers.read(DR), b'a'.into());
    }

    #[test]
    fn reads_what_is_there() {
        let (registers, uart) = port();
        registers.write(DR, u32::from(b'x') | 1 << 11);
        assert_eq!(
            uart.try_read(),
            Some(b'x'),
            "an overrun leaves this byte alone"
        );
        registers.write(FR, FR_RXFE);
        assert_eq!(uart.try_read(), None);
    }
}
