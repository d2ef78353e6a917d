//! The [`Readiness`] trait, and the conditions that implement it, each in its own file.

pub(crate) mod banner;
pub(crate) mod check;
pub(crate) mod combine;
pub(crate) mod context;
pub(crate) mod exec;
#[cfg(test)]
pub(crate) mod harness;
#[cfg(feature = "http")]
pub(crate) mod http;
pub(crate) mod line_watch;
pub(crate) mod lines;
pub(crate) mod no_wait;
pub(crate) mod pid_file;
pub(crate) mod sd_notify;
pub(crate) mod tcp;
pub(crate) mod udp;
pub(crate) mod unix_socket;

pub use banner::Banner;
pub use check::Check;
pub use combine::{And, Or};
pub use exec::Exec;
#[cfg(feature = "http")]
pub use http::{Http, IntoStatus};
pub use no_wait::NoWait;
pub use pid_file::PidFile;
pub use sd_notify::SdNotify;
pub use tcp::Tcp;
pub use udp::Udp;
pub use unix_socket::UnixSocket;

use std::hash::Hasher;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::error::Error;
pub(crate) use crate::readiness::context::Wake;
pub use crate::readiness::context::{Prepare, Probe};
use crate::util::hash;

/// A condition that must hold before a service counts as ready.
///
/// A condition is a plain value in a recipe. [`prepare`](Readiness::prepare) is called before each
/// start and fills in the placeholders. Then [`probe`](Readiness::probe) is called until it returns
/// `Ok(true)`. The pauses begin at a fraction of a millisecond and grow in proportion to the time
/// already waited. In a combined condition, an event that wakes the other condition may end a pause
/// early. If the service exits, the wait ends immediately, so a probe need not check for that.
///
/// ```
/// # use mirakuru_core as mirakuru;
/// use std::io;
/// use mirakuru::{Executor, Prepare, Probe, Readiness, Error};
///
/// /// Ready when the service has written a file of this name into its private directory.
/// #[derive(Clone)]
/// struct Marker(&'static str);
///
/// impl Readiness for Marker {
///     fn describe(&self) -> String {
///         format!("it wrote {}", self.0)
///     }
///     fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool> {
///         cx.dir().join(self.0).try_exists()
///     }
/// }
///
/// let mut service = Executor::builder("touch done; exec sleep 60")
///     .shell(true)
///     .current_dir("{dir}")
///     .wait_for(Marker("done"))
///     .start()?;
/// service.stop()?;
/// # Ok::<(), Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a readiness condition",
    label = "not a readiness condition",
    note = "use one of `NoWait`, `Tcp`, `Udp`, `Http`, `UnixSocket`, `PidFile`, `Banner`, `Exec`, `Check`, \
            `SdNotify`, or implement `mirakuru::Readiness` for your own type"
)]
pub trait Readiness: Send + Sync + 'static {
    /// The awaited event in the past tense, for errors: *it accepted connections on
    /// 127.0.0.1:6379*. The text follows the word "before". Called after
    /// [`prepare`](Readiness::prepare).
    fn describe(&self) -> String;

    /// Feeds the hasher all data that distinguishes this condition from others of its type. If two
    /// recipes describe the same shared service, the data must be equal. Called before
    /// [`prepare`](Readiness::prepare).
    ///
    /// The default feeds [`describe`](Readiness::describe). Override this method if that text
    /// leaves out some settings, or if it differs between test processes. The type's name is always
    /// included.
    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        hash::text(hasher, self.describe().as_ref());
    }

    /// Called before each start. Implementations fill in placeholders with [`Prepare::expand`],
    /// check the values, and discard the state of an earlier start. They [lock](Prepare::lock_addr)
    /// the addresses that the service needs exclusively.
    ///
    /// The default does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidReadiness`] (created with [`Prepare::invalid`]) if a value is invalid. The
    /// service is then not started.
    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        let _ = cx;
        Ok(())
    }

    /// Checks once whether the service is ready.
    ///
    /// # Errors
    ///
    /// An error means "not yet", like `Ok(false)`, and the report shows the last one. An error of
    /// kind [`io::ErrorKind::InvalidInput`] ends the wait. Return it if no later poll can succeed.
    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool>;

    /// Whether only new output of the service can change the result of [`probe`](Readiness::probe).
    /// If so, the wait sleeps until there is output. The default is `false`. Called repeatedly,
    /// because the value may change.
    fn waits_for_output(&self) -> bool {
        false
    }

    /// Adds the times and events at which the condition is polled again. Called after each
    /// unsuccessful poll.
    #[doc(hidden)]
    fn wakes(&self, wake: &mut Wake) {
        if self.waits_for_output() {
            wake.on_output();
        } else {
            wake.with_back_off();
        }
    }

    /// Releases resources that are needed only for polling. Called when the wait is over, whether
    /// or not it succeeded.
    #[doc(hidden)]
    fn wait_is_over(&mut self) {}

    /// A remedy for a failed wait, if the cause is known. By default, names the addresses on which
    /// the service listens instead of its [address](Readiness::addr).
    #[doc(hidden)]
    fn hint(&self, cx: &Probe<'_>) -> Option<String> {
        cx.listens_elsewhere(self.addr()?)
    }

    /// Whether the service's ports must be outside the range from which the kernel chooses free
    /// ports. Called before the placeholders are filled in.
    #[doc(hidden)]
    fn wants_low_ports(&self) -> bool {
        false
    }

    /// Whether the condition holds as soon as the program has been executed. If so, a later exit of
    /// the program does not fail the start.
    #[doc(hidden)]
    fn is_immediate(&self) -> bool {
        false
    }

    /// The address at which clients reach the service, if this condition provides one.
    /// [`Executor::addr`](crate::executor::Executor::addr) returns it.
    fn addr(&self) -> Option<SocketAddr> {
        None
    }

    /// The URL at which clients reach the service, if this condition provides one.
    /// [`Executor::url`](crate::executor::Executor::url) returns it.
    fn url(&self) -> Option<&str> {
        None
    }

    /// The socket or file of this condition, if it has one.
    /// [`Executor::path`](crate::executor::Executor::path) returns it.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// If the service has asked for more time, returns the new end of the wait, measured from the
    /// start of the service. Called after each poll. The default is `None`.
    fn extended(&self) -> Option<Duration> {
        None
    }

    /// Requires this condition and another. The second is polled only after the first has held, and
    /// a condition that has held is not polled again. Put the cheaper condition first.
    ///
    /// ```
    /// # use mirakuru_core::{Readiness, NoWait, Check};
    /// let both = NoWait.and(Check::new("it wrote its state", |cx| cx.dir().join("state").try_exists()));
    /// assert_eq!(both.describe(), "it was executed and wrote its state");
    /// ```
    fn and<B: Readiness>(self, other: B) -> And<Self, B>
    where
        Self: Sized,
    {
        And::new(self, other)
    }

    /// Requires this condition or another. Each poll checks both.
    ///
    /// ```
    /// # use mirakuru_core::{Readiness, Banner, PidFile};
    /// let either = Banner::matching("accepting connections").or(PidFile::path("{dir}/server.pid"));
    /// # let _ = either;
    /// ```
    fn or<B: Readiness>(self, other: B) -> Or<Self, B>
    where
        Self: Sized,
    {
        Or::new(self, other)
    }
}
