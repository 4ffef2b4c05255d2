// SPDX-License-Identifier: MIT OR Apache-2.0
//! The serial console seen from the host: plain text from a terminal's bytes, the line that ends a run, transcripts.

use crate::workspace::KERNEL;

/// Turns a terminal's bytes into plain text: no carriage returns, no control sequences (ECMA-48 5.4: ESC [ … letter).
#[derive(Debug, Default)]
pub(crate) struct Plain {
    state: State,
    /// Bytes of a character that is not complete yet.
    pending: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    Sequence,
}

impl Plain {
    /// Appends the text of `bytes` to `text`; what is not UTF-8 becomes U+FFFD.
    pub(crate) fn read(&mut self, bytes: &[u8], text: &mut String) {
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (State::Text, 0x1b) => State::Escape,
                (State::Text, b'\r' | 0x07) => State::Text,
                (State::Text, _) => {
                    self.pending.push(byte);
                    State::Text
                }
                (State::Escape, b'[') => State::Sequence,
                (State::Escape, _) => State::Text,
                (State::Sequence, 0x40..=0x7e) => State::Text,
                (State::Sequence, _) => State::Sequence,
            };
        }
        let complete = match std::str::from_utf8(&self.pending) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.pending.len(),
        };
        let rest = self.pending.split_off(complete);
        text.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending = rest;
    }
}

/// The exit status in a run's last line, `springboard: exit N`.
pub(crate) fn exit_status(line: &str) -> Option<i32> {
    let rest = line.trim().strip_prefix(KERNEL)?;
    rest.strip_prefix(": exit ")?.parse().ok()
}

/// What a test types and expects. One a line, blank lines and `# comments` aside:
///
/// | line | meaning |
/// |---|---|
/// | `run OPTIONS` | the machine, as for `cargo xtask run`; words behind `--` go to the kernel command line |
/// | `prompt TEXT` | what the shell prints when it waits for a command |
/// | `> TEXT` | wait for the prompt, then type TEXT and Enter; `\e`, `\t`, `\xNN` stand for those bytes |
/// | `< TEXT` | TEXT appears in what follows; several appear in this order |
/// | `! TEXT` | TEXT does not appear before the next prompt, or the end |
/// | `exit N` | the run ends with this status |
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Transcript {
    /// Options of the machine and words of the command line.
    pub(crate) options: Vec<String>,
    /// The prompt.
    pub(crate) prompt: String,
    /// What is expected before the first command.
    pub(crate) first: Exchange,
    /// Commands and what is expected of each.
    pub(crate) commands: Vec<(String, Exchange)>,
    /// The status at the end.
    pub(crate) exit: i32,
}

/// What is expected after a command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Exchange {
    /// Texts that appear, in order.
    pub(crate) expected: Vec<String>,
    /// Texts that do not.
    pub(crate) refused: Vec<String>,
}

/// A line of a transcript that means nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TranscriptError {
    /// An unknown first word.
    #[error("line {0}: {1:?} begins with none of run, prompt, exit, >, <, !, #")]
    Line(usize, String),
    /// No prompt, although something is typed.
    #[error("there is a line `> …` and none `prompt TEXT`")]
    NoPrompt,
}

impl Transcript {
    /// Reads a transcript.
    pub(crate) fn parse(text: &str) -> Result<Self, TranscriptError> {
        let mut transcript = Self::default();
        for (index, line) in text.lines().enumerate() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let bad = || TranscriptError::Line(index + 1, line.to_owned());
            let exchange = match transcript.commands.last_mut() {
                Some((_, exchange)) => exchange,
                None => &mut transcript.first,
            };
            match word {
                "" if rest.trim().is_empty() => {}
                comment if comment.starts_with('#') => {}
                "run" => transcript.options = rest.split_whitespace().map(str::to_owned).collect(),
                "prompt" => transcript.prompt = rest.to_owned(),
                ">" => transcript
                    .commands
                    .push((unescape(rest), Exchange::default())),
                "<" => exchange.expected.push(rest.to_owned()),
                "!" => exchange.refused.push(rest.to_owned()),
                "exit" => transcript.exit = rest.trim().parse().map_err(|_| bad())?,
                _ => return Err(bad()),
            }
        }
        match transcript.prompt.is_empty() && !transcript.commands.is_empty() {
            true => Err(TranscriptError::NoPrompt),
            false => Ok(transcript),
        }
    }
}

/// `\e`, `\t`, `\\`, `\xNN` as the characters they stand for; anything else as it is.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.strip_prefix('x').and_then(|hex| hex.get(..2));
        let code = code.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let (character, length) = match (after.chars().next(), code) {
            (_, Some(code)) => (char::from(code), 3),
            (Some('e'), _) => ('\x1b', 1),
            (Some('t'), _) => ('\t', 1),
            (Some('\\'), _) => ('\\', 1),
            _ => ('\\', 0),
        };
        out.push(character);
        rest = after.get(length..).unwrap_or_default();
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_become_text() {
        let mut plain = Plain::default();
        let mut text = String::new();
        let bytes = "a\r\n\x1b[1;31mré\x1b[0m\x1b[2Kd\x1b7\x07é".as_bytes();
        for byte in bytes {
            plain.read(&[*byte], &mut text);
        }
        assert_eq!(text, "a\nrédé");
        plain.read(b"\xff!", &mut text);
        assert_eq!(text, "a\nrédé\u{fffd}!");
    }

    #[test]
    fn the_last_line_is_known() {
        assert_eq!(exit_status("springboard: exit 0"), Some(0));
        assert_eq!(exit_status("springboard: exit 101\r"), Some(101));
        assert_eq!(exit_status("springboard: exit"), None);
        assert_eq!(exit_status("say springboard: exit 0"), None);
    }

    #[test]
    fn transcripts_are_read() {
        let text = "# a test\nrun --cpus 2 -- shell\nprompt sb> \n< ready\n\n> help\n< attach\n< detach\n! panic\n> \\x03\\e[A\nexit 3\n";
        let transcript = Transcript::parse(text).expect("transcript");
        assert_eq!(transcript.options, ["--cpus", "2", "--", "shell"]);
        assert_eq!((transcript.prompt.as_str(), transcript.exit), ("sb> ", 3));
        assert_eq!(transcript.first.expected, ["ready"]);
        assert_eq!(transcript.commands[0].0, "help");
        assert_eq!(transcript.commands[0].1.expected, ["attach", "detach"]);
        assert_eq!(transcript.commands[0].1.refused, ["panic"]);
        assert_eq!(transcript.commands[1].0, "\x03\x1b[A");
        assert_eq!(
            Transcript::parse("type x"),
            Err(TranscriptError::Line(1, "type x".into()))
        );
        assert_eq!(Transcript::parse("> x"), Err(TranscriptError::NoPrompt));
    }

    #[test]
    fn escapes_stand_for_bytes() {
        for (text, plain) in [
            ("a\\tb", "a\tb"),
            ("\\\\x41", "\\x41"),
            ("\\x41", "A"),
            ("\\xz", "\\xz"),
            ("end\\", "end\\"),
        ] {
            assert_eq!(unescape(text), plain, "{text:?}");
        }
    }
}

/// The shell's line editor, which is pure: its tests run here, on the host.
#[cfg(test)]
#[path = "../../kernel/src/shell/line.rs"]
mod line;
