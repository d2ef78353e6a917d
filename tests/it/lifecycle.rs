//! The methods of an executor. After each of them, nothing is left of the service.
//!
//! The file is long because it tests each method with each kind of process tree.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{
    self, LONG, Scratch, alive, assert_gone, entries, error_of, numbers, odd, processes_with, rss_kb, stat,
    test_name, victim, victim_dir, wait_until,
};
use mirakuru::{Banner, Error, Executor, ExecutorBuilder, PidFile, Signal, Tcp, TcpExecutor};

/// The helper service on a free port.
fn listening<const N: usize>(args: [&str; N]) -> ExecutorBuilder<Tcp> {
    odd(["--listen", "127.0.0.1:{port}"])
        .args(args)
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
}

/// The processor time of a process so far, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields = stat.rsplit(") ").next().expect("its fields").split(' ');
    fields
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().expect("a number"))
        .sum()
}

#[test]
fn supervisors_sleep_while_nothing_happens() {
    let service = listening([]).start().unwrap();
    let parent = |pid: &u32| stat(*pid).map(|(_, parent)| parent);
    let supervisors: Vec<u32> = std::iter::successors(parent(&service.pid()), parent)
        .take_while(|pid| *pid != std::process::id())
        .collect();
    let used = || -> u64 { supervisors.iter().map(|pid| ticks(*pid)).sum() };
    let before = used();
    // The service is idle during this pause.
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        !supervisors.is_empty() && used() - before <= 5,
        "{}",
        used() - before
    );
}

#[test]
fn start_stop_start() {
    let mut service: TcpExecutor = listening([]).build().unwrap();
    assert!(!service.is_running());
    service.stop().unwrap();
    service.start().unwrap();
    let (first, port) = (service.pid(), service.port());
    assert!(service.is_running());
    service.start().unwrap();
    assert_eq!(service.pid(), first, "a start while it is running does nothing");
    service.stop().unwrap();
    assert!(!service.is_running() && !alive(first));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    service.stop().unwrap();
    service.start().unwrap();
    assert_eq!(service.port(), port);
    assert_ne!(service.pid(), first);
    assert_eq!(common::who_answers(service.addr()), service.pid());
}

#[test]
fn restart_keeps_the_port() {
    let mut service = listening([]).start().unwrap();
    let (first, address) = (service.pid(), service.addr());
    service.restart().unwrap();
    assert_eq!(service.addr(), address);
    assert_ne!(service.pid(), first);
    assert!(!alive(first));
    assert_eq!(common::who_answers(address), service.pid());

    // A restart of a stopped service is a start.
    service.stop().unwrap();
    service.restart().unwrap();
    assert_eq!(common::who_answers(address), service.pid());
}

#[test]
fn restart_with_another_recipe_keeps_ports_and_directory() {
    let scratch = Scratch::new();
    let other = scratch.file("other-version");
    let command = odd([""; 0]).build().unwrap().command().to_owned();
    std::os::unix::fs::symlink(command.trim(), &other).unwrap();
    let mut service = listening([]).start().unwrap();
    let (address, dir) = (service.addr(), service.dir());
    fs::write(dir.join("data"), "kept").unwrap();
    service
        .restart_with(|recipe| recipe.program(&other).env("VERSION", "2").arg("--print-env"))
        .unwrap();
    assert_eq!((service.addr(), service.dir()), (address, dir.clone()));
    assert_eq!(common::who_answers(address), service.pid());
    assert!(service.command().starts_with(&other), "{}", service.command());
    assert!(service.logs().to_string().contains("VERSION=2"));
    assert_eq!(fs::read_to_string(dir.join("data")).unwrap(), "kept");
    service.restart().unwrap();
    assert!(service.command().starts_with(&other), "the change stays");

    service.restart().unwrap();
}

#[test]
fn a_change_that_cannot_be_started_leaves_the_service_running() {
    let scratch = Scratch::new();
    let (absent, plain) = (scratch.file("absent"), scratch.file("plain"));
    fs::write(&plain, "no program").unwrap();
    let mut service = listening([]).build().unwrap();
    let change = |service: &mut TcpExecutor, change: &dyn Fn(Recipe) -> Recipe, part: &str| {
        let error = error_of(service.restart_with(change)).to_string();
        assert!(error.contains(part), "{error}");
        error
    };
    type Recipe = ExecutorBuilder<Tcp>;
    // For a stopped service, `restart_with` is a start, which fails here.
    let error = change(&mut service, &|recipe| recipe.program(&absent), "no such file");
    assert!(!error.contains("runs on"), "{error}");
    service.start().unwrap();
    let pid = service.pid();
    let changes: [(&dyn Fn(Recipe) -> Recipe, &str); 8] = [
        (&|recipe| recipe.arg("{no_such}"), "unknown placeholder"),
        (&|recipe| recipe.env("A=B", "c"), "environment variable"),
        (&|recipe| recipe.arg("a\0b"), "NUL byte"),
        (
            &|recipe| recipe.program("no-such-program"),
            "execute `no-such-program`",
        ),
        (&|recipe| recipe.program(&absent), "no such file"),
        (&|recipe| recipe.program(&plain), "chmod +x"),
        (&|recipe| recipe.program("/"), "`/` is a directory"),
        (
            &|recipe| recipe.current_dir(&absent),
            "change to the working directory",
        ),
    ];
    for (wrong, part) in changes {
        let error = change(&mut service, wrong, part);
        assert!(error.contains("the service runs on unchanged"), "{error}");
        assert!(service.is_running() && service.pid() == pid, "{error}");
    }
    // The failed changes have not changed the recipe, either.
    service.restart().unwrap();
    assert_ne!(service.pid(), pid);
}

#[test]
fn kill_does_not_ask() {
    let scratch = Scratch::new();
    let (pids, stamp) = (scratch.file("pids"), scratch.file("stamp"));
    let mut service = listening([
        "--pids",
        &pids,
        "--stamp",
        &stamp,
        "--fork",
        "2",
        "--stop-delay",
        "20000",
    ])
    .stop_timeout(LONG)
    .start()
    .unwrap();
    let begin = Instant::now();
    service.kill().unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "it waited for the service to stop"
    );
    assert!(!service.is_running());
    assert_gone(&scratch, &pids, Duration::ZERO);
    assert_eq!(common::stamped(&stamp, "signal"), None, "it got no stop signal");
    service.start().unwrap();
    // Without this kill, the drop would wait for the service to stop by itself.
    service.kill().unwrap();
}

#[test]
fn what_needs_a_running_service_says_so() {
    let mut service = listening([]).build().unwrap();
    for error in [
        error_of(service.signal(Signal::Hup)),
        error_of(service.pause()),
        error_of(service.resume()),
        error_of(service.wait_until(Banner::matching("x"), LONG)),
    ] {
        assert!(matches!(error, Error::NotRunning { .. }), "{error}");
    }
    service.kill().unwrap();
}

#[test]
fn a_signal_reaches_the_service() {
    let mut service = listening([]).start().unwrap();
    for (signal, name) in [
        (Signal::Usr1, "SIGUSR1"),
        (Signal::Usr2, "SIGUSR2"),
        (Signal::Hup, "SIGHUP"),
    ] {
        service.signal(signal).unwrap();
        service
            .wait_until(Banner::matching(format!("^got {name}$")), LONG)
            .unwrap();
    }
    assert!(service.is_running());
    service.stop().unwrap();
}

#[test]
fn the_stop_signal_is_the_recipes() {
    for (signal, name) in [
        (Signal::Int, "SIGINT"),
        (Signal::Quit, "SIGQUIT"),
        (Signal::Term, "SIGTERM"),
    ] {
        let mut service = listening([]).stop_signal(signal).start().unwrap();
        service.stop().unwrap();
        assert!(
            service.logs().stdout().contains(&format!("got {name}")),
            "{}",
            service.logs()
        );
    }
}

#[test]
fn pause_and_resume_reach_the_whole_tree() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let daemons = ["--deaf-daemons", "1"];
    let daemons = if common::is_found(&daemons) {
        &daemons[..]
    } else {
        &[]
    };
    let mut service = listening(["--pids", &pids, "--fork", "2"])
        .args(daemons)
        .stop_timeout(Duration::from_millis(200))
        .start()
        .unwrap();
    let tree = numbers(&pids);
    assert_eq!(
        tree.len(),
        5 + daemons.len() / 2,
        "itself, two children, their two, a daemon"
    );
    let all_are = |wanted: bool| {
        wait_until(
            || {
                tree.iter()
                    .all(|&pid| stat(pid).is_some_and(|(state, _)| (state == 'T') == wanted))
            },
            Duration::from_secs(5),
        )
    };
    service.pause().unwrap();
    assert!(all_are(true), "not everything was stopped");
    service.resume().unwrap();
    assert!(all_are(false), "not everything was continued");
    assert_eq!(common::who_answers(service.addr()), service.pid());
    // `stop` also ends paused processes. Only the daemon uses up its grace.
    service.pause().unwrap();
    service.stop().unwrap();
    assert_gone(&scratch, &pids, Duration::ZERO);
}

#[test]
fn wait_gives_the_exit() {
    let mut service = listening(["--exit-on-term", "7"]).start().unwrap();
    let error = error_of(service.wait(Duration::from_millis(1)));
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    common::send(service.pid(), common::SIGTERM);
    let status = service.wait(LONG).unwrap();
    assert_eq!(status.code(), Some(7));
    assert!(!service.is_running());
}

#[test]
fn an_unexpected_exit_is_told_when_it_is_stopped() {
    let mut service = listening(["--exit-on-term", "5", "--line", "all was well"])
        .start()
        .unwrap();
    common::send(service.pid(), common::SIGTERM);
    assert!(
        wait_until(|| !service.is_running(), LONG),
        "a service that has ended is not running"
    );
    let error = error_of(service.stop());
    let Error::BadExit { status, evidence, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.code(), Some(5));
    assert!(
        evidence.tail.iter().any(|line| line.contains("all was well")),
        "{error}"
    );
}

#[test]
fn a_bad_exit_has_its_status_and_the_tail() {
    let mut service = listening(["--exit-on-term", "3", "--line", "up to here"])
        .start()
        .unwrap();
    let pid = service.pid();
    let error = error_of(service.stop());
    let Error::BadExit {
        status,
        evidence,
        expected,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(status.code(), Some(3));
    assert!(!expected.is_empty());
    assert!(
        evidence.tail.iter().any(|line| line.contains("got SIGTERM")),
        "{error}"
    );
    assert!(error.to_string().contains("got SIGTERM"), "{error}");
    // After the error the service is down, later stops succeed, and it can be started again.
    assert!(!service.is_running() && !alive(pid));
    service.stop().unwrap();
    service.start().unwrap();
    assert!(matches!(error_of(service.restart()), Error::BadExit { .. }));
}

#[test]
fn exits_that_are_fine() {
    // Three exits are expected: the stop signal, status 0, and the status that the recipe allows.
    listening([]).start().unwrap().stop().unwrap();
    listening(["--exit-on-term", "0"])
        .start()
        .unwrap()
        .stop()
        .unwrap();
    let three = || listening(["--exit-on-term", "3"]).expected_exit(3);
    three().start().unwrap().stop().unwrap();
    // `expected_exit` allows a status in addition to the stop signal.
    listening([]).expected_exit(3).start().unwrap().stop().unwrap();
}

#[test]
fn what_is_deaf_is_killed_after_the_grace() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let mut service = listening(["--ignore-term", "--pids", &pids])
        .stop_timeout(Duration::from_millis(200))
        .start()
        .unwrap();
    let begin = Instant::now();
    let error = error_of(service.stop());
    let Error::BadExit { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.signal(), Some(9), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(200), "it had no grace");
    assert_gone(&scratch, &pids, Duration::ZERO);
}

#[test]
fn what_takes_its_time_gets_it() {
    let scratch = Scratch::new();
    let stamp = scratch.file("stamp");
    let mut service = listening(["--stop-delay", "300", "--exit-on-term", "0", "--stamp", &stamp])
        .stop_timeout(LONG)
        .start()
        .unwrap();
    service.stop().unwrap();
    assert!(
        common::stamped(&stamp, "exit").is_some(),
        "it was killed before it had finished"
    );
}

#[test]
fn another_kill_signal_is_followed_by_sigkill() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let mut service = listening(["--ignore-term", "--pids", &pids])
        .stop_timeout(Duration::from_millis(50))
        .kill_signal(Signal::Quit)
        .start()
        .unwrap();
    let _ = service.stop();
    assert_gone(&scratch, &pids, Duration::ZERO);
}

// ---- stopped() ----------------------------------------------------------------------------------

#[test]
fn stopped_runs_the_closure_without_the_service() {
    let mut service = listening([]).start().unwrap();
    let (first, address) = (service.pid(), service.addr());
    let answer = service
        .stopped(|| {
            assert!(TcpStream::connect(address).is_err());
            assert!(!alive(first));
            42
        })
        .unwrap();
    assert_eq!(answer, 42);
    assert_eq!(service.addr(), address);
    assert_eq!(common::who_answers(address), service.pid());
}

#[test]
fn stopped_starts_it_again_after_a_panic() {
    let mut service = listening([]).start().unwrap();
    let address = service.addr();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        service.stopped(|| panic!("the closure's own words"))
    }));
    let payload = outcome.expect_err("the panic goes on");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"the closure's own words"));
    assert!(service.is_running());
    assert_eq!(common::who_answers(address), service.pid());
}

#[test]
fn stopped_reports_a_failed_restart() {
    let scratch = Scratch::new();
    let (mut service, needed) = needs_a_file(&scratch);
    let error = error_of(service.stopped(|| fs::remove_file(&needed).unwrap()));
    let Error::Exited { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.code(), Some(9));
    assert!(!service.is_running());
}

/// An executor that is started many times checks the exit of its current process, not of an earlier
/// one.
#[test]
fn each_failed_restart_is_told_as_what_it_is() {
    let scratch = Scratch::new();
    let (mut service, needed) = needs_a_file(&scratch);
    for round in 0..150 {
        let error = error_of(service.stopped(|| fs::remove_file(&needed).unwrap()));
        let Error::Exited { status, .. } = &error else {
            panic!("round {round}: {error}")
        };
        assert_eq!(status.code(), Some(9));
        fs::write(&needed, "").unwrap();
        service
            .start()
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
}

#[test]
fn stopped_runs_its_closure_after_a_bad_exit_and_reports_it_afterwards() {
    let mut service = listening(["--exit-on-term", "3"]).start().unwrap();
    let address = service.addr();
    let mut was_down = false;
    let error = error_of(service.stopped(|| was_down = TcpStream::connect(address).is_err()));
    assert!(
        matches!(&error, Error::BadExit { status, .. } if status.code() == Some(3)),
        "{error}"
    );
    assert!(was_down);
    assert_eq!(
        common::who_answers(address),
        service.pid(),
        "it was started again"
    );
    service.kill().unwrap();
}

#[test]
fn a_status_of_128_and_the_stop_signal_is_a_good_end() {
    let mut service = listening(["--exit-on-term", "143"]).start().unwrap();
    service.restart().unwrap();
    service.stopped(|| ()).unwrap();
    service.stop().unwrap();
    let mut service = listening(["--exit-on-term", "130"]).start().unwrap();
    let error = error_of(service.stop());
    assert!(error.to_string().contains("status 143"), "{error}");
    let mut service = listening(["--exit-on-term", "130"])
        .stop_signal(Signal::Int)
        .start()
        .unwrap();
    service.stop().unwrap();
}

#[test]
fn a_line_that_was_printed_counts_although_the_service_has_ended() {
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.005; done";
    for _ in 0..20 {
        let mut service = Executor::builder(script)
            .shell(true)
            .wait_for(Banner::matching("up"))
            .start()
            .unwrap();
        service.signal(Signal::Term).unwrap();
        service.wait_until(Banner::matching("bye"), LONG).unwrap();
        service.wait(LONG).unwrap();
        service.wait_until(Banner::matching("^b.e$"), LONG).unwrap();
        let error = error_of(service.wait_until(Banner::matching("hello"), LONG));
        assert!(
            matches!(&error, Error::Exited { status, .. } if status.code() == Some(5)),
            "{error}"
        );
        let error = error_of(service.wait_until(Tcp::port(common::fixed_port()), LONG));
        assert!(
            matches!(&error, Error::Exited { status, .. } if status.code() == Some(5)),
            "{error}"
        );
        let _ = service.stop();
        service.wait_until(Banner::matching("^by"), LONG).unwrap();
    }
}

/// A test reports no success if it hangs until it is killed, exits the process, or outlives the
/// harness (as with rstest's `#[timeout]`).
#[test]
fn the_log_is_kept_when_nobody_says_that_all_went_well() {
    let scratch = Scratch::new();
    for (number, end) in ["killed", "exit", "left behind", "well"].into_iter().enumerate() {
        // The name is short, because mirakuru uses `/tmp` if a socket's path would become too long.
        let temp = scratch.path().join(number.to_string());
        fs::create_dir(&temp).unwrap();
        let mut child = victim(test_name!(prints_and_ends), scratch.path())
            .env("MIRAKURU_TEST_END", end)
            .env("TMPDIR", &temp)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        if end == "killed" {
            let up = temp.join("up");
            assert!(wait_until(|| up.exists(), LONG));
            common::send(child.id(), common::SIGKILL);
        }
        child.wait().unwrap();
        let logs = || crate::proof::kept_logs(&temp);
        assert!(
            wait_until(|| crate::proof::service_dirs(&temp).is_empty(), LONG),
            "{end}"
        );
        assert_eq!(logs().len(), usize::from(end != "well"), "{end}");
        if let Some(log) = logs().first() {
            let text = fs::read_to_string(Path::new(log).join("log")).unwrap();
            assert!(text.contains("the only clue"), "{end}: {text}");
        }
    }
}

#[test]
#[ignore = "a victim"]
fn prints_and_ends() {
    if victim_dir().is_none() {
        return;
    }
    let service = listening(["--line", "the only clue"]).start().unwrap();
    fs::write(std::env::temp_dir().join("up"), "").unwrap();
    match std::env::var("MIRAKURU_TEST_END").unwrap().as_str() {
        // The test that started this process kills it.
        "killed" => std::thread::sleep(LONG),
        "exit" => std::process::exit(3),
        "left behind" => {
            std::thread::spawn(move || {
                let _service = service;
                // The process ends before this thread does.
                std::thread::sleep(LONG);
            });
            panic!("as a time-out does");
        }
        _ => drop(service),
    }
}

#[test]
fn odd_inherited_variables_do_not_fail_a_start() {
    let scratch = Scratch::new();
    let output = victim(test_name!(starts_with_odd_variables), scratch.path())
        .env("=C:", "x")
        .env("with space", "x")
        .output()
        .unwrap();
    common::assert_success(&output);
}

#[test]
#[ignore = "a victim"]
fn starts_with_odd_variables() {
    if victim_dir().is_none() {
        return;
    }
    assert_eq!(std::env::var("=C:").as_deref(), Ok("x"));
    listening([]).start().unwrap().stop().unwrap();
    let error = error_of(listening([]).env("A=B", "x").start());
    assert!(matches!(error, Error::InvalidCommand { .. }), "{error}");
}

#[test]
fn stopped_reports_a_failed_restart_after_a_panic_too() {
    let scratch = Scratch::new();
    let output = victim(test_name!(panic_while_the_restart_fails), scratch.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("the closure's own words"), "{text}");
    assert!(text.contains("the file it needs is missing"), "{text}");
}

#[test]
#[ignore = "a victim"]
fn panic_while_the_restart_fails() {
    if victim_dir().is_none() {
        return;
    }
    let scratch = Scratch::new();
    let (mut service, needed) = needs_a_file(&scratch);
    let _ = service.stopped(|| {
        fs::remove_file(&needed).unwrap();
        panic!("the closure's own words");
    });
}

/// A service that starts only while a file exists.
fn needs_a_file(scratch: &Scratch) -> (Executor<Banner>, String) {
    let needed = scratch.file("needed");
    fs::write(&needed, "").unwrap();
    let script = format!(
        "test -e {needed} || {{ echo the file it needs is missing; exit 9; }}; echo up; exec sleep 100"
    );
    let service = Executor::builder(script)
        .shell(true)
        .timeout(LONG)
        .wait_for(Banner::matching("^up$"))
        .start()
        .unwrap();
    (service, needed)
}

// ---- every kind of tree, every end --------------------------------------------------------------

/// The kinds of process trees, each with the helper's flags for it.
const TREES: [(&str, &[&str]); 7] = [
    ("plain", &[]),
    ("grandchildren", &["--fork", "3"]),
    ("stopped", &["--stopped", "2"]),
    ("stopped itself", &["--stop-self"]),
    ("deaf", &["--ignore-term", "--fork", "2"]),
    ("daemons: deaf, own session, no marks", &["--deaf-daemons", "3"]),
    ("keeps forking", &["--keep-forking", "4"]),
];

fn each_tree(end: impl Fn(TcpExecutor)) {
    for (name, args) in TREES.into_iter().filter(|(_, args)| common::is_found(args)) {
        println!("{name}");
        let scratch = Scratch::new();
        let pids = scratch.file("pids");
        let service = odd(["--listen", "127.0.0.1:{port}", "--pids", &pids])
            .args(args)
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .stop_timeout(Duration::from_millis(150))
            .start()
            .unwrap();
        end(service);
        assert_gone(&scratch, &pids, Duration::ZERO);
    }
}

#[test]
fn nothing_of_any_tree_survives_stop() {
    each_tree(|mut service| {
        let _ = service.stop();
        assert!(!service.is_running());
    });
}

#[test]
fn nothing_of_any_tree_survives_kill() {
    each_tree(|mut service| service.kill().unwrap());
}

#[test]
fn nothing_of_any_tree_survives_drop() {
    each_tree(drop);
}

#[test]
fn nothing_of_any_tree_survives_a_panic() {
    each_tree(|service| {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let _held = service;
            panic!("on purpose");
        }));
        assert!(outcome.is_err());
    });
}

#[test]
fn a_panicking_test_shows_the_log_and_keeps_the_file() {
    let scratch = Scratch::new();
    let output = victim(test_name!(panic_with_a_service), scratch.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("what the service had to say"), "{text}");
    let path = fs::read_to_string(scratch.file("log-path")).unwrap();
    assert!(text.contains(&path), "{path} is not named in:\n{text}");
    let kept = fs::read_to_string(&path);
    assert!(
        kept.is_ok_and(|log| log.contains("what the service had to say")),
        "the log is not kept"
    );
}

#[test]
#[ignore = "a victim"]
fn panic_with_a_service() {
    let Some(dir) = victim_dir() else { return };
    let service = listening(["--line", "what the service had to say"])
        .start()
        .unwrap();
    fs::write(dir.join("log-path"), service.logs().path().to_str().unwrap()).unwrap();
    panic!("on purpose");
}

// ---- what is left in the test process -----------------------------------------------------------

/// Counts that must not grow with the number of services.
#[derive(Debug, PartialEq)]
struct Left {
    descriptors: usize,
    threads: usize,
    children: usize,
    files: usize,
}

impl Left {
    fn now(dir: &Path) -> Left {
        let me = std::process::id();
        Left {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            // Zombies count as well.
            children: common::all_pids()
                .into_iter()
                .filter(|&pid| stat(pid).is_some_and(|(_, parent)| parent == me))
                .count(),
            files: files_under(dir),
        }
    }
}

/// The number of files and directories below a directory, at any depth.
fn files_under(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| {
            1 + if entry.path().is_dir() {
                files_under(&entry.path())
            } else {
                0
            }
        })
        .sum()
}

/// The size of all files below a directory.
fn bytes_under(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_under(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn a_thousand_cycles_leave_nothing() {
    let scratch = Scratch::new();
    let output = victim(test_name!(a_thousand_cycles), scratch.path())
        .output()
        .unwrap();
    common::assert_success(&output);
    assert!(processes_gone(&scratch));
}

fn processes_gone(scratch: &Scratch) -> bool {
    let path = scratch.path().to_str().unwrap();
    wait_until(|| common::processes_with(path).is_empty(), Duration::from_secs(5))
}

#[test]
#[ignore = "a victim"]
fn a_thousand_cycles() {
    let Some(dir) = victim_dir() else { return };
    let cycle = || {
        let mut service = listening([]).start().unwrap();
        assert!(service.is_running());
        service.stop().unwrap();
    };
    // The first cycles make the one-time allocations: caches, the log's directory, the
    // allocator's arenas.
    for _ in 0..50 {
        cycle();
    }
    let (before, memory) = (Left::now(&dir), rss_kb());
    for _ in 0..500 {
        cycle();
    }
    // Starts one executor many times.
    let mut service = listening([]).build().unwrap();
    for _ in 0..500 {
        service.start().unwrap();
        service.stop().unwrap();
    }
    drop(service);
    assert_eq!(Left::now(&dir), before);
    let grown = rss_kb().saturating_sub(memory);
    assert!(grown < 2_000, "memory grew by {grown} kB");
}

#[test]
fn a_flood_after_readiness_never_blocks_and_costs_no_memory() {
    let scratch = Scratch::new();
    let output = victim(test_name!(flooded), scratch.path()).output().unwrap();
    common::assert_success(&output);
}

#[test]
#[ignore = "a victim"]
fn flooded() {
    let Some(dir) = victim_dir() else { return };
    let stamp = dir.join("stamp").to_str().unwrap().to_owned();
    let cycle = |bytes: &str| {
        let _ = fs::remove_file(&stamp);
        let mut service = odd([
            "--flood-after",
            bytes,
            "--pid-file",
            "{dir}/pid",
            "--stamp",
            &stamp,
        ])
        .wait_for(PidFile::path("{dir}/pid"))
        .start()
        .unwrap();
        // The test only waits. It reads no output.
        let done = wait_until(|| common::stamped(&stamp, "flooded").is_some(), 2 * LONG);
        assert!(done, "the service hangs in its own output");
        // The last output may still be in a pipe. The log is in the victim's directory, like all
        // temporary files.
        let all = bytes.parse().unwrap();
        assert!(wait_until(|| bytes_under(&dir) >= all, LONG), "the last of it");
        let printed = bytes_under(&dir);
        service.stop().unwrap();
        printed
    };
    cycle("1000000");
    let memory = rss_kb();
    let printed = cycle("100000000");
    let grown = rss_kb().saturating_sub(memory);
    assert!(printed >= 100_000_000, "{printed} bytes in the log");
    assert!(grown < 2_000, "memory grew by {grown} kB");
}

/// Takes a lease on a file, which makes any other open of the file wait for 45 s.
const LEASE: &str = "
import fcntl, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], 'r+b')
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
time.sleep(60)
";

#[cfg_attr(mirakuru_portable, ignore = "the portable back end waits for the kernel")]
#[test]
fn a_start_whose_program_does_not_load_times_out_and_leaves_nothing() {
    let scratch = Scratch::new();
    let program = scratch.file("program");
    fs::copy("/bin/sleep", &program).expect("a program");
    let _lease = Executor::builder(["python3", "-c", LEASE, &program])
        .wait_for(Banner::matching("held"))
        .start()
        .expect("python starts");
    let begin = Instant::now();
    let error = error_of(
        Executor::builder([program.as_str(), "60"])
            .timeout(Duration::from_millis(1200))
            .start(),
    );
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("it was executed"), "{error}");
    assert!(
        wait_until(|| processes_with(&program).len() == 1, LONG),
        "only python is left"
    );
}
