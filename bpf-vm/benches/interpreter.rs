// SPDX-License-Identifier: MIT OR Apache-2.0
//! Times of the suite's benchmark programs, by this crate's interpreter and by rbpf's: `NAME/bpf-vm`, `NAME/rbpf`.
//!
//! What rbpf refuses has no time; `cargo xtask bench --suite interpreter` says why, and prints the ratios.
#[cfg(not(target_env = "musl"))]
#[path = "support/mod.rs"]
mod support;

#[cfg(not(target_env = "musl"))]
fn main() {
    use std::time::Duration;

    use bpf_vm::suite::BENCHES;
    use criterion::{Criterion, Throughput};
    use support::{Ours, Theirs};

    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for (name, _) in BENCHES {
        let ours = Ours::new(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let instructions = ours.run().unwrap_or_else(|error| panic!("{error}"));
        let mut group = criterion.benchmark_group(*name);
        group.throughput(Throughput::Elements(instructions));
        group.bench_function("bpf-vm", |bencher| bencher.iter(|| ours.run().is_ok()));
        let theirs = Theirs::new(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let timed = theirs.with(|run| {
            run()?;
            group.bench_function("rbpf", |bencher| bencher.iter(|| run().is_ok()));
            Ok::<_, Box<dyn std::error::Error>>(())
        });
        if let Err(error) = timed.and_then(|inner| inner) {
            println!("{name}/rbpf: {error}");
        }
        group.finish();
    }
    criterion.final_summary();
}

#[cfg(target_env = "musl")]
fn main() {
    eprintln!("no criterion here: it wants a C compiler for this target");
}
