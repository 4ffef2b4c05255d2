// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a program attaches to, as its section's name says it (libbpf's "program types and ELF sections").
#![forbid(unsafe_code)]

use core::fmt;

/// How a program is entered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum AttachKind {
    /// At a function's entry, by its trampoline.
    Fentry,
    /// When a function has returned, by its trampoline.
    Fexit,
    /// Before a function, which it may skip.
    FmodRet,
    /// Both at a function's entry and when it has returned.
    Fsession,
    /// In place of a function, another program's or the kernel's.
    Freplace,
    /// At an instruction.
    Kprobe,
    /// When a function has returned, by its return address.
    Kretprobe,
    /// At the entry of many functions.
    KprobeMulti,
    /// When one of many functions has returned.
    KretprobeMulti,
}

/// Section names up to the target: `NAME`, the kind, whether the program may sleep.
static NAMES: &[(&str, AttachKind, bool)] = &[
    ("fentry", AttachKind::Fentry, false),
    ("fentry.s", AttachKind::Fentry, true),
    ("fexit", AttachKind::Fexit, false),
    ("fexit.s", AttachKind::Fexit, true),
    ("fmod_ret", AttachKind::FmodRet, false),
    ("fmod_ret.s", AttachKind::FmodRet, true),
    ("fsession", AttachKind::Fsession, false),
    ("fsession.s", AttachKind::Fsession, true),
    ("freplace", AttachKind::Freplace, false),
    ("freplace.s", AttachKind::Freplace, true),
    ("kprobe", AttachKind::Kprobe, false),
    ("kretprobe", AttachKind::Kretprobe, false),
    ("kprobe.multi", AttachKind::KprobeMulti, false),
    ("kretprobe.multi", AttachKind::KretprobeMulti, false),
];

/// What a section's name asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachPoint<'a> {
    /// How the program is entered.
    pub kind: AttachKind,
    /// Whether it may sleep.
    pub sleepable: bool,
    /// The function (for a kprobe perhaps `FUNCTION+OFFSET`), if the name has one.
    pub target: Option<&'a str>,
}

impl<'a> AttachPoint<'a> {
    /// Reads a section's name: `fentry/FUNCTION`, `kprobe.multi/PATTERN`, `fexit`, ...
    ///
    /// A `?` before it has libbpf leave the program out until it is asked for by name. Here it says nothing more than the
    /// rest: a program waits until it is attached by name in any case.
    pub fn parse(section: &'a str) -> Result<Self, UnknownSection<'a>> {
        let text = section.strip_prefix('?').unwrap_or(section);
        let (name, target) = match text.split_once('/') {
            Some((name, target)) => (name, Some(target).filter(|target| !target.is_empty())),
            None => (text, None),
        };
        let row = NAMES.iter().find(|(known, ..)| *known == name);
        let (_, kind, sleepable) = *row.ok_or(UnknownSection { section })?;
        Ok(Self {
            kind,
            sleepable,
            target,
        })
    }
}

/// A section name that says nothing known about how to attach its programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownSection<'a> {
    /// The name.
    pub section: &'a str,
}

impl fmt::Display for UnknownSection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "section `{}` names no known attachment; known are",
            self.section
        )?;
        for (index, (name, ..)) in NAMES.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {name}/FUNCTION")?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownSection<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_names() {
        for (section, want) in [
            ("fentry/f", Some((AttachKind::Fentry, false, Some("f")))),
            ("fexit.s/f", Some((AttachKind::Fexit, true, Some("f")))),
            (
                "kprobe.multi/a/*",
                Some((AttachKind::KprobeMulti, false, Some("a/*"))),
            ),
            ("fmod_ret", Some((AttachKind::FmodRet, false, None))),
            ("fentry/", Some((AttachKind::Fentry, false, None))),
            (
                "?kprobe/f+4",
                Some((AttachKind::Kprobe, false, Some("f+4"))),
            ),
            ("?fentry.s", Some((AttachKind::Fentry, true, None))),
            ("??fentry/f", None),
            ("?", None),
            ("fentryx/f", None),
            ("xdp", None),
            ("", None),
        ] {
            let got = AttachPoint::parse(section).ok();
            let got = got.map(|point| (point.kind, point.sleepable, point.target));
            assert_eq!(got, want, "{section}");
        }
        let message = alloc::string::ToString::to_string(&UnknownSection { section: "xdp" });
        assert!(message.contains("`xdp`") && message.contains("are fentry/FUNCTION, fentry.s/"));
    }
}
