//! How other processes can affect a service and its supervisor: see `docs/guide/attackers.md`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use crate::common::{
    LONG, SIGTERM, Scratch, alive, assert_gone, error_of, fixed_port, is_root, numbers, odd, send,
    skip_without_root, supervisors, wait_until,
};
use mirakuru::{Banner, Executor, Tcp};

const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

/// Runs a script as a user that is unrelated to the tests.
fn as_another_user(script: &str, args: &[String]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(NOBODY).args(["sh", "-c", script, "sh"]).args(args);
    command.stdin(Stdio::null()).output().expect("setpriv is there")
}

#[test]
fn another_user_can_neither_signal_a_supervisor_nor_read_a_service_directory() {
    if !is_root() {
        skip_without_root();
        return;
    }
    let service = odd(["--ready-line", "up"])
        .wait_for(Banner::matching("up"))
        .start()
        .unwrap();
    let all: Vec<u32> = [supervisors(service.pid()), vec![service.pid()]].concat();
    assert!(all.len() > 1);
    for pid in &all {
        for signal in ["KILL", "STOP", "TERM"] {
            let output = as_another_user("kill -s $1 $2", &[signal.to_owned(), pid.to_string()]);
            assert!(!output.status.success(), "{output:?}");
        }
        assert!(alive(*pid));
    }
    let log = service.logs().path().to_owned();
    let dir = log.parent().unwrap();
    for path in [&log, dir, &service.dir()] {
        let path = path.display().to_string();
        let output = as_another_user("cat \"$1\" || ls \"$1\"", &[path]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn a_service_of_another_user_reaches_its_own_directory_and_no_supervisor() {
    if !is_root() {
        skip_without_root();
        return;
    }
    // `$PPID` is the worker, a supervisor of the service.
    let script = "touch \"$0/mine\" && echo wrote; kill -9 $PPID || echo refused; \
                  cat \"$0/../log\" || echo closed; ls \"$0/../..\" || echo hidden; echo up; exec sleep 60";
    let mut service = Executor::builder(["sh", "-c", script, "{dir}"])
        .uid(65534)
        .gid(65534)
        .wait_for(Banner::matching("^up$"))
        .start()
        .unwrap();
    let logs = service.logs();
    assert_eq!(logs.stdout(), "wrote\nrefused\nclosed\nhidden\nup\n", "{logs}");
    service.stop().unwrap();
}

/// A number from `/proc/PID/stat`. Fields are numbered as in proc(5).
#[cfg(target_os = "linux")]
fn stat(pid: u32, field: usize) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_the_name = stat.rsplit_once(')').unwrap().1;
    let field = after_the_name.split_ascii_whitespace().nth(field - 3);
    field.unwrap().parse().unwrap()
}

/// Each user has separate locks. The hint must not suggest a wait that would never end.
#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end cannot see the owner of a socket"
)]
fn no_queue_is_advised_for_the_port_of_another_users_test() {
    if !is_root() {
        skip_without_root();
        return;
    }
    let port = fixed_port();
    let listen = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
                  print('up', flush=True); time.sleep(60)";
    // A process of another user with the name of a supervisor.
    let script = "printf mirakuru-worker >/proc/$$/comm; python3 -c \"$1\" $2 & trap 'kill $!' TERM; wait";
    let mut others = Command::new("setpriv")
        .args(NOBODY)
        .args(["sh", "-c", script, "sh", listen, &port.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("setpriv is there");
    let mut line = String::new();
    let output = others.stdout.take().expect("a pipe");
    BufReader::new(output).read_line(&mut line).expect("it speaks");
    assert_eq!(line, "up\n");
    let addr = format!("127.0.0.1:{port}");
    let report = error_of(odd(["--listen", &addr]).wait_for(Tcp::addr(&addr)).start()).to_string();
    send(others.id(), SIGTERM);
    others.wait().expect("a child");
    assert!(
        report.contains("wait until the other user's test has ended, or "),
        "{report}"
    );
    assert!(!report.contains("queue"), "{report}");
}

#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
fn no_process_group_or_session_has_two_of_guard_worker_and_service() {
    let service = odd(["--ready-line", "up"])
        .wait_for(Banner::matching("up"))
        .start()
        .unwrap();
    let [worker, guard] = supervisors(service.pid())[..] else {
        panic!("not two supervisors");
    };
    for field in [5, 6] {
        let groups = [worker, guard, service.pid(), std::process::id()].map(|pid| stat(pid, field));
        let mut different = groups.to_vec();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), groups.len(), "{groups:?}");
    }
}

#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
#[test]
fn a_service_that_kills_the_group_of_its_worker_ends_with_all_its_descendants() {
    let scratch = Scratch::new();
    let pids = scratch.file("pids");
    let service = odd(["--deaf-daemons", "2", "--ready-line", "up", "--pids", &pids])
        .wait_for(Banner::matching("up"))
        .start()
        .unwrap();
    let worker = supervisors(service.pid())[0];
    // The service itself could send this signal.
    let killed = Command::new("kill")
        .args(["-9", "--", &format!("-{worker}")])
        .status();
    assert!(killed.unwrap().success());
    assert!(wait_until(|| numbers(&pids).iter().all(|pid| !alive(*pid)), LONG));
    drop(service);
    assert_gone(&scratch, &pids, LONG);
}
