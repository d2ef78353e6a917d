//! Builds an executor from a recipe.

use crate::error::Error;
use crate::executor::Executor;
use crate::executor::process::{Core, Own, Owned, Process};
use crate::ports::identity::Identity;
use crate::readiness::Readiness;
use crate::readiness::no_wait::NoWait;
use crate::recipe::builder::{ExecutorBuilder, Spec};
use crate::recipe::command::IntoCommand;
use crate::run::sweep::sweep;
use crate::sys::RunPlan;

impl Executor<NoWait> {
    /// Begins a recipe. The command is either one string, or a list of the program and its
    /// arguments. A string is split into words as a shell would split it, but no shell runs it.
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
    /// [`ExecutorBuilder::build`] checks the command and documents the errors.
    pub fn builder(command: impl IntoCommand) -> ExecutorBuilder<NoWait> {
        ExecutorBuilder {
            spec: Spec::new(command.into_command()),
            readiness: NoWait,
        }
    }
}

impl<R> ExecutorBuilder<R> {
    /// Sets the condition that must hold before [`start`](ExecutorBuilder::start) returns. The
    /// default is [`NoWait`].
    pub fn wait_for<R2: Readiness>(self, readiness: R2) -> ExecutorBuilder<R2> {
        ExecutorBuilder {
            spec: self.spec,
            readiness,
        }
    }
}

impl<R: Readiness> ExecutorBuilder<R> {
    /// Builds the executor without starting it: fills in the placeholders, reserves ports, and
    /// creates the private directory.
    ///
    /// # Errors
    ///
    /// * [`Error::InvalidCommand`]: the command is empty, or contains unbalanced quotes or an
    ///   unknown placeholder.
    /// * [`Error::InvalidReadiness`]: the condition is invalid.
    /// * [`Error::System`]: no port is free, or the directory cannot be created.
    pub fn build(self) -> Result<Executor<R>, Error> {
        self.build_as(None, None)
    }

    /// Builds the executor with the directory and the ports of `identity`, which other services may
    /// already use.
    #[doc(hidden)]
    pub fn __build_as(self, identity: Option<&Identity>) -> Result<Executor<R>, Error> {
        self.build_as(identity, None)
    }

    /// Builds the executor. `run` is the plan for handing the service over to the run after its
    /// start.
    pub(crate) fn build_as(
        self,
        identity: Option<&Identity>,
        run: Option<RunPlan>,
    ) -> Result<Executor<R>, Error> {
        let ExecutorBuilder { spec, mut readiness } = self;
        let (core, own) = build(spec, &mut readiness, identity, run)?;
        Ok(Executor {
            core,
            process: Process::Own(own),
            readiness,
        })
    }

    /// Builds the executor, starts the service, and returns when it is ready.
    ///
    /// # Errors
    ///
    /// The errors of [`build`](ExecutorBuilder::build) and of [`Executor::start`].
    pub fn start(self) -> Result<Executor<R>, Error> {
        let mut executor = self.build()?;
        executor.start()?;
        Ok(executor)
    }
}

/// Not generic over the readiness, so that it is compiled only once.
fn build(
    spec: Spec,
    readiness: &mut dyn Readiness,
    identity: Option<&Identity>,
    run: Option<RunPlan>,
) -> Result<(Core, Box<Own>), Error> {
    sweep();
    let (mut core, mut own) = (Core::new(spec, readiness, identity)?, Box::<Own>::default());
    own.run = run;
    let mut owned = Owned {
        core: &mut core,
        own: &mut own,
    };
    let resolved = owned.resolve(readiness);
    // Record the needs now, when only services that were built earlier can be found, so that the
    // needs form no cycle.
    let resolved = resolved.map(|()| owned.find_needs());
    core.masked(resolved)?;
    Ok((core, own))
}
