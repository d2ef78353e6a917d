//! The private directory and the ports of a service that has not been built yet. With them, the
//! nodes of a cluster can be given each other's ports before any node starts.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::ports::reserve::{HoldLevel, Range, Reservation};
use crate::service_dir::ServiceDir;

/// The directory and the ports of a service that has not been built yet.
#[doc(hidden)]
#[derive(Debug)]
pub struct Identity {
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Whether [`port`](Identity::port) makes up a number for an unknown name, because no service
    /// will start with that port.
    is_fixed: bool,
    dir: Option<PathBuf>,
    /// The directory, until [`take_dir`](Identity::take_dir) passes it to the service.
    service_dir: Option<ServiceDir>,
    ports: Vec<(String, Reservation)>,
}

impl Identity {
    /// Creates an identity for a service that will be built. The directory and each port are
    /// created when they are first used.
    #[must_use]
    pub fn new(name: String) -> Identity {
        Identity::with(name, false, None, Vec::new())
    }

    /// Creates an identity for a service whose directory and ports are known.
    #[must_use]
    pub fn known(name: String, dir: PathBuf, ports: Vec<(String, u16)>) -> Identity {
        let ports = ports
            .into_iter()
            .map(|(name, port)| (name, Reservation::known(port)));
        Identity::with(name, true, Some(dir), ports.collect())
    }

    fn with(
        name: String,
        is_fixed: bool,
        dir: Option<PathBuf>,
        ports: Vec<(String, Reservation)>,
    ) -> Identity {
        let inner = Mutex::new(Inner {
            is_fixed,
            dir,
            service_dir: None,
            ports,
        });
        Identity { name, inner }
    }

    /// The service's name, unless its recipe sets another one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of the placeholder `{port:NAME}`, or of `{port}` if the name is empty.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if no port can be reserved.
    pub fn port(&self, name: &str) -> Result<u16, Error> {
        let mut inner = self.inner();
        if let Some((_, reservation)) = inner.ports.iter().find(|(known, _)| known == name) {
            return Ok(reservation.port());
        }
        let reservation = if inner.is_fixed {
            // No service will start with this port, so any fixed number will do.
            Reservation::known(1 + u16::try_from(inner.ports.len()).unwrap_or(0))
        } else {
            // The service may use the port for UDP, or derive other ports from it. A low port suits
            // both.
            let reserved = Reservation::new(Range::Low, HoldLevel::Firm, &[]);
            reserved.map_err(|source| Error::system("reserve a free port", source))?
        };
        let port = reservation.port();
        inner.ports.push((name.to_owned(), reservation));
        Ok(port)
    }

    /// The value of the placeholder `{dir}`.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the directory cannot be created.
    pub fn dir(&self) -> Result<PathBuf, Error> {
        let mut inner = self.inner();
        if let Some(dir) = &inner.dir {
            return Ok(dir.clone());
        }
        let service_dir = ServiceDir::create(None)?;
        let dir = service_dir.dir().to_owned();
        inner.dir = Some(dir.clone());
        inner.service_dir = Some(service_dir);
        Ok(dir)
    }

    /// Takes the directory for the service that is being built. Creates it if it has not been used
    /// yet. `owner` is the user and the group of the service.
    pub(crate) fn take_dir(&self, owner: Option<(u32, u32)>) -> Result<ServiceDir, Error> {
        let mut inner = self.inner();
        let Some(service_dir) = inner.service_dir.take() else {
            let service_dir = ServiceDir::create(owner)?;
            inner.dir = Some(service_dir.dir().to_owned());
            return Ok(service_dir);
        };
        if let Some(owner) = owner {
            service_dir.give_to(owner)?;
        }
        Ok(service_dir)
    }

    /// Takes the reserved ports for the service that is being built. [`port`](Identity::port) still
    /// returns their numbers.
    pub(crate) fn take_ports(&self) -> Vec<(String, Reservation)> {
        let mut inner = self.inner();
        let known = |(name, port): &(String, Reservation)| (name.clone(), Reservation::known(port.port()));
        let known = inner.ports.iter().map(known).collect();
        inner.is_fixed = true;
        std::mem::replace(&mut inner.ports, known)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_the_same() {
        let identity = Identity::new("node-0".to_owned());
        let (port, other) = (identity.port("").unwrap(), identity.port("other").unwrap());
        assert_ne!(port, other);
        let dir = identity.dir().unwrap();
        assert!(dir.is_dir());
        let (service_dir, ports) = (identity.take_dir(None).unwrap(), identity.take_ports());
        assert_eq!(service_dir.dir(), dir);
        let numbers: Vec<u16> = ports.iter().map(|(_, reservation)| reservation.port()).collect();
        assert_eq!(numbers, [port, other]);
        assert_eq!((identity.port("").unwrap(), identity.dir().unwrap()), (port, dir));
    }

    #[test]
    fn what_is_known_needs_neither_a_port_nor_a_directory() {
        let identity = Identity::known(
            "node-0".to_owned(),
            "/no/such/dir".into(),
            vec![("a".to_owned(), 7)],
        );
        assert_eq!(identity.port("a").unwrap(), 7);
        assert_eq!(identity.port("b").unwrap(), identity.port("b").unwrap());
        assert_eq!(identity.dir().unwrap(), PathBuf::from("/no/such/dir"));
    }
}
