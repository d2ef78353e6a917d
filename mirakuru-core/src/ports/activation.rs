//! Sockets that a service inherits through systemd's socket activation protocol: see
//! [`ExecutorBuilder::listen`](crate::recipe::builder::ExecutorBuilder::listen).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::error::Error;
use crate::error::secrets::Unmasked;
use crate::ports::address::resolve;
use crate::ports::free::Busy;
use crate::ports::holder;
use crate::ports::values::Values;
use crate::sys;

/// The sockets that a service inherits.
#[derive(Debug, Default)]
pub(crate) struct Listen {
    sockets: Vec<(String, SocketAddr)>,
}

impl Listen {
    /// Fills in the placeholders in the names and addresses of a recipe's sockets.
    pub(crate) fn of(
        wanted: &[(Option<String>, String)],
        values: &mut Values,
        command: &str,
    ) -> Result<Listen, Unmasked> {
        let mut sockets = Vec::new();
        for (name, addr) in wanted {
            let invalid = |reason: String| Error::InvalidCommand {
                command: command.to_owned(),
                reason: format!("it should listen on `{addr}`: {reason}"),
                system: Vec::new(),
            };
            let name = match name {
                Some(name) => {
                    let name = values.expand(name).map_err(|error| error.in_command(command))?;
                    check_name(&name).map_err(|reason| invalid(reason.to_owned()))?;
                    name
                }
                None => {
                    let allowed = |c| if is_of_a_name(c) { c } else { '_' };
                    values.name().chars().map(allowed).collect()
                }
            };
            let text = values.expand(addr).map_err(|error| error.in_command(command))?;
            let addrs = resolve(text.trim()).map_err(invalid)?;
            for addr in addrs {
                sockets.push((name.clone(), addr));
            }
        }
        Ok(Listen { sockets })
    }

    pub(crate) fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.iter().map(|(_, addr)| *addr)
    }

    /// Starts to listen on all addresses.
    pub(crate) fn open(&self, command: &str) -> Result<Vec<OwnedFd>, Unmasked> {
        let open = |addr: SocketAddr| {
            sys::listen_tcp(addr).map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => Busy {
                    endpoint: format!("port {}", addr.port()),
                    holder: holder::holder_of_port(sys::Protocol::Tcp, addr),
                }
                .into_error(command),
                _ => Error::system(format!("listen on {addr} for `{command}`"), source).into(),
            })
        };
        let mut opened = Vec::new();
        for addr in self.addrs() {
            opened.push(open(addr)?);
        }
        Ok(opened)
    }

    /// Sets the environment variables that tell the service about its sockets.
    pub(crate) fn announce(&self, environment: &mut BTreeMap<OsString, OsString>) {
        if self.sockets.is_empty() {
            return;
        }
        let names: Vec<&str> = self.sockets.iter().map(|(name, _)| name.as_str()).collect();
        environment.insert("LISTEN_FDS".into(), self.sockets.len().to_string().into());
        environment.insert("LISTEN_FDNAMES".into(), names.join(":").into());
        // The service's process overwrites these zeros with its own id.
        environment.insert("LISTEN_PID".into(), "0".repeat(sys::PID_DIGITS).into());
    }
}

fn is_of_a_name(c: char) -> bool {
    c.is_ascii_graphic() && c != ':'
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name.len() {
        1..=255 if name.chars().all(is_of_a_name) => Ok(()),
        _ => Err("a socket's name must have 1 to 255 visible ASCII characters and no colon"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::error::secrets::Secrets;

    fn of(wanted: &[(Option<&str>, &str)]) -> Result<Listen, Error> {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, addr)| (name.map(str::to_owned), (*addr).to_owned()))
            .collect();
        let mut values = Values::new("my server".to_owned(), PathBuf::from("/tmp"));
        let listen = Listen::of(&wanted, &mut values, "server");
        listen.map_err(|error| values.mask_error(error))
    }

    #[test]
    fn the_service_is_told_of_all() {
        let listen = of(&[(None, "127.0.0.1:4000"), (Some("admin"), "[::1]:4001")]).unwrap();
        let mut environment = BTreeMap::new();
        listen.announce(&mut environment);
        let value = |key: &str| {
            environment[std::ffi::OsStr::new(key)]
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(value("LISTEN_FDS"), "2");
        assert_eq!(value("LISTEN_FDNAMES"), "my_server:admin");
        assert_eq!(value("LISTEN_PID").len(), sys::PID_DIGITS);
        let mut environment = BTreeMap::new();
        of(&[]).unwrap().announce(&mut environment);
        assert!(environment.is_empty());
    }

    #[test]
    fn mistakes_have_their_remedies() {
        for (wanted, part) in [
            ((None, "4000"), "write `127.0.0.1:4000`"),
            ((None, "127.0.0.1:0"), "`{port}`"),
            ((Some("a:b"), "127.0.0.1:4000"), "no colon"),
            ((Some(""), "127.0.0.1:4000"), "1 to 255"),
        ] {
            let error = of(&[wanted]).unwrap_err().to_string();
            assert!(
                error.starts_with("invalid command `server`: it should listen on"),
                "{error}"
            );
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    #[cfg_attr(
        mirakuru_portable,
        ignore = "the portable back end cannot see the owner of a socket"
    )]
    fn a_taken_port_names_its_holder() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap().to_string();
        let error = of(&[(None, &addr)]).unwrap().open("server").unwrap_err();
        let error = Secrets::default().mask_error(error).to_string();
        let pid = std::process::id();
        assert!(
            error.contains("is already in use by ") && error.contains(&format!("(pid {pid})")),
            "{error}"
        );
    }
}
