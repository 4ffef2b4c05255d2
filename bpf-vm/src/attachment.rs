// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a run is told of the place that it runs for.
//!
//! A hook that runs a program gives it a context (r1) and, if the program calls anything that asks
//! ([`needs_attachment`](crate::program::ValidatedProgram::needs_attachment)), its attachment: one value for all hits,
//! that nobody writes while the attachment exists. Compiled code takes its address in the argument register after the
//! context (x1) and hands it on to helpers in x5; programs that do not ask pay nothing.
#![forbid(unsafe_code)]

/// One program's place on one function. The context of a run for it begins with as many words as [`arguments`](Self::arguments)
/// and [`has_result`](Self::has_result) say; the interpreter checks that before a helper looks at them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The address of the function's entry, which `bpf_get_func_ip` returns.
    pub function: u64,
    /// What whoever attached the program gave it, which `bpf_get_attach_cookie` returns.
    pub cookie: u64,
    /// Words of the context that are arguments of the function, which `bpf_get_func_arg_cnt` returns.
    pub arguments: u32,
    /// 1 if the function's result follows the arguments in the context (an exit hook), else 0.
    pub has_result: u32,
}

impl Attachment {
    /// No function, no cookie, no arguments: for programs run by themselves.
    pub const NONE: Self = Self {
        function: 0,
        cookie: 0,
        arguments: 0,
        has_result: 0,
    };

    /// The number that stands for it in a register: its address, provenance exposed, so that helpers can follow it.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }
}
