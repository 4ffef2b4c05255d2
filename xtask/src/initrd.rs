// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the initrd: a cpio archive of format "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

/// Why a file cannot be archived.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InitrdError {
    /// Longer than a field of eight hexadecimal digits says.
    #[error("initrd: {0} is {1} bytes long, more than a cpio archive can hold (4294967295)")]
    TooLong(String, usize),
}

/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// A regular file that everyone may read (POSIX sys/stat.h: S_IFREG | 0644).
const MODE: u32 = 0o100_644;

/// The archive of named files. Owners and times are zero: the same files give the same bytes.
pub(crate) fn archive(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, InitrdError> {
    let mut archive = Vec::new();
    for (inode, (name, data)) in (1..).zip(files) {
        entry(&mut archive, inode, MODE, name, data)?;
    }
    entry(&mut archive, 0, 0, TRAILER, &[])?;
    Ok(archive)
}

fn entry(
    archive: &mut Vec<u8>,
    inode: u32,
    mode: u32,
    name: &str,
    data: &[u8],
) -> Result<(), InitrdError> {
    let length = |n: usize| u32::try_from(n).map_err(|_| InitrdError::TooLong(name.into(), n));
    let size = length(data.len())?;
    let name_size = length(name.len() + 1)?;
    // Magic, inode, mode, user, group, links, time, size, device (2), special device (2), length of the name, checksum.
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    pad(archive);
    archive.extend(data);
    pad(archive);
    Ok(())
}

/// Header with name, and data, are padded to four bytes.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let files = [
            ("empty.bpf.o".to_owned(), vec![]),
            ("a".to_owned(), b"hello".to_vec()),
        ];
        archive(&files).expect("archive")
    }

    #[test]
    fn entries_lie_where_the_format_says() {
        let archive = sample();
        assert!(archive.starts_with(b"07070100000001000081a4"));
        let second = (110_usize + 12).next_multiple_of(4);
        let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&archive[range]);
        assert_eq!(text(second..second + 6), "070701");
        assert_eq!(text(second + 54..second + 62), "00000005", "file size");
        assert_eq!(text(second + 94..second + 102), "00000002", "name size");
        assert_eq!(text(second + 112..second + 117), "hello");
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn cpio_reads_it() {
        let Ok(mut cpio) = Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            println!("skipped: this machine has no cpio");
            return;
        };
        let mut input = cpio.stdin.take().expect("stdin");
        input.write_all(&sample()).expect("write");
        drop(input);
        let output = cpio.wait_with_output().expect("cpio");
        assert_eq!(output.stdout, b"empty.bpf.o\na\n");
    }
}
