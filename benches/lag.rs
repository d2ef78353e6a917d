//! Measures, for each readiness condition, how soon the caller notices that a service is ready, and
//! that it is gone.
//!
//! - **ready lag**: the time from the helper's CLOCK_MONOTONIC stamp, taken right after it *is*
//!   ready, until `start` returns. The helper takes 0 to 1,000 ms to start.
//! - **stop lag**: the time from the helper's stamp right before it exits until `stop` returns.
//!
//! For comparison, the helper is also run by hand, as fast as possible without supervision,
//! alternating with mirakuru. `std` spawns it, a poll every 50 µs notices that it is ready (a
//! blocking read for `Banner` and `SdNotify`), and `waitpid` notices its exit. The polls use two
//! fifths of a core: see `footprint`.
//!
//! `And` combines `Tcp` and `Banner`. A lag is negative if `start` returns before the helper has
//! taken its time stamp. `NoWait` has no lag.
//!
//! `Exec` runs a program, here `test -e`, until it succeeds. Its target includes the time of one
//! run, which is measured and printed as well. By hand, the program is run again without a pause.
//!
//! This benchmark uses no harness, because a harness times a call, while the time here begins with
//! a stamp that *another process* takes during the call. `cargo bench --bench lag` prints tables of
//! medians after about two minutes; nothing is asserted. With `-- --worker` it does the Rust part
//! of `benches/compare/run`.

mod common;
#[path = "../tests/common/mod.rs"]
mod processes;

use std::io::{BufRead, Write};
use std::time::Instant;

use common::by_hand::IDEAL;
use common::cycles::{self, KINDS, Who};
use common::table::{self, Align, number};
use common::{ask, ballast, by_hand, median, ms, own_role};
use mirakuru::Executor;

/// Start-up times of the services in milliseconds, and the number of cycles measured for each.
const START_UPS: [(u64, usize); 6] = [(0, 20), (5, 15), (20, 15), (50, 10), (200, 5), (1000, 2)];

fn main() {
    if let Some((_, megabytes)) = own_role() {
        return overhead(megabytes.parse().expect("megabytes"));
    }
    if std::env::args().any(|arg| arg == "--worker") {
        return work();
    }
    if !common::is_asked_for() {
        return;
    }
    let begin = Instant::now();
    let program = median((0..50).map(|_| own_time()).collect());
    let (mut ready, mut stop) = (Vec::new(), Vec::new());
    for kind in KINDS {
        eprintln!("measuring {}", kind.name);
        let mut cells = vec![format!("`{}`", kind.name)];
        let (mut our_stops, mut their_stops) = (Vec::new(), Vec::new());
        for (delay, cycles) in START_UPS {
            let (mut our_readies, mut their_readies) = (Vec::new(), Vec::new());
            for _ in 0..cycles {
                let (ours, theirs) = (
                    kind.live(Who::Mirakuru, delay),
                    kind.live(Who::Hand(IDEAL), delay),
                );
                our_readies.push(ours.ready);
                their_readies.push(theirs.ready);
                our_stops.push(ours.stop);
                their_stops.push(theirs.stop);
            }
            let lag = median(our_readies);
            let own = if kind.name == "Exec" { program } else { 0.0 };
            cells.push(cell(lag, median(their_readies), lag < limit(delay) + own));
        }
        ready.push(cells);
        let lag = median(our_stops);
        stop.push(vec![
            format!("`{}`", kind.name),
            cell(lag, median(their_stops), lag < 1.0),
        ]);
    }

    println!("\nReady lag in ms, by hand in parentheses; **bold** where the target is missed.\n");
    let head: Vec<String> = START_UPS
        .iter()
        .map(|(delay, _)| format!("up after {delay} ms"))
        .collect();
    let mut all = vec![[vec!["readiness".to_owned()], head].concat()];
    all.extend(ready);
    let limits = START_UPS.iter().map(|(delay, _)| format!("< {}", limit(*delay)));
    all.push([vec!["*target*".to_owned()], limits.collect()].concat());
    table::print(&all, Align::NumbersRight);
    println!(
        "\nThe program that `Exec` runs takes {} ms, by which its target is later.",
        number(program)
    );

    println!("\nStop lag in ms, by hand (`waitpid`) in parentheses, whatever the start-up.\n");
    let mut all = vec![vec!["readiness".to_owned(), "stop lag".to_owned()]];
    all.extend(stop);
    all.push(vec!["*target*".to_owned(), "< 1".to_owned()]);
    table::print(&all, Align::NumbersRight);
    println!("\n{}", table::foot(begin.elapsed()));
}

/// The time that `Exec`'s program takes by itself, in milliseconds.
fn own_time() -> f64 {
    let begin = Instant::now();
    let mut child = by_hand::spawn("test", &["-e".to_owned(), "/".to_owned()]);
    child.wait().expect("a child of ours");
    ms(begin.elapsed())
}

/// The largest allowed lag in milliseconds: 1, or 2 % of the start-up time if that is over 50 ms.
fn limit(delay: u64) -> f64 {
    if delay <= 50 { 1.0 } else { delay as f64 / 50.0 }
}

fn cell(ours: f64, by_hand: f64, met: bool) -> String {
    let emphasis = if met { "" } else { "**" };
    format!("{emphasis}{}{emphasis} ({})", number(ours), number(by_hand))
}

// ---- the comparison -----------------------------------------------------------------------------

/// Executes the task on each line of the input, and prints its times in milliseconds on one line:
///
/// - `cycle WHO KIND DELAY`: ready lag, stop lag, total;
/// - `redis WHO`, `together WHO COUNT DELAY`: total;
/// - `overhead MB`: the medians of mirakuru's start and of a bare spawn of the same program, in a
///   process of that size.
fn work() {
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("the input");
        let words: Vec<&str> = line.split_whitespace().collect();
        let who = |name| Who::named(name).unwrap_or_else(|| panic!("who is {name}?"));
        let figures = match words[..] {
            ["cycle", name, kind, delay] => {
                let kind = KINDS
                    .iter()
                    .find(|k| k.name == kind)
                    .unwrap_or_else(|| panic!("what is {kind}?"));
                let life = kind.live(who(name), delay.parse().expect("milliseconds"));
                vec![life.ready, life.stop, life.whole]
            }
            ["redis", name] => vec![cycles::redis(who(name))],
            ["together", name, count, delay] => vec![cycles::together(
                who(name),
                count.parse().expect("a number"),
                delay.parse().expect("milliseconds"),
            )],
            ["overhead", megabytes] => ask(&format!("overhead {megabytes}")),
            _ => panic!("not a task: {line}"),
        };
        let figures: Vec<String> = figures.iter().map(|figure| format!("{figure:.4}")).collect();
        println!("{}", figures.join(" "));
        std::io::stdout().flush().expect("the output");
    }
}

/// Measures mirakuru's start and a bare spawn alternately, in a process of this size.
fn overhead(megabytes: u64) {
    let ballast = ballast(megabytes);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        let begin = Instant::now();
        let mut service = Executor::builder("sleep 60").start().expect("sleep");
        ours.push(ms(begin.elapsed()));
        service.kill().expect("a kill");

        let begin = Instant::now();
        let child = by_hand::Killed(by_hand::spawn("sleep", &["60".to_owned()]));
        bare.push(ms(begin.elapsed()));
        drop(child);
    }
    std::hint::black_box(&ballast);
    println!("{}\n{}", median(ours), median(bare));
}
