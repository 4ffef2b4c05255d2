// SPDX-License-Identifier: MIT OR Apache-2.0
//! The notrace set: everything the hook path reaches by direct branches, from the roots in linker/notrace.roots.
//!
//! A function that runs as part of a hook must not be hooked itself. The file lists roots, one a line: a pattern over
//! demangled names (`*` for any characters), `#`, and the reason. `?` before a pattern: it may match nothing. `!` before it: what
//! it names is not followed, for example the panic entries, which end the run. The helpers of BPF programs are roots without a
//! line. The rest follows from the linked image ([`crate::callgraph`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::callgraph::{self, Graph, Pointers};
use crate::glob::Glob;
use crate::linked::Linked;
use crate::rules::Rules;

/// Where the roots are listed, in the workspace.
pub(crate) const ROOTS: &str = "linker/notrace.roots";

/// What is wrong with the roots.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RootsError {
    /// A root without a reason.
    #[error(
        "{ROOTS}:{line}: {pattern:?} has no reason; write `PATTERN # why it may not be hooked`"
    )]
    NoReason { line: usize, pattern: String },
    /// A pattern that fits no function.
    #[error(
        "{ROOTS}:{line}: no function is called {pattern:?}; `cargo xtask sites --list` prints the names; correct or delete the line, \
         or write ?{pattern} if the function may be inlined everywhere"
    )]
    NoMatch { line: usize, pattern: String },
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    line: usize,
    pattern: String,
    optional: bool,
    /// The walk ends here: no member, and nothing behind it is one for its sake.
    stop: bool,
    reason: String,
}

/// Reads the file.
pub(crate) fn parse_roots(text: &str) -> Result<Vec<Root>, RootsError> {
    let mut roots = Vec::new();
    for (index, text) in text.lines().enumerate() {
        let (pattern, reason) = text.split_once('#').unwrap_or((text, ""));
        let (pattern, reason) = (pattern.trim(), reason.trim());
        let line = index + 1;
        if pattern.is_empty() {
            continue;
        }
        if reason.is_empty() {
            let pattern = pattern.to_owned();
            return Err(RootsError::NoReason { line, pattern });
        }
        let marks = pattern.find(|c| c != '?' && c != '!').unwrap_or(0);
        let (marks, pattern) = pattern.split_at(marks);
        roots.push(Root {
            line,
            pattern: pattern.to_owned(),
            optional: marks.contains('?'),
            stop: marks.contains('!'),
            reason: reason.to_owned(),
        });
    }
    Ok(roots)
}

/// Why a function is in the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// A root, for the reason that the file gives.
    Root(String),
    /// The function of this index branches to it.
    Caller(usize),
}

/// Why helpers are in the set.
const HELPER: &str = "programs call helpers";

/// The notrace set of a kernel, by index into [`Linked::functions`].
#[derive(Debug, Default)]
pub(crate) struct Notrace {
    /// The members and why they are.
    pub(crate) members: BTreeMap<usize, Why>,
    /// Those that the walk began with, each the first function at its address.
    pub(crate) starts: BTreeSet<usize>,
    /// Where the walk ended, each the first function at its address.
    pub(crate) stops: BTreeSet<usize>,
    /// Who calls whom among them.
    pub(crate) graph: Graph,
}

impl Notrace {
    /// Whether function `index` belongs to the set.
    pub(crate) fn contains(&self, index: usize) -> bool {
        self.members.contains_key(&index)
    }

    /// Follows branches from the roots until nothing new turns up.
    pub(crate) fn compute(
        linked: &Linked,
        roots: &[Root],
        rules: &Rules,
    ) -> Result<Self, RootsError> {
        let mut stops = BTreeSet::new();
        let mut starts = BTreeMap::new();
        for root in roots {
            let functions = linked.functions.iter().enumerate();
            let mut matches = functions
                .filter(|(_, f)| Glob::new(&root.pattern).fits(f.name.as_bytes()))
                .map(|(index, _)| linked.same(index).start)
                .peekable();
            if matches.peek().is_none() && !root.optional {
                let (line, pattern) = (root.line, root.pattern.clone());
                return Err(RootsError::NoMatch { line, pattern });
            }
            match root.stop {
                true => stops.extend(matches),
                false => starts.extend(matches.map(|index| (index, root.reason.clone()))),
            }
        }
        for helper in callgraph::helpers(linked, &Pointers::of(linked)) {
            starts.entry(helper).or_insert_with(|| HELPER.to_owned());
        }
        let graph = Graph::reach(linked, rules, starts.keys().copied(), &stops);
        let mut members = BTreeMap::new();
        for (index, node) in &graph.nodes {
            let why = match (starts.get(index), node.from) {
                (None, Some(caller)) => Why::Caller(caller),
                (reason, _) => Why::Root(reason.cloned().unwrap_or_default()),
            };
            // With all others that the linker put at its address.
            members.extend(linked.same(*index).map(|index| (index, why.clone())));
        }
        Ok(Self {
            members,
            starts: starts.into_keys().collect(),
            stops,
            graph,
        })
    }

    /// Branches through a register that no rule resolves: the function and the instruction's address.
    pub(crate) fn not_followed(&self) -> impl Iterator<Item = (usize, u64)> {
        self.graph
            .nodes
            .iter()
            .flat_map(|(index, node)| node.unresolved.iter().map(|at| (*index, *at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linked::NOP;
    use crate::linked::tests::made_up;

    use crate::callgraph::tests::{BLR_X8, BR_X9, RET, b, bl};

    fn compute(linked: &Linked, roots: &str) -> Result<Notrace, RootsError> {
        let roots = parse_roots(roots).expect("roots");
        Notrace::compute(linked, &roots, &Rules::default())
    }

    #[test]
    fn the_set_is_what_direct_branches_reach() {
        let linked = made_up(&[
            ("hook::enter", &[NOP, NOP, bl(4), b(4), RET]), // 0..5: calls 6, jumps to 7
            ("x::unrelated", &[RET]),                       // 5
            ("hook::helper", &[RET]),                       // 6
            ("tail::target", &[0x5400_0041, RET, BLR_X8]),  // 7..10: b.ne to 15
            ("data", &[0; 4]),                              // 10..14
            ("through::pointer", &[RET]),                   // 14
            ("condition", &[RET, BR_X9]),                   // 15
        ]);
        // b.ne +8 words from word 7.
        let mut linked = linked;
        linked.bytes[7 * 4..8 * 4].copy_from_slice(&(0x5400_0001_u32 | 8 << 5).to_le_bytes());
        let roots = "# comment\nhook::ent* # it is the hook\n\n?gone # inlined\n";
        let set = compute(&linked, roots).expect("set");
        let members: Vec<_> = set.members.keys().copied().collect();
        assert_eq!(members, [0, 2, 3, 6]);
        assert_eq!(set.members[&0], Why::Root("it is the hook".into()));
        assert_eq!(set.members[&6], Why::Caller(3));
        assert_eq!(
            set.not_followed().collect::<Vec<_>>(),
            [(3, linked.base + 9 * 4), (6, linked.base + 16 * 4)]
        );
    }

    #[test]
    fn helpers_are_roots_without_a_line() {
        let linked = made_up(&[
            ("bpf_vm::helpers::map::push", &[bl(4), RET]),
            ("bpf_vm::helpers::not_in_the_table", &[RET, RET]),
            ("pushed", &[RET]),
        ]);
        let linked = callgraph::tests::with_data(linked, &[Ok(87), Err(0)]);
        let set = compute(&linked, "").expect("set");
        assert_eq!(set.members.keys().copied().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(set.members[&0], Why::Root(HELPER.into()));
    }

    #[test]
    fn the_walk_ends_where_it_is_told_to() {
        let linked = made_up(&[
            ("hook", &[bl(2), RET]),  // 0..2: calls 2
            ("panic", &[bl(2), RET]), // 2..4: calls 4
            ("report", &[RET]),       // 4
        ]);
        let members = |roots| {
            let set = compute(&linked, roots).expect("set");
            set.members.keys().copied().collect::<Vec<_>>()
        };
        assert_eq!(members("hook # it"), [0, 1, 2]);
        assert_eq!(members("hook # it\n!panic # ends the run"), [0]);
        assert_eq!(members("hook # it\n!?gone # not linked"), [0, 1, 2]);
    }

    #[test]
    fn bad_roots_name_their_line() {
        let error = parse_roots("a # fine\nb\n").expect_err("no reason");
        assert!(error.to_string().contains("notrace.roots:2"), "{error}");
        let linked = made_up(&[("a", &[RET])]);
        let error = compute(&linked, "\nnobody* # gone").expect_err("no match");
        assert_eq!(
            error,
            RootsError::NoMatch {
                line: 2,
                pattern: "nobody*".into()
            }
        );
    }
}
