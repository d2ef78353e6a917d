//! Measures how long a test process takes to find a shared service that another process has
//! started, with 1, 10 and 100 processes at once.
//!
//! Each process runs this binary again, as `cargo nextest run` would: with `NEXTEST_RUN_ID` in its
//! environment, and with the benchmark as its runner. The first process starts the service; all
//! others attach to it. Each process measures its first use of the `static`. The benchmark itself
//! measures the time from the first spawn until the last process has ended. For comparison, it also
//! runs the same number of processes that do not use the `static`.
//!
//! This benchmark uses no harness, because a process attaches only once. Each sample is a new
//! process, which measures and prints its own time.
//!
//! `cargo bench --bench attach` prints a table within a few seconds.

mod common;
#[path = "../tests/common/mod.rs"]
mod processes;

use std::process::{Child, Stdio};
use std::time::Instant;

use common::table::{self, Align, number};
use common::{median, ms, own_role, role};
use mirakuru::TcpExecutor;
use processes::ODD;

#[mirakuru::fixture(tcp = "127.0.0.1:{port}", cmd = [ODD, "--listen", "127.0.0.1:{port}"])]
static SHARED: TcpExecutor;

fn main() {
    match own_role().as_ref().map(|(role, _)| role.as_str()) {
        Some("attach") => {
            let begin = Instant::now();
            let port = SHARED.port();
            println!("{} {}", begin.elapsed().as_secs_f64() * 1e6, port);
        }
        Some(_) => println!("0 0"),
        None if common::is_asked_for() => measure(),
        None => {}
    }
}

fn measure() {
    let begin = Instant::now();
    let (first, _) = all("attach", 1);
    let mut rows = vec![
        [
            "processes at once",
            "attach, median µs",
            "attach, slowest µs",
            "all of them, ms",
            "as many that do not attach, ms",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (count, samples) in [(1, 60), (10, 20), (100, 5)] {
        let (mut attaches, mut walls, mut idle) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..samples {
            let (times, wall) = all("attach", count);
            attaches.extend(times);
            walls.push(wall);
            idle.push(all("nothing", count).1);
        }
        let slowest = attaches.iter().copied().fold(0.0, f64::max);
        rows.push(vec![
            count.to_string(),
            number(median(attaches)),
            number(slowest),
            number(median(walls)),
            number(median(idle)),
        ]);
    }
    table::print(&rows, Align::NumbersRight);
    println!(
        "\nThe first process, which starts the service: {} µs. {}",
        number(first[0]),
        table::foot(begin.elapsed())
    );
}

/// Runs this many processes. Returns the times that they print, and the time that all of them take
/// together.
fn all(what: &str, count: usize) -> (Vec<f64>, f64) {
    let run = format!("bench-{}", std::process::id());
    let begin = Instant::now();
    let children: Vec<Child> = (0..count)
        .map(|_| {
            role(what)
                .env("NEXTEST_RUN_ID", &run)
                .env_remove("MIRAKURU_SESSION_ID")
                .stdout(Stdio::piped())
                .spawn()
                .expect("this binary")
        })
        .collect();
    let outputs: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().expect("a child of ours");
            assert!(output.status.success(), "{what}: {}", output.status);
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
        .collect();
    let wall = ms(begin.elapsed());
    let (times, ports): (Vec<f64>, Vec<u16>) = outputs
        .iter()
        .map(|text| {
            let (time, port) = text.trim().split_once(' ').expect("two numbers");
            (
                time.parse::<f64>().expect("a time"),
                port.parse::<u16>().expect("a port"),
            )
        })
        .unzip();
    assert!(
        ports.windows(2).all(|pair| pair[0] == pair[1]),
        "not the same service: {ports:?}"
    );
    (times, wall)
}
