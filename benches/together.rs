//! Many services at once: all ready before the first is stopped; until the last is gone.
//!
//! `executor` is `start_all` and `stop_all` of `TcpExecutor`s on `{port}`, which need no thread;
//! `on_threads` starts and stops each on a thread of its own. `poll_1_ms` is by hand, on as many
//! threads: spawn, a connection tried every millisecond, SIGTERM, `try_wait` every millisecond. The
//! helper is up after 0 and after 20 ms. The target: 50 of them in at most 1.5 times the poll's
//! time.
//!
//! `cargo bench --bench together`.

mod common;
#[path = "../tests/common/mod.rs"]
mod processes;

use common::by_hand::poll;
use common::cycles::{Who, together, together_on_threads};

fn main() {
    divan::main();
}

/// The number of services, and the milliseconds until they are up.
const CASES: [(usize, u64); 4] = [(1, 0), (10, 0), (50, 0), (50, 20)];

#[divan::bench(args = CASES, sample_size = 1, sample_count = 15)]
fn executor((count, delay): (usize, u64)) -> f64 {
    together(Who::Mirakuru, count, delay)
}

#[divan::bench(args = CASES, sample_size = 1, sample_count = 15)]
fn on_threads((count, delay): (usize, u64)) -> f64 {
    together_on_threads(count, delay)
}

#[divan::bench(args = CASES, sample_size = 1, sample_count = 15)]
fn poll_1_ms((count, delay): (usize, u64)) -> f64 {
    together(Who::Hand(poll(1)), count, delay)
}
