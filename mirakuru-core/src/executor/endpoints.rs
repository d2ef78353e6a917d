//! Locks the endpoints that a service needs exclusively before it starts. Another test that needs
//! one of them waits until the lock is free.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::Error;
use crate::error::secrets::{Secrets, Unmasked};
use crate::executor::Executor;
use crate::executor::process::{Core, Own, Process};
use crate::outcome::timed_out;
use crate::ports::free;
use crate::ports::lock::{self, Endpoint, EndpointLock};
use crate::readiness::Readiness;
use crate::timeline::events::{self as timeline, timeline_now};
use crate::util::deadline::scaled;

/// The longest time for which a start waits for the locks.
const LOCK_LIMIT: Duration = Duration::from_secs(600);

/// The endpoints that a service, or several fixtures of one test, need exclusively.
///
/// A test with several fixtures takes all of their locks together. If it took them one by one, in
/// the order of its fixtures, two tests could wait for each other for ever.
#[doc(hidden)]
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    command: String,
    name: String,
    /// Whether any of the services is a node of a cluster.
    has_node: bool,
    /// The ids of the services. Empty if no timeline is recorded.
    ids: Vec<String>,
    addrs: Vec<SocketAddr>,
    udp_addrs: Vec<SocketAddr>,
    paths: Vec<PathBuf>,
    /// The secrets of all services, which are masked in errors and messages about the endpoints.
    secrets: Secrets,
    /// An endpoint that two of the services need, and the command of the second one.
    wanted_twice: Option<(String, Endpoint)>,
}

impl Endpoints {
    pub(super) fn of(core: &Core, own: &Own) -> Endpoints {
        Endpoints {
            command: core.command.clone(),
            name: core.values.name().to_owned(),
            has_node: core.is_node,
            ids: timeline_now().map_or_else(Vec::new, |_| vec![core.service_dir.id().to_owned()]),
            addrs: own.addrs.clone(),
            udp_addrs: own.udp_addrs.clone(),
            paths: own.paths.clone(),
            secrets: core.values.secrets().clone(),
            wanted_twice: None,
        }
    }

    /// Adds the endpoints of `other`.
    #[must_use]
    pub fn and(mut self, other: Endpoints) -> Endpoints {
        // Addresses are compared instead of locks: 127.0.0.2:53 and 127.0.0.3:53 have the same
        // lock, but two services of one test can use both.
        fn shared<T: PartialEq>(ours: &[T], theirs: &[T]) -> Option<usize> {
            theirs.iter().position(|endpoint| ours.contains(endpoint))
        }
        let twice = shared(&self.addrs, &other.addrs).map(|at| Endpoint::from(other.addrs[at]));
        let twice = twice
            .or_else(|| shared(&self.udp_addrs, &other.udp_addrs).map(|at| other.udp_addrs[at].into()))
            .or_else(|| shared(&self.paths, &other.paths).map(|at| other.paths[at].as_path().into()));
        let twice = twice.map(|endpoint| (other.command.clone(), endpoint));
        self.wanted_twice = self.wanted_twice.or(twice);
        for (ours, theirs) in [(&mut self.command, other.command), (&mut self.name, other.name)] {
            if !ours.is_empty() {
                ours.push_str(" and ");
            }
            ours.push_str(&theirs);
        }
        self.has_node |= other.has_node;
        self.ids.extend(other.ids);
        self.addrs.extend(other.addrs);
        self.udp_addrs.extend(other.udp_addrs);
        self.paths.extend(other.paths);
        self.secrets.extend(other.secrets);
        self
    }

    /// Takes the locks of all endpoints. Waits while other tests hold any of them.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyRunning`] if the wait takes more than ten minutes, or would never end.
    pub fn queue(self) -> Result<SharedLock, Error> {
        let locked = match &self.wanted_twice {
            Some((command, endpoint)) => {
                let error = Error::AlreadyRunning {
                    command: command.clone(),
                    endpoint: endpoint.to_string(),
                    holder: None,
                    evidence: Box::default(),
                };
                Err(self.endless(error.into(), lock::wanted_twice(endpoint)))
            }
            None => self.lock_endpoints(true),
        };
        locked
            .map(SharedLock)
            .map_err(|error| self.secrets.mask_error(error))
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for addr in self.addrs.iter().chain(&self.udp_addrs) {
            endpoints.push(Endpoint::from(*addr));
        }
        for path in &self.paths {
            endpoints.push(Endpoint::from(path.as_path()).masked(&self.secrets));
        }
        endpoints
    }

    pub(super) fn lock_endpoints(&self, queue: bool) -> Result<Arc<Mutex<EndpointLock>>, Unmasked> {
        let endpoints = self.endpoints();
        let asked = timeline_now();
        let taken = match queue {
            true => EndpointLock::take(&endpoints, &self.name, scaled(LOCK_LIMIT)),
            false => EndpointLock::try_take(&endpoints, &self.name),
        };
        timeline::endpoint_lock(asked, &self.ids);
        match taken {
            Ok(Some(endpoint_lock)) => Ok(Arc::new(Mutex::new(endpoint_lock))),
            Ok(None) => Err(self.busy(endpoints.iter().find_map(lock::holder))),
            Err(error) if error.kind() == io::ErrorKind::Deadlock => {
                Err(self.endless(self.busy(None), error.to_string()))
            }
            Err(source) => Err(Error::system("take the lock of a fixed port or socket", source).into()),
        }
    }

    /// Adds the reason and the remedy to an error that reports a wait that would never end.
    fn endless(&self, error: Unmasked, reason: String) -> Unmasked {
        let remedy = match self.has_node {
            true => {
                "the nodes of a cluster cannot share a port or path: leave it out, and each node gets \
                    its own"
            }
            false => "share one service, or give each a port or path of its own (`{port}`, `{dir}`)",
        };
        error.change(|error| {
            if let Some(evidence) = error.evidence_mut() {
                evidence.about = Some(reason);
                evidence.hint = Some(remedy.to_owned());
            }
        })
    }

    /// The error that names the holder: the process found on the endpoint, or otherwise the one
    /// named by the note in the lock.
    fn busy(&self, note: Option<String>) -> Unmasked {
        let path_is_busy = self
            .paths
            .iter()
            .find_map(|path| free::check_path_free(path).err());
        let busy = path_is_busy
            .or_else(|| free::check_free(&self.addrs).err())
            .or_else(|| free::check_udp_free(&self.udp_addrs).err());
        if let Some(busy) = busy {
            return busy
                .into_error(&self.command)
                .change(|error| add_note(error, note));
        }
        // The holder is not listening yet, or has stopped listening.
        let endpoint = match (&self.addrs[..], &self.udp_addrs[..], &self.paths[..]) {
            ([addr, ..], _, _) => format!("port {}", addr.port()),
            (_, [addr, ..], _) => format!("UDP port {}", addr.port()),
            (_, _, [path, ..]) => format!("socket {}", path.display()),
            _ => String::new(),
        };
        let error = Error::AlreadyRunning {
            command: self.command.clone(),
            endpoint,
            holder: note,
            evidence: Box::default(),
        };
        error.into()
    }
}

/// Adds the note from the lock file to the error: as the holder if no process was found on the
/// endpoint, otherwise as further evidence.
fn add_note(error: &mut Error, note: Option<String>) {
    let (Error::AlreadyRunning { holder, evidence, .. }, Some(note)) = (error, note) else {
        return;
    };
    match (holder, &mut evidence.about) {
        (holder @ None, _) => *holder = Some(note),
        (_, Some(about)) => *about = format!("{about}\n{note}"),
        (_, about) => *about = Some(note),
    }
}

/// Locks shared by several fixtures.
#[doc(hidden)]
#[derive(Debug)]
pub struct SharedLock(Arc<Mutex<EndpointLock>>);

impl Drop for SharedLock {
    /// The fixtures have started, so this process closes its copies of the locks. The supervisors
    /// keep theirs until the services have ended.
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).hand_over();
    }
}

impl<R: Readiness> Executor<R> {
    /// The endpoints that the service needs exclusively.
    #[doc(hidden)]
    #[must_use]
    pub fn __endpoints(&self) -> Endpoints {
        let own = self.process.own();
        own.map_or_else(Endpoints::default, |own| Endpoints::of(&self.core, own))
    }

    /// Gives the service a lock that has been taken for several fixtures.
    #[doc(hidden)]
    pub fn __give_lock(&mut self, endpoint_lock: &SharedLock) {
        if let Process::Own(own) = &mut self.process {
            own.endpoint_lock = Some(Arc::clone(&endpoint_lock.0));
        }
    }

    /// Ties the service to the test on this thread: the service ends with the test, even if
    /// rstest's `#[timeout]` ends the test while its thread continues.
    #[doc(hidden)]
    pub fn __for_test(&mut self) {
        self.core.test = timed_out::this_test();
    }

    /// Ties the service to this process. Another test of this process that needs the same endpoints
    /// then fails immediately, instead of waiting for ever.
    #[doc(hidden)]
    pub fn __for_process(&mut self) {
        if let Some(endpoint_lock) = self.process.own().and_then(|own| own.endpoint_lock.as_ref()) {
            endpoint_lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .for_process();
        }
    }
}
