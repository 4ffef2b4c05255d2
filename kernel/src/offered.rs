// SPDX-License-Identifier: MIT OR Apache-2.0
//! What BPF programs may refer to by name: kernel functions and variables (`__ksym`), configuration (`__kconfig`), pins.

use crate::arch::{callee, cpu, probe, switch, timer};
use crate::mm::layout::{PAGE, SLOW};
use crate::mm::stack;
use crate::sched::Mutex;
use crate::workload::workload_call;
use crate::{symbols, torture};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bpf_vm::btf::{Btf, BtfError, Kind};
use bpf_vm::helpers::{Argument, Function, Helper, Returns};
use bpf_vm::map::Map;
use bpf_vm::object::{Environment, LINUX_VERSION};
use bpf_vm::program::{KernelVariable, ValidatedProgram};

/// What does not change while the kernel runs, for programs that ask by CO-RE.
#[repr(C)]
pub(crate) struct KernelInfo {
    /// The most cores that it runs on.
    pub cores: u32,
    /// Bytes of a page.
    pub page: u32,
    /// Ticks of the scheduler in a second, on each core.
    pub hertz: u64,
    /// Where slow memory begins, for `bpf_copy_from_user`.
    pub slow: u64,
}

/// The variable that programs name.
#[expect(
    unsafe_code,
    reason = "programs in C name it, and its type is in the BTF under that name"
)]
#[unsafe(no_mangle)]
pub(crate) static springboard_info: KernelInfo = KernelInfo {
    cores: cpu::MAX_CPUS as u32,
    page: PAGE as u32,
    hertz: timer::HZ,
    slow: SLOW as u64,
};

/// The number of the task that runs.
#[expect(
    unsafe_code,
    reason = "programs in C name it, and its type is in the BTF under that name"
)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn springboard_task_id() -> u64 {
    switch::current().id()
}

/// The most bytes that [`springboard_checksum`] takes, so that a hit's time has a bound.
pub(crate) const CHECKSUM_BYTES: u64 = 4096;

/// The Internet checksum (RFC 1071) of the `size` bytes at `bytes`, read as big endian words, on top of `sum`: what this function
/// said of what comes before them, an even number of bytes, or the checksum of a pseudo-header; 0 if nothing does. It is the sum, not
/// its complement. -7 (`E2BIG`) if they are more than [`CHECKSUM_BYTES`], -14 (`EFAULT`) if they cannot be read.
#[expect(
    unsafe_code,
    reason = "programs in C name it, and its type is in the BTF under that name"
)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn springboard_checksum(bytes: *const u8, size: u64, sum: u64) -> i64 {
    if size > CHECKSUM_BYTES {
        return E2BIG;
    }
    let from = bytes.addr() as u64;
    let (mut sum, mut done) = (sum & 0xffff, 0);
    let mut piece = [0; 64];
    while done < size {
        let part = piece.get_mut(..(size - done).min(64) as usize);
        let part = part.unwrap_or_default();
        if probe::read(part, from.wrapping_add(done)) != part.len() {
            return EFAULT;
        }
        done += part.len() as u64;
        for pair in part.chunks(2) {
            let word = [
                pair.first().copied().unwrap_or(0),
                pair.get(1).copied().unwrap_or(0),
            ];
            sum += u64::from(u16::from_be_bytes(word));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as i64
}

/// A program of the torture run was hit at `place`, its cookie, by `who`, the first argument of the function that it hooks;
/// `u64::MAX`: by whoever runs here; `replaced` is not 0 if a function says so that takes the place of one of the program. Whether that
/// counts: without a torture run nothing does.
#[expect(
    unsafe_code,
    reason = "programs in C name it, and its type is in the BTF under that name"
)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn springboard_torture_hit(place: u64, who: u64, replaced: u64) -> u64 {
    torture::program_hit(place, who, replaced != 0).into()
}

/// Calls `workload_call(a, b)`, which can be hooked: what becomes of a program whose helper calls what it hooks. Everything else that
/// programs call reaches no function that can be hooked (`cargo xtask audit`; this is the one exception in linker/audit.rules). So
/// whoever calls it has a guard, or is not attached (bpf/attach.rs), and what a hit takes of the stack from here on is not part of any
/// sum: -12 (`ENOMEM`), and no call, unless all is there that the first hit found ([`stack::is_whole`]).
#[expect(
    unsafe_code,
    reason = "programs in C name it, and its type is in the BTF under that name"
)]
#[unsafe(no_mangle)]
#[inline(never)] // linker/audit.rules names it
pub(crate) extern "C" fn springboard_workload_call(a: u64, b: u64) -> i64 {
    match stack::is_whole() {
        true => workload_call(a, b).cast_signed(),
        false => ENOMEM,
    }
}

/// As engines call it.
extern "C" fn call_workload_call(a: u64, b: u64, _: u64, _: u64, _: u64) -> u64 {
    springboard_workload_call(a, b).cast_unsigned()
}

/// As engines call it.
extern "C" fn call_torture_hit(place: u64, who: u64, replaced: u64, _: u64, _: u64) -> u64 {
    springboard_torture_hit(place, who, replaced)
}

/// As engines call it.
extern "C" fn call_checksum(bytes: u64, size: u64, sum: u64, _: u64, _: u64) -> u64 {
    let bytes = core::ptr::with_exposed_provenance(bytes as usize);
    springboard_checksum(bytes, size, sum).cast_unsigned()
}

/// As engines call it.
extern "C" fn call_task_id(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    springboard_task_id()
}

/// Kernel functions that declare themselves callable (kfuncs).
static FUNCTIONS: &[Helper] = &[
    Helper::new(
        0,
        "springboard_task_id",
        &[],
        Returns::Scalar,
        Function::Plain(call_task_id),
    ),
    Helper::new(
        0,
        "springboard_checksum",
        &[Argument::Memory, Argument::Size, Argument::Scalar],
        Returns::Scalar,
        Function::Plain(call_checksum),
    ),
    Helper::new(
        0,
        "springboard_torture_hit",
        &[Argument::Scalar, Argument::Scalar, Argument::Scalar],
        Returns::Scalar,
        Function::Plain(call_torture_hit),
    ),
    Helper::new(
        0,
        WORKLOAD_CALL,
        &[Argument::Scalar, Argument::Scalar],
        Returns::Scalar,
        Function::Plain(call_workload_call),
    ),
    Helper::new(
        0,
        SESSION_IS_RETURN,
        &[Argument::Context],
        Returns::Scalar,
        Function::Plain(callee::session_is_return),
    ),
    Helper::new(
        0,
        SESSION_COOKIE,
        &[Argument::Context],
        Returns::Word,
        Function::Plain(callee::session_cookie),
    ),
    Helper::new(
        0,
        CALL_ORIGINAL,
        &[Argument::Context],
        Returns::Scalar,
        Function::Attached(callee::call_original),
    ),
];

/// Linux's `E2BIG`, `ENOMEM` and `EFAULT`, as a program sees them.
const E2BIG: i64 = -7;
pub(crate) const ENOMEM: i64 = -12;
const EFAULT: i64 = -14;

const SESSION_IS_RETURN: &str = "bpf_session_is_return";
const SESSION_COOKIE: &str = "bpf_session_cookie";
const CALL_ORIGINAL: &str = "springboard_call_original";
const WORKLOAD_CALL: &str = "springboard_workload_call";

/// Whether a program calls what calls a function that can be hooked.
pub(crate) fn reaches_a_site(program: &ValidatedProgram) -> bool {
    let mut names = program.kfuncs().iter().map(|kfunc| kfunc.name);
    names.any(|name| name == WORKLOAD_CALL)
}

/// Whether a program calls what only one of kind freplace may.
pub(crate) fn asks_for_original(program: &ValidatedProgram) -> bool {
    program
        .kfuncs()
        .iter()
        .any(|kfunc| kfunc.name == CALL_ORIGINAL)
}

/// The stack of what programs call to call the function that they stand in for, without that function's own, in bytes.
pub(crate) fn original_stack() -> u32 {
    // What is not known is more than any attach allows.
    symbols::stack_of(callee::call_original as *const () as usize as u64)
        .unwrap_or(stack::HIT_LIMIT as u32)
}

/// Whether a program calls what only one of kind fsession may.
pub(crate) fn asks_for_session(program: &ValidatedProgram) -> bool {
    let mut names = program.kfuncs().iter().map(|kfunc| kfunc.name);
    names.any(|name| [SESSION_IS_RETURN, SESSION_COOKIE].contains(&name))
}

/// All kernel functions that programs may call.
pub(crate) fn functions() -> &'static [Helper] {
    FUNCTIONS
}

/// Maps that objects share by name.
static PINS: Mutex<Vec<Arc<Map>>> = Mutex::empty();

/// Once, before any object is loaded.
pub(crate) fn init() {
    PINS.put(Box::new(Vec::new()));
}

/// This kernel, for objects that are loaded.
pub(crate) struct Offered {
    btf: Option<Btf<'static>>,
}

impl Offered {
    /// Reads the image's types.
    ///
    /// # Errors
    /// They are damaged.
    pub(crate) fn new() -> Result<Self, BtfError> {
        Ok(Self {
            btf: symbols::btf().map(Btf::parse).transpose()?,
        })
    }
}

impl Environment for Offered {
    fn btf(&self) -> Option<&Btf<'_>> {
        self.btf.as_ref()
    }

    fn kfunc(&self, name: &str) -> Option<&'static Helper> {
        FUNCTIONS.iter().find(|function| function.name == name)
    }

    fn variable(&self, name: &str) -> Option<KernelVariable> {
        let (address, bytes) = match name {
            "springboard_info" => (
                core::ptr::from_ref(&springboard_info).expose_provenance(),
                size_of::<KernelInfo>(),
            ),
            // Of each core, by `bpf_per_cpu_ptr`.
            "springboard_cpu" => (
                core::ptr::from_ref(&cpu::springboard_cpu).expose_provenance(),
                size_of::<cpu::PerCpu>(),
            ),
            _ => return None,
        };
        let type_id = self.btf.as_ref().and_then(|btf| {
            let variable = btf.find(Kind::VAR, name)?;
            btf.referent(variable)
        });
        Some(KernelVariable {
            name: name.into(),
            address: address as u64,
            bytes: bytes as u64,
            type_id: type_id.unwrap_or(0),
        })
    }

    fn kconfig(&self, name: &str) -> Option<String> {
        Some(match name {
            "LINUX_KERNEL_VERSION" => format!("{LINUX_VERSION}"),
            "CONFIG_ARM64" | "CONFIG_64BIT" | "CONFIG_SMP" | "CONFIG_PREEMPT" => "y".into(),
            "CONFIG_HZ" => format!("{}", timer::HZ),
            "CONFIG_NR_CPUS" => format!("{}", cpu::MAX_CPUS),
            _ => return None,
        })
    }

    fn pinned(&self, name: &str) -> Option<Arc<Map>> {
        let pins = PINS.lock();
        let found = pins.iter().find(|map| map.definition().name == name);
        found.cloned()
    }

    fn pin(&self, map: &Arc<Map>) {
        PINS.lock().push(map.clone());
    }
}
