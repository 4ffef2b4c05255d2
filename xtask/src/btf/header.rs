// SPDX-License-Identifier: MIT OR Apache-2.0
//! springboard.h: the kernel's types as C declares them, for programs that include it and libbpf's headers only.

use std::collections::BTreeSet;
use std::fmt::Write;

use bpf_vm::map::MapKind;

use super::graph::{Graph, Id, Member, Type};

/// The file's name, as programs include it.
pub(crate) const NAME: &str = "springboard.h";
/// What stands before the kernel's types.
const HEAD: &str = include_str!("header_head.h");
/// What stands behind them.
const TAIL: &str = "#pragma clang attribute pop\n\n#endif\n";
/// The line in [`HEAD`] that the kinds of maps replace.
const KINDS: &str = "/* kinds of maps */\n";
/// The section whose variables each core has its own of, as Linux's BTF names it.
const PER_CPU: &str = ".data..percpu";
/// How many pointers, arrays and functions a declaration may go through.
const MOST_NESTED: usize = 64;
/// Integers by the names that `linux/types.h` gives them.
const TYPEDEFS: &[(&str, &str)] = &[
    ("unsigned char", "__u8"),
    ("signed char", "__s8"),
    ("unsigned short", "__u16"),
    ("short", "__s16"),
    ("unsigned int", "__u32"),
    ("int", "__s32"),
    ("unsigned long long", "__u64"),
    ("long long", "__s64"),
];

/// The whole header of a graph.
pub(crate) fn header(graph: &Graph) -> String {
    let mut kinds = String::from("enum bpf_map_type {\n");
    for (number, name) in (0..).map_while(|number| Some((number, MapKind(number).name()?))) {
        line(&mut kinds, 1, &format!("BPF_MAP_TYPE_{name} = {number},"));
    }
    kinds.push_str("};\n");
    let mut writer = Writer {
        graph,
        text: HEAD.replace(KINDS, &kinds),
        written: BTreeSet::new(),
        asked: BTreeSet::new(),
    };
    writer.forwards();
    for (id, found) in graph.types() {
        let named = found.name().is_some_and(|name| !name.is_empty());
        if named
            && matches!(
                found,
                Type::Record { .. } | Type::Enum { .. } | Type::Typedef { .. }
            )
        {
            writer.define(id, true, 0);
        }
    }
    writer.exports();
    writer.text.push_str(TAIL);
    writer.text
}

fn line(text: &mut String, indent: usize, line: &str) {
    text.extend(std::iter::repeat_n('\t', indent));
    text.push_str(line);
    text.push('\n');
}

/// How a struct is laid out where C would not do it by itself.
struct Layout {
    packed: bool,
    align: u64,
}

struct Writer<'g> {
    graph: &'g Graph,
    text: String,
    written: BTreeSet<Id>,
    /// What [`Writer::define`] was asked for.
    asked: BTreeSet<(Id, bool)>,
}

impl Writer<'_> {
    /// Every struct by name, so that pointers may name any of them.
    fn forwards(&mut self) {
        for (_, found) in self.graph.types() {
            if let Type::Record { kind, name, .. } | Type::Forward { kind, name } = found
                && !name.is_empty()
            {
                line(&mut self.text, 0, &format!("{} {name};", kind.word()));
            }
        }
        self.text.push('\n');
    }

    /// Defines a type behind all that it needs; a struct that is only pointed to (`whole` is false) needs no definition.
    fn define(&mut self, id: Id, whole: bool, depth: usize) {
        if depth > MOST_NESTED || !self.asked.insert((id, whole)) {
            return;
        }
        let graph = self.graph;
        let depth = depth + 1;
        match graph.get(id) {
            Type::Record { name, members, .. } if whole => {
                if !self.written.insert(id) {
                    return;
                }
                for member in members {
                    self.define(member.of, true, depth);
                }
                if !name.is_empty() {
                    let body = self.record(id, 0);
                    let size = graph.size(id).unwrap_or(0);
                    let word = format!("{} {name}", self.word(id));
                    let _ = write!(
                        self.text,
                        "{body};\n_Static_assert(sizeof({word}) == {size}, \"{word}\");\n\n"
                    );
                }
            }
            Type::Enum { name, .. } => {
                if self.written.insert(id) && !name.is_empty() {
                    let body = self.enumeration(id, 0);
                    let _ = write!(self.text, "{body};\n\n");
                }
            }
            Type::Typedef { name, of } => {
                self.define(*of, whole, depth);
                if self.written.insert(id) {
                    let text = format!("typedef {};\n", self.declare(*of, name.clone(), 0, 0));
                    self.text.push_str(&text);
                }
            }
            Type::Pointer(of) => self.define(*of, false, depth),
            found => {
                let whole = matches!(found, Type::Array { .. } | Type::Qualified { .. }) && whole;
                for target in found.targets() {
                    self.define(target, whole, depth);
                }
            }
        }
    }

    fn word(&self, id: Id) -> &'static str {
        match self.graph.get(id) {
            Type::Record { kind, .. } | Type::Forward { kind, .. } => kind.word(),
            _ => "enum",
        }
    }

    /// A declaration of `inner` with a type: `int *inner[4]`.
    fn declare(&self, id: Id, inner: String, indent: usize, depth: usize) -> String {
        let spaced = |word: &str| format!("{word} {inner}").trim_end().to_owned();
        if depth > MOST_NESTED {
            return spaced("void *");
        }
        let depth = depth + 1;
        match self.graph.get(id) {
            Type::Int { name, .. } => {
                let typedef = TYPEDEFS.iter().find(|(own, _)| own == name);
                spaced(typedef.map_or(name, |(_, typedef)| typedef))
            }
            Type::Float { name, .. } | Type::Typedef { name, .. } => spaced(name),
            Type::Record { name, .. } if name.is_empty() => spaced(&self.record(id, indent)),
            Type::Enum { name, .. } if name.is_empty() => spaced(&self.enumeration(id, indent)),
            Type::Record { name, .. } | Type::Forward { name, .. } | Type::Enum { name, .. } => {
                spaced(&format!("{} {name}", self.word(id)))
            }
            Type::Pointer(of) => {
                let inner = match self.graph.get(*of) {
                    Type::Array { .. } | Type::Prototype { .. } => format!("(*{inner})"),
                    _ => format!("*{inner}"),
                };
                self.declare(*of, inner, indent, depth)
            }
            Type::Array { element, count } => {
                self.declare(*element, format!("{inner}[{count}]"), indent, depth)
            }
            Type::Qualified { qualifier, of } => {
                let word = qualifier.word();
                match self.graph.get(*of) {
                    Type::Pointer(_) => self.declare(*of, spaced(word), indent, depth),
                    _ => format!("{word} {}", self.declare(*of, inner, indent, depth)),
                }
            }
            Type::Prototype {
                result,
                parameters,
                variadic,
            } => {
                let named = parameters.iter();
                let mut list: Vec<String> = named
                    .map(|(name, of)| self.declare(*of, name.clone(), indent, depth))
                    .collect();
                if *variadic {
                    list.push("...".into());
                }
                if list.is_empty() {
                    list.push("void".into());
                }
                self.declare(
                    *result,
                    format!("{inner}({})", list.join(", ")),
                    indent,
                    depth,
                )
            }
            _ => spaced("void"),
        }
    }

    /// What C aligns a type to, in bytes; a struct without known members is bytes to it.
    fn align(&self, id: Id, depth: usize) -> u64 {
        match self.graph.get(id) {
            _ if depth > MOST_NESTED => 1,
            Type::Array { element: of, .. }
            | Type::Typedef { of, .. }
            | Type::Qualified { of, .. } => self.align(*of, depth + 1),
            Type::Record { .. } => self.layout(id, depth + 1).align,
            _ => self.graph.size(id).unwrap_or(1),
        }
    }

    fn layout(&self, id: Id, depth: usize) -> Layout {
        let Type::Record { members, size, .. } = self.graph.get(id) else {
            return Layout {
                packed: false,
                align: 1,
            };
        };
        let mut layout = Layout {
            packed: false,
            align: 1,
        };
        for member in members {
            let align = self.align(member.of, depth).max(1);
            layout.align = layout.align.max(align);
            layout.packed |=
                member.width == 0 && !u64::from(member.offset / 8).is_multiple_of(align);
        }
        layout.packed |= !u64::from(*size).is_multiple_of(layout.align);
        if layout.packed {
            layout.align = 1;
        }
        layout
    }

    /// A struct's or union's body; bytes that no member has are named, where C would not leave them out by itself.
    fn record(&self, id: Id, indent: usize) -> String {
        let Type::Record {
            kind,
            name,
            size,
            members,
        } = self.graph.get(id)
        else {
            return String::new();
        };
        let layout = self.layout(id, 0);
        let mut text = format!("{} {name}", kind.word()).trim_end().to_owned() + " {\n";
        let mut paddings = 0;
        let mut padding = |text: &mut String, bytes: u64| {
            line(
                text,
                indent + 1,
                &format!("__u8 padding_{paddings}[{bytes}];"),
            );
            paddings += 1;
        };
        if members.is_empty() && *size > 0 {
            line(&mut text, indent + 1, &format!("__u8 opaque[{size}];"));
        }
        let mut end = 0;
        for member in members {
            let start = u64::from(member.offset);
            let align = if layout.packed {
                1
            } else {
                self.align(member.of, 0).max(1)
            };
            let next = |end: u64| end.div_ceil(8).next_multiple_of(align) * 8;
            if member.width == 0 && *kind == super::graph::Record::Struct && next(end) < start {
                padding(&mut text, start / 8 - end.div_ceil(8));
            }
            line(&mut text, indent + 1, &self.member(member, indent + 1));
            let bits = match member.width {
                0 => self.graph.size(member.of).unwrap_or(0) * 8,
                width => width.into(),
            };
            end = end.max(start + bits);
        }
        let bytes = end.div_ceil(8);
        let whole = u64::from(*size);
        if !members.is_empty() && bytes.next_multiple_of(layout.align) < whole {
            padding(&mut text, whole - bytes);
        }
        text.extend(std::iter::repeat_n('\t', indent));
        text.push('}');
        if layout.packed {
            text.push_str(" __attribute__((packed))");
        }
        text
    }

    fn member(&self, member: &Member, indent: usize) -> String {
        let declared = self.declare(member.of, member.name.clone(), indent, 0);
        match member.width {
            0 => format!("{declared};"),
            width => format!("{declared} : {width};"),
        }
    }

    fn enumeration(&self, id: Id, indent: usize) -> String {
        let Type::Enum {
            name,
            size,
            signed,
            values,
            ..
        } = self.graph.get(id)
        else {
            return String::new();
        };
        let mut text = format!("enum {name}").trim_end().to_owned();
        // C's own choice is four bytes; any other size is asked for by the type.
        if let Some((_, bits)) = [(1, 8), (2, 16), (8, 64)]
            .iter()
            .find(|(bytes, _)| bytes == size)
        {
            let sign = if *signed { 's' } else { 'u' };
            let _ = write!(text, " : __{sign}{bits}");
        }
        text.push_str(" {\n");
        for (value, number) in values {
            line(&mut text, indent + 1, &format!("{value} = {number},"));
        }
        text.extend(std::iter::repeat_n('\t', indent));
        text.push('}');
        text
    }

    /// Functions and variables: as comments, since a program in BPF does not call or link to them by these names.
    fn exports(&mut self) {
        let (graph, mut text) = (self.graph, String::new());
        text.push_str("/*\n * Functions to hook, with the arguments that SEC(\"fentry/NAME\") and BPF_PROG give a program:\n *\n");
        for (_, found) in graph.types() {
            if let Type::Function { name, prototype } = found {
                let _ = writeln!(
                    text,
                    " *     {};",
                    self.declare(*prototype, name.clone(), 0, 0)
                );
            }
        }
        text.push_str(" *\n * Variables, for `extern const ... __ksym`:\n *\n");
        let per_cpu = |id| {
            graph.types().any(|(_, found)| match found {
                Type::Section {
                    name, variables, ..
                } => name == PER_CPU && variables.iter().any(|(variable, ..)| *variable == id),
                _ => false,
            })
        };
        for (id, found) in graph.types() {
            if let Type::Variable { name, of } = found {
                let declared = self.declare(*of, name.clone(), 0, 0);
                let note = match per_cpu(id) {
                    true => " (one for each core: bpf_per_cpu_ptr, bpf_this_cpu_ptr)",
                    false => "",
                };
                let _ = writeln!(text, " *     {declared};{note}");
            }
        }
        text.push_str(" */\n");
        self.text.push_str(&text);
    }
}
