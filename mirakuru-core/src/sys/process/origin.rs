//! Records the id of this process's parent before `main`. Once the parent has died, its id can no
//! longer be found.
//!
//! The kernel makes an orphan a child of the nearest ancestor that adopts orphans. Afterwards
//! nothing in `/proc` distinguishes this ancestor from the original parent. So the parent's id is
//! recorded while the parent is still alive.

use std::os::unix::process::parent_id;
use std::sync::atomic::{AtomicU32, Ordering};

/// The process ids of the parent and of this process, both 0 until the loader has called
/// `note_parent`.
static PARENT: AtomicU32 = AtomicU32::new(0);
static SELF: AtomicU32 = AtomicU32::new(0);

/// The loader calls this before `main`, while the process has a single thread.
extern "C" fn note_parent() {
    PARENT.store(parent_id(), Ordering::Relaxed);
    SELF.store(std::process::id(), Ordering::Relaxed);
}

// SAFETY: the section holds pointers to functions of this type, and this one calls nothing but
// `getppid` and `getpid`.
#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static AT_LOAD: extern "C" fn() = note_parent;

/// Whether the process that started this one has ended. Returns `false` in a forked child that has
/// not executed a program, because the loader has not called `note_parent` there.
pub(crate) fn is_orphan() -> bool {
    SELF.load(Ordering::Relaxed) == std::process::id() && PARENT.load(Ordering::Relaxed) != parent_id()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_has_called_it() {
        assert_ne!(PARENT.load(Ordering::Relaxed), 0);
        assert!(!is_orphan());
    }
}
