//! [`Recipe`]: the trait of every value that the attribute can start.

use mirakuru_core::{Error, Executor, ExecutorBuilder, Readiness};

use crate::start::{join, start_plain};
use crate::system::{Joining, Slot, System};

/// A value that `#[mirakuru::fixture(..)]` can start. The attribute takes it in place of keys.
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
/// The steps are separate because one process starts a service of the whole run, and many processes
/// use it. Only the process that starts it calls [`prepare`](Recipe::prepare) and
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

    /// Returns the builder of the service's executor. The processes of a run recognise a shared
    /// service by its builder, so the builder must be the same in each process. If `set_up` differs
    /// between two fixtures, their builders must differ as well: set a name or a variable.
    ///
    /// # Errors
    ///
    /// If the recipe is invalid, or if something that it needs is missing, such as the program.
    /// [`Error::other`] takes any error.
    fn executor(&self) -> Result<ExecutorBuilder<Self::Readiness>, Error>;

    /// Makes the service's files in [`Executor::dir`]: a data directory, a password. The process
    /// that starts the service calls this method once, before the first start. The ports are
    /// already known. Afterwards, everything in the directory is given to the service's user. The
    /// default does nothing. For a configuration file, [`ExecutorBuilder::file`] is simpler.
    ///
    /// # Errors
    ///
    /// Any error makes the start fail. [`Error::other`] takes any error.
    fn prepare(&self, executor: &mut Executor<Self::Readiness>) -> Result<(), Error> {
        let _ = executor;
        Ok(())
    }

    /// Sets the service up after it has become ready: creates the schema, loads the data. The
    /// process that started the service calls this method once, before any test gets a handle. The
    /// default does nothing.
    ///
    /// # Errors
    ///
    /// Any error ends the service, and makes the start fail. [`Error::other`] takes any error.
    fn set_up(&self, executor: &mut Executor<Self::Readiness>) -> Result<(), Error> {
        let _ = executor;
        Ok(())
    }

    /// A key under which the result of [`prepare`](Recipe::prepare) and [`set_up`](Recipe::set_up)
    /// is kept over runs. The default is `None`: each start calls both methods.
    ///
    /// With a key, the first start calls both, stops the service, keeps a copy of
    /// [`Executor::dir`], and starts the service again. Later starts begin with the copy, and call
    /// neither method. So everything that `set_up` changes must be in the directory after the
    /// service has stopped. No file in the directory may contain a port, unless it is an
    /// [`ExecutorBuilder::file`], which is written before each start.
    ///
    /// mirakuru cannot compare the code of `set_up`. If that code changes, change the key: use a
    /// number that you increase, or a hash of the files that `set_up` loads
    /// (`presets::hash_of_dir`). The type, the builder from [`executor`](Recipe::executor) and the
    /// program's file need not be in the key: if one of them changes, the copy is not used. If a
    /// builder contains the URL of another service, it differs in each run, and no copy is ever
    /// used.
    ///
    /// If two processes need the same copy, one makes it and the other waits. An error of `set_up`
    /// names the key, and no copy is kept. [`prepare_once`](crate::prepare_once) tells how long a
    /// copy stays. The nodes of a cluster ignore the key: they are set up at each start.
    fn seed_key(&self) -> Option<String> {
        None
    }

    /// Wraps the executor of a service that is ready and set up.
    ///
    /// # Errors
    ///
    /// Any error ends the service, and makes the start fail. [`Error::other`] takes any error.
    fn handle(self, executor: Executor<Self::Readiness>) -> Result<Self::Handle, Error>;

    /// Starts the service without the attribute, sets it up, and returns its handle. Do not
    /// override this method, because the attribute does not call it.
    ///
    /// # Errors
    ///
    /// The errors of [`Executor::start`] and of this trait's other methods.
    fn start(self) -> Result<Self::Handle, Error> {
        start_plain(self)
    }

    /// Whether the recipe starts several services, and so has no executor. Not a part of the public
    /// interface.
    #[doc(hidden)]
    const __SEVERAL: bool = false;

    /// Adds the services of this recipe to a system, which starts them together with others. Not a
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
