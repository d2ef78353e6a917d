//! Leads a stop through its phases, in the supervisors of both back ends, and enforces the grace.
//!
//! 1. *Waiting*, if other services need this one: its supervisor waits until they are gone.
//! 2. *Polite*: all processes of the tree receive the stop signal, and have until the end of the
//!    grace to exit.
//! 3. *Killing*, if the recipe's kill signal is not SIGKILL: all processes receive the kill signal,
//!    and SIGKILL follows a second later.
//! 4. SIGKILL for every process that is left.
//!
//! The portable back end cannot find descendants outside the service's process group, so its
//! signals reach only the group.
//!
//! A supervisor learns from a FIFO that other services need its service. The FIFO, `needed`, is in
//! the private directory of the needed service. The supervisor of each dependent service keeps the
//! FIFO open until its own tree is gone. So the FIFO has a writer as long as a dependent is alive,
//! however that dependent ends.
//!
//! At the start of its own stop, a dependent's supervisor writes into the FIFO how long that stop
//! may take. So the waits along a chain of services add up, to at most ten minutes.
//!
//! When the test process or the run ends, a service waits for its dependents. If a test stops the
//! service alone, the service does not wait, because the test wants an outage.
//!
//! Runs after a fork: see the head of `spawn.rs`.

use std::ffi::c_int;
use std::mem;

use super::arena::Arena;
use super::message::{Message, STOP_IN_A_TEST};
use super::tools::{errno, now_ms};

/// Time between the recipe's kill signal and SIGKILL, if the two differ.
const SECOND_KILL_MS: i64 = 1000;
/// The longest time that a needed service waits for the first message of a dependent. Normally the
/// message arrives immediately, because the same event stops both services.
const WORD_MS: i64 = 5000;
/// Upper limit for the time that a needed service waits for its dependents.
const WAIT_MS: i64 = 600_000;
/// Time that a stop may take beyond its grace, for the kill and the removal of files.
const AFTER_GRACE_MS: i64 = 1000;
/// Time from the stop signal until the descendants outside the service's process group receive it
/// too. Most services are gone by then, which saves the walk over the tree that finds those
/// descendants.
const REST_AFTER_MS: i64 = 30;

/// An order to stop the service.
#[derive(Clone, Copy)]
struct Order {
    signal: i32,
    grace_ms: i64,
    kill_signal: i32,
}

/// The phase of a stop. All times are on CLOCK_MONOTONIC, in ms.
#[derive(Clone, Copy)]
enum Phase {
    Running,
    Waiting { until: i64, latest: i64, order: Order },
    Polite { until: i64, rest_at: i64, order: Order },
    Killing { until: i64, order: Order },
}

/// The supervisor's next step.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// Send the stop signal to the service's group.
    Ask(i32),
    /// Send the stop signal to the descendants outside the group. The portable back end ignores
    /// this step, because it cannot find them.
    AskRest(i32),
    /// Send the recipe's kill signal, which is not SIGKILL, to every process.
    Kill(i32),
    /// Kill every process that is left.
    Conclude,
}

pub(super) struct Ending {
    phase: Phase,
    /// The FIFO, while this service waits for its dependents; otherwise -1.
    pub(super) needed: i32,
    /// Whether the supervisor removes the private directory, because the test process is gone.
    pub(super) clean_up: bool,
    /// Whether the supervisor keeps the log, because the test process ended in the middle of a
    /// test.
    pub(super) keep_log: bool,
}

impl Ending {
    pub(super) fn new() -> Ending {
        Ending {
            phase: Phase::Running,
            needed: -1,
            clean_up: false,
            keep_log: false,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.phase, Phase::Running)
    }

    /// The stop signal, once it has been sent.
    pub(super) fn signal(&self) -> Option<i32> {
        match self.phase {
            Phase::Polite { order, .. } | Phase::Killing { order, .. } => Some(order.signal),
            _ => None,
        }
    }

    /// Handles a `STOP` message.
    pub(super) unsafe fn obey(&mut self, a: &Arena, message: Message) -> Step {
        let order = Order {
            signal: message[1],
            grace_ms: i64::from(message[2]),
            kill_signal: message[3],
        };
        // SAFETY: the arena's path and lists are valid.
        unsafe {
            if message[4] == 0 {
                return self.order(a, order);
            }
            self.clean_up = true;
            self.keep_log |= message[4] == STOP_IN_A_TEST;
            self.order_in_turn(a, order)
        }
    }

    /// Stops the service according to the recipe's policy, because its owner (the test process or
    /// the run) is gone.
    pub(super) unsafe fn lost_owner(&mut self, a: &Arena, in_a_test: bool) -> Step {
        self.clean_up = true;
        self.keep_log |= in_a_test;
        let order = Order {
            signal: a.stop_signal,
            grace_ms: a.grace_ms,
            kill_signal: a.kill_signal,
        };
        // SAFETY: the arena's path and lists are valid.
        unsafe { self.order_in_turn(a, order) }
    }

    /// Begins the stop without waiting for dependents. A second order can only shorten the grace.
    unsafe fn order(&mut self, a: &Arena, order: Order) -> Step {
        let until = now_ms().wrapping_add(order.grace_ms);
        match &mut self.phase {
            Phase::Running | Phase::Waiting { .. } => {
                // SAFETY: the arena's list of needs is valid.
                unsafe { announce(a, order.grace_ms) };
                self.ask(order)
            }
            Phase::Polite {
                until: earlier,
                order: old,
                ..
            } if until < *earlier => {
                *earlier = until;
                old.kill_signal = order.kill_signal;
                Step::Nothing
            }
            _ => Step::Nothing,
        }
    }

    /// Begins the stop, but lets the dependents end first.
    unsafe fn order_in_turn(&mut self, a: &Arena, order: Order) -> Step {
        // SAFETY: the arena's path and lists are valid, and a null path is never opened.
        unsafe {
            if !matches!(self.phase, Phase::Running) {
                return Step::Nothing;
            }
            if !a.needed.is_null() {
                let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW;
                self.needed = libc::open(a.needed, flags);
            }
            let now = now_ms();
            self.phase = Phase::Waiting {
                until: now.wrapping_add(WORD_MS),
                latest: now.wrapping_add(WAIT_MS),
                order,
            };
            if self.needed < 0 || !self.hear(a) {
                return self.order(a, order);
            }
            announce(a, WORD_MS.wrapping_add(order.grace_ms));
            Step::Nothing
        }
    }

    /// Reads the messages of the dependents. Returns `false` when no dependent is left.
    unsafe fn hear(&mut self, a: &Arena) -> bool {
        let Phase::Waiting { until, latest, order } = &mut self.phase else {
            return true;
        };
        let mut longest = 0;
        let is_needed = loop {
            let mut ms = 0_i32;
            // SAFETY: the call reads into a local variable. A pipe delivers such a short message in
            // one piece.
            let got = unsafe { libc::read(self.needed, (&raw mut ms).cast(), mem::size_of::<i32>()) };
            if got == mem::size_of::<i32>() as isize {
                longest = longest.max(i64::from(ms));
                continue;
            }
            if got < 0 && errno() == libc::EINTR {
                continue;
            }
            // EAGAIN means that dependents are alive, but have sent nothing more. Any other result
            // means that no dependent is left.
            break got < 0 && errno() == libc::EAGAIN;
        };
        let now = now_ms();
        let then = now.wrapping_add(longest).min(*latest);
        if is_needed && then > *until {
            *until = then;
            // SAFETY: the arena's list of needs is valid.
            unsafe { announce(a, then.wrapping_sub(now).wrapping_add(order.grace_ms)) };
        }
        is_needed
    }

    fn ask(&mut self, order: Order) -> Step {
        if self.needed >= 0 {
            // SAFETY: the descriptor is this process's own.
            unsafe { libc::close(self.needed) };
            self.needed = -1;
        }
        let now = now_ms();
        self.phase = Phase::Polite {
            until: now.wrapping_add(order.grace_ms),
            rest_at: now.wrapping_add(REST_AFTER_MS),
            order,
        };
        Step::Ask(order.signal)
    }

    /// Returns the step that is due now.
    pub(super) unsafe fn step(&mut self, a: &Arena) -> Step {
        let now = now_ms();
        // SAFETY: the arena's list of needs is valid.
        if matches!(self.phase, Phase::Waiting { .. }) && !unsafe { self.hear(a) } {
            if let Phase::Waiting { order, .. } = self.phase {
                return self.ask(order);
            }
        }
        match &mut self.phase {
            Phase::Waiting { until, order, .. } if now >= *until => {
                let order = *order;
                self.ask(order)
            }
            Phase::Polite { until, order, .. } if now >= *until => {
                if order.kill_signal == libc::SIGKILL {
                    return Step::Conclude;
                }
                let order = *order;
                self.phase = Phase::Killing {
                    until: now.wrapping_add(SECOND_KILL_MS),
                    order,
                };
                Step::Kill(order.kill_signal)
            }
            Phase::Polite { rest_at, order, .. } if now >= *rest_at => {
                *rest_at = i64::MAX;
                Step::AskRest(order.signal)
            }
            Phase::Killing { until, .. } if now >= *until => Step::Conclude,
            _ => Step::Nothing,
        }
    }

    /// The timeout for `poll` in ms; -1 means no limit.
    pub(super) fn patience(&self) -> c_int {
        let until = match self.phase {
            Phase::Running => return -1,
            Phase::Waiting { until, .. } | Phase::Killing { until, .. } => until,
            Phase::Polite { until, rest_at, .. } => until.min(rest_at),
        };
        until.wrapping_sub(now_ms()).clamp(0, 60_000) as c_int
    }
}

/// Tells the needed services how long this service may take to stop.
unsafe fn announce(a: &Arena, ms: i64) {
    let ms = i32::try_from(ms.saturating_add(AFTER_GRACE_MS)).unwrap_or(i32::MAX);
    for at in 0..a.needs_count {
        // SAFETY: the list has `needs_count` entries, and the call writes from a local variable.
        // The descriptors never block.
        unsafe { libc::write(*a.needs.add(at), (&raw const ms).cast(), mem::size_of::<i32>()) };
    }
}

/// The name of the FIFO in a private directory.
pub(super) const NEEDED: &str = "needed";
