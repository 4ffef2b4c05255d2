// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers on dynptrs: memory whose size is known when the program runs, a ring buffer's record or a map's value.
//!
//! `struct bpf_dynptr` is 16 opaque bytes on the program's stack: here the address, then the size with the kind above it.
//! A null one is all zeros. Each function has the safety contract of its type in [`Function`](super::Function).
use core::{
    ptr::with_exposed_provenance_mut,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    errno::{E2BIG, EINVAL, error},
    map::{commit, map},
    memory::{ProgramBytes, ProgramOut},
};
use crate::map::memory::WORD_BYTES;

/// Bytes of a `struct bpf_dynptr`.
pub(crate) const DYNPTR_BYTES: u64 = 16;
/// The most bytes behind one (Linux: `DYNPTR_MAX_SIZE`).
const MOST: u64 = (1 << 24) - 1;
/// Where the kind is in the second word.
const KIND_SHIFT: u32 = 28;

/// What a dynptr's memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// In a map's value (`bpf_dynptr_from_mem`).
    Value = 1,
    /// A record (`bpf_ringbuf_reserve_dynptr`).
    Record = 2,
}

/// A dynptr that is not null.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dynptr {
    /// The address of its memory.
    pub(crate) data: u64,
    /// Its bytes.
    pub(crate) size: u64,
    /// What they are.
    pub(crate) kind: Kind,
}

impl Dynptr {
    /// What the words of a `struct bpf_dynptr` say: no dynptr if it is null. As an error, that no helper has written them.
    pub(crate) fn from_words([data, size]: [u64; 2]) -> Result<Option<Self>, ()> {
        let kind = match size >> KIND_SHIFT {
            0 if (data, size) == (0, 0) => return Ok(None),
            1 => Kind::Value,
            2 => Kind::Record,
            _ => return Err(()),
        };
        let size = size & ((1 << KIND_SHIFT) - 1);
        match data != 0 && size <= MOST {
            true => Ok(Some(Self { data, size, kind })),
            false => Err(()),
        }
    }

    fn words(self) -> [u64; 2] {
        [self.data, self.size | (self.kind as u64) << KIND_SHIFT]
    }

    /// The address of `len` bytes at `offset`; `-E2BIG` if they are not all its.
    fn at(self, offset: u64, len: u64) -> Result<u64, u64> {
        // The helpers take a `u32`.
        let offset = offset & u64::from(u32::MAX);
        match self.size.checked_sub(len) {
            Some(last) if offset <= last => Ok(self.data + offset),
            _ => Err(error(E2BIG)),
        }
    }
}

/// The words of a dynptr.
///
/// # Safety
/// `at` is the aligned address of 16 bytes that are read and written atomically or by programs, for as long as `'a`.
unsafe fn words<'a>(at: u64) -> [&'a AtomicU64; 2] {
    [at, at + WORD_BYTES as u64].map(|word| {
        let word = with_exposed_provenance_mut(word as usize);
        // SAFETY: one of the two words, aligned.
        unsafe { AtomicU64::from_ptr(word) }
    })
}

/// The dynptr at an address, if it is none that is null.
///
/// # Safety
/// `at` is the address of a `struct bpf_dynptr`.
unsafe fn read(at: u64) -> Option<Dynptr> {
    // SAFETY: as this function asks for.
    let words = unsafe { words(at) };
    Dynptr::from_words(words.map(|word| word.load(Relaxed)))
        .ok()
        .flatten()
}

/// Makes a dynptr at an address, a null one if that is an error: 0, or the error's number.
///
/// # Safety
/// `at` is the address of room for a `struct bpf_dynptr`.
unsafe fn make(at: u64, dynptr: Result<Dynptr, u64>) -> u64 {
    let values = dynptr.map_or([0; 2], Dynptr::words);
    // SAFETY: as this function asks for.
    let words = unsafe { words(at) };
    for (word, value) in words.into_iter().zip(values) {
        word.store(value, Relaxed);
    }
    dynptr.err().unwrap_or(0)
}

/// `long bpf_dynptr_from_mem(data, size, flags, dynptr)`: a dynptr of a map's value; 0 or a negative error number.
pub(super) unsafe extern "C" fn dynptr_from_mem(
    data: u64,
    size: u64,
    flags: u64,
    dynptr: u64,
    _: u64,
) -> u64 {
    let kind = Kind::Value;
    let made = if size > MOST {
        Err(error(E2BIG))
    } else if flags != 0 {
        Err(error(EINVAL))
    } else {
        Ok(Dynptr { data, size, kind })
    };
    // SAFETY: by this helper's row `dynptr` is the address of room for one.
    unsafe { make(dynptr, made) }
}

/// `long bpf_ringbuf_reserve_dynptr(map, size, flags, dynptr)`: a dynptr of a record to be written; 0, or a negative error
/// number and a null dynptr.
pub(super) unsafe extern "C" fn ringbuf_reserve_dynptr(
    handle: u64,
    size: u64,
    flags: u64,
    dynptr: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    // The helper takes a `u32`.
    let size = size & u64::from(u32::MAX);
    let kind = Kind::Record;
    let made = if flags != 0 {
        Err(error(EINVAL))
    } else if size > MOST {
        Err(error(E2BIG))
    } else {
        let record = map.reserve(size).ok_or(error(EINVAL));
        record.map(|data| Dynptr { data, size, kind })
    };
    // SAFETY: by this helper's row `dynptr` is the address of room for one.
    unsafe { make(dynptr, made) }
}

/// `void bpf_ringbuf_submit_dynptr(dynptr, flags)`: hands its record to the reader; a null one is left alone.
pub(super) unsafe extern "C" fn ringbuf_submit_dynptr(
    dynptr: u64,
    flags: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: the two rows ask for the same.
    unsafe { end(dynptr, false, flags) }
}

/// `void bpf_ringbuf_discard_dynptr(dynptr, flags)`: gives its record up; a null one is left alone.
pub(super) unsafe extern "C" fn ringbuf_discard_dynptr(
    dynptr: u64,
    flags: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: the two rows ask for the same.
    unsafe { end(dynptr, true, flags) }
}

/// # Safety
/// `at` is the address of a dynptr of a record that is reserved in a map that lives, or of a null one.
unsafe fn end(at: u64, discard: bool, flags: u64) -> u64 {
    // SAFETY: as this function asks for.
    if let Some(dynptr) = unsafe { read(at) } {
        // SAFETY: as this function asks for.
        unsafe { commit(dynptr.data, discard, flags) };
        // SAFETY: as this function asks for.
        unsafe { make(at, Err(0)) };
    }
    0
}

/// `long bpf_dynptr_read(to, len, dynptr, offset, flags)`: copies out of its memory; 0 or a negative error number.
pub(super) unsafe extern "C" fn dynptr_read(
    to: u64,
    len: u64,
    dynptr: u64,
    offset: u64,
    flags: u64,
) -> u64 {
    // SAFETY: by this helper's row `dynptr` is the address of one.
    let Some(dynptr) = unsafe { read(dynptr) }.filter(|_| flags == 0) else {
        return error(EINVAL);
    };
    let from = match dynptr.at(offset, len) {
        Ok(from) => from,
        Err(error) => return error,
    };
    // SAFETY: `len` bytes of the dynptr's memory, which is readable by this helper's row.
    let from = unsafe { ProgramBytes::new(from, len as usize) };
    // SAFETY: by this helper's row `to` points to `len` writable bytes.
    unsafe { ProgramOut::new(to, len as usize) }.move_from(from);
    0
}

/// `long bpf_dynptr_write(dynptr, offset, from, len, flags)`: copies into its memory; 0 or a negative error number. No dynptr
/// here is read-only.
pub(super) unsafe extern "C" fn dynptr_write(
    dynptr: u64,
    offset: u64,
    from: u64,
    len: u64,
    flags: u64,
) -> u64 {
    // SAFETY: by this helper's row `dynptr` is the address of one.
    let Some(dynptr) = (unsafe { read(dynptr) }) else {
        return error(EINVAL);
    };
    let to = match dynptr.at(offset, len) {
        Ok(to) => to,
        Err(error) => return error,
    };
    if flags != 0 {
        return error(EINVAL);
    }
    // SAFETY: by this helper's row `from` points to `len` readable bytes.
    let from = unsafe { ProgramBytes::new(from, len as usize) };
    // SAFETY: `len` bytes of the dynptr's memory, which is writable by this helper's row.
    unsafe { ProgramOut::new(to, len as usize) }.move_from(from);
    0
}

/// `void *bpf_dynptr_data(dynptr, offset, len)`: the address of `len` bytes of its memory, or 0.
pub(super) unsafe extern "C" fn dynptr_data(
    dynptr: u64,
    offset: u64,
    len: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `dynptr` is the address of one.
    let dynptr = unsafe { read(dynptr) };
    let data = dynptr.map(|dynptr| dynptr.at(offset, len & u64::from(u32::MAX)));
    data.and_then(Result::ok).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_a_dynptr_only_if_a_helper_can_have_written_them() {
        for kind in [Kind::Value, Kind::Record] {
            for size in [0, 1, MOST] {
                let data = 0x1000;
                let dynptr = Dynptr { data, size, kind };
                assert_eq!(Dynptr::from_words(dynptr.words()), Ok(Some(dynptr)));
            }
        }
        assert_eq!(Dynptr::from_words([0, 0]), Ok(None));
        for words in [
            [0x1000, 0],
            [0, 8],
            [0, 1 << KIND_SHIFT | 8],
            [0x1000, 3 << KIND_SHIFT | 8],
            [0x1000, (1 << KIND_SHIFT) + MOST + 1],
            [0x1000, 1 << 60 | 1 << KIND_SHIFT | 8],
        ] {
            assert_eq!(Dynptr::from_words(words), Err(()), "{words:x?}");
        }
    }
}
