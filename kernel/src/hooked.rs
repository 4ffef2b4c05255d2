// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which functions are hooked, and by what: written by whoever hooks, read by reports without a lock, in any context.
//!
//! A word a function of the image says which text stands for it, 0 for none. Functions with the same text share it, so one
//! program on thousands of functions is one text. A text has a version, odd while it is written; a reader believes what it
//! copied if the version was the same even one before and after, and the function's word too: a text that no
//! function refers to may be written anew. A reader tries a few times and then says that something is hooked: a report may
//! have interrupted the writer for good.

use crate::arch::lock::{Late, SpinLock};
use crate::symbols;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

const WORDS: usize = 8;
/// The most bytes of a text; what is longer is cut.
pub(crate) const LONGEST: usize = WORDS * 8;
/// Texts are made by the block and never given back to the heap.
const BLOCK: usize = 64;
const BLOCKS: usize = 128;
/// How often a reader tries.
const TRIES: usize = 8;
/// Stands in a function's word for a text that found no room.
const NO_TEXT: u32 = u32::MAX;

struct Text {
    version: AtomicU32,
    words: [AtomicU64; WORDS],
}

impl Text {
    const fn new() -> Text {
        Text {
            version: AtomicU32::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    /// Only by the one who holds [`USERS`].
    fn write(&self, mark: &Mark) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        // The odd version is visible before any byte of the new text (pairs with the reader's acquire fence).
        fence(Ordering::Release);
        for (word, bytes) in self.words.iter().zip(mark.bytes.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// `None` if it was written meanwhile.
    fn read(&self) -> Option<Mark> {
        let before = self.version.load(Ordering::Acquire);
        let mut bytes = [0; LONGEST];
        for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&self.words) {
            *to = word.load(Ordering::Relaxed).to_le_bytes();
        }
        fence(Ordering::Acquire);
        let same = self.version.load(Ordering::Relaxed) == before;
        let used = bytes.iter().position(|b| *b == 0).unwrap_or(LONGEST);
        (same && before.is_multiple_of(2)).then_some(Mark { bytes, used })
    }
}

/// What a function is hooked by, as reports print it: `fentry count, fexit trace`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    bytes: [u8; LONGEST],
    used: usize,
}

impl Mark {
    const fn new() -> Mark {
        Mark {
            bytes: [0; LONGEST],
            used: 0,
        }
    }

    /// Of a text; what does not fit is cut.
    fn of(text: &str) -> Mark {
        let mut mark = Mark::new();
        // The text is cut where it is full; that is all the error says.
        let _ = mark.write_str(text);
        mark
    }
}

impl Write for Mark {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fits = text.floor_char_boundary(LONGEST - self.used);
        for (to, from) in self
            .bytes
            .iter_mut()
            .skip(self.used)
            .zip(text.bytes().take(fits))
        {
            *to = from;
        }
        self.used += fits;
        match fits == text.len() {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.bytes.get(..self.used).unwrap_or_default();
        text.utf8_chunks()
            .try_for_each(|chunk| f.write_str(chunk.valid()))
    }
}

/// For each function of the image, in the order of its symbols: the number of its text plus one, [`NO_TEXT`], or 0.
static FUNCTIONS: Late<Box<[AtomicU32]>> = Late::new();
static TEXTS: [Late<[Text; BLOCK]>; BLOCKS] = [const { Late::new() }; BLOCKS];
/// How many functions refer to each text; held while anything is written.
static USERS: SpinLock<Vec<u32>> = SpinLock::new(Vec::new());

fn text(number: u32) -> Option<&'static Text> {
    let number = number as usize;
    TEXTS.get(number / BLOCK)?.get()?.get(number % BLOCK)
}

/// Makes the table; before it nothing is hooked.
pub(crate) fn init() {
    let count = symbols::blob().map_or(0, |blob| blob.symbols().count());
    let table = (0..count).map(|_| AtomicU32::new(0)).collect::<Box<[_]>>();
    FUNCTIONS.set(Box::leak(Box::new(table)));
}

/// Bytes of the heap that texts have taken, which grow with the most that were needed at a time and are never given back.
pub(crate) fn kept() -> usize {
    let users = USERS.lock();
    let blocks = TEXTS.iter().filter(|block| block.get().is_some()).count();
    blocks * size_of::<[Text; BLOCK]>() + users.capacity() * size_of::<u32>()
}

fn word(address: u64) -> Option<&'static AtomicU32> {
    FUNCTIONS.get()?.get(symbols::blob()?.index(address)?)
}

/// The function that `address` lies in is hooked from now on by what `text` says; what it said before is replaced. Returns
/// whether it is a function of the image.
pub(crate) fn set(address: u64, text: &str) -> bool {
    replace(address, Some(&Mark::of(text)))
}

/// The function that `address` lies in is not hooked any more.
pub(crate) fn clear(address: u64) -> bool {
    replace(address, None)
}

/// The function that `address` lies in is hooked by these, kind and program; by nothing if there are none.
pub(crate) fn update<'a>(address: u64, by: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    let mut mark = Mark::new();
    for (index, (kind, program)) in by.enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        // The most of a name that is kept: 31 bytes.
        let program = program
            .get(..program.floor_char_boundary(31))
            .unwrap_or_default();
        let whole = mark;
        if write!(mark, "{comma}{kind} {program}").is_err() {
            mark = whole;
            let _ = mark.write_str(", ...");
            break;
        }
    }
    match mark.used {
        0 => clear(address),
        _ => replace(address, Some(&mark)),
    }
}

/// A text that a function has, while it has it.
#[derive(Clone, Copy)]
pub(crate) struct TextOf(u32);

/// The text of the function that `address` lies in, if it has one.
pub(crate) fn text_of(address: u64) -> Option<TextOf> {
    let number = word(address)?.load(Ordering::Acquire);
    (number != 0).then_some(TextOf(number))
}

/// The function that `address` lies in is hooked by what `text` says, which another function has. Returns whether it is a function of
/// the image.
///
/// `near` is where to begin to look for it among the functions, and then where it is.
pub(crate) fn share(address: u64, TextOf(number): TextOf, near: &mut usize) -> bool {
    let index = symbols::blob().and_then(|blob| blob.index_near(*near, address));
    let Some(index) = index else {
        return false;
    };
    *near = index;
    let Some(to) = FUNCTIONS.get().and_then(|table| table.get(index)) else {
        return false;
    };
    let mut users = USERS.lock();
    // The new one first: if both are the same, nobody may write the text anew in between.
    for (number, by) in [(number, 1), (to.swap(number, Ordering::AcqRel), -1)] {
        let place = number.checked_sub(1).map(|place| place as usize);
        if let Some(count) = place.and_then(|place| users.get_mut(place)) {
            *count = count.saturating_add_signed(by);
        }
    }
    true
}

fn replace(address: u64, mark: Option<&Mark>) -> bool {
    let Some(word) = word(address) else {
        return false;
    };
    let mut users = USERS.lock();
    let new = match mark {
        Some(mark) => take(&mut users, mark).map_or(NO_TEXT, |number| number + 1),
        None => 0,
    };
    let old = word.swap(new, Ordering::AcqRel);
    let count = old
        .checked_sub(1)
        .and_then(|number| users.get_mut(number as usize));
    if let Some(count) = count {
        *count -= 1;
    }
    true
}

/// The number of a text that says so, with one user more; `None` if there is no room for another text.
fn take(users: &mut Vec<u32>, mark: &Mark) -> Option<u32> {
    let mut free = None;
    // The last ones first: who hooks many functions in turn says the same of all.
    for (number, count) in users.iter_mut().enumerate().rev() {
        let number = number as u32;
        if *count == 0 {
            free = Some(number);
        } else if text(number)?.read().as_ref() == Some(mark) {
            *count += 1;
            return Some(number);
        }
    }
    let number = match free {
        Some(number) => number,
        None => {
            let number = users.len();
            let block = TEXTS.get(number / BLOCK)?;
            if block.get().is_none() {
                block.set(Box::leak(Box::new([const { Text::new() }; BLOCK])));
            }
            users.push(0);
            number as u32
        }
    };
    text(number)?.write(mark);
    *users.get_mut(number as usize)? += 1;
    Some(number)
}

/// What the function that `address` lies in is hooked by, if it is. Any context; no lock, no allocation.
pub(crate) fn of(address: u64) -> Option<Mark> {
    read(word(address)?)
}

fn read(word: &AtomicU32) -> Option<Mark> {
    for _ in 0..TRIES {
        let number = match word.load(Ordering::Acquire) {
            0 => return None,
            NO_TEXT => break,
            number => number,
        };
        let mark = text(number - 1).and_then(Text::read);
        if mark.is_some() && word.load(Ordering::Acquire) == number {
            return mark;
        }
    }
    Some(Mark::of("by more than this report has room for"))
}

/// All hooked functions by address, with what hooks them. Any context; no lock, no allocation.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, Mark)> {
    let words = FUNCTIONS.get().into_iter().flat_map(|table| table.iter());
    let symbols = symbols::blob().into_iter().flat_map(|blob| blob.symbols());
    symbols
        .zip(words)
        .filter_map(|(symbol, word)| Some((symbol.name, read(word)?)))
}
