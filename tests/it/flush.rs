//! A service that writes into its database when it ends still finds the database running, however
//! the test process or the run's runner ends.
//!
//! `MIRAKURU_FLUSH_REPEATS` sets how often each way to end is tested; `tests/run --long` sets it.
//! Without it, only the ways in `USUAL` are tested, once.
#![cfg(target_os = "linux")]

mod order;
mod services;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};

use mirakuru::{Recipe, TcpExecutor};

use crate::at_the_end::start;
use crate::common::{
    LONG, SIGINT, SIGKILL, SIGTERM, Scratch, require, send, supervisors, test_name, victim, victim_dir,
    wait_until,
};
use crate::fresh;
use crate::proof::obeys_signals;
use crate::teardown::cell;
use services::{DEATH, KEPT, application, application_of, database, database_in, say_and_wait};

#[mirakuru::fixture]
struct System {
    #[fixture(database())]
    database: TcpExecutor,
    #[fixture(application(database))]
    application: TcpExecutor,
}

#[mirakuru::fixture(database(), scope = "process")]
static DATABASE_OF_PROCESS: TcpExecutor;

#[mirakuru::fixture(application(&DATABASE_OF_PROCESS), scope = "process")]
static APPLICATION_OF_PROCESS: TcpExecutor;

#[mirakuru::fixture(System)]
static SYSTEM_OF_RUN: System;

#[mirakuru::fixture(database())]
static DATABASE_OF_RUN: TcpExecutor;

#[mirakuru::fixture(application(&DATABASE_OF_RUN))]
static APPLICATION_OF_RUN: TcpExecutor;

fn end(services: impl Sized, stop: impl FnOnce()) {
    say_and_wait();
    match std::env::var(DEATH).expect("a death").as_str() {
        "scope end" => {}
        "stop" => stop(),
        death => cell::die(death),
    }
    drop(services);
}

#[test]
#[ignore = "a victim"]
fn has_two_executors() {
    if victim_dir().is_none() {
        return;
    }
    let mut database = database().start().expect("it starts");
    let mut application = application(&database).start().expect("it starts");
    end((), || {
        application.stop().expect("it stops");
        database.stop().expect("it stops");
    });
}

#[mirakuru::fixture(database())]
#[mirakuru::fixture(application(database))]
#[test]
#[ignore = "a victim"]
fn has_stacked_attributes(database: TcpExecutor, application: TcpExecutor) {
    // These variables are dropped in reverse order, like parameters.
    let (_database, _application) = (database, application);
    end((), || {});
}

#[test]
#[ignore = "a victim"]
fn has_a_system() {
    if victim_dir().is_none() {
        return;
    }
    let mut system = System.start().expect("it starts");
    end((), || {
        system.application.stop().expect("it stops");
        system.database.stop().expect("it stops");
    });
}

#[test]
#[ignore = "a victim"]
fn has_statics() {
    if victim_dir().is_none() {
        return;
    }
    assert!(APPLICATION_OF_PROCESS.is_running());
    end((), || {});
}

#[test]
#[ignore = "a victim"]
fn uses_a_run() {
    if victim_dir().is_none() {
        return;
    }
    assert!(APPLICATION_OF_RUN.is_running());
    end((), || {});
}

#[test]
#[ignore = "a victim"]
fn uses_a_system_of_a_run() {
    if victim_dir().is_none() {
        return;
    }
    assert!(SYSTEM_OF_RUN.application.is_running() && SYSTEM_OF_RUN.database.is_running());
    end((), || {});
}

/// A runner of two test processes, one after the other. The first is killed.
fn runs_tests(name: &str) {
    let Some(dir) = victim_dir() else { return };
    let run = format!("flush-{}", std::process::id());
    for death in ["SIGKILL", "scope end"] {
        let mut command = victim(name, &dir);
        command.env("NEXTEST_RUN_ID", &run).env(DEATH, death);
        kill(start(&mut command), death);
    }
    end((), || {});
}

#[test]
#[ignore = "a victim"]
fn runs_tests_with_two_statics() {
    runs_tests(test_name!(uses_a_run));
}

#[test]
#[ignore = "a victim"]
fn runs_tests_with_a_system() {
    runs_tests(test_name!(uses_a_system_of_a_run));
}

/// Sends the victim the signal that `death` names, or closes its input so that it ends by itself.
fn kill(mut child: Child, death: &str) -> std::process::ExitStatus {
    let signal = match death {
        "SIGHUP" => 1,
        "SIGINT" => SIGINT,
        "SIGQUIT" => 3,
        "SIGTERM" => SIGTERM,
        "SIGKILL" => SIGKILL,
        _ => 0,
    };
    match signal {
        0 => drop(child.stdin.take()),
        signal => send(child.id(), signal),
    }
    let status = child.wait().expect("it ends");
    if signal != 0 {
        assert_eq!(status.signal(), Some(signal), "{death}");
    }
    status
}

/// The ways to end that are tested without `MIRAKURU_FLUSH_REPEATS`.
const USUAL: [&str; 5] = ["scope end", "panic", "process::exit", "SIGTERM", "SIGKILL"];

/// Lets the victim end in each of these ways, and checks that its application has flushed.
fn assert_flushes(name: &str, deaths: &[&str]) {
    assert_program_flushes(|dir| victim(name, dir), deaths);
}

fn assert_program_flushes(program: impl Fn(&Path) -> Command, deaths: &[&str]) {
    if require("python3").is_none() {
        return;
    }
    let repeats = std::env::var("MIRAKURU_FLUSH_REPEATS").ok();
    let wanted = |death: &&&str| repeats.is_some() || USUAL.contains(death);
    for _ in 0..repeats
        .as_ref()
        .map_or(1, |repeats| repeats.parse().expect("a number"))
    {
        for death in deaths.iter().filter(wanted) {
            let scratch = Scratch::new();
            let file = scratch.path().join("kept");
            die_of(death, program(scratch.path()), &file);
            let read = || fs::read_to_string(&file).unwrap_or_default();
            assert!(
                wait_until(|| !read().is_empty(), LONG),
                "{death}: nothing was flushed"
            );
            assert_eq!(read(), "flushed", "{death}");
            assert_nothing_stays(scratch.path(), death);
        }
    }
}

/// Starts the victim with the database's file, and lets it end as `death` says.
fn die_of(death: &str, mut victim: Command, file: &Path) {
    obeys_signals(&mut victim);
    victim
        .env(DEATH, death)
        .env(KEPT, file)
        .env("RUST_BACKTRACE", "0")
        .env_remove("NEXTEST_RUN_ID")
        .env_remove("MIRAKURU_SESSION_ID")
        .env_remove("XDG_RUNTIME_DIR");
    kill(start(&mut victim), death);
}

fn assert_nothing_stays(dir: &Path, death: &str) {
    let left = || crate::proof::marked(dir);
    assert!(
        wait_until(|| left().is_empty(), LONG),
        "{death}: {:?} are left",
        left()
    );
}

const OF_A_PROCESS: &[&str] = &[
    "scope end",
    "stop",
    "panic",
    "process::exit",
    "SIGINT",
    "SIGTERM",
    "SIGHUP",
    "SIGQUIT",
    "abort",
    "SIGSEGV",
    "stack overflow",
    "SIGKILL",
];

#[test]
fn an_executor_flushes_into_another() {
    assert_flushes(test_name!(has_two_executors), OF_A_PROCESS);
}

#[test]
fn a_fixture_flushes_into_the_one_above_it() {
    assert_flushes(test_name!(has_stacked_attributes), OF_A_PROCESS);
}

#[test]
fn a_field_of_a_system_flushes_into_another() {
    assert_flushes(test_name!(has_a_system), OF_A_PROCESS);
}

#[test]
fn a_static_flushes_into_another() {
    assert_flushes(test_name!(has_statics), OF_A_PROCESS);
}

/// In a program built with `panic = "abort"`, nothing unwinds.
#[test]
fn an_executor_flushes_into_another_where_a_panic_aborts() {
    if require("python3").is_none() {
        return;
    }
    let program = fresh::built_with_abort();
    let command = |dir: &Path| {
        let mut command = Command::new(&program);
        command.env("TMPDIR", dir);
        command
    };
    assert_program_flushes(command, &["panic"]);
}

/// A limit of the guarantee: a killed supervisor leaves its service no time to flush. All processes
/// of the service end at once, but the database is not affected.
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn a_service_whose_supervisor_is_killed_ends_at_once_and_its_database_lives() {
    if require("python3").is_none() {
        return;
    }
    for killed in ["worker", "guard"] {
        let scratch = Scratch::new();
        let kept = scratch.path().join("kept");
        let mut database = database_in(&kept).start().expect("it starts");
        let application = application_of(&database, &kept).start().expect("it starts");
        let [worker, guard] = supervisors(application.pid())
            .try_into()
            .expect("a worker and a guard");
        send(if killed == "worker" { worker } else { guard }, SIGKILL);
        assert!(wait_until(|| !application.is_running(), LONG), "{killed}");
        drop(application);
        assert!(database.is_running(), "{killed}");
        let mut client = TcpStream::connect(database.addr()).expect("it listens");
        client.write_all(b"later").expect("it reads");
        let mut answer = [0; 4];
        client.read_exact(&mut answer).expect("it answers");
        database.stop().expect("it stops");
        assert_eq!(
            (&answer, &*fs::read_to_string(&kept).expect("a file")),
            (b"kept", "later")
        );
    }
}

/// The ways in which a runner ends. `runners.rs` tests the signals that a runner passes on.
const OF_A_RUNNER: &[&str] = &["scope end", "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGKILL"];

#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
#[test]
fn a_static_of_the_run_flushes_into_another() {
    assert_flushes(test_name!(runs_tests_with_two_statics), OF_A_RUNNER);
}

#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
#[test]
fn a_field_of_a_system_of_the_run_flushes_into_another() {
    assert_flushes(test_name!(runs_tests_with_a_system), OF_A_RUNNER);
}
