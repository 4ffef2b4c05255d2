// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers' functions, with the C ABI that both engines call them by.
//!
//! Each has the safety contract of its type in [`Function`]: its arguments are what its row says.
use core::{fmt, ptr::with_exposed_provenance};

use super::{Function, by_number, format::Text, memory::ProgramBytes};
use crate::{
    host::host,
    map::{Map, MapError, UpdateFlags},
};

/// The largest key in bytes that a program can hand over: its stack (`MAX_BPF_STACK` in Linux).
const MAX_KEY_BYTES: usize = 512;
/// Keys up to this size take the short copy.
const SHORT_KEY_BYTES: usize = 16;
/// Linux's `EINVAL`.
pub(super) const EINVAL: i64 = 22;

/// A result as a program sees it: 0, or minus the error's number.
pub(super) fn status(result: Result<(), MapError>) -> u64 {
    result.map_or_else(|error| -i64::from(error.errno()), |()| 0) as u64
}

/// The map behind a handle.
///
/// # Safety
/// `handle` comes from [`Map::handle`] of a map that outlives `'a`.
pub(super) unsafe fn map<'a>(handle: u64) -> &'a Map {
    // SAFETY: a handle is the address of a `Map` in an `Arc`, its provenance exposed; the caller keeps it alive. A
    // `Map` is only ever shared.
    unsafe { &*with_exposed_provenance::<Map>(handle as usize) }
}

/// Runs `f` on the key at `address`.
///
/// # Safety
/// `address` points to readable memory of the size of a key of `map`.
pub(super) unsafe fn with_key<T>(
    map: &Map,
    address: u64,
    f: impl FnOnce(&[u8]) -> T,
) -> Result<T, MapError> {
    // SAFETY: the caller promises `key_size` readable bytes.
    let key = unsafe { ProgramBytes::new(address, map.key_size()) };
    let (mut short, mut long);
    let buffer: &mut [u8] = if key.len() <= SHORT_KEY_BYTES {
        short = [0; SHORT_KEY_BYTES];
        &mut short
    } else {
        long = [0; MAX_KEY_BYTES];
        &mut long
    };
    let buffer = buffer.get_mut(..key.len()).ok_or(MapError::Invalid)?;
    key.copy_to(buffer);
    Ok(f(buffer))
}

/// `void *bpf_map_lookup_elem(map, key)`: the address of the value, or 0.
pub(super) unsafe extern "C" fn map_lookup_elem(
    handle: u64,
    key: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    // SAFETY: by this helper's row `key` points to a readable key of that map.
    let address = unsafe { with_key(map, key, |key| map.lookup_address(key)) };
    address.ok().flatten().unwrap_or(0)
}

/// `long bpf_map_update_elem(map, key, value, flags)`: 0 or a negative error number.
pub(super) unsafe extern "C" fn map_update_elem(
    handle: u64,
    key: u64,
    value: u64,
    flags: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    // SAFETY: by this helper's row `value` points to a readable value of that map.
    let value = unsafe { ProgramBytes::new(value, map.value_size()) };
    let update = |key: &[u8]| {
        let flags = UpdateFlags::try_from(flags)?;
        map.update_with(key, flags, |words| value.copy_to_value(words))
    };
    // SAFETY: by this helper's row `key` points to a readable key of that map.
    status(unsafe { with_key(map, key, update) }.flatten())
}

/// `long bpf_map_delete_elem(map, key)`: 0 or a negative error number.
pub(super) unsafe extern "C" fn map_delete_elem(
    handle: u64,
    key: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    // SAFETY: by this helper's row `key` points to a readable key of that map.
    status(unsafe { with_key(map, key, |key| map.delete(key)) }.flatten())
}

/// `u64 bpf_ktime_get_ns(void)`: nanoseconds since boot.
pub(super) unsafe extern "C" fn ktime_get_ns(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    host().ktime_ns()
}

/// `u32 bpf_get_smp_processor_id(void)`: the core's number.
pub(super) unsafe extern "C" fn get_smp_processor_id(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    host().cpu().into()
}

/// `u64 bpf_get_current_pid_tgid(void)`: thread group id and task id.
pub(super) unsafe extern "C" fn get_current_pid_tgid(
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    host().current_pid_tgid()
}

/// `long bpf_trace_printk(const char *fmt, u32 fmt_size, a, b, c)`: the length printed, or `-EINVAL` for a format
/// that [`Text`] does not take.
pub(super) unsafe extern "C" fn trace_printk(
    format: u64,
    size: u64,
    first: u64,
    second: u64,
    third: u64,
) -> u64 {
    // SAFETY: by this helper's row `format` points to `size` readable bytes.
    let format = unsafe { ProgramBytes::new(format, size as usize) };
    let text = Text::new(format, [first, second, third]);
    match text.length() {
        Ok(length) => {
            host().print(format_args!("{text}"));
            length
        }
        Err(fmt::Error) => -EINVAL as u64,
    }
}

/// Calls this crate's helper of that number, for `callx` in compiled code; `-EINVAL` if there is none or an engine does
/// it by itself.
///
/// # Safety
/// What the helper's type in [`Function`] asks for.
pub unsafe extern "C" fn dispatch(
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    e: u64,
    attachment: u64,
    number: u64,
) -> u64 {
    let helper = u32::try_from(number).ok().and_then(by_number);
    match helper.map(|helper| helper.function) {
        // SAFETY: the caller keeps the helper's contract.
        Some(Function::Plain(function)) => unsafe { function(a, b, c, d, e) },
        // SAFETY: the caller keeps the helper's contract.
        Some(Function::Attached(function) | Function::Callback(function)) => unsafe {
            function(a, b, c, d, e, attachment)
        },
        Some(Function::Engine) | None => -EINVAL as u64,
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;

    use super::*;
    use crate::map::{HeapMemory, MapDefinition, MapKind};

    fn array() -> Arc<Map> {
        let definition = MapDefinition {
            name: "m".into(),
            kind: MapKind::ARRAY,
            key_size: 4,
            value_size: 8,
            max_entries: 2,
            flags: 0,
        };
        Map::create(definition, &HeapMemory::with_limit(64)).unwrap()
    }

    fn exposed<T>(value: &T) -> u64 {
        core::ptr::from_ref(value).expose_provenance() as u64
    }

    #[test]
    fn map_helpers_return_addresses_and_negative_errors() {
        let map = array();
        let keys = [0u32, 1, 2];
        let value = 0x1122_3344_5566_7788_u64;
        let update = |index: usize, flags| {
            // SAFETY: a handle of a live map, a key of four bytes, a value of eight.
            let r0 = unsafe {
                map_update_elem(
                    map.handle(),
                    exposed(&keys[index]),
                    exposed(&value),
                    flags,
                    0,
                )
            };
            r0 as i64
        };
        assert_eq!(update(1, 0), 0);
        assert_eq!(update(1, 1), -17);
        assert_eq!(update(2, 0), -7);
        assert_eq!(update(0, 8), -22);
        let lookup = |index: usize| {
            // SAFETY: a handle of a live map and a key of four bytes.
            unsafe { map_lookup_elem(map.handle(), exposed(&keys[index]), 0, 0, 0) }
        };
        assert_eq!(Some(lookup(1)), map.value_address(1));
        assert_eq!(lookup(2), 0);
        // SAFETY: a handle of a live map and a key of four bytes.
        let deleted = unsafe { map_delete_elem(map.handle(), exposed(&keys[0]), 0, 0, 0) };
        assert_eq!(deleted as i64, -22);
        let mut out = [0; 8];
        map.lookup(&keys[1].to_ne_bytes(), &mut out).unwrap();
        assert_eq!(u64::from_ne_bytes(out), value);
    }
}
