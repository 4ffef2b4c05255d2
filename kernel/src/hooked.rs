// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which functions are hooked, and by what: written by whoever hooks, read by reports without a lock, in any context.
//!
//! A word a function of the image says how many programs hook it, 0 for none, and which text names the first one. A text leads to the one
//! that goes on: with the rest of a long name, or with the next program. Functions and texts that go on alike lead to the same text, so
//! one program on thousands of functions is one text. Each text's users are counted, which are the functions and texts that lead to it;
//! one without users may be written anew, and then what it led to has one user less.
//!
//! A text has a version, odd while it is written. It is not written while it has users, and once it has none it gets users again only by
//! being written anew. So if a function's word, and the version of the text that it names, are after a reader copied a text what they were
//! before, and that version is even, then the function led to that first text all the while; it was not written, so it led to the same
//! second text all the while, and so on: what was copied is whole, and is the function's. A reader tries a few times to copy the first text
//! and then says only how many programs there are: a report may have interrupted the writer for good. If a text behind the first is not to
//! be believed, the reader says how many programs it has not named.

use crate::arch::lock::{Late, SpinLock};
use crate::symbols;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::{self, Display, Write};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

const WORDS: usize = 8;
/// Bytes of a text.
const SIZE: usize = WORDS * 8;
/// The most texts of a function: one a program, more if its kind and name are longer than a text. Programs that they have no room for are
/// counted, not named.
pub(crate) const LONGEST: usize = 64;
/// Texts are made by the block and never given back to the heap.
const BLOCK: usize = 64;
const BLOCKS: usize = 128;
/// How often a reader tries.
const TRIES: usize = 8;

/// A text's number plus one, or 0 for none.
type Link = u32;
/// Beside the link of a text: the name of its program goes on there.
const GOES_ON: u32 = 1 << 31;
/// Beside the link of a function, from this bit on: the number of its programs.
const COUNT: u32 = 16;

const _: () = assert!(BLOCK * BLOCKS < 1 << COUNT);

struct Text {
    version: AtomicU32,
    /// A link, and [`GOES_ON`].
    next: AtomicU32,
    words: [AtomicU64; WORDS],
}

/// What a text says.
#[derive(Clone, Copy)]
struct Piece {
    /// UTF-8, and zeros behind it.
    bytes: [u8; SIZE],
    next: u32,
}

impl Text {
    const fn new() -> Text {
        Text {
            version: AtomicU32::new(0),
            next: AtomicU32::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    /// Only by the one who holds [`USERS`].
    fn write(&self, piece: &Piece) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        // The odd version is visible before any byte of the new text (pairs with the reader's acquire fence).
        fence(Ordering::Release);
        self.next.store(piece.next, Ordering::Relaxed);
        for (word, bytes) in self.words.iter().zip(piece.bytes.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// Only by the one who holds [`USERS`].
    fn says(&self, piece: &Piece) -> bool {
        let mut both = self.words.iter().zip(piece.bytes.as_chunks::<8>().0);
        self.next.load(Ordering::Relaxed) == piece.next
            && both.all(|(word, bytes)| word.load(Ordering::Relaxed) == u64::from_le_bytes(*bytes))
    }

    /// To be believed if [`Mark::holds`] after it.
    fn read(&self) -> Piece {
        let mut piece = Piece::EMPTY;
        let words = piece.bytes.as_chunks_mut::<8>().0;
        for (to, word) in words.iter_mut().zip(&self.words) {
            *to = word.load(Ordering::Relaxed).to_le_bytes();
        }
        piece.next = self.next.load(Ordering::Relaxed);
        piece
    }
}

impl Piece {
    const EMPTY: Piece = Piece {
        bytes: [0; SIZE],
        next: 0,
    };

    fn used(&self) -> usize {
        self.bytes.iter().position(|b| *b == 0).unwrap_or(SIZE)
    }

    fn goes_on(&self) -> bool {
        self.next & GOES_ON != 0
    }
}

impl Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.bytes.get(..self.used()).unwrap_or_default();
        text.utf8_chunks()
            .try_for_each(|chunk| f.write_str(chunk.valid()))
    }
}

/// What hooks a function, as it will stand in texts.
#[derive(Default)]
struct Pieces {
    list: Vec<Piece>,
    /// Programs, named or not.
    count: u32,
    full: bool,
}

impl Pieces {
    /// One program more.
    fn add(&mut self, program: fmt::Arguments<'_>) {
        self.count += 1;
        let before = self.list.len();
        self.full = self.full || before == LONGEST;
        if self.full {
            return;
        }
        self.list.push(Piece::EMPTY);
        if self.write_fmt(program).is_err() {
            self.full = true;
            self.list.truncate(before);
        }
    }
}

/// Behind what the last piece says, which is that of a program that is not whole.
impl Write for Pieces {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut text = text;
        while let Some(last) = self.list.last_mut() {
            let used = last.used();
            let (fits, rest) = text.split_at(text.floor_char_boundary(SIZE - used));
            let free = last.bytes.iter_mut().skip(used);
            free.zip(fits.bytes()).for_each(|(to, from)| *to = from);
            if rest.is_empty() {
                return Ok(());
            }
            last.next = GOES_ON;
            if self.list.len() == LONGEST {
                break;
            }
            self.list.push(Piece::EMPTY);
            text = rest;
        }
        Err(fmt::Error)
    }
}

/// What a function is hooked by, as reports print it: `fentry count, fexit trace`. With more than there is room for, `fentry count, and 2
/// more`, or only `3 programs`.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    function: &'static AtomicU32,
    /// What the function's word said.
    word: u32,
    /// Of the first text.
    version: u32,
    /// A copy of the first text. What is behind it is read when it is printed.
    first: Option<Piece>,
}

impl Mark {
    /// `None` if it was changed meanwhile.
    fn read(function: &'static AtomicU32, word: u32) -> Option<Mark> {
        let mut mark = Mark {
            function,
            word,
            version: 0,
            first: None,
        };
        if let Some(text) = text(link_of(word)) {
            mark.version = text.version.load(Ordering::Acquire);
            mark.first = Some(text.read());
            return mark.holds().then_some(mark);
        }
        Some(mark)
    }

    /// Whether what was copied of the function's texts since its word and the version were read is whole.
    fn holds(&self) -> bool {
        // Who copied a byte of a text that was written anew sees below what was done before that (pairs with the writer's release fence):
        // the function's word led elsewhere. If it leads back by now, the version of what it leads to is another.
        fence(Ordering::Acquire);
        let word = self.function.load(Ordering::Acquire);
        let version = text(link_of(self.word)).map(|text| text.version.load(Ordering::Relaxed));
        word == self.word && version == Some(self.version) && self.version.is_multiple_of(2)
    }

    /// What is behind a piece; `None` if that is nothing, or if it was changed meanwhile.
    fn behind(&self, piece: &Piece) -> Option<Piece> {
        let piece = text(piece.next & !GOES_ON)?.read();
        self.holds().then_some(piece)
    }
}

impl Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut named, mut within) = (0, false);
        let mut next = self.first;
        while let Some(piece) = next {
            if !within {
                f.write_str(if named == 0 { "" } else { ", " })?;
                named += 1;
            }
            piece.fmt(f)?;
            within = piece.goes_on();
            next = self.behind(&piece);
        }
        if within {
            f.write_str("...")?; // of this name
        }
        match (named, (self.word >> COUNT).saturating_sub(named)) {
            (0, 1) => f.write_str("1 program"),
            (0, all) => write!(f, "{all} programs"),
            (_, 0) => Ok(()),
            (_, more) => write!(f, ", and {more} more"),
        }
    }
}

/// For each function of the image, in the order of its symbols: a link, and the number of programs from bit [`COUNT`] on. 0 if nothing hooks
/// it; programs without a link found no room for a text.
static FUNCTIONS: Late<Box<[AtomicU32]>> = Late::new();
static TEXTS: [Late<[Text; BLOCK]>; BLOCKS] = [const { Late::new() }; BLOCKS];
/// How many functions and texts lead to each text; held while anything is written.
static USERS: SpinLock<Vec<u32>> = SpinLock::new(Vec::new());

fn text(link: Link) -> Option<&'static Text> {
    let number = link.checked_sub(1)? as usize;
    TEXTS.get(number / BLOCK)?.get()?.get(number % BLOCK)
}

/// Of a function's word.
fn link_of(word: u32) -> Link {
    word & ((1 << COUNT) - 1)
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

/// The function that `address` lies in is hooked from now on by what `text` says, which counts as one program; what it said before is
/// replaced. Returns whether it is a function of the image.
pub(crate) fn set(address: u64, text: &str) -> bool {
    let mut pieces = Pieces::default();
    pieces.add(format_args!("{text}"));
    replace(address, &pieces)
}

/// The function that `address` lies in is not hooked any more.
pub(crate) fn clear(address: u64) -> bool {
    let Some(word) = word(address) else {
        return false;
    };
    let mut users = USERS.lock();
    release(&mut users, link_of(word.swap(0, Ordering::AcqRel)));
    true
}

/// The function that `address` lies in is hooked by these, kind and program; by nothing if there are none.
pub(crate) fn update<'a>(address: u64, by: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
    let mut pieces = Pieces::default();
    by.for_each(|(kind, program)| pieces.add(format_args!("{kind} {program}")));
    replace(address, &pieces)
}

/// What a function is hooked by, while it is.
#[derive(Clone, Copy)]
pub(crate) struct TextOf(u32);

/// What the function that `address` lies in is hooked by, if it is.
pub(crate) fn text_of(address: u64) -> Option<TextOf> {
    let word = word(address)?.load(Ordering::Acquire);
    (word != 0).then_some(TextOf(word))
}

/// The function that `address` lies in is hooked by what `text` says, which another function has. Returns whether it is a function of
/// the image.
///
/// `near` is where to begin to look for it among the functions, and then where it is.
pub(crate) fn share(address: u64, TextOf(new): TextOf, near: &mut usize) -> bool {
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
    let number = link_of(new).checked_sub(1);
    if let Some(count) = number.and_then(|number| users.get_mut(number as usize)) {
        *count += 1;
    }
    release(&mut users, link_of(to.swap(new, Ordering::AcqRel)));
    true
}

fn replace(address: u64, pieces: &Pieces) -> bool {
    let Some(word) = word(address) else {
        return false;
    };
    // The last one first, as each says what is behind it. The lock is free in between: this counts as a user of what is there so far.
    let backwards = pieces.list.iter().rev();
    let first = backwards.fold(0, |next, piece| lead(&mut USERS.lock(), piece, next));
    let count = pieces.count.min(u32::MAX >> COUNT) << COUNT;
    let mut users = USERS.lock();
    let old = word.swap(count | first, Ordering::AcqRel);
    release(&mut users, link_of(old));
    true
}

/// A text that says so and leads to `next`, with one user more. `next` had the caller for a user, and then has the text instead. If there
/// is no room for another text, it is given up, and this is 0.
fn lead(users: &mut Vec<u32>, piece: &Piece, next: Link) -> Link {
    let piece = Piece {
        bytes: piece.bytes,
        next: piece.next | next,
    };
    let mut free = None;
    // The last ones first: who hooks many functions in turn says the same of all.
    for (number, count) in users.iter_mut().enumerate().rev() {
        let link = number as Link + 1;
        if *count == 0 {
            free = Some(link);
        } else if text(link).is_some_and(|text| text.says(&piece)) {
            *count += 1;
            release(users, next); // the text counts as a user of it already
            return link;
        }
    }
    let Some(link) = free.or_else(|| another(users)) else {
        release(users, next);
        return 0;
    };
    if let Some(text) = text(link) {
        text.write(&piece);
    }
    if let Some(count) = users.get_mut(link as usize - 1) {
        *count = 1;
    }
    link
}

/// A text more, without users, if there is room for it.
fn another(users: &mut Vec<u32>) -> Option<Link> {
    let number = users.len();
    let block = TEXTS.get(number / BLOCK)?;
    if block.get().is_none() {
        block.set(Box::leak(Box::new([const { Text::new() }; BLOCK])));
    }
    users.push(0);
    Some(number as Link + 1)
}

/// A text has one user less; if it was the last one, so has what it led to.
fn release(users: &mut [u32], link: Link) {
    let mut link = link;
    while let Some(number) = link.checked_sub(1) {
        let Some(count) = users.get_mut(number as usize) else {
            return;
        };
        *count -= 1;
        if *count != 0 {
            return;
        }
        link = text(link).map_or(0, |text| text.next.load(Ordering::Relaxed) & !GOES_ON);
    }
}

/// What the function that `address` lies in is hooked by, if it is. Any context; no lock, no allocation.
pub(crate) fn of(address: u64) -> Option<Mark> {
    read(word(address)?)
}

fn read(function: &'static AtomicU32) -> Option<Mark> {
    let mut word = 0;
    for _ in 0..TRIES {
        word = function.load(Ordering::Acquire);
        if word == 0 {
            return None;
        }
        let mark = Mark::read(function, word);
        if mark.is_some() {
            return mark;
        }
    }
    Some(Mark {
        function,
        word,
        version: 0,
        first: None,
    })
}

/// All hooked functions by address, with what hooks them. Any context; no lock, no allocation.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, Mark)> {
    let words = FUNCTIONS.get().into_iter().flat_map(|table| table.iter());
    let symbols = symbols::blob().into_iter().flat_map(|blob| blob.symbols());
    symbols
        .zip(words)
        .filter_map(|(symbol, word)| Some((symbol.name, read(word)?)))
}
