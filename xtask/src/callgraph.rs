// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who calls whom in the linked image: direct branches, and branches through a register as far as they can be resolved.
//!
//! Direct are BL, B, B.cond, CBZ, CBNZ, TBZ, TBNZ from one function to another. A BR whose register an ADD made is a switch: its
//! table lies in the same function. Every other BR and BLR goes through a pointer, and linker/audit.rules says to whom: to
//! the methods of a trait, whose vtables are read from the image (rustc's layout: drop, size, alignment, methods), at the offset
//! that the code loads from, if that can be seen; or to functions whose address the code takes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use a64::Inst;
use a64::inst::{Access, AddSub, BarrierOp, BranchRegOp};

use crate::glob::Glob;
use crate::linked::{Function, Linked};
use crate::rules::{Callees, Kind, Rules};

/// HINT's numbers of YIELD, WFE and WFI (Arm ARM C6.2): what waiting loops hold. So do those of `core::hint::spin_loop`: ISB.
const WAITS: [u64; 3] = [1, 2, 3];
/// The highest register that a call may change (AAPCS64 6.1.1), x30 aside.
const CALLER_SAVED: u8 = 18;
/// How many words behind an address that the code takes may be pointers that it hands on: a constant array of arguments.
const CONSTANT_WORDS: u64 = 16;

/// A branch from one function to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edge {
    /// The branch's address.
    pub(crate) at: u64,
    /// The function, by index: the first one at its address.
    pub(crate) to: usize,
}

/// A branch through a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Through {
    /// Its address.
    pub(crate) at: u64,
    /// The offset from another register that the target was loaded from, if that is seen: the place in a vtable, in bytes.
    pub(crate) offset: Option<u64>,
}

/// What a function's code says of itself.
#[derive(Debug, Default)]
pub(crate) struct Body {
    /// Direct branches out of it.
    pub(crate) edges: BTreeSet<Edge>,
    /// Branches through a register.
    pub(crate) through: Vec<Through>,
    /// Addresses of what waiting loops hold: WFE, WFI, YIELD, ISB.
    pub(crate) waits: Vec<u64>,
    /// Addresses that it makes or loads from.
    taken: BTreeSet<u64>,
}

/// The general registers that an instruction writes, 31 for none or SP; `None` for a pair's and a call's.
pub(crate) fn written(inst: Inst) -> Option<[Option<u8>; 2]> {
    use Inst::*;
    let one = |number: u8| Some([Some(number), None]);
    match inst {
        Udf { .. } | Branch { link: false, .. } | BranchCond { .. } | CompareBranch { .. } => {
            Some([None; 2])
        }
        TestBranch { .. } | Eret | Hint { .. } | Barrier { .. } | Exception { .. } => {
            Some([None; 2])
        }
        Msr { .. } | MsrImm { .. } | Sys { .. } | PrefetchLiteral { .. } => Some([None; 2]),
        BranchReg { op, .. } if op != BranchRegOp::Blr => Some([None; 2]),
        CompareReg { .. } | CompareImm { .. } => Some([None; 2]),
        Mrs { rt, .. } | LoadLiteral { rt, .. } | Ordered { rt, .. } => one(rt.number()),
        MoveWide { rd, .. } | Adr { rd, .. } | Adrp { rd, .. } | AndsImm { rd, .. } => {
            one(rd.number())
        }
        AddSubImm { rd, .. } | AddSubExt { rd, .. } | LogicalImm { rd, .. } => one(rd.number()),
        AddSubImmFlags { rd, .. } | AddSubReg { rd, .. } | AddSubExtFlags { rd, .. } => {
            one(rd.number())
        }
        Carry { rd, .. } | LogicalReg { rd, .. } | Bitfield { rd, .. } | Extract { rd, .. } => {
            one(rd.number())
        }
        MulAdd { rd, .. } | MulAddLong { rd, .. } | MulHigh { rd, .. } => one(rd.number()),
        TwoSource { rd, .. } | OneSource { rd, .. } | Select { rd, .. } => one(rd.number()),
        LoadStore { op, rt, .. } | LoadStoreReg { op, rt, .. } => match op.is_load() {
            true => one(rt.number()),
            false => Some([None; 2]),
        },
        LoadStore9 { op, rt, rn, .. } => {
            Some([op.is_load().then_some(rt.number()), Some(rn.number())])
        }
        StoreExclusive { rs, .. } => one(rs.number()),
        Atomic { rt, .. } => one(rt.number()),
        Cas { rs, .. } => one(rs.number()),
        Pair { .. } | BranchReg { .. } | Branch { .. } => None,
    }
}

/// The addresses of a function's branches to itself: where its blocks begin.
fn inner_targets(code: &[(u64, Option<Inst>)], own: &Range<u64>) -> BTreeSet<u64> {
    code.iter()
        .filter_map(|(pc, inst)| target(*pc, (*inst)?))
        .filter(|target| own.contains(target))
        .collect()
}

/// Where a direct branch leads.
fn target(pc: u64, inst: Inst) -> Option<u64> {
    let offset = inst.is_branch().then(|| inst.offset())??;
    Some(pc.wrapping_add_signed(offset))
}

/// The last instruction before `code[at]` that wrote the register, in the same straight line; `None` if it is not seen.
fn definition(
    code: &[(u64, Option<Inst>)],
    blocks: &BTreeSet<u64>,
    at: usize,
    register: u8,
) -> Option<Inst> {
    for index in (0..at).rev() {
        // Someone may come from elsewhere to the instruction behind.
        if blocks.contains(&code.get(index + 1)?.0) {
            return None;
        }
        let inst = code.get(index)?.1?;
        match inst {
            Inst::Branch { link: true, .. }
            | Inst::BranchReg {
                op: BranchRegOp::Blr,
                ..
            } => {
                if register <= CALLER_SAVED {
                    return None;
                }
            }
            Inst::BranchReg { .. } | Inst::Branch { .. } => return None,
            Inst::Pair {
                op, rt, rt2, rn, ..
            } => {
                let loads = !matches!(op, a64::inst::PairOp::StpW | a64::inst::PairOp::StpX);
                let written = [rt.number(), rt2.number()];
                if rn.number() == register || loads && written.contains(&register) {
                    return None;
                }
            }
            other => {
                if written(other)?.contains(&Some(register)) {
                    return Some(other);
                }
            }
        }
    }
    None
}

impl Body {
    /// Reads a function.
    pub(crate) fn of(linked: &Linked, function: &Function) -> Self {
        let own = function.range();
        let code: Vec<_> = linked
            .instructions(function)
            .map(|(pc, word)| (pc, Inst::decode(word)))
            .collect();
        let blocks = inner_targets(&code, &own);
        let mut body = Self::default();
        // The page that an ADRP left in each register.
        let mut pages = [None::<u64>; 32];
        for (index, (pc, inst)) in code.iter().enumerate() {
            let (pc, Some(inst)) = (*pc, *inst) else {
                continue;
            };
            if let Some(target) = target(pc, inst) {
                let to = linked.containing(target).filter(|_| !own.contains(&target));
                body.edges.extend(to.map(|to| Edge { at: pc, to }));
            }
            match inst {
                Inst::BranchReg { op, rn } if op != BranchRegOp::Ret => {
                    let made = definition(&code, &blocks, index, rn.number());
                    let switch = matches!(
                        made,
                        Some(
                            Inst::AddSubReg {
                                op: AddSub::Add,
                                ..
                            } | Inst::AddSubExt {
                                op: AddSub::Add,
                                ..
                            }
                        )
                    );
                    if op == BranchRegOp::Blr || !switch {
                        let offset = match made {
                            Some(Inst::LoadStore {
                                op: Access::LdrX,
                                rn,
                                offset,
                                ..
                            }) if rn != a64::SP => {
                                Some(offset.value() * u64::from(Access::LdrX.bytes()))
                            }
                            _ => None,
                        };
                        body.through.push(Through { at: pc, offset });
                    }
                }
                Inst::Hint { number } if WAITS.contains(&number.value()) => body.waits.push(pc),
                Inst::Barrier {
                    op: BarrierOp::Isb, ..
                } => body.waits.push(pc),
                Inst::Adr { offset, .. } => {
                    body.taken.insert(pc.wrapping_add_signed(offset.value()));
                }
                Inst::Adrp {
                    rd,
                    pages: distance,
                } => {
                    let page = (pc & !0xfff).wrapping_add_signed(distance.value() << 12);
                    if let Some(entry) = pages.get_mut(usize::from(rd.number())) {
                        *entry = Some(page);
                    }
                }
                Inst::AddSubImm {
                    op: AddSub::Add,
                    rn,
                    imm,
                    ..
                } => {
                    let page = pages.get(usize::from(rn.number())).copied().flatten();
                    body.taken.extend(page.map(|page| page + imm.value()));
                }
                Inst::LoadStore { op, rn, offset, .. } if op.is_load() => {
                    let page = pages.get(usize::from(rn.number())).copied().flatten();
                    let offset = offset.value() * u64::from(op.bytes());
                    body.taken.extend(page.map(|page| page + offset));
                }
                _ => {}
            }
        }
        body
    }

    /// The functions whose address it takes, or that stand in the constants whose address it takes.
    fn functions_taken(
        &self,
        linked: &Linked,
        pointers: &Pointers,
        objects: &BTreeSet<u64>,
    ) -> BTreeSet<usize> {
        let direct = self
            .taken
            .iter()
            .filter_map(|address| linked.starting(*address));
        let constants = self.taken.iter().flat_map(|address| {
            let most = address.saturating_add(8 * CONSTANT_WORDS);
            let next = address.saturating_add(1)..most;
            // Where another constant or a vtable begins, what lies before it has ended.
            let object = objects.range(next.clone()).next().copied();
            let vtable = pointers.vtables.range(next).next().map(|(at, _)| *at);
            let end = object.into_iter().chain(vtable).fold(most, u64::min);
            let words = pointers.words.range(*address..end);
            words.map(|(_, function)| *function)
        });
        direct.chain(constants).collect()
    }
}

/// Where constants begin: every address that any code makes of ADRP and ADD. rustc names a constant by its start and LLVM
/// loads what lies inside by an offset, so whoever hands on the address of one hands on nothing of the next.
fn objects(linked: &Linked) -> BTreeSet<u64> {
    let mut objects = BTreeSet::new();
    for function in &linked.functions {
        let mut pages = [None::<u64>; 32];
        for (pc, word) in linked.instructions(function) {
            // Bits that ADRP and ADD (immediate) have, so that not all of the code has to be decoded.
            if word & 0x9f00_0000 != 0x9000_0000 && word & 0xff80_0000 != 0x9100_0000 {
                continue;
            }
            match Inst::decode(word) {
                Some(Inst::Adrp {
                    rd,
                    pages: distance,
                }) => {
                    let page = (pc & !0xfff).wrapping_add_signed(distance.value() << 12);
                    if let Some(entry) = pages.get_mut(usize::from(rd.number())) {
                        *entry = Some(page);
                    }
                }
                Some(Inst::AddSubImm { rn, imm, .. }) => {
                    let page = pages.get(usize::from(rn.number())).copied().flatten();
                    objects.extend(page.map(|page| page + imm.value()));
                }
                _ => {}
            }
        }
    }
    objects
}

/// The pointers to functions in the image's data.
#[derive(Debug, Default)]
pub(crate) struct Pointers {
    /// Address of the word, function by index.
    pub(crate) words: BTreeMap<u64, usize>,
    /// Vtables: their words from the first (drop) on, `None` for what is no function.
    vtables: BTreeMap<u64, Vec<Option<usize>>>,
}

impl Pointers {
    /// Reads the data behind the code.
    pub(crate) fn of(linked: &Linked) -> Self {
        let end = linked.functions.iter().map(|f| f.range().end).max();
        let start = (end.unwrap_or(linked.base) - linked.base).next_multiple_of(8);
        let bytes = usize::try_from(start)
            .ok()
            .and_then(|start| linked.bytes.get(start..))
            .unwrap_or_default();
        let data: Vec<u64> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word))
            .collect();
        let function = |index: usize| linked.starting(*data.get(index)?);
        // drop or 0, a size, an alignment, and a method: nothing else in the data looks so.
        let is_vtable = |index: usize| {
            let drop = data.get(index) == Some(&0) || function(index).is_some();
            let sizes = data.get(index + 1..index + 3);
            let sizes =
                sizes.is_some_and(|s| s[0] < 1 << 32 && s[1].is_power_of_two() && s[1] <= 1 << 16);
            drop && sizes && function(index + 3).is_some()
        };
        let mut pointers = Self::default();
        for index in 0..data.len() {
            let address = linked.base + start + 8 * index as u64;
            if let Some(function) = function(index) {
                pointers.words.insert(address, function);
            }
            if is_vtable(index) {
                let methods = (index + 3..)
                    .map(|i| function(i).filter(|_| !is_vtable(i)))
                    .take_while(Option::is_some);
                let words = [function(index), None, None].into_iter().chain(methods);
                pointers.vtables.insert(address, words.collect());
            }
        }
        pointers
    }

    /// What a branch to a method of a trait may reach: the word at `offset` of each vtable that `fits` by its address, or all
    /// of its words if the offset is not known.
    fn methods(
        &self,
        linked: &Linked,
        name: &str,
        offset: Option<u64>,
        fits: impl Fn(u64) -> bool,
    ) -> BTreeSet<usize> {
        let pattern = format!("<* as {name}>::*");
        let of_trait = |words: &[Option<usize>]| {
            words.iter().skip(3).flatten().any(|function| {
                linked
                    .names(*function)
                    .any(|name| Glob::new(&pattern).fits(name.as_bytes()))
            })
        };
        let vtables = self.vtables.iter().filter(|(at, _)| fits(**at));
        let vtables = vtables
            .map(|(_, words)| words)
            .filter(|words| of_trait(words));
        match offset.and_then(|offset| usize::try_from(offset / 8).ok()) {
            Some(slot) => vtables.filter_map(|words| *words.get(slot)?).collect(),
            None => vtables.flatten().flatten().copied().collect(),
        }
    }
}

/// What the code of a walk takes the address of.
#[derive(Debug, Default)]
struct Taken {
    /// All addresses, of data and of code.
    addresses: BTreeSet<u64>,
    /// Functions, by index.
    functions: BTreeSet<usize>,
}

/// A function on the way.
#[derive(Debug)]
pub(crate) struct Node {
    /// Who branched to it first; `None` for where the walk began.
    pub(crate) from: Option<usize>,
    /// Its branches to other functions, resolved ones through registers too.
    pub(crate) edges: BTreeSet<Edge>,
    /// Branches through a register that no rule names.
    pub(crate) unresolved: Vec<u64>,
    /// Its code.
    pub(crate) body: Body,
}

/// Everything that some functions reach, by index (the first one at its address).
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// The members.
    pub(crate) nodes: BTreeMap<usize, Node>,
}

impl Graph {
    /// Follows all branches from `starts` until nothing new turns up; `stops` are not reached.
    pub(crate) fn reach(
        linked: &Linked,
        rules: &Rules,
        starts: impl IntoIterator<Item = usize>,
        stops: &BTreeSet<usize>,
    ) -> Self {
        let pointers = Pointers::of(linked);
        let objects = objects(linked);
        let helpers = helpers(linked, &pointers);
        let mut graph = Self::default();
        let mut queue: VecDeque<_> = starts.into_iter().map(|index| (index, None)).collect();
        let mut taken = Taken::default();
        loop {
            while let Some((index, from)) = queue.pop_front() {
                let Some(function) = linked.functions.get(index) else {
                    continue;
                };
                if graph.nodes.contains_key(&index) || stops.contains(&index) {
                    continue;
                }
                let body = Body::of(linked, function);
                taken
                    .functions
                    .extend(body.functions_taken(linked, &pointers, &objects));
                taken.addresses.extend(&body.taken);
                let mut edges = body.edges.clone();
                edges.retain(|edge| follows(linked, rules, stops, index, edge.to));
                queue.extend(edges.iter().map(|edge| (edge.to, Some(index))));
                let unresolved = Vec::new();
                graph.nodes.insert(
                    index,
                    Node {
                        from,
                        edges,
                        unresolved,
                        body,
                    },
                );
            }
            // What is taken grows as the walk goes on, and with it what a pointer may lead to.
            for (index, node) in &mut graph.nodes {
                node.unresolved.clear();
                for through in &node.body.through {
                    let Some(targets) =
                        resolve(linked, rules, &pointers, &helpers, &taken, *index, through)
                    else {
                        node.unresolved.push(through.at);
                        continue;
                    };
                    for to in targets {
                        let edge = Edge { at: through.at, to };
                        if follows(linked, rules, stops, *index, to) && node.edges.insert(edge) {
                            queue.push_back((to, Some(*index)));
                        }
                    }
                }
            }
            if queue.is_empty() {
                return graph;
            }
        }
    }
}

/// Whether the walk goes from one function to another.
fn follows(
    linked: &Linked,
    rules: &Rules,
    stops: &BTreeSet<usize>,
    from: usize,
    to: usize,
) -> bool {
    let allowed = rules.of(linked, from).find(|rule| match &rule.kind {
        Kind::Allow(pattern, _) => linked
            .names(to)
            .any(|name| Glob::new(pattern).fits(name.as_bytes())),
        _ => false,
    });
    allowed.inspect(|rule| rule.used.set(true)).is_none() && !stops.contains(&to)
}

/// Where a branch through a register leads; `None` if no rule says so, or the trait that one names has no such method.
fn resolve(
    linked: &Linked,
    rules: &Rules,
    pointers: &Pointers,
    helpers: &BTreeSet<usize>,
    taken: &Taken,
    index: usize,
    through: &Through,
) -> Option<BTreeSet<usize>> {
    let mut all = None::<BTreeSet<usize>>;
    let calls = || {
        rules.of(linked, index).filter_map(|rule| match &rule.kind {
            Kind::Call(callees) => Some((rule, callees)),
            _ => None,
        })
    };
    let exact = calls().any(|(rule, _)| !rule.pattern.contains('*'));
    for (rule, callees) in calls().filter(|(rule, _)| !exact || !rule.pattern.contains('*')) {
        rule.used.set(true);
        let some = match callees {
            Callees::Dyn(name) => Some(pointers.methods(linked, name, through.offset, |_| true))
                .filter(|methods| !methods.is_empty()),
            Callees::TakenDyn(name) => {
                let fits = |at| taken.addresses.contains(&at);
                Some(pointers.methods(linked, name, through.offset, fits))
            }
            Callees::Taken(pattern) => {
                let fits = |f: &&usize| {
                    linked
                        .names(**f)
                        .any(|name| Glob::new(pattern).fits(name.as_bytes()))
                };
                Some(taken.functions.iter().filter(fits).copied().collect())
            }
            Callees::Helpers => Some(helpers.clone()),
            Callees::Nothing => Some(BTreeSet::new()),
        };
        if let Some(some) = some {
            all.get_or_insert_default().extend(some);
        }
    }
    all
}

/// Where the functions that BPF programs call are.
const HELPERS: &str = "bpf_vm::helpers::*";

/// The helpers: functions of their room whose address stands in the image's data, which is their table.
pub(crate) fn helpers(linked: &Linked, pointers: &Pointers) -> BTreeSet<usize> {
    pointers
        .words
        .values()
        .filter(|function| {
            linked
                .names(**function)
                .any(|name| Glob::new(HELPERS).fits(name.as_bytes()))
        })
        .copied()
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::linked::NOP;
    use crate::linked::tests::made_up;

    pub(crate) const RET: u32 = 0xd65f_03c0;
    pub(crate) const BLR_X8: u32 = 0xd63f_0100;
    pub(crate) const BR_X9: u32 = 0xd61f_0120;
    pub(crate) const WFE: u32 = 0xd503_205f;
    const ADR_X9: u32 = 0x1000_0009;
    const ADD_X9_X9_X10: u32 = 0x8b0a_0929; // add x9, x9, x10, lsl #2
    /// ldr x8, [x0, #24]: the first method.
    pub(crate) const LDR_X8_24: u32 = 0xf940_0c08;
    /// ldr x8, [x0, #32]: the second.
    const LDR_X8_32: u32 = 0xf940_1008;

    /// BL by a number of words.
    pub(crate) fn bl(words: i32) -> u32 {
        0x9400_0000 | words as u32 & 0x03ff_ffff
    }
    /// B by a number of words.
    pub(crate) fn b(words: i32) -> u32 {
        0x1400_0000 | words as u32 & 0x03ff_ffff
    }

    /// Data behind the code; an `Err` is the address of the function of that index.
    pub(crate) fn with_data(mut linked: Linked, data: &[Result<u64, usize>]) -> Linked {
        linked
            .bytes
            .resize(linked.bytes.len().next_multiple_of(8), 0);
        for word in data {
            let word = word.unwrap_or_else(|index| linked.functions[index].address);
            linked.bytes.extend(word.to_le_bytes());
        }
        linked
    }

    fn names(linked: &Linked, graph: &Graph) -> Vec<String> {
        let name = |index: &usize| linked.functions[*index].name.clone();
        graph.nodes.keys().map(name).collect()
    }

    #[test]
    fn trait_objects_lead_to_the_method_that_the_code_loads() {
        let linked = made_up(&[
            ("caller", &[LDR_X8_24, BLR_X8, RET]),
            ("vague", &[BLR_X8, RET]),
            ("<A as t::T>::one", &[RET]),
            ("<A as t::T>::two", &[RET]),
            ("<B as t::T>::one", &[RET]),
            ("merged", &[RET]), // was <B as t::T>::two
            ("<A as t::Other>::one", &[RET]),
            ("drop", &[RET]),
        ]);
        let data = [
            (Err(7), [Err(2), Err(3)]),
            (Ok(0), [Err(4), Err(5)]),
            (Ok(0), [Err(6), Ok(0)]),
        ]
        .map(|(drop, [one, two])| [drop, Ok(8), Ok(8), one, two])
        .concat();
        let linked = with_data(linked, &data);
        let rules = Rules::parse("call caller => dyn t::T # it\ncall vague => dyn t::T # it");
        let rules = rules.expect("rules");
        let reach = |start| {
            let graph = Graph::reach(&linked, &rules, [start], &BTreeSet::new());
            assert!(graph.nodes[&start].unresolved.is_empty());
            names(&linked, &graph)
        };
        assert_eq!(reach(0), ["caller", "<A as t::T>::one", "<B as t::T>::one"]);
        let all = [
            "vague",
            "<A as t::T>::one",
            "<A as t::T>::two",
            "<B as t::T>::one",
            "merged",
            "drop",
        ];
        assert_eq!(reach(1), all);
        // No rule, or a rule of a trait that is not there, resolves nothing.
        for rules in ["", "call caller => dyn t::Absent # it"] {
            let rules = Rules::parse(rules).expect("rules");
            let graph = Graph::reach(&linked, &rules, [0], &BTreeSet::new());
            assert_eq!(graph.nodes[&0].unresolved, [linked.base + 4], "{rules:?}");
        }
    }

    #[test]
    fn taken_vtables_are_those_that_the_walk_points_to() {
        let linked = made_up(&[
            ("caller", &[0x1000_00c2, LDR_X8_24, BLR_X8, RET]), // adr x2, +24: the first vtable
            ("<A as t::T>::one", &[RET]),
            ("<B as t::T>::one", &[RET]),
        ]);
        let vtable = |one| [Ok(0), Ok(8), Ok(8), Err(one)];
        let linked = with_data(linked, &[vtable(1), vtable(2)].concat());
        let rules = Rules::parse("call caller => taken dyn t::T # it").expect("rules");
        let graph = Graph::reach(&linked, &rules, [0], &BTreeSet::new());
        assert_eq!(names(&linked, &graph), ["caller", "<A as t::T>::one"]);
    }

    #[test]
    fn the_offset_is_seen_in_straight_lines_only() {
        let offset = |words: &[u32]| {
            let linked = made_up(&[("f", words)]);
            Body::of(&linked, &linked.functions[0]).through[0].offset
        };
        assert_eq!(offset(&[LDR_X8_32, BLR_X8]), Some(32));
        assert_eq!(offset(&[LDR_X8_32, NOP, NOP, BLR_X8]), Some(32));
        assert_eq!(offset(&[LDR_X8_24, LDR_X8_32, BLR_X8]), Some(32));
        assert_eq!(offset(&[BLR_X8]), None);
        assert_eq!(
            offset(&[LDR_X8_32, bl(100), BLR_X8]),
            None,
            "x8 does not survive a call"
        );
        // b.eq +2 words, to the BLR: x8 may be another's.
        assert_eq!(offset(&[0x5400_0040, LDR_X8_32, BLR_X8]), None);
        assert_eq!(
            offset(&[LDR_X8_32, 0xaa00_03e8, BLR_X8]),
            None,
            "mov x8, x0"
        );
        assert_eq!(offset(&[0xf940_07e8, BLR_X8]), None, "ldr x8, [sp, #8]");
    }

    #[test]
    fn a_switch_is_no_call_and_a_tail_call_is_no_switch() {
        let through = |words: &[u32]| {
            let linked = made_up(&[("f", words)]);
            Body::of(&linked, &linked.functions[0]).through.len()
        };
        assert_eq!(through(&[ADR_X9, ADD_X9_X9_X10, BR_X9]), 0);
        assert_eq!(
            through(&[ADR_X9, 0xf940_0d29, BR_X9]),
            1,
            "ldr x9, [x9, #24]"
        );
        assert_eq!(through(&[RET]), 0);
    }

    #[test]
    fn pointers_lead_to_what_the_walk_takes() {
        let linked = made_up(&[
            ("caller", &[0x1000_0088, BLR_X8, bl(4), RET]), // adr x8, +16: taken::fmt
            ("taken::fmt", &[RET]),
            ("elsewhere::fmt", &[RET]),
            ("formats", &[0xd63f_0120, RET]), // blr x9
        ]);
        let text = "call caller => taken *::fmt # it\ncall formats => taken *::fmt # it";
        let rules = Rules::parse(text).expect("rules");
        let graph = Graph::reach(&linked, &rules, [0], &BTreeSet::new());
        assert_eq!(names(&linked, &graph), ["caller", "taken::fmt", "formats"]);
        let at = linked.functions[3].address;
        assert!(graph.nodes[&3].edges.contains(&Edge { at, to: 1 }));
        assert_eq!(graph.nodes[&3].from, Some(0));
    }

    #[test]
    fn a_name_outdoes_a_pattern() {
        let linked = made_up(&[("x::a", &[BLR_X8, RET]), ("x::b", &[BLR_X8, RET])]);
        let linked = with_data(linked, &[Ok(0), Ok(8), Ok(8), Err(0)]);
        let rules = Rules::parse("call x::* => dyn t::Absent # it\ncall x::b => nothing # it");
        let rules = rules.expect("rules");
        let graph = Graph::reach(&linked, &rules, [0, 1], &BTreeSet::new());
        assert_eq!(graph.nodes[&0].unresolved, [linked.base]);
        assert!(graph.nodes[&1].unresolved.is_empty());
    }

    #[test]
    fn allowed_calls_are_not_followed() {
        let linked = made_up(&[("a", &[bl(2), RET]), ("b", &[b(1)]), ("c", &[RET])]);
        let reach = |rules: &str| {
            let rules = Rules::parse(rules).expect("rules");
            names(
                &linked,
                &Graph::reach(&linked, &rules, [0], &BTreeSet::new()),
            )
        };
        assert_eq!(reach(""), ["a", "b", "c"]);
        assert_eq!(reach("allow b => c # why"), ["a", "b"]);
        assert_eq!(reach("allow a => c # another way"), ["a", "b", "c"]);
    }
}
