//! Compares the report of each kind of failure with the text that a person should read.
//!
//! `cargo test --test it diagnostics:: -- --nocapture --test-threads=1` prints all reports.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::{LONG, ODD, Scratch, ask, error_of, is_root, odd, require};
use crate::reports::{reads, report, start, timed_out};
use mirakuru::{Banner, Error, Executor, Http, PidFile, Tcp, UnixSocket};

// ---- the program cannot be executed -------------------------------------------------------------

#[test]
fn the_program_is_missing() {
    let scratch = Scratch::new();
    let path = scratch.file("redis-serve");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let error = start(Executor::builder("rediss-server --port 6379").env("PATH", scratch.path()));
    reads(
        &error,
        "failed to execute `rediss-server`: no such file or directory\n  command:    rediss-server --port \
            6379\n  \
         hint:       no directory on PATH contains `rediss-server`; did you mean `redis-serve`?",
    );
    // For a well-known server, the hint names the package. If the server is installed outside PATH,
    // the hint names its path.
    let error = start(Executor::builder("beanstalkd").env("PATH", "/nowhere"));
    let text = report(&error);
    assert!(
        text.contains(": install it with `apt-get install beanstalkd` (Debian)")
            || text.contains("but it is installed: use `/"),
        "{text}"
    );
    if require("initdb").is_some() {
        let error = start(Executor::builder("initdb -D {dir}/data").env("PATH", "/nowhere"));
        let text = report(&error);
        assert!(
            text.contains(
                "no directory on PATH contains `initdb`, but it is installed: use `/usr/lib/postgresql/"
            ),
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
            "failed to execute `{file}`: permission denied\n  hint:       it is not executable: run `chmod \
                +x {file}`"
        ),
    );
}

#[test]
fn the_directory_is_wrong() {
    reads(
        &start(Executor::builder("sleep 60").current_dir("/no/such/place")),
        "failed to change to the working directory `/no/such/place`: no such file or directory\n  \
            command:    sleep 60\n  \
         hint:       create the directory before the service starts, or use \"{dir}\", which \
         mirakuru creates",
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

// ---- the program ends ---------------------------------------------------------------------------

#[test]
fn a_bad_flag() {
    let error = start(odd(["--prot", "6379"]).wait_for(Banner::matching("never")));
    reads(
        &error,
        &format!(
            "{ODD} --prot 6379: exited with status 2 after [time], before it printed a line that matches \
                `never`\n  \
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
            "it exited with status 0 and left no process running: if it goes into the background, use its \
             option to stay in the foreground; if it ends because its input (/dev/null) is empty, keep \
             the input open with `.stdin(Stdio::piped())`"
        }
        true => {
            "it exited with status 0, and on this system a program that goes into the background is lost \
             and may still run: use its option to stay in the foreground"
        }
    };
    reads(
        &error,
        &format!(
            "{ODD} --line bye --exit-before-ready 0: exited with status 0 after [time], before it accepted \
                connections on 127.0.0.1:{port}\n\
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
            "{ODD} --exit-before-ready 1 --delay 50: exited with status 1 after [time], before it accepted \
                connections on 127.0.0.1:"
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
        ("9", "SIGKILL", Some("because memory ran out")),
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
        text.contains("  hint:       it refuses to run as root: run it as another user with `.uid(..)`"),
        "{text}"
    );
}

#[test]
fn a_library_is_missing() {
    // A copy of the helper service needs a library that does not exist.
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
                 | {file}: error while loading shared libraries: libgcc_s.so.7: cannot open shared object \
                 file: No such file or directory\n  \
               hint:       the library `libgcc_s.so.7` is not installed or not found: install the package \
                   that `apt-file search libgcc_s.so.7` names, or add the library's directory to \
                   LD_LIBRARY_PATH (`ldd` lists the libraries that the program needs)"
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
            "{ODD} --ready-line up --exit-after 30:7: exited with status 7 when it was stopped, expected \
                status 0, status 143 or death by SIGTERM\n  \
               timeline:   spawned, first output after [time], exited with status 7 after [time]\n  \
               output:     1 line, in [log]\n    \
                 | up\n  \
               hint:       it had ended by itself before it was asked to: find the reason in its output"
        ),
    );
}

#[test]
fn a_status_that_the_stop_signal_causes() {
    let mut service = Executor::builder("trap 'exit 1' TERM; echo up; while :; do sleep 0.01; done")
        .shell(true)
        .wait_for(Banner::matching("^up$"))
        .start()
        .unwrap();
    let error = error_of(service.stop()).to_string();
    let hint = "hint:       if it always ends like this after SIGTERM, accept that with `.expected_exit(1)`, \
                or set another `.stop_signal(..)`";
    assert!(error.ends_with(hint), "{error}");
}

#[test]
fn a_line_that_means_failure() {
    let recipe = odd(["--line", "FATAL: no licence"])
        .fail_on("^FATAL")
        .wait_for(Banner::matching("never"));
    reads(
        &start(recipe),
        &format!(
            "{ODD} --line 'FATAL: no licence': start-up failed after [time]: it printed `FATAL: no licence`, \
                which matches `^FATAL`\n  \
               timeline:   spawned, first output after [time]\n  \
               output:     1 line, in [log]\n    \
                 | FATAL: no licence"
        ),
    );
}

// ---- it does not become ready -------------------------------------------------------------------

#[test]
fn it_hangs() {
    let recipe = odd(["--line", "still thinking"]).wait_for(Tcp::addr("127.0.0.1:{port}"));
    let text = report(&timed_out(&recipe, "still thinking"));
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
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn it_listens_elsewhere() {
    let recipe = odd([
        "--listen",
        "127.0.0.1:{port:its}",
        "--ready-line",
        "{port:its} {port}",
    ])
    .wait_for(Tcp::addr("127.0.0.1:{port}"));
    let text = report(&timed_out(&recipe, " "));
    let ports = text
        .lines()
        .find_map(|line| line.strip_prefix("    | ")?.split_once(' '));
    let (its, ours) = ports.expect("its line");
    assert!(
        text.ends_with(&format!(
            "  hint:       it listens on 127.0.0.1:{its}, and not on 127.0.0.1:{ours}: \
             tell it the port in its command"
        )),
        "{text}"
    );
}

#[test]
fn the_wrong_http_status() {
    let recipe = odd(["--http", "127.0.0.1:{port}", "--http-status", "503"])
        .wait_for(Http::get("http://127.0.0.1:{port}/health").status(204));
    let text = report(&timed_out(&recipe, "-> 503"));
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

#[test]
fn it_accepts_and_never_answers() {
    let recipe = odd(["--accept-never-answer", "127.0.0.1:{port}", "--ready-line", "up"])
        .wait_for(Http::get("http://127.0.0.1:{port}/"));
    let text = report(&timed_out(&recipe, "up"));
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
    let recipe = odd(["--line", "one", "--line-err", "two"]).wait_for(Banner::matching(r"ready \d").times(2));
    reads(
        &timed_out(&recipe, "two"),
        &format!(
            "{ODD} --line one --line-err two: timed out after [time], before it printed 2 lines that match \
                `ready \\d`\n  \
               timeline:   spawned, first output after [time]\n  \
               output:     2 lines, in [log]\n    \
                 | one\n    \
                 | two"
        ),
    );
}

#[test]
fn the_first_and_the_last_lines_of_a_long_output_are_shown() {
    let script = "for i in $(seq 1 500); do echo line $i; done; exit 3";
    let error = start(
        Executor::builder(script)
            .shell(true)
            .wait_for(Banner::matching("never")),
    );
    let text = report(&error);
    assert!(
        text.contains("\n  output:     the first 5 and the last 20 lines, in [log]\n    | line 1\n"),
        "{text}"
    );
    assert!(
        text.contains("\n    | line 5\n    … 475 lines are not shown\n    | line 481\n"),
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
            "invalid readiness `{path}`: the path has 125 bytes, but a Unix socket's may have at most \
                107; use one in \
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
            "grant it to the service's user",
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

// ---- what a service says itself -----------------------------------------------------------------

#[test]
fn the_status_that_a_service_reports_is_shown() {
    let script = "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); \
                  s.sendto(b'STATUS=replaying the log', os.environ['NOTIFY_SOCKET']); \
                  print('told', flush=True); time.sleep(60)";
    let Some(python) = require("python3") else {
        return;
    };
    let recipe = Executor::builder([python])
        .args(["-c", script])
        .wait_for(mirakuru::SdNotify::new());
    let text = report(&timed_out(&recipe, "told"));
    assert!(
        text.contains(": timed out after [time], before it sent READY=1 to $NOTIFY_SOCKET\n"),
        "{text}"
    );
    assert!(
        text.contains("\n  last probe: its status is \"replaying the log\"\n"),
        "{text}"
    );
}

/// The service chooses its port and prints it, so no other process can take it first.
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
