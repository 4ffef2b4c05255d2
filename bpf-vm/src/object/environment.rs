// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a host has that objects refer to by name: its types, functions, variables, configuration, pinned maps.
#![forbid(unsafe_code)]

use alloc::{string::String, sync::Arc};

use crate::{btf::Btf, helpers::Helper, map::Map, program::KernelVariable};

/// The Linux whose BPF this crate follows, as KERNEL_VERSION(6, 12, 0) has it: what hosts other than Linux answer for the
/// setting `LINUX_KERNEL_VERSION`.
pub const LINUX_VERSION: u32 = 6 << 16 | 12 << 8;

/// What a host has that objects refer to by name. It has nothing by default, as `()` does.
pub trait Environment {
    /// The types that CO-RE relocations are about, and that kernel functions and variables are declared with.
    fn btf(&self) -> Option<&Btf<'_>> {
        None
    }

    /// The kernel function (kfunc) that `extern ... NAME(...) __ksym` declares.
    fn kfunc(&self, name: &str) -> Option<&'static Helper> {
        let _ = name;
        None
    }

    /// The kernel variable that `extern ... NAME __ksym` declares. Its `type_id` counts in [`btf`](Self::btf).
    fn variable(&self, name: &str) -> Option<KernelVariable> {
        let _ = name;
        None
    }

    /// The value of `extern ... NAME __kconfig` as a `.config` file has it: `y`, `m`, `n`, a number, `"a string"`.
    fn kconfig(&self, name: &str) -> Option<String> {
        let _ = name;
        None
    }

    /// The map that is pinned under that name.
    fn pinned(&self, name: &str) -> Option<Arc<Map>> {
        let _ = name;
        None
    }

    /// Pins a new map under its name, for objects that come later. Called when nothing can fail any more.
    fn pin(&self, map: &Arc<Map>) {
        let _ = map;
    }
}

impl Environment for () {}
