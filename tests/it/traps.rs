//! Mistakes that other tools have made. Each has a test, which fails if mirakuru makes the same
//! mistake. The file is long because it collects all of them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{
    self, LONG, ODD, OtherServer, SIGKILL, SIGTERM, Scratch, alive, assert_gone, error_of, fixed_port,
    numbers, odd, processes_with, send, supervisors, test_name, victim, victim_dir, wait_until, who_answers,
};
use crate::proof;
use mirakuru::{Banner, Error, Executor, ExecutorBuilder, Http, PidFile, Signal, Tcp, UnixSocket};

fn listening<const N: usize>(args: [&str; N]) -> ExecutorBuilder<Tcp> {
    odd(["--listen", "127.0.0.1:{port}"])
        .args(args)
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
}

/// The kernel sends PDEATHSIG when the *thread* that forked ends, and each test has its own thread.
#[test]
fn a_service_outlives_the_thread_that_started_it() {
    let service = thread::spawn(|| listening(["--fork", "1"]).start().unwrap())
        .join()
        .unwrap();
    // `join` has waited until the thread ended. A signal would take effect within this time.
    thread::sleep(Duration::from_millis(300));
    assert!(service.is_running());
    assert_eq!(who_answers(service.addr()), service.pid());
}

// ---- clean-up that the end of the test process skips --------------------------------------------

const TREES: [&[&str]; 4] = [
    &["--fork", "2"],
    &["--stopped", "2"],
    &["--deaf-daemons", "2", "--ignore-term"],
    &["--keep-forking", "3"],
];

/// A test process starts a service for each kind of tree, and then ends in one of several ways.
#[test]
fn nothing_survives_the_test_process_however_it_ends() {
    let ends = [
        "exit",
        "forgotten",
        "panic",
        "abort",
        "segv",
        "overflow",
        "wait TERM",
        "wait KILL",
        "wait INT",
    ];
    for end in ends {
        let scratch = Scratch::new();
        let pids = scratch.file("pids");
        fs::write(scratch.file("end"), end).unwrap();
        let mut command = victim(test_name!(meets_its_end), scratch.path());
        proof::obeys_signals(&mut command);
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ready = wait_until(|| Path::new(&scratch.file("ready")).exists(), LONG);
        match end {
            "wait TERM" => send(process.id(), SIGTERM),
            "wait INT" => send(process.id(), common::SIGINT),
            "wait KILL" => send(process.id(), SIGKILL),
            _ => {}
        }
        let ended = wait_until(|| process.try_wait().unwrap().is_some(), LONG);
        if !ended {
            let _ = process.kill();
        }
        let _ = process.wait();
        assert!(ready, "{end}: the services were not ready");
        assert!(ended, "{end}: the test process did not end");
        println!("{end}");
        // Processes that ignore signals have a grace of 0.1 s. The rest is for a busy machine.
        assert_gone(&scratch, &pids, Duration::from_secs(10));
    }
}

#[test]
#[ignore = "a victim"]
fn meets_its_end() {
    let Some(dir) = victim_dir() else { return };
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let services: Vec<_> = TREES
        .iter()
        .filter(|args| common::is_found(args))
        .map(|args| {
            listening(["--pids", &file("pids")])
                .args(*args)
                .stop_timeout(Duration::from_millis(100))
                .start()
                .unwrap()
        })
        .collect();
    fs::write(file("ready"), "").unwrap();
    match fs::read_to_string(file("end")).unwrap().as_str() {
        "exit" => std::process::exit(3),
        "forgotten" => std::mem::forget(services),
        "panic" => panic!("on purpose"),
        "abort" => std::process::abort(),
        // Rust's handler for stack overflows gets the first SIGSEGV, and removes itself.
        "segv" => loop {
            send(std::process::id(), 11);
        },
        "overflow" => {
            #[allow(unconditional_recursion)]
            fn deeper(n: u64) -> u64 {
                std::hint::black_box([n; 512]);
                deeper(n + 1) + 1
            }
            std::process::exit(deeper(0) as i32);
        }
        // The test that started this process kills it.
        _ => thread::sleep(2 * LONG),
    }
}

/// A test process that dies in the middle of a start, before the guard exists, must leave nothing.
#[test]
fn nothing_survives_a_death_in_the_middle_of_a_start() {
    // After a change to the order of the steps of a start, set MIRAKURU_ROUNDS to run more rounds.
    let rounds = std::env::var("MIRAKURU_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(40u64);
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let mut one_start = Duration::ZERO;
    for round in 0..rounds {
        let mut process = victim(test_name!(starts_forever), scratch.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The kills come after the victim's first start has begun, and spread over several starts.
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("starting") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the victim has failed");
        }
        if round == 0 {
            // Measures a start on this machine under its current load.
            let began = Instant::now();
            assert!(wait_until(|| !numbers(&pids).is_empty(), LONG));
            one_start = began.elapsed();
        } else {
            // Each round kills at a different moment.
            thread::sleep(one_start.mul_f64((round * 7919 % 1000) as f64 / 250.0));
        }
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert_gone(&scratch, &pids, Duration::from_secs(10));
}

#[test]
#[ignore = "a victim"]
fn starts_forever() {
    let Some(dir) = victim_dir() else { return };
    let pids = dir.join("pids").to_str().unwrap().to_owned();
    let mut out = std::io::stdout();
    writeln!(out, "\nstarting").unwrap();
    out.flush().unwrap();
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        let _service = listening(["--pids", &pids, "--fork", "1"]).start().unwrap();
    }
}

// ---- output -------------------------------------------------------------------------------------

/// A pipe holds 64 kB. If nothing reads it, a service that prints more than that before it listens
/// hangs.
#[test]
fn output_before_readiness_does_not_hang_the_start() {
    for bytes in ["200000", "5000000"] {
        let mut service = listening(["--flood-before", bytes]).start().unwrap();
        let wanted: usize = bytes.parse().unwrap();
        // The last output may not be in the log yet.
        let mut printed = 0;
        let all = wait_until(
            || {
                let logs = service.logs();
                printed = logs.stdout().len() + logs.stderr().len();
                printed >= wanted
            },
            LONG,
        );
        assert!(all, "{printed} of {wanted} bytes are in the log");
        service.stop().unwrap();
    }
}

/// The banner comes after the flood, so the condition must read all of the output.
#[test]
fn a_banner_after_a_flood_is_seen() {
    let mut service = odd(["--flood-before", "3000000", "--ready-line", "at last"])
        .wait_for(Banner::matching("^at last$"))
        .start()
        .unwrap();
    service.stop().unwrap();
}

// ---- taken for alive, taken for ready -----------------------------------------------------------

/// A service that exits with status 0 is not ready. The start must fail at once, not at its
/// time-out.
#[test]
fn exit_0_before_readiness_is_an_error() {
    let begin = Instant::now();
    let error = error_of(
        odd(["--exit-before-ready", "0"])
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .start(),
    );
    let Error::Exited { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.code(), Some(0));
    assert!(begin.elapsed() < LONG / 2, "it waited");
}

/// The exit of a daemon's main process is not the end of the service. The end of its last process
/// is noticed.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
fn exit_0_of_a_daemon_is_no_error_until_the_daemon_ends() {
    let mut service = listening(["--daemonise", "--delay", "200"]).start().unwrap();
    assert!(alive(who_answers(service.addr())));
    service.stop().unwrap();

    let begin = Instant::now();
    let error = error_of(
        odd(["--daemonise", "--delay", "100", "--exit-before-ready", "4"])
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .start(),
    );
    assert!(matches!(error, Error::Exited { .. }), "{error}");
    assert!(begin.elapsed() < LONG / 2, "it waited");
}

/// An attempt to connect does not find a socket that is bound without listening, although its port
/// is not free.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_port_that_is_bound_and_does_not_listen_is_not_free() {
    let port = fixed_port();
    let address = format!("127.0.0.1:{port}");
    let other = OtherServer::start(&["--no-reuseaddr", "--bind-only", &address]);
    assert!(TcpStream::connect(&address).is_err(), "a connection sees nothing");
    let error = error_of(odd(["--listen", &address]).wait_for(Tcp::port(port)).start());
    assert!(matches!(error, Error::AlreadyRunning { .. }), "{error}");
    assert!(common::names_pid(&error.to_string(), other.pid()), "{error}");
}

fn localhost_has_v6() -> bool {
    ("localhost", 0)
        .to_socket_addrs()
        .is_ok_and(|mut addrs| addrs.any(|addr| addr.is_ipv6()))
        && TcpListener::bind("[::1]:0").is_ok()
}

/// Some programs listen on `::1` for `localhost`, and others on `127.0.0.1`.
#[test]
fn localhost_is_every_address_that_it_resolves_to() {
    let mut hosts = vec!["127.0.0.1"];
    if localhost_has_v6() {
        hosts.push("[::1]");
    }
    for host in hosts {
        let mut service = odd(["--listen", &format!("{host}:{{port}}")])
            .wait_for(Tcp::addr("localhost:{port}"))
            .start()
            .unwrap();
        assert_eq!(who_answers(service.addr()), service.pid(), "{host}");
        service.stop().unwrap();
    }
}

/// A client of `localhost` may reach another server on `::1` while the service listens on
/// `127.0.0.1`.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn another_server_on_the_other_localhost_is_an_error() {
    if !localhost_has_v6() {
        common::say(
            "*** another_server_on_the_other_localhost_is_an_error: SKIPPED, localhost has no ::1 here ***",
        );
        return;
    }
    let port = fixed_port();
    let other = OtherServer::start(&["--listen", &format!("[::1]:{port}")]);
    let recipe =
        odd(["--listen", &format!("127.0.0.1:{port}")]).wait_for(Tcp::addr(format!("localhost:{port}")));
    let error = error_of(recipe.start());
    assert!(common::names_pid(&error.to_string(), other.pid()), "{error}");
}

/// A probe without a time-out would wait for ever if the server accepts connections and never
/// answers.
#[test]
fn a_server_that_never_answers_does_not_hang_the_start() {
    let url = "http://127.0.0.1:{port}/";
    for readiness in [Http::head(url), Http::get(url), Http::post(url).body("x")] {
        let begin = Instant::now();
        let recipe = odd(["--accept-never-answer", "127.0.0.1:{port}"])
            .wait_for(readiness)
            .timeout(Duration::from_millis(700));
        let error = error_of(recipe.start());
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    }
}

/// The exit of the service ends the wait, even in the middle of a request.
#[test]
fn the_exit_of_a_server_that_never_answers_is_noticed() {
    let recipe = odd([
        "--accept-never-answer",
        "127.0.0.1:{port}",
        "--exit-after",
        "200:6",
    ])
    .wait_for(Http::get("http://127.0.0.1:{port}/"))
    .timeout(4 * LONG);
    let begin = Instant::now();
    let error = error_of(recipe.start());
    let Error::Exited { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.code(), Some(6));
    assert!(begin.elapsed() < LONG, "it waited");
}

/// A service is ready only if it owns the socket. Here another server takes the port while the
/// service is starting.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_service_that_is_ready_but_belongs_to_somebody_else() {
    for http in [false, true] {
        let port = fixed_port();
        let scratch = Scratch::new();
        let pids = scratch.file("pids");
        let other = thread::scope(|scope| {
            let other = scope.spawn(|| {
                assert!(wait_until(|| !numbers(&pids).is_empty(), LONG));
                let flag = if http { "--http" } else { "--listen" };
                OtherServer::start(&[flag, &format!("127.0.0.1:{port}")])
            });
            let recipe = odd(["--pids", &pids]);
            let error = if http {
                error_of(
                    recipe
                        .wait_for(Http::get(format!("http://127.0.0.1:{port}/")))
                        .start(),
                )
            } else {
                error_of(recipe.wait_for(Tcp::port(port)).start())
            };
            let other = other.join().unwrap();
            assert!(matches!(error, Error::WrongListener { .. }), "{error}");
            assert!(common::names_pid(&error.to_string(), other.pid()), "{error}");
            other
        });
        assert!(alive(other.pid()), "the other server is nobody's to stop");
        assert_gone(&scratch, &pids, Duration::ZERO);
    }
}

// ---- pids and marks -----------------------------------------------------------------------------

/// The kernel may give a service's pid to another process. That process must not get the service's
/// signals.
#[test]
#[cfg(target_os = "linux")]
fn a_process_that_got_the_services_pid_is_left_alone() {
    if !common::is_root() {
        common::skip_without_root();
        return;
    }
    // In a pid namespace the test can choose the next pid without affecting other tests.
    let scratch = Scratch::new();
    let output = under(
        Path::new("unshare"),
        &["--pid", "--fork", "--kill-child", "--mount-proc"],
        &victim(test_name!(a_pid_is_used_again), scratch.path()),
    )
    .output()
    .expect("it runs");
    common::assert_success(&output);
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("SKIPPED") {
        common::say(&text);
    }
}

#[test]
#[ignore = "a victim"]
#[cfg(target_os = "linux")]
fn a_pid_is_used_again() {
    if victim_dir().is_none() {
        return;
    }
    let mut service = odd(["--pid-file", "{dir}/pid", "--leave-files"])
        .wait_for(PidFile::path("{dir}/pid"))
        .start()
        .unwrap();
    let pid = service.pid();
    send(pid, SIGTERM);
    assert!(wait_until(|| !alive(pid), LONG));
    let Some(mut other) = process_with_pid(pid) else {
        common::say(&format!(
            "*** a_process_that_got_the_services_pid_is_left_alone: SKIPPED in part, pid {pid} cannot be had \
                again ***"
        ));
        return;
    };
    assert!(!service.is_running(), "another process is taken for the service");
    let _ = service.signal(Signal::Term);
    let _ = service.pause();
    let _ = service.resume();
    let _ = service.stop();
    let _ = service.kill();
    drop(service);
    // A signal to the wrong process would take effect within this time.
    thread::sleep(Duration::from_millis(100));
    let untouched = common::stat(pid).is_some_and(|(state, _)| state != 'T' && state != 'Z');
    let _ = other.kill();
    let _ = other.wait();
    assert!(untouched, "it got a signal that was meant for the service");
}

/// Starts a process with this pid. `None` if the kernel does not let the test choose it. Another
/// process may take the pid first, so this tries many times.
#[cfg(target_os = "linux")]
fn process_with_pid(pid: u32) -> Option<Child> {
    for _ in 0..200 {
        if common::stat(pid).is_some() {
            // While a zombie has the pid, no other process can get it.
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let mut child = Command::new("sleep").arg("100").spawn().ok()?;
        if child.id() == pid {
            return Some(child);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    None
}

/// Killing a service's supervisors must end the processes with its mark and no others. A mark that
/// is only a part of another variable does not count.
#[test]
#[cfg(target_os = "linux")]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn marks_are_matched_whole() {
    let mut service = listening(["--fork", "1"]).start().unwrap();
    let neighbour = listening([]).start().unwrap();
    let environment = fs::read(format!("/proc/{}/environ", service.pid())).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let mark = environment
        .split('\0')
        .find_map(|variable| variable.strip_prefix("MIRAKURU_ID="))
        .expect("the service carries a mark")
        .to_owned();
    let bystanders: Vec<Child> = [
        ("MIRAKURU_ID", format!("{mark}0")),
        ("MIRAKURU_ID", format!("0{mark}")),
        ("MIRAKURU_ID", mark[..mark.len() - 1].to_owned()),
        ("XMIRAKURU_ID", mark.clone()),
        ("NOTE", format!("MIRAKURU_ID={mark}")),
    ]
    .into_iter()
    .map(|(key, value)| Command::new("sleep").arg("100").env(key, value).spawn().unwrap())
    .collect();

    let pid = service.pid();
    let guards = supervisors(pid);
    assert!(!guards.is_empty(), "the service has no supervisor");
    for guard in guards {
        send(guard, SIGKILL);
    }
    assert!(
        wait_until(|| !alive(pid), LONG),
        "the service outlived its supervisors"
    );
    let _ = service.stop();
    drop(service);
    // A signal to the wrong process would take effect within this time.
    thread::sleep(Duration::from_millis(200));
    let alive_ones = bystanders.iter().filter(|child| alive(child.id())).count();
    let all = bystanders.len();
    for mut child in bystanders {
        let _ = child.kill();
        let _ = child.wait();
    }
    assert_eq!(alive_ones, all, "a bystander was killed");
    assert!(neighbour.is_running());
    assert_eq!(who_answers(neighbour.addr()), neighbour.pid());
}

/// `kill(pid, 0)` also succeeds for a zombie.
#[test]
fn a_zombie_is_not_alive() {
    let mut service = listening(["--exit-on-term", "0"]).start().unwrap();
    let pid = service.pid();
    send(pid, SIGTERM);
    assert!(wait_until(|| !alive(pid), LONG));
    assert!(
        wait_until(|| !service.is_running(), LONG),
        "a zombie is taken for the service"
    );
    assert_eq!(service.wait(LONG).unwrap().code(), Some(0));
}

// ---- ends ---------------------------------------------------------------------------------------

/// The leader of the group may exit before slower members, which still get their grace.
#[test]
fn the_end_of_the_leader_is_not_the_end_of_the_group() {
    let scratch = Scratch::new();
    let (pids, stamp) = (scratch.file("pids"), scratch.file("stamp"));
    // The slow member runs in the background. The leader exits at the first signal.
    let script = format!(
        "'{ODD}' --stop-delay 400 --exit-on-term 0 --stamp {stamp} --pids {pids} --listen 127.0.0.1:{{port}} \
            & \
         exec '{ODD}' --pids {pids}"
    );
    let mut service = Executor::builder(script)
        .shell(true)
        .timeout(LONG)
        .stop_timeout(LONG)
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .start()
        .unwrap();
    let slow = who_answers(service.addr());
    assert_ne!(slow, service.pid());
    assert!(wait_until(|| numbers(&pids).len() == 2, LONG));
    service.stop().unwrap();
    assert!(!alive(slow));
    assert!(
        common::stamped(&stamp, "exit").is_some(),
        "it was killed before it had finished"
    );
}

/// When `stop` or `kill` returns, the process is gone and its port is free.
#[test]
fn when_stop_and_kill_return_it_is_over() {
    let port = fixed_port();
    let address = format!("127.0.0.1:{port}");
    let mut service = odd(["--no-reuseaddr", "--listen", &address])
        .wait_for(Tcp::port(port))
        .build()
        .unwrap();
    for round in 0..20 {
        service.start().unwrap();
        let pid = service.pid();
        if round % 2 == 0 {
            service.stop().unwrap();
        } else {
            service.kill().unwrap();
        }
        assert!(!alive(pid), "it is still there");
        TcpListener::bind(&address).expect("its port is free");
    }
}

/// The test's own `waitpid(-1)` must not take the exits of services, and mirakuru must not take the
/// exits of the test's children.
#[test]
fn reaping_does_not_race() {
    let scratch = Scratch::new();
    let output = victim(test_name!(reaps_everything), scratch.path())
        .output()
        .unwrap();
    common::assert_success(&output);

    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for code in 0..25 {
                    let status = Command::new("sh")
                        .args(["-c", &format!("exit {code}")])
                        .status()
                        .unwrap();
                    assert_eq!(status.code(), Some(code), "somebody else has reaped our child");
                }
            });
            scope.spawn(|| {
                for _ in 0..10 {
                    listening([]).start().unwrap().stop().unwrap();
                }
            });
        }
    });
}

#[test]
#[ignore = "a victim"]
fn reaps_everything() {
    unsafe extern "C" {
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    }
    if victim_dir().is_none() {
        return;
    }
    thread::spawn(|| {
        loop {
            // SAFETY: a null status is allowed; 1 is WNOHANG.
            unsafe { waitpid(-1, std::ptr::null_mut(), 1) };
            thread::yield_now();
        }
    });
    for _ in 0..30 {
        let mut service = listening([]).start().unwrap();
        assert!(service.is_running());
        service.stop().unwrap();
        assert!(!service.is_running());
    }
    let error = error_of(
        odd(["--exit-before-ready", "7"])
            .wait_for(Banner::matching("never"))
            .start(),
    );
    let Error::Exited { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.code(), Some(7));
}

/// If a process ignores SIGCHLD, the kernel reaps its children, and it cannot wait for them.
#[test]
fn an_ignored_sigchld_changes_nothing() {
    let scratch = Scratch::new();
    let output = victim(test_name!(ignores_sigchld), scratch.path())
        .output()
        .unwrap();
    common::assert_success(&output);
}

#[test]
#[ignore = "a victim"]
#[cfg(target_os = "linux")]
fn ignores_sigchld() {
    unsafe extern "C" {
        fn signal(signal: i32, handler: usize) -> usize;
    }
    if victim_dir().is_none() {
        return;
    }
    // SAFETY: 1 is SIG_IGN, which installs no handler; 17 is SIGCHLD.
    unsafe { signal(17, 1) };
    let mut service = listening(["--exit-on-term", "3"]).start().unwrap();
    let error = error_of(service.stop());
    let Error::BadExit { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        status.code(),
        Some(3),
        "the service's children are reaped by somebody else"
    );
}

/// `sun_path` has room for 107 bytes.
#[test]
fn a_socket_path_that_is_too_long_is_an_error_that_says_so() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let path = scratch.file(&"x".repeat(120));
    let error = error_of(odd(["--pids", &pids]).wait_for(UnixSocket::path(path)).start());
    assert!(matches!(error, Error::InvalidReadiness { .. }), "{error}");
    assert!(error.to_string().contains("107"), "{error}");
    assert_eq!(numbers(&pids), [0; 0], "something was started");
}

/// A descriptor that leaks into a service would keep a lock, a port or a pipe in use.
#[test]
#[cfg(target_os = "linux")]
fn no_descriptor_of_the_test_leaks() {
    unsafe extern "C" {
        fn dup(fd: i32) -> i32;
        fn close(fd: i32) -> i32;
    }
    let scratch = Scratch::new();
    let path = scratch.file("lock");
    let file = fs::File::create(&path).unwrap();
    // SAFETY: `dup` accesses no memory. The new descriptor lacks close-on-exec, so it would leak.
    let leaky = unsafe { dup(file.as_raw_fd()) };
    assert!(leaky > 2);
    // Once the helper is ready, it opens no more descriptors.
    let mut service = odd(["--ready-line", "up"])
        .wait_for(Banner::matching("up"))
        .start()
        .unwrap();

    let open = |pid: u32| -> Vec<(String, String)> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
        entries
            .flatten()
            .map(|entry| {
                let target = fs::read_link(entry.path()).unwrap_or_default();
                (
                    entry.file_name().to_str().unwrap().to_owned(),
                    target.display().to_string(),
                )
            })
            .collect()
    };
    let of_service = open(service.pid());
    // The helper itself opens sockets 3 and 4, for its signal handler.
    let foreign: Vec<_> = of_service
        .iter()
        .filter(|(number, target)| number.parse::<i32>().unwrap() > 2 && !target.starts_with("socket:"))
        .collect();
    assert!(foreign.is_empty(), "{of_service:?}");
    let mut plain = Executor::builder("sleep 100").start().unwrap();
    // The kernel closes the other descriptors a moment after the program has been executed.
    let has_three = || open(plain.pid()).len() == 3;
    assert!(wait_until(has_three, LONG), "{:?}", open(plain.pid()));
    for guard in supervisors(service.pid())
        .into_iter()
        .chain(supervisors(plain.pid()))
    {
        let held = open(guard);
        assert!(held.iter().all(|(_, target)| *target != path), "{held:?}");
    }
    // SAFETY: the descriptor is ours, and nothing uses it any more.
    unsafe { close(leaky) };
    plain.stop().unwrap();
    service.stop().unwrap();
}

/// After a failed start, no process is left.
#[test]
fn nothing_is_left_after_a_failed_start() {
    let trees: [&[&str]; 4] = [
        &["--fork", "2"],
        &["--stopped", "2"],
        &["--deaf-daemons", "2"],
        &["--keep-forking", "2"],
    ];
    for tree in trees.into_iter().filter(|tree| common::is_found(tree)) {
        let scratch = Scratch::new();
        let pids = scratch.file("pids");
        let recipe = || {
            odd(["--pids", &pids, "--line-err", "FATAL"])
                .args(tree)
                .stop_timeout(Duration::from_millis(100))
                .timeout(Duration::from_secs(2))
        };
        let timeout = recipe().wait_for(Tcp::addr("127.0.0.1:{port}"));
        let error = error_of(timeout.start());
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        assert_gone(&scratch, &pids, Duration::ZERO);

        let exited = recipe().args(["--delay", "50", "--die-before-ready", "9"]);
        let _ = error_of(
            exited
                .wait_for(Banner::matching("never"))
                .timeout(Duration::from_secs(4))
                .start(),
        );
        assert_gone(&scratch, &pids, Duration::ZERO);

        let failed = recipe().fail_on("FATAL").timeout(LONG);
        let error = error_of(failed.wait_for(Banner::matching("never")).start());
        assert!(matches!(error, Error::FailureLine { .. }), "{error}");
        assert_gone(&scratch, &pids, Duration::ZERO);
    }
    // A failed start frees its ports and removes its files, so the same executor can start again.
    let scratch = Scratch::new();
    let flag = scratch.file("flag");
    let mut service = Executor::builder(format!("test -e {flag} || exit 1; echo up; exec sleep 100"))
        .shell(true)
        .wait_for(Banner::matching("^up$"))
        .timeout(LONG)
        .build()
        .unwrap();
    assert!(matches!(error_of(service.start()), Error::Exited { .. }));
    assert!(!service.is_running());
    fs::write(&flag, "").unwrap();
    service.start().unwrap();
    service.stop().unwrap();
}

/// Dropping a service works without a runtime, on any thread, and during a panic.
#[test]
fn drop_works_on_any_thread_and_at_its_end() {
    use std::cell::RefCell;
    thread_local! {
        static KEPT: RefCell<Option<mirakuru::TcpExecutor>> = const { RefCell::new(None) };
    }
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    // The destructor of another thread's thread-local drops the service.
    let service = listening(["--pids", &pids, "--fork", "1"]).start().unwrap();
    thread::spawn(move || KEPT.with(|kept| *kept.borrow_mut() = Some(service)))
        .join()
        .unwrap();
    assert_gone(&scratch, &pids, Duration::from_secs(5));
    // A panic drops the service.
    let service = listening(["--pids", &pids, "--fork", "1"]).start().unwrap();
    let outcome = thread::spawn(move || {
        let _service = service;
        panic!("on purpose");
    })
    .join();
    assert!(outcome.is_err());
    assert_gone(&scratch, &pids, Duration::ZERO);
}

/// If a supervisor is killed, the service's main process ends with it, and so do the processes with
/// its mark.
#[test]
#[cfg(target_os = "linux")]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn the_death_of_either_supervisor_is_not_the_services_freedom() {
    let kinds: [&[&str]; 3] = [&[], &["--fork", "2"], &["--deaf-daemons", "2"]];
    for kind in kinds {
        let count = supervisors(listening([]).start().unwrap().pid()).len();
        for which in 0..count {
            let scratch = Scratch::new();
            let pids = scratch.file("pids");
            let mut service = listening(["--pids", &pids])
                .args(kind)
                .stop_timeout(Duration::from_millis(100))
                .start()
                .unwrap();
            send(supervisors(service.pid())[which], SIGKILL);
            assert_gone(&scratch, &pids, Duration::from_secs(10));
            assert!(wait_until(|| !service.is_running(), LONG));
            // Any result is fine, but the call must neither hang nor panic.
            let _ = service.stop();
            let _ = service.start();
        }
    }
}

/// A `pkill -f` for the test binary must not hit its supervisors.
#[test]
#[cfg(target_os = "linux")]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has a supervisor with the name of the test process"
)]
fn supervisors_have_a_command_line_of_their_own() {
    let service = listening([]).start().unwrap();
    let exe = std::env::current_exe().unwrap();
    let name = exe.file_name().unwrap().to_str().unwrap();
    let guards = supervisors(service.pid());
    assert!(!guards.is_empty());
    let alike = processes_with(name);
    for guard in guards {
        assert!(!alike.contains(&guard), "its command line is the test's");
    }
}

/// A victim that runs under another program.
fn under(program: &Path, args: &[&str], victim: &Command) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .arg(victim.get_program())
        .args(victim.get_args());
    for (key, value) in victim.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command
}

/// If a seccomp filter makes each `poll` fail with EINTR, the supervisor cannot wait. It must end
/// its service at once.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn a_supervisor_that_is_interrupted_each_time_leaves_nothing_running() {
    const SIGCHLD: i32 = 17;
    const INJECT: &str = "-qq -o /dev/null -e trace=poll -e inject=poll:error=EINTR -p";
    let service = odd(["--ready-line", "up"])
        .wait_for(Banner::matching("up"))
        .start()
        .unwrap();
    let worker = supervisors(service.pid())[0];
    let tracer = Command::new("strace")
        .args(INJECT.split(' '))
        .arg(worker.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut tracer) = tracer else {
        eprintln!("skipped: there is no strace");
        return;
    };
    // The tracer ends together with the worker, which ends the service first.
    let mut ended = None;
    let is_over = wait_until(
        || {
            // strace injects errors into new calls only, so a signal ends the `poll` that already
            // waits.
            send(worker, SIGCHLD);
            ended = tracer.try_wait().unwrap();
            ended.is_some()
        },
        LONG,
    );
    if !is_over {
        tracer.kill().unwrap();
        tracer.wait().unwrap();
    }
    if ended.is_some_and(|status| !status.success()) {
        eprintln!("skipped: this user may not trace the supervisor");
        return;
    }
    assert!(is_over && !alive(service.pid()), "the service runs");
}

/// `tests/injection.py` runs this test.
#[test]
#[ignore = "a victim"]
fn has_ten_services() {
    if victim_dir().is_none() {
        return;
    }
    for _ in 0..10 {
        let mut service = odd(["--deaf-daemons", "1", "--listen", "127.0.0.1:{port}"])
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            // An injected error may make a start wait until its time-out.
            .timeout(Duration::from_secs(5))
            .stop_timeout(Duration::from_millis(20))
            .start()
            .unwrap();
        service.kill().unwrap();
    }
}

/// mirakuru does not remove files of a file system that is mounted in a service's directory.
#[test]
fn a_mount_in_the_private_directory_is_left_alone() {
    if !common::is_root() {
        common::skip_without_root();
        return;
    }
    let scratch = Scratch::new();
    let precious = scratch.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "important").unwrap();
    // The victim has its own mount namespace, so the mount disappears with its last process.
    let victim = victim(test_name!(leaves_a_mount), scratch.path());
    let output = under(
        Path::new("unshare"),
        &["--mount", "--propagation", "private"],
        &victim,
    )
    .output()
    .expect("it runs");
    common::assert_success(&output);
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "important");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("something is mounted in it"),
        "{output:?}"
    );
}

#[test]
#[ignore = "a victim"]
fn leaves_a_mount() {
    let Some(dir) = victim_dir() else { return };
    let script = "mkdir \"$1/m\" && mount --bind \"$0/precious\" \"$1/m\" && echo mounted && exec sleep 60";
    let service = Executor::builder(["sh", "-c", script])
        .arg(&dir)
        .arg("{dir}")
        .wait_for(Banner::matching("mounted"))
        .start()
        .unwrap();
    drop(service);
}

/// Runs a victim without `/proc`. The victim must succeed in time.
#[track_caller]
fn without_proc(test: &str, scratch: &Scratch) {
    let script = "mount -t tmpfs none /proc && exec \"$@\"";
    let begin = Instant::now();
    let output = under(
        Path::new("unshare"),
        &["--mount", "--propagation", "private", "sh", "-c", script, "sh"],
        &victim(test, scratch.path()),
    )
    .output()
    .expect("it runs");
    common::assert_success(&output);
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

/// Without `/proc` the owner of a socket is unknown, and a listening port counts as ready.
#[test]
fn a_port_is_ready_where_there_is_no_proc() {
    if !common::is_root() {
        common::skip_without_root();
        return;
    }
    without_proc(test_name!(listens_on_ports), &Scratch::new());
}

#[test]
#[ignore = "a victim"]
fn listens_on_ports() {
    if victim_dir().is_none() {
        return;
    }
    for fork in ["0", "1"] {
        let recipe = odd(["--listen", "127.0.0.1:{port}", "--fork", fork]);
        let service = recipe.wait_for(Tcp::addr("127.0.0.1:{port}")).start().unwrap();
        assert!(std::net::TcpStream::connect(service.addr()).is_ok());
    }
    let addr = format!("127.0.0.1:{}", common::fixed_port());
    let recipe = odd(["--listen", &addr]).wait_for(Tcp::addr(&addr));
    recipe.start().unwrap().stop().unwrap();
}

/// Without `/proc`, mirakuru asks the kernel about each possible process id.
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
#[test]
fn a_deaf_daemon_is_ended_where_there_is_no_proc() {
    if !common::is_root() {
        common::skip_without_root();
        return;
    }
    let scratch = Scratch::new();
    without_proc(test_name!(has_a_deaf_daemon), &scratch);
    assert_gone(&scratch, &scratch.file("pids"), LONG);
}

#[test]
#[ignore = "a victim"]
fn has_a_deaf_daemon() {
    let Some(dir) = victim_dir() else { return };
    let pids = dir.join("pids");
    let service = odd([
        "--deaf-daemons",
        "2",
        "--ready-line",
        "up",
        "--pids",
        pids.to_str().unwrap(),
    ])
    .wait_for(Banner::matching("up"))
    .stop_timeout(Duration::from_millis(100))
    .start()
    .unwrap();
    drop(service);
}
