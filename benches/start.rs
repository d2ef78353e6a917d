//! Measures how much longer a start takes than a bare spawn of the same program, and how long a
//! start and a stop take together.
//!
//! - `spawn`: the time until the program is executed. `executor` is
//!   `Executor::builder("sleep 60").start()`, with its supervisor; `command` is
//!   `std::process::Command::spawn` of the same program. Each runs in a test process of 10 and of
//!   200 MB, because a fork would take longer in a larger one. The difference should be at most 1.5
//!   ms with 10 MB, and 3 ms with 200 MB.
//! - `life`: start *and* stop of the same program, with SIGTERM. By hand: spawn, `kill`, `waitpid`.
//! - `ready`: start and stop of the helper, which is ready immediately, with each readiness
//!   condition. By hand: a poll every 50 µs, and `waitpid`.
//! - `redis`: start and stop of Redis, which checks for SIGTERM 500 times a second with `--hz 500`.
//!   By hand as above, and with polls every 1 ms and 100 ms. The time should be at most 1.25 times
//!   that of `by_hand`.
//!
//! Run `cargo bench --bench start` and read the medians. On a busy machine, read the fastest times.

mod common;
#[path = "../tests/common/mod.rs"]
mod processes;

fn main() {
    divan::main();
}

#[divan::bench_group(sample_size = 1, sample_count = 60)]
mod spawn {
    use divan::Bencher;
    use mirakuru::Executor;

    use crate::common::ballast;
    use crate::common::by_hand::{Killed, spawn};

    #[divan::bench(args = [10, 200])]
    fn command(bencher: Bencher<'_, '_>, megabytes: u64) {
        let ballast = ballast(megabytes);
        bencher.bench_local(|| Killed(spawn("sleep", &["60".to_owned()])));
        divan::black_box_drop(ballast);
    }

    // divan drops the returned executor, and so stops the service, outside the measured time.
    #[divan::bench(args = [10, 200])]
    fn executor(bencher: Bencher<'_, '_>, megabytes: u64) {
        let ballast = ballast(megabytes);
        bencher.bench_local(|| Executor::builder("sleep 60").start().expect("sleep"));
        divan::black_box_drop(ballast);
    }
}

#[divan::bench_group(sample_size = 1, sample_count = 60)]
mod life {
    use mirakuru::Executor;

    use crate::common::by_hand::{IDEAL, spawn};

    #[divan::bench]
    fn by_hand() {
        let mut child = spawn("sleep", &["60".to_owned()]);
        IDEAL.stop(&mut child);
    }

    #[divan::bench]
    fn executor() {
        let mut service = Executor::builder("sleep 60").start().expect("sleep");
        service.stop().expect("a stop");
    }
}

#[divan::bench_group(sample_size = 1, sample_count = 40)]
mod ready {
    use crate::common::by_hand::IDEAL;
    use crate::common::cycles::{KINDS, Who};

    fn live(name: &str, who: Who) {
        let kind = KINDS.iter().find(|kind| kind.name == name);
        kind.expect("one of them").live(who, 0);
    }

    #[divan::bench(args = KINDS.iter().map(|kind| kind.name))]
    fn by_hand(name: &str) {
        live(name, Who::Hand(IDEAL));
    }

    #[divan::bench(args = KINDS.iter().map(|kind| kind.name))]
    fn executor(name: &str) {
        live(name, Who::Mirakuru);
    }
}

#[divan::bench_group(sample_size = 1, sample_count = 25, ignore = !crate::common::cycles::has_redis())]
mod redis {
    use crate::common::by_hand::{IDEAL, poll};
    use crate::common::cycles::{Who, redis};

    #[divan::bench]
    fn by_hand() -> f64 {
        redis(Who::Hand(IDEAL))
    }

    #[divan::bench]
    fn executor() -> f64 {
        redis(Who::Mirakuru)
    }

    #[divan::bench]
    fn poll_1_ms() -> f64 {
        redis(Who::Hand(poll(1)))
    }

    #[divan::bench(sample_count = 10)]
    fn poll_100_ms() -> f64 {
        redis(Who::Hand(poll(100)))
    }
}
