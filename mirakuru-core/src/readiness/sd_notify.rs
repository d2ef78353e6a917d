//! [`SdNotify`]: ready when the service reports it with systemd's protocol.

use std::fs::{self, Permissions};
use std::hash::Hasher;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use super::{Prepare, Probe, Readiness, Wake};
use crate::error::Error;
use crate::sys::sockets::{self, Messages};
use crate::util::deadline::scaled;
use crate::util::text::printable;

/// The socket's name in the private directory. It is short because the whole path must fit into 107
/// bytes.
const NAME: &str = "notify";
/// Maximum length of a path in `sun_path`, without the final zero byte.
const PATH_MAX: usize = 107;

/// Ready when the service sends `READY=1` to the socket that `$NOTIFY_SOCKET` names, as a systemd
/// service of `Type=notify` does.
///
/// The socket is in the private directory, and its path is in the service's environment. Any
/// service that supports `sd_notify` works, such as PostgreSQL, MariaDB, nginx with its module,
/// etcd, HAProxy, and scripts with `systemd-notify`.
///
/// ```no_run
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, SdNotify};
///
/// let haproxy = Executor::builder("haproxy -Ws -f haproxy.cfg").wait_for(SdNotify).start()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// If the service does not become ready, the error shows its last `STATUS=` and `ERRNO=`. With
/// `EXTEND_TIMEOUT_USEC=` the service can request more time. Messages of all processes of the
/// service count, as with `NotifyAccess=all`.
///
/// The socket stays open as long as the service runs. Messages after `READY=1`, such as
/// `WATCHDOG=1`, are accepted and discarded. Descriptors that come with a message, as with
/// `BARRIER=1`, are closed immediately.
#[derive(Clone, Debug, Default)]
pub struct SdNotify {
    /// The socket, shared by all clones of a prepared recipe. Each `prepare` creates a new one.
    socket: Option<Arc<UnixDatagram>>,
    status: Option<String>,
    errno: Option<i32>,
    extended: Option<Duration>,
    ready: bool,
}

/// The same as [`SdNotify::new`], so that a recipe can use the bare name.
#[allow(non_upper_case_globals)]
pub const SdNotify: SdNotify = SdNotify::new();

impl SdNotify {
    /// The condition that the service has sent `READY=1`.
    pub const fn new() -> SdNotify {
        SdNotify {
            socket: None,
            status: None,
            errno: None,
            extended: None,
            ready: false,
        }
    }

    /// Stops reading the socket. From then on, the kernel accepts each message and discards it,
    /// with the descriptors in it. If the kernel cannot do that, closes the socket: a service
    /// usually continues after "connection refused", but a full queue would block it for ever.
    fn discard_the_rest(&mut self, socket: &UnixDatagram) {
        if sockets::filter_messages(socket.as_fd(), Messages::Discard).is_ok() {
            // Messages that arrived before the filter was set are still in the queue.
            while socket.recv(&mut [0]).is_ok() {}
        }
        // If the kernel supports such filters, the supervisor has a copy of the socket that stays
        // open.
        self.socket = None;
    }

    fn take(&mut self, message: &str, elapsed: Duration) {
        for line in message.lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            match key {
                "READY" => self.ready |= value == "1",
                "STATUS" => self.status = Some(printable(value, 400)).filter(|text| !text.is_empty()),
                "ERRNO" => self.errno = value.parse().ok().filter(|errno| *errno != 0),
                "EXTEND_TIMEOUT_USEC" => {
                    if let Ok(micros) = value.parse() {
                        let until = elapsed.saturating_add(scaled(Duration::from_micros(micros)));
                        self.extended = self.extended.max(Some(until));
                    }
                }
                _ => {}
            }
        }
    }
}

impl Readiness for SdNotify {
    fn describe(&self) -> String {
        "it sent READY=1 to $NOTIFY_SOCKET".to_owned()
    }

    fn fingerprint(&self, _: &mut dyn Hasher) {
        let SdNotify {
            socket: _,
            status: _,
            errno: _,
            extended: _,
            ready: _,
        } = self;
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        let path = cx.dir().join(NAME);
        let Some(text) = path.to_str().filter(|text| text.len() <= PATH_MAX) else {
            let reason = format!(
                "the socket's path `{}` is longer than {PATH_MAX} bytes or not UTF-8; set TMPDIR to a \
                    shorter one",
                path.display()
            );
            return Err(cx.invalid("SdNotify", reason));
        };
        // The socket of an earlier start may still exist.
        let _ = fs::remove_file(&path);
        let bind = || -> io::Result<UnixDatagram> {
            let socket = UnixDatagram::bind(&path)?;
            socket.set_nonblocking(true)?;
            // The service may run as another user. The permissions of the directory keep all others
            // out.
            fs::set_permissions(&path, Permissions::from_mode(0o666))?;
            Ok(socket)
        };
        let socket = bind().map_err(|source| {
            Error::system(
                format!("create the notification socket `{}`", path.display()),
                source,
            )
        })?;
        cx.env("NOTIFY_SOCKET", text);
        if sockets::filter_messages(socket.as_fd(), Messages::Keep).is_ok() {
            cx.keep.extend(socket.try_clone().map(OwnedFd::from));
        }
        *self = SdNotify {
            socket: Some(Arc::new(socket)),
            ..SdNotify::default()
        };
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        let Some(socket) = self.socket.clone() else {
            return Ok(self.ready);
        };
        // A message is usually smaller than a page. `recv` does not ask for descriptors, so the
        // kernel closes those in a message. That completes a barrier (`BARRIER=1`).
        let mut buffer = [0; 8192];
        // The number of messages is limited, because a service may keep sending them.
        for _ in 0..1024 {
            match socket.recv(&mut buffer) {
                Ok(_) if self.ready => {}
                Ok(n) => self.take(&String::from_utf8_lossy(&buffer[..n]), cx.elapsed()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.ready {
            self.discard_the_rest(&socket);
            return Ok(true);
        }
        match (&self.status, self.errno) {
            (None, None) => Ok(false),
            (Some(status), None) => Err(io::Error::other(format!("its status is \"{status}\""))),
            (status, Some(errno)) => {
                let error = io::Error::from_raw_os_error(errno);
                Err(match status {
                    Some(status) => io::Error::other(format!("its status is \"{status}\" ({error})")),
                    None => io::Error::other(format!("it reported {error}")),
                })
            }
        }
    }

    /// Only a message can change the result, and each message causes an event.
    fn wakes(&self, wake: &mut Wake) {
        if let Some(socket) = &self.socket {
            wake.on(socket.as_fd());
        }
    }

    fn extended(&self) -> Option<Duration> {
        self.extended
    }
}

#[cfg(test)]
mod tests {
    use super::super::harness::Harness;
    use super::*;

    fn prepared() -> (Harness, SdNotify, UnixDatagram) {
        let harness = Harness::new();
        let mut readiness = SdNotify::new();
        harness.prepare(&mut readiness).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(harness.env("NOTIFY_SOCKET").unwrap()).unwrap();
        (harness, readiness, sender)
    }

    #[test]
    fn ready_on_the_message_and_not_before() {
        let (harness, mut readiness, sender) = prepared();
        assert!(!harness.probe(&mut readiness).unwrap());
        sender.send(b"RELOADING=1\nREADY=0").unwrap();
        assert!(!harness.probe(&mut readiness).unwrap());
        sender.send(b"MAINPID=12\nREADY=1\nSTATUS=open").unwrap();
        assert!(harness.probe(&mut readiness).unwrap());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_service_that_goes_on_sending_never_waits() {
        let (harness, mut readiness, sender) = prepared();
        sender.set_nonblocking(true).unwrap();
        sender.send(b"READY=1").unwrap();
        sender.send(b"BARRIER=1").unwrap();
        // Like the supervisor's copy, this one keeps the socket open.
        let _kept = readiness.socket.clone();
        assert!(harness.probe(&mut readiness).unwrap());
        // The queue has room for only about ten messages, so without the filter these would not
        // fit.
        for _ in 0..1000 {
            sender.send(b"WATCHDOG=1").unwrap();
        }
        // The condition stays ready.
        assert!(harness.probe(&mut readiness).unwrap());
    }

    #[test]
    fn the_status_is_the_error() {
        let (harness, mut readiness, sender) = prepared();
        sender
            .send("STATUS=replaying the \u{1b}[1mlog".as_bytes())
            .unwrap();
        let error = harness.probe(&mut readiness).unwrap_err().to_string();
        assert_eq!(error, "its status is \"replaying the log\"");
        sender.send(b"ERRNO=2").unwrap();
        let error = harness.probe(&mut readiness).unwrap_err().to_string();
        assert!(
            error.contains("replaying") && error.contains("No such file"),
            "{error}"
        );
    }

    #[test]
    fn it_may_ask_for_more_time() {
        let (harness, mut readiness, sender) = prepared();
        assert_eq!(readiness.extended(), None);
        harness.elapsed(Duration::from_secs(3));
        sender.send(b"EXTEND_TIMEOUT_USEC=2000000").unwrap();
        sender
            .send(b"EXTEND_TIMEOUT_USEC=soon\nEXTEND_TIMEOUT_USEC=18446744073709551615")
            .unwrap();
        assert!(!harness.probe(&mut readiness).unwrap());
        assert!(readiness.extended().unwrap() > Duration::from_secs(5));
        let (harness, mut readiness, sender) = prepared();
        harness.elapsed(Duration::from_secs(3));
        sender.send(b"EXTEND_TIMEOUT_USEC=2000000").unwrap();
        assert!(!harness.probe(&mut readiness).unwrap());
        assert_eq!(readiness.extended(), Some(Duration::from_secs(5)));
    }

    #[test]
    fn another_start_hears_nothing_of_the_one_before() {
        let (harness, mut readiness, sender) = prepared();
        sender.send(b"READY=1").unwrap();
        harness.prepare(&mut readiness).unwrap();
        assert!(!harness.probe(&mut readiness).unwrap());
        // The socket of the earlier start is closed.
        assert!(sender.send(b"READY=1").is_err());
        assert!(!harness.probe(&mut readiness).unwrap());
    }

    #[test]
    fn anyone_in_the_directory_may_send() {
        let (harness, _readiness, _) = prepared();
        let mode = fs::metadata(harness.env("NOTIFY_SOCKET").unwrap())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o666);
    }
}
