//! Waits for a condition: polls it at each event until it holds, the service ends, or the time is
//! up.

use std::io;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use crate::error::report::{HEAD_LINES, TAIL_LINES};
use crate::error::secrets::Unmasked;
use crate::error::text::Ended;
use crate::error::{Error, Evidence};
use crate::executor::hint;
use crate::executor::process::{Core, Observed};
use crate::observe::progress::{self, Progress};
use crate::observe::trace;
use crate::outcome::shared_use::{self, HowItEnded};
use crate::outcome::timed_out;
use crate::ports::owner::WrongListener;
use crate::readiness::Readiness;
use crate::readiness::Wake;
use crate::readiness::context::Probe;
use crate::readiness::line_watch::LineWatch;
use crate::util::deadline::Deadline;

/// The longest pause while this process waits for a service that another process started. No event
/// tells this process that such a service has ended.
pub(super) const UNTOLD_PAUSE: Duration = Duration::from_millis(10);
/// The end of a message about the output of an external server.
pub(super) const NOT_OURS: &str = ", whose output mirakuru does not see";
/// If a probe times out after having less time than this, the error of an earlier probe is more
/// informative and is kept.
const CUT_SHORT: Duration = Duration::from_millis(100);

impl Core {
    /// Polls until the condition holds, the service ends or prints a failure line, or the time is
    /// up.
    pub(super) fn await_ready(
        &mut self,
        process: &mut dyn Observed,
        readiness: &mut dyn Readiness,
        deadline: Deadline,
    ) -> Result<(), Unmasked> {
        let mut wait = Wait::new(deadline, Vec::new());
        let held = loop {
            match self.poll(process, readiness, &mut wait) {
                Ok(None) => break Ok(()),
                Ok(Some(pause)) => process.wait_event(&pause),
                Err(error) => break Err(error),
            }
        };
        readiness.wait_is_over();
        held
    }

    /// Polls once. Returns `None` if the condition holds, otherwise the pause before the next poll.
    pub(super) fn poll(
        &mut self,
        process: &mut dyn Observed,
        readiness: &mut dyn Readiness,
        wait: &mut Wait,
    ) -> Result<Option<Pause>, Unmasked> {
        let supervisor = process.supervisor();
        loop {
            // If the service has ended, all of its output must be in the log before the poll. The
            // result is then final.
            let ended = process.ended().is_some();
            if ended {
                process.sync_output();
            }
            let wants_output = wakes(readiness, Duration::ZERO).output || !wait.fail_on.is_empty();
            if wants_output {
                // The event is requested before the output is searched, so that no line is missed.
                process.arm_output();
            } else {
                process.forget_output();
            }
            let failed = wait.fail_on.iter_mut().find_map(|(pattern, watch)| {
                let line = watch.first(&self.output, self.since.output).ok().flatten()?;
                Some((pattern.clone(), line))
            });
            if let Some((pattern, line)) = failed {
                let evidence = self.evidence(process, wait.last_probe.take());
                let elapsed = wait.deadline.elapsed();
                let command = self.command.clone();
                return Err(Error::FailureLine {
                    command,
                    line,
                    pattern,
                    elapsed,
                    evidence,
                }
                .into());
            }
            // After the service has ended, only immediate conditions and conditions on its output
            // can still hold.
            let stays_true = readiness.is_immediate() || readiness.waits_for_output();
            if stays_true || !ended {
                let remaining = wait.deadline.remaining();
                let probe = self.probe(supervisor, wait.deadline, ended);
                match readiness.probe(&probe) {
                    // A probe may succeed for another reason, such as a file that the service left
                    // behind, or another process. If the service is gone, the success does not
                    // count.
                    Ok(true) if stays_true || process.ended().is_none() => {
                        let notes = self.notes.get_mut().unwrap_or_else(PoisonError::into_inner);
                        self.captured.clone_from(&notes.captured);
                        return Ok(None);
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                        let readiness = readiness.describe();
                        return Err(Error::InvalidReadiness {
                            readiness,
                            reason: error.to_string(),
                            system: Vec::new(),
                        }
                        .into());
                    }
                    Err(error) => {
                        if let Some(wrong_listener) = WrongListener::of(&error) {
                            // If the service has exited, its exit explains more than this error.
                            if let Some(error) = self.exit_error(process, readiness, None) {
                                return Err(error);
                            }
                            let mut evidence = self.evidence(process, None);
                            evidence.about = wrong_listener.holder.about();
                            evidence.hint = Some(wrong_listener.remedy());
                            return Err(Error::WrongListener {
                                command: self.command.clone(),
                                endpoint: wrong_listener.endpoint.to_string(),
                                holder: wrong_listener.holder.to_string(),
                                evidence,
                            }
                            .into());
                        }
                        let text = self.values.mask(&error.to_string());
                        trace::not_ready(&text);
                        let cut_short = error.kind() == io::ErrorKind::TimedOut && remaining < CUT_SHORT;
                        if !(cut_short && wait.last_probe.is_some()) {
                            wait.last_probe = Some(text);
                        }
                    }
                }
            }
            if ended {
                if let Some(error) = self.exit_error(process, readiness, wait.last_probe.take()) {
                    return Err(error);
                }
            }
            if process.ended().is_some() {
                continue;
            }
            let deadline = wait.deadline.at_least(readiness.extended());
            if deadline.is_over() {
                let mut evidence = self.evidence(process, wait.last_probe.take());
                if evidence.hint.is_none() {
                    let probe = self.probe(supervisor, deadline, ended);
                    evidence.hint = readiness.hint(&probe);
                }
                return Err(Error::Timeout {
                    command: self.command.clone(),
                    awaited: readiness.describe(),
                    elapsed: deadline.elapsed(),
                    evidence,
                }
                .into());
            }
            let wake = wakes(readiness, deadline.elapsed());
            if wake.output && !wants_output {
                // One half of an `And` held in this poll, and the other half needs output. No
                // output event was requested before the poll, so new output may have been missed:
                // poll again.
                continue;
            }
            if readiness.waits_for_output() {
                self.refuse_external("wait for a line of", NOT_OURS)?;
            }
            wait.progress.tell(&|elapsed| self.standing(elapsed, readiness));
            let time = wake.pause.min(deadline.remaining());
            return Ok(Some(Pause {
                time: time.min(wait.progress.patience()),
                events: wake.events,
            }));
        }
    }

    fn probe(&self, supervisor: u32, deadline: Deadline, is_over: bool) -> Probe<'_> {
        Probe {
            values: &self.values,
            pid: self.pid,
            supervisor,
            now: SystemTime::now(),
            elapsed: deadline.elapsed(),
            remaining: deadline.remaining(),
            output: &self.output,
            since: &self.since,
            log_files: &self.log_files,
            is_over,
            notes: &self.notes,
        }
    }

    /// Describes the progress of a slow start: the awaited condition, and the service's last line.
    fn standing(&self, elapsed: &dyn std::fmt::Display, readiness: &dyn Readiness) -> String {
        let name = progress::short(self.values.name());
        let awaited = progress::short(&self.values.mask(&readiness.describe()));
        let last = self.output.tail(1, self.since.output).pop();
        let last = last.map_or("it has printed nothing yet".to_owned(), |line| {
            format!("its last line: {}", progress::short(&line))
        });
        format!("{name} is not ready after {elapsed}; awaited: {awaited}; {last}")
    }

    /// Returns the error that reports how the service ended. `None` while it is running.
    pub(super) fn exit_error(
        &self,
        process: &dyn Observed,
        readiness: &dyn Readiness,
        last_probe: Option<String>,
    ) -> Option<Unmasked> {
        let exit = process.ended()?;
        let Some(started_ns) = process.started_ns() else {
            return Some(
                Error::Died {
                    command: self.command.clone(),
                    status: exit.map(|exit| exit.status),
                    evidence: self.evidence(process, last_probe),
                }
                .into(),
            );
        };
        let Some(exit) = exit else {
            return Some(
                Error::system(
                    format!("keep `{}` under supervision", self.command),
                    io::Error::other("its supervisor was killed, and the service with it"),
                )
                .into(),
            );
        };
        let mut evidence = self.evidence(process, last_probe);
        if let Some(variable) = &self.spec.program_variable {
            let check = format!("check {variable}, which names this program");
            let known = evidence.hint.take().map(|hint| format!("{hint}\n{check}"));
            evidence.hint = Some(known.unwrap_or(check));
        }
        Some(
            Error::Exited {
                command: self.command.clone(),
                awaited: readiness.describe(),
                elapsed: Duration::from_nanos(exit.at.saturating_sub(started_ns)),
                status: exit.status,
                evidence,
            }
            .into(),
        )
    }

    /// Collects the evidence about the service for an error, and keeps its log.
    pub(super) fn evidence(&self, process: &dyn Observed, last_probe: Option<String>) -> Box<Evidence> {
        process.sync_output();
        let exit = process.exit();
        let mut timeline = Vec::new();
        // An attached service may be old, so only the process that started it shows its events.
        if let Some(started_ns) = process.started_ns() {
            let at = |ns: u64| Duration::from_nanos(ns.saturating_sub(started_ns));
            timeline.push((Duration::ZERO, "spawned".to_owned()));
            if let Some(first) = self.output.first_output(self.since.output) {
                timeline.push((at(first), "first output".to_owned()));
            }
            if let Some(exit) = exit {
                timeline.push((at(exit.at), Ended(exit.status).to_string()));
            }
        }
        let printed = self.output.excerpt(self.since.output, HEAD_LINES, TAIL_LINES);
        let hint = hint::of(&hint::Symptoms {
            tail: &[printed.head.as_slice(), &printed.tail].concat(),
            // A daemon continues to run after its first process has exited.
            exit: exit
                .filter(|exit| !exit.is_daemonised() || process.ended().is_some())
                .map(|exit| exit.status),
            program: &self.values.mask(&self.program()),
            shell_syntax: self.spec.shell_syntax(),
            globs: self.spec.globs(),
            reads_nothing: self.spec.reads_nothing(),
            shell: self.spec.shell,
            addrs: process.addrs(),
            chosen: self.values.port_numbers(),
            root: process.supervisor(),
        });
        self.keep_log();
        Box::new(Evidence {
            last_probe,
            timeline,
            head: printed.head,
            left_out: printed.left_out,
            dropped: printed.dropped,
            tail: printed.tail,
            log: Some(self.service_dir.log()),
            lost: self.output.lost(self.since.output),
            about: None,
            system: Vec::new(),
            hint,
        })
    }

    /// Records the start for the test and, if a shared fixture is being set up, for that fixture.
    pub(super) fn note_start(&self, how_it_ended: HowItEnded, description: Option<String>) {
        timed_out::started(self.test, &self.command, &self.output);
        shared_use::started(&self.command, self.pid, &self.output, how_it_ended, description);
    }

    /// Keeps the log for a day after the service has ended. Does nothing if the service belongs to
    /// a run that is over, because its supervisor then removes the log.
    pub(super) fn keep_log(&self) {
        if self.service_dir.is_ours() || !crate::run::is_over() {
            self.service_dir.keep();
        }
    }
}

pub(super) struct Wait {
    pub(super) deadline: Deadline,
    /// The failure patterns as given, each with its matcher.
    fail_on: Vec<(String, LineWatch)>,
    last_probe: Option<String>,
    progress: Progress,
}

impl Wait {
    pub(super) fn new(deadline: Deadline, fail_on: Vec<(String, LineWatch)>) -> Wait {
        Wait {
            deadline,
            fail_on,
            last_probe: None,
            progress: Progress::new(),
        }
    }
}

/// A pause before the next poll. It ends when one of the descriptors is readable, when the service
/// has an event, or when the time is up. The condition keeps the descriptors open until then.
#[derive(Debug, Default)]
pub struct Pause {
    pub(super) time: Duration,
    pub(super) events: Vec<i32>,
}

impl Pause {
    /// A pause that ends when the service has an event, or after this time.
    pub(super) fn of(time: Duration) -> Pause {
        Pause {
            time,
            events: Vec::new(),
        }
    }
}

/// Asks the condition which events may end the pause. `elapsed` is the time since the start.
fn wakes(readiness: &dyn Readiness, elapsed: Duration) -> Wake {
    let mut wake = Wake::new(elapsed);
    readiness.wakes(&mut wake);
    wake
}
