// SPDX-License-Identifier: MIT OR Apache-2.0
//! The format language of `bpf_trace_printk`: printf's numbers, three of them at most.
//!
//! Taken: `%d %i %u %x %X` with `l` or `ll` for 64 bits, `%c`, `%p` and its forms as plain hexadecimal, `%%`, the
//! flags `-+ #0` and a width. Refused, as anything unknown: `%s`, since a program's pointer to a string is not known
//! to be readable. The text is made while it is written out, so that nothing is buffered.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use super::memory::ProgramBytes;

/// Conversions that one format may hold; the helper has no more arguments.
const MAX_ARGUMENTS: usize = 3;
/// The widest field that a format may ask for.
const MAX_WIDTH: usize = 99;
/// Digits of the longest number: 2^64 in decimal.
const MAX_DIGITS: usize = 20;
/// Hexadecimal digits of an address, which `%p` always prints in full.
const ADDRESS_DIGITS: usize = 16;

/// A format and its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    format: ProgramBytes,
    arguments: [u64; MAX_ARGUMENTS],
}

/// How a conversion is laid out.
#[derive(Clone, Copy, Default)]
struct Field {
    left: bool,
    zeros: bool,
    plus: bool,
    space: bool,
    prefix: bool,
    width: usize,
}

impl Text {
    /// A format that ends in a NUL inside of `format`.
    pub(super) fn new(format: ProgramBytes, arguments: [u64; MAX_ARGUMENTS]) -> Self {
        Self { format, arguments }
    }

    /// Bytes of the text; an error if the format is not one that can be printed.
    pub(super) fn length(&self) -> Result<u64, fmt::Error> {
        struct Length(u64);
        impl Write for Length {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0 += text.len() as u64;
                Ok(())
            }
        }
        let mut length = Length(0);
        self.write_to(&mut length)?;
        Ok(length.0)
    }

    /// The format's character at `index`; an error past the end (there was no NUL), or if it is not text.
    fn at(&self, index: usize) -> Result<u8, fmt::Error> {
        match self.format.get(index) {
            Some(byte) if byte == 0 || byte.is_ascii_graphic() || is_space(byte) => Ok(byte),
            _ => Err(fmt::Error),
        }
    }

    fn write_to(&self, out: &mut dyn Write) -> fmt::Result {
        let mut arguments = self.arguments.iter().copied();
        let mut index = 0;
        loop {
            match self.at(index)? {
                0 => return Ok(()),
                b'%' if self.at(index + 1)? == b'%' => {
                    out.write_char('%')?;
                    index += 2;
                }
                b'%' => {
                    let argument = arguments.by_ref().next();
                    index = self.convert(index + 1, argument.ok_or(fmt::Error)?, out)?;
                }
                byte => {
                    out.write_char(byte.into())?;
                    index += 1;
                }
            }
        }
    }

    /// Writes one conversion, whose flags start at `index`; returns the index after it.
    fn convert(
        &self,
        mut index: usize,
        argument: u64,
        out: &mut dyn Write,
    ) -> Result<usize, fmt::Error> {
        let mut field = Field::default();
        loop {
            match self.at(index)? {
                b'-' => field.left = true,
                b'0' => field.zeros = true,
                b'+' => field.plus = true,
                b' ' => field.space = true,
                b'#' => field.prefix = true,
                _ => break,
            }
            index += 1;
        }
        while let digit @ b'0'..=b'9' = self.at(index)? {
            field.width = field.width * 10 + usize::from(digit - b'0');
            if field.width > MAX_WIDTH {
                return Err(fmt::Error);
            }
            index += 1;
        }
        let mut long = false;
        for _ in 0..2 {
            if self.at(index)? == b'l' {
                long = true;
                index += 1;
            }
        }
        let kind = self.at(index)?;
        index += 1;
        let unsigned = if long {
            argument
        } else {
            u64::from(argument as u32)
        };
        match kind {
            b'd' | b'i' => {
                let signed = if long {
                    argument as i64
                } else {
                    i64::from(argument as i32)
                };
                let sign = match signed {
                    ..0 => "-",
                    _ if field.plus => "+",
                    _ if field.space => " ",
                    _ => "",
                };
                field.number(out, sign, signed.unsigned_abs(), 10, false)?;
            }
            b'u' => field.number(out, "", unsigned, 10, false)?,
            b'x' | b'X' => {
                let prefix = match (field.prefix && unsigned != 0, kind) {
                    (false, _) => "",
                    (true, b'X') => "0X",
                    (true, _) => "0x",
                };
                field.number(out, prefix, unsigned, 16, kind == b'X')?;
            }
            b'c' if !long => {
                let byte = argument as u8;
                let mut buffer = [0; 4];
                let text = char::from(byte).encode_utf8(&mut buffer);
                Field {
                    zeros: false,
                    ..field
                }
                .pad(out, "", text)?;
            }
            b'p' if !long => {
                // %pK and %px: the same address, hidden or not; nothing is hidden here.
                index += usize::from(matches!(self.at(index)?, b'K' | b'x'));
                if self.at(index)?.is_ascii_alphanumeric() {
                    return Err(fmt::Error);
                }
                let address = Field {
                    zeros: true,
                    width: ADDRESS_DIGITS.max(field.width),
                    ..Field::default()
                };
                address.number(out, "", argument, 16, false)?;
            }
            _ => return Err(fmt::Error),
        }
        Ok(index)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_to(f)
    }
}

impl Field {
    /// Writes `sign` and the digits of `number`, padded to the width.
    fn number(
        self,
        out: &mut dyn Write,
        sign: &str,
        mut number: u64,
        base: u32,
        upper: bool,
    ) -> fmt::Result {
        let mut digits = [0; MAX_DIGITS];
        let mut count = 0;
        for slot in digits.iter_mut().rev() {
            let digit = char::from_digit((number % u64::from(base)) as u32, base).unwrap_or('?');
            *slot = if upper {
                digit.to_ascii_uppercase()
            } else {
                digit
            } as u8;
            count += 1;
            number /= u64::from(base);
            if number == 0 {
                break;
            }
        }
        let digits = digits.get(MAX_DIGITS - count..).unwrap_or_default();
        self.pad(
            out,
            sign,
            core::str::from_utf8(digits).map_err(|_| fmt::Error)?,
        )
    }

    /// Writes `sign` and `text`, padded to the width where the flags say.
    fn pad(self, out: &mut dyn Write, sign: &str, text: &str) -> fmt::Result {
        let missing = self.width.saturating_sub(sign.len() + text.chars().count());
        let repeat =
            |out: &mut dyn Write, fill, times| (0..times).try_for_each(|_| out.write_char(fill));
        let zeros = self.zeros && !self.left;
        if !self.left && !zeros {
            repeat(out, ' ', missing)?;
        }
        out.write_str(sign)?;
        if zeros {
            repeat(out, '0', missing)?;
        }
        out.write_str(text)?;
        if self.left {
            repeat(out, ' ', missing)?;
        }
        Ok(())
    }
}

/// C's `isspace` in the C locale.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};

    use super::*;

    fn print(format: &'static [u8], arguments: [u64; 3]) -> Option<String> {
        let text = Text::new(ProgramBytes::of_static(format), arguments);
        let length = text.length().ok()?;
        let text = text.to_string();
        assert_eq!(length, text.len() as u64);
        Some(text)
    }

    #[test]
    fn formats() {
        let minus = -5i64 as u64;
        for (format, arguments, want) in [
            (&b"\0"[..], [0; 3], Some("")),
            (b"plain\ttext\n\0", [0; 3], Some("plain\ttext\n")),
            (b"%d %i %u\0", [minus, 7, minus], Some("-5 7 4294967291")),
            (
                b"%ld %lld %lu\0",
                [minus; 3],
                Some("-5 -5 18446744073709551611"),
            ),
            (b"%d\0", [1 << 32, 0, 0], Some("0")),
            (
                b"%x %lx %llX\0",
                [minus; 3],
                Some("fffffffb fffffffffffffffb FFFFFFFFFFFFFFFB"),
            ),
            (
                b"%#x|%8d|%-8d|\0",
                [255, minus, minus],
                Some("0xff|      -5|-5      |"),
            ),
            (b"%08d|%+d|% d\0", [minus, 3, 3], Some("-0000005|+3| 3")),
            (
                b"%c%c 100%%\0",
                [b'o'.into(), b'k'.into(), 0],
                Some("ok 100%"),
            ),
            (b"%p\0", [0xffff_8000, 0, 0], Some("00000000ffff8000")),
            (b"%px.\0", [u64::MAX, 0, 0], Some("ffffffffffffffff.")),
            (b"%llu\0", [u64::MAX, 0, 0], Some("18446744073709551615")),
            // Refused.
            (b"%s\0", [0; 3], None),
            (b"%d%d%d%d\0", [0; 3], None),
            (b"no end", [0; 3], None),
            (b"", [0; 3], None),
            (b"%", [0; 3], None),
            (b"%\0", [0; 3], None),
            (b"%lll\0", [0; 3], None),
            (b"%n\0", [0; 3], None),
            (b"%1000d\0", [0; 3], None),
            (b"%pI4\0", [0; 3], None),
            (b"\x1b[2J\0", [0; 3], None),
            (b"\xc3\xa4\0", [0; 3], None),
        ] {
            let name = format.escape_ascii();
            assert_eq!(print(format, arguments).as_deref(), want, "{name}");
        }
    }
}
