//! [`Recipe`]: the trait of every value that the attribute can start.

use mirakuru_core::{Error, Executor, ExecutorBuilder, Readiness};

use crate::start::{join, start_plain};
use crate::system::{Joining, Slot, System};

/// A value that the attribute can start. It replaces the keys in `#[mirakuru::fixture(..)]`.
///
/// Every [`ExecutorBuilder`] is a recipe, and its handle is the [`Executor`]. Implement the trait
/// for a type of your own to give tests more than an executor: a connection string, a client, a
/// database with its schema.
///
/// ```
/// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
/// use mirakuru::{Error, Executor, ExecutorBuilder, NoWait};
/// use mirakuru::Recipe;
///
/// /// How to start it.
/// struct Queue {
///     topic: &'static str,
/// }
///
/// /// What a test gets. It holds the executor: when it is dropped, the service ends.
/// struct RunningQueue {
///     executor: Executor<NoWait>,
///     topic: &'static str,
/// }
///
/// impl Recipe for Queue {
///     type Readiness = NoWait;
///     type Handle = RunningQueue;
///
///     fn executor(&self) -> Result<ExecutorBuilder<NoWait>, Error> {
///         Ok(Executor::builder("sleep 60").name(self.topic))
///     }
///
///     fn handle(self, executor: Executor<NoWait>) -> Result<RunningQueue, Error> {
///         Ok(RunningQueue { executor, topic: self.topic })
///     }
/// }
///
/// let mut queue = Queue { topic: "orders" }.start()?;
/// assert_eq!(queue.topic, "orders");
/// queue.executor.stop()?;
/// # Ok::<(), Error>(())
/// ```
///
/// The steps are separate, because one process starts a service of the whole run, and many
/// processes use it. Only the process that starts it calls [`prepare`](Recipe::prepare) and
/// [`set_up`](Recipe::set_up). Each process calls [`executor`](Recipe::executor) and
/// [`handle`](Recipe::handle).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be started",
    label = "not a recipe",
    note = "a recipe is an `Executor::builder(..)` without `.start()`, a preset, \
            or a type of your own that implements `mirakuru::Recipe`; its readiness must be `Clone`"
)]
pub trait Recipe: Sized {
    /// The condition under which the service counts as ready.
    type Readiness: Readiness;

    /// The handle that the fixture gives to a test.
    type Handle;

    /// Returns the recipe of the service. The processes of a run recognise a shared service by this
    /// value, so it must be the same in each. If `set_up` does different things in two fixtures,
    /// this value must differ as well: set a name or a variable.
    ///
    /// # Errors
    ///
    /// If the recipe makes no sense, or if something that it needs cannot be found, such as the
    /// program. [`Error::other`] takes any error.
    fn executor(&self) -> Result<ExecutorBuilder<Self::Readiness>, Error>;

    /// Prepares the service's files in [`Executor::dir`] before its first start: a data directory,
    /// a password. The process that starts the service calls it once. Ports are known by then.
    /// Afterwards everything in the directory is given to the service's user. The default does
    /// nothing. (A configuration is simpler as an [`ExecutorBuilder::file`].)
    ///
    /// # Errors
    ///
    /// Any error means that the start has failed. [`Error::other`] takes any error.
    fn prepare(&self, executor: &mut Executor<Self::Readiness>) -> Result<(), Error> {
        let _ = executor;
        Ok(())
    }

    /// Sets the service up, once, right after it is ready: creates the schema, loads the data. The
    /// process that started the service calls it before any test gets a handle. The default does
    /// nothing.
    ///
    /// # Errors
    ///
    /// Any error ends the service: the start has failed. [`Error::other`] takes any error.
    fn set_up(&self, executor: &mut Executor<Self::Readiness>) -> Result<(), Error> {
        let _ = executor;
        Ok(())
    }

    /// A key under which the result of [`prepare`](Recipe::prepare) and [`set_up`](Recipe::set_up)
    /// is kept over runs. The default is `None`: each start does both.
    ///
    /// With a key, the first start does both, stops the service, keeps a copy of [`Executor::dir`],
    /// and starts the service again. Later starts begin with the copy, and call neither. So
    /// everything that `set_up` changes must be in the directory once the service has stopped, and
    /// no file in it may name a port. (An [`ExecutorBuilder::file`] may: it is written before each
    /// start.)
    ///
    /// Code cannot be compared. So use another key if `set_up` would do something else: a number
    /// that you increase, or a hash of the files that it loads (`presets::hash_of_dir`). All other
    /// data counts anyway: the type, the recipe from [`executor`](Recipe::executor), and the
    /// program's file. If a recipe contains the URL of another service, its key is new in each run,
    /// and no copy is found.
    ///
    /// If two processes need the same copy, one makes it and the other waits. An error of `set_up`
    /// names the key, and nothing is kept. [`prepare_once`](crate::prepare_once) tells how long a
    /// copy stays. A node of a cluster is set up at each start.
    fn seed_key(&self) -> Option<String> {
        None
    }

    /// Wraps the executor of a service that is ready and set up.
    ///
    /// # Errors
    ///
    /// Any error ends the service: the start has failed. [`Error::other`] takes any error.
    fn handle(self, executor: Executor<Self::Readiness>) -> Result<Self::Handle, Error>;

    /// Does all steps without the attribute: starts the service, sets it up, and returns its
    /// handle. Do not override it: the attribute does not call it.
    ///
    /// # Errors
    ///
    /// The errors of [`Executor::start`] and of the other methods.
    fn start(self) -> Result<Self::Handle, Error> {
        start_plain(self)
    }

    /// Whether the recipe starts several services, and so has no executor. Not a part of the public
    /// interface.
    #[doc(hidden)]
    const __SEVERAL: bool = false;

    /// Adds the services of this recipe to those that start together. Not a part of the public
    /// interface.
    #[doc(hidden)]
    fn __join<'a>(self, system: &mut System<'a>, joining: Joining) -> Slot<Self::Handle>
    where
        Self: 'a,
    {
        join(self, system, joining)
    }
}

impl<R: Readiness + Clone> Recipe for ExecutorBuilder<R> {
    type Readiness = R;
    type Handle = Executor<R>;

    fn executor(&self) -> Result<ExecutorBuilder<R>, Error> {
        Ok(self.clone())
    }

    fn handle(self, executor: Executor<R>) -> Result<Executor<R>, Error> {
        Ok(executor)
    }
}
