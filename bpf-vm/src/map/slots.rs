// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slots that hold an `Arc` each, read without a lock and without counting; what is replaced outlives its readers.
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    mem::ManuallyDrop,
    ptr::null_mut,
    sync::atomic::{
        AtomicPtr,
        Ordering::{AcqRel, Acquire},
    },
};

/// What was taken out of a slot while programs may still be using it.
///
/// Dropping it leaks what it holds, since that is always sound; [`release`](Self::release) it after a grace period.
#[must_use = "what was replaced leaks unless it is released after a grace period"]
#[derive(Debug)]
pub struct Retired<T>(ManuallyDrop<Arc<T>>);

impl<T> Retired<T> {
    /// Gives the `Arc` back.
    ///
    /// # Safety
    /// No program that ran when it was taken out of its slot runs any more (a grace period has passed), and the caller
    /// holds no reference that it got from the slot.
    pub unsafe fn release(self) -> Arc<T> {
        ManuallyDrop::into_inner(self.0)
    }
}

/// A fixed number of slots, all empty at first.
pub(super) struct Slots<T>(Box<[AtomicPtr<T>]>);

impl<T> Slots<T> {
    /// `count` empty slots; `None` if there is no memory for them.
    pub(super) fn new(count: usize) -> Option<Self> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(count).ok()?;
        slots.resize_with(count, || AtomicPtr::new(null_mut()));
        Some(Self(slots.into_boxed_slice()))
    }

    /// What a slot holds.
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        let held = self.0.get(index)?.load(Acquire);
        // SAFETY: a pointer in a slot comes from `Arc::into_raw`. The slot owned that count when it was read; if it was
        // emptied since, a `Retired` owns it until nobody uses this reference any more, which `release` asks for.
        unsafe { held.as_ref() }
    }

    /// Puts something else, or nothing, into a slot; `None` past the end, else what it held.
    pub(super) fn replace(&self, index: usize, new: Option<Arc<T>>) -> Option<Option<Retired<T>>> {
        let slot = self.0.get(index)?;
        let new = new.map_or(null_mut(), |new| Arc::into_raw(new).cast_mut());
        let old = slot.swap(new, AcqRel);
        if old.is_null() {
            return Some(None);
        }
        // SAFETY: it comes from `Arc::into_raw`, and the swap took the slot's count of it over.
        let old = unsafe { Arc::from_raw(old) };
        Some(Some(Retired(ManuallyDrop::new(old))))
    }

    /// What is in the slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.0.len()).filter_map(|index| self.get(index))
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        for slot in &mut self.0 {
            let held = *slot.get_mut();
            if !held.is_null() {
                // SAFETY: it comes from `Arc::into_raw`, its count is the slot's, and nobody else has the slots now.
                drop(unsafe { Arc::from_raw(held) });
            }
        }
    }
}
