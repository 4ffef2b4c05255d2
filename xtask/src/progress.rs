// SPDX-License-Identifier: MIT OR Apache-2.0
//! A line of progress on the terminal for whatever takes longer than two seconds.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long something may take without a word.
const PATIENCE: Duration = Duration::from_secs(2);

/// Progress of one thing; nothing remains of it on the terminal. Without a terminal nothing is shown.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
}

impl Progress {
    /// Starts, showing nothing yet.
    pub(crate) fn start(message: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(message.to_owned());
        let start = Instant::now();
        Self { bar, start }
    }

    /// Says how far it is.
    pub(crate) fn update(&self, message: &str) {
        self.bar.set_message(message.to_owned());
        self.tick();
    }

    /// Shows that it goes on. Called several times a second by whoever waits.
    pub(crate) fn tick(&self) {
        if self.bar.is_hidden() && self.start.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.tick();
    }

    /// Prints a line above the progress.
    pub(crate) fn print(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
