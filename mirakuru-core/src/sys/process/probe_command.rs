//! What the standard library lacks for a short-lived command of our own, the one that an `Exec`
//! condition runs: a pipe that can be waited for with a time limit, the death of a whole process
//! group, and a child that costs little to make and still cannot outlive the test process when that
//! is killed meanwhile.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// A pipe: the end to read from and the end to write to. Neither is handed down to other programs.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    #[cfg(any(target_os = "linux", target_os = "android"))]
    // SAFETY: the pointer is to two integers, which is what the call fills in.
    let result = unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) };
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    // SAFETY: the pointer is to two integers, which is what the call fills in.
    let result = unsafe { libc::pipe(fds.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so both are open descriptors that nobody else has.
    let pair = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    for fd in fds {
        // SAFETY: setting a flag of an open descriptor touches no memory.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(pair)
}

/// A command as it is executed: the files to try, in order, the words, and the environment.
pub(crate) struct Words {
    pub(crate) candidates: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) envp: Vec<CString>,
}

/// Executes the command in a process group of its own, with nothing on its standard input and its
/// output into the pipe, and says its process id. It is killed when this thread ends before it.
///
/// That the kernel ties it to the *thread* that forks, and not to the process, is a trap for a
/// service, which outlives the test's thread. Here it is what is wanted: this thread waits for the
/// command, and ends it when the wait is over.
///
/// The child borrows this process's memory until it executes the program, as with `posix_spawn`,
/// whose price does not grow with the test process; but that cannot tie it. (The standard library's
/// `pre_exec` can, at the price of a fork, which takes 13 ms from a test process of 200 MB, for
/// each look.)
#[cfg(target_os = "linux")]
pub(crate) fn spawn(words: &Words, output: OwnedFd) -> io::Result<u32> {
    linux::spawn(words, output)
}

/// The same where nothing ties a child to its parent.
#[cfg(not(target_os = "linux"))]
pub(crate) fn spawn(words: &Words, output: OwnedFd) -> io::Result<u32> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    let text = |text: &CString| OsStr::from_bytes(text.as_bytes()).to_owned();
    let try_one = |mut command: Command| {
        command
            .args(words.argv.iter().skip(1).map(text))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?);
        command.spawn()
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for candidate in &words.candidates {
        let mut command = Command::new(text(candidate));
        command.arg0(words.argv.first().map(text).unwrap_or_default());
        let mut spawned = try_one(command);
        if matches!(&spawned, Err(error) if error.raw_os_error() == Some(libc::ENOEXEC)) {
            // A script that does not say who runs it.
            let mut shell = Command::new("/bin/sh");
            shell.arg(text(candidate));
            spawned = try_one(shell);
        }
        match spawned {
            Ok(child) => return Ok(child.id()),
            Err(error) if last.kind() == io::ErrorKind::NotFound => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::{CStr, CString};
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::ptr;

    use nix::errno::Errno;
    use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

    use super::Words;

    /// What the child needs to know. It lies in the parent's memory, which the child has as well:
    /// the parent sleeps until the child has executed the program or ended.
    struct Child {
        parent: i32,
        stdin: i32,
        output: i32,
        /// Each list ends with a null pointer.
        candidates: *const *const libc::c_char,
        argv: *const *const libc::c_char,
        /// The same behind the name of a shell and a free place for the file, for a script that
        /// does not say who runs it.
        script: *mut *const libc::c_char,
        envp: *const *const libc::c_char,
        /// Why the program could not be executed; 0 if it was.
        errno: i32,
    }

    const SHELL: &CStr = c"/bin/sh";

    /// Plenty for a function that makes system calls.
    const STACK: usize = 64 * 1024;

    pub(super) fn spawn(words: &Words, output: OwnedFd) -> io::Result<u32> {
        let stdin = lifted(File::open("/dev/null")?.into())?;
        let output = lifted(output)?;
        let candidates = pointers(&words.candidates);
        let argv = pointers(&words.argv);
        let mut script = vec![SHELL.as_ptr(), ptr::null()];
        script.extend_from_slice(argv.get(1..).unwrap_or(&[ptr::null()]));
        let envp = pointers(&words.envp);
        let mut child = Child {
            parent: std::process::id() as i32,
            stdin: stdin.as_raw_fd(),
            output: output.as_raw_fd(),
            candidates: candidates.as_ptr(),
            argv: argv.as_ptr(),
            script: script.as_mut_ptr(),
            envp: envp.as_ptr(),
            errno: 0,
        };
        let mut stack: Vec<u128> = Vec::with_capacity(STACK / size_of::<u128>());

        // Until it has executed the program no handler of the test's may run in the child, in whose
        // memory it would be the test's.
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        // SAFETY: the stack is this call's alone and as long as is said, and grows downwards; its
        // end is aligned as any stack must be. `child` and what its pointers lead to live until the
        // call returns, which it does only when the child uses this memory no more (CLONE_VFORK).
        // What the child does is told at `run`.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(STACK / size_of::<u128>());
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            Errno::result(libc::clone(
                run,
                top.cast(),
                flags,
                ptr::from_mut(&mut child).cast(),
            ))
        };
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        let pid = pid?;
        // SAFETY: a live variable. The compiler does not know that somebody else has written to it.
        let errno = unsafe { ptr::read_volatile(&child.errno) };
        if errno != 0 {
            // It has ended, or is about to.
            super::wait_for(pid.unsigned_abs());
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(pid.unsigned_abs())
    }

    /// A descriptor above the standard streams, over which it will be copied.
    fn lifted(fd: OwnedFd) -> io::Result<OwnedFd> {
        if fd.as_raw_fd() > 2 {
            return Ok(fd);
        }
        // SAFETY: the descriptor is open, and its copy is nobody else's.
        unsafe {
            let copy = Errno::result(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3))?;
            Ok(OwnedFd::from_raw_fd(copy))
        }
    }

    fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
        let pointers = texts.iter().map(|text| text.as_ptr());
        pointers.chain([ptr::null()]).collect()
    }

    /// The child, up to the program. It shares the parent's memory, and the parent's other threads
    /// go on: so it only makes system calls, takes no lock, allocates nothing, does not panic, and
    /// writes to its stack, `errno`, and what it was given.
    extern "C" fn run(child: *mut libc::c_void) -> libc::c_int {
        // SAFETY: it is the `Child` of `spawn`, and all of its pointers are good until the parent
        // goes on.
        unsafe {
            let child = child.cast::<Child>();
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
            // The test process may have ended before the call above.
            if libc::getppid() != (*child).parent {
                libc::_exit(127);
            }
            libc::setpgid(0, 0);
            // Executing a program does the same, but the signals must be let through before that.
            for signal in 1..=64 {
                let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
                if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
                    continue;
                }
                let handler = (*action.as_ptr()).sa_sigaction;
                // Rust ignores SIGPIPE, which no other program expects.
                let is_handled = handler != libc::SIG_DFL && handler != libc::SIG_IGN;
                if is_handled || (signal == libc::SIGPIPE && handler != libc::SIG_DFL) {
                    let default = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
                    libc::sigaction(signal, default.as_ptr(), ptr::null_mut());
                }
            }
            libc::dup2((*child).stdin, 0);
            libc::dup2((*child).output, 1);
            libc::dup2((*child).output, 2);
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());

            // As `execvp` does.
            let mut errno = libc::ENOENT;
            let mut next = (*child).candidates;
            while !(*next).is_null() {
                libc::execve(*next, (*child).argv, (*child).envp);
                let mut why = *libc::__errno_location();
                if why == libc::ENOEXEC {
                    *(*child).script.add(1) = *next;
                    libc::execve(SHELL.as_ptr(), (*child).script, (*child).envp);
                    why = *libc::__errno_location();
                }
                match why {
                    libc::ENOENT | libc::ENOTDIR => {}
                    // There may be another one that may be executed.
                    libc::EACCES => errno = why,
                    _ => {
                        errno = why;
                        break;
                    }
                }
                next = next.add(1);
            }
            ptr::write_volatile(&raw mut (*child).errno, errno);
            libc::_exit(127)
        }
    }
}

/// Waits for a child that has ended, or is about to: its status, unless somebody else has waited
/// for it.
pub(crate) fn wait_for(child: u32) -> Option<ExitStatus> {
    status_of(child, 0).ok().flatten()
}

/// The status of a child that has ended; `None` while it has not. An error means that somebody else
/// has waited for it.
pub(crate) fn try_wait_for(child: u32) -> io::Result<Option<ExitStatus>> {
    status_of(child, libc::WNOHANG)
}

fn status_of(child: u32, flags: i32) -> io::Result<Option<ExitStatus>> {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to an integer, which the call may fill in.
        match unsafe { libc::waitpid(child as i32, &mut status, flags) } {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
            _ => return Ok(Some(ExitStatus::from_raw(status))),
        }
    }
}

/// Sends SIGKILL to a process group that [`spawn`] made. Its leader must not have been waited for
/// yet, or the number may be somebody else's by now.
pub(crate) fn kill_group(leader: u32) {
    if let Ok(leader) = i32::try_from(leader) {
        // ESRCH is what is wanted anyway.
        let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
    }
}

/// Sends SIGKILL to a child that has not been waited for yet.
pub(crate) fn kill_process(child: u32) {
    if let Ok(child) = i32::try_from(child) {
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
    }
}

/// A descriptor that becomes readable when the child has ended. `None` where the kernel has none.
pub(crate) fn exit_event(child: u32) -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        let pid = libc::pid_t::try_from(child).ok()?;
        // SAFETY: the call takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the call succeeded, so this is an open descriptor that nobody else has; it is
        // close-on-exec.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = child;
        None
    }
}

/// Waits until one of the descriptors can be read or is at its end, but not longer than this. Says
/// of each whether it is.
pub(crate) fn wait_readable<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    timeout: Duration,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd {
        // A negative descriptor is passed over.
        fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    // Rounded up, or the last millisecond would be spent spinning.
    let millis = i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: the pointer and the length are those of one array, which lives through the call.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, millis) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(polled.map(|p| p.revents != 0))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn spawn_sh(script: &str) -> (u32, OwnedFd) {
        let text = |text: &str| CString::new(text).unwrap();
        let words = Words {
            candidates: vec![text("/nonexistent/sh"), text("/bin/sh")],
            argv: vec![text("sh"), text("-c"), text(script)],
            envp: vec![text("PATH=/usr/bin:/bin"), text("GREETING=hello")],
        };
        let (output, output_end) = pipe().unwrap();
        (spawn(&words, output_end).unwrap(), output)
    }

    #[test]
    fn its_output_its_environment_and_its_end_are_seen() {
        let (child, output) = spawn_sh("echo $GREETING; echo $0 >&2; exit 3");
        // To the end, which comes when nobody has the other end any more.
        let text = io::read_to_string(std::fs::File::from(output)).unwrap();
        assert_eq!(text, "hello\nsh\n");
        assert_eq!(wait_for(child).unwrap().code(), Some(3));
        assert!(wait_for(child).is_none() && try_wait_for(child).is_err());
    }

    #[test]
    fn it_does_not_outlive_its_thread() {
        let (child, _output) = std::thread::spawn(|| spawn_sh("sleep 20")).join().unwrap();
        assert_eq!(wait_for(child).unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn many_threads_make_children_at_once_and_allocate_meanwhile() {
        std::thread::scope(|scope| {
            for number in 0..4 {
                scope.spawn(move || {
                    for round in 0..25 {
                        let (child, output) = spawn_sh(&format!("echo {number} {round}"));
                        let text = io::read_to_string(std::fs::File::from(output)).unwrap();
                        assert_eq!(text, format!("{number} {round}\n"));
                        assert!(wait_for(child).unwrap().success());
                    }
                });
            }
        });
    }

    #[test]
    fn why_it_cannot_be_executed_is_said_and_no_zombie_is_left() {
        let words = |path: &str| Words {
            candidates: vec![CString::new(path).unwrap()],
            argv: vec![CString::new("x").unwrap()],
            envp: Vec::new(),
        };
        for (path, kind) in [
            ("/nonexistent/x", io::ErrorKind::NotFound),
            ("/etc/hostname/x", io::ErrorKind::NotFound),
            ("/tmp", io::ErrorKind::PermissionDenied),
        ] {
            let (_output, output_end) = pipe().unwrap();
            let error = spawn(&words(path), output_end).unwrap_err();
            assert_eq!(error.kind(), kind, "{path}");
        }
    }
}
