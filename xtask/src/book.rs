// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the book by mdBook's library: `book FOLDER OUTPUT`. A program of its own, so that nothing else waits for mdBook.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(output)) = (arguments.next(), arguments.next()) else {
        eprintln!(
            "book: two arguments expected, the book's folder and the output's; use `cargo xtask book`"
        );
        return ExitCode::from(2);
    };
    let built = mdbook_driver::MDBook::load(&folder).and_then(|mut book| {
        book.config.build.build_dir = output;
        book.build()
    });
    match built {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("book: {}: {error:#}", folder.display());
            ExitCode::FAILURE
        }
    }
}
