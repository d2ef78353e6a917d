//! [`Recipe`]: the trait of all values that the attribute can start.

use mirakuru_core::{Error, Executor, ExecutorBuilder, Readiness};

use crate::start::{join, start_plain};
use crate::system::{Joining, Slot, System};

/// A value that `#[mirakuru::fixture(..)]` can start. The attribute accepts it in place of keys.
///
/// Every [`ExecutorBuilder`] is a recipe, whose handle is the [`Executor`]. Implement the trait for
/// a type of your own to give tests more than an executor: a connection string, a client, a
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
/// The steps are separate because one process starts a service of the whole run, while many
/// processes use it. Only the process that starts the service calls [`prepare`](Recipe::prepare)
/// and [`set_up`](Recipe::set_up). Each process calls [`executor`](Recipe::executor) and
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

    /// Returns the builder of the service's executor. The processes of a run recognise a shared
    /// service by its builder, so the builder must be the same in each process. If two fixtures
    /// differ in `set_up`, their builders must differ as well: give one of them a name or a
    /// variable.
    ///
    /// # Errors
    ///
    /// If the recipe is invalid, or if something that it needs is missing, such as the program. Use
    /// [`Error::other`] to wrap any other error.
    fn executor(&self) -> Result<ExecutorBuilder<Self::Readiness>, Error>;

    /// Creates the service's files in [`Executor::dir`], such as a data directory or a password.
    /// The process that starts the service calls this method once, before the first start, when the
    /// ports are already known. Afterwards, the service's user becomes the owner of everything in
    /// the directory. The default does nothing. For a configuration file, [`ExecutorBuilder::file`]
    /// is simpler.
    ///
    /// # Errors
    ///
    /// Any error makes the start fail. Use [`Error::other`] to wrap an error of another type.
    fn prepare(&self, executor: &mut Executor<Self::Readiness>) -> Result<(), Error> {
        let _ = executor;
        Ok(())
    }

    /// Sets the service up once it is ready, for example creates the schema or loads the data. The
    /// process that started the service calls this method once, before any test gets a handle. The
    /// default does nothing.
    ///
    /// # Errors
    ///
    /// Any error stops the service and makes the start fail. Use [`Error::other`] to wrap an error
    /// of another type.
    fn set_up(&self, executor: &mut Executor<Self::Readiness>) -> Result<(), Error> {
        let _ = executor;
        Ok(())
    }

    /// Returns a key under which later runs find the result of [`prepare`](Recipe::prepare) and
    /// [`set_up`](Recipe::set_up). The default is `None`: each start calls both methods.
    ///
    /// With a key, the first start calls both methods, stops the service, keeps a copy of
    /// [`Executor::dir`], and starts the service again. Later starts begin with that copy, and call
    /// neither method. So after the service has stopped, the directory must contain everything that
    /// `set_up` has changed. No file in the directory may contain a port, except an
    /// [`ExecutorBuilder::file`], which is written before each start.
    ///
    /// mirakuru cannot see changes to the code of `set_up`. When that code changes, change the key:
    /// include a version number, or a hash of the files that `set_up` loads
    /// (`presets::hash_of_dir`). If the recipe's type, the builder from
    /// [`executor`](Recipe::executor) or the program's file changes, the old copy is ignored
    /// without a new key. A builder that contains the URL of another service differs in each run,
    /// so its copies are never reused.
    ///
    /// If two processes need the same copy, one creates it while the other waits. If `set_up`
    /// fails, the error names the key, and no copy is kept. See
    /// [`prepare_once`](crate::prepare_once) for how long a copy is kept. The nodes of a cluster
    /// ignore the key: they are set up at each start.
    fn seed_key(&self) -> Option<String> {
        None
    }

    /// Turns the executor of a service that is ready and set up into the handle.
    ///
    /// # Errors
    ///
    /// Any error stops the service and makes the start fail. Use [`Error::other`] to wrap an error
    /// of another type.
    fn handle(self, executor: Executor<Self::Readiness>) -> Result<Self::Handle, Error>;

    /// Starts the service without the attribute, sets it up, and returns its handle. Do not
    /// override this method: the attribute does not call it.
    ///
    /// # Errors
    ///
    /// Any error of [`Executor::start`] or of this trait's other methods.
    fn start(self) -> Result<Self::Handle, Error> {
        start_plain(self)
    }

    /// Whether the recipe starts several services, and so has no executor. Not part of the public
    /// interface.
    #[doc(hidden)]
    const __SEVERAL: bool = false;

    /// Adds the services of this recipe to a system, which starts them together with others. Not
    /// part of the public interface.
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
