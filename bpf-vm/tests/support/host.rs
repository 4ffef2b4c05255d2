// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host whose memory is the test's own: what is not there is not read, as in a kernel.
use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use bpf_vm::host::{Host, Symbol};

/// Cores, each with a copy of the per-CPU variable.
pub(crate) const CPUS: u32 = 4;

/// The copies of a per-CPU variable, which is named by the first; the fourth core has none.
pub(crate) static PER_CPU: [AtomicU64; CPUS as usize] = [
    AtomicU64::new(100),
    AtomicU64::new(101),
    AtomicU64::new(102),
    AtomicU64::new(103),
];

thread_local! {
    static BEGAN: Instant = Instant::now();
    /// The two ends of a pipe.
    static PIPE: [i32; 2] = {
        let mut ends = [0; 2];
        // SAFETY: room for two numbers.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0, "a pipe");
        ends
    };
}

struct TestHost;

impl Host for TestHost {
    fn ktime_ns(&self) -> u64 {
        BEGAN.with(|began| began.elapsed().as_nanos() as u64)
    }

    fn cpu(&self) -> u32 {
        0
    }

    fn cpus(&self) -> u32 {
        CPUS
    }

    fn current_pid_tgid(&self) -> u64 {
        7 << 32 | 8
    }

    fn current_task(&self) -> u64 {
        0x7a5c
    }

    fn current_comm(&self) -> [u8; 16] {
        *b"a longer comm x\0"
    }

    // The system reads for us, and says so where there is nothing.
    fn probe_read(&self, into: &mut [u8], from: u64) -> usize {
        let [out, input] = PIPE.with(|pipe| *pipe);
        // SAFETY: the system checks the address; what it reads goes into the pipe, which is empty and has room.
        let written = unsafe { libc::write(input, from as usize as *const _, into.len()) };
        let Ok(written) = usize::try_from(written) else {
            return 0;
        };
        // SAFETY: the slice is writable, and no more was written than it holds.
        let read = unsafe { libc::read(out, into.as_mut_ptr().cast(), written) };
        usize::try_from(read).unwrap_or(0)
    }

    fn per_cpu(&self, variable: u64, cpu: u32) -> Option<u64> {
        let copies = PER_CPU.get(..CPUS as usize - 1)?;
        let address = |copy: &AtomicU64| core::ptr::from_ref(copy).expose_provenance() as u64;
        if variable != address(copies.first()?) {
            return None;
        }
        copies.get(cpu as usize).map(address)
    }

    fn stack_trace(&self, context: u64, skip: usize, into: &mut [u64]) -> usize {
        let stack = [context, 1, 2, 3];
        let rest = stack.get(skip..).unwrap_or_default();
        for (to, from) in into.iter_mut().zip(rest) {
            *to = *from;
        }
        rest.len().min(into.len())
    }

    fn symbol(&self, address: u64) -> Option<Symbol<'_>> {
        let _ = address;
        None
    }

    fn print(&self, text: fmt::Arguments<'_>) {
        struct Length(u64);
        impl fmt::Write for Length {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0 += text.len() as u64;
                Ok(())
            }
        }
        let mut length = Length(0);
        fmt::write(&mut length, text).unwrap();
        PRINTED.fetch_add(length.0, Relaxed);
    }
}

/// Bytes that programs printed.
pub(crate) static PRINTED: AtomicU64 = AtomicU64::new(0);

/// Makes it the host; once or again.
pub(crate) fn register() {
    let _ = bpf_vm::host::register(&TestHost);
}
