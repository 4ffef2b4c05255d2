// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network device that receives what it transmits, in order: packets of a fixed size in a fixed ring.

use alloc::boxed::Box;
use alloc::vec;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// Bytes in the largest packet: the MTU of Ethernet.
const MTU: usize = 1500;
/// Packets that can be under way.
const SLOTS: usize = 32;

struct Packet {
    bytes: Box<[u8]>,
    length: usize,
}

impl Packet {
    fn new() -> Packet {
        Packet {
            bytes: vec![0; MTU].into_boxed_slice(),
            length: 0,
        }
    }
}

struct Ring {
    slots: [Packet; SLOTS],
    /// The oldest packet's slot.
    first: usize,
    /// Packets under way.
    count: usize,
    /// Packets sent since the last reset.
    sent: u64,
}

impl Ring {
    /// The slot of the packet `distance` behind the oldest.
    fn slot(&mut self, distance: usize) -> Option<&mut Packet> {
        self.slots.get_mut((self.first + distance) % SLOTS)
    }
}

/// The device. Nothing is allocated once it is made; when the ring is full it takes no packet, as hardware does.
pub(super) struct Loopback {
    ring: Ring,
    /// The packet being received, so that the ring can take replies meanwhile.
    received: Packet,
}

impl Loopback {
    /// A device with nothing under way.
    pub(super) fn new() -> Loopback {
        let ring = Ring {
            slots: core::array::from_fn(|_| Packet::new()),
            first: 0,
            count: 0,
            sent: 0,
        };
        Loopback {
            ring,
            received: Packet::new(),
        }
    }

    /// Forgets what is under way and starts counting anew.
    pub(super) fn reset(&mut self) {
        (self.ring.first, self.ring.count, self.ring.sent) = (0, 0, 0);
    }

    /// Packets sent since the last reset.
    pub(super) fn sent(&self) -> u64 {
        self.ring.sent
    }
}

impl phy::Device for Loopback {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Slot<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Slot<'_>)> {
        if self.ring.count == 0 {
            return None;
        }
        core::mem::swap(&mut self.received, self.ring.slot(0)?);
        self.ring.first = (self.ring.first + 1) % SLOTS;
        self.ring.count -= 1;
        Some((Received(&self.received), Slot(&mut self.ring)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Slot<'_>> {
        (self.ring.count < SLOTS).then_some(Slot(&mut self.ring))
    }

    /// Checksums are computed and checked in software, as over any wire.
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

/// A packet that came.
pub(super) struct Received<'a>(&'a Packet);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.bytes.get(..self.0.length).unwrap_or_default())
    }
}

/// Room for a packet to go.
pub(super) struct Slot<'a>(&'a mut Ring);

impl phy::TxToken for Slot<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let ring = self.0;
        let count = ring.count;
        // A token exists only while there is room, and the stack keeps to the MTU; else the packet is lost, as on a wire.
        match ring
            .slot(count)
            .map(|packet| (&mut packet.length, packet.bytes.get_mut(..length)))
        {
            Some((stored, Some(bytes))) => {
                let result = f(bytes);
                *stored = length;
                ring.count += 1;
                ring.sent += 1;
                result
            }
            _ => f(&mut vec![0; length]),
        }
    }
}
