//! Kills all processes that carry the mark of a service in their environment. This is the last
//! resort after guard and worker were killed at the same time.
//!
//! The mark is an entry `MIRAKURU_ID=<id>`. The whole entry must match, not only a part of it. This
//! search misses a process that has cleared its environment. A subreaper does not miss it, so the
//! supervisor consists of two subreapers.

use std::time::{Duration, Instant};

use super::handle;
use crate::sys::proc;

/// Kills every process that carries one of these marks, until a search finds none, but for no
/// longer than a second.
pub(crate) fn kill_marked(ids: &[&str]) {
    if ids.is_empty() {
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    let me = std::process::id();
    loop {
        let mut found = false;
        for pid in proc::pids() {
            if pid != me && carries(pid, ids) {
                found |= kill(pid, ids);
            }
        }
        if !found || Instant::now() > deadline {
            return;
        }
    }
}

fn carries(pid: u32, ids: &[&str]) -> bool {
    let environment = proc::environment(pid).unwrap_or_default();
    proc::service_ids(&environment).any(|id| ids.iter().any(|wanted| wanted.as_bytes() == id))
}

/// Kills a process if it still carries a mark once its pidfd is open.
fn kill(pid: u32, ids: &[&str]) -> bool {
    // SAFETY: `signal_if` is sound with any arguments.
    unsafe { handle::signal_if(pid as i32, libc::SIGKILL, || carries(pid, ids)) }
}
