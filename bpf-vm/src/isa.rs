// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instruction set of RFC 9669: the 8-byte instruction and its fields.

/// One basic 64-bit instruction slot (RFC 9669, section 3); `lddw` takes two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Insn {
    /// Operation: class in bits 0..=2, the rest by class (section 3.1).
    pub opcode: u8,
    /// Destination register number, 0..=15 as encoded; 0..=10 are valid.
    pub dst: u8,
    /// Source register number, or a kind of immediate (`lddw`, `call`).
    pub src: u8,
    /// Signed offset: bytes for memory, instruction slots for jumps.
    pub off: i16,
    /// Signed immediate.
    pub imm: i32,
}

impl Insn {
    /// Bytes of one instruction slot.
    pub const BYTES: usize = 8;

    /// Decodes a slot from its little-endian bytes. Total: every value of the bytes is a slot.
    pub const fn from_bytes(b: [u8; Self::BYTES]) -> Self {
        Self {
            opcode: b[0],
            dst: b[1] & 15,
            src: b[1] >> 4,
            off: i16::from_le_bytes([b[2], b[3]]),
            imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// Encodes the slot as little-endian bytes. The register numbers' low four bits are used.
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        let (o, i) = (self.off.to_le_bytes(), self.imm.to_le_bytes());
        [self.opcode, self.dst & 15 | self.src << 4, o[0], o[1], i[0], i[1], i[2], i[3]]
    }
}
