//! Tests the async methods under a hand-written executor, and under single-threaded tokio.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use mirakuru::{Banner, Check, Error, Exec, Executor, ExecutorBuilder, SimpleExecutor, Tcp, TcpExecutor};
use tokio::time::{sleep, timeout};

const LONG: Duration = Duration::from_secs(60);

/// Runs a future on this thread. The thread sleeps until the waker unparks it.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        thread::park();
    }
}

/// Awaits a future while another task on the same thread counts up every 10 ms. Returns the value
/// of the future, and the count.
async fn beside<T>(future: impl Future<Output = T>) -> (T, u32) {
    let count = Arc::new(AtomicU32::new(0));
    let counts = tokio::spawn({
        let count = Arc::clone(&count);
        async move {
            loop {
                sleep(Duration::from_millis(10)).await;
                count.fetch_add(1, SeqCst);
            }
        }
    });
    let value = future.await;
    counts.abort();
    (value, count.load(SeqCst))
}

/// A service that takes this long to become ready, and as long again to end.
fn slow(milliseconds: u32) -> ExecutorBuilder<Banner> {
    let time = f64::from(milliseconds) / 1000.0;
    let script =
        format!("trap 'sleep {time}; exit 0' TERM; sleep {time}; echo ready; while :; do sleep 0.01; done");
    Executor::builder(script)
        .shell(true)
        .wait_for(Banner::matching("ready"))
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn all_verbs_on_a_hand_made_executor() {
    block_on(async {
        let mut server: TcpExecutor = Executor::builder("python3 -m http.server {port} -b 127.0.0.1")
            .wait_for(Tcp::addr("127.0.0.1:{port}"))
            .build()
            .unwrap();
        server.start_async().await.unwrap();
        let (addr, first) = (server.addr(), server.pid());
        assert!(std::net::TcpStream::connect(addr).is_ok());
        server.start_async().await.unwrap();
        assert_eq!(server.pid(), first, "it ran already");
        server.restart_async().await.unwrap();
        assert_ne!(server.pid(), first);
        assert_eq!(server.addr(), addr);
        let answer = server
            .stopped_async(|| async move {
                assert!(std::net::TcpStream::connect(addr).is_err());
                42
            })
            .await;
        assert_eq!(answer.unwrap(), 42);
        let again = Tcp::addr(addr.to_string());
        server.wait_until_async(again, LONG).await.unwrap();
        server.stop_async().await.unwrap();
        assert!(!server.is_running());
        server.stop_async().await.unwrap();
    });
}

#[tokio::test]
async fn other_tasks_go_on_meanwhile() {
    let (started, ticks) = beside(slow(300).start_async()).await;
    let mut service = started.unwrap();
    assert!(ticks > 3, "{ticks} while it started");
    let (stopped, ticks) = beside(service.stop_async()).await;
    stopped.unwrap();
    assert!(ticks > 3, "{ticks} while it stopped");
    service.start().unwrap();
    let (restarted, ticks) = beside(service.restart_async()).await;
    restarted.unwrap();
    assert!(ticks > 6, "{ticks} while it was restarted");
    let begun = Instant::now();
    let later = Check::new("it was later", move |_| {
        Ok(begun.elapsed() > Duration::from_millis(300))
    });
    let (held, ticks) = beside(service.wait_until_async(later, LONG)).await;
    held.unwrap();
    assert!(ticks > 3, "{ticks} while it was waited for");
}

#[tokio::test]
async fn other_tasks_go_on_while_a_failed_start_ends() {
    let deaf = "trap '' TERM; echo failed; while :; do sleep 0.01; done";
    let start = Executor::builder(deaf)
        .shell(true)
        .fail_on("failed")
        .stop_timeout(Duration::from_millis(400))
        .wait_for(Banner::matching("ready"))
        .start_async();
    let (failed, ticks) = beside(start).await;
    let error = failed.unwrap_err();
    assert!(matches!(error, Error::FailureLine { .. }), "{error}");
    assert!(ticks > 4, "{ticks}");
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let may_be_ready = Arc::new(AtomicBool::new(false));
    let condition = Arc::clone(&may_be_ready);
    let mut service = Executor::builder("sleep 600 & sleep 600; wait")
        .shell(true)
        .wait_for(Check::new("it was allowed to", move |_| {
            Ok(condition.load(SeqCst))
        }))
        .build()
        .unwrap();
    let given_up = timeout(Duration::from_millis(200), service.start_async()).await;
    assert!(given_up.is_err());
    assert!(!service.is_running());
    assert!(!is_there(service.pid()));
    may_be_ready.store(true, SeqCst);
    service.start_async().await.unwrap();
    assert!(service.is_running());
}

#[tokio::test]
async fn a_stop_that_is_given_up_goes_on() {
    let mut service = slow(300).start_async().await.unwrap();
    let first = service.pid();
    let given_up = timeout(Duration::from_millis(50), service.stop_async()).await;
    assert!(given_up.is_err());
    // The stop that timed out continues in the background, so the next start creates a new process.
    service.start_async().await.unwrap();
    assert_ne!(service.pid(), first);
    assert!(!is_there(first));

    let given_up = timeout(Duration::from_millis(50), service.stop_async()).await;
    assert!(given_up.is_err());
    service.start().unwrap();
    assert!(service.is_running());
    assert!(
        timeout(Duration::from_millis(50), service.stop_async())
            .await
            .is_err()
    );
    service.stop().unwrap();
    assert!(!service.is_running());
}

#[tokio::test]
async fn a_condition_that_is_given_up_leaves_the_service_as_it_is() {
    let mut service = Executor::builder("sleep 600").start().unwrap();
    let asked = service.dir().join("asked");
    let never = Exec::succeeds(format!("sh -c 'echo $$ > {}; exec sleep 600'", asked.display()));
    {
        let mut wait = pin!(service.wait_until_async(never, LONG));
        while !std::fs::read_to_string(&asked).is_ok_and(|pid| pid.ends_with('\n')) {
            assert!(timeout(Duration::from_millis(10), wait.as_mut()).await.is_err());
        }
    }
    assert!(service.is_running());
    let asked: u32 = std::fs::read_to_string(asked).unwrap().trim().parse().unwrap();
    let begun = Instant::now();
    while is_there(asked) {
        assert!(begun.elapsed() < LONG, "the program that was asked is left");
        sleep(Duration::from_millis(1)).await;
    }
    let error = service
        .wait_until_async(Banner::matching("x"), Duration::from_millis(50))
        .await;
    assert!(matches!(error, Err(Error::Timeout { .. })));
}

#[tokio::test]
async fn it_is_started_again_after_a_panic_in_between() {
    let mut service = Executor::builder("sleep 600").start().unwrap();
    let task = tokio::spawn(async move {
        let caught = CatchUnwind(Box::pin(async {
            let stopped = service.stopped_async(|| async {
                tokio::task::yield_now().await;
                std::panic::resume_unwind(Box::new("on purpose"));
            });
            stopped.await
        }));
        let panicked = caught.await.is_err();
        (panicked, service.is_running())
    });
    assert_eq!(task.await.unwrap(), (true, true));
}

/// Awaits a future and returns its panic.
struct CatchUnwind<F>(std::pin::Pin<Box<F>>);

impl<F: Future> Future for CatchUnwind<F> {
    type Output = thread::Result<F::Output>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.0.as_mut().poll(cx)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

#[tokio::test]
async fn many_start_at_once_on_one_thread() {
    let starts: Vec<_> = (0..10)
        .map(|_| {
            tokio::spawn(async {
                let begun = Instant::now();
                let mut service = slow(400).start_async().await.unwrap();
                let ready = (begun, Instant::now());
                service.stop_async().await.unwrap();
                ready
            })
        })
        .collect();
    let mut times = Vec::new();
    for start in starts {
        times.push(start.await.unwrap());
    }
    // All starts began before any service was ready.
    let last_begun = times.iter().map(|(begun, _)| *begun).max();
    let first_ready = times.iter().map(|(_, ready)| *ready).min();
    assert!(last_begun < first_ready);
}

#[cfg(feature = "rstest")]
mod fixtures {
    use super::*;

    /// One of two services that become ready only when both are running.
    fn one_of_two(number: u32) -> ExecutorBuilder<Check> {
        static RUN: AtomicU32 = AtomicU32::new(0);
        Executor::builder("sleep 600").wait_for(Check::new("both ran", move |_| {
            Ok(RUN.fetch_or(number, SeqCst) | number == 0b11)
        }))
    }

    #[mirakuru::fixture(one_of_two(0b01))]
    async fn first(service: Executor<Check>) -> Executor<Check> {
        service
    }

    #[mirakuru::fixture(one_of_two(0b10))]
    async fn second(service: Executor<Check>) -> Executor<Check> {
        service
    }

    #[rstest::rstest]
    #[tokio::test]
    async fn the_attribute_does_not_block_the_thread(
        #[future] first: Executor<Check>,
        #[future] second: Executor<Check>,
    ) {
        let (first, second) = tokio::join!(first, second);
        assert!(first.is_running() && second.is_running());
    }
}

#[mirakuru::fixture(slow(200), name = db)]
#[mirakuru::fixture(cmd = "sleep 600", env = ("DB", db.pid().to_string()))]
#[tokio::test]
async fn stacked_attributes_start_in_their_order(app: &SimpleExecutor) {
    let db = app.envs()["DB".as_ref() as &std::ffi::OsStr].clone();
    assert!(is_there(db.to_str().unwrap().parse().unwrap()));
}
