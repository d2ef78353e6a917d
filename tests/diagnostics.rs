//! What a person reads when something goes wrong: each way to fail, by the text of its report.
//!
//! `cargo test --test diagnostics -- --nocapture --test-threads=1` shows them all.

mod common;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    LONG, ODD, Scratch, Stranger, ask, error_of, fixed_port, is_root, odd, require, say, skip_without_root,
    victim, victim_dir, wait_until,
};
use mirakuru::{
    Banner, Error, Exec, Executor, ExecutorBuilder, Http, PidFile, Readiness, Shared, SimpleExecutor, Tcp,
    UnixSocket,
};

const SHORT: Duration = Duration::from_millis(400);

/// A report with what differs from run to run replaced: times by `[time]`, the log's path by `[log]`.
fn report(error: &Error) -> String {
    let text = error.to_string();
    println!("{text}\n");
    assert_eq!(format!("{error:?}"), text, "`unwrap` shows the same");
    assert!(text.lines().all(|line| line.trim_end() == line), "{text:?}");
    normal(&text)
}

fn normal(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(normal_line).collect();
    lines.join("\n")
}

fn normal_line(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    for at in 0..words.len() {
        let unit = words.get(at + 1).cloned().unwrap_or_default();
        let unit = unit.trim_end_matches([',', ':', ';', ')']);
        if words[at].parse::<f64>().is_ok() && ["µs", "ms", "s", "min", "h"].contains(&unit) {
            let rest = words[at + 1][unit.len()..].to_owned();
            words[at] = format!("[time]{rest}");
            words[at + 1] = "\0".to_owned();
        } else if words[at].starts_with('/')
            && words[at].contains("/mirakuru-")
            && words[at].ends_with("/log")
        {
            words[at] = "[log]".to_owned();
        }
    }
    words.retain(|word| word != "\0");
    words.join(" ")
}

/// Compares a report with what it is to be. The lines of the expected text that are `..` stand for any number of lines.
#[track_caller]
fn reads(error: &Error, expected: &str) {
    let text = report(error);
    let mut lines = text.lines();
    let mut gap = false;
    for wanted in expected.lines() {
        if wanted.trim() == ".." {
            gap = true;
            continue;
        }
        let found = if gap {
            lines.any(|line| line == wanted)
        } else {
            lines.next() == Some(wanted)
        };
        assert!(
            found,
            "no line `{wanted}` where it is to be in\n{text}\nwhich is to read\n{expected}"
        );
        gap = false;
    }
    assert!(gap || lines.next().is_none(), "more than\n{expected}\nin\n{text}");
}

fn start<R: Readiness>(recipe: mirakuru::ExecutorBuilder<R>) -> Error {
    error_of(recipe.start())
}

// ---- the program cannot be executed -------------------------------------------------------------------------------------

#[test]
fn the_program_is_missing() {
    let scratch = Scratch::new();
    let path = scratch.file("redis-serve");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let error = start(Executor::builder("rediss-server --port 6379").env("PATH", scratch.path()));
    reads(
        &error,
        "rediss-server --port 6379: failed to execute `rediss-server`: no such file or directory\n  \
         hint:       no directory on PATH has `rediss-server`; did you mean `redis-serve`?",
    );
    // Of a server that many tests use, the package is known; unless it is there, where PATH does not lead.
    let error = start(Executor::builder("beanstalkd").env("PATH", "/nowhere"));
    let text = report(&error);
    assert!(
        text.contains("; on Debian it comes with `apt-get install beanstalkd`")
            || text.contains("but it is there: use `/"),
        "{text}"
    );
    if require("initdb").is_some() {
        let error = start(Executor::builder("initdb -D {dir}/data").env("PATH", "/nowhere"));
        let text = report(&error);
        assert!(
            text.contains("no directory on PATH has `initdb`, but it is there: use `/usr/lib/postgresql/"),
            "{text}"
        );
    }
}

#[test]
fn the_program_is_not_executable() {
    let scratch = Scratch::new();
    let file = scratch.file("server");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    reads(
        &start(Executor::builder([&file])),
        &format!(
            "{file}: failed to execute `{file}`: permission denied\n  hint:       it is not executable: `chmod +x {file}`"
        ),
    );
}

#[test]
fn the_directory_is_wrong() {
    reads(
        &start(Executor::builder("sleep 60").current_dir("/no/such/place")),
        "sleep 60: failed to change to the working directory `/no/such/place`: no such file or directory\n  \
         hint:       make it before the service is started, or use \"{dir}\", which is made for it",
    );
}

#[test]
fn the_user_cannot_be_taken_on() {
    if is_root() {
        return;
    }
    let text = report(&start(Executor::builder("sleep 60").uid(1)));
    assert!(text.contains("takes root"), "{text}");
}

// ---- the program ends ---------------------------------------------------------------------------------------------------

#[test]
fn a_bad_flag() {
    let error = start(odd(["--prot", "6379"]).wait_for(Banner::matching("never")));
    reads(
        &error,
        &format!(
            "{ODD} --prot 6379: exited with status 2 after [time], before it printed a line that matches `never`\n  \
               timeline:   spawned, first output after [time], exited with status 2 after [time]\n  \
               output:     1 line, in [log]\n    \
                 | mirakuru-odd-service: unknown option --prot; see --help\n  \
               hint:       it does not know one of its arguments: see `mirakuru-odd-service --help`"
        ),
    );
    if require("redis-server").is_some() {
        let error =
            start(Executor::builder("redis-server --prot {port}").wait_for(Tcp::addr("127.0.0.1:{port}")));
        let text = report(&error);
        assert!(
            text.ends_with("hint:       it does not know one of its arguments: see `redis-server --help`"),
            "{text}"
        );
    }
}

#[test]
fn exit_0() {
    let error =
        start(odd(["--line", "bye", "--exit-before-ready", "0"]).wait_for(Tcp::addr("127.0.0.1:{port}")));
    let port = error.to_string();
    let port = port.lines().next().unwrap().rsplit(':').next().unwrap();
    let hint = match cfg!(mirakuru_portable) {
        false => {
            "it ended well, and left nothing running: a program that goes into the background needs its option to stay in the \
             foreground"
        }
        true => {
            "it ended well: a program that goes into the background is not found on this system, and may still be there; it needs \
             its option to stay in the foreground"
        }
    };
    reads(
        &error,
        &format!(
            "{ODD} --line bye --exit-before-ready 0: exited with status 0 after [time], before it accepted connections on 127.0.0.1:{port}\n\
               ..\n  \
               timeline:   spawned, first output after [time], exited with status 0 after [time]\n  \
               output:     1 line, in [log]\n    \
                 | bye\n  \
               hint:       {hint}"
        ),
    );
}

#[test]
fn exit_1() {
    let error =
        start(odd(["--exit-before-ready", "1", "--delay", "50"]).wait_for(Tcp::addr("127.0.0.1:{port:x}")));
    let text = report(&error);
    let mut lines = text.lines();
    let headline = lines.next().unwrap();
    assert!(
        headline.starts_with(&format!(
            "{ODD} --exit-before-ready 1 --delay 50: exited with status 1 after [time], before it accepted connections on 127.0.0.1:"
        )),
        "{text}"
    );
    let probe = lines.next().unwrap();
    assert!(
        probe.starts_with("  last probe: nobody listens on 127.0.0.1:"),
        "{text}"
    );
    assert_eq!(
        lines.next(),
        Some("  timeline:   spawned, exited with status 1 after [time]")
    );
    assert_eq!(lines.next(), Some("  output:     none"));
    assert_eq!(lines.next(), None, "{text}");
}

#[test]
fn a_signal() {
    for (signal, name, hint) in [
        ("11", "SIGSEGV", None),
        ("9", "SIGKILL", Some("for want of memory")),
    ] {
        let error = start(odd(["--die-before-ready", signal]).wait_for(PidFile::path("{dir}/pid")));
        let text = report(&error);
        let headline = text.lines().next().unwrap().replace(" (core dumped)", "");
        let begin =
            format!("{ODD} --die-before-ready {signal}: was killed by {name} after [time], before it wrote ");
        assert!(
            headline.starts_with(&begin) && headline.ends_with("/pid"),
            "{text}"
        );
        assert_eq!(text.contains("hint:"), hint.is_some(), "{text}");
        assert!(text.contains(hint.unwrap_or_default()), "{text}");
    }
}

#[test]
fn not_allowed_as_root() {
    let complaint = "\"root\" execution of the PostgreSQL server is not permitted.";
    let error = match require("initdb").filter(|_| is_root()) {
        Some(initdb) => start(
            Executor::builder([initdb.canonicalize().unwrap().with_file_name("postgres")])
                .args(["-D", "{dir}", "-p", "{port}"])
                .wait_for(Tcp::addr("127.0.0.1:{port}")),
        ),
        None => start(
            odd(["--line-err", complaint, "--exit-before-ready", "1"])
                .wait_for(Tcp::addr("127.0.0.1:{port}")),
        ),
    };
    let text = report(&error);
    assert!(
        text.lines()
            .next()
            .unwrap()
            .contains(": exited with status 1 after [time], before it accepted"),
        "{text}"
    );
    assert!(text.contains(&format!("    | {complaint}")), "{text}");
    assert!(
        text.contains("  hint:       it refuses to run as root: give it another user with `.uid(..)`"),
        "{text}"
    );
}

#[test]
fn a_library_is_missing() {
    // The helper itself, with the name of a library changed in it.
    let scratch = Scratch::new();
    let file = scratch.file("server");
    let mut program = fs::read(ODD).unwrap();
    let library = b"libgcc_s.so.1\0";
    let at = program
        .windows(library.len())
        .position(|window| window == library);
    let at = at.expect("the helper is linked to libgcc");
    program[at + library.len() - 2] = b'7';
    fs::write(&file, program).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let error = start(Executor::builder([&file]).wait_for(Banner::matching("ready")));
    reads(
        &error,
        &format!(
            "{file}: exited with status 127 after [time], before it printed a line that matches `ready`\n  \
               timeline:   spawned, first output after [time], exited with status 127 after [time]\n  \
               output:     1 line, in [log]\n    \
                 | {file}: error while loading shared libraries: libgcc_s.so.7: cannot open shared object file: No such file or directory\n  \
               hint:       the library `libgcc_s.so.7` is not installed or not found: `ldd` lists what the program needs, \
             `apt-file search libgcc_s.so.7` the package that has it, and LD_LIBRARY_PATH says where else to look"
        ),
    );
}

#[test]
fn a_crash_after_readiness() {
    let mut service = odd(["--ready-line", "up", "--exit-after", "30:7"])
        .wait_for(Banner::matching("^up$"))
        .start()
        .unwrap();
    assert_eq!(service.wait(LONG).unwrap().code(), Some(7));
    reads(
        &error_of(service.stop()),
        &format!(
            "{ODD} --ready-line up --exit-after 30:7: exited with status 7 when it was stopped, expected status 0 or death by SIGTERM\n  \
               timeline:   spawned, first output after [time], exited with status 7 after [time]\n  \
               output:     1 line, in [log]\n    \
                 | up\n  \
               hint:       it had ended by itself before it was asked to"
        ),
    );
}

#[test]
fn a_line_that_means_failure() {
    let recipe = odd(["--line", "FATAL: no licence"])
        .fail_on("^FATAL")
        .wait_for(Banner::matching("never"));
    reads(
        &start(recipe),
        &format!(
            "{ODD} --line 'FATAL: no licence': start-up failed after [time]: it printed `FATAL: no licence`, which matches `^FATAL`\n  \
               timeline:   spawned, first output after [time]\n  \
               output:     1 line, in [log]\n    \
                 | FATAL: no licence"
        ),
    );
}

// ---- it does not become ready -------------------------------------------------------------------------------------------

#[test]
fn it_hangs() {
    let recipe = odd(["--line", "still thinking"])
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .timeout(SHORT);
    let text = report(&start(recipe));
    let headline = text.lines().next().unwrap();
    let begin = format!(
        "{ODD} --line 'still thinking': timed out after [time], before it accepted connections on 127.0.0.1:"
    );
    assert!(headline.starts_with(&begin), "{text}");
    let port = &headline[begin.len()..];
    assert!(
        text.contains(&format!("\n  last probe: nobody listens on 127.0.0.1:{port}\n")),
        "{text}"
    );
    assert!(
        text.contains("\n  timeline:   spawned, first output after [time]\n"),
        "{text}"
    );
    assert!(
        text.ends_with("\n  output:     1 line, in [log]\n    | still thinking"),
        "{text}"
    );
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see whose a socket is"
)]
fn it_listens_elsewhere() {
    let recipe = odd(["--listen", "127.0.0.1:{port:its}"])
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
        .timeout(SHORT);
    let mut executor = recipe.build().unwrap();
    let error = error_of(executor.start());
    let text = report(&error);
    let (its, ours) = (executor.port_named("its"), executor.port_named(""));
    assert!(
        text.ends_with(&format!(
            "  hint:       it listens on 127.0.0.1:{its}, and not on 127.0.0.1:{ours}: does the command tell it the port?"
        )),
        "{text}"
    );
}

#[test]
fn the_wrong_http_status() {
    let recipe = odd(["--http", "127.0.0.1:{port}", "--http-status", "503"])
        .wait_for(Http::get("http://127.0.0.1:{port}/health").status(204))
        .timeout(SHORT);
    let text = report(&start(recipe));
    let headline = text.lines().next().unwrap();
    assert!(
        headline.contains(": timed out after [time], before it answered GET http://127.0.0.1:"),
        "{text}"
    );
    assert!(headline.ends_with("/health with 204"), "{text}");
    assert!(
        text.contains("\n  last probe: answered 503 Service Unavailable to GET /health, wanted 204"),
        "{text}"
    );
}

/// A server that speaks TLS, where openssl is installed.
fn tls_server(scratch: &Scratch) -> Option<ExecutorBuilder> {
    let openssl = require("openssl")?;
    let (key, certificate) = (scratch.file("key"), scratch.file("certificate"));
    let made = Command::new(&openssl)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args(["-subj", "/CN=localhost", "-keyout", &key, "-out", &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let server = Executor::builder([&openssl]).args([
        "s_server",
        "-www",
        "-accept",
        "127.0.0.1:{port}",
        "-key",
        &key,
        "-cert",
        &certificate,
    ]);
    Some(server)
}

#[test]
fn tls_on_a_plain_port() {
    let scratch = Scratch::new();
    let Some(server) = tls_server(&scratch) else {
        return;
    };
    let recipe = server
        .wait_for(Http::get("http://127.0.0.1:{port}/"))
        .timeout(Duration::from_secs(3));
    let text = report(&start(recipe));
    assert!(
        text.lines()
            .next()
            .unwrap()
            .contains(": timed out after [time], before it answered GET http://"),
        "{text}"
    );
    let probe = text
        .lines()
        .find(|line| line.starts_with("  last probe: "))
        .unwrap();
    assert!(probe.contains("TLS"), "{text}");
}

#[cfg(feature = "tls")]
#[test]
fn https_is_asked_over_tls() {
    let scratch = Scratch::new();
    let Some(server) = tls_server(&scratch) else {
        return;
    };
    let mut server = server
        .wait_for(Http::get("https://localhost:{port}/"))
        .start()
        .unwrap();
    assert_eq!(server.url(), format!("https://localhost:{}/", server.port()));
    server.kill().unwrap();
    // And a plain one that is taken for one with TLS.
    let text = report(&start(
        Executor::builder("python3 -m http.server --bind 127.0.0.1 {port}")
            .wait_for(Http::get("https://127.0.0.1:{port}/"))
            .timeout(Duration::from_secs(4)),
    ));
    assert!(text.contains("did not agree on TLS"), "{text}");
}

#[test]
fn it_accepts_and_never_answers() {
    let recipe = odd(["--accept-never-answer", "127.0.0.1:{port}"])
        .wait_for(Http::get("http://127.0.0.1:{port}/"))
        .timeout(SHORT);
    let text = report(&start(recipe));
    assert!(
        text.lines()
            .next()
            .unwrap()
            .contains(": timed out after [time], before it answered GET http://"),
        "{text}"
    );
    assert!(
        text.contains("\n  last probe: accepted the connection but did not answer GET / within "),
        "{text}"
    );
}

#[test]
fn the_banner_never_comes() {
    let recipe = odd(["--line", "one", "--line-err", "two"])
        .wait_for(Banner::matching(r"ready \d").times(2))
        .timeout(SHORT);
    reads(
        &start(recipe),
        &format!(
            "{ODD} --line one --line-err two: timed out after [time], before it printed 2 lines that match `ready \\d`\n  \
               timeline:   spawned, first output after [time]\n  \
               output:     2 lines, in [log]\n    \
                 | one\n    \
                 | two"
        ),
    );
}

#[test]
fn only_the_end_of_a_long_output_is_shown() {
    let script = "for i in $(seq 1 500); do echo line $i; done; exit 3";
    let error = start(
        Executor::builder(script)
            .shell(true)
            .wait_for(Banner::matching("never")),
    );
    let text = report(&error);
    assert!(
        text.contains("\n  output:     the last 20 lines, in [log]\n    | line 481\n"),
        "{text}"
    );
    assert!(text.ends_with("\n    | line 500"), "{text}");
    let Error::Exited { evidence, .. } = &error else {
        panic!()
    };
    let all = fs::read_to_string(evidence.log.as_ref().unwrap()).unwrap();
    assert_eq!(all.lines().count(), 500, "the file has all of it, and is kept");
}

#[test]
fn a_unix_path_is_too_long() {
    let path = format!("/tmp/{}", "x".repeat(120));
    reads(
        &start(odd(["--unix", &path]).wait_for(UnixSocket::path(&path))),
        &format!(
            "invalid readiness `{path}`: the path has 125 bytes, and a Unix socket's cannot have more than 107; use one in \
             `{{dir}}`, which is short, or set TMPDIR to a shorter directory"
        ),
    );
}

#[test]
fn causes_that_the_output_tells() {
    for (line, hint) in [
        (
            "initdb: error: invalid locale name \"xx_XX\"",
            "`.env(\"LC_ALL\", \"C.UTF-8\")`",
        ),
        (
            "open() \"/var/log/server.log\" failed (13: Permission denied)",
            "its user needs the right to",
        ),
        ("write failed: No space left on device", "the disk is full"),
        ("accept: Too many open files", "`ulimit -n`"),
    ] {
        let error =
            start(odd(["--line-err", line, "--exit-before-ready", "1"]).wait_for(Banner::matching("never")));
        let text = report(&error);
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("  hint:       ") && last.contains(hint),
            "{text}"
        );
    }
}

// ---- somebody else has it -----------------------------------------------------------------------------------------------

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see whose a socket is"
)]
fn the_port_is_taken_by_a_stranger() {
    let port = fixed_port();
    let stranger = Stranger::start(&["--listen", &format!("127.0.0.1:{port}")]);
    let pid = stranger.pid();
    let addr = format!("127.0.0.1:{port}");
    let user = user();
    reads(
        &start(odd(["--listen", &addr]).wait_for(Tcp::addr(&addr))),
        &format!(
            "{ODD} --listen {addr}: port {port} is already in use by mirakuru-odd-service (pid {pid})\n  \
               holder:     started [time] ago by user {user}\n  \
               hint:       end it with `kill {pid}`, or let a free port be chosen with `{{port}}`"
        ),
    );
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see whose a socket is"
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
               holder:     started [time] ago by user {user}, the service of another test that is running\n"
        )),
        "{text}"
    );
    assert!(
        text.contains("\n              ours of test process diagnostics-")
            && text.contains(&format!("(pid {me})")),
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
    ignore = "the portable back end cannot see whose a socket is"
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
    ignore = "the portable back end cannot see whose a socket is"
)]
fn the_socket_is_taken() {
    let scratch = Scratch::new();
    let path = scratch.file("server.sock");
    let stranger = Stranger::start(&["--unix", &path]);
    let (pid, user) = (stranger.pid(), user());
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
    let stranger = Stranger::start(&["--pid-file", &path]);
    let (pid, user) = (stranger.pid(), user());
    reads(
        &start(odd(["--pid-file", &path]).wait_for(PidFile::path(&path))),
        &format!(
            "{ODD} --pid-file {path}: pid file {path} is already in use by mirakuru-odd-service (pid {pid})\n  \
               holder:     started [time] ago by user {user}\n  \
               hint:       end it with `kill {pid}`, or use a path in `{{dir}}`, which is private"
        ),
    );
}

/// The service waits and does not notice: the port is somebody else's by the time that it would have been ready.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see whose a socket is"
)]
fn a_stranger_takes_the_port_during_the_start() {
    let port = fixed_port();
    let addr = format!("127.0.0.1:{port}");
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let (error, pid) = thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            assert!(wait_until(|| !common::numbers(&pids).is_empty(), LONG));
            Stranger::start(&["--listen", &addr])
        });
        let error = start(odd(["--pids", &pids]).wait_for(Tcp::addr(&addr)));
        (error, stranger.join().unwrap().pid())
    });
    let user = user();
    reads(
        &error,
        &format!(
            "{ODD} --pids {pids}: {addr} is answered by mirakuru-odd-service (pid {pid}), which is not this service\n  \
               holder:     started [time] ago by user {user}\n  \
               timeline:   spawned\n  \
               output:     none\n  \
               hint:       it has what this service was to have: end it with `kill {pid}`, or let a free port be chosen with `{{port}}`"
        ),
    );
}

/// The service does notice, and ends: the report names who has the port all the same.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see whose a socket is"
)]
fn the_bind_fails_because_of_a_stranger() {
    let port = fixed_port();
    let addr = format!("127.0.0.1:{port}");
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let taken = AtomicBool::new(false);
    let taken = &taken;
    thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            assert!(wait_until(|| !common::numbers(&pids).is_empty(), LONG));
            let stranger = Stranger::start(&["--listen", &addr]);
            taken.store(true, Ordering::SeqCst);
            stranger
        });
        // It takes its time to bind; the condition is one that does not look at the port.
        let recipe = odd(["--pids", &pids, "--delay", "1500", "--listen", &addr])
            .wait_for(Banner::matching("never").and(Tcp::addr(&addr)));
        let error = start(recipe);
        assert!(
            taken.load(Ordering::SeqCst),
            "too slow a machine for this test: {error}"
        );
        let pid = stranger.join().unwrap().pid();
        let text = report(&error);
        assert!(
            text.lines()
                .next()
                .unwrap()
                .contains(": exited with status 1 after [time], before it"),
            "{text}"
        );
        assert!(
            text.contains(&format!("\n  hint:       port {port} is held by mirakuru-odd-service (pid {pid}), started [time] ago by user ")),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                "end it with `kill {pid}`, or let a free port be chosen with `{{port}}`"
            )),
            "{text}"
        );
    });
}

/// The bar: whenever a stranger takes the port between our look and the service's bind, the start tells the truth.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see whose a socket is"
)]
fn two_hundred_times_the_truth_about_a_stranger_in_the_window() {
    let me = std::process::id();
    let (mut ready, mut refused, mut ended, mut strange) = (0, 0, 0, 0);
    for n in 0..200_u64 {
        let port = fixed_port();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let text = addr.to_string();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let over = &over;
            let stranger = scope.spawn(move || {
                // All over the window: before the look, before the fork, before the bind, after it.
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
                    // The service itself answers, and nobody else.
                    assert_eq!(common::who_answers(addr), service.pid());
                    ready += 1;
                }
                Err(error) => {
                    let report = error.to_string();
                    assert!(
                        report.contains(&format!("(pid {me})")),
                        "the stranger is not named:\n{report}"
                    );
                    match error {
                        Error::AlreadyRunning { .. } => refused += 1,
                        Error::Exited { .. } => ended += 1,
                        Error::WrongListener { .. } => strange += 1,
                        _ => panic!("{report}"),
                    }
                }
            }
            over.store(true, Ordering::SeqCst);
            drop(started);
            stranger.join().unwrap();
        });
    }
    println!("{ready} ready, {refused} refused, {ended} ended, {strange} with a stranger");
    assert_eq!(ready + refused + ended + strange, 200);
    assert!(refused < 200 && ready < 200, "the window was never hit");
}

/// Both listen, by SO_REUSEPORT, and each gets a part of the connections: that is no service for a test.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see whose a socket is"
)]
fn a_port_that_is_shared_with_a_stranger() {
    for n in 0..10_u64 {
        let port = fixed_port();
        let addr = format!("127.0.0.1:{port}");
        let scratch = Scratch::new();
        let pids = scratch.file("pids");
        thread::scope(|scope| {
            let stranger = scope.spawn(|| {
                assert!(wait_until(|| !common::numbers(&pids).is_empty(), LONG));
                Stranger::start(&["--reuse-port", "--listen", &addr])
            });
            // It listens at once, and is held ready only after the stranger is there, at the latest.
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
            let pid = stranger.join().unwrap().pid();
            let text = report(&error);
            assert!(matches!(error, Error::WrongListener { .. }), "{text}");
            assert!(text.starts_with(&format!("{ODD} --pids {pids}")), "{text}");
            assert!(text.contains(&format!("(pid {pid})")), "{text}");
            assert!(text.contains("both listen there (SO_REUSEPORT)"), "{text}");
        });
    }
}

/// Conditions of these tests alone.
struct Check;

impl Check {
    /// Two sockets listen on this address.
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

/// The name of this user, or `uid 1000`, as reports have it.
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

// ---- secrets ------------------------------------------------------------------------------------------------------------

#[test]
#[ignore = "a part of another test"]
fn knows_a_secret() {
    if victim_dir().is_none() {
        return;
    }
    // The recipe's own variables, one of the test's environment, and URLs; in the command, in conditions, in their probes.
    let recipe = odd([
        "--line",
        "{env:MK_SECRET}x",
        "--line",
        "redis://me:hunter2@localhost/0?token=hunter2",
    ])
    .args(["--line", "hunter2"])
    .env("MK_PASSWORD", "hunter2")
    .env("MK_OTHER", "correct-horse")
    .fail_on("no such line");
    let texts = [
        start(
            recipe
                .clone()
                .wait_for(Exec::succeeds("test -e /nowhere/{env:MK_SECRET}"))
                .timeout(SHORT),
        )
        .to_string(),
        start(
            recipe
                .clone()
                .wait_for(Exec::succeeds("sh -c 'echo {env:MK_SECRET}; exit 1'"))
                .timeout(SHORT),
        )
        .to_string(),
        start(
            recipe
                .clone()
                .wait_for(UnixSocket::path("{dir}/{env:MK_SECRET}"))
                .timeout(SHORT),
        )
        .to_string(),
        start(recipe.clone().wait_for(Tcp::addr("{env:MK_SECRET}:80"))).to_string(),
        start(
            recipe
                .wait_for(Http::get("http://me:hunter2@127.0.0.1:{port}/?q={env:MK_SECRET}"))
                .timeout(SHORT),
        )
        .to_string(),
        start(Executor::builder("/nowhere/{env:MK_SECRET}")).to_string(),
        start(Executor::builder("sleep 1 redis://me:hunter2@x {nonsense}")).to_string(),
        start(Executor::builder("sleep 1").current_dir("/nowhere/{env:MK_SECRET}")).to_string(),
        format!(
            "{:?}",
            Executor::builder("sleep {env:MK_SECRET}").build().unwrap()
        ),
    ];
    for text in texts {
        println!("{text}\n");
    }
}

#[test]
fn no_report_shows_a_secret() {
    let scratch = Scratch::new();
    let output = victim("knows_a_secret", scratch.path())
        .env("MK_SECRET", "swordfish")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let own: Vec<&str> = text
        .lines()
        // What the service prints is shown as it is; the helper complains of an option that it does not know.
        .filter(|line| !line.starts_with("    | "))
        .collect();
    for secret in ["swordfish", "hunter2", "correct-horse"] {
        let told: Vec<_> = own.iter().filter(|line| line.contains(secret)).collect();
        assert!(told.is_empty(), "{told:#?}");
    }
    for shown in [
        "--line {env:MK_SECRET}x",
        "redis://me:***@localhost/0?token=***",
        "--line ***:",
        "\n  last probe: `sh -c 'echo {env:MK_SECRET}; exit 1'` exited with status 1: {env:MK_SECRET}\n",
        "/d/{env:MK_SECRET}\n",
        "failed to execute `/nowhere/{env:MK_SECRET}`",
        "working directory `/nowhere/{env:MK_SECRET}`",
        "sleep 1 redis://me:***@x {nonsense}",
    ] {
        assert!(text.contains(shown), "no `{shown}` in\n{text}");
    }
}

// ---- the log ------------------------------------------------------------------------------------------------------------

#[test]
#[ignore = "a part of another test"]
fn fills_the_disk() {
    if victim_dir().is_none() {
        return;
    }
    let recipe =
        odd(["--flood-before", "2000000", "--exit-before-ready", "3"]).wait_for(Banner::matching("never"));
    println!("{}", start(recipe));
}

/// With a file system of its own that is full, where this is root; and with a limit for files, which everybody may set.
#[test]
fn a_full_disk_loses_output_and_says_so() {
    let scratch = Scratch::new();
    let run = |script: &str| -> Output {
        let victim = victim("fills_the_disk", scratch.path());
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(victim.get_program())
            .args(victim.get_args());
        for (key, value) in victim.get_envs() {
            command.env(key, value.unwrap());
        }
        command.output().unwrap()
    };
    let mut runs = vec![run("ulimit -f 200 && exec \"$@\"")];
    let mounted =
        "exec unshare -m sh -c 'mount -t tmpfs -o size=400k none \"$TMPDIR\" && exec \"$@\"' sh \"$@\"";
    if can_mount() {
        runs.push(run(mounted));
    }
    for output in runs {
        let text = normal(&String::from_utf8_lossy(&output.stdout));
        println!("{text}");
        assert!(
            output.status.success(),
            "{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            text.contains(": exited with status 3 after [time], before it printed"),
            "{text}"
        );
        let lost = text.lines().find_map(|line| line.strip_prefix("  lost:       "));
        let lost = lost.unwrap_or_else(|| panic!("nothing about what was lost in\n{text}"));
        assert!(
            lost.ends_with(
                " MB of its output could not be written to the log, and are missing: is the disk full?"
            ),
            "{text}"
        );
    }
}

/// Whether this process may mount a file system where nobody else sees it. Says aloud when not.
fn can_mount() -> bool {
    if !is_root() {
        skip_without_root();
        return false;
    }
    // In a chroot whose root is no mount point, root may not either.
    let unshare = Command::new("unshare").args(["-m", "true"]).output();
    let may = unshare.is_ok_and(|output| output.status.success());
    if !may {
        say("*** SKIPPED: a disk that is full. No file system can be mounted here (`unshare -m` fails). ***");
    }
    may
}

#[test]
#[ignore = "a part of another test"]
fn has_no_room_at_all() {
    if victim_dir().is_none() {
        return;
    }
    println!("{}", start(Executor::builder("sleep 60")));
}

#[test]
fn a_disk_that_is_full_from_the_beginning() {
    if !can_mount() {
        return;
    }
    let scratch = Scratch::new();
    let victim = victim("has_no_room_at_all", scratch.path());
    let fill = "mount -t tmpfs -o size=16k,nr_inodes=4 none \"$TMPDIR\" && touch \"$TMPDIR/a\" \"$TMPDIR/b\" \"$TMPDIR/c\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", fill, "sh"])
        .arg(victim.get_program())
        .args(victim.get_args());
    for (key, value) in victim.get_envs() {
        command.env(key, value.unwrap());
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.contains("failed to use the directory `") && text.contains(": no space left on device"),
        "{text}"
    );
    assert!(
        text.contains("\n  hint:       free some space (`df -h` shows where it is gone), or set TMPDIR"),
        "{text}"
    );
}

// ---- inherited sockets --------------------------------------------------------------------------------------------------

#[test]
fn a_service_inherits_sockets_that_listen_already() {
    // Ready long before it serves: who connects meanwhile waits, and is served.
    let mut service = odd(["--delay", "300", "--inherited", "--ready-line", "serving"])
        .name("web server")
        .listen("127.0.0.1:{port}")
        .listen_as("admin", "127.0.0.1:{port:admin}")
        .start()
        .unwrap();
    let addr = service.addr();
    assert_eq!(addr.port(), service.port());
    assert_eq!(common::who_answers(addr), service.pid());
    let admin = SocketAddr::from(([127, 0, 0, 1], service.port_named("admin")));
    assert_eq!(common::who_answers(admin), service.pid());
    assert!(
        service
            .logs()
            .stdout()
            .contains("inherited: 2 web_server:admin\n"),
        "{}",
        service.logs()
    );
    // Stopped means stopped, and a restart has the same ports.
    service
        .stopped(|| assert!(TcpStream::connect(addr).is_err(), "somebody still listens"))
        .unwrap();
    assert_eq!(service.addr(), addr);
    assert_eq!(common::who_answers(addr), service.pid());
    // The sockets are the service's alone: they go when it goes, be it killed.
    service.kill().unwrap();
    assert!(TcpStream::connect(addr).is_err(), "somebody still listens");
}

#[test]
fn inherited_sockets_are_in_order_whatever_is_open() {
    // So many that the places where they go are taken by others of them; and a program that opens nothing itself.
    let mut recipe = Executor::builder("sleep 60");
    for n in 0..20 {
        recipe = recipe.listen_as(format!("n{n}"), format!("127.0.0.1:{{port:n{n}}}"));
    }
    let service = recipe.start().unwrap();
    for n in 0..20 {
        let link = fs::read_link(format!("/proc/{}/fd/{}", service.pid(), 3 + n)).unwrap();
        let inode = link
            .to_str()
            .unwrap()
            .trim_matches(|c: char| !c.is_ascii_digit())
            .to_owned();
        let port = service.port_named(&format!("n{n}"));
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let line = table
            .lines()
            .find(|line| line.split_whitespace().nth(9) == Some(&inode))
            .unwrap();
        assert!(
            line.contains(&format!(":{port:04X} ")),
            "descriptor {} is not of port {port}: {line}",
            3 + n
        );
    }
    let fds = fs::read_dir(format!("/proc/{}/fd", service.pid()))
        .unwrap()
        .flatten();
    let others: Vec<_> = fds
        .map(|fd| (fd.file_name(), fs::read_link(fd.path()).unwrap_or_default()))
        .filter(|(fd, _)| fd.to_str().unwrap().parse::<u32>().unwrap() >= 23)
        .collect();
    assert!(others.is_empty(), "and nothing else: {others:?}");
    for supervisor in common::supervisors(service.pid()) {
        let sockets = fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap().flatten();
        let count = sockets.filter(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        });
        assert!(count.count() <= 1, "a supervisor keeps an inherited socket");
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see whose a socket is"
)]
fn an_inherited_fixed_port_is_checked_and_tcp_knows_its_owner() {
    let port = fixed_port();
    let addr = format!("127.0.0.1:{port}");
    let recipe = odd(["--inherited"]).listen(&addr).wait_for(Tcp::addr(&addr));
    let service = recipe.clone().start().unwrap();
    assert_eq!(common::who_answers(&addr), service.pid());
    let error = thread::scope(|scope| scope.spawn(|| start(recipe)).join().unwrap());
    let text = report(&error);
    assert!(
        text.contains(&format!(
            ": port {port} is already in use by mirakuru-odd-service (pid {})\n",
            service.pid()
        )),
        "{text}"
    );
}

// ---- a test that fails --------------------------------------------------------------------------------------------------

static SHARED: Shared<SimpleExecutor> = Shared::new(|| {
    Executor::builder(
        "echo started; while read line; do echo \"heard $line\"; done < {dir}/in; exec sleep 60",
    )
    .shell(true)
    .build()
    .and_then(|mut service| {
        let fifo = service.dir().join("in");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        service.start()?;
        service.wait_until(Banner::matching("started"), LONG)?;
        Ok(service)
    })
});

/// Has the shared service print a line.
fn hears(line: &str) {
    let service = Shared::get(&SHARED);
    use std::sync::Mutex;
    static PIPE: Mutex<Option<fs::File>> = Mutex::new(None);
    let mut pipe = PIPE.lock().unwrap_or_else(|e| e.into_inner());
    let pipe = pipe.get_or_insert_with(|| {
        fs::OpenOptions::new()
            .write(true)
            .open(service.dir().join("in"))
            .unwrap()
    });
    writeln!(pipe, "{line}").unwrap();
    let heard = format!("heard {line}\n");
    assert!(wait_until(|| service.logs().stdout().contains(&heard), LONG));
}

/// Tests that fail, run by the tests below in processes of their own.
mod failing {
    use super::*;

    fn service() -> SimpleExecutor {
        let mut service = odd(["--line", "the last words", "--ready-line", "up"])
            .start()
            .unwrap();
        service.wait_until(Banner::matching("^up$"), LONG).unwrap();
        service
    }

    #[test]
    #[ignore = "fails, for another test"]
    fn a_panic() {
        let _service = service();
        panic!("as it should");
    }

    #[mirakuru::fixture(banner = "^up$", cmd = [ODD, "--line", "the last words", "--ready-line", "up"])]
    #[test]
    #[ignore = "fails, for another test"]
    fn an_err(_service: &mirakuru::OutputExecutor) -> Result<(), String> {
        Err("as it should".to_owned())
    }

    #[mirakuru::fixture(banner = "^up$", cmd = [ODD, "--line", "the last words", "--ready-line", "up"])]
    #[tokio::test]
    #[ignore = "fails, for another test"]
    async fn an_async_panic(_service: mirakuru::OutputExecutor) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        panic!("as it should");
    }

    #[mirakuru::fixture(banner = "^up$", cmd = [ODD, "--line", "the last words", "--ready-line", "up"])]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "fails, for another test"]
    async fn an_async_panic_beside_workers(_service: &mirakuru::OutputExecutor) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        panic!("as it should");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "fails, for another test"]
    async fn a_panic_in_a_task() {
        let task = tokio::spawn(async {
            let _service = service();
            tokio::time::sleep(Duration::from_millis(10)).await;
            panic!("as it should");
        });
        task.await.unwrap();
    }

    #[test]
    #[ignore = "fails, for another test"]
    fn shared_1_passes() {
        hears("from the one that passes");
    }

    #[test]
    #[ignore = "fails, for another test"]
    fn shared_2_fails() {
        hears("from the one that fails");
        panic!("as it should");
    }

    #[test]
    #[ignore = "fails, for another test"]
    fn shared_3_does_not_use_it() {
        panic!("as it should");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "fails, for another test"]
    async fn shared_4_fails_in_a_task() {
        let task = tokio::spawn(async {
            hears("from the task");
            panic!("as it should");
        });
        task.await.unwrap();
    }

    #[mirakuru::fixture(cmd = "sleep 60")]
    #[test]
    #[ignore = "fails, for another test"]
    fn shared_5_returns_an_err() -> Result<(), String> {
        hears("from the one that returns an error");
        Err("as it should".to_owned())
    }
}

/// Runs failing tests as a person would, with the harness's capture, one after the other: what it printed for each.
fn run_failing(filter: &[&str]) -> (String, String) {
    let scratch = Scratch::new();
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(filter)
        .args(["--ignored", "--test-threads=1"])
        .env("TMPDIR", scratch.path())
        .env_remove("RUST_BACKTRACE");
    let output = command.output().unwrap();
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// The section of one test in the harness's output.
fn section<'a>(output: &'a str, test: &str) -> &'a str {
    let begin = format!("---- {test} stdout ----");
    let from = output
        .find(&begin)
        .unwrap_or_else(|| panic!("no section of {test} in\n{output}"));
    let rest = &output[from + begin.len()..];
    let end = rest
        .find("\n---- ")
        .or_else(|| rest.find("\nfailures:"))
        .unwrap_or(rest.len());
    &rest[..end]
}

#[test]
fn a_failing_test_shows_the_end_of_its_services_log() {
    for test in [
        "a_panic",
        "an_err",
        "an_async_panic",
        "an_async_panic_beside_workers",
        "a_panic_in_a_task",
    ] {
        let name = format!("failing::{test}");
        let (stdout, stderr) = run_failing(&["--exact", &name]);
        let text = normal(section(&stdout, &name));
        println!("{text}");
        let expected = format!(
            "what `{ODD} --line 'the last words' --ready-line up` printed:\n  \
               output:     2 lines, in [log]\n    \
                 | the last words\n    \
                 | up"
        );
        assert!(text.contains(&expected), "{test}:\n{text}");
        assert_eq!(
            text.matches("the last words' --ready-line up` printed").count(),
            1,
            "{test}:\n{text}"
        );
        assert!(!stderr.contains("the last words"), "past the capture: {stderr}");
        // The file is there to be read.
        let path = section(&stdout, &name)
            .split("lines, in ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_owned();
        assert!(path.ends_with("/log"), "{path}");
    }
}

#[test]
fn a_failing_test_shows_what_a_shared_service_printed_meanwhile() {
    let (stdout, _) = run_failing(&["failing::shared_"]);
    let printed = "` printed during this test:\n";
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix("    | ").map(str::to_owned))
            .collect()
    };
    let fails = section(&stdout, "failing::shared_2_fails");
    println!("{fails}");
    assert!(fails.contains(printed), "{stdout}");
    assert_eq!(lines(fails), ["heard from the one that fails"]);
    assert!(
        !section(&stdout, "failing::shared_3_does_not_use_it").contains("printed"),
        "{stdout}"
    );
    let task = section(&stdout, "failing::shared_4_fails_in_a_task");
    assert_eq!(lines(task), ["heard from the task"], "{stdout}");
    let err = section(&stdout, "failing::shared_5_returns_an_err");
    assert_eq!(
        lines(err),
        ["heard from the one that returns an error"],
        "{stdout}"
    );
    assert!(stdout.contains("shared_1_passes ... ok"), "{stdout}");
}

/// Under nextest each test is a process of its own, and what it prints is captured from outside.
#[test]
fn nextest_shows_it_too() {
    let scratch = Scratch::new();
    for test in ["failing::a_panic", "failing::shared_2_fails"] {
        // As nextest runs a test.
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--ignored"])
            .env("NEXTEST", "1")
            .env("TMPDIR", scratch.path())
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.status.success());
        assert!(
            text.contains("    | the last words") || text.contains("    | heard from the one that fails"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "no colours in a pipe: {text}");
    }
}

/// A `Shared` costs nothing to use: the bar is 1 µs, in an optimised build; here the bound is a generous one.
#[test]
fn the_use_of_a_shared_service_costs_next_to_nothing() {
    let _ = Shared::get(&SHARED);
    let begin = Instant::now();
    for _ in 0..100_000 {
        let _ = std::hint::black_box(Shared::get(&SHARED));
    }
    let each = begin.elapsed() / 100_000;
    println!("{each:?} a use");
    assert!(each < Duration::from_micros(20), "{each:?}");
}

// ---- progress -----------------------------------------------------------------------------------------------------------

#[test]
#[ignore = "a part of another test"]
fn takes_long() {
    if victim_dir().is_none() {
        return;
    }
    let mut service = odd([
        "--line",
        "loading the data",
        "--delay",
        "3500",
        "--ready-line",
        "up",
    ])
    .name("slow")
    .wait_for(Banner::matching("^up$"))
    .start()
    .unwrap();
    service.stop().unwrap();
}

#[test]
fn a_long_start_says_so() {
    let scratch = Scratch::new();
    // Captured by the harness: what is said is said all the same.
    let run = |quiet: &str| {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "takes_long", "--ignored"])
            .env("MIRAKURU_TEST_VICTIM", scratch.path())
            .env("MIRAKURU_QUIET", quiet);
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (told, quiet) = thread::scope(|scope| {
        let told = scope.spawn(|| run("0"));
        (run("1"), told.join().unwrap())
    });
    let (quiet, told) = (told, quiet);
    println!("{told}");
    let lines: Vec<&str> = told
        .lines()
        .filter(|line| line.starts_with("mirakuru: "))
        .collect();
    let [line] = lines.as_slice() else {
        panic!("once, and then rarely: {told}");
    };
    assert!(line.starts_with("mirakuru: slow is not ready after "), "{line}");
    assert!(
        line.ends_with(" s; awaited: it printed a line that matches `^up$`; its last line: loading the data"),
        "{line}"
    );
    assert!(!quiet.contains("mirakuru: "), "{quiet}");
}

/// On a terminal it is one line, which is written over, and gone at the end.
#[test]
fn on_a_terminal_progress_is_one_line() {
    let Some(script) = require("script") else {
        return;
    };
    let scratch = Scratch::new();
    let exe = env::current_exe().unwrap();
    let output = Command::new(script)
        .args([
            "-qec",
            &format!("{} --exact takes_long --ignored", exe.display()),
            "/dev/null",
        ])
        .env("MIRAKURU_TEST_VICTIM", scratch.path())
        .env("TERM", "xterm")
        .env_remove("MIRAKURU_QUIET")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let drawn: Vec<&str> = text.split("\r\u{1b}[2K").collect();
    assert!(drawn.len() >= 3, "drawn, and taken away: {text:?}");
    assert!(
        drawn[1].starts_with("mirakuru: slow is not ready after 2 s; awaited: "),
        "{text:?}"
    );
    assert!(
        drawn[1].chars().count() < 200 && !drawn[1].contains('\n'),
        "{text:?}"
    );
    assert!(
        !drawn[drawn.len() - 1].starts_with("mirakuru: "),
        "taken away: {text:?}"
    );
}

#[test]
#[ignore = "a part of another test"]
fn waits_for_its_turn() {
    let Some(dir) = victim_dir() else {
        return;
    };
    let addr = fs::read_to_string(dir.join("addr")).unwrap();
    let mut service = odd(["--listen", &addr])
        .name("second")
        .queue(true)
        .wait_for(Tcp::addr(&addr))
        .start()
        .unwrap();
    service.stop().unwrap();
}

#[test]
fn a_long_wait_for_a_turn_says_so() {
    let scratch = Scratch::new();
    let addr = format!("127.0.0.1:{}", fixed_port());
    fs::write(scratch.file("addr"), &addr).unwrap();
    let first = odd(["--listen", &addr])
        .name("first")
        .wait_for(Tcp::addr(&addr))
        .start()
        .unwrap();
    let mut other = victim("waits_for_its_turn", scratch.path())
        .env_remove("MIRAKURU_QUIET")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let line = lines
        .find(|line| line.starts_with("mirakuru: "))
        .expect("it says that it waits");
    drop(first);
    assert!(other.wait().unwrap().success());
    let port = addr.rsplit(':').next().unwrap();
    assert!(
        line.starts_with(&format!(
            "mirakuru: second has been waiting for its turn at port {port} for "
        )),
        "{line}"
    );
    assert!(
        line.contains("; it is with first of test process diagnostics-"),
        "{line}"
    );
}

// ---- timeouts -----------------------------------------------------------------------------------------------------------

#[test]
#[ignore = "a part of another test"]
fn times_out_by_scale() {
    if victim_dir().is_none() {
        return;
    }
    let begin = Instant::now();
    println!(
        "{}",
        start(
            odd([])
                .wait_for(Banner::matching("never"))
                .timeout(Duration::from_millis(100))
        )
    );
    println!("\nwaited {}", begin.elapsed().as_millis());
    // The grace is stretched as well: this needs longer than the grace as it is given.
    let mut service = odd(["--ready-line", "up", "--stop-delay", "600", "--exit-on-term", "0"])
        .wait_for(Banner::matching("^up$"))
        .stop_timeout(Duration::from_millis(150))
        .start()
        .unwrap();
    println!("\nstop {:?}", service.stop());
}

#[test]
fn timeouts_are_stretched_for_slow_machines() {
    let scratch = Scratch::new();
    let run = |scale: &str| {
        let output = victim("times_out_by_scale", scratch.path())
            .env("MIRAKURU_TIMEOUT_SCALE", scale)
            .output()
            .unwrap();
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let waited = text
            .lines()
            .find_map(|line| line.strip_prefix("waited ")?.parse::<u64>().ok())
            .unwrap();
        let stop = text
            .lines()
            .find(|line| line.starts_with("stop "))
            .unwrap()
            .to_owned();
        (waited, stop, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (waited, stop, _) = run("40");
    assert!(waited >= 4000, "{waited}");
    assert_eq!(stop, "stop Ok(())");
    let (waited, stop, stderr) = run("quick");
    assert!(waited >= 100, "{waited}");
    assert_ne!(stop, "stop Ok(())");
    assert!(
        stderr.contains("mirakuru: MIRAKURU_TIMEOUT_SCALE is `quick`, which is no positive number: timeouts stay as they are"),
        "{stderr}"
    );
}

// ---- colours ------------------------------------------------------------------------------------------------------------

#[test]
fn colours_are_for_terminals() {
    let Some(script) = require("script") else {
        return;
    };
    let scratch = Scratch::new();
    let exe = env::current_exe().unwrap();
    let run = |no_color: Option<&str>| {
        let mut command = Command::new(&script);
        command
            .args([
                "-qec",
                &format!("{} --exact failing::a_panic --ignored", exe.display()),
                "/dev/null",
            ])
            .env("TMPDIR", scratch.path())
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null());
        if let Some(value) = no_color {
            command.env("NO_COLOR", value);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("the last words"), "{text}");
        text.contains("\u{1b}[1mwhat `")
    };
    assert!(run(None) && run(Some("")));
    assert!(!run(Some("1")));
}

// ---- PostgreSQL ---------------------------------------------------------------------------------------------------------

/// A connection that comes to nothing is a line in PostgreSQL's log. The look at the port makes none.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot ask who listens without making a connection"
)]
fn postgresql_sees_no_connection_of_a_probe() {
    let Some(bin) =
        require("initdb").and_then(|initdb| Some(initdb.canonicalize().ok()?.parent()?.to_owned()))
    else {
        return;
    };
    let scratch = Scratch::new();
    let data = scratch.file("data");
    let owner = is_root().then(|| postgres_user().expect("the user of the package"));
    let as_owner = |command: &mut Command| {
        if let Some((uid, gid)) = owner {
            command.uid(uid).gid(gid);
        }
    };
    if let Some((uid, gid)) = owner {
        chown(scratch.path(), Some(uid), Some(gid)).unwrap();
    }
    let mut initdb = Command::new(bin.join("initdb"));
    initdb
        .args(["--no-sync", "--auth=trust", "--username=postgres", "-D", &data])
        .current_dir("/");
    as_owner(&mut initdb);
    let output = initdb.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut recipe = Executor::builder([bin.join("postgres")])
        .args(["-D", &data, "-p", "{port}", "-F", "-k"])
        .arg(scratch.path())
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "log_connections=on"])
        .current_dir("/")
        .stop_signal(mirakuru::Signal::Int)
        .timeout(LONG);
    if let Some((uid, gid)) = owner {
        recipe = recipe.uid(uid).gid(gid);
    }
    let mut postgres = recipe.wait_for(Tcp::addr("127.0.0.1:{port}")).start().unwrap();
    // Some more looks, at a server that is up for certain.
    for _ in 0..20 {
        postgres.wait_until(Tcp::addr("127.0.0.1:{port}"), LONG).unwrap();
    }
    postgres
        .wait_until(Banner::matching("ready to accept connections"), LONG)
        .unwrap();
    let connected =
        |text: &str| text.contains("connection received") || text.contains("incomplete startup packet");
    assert!(!connected(&postgres.logs().to_string()), "{}", postgres.logs());
    // And it would have been seen: this is one.
    drop(TcpStream::connect(postgres.addr()).unwrap());
    assert!(
        wait_until(|| connected(&postgres.logs().to_string()), LONG),
        "{}",
        postgres.logs()
    );
    postgres.stop().unwrap();
}

fn postgres_user() -> Option<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

// ---- what a service says itself -----------------------------------------------------------------------------------------

#[test]
fn the_status_that_a_service_reports_is_shown() {
    let script = "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); \
                  s.sendto(b'STATUS=replaying the log', os.environ['NOTIFY_SOCKET']); time.sleep(60)";
    let Some(python) = require("python3") else {
        return;
    };
    let recipe = Executor::builder([python])
        .args(["-c", script])
        .wait_for(mirakuru::SdNotify::new())
        .timeout(Duration::from_secs(5));
    let text = report(&start(recipe));
    assert!(
        text.contains(": timed out after [time], before it sent READY=1 to $NOTIFY_SOCKET\n"),
        "{text}"
    );
    assert!(
        text.contains("\n  last probe: its status is \"replaying the log\"\n"),
        "{text}"
    );
}

/// The service chooses its port, and tells it: no race at all.
#[test]
fn a_banner_tells_the_port() {
    let service = odd(["--listen", "127.0.0.1:0"])
        .wait_for(Banner::matching(r"listening on .*:(?<port>\d+)"))
        .start()
        .unwrap();
    let mut answer = String::new();
    let mut stream = TcpStream::connect(service.addr()).unwrap();
    stream.write_all(b"PING\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.trim_end(), format!("PONG {}", service.pid()));
    assert!(ask(service.addr(), "PING").is_ok());
    let _: PathBuf = Path::new("/").join("x");
}
