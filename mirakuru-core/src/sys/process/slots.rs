//! A lock-free list of slots, for the exit handler (`exit.rs`).
//!
//! The handler runs while other threads may still be running, and one of them could hold a lock for
//! ever. So the list has no lock. Slots are reused, but never removed or freed.

use std::iter::successors;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

pub(super) struct Slots<T: 'static> {
    head: AtomicPtr<Slot<T>>,
}

/// An entry in the list. Its owner and the handler claim the value with atomic swaps.
#[derive(Debug)]
pub(super) struct Slot<T: 'static> {
    value: T,
    used: AtomicBool,
    next: AtomicPtr<Slot<T>>,
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Slots<T> {
        let head = AtomicPtr::new(ptr::null_mut());
        Slots { head }
    }

    /// Returns an unused slot, which still holds its last owner's value, or adds a slot with a new
    /// value.
    pub(super) fn take(&self, value: impl FnOnce() -> T) -> &'static Slot<T> {
        if let Some(slot) = self.iter().find(|slot| !slot.used.swap(true, Ordering::SeqCst)) {
            return slot;
        }
        let slot: &'static Slot<T> = Box::leak(Box::new(Slot {
            value: value(),
            used: AtomicBool::new(true),
            next: AtomicPtr::new(ptr::null_mut()),
        }));
        let ours = ptr::from_ref(slot).cast_mut();
        let pushed = self
            .head
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |head| {
                slot.next.store(head, Ordering::SeqCst);
                Some(ours)
            });
        debug_assert!(pushed.is_ok(), "the closure always returns a value");
        slot
    }

    /// All slots, in use or not.
    pub(super) fn iter(&self) -> impl Iterator<Item = &'static Slot<T>> + use<T> {
        // SAFETY: slots are leaked, so every pointer in the list stays valid. A slot is initialised
        // before it enters the list.
        let at = |next: &AtomicPtr<Slot<T>>| unsafe { next.load(Ordering::SeqCst).as_ref() };
        successors(at(&self.head), move |slot| at(&slot.next))
    }
}

impl<T> Slot<T> {
    /// Frees the slot for another owner.
    pub(super) fn release(&self) {
        self.used.store(false, Ordering::SeqCst);
    }
}

impl<T> Deref for Slot<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}
