// SPDX-License-Identifier: MIT OR Apache-2.0
//! A switch: what it is made of, who owns it, and a function that is led through one from its own body to another.

use trampoline::fakes::FakePlatform;
use trampoline::{
    ArgSpec, Callee, Engine, Guard, Kind, Owner, Platform, Pool, Reason, Site, SiteTable, Switch,
};

const F: u64 = 0xffff_ffff_8000_1000;
const NEW: u64 = 0xffff_ffff_8000_2000;
const POOL: u64 = 0xffff_ffff_8400_0000;
const NOP: u32 = 0xd503_201f;

#[test]
fn leads_both_ways() {
    let platform = FakePlatform::new(POOL..POOL + 0x1000, &[]);
    let pool = Pool::new(platform.clone()).unwrap();
    let free = pool.free_bytes();
    let switch = Switch::new(&pool, F, 2072, F + 8, NEW).unwrap();
    let at = |index: u64| switch.address() + 4 * index;
    let word = |index| platform.read(at(index)).unwrap();
    let target = |index| a64::branch_target(word(index), at(index));
    assert_eq!(
        [target(2), target(3), target(4)],
        [Some(at(4)), Some(NEW), Some(F + 8)]
    );
    let text = [0, 1].map(|index| a64::display_word(word(index), at(index)).to_string());
    assert_eq!(text, ["mrs x9, SP_EL0", "ldr w9, [x9, #2072]"]);
    let found = pool.find(at(1)).unwrap();
    assert_eq!(found.label.owner, Owner::Trampoline { function: F });
    let far = Switch::new(&pool, F, 2072, F + 8, 0x1000);
    assert!(matches!(far, Err(Reason::Code(_))));
    drop(switch);
    assert_eq!(pool.free_bytes(), free);
}

#[test]
fn a_function_is_redirected_by_one_store() {
    let platform = FakePlatform::new(POOL..POOL + 0x2000, &[F]);
    let site = Site {
        address: F,
        notrace: false,
    };
    let mut engine = Engine::new(platform.clone(), SiteTable::new([site]).unwrap()).unwrap();
    let switch = Switch::new(engine.pool(), F, 2072, F + 8, NEW).unwrap();
    let leads_to = |to: u64| {
        let word = platform.read(F).unwrap();
        a64::branch_target(word, F) == Some(to)
    };
    engine.redirect(F, None, Some(switch.address())).unwrap();
    assert!(leads_to(switch.address()));
    let by = switch.address();
    let again = engine.redirect(F, None, Some(NEW)).unwrap_err();
    assert_eq!(again.reason, Reason::Replaced { by });
    assert_eq!(engine.replacement(F), Some(by));
    engine.redirect(F, Some(by), Some(NEW)).unwrap();
    assert!(leads_to(NEW));

    let callee = || Callee {
        address: 0xffff_ffff_8000_8000,
        data: None,
        name: "p".into(),
        stack_bytes: 64,
        original_stack: 0,
        guard: Guard::None,
        state: 0,
        sleepable: false,
        keep: None,
    };
    let args = ArgSpec::new(2, false).unwrap();
    let refused = engine.attach(F, args, Kind::Freplace, callee());
    assert_eq!(refused.unwrap_err().reason, Reason::Replaced { by: NEW });
    engine.replace(F, None).unwrap();
    assert_eq!(platform.read(F), Some(NOP));

    // A program in the function's place keeps everybody else out.
    let id = engine.attach(F, args, Kind::Freplace, callee()).unwrap();
    let by = callee().address;
    for refused in [
        engine.replace(F, Some(NEW)).unwrap_err(),
        engine
            .attach(F, args, Kind::Freplace, callee())
            .unwrap_err(),
    ] {
        assert_eq!(refused.reason, Reason::Replaced { by });
    }
    engine.attach(F, args, Kind::Fexit, callee()).unwrap();
    engine.detach(id).unwrap();
    engine.replace(F, Some(NEW)).unwrap();
}
