// SPDX-License-Identifier: MIT OR Apache-2.0
//! The line editor: bytes of a terminal in, lines and echo out; history and completion. No input or output of its own.
//!
//! A line is printable ASCII. What is on the screen never wraps: of a long line the part around the cursor is shown.
//! Escape sequences are those of ECMA-48 that terminals send for the cursor keys.

extern crate alloc;

use self::alloc::collections::VecDeque;
use self::alloc::string::String;
use self::alloc::vec::Vec;
use core::fmt::{Result, Write};

/// Columns that every terminal has, the last left free so that the cursor never wraps.
const COLUMNS: usize = 79;
/// Most bytes in a line.
const LONGEST: usize = 1000;
/// Lines that are remembered.
const REMEMBERED: usize = 16;
/// Most candidates of a completion that are listed.
const LISTED: usize = 40;

/// What a key led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The line goes on.
    More,
    /// Enter: the line is done.
    Line(String),
    /// ^C: the line was thrown away.
    Interrupted,
}

/// Where in an escape sequence the input is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    /// After ESC.
    Started,
    /// After `ESC [` or `ESC O`, and the number read so far.
    Sequence(u8),
}

/// What can be done to a line, by one key.
#[derive(Clone, Copy)]
enum Edit {
    Left,
    Right,
    Home,
    End,
    Backspace,
    Delete,
    CutToStart,
    CutToEnd,
    CutWord,
    Older,
    Newer,
    Clear,
}

/// Control characters that edit, as in Emacs and GNU readline.
const CONTROLS: [(u8, Edit); 14] = [
    (0x01, Edit::Home),       // ^A
    (0x02, Edit::Left),       // ^B
    (0x04, Edit::Delete),     // ^D
    (0x05, Edit::End),        // ^E
    (0x06, Edit::Right),      // ^F
    (0x08, Edit::Backspace),  // ^H
    (0x7f, Edit::Backspace),  // DEL: what the backspace key sends
    (0x0b, Edit::CutToEnd),   // ^K
    (0x0c, Edit::Clear),      // ^L
    (0x0e, Edit::Newer),      // ^N
    (0x10, Edit::Older),      // ^P
    (0x15, Edit::CutToStart), // ^U
    (0x17, Edit::CutWord),    // ^W
    (0x1f, Edit::Backspace),  // ^_: shift and backspace on some terminals
];

/// Sequences behind `ESC [` or `ESC O`: number (0 for none) and final byte.
const SEQUENCES: [(u8, u8, Edit); 11] = [
    (0, b'A', Edit::Older),
    (0, b'B', Edit::Newer),
    (0, b'C', Edit::Right),
    (0, b'D', Edit::Left),
    (0, b'H', Edit::Home),
    (0, b'F', Edit::End),
    (1, b'~', Edit::Home),
    (3, b'~', Edit::Delete),
    (4, b'~', Edit::End),
    (7, b'~', Edit::Home),
    (8, b'~', Edit::End),
];

/// The editor and the line in it.
pub(crate) struct Editor {
    prompt: &'static str,
    line: String,
    /// Byte of the line that the cursor is on; the line is ASCII, so it is also the column.
    cursor: usize,
    /// First byte of the line on the screen.
    shown: usize,
    escape: Escape,
    /// The last byte was a CR: an LF behind it belongs to it.
    after_cr: bool,
    history: VecDeque<String>,
    /// How far back in the history the line is, 0 for a new one.
    back: usize,
    /// The new line, while an older one is shown.
    draft: String,
}

impl Editor {
    /// An editor with an empty line and no history; the prompt is printable ASCII and not empty.
    pub(crate) const fn new(prompt: &'static str) -> Editor {
        Editor {
            prompt,
            line: String::new(),
            cursor: 0,
            shown: 0,
            escape: Escape::None,
            after_cr: false,
            history: VecDeque::new(),
            back: 0,
            draft: String::new(),
        }
    }

    /// Prints the prompt, and the line if there is one.
    ///
    /// # Errors
    /// Those of `out`, here and below.
    pub(crate) fn show(&mut self, out: &mut dyn Write) -> Result {
        out.write_char('\r')?;
        out.write_str(self.prompt)?;
        self.draw(out)
    }

    /// Prints the line behind the prompt that is on the screen, and puts the cursor where it belongs.
    fn draw(&mut self, out: &mut dyn Write) -> Result {
        // One column is kept free behind the line for the cursor.
        let room = COLUMNS.saturating_sub(self.prompt.len() + 1).max(1);
        self.shown = self.shown.min(self.cursor);
        self.shown = self.shown.max(self.cursor.saturating_sub(room));
        let visible = self.line.get(self.shown..).unwrap_or_default();
        let visible = visible.get(..room).unwrap_or(visible);
        // Cursor behind the prompt (CR, CUF), text, erase to the end of the line (EL), cursor back (CUB).
        write!(out, "\r\x1b[{}C{visible}\x1b[K", self.prompt.len())?;
        match visible.len() + self.shown - self.cursor {
            0 => Ok(()),
            back => write!(out, "\x1b[{back}D"),
        }
    }

    /// Takes one byte of input. `complete` gets the line up to the cursor and returns how many of its last bytes are the
    /// word to complete, and what that word could become.
    pub(crate) fn key(
        &mut self,
        byte: u8,
        out: &mut dyn Write,
        complete: &dyn Fn(&str) -> (usize, Vec<String>),
    ) -> core::result::Result<Event, core::fmt::Error> {
        let after_cr = core::mem::replace(&mut self.after_cr, byte == b'\r');
        match (self.escape, byte) {
            (_, 0x1b) => self.escape = Escape::Started,
            (Escape::Started, b'[' | b'O') => self.escape = Escape::Sequence(0),
            (Escape::Started, _) => self.escape = Escape::None,
            (Escape::Sequence(number), b'0'..=b'9') => {
                self.escape =
                    Escape::Sequence(number.saturating_mul(10).saturating_add(byte - b'0'));
            }
            // Parameters and intermediate bytes that no key here uses; a final byte or anything else ends the sequence.
            (Escape::Sequence(_), 0x20..=0x3f) => {}
            (Escape::Sequence(number), _) => {
                self.escape = Escape::None;
                let found = SEQUENCES
                    .iter()
                    .find(|(n, last, _)| (*n, *last) == (number, byte));
                if let Some((_, _, edit)) = found {
                    self.edit(*edit, out)?;
                }
            }
            (Escape::None, b'\n') if after_cr => {}
            (Escape::None, b'\r' | b'\n') => return self.enter(out).map(Event::Line),
            (Escape::None, 0x03) => {
                out.write_str("^C\n")?;
                self.reset();
                return Ok(Event::Interrupted);
            }
            (Escape::None, b'\t') => self.complete(out, complete)?,
            (Escape::None, 0x20..=0x7e) => self.insert(&[byte], out)?,
            (Escape::None, _) => match CONTROLS.iter().find(|(control, _)| *control == byte) {
                Some((_, edit)) => self.edit(*edit, out)?,
                None => out.write_char('\x07')?,
            },
        }
        Ok(Event::More)
    }

    fn reset(&mut self) {
        self.line.clear();
        (self.cursor, self.shown, self.back) = (0, 0, 0);
    }

    fn enter(&mut self, out: &mut dyn Write) -> core::result::Result<String, core::fmt::Error> {
        out.write_char('\n')?;
        let line = core::mem::take(&mut self.line);
        self.reset();
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == REMEMBERED {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        Ok(line)
    }

    /// Puts printable ASCII where the cursor is; a full line takes nothing and rings the bell.
    fn insert(&mut self, text: &[u8], out: &mut dyn Write) -> Result {
        let Ok(text) = core::str::from_utf8(text) else {
            return Ok(());
        };
        if self.line.len() + text.len() > LONGEST {
            return out.write_char('\x07');
        }
        self.line.insert_str(self.cursor, text);
        self.cursor += text.len();
        let fits = self.prompt.len() + self.line.len() - self.shown < COLUMNS;
        match self.cursor == self.line.len() && fits {
            true => out.write_str(text),
            false => self.draw(out),
        }
    }

    /// Removes what lies between the cursor and `to`, on either side of it.
    fn cut(&mut self, to: usize) {
        let (start, end) = (
            self.cursor.min(to),
            self.cursor.max(to).min(self.line.len()),
        );
        self.line.drain(start..end);
        self.cursor = start;
    }

    fn edit(&mut self, edit: Edit, out: &mut dyn Write) -> Result {
        let end = self.line.len();
        match edit {
            Edit::Left => self.cursor = self.cursor.saturating_sub(1),
            Edit::Right => self.cursor = (self.cursor + 1).min(end),
            Edit::Home => self.cursor = 0,
            Edit::End => self.cursor = end,
            Edit::Backspace => self.cut(self.cursor.saturating_sub(1)),
            Edit::Delete => self.cut((self.cursor + 1).min(end)),
            Edit::CutToStart => self.cut(0),
            Edit::CutToEnd => self.cut(end),
            Edit::CutWord => {
                let before = self.line.get(..self.cursor).unwrap_or_default().trim_end();
                self.cut(before.rfind(' ').map_or(0, |at| at + 1));
            }
            Edit::Older => self.recall((self.back + 1).min(self.history.len())),
            Edit::Newer => self.recall(self.back.saturating_sub(1)),
            Edit::Clear => {
                out.write_str("\x1b[H\x1b[2J")?; // cursor home, erase the screen
                return self.show(out);
            }
        }
        self.draw(out)
    }

    /// Shows the line `back` lines ago; 0 is the new one.
    fn recall(&mut self, back: usize) {
        if back == self.back {
            return;
        }
        if self.back == 0 {
            self.draft = core::mem::take(&mut self.line);
        }
        self.line = match self
            .history
            .len()
            .checked_sub(back)
            .and_then(|at| self.history.get(at))
        {
            Some(line) => line.clone(),
            None => core::mem::take(&mut self.draft),
        };
        self.back = back;
        self.cursor = self.line.len();
    }

    /// Completes the word before the cursor as far as all candidates agree; where that is not at all, lists them.
    fn complete(
        &mut self,
        out: &mut dyn Write,
        complete: &dyn Fn(&str) -> (usize, Vec<String>),
    ) -> Result {
        let (typed, candidates) = complete(self.line.get(..self.cursor).unwrap_or_default());
        let Some(first) = candidates.first() else {
            return out.write_char('\x07');
        };
        let agreed = candidates.iter().fold(first.len(), |agreed, candidate| {
            let same = first
                .bytes()
                .zip(candidate.bytes())
                .take_while(|(a, b)| a == b)
                .count();
            agreed.min(same)
        });
        let rest = first.as_bytes().get(typed..agreed).unwrap_or_default();
        if rest.iter().any(|byte| !(0x20..=0x7e).contains(byte)) {
            return out.write_char('\x07');
        }
        if candidates.len() == 1 {
            self.insert(rest, out)?;
            return self.insert(b" ", out);
        }
        if !rest.is_empty() {
            return self.insert(rest, out);
        }
        out.write_char('\n')?;
        for candidate in candidates.iter().take(LISTED) {
            writeln!(out, "  {candidate}")?;
        }
        if let Some(more @ 1..) = candidates.len().checked_sub(LISTED) {
            writeln!(out, "  and {more} more")?;
        }
        self.show(out)
    }
}

#[cfg(test)]
mod tests {
    use self::alloc::string::ToString;
    use super::*;

    fn names(before: &str) -> (usize, Vec<String>) {
        let typed = before.rsplit(' ').next().unwrap_or_default();
        let all = ["attach", "detach", "map", "maps"];
        (
            typed.len(),
            all.iter()
                .filter(|n| n.starts_with(typed))
                .map(|n| n.to_string())
                .collect(),
        )
    }

    /// The lines that `keys` make.
    fn lines(editor: &mut Editor, keys: &[u8]) -> Vec<String> {
        let mut out = String::new();
        let mut lines = Vec::new();
        for &byte in keys {
            match editor.key(byte, &mut out, &names).unwrap() {
                Event::Line(line) => lines.push(line),
                Event::Interrupted => lines.push("^C".to_string()),
                Event::More => {}
            }
            assert!(editor.cursor <= editor.line.len() && editor.shown <= editor.cursor);
        }
        lines
    }

    #[test]
    fn keys_edit() {
        let mut wrong = Vec::new();
        for (keys, line) in [
            ("abc\r", "abc"),
            ("abc\x1b[D\x1b[DX\r", "aXbc"),
            ("abc\x02\x06\x02Y\r", "abYc"),
            ("abc\x1b[D\x7f\r", "ac"),
            ("abc\x01\x1b[3~\r", "bc"),
            ("abc\x1b[Hx\x1b[Fy\r", "xabcy"),
            ("abc\x1bOHx\x1bOFy\r", "xabcy"),
            ("abc\x1b[1~x\x1b[4~y\r", "xabcy"),
            ("one two three\x17\x17\r", "one "),
            ("one two\x02\x02\x0b\r", "one t"),
            ("one two\x02\x02\x15\r", "wo"),
            ("\x7f\x1b[D\x1b[C\x1b[3~\x17\x0b\x15ok\r", "ok"),
            ("a\x1b[1;5Cb\x1b[99999999~c\x1bxd\r", "abcd"), // unknown sequences leave no trace
            ("a\u{e9}\x00\x07b\r", "ab"), // nor do bytes that are no printable ASCII
            ("att\t\r", "attach "),
            ("m\t\ts\t\r", "maps "),
            ("nothing\t\r", "nothing"),
        ] {
            let found = lines(&mut Editor::new("> "), keys.as_bytes());
            if found != [line] {
                wrong.push((keys, found));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn line_ends() {
        assert_eq!(
            lines(&mut Editor::new("> "), b"a\r\nb\nc\r\rd\x03e\r"),
            ["a", "b", "c", "", "^C", "e"]
        );
    }

    #[test]
    fn history() {
        let mut editor = Editor::new("> ");
        for n in 0..20 {
            lines(&mut editor, self::alloc::format!("line {n}\r").as_bytes());
        }
        lines(&mut editor, b"line 19\r  \r"); // neither the same line twice nor an empty one
        assert_eq!(lines(&mut editor, b"\x1b[A\r"), ["line 19"]);
        assert_eq!(lines(&mut editor, b"\x1b[A\x1b[A\x1b[B\x10\r"), ["line 18"]);
        assert_eq!(lines(&mut editor, b"draft\x1b[A\x1b[B!\r"), ["draft!"]);
        let first = "\x1b[A".repeat(50) + "\r";
        // 16 are kept: 6 to 19, then 18 and the draft.
        assert_eq!(lines(&mut editor, first.as_bytes()), ["line 6"]);
    }

    #[test]
    fn the_screen_shows_the_line() {
        let mut editor = Editor::new("> ");
        let mut out = String::new();
        editor.show(&mut out).unwrap();
        for byte in "ab\x02X\x01".bytes() {
            editor.key(byte, &mut out, &names).unwrap();
        }
        let rows = [
            "\r> ab",
            "ab\x1b[K\x1b[1D",
            "aXb\x1b[K\x1b[1D",
            "aXb\x1b[K\x1b[3D",
        ];
        assert_eq!(
            out.replacen("\r\x1b[2C\x1b[K", "", 1),
            rows.join("\r\x1b[2C")
        );
        // No row that is drawn is wider than the terminal, whatever the length of the line.
        out.clear();
        lines(&mut editor, "z".repeat(2 * LONGEST).as_bytes());
        assert_eq!(editor.line.len(), LONGEST);
        for byte in "\x01\x05\x02\x02\x02\x7fy".bytes() {
            out.clear();
            editor.key(byte, &mut out, &names).unwrap();
            let row = out.split("\x1b[K").next().unwrap();
            let columns = 2 + row.strip_prefix("\r\x1b[2C").unwrap().len();
            assert!(columns <= COLUMNS, "{columns} columns");
        }
    }

    #[test]
    fn any_bytes() {
        let mut editor = Editor::new("> ");
        let mut state = 1u64;
        let keys: Vec<u8> = (0..200_000)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                // Escape sequences and control characters more often than chance would have them.
                match state >> 60 {
                    0 | 1 => 0x1b,
                    2 | 3 => b'[',
                    4..7 => (state >> 40) as u8 & 0x1f,
                    _ => (state >> 40) as u8,
                }
            })
            .collect();
        lines(&mut editor, &keys);
    }
}
