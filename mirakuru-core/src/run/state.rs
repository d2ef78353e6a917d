//! The published state of a service of the run, with which other processes can attach to it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use crate::service_dir::ServiceDir;
use crate::sys::{self, Exit};

/// How long the supervisor may take on a busy machine to record that its service has ended.
const RECORDED_WITHIN: Duration = Duration::from_secs(30);

/// The published state of a service. The file contains `key=value` entries, each followed by a zero
/// byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The report of a failed start. If it is set, all other fields except for `process` are empty.
    pub(crate) failed: Option<String>,
    /// The process that started the service, as shown in reports: `tests-1 (pid 8)`.
    pub(crate) process: String,
    pub(crate) pid: u32,
    pub(crate) supervisor: u32,
    pub(crate) service_dir: PathBuf,
    pub(crate) ports: Vec<(String, u16)>,
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) url: Option<String>,
    pub(crate) path: Option<PathBuf>,
    /// The environment variables that the readiness condition added.
    pub(crate) env: Vec<(String, String)>,
    /// The named groups in the lines that made the service ready.
    pub(crate) captured: Vec<(String, String)>,
    /// The exit of the service's main process, once it has ended.
    pub(crate) exit: Option<Exit>,
}

impl State {
    /// Reads a state file. Returns `None` if it does not exist. A reader never sees a half-written
    /// file: the file is renamed into place, and each later addition is a single write.
    pub(crate) fn read(path: &Path) -> io::Result<Option<State>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(sys::files::NO_FOLLOW)
            .open(path);
        match file.and_then(|file| sys::procfs::read_whole(file.take(1 << 20))) {
            Ok(bytes) => Ok(Some(State::parse(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8]) -> State {
        let mut state = State::default();
        for entry in sys::procfs::entries(bytes) {
            let Some(at) = entry.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (key, value) = (&entry[..at], &entry[at + 1..]);
            let text = String::from_utf8_lossy(value);
            let path = || PathBuf::from(std::ffi::OsString::from_vec(value.to_vec()));
            match key {
                b"failed" => state.failed = Some(text.into_owned()),
                b"process" => state.process = text.into_owned(),
                b"pid" => state.pid = text.parse().unwrap_or(0),
                b"supervisor" => state.supervisor = text.parse().unwrap_or(0),
                b"service_dir" => state.service_dir = path(),
                b"port" => {
                    if let Some((port, name)) = text.split_once(' ') {
                        if let Ok(port) = port.parse() {
                            state.ports.push((name.to_owned(), port));
                        }
                    }
                }
                b"addr" => state.addr = text.parse().ok(),
                b"url" => state.url = Some(text.into_owned()),
                b"path" => state.path = Some(path()),
                b"env" => state.env.extend(pair(&text)),
                b"captured" => state.captured.extend(pair(&text)),
                // The supervisor writes `STATUS,LEFT,NS`.
                b"exit" => {
                    let mut numbers = text.splitn(3, ',').map(str::parse::<u64>);
                    if let (Some(Ok(status)), Some(Ok(left)), Some(Ok(at))) =
                        (numbers.next(), numbers.next(), numbers.next())
                    {
                        state.exit = Some(Exit {
                            status: ExitStatus::from_raw(status as i32),
                            at,
                            left_descendants: left != 0,
                        });
                    }
                }
                _ => {}
            }
        }
        state
    }

    fn format(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |key: &str, value: &[u8]| {
            bytes.extend_from_slice(key.as_bytes());
            bytes.push(b'=');
            bytes.extend(value.iter().copied().filter(|byte| *byte != 0));
            bytes.push(0);
        };
        if let Some(report) = &self.failed {
            put("failed", report.as_bytes());
        }
        put("process", self.process.as_bytes());
        put("pid", self.pid.to_string().as_bytes());
        put("supervisor", self.supervisor.to_string().as_bytes());
        put("service_dir", self.service_dir.as_os_str().as_bytes());
        for (name, port) in &self.ports {
            put("port", format!("{port} {name}").as_bytes());
        }
        if let Some(addr) = self.addr {
            put("addr", addr.to_string().as_bytes());
        }
        if let Some(url) = &self.url {
            put("url", url.as_bytes());
        }
        if let Some(path) = &self.path {
            put("path", path.as_os_str().as_bytes());
        }
        for (key, value) in &self.env {
            put("env", format!("{key}={value}").as_bytes());
        }
        for (key, value) in &self.captured {
            put("captured", format!("{key}={value}").as_bytes());
        }
        bytes
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(sys::files::NO_FOLLOW)
            .open(path)?;
        file.write_all(&self.format())
    }

    /// Whether the service is running: its supervisor is alive and, unless the service is a daemon,
    /// its main process has not ended.
    pub(crate) fn is_running(&self) -> bool {
        let main_has_ended = match self.exit {
            // The exit may not have been recorded yet.
            None => !sys::files::process_lives(self.pid),
            Some(exit) => !exit.is_daemonised(),
        };
        !main_has_ended && ServiceDir::is_supervised(&self.service_dir)
    }

    /// The current state, for a user of a service that is stopped when its last user is gone. When
    /// another user leaves, the supervisor hides the file for microseconds and checks for users
    /// again. So a missing file counts only if the directory or the supervisor is gone as well.
    pub(crate) fn now_for_user(&self, path: &Path) -> Option<State> {
        let began = Instant::now();
        loop {
            let now = State::read(path).ok().flatten();
            let is_hidden = now.is_none()
                && path.parent().is_some_and(Path::exists)
                && ServiceDir::is_supervised(&self.service_dir);
            if !is_hidden || began.elapsed() > RECORDED_WITHIN {
                return now;
            }
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// If the service has just ended, waits until its exit has been recorded. The supervisor
    /// records it within microseconds, unless it was killed as well.
    pub(crate) fn settle(self, path: &Path) -> State {
        let began = Instant::now();
        let mut state = self;
        while state.failed.is_none()
            && state.exit.is_none()
            && !sys::files::process_lives(state.pid)
            && ServiceDir::is_supervised(&state.service_dir)
            && began.elapsed() < RECORDED_WITHIN
        {
            thread::sleep(Duration::from_micros(200));
            match State::read(path) {
                Ok(Some(now)) => state = now,
                // The supervisor has hidden the file for a moment, or has removed it.
                Ok(None) => {}
                Err(_) => break,
            }
        }
        state
    }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    Some((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service_dir::tests::Temp;

    #[test]
    fn a_user_finds_the_state_that_the_supervisor_hides_for_a_moment() {
        let temp = Temp::new();
        let supervised = temp.service_dir();
        let run_dir = temp.base().join("run");
        fs::create_dir(&run_dir).unwrap();
        let [published, hidden] = ["state", "hidden"].map(|name| run_dir.join(name));
        let state = State {
            pid: 9,
            service_dir: supervised.path().to_owned(),
            ..State::default()
        };
        state.write(&hidden).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                fs::rename(&hidden, &published).unwrap();
            });
            assert_eq!(state.now_for_user(&published), Some(state.clone()));
        });
        fs::remove_dir_all(&run_dir).unwrap();
        assert_eq!(state.now_for_user(&published), None, "the service has ended");
        fs::create_dir(&run_dir).unwrap();
        drop(supervised);
        assert_eq!(state.now_for_user(&published), None, "the supervisor is gone");
    }

    #[test]
    fn the_state_survives_the_file() {
        let state = State {
            failed: None,
            process: "tests-1 (pid 8)".to_owned(),
            pid: 9,
            supervisor: 10,
            service_dir: PathBuf::from("/tmp/a b=c"),
            ports: vec![(String::new(), 4000), ("admin port".to_owned(), 4001)],
            addr: "[::1]:4000".parse().ok(),
            url: Some("http://localhost:4000/?a=b".to_owned()),
            path: Some(PathBuf::from("/tmp/x=y")),
            env: vec![("NOTIFY_SOCKET".to_owned(), "/tmp/a=b".to_owned())],
            captured: vec![("key".to_owned(), "a = b".to_owned())],
            exit: None,
        };
        assert_eq!(State::parse(&state.format()), state);
        let mut bytes = state.format();
        bytes.extend_from_slice(b"exit=256,0,77\0");
        let exit = State::parse(&bytes).exit.expect("it is there");
        assert_eq!(
            (exit.status.code(), exit.left_descendants, exit.at),
            (Some(1), false, 77)
        );
        let longer = State::parse(b"exit=256,0,77,1\0");
        assert_eq!(longer.exit, None, "another version may write other numbers");
        let failed = State {
            failed: Some("a\nb".to_owned()),
            ..State::default()
        };
        assert_eq!(State::parse(&failed.format()), failed);
    }
}
