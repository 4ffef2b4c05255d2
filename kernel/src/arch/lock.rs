// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks that wait with WFE: a spin lock, interrupts masked while held, and a value that is set once.
//!
//! The waiter's LDAXR sets its exclusive monitor; the holder's STLR clears it, which is a wake-up event (Arm ARM
//! B2.12.1), so no SEV is needed and none is lost: if the store comes between LDAXR and WFE, the event is pending.

use super::irq;
use crate::hook_path::{self, Entered};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// The bare lock word: 0 free, 1 held.
pub(crate) struct RawLock(AtomicU32);

impl RawLock {
    /// A free lock.
    pub(crate) const fn new() -> RawLock {
        RawLock(AtomicU32::new(0))
    }

    /// Takes the lock; interrupts must be masked, or an interrupt on this core could wait for itself.
    #[inline(always)]
    pub(crate) fn lock(&self) {
        // SAFETY: exclusive accesses to an aligned u32 that this reference keeps alive. LDAXR gives acquire order.
        unsafe {
            asm!(
                "1: ldaxr {old:w}, [{word}]",
                "cbnz {old:w}, 2f",
                "stxr {old:w}, {one:w}, [{word}]",
                "cbnz {old:w}, 1b",
                "b 3f",
                "2: wfe",
                "b 1b",
                "3:",
                word = in(reg) self.0.as_ptr(),
                one = in(reg) 1,
                old = out(reg) _,
                options(nostack)
            )
        }
    }

    /// Takes the lock if it is free.
    pub(crate) fn try_lock(&self) -> bool {
        self.0
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Gives it back, by a store-release (STLR).
    #[inline(always)]
    pub(crate) fn unlock(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// Mutual exclusion between cores and contexts below NMI: interrupts are masked while it is held.
pub(crate) struct SpinLock<T> {
    raw: RawLock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through a guard, and the raw lock lets one guard exist at a time.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock around `value`.
    pub(crate) const fn new(value: T) -> SpinLock<T> {
        SpinLock {
            raw: RawLock::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Masks interrupts, then waits for the lock.
    pub(crate) fn lock(&self) -> SpinGuard<'_, T> {
        hook_path::enter(Entered::SpinLock);
        let state = irq::disable();
        self.raw.lock();
        SpinGuard {
            lock: self,
            state,
            here: PhantomData,
        }
    }

    /// The lock if it is free: for reports out of broken states.
    pub(crate) fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        let state = irq::disable();
        if self.raw.try_lock() {
            return Some(SpinGuard {
                lock: self,
                state,
                here: PhantomData,
            });
        }
        irq::restore(state);
        None
    }
}

/// A held [`SpinLock`]; dropping it unlocks and puts the interrupt mask back.
pub(crate) struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
    state: irq::State,
    /// Neither Send nor Sync: the mask is this core's, and `T` need not be Sync.
    here: PhantomData<*const T>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this guard exists, so the lock is held, and by no one else.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard exists, so the lock is held, and by no one else; `&mut self` makes it one reference.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.raw.unlock();
        irq::restore(self.state);
    }
}

/// A value that is set once and then read without a lock, from any context.
pub(crate) struct Late<T: 'static>(AtomicPtr<T>);

impl<T: Sync> Late<T> {
    /// Not set so far.
    pub(crate) const fn new() -> Late<T> {
        Late(AtomicPtr::new(core::ptr::null_mut()))
    }

    /// Sets it; a second time changes nothing and returns false.
    pub(crate) fn set(&self, value: &'static T) -> bool {
        let pointer = core::ptr::from_ref(value).cast_mut();
        self.0
            .compare_exchange(
                core::ptr::null_mut(),
                pointer,
                Ordering::Release,
                Ordering::Relaxed,
            )
            .is_ok()
    }

    /// The value, if it was set.
    #[inline(always)]
    pub(crate) fn get(&self) -> Option<&'static T> {
        // SAFETY: the pointer is null or came from a `&'static T` in `set`; Acquire pairs with its Release.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}

/// A value that can be exchanged, read from any context without a lock.
pub(crate) struct Swap<T: 'static>(AtomicPtr<T>);

impl<T: Sync> Swap<T> {
    /// Empty.
    pub(crate) const fn new() -> Swap<T> {
        Swap(AtomicPtr::new(core::ptr::null_mut()))
    }

    /// Puts another value in.
    pub(crate) fn set(&self, value: Option<&'static T>) {
        self.0.store(
            value.map_or(core::ptr::null_mut(), |v| core::ptr::from_ref(v).cast_mut()),
            Ordering::Release,
        );
    }

    /// What is in.
    pub(crate) fn get(&self) -> Option<&'static T> {
        // SAFETY: the pointer is null or came from a `&'static T` in `set`; Acquire pairs with its Release.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}
