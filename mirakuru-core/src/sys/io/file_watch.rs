//! Notices when a file appears or changes, through inotify on systems that have it.
//!
//! A watch supplements polling and does not replace it. inotify does not report a file that another
//! machine writes, or that changes through another mount, such as a container's overlay. So the
//! caller continues to poll, with longer pauses.
//!
//! An inotify instance is expensive to close, because the kernel first waits for a grace period of
//! its own (5 to 20 ms were measured). So at the end of a wait only the watches are removed, which
//! takes microseconds. The instance is kept for the next wait.
//!
//! A short wait uses no instance, because the test process may end right after it. The kernel
//! closes the instances when the process ends, which takes just as long.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
pub(crate) use linux::FileWatch;
#[cfg(any(not(target_os = "linux"), mirakuru_portable))]
pub(crate) use nothing::FileWatch;

/// Waiting time after which a watch pays off. Before that, the pauses between polls are very short.
const WORTHWHILE: Duration = Duration::from_millis(20);

/// A watch for one wait. It is created only if the wait is long, because by default a user may have
/// only 128 instances.
#[derive(Debug, Default)]
pub(crate) struct Watching {
    watch: Option<FileWatch>,
    /// Whether the watch will report when the file next appears or changes.
    works: bool,
    /// Whether an event has reported that the writer has finished writing the file.
    complete: bool,
}

impl Watching {
    /// Forgets earlier events, so that later ones are reported. Call this right *before* each poll
    /// of the file, because the poll sees the effects of the earlier events.
    ///
    /// Looks up `path` each time, so the file and even its directory may be missing. `waited` is
    /// the time waited so far.
    pub(crate) fn renew(&mut self, path: &Path, waited: Duration) {
        if self.watch.is_none() && waited >= WORTHWHILE {
            self.watch = FileWatch::new();
        }
        let complete = &mut self.complete;
        self.works = self
            .watch
            .as_mut()
            .is_some_and(|watch| watch.renew(path, complete));
    }

    /// Whether an event has reported that the writer has closed the file, or moved it into place.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The descriptor that becomes readable when an event is pending. `None` if the watch does not
    /// work.
    pub(crate) fn event(&self) -> Option<BorrowedFd<'_>> {
        self.watch
            .as_ref()
            .filter(|_| self.works)
            .and_then(FileWatch::event)
    }
}

/// A watch belongs to one wait, so a clone starts without a watch.
impl Clone for Watching {
    fn clone(&self) -> Watching {
        Watching::default()
    }
}

#[cfg(all(target_os = "linux", not(mirakuru_portable)))]
mod linux {
    use std::ffi::{CString, OsStr};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::sync::{Mutex, PoisonError};

    use crate::sys::proc::entries;

    /// File systems on which another machine can create a file that inotify does not report.
    const REMOTE: [u32; 12] = [
        0x6969,      // NFS
        0x517B,      // SMB
        0xFF53_4D42, // CIFS
        0xFE53_4D42, // SMB 2
        0x0102_1997, // 9P
        0x6573_5546, // FUSE
        0x00C3_6400, // Ceph
        0x5346_414F, // AFS
        0x7375_7245, // Coda
        0x0116_1970, // GFS2
        0x7461_636F, // OCFS2
        0x0BD0_0BD0, // Lustre
    ];

    /// Idle instances without a watch, kept open for later waits. Each instance belongs to one wait
    /// at a time, because two waits would take each other's events.
    static IDLE: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

    #[derive(Debug)]
    pub(crate) struct FileWatch {
        /// The inotify instance. `None` only while `drop` runs.
        inotify: Option<OwnedFd>,
        /// The numbers of all watches added during this wait, even for files that have been
        /// replaced since.
        watches: Vec<i32>,
    }

    impl FileWatch {
        /// Takes an idle instance, or creates one. Returns `None` if the user has reached the limit
        /// of instances.
        pub(crate) fn new() -> Option<FileWatch> {
            let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let inotify = idle.or_else(|| {
                // SAFETY: the call takes no pointers.
                let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
                // SAFETY: the call succeeded, so this is an open descriptor that no other value
                // owns.
                (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
            })?;
            Some(FileWatch {
                inotify: Some(inotify),
                watches: Vec::new(),
            })
        }

        /// Renews the watches on the path and on its directory. Returns whether they will report
        /// when the file appears or changes.
        pub(crate) fn renew(&mut self, path: &Path, complete: &mut bool) -> bool {
            self.drain(&mut |mask, name| {
                if Some(name) == path.file_name().map(OsStr::as_bytes) {
                    *complete = mask & libc::IN_CREATE == 0;
                }
            });
            let dir = match path.parent() {
                Some(dir) if !dir.as_os_str().is_empty() => dir,
                Some(_) => Path::new("."),
                None => return false,
            };
            let is_remote = |dir: &Path| {
                let Ok(dir) = CString::new(dir.as_os_str().as_bytes()) else {
                    return false;
                };
                // SAFETY: the path ends in a zero byte, an all-zero `statfs` is valid, and the call
                // fills it in.
                let (stat, done) = unsafe {
                    let mut stat: libc::statfs = std::mem::zeroed();
                    let done = libc::statfs(dir.as_ptr(), &mut stat);
                    (stat, done)
                };
                // The type of `f_type` depends on the architecture; the values in `REMOTE` are
                // `u32`.
                done == 0 && REMOTE.contains(&(stat.f_type as u32))
            };
            // The directory may have been removed and created again, so its path is resolved each
            // time. A directory that is already watched stays watched. The watch on the directory
            // reports when the file appears, and the watch on the file reports changes to it.
            let appearance = libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_CLOSE_WRITE;
            if is_remote(dir) || !self.add(dir, appearance | libc::IN_ONLYDIR) {
                return false;
            }
            // If the file is a link to a missing target, the target will appear in another
            // directory.
            self.add(path, libc::IN_MODIFY | libc::IN_ATTRIB) || !path.is_symlink()
        }

        pub(crate) fn event(&self) -> Option<BorrowedFd<'_>> {
            self.inotify.as_ref().map(AsFd::as_fd)
        }

        fn fd(&self) -> i32 {
            self.inotify.as_ref().map_or(-1, AsRawFd::as_raw_fd)
        }

        fn add(&mut self, path: &Path, mask: u32) -> bool {
            let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
                return false;
            };
            // SAFETY: the path ends in a zero byte and outlives the call.
            let watch = unsafe { libc::inotify_add_watch(self.fd(), path.as_ptr(), mask) };
            if watch >= 0 && !self.watches.contains(&watch) {
                self.watches.push(watch);
            }
            watch >= 0
        }

        /// Reads the events. Calls `each` with the kind of an event and the name in the directory.
        /// The name is empty if the event is about the file itself.
        fn drain(&self, each: &mut dyn FnMut(u32, &[u8])) {
            let mut buffer = [0_u8; 4096];
            // The limit ends the loop even if a program keeps creating files.
            for _ in 0..64 {
                // SAFETY: the call writes at most as many bytes as the buffer has.
                let got = unsafe { libc::read(self.fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
                let Some(mut rest) = usize::try_from(got).ok().and_then(|got| buffer.get(..got)) else {
                    break;
                };
                // A `struct inotify_event` consists of four 32-bit numbers and a name. The second
                // number is the kind of the event. The last number is the length of the name,
                // including the zeros that follow it.
                while let Some((head, tail)) = rest.split_first_chunk::<16>() {
                    let number =
                        |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
                    let (name, tail) = tail.split_at((number(12) as usize).min(tail.len()));
                    each(number(4), entries(name).next().unwrap_or_default());
                    rest = tail;
                }
            }
        }
    }

    impl Drop for FileWatch {
        fn drop(&mut self) {
            for &watch in &self.watches {
                // SAFETY: the call takes two numbers. If the file has been removed, its watch is
                // gone and the call fails. No other watch of this instance gets the same number.
                unsafe { libc::inotify_rm_watch(self.fd(), watch) };
            }
            // Otherwise the events of this wait would wake up the next wait.
            self.drain(&mut |_, _| {});
            if let Some(inotify) = self.inotify.take() {
                IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(inotify);
            }
        }
    }
}

#[cfg(any(not(target_os = "linux"), mirakuru_portable))]
mod nothing {
    use std::os::fd::BorrowedFd;
    use std::path::Path;

    /// On other systems there is no watch.
    #[derive(Debug)]
    pub(crate) enum FileWatch {}

    impl FileWatch {
        pub(crate) fn new() -> Option<FileWatch> {
            None
        }

        pub(crate) fn renew(&mut self, _: &Path, _: &mut bool) -> bool {
            match *self {}
        }

        pub(crate) fn event(&self) -> Option<BorrowedFd<'_>> {
            match *self {}
        }
    }
}

#[cfg(all(test, target_os = "linux", not(mirakuru_portable)))]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;
    use crate::sys::is_readable;
    use crate::sys::tests::{TestDir, in_time};

    /// Whether an event has arrived since the watch was renewed. Events arrive immediately.
    fn told(watching: &Watching) -> bool {
        let event = watching.event().expect("it is watched");
        assert!(event.as_raw_fd() > 0);
        is_readable(event)
    }

    fn renew(watching: &mut Watching, path: &Path) {
        watching.renew(path, WORTHWHILE);
    }

    #[test]
    fn whatever_makes_or_changes_the_file_is_told() {
        let dir = TestDir::new();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        let mut watching = Watching::default();
        watching.renew(&path, Duration::ZERO);
        assert!(watching.event().is_none(), "not worthwhile yet");
        let deeds: [(&str, &dyn Fn()); 7] = [
            ("made", &|| fs::write(&path, "").unwrap()),
            ("written to", &|| fs::write(&path, "1").unwrap()),
            ("touched", &|| {
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            }),
            ("replaced", &|| {
                fs::write(&other, "2").unwrap();
                fs::rename(&other, &path).unwrap();
            }),
            ("written to after that", &|| fs::write(&path, "3").unwrap()),
            ("removed", &|| fs::remove_file(&path).unwrap()),
            ("bound", &|| drop(UnixListener::bind(&path).unwrap())),
        ];
        for (what, deed) in deeds {
            // A child that another test forked may hold a copy of the previous step's file. Closing
            // that copy is an event too, so this waits until no more events arrive.
            in_time(|| {
                renew(&mut watching, &path);
                !told(&watching)
            });
            deed();
            assert!(told(&watching), "{what}");
        }
    }

    #[test]
    fn writing_to_another_file_of_the_directory_wakes_nobody() {
        let dir = TestDir::new();
        let mut other = fs::File::create(dir.path().join("journal")).unwrap();
        let mut watching = Watching::default();
        renew(&mut watching, &dir.path().join("file"));
        std::io::Write::write_all(&mut other, b"much").unwrap();
        assert!(!told(&watching));
    }

    #[test]
    fn it_is_told_when_the_writer_is_done() {
        let dir = TestDir::new();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        let mut watching = Watching::default();
        renew(&mut watching, &path);
        let file = fs::File::create(&path).unwrap();
        fs::write(&other, "somebody else's").unwrap();
        renew(&mut watching, &path);
        assert!(!watching.is_complete(), "it is open");
        drop(file);
        // A process that another test forked may keep the file open until its exec.
        in_time(|| {
            renew(&mut watching, &path);
            watching.is_complete()
        });
        fs::remove_file(&path).unwrap();
        let _file = fs::File::create(&path).unwrap();
        renew(&mut watching, &path);
        assert!(!watching.is_complete(), "it is another one");
        fs::rename(&other, &path).unwrap();
        renew(&mut watching, &path);
        assert!(watching.is_complete());
    }

    #[test]
    fn where_nobody_would_tell_it_says_so() {
        let dir = TestDir::new();
        let (inner, elsewhere) = (dir.path().join("inner"), dir.path().join("elsewhere"));
        let path = inner.join("file");
        let mut watching = Watching::default();
        renew(&mut watching, &path);
        assert!(watching.event().is_none(), "there is no directory");
        fs::create_dir(&inner).unwrap();
        renew(&mut watching, &path);
        assert!(watching.event().is_some());
        std::os::unix::fs::symlink(elsewhere.join("file"), &path).unwrap();
        renew(&mut watching, &path);
        assert!(watching.event().is_none(), "a link that leads nowhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(&path, "").unwrap();
        renew(&mut watching, &path);
        fs::write(elsewhere.join("file"), "x").unwrap();
        assert!(told(&watching));
    }

    #[test]
    fn the_next_wait_hears_nothing_of_the_one_before() {
        let dir = TestDir::new();
        let path = dir.path().join("file");
        // Another test may take the first wait's instance, so one attempt is not enough.
        for _ in 0..20 {
            let mut first = Watching::default();
            renew(&mut first, &path);
            fs::write(&path, "").unwrap();
            drop(first);
            let mut second = Watching::default();
            renew(&mut second, &dir.path().join("inner/other"));
            fs::write(&path, "more").unwrap();
            fs::remove_file(&path).unwrap();
            let inotify = second.watch.as_ref().and_then(FileWatch::event).unwrap();
            assert!(!is_readable(inotify));
        }
    }

    #[test]
    fn a_directory_that_was_made_anew_is_watched() {
        let dir = TestDir::new();
        let inner = dir.path().join("inner");
        let path = inner.join("file");
        fs::create_dir(&inner).unwrap();
        let mut watching = Watching::default();
        renew(&mut watching, &path);
        fs::remove_dir(&inner).unwrap();
        fs::create_dir(&inner).unwrap();
        renew(&mut watching, &path);
        // The removal of the old directory may be reported late, so this renews the watch again.
        renew(&mut watching, &path);
        assert!(!told(&watching));
        fs::write(&path, "").unwrap();
        assert!(told(&watching));
    }
}
