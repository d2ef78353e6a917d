//! When a service counts as ready: the [`Readiness`] trait and the conditions that implement it,
//! one a file.

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
/// A readiness is a plain value in a recipe. [`prepare`](Readiness::prepare) is called before each
/// start, with the placeholders' values; then [`probe`](Readiness::probe) is called until it says
/// yes, ever more seldom (from a fraction of a millisecond on, in proportion to the time already
/// waited), and sooner when something happens that another part of the condition waits for. The
/// exit of the service ends the wait at once; a probe need not look for it.
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
    /// What is awaited, in the past tense, as the end of a sentence that begins with "before": *it
    /// accepted connections on 127.0.0.1:6379*. Called after [`prepare`](Readiness::prepare); used
    /// in errors.
    fn describe(&self) -> String;

    /// Feeds everything that tells this condition from another one of its type to the hasher: two
    /// recipes for the same shared service must agree in it. Called before
    /// [`prepare`](Readiness::prepare).
    ///
    /// The default feeds [`describe`](Readiness::describe). Override it in a condition whose
    /// settings are not all in that sentence, or whose sentence differs from one test process to
    /// the next. The type's name counts anyway.
    fn fingerprint(&self, hasher: &mut dyn Hasher) {
        hash::text(hasher, self.describe());
    }

    /// Called before each start: fill in placeholders with [`Prepare::expand`], check the values,
    /// forget what an earlier start left behind, and [claim](Prepare::claim_addr) what nobody else
    /// may hold.
    ///
    /// The default does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidReadiness`] (made with [`Prepare::invalid`]) when the values make no sense;
    /// nothing is started then.
    fn prepare(&mut self, cx: &mut Prepare<'_>) -> Result<(), Error> {
        let _ = cx;
        Ok(())
    }

    /// One poll: is the service ready?
    ///
    /// # Errors
    ///
    /// An error means "not yet", as `Ok(false)` does; the last one is kept for the report. An
    /// error of kind [`io::ErrorKind::InvalidInput`] ends the wait: no later look can succeed.
    fn probe(&mut self, cx: &Probe<'_>) -> io::Result<bool>;

    /// Whether only new output of the service can change the answer. Then probes wait for output
    /// and nothing polls. The default is `false`. Asked again before each wait: the answer may
    /// change.
    fn waits_for_output(&self) -> bool {
        false
    }

    /// When to look again, after a poll that said "not yet": the conditions of this crate that are
    /// told of an event by a descriptor, or know better than the clock when the next poll makes
    /// sense, say so here. Asked after each poll.
    #[doc(hidden)]
    fn wakes(&self, wake: &mut Wake) {
        if self.waits_for_output() {
            wake.on_output();
        } else {
            wake.with_back_off();
        }
    }

    /// The wait is over, whether it held or not: what was needed for looking only is let go of.
    #[doc(hidden)]
    fn wait_is_over(&mut self) {}

    /// What to do after a wait in vain, if the reason can be known. The default tells where the
    /// service listens instead of at its [address](Readiness::addr).
    #[doc(hidden)]
    fn hint(&self, cx: &Probe<'_>) -> Option<String> {
        cx.listens_elsewhere(self.addr()?)
    }

    /// Whether the chosen ports must be low: outside of the range that the kernel gives to those
    /// who ask for any port. Asked before the placeholders are filled in.
    #[doc(hidden)]
    fn wants_low_ports(&self) -> bool {
        false
    }

    /// Whether having been executed is all there is to wait for, so that even an exit comes too
    /// late to matter.
    #[doc(hidden)]
    fn is_immediate(&self) -> bool {
        false
    }

    /// The address at which clients reach the service, if this condition knows one: what
    /// [`Executor::addr`](crate::executor::Executor::addr) gives.
    fn addr(&self) -> Option<SocketAddr> {
        None
    }

    /// The URL at which clients reach the service, if this condition knows one: what
    /// [`Executor::url`](crate::executor::Executor::url) gives.
    fn url(&self) -> Option<&str> {
        None
    }

    /// The socket or file that this condition is about, if there is one: what
    /// [`Executor::path`](crate::executor::Executor::path) gives.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// How long the wait may take at least, counted from the start of the service, if the service
    /// itself has asked for more time than the recipe gives it. Asked after each poll. The default
    /// is `None`.
    fn extended(&self) -> Option<Duration> {
        None
    }

    /// Both this condition and another. The second is looked at once the first holds, and a
    /// condition that held is not looked at again: so the one that is quicker to look at goes
    /// first.
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

    /// Either this condition or another, whichever holds first. Both are looked at each time.
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
