// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rust functions as a trampoline's callees: `extern "C" fn(ctx, data) -> u64`, with data that lives long enough.

use crate::hook::ProgramCode;
use alloc::sync::Arc;
use core::any::Any;

/// A hook written in Rust, with what it works on.
pub(crate) trait NativeHook: Send + Sync + 'static {
    /// One hit; `context` gives the arguments. Runs in any context: no lock, no allocation, nothing that has a site.
    fn hit(&self, context: &Context) -> u64;
}

/// The arguments of a hit: the `u64 ctx[]` that the trampoline stored.
#[repr(transparent)]
pub(crate) struct Context(*const u64);

/// How many argument words a trampoline stores: x0 to x7.
pub(crate) const ARGUMENTS: usize = 8;

impl Context {
    /// The words: x0 to x7 as the hooked function got them.
    #[inline(always)]
    pub(crate) fn words(&self) -> &[u64; ARGUMENTS] {
        // SAFETY: only `thunk` makes a Context, from the ctx of a trampoline, which stored ARGUMENTS words there that no
        // one else writes until the hit is over.
        unsafe { &*self.0.cast() }
    }
}

/// What a trampoline needs to call a [`NativeHook`], and what keeps it alive.
pub(crate) struct Callee {
    /// Address of the function.
    pub address: u64,
    /// Its second argument, if it takes one.
    pub data: Option<u64>,
    /// The most bytes of stack that a hit uses.
    pub stack_bytes: u32,
    /// Dropped when nothing can call it any more.
    pub keep: Arc<dyn Any + Send + Sync>,
}

/// What a hook written in Rust is allowed: the interpreter's frame of 512 bytes, its registers, and formatting.
const NATIVE_STACK: u32 = 3072;

extern "C" fn thunk<T: NativeHook>(context: *const u64, data: *const T) -> u64 {
    // SAFETY: `data` is the Arc's contents of the Callee that this thunk's address came with; whoever attaches it keeps
    // `keep` until a grace period after the last trampoline that names it was taken off its site.
    let hook = unsafe { &*data };
    hook.hit(&Context(context))
}

/// Makes a callee of a hook.
pub(crate) fn callee<T: NativeHook>(hook: Arc<T>) -> Callee {
    Callee {
        address: thunk::<T> as *const () as usize as u64,
        data: Some(Arc::as_ptr(&hook).expose_provenance() as u64),
        stack_bytes: NATIVE_STACK,
        keep: hook,
    }
}

/// The same function without its site: past the two NOPs at its entry.
pub(crate) fn past_site(f: extern "C" fn(u64, u64) -> u64) -> extern "C" fn(u64, u64) -> u64 {
    let entry = f as usize;
    debug_assert!(crate::symbols::blob().is_some_and(|b| b.has_site(entry as u64)));
    // SAFETY: every function with a site begins with two words that are a NOP each, so the code behind them is the function
    // with the same signature; xtask checks the words in the linked image.
    unsafe { core::mem::transmute::<usize, extern "C" fn(u64, u64) -> u64>(entry + 8) }
}

/// The entry of a compiled program that takes two arguments. It must not be called once the code is dropped.
pub(crate) fn entry(code: &ProgramCode) -> extern "C" fn(u64, u64) -> u64 {
    let address = code.address() as usize;
    // SAFETY: only `hook::place` makes a ProgramCode, of what the JIT returned for that address: its first word is the entry
    // of a function that takes up to five integers in x0 to x4 and returns one in x0 (AAPCS64).
    unsafe { core::mem::transmute::<usize, extern "C" fn(u64, u64) -> u64>(address) }
}
