//! Takes one service from its recipe to its handle. Also contains the functions that the
//! attribute's generated code calls for shared services.

use std::any::type_name;
use std::borrow::BorrowMut;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::rc::Rc;

use mirakuru_core::__private::{Endpoints, Run, SharedLock, SlotState, StartPermit, Startable};
use mirakuru_core::{Error, Executor, ExecutorBuilder, Readiness, Tcp};

use crate::cache;
use crate::cluster::Node;
use crate::lease;
use crate::recipe::Recipe;
use crate::system::{Joining, Reach, Service, Slot, System};

/// Adds a recipe that has a single executor to a system.
pub(crate) fn join<'a, R: Recipe + 'a>(
    recipe: R,
    system: &mut System<'a>,
    joining: Joining,
) -> Slot<R::Handle> {
    let service = Single::new(recipe, joining.queue, system);
    let slot = service.slot.clone();
    system.add(joining.name, Rc::new(RefCell::new(service)));
    slot
}

/// A service that has a single executor.
pub(crate) struct Single<R: Recipe> {
    recipe: Option<R>,
    queue: bool,
    reach: Reach,
    /// The directories of the services that this one needs.
    needs: Vec<PathBuf>,
    executor: Option<Executor<R::Readiness>>,
    /// The permit to start the service for the run.
    permit: Option<StartPermit>,
    /// Whether another process of the run has started the service.
    is_attached: bool,
    /// Whether `cache::seed` has done the set-up, or has copied the result of an earlier set-up.
    is_seeded: bool,
    slot: Slot<R::Handle>,
    /// Set if the service is a node of a cluster.
    member: Option<ClusterMember>,
}

/// Additional data of a service that is a node of a cluster.
pub(crate) struct ClusterMember {
    pub(crate) node: Node,
    /// Filled when this node is ready. Its handle is handed out once all nodes are ready.
    pub(crate) is_up: Slot<()>,
}

impl<R: Recipe> Single<R> {
    fn new(recipe: R, queue: bool, system: &System<'_>) -> Single<R> {
        Single {
            recipe: Some(recipe),
            queue,
            reach: system.reach(),
            needs: system.needs(),
            executor: None,
            permit: None,
            is_attached: false,
            is_seeded: false,
            slot: Slot::new(),
            member: None,
        }
    }

    /// Creates the service for a cluster's node. `permit` is `None` if the run does not share the
    /// cluster.
    pub(crate) fn node(
        recipe: R,
        joining: &Joining,
        system: &System<'_>,
        member: ClusterMember,
        permit: Option<StartPermit>,
    ) -> Single<R> {
        Single {
            permit,
            member: Some(member),
            ..Single::new(recipe, joining.queue, system)
        }
    }

    pub(crate) fn builder(recipe: &R, queue: bool) -> Result<ExecutorBuilder<R::Readiness>, Error> {
        let builder = recipe.executor()?;
        Ok(match queue {
            true => builder.queue(true),
            false => builder,
        })
    }

    pub(crate) fn executor(&mut self) -> Option<&mut Executor<R::Readiness>> {
        self.executor.as_mut()
    }

    /// Publishes the started service for the run, and fills the slot with its handle.
    pub(crate) fn hand_out(&mut self) -> Result<Slot<R::Handle>, Error> {
        if let (Some(permit), Some(executor)) = (&mut self.permit, &mut self.executor) {
            permit.publish(executor)?;
        }
        self.permit = None;
        let (Some(executor), Some(recipe)) = (self.executor.take(), self.recipe.take()) else {
            return too_early();
        };
        let dirs = vec![executor.dir()];
        self.slot.fill(recipe.handle(executor)?, dirs);
        Ok(self.slot.clone())
    }
}

fn too_early<T>() -> Result<T, Error> {
    Err(Error::other(
        "start it",
        "the steps of its start ran in the wrong order",
    ))
}

impl<R: Recipe> Service for Single<R> {
    fn build(&mut self, name: &str) -> Result<(), Error> {
        let Some(recipe) = &self.recipe else {
            return too_early();
        };
        let builder = Self::builder(recipe, self.queue)?.__label(name);
        let identity = self.member.as_ref().map(|member| member.node.identity());
        match self.reach {
            Reach::Run(run) if self.member.is_none() && !builder.__is_for_one_process() => {
                match run.slot(name, type_name::<R>(), &builder)?.enter()? {
                    SlotState::Running(service) => {
                        self.executor = Some(service.attach(builder)?);
                        self.is_attached = true;
                        return Ok(());
                    }
                    SlotState::Empty(permit) => self.permit = Some(permit),
                }
            }
            _ => {}
        }
        let executor = match &self.permit {
            Some(permit) => permit.build(builder, identity),
            None => builder.__build_as(identity),
        };
        self.executor = Some(executor?);
        Ok(())
    }

    fn endpoints(&self) -> Option<Endpoints> {
        match &self.executor {
            Some(executor) if self.queue && !self.is_attached => Some(executor.__endpoints()),
            _ => None,
        }
    }

    fn give_lock(&mut self, lock: &SharedLock) {
        match &mut self.executor {
            Some(executor) if self.queue && !self.is_attached => executor.__give_lock(lock),
            _ => {}
        }
    }

    fn end_with_test(&mut self) {
        if let Some(executor) = &mut self.executor {
            executor.__for_test();
        }
    }

    fn prepare(&mut self) -> Result<(), Error> {
        match (&mut self.executor, &self.recipe) {
            (Some(executor), Some(recipe)) if !self.is_attached => {
                for dir in &self.needs {
                    executor.__needs(dir);
                }
                match recipe.seed_key() {
                    Some(key) if self.member.is_none() => {
                        self.is_seeded = true;
                        cache::seed(recipe, &key, executor)
                    }
                    _ => executor.__prepare(&mut |executor| recipe.prepare(executor)),
                }
            }
            _ => Ok(()),
        }
    }

    fn startable(&mut self) -> Option<&mut dyn Startable> {
        match &mut self.executor {
            Some(executor) if !self.is_attached => Some(executor),
            _ => None,
        }
    }

    fn finish(&mut self) -> Result<(), Error> {
        let (Some(executor), Some(recipe)) = (&mut self.executor, &self.recipe) else {
            return too_early();
        };
        if !self.is_attached {
            if !matches!(self.reach, Reach::Handle) {
                executor.__for_process();
            }
            if !self.is_seeded {
                recipe.set_up(executor)?;
            }
        }
        match &self.member {
            Some(member) => member.is_up.fill((), Vec::new()),
            None => drop(self.hand_out()?),
        }
        Ok(())
    }

    fn title(&self) -> Option<String> {
        self.executor.as_ref().map(|executor| executor.name().to_owned())
    }

    fn ended(&self) -> Option<String> {
        self.executor.as_ref().and_then(Executor::__ended)
    }

    fn failed(&mut self, error: &Error) {
        match self.permit.take() {
            // A missing program is not reported, because other processes find out by themselves.
            Some(permit) if error.missing().is_none() => permit.failed(error),
            _ => {}
        }
    }
}

/// The scope of a shared fixture: which processes use the same service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each process of a test binary has its own service.
    Process,
    /// All processes of one `cargo test` or `cargo nextest run` use the same service.
    Run,
    /// Like `Run`, but the service ends once no process uses it any more.
    Users,
}

/// Starts a shared fixture. The closure adds its services to the system, and returns a second
/// closure, which takes their handles once they are ready.
///
/// # Errors
///
/// Any error of the start.
pub fn start_shared<'a, T, Take: FnOnce() -> T>(
    scope: Scope,
    add: impl FnOnce(&mut System<'a>) -> Take,
) -> Result<T, Error> {
    let run = match scope {
        Scope::Process => None,
        Scope::Run | Scope::Users => Run::for_services(scope == Scope::Users),
    };
    let mut system = System::with_reach(run.map_or(Reach::Process, Reach::Run));
    let take = match run {
        Some(_) => lease::forbidden(|| add(&mut system))?,
        None => add(&mut system),
    };
    system.run(take).map_err(|failure| failure.error)
}

/// Starts a recipe that is not named in an attribute.
pub(crate) fn start_plain<R: Recipe>(recipe: R) -> Result<R::Handle, Error> {
    let mut system = System::new();
    let slot = plain(recipe, &mut system);
    system.run(|| slot.take()).map_err(|failure| failure.error)
}

/// Adds a recipe that is not named in an attribute. Its service waits for fixed ports only if the
/// recipe requests that.
pub(crate) fn plain<'a, R: Recipe + 'a>(recipe: R, system: &mut System<'a>) -> Slot<R::Handle> {
    let joining = Joining {
        name: String::new(),
        queue: false,
    };
    recipe.__join(system, joining)
}

/// [`Service`] for an executor that the user has already built.
struct Built<R, E> {
    executor: Option<E>,
    slot: Slot<E>,
    readiness: PhantomData<fn() -> R>,
}

impl<R: Readiness, E: BorrowMut<Executor<R>>> Service for Built<R, E> {
    fn build(&mut self, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn endpoints(&self) -> Option<Endpoints> {
        None
    }

    fn give_lock(&mut self, _: &SharedLock) {}

    fn end_with_test(&mut self) {}

    fn prepare(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn startable(&mut self) -> Option<&mut dyn Startable> {
        self.executor.as_mut().map(|executor| executor.borrow_mut() as _)
    }

    fn finish(&mut self) -> Result<(), Error> {
        let Some(executor) = self.executor.take() else {
            return too_early();
        };
        let dirs = vec![executor.borrow().dir()];
        self.slot.fill(executor, dirs);
        Ok(())
    }

    fn title(&self) -> Option<String> {
        let executor = self.executor.as_ref()?;
        Some(executor.borrow().name().to_owned())
    }

    fn ended(&self) -> Option<String> {
        None
    }

    fn failed(&mut self, _: &Error) {}
}

/// Adds an executor that is already built.
pub(crate) fn built<'a, R: Readiness + 'a, E: BorrowMut<Executor<R>> + 'a>(
    executor: E,
    system: &mut System<'a>,
) -> Slot<E> {
    let slot = Slot::new();
    let service = Built {
        executor: Some(executor),
        slot: slot.clone(),
        readiness: PhantomData,
    };
    system.add(String::new(), Rc::new(RefCell::new(service)));
    slot
}

/// Support for the key `tcp`, whose value is an address or a port.
pub(crate) mod tcp {
    use super::Tcp;

    /// A value that the key `tcp` accepts.
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is neither an address nor a port",
        label = "expected a text like \"127.0.0.1:{{port}}\", or a `u16`"
    )]
    pub trait IntoTcp {
        /// Returns the condition for this value.
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

    /// Returns the condition for an address or a port.
    pub fn tcp(endpoint: impl IntoTcp) -> Tcp {
        endpoint.into_tcp()
    }
}
