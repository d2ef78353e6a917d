//! The start of what a test, a static or a fixture function needs: what the attribute's expansion
//! calls.
//!
//! The fixtures of one function come as a list, `(a, (b, ()))`, and are started together: that
//! takes as long as the slowest of them, and turns for fixed ports can be taken in one order for
//! all tests. (Two tests that stack the same two ports in different orders must not each wait for
//! the other.)

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mirakuru_core::__private::{
    Endpoints, Run, SharedLock, SlotState, Startable, shown, start_together, test_begins,
};
use mirakuru_core::{Error, Executor, Tcp};

use crate::Recipe;

/// One fixture that is to be started: a recipe whose type is not seen any more, only what it gives.
///
/// (Were the recipe's type still there, an expression that is no recipe would be reported where the
/// fixture is made, and again where it is started.)
pub struct Fixture<'a, H> {
    name: &'static str,
    queue: bool,
    recipe: Box<dyn Start<H> + 'a>,
}

/// Prepares the start of a recipe. The name is for messages, and may be empty.
pub fn fixture<'a, R: Recipe + 'a>(name: &'static str, recipe: R) -> Fixture<'a, R::Handle> {
    Fixture {
        name,
        queue: true,
        recipe: Box::new(Stages {
            recipe,
            executor: None,
        }),
    }
}

impl<H> Fixture<'_, H> {
    /// The key `queue` is there: it decides whether to wait for a port that another fixture has, as
    /// fixtures do otherwise.
    pub fn queue_as_the_recipe_says(mut self) -> Self {
        self.queue = false;
        self
    }

    fn build(&mut self) -> Result<(), Failure> {
        let name = self.name;
        self.recipe
            .build(self.queue)
            .map_err(|error| Failure { name, error })
    }

    /// What it wants for itself alone, if it is to wait for that.
    fn endpoints(&self) -> Option<Endpoints> {
        self.queue.then(|| self.recipe.endpoints()).flatten()
    }

    fn give_lock(&mut self, endpoint_lock: &SharedLock) {
        if self.queue {
            self.recipe.give_lock(endpoint_lock);
        }
    }

    fn startable(&mut self) -> Option<(&'static str, &mut dyn Startable)> {
        let name = self.name;
        self.recipe.startable().map(|executor| (name, executor))
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        let name = self.name;
        self.recipe.prepare().map_err(|error| Failure { name, error })
    }

    fn finish(self) -> Result<H, Failure> {
        let name = self.name;
        self.recipe.finish().map_err(|error| Failure { name, error })
    }
}

/// The stages of a start, in this order: all fixtures of a function go through one before any goes
/// into the next.
trait Start<H> {
    /// Makes the executor, from which it can be seen which fixed ports and paths it wants.
    fn build(&mut self, queue: bool) -> Result<(), Error>;

    /// What it wants for itself alone, once it is built.
    fn endpoints(&self) -> Option<Endpoints>;

    /// Gives it the turn that was taken for all.
    fn give_lock(&mut self, endpoint_lock: &SharedLock);

    /// Makes ready what it needs before it is started.
    fn prepare(&mut self) -> Result<(), Error>;

    /// What is to be started, together with that of the others.
    fn startable(&mut self) -> Option<&mut dyn Startable>;

    /// Sets up what has been started, and wraps it.
    fn finish(self: Box<Self>) -> Result<H, Error>;

    /// All of these stages, for a service that lives as long as the process.
    fn start_in_process(self: Box<Self>, queue: bool) -> Result<H, Error>;

    /// Attaches to the one of the run, or is the one to start it.
    fn start_in_run(self: Box<Self>, run: &Run, name: &str, queue: bool) -> Result<H, Error>;
}

struct Stages<R: Recipe> {
    recipe: R,
    executor: Option<Executor<R::Readiness>>,
}

impl<R: Recipe> Stages<R> {
    fn built(&self, queue: bool) -> Result<Executor<R::Readiness>, Error> {
        let recipe = self.recipe.executor()?;
        if queue { recipe.queue(true) } else { recipe }.build()
    }

    /// Starts what has been built, and sets it up.
    fn start_for_process(recipe: &R, executor: &mut Executor<R::Readiness>) -> Result<(), Error> {
        executor.__prepare(|executor| recipe.prepare(executor))?;
        executor.start()?;
        executor.__for_process();
        recipe.set_up(executor)
    }
}

impl<R: Recipe> Start<R::Handle> for Stages<R> {
    fn build(&mut self, queue: bool) -> Result<(), Error> {
        self.executor = Some(self.built(queue)?);
        Ok(())
    }

    fn endpoints(&self) -> Option<Endpoints> {
        self.executor.as_ref().map(Executor::__endpoints)
    }

    fn give_lock(&mut self, endpoint_lock: &SharedLock) {
        if let Some(executor) = &mut self.executor {
            executor.__give_lock(endpoint_lock);
        }
    }

    fn prepare(&mut self) -> Result<(), Error> {
        match &mut self.executor {
            Some(executor) => executor.__prepare(|executor| self.recipe.prepare(executor)),
            None => Ok(()),
        }
    }

    fn startable(&mut self) -> Option<&mut dyn Startable> {
        self.executor.as_mut().map(|executor| executor as _)
    }

    fn finish(self: Box<Self>) -> Result<R::Handle, Error> {
        let Some(mut executor) = self.executor else {
            return Err(Error::other("start it", "it was not built before"));
        };
        self.recipe.set_up(&mut executor)?;
        self.recipe.handle(executor)
    }

    fn start_in_process(self: Box<Self>, queue: bool) -> Result<R::Handle, Error> {
        let mut executor = self.built(queue)?;
        Self::start_for_process(&self.recipe, &mut executor)?;
        self.recipe.handle(executor)
    }

    fn start_in_run(self: Box<Self>, run: &Run, name: &str, queue: bool) -> Result<R::Handle, Error> {
        let recipe = self.recipe.executor()?;
        let recipe = if queue { recipe.queue(true) } else { recipe };
        if recipe.__is_for_one_process() {
            return self.start_in_process(queue);
        }
        let slot = run.slot(name, std::any::type_name::<R>(), &recipe)?;
        let (permit, recipe) = match slot.enter(recipe)? {
            SlotState::Running(executor) => return self.recipe.handle(*executor),
            SlotState::Vacant(permit, recipe) => (permit, recipe),
        };
        let start = || -> Result<_, Error> {
            let mut executor = permit.build(*recipe)?;
            Self::start_for_process(&self.recipe, &mut executor)?;
            permit.publish(&mut executor)?;
            Ok(executor)
        };
        // A panic, of the set-up for example, is a failure like any other for those who wait.
        match catch_unwind(AssertUnwindSafe(start)) {
            Ok(Ok(executor)) => self.recipe.handle(executor),
            Ok(Err(error)) => {
                permit.failed(&error);
                Err(error)
            }
            Err(panic) => {
                let message = panic.downcast_ref::<String>().map(String::as_str);
                let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
                let message = message.unwrap_or("with something that is no text");
                permit.failed(&Error::other("start it", format!("it panicked: {message}")));
                resume_unwind(panic)
            }
        }
    }
}

/// Which fixture failed, and why.
pub struct Failure {
    name: &'static str,
    pub(crate) error: Error,
}

impl Failure {
    fn report(&self) -> String {
        let error = shown(&self.error);
        match self.name {
            "" => format!("the test's fixture could not be started\n{error}"),
            name => format!("the fixture `{name}` could not be started\n{error}"),
        }
    }
}

/// The fixtures of one function: `()`, or one and the rest of them.
pub trait Fixtures {
    /// Their handles, in the same shape.
    type Handles;

    /// The first stage, for all of them.
    fn build(&mut self) -> Result<(), Failure>;

    /// What they want for themselves alone.
    fn endpoints(&self) -> Option<Endpoints>;

    /// Gives each the turn that was taken for all.
    fn give_lock(&mut self, endpoint_lock: &SharedLock);

    /// Makes ready what each needs before it is started.
    fn prepare(&mut self) -> Result<(), Failure>;

    /// What is to be started together, with the names for messages.
    fn startables<'a>(&'a mut self, list: &mut Vec<(&'static str, &'a mut dyn Startable)>);

    /// The last stage, one after the other, of what has been started.
    fn finish(self) -> Result<Self::Handles, Failure>;
}

impl Fixtures for () {
    type Handles = ();

    fn build(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn endpoints(&self) -> Option<Endpoints> {
        None
    }

    fn give_lock(&mut self, _: &SharedLock) {}

    fn prepare(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn startables<'a>(&'a mut self, _: &mut Vec<(&'static str, &'a mut dyn Startable)>) {}

    fn finish(self) -> Result<(), Failure> {
        Ok(())
    }
}

impl<H, Rest: Fixtures> Fixtures for (Fixture<'_, H>, Rest) {
    type Handles = (H, Rest::Handles);

    fn build(&mut self) -> Result<(), Failure> {
        self.0.build()?;
        self.1.build()
    }

    fn endpoints(&self) -> Option<Endpoints> {
        match (self.0.endpoints(), self.1.endpoints()) {
            (Some(ours), Some(others)) => Some(ours.and(others)),
            (ours, others) => ours.or(others),
        }
    }

    fn give_lock(&mut self, endpoint_lock: &SharedLock) {
        self.0.give_lock(endpoint_lock);
        self.1.give_lock(endpoint_lock);
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        self.0.prepare()?;
        self.1.prepare()
    }

    fn startables<'a>(&'a mut self, list: &mut Vec<(&'static str, &'a mut dyn Startable)>) {
        list.extend(self.0.startable());
        self.1.startables(list);
    }

    fn finish(self) -> Result<Self::Handles, Failure> {
        let first = self.0.finish()?;
        let rest = self.1.finish()?;
        Ok((first, rest))
    }
}

/// Any number of one kind.
impl<H> Fixtures for Vec<Fixture<'_, H>> {
    type Handles = Vec<H>;

    fn build(&mut self) -> Result<(), Failure> {
        self.iter_mut().try_for_each(Fixture::build)
    }

    fn endpoints(&self) -> Option<Endpoints> {
        self.iter().filter_map(Fixture::endpoints).reduce(Endpoints::and)
    }

    fn give_lock(&mut self, endpoint_lock: &SharedLock) {
        for fixture in self {
            fixture.give_lock(endpoint_lock);
        }
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        self.iter_mut().try_for_each(Fixture::prepare)
    }

    fn startables<'a>(&'a mut self, list: &mut Vec<(&'static str, &'a mut dyn Startable)>) {
        list.extend(self.iter_mut().filter_map(Fixture::startable));
    }

    fn finish(self) -> Result<Self::Handles, Failure> {
        self.into_iter().map(Fixture::finish).collect()
    }
}

/// Starts all of them: together, so that it takes as long as the slowest. Where one fails, the
/// others end.
pub(crate) fn start_fixtures<F: Fixtures>(mut fixtures: F) -> Result<F::Handles, Failure> {
    fixtures.build()?;
    // For all of them at once, and so in one order for all tests. Kept until all have started.
    let endpoint_lock = fixtures.endpoints().map(Endpoints::queue).transpose();
    let endpoint_lock = endpoint_lock.map_err(|error| Failure { name: "", error })?;
    if let Some(endpoint_lock) = &endpoint_lock {
        fixtures.give_lock(endpoint_lock);
    }
    fixtures.prepare()?;
    let mut list = Vec::new();
    fixtures.startables(&mut list);
    let (names, mut services): (Vec<_>, Vec<_>) = list.into_iter().unzip();
    start_together(&mut services).map_err(|(at, error)| Failure {
        name: names[at],
        error,
    })?;
    fixtures.finish()
}

/// Starts the fixtures of a test or of a fixture function.
///
/// # Panics
///
/// When one could not be started, with its error's report, at the attribute.
#[track_caller]
pub fn start<F: Fixtures>(fixtures: F) -> F::Handles {
    test_begins();
    match start_fixtures(fixtures) {
        Ok(handles) => handles,
        Err(failure) => panic!("{}", failure.report()),
    }
}

/// The same for a test that should panic: a panic of ours would be taken for the one that is
/// expected, so the report is printed instead, and the test returns and so fails.
pub fn start_or_report<F: Fixtures>(fixtures: F) -> Option<F::Handles> {
    test_begins();
    match start_fixtures(fixtures) {
        Ok(handles) => Some(handles),
        Err(failure) => {
            eprintln!("{}", failure.report());
            None
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

/// Starts a fixture that is shared. Its name is told by whoever holds it.
///
/// # Errors
///
/// Those of the start.
pub fn start_shared<H>(fixture: Fixture<'_, H>, scope: Scope) -> Result<H, Error> {
    if let Some(run) = (scope == Scope::Run).then(Run::current).flatten() {
        return fixture.recipe.start_in_run(run, fixture.name, fixture.queue);
    }
    fixture.recipe.start_in_process(fixture.queue)
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
