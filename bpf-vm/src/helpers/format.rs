// SPDX-License-Identifier: MIT OR Apache-2.0
//! The format language of `bpf_trace_printk`, `bpf_trace_vprintk` and `bpf_snprintf`.
//!
//! What Linux takes is taken, and nothing else: ASCII text, `%%`, and conversions with flags `-+ 0` and a width:
//!
//! | conversion | argument |
//! |---|---|
//! | `%d %i %u %x %X`, `l` or `ll` before | a number of 32 bits, of 64 with `l` |
//! | `%c` | a character |
//! | `%s %pks` | the address of a string, probed: nothing if it cannot be read |
//! | `%pus` | the address of a user's string: nothing, there is no user |
//! | `%p %pK %px` | an address: 16 hexadecimal digits. Linux prints a hash for the first two; here nothing is hidden |
//! | `%ps %pS %pB` | an address: the function that it lies in, with offset and size, of the byte before it (a return address) |
//! | `%pi4 %pI4 %pi6 %pI6` | the address of an IP address, probed: zeros if it cannot be read |
//!
//! Behind a conversion that begins with `%p` letters and digits are skipped. A string ends after [`MAX_STRING`] bytes, and a width
//! is at most [`MAX_WIDTH`] (Linux: 8,388,607). The text is made while it is written out, so that nothing is buffered; it is
//! bytes, for a program's string need not be UTF-8.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use super::{
    memory::{ProgramBytes, ProgramOut},
    probe::{probe_bytes, probe_string},
};
use crate::host::host;

/// Arguments that one format may have (`MAX_BPRINTF_VARARGS` in Linux).
pub(super) const MAX_ARGUMENTS: usize = 12;
/// The longest string that is printed, bytes without its end (Linux: the same, for all strings of a call together).
const MAX_STRING: usize = 511;
/// The widest field that a format may ask for, characters.
const MAX_WIDTH: usize = 1024;
/// Digits of the longest number: 2^64 in decimal.
const MAX_DIGITS: usize = 20;
/// Hexadecimal digits of an address.
const ADDRESS_DIGITS: usize = 16;

/// The format is none, or has more conversions than there are arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Invalid;

/// Where text goes, byte by byte.
trait Sink {
    fn put(&mut self, byte: u8);
}

/// Counts the bytes.
struct Length(u64);

impl Sink for Length {
    fn put(&mut self, _: u8) {
        self.0 += 1;
    }
}

/// Writes into a program's memory, with a 0 at the end, and counts what it would have written.
struct Into {
    out: ProgramOut,
    length: usize,
}

impl Sink for Into {
    fn put(&mut self, byte: u8) {
        if self.length + 1 < self.out.len() {
            self.out.set(self.length, byte);
        }
        self.length += 1;
    }
}

/// Writes to a formatter; what is no UTF-8 becomes U+FFFD.
struct Utf8<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    result: fmt::Result,
    /// The bytes of a character of which some are to come.
    started: [u8; 4],
    count: usize,
}

impl Utf8<'_, '_> {
    fn write(&mut self, c: char) {
        if self.result.is_ok() {
            self.result = self.f.write_char(c);
        }
    }

    /// Ends a character that was started.
    fn flush(&mut self) {
        if core::mem::take(&mut self.count) > 0 {
            self.write(char::REPLACEMENT_CHARACTER);
        }
    }
}

impl Sink for Utf8<'_, '_> {
    fn put(&mut self, byte: u8) {
        // A byte that does not go on with what was started ends it, and is looked at by itself.
        if byte & 0xc0 != 0x80 {
            self.flush();
        }
        if let Some(next) = self.started.get_mut(self.count) {
            *next = byte;
            self.count += 1;
        }
        let started = self.started;
        match core::str::from_utf8(started.get(..self.count).unwrap_or_default()) {
            Ok(text) => {
                self.count = 0;
                text.chars().for_each(|c| self.write(c));
            }
            Err(error) if error.error_len().is_some() => self.flush(),
            Err(_) => {}
        }
    }
}

/// A format and its arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    format: ProgramBytes,
    arguments: [u64; MAX_ARGUMENTS],
    count: usize,
}

/// How a conversion is laid out.
#[derive(Clone, Copy, Default)]
struct Field {
    left: bool,
    zeros: bool,
    plus: bool,
    space: bool,
    width: usize,
}

/// What a conversion makes of its argument.
#[derive(Clone, Copy)]
enum Kind {
    Signed {
        long: bool,
    },
    Unsigned {
        long: bool,
        base: u32,
        upper: bool,
    },
    Char,
    String,
    /// As `String`, without a width.
    KernelString,
    UserString,
    Address,
    Symbol {
        offset: bool,
    },
    ReturnAddress,
    Ip {
        six: bool,
        /// `%pI`: with dots or colons as people write it.
        punctuated: bool,
    },
}

/// The next thing that a format says.
enum Piece {
    Byte(u8),
    Convert(Field, Kind),
}

impl Text {
    /// A format that ends in a NUL inside of `format`, and its first arguments.
    pub(super) fn new(format: ProgramBytes, arguments: &[u64]) -> Self {
        let mut all = [0; MAX_ARGUMENTS];
        for (to, from) in all.iter_mut().zip(arguments) {
            *to = *from;
        }
        Self {
            format,
            arguments: all,
            count: arguments.len().min(MAX_ARGUMENTS),
        }
    }

    /// Bytes of the text; an error if the format is not one that can be printed.
    pub(super) fn length(&self) -> Result<u64, Invalid> {
        let mut length = Length(0);
        self.write_to(&mut length)?;
        Ok(length.0)
    }

    /// Writes the text, cut to what fits, and a 0 at its end; how many bytes the whole has. An error, and nothing is written, if
    /// the format is not one that can be printed.
    pub(super) fn write_into(&self, out: ProgramOut) -> Result<u64, Invalid> {
        self.length()?;
        let mut into = Into { out, length: 0 };
        let done = self.write_to(&mut into);
        if let Some(last) = out.len().checked_sub(1) {
            out.set(into.length.min(last), 0);
        }
        done.map(|()| into.length as u64)
    }

    /// The format's character at `index`; an error past the end (there was no NUL), or if it is not text.
    fn at(&self, index: usize) -> Result<u8, Invalid> {
        match self.format.get(index) {
            Some(byte) if byte == 0 || matches!(byte, b' '..=b'~') || is_space(byte) => Ok(byte),
            _ => Err(Invalid),
        }
    }

    fn write_to(&self, out: &mut dyn Sink) -> Result<(), Invalid> {
        let mut arguments = self.arguments.into_iter().take(self.count);
        let mut index = 0;
        while let Some(piece) = self.next(&mut index)? {
            match piece {
                Piece::Byte(byte) => out.put(byte),
                Piece::Convert(field, kind) => {
                    let argument = arguments.next().ok_or(Invalid)?;
                    field.convert(kind, argument, out);
                }
            }
        }
        Ok(())
    }

    /// What comes at `index`, which is moved behind it; `None` at the end.
    fn next(&self, index: &mut usize) -> Result<Option<Piece>, Invalid> {
        let mut take = || {
            let byte = self.at(*index);
            *index += 1;
            byte
        };
        let mut byte = take()?;
        if byte != b'%' {
            return Ok((byte != 0).then_some(Piece::Byte(byte)));
        }
        byte = take()?;
        if byte == b'%' {
            return Ok(Some(Piece::Byte(byte)));
        }
        let mut field = Field::default();
        loop {
            match byte {
                b'-' => field.left = true,
                b'0' => field.zeros = true,
                b'+' => field.plus = true,
                b' ' => field.space = true,
                _ => break,
            }
            byte = take()?;
        }
        while byte.is_ascii_digit() {
            field.width = field.width * 10 + usize::from(byte - b'0');
            if field.width > MAX_WIDTH {
                return Err(Invalid);
            }
            byte = take()?;
        }
        let mut long = false;
        for _ in 0..2 {
            if byte == b'l' {
                long = true;
                byte = take()?;
            }
        }
        let unsigned = |base, upper| Kind::Unsigned { long, base, upper };
        let kind = match byte {
            b'd' | b'i' => Kind::Signed { long },
            b'u' => unsigned(10, false),
            b'x' | b'X' => unsigned(16, byte == b'X'),
            b'c' if !long => Kind::Char,
            b's' if !long => {
                self.ends_string(*index)?;
                Kind::String
            }
            b'p' if !long => self.pointer(index)?,
            _ => return Err(Invalid),
        };
        Ok(Some(Piece::Convert(field, kind)))
    }

    /// A conversion's kind, from what follows `%p`.
    fn pointer(&self, index: &mut usize) -> Result<Kind, Invalid> {
        let byte = self.at(*index)?;
        if is_boundary(byte) {
            return Ok(Kind::Address);
        }
        *index += 1;
        let second = self.at(*index)?;
        let kind = match (byte, second) {
            (b'k' | b'u', b's') => {
                self.ends_string(*index + 1)?;
                if byte == b'k' {
                    Kind::KernelString
                } else {
                    Kind::UserString
                }
            }
            (b'K' | b'x', _) => Kind::Address,
            (b's' | b'S', _) => Kind::Symbol {
                offset: byte == b'S',
            },
            (b'B', _) => Kind::ReturnAddress,
            (b'i' | b'I', b'4' | b'6') => Kind::Ip {
                six: second == b'6',
                punctuated: byte == b'I',
            },
            _ => return Err(Invalid),
        };
        while self.at(*index)?.is_ascii_alphanumeric() {
            *index += 1;
        }
        Ok(kind)
    }

    /// Behind a string's conversion comes no letter and no digit.
    fn ends_string(&self, index: usize) -> Result<(), Invalid> {
        if is_boundary(self.at(index)?) {
            Ok(())
        } else {
            Err(Invalid)
        }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Utf8 {
            f,
            result: Ok(()),
            started: [0; 4],
            count: 0,
        };
        // A format that somebody changes meanwhile ends where it stops being one.
        let _ = self.write_to(&mut out);
        out.flush();
        out.result
    }
}

fn put_all(out: &mut dyn Sink, text: &str) {
    text.bytes().for_each(|byte| out.put(byte));
}

impl Field {
    /// Writes an argument.
    fn convert(self, kind: Kind, argument: u64, out: &mut dyn Sink) {
        let low = |long| {
            if long {
                argument
            } else {
                argument & 0xffff_ffff
            }
        };
        match kind {
            Kind::Signed { long } => {
                let signed = if long {
                    argument as i64
                } else {
                    i64::from(argument as i32)
                };
                let sign = match signed {
                    ..0 => "-",
                    _ if self.plus => "+",
                    _ if self.space => " ",
                    _ => "",
                };
                self.number(out, sign, signed.unsigned_abs(), 10, false);
            }
            Kind::Unsigned { long, base, upper } => self.number(out, "", low(long), base, upper),
            Kind::Char => self.text(out, &|out| out.put(argument as u8)),
            Kind::String => self.text(out, &|out| string(out, argument)),
            Kind::KernelString => string(out, argument),
            Kind::UserString => {}
            Kind::Address => {
                let field = match self.width {
                    0 => Self {
                        width: ADDRESS_DIGITS,
                        zeros: true,
                        ..self
                    },
                    _ => self,
                };
                field.number(out, "", argument, 16, false);
            }
            Kind::Symbol { offset } => self.text(out, &|out| symbol(out, argument, 0, offset)),
            Kind::ReturnAddress => symbol(out, argument, 1, true),
            Kind::Ip { six, punctuated } => ip(out, argument, six, punctuated),
        }
    }

    /// Writes `sign` and the digits of `number`, padded to the width.
    fn number(self, out: &mut dyn Sink, sign: &str, mut number: u64, base: u32, upper: bool) {
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
        let missing = self.width.saturating_sub(sign.len() + count);
        let zeros = self.zeros && !self.left;
        repeat(out, b' ', if self.left || zeros { 0 } else { missing });
        put_all(out, sign);
        repeat(out, b'0', if zeros { missing } else { 0 });
        let digits = digits.get(MAX_DIGITS - count..).unwrap_or_default();
        digits.iter().for_each(|digit| out.put(*digit));
        repeat(out, b' ', if self.left { missing } else { 0 });
    }

    /// Writes what `write` writes, padded with spaces to the width.
    fn text(self, out: &mut dyn Sink, write: &dyn Fn(&mut dyn Sink)) {
        if self.width == 0 {
            return write(out);
        }
        let mut length = Length(0);
        write(&mut length);
        let missing = self.width.saturating_sub(length.0 as usize);
        repeat(out, b' ', if self.left { 0 } else { missing });
        write(out);
        repeat(out, b' ', if self.left { missing } else { 0 });
    }
}

fn repeat(out: &mut dyn Sink, byte: u8, times: usize) {
    (0..times).for_each(|_| out.put(byte));
}

/// Writes the string at an address, or nothing if it cannot be read to its end.
fn string(out: &mut dyn Sink, address: u64) {
    if let Ok(length) = probe_string(address, MAX_STRING, |_| {}) {
        // Somebody may change it meanwhile: then it is cut.
        let _ = probe_string(address, length, |byte| out.put(byte));
    }
}

/// Writes the function that the byte `before` an address lies in; the address itself if it is none.
fn symbol(out: &mut dyn Sink, address: u64, before: u64, offset: bool) {
    let hex = |out: &mut dyn Sink, text, number| {
        put_all(out, text);
        Field::default().number(out, "", number, 16, false);
    };
    match host().symbol(address.wrapping_sub(before)) {
        Some(symbol) => {
            put_all(out, symbol.name);
            if offset {
                hex(out, "+0x", symbol.offset + before);
                hex(out, "/0x", symbol.size);
            }
        }
        None => hex(out, "0x", address),
    }
}

/// Writes the IP address at an address.
fn ip(out: &mut dyn Sink, address: u64, six: bool, punctuated: bool) {
    let mut bytes = [0; 16];
    let bytes = bytes
        .get_mut(..if six { 16 } else { 4 })
        .unwrap_or_default();
    if probe_bytes(bytes, address).is_err() {
        bytes.fill(0);
    }
    let digits = |width| Field {
        zeros: true,
        width,
        ..Field::default()
    };
    for (index, byte) in bytes.iter().enumerate() {
        let number = u64::from(*byte);
        if six {
            if punctuated && index > 0 && index % 2 == 0 {
                out.put(b':');
            }
            digits(2).number(out, "", number, 16, false);
        } else {
            if index > 0 {
                out.put(b'.');
            }
            digits(if punctuated { 0 } else { 3 }).number(out, "", number, 10, false);
        }
    }
}

/// C's `isspace` in the C locale.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Whether a word ends before it.
fn is_boundary(byte: u8) -> bool {
    byte == 0 || is_space(byte) || byte.is_ascii_punctuation()
}

#[cfg(test)]
mod tests {
    use alloc::{
        string::{String, ToString},
        vec,
    };

    use super::*;
    use crate::host::testing;

    fn print(format: &'static [u8], arguments: &[u64]) -> Option<String> {
        testing::register();
        let text = Text::new(ProgramBytes::of_static(format), arguments);
        let length = text.length().ok()?;
        let mut memory = vec![0xee_u8; length as usize + 2];
        let address = memory.as_mut_ptr().expose_provenance() as u64;
        let out = ProgramOut::of_mut(address, length as usize + 1);
        assert_eq!(text.write_into(out), Ok(length));
        let text = text.to_string();
        assert_eq!(String::from_utf8_lossy(&memory[..length as usize]), text);
        assert_eq!(memory[length as usize..], [0, 0xee]);
        Some(text)
    }

    #[test]
    fn formats() {
        let minus = -5i64 as u64;
        let guarded = testing::guarded();
        let end = guarded + testing::GUARDED as u64;
        for (format, arguments, want) in [
            (&b"\0"[..], &[][..], Some("")),
            (b"plain\ttext\n\0", &[], Some("plain\ttext\n")),
            (
                b"one argument too many\0",
                &[1],
                Some("one argument too many"),
            ),
            (b"%d %i %u\0", &[minus, 7, minus], Some("-5 7 4294967291")),
            (
                b"%ld %lld %lu\0",
                &[minus; 3],
                Some("-5 -5 18446744073709551611"),
            ),
            (b"%d\0", &[1 << 32], Some("0")),
            (
                b"%x %lx %llX\0",
                &[minus; 3],
                Some("fffffffb fffffffffffffffb FFFFFFFFFFFFFFFB"),
            ),
            (b"%8d|%-8d|\0", &[minus, minus], Some("      -5|-5      |")),
            (b"%08d|%+d|% d\0", &[minus, 3, 3], Some("-0000005|+3| 3")),
            (
                b"%-08d|%+u|%5X\0",
                &[minus, 3, 171],
                Some("-5      |3|   AB"),
            ),
            (
                b"%c%c 100%%\0",
                &[b'o'.into(), b'k'.into()],
                Some("ok 100%"),
            ),
            (
                b"%3c|%-3c|\0",
                &[b'a'.into(), b'b'.into()],
                Some("  a|b  |"),
            ),
            (b"%c%c\0", &[0xc3, 0xa4], Some("\u{e4}")),
            (b"%c%c\0", &[0xc3, b'a'.into()], Some("\u{fffd}a")),
            (b"%c\0", &[0xff], Some("\u{fffd}")),
            (
                b"%llu %llu %llu %llu %llu\0",
                &[u64::MAX, 1, 2, 3, 4],
                Some("18446744073709551615 1 2 3 4"),
            ),
            // Addresses.
            (b"%p\0", &[0xffff_8000], Some("00000000ffff8000")),
            (b"%px.\0", &[u64::MAX], Some("ffffffffffffffff.")),
            (
                b"%pK|%3px|%03px|%-3px|\0",
                &[1; 4],
                Some("0000000000000001|  1|001|1  |"),
            ),
            (b"%p%%\0", &[1], Some("0000000000000001%")),
            (b"%pxyz9 z\0", &[1], Some("0000000000000001 z")),
            (
                b"%ps %pS\0",
                &[0x1010; 2],
                Some("some::function some::function+0x10/0x80"),
            ),
            (b"%pB\0", &[0x1080], Some("some::function+0x80/0x80")),
            (b"%pS %pB\0", &[0x1080, 0x1000], Some("0x1080 0x1000")),
            (
                b"%16ps|%-16ps|\0",
                &[0x1000; 2],
                Some("  some::function|some::function  |"),
            ),
            // Strings.
            (
                b"%s, %s!\0",
                &[testing::string(), testing::string() + 6],
                Some("hello, world!"),
            ),
            (
                b"%7s|%-7s|\0",
                &[testing::string(); 2],
                Some("  hello|hello  |"),
            ),
            (b"<%s%4s>\0", &[0, u64::MAX], Some("<    >")),
            (b"<%s>\0", &[end - 1], Some("<>")),
            (
                b"<%pks|%9pks|%pus>\0",
                &[testing::string(); 3],
                Some("<hello|hello|>"),
            ),
            // Internet addresses: 1.2.3.4 and so on.
            (
                b"%pI4 %pi4\0",
                &[guarded; 2],
                Some("1.2.3.4 001.002.003.004"),
            ),
            (
                b"%pI6 %pi6\0",
                &[guarded + 8; 2],
                Some("090a:0b0c:0d0e:0f10:1112:1314:1516:1718 090a0b0c0d0e0f101112131415161718"),
            ),
            (
                b"%pI4 %pi6\0",
                &[end - 3, end - 15],
                Some("0.0.0.0 00000000000000000000000000000000"),
            ),
            // Refused.
            (b"%d%d%d%d\0", &[0; 3], None),
            (b"%d\0", &[], None),
            (b"no end", &[0; 3], None),
            (b"", &[0; 3], None),
            (b"%", &[0; 3], None),
            (b"%\0", &[0; 3], None),
            (b"%--\0", &[0; 3], None),
            (b"%-9\0", &[0; 3], None),
            (b"%lll\0", &[0; 3], None),
            (b"%lc\0", &[0; 3], None),
            (b"%ls\0", &[0; 3], None),
            (b"%n\0", &[0; 3], None),
            (b"%f\0", &[0; 3], None),
            (b"%#x\0", &[0; 3], None),
            (b"%o\0", &[0; 3], None),
            (b"%hd\0", &[0; 3], None),
            (b"%zu\0", &[0; 3], None),
            (b"%.3s\0", &[0; 3], None),
            (b"%*d\0", &[0; 3], None),
            (b"%sx\0", &[0; 3], None),
            (b"%pksx\0", &[0; 3], None),
            (b"%pk\0", &[0; 3], None),
            (b"%1025d\0", &[0; 3], None),
            (b"%pI5\0", &[0; 3], None),
            (b"%pU\0", &[0; 3], None),
            (b"%px", &[0; 3], None),
            (b"\x1b[2J\0", &[0; 3], None),
            (b"\xc3\xa4\0", &[0; 3], None),
            (b"\x7f\0", &[0; 3], None),
        ] {
            let name = format.escape_ascii();
            assert_eq!(print(format, arguments).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn what_does_not_fit_is_cut_and_has_an_end() {
        let text = Text::new(ProgramBytes::of_static(b"%d bytes\0"), &[12345]);
        for size in 0..=16 {
            let mut memory = [0xee_u8; 17];
            let address = memory.as_mut_ptr().expose_provenance() as u64;
            assert_eq!(text.write_into(ProgramOut::of_mut(address, size)), Ok(11));
            let kept = size.saturating_sub(1).min(11);
            assert_eq!(memory[..kept], b"12345 bytes"[..kept]);
            let after = if size == 0 { 0xee } else { 0 };
            assert_eq!(memory[kept], after, "{size}");
            assert!(memory[kept + 1..].iter().all(|byte| *byte == 0xee));
        }
    }
}
