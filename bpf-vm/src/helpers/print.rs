// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers that make text: into the trace, and into a program's memory.
//!
//! Each has the safety contract of its type in [`Function`](super::Function): its arguments are what its row says.
use super::{
    errno::{EINVAL, error},
    format::{Invalid, MAX_ARGUMENTS, Text},
    memory::{ProgramBytes, ProgramOut},
};
use crate::{host::host, map::memory::WORD_BYTES};

/// A format and the numbers that a program has in memory.
///
/// # Safety
/// `data` points to `bytes` readable bytes.
unsafe fn with_data(format: ProgramBytes, data: u64, bytes: u64) -> Result<Text, Invalid> {
    let count = bytes as usize / WORD_BYTES;
    if !bytes.is_multiple_of(WORD_BYTES as u64) || count > MAX_ARGUMENTS {
        return Err(Invalid);
    }
    if data == 0 && bytes != 0 {
        return Err(Invalid);
    }
    // SAFETY: as this function asks for.
    let data = unsafe { ProgramBytes::new(data, bytes as usize) };
    let arguments: [u64; MAX_ARGUMENTS] = core::array::from_fn(|i| data.word(i * WORD_BYTES));
    let arguments = arguments.get(..count).unwrap_or_default();
    Ok(Text::new(format, arguments))
}

/// Prints a text; its length in bytes, or `-EINVAL` for a format that [`Text`] does not take.
fn print(text: Result<Text, Invalid>) -> u64 {
    let printed = text.and_then(|text| {
        let length = text.length()?;
        host().print(format_args!("{text}"));
        Ok(length)
    });
    printed.unwrap_or(error(EINVAL))
}

/// `long bpf_trace_printk(const char *fmt, u32 fmt_size, a, b, c)`: the length printed, or `-EINVAL` for a format
/// that [`Text`] does not take, or with more than three conversions.
pub(super) unsafe extern "C" fn trace_printk(
    format: u64,
    size: u64,
    first: u64,
    second: u64,
    third: u64,
) -> u64 {
    // SAFETY: by this helper's row `format` points to `size` readable bytes.
    let format = unsafe { ProgramBytes::new(format, size as usize) };
    print(Ok(Text::new(format, &[first, second, third])))
}

/// `long bpf_trace_vprintk(const char *fmt, u32 fmt_size, const void *data, u32 data_len)`: as `bpf_trace_printk`, with up to
/// twelve numbers in memory.
pub(super) unsafe extern "C" fn trace_vprintk(
    format: u64,
    size: u64,
    data: u64,
    bytes: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `format` points to `size` readable bytes.
    let format = unsafe { ProgramBytes::new(format, size as usize) };
    // SAFETY: by this helper's row `data` points to `bytes` readable bytes, or is 0 with 0 bytes.
    print(unsafe { with_data(format, data, bytes) })
}

/// `long bpf_snprintf(char *str, u32 size, const char *fmt, u64 *data, u32 data_len)`: the length of the whole text with the 0 at
/// its end, of which as much is written as fits, or `-EINVAL` and nothing is written.
pub(super) unsafe extern "C" fn snprintf(
    to: u64,
    size: u64,
    format: u64,
    data: u64,
    bytes: u64,
) -> u64 {
    // SAFETY: by this helper's row `format` is a string with an end, and nothing writes it.
    let format = unsafe { ProgramBytes::string(format) };
    // SAFETY: by this helper's row `to` points to `size` writable bytes, or is 0 with 0 bytes.
    let out = unsafe { ProgramOut::new(to, size as usize) };
    // SAFETY: by this helper's row `data` points to `bytes` readable bytes, or is 0 with 0 bytes.
    let text = unsafe { with_data(format, data, bytes) };
    match text.and_then(|text| text.write_into(out)) {
        Ok(length) => length + 1,
        Err(Invalid) => error(EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing;

    fn address(bytes: &[u8]) -> u64 {
        bytes.as_ptr().expose_provenance() as u64
    }

    fn words(words: &[u64]) -> u64 {
        words.as_ptr().expose_provenance() as u64
    }

    #[test]
    fn printing_returns_the_length_and_refuses_what_does_not_fit() {
        testing::register();
        let format = b"%d-%d-%d\0";
        let data = [1, 22, 333, 4444];
        testing::printed();
        // SAFETY: a format of that size.
        let r0 = unsafe { trace_printk(address(format), 9, 1, 22, 333) };
        assert_eq!((r0, testing::printed().as_str()), (8, "1-22-333"));
        for (size, data, bytes, want, printed) in [
            (9, words(&data), 24, 8, "1-22-333"),
            (9, words(&data), 32, 8, "1-22-333"),
            (9, words(&data), 16, -22, ""),
            (9, words(&data), 23, -22, ""),
            (9, words(&data), 13 * 8, -22, ""),
            (9, 0, 0, -22, ""),
            (9, 0, 24, -22, ""),
            (8, words(&data), 24, -22, ""),
        ] {
            // SAFETY: a format of that size; as much data as is read, for more than 12 words are refused before.
            let r0 = unsafe { trace_vprintk(address(format), size, data, bytes, 0) };
            assert_eq!((r0 as i64, testing::printed().as_str()), (want, printed));
        }
    }

    #[test]
    fn snprintf_counts_the_end() {
        let mut memory = [0xee_u8; 8];
        let to = memory.as_mut_ptr().expose_provenance() as u64;
        let data = [12345];
        let call = |size, format: &[u8], data, bytes| {
            // SAFETY: `size` is at most 8; a format with its end; `bytes` bytes of data.
            let r0 = unsafe { snprintf(to, size, address(format), data, bytes) };
            // SAFETY: the live buffer above.
            let memory =
                unsafe { core::ptr::with_exposed_provenance::<[u8; 8]>(to as usize).read() };
            (r0 as i64, memory)
        };
        assert_eq!(call(8, b"%d\0", words(&data), 7), (-22, [0xee; 8]));
        assert_eq!(call(8, b"%n\0", words(&data), 8), (-22, [0xee; 8]));
        assert_eq!(call(0, b"%d\0", words(&data), 8), (6, [0xee; 8]));
        assert_eq!(
            call(4, b"%d\0", words(&data), 8),
            (6, *b"123\0\xee\xee\xee\xee")
        );
        assert_eq!(call(8, b"%d\0", words(&data), 8), (6, *b"12345\0\xee\xee"));
        assert_eq!(call(1, b"\0", 0, 0), (1, *b"\x002345\0\xee\xee"));
        // SAFETY: no buffer, a format with its end.
        assert_eq!(unsafe { snprintf(0, 0, address(b"four\0"), 0, 0) }, 5);
    }
}
