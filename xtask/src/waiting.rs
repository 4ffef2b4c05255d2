// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of the audit about images that wait on a stack for their functions: how many stand on one another at most.
//!
//! A trampoline calls only functions whose arguments are known, and its frame stays on the stack until the function returns. So where one
//! of these functions reaches another, two frames may stand on one another; the kernel sets aside room for a chain of `CHAIN` in each
//! context (kernel/src/targets.rs, kernel/src/mm/stack.rs). The first functions of a stack or of a context are refused such images, and
//! are not looked at; nobody may call them. What stands in another's place adds to that one's chain what it calls: so those that call one of
//! them are listed there (`CALLERS`), and refused. Where branches through a register lead, the rules of linker/audit.rules say.

use std::collections::{BTreeMap, BTreeSet};

use crate::audit::{Breach, Verdict, unresolved, walk};
use crate::callgraph::Graph;
use crate::linked::Linked;
use crate::notrace::Notrace;
use crate::rules::{Kind, Rules};
use crate::targets;

/// Functions that a trampoline may call, by index.
pub(crate) struct Called {
    /// Those that a hook may have an image on which waits.
    pub(crate) waits: BTreeSet<usize>,
    /// Those that are refused one, since everything stands on them.
    first: BTreeSet<usize>,
}

impl Called {
    /// Those of `sites` whose types are known: `typed` says that by name.
    pub(crate) fn of(linked: &Linked, sites: &[usize], typed: impl Fn(&str) -> bool) -> Self {
        let is = |index: usize, what: &dyn Fn(&str) -> bool| linked.names(index).any(what);
        let typed = sites.iter().filter(|index| is(**index, &typed));
        let (first, waits) = typed
            .map(|index| linked.same(*index).start)
            .partition(|index| is(*index, &targets::is_first));
        Self { waits, first }
    }
}

/// The rules without what is allowed to a hook: that is followed here.
pub(crate) fn followed(rules: &Rules) -> Rules {
    let followed = rules.0.iter();
    let followed = followed.filter(|rule| !matches!(rule.kind, Kind::Allow(..)));
    Rules(followed.cloned().collect())
}

/// The functions that each of these reaches, of these.
type Reached = BTreeMap<usize, BTreeSet<usize>>;

/// Checks that no more than `most` of the functions stand on one another.
pub(crate) fn check(
    linked: &Linked,
    set: &Notrace,
    rules: &Rules,
    called: &Called,
    most: usize,
    calls_another: impl Fn(&str) -> bool,
) -> Verdict {
    let starts = called.waits.iter().copied();
    let graph = Graph::reach(linked, &followed(rules), starts.clone(), &set.stops);
    let mut faults = BTreeMap::new();
    for (index, node) in &graph.nodes {
        let mut of = unresolved(linked, *index, node);
        if called.first.contains(index) {
            let text = "is one of the first functions of a stack or of a context (FIRST in kernel/src/targets.rs), and is called: take it out";
            of.push((text.to_owned(), true));
        }
        faults.insert(*index, of);
    }
    let mut breaches = Vec::new();
    let mut reached = Reached::new();
    for start in starts {
        breaches.extend(walk(linked, &graph, &faults, start).1);
        let found = behind(&graph, start);
        let found: BTreeSet<_> = found.intersection(&called.waits).copied().collect();
        if let Some(other) = found.first()
            && !linked.names(start).any(&calls_another)
        {
            breaches.push(Breach {
                what: "calls another function that trampolines call, and could stand in a third one's place: name it in CALLERS in \
                       kernel/src/targets.rs"
                    .to_owned(),
                chain: [start, *other].map(|index| linked.name(index).to_owned()).into(),
            });
        }
        reached.insert(start, found);
    }
    let mut longest = Vec::new();
    let itself = reached.iter().find(|(start, found)| found.contains(*start));
    match itself {
        Some((start, _)) => breaches.push(Breach {
            what: "calls itself, by way of others perhaps: images that wait for it stand on one another without a bound".to_owned(),
            chain: vec![linked.name(*start).to_owned()],
        }),
        None => {
            let mut known = BTreeMap::new();
            for start in reached.keys() {
                let chain = chain(&reached, &mut known, *start);
                if chain.len() > longest.len() {
                    longest = chain;
                }
            }
        }
    }
    let names = longest.iter().map(|index| linked.name(*index).to_owned());
    let names: Vec<_> = names.collect();
    if names.len() > most {
        breaches.push(Breach {
            what: format!(
                "{} functions that trampolines call stand on one another, and {most} are counted on (CHAIN in kernel/src/targets.rs): \
                 raise it, or do not export one of them",
                names.len()
            ),
            chain: names.clone(),
        });
    }
    Verdict {
        name: format!(
            "{} functions that trampolines call, {} at most on one another",
            called.waits.len(),
            names.len()
        ),
        address: 0,
        functions: graph.nodes.len(),
        stack: None,
        deepest: names,
        breaches,
    }
}

/// Everything that a function reaches; itself only if it is called from there.
fn behind(graph: &Graph, start: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut queue = vec![start];
    while let Some(index) = queue.pop() {
        for edge in graph.nodes.get(&index).iter().flat_map(|node| &node.edges) {
            if found.insert(edge.to) {
                queue.push(edge.to);
            }
        }
    }
    found
}

/// The longest row of functions from `start`, each of which reaches the next. None reaches itself.
fn chain(reached: &Reached, known: &mut BTreeMap<usize, Vec<usize>>, start: usize) -> Vec<usize> {
    if let Some(chain) = known.get(&start) {
        return chain.clone();
    }
    let below = reached.get(&start).into_iter().flatten();
    let longest = below
        .map(|next| chain(reached, known, *next))
        .max_by_key(Vec::len);
    let mut row = vec![start];
    row.extend(longest.unwrap_or_default());
    known.insert(start, row.clone());
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linked::tests::made_up;
    use crate::notrace::parse_roots;

    const RET: u32 = 0xd65f_03c0;
    const BLR_X8: u32 = 0xd63f_0100;

    fn bl(words: i32) -> u32 {
        0x9400_0000 | (words as u32 & 0x3ff_ffff)
    }

    /// What is said of the functions of these that are called `f_*`, if two may stand on one another.
    fn broken(functions: &[(&str, &[u32])], rules: &str) -> (Vec<String>, Vec<(String, String)>) {
        let linked = made_up(functions);
        let rules = Rules::parse(rules).expect("rules");
        let roots = parse_roots("root* # it\n!panic # ends the run").expect("roots");
        let set = Notrace::compute(&linked, &roots, &rules).expect("set");
        let sites: Vec<_> = (0..linked.functions.len()).collect();
        let typed = |name: &str| name.starts_with("f_") || targets::is_first(name);
        let called = Called::of(&linked, &sites, typed);
        let verdict = check(&linked, &set, &rules, &called, 2, |name| name != "f_silent");
        let breaches = verdict.breaches.into_iter();
        let breaches = breaches.map(|breach| (breach.what, breach.chain.join(" -> ")));
        (verdict.deepest, breaches.collect())
    }

    #[test]
    fn what_waits_stands_on_one_another_only_so_often() {
        let functions: &[(&str, &[u32])] = &[
            ("root", &[RET]),
            ("panic", &[RET]),
            ("f_a", &[bl(2), RET]),     // 2..4: calls 4
            ("other", &[bl(2), RET]),   // 4..6: calls 6
            ("f_b", &[RET, RET]),       // 6..8
            ("task_main", &[bl(-6)]),   // 8: calls f_a, and is not counted
            ("f_c", &[bl(1)]),          // 9: calls 10
            ("f_d", &[bl(-4), bl(-7)]), // 10: calls f_b, and other
        ];
        let two = functions.get(..6).unwrap();
        assert_eq!(broken(two, ""), (vec!["f_a".into(), "f_b".into()], vec![]));
        let (chain, found) = broken(functions, "");
        assert_eq!(chain, ["f_c", "f_d", "f_b"]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0]
                .0
                .starts_with("3 functions that trampolines call stand on one another, and 2 ")
        );
        assert_eq!(found[0].1, "f_c -> f_d -> f_b");
    }

    #[test]
    fn what_is_not_known_and_what_has_no_end_breaks_it() {
        let start: &[(&str, &[u32])] = &[("root", &[RET]), ("panic", &[RET])];
        let with =
            |functions: &[(&str, &[u32])], rules| broken(&[start, functions].concat(), rules).1;
        let found = with(&[("f_a", &[bl(2), RET]), ("other", &[BLR_X8, RET])], "");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0.contains("register at +0x0"), "{found:?}");
        assert_eq!(found[0].1, "f_a -> other");
        // What is allowed to a hook is followed here.
        let allowed: &[(&str, &[u32])] = &[("f_a", &[bl(1)]), ("f_b", &[bl(1)]), ("f_c", &[RET])];
        assert_eq!(with(allowed, "allow f_b => f_c # a hook may").len(), 1);
        let found = with(&[("f_silent", &[bl(1)]), ("f_b", &[RET])], "");
        assert!(
            found[0].0.starts_with("calls another function"),
            "{found:?}"
        );
        assert_eq!((found.len(), found[0].1.as_str()), (1, "f_silent -> f_b"));
        let found = with(&[("f_a", &[bl(1)]), ("other", &[bl(-1)])], "");
        assert!(found[0].0.starts_with("calls itself"), "{found:?}");
        assert_eq!(found[0].1, "f_a");
        let found = with(&[("f_a", &[bl(1)]), ("task_main", &[RET])], "");
        assert!(
            found[0].0.starts_with("is one of the first functions"),
            "{found:?}"
        );
    }
}
