// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers that read from any address or from memory that has to be brought in, and those on strings.
//!
//! Each has the safety contract of its type in [`Function`](super::Function): its arguments are what its row says. An address to
//! be probed is any number: the host's [`probe_read`](crate::host::Host::probe_read) says how many bytes are there.
use super::{
    errno::{EFAULT, error},
    memory::{ProgramBytes, ProgramOut},
};
use crate::host::host;

/// Bytes that are probed at once. Pieces end at multiples of it, so that none lies in two pages.
const PIECE: u64 = 64;

/// Nothing can be read at the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ProbeFault;

/// Reads `bytes` bytes from `from` on, in pieces that `each` takes, until it has enough and returns false.
fn probe(from: u64, bytes: usize, each: impl FnMut(&[u8]) -> bool) -> Result<(), ProbeFault> {
    pieces(
        |into, from| host().probe_read(into, from),
        from,
        bytes,
        each,
    )
}

/// As [`probe`], by a method of the host.
fn pieces(
    read: impl Fn(&mut [u8], u64) -> usize,
    mut from: u64,
    bytes: usize,
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<(), ProbeFault> {
    let mut left = bytes;
    while left > 0 {
        let mut piece = [0; PIECE as usize];
        let wanted = left.min((PIECE - from % PIECE) as usize);
        let room = piece.get_mut(..wanted).unwrap_or_default();
        let got = read(room, from).min(wanted);
        let go_on = each(piece.get(..got).unwrap_or_default());
        if !go_on {
            return Ok(());
        }
        if got < wanted {
            return Err(ProbeFault);
        }
        left -= got;
        from = from.wrapping_add(got as u64);
    }
    Ok(())
}

/// Reads as many bytes as `into` holds, all or none.
pub(super) fn probe_bytes(into: &mut [u8], from: u64) -> Result<(), ProbeFault> {
    let mut rest = &mut *into;
    probe(from, rest.len(), |piece| {
        let (now, later) = core::mem::take(&mut rest).split_at_mut(piece.len());
        now.copy_from_slice(piece);
        rest = later;
        true
    })
}

/// Hands on the bytes of a string at `from`, without the 0 at its end, at most `most`; how many they were.
pub(super) fn probe_string(
    from: u64,
    most: usize,
    mut each: impl FnMut(u8),
) -> Result<usize, ProbeFault> {
    let mut length = 0;
    probe(from, most, |piece| {
        for byte in piece {
            if *byte == 0 {
                return false;
            }
            each(*byte);
            length += 1;
        }
        true
    })?;
    Ok(length)
}

/// # Safety
/// `to` points to `size` writable bytes.
unsafe fn out(to: u64, size: u64) -> ProgramOut {
    // SAFETY: as this function asks for.
    unsafe { ProgramOut::new(to, size as usize) }
}

/// `long bpf_probe_read_kernel(void *dst, u32 size, const void *from)`, `bpf_probe_read`: 0, or `-EFAULT` and zeros.
pub(super) unsafe extern "C" fn probe_read_kernel(
    to: u64,
    size: u64,
    from: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `to` points to `size` writable bytes.
    let out = unsafe { out(to, size) };
    copy(out, size as usize, from, |into, from| {
        host().probe_read(into, from)
    })
}

/// Copies what `read` reads from `from` on: 0, or `-EFAULT` and zeros.
fn copy(out: ProgramOut, size: usize, from: u64, read: impl Fn(&mut [u8], u64) -> usize) -> u64 {
    let mut done = 0;
    let copied = pieces(read, from, size, |piece| {
        out.write(done, piece);
        done += piece.len();
        true
    });
    match copied {
        Ok(()) => 0,
        Err(ProbeFault) => {
            out.clear();
            error(EFAULT)
        }
    }
}

/// `long bpf_copy_from_user(void *dst, u32 size, const void *user_ptr)`: 0, or `-EFAULT` and zeros. It may sleep. There is no user
/// memory: it reads what the host brings in from somewhere slow ([`copy_from_slow`](crate::host::Host::copy_from_slow)).
pub(super) unsafe extern "C" fn copy_from_user(
    to: u64,
    size: u64,
    from: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `to` points to `size` writable bytes.
    let out = unsafe { out(to, size) };
    copy(out, size as usize, from, |into, from| {
        host().copy_from_slow(into, from)
    })
}

/// `long bpf_probe_read_kernel_str(void *dst, u32 size, const void *from)`, `bpf_probe_read_str`: the length of the string with
/// the 0 at its end, which it always has: it is cut to `size` bytes; or `-EFAULT` and zeros. What lies behind the end is left
/// as it is.
pub(super) unsafe extern "C" fn probe_read_kernel_str(
    to: u64,
    size: u64,
    from: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `to` points to `size` writable bytes.
    let out = unsafe { out(to, size) };
    // A string that is as long is cut before its last byte: it is read all the same, for it may be that it cannot be.
    let mut done = 0;
    let length = probe_string(from, size as usize, |byte| {
        out.set(done, byte);
        done += 1;
    });
    let Some(last) = (size as usize).checked_sub(1) else {
        return 0;
    };
    match length {
        Ok(length) => {
            let end = length.min(last);
            out.set(end, 0);
            end as u64 + 1
        }
        Err(ProbeFault) => {
            out.clear();
            error(EFAULT)
        }
    }
}

/// `long bpf_probe_read_user(void *dst, u32 size, const void *from)` and `bpf_probe_read_user_str`: `-EFAULT` and zeros, for there
/// is no user memory; 0 if no bytes are asked for.
pub(super) unsafe extern "C" fn probe_read_user(to: u64, size: u64, _: u64, _: u64, _: u64) -> u64 {
    // SAFETY: by this helper's row `to` points to `size` writable bytes.
    let out = unsafe { out(to, size) };
    out.clear();
    if size == 0 { 0 } else { error(EFAULT) }
}

/// `long bpf_strncmp(const char *s1, u32 size, const char *s2)`: compares `s1`, which may have no end within its `size` bytes,
/// with `s2`: negative, 0 or positive.
pub(super) unsafe extern "C" fn strncmp(first: u64, size: u64, second: u64, _: u64, _: u64) -> u64 {
    // SAFETY: by this helper's row `first` points to `size` readable bytes.
    let first = unsafe { ProgramBytes::new(first, size as usize) };
    // SAFETY: by this helper's row `second` points to a string with an end; it is not read past that.
    let second = unsafe { ProgramBytes::new(second, size as usize) };
    for index in 0..size as usize {
        let (a, b) = (first.get(index), second.get(index));
        if a != b {
            return if a < b { -1_i64 as u64 } else { 1 };
        }
        if a == Some(0) {
            break;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::{self, GUARDED, guarded};

    fn exposed<T>(value: &mut T) -> u64 {
        core::ptr::from_mut(value).expose_provenance() as u64
    }

    #[test]
    fn what_is_there_is_copied_and_what_is_not_leaves_zeros() {
        testing::register();
        let end = guarded() + GUARDED as u64;
        for start in [0, 1, 7, 8, 63, 64, 65, GUARDED as u64 - 1] {
            for size in 0..=130_usize {
                let mut buffer = [0xee_u8; 140];
                let from = guarded() + start;
                let to = exposed(&mut buffer);
                // SAFETY: the buffer has more than `size` bytes.
                let r0 = unsafe { probe_read_kernel(to, size as u64, from, 0, 0) };
                let fits = from + size as u64 <= end;
                assert_eq!(r0 as i64, if fits { 0 } else { -14 }, "{start} {size}");
                for (index, byte) in buffer.into_iter().enumerate() {
                    let want = match index {
                        _ if index >= size => 0xee,
                        _ if fits => testing::byte(start as usize + index),
                        _ => 0,
                    };
                    assert_eq!(byte, want, "{start} {size} {index}");
                }
            }
        }
    }

    #[test]
    fn strings_are_cut_have_an_end_and_fault_only_where_they_are_read() {
        testing::register();
        let last = guarded() + GUARDED as u64 - 1;
        // (from, size, r0, the buffer's start)
        for (from, size, want, text) in [
            (testing::string(), 64, 6, &b"hello\0\xee"[..]),
            (testing::string(), 6, 6, b"hello\0\xee"),
            (testing::string(), 5, 5, b"hell\0\xee"),
            (testing::string(), 1, 1, b"\0\xee"),
            (testing::string(), 0, 0, b"\xee"),
            // Up to the last byte that is there, and one byte past it.
            (last, 1, 1, b"\0\xee"),
            (last, 2, -14, b"\0\0\xee"),
            (0, 4, -14, b"\0\0\0\0\xee"),
            (u64::MAX, 4, -14, b"\0\0\0\0\xee"),
        ] {
            let mut buffer = [0xee_u8; 80];
            let to = exposed(&mut buffer);
            // SAFETY: the buffer has more than `size` bytes.
            let r0 = unsafe { probe_read_kernel_str(to, size, from, 0, 0) };
            assert_eq!(r0 as i64, want, "{from:#x} {size}");
            assert_eq!(&buffer[..text.len()], text, "{from:#x} {size}");
        }
    }

    #[test]
    fn what_is_brought_in_is_copied_and_nothing_else() {
        testing::register();
        for (from, size, want) in [
            (testing::slow(), 8, 0),
            (testing::slow() + 60, 100, 0),
            (testing::slow() + 60, 101, -14),
            (testing::slow() - 1, 8, -14),
            (testing::guarded(), 8, -14),
        ] {
            let mut buffer = [0xee_u8; 128];
            let to = exposed(&mut buffer);
            // SAFETY: the buffer has more than `size` bytes.
            let r0 = unsafe { copy_from_user(to, size as u64, from, 0, 0) };
            assert_eq!(r0 as i64, want, "{from:#x} {size}");
            let start = from.wrapping_sub(testing::slow()) as usize;
            for (index, found) in buffer.into_iter().enumerate() {
                let expected = match index {
                    _ if index >= size => 0xee,
                    _ if want == 0 => testing::slow_byte(start + index),
                    _ => 0,
                };
                assert_eq!(found, expected, "{from:#x} {size} {index}");
            }
        }
    }

    #[test]
    fn there_is_no_user_memory() {
        let mut buffer = [0xee_u8; 9];
        let to = exposed(&mut buffer);
        // SAFETY: the buffer has more than 8 bytes.
        let r0 = unsafe { probe_read_user(to, 8, to, 0, 0) };
        assert_eq!(r0 as i64, -14);
        assert_eq!(buffer, [0, 0, 0, 0, 0, 0, 0, 0, 0xee]);
        // SAFETY: no bytes.
        assert_eq!(unsafe { probe_read_user(0, 0, to, 0, 0) }, 0);
    }

    #[test]
    fn strings_compare() {
        for (a, size, b, want) in [
            (&b"abc\0"[..], 4, &b"abc\0"[..], 0),
            (b"abc\0", 4, b"abd\0", -1),
            (b"abd\0", 4, b"abc\0", 1),
            (b"abc\0", 4, b"ab\0", 1),
            (b"ab\0c", 4, b"abc\0", -1),
            (b"ab\0c", 4, b"ab\0d", 0),
            (b"abcd", 2, b"abxx\0", 0),
            (b"abcd", 4, b"abcd\0", 0),
            (b"\xff", 1, b"\x01\0", 1),
        ] {
            let address = |text: &[u8]| text.as_ptr().expose_provenance() as u64;
            // SAFETY: `size` readable bytes and a string with an end.
            let r0 = unsafe { strncmp(address(a), size, address(b), 0, 0) };
            assert_eq!(r0 as i64, want, "{} {}", a.escape_ascii(), b.escape_ascii());
        }
    }
}
