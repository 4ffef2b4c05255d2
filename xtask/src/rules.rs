// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rules of the hook path, read from linker/audit.rules: what it may not reach, and what is known that code does not say.
//!
//! A line is a kind, its operands, `#` and the reason; patterns are over demangled names, `*` for any characters, `?` before one:
//! it may match nothing.
//!
//! | line | meaning |
//! |---|---|
//! | `deny WHAT PATTERN` | the hook path may not reach this; WHAT says what it is, for the message |
//! | `call PATTERN => dyn TRAIT` | its branches through a register are to methods of this trait, by its vtables |
//! | `call PATTERN => taken dyn TRAIT` | they are to methods of this trait, by those vtables whose address the hook path takes |
//! | `call PATTERN => taken PATTERN` | they are to functions of these names whose address the hook path takes |
//! | `call PATTERN => helpers` | they are to helpers of BPF programs |
//! | `call PATTERN => nothing` | they leave the image, to the code of programs |
//! | `allow PATTERN => PATTERN` | this call is not followed |
//! | `allow PATTERN => PATTERN takes BYTES` | the same, and it takes at most so many bytes of stack |
//! | `wait PATTERN` | it has WFE, WFI, YIELD or ISB in it, and may |
//! | `depth PATTERN N` | it calls itself, by way of others too, and stands on a stack at most N times |
//! | `blocks PATTERN` | a program blocks by it: it reaches no function that may be hooked by one which blocks (kernel/src/targets.rs) |
//! | `stack PATTERN BYTES` | its frame is that large, which its code does not say |
//!
//! A `call` that names a function without `*` outdoes those that fit it by one.

use std::cell::Cell;
use std::rc::Rc;

use crate::glob::Glob;
use crate::linked::Linked;

/// Where the rules are, in the workspace.
pub(crate) const RULES: &str = "linker/audit.rules";

/// What is wrong with the rules.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RulesError {
    /// A line without a reason.
    #[error("{RULES}:{0}: there is no reason; end the line in `# why this holds`")]
    NoReason(usize),
    /// A line that means nothing.
    #[error(
        "{RULES}:{0}: {1:?} is no rule; one is `deny WHAT PATTERN`, `call PATTERN => dyn TRAIT | taken dyn TRAIT | taken PATTERN | helpers | nothing`, \
         `allow PATTERN => PATTERN [takes BYTES]`, `wait PATTERN`, `depth PATTERN N`, `blocks PATTERN` or `stack PATTERN BYTES`"
    )]
    Line(usize, String),
    /// A pattern that fits no function.
    #[error(
        "{RULES}:{line}: no function is called {pattern:?}; `cargo xtask sites --list` and `cargo xtask notrace` print names; correct or \
         delete the line, or write ?{pattern} if the function may be inlined everywhere"
    )]
    NoMatch { line: usize, pattern: String },
}

/// Where branches through a register lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Callees {
    /// To methods of a trait.
    Dyn(String),
    /// To methods of a trait, by vtables whose address is taken.
    TakenDyn(String),
    /// To functions whose address is taken.
    Taken(String),
    /// To helpers.
    Helpers,
    /// Out of the image.
    Nothing,
}

/// What a line says of the functions that its pattern fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// May not be reached: what it is.
    Deny(String),
    /// Calls these.
    Call(Callees),
    /// Calls what this pattern fits, and that is not followed; the bytes of stack that it takes.
    Allow(String, u64),
    /// May wait.
    Wait,
    /// Stands on a stack at most so often.
    Depth(u32),
    /// Has a frame of so many bytes.
    Stack(u64),
    /// Programs block by it.
    Blocks,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    line: usize,
    pub(crate) pattern: String,
    optional: bool,
    pub(crate) kind: Kind,
    pub(crate) reason: String,
    /// Whether an audit needed it; of all copies.
    pub(crate) used: Rc<Cell<bool>>,
}

/// All rules.
#[derive(Debug, Default)]
pub(crate) struct Rules(pub(crate) Vec<Rule>);

fn kind(word: &str, rest: &str) -> Option<(String, Kind)> {
    let two = |rest: &str| {
        rest.split_once(" => ")
            .map(|(a, b)| (a.trim().to_owned(), b.trim().to_owned()))
    };
    let number = |rest: &str| {
        rest.rsplit_once(' ')
            .map(|(a, b)| (a.trim().to_owned(), b.to_owned()))
    };
    Some(match word {
        "deny" => {
            let (what, pattern) = rest.split_once(' ')?;
            (pattern.trim().to_owned(), Kind::Deny(what.to_owned()))
        }
        "call" => {
            let (pattern, callees) = two(rest)?;
            let callees = match callees.split_once(' ') {
                Some(("dyn", name)) => Callees::Dyn(name.trim().to_owned()),
                Some(("taken", what)) => match what.trim().split_once(' ') {
                    Some(("dyn", name)) => Callees::TakenDyn(name.trim().to_owned()),
                    _ => Callees::Taken(what.trim().to_owned()),
                },
                None if callees == "helpers" => Callees::Helpers,
                None if callees == "nothing" => Callees::Nothing,
                _ => return None,
            };
            (pattern, Kind::Call(callees))
        }
        "allow" => {
            let (pattern, callee) = two(rest)?;
            match callee.rsplit_once(" takes ") {
                Some((callee, bytes)) => (
                    pattern,
                    Kind::Allow(callee.trim().to_owned(), bytes.parse().ok()?),
                ),
                None => (pattern, Kind::Allow(callee, 0)),
            }
        }
        "wait" => (rest.to_owned(), Kind::Wait),
        "blocks" => (rest.to_owned(), Kind::Blocks),
        "depth" => {
            let (pattern, times) = number(rest)?;
            (pattern, Kind::Depth(times.parse().ok()?))
        }
        "stack" => {
            let (pattern, bytes) = number(rest)?;
            (pattern, Kind::Stack(bytes.parse().ok()?))
        }
        _ => return None,
    })
}

impl Rules {
    /// Reads the file.
    pub(crate) fn parse(text: &str) -> Result<Self, RulesError> {
        let mut rules = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let (rule, reason) = text.split_once('#').unwrap_or((text, ""));
            let (rule, reason) = (rule.trim(), reason.trim());
            let line = index + 1;
            if rule.is_empty() {
                continue;
            }
            if reason.is_empty() {
                return Err(RulesError::NoReason(line));
            }
            let bad = || RulesError::Line(line, rule.to_owned());
            let (word, rest) = rule.split_once(' ').ok_or_else(bad)?;
            let (pattern, kind) = kind(word, rest.trim()).ok_or_else(bad)?;
            let optional = pattern.starts_with('?');
            let pattern = pattern.trim_start_matches('?').to_owned();
            if pattern.is_empty() {
                return Err(bad());
            }
            rules.push(Rule {
                line,
                pattern,
                optional,
                kind,
                reason: reason.to_owned(),
                used: Rc::default(),
            });
        }
        Ok(Self(rules))
    }

    /// That every pattern fits a function.
    pub(crate) fn check(&self, linked: &Linked) -> Result<(), RulesError> {
        let fits = |rule: &&Rule| {
            linked
                .functions
                .iter()
                .any(|f| Glob::new(&rule.pattern).fits(f.name.as_bytes()))
        };
        match self.0.iter().find(|rule| !rule.optional && !fits(rule)) {
            None => Ok(()),
            Some(rule) => Err(RulesError::NoMatch {
                line: rule.line,
                pattern: rule.pattern.clone(),
            }),
        }
    }

    /// What is said of function `index`, by any of its names. Whoever makes use of a rule marks it.
    pub(crate) fn of(&self, linked: &Linked, index: usize) -> impl Iterator<Item = &Rule> {
        self.0.iter().filter(move |rule| {
            linked
                .names(index)
                .any(|name| Glob::new(&rule.pattern).fits(name.as_bytes()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linked::tests::made_up;

    #[test]
    fn rules_are_read() {
        let text = "# a comment\n\ndeny allocator __rust_alloc* # it takes a lock\n\
            call <a::B as c::D>::e => dyn f::G # it\ncall ?x => taken *fmt # it\ncall x => taken dyn f::G # it\ncall x => helpers # it\ncall x => nothing # it\n\
            allow a => b* # never\nallow a => c takes 64 # never\nwait w # bounded\ndepth d 3 # it\nstack s 128 # it\nblocks p # it\n";
        let rules = Rules::parse(text).expect("rules").0;
        let kinds: Vec<_> = rules
            .iter()
            .map(|r| (r.pattern.as_str(), r.kind.clone()))
            .collect();
        assert_eq!(
            kinds,
            [
                ("__rust_alloc*", Kind::Deny("allocator".into())),
                ("<a::B as c::D>::e", Kind::Call(Callees::Dyn("f::G".into()))),
                ("x", Kind::Call(Callees::Taken("*fmt".into()))),
                ("x", Kind::Call(Callees::TakenDyn("f::G".into()))),
                ("x", Kind::Call(Callees::Helpers)),
                ("x", Kind::Call(Callees::Nothing)),
                ("a", Kind::Allow("b*".into(), 0)),
                ("a", Kind::Allow("c".into(), 64)),
                ("w", Kind::Wait),
                ("d", Kind::Depth(3)),
                ("s", Kind::Stack(128)),
                ("p", Kind::Blocks),
            ]
        );
        assert!(rules[2].optional && !rules[3].optional);
        assert_eq!((rules[10].line, rules[10].reason.as_str()), (13, "it"));
    }

    #[test]
    fn bad_rules_name_their_line() {
        assert_eq!(
            Rules::parse("\nwait a").err(),
            Some(RulesError::NoReason(2))
        );
        for line in [
            "wait",
            "deny a",
            "call a",
            "call a => b",
            "call a => dyn",
            "allow a => b takes c",
            "depth a",
            "depth a b",
            "stack a -1",
            "permit a",
            "blocks ?",
            "wait ?",
        ] {
            let text = format!("{line} # why");
            assert_eq!(
                Rules::parse(&text).err(),
                Some(RulesError::Line(1, line.into())),
                "{line}"
            );
        }
        let linked = made_up(&[("a", &[1])]);
        let check = |text| Rules::parse(text).expect("rules").check(&linked);
        assert_eq!(check("wait a # it\nwait ?b # gone"), Ok(()));
        let missing = RulesError::NoMatch {
            line: 1,
            pattern: "b".into(),
        };
        assert_eq!(check("wait b # gone"), Err(missing));
    }
}
