//! Tests readiness conditions, and the errors for services that end before they are ready.

use std::fs;
use std::io::{self, Read};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::common::{
    self, LONG, Scratch, alive, error_of, mode, monotonic, odd, stamped, test_name, victim, victim_dir,
    wait_until,
};
use crate::reports::timed_out;
use mirakuru::{
    Banner, Check, Error, Exec, Executor, Http, HttpExecutor, NoWait, PidFile, Prepare, Probe, Readiness,
    SdNotify, Tcp, UnixSocket,
};

// ---- HTTP ---------------------------------------------------------------------------------------

/// Waits until the log contains a string, because output takes a moment to reach the log. Returns
/// the log.
fn log_with<R: Readiness>(service: &Executor<R>, text: &str) -> String {
    let there = wait_until(
        || {
            service
                .logs()
                .to_string()
                .to_lowercase()
                .contains(&text.to_lowercase())
        },
        LONG,
    );
    let log = service.logs().to_string();
    assert!(there, "no `{text}` in\n{log}");
    log
}

#[test]
fn an_http_executor_is_ready_when_it_answers_2xx_to_head() {
    let mut service: HttpExecutor = odd(["--delay", "50", "--http", "127.0.0.1:{port}"])
        .wait_for(Http::head("http://127.0.0.1:{port}/health?deep=1&x=%20"))
        .start()
        .unwrap();
    assert_eq!(
        service.url(),
        format!("http://127.0.0.1:{}/health?deep=1&x=%20", service.port())
    );
    log_with(&service, "request: HEAD /health?deep=1&x=%20 -> 200");
    service.stop().unwrap();
}

#[test]
fn an_http_request_is_sent_as_it_was_described() {
    let url = "http://127.0.0.1:{port}/x";
    let cases: [(Http, &[&str]); 5] = [
        (Http::get(url), &["request: GET /x -> 200"]),
        (
            Http::get(url).method("PUT").body("raw bytes"),
            &["request: PUT /x -> 200", "body: raw bytes"],
        ),
        (Http::get(url).method("OPTIONS"), &["request: OPTIONS /x -> 200"]),
        (
            Http::post(url).form([("name", "a b"), ("sign", "&=")]),
            &[
                "request: POST /x -> 200",
                "header: content-type: application/x-www-form-urlencoded",
                "body: name=a",
                "sign=%26%3d",
            ],
        ),
        (
            Http::head(url)
                .header("X-Token", "open sesame")
                .header("Accept", "text/odd"),
            &["header: x-token: open sesame", "header: accept: text/odd"],
        ),
    ];
    for (readiness, wanted) in cases {
        let mut service = odd(["--http", "127.0.0.1:{port}"])
            .wait_for(readiness)
            .start()
            .unwrap();
        for text in wanted {
            log_with(&service, text);
        }
        service.stop().unwrap();
    }
}

#[test]
fn an_http_executor_waits_until_the_status_is_right() {
    let mut service = odd([
        "--http",
        "127.0.0.1:{port}",
        "--http-status",
        "503",
        "--http-status-after",
        "3:204",
    ])
    .wait_for(Http::get("http://127.0.0.1:{port}/").status(204))
    .start()
    .unwrap();
    let log = log_with(&service, "-> 204");
    assert_eq!(log.matches("-> 503").count(), 3, "{log}");
    assert_eq!(log.matches("-> 204").count(), 1, "{log}");
    service.stop().unwrap();
}

#[test]
fn the_status_that_was_seen_stands_in_the_error() {
    let service = odd(["--http", "127.0.0.1:{port}", "--http-status", "418"])
        .wait_for(Http::head("http://127.0.0.1:{port}/"));
    let error = timed_out(&service, "-> 418");
    assert!(error.to_string().contains("answered 418"), "{error}");
}

// ---- other conditions ---------------------------------------------------------------------------

#[test]
fn conditions_combine() {
    let scratch = Scratch::new();
    let stamp = scratch.file("stamp");
    let mut service = odd([
        "--delay",
        "100",
        "--listen",
        "127.0.0.1:{port}",
        "--ready-line",
        "up",
        "--stamp",
        &stamp,
    ])
    .wait_for(Tcp::addr("127.0.0.1:{port}").and(Banner::matching("^up$")))
    .start()
    .unwrap();
    assert!(service.logs().stdout().contains("up"));
    assert_eq!(common::who_answers(service.addr()), service.pid());
    service.stop().unwrap();

    let either = || Banner::matching("never printed").or(Banner::matching("^up$"));
    let mut service = odd(["--ready-line", "up"]).wait_for(either()).start().unwrap();
    service.stop().unwrap();

    let both = Banner::matching("never printed").and(Banner::matching("^up$"));
    let never = odd(["--ready-line", "up"])
        .wait_for(both)
        .timeout(Duration::from_millis(300));
    assert!(matches!(error_of(never.start()), Error::Timeout { .. }));
}

/// In an `And`, the second condition must first ask the supervisor to report output. Output that
/// comes right after that must not be missed.
#[test]
fn output_that_follows_another_condition_is_noticed_at_once() {
    let scratch = Scratch::new();
    // Without MIRAKURU_QUIET, the progress report of a long start would also wake the waiting test.
    let status = victim(test_name!(waits_for_output_after_something_else), scratch.path())
        .env("MIRAKURU_QUIET", "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "a victim"]
fn waits_for_output_after_something_else() {
    if victim_dir().is_none() {
        return;
    }
    let mut service = odd(["--delay", "100", "--ready-line", "up", "--exit-after", "20000"])
        .wait_for(Check::new("nothing was asked for", |_| Ok(true)).and(Banner::matching("^up$")))
        .start()
        .unwrap();
    assert!(
        service.is_running(),
        "the line was noticed only when the service had ended"
    );
    service.stop().unwrap();
}

#[test]
fn a_program_can_be_asked() {
    let mut service = odd(["--delay", "100", "--pid-file", "{dir}/p"])
        .wait_for(Exec::succeeds("test -s {dir}/p"))
        .start()
        .unwrap();
    assert!(service.dir().join("p").exists());
    service.stop().unwrap();
}

#[test]
fn a_program_that_is_asked_dies_with_the_test() {
    let scratch = Scratch::new();
    let pids = scratch.path().join("pids");
    let mut test = victim(test_name!(asks_a_program), scratch.path())
        .spawn()
        .unwrap();
    let written = || fs::read_to_string(&pids).is_ok_and(|text| text.lines().count() == 2);
    let was_written = wait_until(written, LONG);
    test.kill().unwrap();
    test.wait().unwrap();
    assert!(was_written, "the program was not run");
    for pid in fs::read_to_string(&pids).unwrap().lines() {
        let pid: u32 = pid.parse().unwrap();
        assert!(wait_until(|| !alive(pid), LONG), "{pid} is left");
    }
}

#[test]
#[ignore = "a victim"]
fn asks_a_program() {
    let Some(dir) = victim_dir() else { return };
    // The program of `Exec` has two children, one of them in its own session, where the portable
    // back end would not find it.
    let setsid = if cfg!(mirakuru_portable) { "" } else { "setsid " };
    let script =
        format!("sleep 300 & echo $! >> pids; {setsid}sh -c 'echo $$ >> pids; exec sleep 300' & wait");
    let asked = Exec::succeeds(["sh", "-c", &format!("cd '{}'; {script}", dir.display())]);
    let _ = odd(["--delay", "0"]).wait_for(asked).start();
}

#[test]
fn the_service_can_say_so_itself() {
    let scratch = Scratch::new();
    let stamp = scratch.file("stamp");
    let mut service = odd(["--delay", "100", "--sd-notify", "--stamp", &stamp])
        .wait_for(SdNotify::new())
        .start()
        .unwrap();
    assert!(stamped(&stamp, "ready").is_some(), "it was not ready");
    service.restart().unwrap();
    service.stop().unwrap();
}

/// A script that works like `systemd-notify --ready`: after READY=1 it sends a barrier, and waits
/// until the receiver closes the barrier's descriptor.
const BARRIER: &str = "
import array, os, select, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ['NOTIFY_SOCKET'])
s.send(b'READY=1')
for wait in (0, .2):
    time.sleep(wait)
    r, w = os.pipe()
    s.sendmsg([b'BARRIER=1'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [w]))])
    os.close(w)
    p = select.poll(); p.register(r, select.POLLHUP)
    if not p.poll(20000): raise SystemExit('the barrier stays closed')
for n in range(100): s.send(b'WATCHDOG=1')
print('serving', flush=True)
time.sleep(60)
";

#[test]
fn a_service_may_go_on_notifying_after_it_is_ready() {
    let mut service = Executor::builder(["python3", "-c", BARRIER])
        .wait_for(SdNotify::new())
        .start()
        .unwrap();
    for _ in 0..2 {
        service.wait_until(Banner::matching("serving"), LONG).unwrap();
        service.restart().unwrap();
    }
    service.stop().unwrap();
}

#[test]
fn the_runners_service_manager_is_not_the_services() {
    let scratch = Scratch::new();
    let status = victim(test_name!(has_a_service_manager), scratch.path())
        .envs([
            ("NOTIFY_SOCKET", "@runner"),
            ("LISTEN_FDS", "1"),
            ("LISTEN_PID", "1"),
            ("WATCHDOG_USEC", "1000000"),
            ("=C:", "x"),
        ])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "a victim"]
fn has_a_service_manager() {
    if victim_dir().is_none() {
        return;
    }
    let print = Executor::builder(["sh", "-c", "env; echo done; exec sleep 60"]);
    let mut service = print.wait_for(Banner::matching("^done$")).start().unwrap();
    let printed = service.logs().stdout().to_string();
    for name in ["NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_"] {
        assert!(!printed.contains(name), "{printed}");
    }
    service.stop().unwrap();
    // The recipe's own variable takes precedence.
    let own = print_one("NOTIFY_SOCKET").env("NOTIFY_SOCKET", "mine");
    let mut service = own.wait_for(Banner::matching("^<mine>$")).start().unwrap();
    service.stop().unwrap();
}

fn print_one(variable: &str) -> mirakuru::ExecutorBuilder<NoWait> {
    Executor::builder(["sh", "-c", &format!("echo \"<${variable}>\"; exec sleep 60")])
}

#[test]
fn a_coloured_line_is_matched_as_it_is_shown() {
    let coloured = r"printf '\033[31merror\033[0m\033[1m: cannot bind\033[0m\n'; exec sleep 60";
    let script = || Executor::builder(coloured).shell(true);
    let error = script()
        .wait_for(Banner::matching("never"))
        .fail_on("^error: cannot bind$")
        .start()
        .unwrap_err();
    assert!(matches!(error, Error::FailureLine { .. }), "{error}");
    let mut service = script()
        .wait_for(Banner::matching(r"\x1b\[0m\x1b\[1m: cannot").raw())
        .start()
        .unwrap();
    service.stop().unwrap();
}

#[test]
fn what_is_told_by_a_descriptor_is_noticed_when_it_comes() {
    let scratch = Scratch::new();
    // Without MIRAKURU_QUIET, the progress report of a long start would also wake the waiting
    // tests.
    let status = victim(test_name!(waits_for_notifications), scratch.path())
        .env("MIRAKURU_QUIET", "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// None of these conditions polls. If a notification did not wake the wait, the end of the service
/// after 20 s would.
#[test]
#[ignore = "a victim"]
fn waits_for_notifications() {
    if victim_dir().is_none() {
        return;
    }
    let notifying = |delay| odd(["--delay", delay, "--sd-notify", "--exit-after", "20000"]);
    let started = Check::new("nothing was asked for", |_| Ok(true));
    let alone = notifying("100").wait_for(SdNotify::new());
    let second = notifying("50").wait_for(started.and(SdNotify::new()));
    let either = notifying("150").wait_for(SdNotify::new().or(Banner::matching("never")));
    drop(mirakuru::start_all((alone.clone(), second, either)).unwrap());
    drop(alone.start().unwrap());
}

#[test]
fn a_closure_can_be_asked() {
    let mut service = odd(["--delay", "50", "--listen", "127.0.0.1:{port}"])
        .wait_for(Check::new("it answered PING", |cx| {
            let port = cx.port().ok_or_else(|| io::Error::other("no port"))?;
            Ok(common::ask(("127.0.0.1", port), "PING")?.starts_with("PONG"))
        }))
        .start()
        .unwrap();
    assert_eq!(common::who_answers(("127.0.0.1", service.port())), service.pid());
    service.stop().unwrap();

    let never = odd([])
        .wait_for(Check::new("the moon was full", |_| {
            Err(io::Error::other("it is waning"))
        }))
        .timeout(Duration::from_millis(200));
    let text = error_of(never.start()).to_string();
    assert!(
        text.contains("the moon was full") && text.contains("it is waning"),
        "{text}"
    );
}

/// A user's own readiness condition.
#[derive(Clone)]
struct Written(String);

impl Readiness for Written {
    fn describe(&self) -> String {
        format!("{} was written", self.0)
    }
    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        self.0 = cx.expand(&self.0)?;
        Ok(())
    }
    fn probe(&mut self, _: &Probe<'_>) -> io::Result<bool> {
        Path::new(&self.0).try_exists()
    }
    fn path(&self) -> Option<&Path> {
        Some(Path::new(&self.0))
    }
}

#[test]
fn the_trait_is_open() {
    let mut service: Executor<Written> = odd(["--delay", "50", "--pid-file", "{dir}/file"])
        .wait_for(Written("{dir}/file".to_owned()))
        .start()
        .unwrap();
    assert_eq!(service.path(), service.dir().join("file"));
    assert!(service.path().exists());
    service.stop().unwrap();
}

#[test]
fn a_line_can_mean_failure() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let recipe = odd([
        "--line-err",
        "FATAL: no space left",
        "--pids",
        &pids,
        "--ready-line",
        "never mind",
    ])
    .fail_on("^FATAL: .*")
    .wait_for(Banner::matching("nothing like it"));
    let begin = Instant::now();
    let error = error_of(recipe.start());
    let Error::FailureLine { line, pattern, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(line, "FATAL: no space left");
    assert_eq!(pattern, "^FATAL: .*");
    assert!(begin.elapsed() < LONG, "it waited for the time-out");
    assert!(numbers_are_gone(&pids));
}

fn numbers_are_gone(pids: &str) -> bool {
    wait_until(
        || common::numbers(pids).into_iter().all(|pid| !alive(pid)),
        Duration::from_secs(5),
    )
}

/// If a service exits before it is ready, any condition notices that at once.
fn exits_before(readiness: impl Readiness + Clone) {
    for code in [0, 7] {
        let scratch = Scratch::new();
        let stamp = scratch.file("stamp");
        let number = code.to_string();
        let recipe = odd([
            "--line",
            "its last words",
            "--delay",
            "30",
            "--exit-before-ready",
            &number,
            "--stamp",
            &stamp,
        ])
        .env("MK_SECRET", "correct-horse-battery")
        .wait_for(readiness.clone());
        let error = error_of(recipe.start());
        let now = monotonic();
        let Error::Exited {
            status,
            awaited,
            command,
            evidence,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(status.code(), Some(code), "{error}");
        assert!(
            evidence.tail.iter().any(|line| line.contains("its last words")),
            "{error}"
        );
        assert!(command.contains("mirakuru-odd-service"), "{command}");
        let text = error.to_string();
        assert!(!awaited.is_empty() && text.contains(awaited.as_str()), "{text}");
        assert!(text.contains("its last words"), "{text}");
        assert!(!text.contains("correct-horse-battery"), "{text}");
        // The exit is noticed within milliseconds. The bound is for a machine that is busy with
        // other tests.
        let lag = now.saturating_sub(stamped(&stamp, "exit").expect("a stamp"));
        assert!(lag < Duration::from_secs(5), "noticed {lag:?} after the exit");
        // No other user may read the kept log.
        let log = evidence.log.as_deref().expect("the log is kept");
        assert_eq!(mode(log), 0o600);
        let _ = fs::remove_file(log);
    }
}

#[test]
fn an_exit_before_tcp_is_noticed() {
    exits_before(Tcp::addr("127.0.0.1:{port}"));
}

#[test]
fn an_exit_before_http_is_noticed() {
    exits_before(Http::head("http://127.0.0.1:{port}/"));
}

#[test]
fn an_exit_before_a_unix_socket_is_noticed() {
    exits_before(UnixSocket::path("{dir}/socket"));
}

#[test]
fn an_exit_before_a_pid_file_is_noticed() {
    exits_before(PidFile::path("{dir}/pid"));
}

#[test]
fn an_exit_before_a_banner_is_noticed() {
    exits_before(Banner::matching("never printed"));
}

#[test]
fn an_exit_before_a_program_is_satisfied_is_noticed() {
    exits_before(Exec::succeeds("false"));
}

#[test]
fn an_exit_before_a_slow_program_has_answered_is_noticed() {
    exits_before(Exec::succeeds("sleep 100"));
}

#[test]
fn an_exit_before_a_check_is_satisfied_is_noticed() {
    exits_before(Check::new("never", |_| Ok(false)));
}

#[test]
fn an_exit_before_a_notification_is_noticed() {
    exits_before(SdNotify::new());
}

#[test]
fn an_exit_before_a_combination_is_noticed() {
    exits_before(Tcp::addr("127.0.0.1:{port}").and(Banner::matching("never")));
    exits_before(Tcp::addr("127.0.0.1:{port}").or(PidFile::path("{dir}/pid")));
}

/// The service exits after varying times, and therefore in different steps of the start.
#[test]
fn an_exit_at_any_moment_of_the_start_is_told_as_one() {
    for round in 0..150 {
        let script = format!("for i in $(seq {}); do :; done; exit 9", round % 15 * 100);
        let recipe = Executor::builder(script).shell(true).timeout(LONG);
        let error = if round % 2 == 0 {
            error_of(recipe.wait_for(Banner::matching("never")).start())
        } else {
            error_of(recipe.wait_for(Tcp::addr("127.0.0.1:{port}")).start())
        };
        let Error::Exited { status, .. } = &error else {
            panic!("round {round}: {error}")
        };
        assert_eq!(status.code(), Some(9));
    }
}

#[test]
fn a_death_by_a_signal_is_told_as_one() {
    use std::os::unix::process::ExitStatusExt;
    let recipe = odd(["--die-before-ready", "11"]).wait_for(Banner::matching("never"));
    let error = error_of(recipe.start());
    let Error::Exited { status, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(status.signal(), Some(11), "{error}");
}

#[test]
fn a_timeout_tells_all() {
    let recipe = odd(["--line", "still thinking"])
        .env("MK_SECRET", "correct-horse-battery")
        .wait_for(Tcp::addr("127.0.0.1:{port}"));
    let error = timed_out(&recipe, "still thinking");
    let Error::Timeout {
        command,
        awaited,
        elapsed,
        evidence,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert!(*elapsed >= Duration::from_millis(500), "{elapsed:?}");
    assert!(
        evidence.tail.iter().any(|line| line.contains("still thinking")),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains(command.as_str()) && text.contains(awaited.as_str()),
        "{text}"
    );
    assert!(
        text.contains("still thinking") && !text.contains("correct-horse-battery"),
        "{text}"
    );
    assert!(!text.lines().next().unwrap_or("").ends_with('.'), "{text}");
}

#[test]
fn a_no_wait_executor_takes_its_conditions_afterwards() {
    let mut service: Executor<NoWait> = odd(["--delay", "100", "--ready-line", "up"]).start().unwrap();
    service.wait_until(Banner::matching("^up$"), LONG).unwrap();
    let error = error_of(service.wait_until(Banner::matching("never"), Duration::from_millis(100)));
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(service.is_running(), "only the waiting has failed");
    service.stop().unwrap();
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_server_that_listens_for_a_moment_to_check_its_port_is_not_ready() {
    // A listener that is there for 50 ms counts as ready. The script prints `slow` if a busy
    // machine makes its short sleep too long.
    let script = "import socket, sys, time
address = ('127.0.0.1', int(sys.argv[1]))
began = time.monotonic()
check = socket.create_server(address)
time.sleep(0.02)
check.close()
print('slow' if time.monotonic() - began > 0.04 else 'quick', flush=True)
time.sleep(0.02)
server = socket.create_server(address)
while True:
    client, _ = server.accept()
    client.sendall(b'server')
    client.close()
";
    let ask = |addr| -> std::io::Result<String> {
        let mut answer = String::new();
        TcpStream::connect(addr)?.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let mut quick = 0;
    for _ in 0..50 {
        let mut service = Executor::builder("python3 -c")
            .arg(script)
            .arg("{port}")
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .start()
            .unwrap();
        let first = ask(service.addr());
        let serves = || ask(service.addr()).is_ok_and(|answer| answer == "server");
        assert!(wait_until(serves, LONG));
        if service.logs().stdout() == "quick\n" {
            assert_eq!(first.unwrap(), "server");
            quick += 1;
        }
        service.stop().unwrap();
        if quick == 5 {
            return;
        }
    }
    assert!(quick > 0, "each sleep of 20 ms took 40");
}

#[test]
fn a_condition_is_asked_at_its_own_pace_whatever_the_service_prints() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let never = Check::new("never", move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(false)
    });
    // The banner has asked the supervisor to report output, and the service prints more after its
    // banner.
    let mut service = Executor::builder("echo up; sleep 0.05; echo more; exec sleep 60")
        .shell(true)
        .wait_for(Banner::matching("up"))
        .start()
        .unwrap();
    let error = error_of(service.wait_until(never, Duration::from_millis(400)));
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let asked = asked.load(Ordering::SeqCst);
    assert!(asked < 600, "asked {asked} times");
}
