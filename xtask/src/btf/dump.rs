// SPDX-License-Identifier: MIT OR Apache-2.0
//! Types as text, in the form of `bpftool btf dump file FILE format raw`.

use std::fmt::Write;

use super::graph::{Encoding, Graph, Id, Record, Type};

/// A name, or what stands for none.
fn shown(name: &str) -> &str {
    match name {
        "" => "(anon)",
        name => name,
    }
}

fn line(graph: &Graph, id: Id, found: &Type, index: Id) -> String {
    let name = shown(found.name().unwrap_or_default());
    let mut text = format!("[{id}] ");
    // Writing to a string cannot fail.
    let _ = match found {
        Type::Void => write!(text, "CONST '(anon)' type_id=0"),
        Type::Int { size, encoding, .. } => {
            let encoding = match encoding {
                Encoding::Unsigned => "(none)",
                Encoding::Signed => "SIGNED",
                Encoding::Bool => "BOOL",
            };
            write!(
                text,
                "INT '{name}' size={size} bits_offset=0 nr_bits={} encoding={encoding}",
                size * 8
            )
        }
        Type::Float { size, .. } => write!(text, "FLOAT '{name}' size={size}"),
        Type::Pointer(of) => write!(text, "PTR '(anon)' type_id={of}"),
        Type::Array { element, count } => write!(
            text,
            "ARRAY '(anon)' type_id={element} index_type_id={index} nr_elems={count}"
        ),
        Type::Record {
            kind,
            size,
            members,
            ..
        } => {
            let kind = kind.word().to_uppercase();
            let _ = write!(text, "{kind} '{name}' size={size} vlen={}", members.len());
            let fields = members.iter().any(|member| member.width != 0);
            for member in members {
                let (name, of, offset) = (shown(&member.name), member.of, member.offset);
                let _ = write!(text, "\n\t'{name}' type_id={of} bits_offset={offset}");
                if fields && member.width != 0 {
                    let _ = write!(text, " bitfield_size={}", member.width);
                }
            }
            Ok(())
        }
        Type::Forward { kind, .. } => write!(text, "FWD '{name}' fwd_kind={}", kind.word()),
        Type::Enum {
            size,
            signed,
            values,
            ..
        } => {
            let wide = if *size > 4 { "64" } else { "" };
            let encoding = if *signed { "SIGNED" } else { "UNSIGNED" };
            let vlen = values.len();
            let _ = write!(
                text,
                "ENUM{wide} '{name}' encoding={encoding} size={size} vlen={vlen}"
            );
            for (name, value) in values {
                let suffix = match (wide, signed) {
                    ("", _) => "",
                    (_, true) => "LL",
                    (_, false) => "ULL",
                };
                let _ = write!(text, "\n\t'{name}' val={value}{suffix}");
            }
            Ok(())
        }
        Type::Typedef { of, .. } => write!(text, "TYPEDEF '{name}' type_id={of}"),
        Type::Qualified { qualifier, of } => {
            let word = qualifier.word().to_uppercase();
            write!(text, "{word} '(anon)' type_id={of}")
        }
        Type::Prototype {
            result,
            parameters,
            variadic,
        } => {
            let vlen = parameters.len() + usize::from(*variadic);
            let _ = write!(text, "FUNC_PROTO '(anon)' ret_type_id={result} vlen={vlen}");
            let end = variadic.then_some(("", 0));
            let named = parameters.iter().map(|(name, of)| (name.as_str(), *of));
            for (name, of) in named.chain(end) {
                let _ = write!(text, "\n\t'{}' type_id={of}", shown(name));
            }
            Ok(())
        }
        Type::Function { prototype, .. } => {
            write!(text, "FUNC '{name}' type_id={prototype} linkage=global")
        }
        Type::Variable { of, .. } => write!(text, "VAR '{name}' type_id={of}, linkage=global"),
        Type::Section {
            size, variables, ..
        } => {
            let vlen = variables.len();
            let _ = write!(text, "DATASEC '{name}' size={size} vlen={vlen}");
            for (variable, offset, size) in variables {
                let name = graph.get(*variable).name().unwrap_or_default();
                let _ = write!(
                    text,
                    "\n\ttype_id={variable} offset={offset} size={size} (VAR '{name}')"
                );
            }
            Ok(())
        }
    };
    text
}

/// All types, one a line, members on lines of their own.
pub(crate) fn dump(graph: &Graph) -> String {
    let mut graph = graph.clone();
    let index = graph.index_type().unwrap_or(0);
    graph
        .types()
        .map(|(id, found)| line(&graph, id, found, index) + "\n")
        .collect()
}

/// `KIND NAME` counts for a person: how many functions, structs and all types there are.
pub(crate) fn summary(graph: &Graph) -> String {
    let count = |wanted: fn(&Type) -> bool| graph.types().filter(|(_, t)| wanted(t)).count();
    format!(
        "{} types: {} functions, {} variables, {} structs and unions, {} enums",
        graph.types().count(),
        count(|t| matches!(t, Type::Function { .. })),
        count(|t| matches!(t, Type::Variable { .. })),
        count(|t| matches!(
            t,
            Type::Record { .. }
                | Type::Forward {
                    kind: Record::Struct,
                    ..
                }
        )),
        count(|t| matches!(t, Type::Enum { .. })),
    )
}
