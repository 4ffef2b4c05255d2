// SPDX-License-Identifier: MIT OR Apache-2.0
//! What hooks may do to a function beside looking at it.
//!
//! A function says by its name here that its return value may be changed from outside, or that it may block, as Linux's
//! functions do by `ALLOW_ERROR_INJECTION`. `xtask` includes this file: its audit holds the second against what programs block by.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// What a function allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// A hook may skip it and return something else, or something else may run in its place: to its callers that is the same.
    Overridable,
    /// It is called only where a task may block.
    Sleepable,
}

/// Functions, or with a `*` at the end all whose names begin so, and what they allow.
const TARGETS: &[(&str, &[Target])] = &[
    ("workload_call", &[Target::Overridable, Target::Sleepable]),
    ("workload_six", &[Target::Overridable, Target::Sleepable]),
    ("workload_twelve", &[Target::Overridable, Target::Sleepable]),
    ("workload_nested", &[Target::Overridable, Target::Sleepable]),
    ("workload_struct", &[Target::Overridable, Target::Sleepable]),
    ("workload_encode", &[Target::Overridable]),
    ("workload_decode", &[Target::Overridable]),
    ("workload_blocks", &[Target::Overridable, Target::Sleepable]),
    ("torture_pair_*", &[Target::Overridable]),
    ("torture_six_*", &[Target::Overridable]),
    ("torture_eleven_*", &[Target::Overridable]),
    ("torture_wide_*", &[Target::Overridable]),
    ("torture_nested_*", &[Target::Overridable]),
    ("torture_linux_*", &[Target::Overridable]),
    (
        "torture_sleepy_*",
        &[Target::Overridable, Target::Sleepable],
    ),
];

/// How many functions whose arguments are known, and so can be called by a trampoline, stand on one another at most in one context,
/// those of [`FIRST`] not counted.
pub(crate) const CHAIN: usize = 2;

/// The first functions of a stack or of a context, called by none: everything that runs there stands on them. No trampoline calls them.
const FIRST: &[&str] = &[
    "springboard_main",
    "springboard_secondary",
    "task_main",
    "trap_*",
];

/// Those of these functions that reach another one of them by its site. None of them may stand in another's place: what it calls would stand
/// on that one's chain.
const CALLERS: &[&str] = &["workload_exchange", "workload_nested", "torture_nested_*"];

/// Whether a function reaches, by its site, another one whose arguments are known.
pub(crate) fn calls_another(function: &str) -> bool {
    CALLERS.iter().any(|name| means(name, function))
}

/// Whether a name is meant by this one, or by what is before a `*` at its end.
fn means(name: &str, function: &str) -> bool {
    match name.strip_suffix('*') {
        Some(start) => function.starts_with(start),
        None => name == function,
    }
}

/// Whether a function is the first of a stack or of a context.
pub(crate) fn is_first(function: &str) -> bool {
    FIRST.iter().any(|name| means(name, function))
}

/// Whether a function allows it.
pub(crate) fn is(function: &str, wanted: Target) -> bool {
    let row = TARGETS.iter().find(|(name, _)| means(name, function));
    row.is_some_and(|(_, allowed)| allowed.contains(&wanted))
}

/// Says that it does not, and which functions do.
pub(crate) fn missing(wanted: Target, what: &str) -> String {
    let names: Vec<_> = TARGETS
        .iter()
        .filter(|(_, allowed)| allowed.contains(&wanted))
        .map(|(name, _)| *name)
        .collect();
    let property = match wanted {
        Target::Overridable => "overridable",
        Target::Sleepable => "sleepable",
    };
    format!(
        "{what}, and it is not marked {property} (kernel/src/targets.rs); these are: {}",
        names.join(", ")
    )
}
