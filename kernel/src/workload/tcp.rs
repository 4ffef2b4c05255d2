// SPDX-License-Identifier: MIT OR Apache-2.0
//! A TCP transfer: both ends in one smoltcp interface, over a loopback device, in one task.
//!
//! It is the same to the instruction each time: time advances by fixed steps, the random seed is fixed, every run starts
//! from a new interface and new sockets, and nothing is allocated while it runs.

use super::loopback::Loopback;
use alloc::boxed::Box;
use alloc::vec;
use core::fmt;
use smoltcp::iface::{Config, Interface, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{
    ConnectError, ListenError, RecvError, SendError, Socket, SocketBuffer, State,
};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

/// The function of smoltcp that the benchmark hooks, by its full name in the symbol table: it takes each segment that comes.
pub(crate) const TCP_TARGET: &str = "<smoltcp::socket::tcp::Socket>::process";

/// The same, for a table.
pub(crate) const TCP_TARGET_SHORT: &str = "tcp::Socket::process";

/// Bytes that a transfer moves unless it is told otherwise.
pub(crate) const TRANSFER_BYTES: usize = 64 << 10;

/// Both ends' address, and the prefix length of its network.
const ADDRESS: (IpAddress, u8) = (IpAddress::v4(127, 0, 0, 1), 8);
const SERVER_PORT: u16 = 7;
const CLIENT_PORT: u16 = 49152;
/// Bytes of each end's receive and send buffers.
const BUFFER: usize = 16 << 10;
/// Bytes after which the contents repeat: no multiple or divisor of a segment or a buffer, so that a shift shows.
const PERIOD: usize = 4093;
/// Time between two polls.
const STEP: Duration = Duration::from_millis(1);
/// Polls without progress after which a transfer has failed: longer than TCP's retransmission takes in these steps.
const PATIENCE: u32 = 10_000;

/// What a transfer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Bytes received, each compared with what was sent.
    pub(crate) bytes: usize,
    /// IP packets sent by both ends, acknowledgements and handshake included.
    pub(crate) packets: u64,
    /// How often the interface was polled.
    pub(crate) polls: u32,
}

/// Why a transfer failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransferError {
    /// The interface took no address.
    Address,
    /// The server cannot listen.
    Listen(ListenError),
    /// The client cannot connect.
    Connect(ConnectError),
    /// The client cannot send.
    Send(SendError),
    /// The server cannot receive.
    Receive(RecvError),
    /// Other bytes arrived than were sent, in the piece that starts at this one.
    Contents(usize),
    /// Nothing moves any more: bytes received, bytes wanted, state of the client.
    Stalled(usize, usize, State),
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TCP transfer: ")?;
        match self {
            Self::Address => write!(f, "the interface has no room for the address {}", ADDRESS.0),
            Self::Listen(e) => write!(f, "the server cannot listen on port {SERVER_PORT}: {e}"),
            Self::Connect(e) => write!(f, "the client cannot connect to port {SERVER_PORT}: {e}"),
            Self::Send(e) => write!(f, "the client cannot send: {e}"),
            Self::Receive(e) => write!(f, "the server cannot receive: {e}"),
            Self::Contents(at) => write!(
                f,
                "other bytes arrived than were sent, at byte {at} or soon after"
            ),
            Self::Stalled(have, want, state) => {
                write!(
                    f,
                    "stalled at {have} of {want} bytes, the client in state {state}, {PATIENCE} polls without progress"
                )
            }
        }
    }
}

impl core::error::Error for TransferError {}

/// The memory of a transfer: set up once, run often.
pub(crate) struct Transfer {
    device: Loopback,
    /// Of client and server, to receive and to send.
    buffers: [Box<[u8]>; 4],
    /// What is sent, over and over.
    contents: Box<[u8]>,
}

impl Transfer {
    /// Allocates device and buffers.
    pub(crate) fn new() -> Transfer {
        // Bits 8..16 of a full-period LCG, so that neighbouring bytes have nothing in common.
        let mut state = 1u32;
        let contents = (0..PERIOD).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[1]
        });
        Transfer {
            device: Loopback::new(),
            buffers: core::array::from_fn(|_| vec![0; BUFFER].into_boxed_slice()),
            contents: contents.collect(),
        }
    }

    /// Opens a connection, moves `bytes` bytes from client to server and compares them, waits until all are acknowledged.
    ///
    /// # Errors
    /// [`TransferError`]. The next run starts afresh all the same.
    #[inline(never)]
    pub(crate) fn run(&mut self, bytes: usize) -> Result<Stats, TransferError> {
        let Transfer {
            device,
            buffers,
            contents,
        } = self;
        device.reset();
        let mut now = Instant::ZERO;
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = 1;
        let mut interface = Interface::new(config, device, now);
        let mut room = true;
        interface.update_ip_addrs(|addresses| {
            room = addresses.push(IpCidr::new(ADDRESS.0, ADDRESS.1)).is_ok()
        });
        if !room {
            return Err(TransferError::Address);
        }

        let [a, b, c, d] = buffers
            .each_mut()
            .map(|buffer| SocketBuffer::new(&mut **buffer));
        let (mut client, mut server) = (Socket::new(a, b), Socket::new(c, d));
        server.listen(SERVER_PORT).map_err(TransferError::Listen)?;
        client
            .connect(interface.context(), (ADDRESS.0, SERVER_PORT), CLIENT_PORT)
            .map_err(TransferError::Connect)?;
        let mut storage = [SocketStorage::EMPTY, SocketStorage::EMPTY];
        let mut sockets = SocketSet::new(&mut storage[..]);
        let (client, server) = (sockets.add(client), sockets.add(server));

        let (mut sent, mut received, mut polls, mut idle) = (0, 0, 0, 0);
        loop {
            interface.poll(now, device, &mut sockets);
            now += STEP;
            polls += 1;
            let before = (
                sent,
                received,
                sockets.get::<Socket<'_>>(client).send_queue(),
            );

            let socket = sockets.get_mut::<Socket<'_>>(client);
            while sent < bytes && socket.can_send() {
                let piece = contents.get(sent % PERIOD..).unwrap_or_default();
                let piece = piece.get(..bytes - sent).unwrap_or(piece);
                sent += socket.send_slice(piece).map_err(TransferError::Send)?;
            }
            let done = socket.state() == State::Established
                && received == bytes
                && socket.send_queue() == 0;
            let (state, unacknowledged) = (socket.state(), socket.send_queue());

            let socket = sockets.get_mut::<Socket<'_>>(server);
            while socket.can_recv() {
                let (length, same) = socket
                    .recv(|piece| {
                        let expected = contents.get(received % PERIOD..).unwrap_or_default();
                        let length = piece.len().min(expected.len());
                        (
                            length,
                            (length, piece.get(..length) == expected.get(..length)),
                        )
                    })
                    .map_err(TransferError::Receive)?;
                if !same {
                    return Err(TransferError::Contents(received));
                }
                received += length;
            }

            if done {
                return Ok(Stats {
                    bytes: received,
                    packets: device.sent(),
                    polls,
                });
            }
            idle = if before == (sent, received, unacknowledged) {
                idle + 1
            } else {
                0
            };
            if idle > PATIENCE {
                return Err(TransferError::Stalled(received, bytes, state));
            }
        }
    }
}
