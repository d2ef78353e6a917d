//! One service on its way from its recipe to its handle, and what the attribute's expansion calls
//! to start what is shared.

use std::any::type_name;
use std::cell::RefCell;
use std::rc::Rc;

use mirakuru_core::__private::{Endpoints, Run, SharedLock, SlotState, StartPermit, Startable};
use mirakuru_core::{Error, Executor, Tcp};

use crate::recipe::Recipe;
use crate::system::{Joining, Reach, Service, Slot, System};

/// Adds the service of a recipe with one executor to a system.
pub(crate) fn join<'a, R: Recipe + 'a>(
    recipe: R,
    system: &mut System<'a>,
    joining: Joining,
) -> Slot<R::Handle> {
    let slot = Slot::new();
    let service = Single {
        recipe: Some(recipe),
        queue: joining.queue,
        reach: system.reach(),
        executor: None,
        permit: None,
        is_attached: false,
        slot: slot.clone(),
    };
    system.add(joining.name, Rc::new(RefCell::new(service)));
    slot
}

/// A service with one executor.
struct Single<R: Recipe> {
    recipe: Option<R>,
    queue: bool,
    reach: Reach,
    executor: Option<Executor<R::Readiness>>,
    /// The right to start it for the run.
    permit: Option<StartPermit>,
    /// It is the run's, and another process has started it.
    is_attached: bool,
    slot: Slot<R::Handle>,
}

fn too_early<T>() -> Result<T, Error> {
    Err(Error::other(
        "start it",
        "the stages of its start are out of order",
    ))
}

impl<R: Recipe> Service for Single<R> {
    fn build(&mut self, name: &str) -> Result<(), Error> {
        let Some(recipe) = &self.recipe else {
            return too_early();
        };
        let builder = recipe.executor()?;
        let builder = if self.queue { builder.queue(true) } else { builder };
        let executor = match self.reach {
            Reach::Run(run) if !builder.__is_for_one_process() => {
                match run.slot(name, type_name::<R>(), &builder)?.enter(builder)? {
                    SlotState::Running(executor) => {
                        self.is_attached = true;
                        *executor
                    }
                    SlotState::Vacant(permit, builder) => {
                        let executor = permit.build(*builder);
                        self.permit = Some(permit);
                        executor?
                    }
                }
            }
            _ => builder.build()?,
        };
        self.executor = Some(executor);
        Ok(())
    }

    fn endpoints(&self) -> Option<Endpoints> {
        let waits = self.queue && !self.is_attached;
        self.executor
            .as_ref()
            .filter(|_| waits)
            .map(Executor::__endpoints)
    }

    fn give_lock(&mut self, lock: &SharedLock) {
        if let Some(executor) = self.executor.as_mut().filter(|_| self.queue && !self.is_attached) {
            executor.__give_lock(lock);
        }
    }

    fn prepare(&mut self) -> Result<(), Error> {
        match (&mut self.executor, &self.recipe) {
            (Some(executor), Some(recipe)) if !self.is_attached => {
                executor.__prepare(|executor| recipe.prepare(executor))
            }
            _ => Ok(()),
        }
    }

    fn startable(&mut self) -> Option<&mut dyn Startable> {
        let executor = self.executor.as_mut().filter(|_| !self.is_attached);
        executor.map(|executor| executor as _)
    }

    fn finish(&mut self) -> Result<(), Error> {
        let (Some(executor), Some(recipe)) = (&mut self.executor, &self.recipe) else {
            return too_early();
        };
        if !self.is_attached {
            if !matches!(self.reach, Reach::Handle) {
                executor.__for_process();
            }
            recipe.set_up(executor)?;
            if let Some(permit) = &self.permit {
                permit.publish(executor)?;
            }
            self.permit = None;
        }
        match (self.executor.take(), self.recipe.take()) {
            (Some(executor), Some(recipe)) => self.slot.fill(recipe.handle(executor)?),
            _ => return too_early(),
        }
        Ok(())
    }

    fn failed(&mut self, error: &Error) {
        if let Some(permit) = self.permit.take() {
            permit.failed(error);
        }
    }
}

/// How far a shared fixture reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One test binary.
    Process,
    /// One `cargo test` or `cargo nextest run`, over all its processes.
    Run,
}

/// Starts what is shared. The closure adds it to the system, and gives the one that takes the
/// handles. Whoever holds the fixture tells its name.
///
/// # Errors
///
/// Those of the start.
pub fn start_shared<'a, T, Take: FnOnce() -> T>(
    scope: Scope,
    add: impl FnOnce(&mut System<'a>) -> Take,
) -> Result<T, Error> {
    let run = (scope == Scope::Run).then(Run::current).flatten();
    let mut system = System::with_reach(run.map_or(Reach::Process, Reach::Run));
    let take = add(&mut system);
    system.run(take).map_err(|failure| failure.error)
}

/// Starts one recipe in plain code.
pub(crate) fn start_plain<R: Recipe>(recipe: R) -> Result<R::Handle, Error> {
    let mut system = System::new();
    let slot = plain(recipe, &mut system);
    system.run(|| slot.take()).map_err(|failure| failure.error)
}

/// Adds a service that waits for fixed ports only if its recipe says so, as wherever no attribute
/// starts it.
pub(crate) fn plain<'a, R: Recipe + 'a>(recipe: R, system: &mut System<'a>) -> Slot<R::Handle> {
    let joining = Joining {
        name: String::new(),
        queue: false,
    };
    recipe.__join(system, joining)
}

/// The key `tcp` with an expression, which may be an address or a port.
pub(crate) mod tcp {
    use super::Tcp;

    /// What the key `tcp` takes.
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is neither an address nor a port",
        label = "expected a text like \"127.0.0.1:{{port}}\", or a `u16`"
    )]
    pub trait IntoTcp {
        /// The condition.
        fn into_tcp(self) -> Tcp;
    }

    impl IntoTcp for &str {
        fn into_tcp(self) -> Tcp {
            Tcp::addr(self)
        }
    }

    impl IntoTcp for String {
        fn into_tcp(self) -> Tcp {
            Tcp::addr(self)
        }
    }

    impl IntoTcp for u16 {
        fn into_tcp(self) -> Tcp {
            Tcp::port(self)
        }
    }

    /// The condition that an address or a port makes.
    pub fn tcp(endpoint: impl IntoTcp) -> Tcp {
        endpoint.into_tcp()
    }
}
