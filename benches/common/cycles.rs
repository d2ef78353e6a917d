//! Starts services, waits until they are ready, and stops them: with this crate and by hand.

use std::io::BufReader;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use mirakuru::{
    Banner, Check, Exec, Executor, ExecutorBuilder, NoWait, PidFile, Readiness, SdNotify, Tcp, UnixSocket,
    start_all, stop_all,
};

use super::by_hand::{self, IDEAL, Manner};
use super::{lag, ms};
use crate::processes::{LONG, ODD, Scratch, monotonic, odd, require, stamped};

/// The tool that starts and stops the service.
#[derive(Clone, Copy)]
pub(crate) enum Who {
    Mirakuru,
    Hand(Manner),
}

impl Who {
    /// Returns the tool that has this name in the comparison.
    pub(crate) fn named(name: &str) -> Option<Who> {
        Some(match name {
            "mirakuru" => Who::Mirakuru,
            "50us" => Who::Hand(IDEAL),
            "1ms" => Who::Hand(by_hand::poll(1)),
            "100ms" => Who::Hand(by_hand::poll(100)),
            _ => return None,
        })
    }
}

/// The times of one run of the helper, in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    /// The time from the helper's stamp of its readiness until the tool notices that it is ready.
    pub(crate) ready: f64,
    /// The time from the helper's stamp just before it exits until the tool notices the exit.
    pub(crate) stop: f64,
    /// The time from the call that starts the helper until the call that stops it returns.
    pub(crate) whole: f64,
}

/// A readiness condition, checked with this crate and by hand. Both functions take the helper's
/// start-up time in milliseconds.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    ours: fn(u64) -> Life,
    by_hand: fn(Manner, u64) -> Life,
}

impl Kind {
    pub(crate) fn live(&self, who: Who, delay: u64) -> Life {
        match who {
            Who::Mirakuru => (self.ours)(delay),
            Who::Hand(manner) => (self.by_hand)(manner, delay),
        }
    }
}

const LINE: &str = "Ready to accept connections";

/// All readiness conditions except `NoWait`, which does not wait, and `Or`, which is as fast as the
/// faster of its two conditions. `And` combines `Tcp` and `Banner`.
pub(crate) const KINDS: &[Kind] = &[
    Kind {
        name: "Tcp",
        ours: |delay| {
            ours(delay, |odd| {
                odd.args(["--listen", "127.0.0.1:{port}"])
                    .wait_for(Tcp::addr("127.0.0.1:{port}"))
            })
        },
        by_hand: |manner, delay| {
            let addr = by_hand::free_addr();
            by_hand(manner, delay, &["--listen", &addr.to_string()], None, |_| {
                by_hand::accepts(addr)
            })
        },
    },
    #[cfg(feature = "http")]
    Kind {
        name: "Http",
        ours: |delay| {
            ours(delay, |odd| {
                odd.args(["--http", "127.0.0.1:{port}"])
                    .wait_for(mirakuru::Http::head("http://127.0.0.1:{port}/").status(200))
            })
        },
        by_hand: |manner, delay| {
            let addr = by_hand::free_addr();
            by_hand(manner, delay, &["--http", &addr.to_string()], None, |_| {
                by_hand::answers_200(addr)
            })
        },
    },
    Kind {
        name: "UnixSocket",
        ours: |delay| {
            ours(delay, |odd| {
                odd.args(["--unix", "{dir}/socket"])
                    .wait_for(UnixSocket::path("{dir}/socket"))
            })
        },
        by_hand: |manner, delay| {
            let scratch = Scratch::new();
            let path = scratch.file("socket");
            by_hand(manner, delay, &["--unix", &path], None, |_| {
                by_hand::accepts_on(path.as_ref())
            })
        },
    },
    Kind {
        name: "PidFile",
        ours: |delay| {
            ours(delay, |odd| {
                odd.args(["--pid-file", "{dir}/pid"])
                    .wait_for(PidFile::path("{dir}/pid"))
            })
        },
        by_hand: |manner, delay| file_by_hand(manner, delay, |path| Path::new(path).exists()),
    },
    Kind {
        name: "Banner",
        ours: |delay| {
            ours(delay, |odd| {
                odd.args(["--ready-line", LINE]).wait_for(Banner::matching(LINE))
            })
        },
        by_hand: |manner, delay| {
            by_hand(manner, delay, &["--ready-line", LINE], None, |stdout| {
                by_hand::reads(stdout, LINE);
                true
            })
        },
    },
    Kind {
        name: "SdNotify",
        ours: |delay| ours(delay, |odd| odd.arg("--sd-notify").wait_for(SdNotify::new())),
        by_hand: |manner, delay| {
            let scratch = Scratch::new();
            let path = scratch.file("notify");
            let socket = UnixDatagram::bind(&path).expect("a socket");
            let env = Some(("NOTIFY_SOCKET", path.as_str()));
            by_hand(manner, delay, &["--sd-notify"], env, |_| {
                socket.recv(&mut [0; 64]).is_ok()
            })
        },
    },
    Kind {
        name: "Exec",
        ours: |delay| {
            ours(delay, |odd| {
                odd.args(["--pid-file", "{dir}/pid"])
                    .wait_for(Exec::succeeds("test -e {dir}/pid"))
            })
        },
        by_hand: |manner, delay| {
            file_by_hand(manner, delay, |path| {
                let mut test = Command::new("test");
                test.args(["-e", path]).stdout(Stdio::null());
                test.status().is_ok_and(|status| status.success())
            })
        },
    },
    Kind {
        name: "Check",
        ours: |delay| {
            ours(delay, |odd| {
                odd.args(["--pid-file", "{dir}/pid"])
                    .wait_for(Check::new("its file is there", |cx| {
                        Ok(cx.dir().join("pid").exists())
                    }))
            })
        },
        by_hand: |manner, delay| file_by_hand(manner, delay, |path| Path::new(path).exists()),
    },
    Kind {
        name: "And",
        ours: |delay| {
            ours(delay, |odd| {
                odd.args(["--listen", "127.0.0.1:{port}", "--ready-line", LINE])
                    .wait_for(Tcp::addr("127.0.0.1:{port}").and(Banner::matching(LINE)))
            })
        },
        by_hand: |manner, delay| {
            let addr = by_hand::free_addr();
            let args = ["--listen", &addr.to_string(), "--ready-line", LINE];
            by_hand(manner, delay, &args, None, |stdout| {
                by_hand::reads(stdout, LINE);
                by_hand::accepts(addr)
            })
        },
    },
];

/// Runs the helper once with this crate.
fn ours<R: Readiness>(
    delay: u64,
    recipe: impl FnOnce(ExecutorBuilder<NoWait>) -> ExecutorBuilder<R>,
) -> Life {
    let scratch = Scratch::new();
    let stamps = scratch.file("stamps");
    let begin = Instant::now();
    let odd = odd(["--delay", &delay.to_string(), "--stamp", &stamps]);
    let mut service = recipe(odd).start().expect("a start");
    let ready = monotonic();
    let stamp = await_stamp(&stamps, "ready");
    service.stop().expect("a stop");
    let (stopped, whole) = (monotonic(), begin.elapsed());
    Life {
        ready: lag(ready, stamp),
        stop: lag(stopped, stamped(&stamps, "exit").expect("its last stamp")),
        whole: ms(whole),
    }
}

/// Runs the helper once by hand. Polls `is_ready`, which can read the helper's output.
fn by_hand(
    manner: Manner,
    delay: u64,
    args: &[&str],
    env: Option<(&str, &str)>,
    mut is_ready: impl FnMut(&mut BufReader<ChildStdout>) -> bool,
) -> Life {
    let scratch = Scratch::new();
    let stamps = scratch.file("stamps");
    let begin = Instant::now();
    let delay = delay.to_string();
    let mut all: Vec<String> = ["--delay", &delay, "--stamp", &stamps].map(str::to_owned).into();
    all.extend(args.iter().map(|&arg| arg.to_owned()));
    let (mut child, mut stdout) = by_hand::spawn_piped(ODD, &all, env);
    manner.until(|| is_ready(&mut stdout));
    let ready = monotonic();
    let stamp = await_stamp(&stamps, "ready");
    manner.stop(&mut child);
    let (stopped, whole) = (monotonic(), begin.elapsed());
    Life {
        ready: lag(ready, stamp),
        stop: lag(stopped, stamped(&stamps, "exit").expect("its last stamp")),
        whole: ms(whole),
    }
}

fn file_by_hand(manner: Manner, delay: u64, mut is_there: impl FnMut(&str) -> bool) -> Life {
    let scratch = Scratch::new();
    let path = scratch.file("pid");
    by_hand(manner, delay, &["--pid-file", &path], None, |_| is_there(&path))
}

/// Waits for a stamp, because the tool may notice an event before the helper has written the stamp.
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

// ---- Redis --------------------------------------------------------------------------------------

/// Returns whether Redis is installed, and prints a message if it is not.
pub(crate) fn has_redis() -> bool {
    require("redis-server").is_some()
}

/// Starts and stops Redis once, and returns the time that both take, in milliseconds. Redis checks
/// for SIGTERM ten times a second by default, and 500 times with `--hz 500`.
pub(crate) fn redis(who: Who) -> f64 {
    let scratch = Scratch::new();
    let dir = scratch.path().to_str().expect("a path in UTF-8");
    let args = |port: &str| -> Vec<String> {
        ["--port", port, "--hz", "500", "--save", "", "--dir", dir]
            .map(str::to_owned)
            .into()
    };
    let begin = Instant::now();
    match who {
        Who::Mirakuru => {
            let mut service = Executor::builder(["redis-server"])
                .args(args("{port}"))
                .wait_for(Tcp::addr("127.0.0.1:{port}"))
                .start()
                .expect("Redis");
            service.stop().expect("a stop");
        }
        Who::Hand(manner) => {
            let addr = by_hand::free_addr();
            manner.live("redis-server", &args(&addr.port().to_string()), addr);
        }
    }
    ms(begin.elapsed())
}

// ---- many at once -------------------------------------------------------------------------------

/// Starts many services, each of which is up after `delay` milliseconds, and stops them once all
/// are ready. Mirakuru does so with `start_all` and `stop_all`; by hand, each service has a thread.
pub(crate) fn together(who: Who, count: usize, delay: u64) -> f64 {
    match who {
        Who::Mirakuru => {
            let recipe = listening(delay);
            let begin = Instant::now();
            let services = start_all(vec![recipe; count]).expect("a start");
            stop_all(services).expect("a stop");
            ms(begin.elapsed())
        }
        Who::Hand(manner) => {
            let delay = delay.to_string();
            let addrs: Vec<SocketAddr> = by_hand::free_addrs(count);
            on_threads(count, |number, all_are_ready| {
                let addr = addrs[number].to_string();
                let args = ["--delay", &delay, "--listen", &addr].map(str::to_owned);
                let mut child = by_hand::spawn(ODD, &args);
                manner.until(|| by_hand::accepts(addrs[number]));
                all_are_ready.wait();
                manner.stop(&mut child);
            })
        }
    }
}

/// Like [`together`] with this crate, but starts and stops each service on a thread of its own.
pub(crate) fn together_on_threads(count: usize, delay: u64) -> f64 {
    let recipe = listening(delay);
    on_threads(count, |_, all_are_ready| {
        let mut service = recipe.clone().start().expect("a start");
        all_are_ready.wait();
        service.stop().expect("a stop");
    })
}

fn listening(delay: u64) -> ExecutorBuilder<Tcp> {
    odd(["--delay", &delay.to_string(), "--listen", "127.0.0.1:{port}"])
        .wait_for(Tcp::addr("127.0.0.1:{port}"))
}

fn on_threads(count: usize, life: impl Fn(usize, &Barrier) + Sync) -> f64 {
    let barrier = Barrier::new(count);
    let begin = Instant::now();
    thread::scope(|scope| {
        for number in 0..count {
            let (barrier, life) = (&barrier, &life);
            scope.spawn(move || life(number, barrier));
        }
    });
    ms(begin.elapsed())
}
