// SPDX-License-Identifier: MIT OR Apache-2.0
//! Function hooks by direct-call trampolines; knows no kernel and no BPF.
//!
//! Every function that can be hooked begins with two NOPs, its *site* ([`site`]). To attach a
//! program ([`program`]: at the entry, instead, at the exit), the [`Engine`] generates an *image* ([`body`]) in the executable
//! pool ([`pool`]): save what is live, call the programs, restore, branch to the function behind its
//! site or call it and go on. Then one store makes the first NOP a branch to the image ([`patch`]). Several programs on a
//! function are one image, rebuilt with all of them and swapped by one store. To detach is the way
//! back; the old image is freed by callback, when nobody can be executing it.
//!
//! What the host kernel has to provide is one trait, [`Platform`]. Of each instruction of an image
//! it is known what it is for ([`ingredient`]) and, for unwinding, where the caller is.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "fakes")]
extern crate std;

pub mod args;
pub mod attach;
pub mod body;
mod chain;
mod chains;
pub mod detour;
#[cfg(feature = "fakes")]
pub mod fakes;
mod frame;
pub mod guard;
pub mod image;
pub mod ingredient;
pub mod linux;
pub mod multi;
mod pair;
pub mod patch;
pub mod platform;
pub mod pool;
mod probe;
pub mod program;
pub mod registers;
pub mod runtime;
mod shadow;
mod shared;
pub mod site;
pub mod switch;

pub use args::ArgSpec;
pub use attach::{AttachError, AttachId, DetachError, Engine, Line, Reason};
pub use chain::Stub;
pub use detour::{ProbeKind, Probed, Spot};
pub use ingredient::{CallerIn, Ingredient};
pub use multi::Multi;
pub use platform::{Grace, Patch, PatchError, Platform, PlatformError, Retired};
pub use pool::{Code, Found, Label, Owner, Pool, PoolError, Record, Reserved};
pub use program::{Callee, Guard, Kind, State};
pub use runtime::{Runtime, Shadow};
pub use site::{Site, SiteError, SiteState, SiteTable};
pub use switch::Switch;
