//! The seven executors, what they can wait for, what a recipe can say, and what their errors tell.

mod common;

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{
    LONG, ODD, Scratch, alive, error_of, is_root, mode, monotonic, odd, stamped, victim, victim_dir,
    wait_until,
};
use mirakuru::{
    Banner, Check, Error, Exec, Executor, Http, HttpExecutor, NoWait, OutputExecutor, PidExecutor, PidFile,
    Prepare, Probe, Readiness, SdNotify, SimpleExecutor, Stdio, Tcp, TcpExecutor, UnixSocket,
    UnixSocketExecutor,
};

/// A service that sleeps once it has run a script.
fn script(text: &str) -> mirakuru::ExecutorBuilder {
    Executor::builder(format!("{text}; echo done; exec sleep 100"))
        .shell(true)
        .timeout(LONG)
}

fn done() -> Banner {
    Banner::matching("^done$").stdout()
}

// ---- the seven --------------------------------------------------------------------------------------------------------

#[test]
fn a_simple_executor_is_ready_once_it_has_been_executed() {
    let mut service: SimpleExecutor = odd([]).start().unwrap();
    assert!(service.is_running());
    assert!(alive(service.pid()));
    let exe = fs::read_link(format!("/proc/{}/exe", service.pid())).unwrap();
    assert_eq!(exe, fs::canonicalize(ODD).unwrap());
    service.stop().unwrap();
    assert!(!service.is_running());
}

#[test]
fn an_output_executor_is_ready_when_its_output_matches() {
    // On either stream, unless one is named.
    let out: [(&str, Banner); 2] = [
        ("--ready-line", Banner::matching("listening on \\d+")),
        ("--ready-line", Banner::matching("^listening on 80$").stdout()),
    ];
    let err: [(&str, Banner); 2] = [
        ("--ready-line-err", Banner::matching("listening on \\d+")),
        ("--ready-line-err", Banner::matching("^listening on 80$").stderr()),
    ];
    for (flag, banner) in out.into_iter().chain(err) {
        let mut service: OutputExecutor = odd(["--delay", "50", flag, "listening on 80"])
            .wait_for(banner)
            .start()
            .unwrap();
        assert!(service.logs().to_string().contains("listening on 80"));
        service.stop().unwrap();
    }
}

#[test]
fn a_banner_on_the_other_stream_does_not_count() {
    let service = odd(["--ready-line", "up"])
        .wait_for(Banner::matching("up").stderr())
        .timeout(Duration::from_millis(300));
    let error = error_of(service.start());
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn a_banner_may_be_half_a_line() {
    let mut service = odd(["--delay", "50", "--ready-line", "login: ", "--ready-line-partial"])
        .wait_for(Banner::matching("^login: "))
        .start()
        .unwrap();
    assert!(service.logs().stdout().ends_with("login: "));
    service.stop().unwrap();
}

#[test]
fn a_banner_may_be_wanted_several_times() {
    let twice = || Banner::matching("ready").times(2);
    let mut service = odd(["--ready-line", "ready", "--ready-line-times", "2"])
        .wait_for(twice())
        .start()
        .unwrap();
    service.stop().unwrap();
    let once = odd(["--ready-line", "ready"])
        .wait_for(twice())
        .timeout(Duration::from_millis(300));
    assert!(matches!(error_of(once.start()), Error::Timeout { .. }));
}

#[test]
fn a_banner_of_an_earlier_start_does_not_count() {
    // It prints the banner the first time only: a restart must wait for a new one.
    let scratch = Scratch::new();
    let flag = scratch.file("flag");
    let mut service = Executor::builder(format!(
        "test -e {flag} && exec sleep 100; touch {flag}; echo ready; exec sleep 100"
    ))
    .shell(true)
    .timeout(Duration::from_secs(4))
    .wait_for(Banner::matching("ready"))
    .start()
    .unwrap();
    let error = error_of(service.restart());
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn a_tcp_executor_is_ready_when_it_listens() {
    let mut service: TcpExecutor = odd(["--delay", "100", "--listen", "127.0.0.1:{port}"])
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .start()
        .unwrap();
    assert_eq!(common::who_answers(service.addr()), service.pid());
    service.stop().unwrap();

    let port = common::fixed_port();
    let address = format!("127.0.0.1:{port}");
    let mut service: TcpExecutor = odd(["--listen", &address])
        .wait_for(Tcp::port(port))
        .start()
        .unwrap();
    assert_eq!(service.port(), port);
    assert_eq!(common::who_answers(service.addr()), service.pid());
    service.stop().unwrap();
}

#[test]
fn a_tcp_executor_may_listen_on_every_address_or_in_a_descendant() {
    let mut service = odd(["--listen", "0.0.0.0:{port}"])
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .start()
        .unwrap();
    assert_eq!(common::who_answers(("127.0.0.1", service.port())), service.pid());
    service.stop().unwrap();

    let mut service = Executor::builder(format!("'{ODD}' --delay 50 --listen 127.0.0.1:{{port}} & wait"))
        .shell(true)
        .timeout(LONG)
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .start()
        .unwrap();
    let listener = common::who_answers(service.addr());
    assert_ne!(listener, service.pid());
    service.stop().unwrap();
    assert!(!alive(listener));
}

#[test]
fn a_unix_socket_executor_is_ready_when_it_accepts() {
    let mut service: UnixSocketExecutor = odd(["--delay", "50", "--unix", "{dir}/socket"])
        .wait_for(UnixSocket::path("{dir}/socket"))
        .start()
        .unwrap();
    assert_eq!(service.path(), service.dir().join("socket"));
    UnixStream::connect(service.path()).unwrap();
    // The file is not enough: a killed service leaves it behind, and is not ready until it has bound it anew.
    service.kill().unwrap();
    assert!(
        service.path().exists(),
        "the helper was killed, and could not remove it"
    );
    fs::remove_file(service.path()).unwrap();
    service.start().unwrap();
    UnixStream::connect(service.path()).unwrap();
    service.stop().unwrap();
}

#[test]
fn a_socket_file_that_nobody_serves_is_not_ready() {
    let scratch = Scratch::new();
    let path = scratch.file("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(Path::new(&path).exists());
    // A process that another test makes in this moment serves it as well, until it executes its program.
    assert!(wait_until(|| UnixStream::connect(&path).is_err(), LONG));
    let service = odd([])
        .wait_for(UnixSocket::path(path.as_str()))
        .timeout(Duration::from_millis(300));
    let error = error_of(service.start());
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn a_pid_executor_is_ready_when_the_file_is_there() {
    let mut service: PidExecutor = odd(["--delay", "50", "--pid-file", "{dir}/odd.pid"])
        .wait_for(PidFile::path("{dir}/odd.pid"))
        .start()
        .unwrap();
    let text = fs::read_to_string(service.path()).unwrap();
    assert_eq!(text.trim(), service.pid().to_string());
    service.stop().unwrap();
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find what leaves the process group"
)]
fn a_daemon_that_wrote_its_pid_file_is_running_until_it_is_stopped() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let mut service: PidExecutor = odd([
        "--daemonise",
        "--delay",
        "100",
        "--pid-file",
        "{dir}/odd.pid",
        "--pids",
        &pids,
    ])
    .wait_for(PidFile::path("{dir}/odd.pid"))
    .start()
    .unwrap();
    let text = fs::read_to_string(service.path()).unwrap();
    let daemon = text.trim().parse().unwrap();
    assert!(alive(daemon));
    assert!(
        service.is_running(),
        "the first process exited 0, and the service is alive"
    );
    service.stop().unwrap();
    common::assert_gone(&scratch, &pids, Duration::ZERO);
    assert!(!alive(daemon));
}

/// The log once it holds a text: what is on its way from the service into the log is there a moment later.
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

// ---- HTTP -------------------------------------------------------------------------------------------------------------

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
        .wait_for(Http::head("http://127.0.0.1:{port}/"))
        .timeout(Duration::from_secs(2));
    let error = error_of(service.start());
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("418"), "{error}");
}

// ---- other conditions -------------------------------------------------------------------------------------------------

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

/// The second half of a pair is not waited for as output is, until somebody was asked to tell of output.
#[test]
fn output_that_follows_another_condition_is_noticed_at_once() {
    let scratch = Scratch::new();
    // Otherwise the line that tells of a long start would wake it.
    let status = victim("waits_for_output_after_something_else", scratch.path())
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

#[test]
fn what_is_told_by_a_descriptor_is_noticed_when_it_comes() {
    let scratch = Scratch::new();
    // Otherwise the line that tells of a long start would wake them.
    let status = victim("waits_for_notifications", scratch.path())
        .env("MIRAKURU_QUIET", "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// Nothing polls here. What is not waited for would be noticed only at the end of the service, too late.
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

/// A condition of the user's own.
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

// ---- what a recipe can say --------------------------------------------------------------------------------------------

#[test]
fn the_environment() {
    let mut service = odd(["--print-env", "--ready-line", "up"])
        .env("MK_PORT", "{port}")
        .envs([("MK_DIR", "{dir}/x"), ("MK_PLAIN", "${HOME}")])
        .env("MK_GONE", "1")
        .env_remove("MK_GONE")
        .env_remove("CARGO_MANIFEST_DIR")
        .wait_for(Banner::matching("^up$"))
        .start()
        .unwrap();
    let log = service.logs().stdout().to_owned();
    let has = |line: &str| log.lines().any(|l| l == line);
    assert!(has(&format!("env: MK_PORT={}", service.port())), "{log}");
    assert!(
        has(&format!("env: MK_DIR={}/x", service.dir().display())),
        "{log}"
    );
    assert!(has("env: MK_PLAIN=${HOME}"), "{log}");
    assert!(
        !log.contains("MK_GONE") && !log.contains("CARGO_MANIFEST_DIR"),
        "{log}"
    );
    assert!(log.contains("env: PATH="), "the rest is inherited: {log}");
    let envs = service.envs();
    assert_eq!(
        envs.get("MK_PORT".as_ref() as &std::ffi::OsStr),
        Some(&service.port().to_string().into())
    );
    service.stop().unwrap();

    let mut service = odd(["--print-env", "--ready-line", "up"])
        .env("MK_BEFORE", "1")
        .env_clear()
        .env("MK_AFTER", "1")
        .wait_for(Banner::matching("^up$"))
        .start()
        .unwrap();
    let log = service.logs();
    let mut names: Vec<&str> = log
        .stdout()
        .lines()
        .filter_map(|line| line.strip_prefix("env: ")?.split('=').next())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["MIRAKURU_ID", "MK_AFTER"]);
    service.stop().unwrap();
}

#[test]
fn the_working_directory() {
    let mut service = script("pwd")
        .current_dir("{dir}")
        .wait_for(done())
        .start()
        .unwrap();
    let printed = service.logs().stdout().lines().next().map(str::to_owned);
    assert_eq!(printed.as_deref(), service.dir().canonicalize().unwrap().to_str());
    service.stop().unwrap();

    let mut service = script("pwd").wait_for(done()).start().unwrap();
    let printed = service.logs().stdout().lines().next().map(str::to_owned);
    assert_eq!(printed.as_deref(), std::env::current_dir().unwrap().to_str());
    service.stop().unwrap();
}

#[test]
fn standard_input_is_null_unless_said_otherwise() {
    let mut service = script("readlink /proc/self/fd/0")
        .wait_for(done())
        .start()
        .unwrap();
    assert_eq!(service.logs().stdout().lines().next(), Some("/dev/null"));
    service.stop().unwrap();
}

#[test]
fn standard_input_from_a_file() {
    let scratch = Scratch::new();
    let path = scratch.file("input");
    fs::write(&path, "first\nsecond\n").unwrap();
    let mut service = script("cat")
        .stdin(fs::File::open(&path).unwrap())
        .wait_for(done())
        .start()
        .unwrap();
    assert_eq!(service.logs().stdout(), "first\nsecond\ndone\n");
    service.stop().unwrap();
}

#[test]
fn standard_input_from_the_test() {
    let mut service = script("cat").stdin(Stdio::piped()).start().unwrap();
    let mut stdin = service.take_stdin().expect("a writer");
    writeln!(stdin, "typed by hand").unwrap();
    stdin.flush().unwrap();
    service
        .wait_until(Banner::matching("^typed by hand$"), LONG)
        .unwrap();
    assert!(service.take_stdin().is_none(), "there is one writer");
    // The end of the file reaches the service: nobody else holds the pipe open.
    drop(stdin);
    service.wait_until(done(), LONG).unwrap();
    service.stop().unwrap();
}

#[test]
fn output_to_a_file_of_the_users() {
    let scratch = Scratch::new();
    let path = scratch.file("output");
    let mut service = odd([
        "--line",
        "to the file",
        "--line-err",
        "to the log",
        "--ready-line-err",
        "up",
    ])
    .stdout(fs::File::create(&path).unwrap())
    .wait_for(Banner::matching("^up$").stderr())
    .start()
    .unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("to the file"));
    let logs = service.logs();
    assert!(
        logs.stderr().contains("to the log") && !logs.to_string().contains("to the file"),
        "{logs}"
    );
    service.stop().unwrap();
}

#[test]
fn a_shell_runs_the_script_with_its_arguments() {
    let mut service = Executor::builder("echo \"<$1> <$2>\" | tr a-z A-Z; echo done; exec sleep 100")
        .shell(true)
        .args(["one two", "$HOME"])
        .timeout(LONG)
        .wait_for(done())
        .start()
        .unwrap();
    assert_eq!(service.logs().stdout().lines().next(), Some("<ONE TWO> <$HOME>"));
    service.stop().unwrap();
}

#[test]
fn without_a_shell_words_are_split_as_one_would_and_nothing_else() {
    let words = r#"--line "a b" --line $HOME --line c\ d --line '*' --line "it's" --line ;"#;
    let mut service = Executor::builder(format!("'{ODD}' {words} --ready-line"))
        .timeout(LONG)
        .arg("e f")
        .wait_for(Banner::matching("^e f$"))
        .start()
        .unwrap();
    assert_eq!(service.logs().stdout(), "a b\n$HOME\nc d\n*\nit's\n;\ne f\n");
    assert!(
        service.command().ends_with("--ready-line 'e f'"),
        "{}",
        service.command()
    );
    service.stop().unwrap();
}

#[test]
fn the_user_the_groups_and_the_mask() {
    let show = "id -u; id -g; id -G; umask";
    let mut service = script("umask").umask(0o027).wait_for(done()).start().unwrap();
    assert!(
        service.logs().stdout().starts_with("0027\n"),
        "{}",
        service.logs()
    );
    service.stop().unwrap();
    if is_root() {
        let mut service = script(show)
            .uid(65534)
            .gid(65533)
            .groups([7, 9])
            .umask(0o077)
            .current_dir("/")
            .wait_for(done())
            .start()
            .unwrap();
        let log = service.logs();
        let lines: Vec<&str> = log.stdout().lines().collect();
        assert_eq!(lines, ["65534", "65533", "65533 7 9", "0077", "done"]);
        service.stop().unwrap();

        // Root's own groups are not handed down.
        let mut service = script(show)
            .uid(65534)
            .gid(65533)
            .current_dir("/")
            .wait_for(done())
            .start()
            .unwrap();
        assert_eq!(
            service.logs().stdout().lines().nth(2),
            Some("65533"),
            "{}",
            service.logs()
        );
        service.stop().unwrap();
    } else {
        common::skip_without_root();
        let error = error_of(script(show).uid(0).start());
        assert!(matches!(error, Error::Spawn { .. }), "{error}");
    }
}

#[test]
fn the_name() {
    let service = odd([]).build().unwrap();
    assert_eq!(service.name(), "mirakuru-odd-service");
    let mut service = odd(["--line", "I am {name}", "--ready-line", "up"])
        .name("my-server")
        .wait_for(Banner::matching("^up$"))
        .start()
        .unwrap();
    assert_eq!(service.name(), "my-server");
    assert!(service.logs().stdout().contains("I am my-server\n"));
    service.stop().unwrap();
}

#[test]
fn the_log_keeps_the_streams_apart_and_the_lines_in_order() {
    let mut service = script("echo a; echo b >&2; echo c; printf half >&2; sleep 0.05")
        .wait_for(done())
        .start()
        .unwrap();
    let logs = service.logs();
    assert_eq!(logs.stdout(), "a\nc\ndone\n");
    assert_eq!(logs.stderr(), "b\nhalf");
    let text = logs.to_string();
    for word in ["a", "b", "c", "half", "done"] {
        assert!(logs.lines().any(|line| line.contains(word)), "{text}");
    }
    // A snapshot stays as it is.
    service.stop().unwrap();
    assert_eq!(logs.to_string(), text);
}

#[test]
fn what_is_printed_at_the_end_is_still_in_the_log() {
    let mut service = odd(["--ready-line", "up", "--stop-delay", "50"])
        .wait_for(Banner::matching("up"))
        .start()
        .unwrap();
    service.stop().unwrap();
    assert!(
        service.logs().stdout().contains("got SIGTERM"),
        "{}",
        service.logs()
    );
}

#[test]
fn what_mirakuru_keeps_is_private_and_removed() {
    let mut service = odd(["--pid-file", "{dir}/p"])
        .wait_for(PidFile::path("{dir}/p"))
        .start()
        .unwrap();
    let (dir, log) = (service.dir(), service.logs().path().to_owned());
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&log), 0o600);
    service.stop().unwrap();
    service.start().unwrap();
    assert_eq!(service.dir(), dir, "the same one on a second start");
    drop(service);
    assert!(!dir.exists(), "{}", dir.display());
    assert!(!log.exists(), "{}", log.display());
}

#[test]
fn a_recipe_can_be_used_many_times() {
    let recipe = odd(["--listen", "127.0.0.1:{port}"]).wait_for(Tcp::addr("127.0.0.1:{port}"));
    let first = recipe.clone().start().unwrap();
    let second = recipe.start().unwrap();
    assert_ne!(first.port(), second.port());
    assert_ne!(first.dir(), second.dir());
    assert_eq!(common::who_answers(first.addr()), first.pid());
    assert_eq!(common::who_answers(second.addr()), second.pid());
}

// ---- placeholders -----------------------------------------------------------------------------------------------------

#[test]
fn placeholders_are_filled_in_and_other_braces_left_alone() {
    let literal = [
        "{{port}}",
        r#"{"port": 1, "a": {"b": []}}"#,
        "${HOME} ${port}",
        "{1..9} {a,b}",
        "{ print $1 }",
        "{}",
    ];
    let filled = [
        "{port}",
        "{port:admin}",
        "{port}",
        "{dir}",
        "{name}",
        "{env:PATH}",
    ];
    let mut service = odd(["--ready-line", "end"])
        .args(literal.iter().chain(&filled).flat_map(|word| ["--line", word]))
        .wait_for(Banner::matching("^end$"))
        .start()
        .unwrap();
    let logs = service.logs();
    let lines: Vec<&str> = logs.stdout().lines().collect();
    assert_eq!(lines[0], "{port}");
    assert_eq!(lines[1..6], literal[1..]);
    let port = service.port().to_string();
    assert_eq!(lines[6], port);
    assert_ne!(lines[7], port);
    assert!(lines[7].parse::<u16>().is_ok_and(|p| p > 0), "{}", lines[7]);
    assert_eq!(lines[8], port);
    assert_eq!(lines[9], service.dir().to_str().unwrap());
    assert_eq!(lines[10], "mirakuru-odd-service");
    assert_eq!(lines[11], std::env::var("PATH").unwrap());
    service.stop().unwrap();
}

#[test]
fn a_placeholder_that_is_not_known_is_an_error_that_lists_the_known_ones() {
    let error = error_of(odd(["--listen", "127.0.0.1:{prot}"]).start());
    let Error::InvalidCommand { reason, .. } = &error else {
        panic!("{error}");
    };
    for known in ["{port}", "{dir}", "{name}", "{env:"] {
        assert!(reason.contains(known), "no {known} in: {reason}");
    }
    assert!(error.to_string().contains("{prot}"), "{error}");

    let error = error_of(odd(["{env:MIRAKURU_NO_SUCH_VARIABLE}"]).start());
    assert!(matches!(error, Error::InvalidCommand { .. }), "{error}");
    assert!(error.to_string().contains("MIRAKURU_NO_SUCH_VARIABLE"), "{error}");

    let error = error_of(odd([]).wait_for(Tcp::addr("127.0.0.1:{prot}")).start());
    assert!(matches!(error, Error::InvalidReadiness { .. }), "{error}");
}

// ---- errors -----------------------------------------------------------------------------------------------------------

#[test]
fn an_error_can_be_sent_anywhere_and_prints_the_same_either_way() {
    fn anywhere<T: Send + Sync + 'static + std::error::Error>() {}
    anywhere::<Error>();
    let error = error_of(Executor::builder("").start());
    assert_eq!(format!("{error}"), format!("{error:?}"));
}

#[test]
fn commands_that_make_no_sense() {
    for command in ["", "   ", "redis-server 'oops", "redis-server \"oops"] {
        let error = error_of(Executor::builder(command).start());
        assert!(
            matches!(error, Error::InvalidCommand { .. }),
            "{command:?}: {error}"
        );
    }
}

#[test]
fn conditions_that_make_no_sense() {
    fn refused(readiness: impl Readiness) {
        let what = readiness.describe();
        let scratch = Scratch::new();
        let pids = scratch.file("pids");
        let error = error_of(odd(["--pids", &pids]).wait_for(readiness).start());
        assert!(matches!(error, Error::InvalidReadiness { .. }), "{what}: {error}");
        assert!(!Path::new(&pids).exists(), "{what}: something was started");
    }
    refused(Banner::matching("(unclosed"));
    refused(Tcp::addr("no port here"));
    refused(Tcp::addr("127.0.0.1:99999"));
    refused(Http::head("ftp://127.0.0.1/"));
    refused(Http::head("not a url"));
    refused(Http::head("http://127.0.0.1:1/").status("(unclosed"));
}

#[test]
fn spawn_failures_are_told_apart() {
    let scratch = Scratch::new();

    let error = error_of(Executor::builder("mirakuru-no-such-program --flag").start());
    let Error::Spawn { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
    let not_found = error.to_string();
    assert!(not_found.contains("mirakuru-no-such-program"), "{not_found}");

    let file = scratch.file("plain.txt");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    let error = error_of(Executor::builder([file.as_str()]).start());
    let Error::Spawn { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);
    let not_executable = error.to_string();
    assert!(
        not_executable.contains("plain.txt") && not_executable.contains("executable"),
        "{not_executable}"
    );

    let missing = scratch.file("no/such/dir");
    let error = error_of(odd([]).current_dir(&missing).start());
    let Error::Spawn { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
    let no_directory = error.to_string();
    assert!(
        no_directory.contains(&missing) && no_directory.contains("directory"),
        "{no_directory}"
    );
    assert!(!not_found.contains("working directory"), "{not_found}");

    // A relative path is looked for from the service's working directory, and PATH is not searched for it.
    let error = error_of(
        Executor::builder("./no-such-program")
            .current_dir(scratch.path())
            .start(),
    );
    assert!(matches!(error, Error::Spawn { .. }), "{error}");
}

/// A service that ends before it is ready is noticed at once, whatever is awaited.
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
        // It takes milliseconds; the bound is for a machine that is busy with other tests.
        let lag = now.saturating_sub(stamped(&stamp, "exit").expect("a stamp"));
        assert!(lag < Duration::from_secs(5), "noticed {lag:?} after the exit");
        // What is kept after a failure is private too.
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

/// However soon: in the middle of whatever the start is doing then.
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
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .timeout(Duration::from_millis(300));
    let error = error_of(recipe.start());
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
    assert!(*elapsed >= Duration::from_millis(300), "{elapsed:?}");
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
