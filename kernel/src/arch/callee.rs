// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rust functions as a trampoline's callees: `extern "C" fn(ctx, data) -> u64`, with data that lives long enough.

use crate::hook::ProgramCode;
use crate::symbols;
use alloc::sync::Arc;
use bpf_vm::attachment::Attachment;
use core::any::Any;
use core::sync::atomic::AtomicU64;
use trampoline::{Kind, registers};

/// A hook written in Rust, with what it works on.
pub(crate) trait NativeHook: Send + Sync + 'static {
    /// The most bytes of stack that a hit takes, where the audit does not tell: it follows no branch whose target a rule leaves out.
    const STACK: u32 = 1024;

    /// One hit. Runs in any context: no lock, no allocation, nothing that has a site.
    ///
    /// The result counts for fmod_ret only: if it is not 0 the function is skipped and returns it.
    fn hit(&self, hit: &Hit<'_>) -> u64;
}

/// One hit of a hook: the `u64 ctx[]` that the trampoline stored, and the place that it stored it for.
pub(crate) struct Hit<'a> {
    context: *const u64,
    place: &'a Place,
}

/// What a hook's context is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// The function's arguments, behind them its result if the hook is one of its exit.
    Arguments,
    /// The same of a session, with the word that says which end it is below it.
    Session,
    /// The registers, as `struct user_pt_regs` has them ([`trampoline::registers`]).
    Registers,
    /// The same, of a program on many functions: its data are words of the function's stub ([`StubData`]).
    Many,
}

impl Shape {
    /// What a trampoline gives to programs of a kind.
    pub(crate) fn of(kind: Kind) -> Shape {
        match kind {
            Kind::Fsession => Shape::Session,
            Kind::Fentry | Kind::FmodRet | Kind::Freplace | Kind::Fexit => Shape::Arguments,
        }
    }
}

/// Where a hook is attached.
struct Place {
    attachment: Attachment,
    shape: Shape,
}

impl Hit<'_> {
    /// The context: as the hook's [`Shape`] says.
    #[inline(always)]
    pub(crate) fn words(&self) -> &[u64] {
        let attachment = &self.place.attachment;
        let words = match self.place.shape {
            Shape::Registers | Shape::Many => registers::WORDS,
            _ => attachment.arguments as usize + attachment.has_result as usize,
        };
        // SAFETY: only `thunk` makes a Hit, from the ctx of a trampoline and the attachment that it was generated for: it stored
        // so many words there, which no one else writes until the hit is over.
        unsafe { core::slice::from_raw_parts(self.context, words) }
    }

    /// Of a session: whether this is its exit, and the word that both ends share.
    pub(crate) fn session(&self) -> Option<(bool, &AtomicU64)> {
        if self.place.shape != Shape::Session {
            return None;
        }
        // SAFETY: below the ctx of a session lies a word with the address of the session's own word, and in bit 0 whether
        // this is the exit (trampoline/src/frame.rs).
        let which = unsafe { self.context.wrapping_sub(1).read() };
        // SAFETY: the session's word lies in the trampoline's frame, aligned, and no one else uses it during the hit.
        let word = unsafe { AtomicU64::from_ptr((which & !1) as *mut u64) };
        Some((which & 1 != 0, word))
    }

    /// Where the program is attached.
    pub(crate) fn attachment(&self) -> &Attachment {
        &self.place.attachment
    }
}

/// What lies below the ctx of a session: the address of the session's word, and in bit 0 whether this is the exit.
///
/// # Safety
/// `context` is the ctx that a trampoline gave to a program of kind fsession.
unsafe fn session_of(context: u64) -> u64 {
    let context = core::ptr::with_exposed_provenance::<u64>(context as usize);
    // SAFETY: a trampoline stores that word right below the ctx of a session (trampoline/src/frame.rs).
    unsafe { context.wrapping_sub(1).read() }
}

/// `bool bpf_session_is_return(void *ctx)`: whether a session's program is at its function's exit.
///
/// # Safety
/// `context` is the ctx that a trampoline gave to a program of kind fsession.
pub(crate) unsafe extern "C" fn session_is_return(
    context: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: as this function asks for.
    unsafe { session_of(context) & 1 }
}

/// `__u64 *bpf_session_cookie(void *ctx)`: the word that a session's entry and exit share, 0 at the entry.
///
/// # Safety
/// `context` is the ctx that a trampoline gave to a program of kind fsession.
pub(crate) unsafe extern "C" fn session_cookie(
    context: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
) -> u64 {
    // SAFETY: as this function asks for.
    unsafe { session_of(context) & !1 }
}

/// What a trampoline needs to call a [`NativeHook`] or a compiled program, and what keeps it alive.
pub(crate) struct Callee {
    /// Address of the function.
    pub address: u64,
    /// Its second argument, if it takes one.
    pub data: Option<u64>,
    /// The most bytes of stack that a hit uses.
    pub stack_bytes: u32,
    /// Those that it uses while it calls the function that it stands in for; 0: it calls none.
    pub original_stack: u32,
    /// Dropped when nothing can call it any more.
    pub keep: Arc<dyn Any + Send + Sync>,
}

/// A hook at its place.
struct Placed<T> {
    place: Place,
    hook: Arc<T>,
}

extern "C" fn thunk<T: NativeHook>(context: *const u64, data: *const Placed<T>) -> u64 {
    // SAFETY: `data` is the Arc's contents of the Callee that this thunk's address came with; whoever attaches it keeps
    // `keep` until a grace period after the last trampoline that names it was taken off its site.
    let placed = unsafe { &*data };
    let place = &placed.place;
    placed.hook.hit(&Hit { context, place })
}

/// What the second argument of a program on many functions points to: words of the function's stub.
#[repr(C)]
pub(crate) struct StubData {
    /// The function, its cookie.
    pub attachment: Attachment,
    /// What the callee's [`data`](Callee::data) says; of compiled programs not looked at.
    pub data: u64,
}

extern "C" fn thunk_of_many<T: NativeHook>(context: *const u64, data: *const StubData) -> u64 {
    // SAFETY: `data` is the stub that the hit came through, whose words are a StubData and are not written while it may be executed.
    let spot = unsafe { &*data };
    // SAFETY: the Arc's contents of the Callee that this thunk's address came with, exposed; whoever attaches it keeps `keep` as
    // long as the stubs.
    let hook = unsafe { &*core::ptr::with_exposed_provenance::<T>(spot.data as usize) };
    let place = Place {
        attachment: spot.attachment,
        shape: Shape::Many,
    };
    hook.hit(&Hit {
        context,
        place: &place,
    })
}

/// Makes a callee of a hook, for the place that it is attached to.
pub(crate) fn callee<T: NativeHook>(hook: Arc<T>, attachment: Attachment, shape: Shape) -> Callee {
    let stack = |address| symbols::stack_of(address).unwrap_or(T::STACK).max(T::STACK);
    if shape == Shape::Many {
        let address = thunk_of_many::<T> as *const () as usize as u64;
        return Callee {
            address,
            data: Some(Arc::as_ptr(&hook).expose_provenance() as u64),
            stack_bytes: stack(address),
            original_stack: 0, // it stands in for no function
            keep: hook,
        };
    }
    let place = Place { attachment, shape };
    let address = thunk::<T> as *const () as usize as u64;
    let placed = Arc::new(Placed { place, hook });
    Callee {
        address,
        data: Some(Arc::as_ptr(&placed).expose_provenance() as u64),
        stack_bytes: stack(address),
        original_stack: stack(address), // nobody says whether it calls it
        keep: placed,
    }
}

/// A pointer to a function of the procedure call standard's ABI.
pub(crate) trait ExternC: Copy {
    /// The same function without its site: past the two NOPs at its entry, whatever these are now.
    ///
    /// What calls a function so is led to no hook and to no replacement: a replacement reaches the original by it.
    fn past_site(self) -> Self;
}

/// The same function from the second word of its site on: what a task executes that was preempted between the two.
pub(crate) fn behind_first_word(
    f: extern "C" fn(u64, u64) -> u64,
) -> extern "C" fn(u64, u64) -> u64 {
    let entry = f as usize;
    // SAFETY: as of `past_site`; the second word is a NOP too, unless the site is one of the Linux way's that leads somewhere.
    unsafe { core::mem::transmute::<usize, extern "C" fn(u64, u64) -> u64>(entry + 4) }
}

macro_rules! extern_c {
    ($($argument:ident),*) => {
        impl<$($argument,)* R> ExternC for extern "C" fn($($argument),*) -> R {
            #[inline(always)]
            fn past_site(self) -> Self {
                let entry = self as usize;
                debug_assert!(symbols::blob().is_some_and(|b| b.has_site(entry as u64)));
                // SAFETY: every function with a site begins with two words that are a NOP each when it is linked, so the code
                // behind them is the function with the same signature; xtask checks the words in the linked image.
                unsafe { core::mem::transmute::<usize, Self>(entry + 8) }
            }
        }
    };
}
extern_c!();
extern_c!(A);
extern_c!(A, B);
extern_c!(A, B, C);
extern_c!(A, B, C, D);

/// The same function without its site: see [`ExternC::past_site`].
pub(crate) fn past_site<F: ExternC>(f: F) -> F {
    f.past_site()
}

/// `__u64 springboard_call_original(void *ctx)`: calls the function that the program stands in for, with the arguments that it was
/// called with; returns what that returns.
///
/// The caller is active in its context meanwhile, so a call of the function by its name from inside the original runs the original
/// again, and is counted as a miss.
///
/// # Safety
/// `context` is the ctx that a trampoline gave to a program of kind freplace, and `attachment` the address of its attachment.
pub(crate) unsafe extern "C" fn call_original(
    context: u64,
    _: u64,
    _: u64,
    _: u64,
    _: u64,
    attachment: u64,
) -> u64 {
    let attachment = core::ptr::with_exposed_provenance::<Attachment>(attachment as usize);
    // SAFETY: the caller says so; an attachment lives as long as its hook, and nobody writes it.
    let attachment = unsafe { &*attachment };
    let context = core::ptr::with_exposed_provenance::<u64>(context as usize);
    // SAFETY: a trampoline stored so many words at ctx, which nobody writes until the program has returned.
    let words = unsafe { core::slice::from_raw_parts(context, attachment.arguments as usize) };
    let mut all = [0; ORIGINAL_ARGUMENTS];
    for (to, from) in all.iter_mut().zip(words) {
        *to = *from;
    }
    let entry = attachment.function as usize;
    // SAFETY: the function has a site, for the trampoline hangs there, so it goes on at entry + 8 (see `past_site`). The kernel's
    // types say that its arguments are integers and pointers, a word each, or it would not be replaced; those that it does not take
    // are in registers that a caller may spoil, and on this frame's own stack (AAPCS64 6.8.2).
    let function = unsafe { core::mem::transmute::<usize, Original>(entry + 8) };
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = all;
    function(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
}

/// The most words of arguments that a replaced function has: eight in registers and eight on the stack ([`trampoline::ArgSpec`]).
const ORIGINAL_ARGUMENTS: usize = 16;

type Original = extern "C" fn(
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
    u64,
) -> u64;

/// The entry of a compiled program that takes two arguments. It must not be called once the code is dropped.
pub(crate) fn entry(code: &ProgramCode) -> extern "C" fn(u64, u64) -> u64 {
    let address = code.address() as usize;
    // SAFETY: only `hook::place` makes a ProgramCode, of what the JIT returned for that address: its first word is the entry
    // of a function that takes up to five integers in x0 to x4 and returns one in x0 (AAPCS64).
    unsafe { core::mem::transmute::<usize, extern "C" fn(u64, u64) -> u64>(address) }
}
