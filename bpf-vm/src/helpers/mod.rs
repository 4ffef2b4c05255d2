// SPDX-License-Identifier: MIT OR Apache-2.0
//! The helpers: functions that programs call by Linux's numbers (`enum bpf_func_id` in `linux/bpf.h`).
//!
//! One row a helper: number, name, arguments' types, return. The validator, the interpreter and the JIT read this
//! table; an engine that does not know its program to be safe checks arguments by it before it calls.
#![deny(unsafe_code)]

#[expect(
    unsafe_code,
    reason = "contexts and attachments are handed over by address"
)]
mod attached;
#[expect(unsafe_code, reason = "calls a helper by its number")]
mod dispatch;
#[expect(
    unsafe_code,
    reason = "helpers follow the pointers that programs hand over"
)]
pub(crate) mod dynptr;
mod errno;
mod format;
mod lock;
#[expect(
    unsafe_code,
    reason = "helpers follow the pointers that programs hand over"
)]
mod map;
#[expect(unsafe_code, reason = "the memory behind a program's pointer")]
mod memory;
#[expect(
    unsafe_code,
    reason = "helpers follow the pointers that programs hand over"
)]
mod print;
#[expect(
    unsafe_code,
    reason = "helpers follow the pointers that programs hand over"
)]
mod probe;
mod random;
#[expect(
    unsafe_code,
    reason = "helpers follow the pointers that programs hand over"
)]
mod stack;
mod table;
#[expect(
    unsafe_code,
    reason = "helpers follow the pointers that programs hand over"
)]
mod task;

pub(crate) use self::memory::LONGEST_STRING;
pub use self::{dispatch::dispatch, lock::missed_spin_locks, table::HELPERS};

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
    /// As [`MemoryOut`](Self::MemoryOut), or 0 if the size is 0.
    MemoryOutOrNull,
    /// The address of writable memory in a map's values, of as many bytes as the argument after it says, or anything if the size
    /// is 0.
    ValueMemory,
    /// The number of bytes, at least 1, of the memory before it.
    Size,
    /// The number of bytes, or 0, of the memory before it.
    SizeOrZero,
    /// A number of bytes that is known when the program is loaded, at least 1.
    ConstantSize,
    /// The address of a string that ends with a 0 byte, in memory that nobody else writes: read-only data (the
    /// interpreter also takes the program's stack).
    ConstantString,
    /// The address of 8 writable, aligned bytes that need not be initialised.
    WordOut,
    /// The program's context, as it came in r1.
    Context,
    /// One of the program's functions (`lddw` of a function).
    Callback,
    /// A record that `bpf_ringbuf_reserve` returned; the call ends its use.
    Record,
    /// The address of a `struct bpf_dynptr` on the program's stack that a helper has made, null ones among them.
    Dynptr,
    /// The address of room for a `struct bpf_dynptr` on the program's stack: 16 bytes, aligned to 8, which need not be
    /// initialised. The helper makes one there.
    DynptrOut,
    /// As [`Dynptr`](Self::Dynptr), of a record that `bpf_ringbuf_reserve_dynptr` reserved, or null; the call ends its use and that of
    /// the addresses of its memory.
    DynptrRecord,
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
        matches!(
            self,
            Self::Memory
                | Self::MemoryOrNull
                | Self::MemoryOut
                | Self::MemoryOutOrNull
                | Self::ValueMemory
        )
    }
}

/// What a helper leaves in r0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Returns {
    /// The address of 8 writable, aligned bytes.
    Word,
    /// A number; negative ones are Linux's error numbers.
    Scalar,
    /// The address of a value of the map that it was given (of a map of maps: the inner map's handle), or 0.
    MapValueOrNull,
    /// The address of as many writable bytes as its [`ConstantSize`](Argument::ConstantSize) argument says, or 0.
    RecordOrNull,
    /// The address of as many writable bytes of its [`Dynptr`](Argument::Dynptr) argument's memory as its
    /// [`ConstantSize`](Argument::ConstantSize) argument says, or 0.
    DynptrMemoryOrNull,
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

    /// Whether `callx` calls it: not if an engine does it by itself, nor if it may sleep, as nothing says that the program
    /// may.
    pub const fn is_called_by_register(&self) -> bool {
        !self.may_sleep && !matches!(self.function, Function::Engine)
    }

    /// Whether it is given the run's attachment, itself or for the function that it calls back.
    pub const fn needs_attachment(&self) -> bool {
        matches!(self.function, Function::Attached(_) | Function::Callback(_))
    }
}

/// Helpers' numbers are smaller, and what names a function to `callx` is larger.
pub(crate) const NUMBERS: u64 = 4096;

/// This crate's helper of a number, if there is one.
pub fn by_number(number: u32) -> Option<&'static Helper> {
    find(HELPERS, number)
}

/// The helper of a number in a table that is sorted by number.
pub fn find(helpers: &[Helper], number: u32) -> Option<&Helper> {
    helpers.get(position(helpers, number)?)
}

/// Its index.
pub(crate) fn position(helpers: &[Helper], number: u32) -> Option<usize> {
    helpers
        .binary_search_by_key(&number, |helper| helper.number)
        .ok()
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
        assert!(by_number(25).is_none());
    }
}
