//! `MIRAKURU_TIMELINE`: a run of several processes writes a trace and a page. A browser opens the
//! page and shows its content.
//!
//! The runner is a process of this binary ([`runner`]), and so are the test processes. Each runs
//! the ignored tests of one module below.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::{
    self, LONG, ODD, SIGKILL, Scratch, VICTIM, fixed_port, odd, require, send, test_name, victim, victim_dir,
    victims, wait_until,
};
use mirakuru::{Executor, ExecutorBuilder, SimpleExecutor, Tcp, TcpExecutor};

// ---- what the test processes use ----------------------------------------------------------------

fn listens(name: &str, addr: &str, delay: u64) -> ExecutorBuilder<Tcp> {
    Executor::builder([ODD, "--listen", addr, "--delay", &delay.to_string()])
        .args(["--line", "redis://user:hunter2@host"])
        .wait_for(Tcp::addr(addr))
        .name(name)
        .timeout(LONG)
}

/// A service that starts only after three tests of two processes have asked for it, so some of them
/// must wait.
fn shared() -> ExecutorBuilder<Tcp> {
    all_have_come("shared", 3);
    listens("shared-service", "127.0.0.1:{port}", 150)
}

#[mirakuru::fixture(shared())]
static SHARED: TcpExecutor;

fn uses_shared() {
    comes("shared");
    assert!(SHARED.is_running());
}

/// Records that this test has reached a place.
fn comes(place: &str) {
    let dir = victim_dir().expect("only in test processes").join(place);
    fs::create_dir_all(&dir).expect("a writable directory");
    let name = format!("{}-{:?}", std::process::id(), thread::current().id());
    fs::write(dir.join(name), "").expect("a writable directory");
}

/// Waits until this many tests have reached a place.
fn all_have_come(place: &str, count: usize) {
    let dir = victim_dir().unwrap_or_default().join(place);
    let come = || fs::read_dir(&dir).map_or(0, Iterator::count);
    assert!(wait_until(|| come() >= count, LONG), "{} of {count}", come());
}

#[mirakuru::fixture(cmd = [ODD, "--stop-delay", "60"], name = "of-the-process", scope = "process")]
static OF_THE_PROCESS: SimpleExecutor;

fn on_a_fixed_port() -> ExecutorBuilder<Tcp> {
    // Only `runner` sets the port.
    let port = env::var("PORT").unwrap_or_else(|_| "1".to_owned());
    listens("fixed-port", &format!("127.0.0.1:{port}"), 40)
}

fn works(ms: u64) {
    // The timeline must show this time as the test's work.
    thread::sleep(Duration::from_millis(ms));
}

/// A process that runs several tests at the same time.
mod first_binary {
    use super::*;

    #[test]
    #[ignore = "a part of other tests"]
    pub(super) fn starts_the_shared_one() {
        if victim_dir().is_none() {
            return;
        }
        uses_shared();
        works(60);
        assert!(OF_THE_PROCESS.is_running());
    }

    #[test]
    #[ignore = "a part of other tests"]
    pub(super) fn uses_the_shared_one() {
        if victim_dir().is_none() {
            return;
        }
        works(20);
        uses_shared();
        works(100);
    }

    #[test]
    #[ignore = "a part of other tests"]
    pub(super) fn waits_for_its_port() {
        on_the_port();
    }

    #[test]
    #[ignore = "a part of other tests"]
    pub(super) fn waits_for_its_port_as_well() {
        on_the_port();
    }

    fn on_the_port() {
        if victim_dir().is_none() {
            return;
        }
        comes("port");
        let _server = on_a_fixed_port()
            .queue(true)
            .start()
            .expect("its port becomes free");
        all_have_come("port", 2);
        // Long enough for the other test to reach the port on a busy machine.
        works(400);
    }
}

/// A second process of the run.
mod second_binary {
    use super::*;

    #[test]
    #[ignore = "a part of other tests"]
    pub(super) fn uses_it_from_another_process() {
        if victim_dir().is_none() {
            return;
        }
        uses_shared();
        works(50);
    }

    #[test]
    #[ignore = "a part of other tests"]
    pub(super) fn has_one_of_its_own() {
        if victim_dir().is_none() {
            return;
        }
        let mut own = odd(["--delay", "0"])
            .name("<i>\"own\"</i> & co")
            .start()
            .expect("it starts");
        works(30);
        own.stop().expect("it stops");
        odd(["--exit-before-ready", "3"])
            .name("broken-service")
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .start()
            .expect_err("it exits");
    }
}

/// A process that is killed while it uses the shared service.
mod third_binary {
    use super::*;

    #[test]
    #[ignore = "a part of other tests"]
    pub(super) fn is_killed() {
        if victim_dir().is_none() {
            return;
        }
        uses_shared();
        works(10);
        send(std::process::id(), SIGKILL);
        works(60_000);
    }
}

/// A process that ends quickly.
mod fourth_binary {
    use super::*;

    #[test]
    #[ignore = "a part of other tests"]
    pub(super) fn is_quick() {
        if victim_dir().is_none() {
            return;
        }
        assert!(SLEEPER.is_running());
    }
}

#[mirakuru::fixture(cmd = "sleep 100", name = "sleeper")]
static SLEEPER: SimpleExecutor;

const MANY: usize = 48;

#[test]
#[ignore = "a part of other tests"]
fn runner_of_many() {
    let Some(dir) = victim_dir() else { return };
    let id = format!("timeline-of-{}", std::process::id());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..MANY / 4 {
                    let status = victim(test_name!(fourth_binary::is_quick), &dir)
                        .env("NEXTEST_RUN_ID", &id)
                        .stdin(Stdio::null())
                        .stdout(Stdio::null())
                        .status()
                        .expect("it starts");
                    assert!(status.success());
                }
            });
        }
    });
}

/// Runs all test processes. One is killed while another continues.
#[test]
#[ignore = "a part of other tests"]
fn runner() {
    let Some(dir) = victim_dir() else { return };
    let port = fixed_port().to_string();
    let id = format!("timeline-of-{}", std::process::id());
    let begin = |tests: &[&str]| {
        let mut command = victims(tests, &dir);
        command
            .arg("--test-threads=4")
            .env("NEXTEST_RUN_ID", &id)
            .env("PORT", &port)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts")
    };
    let (mut first, mut third) = (begin(&tests()[..4]), begin(&tests()[6..]));
    assert!(!third.wait().expect("a child").success());
    let mut second = begin(&tests()[4..6]);
    assert!(second.wait().expect("a child").success());
    assert!(first.wait().expect("a child").success());
}

/// Runs the runner with this timeline, and returns its standard error.
fn run(scratch: &Scratch, timeline: &str) -> String {
    let output = victim(test_name!(runner), scratch.path())
        .env_remove("NEXTEST_RUN_ID")
        .env_remove("MIRAKURU_SESSION_ID")
        .env_remove("XDG_RUNTIME_DIR")
        .env("MIRAKURU_TIMELINE", timeline)
        .current_dir(scratch.path())
        .output()
        .expect("the runner starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&output.stdout)
    );
    text
}

/// The only file in the directory: no events and no unfinished page may be left.
fn only_file(dir: &Path) -> PathBuf {
    let files: Vec<PathBuf> = fs::read_dir(dir)
        .expect("a directory")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn tests() -> [&'static str; 7] {
    [
        test_name!(first_binary::starts_the_shared_one),
        test_name!(first_binary::uses_the_shared_one),
        test_name!(first_binary::waits_for_its_port),
        test_name!(first_binary::waits_for_its_port_as_well),
        test_name!(second_binary::uses_it_from_another_process),
        test_name!(second_binary::has_one_of_its_own),
        test_name!(third_binary::is_killed),
    ]
}

// ---- the trace ----------------------------------------------------------------------------------

/// A script that reads a trace as strictly as Perfetto does, and prints a line for each event.
const READER: &str = r#"
import json, sys
from collections import defaultdict
trace = json.load(open(sys.argv[1]))
events = trace["traceEvents"]
names, tracks, opened = {}, defaultdict(list), {}
for e in events:
    if e["ph"] == "M":
        assert e["name"] in ("process_name", "thread_name"), e
        names[e["pid"], e["tid"] if e["name"] == "thread_name" else None] = e["args"]["name"]
        continue
    assert e["ts"] >= 0 and isinstance(e["pid"], int) and isinstance(e["tid"], int) and e["cat"] and e["name"], e
    if e["ph"] == "X":
        assert e["dur"] >= 0, e
        tracks[e["pid"], e["tid"]].append(e)
    elif e["ph"] == "b":
        opened[e["cat"], e["id"]] = e
    else:
        assert e["ph"] == "e", e
        began = opened.pop((e["cat"], e["id"]))
        assert began["name"] == e["name"] and began["ts"] <= e["ts"], e
        print("use", e["args"]["test"], e["name"], sep="|")
assert not opened, opened
for track, slices in tracks.items():
    assert track in names and (track[0], None) in names, track
    # Perfetto drops slices of a track that overlap without nesting. It counts in nanoseconds, and older versions cut off fractions.
    for whole in (int, round):
        ends = []
        for e in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
            begin = whole(e["ts"] * 1000)
            end = begin + whole(e["dur"] * 1000)
            while ends and ends[-1] <= begin:
                ends.pop()
            assert not ends or end <= ends[-1], (e, ends)
            ends.append(end)
    for e in slices:
        print(e["cat"], names[track], e["name"], e["args"].get("error", ""), e["args"].get("command", ""), sep="|")
path = [e for e in events if e["ph"] == "X" and e["cat"] == "critical"]
assert abs(sum(e["args"]["percent"] for e in path) - 100) < 0.01 * len(path) + 0.1, path
for before, after in zip(path, path[1:]):
    assert abs(before["ts"] + before["dur"] - after["ts"]) < 0.01, (before, after)
print("processes", len({e["pid"] for e in events if e["name"] == "process_name"}))
"#;

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_run_leaves_a_trace() {
    let Some(python) = require("python3") else { return };
    let scratch = Scratch::new();
    // A relative path is resolved against the runner's directory. mirakuru creates the file's
    // directory.
    run(&scratch, "traces/run.json");
    let file = only_file(&scratch.path().join("traces"));
    let read = Command::new(python)
        .args(["-c", READER])
        .arg(&file)
        .output()
        .expect("python runs");
    let text = fs::read_to_string(&file).expect("a trace");
    assert!(
        read.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&read.stderr)
    );
    let seen = String::from_utf8_lossy(&read.stdout);
    for test in tests() {
        assert!(seen.contains(&format!("test|{test}|{test}")), "{test}:\n{seen}");
    }
    for line in [
        "start|shared-service|start shared-service",
        "run|shared-service|shared-service",
        "stop|fixed-port|stop fixed-port",
        "stop|of-the-process|stop of-the-process",
        "start|<i>\"own\"</i> & co|start <i>\"own\"</i> & co",
        "start|broken-service|start broken-service|",
        "waits for its port: fixed-port",
        "waits for shared-service",
        "exited with status 3",
        "redis://user:***@host",
        // Besides the three test processes, the trace shows the services and the critical path as
        // processes.
        "processes 5",
    ] {
        assert!(seen.contains(line), "no `{line}`:\n{seen}");
    }
    for user in [
        test_name!(first_binary::uses_the_shared_one),
        test_name!(second_binary::uses_it_from_another_process),
        test_name!(third_binary::is_killed),
    ] {
        assert!(
            seen.contains(&format!("use|{user}|shared-service in use")),
            "{user}:\n{seen}"
        );
    }
    // One of the two tests had to wait for the port. The shared service was started once.
    let waits = format!("lock|{}", test_name!(first_binary::waits_for_its_port));
    assert!(seen.contains(&waits), "{seen}");
    assert_eq!(seen.matches("|start shared-service|").count(), 1, "{seen}");
    assert!(!text.contains("hunter2"), "{text}");
}

// ---- the page -----------------------------------------------------------------------------------

/// The content of a page after its script has run in a browser.
fn browse(chromium: &Path, scratch: &Scratch, page: &Path) -> String {
    let output = Command::new(chromium)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-dev-shm-usage",
            "--dump-dom",
        ])
        .arg(format!(
            "--user-data-dir={}",
            scratch.path().join("browser").display()
        ))
        .arg(format!("file://{}", page.display()))
        .env("HOME", scratch.path())
        .stdin(Stdio::null())
        .output()
        .expect("the browser starts");
    common::assert_success(&output);
    String::from_utf8(output.stdout).expect("text")
}

/// The HTML of the element with this id, up to the markup `ends`, and its text.
#[track_caller]
fn text_of<'a>(dom: &'a str, id: &str, ends: &str) -> (&'a str, String) {
    let begin = dom
        .find(&format!("id=\"{id}\""))
        .unwrap_or_else(|| panic!("no {id}:\n{dom}"));
    let markup = dom[begin..].split(ends).next().unwrap_or_default();
    let mut text = String::new();
    for part in markup.split('<') {
        text.push_str(part.split_once('>').map_or("", |(_, text)| text));
        text.push(' ');
    }
    (markup, text.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_run_leaves_a_page_that_a_browser_shows() {
    let Some(chromium) = require("chromium") else {
        return;
    };
    let scratch = Scratch::new();
    let pages = scratch.path().join("pages");
    run(&scratch, &pages.join("run.html").display().to_string());
    let page = only_file(&pages);
    let dom = browse(&chromium, &scratch, &page);

    let (_, about) = text_of(&dom, "about", "</header>");
    assert!(about.contains(" · 7 tests · "), "{about}");
    assert!(about.contains(" · 3 processes · "), "{about}");
    let (_, verdict) = text_of(&dom, "verdict", "</div>");
    assert!(
        verdict.contains("the run waited") && verdict.contains(" % of the time for services"),
        "{verdict}"
    );

    // The percentages add up to about 100.
    let (_, legend) = text_of(&dom, "legend", "</ul>");
    let percents: Vec<f64> = legend
        .split(" %")
        .filter_map(|before| before.rsplit(' ').next()?.parse().ok())
        .collect();
    let sum: f64 = percents.iter().sum();
    assert!(
        percents.len() >= 3 && (sum - 100.0).abs() <= 1.0 + percents.len() as f64,
        "{legend}"
    );

    // The chart has a row for each test and each service.
    let (chart, shown) = text_of(&dom, "rows", "<p");
    for test in tests() {
        // The page shows the module's name in a separate element.
        let (module, test) = test.rsplit_once("::").expect("a module");
        assert!(shown.contains(&format!("{module}:: {test}")), "{test}: {shown}");
    }
    for service in [
        "shared-service",
        "fixed-port",
        "of-the-process",
        "broken-service",
        "&lt;i&gt;\"own\"&lt;/i&gt; &amp; co",
    ] {
        assert!(shown.contains(service), "{service}: {shown}");
    }
    for slice in [
        "aria-label=\"shared-service: start: ",
        "aria-label=\"shared-service: ready, for the whole run: ",
        "aria-label=\"broken-service: start failed: ",
        "aria-label=\"of-the-process: stop: ",
        &format!(
            "aria-label=\"{}: ",
            test_name!(second_binary::uses_it_from_another_process)
        ),
    ] {
        assert!(chart.contains(slice), "{slice}\n{chart}");
    }
    assert!(chart.contains("class=\"c\""), "the critical path is marked");
    assert!(chart.contains("class=\"u\""), "the uses are");

    let (_, path) = text_of(&dom, "path", "</table>");
    assert!(
        path.starts_with("step took of the run") && path.contains(" %"),
        "{path}"
    );
    assert!(path.contains("_binary::"), "{path}");
    let (_, services) = text_of(&dom, "services", "</table>");
    assert!(
        services.contains("shared-service 1 start, 4 tests whole run"),
        "{services}"
    );
    assert!(
        services.contains("broken-service 1 start, 0 tests 1 failed"),
        "{services}"
    );
    assert!(services.contains("redis://user:***@host"), "{services}");
    let (_, tests) = text_of(&dom, "tests", "</table>");
    assert!(
        tests.contains(test_name!(third_binary::is_killed)) && tests.contains("killed"),
        "{tests}"
    );
    assert!(!dom.contains("hunter2"));
    assert!(!dom.contains("<i>\"own\"</i>"), "a name is no markup");
}

#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn a_name_that_says_nothing_gets_a_message_once_and_no_timeline() {
    let scratch = Scratch::new();
    let file = scratch.path().join("out").join("timeline.txt");
    let told = run(&scratch, &file.display().to_string());
    assert_eq!(told.matches("no timeline is written").count(), 1, "{told}");
    assert!(told.contains("must end in `.html`"), "{told}");
    assert!(!file.exists());
}

/// Many short processes run side by side. The trace contains all of their tests, whichever process
/// ends last.
#[test]
#[cfg_attr(mirakuru_portable, ignore = "the portable back end recognises no run")]
fn nobodys_last_word_is_lost() {
    let scratch = Scratch::new();
    let file = scratch.path().join("many.json");
    let output = victim(test_name!(runner_of_many), scratch.path())
        .env_remove("NEXTEST_RUN_ID")
        .env_remove("MIRAKURU_SESSION_ID")
        .env_remove("XDG_RUNTIME_DIR")
        .env("MIRAKURU_TIMELINE", &file)
        .output()
        .expect("the runner starts");
    assert!(output.status.success());
    let text = fs::read_to_string(&file).expect("a trace");
    let tests = text.matches("\"cat\":\"test\"").count();
    let ended = text.matches("\"args\":{\"ended\":\"seen\"}").count();
    assert_eq!((tests, ended), (MANY, MANY), "{text}");
}

/// A process without a run writes a timeline of its own, and leaves no events behind.
#[test]
fn a_process_alone_has_a_timeline_of_its_own() {
    let scratch = Scratch::new();
    let file = scratch.path().join("own").join("alone.json");
    let alone = test_name!(second_binary::has_one_of_its_own);
    // The process is an orphan in its own session, so that no parent looks like a test runner. It
    // begins once its parent is gone.
    let status = Command::new("setsid")
        .args([
            "--fork",
            "sh",
            "-c",
            "until [ -e \"$0\" ]; do sleep 0.01; done; exec \"$@\"",
        ])
        .arg(scratch.path().join("go"))
        .arg(env::current_exe().expect("this binary"))
        .args([alone, "--exact", "--ignored"])
        .env_remove("NEXTEST_RUN_ID")
        .env_remove("MIRAKURU_SESSION_ID")
        .env(VICTIM, scratch.path())
        .env("TMPDIR", scratch.path())
        .env_remove("XDG_RUNTIME_DIR")
        .env("MIRAKURU_TIMELINE", &file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("it starts");
    assert!(status.success());
    fs::write(scratch.path().join("go"), "").expect("a writable directory");
    let text = || fs::read_to_string(&file).unwrap_or_default();
    let all = || text().contains(alone) && text().contains("broken-service");
    assert!(wait_until(all, LONG), "{}", text());
    let runs = || {
        let bases = fs::read_dir(scratch.path())
            .expect("the scratch directory")
            .flatten();
        let entries = bases.flat_map(|base| fs::read_dir(base.path()).into_iter().flatten().flatten());
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("run-"))
            .count()
    };
    assert!(wait_until(|| runs() == 0, LONG), "events are left behind");
}
