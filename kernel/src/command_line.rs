// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel command line: words, some of them `name=value`.

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Measure, print the table, end.
    Bench,
    /// The interactive shell.
    Shell,
    /// The tests in the kernel.
    Test,
    /// The text against what was linked.
    Integrity,
    /// Everything that hooks can do, at random, checked.
    Torture,
    /// A fault on purpose, named by `crash=`.
    Crash,
}

/// The command line, taken apart.
#[derive(Debug)]
pub struct Options<'a> {
    /// `job=bench|shell|test|torture|integrity`, or the bare word; bench without it.
    pub job: Job,
    /// `semihosting`: an emulator listens.
    pub semihosting: bool,
    /// `rows`: print each row for programs too.
    pub rows: bool,
    /// `list`: with `job=test`, only name the tests.
    pub list: bool,
    /// `long`: with `job=test`, also what takes minutes.
    pub(crate) long: bool,
    /// `counter=instructions|cycles|none`.
    pub counter: Option<&'a str>,
    /// `board=NAME`, for the table's heading.
    pub board: Option<&'a str>,
    /// `qemu=VERSION`, for the table's heading.
    pub qemu: Option<&'a str>,
    /// `test=NAME`: only this one.
    pub test: Option<&'a str>,
    /// `from=NAME`: this one and those behind it.
    pub from: Option<&'a str>,
    /// `rooms=A,B`: those whose names begin with one of these and a dot.
    pub rooms: Option<&'a str>,
    /// `object=NAME`: measure this object of the initrd.
    pub object: Option<&'a str>,
    /// `attach=fentry:FUNCTION`: where to hook it.
    pub attach: Option<&'a str>,
    /// `suite=jit`: measure that instead of hooks.
    pub(crate) suite: Option<&'a str>,
    /// `seconds=N`: with `job=torture`, for how long.
    pub(crate) seconds: Option<&'a str>,
    /// `seed=N`: with `job=torture`, where its random numbers begin.
    pub(crate) seed: Option<&'a str>,
    /// `crash=KIND`: go wrong that way.
    pub crash: Option<&'a str>,
    /// Words that mean nothing here.
    pub unknown: heapless::Vec<&'a str, 8>,
}

impl<'a> Options<'a> {
    /// Reads the words; what it does not know it keeps for a message.
    pub fn parse(line: &'a str) -> Options<'a> {
        let mut options = Options {
            job: Job::Bench,
            semihosting: false,
            rows: false,
            list: false,
            long: false,
            counter: None,
            board: None,
            qemu: None,
            test: None,
            from: None,
            rooms: None,
            object: None,
            attach: None,
            suite: None,
            seconds: None,
            seed: None,
            crash: None,
            unknown: heapless::Vec::new(),
        };
        for word in line.split_ascii_whitespace() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word, None),
            };
            match (name, value) {
                ("job", Some("bench")) | ("bench", None) => options.job = Job::Bench,
                ("job", Some("shell")) | ("shell", None) => options.job = Job::Shell,
                ("job", Some("test")) | ("test", None) => options.job = Job::Test,
                ("job", Some("integrity")) | ("integrity", None) => options.job = Job::Integrity,
                ("job", Some("torture")) | ("torture", None) => options.job = Job::Torture,
                ("semihosting", None) => options.semihosting = true,
                ("rows", None) => options.rows = true,
                ("list", None) => options.list = true,
                ("long", None) => options.long = true,
                ("counter", Some(_)) => options.counter = value,
                ("board", Some(_)) => options.board = value,
                ("qemu", Some(_)) => options.qemu = value,
                ("test", Some(_)) => options.test = value,
                ("from", Some(_)) => options.from = value,
                ("rooms", Some(_)) => options.rooms = value,
                ("object", Some(_)) => options.object = value,
                ("attach", Some(_)) => options.attach = value,
                ("suite", Some(_)) => options.suite = value,
                ("seconds", Some(_)) => options.seconds = value,
                ("seed", Some(_)) => options.seed = value,
                ("crash", Some(_)) => options.crash = value,
                _ => {
                    // The ninth and later are as unknown as the first eight, which are enough for a message.
                    let _ = options.unknown.push(word);
                }
            }
        }
        if options.crash.is_some() {
            options.job = Job::Crash;
        }
        options
    }
}
