//! Starts and stops several services together, without threads. A start launches all services
//! before it waits for any. A stop asks all of them to stop before it waits, except those that
//! other services in the group still need.

use std::path::Path;
use std::time::Duration;

use crate::error::Error;
use crate::executor::Executor;
use crate::executor::needs;
use crate::executor::wait::Pause;
use crate::readiness::Readiness;
use crate::sys::{self, Plan, Service, SpawnFailure};
use crate::util::deadline::Deadline;
use crate::util::wakeup::Wakeup;

/// An [`Executor`], whatever its readiness condition, that can be started and stopped together with
/// others.
#[doc(hidden)]
pub trait Startable {
    /// Prepares the start, up to the point at which the supervisor is forked. Returns `None` if the
    /// service is already running.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`Executor::start`].
    fn plan_start(&mut self) -> Result<Option<Planned>, Error>;

    /// Stores the result of the launch: the new supervisor, or the error.
    fn launched(&mut self, launched: Launched);

    /// Polls the readiness condition once. If the service is not ready, returns the pause before
    /// the next poll.
    ///
    /// # Errors
    ///
    /// Returns the same errors as [`Executor::start`].
    fn step_start(&mut self) -> Result<Option<Pause>, Error>;

    /// A descriptor that becomes readable when the service has an event. `None` if an event is
    /// already waiting.
    fn events(&self) -> Option<i32>;

    /// The service's private directory.
    fn private_dir(&self) -> &Path;

    /// Asks the service to stop, without waiting. Returns its grace.
    fn begin_stop(&mut self) -> Duration;

    /// Returns the next pause while the service is stopping. `left` is the remaining time. Returns
    /// `None` if the service has ended, was never executed, or has no time left;
    /// [`end_stop`](Startable::end_stop) then returns almost immediately.
    fn pause_of_stop(&mut self, left: Duration) -> Option<Pause>;

    /// Stops the service as [`Executor::stop`] does.
    ///
    /// # Errors
    ///
    /// The errors of [`Executor::stop`].
    fn end_stop(&mut self) -> Result<(), Error>;
}

/// A service that is about to be launched.
#[doc(hidden)]
pub struct Planned(Plan);

/// The result of a service's launch.
#[doc(hidden)]
pub struct Launched(Result<Service, SpawnFailure>);

impl<R: Readiness> Startable for Executor<R> {
    fn plan_start(&mut self) -> Result<Option<Planned>, Error> {
        if self.runs_on() {
            return Ok(None);
        }
        self.verb("start", |mut owned, readiness| {
            Ok(Some(Planned(owned.plan_start(readiness)?)))
        })
    }

    fn launched(&mut self, launched: Launched) {
        if let Ok(mut owned) = self.process.owned(&mut self.core, "start") {
            owned.launched(launched.0);
        }
    }

    fn step_start(&mut self) -> Result<Option<Pause>, Error> {
        let Ok(mut owned) = self.process.owned(&mut self.core, "start") else {
            return Ok(None);
        };
        let step = owned.step_start(&mut self.readiness);
        self.core.masked(step)
    }

    fn events(&self) -> Option<i32> {
        self.process.own()?.lock().as_ref().and_then(Service::events)
    }

    fn private_dir(&self) -> &Path {
        self.core.service_dir.path()
    }

    fn begin_stop(&mut self) -> Duration {
        let Ok(mut owned) = self.process.owned(&mut self.core, "stop") else {
            return Duration::ZERO;
        };
        let policy = owned.policy();
        owned.begin_end(policy);
        policy.grace
    }

    fn pause_of_stop(&mut self, left: Duration) -> Option<Pause> {
        let owned = self.process.owned(&mut self.core, "stop").ok()?;
        owned.pause_of_end(&Deadline::after_scaled(left))
    }

    fn end_stop(&mut self) -> Result<(), Error> {
        self.stop()
    }
}

/// Stops several services together, without threads. A service that others in the list need is
/// asked to stop only after those others have ended. All other services are asked before the first
/// wait.
///
/// # Errors
///
/// The first error of [`Executor::stop`], after all services have been stopped.
#[doc(hidden)]
pub fn stop_together(services: &mut [&mut dyn Startable]) -> Result<(), Error> {
    let (mut dirs, mut results) = (Vec::new(), Vec::new());
    for service in services.iter() {
        dirs.push(service.private_dir());
        results.push(None);
    }
    let dependents = needs::dependents_among(&dirs);
    let mut limits: Vec<Option<Deadline>> = vec![None; services.len()];
    while results.iter().any(Option::is_none) {
        for at in 0..services.len() {
            if limits[at].is_none() && dependents[at].iter().all(|&other| results[other].is_some()) {
                limits[at] = Some(Deadline::after_scaled(services[at].begin_stop()));
            }
        }
        let (mut time, mut events) = (Duration::MAX, Vec::new());
        for at in 0..services.len() {
            let Some(limit) = limits[at].filter(|_| results[at].is_none()) else {
                continue;
            };
            match services[at].pause_of_stop(limit.remaining()) {
                Some(pause) => {
                    time = time.min(pause.time);
                    events.extend(pause.events);
                }
                None => {
                    results[at] = Some(services[at].end_stop());
                    // Do not pause: the services that this one needed can now be asked to stop.
                    time = Duration::ZERO;
                }
            }
        }
        if !time.is_zero() {
            sys::wait_readable(&events, time);
        }
    }
    results.into_iter().flatten().collect()
}

/// Maximum number of services that are launched together. A larger group would need many
/// descriptors at the same time, and its first service would start only after all have been
/// planned.
const AT_ONE_GO: usize = 8;

/// Launches several services in this order, without waiting until they are ready: see
/// [`poll_together`].
///
/// # Errors
///
/// The first error of [`Executor::start`], with the service's index. Other services may already
/// have been launched; the caller must drop them.
#[doc(hidden)]
pub fn launch_together(services: &mut [&mut dyn Startable]) -> Result<(), (usize, Error)> {
    for (chunk, services) in services.chunks_mut(AT_ONE_GO).enumerate() {
        let (mut planned, mut plans) = (Vec::new(), Vec::new());
        for (at, service) in services.iter_mut().enumerate() {
            let plan = service.plan_start();
            if let Some(plan) = plan.map_err(|error| (chunk * AT_ONE_GO + at, error))? {
                planned.push(at);
                plans.push(plan.0);
            }
        }
        for (at, launched) in planned.into_iter().zip(Service::launch(plans)) {
            services[at].launched(Launched(launched));
        }
    }
    Ok(())
}

/// The state of services that are starting, after one poll.
#[doc(hidden)]
pub struct Polled {
    /// Indexes of the services that are ready.
    pub ready: Vec<usize>,
    /// The time until the next poll of the services that are not ready.
    time: Duration,
    events: Vec<i32>,
}

impl Polled {
    /// Waits until an event arrives or the time is up.
    pub fn wait(self) {
        sys::wait_readable(&self.events, self.time);
    }

    /// [`wait`](Polled::wait) as a future.
    pub fn wakeup(self) -> Wakeup {
        Wakeup::new(self.time, self.events)
    }
}

/// Polls each of these services once.
///
/// # Errors
///
/// The first error of [`Executor::start`], with the service's index.
#[doc(hidden)]
pub fn poll_together(services: &mut [&mut dyn Startable]) -> Result<Polled, (usize, Error)> {
    let mut polled = Polled {
        ready: Vec::new(),
        time: Duration::MAX,
        events: Vec::new(),
    };
    for (at, service) in services.iter_mut().enumerate() {
        match service.step_start().map_err(|error| (at, error))? {
            None => polled.ready.push(at),
            Some(pause) => {
                polled.time = polled.time.min(pause.time);
                polled.events.extend(pause.events);
            }
        }
    }
    for service in services {
        match service.events() {
            Some(event) => polled.events.push(event),
            // An event of this service is pending. The pause is short but not zero, because the
            // descriptor of a dead supervisor stays readable.
            None => polled.time = polled.time.min(Duration::from_millis(1)),
        }
    }
    Ok(polled)
}
