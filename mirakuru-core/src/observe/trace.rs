//! Emits spans and events if the feature `tracing` is on.
//!
//! All spans and events have the target `mirakuru`. Their names and fields are part of the public
//! interface; the facade's docs list them.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

/// A span that is closed when this value is dropped.
pub(crate) struct Entered {
    #[cfg(feature = "tracing")]
    _span: tracing::span::EnteredSpan,
}

/// Calls `tracing::event!`. Does nothing without the feature.
macro_rules! event {
    ($level:ident, $($rest:tt)+) => {
        #[cfg(feature = "tracing")]
        tracing::event!(target: "mirakuru", tracing::Level::$level, $($rest)+);
    };
}

#[cfg(feature = "tracing")]
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
mod names {
    use super::*;

    pub(crate) fn start(service: &str, command: &str) -> Entered {
        Entered {
            #[cfg(feature = "tracing")]
            _span: tracing::info_span!(target: "mirakuru", "start", service, command).entered(),
        }
    }

    pub(crate) fn stop(service: &str, pid: u32) -> Entered {
        Entered {
            #[cfg(feature = "tracing")]
            _span: tracing::debug_span!(target: "mirakuru", "stop", service, pid).entered(),
        }
    }

    pub(crate) fn endpoints_locked(waited: Duration) {
        event!(DEBUG, waited_ms = milliseconds(waited), "lock taken");
    }

    /// If the supervisor needed a copy of this process's whole memory, `whole` is the reason.
    pub(crate) fn spawned(pid: u32, whole: Option<&'static str>) {
        let whole = whole.unwrap_or("no");
        event!(DEBUG, pid, whole, "spawned");
    }

    pub(crate) fn not_ready(probe: &str) {
        event!(TRACE, probe, "not ready");
    }

    pub(crate) fn ready(pid: u32, elapsed: Duration) {
        event!(INFO, pid, elapsed_ms = milliseconds(elapsed), "ready");
    }

    pub(crate) fn other_port(error: &dyn Display) {
        event!(INFO, error = first_line(error), "other port");
    }

    pub(crate) fn failed(error: &dyn Display) {
        event!(WARN, error = first_line(error), "failed");
    }

    pub(crate) fn owner_unseen(addr: SocketAddr) {
        event!(WARN, %addr, "owner unseen");
    }

    pub(crate) fn stopped(status: Option<&dyn Display>) {
        event!(DEBUG, status = status.map(|status| status.to_string()), "stopped");
    }
}

pub(crate) use names::*;

#[cfg(feature = "tracing")]
fn first_line(error: &dyn Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(all(test, feature = "tracing"))]
mod tests {
    use std::fmt::Write;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;
    use crate::executor::Executor;
    use crate::readiness::banner::Banner;
    use crate::readiness::exec::Exec;

    /// Records the spans and events with the target `mirakuru`.
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            match field.name() {
                "message" => self.0.insert_str(0, &format!("{value:?}:")),
                name => write!(self.0, " {name}={value:?}").unwrap(),
            }
        }
    }

    impl Subscriber for Notes {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "mirakuru"
        }
        fn new_span(&self, span: &Attributes<'_>) -> Id {
            let mut line = Line(format!("span {}:", span.metadata().name()));
            span.record(&mut line);
            self.0.lock().unwrap().push(line.0);
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            let mut line = Line(String::new());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_start_and_a_stop_are_told() {
        let notes = Notes::default();
        tracing::subscriber::with_default(notes.clone(), || {
            let mut service = Executor::builder("echo up; exec sleep 60")
                .shell(true)
                .name("sleeper")
                .wait_for(Banner::matching("^up$"))
                .start()
                .unwrap();
            service.stop().unwrap();
            Executor::builder("no-such-program-at-all").start().unwrap_err();
        });
        let notes = notes.0.lock().unwrap();
        let begin = |text: &str| notes.iter().position(|note| note.starts_with(text));
        let order = [
            "span start: service=\"sleeper\" command=\"echo up; exec sleep 60\"",
            "lock taken: waited_ms=",
            "spawned: pid=",
            "ready: pid=",
            "span stop: service=\"sleeper\" pid=",
            "stopped: status=\"was killed by SIGTERM\"",
            "span start: service=\"no-such-program-at-all\"",
            "failed: error=\"failed to execute `no-such-program-at-all`: no such file or directory\"",
        ];
        let places: Vec<usize> = order
            .iter()
            .map(|text| begin(text).unwrap_or_else(|| panic!("no {text} in {notes:#?}")))
            .collect();
        assert!(places.is_sorted(), "{notes:#?}");
    }

    #[test]
    fn no_event_shows_a_secret() {
        let notes = Notes::default();
        tracing::subscriber::with_default(notes.clone(), || {
            let recipe = Executor::builder("sleep 60").env("MK_PASSWORD", "swordfish");
            let probe = Exec::succeeds(["sh", "-c", "echo swordfish; exit 1"]);
            // Each try allows the probe more time to answer.
            for time in [300, 3_000, 20_000].map(Duration::from_millis) {
                let waits = recipe.clone().wait_for(probe.clone()).timeout(time);
                let error = waits.start().unwrap_err().to_string();
                if error.contains("exited with status 1") {
                    break;
                }
            }
            recipe.current_dir("/nowhere/swordfish").start().unwrap_err();
        });
        let notes = notes.0.lock().unwrap();
        for told in ["not ready: probe=\"", "failed: error=\"failed to change to"] {
            assert!(notes.iter().any(|note| note.starts_with(told)), "{notes:#?}");
        }
        assert!(!notes.iter().any(|note| note.contains("swordfish")), "{notes:#?}");
    }
}
