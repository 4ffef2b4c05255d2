// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names that C can say: of `springboard::sched::Task` the last part, where only one type has it, else the whole path.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::{Graph, Id, Type};

/// C's keywords (C11, 6.4.1) and what libbpf's headers make keywords: a member of such a name gets a `_` behind it.
const KEYWORDS: &[&str] = &[
    "_Alignas",
    "_Alignof",
    "_Atomic",
    "_Bool",
    "_Complex",
    "_Generic",
    "_Imaginary",
    "_Noreturn",
    "_Static_assert",
    "_Thread_local",
    "asm",
    "auto",
    "bool",
    "break",
    "case",
    "char",
    "const",
    "continue",
    "default",
    "do",
    "double",
    "else",
    "enum",
    "extern",
    "false",
    "float",
    "for",
    "goto",
    "if",
    "inline",
    "int",
    "long",
    "register",
    "restrict",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "switch",
    "true",
    "typedef",
    "typeof",
    "union",
    "unsigned",
    "void",
    "volatile",
    "while",
];
/// Words for what Rust puts into names and C cannot.
const WORDS: [(char, &str); 4] = [('&', "ref"), ('*', "ptr"), ('[', "array"), ('(', "tuple")];

/// Whether a name is one of Rust's: C has no paths.
fn is_path(name: &str) -> bool {
    name.contains("::")
}

/// The last part of a path, and of every path among its generic arguments.
fn short(path: &str) -> String {
    let mut result = String::new();
    let mut part = 0;
    let mut characters = path.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ':' && characters.next_if_eq(&':').is_some() {
            result.truncate(part);
        } else {
            result.push(character);
            // A closure's part is `{closure#0}`.
            if !character.is_alphanumeric() && !"_{#}".contains(character) {
                part = result.len();
            }
        }
    }
    result
}

/// An identifier of C made of a name of Rust's: every run of other characters is one `_`.
pub(super) fn identifier(name: &str) -> String {
    let mut result = String::new();
    let mut gap = false;
    let mut push = |text: &str, word: bool| {
        if (gap || word) && !result.is_empty() && !result.ends_with('_') {
            result.push('_');
        }
        gap = word;
        result.push_str(text);
    };
    let mut pending = false;
    for character in name.chars() {
        if let Some((_, word)) = WORDS.iter().find(|(sign, _)| *sign == character) {
            push(word, true);
        } else if character.is_ascii_alphanumeric() || character == '_' {
            if pending {
                push("", true);
            }
            let mut buffer = [0; 4];
            push(character.encode_utf8(&mut buffer), false);
            pending = false;
            continue;
        }
        pending = true;
    }
    if result.is_empty() || result.starts_with(|first: char| first.is_ascii_digit()) {
        result.insert(0, '_');
    }
    if KEYWORDS.contains(&result.as_str()) {
        result.push('_');
    }
    result
}

/// Gives every type, member and value a name that C can say; no two structs, unions and enums have the same.
pub(super) fn make_sayable(graph: &mut Graph) {
    // Structs, unions and enums share one name space in C (C11, 6.2.3).
    let mut paths: Vec<(Id, String)> = Vec::new();
    for (id, found) in graph.types() {
        if let Type::Record { name, .. } | Type::Forward { name, .. } | Type::Enum { name, .. } =
            found
            && !name.is_empty()
        {
            paths.push((id, name.clone()));
        }
    }
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    for (_, path) in &paths {
        *users.entry(identifier(&short(path))).or_default() += 1;
    }
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for (id, path) in paths {
        let mut name = identifier(&short(&path));
        if is_path(&path) && users.get(&name).is_some_and(|users| *users > 1) {
            name = identifier(&path);
        }
        let base = name.clone();
        let mut number = 1;
        while !taken.insert(name.clone()) {
            number += 1;
            name = format!("{base}_{number}");
        }
        let mut found = graph.get(id).clone();
        match &mut found {
            Type::Record { name: place, .. } | Type::Forward { name: place, .. } => *place = name,
            Type::Enum {
                name: place,
                values,
                ..
            } => {
                // A value's name is known everywhere in C, not only beside its enum.
                if is_path(&path) {
                    values
                        .iter_mut()
                        .for_each(|(value, _)| *value = format!("{name}_{}", identifier(value)));
                }
                *place = name;
            }
            _ => {}
        }
        graph.set(id, found);
    }
    let ids: Vec<Id> = graph.types().map(|(id, _)| id).collect();
    for id in ids {
        let mut found = graph.get(id).clone();
        match &mut found {
            Type::Record { members, .. } => {
                for member in members.iter_mut().filter(|member| !member.name.is_empty()) {
                    member.name = identifier(&member.name);
                }
            }
            Type::Prototype { parameters, .. } => {
                for (name, _) in parameters.iter_mut().filter(|(name, _)| !name.is_empty()) {
                    *name = identifier(name);
                }
            }
            Type::Typedef { name, .. } => *name = identifier(name),
            _ => continue,
        }
        graph.set(id, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::graph::Record;

    #[test]
    fn names_of_rust_become_names_of_c() {
        for (rust, c) in [
            ("springboard::sched::Task", "Task"),
            (
                "a::Lock<core::option::Option<b::Stack>, 4>",
                "Lock_Option_Stack_4",
            ),
            ("&[u8]", "ref_array_u8"),
            ("(u64, *const x::Y)", "tuple_u64_ptr_const_Y"),
            ("a::{impl#3}::f::{closure_env#0}<b::C>", "closure_env_0_C"),
            ("r#default", "r_default"),
            ("default", "default_"),
            ("__0", "__0"),
            ("7", "_7"),
            ("", "_"),
        ] {
            assert_eq!(identifier(&short(rust)), c, "{rust}");
        }
    }

    #[test]
    fn types_of_the_same_last_part_have_their_whole_path() {
        let mut graph = Graph::default();
        let structs = [
            "a::trap::Frame",
            "a::image::Frame",
            "a::Task",
            "node",
            "b::node",
        ];
        for name in structs {
            graph.add(Type::Forward {
                kind: Record::Struct,
                name: name.into(),
            });
        }
        graph.add(Type::Enum {
            name: "a::Context".into(),
            size: 4,
            signed: false,
            values: vec![("Task".into(), 0)],
        });
        make_sayable(&mut graph);
        let names: Vec<_> = graph
            .types()
            .filter_map(|(_, found)| found.name())
            .collect();
        assert_eq!(
            names,
            [
                "a_trap_Frame",
                "a_image_Frame",
                "Task",
                "node",
                "b_node",
                "Context"
            ]
        );
        assert!(matches!(graph.get(6), Type::Enum { values, .. } if values[0].0 == "Context_Task"));
    }
}
