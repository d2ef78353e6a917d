//! Behaviour that differs on the back end for other Unixes, tested on Linux with `RUSTFLAGS="--cfg
//! mirakuru_portable"`. All other tests run on that back end as well. If it lacks a feature, the
//! tests of the feature are ignored with the reason, and `docs/guide/limits.md` lists them.
#![cfg(mirakuru_portable)]

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{
    LONG, SIGKILL, Scratch, SetAtTheEnd, alive, assert_gone, error_of, numbers, odd, send, supervisors,
    test_name, victim, victim_dir, wait_until,
};
use mirakuru::{Error, Executor, PidFile, Tcp, Udp};

unsafe extern "C" {
    fn fork() -> i32;
    fn pause() -> i32;
    fn dup2(from: i32, to: i32) -> i32;
    fn close(fd: i32) -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(status: i32) -> !;
}

/// On this back end the start of a daemon fails. The report says that the daemon may still run.
#[test]
fn a_daemon_is_not_found() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    // The daemon gets a session of its own before the main process exits.
    let script = format!(
        "setsid sh -c 'echo $$ > {pids}; exec sleep 100' & until test -s {pids}; do sleep 0.01; done; exit 0"
    );
    let service = Executor::builder(script)
        .shell(true)
        .wait_for(PidFile::path("{dir}/pid"))
        .timeout(LONG)
        .start();
    let error = error_of(service);
    let daemon = numbers(&pids)[0];
    let survives = alive(daemon);
    send(daemon, SIGKILL);
    assert!(matches!(error, Error::Exited { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("on this system a program that goes into the background is lost and may still run"),
        "{text}"
    );
    assert!(survives, "this is more than is promised");
    assert_gone(&scratch, &pids, LONG);
}

/// This back end cannot see the owner of a UDP port, so a start cannot wait for it.
#[test]
fn a_udp_port_is_not_waited_for_and_the_error_says_why() {
    let service = Executor::builder("sleep 100").wait_for(Udp::addr("127.0.0.1:{port}"));
    let error = error_of(service.start());
    assert!(matches!(error, Error::InvalidReadiness { .. }), "{error}");
    assert!(
        error.to_string().contains("use `Check` with a request"),
        "{error}"
    );
}

/// The end of the test process normally closes its socket to the supervisor. Here a forked child of
/// the test process keeps a copy of the socket open.
#[test]
fn the_end_of_the_test_process_is_noticed_without_its_socket() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let mut process = victim(test_name!(dies_and_leaves_a_fork), scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let fork = scratch.file("fork");
    let is_there = wait_until(|| !numbers(&fork).is_empty(), LONG);
    let service = numbers(&pids);
    send(process.id(), SIGKILL);
    let status = process.wait().unwrap();
    assert!(is_there, "it did not come so far");
    assert_eq!(status.signal(), Some(SIGKILL));
    let gone = wait_until(|| service.iter().all(|pid| !alive(*pid)), LONG);
    let fork = numbers(&fork)[0];
    let held = alive(fork);
    send(fork, SIGKILL);
    assert!(!service.is_empty() && gone, "survivors: {service:?}");
    assert!(held, "the copy was gone, and nothing is proved");
    assert_gone(&scratch, &pids, LONG);
}

#[test]
#[ignore = "a victim"]
fn dies_and_leaves_a_fork() {
    let Some(dir) = victim_dir() else { return };
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let _service = odd([
        "--pids",
        &file("pids"),
        "--fork",
        "1",
        "--listen",
        "127.0.0.1:{port}",
    ])
    .wait_for(Tcp::addr("127.0.0.1:{port}"))
    .start()
    .unwrap();
    // SAFETY: the child only makes system calls and never returns.
    let child = unsafe {
        let child = fork();
        if child == 0 {
            pause();
            _exit(0);
        }
        child
    };
    assert!(child > 0);
    fs::write(file("fork.new"), format!("{child}\n")).unwrap();
    fs::rename(file("fork.new"), file("fork")).unwrap();
    // The test that started this process kills it.
    thread::sleep(LONG);
}

/// Some systems have no call that closes all descriptors, so each one is closed by its number.
#[test]
fn a_descriptor_with_a_high_number_does_not_leak() {
    let scratch = Scratch::new();
    let path = scratch.file("held");
    let file = fs::File::create(&path).unwrap();
    const HIGH: i32 = 3000;
    // SAFETY: no other code in this process uses a descriptor with this number, and the copy is
    // closed below.
    assert_eq!(unsafe { dup2(file.as_raw_fd(), HIGH) }, HIGH);
    let mut service = Executor::builder("sleep 100").start().unwrap();
    let mut holders = supervisors(service.pid());
    assert_eq!(holders.len(), 1, "one supervisor");
    holders.push(service.pid());
    for pid in holders {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            assert_ne!(target.to_str(), Some(path.as_str()), "held by {pid}");
        }
    }
    // SAFETY: the descriptor is the copy made above, and nothing else uses it.
    unsafe { close(HIGH) };
    service.stop().unwrap();
}

/// The supervisor is an ordinary child process, so the test's own `waitpid(-1)` may reap it first.
#[test]
fn somebody_else_may_wait_for_the_supervisor() {
    let scratch = Scratch::new();
    let output = victim(test_name!(waits_for_every_child), scratch.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_gone(&scratch, &scratch.file("pids"), Duration::ZERO);
}

#[test]
#[ignore = "a victim"]
fn waits_for_every_child() {
    let Some(dir) = victim_dir() else { return };
    let pids = dir.join("pids").to_str().unwrap().to_owned();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = SetAtTheEnd(&over);
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                // SAFETY: a null pointer is allowed if the status is not wanted.
                unsafe { waitpid(-1, std::ptr::null_mut(), 0) };
                thread::sleep(Duration::from_micros(50));
            }
        });
        for _ in 0..20 {
            let mut service = odd(["--pids", &pids, "--listen", "127.0.0.1:{port}"])
                .wait_for(Tcp::addr("127.0.0.1:{port}"))
                .start()
                .unwrap();
            service.stop().unwrap();
            assert!(!service.is_running());
        }
    });
}
