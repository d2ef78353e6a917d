//! A service ends before the services that it needs. Its `on_end` command cleans up things that are
//! not its descendants.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mirakuru::{Banner, Executor, OutputExecutor, SimpleExecutor};

use crate::common::{
    LONG, SIGINT, SIGKILL, SIGSTOP, SIGTERM, Scratch, SetAtTheEnd, descendants, random, send, stat,
    supervisors, test_name, victim, victim_dir, wait_until,
};

/// The environment variable that tells a victim how to end.
const DEATH: &str = "MIRAKURU_AT_THE_END_DEATH";
/// The environment variable that names the file into which each service writes its name when it
/// ends.
const ORDER: &str = "MIRAKURU_AT_THE_END_ORDER";

const DATABASE: &str = "trap 'echo database >>\"$1\"; exit 0' TERM; echo up; while :; do sleep 0.01; done";
/// An application that ends slowly.
const APPLICATION: &str =
    "trap 'sleep 0.3; echo application >>\"$1\"; exit 0' TERM; echo up; while :; do sleep 0.01; done";

/// Starts a database, and an application that gets the database's directory as an argument.
fn start_two(order: &Path) -> (OutputExecutor, OutputExecutor) {
    let start = |script: &str, told: Option<&Path>| {
        Executor::builder(["sh", "-c", script, "sh"])
            .arg(order)
            .args(told)
            .wait_for(Banner::matching("up"))
            .start()
            .expect("it starts")
    };
    let database = start(DATABASE, None);
    let application = start(APPLICATION, Some(&database.dir()));
    (database, application)
}

fn say_and_wait() -> bool {
    use std::io::{BufRead, Write};
    println!("\nup {}", std::process::id());
    std::io::stdout().flush().expect("a reader");
    let mut word = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut word)
        .is_ok_and(|read| read > 0)
}

#[test]
#[ignore = "a victim"]
fn has_an_application_and_its_database() {
    let Some(dir) = victim_dir() else { return };
    let two = start_two(&dir.join("order"));
    say_and_wait();
    match std::env::var(DEATH).expect("a death").as_str() {
        "process::exit" => std::process::exit(3),
        "abort" => std::process::abort(),
        "forget" => std::mem::forget(two),
        death => panic!("no such death: {death}"),
    }
}

/// The same two services, but the application gets only the database's name.
#[mirakuru::fixture]
struct System {
    #[fixture(banner = "up", name = "database", cmd = ["sh", "-c", DATABASE, "sh"], arg = order())]
    database: OutputExecutor,
    #[fixture(banner = "up", cmd = ["sh", "-c", APPLICATION, "sh"], arg = order(),
              env = ("NEEDS", database.name()))]
    application: OutputExecutor,
}

fn order() -> std::path::PathBuf {
    victim_dir().expect("only in victims").join("order")
}

#[test]
#[ignore = "a victim"]
fn has_a_system() {
    if victim_dir().is_none() {
        return;
    }
    let system = mirakuru::Recipe::start(System).expect("it starts");
    assert!(system.application.is_running() && system.database.is_running());
    say_and_wait();
    std::process::exit(3);
}

/// Starts a victim and waits until its services are up.
pub(crate) fn start(command: &mut Command) -> Child {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the victim starts");
    use std::io::{BufRead, BufReader};
    let mut lines = BufReader::new(child.stdout.as_mut().expect("its output")).lines();
    assert!(
        lines.any(|line| line.is_ok_and(|line| line.starts_with("up "))),
        "the victim's services are up"
    );
    child
}

fn assert_order(dir: &Path, case: &str) {
    let order = dir.join("order");
    let read = || fs::read_to_string(&order).unwrap_or_default();
    assert!(
        wait_until(|| read().lines().count() == 2, LONG),
        "{case}: not both have ended: {:?}",
        read()
    );
    assert_eq!(read(), "application\ndatabase\n", "{case}");
}

#[test]
fn a_needed_service_ends_last_however_the_test_process_ends() {
    for death in ["process::exit", "abort", "forget", "SIGKILL", "SIGTERM", "SIGINT"] {
        let scratch = Scratch::new();
        let mut command = victim(test_name!(has_an_application_and_its_database), scratch.path());
        crate::proof::obeys_signals(&mut command);
        let mut child = start(command.env(DEATH, death));
        match death {
            "SIGKILL" => send(child.id(), SIGKILL),
            "SIGTERM" => send(child.id(), SIGTERM),
            "SIGINT" => send(child.id(), SIGINT),
            // The victim ends by itself at the end of its input.
            _ => drop(child.stdin.take()),
        }
        child.wait().expect("it ends");
        assert_order(scratch.path(), death);
    }
}

#[test]
fn a_field_of_a_system_ends_before_those_that_it_names() {
    for death in ["process::exit", "SIGKILL", "SIGTERM"] {
        let scratch = Scratch::new();
        let mut command = victim(test_name!(has_a_system), scratch.path());
        crate::proof::obeys_signals(&mut command);
        let mut child = start(&mut command);
        match death {
            "SIGKILL" => send(child.id(), SIGKILL),
            "SIGTERM" => send(child.id(), SIGTERM),
            _ => drop(child.stdin.take()),
        }
        child.wait().expect("it ends");
        assert_order(scratch.path(), death);
    }
}

#[mirakuru::fixture(banner = "up", cmd = ["sh", "-c", DATABASE, "sh", "{env:MIRAKURU_AT_THE_END_ORDER}"])]
static RUN_DATABASE: OutputExecutor;

#[mirakuru::fixture(
    banner = "up",
    cmd = ["sh", "-c", APPLICATION, "sh", "{env:MIRAKURU_AT_THE_END_ORDER}"],
    env = ("DATABASE", RUN_DATABASE.dir())
)]
static RUN_APPLICATION: OutputExecutor;

#[test]
#[ignore = "a victim"]
fn uses_an_application_of_the_run() {
    if victim_dir().is_none() {
        return;
    }
    assert!(RUN_APPLICATION.is_running());
    say_and_wait();
}

/// A test runner with one test.
#[test]
#[ignore = "a victim"]
fn runs_a_test() {
    let Some(dir) = victim_dir() else { return };
    let mut test = start(
        victim(test_name!(uses_an_application_of_the_run), &dir)
            .env("NEXTEST_RUN_ID", format!("at-the-end-{}", std::process::id())),
    );
    drop(test.stdin.take());
    assert!(test.wait().expect("the test ends").success());
    say_and_wait();
}

#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
#[test]
fn a_needed_service_of_the_run_ends_last() {
    for death in ["end", "SIGKILL"] {
        let scratch = Scratch::new();
        let mut command = victim(test_name!(runs_a_test), scratch.path());
        command
            .env_remove("NEXTEST_RUN_ID")
            .env_remove("MIRAKURU_SESSION_ID")
            .env_remove("XDG_RUNTIME_DIR")
            .env(ORDER, scratch.path().join("order"));
        let mut runner = start(&mut command);
        match death {
            "SIGKILL" => send(runner.id(), SIGKILL),
            _ => drop(runner.stdin.take()),
        }
        runner.wait().expect("it ends");
        assert_order(scratch.path(), death);
    }
}

#[test]
fn an_outage_of_a_needed_service_waits_for_nobody() {
    let scratch = Scratch::new();
    let (mut database, application) = start_two(&scratch.path().join("order"));
    let begin = Instant::now();
    database
        .stopped(|| assert!(application.is_running()))
        .expect("it starts again");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert!(application.is_running());
}

#[test]
fn a_dependent_that_hangs_delays_a_needed_service_by_its_grace_only() {
    let scratch = Scratch::new();
    let mut child = start(&mut victim(
        test_name!(has_a_dependent_that_hangs),
        scratch.path(),
    ));
    let begin = Instant::now();
    send(child.id(), SIGKILL);
    child.wait().expect("it ends");
    let order = scratch.path().join("order");
    assert!(wait_until(|| order.exists(), LONG), "the database has ended");
    // The bounds are the grace of 0.4 s, and some seconds for the kill on a busy machine.
    let took = begin.elapsed();
    assert!(
        took > Duration::from_millis(350) && took < Duration::from_secs(4),
        "{took:?}"
    );
}

#[test]
#[ignore = "a victim"]
fn has_a_dependent_that_hangs() {
    let Some(dir) = victim_dir() else { return };
    let database = Executor::builder(["sh", "-c", DATABASE, "sh"])
        .arg(dir.join("order"))
        .wait_for(Banner::matching("up"))
        .start()
        .expect("it starts");
    let _deaf = Executor::builder([
        "sh",
        "-c",
        "trap '' TERM; echo up; while :; do sleep 0.01; done",
        "sh",
    ])
    .arg(database.dir())
    .stop_timeout(Duration::from_millis(400))
    .wait_for(Banner::matching("up"))
    .start()
    .expect("it starts");
    say_and_wait();
}

// ---- the `on_end` command -----------------------------------------------------------------------

/// Runs a daemon that creates a record for each request after 200 ms, even if the client is gone.
/// `test` gets a function that tells whether the daemon has handled all requests.
fn run_daemon<T>(dir: &Path, test: impl FnOnce(&dyn Fn() -> bool) -> T) -> T {
    const LATE: Duration = Duration::from_millis(200);
    let (requests, records) = (dir.join("requests"), dir.join("records"));
    fs::create_dir_all(&requests).unwrap();
    fs::create_dir_all(&records).unwrap();
    let is_over = AtomicBool::new(false);
    // The daemon removes a request once it has created the record.
    let is_idle = || fs::read_dir(&requests).unwrap().count() == 0;
    thread::scope(|scope| {
        let _end = SetAtTheEnd(&is_over);
        scope.spawn(|| {
            let mut pending: Vec<(Instant, std::ffi::OsString)> = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                for request in fs::read_dir(&requests).unwrap().flatten() {
                    if !pending.iter().any(|(_, name)| *name == request.file_name()) {
                        pending.push((Instant::now(), request.file_name()));
                    }
                }
                pending.retain(|(since, name)| {
                    let is_due = since.elapsed() > LATE;
                    if is_due {
                        fs::write(records.join(name), "").unwrap();
                        fs::remove_file(requests.join(name)).unwrap();
                    }
                    !is_due
                });
                thread::sleep(Duration::from_millis(2));
            }
        });
        test(&is_idle)
    })
}

/// A client of the daemon above, as `docker run` is a client of Docker.
fn client(dir: &Path) -> mirakuru::ExecutorBuilder {
    let dir = dir.display();
    let remove = format!("echo mk-{{id}} >>{dir}/calls; rm -f {dir}/records/mk-{{id}}");
    Executor::builder(["sh", "-c"])
        .arg(format!(
            "echo mk-{{id}} >>{dir}/asked; touch {dir}/requests/mk-{{id}}; exec sleep 60"
        ))
        .on_end(["sh", "-c", &remove])
        .stop_timeout(Duration::from_millis(300))
}

/// The names that the `on_end` command has cleaned up, one for each of its runs.
fn cleaned(dir: &Path) -> Vec<String> {
    let calls = fs::read_to_string(dir.join("calls")).unwrap_or_default();
    calls.lines().map(str::to_owned).collect()
}

fn calls(dir: &Path) -> usize {
    cleaned(dir).len()
}

fn records(dir: &Path) -> usize {
    fs::read_dir(dir.join("records")).map_or(0, Iterator::count)
}

#[test]
fn the_command_at_the_end_runs_twice_before_the_stop_returns() {
    let scratch = Scratch::new();
    run_daemon(scratch.path(), |is_idle| {
        let mut service = client(scratch.path()).start().expect("it starts");
        let id = service.dir().parent().unwrap().file_name().unwrap().to_owned();
        let asked = scratch
            .path()
            .join("requests")
            .join(format!("mk-{}", id.to_str().unwrap()));
        assert!(wait_until(|| asked.exists() || records(scratch.path()) > 0, LONG));
        service.stop().expect("it stops");
        assert_eq!(calls(scratch.path()), 2);
        assert_eq!(records(scratch.path()), 0);
        service.start().expect("it starts again");
        service.kill().expect("it is killed");
        assert_eq!(calls(scratch.path()), 4);
        assert!(wait_until(is_idle, LONG));
        assert_eq!(records(scratch.path()), 0);
    });
}

#[test]
fn a_failure_of_the_command_at_the_end_and_its_output_are_in_the_log() {
    let mut service: SimpleExecutor = Executor::builder("sleep 60")
        .on_end(["sh", "-c", "echo no such container; exit 3"])
        .start()
        .expect("it starts");
    service.stop().expect("it stops all the same");
    let log = service.logs().stderr().to_owned();
    assert_eq!(
        log,
        "no such container\nmirakuru: the command at the end failed with status 3\n".repeat(2)
    );
    let mut service = Executor::builder("sleep 60")
        .on_end("/no/such/program")
        .start()
        .expect("it starts");
    service.stop().expect("it stops all the same");
    assert_eq!(
        service.logs().stderr(),
        "there is no such program\nmirakuru: the command at the end failed with status 127\n".repeat(2)
    );
    // The hint is the same as for the service's own command, but suggests another way to use a
    // shell.
    let mut service = Executor::builder("sleep 60")
        .on_end("ls /none || true")
        .start()
        .expect("it starts");
    service.stop().expect("it stops all the same");
    let log = service.logs().stderr().to_owned();
    let hint = "failed with status 2\nmirakuru: the command runs without a shell, and only a shell \
                understands `||`: write `.on_end([\"sh\", \"-c\", \"..\"])`\n";
    assert_eq!(log.matches(hint).count(), 2, "{log}");
    // The program is in one directory on PATH, but is not executable. The other directories do not
    // contain it.
    let scratch = Scratch::new();
    fs::write(scratch.file("clean-up"), "").expect("a file");
    let mut service = Executor::builder("sleep 60")
        .env("PATH", format!("{}:/usr/bin:/bin", scratch.path().display()))
        .on_end("clean-up")
        .start()
        .expect("it starts");
    service.stop().expect("it stops all the same");
    let log = service.logs().stderr().to_owned();
    assert!(log.starts_with("the program may not be executed\n"), "{log}");
}

#[test]
fn a_service_that_was_never_executed_has_no_command_at_its_end() {
    let scratch = Scratch::new();
    let mark = scratch.file("mark");
    let started = Executor::builder("/no/such/program")
        .on_end(["touch", &mark])
        .start();
    assert!(started.is_err());
    assert!(!Path::new(&mark).exists());
}

#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end has one supervisor, which the service outlives"
)]
#[test]
fn the_command_at_the_end_runs_when_the_worker_was_killed_first() {
    let scratch = Scratch::new();
    run_daemon(scratch.path(), |_| {
        let mut service = client(scratch.path()).start().expect("it starts");
        let [worker, ..] = supervisors(service.pid())[..] else {
            panic!("no supervisor");
        };
        assert!(wait_until(|| records(scratch.path()) > 0, LONG));
        send(worker, SIGKILL);
        assert!(wait_until(|| !service.is_running(), LONG));
        let _ = service.stop();
        assert!(calls(scratch.path()) >= 1);
        assert_eq!(records(scratch.path()), 0);
    });
}

#[test]
#[ignore = "a victim"]
fn has_a_client_of_a_daemon() {
    let Some(dir) = victim_dir() else { return };
    loop {
        let service = client(&dir).start().expect("it starts");
        say(&service);
        // The pause is long compared with a start, so that a kill at a random moment usually hits a
        // running service.
        thread::sleep(Duration::from_millis(30));
        drop(service);
    }
}

fn say(service: &SimpleExecutor) {
    use std::io::Write;
    println!("\nup {}", service.pid());
    std::io::stdout().flush().expect("a reader");
}

/// If the test process is killed, the `on_end` command still removes the service's record.
/// `MIRAKURU_KILL_ROUNDS` sets the number of rounds.
#[test]
fn killed_at_any_moment_no_record_stays() {
    let rounds: usize = std::env::var("MIRAKURU_KILL_ROUNDS").map_or(8, |n| n.parse().expect("a number"));
    let scratch = Scratch::new();
    let left = AtomicBool::new(false);
    run_daemon(scratch.path(), |is_idle| {
        let next = std::sync::atomic::AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let round = next.fetch_add(1, Ordering::SeqCst);
                        if round >= rounds {
                            break;
                        }
                        let worker_first = round % 2 == 1;
                        left.fetch_or(!killed_once(scratch.path(), worker_first), Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(wait_until(is_idle, LONG));
        assert_eq!(records(scratch.path()), 0);
    });
    assert!(!left.load(Ordering::SeqCst), "a supervisor has not ended");
    let asked = fs::read_to_string(scratch.path().join("asked")).expect("clients have run");
    let cleaned = cleaned(scratch.path());
    assert!(asked.lines().count() >= rounds);
    for name in asked.lines() {
        assert!(
            cleaned.iter().any(|cleaned| cleaned == name),
            "{name} was not cleaned up"
        );
    }
}

/// Kills the test process. If `worker_first` is set, first kills the worker of its service.
/// Returns whether the supervisors have ended in time.
fn killed_once(dir: &Path, worker_first: bool) -> bool {
    let random = random();
    let mut child = start(&mut victim(test_name!(has_a_client_of_a_daemon), dir));
    // A random pause, so that the kill may hit any moment of the test.
    thread::sleep(Duration::from_micros(random % 700_000));
    // A stopped test process starts no other service while its tree is listed.
    send(child.id(), SIGSTOP);
    assert!(wait_until(
        || stat(child.id()).is_some_and(|(state, _)| state == 'T'),
        LONG
    ));
    let tree = descendants(child.id());
    // The guard is a child of the test process, and the worker is a child of the guard.
    let parent = |pid: u32| stat(pid).map(|(_, parent)| parent);
    let is_worker = |pid: &&u32| parent(**pid).and_then(parent) == Some(child.id());
    if let Some(worker) = tree.iter().find(is_worker).filter(|_| worker_first) {
        send(*worker, SIGKILL);
        // A random pause, in which only the guard is left to clean up.
        thread::sleep(Duration::from_micros(random / 700_000 % 50_000));
    }
    send(child.id(), SIGKILL);
    child.wait().expect("it ends");
    let is_gone = |pid: &u32| stat(*pid).is_none_or(|(state, _)| state == 'Z');
    wait_until(|| tree.iter().all(is_gone), LONG)
}

// ---- signals to the whole tree ------------------------------------------------------------------

/// A shell command for a service in a session of its own. On SIGTERM, the service appends its name
/// to the file `$1`.
fn in_a_session_of_its_own(name: &str) -> String {
    format!(
        "setsid sh -c 'trap \"echo {name} >>$0; exit\" TERM; echo {name} is up; while :; do sleep 0.01; \
            done' \"$1\""
    )
}

#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
#[test]
fn the_stop_signal_reaches_a_descendant_in_a_session_of_its_own() {
    let scratch = Scratch::new();
    let heard = scratch.file("heard");
    // The main process waits for its descendant before it ends.
    let script = format!(
        "trap : TERM; {} & while kill -0 $!; do wait $!; done; exit 0",
        in_a_session_of_its_own("session")
    );
    let mut service = Executor::builder(["sh", "-c", &script, "sh", &heard])
        .wait_for(Banner::matching("session is up"))
        .start()
        .expect("it starts");
    let begin = Instant::now();
    service.stop().expect("it stops by itself");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(fs::read_to_string(&heard).unwrap_or_default(), "session\n");
}

#[test]
fn a_process_that_the_service_starts_at_its_end_may_finish() {
    let scratch = Scratch::new();
    let done = scratch.file("done");
    // After the stop signal, the service starts a clean-up in a session of its own. The clean-up is
    // still running when other sessions get the signal, but must not get it.
    let script = "trap 'sleep 0.02; setsid sh -c \"sleep 0.3; touch $1\"; exit 0' TERM; echo up; \
                  while :; do sleep 0.005; done";
    let mut service = Executor::builder(["sh", "-c", script, "sh", &done])
        .wait_for(Banner::matching("up"))
        .start()
        .expect("it starts");
    service.stop().expect("it stops by itself");
    assert!(Path::new(&done).exists());
}

#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
#[test]
fn the_stop_signal_reaches_the_group_when_the_main_process_is_gone() {
    let scratch = Scratch::new();
    let heard = scratch.file("heard");
    let script = "(trap 'echo asked >>\"$1\"; exit' TERM; echo up; while :; do sleep 0.01; done) &";
    let mut service = Executor::builder(["sh", "-c", script, "sh", &heard])
        .wait_for(Banner::matching("up"))
        .stop_timeout(LONG)
        .start()
        .expect("it starts");
    let main = service.pid();
    assert!(wait_until(|| stat(main).is_none(), LONG), "the main process ends");
    service.stop().expect("it stops by itself");
    assert_eq!(fs::read_to_string(&heard).unwrap_or_default(), "asked\n");
}

#[cfg_attr(
    mirakuru_portable,
    ignore = "the portable back end does not find processes that leave the process group"
)]
#[test]
fn a_signal_reaches_the_tree_when_the_main_process_is_gone() {
    let scratch = Scratch::new();
    let heard = scratch.file("heard");
    let script = format!("{} & sleep 0.1", in_a_session_of_its_own("daemon"));
    let mut service = Executor::builder(["sh", "-c", &script, "sh", &heard])
        .wait_for(Banner::matching("daemon is up"))
        .start()
        .expect("it starts");
    let main = service.pid();
    assert!(wait_until(|| stat(main).is_none(), LONG), "the main process ends");
    service
        .signal(mirakuru::Signal::Term)
        .expect("a daemon is running");
    assert!(
        wait_until(|| Path::new(&heard).exists(), LONG),
        "it was signalled"
    );
}
