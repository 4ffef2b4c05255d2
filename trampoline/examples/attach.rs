// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches a program to a function of a platform in ordinary memory, and prints its image: the README's example.
use trampoline::fakes::FakePlatform;
use trampoline::{ArgSpec, Callee, Engine, Guard, Kind, Site, SiteTable};

fn main() {
    let (function, program, pool) = (0x8000_1000, 0x8000_8000, 0x8400_0000);
    let platform = FakePlatform::new(pool..pool + 0x1000, &[function]);
    let site = Site {
        address: function,
        notrace: false,
    };
    let sites = SiteTable::new([site]).expect("one site");
    let mut engine = Engine::new(platform.clone(), sites).expect("a pool");
    let callee = Callee {
        address: program,
        data: None,
        name: "program".into(),
        stack_bytes: 64,
        original_stack: 0,
        guard: Guard::None,
        state: 0,
        sleepable: false,
        keep: None,
    };
    let id = engine
        .attach(function, ArgSpec::UNKNOWN, Kind::Fentry, callee)
        .expect("attached");
    for line in engine.describe(function) {
        println!(
            "{:x}: {}",
            line.address,
            a64::display_word(line.word, line.address)
        );
    }
    engine.detach(id).expect("detached");
    platform.end_grace_period();
}
