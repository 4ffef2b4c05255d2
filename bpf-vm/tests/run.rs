// SPDX-License-Identifier: MIT OR Apache-2.0
//! The example `run`, which is what `cargo xtask bpf run` runs: objects of clang by every engine of this machine.
mod common;
#[path = "support/example.rs"]
mod example;

use std::path::Path;

/// The engines' options on this machine.
const ENGINES: &[&[&str]] = if cfg!(target_arch = "aarch64") {
    &[&[], &["--jit"]]
} else {
    &[&[]]
};
/// Arguments of a hooked function: 42 and 7.
const MEMORY: &str = "2a00000000000000 0700000000000000";

fn run(file: &Path, options: &[&str]) -> Result<String, String> {
    let output = example::command("run")
        .arg(file)
        .args(options)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (said, complained) = (text(output.stdout), text(output.stderr));
    match output.status.code() {
        Some(0) if complained.is_empty() => Ok(said),
        Some(1) if said.is_empty() => Err(complained),
        status => panic!("{options:?}: status {status:?}, {said:?}, {complained:?}"),
    }
}

#[test]
fn samples_leave_what_they_should_by_every_engine() {
    for (name, expected) in [
        ("empty", "r0            0x0 (0)\n"),
        ("count", "map           calls[0] = 1\n"),
        ("count_global", "variable      calls: 0 -> 1\n"),
        ("filter", "variable      matched: 0 -> 1\n"),
        (
            "latency",
            "variable      last: 0 -> 1000000000 (0x3b9aca00)\n",
        ),
        ("printk", "printed       cpu 0: workload_call(42, 0x7)\n"),
    ] {
        let Some(object) = common::program(name) else {
            return;
        };
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let file = folder.join(format!("run-{}-{name}.o", std::process::id()));
        std::fs::write(&file, object).unwrap();
        for engine in ENGINES {
            let text = run(&file, &[&["--memory", MEMORY], *engine].concat()).unwrap();
            let memory = "memory        2a 00 00 00 00 00 00 00 07 00 00 00 00 00 00 00\n";
            for part in [expected, memory] {
                assert!(
                    text.contains(part),
                    "{name} {engine:?}: {part:?} is not in\n{text}"
                );
            }
            assert_eq!(text.contains("instructions  "), engine.is_empty(), "{text}");
        }
        if name == "printk" {
            let error = run(&file, &[]).unwrap_err();
            assert!(error.contains("--memory HEX gives r1"), "{error}");
        }
        if cfg!(not(target_arch = "aarch64")) {
            let error = run(&file, &["--memory", MEMORY, "--jit"]).unwrap_err();
            assert!(error.contains("arm64"), "{error}");
        }
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn tail_calls_lead_where_the_object_says() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    let Some(object) = common::compile(&sources.join("tail_call.bpf.c")) else {
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("run-{}-tail_call.o", std::process::id()));
    std::fs::write(&file, object).unwrap();
    for engine in ENGINES {
        let options = ["--memory", MEMORY, "--program", "first"];
        let text = run(&file, &[&options, *engine].concat()).unwrap();
        for part in [
            "r0            0x2b (43)\n",
            "variable      calls: 0 -> 11 (0xb)\n",
        ] {
            assert!(
                text.contains(part),
                "{engine:?}: {part:?} is not in\n{text}"
            );
        }
    }
    let error = run(&file, &["--memory", MEMORY]).unwrap_err();
    assert!(error.contains("2 programs"), "{error}");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn what_is_wrong_is_said() {
    let missing = Path::new("no/such/file.o");
    for (options, expected) in [
        (&[][..], "cannot read no/such/file.o"),
        (&["--fast"], "\"--fast\" is no option"),
        (&["--memory"], "--memory needs a value"),
        (&["--memory", "0x1"], "the memory holds 'x'"),
        (&["second.o"], "there is one file"),
    ] {
        let error = run(missing, options).unwrap_err();
        assert!(error.contains(expected), "{options:?}: {error}");
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let error = run(&manifest, &[]).unwrap_err();
    assert!(error.contains("not a BPF object"), "{error}");
    #[cfg(unix)]
    {
        let error = run(Path::new("/dev/zero"), &[]).unwrap_err();
        assert!(error.contains("more than 67108864 bytes"), "{error}");
    }
}
