//! Stops a service: asks it to stop, waits until it has ended, and judges the exit status.

use std::process::ExitStatus;

use crate::error::Error;
use crate::error::report::{HEAD_LINES, TAIL_LINES, Tail, print, shown};
use crate::error::secrets::Unmasked;
use crate::error::text::{Ended, Span};
use crate::executor::Executor;
use crate::executor::needs;
use crate::executor::process::{Observed, Owned};
use crate::executor::wait::Pause;
use crate::observe::trace;
use crate::outcome::{test_has_failed, timed_out};
use crate::output::live;
use crate::sys::{self, Exit, Service, StopPolicy, signals};
use crate::timeline::events as timeline;
use crate::util::deadline::{Deadline, scaled};

impl Owned<'_> {
    pub(super) fn policy(&self) -> StopPolicy {
        StopPolicy {
            signal: self.core.spec.stop_signal.number(),
            grace: scaled(self.core.spec.stop_timeout),
            kill_signal: self.core.spec.kill_signal.number(),
        }
    }

    pub(super) fn stop(&mut self) -> Result<(), Unmasked> {
        let had_ended = self.own.asked_to_end.unwrap_or_else(|| self.own.has_ended());
        let Some(exit) = self.end(self.policy())? else {
            return Ok(());
        };
        let (signal, expected) = (self.core.spec.stop_signal, self.core.spec.expected_exit);
        let fine = exit.status.success()
            || exit.status.code().is_some_and(|code| expected == Some(code))
            // A shell or a JVM that handles the signal exits with this status.
            || exit.status.code() == Some(128 + signal.number())
            || signals::is_death_by(exit.status, signal.number());
        if fine {
            return Ok(());
        }
        let mut evidence = self.core.evidence(self.own, None);
        if had_ended {
            evidence.hint = Some(
                "it had ended by itself before it was asked to: find the reason in its output".to_owned(),
            );
        } else if signals::is_death_by(exit.status, self.core.spec.kill_signal.number()) {
            evidence.hint = Some(format!(
                "it did not end within {} of {signal}: give it a longer `stop_timeout`, or another \
                    `stop_signal`",
                Span(scaled(self.core.spec.stop_timeout)),
            ));
        } else if let Some(code) = exit.status.code() {
            evidence.hint = Some(format!(
                "if it always ends like this after {signal}, accept that with `.expected_exit({code})`, or \
                    set another `.stop_signal(..)`"
            ));
        }
        let code = expected
            .map(|code| format!("status {code}, "))
            .unwrap_or_default();
        let after_signal = 128 + signal.number();
        let expected = format!("{code}status 0, status {after_signal} or death by {signal}");
        Err(Error::BadExit {
            command: self.core.command.clone(),
            status: exit.status,
            expected,
            evidence,
        }
        .into())
    }

    /// Asks the service to stop. [`end`](Owned::end) waits until it has ended.
    pub(super) fn begin_end(&mut self, policy: StopPolicy) {
        let had_ended = self.own.has_ended();
        if self.own.asked_to_end.is_some() || self.own.lock().is_none() {
            return;
        }
        self.own.asked_to_end = Some(had_ended);
        if std::mem::take(&mut self.own.paused) {
            // A paused tree cannot handle the stop signal.
            self.own.signal_tree(sys::TreeSignal::Continue);
        }
        timeline::stops(self.core.service_dir.id());
        if let Some(service) = self.own.lock().as_mut() {
            service.ask_to_stop(policy);
        }
    }

    /// Returns the next pause while the service is stopping. Returns `None` if the service has
    /// ended, was never executed, or has no time left; [`end`](Owned::end) then returns almost
    /// immediately.
    pub(super) fn pause_of_end(&self, limit: &Deadline) -> Option<Pause> {
        let mut service = self.own.lock();
        let service = service.as_mut().filter(|_| !limit.is_over())?;
        // A service that was never executed cannot handle the signal, and is killed immediately.
        let is_over = service.is_gone() || service.pid() == 0;
        (!is_over).then(|| Pause {
            time: limit.remaining(),
            events: vec![service.control()],
        })
    }

    /// Stops the service. Returns the exit of its main process, if it was executed.
    pub(super) fn end(&mut self, policy: StopPolicy) -> Result<Option<Exit>, Unmasked> {
        self.own.stdin = None;
        self.begin_end(policy);
        self.own.asked_to_end = None;
        let Some(mut service) = self.own.lock().take() else {
            self.own.endpoint_lock = None;
            return Ok(None);
        };
        let _span = trace::stop(self.core.values.name(), self.core.pid);
        let result = service.stop(policy);
        self.own.last_exit = service.exit();
        trace::stopped(
            self.own
                .last_exit
                .map(|exit| Ended(exit.status))
                .as_ref()
                .map(|e| e as _),
        );
        if service.ended_elsewhere() {
            self.core.service_dir.give_away();
        }
        drop(service);
        timeline::gone(self.core.service_dir.id(), self.own.last_exit);
        live::catch_up(&self.core.service_dir.log());
        self.own.endpoint_lock = None;
        self.core.values.hold_again();
        result.map_err(|source| Error::system(format!("stop `{}`", self.core.command), source))?;
        Ok(self.own.last_exit)
    }

    pub(super) fn wait(&mut self, deadline: Deadline) -> Result<ExitStatus, Unmasked> {
        loop {
            // The supervisor reports the exit before it reports that no process is left. If this
            // check came second, both reports could arrive between the checks, and the exit would
            // be missed.
            let is_gone = self.own.lock().as_mut().is_none_or(Service::is_gone);
            let exit = self.own.exit();
            if let Some(exit) = exit {
                return Ok(exit.status);
            }
            if is_gone {
                return Err(self.core.not_running("wait for its end"));
            }
            if deadline.is_over() {
                return Err(Error::Timeout {
                    command: self.core.command.clone(),
                    awaited: "it ended by itself".to_owned(),
                    elapsed: deadline.elapsed(),
                    evidence: self.core.evidence(self.own, None),
                }
                .into());
            }
            if let Some(service) = self.own.lock().as_mut() {
                service.forget_output();
                service.wait_event(&[], deadline.remaining());
            }
        }
    }
}

impl<R> Drop for Executor<R> {
    fn drop(&mut self) {
        let core = &mut self.core;
        if test_has_failed() && core.pid != 0 {
            let printed = core.output.excerpt(core.since.output, HEAD_LINES, TAIL_LINES);
            if !printed.tail.is_empty() {
                core.keep_log();
                let log = core.service_dir.log();
                let tail = Tail {
                    command: &core.command,
                    printed: printed.printed(&log),
                    of_test: false,
                };
                print(shown(&tail));
            }
        }
        if let Ok(mut owned) = self.process.owned(core, "stop") {
            if test_has_failed() {
                owned.keep_after_failure();
            }
            let policy = owned.policy();
            let _ = owned.end(policy);
            needs::forget(owned.core.service_dir.path());
        }
        timed_out::forget(self.core.test, &self.core.service_dir.log());
        live::forget(&self.core.service_dir.log());
    }
}
