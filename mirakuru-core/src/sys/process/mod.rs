//! Supervises services.
//!
//! There are two back ends. `linux` can prove that nothing is left of a service; `portable` does as
//! much as POSIX allows, for every other Unix. The files beside them hold the shared code. The code
//! outside this folder does not know which back end is in use.

mod arena;
pub(crate) mod calls;
mod early;
// The portable back end uses only a part of this module.
#[cfg_attr(any(not(target_os = "linux"), mirakuru_portable), allow(dead_code))]
mod ending;
pub(crate) mod exit;
#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
mod linux;
mod message;
pub(crate) mod origin;
mod output;
pub(crate) mod plan;
#[cfg(any(not(target_os = "linux"), mirakuru_portable))]
mod portable;
pub(crate) mod service;
pub(crate) mod signals;
mod slots;
mod spawn;
mod tools;
pub(crate) mod users;

#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
use linux as back_end;
#[cfg(any(not(target_os = "linux"), mirakuru_portable))]
use portable as back_end;

pub(crate) use back_end::os::{LOSES_DAEMONS, forks_whole_because, kill_marked, pidfd, pidfds_are_missing};
