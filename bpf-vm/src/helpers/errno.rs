// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors as programs see them: minus Linux's numbers (`asm-generic/errno-base.h`, `asm-generic/errno.h`).
#![forbid(unsafe_code)]

use crate::map::MapError;

/// Linux's `E2BIG`.
pub(super) const E2BIG: i64 = 7;
/// Linux's `EFAULT`.
pub(super) const EFAULT: i64 = 14;
/// Linux's `EINVAL`.
pub(super) const EINVAL: i64 = 22;
/// Linux's `EOPNOTSUPP`.
pub(super) const EOPNOTSUPP: i64 = 95;

/// An error's number as a helper returns it.
pub(super) fn error(number: i64) -> u64 {
    -number as u64
}

/// A result as a program sees it: 0, or minus the error's number.
pub(super) fn status(result: Result<(), MapError>) -> u64 {
    result.map_or_else(|error| -i64::from(error.errno()), |()| 0) as u64
}
