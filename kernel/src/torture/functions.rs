// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hundreds of functions to hook, each with a result of its own that can be checked.
//!
//! The first argument says who calls, so that a hook can tell callers apart. No two functions compute the same, or the linker
//! would make them one.

use crate::arch::callee::past_site;
use crate::sched;
use crate::workload::NamedPatch;
use core::hint::black_box;

/// A function with two arguments.
type Pair = extern "C" fn(u64, u64) -> u64;
/// Six arguments, all in registers.
type Six = extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64;
/// Eleven arguments, three of them on the stack.
type Eleven = extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u64;
/// A result that is returned by x8.
type Wide = extern "C" fn(u64, u64) -> Words;

/// What a [`Wide`] function returns.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Words(u64, u64, u64);

/// How a function is called.
#[derive(Clone, Copy)]
enum Shape {
    Pair(Pair),
    Six(Six),
    Eleven(Eleven),
    Wide(Wide),
    /// Calls another one.
    Nested(Pair),
    /// Gives its core up in the middle.
    Sleepy(Pair),
}

/// One of the functions.
pub(crate) struct Function {
    /// Its name, without a path.
    pub name: &'static str,
    number: u64,
    shape: Shape,
}

/// What all of them compute of their arguments: no number gives the same.
#[inline(always)]
fn mix(number: u64, arguments: &[u64]) -> u64 {
    arguments.iter().fold(number, |sum, argument| {
        (sum ^ argument)
            .wrapping_mul(2 * number + 0x9e37_79b9_7f4a_7c15)
            .rotate_left(17)
    })
}

/// The function that a nested one calls: its own number, and its place among all.
const INNER: u64 = 1;
const INNER_INDEX: usize = 0;

impl Function {
    /// Which other one it calls, by its place among all.
    pub(crate) fn calls(&self) -> Option<usize> {
        matches!(self.shape, Shape::Nested(_)).then_some(INNER_INDEX)
    }

    /// Whether it may give its core up.
    pub(crate) fn is_sleepy(&self) -> bool {
        matches!(self.shape, Shape::Sleepy(_))
    }

    /// Whether it is hooked the Linux way, and no other.
    pub(crate) fn is_linux(&self) -> bool {
        self.name.starts_with("torture_linux_")
    }

    /// Whether a hook may skip it: if what it returns is in x0, and no other function's result depends on it.
    pub(crate) fn is_overridable(&self) -> bool {
        !matches!(self.shape, Shape::Wide(_)) && self.number != INNER
    }

    /// Calls it; returns what came back, and what should have. `value` is any number.
    #[inline(never)]
    pub(crate) fn call(&self, who: u64, value: u64) -> (u64, u64) {
        let number = self.number;
        match self.shape {
            Shape::Pair(f) => (black_box(f)(who, value), mix(number, &[who, value])),
            Shape::Six(f) => (
                black_box(f)(who, value, 3, 4, 5, 6),
                mix(number, &[who, value, 3, 4, 5, 6]),
            ),
            Shape::Eleven(f) => (
                black_box(f)(who, value, 3, 4, 5, 6, 7, 8, 9, 10, 11),
                mix(number, &[who, value, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
            ),
            Shape::Wide(f) => {
                let Words(a, b, c) = black_box(f)(who, value);
                let whole = b == who && c == value;
                let first = if whole {
                    a
                } else {
                    !mix(number, &[who, value])
                };
                (first, mix(number, &[who, value]))
            }
            Shape::Nested(f) => (
                black_box(f)(who, value),
                mix(number, &[who, mix(INNER, &[who, value])]),
            ),
            Shape::Sleepy(f) => (black_box(f)(who, value), mix(number, &[who, value, 1])),
        }
    }
}

macro_rules! functions {
    ($table:ident, $shape:ident, $arguments:tt -> $result:ty, $number:ident => $body:expr, { $($name:ident $value:literal,)* }) => {
        $(
            #[expect(unsafe_code, reason = "hooks name it, and its arguments have to be as declared")]
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name $arguments -> $result {
                const $number: u64 = $value;
                $body
            }
        )*
        const $table: &[Function] = &[$(Function {
            name: stringify!($name),
            number: $value,
            shape: Shape::$shape($name),
        },)*];
    };
}

functions! {PAIR, Pair, (who: u64, value: u64) -> u64, NUMBER => mix(NUMBER, &[who, value]), {
    torture_pair_00 1, torture_pair_01 2, torture_pair_02 3, torture_pair_03 4,
    torture_pair_04 5, torture_pair_05 6, torture_pair_06 7, torture_pair_07 8,
    torture_pair_08 9, torture_pair_09 10, torture_pair_10 11, torture_pair_11 12,
    torture_pair_12 13, torture_pair_13 14, torture_pair_14 15, torture_pair_15 16,
    torture_pair_16 17, torture_pair_17 18, torture_pair_18 19, torture_pair_19 20,
    torture_pair_20 21, torture_pair_21 22, torture_pair_22 23, torture_pair_23 24,
    torture_pair_24 25, torture_pair_25 26, torture_pair_26 27, torture_pair_27 28,
    torture_pair_28 29, torture_pair_29 30, torture_pair_30 31, torture_pair_31 32,
    torture_pair_32 33, torture_pair_33 34, torture_pair_34 35, torture_pair_35 36,
    torture_pair_36 37, torture_pair_37 38, torture_pair_38 39, torture_pair_39 40,
    torture_pair_40 41, torture_pair_41 42, torture_pair_42 43, torture_pair_43 44,
    torture_pair_44 45, torture_pair_45 46, torture_pair_46 47, torture_pair_47 48,
    torture_pair_48 49, torture_pair_49 50, torture_pair_50 51, torture_pair_51 52,
    torture_pair_52 53, torture_pair_53 54, torture_pair_54 55, torture_pair_55 56,
    torture_pair_56 57, torture_pair_57 58, torture_pair_58 59, torture_pair_59 60,
    torture_pair_60 61, torture_pair_61 62, torture_pair_62 63, torture_pair_63 64,
}}

functions! {SIX, Six, (who: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> u64, NUMBER => mix(NUMBER, &[who, b, c, d, e, f]), {
    torture_six_00 101, torture_six_01 102, torture_six_02 103, torture_six_03 104,
    torture_six_04 105, torture_six_05 106, torture_six_06 107, torture_six_07 108,
    torture_six_08 109, torture_six_09 110, torture_six_10 111, torture_six_11 112,
    torture_six_12 113, torture_six_13 114, torture_six_14 115, torture_six_15 116,
    torture_six_16 117, torture_six_17 118, torture_six_18 119, torture_six_19 120,
    torture_six_20 121, torture_six_21 122, torture_six_22 123, torture_six_23 124,
    torture_six_24 125, torture_six_25 126, torture_six_26 127, torture_six_27 128,
    torture_six_28 129, torture_six_29 130, torture_six_30 131, torture_six_31 132,
    torture_six_32 133, torture_six_33 134, torture_six_34 135, torture_six_35 136,
    torture_six_36 137, torture_six_37 138, torture_six_38 139, torture_six_39 140,
    torture_six_40 141, torture_six_41 142, torture_six_42 143, torture_six_43 144,
    torture_six_44 145, torture_six_45 146, torture_six_46 147, torture_six_47 148,
}}

functions! {ELEVEN, Eleven, (who: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, i: u64, j: u64, k: u64) -> u64, NUMBER => mix(NUMBER, &[who, b, c, d, e, f, g, h, i, j, k]), {
    torture_eleven_00 201, torture_eleven_01 202, torture_eleven_02 203, torture_eleven_03 204,
    torture_eleven_04 205, torture_eleven_05 206, torture_eleven_06 207, torture_eleven_07 208,
    torture_eleven_08 209, torture_eleven_09 210, torture_eleven_10 211, torture_eleven_11 212,
    torture_eleven_12 213, torture_eleven_13 214, torture_eleven_14 215, torture_eleven_15 216,
    torture_eleven_16 217, torture_eleven_17 218, torture_eleven_18 219, torture_eleven_19 220,
    torture_eleven_20 221, torture_eleven_21 222, torture_eleven_22 223, torture_eleven_23 224,
    torture_eleven_24 225, torture_eleven_25 226, torture_eleven_26 227, torture_eleven_27 228,
    torture_eleven_28 229, torture_eleven_29 230, torture_eleven_30 231, torture_eleven_31 232,
    torture_eleven_32 233, torture_eleven_33 234, torture_eleven_34 235, torture_eleven_35 236,
    torture_eleven_36 237, torture_eleven_37 238, torture_eleven_38 239, torture_eleven_39 240,
    torture_eleven_40 241, torture_eleven_41 242, torture_eleven_42 243, torture_eleven_43 244,
    torture_eleven_44 245, torture_eleven_45 246, torture_eleven_46 247, torture_eleven_47 248,
}}

functions! {WIDE, Wide, (who: u64, value: u64) -> Words, NUMBER => Words(mix(NUMBER, &[who, value]), who, value), {
    torture_wide_00 301, torture_wide_01 302, torture_wide_02 303, torture_wide_03 304,
    torture_wide_04 305, torture_wide_05 306, torture_wide_06 307, torture_wide_07 308,
    torture_wide_08 309, torture_wide_09 310, torture_wide_10 311, torture_wide_11 312,
    torture_wide_12 313, torture_wide_13 314, torture_wide_14 315, torture_wide_15 316,
    torture_wide_16 317, torture_wide_17 318, torture_wide_18 319, torture_wide_19 320,
    torture_wide_20 321, torture_wide_21 322, torture_wide_22 323, torture_wide_23 324,
    torture_wide_24 325, torture_wide_25 326, torture_wide_26 327, torture_wide_27 328,
    torture_wide_28 329, torture_wide_29 330, torture_wide_30 331, torture_wide_31 332,
}}

functions! {NESTED, Nested, (who: u64, value: u64) -> u64, NUMBER => mix(NUMBER, &[who, black_box(torture_pair_00 as Pair)(who, value)]), {
    torture_nested_00 401, torture_nested_01 402, torture_nested_02 403, torture_nested_03 404,
    torture_nested_04 405, torture_nested_05 406, torture_nested_06 407, torture_nested_07 408,
    torture_nested_08 409, torture_nested_09 410, torture_nested_10 411, torture_nested_11 412,
    torture_nested_12 413, torture_nested_13 414, torture_nested_14 415, torture_nested_15 416,
    torture_nested_16 417, torture_nested_17 418, torture_nested_18 419, torture_nested_19 420,
    torture_nested_20 421, torture_nested_21 422, torture_nested_22 423, torture_nested_23 424,
    torture_nested_24 425, torture_nested_25 426, torture_nested_26 427, torture_nested_27 428,
    torture_nested_28 429, torture_nested_29 430, torture_nested_30 431, torture_nested_31 432,
    torture_nested_32 433, torture_nested_33 434, torture_nested_34 435, torture_nested_35 436,
    torture_nested_36 437, torture_nested_37 438, torture_nested_38 439, torture_nested_39 440,
    torture_nested_40 441, torture_nested_41 442, torture_nested_42 443, torture_nested_43 444,
    torture_nested_44 445, torture_nested_45 446, torture_nested_46 447, torture_nested_47 448,
}}

functions! {SLEEPY, Sleepy, (who: u64, value: u64) -> u64, NUMBER => {
    sched::yield_now();
    mix(NUMBER, &[who, value, 1])
}, {
    torture_sleepy_00 501, torture_sleepy_01 502, torture_sleepy_02 503, torture_sleepy_03 504,
    torture_sleepy_04 505, torture_sleepy_05 506, torture_sleepy_06 507, torture_sleepy_07 508,
    torture_sleepy_08 509, torture_sleepy_09 510, torture_sleepy_10 511, torture_sleepy_11 512,
    torture_sleepy_12 513, torture_sleepy_13 514, torture_sleepy_14 515, torture_sleepy_15 516,
}}

// Hooked the Linux way only, for a site goes one way at a time.
functions! {LINUX, Pair, (who: u64, value: u64) -> u64, NUMBER => mix(NUMBER, &[who, value]), {
    torture_linux_00 601, torture_linux_01 602, torture_linux_02 603, torture_linux_03 604,
    torture_linux_04 605, torture_linux_05 606, torture_linux_06 607, torture_linux_07 608,
    torture_linux_08 609, torture_linux_09 610, torture_linux_10 611, torture_linux_11 612,
    torture_linux_12 613, torture_linux_13 614, torture_linux_14 615, torture_linux_15 616,
    torture_linux_16 617, torture_linux_17 618, torture_linux_18 619, torture_linux_19 620,
    torture_linux_20 621, torture_linux_21 622, torture_linux_22 623, torture_linux_23 624,
}}

macro_rules! swaps {
    ($table:ident: $($name:ident $original:ident $number:literal,)*) => {
        $(
            #[expect(unsafe_code, reason = "a name that it can be found by, and arguments as declared")]
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name(who: u64, value: u64) -> u64 {
                super::ledger::replaced($number, who);
                past_site($original as Pair)(who, value)
            }
        )*
        /// What can take the place of a function: the function's number among all, its name, the name of the other, which calls it.
        pub(crate) const $table: &[(usize, &str, &str)] = &[$(($number, stringify!($original), stringify!($name)),)*];
        const _: () = {
            /// Nobody calls these by name; they are part of the image all the same.
            #[used]
            static BY_NAME: &[Pair] = &[$($name,)*];
        };
    };
}

swaps! {SWAPS:
    torture_swap_08 torture_pair_08 8,
    torture_swap_09 torture_pair_09 9,
    torture_swap_10 torture_pair_10 10,
    torture_swap_11 torture_pair_11 11,
    torture_swap_12 torture_pair_12 12,
    torture_swap_13 torture_pair_13 13,
    torture_swap_14 torture_pair_14 14,
    torture_swap_15 torture_pair_15 15,
    torture_swap_16 torture_pair_16 16,
    torture_swap_17 torture_pair_17 17,
    torture_swap_18 torture_pair_18 18,
    torture_swap_19 torture_pair_19 19,
    torture_swap_20 torture_pair_20 20,
    torture_swap_21 torture_pair_21 21,
    torture_swap_22 torture_pair_22 22,
    torture_swap_23 torture_pair_23 23,
}

swaps! {PATCHED:
    torture_swap_24 torture_pair_24 24,
    torture_swap_25 torture_pair_25 25,
}

/// What a live patch puts in the place of two functions.
pub(crate) const PATCH: NamedPatch = NamedPatch {
    name: "torture",
    pairs: &[
        ("torture_pair_24", "torture_swap_24"),
        ("torture_pair_25", "torture_swap_25"),
    ],
    whole: &[],
};

const _: () = assert!(PAIR[INNER_INDEX].number == INNER);

/// A function that calls another, and that one: `torture_nested_00` and `torture_pair_00`.
pub(crate) fn nested() -> (Pair, Pair) {
    (torture_nested_00, torture_pair_00)
}

/// All of them, group by group.
pub(crate) const GROUPS: [&[Function]; 7] = [PAIR, SIX, ELEVEN, WIDE, NESTED, SLEEPY, LINUX];

/// What the names of a group's functions begin with, in the order of [`GROUPS`]; of those that are hooked as a group.
pub(crate) const PATTERNS: [&str; 6] = [
    "torture_pair_*",
    "torture_six_*",
    "torture_eleven_*",
    "torture_wide_*",
    "torture_nested_*",
    "torture_sleepy_*",
];

/// All of them.
pub(crate) fn all() -> impl Iterator<Item = &'static Function> {
    GROUPS.into_iter().flatten()
}
