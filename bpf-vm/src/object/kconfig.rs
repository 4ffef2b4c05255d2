// SPDX-License-Identifier: MIT OR Apache-2.0
//! `.kconfig`: what a kernel was configured with, as read-only variables of a program.
#![forbid(unsafe_code)]

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use crate::btf::{Btf, BtfError, Kind};

/// The section of C declarations, and the name of the map that the values are in.
pub(super) const SECTION: &str = ".kconfig";
/// The enum that libbpf's `bpf_helpers.h` has for `n`, `y` and `m`, by the numbers that its enumerators have there.
const TRISTATE: &str = "libbpf_tristate";
const TRISTATE_VALUES: [(&str, u64); 3] = [("n", 0), ("y", 1), ("m", 2)];

/// How a value is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Bool,
    Tristate,
    /// `y`, `m` or `n` as a letter, or a number.
    Char {
        signed: bool,
    },
    Integer {
        signed: bool,
    },
    /// Bytes that end with a 0.
    String,
}

/// One variable of `.kconfig`.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    form: Form,
    pub(super) bytes: u32,
    pub(super) offset: u32,
}

impl Setting {
    /// The variable of a type, at an offset that its caller knows better; `Err(None)`, if the type is none of those that
    /// `.kconfig` takes.
    pub(super) fn of_type(btf: &Btf<'_>, type_id: u32) -> Result<Self, Option<BtfError>> {
        let (id, found) = btf.resolve(type_id)?;
        let bytes = u32::try_from(btf.size_of(id)?).map_err(|_| None)?;
        let form = if let Some(integer) = btf.integer(id)? {
            let signed = integer.signed;
            match bytes {
                1 if integer.boolean => Form::Bool,
                1 => Form::Char { signed },
                2 | 4 | 8 => Form::Integer { signed },
                _ => return Err(None),
            }
        } else if found.kind().is_enum() && btf.name(id)? == TRISTATE && matches!(bytes, 4 | 8) {
            Form::Tristate
        } else if found.kind() == Kind::ARRAY
            && let Some((element, _)) = btf.array(id)?
            && btf
                .integer(element)?
                .is_some_and(|i| i.bytes == 1 && !i.boolean)
            && bytes > 0
        {
            Form::String
        } else {
            return Err(None);
        };
        Ok(Self {
            form,
            bytes,
            offset: 0,
        })
    }

    /// What its offset has to be a multiple of.
    pub(super) fn alignment(&self) -> u32 {
        match self.form {
            Form::String => 1,
            _ => self.bytes,
        }
    }

    /// The value that a `.config` file has, as the variable holds it; what follows a string is zeros.
    pub(super) fn value(&self, text: &str) -> Result<Vec<u8>, String> {
        if self.form == Form::String {
            let inside = text
                .strip_prefix('"')
                .and_then(|text| text.strip_suffix('"'));
            let inside =
                inside.ok_or_else(|| format!("the value is {text}, the variable a string"))?;
            // What does not fit is cut off, as libbpf does.
            let room = (self.bytes as usize).saturating_sub(1);
            return Ok(inside.bytes().take(room).collect());
        }
        let state = TRISTATE_VALUES.iter().find(|(letter, _)| *letter == text);
        let (value, signed) = match (self.form, state) {
            (Form::Bool, Some((_, value @ 0..=1))) => (i128::from(*value), false),
            (Form::Tristate, Some((_, value))) => (i128::from(*value), false),
            (Form::Char { signed }, Some((letter, _))) => {
                let letter = letter.bytes().next().unwrap_or_default();
                (letter.into(), signed)
            }
            (Form::Char { signed } | Form::Integer { signed }, None) => {
                let value = number(text)
                    .ok_or_else(|| format!("the value is {text}, the variable an integer"))?;
                (value, signed)
            }
            (form, _) => {
                let is = match form {
                    Form::Bool => "a bool (y or n)",
                    Form::Tristate => "an enum libbpf_tristate (y, m or n)",
                    _ => "an integer",
                };
                return Err(format!("the value is {text}, the variable {is}"));
            }
        };
        let bits = 8 * self.bytes;
        let range = if signed {
            -(1i128 << (bits - 1))..1i128 << (bits - 1)
        } else {
            0..1i128 << bits
        };
        if !range.contains(&value) {
            return Err(format!(
                "the value is {text}, the variable a{} integer of {} bytes",
                if signed { " signed" } else { "n unsigned" },
                self.bytes
            ));
        }
        let bytes = value.to_le_bytes();
        Ok(bytes.iter().copied().take(self.bytes as usize).collect())
    }
}

/// A number as C and Kconfig write it: decimal, `0x` for hexadecimal, a leading 0 for octal.
fn number(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (digits, radix) =
        if let Some(digits) = digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
            (digits, 16)
        } else if digits.len() > 1 && digits.starts_with('0') {
            (digits, 8)
        } else {
            (digits, 10)
        };
    // No sign of the radix parser's own.
    let digits = digits.chars().next()?.is_alphanumeric().then_some(digits)?;
    let value = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { -value } else { value })
}

/// Where each variable lies: the strictest alignment first, then by name. Returns the bytes of all.
pub(super) fn lay_out(settings: &mut [(&str, &mut Setting)]) -> Result<u32, String> {
    settings.sort_by_key(|(name, setting)| (u32::MAX - setting.alignment(), name.to_string()));
    let mut end = 0u32;
    for (name, setting) in settings {
        let start = end.next_multiple_of(setting.alignment().max(1));
        let after = start.checked_add(setting.bytes);
        end = after.ok_or_else(|| format!("`{name}` ends past 4 GiB"))?;
        setting.offset = start;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_as_the_variable_says() {
        let setting = |form, bytes| Setting {
            form,
            bytes,
            offset: 0,
        };
        let int = |signed, bytes| setting(Form::Integer { signed }, bytes);
        let char = setting(Form::Char { signed: true }, 1);
        for (setting, text, want) in [
            (setting(Form::Bool, 1), "y", Some(&[1][..])),
            (setting(Form::Bool, 1), "n", Some(&[0])),
            (setting(Form::Bool, 1), "m", None),
            (setting(Form::Bool, 1), "1", None),
            (setting(Form::Tristate, 4), "m", Some(&[2, 0, 0, 0])),
            (setting(Form::Tristate, 4), "2", None),
            (char.clone(), "m", Some(b"m")),
            (char.clone(), "-128", Some(&[0x80])),
            (char, "128", None),
            (int(true, 4), "-1", Some(&[0xff; 4])),
            (int(true, 4), "0x7fffffff", Some(&[0xff, 0xff, 0xff, 0x7f])),
            (int(true, 4), "0x80000000", None),
            (int(false, 4), "0xffffffff", Some(&[0xff; 4])),
            (int(false, 4), "-1", None),
            (int(false, 2), "010", Some(&[8, 0])),
            (int(false, 8), "18446744073709551615", Some(&[0xff; 8])),
            (int(false, 8), "18446744073709551616", None),
            (int(false, 8), "y", None),
            (int(false, 8), "", None),
            (int(false, 8), "+1", None),
            (int(false, 8), "0x", None),
            (setting(Form::String, 4), "\"ab\"", Some(b"ab")),
            (setting(Form::String, 4), "\"abcdef\"", Some(b"abc")),
            (setting(Form::String, 4), "\"", None),
            (setting(Form::String, 4), "12", None),
        ] {
            let got = setting.value(text);
            assert_eq!(got.as_deref().ok(), want, "{text} as {setting:?}: {got:?}");
        }
    }
}
