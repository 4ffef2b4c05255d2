// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers on maps: lookup, update and delete, queues, ring buffers, task storage, walks.
//!
//! Each has the safety contract of its type in [`Function`](super::Function): its arguments are what its row says.
use core::{
    mem::transmute,
    ptr::{with_exposed_provenance, with_exposed_provenance_mut},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    AttachedFunction,
    errno::{E2BIG, EINVAL, error, status},
    memory::{ProgramBytes, ProgramOut},
};
use crate::{
    host::host,
    interp::MAX_LOOPS,
    map::{
        Map, MapError, UpdateFlags, ValueWords,
        memory::WORD_BYTES,
        ringbuf::{FORCE_WAKEUP, HEADER_BYTES, NO_WAKEUP, PAGE},
    },
};

/// The largest key in bytes that a program can hand over: its stack (`MAX_BPF_STACK` in Linux).
const MAX_KEY_BYTES: usize = 512;
/// Keys up to this size take the short copy.
const SHORT_KEY_BYTES: usize = 16;
/// `BPF_LOCAL_STORAGE_GET_F_CREATE`: a task without a value gets one.
const CREATE: u64 = 1;
/// The flags of a record's end.
const WAKEUP_FLAGS: u64 = NO_WAKEUP | FORCE_WAKEUP;

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
unsafe fn with_key<T>(map: &Map, address: u64, f: impl FnOnce(&[u8]) -> T) -> Result<T, MapError> {
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
    status(unsafe { with_key(map, key, |key| map.delete_by_program(key)) }.flatten())
}

/// `void *bpf_map_lookup_percpu_elem(map, key, cpu)`: the address of that core's value, or 0.
pub(super) unsafe extern "C" fn map_lookup_percpu_elem(
    handle: u64,
    key: u64,
    cpu: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    // The helper takes a `u32`.
    let find = |key: &[u8]| map.lookup_address_on(key, cpu as u32);
    // SAFETY: by this helper's row `key` points to a readable key of that map.
    let address = unsafe { with_key(map, key, find) };
    address.ok().flatten().unwrap_or(0)
}

/// `long bpf_map_push_elem(map, value, flags)`: 0 or a negative error number.
pub(super) unsafe extern "C" fn map_push_elem(
    handle: u64,
    value: u64,
    flags: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    // SAFETY: by this helper's row `value` points to a readable value of that map.
    let value = unsafe { ProgramBytes::new(value, map.value_size()) };
    let push = |flags| {
        map.check_program()?;
        map.push(flags, |words| value.copy_to_value(words))
    };
    status(UpdateFlags::try_from(flags).and_then(push))
}

/// `long bpf_map_pop_elem(map, value)`: 0, or a negative error number and zeros.
pub(super) unsafe extern "C" fn map_pop_elem(
    handle: u64,
    value: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: the two rows ask for the same.
    unsafe { take(handle, value, true) }
}

/// `long bpf_map_peek_elem(map, value)`: 0, or a negative error number and zeros.
pub(super) unsafe extern "C" fn map_peek_elem(
    handle: u64,
    value: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: the two rows ask for the same.
    unsafe { take(handle, value, false) }
}

/// # Safety
/// `handle` is the handle of a map that the running program holds, `value` the address of a writable value of it.
unsafe fn take(handle: u64, value: u64, remove: bool) -> u64 {
    // SAFETY: as this function asks for.
    let map = unsafe { map(handle) };
    // SAFETY: as this function asks for.
    let out = unsafe { ProgramOut::new(value, map.value_size()) };
    let copy = |words: &[AtomicU64]| out.copy_from(words.iter().map(|word| word.load(Relaxed)));
    let taken = if remove {
        map.check_program().and_then(|()| map.pop(copy))
    } else {
        map.peek(copy)
    };
    if taken.is_err() {
        out.clear();
    }
    status(taken)
}

/// `long bpf_ringbuf_output(map, data, size, flags)`: a record with a copy; 0 or a negative error number.
pub(super) unsafe extern "C" fn ringbuf_output(
    handle: u64,
    data: u64,
    size: u64,
    flags: u64,
    _: u64,
) -> u64 {
    if flags & !WAKEUP_FLAGS != 0 {
        return error(EINVAL);
    }
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    let Some(record) = map.reserve(size) else {
        return status(Err(MapError::Again));
    };
    // SAFETY: by this helper's row `data` points to `size` readable bytes.
    let data = unsafe { ProgramBytes::new(data, size as usize) };
    // SAFETY: a record of `size` bytes, of which nobody else knows yet.
    let out = unsafe { ProgramOut::new(record, size as usize) };
    out.copy_from((0..data.len()).step_by(WORD_BYTES).map(|at| data.word(at)));
    status(map.commit(record, false, flags))
}

/// `void *bpf_ringbuf_reserve(map, size, flags)`: the address of a record to be written, or 0.
pub(super) unsafe extern "C" fn ringbuf_reserve(
    handle: u64,
    size: u64,
    flags: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    let reserved = (flags == 0).then(|| map.reserve(size));
    reserved.flatten().unwrap_or(0)
}

/// `void bpf_ringbuf_submit(record, flags)`: hands a record to the reader.
pub(super) unsafe extern "C" fn ringbuf_submit(
    record: u64,
    flags: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: the two rows ask for the same.
    unsafe { commit(record, false, flags) }
}

/// `void bpf_ringbuf_discard(record, flags)`: gives a record up.
pub(super) unsafe extern "C" fn ringbuf_discard(
    record: u64,
    flags: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: the two rows ask for the same.
    unsafe { commit(record, true, flags) }
}

/// Ends a record; 0.
///
/// # Safety
/// `record` is the address of a record that was reserved in a map that lives, and is not committed.
pub(super) unsafe fn commit(record: u64, discard: bool, flags: u64) -> u64 {
    let header = record - HEADER_BYTES;
    let word = with_exposed_provenance_mut(header as usize);
    // SAFETY: a record lies behind its header, an aligned word.
    let pages = unsafe { AtomicU64::from_ptr(word) }.load(Relaxed) >> 32;
    let handle = with_exposed_provenance_mut((header / PAGE - pages) as usize * PAGE as usize);
    // SAFETY: so many pages before the header's, a page starts with the map's handle.
    let handle = unsafe { AtomicU64::from_ptr(handle) }.load(Relaxed);
    // SAFETY: the record lies in that map's memory, so the map lives.
    let map = unsafe { map(handle) };
    // It returns nothing; r0 is 0 in either case.
    let _ = map.commit(record, discard, flags);
    0
}

/// `u64 bpf_ringbuf_query(map, what)`: bytes not read, size, reader's position, writers' position.
pub(super) unsafe extern "C" fn ringbuf_query(
    handle: u64,
    what: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    map.ring_buffer().map_or(0, |ring| ring.query(what))
}

/// `void *bpf_task_storage_get(map, task, value, flags)`: the address of a task's value, or 0; with
/// `BPF_LOCAL_STORAGE_GET_F_CREATE` it is made, from `value` or zero, if there is none.
pub(super) unsafe extern "C" fn task_storage_get(
    handle: u64,
    task: u64,
    value: u64,
    flags: u64,
    _: u64,
) -> u64 {
    if task == 0 || flags & !CREATE != 0 {
        return 0;
    }
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    let bytes = if value == 0 { 0 } else { map.value_size() };
    // SAFETY: by this helper's row `value` points to a readable value of that map, or is 0.
    let value = unsafe { ProgramBytes::new(value, bytes) };
    let fill = |words: ValueWords<'_>| {
        if value.len() == 0 {
            words.write(core::iter::repeat(0));
        } else {
            value.copy_to_value(words);
        }
    };
    let create = (flags & CREATE != 0).then_some(fill);
    map.task_value(task, host().task_id(task), create)
        .unwrap_or(0)
}

/// `long bpf_task_storage_delete(map, task)`: 0 or a negative error number.
pub(super) unsafe extern "C" fn task_storage_delete(
    handle: u64,
    task: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    if task == 0 {
        return error(EINVAL);
    }
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map = unsafe { map(handle) };
    status(map.task_ended(task, host().task_id(task)))
}

/// `long bpf_loop(rounds, callback, ctx, flags)`: calls `callback(round, ctx)` until it returns something else than 0 or
/// the rounds are done; how many calls, or a negative error number.
pub(super) unsafe extern "C" fn bpf_loop(
    rounds: u64,
    callback: u64,
    context: u64,
    flags: u64,
    _: u64,
    attachment: u64,
) -> u64 {
    // The helper takes a `u32`.
    let rounds = rounds & u64::from(u32::MAX);
    if flags != 0 {
        return error(EINVAL);
    }
    if rounds > MAX_LOOPS {
        return error(E2BIG);
    }
    // SAFETY: by this helper's row `callback` is a function of the running program, compiled as an `extern "C"`
    // function of r1 to r5 and the attachment.
    let callback = unsafe { transmute::<usize, AttachedFunction>(callback as usize) };
    for round in 0..rounds {
        // SAFETY: the number of the round, the caller's context and attachment, as the callback takes them.
        let result = unsafe { callback(round, context, 0, 0, 0, attachment) };
        if result != 0 {
            return round + 1;
        }
    }
    rounds
}

/// `long bpf_for_each_map_elem(map, callback, ctx, flags)`: calls `callback(map, key, value, ctx)` for each element
/// until it returns something else than 0; how many calls, or a negative error number.
pub(super) unsafe extern "C" fn for_each_map_elem(
    handle: u64,
    callback: u64,
    context: u64,
    flags: u64,
    _: u64,
    attachment: u64,
) -> u64 {
    if flags != 0 {
        return error(EINVAL);
    }
    // SAFETY: by this helper's row `callback` is a function of the running program, compiled as an `extern "C"`
    // function of r1 to r5 and the attachment.
    let callback = unsafe { transmute::<usize, AttachedFunction>(callback as usize) };
    // SAFETY: by this helper's row `handle` is the handle of a map that the running program holds.
    let map: &Map = unsafe { map(handle) };
    let call = |key, value| {
        // SAFETY: an element of the map, the caller's context and attachment, as the callback takes them.
        let result = unsafe { callback(handle, key, value, context, 0, attachment) };
        result == 0
    };
    map.walk(call)
        .map_or_else(|error| status(Err(error)), u64::from)
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
