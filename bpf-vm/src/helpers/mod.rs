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
#[expect(unsafe_code, reason = "the memory behind a program's pointer")]
mod memory;

use self::functions::{
    get_current_pid_tgid, get_smp_processor_id, ktime_get_ns, map_delete_elem, map_lookup_elem,
    map_update_elem, trace_printk,
};

/// A helper as engines call it: r1 to r5 in, r0 out, by the C ABI (AAPCS64 on arm64), so that compiled code can BL it.
///
/// # Safety
/// Each argument is what the helper's row says ([`Helper::arguments`]), and stays so during the call. Memory behind
/// it may be read and written by others meanwhile.
pub type HelperFunction = unsafe extern "C" fn(u64, u64, u64, u64, u64) -> u64;

/// What a helper takes in one of its argument registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument {
    /// Any number.
    Scalar,
    /// A map's handle ([`Map::handle`](crate::map::Map::handle)).
    Map,
    /// The address of readable memory of the size of a key of the [`Map`](Self::Map) before it.
    MapKey,
    /// The address of readable memory of the size of a value of the [`Map`](Self::Map) before it.
    MapValue,
    /// The address of readable memory of as many bytes as the argument after it says.
    Memory,
    /// The number of bytes, at least 1, of the [`Memory`](Self::Memory) before it.
    Size,
}

/// What a helper leaves in r0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Returns {
    /// A number; negative ones are Linux's error numbers.
    Scalar,
    /// The address of a value of the map that it was given, or 0.
    MapValueOrNull,
}

/// One helper's row.
#[derive(Clone, Copy, Debug)]
pub struct Helper {
    /// Linux's number, the `imm` of `call`.
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
    pub function: HelperFunction,
}

impl Helper {
    const fn new(
        number: u32,
        name: &'static str,
        arguments: &'static [Argument],
        returns: Returns,
        function: HelperFunction,
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

    const fn gpl_only(self) -> Self {
        Self {
            gpl_only: true,
            ..self
        }
    }
}

/// All helpers, by number.
pub static HELPERS: &[Helper] = {
    use Argument::{Map, MapKey, MapValue, Memory, Scalar, Size};
    &[
        Helper::new(
            1,
            "bpf_map_lookup_elem",
            &[Map, MapKey],
            Returns::MapValueOrNull,
            map_lookup_elem,
        ),
        Helper::new(
            2,
            "bpf_map_update_elem",
            &[Map, MapKey, MapValue, Scalar],
            Returns::Scalar,
            map_update_elem,
        ),
        Helper::new(
            3,
            "bpf_map_delete_elem",
            &[Map, MapKey],
            Returns::Scalar,
            map_delete_elem,
        ),
        Helper::new(5, "bpf_ktime_get_ns", &[], Returns::Scalar, ktime_get_ns).gpl_only(),
        Helper::new(
            6,
            "bpf_trace_printk",
            &[Memory, Size, Scalar, Scalar, Scalar],
            Returns::Scalar,
            trace_printk,
        )
        .gpl_only(),
        Helper::new(
            8,
            "bpf_get_smp_processor_id",
            &[],
            Returns::Scalar,
            get_smp_processor_id,
        ),
        Helper::new(
            14,
            "bpf_get_current_pid_tgid",
            &[],
            Returns::Scalar,
            get_current_pid_tgid,
        ),
    ]
};

/// The helper of a number, if there is one.
pub fn by_number(number: u32) -> Option<&'static Helper> {
    HELPERS
        .binary_search_by_key(&number, |helper| helper.number)
        .ok()
        .and_then(|index| HELPERS.get(index))
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
                match argument {
                    Argument::Size => assert_eq!(before, Some(Argument::Memory)),
                    Argument::MapKey | Argument::MapValue => {
                        assert!(helper.arguments[..index].contains(&Argument::Map));
                    }
                    _ => assert_ne!(before, Some(Argument::Memory), "{}", helper.name),
                }
            }
        }
        assert!(by_number(0).is_none());
        assert!(by_number(4).is_none());
    }
}
