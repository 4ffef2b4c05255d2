// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function of one object by a program of another: the two become one program, and what does not fit is named.
mod common;

use bpf_vm::btf::{Btf, Kind};
use bpf_vm::interp::{Interpreter, Region};
use bpf_vm::map::HeapMemory;
use bpf_vm::object::{FreplaceError, LoadedObject, Object, same_types, types};
use bpf_vm::program::UncheckedProgram;
use common::program as compiled;
use std::sync::Arc;

fn load(object: &[u8]) -> LoadedObject {
    let memory = HeapMemory::with_limit(1 << 20);
    Object::parse(object).unwrap().instantiate(&memory).unwrap()
}

fn named<'a>(object: &'a LoadedObject, name: &str) -> &'a UncheckedProgram {
    object.programs.iter().find(|p| p.name == name).unwrap()
}

/// A word of an object's `.bss`.
fn word(object: &LoadedObject, index: usize) -> u64 {
    let bss = |m: &&Arc<bpf_vm::map::Map>| m.definition().name == ".bss";
    let map = object.maps.iter().find(bss).unwrap();
    let mut value = vec![0; map.value_size()];
    map.lookup(&[0; 4], &mut value).unwrap();
    u64::from_ne_bytes(value[8 * index..8 * index + 8].try_into().unwrap())
}

fn run(program: UncheckedProgram, context: &[u64]) {
    let interpreter = Interpreter::new(Arc::new(program.validate().unwrap()));
    let context = Region::constant(context);
    interpreter
        .run(&[context.start()], &[context], 1000)
        .unwrap();
}

#[test]
fn two_objects_become_one_program() {
    let (Some(rules), Some(others)) = (compiled("rules"), compiled("replace_rule")) else {
        return;
    };
    let (own, by) = (load(&rules), load(&others));
    let ruled = named(&own, "ruled");
    run(ruled.clone(), &[20, 3]);
    assert_eq!((word(&own, 0), word(&own, 1)), (1, 21 + 6));
    let with = ruled.with_replaced("rule", named(&by, "tenfold")).unwrap();
    run(with.clone(), &[20, 3]);
    assert_eq!((word(&own, 0), word(&own, 1), word(&by, 0)), (2, 206, 1));
    // What was there stays as it was; what is there can be replaced again.
    run(ruled.clone(), &[20, 3]);
    assert_eq!((word(&own, 1), word(&by, 0)), (27, 1));

    for (function, part) in [
        ("law", "there is none"),
        ("fixed", "static"),
        ("ruled", "the program itself"),
    ] {
        let error = ruled
            .with_replaced(function, named(&by, "tenfold"))
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(part) && text.contains("it calls rule"),
            "{text}"
        );
    }
}

#[test]
fn types_are_compared_over_two_objects() {
    let (Some(rules), Some(others)) = (compiled("rules"), compiled("replace_rule")) else {
        return;
    };
    let (own, by) = (types(&rules).unwrap(), types(&others).unwrap());
    let (own, by) = (Btf::parse(own).unwrap(), Btf::parse(by).unwrap());
    same_types((&own, "rule"), (&by, "tenfold")).unwrap();
    let error = same_types((&own, "rule"), (&by, "narrow")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("`__u64 rule(__u64)`") && text.contains("`int narrow(__u32)`"),
        "{text}"
    );
    let error = same_types((&own, "rule"), (&by, "nothing")).unwrap_err();
    assert!(matches!(error, FreplaceError::Types { by: None, .. }));
    // A pointer is printed as C has it, and is like itself only.
    let prototype = |name| own.prototype(own.find(Kind::FUNC, name).unwrap()).unwrap();
    assert_eq!(prototype("ruled").to_string(), "int ruled(__u64 *)");
    assert!(prototype("ruled").is_like(&prototype("ruled")));
    assert!(!prototype("ruled").is_like(&prototype("rule")));
    assert!(types(b"no object").is_none());
}
