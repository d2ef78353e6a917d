//! The hint of an error says why a wait failed, and how to fix it.

use std::fs;
use std::net::ToSocketAddrs as _;
use std::os::unix::net::UnixListener;

use crate::common::{LONG, Scratch, error_of, odd, test_name, victim, victim_dir};
use crate::reports::timed_out;
use mirakuru::{Banner, Check, Error, Executor, ExecutorBuilder, PidFile, Readiness, Tcp, UnixSocket};

fn sh(script: &str) -> ExecutorBuilder {
    Executor::builder(["sh", "-c", script])
}

/// The whole report of a service that ends before it is ready.
fn report<R: Readiness>(recipe: ExecutorBuilder<R>) -> String {
    error_of(recipe.timeout(LONG).start()).to_string()
}

/// The whole report of a service that prints `up` and runs on, but is not ready in time.
fn report_of_running<R: Readiness + Clone>(recipe: &ExecutorBuilder<R>) -> String {
    timed_out(recipe, "up").to_string()
}

#[track_caller]
fn assert_says(report: &str, text: &str) {
    assert!(report.contains(text), "no `{text}` in\n{report}");
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_service_on_the_other_loopback_address() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: there is no IPv6");
        return;
    }
    let service = odd(["--listen", "[::1]:{port}", "--ready-line", "up"]);
    let report = report_of_running(&service.wait_for(Tcp::addr("127.0.0.1:{port}")));
    assert_says(&report, "it listens on [::1]:");
    let mut meant = ("localhost", 80).to_socket_addrs().unwrap();
    match meant.any(|addr| addr.is_ipv6()) {
        true => assert_says(&report, "await `localhost:"),
        false => assert_says(&report, "await `[::1]:"),
    }
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn a_service_on_an_address_that_localhost_does_not_mean() {
    let service = odd(["--listen", "127.0.0.2:{port}", "--ready-line", "up"]);
    let report = report_of_running(&service.wait_for(Tcp::addr("127.0.0.1:{port}")));
    assert_says(&report, "await `127.0.0.2:");
}

#[test]
fn a_program_that_a_script_does_not_find() {
    let script = Executor::builder(["sh", "-c", "no-such-program"]).wait_for(Banner::matching("never"));
    assert_says(&report(script), "a program that the script runs is not installed");
}

#[test]
fn a_command_that_wants_a_shell() {
    for (command, part) in [
        ("PORT=80 sleep 60", "`.env(\"PORT\", \"80\")`"),
        (
            "~/no/such/program",
            "only a shell understands `~/no/such/program`",
        ),
        ("sleep 60 > log", "add `.shell(true)`"),
        ("ls / | sort", "add `.shell(true)`"),
        ("ls $HOME", "`{env:VAR}`"),
        ("ls ${NONE:-/none}", "`{env:VAR}`"),
        ("ls $(pwd)/none", "add `.shell(true)`"),
        ("ls /none; sleep 60", "only a shell understands `/none;`"),
        ("cd /tmp; sleep 60", "only a shell understands `cd`"),
    ] {
        assert_says(
            &report(Executor::builder(command).wait_for(Tcp::addr("127.0.0.1:{port}"))),
            part,
        );
    }
    let glob = Executor::builder("ls *.rs").current_dir("{dir}");
    assert_says(
        &report(glob.wait_for(Tcp::addr("127.0.0.1:{port}"))),
        "only a shell expands `*.rs` to file names: add `.shell(true)`",
    );
    // Here the pattern may be meant for `ls` itself.
    let literal = Executor::builder("ls --ignore *.rs /none").wait_for(Banner::matching("never"));
    assert!(!report(literal).contains("shell"));
    // In a list, the user wants each word to be literal.
    let list = Executor::builder(["false", "|", "sort"]).wait_for(Banner::matching("never"));
    assert!(!report(list).contains("shell"));
}

#[test]
fn a_socket_or_pid_file_beside_the_awaited_path() {
    let server = "import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('up', flush=True)
time.sleep(60)";
    let socket = Executor::builder(["python3", "-c", server, "{dir}/server.sock"]);
    let report_of_socket = report_of_running(&socket.wait_for(UnixSocket::path("{dir}/sever.sock")));
    assert_says(&report_of_socket, "it made a socket at `");
    assert_says(&report_of_socket, "/server.sock`: await that path");
    let file = sh("echo $$ > {dir}/other.pid; echo up; exec sleep 60");
    let file = file.wait_for(PidFile::path("{dir}/service.pid"));
    assert_says(&report_of_running(&file), "/other.pid`: await that path");
}

#[test]
fn a_line_that_nearly_matches() {
    let script = sh("echo starting; echo 'Server ready on port 80'; echo up; exec sleep 60");
    let report = report_of_running(&script.wait_for(Banner::matching("server is ready")));
    assert_says(
        &report,
        "compare the pattern with the closest line, `Server ready on port 80`",
    );
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
fn a_daemon_that_listens_elsewhere_is_not_said_to_be_gone() {
    let daemon = "
import os, socket, time
if os.fork(): os._exit(0)
s = socket.create_server(('127.0.0.1', 0)); print('up', flush=True); time.sleep(60)
";
    let service = Executor::builder(["python3", "-c", daemon]);
    let report = report_of_running(&service.wait_for(Tcp::addr("127.0.0.1:{port}")));
    assert_says(&report, "it listens on 127.0.0.1:");
    assert!(!report.contains("no process running"), "{report}");
}

#[test]
fn a_service_that_ends_with_its_input() {
    let report = report(Executor::builder("cat").wait_for(Tcp::addr("127.0.0.1:{port}")));
    assert_says(&report, "`.stdin(Stdio::piped())`");
}

#[test]
fn a_check_tells_how_often_it_returned_false() {
    let service = odd(["--ready-line", "up"]).wait_for(Check::new("it was there", |_| Ok(false)));
    let report = report_of_running(&service);
    assert_says(&report, "the check returned false, ");
    assert_says(&report, " times");
}

#[test]
fn a_pid_file_that_names_the_first_process_is_to_be_removed() {
    let scratch = Scratch::new();
    let path = scratch.file("service.pid");
    fs::write(&path, "1\n").unwrap();
    let error = error_of(sh("exec sleep 60").wait_for(PidFile::path(&path)).start());
    assert!(matches!(error, Error::AlreadyRunning { .. }), "{error}");
    let report = error.to_string();
    assert_says(&report, "remove the file");
    assert!(!report.contains("kill"), "{report}");
}

#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn another_process_is_not_taken_for_the_service_through_a_link_or_a_relative_name() {
    let scratch = Scratch::new();
    let other = scratch.path().join("other.sock");
    let _listener = UnixListener::bind(&other).unwrap();
    let linked = sh(&format!("ln -s '{}' {{dir}}/s; exec sleep 60", other.display()));
    let error = error_of(linked.wait_for(UnixSocket::path("{dir}/s")).timeout(LONG).start());
    let Error::WrongListener { holder, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        holder.contains(&format!("(pid {})", std::process::id())),
        "{error}"
    );
    // The victim binds a socket by a relative path while the start waits for the absolute path.
    let status = victim(test_name!(binds_by_a_relative_name), scratch.path())
        .current_dir(scratch.path())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "a victim"]
fn binds_by_a_relative_name() {
    let Some(dir) = victim_dir() else { return };
    let path = dir.join("late.sock");
    let waits = sh("touch started; exec sleep 60").current_dir(&dir);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(crate::common::wait_until(|| dir.join("started").exists(), LONG));
            std::mem::forget(UnixListener::bind("late.sock").unwrap());
        });
        error_of(waits.wait_for(UnixSocket::path(&path)).timeout(LONG).start())
    });
    assert!(matches!(error, Error::WrongListener { .. }), "{error}");
}

#[test]
fn a_service_that_this_process_cannot_reach_is_not_ready() {
    let scratch = Scratch::new();
    let mut unshared = std::process::Command::new("unshare");
    let test = victim(test_name!(has_no_loopback), scratch.path());
    unshared
        .args(["--net", "--"])
        .arg(test.get_program())
        .args(test.get_args());
    unshared.envs(test.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let may = std::process::Command::new("unshare")
        .args(["--net", "true"])
        .output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: it takes the right to make a network namespace");
        return;
    }
    let status = unshared.status().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "a victim"]
fn has_no_loopback() {
    if victim_dir().is_none() {
        return;
    }
    let service = odd(["--listen", "127.0.0.1:{port}", "--ready-line", "up"]);
    let report = report_of_running(&service.wait_for(Tcp::addr("127.0.0.1:{port}")));
    assert_says(&report, "this process cannot reach it");
    assert_says(&report, "ip link set lo up");
}
