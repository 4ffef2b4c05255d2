// SPDX-License-Identifier: MIT OR Apache-2.0
//! The proof over the linked image that the hook path keeps its rules: it allocates nothing, waits for no one, reaches no site.
//!
//! The hook path is the notrace set: all that helpers, native hooks and the other roots reach. For each of these, the audit
//! says whether all that *it* reaches keeps the rules of linker/audit.rules, by what chain of calls not, and how much stack it
//! takes at worst. A lock is known by its WFE (or WFI, YIELD, ISB), wherever it was inlined; an allocator by its name; a site by the table that the
//! kernel gets. A branch through a register that no rule resolves breaks the proof, and so does a recursion without a bound.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use serde_json::{Value, json};

use crate::Outcome;
use crate::btf::{self, graph::Type};
use crate::callgraph::{Graph, Node};
use crate::files;
use crate::frames::{FrameError, Frames};
use crate::glob::Glob;
use crate::image;
use crate::kernel;
use crate::linked::Linked;
use crate::notrace::Notrace;
use crate::rules::{Kind, Rules};
use crate::symbols;
use crate::targets::{self, CHAIN, Target};
use crate::waiting::{self, Called};
use crate::workspace::Workspace;

/// Why a function's worst case is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StackError {
    /// Its code is not understood.
    #[error("{0}: {1}; name its bytes: `stack PATTERN BYTES`")]
    Frame(String, String),
    /// It calls itself.
    #[error("a recursion without a bound: {}; name one: `depth PATTERN N`", .0.join(" -> "))]
    Recursion(Vec<String>),
}

/// Worst cases of stack over the hook path: frames by code, calls added up.
pub(crate) struct Stacks<'a> {
    linked: &'a Linked,
    set: &'a Notrace,
    frames: BTreeMap<usize, Result<Frames, FrameError>>,
    /// Functions that stand on a stack at most so often.
    bounds: BTreeMap<usize, u32>,
    /// Calls that are not followed: where, and the bytes that they take.
    beyond: BTreeMap<usize, Vec<(u64, u64)>>,
    /// Bytes, and the call that they are reached by, if that is not the function alone.
    known: BTreeMap<Key, (u64, Option<Key>)>,
}

/// A function and what is left of the bounds while it runs.
type Key = (usize, Vec<u32>);

impl<'a> Stacks<'a> {
    /// Reads the frames of all members.
    pub(crate) fn new(linked: &'a Linked, set: &'a Notrace, rules: &Rules) -> Self {
        let mut frames = BTreeMap::new();
        let mut bounds = BTreeMap::new();
        let mut beyond = BTreeMap::<usize, Vec<_>>::new();
        for (index, node) in &set.graph.nodes {
            let index = *index;
            let Some(function) = linked.functions.get(index) else {
                continue;
            };
            let mut own = Frames::of(linked, function);
            for rule in rules.of(linked, index) {
                match &rule.kind {
                    Kind::Stack(bytes) if own.is_err() => {
                        rule.used.set(true);
                        own = Ok(Frames {
                            most: *bytes,
                            ..Frames::default()
                        });
                    }
                    Kind::Depth(times) => {
                        rule.used.set(true);
                        bounds.insert(index, *times);
                    }
                    Kind::Allow(pattern, bytes) => {
                        let fits = |to| {
                            linked
                                .names(to)
                                .any(|name| Glob::new(pattern).fits(name.as_bytes()))
                        };
                        let calls = node.body.edges.iter().filter(|edge| fits(edge.to));
                        let calls = calls.map(|edge| (edge.at, *bytes));
                        beyond.entry(index).or_default().extend(calls);
                    }
                    _ => {}
                }
            }
            frames.insert(index, own);
        }
        Self {
            linked,
            set,
            frames,
            bounds,
            beyond,
            known: BTreeMap::new(),
        }
    }

    /// The most bytes that a call of this function takes, those of what it calls included.
    pub(crate) fn worst(&mut self, index: usize) -> Result<u64, StackError> {
        Ok(self.below(index, self.all(), &mut Vec::new())?.0)
    }

    /// The calls, by name, that take the most stack from this function on.
    pub(crate) fn deepest(&mut self, index: usize) -> Result<Vec<String>, StackError> {
        let (_, first) = self.below(index, self.all(), &mut Vec::new())?;
        let chain = std::iter::successors(first, |key| self.known.get(key)?.1.clone());
        Ok(chain
            .map(|(index, _)| self.linked.name(index).to_owned())
            .collect())
    }

    /// All bounds, nothing of them used.
    fn all(&self) -> Vec<u32> {
        self.bounds.values().copied().collect()
    }

    fn below(
        &mut self,
        index: usize,
        mut left: Vec<u32>,
        path: &mut Vec<usize>,
    ) -> Result<(u64, Option<Key>), StackError> {
        if let Some(place) = self.bounds.keys().position(|bounded| *bounded == index) {
            match left.get_mut(place) {
                Some(0) | None => return Ok((0, None)),
                Some(left) => *left -= 1,
            }
        } else if let Some(start) = path.iter().rposition(|above| *above == index) {
            let cycle = path.get(start..).unwrap_or_default();
            // A cycle through a function with a bound ends when that is used up.
            if !cycle.iter().any(|index| self.bounds.contains_key(index)) {
                let cycle = cycle.iter().chain([&index]);
                let names = cycle.map(|index| self.linked.name(*index).to_owned());
                return Err(StackError::Recursion(names.collect()));
            }
        }
        let key = (index, left);
        if let Some((bytes, _)) = self.known.get(&key) {
            return Ok((*bytes, Some(key)));
        }
        let (most, calls) = match self.frames.get(&index) {
            Some(Ok(frames)) => {
                let depth = |at| frames.at.get(at).copied().unwrap_or(frames.most);
                let beyond = self.beyond.get(&index).into_iter().flatten();
                let beyond = beyond.map(|(at, bytes)| depth(at) + bytes);
                let most = beyond.fold(frames.most, u64::max);
                let edges = self.set.graph.nodes.get(&index).into_iter();
                let calls = edges.flat_map(|node| &node.edges);
                let calls = calls.map(|edge| (edge.to, depth(&edge.at)));
                (most, calls.collect::<BTreeSet<_>>())
            }
            Some(Err(error)) => {
                let name = self.linked.name(index).to_owned();
                return Err(StackError::Frame(name, error.to_string()));
            }
            None => (0, BTreeSet::new()),
        };
        path.push(index);
        let mut worst = (most, None);
        for (to, depth) in calls {
            let (bytes, callee) = self.below(to, key.1.clone(), path)?;
            if depth + bytes > worst.0 {
                worst = (depth + bytes, callee);
            }
        }
        path.pop();
        // Under a bound that lets a cycle end, what was found holds for this much of it only: that is in the key.
        let bytes = worst.0;
        self.known.insert(key.clone(), worst);
        Ok((bytes, Some(key)))
    }
}

/// The worst cases of all members whose is known, by address, for the kernel.
pub(crate) fn stack_table(linked: &Linked, set: &Notrace, rules: &Rules) -> BTreeMap<u64, u64> {
    let mut stacks = Stacks::new(linked, set, rules);
    let members = set.graph.nodes.keys();
    let worst = members.filter_map(|index| {
        let bytes = stacks.worst(*index).ok()?;
        Some((linked.functions.get(*index)?.address, bytes))
    });
    worst.collect()
}

/// A rule that is broken, and the way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Breach {
    /// What is wrong.
    pub(crate) what: String,
    /// The names of the functions on the way, the last one where it happens.
    pub(crate) chain: Vec<String>,
}

/// What is known of a root.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Its name.
    pub(crate) name: String,
    /// Its address.
    pub(crate) address: u64,
    /// How many functions it reaches, itself included.
    pub(crate) functions: usize,
    /// The most bytes of stack that a call of it takes.
    pub(crate) stack: Option<u64>,
    /// The calls that take it.
    pub(crate) deepest: Vec<String>,
    /// Broken rules.
    pub(crate) breaches: Vec<Breach>,
}

/// Checks every root; `sites` are the functions that may be hooked, by index.
pub(crate) fn check(
    linked: &Linked,
    set: &Notrace,
    rules: &Rules,
    sites: &[usize],
) -> Vec<Verdict> {
    let mut stacks = Stacks::new(linked, set, rules);
    let sites: BTreeSet<usize> = sites.iter().map(|i| linked.same(*i).start).collect();
    let mut faults = BTreeMap::new();
    for index in set.graph.nodes.keys() {
        faults.insert(*index, faults_of(linked, set, rules, &sites, *index));
    }
    let mut verdicts = Vec::new();
    for start in &set.starts {
        let (functions, mut breaches) = walk(linked, &set.graph, &faults, *start);
        let stack = stacks.worst(*start);
        if let Err(error) = &stack {
            breaches.push(Breach {
                what: error.to_string(),
                chain: vec![linked.name(*start).to_owned()],
            });
        }
        verdicts.push(Verdict {
            name: linked.name(*start).to_owned(),
            address: linked.functions.get(*start).map_or(0, |f| f.address),
            functions,
            stack: stack.ok(),
            deepest: stacks.deepest(*start).unwrap_or_default(),
            breaches,
        });
    }
    verdicts
}

/// What is wrong with each function, and whether the walk ends there.
pub(crate) type Faults = BTreeMap<usize, Vec<(String, bool)>>;

/// How many functions are reached from `start`, itself included, and what is wrong with them, each with the way there.
pub(crate) fn walk(
    linked: &Linked,
    graph: &Graph,
    faults: &Faults,
    start: usize,
) -> (usize, Vec<Breach>) {
    let mut from = BTreeMap::from([(start, None)]);
    let mut queue = VecDeque::from([start]);
    let mut breaches = Vec::new();
    while let Some(index) = queue.pop_front() {
        let faults = faults.get(&index).map_or(&[][..], Vec::as_slice);
        let chain = || {
            let above = |index: &usize| from.get(index).copied().flatten();
            let chain = std::iter::successors(Some(index), above);
            let mut names: Vec<_> = chain.map(|i| linked.name(i).to_owned()).collect();
            names.reverse();
            names
        };
        breaches.extend(faults.iter().map(|(what, _)| Breach {
            what: what.clone(),
            chain: chain(),
        }));
        // What lies behind something forbidden is its business.
        if faults.iter().any(|(_, ends)| *ends) {
            continue;
        }
        for edge in graph.nodes.get(&index).iter().flat_map(|n| &n.edges) {
            if let Entry::Vacant(place) = from.entry(edge.to) {
                place.insert(Some(index));
                queue.push_back(edge.to);
            }
        }
    }
    (from.len(), breaches)
}

/// Checks what programs block by: a function that may be hooked by one which blocks (`sleepable`, by name) must not be reached from there, or
/// one would block in what the other blocks by, and a third in that. Nor may one that a trampoline calls (`waits`, by index): its frame
/// would stand there on the program's. The stack that these take is not looked at: they are no hooks.
pub(crate) fn check_blocking(
    linked: &Linked,
    set: &Notrace,
    rules: &Rules,
    sleepable: impl Fn(&str) -> bool,
    waits: &BTreeSet<usize>,
) -> Vec<Verdict> {
    let mut starts = BTreeSet::new();
    for index in 0..linked.functions.len() {
        for rule in rules.of(linked, index) {
            if rule.kind == Kind::Blocks {
                rule.used.set(true);
                starts.insert(linked.same(index).start);
            }
        }
    }
    // What is allowed to a hook is not followed there, and is here.
    let followed = waiting::followed(rules);
    let graph = Graph::reach(linked, &followed, starts.iter().copied(), &set.stops);
    let faults_of = |(index, node): (&usize, &Node)| {
        let mut faults = unresolved(linked, *index, node);
        if linked.names(*index).any(&sleepable) {
            let text = "may be hooked by a program that blocks, and a program blocks by what calls it: the one would stand on the other, and \
                        so on (HIT_LIMIT in kernel/src/mm/stack.rs); take Sleepable from it in kernel/src/targets.rs";
            faults.push((text.to_owned(), true));
        } else if waits.contains(index) {
            let text = "may be called by a trampoline, whose frame would stand on that of a program that blocks by what calls it: nobody \
                        counts on that (HIT_LIMIT in kernel/src/mm/stack.rs)";
            faults.push((text.to_owned(), true));
        }
        (*index, faults)
    };
    let faults: Faults = graph.nodes.iter().map(faults_of).collect();
    let verdict = |start: usize| {
        let (functions, breaches) = walk(linked, &graph, &faults, start);
        Verdict {
            name: format!("{} (programs block by it)", linked.name(start)),
            address: linked.functions.get(start).map_or(0, |f| f.address),
            functions,
            stack: None,
            deepest: Vec::new(),
            breaches,
        }
    };
    starts.into_iter().map(verdict).collect()
}

/// Branches of a function that no rule resolves.
pub(crate) fn unresolved(linked: &Linked, index: usize, node: &Node) -> Vec<(String, bool)> {
    let start = linked.functions.get(index).map_or(0, |f| f.address);
    let fault = |at: &u64| {
        let text = format!(
            "branches through a register at +{:#x}, to no one knows where; name it: `call PATTERN => ...`",
            at - start
        );
        (text, false)
    };
    node.unresolved.iter().map(fault).collect()
}

/// What is wrong with a function of the path, and whether the walk ends there.
fn faults_of(
    linked: &Linked,
    set: &Notrace,
    rules: &Rules,
    sites: &BTreeSet<usize>,
    index: usize,
) -> Vec<(String, bool)> {
    let mut faults = Vec::new();
    let start = linked.functions.get(index).map_or(0, |f| f.address);
    let Some(node) = set.graph.nodes.get(&index) else {
        return faults;
    };
    let mut may_wait = false;
    for rule in rules.of(linked, index) {
        match &rule.kind {
            Kind::Deny(what) => {
                rule.used.set(true);
                faults.push((format!("reaches {what}: {}", rule.reason), true));
            }
            Kind::Wait => {
                rule.used
                    .set(!node.body.waits.is_empty() || rule.used.get());
                may_wait = true;
            }
            _ => {}
        }
    }
    if sites.contains(&index) {
        faults.push(("reaches a site: it can be hooked itself".to_owned(), false));
    }
    if let Some(at) = node.body.waits.first().filter(|_| !may_wait) {
        let text = format!(
            "waits for another context: WFE, WFI, YIELD or ISB at +{:#x}; `wait PATTERN` if that ends by itself",
            at - start
        );
        faults.push((text, false));
    }
    faults.extend(unresolved(linked, index, node));
    faults
}

/// What a program reads.
fn document(verdicts: &[Verdict], rules: &Rules) -> Value {
    let roots: Vec<_> = verdicts
        .iter()
        .map(|v| {
            let broken: Vec<_> = v
                .breaches
                .iter()
                .map(|b| json!({"rule": b.what, "chain": b.chain}))
                .collect();
            json!({
                "name": v.name, "address": format!("{:#x}", v.address), "functions": v.functions,
                "stack_bytes": v.stack, "deepest": v.deepest, "ok": v.breaches.is_empty(), "broken": broken,
            })
        })
        .collect();
    let named: Vec<_> = rules
        .0
        .iter()
        .filter(|rule| !matches!(rule.kind, Kind::Deny(_)))
        .map(|rule| {
            let text = format!("{:?}", rule.kind);
            json!({"pattern": rule.pattern, "rule": text, "reason": rule.reason, "used": rule.used.get()})
        })
        .collect();
    json!({
        "ok": holds(verdicts), "roots": roots, "named": named,
    })
}

/// What people read.
fn text(verdicts: &[Verdict], rules: &Rules) -> String {
    let mut text = String::from("verdict   stack  functions  root\n");
    for v in verdicts {
        let word = if v.breaches.is_empty() {
            "ok"
        } else {
            "BROKEN"
        };
        let unknown = if v.breaches.is_empty() { "-" } else { "?" };
        let stack = v
            .stack
            .map_or(unknown.to_owned(), |bytes| bytes.to_string());
        text.push_str(&format!(
            "{word:7}  {stack:>6}  {:>9}  {}\n",
            v.functions, v.name
        ));
    }
    // The same place is often reached from many roots: once is enough to see it.
    let mut places: BTreeMap<(&str, &str), Vec<&Breach>> = BTreeMap::new();
    for breach in verdicts.iter().flat_map(|v| &v.breaches) {
        let place = breach.chain.last().map_or("", String::as_str);
        places
            .entry((place, &breach.what))
            .or_default()
            .push(breach);
    }
    for ((place, what), breaches) in &places {
        let shortest = breaches.iter().min_by_key(|breach| breach.chain.len());
        let chain = shortest.map_or(String::new(), |breach| breach.chain.join("\n      -> "));
        text.push_str(&format!("\n{place}\n    {what}\n    {chain}\n"));
        if breaches.len() > 1 {
            text.push_str(&format!(
                "    and from {} other roots\n",
                breaches.len() - 1
            ));
        }
    }
    for rule in rules.0.iter().filter(|rule| !rule.used.get()) {
        if !matches!(rule.kind, Kind::Deny(_)) {
            text.push_str(&format!(
                "\nnot needed: the rule for {:?} ({})\n",
                rule.pattern, rule.reason
            ));
        }
    }
    if let Some(v) = verdicts.iter().max_by_key(|v| v.stack) {
        let chain = v.deepest.join("\n      -> ");
        text.push_str(&format!("\nthe deepest stack:\n    {chain}\n"));
    }
    let broken = verdicts.iter().filter(|v| !v.breaches.is_empty()).count();
    text.push_str(&format!(
        "\n{} roots, {broken} of them break a rule; deepest stack {} bytes\n",
        verdicts.len(),
        verdicts.iter().filter_map(|v| v.stack).max().unwrap_or(0)
    ));
    text
}

/// Audits the kernel as it is now.
fn examine(workspace: &Workspace) -> Outcome<(Vec<Verdict>, Rules)> {
    let elf = kernel::build(workspace)?;
    let (linked, set, rules) = image::examine(workspace, &elf)?;
    let sites = symbols::sites(&linked, |index| set.contains(index));
    let mut verdicts = check(&linked, &set, &rules, &sites);
    let called = Called::of(&linked, &sites, typed(&elf)?);
    let waits = &called.waits;
    verdicts.extend(check_blocking(&linked, &set, &rules, is_sleepable, waits));
    verdicts.push(waiting::check(
        &linked,
        &set,
        &rules,
        &called,
        CHAIN,
        targets::calls_another,
    ));
    Ok((verdicts, rules))
}

/// Whether the arguments of a function are known, by its name: whether it has a type in the image.
fn typed(elf: &Path) -> Outcome<impl Fn(&str) -> bool> {
    let graph = btf::of_elf(&files::read(elf)?)?;
    let functions = graph.types().filter_map(|(_, found)| match found {
        Type::Function { name, .. } => Some(name.clone()),
        _ => None,
    });
    let functions: BTreeSet<_> = functions.collect();
    Ok(move |name: &str| functions.contains(name))
}

/// Whether programs that block may hook a function of this name: the kernel's own word on it.
fn is_sleepable(name: &str) -> bool {
    targets::is(name, Target::Sleepable)
}

fn holds(verdicts: &[Verdict]) -> bool {
    verdicts.iter().all(|v| v.breaches.is_empty())
}

/// Audits the kernel as it is now; prints what was found, and writes it. Returns whether the rules hold.
pub(crate) fn run(workspace: &Workspace, json: Option<&Path>) -> Outcome<bool> {
    let (verdicts, rules) = examine(workspace)?;
    print!("{}", text(&verdicts, &rules));
    if let Some(path) = json {
        let document = document(&verdicts, &rules);
        files::write(path, format!("{document:#}\n").as_bytes())?;
        println!("written: {}", path.display());
    }
    Ok(holds(&verdicts))
}

/// A test: that the rules hold.
pub(crate) fn rules_hold(workspace: &Workspace) -> Outcome<()> {
    let (verdicts, rules) = examine(workspace)?;
    match holds(&verdicts) {
        true => Ok(()),
        false => Err(text(&verdicts, &rules).into()),
    }
}

/// A test: that rules which do not hold in this very kernel are seen to be broken, each with the way there.
pub(crate) fn breach_is_found(workspace: &Workspace) -> Outcome<()> {
    /// What is done to the rules, what is broken then, and by which function.
    struct Case {
        edit: fn(&str) -> String,
        what: &'static str,
        by: &'static str,
    }
    fn without(rules: &str, start: &str) -> String {
        let lines = rules.lines().filter(|line| !line.starts_with(start));
        lines.map(|line| format!("{line}\n")).collect()
    }
    let cases = [
        // Maps copy keys and values: it is reached for as long as there are maps.
        Case {
            edit: |rules| format!("{rules}\ndeny copying memcpy # a test of the audit\n"),
            what: "reaches copying: a test of the audit",
            by: "memcpy",
        },
        // Maps wait in a loop for who holds one of their locks.
        Case {
            edit: |rules| without(rules, "wait *<* as bpf_vm::host::Host>::relax "),
            what: "waits for another context: ",
            by: "<springboard::bpf::Host as bpf_vm::host::Host>::relax",
        },
        // What the line lets a helper call has a site in the kernel as it is.
        Case {
            edit: |rules| {
                without(
                    rules,
                    "allow <springboard::bpf::Host as bpf_vm::host::Host>::copy_from_slow ",
                )
            },
            what: "reaches a site: ",
            by: "springboard::slow::page_in",
        },
        // So has what the one kernel function may call that shows what comes of it.
        Case {
            edit: |rules| without(rules, "allow springboard_workload_call "),
            what: "reaches a site: ",
            by: "workload_call",
        },
    ];
    let elf = kernel::build(workspace)?;
    let (linked, set, rules) = image::examine(workspace, &elf)?;
    // Whoever blocks goes through it.
    const BLOCK: &str = "springboard::sched::block";
    let verdicts = check_blocking(
        &linked,
        &set,
        &rules,
        |name| name == BLOCK,
        &BTreeSet::new(),
    );
    let mut breaches = verdicts.iter().flat_map(|v| &v.breaches);
    let shown = breaches.any(|breach| {
        let ends = breach.chain.first().zip(breach.chain.last());
        ends.is_some_and(|(first, last)| first == "springboard::slow::page_in" && last == BLOCK)
    });
    if !shown {
        let text = text(&verdicts, &rules);
        return Err(
            format!("no way from a program that blocks to {BLOCK} was found:\n{text}").into(),
        );
    }
    let sites = symbols::sites(&linked, |index| set.contains(index));
    // Two stand on one another, so one is not enough; and what a program blocks by reaches some of the rest.
    let called = Called::of(&linked, &sites, typed(&elf)?);
    let verdict = waiting::check(&linked, &set, &rules, &called, 1, |_| false);
    let unlisted = |breach: &&Breach| breach.what.starts_with("calls another function");
    let callers = verdict.breaches.iter().filter(unlisted).count();
    if verdict.breaches.len() == callers || callers == 0 || verdict.deepest.len() != CHAIN {
        let text = text(&[verdict], &rules);
        return Err(format!(
            "{CHAIN} functions on one another, where 1 may be, were not found:\n{text}"
        )
        .into());
    }
    let all: BTreeSet<_> = sites
        .iter()
        .map(|index| linked.same(*index).start)
        .collect();
    let verdicts = check_blocking(&linked, &set, &rules, |_| false, &all);
    let mut breaches = verdicts.iter().flat_map(|v| &v.breaches);
    if !breaches.any(|breach| breach.what.starts_with("may be called by a trampoline")) {
        let text = text(&verdicts, &rules);
        return Err(format!(
            "a function that trampolines call was not found below what blocks:\n{text}"
        )
        .into());
    }
    for case in cases {
        let (linked, set, rules) = image::examine_under(workspace, &elf, &case.edit)?;
        let verdicts = check(&linked, &set, &rules, &sites);
        let mut breaches = verdicts.iter().flat_map(|v| &v.breaches);
        let shown = breaches.any(|breach| {
            breach.what.starts_with(case.what)
                && breach.chain.len() > 1
                && breach.chain.last().is_some_and(|name| name == case.by)
        });
        if !shown {
            return Err(format!(
                "no way to {} was found ({}...):\n{}",
                case.by,
                case.what,
                text(&verdicts, &rules)
            )
            .into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callgraph::tests::{BLR_X8, LDR_X8_24, RET, WFE, b, bl};
    use crate::linked::NOP;
    use crate::linked::tests::made_up;
    use crate::notrace::parse_roots;

    const STP_32: u32 = 0xa9be_7bfd; // stp x29, x30, [sp, #-32]!
    const LDP_32: u32 = 0xa8c2_7bfd; // ldp x29, x30, [sp], #32

    fn audit(functions: &[(&str, &[u32])], rules: &str, sites: &[usize]) -> Vec<Verdict> {
        let linked = made_up(functions);
        let rules = Rules::parse(rules).expect("rules");
        let roots = parse_roots("root* # it\n!panic # ends the run").expect("roots");
        let set = Notrace::compute(&linked, &roots, &rules).expect("set");
        check(&linked, &set, &rules, sites)
    }

    /// What the only root breaks, and its chain.
    fn broken(functions: &[(&str, &[u32])], rules: &str, sites: &[usize]) -> Vec<(String, String)> {
        let functions = [functions, &[("panic", &[RET][..])]].concat();
        let verdicts = audit(&functions, rules, sites);
        let [verdict] = &verdicts[..] else {
            panic!("one root");
        };
        assert_eq!(
            document(&verdicts, &Rules::default())["ok"],
            verdict.breaches.is_empty()
        );
        let breaches = verdict.breaches.iter();
        breaches
            .map(|b| (b.what.clone(), b.chain.join(" -> ")))
            .collect()
    }

    #[test]
    fn a_path_to_an_allocator_is_shown() {
        let functions: &[(&str, &[u32])] = &[
            ("root", &[STP_32, bl(3), LDP_32, RET]), // 0..4: calls 4
            ("f", &[b(2), RET]),                     // 4..6: on to 6
            ("g", &[bl(2), RET]),                    // 6..8: calls 8
            ("__rust_alloc", &[bl(2), RET]),         // 8..10
            ("behind", &[WFE, RET]),                 // 10..12: not looked at
        ];
        let rules = "deny an-allocator __rust_alloc # it locks\nwait behind # not it";
        let found = broken(functions, rules, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, "reaches an-allocator: it locks");
        assert_eq!(found[0].1, "root -> f -> g -> __rust_alloc");
        let rules = "deny an-allocator __rust_alloc # it locks\nallow g => __rust_alloc # never";
        assert_eq!(broken(functions, rules, &[]), []);
        let ends = [("root", &[bl(2), RET][..])];
        assert_eq!(
            broken(&ends, "deny x panic # the walk ends before", &[]),
            []
        );
    }

    #[test]
    fn locks_sites_and_pointers_break_the_rules() {
        let functions: &[(&str, &[u32])] = &[
            ("root", &[bl(2), RET]),
            ("f", &[NOP, NOP, LDR_X8_24, WFE, BLR_X8, RET]),
        ];
        let found = broken(functions, "", &[1]);
        let texts: Vec<_> = found.iter().map(|(what, _)| what.as_str()).collect();
        assert!(texts[0].starts_with("reaches a site"), "{texts:?}");
        assert!(
            texts[1].starts_with("waits") && texts[1].contains("+0xc"),
            "{texts:?}"
        );
        assert!(texts[2].contains("register at +0x10"), "{texts:?}");
        assert_eq!(found.len(), 3);
        let rules = "wait f # bounded\ncall f => nothing # a program";
        assert_eq!(broken(functions, rules, &[]), []);
    }

    #[test]
    fn stacks_are_added_up_over_calls() {
        let functions: &[(&str, &[u32])] = &[
            ("root", &[STP_32, bl(3), LDP_32, b(5)]), // calls f, goes on in g
            ("f", &[STP_32, bl(3), LDP_32, RET]),     // calls g
            ("g", &[0xd104_03ff, RET]),               // sub sp, sp, #256
        ];
        let verdicts = audit(&[functions, &[("panic", &[RET][..])]].concat(), "", &[]);
        assert_eq!(verdicts[0].stack, Some(32 + 32 + 256));
        assert_eq!(verdicts[0].functions, 3);
        assert_eq!(verdicts[0].deepest, ["root", "f", "g"]);
    }

    #[test]
    fn recursion_needs_a_bound() {
        let functions: &[(&str, &[u32])] = &[
            ("root", &[STP_32, bl(3), LDP_32, RET]),
            ("f", &[STP_32, bl(3), LDP_32, RET]),
            ("g", &[STP_32, bl(-5), LDP_32, RET]), // calls f
        ];
        let found = broken(functions, "", &[]);
        assert!(found[0].0.contains("f -> g -> f"), "{found:?}");
        let functions = [functions, &[("panic", &[RET][..])]].concat();
        let verdicts = audit(&functions, "depth f 3 # three levels", &[]);
        assert!(verdicts[0].breaches.is_empty());
        assert_eq!(verdicts[0].stack, Some(32 + 3 * 64));
    }

    #[test]
    fn a_stack_that_code_does_not_say_is_named() {
        let functions: &[(&str, &[u32])] = &[("root", &[0xcb28_63ff, RET])]; // sub sp, sp, x8
        assert!(broken(functions, "", &[])[0].0.contains("SP changes"));
        assert_eq!(broken(functions, "stack root 640 # measured", &[]), []);
    }

    #[test]
    fn no_blocking_program_stands_on_what_another_blocks_by() {
        let functions: &[(&str, &[u32])] = &[
            ("root", &[RET]),
            ("page_in", &[bl(2), RET]),           // 1..3: calls 3
            ("wait", &[b(2), RET]),               // 3..5: on to 5
            ("marked", &[bl(2), RET]),            // 5..7: calls 7
            ("behind", &[BLR_X8, RET]),           // 7..9: not looked at
            ("panic", &[b(-4)]),                  // 9: to marked
            ("unmarked", &[bl(-1), BLR_X8, RET]), // 10..13: ends the run, and no one knows
        ];
        let linked = made_up(functions);
        let broken = |rules: &str| {
            let rules = Rules::parse(rules).expect("rules");
            let roots = parse_roots("root* # it\n!panic # ends the run").expect("roots");
            let set = Notrace::compute(&linked, &roots, &rules).expect("set");
            let none = BTreeSet::new();
            let verdicts = check_blocking(&linked, &set, &rules, |name| name == "marked", &none);
            let breaches = verdicts.iter().flat_map(|v| &v.breaches);
            let shown = breaches.map(|b| (b.what.clone(), b.chain.join(" -> ")));
            shown.collect::<Vec<_>>()
        };
        assert_eq!(broken(""), []);
        // What a hook is allowed is not allowed here.
        for rules in [
            "blocks page_in # it",
            "blocks page_in # it\nallow wait => marked # a hook may",
        ] {
            let found = broken(rules);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(
                found[0]
                    .0
                    .starts_with("may be hooked by a program that blocks")
            );
            assert_eq!(found[0].1, "page_in -> wait -> marked");
        }
        let found = broken("blocks unmarked # it");
        assert!(
            found.len() == 1 && found[0].0.contains("register at +0x4"),
            "{found:?}"
        );
        assert_eq!(
            broken("blocks unmarked # it\ncall unmarked => nothing # it"),
            []
        );
    }

    #[test]
    fn people_see_each_place_once() {
        let functions: &[(&str, &[u32])] = &[
            ("root_a", &[b(2), RET]),
            ("root_b", &[b(1)]),
            ("f", &[WFE, RET]),
            ("panic", &[RET]),
        ];
        let rules = Rules::parse("wait ?other # gone").expect("rules");
        let text = text(&audit(functions, "", &[]), &rules);
        assert_eq!(
            text.matches("waits for another context").count(),
            1,
            "{text}"
        );
        assert!(text.contains("and from 1 other roots") && text.contains("2 of them break a rule"));
        assert!(text.contains("not needed: the rule for \"other\""));
    }
}
