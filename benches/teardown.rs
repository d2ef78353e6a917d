//! Measures the time from the SIGKILL of a test process until no process of its service is left.
//!
//! The helper obeys SIGTERM, so the grace period is not used up. It runs alone, and as a tree of
//! three and of five processes. The time runs from the `kill` until the last process is dead, which
//! its `pidfd` reports without polling. The test process's own death is the lower limit, and is
//! measured as well.
//!
//! This benchmark uses no harness, because the timed work happens in three other processes: the
//! victim, its supervisor and the service. Starting a victim takes a hundred times as long as its
//! death, and each sample needs a new one.
//!
//! `cargo bench --bench teardown` prints a table of medians within a few seconds.

mod common;
#[path = "../tests/common/mod.rs"]
mod processes;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use common::table::{self, Align, number, target};
use common::{median, ms, own_role, role};
use mirakuru::Banner;
use processes::{LONG, Scratch, numbers, odd};

/// The number of children of the helper. Each child has a child of its own.
const TREES: [usize; 3] = [0, 1, 2];
const SAMPLES: usize = 40;

fn main() {
    if let Some((children, pids)) = own_role() {
        let tree = odd(["--fork", &children, "--pids", &pids, "--ready-line", "up"]);
        let _service = tree.wait_for(Banner::matching("^up$")).start().expect("the tree");
        println!("ready");
        thread::sleep(LONG);
        return;
    }
    if !common::is_asked_for() {
        return;
    }
    let begin = Instant::now();
    let mut rows = vec![
        [
            "the service is",
            "median ms",
            "slowest ms",
            "the test process itself",
            "target",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for children in TREES {
        let (mut gone, mut victims) = (Vec::new(), Vec::new());
        for _ in 0..SAMPLES {
            let (victim, tree) = kill_one(children);
            victims.push(victim);
            gone.push(tree);
        }
        let slowest = gone.iter().copied().fold(0.0, f64::max);
        let time = median(gone);
        rows.push(vec![
            match children {
                0 => "one process".to_owned(),
                _ => format!("a tree of {} processes", 1 + 2 * children),
            },
            number(time),
            number(slowest),
            number(median(victims)),
            target("median under 10", time < 10.0),
        ]);
    }
    table::print(&rows, Align::NumbersRight);
    println!("\n{}", table::foot(begin.elapsed()));
}

/// Kills a victim. Returns the milliseconds until it is dead, and until all processes of its
/// service are.
fn kill_one(children: usize) -> (f64, f64) {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let mut victim = role(&format!("{children} {pids}"))
        .env("TMPDIR", scratch.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this binary");
    let mut line = String::new();
    let stdout = victim.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("its output");
    assert_eq!(line, "ready\n");
    let tree = numbers(&pids);
    assert_eq!(tree.len(), 1 + 2 * children, "not all of the tree is there");
    let ends: Vec<pidfd::Pidfd> = tree.iter().map(|&pid| pidfd::Pidfd::of(pid)).collect();
    let begin = Instant::now();
    victim.kill().expect("a kill");
    victim.wait().expect("a child of ours");
    let dead = ms(begin.elapsed());
    for end in &ends {
        assert!(end.wait(LONG), "it survives");
    }
    (dead, ms(begin.elapsed()))
}

/// Waits for the exit of a process that is not our child.
mod pidfd {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::raw::{c_int, c_long, c_short, c_ulong};
    use std::time::Duration;

    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
        fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
    }

    #[repr(C)]
    struct PollFd {
        fd: c_int,
        events: c_short,
        revents: c_short,
    }

    /// The system call has this number on every architecture.
    const SYS_PIDFD_OPEN: c_long = 434;
    const POLLIN: c_short = 1;

    pub(super) struct Pidfd(OwnedFd);

    impl Pidfd {
        pub(super) fn of(pid: u32) -> Pidfd {
            // SAFETY: `pidfd_open` accesses no memory, and nothing else owns the new descriptor.
            unsafe {
                let fd = syscall(SYS_PIDFD_OPEN, c_long::from(pid), 0 as c_long);
                assert!(fd >= 0, "no such process: {pid}");
                Pidfd(OwnedFd::from_raw_fd(fd as c_int))
            }
        }

        /// Whether the process exits within this time.
        pub(super) fn wait(&self, bound: Duration) -> bool {
            let mut fd = PollFd {
                fd: self.0.as_raw_fd(),
                events: POLLIN,
                revents: 0,
            };
            // SAFETY: the pointer is to one live entry, and the count is 1.
            unsafe { poll(&mut fd, 1, bound.as_millis() as c_int) == 1 }
        }
    }
}
