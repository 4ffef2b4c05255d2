// SPDX-License-Identifier: MIT OR Apache-2.0
//! CO-RE relocations in `.BTF.ext`: found and refused by name, not resolved yet.
#![forbid(unsafe_code)]

use super::{
    ObjectError,
    btf::{Btf, word},
};

/// Where the header says how long it is (`hdr_len`), and where in it the CO-RE part's offset and length lie
/// (`struct btf_ext_header` in libbpf's documentation of the BTF format).
const HEADER_LENGTH_AT: usize = 4;
const CORE_OFFSET_AT: usize = 24;
const CORE_LENGTH_AT: usize = 28;

/// An error for the first CO-RE relocation in section `.BTF.ext`, if it has one.
pub(super) fn refuse(data: &[u8], btf: &Btf<'_>) -> Result<(), ObjectError> {
    let Some(header) = word(data, HEADER_LENGTH_AT) else {
        return Ok(());
    };
    // A shorter header is of a clang that writes no CO-RE relocations.
    if (header as usize) < CORE_LENGTH_AT + 4 {
        return Ok(());
    }
    let cut = || ObjectError::Malformed {
        place: "section `.BTF.ext`".into(),
        problem: "the CO-RE relocations reach past its end".into(),
    };
    let length = word(data, CORE_LENGTH_AT).ok_or_else(cut)?;
    if length == 0 {
        return Ok(());
    }
    let start = header as usize + word(data, CORE_OFFSET_AT).ok_or_else(cut)? as usize;
    // Record size, then per section: name, number of records, records of instruction offset, type id, ...
    let at = |index: usize| word(data, start + 4 * index).ok_or_else(cut);
    let (section, offset, type_id) = (at(1)?, at(3)?, at(4)?);
    Err(ObjectError::CoreRelocation {
        section: btf.string(section)?.into(),
        offset: offset.into(),
        type_name: btf.name(type_id)?.into(),
    })
}
