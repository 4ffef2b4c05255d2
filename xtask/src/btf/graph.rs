// SPDX-License-Identifier: MIT OR Apache-2.0
//! Types as BTF has them (`linux/btf.h`), a graph of them, and making one of those that are the same.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A type's place in a [`Graph`], or what stands for it while graphs are compared. 0 is `void`.
pub(crate) type Id = usize;

/// The id of `void`.
pub(crate) const VOID: Id = 0;
/// The name of the integer that arrays are indexed by, as compilers call it.
const INDEX_NAME: &str = "__ARRAY_SIZE_TYPE__";

/// What an integer's bits mean (`BTF_INT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum Encoding {
    /// No bit set.
    Unsigned = 0,
    /// `BTF_INT_SIGNED`.
    Signed = 1,
    /// `BTF_INT_BOOL`.
    Bool = 4,
}

/// A qualifier (`const`, `volatile`, `restrict`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Qualifier {
    /// `volatile`.
    Volatile,
    /// `const`.
    Const,
    /// `restrict`.
    Restrict,
}

impl Qualifier {
    /// The word in C.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Const => "const",
            Self::Restrict => "restrict",
        }
    }
}

/// `struct` or `union`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Record {
    /// Members side by side.
    Struct,
    /// Members in one place.
    Union,
}

impl Record {
    /// The word in C.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Struct => "struct",
            Self::Union => "union",
        }
    }
}

/// A member of a struct or union.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Member {
    /// Its name; empty for an anonymous struct or union.
    pub(crate) name: String,
    /// Its type.
    pub(crate) of: Id,
    /// Where it starts, in bits from the start of the struct.
    pub(crate) offset: u32,
    /// How many bits a bit-field has; 0 for other members.
    pub(crate) width: u8,
}

/// A named value of an enum: its bits, sign extended if the enum is signed.
pub(crate) type Enumerator = (String, i128);

/// A type. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    /// Nothing: what a function without a result returns.
    Void,
    /// An integer.
    Int {
        name: String,
        size: u32,
        encoding: Encoding,
    },
    /// A floating-point number.
    Float { name: String, size: u32 },
    /// A pointer.
    Pointer(Id),
    /// An array and its number of elements.
    Array { element: Id, count: u32 },
    /// A struct or union. One without members has a size and nothing else that a program may know.
    Record {
        kind: Record,
        name: String,
        size: u32,
        members: Vec<Member>,
    },
    /// A struct or union of which only the name is known.
    Forward { kind: Record, name: String },
    /// An enum of C's kind.
    Enum {
        name: String,
        size: u32,
        signed: bool,
        values: Vec<Enumerator>,
    },
    /// Another name for a type.
    Typedef { name: String, of: Id },
    /// A type with a qualifier.
    Qualified { qualifier: Qualifier, of: Id },
    /// What a function takes, with names, and gives.
    Prototype {
        result: Id,
        parameters: Vec<(String, Id)>,
        variadic: bool,
    },
    /// A function and its prototype.
    Function { name: String, prototype: Id },
    /// A variable.
    Variable { name: String, of: Id },
    /// A section and what lies in it: variable, offset and size in bytes.
    Section {
        name: String,
        size: u32,
        variables: Vec<(Id, u32, u32)>,
    },
}

impl Type {
    /// Calls `f` for every type that this one names, in the order that BTF lists them.
    pub(crate) fn for_each(&mut self, mut f: impl FnMut(&mut Id)) {
        match self {
            Self::Void
            | Self::Int { .. }
            | Self::Float { .. }
            | Self::Forward { .. }
            | Self::Enum { .. } => {}
            Self::Pointer(of)
            | Self::Array { element: of, .. }
            | Self::Typedef { of, .. }
            | Self::Qualified { of, .. }
            | Self::Function { prototype: of, .. }
            | Self::Variable { of, .. } => f(of),
            Self::Record { members, .. } => members.iter_mut().for_each(|m| f(&mut m.of)),
            Self::Prototype {
                result, parameters, ..
            } => {
                f(result);
                parameters.iter_mut().for_each(|(_, of)| f(of));
            }
            Self::Section { variables, .. } => variables.iter_mut().for_each(|(id, ..)| f(id)),
        }
    }

    /// This type with every type that it names replaced.
    pub(crate) fn map(&self, mut to: impl FnMut(Id) -> Id) -> Self {
        let mut mapped = self.clone();
        mapped.for_each(|id| *id = to(*id));
        mapped
    }

    /// The types that this one names.
    pub(crate) fn targets(&self) -> Vec<Id> {
        let mut targets = Vec::new();
        self.clone().for_each(|id| targets.push(*id));
        targets
    }

    /// Its name; `None` for kinds that have none, empty for a type without one.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Int { name, .. }
            | Self::Float { name, .. }
            | Self::Record { name, .. }
            | Self::Forward { name, .. }
            | Self::Enum { name, .. }
            | Self::Typedef { name, .. }
            | Self::Function { name, .. }
            | Self::Variable { name, .. }
            | Self::Section { name, .. } => Some(name),
            _ => None,
        }
    }
}

/// Types by id; [`VOID`] is always there. An id that does not exist is `void`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Graph {
    types: Vec<Type>,
}

impl Default for Graph {
    fn default() -> Self {
        Self {
            types: vec![Type::Void],
        }
    }
}

impl Graph {
    /// The type of an id.
    pub(crate) fn get(&self, id: Id) -> &Type {
        self.types.get(id).unwrap_or(&Type::Void)
    }

    /// All types but `void`, by id.
    pub(crate) fn types(&self) -> impl Iterator<Item = (Id, &Type)> {
        self.types.iter().enumerate().skip(1)
    }

    /// Adds a type; its id.
    pub(crate) fn add(&mut self, new: Type) -> Id {
        self.types.push(new);
        self.types.len() - 1
    }

    /// Puts a type where `id` was made ahead of it, so that it can be named while it is read.
    pub(crate) fn set(&mut self, id: Id, new: Type) {
        if let Some(place) = self.types.get_mut(id) {
            *place = new;
        }
    }

    /// Bytes of a value; `None` for a type that has none.
    pub(crate) fn size(&self, id: Id) -> Option<u64> {
        // No chain of names is longer than the graph; a circle of arrays and typedefs ends here.
        let (mut id, mut count) = (id, 1_u64);
        for _ in 0..self.types.len() {
            let size = match self.get(id) {
                Type::Int { size, .. }
                | Type::Float { size, .. }
                | Type::Record { size, .. }
                | Type::Enum { size, .. }
                | Type::Section { size, .. } => u64::from(*size),
                Type::Pointer(_) => 8,
                Type::Array {
                    element,
                    count: elements,
                } => {
                    count = count.checked_mul(u64::from(*elements))?;
                    id = *element;
                    continue;
                }
                Type::Typedef { of, .. } | Type::Qualified { of, .. } => {
                    id = *of;
                    continue;
                }
                _ => return None,
            };
            return count.checked_mul(size);
        }
        None
    }

    /// What `roots` reach, each type once, numbered in the order in which they are reached, and the roots' new ids.
    ///
    /// Two types are the same if they have the same kind, name, size and members and if what they name is the same, by the
    /// coarsest partition that fits (so that types which name each other are compared too). A forward declaration is the
    /// struct of that name if there is exactly one.
    pub(crate) fn condensed(&self, roots: &[Id]) -> (Self, Vec<Id>) {
        let types = self.without_forwards();
        let mut classes = vec![0; types.len()];
        let mut count = 0;
        loop {
            let mut known: HashMap<Type, Id> = HashMap::new();
            let next: Vec<Id> = types
                .iter()
                .map(|found| {
                    let shape = found.map(|id| classes.get(id).copied().unwrap_or(VOID));
                    let fresh = known.len();
                    *known.entry(shape).or_insert(fresh)
                })
                .collect();
            classes = next;
            // Each round only splits classes; when none was split, all rounds to come are the same.
            if known.len() == count {
                break;
            }
            count = known.len();
        }
        let mut result = Self::default();
        let mut ids: BTreeMap<Id, Id> = BTreeMap::new();
        let class_of = |id: Id| classes.get(id).copied().unwrap_or(VOID);
        ids.insert(class_of(VOID), VOID);
        // Depth first, without recursion: what comes from outside decides how deep it goes.
        let mut pending: Vec<Id> = roots.iter().rev().copied().collect();
        let mut chosen = Vec::new();
        while let Some(id) = pending.pop() {
            if ids.contains_key(&class_of(id)) {
                continue;
            }
            let found = types.get(id).cloned().unwrap_or(Type::Void);
            pending.extend(found.targets().into_iter().rev());
            ids.insert(class_of(id), result.add(found.clone()));
            chosen.push(found);
        }
        let renumbered = |id| ids.get(&class_of(id)).copied().unwrap_or(VOID);
        for (index, found) in chosen.iter().enumerate() {
            result.set(index + 1, found.map(renumbered));
        }
        (result, roots.iter().copied().map(renumbered).collect())
    }

    /// The types, every reference to a forward declaration replaced by the one struct of its name.
    fn without_forwards(&self) -> Vec<Type> {
        let mut known: BTreeMap<(Record, &str), Vec<Id>> = BTreeMap::new();
        for (id, found) in self.types() {
            if let Type::Record { kind, name, .. } = found
                && !name.is_empty()
            {
                known.entry((*kind, name)).or_default().push(id);
            }
        }
        let resolve = |id: Id| match self.get(id) {
            Type::Forward { kind, name } => match known.get(&(*kind, name)).map(Vec::as_slice) {
                Some([first, rest @ ..])
                    if rest.iter().all(|other| {
                        let without_ids = |id| self.get(id).map(|_| VOID);
                        without_ids(*other) == without_ids(*first)
                    }) =>
                {
                    *first
                }
                _ => id,
            },
            _ => id,
        };
        self.types.iter().map(|found| found.map(resolve)).collect()
    }

    /// Adds the integer that arrays are indexed by, if there is an array; its id.
    pub(crate) fn index_type(&mut self) -> Option<Id> {
        let is_index = |found: &Type| found.name() == Some(INDEX_NAME);
        if let Some(found) = self.types.iter().position(is_index) {
            return Some(found);
        }
        let array = self.types.iter().any(|t| matches!(t, Type::Array { .. }));
        array.then(|| {
            self.add(Type::Int {
                name: INDEX_NAME.into(),
                size: 4,
                encoding: Encoding::Unsigned,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(graph: &mut Graph, name: &str) -> Id {
        graph.add(Type::Int {
            name: name.into(),
            size: 4,
            encoding: Encoding::Unsigned,
        })
    }

    /// A list's node: `struct node { next: *node, value: named }`.
    fn node(graph: &mut Graph, value: &str) -> Id {
        let id = graph.add(Type::Void);
        let next = graph.add(Type::Pointer(id));
        let value = int(graph, value);
        let member = |name: &str, of, offset| Member {
            name: name.into(),
            of,
            offset,
            width: 0,
        };
        graph.set(
            id,
            Type::Record {
                kind: Record::Struct,
                name: "node".into(),
                size: 16,
                members: vec![member("next", next, 0), member("value", value, 64)],
            },
        );
        id
    }

    #[test]
    fn types_that_name_themselves_become_one() {
        let mut graph = Graph::default();
        let (first, second) = (node(&mut graph, "int"), node(&mut graph, "int"));
        let other = node(&mut graph, "long");
        let (condensed, ids) = graph.condensed(&[first, second, other]);
        assert_eq!(ids[0], ids[1]);
        assert_ne!(ids[0], ids[2], "the same but for a member's type");
        assert_eq!(condensed.types().count(), 6);
        let (again, same) = condensed.condensed(&ids);
        assert_eq!((again, same), (condensed, ids));
    }

    #[test]
    fn forward_declarations_become_the_struct() {
        let mut graph = Graph::default();
        let forward = |graph: &mut Graph, name: &str| {
            let forward = graph.add(Type::Forward {
                kind: Record::Struct,
                name: name.into(),
            });
            graph.add(Type::Pointer(forward))
        };
        let known = forward(&mut graph, "node");
        let unknown = forward(&mut graph, "nowhere");
        let full = node(&mut graph, "int");
        let (condensed, ids) = graph.condensed(&[known, unknown, full]);
        assert_eq!(condensed.get(ids[0]), &Type::Pointer(ids[2]));
        assert_eq!(condensed.get(ids[1]).targets().len(), 1);
        let left = condensed
            .types()
            .filter(|(_, t)| matches!(t, Type::Forward { .. }));
        assert_eq!(left.count(), 1);
    }

    #[test]
    fn sizes_of_circles_end() {
        let mut graph = Graph::default();
        let id = graph.add(Type::Void);
        let array = graph.add(Type::Array {
            element: id,
            count: 2,
        });
        graph.set(
            id,
            Type::Typedef {
                name: "t".into(),
                of: array,
            },
        );
        assert_eq!(graph.size(id), None);
        let node = node(&mut graph, "int");
        let nodes = graph.add(Type::Array {
            element: node,
            count: 3,
        });
        assert_eq!(graph.size(nodes), Some(48));
    }
}
