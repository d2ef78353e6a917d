//! Reads the lines that a service logs while a test runs. The methods take `&self`, so tests that
//! share a service can use them.

use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use crate::error::Error;
use crate::error::secrets::Unmasked;
use crate::executor::Executor;
use crate::executor::process::Core;
use crate::executor::wait::NOT_OURS;
use crate::output::logs::Logs;
use crate::output::mark::Mark;
use crate::ports::values::Values;
use crate::readiness::Readiness;
use crate::readiness::banner::Banner;
use crate::readiness::context::{Prepare, Probe};
use crate::readiness::lines::Line;
use crate::sys;
use crate::sys::file_watch::Watching;
use crate::util::backoff::{fallback_poll_pause, poll_pause};
use crate::util::deadline::Deadline;

/// The longest pause between two polls of a wait for a line, so that the end of the service is soon
/// noticed.
const END_NOTICED: Duration = Duration::from_millis(20);

impl<R: Readiness> Executor<R> {
    /// Marks the current end of the log, for [`logs_since`](Executor::logs_since),
    /// [`wait_for_line`](Executor::wait_for_line) and [`Banner::since`].
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::time::Duration;
    /// use mirakuru::{Banner, Executor};
    ///
    /// let service = Executor::builder("echo up; sleep 0.5; echo job done; exec sleep 60")
    ///     .shell(true)
    ///     .wait_for(Banner::matching("up"))
    ///     .start()?;
    /// let mark = service.mark();
    /// // Ask the service to do a job here.
    /// service.wait_for_line(&mark, "job done", Duration::from_secs(5))?;
    /// service.logs_since(&mark).matching("ERROR").assert_none();
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.process.observed().sync_output();
        self.core.mark()
    }

    /// A snapshot of the lines that the service has logged since the mark, limited to the last 16
    /// MiB of output.
    ///
    /// # Panics
    ///
    /// If the mark belongs to another service.
    #[must_use]
    #[track_caller]
    pub fn logs_since(&self, mark: &Mark) -> Logs {
        if let Some(reason) = mark.refusal(&self.core.output) {
            panic!("`{}`: {reason}", self.core.values.name());
        }
        self.process.observed().sync_output();
        Logs::since(&self.core.output, &self.core.log_files, mark)
    }

    /// Waits for a line that matches, and returns the first match since the mark. A line logged
    /// before this call counts, even if the service has ended since.
    ///
    /// The pattern is a regular expression, or a [`Banner`] with further conditions:
    /// `Banner::matching("done").stderr()`, or `.times(3)` for the third such line. [`Line::get`]
    /// returns the text of a named group.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use std::time::Duration;
    /// use mirakuru::{Banner, Executor};
    ///
    /// let service = Executor::builder("echo up; sleep 0.5; echo user 7 logs in; exec sleep 60")
    ///     .shell(true)
    ///     .wait_for(Banner::matching("up"))
    ///     .start()?;
    /// let mark = service.mark();
    /// let line = service.wait_for_line(&mark, r"user (?<id>\d+) logs in", Duration::from_secs(5))?;
    /// assert_eq!(line.get("id"), Some("7"));
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// * [`Error::Timeout`]: no line matches in time.
    /// * [`Error::Exited`], [`Error::Died`], [`Error::NotRunning`]: the service has ended, and no
    ///   line matches.
    /// * [`Error::InvalidReadiness`]: the pattern is invalid, or the mark belongs to another
    ///   service.
    pub fn wait_for_line(
        &self,
        mark: &Mark,
        pattern: impl Into<Banner>,
        timeout: Duration,
    ) -> Result<Line, Error> {
        let banner = pattern.into().since(mark);
        let line = self.await_line(banner, Deadline::after(timeout));
        self.core.masked(line)
    }

    fn await_line(&self, mut banner: Banner, deadline: Deadline) -> Result<Line, Unmasked> {
        let (core, process) = (&self.core, self.process.observed());
        let (name, dir) = (core.values.name().to_owned(), core.values.dir().to_owned());
        let mut values = Values::known(name, dir, core.values.owned_ports());
        banner.prepare(&mut Prepare::new(&mut values))?;
        if let Some(reason) = banner.refusal(&core.output) {
            return Err(Error::InvalidReadiness {
                readiness: banner.describe(),
                reason: reason.to_owned(),
                system: Vec::new(),
            }
            .into());
        }
        let notes = Mutex::default();
        let index = core.service_dir.index();
        let mut watching: Vec<Watching> = Vec::new();
        watching.resize_with(1 + core.log_files.len(), Watching::default);
        loop {
            let (now, waited) = (SystemTime::now(), deadline.elapsed());
            // Each file is watched before it is read, so that no line is missed.
            for (watch, path) in watching
                .iter_mut()
                .zip([&index].into_iter().chain(&core.log_files))
            {
                watch.renew(path, waited);
            }
            let is_over = !process.is_running();
            if is_over {
                process.sync_output();
            }
            let held = banner.probe(&Probe {
                values: &core.values,
                pid: core.pid,
                supervisor: 0,
                now,
                elapsed: waited,
                remaining: deadline.remaining(),
                output: &core.output,
                since: &core.since,
                log_files: &core.log_files,
                is_over,
                notes: &notes,
            });
            let last_probe = match held {
                Ok(true) => break,
                Ok(false) => None,
                Err(error) => Some(error.to_string()),
            };
            if is_over {
                let error = match core.pid {
                    0 => None,
                    _ => core.exit_error(process, &banner, last_probe),
                };
                return Err(error.unwrap_or_else(|| core.not_running("wait for a line")));
            }
            core.refuse_external("wait for a line of", NOT_OURS)?;
            if deadline.is_over() {
                return Err(Error::Timeout {
                    command: core.command.clone(),
                    awaited: banner.describe(),
                    elapsed: waited,
                    evidence: core.evidence(process, last_probe),
                }
                .into());
            }
            let events: Vec<i32> = watching
                .iter()
                .filter_map(|watch| Some(watch.event()?.as_raw_fd()))
                .collect();
            let told = events.len() == watching.len() && banner.is_decided();
            let pause = match told {
                true => fallback_poll_pause(waited),
                false => poll_pause(waited),
            };
            sys::wait_readable(&events, pause.min(END_NOTICED).min(deadline.remaining()));
        }
        // The successful probe has stored the line.
        banner
            .into_line()
            .ok_or_else(|| core.not_running("wait for a line"))
    }

    /// The text of a named group in the line that made the service ready, for example a key that
    /// the service prints when it starts. A later [wait](Executor::wait_until) for a [`Banner`]
    /// adds its groups. `None` if no pattern has such a group.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::{Banner, Executor};
    ///
    /// let service = Executor::builder("echo 'at 127.0.0.1:8080, key s3cret'; exec sleep 60")
    ///     .shell(true)
    ///     .wait_for(Banner::matching(r"at (?<addr>\S+), key (?<key>\w+)"))
    ///     .start()?;
    /// assert_eq!(service.captured("key"), Some("s3cret"));
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    #[must_use]
    pub fn captured(&self, name: &str) -> Option<&str> {
        let group = self.core.captured.iter().find(|(known, _)| known == name);
        group.map(|(_, text)| text.as_str())
    }
}

impl Core {
    pub(super) fn mark(&self) -> Mark {
        Mark::now(&self.output, &self.log_files)
    }
}
