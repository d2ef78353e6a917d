//! The code that users would write by hand: spawn, poll until ready, send SIGTERM, wait. It has no
//! supervision, no log and no timeout.

use std::io::{BufRead, BufReader};
#[cfg(feature = "http")]
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::processes::{SIGTERM, send};

/// The pauses between polls, for readiness and for the exit. If `gone` is `None`, `waitpid` reports
/// the exit, without polls.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) ready: Duration,
    pub(crate) gone: Option<Duration>,
}

/// The fastest way without a supervisor: poll for readiness every 50 µs (about 100 µs in practice),
/// and wait for the exit with `waitpid`.
pub(crate) const IDEAL: Manner = Manner {
    ready: Duration::from_micros(50),
    gone: None,
};

/// Polls at the same interval for readiness and for the exit.
pub(crate) const fn poll(milliseconds: u64) -> Manner {
    let interval = Duration::from_millis(milliseconds);
    Manner {
        ready: interval,
        gone: Some(interval),
    }
}

/// Starts a program and discards its output. `Command` can use the fast `posix_spawn`, because no
/// option here requires a fork.
pub(crate) fn spawn(program: &str, args: &[String]) -> Child {
    spawn_with(Command::new(program).args(args).stdout(Stdio::null()))
}

fn spawn_with(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}", command.get_program().to_string_lossy()))
}

/// Like [`spawn`], with a pipe for standard output and an optional environment variable.
pub(crate) fn spawn_piped(
    program: &str,
    args: &[String],
    env: Option<(&str, &str)>,
) -> (Child, BufReader<ChildStdout>) {
    let mut child = spawn_with(Command::new(program).args(args).envs(env).stdout(Stdio::piped()));
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    (child, stdout)
}

impl Manner {
    /// Polls until `is_ready` returns `true`.
    pub(crate) fn until(self, mut is_ready: impl FnMut() -> bool) {
        while !is_ready() {
            sleep(self.ready);
        }
    }

    /// Sends SIGTERM and waits until the child has exited.
    pub(crate) fn stop(self, child: &mut Child) {
        send(child.id(), SIGTERM);
        match self.gone {
            None => drop(child.wait().expect("a child of ours")),
            Some(interval) => {
                while child.try_wait().expect("a child of ours").is_none() {
                    sleep(interval);
                }
            }
        }
    }

    /// Spawns a program, waits until it accepts TCP connections, and stops it.
    pub(crate) fn live(self, program: &str, args: &[String], addr: SocketAddr) {
        let mut child = spawn(program, args);
        self.until(|| accepts(addr));
        self.stop(&mut child);
    }
}

/// Kills and reaps its child when dropped.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns an address with a port that is free now.
pub(crate) fn free_addr() -> SocketAddr {
    free_addrs(1)[0]
}

/// Returns addresses with free ports, all different.
pub(crate) fn free_addrs(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().expect("its address"))
        .collect()
}

pub(crate) fn accepts(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_ok()
}

pub(crate) fn accepts_on(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

#[cfg(feature = "http")]
pub(crate) fn answers_200(addr: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr) else {
        return false;
    };
    let mut answer = [0; 12];
    stream
        .write_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .and_then(|()| stream.read_exact(&mut answer))
        .is_ok()
        && answer.ends_with(b" 200")
}

/// Reads lines until one begins with this text.
pub(crate) fn reads(stdout: &mut impl BufRead, text: &str) {
    let mut line = String::new();
    while !line.starts_with(text) {
        line.clear();
        let length = stdout.read_line(&mut line).expect("its output");
        assert!(length > 0, "it ended without `{text}`");
    }
}
