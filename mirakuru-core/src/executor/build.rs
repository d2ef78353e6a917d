//! From a recipe to an executor.

use crate::error::Error;
use crate::executor::Executor;
use crate::executor::process::{Core, Own, Owned, Process};
use crate::ports::identity::Identity;
use crate::readiness::Readiness;
use crate::readiness::no_wait::NoWait;
use crate::recipe::builder::{ExecutorBuilder, Spec};
use crate::recipe::command::IntoCommand;
use crate::run::sweep::sweep;

impl Executor<NoWait> {
    /// Begins a recipe for a command: one string, which is split into words as a shell would but
    /// run without one, or a list of the program and its arguments.
    ///
    /// ```
    /// # use mirakuru_core as mirakuru;
    /// use mirakuru::Executor;
    /// let mut one = Executor::builder("sleep '60'").start()?;
    /// let mut two = Executor::builder(["sleep", "60"]).start()?;
    /// one.stop()?;
    /// two.stop()?;
    /// # Ok::<(), mirakuru_core::Error>(())
    /// ```
    ///
    /// The words are looked at when the executor is built: see [`ExecutorBuilder::build`] for the
    /// errors.
    pub fn builder(command: impl IntoCommand) -> ExecutorBuilder<NoWait> {
        ExecutorBuilder {
            spec: Spec::new(command.into_command()),
            readiness: NoWait,
        }
    }
}

impl<R> ExecutorBuilder<R> {
    /// Sets what must hold before [`start`](ExecutorBuilder::start) returns. The default is
    /// [`NoWait`].
    pub fn wait_for<R2: Readiness>(self, readiness: R2) -> ExecutorBuilder<R2> {
        ExecutorBuilder {
            spec: self.spec,
            readiness,
        }
    }
}

impl<R: Readiness> ExecutorBuilder<R> {
    /// Makes the executor without starting it: fills in the placeholders, reserves ports, makes the
    /// private directory.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidCommand`] when the command is empty, has unbalanced quotes or an unknown
    /// placeholder; [`Error::InvalidReadiness`] when the condition makes no sense;
    /// [`Error::System`] when there is no port or no directory to be had.
    pub fn build(self) -> Result<Executor<R>, Error> {
        self.build_as(None)
    }

    /// The same for a service whose directory and ports others have been told of.
    #[doc(hidden)]
    pub fn __build_as(self, identity: &Identity) -> Result<Executor<R>, Error> {
        self.build_as(Some(identity))
    }

    pub(crate) fn build_as(self, identity: Option<&Identity>) -> Result<Executor<R>, Error> {
        sweep();
        let ExecutorBuilder { spec, mut readiness } = self;
        let (mut core, mut own) = (Core::new(spec, &readiness, identity)?, Own::default());
        let resolved = Owned {
            core: &mut core,
            own: &mut own,
        }
        .resolve(&mut readiness);
        core.masked(resolved)?;
        Ok(Executor {
            core,
            process: Process::Own(Box::new(own)),
            readiness,
        })
    }

    /// Makes the executor and starts it: returns once it is ready.
    ///
    /// # Errors
    ///
    /// Those of [`build`](ExecutorBuilder::build) and of [`Executor::start`].
    pub fn start(self) -> Result<Executor<R>, Error> {
        let mut executor = self.build()?;
        executor.start()?;
        Ok(executor)
    }
}
