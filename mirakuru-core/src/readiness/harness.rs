//! Helpers for the tests of conditions: a private directory, a log and the arguments of a
//! condition's methods.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::{Prepare, Probe, Readiness};
use crate::error::Error;
use crate::output::mark::Mark;
use crate::output::reader::OutputReader;
use crate::output::test_writer::LogWriter;
use crate::ports::values::Values;
use crate::readiness::context::Notes;
pub(crate) use crate::sys::tests::TestDir;

/// Polls a condition once, for the process tree below `root`. The log is empty.
pub(crate) fn poll(readiness: &mut dyn Readiness, root: u32, elapsed: Duration) -> io::Result<bool> {
    let dir = TestDir::new();
    let reader = LogWriter::create(dir.path()).reader();
    readiness.probe(&Probe {
        values: &Values::new("test".to_owned(), dir.path().to_owned()),
        pid: root,
        supervisor: root,
        now: SystemTime::now(),
        elapsed,
        remaining: Duration::from_secs(5),
        output: &reader,
        since: &Mark::START,
        log_files: &[],
        is_over: false,
        notes: &Mutex::default(),
    })
}

/// Takes the place of an executor in the tests of a condition.
pub(crate) struct Harness {
    pub(crate) log: Mutex<LogWriter>,
    reader: OutputReader,
    since: Mutex<Mark>,
    notes: Mutex<Notes>,
    remaining: Mutex<Duration>,
    /// When the simulated time was set, and the simulated time since the start.
    elapsed: Mutex<(SystemTime, Duration)>,
    env: Mutex<Vec<(String, String)>>,
    locked: Mutex<Vec<SocketAddr>>,
    dir: TestDir,
}

impl Harness {
    pub(crate) fn new() -> Harness {
        let dir = TestDir::new();
        let log = LogWriter::create(dir.path());
        Harness {
            reader: log.reader(),
            log: Mutex::new(log),
            since: Mutex::new(Mark::START),
            notes: Mutex::default(),
            remaining: Mutex::new(Duration::from_secs(60)),
            elapsed: Mutex::new((SystemTime::now(), Duration::ZERO)),
            env: Mutex::new(Vec::new()),
            locked: Mutex::new(Vec::new()),
            dir,
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn remaining(&self, remaining: Duration) {
        *self.remaining.lock().unwrap() = remaining;
    }

    pub(crate) fn elapsed(&self, elapsed: Duration) {
        *self.elapsed.lock().unwrap() = (SystemTime::now(), elapsed);
    }

    /// The value that the last `prepare` set for this variable of the service's environment.
    pub(crate) fn env(&self, key: &str) -> Option<String> {
        let env = self.env.lock().unwrap();
        env.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone())
    }

    /// The addresses that the last `prepare` asked to lock.
    pub(crate) fn locked(&self) -> Vec<SocketAddr> {
        self.locked.lock().unwrap().clone()
    }

    /// Prepares the condition as before a start.
    pub(crate) fn prepare(&self, readiness: &mut impl Readiness) -> Result<(), Error> {
        let mut values = Values::new("unit".to_owned(), self.dir.path().to_owned());
        let mut cx = Prepare::new(&mut values);
        let result = readiness.prepare(&mut cx);
        *self.env.lock().unwrap() = cx.env;
        *self.locked.lock().unwrap() = cx.addrs;
        *self.since.lock().unwrap() = Mark::now(&self.reader, &[]);
        *self.notes.lock().unwrap() = Notes::default();
        result
    }

    /// Polls once, with this process as the root of the process tree.
    pub(crate) fn probe(&self, readiness: &mut impl Readiness) -> io::Result<bool> {
        self.with_probe(|cx| readiness.probe(cx))
    }

    pub(crate) fn with_probe<T>(&self, ask: impl FnOnce(&Probe<'_>) -> T) -> T {
        let values = Values::new("unit".to_owned(), self.dir.path().to_owned());
        let remaining = *self.remaining.lock().unwrap();
        let (now, elapsed) = *self.elapsed.lock().unwrap();
        let since = self.since.lock().unwrap().clone();
        ask(&Probe {
            values: &values,
            pid: std::process::id(),
            supervisor: std::process::id(),
            now,
            elapsed,
            remaining,
            output: &self.reader,
            since: &since,
            log_files: &[],
            is_over: false,
            notes: &self.notes,
        })
    }

    /// Calls `prepare`, which must fail, and returns the text of its error.
    pub(crate) fn refusal(&self, readiness: &mut impl Readiness) -> String {
        match self.prepare(readiness) {
            Err(Error::InvalidReadiness {
                readiness, reason, ..
            }) => format!("{readiness}: {reason}"),
            Err(_) => panic!("another error than expected"),
            Ok(()) => panic!("there should have been an error"),
        }
    }
}

/// A condition that gives predefined answers.
#[derive(Clone)]
pub(crate) struct Fake {
    what: &'static str,
    answers: Arc<Mutex<VecDeque<Result<bool, io::ErrorKind>>>>,
    polls: Polls,
    output: bool,
    addr: Option<SocketAddr>,
    extended: Option<Duration>,
}

/// Number of polls of a [`Fake`].
#[derive(Clone, Default)]
pub(crate) struct Polls(Arc<AtomicUsize>);

impl Polls {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Fake {
    pub(crate) fn new<const N: usize>(
        what: &'static str,
        answers: [Result<bool, io::ErrorKind>; N],
    ) -> (Fake, Polls) {
        let polls = Polls::default();
        let fake = Fake {
            what,
            answers: Arc::new(Mutex::new(answers.into())),
            polls: polls.clone(),
            output: false,
            addr: None,
            extended: None,
        };
        (fake, polls)
    }

    pub(crate) fn waiting_for_output(mut self) -> Fake {
        self.output = true;
        self
    }

    pub(crate) fn at(mut self, addr: impl Into<SocketAddr>) -> Fake {
        self.addr = Some(addr.into());
        self
    }

    pub(crate) fn extended_to(mut self, seconds: u64) -> Fake {
        self.extended = Some(Duration::from_secs(seconds));
        self
    }
}

impl Readiness for Fake {
    fn describe(&self) -> String {
        self.what.to_owned()
    }
    fn probe(&mut self, _: &Probe<'_>) -> io::Result<bool> {
        self.polls.0.fetch_add(1, Ordering::SeqCst);
        let answer = self.answers.lock().unwrap().pop_front().unwrap_or(Ok(false));
        answer.map_err(io::Error::from)
    }
    fn waits_for_output(&self) -> bool {
        self.output
    }
    fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }
    fn extended(&self) -> Option<Duration> {
        self.extended
    }
}
