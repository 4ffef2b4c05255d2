// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers: functions that programs call by Linux's numbers (`enum bpf_func_id` in `linux/bpf.h`).
//!
//! One row a helper: number, name, arguments' types, return. The validator, the interpreter and the JIT read this
//! table; an engine that does not know its program to be safe checks arguments by it before it calls.
#![deny(unsafe_code)]

mod format;
#[expect(
    unsafe_code,
    reason = "helpers follow the pointers that programs hand over"
)]
mod functions;
#[expect(
    unsafe_code,
    reason = "helpers follow the pointers that programs hand over"
)]
mod map;
#[expect(unsafe_code, reason = "the memory behind a program's pointer")]
mod memory;

pub use self::functions::dispatch;
use self::functions::{
    get_current_pid_tgid, get_smp_processor_id, ktime_get_ns, map_delete_elem, map_lookup_elem,
    map_update_elem, trace_printk,
};
use self::map::{
    bpf_loop, for_each_map_elem, get_stack, get_stackid, map_lookup_percpu_elem, map_peek_elem,
    map_pop_elem, map_push_elem, ringbuf_discard, ringbuf_output, ringbuf_query, ringbuf_reserve,
    ringbuf_submit, task_storage_delete, task_storage_get,
};

/// A helper's function: r1 to r5 in, r0 out, by the C ABI (AAPCS64 on arm64), so that compiled code can BL it.
///
/// # Safety
/// Each argument is what the helper's row says ([`Helper::arguments`]), and stays so during the call. Memory behind
/// it may be read and written by others meanwhile.
pub type PlainFunction = unsafe extern "C" fn(u64, u64, u64, u64, u64) -> u64;

/// A helper's function that also takes the address of the run's [`Attachment`](crate::attachment::Attachment).
///
/// # Safety
/// As [`PlainFunction`]; the sixth argument comes from [`Attachment::address`](crate::attachment::Attachment::address)
/// of one that lives during the call.
pub type AttachedFunction = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64;

/// How a helper is called.
#[derive(Clone, Copy, Debug)]
pub enum Function {
    /// With r1 to r5.
    Plain(PlainFunction),
    /// With r1 to r5 and the attachment.
    Attached(AttachedFunction),
    /// As [`Attached`](Self::Attached) by compiled code, whose functions it calls back as `extern "C"` functions of
    /// r1 to r5 and the attachment. The interpreter calls the program's function by itself instead.
    Callback(AttachedFunction),
    /// Not called: `bpf_tail_call`, which each engine does by itself.
    Engine,
}

impl Function {
    /// The address that compiled code calls; `None` for [`Engine`](Self::Engine).
    pub fn address(self) -> Option<u64> {
        match self {
            Self::Plain(function) => Some(function as usize as u64),
            Self::Attached(function) | Self::Callback(function) => Some(function as usize as u64),
            Self::Engine => None,
        }
    }
}

/// What a helper takes in one of its argument registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument {
    /// Any number.
    Scalar,
    /// Any number or pointer, handed through and not followed: an address to be probed, a callback's context.
    Any,
    /// A map's handle ([`Map::handle`](crate::map::Map::handle)).
    Map,
    /// The address of readable memory of the size of a key of the [`Map`](Self::Map) before it.
    MapKey,
    /// The address of readable memory of the size of a value of the [`Map`](Self::Map) before it.
    MapValue,
    /// As [`MapValue`](Self::MapValue), or 0.
    MapValueOrNull,
    /// The address of writable memory of the size of a value of the [`Map`](Self::Map) before it; need not be
    /// initialised.
    MapValueOut,
    /// The address of readable memory of as many bytes as the argument after it says.
    Memory,
    /// As [`Memory`](Self::Memory), or 0 if the size is 0.
    MemoryOrNull,
    /// The address of writable memory of as many bytes as the argument after it says; need not be initialised.
    MemoryOut,
    /// The number of bytes, at least 1, of the memory before it.
    Size,
    /// The number of bytes, or 0, of the memory before it.
    SizeOrZero,
    /// A number of bytes that is known when the program is loaded, at least 1.
    ConstantSize,
    /// The address of a string that ends with a 0 byte, in read-only data.
    ConstantString,
    /// The address of 8 writable, aligned bytes that need not be initialised.
    WordOut,
    /// The program's context, as it came in r1.
    Context,
    /// One of the program's functions (`lddw` of a function).
    Callback,
    /// A record that `bpf_ringbuf_reserve` returned; the call ends its use.
    Record,
    /// The address of a `struct bpf_spin_lock` in a map's value.
    SpinLock,
    /// A task's address, as `bpf_get_current_task_btf` returns it.
    Task,
    /// The address of a per-CPU variable of the kernel.
    PerCpu,
}

impl Argument {
    /// Whether the argument after it is its size in bytes.
    pub const fn is_sized(self) -> bool {
        matches!(self, Self::Memory | Self::MemoryOrNull | Self::MemoryOut)
    }
}

/// What a helper leaves in r0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Returns {
    /// A number; negative ones are Linux's error numbers.
    Scalar,
    /// The address of a value of the map that it was given (of a map of maps: the inner map's handle), or 0.
    MapValueOrNull,
    /// The address of as many writable bytes as its [`ConstantSize`](Argument::ConstantSize) argument says, or 0.
    RecordOrNull,
    /// A task's address.
    Task,
    /// The address of one core's copy of the per-CPU variable that it was given, or 0.
    PerCpuOrNull,
    /// The address of this core's copy of the per-CPU variable that it was given.
    PerCpu,
}

/// One row: a helper, or a kernel function (kfunc) that declares itself callable.
#[derive(Clone, Copy, Debug)]
pub struct Helper {
    /// Linux's number, the `imm` of `call`; 0 for a kernel function, which is called by name.
    pub number: u32,
    /// The name as `bpf_helpers.h` has it.
    pub name: &'static str,
    /// The arguments' types, r1 first.
    pub arguments: &'static [Argument],
    /// What it returns.
    pub returns: Returns,
    /// Whether Linux gives it only to programs whose `license` is compatible with the GPL.
    pub gpl_only: bool,
    /// Whether it may sleep, so that only sleepable programs may call it.
    pub may_sleep: bool,
    /// The function.
    pub function: Function,
}

impl Helper {
    /// A row of a helper that any program may call from anywhere.
    pub const fn new(
        number: u32,
        name: &'static str,
        arguments: &'static [Argument],
        returns: Returns,
        function: Function,
    ) -> Self {
        Self {
            number,
            name,
            arguments,
            returns,
            gpl_only: false,
            may_sleep: false,
            function,
        }
    }

    /// For programs under a licence compatible with the GPL only.
    pub const fn gpl_only(self) -> Self {
        Self {
            gpl_only: true,
            ..self
        }
    }

    /// For sleepable programs only.
    pub const fn sleeps(self) -> Self {
        Self {
            may_sleep: true,
            ..self
        }
    }

    /// Whether it is given the run's attachment, itself or for the function that it calls back.
    pub const fn needs_attachment(&self) -> bool {
        matches!(self.function, Function::Attached(_) | Function::Callback(_))
    }
}

/// All helpers, by number.
pub static HELPERS: &[Helper] = {
    use Argument::{
        Any, Callback, ConstantSize, Context, Map, MapKey, MapValue, MapValueOrNull, MapValueOut,
        Memory, MemoryOrNull, MemoryOut, Record, Scalar, Size, SizeOrZero, Task,
    };
    &[
        Helper::new(
            1,
            "bpf_map_lookup_elem",
            &[Map, MapKey],
            Returns::MapValueOrNull,
            Function::Plain(map_lookup_elem),
        ),
        Helper::new(
            2,
            "bpf_map_update_elem",
            &[Map, MapKey, MapValue, Scalar],
            Returns::Scalar,
            Function::Plain(map_update_elem),
        ),
        Helper::new(
            3,
            "bpf_map_delete_elem",
            &[Map, MapKey],
            Returns::Scalar,
            Function::Plain(map_delete_elem),
        ),
        Helper::new(
            5,
            "bpf_ktime_get_ns",
            &[],
            Returns::Scalar,
            Function::Plain(ktime_get_ns),
        )
        .gpl_only(),
        Helper::new(
            6,
            "bpf_trace_printk",
            &[Memory, Size, Scalar, Scalar, Scalar],
            Returns::Scalar,
            Function::Plain(trace_printk),
        )
        .gpl_only(),
        Helper::new(
            8,
            "bpf_get_smp_processor_id",
            &[],
            Returns::Scalar,
            Function::Plain(get_smp_processor_id),
        ),
        Helper::new(
            12,
            "bpf_tail_call",
            &[Context, Map, Scalar],
            Returns::Scalar,
            Function::Engine,
        ),
        Helper::new(
            14,
            "bpf_get_current_pid_tgid",
            &[],
            Returns::Scalar,
            Function::Plain(get_current_pid_tgid),
        ),
        Helper::new(
            27,
            "bpf_get_stackid",
            &[Context, Map, Scalar],
            Returns::Scalar,
            Function::Plain(get_stackid),
        )
        .gpl_only(),
        Helper::new(
            67,
            "bpf_get_stack",
            &[Context, MemoryOut, SizeOrZero, Scalar],
            Returns::Scalar,
            Function::Plain(get_stack),
        )
        .gpl_only(),
        Helper::new(
            87,
            "bpf_map_push_elem",
            &[Map, MapValue, Scalar],
            Returns::Scalar,
            Function::Plain(map_push_elem),
        ),
        Helper::new(
            88,
            "bpf_map_pop_elem",
            &[Map, MapValueOut],
            Returns::Scalar,
            Function::Plain(map_pop_elem),
        ),
        Helper::new(
            89,
            "bpf_map_peek_elem",
            &[Map, MapValueOut],
            Returns::Scalar,
            Function::Plain(map_peek_elem),
        ),
        Helper::new(
            130,
            "bpf_ringbuf_output",
            &[Map, MemoryOrNull, SizeOrZero, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_output),
        ),
        Helper::new(
            131,
            "bpf_ringbuf_reserve",
            &[Map, ConstantSize, Scalar],
            Returns::RecordOrNull,
            Function::Plain(ringbuf_reserve),
        ),
        Helper::new(
            132,
            "bpf_ringbuf_submit",
            &[Record, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_submit),
        ),
        Helper::new(
            133,
            "bpf_ringbuf_discard",
            &[Record, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_discard),
        ),
        Helper::new(
            134,
            "bpf_ringbuf_query",
            &[Map, Scalar],
            Returns::Scalar,
            Function::Plain(ringbuf_query),
        ),
        Helper::new(
            156,
            "bpf_task_storage_get",
            &[Map, Task, MapValueOrNull, Scalar],
            Returns::MapValueOrNull,
            Function::Plain(task_storage_get),
        ),
        Helper::new(
            157,
            "bpf_task_storage_delete",
            &[Map, Task],
            Returns::Scalar,
            Function::Plain(task_storage_delete),
        ),
        Helper::new(
            164,
            "bpf_for_each_map_elem",
            &[Map, Callback, Any, Scalar],
            Returns::Scalar,
            Function::Callback(for_each_map_elem),
        ),
        Helper::new(
            181,
            "bpf_loop",
            &[Scalar, Callback, Any, Scalar],
            Returns::Scalar,
            Function::Callback(bpf_loop),
        ),
        Helper::new(
            195,
            "bpf_map_lookup_percpu_elem",
            &[Map, MapKey, Scalar],
            Returns::MapValueOrNull,
            Function::Plain(map_lookup_percpu_elem),
        ),
    ]
};

/// This crate's helper of a number, if there is one.
pub fn by_number(number: u32) -> Option<&'static Helper> {
    find(HELPERS, number)
}

/// The helper of a number in a table that is sorted by number.
pub fn find(helpers: &[Helper], number: u32) -> Option<&Helper> {
    helpers
        .binary_search_by_key(&number, |helper| helper.number)
        .ok()
        .and_then(|index| helpers.get(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_and_sizes_follow_memory() {
        assert!(HELPERS.is_sorted_by(|a, b| a.number < b.number));
        for helper in HELPERS {
            assert_eq!(by_number(helper.number).unwrap().name, helper.name);
            assert!(helper.arguments.len() <= 5, "{}", helper.name);
            for (index, argument) in helper.arguments.iter().enumerate() {
                let before = index.checked_sub(1).map(|index| helper.arguments[index]);
                let sized = before.is_some_and(Argument::is_sized);
                let size = matches!(argument, Argument::Size | Argument::SizeOrZero);
                assert_eq!(sized, size, "{}: argument {index}", helper.name);
                if matches!(
                    argument,
                    Argument::MapKey | Argument::MapValue | Argument::MapValueOut
                ) {
                    assert!(helper.arguments[..index].contains(&Argument::Map));
                }
            }
        }
        assert!(by_number(0).is_none());
        assert!(by_number(4).is_none());
    }
}
