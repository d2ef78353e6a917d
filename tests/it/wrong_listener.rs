//! Another process holds the port, the socket or the pid file of a service. The report names that
//! process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{self, LONG, ODD, OtherServer, Scratch, fixed_port, odd, wait_until};
use crate::reports::{reads, report, start};
use mirakuru::{Banner, Error, Executor, PidFile, Readiness, Tcp, UnixSocket};

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn the_port_is_taken_by_another_server() {
    let port = fixed_port();
    let other = OtherServer::start(&["--listen", &format!("127.0.0.1:{port}")]);
    let pid = other.pid();
    let addr = format!("127.0.0.1:{port}");
    let user = user();
    reads(
        &start(odd(["--listen", &addr]).wait_for(Tcp::addr(&addr))),
        &format!(
            "{ODD} --listen {addr}: port {port} is already in use by mirakuru-odd-service (pid {pid})\n  \
               holder:     started [time] ago by user {user}\n  \
               hint:       end it with `kill {pid}`, or use `{{port}}` to get a free port"
        ),
    );
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn the_port_is_taken_by_us() {
    let port = fixed_port();
    let addr = format!("127.0.0.1:{port}");
    let ours = odd(["--listen", &addr])
        .name("ours")
        .wait_for(Tcp::addr(&addr))
        .start()
        .unwrap();
    let other = thread::scope(|scope| {
        let recipe = odd(["--listen", &addr]).wait_for(Tcp::addr(&addr));
        scope.spawn(|| start(recipe)).join().unwrap()
    });
    let (pid, user, me) = (ours.pid(), user(), std::process::id());
    let text = report(&other);
    assert!(
        text.starts_with(&format!(
            "{ODD} --listen {addr}: port {port} is already in use by mirakuru-odd-service (pid {pid})\n  \
               holder:     started [time] ago by user {user}, the service of another running test\n"
        )),
        "{text}"
    );
    assert!(
        text.contains("\n              ours of test process it-") && text.contains(&format!("(pid {me})")),
        "{text}"
    );
    assert!(
        text.contains("\n  hint:       wait for that test with `.queue(true)`"),
        "{text}"
    );
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn the_port_is_taken_by_what_an_earlier_run_left() {
    let port = fixed_port();
    let addr = format!("127.0.0.1:{port}");
    let mut left = Command::new(ODD)
        .args(["--listen", &addr, "--ready-line", "ready"])
        .env("MIRAKURU_ID", "earlier")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(left.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let error = start(odd(["--listen", &addr]).wait_for(Tcp::addr(&addr)));
    let pid = left.id();
    left.kill().unwrap();
    left.wait().unwrap();
    let text = report(&error);
    assert!(
        text.contains(", left behind by an earlier run of mirakuru\n"),
        "{text}"
    );
    assert!(
        text.contains(&format!("\n  hint:       end it with `kill {pid}`")),
        "{text}"
    );
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn the_socket_is_taken() {
    let scratch = Scratch::new();
    let path = scratch.file("server.sock");
    let other = OtherServer::start(&["--unix", &path]);
    let (pid, user) = (other.pid(), user());
    reads(
        &start(odd(["--unix", &path]).wait_for(UnixSocket::path(&path))),
        &format!(
            "{ODD} --unix {path}: socket {path} is already in use by mirakuru-odd-service (pid {pid})\n  \
               holder:     started [time] ago by user {user}\n  \
               hint:       end it with `kill {pid}`, or use a path in `{{dir}}`, which is private"
        ),
    );
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not see other processes"
)]
fn the_pid_file_is_another_processs() {
    let scratch = Scratch::new();
    let path = scratch.file("server.pid");
    let other = OtherServer::start(&["--pid-file", &path]);
    let (pid, user) = (other.pid(), user());
    reads(
        &start(odd(["--pid-file", &path]).wait_for(PidFile::path(&path))),
        &format!(
            "{ODD} --pid-file {path}: pid file {path} is already in use by mirakuru-odd-service (pid \
                {pid})\n  \
               holder:     started [time] ago by user {user}\n  \
               hint:       remove the file if that process is another program (then an earlier service \
                   left it behind); otherwise end it with `kill {pid}`"
        ),
    );
}

/// Another server takes the port while the service, which never binds it, is still starting.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn another_server_takes_the_port_during_the_start() {
    let port = fixed_port();
    let addr = format!("127.0.0.1:{port}");
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let (error, pid) = thread::scope(|scope| {
        let other = scope.spawn(|| {
            assert!(wait_until(|| !common::numbers(&pids).is_empty(), LONG));
            OtherServer::start(&["--listen", &addr])
        });
        let error = start(odd(["--pids", &pids]).wait_for(Tcp::addr(&addr)));
        (error, other.join().unwrap().pid())
    });
    let user = user();
    reads(
        &error,
        &format!(
            "{ODD} --pids {pids}: {addr} is answered by mirakuru-odd-service (pid {pid}), which is not this \
                service\n  \
               holder:     started [time] ago by user {user}\n  \
               timeline:   spawned\n  \
               output:     none\n  \
               hint:       it uses the address or path that this service \
                   needs: end it with `kill {pid}`, or use `{{port}}` \
               to get a free port"
        ),
    );
}

/// The service cannot bind its port and exits. The report still names the process on the port.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn the_bind_fails_because_of_another_server() {
    let port = fixed_port();
    let addr = format!("127.0.0.1:{port}");
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let taken = scratch.file("taken");
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            assert!(wait_until(|| !common::numbers(&pids).is_empty(), LONG));
            let other = OtherServer::start(&["--listen", &addr]);
            fs::write(&taken, "").unwrap();
            other
        });
        // The service binds only after the port is taken. The banner never comes, so the `Tcp`
        // condition is never checked.
        let script = "echo $$ >\"$1\"; until [ -e \"$2\" ]; do sleep 0.01; done; exec \"$0\" --listen \"$3\"";
        let recipe = Executor::builder(["sh", "-c", script, ODD, &pids, &taken, &addr])
            .wait_for(Banner::matching("never").and(Tcp::addr(&addr)))
            .timeout(LONG);
        let error = start(recipe);
        let pid = other.join().unwrap().pid();
        let text = report(&error);
        assert!(
            text.lines()
                .next()
                .unwrap()
                .contains(": exited with status 1 after [time], before it"),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                "\n  hint:       port {port} is held by mirakuru-odd-service (pid {pid}), \
                started [time] ago by user "
            )),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                "end it with `kill {pid}`, or use `{{port}}` to get a free port"
            )),
            "{text}"
        );
    });
}

/// Another server may take the port between mirakuru's check and the service's bind. The report is
/// correct in each case.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn two_hundred_times_the_truth_about_another_server_in_the_window() {
    let me = std::process::id();
    let (mut ready, mut refused, mut ended, mut strange) = (0, 0, 0, 0);
    for n in 0..200_u64 {
        let port = fixed_port();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let text = addr.to_string();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let over = &over;
            let end = common::SetAtTheEnd(over);
            let other = scope.spawn(move || {
                // The other server may bind before mirakuru's check, before the fork, or before or
                // after the service's own bind.
                thread::sleep(Duration::from_micros(n * 40));
                while !over.load(Ordering::SeqCst) {
                    if let Ok(listener) = TcpListener::bind(addr) {
                        while !over.load(Ordering::SeqCst) {
                            thread::sleep(Duration::from_millis(1));
                        }
                        return Some(listener);
                    }
                    thread::sleep(Duration::from_micros(50));
                }
                None
            });
            let started = odd(["--delay", "3", "--listen", &text])
                .wait_for(Tcp::addr(&text))
                .start();
            match &started {
                Ok(service) => {
                    // If the service is ready, it owns the port.
                    assert_eq!(common::who_answers(addr), service.pid());
                    ready += 1;
                }
                Err(error) => {
                    let report = error.to_string();
                    assert!(
                        report.contains(&format!("(pid {me})")),
                        "the other server is not named:\n{report}"
                    );
                    match error {
                        Error::AlreadyRunning { .. } => refused += 1,
                        Error::Exited { .. } => ended += 1,
                        Error::WrongListener { .. } => strange += 1,
                        _ => panic!("{report}"),
                    }
                }
            }
            drop(end);
            drop(started);
            other.join().unwrap();
        });
    }
    println!("{ready} ready, {refused} refused, {ended} ended, {strange} with another server");
    assert_eq!(ready + refused + ended + strange, 200);
    assert!(refused < 200 && ready < 200, "the window was never hit");
}

/// With SO_REUSEPORT both servers listen, and each gets some of the connections. A test cannot use
/// such a service.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_port_that_is_shared_with_another_server() {
    for n in 0..10_u64 {
        let port = fixed_port();
        let addr = format!("127.0.0.1:{port}");
        let scratch = Scratch::new();
        let pids = scratch.file("pids");
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                assert!(wait_until(|| !common::numbers(&pids).is_empty(), LONG));
                OtherServer::start(&["--reuse-port", "--listen", &addr])
            });
            // The condition holds only once both servers listen.
            let recipe = odd([
                "--pids",
                &pids,
                "--delay",
                &(n * 3).to_string(),
                "--reuse-port",
                "--listen",
                &addr,
            ])
            .wait_for(Check::there_are_two(&addr).and(Tcp::addr(&addr)));
            let error = start(recipe);
            let pid = other.join().unwrap().pid();
            let text = report(&error);
            assert!(matches!(error, Error::WrongListener { .. }), "{text}");
            assert!(text.starts_with(&format!("{ODD} --pids {pids}")), "{text}");
            assert!(text.contains(&format!("(pid {pid})")), "{text}");
            assert!(text.contains("both listen there (SO_REUSEPORT)"), "{text}");
        });
    }
}

/// The readiness conditions of these tests.
struct Check;

impl Check {
    /// Holds once two sockets listen on this address.
    fn there_are_two(addr: &str) -> mirakuru::Check {
        let port = format!(":{:04X}", addr.parse::<SocketAddr>().unwrap().port());
        mirakuru::Check::new("two listen there", move |_| {
            let table = fs::read_to_string("/proc/net/tcp")?;
            let listening = table.lines().filter(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                fields.get(1).is_some_and(|local| local.ends_with(&port)) && fields.get(3) == Some(&"0A")
            });
            Ok(listening.count() == 2)
        })
    }
}

/// This user as reports name it: the name, or for example `uid 1000`.
fn user() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    let uid = line.split_whitespace().nth(2).unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid));
    name.map_or(format!("uid {uid}"), |line| {
        line.split(':').next().unwrap().to_owned()
    })
}
