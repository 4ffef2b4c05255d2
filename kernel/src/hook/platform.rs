// SPDX-License-Identifier: MIT OR Apache-2.0
//! This kernel, as the hook engine sees it.

use crate::arch::admit;
use crate::arch::code::{self, CodeError};
use crate::arch::pmu::{self, Counter};
use crate::arch::smp;
use crate::mm::layout::{POOL, POOL_SIZE};
use crate::mm::stack;
use crate::rcu;
use crate::task::layout;
use crate::written;
use alloc::string::ToString;
use core::ops::Range;
use trampoline::platform::{Grace, Platform, PlatformError, Retired};
use trampoline::runtime::{
    SHADOW_COOKIE, SHADOW_ENTRY, SHADOW_LANDING, SHADOW_RETURN, TRACE_LEFT, TRACE_NESTING_MASK,
};
use trampoline::{Patch, PatchError, Runtime, Shadow};

/// This kernel, as the engine sees it.
pub(crate) struct Kernel;

const _: () = assert!(
    layout::TRACE_LEFT == TRACE_LEFT && layout::TRACE_NESTING_MASK == TRACE_NESTING_MASK,
    "grace periods and trampolines mean the same"
);
const _: () = assert!(
    layout::SHADOW_ENTRY as i64 == SHADOW_ENTRY
        && layout::ENTRY_RETURN as i64 == SHADOW_RETURN
        && layout::ENTRY_FRAME as i64 == SHADOW_RETURN + 8
        && layout::ENTRY_LANDING as i64 == SHADOW_LANDING
        && layout::ENTRY_COOKIE as i64 == SHADOW_COOKIE,
    "tasks and trampolines mean the same"
);

impl From<CodeError> for PlatformError {
    fn from(e: CodeError) -> PlatformError {
        match e {
            CodeError::NotCode(at) => PlatformError::NotCode { at: at as u64 },
            CodeError::Unexpected {
                at,
                expected,
                found,
            } => PlatformError::Mismatch {
                at: at as u64,
                expected,
                found,
            },
            CodeError::Map(e) => PlatformError::Host {
                at: 0,
                why: e.to_string(),
            },
        }
    }
}

impl Platform for Kernel {
    fn pool(&self) -> Range<u64> {
        POOL as u64..(POOL + POOL_SIZE) as u64
    }

    fn read(&self, at: u64) -> Option<u32> {
        code::read(at as usize)
    }

    fn write_code(&self, at: u64, words: &[u32]) -> Result<(), PlatformError> {
        Ok(written::write(at as usize, words)?)
    }

    fn patch(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
        Ok(written::patch(at as usize, old, new)?)
    }

    fn replace_word(&self, at: u64, old: u32, new: u32) -> Result<(), PlatformError> {
        let replaced = written::replace(at as usize, old, new);
        let replaced = replaced.map_err(|absent| PlatformError::Host {
            at,
            why: absent.to_string(),
        })?;
        Ok(replaced?)
    }

    fn patch_all(&self, patches: &[Patch]) -> Result<(), PatchError> {
        written::patch_all(patches).map_err(|(index, error, undone)| PatchError {
            index,
            error: error.into(),
            undone,
        })
    }

    fn confirm(&self, at: u64, word: u32) {
        // Where something can be counted no two cores are emulated at the same time, or they are real ones.
        if pmu::counter() == Counter::None {
            code::confirm(at as usize, word);
        }
    }

    fn sync_cores(&self) {
        smp::sync_cores();
    }

    fn runtime(&self) -> Runtime {
        Runtime {
            task: a64::SysReg::SP_EL0,
            word: layout::WORD as u16,
            migrate: layout::MIGRATE as u16,
            trace: layout::TRACE_NESTING as u16,
            admit: admit::admit as *const () as usize as u64,
            admit_stack: admit::STACK,
            shadow: Shadow {
                top: layout::SHADOW_TOP as u16,
                end: layout::SHADOW_END as u16,
            },
            miss: admit::miss as *const () as usize as u64,
        }
    }

    fn stack_limit(&self) -> u32 {
        stack::HIT_LIMIT as u32
    }

    fn waiting_limit(&self) -> u32 {
        stack::WAITING_LIMIT as u32
    }

    fn defer(&self, retired: Retired, grace: Grace) {
        match grace {
            Grace::Tasks => rcu::defer(rcu::Flavour::Tasks, move || retired.free()),
            Grace::Unreferenced(range) => {
                rcu::defer_unreferenced(range, move || retired.free());
            }
        }
    }
}
