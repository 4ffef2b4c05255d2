// SPDX-License-Identifier: MIT OR Apache-2.0
//! The notrace set: everything the hook path reaches by direct branches, from the roots in linker/notrace.roots.
//!
//! A function that runs as part of a hook must not be hooked itself. The file lists roots, one a line: a pattern over
//! demangled names (`*` for any characters), `#`, and the reason. `?` before a pattern: it may match nothing. `!` before it: what
//! it names is not followed, for example the panic entries, which end the run. The rest follows from the linked image: BL, B, B.cond, CBZ, CBNZ, TBZ, TBNZ from one function to another. Branches through a register are
//! not followed; `cargo xtask notrace` lists them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ksyms::glob;
use crate::linked::{Function, Linked};

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

/// The notrace set of a kernel, by index into [`Linked::functions`].
#[derive(Debug, Default)]
pub(crate) struct Notrace {
    /// The members and why they are.
    pub(crate) members: BTreeMap<usize, Why>,
    /// Where the walk ends: these are followed no further.
    stops: BTreeSet<usize>,
    /// Branches through a register in members: the function and the instruction's address.
    pub(crate) not_followed: Vec<(usize, u64)>,
}

impl Notrace {
    /// Whether function `index` belongs to the set.
    pub(crate) fn contains(&self, index: usize) -> bool {
        self.members.contains_key(&index)
    }

    /// Follows direct branches from the roots until nothing new turns up.
    pub(crate) fn compute(linked: &Linked, roots: &[Root]) -> Result<Self, RootsError> {
        let mut set = Self::default();
        let mut queue = VecDeque::new();
        // Those that end the walk first, so that no order of lines matters.
        let (stops, starts): (Vec<_>, Vec<_>) = roots.iter().partition(|root| root.stop);
        for root in stops.into_iter().chain(starts) {
            let matches = linked.functions.iter().enumerate();
            let mut matches = matches
                .filter(|(_, f)| glob(&root.pattern, &f.name))
                .peekable();
            if matches.peek().is_none() && !root.optional {
                let (line, pattern) = (root.line, root.pattern.clone());
                return Err(RootsError::NoMatch { line, pattern });
            }
            for (index, _) in matches {
                if root.stop {
                    set.stops.insert(index);
                    continue;
                }
                set.add(linked, index, Why::Root(root.reason.clone()), &mut queue);
            }
        }
        while let Some(index) = queue.pop_front() {
            let Some(function) = linked.functions.get(index) else {
                continue;
            };
            for target in branches_out(linked, function) {
                if let Some(callee) = linked.containing(target) {
                    set.add(linked, callee, Why::Caller(index), &mut queue);
                }
            }
            let indirect = indirect_branches(linked, function);
            set.not_followed.extend(indirect.map(|at| (index, at)));
        }
        Ok(set)
    }

    /// Adds a function, and all others that the linker put at its address.
    fn add(&mut self, linked: &Linked, index: usize, why: Why, queue: &mut VecDeque<usize>) {
        let Some(address) = linked.functions.get(index).map(|f| f.address) else {
            return;
        };
        let first = linked.functions.partition_point(|f| f.address < address);
        let after = linked.functions.partition_point(|f| f.address <= address);
        for index in first..after {
            if !self.contains(index) && !self.stops.contains(&index) {
                self.members.insert(index, why.clone());
                queue.push_back(index);
            }
        }
    }
}

/// Where a function's direct branches lead, outside the function itself.
fn branches_out(linked: &Linked, function: &Function) -> impl Iterator<Item = u64> {
    let own = function.range();
    linked
        .instructions(function)
        .filter_map(|(pc, word)| branch_target(word, pc))
        .filter(move |target| !own.contains(target))
}

/// Where a direct branch leads.
fn branch_target(word: u32, pc: u64) -> Option<u64> {
    a64::relocate::branch_target(word, pc)
}

/// How many instructions before a BR its jump table's ADR or ADRP may be.
const TABLE_DISTANCE: usize = 8;

/// The addresses of branches through a register, without those of switch tables (an ADR close before a BR).
fn indirect_branches(linked: &Linked, function: &Function) -> impl Iterator<Item = u64> {
    let code: Vec<_> = linked.instructions(function).collect();
    (0..code.len()).filter_map(move |i| {
        let (pc, word) = *code.get(i)?;
        let before = code.get(i.saturating_sub(TABLE_DISTANCE)..i)?;
        // Arm ARM C4.1.66: BLR is 1101011000111111000000nnnnn00000, BR the same with bit 21 clear; ADR has bits 28:24 10000.
        let call = word & 0xffff_fc1f == 0xd63f_0000;
        let jump = word & 0xffff_fc1f == 0xd61f_0000;
        let table = before.iter().any(|(_, w)| w & 0x9f00_0000 == 0x1000_0000);
        (call || jump && !table).then_some(pc)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linked::NOP;
    use crate::linked::tests::made_up;

    const RET: u32 = 0xd65f_03c0;
    const BLR_X8: u32 = 0xd63f_0100;
    const BR_X9: u32 = 0xd61f_0120;
    const ADR_X9: u32 = 0x1000_0009;

    /// BL or B by a number of words.
    fn bl(words: i32) -> u32 {
        0x9400_0000 | words as u32 & 0x03ff_ffff
    }
    fn b(words: i32) -> u32 {
        0x1400_0000 | words as u32 & 0x03ff_ffff
    }

    #[test]
    fn the_set_is_what_direct_branches_reach() {
        let linked = made_up(&[
            ("hook::enter", &[NOP, NOP, bl(4), b(4), RET]), // 0..5: calls 6, jumps to 7
            ("x::unrelated", &[RET]),                       // 5
            ("hook::helper", &[RET]),                       // 6
            ("tail::target", &[0x5400_0041, RET, BLR_X8]),  // 7..10: b.ne to 15
            ("switch", &[ADR_X9, NOP, BR_X9, b(-1)]),       // 10..14
            ("through::pointer", &[RET]),                   // 14
            ("condition", &[RET, BR_X9]),                   // 15
        ]);
        // b.ne +8 words from word 7.
        let mut linked = linked;
        linked.bytes[7 * 4..8 * 4].copy_from_slice(&(0x5400_0001_u32 | 8 << 5).to_le_bytes());
        let roots = parse_roots("# comment\nhook::ent* # it is the hook\n\n?gone # inlined\n")
            .expect("roots");
        let set = Notrace::compute(&linked, &roots).expect("set");
        let members: Vec<_> = set.members.keys().copied().collect();
        assert_eq!(members, [0, 2, 3, 6]);
        assert_eq!(set.members[&0], Why::Root("it is the hook".into()));
        assert_eq!(set.members[&6], Why::Caller(3));
        assert_eq!(
            set.not_followed,
            [(3, linked.base + 9 * 4), (6, linked.base + 16 * 4)]
        );
        let all = Notrace::compute(&linked, &parse_roots("* # all").expect("roots"));
        let all = all.expect("set").not_followed;
        assert!(all.iter().all(|(f, _)| *f != 4), "a switch is no call");
    }

    #[test]
    fn the_walk_ends_where_it_is_told_to() {
        let linked = made_up(&[
            ("hook", &[bl(2), RET]),  // 0..2: calls 2
            ("panic", &[bl(2), RET]), // 2..4: calls 4
            ("report", &[RET]),       // 4
        ]);
        let members = |roots| {
            let roots = parse_roots(roots).expect("roots");
            let set = Notrace::compute(&linked, &roots).expect("set");
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
        let roots = parse_roots("\nnobody* # gone").expect("roots");
        let error = Notrace::compute(&linked, &roots).expect_err("no match");
        assert_eq!(
            error,
            RootsError::NoMatch {
                line: 2,
                pattern: "nobody*".into()
            }
        );
    }
}
