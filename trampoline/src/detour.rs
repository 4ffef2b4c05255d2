// SPDX-License-Identifier: MIT OR Apache-2.0
//! Probes: programs at any instruction, and at the return of any function.
//!
//! What leads to a probe depends on the place. A function's entry that has a site leads there by its chain, as a stub, and nothing is
//! displaced. Everywhere else the instruction gives way to `b probe`: one word to one word, so whoever branches to it, was preempted
//! in front of it or returns to it finds the one or the other whole. The probe's code ends with the displaced instruction, written
//! anew for its place (`a64`), and `b pc+4`.
//!
//! **Replacing** the instruction is no patch: the architecture lets few words replace each other while a core may be executing them
//! (patch.rs). It happens while all other cores are held ([`Platform::replace_word`](crate::Platform::replace_word)). Once a probe is
//! there, programs come and go by a new probe and one store, `b` for `b`.
//!
//! **Freeing**: a task may have been preempted in a probe, so that is freed after a tasks-RCU grace period. A displaced call
//! leaves the return address of its own place, so no one returns into a probe but by the landing of a function's return;
//! a probe with one is freed when no shadow stack and no stack holds an address in it.
//!
//! What is refused, besides what cannot be moved:
//! - the second word of a site: someone may be preempted between the two, and the Linux way uses it;
//! - an instruction from a load-exclusive to its store-exclusive: the probe's own accesses would make the store fail for ever
//!   (Arm ARM B2.12.5, "Load-Exclusive and Store-Exclusive instruction usage restrictions");
//! - the entry, without a site, of a function that branches to it: a loop's turn would be a call;
//! - data between instructions.

use crate::attach::{AttachError, AttachId, DetachError, Engine, Line, Program, Reason};
use crate::chain::{Chain, Stub, branch};
use crate::image::Image;
use crate::patch::patch;
use crate::platform::Platform;
use crate::pool::Owner;
use crate::probe::{Description, Place, RelocateOr};
use crate::program::{Callee, Kind};
use crate::site::Site;
use crate::{ArgSpec, Ingredient};
use a64::Inst;
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::{Arc, Weak};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// When a probe's program is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Before the instruction.
    Here,
    /// When the function, whose entry it is, has returned.
    Return,
}

impl ProbeKind {
    /// Its name, as ELF sections have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Here => "kprobe",
            Self::Return => "kretprobe",
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Here => Kind::Fentry,
            Self::Return => Kind::Fexit,
        }
    }

    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Fexit => Self::Return,
            _ => Self::Here,
        }
    }
}

/// An instruction of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Its address.
    pub at: u64,
    /// The function's code, from its entry on.
    pub function: Range<u64>,
}

/// A place with its programs.
pub(crate) struct Detour<P: Platform> {
    spot: Spot,
    place: Place,
    image: Arc<Image<P>>,
    /// [`Kind::Fentry`]: here, [`Kind::Fexit`]: when the function has returned.
    programs: Vec<Program>,
    /// Probes that were in its place before and that tasks may still return into.
    older: Vec<Weak<Image<P>>>,
}

/// A program at a probe, as listed.
pub struct Probed<'a> {
    /// Its number.
    pub id: AttachId,
    /// Where it is.
    pub spot: &'a Spot,
    /// When it is called.
    pub kind: ProbeKind,
    /// What is called.
    pub callee: &'a Callee,
    /// Bytes of the pool that the probe takes; programs at one place share it.
    pub image_bytes: u64,
    /// The deepest stack of a hit, in bytes.
    pub stack_bytes: u32,
}

impl<P: Platform> Detour<P> {
    fn stub(image: &Image<P>) -> Stub {
        Stub {
            entry: image.code.address(),
            link: image.onward.0,
        }
    }

    fn images(&self) -> Vec<Arc<Image<P>>> {
        let older = self.older.iter().filter_map(Weak::upgrade);
        older.chain([self.image.clone()]).collect()
    }

    /// The word that leads to it, where one was displaced.
    fn word(&self) -> Result<u32, Reason> {
        branch(self.spot.at, self.image.code.address(), false)
    }
}

/// The words of a function as they are without probes, from its entry on.
pub(crate) struct Text {
    start: u64,
    words: Vec<u32>,
}

impl Text {
    fn address(&self, index: usize) -> u64 {
        self.start + 4 * index as u64
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        let words = self.words.iter().enumerate();
        words.map(|(index, word)| (self.address(index), *word))
    }

    fn index(&self, at: u64) -> Option<usize> {
        let index = (at.checked_sub(self.start)? / 4) as usize;
        Some(index).filter(|index| *index < self.words.len())
    }

    /// Where control may go on behind the instruction of that index, within the function; a call comes back.
    fn next(&self, index: usize) -> impl Iterator<Item = usize> {
        let word = self.words.get(index).copied().unwrap_or_default();
        let target = a64::branch_target(word, self.address(index)).filter(|_| !a64::is_call(word));
        let target = target.and_then(|target| self.index(target));
        let behind = Some(index + 1).filter(|n| *n < self.words.len() && !a64::is_terminator(word));
        target.into_iter().chain(behind)
    }

    /// The load-exclusive on a way from which to a store-exclusive the instruction at `at` lies.
    fn exclusive(&self, at: u64) -> Option<u64> {
        let wanted = self.index(at)?;
        let loads = self.iter().enumerate();
        let loads = loads.filter(|(_, (_, word))| exclusive(*word) == Some(Exclusive::Load));
        for (load, (address, _)) in loads {
            // What control reaches from the load, up to the next exclusive or CLREX.
            let at = |index: usize| self.words.get(index).copied().unwrap_or_default();
            let (mut reached, mut open) = (vec![false; self.words.len()], vec![load]);
            while let Some(index) = open.pop() {
                let Some(slot) = reached.get_mut(index) else {
                    continue;
                };
                let ends = index != load && exclusive(at(index)).is_some();
                if !core::mem::replace(slot, true) && !ends {
                    open.extend(self.next(index));
                }
            }
            // Of that, what reaches a store.
            let words = reached.iter().enumerate();
            let store = |(index, reached): (usize, &bool)| {
                *reached && exclusive(at(index)) == Some(Exclusive::Store)
            };
            let mut between: Vec<bool> = words.map(store).collect();
            let mut changed = true;
            while changed {
                changed = false;
                for (index, reached) in reached.iter().enumerate().rev() {
                    let ends = index != load && exclusive(at(index)).is_some();
                    let leads = || self.next(index).any(|n| between.get(n) == Some(&true));
                    if *reached && !ends && between.get(index) == Some(&false) && leads() {
                        between
                            .iter_mut()
                            .skip(index)
                            .take(1)
                            .for_each(|b| *b = true);
                        changed = true;
                    }
                }
            }
            if between.get(wanted) == Some(&true) {
                return Some(address);
            }
        }
        None
    }

    /// A branch of the function to its own entry.
    fn branch_to_entry(&self) -> Option<u64> {
        let mut words = self.iter();
        let found = words.find(|(at, word)| {
            !a64::is_call(*word) && a64::branch_target(*word, *at) == Some(self.start)
        });
        found.map(|(at, _)| at)
    }

    /// A load of the function from the word at `at`.
    fn load_from(&self, at: u64) -> Option<u64> {
        /// The most bytes of a literal: a vector register.
        const LONGEST: u64 = 16;
        let mut words = self.iter();
        let found = words.find(|(pc, word)| {
            let Some(inst @ Inst::LoadLiteral { .. }) = Inst::decode(*word) else {
                return false;
            };
            let target = inst.offset().map(|offset| pc.wrapping_add_signed(offset));
            target.is_some_and(|target| (target..target.wrapping_add(LONGEST / 2)).contains(&at))
        });
        found.map(|(pc, _)| pc)
    }
}

/// What an instruction does to the exclusive monitor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exclusive {
    Load,
    Store,
    Clear,
}

/// Of LDXR, STXR, their pairs and ordered forms (Arm ARM C4.1.94.29: o2 is 0; with bits 31 and 21 it is CASP), and CLREX.
fn exclusive(word: u32) -> Option<Exclusive> {
    use a64::inst::BarrierOp::Clrex;
    if matches!(Inst::decode(word), Some(Inst::Barrier { op: Clrex, .. })) {
        return Some(Exclusive::Clear);
    }
    let casp = word >> 31 == 0 && word >> 21 & 1 == 1;
    match word & 0x3f80_0000 == 0x0800_0000 && !casp {
        true if word >> 22 & 1 == 1 => Some(Exclusive::Load),
        true => Some(Exclusive::Store),
        false => None,
    }
}

impl<P: Platform> Engine<P> {
    /// Calls `callee` whenever the instruction is about to be executed, or the function whose entry it is has returned.
    ///
    /// Programs at one place run in the order they came. Their context is [`registers`](crate::registers).
    pub fn probe(
        &mut self,
        spot: &Spot,
        kind: ProbeKind,
        callee: Callee,
    ) -> Result<AttachId, AttachError> {
        let function = spot.function.start;
        let refused = |reason| AttachError { function, reason };
        let place = self.place(spot).map_err(refused)?;
        if kind == ProbeKind::Return && spot.at != function {
            return Err(refused(Reason::NotEntry { at: spot.at }));
        }
        let id = self.new_id();
        let program = Program {
            id,
            kind: kind.kind(),
            args: ArgSpec::UNKNOWN,
            callee,
        };
        let there = self.detours.get(&spot.at).map(|d| d.programs.as_slice());
        let programs: Vec<_> = there
            .unwrap_or(&[])
            .iter()
            .cloned()
            .chain([program])
            .collect();
        self.lead(spot, place, programs).map_err(refused)?;
        Ok(id)
    }

    /// Whether the instruction can be probed, and how.
    fn place(&self, spot: &Spot) -> Result<Place, Reason> {
        let (at, start) = (spot.at, spot.function.start);
        if !at.is_multiple_of(4) || !spot.function.contains(&at) {
            return Err(Reason::NotAnInstruction { at });
        }
        let site = self.sites().get(start);
        if site.is_some_and(|site| site.notrace) {
            return Err(Reason::Notrace);
        }
        match self.detours.get(&at) {
            Some(there) if there.place != Place::Site => {
                self.expect(at, there.word()?)?;
                return Ok(there.place);
            }
            _ => {}
        }
        if site.is_some() && at == start {
            self.check_site(start)?;
            return Ok(Place::Site);
        }
        if let Some(by) = self.claimed(at) {
            return Err(Reason::Claimed { by });
        }
        let word = self.check_displaced(spot)?;
        Ok(match at == start {
            true => Place::Entry(word),
            false => Place::Middle(word),
        })
    }

    /// The word at the spot, if something else may be put in its place.
    pub(crate) fn check_displaced(&self, spot: &Spot) -> Result<u32, Reason> {
        let (at, start) = (spot.at, spot.function.start);
        if !at.is_multiple_of(4) || !spot.function.contains(&at) {
            return Err(Reason::NotAnInstruction { at });
        }
        let site = self.sites().get(start);
        if site.is_some_and(|site| site.notrace) {
            return Err(Reason::Notrace);
        }
        if site.is_some() && at > start && at < start.wrapping_add(Site::BYTES) {
            return Err(Reason::SecondWord { entry: start });
        }
        let text = self.text(&spot.function)?;
        let index = text.index(at).ok_or(Reason::NotAnInstruction { at })?;
        let word = text.words.get(index).copied().unwrap_or_default();
        if let Some(load) = text.exclusive(at) {
            return Err(Reason::Exclusive { load });
        }
        if let Some(by) = text.load_from(at) {
            return Err(Reason::Literal { by });
        }
        if site.is_none()
            && at == start
            && let Some(from) = text.branch_to_entry()
        {
            return Err(Reason::BranchToEntry { from });
        }
        match Inst::decode(word) {
            Some(Inst::Exception { .. } | Inst::Eret | Inst::Udf { .. }) => {
                Err(Reason::Raises { at, word })
            }
            _ => Ok(word),
        }
    }

    fn text(&self, function: &Range<u64>) -> Result<Text, Reason> {
        let words = function.clone().step_by(4).map(|at| {
            let displaced = self.displaced(at);
            let word = displaced.or_else(|| self.platform().read(at));
            word.ok_or(Reason::NotAnInstruction { at })
        });
        Ok(Text {
            start: function.start,
            words: words.collect::<Result<_, _>>()?,
        })
    }

    /// The word that a probe has taken the place of.
    fn displaced(&self, at: u64) -> Option<u32> {
        let detour = self.detours.get(&at);
        let detour = detour.and_then(|detour| detour.place.displaced());
        detour.or_else(|| self.breakpoints.get(&at).copied())
    }

    fn expect(&self, at: u64, expected: u32) -> Result<(), Reason> {
        match self.platform().read(at) {
            Some(word) if word == expected => Ok(()),
            found => Err(Reason::WordAtSite {
                at,
                expected,
                found,
            }),
        }
    }

    /// Builds the probe of `programs` and leads there; retires the one that was there.
    fn lead(&mut self, spot: &Spot, place: Place, programs: Vec<Program>) -> Result<(), Reason> {
        let at = spot.at;
        let image = self.generate(spot, place, &programs)?;
        let mut older = Vec::new();
        let before = self.detours.get(&at);
        if let Some(before) = before {
            older = before.older.clone();
            older.retain(|image| image.strong_count() > 0);
            if before.image.may_block {
                older.push(Arc::downgrade(&before.image));
            }
        }
        let detour = Detour {
            spot: spot.clone(),
            place,
            image: Arc::new(image),
            programs,
            older,
        };
        let platform = self.pool.platform();
        match (place.displaced(), before) {
            (Some(word), None) => platform
                .replace_word(at, word, detour.word()?)
                .map_err(Reason::Platform)?,
            (Some(_), Some(before)) => {
                patch(platform, at, before.word()?, detour.word()?).map_err(Reason::Platform)?;
            }
            (None, before) => {
                let before = before.map(|before| before.image.code.address());
                self.swap_stub(at, before, Some(Detour::stub(&detour.image)))?;
            }
        }
        if let Some(before) = self.detours.insert(at, detour) {
            self.retire(before.image);
        }
        Ok(())
    }

    fn generate(
        &self,
        spot: &Spot,
        place: Place,
        programs: &[Program],
    ) -> Result<Image<P>, Reason> {
        let callees: Vec<_> = programs
            .iter()
            .map(|p| (p.kind, p.callee.clone()))
            .collect();
        let description = Description {
            at: spot.at,
            place,
            programs: &callees,
            runtime: &self.platform().runtime(),
        };
        let refused = |error| match error {
            RelocateOr::Relocate(error) => Reason::Displace(Box::new(error)),
            RelocateOr::Code(error) => Reason::Code(error),
        };
        let owner = match place {
            Place::Middle(_) => Owner::Probe { at: spot.at },
            _ => Owner::Trampoline {
                function: spot.function.start,
            },
        };
        let bound = description.words_at_most(self.pool.window().start);
        let name = format!("the probe at {:#x}", spot.at);
        let bound = bound.map_err(refused)?;
        Image::place(&self.pool, owner, &name, programs, bound, |asm| {
            description.emit(asm).map_err(refused)
        })
    }

    /// Takes a program off its place. Does not wait: what it leaves is freed by [`Platform::defer`].
    ///
    /// A hit that has begun may still run it once; a call that returns later does not.
    pub fn unprobe(&mut self, id: AttachId) -> Result<(), DetachError> {
        let has = |detour: &&Detour<P>| detour.programs.iter().any(|p| p.id == id);
        let Some(detour) = self.detours.values().find(has) else {
            return Err(DetachError::Unknown { id });
        };
        let (spot, place) = (detour.spot.clone(), detour.place);
        let rest: Vec<_> = detour
            .programs
            .iter()
            .filter(|p| p.id != id)
            .cloned()
            .collect();
        let images = detour.images();
        let stuck = |reason| DetachError::Stuck {
            function: spot.function.start,
            reason,
        };
        if rest.is_empty() {
            self.take_off(spot.at).map_err(stuck)?;
        } else {
            match self.lead(&spot, place, rest) {
                // Detaching must not need memory: the calls become branches where they are.
                Err(Reason::Pool(_)) => {
                    if let Some(detour) = self.detours.get_mut(&spot.at) {
                        detour.image.silence(id).map_err(stuck)?;
                        detour.programs.retain(|p| p.id != id);
                    }
                }
                other => other.map_err(stuck)?,
            }
        }
        Chain::silence(images.into_iter(), id);
        Ok(())
    }

    fn take_off(&mut self, at: u64) -> Result<(), Reason> {
        let Some(detour) = self.detours.get(&at) else {
            return Ok(());
        };
        let entry = detour.image.code.address();
        match detour.place.displaced() {
            Some(word) => {
                let there = detour.word()?;
                let platform = self.pool.platform();
                platform
                    .replace_word(at, there, word)
                    .map_err(Reason::Platform)?;
            }
            None => self.swap_stub(at, Some(entry), None)?,
        }
        if let Some(detour) = self.detours.remove(&at) {
            self.retire(detour.image);
        }
        Ok(())
    }

    /// Every program at a probe, by place, in the order they came.
    pub fn probes(&self) -> impl Iterator<Item = Probed<'_>> {
        self.detours.values().flat_map(|detour| {
            detour.programs.iter().map(|program| Probed {
                id: program.id,
                spot: &detour.spot,
                kind: ProbeKind::of(program.kind),
                callee: &program.callee,
                image_bytes: detour.image.code.bytes(),
                stack_bytes: detour.image.stack_bytes,
            })
        })
    }

    /// Every displaced instruction, by ascending address, with the word that is in its place.
    pub fn detoured(&self) -> impl Iterator<Item = (u64, u32)> {
        let displaced = self.detours.iter();
        let displaced = displaced.filter(|(_, detour)| detour.place.displaced().is_some());
        displaced.filter_map(|(at, detour)| Some((*at, detour.word().ok()?)))
    }

    /// The live code of the probes in a function.
    pub fn describe_probes(&self, function: Range<u64>) -> impl Iterator<Item = Line<'_>> {
        let detours = self.detours.range(function);
        detours.flat_map(|(at, detour)| {
            let displaced = detour.place.displaced().map(|_| *at);
            let here = displaced.and_then(|address| {
                let word = self.platform().read(address)?;
                Some(Line {
                    address,
                    word,
                    ingredient: Ingredient::Site,
                    note: "",
                })
            });
            let lines = detour.image.lines(self.platform());
            here.into_iter().chain(lines)
        })
    }
}
