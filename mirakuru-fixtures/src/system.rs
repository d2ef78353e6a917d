//! [`System`]: services that start together, each one as soon as the services that it needs are
//! ready.
//!
//! The stacked attributes of a test, the fields of a struct and the nodes of a cluster all become
//! members of one list. A member without needs starts immediately. A member with needs waits until
//! they are ready, because its recipe is created from their handles. A recipe of several services,
//! such as [`Plan`], adds its services to the same list, so nested systems start together, too. The
//! file is long because the list, its steps and the clean-up after a failed start share private
//! state.
//!
//! No threads are needed: each time a service becomes ready, this code looks for members that can
//! now start.

use std::any::{Any, type_name};
use std::cell::{OnceCell, RefCell, RefMut};
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::task::Poll;

use mirakuru_core::__private::{
    Endpoints, Polled, Run, SharedLock, Startable, launch_together, poll_together, shown, test_begins,
    test_may_start,
};
use mirakuru_core::{Error, Executor, ExecutorBuilder, NoWait};

use crate::lease;
use crate::missing::{skip, skips, why_not_skipped};
use crate::recipe::Recipe;

/// Services that start together.
pub struct System<'a> {
    members: Vec<Member<'a>>,
    reach: Reach,
    /// The prefix for the names of the members that are added next.
    prefix: String,
    /// The position in the `start_all` list that the members added next get, such as `2 of 3`.
    place: String,
    /// The slots that the current plan has added so far.
    added: Vec<Weak<dyn Need + 'a>>,
    /// The directories of the services needed by the members that are added next.
    needs: Vec<PathBuf>,
    /// Whether the services end with the test on this thread.
    is_for_test: bool,
    /// The locks on fixed ports and paths. They are held until all services have started.
    locks: Vec<SharedLock>,
}

/// How long a system's services live, and which processes use them.
#[derive(Clone, Copy)]
pub(crate) enum Reach {
    /// The services live as long as their handles.
    Handle,
    /// The services live as long as this process.
    Process,
    /// The services live as long as the run: one process starts a service, and others can use it.
    Run(&'static Run),
}

/// A place for a service's handle, filled once the service is ready. All clones refer to the same
/// place.
pub struct Slot<H>(Rc<Place<H>>);

struct Place<H> {
    handle: OnceCell<H>,
    /// The directories of the services to which the handle belongs.
    dirs: RefCell<Vec<PathBuf>>,
}

impl<H> Clone for Slot<H> {
    fn clone(&self) -> Slot<H> {
        Slot(Rc::clone(&self.0))
    }
}

impl<H> Slot<H> {
    pub(crate) fn new() -> Slot<H> {
        Slot(Rc::new(Place {
            handle: OnceCell::new(),
            dirs: RefCell::default(),
        }))
    }

    /// Sets the handle, and the directories of the services to which it belongs.
    pub(crate) fn fill(&self, handle: H, dirs: Vec<PathBuf>) {
        self.0.dirs.replace(dirs);
        let filled = self.0.handle.set(handle).is_ok();
        debug_assert!(filled, "a service becomes ready once");
    }

    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        self.0.dirs.borrow().clone()
    }

    /// Returns the handle, for a recipe that uses it.
    ///
    /// # Panics
    ///
    /// If the service is not ready. (A recipe with needs is created only once they are ready.)
    #[must_use]
    pub fn get(&self) -> &H {
        self.0.handle.get().expect("the service is ready")
    }

    /// Takes the handle out, once all services have started.
    ///
    /// # Panics
    ///
    /// If the service is not ready, or if a clone of the slot exists.
    #[must_use]
    pub fn take(self) -> H {
        let handle = Rc::into_inner(self.0).and_then(|place| place.handle.into_inner());
        handle.expect("the service is ready, and nobody else takes its handle")
    }
}

/// Something that a member waits for.
pub trait Need {
    /// Whether the need is ready.
    fn is_there(&self) -> bool;

    /// The directories of this need's services.
    fn dirs(&self) -> Vec<PathBuf>;
}

impl<H> Need for Place<H> {
    fn is_there(&self) -> bool {
        self.handle.get().is_some()
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.dirs.borrow().clone()
    }
}

impl<H> Slot<H> {
    /// Returns this slot as a need. The reference is weak, so that [`Slot::take`] can take the
    /// handle.
    pub(crate) fn need<'a>(&self) -> Weak<dyn Need + 'a>
    where
        H: 'a,
    {
        let place: Weak<Place<H>> = Rc::downgrade(&self.0);
        place
    }
}

/// The slots whose handles a recipe uses: a single one, or a tuple.
pub trait Needs<'a> {
    /// Adds these slots to `needs`.
    #[doc(hidden)]
    fn list(&self, needs: &mut Vec<Weak<dyn Need + 'a>>);
}

impl<'a, H: 'a> Needs<'a> for Slot<H> {
    fn list(&self, needs: &mut Vec<Weak<dyn Need + 'a>>) {
        needs.push(self.need());
    }
}

macro_rules! needs {
    () => {};
    ($first:ident $($other:ident)*) => {
        needs!($($other)*);
        needs!(=> $first $($other)*);
    };
    (=> $($name:ident)+) => {
        impl<'a, $($name: Needs<'a>),+> Needs<'a> for ($($name,)+) {
            #[allow(non_snake_case)]
            fn list(&self, needs: &mut Vec<Weak<dyn Need + 'a>>) {
                let ($($name,)+) = self;
                $($name.list(needs);)+
            }
        }
    };
}

needs!(A B C D E F G H);

/// A service of any type, on its way from its recipe to its handle. The methods from `build` to
/// `finish` are the steps of its start.
pub(crate) trait Service {
    /// Creates the executor, or attaches to the run's service. After that, the fixed ports and
    /// paths are known.
    fn build(&mut self, name: &str) -> Result<(), Error>;

    /// The fixed ports and paths to lock before the start. `None` if the service does not wait for
    /// them.
    fn endpoints(&self) -> Option<Endpoints>;

    /// Gives the service the lock that was acquired for all services together.
    fn give_lock(&mut self, lock: &SharedLock);

    /// Makes the service end with the test on this thread.
    fn end_with_test(&mut self);

    fn prepare(&mut self) -> Result<(), Error>;

    /// The executor to start. `None` if another process has started the service.
    fn startable(&mut self) -> Option<&mut dyn Startable>;

    /// Sets the started service up, and fills its slot.
    fn finish(&mut self) -> Result<(), Error>;

    /// The name of the executor, for messages about a service whose fixture has no name.
    fn title(&self) -> Option<String>;

    /// How the service has ended, if it ended before its cluster was ready.
    fn ended(&self) -> Option<String>;

    /// Reports the failed start to the other processes of the run.
    fn failed(&mut self, error: &Error);
}

struct Member<'a> {
    name: String,
    /// The name of the service in messages if `name` is empty.
    title: Option<String>,
    /// The position in the list of `start_all`. Empty if there is no list.
    place: String,
    needs: Vec<Weak<dyn Need + 'a>>,
    /// The directories of the services that the enclosing recipe needs.
    inherited: Vec<PathBuf>,
    stage: Stage<'a>,
}

type Shared<'a> = Rc<RefCell<dyn Service + 'a>>;

type Waiting<'a> = dyn FnOnce(&mut System<'a>) -> Result<(), Error> + 'a;

enum Stage<'a> {
    /// A service whose recipe is created once its needs are ready.
    Recipe(Box<Waiting<'a>>),
    /// Another task, called once its needs are ready.
    Waits(Box<Waiting<'a>>),
    /// A task that is called repeatedly once its needs are ready, until it returns `true`. It may
    /// block for a short time.
    Polls(Box<dyn FnMut() -> Result<bool, Error> + 'a>),
    New(Shared<'a>),
    Starting(Shared<'a>),
    /// The service is ready. If it is a node of a cluster, the cluster still owns it. Otherwise its
    /// handle is in its slot, and this reference is dangling.
    Ready(Weak<RefCell<dyn Service + 'a>>),
    Over,
}

/// The name of the failed service, and the error.
pub(crate) struct Failure {
    name: String,
    pub(crate) error: Error,
}

impl Failure {
    fn report(&self) -> String {
        let error = shown(&self.error);
        match &*self.name {
            "" => format!("the test's fixture could not be started\n{error}"),
            name => format!("the fixture `{name}` could not be started\n{error}"),
        }
    }
}

impl<'a> System<'a> {
    pub(crate) fn with_reach(reach: Reach) -> System<'a> {
        System {
            members: Vec::new(),
            reach,
            prefix: String::new(),
            place: String::new(),
            added: Vec::new(),
            needs: Vec::new(),
            is_for_test: false,
            locks: Vec::new(),
        }
    }

    /// Creates an empty system. Its services live as long as their handles.
    #[allow(clippy::new_without_default)] // Only generated code creates a system.
    #[must_use]
    pub fn new() -> System<'a> {
        System::with_reach(Reach::Handle)
    }

    /// Creates an empty system for a test. Its services end with their handles, or at the latest
    /// with the test on this thread.
    #[must_use]
    pub fn of_test() -> System<'a> {
        // Registers the test before any recipe is created, because rstest's `#[timeout]` may
        // already expire while the recipes are being created.
        test_may_start();
        let mut system = System::new();
        system.is_for_test = true;
        system
    }

    pub(crate) fn reach(&self) -> Reach {
        self.reach
    }

    /// Declares that the members added next belong to the recipe at this index in a list of `of`
    /// recipes.
    pub(crate) fn at_place(&mut self, index: usize, of: usize) {
        self.place = format!("{} of {of}", index + 1);
    }

    /// The directories of the services that a newly added service needs.
    pub(crate) fn needs(&self) -> Vec<PathBuf> {
        self.needs.clone()
    }

    /// Adds the service of a recipe. The name is for messages, and may be empty. If the service has
    /// a fixed port or path that another fixture is using, and `queue` is `true`, the service waits
    /// for it. If `queue` is `false`, the recipe decides.
    pub fn service<R: Recipe + 'a>(&mut self, name: &str, queue: bool, recipe: R) -> Slot<R::Handle> {
        let name = format!("{}{name}", self.prefix);
        let slot = recipe.__join(self, Joining { name, queue });
        self.added.push(slot.need());
        slot
    }

    /// Adds a service whose recipe uses the handles of other services. It starts as soon as they
    /// are ready.
    pub fn after<N: Needs<'a> + 'a, R: Recipe + 'a>(
        &mut self,
        name: &str,
        queue: bool,
        needs: N,
        recipe: impl FnOnce(&N) -> R + 'a,
    ) -> Slot<R::Handle> {
        let slot = Slot::new();
        let name = format!("{}{name}", self.prefix);
        let joining = Joining {
            name: name.clone(),
            queue,
        };
        let mut list = Vec::new();
        needs.list(&mut list);
        let outer = slot.clone();
        let stage = Stage::Recipe(Box::new(move |system| {
            let recipe = recipe(&needs);
            // `Slot::take` panics while a clone of the slot exists.
            drop(needs);
            let inner = recipe.__join(system, joining);
            let need = inner.need();
            let forward = Stage::Waits(Box::new(move |_| {
                let dirs = inner.dirs();
                outer.fill(inner.take(), dirs);
                Ok(())
            }));
            system.push(String::new(), vec![need], forward);
            Ok(())
        }));
        self.push(name, list, stage);
        self.added.push(slot.need());
        slot
    }

    /// Adds a handle that `make` creates once all members of this plan are ready.
    pub fn join<H: 'a>(&mut self, make: impl FnOnce() -> H + 'a) -> Slot<H> {
        let slot = Slot::new();
        let place = slot.clone();
        let needs = self.added.clone();
        let parts = needs.clone();
        let stage = Stage::Waits(Box::new(move |_| {
            place.fill(make(), dirs_of(&parts, Vec::new()));
            Ok(())
        }));
        self.push(String::new(), needs, stage);
        slot
    }

    /// Adds a value that is ready once `make` has returned it.
    pub(crate) fn make<H: 'a>(
        &mut self,
        joining: Joining,
        make: impl FnOnce() -> Result<H, Error> + 'a,
    ) -> Slot<H> {
        let slot = Slot::new();
        let place = slot.clone();
        let stage = Stage::Recipe(Box::new(move |_| {
            place.fill(make()?, Vec::new());
            Ok(())
        }));
        self.push(joining.name, Vec::new(), stage);
        slot
    }

    pub(crate) fn add(&mut self, name: String, service: Shared<'a>) {
        self.push(name, Vec::new(), Stage::New(service));
    }

    /// Adds a task that has no needs. The task may fail.
    pub(crate) fn run_now(
        &mut self,
        name: String,
        run: impl FnOnce(&mut System<'a>) -> Result<(), Error> + 'a,
    ) {
        self.push(name, Vec::new(), Stage::Recipe(Box::new(run)));
    }

    /// Adds a task that runs once its need is ready. The task may fail.
    pub(crate) fn run_later(
        &mut self,
        need: Weak<dyn Need + 'a>,
        run: impl FnOnce(&mut System<'a>) -> Result<(), Error> + 'a,
    ) {
        self.push(String::new(), vec![need], Stage::Waits(Box::new(run)));
    }

    /// Adds a task that is called repeatedly once its needs are ready, until it returns `true`.
    pub(crate) fn poll(
        &mut self,
        name: String,
        needs: Vec<Weak<dyn Need + 'a>>,
        poll: impl FnMut() -> Result<bool, Error> + 'a,
    ) {
        self.push(name, needs, Stage::Polls(Box::new(poll)));
    }

    fn push(&mut self, name: String, needs: Vec<Weak<dyn Need + 'a>>, stage: Stage<'a>) {
        let inherited = self.needs.clone();
        self.members.push(Member {
            name,
            title: None,
            place: self.place.clone(),
            needs,
            inherited,
            stage,
        });
    }

    /// Starts all services of a test or of a fixture function. Once they are ready, the closure
    /// takes their handles, those of dependent services first.
    pub fn start<T>(self, take: impl FnOnce() -> T) -> Started<T> {
        test_begins();
        Started(self.run(take))
    }

    /// Like [`start`](System::start), but async. Dropping the future before it is complete stops
    /// all services.
    pub async fn start_async<T>(self, take: impl FnOnce() -> T) -> Started<T> {
        test_begins();
        Started(self.start_all_async().await.map(|()| take()))
    }

    async fn start_all_async(mut self) -> Result<(), Box<Failure>> {
        let mut at = 0;
        loop {
            match self.step(&mut at) {
                Ok(Step::Over) => return Ok(()),
                Ok(Step::Again) => yield_now().await,
                Ok(Step::Wait(polled)) => polled.wakeup().await,
                Err(stopped) => return Err(self.fail(at, stopped)),
            }
        }
    }

    /// Starts all services, each one as soon as its needs are ready. If one start fails, the other
    /// services are stopped.
    pub(crate) fn run<T>(self, take: impl FnOnce() -> T) -> Result<T, Box<Failure>> {
        self.start_all()?;
        Ok(take())
    }

    fn start_all(mut self) -> Result<(), Box<Failure>> {
        let mut at = 0;
        loop {
            match self.step(&mut at) {
                Ok(Step::Over) => return Ok(()),
                Ok(Step::Again) => {}
                Ok(Step::Wait(polled)) => polled.wait(),
                Err(stopped) => return Err(self.fail(at, stopped)),
            }
        }
    }

    /// Performs the next step of the start. A panic, for example in `set_up`, becomes an error, so
    /// that processes that wait for the service fail, too.
    fn step(&mut self, at: &mut usize) -> Result<Step, Stopped> {
        let stepped = catch_unwind(AssertUnwindSafe(|| lease::allowed(|| self.try_step(at))));
        match stepped {
            Ok(stepped) => stepped.map_err(|error| Stopped {
                error: Box::new(error),
                panic: None,
            }),
            Err(panic) => {
                let message = panic.downcast_ref::<String>().map(String::as_str);
                let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
                let message = message.unwrap_or("(its value is not text)");
                let error = Error::other("start it", format!("it panicked: {message}"));
                Err(Stopped {
                    error: Box::new(error),
                    panic: Some(panic),
                })
            }
        }
    }

    /// Stops all services after the member at this index has failed.
    fn fail(self, at: usize, stopped: Stopped) -> Box<Failure> {
        let Stopped { error, panic } = stopped;
        if let Some(Stage::New(service) | Stage::Starting(service)) =
            self.members.get(at).map(|member| &member.stage)
        {
            if let Ok(mut service) = service.try_borrow_mut() {
                service.failed(&error);
            }
        }
        let failure = Failure {
            name: self
                .members
                .get(at)
                .map_or_else(String::new, |member| member.name.clone()),
            error: error.__in_system(self.others(at)),
        };
        drop(self);
        match panic {
            Some(panic) => resume_unwind(panic),
            None => Box::new(failure),
        }
    }

    /// The state of each named service at the time when the start failed. Empty if there is only
    /// one.
    fn others(&self, failed: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for (at, member) in self.members.iter().enumerate() {
            let Some(name) = member.shown_name() else {
                continue;
            };
            let state = match &member.stage {
                _ if at == failed => "failed".to_owned(),
                Stage::Ready(_) => match member.ended() {
                    Some(how) => format!("was ready, and {how}"),
                    None => "was ready".to_owned(),
                },
                Stage::Starting(_) => "was starting".to_owned(),
                Stage::New(_) | Stage::Recipe(_) => "was not started".to_owned(),
                Stage::Waits(_) | Stage::Polls(_) | Stage::Over => continue,
            };
            lines.push(format!("{name} {state}"));
        }
        if lines.len() > 1 { lines } else { Vec::new() }
    }

    /// Tries the next step. After an error, `at` is the index of the failed member.
    fn try_step(&mut self, at: &mut usize) -> Result<Step, Error> {
        while let Some(next) = self.next_that_waits() {
            *at = next;
            match std::mem::replace(&mut self.members[next].stage, Stage::Over) {
                Stage::Recipe(run) | Stage::Waits(run) => {
                    self.needs = self.members[next].dirs_of_needs();
                    self.place.clone_from(&self.members[next].place);
                    match self.reach {
                        Reach::Run(_) => lease::forbidden(|| run(self))??,
                        Reach::Handle | Reach::Process => run(self)?,
                    }
                    self.needs.clear();
                }
                other => self.members[next].stage = other,
            }
        }
        self.launch(at)?;
        let Polls { is_news, are_left } = self.poll_all(at)?;
        let is_over = |member: &Member<'_>| matches!(member.stage, Stage::Ready(_) | Stage::Over);
        if self.members.iter().all(is_over) {
            return Ok(Step::Over);
        }
        if is_news {
            return Ok(Step::Again);
        }
        self.finish_ready(at, are_left)
    }

    fn next_that_waits(&self) -> Option<usize> {
        self.members.iter().position(|member| {
            matches!(member.stage, Stage::Recipe(_) | Stage::Waits(_)) && member.has_its_needs()
        })
    }

    /// Launches all new services, without waiting for them.
    fn launch(&mut self, at: &mut usize) -> Result<(), Error> {
        let new = self.all(|stage| match stage {
            Stage::New(service) => Some(service),
            _ => None,
        });
        if new.is_empty() {
            return Ok(());
        }
        let mut endpoints: Option<Endpoints> = None;
        for (index, service) in &new {
            *at = *index;
            let mut service = service.borrow_mut();
            let member = &mut self.members[*index];
            service.build(&member.name)?;
            member.title = service.title();
            if self.is_for_test {
                service.end_with_test();
            }
            endpoints = match (endpoints, service.endpoints()) {
                (Some(others), Some(own)) => Some(others.and(own)),
                (others, own) => others.or(own),
            };
        }
        // All locks are acquired in a single call, which sorts them, so that two tests cannot wait
        // for each other.
        if let Some(endpoints) = endpoints {
            *at = new[0].0;
            let lock = endpoints.queue()?;
            for (_, service) in &new {
                service.borrow_mut().give_lock(&lock);
            }
            self.locks.push(lock);
        }
        for (index, service) in &new {
            *at = *index;
            service.borrow_mut().prepare()?;
        }
        let mut services = borrowed(&new);
        let (indices, mut startables) = startables(&mut services);
        if let Err((place, error)) = launch_together(&mut startables) {
            *at = indices[place];
            return Err(error);
        }
        drop(services);
        for (index, service) in new {
            self.members[index].stage = Stage::Starting(service);
        }
        Ok(())
    }

    /// Waits until at least one service is ready, and finishes the start of each one that is. Does
    /// not wait if a task must be polled.
    fn finish_ready(&mut self, at: &mut usize, polls_are_left: bool) -> Result<Step, Error> {
        let starting = self.all(|stage| match stage {
            Stage::Starting(service) => Some(service),
            _ => None,
        });
        let mut ready = Vec::new();
        let mut step = Step::Again;
        if !starting.is_empty() {
            let mut services = borrowed(&starting);
            let (launched, mut startables) = startables(&mut services);
            let polled = match poll_together(&mut startables) {
                Ok(polled) => polled,
                Err((place, error)) => {
                    *at = launched[place];
                    return Err(error);
                }
            };
            for (index, _) in &starting {
                if !launched.contains(index) {
                    ready.push(*index);
                }
            }
            for place in &polled.ready {
                ready.push(launched[*place]);
            }
            if ready.is_empty() && !polls_are_left {
                step = Step::Wait(polled);
            }
        } else if !polls_are_left {
            return Err(Error::other(
                "start it",
                "it needs a service that is never started",
            ));
        }
        for (index, service) in starting {
            if ready.contains(&index) {
                *at = index;
                service.borrow_mut().finish()?;
                self.members[index].stage = Stage::Ready(Rc::downgrade(&service));
            }
        }
        Ok(step)
    }

    fn poll_all(&mut self, at: &mut usize) -> Result<Polls, Error> {
        let mut polled = Polls::default();
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            let has_its_needs = member.has_its_needs();
            if let Stage::Polls(poll) = &mut member.stage {
                *at = index;
                match has_its_needs.then(poll).transpose() {
                    Ok(Some(true)) => {
                        member.stage = Stage::Over;
                        polled.is_news = true;
                    }
                    Ok(is_ready) => polled.are_left |= is_ready.is_some(),
                    Err(error) => {
                        let ended = self.members.iter().position(|member| member.ended().is_some());
                        *at = ended.unwrap_or(index);
                        return Err(error);
                    }
                }
            }
        }
        Ok(polled)
    }

    /// The services in a stage, with the indices of their members.
    fn all(&self, of: for<'s> fn(&'s Stage<'a>) -> Option<&'s Shared<'a>>) -> Vec<(usize, Shared<'a>)> {
        let mut services = Vec::new();
        for (index, member) in self.members.iter().enumerate() {
            if let Some(service) = of(&member.stage) {
                services.push((index, Rc::clone(service)));
            }
        }
        services
    }
}

impl Drop for System<'_> {
    /// A service is stopped before the services that it needs, which come earlier in the list.
    fn drop(&mut self) {
        while self.members.pop().is_some() {}
    }
}

/// The result of one step of a start.
enum Step {
    Over,
    Again,
    /// The next step must wait for an event.
    Wait(Polled),
}

/// Why a step has failed.
struct Stopped {
    error: Box<Error>,
    panic: Option<Box<dyn Any + Send>>,
}

#[derive(Default)]
struct Polls {
    /// Whether a task is complete, so that other members may be able to start.
    is_news: bool,
    /// Whether a task must be polled again.
    are_left: bool,
}

/// Lets the async runtime run other tasks.
async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|cx| match std::mem::replace(&mut has_yielded, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

/// The result of a start: the handles, or the error.
#[must_use]
pub struct Started<T>(Result<T, Box<Failure>>);

impl<T> Started<T> {
    /// Returns the handles, for a test or a fixture function.
    ///
    /// # Panics
    ///
    /// If a service could not be started. The message is the error's report, and the location is
    /// that of the attribute.
    #[track_caller]
    pub fn or_panic(self) -> T {
        match self.0 {
            Ok(handles) => handles,
            Err(failure) => {
                let how = match skips(&failure.error) {
                    Some(_) => {
                        "\n  (a test cannot be skipped from here: put the attribute on the test itself)"
                            .to_owned()
                    }
                    None => why_not_skipped(&failure.error),
                };
                panic!("{}{how}", failure.report())
            }
        }
    }

    /// Returns the handles for a test, or `None` if the test is skipped because something is
    /// missing.
    ///
    /// # Panics
    ///
    /// If a service could not be started for another reason.
    #[must_use]
    #[track_caller]
    pub fn or_skip(self) -> Option<T> {
        match self.0 {
            Ok(handles) => Some(handles),
            Err(failure) => match skips(&failure.error) {
                Some(missing) => {
                    eprintln!("{}", skip(missing));
                    None
                }
                None => panic!("{}{}", failure.report(), why_not_skipped(&failure.error)),
            },
        }
    }

    /// Returns the handles for a `#[should_panic]` test. If the start fails, prints the report and
    /// returns `None`, because a panic would count as the expected one. `expected` is the string
    /// that the message of the expected panic must contain.
    ///
    /// # Panics
    ///
    /// If the test is skipped. The message contains `expected`, so that the test passes.
    #[must_use]
    pub fn or_report(self, expected: &str) -> Option<T> {
        match self.0 {
            Ok(handles) => Some(handles),
            Err(failure) => {
                if let Some(missing) = skips(&failure.error) {
                    // A `#[should_panic]` test passes only if it panics.
                    match expected {
                        "" => panic!("{}", skip(missing)),
                        _ => panic!("{} ({expected})", skip(missing)),
                    }
                }
                eprintln!("{}{}", failure.report(), why_not_skipped(&failure.error));
                None
            }
        }
    }
}

type Borrowed<'s, 'a> = (usize, RefMut<'s, dyn Service + 'a>);

fn borrowed<'s, 'a>(services: &'s [(usize, Shared<'a>)]) -> Vec<Borrowed<'s, 'a>> {
    let mut borrowed = Vec::new();
    for (index, service) in services {
        borrowed.push((*index, service.borrow_mut()));
    }
    borrowed
}

/// The executors of the services that this process starts, and the indices of their members.
fn startables<'s>(services: &'s mut [Borrowed<'_, '_>]) -> (Vec<usize>, Vec<&'s mut dyn Startable>) {
    let (mut indices, mut startables) = (Vec::new(), Vec::new());
    for (index, service) in services {
        if let Some(startable) = service.startable() {
            indices.push(*index);
            startables.push(startable);
        }
    }
    (indices, startables)
}

/// Appends the directories of the needs to `dirs`. Skips needs that no longer exist.
fn dirs_of(needs: &[Weak<dyn Need + '_>], mut dirs: Vec<PathBuf>) -> Vec<PathBuf> {
    for need in needs {
        if let Some(need) = need.upgrade() {
            dirs.append(&mut need.dirs());
        }
    }
    dirs
}

impl Member<'_> {
    /// The member's name for messages: the name of the fixture or of the executor, and the position
    /// in the `start_all` list.
    fn shown_name(&self) -> Option<String> {
        let name = Some(&self.name).filter(|name| !name.is_empty());
        match (name.or(self.title.as_ref()), &*self.place) {
            // A task, or the only service of a start.
            (_, "") if self.name.is_empty() => None,
            (None, place) => Some(format!("service {place}")),
            (Some(name), "") => Some(format!("`{name}`")),
            (Some(name), place) => Some(format!("`{name}` ({place})")),
        }
    }

    /// How the node of a cluster has ended, if it ended after it was ready.
    fn ended(&self) -> Option<String> {
        match &self.stage {
            Stage::Ready(service) => service.upgrade()?.borrow().ended(),
            _ => None,
        }
    }

    fn dirs_of_needs(&self) -> Vec<PathBuf> {
        dirs_of(&self.needs, self.inherited.clone())
    }

    fn has_its_needs(&self) -> bool {
        // If a slot no longer exists, its handle has already been taken.
        self.needs
            .iter()
            .all(|need| need.upgrade().is_none_or(|need| need.is_there()))
    }
}

/// The name and the `queue` option with which a recipe joins a system.
pub struct Joining {
    /// The name of the fixture, which may be empty.
    pub(crate) name: String,
    /// Whether the services wait for fixed ports and paths even if the recipe does not request
    /// that.
    pub(crate) queue: bool,
}

/// A recipe whose handle `S` consists of several services. `#[mirakuru::fixture]` on a struct
/// creates one, with the name of the struct.
pub struct Plan<S> {
    add: Adds<S>,
}

type Adds<S> = for<'a> fn(&mut System<'a>) -> Slot<S>;

impl<S> Plan<S> {
    /// Creates a plan from a function that adds the services, and combines their handles into one.
    #[must_use]
    pub const fn new(add: Adds<S>) -> Plan<S> {
        Plan { add }
    }
}

impl<S> Clone for Plan<S> {
    fn clone(&self) -> Plan<S> {
        *self
    }
}

impl<S> Copy for Plan<S> {}

impl<S> fmt::Debug for Plan<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan<{}>", type_name::<S>())
    }
}

#[diagnostic::do_not_recommend]
impl<S> Recipe for Plan<S> {
    several!(S);

    fn __join<'a>(self, system: &mut System<'a>, joining: Joining) -> Slot<S>
    where
        Self: 'a,
    {
        let prefix = match &*joining.name {
            "" => String::new(),
            name => format!("{name}."),
        };
        let outer = (
            std::mem::replace(&mut system.prefix, prefix),
            std::mem::take(&mut system.added),
        );
        let slot = (self.add)(system);
        (system.prefix, system.added) = outer;
        slot
    }
}

/// The name of a type in the attribute: a recipe, or a function that returns the recipe of a
/// generic struct. (`How` tells the two apart.)
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be started",
    label = "not a recipe",
    note = "a recipe is the name of a struct with `#[mirakuru::fixture]`, an `Executor::builder(..)` without \
        `.start()`, a preset, or a type of your own that implements `mirakuru::Recipe`"
)]
pub trait IntoRecipe<How> {
    /// The type of the recipe.
    type Recipe: Recipe;

    /// Returns the recipe.
    fn into_recipe(self) -> Self::Recipe;
}

/// Selects the implementation of [`IntoRecipe`] for a value that is itself a recipe.
pub struct AsItIs;

/// Selects the implementation of [`IntoRecipe`] for a function that returns a recipe.
pub struct Called;

#[diagnostic::do_not_recommend]
impl<R: Recipe> IntoRecipe<AsItIs> for R {
    type Recipe = R;

    fn into_recipe(self) -> R {
        self
    }
}

#[diagnostic::do_not_recommend]
impl<F: FnOnce() -> Plan<S>, S> IntoRecipe<Called> for F {
    type Recipe = Plan<S>;

    fn into_recipe(self) -> Plan<S> {
        self()
    }
}

/// Returns the recipe for a name in the attribute.
pub fn recipe<How, R: IntoRecipe<How>>(name: R) -> R::Recipe {
    name.into_recipe()
}

/// Returns the error for a recipe of several services that is used as a single executor.
pub(crate) fn not_one_executor<T>() -> Result<T, Error> {
    Err(Error::other(
        "make an executor of this recipe",
        "it starts several services: start it with `Recipe::start`, `start_all` or the attribute (a \
            node of a cluster is one service)",
    ))
}

/// Implements the methods of [`Recipe`] that are the same for all recipes of several services.
macro_rules! several {
    ($handle:ty) => {
        type Readiness = NoWait;
        type Handle = $handle;

        const __SEVERAL: bool = true;

        fn executor(&self) -> Result<ExecutorBuilder<NoWait>, Error> {
            $crate::system::not_one_executor()
        }

        fn handle(self, _: Executor<NoWait>) -> Result<$handle, Error> {
            $crate::system::not_one_executor()
        }
    };
}
pub(crate) use several;
