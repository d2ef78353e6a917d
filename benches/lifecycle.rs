//! What starting, waiting and stopping cost, beside the same by hand in the same run.
//!
//! `cargo bench` prints one table, in less than two minutes. All figures are medians; nothing is asserted. Read it on a quiet
//! machine: a ratio of two figures of one run says more than either.
//!
//! - **start overhead**: `Executor::builder("sleep 60").start()`, supervisor included, less
//!   `std::process::Command::spawn` of the same program, in turns, from a process of 10 and of 200 MB of resident memory.
//! - **ready lag**: from the moment at which the helper service stamps CLOCK_MONOTONIC, right after it is ready, until
//!   `start` returns; for services that take 0 to 1,000 ms to start. Beside it: a look every 50 µs by hand (for `Banner` a
//!   blocking read of a pipe). Negative: `start` returned before the helper had taken its time stamp.
//! - **stop lag**: from the helper's stamp right before it dies until `stop` returns. Beside it: `waitpid`.
//! - **SIGKILL**: from the kill of a test process until the service (a tree of five processes, which obey SIGTERM) is gone.
//! - **Redis**: a whole cycle of start, ready, stop, with `--hz 500`, since Redis looks for SIGTERM only that often. Beside
//!   it: by hand without supervision with a look every 50 µs and `waitpid`, and polls of 1 and of 100 ms.
//! - **50 services**: started on 50 threads, all ready, all stopped. Beside it: a poll of 1 ms by hand, on threads as well.
//! - **memory**: Pss_Dirty of the two processes that supervise one service. What was just written to disk counts as
//!   dirty until it is written back, and the programs here were just built; so `sync` comes first.
//!
//! The harness is this file's own, because the point is figures side by side, and half of them are taken from time stamps of
//! other processes.

mod common;
#[path = "../tests/common/mod.rs"]
mod processes;

use std::env;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use common::by_hand::{self, IDEAL, Manner};
use common::table::{self, Row};
use common::{lag, median, ms};
use mirakuru::{Banner, Executor, ExecutorBuilder, NoWait, PidFile, Readiness, Tcp, UnixSocket};
use processes::{LONG, ODD, Scratch, alive, monotonic, numbers, odd, stamped, supervisors};

/// Some figures need a process of their own: this binary again, told by this variable what to be.
const ROLE: &str = "MIRAKURU_BENCH_ROLE";
/// How long the services take to start, in milliseconds, and how many cycles of each are enough.
const START_UPS: [(u64, usize); 6] = [(0, 25), (5, 20), (20, 20), (50, 15), (200, 5), (1000, 2)];
const MEGABYTES: [u64; 2] = [10, 200];

fn main() {
    if let Ok(role) = env::var(ROLE) {
        return play(&role);
    }
    // `cargo test --benches` and `cargo nextest` run this without the argument: there is nothing to test.
    if !env::args().any(|arg| arg == "--bench") {
        return;
    }
    let begin = Instant::now();
    let mut rows = Vec::new();
    start_overhead(&mut rows);
    lags(&mut rows);
    killed(&mut rows);
    redis(&mut rows);
    many(&mut rows, 0);
    many(&mut rows, 20);
    memory(&mut rows);
    println!();
    table::print(&rows);
    println!(
        "\nmedians, in {:.0} s, on {} cores of {}",
        begin.elapsed().as_secs_f64(),
        thread::available_parallelism().map_or(0, usize::from),
        processor()
    );
}

/// Progress, beside the table.
fn say(text: &str) {
    eprintln!("measuring {text}");
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    model.map_or_else(
        || "an unknown processor".to_owned(),
        |model| model.trim_start_matches(['\t', ' ', ':']).to_owned(),
    )
}

// ---- processes of their own ---------------------------------------------------------------------------------------------

fn play(role: &str) {
    let (role, argument) = role.split_once(' ').unwrap_or((role, ""));
    match role {
        "overhead" => overhead_of(argument.parse().expect("megabytes")),
        "memory" => memory_of(argument.parse().expect("megabytes")),
        "victim" => {
            let service = odd(["--fork", "2", "--pids", argument])
                .arg("--ready-line")
                .arg("up");
            let _service = service
                .wait_for(Banner::matching("^up$"))
                .start()
                .expect("the tree");
            println!("ready");
            thread::sleep(LONG);
        }
        other => panic!("no such role: {other}"),
    }
}

fn role(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this binary"));
    command.env(ROLE, role).stderr(Stdio::inherit());
    command
}

/// The numbers that a process of its own prints, one a line.
fn ask(what: &str) -> Vec<f64> {
    let output = role(what).output().expect("this binary");
    assert!(output.status.success(), "{what}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

/// Memory that makes this process as large as is wanted.
fn ballast(megabytes: u64) -> Vec<u8> {
    let missing = (megabytes << 20).saturating_sub(processes::rss_kb() << 10);
    vec![1; missing as usize]
}

// ---- start --------------------------------------------------------------------------------------------------------------

fn start_overhead(rows: &mut Vec<Row>) {
    for (megabytes, target) in MEGABYTES.into_iter().zip([1.5, 3.0]) {
        say(&format!("the start overhead, from {megabytes} MB"));
        let [ours, bare] = ask(&format!("overhead {megabytes}"))[..] else {
            panic!("two figures");
        };
        rows.push(Row {
            figure: format!("start overhead, from {megabytes} MB"),
            ours: ours - bare,
            beside: Some(("`Command::spawn` itself".to_owned(), bare)),
            unit: "ms",
            target: Some((format!("at most {target} ms"), ours - bare <= target)),
        });
    }
}

fn overhead_of(megabytes: u64) {
    let ballast = ballast(megabytes);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let begin = Instant::now();
        let mut service = Executor::builder("sleep 60").start().expect("sleep");
        ours.push(ms(begin.elapsed()));
        service.kill().expect("a kill");

        let begin = Instant::now();
        let mut child = by_hand::spawn("sleep", &["60".to_owned()]);
        bare.push(ms(begin.elapsed()));
        let _ = child.kill();
        let _ = child.wait();
    }
    std::hint::black_box(&ballast);
    println!("{}\n{}", median(ours), median(bare));
}

// ---- ready and stop -------------------------------------------------------------------------------------------------------

/// What one cycle takes: ready lag and stop lag.
type Lags = (f64, f64);

fn lags(rows: &mut Vec<Row>) {
    let mut stops = (Vec::new(), Vec::new());
    // One cycle of a service that takes so many milliseconds to start.
    type Cycle = fn(u64) -> Lags;
    let kinds: &[(&str, Cycle, Cycle)] = &[
        ("Tcp", tcp, tcp_by_hand),
        ("UnixSocket", unix, unix_by_hand),
        #[cfg(feature = "http")]
        ("Http", http, http_by_hand),
        ("PidFile", pid_file, pid_file_by_hand),
        ("Banner", banner, banner_by_hand),
    ];
    for (name, ours, by_hand) in kinds {
        say(&format!("the lags of {name}"));
        for (delay, cycles) in START_UPS {
            let mut ready = (Vec::new(), Vec::new());
            for _ in 0..cycles {
                let (our_ready, our_stop) = ours(delay);
                let (their_ready, their_stop) = by_hand(delay);
                ready.0.push(our_ready);
                ready.1.push(their_ready);
                stops.0.push(our_stop);
                stops.1.push(their_stop);
            }
            let lag = median(ready.0);
            let (target, limit) = match delay {
                0..=50 => ("under 1 ms".to_owned(), 1.0),
                _ => {
                    let limit = delay as f64 / 50.0;
                    (format!("under 2 %, {limit} ms"), limit)
                }
            };
            rows.push(Row {
                figure: format!("ready lag of `{name}`, up after {delay} ms"),
                ours: lag,
                beside: Some(("50 µs by hand".to_owned(), median(ready.1))),
                unit: "ms",
                target: Some((target, lag < limit)),
            });
        }
    }
    let lag = median(stops.0);
    rows.push(Row {
        figure: "stop lag, all of these".to_owned(),
        ours: lag,
        beside: Some(("`waitpid` by hand".to_owned(), median(stops.1))),
        unit: "ms",
        target: Some(("under 1 ms".to_owned(), lag < 1.0)),
    });
}

fn tcp(delay: u64) -> Lags {
    cycle(delay, |odd| {
        odd.args(["--listen", "127.0.0.1:{port}"])
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
    })
}

fn tcp_by_hand(delay: u64) -> Lags {
    let addr = by_hand::free_addr();
    cycle_by_hand(delay, &["--listen", &addr.to_string()], |_| {
        by_hand::accepts(addr)
    })
}

fn unix(delay: u64) -> Lags {
    cycle(delay, |odd| {
        odd.args(["--unix", "{dir}/socket"])
            .wait_for(UnixSocket::path("{dir}/socket"))
    })
}

fn unix_by_hand(delay: u64) -> Lags {
    let scratch = Scratch::new();
    let path = scratch.file("socket");
    cycle_by_hand(delay, &["--unix", &path], |_| by_hand::accepts_on(path.as_ref()))
}

#[cfg(feature = "http")]
fn http(delay: u64) -> Lags {
    cycle(delay, |odd| {
        odd.args(["--http", "127.0.0.1:{port}"])
            .wait_for(mirakuru::Http::head("http://127.0.0.1:{port}/").status(200))
    })
}

#[cfg(feature = "http")]
fn http_by_hand(delay: u64) -> Lags {
    let addr = by_hand::free_addr();
    cycle_by_hand(delay, &["--http", &addr.to_string()], |_| {
        by_hand::answers_200(addr)
    })
}

fn pid_file(delay: u64) -> Lags {
    cycle(delay, |odd| {
        odd.args(["--pid-file", "{dir}/pid"])
            .wait_for(PidFile::path("{dir}/pid"))
    })
}

fn pid_file_by_hand(delay: u64) -> Lags {
    let scratch = Scratch::new();
    let path = scratch.file("pid");
    cycle_by_hand(delay, &["--pid-file", &path], |_| Path::new(&path).exists())
}

fn banner(delay: u64) -> Lags {
    cycle(delay, |odd| {
        odd.args(["--ready-line", "Ready to accept connections"])
            .wait_for(Banner::matching("Ready to accept connections"))
    })
}

fn banner_by_hand(delay: u64) -> Lags {
    let line = "Ready to accept connections";
    cycle_by_hand(delay, &["--ready-line", line], |stdout| {
        by_hand::reads(stdout, line);
        true
    })
}

/// One life of the helper, by this crate.
fn cycle<R: Readiness>(
    delay: u64,
    recipe: impl FnOnce(ExecutorBuilder<NoWait>) -> ExecutorBuilder<R>,
) -> Lags {
    let scratch = Scratch::new();
    let stamps = scratch.file("stamps");
    let odd = odd(["--delay", &delay.to_string(), "--stamp", &stamps]);
    let mut service = recipe(odd).start().expect("a start");
    let ready = monotonic();
    // `Banner` and others may be here before the helper has taken its time stamp.
    let stamp = await_stamp(&stamps, "ready");
    service.stop().expect("a stop");
    let stopped = monotonic();
    (
        lag(ready, stamp),
        lag(stopped, stamped(&stamps, "exit").expect("its last stamp")),
    )
}

/// The same by hand. `is_ready` is looked at until it says yes; it is given the helper's output.
fn cycle_by_hand(
    delay: u64,
    args: &[&str],
    mut is_ready: impl FnMut(&mut BufReader<std::process::ChildStdout>) -> bool,
) -> Lags {
    let scratch = Scratch::new();
    let stamps = scratch.file("stamps");
    let delay = delay.to_string();
    let mut all: Vec<String> = ["--delay", &delay, "--stamp", &stamps].map(str::to_owned).into();
    all.extend(args.iter().map(|&arg| arg.to_owned()));
    let (mut child, mut stdout) = by_hand::spawn_piped(ODD, &all);
    IDEAL.until(|| is_ready(&mut stdout));
    let ready = monotonic();
    let stamp = await_stamp(&stamps, "ready");
    IDEAL.stop(&mut child);
    let stopped = monotonic();
    (
        lag(ready, stamp),
        lag(stopped, stamped(&stamps, "exit").expect("its last stamp")),
    )
}

fn await_stamp(stamps: &str, event: &str) -> Duration {
    let end = Instant::now() + LONG;
    loop {
        if let Some(stamp) = stamped(stamps, event) {
            return stamp;
        }
        assert!(Instant::now() < end, "the helper has no stamp `{event}`");
        thread::yield_now();
    }
}

// ---- the end of the test process ------------------------------------------------------------------------------------------

fn killed(rows: &mut Vec<Row>) {
    say("SIGKILL of a test process");
    let mut times = Vec::new();
    for _ in 0..20 {
        let scratch = Scratch::new();
        let pids = scratch.file("pids");
        let mut victim = role(&format!("victim {pids}"))
            .env("TMPDIR", scratch.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary");
        let mut line = String::new();
        let stdout = victim.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("its output");
        assert_eq!(line, "ready\n");
        let tree = numbers(&pids);
        assert_eq!(tree.len(), 5, "not all of the tree is there");
        let begin = Instant::now();
        victim.kill().expect("a kill");
        while tree.iter().any(|&pid| alive(pid)) {
            assert!(begin.elapsed() < LONG, "it survives");
        }
        times.push(ms(begin.elapsed()));
        let _ = victim.wait();
    }
    let time = median(times);
    rows.push(Row {
        figure: "SIGKILL of the test process until the tree is empty".to_owned(),
        ours: time,
        beside: None,
        unit: "ms",
        target: Some(("under 10 ms".to_owned(), time < 10.0)),
    });
}

// ---- Redis -----------------------------------------------------------------------------------------------------------------

fn redis(rows: &mut Vec<Row>) {
    if processes::require("redis-server").is_none() {
        return;
    }
    say("Redis");
    let scratch = Scratch::new();
    let dir = scratch.path().to_str().expect("a path in UTF-8");
    let args = |port: &str| -> Vec<String> {
        ["--port", port, "--hz", "500", "--save", "", "--dir", dir]
            .map(str::to_owned)
            .into()
    };
    let peers: [(&str, Manner); 3] = [
        ("by hand, 50 µs, no supervision", IDEAL),
        ("poll of 1 ms", by_hand::poll(1)),
        ("poll of 100 ms", by_hand::poll(100)),
    ];
    let mut ours = Vec::new();
    let mut theirs: [Vec<f64>; 3] = Default::default();
    for _ in 0..25 {
        let begin = Instant::now();
        let mut server = Executor::builder(["redis-server"])
            .args(args("{port}"))
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .start()
            .expect("Redis");
        server.stop().expect("a stop");
        ours.push(ms(begin.elapsed()));
        for ((_, manner), times) in peers.iter().zip(&mut theirs) {
            let addr = by_hand::free_addr();
            let args = args(&addr.port().to_string());
            let begin = Instant::now();
            manner.live("redis-server", &args, addr);
            times.push(ms(begin.elapsed()));
        }
    }
    let ours = median(ours);
    for ((name, manner), times) in peers.iter().zip(theirs) {
        let takes = median(times);
        rows.push(Row {
            figure: "Redis: start, ready, stop".to_owned(),
            ours,
            beside: Some(((*name).to_owned(), takes)),
            unit: "ms",
            // The bound is on what supervision adds. The polls are there to be looked at.
            target: (manner.gone.is_none()).then(|| ("at most 1.25 times".to_owned(), ours <= 1.25 * takes)),
        });
    }
}

// ---- many at once ------------------------------------------------------------------------------------------------------------

/// Fifty services that are up after `delay` milliseconds.
fn many(rows: &mut Vec<Row>, delay: u64) {
    const COUNT: usize = 50;
    say(&format!("{COUNT} services together"));
    let delay_text = delay.to_string();
    let args = |addr: &str| -> Vec<String> {
        ["--delay", &delay_text, "--listen", addr]
            .map(str::to_owned)
            .into()
    };
    // On as many threads, all ready before the first is stopped.
    let together = |start: &(dyn Fn(usize) -> Box<dyn FnOnce()> + Sync)| {
        let barrier = Barrier::new(COUNT);
        let begin = Instant::now();
        thread::scope(|scope| {
            for number in 0..COUNT {
                let barrier = &barrier;
                scope.spawn(move || {
                    let stop = start(number);
                    barrier.wait();
                    stop();
                });
            }
        });
        ms(begin.elapsed())
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        ours.push(together(&|_| {
            let mut service = Executor::builder([ODD])
                .args(args("127.0.0.1:{port}"))
                .wait_for(Tcp::addr("127.0.0.1:{port}"))
                .start()
                .expect("a start");
            Box::new(move || service.stop().expect("a stop"))
        }));
        let addrs: Vec<SocketAddr> = (0..COUNT).map(|_| by_hand::free_addr()).collect();
        theirs.push(together(&|number| {
            let manner = by_hand::poll(1);
            let mut child = by_hand::spawn(ODD, &args(&addrs[number].to_string()));
            manner.until(|| by_hand::accepts(addrs[number]));
            Box::new(move || manner.stop(&mut child))
        }));
    }
    let (ours, theirs) = (median(ours), median(theirs));
    rows.push(Row {
        figure: format!("{COUNT} services together, up after {delay} ms: start, ready, stop"),
        ours,
        beside: Some(("poll of 1 ms".to_owned(), theirs)),
        unit: "ms",
        target: Some(("at most 1.5 times".to_owned(), ours <= 1.5 * theirs)),
    });
}

// ---- memory ------------------------------------------------------------------------------------------------------------------

fn memory(rows: &mut Vec<Row>) {
    for megabytes in MEGABYTES {
        say(&format!("the memory of a supervisor, from {megabytes} MB"));
        let [size] = ask(&format!("memory {megabytes}"))[..] else {
            panic!("one figure");
        };
        rows.push(Row {
            figure: format!("memory of one service's supervision, from {megabytes} MB"),
            ours: size,
            beside: None,
            unit: "KiB",
            target: Some(("under 300 KiB".to_owned(), size < 300.0)),
        });
    }
}

fn memory_of(megabytes: u64) {
    let mut ballast = ballast(megabytes);
    let service = Executor::builder("sleep 60").start().expect("sleep");
    // As tests do: this process goes on writing to its memory, which the supervisor must not hold copies of.
    ballast.fill(2);
    std::hint::black_box(&ballast);
    let synced = Command::new("sync").status();
    assert!(synced.is_ok_and(|status| status.success()), "sync");
    let supervisors = supervisors(service.pid());
    assert!(!supervisors.is_empty(), "who supervises it?");
    println!("{}", supervisors.into_iter().map(pss_dirty).sum::<u64>());
}

/// In KiB.
fn pss_dirty(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss_Dirty:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).expect("Pss_Dirty")
}
