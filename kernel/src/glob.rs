// SPDX-License-Identifier: MIT OR Apache-2.0
//! Patterns of names, in which `*` stands for any characters, none and `::` included.
//!
//! A pattern is taken apart once, and then tried on thousands of names. Pure: `xtask` includes this file for its rules.

use alloc::vec::Vec;
use memchr::memmem::{Finder, FinderBuilder, Prefilter};

/// A pattern of names.
pub(crate) struct Glob<'p> {
    /// What stands before the first star; the whole name, if there is none.
    start: &'p [u8],
    /// What stands between two stars, in this order.
    middle: Vec<Finder<'p>>,
    /// What stands behind the last star, if there is one.
    end: Option<&'p [u8]>,
}

impl<'p> Glob<'p> {
    /// The pattern that `text` is; any text is one.
    pub(crate) fn new(text: &'p str) -> Self {
        let mut parts = text.split('*').map(str::as_bytes);
        let start = parts.next().unwrap_or_default();
        let end = parts.next_back();
        // Names are short, and what makes a byte rare in other texts does not in these (colons): no search for a rare one first.
        let mut finder = FinderBuilder::new();
        finder.prefilter(Prefilter::None);
        let parts = parts.filter(|part| !part.is_empty());
        let middle = parts.map(|part| finder.build_forward(part));
        Self {
            start,
            middle: middle.collect(),
            end,
        }
    }

    /// Whether `name` fits.
    pub(crate) fn fits(&self, name: &[u8]) -> bool {
        let Some(rest) = name.strip_prefix(self.start) else {
            return false;
        };
        let Some(end) = self.end else {
            return rest.is_empty();
        };
        let Some(mut rest) = rest.strip_suffix(end) else {
            return false;
        };
        // The first place of each is the best: it leaves the most for those behind it.
        self.middle.iter().all(|part| {
            let behind = part.find(rest).map(|at| at + part.needle().len());
            match behind.and_then(|behind| rest.get(behind..)) {
                Some(behind) => {
                    rest = behind;
                    true
                }
                None => false,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_names() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("**", "a", true),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("a*c", "acd", false),
            ("a*a", "a", false),
            ("*a*a", "ba", false),
            ("*::process", "tcp::Socket::process", true),
            ("*b*b*", "abab", true),
            ("*b*b*b*", "abab", false),
            ("*ab*ba*", "aba", false),
            ("*ab*ba*", "abba", true),
            ("abc", "abcd", false),
            ("abcd", "abc", false),
            ("*lookup*", "a lookout, then a lookup", true),
        ] {
            assert_eq!(
                Glob::new(pattern).fits(text.as_bytes()),
                fits,
                "{pattern:?} on {text:?}"
            );
        }
    }
}
