//! [`start_all`] and [`stop_all`]: several services at once.

use mirakuru_core::__private::{Startable, stop_together};
use mirakuru_core::{Error, Executor, Readiness};

use crate::cluster::Cluster;
use crate::recipe::Recipe;
use crate::start::{built, plain};
use crate::system::{Slot, System};

/// Starts several services at once. This takes as long as the slowest of them.
///
/// ```
/// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
/// use mirakuru::{Executor, Tcp};
/// use mirakuru::start_all;
///
/// let recipe = Executor::builder("python3 -m http.server --bind 127.0.0.1 {port}")
///     .wait_for(Tcp::addr("127.0.0.1:{port}"));
/// let (server, sleeper) = start_all((recipe.clone(), Executor::builder("sleep 60")))?;
/// assert!(server.is_running() && sleeper.is_running());
///
/// // Any number of recipes of one type.
/// let servers = start_all(vec![recipe; 3])?;
/// assert_eq!(servers.len(), 3);
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// The services are launched in the given order, and then waited for together. A recipe may also
/// start several services, as a [`cluster`](crate::cluster) does.
///
/// If a service needs only the port of another one, build both executors first, because `build`
/// chooses the ports. Then start the executors together.
///
/// ```
/// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
/// use mirakuru::{Executor, start_all};
///
/// let database = Executor::builder("sleep 60").env("PORT", "{port}").build()?;
/// let server = Executor::builder("sleep 60").env("DATABASE", database.port().to_string()).build()?;
/// let (database, server) = start_all((database, server))?;
/// assert!(database.is_running() && server.is_running());
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// If a service needs another one to be *ready*, start it after that one. The attribute on a struct
/// determines this order by itself.
///
/// # Errors
///
/// The first error of [`Executor::start`]. The other services are then stopped.
pub fn start_all<S: StartAll>(recipes: S) -> Result<S::Handles, Error> {
    recipes.start_all()
}

/// Recipes, or built executors, for [`start_all`]: a tuple of up to eight, a `Vec`, or an array.
/// The trait is sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a list of recipes",
    label = "expected a tuple, a `Vec` or an array of recipes or of executors",
    note = "a recipe is an `Executor::builder(..)` without `.start()`, a preset, or a type of your \
        own that implements `Recipe`"
)]
pub trait StartAll: sealed::Start {
    /// The handles of the started services: a tuple, a `Vec` or an array, like the recipes.
    type Handles;

    #[doc(hidden)]
    fn start_all(self) -> Result<Self::Handles, Error>;
}

/// One argument of [`start_all`]: a recipe, an executor, or a reference to an executor.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be started",
    label = "neither a recipe nor an executor",
    note = "a recipe is an `Executor::builder(..)`, a preset, or a type of your own that \
        implements `Recipe`"
)]
pub trait ToStart {
    /// The handle of the started service.
    type Handle;

    #[doc(hidden)]
    fn add<'a>(self, system: &mut System<'a>) -> Slot<Self::Handle>
    where
        Self: 'a;
}

impl<R: Recipe> ToStart for R {
    type Handle = R::Handle;

    fn add<'a>(self, system: &mut System<'a>) -> Slot<R::Handle>
    where
        R: 'a,
    {
        plain(self, system)
    }
}

#[diagnostic::do_not_recommend]
impl<R: Readiness> ToStart for Executor<R> {
    type Handle = Executor<R>;

    fn add<'a>(self, system: &mut System<'a>) -> Slot<Executor<R>>
    where
        Executor<R>: 'a,
    {
        built(self, system)
    }
}

#[diagnostic::do_not_recommend]
impl<'e, R: Readiness> ToStart for &'e mut Executor<R> {
    type Handle = &'e mut Executor<R>;

    fn add<'a>(self, system: &mut System<'a>) -> Slot<&'e mut Executor<R>>
    where
        'e: 'a,
    {
        built(self, system)
    }
}

/// Users cannot implement the public traits, because they cannot name these supertraits.
mod sealed {
    pub trait Start {}
    pub trait Stop {}
}

/// Stops several services at once. This takes as long as the slowest of them. (Dropping services
/// one after the other takes the sum of their times.) Each service is stopped before the services
/// that it needs, whatever their order in the list. Each has its own `stop_timeout`.
///
/// ```
/// # mod mirakuru { pub use mirakuru_core::*; pub use mirakuru_fixtures::*; }
/// use mirakuru::{Executor, start_all, stop_all};
///
/// let mut workers = start_all(vec![Executor::builder("sleep 60"); 3])?;
/// stop_all(&mut workers)?; // they can be started again
/// assert!(!workers[0].is_running());
///
/// let (sleeper, other) = start_all((Executor::builder("sleep 60"), Executor::builder("sleep 60")))?;
/// stop_all((sleeper, other))?; // or be used up
/// # Ok::<(), mirakuru_core::Error>(())
/// ```
///
/// Use `stop_all` with executors, such as those that [`start_all`] returns for builders. The
/// handles of presets stop their services when they are dropped.
///
/// # Errors
///
/// The first error of [`Executor::stop`]. All other services are stopped as well.
pub fn stop_all<S: StopAll>(services: S) -> Result<(), Error> {
    services.stop_all()
}

/// The executors for [`stop_all`]: a tuple of up to eight, a `Vec`, an array, or a reference to
/// several of one type. The trait is sealed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a list of executors",
    label = "expected a tuple, a `Vec`, an array or a `&mut` slice of executors"
)]
pub trait StopAll: sealed::Stop {
    #[doc(hidden)]
    fn stop_all(self) -> Result<(), Error>;
}

/// Implements [`StopAll`] for a list of executors of one type.
macro_rules! list {
    ($([$($generics:tt)+] $list:ty),+) => {$(
        impl<$($generics)+> sealed::Stop for $list {}

        impl<$($generics)+> StopAll for $list {
            #[allow(unused_mut)]
            fn stop_all(mut self) -> Result<(), Error> {
                let services = self.iter_mut().map(|service| service as &mut dyn Startable);
                stop_together(&mut services.collect::<Vec<_>>())
            }
        }
    )+};
}

list!(
    [R: Readiness] &mut [Executor<R>],
    [R: Readiness] &mut Vec<Executor<R>>,
    [R: Readiness] &mut Cluster<Executor<R>>,
    [R: Readiness] Cluster<Executor<R>>,
    [R: Readiness] Vec<Executor<R>>,
    [R: Readiness, const N: usize] &mut [Executor<R>; N],
    [R: Readiness, const N: usize] [Executor<R>; N]
);

macro_rules! tuple {
    () => {};
    ($first:ident $($other:ident)*) => {
        tuple!($($other)*);
        tuple!(=> $first $($other)*);
    };
    (=> $($recipe:ident)+) => {
        impl<$($recipe: ToStart),+> sealed::Start for ($($recipe,)+) {}
        impl<$($recipe: Readiness),+> sealed::Stop for ($(Executor<$recipe>,)+) {}

        impl<$($recipe: Readiness),+> StopAll for ($(Executor<$recipe>,)+) {
            #[allow(non_snake_case)]
            fn stop_all(self) -> Result<(), Error> {
                let ($(mut $recipe,)+) = self;
                stop_together(&mut [$(&mut $recipe),+])
            }
        }

        impl<$($recipe: ToStart),+> StartAll for ($($recipe,)+) {
            type Handles = ($($recipe::Handle,)+);

            #[allow(non_snake_case)]
            fn start_all(self) -> Result<Self::Handles, Error> {
                let ($($recipe,)+) = self;
                let mut system = System::new();
                let names = [$(stringify!($recipe)),+];
                let mut index = 0..names.len();
                $(
                    system.at_place(index.next().unwrap_or_default(), names.len());
                    let $recipe = $recipe.add(&mut system);
                )+
                system.run(|| ($($recipe.take(),)+)).map_err(|failure| failure.error)
            }
        }
    };
}

tuple!(A B C D E F G H);

impl<R: ToStart> sealed::Start for Vec<R> {}

impl<R: ToStart> StartAll for Vec<R> {
    type Handles = Vec<R::Handle>;

    fn start_all(self) -> Result<Self::Handles, Error> {
        let mut system = System::new();
        let of = self.len();
        let add = |(index, recipe): (usize, R)| {
            system.at_place(index, of);
            recipe.add(&mut system)
        };
        let slots: Vec<_> = self.into_iter().enumerate().map(add).collect();
        let handles = system.run(|| slots.into_iter().map(Slot::take).collect());
        handles.map_err(|failure| failure.error)
    }
}

impl<R: ToStart, const N: usize> sealed::Start for [R; N] {}

impl<R: ToStart, const N: usize> StartAll for [R; N] {
    type Handles = [R::Handle; N];

    fn start_all(self) -> Result<Self::Handles, Error> {
        match Vec::from(self).start_all()?.try_into() {
            Ok(handles) => Ok(handles),
            Err(_) => unreachable!("as many handles as recipes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use mirakuru_core::{Check, Executor, ExecutorBuilder, SimpleExecutor};

    use super::*;

    /// Each service becomes ready once all of them are running. If `start_all` waited for one
    /// before it launched the next, the start would time out.
    fn ready_when_all_are_there(dir: &std::path::Path, number: u32, of: usize) -> ExecutorBuilder<Check> {
        let (path, all) = (dir.join(number.to_string()), dir.to_owned());
        Executor::builder("sleep 60")
            .arg(format!("{number}"))
            .timeout(Duration::from_secs(20))
            .wait_for(Check::new("all of them had begun", move |_| {
                std::fs::write(&path, "")?;
                Ok(std::fs::read_dir(&all)?.count() >= of)
            }))
    }

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let dir = std::env::temp_dir().join(format!("mirakuru-unit-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn they_start_together() {
        let scratch = Scratch::new("together");
        let one = |number| ready_when_all_are_there(&scratch.0, number, 4);
        let [mut a, b, ..] = start_all([one(0), one(1), one(2), one(3)]).unwrap();
        assert!(a.is_running() && b.is_running());
        a.stop().unwrap();
    }

    #[test]
    fn one_failure_ends_the_others_at_once() {
        let never = Executor::builder("sleep 60")
            .timeout(Duration::from_secs(600))
            .wait_for(Check::new("never", |_| Ok(false)));
        let fails = Executor::builder("exit 3")
            .shell(true)
            .wait_for(Check::new("never", |_| Ok(false)));
        let began = Instant::now();
        let Err(error) = start_all((never, fails, Executor::builder("sleep 60"))) else {
            panic!("it started");
        };
        assert!(matches!(error, Error::Exited { .. }), "{error}");
        assert!(error.to_string().starts_with("exit 3: "), "{error}");
        assert!(began.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn they_stop_together() {
        let scratch = Scratch::new("stop");
        // Each service exits once both have received SIGTERM. If `stop_all` stopped one after the
        // other, it would have to kill the first.
        let one = |number: u32| {
            let dir = scratch.0.display();
            Executor::builder(format!(
                "trap 'touch {dir}/{number}; until [ -e {dir}/1 ] && [ -e {dir}/2 ]; do sleep 0.01; done; \
                 exit 0' TERM; echo ready; while :; do sleep 0.01; done"
            ))
            .shell(true)
            .stop_timeout(Duration::from_secs(60))
            .wait_for(mirakuru_core::Banner::matching("ready"))
        };
        let (a, b) = start_all((one(1), one(2))).unwrap();
        let pids = [a.pid(), b.pid()];
        stop_all((a, b)).unwrap();
        for pid in pids {
            assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        }
    }

    #[test]
    fn all_are_stopped_and_the_first_failure_is_told() {
        let ends_badly = Executor::builder("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done")
            .shell(true)
            .wait_for(mirakuru_core::Banner::matching("ready"));
        let ends_well = ends_badly.clone().expected_exit(5);
        let mut services = start_all([ends_well.clone(), ends_badly, ends_well]).unwrap();
        let error = stop_all(&mut services).unwrap_err();
        assert!(matches!(error, Error::BadExit { .. }), "{error}");
        // The service was asked to exit, so the message must not say that it ended by itself.
        assert!(!error.to_string().contains("before it was asked"), "{error}");
        assert!(services.iter().all(|service| !service.is_running()));
        services[0].start().unwrap();
        assert!(services[0].is_running());
        stop_all(&mut services).unwrap();
    }

    #[test]
    fn none_is_no_mistake_and_order_is_kept() {
        assert_eq!(start_all(Vec::<ExecutorBuilder>::new()).unwrap().len(), 0);
        let named = |name: &str| Executor::builder("sleep 60").name(name);
        let services: Vec<SimpleExecutor> = start_all(vec![named("a"), named("b"), named("c")]).unwrap();
        let names: Vec<&str> = services.iter().map(Executor::name).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
