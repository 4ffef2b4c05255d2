// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel for objects to be loaded into: the types of another object, a function, variables, settings, pins.
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use bpf_vm::{
    btf::{Btf, Kind},
    helpers::{Argument, Function, Helper, Returns},
    map::Map,
    object::Environment,
    program::KernelVariable,
};

use super::compile;

/// The object of `tests/objects/NAME.bpf.c`.
pub(crate) fn own(name: &str) -> Option<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    compile(&folder.join(format!("{name}.bpf.c")))
}

/// A section of an object.
pub(crate) fn section<'d>(file: &'d [u8], name: &str) -> &'d [u8] {
    use object::{Object as _, ObjectSection as _};
    let elf = object::File::parse(file).unwrap();
    elf.section_by_name(name).unwrap().data().unwrap()
}

/// A kernel that a test makes.
#[derive(Default)]
pub(crate) struct Kernel<'a> {
    pub(crate) btf: Option<Btf<'a>>,
    pub(crate) functions: Vec<&'static Helper>,
    pub(crate) variables: Vec<KernelVariable>,
    pub(crate) settings: BTreeMap<&'static str, &'static str>,
    pub(crate) pins: Mutex<Vec<Arc<Map>>>,
}

impl Environment for Kernel<'_> {
    fn btf(&self) -> Option<&Btf<'_>> {
        self.btf.as_ref()
    }

    fn kfunc(&self, name: &str) -> Option<&'static Helper> {
        self.functions.iter().find(|f| f.name == name).copied()
    }

    fn variable(&self, name: &str) -> Option<KernelVariable> {
        self.variables.iter().find(|v| v.name == name).cloned()
    }

    fn kconfig(&self, name: &str) -> Option<String> {
        self.settings.get(name).map(|&text| text.into())
    }

    fn pinned(&self, name: &str) -> Option<Arc<Map>> {
        let pins = self.pins.lock().unwrap();
        pins.iter().find(|m| m.definition().name == name).cloned()
    }

    fn pin(&self, map: &Arc<Map>) {
        self.pins.lock().unwrap().push(map.clone());
    }
}

/// `bpf_probe_read_kernel` without faults, whoever else has it.
pub(crate) static PROBE: &[Helper] = &[Helper::new(
    113,
    "bpf_probe_read_kernel",
    &[Argument::MemoryOut, Argument::SizeOrZero, Argument::Any],
    Returns::Scalar,
    Function::Plain(probe_read_kernel),
)];

pub(crate) unsafe extern "C" fn probe_read_kernel(
    to: u64,
    bytes: u64,
    from: u64,
    _: u64,
    _: u64,
) -> u64 {
    let [to, from] = [to, from].map(|a| std::ptr::with_exposed_provenance_mut::<u8>(a as usize));
    // SAFETY: the engine checked `to`; `from` is in the test's memory; they do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes as usize) };
    0
}

pub(crate) unsafe extern "C" fn kernel_add(a: u64, b: u64, _: u64, _: u64, _: u64) -> u64 {
    a + b
}

pub(crate) static KERNEL_ADD: Helper = Helper::new(
    0,
    "kernel_add",
    &[Argument::Scalar, Argument::Scalar],
    Returns::Scalar,
    Function::Plain(kernel_add),
);
/// `struct clock` of externs_kernel.bpf.c: padding 1, ticks 2; base 3.
pub(crate) static CLOCK: [AtomicU64; 2] = [AtomicU64::new(2 << 32 | 1), AtomicU64::new(3)];

pub(crate) fn settings() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("LINUX_KERNEL_VERSION", "0x6000c"),
        ("CONFIG_BOOL", "y"),
        ("CONFIG_TRISTATE", "m"),
        ("CONFIG_CHAR", "n"),
        ("CONFIG_LARGE", "18446744073709551615"),
        ("CONFIG_STRING", "\"abcdefghij\""),
    ])
}

/// The kernel that externs.bpf.c needs; its types are of externs_kernel.bpf.c.
pub(crate) fn extern_kernel(file: &[u8]) -> Kernel<'_> {
    let btf = Btf::parse(section(file, ".BTF")).unwrap();
    let variable = btf.find(Kind::VAR, "kernel_clock").unwrap();
    let type_id = btf.referent(variable).unwrap();
    let address = CLOCK.as_ptr().expose_provenance() as u64;
    let variable = |name: &str, type_id| KernelVariable {
        name: name.into(),
        address,
        bytes: 16,
        type_id,
    };
    Kernel {
        functions: vec![&KERNEL_ADD],
        variables: vec![
            variable("kernel_clock", type_id),
            variable("kernel_start", 0),
        ],
        settings: settings(),
        btf: Some(btf),
        ..Kernel::default()
    }
}

/// A kernel that has something for each of the test objects, with the types of core_kernel.bpf.c.
pub(crate) fn kernel_for_all(file: &[u8]) -> Kernel<'_> {
    let variable = |name: &str| KernelVariable {
        name: name.into(),
        address: CLOCK.as_ptr().expose_provenance() as u64,
        bytes: 16,
        type_id: 0,
    };
    Kernel {
        btf: Some(Btf::parse(section(file, ".BTF")).unwrap()),
        functions: vec![&KERNEL_ADD],
        variables: vec![variable("kernel_clock"), variable("kernel_start")],
        settings: settings(),
        ..Kernel::default()
    }
}
