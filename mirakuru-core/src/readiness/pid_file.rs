//! [`PidFile`]: ready when a file exists.

use crate::util::hash;
use std::fs::{self, Metadata};
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::unix_socket::{expand_path, lock_path};
use super::{Prepare, Probe, Readiness, Wake};
use crate::error::Error;
use crate::ports::free::first_number;
use crate::sys::file_watch::Watching;
use crate::sys::{self, procfs};

/// Number of bytes at the beginning of a file that are compared.
const READ: u64 = 4096;

/// An empty file that its writer still has open counts only after this time. Until then, the writer
/// may fill the file, which the test may want to read.
const SETTLED: Duration = Duration::from_millis(10);
/// Replaces [`SETTLED`] on systems that do not report when a writer closes a file.
const SETTLED_UNTOLD: Duration = Duration::from_millis(1);

/// Ready when the service has written its pid file, or any other file at the path.
///
/// The file must exist; its content does not matter. If it is empty, the wait continues for a few
/// milliseconds, so that the service can fill it. A file from before the start counts only once it
/// has been written to, touched or replaced. mirakuru does not remove such a file.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use mirakuru::{Executor, PidExecutor, PidFile};
///
/// let mut service: PidExecutor = Executor::builder("echo $$ > {dir}/service.pid; exec sleep 60")
///     .shell(true)
///     .wait_for(PidFile::path("{dir}/service.pid"))
///     .start()?;
/// assert!(service.path().exists());
/// service.stop()?;
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PidFile {
    wanted: PathBuf,
    /// The path with its placeholders filled in.
    path: PathBuf,
    /// The attributes of the file before the start, if it existed.
    before: Option<Fingerprint>,
    /// A watch for changes of the file.
    watching: Watching,
    /// Two times since the start of the service: when the file was first seen empty, and when it
    /// counts even if it is still empty.
    empty: Option<(Duration, Duration)>,
}

/// The attributes of a file, which change when it is written to, touched or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// The beginning of the content. The times alone are not enough, because two writes within one
    /// clock tick leave the same times.
    content: Vec<u8>,
}

impl Fingerprint {
    fn of(path: &Path, metadata: &Metadata) -> Fingerprint {
        Fingerprint {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            content: content(path, metadata),
        }
    }
}

/// The beginning of a regular file. Other files are not read, because reading a pipe could block.
fn content(path: &Path, metadata: &Metadata) -> Vec<u8> {
    let mut content = Vec::new();
    if metadata.is_file() {
        if let Ok(file) = fs::File::open(path) {
            let _ = io::Read::read_to_end(&mut io::Read::take(file, READ), &mut content);
        }
    }
    content
}

impl PidFile {
    /// Waits for this file. The path may contain placeholders. A relative path is resolved against
    /// the *test's* current directory, which may not be the service's.
    ///
    /// If a path outside `{dir}` is the pid file of a live process, the start fails with
    /// [`Error::AlreadyRunning`] before the program is executed.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        let wanted = path.into();
        Self {
            path: wanted.clone(),
            wanted,
            before: None,
            watching: Watching::default(),
            empty: None,
        }
    }
}

impl Readiness for PidFile {
    fn describe(&self) -> String {
        format!("it wrote {}", self.path.display())
    }

    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        let PidFile {
            wanted,
            path: _,
            before: _,
            watching: _,
            empty: _,
        } = self;
        hash::path(hasher, wanted);
    }

    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        let path = expand_path(cx, &self.wanted)?;
        let shown = path.to_string_lossy();
        if path.as_os_str().is_empty() {
            return Err(cx.invalid(shown, "the path is empty; write one, such as `{dir}/service.pid`"));
        }
        let before = fs::metadata(&path).ok();
        if before.as_ref().is_some_and(Metadata::is_dir) {
            return Err(cx.invalid(
                shown,
                "it is a directory; write the file's own path, such as `{dir}/service.pid`",
            ));
        }
        // The path is made absolute, so that the test may change its directory later.
        let path = std::path::absolute(&path).unwrap_or(path);
        lock_path(cx, &path);
        self.before = before.map(|metadata| Fingerprint::of(&path, &metadata));
        self.path = path;
        self.wait_is_over();
        Ok(())
    }

    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
        let path = &self.path;
        // The watch begins before the check, so that no event is missed.
        self.watching.renew(path, cx.elapsed());
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.empty = None;
                return Ok(false);
            }
            Err(error) => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("{}: {error}", path.display()),
                ));
            }
        };
        let now = Fingerprint::of(path, &metadata);
        let pid = first_number(&now.content);
        // A changed file is not enough: another service may have written it after `before` was
        // read, and before this service was started.
        if self.before.as_ref() != Some(&now)
            && (cx.is_since_start(now.changed)
                || pid.is_some_and(|pid| pid == cx.pid || procfs::descends(pid, cx.supervisor)))
        {
            let settled = match self.watching.event() {
                Some(_) => SETTLED,
                None => SETTLED_UNTOLD,
            };
            let (since, _) = self.empty.unwrap_or((cx.elapsed(), Duration::ZERO));
            let until = since + settled;
            let is_being_written = metadata.is_file() && now.size == 0 && !self.watching.is_complete();
            if is_being_written && cx.elapsed() < until {
                self.empty = Some((since, until));
                return Err(io::Error::other(format!("{} is still empty", path.display())));
            }
            return Ok(true);
        }
        self.empty = None;
        let names = match pid {
            Some(pid) if sys::files::process_lives(pid) => format!(" (process {pid})"),
            Some(pid) => format!(" (process {pid}, which is gone)"),
            None => String::new(),
        };
        Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "{}{names} was there before the start and has not changed since; remove it if the service \
                    does not",
                path.display()
            ),
        ))
    }

    fn wakes(&self, wake: &mut Wake) {
        match self.watching.event() {
            Some(event) => {
                wake.on(event);
                wake.fallback_poll();
            }
            None => wake.with_back_off(),
        }
        if let Some((_, until)) = self.empty {
            wake.at(until);
        }
    }

    fn hint(&self, cx: &Probe<'_>) -> Option<String> {
        // Whether a file contains the process id of one of the service's processes.
        let names_it = |path: &Path| {
            let metadata = fs::metadata(path).ok().filter(|metadata| metadata.len() < READ);
            let pid = metadata.and_then(|metadata| first_number(&content(path, &metadata)));
            pid.is_some_and(|pid| pid == cx.pid || procfs::descends(pid, cx.supervisor))
        };
        let found = cx.made_elsewhere(&self.path, &names_it)?;
        Some(format!(
            "it wrote its process id to `{}`: await that path, or give the service the awaited one",
            found.display()
        ))
    }

    fn wait_is_over(&mut self) {
        self.watching = Watching::default();
        self.empty = None;
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::values::Values;
    use crate::readiness::context::TICK;
    use crate::readiness::harness::{Harness, TestDir, poll};
    use std::time::{Instant, SystemTime};

    fn prepare(path: &Path) -> Result<(PidFile, Vec<PathBuf>), Error> {
        let mut readiness = PidFile::path(path);
        let mut values = Values::new("test".to_owned(), PathBuf::from("/tmp/private"));
        let mut cx = Prepare::new(&mut values);
        readiness.prepare(&mut cx)?;
        let paths = cx.paths;
        Ok((readiness, paths))
    }

    fn probe_of(readiness: &mut PidFile, elapsed: Duration, root: u32) -> io::Result<bool> {
        poll(readiness, root, elapsed)
    }

    fn probe(readiness: &mut PidFile) -> io::Result<bool> {
        probe_of(readiness, Duration::from_secs(1), std::process::id())
    }

    #[test]
    fn a_new_file_is_ready_whatever_is_in_it() {
        let dir = TestDir::new();
        let path = dir.path().join("x.pid");
        let (mut readiness, endpoints) = prepare(&path).unwrap();
        assert_eq!(endpoints, [path.as_path()]);
        assert_eq!(Readiness::path(&readiness), Some(path.as_path()));
        assert!(!probe(&mut readiness).unwrap());
        fs::write(&path, "?").unwrap();
        assert!(probe(&mut readiness).unwrap());
    }

    #[test]
    fn an_empty_one_is_given_a_moment_to_be_written() {
        let dir = TestDir::new();
        let path = dir.path().join("x.pid");
        let (mut readiness, _) = prepare(&path).unwrap();
        assert!(!probe(&mut readiness).unwrap());
        let mut file = fs::File::create(&path).unwrap();
        let error = probe(&mut readiness).unwrap_err().to_string();
        assert!(error.ends_with("x.pid is still empty"), "{error}");
        assert!(wakes(&readiness).1 <= SETTLED);
        io::Write::write_all(&mut file, b"1").unwrap();
        assert!(probe(&mut readiness).unwrap());
        // If the file stays empty, the service counts as ready after a while.
        let (mut readiness, _) = prepare(&dir.path().join("y")).unwrap();
        assert!(!probe(&mut readiness).unwrap());
        let _file = fs::File::create(dir.path().join("y")).unwrap();
        assert!(probe(&mut readiness).is_err());
        let later = Duration::from_secs(1) + SETTLED;
        assert!(probe_of(&mut readiness, later, std::process::id()).unwrap());
    }

    #[test]
    #[cfg_attr(
        any(not(target_os = "linux"), mirakuru_portable),
        ignore = "nobody tells of files there"
    )]
    fn an_empty_one_is_enough_once_it_is_closed() {
        let dir = TestDir::new();
        let path = dir.path().join("x.pid");
        let (mut readiness, _) = prepare(&path).unwrap();
        assert!(!probe(&mut readiness).unwrap());
        fs::write(&path, "").unwrap();
        assert!(probe(&mut readiness).unwrap());
    }

    #[test]
    fn a_file_left_over_counts_once_it_has_changed() {
        let dir = TestDir::new();
        let path = dir.path().join("x.pid");
        // No process can have this id.
        fs::write(&path, "4194305\n").unwrap();
        let (mut readiness, _) = prepare(&path).unwrap();
        let error = probe(&mut readiness).unwrap_err().to_string();
        assert!(
            error.contains(
                "(process 4194305, which is gone) was there before the start and has not changed since"
            ),
            "{error}"
        );
        // The new content has the same length, and the times of the file may be the same as well.
        fs::write(&path, "4194306\n").unwrap();
        assert!(probe(&mut readiness).unwrap());
        // A touched file counts as new.
        let (mut readiness, _) = prepare(&path).unwrap();
        assert!(probe(&mut readiness).is_err());
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(5))
            .unwrap();
        assert!(probe(&mut readiness).unwrap());
        // A replaced file counts as new.
        let (mut readiness, _) = prepare(&path).unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "4194306\n").unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(probe(&mut readiness).unwrap());
    }

    #[test]
    fn a_file_that_appeared_before_the_start_is_not_the_services() {
        let dir = TestDir::new();
        let path = dir.path().join("x.pid");
        let (mut readiness, _) = prepare(&path).unwrap();
        fs::write(&path, "4194305\n").unwrap();
        std::thread::sleep(TICK * 3);
        // `elapsed` is zero, so this service seems to have started after the file was written.
        assert!(probe_of(&mut readiness, Duration::ZERO, std::process::id()).is_err());
        // A file that names one of the service's processes counts even if its times are too old.
        fs::write(&path, std::process::id().to_string()).unwrap();
        std::thread::sleep(TICK * 3);
        assert!(probe_of(&mut readiness, Duration::ZERO, std::process::id()).unwrap());
        assert!(probe_of(&mut readiness, Duration::ZERO, u32::MAX).is_err());
        assert!(probe_of(&mut readiness, Duration::from_secs(60), u32::MAX).unwrap());
    }

    #[test]
    fn a_file_made_in_the_first_moment_after_the_start_is_found_elsewhere() {
        let harness = Harness::new();
        let readiness = PidFile::path(harness.dir().join("awaited.pid"));
        let other = harness.dir().join("other.pid");
        // The new file's time is only sometimes earlier than the start, so this is tried
        // repeatedly.
        for _ in 0..200 {
            let start = Instant::now();
            fs::write(&other, std::process::id().to_string()).unwrap();
            harness.elapsed(start.elapsed());
            let hint = harness.with_probe(|cx| readiness.hint(cx));
            assert!(hint.is_some_and(|hint| hint.contains("other.pid`")));
            fs::remove_file(&other).unwrap();
        }
    }

    /// The number of descriptors and the longest pause after a failed poll.
    fn wakes(readiness: &PidFile) -> (usize, Duration) {
        let mut wake = Wake::new(Duration::from_secs(1));
        readiness.wakes(&mut wake);
        (wake.events.len(), wake.pause)
    }

    #[test]
    #[cfg_attr(
        any(not(target_os = "linux"), mirakuru_portable),
        ignore = "nobody tells of files there"
    )]
    fn it_is_told_of_the_file_and_polls_rarely_meanwhile() {
        let dir = TestDir::new();
        let path = dir.path().join("later/x.pid");
        let (mut readiness, _) = prepare(&path).unwrap();
        assert!(!probe(&mut readiness).unwrap());
        let (events, often) = wakes(&readiness);
        assert_eq!(events, 0, "there is no directory to watch");
        fs::create_dir(dir.path().join("later")).unwrap();
        assert!(!probe(&mut readiness).unwrap());
        let (events, fallback_poll) = wakes(&readiness);
        assert_eq!(events, 1);
        assert!(fallback_poll > often);
        readiness.wait_is_over();
        assert_eq!(wakes(&readiness), (0, often));
    }

    #[test]
    fn paths_are_checked_and_locked() {
        assert!(prepare(Path::new("/tmp/private/x.pid")).unwrap().1.is_empty());
        let (readiness, endpoints) = prepare(Path::new("x.pid")).unwrap();
        let absolute = std::env::current_dir().unwrap().join("x.pid");
        assert_eq!(endpoints, [absolute.as_path()]);
        assert_eq!(readiness.describe(), format!("it wrote {}", absolute.display()));
        for wrong in ["", "/tmp"] {
            let Err(Error::InvalidReadiness { .. }) = prepare(Path::new(wrong)) else {
                panic!("{wrong:?}")
            };
        }
    }
}
