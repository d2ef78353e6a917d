//! Small helpers that several folders need.

pub(crate) mod backoff;
pub(crate) mod deadline;
pub(crate) mod hash;
#[cfg(test)]
pub(crate) mod own_process;
pub(crate) mod say;
pub(crate) mod settings;
pub(crate) mod text;
pub(crate) mod thread;
pub(crate) mod wakeup;

use std::collections::BinaryHeap;

/// Sorts a list of any length. Calling `sort` would make each user of the crate compile much more
/// code.
pub(crate) fn sorted<T: Ord>(list: Vec<T>) -> Vec<T> {
    BinaryHeap::from(list).into_sorted_vec()
}

/// Inserts an item into a sorted list, unless the list already contains it. Meant for lists of up
/// to a few hundred items, because each item takes time in proportion to the length of the list.
/// For longer lists use [`sorted`].
pub(crate) fn insert_sorted<T: Ord>(list: &mut Vec<T>, item: T) {
    if let Err(at) = list.binary_search(&item) {
        list.insert(at, item);
    }
}
