//! [`UnixSocket`]: ready when the service accepts connections on a Unix socket.

use crate::util::hash;
use std::fs;
use std::hash::Hasher;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Prepare, Probe, Readiness, Wake};
use crate::error::Error;
use crate::ports::free;
use crate::ports::owner::{self, Owner};
use crate::sys::file_watch::Watching;
use crate::sys::sockets::{self, UnixAnswer, UnixKind};
use crate::util::backoff::poll_pause;

/// Maximum length of a path or an abstract name. `sun_path` has 108 bytes, including one NUL.
const LONGEST: usize = 107;

/// Ready when the service accepts connections on a Unix socket.
///
/// Connects and disconnects immediately. A connection counts even if the service has not accepted
/// it yet. Stream and `SOCK_SEQPACKET` sockets work. A datagram socket has no connections, and ends
/// the wait with an error. If mirakuru sees that another process owns the socket, the error names
/// that process.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, UnixSocket, UnixSocketExecutor};
///
/// # let script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); \
/// #     s.bind(sys.argv[1]); s.listen(); time.sleep(60)";
/// let mut server: UnixSocketExecutor = Executor::builder(["python3", "-c", script, "{dir}/server.sock"])
///     .wait_for(UnixSocket::path("{dir}/server.sock"))
///     .start()?;
/// assert!(std::os::unix::net::UnixStream::connect(server.path()).is_ok());
/// server.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct UnixSocket {
    wanted: PathBuf,
    /// The path with its placeholders filled in.
    path: PathBuf,
    /// A watch for the socket file. No event tells when the service begins to accept connections.
    watching: Watching,
    /// When the path was first seen, as the time since the start of the service.
    there: Option<Duration>,
    /// When the next poll is due, as the time since the start of the service.
    next: Duration,
}

impl UnixSocket {
    /// Waits for a socket at this path, which must not exceed 107 bytes and may contain
    /// placeholders. Prefer a path in the private directory: `{dir}/server.sock`.
    ///
    /// A relative path is resolved against the *test's* current directory, which may not be the
    /// service's. On Linux, a path that begins with `@` is an abstract name (`./@name` is a file).
    ///
    /// A path outside `{dir}` must be free. If another process accepts connections there, the start
    /// fails with [`Error::AlreadyRunning`] before the program is executed. A socket that a killed
    /// server left behind is removed if it belongs to the test's user.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        let wanted = path.into();
        Self {
            path: wanted.clone(),
            wanted,
            watching: Watching::default(),
            there: None,
            next: Duration::ZERO,
        }
    }
}

impl Readiness for UnixSocket {
    fn describe(&self) -> String {
        format!("it accepted connections on {}", self.path.display())
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let UnixSocket {
            wanted,
            path: _,
            watching: _,
            there: _,
            next: _,
        } = self;
        hash::path(hasher, wanted);
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        let path = expand_path(cx, &self.wanted)?;
        check(&path).map_err(|reason| cx.invalid(path.to_string_lossy(), reason))?;
        if path.starts_with(cx.dir()) {
            // A killed service may have left its socket behind, and most servers refuse to start if
            // it exists. If it cannot be removed, the service reports the problem.
            let _ = free::remove_stale_socket(&path);
        }
        lock_path(cx, &path);
        self.path = path;
        self.wait_is_over();
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        let path = &self.path;
        if sockets::abstract_name(path).is_none() {
            // The watch begins before the check, so that no event is missed.
            self.watching.renew(path, cx.elapsed());
        }
        let answer = match sockets::try_connect_unix(path, UnixKind::Stream) {
            Err(error) if sockets::is_another_kind(&error) => {
                // The socket is not a stream socket. If it is a datagram socket, this call fails as
                // well.
                sockets::try_connect_unix(path, UnixKind::SeqPacket)
            }
            answer => answer,
        };
        let listener = match answer {
            Ok(UnixAnswer::Accepted(pid)) => pid,
            Ok(UnixAnswer::Full) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.there = None;
                return Ok(false);
            }
            Err(error) => {
                // Most servers begin to listen soon after they have bound the socket. The pause is
                // short at first, and grows with the time since then.
                let since = *self.there.get_or_insert(cx.elapsed());
                self.next = cx.elapsed() + poll_pause(cx.elapsed() - since);
                return Err(explain(path, error));
            }
        };
        match owner::unix_owner(path, listener, cx.supervisor) {
            Owner::WrongListener(wrong_listener) => Err(wrong_listener.into()),
            Owner::Nobody | Owner::Tree | Owner::Unseen => Ok(true),
        }
    }

    fn wakes(&self, wake: &mut Wake) {
        let event = self.watching.event();
        match (self.there, event) {
            (Some(_), _) => wake.at(self.next),
            (None, Some(_)) => wake.fallback_poll(),
            (None, None) => wake.with_back_off(),
        }
        if let Some(event) = event {
            wake.on(event);
        }
    }

    fn hint(&self, cx: &Probe<'_>) -> Option<String> {
        let is_socket =
            |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        let found = cx.made_elsewhere(&self.path, &is_socket)?;
        Some(format!(
            "it made a socket at `{}`: await that path, or give the service the awaited one",
            found.display()
        ))
    }

    fn wait_is_over(&mut self) {
        self.watching = Watching::default();
        self.there = None;
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

/// Fills in the placeholders of a path, which may not be UTF-8.
pub(super) fn expand_path(cx: &mut Prepare<'_>, path: &Path) -> Result<PathBuf, Error> {
    cx.values
        .expand_os(path.as_os_str())
        .map(PathBuf::from)
        .map_err(|error| error.in_readiness(&path.to_string_lossy()))
}

/// Requests a lock on a path that another service may use as well. Makes the path absolute, so that
/// the lock does not depend on the current directory.
pub(super) fn lock_path(cx: &mut Prepare<'_>, path: &Path) {
    if sockets::abstract_name(path).is_some() {
        cx.lock_path(path);
    } else if !path.starts_with(cx.dir()) {
        cx.lock_path(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    }
}

/// Checks a path. The error names the mistake and its remedy.
fn check(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err("the path is empty; write one, such as `{dir}/server.sock`".to_owned());
    }
    if bytes.contains(&0) {
        return Err("there is a NUL in the path; on Linux an abstract name is written `@name`".to_owned());
    }
    let (what, length) = match sockets::abstract_name(path) {
        Some(_) if !cfg!(target_os = "linux") => {
            return Err("only Linux has abstract names; use a path, such as `{dir}/server.sock`".to_owned());
        }
        Some([]) => return Err("there is no name after the `@`; write one, such as `@server`".to_owned()),
        Some(name) => ("name", name.len()),
        None => ("path", bytes.len()),
    };
    if length > LONGEST {
        let remedy = if what == "name" {
            "use a shorter one"
        } else {
            "use one in `{dir}`, which is short, or set TMPDIR to a shorter directory"
        };
        return Err(format!(
            "the {what} has {length} bytes, but a Unix socket's may have at most {LONGEST}; {remedy}"
        ));
    }
    if bytes.ends_with(b"/") {
        return Err(
            "the path names a directory; write the path of the socket, such as `{dir}/server.sock`"
                .to_owned(),
        );
    }
    Ok(())
}

/// Explains why a connection failed.
fn explain(path: &Path, error: io::Error) -> io::Error {
    let shown = path.display();
    if sockets::is_another_kind(&error) {
        return io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{shown} is a datagram socket, which accepts no connections; use `Check`, or `PidFile` to \
                    wait for the file"
            ),
        );
    }
    if error.kind() != io::ErrorKind::ConnectionRefused {
        return io::Error::new(error.kind(), format!("{shown}: {error}"));
    }
    let is_socket = fs::metadata(path).map_or(true, |metadata| metadata.file_type().is_socket());
    let text = if is_socket {
        format!("nobody accepts connections on the socket {shown}")
    } else {
        format!("{shown} is there, but it is not a socket")
    };
    io::Error::new(io::ErrorKind::ConnectionRefused, text)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::ports::owner::WrongListener;
    use crate::ports::values::Values;
    use crate::readiness::harness::{TestDir, poll};
    use crate::sys::sockets::tests::{Made, unix};
    use crate::sys::tests::in_time;

    fn prepare(readiness: &mut UnixSocket, dir: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut values = Values::new("test".to_owned(), dir.to_owned());
        let mut cx = Prepare::new(&mut values);
        readiness.prepare(&mut cx)?;
        Ok(cx.paths)
    }

    fn probe(path: &Path, root: u32) -> io::Result<bool> {
        poll(&mut UnixSocket::path(path), root, Duration::ZERO)
    }

    struct Kill(Child);

    impl Drop for Kill {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Starts a Python script with the path as its argument, and waits for its first output.
    fn python(script: &str, path: &Path) -> Kill {
        let mut child = Command::new("python3")
            .args([OsStr::new("-c"), OsStr::new(script), path.as_os_str()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Kill(child)
    }

    #[test]
    fn it_is_ready_once_somebody_accepts() {
        let dir = TestDir::new();
        let path = dir.path().join("x.sock");
        let me = std::process::id();
        assert!(!probe(&path, me).unwrap());
        fs::write(&path, "").unwrap();
        let error = probe(&path, me).unwrap_err().to_string();
        assert!(error.ends_with("is there, but it is not a socket"), "{error}");
        fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(probe(&path, me).unwrap());
        drop(listener);
        in_time(|| probe(&path, me).is_err());
        let error = probe(&path, me).unwrap_err().to_string();
        assert!(
            error.starts_with("nobody accepts connections on the socket "),
            "{error}"
        );
    }

    #[test]
    fn the_polls_begin_anew_once_the_socket_is_there() {
        let dir = TestDir::new();
        let path = dir.path().join("x.sock");
        let mut readiness = UnixSocket::path(&path);
        let mut pause_after_poll = |seconds| {
            let elapsed = Duration::from_secs(seconds);
            let _ = poll(&mut readiness, 1, elapsed);
            let mut wake = Wake::new(elapsed);
            readiness.wakes(&mut wake);
            wake.pause
        };
        let absent = pause_after_poll(10);
        drop(UnixListener::bind(&path).unwrap());
        // The socket exists but does not listen, so the next poll follows soon. Later pauses grow
        // again.
        let bound = pause_after_poll(11);
        assert!(bound < absent / 100, "{bound:?}, {absent:?}");
        assert!(pause_after_poll(13) > bound * 100);
        fs::remove_file(&path).unwrap();
        assert_eq!(pause_after_poll(14), absent);
    }

    #[test]
    fn a_full_backlog_is_ready_and_hangs_nobody() {
        let dir = TestDir::new();
        let path = dir.path().join("x.sock");
        let _held = unix(&path, Made::Stream, 0);
        for _ in 0..5 {
            assert!(probe(&path, std::process::id()).unwrap());
        }
        assert_eq!(
            sockets::try_connect_unix(&path, UnixKind::Stream).unwrap(),
            UnixAnswer::Full
        );
    }

    #[test]
    fn other_kinds_of_sockets() {
        let dir = TestDir::new();
        let packets = dir.path().join("packets");
        let _packets = unix(&packets, Made::SeqPacket, 1);
        assert!(probe(&packets, std::process::id()).unwrap());
        let datagrams = dir.path().join("datagrams");
        let _datagrams = unix(&datagrams, Made::Datagram, 1);
        let error = probe(&datagrams, std::process::id()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("is a datagram socket"), "{error}");
        let name = PathBuf::from(format!("@mk-unix-{}", std::process::id()));
        assert!(probe(&name, std::process::id()).is_err());
        let _name = unix(&name, Made::Stream, 1);
        assert!(probe(&name, std::process::id()).unwrap());
    }

    #[test]
    #[cfg_attr(
        mirakuru_portable,
        ignore = "the portable back end cannot see the owner of a socket"
    )]
    fn another_processs_socket_is_an_error_that_names_it() {
        let dir = TestDir::new();
        let path = dir.path().join("x.sock");
        let script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); \
            s.listen(); print(flush=True); time.sleep(60)";
        let wrong_listener = python(script, &path);
        let bystander = Kill(Command::new("sleep").arg("60").spawn().unwrap());
        let error = probe(&path, bystander.0.id()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(
            WrongListener::of(&error).unwrap().holder.pid,
            Some(wrong_listener.0.id())
        );
        assert!(probe(&path, wrong_listener.0.id()).unwrap());
        assert!(probe(&path, std::process::id()).unwrap());
    }

    #[test]
    fn a_socket_handed_on_to_the_service_is_its_own() {
        let dir = TestDir::new();
        let path = dir.path().join("x.sock");
        // The script listens, passes the socket to a child and closes its own copy. The child takes
        // the place of the service.
        let script = "
import os, socket, subprocess, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()
child = subprocess.Popen(['sleep', '60'], pass_fds=[s.fileno()])
s.close()
print(child.pid, flush=True)
sys.stdin.read(1)
child.kill(); child.wait()
";
        let mut child = Command::new("python3")
            .args([OsStr::new("-c"), OsStr::new(script), path.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        let service: u32 = line.trim().parse().unwrap();
        let ready = probe(&path, service);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(ready.unwrap());
    }

    #[test]
    fn what_a_killed_service_left_in_its_directory_is_removed() {
        let dir = TestDir::new();
        let path = dir.path().join("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        prepare(&mut UnixSocket::path(&path), Path::new("/elsewhere")).unwrap();
        assert!(path.exists());
        prepare(&mut UnixSocket::path(&path), dir.path()).unwrap();
        assert!(!path.exists());
        let _held = UnixListener::bind(&path).unwrap();
        prepare(&mut UnixSocket::path(&path), dir.path()).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn paths_are_checked_and_locked() {
        let dir = Path::new("/tmp/private");
        let endpoints = |path: &str| prepare(&mut UnixSocket::path(path), dir).unwrap();
        assert!(endpoints("/tmp/private/x.sock").is_empty());
        assert_eq!(endpoints("/tmp/x.sock"), [Path::new("/tmp/x.sock")]);
        assert_eq!(endpoints("@x"), [Path::new("@x")]);
        assert_eq!(
            endpoints("x.sock"),
            [std::env::current_dir().unwrap().join("x.sock")]
        );
        let longest = format!("/{}", "x".repeat(106));
        assert_eq!(endpoints(&longest).len(), 1);
        for (path, part) in [
            (
                format!("{longest}x"),
                "the path has 108 bytes, but a Unix socket's may have at most 107; use one in `{dir}`",
            ),
            (format!("@{longest}x"), "the name has 108 bytes"),
            ("".to_owned(), "empty"),
            ("a\0b".to_owned(), "NUL"),
            ("@".to_owned(), "no name after the `@`"),
            ("/tmp/".to_owned(), "names a directory"),
        ] {
            let Err(Error::InvalidReadiness { reason, .. }) = prepare(&mut UnixSocket::path(path), dir)
            else {
                panic!("{part}")
            };
            assert!(reason.contains(part), "{reason}");
        }
        // The longest path fits into a socket address: the only error is that the file is missing.
        let error = sockets::try_connect_unix(Path::new(&longest), UnixKind::Stream).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
