// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stack traces by frame records (AAPCS64 6.4.6): x29 points to { caller's x29, return address }.
//!
//! An exception writes such a record too, so a trace goes on through it. A return address that an exit hook has replaced is
//! looked up on the task's shadow stack, so a trace shows the real caller.

use super::trap::Frame;
use crate::hook::Hooked;
use crate::mm::{stack, table};
use crate::println;
use crate::symbols::Name;
use crate::task::{ShadowEntry, Task};
use core::sync::atomic::Ordering;
use trampoline::registers;
use trampoline::runtime::PROBE_CONTEXT;

/// The most frames of a trace.
pub(crate) const MOST: usize = 48;

/// A stack trace: where it begins, then return addresses.
pub(crate) type Trace = heapless::Vec<usize, MOST>;

/// The real caller behind a return address. `entries` are the task's replaced ones, the latest first, without those that frames
/// nearer to the top of the stack have used up; `above` is an address that the function's sp at entry was above.
fn real<'a>(
    entries: &mut (impl Iterator<Item = &'a ShadowEntry> + Clone),
    lr: usize,
    above: Option<usize>,
) -> usize {
    let mut lr = lr;
    // A return address may have been replaced by several hooks: the next one's landing is then what this one saved.
    while may_be_landing(lr)
        && let Some(at) = entries.clone().position(|entry| {
            entry.landing.load(Ordering::Relaxed) as usize == lr
                && above.is_none_or(|fp| entry.frame.load(Ordering::Relaxed) as usize > fp)
        })
        && let Some(entry) = entries.nth(at)
    {
        lr = entry.return_address.load(Ordering::Relaxed) as usize;
    }
    lr
}

/// Whether a landing can be there: no trace through compiled code alone looks at the shadow stack.
fn may_be_landing(address: usize) -> bool {
    crate::symbols::blob().is_none_or(|b| b.lookup(address as u64).is_none())
}

/// The instruction whose probe was interrupted at `address`, where no record of the probe's own shows it. An exception's record leads
/// there; what lies above is as if that instruction had been interrupted itself.
fn probed(address: usize) -> Option<usize> {
    match crate::hook::hooked_at(address, 0)? {
        Hooked::Probe {
            at,
            recorded: false,
        } => Some(at as usize),
        _ => None,
    }
}

/// The return addresses from the frame record at `fp` on. `task` is the current one, or one that runs nowhere.
pub(crate) fn walk(task: &Task, fp: usize, mut visit: impl FnMut(usize)) {
    walk_frames(task, fp, |address, _| visit(address));
}

/// As [`walk`], with the address of the frame record of the function that is returned to; 0 where that is not known.
fn walk_frames(task: &Task, mut fp: usize, mut visit: impl FnMut(usize, usize)) {
    let mut entries = task.shadow();
    for _ in 0..MOST {
        if fp == 0
            || !fp.is_multiple_of(8)
            || table::translate(fp).is_none()
            || table::translate(fp + 15).is_none()
        {
            return;
        }
        // SAFETY: the record was just seen to be mapped; reading kernel memory has no side effect.
        let next = unsafe { (fp as *const usize).read_volatile() };
        // SAFETY: as above, the record's second word.
        let lr = unsafe { ((fp + 8) as *const usize).read_volatile() };
        if lr == 0 {
            return;
        }
        let address = real(&mut entries, lr, Some(fp));
        visit(address, next);
        if let Some(at) = probed(address) {
            visit(at, 0);
        }
        // Records lie at ever higher addresses of one stack; a change of stack ends the walk unless it is to a stack.
        if next <= fp && stack::bounds(next).is_none() {
            return;
        }
        fp = next;
    }
}

/// What a body that many functions share keeps in the frame whose record is at `fp`: the address of a stub's link.
pub(crate) fn link(fp: usize) -> Option<u64> {
    let at = fp.checked_add(trampoline::runtime::SHARED_LINK as usize)?;
    if fp == 0 || !at.is_multiple_of(8) || table::translate(at).is_none() {
        return None;
    }
    // SAFETY: an aligned word that was just seen to be mapped; reading kernel memory has no side effect.
    Some(unsafe { (at as *const u64).read_volatile() })
}

unsafe extern "C" {
    static vectors: u8;
    static exception_exit: u8;
}

/// The most records that [`each_way_back`] follows.
const DEEPEST: usize = 4096;

/// A word of a stack; `None` where none is mapped.
fn word(at: usize) -> Option<usize> {
    if !at.is_multiple_of(8) || table::translate(at).is_none() {
        return None;
    }
    // SAFETY: the word was just seen to be mapped; reading kernel memory has no side effect.
    Some(unsafe { (at as *const usize).read_volatile() })
}

/// Every address that a task goes on at some time: where it was interrupted, what x30 held there, return addresses; with the address of the
/// frame record of the code there, or 0 where that is not known. False if its records cannot be followed to the first one. `from`: its frame
/// if it is the current task, in the handler of an interrupt; else, if it runs nowhere, its sp.
///
/// Unlike a search through all words this finds hardly an address that an earlier call left behind, and what it visits needlessly is no
/// harm. It is enough: every function that calls another has a record while it does (-Cforce-frame-pointers; of the assembly only what
/// begins a stack has none). One that has not made its record yet, or not any more, has its caller in x30, and has been left
///
/// - by an exception, whose frame has that;
/// - by a probe in its middle, whose record says where it was interrupted: x30 lies in the context behind it (`trampoline/src/probe.rs`);
/// - by the site of Linux's way: x30 is the function's own, its caller is in x9 until there is a record of it, and again behind it
///   (`trampoline/src/linux/`). Exceptions alone leave that.
///
/// Code of a probe goes on in the probed function whether it has a record of it or not, so the probed instruction is visited with it.
///
/// A return address that a hook replaced is on the shadow stack, and the whole of that is visited. A landing that many functions share
/// says of none which it is; its entry's cookie does, the stub of the function, and is visited in its stead.
pub(crate) fn each_way_back(task: &Task, from: usize, mut visit: impl FnMut(u64, usize)) -> bool {
    const RECORD: usize = core::mem::offset_of!(Frame, record);
    const X: usize = core::mem::offset_of!(Frame, x);
    let shared = |entry: &ShadowEntry| {
        let cookie = entry.cookie.load(Ordering::Relaxed);
        crate::hook::stub_of(cookie as usize).is_some()
    };
    // `known`: whether the frame, of whose record this is the address, is as its code needs it at a call. False if it cannot be told where
    // a function goes on that was probed.
    let mut see = |address: u64, frame: usize, known: bool| {
        let mut entries = task.shadow();
        let is_landing = |e: &ShadowEntry| e.landing.load(Ordering::Relaxed) == address;
        if entries.any(|entry| is_landing(entry) && shared(entry)) {
            return true;
        }
        visit(address, if known { frame } else { 0 });
        let Some(Hooked::Probe { at, recorded }) = crate::hook::hooked_at(address as usize, 0)
        else {
            return true;
        };
        visit(at, 0);
        const LINK: usize = (PROBE_CONTEXT + registers::x(30)) as usize;
        if !recorded {
            return true;
        }
        let link = frame.checked_add(LINK).and_then(word);
        link.is_some_and(|link| {
            visit(link as u64, 0);
            true
        })
    };
    let mut followed = true;
    for entry in task.shadow() {
        followed &= see(entry.return_address.load(Ordering::Relaxed), 0, false);
        if shared(entry) {
            followed &= see(entry.cookie.load(Ordering::Relaxed), 0, false);
        }
    }
    let (start, end) = (&raw const vectors, &raw const exception_exit);
    let in_vectors = start.addr()..=end.addr();
    let mut exception = core::ptr::eq(task, super::switch::current());
    let mut record = if exception { from + RECORD } else { from };
    for _ in 0..DEEPEST {
        let Some((next, address)) = word(record).zip(word(record + 8)) else {
            return false;
        };
        if exception {
            let register = |number: usize| word(record - RECORD + X + 8 * number);
            let Some((lr, x9)) = register(30).zip(register(9)) else {
                return false;
            };
            // Of a called function that has no record yet, x29 is its caller's.
            followed &= see(lr as u64, next, true);
            followed &= see(x9 as u64, 0, false);
        }
        followed &= see(address as u64, next, !exception);
        if next == 0 {
            return followed;
        }
        // Records lie at ever higher addresses of one stack, or begin another one.
        if next <= record && stack::bounds(next).is_none() {
            return false;
        }
        // The handler that returns to the vectors was called with the record in the exception's frame.
        exception = in_vectors.contains(&address);
        record = next;
    }
    false
}

/// The trace of what an exception interrupted at `pc` in the current task, or of a switch's record with its `lr` as `pc`.
pub(crate) fn trace(task: &Task, pc: usize, fp: usize) -> Trace {
    let mut trace = Trace::new();
    let _ = trace.push(pc);
    if let Some(at) = probed(pc) {
        let _ = trace.push(at);
    }
    walk(task, fp, |address| {
        let _ = trace.push(address);
    });
    trace
}

/// The trace of a task that runs nowhere, from what `switch_stacks` saved: a frame record lies at its sp.
pub(crate) fn trace_of_sleeping(task: &Task) -> Trace {
    let mut trace = Trace::new();
    walk(task, task.sp.load(Ordering::Relaxed), |address| {
        let _ = trace.push(address);
    });
    trace
}

/// Prints a trace that begins at `pc`; `lr` is shown if the frame record does not hold it yet.
pub(crate) fn print(pc: usize, lr: usize, fp: usize) {
    let task = super::switch::current();
    println!("      {pc:#018x}  {}", Name(pc));
    if let Some(at) = probed(pc) {
        println!("      {at:#018x}  {}", Name(at));
    }
    let mut first = true;
    let mut again = Again::default();
    let held = lr;
    let lr = real(&mut task.shadow(), lr, None);
    walk_frames(task, fp, |address, frame| {
        if first && address != lr && held != 0 && table::translate(lr).is_some_and(|t| t.execute) {
            println!("      {lr:#018x}  {} (x30)", Name(lr.wrapping_sub(4)));
        }
        first = false;
        again.print(address, frame);
    });
    again.end();
}

/// Prints return addresses, a repeated one (a recursion) once and how often.
#[derive(Default)]
struct Again {
    last: usize,
    more: usize,
}

impl Again {
    /// `frame` is where the frame record is of the function that is returned to.
    fn print(&mut self, address: usize, frame: usize) {
        if address == self.last {
            self.more += 1;
            return;
        }
        self.end();
        self.last = address;
        let call = address.wrapping_sub(4);
        println!("      {address:#018x}  {}", Name(call));
        // The name of a body that many functions share says of none which it is.
        if crate::hook::hooked_at(call, 0).is_none()
            && let Some(Hooked::Function(function)) = crate::hook::hooked_at(call, frame)
        {
            println!("        for {}", Name(function as usize));
        }
    }

    fn end(&mut self) {
        match core::mem::take(&mut self.more) {
            0 => {}
            more => println!("        the same {more} more times, at least"),
        }
    }
}

/// Prints the caller's own trace.
#[inline(never)]
pub(crate) fn print_here() {
    let fp: usize;
    // SAFETY: reads x29, which is the frame pointer throughout (-Cforce-frame-pointers).
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    let mut again = Again::default();
    walk_frames(super::switch::current(), fp, |address, frame| {
        again.print(address, frame);
    });
    again.end();
}

/// The stack below the hook that the caller is in: the hooked function, then return addresses from its caller on, without the first
/// `skip` of all these; how many fitted into `into`. None if the caller is in no hook. Any context.
///
/// A hook's path reaches no other hook, so the first return address that lies in a trampoline is that of the hook's program. Behind code
/// of the Linux way stands a record of the hooked function itself.
#[inline(never)]
pub(crate) fn hook_trace(skip: usize, into: &mut [u64]) -> usize {
    let fp: usize;
    // SAFETY: reads x29, which is the frame pointer throughout (-Cforce-frame-pointers).
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    let mut seen = None::<usize>;
    walk_frames(super::switch::current(), fp, |address, frame| {
        let (place, address) = match seen {
            Some(place) => (place, address as u64),
            None => match crate::hook::hooked_at(address, frame) {
                Some(Hooked::Function(function)) => (0, function),
                // The next address is that of the probed instruction.
                Some(Hooked::Probe { .. }) => {
                    seen = Some(0);
                    return;
                }
                // The exception's own record, of a breakpoint whose programs run.
                None if super::breakpoint::active() == Some(address as u64) => (0, address as u64),
                None => {
                    // Behind code of the Linux way stands a record of the hooked function itself.
                    if crate::hook::is_linux(address) {
                        seen = Some(0);
                    }
                    return;
                }
            },
        };
        seen = Some(place + 1);
        let to = place
            .checked_sub(skip)
            .and_then(|place: usize| into.get_mut(place));
        if let Some(to) = to {
            *to = address;
        }
    });
    seen.unwrap_or(0).saturating_sub(skip).min(into.len())
}
