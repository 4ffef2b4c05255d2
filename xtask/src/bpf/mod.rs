// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bpf`: what an object file holds, and what its programs do, without a kernel.

mod info;
#[path = "../../../bpf-vm/examples/run/memory.rs"]
mod memory;
#[path = "../../../bpf-vm/examples/run/session.rs"]
mod session;
mod text;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use bpf_vm::object::Object;
use clap::{Args, Subcommand};

use crate::Outcome;
use crate::setup;
use crate::workspace::{USER_TARGET, Workspace};

/// The example of bpf-vm that runs compiled code.
const EXAMPLE: &str = "run";
/// What runs it where the machine is not arm64.
const EMULATOR: &str = "qemu-aarch64";

/// The highest address that code is compiled for: 4 GiB before the end.
const HIGHEST: u64 = !0xffff_ffff;

/// Why nothing came of an object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BpfError {
    /// It is no object that loads.
    #[error("{}: {error}", file.display())]
    Object {
        file: PathBuf,
        error: bpf_vm::object::ObjectError,
    },
    /// It loads, and then something is wrong.
    #[error("{}: {error}", file.display())]
    Program { file: PathBuf, error: String },
    /// The memory is no hex.
    #[error("{0}")]
    Memory(String),
    /// The example does not build.
    #[error("bpf-vm's example `{EXAMPLE}` does not build; the messages above say why")]
    Build,
    /// qemu-aarch64 does not start.
    #[error("cannot start {0}: {1}; `cargo xtask setup` installs it")]
    Start(String, io::Error),
}

/// The object, and which of its programs.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Object file of `clang -target bpf -g -O2`
    file: PathBuf,
    /// Only the program of this name or section
    #[arg(long, value_name = "NAME")]
    program: Option<String>,
    /// The kernel's types, for objects that ask for them by CO-RE: a file that `cargo xtask btf --raw` writes
    #[arg(long, value_name = "FILE")]
    btf: Option<PathBuf>,
    /// A setting of the kernel's configuration, for objects that ask for it by `__kconfig`, as a .config file has it: y, a
    /// number, "text" with its quotes; may be given more than once, and LINUX_KERNEL_VERSION is 6.12 without
    #[arg(long, value_name = "NAME=VALUE", value_parser = session::setting)]
    kconfig: Vec<session::Setting>,
}

/// What to do with an object file.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Run a program by the interpreter and print what it left
    Run {
        #[command(flatten)]
        selection: Selection,
        /// Bytes that r1 points to, as hex digits; r2 is their number, and both are 0 without
        #[arg(long, value_name = "HEX")]
        memory: Option<String>,
        /// Also run it as compiled code, under qemu-aarch64, and fail if that leaves something else
        #[arg(long)]
        jit: bool,
    },
    /// Print the instructions, with what they call and refer to
    Disasm {
        #[command(flatten)]
        selection: Selection,
    },
    /// Print the arm64 code, each instruction before what it is compiled to
    ///
    /// Addresses of helpers are the same in every listing; those of maps are this run's.
    Jit {
        #[command(flatten)]
        selection: Selection,
        /// Compile for a core with FEAT_LSE: atomics in one instruction
        #[arg(long)]
        lse: bool,
        /// Address to compile for, in hex
        #[arg(long, value_name = "ADDRESS", value_parser = address, default_value = "0x100000")]
        base: u64,
    },
    /// Print programs, maps, variables, licence
    Info {
        #[command(flatten)]
        selection: Selection,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// A hexadecimal address of an instruction.
fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let address = u64::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
    if !address.is_multiple_of(4) {
        return Err("an instruction's address is a multiple of 4".into());
    }
    match address <= HIGHEST {
        true => Ok(address),
        false => Err(format!(
            "the highest is {HIGHEST:#x}, so that the code ends before addresses do"
        )),
    }
}

/// An object file, read.
struct File {
    path: PathBuf,
    object: Object,
    /// The kernel's BTF section, if it was given.
    types: Option<Vec<u8>>,
    /// The kernel's settings that were given.
    settings: Vec<session::Setting>,
}

impl File {
    fn read(selection: &Selection) -> Outcome<Self> {
        let path = &selection.file;
        let object = Object::parse(&session::read(path)?).map_err(|error| BpfError::Object {
            file: path.clone(),
            error,
        })?;
        Ok(Self {
            path: path.clone(),
            object,
            types: selection.btf.as_deref().map(session::read).transpose()?,
            settings: selection.kconfig.clone(),
        })
    }

    /// What the object finds of a kernel.
    fn kernel(&self) -> Result<session::Kernel<'_>, BpfError> {
        session::Kernel::new(self.types.as_deref(), &self.settings)
            .map_err(|error| self.error(error))
    }

    fn error(&self, error: String) -> BpfError {
        BpfError::Program {
            file: self.path.clone(),
            error,
        }
    }

    /// The program of that name or section, all of them without one, by index.
    fn programs(&self, wanted: Option<&str>) -> Result<Vec<usize>, BpfError> {
        match wanted {
            Some(wanted) => session::choose(&self.object, Some(wanted))
                .map(|index| vec![index])
                .map_err(|error| self.error(error)),
            None => Ok((0..self.object.programs().len()).collect()),
        }
    }
}

/// Prints a text; whoever reads it may stop before its end.
fn show(text: &str) -> Outcome<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Carries out an action; the exit status of this program.
pub(crate) fn act(workspace: &Workspace, action: Action) -> Outcome<i32> {
    match action {
        Action::Run {
            selection,
            memory,
            jit,
        } => {
            // As elsewhere, `-` stands for nothing.
            let memory = memory.filter(|memory| memory != "-").unwrap_or_default();
            let bytes = memory::hex("memory", &memory).map_err(BpfError::Memory)?;
            let file = File::read(&selection)?;
            let index = session::choose(&file.object, selection.program.as_deref());
            let index = index.map_err(|error| file.error(error))?;
            if jit {
                return run_compiled(workspace, &selection, &memory);
            }
            let report = session::run(&file.object, &file.kernel()?, index, &bytes, None);
            show(&report.map_err(|error| file.error(error))?.to_string())?;
        }
        Action::Disasm { selection } => {
            let file = File::read(&selection)?;
            show(&text::disassembly(&file, selection.program.as_deref())?)?;
        }
        Action::Jit {
            selection,
            lse,
            base,
        } => {
            let file = File::read(&selection)?;
            show(&text::code(&file, selection.program.as_deref(), lse, base)?)?;
        }
        Action::Info { selection, json } => {
            let file = File::read(&selection)?;
            let info = info::Info::of(&file, selection.program.as_deref())?;
            show(&match json {
                true => format!("{:#}\n", info.json()),
                false => info.to_string(),
            })?;
        }
    }
    Ok(0)
}

/// Builds the example that runs compiled code, and runs it with the same words; its status.
fn run_compiled(workspace: &Workspace, selection: &Selection, memory: &str) -> Outcome<i32> {
    setup::ensure(workspace)?;
    let built = workspace
        .cargo()
        .args(["build", "--quiet", "--package", "bpf-vm"])
        .args(["--example", EXAMPLE, "--target", USER_TARGET])
        .stdin(Stdio::null())
        .status()?;
    if !built.success() {
        return Err(BpfError::Build.into());
    }
    let example = workspace.target.join(USER_TARGET).join("debug/examples");
    let example = example.join(EXAMPLE);
    let native = cfg!(all(target_arch = "aarch64", target_os = "linux"));
    let mut command = match native {
        true => Command::new(&example),
        false => Command::new(EMULATOR),
    };
    if !native {
        command.arg(&example);
    }
    command
        .arg(&selection.file)
        .args(["--jit", "--memory", memory]);
    if let Some(program) = &selection.program {
        command.args(["--program", program]);
    }
    if let Some(types) = &selection.btf {
        command.arg("--btf").arg(types);
    }
    for setting in &selection.kconfig {
        let text = format!("{}={}", setting.name, setting.value);
        command.args(["--kconfig", &text]);
    }
    let status = command.stdin(Stdio::null()).status();
    let status = status.map_err(|error| BpfError::Start(EMULATOR.into(), error))?;
    // By a signal: no status of its own.
    Ok(status.code().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use object::{Object as _, ObjectSection as _};

    use super::*;
    use crate::programs;

    /// Two programs, one of them with a function of its own, that use a map, variables and helpers.
    const SOURCE: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";
const volatile __u32 step = 3;
__u64 total;
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

static __attribute__((noinline)) __u64 twice(__u64 x)
{
	return x * 2 + step;
}

SEC("fentry.s/f")
int first(__u64 *ctx)
{
	__u32 key = 7;
	__u64 value = twice(ctx[0]);

	total += value;
	ctx[1] = value;
	bpf_map_update_elem(&seen, &key, &value, BPF_ANY);
	bpf_ringbuf_output(&events, &key, sizeof(key), 0);
	bpf_printk("value %lu", value);
	return 5;
}

SEC("kprobe")
int second(void *ctx)
{
	return bpf_get_smp_processor_id();
}
"#;

    /// Reads a field of the kernel by its name.
    const READER: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";
extern void of_the_kernel(void) __weak __ksym;
struct thing {
	__u32 wanted;
} __attribute__((preserve_access_index));

SEC("fentry/f")
int read_it(struct thing *ctx)
{
	if (of_the_kernel)
		return -1;
	return ctx->wanted;
}
"#;

    /// A kernel in which that field lies elsewhere.
    const KERNEL: &str = r#"
struct thing {
	unsigned long before;
	unsigned int wanted;
} thing;
"#;

    /// The object of a source, with the BTF of another one's; `None`, said aloud, without clang.
    fn object_of(name: &str, source: &str, kernel: Option<&str>) -> Option<File> {
        let Some(clang) = crate::setup::clang() else {
            eprintln!("skipped: no clang here compiles for BPF");
            return None;
        };
        let name = format!("springboard-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        let compile = |name: &str, text: &str| {
            let (source, out) = (folder.join(name), folder.join(name).with_extension("o"));
            std::fs::write(&source, text).expect("source");
            let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../programs/include");
            let options = programs::options(&[&include], &source, &out);
            let output = Command::new(&clang).args(options).output().expect("clang");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            out
        };
        let types = kernel.map(|kernel| {
            let bytes = std::fs::read(compile("kernel.c", kernel)).expect("object");
            let elf = object::File::parse(&*bytes).expect("ELF");
            let section = elf.section_by_name(".BTF").expect("types");
            let types = folder.join("kernel.btf");
            std::fs::write(&types, section.data().expect("types")).expect("types");
            types
        });
        let selection = Selection {
            file: compile("test.c", source),
            program: None,
            btf: types,
            kconfig: Vec::new(),
        };
        let file = File::read(&selection).expect("object");
        std::fs::remove_dir_all(folder).expect("folder");
        Some(file)
    }

    fn object(name: &str) -> Option<File> {
        object_of(name, SOURCE, None)
    }

    #[test]
    fn types_are_those_of_the_kernel_that_is_named() {
        let Some(file) = object_of("types", READER, Some(KERNEL)) else {
            return;
        };
        let kernel = file.kernel().expect("kernel");
        let memory = [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0];
        let report = session::run(&file.object, &kernel, 0, &memory, None).expect("run");
        contains(&report.to_string(), &["r0            0x9 (9)\n"]);
        let info = info::Info::of(&file, None).expect("info");
        contains(
            &info.to_string(),
            &[
                "kernel    of_the_kernel: a function, if it has it\n",
                "kernel    1 instructions depend on its types (CO-RE)\n",
            ],
        );
        assert_eq!(info.json()["core_relocations"], 1);
        let alone = File {
            types: None,
            ..file
        };
        let info = info::Info::of(&alone, None).expect("info");
        contains(&info.to_string(), &["          does not load here: "]);
        let nothing = session::Kernel::new(None, &[]).expect("no kernel");
        let error = session::run(&alone.object, &nothing, 0, &memory, None).expect_err("no types");
        contains(&error, &["struct thing::wanted", "--btf FILE"]);
        assert!(session::Kernel::new(Some(b"no BTF"), &[]).is_err());
    }

    /// Returns two settings of the kernel's configuration.
    const SETTINGS: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";
extern int LINUX_KERNEL_VERSION __kconfig;
extern int CONFIG_HZ __kconfig;

SEC("?kprobe/f")
int settings(void *ctx)
{
	return LINUX_KERNEL_VERSION + CONFIG_HZ;
}
"#;

    #[test]
    fn settings_are_those_that_are_given() {
        let Some(mut file) = object_of("settings", SETTINGS, None) else {
            return;
        };
        let run = |file: &File| {
            let kernel = file.kernel().expect("kernel");
            session::run(&file.object, &kernel, 0, &[], None).map(|report| report.to_string())
        };
        let error = run(&file).expect_err("no setting");
        contains(&error, &["CONFIG_HZ", "--kconfig CONFIG_HZ=VALUE"]);
        let given = |text: &str| session::setting(text).expect("a setting");
        file.settings = vec![given("CONFIG_HZ=0x1"), given("CONFIG_HZ=5")];
        contains(
            &run(&file).expect("run"),
            &["r0            0x60c05 (396293)\n"],
        );
        file.settings.push(given("LINUX_KERNEL_VERSION=7"));
        contains(&run(&file).expect("run"), &["r0            0xc (12)\n"]);
        let error = session::setting("CONFIG_HZ").expect_err("no value");
        contains(&error, &["\"CONFIG_HZ\"", "NAME=VALUE"]);
        let info = info::Info::of(&file, None).expect("info");
        contains(
            &info.to_string(),
            &["(?kprobe/f)\n          attaches: kprobe of f\n"],
        );
    }

    #[track_caller]
    fn contains(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn info_names_what_there_is() {
        let Some(file) = object("info") else {
            return;
        };
        let info = info::Info::of(&file, None).expect("info");
        contains(
            &info.to_string(),
            &[
                "licence   GPL\n",
                "program   first (fentry.s/f)\n          attaches: fentry of f, sleepable\n",
                "2 functions\n",
                "words of A64",
                "bpf_map_update_elem (2)\n",
                "bpf_trace_printk (6, GPL only)\n",
                "program   second (kprobe)\n          attaches: kprobe, of what the loader says\n",
                "map       seen: BPF_MAP_TYPE_HASH (1)\n          key 4 bytes, value 8 bytes, 4 entries, flags 0x0\n",
                "variable  total: 8 bytes at .bss+0x0\n",
                "variable  step: 4 bytes at .rodata+0x",
            ],
        );
        let json = info.json();
        let pointer = |path: &str| json.pointer(path).cloned().unwrap_or_default();
        assert_eq!(pointer("/programs/0/name"), "first");
        assert_eq!(pointer("/programs/1/calls/0/number"), 8);
        assert_eq!(pointer("/programs/0/functions"), 2);
        let one = info::Info::of(&file, Some("kprobe")).expect("info");
        assert_eq!(one.json()["programs"].as_array().map(Vec::len), Some(1));
        let error = info::Info::of(&file, Some("third"))
            .err()
            .expect("no third");
        contains(
            &error.to_string(),
            &["test.o: ", "\"third\"", "    second  (kprobe)"],
        );
    }

    #[test]
    fn instructions_come_with_what_they_name() {
        let Some(file) = object("text") else {
            return;
        };
        let text = text::disassembly(&file, None).expect("text");
        contains(
            &text,
            &[
                "first (fentry.s/f):\n    0      0  ",
                "; function at ",
                "\n  function at ",
                " = map[",
                "; seen\n",
                "; .rodata+",
                "; bpf_map_update_elem\n",
                "85 00 00 00 08 00 00 00  call 8 ",
                "95 00 00 00 00 00 00 00  exit\n",
                "\n\nsecond (kprobe):\n",
            ],
        );
        let second = text::disassembly(&file, Some("second")).expect("text");
        assert!(text.ends_with(&second) && !second.contains("first"));
        let code = text::code(&file, Some("second"), false, 0x4000).expect("code");
        contains(
            &code,
            &[
                "; bpf_get_smp_processor_id\n",
                "    4000: ",
                "bl 0x1004080\n",
                "ret\n",
                " words, which use ",
            ],
        );
        let all = text::code(&file, None, true, HIGHEST).expect("code");
        contains(
            &all,
            &["first (fentry.s/f):\n; prologue\nffffffff00000000: "],
        );
    }

    #[test]
    fn a_run_says_what_it_left() {
        let Some(file) = object("run") else {
            return;
        };
        let error = session::choose(&file.object, None).expect_err("two programs");
        contains(
            &error,
            &["2 programs", "--program:\n    first  (fentry.s/f)\n"],
        );
        let index = session::choose(&file.object, Some("fentry.s/f")).expect("first");
        let report = session::run(
            &file.object,
            &file.kernel().expect("kernel"),
            index,
            &[1; 16],
            None,
        )
        .expect("run");
        contains(
            &report.to_string(),
            &[
                // 0x0101010101010101 * 2 + 3.
                "r0            0x5 (5)\ninstructions  ",
                "printed       value 144680345676153349\n",
                "variable      total: 0 -> 144680345676153349 (0x202020202020205)\n",
                "map           seen[7] = 144680345676153349",
                "record        events: 07 00 00 00\n",
                "memory        01 01 01 01 01 01 01 01 05 02 02 02 02 02 02 02\n",
            ],
        );
        let error = session::run(
            &file.object,
            &file.kernel().expect("kernel"),
            index,
            &[],
            None,
        )
        .expect_err("no memory");
        contains(
            &error,
            &["program `first`: instruction ", "--memory HEX gives r1"],
        );
    }

    #[test]
    fn addresses_are_those_of_instructions() {
        assert_eq!(address("0x100000"), Ok(0x10_0000));
        assert_eq!(address("4"), Ok(4));
        for wrong in [
            "2",
            "x",
            "",
            "ffffffffffffff00",
            "-4",
            "0x10000000000000000",
        ] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
