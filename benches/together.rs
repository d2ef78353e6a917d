//! Starts many services at once, and stops them when all are ready.
//!
//! `executor` uses `start_all` and `stop_all` with `TcpExecutor`s on `{port}`, and no threads.
//! `on_threads` starts and stops each service on a thread of its own. `poll_1_ms` does so by hand:
//! spawn, a connection attempt every millisecond, SIGTERM, `try_wait` every millisecond. The helper
//! is up after 0 or 20 ms. 50 services should take at most 1.5 times as long as with `poll_1_ms`.
//!
//! Run it with `cargo bench --bench together`.

mod common;
#[path = "../tests/common/mod.rs"]
mod processes;

use common::by_hand::poll;
use common::cycles::{Who, together, together_on_threads};

fn main() {
    divan::main();
}

/// The number of services, and the milliseconds until each of them is up.
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
