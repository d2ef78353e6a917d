//! Tests the seven executors, their conditions and errors, and the settings of a recipe.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::common::{
    self, LONG, ODD, Scratch, alive, error_of, is_root, mode, odd, test_name, victim, victim_dir, wait_until,
};
use mirakuru::{
    Banner, Error, Executor, Http, OutputExecutor, PidExecutor, PidFile, Readiness, SimpleExecutor, Stdio,
    Tcp, TcpExecutor, UnixSocket, UnixSocketExecutor,
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

// ---- the seven ----------------------------------------------------------------------------------

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
    // A banner may be on either stream, unless the condition names one.
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
    // The service prints the banner at its first start only, so the restart must time out.
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
    // A killed service leaves its socket file behind.
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
    // A child that another test has just forked has a copy of the socket until it executes its
    // program.
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
    ignore = "the portable back end does not find processes that leave the process group"
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

// ---- what a recipe can say ----------------------------------------------------------------------

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
#[ignore = "a part of another test"]
fn clears_the_environment() {
    let Some(dir) = victim_dir() else { return };
    let clear = || Executor::builder("/usr/bin/env").env_clear();
    let others = clear().env_remove("LLVM_PROFILE_FILE");
    let own = clear().env("LLVM_PROFILE_FILE", "mine");
    let printed = [clear(), others, own].map(|recipe| {
        let mut job = recipe.start().unwrap();
        job.wait(LONG).unwrap();
        let logs = job.logs();
        let profile = logs
            .stdout()
            .lines()
            .find(|line| line.starts_with("LLVM_PROFILE_FILE"));
        profile.unwrap_or("none").to_owned()
    });
    std::fs::write(dir.join("printed"), printed.join("\n")).unwrap();
}

/// Without LLVM_PROFILE_FILE, a program built for coverage writes its profile into its working
/// directory.
#[test]
fn a_cleared_environment_keeps_the_place_of_the_coverage_profile() {
    let scratch = Scratch::new();
    let output = victim(test_name!(clears_the_environment), scratch.path())
        .env("LLVM_PROFILE_FILE", "/tmp/x-%p.profraw")
        .output()
        .unwrap();
    common::assert_success(&output);
    let printed = std::fs::read_to_string(scratch.path().join("printed")).unwrap();
    assert_eq!(
        printed.lines().collect::<Vec<_>>(),
        [
            "LLVM_PROFILE_FILE=/tmp/x-%p.profraw",
            "none",
            "LLVM_PROFILE_FILE=mine"
        ]
    );
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
    // The service sees the end of its input, because no other process holds the pipe open.
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

        // Without `groups`, the service does not keep root's supplementary groups.
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
    let mut service = script("echo a; echo b >&2; echo c; printf half >&2")
        .wait_for(done().and(Banner::matching("^half").stderr()))
        .start()
        .unwrap();
    let logs = service.logs();
    assert_eq!(logs.stdout(), "a\nc\ndone\n");
    assert_eq!(logs.stderr(), "b\nhalf");
    let text = logs.to_string();
    for word in ["a", "b", "c", "half", "done"] {
        assert!(logs.lines().any(|line| line.contains(word)), "{text}");
    }
    // `Logs` is a snapshot, and does not change later.
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

// ---- placeholders -------------------------------------------------------------------------------

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

// ---- errors -------------------------------------------------------------------------------------

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

    // A relative path is resolved in the service's working directory, not on PATH.
    let error = error_of(
        Executor::builder("./no-such-program")
            .current_dir(scratch.path())
            .start(),
    );
    assert!(matches!(error, Error::Spawn { .. }), "{error}");
}
