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

/// Inserts an item into a sorted list, unless the list already contains it. Meant for short lists
/// only: calling `sort` would make each user of the crate compile much more code.
pub(crate) fn insert_sorted<T: Ord>(list: &mut Vec<T>, item: T) {
    if let Err(at) = list.binary_search(&item) {
        list.insert(at, item);
    }
}
