//! Async versions of the methods that wait. They work with any runtime. A future makes progress
//! only when it is polled. Between polls, one thread waits for the events of all futures.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::error::Error;
use crate::executor::Executor;
use crate::executor::many::{Startable, launch_together, poll_together};
use crate::executor::wait::Wait;
use crate::readiness::Readiness;
use crate::recipe::builder::ExecutorBuilder;
use crate::util::deadline::Deadline;
use crate::util::wakeup::Wakeup;

impl<R: Readiness> ExecutorBuilder<R> {
    /// [`start`](ExecutorBuilder::start) as a future: see [`Executor::start_async`].
    ///
    /// # Errors
    ///
    /// The errors of [`start`](ExecutorBuilder::start).
    pub async fn start_async(self) -> Result<Executor<R>, Error> {
        let mut executor = self.build()?;
        executor.start_async().await?;
        Ok(executor)
    }
}

/// # Without blocking a runtime
///
/// The `*_async` methods return futures that work with any runtime (tokio, async-std, smol, a
/// `block_on`). While they wait, other tasks of the same thread can run. A poll takes as long as
/// one probe of the condition, and most probes are short. Two conditions can take longer: a
/// [`Check`](crate::Check) that blocks, and `Http` if the server accepts a connection but does not
/// answer (at first up to a second).
impl<R: Readiness> Executor<R> {
    /// [`start`](Executor::start) as a future.
    ///
    /// If the future is dropped before it completes, the drop stops the service and returns when
    /// none of its processes is left.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// # use std::{future::Future, pin::pin, task::{Context, Poll, Waker}, time::Duration};
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut future = pin!(future);
    /// #     loop {
    /// #         match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
    /// #             Poll::Ready(value) => break value,
    /// #             Poll::Pending => std::thread::sleep(Duration::from_millis(1)),
    /// #         }
    /// #     }
    /// # }
    /// # block_on(async {
    /// let mut service = mirakuru::Executor::builder("sleep 60").build()?;
    /// service.start_async().await?;
    /// assert!(service.is_running());
    /// service.stop_async().await?;
    /// # Ok::<(), mirakuru_core::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`start`](Executor::start).
    pub async fn start_async(&mut self) -> Result<(), Error> {
        if self.runs_on() {
            return Ok(());
        }
        // A future that was dropped may already have asked the service to stop.
        self.end_asked_for().await;
        let mut starting = EndsOnDrop(Some(self));
        let result = starting.run().await;
        starting.0 = None;
        result
    }

    /// [`stop`](Executor::stop) as a future.
    ///
    /// If the future is dropped before it completes, the service still stops. The next start or
    /// stop waits until it has.
    ///
    /// # Errors
    ///
    /// The errors of [`stop`](Executor::stop).
    pub async fn stop_async(&mut self) -> Result<(), Error> {
        self.begin_stop();
        self.end_asked_for().await;
        self.stop()
    }

    /// [`restart`](Executor::restart) as a future. If the future is dropped before it completes,
    /// the service ends up stopped: a stop in progress continues, and a start in progress is
    /// undone.
    ///
    /// # Errors
    ///
    /// The errors of [`restart`](Executor::restart).
    pub async fn restart_async(&mut self) -> Result<(), Error> {
        let stopped = self.stop_async().await;
        self.start_async().await?;
        stopped
    }

    /// [`wait_until`](Executor::wait_until) as a future. Dropping the future before it completes
    /// does not affect the service.
    ///
    /// # Errors
    ///
    /// The errors of [`wait_until`](Executor::wait_until).
    pub async fn wait_until_async(
        &mut self,
        mut readiness: impl Readiness,
        timeout: Duration,
    ) -> Result<(), Error> {
        let prepared = match self.core.pid {
            0 => Err(self.core.not_running("wait for a condition")),
            _ => self.core.prepare(&mut readiness).map(drop),
        };
        self.core.masked(prepared)?;
        let mut readiness = IsOverOnDrop(readiness);
        let mut wait = Wait::new(Deadline::after(timeout), Vec::new());
        loop {
            let process = self.process.observed_mut();
            let polled = self.core.poll(process, &mut readiness.0, &mut wait);
            let Some(pause) = self.core.masked(polled)? else {
                return Ok(());
            };
            let wakeup = self.process.observed().wakeup(pause);
            wakeup.await;
        }
    }

    /// [`stopped`](Executor::stopped) as a future, with a closure that returns a future. Stops the
    /// service, awaits the closure's future, and starts the service again.
    ///
    /// The service is started again even if the closure or its future panics. If the future of this
    /// method is dropped before it completes, the service is stopped.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// # use mirakuru::{Error, TcpExecutor};
    /// async fn an_outage(redis: &mut TcpExecutor) -> Result<(), Error> {
    ///     let address = redis.addr();
    ///     redis
    ///         .stopped_async(|| async move {
    ///             // What does your code do now?
    ///             assert!(std::net::TcpStream::connect(address).is_err());
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`stopped`](Executor::stopped).
    pub async fn stopped_async<T, F: Future<Output = T>>(
        &mut self,
        closure: impl FnOnce() -> F,
    ) -> Result<T, Error> {
        let stopped = match self.stop_async().await {
            // The service has stopped, though with a bad exit status, so the closure still runs.
            Err(error @ Error::BadExit { .. }) => Err(error),
            Err(error) => {
                self.start_async().await?;
                return Err(error);
            }
            Ok(()) => Ok(()),
        };
        let outcome = {
            let mut future = pin!(async move { closure().await });
            poll_fn(|cx| {
                let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
                polled.map_or_else(|panic| Poll::Ready(Err(panic)), |polled| polled.map(Ok))
            })
            .await
        };
        let started = self.start_async().await;
        match outcome {
            Ok(value) => {
                started?;
                stopped.map(|()| value)
            }
            Err(panic) => {
                if let Err(error) = started {
                    eprintln!("the service could not be started again after a panic:\n{error}");
                }
                resume_unwind(panic)
            }
        }
    }

    /// If the service has been asked to stop, waits until it has ended or its grace has expired.
    async fn end_asked_for(&mut self) {
        let Ok(owned) = self.process.owned(&mut self.core, "stop") else {
            return;
        };
        if owned.own.asked_to_end.is_none() {
            return;
        }
        let limit = Deadline::after_scaled(owned.policy().grace);
        while let Some(pause) = owned.pause_of_end(&limit) {
            let wakeup = Wakeup::new(pause.time, pause.events);
            wakeup.await;
        }
    }
}

/// A start in progress. If this value is dropped before the start completes, the service is
/// stopped.
struct EndsOnDrop<'e, R: Readiness>(Option<&'e mut Executor<R>>);

impl<R: Readiness> EndsOnDrop<'_, R> {
    async fn run(&mut self) -> Result<(), Error> {
        let Some(executor) = &mut self.0 else {
            return Ok(());
        };
        let launched = launch_together(&mut [&mut **executor]);
        launched.map_err(|(_, error)| error)?;
        loop {
            let polled = poll_together(&mut [&mut **executor]);
            let polled = polled.map_err(|(_, error)| error)?;
            if !polled.ready.is_empty() {
                return Ok(());
            }
            polled.wakeup().await;
        }
    }
}

impl<R: Readiness> Drop for EndsOnDrop<'_, R> {
    fn drop(&mut self) {
        let Some(executor) = self.0.take() else {
            return;
        };
        executor.readiness.wait_is_over();
        if let Ok(mut owned) = executor.process.owned(&mut executor.core, "stop") {
            (owned.own.starting, owned.own.failing) = (None, None);
            let policy = owned.policy();
            let _ = owned.end(policy);
        }
    }
}

/// Calls `wait_is_over` on the condition when dropped.
struct IsOverOnDrop<R: Readiness>(R);

impl<R: Readiness> Drop for IsOverOnDrop<R> {
    fn drop(&mut self) {
        self.0.wait_is_over();
    }
}
