//! Measures the cost of supervision: memory, threads, and processor time, both while the caller
//! waits and while the service runs.
//!
//! - **memory**: the memory that the supervision of one service uses. The test process has 10 or
//!   200 MB, and keeps writing to it. The two supervisor processes share one address space, which
//!   is counted once (`KCMP_VM` tells whether they share it). `Pss_Dirty` divides each page by the
//!   number of processes that share it, so it includes half of the test process's relocated
//!   constants. `Private_Dirty` leaves shared pages out. *More for both* is the growth of
//!   `Pss_Dirty` of the test process and the supervision together. `sync` runs first, because data
//!   that is not yet on disk counts as dirty.
//! - **threads**: the threads that each service adds to the test process.
//! - **waiting**: the processor time of the test process and of the supervisor during a start of
//!   1,000 ms. For comparison: polls by hand every 50 µs, every millisecond and every 100 ms.
//! - **running**: the processor time of the supervisor while the service is idle for a second.
//!
//! This benchmark uses no harness, because a harness times calls, and none of these figures is the
//! time of a call.
//!
//! `cargo bench --bench footprint` prints tables, and takes half a minute.

mod common;
#[path = "../tests/common/mod.rs"]
mod processes;

use std::ffi::{c_int, c_long, c_ulong};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::by_hand::{self, IDEAL, Manner};
use common::table::{self, Align, number, target};
use common::{ask, ballast, median, own_role};
use mirakuru::{Banner, Executor, ExecutorBuilder, NoWait, PidFile, Readiness, SdNotify, Tcp, UnixSocket};
use processes::{ODD, entries, odd, supervisors};

fn main() {
    if let Some((_, megabytes)) = own_role() {
        return memory_of(megabytes.parse().expect("megabytes"));
    }
    if !common::is_asked_for() {
        return;
    }
    let begin = Instant::now();
    memory();
    threads();
    processor();
    println!("\n{}", table::foot(begin.elapsed()));
}

// ---- memory -------------------------------------------------------------------------------------

fn memory() {
    let mut rows = vec![
        [
            "memory of one service's supervision",
            "Pss_Dirty",
            "Private_Dirty",
            "Pss",
            "more for both",
            "target",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for megabytes in [10, 200] {
        let [pss_dirty, private_dirty, pss, more] = ask(&format!("memory {megabytes}"))[..] else {
            panic!("four figures");
        };
        let kib = |figure: f64| format!("{figure} KiB");
        rows.push(vec![
            format!("from a test process of {megabytes} MB"),
            kib(pss_dirty),
            kib(private_dirty),
            kib(pss),
            kib(more),
            target("Pss_Dirty under 300 KiB", pss_dirty < 300.0),
        ]);
    }
    table::print(&rows, Align::NumbersRight);
}

fn memory_of(megabytes: u64) {
    // The first start in a process does some work that is done only once. It must not be counted as
    // a cost of the service.
    drop(Executor::builder("sleep 60").start().expect("sleep"));
    let mut ballast = ballast(megabytes);
    let me = std::process::id();
    sync();
    let before = kib_of(me, "Pss_Dirty:");
    let service = Executor::builder("sleep 60").start().expect("sleep");
    // Tests keep writing to their memory. The supervisor must not keep copies of the old pages.
    ballast.fill(2);
    std::hint::black_box(&ballast);
    sync();
    let mut supervisors = supervisors(service.pid());
    assert!(!supervisors.is_empty(), "who supervises it?");
    // Supervisors that share one address space are counted once.
    let mut at = 1;
    while at < supervisors.len() {
        let known = supervisors[..at]
            .iter()
            .any(|&pid| have_one_memory(pid, supervisors[at]));
        if known {
            supervisors.remove(at);
        } else {
            at += 1;
        }
    }
    let sum = |figure| supervisors.iter().map(|&pid| kib_of(pid, figure)).sum::<i64>();
    for figure in ["Pss_Dirty:", "Private_Dirty:", "Pss:"] {
        println!("{}", sum(figure));
    }
    println!("{}", sum("Pss_Dirty:") + kib_of(me, "Pss_Dirty:") - before);
}

/// Whether two processes share their memory. If the kernel cannot tell, they are counted
/// separately.
fn have_one_memory(pid: u32, other: u32) -> bool {
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    const KCMP: c_long = if cfg!(target_arch = "x86_64") { 312 } else { 272 };
    const VM: c_int = 1;
    // SAFETY: `kcmp` accesses no memory of this process. The numbers are those of x86-64, and of
    // all newer architectures.
    unsafe { syscall(KCMP, pid, other, VM, 0 as c_ulong, 0 as c_ulong) == 0 }
}

fn sync() {
    let synced = Command::new("sync").status();
    assert!(synced.is_ok_and(|status| status.success()), "sync");
}

fn kib_of(pid: u32, figure: &str) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its memory");
    let line = text.lines().find_map(|line| line.strip_prefix(figure));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).expect("a number")
}

// ---- threads ------------------------------------------------------------------------------------

fn threads() {
    let before = entries("/proc/self/task");
    let services: Vec<_> = (0..10)
        .map(|_| {
            odd(["--listen", "127.0.0.1:{port}"])
                .wait_for(Tcp::addr("127.0.0.1:{port}"))
                .start()
                .expect("a start")
        })
        .collect();
    let more = entries("/proc/self/task") - before;
    drop(services);
    println!(
        "\nThreads of the test process for 10 services: {more} ({})",
        target("target: none", more == 0)
    );
}

// ---- processor ----------------------------------------------------------------------------------

const WAIT: &str = "1000";

fn processor() {
    let ours: &[(&str, Measure)] = &[
        ("Tcp", || {
            burnt(|odd| {
                odd.args(["--listen", "127.0.0.1:{port}"])
                    .wait_for(Tcp::addr("127.0.0.1:{port}"))
            })
        }),
        #[cfg(feature = "http")]
        ("Http", || {
            burnt(|odd| {
                odd.args(["--http", "127.0.0.1:{port}"])
                    .wait_for(mirakuru::Http::head("http://127.0.0.1:{port}/"))
            })
        }),
        ("UnixSocket", || {
            burnt(|odd| {
                odd.args(["--unix", "{dir}/socket"])
                    .wait_for(UnixSocket::path("{dir}/socket"))
            })
        }),
        ("PidFile", || {
            burnt(|odd| {
                odd.args(["--pid-file", "{dir}/pid"])
                    .wait_for(PidFile::path("{dir}/pid"))
            })
        }),
        ("Banner", || {
            burnt(|odd| {
                odd.args(["--ready-line", "up"])
                    .wait_for(Banner::matching("^up$"))
            })
        }),
        ("SdNotify", || {
            burnt(|odd| odd.arg("--sd-notify").wait_for(SdNotify::new()))
        }),
    ];
    println!("\nProcessor time of a start that takes {WAIT} ms, in ms; and of a second of running idle.\n");
    let mut rows = vec![
        [
            "who waits",
            "test process",
            "supervisor, start included",
            "supervisor, running",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (name, measure) in ours {
        let all: Vec<Burnt> = (0..3).map(|_| measure()).collect();
        let of = |figure: fn(&Burnt) -> f64| number(median(all.iter().map(figure).collect()));
        rows.push(vec![
            format!("`{name}`"),
            of(|burnt| burnt.here),
            of(|burnt| burnt.supervisor),
            of(|burnt| burnt.running),
        ]);
    }
    for (name, manner) in [
        ("by hand, a connection every 50 µs", IDEAL),
        ("by hand, a connection every 1 ms", by_hand::poll(1)),
        ("by hand, a connection every 100 ms", by_hand::poll(100)),
    ] {
        let here = median((0..3).map(|_| burnt_by_hand(manner)).collect());
        rows.push(vec![name.to_owned(), number(here), String::new(), String::new()]);
    }
    table::print(&rows, Align::NumbersRight);
}

type Measure = fn() -> Burnt;

/// Processor time in milliseconds.
struct Burnt {
    here: f64,
    supervisor: f64,
    running: f64,
}

fn burnt<R: Readiness>(recipe: impl FnOnce(ExecutorBuilder<NoWait>) -> ExecutorBuilder<R>) -> Burnt {
    let before = here();
    let service = recipe(odd(["--delay", WAIT])).start().expect("a start");
    let after = here();
    let supervisors = supervisors(service.pid());
    let sum = || supervisors.iter().map(|&pid| on_cpu(pid)).sum::<f64>();
    let started = sum();
    thread::sleep(Duration::from_secs(1));
    Burnt {
        here: after - before,
        supervisor: started,
        running: sum() - started,
    }
}

fn burnt_by_hand(manner: Manner) -> f64 {
    let addr = by_hand::free_addr();
    let args = ["--delay", WAIT, "--listen", &addr.to_string()].map(str::to_owned);
    let before = here();
    let child = by_hand::Killed(by_hand::spawn(ODD, &args));
    manner.until(|| by_hand::accepts(addr));
    let burnt = here() - before;
    drop(child);
    burnt
}

/// The processor time that a process has used so far, in milliseconds. `schedstat` counts in
/// nanoseconds, `stat` only in ticks of 10 ms.
fn on_cpu(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("its account");
    let nanos = text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
    nanos.expect("nanoseconds") / 1e6
}

/// The processor time of this process so far, in milliseconds. `schedstat` counts only the main
/// thread, but no other thread of it works.
fn here() -> f64 {
    on_cpu(std::process::id())
}
