// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a program as compiled code, where the machine is arm64.
//!
//! Nothing checks what compiled code does, so whoever calls this has run the same program by the interpreter, with the
//! same memory at the same address. What remains (a program that goes by addresses, which are not all the same) ends
//! in a signal, and so does a run that takes too long: each is a message and exit status 1.
use bpf_vm::{jit::Target, program::ValidatedProgram};
#[cfg(target_arch = "aarch64")]
use {
    super::support::native::Pages,
    bpf_vm::{
        attachment::Attachment,
        jit::{self, Code, Features},
    },
};

/// Changes the target that a program is compiled for.
pub(crate) type Adjust = fn(Target<'static>) -> Target<'static>;

/// Why there is no compiled code.
#[cfg(not(target_arch = "aarch64"))]
const NOT_HERE: &str = "--jit makes code for arm64, which this program is not built for; build it by `--target \
    aarch64-unknown-linux-musl` and run it by qemu-aarch64";

/// Compiles a program and runs it with `arguments` in r1 and r2; its r0.
///
/// # Errors
/// The program cannot be compiled, or this is no arm64 machine.
pub(crate) fn run(
    program: &ValidatedProgram,
    arguments: [u64; 2],
    adjust: Adjust,
) -> Result<u64, String> {
    #[cfg(not(target_arch = "aarch64"))]
    {
        let _ = (program, arguments, adjust);
        Err(NOT_HERE.into())
    }
    #[cfg(target_arch = "aarch64")]
    {
        let (pages, _) = load(program, adjust)?;
        guard::arm();
        // SAFETY: the caller has run it by the interpreter, which checked each access; what differs ends in the guard.
        let r0 = unsafe { pages.run(&Attachment::NONE, arguments) };
        guard::disarm();
        Ok(r0)
    }
}

/// Compiles a program to stay until this process ends; the address by which a tail call enters it.
///
/// # Errors
/// As [`run`].
pub(crate) fn tail_entry(program: &ValidatedProgram, adjust: Adjust) -> Result<u64, String> {
    #[cfg(not(target_arch = "aarch64"))]
    {
        let _ = (program, adjust);
        Err(NOT_HERE.into())
    }
    #[cfg(target_arch = "aarch64")]
    {
        let (pages, code) = load(program, adjust)?;
        let entry = pages.address() + u64::from(code.tail_entry);
        // Whoever holds the address may call it as long as the process lives.
        std::mem::forget(pages);
        Ok(entry)
    }
}

/// A program's code in pages of its own.
#[cfg(target_arch = "aarch64")]
fn load(program: &ValidatedProgram, adjust: Adjust) -> Result<(Pages, Code), String> {
    /// More bytes of code than an instruction is compiled to.
    const MOST: usize = 256;
    /// Room for what belongs to no instruction.
    const ROOM: usize = 1 << 16;

    let pages = Pages::new(ROOM + MOST * program.instructions().len());
    let target = Target {
        features: Features {
            lse: std::arch::is_aarch64_feature_detected!("lse"),
        },
        arguments: 2,
        ..Target::new(pages.address())
    };
    let code = jit::compile(program, &adjust(target));
    let code = code.map_err(|error| format!("program `{}`: {error}", program.name()))?;
    pages.load(&code);
    Ok((pages, code))
}

/// What sees to it that a wrong run ends, and says so.
#[cfg(target_arch = "aarch64")]
mod guard {
    /// Seconds that compiled code may take.
    const LIMIT: u32 = 30;
    /// Signals that end a run, and what they mean.
    const SIGNALS: [(libc::c_int, &[u8]); 6] = [
        (
            libc::SIGSEGV,
            b"compiled code accessed memory that is not the program's\n",
        ),
        (
            libc::SIGBUS,
            b"compiled code accessed memory that is not there or not aligned\n",
        ),
        (
            libc::SIGILL,
            b"compiled code ran into something that is no instruction\n",
        ),
        (libc::SIGTRAP, b"compiled code ran into a break point\n"),
        (
            libc::SIGFPE,
            b"compiled code raised an arithmetic exception\n",
        ),
        (
            libc::SIGALRM,
            b"compiled code did not end within 30 seconds\n",
        ),
    ];

    extern "C" fn report(signal: libc::c_int) {
        let row = SIGNALS.iter().find(|(number, _)| *number == signal);
        let text = row.map_or(&b"compiled code was ended\n"[..], |(_, text)| text);
        // SAFETY: the bytes are static; write is allowed in a signal handler (POSIX, async-signal-safe functions).
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
        // SAFETY: _exit is allowed in a signal handler and does not return.
        unsafe { libc::_exit(1) };
    }

    /// From now on signals end this process with a message, and so does the end of its time.
    pub(super) fn arm() {
        for (signal, _) in SIGNALS {
            // SAFETY: all zeros is a value of this plain C struct: no flags, an empty mask.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = report as *const () as usize;
            // On the stack for signals that std has set up for this thread, in case the other one is used up.
            action.sa_flags = libc::SA_ONSTACK;
            // SAFETY: the handler only does what signal handlers may.
            unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
        }
        // SAFETY: it takes a number of seconds.
        unsafe { libc::alarm(LIMIT) };
    }

    /// The run has ended.
    pub(super) fn disarm() {
        // SAFETY: 0 takes the alarm back.
        unsafe { libc::alarm(0) };
    }
}
